//! The store among processes: builders that are killed, builders that race, images that come from
//! other tools and go to them.

// A child says to the test that started it how far it is.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use wythe::diag::Result;
use wythe::digest::{ChainId, DiffId, Digest, HashingWriter};
use wythe::image::archive::{Archive, Contents, Format, ImageContents, Selector, write_directory, write_file};
use wythe::image::manifest::media_type;
use wythe::image::{ImageConfig, MediaTypes, Platform};
use wythe::layer::{self, Compression};
use wythe::progress::Audience;
use wythe::store::{Draft, Layer, LayerMeta, Store};

/// Runs a test of this binary again in a process of its own, where it finds its role in the
/// environment.
fn spawn(test: &str, role: &str, root: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("WYTHE_TEST_ROLE", role)
        .env("WYTHE_TEST_STORE", root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// In such a process, its role and its store.
#[allow(clippy::disallowed_methods)]
fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var("WYTHE_TEST_ROLE").ok()?, std::env::var_os("WYTHE_TEST_STORE")?.into()))
}

/// The first line a child says that begins so, without that.
fn wait_for(out: &mut impl BufRead, beginning: &str) -> String {
    let mut said = String::new();
    loop {
        let start = said.len();
        assert!(out.read_line(&mut said).unwrap() > 0, "the child said only: {said}");
        // The test harness may have said something on the same line before.
        if let Some((_, rest)) = said[start..].split_once(beginning) {
            return rest.trim().to_owned();
        }
    }
}

fn names(path: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(path).unwrap().map(name).collect();
    names.sort();
    names
}

fn meta_of(draft: &Draft) -> LayerMeta {
    let mut out = HashingWriter::new(std::io::sink());
    let tree = layer::pack_and_digest(draft.upper(), &mut out).unwrap();
    let (_, digest, tar_size_bytes) = out.finish();
    LayerMeta {
        diff_id: DiffId::new(digest),
        tree: Some(tree),
        tar_size_bytes,
        checksum: None,
        size_bytes: 0,
        entries: 1,
        boot_id: String::new(),
        is_synced: false,
    }
}

fn write(path: &Path, content: &str, mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let file = fs::File::open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH)).unwrap();
}

/// Commits a layer with these files onto others.
fn commit(store: &Store, below: Option<&ChainId>, files: &[(&str, &str, u32)]) -> Layer {
    let draft = store.draft().unwrap();
    for (name, content, mode) in files {
        write(&draft.path.join("u").join(name), content, *mode);
    }
    let meta = meta_of(&draft);
    draft.commit(&ChainId::extend(below, &meta.diff_id), meta).unwrap()
}

#[test]
fn a_killed_builder_leaves_nothing() {
    const NAME: &str = "store::a_killed_builder_leaves_nothing";
    if let Some((_, root)) = role() {
        let store = Store::open(&root).unwrap();
        let committed = commit(&store, None, &[("file", "committed", 0o644)]);
        let draft = store.draft().unwrap();
        fs::write(draft.path.join("u/big"), vec![0; 1 << 20]).unwrap();
        let mut blob = store.blob_writer().unwrap();
        blob.write_all(&[1; 1 << 20]).unwrap();
        let _lock = store.lock_key(&wythe::digest::CacheKey::new(Digest::of(b"")), || {}).unwrap();
        println!("ready {}", committed.id.hex());
        // Killed while it waits here.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("store");
    let mut child = spawn(NAME, "writer", &root);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let hex = wait_for(&mut out, "ready ");
    // While it lives, nothing of it is touched.
    let store = Store::open(&root).unwrap();
    assert_eq!(names(&root.join("tmp")).len(), 2);
    assert_eq!(names(&root.join("locks")).len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(store);
    let store = Store::open(&root).unwrap();
    store.empty_trash();
    for empty in ["tmp", "trash", "locks", "blobs/sha256"] {
        assert_eq!(names(&root.join(empty)), Vec::<String>::new(), "{empty}");
    }
    assert_eq!(names(&root.join("layers")), [hex]);
}

#[test]
fn processes_that_commit_the_same_layer_share_one() {
    const NAME: &str = "store::processes_that_commit_the_same_layer_share_one";
    if let Some((_, root)) = role() {
        let store = Store::open(&root).unwrap();
        for number in 0..20 {
            let draft = store.draft().unwrap();
            write(&draft.path.join("u/file"), &format!("layer {number}"), 0o644);
            let meta = meta_of(&draft);
            println!("ready");
            // All go on together.
            std::io::stdin().read_exact(&mut [0]).unwrap();
            let layer = draft.commit(&ChainId::extend(None, &meta.diff_id), meta).unwrap();
            let content = fs::read_to_string(layer.path.join("file")).unwrap();
            println!("inode {} {content}", fs::metadata(&layer.path).unwrap().ino());
        }
        return;
    }
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("store");
    Store::open(&root).unwrap();
    let mut children: Vec<_> = (0..4).map(|_| spawn(NAME, "committer", &root)).collect();
    let mut outs: Vec<_> = children.iter_mut().map(|child| BufReader::new(child.stdout.take().unwrap())).collect();
    for number in 0..20 {
        outs.iter_mut().for_each(|out| drop(wait_for(out, "ready")));
        children.iter_mut().for_each(|child| child.stdin.as_mut().unwrap().write_all(b"x").unwrap());
        let layers: Vec<_> = outs.iter_mut().map(|out| wait_for(out, "inode ")).collect();
        assert!(layers.iter().all(|layer| *layer == layers[0]), "{layers:?}");
        assert!(layers[0].ends_with(&format!(" layer {number}")), "{layers:?}");
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(names(&root.join("layers")).len(), 20);
    assert_eq!(names(&root.join("tmp")), Vec::<String>::new());
}

#[test]
fn a_full_or_read_only_store_says_so() {
    const NAME: &str = "store::a_full_or_read_only_store_says_so";
    if let Some((_, root)) = role() {
        let store = Store::open(&root).unwrap();
        let whole = store.put_blob(b"whole").unwrap();
        let error = store.import_blob(&mut std::io::repeat(1), &whole, 8 << 20).unwrap_err_message();
        assert!(error.contains("cannot write blob") && error.contains("its filesystem is full"), "{error}");
        // What was half written made room again.
        let layer = commit(&store, None, &[("file", "text", 0o644)]);
        assert_eq!(names(&root.join("blobs/sha256")), [whole.hex()]);
        // A filesystem with files open for writing cannot be made read-only.
        store.empty_trash();
        drop(store);
        run("mount", &["-o", "remount,ro", root.parent().unwrap().to_str().unwrap()]);
        // It still can be read.
        let store = Store::open(&root).unwrap();
        assert!(store.read_blob(&whole, 100).unwrap().is_some() && store.layer(&layer.id).unwrap().is_some());
        for error in [
            store.put_blob(b"new").unwrap_err_message(),
            store.draft().map(drop).unwrap_err_message(),
            store.write_record("cache", "00", b"").unwrap_err_message(),
        ] {
            assert!(error.contains("its filesystem is read-only"), "{error}");
        }
        println!("done");
        return;
    }
    let dir = TempDir::new().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", "mount -t tmpfs -o size=4m none \"$0\" && exec \"$@\""])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture", "--test-threads=1"])
        .env("WYTHE_TEST_ROLE", "full")
        .env("WYTHE_TEST_STORE", dir.path().join("store"))
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("done"), "{text}");
}

/// An image of two layers in a store, ready to be written.
struct Sample {
    dir: TempDir,
    store: Store,
    layers: Vec<Layer>,
}

fn sample() -> Sample {
    let dir = TempDir::new().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let lower = commit(&store, None, &[("a", "lower", 0o644), ("gone", "lower", 0o644)]);
    let draft = store.draft().unwrap();
    write(&draft.path.join("u/b"), "upper", 0o755);
    let whiteout = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(draft.upper(), "gone", whiteout, rustix::fs::Mode::empty(), 0).unwrap();
    let meta = meta_of(&draft);
    let upper = draft.commit(&ChainId::extend(Some(&lower.id), &meta.diff_id), meta).unwrap();
    Sample { dir, store, layers: vec![lower, upper] }
}

impl Sample {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> ImageConfig {
        let mut config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
        config.config.cmd = Some(vec!["/b".into()]);
        config.config.labels.insert("is".into(), "labelled".into());
        config.created = Some("1970-01-01T00:00:00Z".into());
        config.rootfs.diff_ids = self.layers.iter().map(|layer| layer.meta.diff_id).collect();
        config
    }

    fn contents(&self, config: &ImageConfig, compression: Compression, names: &[&str]) -> Contents<'static> {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| layer.meta.diff_id).collect();
        let image = ImageContents {
            platform: amd64(),
            config: config.to_json(),
            layers: self
                .store
                .packed(&[&diff_ids], compression.into(), Audience::nobody(), &|_| Ok(None))
                .unwrap()
                .remove(0),
            annotations: BTreeMap::new(),
        };
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        Contents {
            images: vec![image],
            names,
            created: config.created.clone(),
            media_types: MediaTypes::Oci,
            others: Vec::new(),
        }
    }
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// Runs a tool; what it prints.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

#[test]
fn other_tools_read_what_is_written() {
    let sample = sample();
    let kinds = [("plain", Compression::None), ("gzip", Compression::DEFAULT), ("zstd", Compression::ZSTD)];
    for (kind, compression) in kinds {
        let contents = sample.contents(&sample.config(), compression, &["app:v1", "registry.example/app:v2"]);
        let text = |name: &str| sample.path(&format!("{kind}-{name}")).to_str().unwrap().to_owned();
        let (layout, oci, docker) = (text("layout"), text("oci.tar"), text("docker.tar"));
        write_directory(&contents, Path::new(&layout), None).unwrap();
        write_file(&contents, Format::Oci, Path::new(&oci), None).unwrap();
        write_file(&contents, Format::Docker, Path::new(&docker), None).unwrap();
        for source in [
            format!("oci:{layout}:v1"),
            format!("oci-archive:{oci}:v2"),
            format!("docker-archive:{docker}:app:v1"),
            format!("docker-archive:{docker}:registry.example/app:v2"),
        ] {
            let inspected: serde_json::Value = serde_json::from_str(&run("skopeo", &["inspect", &source])).unwrap();
            assert_eq!(inspected["Labels"]["is"], "labelled", "{source}");
            assert_eq!(inspected["Architecture"], "amd64", "{source}");
            assert_eq!(inspected["Layers"].as_array().map(Vec::len), Some(2), "{source}");
            // Copying checks every digest.
            let copy = format!("dir:{}", text("copy"));
            run("skopeo", &["--insecure-policy", "copy", "--preserve-digests", &source, &copy]);
        }
        if compression == Compression::ZSTD {
            // umoci knows none; that this one is read, skopeo says.
            let copy = text("plain");
            let source = format!("oci:{layout}:v1");
            run("skopeo", &["--insecure-policy", "copy", "--dest-decompress", &source, &format!("dir:{copy}")]);
            for layer in &sample.layers {
                let bytes = fs::read(Path::new(&copy).join(layer.meta.diff_id.hex())).unwrap();
                assert_eq!(Digest::of(&bytes), *layer.meta.diff_id.digest());
            }
            continue;
        }
        let bundle = text("bundle");
        run("umoci", &["unpack", "--image", &format!("{layout}:v1"), &bundle]);
        let rootfs = Path::new(&bundle).join("rootfs");
        assert_eq!(names(&rootfs), ["a", "b"]);
        assert_eq!(fs::read_to_string(rootfs.join("b")).unwrap(), "upper");
        assert_eq!(fs::metadata(rootfs.join("b")).unwrap().mode() & 0o7777, 0o755);
        assert!(run("umoci", &["list", "--layout", &layout]).contains("v2"));
        run("umoci", &["stat", "--image", &format!("{layout}:v1")]);
    }
}

/// Imports an archive's image into a new store and unpacks its layers there.
fn import(archive: &Path, into: &Path) -> Result<(Store, Vec<Layer>)> {
    let store = Store::open(into)?;
    let archive = Archive::open(archive)?;
    let image = archive.image(&Selector::Only, &amd64())?;
    let record = store.import_image(&archive, &image, &amd64())?;
    store.put_image(&"imported".parse().unwrap(), &record)?;
    assert_eq!(store.image(&"imported".parse().unwrap(), &amd64())?, Some(record.clone()));
    let config = store.read_blob(&record.config, 1 << 20)?.expect("it was just stored");
    assert_eq!(config, image.config);
    let mut layers: Vec<Layer> = Vec::new();
    for (layer, found) in record.layers.iter().zip(&image.layers) {
        let id = ChainId::extend(layers.last().map(|layer| &layer.id), &layer.diff_id);
        let lowers: Vec<BorrowedFd<'_>> = layers.iter().rev().map(|layer| layer.dir.as_fd()).collect();
        layers.push(store.unpack_blob(&id, &layer.diff_id, &found.descriptor, &lowers)?);
    }
    Ok((store, layers))
}

#[test]
fn what_other_tools_write_is_imported() {
    let sample = sample();
    let contents = sample.contents(&sample.config(), Compression::DEFAULT, &["app:v1"]);
    let ours = sample.path("ours");
    write_directory(&contents, &ours, None).unwrap();
    let source = format!("oci:{}:v1", ours.display());
    let path = |name: &str| sample.path(name).to_str().unwrap().to_owned();
    for (number, (target, more)) in [
        (format!("oci:{}:v1", path("layout")), vec![]),
        (format!("oci-archive:{}:v1", path("oci.tar")), vec![]),
        (format!("docker-archive:{}:app:v1", path("docker.tar")), vec![]),
        (format!("oci:{}:v1", path("zstd")), vec!["--dest-compress-format", "zstd"]),
    ]
    .into_iter()
    .enumerate()
    {
        let arguments = [&["--insecure-policy", "copy"], &more[..], &[&source, &target]].concat();
        run("skopeo", &arguments);
        let file = target.split(':').nth(1).unwrap();
        let (_store, layers) = import(Path::new(file), &sample.path(&format!("store-{number}"))).unwrap();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.meta.diff_id).collect();
        assert_eq!(diff_ids, sample.config().rootfs.diff_ids, "{target}");
        assert_eq!(fs::read_to_string(layers[0].path.join("a")).unwrap(), "lower", "{target}");
        assert_eq!(fs::metadata(layers[1].path.join("gone")).unwrap().rdev(), 0, "{target}");
        // What was packed here is packed alike there.
        let mut out = HashingWriter::new(std::io::sink());
        layer::pack(layers[1].dir.as_fd(), &mut out).unwrap();
        assert_eq!(out.finish().1, *diff_ids[1].digest(), "{target}");
    }
}

#[test]
fn an_image_is_imported_once() {
    let sample = sample();
    let contents = sample.contents(&sample.config(), Compression::DEFAULT, &["app"]);
    let (layout, root) = (sample.path("layout"), sample.path("imported"));
    write_directory(&contents, &layout, None).unwrap();
    let (store, layers) = import(&layout, &root).unwrap();
    // Now the archive's layers could not be read again, and need not be.
    for layer in &contents.images[0].layers {
        fs::write(layout.join("blobs/sha256").join(layer.descriptor.digest.hex()), "spoilt").unwrap();
    }
    let (_, again) = import(&layout, &root).unwrap();
    assert_eq!(again.last().unwrap().id, layers.last().unwrap().id);
    // A blob that was pulled is what an export gets, whatever it asks for.
    for compression in [Compression::None, Compression::Gzip { level: 9 }] {
        let packed =
            store.packed(&[&[layers[0].meta.diff_id]], compression.into(), Audience::nobody(), &|_| Ok(None)).unwrap();
        assert_eq!(packed[0][0].descriptor.digest, contents.images[0].layers[0].descriptor.digest);
        assert_eq!(packed[0][0].descriptor.media_type, media_type::LAYER_GZIP);
    }
    assert!(import(&layout, &sample.path("another")).unwrap_err_message().contains("cannot import layer 1 of 2"));
}

trait ErrorMessage {
    fn unwrap_err_message(self) -> String;
}

impl<T> ErrorMessage for Result<T> {
    fn unwrap_err_message(self) -> String {
        let error = self.err().expect("it went well");
        format!("{} {}", error.message, error.cause.unwrap_or_default())
    }
}

#[test]
fn an_image_that_claims_anothers_layers_is_refused() {
    let sample = sample();
    let honest = sample.config();
    let root = sample.path("victim");
    let layout = sample.path("honest");
    write_directory(&sample.contents(&honest, Compression::DEFAULT, &["app"]), &layout, None).unwrap();
    let (store, _) = import(&layout, &root).unwrap();
    // The second layer's blob, said to be the first's content, which the store knows.
    let mut claiming = honest.clone();
    claiming.rootfs.diff_ids[1] = honest.rootfs.diff_ids[0];
    let layout = sample.path("claiming");
    write_directory(&sample.contents(&claiming, Compression::DEFAULT, &["app"]), &layout, None).unwrap();
    let before = store.forms(&honest.rootfs.diff_ids[0]).unwrap();
    let message = import(&layout, &root).unwrap_err_message();
    let (actual, claimed) = (honest.rootfs.diff_ids[1], honest.rootfs.diff_ids[0]);
    assert!(
        message.contains("cannot import layer 2 of 2: ")
            && message.contains(&format!("holds the layer `{actual}`, but the image config claims it is `{claimed}`")),
        "{message}"
    );
    assert_eq!(store.forms(&claimed).unwrap(), before);
}

#[test]
fn a_blob_that_was_damaged_in_the_store_is_removed() {
    let sample = sample();
    let layout = sample.path("layout");
    write_directory(&sample.contents(&sample.config(), Compression::DEFAULT, &["app"]), &layout, None).unwrap();
    let root = sample.path("imported");
    let store = Store::open(&root).unwrap();
    let archive = Archive::open(&layout).unwrap();
    let image = archive.image(&Selector::Only, &amd64()).unwrap();
    let record = store.import_image(&archive, &image, &amd64()).unwrap();
    let (diff_id, descriptor) = (record.layers[0].diff_id, &image.layers[0].descriptor);
    let id = ChainId::extend(None, &diff_id);
    let blob = root.join("blobs/sha256").join(descriptor.digest.hex());
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    let message = store.unpack_blob(&id, &diff_id, descriptor, &[]).unwrap_err_message();
    assert!(message.contains("was damaged in the store"), "{message}");
    assert!(!blob.exists() && store.layer(&id).unwrap().is_none());
    // The next import brings it back.
    store.import_image(&archive, &image, &amd64()).unwrap();
    let layer = store.unpack_blob(&id, &diff_id, descriptor, &[]).unwrap();
    assert_eq!(fs::read_to_string(layer.path.join("a")).unwrap(), "lower");
}
