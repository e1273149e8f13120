//! Bytes of a weight file, on disk or compiled in, read piece by piece.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::model::ReadAt;

/// Weight files up to this size are digested whole.
const DIGEST_WHOLE: u64 = 64 << 20;
/// The size of one sample of a larger file.
const DIGEST_SAMPLE: u64 = 1 << 20;
/// Bytes that one thread reads at a time: one thread alone copies far less than memory can give, and fresh memory is made by whoever
/// touches it first.
const READ_AT_ONCE: usize = 4 << 20;
/// Samples of a larger file, spread evenly from its first byte to its last.
const DIGEST_SAMPLES: u64 = 64;

/// A file whose length is known, so that no length found inside it is believed unchecked.
#[derive(Debug)]
pub(crate) struct Storage {
    path: PathBuf,
    len: u64,
    data: Data,
}

#[derive(Debug)]
enum Data {
    File(File),
    Static(&'static [u8]),
}

impl Storage {
    /// Opens a file for reading.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // Asked first, since opening a pipe would wait for a writer.
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(weights_error(path, "it is not a file but a folder, a pipe or a device"));
        }
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        let len = file.metadata().map_err(|error| unreadable(path, &error))?.len();
        Ok(Storage { path: path.to_owned(), len, data: Data::File(file) })
    }

    /// Wraps bytes in memory; `name` stands for them in messages.
    pub(crate) fn from_static(name: &str, bytes: &'static [u8]) -> Self {
        Storage { path: PathBuf::from(name), len: bytes.len() as u64, data: Data::Static(bytes) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Returns an error that names the file.
    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        weights_error(&self.path, reason)
    }

    /// Reads `len` bytes from `offset`. The range is checked against the file's length before memory is taken.
    pub(crate) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.check_range(offset, len)?;
        let mut bytes = vec![0; len as usize];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len).filter(|end| *end <= self.len) {
            Some(_) => Ok(()),
            None => Err(self.error(format!(
                "the file ends at byte {}, but bytes {offset} to {} are needed: it is truncated or damaged, fetch it again",
                self.len,
                offset.saturating_add(len),
            ))),
        }
    }

    /// Adds the file to a digest: all of it up to 64 MiB; of a larger file its length, its first `header` bytes, and 64 samples
    /// of 1 MiB spread through it, so that opening a model does not read all of its weights.
    pub(crate) fn digest(&self, hasher: &mut blake3::Hasher, header: u64) -> Result<()> {
        hasher.update(&self.len.to_le_bytes());
        if self.len <= DIGEST_WHOLE {
            return self.digest_range(hasher, 0, self.len);
        }
        self.digest_range(hasher, 0, header.min(self.len))?;
        let last = self.len - DIGEST_SAMPLE;
        for sample in 0..DIGEST_SAMPLES {
            let offset = (u128::from(last) * u128::from(sample) / u128::from(DIGEST_SAMPLES - 1)) as u64;
            self.digest_range(hasher, offset, DIGEST_SAMPLE)?;
        }
        Ok(())
    }

    fn digest_range(&self, hasher: &mut blake3::Hasher, start: u64, len: u64) -> Result<()> {
        if let Data::Static(bytes) = &self.data {
            hasher.update(&bytes[start as usize..(start + len) as usize]);
            return Ok(());
        }
        let end = start + len;
        let mut offset = start;
        while offset < end {
            let piece = (end - offset).min(DIGEST_SAMPLE);
            hasher.update(&self.read(offset, piece)?);
            offset += piece;
        }
        Ok(())
    }
}

impl ReadAt for Storage {
    /// Fills `out` with the bytes from `offset` on, large ranges on all cores.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check_range(offset, out.len() as u64)?;
        match &self.data {
            Data::Static(bytes) => {
                out.copy_from_slice(&bytes[offset as usize..][..out.len()]);
                Ok(())
            }
            Data::File(file) if out.len() <= READ_AT_ONCE => read_exact_at(file, &self.path, offset, out),
            Data::File(file) => out.par_chunks_mut(READ_AT_ONCE).enumerate().try_for_each(|(index, piece)| {
                read_exact_at(file, &self.path, offset + (index * READ_AT_ONCE) as u64, piece)
            }),
        }
        .map_err(|error| unreadable(&self.path, &error))
    }
}

/// Reads from a place of a file without moving where others read.
#[cfg(unix)]
fn read_exact_at(file: &File, _path: &Path, offset: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

/// Reads from a place of a file that is opened anew, since seek and read are two steps.
#[cfg(not(unix))]
fn read_exact_at(_file: &File, path: &Path, offset: u64, out: &mut [u8]) -> io::Result<()> {
    let mut file = File::open(path)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
    io::Read::read_exact(&mut file, out)
}

/// Reads a text file of at most `limit` bytes, such as a configuration.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let storage = Storage::open(path)?;
    if storage.len() > limit {
        return Err(storage.error(format!("{} bytes are too many for such a file; is it the right one?", storage.len())));
    }
    let bytes = storage.read(0, storage.len())?;
    String::from_utf8(bytes).map_err(|_| storage.error("the file is not UTF-8 text; fetch it again"))
}

/// Returns the error of an unusable file.
pub(crate) fn weights_error(path: &Path, reason: impl Into<String>) -> Error {
    Error::Weights { path: path.to_owned(), reason: reason.into() }
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    weights_error(path, format!("the file cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: usize) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, (0..len).map(|i| i as u8).collect::<Vec<_>>()).unwrap();
        (folder, path)
    }

    #[test]
    fn reads_ranges_and_refuses_what_lies_outside() {
        let (_folder, path) = file(10);
        let storage = Storage::open(&path).unwrap();
        assert_eq!(storage.read(3, 4).unwrap(), [3, 4, 5, 6]);
        assert!(storage.read(10, 0).unwrap().is_empty());
        for (offset, len) in [(0, 11), (10, 1), (u64::MAX, 2), (2, u64::MAX)] {
            assert!(matches!(storage.read(offset, len), Err(Error::Weights { .. })), "{offset} {len}");
        }
    }

    #[test]
    fn a_range_that_several_threads_read_is_whole() {
        let len = 3 * READ_AT_ONCE + 5;
        let (_folder, path) = file(len);
        let read = Storage::open(&path).unwrap().read(3, len as u64 - 3).unwrap();
        assert!(read.iter().enumerate().all(|(at, byte)| *byte == (at + 3) as u8));
    }

    #[test]
    fn a_digest_is_the_same_on_disk_and_in_memory() {
        let (_folder, path) = file(100);
        let bytes: &'static [u8] = Vec::leak((0..100).collect::<Vec<u8>>());
        let digest = |storage: Storage| {
            let mut hasher = blake3::Hasher::new();
            storage.digest(&mut hasher, 8).unwrap();
            hasher.finalize()
        };
        assert_eq!(digest(Storage::open(&path).unwrap()), digest(Storage::from_static("weights", bytes)));
    }

    #[test]
    fn a_large_file_is_digested_by_samples_of_both_ends() {
        let folder = tempfile::tempdir().unwrap();
        let digest = |last: u8| {
            let path = folder.path().join("large");
            let mut file = File::create(&path).unwrap();
            file.set_len(DIGEST_WHOLE + 10).unwrap();
            io::Seek::seek(&mut file, io::SeekFrom::End(-1)).unwrap();
            io::Write::write_all(&mut file, &[last]).unwrap();
            let mut hasher = blake3::Hasher::new();
            Storage::open(&path).unwrap().digest(&mut hasher, 8).unwrap();
            hasher.finalize()
        };
        assert_eq!(digest(1), digest(1));
        assert_ne!(digest(1), digest(2));
    }

    #[test]
    fn a_folder_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = Storage::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("not a file"), "{error}");
    }

    #[test]
    fn names_the_missing_file() {
        let error = Storage::open(Path::new("/nonexistent/model.gguf")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/model.gguf"), "{error}");
    }
}
