//! Results as pages: HTML with plots, and Markdown.

use std::fs;
use std::path::Path;

use minijinja::{AutoEscape, Environment};
use refrain_datasets::queries;
use serde::Serialize;

use super::super::error::{Failure, Outcome};
use super::super::session::Session;
use super::arms::{ARMS, PEER_ARMS};
use super::plots::{Plot, Point, plot};
use super::results::{CostLine, Line, Quality, QueryLine, Results, RunLine};
use super::suite::NO_DEVICE;

/// The arm that speed-ups are over: what a server with a prefix cache does with the rows as they are stored.
const BASE: &str = "cache";
/// The arm with everything on, which others are compared with by leaving a feature out.
const WHOLE: &str = "refrain";

/// What plots show, as far as it was measured: arms, and what the paper reports. Each has a colour in the template.
static SERIES: [&str; 8] = [BASE, "rows", "ggr", WHOLE, "vllm", "vllm-ggr", "the paper, as stored", "the paper's GGR"];

/// The engine whose runs others are put beside.
const OURS: &str = "refrain";

/// Everything that a page shows.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    runs: Vec<RunReport>,
    arms: Vec<(&'static str, &'static str)>,
}

/// What was measured on one machine and model.
#[derive(Debug, Serialize)]
struct RunReport {
    /// The model, and the device if one was asked.
    title: String,
    run: RunLine,
    /// Runs of other engines over the same prompts.
    peers: Vec<RunLine>,
    /// Names of the arms of those.
    peer_arms: Vec<String>,
    plots: Vec<Plot>,
    /// Whether answers were judged.
    is_judged: bool,
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
    /// Time of the fastest arm of another engine over that of the arm with everything on.
    over_peer: Option<f64>,
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
    /// Length of its bar, and where its spread begins and ends, as shares of the longest time of the query.
    bar: [f64; 3],
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
    /// Share of the bill that the arm with everything on saves over the stored order.
    saved: f64,
    /// What the paper's formula makes of the hit rates of the two.
    formula: Option<[f64; 2]>,
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

pub(super) fn render(name: &str, template: &str, report: &Report) -> Outcome<String> {
    let mut environment = Environment::new();
    let escape = if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None };
    environment.set_auto_escape_callback(move |_| escape);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.add_filter("fixed", |number: f64, digits: usize| format!("{number:.digits$}"));
    environment.add_filter("percent", percent);
    let rendered = environment.render_str(template, report);
    rendered.map_err(|error| Failure::usage(format!("cannot make {name}: {error}")))
}

impl Report {
    /// Arranges lines by run. A run of another engine is put beside the one of ours that stands before it.
    pub(super) fn of(lines: &[Line]) -> Self {
        let mut parts: Vec<(RunLine, Vec<RunLine>, Vec<Line>)> = vec![];
        for line in lines {
            match (line, parts.last_mut()) {
                (Line::Run(run), Some((_, peers, _))) if run.engine != OURS => peers.push(run.clone()),
                (Line::Run(run), _) => parts.push((run.clone(), vec![], vec![])),
                (line, Some((_, _, of_run))) => of_run.push(line.clone()),
                (_, None) => {}
            }
        }
        parts.retain(|(_, _, of_run)| !of_run.is_empty());
        let runs = parts.into_iter().map(|(run, peers, of_run)| RunReport::of(run, peers, &of_run)).collect();
        let shown = |name: &str| {
            lines.iter().any(|line| match line {
                Line::Query(line) => line.arm == name,
                Line::Cost(line) => line.arm == name,
                Line::Run(_) => false,
            })
        };
        let arms = ARMS.iter().map(|arm| (arm.name, arm.about)).chain(PEER_ARMS);
        Report { runs, arms: arms.filter(|arm| shown(arm.0)).collect() }
    }
}

impl RunReport {
    fn of(run: RunLine, peers: Vec<RunLine>, lines: &[Line]) -> Self {
        let (queries, costs) = (queries_of(lines), costs_of(lines));
        let title = if run.device == NO_DEVICE { run.model.clone() } else { format!("{} on {}", run.model, run.device) };
        let has = |name: &str| queries.iter().any(|query| query.arms.iter().any(|arm| arm.name == name));
        let peer_arms = PEER_ARMS.iter().filter(|arm| has(arm.0)).map(|arm| arm.0.to_owned()).collect();
        let plots = [speedups(&queries), hits(&queries), bills(&costs)].into_iter().flatten().collect();
        let is_judged = queries.iter().any(|query| query.arms.iter().any(|arm| arm.quality.is_some()));
        RunReport { title, run, peers, peer_arms, plots, is_judged, queries, costs }
    }
}

/// How much faster each arm is than the stored order with a cache, and the paper's GGR. The spread is that of the arm alone.
fn speedups(queries: &[QueryReport]) -> Option<Plot> {
    let point = |arm: &ArmReport| {
        let value = arm.speedup.filter(|_| arm.name != BASE)?;
        let spread = [arm.slowest_s, arm.fastest_s].map(|wall| value * arm.wall_s / wall.max(f64::EPSILON));
        Some(Point { value, spread: (arm.repetitions > 1).then_some(spread) })
    };
    let measured = queries.iter().filter(|query| query.arms.iter().any(|arm| arm.speedup.is_some()));
    let groups = measured.map(|query| query.points(point, [None, query.paper_speedup]));
    plot("Speed-up over the stored order with a prefix cache", &SERIES, groups.collect(), |value| format!("{value:.2} ×"))
}

/// Shares of prompt tokens that were found in the cache, here and in the paper.
fn hits(queries: &[QueryReport]) -> Option<Plot> {
    let point = |arm: &ArmReport| arm.error.is_none().then(|| Point::exact(arm.hit));
    let measured = queries.iter().filter(|query| query.arms.iter().any(|arm| arm.prompt_tokens > 0));
    let groups = measured.map(|query| query.points(point, [0, 1].map(|at| query.paper_hits.map(|hits| hits[at]))));
    plot("Prompt tokens found in the cache", &SERIES, groups.collect(), percent)
}

/// What prompts cost in each arm, as a share of what they cost as stored.
fn bills(costs: &[CostReport]) -> Option<Plot> {
    let groups = costs.iter().map(|cost| {
        let find = |name: &str| cost.arms.iter().find(|arm| arm.arm == name).map(|arm| arm.dollars);
        let stored = find(BASE).unwrap_or_default().max(f64::EPSILON);
        let points = SERIES.iter().map(|arm| find(arm).map(|dollars| Point::exact(dollars / stored)));
        (format!("{}, {}", cost.query, cost.provider), points.collect())
    });
    plot("Cost of the prompts, as a share of that of the stored order", &SERIES, groups.collect(), percent)
}

impl QueryReport {
    /// Returns a point for each of [`SERIES`]: those of arms, and what the paper reports as stored and in its order.
    fn points(&self, of: impl Fn(&ArmReport) -> Option<Point>, of_paper: [Option<f64>; 2]) -> (String, Vec<Option<Point>>) {
        let (arms, _) = SERIES.split_at(SERIES.len() - of_paper.len());
        let of_arm = |name: &&str| self.arms.iter().find(|arm| arm.name == *name).and_then(&of);
        let of_paper = of_paper.map(|value| value.map(Point::exact));
        (self.name.clone(), arms.iter().map(of_arm).chain(of_paper).collect())
    }
}

/// Writes a share.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
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
    let longest = of_query.iter().map(|line| line.wall_s).fold(f64::EPSILON, f64::max);
    let peer = PEER_ARMS.iter().filter_map(|arm| wall(arm.0)).reduce(f64::min);
    let (about, sql) = known.map_or_else(Default::default, |query| about_and_statement(query.sql));
    let paper = known.and_then(|query| query.paper);
    QueryReport {
        name: name.to_owned(),
        about,
        sql,
        generated: of_query.iter().any(|line| line.generated),
        table_rows: of_query.iter().map(|line| line.table_rows).max().unwrap_or_default(),
        over_peer: peer.zip(whole).map(|(peer, whole)| peer / whole.max(f64::EPSILON)),
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
    let (fastest_s, slowest_s) = (ran().fold(middle.wall_s, f64::min), ran().fold(middle.wall_s, f64::max));
    ArmReport {
        name: name.to_owned(),
        wall_s: middle.wall_s,
        fastest_s,
        slowest_s,
        repetitions: runs.len(),
        bar: [middle.wall_s, fastest_s, slowest_s].map(|wall| wall / longest),
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
            let find = |name: &str| arms.iter().find(|arm| arm.arm == name);
            let (Some(stored), Some(best)) = (find(BASE).or(arms.first()), find(WHOLE).or(arms.last())) else { continue };
            let saved = 1.0 - best.dollars / stored.dollars.max(f64::EPSILON);
            let formula = best.formula;
            reports.push(CostReport { query: query.to_owned(), provider: provider.to_owned(), saved, formula, arms });
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
            tables: None,
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
    fn a_run_of_another_engine_is_put_beside_ours() {
        let Line::Run(ours) = run() else { panic!() };
        let peer = Line::Run(RunLine { engine: "vllm".to_owned(), version: "0.25.1".to_owned(), ..ours });
        let name = "beer-filter";
        let lines = [
            run(),
            line(name, "cache", 8.0, None),
            line(name, "refrain", 2.0, None),
            peer,
            line(name, "vllm", 9.0, None),
            line(name, "vllm-ggr", 3.0, None),
        ];
        let report = Report::of(&lines);
        let [part] = &report.runs[..] else { panic!("{report:?}") };
        let query = &part.queries[0];
        assert_eq!((query.arms.len(), query.over_peer, query.speedup), (4, Some(1.5), Some(4.0)));
        assert_eq!(query.arms[3].over_whole, Some(1.5));
        assert_eq!(
            (part.peers[0].version.as_str(), &part.peer_arms[..]),
            ("0.25.1", &["vllm", "vllm-ggr"].map(str::to_owned)[..])
        );
        assert!(report.arms.iter().any(|(name, _)| *name == "vllm-ggr"));
        let markdown = render("report.md", include_str!("report.md.jinja"), &report).unwrap();
        assert!(markdown.contains("vllm 0.25.1") && markdown.contains("| beer-filter | vllm-ggr | 3.00 |"), "{markdown}");
        let html = render("report.html", include_str!("report.html.jinja"), &report).unwrap();
        assert!(html.contains("1.50 ×") && html.contains("2.67 ×"), "{html}");
    }

    #[test]
    fn bills_alone_make_no_table_of_queries_and_end_before_the_arms() {
        let cost = |arm: &str, dollars: f64, formula| {
            Line::Cost(CostLine {
                query: "api-cost-fever".to_owned(),
                arm: arm.to_owned(),
                provider: "P".to_owned(),
                prompts: 1000,
                tokens: 9,
                hit: 0.5,
                read: 0,
                written: 0,
                dollars,
                formula,
            })
        };
        let lines = [run(), cost("cache", 2.0, None), cost("refrain", 1.0, Some([0.5, 0.4])), cost("no-order", 2.0, None)];
        let report = Report::of(&lines);
        assert_eq!((report.runs[0].costs[0].saved, report.runs[0].costs[0].formula), (0.5, Some([0.5, 0.4])));
        let markdown = render("report.md", include_str!("report.md.jinja"), &report).unwrap();
        assert!(!markdown.contains("| query | arm |") && markdown.contains("\n\nArms:\n\n- `cache`"), "{markdown}");
        assert!(
            markdown.contains("| 2000 (hit 50.0 %) | 1000 (hit 50.0 %) | 2000 (hit 50.0 %) | 50.0 % | 50.0 % | 40.0 % |")
        );
        let html = render("report.html", include_str!("report.html.jinja"), &report).unwrap();
        assert!(!html.contains("<th>cache s</th>") && html.contains("<svg"), "{html}");
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
