//! The functions that a model answers: names, parameters and options, as statements are checked against.

use crate::named_prompts::PROMPT_VERSION;
use crate::options::COMMON;

/// A function that a model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Function {
    /// Free text, or a value of a given type.
    Complete,
    /// Whether a statement holds.
    Filter,
    /// One label of a list, or several.
    Classify,
    /// A struct of what a text says.
    Extract,
    /// A number within a range.
    Score,
    /// Positive, negative, neutral or mixed.
    Sentiment,
    /// A shorter text.
    Summarize,
    /// The text in another language.
    Translate,
    /// The text without personal data.
    Redact,
    /// The text without mistakes.
    FixGrammar,
    /// A vector.
    Embed,
    /// One answer for all values of a group.
    Agg,
    /// One summary of all texts of a group.
    SummarizeAgg,
    /// The best values of a group, in order.
    TopK,
}

/// What may stand between the parentheses of a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signature {
    /// The name in SQL.
    pub(crate) name: &'static str,
    /// Other names of the same function.
    pub(crate) aliases: &'static [&'static str],
    /// Positional parameters, in order.
    pub(crate) params: &'static [Param],
    /// Options of this function alone.
    pub(crate) options: &'static [&'static str],
    /// Whether the options that every call of a model accepts are accepted.
    pub(crate) common_options: bool,
}

/// A positional parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Param {
    /// The name by which it may be given.
    pub(crate) name: &'static str,
    /// How often it is given.
    pub(crate) arity: Arity,
}

/// How often a parameter is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arity {
    One,
    Optional,
    Any,
}

const fn one(name: &'static str) -> Param {
    Param { name, arity: Arity::One }
}

const fn optional(name: &'static str) -> Param {
    Param { name, arity: Arity::Optional }
}

/// Parameters of the functions that take an instruction.
const INSTRUCTION: &[Param] = &[one("instruction"), Param { name: "input", arity: Arity::Any }];

impl Function {
    /// Every scalar function, in the order of the documentation.
    pub const ALL: [Function; 11] = [
        Function::Complete,
        Function::Filter,
        Function::Classify,
        Function::Extract,
        Function::Score,
        Function::Sentiment,
        Function::Summarize,
        Function::Translate,
        Function::Redact,
        Function::FixGrammar,
        Function::Embed,
    ];

    /// Every aggregate, in the order of the documentation.
    pub const AGGREGATES: [Function; 3] = [Function::Agg, Function::SummarizeAgg, Function::TopK];

    /// Returns the name in SQL.
    pub fn name(self) -> &'static str {
        self.signature().name
    }

    /// Returns whether the function answers for a group of rows.
    pub fn is_aggregate(self) -> bool {
        Function::AGGREGATES.contains(&self)
    }

    /// Returns whether the first argument is an instruction; otherwise it is the content and the task is fixed.
    pub fn takes_instruction(self) -> bool {
        matches!(self, Function::Complete | Function::Filter | Function::Score)
    }

    pub(crate) fn signature(self) -> Signature {
        let of = |name, aliases, params, options| Signature { name, aliases, params, options, common_options: true };
        match self {
            Function::Complete => of(
                "ai_complete",
                &["ai_gen", "ai_generate"],
                INSTRUCTION,
                &["mode", "null_input", "passages", "return_type", "response_schema", "regex"],
            ),
            Function::Filter => of("ai_filter", &["ai_if"], INSTRUCTION, &["mode", "null_input", "passages", "output_mode"]),
            Function::Classify => of("ai_classify", &[], const { &[one("input"), one("labels")] }, &["output_mode"]),
            Function::Extract => of("ai_extract", &[], const { &[one("input"), one("fields")] }, &[]),
            Function::Score => {
                of("ai_score", &[], INSTRUCTION, &["mode", "null_input", "passages", "min", "max", "integer"])
            }
            Function::Sentiment => of("ai_sentiment", &[], const { &[one("text"), optional("aspects")] }, &[]),
            Function::Summarize => of("ai_summarize", &[], const { &[one("text")] }, &["max_words"]),
            Function::Translate => of("ai_translate", &[], const { &[one("text"), one("target")] }, &["source_language"]),
            Function::Redact => of("ai_redact", &["ai_mask"], const { &[one("text"), optional("categories")] }, &[]),
            Function::FixGrammar => of("ai_fix_grammar", &[], const { &[one("text")] }, &[]),
            Function::Embed => Signature { common_options: false, ..of("ai_embed", &[], const { &[one("input")] }, EMBED) },
            Function::Agg => of(
                "ai_agg",
                &[],
                const { &[one("input"), one("instruction")] },
                &["overflow", "return_type", "response_schema"],
            ),
            Function::SummarizeAgg => of("ai_summarize_agg", &[], const { &[one("text")] }, &["overflow", "max_words"]),
            Function::TopK => of("ai_top_k", &[], const { &[one("input"), one("instruction"), one("k")] }, &["method"]),
        }
    }
}

impl Signature {
    /// Returns whether `name` is a name of this function; case is the caller's affair.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }

    /// Returns the options that may be given.
    pub(crate) fn option_names(&self) -> impl Iterator<Item = &'static str> + use<> {
        let common = if self.common_options { COMMON } else { &[] };
        self.options.iter().chain(common).copied()
    }

    /// Returns everything that may be given by name.
    pub(crate) fn argument_names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.params.iter().map(|param| param.name).chain(self.option_names())
    }
}

/// `ai_complete` under its name in the papers: fields mode even where the template names columns.
pub(crate) const LLM: &str = "llm";

/// Carries a template and its inputs to a call.
pub(crate) const PROMPT: Signature =
    Signature { name: "prompt", aliases: &[], params: &[], options: &[], common_options: false };

/// Counts tokens; the one function here that needs no model.
pub(crate) const COUNT_TOKENS: Signature = Signature {
    name: "ai_count_tokens",
    aliases: &[],
    params: &[one("text"), optional("model")],
    options: &[],
    common_options: false,
};

/// Compares vectors; texts among its arguments are replaced by calls of `ai_embed`.
pub(crate) const SIMILARITY: Signature = Signature {
    name: "ai_similarity",
    aliases: &[],
    params: &[one("a"), one("b")],
    options: &["model"],
    common_options: false,
};

/// The options of `ai_embed`: those of every call that mean something where no text is written.
const EMBED: &[&str] = &["model", "dimensions", "on_error", "on_overflow", "reorder_window", "dedup"];

/// Returns the function that a lower-case name in SQL stands for.
pub(crate) fn find(name: &str) -> Option<Function> {
    if name == LLM {
        return Some(Function::Complete);
    }
    let mut all = Function::ALL.into_iter().chain(Function::AGGREGATES);
    all.find(|function| function.signature().is_called(name))
}

/// Returns what may be given by name in a call beside its inputs: options, and parameters that need not be given. Nothing if no model
/// answers a function of this name; case is the caller's affair.
pub fn option_names(name: &str) -> Vec<&'static str> {
    let known = find(name).map(Function::signature);
    let known = known.or_else(|| [COUNT_TOKENS, SIMILARITY].into_iter().find(|signature| signature.is_called(name)));
    let Some(signature) = known else { return vec![] };
    let optional = signature.params.iter().filter(|param| param.arity == Arity::Optional);
    optional.map(|param| param.name).chain(signature.option_names()).collect()
}

/// Returns the options that calls of every prompt with a name accept.
pub fn prompt_option_names() -> impl Iterator<Item = &'static str> {
    COMMON.iter().copied().chain([PROMPT_VERSION])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_function() {
        for function in Function::ALL.into_iter().chain(Function::AGGREGATES) {
            assert_eq!(find(function.name()), Some(function));
        }
        assert_eq!(find("ai_mask"), Some(Function::Redact));
        assert_eq!(find("ai_if"), Some(Function::Filter));
        assert_eq!(find("llm"), Some(Function::Complete));
        assert_eq!(find("upper"), None);
    }

    #[test]
    fn options_are_listed_by_the_name_of_the_function() {
        assert!(option_names("ai_if").starts_with(&["mode", "null_input", "passages", "output_mode", "model"]));
        assert!(option_names("ai_sentiment").starts_with(&["aspects", "model", "temperature"]));
        assert_eq!(option_names("ai_similarity"), ["model"]);
        assert_eq!(option_names("ai_count_tokens"), ["model"]);
        assert!(option_names("upper").is_empty());
        assert!(prompt_option_names().any(|option| option == "prompt_version"));
    }

    #[test]
    fn parameters_and_options_do_not_clash() {
        for function in Function::ALL.into_iter().chain(Function::AGGREGATES) {
            let mut names: Vec<_> = function.signature().argument_names().collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count, "{}", function.name());
        }
    }
}
