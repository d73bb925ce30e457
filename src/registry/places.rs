//! Where images of a name are really asked for: mirrors, other locations and blocked names, as the
//! `registries.conf` of podman and its kin and the `daemon.json` of docker have them.
//!
//! Short names stay what docker makes of them, whatever `registries.conf` says: a Dockerfile is to mean
//! the same everywhere.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;

use super::http::host_of;
use crate::diag::{Context as _, Diagnostic, Result};

const MAX_FILE_BYTES: u64 = 4 << 20;

/// What the user's files say of registries. They are read when it is first asked for, which a build that has
/// its images never does.
#[derive(Clone, Debug, Default)]
pub struct Places {
    files: PlaceFiles,
    said: OnceLock<Result<Said>>,
}

#[derive(Clone, Debug, Default)]
struct Said {
    entries: Vec<Entry>,
    /// Of `daemon.json`.
    insecure: Vec<String>,
}

/// The files that are read. One that is not there says nothing.
#[derive(Clone, Debug, Default)]
pub struct PlaceFiles {
    pub registries: Vec<PathBuf>,
    /// Directories of files that say more, or something else of the same names.
    pub more: Vec<PathBuf>,
    pub daemon: Option<PathBuf>,
}

/// A repository of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub registry: String,
    pub repository: String,
}

/// By what an image is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Tag,
    Digest,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Registries {
    registry: Vec<Entry>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Entry {
    /// `host`, `host/part/of/a/name` or `*.domain`; the location, if nothing is said.
    prefix: String,
    /// Takes the place of the prefix.
    location: String,
    insecure: bool,
    blocked: bool,
    mirror: Vec<Mirror>,
    mirror_by_digest_only: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Daemon {
    registry_mirrors: Vec<String>,
    insecure_registries: Vec<String>,
}

impl Places {
    pub fn new(files: PlaceFiles) -> Self {
        Self { files, said: OnceLock::new() }
    }

    fn said(&self) -> Result<&Said> {
        self.said.get_or_init(|| Said::read(&self.files)).as_ref().map_err(Clone::clone)
    }

    /// Where to ask for what is called `registry/repository`, the best place first. An error if the user lets
    /// nobody ask, or a file is wrong.
    pub fn of(&self, name: &str, by: By) -> Result<Vec<Place>> {
        self.said()?.of(name, by)
    }

    /// Whether nobody need vouch for this host (and port). Where a file is wrong somebody must.
    pub fn are_insecure_at(&self, authority: &str) -> bool {
        self.said().is_ok_and(|said| said.insecure().iter().any(|name| is_named(authority, name)))
    }
}

/// Whether `name` is that of this host, with or without its port; `*.domain` is everything below it.
pub fn is_named(authority: &str, name: &str) -> bool {
    let host = host_of(authority);
    match name.strip_prefix('*') {
        Some(domain) => host.len() > domain.len() && host.ends_with(domain),
        None => name == authority || name == host,
    }
}

impl Said {
    /// Reads all of the files; of entries for the same prefix the last one counts.
    fn read(files: &PlaceFiles) -> Result<Self> {
        let mut places = Self::default();
        for path in &files.registries {
            places.add_file(path)?;
        }
        for directory in &files.more {
            let mut paths = match std::fs::read_dir(directory) {
                Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
                Err(_) => Vec::new(),
            };
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
            paths.sort();
            for path in &paths {
                places.add_file(path)?;
            }
        }
        if let Some(path) = &files.daemon
            && let Some(text) = text(path)?
        {
            let daemon = serde_json::from_str(&text).map_err(|error| wrong(path).caused_by(error))?;
            places.add_daemon(daemon);
        }
        Ok(places)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let Some(text) = text(path)? else { return Ok(()) };
        self.add(&text).map_err(|why| wrong(path).caused_by(why))
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let registries: Registries = toml::from_str(text).map_err(|error| error.to_string())?;
        for mut entry in registries.registry {
            for location in [&mut entry.prefix, &mut entry.location] {
                *location = location.trim_end_matches('/').to_owned();
            }
            if entry.prefix.is_empty() {
                entry.prefix.clone_from(&entry.location);
            }
            if entry.prefix.is_empty() {
                return Err("a registry has neither prefix nor location".into());
            }
            if entry.mirror.iter().any(|mirror| mirror.location.is_empty()) {
                return Err(format!("a mirror of `{}` has no location", entry.prefix));
            }
            self.entries.retain(|other| other.prefix != entry.prefix);
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Docker's daemon knows mirrors of its own registry only; what `registries.conf` says of that one
    /// was said of this program.
    fn add_daemon(&mut self, daemon: Daemon) {
        const HUB: &str = "docker.io";
        let mirrors = daemon.registry_mirrors.iter().map(|url| {
            let (scheme, location) = url.split_once("://").unwrap_or(("https", url));
            let location = location.trim_end_matches('/').to_owned();
            Mirror { location, insecure: scheme == "http", ..Mirror::default() }
        });
        let mirror: Vec<_> = mirrors.filter(|mirror| !mirror.location.is_empty()).collect();
        if !mirror.is_empty() && !self.entries.iter().any(|entry| entry.prefix == HUB) {
            self.entries.push(Entry { prefix: HUB.into(), mirror, ..Entry::default() });
        }
        self.insecure.extend(daemon.insecure_registries);
    }

    /// Hosts that the user lets be spoken to without TLS; `*.domain` is everything below it.
    fn insecure(&self) -> Vec<String> {
        let entries = self.entries.iter().filter(|entry| entry.insecure);
        let own = entries.map(|entry| if entry.location.is_empty() { &entry.prefix } else { &entry.location });
        let mirrors = self.entries.iter().flat_map(|entry| &entry.mirror).filter(|mirror| mirror.insecure);
        let locations = own.chain(mirrors.map(|mirror| &mirror.location));
        locations.map(|location| place(location).registry).chain(self.insecure.iter().cloned()).collect()
    }

    fn of(&self, name: &str, by: By) -> Result<Vec<Place>> {
        let fits = self.entries.iter().filter_map(|entry| Some((entry, entry.rest(name)?)));
        // The longest prefix counts: what it leaves is the shortest.
        let Some((entry, rest)) = fits.min_by_key(|(_, rest)| rest.len()) else {
            return Ok(vec![place(name)]);
        };
        if entry.blocked {
            return Err(Diagnostic::error(format!("`{}` is blocked in `registries.conf`", entry.prefix)));
        }
        let mirrors = entry.mirror.iter().filter(|mirror| match mirror.pull_from_mirror.as_str() {
            "digest-only" => by == By::Digest,
            "tag-only" => by == By::Tag,
            _ => by == By::Digest || !entry.mirror_by_digest_only,
        });
        let locations = mirrors.map(|mirror| format!("{}{rest}", mirror.location.trim_end_matches('/')));
        let own = if entry.location.is_empty() { name.to_owned() } else { format!("{}{rest}", entry.location) };
        Ok(locations.chain([own]).map(|location| place(&location)).collect())
    }
}

impl Entry {
    /// What follows the prefix in `name`, if it is one: with its slash, or nothing.
    fn rest<'a>(&self, name: &'a str) -> Option<&'a str> {
        if let Some(domain) = self.prefix.strip_prefix('*') {
            let (host, _) = name.split_once('/')?;
            let is_below = host.len() > domain.len() && host.ends_with(domain);
            return is_below.then_some(&name[host.len()..]);
        }
        let rest = name.strip_prefix(&self.prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    }
}

fn place(location: &str) -> Place {
    let (registry, repository) = location.split_once('/').unwrap_or((location, ""));
    Place { registry: registry.to_owned(), repository: repository.to_owned() }
}

fn wrong(path: &Path) -> Diagnostic {
    Diagnostic::error(format!("`{}` is wrong", path.display()))
}

fn text(path: &Path) -> Result<Option<String>> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot read `{}`", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        unqualified-search-registries = ["a.test"]
        [[registry]]
        location = "a.test"
        [[registry.mirror]]
        location = "near.test/copies/"
        insecure = true
        [[registry.mirror]]
        location = "far.test"
        pull-from-mirror = "digest-only"
        [[registry]]
        prefix = "a.test/team"
        location = "b.test:5000/old/team"
        [[registry]]
        prefix = "*.lab.test"
        insecure = true
        [[registry]]
        prefix = "bad.test"
        blocked = true
        [[registry]]
        prefix = "d.test"
        mirror-by-digest-only = true
        mirror = [{ location = "e.test/d" }]
    "#;

    fn places(text: &str) -> Said {
        let mut places = Said::default();
        places.add(text).unwrap();
        places
    }

    #[test]
    fn names_are_asked_for_where_the_file_says() {
        let places = places(FILE);
        for (name, by, expected) in [
            ("a.test/x/y", By::Tag, "near.test/copies/x/y a.test/x/y"),
            ("a.test/x/y", By::Digest, "near.test/copies/x/y far.test/x/y a.test/x/y"),
            ("a.test/team/x", By::Tag, "b.test:5000/old/team/x"),
            ("a.test/teams/x", By::Tag, "near.test/copies/teams/x a.test/teams/x"),
            ("x.lab.test/y", By::Tag, "x.lab.test/y"),
            ("d.test/x", By::Tag, "d.test/x"),
            ("d.test/x", By::Digest, "e.test/d/x d.test/x"),
            ("docker.io/library/busybox", By::Tag, "docker.io/library/busybox"),
        ] {
            let found = places.of(name, by).unwrap();
            let found: Vec<_> = found.iter().map(|place| format!("{}/{}", place.registry, place.repository)).collect();
            assert_eq!(found.join(" "), expected, "{name}");
        }
        assert!(places.of("bad.test/x", By::Tag).is_err());
        assert_eq!(places.insecure(), ["*.lab.test", "near.test"]);
    }

    #[test]
    fn files_are_read_when_they_are_first_asked() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("registries.conf");
        let places = || Places::new(PlaceFiles { registries: vec![file.clone()], ..PlaceFiles::default() });
        let early = places();
        std::fs::write(&file, FILE).unwrap();
        assert!(early.of("bad.test/x", By::Tag).is_err());
        assert!(early.are_insecure_at("near.test"));

        let wrong = places();
        std::fs::write(&file, "[[registry").unwrap();
        assert!(wrong.of("a.test/x", By::Tag).is_err());
        assert!(!wrong.are_insecure_at("near.test"));
    }

    #[test]
    fn a_later_file_has_the_last_word() {
        let mut places = places(FILE);
        places.add("[[registry]]\nlocation = \"bad.test\"\n").unwrap();
        assert!(places.of("bad.test/x", By::Tag).is_ok());
        assert!(places.add("[[registry]]\nblocked = true\n").is_err());
        assert!(places.add("[[registry").is_err());
    }

    #[test]
    fn mirrors_of_docker() {
        let daemon = r#"{"registry-mirrors": ["http://m.test:5000/", "https://n.test"], "debug": true,
            "insecure-registries": ["i.test:80"]}"#;
        let mut places = Said::default();
        places.add_daemon(serde_json::from_str(daemon).unwrap());
        let found = places.of("docker.io/library/busybox", By::Tag).unwrap();
        let hosts: Vec<_> = found.iter().map(|place| place.registry.as_str()).collect();
        assert_eq!(hosts, ["m.test:5000", "n.test", "docker.io"]);
        assert_eq!(found[0].repository, "library/busybox");
        assert_eq!(places.insecure(), ["m.test:5000", "i.test:80"]);
    }
}
