//! Where requests go: the rules for addresses, and the HTTP client.

use std::net::IpAddr;
use std::sync::Arc;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Url};
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls_platform_verifier::BuilderVerifierExt;

use super::config::{ApiFormat, RemoteConfig};
use crate::error::{Error, Result};

/// A checked address and the client that calls it.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// The whole address, path of the interface included.
    pub(super) url: Url,
    pub(super) client: Client,
}

impl Endpoint {
    /// Checks the address and prepares a client; connects to nothing.
    ///
    /// Fails if the address is none, is not https and not on this machine, holds a password, or has a host that is not allowed.
    pub(super) fn new(config: &RemoteConfig) -> Result<Self> {
        let mut url = parse(&config.location)?;
        check_host(&url, config.allowed_hosts.as_deref())?;
        let encrypted = url.scheme() == "https";
        let path = match config.api_format {
            ApiFormat::Chat => "chat/completions",
            ApiFormat::Completions => "completions",
            ApiFormat::Embeddings => "embeddings",
        };
        let base = url.path().trim_end_matches('/').to_string();
        url.set_path(&format!("{base}/{path}"));
        Ok(Endpoint { url, client: client(config, encrypted)? })
    }

    /// Returns host and port as they are written in `allowed_hosts`.
    pub(super) fn host(&self) -> String {
        host_and_port(&self.url)
    }
}

fn parse(location: &str) -> Result<Url> {
    let refuse = |why: &str| Err(Error::Invalid(format!("cannot use the location of a remote model: {why}")));
    // The address itself is not repeated before it is known to hold no password.
    let url = match Url::parse(location) {
        Ok(url) if url.has_host() => url,
        Ok(_) => return refuse("it has no host; write it like https://api.example.com/v1"),
        Err(error) => return refuse(&format!("{error}; write it like https://api.example.com/v1")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("it holds a user name or password; put the key into a secret");
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => {
            let host = host_and_port(&url);
            refuse(&format!("the way to {host} is not encrypted; use https (http is for servers on this machine only)"))
        }
        scheme => refuse(&format!("{scheme} is not supported; use https")),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or(host == "localhost", |address| address.is_loopback())
}

fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}"))
}

/// An entry without a port allows every port.
fn check_host(url: &Url, allowed: Option<&[String]>) -> Result<()> {
    let Some(allowed) = allowed else {
        return Ok(());
    };
    let (host, full) = (url.host_str().unwrap_or_default(), host_and_port(url));
    let with_port = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
    let fits = |entry: &String| [host, &full, &with_port].iter().any(|name| entry.eq_ignore_ascii_case(name));
    if allowed.iter().any(fits) {
        return Ok(());
    }
    let list = if allowed.is_empty() { "no host".to_string() } else { allowed.join(", ") };
    Err(Error::Invalid(format!("cannot use the remote model at {full}: allowed_hosts permits {list}")))
}

fn client(config: &RemoteConfig, encrypted: bool) -> Result<Client> {
    let failed =
        |error: &dyn std::fmt::Display| Error::Http(format!("cannot prepare the connection to a remote model: {error}"));
    let mut headers = HeaderMap::new();
    if let Some(credential) = &config.credential {
        // The error would say nothing more, and must not show the key.
        let mut value = HeaderValue::from_str(&format!("Bearer {}", credential.expose())).map_err(|_| {
            Error::Invalid(
                "the key of a remote model has a character that HTTP does not allow, such as a line break".to_string(),
            )
        })?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Client::builder()
        .tls_backend_preconfigured(tls(encrypted).map_err(|error| failed(&error))?)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .user_agent(concat!("refrain/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .connect_timeout(config.connect_timeout)
        .pool_max_idle_per_host(config.max_concurrency)
        .build()
        .map_err(|error| failed(&error.without_url()))
}

/// TLS with the system's certificates; without any where nothing is encrypted, so that a bare machine can call itself.
fn tls(encrypted: bool) -> Result<ClientConfig, rustls::Error> {
    let builder =
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions()?;
    let builder = match encrypted {
        true => builder.with_platform_verifier()?,
        false => builder.with_root_certificates(rustls::RootCertStore::empty()),
    };
    Ok(builder.with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::Secret;

    fn endpoint(location: &str, allowed: Option<&[&str]>) -> Result<String> {
        let mut config = RemoteConfig::new(location, "m");
        config.allowed_hosts = allowed.map(|hosts| hosts.iter().map(|host| host.to_string()).collect());
        Endpoint::new(&config).map(|endpoint| endpoint.url.to_string())
    }

    #[track_caller]
    fn refused(location: &str, allowed: Option<&[&str]>, reason: &str) {
        let error = endpoint(location, allowed).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn addresses() {
        assert_eq!(endpoint("http://localhost:8000/v1", None).unwrap(), "http://localhost:8000/v1/chat/completions");
        assert_eq!(endpoint("http://127.0.0.1/v1/", None).unwrap(), "http://127.0.0.1/v1/chat/completions");
        assert_eq!(endpoint("http://[::1]:80/v1?a=b", None).unwrap(), "http://[::1]/v1/chat/completions?a=b");
        refused("http://example.com/v1", None, "is not encrypted; use https");
        refused("http://localhost.example.com/v1", None, "is not encrypted");
        refused("ftp://localhost", None, "ftp is not supported");
        refused("api.example.com", None, "write it like https://api.example.com/v1");
        refused("data:text", None, "it has no host");
        let error = endpoint("https://me:hunter2@example.com", None).unwrap_err().to_string();
        assert!(error.contains("put the key into a secret") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn hosts() {
        assert!(endpoint("http://localhost:8000", Some(&["LOCALHOST"])).is_ok());
        assert!(endpoint("http://localhost:8000", Some(&["localhost:8000"])).is_ok());
        assert!(endpoint("http://localhost", Some(&["localhost:80"])).is_ok());
        refused("http://localhost:8000", Some(&["localhost:80", "other"]), "permits localhost:80, other");
        refused("http://localhost", Some(&[]), "permits no host");
        refused(
            "https://example.com.evil.net",
            Some(&["example.com"]),
            "cannot use the remote model at example.com.evil.net",
        );
    }

    #[test]
    fn keys_with_line_breaks_are_refused_unseen() {
        let mut config = RemoteConfig::new("http://localhost", "m");
        config.credential = Some(Secret::new("sk-1\n"));
        let error = Endpoint::new(&config).unwrap_err().to_string();
        assert!(error.contains("line break") && !error.contains("sk-1"), "{error}");
        config.credential = Some(Secret::new("sk-1"));
        assert!(!format!("{:?} {config:?}", Endpoint::new(&config).unwrap()).contains("sk-1"));
    }
}
