//! The small files that sentence-transformers lays beside a model: how the states of its tokens become a vector.
//!
//! | file | what is read |
//! |---|---|
//! | modules.json | the steps: a transformer, a pooling, perhaps a normalisation; anything else changes the vector and is refused |
//! | 1_Pooling/config.json | which states are pooled, and how |
//! | sentence_bert_config.json | the longest input, and whether text is put in lower case |

use std::path::Path;

use serde_json::Value;

use super::folder::read_json;
use super::storage::weights_error;
use crate::error::Result;
use crate::model::Pooling;

/// What the files say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SentenceConfig {
    /// How states are pooled; `None` if nothing says so.
    pub(super) pooling: Option<Pooling>,
    /// The longest input in tokens, where it is limited.
    pub(super) max_tokens: Option<usize>,
    /// Whether text is put in lower case before the tokenizer sees it.
    pub(super) lower_case: bool,
    /// The texts of the files, which belong to the model's identity.
    pub(super) texts: Vec<String>,
}

/// Returns whether a folder was laid out by sentence-transformers, and so holds a model that makes vectors.
pub(super) fn is_sentence_folder(folder: &Path) -> bool {
    folder.join("modules.json").exists() || folder.join("1_Pooling").is_dir()
}

impl SentenceConfig {
    /// Reads the files that are there. Fails if one asks for what would change the vector and is not supported.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut config = SentenceConfig::default();
        let mut pooling_folder = "1_Pooling".to_owned();
        let modules = folder.join("modules.json");
        if let Some((text, json)) = read_json(&modules)? {
            pooling_folder = check_modules(&json).map_err(|reason| weights_error(&modules, reason))?.unwrap_or_default();
            config.texts.push(text);
        }
        let pooling = folder.join(&pooling_folder).join("config.json");
        if !pooling_folder.is_empty()
            && let Some((text, json)) = read_json(&pooling)?
        {
            config.pooling = Some(parse_pooling(&json).map_err(|reason| weights_error(&pooling, reason))?);
            config.texts.push(text);
        }
        if let Some((text, json)) = read_json(&folder.join("sentence_bert_config.json"))? {
            config.max_tokens = json["max_seq_length"].as_u64().and_then(|tokens| usize::try_from(tokens).ok());
            config.lower_case = json["do_lower_case"].as_bool().unwrap_or(false);
            config.texts.push(text);
        }
        Ok(config)
    }
}

/// Checks the steps of modules.json and returns the folder of the pooling, if one is a pooling.
fn check_modules(json: &Value) -> Result<Option<String>, String> {
    let Value::Array(modules) = json else {
        return Err("it is no list of modules; fetch the file again".to_owned());
    };
    let mut pooling = None;
    for module in modules {
        let kind = module["type"].as_str().unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" | "Normalize" => {}
            "Pooling" => pooling = Some(inside(module["path"].as_str().unwrap_or("1_Pooling"))?),
            _ => {
                return Err(format!(
                    "the module {kind:?} is not supported; supported are Transformer, Pooling and Normalize"
                ));
            }
        }
    }
    Ok(pooling)
}

/// Fails for a path that leads out of the model's folder.
fn inside(path: &str) -> Result<String, String> {
    let plain = Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if plain { Ok(path.to_owned()) } else { Err(format!("the path {path:?} leads out of the folder")) }
}

/// Reads 1_Pooling/config.json: flags of which one is set, or a mode by name.
fn parse_pooling(json: &Value) -> Result<Pooling, String> {
    let modes: Vec<&str> = match json["pooling_mode"].as_str() {
        Some(mode) => vec![mode],
        None => json
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| value.as_bool() == Some(true))
            .filter_map(|(name, _)| name.strip_prefix("pooling_mode_"))
            .collect(),
    };
    match modes.as_slice() {
        ["mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["cls_token" | "cls"] => Ok(Pooling::First),
        ["lasttoken"] => Ok(Pooling::Last),
        [] => Err("no pooling mode is set; supported are mean, cls and lasttoken".to_owned()),
        modes => Err(format!("the pooling is {}; supported are mean, cls or lasttoken, one of them", modes.join(" and "))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_both_forms_of_pooling() {
        let flags = |name: &str| json!({"word_embedding_dimension": 384, "pooling_mode_max_tokens": false, name: true});
        assert_eq!(parse_pooling(&flags("pooling_mode_mean_tokens")), Ok(Pooling::Mean));
        assert_eq!(parse_pooling(&flags("pooling_mode_cls_token")), Ok(Pooling::First));
        assert_eq!(parse_pooling(&flags("pooling_mode_lasttoken")), Ok(Pooling::Last));
        assert_eq!(parse_pooling(&json!({"pooling_mode": "cls"})), Ok(Pooling::First));
        for other in [flags("pooling_mode_weightedmean_tokens"), json!({}), json!([]), json!({"pooling_mode": "max"})] {
            assert!(parse_pooling(&other).is_err(), "{other}");
        }
        let two = json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true});
        assert!(parse_pooling(&two).unwrap_err().contains("mean_tokens and cls_token"));
    }

    #[test]
    fn refuses_modules_that_change_the_vector() {
        let module = |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
        let modules = json!([module("Transformer", ""), module("Pooling", "2_Pool"), module("Normalize", "3")]);
        assert_eq!(check_modules(&modules), Ok(Some("2_Pool".to_owned())));
        assert!(check_modules(&json!([module("Dense", "2_Dense")])).unwrap_err().contains("Dense"));
        assert!(check_modules(&json!([module("Pooling", "../../etc")])).unwrap_err().contains("out of the folder"));
        assert!(check_modules(&json!({})).is_err());
    }
}
