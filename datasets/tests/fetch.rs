//! The fetcher against a real HTTP server on this machine that misbehaves as a test tells it to.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use refrain_datasets::catalogue::Download;
use refrain_datasets::digest::git_blob;
use refrain_datasets::fetch::{FetchError, FetchOptions, Progress, fetch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the server does with a request for the file.
#[derive(Clone, Copy)]
enum Reply {
    /// Sends what is asked for, ranges included.
    Whole,
    /// Sends everything whatever is asked for.
    WithoutRanges,
    /// Announces what is asked for and closes the connection after so many bytes of it.
    Broken(usize),
    /// Sends a range that nobody asked for.
    OtherRange,
    /// This status and no file.
    Status(u16),
}

/// Serves `content` to one request for each reply, and returns the address and what was asked for as ranges.
async fn serve(content: Vec<u8>, replies: Vec<Reply>) -> (&'static str, JoinHandle<Vec<Option<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/table.csv", listener.local_addr().unwrap()).leak();
    let server = tokio::spawn(async move {
        let mut asked = vec![];
        for reply in replies {
            let (mut stream, _) = listener.accept().await.unwrap();
            let start = range(&head(&mut stream).await);
            asked.push(start);
            stream.write_all(&response(&content, start, reply)).await.unwrap();
            stream.shutdown().await.unwrap();
        }
        asked
    });
    (url, server)
}

/// Reads the head of a request.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn range(head: &str) -> Option<usize> {
    let line = head.lines().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned))?;
    line.trim_end_matches('-').parse().ok()
}

fn response(content: &[u8], start: Option<usize>, reply: Reply) -> Vec<u8> {
    let all = content.len();
    let (status, start, sent) = match (reply, start) {
        (Reply::Status(status), _) => {
            return format!("HTTP/1.1 {status} no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").into_bytes();
        }
        (Reply::Whole | Reply::Broken(_), Some(start)) if start >= all => {
            return format!(
                "HTTP/1.1 416 no\r\ncontent-range: bytes */{all}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            .into_bytes();
        }
        (Reply::Whole, Some(start)) => (206, start, all - start),
        (Reply::Broken(sent), Some(start)) => (206, start, sent),
        (Reply::Broken(sent), None) => (200, 0, sent),
        (Reply::OtherRange, _) => (206, 1, all - 1),
        (Reply::Whole | Reply::WithoutRanges, _) => (200, 0, all),
    };
    let length = all - start;
    let range = if status == 206 { format!("content-range: bytes {start}-{}/{all}\r\n", all - 1) } else { String::new() };
    let mut bytes =
        format!("HTTP/1.1 {status} OK\r\n{range}content-length: {length}\r\nconnection: close\r\n\r\n").into_bytes();
    bytes.extend(&content[start..start + sent]);
    bytes
}

fn content() -> Vec<u8> {
    (0..20_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// Git's id of the content, by way of a file.
fn id_of(content: &[u8]) -> &'static str {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("content");
    std::fs::write(&path, content).unwrap();
    git_blob(&path).unwrap().leak()
}

fn options() -> FetchOptions {
    FetchOptions { attempts: NonZeroU32::new(3).unwrap(), pause: Duration::ZERO, ..FetchOptions::default() }
}

/// What a fetch came to, the ranges that were asked for, and the progress that was told.
struct Outcome {
    result: Result<std::path::PathBuf, FetchError>,
    asked: Vec<Option<usize>>,
    progress: Vec<Progress>,
}

async fn run(folder: &Path, replies: &[Reply], options: &FetchOptions) -> Outcome {
    let (url, server) = serve(content(), replies.to_vec()).await;
    let download = Download { url, file: "table.csv", git_blob: id_of(&content()) };
    let mut progress = vec![];
    let result = fetch(&download, folder, options, &mut |piece| progress.push(piece)).await;
    let asked = if server.is_finished() || result.is_ok() { server.await.unwrap() } else { vec![] };
    Outcome { result, asked, progress }
}

#[tokio::test]
async fn a_file_arrives_whole_and_is_fetched_once() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("tables");
    let outcome = run(&to, &[Reply::Whole], &options()).await;
    assert_eq!(std::fs::read(outcome.result.unwrap()).unwrap(), content());
    assert_eq!(outcome.progress.last(), Some(&Progress { received: 80_000, total: Some(80_000) }));
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 1, "no part is left");
    let again = run(&to, &[], &options()).await;
    assert_eq!((again.result.unwrap(), again.asked.len()), (to.join("table.csv"), 0));
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(folder.path(), &[Reply::Broken(30_000), Reply::Broken(10_000), Reply::Whole], &options()).await;
    assert_eq!(std::fs::read(outcome.result.unwrap()).unwrap(), content());
    assert_eq!(outcome.asked, [None, Some(30_000), Some(40_000)]);
}

#[tokio::test]
async fn a_later_call_goes_on_where_an_earlier_one_gave_up() {
    let folder = tempfile::tempdir().unwrap();
    let once = FetchOptions { attempts: NonZeroU32::MIN, ..options() };
    let error = run(folder.path(), &[Reply::Broken(50_000)], &once).await.result.unwrap_err();
    assert!(matches!(error, FetchError::Broken { attempts: 1, .. }), "{error}");
    assert!(!folder.path().join("table.csv").exists());
    let outcome = run(folder.path(), &[Reply::Whole], &once).await;
    assert_eq!(outcome.asked, [Some(50_000)]);
    assert_eq!(std::fs::read(outcome.result.unwrap()).unwrap(), content());
}

#[tokio::test]
async fn a_server_without_ranges_sends_everything_again() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(folder.path(), &[Reply::Broken(30_000), Reply::WithoutRanges], &options()).await;
    assert_eq!(std::fs::read(outcome.result.unwrap()).unwrap(), content());
    assert_eq!(outcome.asked, [None, Some(30_000)]);
}

#[tokio::test]
async fn another_range_than_asked_for_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(folder.path(), &[Reply::Broken(30_000), Reply::OtherRange, Reply::Whole], &options()).await;
    assert_eq!(std::fs::read(outcome.result.unwrap()).unwrap(), content());
    assert_eq!(outcome.asked, [None, Some(30_000), None]);
}

#[tokio::test]
async fn a_part_that_was_whole_needs_its_digest_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("table.csv.part"), content()).unwrap();
    let outcome = run(folder.path(), &[Reply::Whole], &options()).await;
    assert_eq!(std::fs::read(outcome.result.unwrap()).unwrap(), content());
    assert_eq!(outcome.progress, []);
}

#[tokio::test]
async fn content_that_changed_is_refused_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (url, server) = serve(content(), vec![Reply::Whole]).await;
    let download = Download { url, file: "table.csv", git_blob: id_of(b"something else") };
    let error = fetch(&download, folder.path(), &options(), &mut |_| {}).await.unwrap_err();
    assert!(matches!(&error, FetchError::Changed { found, .. } if found == id_of(&content())), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    server.await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_not_there_is_not_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(folder.path(), &[Reply::Status(404)], &options()).await;
    assert!(matches!(outcome.result, Err(FetchError::Refused { status: 404, .. })));
    let outcome = run(folder.path(), &[Reply::Status(503), Reply::Whole], &options()).await;
    assert_eq!(std::fs::read(outcome.result.unwrap()).unwrap(), content());
}

#[tokio::test]
async fn a_file_that_is_too_large_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let small = FetchOptions { bytes_max: 79_999, ..options() };
    let outcome = run(folder.path(), &[Reply::Whole], &small).await;
    assert!(matches!(outcome.result, Err(FetchError::TooLarge { bytes_max: 79_999, .. })));
}
