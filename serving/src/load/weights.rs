//! What loading asks of weight files, beyond reading tensors.

use crate::error::{Error, Result};
use crate::model::{ModelConfig, TensorSource};

/// Weight files of one model.
pub(super) trait WeightFiles: TensorSource {
    /// Fails if the tensor is missing, of another shape, or of a type that devices do not take. Reads no weights.
    fn check(&self, name: &str, shape: &[usize]) -> Result<()>;

    /// Adds the files to a digest.
    fn digest(&self, hasher: &mut blake3::Hasher) -> Result<()>;

    /// Returns an error that names the files.
    fn error(&self, reason: String) -> Error;
}

/// Fails unless the files hold every tensor of the model, so that a wrong file is found before its first use.
pub(super) fn check_all(files: &impl WeightFiles, config: &ModelConfig) -> Result<()> {
    config.tensors().iter().try_for_each(|(name, shape)| files.check(name, shape))
}

/// Fails if the shapes differ.
pub(super) fn check_shape(files: &impl WeightFiles, name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(files.error(format!(
        "tensor {name:?} has shape {found:?}, the configuration asks for {expected:?}: weights and configuration are of \
         different models"
    )))
}

/// Returns the error of a tensor that is not there.
pub(super) fn missing(files: &impl WeightFiles, name: &str) -> Error {
    files.error(format!("tensor {name:?} is missing: the file is incomplete or of another architecture"))
}
