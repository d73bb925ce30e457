//! Hands the command line to `cli`.

fn main() -> std::process::ExitCode {
    wythe::cli::main()
}
