//! Progress on a terminal: one line for each AI node of the running query, and one for each model that is being loaded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::numbers::{bytes, clock, grouped, percent, seconds, short};
use crate::{Loading, ModelCatalog, NodeProgress, Progress};

/// Queries and loads faster than this show no progress.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// How often the lines are drawn anew.
pub(crate) const INTERVAL: Duration = Duration::from_millis(200);

/// The lines of one query on standard error.
pub(crate) struct ProgressLines {
    started: Instant,
    target: MultiProgress,
    lines: Vec<ProgressBar>,
    models: Arc<ModelCatalog>,
    loads: Vec<ProgressBar>,
}

impl ProgressLines {
    /// Lines of a query that starts now, and of loads of these models.
    pub(crate) fn new(models: Arc<ModelCatalog>) -> Self {
        Self {
            started: Instant::now(),
            target: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
            lines: Vec::new(),
            models,
            loads: Vec::new(),
        }
    }

    /// Draws the loads that have taken a while.
    pub(crate) fn draw_loads(&mut self) {
        let mut loads = self.models.loading();
        loads.retain(|(_, load)| load.elapsed >= PATIENCE);
        for line in self.loads.drain(loads.len().min(self.loads.len())..) {
            line.finish_and_clear();
            self.target.remove(&line);
        }
        while self.loads.len() < loads.len() {
            self.loads.push(self.target.insert(self.loads.len(), message_line()));
        }
        for (line, (model, load)) in self.loads.iter().zip(&loads) {
            line.set_message(loading_line(model, load));
            line.tick();
        }
    }

    /// Draws the state of each node, once the query has taken a while.
    pub(crate) fn draw(&mut self, progress: &Progress) {
        self.draw_loads();
        let elapsed = self.started.elapsed();
        if elapsed < PATIENCE {
            return;
        }
        while self.lines.len() < progress.nodes.len() {
            self.lines.push(self.target.add(message_line()));
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
        for line in self.lines.iter().chain(&self.loads) {
            line.finish_and_clear();
        }
    }
}

fn message_line() -> ProgressBar {
    ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{wide_msg}").expect("a constant template"))
}

/// `loading qwen  43 % of 1.2 GB  2.10 s`, as far as it is known.
fn loading_line(model: &str, load: &Loading) -> String {
    let mut parts = vec![format!("loading {model}")];
    parts.extend(percent(load.done.min(load.total), load.total).map(|share| format!("{share} % of {}", bytes(load.total))));
    parts.push(seconds(load.elapsed.as_secs_f64()));
    parts.join("  ")
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
    fn a_load_tells_its_share_where_the_size_is_known() {
        let load = Loading { done: 516 << 20, total: 1200 << 20, elapsed: Duration::from_millis(2100) };
        assert_eq!(loading_line("qwen", &load), "loading qwen  43 % of 1.3 GB  2.10 s");
        assert_eq!(loading_line("mini", &Loading { total: 0, ..load }), "loading mini  2.10 s");
    }

    #[test]
    fn a_node_that_has_not_begun_promises_nothing() {
        let node = NodeProgress { function: "ai_score".into(), ..NodeProgress::default() };
        assert_eq!(progress_line(&node, 1.0), "ai_score  0 rows (0 distinct)  0/0 calls");
    }
}
