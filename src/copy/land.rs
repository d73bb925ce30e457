//! Landing: the rules by which the selections of a listing become files beneath the root.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;

use super::archive::{self, Limits};
use super::chmod::Mode;
use super::content;
use super::earlier::{Earlier, Kept};
use super::file::{Checking, Fillers, Filling, Source, Task, changed, source_name};
use super::node::{self, Attributes};
use super::outline::{At, Looks, Outlined, StandIn};
use super::place::{self, Directory, Follows, Makes, Root, Spot, shown};
use super::{Blob, Landing, Owner};
use crate::context::{Entry, EntryKind, Selection};
use crate::diag::{Context, Diagnostic, Result};
use crate::digest::{Digest, HashingReader};
use crate::layer;
use crate::layer::node::open_below;
use crate::layer::record::Device;
use crate::parallel;

pub(super) struct Lander<'c, 'scope, 'env> {
    source: &'scope Source<'scope>,
    fillers: &'c Fillers<'scope, 'env>,
    /// How many files were given to them.
    files: usize,
    earlier: Option<Earlier<'c>>,
    /// The files found there, by the number they were given with.
    kept: BTreeMap<usize, Keeping<'scope>>,
    /// What files stand for; `None` where files are copied.
    outlined: Option<Outlined>,
    /// Numbers of files that an outline has to have with their bytes, and nobody has read.
    unread: Vec<usize>,
    /// Which selection lands, and whether there are others.
    selection: usize,
    is_only: bool,
    /// Of files that an outline has with their bytes.
    replaced_bytes: u64,
    root: Root<'c>,
    /// Below the root, `..` resolved as text.
    destination: Vec<u8>,
    /// Written with a trailing slash.
    is_directory: bool,
    follows: Follows,
    looks: Looks,
    unpacks: bool,
}

/// Files of one selection that have several links: where the first of them landed.
type Links = BTreeMap<(u64, u64), (Vec<u8>, Vec<u8>)>;

/// A file of the listing, and what it is to look like.
#[derive(Clone, Copy)]
struct Regular<'a> {
    entry: &'a Entry,
    size_bytes: u64,
    digest: &'a Digest,
    attributes: Attributes<'a>,
}

/// A file that an earlier layer has.
struct Keeping<'a> {
    /// The path of its directory.
    parent: Vec<u8>,
    name: Vec<u8>,
    file: Regular<'a>,
}

/// So many files that stand for others an outline has in memory: each takes a kilobyte of the kernel's.
const MOST_STAND_INS: usize = 50_000;
/// So many bytes of files that take the place of others an outline has in memory.
const MOST_REPLACED_BYTES: u64 = 16 << 20;

impl<'c, 'scope, 'env> Lander<'c, 'scope, 'env> {
    pub fn new(
        source: &'scope Source<'scope>,
        fillers: &'c Fillers<'scope, 'env>,
        root: BorrowedFd<'c>,
        landing: &Landing<'_>,
    ) -> Result<Self> {
        let written = landing.destination;
        Ok(Self {
            source,
            fillers,
            files: 0,
            earlier: None,
            kept: BTreeMap::new(),
            outlined: None,
            unread: Vec::new(),
            selection: 0,
            is_only: false,
            replaced_bytes: 0,
            root: Root::new(root, landing.now)?,
            destination: place::clamped(written.as_bytes()),
            is_directory: landing.has_parents || ["/", "/.", "/.."].iter().any(|end| written.ends_with(end)),
            follows: if landing.is_link { Follows::Nothing } else { Follows::Links },
            looks: Looks { owner: landing.owner, chmod: landing.chmod.map(Mode::parse).transpose()? },
            unpacks: landing.unpacks,
        })
    }

    /// Lets files be taken from the dir of an earlier layer. No two files that land may have one name.
    pub fn may_keep(&mut self, earlier: BorrowedFd<'c>) {
        self.earlier = Earlier::of(earlier, self.root.records);
    }

    /// Leaves files where they are, but those that take the place of others: whether they are the same is told by
    /// their bytes. `is_only` says that there is one selection.
    pub fn outline(&mut self, is_only: bool) {
        self.outlined = Some(Outlined::new());
        self.is_only = is_only;
    }

    /// What stands for what, or the numbers of files that have to be read for it.
    pub fn outlined(&mut self) -> Result<(Outlined, Looks), Vec<usize>> {
        if !self.unread.is_empty() {
            return Err(std::mem::take(&mut self.unread));
        }
        Ok((self.outlined.take().unwrap_or_default(), self.looks.clone()))
    }

    /// Copies a file after all.
    pub fn copy_kept(&mut self, file: usize) -> Result<()> {
        let Some(Keeping { parent, name, file }) = self.kept.remove(&file) else { return Ok(()) };
        let time = self.root.time(&parent);
        let parent = Directory { fd: self.root.open(&parent)?, path: parent };
        let filling = self.filling(&parent, &name, file)?;
        // It is where it would have been before the time was known.
        if let Some(time) = time {
            self.root.set_time(parent.path, time);
        }
        filling.fill(&mut vec![0; parallel::buffer_bytes(filling.size_bytes)])
    }

    /// What is still to be linked.
    pub fn finish(self) -> Result<Kept> {
        let mut kept = Kept::default();
        for file in self.kept.values() {
            kept.add(&file.parent, &file.name, self.root.time(&file.parent));
        }
        self.root.finish()?;
        Ok(kept)
    }

    /// Its files may be empty until the fillers have finished.
    pub fn selection(&mut self, selection: &'scope Selection, number: usize) -> Result<()> {
        self.selection = number;
        let Some(source) = selection.entries.first() else { return Ok(()) };
        if !source.land.is_empty() {
            let into = self.directory(self.makes())?;
            return self.merge(&into, &selection.entries, 0);
        }
        match &source.kind {
            EntryKind::Directory => {
                let into = self.merge_directory()?;
                self.merge(&into, &selection.entries, 1)?;
                self.root.set_time(into.path, source.mtime);
                Ok(())
            }
            EntryKind::File { size_bytes, digest } if self.unpacks && self.unpack(source, *size_bytes, digest)? => {
                Ok(())
            }
            _ => {
                let (parent, name) = self.target(&selection.name)?;
                self.entry(&parent, &name, source, 0, &mut Links::new()).map(drop)
            }
        }
    }

    pub fn blob(&mut self, blob: &Blob<'_>) -> Result<()> {
        if self.unpacks && archive::is_archive(blob.content) {
            let limits = Limits::of(blob.content.len() as u64);
            let into = self.archive_directory()?;
            return archive::unpack(blob.content, blob.name, &into, &mut self.root, self.looks.owner, limits);
        }
        let (parent, name) = self.target(blob.name.as_bytes())?;
        let path = parent.join(&name);
        let file = File::from(self.make(&parent, &name, node::make_file)?);
        let attributes = Attributes {
            owner: self.looks.owner.unwrap_or(Owner::ROOT),
            mode: self.looks.mode(blob.mode, false),
            mtime: (blob.mtime, 0),
            xattrs: &[],
        };
        let length = blob.content.len() as u64;
        content::fill(&file, &mut &*blob.content, length, &mut vec![0; parallel::buffer_bytes(length)], None)
            .context(|| format!("cannot write `{}`", shown(&path)))?;
        attributes.dress(file.as_fd(), &path, self.root.records)
    }

    /// Where something that is no directory lands: in the destination if that is a directory, else
    /// in its place. There may be something else there.
    fn target(&mut self, name: &[u8]) -> Result<(Directory, Vec<u8>)> {
        let makes = self.makes();
        let top = self.root.top()?;
        match self.root.walk(&top, &self.destination, self.follows, makes)? {
            Spot::Directory(directory) => Ok((directory, name.to_vec())),
            Spot::Name { parent, name: last, is_free: true } if self.is_directory => {
                Ok((self.root.make_directory(&parent, &last, makes)?, name.to_vec()))
            }
            Spot::Name { parent, name: last, is_free: false } if self.is_directory => {
                Err(place::not_a_directory(&parent.join(&last)))
            }
            Spot::Name { parent, name: last, .. } => Ok((parent, last)),
        }
    }

    /// The destination as a directory.
    fn directory(&mut self, makes: Makes) -> Result<Directory> {
        let top = self.root.top()?;
        self.root.directory(&top, &self.destination, self.follows, makes)
    }

    fn merge_directory(&mut self) -> Result<Directory> {
        let makes = self.makes();
        let top = self.root.top()?;
        match self.root.walk(&top, &self.destination, self.follows, makes)? {
            Spot::Directory(directory) => Ok(directory),
            Spot::Name { parent, name, is_free: true } => self.root.make_directory(&parent, &name, makes),
            Spot::Name { parent, name, is_free: false } => Err(onto_a_file(&parent.join(&name))),
        }
    }

    fn archive_directory(&mut self) -> Result<Directory> {
        self.directory(Makes { mode: 0o755, ..self.makes() })
    }

    fn makes(&self) -> Makes {
        Makes {
            mode: self.looks.chmod.as_ref().map_or(0o755, Mode::of_made_directories),
            owner: self.looks.owner,
            inherits_group: true,
        }
    }

    /// Lands the entries from `first` on below `base`, parents first.
    fn merge(&mut self, base: &Directory, entries: &'scope [Entry], first: usize) -> Result<()> {
        if self.leaves() && self.leave(base, base, entries, first..entries.len())? {
            return Ok(());
        }
        let mut links = Links::new();
        let mut times = Vec::new();
        // The directory the last entry was in: most entries are its neighbours.
        let mut held: Option<(&[u8], Directory)> = None;
        let mut next = first;
        while let Some(entry) = entries.get(next) {
            let (above, name) = match entry.land.iter().rposition(|&byte| byte == b'/') {
                Some(slash) => (&entry.land[..slash], &entry.land[slash + 1..]),
                None => (&b""[..], &entry.land[..]),
            };
            let parent = match held.take() {
                Some((path, directory)) if path == above => directory,
                _ => self.open(base, above)?,
            };
            if entry.kind == EntryKind::Directory {
                times.push((parent.join(name), entry.mtime));
            }
            let made = self.entry(&parent, name, entry, next, &mut links)?;
            next += 1;
            if let Some(directory) = made
                && self.leaves()
            {
                let is_below = |below: &Entry| {
                    below.land.strip_prefix(entry.land.as_slice()).is_some_and(|rest| rest.starts_with(b"/"))
                };
                let end = next + entries[next..].iter().take_while(|entry| is_below(entry)).count();
                if self.leave(base, &directory, entries, next..end)? {
                    next = end;
                }
            }
            held = Some((above, parent));
        }
        for (path, mtime) in times {
            self.root.set_time(path, mtime);
        }
        Ok(())
    }

    /// Whether one file may stand for all that lands in a directory: another selection could land there as well.
    fn leaves(&self) -> bool {
        self.is_only && self.outlined.is_some()
    }

    /// Leaves all that lands in a directory where it is, if there is nothing else in it.
    fn leave(
        &mut self,
        base: &Directory,
        directory: &Directory,
        entries: &'scope [Entry],
        range: Range<usize>,
    ) -> Result<bool> {
        let Some(first) = entries[range.clone()].first() else { return Ok(false) };
        let doing = || format!("cannot read `{}`", shown(&directory.path));
        let inside = node::open_directory(directory.fd.as_fd(), b".").and_then(|fd| layer::node::names(fd.as_fd()));
        if !inside.context(doing)?.is_empty() {
            return Ok(false);
        }
        for entry in &entries[range.clone()] {
            let name = entry.land.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            place::check_name(name, &base.join(&entry.land))?;
        }
        let name = first.land.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        self.make(directory, name, node::make_file)?;
        let at = At::Beneath(base.path.clone());
        self.stand_in(directory.join(name), StandIn { selection: self.selection, entries: range, at });
        Ok(true)
    }

    fn stand_in(&mut self, path: Vec<u8>, stand_in: StandIn) {
        if let Some(outlined) = &mut self.outlined {
            outlined.insert(path, stand_in);
        }
    }

    /// A directory that landed before; links are no directories here.
    fn open(&mut self, base: &Directory, below: &[u8]) -> Result<Directory> {
        match open_below(base.fd.as_fd(), below, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => Ok(Directory { fd, path: base.join(below) }),
            Err(Errno::NOENT) => self.root.directory(base, below, Follows::Nothing, self.makes()),
            Err(errno) => Err(errno).context(|| format!("cannot open `{}`", shown(&base.join(below)))),
        }
    }

    /// Lands the entry that is at `index` of the selection as `name` in `parent`. Returns a directory that is new.
    fn entry(
        &mut self,
        parent: &Directory,
        name: &[u8],
        entry: &'scope Entry,
        index: usize,
        links: &mut Links,
    ) -> Result<Option<Directory>> {
        let path = parent.join(name);
        let attributes = Attributes {
            owner: self.looks.owner_of(entry),
            mode: self.looks.mode(entry.mode, entry.kind == EntryKind::Directory),
            mtime: entry.mtime,
            xattrs: &entry.xattrs,
        };
        let records = self.root.records;
        let special = |is_block, (major, minor): (&u32, &u32)| {
            let device = Device { is_block, major: *major, minor: *minor };
            move |parent: BorrowedFd<'_>, name: &[u8]| node::make_device(parent, name, device, records)
        };
        match &entry.kind {
            EntryKind::Directory => {
                place::check_name(name, &path)?;
                let (fd, is_made) = match self.make_or_open_directory(parent, name) {
                    Err(Errno::NOTDIR | Errno::LOOP) => return Err(onto_a_file(&path)),
                    other => other.context(|| format!("cannot make the directory `{}`", shown(&path)))?,
                };
                if entry.is_passed && !is_made {
                    // BuildKit gives it the mode of the source, whatever `--chmod` says, and nothing else.
                    return node::set_mode(fd.as_fd(), entry.mode)
                        .map(|()| None)
                        .context(|| format!("cannot give `{}` the mode {:04o}", shown(&path), entry.mode));
                }
                node::set_attributes(fd.as_fd(), &attributes, records).context(|| attributes.refused(&shown(&path)))?;
                return Ok(is_made.then_some(Directory { fd, path }));
            }
            EntryKind::File { size_bytes, digest } => {
                let file = Regular { entry, size_bytes: *size_bytes, digest, attributes };
                return self.file(parent, name, file, index, links).map(|()| None);
            }
            EntryKind::Unread { number, .. } => {
                if !self.is_left(parent, name, index)? {
                    self.unread.push(*number);
                }
                return Ok(None);
            }
            // What BuildKit makes of a socket: there is no socket in a layer.
            EntryKind::Socket => {
                let fd = self.make(parent, name, node::make_file)?;
                return attributes.dress(fd.as_fd(), &path, self.root.records).map(|()| None);
            }
            EntryKind::Symlink { target } => {
                self.make(parent, name, |parent, name| rustix::fs::symlinkat(target.as_slice(), parent, name))?;
            }
            EntryKind::Fifo => self.make(parent, name, node::make_fifo)?,
            EntryKind::CharDevice { major: 0, minor: 0 } => return Err(place::no_whiteout(&path)),
            EntryKind::CharDevice { major, minor } => {
                self.make(parent, name, special(false, (major, minor)))?;
            }
            EntryKind::BlockDevice { major, minor } => {
                self.make(parent, name, special(true, (major, minor)))?;
            }
        }
        node::set_attributes_at(parent.fd.as_fd(), name, &attributes, records)
            .map(|()| None)
            .context(|| attributes.refused(&shown(&path)))
    }

    /// The directory, and whether it is new.
    fn make_or_open_directory(&mut self, parent: &Directory, name: &[u8]) -> rustix::io::Result<(OwnedFd, bool)> {
        match node::make_directory(parent.fd.as_fd(), name) {
            Err(Errno::EXIST) => Ok((node::open_directory(parent.fd.as_fd(), name)?, false)),
            other => {
                self.root.touch(&parent.path);
                Ok((other?, true))
            }
        }
    }

    /// Makes something that is no directory; what has its name gives way, if it is none either.
    fn make<T>(
        &mut self,
        parent: &Directory,
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let path = parent.join(name);
        place::check_name(name, &path)?;
        let fd = parent.fd.as_fd();
        self.root.touch(&parent.path);
        let made = match make(fd, name) {
            Err(Errno::EXIST) if place::kind_of(fd, name) == Ok(Some(FileType::Directory)) => {
                let path = shown(&path);
                return Err(Diagnostic::error(format!("cannot replace the directory `{path}` with a file")));
            }
            Err(Errno::EXIST) => {
                if let Some(outlined) = &mut self.outlined {
                    outlined.remove(&path);
                }
                rustix::fs::unlinkat(fd, name, AtFlags::empty()).and_then(|()| make(fd, name))
            }
            other => other,
        };
        made.context(|| format!("cannot make `{}`", shown(&path)))
    }

    /// Makes a file that stands for an entry, unless that takes the place of something: then there is nothing now.
    fn is_left(&mut self, parent: &Directory, name: &[u8], index: usize) -> Result<bool> {
        let in_the_way = place::kind_of(parent.fd.as_fd(), name);
        let path = parent.join(name);
        let is_free = in_the_way.context(|| format!("cannot read `{}`", shown(&path)))?.is_none();
        let is_ours = self.outlined.as_ref().is_some_and(|outlined| outlined.contains_key(&path));
        if !is_free && !is_ours {
            return Ok(false);
        }
        if self.outlined.as_ref().is_some_and(|outlined| outlined.len() >= MOST_STAND_INS) {
            return Err(Diagnostic::error("cannot keep so many files in memory"));
        }
        self.make(parent, name, node::make_file)?;
        let entries = index..index + 1;
        self.stand_in(path, StandIn { selection: self.selection, entries, at: At::Itself });
        Ok(true)
    }

    fn file(
        &mut self,
        parent: &Directory,
        name: &[u8],
        file: Regular<'scope>,
        index: usize,
        links: &mut Links,
    ) -> Result<()> {
        if self.outlined.is_some() {
            if self.is_left(parent, name, index)? {
                return Ok(());
            }
            self.replaced_bytes += file.size_bytes;
            if self.replaced_bytes > MOST_REPLACED_BYTES || file.entry.link_group.is_some() {
                return Err(Diagnostic::error("cannot keep what takes the place of other files in memory"));
            }
        }
        let group = file.entry.link_group;
        if let Some((first_parent, first_name)) = group.and_then(|group| links.get(&group)) {
            let first = self.root.open(first_parent)?;
            let linked = |parent: BorrowedFd<'_>, name: &[u8]| match rustix::fs::linkat(
                &first,
                first_name.as_slice(),
                parent,
                name,
                AtFlags::empty(),
            ) {
                Err(Errno::MLINK) => Ok(false),
                other => other.map(|()| true),
            };
            if self.make(parent, name, linked)? {
                return Ok(());
            }
        }
        if self.fillers.has_failed() {
            // Whose error is the one that counts.
            return Err(changed(&file.entry.path));
        }
        let task = match self.keep(parent, name, file)? {
            Some(checking) => Task::Check(checking),
            None => Task::Fill(self.filling(parent, name, file)?),
        };
        self.fillers.push(task);
        self.files += 1;
        if let Some(group) = group {
            links.insert(group, (parent.path.clone(), name.to_vec()));
        }
        Ok(())
    }

    /// Takes the file from the earlier layer, where there is one that looks like it and nothing is in its way.
    fn keep(&mut self, parent: &Directory, name: &[u8], file: Regular<'scope>) -> Result<Option<Checking<'scope>>> {
        let Some(earlier) = &mut self.earlier else { return Ok(None) };
        // One of several names is the file that the others are linked to.
        if file.entry.link_group.is_some() {
            return Ok(None);
        }
        let Some(found) = earlier.file(parent, name, file.size_bytes, &file.attributes) else { return Ok(None) };
        let in_the_way = place::kind_of(parent.fd.as_fd(), name);
        if in_the_way.context(|| format!("cannot read `{}`", shown(&parent.join(name))))?.is_some() {
            return Ok(None);
        }
        self.root.touch(&parent.path);
        self.kept.insert(self.files, Keeping { parent: parent.path.clone(), name: name.to_vec(), file });
        let Regular { size_bytes, digest, .. } = file;
        Ok(Some(Checking { slot: self.files, file: found, size_bytes, digest }))
    }

    fn filling(&mut self, parent: &Directory, name: &[u8], file: Regular<'scope>) -> Result<Filling<'scope>> {
        let out = File::from(self.make(parent, name, node::make_file)?);
        let Regular { entry, size_bytes, digest, attributes } = file;
        Ok(Filling {
            slot: self.files,
            source: self.source,
            entry,
            size_bytes,
            digest,
            out,
            path: parent.join(name),
            attributes,
            records: self.root.records,
        })
    }

    /// Unpacks the entry if it is an archive; returns whether it is.
    fn unpack(&mut self, entry: &Entry, size_bytes: u64, digest: &Digest) -> Result<bool> {
        let mut file = self.source.open(&entry.path, size_bytes)?;
        let name = source_name(&entry.path);
        if !archive::is_archive(&file) {
            return Ok(false);
        }
        file.rewind().context(|| format!("cannot read `{name}`"))?;
        let into = self.archive_directory()?;
        let mut reader = HashingReader::new(file);
        let limits = Limits::of(size_bytes);
        let unpacked = archive::unpack(&mut reader, &name, &into, &mut self.root, self.looks.owner, limits);
        // Behind the end of an archive there may be more, and it is part of the digest. One that
        // changed need not be an archive any more: that it changed is what is to be said.
        io::copy(&mut reader, &mut io::sink()).context(|| format!("cannot read `{name}`"))?;
        let (_, read, _) = reader.finish();
        if read == *digest { unpacked.map(|()| true) } else { Err(changed(&entry.path)) }
    }
}

fn onto_a_file(path: &[u8]) -> Diagnostic {
    Diagnostic::error(format!("cannot copy a directory onto `{}`, which is not a directory", shown(path)))
}
