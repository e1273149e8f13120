//! The models of a session: names, where their weights lie, and their backends once somebody asks them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, internal_datafusion_err, plan_datafusion_err, plan_err};
use refrain_serving::backend::{Stats, with_revision};
use refrain_serving::device::cuda::Precision;
use refrain_serving::load::{self, LoadedModel, RandomShape};
use refrain_serving::model::ModelConfig;
use refrain_serving::open::{EmbeddingOptions, OpenedModel, is_embedding_folder, open_model};
use refrain_serving::remote::{MessageTokenizer, RemoteBackend};
use refrain_serving::{Backend, Error as ServingError, ModelKind, Tokenizer};
use refrain_udf::{EmbeddingSource, TokenizerSource};

use crate::Error;
use crate::devices::{CPU_KV_BYTES, DeviceOptions, Engines};
use crate::loading::{LazyBackend, LoadFacts, LoadProgress, Loading};
use crate::model_options::{ExternalModel, LocalOptions, ModelType};
use crate::secrets::SecretStore;
use crate::statement::Existing;

/// What decides the weights of random models.
const RANDOM_SEED: u64 = 0;

/// Where a model comes from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ModelSource {
    /// A folder as Hugging Face lays it out, or a GGUF file with `tokenizer.json` beside it.
    Path(PathBuf),
    /// Weights that are drawn at random, in the shape of a real model: to measure with, for its answers are noise.
    Random {
        /// The shape.
        shape: RandomShape,
        /// A folder with tokenizer.json, or the file itself; the bundled model's tokenizer if not set.
        tokenizer: Option<PathBuf>,
    },
    /// A model that is compiled into the program.
    #[cfg(feature = "bundled-model")]
    Bundled(load::BundledModel),
    /// A model behind an endpoint.
    External(Box<ExternalModel>),
    /// A backend that the program has made itself, such as the mock.
    Backend(Arc<dyn Backend>),
}

impl ModelSource {
    /// Names a folder or a GGUF file.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        ModelSource::Path(path.into())
    }

    /// Reads what `CREATE MODEL name FROM` names: `random:SHAPE`, or a folder or a GGUF file. Fails if there is no such shape.
    pub fn parse(location: &str) -> Result<Self> {
        Ok(match location.strip_prefix("random:") {
            Some(shape) => ModelSource::Random { shape: shape.parse().map_err(own)?, tokenizer: None },
            None => ModelSource::path(location),
        })
    }

    /// Returns the word for it in `ai_models()`.
    fn kind(&self) -> &'static str {
        match self {
            ModelSource::Path(_) => "local",
            ModelSource::Random { .. } => "random",
            #[cfg(feature = "bundled-model")]
            ModelSource::Bundled(_) => "bundled",
            ModelSource::External(_) => "external",
            ModelSource::Backend(_) => "program",
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelSource::Path(path) => write!(f, "{}", path.display()),
            ModelSource::Random { shape, .. } => write!(f, "random:{shape}"),
            #[cfg(feature = "bundled-model")]
            ModelSource::Bundled(_) => f.write_str("bundled"),
            ModelSource::External(model) => f.write_str(&model.config.location),
            ModelSource::Backend(_) => f.write_str("provided by the program"),
        }
    }
}

/// A model as `ai_models()` lists it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The name used in SQL.
    pub name: String,
    /// `local`, `random`, `bundled`, `external`, or `program` for a backend that the program has made.
    pub kind: &'static str,
    /// What it is for.
    pub model_type: ModelType,
    /// Where it comes from.
    pub location: String,
    /// The longest prompt and answer together, in tokens, where that is known.
    pub max_context: Option<usize>,
    /// What its weights are kept in: as it was loaded, else as it was asked for.
    pub dtype: Option<&'static str>,
    /// The length of its vectors, where it makes any and that is known.
    pub dimensions: Option<u32>,
    /// Identity of weights, tokenizer and configuration, where that is known.
    pub digest: Option<String>,
    /// `loaded`, `loading` or `not loaded`.
    pub state: &'static str,
    /// Where it runs, once it is loaded.
    pub device: Option<String>,
    /// How it was loaded, once it is.
    pub loaded: Option<LoadFacts>,
    /// Bytes of memory that its weights take, once it is loaded and where that is known.
    pub held_bytes: Option<u64>,
    /// Bytes of GPUs that it takes, KV pages included, once it is loaded and where it is on any.
    pub gpu_bytes: Option<u64>,
    /// What may be asked of it.
    pub capabilities: Vec<&'static str>,
    /// The version that its service reported last.
    pub reported_version: Option<String>,
    /// The name of the secret that holds its key.
    pub credential: Option<String>,
}

/// The models of a session.
#[derive(Debug, Default)]
pub struct ModelCatalog {
    models: Mutex<BTreeMap<String, Arc<Model>>>,
    device: Mutex<DeviceOptions>,
    engines: Arc<Engines>,
    secrets: Arc<SecretStore>,
}

#[derive(Debug)]
struct Model {
    name: String,
    source: ModelSource,
    options: LocalOptions,
    /// What its files say, if somebody has read them.
    described: Option<Described>,
    /// Serves only while no other model is there.
    is_fallback: bool,
    tokenizer: OnceLock<Arc<dyn Tokenizer>>,
    /// The length of its vectors, where its files were read for that alone.
    dimensions: OnceLock<u32>,
    backend: Arc<LazyBackend>,
}

/// What the files of a model say of it.
#[derive(Debug)]
struct Described {
    max_context: usize,
    digest: String,
    /// The length of its vectors, where it makes any.
    dimensions: Option<u32>,
}

impl ModelCatalog {
    /// Makes a catalog whose external models find their keys in `secrets`. Kernels that are compiled for a GPU are kept in
    /// `kernel_cache`, if there is one.
    pub fn new(secrets: Arc<SecretStore>, kernel_cache: Option<PathBuf>) -> Self {
        ModelCatalog { secrets, engines: Arc::new(Engines::new(kernel_cache)), ..ModelCatalog::default() }
    }

    /// Adds a model. Fails if the name is taken, unless it is to be replaced; checks that a path exists, and loads nothing.
    pub fn add(&self, name: &str, source: ModelSource, replace: bool) -> Result<()> {
        if let ModelSource::Path(path) = &source {
            check_path(name, path)?;
        }
        let existing = if replace { Existing::Replace } else { Existing::Refuse };
        if self.is_wanted(name, existing)? {
            self.insert(Model::new(name, source, false));
        }
        Ok(())
    }

    /// Adds a model that serves while no other is there.
    pub fn add_fallback(&self, name: &str, source: ModelSource) {
        self.insert(Model::new(name, source, true));
    }

    /// Adds a model from files, or a random one; see [`ModelSource::parse`]. Reads its configuration and its tokenizer, and loads
    /// nothing.
    pub async fn create(&self, name: &str, location: &str, options: LocalOptions, existing: Existing) -> Result<()> {
        if !self.is_wanted(name, existing)? {
            return Ok(());
        }
        let source = match (ModelSource::parse(location)?, &options.tokenizer) {
            (ModelSource::Random { shape, .. }, tokenizer) => ModelSource::Random { shape, tokenizer: tokenizer.clone() },
            (_, Some(_)) => {
                return plan_err!("model {name:?}: option tokenizer is for random models; {location} brings its own");
            }
            (source, None) => source,
        };
        if let ModelSource::Path(path) = &source {
            check_path(name, path)?;
        }
        let read = source.clone();
        let reading = SpawnedTask::spawn_blocking(move || describe(&read));
        let reading = reading.join().await.map_err(|e| internal_datafusion_err!("reading a model failed: {e}"))?;
        let Some((described, tokenizer)) = reading.map_err(own)? else {
            return plan_err!("model {name:?}: {location} is no model of this machine");
        };
        let described = Described { digest: with_revision(described.digest, options.revision.as_deref()), ..described };
        let limit = described.max_context;
        let found = if described.dimensions.is_some() { ModelType::Embedding } else { ModelType::Completion };
        if let Some(wanted) = options.model_type.filter(|wanted| *wanted != found) {
            return plan_err!("model {name:?}: option type is '{wanted}', and {location} is a model of type '{found}'");
        }
        if let Some(wanted) = options.max_context.filter(|wanted| *wanted > limit) {
            return plan_err!("model {name:?}: option max_context = {wanted} is more than the model's own limit, {limit}");
        }
        if let (Some(dtype), ModelType::Embedding) = (options.dtype, found) {
            return plan_err!(
                "model {name:?}: option dtype = '{dtype}' is for models that complete text; {location} makes vectors"
            );
        }
        let mut model = Model::new(name, source, false);
        model.options = LocalOptions { model_type: Some(found), ..options };
        model.described = Some(Described { max_context: options.max_context.unwrap_or(limit), ..described });
        model.tokenizer = OnceLock::from(tokenizer);
        if self.is_wanted(name, existing)? {
            self.insert(model);
        }
        Ok(())
    }

    /// Adds a model behind an endpoint. Connects to nothing. Fails if the address or its host is not allowed, or if the secret is
    /// not there.
    pub fn create_external(
        &self,
        name: &str,
        model: ExternalModel,
        allowed_hosts: Option<&[String]>,
        existing: Existing,
    ) -> Result<()> {
        if !self.is_wanted(name, existing)? {
            return Ok(());
        }
        check_endpoint(name, &model, allowed_hosts)?;
        if let Some(secret) = &model.credential {
            self.secrets.key(secret)?;
        }
        self.insert(Model::new(name, ModelSource::External(Box::new(model)), false));
        Ok(())
    }

    /// Removes a model; queries that run go on with it. Returns whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        self.lock().remove(name).is_some()
    }

    /// Gives up the backends that were made with a secret, so that the next call takes its new value.
    pub fn forget_credential(&self, secret: &str) {
        for model in self.lock().values() {
            if model.credential() == Some(secret) {
                model.backend.forget();
            }
        }
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

    /// Returns the counters of the models that are loaded, by name.
    pub fn loaded_stats(&self) -> Vec<(String, Stats)> {
        self.lock().values().filter_map(|model| Some((model.name.clone(), model.backend.stats()?))).collect()
    }

    /// Returns a model as it is listed. Fails if there is none of this name.
    pub fn describe(&self, name: &str) -> Result<ModelInfo> {
        Ok(self.model(name)?.info())
    }

    /// Lists the loads that are under way, by name of the model.
    pub fn loading(&self) -> Vec<(String, Loading)> {
        let loading = |model: &Arc<Model>| Some((model.name.clone(), model.backend.loading()?));
        self.lock().values().filter_map(loading).collect()
    }

    /// Returns the name of the model that a call uses: the one that it or the settings name, or the only one of the wanted type.
    pub fn resolve(&self, named: Option<&str>, wanted: ModelType) -> Result<String> {
        let models = self.lock();
        if let Some(name) = named {
            let Some(model) = models.get(name) else { return Err(unknown(name, &models)) };
            let found = model.model_type();
            if found != wanted {
                let others = names(models.values().filter(|model| model.model_type() == wanted));
                let others = others.map_or_else(|| "there is none".to_owned(), |names| format!("there is {names}"));
                return plan_err!("model {name:?} is of type {found}, and the call needs one of type {wanted}; {others}");
            }
            return Ok(name.to_owned());
        }
        let of_type = |fallback| {
            let fits = move |model: &&Arc<Model>| model.is_fallback == fallback && model.model_type() == wanted;
            models.values().filter(fits).collect::<Vec<_>>()
        };
        let own = of_type(false);
        let candidates = if own.is_empty() { of_type(true) } else { own };
        match (candidates.as_slice(), wanted) {
            ([model], _) => Ok(model.name.clone()),
            ([], ModelType::Completion) => plan_err!("there is no model; make one with CREATE MODEL name FROM 'folder'"),
            ([], ModelType::Embedding) => plan_err!(
                "there is no model of type embedding; make one with CREATE MODEL name FROM 'folder' WITH (type = 'embedding')"
            ),
            (several, wanted) => {
                let names = names(several.iter().copied()).unwrap_or_default();
                let setting = if wanted == ModelType::Embedding { "embedding_model" } else { "model" };
                plan_err!("several models could answer ({names}); choose one with SET refrain.{setting}")
            }
        }
    }

    /// Fails if a model lies on a host that is not allowed.
    pub fn check_host(&self, name: &str, allowed_hosts: Option<&[String]>) -> Result<()> {
        match (&self.model(name)?.source, allowed_hosts) {
            (ModelSource::External(model), Some(_)) => check_endpoint(name, model, allowed_hosts),
            _ => Ok(()),
        }
    }

    /// Returns the backend of a model, which is loaded on the first call. The model counts as used until it is dropped.
    pub async fn backend(&self, name: &str) -> Result<Arc<dyn Backend>> {
        let model = self.model(name)?;
        let device = *self.device.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (source, options) = (model.source.clone(), model.options.clone());
        let (engines, secrets) = (Arc::clone(&self.engines), Arc::clone(&self.secrets));
        let open = move |progress| start(source, options, device, &engines, &secrets, progress);
        model.backend.get(open).await.map_err(own)
    }

    /// Frees weights and pages of a model once no query uses it; the next call loads it again. Returns whether it was loaded.
    pub async fn unload(&self, name: &str) -> Result<bool> {
        let model = self.model(name)?;
        if matches!(model.source, ModelSource::Backend(_)) {
            return plan_err!("model {name:?} is provided by the program and cannot be unloaded; use DROP MODEL {name}");
        }
        Ok(model.backend.unload().await)
    }

    /// Returns the tokenizer of a model without loading its weights.
    pub fn tokenizer_of(&self, name: &str) -> Result<Arc<dyn Tokenizer>> {
        let model = self.model(name)?;
        if let Some(tokenizer) = model.backend.tokenizer() {
            return Ok(tokenizer);
        }
        if let Some(tokenizer) = model.tokenizer.get() {
            return Ok(Arc::clone(tokenizer));
        }
        let tokenizer = load_tokenizer(&model.source).map_err(own)?;
        Ok(Arc::clone(model.tokenizer.get_or_init(|| tokenizer)))
    }

    /// Returns the longest prompt and answer of a model together, in tokens, without loading it; `None` where only loading tells.
    pub fn max_context(&self, name: &str) -> Result<Option<usize>> {
        let model = self.model(name)?;
        Ok(match (model.info().max_context, &model.source) {
            (Some(known), _) => Some(known),
            #[cfg(feature = "bundled-model")]
            (None, ModelSource::Bundled(name)) => Some(load::bundled(*name).map_err(own)?.config.max_context),
            (None, ModelSource::Random { shape, .. }) => Some(shape.config().max_context),
            (None, ModelSource::Backend(backend)) => Some(backend.capabilities().max_context),
            _ => None,
        })
    }

    /// Returns the sizes of a decoder of this machine, read from its files; `None` for any other model.
    pub fn config(&self, name: &str) -> Result<Option<ModelConfig>> {
        Ok(match open(&self.model(name)?.source).map_err(own)? {
            Some(OpenedModel::Completion(model)) => Some(model.config),
            _ => None,
        })
    }

    /// Returns what one token of the tokenizer counts for in the model's own tokens; see [`Capabilities::token_scale`].
    ///
    /// [`Capabilities::token_scale`]: refrain_serving::Capabilities::token_scale
    pub fn token_scale(&self, name: &str) -> Result<f64> {
        let model = self.model(name)?;
        Ok(match (model.backend.loaded(), &model.source) {
            (Some((capabilities, _)), _) => capabilities.token_scale,
            // Made without its key, and only asked what it is.
            (None, ModelSource::External(external)) => {
                RemoteBackend::new(external.config.clone()).map_err(own)?.capabilities().token_scale
            }
            (None, _) => 1.0,
        })
    }

    /// Returns whether a model answers well only where the instruction stands in front of the data. The bundled model has seen
    /// nothing else in its training; larger ones take either (docs/benchmarks.md, "Data first").
    pub fn needs_instruction_first(&self, name: &str) -> Result<bool> {
        Ok(self.model(name)?.source.kind() == "bundled")
    }

    /// Returns whether answers of a model can be held to a regular expression.
    pub fn takes_regex(&self, name: &str) -> Result<bool> {
        Ok(self.model(name)?.takes_regex())
    }

    /// Returns how many requests and tokens the endpoint of a model takes in a minute, where that is limited.
    pub fn rates(&self, name: &str) -> Result<(Option<u32>, Option<u32>)> {
        Ok(match &self.model(name)?.source {
            ModelSource::External(external) => (external.config.requests_per_minute, external.config.tokens_per_minute),
            _ => (None, None),
        })
    }

    /// Returns whether a model of this name is to be added. Fails if it is there and that is an error.
    fn is_wanted(&self, name: &str, existing: Existing) -> Result<bool> {
        match (self.contains(name), existing) {
            (true, Existing::Refuse) => {
                plan_err!("model {name:?} exists already; use CREATE OR REPLACE MODEL or another name")
            }
            (true, Existing::Keep) => Ok(false),
            _ => Ok(true),
        }
    }

    fn insert(&self, model: Model) {
        self.lock().insert(model.name.clone(), Arc::new(model));
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
        match model {
            // A model of any type has tokens to count.
            Some(name) => self.tokenizer_of(name),
            None => self.tokenizer_of(&self.resolve(None, ModelType::Completion)?),
        }
    }
}

impl EmbeddingSource for ModelCatalog {
    fn dimensions(&self, model: Option<&str>) -> Result<Option<u32>> {
        let model = self.model(&self.resolve(model, ModelType::Embedding)?)?;
        if let Some(dimensions) = model.info().dimensions.or_else(|| model.dimensions.get().copied()) {
            return Ok(Some(dimensions));
        }
        let Some((described, _)) = describe(&model.source).map_err(own)? else { return Ok(None) };
        Ok(described.dimensions.map(|dimensions| *model.dimensions.get_or_init(|| dimensions)))
    }
}

impl Model {
    fn new(name: &str, source: ModelSource, is_fallback: bool) -> Self {
        let backend = match &source {
            ModelSource::Backend(backend) => LazyBackend::ready(Arc::clone(backend)),
            _ => LazyBackend::default(),
        };
        let mut options = LocalOptions::default();
        if let ModelSource::Path(path) = &source
            && is_embedding_folder(path)
        {
            options.model_type = Some(ModelType::Embedding);
        }
        Model {
            name: name.to_owned(),
            source,
            options,
            described: None,
            is_fallback,
            tokenizer: OnceLock::new(),
            dimensions: OnceLock::new(),
            backend: Arc::new(backend),
        }
    }

    fn model_type(&self) -> ModelType {
        match &self.source {
            ModelSource::External(model) => model.model_type(),
            ModelSource::Backend(backend) => backend.capabilities().kind.into(),
            _ => self.options.model_type.unwrap_or(ModelType::Completion),
        }
    }

    /// Returns what may be asked of it. Whether a service reports probabilities shows when it is asked for them.
    fn capabilities(&self) -> Vec<&'static str> {
        match self.model_type() {
            ModelType::Embedding => vec!["embed"],
            ModelType::Completion if self.takes_regex() => vec!["complete", "json", "regex", "logprobs"],
            ModelType::Completion => vec!["complete", "json", "logprobs"],
        }
    }

    /// Returns whether answers can be held to a regular expression.
    fn takes_regex(&self) -> bool {
        match &self.source {
            ModelSource::External(model) => model.config.structured_output.takes_regex(),
            _ => true,
        }
    }

    fn credential(&self) -> Option<&str> {
        match &self.source {
            ModelSource::External(model) => model.credential.as_deref(),
            _ => None,
        }
    }

    fn info(&self) -> ModelInfo {
        let mut info = ModelInfo {
            name: self.name.clone(),
            kind: self.source.kind(),
            model_type: self.model_type(),
            location: self.source.to_string(),
            max_context: self.options.max_context,
            dtype: self.options.dtype.map(Precision::name),
            dimensions: None,
            digest: None,
            state: if self.backend.loading().is_some() { "loading" } else { "not loaded" },
            device: None,
            loaded: None,
            held_bytes: None,
            gpu_bytes: None,
            capabilities: self.capabilities(),
            reported_version: self.backend.reported_version(),
            credential: self.credential().map(str::to_owned),
        };
        if let ModelSource::External(model) = &self.source {
            info.max_context = Some(model.config.max_context);
            info.dimensions = model.config.dimensions;
        }
        if let Some(Described { max_context, digest, dimensions }) = &self.described {
            info.dimensions = *dimensions;
            info.max_context = Some(*max_context);
            info.digest = Some(digest.clone());
        }
        if let Some((capabilities, facts)) = self.backend.loaded() {
            info.max_context = Some(capabilities.max_context);
            info.digest = Some(capabilities.model_digest);
            info.device = Some(capabilities.device);
            info.held_bytes = capabilities.held_bytes;
            info.gpu_bytes = capabilities.gpu_bytes;
            info.dtype = capabilities.dtype.or(info.dtype);
            if let ModelKind::Embedding { dimensions } = capabilities.kind {
                info.dimensions = dimensions;
            }
            info.state = "loaded";
            info.loaded = Some(facts);
        }
        info
    }
}

fn names<'a>(models: impl Iterator<Item = &'a Arc<Model>>) -> Option<String> {
    let names: Vec<&str> = models.map(|model| model.name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn unknown(name: &str, models: &BTreeMap<String, Arc<Model>>) -> DataFusionError {
    match names(models.values()) {
        None => plan_datafusion_err!("model {name:?} is unknown; make it with CREATE MODEL {name} FROM 'folder'"),
        Some(names) => plan_datafusion_err!("model {name:?} is unknown; known models: {names}"),
    }
}

fn check_path(name: &str, path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Model(format!("cannot find model {name:?} at {}: {error}", path.display())).into()),
    }
}

fn check_endpoint(name: &str, model: &ExternalModel, allowed_hosts: Option<&[String]>) -> Result<()> {
    let mut config = model.config.clone();
    config.allowed_hosts = allowed_hosts.map(<[String]>::to_vec);
    match RemoteBackend::new(config) {
        Ok(_) => Ok(()),
        Err(error) => plan_err!("model {name:?}: {error}"),
    }
}

fn own(error: ServingError) -> DataFusionError {
    Error::from(error).into()
}

/// Opens a model of this machine: its configuration and tokenizer are read, its weights tensor by tensor later. `None` for one
/// that lies elsewhere, or is served already.
fn open(source: &ModelSource) -> refrain_serving::Result<Option<OpenedModel>> {
    Ok(Some(match source {
        ModelSource::Path(path) => open_model(path)?,
        ModelSource::Random { shape, tokenizer } => {
            OpenedModel::Completion(load::random(*shape, RANDOM_SEED, tokenizer.as_deref())?)
        }
        #[cfg(feature = "bundled-model")]
        ModelSource::Bundled(name) => OpenedModel::Completion(load::bundled(*name)?),
        ModelSource::External(_) | ModelSource::Backend(_) => return Ok(None),
    }))
}

/// Reads what the files of a model say of it, and its tokenizer; `None` for one that is not of this machine.
fn describe(source: &ModelSource) -> refrain_serving::Result<Option<(Described, Arc<dyn Tokenizer>)>> {
    Ok(open(source)?.map(|opened| match opened {
        OpenedModel::Completion(LoadedModel { config, tokenizer, digest, weights: _ }) => {
            let tokenizer: Arc<dyn Tokenizer> = tokenizer;
            (Described { max_context: config.max_context, digest, dimensions: None }, tokenizer)
        }
        OpenedModel::Embedding(model) => {
            let (max_context, digest) = (model.max_tokens(), model.digest().to_owned());
            (Described { max_context, digest, dimensions: Some(model.dimensions()) }, model.tokenizer())
        }
    }))
}

/// Reads a model's tokenizer.
fn load_tokenizer(source: &ModelSource) -> refrain_serving::Result<Arc<dyn Tokenizer>> {
    Ok(match (source, describe(source)?) {
        (_, Some((_, tokenizer))) => tokenizer,
        (ModelSource::Backend(backend), None) => backend.tokenizer(),
        (_, None) => Arc::new(MessageTokenizer),
    })
}

/// Makes the backend of a model. Takes seconds for a large one.
fn start(
    source: ModelSource,
    options: LocalOptions,
    device: DeviceOptions,
    engines: &Engines,
    secrets: &SecretStore,
    progress: Arc<LoadProgress>,
) -> refrain_serving::Result<Arc<dyn Backend>> {
    let bytes = weight_bytes(&source);
    let drawn = if matches!(source, ModelSource::Random { .. }) { bytes } else { 0 };
    progress.total.store(bytes, Ordering::Relaxed);
    let model = match (open(&source)?, source) {
        (Some(OpenedModel::Completion(model)), _) => {
            LoadedModel { digest: with_revision(model.digest, options.revision.as_deref()), ..model }
        }
        (Some(OpenedModel::Embedding(model)), _) => {
            let model = model.with_revision(options.revision.as_deref());
            let backend = model.start(EmbeddingOptions {
                threads: device.threads,
                kv_bytes: device.kv_cache_bytes.unwrap_or(CPU_KV_BYTES),
                max_tokens: options.max_context,
            })?;
            progress.done.store(bytes, Ordering::Relaxed);
            return Ok(backend);
        }
        (None, ModelSource::External(model)) => return connect(*model, secrets),
        (None, ModelSource::Backend(backend)) => return Ok(backend),
        (None, other) => return Err(ServingError::Invalid(format!("{other} is no model that can be started"))),
    };
    if options.model_type == Some(ModelType::Embedding) {
        let message = "the model writes text and makes no vectors; create it with type = 'completion'";
        return Err(ServingError::Invalid(message.to_owned()));
    }
    let backend = engines.start(&model, &options, device, &progress)?;
    // What a device draws itself is not read.
    progress.done.fetch_max(drawn, Ordering::Relaxed);
    Ok(backend)
}

fn connect(model: ExternalModel, secrets: &SecretStore) -> refrain_serving::Result<Arc<dyn Backend>> {
    let ExternalModel { mut config, credential } = model;
    if let Some(secret) = credential {
        let key = secrets.key(&secret).map_err(|e| ServingError::Invalid(Error::from(e).to_string()))?;
        config.credential = Some(key);
    }
    Ok(Arc::new(RemoteBackend::new(config)?))
}

/// Returns the bytes of a model's weight files, for the progress of a load, or of weights that are drawn; 0 if that is not known.
fn weight_bytes(source: &ModelSource) -> u64 {
    let path = match source {
        ModelSource::Path(path) => path,
        ModelSource::Random { shape, .. } => return 2 * shape.config().parameters(),
        _ => return 0,
    };
    let is_weights = |path: &Path| path.extension().is_some_and(|end| end == "safetensors" || end == "gguf");
    let len = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    match fs::read_dir(path) {
        Err(_) => len(path),
        Ok(entries) => {
            let files = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
            files.filter(|file| is_weights(file)).map(|file| len(&file)).sum()
        }
    }
}
