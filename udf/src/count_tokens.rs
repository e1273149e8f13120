//! `ai_count_tokens(text [, model])`: how many tokens a text has for a model. Exact, and asks no model.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, Int64Array};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use refrain_serving::Tokenizer;

use crate::function::COUNT_TOKENS;

/// Where tokenizers come from. Must not wait for a model to be loaded.
pub trait TokenizerSource: Send + Sync + Debug {
    /// Returns the tokenizer of a model, or of the default model.
    ///
    /// Fails if there is no such model, or no default one.
    fn tokenizer(&self, model: Option<&str>) -> Result<Arc<dyn Tokenizer>>;
}

/// The function; equal to another if both ask the same source.
#[derive(Debug)]
pub(crate) struct CountTokens {
    source: Arc<dyn TokenizerSource>,
    signature: Signature,
}

impl CountTokens {
    pub(crate) fn udf(source: Arc<dyn TokenizerSource>) -> ScalarUDF {
        let texts = vec![TypeSignature::String(1), TypeSignature::String(2)];
        // Stable, not immutable: which model is the default may change between queries.
        ScalarUDF::new_from_impl(CountTokens { source, signature: Signature::one_of(texts, Volatility::Stable) })
    }
}

impl PartialEq for CountTokens {
    fn eq(&self, other: &CountTokens) -> bool {
        Arc::ptr_eq(&self.source, &other.source)
    }
}

impl Eq for CountTokens {}

impl Hash for CountTokens {
    fn hash<H: Hasher>(&self, state: &mut H) {
        COUNT_TOKENS.name.hash(state);
    }
}

impl ScalarUDFImpl for CountTokens {
    fn name(&self) -> &str {
        COUNT_TOKENS.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let model = match args.args.get(1) {
            None => None,
            Some(ColumnarValue::Scalar(model)) => model.try_as_str().flatten(),
            Some(ColumnarValue::Array(_)) => {
                return exec_err!("{}: model must be a constant", COUNT_TOKENS.name);
            }
        };
        let tokenizer = self.source.tokenizer(model)?;
        let count = |text: &str| tokenizer.encode(text).len() as i64;
        match &args.args[0] {
            ColumnarValue::Scalar(text) => {
                Ok(ColumnarValue::Scalar(ScalarValue::Int64(text.try_as_str().flatten().map(count))))
            }
            ColumnarValue::Array(texts) => {
                let counts: Int64Array = match texts.data_type() {
                    DataType::Utf8 => texts.as_string::<i32>().iter().map(|text| text.map(count)).collect(),
                    DataType::LargeUtf8 => texts.as_string::<i64>().iter().map(|text| text.map(count)).collect(),
                    DataType::Utf8View => texts.as_string_view().iter().map(|text| text.map(count)).collect(),
                    other => {
                        return exec_err!("{}: cannot count tokens of {other}", COUNT_TOKENS.name);
                    }
                };
                Ok(ColumnarValue::Array(Arc::new(counts)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::AsArray;
    use datafusion::arrow::datatypes::Int64Type;

    use crate::fixture::{plan, session};

    #[track_caller]
    fn check(got: Result<Vec<Option<i64>>, String>, expected: &[Option<i64>]) {
        assert_eq!(got.as_deref(), Ok(expected));
    }

    async fn run(sql: &str) -> Result<Vec<Option<i64>>, String> {
        let ctx = session().await;
        let plan = plan(&ctx, sql).await?;
        let frame = ctx.execute_logical_plan(plan).await.map_err(|error| error.strip_backtrace())?;
        let batches = frame.collect().await.map_err(|error| error.strip_backtrace())?;
        Ok(batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().iter()).collect())
    }

    #[tokio::test]
    async fn counts() {
        check(run("SELECT ai_count_tokens(body) FROM t").await, &[Some(3)]);
        check(run("SELECT ai_count_tokens('a b <|end|>')").await, &[Some(5)]);
        check(run("SELECT ai_count_tokens(NULL::varchar)").await, &[None]);
        check(run("SELECT ai_count_tokens(body, model => 'words') FROM t").await, &[Some(3)]);
        let error = run("SELECT ai_count_tokens(body, 'none') FROM t").await.unwrap_err();
        assert!(error.contains("there is no model none"), "{error}");
    }
}
