//! What kind of model a folder holds, told from its small files.

use std::path::Path;

use super::encoder::is_encoder;
use super::folder::read_json;
use super::sentence::is_sentence_folder;
use crate::error::Result;

/// What kind of model a folder or file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FolderKind {
    /// A decoder that completes text.
    Completion,
    /// An encoder that makes vectors.
    Encoder,
    /// A decoder that makes vectors.
    EmbeddingDecoder,
}

/// Tells the kind of a model. A path that is no folder, or has no config.json, is left to the loader of decoders and its messages.
pub(crate) fn folder_kind(path: &Path) -> Result<FolderKind> {
    Ok(match read_json(&path.join("config.json"))? {
        Some((_, config)) if is_encoder(&config) => FolderKind::Encoder,
        Some(_) if is_sentence_folder(path) => FolderKind::EmbeddingDecoder,
        _ => FolderKind::Completion,
    })
}
