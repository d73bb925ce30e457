//! Whose files are, whoever builds: root, a user with subordinate ids, a user with one id. What steps do to owners,
//! capabilities and devices is the same to the byte.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::image::Image;
use super::ordinary::{Ordinary, UID};
use super::sandbox::Sandbox;

const EPOCH: &str = "SOURCE_DATE_EPOCH=1000000004";

/// Times are set, so that they say nothing of the clock.
const DOCKERFILE: &str = r#"
FROM busybox AS base
COPY programs /
RUN mkdir -p /etc /home /tmp && echo root:x:0:0::/root:/bin/sh > /etc/passwd && echo root:x:0: > /etc/group && echo mail:x:8: >> /etc/group \
    && echo 'root:*:1:0:99999:7:::' > /etc/shadow && chown 0:42 /etc/shadow && chmod 640 /etc/shadow && chmod 1777 /tmp \
    && mkdir /group && chown 0:8 /group && chmod 2775 /group \
    && find /etc /home /tmp /group ! -name resolv.conf ! -name hosts -exec touch -h -d @1000000000 {} +
FROM base
RUN useradd -M -u 1234 app && rm -f /etc/*- /etc/.pwd.lock && stat -c '%u:%g %a' /etc/shadow > /told && mkdir /home/app && chown app:app /home/app \
    && sed -i 's/^\(app:[^:]*\):[0-9]*:/\1:1:/' /etc/shadow && find /etc /told /home ! -name resolv.conf ! -name hosts -exec touch -h -d @1000000000 {} +
RUN mkdir -p /srv/a/b && echo one > /srv/a/one && ln /srv/a/one /srv/a/two && chown -R 33:8 /srv && chown 5 /srv/a/b && ln -s one /srv/a/link \
    && chown -h 7:9 /srv/a/link && mkfifo /srv/pipe && chown 11:12 /srv/pipe && cp /bin/busybox /srv/special && chown 5:6 /srv/special && chmod 6755 /srv/special \
    && touch /group/file && mkdir /group/dir && ln -s x /group/link && cp -a /srv/a /srv/copied && tar cf - -C /srv a | tar xf - -C /home \
    && cp /bin/busybox /srv/lost && chmod 4755 /srv/lost && chown 6 /srv/lost && stat -c '%u:%g %a %n' /srv/a/* /group/* /srv/lost /srv/special >> /told \
    && find /srv /group /home /told -exec touch -h -d @1000000001 {} +
RUN cp /bin/busybox /capable && setcap cap_net_raw,cap_net_admin=ep /capable && getcap /capable > /capabilities && cp /capable /lost && setcap cap_net_raw=ep /lost && chown 5 /lost \
    && touch -d @1000000002 /capable /capabilities /lost
RUN mkdir /nodes && cd /nodes && mknod null c 1 3 && mknod -m 600 disk b 259 7 && mknod tty c 5 0 && chown 0:5 tty && mv tty terminal && ln disk again \
    && rm null && mknod null c 1 3 && mknod /dev/zero2 c 1 5 && head -c 4 /dev/zero2 > zeroes && find /nodes -exec touch -h -d @1000000003 {} +
RUN /usr/bin/setpriv --reuid app --regid app --init-groups sh -c 'id -u; id -g; id -G; cd /home/app; umask 027; echo made > made; mkdir -p dir/deep; ln -s made link; mkfifo pipe; chown 0 made; chgrp app made; : > /dev/null' > /told-app 2>&1 \
    && find /home /told-app -exec touch -h -d @1000000003 {} +
USER app:mail
RUN cd; id > id; whoami >> id; echo 2 > two; cp -a dir dir2; stat -c '%u:%g %n' two dir2 / >> id; find /home/app -user app -exec touch -h -d @1000000003 {} +
USER root
RUN mv /srv/a/one /srv/a/b/moved && rm /srv/a/two && chmod 700 /home/app/made && chown 0:0 /srv/copied && touch -d @1000000004 /srv/a /srv/a/b /home/app /srv/copied
"#;

/// Programs of this machine with what they load, as a tree.
fn copy_programs(names: &[&str], into: &Path) {
    let mut files = BTreeSet::new();
    for name in names {
        let places = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(|dir| PathBuf::from(dir).join(name));
        let program = places.into_iter().find(|path| path.is_file());
        let program = program.unwrap_or_else(|| panic!("install what has `{name}`: run `make deps`"));
        let listed = Command::new("ldd").arg(&program).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        files.extend(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
        files.insert(program);
    }
    for file in files {
        let to = into.join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&file, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn fill(sandbox: &Sandbox, owner: u32) {
    let context = &sandbox.context;
    fs::write(context.join("Dockerfile"), DOCKERFILE).unwrap();
    let programs = context.join("programs");
    fs::create_dir(&programs).unwrap();
    copy_programs(&["useradd", "setcap", "getcap", "setpriv"], &programs);
    let settings = "UID_MIN 1000\nGID_MIN 1000\nUSERGROUPS_ENAB yes\nCREATE_HOME no\n";
    fs::create_dir(programs.join("etc")).unwrap();
    fs::write(programs.join("etc/login.defs"), settings).unwrap();
    let all = Command::new("find").arg(context).args(["-exec", "touch", "-h", "-d", "@900000000", "{}", "+"]).status();
    assert!(all.unwrap().success());
    let all = Command::new("chown").args(["-R", "-h", &format!("{owner}:{owner}")]).arg(context).status();
    assert!(all.unwrap().success());
    chown(context, Some(owner), Some(owner)).unwrap();
}

fn built_by(user: &Ordinary) -> Image {
    fill(&user.sandbox, UID);
    user.built(&["--build-arg", EPOCH, "-o", "type=oci,dest=made.tar"]);
    assert!(user.store().join("version").is_file());
    Image::read(&fs::read(user.sandbox.path("made.tar")).unwrap())
}

#[test]
fn owners_are_the_same_whoever_builds() {
    let sandbox = Sandbox::new();
    fill(&sandbox, 0);
    let ended = sandbox.build("made.tar", &["--build-arg", EPOCH].map(String::from));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let root = Image::read(&fs::read(sandbox.path("made.tar")).unwrap());
    // What is compared has all that could differ.
    for (path, description) in [
        ("etc/shadow", "file 0640 0:42"),
        ("srv/a/link", "link 7:9 one"),
        ("srv/a/b/moved", "file 0644 33:8"),
        ("srv/pipe", "fifo 0644 11:12"),
        ("srv/special", "file 6755 5:6"),
        ("srv/lost", "file 0755 6:0"),
        ("srv/copied", "dir 0755 0:0"),
        ("srv/copied/b", "dir 0755 5:8"),
        ("home/a/b", "dir 0755 5:8"),
        ("group/file", "file 0644 0:8"),
        ("group/dir", "dir 2755 0:8"),
        ("group/link", "link 0:8"),
        ("home/app/made", "file 0700 1234:1234"),
        ("home/app/dir/deep", "dir 0750 1234:1234"),
        ("home/app/link", "link 1234:1234"),
        ("home/app/pipe", "fifo 0640 1234:1234"),
        ("home/app/two", "file 0644 1234:8"),
        ("home/app/dir2", "dir 0750 1234:8"),
        ("nodes/null", "device 0644 0:0 1 3"),
        ("nodes/again", "device 0600 0:0 259 7"),
        ("nodes/disk", "hardlink nodes/again"),
        ("nodes/terminal", "device 0644 0:5 5 0"),
        ("nodes/zeroes", "file 0644 0:0 4"),
    ] {
        let found = root.files.get(path).map_or("nothing", String::as_str);
        assert!(found.starts_with(description), "{path} is {found}, not {description}");
    }
    for (name, user) in [("ranges", Ordinary::new()), ("one id", Ordinary::with_ranges("", ""))] {
        let image = built_by(&user);
        assert_eq!(image.files, root.files, "{name}");
        assert_eq!(image.diff_ids, root.diff_ids, "{name}");
    }
}
