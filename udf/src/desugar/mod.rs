//! The pass over the syntax tree that turns named arguments and wildcards into what the host engine can plan.
//!
//! | before | after |
//! |---|---|
//! | `ai_complete('p', x, model => 'm')` | `ai_complete('p', x, ai_options('model', 'm'))` |
//! | `ai_classify(x, labels => ['a', 'b'])` | `ai_classify(x, ['a', 'b'])` |
//! | `ai_extract(x, ['a', 'b'])` | `ai_extract(x, ai_fields('a', NULL, 'b', NULL))` |
//! | `ai_filter('p', x, passages => [a, b])` | `ai_filter('p', x, ai_passages([a, b]))` |
//! | `LLM('p', t.*)` | `ai_complete('p', t.a, t.b, ai_options('mode', 'fields'))` |
//! | `refund(x)`, a prompt | `ai_filter('Is {ticket} …', named_struct('ticket', ai_argument(x, …)), ai_options('mode', 'template'))` |
//! | `SELECT ai_sentiment(t.x)` | `SELECT ai_sentiment(t.x) AS "ai_sentiment(x)"` |
//!
//! Settings that a plan must not lose to a later `SET`, or that decide a type (`model`, `mode`, `on_error = 'capture'`), are
//! written into the calls as well. The pass leaves its own output alone, so it may run twice.

mod captured;
mod fields;
mod names;
mod pass;
mod prompts;
mod syntax;

pub use pass::{ExpandWildcard, desugar, wildcard_arguments};
