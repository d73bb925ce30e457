//! Places on other machines that files come from, as users write them: git repositories and URLs.
//! Pure: nothing is asked.

mod git;
mod query;

use std::borrow::Cow;

pub use git::{GitLocation, Times, Transport, check_checksum, is_commit};
pub use query::decode;

/// Where a context or an ADD comes from, when that is no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Git(Box<GitLocation>),
    /// `http://` or `https://`.
    Url(String),
}

impl Location {
    /// `None` for what is no address; the error of an address with a fault is a sentence.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        if let Some(git) = GitLocation::parse(text) {
            return Some(git.map(|git| Self::Git(Box::new(git))));
        }
        is_url(text).then(|| Ok(Self::Url(text.to_owned())))
    }

    /// For people: without passwords.
    pub fn shown(&self) -> String {
        match self {
            Self::Git(git) => git.shown(),
            Self::Url(url) => redact(url).into_owned(),
        }
    }
}

pub fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// The text with the passwords of all URLs in it replaced, and for http the user names too, which may be
/// tokens.
pub fn redact(text: &str) -> Cow<'_, str> {
    const HIDDEN: &str = "xxxxx";
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/?#\"'".contains(c)).unwrap_or(after.len());
        rest = after;
        let Some(user_end) = after[..end].rfind('@') else { continue };
        let user = &after[..user_end];
        let is_http = before.ends_with("http://") || before.ends_with("https://");
        match user.split_once(':') {
            Some((name, _)) => out += &format!("{}:{HIDDEN}", if is_http { HIDDEN } else { name }),
            None => out.push_str(if is_http { HIDDEN } else { user }),
        }
        rest = &after[user_end..];
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (text, expected) in [
            ("https://a.test/b", "https://a.test/b"),
            ("https://user:pass@a.test/b", "https://xxxxx:xxxxx@a.test/b"),
            ("https://token@a.test/b@c", "https://xxxxx@a.test/b@c"),
            ("ssh://git@a.test/b", "ssh://git@a.test/b"),
            ("ssh://git:pass@a.test/b", "ssh://git:xxxxx@a.test/b"),
            (
                "ADD \"https://u:p@a.test/b\" http://c.test/x@y /",
                "ADD \"https://xxxxx:xxxxx@a.test/b\" http://c.test/x@y /",
            ),
            ("git@a.test:b", "git@a.test:b"),
            ("https://u:p@x@a.test", "https://xxxxx:xxxxx@a.test"),
        ] {
            assert_eq!(redact(text), expected);
        }
    }

    #[test]
    fn git_is_told_from_other_urls() {
        let kind = |text: &str| match Location::parse(text) {
            Some(Ok(Location::Git(_))) => "git",
            Some(Ok(Location::Url(_))) => "url",
            Some(Err(_)) => "fault",
            None => "none",
        };
        for (text, expected) in [
            ("https://a.test/b.git", "git"),
            ("https://a.test/b.git?x=y", "fault"),
            ("https://a.test/b.tar", "url"),
            ("https://a.test/b?c=.git", "url"),
            ("git@a.test:b", "git"),
            ("dir", "none"),
            ("file:///b.git", "none"),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }
}
