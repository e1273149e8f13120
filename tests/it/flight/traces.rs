//! Spans of statements, as a collector of OpenTelemetry gets them.

use std::sync::{Arc, Mutex};

use prost::Message;
use refrain::flight::ServerConfig;
use refrain::flight::otlp::Collector;
use refrain::serving::mock::MockBackend;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::harness::{Server, rows};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// The messages of OTLP, as far as they are looked at: what a collector in another language reads.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
    #[prost(message, optional, tag = "15")]
    status: Option<SpanStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct SpanStatus {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    int: Option<i64>,
}

/// `Status.StatusCode.STATUS_CODE_ERROR`.
const ERROR: i32 = 2;

/// What a collector hears: the bodies of the requests that it was sent.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Vec<u8>>>>);

impl Heard {
    /// Starts to listen, and returns the address.
    async fn start(&self) -> String {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let heard = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                tokio::spawn(heard.clone().take(stream));
            }
        });
        format!("http://{address}")
    }

    /// Takes requests of one connection.
    async fn take(self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut length, mut first) = (0, String::new());
            if stream.read_line(&mut first).await.unwrap_or(0) == 0 {
                return;
            }
            assert!(first.starts_with("POST /v1/traces "), "{first}");
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                match line.trim().to_lowercase().split_once(": ") {
                    Some(("content-length", value)) => length = value.parse().unwrap(),
                    Some(("content-type", value)) => assert_eq!(value, "application/x-protobuf"),
                    Some(_) => {}
                    None => break,
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            self.0.lock().unwrap().push(body);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let requests = requests.iter().map(|body| Request::decode(body.as_slice()).unwrap());
        let scopes = requests.flat_map(|request| request.resource_spans).flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?.value.clone()?;
    found.text.or_else(|| found.int.map(|number| number.to_string()))
}

#[tokio::test]
async fn a_statement_is_a_span_below_that_of_its_request() {
    let heard = Heard::default();
    let traces = Collector::at(&heard.start().await, "tested").unwrap();
    let config = ServerConfig { traces: Some(traces.clone()), ..ServerConfig::default() };
    let server = Server::with(config, MockBackend::new(1)).await;
    let mut client = server.client().await;
    client.set_header("traceparent", format!("00-{TRACE}-{PARENT}-01"));
    let query = "select ai_complete('p', v) from (values ('a'), ('a'), ('FAIL'), ('b')) as t(v)";
    rows(&mut client, query).await.unwrap();
    let secret = "create secret k (type openai, api_key 'sk-verysecret')";
    client.execute_update(secret.to_owned(), None).await.unwrap();
    client.execute("select nonsense".to_owned(), None).await.unwrap_err();

    let spans = loop {
        traces.flush().await;
        let spans = heard.spans();
        if spans.iter().filter(|span| span.name == "statement").count() == 3 {
            break spans;
        }
    };
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    let first = Request::decode(heard.0.lock().unwrap()[0].as_slice()).unwrap();
    let service = first.resource_spans[0].resource.clone().unwrap().attributes[0].clone();
    assert_eq!((service.key.as_str(), service.value.unwrap().text.as_deref()), ("service.name", Some("tested")));
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let of = |text: &str| -> &Span {
        let text_of = |span: &&Span| attribute(span, "db.query.text").unwrap().starts_with(text);
        named("statement").into_iter().find(text_of).unwrap()
    };
    let children = |parent: &Span| {
        let mut names: Vec<&str> =
            spans.iter().filter(|span| span.parent_span_id == parent.span_id).map(|span| span.name.as_str()).collect();
        names.sort_unstable();
        names.join(" ")
    };
    let statement = of(query);
    assert_eq!(hex(&statement.parent_span_id), PARENT);
    assert_eq!(attribute(statement, "user.id").as_deref(), Some("anonymous"));
    assert_eq!(children(statement), "execute plan wait");
    let execute = named("execute").into_iter().find(|span| span.parent_span_id == statement.span_id).unwrap();
    assert_eq!(attribute(execute, "refrain.rows").as_deref(), Some("4"));
    assert_eq!(attribute(execute, "refrain.query.state").as_deref(), Some("finished"));
    assert_eq!(children(execute), "ai_complete");
    let [node] = named("ai_complete")[..] else { panic!("one call") };
    for (name, expected) in [
        ("gen_ai.request.model", "mock"),
        ("refrain.rows", "4"),
        ("refrain.distinct_rows", "3"),
        ("refrain.calls", "3"),
        ("refrain.failed_rows", "1"),
        ("refrain.failed_rows.schema", "1"),
    ] {
        assert_eq!(attribute(node, name).as_deref(), Some(expected), "{name}");
    }
    assert!(attribute(node, "gen_ai.usage.input_tokens").unwrap().parse::<u64>().unwrap() > 0);
    assert!(node.start_time_unix_nano >= execute.start_time_unix_nano);
    assert!(node.end_time_unix_nano <= statement.end_time_unix_nano);

    assert_eq!(children(of("select nonsense")), "plan");
    assert_eq!(of("select nonsense").status.as_ref().unwrap().code, ERROR);
    assert_eq!(children(of("create secret")), "execute order plan");
    for body in heard.0.lock().unwrap().iter() {
        assert!(!String::from_utf8_lossy(body).contains("sk-verysecret"), "secrets are told to nobody");
    }
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_spans_only() {
    let traces = Collector::at("http://127.0.0.1:1", "tested").unwrap();
    let config = ServerConfig { traces: Some(traces), ..ServerConfig::default() };
    let server = Server::with(config, MockBackend::new(1)).await;
    assert_eq!(rows(&mut server.client().await, "select ai_complete('p', 'x')").await.unwrap(), ["p(x)"]);
}
