//! `CREATE MODEL … WITH (…)`: what may be said of a model, checked, and made into what loads it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use datafusion::common::{DataFusionError, Result, plan_datafusion_err, plan_err};
use refrain_serving::ModelKind;
use refrain_serving::device::cuda::{GpuMemory, Precision};
use refrain_serving::remote::{ApiFormat, RemoteConfig, StructuredOutput};
use refrain_udf::options::{boolean, number, suggest, whole};
use refrain_udf::settings::bytes;

/// Options of a model that is served in this process.
const LOCAL: &[&str] = &["type", "max_context", "tokenizer", "dtype", "gpu_memory", "revision"];

/// Options of a model behind an endpoint.
const EXTERNAL: &[&str] = &[
    "location",
    "api_format",
    "model",
    "credential",
    "revision",
    "type",
    "dimensions",
    "max_context",
    "requests_per_minute",
    "tokens_per_minute",
    "max_concurrency",
    "timeout_seconds",
    "max_retries",
    "structured_output",
    "streaming",
    "extra_body",
];

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelType {
    /// Text.
    Completion,
    /// Vectors.
    Embedding,
}

impl ModelType {
    fn parse(subject: &str, text: &str) -> Result<Self> {
        match text.to_lowercase().as_str() {
            "completion" => Ok(ModelType::Completion),
            "embedding" => Ok(ModelType::Embedding),
            _ => plan_err!("{subject} must be 'completion' or 'embedding', not '{text}'"),
        }
    }
}

impl From<ModelKind> for ModelType {
    fn from(kind: ModelKind) -> Self {
        match kind {
            ModelKind::Completion => ModelType::Completion,
            ModelKind::Embedding { .. } => ModelType::Embedding,
        }
    }
}

impl fmt::Display for ModelType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ModelType::Completion => "completion",
            ModelType::Embedding => "embedding",
        })
    }
}

/// What was said of a model that is served in this process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalOptions {
    /// What it is for; what its files say if not set.
    pub model_type: Option<ModelType>,
    /// The longest prompt and answer together, in tokens; the model's own limit if not set.
    pub max_context: Option<usize>,
    /// The tokenizer of a random model: a folder or a tokenizer.json.
    pub tokenizer: Option<PathBuf>,
    /// What a GPU keeps and multiplies it in; bf16 if not set. A model that names it runs on no CPU.
    pub dtype: Option<Precision>,
    /// The most that it may take of a GPU, and of each that it is split over.
    pub gpu_memory: Option<GpuMemory>,
    /// A label of the user, part of its identity: answers of one revision do not serve another.
    pub revision: Option<String>,
}

impl LocalOptions {
    /// Reads the options of `CREATE MODEL`. Fails on an unknown one, one given twice, or a wrong value.
    pub fn parse(model: &str, options: Vec<(String, String)>) -> Result<Self> {
        let options = Options::new(model, options, LOCAL)?;
        Ok(LocalOptions {
            model_type: options.model_type()?,
            max_context: options.whole("max_context")?,
            tokenizer: options.get("tokenizer").map(PathBuf::from),
            dtype: options.dtype()?,
            gpu_memory: options.gpu_memory()?,
            revision: options.revision()?,
        })
    }
}

/// A model behind an endpoint, without the value of its secret.
#[derive(Clone, Debug)]
pub struct ExternalModel {
    /// How it is called; holds no key.
    pub config: RemoteConfig,
    /// The name of the secret that holds the key.
    pub credential: Option<String>,
}

impl ExternalModel {
    /// Reads the options of `CREATE EXTERNAL MODEL`. Fails on an unknown one, one given twice, or a wrong value.
    pub fn parse(model: &str, options: Vec<(String, String)>) -> Result<Self> {
        let options = Options::new(model, options, EXTERNAL)?;
        let mut config = RemoteConfig::new(options.required("location")?, options.required("model")?);
        config.api_format = options.api_format()?;
        config.revision = options.revision()?;
        config.dimensions = options.whole("dimensions")?;
        if config.dimensions.is_some() && config.api_format != ApiFormat::Embeddings {
            return plan_err!("model {model:?}: option dimensions belongs to a model of type = 'embedding'");
        }
        config.requests_per_minute = options.whole("requests_per_minute")?;
        config.tokens_per_minute = options.whole("tokens_per_minute")?;
        options.whole("max_context")?.into_iter().for_each(|tokens| config.max_context = tokens);
        options.whole("max_concurrency")?.into_iter().for_each(|requests| config.max_concurrency = requests);
        if let Some(retries) = options.get("max_retries") {
            config.max_retries = whole(&options.subject("max_retries"), retries, 0)?;
        }
        if let Some(timeout) = options.timeout()? {
            config.request_timeout = timeout;
            config.first_byte_timeout = timeout;
            config.connect_timeout = config.connect_timeout.min(timeout);
        }
        if let Some(text) = options.get("structured_output") {
            config.structured_output = text.parse::<StructuredOutput>().map_err(|e| options.wrong(&e))?;
        }
        if let Some(text) = options.get("streaming") {
            config.streaming = boolean(&options.subject("streaming"), text)?;
        }
        if let Some(text) = options.get("extra_body") {
            config.extra_body = serde_json::from_str(text)
                .map_err(|e| plan_datafusion_err!("{} must be a JSON object: {e}", options.subject("extra_body")))?;
        }
        Ok(ExternalModel { config, credential: options.get("credential").map(str::to_owned) })
    }

    /// Returns what the model is for.
    pub fn model_type(&self) -> ModelType {
        match self.config.api_format {
            ApiFormat::Embeddings => ModelType::Embedding,
            ApiFormat::Chat | ApiFormat::Completions => ModelType::Completion,
        }
    }
}

/// Options as they were written, each known and given once.
struct Options<'a> {
    model: &'a str,
    values: BTreeMap<String, String>,
}

impl<'a> Options<'a> {
    fn new(model: &'a str, options: Vec<(String, String)>, known: &[&str]) -> Result<Self> {
        let mut values = BTreeMap::new();
        for (name, value) in options {
            if !known.contains(&name.as_str()) {
                return plan_err!("model {model:?} has no option {name}{}", suggest(&name, known.iter().copied()));
            }
            if values.insert(name.clone(), value).is_some() {
                return plan_err!("model {model:?}: option {name} is given twice");
            }
        }
        Ok(Options { model, values })
    }

    fn subject(&self, name: &str) -> String {
        format!("model {:?}: option {name}", self.model)
    }

    fn wrong(&self, error: &refrain_serving::Error) -> DataFusionError {
        plan_datafusion_err!("model {:?}: {error}", self.model)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    fn required(&self, name: &str) -> Result<&str> {
        let form = "WITH (location = 'https://…/v1', model = '…', credential = name of a secret)";
        match self.get(name) {
            Some(value) if !value.trim().is_empty() => Ok(value),
            _ => plan_err!("model {:?} needs the option {name}: {form}", self.model),
        }
    }

    /// Reads a whole number of at least 1.
    fn whole<T: TryFrom<u64>>(&self, name: &str) -> Result<Option<T>> {
        self.get(name).map(|text| whole(&self.subject(name), text, 1)).transpose()
    }

    fn model_type(&self) -> Result<Option<ModelType>> {
        self.get("type").map(|text| ModelType::parse(&self.subject("type"), text)).transpose()
    }

    fn dtype(&self) -> Result<Option<Precision>> {
        let wrong = |error| plan_datafusion_err!("{}: {error}", self.subject("dtype"));
        self.get("dtype").map(str::parse::<Precision>).transpose().map_err(wrong)
    }

    /// Reads a size in bytes, or a share of the GPU.
    fn gpu_memory(&self) -> Result<Option<GpuMemory>> {
        let Some(text) = self.get("gpu_memory") else { return Ok(None) };
        let subject = self.subject("gpu_memory");
        match text.trim().parse::<f64>() {
            Ok(share) if share > 0.0 && share <= 1.0 => Ok(Some(GpuMemory::Share(share))),
            _ => match bytes(&subject, text) {
                Ok(bytes) => Ok(Some(GpuMemory::Bytes(bytes))),
                Err(_) => {
                    plan_err!("{subject} must be a size such as 60GB, or a share of the GPU such as 0.5, not '{text}'")
                }
            },
        }
    }

    fn revision(&self) -> Result<Option<String>> {
        match self.get("revision") {
            Some(text) if text.trim().is_empty() => plan_err!("{} must not be empty", self.subject("revision")),
            text => Ok(text.map(str::to_owned)),
        }
    }

    /// Returns the interface: what is said, or what the type needs. Fails if both are said and differ.
    fn api_format(&self) -> Result<ApiFormat> {
        let named = self.get("api_format").filter(|text| !text.eq_ignore_ascii_case("openai"));
        let named = named.map(str::parse::<ApiFormat>).transpose().map_err(|e| self.wrong(&e))?;
        match (named, self.model_type()?) {
            (None, Some(ModelType::Embedding)) => Ok(ApiFormat::Embeddings),
            (None, _) => Ok(ApiFormat::Chat),
            (Some(ApiFormat::Embeddings), Some(ModelType::Completion))
            | (Some(ApiFormat::Chat | ApiFormat::Completions), Some(ModelType::Embedding)) => {
                plan_err!("model {:?}: options api_format and type contradict each other; leave out api_format", self.model)
            }
            (Some(format), _) => Ok(format),
        }
    }

    fn timeout(&self) -> Result<Option<Duration>> {
        let Some(text) = self.get("timeout_seconds") else { return Ok(None) };
        let subject = self.subject("timeout_seconds");
        let seconds = number(&subject, text)?;
        match Duration::try_from_secs_f64(seconds) {
            Ok(timeout) if !timeout.is_zero() => Ok(Some(timeout)),
            _ => plan_err!("{subject} must be a number of seconds above 0, not '{text}'"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn external(options: &[(&str, &str)]) -> Result<ExternalModel, String> {
        let base = [("location", "https://a/v1"), ("model", "x")];
        let all = base.iter().chain(options).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        ExternalModel::parse("m", all.collect()).map_err(|error| error.strip_backtrace())
    }

    #[track_caller]
    fn refused(options: &[(&str, &str)], expected: &str) {
        let error = external(options).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn options_take_effect() {
        let model = external(&[
            ("credential", "k"),
            ("requests_per_minute", "30"),
            ("tokens_per_minute", "2000"),
            ("max_concurrency", "3"),
            ("max_context", "4096"),
            ("timeout_seconds", "0.5"),
            ("max_retries", "0"),
            ("structured_output", "guided"),
            ("streaming", "on"),
            ("extra_body", "{\"top_k\": 5}"),
            ("revision", "2026-05"),
        ]);
        let ExternalModel { config, credential } = model.unwrap();
        assert_eq!(credential.as_deref(), Some("k"));
        assert_eq!((config.requests_per_minute, config.tokens_per_minute), (Some(30), Some(2000)));
        assert_eq!((config.max_concurrency, config.max_context, config.max_retries), (3, 4096, 0));
        assert_eq!(
            (config.request_timeout, config.connect_timeout),
            (Duration::from_millis(500), Duration::from_millis(500))
        );
        assert_eq!((config.structured_output, config.streaming), (StructuredOutput::Guided, true));
        assert_eq!(config.extra_body["top_k"], 5);
        assert_eq!(config.revision.as_deref(), Some("2026-05"));
        assert!(config.credential.is_none());
    }

    #[test]
    fn the_type_chooses_the_interface() {
        let format = |options: &[(&str, &str)]| external(options).map(|model| model.config.api_format);
        assert_eq!(format(&[]), Ok(ApiFormat::Chat));
        assert_eq!(
            format(&[("api_format", "openai"), ("type", "embedding"), ("dimensions", "8")]),
            Ok(ApiFormat::Embeddings)
        );
        assert_eq!(format(&[("api_format", "completions")]), Ok(ApiFormat::Completions));
        refused(&[("api_format", "chat"), ("type", "embedding")], "contradict each other");
        refused(&[("dimensions", "8")], "belongs to a model of type = 'embedding'");
    }

    #[test]
    fn wrong_options_are_told() {
        refused(&[("locaton", "x")], "model \"m\" has no option locaton; did you mean location?");
        refused(&[("type", "vision")], "option type must be 'completion' or 'embedding', not 'vision'");
        refused(&[("max_concurrency", "0")], "option max_concurrency must be a whole number of at least 1, not '0'");
        refused(&[("timeout_seconds", "-1")], "option timeout_seconds must be a number of seconds above 0, not '-1'");
        refused(&[("model", "y")], "option model is given twice");
        refused(&[("extra_body", "[1]")], "option extra_body must be a JSON object");
        refused(&[("api_format", "grpc")], "api_format is chat, completions or embeddings");
        let missing = ExternalModel::parse("m", vec![]).unwrap_err().to_string();
        assert!(missing.contains("needs the option location"), "{missing}");
        let local = |name: &str, value: &str| LocalOptions::parse("m", vec![(name.into(), value.into())]);
        let error = local("dtyp", "x").unwrap_err().to_string();
        assert!(error.contains("has no option dtyp; did you mean dtype?"), "{error}");
        let error = local("dtype", "int4").unwrap_err().to_string();
        assert!(error.contains("option dtype: expected bf16, fp8 or f32, not \"int4\""), "{error}");
        assert_eq!(local("dtype", "FP8").unwrap().dtype, Some(Precision::Fp8));
        assert_eq!(local("gpu_memory", "60GB").unwrap().gpu_memory, Some(GpuMemory::Bytes(60 << 30)));
        assert_eq!(local("gpu_memory", "0.5").unwrap().gpu_memory, Some(GpuMemory::Share(0.5)));
        let error = local("gpu_memory", "1.5").unwrap_err().to_string();
        assert!(
            error.contains("gpu_memory must be a size such as 60GB, or a share of the GPU such as 0.5, not '1.5'"),
            "{error}"
        );
        let error = local("revision", " ").unwrap_err().to_string();
        assert!(error.contains("option revision must not be empty"), "{error}");
    }
}
