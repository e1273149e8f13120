//! The aggregates as DataFusion sees them: placeholders that know their type and are never run.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::expr::AggregateFunctionParams;
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Expr, Signature, TypeSignature, Volatility};

use super::llm_aggregate::value_type;
use crate::constant::options_of;
use crate::function::Function;
use crate::options::CallOptions;
use crate::placeholder::{call_name, captured, check_count, check_options};

/// An aggregate that a model answers.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct AiAggregate {
    pub(crate) function: Function,
    signature: Signature,
}

impl AiAggregate {
    pub(crate) fn udaf(function: Function) -> AggregateUDF {
        let any = vec![TypeSignature::VariadicAny, TypeSignature::Nullary];
        AggregateUDF::new_from_impl(AiAggregate { function, signature: Signature::one_of(any, Volatility::Volatile) })
    }
}

/// Returns the aggregate of ours that a function of the host engine is.
pub(super) fn ai_aggregate(function: &AggregateUDF) -> Option<&AiAggregate> {
    function.inner().downcast_ref::<AiAggregate>()
}

pub(crate) fn is_ai_aggregate(function: &AggregateUDF) -> bool {
    ai_aggregate(function).is_some()
}

/// Returns whether the expression itself is an aggregate that a model answers.
pub fn is_llm_aggregate(expr: &Expr) -> bool {
    matches!(expr, Expr::AggregateFunction(aggregate) if is_ai_aggregate(&aggregate.func))
}

impl AggregateUDFImpl for AiAggregate {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn schema_name(&self, params: &AggregateFunctionParams) -> Result<String> {
        let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment: _ } = params;
        let mut name = call_name(self.name(), args);
        if *distinct {
            name = name.replacen('(', "(DISTINCT ", 1);
        }
        if !order_by.is_empty() {
            let keys: Vec<String> = order_by.iter().map(ToString::to_string).collect();
            name.truncate(name.len() - 1);
            name = format!("{name} ORDER BY {})", keys.join(", "));
        }
        if let Some(filter) = filter {
            name = format!("{name} FILTER (WHERE {})", filter.schema_name());
        }
        Ok(name)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        exec_err!("{}: the type of a call depends on its constant arguments", self.name())
    }

    fn return_field(&self, arg_fields: &[FieldRef]) -> Result<FieldRef> {
        let (options, has_options) = options_of(arg_fields);
        check_count(self.function, self.name(), arg_fields.len() - usize::from(has_options))?;
        check_options(self.function, self.name(), &options)?;
        let value_type = value_type(self.function, arg_fields[0].data_type(), &options)?;
        let on_error = CallOptions::from_raw(self.name(), &options)?.on_error;
        Ok(Arc::new(Field::new(self.name(), captured(value_type, on_error), true)))
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        exec_err!(
            "{} was not planned as an LLM operator; use it with GROUP BY rather than OVER, through a Refrain session",
            self.name()
        )
    }
}
