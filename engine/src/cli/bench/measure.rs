//! One query under several settings.
//!
//! The query is the filter over the Movies table of "Optimizing LLM Queries in Relational Data Analytics Workloads" (arXiv 2403.05821,
//! Appendix C, type T1): is the film suitable for kids, judged from all columns of the row. The table is a file that the user has.
//! Another table can be asked another question, and the answer can be free text of a given length.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::compute::kernels::cmp::not_distinct;
use refrain_serving::device::cuda::PassTimes;
use refrain_serving::model::TokenCost;
use refrain_serving::{Backend, Stats};

use super::super::error::{Failure, Outcome};
use super::super::execute::Collected;
use super::super::session::Session;
use super::arms::Arm;
use super::limit::{Peaks, ideal_s};
use super::{arms, prompts};
use crate::{Error, ModelType, planner};

/// Options of the benchmark of one query.
#[derive(Debug, clap::Args)]
pub(crate) struct MeasureArgs {
    /// The table: a Parquet, CSV or JSON file, with the columns of Movies unless --question says otherwise
    #[arg(long, value_name = "FILE")]
    table: PathBuf,

    /// Read this many rows
    #[arg(long, default_value_t = 1000)]
    rows: usize,

    /// What is asked of each row
    #[arg(long, value_name = "TEXT", default_value = "Is the movie suitable for kids?")]
    question: String,

    /// Ask for free text of at most this many tokens instead of yes or no; a random model writes exactly so many
    #[arg(long, value_name = "N")]
    max_tokens: Option<std::num::NonZeroU32>,

    /// Settings to compare, by name; if left out all, or none where prompts are written
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    arms: Vec<String>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Say after each setting where the time of the GPUs went; measuring it costs a few microseconds for each kernel
    #[arg(long)]
    times: bool,

    /// Write the tokens of all prompts to this folder: `original` as stored, `refrain` distinct and in the order of the arm of that name
    #[arg(long, value_name = "DIR")]
    write_prompts: Option<PathBuf>,
}

impl MeasureArgs {
    fn query(&self) -> String {
        let quoted = |text: &str| text.replace('\'', "''");
        let (table, question) = (quoted(&self.table.display().to_string()), quoted(&self.question));
        let (function, length) = match self.max_tokens {
            None => ("ai_filter", String::new()),
            Some(tokens) => ("ai_complete", format!(", max_tokens => {tokens}")),
        };
        format!(
            "SELECT {function}('{question}', t.*, mode => 'fields'{length}) FROM (SELECT * FROM '{table}' LIMIT {}) AS t",
            self.rows
        )
    }

    /// Returns the arms that are wanted. Fails if there is no arm of a name.
    fn wanted(&self) -> Outcome<Vec<&'static Arm>> {
        match (self.arms.is_empty(), &self.write_prompts) {
            (true, None) => arms::named(ARMS),
            _ => arms::named(&self.arms),
        }
    }
}

/// What is compared unless arms are named.
const ARMS: &[&str] = &["naive", "cache", "cache+dedup", "rows", "ggr", "search", "search+dedup", "refrain"];

/// A query that loads the model, so that the first arm does not pay for it.
const WARM_UP: &str = "SELECT ai_filter('Is this a movie?', 'warm-up')";

const HEADER: &str = "\
| arm | wall s | rows/s | calls | prompt tokens | computed tokens | prefix hit | steps | tokens a step | ideal s | of limit | speed-up | same answers |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
";

/// What one arm cost and answered.
struct Measured {
    name: &'static str,
    cost: Collected,
    answers: ArrayRef,
    /// What the backend did in the meantime.
    stats: Stats,
    /// The least time for what was computed, where the model and the device are known.
    ideal_s: Option<f64>,
    /// Where the time of each device went, where that is asked for and known.
    times: Vec<PassTimes>,
}

/// The model that is measured.
pub(super) struct Subject {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) cost: Option<TokenCost>,
    pub(super) peaks: Option<Peaks>,
}

/// What is told of the device that a benchmark runs on.
#[derive(Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// Tokens of one forward pass
    #[arg(long, value_name = "N")]
    step_tokens: Option<std::num::NonZeroU32>,

    /// What the device multiplies at most, in TFLOP/s, for the share of the limit; known for some GPUs
    #[arg(long, value_name = "N", value_parser = super::positive)]
    peak_tflops: Option<f64>,

    /// What the device reads at most, in GB/s
    #[arg(long, value_name = "N", value_parser = super::positive)]
    peak_gbs: Option<f64>,
}

/// Returns the model that a session asks, and has files read in the order of their rows.
pub(super) async fn prepare(session: &Session) -> Outcome<String> {
    // Several readers of one file would hand its rows over in any order.
    session.set("datafusion.optimizer.repartition_file_scans", "false").await?;
    let settings = planner::settings(&session.db.context().state());
    let catalog = session.db.model_catalog();
    Ok(catalog.resolve(settings.model.as_deref(), ModelType::Completion).map_err(Error::from)?)
}

impl Subject {
    /// Loads a model, so that the first arm does not pay for it.
    pub(super) async fn load(session: &mut Session, model: &str, device: &DeviceArgs) -> Outcome<Self> {
        if let Some(tokens) = device.step_tokens {
            session.set("step_tokens", &tokens.to_string()).await?;
        }
        session.collect(WARM_UP).await?;
        let catalog = session.db.model_catalog();
        let backend = catalog.backend(model).await.map_err(Error::from)?;
        let config = catalog.config(model).map_err(Error::from)?;
        let scale = |number: Option<f64>, unit: f64| number.map(|number| number * unit);
        let (tflops, gbs) = (scale(device.peak_tflops, 1e12), scale(device.peak_gbs, 1e9));
        let peaks = Peaks::of(&backend.capabilities().device, tflops, gbs);
        Ok(Subject { backend, cost: config.map(|config| config.token_cost()), peaks })
    }

    /// Says what serves the model. Why there is no GPU is for whoever runs it to know, and not for the pages.
    pub(super) fn device(&self) -> String {
        self.backend.capabilities().device.split(" (").next().unwrap_or_default().to_owned()
    }
}

/// Runs the arms one after the other and prints a Markdown table, a line as soon as its arm has run.
pub(super) async fn run(session: &mut Session, args: &MeasureArgs) -> Outcome<()> {
    let (arms, query) = (args.wanted()?, args.query());
    let model = prepare(session).await?;
    if let Some(folder) = &args.write_prompts {
        std::fs::create_dir_all(folder).map_err(|error| Failure::file("make", folder, error))?;
        for (arm, file) in arms::named(&["cache", "refrain"])?.into_iter().zip(["original", "refrain"]) {
            prompts::write(&folder.join(file), &prompts::record(session, &model, &query, arm.settings).await?)?;
        }
    }
    if arms.is_empty() {
        return Ok(());
    }
    let subject = Subject::load(session, &model, &args.device).await?;
    if args.times {
        subject.backend.time_passes();
    }
    session.notice(&format!("model {model}, {}", subject.backend.capabilities().device));
    session.print(HEADER)?;
    let mut measured = Vec::new();
    for arm in arms {
        measured.push(measure(session, &subject, arm, args, &query).await?);
        session.print(&row(&measured)?)?;
        if let Some(Measured { name, cost, times, .. }) = measured.last() {
            times.iter().for_each(|times| session.notice(&format!("{name}: {}", shares(times, cost.elapsed_s))));
        }
    }
    Ok(())
}

async fn measure(session: &mut Session, subject: &Subject, arm: &Arm, args: &MeasureArgs, query: &str) -> Outcome<Measured> {
    arm.apply(session).await?;
    let (before, times_before) = (subject.backend.stats(), subject.backend.pass_times());
    let cost = session.collect(query).await?;
    let after = subject.backend.stats();
    let stats = Stats {
        steps: after.steps - before.steps,
        computed_tokens: after.computed_tokens - before.computed_tokens,
        ..after
    };
    let limits = subject.cost.as_ref().zip(subject.peaks);
    let ideal_s = limits.map(|(token, peaks)| ideal_s(token, peaks, &cost.usage, args.max_tokens.is_some()));
    let times_after = subject.backend.pass_times().into_iter().enumerate();
    let times =
        times_after.map(|(device, after)| after.since(&times_before.get(device).copied().unwrap_or_default())).collect();
    Ok(Measured { name: arm.name, answers: Arc::clone(cost.rows.column(0)), cost, stats, ideal_s, times })
}

/// One line of the table; ratios are to the first arm that ran.
fn row(measured: &[Measured]) -> Outcome<String> {
    let (Some(first), Some(last)) = (measured.first(), measured.last()) else { return Ok(String::new()) };
    let Measured { name, cost: Collected { usage, elapsed_s, .. }, answers, stats, ideal_s, times: _ } = last;
    let same = not_distinct(answers, &first.answers)?.true_count();
    let share = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole * 100.0 };
    let seconds = elapsed_s.max(f64::EPSILON);
    let known = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let per_step = (stats.steps > 0).then(|| format!("{:.0}", stats.computed_tokens as f64 / stats.steps as f64));
    Ok(format!(
        "| {name} | {elapsed_s:.1} | {:.1} | {} | {} | {} | {:.1} % | {} | {} | {} | {} | {:.2} × | {:.1} % |\n",
        answers.len() as f64 / seconds,
        usage.calls,
        usage.prompt_tokens,
        usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        share(usage.cached_tokens as f64, usage.prompt_tokens as f64),
        known((stats.steps > 0).then(|| stats.steps.to_string())),
        known(per_step),
        known(ideal_s.map(|ideal| format!("{ideal:.2}"))),
        known(ideal_s.map(|ideal| format!("{:.1} %", share(ideal, seconds)))),
        first.cost.elapsed_s / seconds,
        share(same as f64, answers.len() as f64),
    ))
}

/// Says where the time of a device went while a query ran for so many seconds.
fn shares(times: &PassTimes, elapsed_s: f64) -> String {
    let PassTimes { gemm, attention, exchange, head, other, passes, tokens: _ } = *times;
    let share = |milliseconds: f64| milliseconds / 10.0 / elapsed_s.max(f64::EPSILON);
    let idle = 1e3 * elapsed_s - gemm - attention - exchange - head - other;
    let parts = [
        ("products", gemm),
        ("attention", attention),
        ("exchange", exchange),
        ("LM head", head),
        ("norms, activation and copies", other),
        ("idle", idle.max(0.0)),
    ];
    let parts = parts.map(|(part, milliseconds)| format!("{part} {:.1} %", share(milliseconds)));
    format!("{passes} passes: {}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use datafusion::arrow::array::BooleanArray;
    use datafusion::arrow::datatypes::Schema;
    use datafusion::arrow::record_batch::RecordBatch;

    use super::super::super::args::Args;
    use super::super::super::interrupt::Interrupts;
    use super::*;
    use crate::QueryUsage;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: MeasureArgs,
    }

    fn args(line: &[&str]) -> MeasureArgs {
        Line::try_parse_from(["bench"].iter().chain(line)).unwrap().args
    }

    #[test]
    fn lines_compare_with_the_first_arm() {
        let measured = |name, elapsed_s, cached_tokens, answers: Vec<Option<bool>>, ideal_s| {
            let usage = QueryUsage { calls: 2, prompt_tokens: 100, cached_tokens, ..QueryUsage::default() };
            let cost = Collected { rows: RecordBatch::new_empty(Arc::new(Schema::empty())), usage, elapsed_s };
            let stats = Stats { steps: 4, computed_tokens: 50, ..Stats::default() };
            Measured { name, cost, answers: Arc::new(BooleanArray::from(answers)), stats, ideal_s, times: vec![] }
        };
        let runs = [
            measured("naive", 4.0, 0, vec![Some(true), None], None),
            measured("rows", 1.0, 75, vec![Some(true), Some(false)], Some(0.25)),
        ];
        let expected = "| rows | 1.0 | 2.0 | 2 | 100 | 25 | 75.0 % | 4 | 12 | 0.25 | 25.0 % | 4.00 × | 50.0 % |\n";
        assert_eq!(row(&runs).unwrap(), expected);
        let expected = "| naive | 4.0 | 0.5 | 2 | 100 | 100 | 0.0 % | 4 | 12 | – | – | 1.00 × | 100.0 % |\n";
        assert_eq!(row(&runs[..1]).unwrap(), expected);
        assert_eq!(HEADER.lines().next().map(|line| line.matches('|').count()), Some(expected.matches('|').count()));
    }

    #[test]
    fn shares_are_of_the_whole_time() {
        let times =
            PassTimes { gemm: 1100.0, attention: 100.0, exchange: 100.0, head: 40.0, other: 260.0, passes: 7, tokens: 5 };
        let expected = "7 passes: products 55.0 %, attention 5.0 %, exchange 5.0 %, LM head 2.0 %, norms, activation and copies 13.0 %, idle 20.0 %";
        assert_eq!(shares(&times, 2.0), expected);
        assert!(shares(&times, 1.0).ends_with("idle 0.0 %"));
    }

    #[test]
    fn arms_are_all_or_those_named() {
        let names = |line: &[&str]| args(line).wanted().map(|arms| arms.iter().map(|arm| arm.name).collect::<Vec<_>>());
        assert_eq!(names(&["--table", "t", "--arms", "refrain,cache"]).unwrap(), ["cache", "refrain"]);
        assert_eq!(names(&["--table", "t"]).unwrap(), ARMS);
        assert!(names(&["--table", "t", "--write-prompts", "d"]).unwrap().is_empty());
    }

    /// Lengths of the prompts of a file.
    fn lengths(path: &std::path::Path) -> Vec<usize> {
        let bytes = std::fs::read(path.with_extension("offsets")).unwrap();
        let offsets: Vec<u64> = bytes.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect();
        let tokens = std::fs::metadata(path.with_extension("tokens")).unwrap().len() / 4;
        assert_eq!((offsets.first(), offsets.last()), (Some(&0), Some(&tokens)));
        offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect()
    }

    #[tokio::test]
    async fn a_random_model_is_measured_and_its_prompts_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("films.csv");
        let rows: String = (0..12).map(|row| format!("film {},a long plot of film {}\n", row % 4, row % 4)).collect();
        std::fs::write(&table, format!("title,plot\n{rows}")).unwrap();
        let out = folder.path().join("out");
        let program = ["refrain", "--quiet", "--model", "random:mini", "--output", out.to_str().unwrap()];
        let (_interrupt, interrupts) = Interrupts::manual();
        let mut session = Session::open(&Args::try_parse_from(program).unwrap(), false, interrupts).await.unwrap();
        let (table, prompts) = (table.to_str().unwrap(), folder.path().join("prompts"));
        let flags = ["--max-tokens", "3", "--peak-tflops", "1", "--peak-gbs", "100", "--arms", "naive,refrain"];
        let line = [&["--table", table, "--write-prompts", prompts.to_str().unwrap()][..], &flags].concat();
        run(&mut session, &args(&line)).await.unwrap();

        let (original, distinct) = (lengths(&prompts.join("original")), lengths(&prompts.join("refrain")));
        assert_eq!((original.len(), distinct.len()), (12, 4));
        let out = std::fs::read_to_string(out).unwrap();
        let cells: Vec<Vec<&str>> = out.lines().skip(2).map(|line| line.split(" | ").collect()).collect();
        let column = |name: &str| out.lines().next().unwrap().split(" | ").position(|found| found == name).unwrap();
        let cell = |arm: usize, name: &str| cells[arm][column(name)];
        assert_eq!((cell(0, "calls"), cell(1, "calls")), ("12", "4"), "{out}");
        let total = |lengths: &[usize]| lengths.iter().sum::<usize>().to_string();
        assert_eq!((cell(0, "prompt tokens"), cell(1, "prompt tokens")), (&*total(&original), &*total(&distinct)));
        assert_eq!(cell(0, "computed tokens"), total(&original), "nothing is shared");
        assert_eq!(session.db.models().len(), 1, "the model that takes prompts down is gone");
        // Nothing ends an answer but its length: the last token is chosen, and not run through the model.
        let backend = session.db.model_catalog().backend("mini").await.unwrap();
        assert!(backend.stats().output_tokens >= 3 * 16, "{:?}", backend.stats());
    }
}
