//! More layers than the kernel stacks.

use std::fs;

use super::image::Image;
use super::sandbox::Sandbox;

/// A build of so many steps that their layers cannot be mounted one by one, over an image that has many,
/// shows each step what all before it left: files, whiteouts, directories made anew, owners and links.
#[test]
fn five_hundred_layers_are_one_root() {
    const BASE: usize = 150;
    const STEPS: usize = 360;
    let sandbox = Sandbox::new();
    let build = |dockerfile: &str, name: &str, args: &[&str]| {
        sandbox.write("Dockerfile", dockerfile);
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let ended = sandbox.build(name, &args);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        Image::read(&fs::read(sandbox.path(name)).unwrap())
    };
    let mut dockerfile =
        String::from("FROM busybox\nRUN mkdir /d /gone && touch /d/kept /gone/f && ln /d/kept /d/link\n");
    for step in 0..BASE {
        // What each makes the one after the next replaces or hides.
        dockerfile.push_str(&format!("COPY --chown={step}:0 <<E{step} /d/{}\n{step}\nE{step}\n", step % 7));
    }
    let base = build(&dockerfile, "base.tar", &["-t", "base"]);
    assert_eq!(base.diff_ids.len(), BASE + 2);

    // Another store has the base as blobs only, and unpacks them.
    fs::rename(sandbox.path("store"), sandbox.path("other")).unwrap();
    sandbox.shell("mkdir ../base && tar -xf ../base.tar -C ../base");
    let mut dockerfile = String::from("FROM base\nRUN rm -r /gone && chmod 700 /d && echo new > /d/kept\n");
    for step in BASE..BASE + STEPS {
        dockerfile.push_str(&format!("COPY --chown={step}:0 <<E{step} /d/{}\n{step}\nE{step}\n", step % 7));
    }
    dockerfile.push_str("RUN test ! -e /gone && rm /d/3 && ls -ln /d > /seen && ! mkdir /d\n");
    let on_layout = ["--build-context", "base=oci-layout://base"];
    let image = build(&dockerfile, "image.tar", &on_layout);
    assert_eq!(image.diff_ids.len(), BASE + 2 + STEPS + 2);
    assert!(!image.files.contains_key("gone") && !image.files.contains_key("d/3"));
    for last in BASE + STEPS - 7..BASE + STEPS {
        // As `Image::files` tells owner and size.
        let told = image.files.get(&format!("d/{}", last % 7));
        assert!(
            told.is_none_or(|told| told.contains(&last.to_string())) && told.is_some() == (last % 7 != 3),
            "{told:?}"
        );
    }
    assert_ne!(image.files["d/kept"], image.files["d/link"]);
    // Of the nine names one was removed.
    assert_eq!(image.files.keys().filter(|path| path.starts_with("d/")).count(), 8);

    let cached = build(&dockerfile, "again.tar", &on_layout);
    assert!(fs::read(sandbox.path("again.tar")).unwrap() == fs::read(sandbox.path("image.tar")).unwrap());
    assert_eq!(cached.id, image.id);
}
