//! `-o`, as docker buildx has it.

use std::path::PathBuf;

use super::values::fields;
use super::{Failure, packing, usage};
use crate::export::{Destination, Output};
use crate::image::MediaTypes;
use crate::store::Packing;

/// `PATH` is a directory, `-` a tar on standard output, else a list of keys with `type=`.
pub fn parse(text: &str) -> Result<Output, Failure> {
    const KEYS: &str = "type, dest, name, push, tar, compression, compression-level, force-compression, oci-mediatypes";
    let wrong = |why: String| usage(format!("`-o {text}`: {why}"));
    if text == "-" {
        return Ok(Output::Tar { destination: Destination::Stdout });
    }
    if !text.contains('=') {
        return Ok(Output::Local { directory: PathBuf::from(text) });
    }
    let (mut kind, mut dest, mut is_tar) = (None, None, true);
    let mut said = packing::Said::default();
    let (mut is_pushed, mut names) = (false, Vec::new());
    let is_true =
        |key: &str, value: &str| flag(value).ok_or_else(|| wrong(format!("`{key}={value}` is neither true nor false")));
    for (key, value) in fields(text) {
        let value = value.ok_or_else(|| wrong(format!("`{key}` has no value")))?;
        match key.as_str() {
            "type" => kind = Some(value),
            "dest" => dest = Some(value),
            "tar" => is_tar = is_true(&key, &value)?,
            "compression" => said.compression = Some(value),
            "compression-level" => said.level = Some(value),
            "force-compression" => said.is_forced = is_true(&key, &value)?,
            "oci-mediatypes" => {
                said.media_types = if is_true(&key, &value)? { MediaTypes::Oci } else { MediaTypes::Docker };
            }
            "push" => is_pushed = is_true(&key, &value)?,
            "name" => {
                for name in value.split(',') {
                    names.push(name.parse().map_err(|why| wrong(format!("`{name}`: {why}")))?);
                }
            }
            _ => return Err(wrong(format!("there is no key `{key}`; known are {KEYS}"))),
        }
    }
    let packing = said.packing().map_err(&wrong)?;
    let kind = kind.ok_or_else(|| wrong("`type=` is missing".into()))?;
    let destination = match dest.as_deref() {
        Some("-") => Some(Destination::Stdout),
        Some("") => return Err(wrong("`dest=` is empty".into())),
        Some(path) => Some(Destination::Path(PathBuf::from(path))),
        None => None,
    };
    if !names.is_empty() && kind != "registry" && !(kind == "image" && is_pushed) {
        return Err(wrong("name the image with `-t`".into()));
    }
    if is_pushed && kind != "image" && kind != "registry" {
        return Err(wrong(format!("`push=true` does not go with `type={kind}`: use type=registry")));
    }
    let missing = || wrong(format!("`type={kind}` needs `dest=`"));
    Ok(match kind.as_str() {
        "oci" if !is_tar => match destination.ok_or_else(missing)? {
            Destination::Path(directory) => Output::OciDirectory { directory, packing },
            Destination::Stdout => return Err(wrong("a directory cannot go to standard output".into())),
        },
        "oci" => Output::Oci { destination: destination.ok_or_else(missing)?, packing },
        "docker" => match destination {
            Some(destination) => Output::Docker { destination, packing },
            None => load(packing),
        },
        "tar" => Output::Tar { destination: destination.ok_or_else(missing)? },
        "local" => match destination.ok_or_else(missing)? {
            Destination::Path(directory) => Output::Local { directory },
            Destination::Stdout => return Err(wrong("a directory cannot go to standard output; use type=tar".into())),
        },
        "registry" => Output::Registry { names, packing },
        "image" if is_pushed => Output::Registry { names, packing },
        "image" | "cacheonly" => Output::Store,
        other => {
            return Err(wrong(format!(
                "there is no type `{other}`: use oci, docker, local, tar, registry, image or cacheonly"
            )));
        }
    })
}

/// `--load`: to whichever of these the user has.
pub fn load(packing: Packing) -> Output {
    Output::Load { programs: ["docker", "podman"].map(String::from).into(), packing }
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Compression;

    #[test]
    fn forms() {
        let parsed = |text| parse(text).ok();
        assert_eq!(parsed("-"), Some(Output::Tar { destination: Destination::Stdout }));
        assert_eq!(parsed("out"), Some(Output::Local { directory: "out".into() }));
        assert_eq!(
            parsed("type=oci,dest=a.tar,compression=uncompressed"),
            Some(Output::Oci { destination: Destination::Path("a.tar".into()), packing: Compression::None.into() })
        );
        assert_eq!(
            parsed("type=oci,dest=d,tar=false"),
            Some(Output::OciDirectory { directory: "d".into(), packing: Packing::DEFAULT })
        );
        let docker = Packing { is_forced: true, media_types: MediaTypes::Docker, ..Packing::DEFAULT };
        assert_eq!(
            parsed("type=registry,oci-mediatypes=false,force-compression=true"),
            Some(Output::Registry { names: Vec::new(), packing: docker })
        );
        let pushed = |names: &[&str]| {
            let names = names.iter().map(|name| name.parse().unwrap()).collect();
            Some(Output::Registry { names, packing: Packing::DEFAULT })
        };
        assert_eq!(parsed("type=docker"), Some(load(Packing::DEFAULT)));
        assert_eq!(parsed("type=registry"), pushed(&[]));
        assert_eq!(parsed("type=image,push=true"), pushed(&[]));
        assert_eq!(parsed("type=image,push=false"), Some(Output::Store));
        assert_eq!(parsed("type=image,\"name=a.test/b,a.test/c:1\",push=true"), pushed(&["a.test/b", "a.test/c:1"]));
        for wrong in ["type=oci,dest=x,push=true", "type=image,name=a", "type=registry,name=A"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
        for wrong in ["type=oci", "type=frob,dest=x", "dest=x", "type=oci,dest=x,frob=1", "type=oci,dest=-,tar=false"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
