//! Embedding models: texts in, vectors of unit length out.
//!
//! An encoder keeps nothing from one text to the next, so it needs neither pages nor a scheduler: [`EncoderBackend`] owns a
//! thread that takes waiting requests in order, as many as fill a pass, and runs them without padding.

mod backend;
mod engine;
#[cfg(test)]
mod tests;
mod vector;

pub(crate) use backend::check_shape;
pub use backend::{EncoderBackend, EncoderBackendConfig};
pub use vector::unit_vector;
