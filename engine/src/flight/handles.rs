//! Names that nobody can guess, and what they stand for on the server.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;

/// Bytes of a handle.
const HANDLE_BYTES: usize = 16;

/// Values under random names, at most so many.
pub(super) struct Handles<T> {
    limit: usize,
    /// What they are, for messages.
    noun: &'static str,
    kept: Mutex<HashMap<[u8; HANDLE_BYTES], Kept<T>>>,
}

struct Kept<T> {
    value: Arc<T>,
    since: Instant,
}

impl<T> Handles<T> {
    /// Makes room for `limit` values; `noun` is what one is, such as `ticket`.
    pub(super) fn new(noun: &'static str, limit: usize) -> Self {
        Handles { limit, noun, kept: Mutex::default() }
    }

    /// Keeps a value and returns its handle. Fails if there are too many.
    pub(super) fn insert(&self, value: Arc<T>) -> Result<Vec<u8>, Status> {
        let handle = random::<HANDLE_BYTES>()?;
        let mut kept = self.lock();
        if kept.len() >= self.limit {
            let (limit, noun) = (self.limit, self.noun);
            return Err(Status::resource_exhausted(format!("the session has {limit} open {noun}s; fetch or close some")));
        }
        kept.insert(handle, Kept { value, since: Instant::now() });
        Ok(handle.to_vec())
    }

    /// Returns the value of a handle. Fails if there is none, or none any more.
    pub(super) fn get(&self, handle: &[u8]) -> Result<Arc<T>, Status> {
        let found = key(handle).and_then(|key| self.lock().get(&key).map(|kept| Arc::clone(&kept.value)));
        let noun = self.noun;
        found.ok_or_else(|| Status::not_found(format!("there is no such {noun} in this session, or no longer")))
    }

    /// Forgets a value.
    pub(super) fn remove(&self, handle: &[u8]) -> Option<Arc<T>> {
        key(handle).and_then(|key| self.lock().remove(&key)).map(|kept| kept.value)
    }

    /// Forgets and returns the values that were kept before `deadline`, or after which nobody can ask any more, but for those that
    /// `stays` holds back.
    pub(super) fn remove_old(&self, now: Instant, lifetime: Duration, stays: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let is_old = |kept: &mut Kept<T>| now.saturating_duration_since(kept.since) >= lifetime && !stays(&kept.value);
        self.lock().extract_if(|_, kept| is_old(kept)).map(|(_, kept)| kept.value).collect()
    }

    /// Forgets and returns all values.
    pub(super) fn clear(&self) -> Vec<Arc<T>> {
        self.lock().drain().map(|(_, kept)| kept.value).collect()
    }

    /// Returns how many there are of which `test` holds.
    pub(super) fn count(&self, test: impl Fn(&T) -> bool) -> usize {
        self.lock().values().filter(|kept| test(&kept.value)).count()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; HANDLE_BYTES], Kept<T>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(handle: &[u8]) -> Option<[u8; HANDLE_BYTES]> {
    handle.try_into().ok()
}

/// Returns bytes from the system's source of randomness.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Status> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Status::internal(format!("cannot draw a random name: {error}")))?;
    Ok(bytes)
}

/// Writes bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_until_they_are_old() {
        let handles = Handles::new("ticket", 2);
        let (a, b) = (handles.insert(Arc::new(1)).unwrap(), handles.insert(Arc::new(2)).unwrap());
        assert_ne!(a, b);
        assert_eq!(handles.insert(Arc::new(3)).unwrap_err().code(), tonic::Code::ResourceExhausted);
        assert_eq!(*handles.get(&a).unwrap(), 1);
        assert_eq!(handles.get(b"short").unwrap_err().code(), tonic::Code::NotFound);
        let later = Instant::now() + Duration::from_secs(60);
        assert!(handles.remove_old(later, Duration::from_secs(90), |_| false).is_empty());
        let removed = handles.remove_old(later, Duration::from_secs(30), |value| *value == 2);
        assert_eq!(removed, [Arc::new(1)]);
        assert_eq!(handles.get(&a).unwrap_err().code(), tonic::Code::NotFound);
        assert_eq!(handles.remove(&b), Some(Arc::new(2)));
    }
}
