//! Settings of a session, `SET refrain.x = v`: a DataFusion config extension with fully qualified names.

use std::any::Any;

use datafusion::common::config::{ConfigEntry, ConfigExtension, ExtensionOptions};
use datafusion::common::{Result, plan_datafusion_err, plan_err};
use refrain_serving::device::DeviceChoice;

use crate::options::{
    Dedup, Keyword, Mode, NullInput, OnError, OnOverflow, Reorder, boolean, number, share, suggest, temperature, top_p,
    whole,
};
use crate::rewrites;

/// The settings of a session. An option of a call wins over the setting of the same name.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The model that calls ask unless they name one; `None` means the only one there is.
    pub model: Option<String>,
    /// The model that makes vectors unless a call names one; `None` means the only one there is.
    pub embedding_model: Option<String>,
    /// Hosts that external models may lie on, as `host` or `host:port`; `None` allows all.
    pub allowed_hosts: Option<Vec<String>>,
    /// Ended queries that `ai_queries()` and `ai_usage()` remember.
    pub query_history: usize,
    /// Failed inputs that `ai_errors()` remembers, over all queries.
    pub error_history: usize,
    /// 0 takes the most probable token.
    pub temperature: f64,
    /// Keep the most probable tokens whose probabilities sum to this.
    pub top_p: f64,
    /// Keep this many of the most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Decides every draw at a temperature above 0.
    pub seed: u64,
    /// The longest answer, in tokens.
    pub max_tokens: u32,
    /// How instruction and inputs become a prompt.
    pub mode: Mode,
    /// What a failed row gives.
    pub on_error: OnError,
    /// The share of failed rows above which a query fails.
    pub max_error_ratio: f64,
    /// What happens to an input that is longer than the context.
    pub on_overflow: OnOverflow,
    /// What a NULL in a template does.
    pub null_input: NullInput,
    /// How rows and fields are ordered.
    pub reorder: Reorder,
    /// How many rows are ordered together; `None` means as many as memory holds.
    pub reorder_window: Option<usize>,
    /// Whether prompts begin with the instruction or with the data.
    pub layout: LayoutChoice,
    /// Whether equal inputs are one call.
    pub dedup: Dedup,
    /// How long answers are remembered.
    pub cache: Cache,
    /// The directory of the persistent cache.
    pub cache_dir: Option<String>,
    /// Seconds after which a cached answer is asked for again; `None` means never.
    pub cache_ttl: Option<u64>,
    /// The file that keeps finished calls, so that a rerun pays only for the rest; `None` keeps none.
    pub checkpoint: Option<String>,
    /// Prompt tokens that a query may send; 0 means no limit, here and below.
    pub max_input_tokens: u64,
    /// Tokens that the answers of a query may have together.
    pub max_output_tokens_total: u64,
    /// Calls that a query may make.
    pub max_calls: u64,
    /// Seconds after its start within which a query may ask.
    pub max_seconds: f64,
    /// Which queries come first where several wait.
    pub priority: Priority,
    /// Whether cheaper, weaker answers are allowed.
    pub optimization_mode: OptimizationMode,
    /// The model that answers first where weaker answers are allowed; `None` allows no cascade.
    pub proxy_model: Option<String>,
    /// The share of the rows that the model would keep which a cascade must keep as well.
    pub recall_target: f64,
    /// The share of the rows that a cascade keeps which the model would keep as well.
    pub precision_target: f64,
    /// The probability with which a cascade may miss one of its targets.
    pub failure_probability: f64,
    /// Pairs that a join on an LLM predicate may ask about; 0 means no limit.
    pub max_join_pairs: u64,
    /// Seconds of models above which the shell asks before a statement runs; `None` means never.
    pub confirm_above: Option<f64>,
    /// Rewrites of plans that are switched off, by name.
    pub disabled_rewrites: Vec<String>,
    /// Where models run.
    pub device: DeviceChoice,
    /// Memory for the KV cache, in bytes; `None` lets the device decide.
    pub kv_cache_bytes: Option<usize>,
    /// Tokens of one forward pass; `None` lets the device decide.
    pub step_tokens: Option<usize>,
    /// Threads of the CPU device; `None` means one for each core.
    pub threads: Option<usize>,
    /// Whether a GPU gives an answer the same bits whatever else runs.
    pub batch_invariant: bool,
    /// Whether prompts share the KV of common prefixes.
    pub prefix_cache: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            model: None,
            embedding_model: None,
            allowed_hosts: None,
            query_history: 1000,
            error_history: 10_000,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            seed: 0,
            max_tokens: 256,
            mode: Mode::Auto,
            on_error: OnError::Null,
            max_error_ratio: 0.1,
            on_overflow: OnOverflow::Error,
            null_input: NullInput::Skip,
            reorder: Reorder::Auto,
            reorder_window: None,
            layout: LayoutChoice::Auto,
            dedup: Dedup::Auto,
            cache: Cache::Query,
            cache_dir: None,
            cache_ttl: None,
            checkpoint: None,
            max_input_tokens: 0,
            max_output_tokens_total: 0,
            max_calls: 0,
            max_seconds: 0.0,
            priority: Priority::Interactive,
            optimization_mode: OptimizationMode::Exact,
            proxy_model: None,
            recall_target: 0.9,
            precision_target: 0.9,
            failure_probability: 0.05,
            max_join_pairs: 1_000_000,
            confirm_above: None,
            disabled_rewrites: vec![],
            device: DeviceChoice::Auto,
            kv_cache_bytes: None,
            step_tokens: None,
            threads: None,
            batch_invariant: false,
            prefix_cache: true,
        }
    }
}

/// How long answers are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cache {
    /// Not beyond one operator.
    Off,
    /// For one query.
    Query,
    /// As long as the session, in memory.
    Session,
    /// In a file, for later sessions.
    Persistent,
}

impl Keyword for Cache {
    const VALUES: &'static [(&'static str, Cache)] =
        &[("off", Cache::Off), ("query", Cache::Query), ("session", Cache::Session), ("persistent", Cache::Persistent)];
}

/// Which queries come first where several wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for the rows.
    Interactive,
    /// Nobody does: calls of interactive queries come first.
    Batch,
}

impl Priority {
    /// Returns how urgent calls are; more is sooner.
    pub fn rank(self) -> i32 {
        match self {
            Priority::Interactive => 0,
            Priority::Batch => -1,
        }
    }
}

impl Keyword for Priority {
    const VALUES: &'static [(&'static str, Priority)] =
        &[("interactive", Priority::Interactive), ("batch", Priority::Batch)];
}

/// Whether cheaper, weaker answers are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptimizationMode {
    /// Never.
    Exact,
    /// Within `recall_target`, `precision_target` and `failure_probability`.
    MinimizeCost,
}

impl Keyword for OptimizationMode {
    const VALUES: &'static [(&'static str, OptimizationMode)] =
        &[("exact", OptimizationMode::Exact), ("minimize_cost", OptimizationMode::MinimizeCost)];
}

/// Whether prompts begin with the instruction or with the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LayoutChoice {
    /// With the data where several calls read the same rows and that saves enough.
    #[default]
    Auto,
    /// With the instruction.
    InstructionFirst,
    /// With the data, in fields mode.
    DataFirst,
}

impl Keyword for LayoutChoice {
    const VALUES: &'static [(&'static str, LayoutChoice)] = &[
        ("auto", LayoutChoice::Auto),
        ("instruction_first", LayoutChoice::InstructionFirst),
        ("data_first", LayoutChoice::DataFirst),
    ];
}

/// Name and meaning of every setting, in the order they are shown.
const SETTINGS: &[(&str, &str)] = &[
    ("model", "model that calls ask unless they name one"),
    ("embedding_model", "model that makes vectors unless a call names one"),
    ("allowed_hosts", "hosts that external models may lie on, separated by commas; all if unset"),
    ("query_history", "ended queries that ai_queries() and ai_usage() remember"),
    ("error_history", "failed inputs that ai_errors() remembers"),
    ("temperature", "0 takes the most probable token"),
    ("top_p", "keep the most probable tokens whose probabilities sum to this"),
    ("top_k", "keep this many of the most probable tokens; 0 keeps all"),
    ("seed", "decides every draw at a temperature above 0"),
    ("max_tokens", "longest answer, in tokens"),
    ("mode", "how instruction and inputs become a prompt: auto, fields or template"),
    ("on_error", "what a failed row gives: null, fail or capture"),
    ("max_error_ratio", "share of failed rows above which a query fails"),
    ("on_overflow", "what happens to an input longer than the context: error, truncate or chunk"),
    ("null_input", "what a NULL in a template does: skip or text"),
    ("reorder", "how rows and fields are ordered: auto, none, rows, search, tree, ggr or ophr"),
    ("reorder_window", "rows that are ordered together"),
    ("layout", "what a prompt begins with: auto, instruction_first or data_first"),
    ("dedup", "whether equal inputs are one call: auto, always or off"),
    ("cache", "how long answers are remembered: off, query, session or persistent"),
    ("cache_dir", "directory of the persistent cache"),
    ("cache_ttl", "time after which a cached answer is asked for again, such as 90s, 15m, 12h or 7d"),
    ("checkpoint", "file that keeps finished calls, so that a rerun pays only for the rest; off keeps none"),
    ("max_input_tokens", "prompt tokens that a query may send; 0 is no limit"),
    ("max_output_tokens_total", "tokens that the answers of a query may have together; 0 is no limit"),
    ("max_calls", "calls that a query may make; 0 is no limit"),
    ("max_seconds", "seconds after its start within which a query may ask; 0 is no limit"),
    ("priority", "which queries come first where several wait: interactive or batch"),
    ("optimization_mode", "whether weaker answers are allowed: exact or minimize_cost"),
    ("proxy_model", "model that answers first where weaker answers are allowed"),
    ("recall_target", "share of the model's own rows that a cascade must keep"),
    ("precision_target", "share of a cascade's rows that the model must agree with"),
    ("failure_probability", "probability with which a cascade may miss a target"),
    ("max_join_pairs", "pairs that a join on an LLM predicate may ask about; 0 is no limit"),
    ("confirm_above", "seconds of models above which the shell asks before it runs a statement; never if unset"),
    ("disabled_rewrites", "rewrites of plans that are switched off, separated by commas; none or all"),
    ("device", "where models run: auto, cpu, cuda, cuda:N, cuda:all or cuda:tp"),
    ("kv_cache_bytes", "memory for the KV cache, as bytes or as 512MB or 4GB"),
    ("step_tokens", "tokens of one forward pass"),
    ("threads", "threads of the CPU device"),
    ("batch_invariant", "whether a GPU gives an answer the same bits whatever else runs; slower"),
    ("prefix_cache", "whether prompts share the KV of common prefixes"),
];

impl Settings {
    /// Returns whether plans may give answers that the plain plan would not.
    pub fn allows_approximate_plans(&self) -> bool {
        self.optimization_mode == OptimizationMode::MinimizeCost
    }

    /// Returns whether a proxy may answer for the model.
    pub fn allows_cascades(&self) -> bool {
        self.allows_approximate_plans() && self.proxy_model.is_some()
    }

    /// Returns name (without `refrain.`) and meaning of every setting.
    pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
        SETTINGS.iter().copied()
    }

    /// Gives a setting its default again. Fails if there is no such setting.
    pub fn reset(&mut self, name: &str) -> Result<()> {
        let name = known(name)?;
        match Settings::default().get(name) {
            Some(value) => self.set(name, &value),
            None => self.clear(name),
        }
    }

    /// Returns the value of a setting as text; `None` if it is unset or unknown.
    pub fn get(&self, name: &str) -> Option<String> {
        match name {
            "model" => self.model.clone(),
            "embedding_model" => self.embedding_model.clone(),
            "allowed_hosts" => self.allowed_hosts.as_ref().map(|hosts| hosts.join(",")),
            "query_history" => Some(self.query_history.to_string()),
            "error_history" => Some(self.error_history.to_string()),
            "temperature" => Some(self.temperature.to_string()),
            "top_p" => Some(self.top_p.to_string()),
            "top_k" => Some(self.top_k.to_string()),
            "seed" => Some(self.seed.to_string()),
            "max_tokens" => Some(self.max_tokens.to_string()),
            "mode" => Some(self.mode.name().into()),
            "on_error" => Some(self.on_error.name().into()),
            "max_error_ratio" => Some(self.max_error_ratio.to_string()),
            "on_overflow" => Some(self.on_overflow.name().into()),
            "null_input" => Some(self.null_input.name().into()),
            "reorder" => Some(self.reorder.name().into()),
            "reorder_window" => self.reorder_window.map(|rows| rows.to_string()),
            "layout" => Some(self.layout.name().into()),
            "dedup" => Some(self.dedup.name().into()),
            "cache" => Some(self.cache.name().into()),
            "cache_dir" => self.cache_dir.clone(),
            "cache_ttl" => self.cache_ttl.map(|seconds| format!("{seconds}s")),
            "checkpoint" => self.checkpoint.clone(),
            "max_input_tokens" => Some(self.max_input_tokens.to_string()),
            "max_output_tokens_total" => Some(self.max_output_tokens_total.to_string()),
            "max_calls" => Some(self.max_calls.to_string()),
            "max_seconds" => Some(self.max_seconds.to_string()),
            "priority" => Some(self.priority.name().into()),
            "optimization_mode" => Some(self.optimization_mode.name().into()),
            "proxy_model" => self.proxy_model.clone(),
            "recall_target" => Some(self.recall_target.to_string()),
            "precision_target" => Some(self.precision_target.to_string()),
            "failure_probability" => Some(self.failure_probability.to_string()),
            "max_join_pairs" => Some(self.max_join_pairs.to_string()),
            "confirm_above" => self.confirm_above.map(|seconds| seconds.to_string()),
            "disabled_rewrites" => Some(rewrites::shown(&self.disabled_rewrites)),
            "device" => Some(self.device.to_string()),
            "kv_cache_bytes" => self.kv_cache_bytes.map(|bytes| bytes.to_string()),
            "step_tokens" => self.step_tokens.map(|tokens| tokens.to_string()),
            "threads" => self.threads.map(|threads| threads.to_string()),
            "batch_invariant" => Some(self.batch_invariant.to_string()),
            "prefix_cache" => Some(self.prefix_cache.to_string()),
            _ => None,
        }
    }

    /// Unsets one of the settings that may be unset.
    fn clear(&mut self, name: &str) -> Result<()> {
        match name {
            "model" => self.model = None,
            "embedding_model" => self.embedding_model = None,
            "proxy_model" => self.proxy_model = None,
            "allowed_hosts" => self.allowed_hosts = None,
            "reorder_window" => self.reorder_window = None,
            "cache_dir" => self.cache_dir = None,
            "cache_ttl" => self.cache_ttl = None,
            "checkpoint" => self.checkpoint = None,
            "confirm_above" => self.confirm_above = None,
            "kv_cache_bytes" => self.kv_cache_bytes = None,
            "step_tokens" => self.step_tokens = None,
            "threads" => self.threads = None,
            _ => return plan_err!("setting refrain.{name} needs a value"),
        }
        Ok(())
    }
}

/// Returns the plain name of a setting, given with or without `refrain.` and in any case.
fn known(name: &str) -> Result<&'static str> {
    let lower = name.trim().to_lowercase();
    let plain = lower.strip_prefix("refrain.").unwrap_or(&lower);
    match SETTINGS.iter().find(|(name, _)| *name == plain) {
        Some((name, _)) => Ok(name),
        None => plan_err!("there is no setting refrain.{plain}{}", suggest(plain, SETTINGS.iter().map(|(name, _)| *name))),
    }
}

/// Reads a size in bytes: a whole number, with one of the units KB, MB, GB (powers of 1024) or none.
pub fn bytes(subject: &str, text: &str) -> Result<usize> {
    let lower = text.trim().to_lowercase();
    let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match lower[digits.len()..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => {
            return plan_err!("{subject} must be a number of bytes such as 512MB or 4GB, not '{text}'");
        }
    };
    let count = digits.parse::<usize>().ok().filter(|count| *count > 0);
    match count.and_then(|count| count.checked_mul(1 << shift)) {
        Some(bytes) => Ok(bytes),
        None => plan_err!("{subject} must be a number of bytes such as 512MB or 4GB, not '{text}'"),
    }
}

/// Reads a time in whole seconds: a whole number above 0, with one of the units s, m, h, d or none.
fn duration_s(subject: &str, text: &str) -> Result<u64> {
    let lower = text.trim().to_lowercase();
    let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit_s = match lower[digits.len()..].trim() {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(60 * 60),
        "d" => Some(24 * 60 * 60),
        _ => None,
    };
    let count = digits.parse::<u64>().ok().filter(|count| *count > 0);
    match count.zip(unit_s).and_then(|(count, unit_s)| count.checked_mul(unit_s)) {
        Some(seconds) => Ok(seconds),
        None => plan_err!("{subject} must be a time such as 90s, 15m, 12h or 7d, not '{text}'"),
    }
}

/// Reads a number of seconds that is not negative; a part of one is allowed.
fn seconds(subject: &str, text: &str) -> Result<f64> {
    let value = number(subject, text)?;
    if value < 0.0 { plan_err!("{subject} must not be negative, got {text}") } else { Ok(value) }
}

/// Reads a share of rows that a sample can vouch for: below 1, where every row would have to be asked.
fn target(subject: &str, text: &str) -> Result<f64> {
    let value = share(subject, text)?;
    if value < 1.0 { Ok(value) } else { plan_err!("{subject} must be below 1; optimization_mode = 'exact' misses nothing") }
}

/// Reads a probability between 0 and 1, both excluded.
fn probability(subject: &str, text: &str) -> Result<f64> {
    let value = share(subject, text)?;
    if value > 0.0 && value < 1.0 { Ok(value) } else { plan_err!("{subject} must lie between 0 and 1, got {text}") }
}

/// Reads the name of a device.
fn device(subject: &str, text: &str) -> Result<DeviceChoice> {
    text.parse().map_err(|error| plan_datafusion_err!("{subject}: {error}"))
}

impl ConfigExtension for Settings {
    const PREFIX: &'static str = "refrain";
}

impl ExtensionOptions for Settings {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let name = known(key)?;
        let subject = format!("refrain.{name}");
        if value.trim().is_empty() {
            return self.clear(name);
        }
        match name {
            "model" => self.model = Some(value.to_string()),
            "embedding_model" => self.embedding_model = Some(value.to_string()),
            "allowed_hosts" => self.allowed_hosts = Some(value.split(',').map(|host| host.trim().to_owned()).collect()),
            "query_history" => self.query_history = whole(&subject, value, 0)?,
            "error_history" => self.error_history = whole(&subject, value, 0)?,
            "temperature" => self.temperature = temperature(&subject, value)?,
            "top_p" => self.top_p = top_p(&subject, value)?,
            "top_k" => self.top_k = whole(&subject, value, 0)?,
            "seed" => self.seed = whole(&subject, value, 0)?,
            "max_tokens" => self.max_tokens = whole(&subject, value, 1)?,
            "mode" => self.mode = Mode::parse(&subject, value)?,
            "on_error" => self.on_error = OnError::parse(&subject, value)?,
            "max_error_ratio" => self.max_error_ratio = share(&subject, value)?,
            "on_overflow" => self.on_overflow = OnOverflow::parse(&subject, value)?,
            "null_input" => self.null_input = NullInput::parse(&subject, value)?,
            "reorder" => self.reorder = Reorder::parse(&subject, value)?,
            "reorder_window" => self.reorder_window = Some(whole(&subject, value, 1)?),
            "layout" => self.layout = LayoutChoice::parse(&subject, value)?,
            "dedup" => self.dedup = Dedup::parse(&subject, value)?,
            "cache" => self.cache = Cache::parse(&subject, value)?,
            "cache_dir" => self.cache_dir = Some(value.to_string()),
            "cache_ttl" => self.cache_ttl = Some(duration_s(&subject, value)?),
            "checkpoint" => self.checkpoint = (!value.trim().eq_ignore_ascii_case("off")).then(|| value.to_string()),
            "max_input_tokens" => self.max_input_tokens = whole(&subject, value, 0)?,
            "max_output_tokens_total" => self.max_output_tokens_total = whole(&subject, value, 0)?,
            "max_calls" => self.max_calls = whole(&subject, value, 0)?,
            "max_seconds" => self.max_seconds = seconds(&subject, value)?,
            "priority" => self.priority = Priority::parse(&subject, value)?,
            "optimization_mode" => self.optimization_mode = OptimizationMode::parse(&subject, value)?,
            "proxy_model" => self.proxy_model = Some(value.to_string()),
            "recall_target" => self.recall_target = target(&subject, value)?,
            "precision_target" => self.precision_target = target(&subject, value)?,
            "failure_probability" => self.failure_probability = probability(&subject, value)?,
            "max_join_pairs" => self.max_join_pairs = whole(&subject, value, 0)?,
            "confirm_above" => self.confirm_above = Some(seconds(&subject, value)?),
            "disabled_rewrites" => self.disabled_rewrites = rewrites::parse(&subject, value)?,
            "device" => self.device = device(&subject, value)?,
            "kv_cache_bytes" => self.kv_cache_bytes = Some(bytes(&subject, value)?),
            "step_tokens" => self.step_tokens = Some(whole(&subject, value, 1)?),
            "threads" => self.threads = Some(whole(&subject, value, 1)?),
            "batch_invariant" => self.batch_invariant = boolean(&subject, value)?,
            "prefix_cache" => self.prefix_cache = boolean(&subject, value)?,
            other => return plan_err!("there is no setting refrain.{other}"),
        }
        Ok(())
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        let entry = |(name, description): &(&'static str, &'static str)| ConfigEntry {
            key: format!("refrain.{name}"),
            value: self.get(name),
            description,
        };
        SETTINGS.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::AsArray;
    use datafusion::prelude::{SessionConfig, SessionContext};

    #[track_caller]
    fn check(name: &str, value: &str, expected: Result<&str, &str>) {
        let mut settings = Settings::default();
        match (settings.set(name, value), expected) {
            (Ok(()), Ok(shown)) => {
                assert_eq!(settings.get(known(name).unwrap()).as_deref(), Some(shown))
            }
            (Err(error), Err(message)) => {
                assert_eq!(error.strip_backtrace(), format!("Error during planning: {message}"));
            }
            (got, expected) => panic!("{name} = {value}: got {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn sets_and_shows() {
        check("model", "Qwen", Ok("Qwen"));
        check("allowed_hosts", "a.com, b:80", Ok("a.com,b:80"));
        check("refrain.temperature", "0.5", Ok("0.5"));
        check("REFRAIN.Reorder", "GGR", Ok("ggr"));
        check("device", "CUDA:1", Ok("cuda:1"));
        check("kv_cache_bytes", "4GB", Ok("4294967296"));
        check("kv_cache_bytes", "512 mb", Ok("536870912"));
        check("prefix_cache", "off", Ok("false"));
        check("batch_invariant", "on", Ok("true"));
        check("cache", "off", Ok("off"));
        check("cache", "Persistent", Ok("persistent"));
        check("cache_dir", "/tmp/Answers", Ok("/tmp/Answers"));
        check("cache_ttl", "12h", Ok("43200s"));
        check("cache_ttl", "90", Ok("90s"));
        check("checkpoint", "run.answers", Ok("run.answers"));
        check("max_calls", "5", Ok("5"));
        check("max_seconds", "0.5", Ok("0.5"));
        check("confirm_above", "120", Ok("120"));
        check("optimization_mode", "minimize_cost", Ok("minimize_cost"));
        check(
            "disabled_rewrites",
            "Defer_LLM_past_topk, stop_llm_filter_at_limit",
            Ok("defer_llm_past_topk,stop_llm_filter_at_limit"),
        );
        check("disabled_rewrites", "none", Ok("none"));
    }

    #[test]
    fn refuses_with_what_is_valid() {
        check("temprature", "1", Err("there is no setting refrain.temprature; did you mean temperature?"));
        check("dedup", "maybe", Err("refrain.dedup must be 'auto', 'always' or 'off', not 'maybe'"));
        check("cache", "forever", Err("refrain.cache must be 'off', 'query', 'session' or 'persistent', not 'forever'"));
        check("cache_ttl", "soon", Err("refrain.cache_ttl must be a time such as 90s, 15m, 12h or 7d, not 'soon'"));
        check("cache_ttl", "0s", Err("refrain.cache_ttl must be a time such as 90s, 15m, 12h or 7d, not '0s'"));
        check("max_calls", "-1", Err("refrain.max_calls must be a whole number of at least 0, not '-1'"));
        check("max_seconds", "-1", Err("refrain.max_seconds must not be negative, got -1"));
        check("confirm_above", "-1", Err("refrain.confirm_above must not be negative, got -1"));
        check(
            "recall_target",
            "1",
            Err("refrain.recall_target must be below 1; optimization_mode = 'exact' misses nothing"),
        );
        check("failure_probability", "0", Err("refrain.failure_probability must lie between 0 and 1, got 0"));
        check(
            "disabled_rewrites",
            "defer_topk",
            Err("refrain.disabled_rewrites: there is no rewrite 'defer_topk'; did you mean defer_llm_past_topk?"),
        );
        check("max_error_ratio", "2", Err("refrain.max_error_ratio must be between 0 and 1, got 2"));
        check(
            "kv_cache_bytes",
            "much",
            Err("refrain.kv_cache_bytes must be a number of bytes such as 512MB or 4GB, not 'much'"),
        );
        check("seed", "", Err("setting refrain.seed needs a value"));
    }

    #[test]
    fn every_setting_resets_and_is_shown_under_its_full_name() {
        let mut settings = Settings { threads: Some(3), confirm_above: Some(9.0), seed: 4, ..Settings::default() };
        for (name, _) in Settings::names() {
            settings.reset(name).unwrap();
        }
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.entries().len(), SETTINGS.len());
        assert!(settings.entries().iter().all(|entry| entry.key.starts_with("refrain.")));
        for entry in settings.entries() {
            if let Some(value) = entry.value {
                settings.set(&entry.key, &value).unwrap();
            }
        }
        assert_eq!(settings, Settings::default());
    }

    #[tokio::test]
    async fn set_and_show_in_sql() {
        let config = SessionConfig::new().with_information_schema(true).with_option_extension(Settings::default());
        let ctx = SessionContext::new_with_config(config);
        ctx.sql("SET refrain.reorder = 'ggr'").await.unwrap();
        let rows = ctx.sql("SHOW refrain.reorder").await.unwrap().collect().await.unwrap();
        assert_eq!(rows[0].column(1).as_string::<i32>().value(0), "ggr");
        let error = ctx.sql("SET refrain.dedupe = 'off'").await.unwrap_err().strip_backtrace();
        assert!(error.contains("there is no setting refrain.dedupe; did you mean dedup?"), "{error}");
    }
}
