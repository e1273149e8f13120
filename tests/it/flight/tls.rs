//! Encryption, and clients that show certificates.

use refrain::flight::{ServerConfig, Tls};
use refrain::serving::mock::MockBackend;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::harness::{Client, Server, rows};

const ROOT: &str = include_str!("certificates/root.pem");

fn tls(client_root: Option<&str>) -> ServerConfig {
    let tls = Tls {
        certificate: include_bytes!("certificates/server.pem").to_vec(),
        key: include_bytes!("certificates/server.key").to_vec(),
        client_root: client_root.map(|root| root.as_bytes().to_vec()),
    };
    ServerConfig { tls: Some(tls), ..ServerConfig::default() }
}

async fn connect(server: &Server, config: ClientTlsConfig) -> Result<Channel, tonic::transport::Error> {
    Endpoint::new(format!("https://{}", server.address)).unwrap().tls_config(config).unwrap().connect().await
}

fn trusting() -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ROOT))
}

#[tokio::test]
async fn clients_speak_through_tls() {
    let server = Server::with(tls(None), MockBackend::new(1)).await;
    let mut client = Client::new(connect(&server, trusting()).await.unwrap());
    assert_eq!(rows(&mut client, "select 1").await.unwrap(), ["1"]);
    client.execute_update("set refrain.seed = 5".to_owned(), None).await.unwrap();
    assert_eq!(rows(&mut client, "show refrain.seed").await.unwrap(), ["refrain.seed|5"], "one session a connection");
    let plaintext = Endpoint::new(format!("http://{}", server.address)).unwrap().connect().await;
    let refused = match plaintext {
        Ok(channel) => Client::new(channel).execute("select 1".to_owned(), None).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "plaintext is not spoken");
}

#[tokio::test]
async fn clients_show_certificates_where_that_is_demanded() {
    let server = Server::with(tls(Some(ROOT)), MockBackend::new(1)).await;
    let identity = |pem: &str, key: &str| trusting().identity(Identity::from_pem(pem, key));
    let known = identity(include_str!("certificates/client.pem"), include_str!("certificates/client.key"));
    let mut client = Client::new(connect(&server, known).await.unwrap());
    assert_eq!(rows(&mut client, "select 1").await.unwrap(), ["1"]);
    let stranger = identity(include_str!("certificates/stranger.pem"), include_str!("certificates/stranger.key"));
    for config in [trusting(), stranger] {
        // The handshake of TLS 1.3 ends for the client before the server has looked at its certificate.
        let refused = match connect(&server, config).await {
            Ok(channel) => Client::new(channel).execute("select 1".to_owned(), None).await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "a client without a certificate of the root");
    }
}

#[tokio::test]
async fn a_key_that_is_none_is_told() {
    let (db, _) = crate::support::session_with(&[], MockBackend::new(1)).await;
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let broken = Tls { certificate: b"nonsense".to_vec(), key: b"nonsense".to_vec(), client_root: None };
    let config = ServerConfig { tls: Some(broken), ..ServerConfig::default() };
    let error = refrain::flight::run(socket, None, db, config, std::future::ready(())).await.unwrap_err();
    assert!(error.to_string().contains("cannot use the certificate and key"), "{error}");
}
