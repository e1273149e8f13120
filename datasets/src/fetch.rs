//! Tables from public addresses: taken up where they broke off, checked against their digest, and put in place whole.
//!
//! What has arrived lies in `NAME.part` beside the file that is to be. A later call asks for the rest with a range; a server that knows
//! no ranges sends everything again. Only a file with the right digest gets its name, by a rename, so a reader never sees a part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode};
use rustls_platform_verifier::BuilderVerifierExt;

use crate::catalogue::Download;
use crate::digest::git_blob;

/// How patient a fetch is, and how large a file may be.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// How often a connection is made, the first time included.
    pub attempts: NonZeroU32,
    /// What is waited between two attempts.
    pub pause: Duration,
    /// How long a server may send nothing.
    pub idle: Duration,
    /// The largest file that is taken.
    pub bytes_max: u64,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::new(5).unwrap_or(NonZeroU32::MIN),
            pause: Duration::from_secs(1),
            idle: Duration::from_secs(30),
            bytes_max: 1 << 30,
        }
    }
}

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are on disk, those of earlier calls included.
    pub received: u64,
    /// Bytes of the whole file, if the server says.
    pub total: Option<u64>,
}

/// Why a file was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// TLS or the client could not be set up.
    #[error("cannot prepare connections: {0}")]
    Client(String),
    /// The server has no such file for us.
    #[error("cannot fetch {url}: the server answered {status}")]
    Refused {
        /// The address.
        url: String,
        /// The status of the response.
        status: u16,
    },
    /// Every attempt failed; what arrived is kept, and a later call goes on from there.
    #[error("cannot fetch {url} in {attempts} attempts: {reason}; try again, and it goes on where it stopped")]
    Broken {
        /// The address.
        url: String,
        /// Attempts made.
        attempts: u32,
        /// What ended the last of them.
        reason: String,
    },
    /// The file is larger than allowed.
    #[error("cannot fetch {url}: it has more than {bytes_max} bytes")]
    TooLarge {
        /// The address.
        url: String,
        /// The limit.
        bytes_max: u64,
    },
    /// What arrived is not what was published; it is removed.
    #[error("{url} has changed: its git id is {found}, not {expected}")]
    Changed {
        /// The address.
        url: String,
        /// The id of the catalogue.
        expected: String,
        /// The id of what arrived.
        found: String,
    },
    /// The folder or a file in it.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// What was to be written.
        path: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
}

/// Fetches a file into `folder`, which is made if it is not there, and returns where it lies. A file that is there and has the right
/// digest is left as it is. `on_progress` is told of every piece that arrives.
///
/// # Errors
/// As [`FetchError`] says. After [`FetchError::Broken`] a further call goes on with what has arrived.
pub async fn fetch(
    download: &Download,
    folder: &Path,
    options: &FetchOptions,
    on_progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<PathBuf, FetchError> {
    let file = folder.join(download.file);
    if file.is_file() && digest_of(&file).await? == download.git_blob {
        return Ok(file);
    }
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let part = folder.join(format!("{}.part", download.file));
    let client = client().map_err(FetchError::Client)?;
    let mut attempt = 1;
    while let Err(stop) = receive(&client, download, &part, options, on_progress).await {
        let reason = match stop {
            Stop::Final(error) => return Err(error),
            Stop::Again(reason) => reason,
        };
        if attempt == options.attempts.get() {
            return Err(FetchError::Broken { url: download.url.to_owned(), attempts: attempt, reason });
        }
        attempt += 1;
        tokio::time::sleep(options.pause).await;
    }
    let found = digest_of(&part).await?;
    if found != download.git_blob {
        fs::remove_file(&part).map_err(failed(&part))?;
        return Err(FetchError::Changed { url: download.url.to_owned(), expected: download.git_blob.to_owned(), found });
    }
    fs::rename(&part, &file).map_err(failed(&file))?;
    Ok(file)
}

/// Why an attempt ended before the file did.
enum Stop {
    /// Another attempt may do better.
    Again(String),
    Final(FetchError),
}

impl From<FetchError> for Stop {
    fn from(error: FetchError) -> Self {
        Stop::Final(error)
    }
}

/// Makes one connection, and adds what it brings to `part`.
async fn receive(
    client: &Client,
    download: &Download,
    part: &Path,
    options: &FetchOptions,
    on_progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), Stop> {
    let held = fs::metadata(part).map_or(0, |metadata| metadata.len());
    let mut request = client.get(download.url);
    if held > 0 {
        request = request.header(RANGE, format!("bytes={held}-"));
    }
    let sent = tokio::time::timeout(options.idle, request.send()).await;
    let mut response = sent.map_err(|_| idle(options))?.map_err(|error| Stop::Again(describe(&error)))?;
    let start = match response.status() {
        StatusCode::PARTIAL_CONTENT if first_byte(&response) == Some(held) => held,
        StatusCode::OK => 0,
        // The part holds the whole file, or more than that: its digest will tell.
        StatusCode::RANGE_NOT_SATISFIABLE if held > 0 => return Ok(()),
        StatusCode::PARTIAL_CONTENT => {
            fs::remove_file(part).map_err(failed(part))?;
            return Err(Stop::Again("the server sent another range than it was asked for".to_owned()));
        }
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(Stop::Again(format!("the server answered {}", status.as_u16())));
        }
        status => return Err(FetchError::Refused { url: download.url.to_owned(), status: status.as_u16() }.into()),
    };
    let mut out = open(part, start).map_err(failed(part))?;
    let total = response.content_length().map(|rest| start + rest);
    let mut received = start;
    loop {
        if total.unwrap_or(received).max(received) > options.bytes_max {
            return Err(FetchError::TooLarge { url: download.url.to_owned(), bytes_max: options.bytes_max }.into());
        }
        let chunk = tokio::time::timeout(options.idle, response.chunk()).await.map_err(|_| idle(options))?;
        let Some(chunk) = chunk.map_err(|error| Stop::Again(describe(&error)))? else { break };
        out.write_all(&chunk).map_err(failed(part))?;
        received += chunk.len() as u64;
        on_progress(Progress { received, total });
    }
    out.sync_all().map_err(failed(part))?;
    Ok(())
}

/// Opens the part to be written from byte `start`, which is its end or its beginning.
fn open(part: &Path, start: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    match start {
        0 => options.write(true).create(true).truncate(true).open(part),
        _ => options.append(true).open(part),
    }
}

/// Returns the first byte of the range that a response brings: `bytes 100-199/200` begins with 100.
fn first_byte(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Returns git's id of a file, which is read on a thread where that blocks nobody.
async fn digest_of(path: &Path) -> Result<String, FetchError> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || git_blob(&owned)).await;
    read.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(failed(path))
}

/// A client with the system's certificates, which is not told by the environment what to do.
fn client() -> Result<Client, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_platform_verifier())
        .map_err(|error| error.to_string())?
        .with_no_client_auth();
    let agent = concat!("refrain/", env!("CARGO_PKG_VERSION"));
    let builder = Client::builder().tls_backend_preconfigured(tls).no_proxy().user_agent(agent);
    builder.build().map_err(|error| error.to_string())
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::File { path, source }
}

fn idle(options: &FetchOptions) -> Stop {
    Stop::Again(format!("the server sent nothing for {:?}", options.idle))
}

/// Says what happened to a connection: the innermost cause says most.
fn describe(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
