//! The floors: what cannot be left out of a job, and nothing else. Each runs as a process of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use crate::Result;

/// A job and the file or directory it works on.
pub fn main(arguments: &[String]) -> Result<()> {
    let [job, at] = arguments else { return Err("floor JOB PATH".into()) };
    let at = Path::new(at);
    let done = match job.as_str() {
        "stat" => stat_with_two_threads(at),
        "hash" => hash_all(at),
        "gzip" => gzip(at),
        "gunzip" => gunzip(at),
        "sha256" => sha256(at),
        "pace" => pace(at),
        _ => return Err(format!("no floor does {job}")),
    };
    done.map_err(|error| format!("cannot {job} {}: {error}", at.display()))
}

/// Lists every directory and looks at every entry, on two threads.
fn stat_with_two_threads(at: &Path) -> std::io::Result<()> {
    use rustix::fs::{AtFlags, Dir, Mode, OFlags, StatxFlags};
    let open = Mutex::new((vec![at.to_owned()], 0_usize));
    let work = || -> std::io::Result<()> {
        loop {
            let next = {
                let mut open = open.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                match open.0.pop() {
                    Some(path) => {
                        open.1 += 1;
                        Some(path)
                    }
                    None if open.1 == 0 => return Ok(()),
                    None => None,
                }
            };
            let Some(path) = next else {
                std::thread::yield_now();
                continue;
            };
            let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let mut found = Vec::new();
            for entry in Dir::read_from(&fd)? {
                let entry = entry?;
                let name = entry.file_name();
                if name.to_bytes() == b"." || name.to_bytes() == b".." {
                    continue;
                }
                let stat = rustix::fs::statx(&fd, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
                if u32::from(stat.stx_mode) & 0o170_000 == 0o040_000 {
                    found.push(path.join(name.to_string_lossy().as_ref()));
                }
            }
            let mut open = open.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            open.0.extend(found);
            open.1 -= 1;
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work()?;
        other.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread panicked")))
    })
}

/// Walks, reads every file and hashes it, on one thread.
fn hash_all(at: &Path) -> std::io::Result<()> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    for entry in walkdir::WalkDir::new(at).sort_by_file_name() {
        let entry = entry?;
        let _ = entry.metadata()?;
        if entry.file_type().is_file() {
            let mut file = File::open(entry.path())?;
            read_into(&mut file, &mut buffer, |piece| {
                hasher.update(piece);
                Ok(())
            })?;
        }
    }
    println!("{:x?}", hasher.finalize());
    Ok(())
}

fn sha256(at: &Path) -> std::io::Result<()> {
    let mut hasher = Sha256::new();
    read_into(&mut File::open(at)?, &mut vec![0; 1 << 18], |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    println!("{:x?}", hasher.finalize());
    Ok(())
}

/// What an image of sixteen times the file takes, on one thread: to write it, to hash it, to compress it with the
/// compressor and at the level that wythe takes, to hash that and to write it.
fn gzip(at: &Path) -> std::io::Result<()> {
    struct Hashed(File, Sha256);
    impl Write for Hashed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let count = self.0.write(bytes)?;
            self.1.update(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            self.0.flush()
        }
    }
    let directory = at.parent().unwrap_or(Path::new("."));
    let (mut layer, blob) = (tempfile::tempfile_in(directory)?, tempfile::tempfile_in(directory)?);
    for _ in 0..16 {
        read_into(&mut File::open(at)?, &mut vec![0; 1 << 18], |piece| layer.write_all(piece))?;
    }
    std::io::Seek::rewind(&mut layer)?;
    let mut hasher = Sha256::new();
    let out = std::io::BufWriter::with_capacity(1 << 18, Hashed(blob, Sha256::new()));
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(6));
    read_into(&mut layer, &mut vec![0; 1 << 18], |piece| {
        hasher.update(piece);
        encoder.write_all(piece)
    })?;
    let Hashed(_, blob) = encoder.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    println!("{:x?} {:x?}", hasher.finalize(), blob.finalize());
    Ok(())
}

fn gunzip(at: &Path) -> std::io::Result<()> {
    let mut decoder = flate2::bufread::GzDecoder::new(std::io::BufReader::with_capacity(1 << 18, File::open(at)?));
    read_into(&mut decoder, &mut vec![0; 1 << 18], |_| Ok(()))
}

fn read_into(
    from: &mut dyn Read,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    loop {
        match from.read(buffer)? {
            0 => return Ok(()),
            count => take(&buffer[..count])?,
        }
    }
}

/// System calls and hashing in about the parts of a cached build: the same work on any machine, which tells how
/// fast this one is now.
fn pace(at: &Path) -> std::io::Result<()> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    for _ in 0..2_000 {
        let count = File::open(at)?.read(&mut buffer)?;
        hasher.update(&buffer[..count]);
    }
    for _ in 0..32 {
        hasher.update(&buffer);
    }
    println!("{:x?}", hasher.finalize());
    Ok(())
}
