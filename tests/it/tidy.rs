//! Rules of the code that no compiler holds. Each is a function from text to complaints, and each
//! has a test that it does complain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MAX_LINES: usize = 700;

/// Complaints about one file.
type Complaints = Vec<String>;

#[test]
fn modules_use_only_what_stands_above_them() {
    let order = module_order(&read("src/lib.rs"));
    assert!(order.len() > 5, "src/lib.rs lists no modules");
    report(sources(), |path, text| {
        let module = module_path(path);
        // `lib.rs` and `main.rs` stand above all modules, or below: they are outside the order.
        if module.is_empty() { Vec::new() } else { reaches_down(&order, &module, text) }
    });
}

#[test]
fn source_files_have_a_head_and_an_end() {
    report(sources(), |path, text| {
        // `tests.rs` says it all.
        let head = if path.ends_with("tests.rs") { Complaints::new() } else { no_head(text) };
        [head, too_long(text)].concat()
    });
}

#[test]
fn unsafe_is_in_sys_alone() {
    report(sources(), |path, text| if path == Path::new("src/sys.rs") { Vec::new() } else { has_unsafe(text) });
}

#[test]
fn lookups_that_are_confined_are_tried_again() {
    report(sources(), |path, text| if path == Path::new("src/sys.rs") { Vec::new() } else { has_openat2(text) });
}

#[test]
fn sockets_are_in_registry_and_ssh_alone() {
    report(sources(), |path, text| match path.starts_with("src/registry") {
        true => Vec::new(),
        false => has_sockets(text, path.starts_with("src/ssh")),
    });
}

#[test]
fn file_names_are_nouns_one_can_point_at() {
    report(tracked(), |path, _| vague_name(path));
}

#[test]
fn no_file_names_a_place_of_its_author() {
    report(tracked(), |_, text| foreign_names(text));
}

#[test]
fn changelog_has_an_unreleased_section() {
    assert_eq!(no_unreleased(&read("CHANGELOG.md")), Complaints::new());
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

/// Fails with every complaint about every file.
#[track_caller]
fn report(files: Vec<PathBuf>, check: impl Fn(&Path, &str) -> Complaints) {
    let mut all = Vec::new();
    for path in files {
        // Test data need not be text.
        let bytes = fs::read(root().join(&path)).unwrap_or_default();
        let complaints = check(&path, &String::from_utf8_lossy(&bytes));
        all.extend(complaints.iter().map(|complaint| format!("{}: {complaint}", path.display())));
    }
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

/// Every tracked file; in an unpacked release, where there is no repository, every file that would
/// be.
fn tracked() -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let listed = git.output().ok().filter(|output| output.status.success());
    let mut files: Vec<PathBuf> = match listed {
        Some(output) => {
            let names = String::from_utf8(output.stdout).unwrap();
            names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect()
        }
        None => walkdir::WalkDir::new(root())
            .into_iter()
            .filter_entry(|entry| {
                entry.depth() != 1 || !["target", ".git"].iter().any(|name| entry.file_name() == *name)
            })
            .filter_map(|entry| entry.unwrap().path().strip_prefix(root()).map(Path::to_owned).ok())
            .collect(),
    };
    files.retain(|path| root().join(path).symlink_metadata().is_ok_and(|meta| meta.is_file()));
    files.sort();
    assert!(!files.is_empty());
    files
}

fn sources() -> Vec<PathBuf> {
    let is_source = |path: &PathBuf| path.starts_with("src") && path.extension().is_some_and(|name| name == "rs");
    tracked().into_iter().filter(is_source).collect()
}

/// The names of `pub mod` lines, in order.
fn module_order(lib: &str) -> Vec<String> {
    let declared = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    declared.map(str::to_owned).collect()
}

/// `src/a/b.rs` and `src/a/b/mod.rs` are `[a, b]`.
fn module_path(path: &Path) -> Vec<String> {
    let path = path.strip_prefix("src").unwrap_or(path).with_extension("");
    let mut names: Vec<_> = path.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if names.last().is_some_and(|name| name == "mod") || names == ["lib"] || names == ["main"] {
        names.pop();
    }
    names
}

/// Uses, in the file that is `module`, of modules that do not stand above it in `order`.
fn reaches_down(order: &[String], module: &[String], text: &str) -> Complaints {
    let place = |name: &str| order.iter().position(|listed| listed == name);
    let Some(own) = place(&module[0]) else {
        return vec![format!("module `{}` is not listed in src/lib.rs", module[0])];
    };
    let mut complaints = Vec::new();
    for (line, path) in absolute_paths(module, text) {
        if path[0] != module[0] && place(&path[0]).is_some_and(|other| other > own) {
            complaints.push(format!("line {line}: `{}` stands below `{}` in src/lib.rs", path[0], module[0]));
        }
    }
    complaints
}

/// The first names of all paths that start with `crate`, `self` or `super`, resolved to the crate's
/// root, with their lines; groups in braces are unfolded one level, which is where modules stand.
fn absolute_paths(module: &[String], text: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(text);
    let word = |index: usize| tokens.get(index).map_or("", |(_, token)| token.as_str());
    let mut found = Vec::new();
    // The inline modules that enclose the current token, with the depth of their braces.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    let mut index = 0;
    while index < tokens.len() {
        match word(index) {
            "{" => {
                depth += 1;
                if index >= 2 && word(index - 2) == "mod" {
                    inline.push((word(index - 1).to_owned(), depth));
                }
            }
            "}" => {
                if inline.last().is_some_and(|(_, opened)| *opened == depth) {
                    inline.pop();
                }
                depth -= 1;
            }
            start @ ("crate" | "self" | "super") if word(index + 1) == "::" => {
                let mut base: Vec<String> = module.to_vec();
                base.extend(inline.iter().map(|(name, _)| name.clone()));
                if start == "crate" {
                    base.clear();
                } else if start == "super" {
                    base.pop();
                }
                index += 2;
                while word(index) == "super" && word(index + 1) == "::" {
                    base.pop();
                    index += 2;
                }
                for (at, first) in first_names(&tokens, index) {
                    found.push((at, [base.clone(), vec![first]].concat()));
                }
                continue;
            }
            _ => {}
        }
        index += 1;
    }
    found
}

/// The name at `index`, or of `{a::b, c::{d}}` the names `a` and `c`.
fn first_names(tokens: &[(usize, String)], index: usize) -> Vec<(usize, String)> {
    let is_name = |token: &str| token.starts_with(|char: char| char.is_alphabetic() || char == '_');
    let Some((_, token)) = tokens.get(index) else { return Vec::new() };
    if token != "{" {
        return Some(tokens[index].clone()).filter(|(_, token)| is_name(token)).into_iter().collect();
    }
    let (mut names, mut depth, mut is_first) = (Vec::new(), 0, false);
    for (line, token) in &tokens[index..] {
        match token.as_str() {
            "{" => {
                depth += 1;
                is_first = depth == 1;
            }
            "}" => depth -= 1,
            "," => is_first = depth == 1,
            name => {
                if is_first && is_name(name) {
                    names.push((*line, name.to_owned()));
                }
                is_first = false;
            }
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Identifiers, `::` and punctuation with their lines; comments, strings and characters are left
/// out.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    let mut tokens = Vec::new();
    let (mut index, mut line) = (0, 1);
    while index < chars.len() {
        let start = index;
        match at(index) {
            '/' if at(index + 1) == '/' => {
                while index < chars.len() && at(index) != '\n' {
                    index += 1;
                }
            }
            '/' if at(index + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(index), at(index + 1)) {
                        ('/', '*') => {
                            depth += 1;
                            index += 2;
                        }
                        ('*', '/') => {
                            depth -= 1;
                            index += 2;
                        }
                        _ => index += 1,
                    }
                    if depth == 0 || index >= chars.len() {
                        break;
                    }
                }
            }
            '"' => index = string_end(&chars, index),
            '\'' => {
                // A character, or a lifetime: its quote alone is dropped.
                index += match (at(index + 1), at(index + 2)) {
                    ('\\', _) => 1 + chars[index + 3..].iter().position(|char| *char == '\'').unwrap_or(0) + 3,
                    (_, '\'') => 3,
                    _ => 1,
                };
            }
            char if is_word(char) => {
                while is_word(at(index)) {
                    index += 1;
                }
                let word: String = chars[start..index].iter().collect();
                match (word.as_str(), at(index)) {
                    ("r" | "br" | "cr", '"' | '#') if raw_string_end(&chars, index).is_some() => {
                        index = raw_string_end(&chars, index).unwrap();
                    }
                    ("b" | "c", '"') | ("b", '\'') => {}
                    _ => tokens.push((line, word)),
                }
            }
            ':' if at(index + 1) == ':' => {
                index += 2;
                tokens.push((line, "::".to_owned()));
            }
            char => {
                index += 1;
                if !char.is_whitespace() {
                    tokens.push((line, char.to_string()));
                }
            }
        }
        index = index.max(start + 1).min(chars.len());
        line += chars[start..index].iter().filter(|char| **char == '\n').count();
    }
    tokens
}

/// The index after a string that starts at `start`.
fn string_end(chars: &[char], start: usize) -> usize {
    let mut index = start + 1;
    while index < chars.len() && chars[index] != '"' {
        index += if chars[index] == '\\' { 2 } else { 1 };
    }
    index + 1
}

/// The index after a raw string whose hashes, if any, start at `start`.
fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start..].iter().take_while(|char| **char == '#').count();
    let body = start + hashes;
    (chars.get(body) == Some(&'"')).then_some(())?;
    let closes = |index: &usize| chars[*index] == '"' && chars[index + 1..].iter().take(hashes).all(|c| *c == '#');
    (body + 1..chars.len()).find(closes).map(|end| end + 1 + hashes)
}

fn no_head(text: &str) -> Complaints {
    if text.starts_with("//! ") { Vec::new() } else { vec!["begins without a `//!` that says what it is".into()] }
}

fn too_long(text: &str) -> Complaints {
    let lines = text.lines().count();
    if lines <= MAX_LINES { Vec::new() } else { vec![format!("{lines} lines; {MAX_LINES} are the limit: split it")] }
}

fn has_unsafe(text: &str) -> Complaints {
    let is_unsafe = |(_, token): &&(usize, String)| token == "unsafe" || token == "unsafe_code";
    tokens(text)
        .iter()
        .filter(is_unsafe)
        .map(|(line, token)| format!("line {line}: `{token}` outside sys.rs"))
        .collect()
}

/// One that gives up is `sys::open_beneath`'s to call again.
fn has_openat2(text: &str) -> Complaints {
    let calls = tokens(text).into_iter().filter(|(_, token)| token == "openat2");
    calls.map(|(line, token)| format!("line {line}: `{token}` outside sys.rs")).collect()
}

/// Sockets of this machine are no network: agents of ssh are at such.
fn has_sockets(text: &str, may_be_local: bool) -> Complaints {
    let is_socket = |(_, token): &&(usize, String)| match token.as_str() {
        "ureq" | "TcpStream" | "TcpListener" | "UdpSocket" => true,
        "UnixStream" | "UnixListener" => !may_be_local,
        _ => false,
    };
    let complain = |(line, token): &(usize, String)| format!("line {line}: `{token}` outside registry");
    tokens(text).iter().filter(is_socket).map(complain).collect()
}

fn vague_name(path: &Path) -> Complaints {
    let vague = ["util", "utils", "common", "helper", "helpers", "misc", "manager", "shared"];
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    let is_code = path.extension().is_some_and(|name| name == "rs");
    let words = |name: &str| stem.split(['_', '-', '.']).any(|word| word == name);
    let found = vague.into_iter().filter(|name| is_code && words(name));
    found.map(|name| format!("`{name}` names nothing: what is in it?")).collect()
}

/// Paths of a developer's machine, and hosts of registries: tests and examples need neither. The
/// default registry, which the language itself knows, is no such host.
fn foreign_names(text: &str) -> Complaints {
    // Spelt in pieces, so that this file is clean.
    let places = [
        ["/wo", "rk/wt-"],
        ["/wo", "rk/main"],
        ["/wo", "rk/shared"],
        ["/tmp/", "w/"],
        ["ghcr", ".io"],
        ["quay", ".io"],
        ["gcr", ".io"],
        ["registry.k8s", ".io"],
        ["mcr.micro", "soft.com"],
        ["public.ecr", ".aws"],
        ["registry-1.", "docker.io"],
        ["hub.", "docker.com"],
    ];
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for place in places.map(|pieces| pieces.concat()) {
            let is_there = line.match_indices(&place).any(|(at, _)| {
                // `a/work/b` is a relative path.
                let before = line[..at].chars().next_back();
                !place.starts_with('/') || before.is_none_or(|char| !(char.is_alphanumeric() || "._-}".contains(char)))
            });
            if is_there {
                complaints.push(format!("line {}: mentions `{place}`", index + 1));
            }
        }
    }
    complaints
}

fn no_unreleased(changelog: &str) -> Complaints {
    let has_section = changelog.lines().any(|line| line == "## [Unreleased]");
    if has_section { Vec::new() } else { vec!["no `## [Unreleased]` section".into()] }
}

/// Each rule against text that breaks it and text that does not.
mod rules {
    use super::*;

    fn order() -> Vec<String> {
        module_order("//! x\npub mod low;\npub mod mid;\npub mod high;\nmod private;\n")
    }

    #[test]
    fn order_is_read_from_lib() {
        assert_eq!(order(), ["low", "mid", "high"]);
    }

    #[test]
    fn paths_of_files() {
        let paths = ["src/a.rs", "src/a/mod.rs", "src/a/b.rs", "src/a/b/mod.rs", "src/lib.rs", "src/main.rs"];
        let modules = paths.map(|path| module_path(path.as_ref()).join("::"));
        assert_eq!(modules, ["a", "a", "a::b", "a::b", "", ""]);
    }

    #[test]
    fn reaching_down_is_found() {
        for (module, text) in [
            (&["mid"][..], "use crate::high::Thing;"),
            (&["mid"], "use crate::{low::A, high::B};"),
            (&["mid"], "use crate::{\n    low::{A, B},\n    high,\n};"),
            (&["mid"], "fn f() -> crate::high::Thing { todo!() }"),
            (&["mid"], "use super::high::Thing;"),
            (&["mid", "part"], "use super::super::high;"),
            (&["mid"], "mod tests { use super::super::high; }"),
            (&["mid"], "mod a { fn x() {} }\nuse super::high;"),
            (&["mid"], "const C: char = '\"'; use crate::high; const D: char = '\"';"),
            (&["mid"], "const S: &str = r#\"a\"b\"#; use crate::high;"),
            (&["mid"], "fn f<'a>(x: &'a str) { crate::high::g::<'a>(x) }"),
            (&["elsewhere"], ""),
        ] {
            let module: Vec<_> = module.iter().map(ToString::to_string).collect();
            assert_eq!(reaches_down(&order(), &module, text).len(), 1, "{text}");
        }
    }

    #[test]
    fn reaching_up_or_within_is_not() {
        for (module, text) in [
            (&["mid"][..], "use crate::low::{high, A}; use crate::mid::x;"),
            (&["mid", "part"], "use super::high;"),
            (&["mid"], "mod tests { use super::high; }"),
            (&["mid"], "mod high;\nuse self::high::A;"),
            (&["mid"], "// crate::high\n/* crate::high /* crate::high */ */\n/// [`crate::high`]\nfn f() {}"),
            (&["mid"], "const A: &str = \"crate::high\"; const B: &str = r#\"\"crate::high\"\"#;"),
            (&["mid"], "use crate::Result;"),
        ] {
            let module: Vec<_> = module.iter().map(ToString::to_string).collect();
            assert_eq!(reaches_down(&order(), &module, text), Complaints::new(), "{text}");
        }
    }

    #[test]
    fn complaints_name_the_line() {
        let text = "/*\n*/\n\"\n\";\nuse crate::high;";
        assert!(reaches_down(&order(), &["mid".to_owned()], text)[0].starts_with("line 5: "));
    }

    #[test]
    fn heads_and_lengths() {
        assert_eq!(no_head("use std::fs;\n").len(), 1);
        assert_eq!(no_head("//! A thing.\n").len(), 0);
        assert_eq!(too_long(&"x\n".repeat(MAX_LINES + 1)).len(), 1);
        assert_eq!(too_long(&"x\n".repeat(MAX_LINES)).len(), 0);
    }

    #[test]
    fn unsafe_blocks_and_permissions() {
        assert_eq!(has_unsafe("fn f() { unsafe { g() } }").len(), 1);
        assert_eq!(has_unsafe("#![allow(unsafe_code)]").len(), 1);
        assert_eq!(has_unsafe("// unsafe\nfn f() { say(\"unsafe\") }").len(), 0);
    }

    #[test]
    fn sockets() {
        assert_eq!(has_sockets("use std::net::{IpAddr, TcpStream};", true).len(), 1);
        assert_eq!(has_sockets("let agent = ureq::agent();", true).len(), 1);
        assert_eq!(has_sockets("use std::net::IpAddr; // TcpStream", false).len(), 0);
        assert_eq!(has_sockets("use std::os::unix::net::UnixStream;", false).len(), 1);
        assert_eq!(has_sockets("use std::os::unix::net::UnixStream;", true).len(), 0);
    }

    #[test]
    fn names_of_files() {
        for name in ["src/util.rs", "src/a/tar_utils.rs", "tests/it/common.rs", "src/helpers.rs"] {
            assert_eq!(vague_name(name.as_ref()).len(), 1, "{name}");
        }
        for name in ["src/whiteout.rs", "src/commoner.rs", "testdata/build/common/x"] {
            assert_eq!(vague_name(name.as_ref()).len(), 0, "{name}");
        }
    }

    #[test]
    fn places_and_hosts() {
        for text in [["see /wo", "rk/shared/x"], ["`/wo", "rk/main`"], ["FROM ghcr", ".io/x/y"], ["/tmp/", "w/a"]] {
            assert_eq!(foreign_names(&text.concat()).len(), 1, "{}", text.concat());
        }
        for text in ["docker.io/library/busybox", "a/work/main", "${root}/work/main", "/work/x", "registry.test/x"] {
            assert_eq!(foreign_names(text).len(), 0, "{text}");
        }
    }

    #[test]
    fn changelogs() {
        assert_eq!(no_unreleased("# Changelog\n\n## [0.1.0]\n").len(), 1);
        assert_eq!(no_unreleased("# Changelog\n\n## [Unreleased]\n").len(), 0);
    }
}
