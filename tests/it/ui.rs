//! The page of a server, asked as a browser asks it, and as one that means ill would.

use refrain::flight::auth::hash_password;
use refrain::flight::{Auth, ServerConfig, Users};
use refrain::serving::mock::{Gate, MockBackend};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::flight::harness::{Server, held};

const SLOW: &str = "select ai_complete('p', value) from generate_series(1, 100)";

async fn server() -> Server {
    server_with(ServerConfig::default(), MockBackend::new(1)).await
}

async fn server_with(config: ServerConfig, mock: MockBackend) -> Server {
    Server::with(ServerConfig { ui: true, ..config }, mock).await
}

/// A request; what is not said is as the page has it.
struct Asked<'a> {
    method: &'a str,
    path: &'a str,
    headers: Vec<(&'a str, String)>,
    body: String,
}

impl<'a> Asked<'a> {
    fn get(path: &'a str) -> Self {
        Asked { method: "GET", path, headers: vec![], body: String::new() }
    }

    fn post(path: &'a str, body: Value) -> Self {
        Asked { method: "POST", path, headers: vec![], body: body.to_string() }.with("content-type", "application/json")
    }

    /// Replaces a header.
    fn with(mut self, name: &'a str, value: &str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    fn by(self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }

    /// Sends the request; the answer ends with the connection.
    async fn send(self, server: &Server) -> BufReader<TcpStream> {
        let Asked { method, path, headers, body } = self;
        let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "host") {
            request += &format!("host: {}\r\n", server.address);
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(format!("{request}\r\n{body}").as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    /// Returns status, head and body of the answer.
    async fn answer(self, server: &Server) -> (u16, String, String) {
        let mut answer = String::new();
        self.send(server).await.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer of HTTP/1.1");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    async fn status(self, server: &Server) -> u16 {
        self.answer(server).await.0
    }

    /// Returns the JSON that is answered.
    async fn json(self, server: &Server) -> Value {
        let (status, _, body) = self.answer(server).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Returns the lines of JSON that are answered.
    async fn lines(self, server: &Server) -> Vec<Value> {
        let (status, _, body) = self.answer(server).await;
        assert_eq!(status, 200, "{body}");
        // Of the parts of the answer, those that are no sizes.
        body.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

async fn log_in(server: &Server) -> String {
    let answer = Asked::post("/api/login", json!({})).json(server).await;
    answer["token"].as_str().unwrap().to_owned()
}

/// Runs statements and returns what they give, without how far they were in between.
async fn run(server: &Server, token: &str, body: Value) -> Vec<Value> {
    let lines = Asked::post("/api/run", body).by(token).lines(server).await;
    lines.into_iter().filter(|line| line.get("query").is_none() && line != &json!({})).collect()
}

/// Reads lines until one has what is looked for.
async fn read_until(answer: &mut BufReader<TcpStream>, found: impl Fn(&Value) -> bool) -> Value {
    loop {
        let mut line = String::new();
        assert_ne!(answer.read_line(&mut line).await.unwrap(), 0, "the answer ends early");
        match serde_json::from_str::<Value>(&line) {
            Ok(line) if found(&line) => return line,
            _ => {}
        }
    }
}

async fn newest(server: &Server, token: &str) -> Value {
    Asked::get("/api/state").by(token).json(server).await["queries"][0].clone()
}

/// Waits until the newest query has ended, and returns how.
async fn ended(server: &Server, token: &str) -> String {
    loop {
        match newest(server, token).await["state"].as_str() {
            Some("running") => tokio::task::yield_now().await,
            state => return state.unwrap().to_owned(),
        }
    }
}

#[tokio::test]
async fn the_page_is_served_where_it_is_wanted() {
    let server = server().await;
    for path in ["/", "/app.js", "/prices.js", "/app.css", "/vendor/uPlot.js", "/vendor/uPlot.LICENSE"] {
        let (status, head, body) = Asked::get(path).answer(&server).await;
        assert_eq!(status, 200, "{path}");
        assert!(head.contains("content-security-policy: default-src 'self';") && !body.is_empty(), "{path}: {head}");
    }
    assert_eq!(crate::flight::harness::rows(&mut server.client().await, "select 1").await.unwrap(), ["1"]);
    let without = Server::start().await;
    let mut answer = vec![];
    // Whoever speaks HTTP/1.1 is not understood: the connection ends, in whatever way.
    let _ = Asked::get("/").send(&without).await.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
}

#[tokio::test]
async fn the_page_holds_nothing_that_its_policy_forbids() {
    let (_, _, page) = Asked::get("/").answer(&server().await).await;
    for forbidden in ["<style", "style=", "onclick", "<script>", "http:", "https:"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[tokio::test]
async fn nothing_is_told_without_a_session() {
    let server = server().await;
    for path in ["/api/state", "/api/queries/1"] {
        assert_eq!(Asked::get(path).status(&server).await, 401, "{path}");
        assert_eq!(Asked::get(path).by("no such token").status(&server).await, 401, "{path}");
    }
    for path in ["/api/run", "/api/plan", "/api/queries/1/cancel"] {
        assert_eq!(Asked::post(path, json!({"sql": "select 1"})).status(&server).await, 401, "{path}");
    }
    let token = log_in(&server).await;
    assert_eq!(Asked::get("/api/state").by(&token).status(&server).await, 200);
}

#[tokio::test]
async fn users_are_asked_who_they_are() {
    let mut users = Users::default();
    users.add_passwords(&format!("ada:{}", hash_password("lovelace").unwrap())).unwrap();
    users.add_tokens("grace:0123456789abcdef").unwrap();
    let server =
        server_with(ServerConfig { auth: Auth::Users(users), ..ServerConfig::default() }, MockBackend::new(1)).await;
    let login = || Asked::post("/api/login", json!({}));
    assert_eq!(login().status(&server).await, 401);
    // ada:byron
    assert_eq!(login().with("authorization", "Basic YWRhOmJ5cm9u").status(&server).await, 401);
    // ada:lovelace
    let ada = login().with("authorization", "Basic YWRhOmxvdmVsYWNl").json(&server).await;
    let grace = login().by("0123456789abcdef").json(&server).await;
    assert_eq!((&ada["user"], &grace["user"]), (&json!("ada"), &json!("grace")));
    let [ada, grace] = [ada, grace].map(|answer| answer["token"].as_str().unwrap().to_owned());
    run(&server, &ada, json!({"sql": "select 'adas own'"})).await;
    assert_eq!(newest(&server, &ada).await["user"], "ada");
    assert_eq!(newest(&server, &grace).await, Value::Null, "users see their own queries");
    assert_eq!(Asked::get("/api/queries/1").by(&grace).status(&server).await, 404);
    assert_eq!(Asked::get("/api/state").by("0123456789abcdef").status(&server).await, 401, "a static token is no session");
}

#[tokio::test]
async fn other_pages_are_refused() {
    let server = server().await;
    let token = log_in(&server).await;
    let ask = || Asked::get("/api/state").by(&token);
    let own = format!("http://{}", server.address);
    assert_eq!(ask().with("origin", &own).status(&server).await, 200);
    assert_eq!(ask().with("origin", "http://example.org").status(&server).await, 403);
    assert_eq!(ask().with("sec-fetch-site", "cross-site").status(&server).await, 403);
    assert_eq!(ask().with("host", "example.org").status(&server).await, 403, "a name that an attacker may have given it");
    let posted = Asked::post("/api/run", json!({"sql": "select 1"})).by(&token);
    assert_eq!(posted.with("content-type", "text/plain").status(&server).await, 415);
    let login = Asked::post("/api/login", json!({})).with("origin", "http://example.org");
    assert_eq!(login.status(&server).await, 403);
}

#[tokio::test]
async fn rows_come_as_text() {
    let server = server().await;
    let token = log_in(&server).await;
    let sql = "create temporary table t as select 1 as a, 'x' as b union all select 2, null;
               select a, b, [a] as c from t order by a";
    let lines = run(&server, &token, json!({"sql": sql})).await;
    let columns = json!([
        {"name": "a", "type": "Int64", "is_number": true},
        {"name": "b", "type": "Utf8", "is_number": false},
    ]);
    assert_eq!(lines[0], json!({"end": {"changed": 0}}));
    assert_eq!(lines[1]["columns"][0], columns[0]);
    assert_eq!(lines[1]["columns"][1], columns[1]);
    assert_eq!(lines[2], json!({"rows": [["1", "x", "[1]"], ["2", null, "[2]"]]}));
    assert_eq!(lines[3], json!({"end": {"rows": 2, "shown": 2, "notice": null}}));
}

#[tokio::test]
async fn more_rows_than_are_shown_are_counted() {
    let server = server().await;
    let token = log_in(&server).await;
    let lines = run(&server, &token, json!({"sql": "select value from generate_series(1, 3000)", "rows": 700})).await;
    let rows: usize = lines.iter().filter_map(|line| line["rows"].as_array()).map(Vec::len).sum();
    assert_eq!((rows, lines.last().unwrap()), (700, &json!({"end": {"rows": 3000, "shown": 700, "notice": null}})));
}

#[tokio::test]
async fn errors_are_told_and_what_follows_does_not_run() {
    let server = server().await;
    let token = log_in(&server).await;
    let lines = run(&server, &token, json!({"sql": "select 1; select nonsense; create table t as select 1"})).await;
    let error = lines.last().unwrap();
    assert!(error["error"].as_str().unwrap().contains("nonsense") && error["cancelled"] == json!(false), "{error}");
    let lines = run(&server, &token, json!({"sql": "select * from t"})).await;
    assert!(lines[0]["error"].as_str().unwrap().contains("not found"), "{lines:?}");
    let lines = run(&server, &token, json!({"sql": " ; "})).await;
    assert!(lines[0]["error"].as_str().unwrap().contains("no statement"), "{lines:?}");
    let (status, _, body) = Asked::post("/api/run", json!({"sql": 1})).by(&token).answer(&server).await;
    assert!(status == 400 && body.contains("no text"), "{body}");
}

#[tokio::test]
async fn a_query_tells_how_far_it_is_and_can_be_cancelled() {
    let server = server_with(ServerConfig::default(), held(&Gate::new())).await;
    let token = log_in(&server).await;
    let mut answer = Asked::post("/api/run", json!({"sql": SLOW})).by(&token).send(&server).await;
    server.oracle.0.wait_for_calls(100).await;
    let line = read_until(&mut answer, |line| line["query"]["spent"]["calls"] == json!(100)).await;
    assert_eq!((&line["query"]["state"], &line["query"]["progress"]), (&json!("running"), &json!(0.0)));
    let cancel = format!("/api/queries/{}/cancel", line["query"]["id"]);
    assert_eq!(Asked::post(&cancel, json!({})).by(&token).json(&server).await, json!({"cancelled": true}));
    let line = read_until(&mut answer, |line| line.get("error").is_some()).await;
    assert_eq!(line["cancelled"], json!(true));
    server.oracle.0.wait_until_idle().await;
    assert_eq!(ended(&server, &token).await, "cancelled");
    assert_eq!(Asked::post(&cancel, json!({})).by(&token).json(&server).await, json!({"cancelled": false}));
}

#[tokio::test]
async fn closing_the_connection_cancels() {
    for sql in [SLOW.to_owned(), format!("create table t as {SLOW}")] {
        let server = server_with(ServerConfig::default(), held(&Gate::new())).await;
        let token = log_in(&server).await;
        let answer = Asked::post("/api/run", json!({"sql": sql})).by(&token).send(&server).await;
        server.oracle.0.wait_for_calls(100).await;
        drop(answer);
        server.oracle.0.wait_until_idle().await;
        assert_eq!(ended(&server, &token).await, "cancelled");
    }
}

#[tokio::test]
async fn a_server_that_stops_waits_for_the_page() {
    let gate = Gate::new();
    let mut server = server_with(ServerConfig::default(), held(&gate)).await;
    let token = log_in(&server).await;
    let mut answer = Asked::post("/api/run", json!({"sql": SLOW})).by(&token).send(&server).await;
    server.oracle.0.wait_for_calls(100).await;
    server.stop();
    while Asked::post("/api/plan", json!({"sql": SLOW})).by(&token).status(&server).await != 503 {
        tokio::task::yield_now().await;
    }
    gate.open();
    let line = read_until(&mut answer, |line| line.get("end").is_some()).await;
    assert_eq!(line["end"]["rows"], json!(100));
    server.stopped().await.unwrap();
}

#[tokio::test]
async fn the_plan_shows_what_was_expected_beside_what_happened() {
    let server = server().await;
    let token = log_in(&server).await;
    let sql = "select ai_complete('p', value % 10) from generate_series(1, 100)";
    for estimates in [true, false] {
        run(&server, &token, json!({"sql": sql, "estimates": estimates})).await;
        let id = newest(&server, &token).await["id"].clone();
        let query = Asked::get(&format!("/api/queries/{id}")).by(&token).json(&server).await;
        let mut node = &query["plan"];
        while node["calls"].is_null() {
            node = &node["children"][0];
        }
        let call = &node["calls"][0];
        assert_eq!(call["estimate"]["rows"], if estimates { json!(100) } else { Value::Null }, "{call}");
        assert_eq!((&call["actual"]["rows"], &call["actual"]["distinct"]), (&json!(100), &json!(10)));
        assert_eq!(query["calls"][0]["function"], "ai_complete");
    }
}

#[tokio::test]
async fn prompts_are_shown_as_a_tree_without_asking_the_model() {
    let server = server().await;
    let token = log_in(&server).await;
    let sql = "select ai_complete('p', a, b) from (select value % 2 as a, value as b from generate_series(1, 300))";
    let plan = Asked::post("/api/plan", json!({"sql": sql})).by(&token).json(&server).await;
    let mut node = &plan;
    while node["calls"].is_null() {
        node = &node["children"][0];
    }
    let prompts = &node["calls"][0]["estimate"]["prompts"];
    assert_eq!((&prompts["questions"], &prompts["root"]["prompts"]), (&json!(300), &json!(200)));
    let rows_of = |node: &Value| {
        node["children"].as_array().unwrap().iter().map(|child| child["prompts"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(rows_of(&prompts["root"]), 200, "each prompt goes on in one way");
    assert!(prompts["root"]["text"].as_str().unwrap().contains("data analyst"), "{prompts}");
    assert!(
        prompts["shared_tokens"].as_u64() > Some(0) && prompts["shared_tokens"].as_u64() < prompts["prompt_tokens"].as_u64()
    );
    assert_eq!(server.oracle.calls(), 0);
    let (status, _, body) =
        Asked::post("/api/plan", json!({"sql": "set refrain.seed = 1"})).by(&token).answer(&server).await;
    assert!(status == 400 && body.contains("no plan"), "{body}");
}

#[tokio::test]
async fn failed_rows_show_their_prompt() {
    let server = server().await;
    let token = log_in(&server).await;
    let sql = "select ai_complete('p', v) from (values ('good'), ('FAIL <b>')) as t(v)";
    let lines = run(&server, &token, json!({"sql": sql})).await;
    assert_eq!(lines.last().unwrap()["end"]["notice"], "1 rows failed: 1 schema");
    let id = newest(&server, &token).await["id"].clone();
    let query = Asked::get(&format!("/api/queries/{id}")).by(&token).json(&server).await;
    let [failed] = query["errors"].as_array().unwrap().as_slice() else { panic!("one failed row: {query}") };
    assert_eq!((&failed["reason"], &failed["function"]), (&json!("schema"), &json!("ai_complete")));
    assert!(failed["prompt"].as_str().unwrap().contains("FAIL <b>"), "{failed}");
}
