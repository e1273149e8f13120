//! Types of answers: from a SQL type or a JSON schema as text to an Arrow type, its schema, and values of it.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, ListArray, MapArray, StructArray, new_empty_array};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DFSchema, Result, ScalarValue, TableReference, plan_datafusion_err, plan_err};
use datafusion::logical_expr::planner::ContextProvider;
use datafusion::logical_expr::{AggregateUDF, ExprSchemable, HigherOrderUDF, ScalarUDF, TableSource, WindowUDF};
use datafusion::sql::planner::{PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::DuckDbDialect;
use datafusion::sql::sqlparser::parser::Parser;
use serde_json::{Map, Value, json};

/// A type of answers, in Arrow and as a JSON schema.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValueType {
    pub(crate) data_type: DataType,
    pub(crate) schema: Value,
}

impl ValueType {
    /// Reads a SQL type such as `STRUCT(name VARCHAR, age INT)`, or a JSON schema, told apart by its opening brace.
    ///
    /// Fails if the text is neither, or names a type that no answer can have; `subject` begins the message.
    pub(crate) fn parse(subject: &str, text: &str) -> Result<ValueType> {
        if text.trim_start().starts_with('{') {
            let schema: Value =
                serde_json::from_str(text).map_err(|error| plan_datafusion_err!("{subject} is no JSON schema: {error}"))?;
            return Ok(ValueType { data_type: type_of_schema(&schema), schema });
        }
        let data_type = parse_sql_type(subject, text)?;
        let schema = schema_of_type(subject, &data_type)?;
        Ok(ValueType { data_type, schema })
    }

    /// Returns a struct of text fields.
    pub(crate) fn text_fields<'a>(names: impl Iterator<Item = &'a str>) -> ValueType {
        let fields: Fields = names.map(|name| Field::new(name, DataType::Utf8, true)).collect();
        let schema = object_schema(fields.iter().map(|field| (field.name().clone(), nullable(json!({"type": "string"})))));
        ValueType { data_type: DataType::Struct(fields), schema }
    }
}

/// The type of a map from text to text, with the field names that SQL's maps have.
pub(crate) fn text_map() -> DataType {
    let entry = Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entry), false)), false)
}

/// Returns a JSON schema of an object with exactly these properties, in this order.
pub(crate) fn object_schema(properties: impl Iterator<Item = (String, Value)>) -> Value {
    let properties: Map<String, Value> = properties.collect();
    let required: Vec<&String> = properties.keys().collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// Returns the schema with `null` allowed as well.
pub(crate) fn nullable(mut schema: Value) -> Value {
    if let Some(Value::String(name)) = schema.get("type") {
        schema["type"] = json!([name, "null"]);
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.push(Value::Null);
    }
    schema
}

/// Brackets in a type; its parser descends once for each.
const NESTED_TYPES_MAX: usize = 256;

/// Reads a SQL type. Fails if the text is none; `subject` begins the message.
pub(crate) fn parse_sql_type(subject: &str, text: &str) -> Result<DataType> {
    let wrong = |error: &dyn std::fmt::Display| {
        plan_datafusion_err!(
            "{subject}: cannot read '{text}' as a SQL type such as 'STRUCT(name VARCHAR, age INT)': {error}"
        )
    };
    if text.matches(['(', '<', '[']).count() > NESTED_TYPES_MAX {
        return plan_err!("{subject}: the type is nested too deeply");
    }
    let mut parser = Parser::new(&DuckDbDialect {}).try_with_sql(text).map_err(|error| wrong(&error))?;
    let sql_type = parser.parse_data_type().map_err(|error| wrong(&error))?;
    parser.expect_token(&datafusion::sql::sqlparser::tokenizer::Token::EOF).map_err(|error| wrong(&error))?;
    // DataFusion converts SQL types in one public place only: when it plans a cast.
    let cast = ast::Expr::Cast {
        kind: ast::CastKind::Cast,
        expr: Box::new(ast::Expr::value(ast::Value::Null)),
        data_type: sql_type,
        array: false,
        format: None,
    };
    let schema = DFSchema::empty();
    let provider = Types::default();
    let planned = SqlToRel::new(&provider).sql_to_expr(cast, &schema, &mut PlannerContext::new());
    let data_type = planned.and_then(|expr| expr.get_type(&schema));
    data_type.map_err(|error| wrong(&error.strip_backtrace()))
}

/// Returns the schema of answers of a type; leaves may be null, since columns may.
fn schema_of_type(subject: &str, data_type: &DataType) -> Result<Value> {
    Ok(match data_type {
        DataType::Utf8 => json!({"type": "string"}),
        DataType::Boolean => json!({"type": "boolean"}),
        DataType::Date32 => json!({"type": "string", "format": "date"}),
        DataType::Timestamp(_, _) => json!({"type": "string", "format": "date-time"}),
        integer if integer.is_integer() => {
            let (minimum, maximum) = integer_range(integer);
            json!({"type": "integer", "minimum": minimum, "maximum": maximum})
        }
        number if number.is_numeric() => json!({"type": "number"}),
        DataType::List(item) => {
            json!({"type": "array", "items": schema_of_type(subject, item.data_type())?})
        }
        DataType::Struct(fields) => {
            let mut properties = Vec::with_capacity(fields.len());
            for field in fields {
                properties.push((field.name().clone(), nullable(schema_of_type(subject, field.data_type())?)));
            }
            object_schema(properties.into_iter())
        }
        other => return plan_err!("{subject}: a model cannot answer with type {other}"),
    })
}

/// Returns the type of answers under a JSON schema; what has no SQL type of its own becomes VARCHAR with JSON text.
fn type_of_schema(schema: &Value) -> DataType {
    let name = match &schema["type"] {
        Value::String(name) => name.as_str(),
        Value::Array(names) => {
            match names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect::<Vec<_>>()[..] {
                [only] => only,
                _ => return DataType::Utf8,
            }
        }
        Value::Null if schema["properties"].is_object() => "object",
        _ => return DataType::Utf8,
    };
    match (name, &schema["properties"], &schema["items"]) {
        ("boolean", _, _) => DataType::Boolean,
        ("integer", _, _) => DataType::Int64,
        ("number", _, _) => DataType::Float64,
        ("array", _, items) if items.is_object() => {
            DataType::List(Arc::new(Field::new_list_field(type_of_schema(items), true)))
        }
        ("object", Value::Object(properties), _) if !properties.is_empty() => {
            let field = |(name, schema): (&String, &Value)| Field::new(name, type_of_schema(schema), true);
            DataType::Struct(properties.iter().map(field).collect())
        }
        _ => DataType::Utf8,
    }
}

/// Converts a JSON value to a scalar of a type. Fails, in words, if it does not fit.
pub(crate) fn scalar_of(value: &Value, data_type: &DataType) -> Result<ScalarValue, String> {
    if value.is_null() {
        return null_of(data_type);
    }
    let misfit = || format!("{value} is no {data_type}");
    match (data_type, value) {
        (DataType::Utf8, Value::String(text)) => Ok(ScalarValue::Utf8(Some(text.clone()))),
        (DataType::Utf8, other) => Ok(ScalarValue::Utf8(Some(other.to_string()))),
        (DataType::Boolean, Value::Bool(value)) => Ok(ScalarValue::Boolean(Some(*value))),
        (DataType::List(item), Value::Array(values)) => list_of(item, values),
        (DataType::Struct(fields), Value::Object(object)) => struct_of(fields, object),
        (DataType::Map(entries, _), Value::Object(object)) => map_of(entries, object),
        (_, Value::String(text)) => ScalarValue::try_from_string(text.clone(), data_type).map_err(|_| misfit()),
        (number, Value::Number(value)) if number.is_numeric() => {
            ScalarValue::try_from_string(value.to_string(), data_type).map_err(|_| misfit())
        }
        _ => Err(misfit()),
    }
}

fn null_of(data_type: &DataType) -> Result<ScalarValue, String> {
    ScalarValue::try_from(data_type).map_err(|error| error.to_string())
}

fn array_of(values: Vec<ScalarValue>, data_type: &DataType) -> Result<ArrayRef, String> {
    if values.is_empty() {
        return Ok(new_empty_array(data_type));
    }
    ScalarValue::iter_to_array(values).map_err(|error| error.to_string())
}

fn list_of(item: &FieldRef, values: &[Value]) -> Result<ScalarValue, String> {
    let scalars = values.iter().map(|value| scalar_of(value, item.data_type())).collect::<Result<Vec<_>, _>>()?;
    let offsets = OffsetBuffer::from_lengths([scalars.len()]);
    let values = array_of(scalars, item.data_type())?;
    let list = ListArray::try_new(Arc::clone(item), offsets, values, None).map_err(|error| error.to_string())?;
    Ok(ScalarValue::List(Arc::new(list)))
}

fn struct_of(fields: &Fields, object: &Map<String, Value>) -> Result<ScalarValue, String> {
    let mut columns = Vec::with_capacity(fields.len());
    for field in fields {
        let value = object.get(field.name()).unwrap_or(&Value::Null);
        let scalar = scalar_of(value, field.data_type()).map_err(|error| format!("{}: {error}", field.name()))?;
        columns.push(array_of(vec![scalar], field.data_type())?);
    }
    let row = StructArray::try_new_with_length(fields.clone(), columns, None, 1).map_err(|error| error.to_string())?;
    Ok(ScalarValue::Struct(Arc::new(row)))
}

fn map_of(entries: &FieldRef, object: &Map<String, Value>) -> Result<ScalarValue, String> {
    let DataType::Struct(fields) = entries.data_type() else {
        return Err("a map has no entries".into());
    };
    let keys = object.keys().map(|key| ScalarValue::Utf8(Some(key.clone()))).collect();
    let values = object.values().map(|value| scalar_of(value, fields[1].data_type())).collect::<Result<Vec<_>, _>>()?;
    let columns = vec![array_of(keys, fields[0].data_type())?, array_of(values, fields[1].data_type())?];
    let offsets = OffsetBuffer::from_lengths([object.len()]);
    let rows = StructArray::try_new(fields.clone(), columns, None).map_err(|error| error.to_string())?;
    let map = MapArray::try_new(Arc::clone(entries), offsets, rows, None, false).map_err(|error| error.to_string())?;
    debug_assert_eq!(map.len(), 1);
    Ok(ScalarValue::Map(Arc::new(map)))
}

/// A context without tables or functions, in which types are all that can be named.
struct Types {
    options: ConfigOptions,
}

impl Default for Types {
    fn default() -> Self {
        let mut options = ConfigOptions::default();
        options.sql_parser.map_string_types_to_utf8view = false;
        Types { options }
    }
}

impl ContextProvider for Types {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        plan_err!("no table {name} here")
    }

    fn get_function_meta(&self, _: &str) -> Option<Arc<ScalarUDF>> {
        None
    }

    fn get_higher_order_meta(&self, _: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, _: &str) -> Option<Arc<AggregateUDF>> {
        None
    }

    fn get_window_meta(&self, _: &str) -> Option<Arc<WindowUDF>> {
        None
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Returns the range of an integer type, at most 18 digits: more than that a grammar cannot bound.
fn integer_range(integer: &DataType) -> (i64, i64) {
    const MOST: i64 = 999_999_999_999_999_999;
    match integer {
        DataType::Int8 => (i8::MIN.into(), i8::MAX.into()),
        DataType::Int16 => (i16::MIN.into(), i16::MAX.into()),
        DataType::Int32 => (i32::MIN.into(), i32::MAX.into()),
        DataType::UInt8 => (0, u8::MAX.into()),
        DataType::UInt16 => (0, u16::MAX.into()),
        DataType::UInt32 => (0, u32::MAX.into()),
        DataType::UInt64 => (0, MOST),
        _ => (-MOST, MOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, data_type: &str, answer: Value, shown: &str) {
        let parsed = ValueType::parse("return_type", text).unwrap();
        assert_eq!(parsed.data_type.to_string(), data_type, "{text}");
        assert_eq!(scalar_of(&answer, &parsed.data_type).unwrap().to_string(), shown, "{text}");
    }

    #[test]
    fn sql_types() {
        check("VARCHAR", "Utf8", json!("a"), "a");
        check("int", "Int32", json!(7), "7");
        check("BIGINT", "Int64", json!(7), "7");
        check("double", "Float64", json!(0.5), "0.5");
        check("DECIMAL(5, 2)", "Decimal128(5, 2)", json!(1.5), "1.50");
        check("boolean", "Boolean", json!(true), "true");
        check("DATE", "Date32", json!("2024-02-29"), "2024-02-29");
        check("VARCHAR[]", "List(Utf8)", json!(["a", null]), "[a, ]");
        check(
            "STRUCT(name VARCHAR, age INT, tags TEXT[])",
            "Struct(\"name\": Utf8, \"age\": Int32, \"tags\": List(Utf8))",
            json!({"name": "Ann", "age": null, "tags": []}),
            "{name:Ann,age:,tags:[]}",
        );
    }

    #[test]
    fn json_schemas() {
        let schema = r#"{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": ["string", "null"]}}}"#;
        check(schema, "Struct(\"a\": Int64, \"b\": Utf8)", json!({"a": 1}), "{a:1,b:}");
        check(r#"{"type": "array", "items": {"type": "number"}}"#, "List(Float64)", json!([1.5]), "[1.5]");
        check(r#"{"anyOf": []}"#, "Utf8", json!({"x": 1}), r#"{"x":1}"#);
    }

    #[test]
    fn schemas_of_types() {
        let parsed = ValueType::parse("fields", "STRUCT(a INT, b STRUCT(c VARCHAR))").unwrap();
        let b = json!({"type": ["object", "null"], "properties": {"c": {"type": ["string", "null"]}}, "required": ["c"],
            "additionalProperties": false});
        assert_eq!(
            parsed.schema,
            json!({"type": "object", "properties": {"a": {"type": ["integer", "null"], "minimum": i32::MIN, "maximum": i32::MAX}, "b": b}, "required": ["a", "b"],
                "additionalProperties": false})
        );
    }

    #[test]
    fn misfits_are_words() {
        assert_eq!(scalar_of(&json!("x"), &DataType::Int64), Err("\"x\" is no Int64".into()));
        assert_eq!(scalar_of(&json!(1), &DataType::Boolean), Err("1 is no Boolean".into()));
        let error = ValueType::parse("ai_complete: option return_type", "BYTEA").unwrap_err().strip_backtrace();
        assert!(error.ends_with("ai_complete: option return_type: a model cannot answer with type Binary"), "{error}");
        assert!(ValueType::parse("return_type", "STRUCT(").is_err());
        assert!(ValueType::parse("return_type", "{").is_err());
        assert!(ValueType::parse("return_type", "INT INT").is_err());
    }

    #[test]
    fn maps() {
        let shown = scalar_of(&json!({"food": "positive", "service": null}), &text_map()).unwrap();
        assert_eq!(shown.data_type(), text_map());
    }
}
