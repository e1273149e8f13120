//! The page of a server: queries and their progress, plans, prompts and counters, for a browser.
//!
//! It is served at the address of clients, over the same TLS, to the same users, in sessions of the same kind. A browser signs in
//! and gets the token of a session, which its requests show; nothing is kept in a cookie, so no other page can ask in its name.
//!
//! | part | what it is |
//! |---|---|
//! | `routes` | what may be asked, by path |
//! | `guard` | which requests are let through at all |
//! | `caller` | the session of a request, and answers that refuse |
//! | `script` | statements that run, as lines of JSON |
//! | `state` | queries, models and the server as JSON |
//! | `assets` | the files of the page, which the program holds |

mod assets;
mod caller;
mod guard;
mod routes;
mod script;
mod state;

pub(crate) use routes::routes;
