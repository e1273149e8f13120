//! A small HTTP server on this machine that answers chat completions by rule.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The header `authorization`.
    pub authorization: String,
    /// The JSON of the body.
    pub body: Value,
}

/// What the server replies: a status and a body.
pub(crate) type Reply = (u16, Value);

/// The server; it ends when it is dropped.
pub(crate) struct ChatServer {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: AbortHandle,
}

impl ChatServer {
    /// Starts a server that replies by a rule, which is given the whole request.
    pub(crate) async fn start(rule: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, rule) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(rule));
        let requests = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (requests, rule) = (Arc::clone(&requests), Arc::clone(&rule));
                tokio::spawn(async move {
                    let mut connection = BufReader::new(connection);
                    while let Some(request) = read(&mut connection).await {
                        requests.lock().unwrap().push(request.clone());
                        write(&mut connection, rule(&request)).await;
                    }
                });
            }
        });
        ChatServer { address, seen, task: task.abort_handle() }
    }

    /// Returns the address for `CREATE EXTERNAL MODEL`.
    pub(crate) fn location(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Returns how many requests have come.
    pub(crate) fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Returns the requests.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for ChatServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(connection: &mut BufReader<TcpStream>) -> Option<Seen> {
    let (mut authorization, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(": ") else { continue };
        match name.to_lowercase().as_str() {
            "authorization" => authorization = value.to_owned(),
            "content-length" => length = value.parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await.ok()?;
    Some(Seen { authorization, body: serde_json::from_slice(&body).unwrap() })
}

async fn write(connection: &mut BufReader<TcpStream>, (status, body): Reply) {
    let body = body.to_string();
    let head =
        format!("HTTP/1.1 {status} Reply\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    // Who has hung up needs no answer.
    let _ = connection.write_all(format!("{head}{body}").as_bytes()).await;
}

/// An answer of the model.
pub(crate) fn answer(content: &str) -> Reply {
    finished(content, "stop")
}

/// An answer that ended for a reason.
pub(crate) fn finished(content: &str, reason: &str) -> Reply {
    let message = json!({"role": "assistant", "content": content});
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}});
    (200, json!({"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage}))
}

/// Returns the text of the last message.
pub(crate) fn question(request: &Seen) -> String {
    let messages = request.body["messages"].as_array().unwrap();
    messages.last().unwrap()["content"].as_str().unwrap().to_owned()
}

/// Answers as a model would that obeys the demanded schema: a label that stands in the question, Yes where it holds "good".
pub(crate) fn obedient(request: &Seen) -> Reply {
    let schema = &request.body["response_format"]["json_schema"]["schema"];
    let question = question(request);
    match schema.is_null() {
        true => answer(&format!("about {}", question.len())),
        false => answer(&filled(schema, &question).to_string()),
    }
}

fn filled(schema: &Value, question: &str) -> Value {
    if let Some(labels) = schema["enum"].as_array() {
        let yes = labels.iter().any(|label| label == "Yes");
        let wanted = |label: &&Value| match yes {
            true => (*label == "Yes") == question.contains("good"),
            false => question.rsplit('\n').next().unwrap_or_default().contains(label.as_str().unwrap_or_default()),
        };
        return labels.iter().find(wanted).unwrap_or(&labels[0]).clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let fields = schema["properties"].as_object().unwrap();
            fields
                .iter()
                .map(|(name, field)| (name.clone(), filled(field, question)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        }
        Some("array") => json!([filled(&schema["items"], question)]),
        Some("integer" | "number") => json!(1),
        Some("boolean") => json!(true),
        _ => json!("text"),
    }
}
