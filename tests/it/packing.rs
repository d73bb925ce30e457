//! How an export packs layers: `compression=` and its kin, and that nothing is packed twice.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use wythe::digest::Digest;

use super::builder::Builder;
use super::lifecycle::assert_no_scratch;
use super::sandbox::Sandbox;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// Builds a layer of its own on busybox, whose one layer comes as gzip, and exports it as an OCI directory.
fn export(sandbox: &Sandbox, name: &str, packing: &str) -> Exported {
    let output = format!("type=oci,tar=false,dest={},{packing}", sandbox.path(name).display());
    let ended = sandbox.build("image.tar", &["-o".into(), output]);
    assert_eq!(ended.code, Some(0), "{packing}\n{}", ended.stderr);
    let layout = sandbox.path(name);
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest = blob(&layout, &index["manifests"][0]);
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let is_packing = |line: &&str| line.starts_with('#') && line.contains("[export] pack");
    let packed = ended.stderr.lines().filter(is_packing).map(str::to_owned).collect();
    Exported { manifest, layout, packed }
}

struct Exported {
    manifest: Value,
    layout: std::path::PathBuf,
    /// The steps that packed layers, of this output and of the one that is always there.
    packed: Vec<String>,
}

impl Exported {
    fn types(&self) -> Vec<&str> {
        let layers = self.manifest["layers"].as_array().unwrap();
        layers.iter().map(|layer| layer["mediaType"].as_str().unwrap()).collect()
    }

    /// Every layer is what its media type says, and holds what the config says.
    fn check(&self) {
        let config: Value = serde_json::from_slice(&blob(&self.layout, &self.manifest["config"])).unwrap();
        for (layer, diff_id) in
            self.manifest["layers"].as_array().unwrap().iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap())
        {
            let bytes = blob(&self.layout, layer);
            let media_type = layer["mediaType"].as_str().unwrap();
            let kind = match bytes[..4] {
                [0x1f, 0x8b, ..] => "gzip",
                [0x28, 0xb5, 0x2f, 0xfd] => "zstd",
                _ => "tar",
            };
            assert!(media_type.ends_with(kind), "{media_type} is {kind}");
            let mut plain = wythe::layer::decompress(&bytes[..]).unwrap();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut plain, &mut content).unwrap();
            assert_eq!(Digest::of(&content).to_string(), diff_id.as_str().unwrap());
        }
    }
}

fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap();
    let bytes = fs::read(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))).unwrap();
    assert_eq!(Digest::of(&bytes).to_string(), digest);
    bytes
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN seq 100000 > /numbers\nRUN seq 9 > /more\n");
    sandbox
}

#[test]
fn layers_are_packed_as_asked_and_never_twice() {
    let sandbox = sandbox();
    let plain = export(&sandbox, "plain", "compression=uncompressed");
    assert_eq!(plain.types(), [GZIP, PLAIN, PLAIN]);
    // Gzip for the output that is always there.
    assert_eq!(plain.packed.len(), 2, "{:?}", plain.packed);
    for (name, packing, expected, packed) in [
        ("zstd", "compression=zstd", [GZIP, ZSTD, ZSTD], 1),
        ("again", "compression=zstd", [GZIP, ZSTD, ZSTD], 0),
        ("level", "compression=zstd,compression-level=9", [GZIP, ZSTD, ZSTD], 1),
        ("forced", "compression=zstd,force-compression=true", [ZSTD, ZSTD, ZSTD], 1),
        ("forced again", "compression=zstd,force-compression=true", [ZSTD, ZSTD, ZSTD], 0),
        ("gzip", "", [GZIP, GZIP, GZIP], 0),
        ("forced plain", "compression=uncompressed,force-compression=true", [PLAIN, PLAIN, PLAIN], 1),
        // A layer that came as gzip is gzip, whatever the level.
        ("forced gzip", "compression=gzip,compression-level=1,force-compression=true", [GZIP, GZIP, GZIP], 1),
    ] {
        let exported = export(&sandbox, name, packing);
        assert_eq!(exported.types(), expected, "{packing}");
        assert_eq!(exported.packed.len(), packed, "{packing}: {:?}", exported.packed);
        exported.check();
    }
    let bytes = |name: &str| fs::read(sandbox.path(name).join("index.json")).unwrap();
    assert!(bytes("zstd") == bytes("again") && bytes("zstd") != bytes("level"));
}

#[test]
fn docker_has_words_of_its_own() {
    let sandbox = sandbox();
    let exported = export(&sandbox, "docker", "oci-mediatypes=false");
    let gzip = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    assert_eq!(exported.types(), [gzip; 3]);
    assert_eq!(exported.manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(exported.manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
    exported.check();
    let plain = export(&sandbox, "plain", "oci-mediatypes=false,compression=uncompressed");
    assert_eq!(
        plain.types(),
        [gzip, "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar"]
    );

    // A base that is zstd cannot be called anything there, and is packed anew.
    export(&sandbox, "zstd", "compression=zstd,force-compression=true");
    let base = format!("base=oci-layout://{}", sandbox.path("zstd").display());
    sandbox.write("Dockerfile", "FROM base\nRUN seq 3 > /three\n");
    let args = |packing: &str| {
        let output = format!("type=oci,tar=false,dest={},{packing}", sandbox.path("on zstd").display());
        vec!["--build-context".to_owned(), base.clone(), "-o".to_owned(), output]
    };
    let refused = sandbox.build("image.tar", &args("oci-mediatypes=false,compression=zstd"));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("docker's media types have none for zstd"), "{}", refused.stderr);
    let ended = sandbox.build("image.tar", &args("oci-mediatypes=false"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let source = format!("oci:{}", sandbox.path("on zstd").display());
    let inspected = Command::new("skopeo").args(["inspect", "--raw", &source]).output().unwrap();
    let manifest: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert!(manifest["layers"].as_array().unwrap().iter().all(|layer| layer["mediaType"] == gzip), "{manifest}");
}

/// Who waits for a step may as well compress.
#[test]
fn layers_are_packed_while_later_steps_run() {
    Builder::each(|builder| {
        let steps = "RUN seq 300000 > /numbers\nRUN echo up; sleep 1000\n";
        builder.sandbox().write("Dockerfile", &format!("FROM busybox\n{steps}"));
        let mut build = builder.follow(&[]);
        build.until("up");
        let forms = builder.store().join("forms");
        let is_gzip = |path: &Path| fs::read_to_string(path).is_ok_and(|form| form.contains("gzip:6"));
        let is_packed = || fs::read_dir(&forms).unwrap().any(|entry| is_gzip(&entry.unwrap().path()));
        while !is_packed() && build.is_running() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(build.is_running());
        build.signal(rustix::process::Signal::INT);
        assert_eq!(build.end().0, Some(130));
        assert_no_scratch(builder);
    });
}

#[test]
fn a_build_that_fails_waits_for_no_layer_that_is_being_packed() {
    Builder::each(|builder| {
        // To compress this takes longer than the other step.
        let steps = "RUN head -c 150000000 /dev/urandom > /noise\nRUN exit 3\n";
        builder.sandbox().write("Dockerfile", &format!("FROM busybox\n{steps}"));
        let ended = builder.build(&[]);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert_no_scratch(builder);
        let forms = builder.store().join("forms");
        let has_noise = |path: &Path| fs::read_to_string(path).is_ok_and(|form| form.contains("gzip:6"));
        assert!(!fs::read_dir(&forms).unwrap().any(|entry| has_noise(&entry.unwrap().path())));
    });
}
