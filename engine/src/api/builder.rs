//! What a session starts with.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::common::config::ExtensionOptions;
use datafusion::prelude::SessionConfig;
use refrain_udf::Settings;

use super::Refrain;
use crate::error::Result;
use crate::models::{ModelCatalog, ModelSource};
use crate::queries::QueryLog;
use crate::secrets::SecretStore;
use crate::session;

/// Collects what a session starts with.
#[derive(Default)]
pub struct Builder {
    models: Vec<(String, ModelSource)>,
    settings: Vec<(String, String)>,
    config: SessionConfig,
    secrets_folder: Option<PathBuf>,
    kernel_cache: Option<PathBuf>,
}

impl Builder {
    /// Adds a model. Where there is exactly one it answers every call that names none; with none, the bundled model does.
    pub fn model(mut self, name: impl Into<String>, source: ModelSource) -> Self {
        self.models.push((name.into(), source));
        self
    }

    /// Changes a setting, as `SET refrain.key = value` would.
    pub fn setting(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// Names the folder of persistent secrets; without one, `CREATE PERSISTENT SECRET` is refused.
    pub fn secrets_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.secrets_folder = Some(folder.into());
        self
    }

    /// Names the folder where kernels are kept that were compiled for a GPU; without one they are compiled each time a model is
    /// loaded, which takes seconds.
    pub fn kernel_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.kernel_cache = Some(folder.into());
        self
    }

    /// Replaces DataFusion's part of the configuration.
    pub fn config(mut self, config: SessionConfig) -> Self {
        self.config = config;
        self
    }

    /// Builds the session. Fails on an unknown setting or a model that is not there; loads nothing.
    pub async fn build(self) -> Result<Refrain> {
        let mut settings = Settings::default();
        for (key, value) in &self.settings {
            settings.set(key, value)?;
        }
        let secrets = Arc::new(SecretStore::new(self.secrets_folder));
        let models = Arc::new(ModelCatalog::new(Arc::clone(&secrets), self.kernel_cache));
        #[cfg(feature = "bundled-model")]
        models.add_fallback("mini", ModelSource::Bundled(refrain_serving::load::BundledModel::Mini));
        for (name, source) in self.models {
            models.add(&name, source, true)?;
        }
        let queries = Arc::new(QueryLog::default());
        let (context, catalogs) = session::new_session(&models, &queries, settings, self.config)?;
        Ok(Refrain { context, catalogs, models, secrets, queries })
    }
}
