//! Options of a call: what may be said, how a value is checked, and what holds when nothing is said.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::common::utils::datafusion_strsim::normalized_levenshtein;
use datafusion::common::{Result, plan_err};
use refrain_serving::Sampling;
use serde_json::{Map, Value};

use crate::settings::Settings;

/// The options of one call as they were written; `None` leaves the decision to the session's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CallOptions {
    /// The name of the model to ask.
    pub model: Option<String>,
    /// 0 takes the most probable token.
    pub temperature: Option<Float>,
    /// Keep the most probable tokens whose probabilities sum to this.
    pub top_p: Option<Float>,
    /// Keep this many of the most probable tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Decides every draw at a temperature above 0.
    pub seed: Option<u64>,
    /// The longest answer, in tokens.
    pub max_tokens: Option<u32>,
    /// Free text ends before the first of these strings.
    pub stop: Vec<String>,
    /// How instruction and inputs become a prompt. Already applied in the call's `prompt`.
    pub mode: Option<Mode>,
    /// What a failed row gives.
    pub on_error: Option<OnError>,
    /// What happens to an input that is longer than the context.
    pub on_overflow: Option<OnOverflow>,
    /// What a NULL in a template does.
    pub null_input: Option<NullInput>,
    /// How rows and fields are ordered.
    pub reorder: Option<Reorder>,
    /// How many rows are ordered together.
    pub reorder_window: Option<usize>,
    /// Whether equal inputs are one call.
    pub dedup: Option<Dedup>,
}

/// The options of a call after the session's settings have filled the gaps.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedOptions {
    /// The name of the model to ask; `None` means the only one there is.
    pub model: Option<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The longest answer, in tokens.
    pub max_tokens: u32,
    /// Free text ends before the first of these strings.
    pub stop: Arc<[String]>,
    /// What a failed row gives.
    pub on_error: OnError,
    /// What happens to an input that is longer than the context.
    pub on_overflow: OnOverflow,
    /// What a NULL in a template does.
    pub null_input: NullInput,
    /// How rows and fields are ordered.
    pub reorder: Reorder,
    /// How many rows are ordered together; `None` means as many as memory holds.
    pub reorder_window: Option<usize>,
    /// Whether equal inputs are one call.
    pub dedup: Dedup,
}

impl ResolvedOptions {
    /// Returns whether equal inputs are one call and one value: always unless switched off, or sampled row by row.
    pub fn dedups(&self) -> bool {
        match self.dedup {
            Dedup::Always => true,
            Dedup::Off => false,
            Dedup::Auto => self.sampling.temperature == 0.0,
        }
    }
}

/// The option names that every function accepts.
pub(crate) const COMMON: &[&str] = &[
    "model",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "max_tokens",
    "stop",
    "on_error",
    "on_overflow",
    "reorder",
    "reorder_window",
    "dedup",
];

impl CallOptions {
    /// Reads the options that all functions share out of `raw`; names of single functions are left to those.
    ///
    /// Fails if a value is not allowed; `function` begins the message.
    pub(crate) fn from_raw(function: &str, raw: &Map<String, Value>) -> Result<CallOptions> {
        let mut options = CallOptions::default();
        for (name, value) in raw {
            let subject = format!("{function}: option {name}");
            let text = text_of(value);
            match name.as_str() {
                "model" => options.model = Some(string(&subject, value)?),
                "temperature" => options.temperature = Some(Float(temperature(&subject, &text)?)),
                "top_p" => options.top_p = Some(Float(top_p(&subject, &text)?)),
                "top_k" => options.top_k = Some(whole(&subject, &text, 0)?),
                "seed" => options.seed = Some(whole(&subject, &text, 0)?),
                "max_tokens" => options.max_tokens = Some(whole(&subject, &text, 1)?),
                "stop" => options.stop = stop_strings(&subject, value)?,
                "mode" => options.mode = Some(Mode::parse(&subject, &text)?),
                "on_error" => options.on_error = Some(OnError::parse(&subject, &text)?),
                "on_overflow" => options.on_overflow = Some(OnOverflow::parse(&subject, &text)?),
                "null_input" => options.null_input = Some(NullInput::parse(&subject, &text)?),
                "reorder" => options.reorder = Some(Reorder::parse(&subject, &text)?),
                "reorder_window" => options.reorder_window = Some(whole(&subject, &text, 1)?),
                "dedup" => options.dedup = Some(Dedup::parse(&subject, &text)?),
                _ => {}
            }
        }
        Ok(options)
    }

    /// Fills what the call left open from the session's settings.
    ///
    /// `on_error = 'capture'` decides the type of a call, so it counts only where it was written into the call, which
    /// [`desugar`](crate::desugar::desugar) does for the session's setting; here a setting of `'capture'` reads as `'null'`.
    pub fn resolve(&self, settings: &Settings) -> ResolvedOptions {
        let on_error = match (self.on_error, settings.on_error) {
            (Some(chosen), _) => chosen,
            (None, OnError::Capture) => OnError::Null,
            (None, default) => default,
        };
        ResolvedOptions {
            model: self.model.clone().or_else(|| settings.model.clone()),
            sampling: Sampling {
                temperature: self.temperature.map_or(settings.temperature, |value| value.0) as f32,
                top_p: self.top_p.map_or(settings.top_p, |value| value.0) as f32,
                top_k: self.top_k.unwrap_or(settings.top_k),
                seed: self.seed.unwrap_or(settings.seed),
            },
            max_tokens: self.max_tokens.unwrap_or(settings.max_tokens),
            stop: self.stop.clone().into(),
            on_error,
            on_overflow: self.on_overflow.unwrap_or(settings.on_overflow),
            null_input: self.null_input.unwrap_or(settings.null_input),
            reorder: self.reorder.unwrap_or(settings.reorder),
            reorder_window: self.reorder_window.or(settings.reorder_window),
            dedup: self.dedup.unwrap_or(settings.dedup),
        }
    }
}

/// A number that is compared and hashed by its bits, so that calls can be.
#[derive(Clone, Copy, Debug)]
pub struct Float(pub f64);

impl PartialEq for Float {
    fn eq(&self, other: &Float) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Float {}

impl Hash for Float {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// An option or setting whose value is one of a few words.
pub trait Keyword: Copy + PartialEq + 'static {
    /// The words and what they mean.
    const VALUES: &'static [(&'static str, Self)];

    /// Returns the word.
    fn name(self) -> &'static str {
        let found = Self::VALUES.iter().find(|(_, value)| *value == self);
        found.expect("every value of a keyword has a word").0
    }

    /// Reads the word, in any case. Fails with the list of words; `subject` begins the message.
    fn parse(subject: &str, text: &str) -> Result<Self> {
        let word = text.to_lowercase();
        if let Some((_, value)) = Self::VALUES.iter().find(|(name, _)| *name == word) {
            return Ok(*value);
        }
        let words: Vec<String> = Self::VALUES.iter().map(|(name, _)| format!("'{name}'")).collect();
        plan_err!("{subject} must be {}, not '{text}'", one_of(&words))
    }
}

/// How instruction and inputs become a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// By the placeholders of the instruction.
    Auto,
    /// Labelled JSON fields, whose order is free.
    Fields,
    /// A template with values put in, in the user's order.
    Template,
}

impl Keyword for Mode {
    const VALUES: &'static [(&'static str, Mode)] =
        &[("auto", Mode::Auto), ("fields", Mode::Fields), ("template", Mode::Template)];
}

/// What a failed row gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnError {
    /// NULL, counted.
    Null,
    /// An error of the query.
    Fail,
    /// `STRUCT(value, error)`.
    Capture,
}

impl Keyword for OnError {
    const VALUES: &'static [(&'static str, OnError)] =
        &[("null", OnError::Null), ("fail", OnError::Fail), ("capture", OnError::Capture)];
}

/// What happens to an input that is longer than the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnOverflow {
    /// The row fails.
    Error,
    /// The longest text is cut until the prompt leaves room for the answer.
    Truncate,
    /// The longest text is cut into chunks, each is asked about, and the answers are combined.
    Chunk,
}

impl Keyword for OnOverflow {
    const VALUES: &'static [(&'static str, OnOverflow)] =
        &[("error", OnOverflow::Error), ("truncate", OnOverflow::Truncate), ("chunk", OnOverflow::Chunk)];
}

/// What a NULL in a template does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NullInput {
    /// The result is NULL, without a call.
    Skip,
    /// It is rendered as `null`.
    Text,
}

impl Keyword for NullInput {
    const VALUES: &'static [(&'static str, NullInput)] = &[("skip", NullInput::Skip), ("text", NullInput::Text)];
}

/// How rows and fields are ordered before they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reorder {
    /// The planner chooses.
    Auto,
    /// As stored: the baseline.
    None,
    /// Rows only; fields stay as written.
    Rows,
    /// One order of fields for the table, searched.
    Search,
    /// The same, with other orders for groups of rows that gain by it.
    Tree,
    /// Greedy group recursion.
    Ggr,
    /// Exhaustive, for small tables.
    Ophr,
}

impl Keyword for Reorder {
    const VALUES: &'static [(&'static str, Reorder)] = &[
        ("auto", Reorder::Auto),
        ("none", Reorder::None),
        ("rows", Reorder::Rows),
        ("search", Reorder::Search),
        ("tree", Reorder::Tree),
        ("ggr", Reorder::Ggr),
        ("ophr", Reorder::Ophr),
    ];
}

/// Whether equal inputs are one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dedup {
    /// At temperature 0.
    Auto,
    /// At any temperature.
    Always,
    /// Never: one call for each row.
    Off,
}

impl Keyword for Dedup {
    const VALUES: &'static [(&'static str, Dedup)] =
        &[("auto", Dedup::Auto), ("always", Dedup::Always), ("off", Dedup::Off)];
}

/// Reads a temperature: finite and not negative.
pub(crate) fn temperature(subject: &str, text: &str) -> Result<f64> {
    let value = number(subject, text)?;
    if value < 0.0 { plan_err!("{subject} must not be negative, got {text}") } else { Ok(value) }
}

/// Reads a share of probability: above 0, at most 1.
pub(crate) fn top_p(subject: &str, text: &str) -> Result<f64> {
    let value = number(subject, text)?;
    if value > 0.0 && value <= 1.0 { Ok(value) } else { plan_err!("{subject} must be above 0 and at most 1, got {text}") }
}

/// Reads a share from 0 to 1.
pub(crate) fn share(subject: &str, text: &str) -> Result<f64> {
    let value = number(subject, text)?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { plan_err!("{subject} must be between 0 and 1, got {text}") }
}

/// Reads a finite number.
pub fn number(subject: &str, text: &str) -> Result<f64> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => plan_err!("{subject} must be a number, not '{text}'"),
    }
}

/// Reads a whole number of at least `least` that the target type holds.
pub fn whole<T: TryFrom<u64>>(subject: &str, text: &str, least: u64) -> Result<T> {
    let value = text.trim().parse::<u64>().ok().filter(|value| *value >= least);
    match value.and_then(|value| T::try_from(value).ok()) {
        Some(value) => Ok(value),
        None => plan_err!("{subject} must be a whole number of at least {least}, not '{text}'"),
    }
}

/// Reads a truth value.
pub fn boolean(subject: &str, text: &str) -> Result<bool> {
    match text.trim().to_lowercase().as_str() {
        "true" | "on" | "1" => Ok(true),
        "false" | "off" | "0" => Ok(false),
        _ => plan_err!("{subject} must be true or false, not '{text}'"),
    }
}

/// Reads a string that is not empty.
pub(crate) fn string(subject: &str, value: &Value) -> Result<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        other => plan_err!("{subject} must be a string that is not empty, not {other}"),
    }
}

/// Reads one string or a list of them; none may be empty.
fn stop_strings(subject: &str, value: &Value) -> Result<Vec<String>> {
    let values = match value {
        Value::Array(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    let text = |value: &Value| match value {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        other => plan_err!("{subject} must be a string or a list of strings that are not empty, not {other}"),
    };
    values.iter().map(text).collect()
}

/// Returns the text of an option's value: a string without its quotes, all else as JSON.
pub(crate) fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Returns `a`, `a or b`, `a, b or c`.
pub(crate) fn one_of(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// Returns `; did you mean x?` for the nearest of `names`, or a list of them if none is near.
pub fn suggest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let nearness = |other: &&str| normalized_levenshtein(name, other);
    let nearest = names.iter().copied().max_by(|a, b| nearness(a).total_cmp(&nearness(b)));
    match nearest {
        Some(near) if nearness(&near) >= 0.5 => format!("; did you mean {near}?"),
        Some(_) => format!("; valid names are {}", names.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(raw: Value, expected: Result<CallOptions, &str>) {
        let Value::Object(raw) = raw else { panic!("not an object") };
        let got = CallOptions::from_raw("ai_complete", &raw).map_err(|error| error.strip_backtrace());
        match expected {
            Ok(expected) => assert_eq!(got.unwrap(), expected),
            Err(message) => assert_eq!(got.unwrap_err(), format!("Error during planning: ai_complete: option {message}")),
        }
    }

    #[test]
    fn reads_options() {
        check(json!({}), Ok(CallOptions::default()));
        check(json!({"model": "q"}), Ok(CallOptions { model: Some("q".into()), ..Default::default() }));
        check(json!({"temperature": 0.5}), Ok(CallOptions { temperature: Some(Float(0.5)), ..Default::default() }));
        check(json!({"max_tokens": 12}), Ok(CallOptions { max_tokens: Some(12), ..Default::default() }));
        check(json!({"on_error": "Fail"}), Ok(CallOptions { on_error: Some(OnError::Fail), ..Default::default() }));
        let stop = |stop: &[&str]| CallOptions { stop: stop.iter().map(|s| (*s).into()).collect(), ..Default::default() };
        check(json!({"stop": "\n"}), Ok(stop(&["\n"])));
        check(json!({"stop": ["END", ";"]}), Ok(stop(&["END", ";"])));
        check(json!({"stop": [""]}), Err("stop must be a string or a list of strings that are not empty, not \"\""));
        check(json!({"max_tokens": 0}), Err("max_tokens must be a whole number of at least 1, not '0'"));
        check(json!({"max_tokens": "many"}), Err("max_tokens must be a whole number of at least 1, not 'many'"));
        check(json!({"temperature": -1}), Err("temperature must not be negative, got -1"));
        check(json!({"top_p": 0}), Err("top_p must be above 0 and at most 1, got 0"));
        check(json!({"model": 5}), Err("model must be a string that is not empty, not 5"));
        check(json!({"mode": "json"}), Err("mode must be 'auto', 'fields' or 'template', not 'json'"));
        check(json!({"on_overflow": "cut"}), Err("on_overflow must be 'error', 'truncate' or 'chunk', not 'cut'"));
    }

    #[test]
    fn settings_fill_what_a_call_leaves_open() {
        let settings = Settings { temperature: 0.7, max_tokens: 9, on_error: OnError::Capture, ..Settings::default() };
        let call = CallOptions { temperature: Some(Float(0.0)), ..Default::default() };
        let resolved = call.resolve(&settings);
        assert_eq!(resolved.sampling, Sampling::GREEDY);
        assert_eq!(resolved.max_tokens, 9);
        assert_eq!(resolved.on_error, OnError::Null, "capture must be part of the call");
        assert!(resolved.dedups());
        assert!(!CallOptions::default().resolve(&settings).dedups());
    }

    #[test]
    fn suggests_the_nearest_name() {
        assert_eq!(suggest("temprature", ["model", "temperature"]), "; did you mean temperature?");
        assert_eq!(suggest("zzz", ["model", "seed"]), "; valid names are model, seed");
    }
}
