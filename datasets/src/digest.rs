//! Digests of files, in hexadecimal: SHA-256, and git's id of a file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 1 << 16;

/// Returns the SHA-256 of a file.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256(path: &Path) -> io::Result<String> {
    digest(Context::new(&SHA256), File::open(path)?)
}

/// Returns git's id of the content of a file: SHA-1 over `blob`, its length, a zero byte and its bytes.
///
/// # Errors
/// If the file cannot be read.
pub fn git_blob(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {}\0", file.metadata()?.len()).as_bytes());
    digest(context, file)
}

fn digest(mut context: Context, mut file: File) -> io::Result<String> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()),
            length => context.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(sha256(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        std::fs::write(&path, "").unwrap();
        assert_eq!(git_blob(&path).unwrap(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    }
}
