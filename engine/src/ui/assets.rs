//! The files of the page, which the program holds, so that nothing is built or fetched where it is installed.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::routing::get;

/// A file: where it is asked for, its type and its text.
type Asset = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

const ASSETS: &[Asset] = &[
    ("/", HTML, include_str!("assets/index.html")),
    ("/app.css", CSS, include_str!("assets/app.css")),
    ("/app.js", SCRIPT, include_str!("assets/app.js")),
    ("/server.js", SCRIPT, include_str!("assets/server.js")),
    ("/elements.js", SCRIPT, include_str!("assets/elements.js")),
    ("/editor.js", SCRIPT, include_str!("assets/editor.js")),
    ("/queries.js", SCRIPT, include_str!("assets/queries.js")),
    ("/plan.js", SCRIPT, include_str!("assets/plan.js")),
    ("/prompts.js", SCRIPT, include_str!("assets/prompts.js")),
    ("/prices.js", SCRIPT, include_str!("assets/prices.js")),
    ("/plots.js", SCRIPT, include_str!("assets/plots.js")),
    ("/icon.svg", IMAGE, include_str!("assets/icon.svg")),
    ("/vendor/uPlot.js", SCRIPT, include_str!("assets/vendor/uPlot.iife.min.js")),
    ("/vendor/uPlot.css", CSS, include_str!("assets/vendor/uPlot.min.css")),
    ("/vendor/uPlot.LICENSE", "text/plain; charset=utf-8", include_str!("assets/vendor/uPlot.LICENSE")),
];

/// Nothing but these files is loaded, no script stands in the text of a page, and no other page shows this one.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

/// Returns the routes of the files.
pub(super) fn assets<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { (headers(kind), *text) }))
    })
}

/// Returns the headers of an answer of this type.
pub(super) fn headers(kind: &'static str) -> [(HeaderName, &'static str); 6] {
    [
        (CONTENT_TYPE, kind),
        // Another version of the program may answer next time.
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ]
}
