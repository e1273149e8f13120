//! Answers of a shape from a service that may or may not enforce it: what is asked for, and the check of what comes.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Map, Value, json};

use super::config::StructuredOutput;
use super::tokenizer::MessageTokenizer;
use crate::constraint::{ConstraintCompiler, ConstraintFactory};
use crate::error::{Error, Result};
use crate::request::{OutputShape, TokenId};

/// The key of an object that holds an answer which is none, for services that know objects only.
const WRAPPER: &str = "answer";

/// Whole numbers are listed while there are at most this many.
const NUMBER_CHOICES_MAX: f64 = 256.0;

/// How deep schemas are followed when keys are put in order.
const MAX_DEPTH: u32 = 64;

/// A shape with what its check needs.
pub(super) struct Shape {
    pub(super) shape: Arc<OutputShape>,
    /// JSON and regular expressions are checked by the grammars of constrained decoding, over bytes.
    grammar: Option<ConstraintFactory>,
}

impl Shape {
    /// Prepares the check. Fails if no answer can have the shape, or if it is a vector.
    pub(super) fn new(shape: &Arc<OutputShape>) -> Result<Self> {
        let grammar = match &**shape {
            OutputShape::Json(_) | OutputShape::Regex(_) => {
                Some(ConstraintCompiler::new(Arc::new(MessageTokenizer)).compile(shape)?)
            }
            OutputShape::Number { .. } => {
                // Compiled only to learn whether there is such a number; reading one needs no grammar.
                ConstraintCompiler::new(Arc::new(MessageTokenizer)).compile(shape)?;
                None
            }
            OutputShape::Choice(labels) if labels.is_empty() => {
                return Err(Error::Invalid("a choice needs at least one label".to_string()));
            }
            OutputShape::Embedding { .. } => {
                return Err(Error::Invalid("a vector was asked of a remote model that writes text".to_string()));
            }
            _ => None,
        };
        Ok(Shape { shape: Arc::clone(shape), grammar })
    }

    /// Returns the fields of a request that make the service answer in this shape, and whether the answer is wrapped in an object.
    pub(super) fn fields(&self, mode: StructuredOutput) -> (Map<String, Value>, bool) {
        let schema = schema(&self.shape);
        let (name, value, wrapped) = match (mode, &*self.shape, schema) {
            (StructuredOutput::JsonSchema, _, Some(schema)) => {
                let (schema, wrapped) = as_object(schema);
                let strict = is_strict(&schema, 0);
                let format =
                    json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": strict, "schema": schema}});
                ("response_format", format, wrapped)
            }
            (StructuredOutput::JsonObject, _, Some(schema)) => {
                let (schema, wrapped) = as_object(schema);
                ("response_format", json!({"type": "json_object", "schema": schema}), wrapped)
            }
            (StructuredOutput::Guided, OutputShape::Choice(labels), _) => ("guided_choice", json!(labels), false),
            (StructuredOutput::Guided, OutputShape::Regex(regex), _) => ("guided_regex", json!(regex), false),
            (StructuredOutput::Guided, _, Some(schema)) => ("guided_json", schema, false),
            (StructuredOutput::StructuredOutputs, OutputShape::Choice(labels), _) => {
                ("structured_outputs", json!({"choice": labels}), false)
            }
            (StructuredOutput::StructuredOutputs, OutputShape::Regex(regex), _) => {
                ("structured_outputs", json!({"regex": regex}), false)
            }
            (StructuredOutput::StructuredOutputs, _, Some(schema)) => ("structured_outputs", json!({"json": schema}), false),
            _ => return (Map::new(), false),
        };
        (Map::from_iter([(name.to_string(), value)]), wrapped)
    }

    /// Returns the answer that a text gives, in the form that constrained decoding would have written, or `None` if it gives none.
    pub(super) fn check(&self, text: &str) -> Option<String> {
        match &*self.shape {
            OutputShape::Text => Some(text.to_string()),
            OutputShape::Choice(labels) => either(text, |text| label(labels, text)),
            OutputShape::Number { min, max, integer } => either(text, |text| number(*min, *max, *integer, text)),
            OutputShape::Regex(_) => either(text, |text| {
                let fits = [text, text.trim()].into_iter().find(|text| self.matches(text));
                fits.map(str::to_string)
            }),
            OutputShape::Json(schema) => {
                let value: Value = serde_json::from_str(plain(text)).ok()?;
                let inner = unwrapped(&value).cloned();
                let fit = |value: Value| {
                    let text = spaced(&in_order(value, schema, schema, 0));
                    self.matches(&text).then_some(text)
                };
                fit(value).or_else(|| fit(inner?))
            }
            OutputShape::Embedding { .. } => None,
        }
    }

    /// Returns whether an answer that was cut off must be whole all the same: JSON closes itself, and a label that no other
    /// begins with cannot go on.
    pub(super) fn ends_itself(&self, text: &str) -> bool {
        match &*self.shape {
            OutputShape::Text | OutputShape::Json(_) => true,
            OutputShape::Choice(labels) => {
                let longer = |label: &&String| label.starts_with(text.trim()) && label.len() > text.trim().len();
                !labels.iter().any(|label| longer(&label))
            }
            OutputShape::Number { .. } | OutputShape::Regex(_) => {
                serde_json::from_str::<Value>(plain(text)).is_ok_and(|value| unwrapped(&value).is_some())
            }
            OutputShape::Embedding { .. } => false,
        }
    }

    /// Returns what the model is told when its answer was wrong.
    pub(super) fn correction(&self) -> String {
        match &*self.shape {
            OutputShape::Choice(labels) => {
                let labels: Vec<String> = labels.iter().map(|label| format!("{label:?}")).collect();
                format!(
                    "That is not one of the labels. Answer with exactly one of them and nothing else: {}",
                    labels.join(", ")
                )
            }
            OutputShape::Number { min, max, integer } => {
                let kind = if *integer { "a whole number" } else { "a number" };
                format!("Answer with {kind} between {min} and {max} and nothing else.")
            }
            OutputShape::Json(schema) => {
                format!("That is not valid. Answer with JSON under this schema and nothing else: {schema}")
            }
            OutputShape::Regex(regex) => {
                format!("Answer with text that matches this regular expression and nothing else: {regex}")
            }
            OutputShape::Text | OutputShape::Embedding { .. } => String::new(),
        }
    }

    fn matches(&self, text: &str) -> bool {
        let Some(grammar) = &self.grammar else { return true };
        let mut state = grammar.state();
        text.bytes().all(|byte| state.accept(TokenId::from(byte)).is_ok()) && state.is_complete()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shape").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// Returns the shape as a JSON schema, where it has one.
fn schema(shape: &OutputShape) -> Option<Value> {
    match shape {
        OutputShape::Choice(labels) => Some(json!({"type": "string", "enum": labels})),
        OutputShape::Number { min, max, integer: true } if max.floor() - min.ceil() < NUMBER_CHOICES_MAX => {
            // Not every service enforces bounds; all that enforce schemas know lists.
            let numbers: Vec<i64> = (min.ceil() as i64..=max.floor() as i64).collect();
            Some(json!({"type": "integer", "enum": numbers}))
        }
        OutputShape::Number { min, max, integer } => {
            let mut schema = json!({"type": if *integer { "integer" } else { "number" }});
            for (key, bound) in [("minimum", min), ("maximum", max)] {
                // Whole bounds are written without a point, which some services demand of integers.
                let whole = bound.fract() == 0.0 && bound.abs() < 1e15;
                if bound.is_finite() {
                    schema[key] = if whole { json!(*bound as i64) } else { json!(bound) };
                }
            }
            Some(schema)
        }
        OutputShape::Json(schema) => Some(schema.clone()),
        OutputShape::Text | OutputShape::Regex(_) | OutputShape::Embedding { .. } => None,
    }
}

/// Returns a schema for objects, and whether it wraps the one given.
fn as_object(mut schema: Value) -> (Value, bool) {
    if schema.get("type").and_then(Value::as_str) == Some("object") {
        return (schema, false);
    }
    let mut wrapper = json!({"type": "object", "properties": {}, "required": [WRAPPER], "additionalProperties": false});
    for key in ["$defs", "definitions"] {
        // References are paths from the root.
        if let Some(definitions) = schema.as_object_mut().and_then(|schema| schema.remove(key)) {
            wrapper[key] = definitions;
        }
    }
    wrapper["properties"][WRAPPER] = schema;
    (wrapper, true)
}

/// Returns whether every object of a schema demands all its keys and allows no other, as strict services want it.
fn is_strict(schema: &Value, depth: u32) -> bool {
    let Some(object) = schema.as_object() else {
        return true;
    };
    let own = match object.get("properties").and_then(Value::as_object) {
        Some(properties) => {
            let required = object.get("required").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            object.get("additionalProperties") == Some(&Value::Bool(false))
                && properties.keys().all(|key| required.iter().any(|required| required == key))
        }
        None => object.get("type").and_then(Value::as_str) != Some("object"),
    };
    let within = |value: &Value| match value {
        Value::Array(values) => values.iter().all(|value| is_strict(value, depth + 1)),
        value => is_strict(value, depth + 1),
    };
    own && depth < MAX_DEPTH
        && object.iter().all(|(key, value)| match (key.as_str(), value) {
            ("enum" | "const" | "default" | "examples" | "required", _) => true,
            ("properties" | "$defs" | "definitions", Value::Object(schemas)) => {
                schemas.values().all(|schema| is_strict(schema, depth + 1))
            }
            (_, value) => within(value),
        })
}

/// Applies a reading to a text, and to the text wrapped in it.
fn either(text: &str, read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let value = serde_json::from_str::<Value>(plain(text)).ok();
    let inner = value.as_ref().and_then(unwrapped).and_then(|inner| match inner {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    });
    read(text).or_else(|| read(plain(text))).or_else(|| read(&inner?))
}

/// Returns what the wrapper object holds.
fn unwrapped(value: &Value) -> Option<&Value> {
    value.as_object().filter(|object| object.len() == 1)?.get(WRAPPER)
}

/// Removes what models put around answers unasked: a chain of thought before it, a fence of backticks around it.
fn plain(text: &str) -> &str {
    let text = text.trim();
    let text = match text.strip_prefix("<think>").and_then(|thought| thought.split_once("</think>")) {
        Some((_, answer)) => answer.trim(),
        None => text,
    };
    match text.strip_prefix("```").and_then(|fenced| fenced.strip_suffix("```")) {
        // The first line is the fence's language.
        Some(fenced) => fenced.split_once('\n').map_or(fenced, |(_, body)| body).trim(),
        None => text,
    }
}

/// Returns the label that a text names, quotes, a full stop and the case of letters aside.
fn label(labels: &[String], text: &str) -> Option<String> {
    if let Some(label) = labels.iter().find(|label| *label == text) {
        return Some(label.clone());
    }
    let bare = text.trim().trim_matches(['"', '\'', '`']).trim_end_matches('.').trim_matches(['"', '\'', '`']);
    if let Some(label) = labels.iter().find(|label| *label == bare) {
        return Some(label.clone());
    }
    let bare = bare.to_lowercase();
    let mut alike = labels.iter().filter(|label| label.to_lowercase() == bare);
    // Labels that differ in case only cannot be told apart.
    alike.next().filter(|_| alike.next().is_none()).cloned()
}

/// Returns the number that a text is, without exponent.
fn number(min: f64, max: f64, integer: bool, text: &str) -> Option<String> {
    let value: f64 = text.trim().trim_matches(['"', '`']).trim_end_matches('.').parse().ok()?;
    let fits = value.is_finite() && min <= value && value <= max && (!integer || value.fract() == 0.0);
    // Rust writes f64 without an exponent, and shortest. Adding zero turns -0 into 0.
    fits.then(|| format!("{}", value + 0.0))
}

/// Puts the keys of objects into the order of the schema, in which constrained decoding writes and the grammar wants them.
fn in_order(value: Value, schema: &Value, root: &Value, depth: u32) -> Value {
    if depth > MAX_DEPTH {
        return value;
    }
    if let Some(path) = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#')) {
        return root.pointer(path).map_or(value.clone(), |schema| in_order(value, schema, root, depth + 1));
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        let schemas = schema.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if let Some(schema) = schemas.iter().find(|schema| may_hold(&value, schema, root)) {
            return in_order(value, schema, root, depth + 1);
        }
    }
    match value {
        Value::Object(mut object) => {
            let mut ordered = Map::new();
            for (key, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                if let Some(value) = object.remove(key) {
                    ordered.insert(key.clone(), in_order(value, schema, root, depth + 1));
                }
            }
            ordered.extend(object);
            Value::Object(ordered)
        }
        Value::Array(values) => {
            let prefix = schema.get("prefixItems").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let rest = schema.get("items").unwrap_or(&Value::Null);
            let schemas = prefix.iter().chain(std::iter::repeat(rest));
            values.into_iter().zip(schemas).map(|(value, schema)| in_order(value, schema, root, depth + 1)).collect()
        }
        value => value,
    }
}

/// Returns whether a value may be meant for this one of several schemas: of its type, with the keys it demands and no others.
fn may_hold(value: &Value, schema: &Value, root: &Value) -> bool {
    let path = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
    let schema = path.and_then(|path| root.pointer(path)).unwrap_or(schema);
    let named = match schema.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let is = |name: &&str| match value {
        Value::Null => *name == "null",
        Value::Bool(_) => *name == "boolean",
        Value::Number(_) => matches!(*name, "number" | "integer"),
        Value::String(_) => *name == "string",
        Value::Array(_) => *name == "array",
        Value::Object(_) => *name == "object",
    };
    let Some(object) = value.as_object() else {
        return named.is_empty() || named.iter().any(is);
    };
    let required = schema.get("required").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let properties = schema.get("properties").and_then(Value::as_object);
    (named.is_empty() || named.iter().any(is))
        && required.iter().filter_map(Value::as_str).all(|key| object.contains_key(key))
        && properties.is_none_or(|properties| object.keys().all(|key| properties.contains_key(key)))
}

/// Writes JSON as `{"a": 1, "b": [2, 3]}`.
fn spaced(value: &Value) -> String {
    struct Spaced;
    impl Formatter for Spaced {
        fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
            writer.write_all(b": ")
        }
    }
    let mut text = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut text, Spaced)).expect("values can be written to memory");
    // The grammar has this character in escaped form only.
    String::from_utf8(text).expect("JSON is UTF-8").replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(shape: OutputShape) -> Shape {
        Shape::new(&Arc::new(shape)).unwrap()
    }

    #[track_caller]
    fn check(shape: &Shape, text: &str, expected: Option<&str>) {
        assert_eq!(shape.check(text).as_deref(), expected, "{text}");
    }

    #[test]
    fn labels() {
        let labels = shape(OutputShape::Choice(["Yes", "No", "b", "B"].map(str::to_string).to_vec()));
        for text in ["Yes", " yes.\n", "\"Yes\"", "'YES'.", "{\"answer\": \"Yes\"}", "```json\n{\"answer\":\"Yes\"}\n```"] {
            check(&labels, text, Some("Yes"));
        }
        check(&labels, "<think>No? Well.</think>\n\nYes", Some("Yes"));
        check(&labels, "B", Some("B"));
        for text in ["", "Yes and no", "{\"other\": \"Yes\"}", "maybe", "yes, it is"] {
            check(&labels, text, None);
        }
        assert!(Shape::new(&Arc::new(OutputShape::Choice(vec![]))).is_err());
    }

    #[test]
    fn numbers() {
        let whole = shape(OutputShape::Number { min: 1.0, max: 5.0, integer: true });
        for (text, expected) in [("4", Some("4")), (" 4.0 ", Some("4")), ("{\"answer\": 4}", Some("4")), ("4.", Some("4"))] {
            check(&whole, text, expected);
        }
        for text in ["6", "0", "4.5", "four", "NaN", "", "4/5"] {
            check(&whole, text, None);
        }
        let any = shape(OutputShape::Number { min: f64::NEG_INFINITY, max: 1e30, integer: false });
        check(&any, "-1.5e3", Some("-1500"));
        check(&any, "inf", None);
        assert!(Shape::new(&Arc::new(OutputShape::Number { min: 2.0, max: 1.0, integer: false })).is_err());
    }

    #[test]
    fn json() {
        let schema = json!({
            "type": "object", "required": ["name", "tags"], "additionalProperties": false,
            "properties": {"name": {"type": ["string", "null"]}, "tags": {"type": "array", "items": {"enum": ["x", "y"]}}},
        });
        let object = shape(OutputShape::Json(schema));
        check(
            &object,
            "{\"tags\":[\"x\",\"y\"],\"name\":\"Größe\\n\"}",
            Some("{\"name\": \"Größe\\n\", \"tags\": [\"x\", \"y\"]}"),
        );
        check(&object, "```json\n{\"name\": null, \"tags\": []}\n```", Some("{\"name\": null, \"tags\": []}"));
        check(&object, "{\"name\": \"a\\u007fb\", \"tags\": []}", Some("{\"name\": \"a\\u007fb\", \"tags\": []}"));
        for text in [
            "{\"name\": 1, \"tags\": []}",
            "{\"name\": \"a\"}",
            "{\"name\": null, \"tags\": [\"z\"]}",
            "{\"name\":",
            "[]",
            "",
        ] {
            check(&object, text, None);
        }
        let list = shape(OutputShape::Json(json!({"type": "array", "items": {"type": "integer"}})));
        check(&list, "{\"answer\": [1,2]}", Some("[1, 2]"));
        check(&list, "[1]", Some("[1]"));
        check(&list, "[1.5]", None);
    }

    #[test]
    fn keys_are_ordered_through_references_and_choices() {
        let schema = json!({
            "$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
                "required": ["x", "y"], "additionalProperties": false}},
            "type": "object", "required": ["at"], "additionalProperties": false,
            "properties": {"at": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]}},
        });
        let shape = shape(OutputShape::Json(schema));
        check(&shape, "{\"at\": {\"y\": 2, \"x\": 1}}", Some("{\"at\": {\"x\": 1, \"y\": 2}}"));
        check(&shape, "{\"at\": null}", Some("{\"at\": null}"));
        check(&shape, "{\"at\": {\"y\": 2}}", None);
    }

    #[test]
    fn expressions() {
        let date = shape(OutputShape::Regex(r"\d{4}-\d{2}".to_string()));
        check(&date, "2024-05", Some("2024-05"));
        check(&date, " 2024-05\n", Some("2024-05"));
        check(&date, "2024-05-01", None);
        check(&date, "2024", None);
    }

    #[test]
    fn what_services_are_asked_for() {
        use StructuredOutput::*;
        let labels = shape(OutputShape::Choice(vec!["a".to_string()]));
        let (fields, wrapped) = labels.fields(JsonSchema);
        let asked = &fields["response_format"]["json_schema"];
        assert_eq!((asked["strict"].clone(), wrapped), (json!(true), true));
        assert_eq!(asked["schema"]["properties"]["answer"], json!({"type": "string", "enum": ["a"]}));
        assert_eq!(labels.fields(JsonObject).0["response_format"]["type"], "json_object");
        assert_eq!(labels.fields(Guided).0["guided_choice"], json!(["a"]));
        assert_eq!(labels.fields(StructuredOutputs).0["structured_outputs"], json!({"choice": ["a"]}));
        assert_eq!(labels.fields(Prompt), (Map::new(), false));
        let score = shape(OutputShape::Number { min: 1.0, max: 2.5, integer: false });
        assert_eq!(score.fields(Guided).0["guided_json"], json!({"type": "number", "minimum": 1, "maximum": 2.5}));
        let whole =
            |min, max| shape(OutputShape::Number { min, max, integer: true }).fields(Guided).0["guided_json"].clone();
        assert_eq!(whole(0.5, 3.0), json!({"type": "integer", "enum": [1, 2, 3]}));
        assert_eq!(whole(0.0, 1000.0), json!({"type": "integer", "minimum": 0, "maximum": 1000}));
        assert_eq!(whole(0.0, f64::INFINITY), json!({"type": "integer", "minimum": 0}));
        let regex = shape(OutputShape::Regex("a".to_string()));
        assert_eq!(regex.fields(JsonSchema), (Map::new(), false));
        assert_eq!(regex.fields(Guided).0["guided_regex"], "a");
        assert_eq!(shape(OutputShape::Text).fields(JsonSchema), (Map::new(), false));
        let loose = shape(OutputShape::Json(json!({"type": "object", "properties": {"a": {"type": "string"}}})));
        let (fields, wrapped) = loose.fields(JsonSchema);
        assert_eq!((fields["response_format"]["json_schema"]["strict"].clone(), wrapped), (json!(false), false));
    }

    #[test]
    fn definitions_stay_at_the_root() {
        let (wrapper, wrapped) =
            as_object(json!({"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": "string"}}}));
        assert!(wrapped && wrapper.pointer("/$defs/a").is_some());
        assert_eq!(wrapper["properties"]["answer"], json!({"type": "array", "items": {"$ref": "#/$defs/a"}}));
    }
}
