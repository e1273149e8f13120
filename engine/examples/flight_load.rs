//! Many clients on one server over the bundled model, many of which are killed in the middle: wrong answers, stuck queries, memory.
//!
//! `cargo run --release --example flight_load [-- --seconds 600 --clients 200]`. Every half minute a line with what was asked and the
//! memory of the process; at the end, whether the server is idle once all clients have gone, and whether memory has grown since the
//! first two minutes. Fails on a wrong answer, on a query that nobody waits for any more and that does not end, and on memory that
//! has grown by more than a twentieth.

#![allow(clippy::print_stdout, reason = "a measurement prints")]

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow_flight::sql::client::FlightSqlServiceClient;
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use refrain::Refrain;
use refrain::flight::{Limits, ServerConfig, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

type Failure = Box<dyn Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;
type Client = FlightSqlServiceClient<Channel>;

/// How often a line is printed.
const REPORT: Duration = Duration::from_secs(30);
/// A query that was not answered after this is stuck, whatever waits before it.
const STUCK: Duration = Duration::from_secs(300);
/// Once all clients have gone, the server is idle within this.
const QUIET: Duration = Duration::from_secs(60);
/// Memory may rise for so long; a run of twice as long is judged by how much it has risen since.
const WARM_UP: Duration = Duration::from_secs(120);
/// The share by which memory may grow after that.
const GROWTH_MAX: f64 = 0.05;
/// How long a client that was refused stays away.
const PAUSE: Duration = Duration::from_millis(200);
/// One in so many visits ends with the client killed.
const KILLED: u64 = 3;

/// What all clients have seen.
#[derive(Default)]
struct Seen {
    answered: AtomicU64,
    killed: AtomicU64,
    refused: AtomicU64,
    wrong: AtomicU64,
    stuck: AtomicU64,
    /// The first answer to each question for the model: greedy decoding gives no other.
    answers: Mutex<HashMap<u64, String>>,
    /// The most memory that was seen while memory may rise, in kB.
    warm_kb: AtomicU64,
}

/// What the command line says.
struct Args {
    seconds: u64,
    clients: u64,
}

impl Args {
    fn parse(mut args: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut parsed = Args { seconds: 600, clients: 200 };
        while let Some(name) = args.next() {
            let number = match name.as_str() {
                "--seconds" => &mut parsed.seconds,
                "--clients" => &mut parsed.clients,
                _ => return Err(format!("{name} is neither --seconds nor --clients").into()),
            };
            *number = args.next().ok_or_else(|| format!("{name} needs a number"))?.parse()?;
        }
        Ok(parsed)
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let Args { seconds, clients } = Args::parse(std::env::args().skip(1))?;
    let db = Refrain::builder().build().await?;
    let (socket, monitor) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    let (address, monitor_address) = (socket.local_addr()?, monitor.local_addr()?.to_string());
    let config = ServerConfig { limits: Limits { rows: None, ..Limits::default() }, ..ServerConfig::default() };
    tokio::spawn(run(socket, Some(monitor), db, config, std::future::pending()));

    let seen = Arc::new(Seen::default());
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    println!(
        "{clients} clients for {seconds} s\n\n| s | answered | killed | refused | wrong | stuck | MB |\n|---:|---:|---:|---:|---:|---:|---:|"
    );
    let mut visits = JoinSet::new();
    for number in 0..clients {
        visits.spawn(come_and_go(format!("http://{address}"), number, until, Arc::clone(&seen)));
    }
    let mut ticks = tokio::time::interval(REPORT);
    loop {
        tokio::select! {
            _ = ticks.tick() => seen.report(started),
            ended = visits.join_next() => match ended {
                Some(ended) => ended??,
                None => break,
            },
        }
    }
    seen.report(started);
    let left = idle(&monitor_address).await?;
    seen.report(started);
    println!("\nleft on the server: {}", if left.is_empty() { "nothing" } else { &left });
    if seen.wrong.load(Ordering::Relaxed) + seen.stuck.load(Ordering::Relaxed) > 0 || !left.is_empty() {
        return Err("there were wrong answers, or queries that did not end".into());
    }
    match seen.growth() {
        Some(_) if started.elapsed() < 2 * WARM_UP => println!("memory: not judged, the run is too short"),
        Some(growth) if growth > GROWTH_MAX => return Err(format!("memory has grown by {:.1} %", growth * 100.0).into()),
        Some(growth) => println!("memory: {:+.1} % since the first {} s", growth * 100.0, WARM_UP.as_secs()),
        None => println!("memory: the system does not tell"),
    }
    Ok(())
}

/// Visits the server until the time is over, each time by a connection of its own.
async fn come_and_go(address: String, number: u64, until: Instant, seen: Arc<Seen>) -> Outcome<()> {
    let mut seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    while Instant::now() < until {
        let is_killed = next(&mut seed).is_multiple_of(KILLED);
        let patience = Duration::from_millis(next(&mut seed) % 3000);
        let visit = visit(address.clone(), seed, Arc::clone(&seen));
        next(&mut seed);
        if is_killed {
            // Dropping it drops the connection, wherever it is.
            if tokio::time::timeout(patience, visit).await.is_err() {
                seen.killed.fetch_add(1, Ordering::Relaxed);
            }
            continue;
        }
        match tokio::time::timeout(STUCK, visit).await {
            Ok(Ok(())) => {}
            // More clients wait than the server takes: it says so, and they come again.
            Ok(Err(error)) if error.to_string().contains("try again later") => {
                seen.refused.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
            Ok(Err(error)) => return Err(format!("client {number}: {error}").into()),
            Err(_) => _ = seen.stuck.fetch_add(1, Ordering::Relaxed),
        }
    }
    Ok(())
}

/// Asks a few questions, and checks what can be checked.
async fn visit(address: String, mut seed: u64, seen: Arc<Seen>) -> Outcome<()> {
    let mut client = Client::new(Endpoint::new(address)?.connect().await?);
    for _ in 0..3 {
        let draw = next(&mut seed);
        match draw % 4 {
            0 => {
                let n = draw / 4 % 100_000 + 1;
                let sum = rows(&mut client, format!("select sum(value) from generate_series(1, {n})")).await?;
                let sum = sum[0].column(0).as_primitive::<Int64Type>().value(0);
                seen.judge(u64::try_from(sum)? == n * (n + 1) / 2);
            }
            1 => {
                client.execute(format!("create or replace temporary table mine as select {draw} as a"), None).await?;
                let batches = rows(&mut client, "select cast(a as text) as a from mine".to_owned()).await?;
                seen.judge(text(&batches)[0] == draw.to_string());
            }
            _ => {
                let questions: Vec<u64> = (0..4).map(|idx| (draw / 8 + idx * 7) % 500).collect();
                let values = questions.iter().map(|q| format!("({q}, 'The film {q} was seen by {q} people.')"));
                let sql = format!(
                    "select cast(q as text), ai_classify(t, ['good', 'bad', 'unknown']) from (values {}) as v(q, t)",
                    values.collect::<Vec<_>>().join(", ")
                );
                for batch in rows(&mut client, sql).await? {
                    let (asked, answers) = (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
                    for (asked, answer) in asked.iter().flatten().zip(answers) {
                        seen.judge(seen.is_same(asked.parse()?, answer.unwrap_or_default()));
                    }
                }
            }
        }
    }
    Ok(())
}

impl Seen {
    fn judge(&self, is_right: bool) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.wrong.fetch_add(u64::from(!is_right), Ordering::Relaxed);
    }

    /// Whether a question is answered as it was the first time.
    fn is_same(&self, question: u64, answer: &str) -> bool {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let first = answers.entry(question).or_insert_with(|| answer.to_owned());
        first == answer && ["good", "bad", "unknown"].contains(&answer)
    }

    fn report(&self, started: Instant) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (answered, killed, refused) = (read(&self.answered), read(&self.killed), read(&self.refused));
        let (wrong, stuck, seconds) = (read(&self.wrong), read(&self.stuck), started.elapsed().as_secs());
        let kb = resident_kb();
        if started.elapsed() <= WARM_UP {
            self.warm_kb.fetch_max(kb.unwrap_or_default(), Ordering::Relaxed);
        }
        let mb = kb.map_or_else(|| "unknown".to_owned(), |kb| (kb / 1000).to_string());
        println!("| {seconds} | {answered} | {killed} | {refused} | {wrong} | {stuck} | {mb} |");
    }

    /// Returns the share by which memory has grown since it was let rise, where the system tells.
    fn growth(&self) -> Option<f64> {
        let warm = self.warm_kb.load(Ordering::Relaxed);
        (warm > 0).then_some(resident_kb()? as f64 / warm as f64 - 1.0)
    }
}

/// Waits until nothing is left of the clients, and returns what is when that takes too long.
async fn idle(monitor: &str) -> Outcome<String> {
    let deadline = Instant::now() + QUIET;
    loop {
        let metrics = page(monitor).await?;
        let gauges = ["refrain_sessions", "refrain_queries_running", "refrain_queries_waiting"];
        let left = metrics.lines().filter(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_default();
            let is_pending = name.starts_with("refrain_model{counter=\"pending\"");
            (gauges.contains(&name) || is_pending) && value != "0"
        });
        let left = left.collect::<Vec<_>>().join(", ");
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn page(monitor: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect(monitor).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: refrain\r\nconnection: close\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

async fn rows(client: &mut Client, sql: String) -> Outcome<Vec<RecordBatch>> {
    let info = client.execute(sql, None).await?;
    let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone()).ok_or("there is no ticket")?;
    Ok(client.do_get(ticket).await?.try_collect().await?)
}

fn text(batches: &[RecordBatch]) -> Vec<String> {
    let texts = batches.iter().flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten());
    texts.map(str::to_owned).collect()
}

/// Marsaglia's xorshift.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Memory that the process holds, in kB, where the system tells.
fn resident_kb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
