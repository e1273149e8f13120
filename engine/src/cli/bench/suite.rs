//! The queries of a benchmark, each in several arms.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use refrain_datasets::queries::{Query, QueryKind, Suite, queries};

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
use super::tables::{Origin, Prepared, TableArgs};
use crate::Error;

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

    /// Run each query so often in each arm, after a run that does not count; the median is shown
    #[arg(long, value_name = "N")]
    repetitions: Option<usize>,

    /// Put results and the report in this folder; what it already has is not measured again
    #[arg(long, value_name = "DIR", default_value = "refrain-bench")]
    report: PathBuf,

    /// The state of the sources, for the report; what git says of them if they are still there
    #[arg(long, value_name = "ID", env = "REFRAIN_COMMIT")]
    commit: Option<String>,

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
    pub(super) does: Does,
    /// Whether tables that are not on this machine may be generated.
    pub(super) may_generate: bool,
}

/// What stands for the device where no model is asked.
pub(super) const NO_DEVICE: &str = "no device";

/// What is done with a query in each arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// It is run.
    Run,
    /// It is run, and its prompts are billed.
    RunAndBill,
    /// Its prompts are billed, and no model is asked.
    Bill,
}

/// Every arm that is compared for each feature.
const ALL_ARMS: &[&str] =
    &["naive", "cache", "rows", "ggr", "refrain", "no-order", "no-dedup", "no-cache", "no-rewrites", "no-layout"];

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
    does: Does::RunAndBill,
    may_generate: true,
};

/// The sixteen queries of the paper.
pub(super) const LLM_SQL: Benchmark =
    Benchmark { suite: Suite::LlmSql, queries: &[], rows: None, arms: ALL_ARMS, does: Does::RunAndBill, may_generate: true };

/// The ten queries of SemBench's Movie scenario.
pub(super) const SEMBENCH_MOVIE: Benchmark = Benchmark {
    suite: Suite::SemBenchMovie,
    queries: &[],
    rows: Some(2000),
    arms: &["cache", "refrain", "no-order", "no-rewrites"],
    does: Does::Run,
    may_generate: true,
};

/// The 22 queries of TPC-H, to watch plain SQL.
pub(super) const TPC_H: Benchmark =
    Benchmark { suite: Suite::TpcH, queries: &[], rows: None, arms: &["refrain"], does: Does::Run, may_generate: true };

/// What prompts would cost at providers.
pub(super) const API_COST: Benchmark = Benchmark {
    suite: Suite::ApiCost,
    queries: &[],
    rows: Some(1000),
    arms: &["cache", "ggr", "refrain"],
    does: Does::Bill,
    may_generate: true,
};

/// Answers beside labels.
pub(super) const QUALITY: Benchmark = Benchmark {
    suite: Suite::Quality,
    queries: &[],
    rows: Some(1000),
    arms: &["cache", "rows", "ggr", "refrain"],
    does: Does::Run,
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

/// Runs a benchmark and writes its report. A model is loaded only if one is asked.
pub(super) async fn run(session: &mut Session, benchmark: &Benchmark, args: &SuiteArgs) -> Outcome<()> {
    let wanted = benchmark.wanted(&args.queries)?;
    let arms = if args.arms.is_empty() { arms::named(benchmark.arms)? } else { arms::named(&args.arms)? };
    let mut tables = args.tables.clone();
    tables.rows = tables.rows.or(benchmark.rows);
    let model = prepare(session).await?;
    let is_plain = wanted.iter().all(|query| query.kind == QueryKind::Plain);
    let asks = benchmark.does != Does::Bill && !is_plain;
    let subject = if asks { Some(Subject::load(session, &model, &args.device).await?) } else { None };
    let device = subject.as_ref().map_or_else(|| NO_DEVICE.to_owned(), Subject::device);

    let mut results = Results::open(&args.report)?;
    results.begin(RunLine {
        engine: "refrain".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: args.commit.clone().or_else(results::commit),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        machine: results::machine(),
        device: device.clone(),
        model: if is_plain { "SQL".to_owned() } else { model.clone() },
        rows: tables.rows,
        tables: tables.about(),
        started_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    })?;
    session.notice(&format!("{}, {device}; results in {}", if is_plain { "SQL" } else { &model }, args.report.display()));
    for query in wanted {
        let prepared = tables.prepare(session, query).await?;
        if prepared.origin == Origin::Generated && !benchmark.may_generate {
            session.notice(&format!("{}: left out, since its tables are not on this machine (--data)", query.name));
            continue;
        }
        if benchmark.does != Does::Bill {
            let one = One { query, prepared: &prepared, subject: subject.as_ref() };
            one.repeat(session, &arms, args.repetitions.unwrap_or(1).max(1), &mut results).await?;
        }
        // The prompts of an external model are its own affair.
        let is_local = session.db.model_catalog().config(&model).map_err(Error::from)?.is_some();
        if benchmark.does != Does::Run && is_local {
            bill(session, &model, query, &prepared.sql, &arms, &mut results).await?;
        }
    }
    report::write(session, &args.report, &results.lines)
}

/// A query that is run.
struct One<'a> {
    query: &'static Query,
    prepared: &'a Prepared,
    subject: Option<&'a Subject>,
}

impl One<'_> {
    /// Runs the query in each arm so often, arms in turns. Where it is run several times, a first run in each arm is not counted: what is
    /// done once, such as to compile a kernel, is no part of the spread.
    async fn repeat(
        &self,
        session: &mut Session,
        arms: &[&'static Arm],
        repetitions: usize,
        results: &mut Results,
    ) -> Outcome<()> {
        let mut is_warm = vec![repetitions == 1; arms.len()];
        for repetition in 0..repetitions {
            for (arm, is_warm) in arms.iter().zip(&mut is_warm) {
                if results.has(self.query.name, arm.name, repetition) {
                    continue;
                }
                if !std::mem::replace(is_warm, true) {
                    self.measure(session, arm, repetition, results).await?;
                }
                let line = self.measure(session, arm, repetition, results).await?;
                session.notice(&told(&line));
                results.add(Line::Query(Box::new(line)))?;
            }
        }
        Ok(())
    }

    /// Runs the query once. One that fails is a result as well; only an interrupt ends the benchmark.
    async fn measure(&self, session: &mut Session, arm: &Arm, repetition: usize, results: &Results) -> Outcome<QueryLine> {
        arm.apply(session).await?;
        let mut line = QueryLine {
            query: self.query.name.to_owned(),
            arm: arm.name.to_owned(),
            repetition,
            generated: self.prepared.origin == Origin::Generated,
            table_rows: self.prepared.rows,
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
        let cost = match session.collect(&self.prepared.sql).await {
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
        let limits = self.subject.and_then(|subject| subject.cost.as_ref().zip(subject.peaks));
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
    arms: &[&'static Arm],
    results: &mut Results,
) -> Outcome<()> {
    let first = arms.first().map(|arm| arm.name);
    let mut stored = first.and_then(|arm| results.cost(query.name, arm)).map(|line| line.hit);
    for arm in arms {
        if results.cost(query.name, arm.name).is_some() {
            continue;
        }
        let prompts = record(session, model, sql, arm.settings).await?.tokens;
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
