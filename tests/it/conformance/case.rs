//! The text of a case: what it is about, the files it needs, and what comes of it.

use std::iter::Peekable;
use std::str::Chars;

/// One file of `testdata/conformance/`.
#[derive(Debug, Default)]
pub struct Case {
    /// Why the image is not BuildKit's.
    pub differs: Option<String>,
    /// Options of `wythe build`.
    pub options: Vec<String>,
    /// By path beside the context.
    pub files: Vec<File>,
    pub buildkit: Option<String>,
    pub wythe: Option<String>,
    /// The text up to `=== wythe`.
    pub before: String,
}

#[derive(Debug)]
pub struct File {
    pub path: String,
    pub kind: Kind,
    pub mode: Option<u32>,
    pub owner: (u32, u32),
    pub mtime: Option<i64>,
    pub xattrs: Vec<(String, String)>,
}

#[derive(Debug)]
pub enum Kind {
    Regular(Vec<u8>),
    Directory,
    Link(String),
    HardLink(String),
    Fifo,
    Socket,
    Character(u32, u32),
    Block(u32, u32),
    /// A tar of files, and what compresses it.
    Tar(Vec<File>, String),
}

const MARK: &str = "=== ";

impl Case {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut case = Self::default();
        let (head, mut rest) = split_section(text);
        for line in head.lines() {
            if let Some(options) = line.strip_prefix("$ ") {
                case.options.extend(words(options)?);
            } else if let Some(reason) = line.strip_prefix("differs: ") {
                case.differs = Some(reason.to_owned());
            }
        }
        while let Some(section) = rest.strip_prefix(MARK) {
            let start = text.len() - rest.len();
            let (heading, after) = section.split_once('\n').ok_or("the last line is a heading")?;
            let (body, next) = split_section(after);
            rest = next;
            match heading {
                "buildkit" => case.buildkit = Some(body.to_owned()),
                "wythe" => {
                    case.wythe = Some(body.to_owned());
                    case.before = text[..start].to_owned();
                    if !rest.is_empty() {
                        return Err("something follows `=== wythe`".into());
                    }
                }
                _ => case.files.push(file(heading, body)?),
            }
        }
        if case.wythe.is_none() {
            case.before = text.to_owned();
        }
        Ok(case)
    }
}

/// The text before the next heading, and from it on.
fn split_section(text: &str) -> (&str, &str) {
    if text.starts_with(MARK) {
        return ("", text);
    }
    match text.find(&format!("\n{MARK}")) {
        Some(at) => text.split_at(at + 1),
        None => (text, ""),
    }
}

/// `PATH [MODE] [UID:GID] [@SECONDS] [+XATTR=VALUE] [KIND …]`; what stands between a heading and the next is the
/// content of a file.
fn file(heading: &str, body: &str) -> Result<File, String> {
    let wrong = |why: &str| format!("`{heading}`: {why}");
    let mut words = words(heading)?.into_iter();
    let path = words.next().ok_or_else(|| wrong("no path"))?;
    let mut file = File {
        kind: if path.ends_with('/') { Kind::Directory } else { Kind::Regular(body.into()) },
        path: path.trim_end_matches('/').to_owned(),
        mode: None,
        owner: (0, 0),
        mtime: None,
        xattrs: Vec::new(),
    };
    let pair = |text: &str| -> Option<(u32, u32)> {
        let (a, b) = text.split_once(':')?;
        Some((a.parse().ok()?, b.parse().ok()?))
    };
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| wrong("a word is missing"));
        match word.as_str() {
            "->" => file.kind = Kind::Link(next()?),
            "hardlink" => file.kind = Kind::HardLink(next()?),
            "fifo" => file.kind = Kind::Fifo,
            "socket" => file.kind = Kind::Socket,
            "char" | "block" => {
                let (major, minor) = pair(&next()?).ok_or_else(|| wrong("no device number"))?;
                file.kind = if word == "char" { Kind::Character(major, minor) } else { Kind::Block(major, minor) };
            }
            "escaped" => file.kind = Kind::Regular(unescape(body)?),
            "text" => file.kind = Kind::Regular(unescape(&next()?)?),
            "tar" => {
                let members = body.lines().map(|line| self::file(line, "")).collect::<Result<_, _>>()?;
                file.kind = Kind::Tar(members, words.next().unwrap_or_default());
            }
            _ if word.starts_with('@') => file.mtime = Some(word[1..].parse().map_err(|_| wrong("no time"))?),
            _ if word.starts_with('+') => {
                let (name, value) = word[1..].split_once('=').ok_or_else(|| wrong("an xattr has no value"))?;
                file.xattrs.push((name.to_owned(), value.to_owned()));
            }
            _ if word.len() == 4 && u32::from_str_radix(&word, 8).is_ok() => {
                file.mode = u32::from_str_radix(&word, 8).ok();
            }
            _ => file.owner = pair(&word).ok_or_else(|| wrong(&format!("what is `{word}`?")))?,
        }
    }
    Ok(file)
}

/// Words as a shell would split them, with no more than its single quotes.
fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '\'' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            ' ' if !is_quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if is_quoted { Err(format!("`{line}`: a quote is not closed")) } else { Ok(words) }
}

/// `\n`, `\r`, `\t`, `\\`, `\xff`, `\u{feff}`; `\*1000{x}` stands for a thousand of them, and a `\` at the end
/// of a line joins it to the next.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
            continue;
        }
        match chars.next().ok_or("a `\\` ends the text")? {
            '\n' => {}
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            '\\' => bytes.push(b'\\'),
            'x' => {
                let digits: String = chars.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).map_err(|error| error.to_string())?);
            }
            'u' => {
                let code = u32::from_str_radix(&braced(&mut chars), 16).map_err(|error| error.to_string())?;
                let c = char::from_u32(code).ok_or("no such character")?;
                bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
            }
            '*' => {
                let digits: String = std::iter::from_fn(|| chars.next_if(char::is_ascii_digit)).collect();
                let count = digits.parse().map_err(|_| "`\\*` needs a number")?;
                bytes.extend(unescape(&braced(&mut chars))?.repeat(count));
            }
            other => return Err(format!("what is `\\{other}`?")),
        }
    }
    Ok(bytes)
}

fn braced(chars: &mut Peekable<Chars<'_>>) -> String {
    chars.next_if_eq(&'{');
    chars.by_ref().take_while(|c| *c != '}').collect()
}

#[test]
fn a_case_is_read() {
    let text = "About.\n$ --target 'a b' --x=\n=== context/d/ 0750 5:6\n=== context/f @7 +user.a=b escaped\n\
                a\\r\n\\*3{\\x00}\\\n=== context/l -> t\n=== x.tar tar gz\na/ 0700\na/b text x\\n\n=== wythe\nimage\n";
    let case = Case::parse(text).unwrap();
    assert_eq!(case.options, ["--target", "a b", "--x="]);
    assert_eq!(case.wythe.as_deref(), Some("image\n"));
    assert!(case.before.ends_with("a/b text x\\n\n"));
    let [directory, file, link, tar] = &*case.files else { panic!("{case:?}") };
    assert!(matches!(directory.kind, Kind::Directory) && directory.mode == Some(0o750) && directory.owner == (5, 6));
    assert!(matches!(&file.kind, Kind::Regular(content) if content == b"a\r\n\0\0\0") && file.mtime == Some(7));
    assert_eq!(file.xattrs, [("user.a".to_owned(), "b".to_owned())]);
    assert!(matches!(&link.kind, Kind::Link(target) if target == "t"));
    let Kind::Tar(members, compression) = &tar.kind else { panic!("{tar:?}") };
    assert!(compression == "gz" && matches!(&members[1].kind, Kind::Regular(content) if content == b"x\n"));
    for wrong in ["=== f what\n", "=== f\n=== wythe\n=== g\n", "=== f 'x\n", "=== f escaped\n\\q\n"] {
        assert!(Case::parse(wrong).is_err(), "{wrong}");
    }
}
