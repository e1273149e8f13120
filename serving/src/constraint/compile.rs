//! From an output shape to the states that enforce it, one for each request.

use std::fmt;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::choice::{Choice, LabelTrie};
use super::grammar::{GrammarCompiler, GrammarLanes};
use super::number::{Number, NumberRange};
use super::{Constraint, Next, schema};
use crate::error::{Error, Result};
use crate::request::{OutputShape, TokenId};
use crate::tokenizer::Tokenizer;

/// Whole numbers are spelt out as choices while there are at most this many.
const NUMBER_CHOICES_MAX: i128 = 256;

/// Compiles the shapes of one tokenizer. What all grammars need of the vocabulary is prepared once, when the first one is asked for.
pub struct ConstraintCompiler {
    tokenizer: Arc<dyn Tokenizer>,
    lanes: usize,
    grammars: OnceLock<Result<GrammarCompiler>>,
}

impl ConstraintCompiler {
    /// Starts with nothing compiled.
    pub fn new(tokenizer: Arc<dyn Tokenizer>) -> Self {
        ConstraintCompiler { tokenizer, lanes: 1, grammars: OnceLock::new() }
    }

    /// Spreads the states of each grammar over so many lanes, for as many threads; see [`Constraint::lane`].
    pub fn with_lanes(mut self, lanes: usize) -> Self {
        self.lanes = lanes;
        self
    }

    /// Compiles a shape.
    ///
    /// Fails with [`Error::Invalid`] if no answer can have it: no label, an empty range, a schema or an expression that is
    /// wrong or not supported, text that the tokenizer cannot write.
    pub fn compile(&self, shape: &OutputShape) -> Result<ConstraintFactory> {
        let tokenizer = self.tokenizer.as_ref();
        let compiled = match shape {
            OutputShape::Text => Compiled::Text,
            OutputShape::Choice(labels) => Compiled::Choice(LabelTrie::new(labels, tokenizer)?),
            OutputShape::Number { min, max, integer } => {
                let range = NumberRange::new(*min, *max, *integer)?;
                match range.whole_numbers(NUMBER_CHOICES_MAX) {
                    Some(labels) => Compiled::Choice(LabelTrie::new(&labels, tokenizer)?),
                    None => Compiled::Number(Number::new(range, tokenizer)?),
                }
            }
            OutputShape::Json(schema) => self.json(schema)?,
            OutputShape::Regex(expression) => Compiled::Grammar(self.grammars()?.regex(expression)?),
            OutputShape::Embedding { .. } => {
                return Err(Error::Invalid("a vector was asked of a model that writes text".to_string()));
            }
        };
        Ok(ConstraintFactory { compiled })
    }

    /// Compiles a JSON schema. One of a few texts is a choice among them in quotes, which needs no end token: no text in quotes begins
    /// another.
    fn json(&self, schema: &Value) -> Result<Compiled> {
        if let Some(texts) = schema::quoted_texts(schema) {
            schema::check(schema)?;
            if let Ok(trie) = LabelTrie::new(&texts, self.tokenizer.as_ref()) {
                return Ok(Compiled::Choice(trie));
            }
        }
        Ok(Compiled::Grammar(self.grammars()?.json(schema)?))
    }

    fn grammars(&self) -> Result<&GrammarCompiler> {
        self.grammars.get_or_init(|| GrammarCompiler::new(&self.tokenizer, self.lanes)).as_ref().map_err(Error::clone)
    }
}

impl fmt::Debug for ConstraintCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintCompiler").field("tokenizer", &self.tokenizer).finish_non_exhaustive()
    }
}

/// A compiled shape: hands out fresh states, each for the price of a few pointers or of a small parser.
#[derive(Debug)]
pub struct ConstraintFactory {
    compiled: Compiled,
}

#[derive(Debug)]
enum Compiled {
    Text,
    Choice(Arc<LabelTrie>),
    Number(Number),
    Grammar(GrammarLanes),
}

impl ConstraintFactory {
    /// Compiles one shape. To compile several for one tokenizer, keep a [`ConstraintCompiler`].
    pub fn new(shape: &OutputShape, tokenizer: &Arc<dyn Tokenizer>) -> Result<Self> {
        ConstraintCompiler::new(Arc::clone(tokenizer)).compile(shape)
    }

    /// Returns the state of a request that has no answer yet.
    pub fn state(&self) -> Box<dyn Constraint> {
        match &self.compiled {
            Compiled::Text => Box::new(FreeText),
            Compiled::Choice(trie) => Box::new(Choice::new(Arc::clone(trie))),
            Compiled::Number(number) => Box::new(number.clone()),
            Compiled::Grammar(grammar) => Box::new(grammar.open()),
        }
    }
}

/// Compiles a shape for a single request.
pub fn constraint(shape: &OutputShape, tokenizer: &Arc<dyn Tokenizer>) -> Result<Box<dyn Constraint>> {
    Ok(ConstraintFactory::new(shape, tokenizer)?.state())
}

/// Fails if no answer can have the shape, or if it is not one that can be enforced: for planners, which have no row yet.
///
/// To check several shapes for one tokenizer, keep a [`ConstraintCompiler`].
pub fn check(shape: &OutputShape, tokenizer: &Arc<dyn Tokenizer>) -> Result<()> {
    ConstraintFactory::new(shape, tokenizer).map(drop)
}

/// Any text.
#[derive(Debug)]
pub(crate) struct FreeText;

impl Constraint for FreeText {
    fn next(&mut self) -> Result<Next> {
        Ok(Next::Free)
    }

    fn accept(&mut self, _token: TokenId) -> Result<()> {
        Ok(())
    }

    fn is_complete(&mut self) -> bool {
        true
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;
    use std::sync::LazyLock;

    use super::*;
    use crate::load::{ChatTemplate, HfTokenizer};

    /// The tokenizer of the bundled models, for the tests of all constraints.
    pub(in crate::constraint) static MINI: LazyLock<Arc<dyn Tokenizer>> = LazyLock::new(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini/tokenizer.json");
        let json = std::fs::read(path).unwrap();
        Arc::new(HfTokenizer::from_bytes(&json, ChatTemplate::plain(), vec![2]).unwrap())
    });

    /// Writes an answer: `choose` picks among the allowed tokens, the end token 2 among them. Checks on the way that asking
    /// twice gives the same, and asking early a part of it, that lists are sorted, that an end is offered where the answer is complete and nowhere else, and
    /// gives up with `None` after `limit` tokens.
    pub(in crate::constraint) fn write(
        state: &mut dyn Constraint,
        limit: usize,
        mut choose: impl FnMut(&[TokenId]) -> TokenId,
    ) -> Option<String> {
        let mut tokens = Vec::new();
        while tokens.len() < limit {
            let early = state.next_early().unwrap();
            let next = state.next().unwrap();
            assert_eq!(next, state.next().unwrap());
            match (early, &next) {
                (None, _) => {}
                (Some(Next::Forced(part)), Next::Forced(all) | Next::Finish(all)) => assert!(all.starts_with(&part)),
                (Some(early), next) => assert_eq!(early, *next),
            }
            let allowed: Vec<TokenId> = match next {
                Next::Free | Next::Hidden { .. } => return None,
                Next::Finish(rest) => {
                    assert_eq!(state.is_complete(), rest.is_empty());
                    tokens.extend(rest);
                    return Some(MINI.decode(&tokens));
                }
                Next::Forced(forced) => {
                    assert!(!forced.is_empty() && !state.is_complete());
                    for token in forced {
                        state.accept(token).unwrap();
                        tokens.push(token);
                    }
                    assert!(matches!(state.next().unwrap(), Next::OneOf(_) | Next::Mask(_)), "a choice follows");
                    continue;
                }
                Next::OneOf(list) => list,
                Next::Mask(words) => {
                    assert_eq!(words.len(), MINI.vocab_size().div_ceil(32));
                    (0..MINI.vocab_size() as u32).filter(|t| words[*t as usize / 32] >> (t % 32) & 1 == 1).collect()
                }
            };
            assert!(allowed.len() >= 2 && allowed.is_sorted());
            assert_eq!(allowed.contains(&2), state.is_complete(), "{:?}", MINI.decode(&tokens));
            match choose(&allowed) {
                2 => return Some(MINI.decode(&tokens)),
                token => {
                    state.accept(token).unwrap();
                    tokens.push(token);
                }
            }
        }
        None
    }

    #[test]
    fn every_shape_compiles_and_starts_afresh() {
        let compiler = ConstraintCompiler::new(Arc::clone(&MINI));
        let shapes = [
            OutputShape::Choice(vec!["yes".into(), "no".into()]),
            OutputShape::Number { min: 0.0, max: 10.0, integer: true },
            OutputShape::Number { min: 0.0, max: 1.0, integer: false },
            OutputShape::Json(serde_json::json!({"type": "boolean"})),
            OutputShape::Regex("[a-z]{2}".into()),
        ];
        for shape in shapes {
            let factory = compiler.compile(&shape).unwrap();
            let first = factory.state().next().unwrap();
            assert!(write(&mut *factory.state(), 100, |allowed| allowed[0]).is_some(), "{shape:?}");
            assert_eq!(factory.state().next().unwrap(), first, "{shape:?}");
        }
    }

    #[test]
    fn a_schema_of_texts_alone_is_a_choice_that_needs_no_end_token() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini/tokenizer.json");
        let json = std::fs::read(path).unwrap();
        let endless: Arc<dyn Tokenizer> = Arc::new(HfTokenizer::from_bytes(&json, ChatTemplate::plain(), vec![]).unwrap());
        let texts = ["YES", "YES, IF", "say \"no\""];
        let schema = serde_json::json!({"type": "string", "enum": texts});
        for tokenizer in [&endless, &*MINI] {
            let factory = ConstraintFactory::new(&OutputShape::Json(schema.clone()), tokenizer).unwrap();
            assert!(matches!(factory.compiled, Compiled::Choice(_)));
            for text in texts {
                let mut state = factory.state();
                MINI.encode(&serde_json::json!(text).to_string()).iter().for_each(|token| state.accept(*token).unwrap());
                assert!(state.is_complete() && state.next().unwrap() == Next::Finish(vec![]), "{text}");
            }
            let written = write(&mut *factory.state(), 100, |allowed| allowed[allowed.len() - 1]).unwrap();
            assert!(texts.contains(&serde_json::from_str::<String>(&written).unwrap().as_str()), "{written}");
        }
        for other in [serde_json::json!({"enum": ["a", 1]}), serde_json::json!({"enum": ["ab"], "maxLength": 3})] {
            let error = ConstraintFactory::new(&OutputShape::Json(other), &endless).unwrap_err();
            assert!(error.to_string().contains("end token"), "{error}");
        }
    }

    #[test]
    fn text_is_free_and_always_complete() {
        let mut state = constraint(&OutputShape::Text, &MINI).unwrap();
        assert_eq!(state.next().unwrap(), Next::Free);
        state.accept(7).unwrap();
        assert!(state.is_complete());
    }
}
