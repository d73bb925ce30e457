//! The address of a git repository, with what of it is wanted.
//!
//! ```text
//! https://HOST/PATH.git      [?NAME=VALUE&…] [#REF[:DIRECTORY]]      http:// too
//! ssh://[USER@]HOST/PATH     "                "                       git:// too
//! USER@HOST:PATH             "                "
//! ```
//!
//! What was parsed can be given to git: no part of it begins with a dash or leads out of the repository.

use super::query;
use super::redact;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitLocation {
    /// What git is given: no query, no fragment. May hold a password.
    pub remote: String,
    pub transport: Transport,
    /// With the port if one is written.
    pub host: String,
    /// A branch, a tag, a commit, or a name that begins with `refs/`; the default branch if `None`.
    pub reference: Option<String>,
    /// Below the root of the repository, `/`-separated; empty for all of it.
    pub directory: String,
    /// The beginning of the commit's name, or of the tag's, that `reference` must stand for.
    pub checksum: Option<String>,
    pub keeps_git_dir: Option<bool>,
    pub submodules: Option<bool>,
    pub times: Times,
    /// `checksum` is fetched, wherever `reference` stands by now.
    pub is_by_commit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Http,
    Https,
    Ssh,
    Git,
}

impl Transport {
    /// As git calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Ssh => "ssh",
            Self::Git => "git",
        }
    }
}

/// The modification times of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Times {
    /// That of the commit.
    #[default]
    Commit,
    /// When the build began.
    Checkout,
}

/// Whether `text` is the whole name of a commit.
pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl GitLocation {
    /// `None` for what is no address of a git repository: over http the path must end in `.git`. The
    /// error of an address with a fault is a sentence.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        if text.starts_with("./") || text.starts_with("../") {
            return None;
        }
        let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (address, query) = address.split_once('?').unwrap_or((address, ""));
        let parsed = match address.split_once("://") {
            Some((scheme, rest)) => of_url(scheme, rest)?,
            None => of_scp(address)?,
        };
        Some(parsed.and_then(|git| git.with(fragment, query)))
    }

    /// The same repository that `parse` finds, or `host/path` of a well-known host without a scheme: how
    /// docker lets contexts be written, and nothing else.
    pub fn parse_context(text: &str) -> Option<Result<Self, String>> {
        if !text.starts_with("github.com/") {
            return Self::parse(text);
        }
        let (address, rest) = text.split_at(text.find(['?', '#']).unwrap_or(text.len()));
        let address = if address.ends_with(".git") { address.to_owned() } else { format!("{address}.git") };
        Self::parse(&format!("https://{address}{rest}"))
    }

    /// The repository alone, at a commit: a submodule.
    pub fn at_commit(remote: &str, commit: &str) -> Option<Result<Self, String>> {
        if remote.contains(['?', '#']) {
            return Some(Err(format!("`{}` is no address of a submodule", redact(remote))));
        }
        let parsed = match remote.split_once("://") {
            Some((scheme, rest)) => of_any_url(scheme, rest)?,
            None => of_scp(remote)?,
        };
        Some(parsed.map(|git| Self { reference: Some(commit.to_owned()), ..git }))
    }

    /// For people: without a password, with what is wanted of the repository.
    pub fn shown(&self) -> String {
        let mut shown = redact(&self.remote).into_owned();
        if self.reference.is_some() || !self.directory.is_empty() {
            shown.push('#');
            shown.push_str(self.reference.as_deref().unwrap_or_default());
        }
        if !self.directory.is_empty() {
            shown.push(':');
            shown.push_str(&self.directory);
        }
        shown
    }

    /// Scheme, host and port: what a password is for.
    pub fn origin(&self) -> (Transport, String) {
        (self.transport, self.host.to_ascii_lowercase())
    }

    fn new(transport: Transport, host: String, remote: String) -> Self {
        Self {
            remote,
            transport,
            host,
            reference: None,
            directory: String::new(),
            checksum: None,
            keeps_git_dir: None,
            submodules: None,
            times: Times::default(),
            is_by_commit: false,
        }
    }

    fn with(self, fragment: &str, query: &str) -> Result<Self, String> {
        let fragment = String::from_utf8_lossy(&query::decode(fragment)).into_owned();
        let (reference, directory) = fragment.split_once(':').unwrap_or((&fragment, ""));
        let mut git = Self { reference: some(reference), directory: directory.to_owned(), ..self };
        let (mut tag, mut branch) = (None, None);
        let mut seen = Vec::new();
        for (name, value) in query::pairs(query) {
            if seen.contains(&name) {
                return Err(format!("`{name}` is there twice"));
            }
            let flag = || match value.as_deref() {
                None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
                Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
                Some(other) => Err(format!("`{name}` is true or false, not `{other}`")),
            };
            let text = || value.clone().ok_or_else(|| format!("`{name}` has no value"));
            match name.as_str() {
                "ref" => git.reference = Some(one("ref", git.reference.take(), text()?)?),
                "tag" => tag = Some(full("refs/tags/", &text()?)),
                "branch" => branch = Some(full("refs/heads/", &text()?)),
                "subdir" => git.directory = one("subdir", some(&git.directory), text()?)?,
                "checksum" | "commit" => git.checksum = Some(one("checksum", git.checksum.take(), text()?)?),
                "keep-git-dir" => git.keeps_git_dir = Some(flag()?),
                "submodules" => git.submodules = Some(flag()?),
                "fetch-by-commit" => git.is_by_commit = flag()?,
                "mtime" => {
                    git.times = match text()?.as_str() {
                        "commit" => Times::Commit,
                        "checkout" => Times::Checkout,
                        other => return Err(format!("`mtime` is commit or checkout, not `{other}`")),
                    }
                }
                _ => {
                    return Err(format!(
                        "there is no `{name}`; known are ref, branch, tag, checksum, subdir, submodules, keep-git-dir, \
                         mtime and fetch-by-commit"
                    ));
                }
            }
            seen.push(name);
        }
        if tag.is_some() && branch.is_some() {
            return Err("give a `tag` or a `branch`, not both".into());
        }
        if let Some(name) = tag.or(branch) {
            git.reference = Some(one("ref", git.reference.take(), name)?);
        }
        git.finish()
    }

    fn finish(mut self) -> Result<Self, String> {
        self.directory = directory(&self.directory)?;
        if let Some(checksum) = &self.checksum {
            check_checksum(checksum)?;
            if self.is_by_commit && !is_commit(checksum) {
                return Err("`fetch-by-commit` needs the whole name of the commit in `checksum`".into());
            }
            // Nothing else is said: it is what is wanted.
            self.reference.get_or_insert_with(|| checksum.clone());
        } else if self.is_by_commit {
            return Err("`fetch-by-commit` needs a `checksum`".into());
        }
        if let Some(reference) = &self.reference {
            check_reference(reference)?;
        }
        Ok(self)
    }
}

/// Whether `text` can be the beginning of a commit's name.
pub fn check_checksum(text: &str) -> Result<(), String> {
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match (7..=64).contains(&text.len()) && is_hex {
        true => Ok(()),
        false => Err(format!("`{text}` is no commit: it takes at least 7 digits of `0` to `f`")),
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn full(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

/// What is said twice must be the same.
fn one(name: &str, earlier: Option<String>, value: String) -> Result<String, String> {
    match earlier {
        Some(earlier) if earlier != value => Err(format!("`{name}` is both `{earlier}` and `{value}`")),
        _ => Ok(value),
    }
}

fn of_url(scheme: &str, rest: &str) -> Option<Result<GitLocation, String>> {
    let is_http = matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https");
    // Over http most addresses are no repositories.
    if is_http && !rest.split_once('/').is_some_and(|(_, path)| path.ends_with(".git")) {
        return None;
    }
    of_any_url(scheme, rest)
}

fn of_any_url(scheme: &str, rest: &str) -> Option<Result<GitLocation, String>> {
    let transport = match scheme.to_ascii_lowercase().as_str() {
        "http" => Transport::Http,
        "https" => Transport::Https,
        "ssh" => Transport::Ssh,
        "git" => Transport::Git,
        _ => return None,
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let user = authority.strip_suffix(host).unwrap_or_default();
    if host.is_empty() || host.starts_with('-') || user.starts_with('-') || !is_plain(authority) || !is_plain(path) {
        return Some(Err(format!("`{}` is no address of a repository", redact(&format!("{scheme}://{rest}")))));
    }
    Some(Ok(GitLocation::new(transport, host.to_owned(), format!("{}://{rest}", transport.name()))))
}

fn of_scp(address: &str) -> Option<Result<GitLocation, String>> {
    let (user, rest) = address.split_once('@')?;
    let (host, path) = rest.split_once(':')?;
    let made_of = |text: &str, others: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
    };
    if !made_of(user, "-_") || !made_of(host, "-.") {
        return None;
    }
    if user.starts_with('-') || host.starts_with('-') || path.starts_with('-') || path.contains(char::is_control) {
        return Some(Err(format!("`{}` is no address of a repository", address.escape_debug())));
    }
    Some(Ok(GitLocation::new(Transport::Ssh, host.to_owned(), address.to_owned())))
}

/// Git's own rules for names, and that it is no option.
fn check_reference(reference: &str) -> Result<(), String> {
    let is_bad = reference.starts_with('-')
        || reference.ends_with(['/', '.'])
        || reference.contains("..")
        || reference.contains("@{")
        || reference.contains("//")
        || reference.contains(|c: char| c.is_control() || " ~^:?*[\\".contains(c))
        || reference.split('/').any(|part| part.starts_with('.') || part.ends_with(".lock"));
    if is_bad { Err(format!("`{}` is no name of a branch, tag or commit", reference.escape_debug())) } else { Ok(()) }
}

/// The directory as names; `/` and `.` are the whole repository.
fn directory(text: &str) -> Result<String, String> {
    let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(format!("the directory `{text}` leads out of the repository"));
    }
    if text.contains('\0') || parts.first().is_some_and(|part| part.eq_ignore_ascii_case(".git")) {
        return Err(format!("`{}` is no directory of a repository", text.escape_debug()));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn parse(text: &str) -> Option<Result<GitLocation, String>> {
        GitLocation::parse(text)
    }

    fn fine(text: &str) -> GitLocation {
        parse(text).unwrap_or_else(|| panic!("{text} is no git")).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn all_forms_are_known() {
        for (text, transport, host, remote) in [
            ("https://h.test/a/b.git", Transport::Https, "h.test", "https://h.test/a/b.git"),
            ("HTTPS://h.test:8443/a.git", Transport::Https, "h.test:8443", "https://h.test:8443/a.git"),
            ("http://u:p@h.test/b.git#x", Transport::Http, "h.test", "http://u:p@h.test/b.git"),
            ("git://h.test/b", Transport::Git, "h.test", "git://h.test/b"),
            ("ssh://git@h.test:22/b?ref=x", Transport::Ssh, "h.test:22", "ssh://git@h.test:22/b"),
            ("git@h.test:a/b#x:y", Transport::Ssh, "h.test", "git@h.test:a/b"),
        ] {
            let git = fine(text);
            assert_eq!((git.transport, git.host.as_str(), git.remote.as_str()), (transport, host, remote), "{text}");
        }
    }

    #[test]
    fn paths_and_other_urls_are_no_repositories() {
        for text in [
            "https://h.test/a/b.gitx",
            "https://h.test/file?x=.git",
            "https://x.git",
            "./git@h:a",
            "a@b/c",
            "h.test/a/b.git",
            "ftp://h/a.git",
            "file:///a.git",
            "ext::sh -c x",
            "a b@h:c",
            "github.com/a/b",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_wanted_stands_behind() {
        let wanted = |text: &str| {
            let git = fine(&format!("https://h.test/r.git{text}"));
            (git.reference.unwrap_or_default(), git.directory, git.checksum.unwrap_or_default())
        };
        let of = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(wanted(""), of("", "", ""));
        assert_eq!(wanted("#main:docs/"), of("main", "docs", ""));
        assert_eq!(wanted("#:/docs//x/."), of("", "docs/x", ""));
        assert_eq!(wanted("#a:b%20c").1, "b c".to_owned());
        assert_eq!(wanted("?branch=main&subdir=a"), of("refs/heads/main", "a", ""));
        assert_eq!(wanted("?tag=refs/tags/v1"), of("refs/tags/v1", "", ""));
        assert_eq!(wanted("?ref=pull/42/head#pull/42/head"), of("pull/42/head", "", ""));
        assert_eq!(wanted("?checksum=0123456"), of("0123456", "", "0123456"));
        assert_eq!(wanted("?commit=0123456&tag=v1"), of("refs/tags/v1", "", "0123456"));
        let git = fine(&format!(
            "git@h.test:r?keep-git-dir&submodules=0&mtime=checkout&fetch-by-commit=true&checksum={COMMIT}#main"
        ));
        assert_eq!((git.keeps_git_dir, git.submodules, git.times), (Some(true), Some(false), Times::Checkout));
        assert!(git.is_by_commit);
        assert_eq!(git.shown(), "git@h.test:r#main");
    }

    #[test]
    fn faults_are_told() {
        for (text, fault) in [
            ("?x=1", "there is no `x`"),
            ("?ref=a#b", "both `b` and `a`"),
            ("?ref=a&ref=a", "`ref` is there twice"),
            ("?tag=a&branch=b", "not both"),
            ("?tag=a#b", "both `b` and `refs/tags/a`"),
            ("?ref=", "`ref` has no value"),
            ("?subdir=a#:b", "both"),
            ("?submodules=maybe", "true or false"),
            ("?mtime=now", "commit or checkout"),
            ("?checksum=xyz", "is no commit"),
            ("?checksum=0123456&fetch-by-commit", "whole name"),
            ("?fetch-by-commit", "needs a `checksum`"),
            ("#--upload-pack=x", "is no name"),
            ("?ref=--upload-pack%3Dx", "is no name"),
            ("#a..b", "is no name"),
            ("#a%0Ab", "is no name"),
            ("#main:../..", "leads out"),
            ("#main:a/../../b", "leads out"),
            ("#main:.git/hooks", "is no directory"),
        ] {
            let why = parse(&format!("https://h.test/r.git{text}")).expect(text).expect_err(text);
            assert!(why.contains(fault), "{text}: {why}");
        }
        for text in [
            "ssh://-oProxyCommand=x/y",
            "ssh://-oProxyCommand=x@h/y",
            "git@-oProxyCommand:y",
            "git@h.test:-x",
            "https:///x.git",
            "https://h.test/a b.git",
            "https://h.test/a\nb.git",
        ] {
            assert!(parse(text).expect(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_context_may_lack_its_scheme() {
        let remote = |text: &str| GitLocation::parse_context(text).expect(text).expect(text).remote;
        assert_eq!(remote("github.com/a/b#c"), "https://github.com/a/b.git");
        assert_eq!(remote("github.com/a/b.git"), "https://github.com/a/b.git");
        assert_eq!(GitLocation::parse_context("h.test/a/b.git"), None);
    }

    #[test]
    fn submodules_need_no_suffix() {
        let at = |text: &str| GitLocation::at_commit(text, COMMIT);
        assert_eq!(at("https://h.test/a").expect("git").expect("fine").reference.as_deref(), Some(COMMIT));
        for text in ["file:///etc", "/srv/x", "ext::sh", "--upload-pack=x", "https://h.test/a?x"] {
            assert!(!matches!(at(text), Some(Ok(_))), "{text}");
        }
    }
}
