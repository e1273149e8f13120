//! Answers that outlive their query: the cache in memory, the cache in a file, and the checkpoint.
//!
//! A query asks the [`AnswerCache`] of its session for the answers that [`QueryAnswers`] may use, looks its questions up before
//! it asks the model, and gives every answer back as it comes. An answer is kept as the text (or vector) that the model gave,
//! under the digest of its question, and is parsed again when it is read.
//!
//! | part | what it is |
//! |---|---|
//! | `kept` | an answer as it is kept, and where it came from |
//! | `session_tier` | answers in memory, least recently used ones dropped first |
//! | `store` | answers in a file, for one process at a time |
//! | `writer` | the thread that owns a store's writing, and the handle that queries use |
//! | `cache` | the tiers of a session put together |

mod cache;
mod kept;
mod session_tier;
mod store;
mod writer;

pub use cache::{AnswerCache, AnswerSettings, CacheStats, Clock, QueryAnswers, Tier, TierBytes};
pub use kept::{Kept, Key, Provenance};
