//! The shell against a server: `refrain --connect`.

use std::path::Path;
use std::process::ExitCode;

use arrow_flight::Action;
use clap::Parser;
use refrain::cli::Args;
use refrain::flight::{Auth, ServerConfig, Tls, Users};
use refrain::serving::mock::{Gate, MockBackend};

use super::harness::{Client, Server, rows};

/// Runs the program on a server with these arguments. Returns its exit code and what it has written.
async fn shell(server: &Server, arguments: &[&str]) -> (ExitCode, String) {
    let address = format!("grpc://{}", server.address);
    run(&["--connect", &address], arguments).await
}

async fn run(server: &[&str], arguments: &[&str]) -> (ExitCode, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let fixed = ["refrain", "--format", "csv", "--quiet", "--output", output.to_str().unwrap()];
    let args = Args::try_parse_from(fixed.iter().chain(server).chain(arguments)).unwrap();
    let code = refrain::cli::run(args).await;
    (code, std::fs::read_to_string(Path::new(&output)).unwrap())
}

#[track_caller]
fn check(code: ExitCode, expected: u8) {
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(expected)));
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_run_on_the_server() {
    let server = Server::start().await;
    let script = [
        "-c",
        "create table films as values (1, 'good'), (2, null)",
        "-c",
        "select * from films order by 1",
        "-c",
        "insert into films values (3, 'bad')",
        "-c",
        "\\mode ndjson",
        "-c",
        "select ai_complete('p', column2) as a from films where column1 = 3",
        "-c",
        "create temporary table mine as select 1 as a; select count(*) as n from mine",
    ];
    let (code, output) = shell(&server, &script).await;
    check(code, 0);
    assert_eq!(output, "column1,column2\n1,good\n2,\ncount\n1\n{\"a\":\"p(bad)\"}\n{\"n\":1}\n");
    let mut other = server.client().await;
    assert_eq!(rows(&mut other, "select count(*) from films").await.unwrap(), ["3"], "the table is the server's");
    assert!(rows(&mut other, "select * from mine").await.is_err());
    while !server.page("/metrics").await.1.contains("refrain_sessions 1\n") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_tell_of_the_server() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.execute_update("create table films (id int not null, review text)".to_owned(), None).await.unwrap();
    let tell = |command: &'static str| {
        let server = &server;
        async move {
            let (code, output) = shell(server, &["-c", command]).await;
            check(code, 0);
            output
        }
    };
    assert!(tell("\\dt").await.contains(",public,films,base,2\n"));
    let columns = tell("\\d films").await;
    assert!(columns.starts_with("column,type,nullable\nid,Int32,NO\nreview,"), "{columns}");
    assert!(tell("\\dm").await.contains("\nmock,"));
    client
        .execute_update("create prompt refund(t varchar) returns boolean as 'Refund? {t}'".to_owned(), None)
        .await
        .unwrap();
    assert!(tell("\\dp").await.contains("refund"));
    assert!(tell("\\df ai_f*").await.contains("\nai_filter,scalar,"));
    assert!(tell("\\h ai_filter").await.starts_with("ai_filter"));
    assert!(tell("\\set seed").await.contains("refrain.seed,0,"));
    assert!(tell("\\estimate select ai_filter('p', 'x')").await.contains("ai_filter"));
    assert!(tell("\\explain select ai_filter('p', 'x')").await.contains("LlmExec"));
    let about = tell("\\conninfo").await;
    assert!(about.contains(&format!("connected to grpc://{}", server.address)) && about.contains("of anonymous"), "{about}");
    let model =
        tell("\\model mock\n\\model\n\\connect local\nselect count(*) as n from ai_models() where name = 'mock'").await;
    assert_eq!(model, "model mock\nn\n0\n", "the last statement runs here, where nobody has made that model");
    assert_eq!(server.oracle.calls(), 0, "none of this asks a model");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_query_has_cost_and_lost_is_known() {
    let server = Server::start().await;
    let query = "select ai_complete('p', v) from (values ('a'), ('a'), ('FAIL')) as t(v)";
    let (code, output) = shell(&server, &["-c", query, "-c", "\\usage", "-c", "\\errors"]).await;
    check(code, 0);
    for expected in ["rows            3\n", "calls           2\n", "saved by dedup  1\n", "failed rows     1\n"] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    assert!(output.contains("ai_complete,schema,"), "{output}");
    let (code, _) = shell(&server, &["--strict-rows", "-c", query]).await;
    check(code, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_end_it_with_the_code_of_the_manual() {
    let server = Server::start().await;
    let (code, output) = shell(&server, &["-c", "select nonsense", "-c", "select 1"]).await;
    check(code, 1);
    assert_eq!(output, "");
    let (code, output) = shell(&server, &["--no-bail", "-c", "select nonsense", "-c", "select 1 as a"]).await;
    check(code, 1);
    assert_eq!(output, "a\n1\n");
    let (code, _) =
        shell(&server, &["-c", "set refrain.max_calls = 1; select ai_complete('p', value) from generate_series(1, 9)"])
            .await;
    check(code, 3);
    check(run(&["--connect", "http://127.0.0.1:1"], &["-c", "select 1"]).await.0, 2);
    check(run(&["--connect", "grpc://127.0.0.1:1"], &["-c", "select 1"]).await.0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_that_goes_stops_its_statement() {
    for sql in [
        "select ai_complete('p', value) from generate_series(1, 10)",
        "create table t as select ai_complete('q', value) from generate_series(1, 10)",
    ] {
        let server = Server::held(&Gate::new()).await;
        let arguments = ["-c", sql];
        tokio::select! {
            _ = shell(&server, &arguments) => panic!("it cannot end"),
            () = server.oracle.0.wait_for_calls(10) => {}
        }
        server.oracle.0.wait_until_idle().await;
    }
}

/// Returns the path of one of the tests' certificates or keys.
fn certificate(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("it/flight/certificates").join(name).display().to_string()
}

/// The server's certificate; whether clients must show one too.
fn tls(of_clients: bool) -> Tls {
    let read = |name: &str| std::fs::read(certificate(name)).unwrap();
    let client_root = of_clients.then(|| read("root.pem"));
    Tls { certificate: read("server.pem"), key: read("server.key"), client_root }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_shown_to_a_server_that_demands_them() {
    let config = ServerConfig { tls: Some(tls(true)), ..ServerConfig::default() };
    let server = Server::with(config, MockBackend::new(1)).await;
    let address = format!("grpc+tls://{}", server.address);
    let (root, query) = (certificate("root.pem"), ["-c", "select 1 as a"]);
    let showing = |name: &str| {
        let (pem, key) = (certificate(&format!("{name}.pem")), certificate(&format!("{name}.key")));
        ["--connect", &address, "--tls-ca", &root, "--tls-cert", &pem, "--tls-key", &key].map(str::to_owned)
    };
    let known = showing("client");
    let (code, output) = run(&known.each_ref().map(String::as_str), &query).await;
    check(code, 0);
    assert_eq!(output, "a\n1\n");
    let stranger = showing("stranger");
    for refused in [&known.each_ref().map(String::as_str)[..4], &stranger.each_ref().map(String::as_str)[..]] {
        let (code, output) = run(refused, &query).await;
        assert_ne!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(output, "");
    }
}

/// Asks the server for one of the shell's actions about a statement.
async fn ask(client: &mut Client, action: &str, sql: &str) -> serde_json::Value {
    let action = Action { r#type: action.to_owned(), body: sql.to_owned().into() };
    let mut answers = client.do_action(action).await.unwrap();
    serde_json::from_slice(&answers.message().await.unwrap().unwrap().body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_says_what_is_to_be_asked_about() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let query = "select ai_filter('p', v) from (values ('a'), ('b'), ('a')) as t(v)";
    assert!(ask(&mut client, "refrain.Forecast", query).await.is_null(), "nobody wants to be asked");
    client.execute_update("set refrain.confirm_above = 1000".to_owned(), None).await.unwrap();
    let forecast = ask(&mut client, "refrain.Forecast", query).await;
    assert!(forecast["prompt_tokens"].as_u64().unwrap() > 0, "{forecast}");
    assert_eq!(forecast["calls"], 2);
    assert!(forecast["seconds"].is_null(), "the model has no pace yet: {forecast}");
    assert_eq!(forecast["has_more"], false);
    for (sql, calls) in [
        (format!("create table kept as {query}"), 2),
        (format!("explain analyze {query}"), 2),
        (format!("explain (analyze, format json) {query}"), 2),
    ] {
        assert_eq!(ask(&mut client, "refrain.Forecast", &sql).await["calls"], calls, "{sql}");
    }
    for sql in ["select 1".to_owned(), format!("explain {query}"), "create table empty (a int)".to_owned()] {
        assert!(ask(&mut client, "refrain.Forecast", &sql).await.is_null(), "{sql}");
    }
    assert_eq!(server.oracle.calls(), 0);
    assert!(rows(&mut client, "select * from kept").await.is_err(), "nothing was run");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_that_only_reads_changes_nothing_on_the_server() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.execute_update("create table films as values (1)".to_owned(), None).await.unwrap();
    for change in ["insert into films values (2)", "drop table films", "create table more (a int)", "\\kill 1"] {
        check(shell(&server, &["--readonly", "-c", change]).await.0, 1);
    }
    let (code, output) = shell(&server, &["--readonly", "-c", "select * from films; set refrain.seed = 3"]).await;
    check(code, 0);
    assert_eq!(output, "column1\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_copied_to_files_here() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answers.parquet");
    let copy = format!("\\copy (select ai_complete('p', v) as a from (values ('x')) as t(v)) to '{}'", file.display());
    let read = format!("\\connect local\nselect a from '{}'", file.display());
    let (code, output) = shell(&server, &["-c", &copy, "-c", &read]).await;
    check(code, 0);
    assert_eq!(output, "a\np(x)\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_are_settings_are_set_there() {
    let server = Server::start().await;
    let show = ["--max-tokens", "7", "--max-seconds", "1.5", "-c", "show refrain.max_tokens; show refrain.max_seconds"];
    let (code, output) = shell(&server, &show).await;
    check(code, 0);
    assert_eq!(output, "name,value\nrefrain.max_tokens,7\nname,value\nrefrain.max_seconds,1.5\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_roots_of_certificates_are_given_by_options() {
    let mut users = Users::default();
    users.add_tokens("ada:0123456789abcdef").unwrap();
    let config = ServerConfig { auth: Auth::Users(users), tls: Some(tls(false)), ..ServerConfig::default() };
    let server = Server::with(config, MockBackend::new(1)).await;
    let (address, root) = (format!("grpc+tls://{}", server.address), certificate("root.pem"));
    let (connect, root) = (["--connect", &address], ["--tls-ca", &root]);
    let token = ["--token", "0123456789abcdef"];
    let query = ["-c", "select max(\"user\") as u from ai_queries()"];
    let (code, output) = run(&[connect, token, root].concat(), &query).await;
    check(code, 0);
    assert_eq!(output, "u\nada\n");
    check(run(&[connect, root].concat(), &query).await.0, 1);
    check(run(&[connect, token].concat(), &query).await.0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_and_settings_that_are_asked_for_run_there() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let init = folder.path().join("init.sql");
    std::fs::write(&init, "set refrain.seed = 7;").unwrap();
    let (code, output) =
        shell(&server, &["-i", init.to_str().unwrap(), "-v", "top_p=0.5", "-c", "show refrain.seed; show refrain.top_p"])
            .await;
    check(code, 0);
    assert_eq!(output, "name,value\nrefrain.seed,7\nname,value\nrefrain.top_p,0.5\n");
}
