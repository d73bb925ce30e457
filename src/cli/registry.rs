//! `wythe pull`, `push`, `load` and `save`; and what the environment says about registries.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::args::{Pull, Push, Save, Transfer};
use super::build::reporter;
use super::entrance::Entrance;
use super::interrupt::{self, Interrupts};
use super::{Failure, images, packing, print, usage};
use crate::diag::{Context as _, Diagnostic};
use crate::image::archive::{self, Archive, Contents, Format, Selector};
use crate::image::{Platform, Reference};
use crate::layer;
use crate::progress::{Audience, Event, Numbers, Reporter};
use crate::registry::{
    self, Client, CredentialFile, Options, Package, PlaceFiles, Places, Proxies, Remote, Whereabouts,
};
use crate::store::{ImageRecord, Packing, Store};

/// Speaks to registries as the user's environment says.
pub fn client(insecure: &[String]) -> Client {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let below_home = |path: &str| home.as_ref().map(|home| home.join(path));
    // The user's word first, then docker's file, then podman's.
    let files = [
        variable("REGISTRY_AUTH_FILE"),
        variable("DOCKER_CONFIG").or_else(|| below_home(".docker")).map(|directory| directory.join("config.json")),
        variable("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")),
        variable("XDG_CONFIG_HOME").or_else(|| below_home(".config")).map(|config| config.join("containers/auth.json")),
    ];
    Client::new(Options {
        insecure: insecure.to_vec(),
        proxies: proxies(),
        credentials: files.into_iter().flatten().map(CredentialFile).collect(),
        certificates: variable("SSL_CERT_FILE"),
        host_certificates: [below_home(".config/containers/certs.d"), below_home(".docker/certs.d")]
            .into_iter()
            .flatten()
            .chain(["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()])
            .collect(),
        places: Places::new(place_files(variable("CONTAINERS_REGISTRIES_CONF"), below_home(".config/containers"))),
        ..Options::default()
    })
}

/// The file that the variable names, else the user's, else the system's, as podman has it; and docker's.
fn place_files(named: Option<PathBuf>, own: Option<PathBuf>) -> PlaceFiles {
    let system = PathBuf::from("/etc/containers");
    let daemon = Some("/etc/docker/daemon.json".into());
    if let Some(named) = named {
        return PlaceFiles { registries: vec![named], more: Vec::new(), daemon };
    }
    let own_file = own.as_ref().map(|own| own.join("registries.conf")).filter(|file| file.is_file());
    PlaceFiles {
        registries: vec![own_file.unwrap_or_else(|| system.join("registries.conf"))],
        more: [system].into_iter().chain(own).map(|directory| directory.join("registries.conf.d")).collect(),
        daemon,
    }
}

/// The proxies of the user's environment.
pub fn proxies() -> Proxies {
    let text =
        |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let all = text(&["all_proxy", "ALL_PROXY"]);
    let except = text(&["no_proxy", "NO_PROXY"]).unwrap_or_default();
    Proxies {
        http: text(&["http_proxy", "HTTP_PROXY"]).or_else(|| all.clone()),
        https: text(&["https_proxy", "HTTPS_PROXY"]).or(all),
        except: except.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect(),
    }
}

/// Does `work` with the store, a client and somebody who watches, and prints what it returns. A signal ends
/// it.
fn transfer(
    root: &Path,
    entrance: &Entrance,
    arguments: &Transfer,
    work: impl FnOnce(&Store, &Client, Audience<'_>) -> Result<String, Failure>,
) -> Result<ExitCode, Failure> {
    // Before the store starts a thread.
    let (interrupts, stop) = Interrupts::block()?;
    let reporter: Arc<dyn Reporter> = Arc::from(reporter(arguments.progress.as_deref(), arguments.quiet)?);
    let canceled = Arc::new(AtomicBool::new(false));
    let (is_canceled, leaving) = (Arc::clone(&canceled), Arc::clone(&reporter));
    // Only layers that are packed now take entering.
    let store = entrance.open(root, move || {
        if is_canceled.load(Ordering::Relaxed) {
            return Err(Diagnostic::error("the transfer was canceled"));
        }
        leaving.close();
        Ok(())
    })?;
    let client = client(&arguments.insecure_registries);
    let numbers = Numbers::default();
    let audience = Audience { reporter: &*reporter, numbers: &numbers, canceled: &canceled };
    let done = std::thread::scope(|scope| {
        let watch = interrupts.watch(scope, stop, |_| {
            canceled.store(true, Ordering::Relaxed);
            client.cancel();
        });
        let done = work(&store, &client, audience);
        drop(watch);
        done
    });
    if done.is_ok() {
        reporter.report(Event::Ended);
    }
    reporter.close();
    match (done, interrupts.caught()) {
        (Ok(text), _) => {
            print(&text);
            Ok(ExitCode::SUCCESS)
        }
        (Err(_), Some(signal)) => Ok(interrupt::stopped_by(signal)),
        (Err(failure), None) => Err(failure),
    }
}

/// Prints the image's ID.
pub fn pull(root: &Path, entrance: &Entrance, arguments: &Pull) -> Result<ExitCode, Failure> {
    let reference: Reference = arguments.image.parse().map_err(|why| usage(format!("`{}`: {why}", arguments.image)))?;
    let platform = match &arguments.platform {
        Some(platform) => platform.parse().map_err(usage)?,
        None => Platform::host(),
    };
    transfer(root, entrance, &arguments.transfer, |store, client, audience| {
        let record = registry::pull(&Remote::of(client, store, audience), &reference, &platform)?;
        Ok(format!("{}\n", record.config))
    })
}

/// Prints the digest of what the name now stands for in the registry.
pub fn push(root: &Path, entrance: &Entrance, arguments: &Push) -> Result<ExitCode, Failure> {
    let parse = |text: &str| text.parse::<Reference>().map_err(|why| usage(format!("`{text}`: {why}")));
    let packing = packing::of_options(&arguments.packing)?;
    transfer(root, entrance, &arguments.transfer, |store, client, audience| {
        let (references, records) = stored(store, &arguments.image)?;
        let destination = match (&arguments.destination, references.first()) {
            (Some(destination), _) => parse(destination)?,
            (None, Some(reference)) => reference.clone(),
            (None, None) => return Err(usage("say what the image is called in the registry")),
        };
        let remote = Remote::of(client, store, audience);
        let name = references.first().unwrap_or(&destination).familiar();
        records.iter().for_each(|record| remote.know(record, &name));
        let package = Package::stored(&remote, &records, packing)?;
        let title = format!("[push] {}", destination.familiar());
        audience.show(&title, |meter| registry::push(client, store, &package, &destination, meter))?;
        Ok(format!("{}\n", package.root().digest))
    })
}

/// Prints the names.
pub fn load(store: &Store, input: Option<&Path>) -> Result<ExitCode, Failure> {
    let plain = plain(store, input)?;
    let archive = Archive::open(plain.as_deref().or(input).unwrap_or(Path::new("-")))?;
    let mut references = Vec::new();
    for name in archive.names()? {
        let reference: Reference = name.parse().map_err(|why| {
            Diagnostic::error(format!("the archive calls an image `{}`", name.escape_debug())).caused_by(why)
        })?;
        references.push((name, reference));
    }
    if references.is_empty() {
        return Err(Diagnostic::error("the image in the archive has no name: nothing would keep it in the store")
            .hint("build from the archive with `--build-context NAME=oci-layout://FILE`")
            .into());
    }
    for (name, reference) in references {
        let image = archive.image(&Selector::Name(name), &Platform::host())?;
        let record = store.import_image(&archive, &image, &image.platform)?;
        store.put_image(&reference, &record)?;
        print(&format!("{}\n", reference.familiar()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A plain copy of an archive that comes by standard input or is compressed.
fn plain(store: &Store, input: Option<&Path>) -> Result<Option<tempfile::TempPath>, Failure> {
    let shown = input.map_or("standard input".to_owned(), |path| format!("`{}`", path.display()));
    let cannot_read = || format!("cannot read the archive from {shown}");
    let mut reader: Box<dyn std::io::Read + Send> = match input {
        Some(path) => {
            let file = std::fs::File::open(path).context(cannot_read)?;
            if file.metadata().context(cannot_read)?.is_dir() {
                return Ok(None);
            }
            Box::new(file)
        }
        None if std::io::stdin().is_terminal() => return Err(usage("name the archive with `-i FILE`")),
        None => Box::new(std::io::stdin()),
    };
    let mut magic = Vec::new();
    (&mut reader).take(4).read_to_end(&mut magic).context(cannot_read)?;
    let is_compressed = magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd];
    if input.is_some() && !is_compressed {
        return Ok(None);
    }
    let mut reader: Box<dyn std::io::Read + Send> = Box::new(std::io::Cursor::new(magic).chain(reader));
    if is_compressed {
        reader = Box::new(layer::decompress(reader)?);
    }
    // In the store, which has room for an image, and is swept should this process be killed.
    let mut file =
        tempfile::Builder::new().prefix("load-").tempfile_in(store.root().join("tmp")).context(cannot_read)?;
    std::io::copy(&mut reader, &mut file).context(cannot_read)?;
    Ok(Some(file.into_temp_path()))
}

/// Prints nothing but, without a file, the archive.
pub fn save(root: &Path, entrance: &Entrance, arguments: &Save) -> Result<ExitCode, Failure> {
    let packing = packing::of_options(&arguments.packing)?.unwrap_or(Packing::DEFAULT);
    if arguments.output.is_none() && std::io::stdout().is_terminal() {
        return Err(usage("a tar is not written to a terminal: give `-o FILE` or redirect standard output"));
    }
    transfer(root, entrance, &arguments.transfer, |store, client, audience| {
        let remote = Remote::of(client, store, audience);
        // Several names of one image are one image with several names.
        let mut images: Vec<(ImageRecord, Vec<Reference>)> = Vec::new();
        for name in &arguments.names {
            let (of_image, mut records) = stored(store, name)?;
            let here = records.iter().position(|record| record.platform == Platform::host()).unwrap_or(0);
            let record = records.swap_remove(here);
            remote.know(&record, name);
            let known = images.iter().position(|(other, _)| other.config == record.config);
            let place = known.unwrap_or(images.len());
            if known.is_none() {
                images.push((record, Vec::new()));
            }
            let fresh = of_image.into_iter().take(1).filter(|name| !images[place].1.contains(name)).collect::<Vec<_>>();
            images[place].1.extend(fresh);
        }
        let (records, names): (Vec<_>, Vec<_>) = images.into_iter().unzip();
        let blobs = registry::contents(&remote, &records, packing, Whereabouts::Here)?;
        let all = records.iter().zip(names).zip(blobs).map(|((record, names), image)| Contents {
            images: vec![image],
            names,
            created: record.created.clone(),
            media_types: packing.media_types,
            others: Vec::new(),
        });
        let mut all: Vec<_> = all.collect();
        if all.is_empty() {
            return Err(usage("name an image"));
        }
        let first = all.remove(0);
        let contents = Contents { others: all, ..first };
        match &arguments.output {
            Some(path) => archive::write_file(&contents, Format::Docker, path, None)?,
            None => archive::write_tar(&contents, Format::Docker, &mut std::io::stdout().lock(), None)?,
        };
        Ok(String::new())
    })
}

/// The names and, for each platform, the image that a name or the beginning of an ID stands for.
fn stored(store: &Store, text: &str) -> Result<(Vec<Reference>, Vec<ImageRecord>), Failure> {
    if let Ok(reference) = text.parse::<Reference>() {
        let records = store.images_named(&reference)?;
        if !records.is_empty() {
            return Ok((vec![reference], records));
        }
    }
    let (references, record) = images::find(store, text)?;
    Ok((references, vec![record]))
}
