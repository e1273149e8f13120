//! The embedded engine: one thread for each device.

mod backend;
mod engine;

pub use backend::{LocalBackend, LocalConfig};

#[cfg(test)]
mod tests;
