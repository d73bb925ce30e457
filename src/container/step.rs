//! The process that becomes a payload: a child of the spawner in new pid, uts, ipc and cgroup
//! namespaces, still the host's root. It builds its root, moves in, and gives up one privilege
//! after the other; the last thing it does is exec.
//!
//! Until then it runs in the spawner's memory, whose one thread waits for it, or in a copy: all of Rust may be used
//! here, and what is not freed before exec may be lost. It changes nothing that the spawner has.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};

use super::cgroup::Group;
use super::exec::Refusal;
use super::machine::Machine;
use super::mount_point::make_directories;
use super::network::Lane;
use super::passwd::User;
use super::protocol::{self, Failure, Report};
use super::template::{Prepared, Template};
use super::userns::Mapping;
use super::{Container, caps, exec, limit, root, terminal};
use crate::diag::{Context, Diagnostic, Result};
use crate::plan::Security;
use crate::sys;

/// The namespaces that a step is born into. It opens what is the host's in the spawner's mount
/// namespace, and joins its control group, before it has its own of these.
pub const NAMESPACES: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;

/// What becomes of standard input, output and error.
pub enum Streams {
    /// Nothing to read; a pipe or file for what is written.
    Output(OwnedFd),
    /// A terminal, whose master is sent to this socket.
    Terminal(OwnedFd),
}

/// How a step that could not be started exits; nobody looks at it, as a report was sent.
const NOT_STARTED: i32 = 125;

/// Becomes the payload. What goes wrong before is reported on `reports`, which exec closes.
pub fn run(
    container: &Container,
    template: &Template,
    prepared: &Prepared,
    lane: Option<&Lane>,
    streams: &Streams,
    reports: &OwnedFd,
) -> ! {
    let Err(Refusal { reason, machine }) = start(container, template, prepared, lane, streams, reports);
    let (reason, machine) = match machine {
        Some(machine) if !machine.is_named(&container.platform.architecture) => {
            (not_its_own(*reason, machine, container), None)
        }
        machine => (*reason, machine),
    };
    let report = protocol::encode(&Report::Failed { failure: Failure::from(reason), machine });
    let _ = protocol::send(reports.as_fd(), &report, &[]);
    sys::exit(NOT_STARTED)
}

/// A program for another machine than all the others: its handler is not what is missing.
fn not_its_own(reason: Diagnostic, machine: Machine, container: &Container) -> Diagnostic {
    let reason = reason.caused_by(format!("this step is for {}", container.platform));
    match machine.is_named(&machine.name()) {
        true => reason.hint(format!("build for it: `--platform linux/{}`", machine.name())),
        false => reason,
    }
}

fn start(
    container: &Container,
    template: &Template,
    prepared: &Prepared,
    lane: Option<&Lane>,
    streams: &Streams,
    reports: &OwnedFd,
) -> Result<Infallible, Refusal> {
    let user = &template.realm.mapping.user(&container.user);
    let owner = ids_outside(user, &template.realm.mapping)?;
    join(prepared.group.as_ref())?;
    rustix::process::setsid().context(|| "cannot begin a session")?;
    // From here on what this process makes belongs to root inside.
    sys::set_filesystem_ids(template.realm.mapping.root(), template.realm.mapping.root());
    if let Some(lane) = lane {
        move_into_link_name_space(lane.namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context(|| "cannot enter the network namespace")?;
    }

    let root = root::assemble(container, template, prepared)?;
    let workdir =
        make_directories(root.overlay.as_fd(), &container.workdir, (user.uid, user.gid), &template.realm.mapping)
            .context(|| format!("cannot enter the working directory `{}`", container.workdir))?;
    announce(root, reports)?;
    enter(workdir, &container.workdir)?;

    rustix::system::sethostname(container.hostname.as_bytes()).context(|| "cannot set the host name")?;
    rustix::system::setdomainname(b"(none)").context(|| "cannot set the domain name")?;
    match streams {
        Streams::Output(output) => standard_streams(output, owner)?,
        Streams::Terminal(socket) => terminal::open(&prepared.devices.pts, socket.as_fd(), owner.0)?,
    }
    limit::restore_open_files();
    limit::set(&container.ulimits)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));

    let is_sandboxed = container.security == Security::Sandbox;
    enter_user_namespace(template, container.security)?;
    if is_sandboxed {
        caps::bound(caps::DEFAULT)?;
    }
    filter(&prepared.filter, reports)?;
    take_ids(user, &template.realm.mapping)?;
    if is_sandboxed {
        caps::set(if user.uid == 0 { caps::DEFAULT } else { CapabilitySet::empty() })?;
    }
    sys::close_on_exec_from(3).context(|| "cannot close descriptors")?;
    Err(exec::exec(&container.argv, &environment(container)))
}

/// Moves into the step's control group, which becomes the topmost that it knows of.
fn join(group: Option<&Group>) -> Result<()> {
    let doing = || "cannot join the cgroup of a step";
    for entrance in group.into_iter().flat_map(Group::entrances) {
        rustix::io::write(entrance, b"0").context(doing)?;
    }
    sys::enter_new_cgroup_namespace().context(doing)
}

/// The user's ids as the builder knows them; that there are such was checked with all the others.
fn ids_outside(user: &User, mapping: &Mapping) -> Result<(u32, u32)> {
    let outside = |uid: u32, gid: u32| {
        mapping.outside(uid, gid).ok_or_else(|| {
            let error =
                Diagnostic::error(format!("cannot run as user {uid} and group {gid}: there are no such ids here"));
            match mapping {
                Mapping::Shifted => error,
                Mapping::Same(_) => error.caused_by("`/etc/subuid` and `/etc/subgid` do not give you as many"),
            }
        })
    };
    for group in &user.groups {
        outside(user.uid, *group)?;
    }
    outside(user.uid, user.gid)
}

/// Hands what outlives this process to the spawner.
fn announce(root: root::Root, reports: &OwnedFd) -> Result<()> {
    let mut fds = vec![root.overlay.as_fd(), root.skeleton.as_fd(), root.namespace.as_fd()];
    for stub in &root.stubs {
        fds.extend([stub.parent.as_fd(), stub.entry.as_fd()]);
    }
    // `Report` owns its records; the descriptors stay ours.
    let records = root.stubs.iter().map(|stub| stub.record.clone()).collect();
    protocol::send(reports.as_fd(), &protocol::encode(&Report::Mounted { stubs: records }), &fds)
        .context(|| "cannot report to the spawner")
}

/// Installs the filter and hands the spawner what it asks on. To be called while this process has
/// CAP_SYS_ADMIN, which another user than root loses: without it a filter would take no_new_privs, and
/// sudo would not work.
fn filter(filter: &[sys::Instruction], reports: &OwnedFd) -> Result<()> {
    let listener = sys::install_seccomp_filter(filter).context(|| "cannot install the system call filter")?;
    protocol::send(reports.as_fd(), &protocol::encode(&Report::Filtered), &[listener.as_fd()])
        .context(|| "cannot report to the spawner")
}

/// Changes to the working directory. One that cannot be reached from the root would be a way out.
fn enter(workdir: OwnedFd, name: &str) -> Result<()> {
    let doing = || format!("cannot enter the working directory `{name}`");
    rustix::process::fchdir(&workdir).context(doing)?;
    let here = rustix::process::getcwd(Vec::new()).context(doing)?;
    if !here.as_bytes().starts_with(b"/") {
        return Err(Diagnostic::error(doing()).caused_by("it is outside of the root"));
    }
    Ok(())
}

/// Nothing on standard input; output and errors on one pipe, which is made the user's, so that
/// `/dev/stdout` and `/dev/stderr` can be opened again.
fn standard_streams(output: &OwnedFd, (uid, gid): (u32, u32)) -> Result<()> {
    let doing = || "cannot set up the standard streams";
    let stat = rustix::fs::fstat(output).context(doing)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::fchown(output, Some(uid), Some(gid)).context(doing)?;
    }
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(doing)?;
    rustix::stdio::dup2_stdin(&null).context(doing)?;
    rustix::stdio::dup2_stdout(output).context(doing)?;
    rustix::stdio::dup2_stderr(output).context(doing)
}

/// How long is tried what a thread that ends is in the way of: it was joined a moment before it counts no more, and on
/// a busy machine a moment is long.
const LAST_MOMENTS: Duration = Duration::from_secs(10);
/// From then on it is not the processor that it lacks.
const PAUSE_AFTER: Duration = Duration::from_millis(1);

/// Enters the steps' user namespace, where this process has every capability and on the host none.
/// The kernel lets in no process of several threads, and a thread may have named the layers.
fn enter_user_namespace(template: &Template, security: Security) -> Result<()> {
    let doing = || "cannot enter the step's user namespace";
    let enter = || move_into_link_name_space(template.realm.user_namespace.as_fd(), Some(LinkNameSpaceType::User));
    let mut entered = enter();
    let since = Instant::now();
    while entered == Err(Errno::INVAL) && since.elapsed() < LAST_MOMENTS {
        match since.elapsed() < PAUSE_AFTER {
            true => std::thread::yield_now(),
            false => std::thread::sleep(Duration::from_micros(100)),
        }
        entered = enter();
    }
    entered.context(doing)?;
    if security == Security::Insecure {
        // Mounting takes a mount namespace of the user namespace's, and so does a host name one of its own.
        sys::enter_new_mount_namespace().and_then(|()| sys::enter_new_host_name_namespace()).context(doing)?;
    }
    Ok(())
}

/// Takes on the user's ids. Where there is nobody but root this process is root already, and the kernel
/// lets it give up no groups: they may be what keeps others from a file.
fn take_ids(user: &User, mapping: &Mapping) -> Result<()> {
    if mapping.is_single() {
        return Ok(());
    }
    let doing = || "cannot become the step's user";
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups).context(doing)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).context(doing)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).context(doing)
}

/// The environment as given, and what it lacks.
fn environment(container: &Container) -> Vec<(String, String)> {
    let mut environment = container.env.clone();
    if !environment.iter().any(|(name, _)| name == "HOME") {
        let home = if container.user.home.is_empty() { "/" } else { &container.user.home };
        environment.push(("HOME".to_owned(), home.to_owned()));
    }
    environment
}
