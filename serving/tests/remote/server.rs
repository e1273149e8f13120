//! A real HTTP server on this machine that replies what a test tells it to, misbehaviour included.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The text of the last message, or the prompt.
    pub(crate) fn question(&self) -> &str {
        let last = self.body["messages"].as_array().and_then(|messages| messages.last());
        last.map_or(&self.body["prompt"], |message| &message["content"]).as_str().unwrap()
    }
}

/// What the server does with a request.
#[derive(Clone)]
pub(crate) enum Reply {
    /// A whole response.
    Whole { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// These bytes, and the end of the connection.
    Broken(Vec<u8>),
    /// These bytes, and nothing more until the client goes.
    Hanging(Vec<u8>),
    /// Waits for a permit, then replies.
    Held(Arc<Semaphore>, Box<Reply>),
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Reply::Whole { status, headers: vec![], body: body.to_string().into_bytes() }
    }

    pub(crate) fn error(status: u16, message: &str, code: &str) -> Self {
        Reply::json(status, &json!({"error": {"message": message, "type": "error", "param": null, "code": code}}))
    }

    /// A chat answer.
    pub(crate) fn chat(text: &str) -> Self {
        Reply::json(200, &chat(text))
    }

    /// Events of a stream, the end mark among them if wanted.
    pub(crate) fn events(events: &[&str]) -> Self {
        let body = events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>().into_bytes();
        Reply::Whole { status: 200, headers: vec![], body }.with("content-type", "text/event-stream")
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        if let Reply::Whole { headers, .. } = &mut self {
            headers.push((name.to_string(), value.to_string()));
        }
        self
    }

    pub(crate) fn held(self, gate: &Arc<Semaphore>) -> Self {
        Reply::Held(Arc::clone(gate), Box::new(self))
    }
}

/// The body of a chat answer.
pub(crate) fn chat(text: &str) -> Value {
    json!({
        "model": "test-1", "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16}},
    })
}

type Script = dyn Fn(usize, &Received) -> Reply + Send + Sync;

/// The server; it ends when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    script: Box<Script>,
    received: Mutex<Vec<Received>>,
    counts: watch::Sender<Counts>,
}

/// What the server has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) received: usize,
    /// Requests that wait for their reply now, and the most at any time.
    pub(crate) active: usize,
    pub(crate) active_max: usize,
    /// Connections that the client closed while a reply was owed.
    pub(crate) abandoned: usize,
}

impl Server {
    /// Starts a server. The script gets the number of the request, from 0, and the request.
    pub(crate) async fn start(script: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let state = Arc::new(State {
            script: Box::new(script),
            received: Mutex::default(),
            counts: watch::channel(Counts::default()).0,
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Server { url, state, task }
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }

    pub(crate) fn questions(&self) -> Vec<String> {
        self.received().iter().map(|received| received.question().to_string()).collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.state.counts.borrow()
    }

    /// Waits until the server has seen this.
    pub(crate) async fn wait_for(&self, seen: impl FnMut(&Counts) -> bool) {
        self.state.counts.subscribe().wait_for(seen).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one connection, request after request.
async fn serve(stream: TcpStream, state: Arc<State>) {
    let mut stream = BufReader::new(stream);
    while let Some(received) = read(&mut stream).await {
        let index = {
            let mut all = state.received.lock().unwrap();
            all.push(received.clone());
            all.len() - 1
        };
        let count = |counts: &mut Counts| {
            counts.received += 1;
            counts.active += 1;
            counts.active_max = counts.active_max.max(counts.active);
        };
        state.counts.send_modify(count);
        let stays = reply((state.script)(index, &received), &mut stream, &state).await;
        state.counts.send_modify(|counts| counts.active -= 1);
        if !stays {
            return;
        }
    }
}

/// Reads a request, or nothing at the end of the connection.
async fn read(stream: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_string()),
        }
    }
    let path = lines.first()?.split(' ').nth(1)?.to_string();
    let header = |line: &String| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_string()));
    let headers: Vec<_> = lines[1..].iter().filter_map(header).collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Received { path, headers, body: serde_json::from_slice(&body).unwrap_or_default() })
}

/// Replies, and returns whether the connection stays.
async fn reply(mut reply: Reply, stream: &mut BufReader<TcpStream>, state: &State) -> bool {
    while let Reply::Held(gate, inner) = reply {
        let mut byte = [0];
        tokio::select! {
            permit = gate.acquire() => permit.unwrap().forget(),
            _ = stream.read(&mut byte) => {
                state.counts.send_modify(|counts| counts.abandoned += 1);
                return false;
            }
        }
        reply = *inner;
    }
    match reply {
        Reply::Whole { status, headers, body } => {
            let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
            stream.write_all(&[head.as_bytes(), &body].concat()).await.is_ok()
        }
        Reply::Broken(bytes) => {
            let _ = stream.write_all(&bytes).await;
            false
        }
        Reply::Hanging(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.read(&mut [0]).await;
            state.counts.send_modify(|counts| counts.abandoned += 1);
            false
        }
        Reply::Held(..) => unreachable!("all holds were waited for"),
    }
}
