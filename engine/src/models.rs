//! The models of a session: names, where their weights lie, and their backends once somebody asks them.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, plan_datafusion_err, plan_err};
use refrain_serving::device::Device;
use refrain_serving::device::cpu::{CpuDevice, CpuOptions};
use refrain_serving::load::{self, LoadedModel};
use refrain_serving::local::{LocalBackend, LocalConfig};
use refrain_serving::{Backend, Tokenizer};
use refrain_udf::TokenizerSource;
use tokio::sync::OnceCell;

use crate::Error;

/// Bytes of a KV pool unless a setting says otherwise: 25,000 tokens of the bundled model. Memory is taken as pages are used.
const KV_CACHE_BYTES: usize = 256 << 20;

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A folder as Hugging Face lays it out, or a GGUF file with `tokenizer.json` beside it.
    Path(PathBuf),
    /// A model that is compiled into the program.
    #[cfg(feature = "bundled-model")]
    Bundled(load::BundledModel),
    /// A backend that the program has made itself, such as the mock.
    Backend(Arc<dyn Backend>),
}

impl ModelSource {
    /// Names a folder or a GGUF file.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        ModelSource::Path(path.into())
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelSource::Path(path) => write!(f, "{}", path.display()),
            #[cfg(feature = "bundled-model")]
            ModelSource::Bundled(_) => f.write_str("bundled"),
            ModelSource::Backend(_) => f.write_str("provided by the program"),
        }
    }
}

/// A model as `SHOW MODELS` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// The name used in SQL.
    pub name: String,
    /// Where it comes from.
    pub location: String,
    /// `loaded` or `not loaded`.
    pub state: String,
    /// Where it runs; empty while it is not loaded.
    pub device: String,
    /// The longest prompt and answer together, in tokens; empty while it is not loaded.
    pub max_context: String,
    /// Identity of weights, tokenizer and configuration; empty while it is not loaded.
    pub digest: String,
}

/// The models of a session.
#[derive(Debug, Default)]
pub struct ModelCatalog {
    models: Mutex<BTreeMap<String, Arc<Model>>>,
    device: Mutex<DeviceOptions>,
}

/// How the embedded engine runs models that are loaded from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Threads of the CPU device; one for each core if not set.
    pub threads: Option<NonZeroUsize>,
    /// Bytes of the KV pool; the device's choice if not set.
    pub kv_cache_bytes: Option<usize>,
    /// Tokens in one step; the scheduler's choice if not set.
    pub step_tokens: Option<u32>,
}

#[derive(Debug)]
struct Model {
    name: String,
    source: ModelSource,
    /// Serves only while no other model is there.
    is_fallback: bool,
    tokenizer: OnceLock<Arc<dyn Tokenizer>>,
    backend: OnceCell<Arc<dyn Backend>>,
}

impl ModelCatalog {
    /// Adds a model. Fails if the name is taken, unless it is to be replaced; checks that a path exists, and loads nothing.
    pub fn add(&self, name: &str, source: ModelSource, replace: bool) -> Result<()> {
        if let ModelSource::Path(path) = &source
            && let Err(error) = std::fs::metadata(path)
        {
            return Err(Error::Model(format!("cannot find model {name:?} at {}: {error}", path.display())).into());
        }
        let mut models = self.lock();
        if models.contains_key(name) && !replace {
            return plan_err!("model {name:?} exists already; use CREATE OR REPLACE MODEL or another name");
        }
        models.insert(name.to_owned(), Arc::new(Model::new(name, source, false)));
        Ok(())
    }

    /// Adds a model that serves while no other is there.
    pub fn add_fallback(&self, name: &str, source: ModelSource) {
        self.lock().insert(name.to_owned(), Arc::new(Model::new(name, source, true)));
    }

    /// Removes a model; queries that run go on with it. Returns whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        self.lock().remove(name).is_some()
    }

    /// Returns whether a model serves only while no other is there.
    pub fn is_fallback(&self, name: &str) -> bool {
        self.lock().get(name).is_some_and(|model| model.is_fallback)
    }

    /// Returns whether there is a model of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }

    /// Decides how models are run that are loaded from now on.
    pub fn set_device(&self, options: DeviceOptions) {
        *self.device.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = options;
    }

    /// Lists the models by name.
    pub fn list(&self) -> Vec<ModelInfo> {
        self.lock().values().map(|model| model.info()).collect()
    }

    /// Returns the name of the model that a call uses: the one that it or the settings name, or the only one there is.
    pub fn resolve(&self, named: Option<&str>) -> Result<String> {
        let models = self.lock();
        if let Some(name) = named {
            return match models.contains_key(name) {
                true => Ok(name.to_owned()),
                false => Err(unknown(name, &models)),
            };
        }
        let mut candidates: Vec<&Arc<Model>> = models.values().filter(|model| !model.is_fallback).collect();
        if candidates.is_empty() {
            candidates = models.values().collect();
        }
        match candidates.as_slice() {
            [model] => Ok(model.name.clone()),
            [] => plan_err!("there is no model; make one with CREATE MODEL name FROM 'folder'"),
            several => {
                let names: Vec<&str> = several.iter().map(|model| model.name.as_str()).collect();
                plan_err!("several models could answer ({}); choose one with SET refrain.model", names.join(", "))
            }
        }
    }

    /// Returns the backend of a model, which is loaded on the first call.
    pub async fn backend(&self, name: &str) -> Result<Arc<dyn Backend>> {
        let model = self.model(name)?;
        let device = *self.device.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let backend = model.backend.get_or_try_init(|| async {
            let source = model.source.clone();
            let loading = SpawnedTask::spawn_blocking(move || start(source, device));
            let backend = loading.join().await.map_err(|e| Error::Model(format!("loading the model failed: {e}")))?;
            backend.map_err(|e| DataFusionError::from(Error::from(e)))
        });
        backend.await.map(Arc::clone)
    }

    /// Returns the tokenizer of a model without loading its weights.
    pub fn tokenizer_of(&self, name: &str) -> Result<Arc<dyn Tokenizer>> {
        let model = self.model(name)?;
        if let Some(backend) = model.backend.get() {
            return Ok(backend.tokenizer());
        }
        if let Some(tokenizer) = model.tokenizer.get() {
            return Ok(Arc::clone(tokenizer));
        }
        let tokenizer = load_tokenizer(&model.source).map_err(|e| DataFusionError::from(Error::from(e)))?;
        Ok(Arc::clone(model.tokenizer.get_or_init(|| tokenizer)))
    }

    fn model(&self, name: &str) -> Result<Arc<Model>> {
        let models = self.lock();
        models.get(name).cloned().ok_or_else(|| unknown(name, &models))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Model>>> {
        self.models.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl TokenizerSource for ModelCatalog {
    fn tokenizer(&self, model: Option<&str>) -> Result<Arc<dyn Tokenizer>> {
        let name = self.resolve(model)?;
        self.tokenizer_of(&name)
    }
}

impl Model {
    fn new(name: &str, source: ModelSource, is_fallback: bool) -> Self {
        let backend = match &source {
            ModelSource::Backend(backend) => OnceCell::new_with(Some(Arc::clone(backend))),
            _ => OnceCell::new(),
        };
        Model { name: name.to_owned(), source, is_fallback, tokenizer: OnceLock::new(), backend }
    }

    fn info(&self) -> ModelInfo {
        let capabilities = self.backend.get().map(|backend| backend.capabilities());
        let loaded = capabilities.is_some();
        let (device, max_context, digest) = match capabilities {
            Some(c) => (c.device, c.max_context.to_string(), c.model_digest),
            None => Default::default(),
        };
        ModelInfo {
            name: self.name.clone(),
            location: self.source.to_string(),
            state: if loaded { "loaded" } else { "not loaded" }.to_owned(),
            device,
            max_context,
            digest,
        }
    }
}

fn unknown(name: &str, models: &BTreeMap<String, Arc<Model>>) -> DataFusionError {
    let names: Vec<&str> = models.keys().map(String::as_str).collect();
    match names.is_empty() {
        true => plan_datafusion_err!("model {name:?} is unknown; make it with CREATE MODEL {name} FROM 'folder'"),
        false => plan_datafusion_err!("model {name:?} is unknown; known models: {}", names.join(", ")),
    }
}

/// Reads a model's configuration and tokenizer; weights are read tensor by tensor later.
fn open(source: &ModelSource) -> refrain_serving::Result<Opened> {
    Ok(match source {
        ModelSource::Path(path) => Opened::Files(load::load_folder(path)?),
        #[cfg(feature = "bundled-model")]
        ModelSource::Bundled(name) => Opened::Files(load::bundled(*name)?),
        ModelSource::Backend(backend) => Opened::Backend(Arc::clone(backend)),
    })
}

enum Opened {
    Files(LoadedModel),
    Backend(Arc<dyn Backend>),
}

fn load_tokenizer(source: &ModelSource) -> refrain_serving::Result<Arc<dyn Tokenizer>> {
    Ok(match open(source)? {
        Opened::Files(model) => model.tokenizer,
        Opened::Backend(backend) => backend.tokenizer(),
    })
}

/// Loads a model onto the CPU and starts its engine. Takes seconds for a large model.
fn start(source: ModelSource, options: DeviceOptions) -> refrain_serving::Result<Arc<dyn Backend>> {
    let LoadedModel { config, weights, tokenizer, digest } = match open(&source)? {
        Opened::Files(model) => model,
        Opened::Backend(backend) => return Ok(backend),
    };
    let mut local = LocalConfig::new(config.max_context, digest);
    if let Some(tokens) = options.step_tokens {
        local.scheduler.step_tokens = tokens;
    }
    let cpu = CpuOptions { threads: options.threads, kv_bytes: options.kv_cache_bytes.unwrap_or(KV_CACHE_BYTES) };
    let device = move || Ok(Box::new(CpuDevice::new(&config, weights.as_ref(), cpu)?) as Box<dyn Device>);
    Ok(Arc::new(LocalBackend::start(device, tokenizer, local)?))
}
