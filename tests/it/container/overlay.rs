//! Merged views for COPY, which need no container.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use wythe::container::overlay_detached;

use super::bench::entries;

fn layer(dir: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let layer = dir.join(name);
    fs::create_dir(&layer).unwrap();
    for (name, content) in files {
        fs::create_dir_all(layer.join(name).parent().unwrap()).unwrap();
        fs::write(layer.join(name), content).unwrap();
    }
    layer
}

fn view(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/.", fd.as_raw_fd()))
}

#[test]
fn any_number_of_layers_reads_as_one_tree() {
    let dir = tempfile::tempdir().unwrap();
    let bottom = layer(dir.path(), "bottom", &[("a", "a0"), ("d/x", "x0")]);
    let top = layer(dir.path(), "top", &[("a", "a1"), ("d/y", "y1")]);
    let nothing = overlay_detached(&[], None).unwrap();
    assert_eq!(entries(&view(&nothing)), Vec::<String>::new());
    let one = overlay_detached(std::slice::from_ref(&bottom), None).unwrap();
    assert_eq!(entries(&view(&one)), ["a", "d", "d/x"]);
    let both = overlay_detached(&[top, bottom], None).unwrap();
    assert_eq!(entries(&view(&both)), ["a", "d", "d/x", "d/y"]);
    assert_eq!(fs::read_to_string(view(&both).join("a")).unwrap(), "a1");
    for fd in [nothing, one, both] {
        let error = fs::write(view(&fd).join("new"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
}

#[test]
fn writes_go_to_the_draft() {
    let dir = tempfile::tempdir().unwrap();
    let bottom = layer(dir.path(), "bottom", &[("a", "a0"), ("d/x", "x0")]);
    for (number, lowers) in [vec![], vec![bottom.clone()]].into_iter().enumerate() {
        let draft = layer(dir.path(), &format!("draft.{number}"), &[]);
        fs::create_dir(draft.join("u")).unwrap();
        fs::create_dir(draft.join("w")).unwrap();
        let tree = overlay_detached(&lowers, Some(&draft)).unwrap();
        fs::write(view(&tree).join("new"), "new").unwrap();
        if !lowers.is_empty() {
            fs::remove_file(view(&tree).join("d/x")).unwrap();
        }
        drop(tree);
        let expected: &[&str] = if lowers.is_empty() { &["new"] } else { &["d", "d/x", "new"] };
        assert_eq!(entries(&draft.join("u")), expected);
    }
    assert_eq!(entries(&bottom), ["a", "d", "d/x"]);
}

#[test]
fn too_many_layers_are_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let lowers: Vec<PathBuf> = (0..501).map(|number| layer(dir.path(), &number.to_string(), &[])).collect();
    let error = overlay_detached(&lowers, None).unwrap_err();
    assert_eq!(error.message, "cannot stack 501 layers: the kernel's overlay takes at most 500");
    if let Err(error) = overlay_detached(&lowers[..500], None) {
        assert_eq!(error.cause.as_deref(), Some("before Linux 6.7 an overlay takes 117 of them by name"));
        overlay_detached(&lowers[..117], None).unwrap();
    }
}

#[test]
fn errors_name_the_layer() {
    let error = overlay_detached(&["/no/such/layer".into()], None).unwrap_err();
    assert_eq!(error.message, "cannot open the layer `/no/such/layer`");
}
