//! What the rows work on: a base image, contexts, stores, a registry. Made when first asked for, in
//! `target/bench`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::Result;
use crate::player::{self, Player};

pub struct Fixture {
    pub dir: PathBuf,
    registry: OnceLock<Result<Registry>>,
}

struct Registry {
    child: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Fixture {
    /// Empty stores and the base image.
    pub fn new() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let fixture = Self { dir: root.join("target/bench"), registry: OnceLock::new() };
        fixture.clean();
        make_dir(&fixture.dir.join("stores"))?;
        make_dir(&fixture.dir.join("trash"))?;
        run(Command::new("sh").arg(root.join("demo/base.sh")).arg(fixture.base()))?;
        Ok(fixture)
    }

    /// The OCI layout of the base image.
    pub fn base(&self) -> PathBuf {
        self.dir.join("base")
    }

    /// A context, filled by `fill` when it is first asked for.
    pub fn context(&self, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let dir = self.dir.join("contexts").join(name);
        if !dir.exists() {
            make_dir(&dir)?;
            fill(&dir)?;
        }
        Ok(dir)
    }

    /// A context of a Dockerfile over the base.
    pub fn steps(&self, name: &str, steps: &str) -> Result<PathBuf> {
        self.context(name, |dir| {
            write(&dir.join("Dockerfile"), format!("FROM localhost/busybox\n{steps}").as_bytes())?;
            write(&dir.join("file"), b"content\n")
        })
    }

    /// Gives a player an empty store that knows the base. The old one is set aside, not removed: ext4
    /// makes files slowly for a while after many were deleted.
    pub fn renew_store(&self, player: Player) -> Result<()> {
        let store = player.store(self);
        if store.exists() {
            unmount(&store);
            let aside = (0..).map(|number| self.dir.join("trash").join(number.to_string())).find(|path| !path.exists());
            let aside = aside.ok_or("no room in the trash")?;
            fs::rename(&store, &aside).map_err(|error| format!("cannot set {} aside: {error}", store.display()))?;
            forget(&aside)?;
        }
        self.know_base(player)
    }

    /// Lets a player know the base.
    pub fn know_base(&self, player: Player) -> Result<()> {
        let store = player.store(self);
        if let Some((uid, gid)) = player::ordinary_user().filter(|_| player == Player::User && !store.exists()) {
            make_dir(&store)?;
            std::os::unix::fs::chown(&store, Some(uid), Some(gid)).map_err(|error| error.to_string())?;
        }
        if player == Player::Buildah && !store.exists() {
            make_dir(&store)?;
            let base = format!("oci:{}:latest", self.base().display());
            let image = run(player::buildah(self).args(["pull", "--quiet", &base]))?;
            let image = image.lines().last().unwrap_or_default().to_owned();
            run(player::buildah(self).args(["tag", &image, "localhost/busybox"]))?;
        }
        Ok(())
    }

    /// The address of a registry that runs until the end.
    pub fn registry(&self) -> Result<&str> {
        let registry = self.registry.get_or_init(|| {
            let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            let address = port.map_err(|error| format!("no free port: {error}"))?.to_string();
            let config = self.dir.join("registry.yml");
            let data = self.dir.join("registry");
            let text = format!(
                "version: 0.1\nlog: {{accesslog: {{disabled: true}}, level: error}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
                data.display()
            );
            write(&config, text.as_bytes())?;
            let child = spawn(Command::new("docker-registry").arg("serve").arg(&config))?;
            let registry = Registry { child, address };
            for _ in 0..200 {
                if std::net::TcpStream::connect(&registry.address).is_ok() {
                    return Ok(registry);
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err("docker-registry does not answer".into())
        });
        registry.as_ref().map(|registry| registry.address.as_str()).map_err(Clone::clone)
    }

    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        write(&self.dir.join(name), text.as_bytes())
    }

    /// Removes the stores and contexts of a row that is done.
    pub fn forget(&self) {
        for player in [Player::Wythe, Player::User, Player::Buildah, Player::Runc] {
            unmount(&player.store(self));
        }
        for name in ["stores", "trash", "contexts", "work"] {
            remove(&self.dir.join(name));
        }
        for name in ["stores", "trash"] {
            let _ = fs::create_dir_all(self.dir.join(name));
        }
    }

    /// Removes everything but the table and the plot.
    fn clean(&self) {
        self.forget();
        for name in ["base", "registry", "registry.yml", "stores", "trash", "bundle"] {
            remove(&self.dir.join(name));
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(Ok(registry)) = self.registry.take().as_mut() {
            let _ = registry.child.kill();
        }
        self.clean();
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    let name = command.get_program().display().to_string();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|error| format!("cannot run {name}: {error}"))
}

/// buildah mounts its own store over itself, as root, and leaves that.
fn unmount(store: &Path) {
    let mount = store.join("root/overlay");
    while mount.exists()
        && Command::new("umount").arg(&mount).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    {}
}

fn remove(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => return,
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    if let Err(error) = removed {
        eprintln!("cannot remove {}: {error}", path.display());
    }
}

pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| format!("cannot make {}: {error}", path.display()))
}

pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// `count` files of `bytes` each below `dir`, fifty to a directory.
pub fn files(dir: &Path, count: usize, bytes: usize) -> Result<()> {
    let mut noise = Noise(1);
    for number in 0..count {
        let folder = dir.join(format!("{:04}", number / 50));
        if number % 50 == 0 {
            make_dir(&folder)?;
        }
        write(&folder.join(format!("{number:06}")), &noise.bytes(bytes))?;
    }
    Ok(())
}

/// Gives back the memory that large files take. In a virtual machine memory that was never used is dear, and each
/// round would need other.
fn forget(dir: &Path) -> Result<()> {
    const LARGE_BYTES: u64 = 1 << 20;
    for entry in walkdir::WalkDir::new(dir).into_iter().filter_map(std::result::Result::ok) {
        let is_large = entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() >= LARGE_BYTES);
        if is_large {
            let file = fs::File::open(entry.path()).map_err(|error| error.to_string())?;
            file.sync_data().map_err(|error| error.to_string())?;
            let all = rustix::fs::Advice::DontNeed;
            rustix::fs::fadvise(&file, 0, None, all).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// A file that compresses to about half.
pub fn half_noise(path: &Path, bytes: usize) -> Result<()> {
    let doing = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let mut file = std::io::BufWriter::new(fs::File::create(path).map_err(doing)?);
    let mut noise = Noise(2);
    for _ in 0..bytes / 64 {
        let piece = noise.bytes(32);
        file.write_all(&piece).and_then(|()| file.write_all(b"the same thirty-two bytes as ever")).map_err(doing)?;
    }
    file.flush().map_err(doing)
}

/// Bytes that look random and are the same in every run (xorshift).
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend_from_slice(&self.0.to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// What a command prints; what it complains of is the error if it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("cannot run {name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{name} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
