//! Where the lengths of vectors come from: they are part of a type, so planning must know them.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::common::Result;

/// Knows the embedding models of a session. Must not wait for a model to be loaded.
pub trait EmbeddingSource: Send + Sync + Debug {
    /// Returns the length of the vectors of a model, or of the one that calls use which name none; `None` where only an answer
    /// tells.
    ///
    /// Fails if there is no such model, if it makes no vectors, or if several could be meant.
    fn dimensions(&self, model: Option<&str>) -> Result<Option<u32>>;
}

/// A source that a function holds; equal to another if both are the same.
#[derive(Clone, Debug)]
pub(crate) struct Embeddings(pub(crate) Arc<dyn EmbeddingSource>);

impl PartialEq for Embeddings {
    fn eq(&self, other: &Embeddings) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Embeddings {}

impl Hash for Embeddings {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).cast::<()>().hash(state);
    }
}
