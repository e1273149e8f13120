//! Aggregates that are planned and refused for now, so that their names give a clear message.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, not_impl_err, plan_err};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, TypeSignature, Volatility};

/// An aggregate of which only the name is known.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct UnavailableAggregate {
    name: &'static str,
    signature: Signature,
}

impl UnavailableAggregate {
    pub(crate) fn udaf(name: &'static str) -> AggregateUDF {
        let any = vec![TypeSignature::VariadicAny, TypeSignature::Nullary];
        AggregateUDF::new_from_impl(UnavailableAggregate { name, signature: Signature::one_of(any, Volatility::Volatile) })
    }
}

impl AggregateUDFImpl for UnavailableAggregate {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        plan_err!("{} is not available in this version", self.name)
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        not_impl_err!("{} is not available in this version", self.name)
    }
}
