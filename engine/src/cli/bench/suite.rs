//! The queries of a benchmark, each in several arms.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use refrain_datasets::queries::{Query, Suite, queries};

use super::super::error::{Failure, Outcome};
use super::super::session::Session;
use super::api_cost::{PROVIDERS, shared_with_earlier};
use super::arms::{self, Arm};
use super::limit::ideal_s;
use super::measure::{DeviceArgs, Subject, prepare};
use super::prompts::record;
use super::quality::quality;
use super::report;
use super::results::{self, CostLine, Line, QueryLine, Results, RunLine};
use super::tables::{Origin, TableArgs};

/// Options of the benchmarks of several queries.
#[derive(Debug, clap::Args)]
pub(crate) struct SuiteArgs {
    #[command(flatten)]
    tables: TableArgs,

    /// Only these queries, by name
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    queries: Vec<String>,

    /// Settings to compare, by name
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    arms: Vec<String>,

    /// Run each query so often in each arm; the median counts
    #[arg(long, value_name = "N")]
    repetitions: Option<usize>,

    /// Put results and the report in this folder; what it already has is not measured again
    #[arg(long, value_name = "DIR", default_value = "refrain-bench")]
    report: PathBuf,

    #[command(flatten)]
    device: DeviceArgs,
}

/// A benchmark of several queries, and what it is unless the user says otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Benchmark {
    pub(super) suite: Suite,
    /// The queries, or all of the suite that need no embedding model.
    pub(super) queries: &'static [&'static str],
    pub(super) rows: Option<usize>,
    pub(super) arms: &'static [&'static str],
    /// The arms whose prompts are billed.
    pub(super) billed: &'static [&'static str],
    /// Whether tables that are not on this machine may be generated.
    pub(super) may_generate: bool,
}

/// Every arm that is compared for each feature.
const ALL_ARMS: &[&str] =
    &["naive", "cache", "rows", "ggr", "refrain", "no-order", "no-dedup", "no-cache", "no-rewrites", "no-layout"];

const BILLED: &[&str] = &["cache", "ggr", "refrain"];

/// A look at everything in minutes.
pub(super) const QUICK: Benchmark = Benchmark {
    suite: Suite::LlmSql,
    queries: &[
        "movies-filter",
        "products-filter",
        "beer-filter",
        "movies-projection",
        "products-multi",
        "movies-aggregation",
        "fever-rag-prepared",
    ],
    rows: Some(120),
    arms: &["naive", "cache", "ggr", "refrain", "no-order", "no-dedup"],
    billed: BILLED,
    may_generate: true,
};

/// The sixteen queries of the paper.
pub(super) const LLM_SQL: Benchmark =
    Benchmark { suite: Suite::LlmSql, queries: &[], rows: None, arms: ALL_ARMS, billed: BILLED, may_generate: true };

/// The ten queries of SemBench's Movie scenario.
pub(super) const SEMBENCH_MOVIE: Benchmark = Benchmark {
    suite: Suite::SemBenchMovie,
    queries: &[],
    rows: Some(2000),
    arms: &["cache", "refrain", "no-order", "no-rewrites"],
    billed: &[],
    may_generate: true,
};

/// The 22 queries of TPC-H, to watch plain SQL.
pub(super) const TPC_H: Benchmark =
    Benchmark { suite: Suite::TpcH, queries: &[], rows: None, arms: &["refrain"], billed: &[], may_generate: true };

/// What prompts would cost at providers.
pub(super) const API_COST: Benchmark =
    Benchmark { suite: Suite::ApiCost, queries: &[], rows: Some(1000), arms: &[], billed: BILLED, may_generate: true };

/// Answers beside labels.
pub(super) const QUALITY: Benchmark = Benchmark {
    suite: Suite::Quality,
    queries: &[],
    rows: Some(1000),
    arms: &["cache", "rows", "ggr", "refrain"],
    billed: &[],
    may_generate: false,
};

impl Benchmark {
    /// Returns the queries that are wanted. Fails if the suite has no query of a name.
    fn wanted(&self, names: &[String]) -> Outcome<Vec<&'static Query>> {
        let all: Vec<&Query> = queries().iter().filter(|query| query.suite == self.suite).collect();
        if let Some(name) = names.iter().find(|name| all.iter().all(|query| query.name != name.as_str())) {
            let known: Vec<&str> = all.iter().map(|query| query.name).collect();
            return Err(Failure::usage(format!("there is no query {name:?} here; the queries are {}", known.join(", "))));
        }
        let is_wanted = |query: &&Query| match (names, self.queries) {
            ([], []) => !query.needs_embeddings(),
            ([], some) => some.contains(&query.name),
            (names, _) => names.iter().any(|name| name == query.name),
        };
        Ok(all.into_iter().filter(is_wanted).collect())
    }
}

/// Runs a benchmark and writes its report.
pub(super) async fn run(session: &mut Session, benchmark: &Benchmark, args: &SuiteArgs) -> Outcome<()> {
    let wanted = benchmark.wanted(&args.queries)?;
    let arms = if args.arms.is_empty() { arms::named(benchmark.arms)? } else { arms::named(&args.arms)? };
    let mut tables = args.tables.clone();
    tables.rows = tables.rows.or(benchmark.rows);
    let model = prepare(session).await?;
    let subject = Subject::load(session, &model, &args.device).await?;
    // Why there is no GPU is for whoever runs it to know, and not for the pages.
    let device = subject.backend.capabilities().device.split(" (").next().unwrap_or_default().to_owned();

    let mut results = Results::open(&args.report)?;
    results.begin(RunLine {
        engine: "refrain".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: results::commit(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        machine: results::machine(),
        device: device.clone(),
        model: model.clone(),
        rows: tables.rows,
        started_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    })?;
    session.notice(&format!("model {model}, {device}; results in {}", args.report.display()));
    for query in wanted {
        let prepared = tables.prepare(session, query).await?;
        if prepared.origin == Origin::Generated && !benchmark.may_generate {
            session.notice(&format!("{}: left out, since its tables are not on this machine (--data)", query.name));
            continue;
        }
        for repetition in 0..args.repetitions.unwrap_or(1).max(1) {
            for arm in &arms {
                if results.has(query.name, arm.name, repetition) {
                    continue;
                }
                let one =
                    One { query, sql: &prepared.sql, arm, repetition, table_rows: prepared.rows, origin: prepared.origin };
                let line = one.measure(session, &subject, &results).await?;
                session.notice(&told(&line));
                results.add(Line::Query(Box::new(line)))?;
            }
        }
        // The prompts of an external model are its own affair.
        if subject.cost.is_some() {
            bill(session, &model, query, &prepared.sql, arms::named(benchmark.billed)?, &mut results).await?;
        }
    }
    report::write(session, &args.report, &results.lines)
}

/// One run of a query.
struct One<'a> {
    query: &'static Query,
    sql: &'a str,
    arm: &'static Arm,
    repetition: usize,
    table_rows: usize,
    origin: Origin,
}

impl One<'_> {
    /// Runs the query. One that fails is a result as well; only an interrupt ends the benchmark.
    async fn measure(&self, session: &mut Session, subject: &Subject, results: &Results) -> Outcome<QueryLine> {
        self.arm.apply(session).await?;
        let mut line = QueryLine {
            query: self.query.name.to_owned(),
            arm: self.arm.name.to_owned(),
            repetition: self.repetition,
            generated: self.origin == Origin::Generated,
            table_rows: self.table_rows,
            rows_out: 0,
            wall_s: 0.0,
            planning_s: 0.0,
            calls: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            failed_rows: 0,
            ideal_s: None,
            agreement: None,
            quality: None,
            error: None,
        };
        let cost = match session.collect(self.sql).await {
            Ok(cost) => cost,
            Err(error) if error.stops_any_script() => return Err(error),
            Err(error) => {
                line.error = Some(error.to_string());
                return Ok(line);
            }
        };
        let digests = results::digests(&cost.rows)?;
        let first = results.first_answers(self.query.name, &digests)?;
        let usage = &cost.usage;
        let limits = subject.cost.as_ref().zip(subject.peaks);
        let is_free = self.query.sql.contains("max_tokens");
        Ok(QueryLine {
            rows_out: cost.rows.num_rows(),
            wall_s: cost.elapsed_s,
            planning_s: usage.planning.as_secs_f64(),
            calls: usage.calls,
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            output_tokens: usage.output_tokens,
            failed_rows: usage.failed_rows,
            ideal_s: limits.map(|(token, peaks)| ideal_s(token, peaks, usage, is_free)),
            agreement: Some(results::agreement(&first, &digests)),
            quality: quality(&cost.rows)?,
            ..line
        })
    }
}

/// Bills the prompts of a query in the order of each arm.
async fn bill(
    session: &mut Session,
    model: &str,
    query: &Query,
    sql: &str,
    arms: Vec<&'static Arm>,
    results: &mut Results,
) -> Outcome<()> {
    let first = arms.first().map(|arm| arm.name);
    let mut stored = first.and_then(|arm| results.cost(query.name, arm)).map(|line| line.hit);
    for arm in arms {
        if results.cost(query.name, arm.name).is_some() {
            continue;
        }
        let prompts = record(session, model, sql, arm.settings).await?;
        let tokens: usize = prompts.iter().map(Vec::len).sum();
        let shared: usize = shared_with_earlier(&prompts).iter().sum();
        let hit = shared as f64 / tokens.max(1) as f64;
        let before = *stored.get_or_insert(hit);
        for provider in PROVIDERS {
            let bill = provider.bill(&prompts);
            let formula = (before < hit).then(|| [false, true].map(|corrected| provider.estimate(before, hit, corrected)));
            results.add(Line::Cost(CostLine {
                query: query.name.to_owned(),
                arm: arm.name.to_owned(),
                provider: provider.name.to_owned(),
                prompts: prompts.len(),
                tokens: bill.tokens,
                hit,
                read: bill.read,
                written: bill.written,
                dollars: bill.dollars,
                formula,
            }))?;
        }
    }
    Ok(())
}

/// One run in a line, for whoever waits.
fn told(line: &QueryLine) -> String {
    let QueryLine { query, arm, wall_s, calls, prompt_tokens, cached_tokens, error, .. } = line;
    if let Some(error) = error {
        return format!("{query}, {arm}: {error}");
    }
    let hit = *cached_tokens as f64 / (*prompt_tokens).max(1) as f64 * 100.0;
    format!("{query}, {arm}: {wall_s:.2} s, {calls} calls, {hit:.1} % of prompt tokens cached")
}
