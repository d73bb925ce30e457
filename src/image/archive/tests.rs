use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::digest::{DiffId, Digest};
use crate::image::manifest::{annotation, media_type};
use crate::image::{ImageConfig, Platform};

/// An image whose layers are these bytes, uncompressed.
fn image(platform: &str, layers: &[&'static [u8]]) -> ImageContents<'static> {
    let platform: Platform = platform.parse().unwrap();
    let mut config = ImageConfig {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
        ..ImageConfig::default()
    };
    config.rootfs.diff_ids = layers.iter().map(|layer| DiffId::new(Digest::of(layer))).collect();
    let layers = layers
        .iter()
        .map(|&layer| LayerBlob {
            descriptor: Descriptor::of(media_type::LAYER_TAR, layer),
            open: Box::new(move || Ok(Box::new(layer))),
        })
        .collect();
    ImageContents { platform, config: config.to_json(), layers, annotations: BTreeMap::new() }
}

fn contents(images: Vec<ImageContents<'static>>, names: &[&str]) -> Contents<'static> {
    let names = names.iter().map(|name| name.parse().unwrap()).collect();
    Contents {
        images,
        names,
        created: Some("1970-01-01T00:00:00Z".into()),
        media_types: MediaTypes::Oci,
        others: Vec::new(),
    }
}

fn tar_of(contents: &Contents<'_>, format: Format) -> Vec<u8> {
    let mut out = Vec::new();
    write_tar(contents, format, &mut out, None).unwrap();
    out
}

fn host() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// The layers' bytes as read from the archive.
fn read_layers(archive: &Archive, image: &ArchivedImage) -> Vec<Vec<u8>> {
    let read = |layer| {
        let mut bytes = Vec::new();
        archive.open_layer(layer).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    image.layers.iter().map(read).collect()
}

fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("it went well"),
        Err(error) => format!("{}: {}", error.message, error.cause.unwrap_or_default()),
    }
}

/// Names, kinds, modes and sizes, and the text of the small files: what must not change by accident.
fn listing(tar: &[u8]) -> String {
    let mut listing = String::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        listing += &format!(
            "{:o} {}:{} {} {:>4} {}\n",
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap(),
            header.mtime().unwrap(),
            header.size().unwrap(),
            entry.path().unwrap().display()
        );
        let mut text = String::new();
        if entry.read_to_string(&mut text).is_ok() && text.starts_with(['{', '[']) {
            listing += &format!("    {text}\n");
        }
    }
    listing
}

#[test]
#[allow(clippy::disallowed_methods)]
fn tars_are_pinned() {
    let one = contents(vec![image("linux/amd64", &[b"lower", b"upper"])], &["app:v1", "registry.example/app"]);
    let two = contents(vec![image("linux/amd64", &[b"a"]), image("linux/arm64", &[b"b"])], &["app"]);
    let actual = format!(
        "# oci\n{}\n# docker\n{}\n# two platforms\n{}",
        listing(&tar_of(&one, Format::Oci)),
        listing(&tar_of(&one, Format::Docker)),
        listing(&tar_of(&two, Format::Oci))
    );
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/image/archives");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&golden, &actual).unwrap();
    }
    assert_eq!(actual, fs::read_to_string(golden).unwrap_or_default());
    assert_eq!(tar_of(&two, Format::Oci), tar_of(&two, Format::Oci));
}

#[test]
fn what_is_written_is_read() {
    let root = tempfile::tempdir().unwrap();
    let written = contents(vec![image("linux/amd64", &[b"lower", b"upper"])], &["app:v1"]);
    let (oci, docker, dir) = (root.path().join("oci.tar"), root.path().join("docker.tar"), root.path().join("dir"));
    let assembled = write_file(&written, Format::Oci, &oci, None).unwrap();
    write_file(&written, Format::Docker, &docker, None).unwrap();
    write_directory(&written, &dir, None).unwrap();
    for path in [&oci, &docker, &dir] {
        let archive = Archive::open(path).unwrap();
        for selector in [
            Selector::Only,
            Selector::Name("v1".into()),
            Selector::Name("app:v1".into()),
            Selector::Digest(assembled.root().digest),
        ] {
            let image = archive.image(&selector, &host()).unwrap();
            assert_eq!(image.manifest.as_ref(), Some(&assembled.manifests[0].1), "{}", path.display());
            assert_eq!(image.config, written.images[0].config);
            assert_eq!(read_layers(&archive, &image), [b"lower", b"upper"]);
        }
        assert!(message(archive.image(&Selector::Name("v2".into()), &host())).contains("no image named `v2` (it has"));
        assert!(message(archive.image(&Selector::Digest(Digest::of(b"")), &host())).contains("has no image"));
    }
    // Nothing but what was asked for.
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 3);
}

#[test]
fn platforms_are_chosen() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.tar");
    let images =
        vec![image("linux/arm/v6", &[b"six"]), image("linux/amd64", &[b"amd"]), image("linux/arm64", &[b"arm"])];
    write_file(&contents(images, &["app"]), Format::Oci, &path, None).unwrap();
    let archive = Archive::open(&path).unwrap();
    let choose = |platform: &str| archive.image(&Selector::Only, &platform.parse().unwrap());
    for (wanted, found) in
        [("linux/amd64", "linux/amd64"), ("linux/arm64", "linux/arm64"), ("linux/arm", "linux/arm/v6")]
    {
        assert_eq!(choose(wanted).unwrap().platform.to_string(), found);
    }
    let error = message(choose("linux/s390x"));
    assert!(error.contains("no image for `linux/s390x`; it has one for `linux/amd64`, `linux/arm/v6`"), "{error}");
    // Alone, an image is taken whatever it is for.
    write_file(&contents(vec![image("linux/arm64", &[])], &[]), Format::Oci, &path, None).unwrap();
    let image = Archive::open(&path).unwrap().image(&Selector::Only, &host()).unwrap();
    assert_eq!(image.platform.to_string(), "linux/arm64");
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("out.tar");
    fs::write(&path, "earlier").unwrap();
    let mut failing = contents(vec![image("linux/amd64", &[b"lower"])], &["app"]);
    failing.images[0].layers[0].open = Box::new(|| Ok(Box::new(&b"lowe"[..])));
    let error = message(write_file(&failing, Format::Oci, &path, None));
    assert!(error.contains("out.tar`") && error.contains("is shorter than its descriptor says"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"earlier");
    failing.images[0].layers[0].open = Box::new(|| Ok(Box::new(&b"LOWER"[..])));
    let dir = root.path().join("dir");
    assert!(message(write_directory(&failing, &dir, None)).contains("is damaged"));
    assert!(!dir.exists());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);

    let good = contents(vec![image("linux/amd64", &[b"lower"])], &["app"]);
    let link = root.path().join("link");
    symlink("out.tar", &link).unwrap();
    write_file(&good, Format::Oci, &link, None).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&path).unwrap(), tar_of(&good, Format::Oci));
    write_file(&good, Format::Oci, Path::new("/dev/null"), None).unwrap();
    assert!(message(write_file(&good, Format::Oci, root.path(), None)).contains("it is a directory"));
    assert!(message(write_file(&good, Format::Oci, &root.path().join("no/such"), None)).contains("No such file"));
    assert!(message(write_directory(&good, root.path(), None)).contains("neither empty nor an OCI image layout"));
}

#[test]
fn a_layout_is_added_to() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let write = |layer: &'static [u8], names: &[&str]| {
        let written = contents(vec![image("linux/amd64", &[layer])], names);
        write_directory(&written, dir, None).unwrap().root().digest
    };
    let named = |name: &str| {
        let archive = Archive::open(dir).unwrap();
        let image = archive.image(&Selector::Name(name.into()), &host()).unwrap();
        read_layers(&archive, &image).concat()
    };
    write(b"one", &["app:v1"]);
    write(b"two", &["app:v2", "app"]);
    let newest = write(b"three", &["app:v1"]);
    assert_eq!((named("v1"), named("v2"), named("app:latest")), (b"three".into(), b"two".into(), b"two".into()));
    let unnamed = write(b"four", &[]);
    write(b"five", &[]);
    let index = fs::read_to_string(dir.join("index.json")).unwrap();
    assert_eq!(index.matches(r#""digest""#).count(), 4, "{index}");
    assert!(!index.contains(&unnamed.to_string()) && index.contains(&newest.to_string()));
    // What others wrote beside stays as it was.
    let foreign = index.replacen(r#""schemaVersion""#, r#""x-unknown":{"kept":true},"schemaVersion""#, 1);
    fs::write(dir.join("index.json"), &foreign).unwrap();
    write(b"six", &["app:v6"]);
    assert!(fs::read_to_string(dir.join("index.json")).unwrap().contains(r#""x-unknown":{"kept":true}"#));
    // A damaged blob is written again.
    let blob = dir.join("blobs/sha256").join(Digest::of(b"six").hex());
    fs::write(&blob, "sax").unwrap();
    write(b"six", &["app:v6"]);
    assert_eq!(fs::read(&blob).unwrap(), b"six");

    fs::write(dir.join("index.json"), "[]").unwrap();
    let written = contents(vec![image("linux/amd64", &[])], &[]);
    assert!(message(write_directory(&written, dir, None)).contains("is no OCI image index"));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let write = |contents: &Contents<'_>, format| message(write_tar(contents, format, &mut Vec::new(), None));
    let two = || vec![image("linux/amd64", &[b"a"]), image("linux/arm64", &[b"b"])];
    assert!(write(&contents(two(), &[]), Format::Docker).contains("one platform only"));
    let same = vec![image("linux/amd64", &[b"a"]), image("linux/amd64", &[b"b"])];
    assert!(write(&contents(same, &[]), Format::Oci).contains("two images for `linux/amd64`"));
    let mut fewer = image("linux/amd64", &[b"a", b"b"]);
    fewer.layers.pop();
    assert!(write(&contents(vec![fewer], &[]), Format::Oci).contains("manifest has 1 layers"));
}

/// A layout directory that a test then spoils.
fn layout(root: &Path) -> Assembled {
    write_directory(&contents(vec![image("linux/amd64", &[b"lower", b"upper"])], &["app"]), root, None).unwrap()
}

#[test]
fn damaged_layouts_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let open = |selector: Selector| Archive::open(dir).and_then(|archive| archive.image(&selector, &host()));
    let fresh = || {
        fs::remove_dir_all(dir).unwrap();
        layout(dir)
    };
    let blob = |digest: &Digest| dir.join("blobs/sha256").join(digest.hex());

    let manifest = fresh().root().digest;
    let mut bytes = fs::read(blob(&manifest)).unwrap();
    bytes[20] ^= 1;
    fs::write(blob(&manifest), &bytes).unwrap();
    assert!(message(open(Selector::Only)).contains("is damaged"));

    let assembled = fresh();
    fs::write(blob(&assembled.root().digest), vec![b' '; 5 << 20]).unwrap();
    assert!(message(open(Selector::Only)).contains("is longer than its descriptor says"));
    // Known by its digest only, its size is what we allow.
    assert!(message(open(Selector::Digest(assembled.root().digest))).contains("longer"));

    fresh();
    fs::remove_file(blob(&Digest::of(b"upper"))).unwrap();
    let archive = Archive::open(dir).unwrap();
    let image = archive.image(&Selector::Only, &host()).unwrap();
    assert!(message(archive.open_layer(&image.layers[1])).contains("has no `blobs/sha256/"));
    fs::write(blob(&Digest::of(b"lower")), "lowex").unwrap();
    assert!(archive.open_layer(&image.layers[0]).unwrap().read_to_end(&mut Vec::new()).is_err());

    fresh();
    for (index, expected) in [
        ("{", "no JSON"),
        (r#"{"schemaVersion":2,"manifests":[]}"#, "has no image in it"),
        (r#"{"schemaVersion":2,"manifests":null}"#, "neither"),
        (
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"a/b","digest":"sha256:../../../../etc/passwd","size":1}]}"#,
            "",
        ),
    ] {
        fs::write(dir.join("index.json"), index).unwrap();
        let error = message(open(Selector::Only));
        assert!(error.contains(expected), "{index}: {error}");
    }
    fs::remove_file(dir.join("index.json")).unwrap();
    assert!(message(Archive::open(dir)).contains("neither `index.json` nor `manifest.json`"));
    assert!(message(Archive::open(&dir.join("absent"))).contains("No such file"));
}

#[test]
fn links_do_not_lead_out_of_a_layout() {
    let root = tempfile::tempdir().unwrap();
    let (dir, outside) = (root.path().join("layout"), root.path().join("outside"));
    layout(&dir);
    let index = dir.join("index.json");
    fs::rename(&index, &outside).unwrap();
    symlink("../outside", &index).unwrap();
    assert!(message(Archive::open(&dir)).contains("leads out of the archive"));
    fs::remove_file(&index).unwrap();
    symlink(&outside, &index).unwrap();
    assert!(message(Archive::open(&dir)).contains("leads out of the archive"));
    // Within it they are as good as files.
    fs::remove_file(&index).unwrap();
    fs::rename(&outside, dir.join("real.json")).unwrap();
    symlink("real.json", &index).unwrap();
    assert!(Archive::open(&dir).unwrap().image(&Selector::Only, &host()).is_ok());
    // A pipe is not waited on.
    fs::remove_file(&index).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &index, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    assert!(message(Archive::open(&dir)).contains("no regular file"));
}

#[test]
fn indexes_nest_but_not_for_ever() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let assembled = layout(dir);
    let mut inner = assembled.root().clone();
    let mut attestation = Descriptor::of(media_type::MANIFEST, b"absent");
    attestation.platform = Some(Platform { os: "unknown".into(), architecture: "unknown".into(), variant: None });
    attestation.annotations.insert(annotation::REFERENCE_TYPE.into(), "attestation-manifest".into());
    for depth in 0..6 {
        // Its platform is to be found in the config, then.
        inner.platform = None;
        let bytes = Index::new(vec![inner.clone(), attestation.clone()]).to_json();
        let wrapped = Descriptor::of(media_type::INDEX, &bytes);
        fs::write(dir.join("blobs/sha256").join(wrapped.digest.hex()), &bytes).unwrap();
        fs::write(dir.join("index.json"), Index::new(vec![wrapped.clone()]).to_json()).unwrap();
        let found = Archive::open(dir).unwrap().image(&Selector::Only, &host());
        if depth < 3 {
            assert_eq!(found.unwrap().manifest.as_ref(), Some(&assembled.manifests[0].1));
            let error = message(Archive::open(dir).unwrap().image(&Selector::Only, &"linux/s390x".parse().unwrap()));
            assert!(error.contains("it has one for `linux/amd64`"), "{error}");
        } else {
            assert!(message(found).contains("an index too many"));
        }
        inner = wrapped;
    }
}

/// The tar that `docker save` once wrote: by layer ID, a layer that occurs twice as a link.
fn classic(layers: &[&str], config: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, bytes).unwrap();
    };
    add("first/layer.tar", b"layer");
    add("conf.json", config);
    let table = serde_json::json!([{ "Config": "conf.json", "RepoTags": ["app:latest"], "Layers": layers }]);
    add("manifest.json", table.to_string().as_bytes());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "second/layer.tar", "../first/layer.tar").unwrap();
    header.set_size(0);
    tar.append_link(&mut header, "loop", "loop").unwrap();
    header.set_size(0);
    tar.append_link(&mut header, "out", "../../../../etc/passwd").unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn classic_docker_archives_are_read() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("save.tar");
    let config = image("linux/amd64", &[b"layer", b"layer"]).config;
    fs::write(&path, classic(&["first/layer.tar", "second/layer.tar"], &config)).unwrap();
    let archive = Archive::open(&path).unwrap();
    let image = archive.image(&Selector::Name("app".into()), &host()).unwrap();
    assert_eq!(image.manifest, None);
    assert_eq!(image.config, config);
    assert_eq!(read_layers(&archive, &image), [b"layer", b"layer"]);
    assert!(message(archive.image(&Selector::Name("other".into()), &host())).contains("no such image"));
    for hostile in ["loop", "out", "../../../../etc/passwd", "/etc/passwd", "second"] {
        fs::write(&path, classic(&["first/layer.tar", hostile], &config)).unwrap();
        let error = message(Archive::open(&path).unwrap().image(&Selector::Only, &host()));
        assert!(error.contains(&format!("has no `{hostile}`")), "{error}");
    }
    fs::write(&path, classic(&["first/layer.tar"], &config)).unwrap();
    assert!(message(Archive::open(&path).unwrap().image(&Selector::Only, &host())).contains("manifest has 1 layers"));
    fs::write(&path, [0x1f, 0x8b, 8, 0]).unwrap();
    assert!(message(Archive::open(&path)).contains("it is compressed"));
}

#[test]
fn large_sizes_and_long_names_come_from_extended_headers() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("pax.tar");
    let config = image("linux/amd64", &[b"layer"]).config;
    let long = "l".repeat(150);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("path", long.as_bytes()), ("size", b"5".as_slice())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_size(5);
    header.set_cksum();
    tar.append(&header, &b"layer"[..]).unwrap();
    let table = serde_json::json!([{ "Config": "./conf.json", "Layers": [&long] }]).to_string();
    for (name, bytes) in [("./conf.json", &config[..]), ("manifest.json", table.as_bytes())] {
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    fs::write(&path, tar.into_inner().unwrap()).unwrap();
    let archive = Archive::open(&path).unwrap();
    let image = archive.image(&Selector::Only, &host()).unwrap();
    assert_eq!(read_layers(&archive, &image), [b"layer"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A tar with anything overwritten is read or refused, and what is read is what was written.
    #[test]
    fn spoilt_tars_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.tar");
        let mut tar = tar_of(&contents(vec![image("linux/amd64", &[b"lower", b"upper"])], &["app"]), Format::Docker);
        for (at, byte) in changes {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        fs::write(&path, &tar).unwrap();
        if let Ok(archive) = Archive::open(&path)
            && let Ok(image) = archive.image(&Selector::Only, &host())
            && image.layers.len() == 2
        {
            let mut bytes = Vec::new();
            if archive.open_layer(&image.layers[0]).is_ok_and(|mut layer| layer.read_to_end(&mut bytes).is_ok()) {
                prop_assert_eq!(bytes, b"lower");
            }
        }
    }
}
