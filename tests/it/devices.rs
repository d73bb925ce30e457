//! `RUN --device`: devices as the Container Device Interface describes them, given to a step and to no layer.

use std::fs;

use super::image::Image;
use super::ordinary::Ordinary;
use super::sandbox::{Ended, Sandbox};

const SPEC: &str = r#"
cdiVersion: "0.6.0"
kind: example.com/thing
containerEdits:
  env: [THING_VERSION=2]
devices:
  - name: one
    containerEdits:
      env: [THING=one]
      deviceNodes:
        - path: /dev/thing/one
          hostPath: /dev/null
          fileMode: 432
          uid: 33
          gid: 4
      mounts:
        - hostPath: DIR/lib
          containerPath: /opt/thing/lib
          options: [ro, nosuid, nodev, bind]
  - name: two
    annotations:
      org.mobyproject.buildkit.device.autoallow: "true"
    containerEdits:
      deviceNodes: [{path: /dev/zero2, hostPath: /dev/zero}]
      hooks: [{hookName: createContainer, path: /usr/bin/hook}]
"#;

/// A build of `run` on busybox, where there are the devices of [`SPEC`].
fn build(sandbox: &Sandbox, run: &str, args: &[&str]) -> Ended {
    describe(sandbox, &sandbox.path("").display().to_string());
    sandbox.write("Dockerfile", &format!("FROM busybox\n{run}\n"));
    let args = args.iter().map(ToString::to_string);
    let args: Vec<String> = args.chain([format!("--cdi-spec-dir={}", sandbox.path("cdi").display())]).collect();
    sandbox.build("image.tar", &args)
}

/// Writes [`SPEC`] into a sandbox that is at `place` for the program.
fn describe(sandbox: &Sandbox, place: &str) {
    fs::create_dir_all(sandbox.path("lib")).unwrap();
    fs::create_dir_all(sandbox.path("cdi")).unwrap();
    fs::write(sandbox.path("lib/file"), "of the host\n").unwrap();
    fs::write(sandbox.path("cdi/thing.yaml"), SPEC.replace("DIR/", place)).unwrap();
}

#[test]
fn a_device_is_there_for_one_step() {
    let sandbox = Sandbox::new();
    let run = r#"RUN --device=example.com/thing=one,required set -e; \
    stat -c '%F %t:%T %a %u:%g' /dev/thing/one > /seen; \
    echo "$THING_VERSION $THING" >> /seen; cat /opt/thing/lib/file >> /seen; \
    echo gone > /dev/thing/one; ! touch /opt/thing/lib/x 2> /dev/null
RUN test ! -e /dev/thing && test ! -e /opt/thing && test -z "$THING""#;
    let ended = build(&sandbox, run, &["--allow", "device=example.com/thing"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let image = Image::read(&fs::read(sandbox.path("image.tar")).unwrap());
    assert!(image.files.keys().all(|path| !path.starts_with("opt") && !path.starts_with("dev/thing")));
    let again = build(&sandbox, run, &["--allow=device"]);
    assert_eq!((again.code, again.ran().len()), (Some(0), 0), "{}", again.stderr);
    let seen = build(&sandbox, &format!("{run}\nRUN cat /seen"), &["--allow=device"]);
    assert!(seen.stderr.contains("character special file 1:3 660 33:4\n"), "{}", seen.stderr);
    assert!(seen.stderr.contains(" 2 one\n") && seen.stderr.contains(" of the host\n"), "{}", seen.stderr);
}

#[test]
fn a_device_must_be_allowed_and_there_where_it_is_required() {
    let sandbox = Sandbox::new();
    let refused = build(&sandbox, "RUN --device=example.com/thing=one,required true", &[]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("--allow device=example.com/thing=one"), "{}", refused.stderr);
    let missing = build(&sandbox, "RUN --device=example.com/thing=oen,required true", &["--allow=device"]);
    assert_eq!(missing.code, Some(1), "{}", missing.stderr);
    assert!(missing.stderr.contains("did you mean `--device=example.com/thing=one`?"), "{}", missing.stderr);
    // Optional ones are told of.
    let run = "RUN --device=example.com/thing=one --device=example.com/other test ! -e /dev/thing";
    let ended = build(&sandbox, run, &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("the step runs without it").count(), 2, "{}", ended.stderr);
    // One may allow itself; what cannot be done for it is told of.
    let run = "RUN --device=example.com/thing=two,required head -c 1 /dev/zero2 | wc -c";
    let ended = build(&sandbox, run, &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("`/usr/bin/hook`: they are not run"), "{}", ended.stderr);
}

#[test]
fn a_device_is_there_for_an_ordinary_user() {
    let user = Ordinary::new();
    describe(&user.sandbox, "/mnt/");
    let run = r#"RUN --device=example.com/thing=one,required \
    stat -c '%F %t:%T' /dev/thing/one; echo "$THING"; cat /opt/thing/lib/file; echo gone > /dev/thing/one
RUN test ! -e /dev/thing && test ! -e /opt/thing && test -z "$THING""#;
    user.sandbox.write("Dockerfile", &format!("FROM busybox\n{run}\n"));
    let specs = "--cdi-spec-dir=/mnt/cdi";
    let refused = user.build(&[specs]);
    assert!(refused.stderr.contains("--allow device=example.com/thing=one"), "{}", refused.stderr);
    let ended = user.built(&[specs, "--allow=device"]);
    for said in ["character special file 1:3\n", " one\n", " of the host\n"] {
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
}
