//! `ai_similarity(a, b [, model])`: the cosine of two vectors, or of the vectors of two texts.
//!
//! Over vectors it is arithmetic and asks no model. A text is replaced by its vector before anything else looks at the call:
//!
//! `ai_similarity(t.body, 'refund', ai_options('model', 'm'))` becomes
//! `ai_similarity(ai_embed(t.body, ai_options('model', 'm')), ai_embed('refund', ai_options('model', 'm')))`.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array, PrimitiveArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float32Type, Float64Type};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, exec_err, internal_err, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, TypeSignature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;

use crate::function::SIMILARITY;
use crate::placeholder::is_ai_options;

/// Partial sums of a scalar product, so that it runs in vector registers.
const LANES: usize = 8;

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Similarity {
    /// Makes a vector of a text.
    embed: Arc<ScalarUDF>,
    signature: Signature,
}

impl Similarity {
    pub(crate) fn udf(embed: Arc<ScalarUDF>) -> ScalarUDF {
        let signature = Signature::one_of(vec![TypeSignature::Any(2), TypeSignature::Any(3)], Volatility::Immutable);
        ScalarUDF::new_from_impl(Similarity { embed, signature })
    }
}

impl ScalarUDFImpl for Similarity {
    fn name(&self) -> &str {
        SIMILARITY.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let mut lengths = Vec::new();
        for (field, param) in args.arg_fields.iter().zip(SIMILARITY.params) {
            match Operand::of(field.data_type()) {
                Some(Operand::Vector(length)) => lengths.extend(length),
                Some(Operand::Text | Operand::Null) => {}
                None => {
                    let (name, found) = (SIMILARITY.name, field.data_type());
                    return plan_err!("{name}: {} must be a text or a vector of numbers, not {found}", param.name);
                }
            }
        }
        if let [a, b] = lengths[..]
            && a != b
        {
            return plan_err!("{}: vectors of {a} and of {b} dimensions cannot be compared", SIMILARITY.name);
        }
        Ok(Arc::new(Field::new(SIMILARITY.name, DataType::Float64, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [a, b, ..] = args.args.as_slice() else { return internal_err!("{} takes two arguments", SIMILARITY.name) };
        let (a, b) = (Vectors::new(a)?, Vectors::new(b)?);
        let is_scalar = a.is_scalar && b.is_scalar;
        let rows = if is_scalar { 1 } else { args.number_rows };
        let values = (0..rows).map(|row| cosine_of_row(&a, &b, row)).collect::<Result<Float64Array>>()?;
        if is_scalar {
            return Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&values, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(values)))
    }
}

/// What may be compared.
enum Operand {
    Text,
    /// A list of numbers, of this length where all are equally long.
    Vector(Option<i32>),
    Null,
}

impl Operand {
    fn of(data_type: &DataType) -> Option<Operand> {
        match data_type {
            DataType::Null => Some(Operand::Null),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(Operand::Text),
            DataType::Dictionary(_, values) => Operand::of(values).filter(|operand| matches!(operand, Operand::Text)),
            DataType::FixedSizeList(item, length) if item.data_type().is_numeric() => Some(Operand::Vector(Some(*length))),
            DataType::List(item) | DataType::LargeList(item) if item.data_type().is_numeric() => Some(Operand::Vector(None)),
            _ => None,
        }
    }
}

/// The vectors of one argument.
struct Vectors {
    lists: ArrayRef,
    values: Values,
    is_scalar: bool,
}

/// The numbers of all vectors, one after the other.
enum Values {
    Single(PrimitiveArray<Float32Type>),
    Double(PrimitiveArray<Float64Type>),
    /// There are none: the argument is NULL.
    None,
}

impl Vectors {
    fn new(argument: &ColumnarValue) -> Result<Self> {
        let (lists, is_scalar) = match argument {
            ColumnarValue::Array(array) => (Arc::clone(array), false),
            ColumnarValue::Scalar(scalar) => (scalar.to_array()?, true),
        };
        let values = match lists.data_type() {
            DataType::FixedSizeList(..) => Arc::clone(lists.as_fixed_size_list().values()),
            DataType::List(_) => Arc::clone(lists.as_list::<i32>().values()),
            DataType::LargeList(_) => Arc::clone(lists.as_list::<i64>().values()),
            DataType::Null => return Ok(Vectors { lists, values: Values::None, is_scalar }),
            other => {
                return exec_err!("{} was not planned over {other}; run it through a Refrain session", SIMILARITY.name);
            }
        };
        let values = match values.data_type() {
            DataType::Float32 => Values::Single(values.as_primitive::<Float32Type>().clone()),
            _ => Values::Double(cast(&values, &DataType::Float64)?.as_primitive::<Float64Type>().clone()),
        };
        Ok(Vectors { lists, values, is_scalar })
    }

    /// Returns where the vector of a row lies in `values`; `None` for NULL.
    fn range(&self, row: usize) -> Option<(usize, usize)> {
        let row = if self.is_scalar { 0 } else { row };
        if self.lists.is_null(row) {
            return None;
        }
        match self.lists.data_type() {
            DataType::FixedSizeList(_, length) => {
                let start = self.lists.as_fixed_size_list().value_offset(row) as usize;
                Some((start, start + *length as usize))
            }
            DataType::List(_) => {
                let offsets = self.lists.as_list::<i32>().value_offsets();
                Some((offsets[row] as usize, offsets[row + 1] as usize))
            }
            DataType::LargeList(_) => {
                let offsets = self.lists.as_list::<i64>().value_offsets();
                Some((offsets[row] as usize, offsets[row + 1] as usize))
            }
            _ => None,
        }
    }

    fn has_null(&self, (start, end): (usize, usize)) -> bool {
        let nulls = match &self.values {
            Values::Single(values) => values.nulls(),
            Values::Double(values) => values.nulls(),
            Values::None => None,
        };
        nulls.is_some_and(|nulls| (start..end).any(|at| nulls.is_null(at)))
    }
}

/// Compares the vectors of a row. NULL if one is NULL, holds a NULL, or has no direction.
fn cosine_of_row(a: &Vectors, b: &Vectors, row: usize) -> Result<Option<f64>> {
    let (Some(left), Some(right)) = (a.range(row), b.range(row)) else { return Ok(None) };
    let (len, other) = (left.1 - left.0, right.1 - right.0);
    if len != other {
        return exec_err!("{}: vectors of {len} and of {other} dimensions cannot be compared", SIMILARITY.name);
    }
    if a.has_null(left) || b.has_null(right) {
        return Ok(None);
    }
    Ok(match (&a.values, &b.values) {
        (Values::Single(a), Values::Single(b)) => cosine(&a.values()[left.0..left.1], &b.values()[right.0..right.1]),
        (Values::Single(a), Values::Double(b)) => cosine(&a.values()[left.0..left.1], &b.values()[right.0..right.1]),
        (Values::Double(a), Values::Single(b)) => cosine(&a.values()[left.0..left.1], &b.values()[right.0..right.1]),
        (Values::Double(a), Values::Double(b)) => cosine(&a.values()[left.0..left.1], &b.values()[right.0..right.1]),
        _ => None,
    })
}

fn cosine<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> Option<f64> {
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    // Rounding must not leave the range.
    (lengths.is_finite() && lengths > 0.0).then(|| (dot(a, b) / lengths).clamp(-1.0, 1.0))
}

fn dot<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> f64 {
    let mut sums = [0.0; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a.into() * b.into();
        }
    }
    sums.iter().sum()
}

/// Replaces texts in `ai_similarity` by their vectors. Runs before [`NameInputs`](crate::NameInputs).
#[derive(Debug, Default)]
pub struct EmbedTexts;

impl AnalyzerRule for EmbedTexts {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let embedded = plan.transform_up_with_subqueries(|plan| {
            let schema = merge_schema(&plan.inputs());
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let embedded = expr.transform_up(|expr| embed_texts(expr, &schema))?;
                Ok(embedded.update_data(|expr| name.restore(expr)))
            })
        })?;
        Ok(embedded.data)
    }

    fn name(&self) -> &str {
        "embed_texts"
    }
}

fn embed_texts(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(ScalarFunction { func, mut args }) = expr else {
        return Ok(Transformed::no(expr));
    };
    let Some(similarity) = func.inner().downcast_ref::<Similarity>() else {
        return Ok(Transformed::no(Expr::ScalarFunction(ScalarFunction { func, args })));
    };
    let options = args.pop_if(|last| is_ai_options(last));
    let embed = |arg: Expr| -> Result<Expr> {
        if !matches!(Operand::of(&arg.get_type(schema)?), Some(Operand::Text)) {
            return Ok(arg);
        }
        let args = [arg].into_iter().chain(options.clone()).collect();
        Ok(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&similarity.embed), args)))
    };
    let args = args.into_iter().map(embed).collect::<Result<Vec<_>>>()?;
    if args.len() != 2 {
        return plan_err!("{}: takes two texts or two vectors, not {}", SIMILARITY.name, args.len());
    }
    Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args })))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::AsArray;
    use datafusion::arrow::datatypes::Float64Type;

    use crate::fixture::{calls, plan, session};

    /// Runs an expression that asks no model.
    async fn run(expr: &str) -> Result<Option<f64>, String> {
        let ctx = session().await;
        let plan = plan(&ctx, &format!("SELECT {expr}")).await?;
        let frame = ctx.execute_logical_plan(plan).await.map_err(|error| error.strip_backtrace())?;
        let batches = frame.collect().await.map_err(|error| error.strip_backtrace())?;
        Ok(batches[0].column(0).as_primitive::<Float64Type>().iter().next().unwrap())
    }

    #[tokio::test]
    async fn compares_vectors() {
        let check = async |expr: &str, expected: Option<f64>| assert_eq!(run(expr).await, Ok(expected), "{expr}");
        check("ai_similarity([3, 0], [2.5, 0])", Some(1.0)).await;
        check("ai_similarity([1.0, 0.0], [0.0, 1.0])", Some(0.0)).await;
        check("ai_similarity([1.0, 1.0], [-2.0, -2.0])", Some(-1.0)).await;
        check("ai_similarity(arrow_cast([3.0, 4.0], 'FixedSizeList(2, Float32)'), [4.0, 3.0])", Some(0.96)).await;
        check("ai_similarity([1.0, NULL], [1.0, 2.0])", None).await;
        check("ai_similarity(NULL, [1.0, 2.0])", None).await;
        check("ai_similarity([0.0, 0.0], [1.0, 2.0])", None).await;
    }

    #[tokio::test]
    async fn refuses_what_cannot_be_compared() {
        let check = async |expr: &str, words: &str| {
            let error = run(expr).await.unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        check("ai_similarity([1.0], [1.0, 2.0])", "vectors of 1 and of 2 dimensions").await;
        check("ai_similarity(1, [1.0])", "a must be a text or a vector of numbers, not Int64").await;
        check(
            "ai_similarity(arrow_cast([1.0, 2.0], 'FixedSizeList(2, Float32)'), 'text')",
            "vectors of 2 and of 8 dimensions",
        )
        .await;
    }

    #[tokio::test]
    async fn texts_are_embedded_once_with_the_options_of_the_call() {
        let found = calls("SELECT ai_similarity(body, title, model => 'vectors') AS s FROM t").await.unwrap();
        let described: Vec<String> = found.iter().map(|call| call.describe()).collect();
        assert_eq!(described, ["ai_embed([body])", "ai_embed([title])"]);
        assert!(found.iter().all(|call| call.options.model.as_deref() == Some("vectors")));
        assert!(calls("SELECT ai_similarity([1.0], [2.0]) FROM t").await.unwrap().is_empty());
    }
}
