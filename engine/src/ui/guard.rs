//! Which requests are let through: those that the page itself sends, and those that no page sends.
//!
//! A foreign page can have its reader's browser ask this server. It is refused by `Origin` and `Sec-Fetch-Site`, which it cannot
//! forge. It could also be served under a name of its own that later resolves to this machine (DNS rebinding) and would then be of
//! the same origin; so a server that lets anybody in over plaintext answers to addresses and `localhost` only.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::caller::refusal;

/// Set by browsers: how the page that asks is related to the server.
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Under which names a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Any: its certificate, or what it asks of users, keeps strangers out.
    Any,
    /// Addresses and `localhost`.
    Own,
}

/// Answers a request, or says why it is not answered.
pub(super) async fn guard(State(names): State<Names>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match refused(&parts, names) {
        Some((status, why)) => refusal(status, why).into_response(),
        None => next.run(Request::from_parts(parts, body)).await,
    }
}

/// Returns why a request is refused, if it is.
fn refused(request: &Parts, names: Names) -> Option<(StatusCode, &'static str)> {
    let header = |name: &HeaderName| request.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    // HTTP/2 has the host in the address of the request.
    let host = request.uri.authority().cloned().or_else(|| header(&HOST)?.parse::<Authority>().ok());
    let Some(host) = host else { return Some((StatusCode::BAD_REQUEST, "the request does not say whom it asks")) };
    if names == Names::Own && !is_address_or_localhost(host.host()) {
        let why = "this server answers to addresses and localhost only: it does not ask who comes, and any page could give it a name";
        return Some((StatusCode::FORBIDDEN, why));
    }
    let origin = header(&ORIGIN).map(|origin| origin.split_once("://").map(|(_, authority)| authority));
    let is_foreign = origin.is_some_and(|origin| origin.is_none_or(|origin| !origin.eq_ignore_ascii_case(host.as_str())));
    // A link on another page may lead here; what the page itself fetches comes from here.
    let is_fetched = request.uri.path() != "/";
    let is_foreign = is_foreign || is_fetched && header(&SITE).is_some_and(|site| !matches!(site, "same-origin" | "none"));
    if is_foreign {
        return Some((StatusCode::FORBIDDEN, "another page may not ask this server"));
    }
    // A form of another page cannot send JSON.
    let is_json =
        header(&CONTENT_TYPE).is_some_and(|kind| kind.split(';').next().map(str::trim) == Some("application/json"));
    if request.method == Method::POST && !is_json {
        return Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, "the request is not application/json"));
    }
    None
}

fn is_address_or_localhost(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: Method, path: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[track_caller]
    fn check(headers: &[(&str, &str)], names: Names, expected: Option<u16>) {
        let refused = refused(&of(Method::GET, "/api/state", headers), names);
        assert_eq!(refused.map(|(status, _)| status.as_u16()), expected, "{headers:?}");
    }

    #[test]
    fn foreign_names_are_refused_where_nobody_is_asked_who_they_are() {
        for own in ["127.0.0.1:31337", "localhost:1", "LOCALHOST", "[::1]:31337", "192.168.1.7:80"] {
            check(&[("host", own)], Names::Own, None);
        }
        for foreign in ["example.org", "example.org:31337", "127.0.0.1.example.org", "localhost.example.org"] {
            check(&[("host", foreign)], Names::Own, Some(403));
            check(&[("host", foreign)], Names::Any, None);
        }
        check(&[], Names::Any, Some(400));
    }

    #[test]
    fn foreign_pages_are_refused() {
        let host = ("host", "127.0.0.1:31337");
        check(&[host, ("origin", "http://127.0.0.1:31337")], Names::Own, None);
        for foreign in ["http://127.0.0.1:8000", "http://example.org", "null", ""] {
            check(&[host, ("origin", foreign)], Names::Own, Some(403));
        }
        check(&[host, ("sec-fetch-site", "same-origin")], Names::Own, None);
        check(&[host, ("sec-fetch-site", "cross-site")], Names::Own, Some(403));
        let followed = of(Method::GET, "/", &[host, ("sec-fetch-site", "cross-site")]);
        assert_eq!(refused(&followed, Names::Own), None);
    }

    #[test]
    fn what_changes_something_is_json() {
        let host = ("host", "127.0.0.1:31337");
        let posted = |kind| refused(&of(Method::POST, "/api/run", &[host, ("content-type", kind)]), Names::Own);
        assert_eq!(posted("application/json; charset=utf-8"), None);
        assert_eq!(posted("text/plain").map(|(status, _)| status.as_u16()), Some(415));
    }
}
