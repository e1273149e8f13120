//! JSON under a schema, and text under a regular expression, by llguidance.
//!
//! A grammar is compiled once into a parser; each request gets a copy. The lexer's tables grow as they are used, behind a lock
//! that is held while a mask is computed: there is one set for each lane, shared by the lane's copies. What the grammar forces is written in the tokenizer's own tokens. JSON is written as `{"a": 1, "b": [2, 3]}`,
//! with these spaces and no others: white space without end is the one thing in JSON that a model can write forever.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Value, json};

use super::{Constraint, Next, schema};
use crate::error::{Error, Result};
use crate::request::TokenId;
use crate::tokenizer::Tokenizer;

/// Up to this many allowed tokens are listed, so that the device computes their logits alone.
const LISTED_MAX: usize = 64;

/// States of the lexer, of 1 to 2 KiB each, that one lane of a grammar may have.
const LEXER_STATES_MAX: usize = 50_000;
/// Bytes of a regular expression.
const EXPRESSION_MAX: usize = 1 << 16;
/// Tokens that may follow without a choice. A constant of a schema may be long; more than a context holds is a mistake.
const FORCED_MAX: usize = 1 << 16;

/// Compiles the grammars of one tokenizer.
pub(super) struct GrammarCompiler {
    factory: ParserFactory,
    vocabulary: Vocabulary,
    lanes: usize,
}

/// What a state needs to know of the tokenizer.
#[derive(Clone)]
struct Vocabulary {
    size: usize,
    end_tokens: Arc<[TokenId]>,
}

impl GrammarCompiler {
    /// Sorts the vocabulary into llguidance's trie. Fails if no token ends an answer.
    pub(super) fn new(tokenizer: &Arc<dyn Tokenizer>, lanes: usize) -> Result<Self> {
        let environment: TokEnv = Arc::new(Environment::new(tokenizer)?);
        let capabilities = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment, capabilities, &slices).map_err(|error| invalid("the tokenizer", &error))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        limits.max_lexer_states = LEXER_STATES_MAX;
        let vocabulary = Vocabulary { size: tokenizer.vocab_size(), end_tokens: tokenizer.end_tokens().into() };
        Ok(GrammarCompiler { factory, vocabulary, lanes: lanes.max(1) })
    }

    /// Compiles a JSON schema. Fails if it is not one, or has parts that cannot be enforced.
    pub(super) fn json(&self, schema: &Value) -> Result<GrammarLanes> {
        schema::check(schema)?;
        let mut schema = match schema {
            Value::Object(_) => schema.clone(),
            Value::Bool(true) => json!({}),
            _ => {
                return Err(Error::Invalid(format!("a JSON schema is an object, not {schema}")));
            }
        };
        let options = JsonCompileOptions {
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            whitespace_flexible: false,
            ..JsonCompileOptions::default()
        };
        schema::clamp(&mut schema);
        options.apply_to(&mut schema);
        self.compile(TopLevelGrammar::from_json_schema(schema), "the JSON schema")
    }

    /// Compiles a regular expression that the whole answer matches. Fails if it is not one.
    pub(super) fn regex(&self, expression: &str) -> Result<GrammarLanes> {
        if expression.len() > EXPRESSION_MAX {
            let reason = format!("it has more than {EXPRESSION_MAX} bytes; name the labels one by one as a choice");
            return Err(invalid("the regular expression", &reason));
        }
        // llguidance would drop a last backslash in silence.
        if !trailing_backslashes(expression).is_multiple_of(2) {
            return Err(invalid("the regular expression", &"it ends with a backslash that escapes nothing"));
        }
        if let Err(error) = regex_syntax::parse(expression) {
            return Err(invalid("the regular expression", &with_place(expression, &error)));
        }
        self.compile(TopLevelGrammar::from_regex(without_anchors(expression)), "the regular expression")
    }

    fn compile(&self, grammar: TopLevelGrammar, what: &str) -> Result<GrammarLanes> {
        let parser = self.factory.create_parser(grammar).map_err(|error| invalid(what, &error))?;
        let mut grammar = Grammar {
            matcher: Matcher::new(Ok(parser)),
            vocabulary: self.vocabulary.clone(),
            pending: VecDeque::new(),
            after: None,
            lane: 0,
        };
        // The first decision is the same for every request: made here, it is copied with the state.
        grammar.next()?;
        let lanes = (0..self.lanes).map(|lane| Grammar { lane, matcher: grammar.matcher.deep_clone(), ..grammar.clone() });
        Ok(GrammarLanes { lanes: lanes.collect(), opened: AtomicUsize::new(0) })
    }
}

/// Removes an anchor at either end: the whole answer is matched anyway.
fn without_anchors(expression: &str) -> &str {
    let expression = expression.strip_prefix('^').unwrap_or(expression);
    match expression.strip_suffix('$') {
        Some(rest) if trailing_backslashes(rest).is_multiple_of(2) => rest,
        _ => expression,
    }
}

fn trailing_backslashes(text: &str) -> usize {
    text.len() - text.trim_end_matches('\\').len()
}

/// Returns what is wrong with a regular expression, and where.
fn with_place(expression: &str, error: &regex_syntax::Error) -> String {
    let (what, at) = match error {
        regex_syntax::Error::Parse(error) => (error.kind().to_string(), error.span().start.offset),
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), error.span().start.offset),
        other => return other.to_string(),
    };
    let before = expression.get(..at).map_or(0, |before| before.chars().count());
    format!("{what} at character {}", before + 1)
}

fn invalid(what: &str, error: &dyn fmt::Display) -> Error {
    let error = error.to_string();
    // What llguidance adds for its own developers.
    let reason = error.split("\n<").next().unwrap_or(&error);
    Error::Invalid(format!("{what} cannot be used: {reason}"))
}

/// Our tokenizer as llguidance sees it.
struct Environment {
    tokenizer: Arc<dyn Tokenizer>,
    trie: TokTrie,
}

impl Environment {
    fn new(tokenizer: &Arc<dyn Tokenizer>) -> Result<Self> {
        let size = tokenizer.vocab_size() as u32;
        let end_tokens = tokenizer.end_tokens();
        let Some(first) = end_tokens.first().filter(|_| end_tokens.iter().all(|token| *token < size)) else {
            return Err(Error::Invalid("the model names no end token of its vocabulary".to_owned()));
        };
        let words: Vec<_> = (0..size).map(|token| tokenizer.token_bytes(token).to_vec()).collect();
        let trie = TokTrie::from(&TokRxInfo::new(size, *first), &words).with_eos_tokens(end_tokens);
        Ok(Environment { tokenizer: Arc::clone(tokenizer), trie })
    }
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.tokenizer.encode(text))
    }
}

/// A compiled grammar: a first state for each lane, with lexer tables of the lane's own.
#[derive(Debug)]
pub(super) struct GrammarLanes {
    lanes: Vec<Grammar>,
    opened: AtomicUsize,
}

impl GrammarLanes {
    /// Returns a fresh state; lanes take turns.
    pub(super) fn open(&self) -> Grammar {
        self.lanes[self.opened.fetch_add(1, Ordering::Relaxed) % self.lanes.len()].clone()
    }
}

/// How far one request has come in its grammar.
#[derive(Clone)]
pub(super) struct Grammar {
    /// Ahead of the request by the pending tokens.
    matcher: Matcher,
    vocabulary: Vocabulary,
    /// Forced tokens that the request has not accepted yet.
    pending: VecDeque<TokenId>,
    /// What comes after the pending tokens, once everything that is forced without a mask is pending.
    after: Option<After>,
    lane: usize,
}

#[derive(Clone, Debug)]
enum After {
    End,
    /// What a mask will tell that has not been made.
    Open,
    Choice(Next),
}

impl Grammar {
    /// Lets the matcher run ahead over what is forced, up to the end or to where it takes a mask to tell.
    fn run_ahead(&mut self) -> Result<After> {
        loop {
            if let Some(message) = self.matcher.get_error() {
                return Err(invalid("the grammar", &message));
            }
            if self.matcher.is_stopped() {
                return Ok(After::End);
            }
            let forced = self.matcher.compute_ff_tokens();
            if forced.is_empty() {
                return Ok(After::Open);
            }
            self.force(forced)?;
        }
    }

    /// Makes the masks that it takes to find a choice or the end: one, unless that allows a single token.
    fn look(&mut self) -> Result<After> {
        loop {
            let mut words = self.matcher.compute_mask().map_err(|error| invalid("the grammar", &error))?.as_slice().to_vec();
            words.resize(self.vocabulary.size.div_ceil(32), 0);
            let tokens = first_tokens(&words);
            if tokens.is_empty() {
                return Err(invalid("the grammar", &"nothing may follow, and the answer is not complete"));
            }
            if tokens.iter().all(|token| self.vocabulary.end_tokens.contains(token)) {
                return Ok(After::End);
            }
            match tokens.len() {
                1 => self.force(tokens)?,
                2..=LISTED_MAX => return Ok(After::Choice(Next::OneOf(tokens))),
                _ => return Ok(After::Choice(Next::Mask(words))),
            }
            if let After::End = self.run_ahead()? {
                return Ok(After::End);
            }
        }
    }

    /// Lets the matcher run ahead over these tokens.
    fn force(&mut self, tokens: Vec<TokenId>) -> Result<()> {
        self.matcher.consume_tokens(&tokens).map_err(|error| invalid("the grammar", &error))?;
        self.pending.extend(tokens);
        if self.pending.len() > FORCED_MAX {
            return Err(invalid("the grammar", &format!("it forces more than {FORCED_MAX} tokens")));
        }
        Ok(())
    }

    /// Says what comes next, with `after` behind the pending tokens.
    fn say(&mut self, after: After) -> Option<Next> {
        let pending: Vec<_> = self.pending.iter().copied().collect();
        let next = match &after {
            After::End => Some(Next::Finish(pending)),
            After::Open | After::Choice(_) if !pending.is_empty() => Some(Next::Forced(pending)),
            After::Choice(choice) => Some(choice.clone()),
            After::Open => None,
        };
        self.after = Some(after);
        next
    }
}

/// Returns the tokens of a mask in ascending order, at most one more than are listed.
fn first_tokens(words: &[u32]) -> Vec<TokenId> {
    let bits = |(i, word): (usize, &u32)| {
        let word = *word;
        (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| i as TokenId * 32 + bit)
    };
    words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(bits).take(LISTED_MAX + 1).collect()
}

impl Constraint for Grammar {
    fn next(&mut self) -> Result<Next> {
        let mut after = match self.after.take() {
            Some(after) => after,
            None => self.run_ahead()?,
        };
        if let After::Open = after {
            after = self.look()?;
        }
        Ok(self.say(after).expect("a mask leaves nothing open"))
    }

    fn next_early(&mut self) -> Result<Option<Next>> {
        let after = match self.after.take() {
            Some(after) => after,
            None => self.run_ahead()?,
        };
        Ok(self.say(after))
    }

    fn accept(&mut self, token: TokenId) -> Result<()> {
        match self.pending.front() {
            Some(forced) if *forced == token => {
                self.pending.pop_front();
                Ok(())
            }
            Some(forced) => Err(Error::Invalid(format!("token {token} was accepted where {forced} is forced"))),
            None => {
                self.after = None;
                self.matcher.consume_token(token).map_err(|error| invalid(&format!("token {token}"), &error))
            }
        }
    }

    fn lane(&self) -> usize {
        self.lane
    }

    fn is_complete(&mut self) -> bool {
        // A matcher that stopped well has seen a whole answer.
        let stopped = self.matcher.is_stopped() && self.matcher.stop_reason().is_ok();
        self.pending.is_empty() && (stopped || self.matcher.is_accepting().unwrap_or(false))
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("pending", &self.pending).field("after", &self.after).finish_non_exhaustive()
    }
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").field("vocabulary", &self.vocabulary.size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::constraint::compile::tests::{MINI, write};

    static COMPILER: LazyLock<GrammarCompiler> = LazyLock::new(|| GrammarCompiler::new(&MINI, 1).unwrap());
    static EXTRACTION: LazyLock<Grammar> = LazyLock::new(|| COMPILER.json(&extraction()).unwrap().open());

    /// Whether the text can be written in the tokenizer's own tokens, as a whole.
    fn accepts(grammar: &Grammar, text: &str) -> bool {
        let mut grammar = grammar.clone();
        for token in MINI.encode(text) {
            let _ = grammar.next().unwrap();
            if grammar.accept(token).is_err() {
                return false;
            }
        }
        grammar.is_complete()
    }

    fn extraction() -> Value {
        json!({
            "type": "object", "additionalProperties": false, "required": ["name", "kind", "size", "old", "tags"],
            "properties": {
                "name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["good", "goods", "bad"]},
                "size": {"type": "integer", "minimum": -5, "maximum": 300}, "old": {"type": ["boolean", "null"]},
                "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-c]{1,3}$"}, "maxItems": 2},
            },
        })
    }

    /// Checks an answer by hand against [`extraction`].
    fn is_extraction(text: &str) -> bool {
        let Ok(Value::Object(fields)) = serde_json::from_str(text) else {
            return false;
        };
        fields.keys().eq(["name", "kind", "size", "old", "tags"])
            && fields["name"].as_str().is_some_and(|name| name.chars().count() <= 12)
            && ["good", "goods", "bad"].contains(&fields["kind"].as_str().unwrap_or(""))
            // The grammar knows -0 as a whole number, serde_json as a float.
            && fields["size"].as_f64().is_some_and(|size| size.fract() == 0.0 && (-5.0..=300.0).contains(&size))
            && (fields["old"].is_boolean() || fields["old"].is_null())
            && fields["tags"].as_array().is_some_and(|tags| {
                tags.len() <= 2 && tags.iter().all(|tag| tag.as_str().is_some_and(|tag| (1..=3).contains(&tag.len())))
            })
    }

    #[test]
    fn a_schema_forces_what_it_can() {
        let mut grammar = EXTRACTION.clone();
        let Next::Forced(tokens) = grammar.next().unwrap() else { panic!("the first key is forced") };
        assert!(MINI.decode(&tokens).starts_with("{\"name"));
        let constant = COMPILER.json(&json!({"const": {"a": [1, 2]}})).unwrap().open().next().unwrap();
        assert!(matches!(constant, Next::Finish(tokens) if MINI.decode(&tokens) == "{\"a\": [1, 2]}"));
    }

    #[test]
    fn references_within_a_schema_are_followed() {
        let schema = json!({
            "$defs": {"letter": {"type": "string", "pattern": "^[ab]$"}},
            "type": "object", "properties": {"x": {"$ref": "#/$defs/letter"}}, "required": ["x"], "additionalProperties": false,
        });
        let mut grammar = COMPILER.json(&schema).unwrap().open();
        let text = write(&mut grammar, 50, |allowed| allowed[0]).unwrap();
        assert!([r#"{"x": "a"}"#, r#"{"x": "b"}"#].contains(&text.as_str()), "{text}");
    }

    /// Tokens of an answer in which every choice is made by its place, asked for early or not.
    fn tokens(mut state: Grammar, early: bool, pick: usize) -> Vec<TokenId> {
        let mut tokens = Vec::new();
        loop {
            let next = if early { state.next_early().unwrap() } else { None };
            let chosen = match next.unwrap_or_else(|| state.next().unwrap()) {
                Next::Finish(rest) => return [tokens, rest].concat(),
                Next::Forced(forced) => forced,
                Next::OneOf(list) => vec![list[(pick + tokens.len()) % list.len()]],
                Next::Mask(words) => {
                    let allowed: Vec<_> = (0..32 * words.len()).filter(|t| words[t / 32] >> (t % 32) & 1 == 1).collect();
                    vec![allowed[(31 * pick + tokens.len()) % allowed.len()] as TokenId]
                }
                Next::Free | Next::Hidden { .. } => panic!("a grammar restricts"),
            };
            if chosen == [2] {
                return tokens;
            }
            chosen.iter().for_each(|token| state.accept(*token).unwrap());
            tokens.extend(chosen);
        }
    }

    #[test]
    fn masks_that_are_made_later_lead_to_the_same_tokens() {
        let expression = COMPILER.regex("(ab|abc|x[0-9]{1,3}y?){1,4}").unwrap().open();
        for state in [EXTRACTION.clone(), expression] {
            for pick in 0..30 {
                assert_eq!(tokens(state.clone(), true, pick), tokens(state.clone(), false, pick));
            }
        }
    }

    #[test]
    fn states_of_one_grammar_do_not_disturb_each_other() {
        let (mut one, mut other) = (EXTRACTION.clone(), EXTRACTION.clone());
        let first = other.next().unwrap();
        assert!(write(&mut one, 400, |allowed| allowed[allowed.len() / 3]).is_some());
        assert_eq!(other.next().unwrap(), first);
        assert_eq!(EXTRACTION.clone().next().unwrap(), first);
    }

    #[test]
    fn regular_expressions_match_the_whole_answer() {
        for expression in ["[0-9]{2,3}(/[a-z]+)?", "^[0-9]{2,3}(/[a-z]+)?$"] {
            let grammar = COMPILER.regex(expression).unwrap().open();
            for (text, expected) in
                [("12", true), ("123/abc", true), ("1", false), ("1234", false), ("12/", false), ("x12", false)]
            {
                assert_eq!(accepts(&grammar, text), expected, "{expression} {text}");
            }
        }
        assert!(accepts(&COMPILER.regex(r"a\$").unwrap().open(), "a$"));
        assert!(accepts(&COMPILER.regex("é+|日本").unwrap().open(), "日本"));
    }

    #[test]
    fn an_answer_is_complete_where_it_may_end() {
        let mut grammar = COMPILER.regex("ab?").unwrap().open();
        assert!(!grammar.is_complete());
        grammar.accept(MINI.encode("a")[0]).unwrap();
        assert!(grammar.is_complete());
        assert!(grammar.accept(MINI.encode("z")[0]).is_err());
    }

    #[test]
    fn what_cannot_be_compiled_is_an_error_with_its_reason() {
        for schema in [
            json!(3),
            json!(false),
            json!({"type": "strange"}),
            json!({"$ref": "#/nowhere"}),
            json!({"type": "string", "pattern": "("}),
        ] {
            assert!(matches!(COMPILER.json(&schema), Err(Error::Invalid(_))), "{schema}");
        }
        for expression in ["(", "[z-a]", "a{5,2}", r"(a)\1", "\\"] {
            let Err(Error::Invalid(message)) = COMPILER.regex(expression) else { panic!("{expression}") };
            assert!(message.starts_with("the regular expression cannot be used"), "{message}");
        }
        let Err(Error::Invalid(message)) = COMPILER.regex("é(b") else { panic!("it is not closed") };
        assert_eq!(message, "the regular expression cannot be used: unclosed group at character 2");
        assert!(COMPILER.json(&json!({"type": "string", "minLength": 3, "maxLength": 2})).is_err());
    }

    #[test]
    fn schemas_without_an_answer_are_refused() {
        for schema in [
            json!({"enum": []}),
            json!({"$ref": "#"}),
            json!({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}),
            json!({"type": "array", "items": false, "minItems": 1}),
            json!({"type": "integer", "minimum": 3, "maximum": 2}),
            json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": false}),
        ] {
            assert!(matches!(COMPILER.json(&schema), Err(Error::Invalid(_))), "{schema}");
        }
        assert!(COMPILER.regex(&"a".repeat(EXPRESSION_MAX + 1)).is_err());
        let tree = json!({
            "type": "object", "properties": {"value": {"type": "boolean"}, "next": {"$ref": "#"}},
            "required": ["value"], "additionalProperties": false,
        });
        assert!(COMPILER.json(&tree).is_ok(), "a way back that is optional may be followed for ever, and need not be");
    }

    #[test]
    fn large_schemas_compile() {
        let labels: Vec<String> = (0..3000).map(|i| format!("category {i}")).collect();
        let fields: serde_json::Map<String, Value> =
            (0..300).map(|i| (format!("f{i}"), json!({"enum": labels[i..i + 5]}))).collect();
        let required: Vec<&String> = fields.keys().collect();
        for schema in [
            json!({"enum": labels}),
            json!({"type": "object", "properties": fields, "required": required, "additionalProperties": false}),
        ] {
            let mut grammar = COMPILER.json(&schema).unwrap().open();
            let text = write(&mut grammar, 20_000, |allowed| allowed[allowed.len() / 2]).unwrap();
            assert!(is_valid(&schema, &serde_json::from_str(&text).unwrap()));
        }
    }

    /// Schemas of the kinds that SQL types make: leaves that may be null, structs, lists, enums, ranges, fields left out.
    fn any_schema() -> impl Strategy<Value = Value> {
        let nullable = |name: &str, null: bool| if null { json!([name, "null"]) } else { json!(name) };
        let leaf = prop_oneof![
            any::<bool>().prop_map(move |null| json!({"type": nullable("boolean", null)})),
            any::<bool>().prop_map(move |null| json!({"type": nullable("string", null)})),
            (0..6_u32).prop_map(|max| json!({"type": "string", "maxLength": max})),
            (-300..300_i64, 0..400_i64)
                .prop_map(|(min, more)| json!({"type": "integer", "minimum": min, "maximum": min + more})),
            Just(json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX})),
            Just(json!({"type": "number"})),
            Just(json!({"type": ["number", "null"], "minimum": -2.5})),
            Just(json!({"type": "integer"})),
            Just(json!({"type": "string", "format": "date"})),
            prop::collection::vec("[a-cA-Z é]{1,6}", 1..4).prop_map(|labels| json!({"enum": labels})),
            Just(json!({"enum": ["x", 1, null, [true]]})),
            Just(json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"})),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            let fields = prop::collection::vec(("[a-z_ ]{1,5}", inner.clone(), any::<bool>()), 0..4);
            prop_oneof![
                (inner.clone(), 0..3_u32, 0..3_u32).prop_map(
                    |(items, min, more)| json!({"type": "array", "items": items, "minItems": min, "maxItems": min + more})
                ),
                inner.prop_map(|items| json!({"type": "array", "items": items})),
                fields.prop_map(|fields| {
                    let properties: serde_json::Map<String, Value> =
                        fields.iter().map(|(name, schema, _)| (name.clone(), schema.clone())).collect();
                    let mut required: Vec<&String> = fields.iter().filter(|field| field.2).map(|field| &field.0).collect();
                    required.dedup();
                    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
                }),
            ]
        })
    }

    /// Validates what [`any_schema`] can say, without the grammar.
    fn is_valid(schema: &Value, value: &Value) -> bool {
        if let Some(values) = schema["enum"].as_array() {
            return values.contains(value);
        }
        let (name, null) = match &schema["type"] {
            Value::Array(names) => (names[0].as_str().unwrap(), true),
            name => (name.as_str().unwrap(), false),
        };
        match (name, value) {
            (_, Value::Null) => null,
            ("boolean", Value::Bool(_)) => true,
            ("number", Value::Number(number)) => {
                schema["minimum"].as_f64().is_none_or(|min| number.as_f64().unwrap() >= min)
            }
            ("string", Value::String(text)) => {
                let length = schema["maxLength"].as_u64().is_none_or(|max| text.chars().count() as u64 <= max);
                let date = schema["format"].is_null() || text.len() == 10 && text.split('-').count() == 3;
                let digits = text.get(3..).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()));
                length && date && (schema["pattern"].is_null() || text.as_bytes()[2] == b'-' && digits)
            }
            ("integer", Value::Number(number)) => {
                let min = schema["minimum"].as_f64().unwrap_or(f64::MIN);
                let max = schema["maximum"].as_f64().unwrap_or(f64::MAX);
                number.as_f64().is_some_and(|number| number.fract() == 0.0 && (min..=max).contains(&number))
            }
            ("array", Value::Array(items)) => {
                let count = items.len() as u64;
                schema["minItems"].as_u64().is_none_or(|min| min <= count)
                    && schema["maxItems"].as_u64().is_none_or(|max| count <= max)
                    && items.iter().all(|item| is_valid(&schema["items"], item))
            }
            ("object", Value::Object(fields)) => {
                let required = schema["required"].as_array().unwrap();
                fields
                    .iter()
                    .all(|(name, value)| schema["properties"].get(name).is_some_and(|schema| is_valid(schema, value)))
                    && required.iter().all(|name| fields.contains_key(name.as_str().unwrap()))
            }
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Whatever a model prefers, its answer is valid as soon as it ends; one that wants to go on for ever is cut.
        #[test]
        fn answers_under_any_schema_are_valid(schema in any_schema(), picks in prop::collection::vec(any::<prop::sample::Index>(), 300)) {
            let mut picks = picks.iter();
            let mut grammar = COMPILER.json(&schema).unwrap().open();
            let text = write(&mut grammar, 300, |allowed| match picks.next() {
                Some(pick) => allowed[pick.index(allowed.len())],
                None => allowed[0],
            });
            if let Some(text) = text {
                let value: Value = serde_json::from_str(&text).unwrap();
                prop_assert!(is_valid(&schema, &value), "{} under {}", text, schema);
                prop_assert_eq!(text.trim(), &text, "nothing follows the end");
            }
        }

        /// A model that ends wherever it may comes to an end.
        #[test]
        fn an_answer_ends_when_nothing_more_is_wanted(schema in any_schema()) {
            let mut grammar = COMPILER.json(&schema).unwrap().open();
            // The end, or what closes a string, a list or an object, or ends a number within one.
            let closers = [MINI.end_tokens()[0]].into_iter().chain(["\"", "]", "}", ","].map(|sign| MINI.encode(sign)[0]));
            let closers: Vec<TokenId> = closers.collect();
            let text = write(&mut grammar, 2000, |allowed| {
                let closer = closers.iter().find(|closer| allowed.contains(closer));
                closer.copied().unwrap_or(allowed[allowed.len() / 2])
            });
            prop_assert!(text.is_some_and(|text| is_valid(&schema, &serde_json::from_str(&text).unwrap())));
        }

        #[test]
        fn answers_under_an_expression_match_it(
            expression in prop::sample::select(vec!["[0-9]{1,3}(\\.[0-9]{2})?", "(yes|no|not [a-z]{2,5})!?", "[A-Z][a-z]*( [A-Z][a-z]*){0,2}"]),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 60),
        ) {
            let mut picks = picks.iter();
            let grammar = COMPILER.regex(expression).unwrap().open();
            let mut state = grammar.clone();
            if let Some(text) = write(&mut state, 60, |allowed| picks.next().map_or(allowed[0], |pick| allowed[pick.index(allowed.len())])) {
                let mut fresh = grammar.clone();
                fresh.matcher.reset().unwrap();
                let tokens = MINI.encode(&text);
                prop_assert_eq!(fresh.matcher.validate_tokens(&tokens).unwrap(), tokens.len());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn random_answers_are_valid(picks in prop::collection::vec(any::<prop::sample::Index>(), 400)) {
            let mut picks = picks.iter();
            let mut grammar = EXTRACTION.clone();
            let text = write(&mut grammar, 400, |allowed| allowed[picks.next().unwrap().index(allowed.len())]).unwrap();
            prop_assert!(is_extraction(&text), "{}", text);
        }

        #[test]
        fn valid_answers_can_be_written(name in "[a-zA-Z é\"]{0,12}", kind in 0..3_usize, size in -5..=300, old: Option<bool>) {
            let kinds = ["good", "goods", "bad"];
            let text = format!(
                "{{\"name\": {}, \"kind\": \"{}\", \"size\": {size}, \"old\": {}, \"tags\": [\"a\", \"bc\"]}}",
                json!(name), kinds[kind], json!(old),
            );
            prop_assert!(is_extraction(&text));
            // Asking on the way would force tokens that differ from the text's own; only the grammar itself is asked here.
            let mut grammar = EXTRACTION.clone();
            grammar.matcher.reset().unwrap();
            prop_assert_eq!(grammar.matcher.validate_tokens(&MINI.encode(&text)).unwrap(), MINI.encode(&text).len());
        }
    }
}
