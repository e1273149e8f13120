//! The embedded engine: one thread for each device, which serves one model or several.
//!
//! | file | what it is |
//! |---|---|
//! | `engine` | [`LocalEngine`]: the thread, and how models come to it |
//! | `backend` | [`LocalBackend`]: one model of an engine as a [`Backend`](crate::Backend) |
//! | `models` | which model takes the next step |
//! | `memory` | one budget for the KV pages of all models |
//! | `model` | one model: its device, its scheduler, the streams it answers on |
//! | `replicas` | [`Replicas`]: one model on several devices, each of which answers a part of every batch |

mod backend;
mod engine;
mod memory;
mod model;
mod models;
mod replicas;

pub use backend::{LocalBackend, LocalConfig};
pub use engine::{EngineConfig, EngineResources, LocalEngine};
pub use replicas::Replicas;

#[cfg(test)]
mod tests;
