//! Finding builds that were.

use std::io::{BufRead as _, BufReader};

use super::{Build, Ending, Entry, KEPT, KEPT_MS};
use crate::diag::{self, Diagnostic, Result};
use crate::store::{BuildDir, Store};

/// So many more than are kept may be there.
const SLACK: usize = 20;

/// The records of a store.
#[derive(Clone, Copy)]
pub struct Builds<'a> {
    store: &'a Store,
}

/// A build and where its output is.
pub struct Found {
    /// What a user types.
    pub id: String,
    pub build: Build,
    pub dir: BuildDir,
}

impl Found {
    pub fn ending(&self) -> Ending {
        match &self.build.end {
            Some(end) => end.outcome,
            None if self.dir.is_running() => Ending::Running,
            None => Ending::Interrupted,
        }
    }
}

impl<'a> Builds<'a> {
    pub fn of(store: &'a Store) -> Self {
        Self { store }
    }

    /// The newest builds first, at most `count`.
    pub fn newest(self, count: usize) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for name in self.store.builds()?.iter().rev() {
            if found.len() >= count {
                break;
            }
            found.extend(self.open(name)?);
        }
        Ok(found)
    }

    /// The build that `text` stands for: the beginning of an ID; `^`, `^1`: so many before the newest; or
    /// a name that a build gave its image, for the newest of these.
    pub fn find(self, text: &str) -> Result<Found> {
        let names = self.store.builds()?;
        let gone = || Diagnostic::error("the build was removed just now");
        if let Some(back) = text.strip_prefix('^') {
            let back = if back.is_empty() { Ok(0) } else { back.parse::<usize>() };
            return match back.ok().and_then(|back| names.iter().nth_back(back)) {
                Some(name) => self.open(name)?.ok_or_else(gone),
                None if names.is_empty() => Err(Diagnostic::error("there was no build yet")),
                None => Err(Diagnostic::error(format!(
                    "there is no build `{text}`: the records of {} are kept",
                    names.len()
                ))
                .hint("`wythe history` lists what is there")),
            };
        }
        let with_prefix: Vec<_> = names.iter().filter(|name| id_of(name).starts_with(text)).collect();
        match with_prefix.as_slice() {
            [name] if !text.is_empty() => return self.open(name)?.ok_or_else(gone),
            [_, _, ..] if !text.is_empty() => {
                let ids = with_prefix.iter().map(|name| id_of(name)).collect::<Vec<_>>().join(", ");
                return Err(Diagnostic::error(format!("several builds have an ID that begins with `{text}`: {ids}"))
                    .hint("give more digits"));
            }
            _ => {}
        }
        let mut known: Vec<String> = names.iter().map(|name| id_of(name).to_owned()).collect();
        for name in names.iter().rev() {
            let Some(found) = self.open(name)? else { continue };
            if found.build.head.names.iter().any(|name| is_called(name, text)) {
                return Ok(found);
            }
            known.extend(found.build.head.names.iter().flat_map(|name| [repository(name).to_owned(), name.clone()]));
        }
        let error = Diagnostic::error(format!("there is no build `{text}`"));
        Err(match diag::nearest(text, known.iter().map(String::as_str)) {
            Some(nearest) => error.hint(format!("did you mean `{nearest}`?")),
            None => error.hint("`wythe history` lists what is there"),
        })
    }

    /// Lets builds go that are too many or too old. Looks at names only, and removes several at a time:
    /// most builds only count.
    pub fn expire(self, now_ms: i64) -> Result<()> {
        let names = self.store.builds()?;
        let surplus = if names.len() > KEPT + SLACK { names.len() - KEPT } else { 0 };
        for (place, name) in names.iter().enumerate() {
            let is_old = start_of(name).is_none_or(|start| start < now_ms - KEPT_MS);
            // They are in order: behind one that stays all stay.
            if place >= surplus && !is_old {
                break;
            }
            self.store.remove_build(name)?;
        }
        Ok(())
    }

    fn open(self, name: &str) -> Result<Option<Found>> {
        let Some(dir) = self.store.build(name)? else { return Ok(None) };
        // What cannot be read any more says nothing of how the build ended.
        let record = dir.record()?.and_then(|record| serde_json::from_slice(&record).ok());
        let build = match record {
            Some(build) => build,
            None => replay(&dir)?,
        };
        Ok(Some(Found { id: id_of(name).to_owned(), build, dir }))
    }
}

/// What a build without a record wrote until now. A line that is not whole is the last.
fn replay(dir: &BuildDir) -> Result<Build> {
    let mut build = Build::default();
    build.head.started_ms = start_of(&dir.name).unwrap_or(0);
    let Some(events) = dir.events()? else { return Ok(build) };
    for line in BufReader::new(events).split(b'\n') {
        let Some(entry) = line.ok().and_then(|line| serde_json::from_slice::<Entry>(&line).ok()) else { break };
        build.apply(entry);
    }
    Ok(build)
}

fn start_of(name: &str) -> Option<i64> {
    name.split_once('-')?.0.parse().ok()
}

fn id_of(name: &str) -> &str {
    name.split_once('-').map_or(name, |(_, id)| id)
}

/// Whether an image's name is meant: as it is, or, where `text` has no tag, with any.
fn is_called(name: &str, text: &str) -> bool {
    name == text || repository(name) == text
}

/// A name without its tag.
fn repository(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_called_with_and_without_tags() {
        for text in ["localhost:5000/app", "localhost:5000/app:1"] {
            assert!(is_called("localhost:5000/app:1", text), "{text}");
        }
        for text in ["localhost", "localhost:5000/app:2", "app", ""] {
            assert!(!is_called("localhost:5000/app:1", text), "{text}");
        }
        assert!(is_called("localhost:5000/app", "localhost:5000/app"));
        assert!(!is_called("localhost:5000/app", "localhost"));
    }
}
