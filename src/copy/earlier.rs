//! What an earlier layer holds already: a copy of which few files changed makes those anew, and the others become
//! further names of the files that were copied before.
//!
//! Such a file is read and has to be what the listing says, like one that is copied. It gets its name last, when no
//! overlay stands on the upper dir any more: an overlay takes no links to what is outside it.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::node::{self, Attributes};
use super::place::{self, Directory, shown};
use crate::diag::{Context, Result};
use crate::layer::merged::Found;
use crate::layer::node::open_below;
use crate::layer::{self, Records, staging};

/// A layer dir that was made by an earlier copy to the same place.
pub(super) struct Earlier<'a> {
    root: BorrowedFd<'a>,
    records: Records,
    /// Its directory where a file was looked for last; there may be none.
    held: Option<(Vec<u8>, Option<OwnedFd>)>,
}

impl<'a> Earlier<'a> {
    /// `None` where files say by other records what they are than those of the new root.
    pub fn of(root: BorrowedFd<'a>, records: Records) -> Option<Self> {
        (Records::of(root) == Ok(records)).then_some(Self { root, records, held: None })
    }

    /// The file `name` in the directory at the path of `parent`, if all but its content is as it is to be.
    pub fn file(
        &mut self,
        parent: &Directory,
        name: &[u8],
        size_bytes: u64,
        attributes: &Attributes<'_>,
    ) -> Option<File> {
        if self.held.as_ref().is_none_or(|(path, _)| *path != parent.path) {
            let directory = open_below(self.root, &parent.path, OFlags::PATH | OFlags::DIRECTORY).ok();
            self.held = Some((parent.path.clone(), directory));
        }
        let directory = self.held.as_ref()?.1.as_ref()?;
        let name = CString::new(name).ok()?;
        let found = self.records.node_at(directory, &name).ok()??;
        let looks_so = found.is_file()
            && found.size_bytes == size_bytes
            && (found.uid, found.gid, found.mode) == (attributes.owner.uid, attributes.owner.gid, attributes.mode)
            && found.mtime == attributes.mtime;
        if !looks_so {
            return None;
        }
        let file = layer::node::open_file(directory, &name).ok()?;
        let kept = layer::xattr::kept(&file).ok()?;
        let kept = kept.iter().map(|(name, value)| (name.to_bytes(), value.as_slice()));
        kept.eq(attributes.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))).then(|| file.into())
    }
}

/// The files of an earlier layer that are in a new one, too, but have no names there yet.
#[derive(Default)]
pub struct Kept {
    directories: Vec<KeptDirectory>,
}

struct KeptDirectory {
    path: Vec<u8>,
    /// What its modification time is to be; none for the root, which is no entry of a layer.
    mtime: Option<(i64, u32)>,
    names: Vec<Vec<u8>>,
}

impl Kept {
    /// Adds a file; those of a directory best come one after the other.
    pub(super) fn add(&mut self, directory: &[u8], name: &[u8], mtime: Option<(i64, u32)>) {
        match self.directories.last_mut() {
            Some(last) if last.path == directory => last.names.push(name.to_vec()),
            _ => self.directories.push(KeptDirectory { path: directory.to_vec(), mtime, names: vec![name.to_vec()] }),
        }
    }

    /// Gives the files their names in `upper`, the upper dir of the root that they are to be in, on which nothing is
    /// mounted any more. `earlier` is the layer dir they were found in, on the same filesystem.
    pub fn link(&self, earlier: BorrowedFd<'_>, upper: BorrowedFd<'_>) -> Result<()> {
        let records = Records::of(upper).context(|| "cannot read an upper dir")?;
        for KeptDirectory { path, mtime, names } in &self.directories {
            let open = |root| open_below(root, path, OFlags::RDONLY | OFlags::DIRECTORY);
            let (from, to) = open(earlier)
                .and_then(|from| Ok((from, open(upper)?)))
                .context(|| format!("cannot open `{}`", shown(path)))?;
            for name in names {
                link(records, from.as_fd(), to.as_fd(), name)
                    .context(|| format!("cannot make `{}`", shown(&place::join(path, name))))?;
            }
            if let Some(mtime) = mtime {
                node::set_time(to.as_fd(), *mtime)
                    .context(|| format!("cannot set the modification time of `{}`", shown(path)))?;
            }
        }
        Ok(())
    }
}

fn link(records: Records, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let node = records.node_at(from, &name)?.ok_or(Errno::NOENT)?;
    staging::link(records, &Found { node, dir: from }, to, &name)
}
