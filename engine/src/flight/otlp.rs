//! Sends spans to a collector of OpenTelemetry: OTLP over HTTP, in protobuf.
//!
//! Spans wait in a queue that holds so many, and go in batches. A collector that does not answer is tried a few times; what does not
//! reach it is lost, and holds up nobody.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::{DataFusionError, plan_datafusion_err};
use prost::Message;
use reqwest::StatusCode;
use rustls::crypto::ring;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::otlp_messages::{ExportRequest, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span};

/// Where a collector takes traces, below its address.
const TRACES: &str = "/v1/traces";

/// Spans that wait to be sent; others are lost.
const WAITING_SPANS: usize = 8192;

/// Spans that are sent at once, and how long the first of them waits for others.
const BATCH_SPANS: usize = 512;
const BATCH_PATIENCE: Duration = Duration::from_secs(1);

/// A collector that does not answer for this long has not got the spans.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Times that a batch is sent, and the pause after the first, which doubles.
const ATTEMPTS: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Somebody who is told of statements. Clones are the same.
#[derive(Clone)]
pub struct Collector {
    queue: mpsc::Sender<Told>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

enum Told {
    Span(Box<Span>),
    /// Whoever waits for all spans before it to be sent.
    Flush(oneshot::Sender<()>),
}

impl Collector {
    /// The collector at an address such as `http://127.0.0.1:4318`, which hears of this server as `service`. Fails on an address that
    /// is none; whether anybody is there shows when there is something to tell. Must be called within a tokio runtime.
    pub fn at(address: &str, service: &str) -> Result<Self, DataFusionError> {
        let failed = |error: &dyn fmt::Display| plan_datafusion_err!("cannot send spans to {address:?}: {error}");
        let url = address.trim_end_matches('/');
        let url = if url.ends_with(TRACES) { url.to_owned() } else { format!("{url}{TRACES}") };
        let is_encrypted = match url.split_once("://") {
            Some(("https", _)) => true,
            Some(("http", _)) => false,
            _ => return Err(failed(&"it begins with neither http:// nor https://")),
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(is_encrypted).map_err(|error| failed(&error))?)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(ANSWER_PATIENCE)
            .build()
            .map_err(|error| failed(&error.without_url()))?;
        http.post(&url).build().map_err(|error| failed(&error.without_url()))?;
        let (queue, waiting) = mpsc::channel(WAITING_SPANS);
        tokio::spawn(Exporter { http, url, service: service.to_owned(), waiting }.run());
        Ok(Collector { queue })
    }

    /// Tells of a span. It is lost where too many wait.
    pub(super) fn tell(&self, span: Span) {
        let _ = self.queue.try_send(Told::Span(Box::new(span)));
    }

    /// Waits until all spans that were told of have been sent, or given up on.
    pub async fn flush(&self) {
        let (done, sent) = oneshot::channel();
        if self.queue.send(Told::Flush(done)).await.is_ok() {
            // It fails where the exporter has gone, with all spans.
            let _ = sent.await;
        }
    }
}

/// Sends what is in the queue, until nobody can tell of anything any more.
struct Exporter {
    http: reqwest::Client,
    url: String,
    service: String,
    waiting: mpsc::Receiver<Told>,
}

impl Exporter {
    async fn run(mut self) {
        while let Some(first) = self.waiting.recv().await {
            let (spans, waits_for_them) = self.batch(first).await;
            if !spans.is_empty() {
                self.send(spans).await;
            }
            if let Some(done) = waits_for_them {
                let _ = done.send(());
            }
        }
    }

    /// Gathers spans until there are enough, somebody waits for them, or the first has waited long enough.
    async fn batch(&mut self, first: Told) -> (Vec<Span>, Option<oneshot::Sender<()>>) {
        let deadline = Instant::now() + BATCH_PATIENCE;
        let (mut spans, mut next) = (vec![], Some(first));
        while let Some(told) = next {
            match told {
                Told::Span(span) => spans.push(*span),
                Told::Flush(done) => return (spans, Some(done)),
            }
            if spans.len() >= BATCH_SPANS {
                break;
            }
            next = timeout_at(deadline, self.waiting.recv()).await.ok().flatten();
        }
        (spans, None)
    }

    async fn send(&self, spans: Vec<Span>) {
        let scope = Scope { name: "refrain".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let resource = Resource { attributes: vec![KeyValue::text("service.name", self.service.as_str())] };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
        let request = ExportRequest { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans }] };
        let body = request.encode_to_vec();
        for attempt in 0..ATTEMPTS {
            let request = self.http.post(&self.url).header("content-type", "application/x-protobuf").body(body.clone());
            match request.send().await {
                Ok(answer) if !is_passing(answer.status()) => return,
                _ => sleep(RETRY_PAUSE * 2_u32.pow(attempt)).await,
            }
        }
    }
}

/// Whether a collector that answers so may take the same spans later.
fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// TLS with the system's certificates; without any where nothing is encrypted.
fn tls(is_encrypted: bool) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match is_encrypted {
        true => builder.with_platform_verifier()?,
        false => builder.with_root_certificates(rustls::RootCertStore::empty()),
    };
    Ok(builder.with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_that_are_none_are_refused() {
        for wrong in ["", "127.0.0.1:4318", "grpc://h:4317"] {
            let error = Collector::at(wrong, "refrain").unwrap_err().strip_backtrace();
            assert!(error.contains("http://"), "{error}");
        }
        assert!(Collector::at("http://", "refrain").is_err());
    }
}
