//! The rewrites of plans that a session may switch off: `SET refrain.disabled_rewrites = 'defer_llm_past_topk, …'`.
//!
//! A rewrite changes what a query costs, never what it answers; `classify_join`, which may change answers, needs
//! `optimization_mode = 'minimize_cost'` as well. Their names are listed here, beside the settings, so that a
//! misspelt name is refused when it is set; the rewrites themselves are rules of the optimizer.

use datafusion::common::{Result, plan_err};
use datafusion::config::ConfigOptions;

use crate::options::suggest;
use crate::settings::Settings;

/// Name and meaning of every rewrite, in the order in which they are shown.
pub const REWRITES: &[(&str, &str)] = &[
    ("pull_llm_filter_above_aggregate", "an LLM predicate over group keys is asked of the groups"),
    ("order_llm_filters", "the LLM predicates of an AND are asked in the order that costs least"),
    ("defer_llm_past_topk", "ORDER BY … LIMIT over plain columns comes first"),
    ("sort_below_llm_filter", "WHERE ai … ORDER BY … LIMIT over plain columns sorts first and asks until the limit is met"),
    ("stop_llm_filter_at_limit", "an LLM filter below a LIMIT asks until the limit is met"),
    ("ask_above_join", "a predicate over one side of an inner join is asked of the rows that the join leaves"),
    (
        "ask_columns_above_join",
        "answers that one side of an inner join brings along are asked for the rows that the join leaves",
    ),
    ("stop_join_at_match", "EXISTS, IN and their like ask about a row until it has one match"),
    ("classify_join", "with weaker answers allowed, a join with few values on one side asks once for each row of the other"),
];

/// Returns whether the session leaves a rewrite switched on.
pub fn rewrite_enabled(config: &ConfigOptions, name: &str) -> bool {
    debug_assert!(REWRITES.iter().any(|(known, _)| *known == name), "{name} is not listed in REWRITES");
    let settings = config.extensions.get::<Settings>();
    settings.is_none_or(|settings| !settings.disabled_rewrites.iter().any(|disabled| disabled == name))
}

/// Reads a list of names, separated by commas; `none` is the empty list, `all` names every rewrite.
pub(crate) fn parse(subject: &str, text: &str) -> Result<Vec<String>> {
    let known = || REWRITES.iter().map(|(name, _)| *name);
    match text.trim().to_lowercase().as_str() {
        "none" => return Ok(vec![]),
        "all" => return Ok(known().map(str::to_owned).collect()),
        _ => {}
    }
    let read = |name: &str| {
        let name = name.trim().to_lowercase();
        match known().any(|known| known == name) {
            true => Ok(name),
            false => plan_err!("{subject}: there is no rewrite '{name}'{}", suggest(&name, known())),
        }
    };
    text.split(',').map(read).collect()
}

/// Returns the text that [`parse`] reads as `names`.
pub(crate) fn shown(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}
