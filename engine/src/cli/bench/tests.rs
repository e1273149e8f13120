//! Whole benchmarks, from the command line to the files that they leave: a random model, and a few rows.

use std::fs;
use std::path::Path;

use clap::Parser;
use serde_json::Value;

use super::super::args::{Args, Command};
use super::super::error::Outcome;
use super::super::interrupt::Interrupts;
use super::super::session::Session;
use super::results::{self, CostLine, Line, QueryLine, RunLine};
use super::run;
use super::suite::NO_DEVICE;

/// A folder for what benchmarks leave.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs `refrain bench LINE`, and returns what it printed, and the session.
    async fn bench(&self, line: &str) -> Outcome<(String, Session)> {
        let out = self.path("out");
        let program = ["refrain", "--quiet", "--model", "random:mini", "--output", out.as_str(), "bench"];
        let args = Args::try_parse_from(program.into_iter().chain(line.split(' '))).unwrap();
        let Some(Command::Bench(bench)) = &args.command else { panic!("{line} is no benchmark") };
        let (_interrupt, interrupts) = Interrupts::manual();
        let mut session = Session::open(&args, false, interrupts).await?;
        run(&mut session, bench).await?;
        Ok((fs::read_to_string(out).unwrap(), session))
    }

    fn lines(&self, folder: &str) -> Vec<Line> {
        results::read(&self.0.path().join(folder).join(results::FILE)).unwrap()
    }
}

/// Tells lines apart; there is one run among them.
fn told_apart(lines: &[Line]) -> (&RunLine, Vec<&QueryLine>, Vec<&CostLine>) {
    let (mut runs, mut queries, mut costs) = (vec![], vec![], vec![]);
    for line in lines {
        match line {
            Line::Run(line) => runs.push(line),
            Line::Query(line) => queries.push(&**line),
            Line::Cost(line) => costs.push(line),
        }
    }
    assert_eq!(runs.len(), 1, "{runs:?}");
    (runs[0], queries, costs)
}

fn is_loaded(session: &Session) -> bool {
    session.db.models().iter().any(|model| model.loaded.is_some())
}

#[tokio::test]
async fn quick_runs_each_query_in_each_arm_bills_it_and_goes_on_where_it_was() {
    let place = Place::new();
    let queries = ["movies-filter", "movies-aggregation", "fever-rag-prepared"];
    let line = format!(
        "quick --generated --rows 6 --repetitions 2 --arms cache,refrain --commit abc --queries {} --report {}",
        queries.join(","),
        place.path("report")
    );
    let (printed, session) = place.bench(&line).await.unwrap();
    assert!(is_loaded(&session));
    let lines = place.lines("report");
    let (run, measured, costs) = told_apart(&lines);
    assert_eq!((run.model.as_str(), run.commit.as_deref(), run.rows), ("mini", Some("abc"), Some(6)));
    assert!(run.device != NO_DEVICE && run.tables.is_none(), "{run:?}");
    let found: Vec<(&str, &str, usize)> =
        measured.iter().map(|line| (line.query.as_str(), line.arm.as_str(), line.repetition)).collect();
    let expected = queries.iter().flat_map(|query| {
        [("cache", 0), ("refrain", 0), ("cache", 1), ("refrain", 1)].map(|(arm, repetition)| (*query, arm, repetition))
    });
    // Queries run in the order of the catalogue, which is that above.
    assert_eq!(found, expected.collect::<Vec<_>>());
    for line in &measured {
        assert!(line.generated && line.error.is_none() && line.failed_rows == 0 && line.table_rows == 6, "{line:?}");
        assert!((1..=6).contains(&line.calls) && line.wall_s > 0.0 && line.output_tokens >= line.calls, "{line:?}");
        assert!(line.arm != "cache" || line.calls == 6 && line.agreement == Some(1.0), "{line:?}");
    }
    assert!(measured.iter().all(|line| line.query != "movies-aggregation" || line.rows_out == 1));
    assert!(measured.iter().all(|line| line.query != "fever-rag-prepared" || line.rows_out == 6));
    assert_eq!(costs.len(), 3 * 2 * 2, "queries, arms and providers");
    let report = fs::read_to_string(place.path("report/report.md")).unwrap();
    assert_eq!(printed.trim_end(), report.trim_end());
    let page = fs::read_to_string(place.path("report/report.html")).unwrap();
    assert!(page.contains("<svg class=\"plot\"") && page.trim_end().ends_with("</html>"));

    // Everything is there: nothing is measured again.
    let (printed, _) = place.bench(&line).await.unwrap();
    assert_eq!(place.lines("report"), lines);
    assert_eq!(printed.trim_end(), report.trim_end());
    // One arm more is measured alone.
    place.bench(&line.replace("cache,refrain", "cache,ggr,refrain")).await.unwrap();
    assert_eq!(place.lines("report").len(), lines.len() + 3 * (2 + 2));

    fs::remove_file(place.path("report/report.html")).unwrap();
    place.bench(&format!("report {}", place.path("report"))).await.unwrap();
    assert!(fs::read_to_string(place.path("report/report.html")).unwrap().contains("<svg class=\"plot\""));
    let error = place.bench(&format!("report {}", place.path("empty"))).await.err().unwrap();
    assert!(error.to_string().contains("has no results"), "{error}");
}

fn numbers<const BYTES: usize>(path: &str) -> Vec<u64> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    fs::read(path).unwrap().chunks_exact(BYTES).map(number).collect()
}

#[tokio::test]
async fn export_writes_prompts_and_says_what_it_wrote() {
    let place = Place::new();
    for (query, output) in [("movies-filter", 1), ("movies-projection", 64)] {
        let line = format!(
            "export --query {query} --orders none,ggr --generated --rows 6 --size paper --out {}",
            place.path("prompts")
        );
        let (printed, session) = place.bench(&line).await.unwrap();
        assert!(!is_loaded(&session), "no model is asked");
        let told: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(
            (told["query"].as_str(), told["rows"].as_u64(), told["model"].as_str()),
            (Some(query), Some(6), Some("mini"))
        );
        for order in ["none", "ggr"] {
            let file = |end: &str| place.path(&format!("prompts/{order}.{end}"));
            let offsets = numbers::<8>(&file("offsets"));
            let tokens = numbers::<4>(&file("tokens"));
            assert_eq!((offsets.len(), offsets[0], offsets[6]), (7, 0, tokens.len() as u64));
            assert!(offsets.is_sorted_by(|a, b| a < b) && tokens.iter().all(|token| *token < 16_384));
            assert_eq!(numbers::<4>(&file("outputs")), [output; 6]);
            let told = &told["orders"][order];
            assert_eq!((told["prompts"].as_u64(), told["tokens"].as_u64()), (Some(6), Some(tokens.len() as u64)));
            assert!((0.0..1.0).contains(&told["hit_rate"].as_f64().unwrap()), "{told}");
        }
        let before = fs::read(place.path("prompts/ggr.tokens")).unwrap();
        assert_eq!(place.bench(&line).await.unwrap().0, printed);
        assert_eq!(fs::read(place.path("prompts/ggr.tokens")).unwrap(), before);
    }
    let error = place.bench("export --query none --out nowhere").await.err().unwrap();
    assert!(error.to_string().contains("there is no query \"none\""), "{error}");
}

#[tokio::test]
async fn api_cost_bills_prompts_and_loads_no_model() {
    let place = Place::new();
    let line = format!("api-cost --generated --rows 6 --shuffled --commit abc --report {}", place.path("report"));
    let (printed, session) = place.bench(&line).await.unwrap();
    assert!(!is_loaded(&session));
    let lines = place.lines("report");
    let (run, measured, costs) = told_apart(&lines);
    assert_eq!((run.device.as_str(), run.tables.as_deref()), (NO_DEVICE, Some("shuffled with seed 1")));
    assert!(measured.is_empty());
    let arms: Vec<&str> = costs.iter().map(|line| line.arm.as_str()).collect();
    assert_eq!(arms, ["cache", "cache", "ggr", "ggr", "refrain", "refrain"]);
    assert!(costs.iter().all(|line| line.prompts <= 6 && line.dollars > 0.0), "{costs:?}");
    assert!(printed.starts_with("## mini\n") && !printed.contains("| query | arm |"), "{printed}");
    assert!(printed.contains("; tables shuffled with seed 1.\n") && printed.contains("\n\nArms:\n\n- `cache`"), "{printed}");
    place.bench(&line).await.unwrap();
    assert_eq!(place.lines("report"), lines);
}

#[tokio::test]
async fn tpch_runs_without_a_model() {
    let place = Place::new();
    let line = format!("tpch --scale 0.01 --queries tpch-q1,tpch-q6 --commit abc --report {}", place.path("report"));
    let (printed, session) = place.bench(&line).await.unwrap();
    assert!(!is_loaded(&session));
    let lines = place.lines("report");
    let (run, measured, costs) = told_apart(&lines);
    assert_eq!((run.model.as_str(), run.device.as_str()), ("SQL", NO_DEVICE));
    let rows: Vec<(&str, usize, u64)> =
        measured.iter().map(|line| (line.query.as_str(), line.rows_out, line.calls)).collect();
    assert_eq!(rows, [("tpch-q1", 4, 0), ("tpch-q6", 1, 0)]);
    assert!(costs.is_empty() && printed.starts_with("## SQL\n"), "{printed}");
    place.bench(&line).await.unwrap();
    assert_eq!(place.lines("report"), lines);
}

#[tokio::test]
async fn quality_judges_real_tables_and_leaves_generated_ones_out() {
    let place = Place::new();
    let columns = "reviewcontent,reviewtype,topcritic,rottentomatoeslink,movietitle,movieinfo,genres,productioncompany";
    let row = |row: usize| {
        let verdict = ["Fresh", "Rotten"][row % 2];
        format!("review {row},{verdict},no,m/{},film {},about film {},Drama,Studio\n", row % 2, row % 2, row % 2)
    };
    let rows: String = (0..6).map(row).collect();
    fs::create_dir(place.path("data")).unwrap();
    fs::write(place.path("data/movies.csv"), format!("{columns}\n{rows}")).unwrap();
    let line = format!(
        "quality --queries quality-movies --arms cache,refrain --commit abc --data {} --report {}",
        place.path("data"),
        place.path("report")
    );
    let (printed, _) = place.bench(&line).await.unwrap();
    let lines = place.lines("report");
    let (_, measured, costs) = told_apart(&lines);
    assert_eq!((measured.len(), costs.len()), (2, 0));
    for line in &measured {
        assert!(!line.generated && line.error.is_none() && line.rows_out == 6, "{line:?}");
        assert_eq!(line.quality.map(|quality| quality.n), Some(6));
    }
    assert_eq!(measured[0].agreement, Some(1.0));
    assert!(printed.contains("so that answers are compared one by one"), "{printed}");
    place.bench(&line).await.unwrap();
    assert_eq!(place.lines("report"), lines);

    let generated = line.replace("/report", "/other") + " --generated";
    place.bench(&generated).await.unwrap();
    assert_eq!(place.lines("other").len(), 1, "only what it would have been measured on");
}

#[test]
fn results_of_the_project_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results");
    for entry in fs::read_dir(folder).unwrap() {
        let lines = results::read(&entry.unwrap().path().join(results::FILE)).unwrap();
        assert!(lines.len() > 1);
    }
}
