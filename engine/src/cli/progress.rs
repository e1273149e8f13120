//! Progress on a terminal: one line for each AI node of the running query.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::numbers::{clock, grouped, percent, short};
use crate::{NodeProgress, Progress};

/// Queries faster than this show no progress.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the lines are drawn anew.
pub(crate) const INTERVAL: Duration = Duration::from_millis(200);

/// The lines of one query on standard error.
pub(crate) struct ProgressLines {
    started: Instant,
    target: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl ProgressLines {
    /// Lines of a query that starts now.
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            target: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
            lines: Vec::new(),
        }
    }

    /// Draws the state of each node, once the query has taken a while.
    pub(crate) fn draw(&mut self, progress: &Progress) {
        let elapsed = self.started.elapsed();
        if elapsed < PATIENCE {
            return;
        }
        while self.lines.len() < progress.nodes.len() {
            let style = ProgressStyle::with_template("{wide_msg}").expect("a constant template");
            self.lines.push(self.target.add(ProgressBar::new_spinner().with_style(style)));
        }
        for (line, node) in self.lines.iter().zip(&progress.nodes) {
            line.set_message(progress_line(node, elapsed.as_secs_f64()));
            line.tick();
        }
    }

    /// Runs `write` with the lines out of the way.
    pub(crate) fn suspend<R>(&self, write: impl FnOnce() -> R) -> R {
        self.target.suspend(write)
    }
}

impl Drop for ProgressLines {
    fn drop(&mut self) {
        for line in &self.lines {
            line.finish_and_clear();
        }
    }
}

/// `ai_filter  40 210 rows (3 911 distinct)  1 213/3 911 calls  31 %  1.9 k tok/s  prefix hits 74 %  errors 3  ETA 01:42`.
/// Share and remaining time count tokens, since a row may be as short as a word or as long as a book.
fn progress_line(node: &NodeProgress, elapsed_s: f64) -> String {
    let rows = format!("{} rows ({} distinct)", grouped(node.rows), grouped(node.distinct));
    let calls = format!("{}/{} calls", grouped(node.calls_done), grouped(node.calls));
    let mut parts = vec![node.function.clone(), rows, calls];
    parts.extend(percent(node.tokens_done.min(node.tokens_total), node.tokens_total).map(|share| format!("{share} %")));
    let tokens_per_s = if elapsed_s > 0.0 { node.tokens_done as f64 / elapsed_s } else { 0.0 };
    if tokens_per_s > 0.0 {
        parts.push(format!("{} tok/s", short(tokens_per_s)));
    }
    parts.extend(percent(node.cached_tokens, node.prompt_tokens).map(|share| format!("prefix hits {share} %")));
    if node.errors > 0 {
        parts.push(format!("errors {}", grouped(node.errors)));
    }
    let tokens_left = node.tokens_total.saturating_sub(node.tokens_done);
    if tokens_per_s > 0.0 && tokens_left > 0 {
        parts.push(format!("ETA {}", clock(tokens_left as f64 / tokens_per_s)));
    }
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_what_is_known() {
        let node = NodeProgress {
            function: "ai_filter".into(),
            rows: 40_210,
            distinct: 3_911,
            calls: 3_911,
            calls_done: 1_213,
            prompt_tokens: 100,
            cached_tokens: 74,
            tokens_total: 100_000,
            tokens_done: 31_000,
            errors: 3,
            ..NodeProgress::default()
        };
        let expected = "ai_filter  40 210 rows (3 911 distinct)  1 213/3 911 calls  31 %  1.9 k tok/s  \
                        prefix hits 74 %  errors 3  ETA 00:36";
        assert_eq!(progress_line(&node, 16.0), expected);
    }

    #[test]
    fn a_node_that_has_not_begun_promises_nothing() {
        let node = NodeProgress { function: "ai_score".into(), ..NodeProgress::default() };
        assert_eq!(progress_line(&node, 1.0), "ai_score  0 rows (0 distinct)  0/0 calls");
    }
}
