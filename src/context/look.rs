//! A look into one directory: what is in it, sorted by name, what the rules say of each, and the facts
//! about what is wanted.

use std::ffi::{CStr, CString};
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io;

use super::Tree;
use super::ahead::Question;
use super::facts::Facts;
use super::ignore::{IgnoreRules, Verdict};
use super::summary::{Words, describe_at};
use crate::digest::Hasher;
use crate::layer::node::{Names, open_directory};

/// What decides beside the tree's own ignore rules. Their paths are those relative to the source.
#[derive(Clone, Default)]
pub struct Filter<'a> {
    /// `--exclude`
    pub exclude: Option<&'a IgnoreRules>,
    /// All is hidden but the pattern of `--parents`.
    pub include: Option<Arc<IgnoreRules>>,
}

/// The verdicts of a [`Filter`] on one path.
#[derive(Clone, Copy, Default)]
pub struct Verdicts {
    exclude: Verdict,
    include: Verdict,
}

impl Filter<'_> {
    pub fn judge(&self, parent: Verdicts, path: &[u8]) -> Verdicts {
        Verdicts {
            exclude: self.exclude.map_or(parent.exclude, |rules| rules.judge(parent.exclude, path)),
            include: self.include.as_ref().map_or(parent.include, |rules| rules.judge(parent.include, path)),
        }
    }

    pub fn selects(&self, verdicts: Verdicts) -> bool {
        !self.exclude.is_some_and(|rules| rules.hides(verdicts.exclude))
            && !self.include.as_ref().is_some_and(|rules| rules.hides(verdicts.include))
    }

    pub fn may_prune(&self, verdicts: Verdicts, path: &[u8]) -> bool {
        self.exclude.is_some_and(|rules| rules.may_prune(verdicts.exclude, path))
            || self.include.as_ref().is_some_and(|rules| rules.may_prune(verdicts.include, path))
    }
}

/// A tree and what is wanted of it.
#[derive(Clone)]
pub struct Scene<'a> {
    pub tree: &'a Tree,
    pub filter: Filter<'a>,
    /// Nobody wants the facts about files themselves, but their part of a fingerprint.
    pub is_brief: bool,
}

/// A path in the tree and where it lands, with what the rules say of both.
#[derive(Clone, Default)]
pub struct Spot {
    pub path: Vec<u8>,
    pub land: Vec<u8>,
    /// Of the tree's ignore rules.
    pub context: Verdict,
    pub verdicts: Verdicts,
}

/// What is in a directory, sorted by name.
pub struct Children {
    names: Names,
    /// Of each.
    list: Vec<Child>,
}

impl Children {
    pub fn get(&self, index: usize) -> Option<(&CStr, &Child)> {
        let child = self.list.get(index)?;
        Some((self.names.name(index), child))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&CStr, &Child)> {
        self.range(0..self.list.len())
    }

    fn range(&self, range: Range<usize>) -> impl Iterator<Item = (&CStr, &Child)> {
        range.clone().map(|index| self.names.name(index)).zip(&self.list[range])
    }

    /// The first from this one on that is not a [wanted file](Child::is_wanted_file).
    pub fn after_files(&self, index: usize) -> usize {
        let files = self.list[index.min(self.list.len())..].iter().take_while(|child| child.is_wanted_file());
        index + files.count()
    }

    /// The first of those that are [wanted](Child::is_wanted_file).
    fn describe(&self, directory: BorrowedFd<'_>) -> io::Result<Described> {
        let wanted = self.iter().filter(|(_, child)| child.is_wanted_file()).take(FIRST_FACTS);
        let mut described = Described::default();
        let mut words = Words::with_capacity(self.list.len().min(FIRST_FACTS) * WORDS);
        for (name, _) in wanted {
            describe_at(&mut words, directory, name)?;
            described.count += 1;
        }
        described.hasher.update(words.as_flattened());
        Ok(described)
    }
}

/// Something in a directory.
pub struct Child {
    /// As far as the file system tells with the name.
    pub file_type: FileType,
    /// The tree's ignore rules hide it.
    pub is_hidden: bool,
    /// The filter selects it.
    pub is_selected: bool,
    /// A directory of which the ignore rules hide all.
    pub is_pruned: bool,
    /// A directory of which the filter wants nothing.
    pub is_unwanted: bool,
    pub context: Verdict,
    pub verdicts: Verdicts,
}

impl Child {
    /// Whether the walk will ask for the facts about it.
    pub fn is_wanted_file(&self) -> bool {
        !matches!(self.file_type, FileType::Directory | FileType::Unknown) && !self.is_hidden && self.is_selected
    }

    /// Whether the walk will enter it.
    pub fn is_wanted_directory(&self) -> bool {
        // A hidden directory must be walked even if the filter wants nothing of it: whether it is
        // there for the filter to see depends on what is in it.
        self.file_type == FileType::Directory && !self.is_pruned && (self.is_hidden || !self.is_unwanted)
    }
}

/// A directory that was looked into.
pub struct Seen {
    /// Open for reading.
    pub fd: Arc<OwnedFd>,
    pub facts: Facts,
    pub children: Arc<Children>,
    /// About the first of those that are [wanted](Child::is_wanted_file).
    pub first: Vec<io::Result<Facts>>,
    /// Of a brief look: the same, described.
    pub described: io::Result<Described>,
}

/// The first entries of a directory as a fingerprint has them.
#[derive(Default)]
pub struct Described {
    pub hasher: Hasher,
    pub count: usize,
}

/// Facts that are asked for with a directory, ahead.
const FIRST_FACTS: usize = 512;
/// Facts that are asked for at once.
const CHUNK: usize = 128;
/// How many words of a fingerprint one of them takes, unless its name is long.
const WORDS: usize = 10;

impl Scene<'_> {
    /// Looks into `name` in `parent`, which is at `spot`.
    pub fn look(&self, parent: BorrowedFd<'_>, name: &CStr, spot: &Spot) -> io::Result<Seen> {
        let fd = open_directory(parent, name)?;
        let facts = Facts::of_open(&fd)?;
        let names = Names::read(fd.as_fd())?;
        let mut below = if self.has_rules() { spot.clone() } else { Spot::default() };
        let list = names.indices().map(|index| self.judge(spot, &mut below, &names, index)).collect();
        let children = Children { names, list };
        let described = if self.is_brief { children.describe(fd.as_fd()) } else { Ok(Described::default()) };
        Ok(Seen { children: Arc::new(children), fd: Arc::new(fd), facts, first: Vec::new(), described })
    }

    /// What the rules say of something in the directory at `spot`. `below` is a place to write its paths.
    fn judge(&self, spot: &Spot, below: &mut Spot, names: &Names, index: usize) -> Child {
        let file_type = names.file_type(index);
        let rules = self.tree.ignore.as_ref();
        if !self.has_rules() {
            return Child {
                file_type,
                is_hidden: false,
                is_selected: true,
                is_pruned: false,
                is_unwanted: false,
                context: spot.context,
                verdicts: spot.verdicts,
            };
        }
        let name = names.name(index).to_bytes();
        go_down(&mut below.path, spot.path.len(), name);
        go_down(&mut below.land, spot.land.len(), name);
        let context = rules.map_or(spot.context, |rules| rules.judge(spot.context, &below.path));
        let verdicts = self.filter.judge(spot.verdicts, &below.land);
        let is_directory = matches!(file_type, FileType::Directory | FileType::Unknown);
        Child {
            file_type,
            is_hidden: self.hides(context),
            is_selected: self.filter.selects(verdicts),
            is_pruned: is_directory && rules.is_some_and(|rules| rules.may_prune(context, &below.path)),
            is_unwanted: is_directory && self.filter.may_prune(verdicts, &below.land),
            context,
            verdicts,
        }
    }

    fn has_rules(&self) -> bool {
        self.tree.ignore.is_some() || self.filter.exclude.is_some() || self.filter.include.is_some()
    }

    pub fn hides(&self, context: Verdict) -> bool {
        self.tree.ignore.as_ref().is_some_and(|rules| rules.hides(context))
    }
}

/// Makes of a path that begins with a directory's, of `length`, that of something in it.
pub fn go_down(path: &mut Vec<u8>, length: usize, name: &[u8]) {
    path.truncate(length);
    if length > 0 {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// What is in a directory?
pub struct Look<'a> {
    pub scene: Scene<'a>,
    pub parent: Arc<OwnedFd>,
    pub name: CString,
    pub spot: Spot,
}

impl Question for Look<'_> {
    type Answer = io::Result<Seen>;

    fn weight(&self) -> usize {
        // How many files there are nobody knows yet.
        if self.scene.is_brief { 32 } else { 5 }
    }

    fn ask(&self, is_ahead: bool) -> Self::Answer {
        let mut seen = self.scene.look(self.parent.as_fd(), &self.name, &self.spot)?;
        if is_ahead && !self.scene.is_brief {
            let wanted = seen.children.iter().filter(|(_, child)| child.is_wanted_file()).take(FIRST_FACTS);
            let mut first = Vec::with_capacity(seen.children.list.len().min(FIRST_FACTS));
            first.extend(wanted.map(|(name, _)| Facts::of(seen.fd.as_fd(), name)));
            seen.first = first;
        }
        Ok(seen)
    }
}

/// What are these?
pub struct Inquiry {
    directory: Arc<OwnedFd>,
    children: Arc<Children>,
    range: Range<usize>,
}

impl Question for Inquiry {
    type Answer = Vec<io::Result<Facts>>;

    fn weight(&self) -> usize {
        self.range.len()
    }

    fn ask(&self, _is_ahead: bool) -> Self::Answer {
        let wanted = self.children.range(self.range.clone()).filter(|(_, child)| child.is_wanted_file());
        let mut answers = Vec::with_capacity(self.range.len());
        answers.extend(wanted.map(|(name, _)| Facts::of(self.directory.as_fd(), name)));
        answers
    }
}

/// How are these described?
pub struct Description(Inquiry);

impl Question for Description {
    type Answer = io::Result<Words>;

    fn weight(&self) -> usize {
        self.0.weight()
    }

    fn ask(&self, _is_ahead: bool) -> Self::Answer {
        let Inquiry { directory, children, range } = &self.0;
        let mut words = Words::with_capacity(range.len() * WORDS);
        let mut wanted = children.range(range.clone()).filter(|(_, child)| child.is_wanted_file());
        wanted.try_for_each(|(name, _)| describe_at(&mut words, directory.as_fd(), name))?;
        Ok(words)
    }
}

/// The questions about the files of a directory whose facts are not there yet; none where they are few.
pub fn inquiries(seen: &Seen) -> Vec<Inquiry> {
    let inquiries = inquiries_after(seen, seen.first.len());
    if inquiries.iter().map(Question::weight).sum::<usize>() < CHUNK / 2 { Vec::new() } else { inquiries }
}

/// The questions about the files of a directory that a brief look has not described: all but the first `count`.
pub fn descriptions(seen: &Seen, count: usize) -> Vec<Description> {
    if count < FIRST_FACTS {
        return Vec::new();
    }
    inquiries_after(seen, count).into_iter().map(Description).collect()
}

/// All but those about the first `count` files that are wanted.
fn inquiries_after(seen: &Seen, count: usize) -> Vec<Inquiry> {
    let list = &seen.children.list;
    let wanted: Vec<usize> = (0..list.len()).filter(|index| list[*index].is_wanted_file()).collect();
    let range = |chunk: &[usize]| Some(*chunk.first()?..*chunk.last()? + 1);
    let inquiry = |range| Inquiry { directory: Arc::clone(&seen.fd), children: Arc::clone(&seen.children), range };
    wanted[count.min(wanted.len())..].chunks(CHUNK).filter_map(range).map(inquiry).collect()
}
