//! What EXPLAIN says of an operator: its estimates as lines and as JSON, and beside them what happened, once it has run.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use refrain_optimizer::JoinEffort;
use refrain_optimizer::classify_join::CLASSIFY_JOIN;
use refrain_optimizer::cost::Interval;
use serde_json::{Map, Value, json};

use crate::operators::call::PhysicalCall;
use crate::operators::chunk_estimate::Chunked;
use crate::operators::estimate::{Basis, CallEstimate, Selectivity};
use crate::operators::join::LlmJoinExec;
use crate::operators::llm_exec::LlmExec;
use crate::operators::scope::NodeStats;

impl LlmExec {
    /// Returns the lines below the first, each about one subject.
    pub(super) fn details(&self) -> Vec<String> {
        let unknown = self.is_estimated().then_some("it reads the answers of a call below");
        let mut lines = lines_of_calls(self.calls().iter(), self.estimates(), unknown, &self.ran());
        let rewrites = self.rewrites();
        if self.is_estimated() && !rewrites.is_empty() {
            lines.push(format!("rewrites: {}", rewrites.join(", ")));
        }
        lines.extend(self.order_line());
        if self.is_estimated() {
            lines.extend(self.above_line());
        }
        lines
    }

    /// Returns which calls of operators above read the same rows, as a line.
    fn above_line(&self) -> Option<String> {
        let above = self.calls_above();
        let names: Vec<&str> = above.iter().map(|above| above.call.function_name()).collect();
        (!names.is_empty()).then(|| format!("its rows are read again above by {}", names.join(", ")))
    }

    /// Returns the rewrites that made the operator what it is.
    fn rewrites(&self) -> Vec<&'static str> {
        let mut rewrites = vec![];
        rewrites.extend(has_duplicates(self.estimates()).then_some("dedup"));
        rewrites.extend(applied(self.calls()));
        if self.orders_predicates() {
            rewrites.push("order_llm_filters");
        }
        if self.stops_at_limit() {
            rewrites.push("stop_llm_filter_at_limit");
        }
        rewrites
    }

    /// Returns all that is known of the operator, under names that stay.
    pub(crate) fn to_json(&self) -> Value {
        let calls = json_of_calls(self.calls().iter(), self.estimates(), &self.ran());
        let mut object = Map::new();
        object.insert("operator".to_owned(), json!("LlmExec"));
        object.insert("kind".to_owned(), json!(if self.filter().is_some() { "filter" } else { "map" }));
        object.insert("filter".to_owned(), json!(self.filter()));
        object.insert("calls".to_owned(), Value::Array(calls));
        object.insert("rewrites".to_owned(), json!(self.rewrites()));
        object.insert("order".to_owned(), self.order_json());
        Value::Object(object)
    }
}

impl LlmJoinExec {
    /// Returns the lines below the first, each about one subject.
    pub(super) fn details(&self) -> Vec<String> {
        // The first step is asked of all pairs, which can be counted.
        let unknown = self.is_estimated().then_some("which pairs it is asked about depends on answers");
        let mut lines = lines_of_calls(self.calls(), self.estimates(), unknown, &self.ran());
        match self.classification() {
            Some(Ok(asked)) => lines.insert(0, format!("asks {asked}")),
            Some(Err(reason)) => lines.push(format!("refused: {CLASSIFY_JOIN} ({reason})")),
            None => {}
        }
        let rewrites = self.rewrites();
        if self.is_estimated() && !rewrites.is_empty() {
            lines.push(format!("rewrites: {}", rewrites.join(", ")));
        }
        lines.extend(self.order_line());
        lines
    }

    /// Returns the rewrites that made the operator what it is.
    fn rewrites(&self) -> Vec<&'static str> {
        let JoinEffort { stops_at_match, wanted, may_classify: _ } = self.effort();
        let classifies = matches!(self.classification(), Some(Ok(_)));
        let rewrites = [
            (has_duplicates(self.estimates()), "dedup"),
            (classifies, CLASSIFY_JOIN),
            (self.orders_predicates(), "order_llm_filters"),
            (stops_at_match && !classifies, "stop_join_at_match"),
            (wanted.is_some(), "stop_llm_filter_at_limit"),
        ];
        rewrites.into_iter().filter(|(applies, _)| *applies).map(|(_, name)| name).collect()
    }

    /// Returns all that is known of the operator, under names that stay.
    pub(crate) fn to_json(&self) -> Value {
        let (asked, refused) = match self.classification() {
            Some(Ok(asked)) => (Some(asked), None),
            Some(Err(reason)) => (None, Some(reason)),
            None => (None, None),
        };
        json!({
            "classification": asked,
            "classification_refused": refused,
            "operator": "LlmJoinExec",
            "join_type": self.join_type().to_string(),
            "max_pairs": self.max_pairs(),
            "calls": json_of_calls(self.calls(), self.estimates(), &self.ran()),
            "rewrites": self.rewrites(),
            "order": self.order_json(),
        })
    }
}

/// Returns the names of the rewrites that put calls where they are, each once.
pub(super) fn applied<'a>(calls: impl IntoIterator<Item = &'a Arc<PhysicalCall>>) -> Vec<&'static str> {
    let mut names = vec![];
    for name in calls.into_iter().flat_map(|call| &call.notes.applied) {
        if !names.contains(name) {
            names.push(*name);
        }
    }
    names
}

/// Whether equal questions are expected.
fn has_duplicates(estimates: &[CallEstimate]) -> bool {
    estimates.iter().any(|estimate| estimate.distinct < estimate.rows)
}

/// Returns what is known of some calls, as lines; `unknown` is why one has no estimate, where estimates were asked for.
fn lines_of_calls<'a>(
    calls: impl Iterator<Item = &'a Arc<PhysicalCall>>,
    estimates: &[CallEstimate],
    unknown: Option<&str>,
    ran: &[Arc<NodeStats>],
) -> Vec<String> {
    let calls: Vec<_> = calls.collect();
    let mut lines = vec![];
    for (idx, call) in calls.iter().enumerate() {
        let estimate = estimates.get(idx);
        let mut of_call = vec![];
        if let Some(estimate) = estimate {
            of_call.extend([estimate.rows_line(), estimate.tokens_line()]);
            of_call.extend(estimate.selectivity.map(|selectivity| selectivity.line()));
            of_call.extend(estimate.refused.iter().map(|what| format!("refused: {what}")));
            of_call.extend(estimate.warnings.iter().map(|what| format!("warning: {what}")));
        } else if let Some(unknown) = unknown {
            of_call.push(format!("not estimated: {unknown}"));
        }
        if estimate.is_some() || unknown.is_some() {
            of_call.extend(call.notes.refused.iter().map(|what| format!("refused: {what}")));
        }
        of_call.extend(ran.get(idx).into_iter().flat_map(|stats| actual_lines(stats, estimate)));
        if calls.len() > 1 && !of_call.is_empty() {
            lines.push(format!("{}:", call.output.name()));
            of_call.iter_mut().for_each(|line| line.insert_str(0, "  "));
        }
        lines.append(&mut of_call);
    }
    lines
}

/// Returns what is known of some calls.
fn json_of_calls<'a>(
    calls: impl Iterator<Item = &'a Arc<PhysicalCall>>,
    estimates: &[CallEstimate],
    ran: &[Arc<NodeStats>],
) -> Vec<Value> {
    let of_call = |(idx, call): (usize, &Arc<PhysicalCall>)| {
        json!({
            "function": call.function_name(),
            "call": call.call.describe(),
            "output": call.output.name(),
            "model": call.model,
            "guard": call.guard.as_ref().map(ToString::to_string),
            "rewrites_refused": call.notes.refused,
            "estimate": estimates.get(idx).map(CallEstimate::to_json),
            "actual": ran.get(idx).map(actual_json),
        })
    };
    calls.enumerate().map(of_call).collect()
}

impl CallEstimate {
    fn equals(&self) -> &'static str {
        if self.is_exact { "=" } else { "≈" }
    }

    fn rows_line(&self) -> String {
        let equals = self.equals();
        let order = match self.field_order.is_empty() {
            true => String::new(),
            false => {
                let others = match self.n_field_orders {
                    0 | 1 => String::new(),
                    orders => format!(" in {orders} orders"),
                };
                format!(" order=[{}] ({}{others})", self.field_order.join(", "), self.strategy)
            }
        };
        let dependencies = match self.dependencies.is_empty() {
            true => String::new(),
            false => format!(" {}", self.dependencies.join(", ")),
        };
        // How many chunks a text makes is known when it is cut.
        let (at_most, chunked) = match self.chunked.filter(|chunked| chunked.inputs > 0) {
            None => ("≤", String::new()),
            Some(Chunked { inputs, chunks, .. }) => ("≈", format!(" chunked{equals}{inputs} into≈{chunks}")),
        };
        format!(
            "rows{equals}{} distinct{equals}{} calls{at_most}{}{chunked}{order}{dependencies} layout={}",
            self.rows,
            self.distinct,
            self.calls(),
            self.layout.name()
        )
    }

    fn tokens_line(&self) -> String {
        let time = match (self.seconds, self.output_basis) {
            (None, _) => ", time unknown: the model has not run yet".to_owned(),
            (Some(seconds), Basis::AtMost) => format!(", time≤{}", duration(seconds)),
            (Some(seconds), _) => match self.seconds_interval {
                Some(Interval { low, high, .. }) => {
                    format!(", time≈{} ({} to {})", duration(seconds), duration(low), duration(high))
                }
                None => format!(", time≈{}", duration(seconds)),
            },
        };
        let output = output_words(self.output_tokens, self.output_basis, self.output_interval);
        format!(
            "prompt{}{} tok, head {} tok, prefix hit est {:.0} %, prefill≈{} tok, {output}{time}",
            self.equals(),
            self.prompt_tokens,
            self.head_tokens,
            self.prefix_hit * 100.0,
            self.computed_tokens,
        )
    }

    fn to_json(&self) -> Value {
        let mut estimate = self.numbers_json();
        if let Some(prompts) = &self.prompts {
            estimate["prompts"] = prompts.to_json();
        }
        estimate
    }

    fn numbers_json(&self) -> Value {
        let interval = |interval: &Interval| json!({"low": interval.low, "high": interval.high});
        json!({
            "rows": self.rows,
            "distinct": self.distinct,
            "calls_max": self.calls(),
            "chunked": self.chunked.map(|chunked| chunked.inputs),
            "chunks": self.chunked.map(|chunked| chunked.chunks),
            "exact": self.is_exact,
            "prompt_tokens": self.prompt_tokens,
            "head_tokens": self.head_tokens,
            "computed_tokens": self.computed_tokens,
            "prefix_hit": self.prefix_hit,
            "output_tokens": self.output_tokens,
            "output_basis": self.output_basis.name(),
            "output_interval": self.output_interval.as_ref().map(interval),
            "selectivity": self.selectivity.map(|selectivity| selectivity.share.estimate),
            "selectivity_basis": self.selectivity.map(|selectivity| selectivity.basis.name()),
            "selectivity_interval": self.selectivity.filter(|known| known.basis == Basis::Sample).map(|known| interval(&known.share)),
            "seconds": self.seconds,
            "seconds_interval": self.seconds_interval.as_ref().map(interval),
            "field_order": self.field_order,
            "field_orders": self.n_field_orders,
            "functional_dependencies": self.dependencies,
            "strategy": self.strategy,
            "layout": self.layout.name(),
            "refused": self.refused,
            "warnings": self.warnings,
        })
    }
}

impl std::fmt::Display for CallEstimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n  {}", self.rows_line(), self.tokens_line())
    }
}

impl Selectivity {
    fn line(self) -> String {
        let percent = |share: f64| format!("{:.0}", share * 100.0);
        let Interval { estimate, low, high } = self.share;
        match self.basis {
            Basis::Sample => format!("passes≈{} % (sampled, {} to {} %)", percent(estimate), percent(low), percent(high)),
            basis => format!("passes≈{} % ({})", percent(estimate), basis.name()),
        }
    }
}

/// Returns what a call did, and how far the estimate was off.
pub(super) fn actual_lines(stats: &Arc<NodeStats>, estimate: Option<&CallEstimate>) -> Vec<String> {
    let now = stats.progress();
    let computed = now.prompt_tokens - now.cached_tokens;
    let hit = |cached: u64, all: u64| if all > 0 { cached as f64 / all as f64 * 100.0 } else { 0.0 };
    let seconds = stats.times().wall.as_secs_f64();
    let errors: Vec<String> = stats.errors().iter().map(|(reason, rows)| format!("{reason} {rows}")).collect();
    let errors = if errors.is_empty() { String::new() } else { format!(" ({})", errors.join(", ")) };
    let saved = now.rows.saturating_sub(now.calls + now.cache_hits);
    let chunked = match stats.chunked.load(Ordering::Relaxed) {
        0 => String::new(),
        inputs => format!(" chunked={inputs}"),
    };
    let mut lines = vec![
        format!(
            "actual: rows={} distinct={} calls={}{chunked} cache_hits={} dedup_saved={saved} errors={}{errors}",
            now.rows, now.distinct, now.calls_done, now.cache_hits, now.errors
        ),
        format!(
            "actual: prompt={} tok, cached={} tok ({:.0} %), prefill={computed} tok, output={} tok, time={}{}",
            now.prompt_tokens,
            now.cached_tokens,
            hit(now.cached_tokens, now.prompt_tokens),
            now.output_tokens,
            duration(seconds),
            pace_words(stats),
        ),
    ];
    let kept_rows = stats.kept_rows.load(Ordering::Relaxed);
    if kept_rows > 0 {
        lines.push(format!("actual: data first, windows of {kept_rows} rows that the cache keeps for calls that ask later"));
    }
    let not_kept = stats.not_kept.load(Ordering::Relaxed);
    if not_kept > 0 {
        lines.push(format!(
            "actual: {not_kept} answers not kept in memory, the pool is full: equal questions are asked again"
        ));
    }
    if let Some(estimate) = estimate {
        let off = |estimated: u64, actual: u64| match actual {
            0 => "–".to_owned(),
            actual => format!("{:+.1} %", (estimated as f64 / actual as f64 - 1.0) * 100.0),
        };
        lines.push(format!(
            "estimate off by: calls {}, prompt {}, prefill {}, output {}; prefix hit {:.0} → {:.0} %{}",
            off(estimate.calls(), now.calls_done),
            off(estimate.prompt_tokens, now.prompt_tokens),
            off(estimate.computed_tokens, computed),
            off(estimate.output_tokens, now.output_tokens),
            estimate.prefix_hit * 100.0,
            hit(now.cached_tokens, now.prompt_tokens),
            estimate
                .seconds
                .map(|expected| format!("; time {} → {}", duration(expected), duration(seconds)))
                .unwrap_or_default(),
        ));
    }
    lines
}

/// Returns how many tokens a call computed or wrote in a second, and when its first answer came; empty where the model was not asked.
fn pace_words(stats: &NodeStats) -> String {
    let pace = tokens_per_second(stats).map(|pace| format!(", {pace:.0} tok/s"));
    let first = stats.times().first_answer.map(|first| format!(", first answer after {}", duration(first.as_secs_f64())));
    [pace, first].into_iter().flatten().collect()
}

/// Returns how many tokens a call computed or wrote in a second of its time.
fn tokens_per_second(stats: &NodeStats) -> Option<f64> {
    let now = stats.progress();
    let (tokens, seconds) = (now.prompt_tokens - now.cached_tokens + now.output_tokens, stats.times().wall.as_secs_f64());
    (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}

pub(super) fn actual_json(stats: &Arc<NodeStats>) -> Value {
    let now = stats.progress();
    json!({
        "rows": now.rows,
        "distinct": now.distinct,
        "calls": now.calls_done,
        "chunked": stats.chunked.load(Ordering::Relaxed),
        "memo_hits": stats.memo_hits.load(Ordering::Relaxed),
        "not_kept": stats.not_kept.load(Ordering::Relaxed),
        "cache_hits": now.cache_hits,
        "prompt_tokens": now.prompt_tokens,
        "cached_tokens": now.cached_tokens,
        "computed_tokens": now.prompt_tokens - now.cached_tokens,
        "kept_rows": stats.kept_rows.load(Ordering::Relaxed),
        "output_tokens": now.output_tokens,
        "errors": stats.errors(),
        "seconds": stats.times().wall.as_secs_f64(),
        "tokens_per_second": tokens_per_second(stats),
        "seconds_to_first_answer": stats.times().first_answer.map(|first| first.as_secs_f64()),
    })
}

/// Shows the tokens of all answers, and how they are known.
pub(super) fn output_words(tokens: u64, basis: Basis, interval: Option<Interval>) -> String {
    match (basis, interval) {
        (Basis::AtMost, _) => format!("output≤{tokens} tok"),
        (Basis::Form, _) => format!("output≈{tokens} tok"),
        (Basis::Sample, Some(Interval { low, high, .. })) => {
            format!("output≈{tokens} tok (sampled, {low:.0} to {high:.0})")
        }
        (basis, _) => format!("output≈{tokens} tok ({})", basis.name()),
    }
}

/// Shows a time as people do.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.9995 => format!("{:.0} ms", s * 1000.0),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
