//! Spans of statements, for OpenTelemetry: what a statement waited for, and what its model calls were and cost.
//!
//! ```text
//! statement            from its planning until its last row is sent
//! ├─ plan
//! ├─ order             where it changes something: for the changes of its session before it
//! ├─ wait              for its turn among the queries of the server
//! └─ execute
//!    ├─ ai_filter      one for each call of each operator
//!    └─ …
//! ```
//!
//! A request whose metadata names a span (`traceparent`, as W3C defines it) is the parent of its statement. Texts of statements are
//! without secrets; rows, prompts and answers are never told.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tonic::Status;
use tonic::metadata::MetadataMap;

use super::handles::random;
use super::metrics::Ended;
use super::otlp::Collector;
use super::otlp_messages::{CLIENT, INTERNAL, KeyValue, SERVER, Span, SpanStatus, nanos};
use super::sessions::Session;
use crate::Run;
use crate::operators::NodeStats;
use crate::redact;

type TraceId = [u8; 16];
type SpanId = [u8; 8];

/// What a request says of the span that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// Nothing: its statement begins a trace.
    None,
    /// It belongs to a trace that nobody records.
    Unrecorded,
    /// Its span.
    Span(TraceId, SpanId),
}

impl Parent {
    /// Reads `traceparent`; one that is malformed is as good as none.
    pub(super) fn of(metadata: &MetadataMap) -> Self {
        let header = metadata.get("traceparent").and_then(|header| header.to_str().ok());
        header.and_then(Parent::read).unwrap_or(Parent::None)
    }

    /// Reads `00-TRACE-SPAN-FLAGS` in hexadecimal digits. Later versions may add fields behind.
    fn read(header: &str) -> Option<Self> {
        let mut fields = header.split('-');
        let [version] = unhex(fields.next()?)?;
        let (trace, span, [flags]) = (unhex(fields.next()?)?, unhex(fields.next()?)?, unhex(fields.next()?)?);
        let is_whole = version != 0 || fields.next().is_none();
        if version == 0xff || !is_whole || trace == TraceId::default() || span == SpanId::default() {
            return None;
        }
        Some(if flags & 1 == 1 { Parent::Span(trace, span) } else { Parent::Unrecorded })
    }
}

fn unhex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    if digits.len() != 2 * N || !digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// The spans of one statement; nothing where nobody collects them. Clones are the same statement, which ends with the last of them.
#[derive(Clone, Default)]
pub(crate) struct Trace(Option<Arc<Recorded>>);

struct Recorded {
    collector: Collector,
    trace: TraceId,
    parent: Option<SpanId>,
    span: SpanId,
    started: SystemTime,
    attributes: Vec<KeyValue>,
    failed: Mutex<Option<SpanStatus>>,
}

impl Trace {
    /// Begins the span of a statement.
    pub(super) fn begin(collector: Option<&Collector>, session: &Session, sql: &str, parent: Parent) -> Self {
        let (Some(collector), Ok(trace), Ok(span)) = (collector, random(), random()) else { return Trace(None) };
        let (trace, parent) = match parent {
            Parent::None => (trace, None),
            Parent::Unrecorded => return Trace(None),
            Parent::Span(trace, parent) => (trace, Some(parent)),
        };
        let attributes = vec![
            KeyValue::text("db.system.name", "refrain"),
            KeyValue::text("db.query.text", redact::statement(sql)),
            KeyValue::text("session.id", &*session.id),
            KeyValue::text("user.id", &*session.user),
        ];
        let (collector, started, failed) = (collector.clone(), SystemTime::now(), Mutex::default());
        Trace(Some(Arc::new(Recorded { collector, trace, parent, span, started, attributes, failed })))
    }

    /// Awaits a part of the statement, as a span of its own.
    pub(crate) async fn part<T>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let Some(recorded) = &self.0 else { return work.await };
        let started = SystemTime::now();
        let outcome = work.await;
        let status = outcome.as_ref().err().map(|status| SpanStatus::error(status.message()));
        recorded.tell(Span { status, ..recorded.child(recorded.span, name, started, SystemTime::now()) });
        if let Err(status) = &outcome {
            self.failed(status);
        }
        outcome
    }

    /// Notes why the statement has failed.
    pub(super) fn failed(&self, status: &Status) {
        let Some(recorded) = &self.0 else { return };
        let status = SpanStatus::error(format!("{}: {}", status.code(), status.message()));
        *recorded.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// Tells of a query of the statement that has run from `started` until now.
    pub(super) fn executed(&self, started: SystemTime, ended: Ended, rows: u64, run: &Run) {
        let Some(recorded) = &self.0 else { return };
        let now = SystemTime::now();
        let execute = Span {
            attributes: vec![
                KeyValue::count("refrain.query.id", run.query_id()),
                KeyValue::text("refrain.query.state", ended.name()),
                KeyValue::count("refrain.rows", rows),
            ],
            ..recorded.child(recorded.span, "execute", started, now)
        };
        for node in run.nodes() {
            let times = node.times();
            let (began, ended) = (times.started_at.unwrap_or(started), times.finished_at.unwrap_or(now));
            let (attributes, status) = described(&node);
            let parent = execute.span_id.as_slice();
            let span = recorded.child(parent, &node.function, began, ended);
            recorded.tell(Span { kind: CLIENT, attributes, status, ..span });
        }
        recorded.tell(execute);
    }
}

impl Recorded {
    /// A span below another.
    fn child(&self, parent: impl AsRef<[u8]>, name: &str, started: SystemTime, ended: SystemTime) -> Span {
        Span {
            trace_id: self.trace.to_vec(),
            span_id: random::<8>().unwrap_or_default().to_vec(),
            parent_span_id: parent.as_ref().to_vec(),
            name: name.to_owned(),
            kind: INTERNAL,
            start_time_unix_nano: nanos(started),
            end_time_unix_nano: nanos(ended),
            ..Span::default()
        }
    }

    fn tell(&self, span: Span) {
        self.collector.tell(span);
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let parent = self.parent.map(|parent| parent.to_vec()).unwrap_or_default();
        let status = self.failed.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let attributes = std::mem::take(&mut self.attributes);
        let span = self.child(parent, "statement", self.started, SystemTime::now());
        self.tell(Span { span_id: self.span.to_vec(), kind: SERVER, attributes, status, ..span });
    }
}

/// What is told of the calls of one operator.
fn described(node: &NodeStats) -> (Vec<KeyValue>, Option<SpanStatus>) {
    let count = |name: &str, counter: &AtomicU64| KeyValue::count(name, counter.load(Ordering::Relaxed));
    let mut attributes = vec![
        KeyValue::text("gen_ai.request.model", node.model.as_str()),
        count("gen_ai.usage.input_tokens", &node.prompt_tokens),
        count("gen_ai.usage.cache_read.input_tokens", &node.cached_tokens),
        count("gen_ai.usage.output_tokens", &node.output_tokens),
        count("refrain.rows", &node.rows),
        count("refrain.distinct_rows", &node.distinct),
        count("refrain.calls", &node.calls_done),
        count("refrain.cache_hits", &node.cache_hits),
        count("refrain.retries", &node.retries),
        count("refrain.failed_rows", &node.failed_rows),
    ];
    let failed = node.errors();
    attributes.extend(failed.iter().map(|(reason, rows)| KeyValue::count(format!("refrain.failed_rows.{reason}"), *rows)));
    (attributes, (!failed.is_empty()).then(|| SpanStatus::error("rows failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(header: &str, expected: Option<Parent>) {
        assert_eq!(Parent::read(header), expected, "{header}");
    }

    #[test]
    fn the_parent_is_the_span_that_the_request_names() {
        let (trace, span) = ([0xab; 16], [0x1f; 8]);
        let (t, s) = ("ab".repeat(16), "1f".repeat(8));
        check(&format!("00-{t}-{s}-01"), Some(Parent::Span(trace, span)));
        check(&format!("00-{t}-{s}-00"), Some(Parent::Unrecorded));
        check(&format!("cc-{t}-{s}-01-later"), Some(Parent::Span(trace, span)));
        for wrong in [
            "nonsense".to_owned(),
            format!("00-{t}-{s}"),
            format!("00-{t}-{s}-01-more"),
            format!("ff-{t}-{s}-01"),
            format!("00-{}-{s}-01", "00".repeat(16)),
            format!("00-{}-{s}-01", t.to_uppercase()),
        ] {
            check(&wrong, None);
        }
    }
}
