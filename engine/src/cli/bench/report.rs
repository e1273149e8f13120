//! Results as pages: HTML with plots, and Markdown.

use std::fs;
use std::path::Path;

use minijinja::{AutoEscape, Environment};
use refrain_datasets::queries;
use serde::Serialize;

use super::super::error::{Failure, Outcome};
use super::super::session::Session;
use super::arms::ARMS;
use super::results::{CostLine, Line, Quality, QueryLine, Results, RunLine};

/// The arm that speed-ups are over: what a server with a prefix cache does with the rows as they are stored.
const BASE: &str = "cache";
/// The arm with everything on, which others are compared with by leaving a feature out.
const WHOLE: &str = "refrain";

/// Everything that a page shows.
#[derive(Debug, Serialize)]
struct Report {
    runs: Vec<RunReport>,
    arms: Vec<(&'static str, &'static str)>,
}

/// What was measured on one machine and model.
#[derive(Debug, Serialize)]
struct RunReport {
    run: RunLine,
    queries: Vec<QueryReport>,
    costs: Vec<CostReport>,
}

/// One query, and what each arm did with it.
#[derive(Debug, Serialize)]
struct QueryReport {
    name: String,
    /// The comment that its text begins with.
    about: String,
    sql: String,
    generated: bool,
    table_rows: usize,
    arms: Vec<ArmReport>,
    /// Speed-up over the stored order with a cache, here and in the paper.
    speedup: Option<f64>,
    paper_speedup: Option<f64>,
    /// Shares of prompt tokens found in the cache as stored and in the best order, in the paper.
    paper_hits: Option<[f64; 2]>,
}

/// One arm of a query: medians over its repetitions.
#[derive(Debug, Serialize)]
struct ArmReport {
    name: String,
    wall_s: f64,
    fastest_s: f64,
    slowest_s: f64,
    repetitions: usize,
    /// Length of its bar, as a share of the longest of the query.
    bar: f64,
    planning_s: f64,
    calls: u64,
    prompt_tokens: u64,
    computed_tokens: u64,
    hit: f64,
    failed_rows: u64,
    /// The least possible time over the time it took.
    of_limit: Option<f64>,
    speedup: Option<f64>,
    /// Its time over that of the arm with everything on.
    over_whole: Option<f64>,
    agreement: Option<f64>,
    quality: Option<Quality>,
    error: Option<String>,
}

/// What one query's prompts cost at one provider.
#[derive(Debug, Serialize)]
struct CostReport {
    query: String,
    provider: String,
    arms: Vec<CostLine>,
    /// Share of the bill that the last arm saves over the first.
    saved: f64,
}

/// Writes `report.html` and `report.md` beside the results, and says so.
pub(super) fn write(session: &mut Session, folder: &Path, lines: &[Line]) -> Outcome<()> {
    let report = Report::of(lines);
    for (name, template) in
        [("report.html", include_str!("report.html.jinja")), ("report.md", include_str!("report.md.jinja"))]
    {
        let path = folder.join(name);
        fs::write(&path, render(name, template, &report)?).map_err(|error| Failure::file("write", &path, error))?;
    }
    session.print(&render("report.md", include_str!("report.md.jinja"), &report)?)?;
    session.notice(&format!("wrote {}", folder.join("report.html").display()));
    Ok(())
}

/// Makes the report of what a folder has.
pub(super) fn rewrite(session: &mut Session, folder: &Path) -> Outcome<()> {
    let results = Results::open(folder)?;
    if results.lines.is_empty() {
        return Err(Failure::usage(format!("{} has no results; run `refrain bench quick` first", folder.display())));
    }
    write(session, folder, &results.lines)
}

fn render(name: &str, template: &str, report: &Report) -> Outcome<String> {
    let mut environment = Environment::new();
    let escape = if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None };
    environment.set_auto_escape_callback(move |_| escape);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.add_filter("fixed", |number: f64, digits: usize| format!("{number:.digits$}"));
    environment.add_filter("percent", |share: f64| format!("{:.1} %", 100.0 * share));
    let rendered = environment.render_str(template, report);
    rendered.map_err(|error| Failure::usage(format!("cannot make {name}: {error}")))
}

impl Report {
    fn of(lines: &[Line]) -> Self {
        let mut runs: Vec<RunReport> = vec![];
        let starts: Vec<usize> = (0..lines.len()).filter(|at| matches!(lines[*at], Line::Run(_))).collect();
        for (number, &start) in starts.iter().enumerate() {
            let Line::Run(run) = &lines[start] else { continue };
            let end = starts.get(number + 1).copied().unwrap_or(lines.len());
            let of_run = &lines[start + 1..end];
            if !of_run.is_empty() {
                runs.push(RunReport { run: run.clone(), queries: queries_of(of_run), costs: costs_of(of_run) });
            }
        }
        let shown = |name: &str| lines.iter().any(|line| matches!(line, Line::Query(line) if line.arm == name));
        Report { runs, arms: ARMS.iter().filter(|arm| shown(arm.name)).map(|arm| (arm.name, arm.about)).collect() }
    }
}

fn queries_of(lines: &[Line]) -> Vec<QueryReport> {
    let measured: Vec<&QueryLine> =
        lines.iter().filter_map(|line| if let Line::Query(line) = line { Some(&**line) } else { None }).collect();
    distinct(measured.iter().map(|line| line.query.as_str())).into_iter().map(|name| query_of(name, &measured)).collect()
}

fn query_of(name: &str, measured: &[&QueryLine]) -> QueryReport {
    let of_query: Vec<&QueryLine> = measured.iter().copied().filter(|line| line.query == name).collect();
    let known = queries::query(name);
    let arms: Vec<(String, Vec<&QueryLine>)> = distinct(of_query.iter().map(|line| line.arm.as_str()))
        .into_iter()
        .map(|arm| (arm.to_owned(), of_query.iter().copied().filter(|line| line.arm == arm).collect()))
        .collect();
    let wall =
        |arm: &str| arms.iter().find(|(name, _)| name == arm).and_then(|(_, runs)| median(runs)).map(|line| line.wall_s);
    let (base, whole) = (wall(BASE), wall(WHOLE));
    let longest = arms.iter().filter_map(|(_, runs)| median(runs)).map(|line| line.wall_s).fold(f64::EPSILON, f64::max);
    let (about, sql) = known.map_or_else(Default::default, |query| about_and_statement(query.sql));
    let paper = known.and_then(|query| query.paper);
    QueryReport {
        name: name.to_owned(),
        about,
        sql,
        generated: of_query.iter().any(|line| line.generated),
        table_rows: of_query.iter().map(|line| line.table_rows).max().unwrap_or_default(),
        speedup: base.zip(whole).map(|(base, whole)| base / whole.max(f64::EPSILON)),
        paper_speedup: paper.map(|paper| paper.speedup_over_stored),
        paper_hits: paper.map(|paper| [paper.hit_rate_stored / 100.0, paper.hit_rate / 100.0]),
        arms: arms.iter().map(|(name, runs)| arm_of(name, runs, base, whole, longest)).collect(),
    }
}

fn arm_of(name: &str, runs: &[&QueryLine], base: Option<f64>, whole: Option<f64>, longest: f64) -> ArmReport {
    // An arm that was never run to its end shows why.
    let middle = median(runs).unwrap_or(runs[0]);
    let ran = || runs.iter().filter(|line| line.error.is_none()).map(|line| line.wall_s);
    let over =
        |other: Option<f64>| other.filter(|_| middle.error.is_none()).map(|other| other / middle.wall_s.max(f64::EPSILON));
    ArmReport {
        name: name.to_owned(),
        wall_s: middle.wall_s,
        fastest_s: ran().fold(middle.wall_s, f64::min),
        slowest_s: ran().fold(middle.wall_s, f64::max),
        repetitions: runs.len(),
        bar: middle.wall_s / longest,
        planning_s: middle.planning_s,
        calls: middle.calls,
        prompt_tokens: middle.prompt_tokens,
        computed_tokens: middle.prompt_tokens.saturating_sub(middle.cached_tokens),
        hit: middle.cached_tokens as f64 / middle.prompt_tokens.max(1) as f64,
        failed_rows: middle.failed_rows,
        of_limit: middle.ideal_s.map(|ideal| ideal / middle.wall_s.max(f64::EPSILON)),
        speedup: over(base),
        over_whole: over(whole).map(|ratio| 1.0 / ratio.max(f64::EPSILON)),
        agreement: middle.agreement,
        quality: middle.quality,
        error: middle.error.clone(),
    }
}

fn costs_of(lines: &[Line]) -> Vec<CostReport> {
    let costs: Vec<&CostLine> =
        lines.iter().filter_map(|line| if let Line::Cost(line) = line { Some(line) } else { None }).collect();
    let mut reports = vec![];
    for query in distinct(costs.iter().map(|line| line.query.as_str())) {
        for provider in distinct(costs.iter().map(|line| line.provider.as_str())) {
            let arms: Vec<CostLine> = costs
                .iter()
                .filter(|line| line.query == query && line.provider == provider)
                .map(|line| (*line).clone())
                .collect();
            let (Some(first), Some(last)) = (arms.first(), arms.last()) else { continue };
            let saved = 1.0 - last.dollars / first.dollars.max(f64::EPSILON);
            reports.push(CostReport { query: query.to_owned(), provider: provider.to_owned(), saved, arms });
        }
    }
    reports
}

/// Returns the run whose time is in the middle of those that came to their end.
fn median<'a>(runs: &[&'a QueryLine]) -> Option<&'a QueryLine> {
    let mut ran: Vec<&QueryLine> = runs.iter().copied().filter(|line| line.error.is_none()).collect();
    ran.sort_by(|a, b| a.wall_s.total_cmp(&b.wall_s));
    ran.get(ran.len().saturating_sub(1) / 2).copied()
}

/// Returns each text once, in the order in which they come.
fn distinct<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen: Vec<&str> = vec![];
    for text in texts {
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    seen
}

/// Splits the comment that a file of SQL begins with from its statement.
fn about_and_statement(sql: &str) -> (String, String) {
    let comment: Vec<&str> = sql.lines().map_while(|line| line.strip_prefix("--")).map(str::trim).collect();
    let statement: Vec<&str> = sql.lines().skip(comment.len()).collect();
    (comment.join(" "), statement.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(query: &str, arm: &str, wall_s: f64, error: Option<&str>) -> Line {
        Line::Query(Box::new(QueryLine {
            query: query.to_owned(),
            arm: arm.to_owned(),
            repetition: 0,
            generated: false,
            table_rows: 10,
            rows_out: 10,
            wall_s,
            planning_s: 0.0,
            calls: 10,
            prompt_tokens: 1000,
            cached_tokens: 750,
            output_tokens: 10,
            failed_rows: 0,
            ideal_s: Some(0.5),
            agreement: Some(0.9),
            quality: None,
            error: error.map(str::to_owned),
        }))
    }

    fn run() -> Line {
        Line::Run(RunLine {
            engine: "refrain".to_owned(),
            version: "1".to_owned(),
            commit: Some("abc".to_owned()),
            command: "refrain bench <quick>".to_owned(),
            machine: "a machine".to_owned(),
            device: "cpu".to_owned(),
            model: "mini".to_owned(),
            rows: Some(10),
            started_at: 0,
        })
    }

    #[test]
    fn a_report_has_medians_speedups_and_what_the_paper_says() {
        let name = "movies-filter";
        let walls = [("cache", 8.0), ("refrain", 3.0), ("refrain", 2.0), ("refrain", 9.0), ("no-dedup", 6.0)];
        let lines: Vec<Line> = [run()].into_iter().chain(walls.map(|(arm, wall)| line(name, arm, wall, None))).collect();
        let report = Report::of(&lines);
        let query = &report.runs[0].queries[0];
        assert_eq!((query.speedup, query.paper_speedup), (Some(8.0 / 3.0), Some(2.5)));
        let whole = &query.arms[1];
        assert_eq!((whole.wall_s, whole.fastest_s, whole.slowest_s, whole.repetitions), (3.0, 2.0, 9.0, 3));
        assert_eq!((whole.hit, whole.computed_tokens, whole.of_limit), (0.75, 250, Some(0.5 / 3.0)));
        assert!((query.arms[2].over_whole.unwrap() - 2.0).abs() < 1e-9);
        assert!(query.sql.starts_with("SELECT") && query.about.contains("2403.05821"));
    }

    #[test]
    fn pages_are_made_whole_and_escaped() {
        let lines =
            [run(), line("movies-filter", "cache", 2.0, None), line("movies-filter", "ggr", 0.0, Some("no <b>room</b>"))];
        let report = Report::of(&lines);
        let html = render("report.html", include_str!("report.html.jinja"), &report).unwrap();
        assert!(html.contains("refrain bench &lt;quick&gt;") && html.contains("no &lt;b&gt;room"), "{html}");
        assert!(html.trim_end().ends_with("</html>"));
        let markdown = render("report.md", include_str!("report.md.jinja"), &report).unwrap();
        assert!(markdown.contains("refrain bench <quick>") && markdown.contains("| movies-filter | cache |"), "{markdown}");
    }
}
