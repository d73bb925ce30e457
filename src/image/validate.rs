//! What must hold of an image before it is written or taken in: the config's history and diff IDs
//! and the manifest's layers are one list seen three ways.

use super::manifest::{Descriptor, MAX_CONFIG_BYTES, media_type};
use super::{History, ImageConfig};
use crate::diag::{Diagnostic, Result};

/// More than any overlay can stack, and few enough to list.
pub const MAX_LAYERS: usize = 5_000;

/// Checks a config on its own, for one that is about to be written.
pub fn config(config: &ImageConfig) -> Result<()> {
    if config.rootfs.kind != "layers" {
        return Err(Diagnostic::error(format!(
            "the image config's `rootfs.type` is `{}` instead of `layers`",
            config.rootfs.kind.escape_debug()
        )));
    }
    let diff_ids = config.rootfs.diff_ids.len();
    if diff_ids > MAX_LAYERS {
        return Err(Diagnostic::error(format!("the image has {diff_ids} layers, more than {MAX_LAYERS}")));
    }
    let in_history = layers_in_history(config);
    // History as a whole is optional.
    if !config.history.is_empty() && in_history != diff_ids {
        return Err(Diagnostic::error(format!(
            "the image config's history has {in_history} layers, its `rootfs.diff_ids` {diff_ids}"
        )));
    }
    Ok(())
}

/// Checks that these descriptors can be the layers of this config, and that their blobs are to be
/// had.
pub fn layers(config: &ImageConfig, layers: &[Descriptor]) -> Result<()> {
    if config.rootfs.kind != "layers" {
        return self::config(config);
    }
    let diff_ids = config.rootfs.diff_ids.len();
    if diff_ids != layers.len() {
        return Err(Diagnostic::error(format!(
            "the image manifest has {} layers, the config's `rootfs.diff_ids` {diff_ids}",
            layers.len()
        )));
    }
    if diff_ids > MAX_LAYERS {
        return Err(Diagnostic::error(format!("the image has {diff_ids} layers, more than {MAX_LAYERS}")));
    }
    for (index, layer) in layers.iter().enumerate() {
        let number = index + 1;
        if media_type::is_foreign_layer(&layer.media_type) {
            return Err(Diagnostic::error(format!(
                "layer {number} of the image may not be distributed (`{}`)",
                layer.media_type
            )));
        }
        if !media_type::is_layer(&layer.media_type) {
            return Err(Diagnostic::error(format!(
                "layer {number} of the image is of an unknown type, `{}`",
                layer.media_type.escape_debug()
            )));
        }
    }
    Ok(())
}

/// Checks all of an image that is about to be written.
pub fn image(config_bytes: &[u8], layers: &[Descriptor]) -> Result<ImageConfig> {
    if config_bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(Diagnostic::error(format!("the image config is larger than {} MiB", MAX_CONFIG_BYTES >> 20)));
    }
    let config = ImageConfig::from_json(config_bytes)
        .map_err(|error| Diagnostic::error("the image config cannot be read").caused_by(error))?;
    self::config(&config)?;
    self::layers(&config, layers)?;
    Ok(config)
}

/// Makes a base image's history fit its diff IDs, so that what is built on it is valid: entries for
/// layers that are not there become empty ones, from the top; layers without an entry get one.
pub fn repair_history(config: &mut ImageConfig) {
    let diff_ids = config.rootfs.diff_ids.len();
    let mut layers = 0;
    for entry in config.history.iter_mut().filter(|entry| !entry.empty_layer) {
        entry.empty_layer = layers >= diff_ids;
        layers += usize::from(!entry.empty_layer);
    }
    let missing = History {
        created: config.created.clone(),
        comment: Some("not in the base image's history".into()),
        ..History::default()
    };
    config.history.extend(std::iter::repeat_n(missing, diff_ids - layers));
}

fn layers_in_history(config: &ImageConfig) -> usize {
    config.history.iter().filter(|entry| !entry.empty_layer).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{DiffId, Digest};

    /// `history`: `L` for a layer, `e` for an empty one.
    fn config_of(history: &str, diff_ids: usize) -> ImageConfig {
        let mut config = ImageConfig::default();
        config.rootfs.diff_ids = (0..diff_ids).map(|n| DiffId::new(Digest::of(&[n as u8]))).collect();
        config.history =
            history.chars().map(|kind| History { empty_layer: kind == 'e', ..History::default() }).collect();
        config
    }

    #[test]
    fn history_is_repaired() {
        for (before, diff_ids, after) in
            [("LeL", 2, "LeL"), ("LeLL", 2, "LeLe"), ("", 2, "LL"), ("eLe", 3, "eLeLL"), ("LL", 0, "ee"), ("", 0, "")]
        {
            let mut config = config_of(before, diff_ids);
            repair_history(&mut config);
            let history: String = config.history.iter().map(|e| if e.empty_layer { 'e' } else { 'L' }).collect();
            assert_eq!(history, after, "{before} with {diff_ids}");
            assert_eq!(super::config(&config), Ok(()));
        }
    }

    #[test]
    fn the_three_lists_must_agree() {
        let layer = |kind: &str| Descriptor::of(kind, b"");
        let check = |history: &str, diff_ids, layers: &[Descriptor]| {
            image(&config_of(history, diff_ids).to_json(), layers).map(|_| ()).map_err(|error| error.message)
        };
        let gzip = layer(media_type::LAYER_GZIP);
        assert_eq!(check("Le", 1, std::slice::from_ref(&gzip)), Ok(()));
        assert_eq!(check("", 1, std::slice::from_ref(&gzip)), Ok(()));
        assert!(check("LL", 1, std::slice::from_ref(&gzip)).unwrap_err().contains("history has 2 layers"));
        assert!(check("L", 1, &[]).unwrap_err().contains("manifest has 0 layers"));
        let foreign = layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        assert!(check("L", 1, &[foreign]).unwrap_err().contains("may not be distributed"));
        assert!(check("L", 1, &[layer("text/html")]).unwrap_err().contains("unknown type"));
        let mut config = config_of("", 0);
        config.rootfs.kind = "zip".into();
        assert!(super::config(&config).unwrap_err().message.contains("`zip` instead of `layers`"));
        assert!(check("", MAX_LAYERS + 1, &vec![gzip; MAX_LAYERS + 1]).unwrap_err().contains("more than 5000"));
    }
}
