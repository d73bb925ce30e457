//! Hands the command line to `cli`.

/// Of the static binary: with musl's own, a build in which every step hits makes twice as many system calls.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> std::process::ExitCode {
    wythe::cli::main()
}
