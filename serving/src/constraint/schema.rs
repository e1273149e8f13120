//! What is asked of a JSON schema before it is compiled: that compiling it is bounded, and that an answer can come to an end.
//!
//! The compiler descends once for each level of the schema and for each reference the first time it is met, and multiplies the
//! alternatives of what must hold at the same time. A schema that needs itself (a list item that must have a list item) would
//! force tokens without end.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Values of a schema, nested ones included: enough for several thousand fields or labels.
const VALUES_MAX: usize = 50_000;
/// Bytes of keys and strings.
const TEXT_MAX: usize = 1 << 20;
/// Levels, references followed.
const DEPTH_MAX: usize = 128;
/// Alternatives after multiplication.
const ALTERNATIVES_MAX: u64 = 10_000;

/// Fails if a schema is too large, or if none of its values is finite.
pub(super) fn check(schema: &Value) -> Result<()> {
    let mut walk = Walk { root: schema, values: 0, text: 0, references: BTreeSet::new() };
    walk.descend(schema, 0)?;
    let Walk { references, .. } = walk;
    if alternatives(schema, schema, &mut HashMap::new()) > ALTERNATIVES_MAX {
        return Err(too_large(&format!("allOf and anyOf make more than {ALTERNATIVES_MAX} combinations")));
    }
    let mut finite = BTreeSet::new();
    loop {
        let found = |reference: &&str| {
            let target = resolve(schema, reference);
            !finite.contains(reference) && target.is_none_or(|target| is_finite(target, &finite))
        };
        let found: Vec<&str> = references.iter().copied().filter(found).collect();
        if found.is_empty() {
            break;
        }
        finite.extend(found);
    }
    if is_finite(schema, &finite) {
        return Ok(());
    }
    let endless = references.difference(&finite).next().map_or("it", |reference| reference);
    Err(Error::Invalid(format!(
        "the JSON schema cannot be used: {endless} must contain itself, so no answer would end; make the way back optional"
    )))
}

/// Returns the texts that a schema allows, in quotes as JSON has them, if it says nothing but that the answer is one of them.
pub(super) fn quoted_texts(schema: &Value) -> Option<Vec<String>> {
    let fields = schema.as_object()?;
    let says_nothing_else = fields.iter().all(|(key, value)| match key.as_str() {
        "type" => value == "string",
        "enum" | "title" | "description" | "$schema" => true,
        _ => false,
    });
    let values = fields.get("enum").filter(|_| says_nothing_else)?.as_array()?;
    values.iter().map(|value| value.is_string().then(|| value.to_string())).collect()
}

/// The whole numbers of up to 18 digits: the compiler cannot negate every bound beyond them.
const WHOLE_MAX: i64 = 999_999_999_999_999_999;
/// The largest number where a schema names no bound. Between bounds the compiler writes no exponent, so there is no 1e999.
const NUMBER_MAX: i64 = 999_999_999_999_999;

/// Gives every number bounds, and draws those of whole numbers in to 18 digits, in a schema that passed [`check`].
pub(super) fn clamp(schema: &mut Value) {
    match schema {
        Value::Array(parts) => parts.iter_mut().for_each(clamp),
        Value::Object(fields) => {
            add_bounds(fields);
            for (key, value) in fields {
                match key.as_str() {
                    "minimum" | "exclusiveMinimum" if value.as_i64().is_some_and(|bound| bound < -WHOLE_MAX) => {
                        *value = Value::from(-WHOLE_MAX);
                    }
                    "maximum" | "exclusiveMaximum"
                        if value.as_u64().is_some_and(|bound| bound > WHOLE_MAX.unsigned_abs()) =>
                    {
                        *value = Value::from(WHOLE_MAX);
                    }
                    // Values, not schemas.
                    "const" | "enum" | "default" | "examples" => {}
                    _ => clamp(value),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Adds the bounds that a schema of numbers does not name itself.
fn add_bounds(fields: &mut Map<String, Value>) {
    let names = |name: &str| match &fields["type"] {
        Value::Array(types) => types.iter().any(|other| other == name),
        only => only == name,
    };
    let max = match fields.contains_key("type") {
        true if names("number") => NUMBER_MAX,
        true if names("integer") => WHOLE_MAX,
        _ => return,
    };
    let bound = |names: [&str; 2]| names.iter().find_map(|name| fields.get(*name)?.as_f64());
    let (low, high) = (bound(["minimum", "exclusiveMinimum"]), bound(["maximum", "exclusiveMaximum"]));
    if low.is_none() && high.is_none_or(|high| high > -max as f64) {
        fields.insert("minimum".to_owned(), Value::from(-max));
    }
    if high.is_none() && low.is_none_or(|low| low < max as f64) {
        fields.insert("maximum".to_owned(), Value::from(max));
    }
}

/// A walk over a schema in the compiler's way.
struct Walk<'a> {
    root: &'a Value,
    values: usize,
    text: usize,
    references: BTreeSet<&'a str>,
}

impl<'a> Walk<'a> {
    fn descend(&mut self, value: &'a Value, depth: usize) -> Result<()> {
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(too_large(&format!("it has more than {VALUES_MAX} values")));
        }
        if depth > DEPTH_MAX {
            return Err(too_large(&format!("it is more than {DEPTH_MAX} levels deep, references followed")));
        }
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.descend(item, depth + 1)),
            Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
                self.read(key)?;
                self.descend(value, depth + 1)?;
                match value {
                    Value::String(reference) if key == "$ref" => self.follow(reference, depth + 1),
                    _ => Ok(()),
                }
            }),
            Value::String(text) => self.read(text),
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }

    fn follow(&mut self, reference: &'a str, depth: usize) -> Result<()> {
        match resolve(self.root, reference) {
            Some(target) if self.references.insert(reference) => self.descend(target, depth + 1),
            // What cannot be resolved here is the compiler's to refuse.
            _ => Ok(()),
        }
    }

    fn read(&mut self, text: &str) -> Result<()> {
        self.text += text.len();
        if self.text > TEXT_MAX { Err(too_large(&format!("its text has more than {TEXT_MAX} bytes"))) } else { Ok(()) }
    }
}

fn too_large(reason: &str) -> Error {
    Error::Invalid(format!("the JSON schema cannot be used: {reason}; ask for less in one call"))
}

/// Returns what a reference within the schema points to.
fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// Returns the parts of a schema that a keyword lists.
fn parts<'a>(schema: &'a Value, keyword: &str) -> Option<&'a Vec<Value>> {
    schema.get(keyword)?.as_array()
}

/// Returns how many alternatives come of a schema in one place.
fn alternatives<'a>(schema: &'a Value, root: &'a Value, known: &mut HashMap<&'a str, u64>) -> u64 {
    let mut product = 1_u64;
    for keyword in ["anyOf", "oneOf"] {
        if let Some(options) = parts(schema, keyword) {
            let sum = options.iter().fold(0_u64, |sum, option| sum.saturating_add(alternatives(option, root, known)));
            product = product.saturating_mul(sum.max(1));
        }
    }
    for part in parts(schema, "allOf").into_iter().flatten() {
        product = product.saturating_mul(alternatives(part, root, known));
    }
    let reference = schema.get("$ref").and_then(Value::as_str);
    if let Some((reference, target)) = reference.and_then(|reference| Some((reference, resolve(root, reference)?))) {
        let count = match known.get(reference) {
            Some(count) => *count,
            None => {
                known.insert(reference, 1);
                let count = alternatives(target, root, known);
                known.insert(reference, count);
                count
            }
        };
        product = product.saturating_mul(count);
    }
    product
}

/// Returns whether some value of a schema is finite, given the references of which that is known.
fn is_finite(schema: &Value, finite: &BTreeSet<&str>) -> bool {
    let Value::Object(fields) = schema else { return true };
    let reference = fields.get("$ref").and_then(Value::as_str);
    if reference.is_some_and(|reference| !finite.contains(reference)) {
        return false;
    }
    let any = |keyword| parts(schema, keyword).is_none_or(|options| options.iter().any(|option| is_finite(option, finite)));
    if !any("anyOf") || !any("oneOf") || !parts(schema, "allOf").into_iter().flatten().all(|part| is_finite(part, finite)) {
        return false;
    }
    match fields.get("type").and_then(Value::as_str) {
        Some("object") => {
            let required = parts(schema, "required").into_iter().flatten().filter_map(Value::as_str);
            let mut properties = required.filter_map(|name| fields.get("properties")?.get(name));
            properties.all(|property| is_finite(property, finite))
        }
        Some("array") if fields.get("minItems").and_then(Value::as_u64).is_some_and(|count| count > 0) => {
            fields.get("items").is_none_or(|items| is_finite(items, finite))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn refuses(schema: &Value, reason: &str) {
        let error = check(schema).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn schemas_that_need_themselves_are_refused() {
        refuses(&json!({"$ref": "#"}), "# must contain itself");
        let node = |required: Value, next: Value| {
            json!({
                "$defs": {"node": {"type": "object", "properties": {"next": next, "value": {"type": "string"}}, "required": required}},
                "$ref": "#/$defs/node",
            })
        };
        let itself = || json!({"$ref": "#/$defs/node"});
        refuses(&node(json!(["next"]), itself()), "#/$defs/node must contain itself");
        refuses(&node(json!(["next"]), json!({"type": "array", "items": itself(), "minItems": 1})), "must contain itself");
        check(&node(json!(["value"]), itself())).unwrap();
        check(&node(json!(["next"]), json!({"anyOf": [itself(), {"type": "null"}]}))).unwrap();
        check(&node(json!(["next"]), json!({"type": "array", "items": itself()}))).unwrap();
        check(&node(json!(["next"]), json!({"type": ["object", "null"], "required": ["x"]}))).unwrap();
    }

    #[test]
    fn numbers_have_bounds_of_up_to_18_digits() {
        let mut schema = json!({
            "type": "integer", "minimum": i64::MIN, "maximum": u64::MAX, "const": {"minimum": i64::MIN},
            "properties": {"minimum": {"maximum": 7}},
        });
        clamp(&mut schema);
        assert_eq!((schema["minimum"].as_i64(), schema["maximum"].as_i64()), (Some(-WHOLE_MAX), Some(WHOLE_MAX)));
        assert_eq!(schema["const"]["minimum"].as_i64(), Some(i64::MIN));
        assert_eq!(schema["properties"]["minimum"]["maximum"].as_i64(), Some(7));
        let bounds = |mut schema: Value| {
            clamp(&mut schema);
            (schema["minimum"].as_i64(), schema["maximum"].as_i64())
        };
        assert_eq!(bounds(json!({"type": ["number", "null"]})), (Some(-NUMBER_MAX), Some(NUMBER_MAX)));
        assert_eq!(bounds(json!({"type": "integer", "minimum": 3})), (Some(3), Some(WHOLE_MAX)));
        assert_eq!(bounds(json!({"type": "number", "exclusiveMaximum": -1e20})), (None, None));
        assert_eq!(bounds(json!({"type": "string"})), (None, None));
    }

    #[test]
    fn what_would_not_end_to_compile_is_refused() {
        let mut deep = json!({"type": "string"});
        for _ in 0..DEPTH_MAX {
            deep = json!({"type": "array", "items": deep});
        }
        refuses(&deep, "levels deep");
        let definitions: serde_json::Map<String, Value> =
            (0..1000).map(|i| (format!("d{i}"), json!({"items": {"$ref": format!("#/$defs/d{}", i + 1)}}))).collect();
        refuses(&json!({"$defs": definitions, "$ref": "#/$defs/d0"}), "levels deep");
        let options: Vec<Value> = (0..10).map(|i| json!({"properties": {"a": {"const": i}}})).collect();
        let all: Vec<Value> = (0..6).map(|_| json!({"anyOf": options})).collect();
        refuses(&json!({"allOf": all}), "combinations");
        refuses(&json!({"enum": (0..VALUES_MAX).collect::<Vec<_>>()}), "values");
        refuses(&json!({"const": "a".repeat(TEXT_MAX)}), "bytes");
        check(&json!({"enum": (0..5000).map(|i| format!("label {i}")).collect::<Vec<_>>()})).unwrap();
    }
}
