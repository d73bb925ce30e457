//! Selections of small trees made in a temporary directory.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};

use super::*;
use crate::digest::Digest;

/// A tree from words: `a/b=content`, `link->target`, `dir/`, `fifo|`, `socket!`, `hard=>other`.
fn plant(root: &Path, words: &str) {
    for word in words.split_whitespace() {
        let path = |name: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        if let Some((name, target)) = word.split_once("->") {
            symlink(target, path(name)).unwrap();
        } else if let Some((name, other)) = word.split_once("=>") {
            fs::hard_link(root.join(other), path(name)).unwrap();
        } else if let Some((name, content)) = word.split_once('=') {
            fs::write(path(name), content).unwrap();
        } else if let Some(name) = word.strip_suffix('/') {
            fs::create_dir_all(path(name)).unwrap();
        } else if let Some(name) = word.strip_suffix('|') {
            rustix::fs::mknodat(CWD, path(name), FileType::Fifo, Mode::from(0o644), 0).unwrap();
        } else if let Some(name) = word.strip_suffix('!') {
            rustix::fs::mknodat(CWD, path(name), FileType::Socket, Mode::from(0o644), 0).unwrap();
        } else {
            panic!("`{word}` is no kind of file");
        }
    }
}

fn tree(root: &Path, ignore: Option<&[u8]>) -> Tree {
    let ignore = ignore.map(|text| IgnoreRules::parse(".dockerignore", text).unwrap());
    Tree { name: "ctx".to_owned(), ..Tree::open(root, ignore).unwrap() }
}

fn request<'a>(sources: &[&'a str], form: Form) -> Request<'a> {
    Request { sources: sources.to_vec(), form, excludes: &[], threads: 1 }
}

/// Each selection on a line: its name, then its entries as `land<path` with `ls -F`'s marks.
fn show(listing: &Listing) -> String {
    let mut text = String::new();
    for selection in &listing.selections {
        text += &String::from_utf8_lossy(&selection.name);
        text.push(':');
        for entry in &selection.entries {
            let land = String::from_utf8_lossy(&entry.land);
            let path = String::from_utf8_lossy(&entry.path);
            text += " ";
            text += if land.is_empty() { "." } else { &land };
            if path != land {
                text += "<";
                text += &path;
            }
            text += match &entry.kind {
                EntryKind::File { .. } => "",
                EntryKind::Directory => "/",
                EntryKind::Symlink { .. } => "@",
                EntryKind::Fifo => "|",
                EntryKind::Socket => "=",
                EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } => "%",
            };
        }
        text.push('\n');
    }
    if text.is_empty() { "nothing\n".to_owned() } else { text }
}

fn show_error(error: &SelectError) -> String {
    let diagnostic = &error.diagnostic;
    let mut text = format!("{:?}: {}\n", error.blame, diagnostic.message);
    if let Some(cause) = &diagnostic.cause {
        text += &format!("  because {cause}\n");
    }
    for hint in &diagnostic.hints {
        text += &format!("  hint: {hint}\n");
    }
    text
}

/// One case of `testdata/select/cases.txt`; the answer is what the selection shows.
fn answer(question: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let (mut ignore, mut excludes) = (None, Vec::new());
    let mut answer = String::new();
    for line in question {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let form = match word {
            "tree" => {
                plant(directory.path(), rest);
                continue;
            }
            "ignore" => {
                ignore = Some(rest.replace("\\n", "\n"));
                continue;
            }
            "exclude" => {
                excludes.push(rest.to_owned());
                continue;
            }
            "copy" => Form::Wildcard,
            "parents" => Form::Parents,
            "mount" => Form::Literal,
            _ => panic!("{line}"),
        };
        let tree = tree(directory.path(), ignore.as_ref().map(String::as_bytes));
        let request = Request { excludes: &excludes, ..request(&rest.split(' ').collect::<Vec<_>>(), form) };
        answer += &select(&tree, &request, None).map_or_else(|error| show_error(&error), |listing| show(&listing));
    }
    answer
}

/// The file is cases with a blank line between: `# name`, lines that ask, `>`-lines that answer.
#[test]
fn selections() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/select/cases.txt");
    let text = fs::read_to_string(path).unwrap();
    let mut actual = Vec::new();
    for case in text.trim_end().split("\n\n") {
        let question: Vec<&str> = case.lines().filter(|line| !line.starts_with('>')).collect();
        let (name, asked) = question.split_first().unwrap();
        assert!(name.starts_with("# "), "{case}");
        let mut lines: Vec<String> = question.iter().map(ToString::to_string).collect();
        lines.extend(answer(asked).lines().map(|line| format!("> {line}")));
        actual.push(lines.join("\n"));
    }
    let actual = actual.join("\n\n") + "\n";
    #[expect(clippy::disallowed_methods, reason = "tests are told to rewrite their goldens")]
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, &actual).unwrap();
        return;
    }
    for (actual, expected) in actual.split("\n\n").zip(text.split("\n\n")) {
        assert_eq!(actual.trim_end(), expected.trim_end());
    }
}

/// What BuildKit copies with `COPY .` of contexts with an ignore file.
#[test]
fn whole_contexts_look_as_in_buildkit() {
    for line in include_str!("../../testdata/ignore/context.jsonl").lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let texts = |key: &str| -> Vec<String> {
            case[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let directory = tempfile::tempdir().unwrap();
        for file in texts("files") {
            let path = directory.path().join(&file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &file).unwrap();
        }
        let tree = tree(directory.path(), Some(case["ignore"].as_str().unwrap().as_bytes()));
        let listing = select(&tree, &request(&["."], Form::Wildcard), None).unwrap();
        let entries = &listing.selections[0].entries[1..];
        let mut visible: Vec<&str> = entries.iter().map(|entry| str::from_utf8(&entry.land).unwrap()).collect();
        visible.sort_unstable();
        assert_eq!(visible, texts("visible"), "{}", case["case"]);
    }
}

#[test]
fn what_an_entry_says() {
    let directory = tempfile::tempdir().unwrap();
    plant(directory.path(), "d/f=content d/g=>d/f d/l->../nowhere");
    let file = fs::File::open(directory.path().join("d/f")).unwrap();
    rustix::fs::fchmod(&file, Mode::from(0o4640)).unwrap();
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 2 },
        last_modification: rustix::fs::Timespec { tv_sec: 1_000_000_007, tv_nsec: 123_456_789 },
    };
    rustix::fs::futimens(&file, &times).unwrap();
    let has_xattrs = rustix::fs::fsetxattr(&file, "user.note", b"\0x", rustix::fs::XattrFlags::empty()).is_ok();
    let tree = tree(directory.path(), None);
    let listing = select(&tree, &request(&["d"], Form::Wildcard), None).unwrap();
    let [directory, file, other, link] = listing.selections[0].entries.as_slice() else {
        panic!("{listing:?}");
    };
    assert_eq!(directory.kind, EntryKind::Directory);
    assert_eq!(file.kind, EntryKind::File { size_bytes: 7, digest: Digest::of(b"content") });
    assert_eq!((file.mode, file.uid, file.gid, file.mtime), (0o4640, 0, 0, (1_000_000_007, 123_456_789)));
    assert_eq!(file.xattrs.is_empty(), !has_xattrs);
    assert!(file.link_group.is_some());
    assert_eq!(file.link_group, other.link_group);
    assert_eq!(link.kind, EntryKind::Symlink { target: b"../nowhere".to_vec() });
}

#[test]
fn names_need_not_be_text() {
    let directory = tempfile::tempdir().unwrap();
    for name in [&b"a\xff.c"[..], b"b.c", b"new\nline.c", b"\xfe.h"] {
        fs::write(directory.path().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    let tree = tree(directory.path(), Some(b"b.*"));
    let listing = select(&tree, &request(&["*.c"], Form::Wildcard), None).unwrap();
    let names: Vec<&[u8]> = listing.selections.iter().map(|selection| selection.name.as_slice()).collect();
    assert_eq!(names, [&b"a\xff.c"[..], b"new\nline.c"]);
}
