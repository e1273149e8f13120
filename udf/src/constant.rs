//! Constant arguments as JSON values: what labels, fields and options are read from.

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{Expr, Operator, ReturnFieldArgs};
use serde_json::{Map, Number, Value};

use crate::placeholder::{FIELDS_KEY, OPTIONS_KEY, is_ai_fields};

/// Returns the value of a constant expression; `None` if it is not constant.
///
/// Besides literals it reads lists, structs and `ai_fields` of constants, since the planner does not always fold them first.
pub(crate) fn constant(expr: &Expr) -> Option<Value> {
    match expr {
        Expr::Literal(value, _) => scalar_value(value).ok(),
        Expr::Alias(alias) => constant(&alias.expr),
        Expr::Negative(inner) => match constant(inner)? {
            Value::Number(number) => Number::from_f64(-number.as_f64()?).map(Value::Number),
            _ => None,
        },
        Expr::BinaryExpr(binary) if binary.op == Operator::StringConcat => {
            match (constant(&binary.left)?, constant(&binary.right)?) {
                (Value::String(left), Value::String(right)) => Some(Value::String(left + &right)),
                _ => None,
            }
        }
        Expr::ScalarFunction(function) if function.func.name() == "make_array" => {
            function.args.iter().map(constant).collect::<Option<Vec<_>>>().map(Value::Array)
        }
        Expr::ScalarFunction(function) if function.func.name() == "named_struct" || is_ai_fields(function) => {
            pairs(&function.args)
        }
        _ => None,
    }
}

/// Reads `name, value, name, value, …`.
fn pairs(args: &[Expr]) -> Option<Value> {
    let mut object = Map::new();
    for pair in args.chunks(2) {
        let [name, value] = pair else { return None };
        let Value::String(name) = constant(name)? else {
            return None;
        };
        object.insert(name, constant(value)?);
    }
    Some(Value::Object(object))
}

/// Returns what is known of the argument at `position` while types are decided: a literal's value, the names of a struct, or
/// what `ai_fields` wrote into the metadata of its field.
pub(crate) fn known_argument(args: &ReturnFieldArgs, position: usize) -> Option<Value> {
    let field = args.arg_fields.get(position)?;
    if let Some(Some(scalar)) = args.scalar_arguments.get(position) {
        return scalar_value(scalar).ok();
    }
    if let Some(fields) = field.metadata().get(FIELDS_KEY) {
        return serde_json::from_str(fields).ok();
    }
    match field.data_type() {
        DataType::Struct(fields) => {
            Some(Value::Object(fields.iter().map(|field| (field.name().clone(), Value::Null)).collect()))
        }
        _ => None,
    }
}

/// Returns the options that are known while types are decided, and whether the last argument carries options.
pub(crate) fn known_options(args: &ReturnFieldArgs) -> (Map<String, Value>, bool) {
    options_of(args.arg_fields)
}

/// As [`known_options`], from the fields of the arguments.
pub(crate) fn options_of(arg_fields: &[FieldRef]) -> (Map<String, Value>, bool) {
    let Some(options) = arg_fields.last().and_then(|field| field.metadata().get(OPTIONS_KEY)) else {
        return (Map::new(), false);
    };
    (serde_json::from_str(options).unwrap_or_default(), true)
}

/// Returns a scalar as a JSON value. Fails on types that no constant argument has.
pub(crate) fn scalar_value(scalar: &ScalarValue) -> Result<Value> {
    if scalar.is_null() {
        return Ok(Value::Null);
    }
    if let Some(Some(text)) = scalar.try_as_str() {
        return Ok(Value::String(text.to_string()));
    }
    match scalar {
        ScalarValue::Boolean(Some(value)) => Ok(Value::Bool(*value)),
        ScalarValue::List(list) => elements(&list.value(0)),
        ScalarValue::LargeList(list) => elements(&list.value(0)),
        ScalarValue::FixedSizeList(list) => elements(&list.value(0)),
        ScalarValue::Struct(row) => {
            let names = row.column_names();
            let values = row.columns().iter().map(|column| scalar_value(&ScalarValue::try_from_array(column, 0)?));
            let pairs = names.iter().zip(values).map(|(name, value)| Ok((name.to_string(), value?)));
            Ok(Value::Object(pairs.collect::<Result<Map<_, _>>>()?))
        }
        ScalarValue::Map(map) => {
            let entries = map.value(0);
            let mut object = Map::new();
            for row in 0..entries.len() {
                let Value::String(key) = scalar_value(&ScalarValue::try_from_array(entries.column(0), row)?)? else {
                    continue;
                };
                object.insert(key, scalar_value(&ScalarValue::try_from_array(entries.column(1), row)?)?);
            }
            Ok(Value::Object(object))
        }
        ScalarValue::Dictionary(_, value) => scalar_value(value),
        number => number_value(number),
    }
}

fn number_value(scalar: &ScalarValue) -> Result<Value> {
    if scalar.data_type().is_unsigned_integer()
        && let ScalarValue::UInt64(Some(value)) = scalar.cast_to(&DataType::UInt64)?
    {
        return Ok(Value::from(value));
    }
    if scalar.data_type().is_signed_integer()
        && let ScalarValue::Int64(Some(value)) = scalar.cast_to(&DataType::Int64)?
    {
        return Ok(Value::from(value));
    }
    if scalar.data_type().is_numeric()
        && let ScalarValue::Float64(Some(value)) = scalar.cast_to(&DataType::Float64)?
    {
        return Ok(Number::from_f64(value).map_or(Value::Null, Value::Number));
    }
    Ok(Value::String(scalar.to_string()))
}

fn elements(array: &ArrayRef) -> Result<Value> {
    let values = (0..array.len()).map(|row| scalar_value(&ScalarValue::try_from_array(array, row)?));
    Ok(Value::Array(values.collect::<Result<Vec<_>>>()?))
}

/// Returns the columns of a literal struct as literals.
pub(crate) fn struct_columns(scalar: &ScalarValue) -> Option<Vec<(String, ScalarValue)>> {
    let ScalarValue::Struct(row) = scalar else {
        return None;
    };
    let value = |column| ScalarValue::try_from_array(column, 0).ok();
    row.column_names()
        .iter()
        .zip(row.columns())
        .map(|(name, column)| {
            if row.is_null(0) {
                return Some((name.to_string(), ScalarValue::try_from(column.data_type()).ok()?));
            }
            Some((name.to_string(), value(column)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::functions_nested::expr_fn::make_array;
    use datafusion::prelude::{col, lit, named_struct};
    use serde_json::json;

    #[track_caller]
    fn check(expr: Expr, expected: Option<Value>) {
        assert_eq!(constant(&expr), expected);
    }

    #[test]
    fn reads_constants() {
        check(lit("a"), Some(json!("a")));
        check(lit(3), Some(json!(3)));
        check(lit(0.5), Some(json!(0.5)));
        check(lit(true), Some(json!(true)));
        check(lit(ScalarValue::Utf8View(Some("v".into()))), Some(json!("v")));
        check(lit(ScalarValue::Null), Some(Value::Null));
        check(make_array(vec![lit("a"), lit("b")]), Some(json!(["a", "b"])));
        check(named_struct(vec![lit("k"), lit("v")]), Some(json!({"k": "v"})));
        check(col("a"), None);
        check(make_array(vec![lit("a"), col("b")]), None);
    }

    #[test]
    fn reads_folded_lists_and_structs() {
        let list = ScalarValue::List(ScalarValue::new_list_nullable(&["a".into(), "b".into()], &DataType::Utf8));
        check(lit(list), Some(json!(["a", "b"])));
    }
}
