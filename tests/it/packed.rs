//! Copies onto a base that is in the store as blobs alone: the image is the same as over an unpacked one, and nothing of
//! the base is unpacked for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tar::{EntryType, Header};
use wythe::digest::{DiffId, Digest};

use super::builder::Builder;
use super::ordinary::Ordinary;
use super::relief;
use super::sandbox::{Ended, Sandbox};
use super::step::Random;
use super::unpack::Tar;

/// The layers of a base in which there is a bit of everything to copy onto.
fn layers() -> [Vec<u8>; 2] {
    let looks = |mode, uid, gid| {
        move |header: &mut Header| {
            header.set_mode(mode);
            header.set_uid(uid);
            header.set_gid(gid);
        }
    };
    let first = Tar::default()
        .dir("usr/")
        .header("usr/share/", EntryType::Directory, "", b"", looks(0o2755, 0, 7))
        .pax(&[("SCHILY.xattr.user.a", b"1"), ("mtime", b"1234567890.5")])
        .header("usr/share/web/", EntryType::Directory, "", b"", looks(0o750, 33, 34))
        .file("usr/share/web/index.html", "old")
        .file("usr/share/web/same", "same")
        .symlink("usr/share/web/link", "index.html")
        .device("usr/share/web/null", EntryType::Char, 1, 3)
        .dir("usr/share/web/sub/")
        .dir("srv/")
        .symlink("srv/www", "../usr/share/web")
        .symlink("absolute", "/srv/www")
        .symlink("dangling", "made/../there")
        .symlink("loop", "loop")
        .dir("gone/")
        .file("gone/one", "1")
        .header("opaque/", EntryType::Directory, "", b"", looks(0o1777, 1, 1))
        .file("opaque/one", "1")
        .file("file", "")
        .dir("etc/")
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:\n")
        .file("etc/group", "root:x:0:\n");
    let second = Tar::default()
        .file(".wh.gone", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "2")
        .file("usr/share/web/two", "2")
        .link("usr/share/web/second", "usr/share/web/same");
    [first.end(), second.end()]
}

/// Writes a base as an OCI layout. Returns the names of its layers.
fn write_layout(directory: &Path, layers: &[Vec<u8>]) -> Vec<DiffId> {
    fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(directory.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"digest": digest.to_string(), "size": bytes.len()})
    };
    let typed = |mut descriptor: Value, media_type: &str| {
        descriptor["mediaType"] = format!("application/vnd.oci.image.{media_type}").into();
        descriptor
    };
    let diff_ids: Vec<_> = layers.iter().map(|layer| DiffId::new(Digest::of(layer))).collect();
    let names: Vec<_> = diff_ids.iter().map(ToString::to_string).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": names},
    });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": typed(put(config.to_string().as_bytes()), "config.v1+json"),
        "layers": layers.iter().map(|layer| typed(put(layer), "layer.v1.tar")).collect::<Vec<_>>(),
    });
    let index = json!({
        "schemaVersion": 2,
        "manifests": [typed(put(manifest.to_string().as_bytes()), "manifest.v1+json")],
    });
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    diff_ids
}

/// A builder with a base and a context, and two stores: one in which it is unpacked.
struct Bench<'b> {
    builder: &'b Builder,
    base: Vec<DiffId>,
    layout: String,
}

impl<'b> Bench<'b> {
    fn new(builder: &'b Builder) -> Self {
        let sandbox = builder.sandbox();
        let base = write_layout(&sandbox.path("base"), &layers());
        sandbox.shell(
            "mkdir -p dist/sub/deep dist/left; echo new > dist/index.html; echo 2 > dist/two; echo > dist/sub/deep/file
             ln dist/two dist/also; ln -s two dist/soft; echo left > dist/left/out; mkdir dist/empty; echo one > one
             printf same > same; touch -d @1000000000 same; chmod 644 one same; echo dist/left > .dockerignore
             mkdir -p much/sub much/unlike; for number in $(seq 30); do echo $number > much/sub/$number; done
             echo fresh > much/index.html; printf alike > much/unlike/same; chmod 705 much/unlike; ln -s . much/link2
             mkdir ways; ln -s /srv/www ways/web; ln -s ../gone ways/gone
             mkdir -p blocked/link; cp much/sub/* blocked/link",
        );
        let bench = Self { builder, base, layout: "base=oci-layout://base".into() };
        sandbox.write("Dockerfile", "FROM base\n");
        let ended = bench.run("unpacked", &["-o", "type=tar,dest=files.tar"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(bench.unpacked("unpacked").len(), 2);
        bench
    }

    fn run(&self, store: &str, args: &[&str]) -> Ended {
        let fixed = ["--root", store, "build", "--progress", "plain", "--pull=never"];
        let fixed = [&fixed[..], &["--build-context", &self.layout]].concat();
        let pinned = ["--build-arg", "SOURCE_DATE_EPOCH=1100000000"];
        self.builder.wythe(&[&fixed[..], &pinned, args, &["context"]].concat())
    }

    /// What this makes on the base: the image, or the error.
    fn build(&self, store: &str, dockerfile: &str) -> Result<Vec<u8>, String> {
        self.builder.sandbox().write("Dockerfile", dockerfile);
        let ended = self.run(store, &["--no-cache", "-o", "type=oci,dest=image.tar"]);
        let image = self.builder.sandbox().path("image.tar");
        match ended.code {
            Some(0) => Ok(fs::read(image).unwrap()),
            _ => Err(ended.stderr[ended.stderr.find("error: ").expect(&ended.stderr)..].to_owned()),
        }
    }

    /// Which layers of the base are unpacked in a store.
    fn unpacked(&self, store: &str) -> BTreeSet<DiffId> {
        let Ok(layers) = fs::read_dir(self.builder.sandbox().path(store).join("layers")) else {
            return BTreeSet::new();
        };
        let diff_id = |layer: std::io::Result<fs::DirEntry>| {
            let text = fs::read_to_string(layer.unwrap().path().join("layer.json")).unwrap();
            let meta: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
            meta["diff_id"].as_str().unwrap().parse().unwrap()
        };
        layers.map(diff_id).filter(|diff_id| self.base.contains(diff_id)).collect()
    }

    #[track_caller]
    fn same(&self, store: &str, dockerfile: &str) -> Result<Vec<u8>, String> {
        let packed = self.build(store, dockerfile);
        let unpacked = self.build("unpacked", dockerfile);
        assert!(packed == unpacked, "{}: {dockerfile}\n{:?}\n{:?}", self.layout, packed.err(), unpacked.err());
        packed
    }
}

#[test]
fn nothing_of_a_base_is_unpacked_for_a_copy() {
    let check = |builder: &Builder| {
        let bench = Bench::new(builder);
        for steps in [
            "COPY dist /usr/share/web/",
            "COPY dist /usr/share",
            "COPY dist /",
            "COPY dist /new/place",
            "COPY dist /srv/www",
            "COPY dist /absolute/sub",
            "COPY one /absolute",
            "COPY one /srv/www/../x",
            "COPY dist /absolute/../usr/share/web/sub/..",
            "COPY one /dangling",
            "COPY dist /dangling/",
            "COPY one /gone",
            "COPY dist /gone",
            "COPY dist /opaque",
            "COPY one /opaque/",
            "COPY one /opaque/one",
            "COPY one /usr/share/web/link",
            "COPY one /usr/share/web/null",
            "COPY one /usr/share/web/second",
            "COPY one /usr/share/web/new",
            "COPY --chmod=640 same /usr/share/web/index.html",
            "COPY --chown=5:6 --chmod=700 dist /usr/share/web",
            "COPY --chown=app dist /usr/share/web",
            "COPY --chown=app:root one /usr/share/web/a/b",
            "COPY --link --chown=7 dist /usr/share/web",
            "COPY --parents dist/sub one /usr/share/web",
            "COPY one dist/index.html /usr/share/web/",
            "COPY dist/* /usr/share/web/",
            "COPY <<index.html <<fresh /usr/share/web/\nhello\nindex.html\nfresh",
            "COPY --chmod=600 <<eof /etc/passwd\nroot:x:0:0::/:\neof",
            "ADD dist /usr/share/web",
            // So many that they are packed from where they are.
            "COPY much /usr/share/web",
            "COPY much /usr/share/web/sub/",
            "COPY much /srv/www/new",
            "COPY much /gone",
            "COPY much /dangling",
            "COPY --chown=app:root --chmod=u=rwX much /usr/share",
            "ADD much /opaque",
            "WORKDIR /absolute/new\nCOPY much .",
            "WORKDIR /usr/share/web/sub\nCOPY dist .",
            "WORKDIR /usr/share/web/made/here\nCOPY one .\nCOPY dist .\nENV A=1\nCOPY one two",
            "USER app\nWORKDIR /srv/www/made\nWORKDIR deeper\nCOPY --chown=app one .",
            "WORKDIR /dangling\nCOPY one .\nCOPY dist /usr/share/web",
            "WORKDIR /",
            // What an earlier step made leads elsewhere, or is in the way.
            "COPY ways /ways\nCOPY dist /ways/web\nCOPY much /ways/web/sub\nWORKDIR /ways/gone/here",
            "COPY ways /usr/share/web\nCOPY one /usr/share/web/web/gone/\nCOPY dist /usr/share/web",
            "COPY much /usr/share/web\nCOPY dist /usr/share/web\nCOPY much/unlike /usr/share/web",
            "COPY --link one /srv/made/\nCOPY --link dist /usr/share/web\nCOPY dist/two /srv/made/one",
            "WORKDIR /usr/share/web/app\nCOPY dist/index.html dist/two ./\nCOPY dist .\nCOPY much .",
            "COPY dist /\nCOPY dist /\nCOPY much /opaque\nCOPY much /opaque",
            "COPY --chmod=644 <<eof /etc/passwd\nroot:x:0:0::/:\nnew:x:7:8::/:\neof\nCOPY --chown=new one /gone",
        ] {
            bench.same("packed", &format!("FROM base\n{steps}\n")).expect(steps);
            assert_eq!(bench.unpacked("packed"), BTreeSet::new(), "{steps}");
        }
        // Nor where it waits for another stage.
        let staged = "FROM scratch AS made\nCOPY dist /dist\nFROM base\nCOPY --from=made /dist /usr/share/web\n";
        bench.same("packed", staged).unwrap();
        assert_eq!(bench.unpacked("packed"), BTreeSet::new());
        // What was made over the packed ones stands on the unpacked ones.
        let steps = "FROM base\nWORKDIR /srv/www/made\nCOPY one .\n";
        assert_eq!(bench.build("packed", steps), bench.build("unpacked", steps));
        let files = |store: &str| {
            let args = ["-o", "type=tar,dest=files.tar"];
            assert_eq!(bench.run(store, &args).code, Some(0));
            fs::read(builder.sandbox().path("files.tar")).unwrap()
        };
        assert_eq!(files("packed"), files("unpacked"));
        assert_eq!(bench.unpacked("packed").len(), 2);
    };
    Builder::each(check);
    // One who gives files to nobody, and makes no devices.
    if rustix::process::geteuid().is_root() {
        check(&Builder::User(Ordinary::with_ranges("", "")));
    }
}

#[test]
fn a_copy_that_needs_more_of_its_base_gets_it() {
    Builder::each(|builder| {
        let bench = Bench::new(builder);
        for (number, steps) in [
            // Whether it is the same is told by its bytes.
            "COPY same /usr/share/web/",
            "FROM base AS other\nFROM base\nCOPY --from=other /file /copy",
        ]
        .into_iter()
        .enumerate()
        {
            let store = format!("needing-{number}");
            bench.same(&store, &format!("FROM base\n{steps}\n")).expect(steps);
            assert_eq!(bench.unpacked(&store).len(), 2, "{steps}");
        }
        for steps in [
            "COPY dist /file",
            "COPY one /file/",
            "COPY one /file/in",
            "COPY dist /usr/share/web/link",
            "COPY dist /usr/share/web/index.html/in",
            "COPY one /usr/share/web/sub/../../web/sub/../link/a",
            "COPY dist /loop/a",
            "COPY blocked /usr/share/web",
            "COPY much /usr/share/web/index.html",
            "COPY --chown=nobody one /",
            "COPY --chown=app:nobody one /",
            "COPY dist/sub one /usr/share/web/index.html/",
            "WORKDIR /file",
            "WORKDIR /file/in",
        ] {
            bench.same("failing", &format!("FROM base\n{steps}\n")).expect_err(steps);
        }
    });
}

/// The same tar deletes something in one image, and nothing in another one that begins with it.
#[test]
fn a_layer_is_unpacked_for_where_it_stands() {
    let sandbox = Sandbox::new();
    let below =
        Tar::default().file("gone", "").header("usr/", EntryType::Directory, "", b"", |usr| usr.set_mode(0o711));
    let layer = Tar::default().file(".wh.gone", "").file("usr/x", "").end();
    write_layout(&sandbox.path("alone"), std::slice::from_ref(&layer));
    write_layout(&sandbox.path("above"), &[below.end(), layer.clone(), layer]);
    sandbox.write("Dockerfile", "FROM base\n");
    let files = |store: &str, layout: &str| {
        let base = format!("base=oci-layout://{layout}");
        let args = ["build", "--build-context", &base, "-o", "type=tar,dest=files.tar", "context"];
        let ended = sandbox.wythe(&[&["--root", store][..], &args].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        fs::read(sandbox.path("files.tar")).unwrap()
    };
    let expected = files("fresh", "above");
    files("store", "alone");
    assert!(files("store", "above") == expected);
}

#[test]
fn equal_layers_stand_on_one_another() {
    Builder::each(|builder| {
        builder.sandbox().write("f", "f");
        let dockerfile = "FROM busybox\nCOPY --link f /d/\nRUN rm /d/f\nCOPY --link f /d/\nRUN cat /d/f\n";
        builder.sandbox().write("Dockerfile", dockerfile);
        builder.built(&[]);
    });
}

/// Bases and steps of few names, so that they meet.
#[test]
fn whatever_is_copied_onto_whatever_is_the_same() {
    let builder = Builder::Oneself(Sandbox::new());
    let sandbox = builder.sandbox();
    sandbox.shell(
        "mkdir -p tree/a/b/c tree/b tree/etc/d more/c; for f in a/a a/b/c/d b/a b/b c etc/d/e; do echo $f > tree/$f; done
         ln -s a tree/d; ln tree/b/a tree/b/d; for f in a b d c/a; do echo > more/$f; done; echo x > b; cp -r tree much
         for number in $(seq 20); do echo $number > much/a/$number; done; find . -exec touch -h -d @900000000 {} +",
    );
    let path = |numbers: &mut Random| {
        let names = 1 + numbers.below(3);
        (0..names).map(|_| format!("/{}", numbers.pick(&["a", "b", "c", "d", "etc"]))).collect::<String>()
    };
    let (mut same, mut packed) = (0, 0);
    for seed in 1..=SEEDS {
        let mut numbers = Random(seed * 0x9e37_79b9);
        let layers: Vec<_> = (0..1 + numbers.below(3)).map(|_| relief::random(&mut numbers).end()).collect();
        let layout = format!("base-{seed}");
        let base = write_layout(&sandbox.path(&layout), &layers);
        let bench = Bench { builder: &builder, base, layout: format!("base=oci-layout://{layout}") };
        sandbox.write("Dockerfile", "FROM base\n");
        if bench.run("unpacked", &["-o", "type=tar,dest=files.tar"]).code != Some(0) {
            continue;
        }
        for _ in 0..2 {
            let step = |numbers: &mut Random| {
                let source =
                    *numbers.pick(&["tree", "more", "b", "much", "tree/a", "tree/*", "tree/d", "tree/etc more/"]);
                let options = *numbers.pick(&["", "", "--chown=1:2 ", "--chmod=711 ", "--parents ", "--link "]);
                let slash = if source.contains(['*', ' ']) || numbers.below(2) == 0 { "/" } else { "" };
                match numbers.below(6) {
                    0 => format!("WORKDIR {}", path(numbers)),
                    1 => format!("COPY {options}{source} ./"),
                    _ => format!("COPY {options}{source} {}{slash}", path(numbers)),
                }
            };
            let steps: Vec<_> = (0..1 + numbers.below(3)).map(|_| step(&mut numbers)).collect();
            let result = bench.same("packed", &format!("FROM base\n{}\n", steps.join("\n")));
            same += u32::from(result.is_ok());
        }
        packed += u32::from(bench.unpacked("packed").is_empty());
    }
    assert!(u64::from(same) > SEEDS / 4 && u64::from(packed) > SEEDS / 16, "{same} {packed}");
}

const SEEDS: u64 = 16;

#[test]
fn a_table_that_is_damaged_or_gone_is_made_anew() {
    Builder::each(|builder| {
        let bench = Bench::new(builder);
        let dockerfile = "FROM base\nCOPY dist /usr/share/web\n";
        let expected = bench.same("packed", dockerfile).unwrap();
        let tables = |diff_id: &DiffId| {
            let hex = diff_id.hex();
            builder.sandbox().path("packed/files/table").join(&hex[..2]).join(hex)
        };
        let [first, second] = [tables(&bench.base[0]), tables(&bench.base[1])];
        let before = fs::read(&first).unwrap();
        let mut damaged = before.clone();
        damaged[40] ^= 1;
        for (bytes, is_removed) in [(&damaged[..], false), (&before[..before.len() / 2], false), (b"", true)] {
            fs::write(&first, bytes).unwrap();
            if is_removed {
                fs::remove_file(&first).unwrap();
            }
            assert_eq!(bench.build("packed", dockerfile).as_ref(), Ok(&expected));
            assert_eq!(bench.unpacked("packed"), BTreeSet::new());
            if is_removed {
                assert_eq!(fs::read(&first).unwrap(), before);
            }
        }
        // They go with the blobs.
        assert!(second.exists());
        // What was used in the same tick of the clock counts as in use.
        let store = builder.sandbox().path("packed");
        builder.sandbox().shell(&format!("touch -d @1000000000 {}/blobs/sha256/*", store.display()));
        assert_eq!(builder.wythe(&["--root", "packed", "cache", "prune", "--all"]).code, Some(0));
        assert!(!first.exists() && !second.exists());
        assert_eq!(bench.build("packed", dockerfile), Ok(expected));
    });
}
