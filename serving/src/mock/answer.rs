//! Answers out of nothing: text of the demanded shape, drawn from a hash.

use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::{Map, Value, json};

use crate::encoder::unit_vector;
use crate::request::OutputShape;

const WORDS: [&str; 16] = [
    "amber", "brook", "cedar", "delta", "ember", "field", "grove", "haven", "inlet", "jetty", "knoll", "larch", "mirth",
    "north", "olive", "pearl",
];

/// How deep schemas and expressions are followed, so that a recursive schema ends.
const MAX_DEPTH: u32 = 16;

/// Most repetitions beyond the least number that an expression demands.
const MAX_EXTRA: u32 = 2;

/// A stream of draws that depends on the seed and the prompt alone (SplitMix64 over a BLAKE3 hash of both).
#[derive(Clone, Debug)]
pub(super) struct Draws(u64);

impl Draws {
    pub(super) fn new(seed: u64, prompt: &str) -> Self {
        let hash = blake3::Hasher::new().update(&seed.to_le_bytes()).update(prompt.as_bytes()).finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        Draws(u64::from_le_bytes(first))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Draws a number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Draws a number above 0 and at most 1.
    pub(super) fn share(&mut self) -> f64 {
        (self.below(1000) + 1) as f64 / 1000.0
    }

    fn pick<'a, T>(&mut self, values: &'a [T]) -> Option<&'a T> {
        if values.is_empty() { None } else { values.get(self.below(values.len())) }
    }

    fn word(&mut self) -> &'static str {
        WORDS[self.below(WORDS.len())]
    }
}

/// Returns an answer of this shape, or `None` if it finds none.
pub(super) fn answer(shape: &OutputShape, draws: &mut Draws) -> Option<String> {
    match shape {
        OutputShape::Text => Some((0..1 + draws.below(3)).map(|_| draws.word()).collect::<Vec<_>>().join(" ")),
        OutputShape::Choice(labels) => draws.pick(labels).cloned(),
        OutputShape::Number { min, max, integer } => number(*min, *max, *integer, draws),
        OutputShape::Json(schema) => instance(schema, schema, draws, 0).map(|value| value.to_string()),
        OutputShape::Regex(pattern) => {
            let mut text = String::new();
            matching(&regex_syntax::parse(pattern).ok()?, draws, 0, &mut text)?;
            Some(text)
        }
        OutputShape::Embedding { .. } => None,
    }
}

/// Returns the vector of a text: how often each of its words occurs, at a place that the word's hash names, scaled to unit
/// length. Texts of the same words have the same vector; texts without a common word are nearly orthogonal.
pub(super) fn embedding(text: &str, dimensions: u32) -> Vec<f32> {
    let mut vector = vec![0.0; dimensions as usize];
    let mut count = |word: &str| {
        let hash = blake3::hash(word.as_bytes());
        let place = hash.as_bytes()[..4].iter().fold(0, |place, byte| place << 8 | u64::from(*byte));
        if let Some(cell) = vector.get_mut((place % u64::from(dimensions.max(1))) as usize) {
            *cell += 1.0;
        }
    };
    let text = text.to_lowercase();
    let mut words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).peekable();
    if words.peek().is_none() {
        count("");
    }
    words.for_each(count);
    unit_vector(vector, None)
}

/// A number of at most two decimals where the range allows; infinite ends are taken as a thousand.
fn number(min: f64, max: f64, integer: bool, draws: &mut Draws) -> Option<String> {
    let (min, max) = match (min.is_finite(), max.is_finite()) {
        (true, true) => (min, max),
        (true, false) => (min, min + 1000.0),
        (false, true) => (max - 1000.0, max),
        (false, false) => (-1000.0, 1000.0),
    };
    let (low, high) = if integer { (min.ceil(), max.floor()) } else { (min, max) };
    if low > high {
        return None;
    }
    let share = draws.below(1001) as f64 / 1000.0;
    let value = low + share * (high - low);
    let rounded = if integer { value.round() } else { (value * 100.0).round() / 100.0 };
    // Rust writes f64 without an exponent, and shortest. Adding zero turns -0 into 0.
    Some(format!("{}", if (low..=high).contains(&rounded) { rounded } else { low } + 0.0))
}

/// An instance of a JSON schema: all listed properties, as few array items as allowed.
///
/// Follows `const`, `enum`, `type`, `properties`, `required`, `items`, `prefixItems`, `minItems`, `minLength`, `maxLength`,
/// `pattern`, `minimum`, `maximum`, their exclusive forms on integers, `anyOf`, `oneOf`, a single `allOf`, and `$ref` within the
/// document; ignores the rest.
fn instance(root: &Value, schema: &Value, draws: &mut Draws, depth: u32) -> Option<Value> {
    if depth > MAX_DEPTH || *schema == Value::Bool(false) {
        return None;
    }
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        return instance(root, root.pointer(reference.strip_prefix('#')?)?, draws, depth + 1);
    }
    if let Some(value) = schema.get("const") {
        return Some(value.clone());
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return draws.pick(values).cloned();
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(schemas) = schema.get(key).and_then(Value::as_array) {
            return schemas.iter().find_map(|schema| instance(root, schema, draws, depth + 1));
        }
    }
    match type_of(schema) {
        "object" => object(root, schema, draws, depth),
        "array" => array(root, schema, draws, depth),
        "string" => string(schema, draws),
        "integer" => json_number(schema, true, draws),
        "number" => json_number(schema, false, draws),
        "boolean" => Some(json!(draws.below(2) == 1)),
        _ => Some(Value::Null),
    }
}

/// Returns the type that a schema names, or the one that its keywords are about. The first of several is taken.
fn type_of(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::String(name)) => name,
        Some(Value::Array(names)) => names.first().and_then(Value::as_str).unwrap_or("null"),
        _ if schema.get("properties").is_some() => "object",
        _ if schema.get("items").is_some() => "array",
        _ => "null",
    }
}

fn object(root: &Value, schema: &Value, draws: &mut Draws, depth: u32) -> Option<Value> {
    let mut object = Map::new();
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        object.insert(name.clone(), instance(root, property, draws, depth + 1)?);
    }
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        object.entry(name).or_insert(Value::Null);
    }
    Some(Value::Object(object))
}

fn array(root: &Value, schema: &Value, draws: &mut Draws, depth: u32) -> Option<Value> {
    let prefix = schema.get("prefixItems").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0) as usize;
    let any = Value::Bool(true);
    let rest = schema.get("items").unwrap_or(&any);
    let schemas = prefix.iter().chain(std::iter::repeat(rest)).take(least.max(prefix.len()));
    schemas.map(|schema| instance(root, schema, draws, depth + 1)).collect::<Option<Vec<_>>>().map(Value::Array)
}

fn string(schema: &Value, draws: &mut Draws) -> Option<Value> {
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
        return answer(&OutputShape::Regex(pattern.to_string()), draws).map(Value::String);
    }
    let length = |key| schema.get(key).and_then(Value::as_u64).map(|length| length as usize);
    let mut text = draws.word().to_string();
    while text.len() < length("minLength").unwrap_or(0) {
        text.push_str(draws.word());
    }
    text.truncate(length("maxLength").unwrap_or(usize::MAX));
    Some(Value::String(text))
}

fn json_number(schema: &Value, integer: bool, draws: &mut Draws) -> Option<Value> {
    let bound = |key, exclusive, inward: f64| {
        let exclusive = schema.get(exclusive).and_then(Value::as_f64).map(|bound| bound + inward);
        schema.get(key).and_then(Value::as_f64).or(exclusive)
    };
    let min = bound("minimum", "exclusiveMinimum", 1.0);
    let max = bound("maximum", "exclusiveMaximum", -1.0);
    let (min, max) = (min.unwrap_or(f64::NEG_INFINITY), max.unwrap_or(f64::INFINITY));
    serde_json::from_str(&number(min, max, integer, draws)?).ok()
}

/// Appends text that an expression matches. Anchors and word boundaries are taken as matched; classes prefer ASCII letters and
/// digits; repetitions are few.
fn matching(hir: &Hir, draws: &mut Draws, depth: u32, text: &mut String) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => text.push_str(std::str::from_utf8(&literal.0).ok()?),
        HirKind::Class(class) => text.push(member(class, draws)?),
        HirKind::Capture(capture) => matching(&capture.sub, draws, depth + 1, text)?,
        HirKind::Concat(parts) => parts.iter().try_for_each(|part| matching(part, draws, depth + 1, text))?,
        HirKind::Alternation(choices) => matching(draws.pick(choices)?, draws, depth + 1, text)?,
        HirKind::Repetition(repetition) => {
            let most = repetition.max.unwrap_or(u32::MAX).min(repetition.min.saturating_add(MAX_EXTRA));
            let count = repetition.min + draws.below((most - repetition.min + 1) as usize) as u32;
            (0..count).try_for_each(|_| matching(&repetition.sub, draws, depth + 1, text))?;
        }
    }
    Some(())
}

fn member(class: &Class, draws: &mut Draws) -> Option<char> {
    let ranges: Vec<(char, char)> = match class {
        Class::Unicode(class) => class.iter().map(|range| (range.start(), range.end())).collect(),
        Class::Bytes(class) => class.iter().map(|range| (char::from(range.start()), char::from(range.end()))).collect(),
    };
    let plain: Vec<char> = ('0'..='9')
        .chain('a'..='z')
        .chain('A'..='Z')
        .filter(|letter| ranges.iter().any(|(start, end)| (start..=end).contains(&letter)))
        .collect();
    draws.pick(&plain).copied().or_else(|| ranges.first().map(|(start, _)| *start))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers fifty prompts.
    fn answers(shape: &OutputShape) -> Vec<String> {
        (0..50).map(|prompt| answer(shape, &mut Draws::new(7, &prompt.to_string())).unwrap()).collect()
    }

    #[test]
    fn numbers_are_within_their_range() {
        let check = |min: f64, max: f64, integer| {
            for text in answers(&OutputShape::Number { min, max, integer }) {
                let value: f64 = text.parse().unwrap();
                assert!((min..=max).contains(&value) && !text.contains('e') && text != "-0", "{text}");
                assert!(!integer || value.fract() == 0.0, "{text}");
            }
        };
        check(0.0, 1.0, false);
        check(-5.5, 5.5, true);
        check(0.001, 0.002, false);
        check(1.0, f64::INFINITY, true);
        check(f64::NEG_INFINITY, f64::INFINITY, false);
        assert_eq!(answer(&OutputShape::Number { min: 0.1, max: 0.9, integer: true }, &mut Draws::new(1, "")), None);
    }

    #[test]
    fn labels_are_all_drawn_and_repeat_with_the_prompt() {
        let labels = OutputShape::Choice(vec!["yes".to_string(), "no".to_string()]);
        assert_eq!(answers(&labels), answers(&labels));
        assert!(["yes", "no"].iter().all(|label| answers(&labels).iter().any(|answer| answer == label)));
    }

    #[test]
    fn json_is_an_instance_of_its_schema() {
        let schema = json!({
            "type": "object",
            "properties": {
                "name": { "type": "string", "minLength": 8, "maxLength": 9 },
                "stars": { "type": "integer", "minimum": 1, "maximum": 5 },
                "kind": { "enum": ["a", "b"] },
                "tags": { "type": "array", "items": { "$ref": "#/$defs/tag" }, "minItems": 2 },
                "note": { "anyOf": [false, { "type": "null" }] }
            },
            "required": ["name", "other"],
            "$defs": { "tag": { "type": "string", "pattern": "^t[0-9]{2}$" } }
        });
        for text in answers(&OutputShape::Json(schema)) {
            let value: Value = serde_json::from_str(&text).unwrap();
            let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["name", "stars", "kind", "tags", "note", "other"]);
            assert!((8..=9).contains(&value["name"].as_str().unwrap().len()));
            assert!((1..=5).contains(&value["stars"].as_i64().unwrap()));
            assert!(value["tags"].as_array().unwrap().iter().all(|tag| tag.as_str().unwrap().len() == 3));
        }
        let endless = json!({ "type": "object", "properties": { "self": { "$ref": "#" } } });
        assert_eq!(answer(&OutputShape::Json(endless), &mut Draws::new(1, "")), None);
    }

    #[test]
    fn text_matches_its_expression() {
        for text in answers(&OutputShape::Regex(r"(ab|c)+-\d{2,3}[^a-z]?".to_string())) {
            let (left, right) = text.split_once('-').unwrap();
            assert!(!left.is_empty() && left.replace("ab", "").replace('c', "").is_empty(), "{text}");
            assert!((2..=4).contains(&right.len()) && right[..2].bytes().all(|byte| byte.is_ascii_digit()), "{text}");
        }
    }
}
