//! Absolute paths of an image as text: joined and cleaned without looking at any file, so `..` never
//! leaves the root and symbolic links mean nothing here.

/// `path` below `base`, or `path` itself when it is absolute; `.`, `..` and doubled slashes are gone, and
/// there is no trailing slash but that of `/`.
pub(super) fn join(base: &str, path: &str) -> String {
    let mut elements: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { base };
    for element in base.split('/').chain(path.split('/')) {
        match element {
            "" | "." => {}
            ".." => {
                elements.pop();
            }
            name => elements.push(name),
        }
    }
    format!("/{}", elements.join("/"))
}

/// The destination of a COPY or ADD: [`join`]ed, with a trailing slash where the text says that it is a
/// directory (`dir/`, `dir/.`, `.` and nothing at all).
pub(super) fn destination(workdir: &str, text: &str) -> String {
    let names_directory = text.is_empty() || text == "." || text.ends_with('/') || text.ends_with("/.");
    let mut path = join(workdir, text);
    if names_directory && path != "/" {
        path.push('/');
    }
    path
}

/// A path cleaned but not made absolute, as a cache mount's default id is: `.` for nothing.
pub(super) fn clean_relative(path: &str) -> String {
    if path.starts_with('/') {
        return join("/", path);
    }
    let mut elements: Vec<&str> = Vec::new();
    for element in path.split('/') {
        match element {
            "" | "." => {}
            ".." if elements.last().is_some_and(|last| *last != "..") => {
                elements.pop();
            }
            name => elements.push(name),
        }
    }
    if elements.is_empty() { ".".into() } else { elements.join("/") }
}

/// The last element; `/` for the root and `.` for nothing.
pub(super) fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit('/').next() {
        _ if path.is_empty() => ".",
        Some("") | None => "/",
        Some(name) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_and_cleans() {
        for (base, path, joined) in [
            ("/", "a", "/a"),
            ("/w", "a/./b//c", "/w/a/b/c"),
            ("/w/x", "../up", "/w/up"),
            ("/w", "../../..", "/"),
            ("/w", "/abs/", "/abs"),
            ("rel", "", "/rel"),
            ("", "", "/"),
        ] {
            assert_eq!(join(base, path), joined, "{base} + {path}");
        }
    }

    #[test]
    fn keeps_what_says_directory() {
        for (workdir, text, path) in [
            ("/", ".", "/"),
            ("/w", ".", "/w/"),
            ("/w", "", "/w/"),
            ("/w", "d/", "/w/d/"),
            ("/w", "/d/.", "/d/"),
            ("/w", "..", "/"),
            ("/w/x", "..", "/w"),
            ("/w", "f", "/w/f"),
        ] {
            assert_eq!(destination(workdir, text), path, "{workdir} + {text}");
        }
    }

    #[test]
    fn cleans_and_names() {
        for (path, cleaned, name) in
            [("/a/b/", "/a/b", "b"), ("a/../b", "b", "b"), ("", ".", "."), ("../x", "../x", "x"), ("/", "/", "/")]
        {
            assert_eq!(clean_relative(path), cleaned, "{path}");
            assert_eq!(base_name(path), name, "{path}");
        }
    }
}
