//! Wrong hits, each by the way it could come about, and what a store does that was damaged.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use wythe::digest::Digest;

use super::builder::Builder;
use super::image::{Image, members};
use super::sandbox::{Ended, Sandbox, busybox_layout};

fn image(sandbox: &Sandbox, name: &str) -> Image {
    Image::read(&fs::read(sandbox.path(name)).unwrap())
}

fn succeeded(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// The content a file of the context must have landed with, as `Image::files` tells it.
fn says(content: &str) -> String {
    Digest::of(content.as_bytes()).hex()
}

fn holds(image: &Image, path: &str, content: &str) -> bool {
    let digest = says(content);
    image.files[path].contains(&digest[..12])
}

/// A context that changes while it is copied: a build of it may fail, but what it leaves in the cache
/// is never found by a build of something else.
#[test]
fn a_context_that_changes_during_the_build_poisons_nothing() {
    const ROUNDS: usize = 12;
    let sandbox = Sandbox::new();
    let contents = ["a".repeat(1 << 20), "b".repeat(1 << 20)];
    sandbox.write("f", &contents[0]);
    let is_over = AtomicBool::new(false);
    let dockerfile = |round: usize| format!("FROM scratch\nCOPY f /{round}\n");
    let mut failures = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0;
            while !is_over.load(Ordering::Relaxed) {
                turn += 1;
                // In place, so that a reader may see one half of each.
                fs::write(sandbox.context.join("f"), &contents[turn % 2]).unwrap();
            }
        });
        for round in 0..ROUNDS {
            fs::write(sandbox.path("Dockerfile"), dockerfile(round)).unwrap();
            let ended = sandbox.build("image.tar", &["-f".into(), "Dockerfile".into()]);
            if ended.code != Some(0) {
                assert!(ended.stderr.contains("changed during the build"), "{}", ended.stderr);
                failures += 1;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    for content in &contents {
        sandbox.write("f", content);
        for round in 0..ROUNDS {
            fs::write(sandbox.path("Dockerfile"), dockerfile(round)).unwrap();
            let ended = sandbox.build("image.tar", &["-f".into(), "Dockerfile".into()]);
            succeeded(&ended);
            assert!(
                holds(&image(&sandbox, "image.tar"), &round.to_string(), content),
                "round {round}, {failures} failed"
            );
        }
    }
}

/// The same size, the same mtime, and no time in between: only the content tells.
#[test]
fn an_edit_within_a_tick_of_the_clock_is_seen() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM scratch\nCOPY f /f\n");
    for round in 0..10 {
        let content = format!("content {round}");
        sandbox.write("f", &content);
        sandbox.shell("touch -d @1000000000 f");
        succeeded(&sandbox.build("image.tar", &[]));
        assert!(holds(&image(&sandbox, "image.tar"), "f", &content), "round {round}");
    }
}

/// Of a copy that is made again what did not change is no second copy, and nothing of that shows in the image.
#[test]
fn a_copy_shares_what_did_not_change_with_the_one_before() {
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        sandbox.shell("mkdir -p d/0 d/1 d/2");
        for name in 0..40 {
            sandbox.write(&format!("d/{}/{name}", name % 3), &format!("content {name}"));
        }
        let read = "RUN test -e /src/2/2\n";
        sandbox.write("Dockerfile", &format!("FROM busybox\nRUN echo one > /below\nCOPY d /src\n{read}"));
        builder.built(&[]);
        let shared = || {
            let layers = fs::read_dir(builder.store().join("layers")).unwrap().map(|entry| entry.unwrap().path());
            let sources = layers.map(|layer| layer.join("fs/src")).filter(|path| path.exists());
            let entries = sources.flat_map(walkdir::WalkDir::new).map(|entry| entry.unwrap());
            entries.filter(|entry| entry.file_type().is_file() && entry.metadata().unwrap().nlink() == 2).count()
        };
        assert_eq!(shared(), 0);
        // One that looks as before, one gone, one new, and others with the time or the mode of before no more.
        sandbox.shell(
            "cd d; touch -r 0/0 ../then; echo CONTENT 0 > 0/0; truncate -s 9 0/0; touch -r ../then 0/0; \
             rm 1/1; echo new > 2/new; touch 2/2; chmod 755 0/3; mkdir 2/directory",
        );
        builder.built(&[]);
        let diff_id = || image(sandbox, "image.tar").diff_ids.pop();
        let beside = diff_id();
        assert_eq!(shared(), 2 * 36);
        // Nothing reads that one, so it is packed from the context.
        sandbox.write("Dockerfile.alone", "FROM busybox\nCOPY --link d /src\n");
        builder.built(&["-f", "context/Dockerfile.alone"]);
        assert_eq!(diff_id(), beside);
        // On something else, too.
        sandbox.write("Dockerfile", &format!("FROM busybox\nRUN echo another > /below\nCOPY d /src\n{read}"));
        builder.built(&[]);
        assert_eq!(diff_id(), beside);
        assert_eq!(shared(), 2 * 4);
    });
}

/// A copy whose files nothing reads makes no directory; a build that reads them later finds them.
#[test]
fn a_last_copy_is_packed_from_the_context() {
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        sandbox.shell("mkdir -p d/e; for i in $(seq 40); do echo $i > d/e/$i; done; ln d/e/7 d/link; chmod 4755 d/e/8");
        sandbox.write("Dockerfile", "FROM busybox\nCOPY --chown=5:6 d /usr/share/d\nENV A=b\n");
        let has_directory = || {
            let layers = fs::read_dir(builder.store().join("layers")).unwrap().map(|entry| entry.unwrap().path());
            layers.filter(|layer| layer.join("fs/usr/share/d").exists()).count() > 0
        };
        builder.built(&[]);
        assert!(!has_directory());
        let outlined = image(sandbox, "image.tar");
        assert!(holds(&outlined, "usr/share/d/e/40", "40\n"));
        assert!(outlined.files["usr/share/d/e/8"].starts_with("file 4755 5:6 "), "{:?}", outlined.files);
        assert_eq!(builder.built(&[]).ran(), [""; 0]);
        builder.built(&["--output", "type=tar,dest=files.tar"]);
        assert_eq!(members(&fs::read(sandbox.path("files.tar")).unwrap())["usr/share/d/e/40"], b"40\n");
        // From another stage as well.
        let stages =
            "FROM busybox AS a\nCOPY --chown=5:6 d /d\nFROM busybox\nCOPY --from=a --chown=5:6 /d /usr/share/d\n";
        sandbox.write("Dockerfile.stages", stages);
        builder.built(&["-f", "context/Dockerfile.stages"]);
        assert_eq!(image(sandbox, "image.tar").files, outlined.files);
        // The same bytes as those of a copy that is made, also over files of which one is the same and one is not.
        let pinned = ["--build-arg", "SOURCE_DATE_EPOCH=1000000000"];
        let lines = "COPY --chown=5:6 d/e/1 d/e/2 /usr/share/d/e/\nRUN echo other > /usr/share/d/e/2\n\
                     COPY --chown=5:6 d /usr/share/d\n";
        let copied = |name: &str, before: &str, after: &str| {
            sandbox.write(name, &format!("FROM busybox\n{before}{lines}{after}"));
            builder.built(&[&["-f", &format!("context/{name}")], &pinned[..]].concat());
            let (diff_ids, files) = (image(sandbox, "image.tar").diff_ids, image(sandbox, "image.tar").files);
            assert!(files["usr/share/d/e/2"].contains(&says("2\n")[..12]), "{files:?}");
            diff_ids[diff_ids.len() - 1].clone()
        };
        let outlined = copied("Dockerfile.over", "", "");
        assert_eq!(
            copied("Dockerfile.made", "RUN echo another > /below\n", "RUN test -e /usr/share/d/link\n"),
            outlined
        );
    });
}

/// The files of a copy that is like nothing in the cache are read once, for its key and its layer.
#[test]
fn a_first_copy_reads_its_files_once() {
    const FILES: u64 = 12;
    let sandbox = Sandbox::new();
    sandbox.shell("mkdir d; head -c 1048576 /dev/urandom > d/0; for i in $(seq 11); do cp d/0 d/$i; done");
    sandbox.write("Dockerfile", "FROM busybox\nCOPY d /new/d\n");
    // Megabytes that the program and all its children have read.
    let read = |args: &[&str]| {
        let busybox = format!("busybox=oci-layout://{}", busybox_layout().display());
        let fixed = ["build", "-q", "--pull=never", "--build-context", &busybox, "context"];
        let output = counting(&sandbox.command(&[&fixed, args].concat())).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let count = text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
        count.parse::<u64>().unwrap() >> 20
    };
    // The base is read by this one.
    sandbox.write("Dockerfile.base", "FROM busybox\nRUN true\n");
    read(&["-f", "context/Dockerfile.base"]);
    let once = read(&[]);
    assert!((FILES..FILES + 3).contains(&once), "{once} MB");
    // Once more for a key that is compared with others first.
    sandbox.write("Dockerfile.other", "FROM busybox\nCOPY d /other/d\n");
    sandbox.shell("for i in $(seq 0 11); do echo >> d/$i; done");
    let twice = read(&["-f", "context/Dockerfile.other", "--explain"]);
    assert!((2 * FILES..2 * FILES + 3).contains(&twice), "{twice} MB");
}

/// `command` in a shell that tells then what was read.
fn counting(command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-euc", "\"$@\"; cat /proc/$$/io", "sh"]).arg(command.get_program()).args(command.get_args());
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.current_dir(command.get_current_dir().unwrap()).stdin(Stdio::null());
    shell
}

/// Wherever a copy lands that is packed while it is read for the first time, it is what a copy is whose files are made.
#[test]
fn a_first_copy_packs_to_what_is_copied() {
    const COPIES: &[&str] = &[
        "COPY . /new/place/",
        "WORKDIR /empty\nCOPY . .",
        "RUN mkdir -p /old/d /old/e; echo > /old/d/1; echo 2 > /old/d/2; chmod 700 /old/e\nCOPY . /old",
        "COPY --chown=3:4 --chmod=u+x,go-w d /new/d",
        "COPY d/* single /files/",
        "COPY single /other-name",
        "COPY --parents d/*/deep ./single /parents/",
        "COPY --exclude=**/deep . /without",
    ];
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        sandbox.shell(
            "mkdir -p d/e/deep d/empty f; for i in $(seq 20); do echo $i > d/$i; echo $i > d/e/deep/$i; done; \
             ln d/1 d/e/link; ln d/1 f/link; ln -s 1 d/symlink; mkfifo d/pipe; chmod 2755 d/e; \
             touch -d @1000000000 d/e d/3; head -c 2000000 /dev/zero > single",
        );
        // Not every filesystem takes them.
        sandbox.shell("setfattr -n user.a -v b d/4 d/e || true");
        let pinned = ["--build-arg", "SOURCE_DATE_EPOCH=1000000000"];
        for (number, copy) in COPIES.iter().enumerate() {
            let built = |name: &str, before: &str, after: &str| {
                // Beside the context, by the name that everybody has for it.
                let file = format!("{name}.{number}");
                fs::write(sandbox.path(&file), format!("FROM busybox\n{before}{copy}\n{after}")).unwrap();
                builder.built(&[&["-f", &file], &pinned[..]].concat());
                let image = image(sandbox, "image.tar");
                (image.diff_ids.last().cloned(), image.files)
            };
            let (first, _) = built("first", "", "");
            // On another parent, so that the layer is not taken from the first; a RUN needs files, and changes nothing.
            let (made, files) = built("made", "RUN echo > /below\n", "RUN true\n");
            assert_eq!(first, made, "{copy}: {files:#?}");
        }
    });
}

/// And what it packs can be unpacked again.
#[test]
fn a_later_step_reads_what_was_packed_from_the_context() {
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        sandbox.shell("mkdir d; for i in $(seq 40); do echo $i > d/$i; done");
        let dockerfile = "FROM busybox\nCOPY d /d\n";
        sandbox.write("Dockerfile", dockerfile);
        builder.built(&["--output", "type=oci,dest=plain.tar,compression=uncompressed"]);
        sandbox.write("Dockerfile", &format!("{dockerfile}RUN cat /d/* | wc -l > /count\n"));
        let ended = builder.built(&[]);
        assert_eq!(ended.ran(), ["[3/3] RUN cat /d/* | wc -l > /count"]);
        assert!(holds(&image(sandbox, "image.tar"), "count", "40\n"));
    });
}

/// The only layer of the store that holds `name`.
fn layer_with(sandbox: &Sandbox, name: &str) -> PathBuf {
    let layers = fs::read_dir(sandbox.path("store/layers")).unwrap().map(|entry| entry.unwrap().path());
    let mut found = layers.filter(|layer| layer.join("fs").join(name).exists());
    let layer = found.next().unwrap();
    assert_eq!(found.next(), None);
    layer
}

/// Rewrites the JSON of a small file of the store, which carries its own digest.
fn reseal(path: &Path, edit: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(path).unwrap();
    let (json, _) = text.split_once('\n').unwrap();
    let mut value: Value = serde_json::from_str(json).unwrap();
    edit(&mut value);
    let content = format!("{value}\n");
    fs::write(path, format!("{content}{}\n", Digest::of(value.to_string().as_bytes()))).unwrap();
}

/// The power went before a file of the layer reached the disk: after the next boot the layer is not
/// taken for whole.
#[test]
fn a_layer_torn_by_a_power_cut_is_made_again() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN echo whole > /torn; echo up >&2\n");
    succeeded(&sandbox.build("image.tar", &[]));
    let layer = layer_with(&sandbox, "torn");
    fs::write(layer.join("fs/torn"), "").unwrap();
    reseal(&layer.join("layer.json"), |meta| {
        assert_eq!(meta["is_synced"], false);
        meta["boot_id"] = "another".into();
    });
    fs::remove_dir_all(sandbox.path("store/forms")).unwrap();
    let ended = sandbox.build("image.tar", &[]);
    succeeded(&ended);
    assert_eq!(ended.ran(), ["[2/2] RUN echo whole > /torn; echo up >&2"]);
    assert!(holds(&image(&sandbox, "image.tar"), "torn", "whole\n"));
}

/// A layer of another boot that is whole is taken.
#[test]
fn a_whole_layer_of_another_boot_is_found() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN echo whole > /file\n");
    succeeded(&sandbox.build("image.tar", &[]));
    let layer = layer_with(&sandbox, "file");
    reseal(&layer.join("layer.json"), |meta| meta["boot_id"] = "another".into());
    let ended = sandbox.build("image.tar", &[]);
    succeeded(&ended);
    assert_eq!(ended.ran(), [""; 0]);
}

/// Several builders want the same step at once: one executes it, the others take its result.
#[test]
fn builders_of_one_step_execute_it_once() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "Dockerfile",
        "FROM busybox\n\
         RUN --mount=type=cache,target=/count echo x >> /count/runs; sleep 0.3; head -c 8 /dev/urandom > /random\n",
    );
    let children: Vec<_> = (0..4)
        .map(|builder| {
            let args = sandbox.build_args(&format!("{builder}.tar"), &[]);
            sandbox.command(&args).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let ids: Vec<_> = (0..4).map(|builder| image(&sandbox, &format!("{builder}.tar")).diff_ids).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    sandbox.write("Dockerfile", "FROM busybox\nRUN --mount=type=cache,target=/count cat /count/runs\n");
    let ended = sandbox.build("image.tar", &[]);
    succeeded(&ended);
    assert_eq!(ended.stderr.lines().filter(|line| line.ends_with(" x")).count(), 1, "{}", ended.stderr);
}

/// Copies the layout of busybox and changes its documents; blobs are named anew.
fn forged_layout(sandbox: &Sandbox, forge: impl FnOnce(&mut Value, &mut Value, &dyn Fn(&[u8]) -> Value)) -> PathBuf {
    let layout = sandbox.path("forged");
    let from = busybox_layout();
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    for name in ["oci-layout", "index.json"] {
        fs::copy(from.join(name), layout.join(name)).unwrap();
    }
    for blob in fs::read_dir(from.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        fs::copy(blob.path(), layout.join("blobs/sha256").join(blob.file_name())).unwrap();
    }
    let read = |digest: &Value| -> Value {
        let name = digest.as_str().unwrap().replace(':', "/");
        serde_json::from_slice(&fs::read(layout.join("blobs").join(name)).unwrap()).unwrap()
    };
    let store = |bytes: &[u8]| -> Value {
        let digest = Digest::of(bytes);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"digest": digest.to_string(), "size": bytes.len()})
    };
    let mut index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let mut manifest = read(&index["manifests"][0]["digest"]);
    let mut config = read(&manifest["config"]["digest"]);
    forge(&mut manifest, &mut config, &store);
    let merge = |into: &mut Value, from: Value| {
        into["digest"] = from["digest"].clone();
        into["size"] = from["size"].clone();
    };
    merge(&mut manifest["config"], store(config.to_string().as_bytes()));
    merge(&mut index["manifests"][0], store(manifest.to_string().as_bytes()));
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    layout
}

fn tar_of(name: &str, content: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

/// An image whose config names the layers of another one, over a blob of its own.
#[test]
fn an_image_that_claims_anothers_layers_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN true\n");
    succeeded(&sandbox.build("image.tar", &[]));
    let honest = image(&sandbox, "image.tar");
    let layout = forged_layout(&sandbox, |manifest, _, store| {
        let blob = store(&tar_of("evil", "evil"));
        manifest["layers"][0] = json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blob["digest"], "size": blob["size"],
        });
    });
    sandbox.write("Dockerfile", "FROM evil\nRUN true\n");
    let context = format!("evil=oci-layout://{}", layout.display());
    let ended = sandbox.build("evil.tar", &["--build-context".into(), context]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("layer 1 of 1"), "{}", ended.stderr);
    assert!(!sandbox.path("evil.tar").exists());
    sandbox.write("Dockerfile", "FROM busybox\nRUN true\n");
    succeeded(&sandbox.build("image.tar", &[]));
    assert_eq!(image(&sandbox, "image.tar").diff_ids, honest.diff_ids);
}

/// Nothing an image says of its history can stand for a step.
#[test]
fn a_history_that_claims_a_step_is_not_believed() {
    let sandbox = Sandbox::new();
    let layout = forged_layout(&sandbox, |_, config, _| {
        config["history"].as_array_mut().unwrap().push(json!({
            "created_by": "RUN /bin/sh -c echo mine > /mine", "comment": "wythe", "empty_layer": true,
        }));
    });
    sandbox.write("Dockerfile", "FROM claims\nRUN echo mine > /mine\n");
    let ended =
        sandbox.build("image.tar", &["--build-context".into(), format!("claims=oci-layout://{}", layout.display())]);
    succeeded(&ended);
    assert_eq!(ended.ran().len(), 1);
    assert!(holds(&image(&sandbox, "image.tar"), "mine", "mine\n"));
}

/// Every file of the cache and every blob, cut and changed: the build makes anew what it needs, or says
/// what is damaged and is right the next time.
#[test]
fn damage_is_a_miss_and_never_a_wrong_image() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nCOPY f /f\nRUN cat /f > /g\nENV A=1\n");
    sandbox.write("f", "content");
    let build = || sandbox.build("image.tar", &[]);
    succeeded(&build());
    let files = image(&sandbox, "image.tar").files;
    let mut victims = Vec::new();
    for folder in ["cache", "forms", "blobs/sha256"] {
        let walk = walkdir::WalkDir::new(sandbox.path("store").join(folder)).sort_by_file_name();
        victims.extend(walk.into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file()));
    }
    assert!(victims.len() >= 8, "{victims:?}");
    for victim in &victims {
        let Ok(whole) = fs::read(victim.path()) else { continue };
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [&whole[..whole.len() / 2], &flipped, b""] {
            fs::write(victim.path(), damaged).unwrap();
            let ended = build();
            if ended.code != Some(0) {
                assert!(ended.stderr.contains("damaged"), "{}: {}", victim.path().display(), ended.stderr);
                succeeded(&build());
            }
            assert_eq!(image(&sandbox, "image.tar").files, files, "{}", victim.path().display());
        }
    }
}

/// A store on a full disk: the build fails with that reason, leaves no output, and goes on when there is
/// room.
#[test]
fn a_full_disk_is_said_and_survived() {
    let sandbox = Sandbox::new();
    let store = sandbox.path("small");
    fs::create_dir(&store).unwrap();
    let mount = |args: &[&str]| Command::new("mount").args(args).arg(&store).status().unwrap().success();
    assert!(mount(&["-t", "tmpfs", "-o", "size=12m", "tmpfs"]));
    let root = format!("--root={}", store.display());
    let build = |dockerfile: &str| {
        sandbox.write("Dockerfile", dockerfile);
        sandbox.build("image.tar", std::slice::from_ref(&root))
    };
    let filled = build("FROM busybox\nRUN head -c 20000000 /dev/zero > /big\n");
    let copied = {
        sandbox.shell("head -c 20000000 /dev/urandom > big");
        build("FROM busybox\nCOPY big /big\n")
    };
    let small = build("FROM busybox\nRUN echo small > /small\n");
    let files = fs::read(sandbox.path("image.tar")).map(|bytes| Image::read(&bytes).files);
    assert!(Command::new("umount").arg(&store).status().unwrap().success());
    assert_eq!(filled.code, Some(1), "{}", filled.stderr);
    assert!(filled.stderr.contains("full") || filled.stderr.contains("No space left"), "{}", filled.stderr);
    assert_eq!(copied.code, Some(1), "{}", copied.stderr);
    assert!(copied.stderr.contains("full") || copied.stderr.contains("No space left"), "{}", copied.stderr);
    succeeded(&small);
    assert!(files.unwrap().contains_key("small"));
}

/// `cache explain` names the fact.
#[test]
fn misses_are_explained() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nARG V=1\nCOPY d /d\nRUN cat /d/f > /out\n");
    sandbox.shell("mkdir d; echo 1 > d/f; echo 2 > d/g");
    succeeded(&sandbox.build("image.tar", &[]));
    let busybox = format!("busybox=oci-layout://{}", busybox_layout().display());
    let explain = |args: &[&str]| {
        let fixed = ["cache", "explain", "--build-context", &busybox, "context"];
        let ended = sandbox.wythe(&[&fixed[..], args].concat());
        succeeded(&ended);
        String::from_utf8(ended.stdout).unwrap()
    };
    assert!(explain(&[]).ends_with("0 of 3 steps would run\n"), "{}", explain(&[]));
    assert!(explain(&["--build-arg", "V=2"]).contains("ARG V changed: was `1`, is `2`"));
    sandbox.shell("echo changed > d/g");
    let told = explain(&[]);
    assert!(told.contains("`d/g`: content changed (2 → 8 bytes)"), "{told}");
    assert!(!told.contains("`d/f`"), "{told}");
    assert!(told.contains("it follows `[2/3] COPY d /d`, which has to run"), "{told}");
    let records = sandbox.wythe(&["cache", "ls", "--json"]);
    let records: Vec<Value> = serde_json::from_slice(&records.stdout).unwrap();
    assert_eq!(records.len(), 2, "explaining records nothing: {records:?}");
}

/// `cache prune --all` leaves images and nothing else.
#[test]
fn prune_keeps_images_and_what_they_stand_on() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN echo kept > /kept\n");
    succeeded(&sandbox.build("image.tar", &["-t".into(), "kept".into()]));
    let kept = image(&sandbox, "image.tar").files;
    sandbox.write("Dockerfile", "FROM busybox\nRUN echo gone > /gone\n");
    succeeded(&sandbox.build("image.tar", &[]));
    let told = sandbox.wythe(&["cache", "prune", "--all", "--dry-run"]);
    succeeded(&told);
    assert!(layer_with(&sandbox, "gone").exists());
    succeeded(&sandbox.wythe(&["cache", "prune", "--all"]));
    let layers: Vec<_> = fs::read_dir(sandbox.path("store/layers")).unwrap().collect();
    assert_eq!(layers.len(), 2, "{layers:?}");
    sandbox.write("Dockerfile", "FROM kept\n");
    succeeded(&sandbox.build("image.tar", &[]));
    assert_eq!(image(&sandbox, "image.tar").files, kept);
}
