//! Who plays: wythe, its peers where they are installed, and floors.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::fixture::Fixture;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Player {
    Wythe,
    /// Wythe, run by an ordinary user of this machine.
    User,
    Buildah,
    Runc,
    /// The least that anybody has to do.
    Floor,
}

impl Player {
    pub fn name(self) -> &'static str {
        match self {
            Self::Wythe => "wythe",
            Self::User => "user",
            Self::Buildah => "buildah",
            Self::Runc => "runc",
            Self::Floor => "floor",
        }
    }

    pub fn is_peer(self) -> bool {
        matches!(self, Self::Buildah | Self::Runc)
    }

    /// The directory of the player's images and caches, in a fixture.
    pub fn store(self, fixture: &Fixture) -> std::path::PathBuf {
        fixture.dir.join("stores").join(self.name())
    }
}

/// Why a player cannot play on this machine.
pub fn missing(player: Player) -> Option<String> {
    let program = match player {
        Player::Wythe | Player::Floor => return None,
        Player::User => {
            return ordinary_user().is_none().then(|| "only root can be somebody with subordinate ids".to_owned());
        }
        Player::Buildah => "buildah",
        Player::Runc => "runc",
    };
    version(program).is_none().then(|| format!("{program} is not installed"))
}

/// Names and versions of the peers.
pub fn versions() -> Vec<String> {
    ["buildah", "runc"].iter().filter_map(|program| version(program)).collect()
}

fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    Some(format!("{program} {number}"))
}

/// Somebody whom `/etc/subuid` gives ids to, for root to run programs as: uid and gid.
pub fn ordinary_user() -> Option<(u32, u32)> {
    let subordinate = std::fs::read_to_string("/etc/subuid").ok()?;
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let named = |name: &str| {
        let line = passwd.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let mut fields = line.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let users = subordinate.lines().filter_map(|line| named(line.split(':').next()?));
    users.into_iter().find(|(uid, _)| *uid != 0).filter(|_| rustix::process::geteuid().is_root())
}

/// The program whose builds are timed.
fn wythe() -> Command {
    Command::new(std::env::var_os("WYTHE").unwrap_or_else(|| env!("CARGO_BIN_EXE_wythe").into()))
}

/// `wythe build` by a player of that kind, with its store and the fixture's base.
pub fn wythe_build(fixture: &Fixture, player: Player) -> Command {
    let mut command = wythe();
    if let Some((uid, gid)) = ordinary_user().filter(|_| player == Player::User) {
        use std::os::unix::process::CommandExt as _;
        command.uid(uid).gid(gid);
    }
    let base = format!("localhost/busybox=oci-layout://{}", fixture.base().display());
    command.arg("--root").arg(player.store(fixture));
    command.args(["build", "--progress", "quiet", "--build-context", &base]);
    command
}

/// buildah with a store of its own.
pub fn buildah(fixture: &Fixture) -> Command {
    let mut command = Command::new("buildah");
    let store = Player::Buildah.store(fixture);
    command.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
    command.args(["--storage-driver", "overlay"]);
    command
}

/// `buildah build` with its cache of layers.
pub fn buildah_build(fixture: &Fixture) -> Command {
    let mut command = buildah(fixture);
    command.args(["build", "--layers", "--quiet", "--network", "host"]);
    command
}

/// A floor: this program with what it is to do.
pub fn floor(job: &str, at: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_default());
    command.args(["floor", job]).arg(at);
    command
}
