//! `ai_argument(value, prompt, parameter, type)`: the value, checked and converted to the type of a prompt's parameter.
//!
//! A call of a prompt is expanded before types are known, so the check stands in the plan; the optimizer then removes it.

use datafusion::arrow::compute::can_cast_types;
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue, internal_err, plan_err};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility, cast,
};

use crate::value_type::parse_sql_type;

pub(crate) const AI_ARGUMENT: &str = "ai_argument";

#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Argument {
    signature: Signature,
}

impl Argument {
    pub(crate) fn udf() -> ScalarUDF {
        ScalarUDF::new_from_impl(Argument { signature: Signature::any(4, Volatility::Immutable) })
    }
}

impl ScalarUDFImpl for Argument {
    fn name(&self) -> &str {
        AI_ARGUMENT
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("the type of {AI_ARGUMENT} depends on its constant arguments")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let texts: Vec<Option<&str>> =
            args.scalar_arguments[1..].iter().map(|value| value.and_then(|value| value.try_as_str().flatten())).collect();
        let [Some(prompt), Some(parameter), Some(sql_type)] = texts[..] else {
            return plan_err!("{AI_ARGUMENT}: prompt, parameter and type must be string literals");
        };
        let given = args.arg_fields[0].data_type();
        let declared = parse_sql_type(&format!("{prompt}: parameter {parameter}"), sql_type)?;
        if !accepts(&declared, given) {
            return plan_err!(
                "{prompt}: argument {parameter} must be {sql_type}, not {given}; write CAST(… AS {sql_type}) if that is meant"
            );
        }
        let kept = if is_kept(&declared, given) { given.clone() } else { declared };
        Ok(args.arg_fields[0].as_ref().clone().with_data_type(kept).with_nullable(true).into())
    }

    fn simplify(&self, mut args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let Expr::Literal(sql_type, _) = &args[3] else { return Ok(ExprSimplifyResult::Original(args)) };
        let declared = declared_type(sql_type)?;
        let given = args[0].get_type(info.schema())?;
        let value = args.swap_remove(0);
        Ok(ExprSimplifyResult::Simplified(if is_kept(&declared, &given) { value } else { cast(value, declared) }))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        args.args[0].cast_to(args.return_field.data_type(), None)
    }
}

fn declared_type(sql_type: &ScalarValue) -> Result<DataType> {
    match sql_type.try_as_str().flatten() {
        Some(sql_type) => parse_sql_type(AI_ARGUMENT, sql_type),
        None => internal_err!("the type of {AI_ARGUMENT} is a string"),
    }
}

/// Returns whether a parameter takes a value as it is: strings of any layout are VARCHAR.
fn is_kept(declared: &DataType, given: &DataType) -> bool {
    declared == given || (declared.is_string() && is_text(given))
}

fn is_text(given: &DataType) -> bool {
    match given {
        DataType::Dictionary(_, value) => value.is_string(),
        other => other.is_string(),
    }
}

/// Returns whether a parameter takes values of a type. A number is no text and a text is no number: what a prompt says of the
/// value would be wrong. A fraction is no whole number; numbers otherwise become each other where they fit.
fn accepts(declared: &DataType, given: &DataType) -> bool {
    if given.is_null() || is_kept(declared, given) {
        return true;
    }
    match (declared, given) {
        (DataType::Timestamp(..), DataType::Timestamp(..) | DataType::Date32 | DataType::Date64) => true,
        (declared, given) if declared.is_integer() => given.is_integer(),
        (declared, given) if declared.is_numeric() => given.is_numeric(),
        (declared, given) if declared.is_nested() => given.is_nested() && can_cast_types(given, declared),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::TimeUnit;

    use super::*;

    #[track_caller]
    fn check(declared: &str, given: DataType, expected: bool) {
        assert_eq!(accepts(&parse_sql_type("p", declared).unwrap(), &given), expected, "{declared} {given}");
    }

    #[test]
    fn parameters_take_their_kind() {
        check("VARCHAR", DataType::Utf8View, true);
        check("VARCHAR", DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), true);
        check("VARCHAR", DataType::Null, true);
        check("VARCHAR", DataType::Int64, false);
        check("INT", DataType::Int64, true);
        check("INT", DataType::Float64, false);
        check("INT", DataType::Utf8, false);
        check("DOUBLE", DataType::Int64, true);
        check("BOOLEAN", DataType::Int64, false);
        check("BOOLEAN", DataType::Boolean, true);
        check("DATE", DataType::Utf8, false);
        check("TIMESTAMP", DataType::Date32, true);
        check("DATE", DataType::Timestamp(TimeUnit::Second, None), false);
        check("VARCHAR[]", DataType::new_list(DataType::Utf8, true), true);
        check("VARCHAR[]", DataType::Utf8, false);
    }
}
