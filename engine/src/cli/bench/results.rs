//! What was measured, a line of JSON each, so that a run can go on where it was and anybody can make tables of it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use serde::{Deserialize, Serialize};

use super::super::error::{Failure, Outcome};

/// A file of these lies in the folder of a report.
pub(super) const FILE: &str = "results.jsonl";

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(super) enum Line {
    /// What the lines after it were measured on.
    Run(RunLine),
    /// One run of a query.
    Query(Box<QueryLine>),
    /// What the prompts of a query would cost at providers.
    Cost(CostLine),
}

/// What a run was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct RunLine {
    pub(super) engine: String,
    pub(super) version: String,
    /// The state of the sources, where it is known.
    pub(super) commit: Option<String>,
    pub(super) command: String,
    /// Processor, cores and memory.
    pub(super) machine: String,
    /// What serves the model.
    pub(super) device: String,
    pub(super) model: String,
    /// At most so many rows of each table.
    pub(super) rows: Option<usize>,
    /// What tables are besides as stored, if they are.
    #[serde(default)]
    pub(super) tables: Option<String>,
    /// Seconds since 1970.
    pub(super) started_at: u64,
}

/// One run of a query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct QueryLine {
    pub(super) query: String,
    pub(super) arm: String,
    pub(super) repetition: usize,
    /// Whether the tables were generated.
    pub(super) generated: bool,
    /// Rows of its first table, and of the result.
    pub(super) table_rows: usize,
    pub(super) rows_out: usize,
    /// From the text of the statement to its last row.
    pub(super) wall_s: f64,
    /// Of this, before the model was asked.
    pub(super) planning_s: f64,
    pub(super) calls: u64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) failed_rows: u64,
    /// The least time for what was computed, where the model and the device are known.
    pub(super) ideal_s: Option<f64>,
    /// Share of the rows of the result that the arm that ran first gave as well.
    pub(super) agreement: Option<f64>,
    /// How good the answers are, where the data knows.
    pub(super) quality: Option<Quality>,
    /// Why it could not be run.
    pub(super) error: Option<String>,
}

/// A mean of what answers score, and the interval in which it lies with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Quality {
    pub(super) mean: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) n: usize,
}

/// What the prompts of a query would cost at a provider, in one order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct CostLine {
    pub(super) query: String,
    pub(super) arm: String,
    pub(super) provider: String,
    pub(super) prompts: usize,
    pub(super) tokens: u64,
    /// Share of tokens that earlier prompts had, whatever the provider makes of it.
    pub(super) hit: f64,
    pub(super) read: u64,
    pub(super) written: u64,
    pub(super) dollars: f64,
    /// What the paper's formula makes of the hit rates, as a share saved against the first arm: as printed, and with what is written billed once.
    pub(super) formula: Option<[f64; 2]>,
}

/// The results in a folder.
#[derive(Debug)]
pub(super) struct Results {
    folder: PathBuf,
    pub(super) lines: Vec<Line>,
}

impl Results {
    /// Reads what a folder has, which is made if need be. A last line that was cut off is left out.
    pub(super) fn open(folder: &Path) -> Outcome<Self> {
        std::fs::create_dir_all(folder).map_err(|error| Failure::file("make", folder, error))?;
        let path = folder.join(FILE);
        let lines = if path.is_file() { read(&path)? } else { vec![] };
        Ok(Results { folder: folder.to_owned(), lines })
    }

    /// Says what is measured from here on. What was measured on something else stays, and does not count as done.
    pub(super) fn begin(&mut self, run: RunLine) -> Outcome<()> {
        let same = |earlier: &RunLine| {
            RunLine { started_at: run.started_at, command: run.command.clone(), ..earlier.clone() } == run
        };
        if let Some(last) = self.lines.iter().rev().find_map(|line| if let Line::Run(run) = line { Some(run) } else { None })
            && same(last)
        {
            return Ok(());
        }
        self.add(Line::Run(run))
    }

    /// Adds a line to the file.
    pub(super) fn add(&mut self, line: Line) -> Outcome<()> {
        let path = self.folder.join(FILE);
        let failed = |error| Failure::file("write", &path, error);
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        let text = serde_json::to_string(&line).map_err(|error| failed(error.into()))?;
        writeln!(file, "{text}").map_err(failed)?;
        self.lines.push(line);
        Ok(())
    }

    /// Returns the lines since the last run began.
    pub(super) fn of_last_run(&self) -> &[Line] {
        let last = self.lines.iter().rposition(|line| matches!(line, Line::Run(_)));
        &self.lines[last.map_or(0, |at| at + 1)..]
    }

    /// Returns whether a query has been run so often in an arm.
    pub(super) fn has(&self, query: &str, arm: &str, repetition: usize) -> bool {
        self.of_last_run().iter().any(|line| match line {
            Line::Query(line) => line.query == query && line.arm == arm && line.repetition == repetition,
            _ => false,
        })
    }

    /// Returns what the prompts of a query were found to cost in an arm, at the first provider.
    pub(super) fn cost(&self, query: &str, arm: &str) -> Option<&CostLine> {
        self.of_last_run().iter().find_map(|line| match line {
            Line::Cost(line) if line.query == query && line.arm == arm => Some(line),
            _ => None,
        })
    }

    /// Returns the digests of the answers that a query was first given, in any order; keeps those of the first that come.
    pub(super) fn first_answers(&self, query: &str, answers: &[u64]) -> Outcome<Vec<u64>> {
        let folder = self.folder.join("answers");
        std::fs::create_dir_all(&folder).map_err(|error| Failure::file("make", &folder, error))?;
        let run = self.lines.iter().filter(|line| matches!(line, Line::Run(_))).count();
        let path = folder.join(format!("{run}-{query}.digests"));
        if let Ok(bytes) = std::fs::read(&path) {
            return Ok(bytes
                .chunks_exact(8)
                .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
                .collect());
        }
        let bytes: Vec<u8> = answers.iter().flat_map(|digest| digest.to_le_bytes()).collect();
        std::fs::write(&path, bytes).map_err(|error| Failure::file("write", &path, error))?;
        Ok(answers.to_vec())
    }
}

/// Reads a file of results, and cuts off a last line that was not written whole.
pub(super) fn read(path: &Path) -> Outcome<Vec<Line>> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::file("read", path, error))?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        let file = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(whole as u64));
        file.map_err(|error| Failure::file("write", path, error))?;
    }
    let lines = text[..whole].lines().enumerate().map(|(at, line)| {
        serde_json::from_str(line).map_err(|error| {
            let place = format!("{}, line {}", path.display(), at + 1);
            Failure::usage(format!("{place} is no result ({error}); remove the line or take another folder"))
        })
    });
    lines.collect()
}

/// Returns a digest of each row of a result, sorted. Rows are compared by their digests, whatever their order: an answer is compared
/// with the other one to the same question only where rows name what was asked, as those of `quality-*` do in the column `key`.
pub(super) fn digests(rows: &RecordBatch) -> Outcome<Vec<u64>> {
    let options = FormatOptions::new().with_null("NULL");
    let columns: Result<Vec<_>, _> = rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options)).collect();
    let columns = columns?;
    let digest = |row: usize| {
        let text: String = columns.iter().map(|column| format!("{}\u{1f}", column.value(row))).collect();
        let hash = blake3::hash(text.as_bytes());
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
    };
    let mut digests: Vec<u64> = (0..rows.num_rows()).map(digest).collect();
    digests.sort_unstable();
    Ok(digests)
}

/// Returns the share of rows that two results have in common, of the larger one. With keys in the rows that is the share of questions
/// that were given the same answer; of a filter only the rows that it keeps are seen, and of an aggregate the one that it gives.
pub(super) fn agreement(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut same) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, same) = (i + 1, j + 1, same + 1),
        }
    }
    match a.len().max(b.len()) {
        0 => 1.0,
        rows => same as f64 / rows as f64,
    }
}

/// Describes this machine: its processor, cores and memory.
pub(super) fn machine() -> String {
    let field = |path: &str, name: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?.split_once(':')?.1.trim().to_owned();
        Some(line)
    };
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kib = field("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let memory = kib.map_or_else(String::new, |kib| format!(", {} GiB", (kib + (1 << 19)) >> 20));
    format!("{processor}, {cores} cores{memory}")
}

/// Returns the state of the sources that the program was built from, if they are still there.
pub(super) fn commit() -> Option<String> {
    let args = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=12"];
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| output.status.success() && !text.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, StringArray};

    use super::*;

    fn run(model: &str, started_at: u64) -> RunLine {
        let text = |text: &str| text.to_owned();
        RunLine {
            engine: text("refrain"),
            version: text("1"),
            commit: None,
            command: format!("bench {started_at}"),
            machine: machine(),
            device: text("cpu"),
            model: text(model),
            rows: None,
            tables: None,
            started_at,
        }
    }

    fn query(arm: &str) -> Line {
        let line = QueryLine {
            query: "q".to_owned(),
            arm: arm.to_owned(),
            repetition: 0,
            generated: true,
            table_rows: 1,
            rows_out: 1,
            wall_s: 1.0,
            planning_s: 0.1,
            calls: 1,
            prompt_tokens: 2,
            cached_tokens: 1,
            output_tokens: 1,
            failed_rows: 0,
            ideal_s: None,
            agreement: Some(1.0),
            quality: Some(Quality { mean: 0.5, low: 0.4, high: 0.6, n: 9 }),
            error: None,
        };
        Line::Query(Box::new(line))
    }

    #[test]
    fn a_run_goes_on_where_it_was_on_the_same_machine_and_model() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::open(folder.path()).unwrap();
        results.begin(run("a", 1)).unwrap();
        results.add(query("cache")).unwrap();
        let path = folder.path().join(FILE);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        write!(file, "{{\"is\": \"que").unwrap();
        drop(file);

        let mut again = Results::open(folder.path()).unwrap();
        assert_eq!(again.lines, results.lines, "the line that was cut off is left out");
        again.begin(run("a", 2)).unwrap();
        assert!(again.has("q", "cache", 0) && !again.has("q", "cache", 1) && !again.has("q", "refrain", 0));
        again.begin(run("b", 3)).unwrap();
        assert!(!again.has("q", "cache", 0), "another model has measured nothing yet");

        std::fs::write(&path, "{\"is\": \"nothing\"}\n").unwrap();
        let error = Results::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("another folder"), "{error}");
    }

    #[test]
    fn answers_are_compared_with_the_first_in_any_order() {
        let batch = |texts: &[&str]| {
            let texts: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
            digests(&RecordBatch::try_from_iter([("a", texts)]).unwrap()).unwrap()
        };
        assert_eq!(agreement(&batch(&["a", "b", "b"]), &batch(&["b", "a", "b"])), 1.0);
        assert_eq!(agreement(&batch(&["a", "b"]), &batch(&["a", "c", "d", "e"])), 0.25);
        assert_eq!(agreement(&[], &[]), 1.0);
        // Two answers that changed places are the same rows, unless each says to what it is the answer.
        let keyed = |answers: [&str; 2]| {
            let column = |texts: [&str; 2]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
            let columns = [("key", column(["first", "second"])), ("answer", column(answers)), ("label", column(["a", "a"]))];
            digests(&RecordBatch::try_from_iter(columns).unwrap()).unwrap()
        };
        assert_eq!(agreement(&batch(&["a", "b"]), &batch(&["b", "a"])), 1.0);
        assert_eq!(agreement(&keyed(["a", "b"]), &keyed(["b", "a"])), 0.0);
        assert_eq!(agreement(&keyed(["a", "b"]), &keyed(["a", "c"])), 0.5);
        let folder = tempfile::tempdir().unwrap();
        let results = Results::open(folder.path()).unwrap();
        assert_eq!(results.first_answers("q", &[1, 2]).unwrap(), [1, 2]);
        assert_eq!(results.first_answers("q", &[3]).unwrap(), [1, 2]);
    }
}
