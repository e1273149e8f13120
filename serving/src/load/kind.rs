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
}

/// Tells the kind of a model. A path that is no folder, or has no config.json, is left to the loader of decoders and its messages.
pub(crate) fn folder_kind(path: &Path) -> Result<FolderKind> {
    let config = read_json(&path.join("config.json"))?;
    let encodes = config.is_some_and(|(_, json)| is_encoder(&json) || is_sentence_folder(path));
    Ok(if encodes { FolderKind::Encoder } else { FolderKind::Completion })
}
