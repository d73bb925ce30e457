//! The groups of a build and those of its steps.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::assignment::{Assignment, assign};
use super::directory::Directory;
use super::hierarchy::Hierarchies;
use super::home::{self, Home};
use super::knob::Knob;
use super::limits::{Controller, Limits};
use super::{OutOfMemory, Version, v1, v2};
use crate::diag::{Context, Diagnostic, Result};
use crate::progress::Usage;

/// A process that was waited for is in its group until the kernel has switched away from it. On a busy processor, or with
/// its share of the time used up, that may take it some of the scheduler's periods.
const LINGERING: Duration = Duration::from_millis(200);

/// The groups of a build: made as steps ask for them, removed with this.
#[derive(Debug, Default)]
pub struct Groups {
    hierarchies: Option<Hierarchies>,
    homes: BTreeMap<Place, Arc<Home>>,
    /// Of steps so far.
    count: u64,
    is_swept: bool,
}

/// A hierarchy and the parent that was asked for. With version 2, what a build's directory passes on
/// depends on the controllers, too.
type Place = (PathBuf, Option<String>, Vec<Controller>);

/// The group of one step, removed with this; nothing must run in it then.
#[derive(Debug)]
pub struct Group {
    limits: Limits,
    seats: Vec<Seat>,
}

/// A step's directory in one hierarchy.
#[derive(Debug)]
struct Seat {
    version: Version,
    name: String,
    directory: Directory,
    /// `cgroup.procs`.
    procs: OwnedFd,
    home: Arc<Home>,
}

impl Groups {
    /// Makes a group with these limits; `None` where there is nothing to limit or to count.
    pub fn make(&mut self, limits: &Limits) -> Result<Option<Group>> {
        if !limits.ask_for_a_group() {
            return Ok(None);
        }
        let hierarchies = match self.hierarchies.take() {
            Some(known) => known,
            None => Hierarchies::find()?,
        };
        self.sweep_first(&hierarchies, limits);
        let made = self.make_in(&hierarchies, limits);
        self.hierarchies = Some(hierarchies);
        Ok(Some(made?))
    }

    fn make_in(&mut self, hierarchies: &Hierarchies, limits: &Limits) -> Result<Group> {
        let assignments = assign(hierarchies, &hierarchies.controllers_of_v2(), limits)?;
        self.count += 1;
        let name = self.count.to_string();
        let mut group = Group { limits: limits.clone(), seats: Vec::new() };
        for assignment in &assignments {
            let seat = self.seat(assignment, limits, &name);
            let seat = match seat {
                // What only counts may be missing.
                Err(_) if assignment.needed.is_empty() && limits.parent.is_none() && !limits.is_counted => continue,
                seat => seat?,
            };
            for controller in &assignment.needed {
                let knobs = match assignment.version {
                    Version::One => v1::knobs(*controller, limits),
                    Version::Two => v2::knobs(*controller, limits),
                };
                for knob in knobs {
                    turn(&seat.directory, *controller, &knob)?;
                }
            }
            group.seats.push(seat);
        }
        Ok(group)
    }

    fn seat(&mut self, assignment: &Assignment<'_>, limits: &Limits, name: &str) -> Result<Seat> {
        let place = (assignment.hierarchy.mount.clone(), limits.parent.clone(), assignment.needed.clone());
        let home = match self.homes.get(&place) {
            Some(home) => Arc::clone(home),
            None => {
                let home = Arc::new(Home::make(assignment, limits.parent.as_deref())?);
                self.homes.insert(place, Arc::clone(&home));
                home
            }
        };
        let doing = || format!("cannot make a cgroup below `{}`", home.directory.path.display());
        let directory = home::make_group(&home.directory, name, assignment.version).context(doing)?;
        let procs = directory.writer("cgroup.procs").context(doing)?;
        Ok(Seat { version: assignment.version, name: name.to_owned(), directory, procs, home })
    }

    /// Removes what killed builds left. Once for a build, and best while nobody waits.
    pub fn sweep(&mut self) {
        if self.is_swept {
            return;
        }
        if self.hierarchies.is_none() {
            self.hierarchies = Hierarchies::find().ok();
        }
        self.is_swept = true;
        if let Some(hierarchies) = &self.hierarchies {
            home::sweep(hierarchies, None);
        }
    }

    /// Before the first group is made, so that its name is a low one.
    fn sweep_first(&mut self, hierarchies: &Hierarchies, limits: &Limits) {
        if !self.is_swept {
            self.is_swept = true;
            home::sweep(hierarchies, limits.parent.as_deref());
        }
    }
}

impl Group {
    /// What a process writes `0` to in order to join.
    pub fn entrances(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.seats.iter().map(|seat| seat.procs.as_fd())
    }

    /// What was used by all processes that were ever in here; zero where nothing counts.
    pub fn usage(&self) -> Usage {
        let of_seat = |seat: &Seat| match seat.version {
            Version::One => v1::usage(|file| seat.directory.read(file)),
            Version::Two => v2::usage(|file| seat.directory.read(file)),
        };
        self.seats.iter().map(of_seat).fold(Usage::default(), Usage::max)
    }

    pub fn out_of_memory(&self) -> Option<OutOfMemory> {
        self.seats.iter().find_map(|seat| match seat.version {
            Version::One => v1::out_of_memory(|file| seat.directory.read(file), &self.limits),
            Version::Two => v2::out_of_memory(|file| seat.directory.read(file), &self.limits),
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let remove = || self.home.directory.remove(&self.name);
        let begun = Instant::now();
        while remove() == Err(Errno::BUSY) {
            // The end of the step's pid namespace has ended all its processes. Should one be left for
            // all that, it is not for long; the next build removes the directory.
            if begun.elapsed() > LINGERING {
                let _ = self.directory.write("cgroup.kill", "1");
                let _ = remove();
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Sets a limit of a group.
fn turn(group: &Directory, controller: Controller, knob: &Knob) -> Result<()> {
    let subject = controller.subject();
    let found = knob.alternatives.iter().find(|(file, _)| group.has(file));
    let Some((file, value)) = found else {
        if knob.is_implied {
            return Ok(());
        }
        let wanted = knob.alternatives.first().map_or("", |(file, _)| file);
        return Err(Diagnostic::error(format!("cannot limit {subject} of a step"))
            .caused_by(format!("this kernel has no `{wanted}`")));
    };
    if controller == Controller::Io && !weighs(file) {
        return Err(Diagnostic::error(format!("cannot limit {subject} of a step"))
            .caused_by("no disk has a scheduler that weighs it: neither `bfq` nor `io.cost.qos`"));
    }
    let doing = || format!("cannot limit {subject} of a step: `{value}` to `{file}`");
    match group.write(file, value) {
        Err(Errno::INVAL | Errno::RANGE | Errno::ACCESS | Errno::NOSPC) if controller == Controller::Cpuset => {
            let effective = file.replace("cpuset.", "cpuset.effective_");
            let may = group.read(&effective).or_else(|| group.read(&format!("{file}.effective"))).unwrap_or_default();
            Err(Diagnostic::error(doing()).caused_by(format!("this builder may use {}", may.trim())))
        }
        written => written.context(doing),
    }
}

/// Whether a weight of block I/O would change anything: most disks have a scheduler that knows none.
fn weighs(file: &str) -> bool {
    let is_bfq = |disk: std::fs::DirEntry| {
        std::fs::read_to_string(disk.path().join("queue/scheduler")).is_ok_and(|text| text.contains("[bfq]"))
    };
    if file.contains("bfq") {
        return std::fs::read_dir("/sys/block").is_ok_and(|disks| disks.flatten().any(is_bfq));
    }
    file != "io.weight"
        || std::fs::read_to_string("/sys/fs/cgroup/io.cost.qos").is_ok_and(|text| text.contains("enable=1"))
}
