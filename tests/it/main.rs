//! Integration tests: one binary, since each would link the whole engine.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]
#![allow(clippy::print_stdout, reason = "a test says when it was skipped")]

mod aggregates;
mod answer_cache;
mod bad_input;
mod benchmark_queries;
mod budgets;
mod bundled_model;
mod cancellation;
mod cascades;
mod chat_server;
mod checkpoint;
mod classify_join;
mod counted_once;
mod devices;
mod embeddings;
mod estimates;
mod explain;
mod external_models;
mod flight;
mod generated_tables;
mod hit_rates;
mod joins;
mod layering;
mod layouts;
mod limits;
mod passages;
mod predicate_order;
mod query_shapes;
mod random_model;
mod seams;
mod sembench_movie;
mod slt;
mod spilling;
mod support;
mod system_tables;
mod ui;
