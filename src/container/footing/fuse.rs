//! An overlay by `fuse-overlayfs`, mounted nowhere: we mount, and the program gets the descriptor to serve.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags};
use rustix::mount::{FsOpenFlags, fsconfig_set_flag, fsconfig_set_string, fsopen};
use rustix::pipe::PipeFlags;

use super::super::{mount, userns};
use super::ROOT_ATTRIBUTES;
use crate::diag::{Context, Diagnostic, Result};
use crate::layer::{Shift, node};
use crate::store::{Draft, Scratch, Store};
use crate::sys;

const PROGRAM: &str = "fuse-overlayfs";

pub struct Session {
    pub mount: Arc<OwnedFd>,
    child: Child,
    /// The program dies when it is closed, and so with this process.
    life: Option<OwnedFd>,
    /// The filesystem's time when it began.
    since: (i64, u32),
    /// Of the empty layer, where there is no other.
    _scratch: Option<Scratch>,
}

impl Session {
    /// Mounts `lowers` (topmost first) below the upper dir of the draft.
    pub fn begin(lowers: &[PathBuf], draft: &Draft, shift: Shift, store: &Store) -> Result<Self> {
        let doing = || "cannot mount an overlay by `fuse-overlayfs`";
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
            Diagnostic::error(doing())
                .caused_by(format!("`/dev/fuse`: {}", std::io::Error::from(errno)))
                .hint("`sudo modprobe fuse`, or start the container with `--device /dev/fuse`")
        })?;
        let mount = filesystem(&device).map_err(|error| Diagnostic::error(doing()).caused_by(error))?;
        // Made a moment ago.
        let since = node::node_of(draft.upper()).context(doing)?.mtime;
        let scratch = if lowers.is_empty() { Some(store.scratch()?) } else { None };
        let empty = scratch.as_ref().map(|scratch| scratch.path.clone());
        let lowers: Vec<_> = lowers.iter().chain(&empty).collect();
        let (told, life) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(doing)?;
        let said = File::from(rustix::fs::memfd_create("said", MemfdFlags::CLOEXEC).context(doing)?);
        let mut command = Command::new(PROGRAM);
        command
            .arg("-f")
            .args(["-o", &options(&lowers, draft, shift, store)?])
            // Served by its standard input.
            .arg("/dev/fd/0")
            .current_dir(store.root())
            .stdin(Stdio::from(device))
            .stdout(Stdio::null())
            .stderr(Stdio::from(said.try_clone().context(doing)?));
        sys::die_with(&mut command, told);
        let child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Diagnostic::error(doing())
                .caused_by("it is not installed")
                .hint("`sudo apt-get install fuse-overlayfs`, or `sudo dnf install fuse-overlayfs`"),
            _ => Diagnostic::error(doing()).caused_by(error),
        })?;
        // It has the device, and with it the mount ends.
        drop(command);
        let session = Self { mount: Arc::new(mount), child, life: Some(life), since, _scratch: scratch };
        // Waits until it answers, or is gone.
        match rustix::fs::statat(&*session.mount, ".", AtFlags::empty())
            .and_then(|_| node::names(node::reopen(session.mount.as_fd())?.as_fd()))
        {
            Ok(_) => Ok(session),
            Err(errno) => {
                drop(session);
                Err(Diagnostic::error(doing())
                    .caused_by(last_line(said).unwrap_or_else(|| std::io::Error::from(errno).to_string())))
            }
        }
    }

    /// Ends it when all that was written has reached the upper dir; says when it began.
    pub fn end(self) -> Result<(i64, u32)> {
        rustix::fs::openat(&*self.mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|root| rustix::fs::syncfs(&root))
            .map(|()| self.since)
            .context(|| "cannot finish an overlay by `fuse-overlayfs`")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.life.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everybody may use it, and the kernel judges permissions.
fn filesystem(device: &OwnedFd) -> Result<OwnedFd, String> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| errno.to_string())?;
    let number = device.as_raw_fd().to_string();
    let options = [("source", PROGRAM), ("fd", &number), ("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")];
    options
        .into_iter()
        .try_for_each(|(key, value)| fsconfig_set_string(&context, key, value))
        .and_then(|()| fsconfig_set_flag(&context, "allow_other"))
        .and_then(|()| fsconfig_set_flag(&context, "default_permissions"))
        .map_err(|errno| errno.to_string())?;
    mount::finish(&context, ROOT_ATTRIBUTES)
}

/// Layers by their places in the store, which is the program's directory: its own path may hold anything.
fn options(lowers: &[&PathBuf], draft: &Draft, shift: Shift, store: &Store) -> Result<String> {
    let within = |path: &Path| path.strip_prefix(store.root()).unwrap_or(path).display().to_string();
    let lowers: Vec<_> = lowers.iter().map(|path| within(path)).collect();
    let mut options = format!(
        "lowerdir={},upperdir={},workdir={},writeback=0,timeout=0",
        lowers.join(":"),
        within(&draft.path.join("u")),
        within(&draft.path.join("w"))
    );
    if let Shift::Up(by) = shift {
        let map = format!("0:{by}:{}", userns::COUNT);
        options.push_str(&format!(",uidmapping={map},gidmapping={map}"));
    }
    Ok(options)
}

fn last_line(mut said: File) -> Option<String> {
    let mut text = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut text)).ok()?;
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}
