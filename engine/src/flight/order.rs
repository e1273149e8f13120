//! The order in which the statements of one session take effect: one that changes something ends before the next is planned.
//!
//! Queries wait for changes and not for one another: a result that is being fetched holds nothing up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tonic::Status;

/// The changes of a session, one at a time, first come, first served.
#[derive(Default)]
pub(super) struct Changes(Arc<Mutex<()>>);

/// A change that runs. Dropping it lets the next statement begin.
pub(super) type Change = OwnedMutexGuard<()>;

impl Changes {
    /// Begins a change once those before it have ended. Fails if that takes longer than `patience`.
    pub(super) async fn begin(&self, patience: Duration) -> Result<Change, Status> {
        let change = Arc::clone(&self.0).lock_owned();
        tokio::time::timeout(patience, change).await.map_err(|_| {
            Status::deadline_exceeded(format!(
                "a statement of this session has been changing something for {} s, and this one waits for it; cancel it by \
                 KILL QUERY (SELECT * FROM ai_queries() in another session shows its number), or use another session",
                patience.as_secs_f64()
            ))
        })
    }

    /// Waits until the changes that have begun have ended. Fails if that takes longer than `patience`.
    pub(super) async fn settled(&self, patience: Duration) -> Result<(), Status> {
        self.begin(patience).await.map(drop)
    }

    /// Whether no change runs or waits.
    pub(super) fn are_settled(&self) -> bool {
        self.0.try_lock().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn statements_wait_for_the_change_before_them() {
        let changes = Changes::default();
        let minute = Duration::from_secs(60);
        let first = changes.begin(minute).await.unwrap();
        assert!(!changes.are_settled());
        let mut query = Box::pin(changes.settled(minute));
        let mut second = Box::pin(changes.begin(minute));
        assert!((&mut query).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        drop(first);
        assert!((&mut query).now_or_never().is_some());
        let second = (&mut second).now_or_never().unwrap().unwrap();
        let refused = changes.settled(Duration::ZERO).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::DeadlineExceeded);
        drop(second);
        assert!(changes.are_settled());
    }
}
