//! `refrain bench export`: the prompts of a query in several orders, as tokens for another engine.

use std::path::PathBuf;

use refrain_datasets::queries;
use serde_json::{Map, json};

use super::super::error::{Failure, Outcome};
use super::super::session::Session;
use super::api_cost::shared_with_earlier;
use super::measure::prepare;
use super::prompts::{record, write};
use super::tables::TableArgs;

/// The model that prompts are made for where a tokenizer is given.
const MODEL: &str = "export";

/// Options of `refrain bench export`.
#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// The query, by name
    #[arg(long, value_name = "NAME")]
    query: String,

    /// Orders of rows and fields; each row is a prompt in every one
    #[arg(long, value_delimiter = ',', default_value = "none,search,ggr,auto", value_name = "ORDER,…")]
    orders: Vec<String>,

    /// The folder for ORDER.tokens, ORDER.offsets and ORDER.outputs
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Use the tokenizer of this folder, or this tokenizer.json, instead of the model's
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,

    /// Ask each distinct question once
    #[arg(long)]
    dedup: bool,

    #[command(flatten)]
    tables: TableArgs,
}

/// Writes the files, and a line of JSON with what each order has.
pub(super) async fn run(session: &mut Session, args: &ExportArgs) -> Outcome<()> {
    let Some(query) = queries::query(&args.query) else {
        let known: Vec<&str> = queries::queries().iter().map(|query| query.name).collect();
        return Err(Failure::usage(format!("there is no query {:?}; the queries are {}", args.query, known.join(", "))));
    };
    if let Some(tokenizer) = &args.tokenizer {
        let file = if tokenizer.is_dir() { tokenizer.join("tokenizer.json") } else { tokenizer.clone() };
        let file = file.display().to_string().replace('\'', "''");
        let create = format!("CREATE OR REPLACE MODEL {MODEL} FROM 'random:llama3-8b' WITH (tokenizer = '{file}')");
        session.collect(&create).await?;
        session.set("model", MODEL).await?;
    }
    let model = prepare(session).await?;
    std::fs::create_dir_all(&args.out).map_err(|error| Failure::file("make", &args.out, error))?;
    let prepared = args.tables.prepare(session, query).await?;
    let mut orders = Map::new();
    for order in &args.orders {
        let dedup = if args.dedup { "auto" } else { "off" };
        let prompts = record(session, &model, &prepared.sql, &[("reorder", order), ("dedup", dedup)]).await?;
        write(&args.out.join(order), &prompts)?;
        let prompts = prompts.tokens;
        let tokens: usize = prompts.iter().map(Vec::len).sum();
        let shared: usize = shared_with_earlier(&prompts).iter().sum();
        let hit = shared as f64 / tokens.max(1) as f64;
        orders.insert(order.clone(), json!({ "prompts": prompts.len(), "tokens": tokens, "hit_rate": hit }));
    }
    session.print(&json!({ "query": query.name, "rows": prepared.rows, "model": model, "orders": orders }).to_string())
}
