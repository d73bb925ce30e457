//! `RUN --security=insecure`: every capability in the steps' user namespace, and none on the host.

use super::ordinary::Ordinary;
use super::sandbox::Sandbox;

/// What the sandbox of a step keeps it from.
const DOCKERFILE: &str = r#"FROM busybox
RUN mkdir /m && ! mount -t tmpfs none /m 2> /dev/null && ! hostname other 2> /dev/null
RUN --security=insecure mount -t tmpfs none /m && touch /m/gone && hostname other && test "$(hostname)" = other && \
    grep -q 'CapEff:.*ffffffff$' /proc/self/status
RUN --security=insecure ! cat /dev/mem /proc/kcore > /dev/null 2>&1 && ! dmesg -c > /dev/null 2>&1
RUN test ! -e /m/gone && test "$(hostname)" = buildkitsandbox && ! grep -q 'CapEff:.*ffffffff$' /proc/self/status
"#;

const ALLOWED: &str = "--allow=security.insecure";

#[test]
fn a_step_may_do_what_it_likes_to_itself() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", DOCKERFILE);
    let refused = sandbox.build("image.tar", &[]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains(ALLOWED.replace('=', " ").as_str()), "{}", refused.stderr);
    let ended = sandbox.build("image.tar", &[ALLOWED.into()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn a_step_of_an_ordinary_user_may_too() {
    let user = Ordinary::new();
    user.sandbox.write("Dockerfile", DOCKERFILE);
    let refused = user.build(&[]);
    assert!(refused.stderr.contains(ALLOWED.replace('=', " ").as_str()), "{}", refused.stderr);
    user.built(&[ALLOWED]);
}
