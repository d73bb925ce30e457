//! The cache carried to another store.

use std::fs;

use super::sandbox::{Ended, Sandbox};

fn succeeded(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// Steps hit in a store that never ran them, give the same image, and can be built on; a cache mount has its
/// files, their owners and its own.
#[test]
fn a_cache_goes_to_another_machine() {
    let sandbox = Sandbox::new();
    let lines = "FROM busybox\nCOPY f /f\nRUN mkdir /d && echo 1 > /d/one && rm /f\n\
         RUN --mount=type=cache,target=/c,uid=7,mode=0750 echo kept > /c/k && chown 8:9 /c/k && echo 2 > /two\nRUN true\n";
    sandbox.write("f", "f");
    sandbox.write("Dockerfile", lines);
    succeeded(&sandbox.build("first.tar", &[]));
    let exported = sandbox.wythe(&["cache", "export", "-o", "cache.tar"]);
    succeeded(&exported);
    assert!(exported.stderr.starts_with("wrote 4 steps, 3 layers, 1 cache mount: "), "{}", exported.stderr);

    fs::rename(sandbox.path("store"), sandbox.path("old")).unwrap();
    sandbox.shell("zstd -q ../cache.tar");
    let imported = sandbox.wythe(&["cache", "import", "-i", "cache.tar.zst"]);
    succeeded(&imported);
    assert!(imported.stderr.starts_with("took in 4 steps, 3 layers, 1 cache mount: "), "{}", imported.stderr);
    let again = sandbox.build("second.tar", &[]);
    succeeded(&again);
    assert_eq!(again.ran(), [""; 0]);
    assert!(fs::read(sandbox.path("first.tar")).unwrap() == fs::read(sandbox.path("second.tar")).unwrap());
    // It goes on from there, though nothing was unpacked.
    let exported = sandbox.wythe(&["cache", "export", "-o", "further.tar"]);
    succeeded(&exported);
    assert!(exported.stderr.starts_with("wrote 4 steps, 3 layers, 1 cache mount: "), "{}", exported.stderr);

    // What stands on them finds their files, and the mount as it was.
    sandbox.write(
        "Dockerfile",
        &format!(
            "{lines}RUN --mount=type=cache,target=/c,uid=7,mode=0750 \
             test \"$(cat /c/k; stat -c %u:%g:%a /c /c/k; cat /d/one)\" = \"$(printf 'kept\\n7:0:750\\n8:9:644\\n1')\" && test ! -e /f\n"
        ),
    );
    let more = sandbox.build("third.tar", &[]);
    succeeded(&more);
    assert_eq!(more.ran().len(), 1, "{}", more.stderr);

    // Once more changes nothing.
    let imported = sandbox.wythe(&["cache", "import", "-i", "cache.tar"]);
    succeeded(&imported);
    assert!(imported.stderr.starts_with("took in 0 steps, 0 layers, 0 cache mounts: "), "{}", imported.stderr);
    assert!(imported.stderr.contains("here already, kept: cache mount /c"), "{}", imported.stderr);
}

#[test]
fn filters_choose_and_wrong_files_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "f");
    sandbox.write("Dockerfile", "FROM scratch\nCOPY f /f\n");
    succeeded(&sandbox.build("image.tar", &[]));
    let exported = sandbox.wythe(&["cache", "export", "-o", "cache.tar", "--filter", "type=exec.cachemount"]);
    succeeded(&exported);
    assert!(exported.stderr.starts_with("wrote 0 steps, 0 layers, 0 cache mounts: "), "{}", exported.stderr);
    for (file, why) in [("image.tar", "does not begin with"), ("none.tar", "cannot read"), ("context/f", "no cache of")]
    {
        let refused = sandbox.wythe(&["cache", "import", "-i", file]);
        assert_eq!(refused.code, Some(1));
        assert!(refused.stderr.contains(why), "{file}: {}", refused.stderr);
    }
    // A layer that is another than the list says, or a record of another key, gets no name.
    succeeded(&sandbox.wythe(&["cache", "export", "-o", "cache.tar"]));
    sandbox.shell(
        "mkdir x && cd x && tar -xf ../../cache.tar && cd blobs && printf x >> $(ls) && cd .. && \
         tar -cf ../../bent.tar wythe-cache.json blobs records",
    );
    fs::remove_dir_all(sandbox.path("store")).unwrap();
    let refused = sandbox.wythe(&["cache", "import", "-i", "bent.tar"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    sandbox.shell("cd x && mv records/* records/$(printf %064d 0) && tar -cf ../../bent.tar wythe-cache.json records");
    let refused = sandbox.wythe(&["cache", "import", "-i", "bent.tar"]);
    assert!(refused.stderr.contains("is the record of another step"), "{}", refused.stderr);
    assert_eq!(sandbox.wythe(&["cache", "ls", "--json"]).stdout, b"[]\n");
}
