//! Compressing and decompressing layers.

use std::fs;
use std::io::{self, Read, Write};

use wythe::digest::Digest;
use wythe::layer::{Compression, Workers, compress, decompress};

/// Text that compresses like text, the same everywhere.
fn text(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut out = Vec::with_capacity(length + 16);
    while out.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = format!("{:x} ", (state >> 40) % 5000 * 7919);
        out.extend_from_slice(word.as_bytes());
    }
    out.truncate(length);
    out
}

fn compressed(input: &mut dyn Read, compression: Compression, threads: usize) -> Vec<u8> {
    let mut out = Vec::new();
    compress(input, &mut out, compression, Workers::new(threads)).unwrap();
    out
}

/// Returns little at a time, and never the same amount.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1 * 31 % 9973 + 1;
        let count = self.1.min(buffer.len()).min(self.0.len());
        buffer[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

#[test]
fn bytes_depend_on_content_and_level_alone() {
    const MIB: usize = 1 << 20;
    let gzip = (Compression::Gzip { level: 1 }, [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB, 5 * MIB + 4711]);
    let zstd = (Compression::Zstd { level: 1 }, [0, 1, MIB, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 13 * MIB + 4711]);
    for (compression, lengths) in [gzip, zstd] {
        for length in lengths {
            let text = text(length);
            let one = compressed(&mut &text[..], compression, 1);
            for threads in [0, 2, 3] {
                assert!(
                    compressed(&mut &text[..], compression, threads) == one,
                    "{compression:?} {length}, {threads} threads"
                );
            }
            assert!(
                compressed(&mut Trickle(&text, 1), compression, 2) == one,
                "{compression:?} of {length} bytes, trickling"
            );
            assert!(plain(&one).unwrap() == text, "{compression:?} of {length} bytes");
            if matches!(compression, Compression::Gzip { .. }) {
                // Reads a single member.
                let mut decoder = flate2::bufread::GzDecoder::new(&one[..]);
                let mut plain = Vec::new();
                decoder.read_to_end(&mut plain).unwrap();
                assert!(plain == text && decoder.into_inner().is_empty(), "{length} bytes");
            }
        }
    }
}

/// Those who leave the processors to others are relieved when somebody waits, wherever they are by then.
#[test]
fn patient_workers_write_the_same_bytes() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// Somebody waits when so much was read.
    struct Until<'a>(&'a [u8], usize, &'a AtomicBool, &'a AtomicUsize);

    impl Read for Until<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(buffer)?;
            if self.3.fetch_add(count, Ordering::Relaxed) + count >= self.1 {
                self.2.store(true, Ordering::Relaxed);
            }
            Ok(count)
        }
    }

    let text = text(7 << 20);
    for compression in [Compression::Gzip { level: 1 }, Compression::Zstd { level: 1 }] {
        let one = compressed(&mut &text[..], compression, 1);
        for threads in [0, 1, 2, 3] {
            for after in [0, 1, 1 << 20, 5 << 20, usize::MAX] {
                let (wanted, read) = (AtomicBool::new(after == 0), AtomicUsize::new(0));
                let mut out = Vec::new();
                let mut input = Until(&text, after, &wanted, &read);
                compress(&mut input, &mut out, compression, Workers::patient(threads, &wanted)).unwrap();
                assert!(out == one, "{compression:?}, {threads} threads, {after}");
            }
        }
    }
    let priority = rustix::process::getpriority_process(None).unwrap();
    assert_eq!(priority, 0, "of this thread, which only reads and writes");
}

/// A new version of a compressor may write other bytes; then every compressed layer has a new
/// digest, and a release must say so.
#[test]
fn bytes_are_pinned() {
    let gzip = [1, 6, 9].map(|level| Compression::Gzip { level });
    let zstd = [0, 1, 3, 9, 19].map(|level| Compression::Zstd { level });
    for (name, compressions, length) in [("gzip", &gzip[..], 2_500_000), ("zstd", &zstd[..], 5_000_000)] {
        let text = text(length);
        let digests: Vec<String> = compressions
            .iter()
            .map(|compression| Digest::of(&compressed(&mut &text[..], *compression, 2)).hex()[..16].to_owned())
            .collect();
        let golden = crate::testdata("layer").join(format!("{name}.digests"));
        crate::check_golden(&golden, (digests.join("\n") + "\n").as_bytes());
    }
}

/// What the program itself thinks of it.
#[test]
#[allow(clippy::print_stderr)] // It says what it cannot check.
fn zstd_is_what_zstd_reads() {
    use std::process::{Command, Stdio};
    let text = text(9_000_000);
    let zstd = compressed(&mut &text[..], Compression::Zstd { level: 3 }, 2);
    let Ok(mut child) = Command::new("zstd").args(["-d", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
    else {
        eprintln!("not checked by zstd, which is not installed");
        return;
    };
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&zstd));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success() && output.stdout == text);
}

#[test]
fn errors_end_a_parallel_compression() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            if buffer.len() < 100 { Ok(buffer.len()) } else { Err(io::Error::other("disk full")) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let text = text(9 << 20);
    let gzip = Compression::Gzip { level: 1 };
    let error = compress(&mut &text[..], &mut Broken, gzip, Workers::new(2)).unwrap_err();
    assert_eq!(error.cause.as_deref(), Some("disk full"));
    let mut torn = text.chain(FailingRead);
    let error = compress(&mut torn, &mut Vec::new(), gzip, Workers::new(2)).unwrap_err();
    assert_eq!(error.cause.as_deref(), Some("cable cut"));
    for (compression, message) in [
        (Compression::Gzip { level: 10 }, "there is no gzip level 10: the highest is 9"),
        (Compression::Zstd { level: 23 }, "there is no zstd level 23: the highest is 22"),
    ] {
        let error = compress(&mut io::empty(), &mut Vec::new(), compression, Workers::new(1)).unwrap_err();
        assert_eq!(error.message, message);
    }
}

struct FailingRead;

impl Read for FailingRead {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("cable cut"))
    }
}

fn plain(compressed: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    decompress(Trickle(compressed, 1)).unwrap().read_to_end(&mut plain).map(|_| plain)
}

/// Every file of `testdata/layer/compressed` is another way to say what `plain` says, and no part
/// of one is mistaken for the whole.
#[test]
fn every_format_is_read_to_its_end() {
    let dir = crate::testdata("layer").join("compressed");
    let expected = fs::read(dir.join("plain")).unwrap();
    let mut count = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let compressed = fs::read(&path).unwrap();
        assert!(plain(&compressed).unwrap_or_else(|error| panic!("{name}: {error}")) == expected, "{name}");
        if name == "plain" {
            continue;
        }
        count += 1;
        for length in 10..compressed.len() {
            if let Ok(text) = plain(&compressed[..length]) {
                // Between two members; or in what only pads.
                let is_whole = text == expected || text == expected[..expected.len() / 2] || text.is_empty();
                let is_boundary = !["one", "none", "crc32", "sha256", "x86", "delta", "blocks", "unchecked", "long"]
                    .contains(&name.split('.').next().unwrap());
                assert!(is_whole && is_boundary, "{name} cut at {length} of {}", compressed.len());
            }
        }
        for garbage in [&b"garbage after the end"[..], b"\x1f", b"x"] {
            let longer = [&compressed[..], garbage].concat();
            if let Ok(text) = plain(&longer) {
                panic!("{name} with garbage gave {} bytes", text.len());
            }
        }
    }
    assert!(count >= 15);
}

#[test]
fn a_wrong_checksum_is_found() {
    let dir = crate::testdata("layer").join("compressed");
    for (name, from_end) in [("one.gz", 8), ("one.zst", 1), ("one.xz", 40), ("one.bz2", 3)] {
        let mut compressed = fs::read(dir.join(name)).unwrap();
        let at = compressed.len() - from_end;
        compressed[at] ^= 4;
        assert!(plain(&compressed).is_err(), "{name}");
    }
}

#[test]
fn what_is_not_compressed_passes() {
    for content in [&b""[..], b"x", b"BZh9 is the name of a file in this tar", b"\x1f\x8b"] {
        assert_eq!(plain(content).unwrap(), content);
    }
}

#[test]
fn memory_for_xz_is_bounded() {
    // A block header that asks for a dictionary of 4 GiB - 1.
    let mut xz = fs::read(crate::testdata("layer").join("compressed/one.xz")).unwrap();
    let header = 12..12 + (usize::from(xz[12]) + 1) * 4;
    let at = xz[header.clone()].windows(2).position(|pair| pair == [0x21, 1]).unwrap() + header.start + 2;
    xz[at] = 40;
    let mut checksum = flate2::Crc::new();
    checksum.update(&xz[header.start..header.end - 4]);
    xz[header.end - 4..header.end].copy_from_slice(&checksum.sum().to_le_bytes());
    assert!(plain(&xz).unwrap_err().to_string().contains("memory"));
}
