//! Images pulled from and pushed to registries: Debian's `docker-registry`, started for each test on a
//! port of its own, and a server that does what registries do on bad days. Nothing here leaves this
//! machine.

mod lazy;
mod places;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use wythe::diag::Diagnostic;
use wythe::digest::{DiffId, Digest};
use wythe::image::manifest::{Descriptor, Manifest, media_type};
use wythe::image::{Platform, Reference};
use wythe::progress::Audience;
use wythe::registry::{self, Client, CredentialFile, Options, Package, Remote};
use wythe::store::{ImageRecord, Store};

use super::sandbox::Sandbox;
use super::server::{Asked, Reply, Server};

// ---- a real registry

/// `docker-registry`; stopped when dropped.
struct Registry {
    process: Child,
    host: String,
    log: Arc<Mutex<Vec<String>>>,
    dir: TempDir,
}

impl Registry {
    /// `users` are lines of `htpasswd`.
    fn start(users: Option<&str>) -> Option<Self> {
        Self::with(|directory, config| {
            if let Some(users) = users {
                let path = directory.join("users");
                std::fs::write(&path, users).unwrap();
                config["auth"] = json!({"htpasswd": {"realm": "test", "path": path}});
            }
        })
    }

    /// `None`, said on standard error, where it is not installed.
    #[allow(clippy::print_stderr)]
    fn with(configure: impl FnOnce(&Path, &mut Value)) -> Option<Self> {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut config = json!({
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": path("data")}},
            "http": {"addr": "127.0.0.1:0"},
        });
        configure(dir.path(), &mut config);
        std::fs::write(path("config.yml"), config.to_string()).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path("config.yml")).stdout(Stdio::null()).stderr(Stdio::piped());
        let Ok(mut process) = command.spawn() else {
            eprintln!("not tested against docker-registry, which is not installed");
            return None;
        };
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let listening =
            |line: String| Some(line.split_once("listening on ")?.1.split(['"', ' ', ',']).next()?.to_owned());
        let host = lines.by_ref().find_map(listening).expect("docker-registry does not listen");
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || lines.for_each(|line| kept.lock().unwrap().push(line)));
        Some(Self { process, host, log, dir })
    }

    fn directory(&self) -> &Path {
        self.dir.path()
    }

    fn has_logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(text))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A sandbox whose context makes one layer on `base`.
fn sandbox(base: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", &format!("FROM {base}\nRUN echo hello > /hello\nENV A=b\n"));
    sandbox
}

fn done(sandbox: &Sandbox, args: &[&str]) -> String {
    let ended = sandbox.wythe(args);
    assert_eq!(ended.code, Some(0), "{args:?}\n{}", ended.stderr);
    String::from_utf8(ended.stdout).unwrap()
}

#[allow(clippy::print_stderr)] // It says what it cannot check.
fn skopeo(args: &[&str]) -> Option<Value> {
    let Ok(output) = Command::new("skopeo").args(args).output() else {
        eprintln!("not checked by skopeo, which is not installed");
        return None;
    };
    assert!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn what_was_pushed_is_pulled() {
    let Some(registry) = Registry::start(None) else { return };
    let host = &registry.host;
    let first = sandbox("busybox");
    let name = format!("{host}/team/app:1");
    let metadata = first.path("metadata");
    let args = ["-t", &name, "--push", "--metadata-file", metadata.to_str().unwrap()].map(str::to_owned);
    let built = first.build("image.tar", &args);
    assert_eq!(built.code, Some(0), "{}", built.stderr);
    let metadata: Value = serde_json::from_slice(&std::fs::read(metadata).unwrap()).unwrap();
    let digest = metadata["containerimage.digest"].as_str().unwrap();
    assert!(built.stderr.contains(&format!("{host}/team/app@{digest}")), "{}", built.stderr);
    // Everything is there: nothing is sent again, and the name stands for the same.
    assert_eq!(done(&first, &["push", &name]), format!("{digest}\n"));
    if let Some(inspected) = skopeo(&["inspect", "--tls-verify=false", &format!("docker://{name}")]) {
        assert_eq!(inspected["Digest"], digest);
        assert_eq!(inspected["Env"].as_array().unwrap().last().unwrap(), "A=b");
    }

    let second = Sandbox::new();
    let id = done(&second, &["pull", &name]);
    assert_eq!(id.trim(), metadata["containerimage.config.digest"]);
    // Pulled as it is, pushed as it was; the other repository takes the blobs from the first.
    let other = format!("{host}/other/app:2");
    assert_eq!(done(&second, &["push", &name, &other]), format!("{digest}\n"));
    assert!(registry.has_logged("from=team/app"), "no blob was mounted");

    let third = sandbox(&other);
    let (output, file) = (third.path("layout"), third.path("layout"));
    let output = format!("type=oci,tar=false,dest={}", output.display());
    let ended = third.wythe(&["build", "--progress", "plain", "-o", &output, "context"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("[pull] {other}")), "{}", ended.stderr);
    assert!(file.join("index.json").exists());
    // The store has it now; with `--pull` the registry is asked all the same, and nothing runs.
    for (pull, is_asked) in [("--pull=missing", false), ("--pull", true), ("--pull=never", false)] {
        let again = third.wythe(&["build", "--progress", "plain", pull, "context"]);
        assert_eq!(again.code, Some(0), "{}", again.stderr);
        assert_eq!(again.stderr.contains("[resolve]"), is_asked, "{pull}: {}", again.stderr);
        assert!(again.ran().iter().all(|title| title.contains("[resolve]")), "{pull}: {}", again.stderr);
    }
    let pinned = sandbox(&format!("{host}/team/app@{digest}"));
    assert_eq!(pinned.wythe(&["build", "context"]).code, Some(0));
}

#[test]
fn several_platforms_are_pushed_as_an_index() {
    let Some(registry) = Registry::start(None) else { return };
    let name = format!("{}/multi", registry.host);
    let first = Sandbox::new();
    first.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /$TARGETARCH\n");
    let args = ["build", "-q", "-t", &name, "--platform", "linux/amd64,linux/arm64", "-o", "type=registry", "context"];
    let ids = done(&first, &args);
    for (platform, id) in [("linux/amd64", 0), ("linux/arm64", 1)] {
        let second = Sandbox::new();
        let pulled = done(&second, &["pull", "-q", "--platform", platform, &name]);
        assert_eq!(pulled.lines().next(), ids.lines().nth(id), "{platform}");
    }
    let second = Sandbox::new();
    let ended = second.wythe(&["pull", "--platform", "linux/s390x", &name]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("none for `linux/s390x`, only for `linux/amd64`, `linux/arm64`"), "{}", ended.stderr);
}

#[test]
fn passwords_come_from_the_users_files() {
    // `se:cret`, as bcrypt has it.
    const USERS: &str = "user:$2y$04$abcdefghijklmnopqrstuu17JYDSDnwCnbeRSI7wxymnD3SKI1vtG\n";
    let Some(registry) = Registry::start(Some(USERS)) else { return };
    let first = sandbox("busybox");
    let name = format!("{}/private", registry.host);
    assert_eq!(first.build("image.tar", &["-t".into(), name.clone()]).code, Some(0));
    let refused = first.wythe(&["push", &name]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains(&format!("`docker login {}`", registry.host)), "{}", refused.stderr);

    std::fs::create_dir(first.path(".docker")).unwrap();
    // user:se:cret
    let auths = json!({"auths": {&registry.host: {"auth": "dXNlcjpzZTpjcmV0"}}});
    std::fs::write(first.path(".docker/config.json"), auths.to_string()).unwrap();
    let digest = done(&first, &["push", "-q", &name]);

    // And from a helper, which is a program.
    let second = Sandbox::new();
    let helper = second.path("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread server; test \"$1 $server\" = 'get {}'\necho '{{\"Username\":\"user\",\"Secret\":\"se:cret\"}}'\n",
        registry.host
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = second.path("auth.json");
    std::fs::write(&config, json!({"credHelpers": {&registry.host: "test"}}).to_string()).unwrap();
    let path = format!("{}:/usr/bin:/bin", second.path("").display());
    let mut pull = second.command(&["pull", "-q", &name]);
    let output = pull.env("REGISTRY_AUTH_FILE", &config).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::create_dir(second.path(".docker")).unwrap();
    std::fs::write(second.path(".docker/config.json"), auths.to_string()).unwrap();
    assert_eq!(done(&second, &["push", "-q", &name]), digest);
}

#[test]
fn images_go_through_files() {
    let first = sandbox("busybox");
    assert_eq!(first.build("image.tar", &["-t".into(), "app:1".into()]).code, Some(0));
    let file = first.path("saved.tar");
    done(&first, &["save", "app:1", "-o", file.to_str().unwrap()]);
    let id = done(&first, &["images", "-q"]);
    let second = Sandbox::new();
    assert_eq!(done(&second, &["load", "-i", file.to_str().unwrap()]), "app:1\n");
    assert_eq!(done(&second, &["images", "-q"]), id);
    // Compressed and through a pipe, as `docker save | gzip` is carried about.
    let third = Sandbox::new();
    let mut gzip = Command::new("gzip").arg("-c").arg(&file).stdout(Stdio::piped()).spawn().unwrap();
    let loaded = third.command(&["load"]).stdin(gzip.stdout.take().unwrap()).output().unwrap();
    assert!(gzip.wait().unwrap().success());
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    assert_eq!(done(&third, &["images", "-q"]), id);
    // Several images in one file, one of them under two names.
    first.write("Dockerfile", "FROM busybox\nRUN echo other > /other\n");
    assert_eq!(first.build("image.tar", &["-t".into(), "other:2".into(), "-t".into(), "other:3".into()]).code, Some(0));
    let all = first.path("all.tar");
    done(&first, &["save", "app:1", "other:2", "other:3", "-o", all.to_str().unwrap()]);
    let fourth = Sandbox::new();
    assert_eq!(done(&fourth, &["load", "-i", all.to_str().unwrap()]), "app:1\nother:2\nother:3\n");
    let ids = |sandbox: &Sandbox| done(sandbox, &["images", "-q"]).lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(ids(&fourth), ids(&first));
    if let Some(inspected) = skopeo(&["inspect", &format!("docker-archive:{}:other:3", all.display())]) {
        assert_eq!(inspected["Layers"].as_array().unwrap().len(), 2, "{inspected}");
    }
    let left: Vec<_> = std::fs::read_dir(third.path("store/tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.iter().all(|path| !path.to_string_lossy().contains("load-")), "{left:?}");
}

#[test]
fn images_are_given_to_another_program() {
    let sandbox = sandbox("busybox");
    let programs = sandbox.path("programs");
    std::fs::create_dir(&programs).unwrap();
    let program = |script: &str| {
        let path = programs.join("docker");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let mut args = sandbox.build_args("unused", &["-t".into(), "app:1".into(), "--load".into()]);
    args.retain(|arg| arg != "-o" && !arg.starts_with("type=oci,"));
    let build = || {
        let path = format!("{}:/usr/bin:/bin", programs.display());
        let output = sandbox.command(&args).env("PATH", path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let loaded = sandbox.path("loaded.tar");
    program(&format!("test \"$1\" = load && cat > {}", loaded.display()));
    let (code, said) = build();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("[export] docker load"), "{said}");
    let other = Sandbox::new();
    assert_eq!(done(&other, &["load", "-i", loaded.to_str().unwrap()]), "app:1\n");

    program("head -c 100000 > /dev/null; echo 'no room' >&2; exit 1");
    let (code, said) = build();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("`docker load` does not take the image") && said.contains("no room"), "{said}");
}

/// Passes connections on to a registry, and ends the first that carries more than `cut_at` bytes to it.
fn cutting_proxy(registry: &Registry, cut_at: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (host, target) = (listener.local_addr().unwrap().to_string(), registry.host.clone());
    let is_cut = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(&target).unwrap());
            let (mut answers, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut answers, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let is_cut = Arc::clone(&is_cut);
            std::thread::spawn(move || {
                let (mut carried, mut buffer) = (0, vec![0; 16 << 10]);
                while let Ok(count @ 1..) = client.read(&mut buffer) {
                    carried += count;
                    if server.write_all(&buffer[..count]).is_err()
                        || carried > cut_at && !is_cut.swap(true, Ordering::Relaxed)
                    {
                        break;
                    }
                }
                // What was taken is to be kept: the registry sees an end, and not a reset.
                let _ = server.shutdown(Shutdown::Write);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    host
}

#[test]
fn an_upload_that_breaks_is_made_good() {
    let Some(registry) = Registry::start(None) else { return };
    let host = cutting_proxy(&registry, 3_000_000);
    let sandbox = Sandbox::new();
    let content: Vec<u8> = (0_u32..1_500_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(sandbox.path("context/file"), content).unwrap();
    sandbox.write("Dockerfile", "FROM scratch\nCOPY file /\n");
    let name = format!("{host}/big");
    done(&sandbox, &["build", "-q", "-t", &name, "-o", "type=registry,compression=uncompressed", "context"]);
    let other = Sandbox::new();
    done(&other, &["pull", "-q", &format!("{}/big", registry.host)]);
}

// ---- bad days

/// An image of one layer, and what a registry answers about it.
struct Fixture {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        let content: Vec<u8> =
            (0_u32..80_000).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "file", &content[..]).unwrap();
        let layer = tar.into_inner().unwrap();
        Self::of(layer.clone(), DiffId::new(Digest::of(&layer)))
    }

    fn of(layer: Vec<u8>, diff_id: DiffId) -> Self {
        let platform = Platform::host();
        let config = json!({
            "architecture": platform.architecture, "os": platform.os, "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
        });
        let config = config.to_string().into_bytes();
        let manifest = Manifest {
            media_type: media_type::MANIFEST.into(),
            config: Descriptor::of(media_type::CONFIG, &config),
            layers: vec![Descriptor::of(media_type::LAYER_TAR, &layer)],
            annotations: Default::default(),
        };
        Self { manifest: manifest.to_json(), config, layer }
    }

    fn layer_path(&self) -> String {
        format!("/v2/app/blobs/{}", Digest::of(&self.layer))
    }

    fn answer(&self, asked: &Asked) -> Reply {
        let found =
            [&self.layer, &self.config].into_iter().find(|blob| asked.path.ends_with(&Digest::of(blob).to_string()));
        match found {
            _ if asked.path == "/v2/app/manifests/latest" => {
                Reply::new(200, self.manifest.clone()).with("Content-Type", media_type::MANIFEST)
            }
            Some(blob) => match asked.header("range").strip_prefix("bytes=") {
                Some(range) => {
                    let begin: usize = range.trim_end_matches('-').parse().unwrap();
                    let range = format!("bytes {begin}-{}/{}", blob.len() - 1, blob.len());
                    Reply::new(206, &blob[begin..]).with("Content-Range", range)
                }
                None => Reply::new(200, blob.clone()),
            },
            None => Reply::new(404, r#"{"errors":[{"code":"X","message":"not here"}]}"#),
        }
    }
}

/// A store and a client, gone with it.
struct Puller {
    dir: TempDir,
    store: Store,
    options: Options,
}

impl Puller {
    fn new() -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store, options: Options { pause: Duration::ZERO, ..Options::default() } }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pull(&self, server: &Server) -> Result<ImageRecord, Diagnostic> {
        let client = Client::new(self.options.clone());
        let reference: Reference = format!("{}/app", server.host()).parse().unwrap();
        registry::pull(&Remote::of(&client, &self.store, Audience::nobody()), &reference, &Platform::host())
    }

    /// Pulling fails, says `text`, and leaves no name and no layer.
    #[track_caller]
    fn refuses(&self, server: &Server, fixture: &Fixture, text: &str) {
        let error = self.pull(server).expect_err(text);
        let said = format!("{}: {}", error.message, error.cause.unwrap_or_default());
        assert!(said.contains(text), "`{said}` does not say `{text}`");
        assert!(self.store.images().unwrap().is_empty());
        assert!(!self.store.has_blob(&Digest::of(&fixture.layer)));
    }
}

#[test]
fn tokens_are_fetched_once_for_what_is_needed() {
    let fixture = Fixture::new();
    let puller = Puller::new();
    let expected = (fixture.layer_path(), Digest::of(&fixture.manifest));
    let server = Server::start(move |asked, _| match asked.header("authorization") {
        _ if asked.path.starts_with("/token") => Reply::new(200, r#"{"token":"T1"}"#),
        "Bearer T1" => fixture.answer(asked),
        _ => Reply::new(401, "").with(
            "WWW-Authenticate",
            format!("Bearer realm=\"http://{}/token\",service=\"the service\"", asked.header("host")),
        ),
    });
    let auths = json!({"auths": {server.host(): {"auth": "dXNlcjpzZTpjcmV0"}}});
    std::fs::write(puller.path("auth.json"), auths.to_string()).unwrap();
    let credentials = vec![CredentialFile(puller.path("absent")), CredentialFile(puller.path("auth.json"))];
    let puller = Puller { options: Options { credentials, ..puller.options.clone() }, ..puller };
    assert_eq!(puller.pull(&server).unwrap().manifest, Some(expected.1));
    let tokens = server.seen_at("GET", "/token");
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    assert_eq!(tokens[0].path, "/token?service=the%20service&scope=repository:app:pull");
    assert_eq!(tokens[0].header("authorization"), "Basic dXNlcjpzZTpjcmV0");
    assert_eq!(server.seen_at("GET", &expected.0).len(), 1);
}

#[test]
fn a_password_that_is_wrong_is_not_tried_for_ever() {
    let server = Server::start(|_, _| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""));
    let puller = Puller::new();
    let error = puller.pull(&server).unwrap_err();
    assert!(error.message.contains("private, or not there"), "{error:?}");
    assert!(error.hints[0].contains("podman login"), "{error:?}");
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_cut_body_is_resumed() {
    for knows_ranges in [true, false] {
        let fixture = Fixture::new();
        let (path, half) = (fixture.layer_path(), fixture.layer.len() / 2);
        let cut = path.clone();
        let server = Server::start(move |asked, before| match asked.path == cut {
            true if before == 0 => fixture.answer(asked).cut_at(half),
            true if !knows_ranges => Reply::new(200, fixture.layer.clone()),
            _ => fixture.answer(asked),
        });
        let puller = Puller::new();
        let record = puller.pull(&server).unwrap();
        assert!(puller.store.has_form(&record.layers[0].diff_id, &record.layers[0].blob.unwrap()).unwrap());
        let ranges: Vec<String> =
            server.seen_at("GET", &path).iter().map(|asked| asked.header("range").to_owned()).collect();
        assert_eq!(ranges, [String::new(), format!("bytes={half}-")]);
    }
}

#[test]
fn a_connection_that_always_breaks_ends_the_pull() {
    let fixture = Arc::new(Fixture::new());
    let served = Arc::clone(&fixture);
    let server = Server::start(move |asked, _| match asked.path == served.layer_path() {
        true => served.answer(asked).cut_at(10),
        false => served.answer(asked),
    });
    Puller::new().refuses(&server, &fixture, "cannot read blob");
    assert!(server.seen_at("GET", &fixture.layer_path()).len() < 20);
}

#[test]
fn wrong_bytes_are_refused() {
    let fixture = Arc::new(Fixture::new());
    let served = Arc::clone(&fixture);
    let server = Server::start(move |asked, _| {
        let mut layer = served.layer.clone();
        layer[1000] ^= 1;
        if asked.path == served.layer_path() { Reply::new(200, layer) } else { served.answer(asked) }
    });
    Puller::new().refuses(&server, &fixture, "is damaged: its bytes hash to");

    let served = Arc::clone(&fixture);
    let server = Server::start(move |asked, _| match asked.path.ends_with(&Digest::of(&served.config).to_string()) {
        true => Reply::new(200, vec![b' '; served.config.len()]),
        false => served.answer(asked),
    });
    Puller::new().refuses(&server, &fixture, "the registry sends the config");

    // Blobs as announced, and a lie about what is in them.
    let liar = Arc::new(Fixture::of(fixture.layer.clone(), DiffId::new(Digest::of(b"other"))));
    let served = Arc::clone(&liar);
    let server = Server::start(move |asked, _| served.answer(asked));
    Puller::new().refuses(&server, &liar, "but the image config claims");
}

#[test]
fn a_pinned_manifest_is_the_one_that_was_named() {
    let fixture = Fixture::new();
    let server = Server::start(move |_, _| Reply::new(200, fixture.manifest.clone()));
    let puller = Puller::new();
    let reference: Reference = format!("{}/app@{}", server.host(), Digest::of(b"other")).parse().unwrap();
    let client = Client::new(puller.options.clone());
    let pulled = registry::pull(&Remote::of(&client, &puller.store, Audience::nobody()), &reference, &Platform::host());
    let message = pulled.unwrap_err().message;
    assert!(message.contains("instead of"), "{message}");
}

#[test]
fn what_is_too_large_is_not_read() {
    let fixture = Arc::new(Fixture::new());
    let large = Server::start(|_, _| Reply::new(200, vec![b' '; (4 << 20) + 1]));
    Puller::new().refuses(&large, &fixture, "its manifest is larger than 4 MiB");
    let served = Arc::clone(&fixture);
    let server = Server::start(move |asked, _| {
        let mut manifest: Value = serde_json::from_slice(&served.manifest).unwrap();
        manifest["config"]["size"] = json!(9 << 20);
        let is_manifest = asked.path.contains("/manifests/");
        if is_manifest { Reply::new(200, manifest.to_string()) } else { served.answer(asked) }
    });
    Puller::new().refuses(&server, &fixture, "its config is larger than 8 MiB");
}

#[test]
fn a_busy_server_is_asked_again() {
    for (status, header) in [(500, None), (503, None), (429, Some("0"))] {
        let fixture = Fixture::new();
        let server = Server::start(move |asked, before| match (before, header) {
            (0, Some(seconds)) => Reply::new(status, "").with("Retry-After", seconds),
            (0 | 1, None) => Reply::new(status, ""),
            _ => fixture.answer(asked),
        });
        Puller::new().pull(&server).unwrap();
    }
    let server = Server::start(|_, _| Reply::new(500, ""));
    let error = Puller::new().pull(&server).unwrap_err();
    assert_eq!(error.cause.as_deref(), Some("status 500"));
    assert_eq!(server.seen().len(), 5);
}

#[test]
fn redirects_do_not_carry_credentials_elsewhere() {
    let fixture = Arc::new(Fixture::new());
    let (served, path) = (Arc::clone(&fixture), fixture.layer_path());
    let elsewhere = Server::start(move |asked, _| served.answer(asked));
    let (served, other) = (Arc::clone(&fixture), elsewhere.host());
    let server = Server::start(move |asked, _| match asked.header("authorization") {
        "" => Reply::new(401, "").with("WWW-Authenticate", "Basic"),
        _ if asked.path.contains("/blobs/") => {
            Reply::new(307, "").with("Location", format!("http://{other}{}", asked.path))
        }
        _ => served.answer(asked),
    });
    let puller = Puller::new();
    let auths = json!({"auths": {server.host(): {"auth": "dXNlcjpzZTpjcmV0"}}});
    std::fs::write(puller.path("auth.json"), auths.to_string()).unwrap();
    let credentials = vec![CredentialFile(puller.path("auth.json"))];
    let puller = Puller { options: Options { credentials, ..puller.options.clone() }, ..puller };
    puller.pull(&server).unwrap();
    assert_eq!(server.seen_at("GET", &path)[0].header("authorization"), "Basic dXNlcjpzZTpjcmV0");
    let seen = elsewhere.seen_at("GET", &path);
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].headers.contains_key("authorization"), "{seen:?}");

    let circle = Server::start(|asked, _| Reply::new(302, "").with("Location", format!("{}x", asked.path)));
    let message = Puller::new().pull(&circle).unwrap_err().message;
    assert!(message.contains("redirects more than 10 times"), "{message}");
}

#[test]
fn a_failed_upload_is_begun_again() {
    let fixture = Arc::new(Fixture::new());
    let served = Arc::clone(&fixture);
    let source = Server::start(move |asked, _| served.answer(asked));
    let puller = Puller::new();
    let record = puller.pull(&source).unwrap();
    let server = Server::start(|asked, before| match (asked.method.as_str(), asked.path.split('?').next().unwrap()) {
        ("HEAD", _) => Reply::new(404, ""),
        ("POST", _) => Reply::new(202, "").with("Location", "/upload/1?state=x"),
        ("PUT", "/upload/1") if before == 0 => Reply::new(500, ""),
        ("PUT", _) => Reply::new(201, ""),
        _ => Reply::new(400, ""),
    });
    let client = Client::new(puller.options.clone());
    let remote = Remote::of(&client, &puller.store, Audience::nobody());
    let package = Package::stored(&remote, &[record], None).unwrap();
    assert_eq!(package.root().digest, Digest::of(&fixture.manifest));
    let reference: Reference = format!("{}/app:9", server.host()).parse().unwrap();
    let client = Client::new(puller.options.clone());
    Audience::nobody().show("", |meter| registry::push(&client, &puller.store, &package, &reference, meter)).unwrap();
    let uploads = server.seen_at("PUT", "/upload/1");
    assert_eq!(uploads.len(), 4, "both blobs twice");
    for upload in &uploads {
        let digest = upload.path.strip_prefix("/upload/1?state=x&digest=").unwrap();
        assert_eq!(Digest::of(&upload.body).to_string(), digest);
    }
    // The name comes last.
    assert_eq!(server.seen().last().unwrap().path, "/v2/app/manifests/9");
    assert_eq!(server.seen().last().unwrap().body, fixture.manifest);
}

#[test]
fn an_upload_that_breaks_goes_on_where_the_registry_can() {
    const CUT: usize = 200_000;
    let fixture = Arc::new(Fixture::new());
    let served = Arc::clone(&fixture);
    let source = Server::start(move |asked, _| served.answer(asked));
    let puller = Puller::new();
    let record = puller.pull(&source).unwrap();
    let server =
        Server::cutting(CUT, |asked, _| match (asked.method.as_str(), asked.path.split('?').next().unwrap()) {
            ("HEAD", _) => Reply::new(404, ""),
            ("POST", _) => Reply::new(202, "").with("Location", "/upload/1"),
            ("GET", "/upload/1") => {
                Reply::new(204, "").with("Range", format!("0-{}", CUT - 1)).with("Location", "/upload/2?state=x")
            }
            ("PATCH", "/upload/2") => Reply::new(202, "").with("Location", "/upload/3"),
            ("PUT", _) => Reply::new(201, ""),
            _ => Reply::new(400, ""),
        });
    let client = Client::new(puller.options.clone());
    let remote = Remote::of(&client, &puller.store, Audience::nobody());
    let package = Package::stored(&remote, &[record], None).unwrap();
    let reference: Reference = format!("{}/app:9", server.host()).parse().unwrap();
    Audience::nobody().show("", |meter| registry::push(&client, &puller.store, &package, &reference, meter)).unwrap();
    let cut = server.seen_at("PUT", "/upload/1").into_iter().find(|asked| asked.body.len() == CUT).unwrap();
    let patches = server.seen_at("PATCH", "/upload/2");
    assert_eq!(patches.len(), 1);
    assert_eq!(patches[0].header("content-range"), format!("{CUT}-{}", fixture.layer.len() - 1));
    assert!([cut.body, patches[0].body.clone()].concat() == fixture.layer);
    let ends = server.seen_at("PUT", "/upload/3");
    assert_eq!((ends.len(), ends[0].body.len()), (1, 0));
    assert_eq!(ends[0].path, format!("/upload/3?digest={}", Digest::of(&fixture.layer)));
}

// ---- ADD of a URL

#[test]
fn a_url_that_has_not_changed_is_a_hit() {
    let server = Server::start(|asked, before| match (asked.path.as_str(), asked.header("if-none-match")) {
        ("/tagged", "\"1\"") => Reply::new(304, ""),
        ("/tagged", _) => Reply::new(200, "tagged").with("ETag", "\"1\""),
        ("/untagged", _) => Reply::new(200, "untagged"),
        ("/changing", _) => Reply::new(200, format!("{before}")),
        ("/cut", _) if before == 0 => Reply::new(200, "whole").cut_at(2),
        ("/cut", _) => Reply::new(200, "whole"),
        _ => Reply::new(404, ""),
    });
    let sandbox = Sandbox::new();
    let host = server.host();
    let build = |lines: &str| {
        sandbox.write("Dockerfile", &format!("FROM scratch\n{}\n", lines.replace("URL", &format!("http://{host}"))));
        sandbox.build("image.tar", &[])
    };
    let ran = |ended: super::sandbox::Ended| {
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.ran().into_iter().filter(|title| title.contains("ADD")).count()
    };
    for (path, again) in [("tagged", 0), ("untagged", 0), ("changing", 1), ("cut", 0)] {
        let line = format!("ADD URL/{path} /");
        assert_eq!(ran(build(&line)), 1, "{path}");
        assert_eq!(ran(build(&line)), again, "{path}");
    }
    assert_eq!(server.seen_at("GET", "/tagged")[1].header("if-none-match"), "\"1\"");

    // Known by its checksum, it is not even asked for.
    let checksum = Digest::of(b"tagged");
    assert_eq!(ran(build(&format!("ADD --checksum={checksum} URL/tagged /other"))), 1);
    assert_eq!(server.seen_at("GET", "/tagged").len(), 2);
    let wrong = build(&format!("ADD --checksum={} URL/tagged /other", Digest::of(b"x")));
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.stderr.contains("has the checksum") && wrong.stderr.contains("Dockerfile:2:"), "{}", wrong.stderr);
    let missing = build("ADD URL/missing /");
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("status 404"), "{}", missing.stderr);
}

#[test]
fn a_download_can_have_a_password() {
    let server = Server::start(|asked, _| match asked.header("authorization") {
        "Bearer abc" => Reply::new(200, "x"),
        _ => Reply::new(403, ""),
    });
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", &format!("FROM scratch\nADD http://{}/x /\n", server.host()));
    assert_eq!(sandbox.build("image.tar", &[]).code, Some(1));
    std::fs::write(sandbox.path("token"), "abc\n").unwrap();
    let secret = "id=HTTP_AUTH_TOKEN_127.0.0.1,src=token".to_owned();
    let ended = sandbox.build("image.tar", &["--secret".into(), secret]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(Path::new(&sandbox.path("image.tar")).exists());
}
