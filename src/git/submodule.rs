//! The submodules of a commit: repositories of their own, at the commits that the tree names.

use super::{Client, Commit};
use crate::diag::{Diagnostic, Result};
use crate::location::{GitLocation, is_commit, redact};
use crate::store::Repository;

const MAX_SUBMODULES: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Submodule {
    /// In the work tree.
    pub path: String,
    /// As `.gitmodules` has it: may be relative.
    pub url: String,
    pub commit: String,
}

impl Submodule {
    /// Where it is, seen from the repository that has it.
    pub fn location(&self, parent: &GitLocation) -> Result<GitLocation> {
        let refused = |why: String| Diagnostic::error(why);
        let url = match self.url.starts_with("./") || self.url.starts_with("../") {
            true => relative(&parent.remote, &self.url).ok_or_else(|| {
                refused(format!("its address `{}` leads out of `{}`", self.url.escape_debug(), redact(&parent.remote)))
            })?,
            false => self.url.clone(),
        };
        match GitLocation::at_commit(&url, &self.commit) {
            Some(location) => location.map_err(refused),
            None => Err(refused(format!(
                "its address `{}` is not one of https, http, ssh or git",
                redact(&self.url).escape_debug()
            ))),
        }
    }
}

impl Client {
    /// Those that the tree has and `.gitmodules` describes, by path; none that says `update = none`.
    pub(super) fn submodules(
        &self,
        repository: &Repository,
        location: &GitLocation,
        commit: &Commit,
    ) -> Result<Vec<Submodule>> {
        let shown = location.shown();
        let doing = "read the submodules of";
        let list = |paths: &[&str]| {
            let git = self.local(&repository.path, &shown).args(&["ls-tree", "-z", &commit.commit, "--"]);
            git.args(paths).output(doing)
        };
        let is_file = |(mode, ..): &Entry| mode == "100644" || mode == "100755";
        if !entries(&list(&[".gitmodules"])?).iter().any(is_file) {
            return Ok(Vec::new());
        }
        let blob = format!("--blob={}:.gitmodules", commit.commit);
        let config = self.local(&repository.path, &shown).args(&["config", &blob, "-z", "--list"]).output(doing)?;
        let described = described(&config);
        if described.len() > MAX_SUBMODULES {
            return Err(Diagnostic::error(format!("`{shown}` has more than {MAX_SUBMODULES} submodules")));
        }
        if described.is_empty() {
            return Ok(Vec::new());
        }
        let paths: Vec<_> = described.iter().map(|(path, _)| path.as_str()).collect();
        let tree = entries(&list(&paths)?);
        let submodules = tree.into_iter().filter(|(mode, ..)| mode == "160000").filter_map(|(_, commit, path)| {
            let url = described.iter().find(|(described, _)| *described == path)?.1.clone();
            is_commit(&commit).then_some(Submodule { path, url, commit })
        });
        Ok(submodules.collect())
    }
}

/// Mode, object and path.
type Entry = (String, String, String);

/// What `ls-tree -z` prints.
fn entries(listed: &[u8]) -> Vec<Entry> {
    let lines = listed.split(|byte| *byte == 0).filter_map(|line| std::str::from_utf8(line).ok());
    let entries = lines.filter_map(|line| {
        let (head, path) = line.split_once('\t')?;
        let mut words = head.split(' ');
        let (mode, _, object) = (words.next()?, words.next()?, words.next()?);
        Some((mode.to_owned(), object.to_owned(), path.to_owned()))
    });
    entries.collect()
}

/// Paths and addresses in what `git config -z --list` prints of `.gitmodules`.
fn described(config: &[u8]) -> Vec<(String, String)> {
    let mut modules: Vec<(String, [Option<String>; 3])> = Vec::new();
    let lines = config.split(|byte| *byte == 0).filter_map(|line| std::str::from_utf8(line).ok());
    for (key, value) in lines.filter_map(|line| line.split_once('\n')) {
        let Some((name, variable)) = key.strip_prefix("submodule.").and_then(|key| key.rsplit_once('.')) else {
            continue;
        };
        let Some(place) = ["path", "url", "update"].iter().position(|known| *known == variable) else { continue };
        let index = match modules.iter().position(|(known, _)| known == name) {
            Some(index) => index,
            None => {
                modules.push((name.to_owned(), [None, None, None]));
                modules.len() - 1
            }
        };
        modules[index].1[place] = Some(value.to_owned());
    }
    let is_plain = |path: &str| {
        !path.starts_with('-')
            && !path.is_empty()
            && path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.eq_ignore_ascii_case(".git"))
    };
    let wanted = modules.into_iter().filter_map(|(_, [path, url, update])| {
        (update.as_deref() != Some("none")).then_some((path?.trim_end_matches('/').to_owned(), url?))
    });
    wanted.filter(|(path, _)| is_plain(path)).collect()
}

/// `../x.git` seen from a remote. `None` where it leads above the remote's path.
fn relative(remote: &str, url: &str) -> Option<String> {
    // What `..` never takes away: the server, and what introduces the path.
    let kept = match remote.split_once("://") {
        Some((scheme, rest)) => scheme.len() + 3 + rest.find('/')?,
        None => remote.find(':')?,
    };
    let separator = &remote[kept..=kept];
    let mut parts: Vec<_> = remote[kept + 1..].trim_end_matches('/').split('/').collect();
    let mut rest = url;
    loop {
        if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("../") {
            parts.pop()?;
            rest = after;
        } else {
            break;
        }
    }
    parts.push(rest.trim_end_matches('/'));
    Some(format!("{}{separator}{}", &remote[..kept], parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_seen_from_the_parent() {
        for (remote, url, expected) in [
            ("https://h.test/a/b.git", "../c.git", Some("https://h.test/a/c.git")),
            ("https://h.test/a/b.git", "../../x/c.git", Some("https://h.test/x/c.git")),
            ("https://h.test/a/b.git", "./c", Some("https://h.test/a/b.git/c")),
            ("https://h.test/a/b.git", "../../../c", None),
            ("git@h.test:a/b.git", "../c.git", Some("git@h.test:a/c.git")),
            ("git@h.test:b.git", "../c.git", Some("git@h.test:c.git")),
            ("git@h.test:b.git", "../../c.git", None),
            ("ssh://git@h.test:22/b", "../c/", Some("ssh://git@h.test:22/c")),
        ] {
            assert_eq!(relative(remote, url).as_deref(), expected, "{remote} {url}");
        }
    }

    #[test]
    fn only_known_protocols_are_spoken() {
        let parent = GitLocation::parse("https://h.test/a/b.git").unwrap().unwrap();
        let location =
            |url: &str| Submodule { path: "x".into(), url: url.into(), commit: "a".repeat(40) }.location(&parent);
        assert_eq!(location("../c").unwrap().remote, "https://h.test/a/c");
        assert_eq!(location("git@h.test:c").unwrap().remote, "git@h.test:c");
        for url in ["/etc", "file:///etc", "ext::sh -c touch", "-u", "ssh://-oProxyCommand=x/y", "../../../x"] {
            assert!(location(url).is_err(), "{url}");
        }
    }

    #[test]
    fn descriptions_are_read() {
        let config = b"submodule.a.b.path\ndir/a\0submodule.a.b.url\n../a\0submodule.c.url\nx\0\
            submodule.d.path\n../d\0submodule.d.url\nx\0submodule.e.path\ne\0submodule.e.url\nx\0submodule.e.update\nnone\0\
            submodule.f.path\n.git/hooks\0submodule.f.url\nx\0other.key\nx\0submodule.g.path\n--x\0submodule.g.url\nx\0";
        assert_eq!(described(config), [("dir/a".to_owned(), "../a".to_owned())]);
    }
}
