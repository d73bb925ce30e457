//! From what an address says to a commit: the server is asked for its names, unless a whole commit is
//! named.

use super::command::failed;
use super::fetch::LOCAL_REFS;
use super::{Client, Commit, Site};
use crate::diag::{self, Diagnostic, Result};
use crate::location::{GitLocation, is_commit};

impl Client {
    /// The commit that is wanted, its checksum checked. Nothing is fetched, unless a commit is named by the
    /// beginning of its name: then the repository's names are all that the server has, and it takes the
    /// history to find it.
    pub fn resolve(&self, location: &GitLocation, site: &Site<'_>) -> Result<Commit> {
        let reference = location.reference.as_deref();
        if let (true, Some(checksum)) = (location.is_by_commit, &location.checksum) {
            let name = reference.filter(|name| name.starts_with("refs/")).map(str::to_owned);
            return Ok(Commit { commit: checksum.clone(), object: checksum.clone(), name });
        }
        let commit = match reference.filter(|reference| is_commit(reference)) {
            Some(commit) => Commit { commit: commit.to_owned(), object: commit.to_owned(), name: None },
            None => self.ask(location, site)?,
        };
        match &location.checksum {
            Some(checksum) if !commit.commit.starts_with(checksum) && !commit.object.starts_with(checksum) => {
                let is = match commit.commit == commit.object {
                    true => format!("`{}`", commit.commit),
                    false => format!("`{}`, the tag `{}`", commit.commit, commit.object),
                };
                Err(Diagnostic::error(format!("`{}` is not the commit `{checksum}`: it is {is}", location.shown())))
            }
            _ => Ok(commit),
        }
    }

    fn ask(&self, location: &GitLocation, site: &Site<'_>) -> Result<Commit> {
        let reference = location.reference.as_deref().unwrap_or("HEAD");
        let peeled = format!("{reference}^{{}}");
        let git = self.remote(location, site)?.args(&["ls-remote", "--symref", "--", &location.remote]);
        let listed = git.args(&[reference, &peeled]).output("reach the git repository")?;
        let names = Names::parse(&listed);
        if let Some(commit) = names.find(location.reference.as_deref()) {
            return Ok(commit);
        }
        let is_short = (7..40).contains(&reference.len()) && reference.bytes().all(|b| b.is_ascii_hexdigit());
        if is_short && let Some(commit) = self.complete(location, reference, site)? {
            return Ok(commit);
        }
        Err(self.nothing(location, site))
    }

    /// A commit by the beginning of its name.
    fn complete(&self, location: &GitLocation, beginning: &str, site: &Site<'_>) -> Result<Option<Commit>> {
        let repository = site.store.repository(&location.remote, &location.shown())?;
        let find = || {
            let git = self.local(&repository.path, &location.shown());
            let revision = format!("{beginning}^{{commit}}");
            git.args(&["rev-parse", "--verify", "--quiet", &revision]).run(None)
        };
        let mut found = if repository.is_new() { None } else { Some(find()?).filter(|found| found.is_success) };
        if found.is_none() {
            self.show_fetch(location, site, |meter| self.fetch_history(&repository, location, 40, site, meter))?;
            found = Some(find()?);
        }
        let Some(found) = found else { return Ok(None) };
        if !found.is_success {
            return match found.message.contains("ambiguous") {
                true => Err(failed(&format!("several commits of `{}` begin so", location.shown()), &found)),
                false => Ok(None),
            };
        }
        let commit = String::from_utf8_lossy(&found.output).trim().to_owned();
        Ok(is_commit(&commit).then(|| Commit { object: commit.clone(), commit, name: None }))
    }

    /// The error for a name that the repository does not have.
    fn nothing(&self, location: &GitLocation, site: &Site<'_>) -> Diagnostic {
        let mut plain = location.clone();
        (plain.reference, plain.directory) = (None, String::new());
        let shown = plain.shown();
        let Some(reference) = &location.reference else {
            return Diagnostic::error(format!("the git repository `{shown}` has no default branch: is it empty?"));
        };
        let error = Diagnostic::error(format!("the git repository `{shown}` has no `{reference}`"));
        let listed = self.remote(location, site).and_then(|git| {
            git.args(&["ls-remote", "--heads", "--tags", "--", &location.remote]).output("reach the git repository")
        });
        let listed = listed.unwrap_or_default();
        let names = Names::parse(&listed);
        let short = |name: &'_ str| -> Option<String> {
            Some(name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/"))?.to_owned())
        };
        let known: Vec<_> = names.0.iter().filter_map(|(_, name)| short(name)).collect();
        let wanted = short(reference).unwrap_or_else(|| reference.clone());
        match diag::nearest(&wanted, known.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        }
    }
}

/// What `ls-remote --symref` prints: what each name stands for.
struct Names<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Names<'a> {
    fn parse(listed: &'a [u8]) -> Self {
        let lines = listed.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
        Self(lines.filter_map(|line| line.split_once('\t')).collect())
    }

    fn object(&self, name: &str) -> Option<&'a str> {
        let of_name = |(object, other): &&(&'a str, &'a str)| *other == name && is_commit(object);
        self.0.iter().find(of_name).map(|(object, _)| *object)
    }

    /// The default branch, or what this name stands for: as it is written, as a branch, as a tag.
    fn find(&self, reference: Option<&str>) -> Option<Commit> {
        let Some(reference) = reference.filter(|reference| *reference != "HEAD") else {
            let object = self.object("HEAD")?;
            let target = self.0.iter().find(|(object, name)| *name == "HEAD" && object.starts_with("ref: "));
            let name = target.map(|(target, _)| target["ref: ".len()..].to_owned());
            return Some(Commit { commit: object.to_owned(), object: object.to_owned(), name });
        };
        let bare = |prefix: &str| reference.strip_prefix(prefix).unwrap_or(reference).to_owned();
        let candidates = [
            format!("refs/{}", bare("refs/")),
            format!("refs/heads/{}", bare("refs/heads/")),
            format!("refs/tags/{}", bare("refs/tags/")),
        ];
        candidates.into_iter().filter(|name| !name.starts_with(LOCAL_REFS)).find_map(|name| {
            let object = self.object(&name)?;
            let commit = self.object(&format!("{name}^{{}}")).unwrap_or(object);
            Some(Commit { commit: commit.to_owned(), object: object.to_owned(), name: Some(name) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "cccccccccccccccccccccccccccccccccccccccc";

    fn find(listed: &str, reference: Option<&str>) -> Option<(String, String, String)> {
        let commit = Names::parse(listed.as_bytes()).find(reference)?;
        Some((commit.commit, commit.object, commit.name.unwrap_or_default()))
    }

    #[test]
    fn the_default_branch_is_what_head_names() {
        let listed = format!("ref: refs/heads/trunk\tHEAD\n{A}\tHEAD\n");
        assert_eq!(find(&listed, None), Some((A.into(), A.into(), "refs/heads/trunk".into())));
        assert_eq!(find("", None), None);
        assert_eq!(find(&format!("{A}\tHEAD\n"), Some("HEAD")), Some((A.into(), A.into(), String::new())));
    }

    #[test]
    fn a_branch_goes_before_a_tag() {
        let listed = format!("{A}\trefs/heads/x\n{B}\trefs/tags/x\n{C}\trefs/tags/x^{{}}\n{C}\trefs/heads/y/x\n");
        assert_eq!(find(&listed, Some("x")), Some((A.into(), A.into(), "refs/heads/x".into())));
        assert_eq!(find(&listed, Some("tags/x")), Some((C.into(), B.into(), "refs/tags/x".into())));
        assert_eq!(find(&listed, Some("refs/tags/x")), Some((C.into(), B.into(), "refs/tags/x".into())));
        assert_eq!(find(&listed, Some("z")), None);
    }

    #[test]
    fn other_names_are_found_as_written() {
        let listed = format!("{A}\trefs/pull/42/head\n");
        assert_eq!(find(&listed, Some("pull/42/head")), Some((A.into(), A.into(), "refs/pull/42/head".into())));
        assert_eq!(find("--x\trefs/heads/main\n", Some("main")), None);
    }
}
