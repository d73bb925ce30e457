//! What the root of a step can be made of here: each way tried as a build would take it, and what is said of a
//! lesser one.

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::trial::Trials;
use super::{Finding, Verdict, disk};
use crate::container::{Container, Footing, Ground, Mount, MountKind, Rung, Worker, room_size_bytes, shift_of_steps};
use crate::diag::{Context, Diagnostic, Result, Severity};
use crate::ids;
use crate::layer::{self, Links, node, whiteout};
use crate::plan::Network;
use crate::progress::units;
use crate::store::{Draft, Store};

/// All there are, the best first.
pub fn footings(is_host_root: bool) -> impl Iterator<Item = Footing> {
    let both = move |rung| {
        // With layers of their own steps could stand on the store's overlay too, if there was one.
        let shifted = is_host_root && rung != Rung::Overlay;
        [false, true]
            .into_iter()
            .filter(move |is| shifted || !is)
            .map(move |has_shifted_layers| Footing { rung, has_shifted_layers })
    };
    Rung::ALL.into_iter().flat_map(both)
}

/// What a build is told that cannot have the best.
pub fn lesser(rung: Rung, reason: Option<&Diagnostic>, store: &Store) -> Diagnostic {
    let what = match rung {
        Rung::Overlay => "steps write to the store".to_owned(),
        Rung::Memory => format!(
            "steps write to memory, {} each at most, and then to the store, which costs time",
            units::size(room_size_bytes(store))
        ),
        Rung::Fuse => "steps write by way of `fuse-overlayfs`, which costs time".to_owned(),
        Rung::Copy => "every step works on a copy of its whole root, which costs time and room".to_owned(),
    };
    let warning = Diagnostic { severity: Severity::Warning, ..Diagnostic::error(what) };
    let warning = match reason {
        Some(reason) => {
            let told = reason
                .cause
                .as_ref()
                .map_or_else(|| reason.message.clone(), |cause| format!("{}: {cause}", reason.message));
            warning.caused_by(format!("{told} (the store is on {})", disk::name(store)))
        }
        None => warning.caused_by("it was asked for"),
    };
    let warning = warning.hint("keep the store on ext4, xfs or btrfs, as a volume of a container is: `--root DIR`");
    match rung {
        Rung::Copy => warning.hint("`sudo apt-get install fuse-overlayfs`, and a `/dev/fuse` that may be opened"),
        _ => warning,
    }
}

impl Trials<'_> {
    /// The best footing there is, which later trials are on. Where no container runs on any, for whatever reason,
    /// it is that of COPY.
    pub fn layers(&self) -> Finding {
        let mut reasons: Vec<Diagnostic> = Vec::new();
        let all = |worker| footings(ids::are_the_hosts()).map(move |footing| (footing, worker));
        for (footing, worker) in all(Worker::Step).chain(all(Worker::Builder)) {
            match self.footing(footing, worker) {
                Ok(()) if footing.rung == Rung::Overlay => {
                    return Finding::good("layers", format!("overlays, on {}", disk::name(self.store)));
                }
                Ok(()) => {
                    self.footing.set(footing);
                    return Finding::told("layers", Verdict::Note, &lesser(footing.rung, reasons.first(), self.store));
                }
                Err(error) => reasons.push(error),
            }
        }
        let fault = reasons.into_iter().next().unwrap_or_else(|| Diagnostic::error("nothing was tried"));
        Finding::told("layers", Verdict::Fatal, &fault)
    }

    /// Builds on a footing: writes over two layers, of which one hides what the other has, and for
    /// [`Worker::Step`] runs a program there.
    pub fn footing(&self, footing: Footing, worker: Worker) -> Result<()> {
        let (below, above) = (self.store.draft()?, self.store.draft()?);
        let doing = || "cannot make a layer to try";
        for name in ["seen", "hidden"] {
            make_file(below.upper(), name).context(doing)?;
        }
        whiteout::create(above.upper(), c"hidden").context(doing)?;
        let dirs = [above.upper(), below.upper()];
        let merged = self.store.draft()?;
        let layers: Vec<&Draft> = match footing.rung.takes_one_layer(self.store)? {
            true => {
                layer::flatten(&dirs, merged.upper())?;
                vec![&merged]
            }
            false => vec![&above, &below],
        };
        let lowers: Vec<PathBuf> = layers.iter().map(|draft| draft.path.join("u")).collect();
        self.write_on(footing, &lowers, &dirs)?;
        if worker == Worker::Builder {
            return Ok(());
        }
        let mut shifted = Vec::new();
        for layer in layers.iter().filter(|_| footing.has_shifted_layers) {
            let draft = self.store.draft()?;
            layer::transfer(layer.upper(), draft.upper(), Links::Kept, shift_of_steps())?;
            shifted.push(draft);
        }
        let mounted: Vec<PathBuf> = match footing.has_shifted_layers {
            true => shifted.iter().map(|draft| draft.path.join("u")).collect(),
            false => lowers.clone(),
        };
        let draft = self.store.draft()?;
        let ground = Ground::new(footing.rung, Worker::Step, &lowers, &draft, self.store)?;
        let mut container = Container {
            lowers: mounted.clone(),
            draft: ground.path(&draft),
            ground: ground.given(),
            network: Network::Host,
            ..self.sample()
        };
        let kind = MountKind::Layers { lowers: mounted, path: "/".into(), is_readonly: true };
        container.mounts.push(Mount { target: "/layers".into(), kind });
        self.run_there(&container)?;
        drop(container);
        ground.settle(&draft, &dirs, None)
    }

    fn write_on(&self, footing: Footing, lowers: &[PathBuf], dirs: &[rustix::fd::BorrowedFd<'_>]) -> Result<()> {
        let doing = || "cannot write over layers";
        let draft = self.store.draft()?;
        let ground = Ground::new(footing.rung, Worker::Builder, lowers, &draft, self.store)?;
        let root = ground.root(lowers, &draft)?;
        rustix::fs::statat(&root, "seen", AtFlags::empty()).context(doing)?;
        // Some still list what they do not find.
        let listed = node::reopen(root.as_fd()).and_then(|root| node::names(root.as_fd())).context(doing)?;
        let is_found = rustix::fs::statat(&root, "hidden", AtFlags::empty()).err() != Some(Errno::NOENT);
        if is_found || listed.iter().any(|(name, _)| name.as_c_str() == c"hidden") {
            return Err(Diagnostic::error(doing()).caused_by("what one hides is still seen"));
        }
        make_file(root.as_fd(), "made").context(doing)?;
        drop(root);
        ground.settle(&draft, dirs, None)?;
        rustix::fs::statat(draft.upper(), "made", AtFlags::empty()).context(doing).map(drop)
    }
}

fn make_file(dir: rustix::fd::BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}
