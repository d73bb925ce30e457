//! Where registries are and who vouches for them: mirrors, other locations, certificates; and images asked
//! for side by side.

use std::sync::Barrier;

use super::*;

/// A sandbox whose user has this `registries.conf`.
fn configured(registries: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let directory = sandbox.path(".config/containers");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("registries.conf"), registries).unwrap();
    sandbox
}

fn serve(fixture: &Arc<Fixture>) -> Server {
    let served = Arc::clone(fixture);
    Server::start(move |asked, _| served.answer(asked))
}

#[test]
fn images_come_from_where_the_user_has_them() {
    let fixture = Arc::new(Fixture::new());
    let origin = serve(&fixture);
    // One that has nothing, and one that has manifests but no layers.
    let empty = Server::start(|_, _| Reply::new(404, ""));
    let (served, lacking) = (Arc::clone(&fixture), fixture.layer_path());
    let poor = Server::start(move |asked, _| match asked.path == lacking {
        true => Reply::new(404, ""),
        false => served.answer(asked),
    });
    let sandbox = configured(&format!(
        "[[registry]]\nprefix = \"images.test/old\"\nlocation = \"{}\"\n\
         [[registry.mirror]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n\
         [[registry]]\nlocation = \"images.test/bad\"\nblocked = true\n",
        origin.host(),
        empty.host(),
        poor.host(),
    ));
    done(&sandbox, &["pull", "-q", "images.test/old/app"]);
    assert!(done(&sandbox, &["images"]).contains("images.test/old/app:latest"));
    let manifest = "/v2/app/manifests/latest";
    let asked = [&empty, &poor, &origin].map(|server| server.seen_at("GET", manifest).len());
    assert_eq!(asked, [1, 1, 0]);
    let layers = [&empty, &poor, &origin].map(|server| server.seen_at("GET", &fixture.layer_path()).len());
    assert_eq!(layers, [1, 1, 1]);

    let blocked = sandbox.wythe(&["pull", "-q", "images.test/bad/app"]);
    assert_eq!(blocked.code, Some(1));
    assert!(blocked.stderr.contains("`images.test/bad` is blocked"), "{}", blocked.stderr);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let sandbox = configured("[[registry]]\nblocked = 7\n");
    let ended = sandbox.wythe(&["pull", "-q", "localhost:1/app"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("registries.conf` is wrong"), "{}", ended.stderr);
}

/// Bases are looked up side by side: each server answers only when both were asked.
#[test]
fn bases_are_asked_for_at_once() {
    let fixture = Arc::new(Fixture::new());
    let both = Arc::new(Barrier::new(2));
    let servers: Vec<_> = (0..2)
        .map(|_| {
            let (served, both) = (Arc::clone(&fixture), Arc::clone(&both));
            Server::start(move |asked, _| {
                if asked.path.contains("/manifests/") {
                    both.wait();
                }
                served.answer(asked)
            })
        })
        .collect();
    let sandbox = Sandbox::new();
    let [first, second] = [servers[0].host(), servers[1].host()];
    sandbox.write("Dockerfile", &format!("FROM {first}/app AS a\nFROM {second}/app\nCOPY --from=a /file /copy\n"));
    let ended = sandbox.wythe(&["build", "-o", "out", "context"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(std::fs::metadata(sandbox.path("out/copy")).unwrap().len(), 320_000);
}

// ---- certificates

fn openssl(directory: &Path, line: &str) {
    let output = Command::new("openssl").args(line.split(' ')).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `<name>.crt` and `<name>.key` of a new authority.
fn authority(directory: &Path, name: &str) {
    openssl(
        directory,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN={name} \
             -addext basicConstraints=critical,CA:TRUE -keyout {name}.key -out {name}.crt"
        ),
    );
}

/// `<name>.crt` and `<name>.key`, for this machine, by an authority.
fn certify(directory: &Path, name: &str, authority: &str) {
    openssl(
        directory,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN={name} \
             -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE \
             -CA {authority}.crt -CAkey {authority}.key -keyout {name}.key -out {name}.crt"
        ),
    );
}

#[test]
fn hosts_have_certificates_of_their_own() {
    let start = |knows_clients: bool| {
        Registry::with(|directory, config| {
            ["ours", "theirs"].iter().for_each(|name| authority(directory, name));
            certify(directory, "server", "ours");
            certify(directory, "client", "ours");
            let path = |name: &str| directory.join(name);
            config["http"]["tls"] = json!({"certificate": path("server.crt"), "key": path("server.key")});
            if knows_clients {
                config["http"]["tls"]["clientcas"] = json!([path("ours.crt")]);
            }
        })
    };
    let Some(registry) = start(false) else { return };
    let sandbox = sandbox("busybox");
    let name = format!("{}/app", registry.host);
    let built = sandbox.build("image.tar", &["-t".into(), name.clone()]);
    assert_eq!(built.code, Some(0), "{}", built.stderr);
    // On this machine nobody need vouch for it.
    done(&sandbox, &["push", "-q", &name]);

    let own = |host: &str| {
        let directory = sandbox.path(".docker/certs.d").join(host);
        std::fs::create_dir_all(&directory).unwrap();
        directory
    };
    let trust = |registry: &Registry, name: &str| {
        std::fs::copy(registry.directory().join(name), own(&registry.host).join("ca.crt")).unwrap();
    };
    // But who says who vouches for it means that.
    trust(&registry, "theirs.crt");
    let refused = sandbox.wythe(&["push", "-q", &name]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("certificate"), "{}", refused.stderr);
    trust(&registry, "ours.crt");
    done(&sandbox, &["push", "-q", &name]);

    let Some(strict) = start(true) else { return };
    let other = format!("{}/app", strict.host);
    trust(&strict, "ours.crt");
    assert_eq!(sandbox.wythe(&["push", "-q", &name, &other]).code, Some(1));
    for (from, to) in [("client.crt", "client.cert"), ("client.key", "client.key")] {
        std::fs::copy(strict.directory().join(from), own(&strict.host).join(to)).unwrap();
    }
    done(&sandbox, &["push", "-q", &name, &other]);
}
