//! Counters of the server, in the form that Prometheus reads.

use std::time::Duration;

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, Result,
    TextEncoder,
};

use super::service::Shared;
use crate::QueryUsage;

/// Upper bounds of the times of queries, in seconds: from plain queries to long ones over a model.
const SECONDS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0, 600.0, 3600.0];

/// How a query has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// All its rows were sent.
    Finished,
    /// With an error.
    Failed,
    /// Its client cancelled it, or went away.
    Cancelled,
}

impl Ended {
    pub(super) fn name(self) -> &'static str {
        match self {
            Ended::Finished => "finished",
            Ended::Failed => "failed",
            Ended::Cancelled => "cancelled",
        }
    }
}

/// The counters.
pub(super) struct Metrics {
    registry: Registry,
    queries: IntCounterVec,
    seconds: Histogram,
    rows: IntCounter,
    logins_refused: IntCounter,
    calls: IntCounter,
    prompt_tokens: IntCounter,
    cached_tokens: IntCounter,
    output_tokens: IntCounter,
    failed_rows: IntCounter,
    sessions: IntGauge,
    running: IntGauge,
    waiting: IntGauge,
    is_draining: Gauge,
    model: GaugeVec,
}

impl Metrics {
    pub(super) fn new() -> Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> Result<IntCounter> {
            let counter = IntCounter::new(format!("refrain_{name}_total"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge> {
            let gauge = IntGauge::new(format!("refrain_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let queries = IntCounterVec::new(Opts::new("refrain_queries_total", "Queries by how they ended"), &["state"])?;
        let seconds = HistogramOpts::new("refrain_query_seconds", "Time from start to end of a query");
        let seconds = Histogram::with_opts(seconds.buckets(SECONDS.to_vec()))?;
        let is_draining = Gauge::new("refrain_draining", "1 while the server lets queries finish before it stops")?;
        let model = Opts::new("refrain_model", "Counters of loaded models, since each was loaded");
        let model = GaugeVec::new(model, &["model", "counter"])?;
        registry.register(Box::new(queries.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(is_draining.clone()))?;
        registry.register(Box::new(model.clone()))?;
        Ok(Metrics {
            queries,
            seconds,
            rows: counter("rows", "Rows sent")?,
            logins_refused: counter("logins_refused", "Requests without valid credentials")?,
            calls: counter("calls", "Model calls completed for queries that have ended")?,
            prompt_tokens: counter("prompt_tokens", "Prompt tokens of these calls")?,
            cached_tokens: counter("cached_tokens", "Prompt tokens that were not computed, thanks to shared prefixes")?,
            output_tokens: counter("output_tokens", "Tokens of answers")?,
            failed_rows: counter("failed_rows", "Rows whose call failed")?,
            sessions: gauge("sessions", "Open sessions")?,
            running: gauge("queries_running", "Queries that run")?,
            waiting: gauge("queries_waiting", "Queries that wait for their turn")?,
            is_draining,
            model,
            registry,
        })
    }

    /// Counts a query that has ended; `usage` if it came to run.
    pub(super) fn query_ended(&self, ended: Ended, took: Duration, usage: Option<&QueryUsage>) {
        self.queries.with_label_values(&[ended.name()]).inc();
        self.seconds.observe(took.as_secs_f64());
        let Some(usage) = usage else { return };
        self.calls.inc_by(usage.calls);
        self.prompt_tokens.inc_by(usage.prompt_tokens);
        self.cached_tokens.inc_by(usage.cached_tokens);
        self.output_tokens.inc_by(usage.output_tokens);
        self.failed_rows.inc_by(usage.failed_rows);
    }

    /// Counts rows that go to a client.
    pub(super) fn rows_sent(&self, rows: usize) {
        self.rows.inc_by(rows as u64);
    }

    /// Counts a request that was refused for its credentials.
    pub(super) fn login_refused(&self) {
        self.logins_refused.inc();
    }

    /// Returns all counters as text.
    pub(super) fn text(&self, shared: &Shared) -> Result<String> {
        let (running, waiting) = shared.admission.counts();
        self.sessions.set(whole(shared.sessions.count()));
        self.running.set(whole(running));
        self.waiting.set(whole(waiting));
        self.is_draining.set(f64::from(u8::from(shared.is_draining())));
        for (name, stats) in shared.sessions.base().model_catalog().loaded_stats() {
            let counters = [
                ("pending", stats.pending),
                ("completed", stats.completed),
                ("cancelled", stats.cancelled),
                ("steps", stats.steps),
                ("computed_tokens", stats.computed_tokens),
                ("kv_pages_used", stats.pages_used),
                ("kv_pages_total", stats.pages_total),
            ];
            for (counter, value) in counters {
                self.model.with_label_values(&[name.as_str(), counter]).set(value as f64);
            }
        }
        let mut text = vec![];
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
