//! Writes results: archives, directories, names in the local store. Each output appears whole or not
//! at all; a tar on standard output is the exception, since what was written is gone.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read as _, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::context::{self, Form, Tree};
use crate::copy::{self, Landing, Owner};
use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::Digest;
use crate::host::Host;
use crate::image::archive::{self, Assembled, Contents, Format, ImageContents};
use crate::image::manifest::Descriptor;
use crate::image::{ImageConfig, Platform, Reference};
use crate::layer;
use crate::progress::{Meter, Metered};
use crate::registry::{self, Package, Whereabouts};
use crate::solve::{Layers, Stack};
use crate::store::{ImageLayer, ImageRecord, Packing};

/// Of what a program says that does not take an image.
const MAX_COMPLAINT_BYTES: u64 = 64 << 10;

/// `-o`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// An OCI layout in a tar.
    Oci {
        destination: Destination,
        packing: Packing,
    },
    OciDirectory {
        directory: PathBuf,
        packing: Packing,
    },
    /// An OCI layout in a tar with Docker's `manifest.json`.
    Docker {
        destination: Destination,
        packing: Packing,
    },
    /// The files of the rootfs.
    Local {
        directory: PathBuf,
    },
    /// The files of the rootfs in a tar.
    Tar {
        destination: Destination,
    },
    /// Pushed to the registries of the names; of these, or else of the image's.
    Registry {
        names: Vec<Reference>,
        packing: Packing,
    },
    /// Given to another program, for its own store: to the first of these that is there.
    Load {
        programs: Vec<String>,
        packing: Packing,
    },
    /// The local store alone.
    Store,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Path(PathBuf),
    Stdout,
}

impl Destination {
    /// For whoever looks.
    fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Stdout => "standard output".into(),
        }
    }
}

impl Output {
    /// How the layers of the image are packed for it; none where its files are written, or nothing is.
    pub fn packing(&self) -> Option<Packing> {
        match self {
            Self::Oci { packing, .. }
            | Self::Docker { packing, .. }
            | Self::OciDirectory { packing, .. }
            | Self::Load { packing, .. }
            | Self::Registry { packing, .. } => Some(*packing),
            Self::Tar { .. } | Self::Local { .. } | Self::Store => None,
        }
    }

    /// Where a single file goes.
    pub fn destination(&self) -> Option<&Destination> {
        match self {
            Self::Oci { destination, .. } | Self::Docker { destination, .. } | Self::Tar { destination } => {
                Some(destination)
            }
            Self::OciDirectory { .. }
            | Self::Local { .. }
            | Self::Registry { .. }
            | Self::Load { .. }
            | Self::Store => None,
        }
    }
}

/// An image that was built, for one platform.
pub struct Built {
    pub platform: Platform,
    pub config: ImageConfig,
    pub stack: Stack,
}

/// Digests of what was exported.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// Digests of the configs, one a platform.
    pub image_ids: Vec<Digest>,
    /// The manifest or index, where an output has one.
    pub manifest: Option<Descriptor>,
}

impl Exported {
    /// The JSON of `--metadata-file`.
    pub fn metadata(&self, names: &[Reference]) -> Vec<u8> {
        let mut object = serde_json::Map::new();
        if let Some(id) = self.image_ids.first() {
            object.insert("containerimage.config.digest".into(), id.to_string().into());
        }
        if let Some(manifest) = &self.manifest {
            object.insert("containerimage.digest".into(), manifest.digest.to_string().into());
            object.insert("containerimage.descriptor".into(), manifest.to_value());
        }
        if !names.is_empty() {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            object.insert("image.name".into(), names.join(",").into());
        }
        format!("{:#}\n", serde_json::Value::Object(object)).into_bytes()
    }
}

/// Writes every output and every name.
pub fn export(
    images: &[Built],
    outputs: &[Output],
    names: &[Reference],
    host: &Host<'_>,
    layers: &Layers<'_>,
) -> Result<Exported> {
    let mut exported = Exported::default();
    if reads_layers(images, outputs, host, layers)? {
        host.store.enter()?;
    }
    for image in images {
        exported.image_ids.push(host.store.put_blob(&image.config.to_json())?);
    }
    for output in outputs {
        match output {
            Output::Oci { destination, packing } => {
                let contents = contents(images, names, layers, *packing, Whereabouts::Here)?;
                exported.manifest = Some(archive(contents, Format::Oci, destination, host)?);
            }
            Output::Docker { destination, packing } => {
                let contents = contents(images, names, layers, *packing, Whereabouts::Here)?;
                exported.manifest = Some(archive(contents, Format::Docker, destination, host)?);
            }
            Output::OciDirectory { directory, packing } => {
                let contents = contents(images, names, layers, *packing, Whereabouts::Here)?;
                let write = |contents: &Contents<'_>, meter: &Meter<'_>| {
                    archive::write_directory(contents, directory, Some(meter))
                };
                exported.manifest = Some(write_image(contents, &directory.display().to_string(), host, write)?);
            }
            Output::Tar { destination } => {
                let title = format!("[export] {}", destination.name());
                host.audience().show(&title, |meter| {
                    let rootfs = rootfs(&images[0], layers)?;
                    let mut file = OutputFile::create(destination)?;
                    layer::pack(rootfs.root(), &mut Metered { inner: &mut file, meter })?;
                    file.finish()
                })?;
            }
            Output::Local { directory } => {
                let title = format!("[export] {}", directory.display());
                host.audience().show(&title, |meter| {
                    meter.work();
                    local(&rootfs(&images[0], layers)?, directory, host)
                })?;
            }
            Output::Load { programs, packing } => {
                let contents = contents(images, names, layers, *packing, Whereabouts::Here)?;
                exported.manifest = Some(load(contents, programs, host)?);
            }
            // When the image has its names, so that a push can be repeated.
            Output::Registry { .. } | Output::Store => {}
        }
    }
    for (image, id) in images.iter().zip(&exported.image_ids) {
        let record = ImageRecord {
            manifest: None,
            config: *id,
            platform: image.platform.clone(),
            layers: image
                .stack
                .layers()
                .iter()
                .map(|layer| ImageLayer { diff_id: layer.diff_id, blob: layers.remote.blob_of(&layer.diff_id) })
                .collect(),
            created: image.config.created.clone(),
        };
        for name in names {
            host.store.put_image(name, &record)?;
        }
    }
    for output in outputs {
        if let Output::Registry { names: own, packing } = output {
            let names = if own.is_empty() { names } else { own };
            let contents = contents(images, names, layers, *packing, Whereabouts::Anywhere)?;
            exported.manifest = Some(push(contents, names, host)?);
        }
    }
    Ok(exported)
}

/// Whether files of layers are read for an output: always for those that are files themselves, else for
/// layers that have no blob yet.
fn reads_layers(images: &[Built], outputs: &[Output], host: &Host<'_>, layers: &Layers<'_>) -> Result<bool> {
    for output in outputs {
        if matches!(output, Output::Tar { .. } | Output::Local { .. }) {
            return Ok(true);
        }
        let Some(packing) = output.packing() else { continue };
        for layer in images.iter().flat_map(|image| image.stack.layers()) {
            // A layer that is elsewhere is fetched as it is, and no files are made of it.
            if host.store.form(&layer.diff_id, packing)?.is_none() && layers.remote.layer(&layer.diff_id)?.is_none() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn push(contents: Contents<'_>, names: &[Reference], host: &Host<'_>) -> Result<Descriptor> {
    if names.is_empty() {
        return Err(Diagnostic::error("an image without a name cannot be pushed").hint("name it with `-t`"));
    }
    let package = Package::assembled(contents.images, contents.media_types)?;
    let root = package.root().clone();
    for name in names {
        let title = format!("[push] {}", name.familiar());
        host.audience().show(&title, |meter| {
            registry::push(host.registry, host.store, &package, name, meter)?;
            meter.say(&format!("{}@{}", name.name(), root.digest));
            Ok(())
        })?;
    }
    Ok(root)
}

/// `None` where there is no such program.
fn start_load(program: &str) -> Option<Result<Child>> {
    let mut command = Command::new(program);
    match command.arg("load").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        spawned => Some(spawned.context(|| format!("cannot run `{program} load`"))),
    }
}

/// Has another program take the image into its own store.
fn load(contents: Contents<'_>, programs: &[String], host: &Host<'_>) -> Result<Descriptor> {
    let started = programs.iter().find_map(|program| Some((program, start_load(program)?)));
    let nobody = || Diagnostic::error(format!("there is no program `{}` here", programs.join("` or `")));
    let (program, child) = started.ok_or_else(nobody)?;
    let mut child = child?;
    write_image(contents, &format!("{program} load"), host, |contents, meter| {
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let (written, complaint) = std::thread::scope(|scope| {
            let listener = scope.spawn(move || {
                let mut text = Vec::new();
                if let Some(mut stderr) = stderr {
                    let _ = (&mut stderr).take(MAX_COMPLAINT_BYTES).read_to_end(&mut text);
                    // It is not to stop because nobody listens.
                    let _ = io::copy(&mut stderr, &mut io::sink());
                }
                text
            });
            let written = match stdin {
                Some(mut stdin) => archive::write_tar(contents, Format::Docker, &mut stdin, Some(meter)),
                None => Err(Diagnostic::error(format!("`{program} load` does not read"))),
            };
            if written.is_err() {
                // Half an image is none. One that ended by itself says why.
                if !matches!(child.try_wait(), Ok(Some(_))) {
                    let _ = child.kill();
                }
            }
            (written, listener.join().unwrap_or_default())
        });
        let status = child.wait().context(|| format!("cannot wait for `{program} load`"))?;
        if status.success() || host.is_canceled() {
            return written;
        }
        let error = Diagnostic::error(format!("`{program} load` does not take the image"));
        let complaint = String::from_utf8_lossy(&complaint);
        match (complaint.lines().rfind(|line| !line.trim().is_empty()), written) {
            (Some(line), _) => Err(error.caused_by(line.trim())),
            (None, Err(why)) => Err(error.caused_by(why.message)),
            (None, Ok(_)) => Err(error),
        }
    })
}

fn archive(contents: Contents<'_>, format: Format, destination: &Destination, host: &Host<'_>) -> Result<Descriptor> {
    write_image(contents, &destination.name(), host, |contents, meter| match destination {
        Destination::Path(path) => archive::write_file(contents, format, path, Some(meter)),
        Destination::Stdout => archive::write_tar(contents, format, &mut io::stdout().lock(), Some(meter)),
    })
}

/// Writes the image, shown as a step.
fn write_image(
    contents: Contents<'_>,
    name: &str,
    host: &Host<'_>,
    write: impl FnOnce(&Contents<'_>, &Meter<'_>) -> Result<Assembled>,
) -> Result<Descriptor> {
    host.audience().show(&format!("[export] {name}"), |meter| {
        meter.work();
        let layers = contents.images.iter().flat_map(|image| &image.layers);
        meter.expect(layers.map(|layer| layer.descriptor.size_bytes).sum());
        write(&contents, meter)
            .map(|assembled| assembled.root().clone())
            .map_err(|error| if host.is_canceled() { error } else { blame(error, &contents, host) })
    })
}

/// Blobs are checked as they are written out. One that is damaged is taken out of the store, so that
/// the next build has it made or imported anew.
fn blame(error: Diagnostic, contents: &Contents<'_>, host: &Host<'_>) -> Diagnostic {
    let layers = contents.images.iter().flat_map(|image| &image.layers);
    let is_damaged = |digest: &Digest| matches!(host.store.verify_blob(digest), Ok(false));
    match layers.map(|layer| layer.descriptor.digest).find(is_damaged) {
        Some(digest) => Diagnostic::error(format!("blob `{digest}` was damaged in the store and has been removed"))
            .hint("run the same build again"),
        None => error,
    }
}

/// What an archive of the images holds. Layers that have no blob of this compression are packed and
/// compressed now, and the blob is remembered.
fn contents<'a>(
    images: &[Built],
    names: &[Reference],
    layers: &'a Layers<'_>,
    packing: Packing,
    wanted: Whereabouts,
) -> Result<Contents<'a>> {
    let created = images.first().and_then(|image| image.config.created.clone());
    let stacks: Vec<_> = images.iter().map(|image| image.config.rootfs.diff_ids.as_slice()).collect();
    let blobs = layers.remote.packed(&stacks, packing, wanted)?;
    let images = images.iter().zip(blobs).map(|(image, layers)| ImageContents {
        platform: image.platform.clone(),
        config: image.config.to_json(),
        layers,
        annotations: BTreeMap::new(),
    });
    Ok(Contents {
        images: images.collect(),
        names: names.to_vec(),
        created,
        media_types: packing.media_types,
        others: Vec::new(),
    })
}

fn rootfs(image: &Built, layers: &Layers<'_>) -> Result<Tree> {
    Ok(Tree::of_root(layers.view(&image.stack)?, "the image"))
}

/// The rootfs as files of `directory`, over what is there. They are the user's who builds, as docker's
/// are: files of others would be nothing that a user could use, or delete.
fn local(tree: &Tree, directory: &Path, host: &Host<'_>) -> Result<()> {
    std::fs::create_dir_all(directory).context(|| format!("cannot make `{}`", directory.display()))?;
    let root = rustix::fs::open(
        directory,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .context(|| format!("cannot open `{}`", directory.display()))?;
    let everything = context::Request { sources: vec!["/"], form: Form::Literal, excludes: &[], threads: 2 };
    let listing = context::select(tree, &everything, None).map_err(|error| *error.diagnostic)?;
    let landing = Landing {
        destination: "/",
        owner: Some(Owner::ROOT),
        chmod: None,
        is_link: false,
        has_parents: false,
        unpacks: false,
        now: host.now(),
    };
    copy::land(tree, &listing, root.as_fd(), &landing)
}

/// The file of an output: written beside, renamed into place by `finish`, gone if dropped before.
struct OutputFile {
    writer: BufWriter<Box<dyn Write + Send>>,
    pending: Option<(tempfile::TempPath, PathBuf)>,
}

impl OutputFile {
    fn create(destination: &Destination) -> Result<Self> {
        const BUFFER_BYTES: usize = 256 << 10;
        let (inner, pending): (Box<dyn Write + Send>, _) = match destination {
            Destination::Stdout => (Box::new(io::stdout()), None),
            // A pipe or a device is written to, never replaced.
            Destination::Path(path) if is_special(path) => {
                let file = std::fs::File::options().write(true).open(path);
                (Box::new(file.context(|| format!("cannot write `{}`", path.display()))?), None)
            }
            Destination::Path(path) => {
                let (file, beside) = beside(path)?.into_parts();
                (Box::new(file), Some((beside, path.clone())))
            }
        };
        Ok(Self { writer: BufWriter::with_capacity(BUFFER_BYTES, inner), pending })
    }

    fn finish(mut self) -> Result<()> {
        let shown = || match &self.pending {
            Some((_, path)) => format!("cannot write `{}`", path.display()),
            None => "cannot write to standard output".to_owned(),
        };
        self.writer.flush().context(shown)?;
        match self.pending.take() {
            Some((beside, path)) => beside
                .persist(&path)
                .map_err(|error| error.error)
                .context(|| format!("cannot write `{}`", path.display())),
            None => Ok(()),
        }
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// A new file in the directory of `path`, of the mode an ordinary new file has.
fn beside(path: &Path) -> Result<tempfile::NamedTempFile> {
    use std::os::unix::fs::PermissionsExt as _;
    if path.is_dir() {
        return Err(Diagnostic::error(format!("cannot write `{}`: it is a directory", path.display())));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // The process's umask is applied to this mode.
    tempfile::Builder::new()
        .prefix(".wythe-")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(parent)
        .context(|| format!("cannot write `{}`", path.display()))
}

/// Writes a small file beside and renames it into place.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OutputFile::create(&Destination::Path(path.to_owned()))?;
    file.write_all(bytes).context(|| format!("cannot write `{}`", path.display()))?;
    file.finish()
}
