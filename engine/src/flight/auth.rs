//! Who a client is: static tokens, and passwords whose hashes lie in a file.
//!
//! Both files have one user a line, `#` begins a comment. A line of passwords is `user:$argon2id$…`, as [`hash_password`] makes it;
//! a line of tokens is `user:token`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result as PlanResult, plan_datafusion_err, plan_err};
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::handles::random;
use super::status::malformed;

/// The user of clients that need not say who they are.
pub(super) const ANONYMOUS: &str = "anonymous";

/// Passwords that are checked at once: each takes 19 MiB and some 20 ms of a core.
const CHECKS_AT_ONCE: usize = 2;

/// Passwords that are known to be right, so that a client that sends its own with each request does not pay for each.
const CHECKED_MAX: usize = 1000;

/// Who may come.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Everybody; for servers that only their own machine reaches.
    #[default]
    Nobody,
    /// Users with a token or a password.
    Users(Users),
}

/// Users with their tokens and hashes of passwords. Never shown.
#[derive(Clone, Default)]
pub struct Users {
    /// User by digest of token.
    tokens: HashMap<[u8; 32], Arc<str>>,
    /// Hash by user.
    passwords: HashMap<Arc<str>, String>,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("tokens", &self.tokens.len()).field("passwords", &self.passwords.len()).finish()
    }
}

impl Users {
    /// Adds the users of a file of tokens. Fails on a line that is not `user:token`, without repeating it.
    pub fn add_tokens(&mut self, text: &str) -> PlanResult<()> {
        for (number, line) in lines(text) {
            match line.split_once(':') {
                Some((user, token)) if !user.is_empty() && token.len() >= 16 => {
                    self.tokens.insert(digest(token), user.into());
                }
                _ => {
                    return plan_err!(
                        "line {number} of the tokens is not user:token with a token of at least 16 characters"
                    );
                }
            }
        }
        Ok(())
    }

    /// Adds the users of a file of passwords. Fails on a line that is not `user:hash`, without repeating it.
    pub fn add_passwords(&mut self, text: &str) -> PlanResult<()> {
        for (number, line) in lines(text) {
            match line.split_once(':') {
                Some((user, hash)) if !user.is_empty() && PasswordHash::new(hash).is_ok() => {
                    self.passwords.insert(user.into(), hash.to_owned());
                }
                _ => {
                    return plan_err!(
                        "line {number} of the passwords is not user:hash; make one with: refrain password USER"
                    );
                }
            }
        }
        Ok(())
    }
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(idx, line)| (idx + 1, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn digest(secret: &str) -> [u8; 32] {
    *blake3::hash(secret.as_bytes()).as_bytes()
}

/// Returns the hash of a password as a file of passwords holds it.
pub fn hash_password(password: &str) -> PlanResult<String> {
    let failed = |error: &dyn fmt::Display| plan_datafusion_err!("cannot hash the password: {error}");
    let salt = random::<16>().map_err(|error| failed(&error.message()))?;
    let salt = SaltString::encode_b64(&salt).map_err(|error| failed(&error))?;
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt).map_err(|error| failed(&error))?;
    Ok(hash.to_string())
}

/// What a request says of its sender.
#[derive(PartialEq, Eq)]
pub(crate) enum Credentials {
    /// Nothing.
    None,
    /// A user and its password.
    Basic { user: String, password: String },
    /// A token: one of a session, or a static one.
    Bearer(String),
}

impl Credentials {
    /// Reads the header `authorization`.
    pub(crate) fn of(metadata: &MetadataMap) -> Result<Self, Status> {
        let Some(header) = metadata.get("authorization") else { return Ok(Credentials::None) };
        let header = header.to_str().map_err(|error| malformed("header authorization", error))?;
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        match scheme.to_ascii_lowercase().as_str() {
            "bearer" => Ok(Credentials::Bearer(rest.trim().to_owned())),
            "basic" => {
                let bytes = BASE64_STANDARD.decode(rest.trim()).map_err(|error| malformed("header authorization", error))?;
                let text = String::from_utf8(bytes).map_err(|_| malformed("header authorization", "it is no UTF-8"))?;
                let (user, password) = text.split_once(':').unwrap_or((&text, ""));
                Ok(Credentials::Basic { user: user.to_owned(), password: password.to_owned() })
            }
            _ => Err(malformed("header authorization", "its scheme is neither Basic nor Bearer")),
        }
    }
}

/// Checks credentials.
pub(super) struct Authenticator {
    auth: Auth,
    /// A hash that no password has, so that an unknown user takes as long as a known one.
    decoy: String,
    checks: Arc<Semaphore>,
    checked: Mutex<HashMap<[u8; 32], Arc<str>>>,
}

impl Authenticator {
    pub(super) fn new(auth: Auth) -> Result<Self, DataFusionError> {
        let secret = random::<32>().map_err(|error| plan_datafusion_err!("{}", error.message()))?;
        let decoy = match &auth {
            Auth::Users(users) if !users.passwords.is_empty() => hash_password(&super::handles::hex(&secret))?,
            _ => String::new(),
        };
        Ok(Authenticator { auth, decoy, checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)), checked: Mutex::default() })
    }

    /// Returns the user that the credentials name. Fails if they are not those of a user.
    pub(super) async fn user(&self, credentials: &Credentials) -> Result<Arc<str>, Status> {
        let Auth::Users(users) = &self.auth else { return Ok(ANONYMOUS.into()) };
        match credentials {
            Credentials::None => Err(Status::unauthenticated("the server wants a user and password, or a token")),
            Credentials::Bearer(token) => {
                users.tokens.get(&digest(token)).cloned().ok_or_else(|| {
                    Status::unauthenticated("the token is not known, or its session has ended; connect again")
                })
            }
            Credentials::Basic { user, password } => self.check(users, user, password).await,
        }
    }

    async fn check(&self, users: &Users, user: &str, password: &str) -> Result<Arc<str>, Status> {
        let refused = || Status::unauthenticated("user or password is wrong");
        if users.passwords.is_empty() {
            return Err(refused());
        }
        let key = digest(&format!("{}:{user}:{password}", user.len()));
        if let Some(user) = self.lock_checked().get(&key) {
            return Ok(Arc::clone(user));
        }
        let known = users.passwords.get_key_value(user);
        let hash = known.map_or_else(|| self.decoy.clone(), |(_, hash)| hash.clone());
        let password = password.to_owned();
        let _turn = self.checks.acquire().await.map_err(|_| Status::unavailable("the server stops"))?;
        let checking = SpawnedTask::spawn_blocking(move || {
            PasswordHash::new(&hash).is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        });
        let is_right = checking.join().await.unwrap_or(false);
        let (user, _) = known.filter(|_| is_right).ok_or_else(refused)?;
        let mut checked = self.lock_checked();
        if checked.len() >= CHECKED_MAX {
            checked.clear();
        }
        checked.insert(key, Arc::clone(user));
        Ok(Arc::clone(user))
    }

    fn lock_checked(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Arc<str>>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Credentials {
        Credentials::Basic { user: user.to_owned(), password: password.to_owned() }
    }

    #[tokio::test]
    async fn users_are_known_by_password_or_token() {
        let mut users = Users::default();
        users.add_passwords(&format!("# staff\nada:{}\n\n", hash_password("lovelace").unwrap())).unwrap();
        users.add_tokens("grace:0123456789abcdef").unwrap();
        assert!(!format!("{users:?}").contains("argon2"));
        let authenticator = Authenticator::new(Auth::Users(users)).unwrap();
        for _ in 0..2 {
            assert_eq!(&*authenticator.user(&basic("ada", "lovelace")).await.unwrap(), "ada");
        }
        assert_eq!(&*authenticator.user(&Credentials::Bearer("0123456789abcdef".into())).await.unwrap(), "grace");
        for wrong in [basic("ada", "byron"), basic("bob", "lovelace"), Credentials::None, Credentials::Bearer("x".into())] {
            assert_eq!(authenticator.user(&wrong).await.unwrap_err().code(), tonic::Code::Unauthenticated);
        }
    }

    #[test]
    fn lines_that_are_wrong_are_named_and_not_repeated() {
        let mut users = Users::default();
        let error = users.add_tokens("ok:0123456789abcdef\nsecret").unwrap_err().strip_backtrace();
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
        let error = users.add_passwords("ada:plain").unwrap_err().strip_backtrace();
        assert!(error.contains("line 1") && error.contains("refrain password") && !error.contains("plain"), "{error}");
    }

    #[test]
    fn headers_are_read() {
        let of = |header: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", tonic::metadata::MetadataValue::from_static(header));
            Credentials::of(&metadata)
        };
        assert!(of("Bearer t").is_ok_and(|c| c == Credentials::Bearer("t".into())));
        assert!(of("basic YTpiOmM=").is_ok_and(|c| c == basic("a", "b:c")));
        assert_eq!(of("Digest x").err().unwrap().code(), tonic::Code::InvalidArgument);
        assert_eq!(of("Basic ***").err().unwrap().code(), tonic::Code::InvalidArgument);
    }
}
