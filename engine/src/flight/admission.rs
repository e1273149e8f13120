//! How many queries run at once, and which of those that wait is next.
//!
//! Each waiting query has a deadline: when it came, and the patience of its priority for every query of its session that runs or
//! will. The earliest deadline is next, so that interactive queries come before batch ones, a session with many queries waits
//! behind one with few, and nothing waits for ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use refrain_udf::Priority;
use tokio::sync::oneshot;
use tonic::Status;

use super::config::Limits;

/// Admits queries.
pub(crate) struct Admission {
    running_max: usize,
    waiting_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    /// Running queries of each session that has any.
    by_session: HashMap<Arc<str>, usize>,
    waiting: Vec<Waiting>,
}

struct Waiting {
    session: Arc<str>,
    came: Instant,
    patience: Duration,
    grant: oneshot::Sender<Permit>,
}

/// The right to run; dropping it lets the next query run.
pub(crate) struct Permit {
    admission: Arc<Admission>,
    session: Arc<str>,
}

/// How long a query is expected to wait gladly.
fn patience(priority: Priority) -> Duration {
    match priority {
        Priority::Interactive => Duration::from_secs(1),
        Priority::Batch => Duration::from_secs(60),
    }
}

impl Admission {
    pub(super) fn new(limits: &Limits) -> Self {
        Admission { running_max: limits.running_queries.get(), waiting_max: limits.waiting_queries, state: Mutex::default() }
    }

    /// Waits until a query of a session may run. Fails at once if too many wait.
    pub(crate) async fn admit(self: &Arc<Self>, session: &Arc<str>, priority: Priority) -> Result<Permit, Status> {
        let granted = {
            let mut state = self.lock();
            state.waiting.retain(|waiting| !waiting.grant.is_closed());
            if state.running < self.running_max && state.waiting.is_empty() {
                state.start(session);
                return Ok(self.permit(session));
            }
            if state.waiting.len() >= self.waiting_max {
                let (running, waiting) = (state.running, state.waiting.len());
                let message =
                    format!("{running} queries run and {waiting} wait, as many as the server allows; try again later");
                return Err(Status::resource_exhausted(message));
            }
            let (grant, granted) = oneshot::channel();
            state.waiting.push(Waiting {
                session: Arc::clone(session),
                came: Instant::now(),
                patience: patience(priority),
                grant,
            });
            granted
        };
        granted.await.map_err(|_| Status::unavailable("the server stops"))
    }

    /// Returns how many queries run, and how many wait.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.running, state.waiting.len())
    }

    /// Starts waiting queries while there is room.
    fn start_waiting(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.lock();
                // Those whose client has gone leave the queue first.
                state.waiting.retain(|waiting| !waiting.grant.is_closed());
                match state.running < self.running_max {
                    true => state.take_next(),
                    false => None,
                }
            };
            let Some(next) = next else { return };
            // Outside the lock: a permit that nobody takes any more is dropped here, which makes room again.
            let permit = self.permit(&next.session);
            drop(next.grant.send(permit));
        }
    }

    fn permit(self: &Arc<Self>, session: &Arc<str>) -> Permit {
        Permit { admission: Arc::clone(self), session: Arc::clone(session) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn start(&mut self, session: &Arc<str>) {
        self.running += 1;
        *self.by_session.entry(Arc::clone(session)).or_default() += 1;
    }

    fn end(&mut self, session: &Arc<str>) {
        self.running -= 1;
        if let Some(running) = self.by_session.get_mut(session) {
            *running -= 1;
            if *running == 0 {
                self.by_session.remove(session);
            }
        }
    }

    fn take_next(&mut self) -> Option<Waiting> {
        let deadline = |waiting: &Waiting| {
            let running = self.by_session.get(&waiting.session).copied().unwrap_or(0);
            waiting.came + waiting.patience * (u32::try_from(running).unwrap_or(u32::MAX - 1) + 1)
        };
        let next = (0..self.waiting.len()).min_by_key(|idx| deadline(&self.waiting[*idx]))?;
        let next = self.waiting.remove(next);
        self.start(&next.session);
        Some(next)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.lock().end(&self.session);
        self.admission.start_waiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::num::NonZeroUsize;

    fn admission(running: usize, waiting: usize) -> Arc<Admission> {
        let running_queries = NonZeroUsize::new(running).unwrap();
        Arc::new(Admission::new(&Limits { running_queries, waiting_queries: waiting, ..Limits::default() }))
    }

    #[tokio::test]
    async fn interactive_queries_pass_batch_ones_and_greedy_sessions_wait() {
        let admission = admission(2, 10);
        let (greedy, modest): (Arc<str>, Arc<str>) = ("greedy".into(), "modest".into());
        let first = admission.admit(&greedy, Priority::Interactive).await.unwrap();
        let second = admission.admit(&greedy, Priority::Interactive).await.unwrap();
        let mut batch = Box::pin(admission.admit(&modest, Priority::Batch));
        let mut third = Box::pin(admission.admit(&greedy, Priority::Interactive));
        let mut other = Box::pin(admission.admit(&modest, Priority::Interactive));
        assert!((&mut batch).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        assert!((&mut other).now_or_never().is_none());
        drop(first);
        let other = (&mut other).now_or_never().expect("the session without running queries is next").unwrap();
        drop(second);
        let third = (&mut third).now_or_never().expect("interactive comes before batch").unwrap();
        assert!((&mut batch).now_or_never().is_none());
        drop((other, third));
        drop((&mut batch).now_or_never().expect("there is room").unwrap());
        assert_eq!(admission.counts(), (0, 0));
    }

    #[tokio::test]
    async fn clients_that_go_leave_the_queue_and_a_full_queue_refuses() {
        let admission = admission(1, 1);
        let session: Arc<str> = "s".into();
        let running = admission.admit(&session, Priority::Interactive).await.unwrap();
        let mut waiting = Box::pin(admission.admit(&session, Priority::Interactive));
        assert!((&mut waiting).now_or_never().is_none());
        let refused = admission.admit(&session, Priority::Interactive).await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(waiting);
        drop(running);
        assert_eq!(admission.counts(), (0, 0));
        assert!(admission.admit(&session, Priority::Batch).await.is_ok());
    }
}
