//! The session of a request: the one that its token names, else its cookie, else the one of its connection.
//!
//! A client that logs in gets a token of a session of its own. One that does not has the session of its connection, which ends with
//! it; if it sends back the cookie that it was given, the session is open until it is closed or nobody has used it for a while.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;
use tonic::metadata::MetadataMap;

use super::config::{Limits, Times};
use super::connection::{ConnectionId, Listener};
use super::handles::{Handles, hex, random};
use super::order::Changes;
use super::statements::{Prepared, Statement};
use crate::Refrain;
use crate::queries::QueryLog;

/// The cookie that names a session.
pub(super) const COOKIE: &str = "refrain_session";

/// A session of a client.
pub(crate) struct Session {
    /// Public, in `ai_queries()`.
    pub(crate) id: Arc<str>,
    /// Known to the client alone, who shows it as a token or cookie.
    secret: String,
    pub(crate) user: Arc<str>,
    pub(crate) db: Refrain,
    /// Statements that may be fetched.
    pub(super) statements: Handles<Statement>,
    pub(super) prepared: Handles<Prepared>,
    /// Its statements that change something.
    pub(super) changes: Changes,
    /// Tokens of the prompts and answers of its queries.
    pub(super) tokens_spent: AtomicU64,
    /// Whether it stays open when its connection ends.
    stays: AtomicBool,
    used: Mutex<Instant>,
}

impl Session {
    /// Stops its queries, and forgets what it had open.
    fn end(&self) {
        for statement in self.statements.clear() {
            statement.cancel();
        }
        self.prepared.clear();
    }

    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Keeps a statement for a client that may fetch it, and returns its handle. Fails if too many are kept that have not ended.
    pub(super) fn keep(&self, statement: &Arc<Statement>) -> Result<Vec<u8>, Status> {
        self.statements.insert(Arc::clone(statement)).or_else(|_| {
            // Some clients never fetch what has only changed something.
            self.statements.remove_old(Instant::now(), Duration::ZERO, Statement::is_unfinished);
            self.statements.insert(Arc::clone(statement))
        })
    }

    fn is_busy(&self) -> bool {
        self.statements.count(Statement::is_running) > 0
    }

    /// Returns what the client shows to come back to this session.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }
}

/// The open sessions.
pub(crate) struct Sessions {
    base: Refrain,
    limits: Limits,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// By secret.
    sessions: HashMap<String, Arc<Session>>,
    /// Secrets of the sessions of connections that have not ended, one for each user.
    by_connection: HashMap<ConnectionId, Vec<String>>,
    /// One log for each user with open sessions, so that users see their own queries, from whichever session.
    logs: HashMap<Arc<str>, Arc<QueryLog>>,
    opened: u64,
}

impl Sessions {
    /// Sessions beside `base`.
    pub(super) fn new(base: Refrain, limits: Limits) -> Self {
        Sessions { base, limits, open: Mutex::default() }
    }

    /// Returns the session that all others are made beside.
    pub(crate) fn base(&self) -> &Refrain {
        &self.base
    }

    /// Opens a session that stays until it is closed, or unused for long.
    pub(super) fn log_in(&self, user: &Arc<str>) -> Result<Arc<Session>, Status> {
        self.open(&mut self.lock(), user, true)
    }

    /// Finds an open session by what its client shows.
    pub(crate) fn find(&self, secret: &str) -> Option<Arc<Session>> {
        self.lock().sessions.get(secret).inspect(|session| session.touch()).cloned()
    }

    /// Finds the session that a cookie names, if it is one of the user's.
    pub(super) fn by_cookie(&self, metadata: &MetadataMap, user: &str) -> Option<Arc<Session>> {
        let headers = metadata.get_all("cookie").into_iter().filter_map(|header| header.to_str().ok());
        let cookies = headers.flat_map(|header| header.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
        let named = cookies.filter(|(name, _)| *name == COOKIE);
        let found =
            named.filter_map(|(_, secret)| self.find(secret.trim_matches('"'))).find(|session| *session.user == *user);
        found.inspect(|session| session.stays.store(true, Ordering::Relaxed))
    }

    /// Returns the session of a user on a connection, and opens it if there is none. Fails if the connection has ended: a request may
    /// outlive it, and a session of its own would then outlive both.
    pub(super) fn of_connection(&self, connection: ConnectionId, user: &Arc<str>) -> Result<Arc<Session>, Status> {
        let mut open = self.lock();
        let Some(secrets) = open.by_connection.get(&connection) else {
            return Err(Status::cancelled("the connection has ended"));
        };
        let found =
            secrets.iter().filter_map(|secret| open.sessions.get(secret)).find(|session| session.user == *user).cloned();
        if let Some(session) = found {
            session.touch();
            return Ok(session);
        }
        let session = self.open(&mut open, user, false)?;
        open.by_connection.entry(connection).or_default().push(session.secret.clone());
        Ok(session)
    }

    /// Ends a session. Returns whether it was open.
    pub(super) fn close(&self, session: &Session) -> bool {
        let closed = self.lock().remove(&session.secret);
        closed.as_deref().inspect(|session| session.end()).is_some()
    }

    /// Ends what nobody has used for long: sessions, and tickets of the others.
    pub(super) fn end_unused(&self, now: Instant, times: &Times) {
        let (old, others): (Vec<_>, Vec<_>) = {
            let mut open = self.lock();
            let is_old = |session: &Session| {
                let used = *session.used.lock().unwrap_or_else(PoisonError::into_inner);
                now.saturating_duration_since(used) >= times.session && !session.is_busy()
            };
            let old: Vec<String> =
                open.sessions.values().filter(|session| is_old(session)).map(|s| s.secret.clone()).collect();
            let old: Vec<_> = old.iter().filter_map(|secret| open.remove(secret)).collect();
            (old, open.sessions.values().cloned().collect())
        };
        old.iter().for_each(|session| session.end());
        for session in others {
            // An update goes on whether or not its ticket is ever fetched.
            for statement in session.statements.remove_old(now, times.ticket, Statement::is_running) {
                statement.cancel();
            }
        }
    }

    /// Ends all sessions.
    pub(super) fn end_all(&self) {
        let all: Vec<_> = {
            let mut open = self.lock();
            open.by_connection.values_mut().for_each(Vec::clear);
            open.logs.clear();
            open.sessions.drain().map(|(_, session)| session).collect()
        };
        all.iter().for_each(|session| session.end());
    }

    /// Returns how many sessions are open.
    pub(crate) fn count(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Returns how many statements run, or may still be fetched.
    pub(super) fn unfinished(&self) -> usize {
        self.lock().sessions.values().map(|session| session.statements.count(Statement::is_unfinished)).sum()
    }

    fn open(&self, open: &mut Open, user: &Arc<str>, stays: bool) -> Result<Arc<Session>, Status> {
        let limit = self.limits.sessions;
        if open.sessions.len() >= limit {
            return Err(Status::resource_exhausted(format!("{limit} sessions are open, as many as the server allows")));
        }
        let log = open.logs.entry(Arc::clone(user)).or_insert_with(|| Arc::new(QueryLog::of_user(Arc::clone(user))));
        let (secret, log) = (hex(&random::<32>()?), Arc::clone(log));
        open.opened += 1;
        let id: Arc<str> = open.opened.to_string().into();
        let session = Arc::new(Session {
            db: self.base.session_beside(&id, log)?,
            id,
            secret: secret.clone(),
            user: Arc::clone(user),
            statements: Handles::new("ticket", self.limits.handles),
            prepared: Handles::new("prepared statement", self.limits.handles),
            changes: Changes::default(),
            tokens_spent: AtomicU64::new(0),
            stays: AtomicBool::new(stays),
            used: Mutex::new(Instant::now()),
        });
        open.sessions.insert(secret, Arc::clone(&session));
        Ok(session)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn remove(&mut self, secret: &str) -> Option<Arc<Session>> {
        let session = self.sessions.remove(secret)?;
        if !self.sessions.values().any(|other| other.user == session.user) {
            self.logs.remove(&session.user);
        }
        Some(session)
    }
}

impl Listener for Sessions {
    fn connection_began(&self, id: ConnectionId) {
        self.lock().by_connection.insert(id, vec![]);
    }

    fn connection_ended(&self, id: ConnectionId) {
        let ended: Vec<_> = {
            let mut open = self.lock();
            let secrets = open.by_connection.remove(&id).unwrap_or_default();
            let stays = |open: &Open, secret: &str| {
                open.sessions.get(secret).is_some_and(|session| session.stays.load(Ordering::Relaxed))
            };
            let ended: Vec<_> = secrets.into_iter().filter(|secret| !stays(&open, secret)).collect();
            ended.iter().filter_map(|secret| open.remove(secret)).collect()
        };
        ended.iter().for_each(|session| session.end());
    }
}
