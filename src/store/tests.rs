use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::gc::Action;
use super::*;
use crate::digest::{CacheKey, ChainId, DiffId, Digest, HashingWriter};
use crate::image::{Platform, Reference};
use crate::layer::{self, Compression};

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    Fixture { dir, store }
}

impl Fixture {
    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("store").join(path)
    }

    fn entries(&self, path: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// What the next process on the same store would see, in this boot.
    fn reopen(&self) -> Store {
        Store::open(&self.path("")).unwrap()
    }
}

/// A draft with one file in it.
fn draft(store: &Store, content: &str) -> Draft {
    let draft = store.draft().unwrap();
    fs::write(draft.path.join("u/file"), content).unwrap();
    fs::set_permissions(draft.path.join("u/file"), fs::Permissions::from_mode(0o644)).unwrap();
    let epoch = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
    fs::File::open(draft.path.join("u/file")).unwrap().set_times(epoch).unwrap();
    draft
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
        size_bytes: 4,
        entries: 1,
        boot_id: String::new(),
        is_synced: false,
    }
}

/// Commits a layer with one file on nothing.
fn commit(store: &Store, content: &str) -> Layer {
    let draft = draft(store, content);
    let meta = meta_of(&draft);
    draft.commit(&ChainId::extend(None, &meta.diff_id), meta).unwrap()
}

/// Writes the layer's `layer.json` as another boot would have left it.
fn age(store: &Store, layer: &Layer, change: impl FnOnce(&mut LayerMeta)) {
    let mut meta = LayerMeta { boot_id: "another boot".into(), ..layer.meta.clone() };
    change(&mut meta);
    let dir = open_dir(store.inner.layers.as_fd(), &layer.id.hex()).unwrap();
    sealed::write(&store.inner, dir.as_fd(), "layer.json", &sealed::to_json(&meta)).unwrap();
}

fn content(layer: &Layer) -> String {
    fs::read_to_string(layer.path.join("file")).unwrap()
}

#[test]
fn a_store_is_private_and_has_a_version() {
    let fixture = fixture();
    assert_eq!(fs::metadata(fixture.path("")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::read_to_string(fixture.path("version")).unwrap(), "1\n");
    fs::set_permissions(fixture.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fixture.reopen();
    assert_eq!(fs::metadata(fixture.path("")).unwrap().mode() & 0o777, 0o700);

    // Another builder makes it at this moment, or was stopped while it did.
    fs::remove_file(fixture.path("version")).unwrap();
    fixture.reopen();
    assert_eq!(fs::read_to_string(fixture.path("version")).unwrap(), "1\n");

    let refused = |path: &Path| Store::open(path).err().map(|error| error.message).unwrap_or_default();
    fs::write(fixture.path("version"), "2\n").unwrap();
    assert!(refused(&fixture.path("")).contains("has format 2; this program reads and writes format 1"));
    fs::write(fixture.path("version"), "").unwrap();
    assert!(refused(&fixture.path("")).contains("cannot be read"));
    assert!(refused(fixture.dir.path()).contains("is not a store, and not empty: it holds `store`"));
    fs::write(fixture.dir.path().join("file"), "").unwrap();
    assert!(refused(&fixture.dir.path().join("file")).contains("cannot open the store"));
    assert!(refused(&fixture.dir.path().join("file/below")).contains("cannot open the store"));
}

#[test]
fn blobs_appear_whole_and_damaged_ones_go() {
    let fixture = fixture();
    let store = &fixture.store;
    let digest = store.put_blob(b"content").unwrap();
    assert_eq!(digest, Digest::of(b"content"));
    assert_eq!(store.read_blob(&digest, 100).unwrap().as_deref(), Some(&b"content"[..]));
    assert_eq!(store.read_blob(&digest, 6).unwrap(), None);
    let mut text = String::new();
    store.open_blob(&digest).unwrap().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");

    let path = fixture.path("blobs/sha256").join(digest.hex());
    let damage = || {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "Content").unwrap();
    };
    damage();
    assert_eq!(store.read_blob(&digest, 100).unwrap(), None);
    assert!(!store.has_blob(&digest));
    store.put_blob(b"content").unwrap();
    assert!(store.verify_blob(&digest).unwrap());
    damage();
    assert!(!store.verify_blob(&digest).unwrap());
    assert!(!store.has_blob(&digest));
    store.put_blob(b"content").unwrap();
    damage();
    store.put_blob(b"content").unwrap();
    assert!(store.verify_blob(&digest).unwrap());
}

#[test]
fn a_blob_that_is_not_what_was_expected_does_not_appear() {
    let fixture = fixture();
    let store = &fixture.store;
    let expected = Digest::of(b"12345");
    let import = |bytes: &[u8], size| {
        store.import_blob(&mut &bytes[..], &expected, size).map_err(|error| error.message).err().unwrap_or_default()
    };
    assert!(import(b"1234x", 5).contains("is damaged"));
    assert!(import(b"1234", 5).contains("is 4 bytes long instead of 5"));
    assert!(import(b"123456", 5).contains("is 6 bytes long instead of 5"));
    // An endless one is not read to its end.
    assert!(store.import_blob(&mut std::io::repeat(0), &expected, 5).is_err());
    let mut dropped = store.blob_writer().unwrap();
    dropped.write_all(b"12345").unwrap();
    drop(dropped);
    assert!(fixture.entries("blobs/sha256").is_empty());
    let own = fixture.entries("tmp").into_iter().find(|name| !name.ends_with(".lock")).unwrap();
    assert!(fixture.entries(&format!("tmp/{own}")).is_empty());
    assert_eq!(import(b"12345", 5), "");
    assert!(store.has_blob(&expected));
}

#[test]
fn a_layer_is_found_after_its_commit() {
    let fixture = fixture();
    let layer = commit(&fixture.store, "text");
    assert_eq!(content(&layer), "text");
    assert_eq!(fs::metadata(&layer.path).unwrap().mode() & 0o7777, 0o755);
    assert!(!layer.meta.boot_id.is_empty() && !layer.meta.is_synced);
    let found = fixture.reopen().layer(&layer.id).unwrap().unwrap();
    assert_eq!((found.meta, found.path), (layer.meta.clone(), layer.path.clone()));
    assert!(fixture.store.layer(&ChainId::new(Digest::of(b""))).unwrap().is_none());
    fixture.store.sync_layers(&[layer.id]).unwrap();
    assert!(fixture.store.layer(&layer.id).unwrap().unwrap().meta.is_synced);
    // Dropped without commit, a draft is gone.
    drop(draft(&fixture.store, "other"));
    fixture.store.empty_trash();
    assert_eq!(fixture.entries("layers"), [layer.id.hex()]);
    assert!(fixture.entries("trash").is_empty());
}

#[test]
fn a_torn_layer_json_is_a_miss() {
    let fixture = fixture();
    let id = commit(&fixture.store, "text").id;
    let path = fixture.path("layers").join(id.hex()).join("layer.json");
    let whole = fs::read(&path).unwrap();
    for damaged in [whole[..whole.len() - 1].to_vec(), whole[..20].to_vec(), Vec::new(), vec![0; whole.len()]] {
        fs::write(&path, &damaged).unwrap();
        assert!(fixture.store.layer(&id).unwrap().is_none());
        assert!(fixture.entries("layers").is_empty());
        assert_eq!(commit(&fixture.store, "text").id, id);
    }
    fs::remove_file(&path).unwrap();
    assert!(fixture.store.layer(&id).unwrap().is_none());
    // What cannot be a layer gives way to one.
    fs::write(fixture.path("layers").join(id.hex()), "").unwrap();
    assert_eq!(content(&commit(&fixture.store, "text")), "text");
}

#[test]
fn a_layer_of_another_boot_is_hashed_before_it_is_used() {
    let fixture = fixture();
    let layer = commit(&fixture.store, "text");
    let file = layer.path.join("file");
    let found = || fixture.store.layer(&layer.id).unwrap();

    age(&fixture.store, &layer, |_| ());
    assert!(found().unwrap().meta.is_synced, "hashed once");
    // Synced, it is not looked at again.
    fs::write(&file, "torn").unwrap();
    assert!(found().is_some());
    age(&fixture.store, &layer, |meta| meta.is_synced = true);
    assert!(found().is_some());
    // Neither is what this boot made.
    age(&fixture.store, &layer, |meta| meta.boot_id = layer.meta.boot_id.clone());
    assert!(found().is_some());

    age(&fixture.store, &layer, |_| ());
    assert!(found().is_none());
    assert!(fixture.entries("layers").is_empty());

    let layer = commit(&fixture.store, "text");
    fs::File::options().write(true).open(layer.path.join("file")).unwrap().set_len(0).unwrap();
    age(&fixture.store, &layer, |_| ());
    assert!(found().is_none());

    // A kernel that does not tell its boots apart: every one is another.
    let layer = commit(&fixture.store, "text");
    fs::remove_file(layer.path.join("file")).unwrap();
    age(&fixture.store, &layer, |meta| meta.boot_id = String::new());
    assert!(found().is_none());

    // Unpacked from a blob: to be unpacked again, not packed.
    let layer = commit(&fixture.store, "text");
    age(&fixture.store, &layer, |meta| meta.tree = None);
    assert!(found().is_none());
}

#[test]
fn of_two_who_commit_the_same_layer_one_wins() {
    let fixture = fixture();
    let other = fixture.reopen();
    let barrier = Barrier::new(8);
    let inodes: Vec<u64> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|number| {
                let (store, barrier) = (if number % 2 == 0 { &fixture.store } else { &other }, &barrier);
                scope.spawn(move || {
                    let draft = draft(store, "text");
                    let meta = meta_of(&draft);
                    barrier.wait();
                    let layer = draft.commit(&ChainId::extend(None, &meta.diff_id), meta).unwrap();
                    assert_eq!(content(&layer), "text");
                    fs::metadata(&layer.path).unwrap().ino()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
    assert_eq!(fixture.entries("layers").len(), 1);
}

#[test]
fn a_key_is_locked_by_one_at_a_time() {
    let fixture = fixture();
    let other = fixture.reopen();
    let key = CacheKey::new(Digest::of(b"key"));
    let (inside, most, waits) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let store = if number % 2 == 0 { &fixture.store } else { &other };
            let (inside, most, waits, barrier) = (&inside, &most, &waits, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for _ in 0..20 {
                    let lock = store.lock_key(&key, || {
                        waits.fetch_add(1, Ordering::Relaxed);
                    });
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(lock.unwrap());
                }
            });
        }
    });
    assert_eq!(most.into_inner(), 1);
    assert!(fixture.entries("locks").is_empty());
    // Another key does not wait; the same one is told to.
    let held = fixture.store.lock_key(&key, || panic!("nobody holds it")).unwrap();
    let another = CacheKey::new(Digest::of(b"other"));
    drop(other.lock_key(&another, || panic!("nobody holds it")).unwrap());
    let held = Mutex::new(Some(held));
    drop(other.lock_key(&key, || drop(held.lock().unwrap().take())).unwrap());
    assert!(held.into_inner().unwrap().is_none(), "the second was not told to wait");
    // What a killed process leaves is swept.
    fs::write(fixture.path("locks/key-left"), "").unwrap();
    fixture.reopen();
    assert!(fixture.entries("locks").is_empty());
}

#[test]
fn records_are_whole_or_absent() {
    let fixture = fixture();
    let store = &fixture.store;
    assert_eq!(store.read_record("cache", "00ff").unwrap(), None);
    assert!(store.records("cache").unwrap().is_empty());
    store.write_record("cache", "00ff", b"one").unwrap();
    store.write_record("cache", "00ff", b"two").unwrap();
    store.write_record("cache", "ff00", b"").unwrap();
    store.write_record("cache/op", "00aa", b"deeper").unwrap();
    assert_eq!(store.read_record("cache", "00ff").unwrap().as_deref(), Some(&b"two"[..]));
    assert_eq!(store.read_record("cache", "ff00").unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(store.records("cache").unwrap(), ["00ff", "ff00"]);
    assert_eq!(store.records("cache/op").unwrap(), ["00aa"]);
    let path = fixture.path("cache/00/00ff");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 2]).unwrap();
    assert_eq!(store.read_record("cache", "00ff").unwrap(), None);
    store.remove_record("cache", "00ff").unwrap();
    store.remove_record("cache", "00ff").unwrap();
    assert_eq!(store.records("cache").unwrap(), ["ff00"]);
    for (dir, name) in
        [("../cache", "00ff"), ("cache", "../ff"), ("cache", "00/f"), ("cache", "x"), ("cache/00", "00ff")]
    {
        let wrong = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| store.read_record(dir, name).is_ok()));
        assert!(wrong.is_err(), "{dir} {name}");
    }
}

#[test]
fn a_layer_is_packed_once_for_each_form() {
    let fixture = fixture();
    let layer = commit(&fixture.store, "text");
    for (compression, kind) in [
        (Compression::None, ".tar"),
        (Compression::Gzip { level: 1 }, "+gzip"),
        (Compression::Gzip { level: 9 }, "+gzip"),
        (Compression::Zstd { level: 3 }, "+zstd"),
    ] {
        let form = fixture.store.pack(&layer, compression, None).unwrap();
        let mut blob = fixture.store.open_blob(&form.digest).unwrap().unwrap();
        assert_eq!(blob.size_bytes, form.size_bytes);
        let mut plain = HashingWriter::new(std::io::sink());
        std::io::copy(&mut layer::decompress(&mut blob).unwrap(), &mut plain).unwrap();
        assert_eq!(plain.finish().1, *layer.meta.diff_id.digest());
        assert!(form.media_type.ends_with(kind), "{}", form.media_type);
        assert!(fixture.store.has_form(&layer.meta.diff_id, &form.digest).unwrap());
    }
    assert_eq!(fixture.store.forms(&layer.meta.diff_id).unwrap().len(), 4);
    // It is not packed again: that would now fail.
    let kept = fixture.store.pack(&layer, Compression::None, None).unwrap();
    fs::write(layer.path.join("file"), "torn").unwrap();
    assert_eq!(fixture.reopen().pack(&layer, Compression::None, None).unwrap(), kept);
    // A form whose blob is gone is made again, if the layer is still what it was.
    fs::remove_file(fixture.path("blobs/sha256").join(kept.digest.hex())).unwrap();
    let error = fixture.store.pack(&layer, Compression::None, None).unwrap_err();
    assert!(error.message.contains("was damaged in the store"), "{}", error.message);
    assert!(fixture.store.layer(&layer.id).unwrap().is_none());
    assert!(!fixture.store.has_blob(&kept.digest));
}

#[test]
fn a_layer_that_was_damaged_is_not_packed() {
    // Those of earlier versions have no checksum.
    for has_checksum in [true, false] {
        let fixture = fixture();
        let draft = draft(&fixture.store, "text");
        let summary = layer::canonicalize(draft.upper(), &[], None).unwrap();
        let (_, mut meta) = draft.identify(&summary, None).unwrap();
        assert_eq!(meta.checksum.as_ref().map(String::len), Some(32));
        meta.checksum.take_if(|_| !has_checksum);
        let layer = draft.commit(&ChainId::extend(None, &meta.diff_id), meta).unwrap();
        let form = fixture.store.pack(&layer, Compression::None, None).unwrap();
        assert_eq!(form.digest, *layer.meta.diff_id.digest());
        // Of the same length.
        fs::write(layer.path.join("file"), "tixt").unwrap();
        let epoch = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        fs::File::open(layer.path.join("file")).unwrap().set_times(epoch).unwrap();
        let error = fixture.store.pack(&layer, Compression::DEFAULT, None).unwrap_err();
        assert!(error.message.contains("was damaged in the store"), "{}", error.message);
        assert!(fixture.store.layer(&layer.id).unwrap().is_none());
    }
}

#[test]
fn what_another_builder_packs_is_not_waited_for_ahead() {
    let fixture = fixture();
    let layer = commit(&fixture.store, "text");
    let (diff_id, gzip) = (layer.meta.diff_id, Compression::DEFAULT);
    let ahead = || {
        let ahead = Ahead::new(&fixture.store, vec![gzip]);
        ahead.expect(diff_id, layer.id);
        ahead
    };
    let held = fixture.reopen().lock_name(packing::lock_of(&diff_id, gzip), || {}).unwrap();
    // Which waits for its thread.
    drop(ahead());
    assert!(fixture.store.forms(&diff_id).unwrap().is_empty());
    drop(held);
    let ahead = ahead();
    while fixture.store.forms(&diff_id).unwrap().is_empty() {
        std::thread::yield_now();
    }
    ahead.finish(crate::progress::Audience::nobody()).unwrap();
    // There is nothing left to do.
    fs::remove_dir_all(&layer.path).unwrap();
    assert!(fixture.store.pack(&layer, gzip, None).is_ok());
}

#[test]
fn a_pulled_layer_without_its_blob_is_not_called_damaged() {
    let fixture = fixture();
    let draft = draft(&fixture.store, "text");
    let meta = LayerMeta { diff_id: DiffId::new(Digest::of(b"packed by others")), tree: None, ..meta_of(&draft) };
    let layer = draft.commit(&ChainId::extend(None, &meta.diff_id), meta).unwrap();
    let error = fixture.store.pack(&layer, Compression::None, None).unwrap_err();
    assert!(error.message.contains("is no longer in the store"), "{}", error.message);
    assert!(fixture.store.layer(&layer.id).unwrap().is_some());
}

#[test]
fn a_form_of_another_boot_is_hashed_before_it_is_used() {
    let fixture = fixture();
    let layer = commit(&fixture.store, "text");
    let form = fixture.store.pack(&layer, Compression::None, None).unwrap();
    let name = layer.meta.diff_id.hex();
    let aged = || {
        let mut forms: serde_json::Value =
            sealed::read_json(fixture.store.inner.forms.as_fd(), &name).unwrap().unwrap();
        forms[0]["boot_id"] = "another boot".into();
        forms[0]["is_synced"] = false.into();
        sealed::write(&fixture.store.inner, fixture.store.inner.forms.as_fd(), &name, &sealed::to_json(&forms))
            .unwrap();
    };
    let blob = fixture.path("blobs/sha256").join(form.digest.hex());
    aged();
    assert_eq!(
        fixture.store.form(&layer.meta.diff_id, Compression::None.into()).unwrap().map(|form| form.digest),
        Some(form.digest)
    );
    aged();
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    bytes[0] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    assert_eq!(fixture.store.form(&layer.meta.diff_id, Compression::None.into()).unwrap(), None);
    assert!(!blob.exists());
    // And is made anew from the layer.
    assert_eq!(fixture.store.pack(&layer, Compression::None, None).unwrap().digest, form.digest);
}

fn record(config: &[u8], platform: &str) -> ImageRecord {
    ImageRecord {
        manifest: None,
        config: Digest::of(config),
        platform: platform.parse().unwrap(),
        layers: Vec::new(),
        created: None,
    }
}

#[test]
fn images_have_names() {
    let fixture = fixture();
    let store = &fixture.store;
    let name = |text: &str| text.parse::<Reference>().unwrap();
    let amd64: Platform = "linux/amd64".parse().unwrap();
    let (one, two, arm) = (record(b"1", "linux/amd64"), record(b"2", "linux/amd64"), record(b"3", "linux/arm64"));
    assert_eq!(store.image(&name("app"), &amd64).unwrap(), None);
    store.put_image(&name("app"), &one).unwrap();
    store.put_image(&name("app"), &arm).unwrap();
    store.put_image(&name("app"), &two).unwrap();
    assert_eq!(store.image(&name("app"), &amd64).unwrap(), Some(two.clone()));
    assert_eq!(store.images_named(&name("app")).unwrap(), [two.clone(), arm.clone()]);
    assert!(store.tag_image(&name("app"), &name("registry.example/team/app:v1")).unwrap());
    assert!(!store.tag_image(&name("absent"), &name("x")).unwrap());
    let long = name(&format!("registry.example/{}", "long/".repeat(45) + "name"));
    store.put_image(&long, &one).unwrap();
    let all: Vec<_> = store.images().unwrap().into_iter().map(|(name, images)| (name, images.len())).collect();
    assert_eq!(all, [(name("app"), 2), (long.clone(), 1), (name("registry.example/team/app:v1"), 2)]);

    let prefix = &two.config.hex()[..12];
    let references = vec![name("app"), name("registry.example/team/app:v1")];
    let found = ImageLookup::Found { record: two.clone(), references };
    assert_eq!(store.image_by_id(prefix).unwrap(), found);
    assert_eq!(store.image_by_id(&two.config.to_string()).unwrap(), found);
    assert_eq!(store.image_by_id("").unwrap(), ImageLookup::NotFound);
    assert_eq!(store.image_by_id("../..").unwrap(), ImageLookup::NotFound);

    let path = fixture.path("images").join(name("app").file_name());
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[1..]).unwrap();
    assert_eq!(store.image(&name("app"), &amd64).unwrap(), None);
    // A file that was renamed does not stand for what it now is named.
    fs::write(&path, &whole).unwrap();
    fs::rename(&path, fixture.path("images").join(name("other").file_name())).unwrap();
    assert_eq!(store.image(&name("other"), &amd64).unwrap(), None);
    assert!(store.remove_image(&name("registry.example/team/app:v1")).unwrap());
    assert!(!store.remove_image(&name("registry.example/team/app:v1")).unwrap());
    assert_eq!(store.images().unwrap().into_keys().collect::<Vec<_>>(), [long]);
}

#[test]
fn an_ambiguous_id_is_said_to_be() {
    let fixture = fixture();
    let first = Digest::of(b"0");
    // Two configs whose digests begin alike.
    let second = (1_u32..).map(|n| Digest::of(&n.to_le_bytes())).find(|d| d.hex()[..1] == first.hex()[..1]).unwrap();
    for (name, config) in [("a", first), ("b", second)] {
        let image = ImageRecord { config, ..record(b"", "linux/amd64") };
        fixture.store.put_image(&name.parse().unwrap(), &image).unwrap();
    }
    let mut both = vec![first, second];
    both.sort();
    assert_eq!(fixture.store.image_by_id(&first.hex()[..1]).unwrap(), ImageLookup::Ambiguous(both));
}

/// Makes everything in the store look old.
fn make_old(fixture: &Fixture) {
    let times = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
    for dir in ["layers", "blobs/sha256"] {
        for entry in fs::read_dir(fixture.path(dir)).unwrap() {
            fs::File::open(entry.unwrap().path()).unwrap().set_times(times).unwrap();
        }
    }
}

#[test]
fn prune_takes_what_is_neither_kept_nor_used() {
    let fixture = fixture();
    let store = &fixture.store;
    let kept = commit(store, "kept");
    let form = store.pack(&kept, Compression::None, None).unwrap();
    let held = commit(store, "held");
    let held_blob = store.open_blob(&store.put_blob(b"held").unwrap()).unwrap().unwrap();
    let gone = (commit(store, "gone").id, store.put_blob(b"gone").unwrap());
    let config = store.put_blob(b"{}").unwrap();
    let usage = store.usage().unwrap();
    assert_eq!((usage.layers.count, usage.layers.size_bytes, usage.blobs.count), (3, 12, 4));

    let mut keep = Keep::default();
    let layers = vec![ImageLayer { diff_id: kept.meta.diff_id, blob: None }];
    keep.image(&ImageRecord { config, layers, ..record(b"", "linux/amd64") });
    let pruner = fixture.reopen();
    // All of it was made by a builder that lives: `store`.
    make_old(&fixture);
    store.put_blob(b"new").unwrap();
    let year_1970 = SystemTime::UNIX_EPOCH + Duration::from_secs(900_000);
    assert_eq!(pruner.prune(&keep, Some(year_1970), Action::Remove).unwrap(), Pruned::default());
    let pruned = pruner.prune(&keep, None, Action::Remove).unwrap();
    assert_eq!((pruned.layers.count, pruned.blobs.count, pruned.in_use), (1, 1, 3));
    assert!(store.layer(&gone.0).unwrap().is_none() && !store.has_blob(&gone.1));
    assert!(store.layer(&kept.id).unwrap().is_some() && store.layer(&held.id).unwrap().is_some());
    assert!(store.has_blob(&config) && store.has_blob(&form.digest) && store.has_blob(&held_blob.digest));

    drop((held, held_blob));
    make_old(&fixture);
    let pruned = pruner.prune(&Keep::default(), None, Action::Remove).unwrap();
    assert_eq!((pruned.layers.count, pruned.blobs.count, pruned.in_use), (1, 4, 1), "`kept` is still held");
    assert!(fixture.entries("forms").is_empty());
    pruner.empty_trash();
    assert!(fixture.entries("trash").is_empty());
}

#[test]
fn prune_spares_what_a_live_builder_found() {
    let fixture = fixture();
    let id = commit(&fixture.store, "text").id;
    let blob = fixture.store.put_blob(b"blob").unwrap();
    let pruner = fixture.reopen();
    make_old(&fixture);
    // Found by a builder that wrote nothing itself, and used no more for the time being.
    let finder = fixture.reopen();
    drop(finder.layer(&id).unwrap());
    finder.put_blob(b"blob").unwrap();
    assert_eq!(
        pruner.prune(&Keep::default(), None, Action::Remove).unwrap(),
        Pruned { in_use: 2, ..Pruned::default() }
    );
    drop((finder, fixture.store.clone()));
    make_old(&fixture);
    let pruned = pruner.prune(&Keep::default(), None, Action::Remove).unwrap();
    assert_eq!((pruned.layers.count, pruned.blobs.count, pruned.in_use), (1, 1, 0));
    assert!(!pruner.has_blob(&blob));
}

#[test]
fn builders_and_prune_do_not_get_into_each_others_way() {
    let fixture = fixture();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let pruned = std::thread::scope(|scope| {
        let builders: Vec<_> = (0..3)
            .map(|number| {
                let fixture = &fixture;
                scope.spawn(move || {
                    for round in 0..40 {
                        // A build: what it makes or finds stays until it ends.
                        let store = fixture.reopen();
                        let text = format!("layer {}", (number + round) % 4);
                        let layer = commit(&store, &text);
                        let form = store.pack(&layer, Compression::None, None).unwrap();
                        let id = layer.id;
                        drop(layer);
                        std::thread::yield_now();
                        let again = store.layer(&id).unwrap().expect("a layer that the build made is gone");
                        assert_eq!(content(&again), text);
                        assert!(store.verify_blob(&form.digest).unwrap(), "a blob that the build made is gone");
                    }
                })
            })
            .collect();
        let pruner = scope.spawn(|| {
            let (store, mut pruned) = (fixture.reopen(), 0);
            while !is_done.load(Ordering::Relaxed) {
                let now = store.prune(&Keep::default(), None, Action::Remove).unwrap();
                pruned += now.layers.count + now.blobs.count;
                std::thread::yield_now();
            }
            pruned
        });
        let results: Vec<_> = builders.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
        pruner.join().unwrap()
    });
    // Whether any of it went while others built depends on how they met; at the end all goes.
    make_old(&fixture);
    let left = fixture.store.prune(&Keep::default(), None, Action::Remove).unwrap();
    assert!(pruned + left.layers.count + left.blobs.count >= 2 * 4, "{pruned} {left:?}");
    assert!(fixture.entries("layers").is_empty() && fixture.entries("blobs/sha256").is_empty());
}

#[test]
fn whatever_is_in_the_trash_goes() {
    let fixture = fixture();
    let trash = fixture.path("trash");
    let mut deep = trash.join("deep");
    for _ in 0..40 {
        deep.push("d".repeat(90));
    }
    // Deeper than a path can say.
    fs::create_dir_all(&deep).unwrap();
    let inner = open_dir(CWD, deep.to_str().unwrap()).unwrap();
    let mut at = inner;
    for _ in 0..150 {
        rustix::fs::mkdirat(&at, "deeper", Mode::RWXU).unwrap();
        at = open_dir(at.as_fd(), "deeper").unwrap();
    }
    let closed = trash.join("closed");
    DirBuilder::new().mode(0o700).create(&closed).unwrap();
    fs::write(closed.join("file"), "").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o0)).unwrap();
    std::os::unix::fs::symlink("/", trash.join("link")).unwrap();
    for number in 0..300 {
        fs::write(trash.join(format!("{number}")), "").unwrap();
    }
    fixture.store.empty_trash();
    assert_eq!(fixture.entries("trash"), Vec::<String>::new());
    assert!(Path::new("/").exists());
}
