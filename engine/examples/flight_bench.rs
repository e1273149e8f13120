//! What Flight SQL adds to a query: the time of `SELECT 1` beside the embedded API, and how fast a large result is streamed.
//!
//! `cargo run --release --example flight_bench [-- SECONDS [SCALE]]`: seconds for each latency, and the scale of TPC-H whose lineitem
//! is sent (6 million rows at 1). Server and client are in this process, over loopback.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::Ticket;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use datafusion::arrow::array::RecordBatch;
use datafusion::datasource::MemTable;
use futures::{StreamExt, TryStreamExt};
use refrain::Refrain;
use refrain::flight::{ServerConfig, run};
use refrain_datasets::tpch::{self, Table};
use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint};

type Outcome<T> = Result<T, Box<dyn Error>>;
type Client = FlightSqlServiceClient<Channel>;

const QUERY: &str = "SELECT 1";

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(5), |text| text.parse())?;
    let scale: f64 = args.next().map_or(Ok(0.3), |text| text.parse())?;
    let db = Refrain::builder().build().await?;
    let socket = TcpListener::bind("127.0.0.1:0").await?;
    let address = socket.local_addr()?;
    tokio::spawn(run(socket, None, db.clone(), ServerConfig::default(), std::future::pending()));
    let channel = Endpoint::new(format!("http://{address}"))?
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(32 << 20)
        .connect()
        .await?;
    let client = Client::new_from_inner(FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX));
    latencies(&db, &client, Duration::from_secs(seconds)).await?;
    throughput(&db, client, scale).await
}

/// Prints what one small query takes, asked in three ways.
async fn latencies(db: &Refrain, client: &Client, patience: Duration) -> Outcome<()> {
    let prepared = client.clone().prepare(QUERY.to_owned(), None).await?;
    println!("| `{QUERY}` | runs | median ms | p99 ms |\n|---|---:|---:|---:|");
    measure("embedded: plan, run, fetch", patience, async || {
        let batches = db.sql(QUERY).await?.execute().await?.fetch_all().await?;
        Ok(batches.len())
    })
    .await?;
    measure("over Flight: GetFlightInfo, DoGet", patience, async || {
        let mut client = client.clone();
        let info = client.execute(QUERY.to_owned(), None).await?;
        Ok(fetch(&mut client, &info).await?.len())
    })
    .await?;
    measure("over Flight, prepared once", patience, async || {
        let info = prepared.clone().execute().await?;
        Ok(fetch(&mut client.clone(), &info).await?.len())
    })
    .await
}

/// Runs something again and again, and prints how long it takes.
async fn measure<F: Future<Output = Outcome<usize>>>(label: &str, patience: Duration, run: impl Fn() -> F) -> Outcome<()> {
    let (started, mut times) = (Instant::now(), vec![]);
    while started.elapsed() < patience {
        let begun = Instant::now();
        run().await?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    // The first runs warm caches.
    let mut times = times.split_off(times.len() / 10);
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("| {label} | {} | {:.3} | {:.3} |", times.len(), at(0.5), at(0.99));
    Ok(())
}

/// Prints how fast a table in memory is sent, beside reading it where it lies.
async fn throughput(db: &Refrain, mut client: Client, scale: f64) -> Outcome<()> {
    let rows = register_lineitem(db, scale)?;
    println!("\n| lineitem, {rows} rows | run | MB | seconds | GB/s |\n|---|---:|---:|---:|---:|");
    for number in 1..=5 {
        let (started, mut bytes, mut run) = (Instant::now(), 0, db.sql("SELECT * FROM lineitem").await?.execute().await?);
        while let Some(batch) = run.next().await {
            bytes += batch?.get_array_memory_size();
        }
        report("embedded", number, bytes, started);
    }
    for number in 1..=5 {
        let started = Instant::now();
        let info = client.execute("SELECT * FROM lineitem".to_owned(), None).await?;
        let mut stream = client.do_get(ticket(&info)?).await?.into_inner();
        let (mut bytes, mut seen) = (0, 0);
        while let Some(data) = stream.next().await {
            let data = data?;
            bytes += data.inner.data_body.len();
            if let arrow_flight::decode::DecodedPayload::RecordBatch(batch) = data.payload {
                seen += batch.num_rows() as u64;
            }
        }
        if seen != rows {
            return Err(format!("{seen} rows came of {rows}").into());
        }
        report("over Flight, decoded", number, bytes, started);
    }
    Ok(())
}

/// Puts TPC-H's lineitem into memory, in as many parts as queries have, and returns its rows.
fn register_lineitem(db: &Refrain, scale: f64) -> Outcome<u64> {
    let Table { schema, batches } = tpch::table("lineitem", scale).ok_or("TPC-H has no lineitem")?;
    let mut parts = vec![vec![]; db.context().state().config().target_partitions()];
    let (mut rows, count) = (0, parts.len());
    for (idx, batch) in batches.enumerate() {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        parts[idx % count].push(batch);
    }
    db.context().register_table("lineitem", Arc::new(MemTable::try_new(schema, parts)?))?;
    Ok(rows)
}

fn report(label: &str, number: usize, bytes: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("| {label} | {number} | {:.0} | {seconds:.3} | {:.2} |", bytes as f64 / 1e6, bytes as f64 / 1e9 / seconds);
}

async fn fetch(client: &mut Client, info: &arrow_flight::FlightInfo) -> Outcome<Vec<RecordBatch>> {
    Ok(client.do_get(ticket(info)?).await?.try_collect().await?)
}

fn ticket(info: &arrow_flight::FlightInfo) -> Outcome<Ticket> {
    let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone());
    Ok(ticket.ok_or("the server gives no ticket")?)
}
