//! Who may come, and by what.

use refrain::flight::auth::hash_password;
use refrain::flight::{Auth, ServerConfig, Users, run};
use refrain::serving::mock::MockBackend;
use tokio::net::TcpListener;

use super::harness::{Server, message, rows};
use crate::support::session_with;

async fn server() -> Server {
    let mut users = Users::default();
    users.add_passwords(&format!("ada:{}", hash_password("lovelace").unwrap())).unwrap();
    users.add_tokens("grace:0123456789abcdef").unwrap();
    Server::with(ServerConfig { auth: Auth::Users(users), ..ServerConfig::default() }, MockBackend::new(1)).await
}

#[tokio::test]
async fn a_password_is_given_for_a_token() {
    let server = server().await;
    let mut client = server.client().await;
    client.handshake("ada", "lovelace").await.unwrap();
    assert_eq!(rows(&mut client, "select 1").await.unwrap(), ["1"]);
    assert_eq!(rows(&mut client, "select distinct \"user\" from ai_queries()").await.unwrap(), ["ada"]);
    let token = client.token().cloned().unwrap();
    client.execute_update("set refrain.seed = 4".to_owned(), None).await.unwrap();
    drop(client);
    let mut later = server.client().await;
    later.set_token(token);
    assert_eq!(rows(&mut later, "show refrain.seed").await.unwrap(), ["refrain.seed|4"], "the session is the token's");
}

#[tokio::test]
async fn strangers_are_refused() {
    let server = server().await;
    let mut client = server.client().await;
    assert!(message(client.execute("select 1".to_owned(), None).await.unwrap_err()).contains("user and password"));
    for (user, password) in [("ada", "byron"), ("bob", "lovelace"), ("grace", "0123456789abcdef")] {
        let error = server.client().await.handshake(user, password).await.unwrap_err();
        assert!(message(error).contains("user or password is wrong"));
    }
    client.set_token("no such token".to_owned());
    assert!(message(client.execute("select 1".to_owned(), None).await.unwrap_err()).contains("token is not known"));
    assert!(server.page("/metrics").await.1.contains("refrain_logins_refused_total 5\n"));
}

#[tokio::test]
async fn a_static_token_needs_no_handshake_and_users_see_their_own_queries() {
    let server = server().await;
    let (mut grace, mut ada) = (server.client().await, server.client().await);
    grace.set_token("0123456789abcdef".to_owned());
    ada.handshake("ada", "lovelace").await.unwrap();
    rows(&mut grace, "select 'graces own'").await.unwrap();
    rows(&mut ada, "select 'adas own'").await.unwrap();
    let seen = rows(&mut ada, "select sql from ai_queries()").await.unwrap().concat();
    assert!(seen.contains("adas own") && !seen.contains("graces own"), "{seen}");
}

#[tokio::test]
async fn without_users_anybody_may_log_in() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.handshake("anybody", "anything").await.unwrap();
    assert_eq!(rows(&mut client, "select 1").await.unwrap(), ["1"]);
}

#[tokio::test]
async fn addresses_that_others_reach_need_encryption_and_users() {
    let (db, _) = session_with(&[], MockBackend::new(1)).await;
    let start = |config: ServerConfig| {
        let db = db.clone();
        async move {
            let socket = TcpListener::bind("0.0.0.0:0").await.unwrap();
            run(socket, None, db, config, std::future::ready(())).await
        }
    };
    let error = start(ServerConfig::default()).await.unwrap_err().to_string();
    assert!(error.contains("no TLS") && error.contains("--insecure"), "{error}");
    start(ServerConfig { allow_insecure: true, ..ServerConfig::default() }).await.unwrap();
}
