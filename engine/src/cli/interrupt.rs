//! Ctrl-C as something a query can wait for.

use std::future::Future;

use tokio::sync::watch;

use super::error::{Failure, Outcome};

/// Counts the interrupts of this process.
#[derive(Clone)]
pub(crate) struct Interrupts(watch::Receiver<u64>);

impl Interrupts {
    /// Starts to listen. From here on Ctrl-C no longer ends the process by itself.
    pub(crate) fn listen() -> Self {
        let (sender, receiver) = watch::channel(0);
        tokio::spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() && !sender.is_closed() {
                sender.send_modify(|count| *count += 1);
            }
        });
        Self(receiver)
    }

    /// Forgets interrupts that came before now.
    pub(crate) fn reset(&mut self) {
        self.0.mark_unchanged();
    }

    /// Waits for the next interrupt.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // Nothing can be heard any more, so nothing ever interrupts.
            std::future::pending::<()>().await;
        }
    }

    /// Runs `work` to its end or to the next interrupt.
    pub(crate) async fn race<T>(&mut self, work: impl Future<Output = T>) -> Outcome<T> {
        tokio::select! {
            biased;
            () = self.next() => Err(Failure::Interrupted),
            result = work => Ok(result),
        }
    }
}

#[cfg(test)]
impl Interrupts {
    /// Interrupts that a test causes by changing the sender.
    pub(crate) fn manual() -> (watch::Sender<u64>, Self) {
        let (sender, receiver) = watch::channel(0);
        (sender, Self(receiver))
    }
}
