//! Layers are fetched when somebody needs them, go on from where they broke off, and are unpacked while
//! they come.

use std::sync::Barrier;

use super::super::builder::Following;
use super::super::sandbox::busybox_layout;
use super::*;

/// Answers for the fixture, and for a `HEAD` of its name.
fn serve(fixture: &Arc<Fixture>) -> Server {
    let served = Arc::clone(fixture);
    Server::start(move |asked, _| served.answer(asked))
}

/// A context with this Dockerfile.
fn context(dockerfile: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", dockerfile);
    sandbox
}

#[test]
fn a_layer_that_nobody_needs_is_not_fetched() {
    let fixture = Arc::new(Fixture::new());
    let server = serve(&fixture);
    let host = server.host();
    let sandbox = context(&format!("FROM {host}/app\nENV A=1\n"));
    let build = |args: &[&str]| done(&sandbox, &[&["build", "-q"], args, &["context"]].concat());
    build(&["-t", "app"]);
    build(&["--pull", "-t", "app"]);
    assert_eq!(server.seen_at("GET", &fixture.layer_path()).len(), 0);
    let images = done(&sandbox, &["images"]);
    let size = format!("{:.1} kB", fixture.layer.len() as f64 / 1000.0);
    assert_eq!(images.matches(&size).count(), 2, "{images}");

    // Pushed where it already is, it is not even looked at.
    let there = Server::start(|asked, _| match asked.method.as_str() {
        "HEAD" => Reply::new(200, ""),
        _ => Reply::new(201, ""),
    });
    done(&sandbox, &["push", "-q", "app", &format!("{}/app", there.host())]);
    assert_eq!(server.seen_at("GET", &fixture.layer_path()).len(), 0);

    // Where it is not, it is fetched to be sent.
    let elsewhere = Server::start(|asked, _| match asked.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        "POST" => Reply::new(202, "").with("Location", "/upload"),
        _ => Reply::new(201, ""),
    });
    done(&sandbox, &["push", "-q", "app", &format!("{}/app", elsewhere.host())]);
    assert_eq!(server.seen_at("GET", &fixture.layer_path()).len(), 1);
    let uploads = elsewhere.seen();
    assert!(uploads.iter().any(|asked| asked.body == fixture.layer), "the layer was not sent");
}

#[test]
fn a_step_or_an_archive_that_needs_files_fetches_them() {
    let fixture = Arc::new(Fixture::new());
    let server = serve(&fixture);
    let host = server.host();
    let fetched = || server.seen_at("GET", &fixture.layer_path()).len();
    let sandbox = context(&format!("FROM {host}/app AS base\nFROM scratch\nCOPY --from=base /file /copy\n"));
    let build = || sandbox.wythe(&["build", "--progress", "plain", "-o", "files", "context"]);
    let first = build();
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    assert!(first.stderr.contains(&format!("[pull] {host}/app")), "{}", first.stderr);
    assert_eq!(std::fs::metadata(sandbox.path("files/copy")).unwrap().len(), 320_000);
    assert_eq!(fetched(), 1);
    assert_eq!(build().code, Some(0));
    assert_eq!(fetched(), 1);

    let other = context(&format!("FROM {host}/app\nENV A=1\n"));
    done(&other, &["build", "-q", "-t", "app", "context"]);
    assert_eq!(fetched(), 1);
    done(&other, &["save", "-q", "app", "-o", other.path("saved.tar").to_str().unwrap()]);
    assert_eq!(fetched(), 2);
    let third = Sandbox::new();
    assert_eq!(done(&third, &["load", "-i", other.path("saved.tar").to_str().unwrap()]), "app:latest\n");
}

/// What a step needs that waits for another stage is fetched meanwhile, unless it never needs it.
#[test]
fn a_base_is_fetched_while_another_stage_runs() {
    let is_fetched_early = |last: &str| {
        let fixture = Arc::new(Fixture::new());
        let server = serve(&fixture);
        let last = last.replace("BASE", &server.host());
        let sandbox =
            context(&format!("FROM busybox AS one\nRUN echo running; sleep 4; echo slow > /f\nRUN echo over\n{last}"));
        let busybox = format!("busybox=oci-layout://{}", busybox_layout().display());
        let mut command = sandbox.command(&["build", "--progress", "plain", "--build-context", &busybox, "context"]);
        let mut build = Following::of(&mut command);
        build.until("running");
        build.until("over");
        let is_early = !server.seen_at("GET", &fixture.layer_path()).is_empty();
        assert_eq!(build.end().0, Some(0));
        is_early
    };
    let lasts = [
        "FROM BASE/app\nCOPY --from=one /f /f\n",
        "FROM busybox\nCOPY --from=one /f /g\nCOPY --from=BASE/app /file /file\n",
        "FROM BASE/app\nCOPY --link --from=one /f /f\n",
    ];
    let is_early = std::thread::scope(|scope| {
        let builds = lasts.map(|last| scope.spawn(move || is_fetched_early(last)));
        builds.map(|build| build.join().unwrap())
    });
    assert_eq!(is_early, [true, true, false]);
}

/// It is looked at as it comes, and no files are made of it: not for the copy, nor ahead of it.
#[test]
fn a_base_that_is_only_copied_onto_is_not_unpacked() {
    for stages in [
        "FROM BASE/app\nWORKDIR /file/..\nCOPY Dockerfile made/\n",
        "FROM busybox AS one\nRUN echo slow > /f\nFROM BASE/app\nWORKDIR /made\nCOPY --from=one /f .\n",
    ] {
        let fixture = Arc::new(Fixture::new());
        let server = serve(&fixture);
        let sandbox = context(&stages.replace("BASE", &server.host()));
        let busybox = format!("busybox=oci-layout://{}", busybox_layout().display());
        done(&sandbox, &["build", "-q", "--build-context", &busybox, "-o", "type=oci,dest=image.tar", "context"]);
        assert_eq!(server.seen_at("GET", &fixture.layer_path()).len(), 1);
        let layers = std::fs::read_dir(sandbox.path("store/layers")).unwrap();
        let base = Digest::of(&fixture.layer).hex();
        for layer in layers {
            let meta = std::fs::read_to_string(layer.unwrap().path().join("layer.json")).unwrap();
            assert!(!meta.contains(&base), "{stages}\n{meta}");
        }
    }
}

#[test]
fn what_broke_off_goes_on_in_the_next_pull() {
    const PART: usize = 200_000;
    let fixture = Arc::new(Fixture::new());
    let path = fixture.layer_path();
    let puller = Puller::new();
    let partial = puller.path("store/partial").join(Digest::of(&fixture.layer).hex());
    // The first connection carries most of it, and those after it nothing.
    let served = Arc::clone(&fixture);
    let broken = Server::start(move |asked, before| match asked.path == served.layer_path() {
        true => served.answer(asked).cut_at(if before == 0 { PART } else { 0 }),
        false => served.answer(asked),
    });
    puller.refuses(&broken, &fixture, "cannot read blob");
    assert_eq!(std::fs::read(&partial).unwrap(), fixture.layer[..PART]);
    // Another server of the same blob: where it is from does not matter.
    let whole = serve(&fixture);
    puller.pull(&whole).unwrap();
    assert_eq!(whole.seen_at("GET", &path)[0].header("range"), format!("bytes={PART}-"));
    assert!(!partial.exists());

    // A part that is not what it was is thrown away, and all of it fetched anew.
    let puller = Puller::new();
    puller.refuses(&broken_after(&fixture, PART), &fixture, "cannot read blob");
    let partial = puller.path("store/partial").join(Digest::of(&fixture.layer).hex());
    std::fs::write(&partial, vec![0; PART]).unwrap();
    let whole = serve(&fixture);
    let record = puller.pull(&whole).unwrap();
    let ranges: Vec<_> = whole.seen_at("GET", &path).iter().map(|asked| asked.header("range").to_owned()).collect();
    assert_eq!(ranges, [format!("bytes={PART}-"), String::new()]);
    assert!(puller.store.has_any_form(&record.layers[0].diff_id).unwrap());
}

fn broken_after(fixture: &Arc<Fixture>, bytes: usize) -> Server {
    let served = Arc::clone(fixture);
    Server::start(move |asked, before| match asked.path == served.layer_path() {
        true => served.answer(asked).cut_at(if before == 0 { bytes } else { 0 }),
        false => served.answer(asked),
    })
}

#[test]
fn prune_takes_what_broke_off() {
    let fixture = Arc::new(Fixture::new());
    let sandbox = Sandbox::new();
    let server = broken_after(&fixture, 200_000);
    assert_eq!(sandbox.wythe(&["pull", "-q", &format!("{}/app", server.host())]).code, Some(1));
    let count = || std::fs::read_dir(sandbox.path("store/partial")).unwrap().count();
    assert_eq!(count(), 1);
    done(&sandbox, &["cache", "prune", "--all", "--dry-run"]);
    assert_eq!(count(), 1);
    done(&sandbox, &["cache", "prune", "--all"]);
    assert_eq!(count(), 0);
}

/// Files of a layer are there before the whole layer is, and go when it turns out to be another one.
#[test]
fn a_layer_that_lies_is_unpacked_in_vain() {
    let honest = Fixture::new();
    let liar = Arc::new(Fixture::of(honest.layer.clone(), DiffId::new(Digest::of(b"other"))));
    let server = serve(&liar);
    let sandbox = context(&format!("FROM {}/app\nCOPY Dockerfile /\n", server.host()));
    let ended = sandbox.wythe(&["build", "context"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("but the image config claims"), "{}", ended.stderr);
    assert_eq!(std::fs::read_dir(sandbox.path("store/layers")).unwrap().count(), 0);
    // And it does not come to be trusted.
    let again = sandbox.wythe(&["build", "context"]);
    assert_eq!(again.code, Some(1));
}

/// Two builders that start at once fetch a blob once between them, and neither waits for ever.
#[test]
fn builders_share_what_they_fetch() {
    let fixture = Arc::new(Fixture::new());
    let served = Arc::clone(&fixture);
    let both = Barrier::new(2);
    let server = Server::start(move |asked, before| {
        // Both have asked what it is before either gets an answer.
        if asked.path.contains("/manifests/") && before < 2 {
            both.wait();
        }
        served.answer(asked)
    });
    let sandbox = context(&format!("FROM {}/app\nCOPY Dockerfile /\n", server.host()));
    std::thread::scope(|scope| {
        let builds: Vec<_> = (0..2).map(|_| scope.spawn(|| sandbox.wythe(&["build", "context"]))).collect();
        for build in builds {
            let ended = build.join().unwrap();
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        }
    });
    assert_eq!(server.seen_at("GET", &fixture.layer_path()).len(), 1);
}

#[test]
fn a_tag_that_has_not_moved_is_asked_for_by_digest_alone() {
    let fixture = Arc::new(Fixture::new());
    let served = Arc::clone(&fixture);
    let server =
        Server::start(move |asked, _| served.answer(asked).with("Docker-Content-Digest", Digest::of(&served.manifest)));
    let puller = Puller::new();
    let first = puller.pull(&server).unwrap();
    assert_eq!(puller.pull(&server).unwrap(), first);
    let path = "/v2/app/manifests/latest";
    assert_eq!((server.seen_at("GET", path).len(), server.seen_at("HEAD", path).len()), (1, 1));
}

/// Stages on the same base fetch it once between them, and it is shown once.
#[test]
fn stages_share_what_they_fetch() {
    let fixture = Arc::new(Fixture::new());
    let server = serve(&fixture);
    let host = server.host();
    let stages = ["a", "b", "c"].map(|name| format!("FROM {host}/app AS {name}\nCOPY Dockerfile /{name}\n"));
    let copies = ["a", "b", "c"].map(|name| format!("COPY --from={name} /{name} /\n"));
    let sandbox = context(&format!("{}FROM scratch\n{}", stages.concat(), copies.concat()));
    let ended = sandbox.wythe(&["build", "--progress", "plain", "-o", "out", "context"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(server.seen_at("GET", &fixture.layer_path()).len(), 1);
    let titles = ended.stderr.lines().filter(|line| line.starts_with('#') && line.contains(" [pull] "));
    let numbers: BTreeSet<_> = titles.filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(numbers.len(), 1, "{}", ended.stderr);
}
