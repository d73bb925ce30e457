//! Selections of small trees made in a temporary directory.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};

use super::*;
use crate::digest::Digest;

/// A tree from words: `a/b=content`, `link->target`, `dir/`, `fifo|`, `socket!`, `hard=>other`.
pub(super) fn plant(root: &Path, words: &str) {
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

pub(super) fn tree(root: &Path, ignore: Option<&[u8]>) -> Tree {
    let ignore = ignore.map(|text| IgnoreRules::parse(".dockerignore", text).unwrap());
    Tree { name: "ctx".to_owned(), ..Tree::open(root, ignore).unwrap() }
}

pub(super) fn request<'a>(sources: &[&'a str], form: Form) -> Request<'a> {
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
                EntryKind::File { .. } | EntryKind::Unread { .. } => "",
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
        let index = HashIndex::new(LATER);
        let listing = select(&tree, &request, Some(&index));
        match &listing {
            Ok(listing) => {
                assert_eq!(digest(&tree, &request, &index), Ok(Some(listing.digest())), "{rest}");
                assert_eq!(summarized(&tree, &request, &index), Some(listing.digest()), "{rest}");
            }
            Err(error) => assert_eq!(digest(&tree, &request, &index).as_ref(), Err(error), "{rest}"),
        }
        answer += &listing.map_or_else(|error| show_error(&error), |listing| show(&listing));
    }
    answer
}

/// The digest by the summaries of an index alone: what it knows of files is torn.
pub(super) fn summarized(tree: &Tree, request: &Request<'_>, index: &HashIndex) -> Option<Digest> {
    let mut bytes = index.to_bytes().unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    digest(tree, request, &HashIndex::from_bytes(bytes, LATER)).unwrap()
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
    let mut capability = vec![1, 0, 0, 2];
    capability.resize(20, 0);
    // Not every file system has them, and only root may set the first.
    let candidates =
        [("security.capability", capability.as_slice()), ("user.note", b"\0x"), ("user.overlay.opaque", b"y")];
    let mut expected = Vec::new();
    for (name, value) in candidates {
        let is_set = rustix::fs::fsetxattr(&file, name, value, rustix::fs::XattrFlags::empty()).is_ok();
        if is_set && name != "user.overlay.opaque" {
            expected.push((name.as_bytes().to_vec(), value.to_vec()));
        }
    }
    let tree = tree(directory.path(), None);
    let listing = select(&tree, &request(&["d"], Form::Wildcard), None).unwrap();
    let [directory, file, other, link] = listing.selections[0].entries.as_slice() else {
        panic!("{listing:?}");
    };
    assert_eq!(directory.kind, EntryKind::Directory);
    assert_eq!(file.kind, EntryKind::File { size_bytes: 7, digest: Digest::of(b"content") });
    assert_eq!((file.mode, file.uid, file.gid, file.mtime), (0o4640, 0, 0, (1_000_000_007, 123_456_789)));
    assert_eq!(file.xattrs, expected);
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

/// A tree of `directories` × `files` and its listing's lines with one and with several threads.
#[test]
fn the_listing_depends_on_neither_threads_nor_directory_order() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names: Vec<(String, String)> = (0..800)
        .map(|number| {
            (format!("d{}/e{}/f{number}", number % 7, number % 11), format!("{}", number % 100).repeat(number % 50))
        })
        .chain((0..700).map(|number| (format!("flat/f{number}"), "x".to_owned())))
        .collect();
    for (name, content) in &names {
        plant(one.path(), &format!("{name}={content}"));
    }
    for (name, content) in names.iter().rev() {
        plant(other.path(), &format!("{name}={content}"));
    }
    let lines = |root: &Path, threads: usize| {
        let request = Request { threads, ..request(&["."], Form::Wildcard) };
        let tree = tree(root, None);
        let index = HashIndex::new(LATER);
        let listing = select(&tree, &request, Some(&index)).unwrap();
        // Now that all files are known, the digest alone is the same.
        assert_eq!(digest(&tree, &request, &index), Ok(Some(listing.digest())));
        for threads in [1, threads] {
            assert_eq!(summarized(&tree, &Request { threads, ..request.clone() }, &index), Some(listing.digest()));
        }
        listing.lines()
    };
    let expected = lines(one.path(), 1);
    assert_eq!(expected.len(), 1 + 7 + 77 + 800 + 1 + 700);
    for threads in [2, 3, 8] {
        assert!(lines(one.path(), threads) == expected);
    }
    assert!(lines(other.path(), 2) == expected);
    let paths: Vec<Vec<&[u8]>> = expected
        .iter()
        .skip(1)
        .map(|line| line.split(|b| *b == 0).next().unwrap().split(|b| *b == b'/').collect())
        .collect();
    assert!(paths.is_sorted());
}

/// It is deeper than what a walk keeps open, and its paths are longer than a system call takes.
#[test]
fn a_tree_may_be_deeper_than_a_path_is_long() {
    const DEPTH: usize = 120;
    let directory = tempfile::tempdir().unwrap();
    let name = "n".repeat(200);
    let mut fd = rustix::fs::open(directory.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&fd, &name, Mode::from(0o755)).unwrap();
        // What comes after the long way down needs the directories above to be found again.
        let file = rustix::fs::openat(&fd, "z", OFlags::CREATE | OFlags::WRONLY, Mode::from(0o644)).unwrap();
        rustix::io::write(&file, b"z").unwrap();
        fd = rustix::fs::openat(&fd, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let tree = tree(directory.path(), Some(b"**/y"));
    for threads in [1, 2] {
        let request = Request { threads, ..request(&["."], Form::Wildcard) };
        let index = HashIndex::new(LATER);
        let listing = select(&tree, &request, Some(&index)).unwrap();
        assert_eq!(digest(&tree, &request, &index), Ok(Some(listing.digest())));
        assert_eq!(summarized(&tree, &request, &index), Some(listing.digest()));
        let entries = &listing.selections[0].entries;
        assert_eq!(entries.len(), 1 + 2 * DEPTH);
        assert_eq!(entries[DEPTH].path.len(), DEPTH * 201 - 1);
        let files = entries[DEPTH + 1..].iter();
        let expected = EntryKind::File { size_bytes: 1, digest: Digest::of(b"z") };
        assert!(files.clone().all(|entry| entry.kind == expected && entry.path.ends_with(b"z")));
        assert!(files.map(|entry| entry.path.len()).is_sorted_by(|deep, high| deep > high));
    }
}

/// While a directory keeps turning into a link that leads outside, and back, nothing from outside
/// is ever listed: what cannot be read as it was is an error.
#[test]
fn a_link_swapped_in_leads_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    plant(directory.path(), "ctx/swap/sub/f=inside ctx/file=inside outside/sub/f=secret outside/sub/more=secret");
    let context = directory.path().join("ctx");
    symlink(directory.path().join("outside"), context.join("spare")).unwrap();
    symlink(directory.path().join("outside/sub/f"), context.join("spare-file")).unwrap();
    let tree = tree(&context, Some(b"spare*"));
    let root = rustix::fs::open(&context, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut listed = 0;
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    while_doing(
        || {
            rustix::fs::renameat_with(&root, "swap", &root, "spare", exchange).unwrap();
            rustix::fs::renameat_with(&root, "file", &root, "spare-file", exchange).unwrap();
        },
        || {
            for form in [Form::Wildcard, Form::Parents].repeat(750) {
                for source in [".", "swap/sub", "s*/sub", "swap/sub/f", "file"] {
                    let Ok(listing) = select(&tree, &request(&[source], form), None) else { continue };
                    for entry in listing.selections.iter().flat_map(|selection| &selection.entries) {
                        if let EntryKind::File { digest, .. } = &entry.kind {
                            assert_eq!(*digest, Digest::of(b"inside"), "{source}");
                            listed += 1;
                        }
                    }
                }
            }
        },
    );
    assert!(listed > 0);
}

/// Does one thing over and over on another thread while `work` lasts, also when that fails.
fn while_doing(disturb: impl Fn() + Sync, work: impl FnOnce()) {
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Done(&is_done);
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                disturb();
            }
        });
        work();
    });
}

/// Random trees under random rules: what is listed is what the rules, asked about each path alone,
/// do not hide, and the directories above that.
#[test]
fn a_walk_shows_what_the_rules_do_not_hide() {
    const NAMES: [&str; 4] = ["a", "b", "ab", "c.o"];
    const WORDS: [&str; 9] = ["a", "b", "*", "**", "a*", "*.o", "?", "[ab]", "c.o"];
    let mut random = 7_u64;
    let mut next = |bound: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    for round in 0..25 {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..12 {
            let depth = 1 + next(4);
            let path = (0..depth).map(|_| NAMES[next(4)]).collect::<Vec<_>>().join("/");
            // What is there already, of another kind, stays.
            if next(4) == 0 {
                _ = fs::create_dir_all(directory.path().join(path));
            } else if fs::create_dir_all(directory.path().join(&path).parent().unwrap()).is_ok() {
                _ = fs::write(directory.path().join(path), "x");
            }
        }
        let mut all = Vec::new();
        all_paths(directory.path(), "", &mut all);
        for _ in 0..10 {
            let mut rules = |exceptions: bool| -> Vec<String> {
                (0..next(5))
                    .map(|_| {
                        let exclamation = if exceptions && next(2) == 0 { "!" } else { "" };
                        let depth = 1 + next(3);
                        exclamation.to_owned() + &(0..depth).map(|_| WORDS[next(9)]).collect::<Vec<_>>().join("/")
                    })
                    .collect()
            };
            let (ignore, excludes) = (rules(true), rules(round % 2 == 0));
            let ignore = ignore.join("\n");
            let tree = tree(directory.path(), Some(ignore.as_bytes()));
            let exclude = IgnoreRules::from_patterns(&excludes).unwrap();

            // A directory is there if it is not hidden or something in it is there.
            let keep = |among: &[(String, bool)], rules: &IgnoreRules| -> Vec<(String, bool)> {
                let shown: Vec<&String> =
                    among.iter().map(|(path, _)| path).filter(|path| !rules.is_ignored(path.as_bytes())).collect();
                let is_kept = |(path, is_directory): &&(String, bool)| {
                    shown.contains(&path)
                        || (*is_directory && shown.iter().any(|shown| shown.starts_with(&format!("{path}/"))))
                };
                among.iter().filter(is_kept).cloned().collect()
            };
            let expected = keep(&keep(&all, tree.ignore.as_ref().unwrap()), &exclude);
            let request = Request { excludes: &excludes, ..request(&["."], Form::Wildcard) };
            let index = HashIndex::new(LATER);
            let listing = select(&tree, &request, Some(&index)).unwrap();
            assert_eq!(digest(&tree, &request, &index), Ok(Some(listing.digest())));
            assert_eq!(summarized(&tree, &request, &index), Some(listing.digest()));
            let actual: Vec<(String, bool)> = listing.selections[0].entries[1..]
                .iter()
                .map(|entry| (String::from_utf8(entry.land.clone()).unwrap(), entry.kind == EntryKind::Directory))
                .collect();
            assert_eq!(actual, expected, "ignore {ignore:?} exclude {excludes:?} all {all:?}");

            // Whatever changes, a summary is of what is there.
            let (path, is_directory) = &all[next(all.len())];
            let path = directory.path().join(path);
            match next(4) {
                0 => drop(fs::set_permissions(&path, fs::Permissions::from_mode(0o700 + next(8) as u32))),
                1 if *is_directory => drop(fs::write(path.join("a"), format!("{round}"))),
                1 => drop(fs::write(&path, "other")),
                2 => drop(fs::rename(&path, path.with_file_name("ab"))),
                _ if *is_directory => drop(fs::remove_dir_all(&path)),
                _ => drop(fs::remove_file(&path)),
            }
            let expected = select(&tree, &request, None).unwrap().digest();
            let found = digest(&tree, &request, &index).unwrap();
            assert!(found.is_none_or(|found| found == expected), "{path:?} ignore {ignore:?} exclude {excludes:?}");
            all.clear();
            all_paths(directory.path(), "", &mut all);
            if all.is_empty() {
                break;
            }
        }
    }
}

/// Paths and whether they are directories, sorted by name, parents first.
fn all_paths(root: &Path, below: &str, all: &mut Vec<(String, bool)>) {
    let mut names: Vec<_> = fs::read_dir(root.join(below)).unwrap().map(|entry| entry.unwrap()).collect();
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let name = entry.file_name().into_string().unwrap();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let is_directory = entry.file_type().unwrap().is_dir();
        all.push((path.clone(), is_directory));
        if is_directory {
            all_paths(root, &path, all);
        }
    }
}

/// The file system stamps files with the real time, so the time of the build is set years ahead.
pub(super) const LATER: i64 = 1 << 40;

#[test]
fn a_file_is_read_again_only_when_it_has_changed() {
    let directory = tempfile::tempdir().unwrap();
    plant(directory.path(), "f=one x=one");
    let xattr = rustix::fs::setxattr(directory.path().join("x"), "user.a", b"1", rustix::fs::XattrFlags::empty());
    let tree = tree(directory.path(), None);
    let request = request(&["."], Form::Wildcard);
    let select = |index: &HashIndex| select(&tree, &request, Some(index)).unwrap().lines();
    let first = HashIndex::new(LATER);
    let expected = select(&first);
    let saved = first.to_bytes().unwrap();

    // Nor is there a digest where a file would have to be read.
    assert_eq!(digest(&tree, &request, &HashIndex::new(LATER)), Ok(None));

    // Nothing is written the second time: every file was found.
    let second = HashIndex::from_bytes(saved.clone(), LATER);
    assert_eq!(select(&second), expected);
    assert_eq!(second.to_bytes(), None);

    // The index is believed: with other digests in it, they are what is listed.
    let lying = HashIndex::new(LATER);
    for name in ["f", "x"] {
        let key = facts::Facts::of(tree.root(), name).unwrap().key;
        let digest = Digest::of(b"a lie");
        lying.insert(key, index::Remembered { digest, has_xattrs: name == "x" });
    }
    let lines = select(&lying);
    let text = String::from_utf8_lossy(&lines.concat()).into_owned();
    assert_eq!(text.matches(&Digest::of(b"a lie").hex()).count(), 2);
    assert_eq!(text.contains("user.a=31"), xattr.is_ok());

    // A change that leaves size and mtime as they were.
    let path = directory.path().join("f");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "two").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    let third = HashIndex::from_bytes(saved, LATER);
    let changes = diff(&expected, &select(&third));
    assert_eq!(changes.iter().map(|change| change.path.as_slice()).collect::<Vec<_>>(), [b"f"]);
    assert!(third.to_bytes().is_some());
}

/// What is left unread is what a listing has to be completed with, and remembered if it is what was met.
#[test]
fn a_survey_is_a_listing_once_its_files_are_read() {
    let directory = tempfile::tempdir().unwrap();
    plant(directory.path(), "d/f=one d/g=two x=three known=four");
    fs::hard_link(directory.path().join("d/f"), directory.path().join("d/link")).unwrap();
    let _ = rustix::fs::setxattr(directory.path().join("x"), "user.a", b"1", rustix::fs::XattrFlags::empty());
    let tree = tree(directory.path(), None);
    let all = request(&["."], Form::Wildcard);
    let expected = select(&tree, &all, None).unwrap();
    let index = HashIndex::new(LATER);
    select(&tree, &request(&["known"], Form::Wildcard), Some(&index)).unwrap();

    // Two links are one file, and one that is remembered is none.
    let survey = || survey(&tree, &all, Some(&index)).unwrap();
    let mut first = survey();
    assert_eq!(first.unread.len(), 3);
    first.read(&tree, None, Some(&[1]), 1).unwrap();
    assert_ne!(first.listing, expected);
    first.read(&tree, None, None, 2).unwrap();
    assert_eq!(first.listing, expected);

    let learned = |is_as_listed| {
        let mut survey = survey();
        let unread = survey.unread.len();
        let read = |number| {
            let digest = Digest::of(format!("of {number}").as_bytes());
            Read { number, digest, xattrs: Vec::new(), is_as_listed }
        };
        survey.learn((0..unread).map(read).collect(), Some(&index));
        let lines = survey.listing.lines().concat();
        let text = String::from_utf8_lossy(&lines).into_owned();
        assert_eq!(text.matches(&Digest::of(b"of 0").hex()).count(), 2);
        unread
    };
    assert_eq!([learned(false), learned(true), learned(true)], [3, 3, 0]);
}

/// Files that are as young as the build are hashed each time, however often they are looked at.
#[test]
fn an_edit_in_the_same_tick_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    let tree = tree(directory.path(), None);
    plant(directory.path(), "f=0");
    let index = HashIndex::new(facts::Facts::of(tree.root(), "f").unwrap().key.ctime.0);
    for round in 0..200 {
        let content = format!("{:03}", round % 7);
        fs::write(&path, &content).unwrap();
        let listing = select(&tree, &request(&["f"], Form::Wildcard), Some(&index)).unwrap();
        let expected = EntryKind::File { size_bytes: 3, digest: Digest::of(content.as_bytes()) };
        assert_eq!(listing.selections[0].entries[0].kind, expected);
    }
    assert!(index.to_bytes().is_none(), "a young file was remembered");
}

#[test]
fn a_stage_keeps_its_owners_and_a_context_does_not() {
    let directory = tempfile::tempdir().unwrap();
    plant(directory.path(), "f=1");
    // Only root can give a file away; to anyone else their own uid tells the two apart.
    _ = std::os::unix::fs::chown(directory.path().join("f"), Some(1234), Some(5678));
    let stat = rustix::fs::stat(directory.path().join("f")).unwrap();
    let root = rustix::fs::open(directory.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let stage = Tree::of_root(root, "stage build");
    assert_eq!(stage.described(), "stage build");
    for (owner, tree) in [((stat.st_uid, stat.st_gid), stage), ((0, 0), tree(directory.path(), None))] {
        let listing = select(&tree, &request(&["f"], Form::Wildcard), None).unwrap();
        let entry = &listing.selections[0].entries[0];
        assert_eq!((entry.uid, entry.gid), owner);
    }
}

/// Files that come and go while a directory is listed are in the listing or not, and no error.
#[test]
fn what_vanishes_meanwhile_was_never_there() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..50 {
        plant(directory.path(), &format!("stays{number}=x"));
    }
    let tree = tree(directory.path(), None);
    while_doing(
        || {
            plant(directory.path(), "fleeting| brief/");
            fs::remove_file(directory.path().join("fleeting")).unwrap();
            fs::remove_dir(directory.path().join("brief")).unwrap();
        },
        || {
            for _ in 0..200 {
                let listing = select(&tree, &request(&["."], Form::Wildcard), None);
                let count = listing.map(|listing| listing.lines().len());
                assert!(count.as_ref().is_ok_and(|count| (51..=53).contains(count)), "{count:?}");
            }
        },
    );
}
