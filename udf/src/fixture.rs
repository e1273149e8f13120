//! For tests: a session with the functions and a small table, and a tokenizer that splits text as common ones do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::DFParser;
use datafusion::sql::sqlparser::ast;
use refrain_serving::{TokenId, Tokenizer};

use crate::{EmbedTexts, EmbeddingSource, LlmCall, NameInputs, NamedPrompts, Settings, TokenizerSource, is_llm_call};

const CONTROL: [&str; 5] = ["<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];

/// Gives every piece of text that a common tokenizer never merges with its neighbours a number of its own.
#[derive(Debug, Default)]
pub(crate) struct WordTokenizer {
    words: Mutex<HashMap<String, TokenId>>,
}

impl WordTokenizer {
    fn id(&self, word: &str) -> TokenId {
        let mut words = self.words.lock().unwrap();
        let next = words.len() as TokenId + 100;
        *words.entry(word.to_string()).or_insert(next)
    }
}

/// Splits as the pattern of Llama 3 does, contractions aside:
/// `[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = word_end(rest);
        words.push(&rest[..end]);
        rest = &rest[end..];
    }
    words
}

/// Returns where the first word of a text that is not empty ends.
fn word_end(text: &str) -> usize {
    let is_line = |letter: char| matches!(letter, '\r' | '\n');
    let is_letter = |letter: char| letter.is_alphabetic();
    let is_sign = |letter: char| !letter.is_alphanumeric() && !letter.is_whitespace();
    let run = |from: usize, holds: &dyn Fn(char) -> bool| {
        text[from..].find(|letter| !holds(letter)).map_or(text.len(), |end| from + end)
    };
    let first = text.chars().next().unwrap();
    let second = first.len_utf8();
    let lead = if is_line(first) || first.is_alphanumeric() { 0 } else { second };
    if run(lead, &is_letter) > lead {
        return run(lead, &is_letter);
    }
    if first.is_alphanumeric() {
        return second;
    }
    let signs = if first == ' ' { 1 } else { 0 };
    if run(signs, &is_sign) > signs {
        return run(run(signs, &is_sign), &is_line);
    }
    let blank = run(0, &char::is_whitespace);
    if let Some(line) = text[..blank].rfind(is_line) {
        return line + 1;
    }
    let last = text[..blank].chars().next_back().unwrap().len_utf8();
    if blank < text.len() && blank > last { blank - last } else { blank }
}

impl Tokenizer for WordTokenizer {
    fn encode(&self, text: &str) -> Vec<TokenId> {
        words(text).into_iter().map(|word| self.id(word)).collect()
    }

    fn encode_control(&self, text: &str) -> Vec<TokenId> {
        let first = CONTROL.iter().enumerate().filter_map(|(id, mark)| Some((text.find(mark)?, id)));
        let Some((start, id)) = first.min() else {
            return self.encode(text);
        };
        let mut tokens = self.encode(&text[..start]);
        tokens.push(id as TokenId);
        tokens.extend(self.encode_control(&text[start + CONTROL[id].len()..]));
        tokens
    }

    fn decode(&self, tokens: &[TokenId]) -> String {
        let words = self.words.lock().unwrap();
        let find = |token| words.iter().find(|(_, id)| *id == token).map(|(word, _)| word.as_str());
        tokens.iter().filter_map(find).collect()
    }

    fn token_bytes(&self, _: TokenId) -> &[u8] {
        &[]
    }

    fn vocab_size(&self) -> usize {
        1 << 20
    }

    fn end_tokens(&self) -> &[TokenId] {
        &[4]
    }

    fn render_chat(&self, system: &str, user: &str) -> refrain_serving::Result<String> {
        Ok(format!("<|begin|><|system|>{system}<|user|>{user}<|assistant|>"))
    }
}

/// Knows one tokenizer, for the default model and for `words`.
#[derive(Debug, Default)]
pub(crate) struct OneTokenizer(Arc<WordTokenizer>);

impl TokenizerSource for OneTokenizer {
    fn tokenizer(&self, model: Option<&str>) -> Result<Arc<dyn Tokenizer>> {
        match model {
            None | Some("words") => Ok(Arc::clone(&self.0) as Arc<dyn Tokenizer>),
            Some(other) => datafusion::common::plan_err!("there is no model {other}"),
        }
    }
}

/// Vectors have eight dimensions.
impl EmbeddingSource for OneTokenizer {
    fn dimensions(&self, model: Option<&str>) -> Result<Option<u32>> {
        match model {
            None | Some("vectors") => Ok(Some(8)),
            Some("remote") => Ok(None),
            Some(other) => datafusion::common::plan_err!("model {other} makes no vectors"),
        }
    }
}

/// A session with the functions and `t(title, body, price, seen, address)`.
pub(crate) async fn session() -> SessionContext {
    let state = SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_option_extension(Settings::default()))
        .with_default_features()
        .with_analyzer_rule(Arc::new(EmbedTexts))
        .with_analyzer_rule(Arc::new(NameInputs))
        .build();
    let ctx = SessionContext::new_with_state(state);
    let models = Arc::new(OneTokenizer::default());
    for function in crate::scalar_functions(Arc::clone(&models) as Arc<dyn TokenizerSource>, models) {
        ctx.register_udf(function);
    }
    for function in crate::aggregate_functions() {
        ctx.register_udaf(function);
    }
    let table = "CREATE TABLE t AS SELECT * FROM (VALUES \
                 ('Alien', 'A great film', 3, true, named_struct('city', 'Bonn', 'zip', '53111'))) \
                 AS v(title, body, price, seen, address)";
    ctx.sql(table).await.unwrap().collect().await.unwrap();
    ctx
}

/// Desugars and plans a statement; errors as text without their kind.
pub(crate) async fn plan(ctx: &SessionContext, sql: &str) -> Result<LogicalPlan, String> {
    let text = |error: datafusion::common::DataFusionError| {
        let text = error.strip_backtrace();
        text.strip_prefix("Error during planning: ").unwrap_or(&text).to_string()
    };
    let mut statement = DFParser::parse_sql(sql).unwrap().pop_front().unwrap();
    let columns = |_: Option<&ast::ObjectName>, _: &ast::Select| {
        Ok(["title", "body"].map(|name| ast::Expr::Identifier(ast::Ident::new(name))).to_vec())
    };
    crate::desugar::desugar(&mut statement, &Settings::default(), &NamedPrompts::default(), &mut { columns })
        .map_err(text)?;
    ctx.state().statement_to_plan(statement).await.map_err(text)
}

/// Plans and optimizes a statement, and returns the calls in it, bound.
pub(crate) async fn calls(sql: &str) -> Result<Vec<LlmCall>, String> {
    let ctx = session().await;
    let plan = plan(&ctx, sql).await?;
    let plan = ctx.state().optimize(&plan).map_err(|error| error.strip_backtrace())?;
    let mut calls = Vec::new();
    plan.apply_with_subqueries(|node| {
        let schema = datafusion::logical_expr::utils::merge_schema(&node.inputs());
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if is_llm_call(expr)
                    && let Expr::ScalarFunction(function) = expr
                {
                    calls.push(LlmCall::bind(function, &schema)?);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })
    .map_err(|error| error.strip_backtrace().replace("Error during planning: ", ""))?;
    Ok(calls)
}

/// Returns the only call of `SELECT expr FROM t`.
pub(crate) async fn call(expr: &str) -> Result<LlmCall, String> {
    let mut calls = calls(&format!("SELECT {expr} FROM t")).await?;
    assert_eq!(calls.len(), 1, "{expr}");
    Ok(calls.remove(0))
}
