//! What a case expects and what a build gave, in the same words.
//!
//! ```text
//! image [PLATFORM]
//! author NAME
//! created base                                    unless it is the time of the build
//! config.KEY JSON
//! history TEXT                                    `history+` where it made a layer
//! /path file 0644 0:0 @context "content"          what differs from the base
//! /path file 0644 0:0 @now 1234 bytes 7f5d8a0e3855
//! /path file 0644 0:0 @now like context/x.tar
//! /path dir 0755 0:0 +user.x=6869
//! /path link 0:0 @1500000000 -> target
//! /path touched @now                              nothing but the time
//! - /path                                         the base has it
//! ```
//!
//! Times are `@context` for that of the files of the context, `@base` for that of the base's, `@now` for that of the build. Those of directories
//! are not listed: BuildKit's depend on chance.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::OnceLock;

use serde_json::Value;
use wythe::digest::Digest;

use super::super::image::members;
use super::super::sandbox::busybox_layout;
use super::super::tree::{Object, Tree, apply, read_tar};
use super::context::TIME;

/// An image, its layers laid over one another.
struct Image {
    platform: String,
    config: Value,
    tree: Tree,
}

/// What is older was not made by the build.
const NOW: i64 = 1_735_689_600;
/// Longer content is told by its digest.
const TEXT_LIMIT: usize = 400;

/// Contents with names, which stand for them in a listing: their bytes may change with who makes them.
pub type Known = [(String, Vec<u8>)];

/// The images of an OCI tar. `is_named`: each is headed by its platform.
pub fn of(tar: &[u8], is_named: bool, known: &Known) -> String {
    let members = members(tar);
    let images = images(&|name| members.get(name).unwrap_or_else(|| panic!("the tar has no {name}")).clone());
    let mut out = String::new();
    for image in images {
        let platform = if is_named { format!(" {}", image.platform) } else { String::new() };
        writeln!(out, "image{platform}").unwrap();
        image.list(known, &mut out);
    }
    out.lines().map(|line| shortened(line) + "\n").collect()
}

/// A line that nobody would read to its end is told by its digest.
fn shortened(line: &str) -> String {
    match line.char_indices().nth(100) {
        Some((end, _)) if line.len() > 2000 => {
            format!("{}… {} bytes {}", &line[..end], line.len(), &Digest::of(line.as_bytes()).hex()[..12])
        }
        _ => line.to_owned(),
    }
}

fn base() -> &'static Image {
    static BASE: OnceLock<Image> = OnceLock::new();
    BASE.get_or_init(|| images(&|name| fs::read(busybox_layout().join(name)).unwrap()).remove(0))
}

/// The images of a layout by platform; every digest is checked.
fn images(member: &dyn Fn(&str) -> Vec<u8>) -> Vec<Image> {
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let bytes = member(&format!("blobs/{}", digest.replace(':', "/")));
        assert_eq!(Digest::of(&bytes).to_string(), digest);
        bytes
    };
    let json = |descriptor: &Value| -> Value { serde_json::from_slice(&blob(descriptor)).unwrap() };
    let mut pending = vec![serde_json::from_slice::<Value>(&member("index.json")).unwrap()];
    let mut images = Vec::new();
    while let Some(document) = pending.pop() {
        if let Some(manifests) = document["manifests"].as_array() {
            pending.extend(manifests.iter().map(json));
            continue;
        }
        let config = json(&document["config"]);
        let mut tree = Tree::new();
        let layers = document["layers"].as_array().unwrap();
        for (layer, diff_id) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
            let mut tar = Vec::new();
            wythe::layer::decompress(&blob(layer)[..]).unwrap().read_to_end(&mut tar).unwrap();
            assert_eq!(Digest::of(&tar).to_string(), diff_id.as_str().unwrap());
            tree = apply(&tree, &read_tar(&tar));
        }
        let part = |key: &str| config[key].as_str().filter(|part| !part.is_empty());
        let platform = ["os", "architecture", "variant"].into_iter().filter_map(part).collect::<Vec<_>>().join("/");
        images.push(Image { platform, config, tree });
    }
    images.sort_by(|a, b| a.platform.cmp(&b.platform));
    images
}

impl Image {
    fn list(&self, known: &Known, out: &mut String) {
        let base = base();
        let layers = |image: &Self| image.config["rootfs"]["diff_ids"].as_array().unwrap().clone();
        let is_on_base = layers(self).starts_with(&layers(base));
        if let Some(author) = self.config["author"].as_str() {
            writeln!(out, "author {author}").unwrap();
        }
        let created = time(&self.config["created"]);
        if created != "now" {
            writeln!(out, "created {created}").unwrap();
        }
        for (key, value) in self.config["config"].as_object().unwrap() {
            writeln!(out, "config.{key} {value}").unwrap();
        }
        let history = self.config["history"].as_array().unwrap();
        let inherited = if is_on_base { base.config["history"].as_array().unwrap().len() } else { 0 };
        for entry in &history[inherited..] {
            assert_eq!(entry["comment"], "wythe");
            let mark = if entry["empty_layer"] == true { "" } else { "+" };
            let text = word(entry["created_by"].as_str().unwrap().as_bytes(), |c| !c.is_control());
            let created = time(&entry["created"]);
            let created = if created == "now" { String::new() } else { format!("@{created}") };
            writeln!(out, "history{mark}{created} {text}").unwrap();
        }
        let layered = history.iter().filter(|entry| entry["empty_layer"] != true).count();
        assert_eq!(layered, layers(self).len(), "history and layers");
        let nothing = Tree::new();
        list_tree(if is_on_base { &base.tree } else { &nothing }, &self.tree, known, out);
    }
}

fn time(value: &Value) -> &str {
    let Some(value) = value.as_str() else { return "none" };
    match value {
        _ if value == base().config["created"] => "base",
        _ if value >= "2025" => "now",
        _ => value,
    }
}

fn list_tree(base: &Tree, tree: &Tree, known: &Known, out: &mut String) {
    let mut names: BTreeMap<&[u8], usize> = BTreeMap::new();
    for object in tree.values() {
        *names.entry(&object.file).or_default() += 1;
    }
    let mut lines = BTreeMap::new();
    for path in base.keys().filter(|path| !tree.contains_key(*path)) {
        lines.insert(path, format!("- {}", shown(path)));
    }
    for (path, object) in tree {
        let Some(below) = base.get(path).filter(|below| is_same(below, object)) else {
            lines.insert(path, describe(path, object, names[&object.file[..]], known));
            continue;
        };
        if below.mtime != object.mtime && !object.is_directory() {
            lines.insert(path, format!("{} touched {}", shown(path), moment(object)));
        }
    }
    for line in lines.values() {
        writeln!(out, "{line}").unwrap();
    }
}

/// But for the time.
fn is_same(a: &Object, b: &Object) -> bool {
    let mode = |object: &Object| if object.kind == 'l' { 0 } else { object.mode };
    (a.kind, mode(a), a.uid, a.gid, a.device, &a.xattrs, &a.content, &a.file)
        == (b.kind, mode(b), b.uid, b.gid, b.device, &b.xattrs, &b.content, &b.file)
}

fn describe(path: &[u8], object: &Object, names: usize, known: &Known) -> String {
    let Object { kind, mode, uid, gid, device: (major, minor), .. } = object;
    let time = moment(object);
    let mut line = shown(path);
    line += &match kind {
        'f' => format!(" file {mode:04o} {uid}:{gid} {time}"),
        'd' => format!(" dir {mode:04o} {uid}:{gid}"),
        'l' => format!(" link {uid}:{gid} {time} -> {}", word(&object.content, is_plain)),
        'p' => format!(" fifo {mode:04o} {uid}:{gid} {time}"),
        'c' => format!(" char {major}:{minor} {mode:04o} {uid}:{gid} {time}"),
        'b' => format!(" block {major}:{minor} {mode:04o} {uid}:{gid} {time}"),
        other => panic!("an object of kind {other}"),
    };
    for (name, value) in &object.xattrs {
        let value: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        line += &format!(" +{}={value}", shown(name).trim_start_matches('/'));
    }
    if names > 1 && object.file != path {
        line += &format!(" = {}", shown(&object.file));
    } else if *kind == 'f' {
        line += &content(&object.content, known);
    }
    line
}

fn content(bytes: &[u8], known: &Known) -> String {
    if let Ok(text) = str::from_utf8(bytes)
        && text.len() <= TEXT_LIMIT
    {
        return format!(" {}", Value::from(text));
    }
    let busybox = ("busybox".to_owned(), base().tree[&b"bin/busybox"[..]].content.clone());
    if let Some((name, _)) = known.iter().chain([&busybox]).find(|(_, known)| known == bytes) {
        return format!(" like {name}");
    }
    format!(" {} bytes {}", bytes.len(), &Digest::of(bytes).hex()[..12])
}

fn moment(object: &Object) -> String {
    match object.mtime.0 {
        TIME => "@context".into(),
        time if time >= NOW => "@now".into(),
        time if time == base().tree[&b"bin/busybox"[..]].mtime.0 => "@base".into(),
        time => format!("@{time}"),
    }
}

fn shown(path: &[u8]) -> String {
    word(&[b"/", path].concat(), is_plain)
}

fn is_plain(c: char) -> bool {
    !c.is_control() && !c.is_whitespace() && c != '"' && c != '\\'
}

/// Text as it is where every character is fine, else as JSON; what is no text is escaped.
fn word(bytes: &[u8], is_fine: impl Fn(char) -> bool) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if text.chars().all(is_fine) => text.to_owned(),
        Ok(text) => Value::from(text).to_string(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}
