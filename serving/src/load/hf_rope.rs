//! Rotary parameters in the config.json of a Hugging Face folder.
//!
//! They stand in `rope_parameters` (transformers 5) or in `rope_scaling` and beside it (transformers 4), and mean what they
//! mean to transformers.

use serde_json::Value;

use super::hf_config::{number, optional_size, size};
use crate::model::RopeScaling;

/// What a configuration says about the rotary embedding.
#[derive(Debug)]
pub(super) struct RopeConfig {
    /// Base of the frequencies, where it is named.
    pub(super) theta: Option<f32>,
    /// The part of each head that turns.
    pub(super) partial_factor: f64,
    /// Rescaling of the frequencies.
    pub(super) scaling: Option<RopeScaling>,
}

/// Reads the rotary parameters of a config.json.
pub(super) fn parse(json: &Value) -> Result<RopeConfig, String> {
    let rope = if json["rope_parameters"].is_object() { &json["rope_parameters"] } else { &json["rope_scaling"] };
    let rope = of_all_layers(rope)?;
    let theta = number(rope, "rope_theta")?.or(number(json, "rope_theta")?);
    let partial = |json: &Value| json["partial_rotary_factor"].as_f64();
    let partial_factor = partial(rope).or(partial(json)).unwrap_or(1.0);
    if !(partial_factor > 0.0 && partial_factor <= 1.0) {
        return Err(format!("partial_rotary_factor is {partial_factor}; it must be above 0 and at most 1"));
    }
    Ok(RopeConfig { theta, partial_factor, scaling: scaling(json, rope)? })
}

/// Returns the parameters that hold for all layers. They may be listed for each kind of layer; then they must be equal.
fn of_all_layers(rope: &Value) -> Result<&Value, String> {
    let kinds = ["full_attention", "sliding_attention"].map(|kind| &rope[kind]);
    let mut listed = kinds.into_iter().filter(|parameters| parameters.is_object());
    let Some(first) = listed.next() else { return Ok(rope) };
    match listed.all(|parameters| parameters == first) {
        true => Ok(first),
        false => Err("rope_parameters differ between kinds of layers, which is not supported".to_owned()),
    }
}

fn scaling(json: &Value, rope: &Value) -> Result<Option<RopeScaling>, String> {
    let named = rope["rope_type"].as_str().or(rope["type"].as_str()).unwrap_or("default");
    // Early Phi-3 files call LongRoPE by these names; lists of factors tell it from YaRN proper.
    let kind = if named == "su" || (named == "yarn" && rope["long_factor"].is_array()) { "longrope" } else { named };
    let required = |key: &str| number(rope, key)?.ok_or(format!("the rotary scaling {named} lacks {key}"));
    match kind {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: required("factor")? })),
        "llama3" => Ok(Some(RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_max_position: original_max_position(json, rope)?,
        })),
        "yarn" => yarn(json, rope).map(Some),
        "longrope" => longrope(json, rope).map(Some),
        "dynamic" => {
            Err("the rotary scaling is dynamic: its frequencies change with the length of a prompt, so that prompts \
                          could not share prefixes; remove rope_scaling from config.json to use the model within its \
                          original context"
                .to_owned())
        }
        _ => Err(format!("the rotary scaling is {named}; supported are default, linear, llama3, yarn and longrope")),
    }
}

fn yarn(json: &Value, rope: &Value) -> Result<RopeScaling, String> {
    let original_max_position = original_max_position(json, rope)?;
    let factor = grown_by(json, rope, original_max_position)?;
    // A zero counts as not given, as for transformers.
    let given = |key: &str| Ok::<_, String>(number(rope, key)?.filter(|value| *value != 0.0));
    let attention_factor = match (number(rope, "attention_factor")?, given("mscale")?, given("mscale_all_dim")?) {
        (Some(given), _, _) => given,
        (None, Some(mscale), Some(all)) => {
            RopeScaling::yarn_attention(factor, mscale) / RopeScaling::yarn_attention(factor, all)
        }
        (None, _, _) => RopeScaling::yarn_attention(factor, 1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position,
        beta_fast: given("beta_fast")?.unwrap_or(32.0),
        beta_slow: given("beta_slow")?.unwrap_or(1.0),
        truncate: rope["truncate"].as_bool().unwrap_or(true),
        attention_factor,
    })
}

fn longrope(json: &Value, rope: &Value) -> Result<RopeScaling, String> {
    let original_max_position = original_max_position(json, rope)?;
    let factor = grown_by(json, rope, original_max_position)?;
    let attention_factor = number(rope, "attention_factor")?;
    Ok(RopeScaling::LongRope {
        short_factors: numbers(rope, "short_factor")?,
        long_factors: numbers(rope, "long_factor")?,
        original_max_position,
        attention_factor: attention_factor.unwrap_or_else(|| RopeScaling::longrope_attention(factor, original_max_position)),
    })
}

/// Returns the context before rescaling. The one beside the parameters goes first, as Phi-3 has it.
fn original_max_position(json: &Value, rope: &Value) -> Result<usize, String> {
    let key = "original_max_position_embeddings";
    match optional_size(json, key)?.or(optional_size(rope, key)?) {
        Some(positions) => Ok(positions),
        None => size(json, "max_position_embeddings"),
    }
}

/// Returns `factor`, or how much longer the context is than the original one.
fn grown_by(json: &Value, rope: &Value, original: usize) -> Result<f32, String> {
    match number(rope, "factor")? {
        Some(factor) => Ok(factor),
        None => Ok(size(json, "max_position_embeddings")? as f32 / original as f32),
    }
}

fn numbers(json: &Value, key: &str) -> Result<Vec<f32>, String> {
    let list = json[key].as_array().ok_or(format!("the rotary scaling lacks the list {key}"))?;
    list.iter()
        .map(|value| value.as_f64().map(|value| value as f32))
        .collect::<Option<_>>()
        .ok_or(format!("{key} holds something that is no number"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(config: Value, expected: &RopeScaling) {
        assert_eq!(parse(&config).unwrap().scaling.as_ref(), Some(expected));
    }

    fn yarn_of(factor: f32, original_max_position: usize, attention_factor: f32) -> RopeScaling {
        let (beta_fast, beta_slow, truncate) = (32.0, 1.0, true);
        RopeScaling::Yarn { factor, original_max_position, beta_fast, beta_slow, truncate, attention_factor }
    }

    #[test]
    fn both_spellings_say_the_same() {
        let old = json!({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}});
        let new = json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}});
        let both = json!({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}}});
        for config in [old, new, both] {
            check(config.clone(), &RopeScaling::Linear { factor: 2.0 });
            assert_eq!(parse(&config).unwrap().theta, Some(7.0));
        }
    }

    #[test]
    fn yarn_finds_its_attention_factor() {
        let config = |more: Value| {
            let mut rope = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
            rope.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"rope_parameters": rope, "max_position_embeddings": 64})
        };
        let log = 4.0_f32.ln();
        check(config(json!({})), &yarn_of(4.0, 64, 0.1 * log + 1.0));
        check(config(json!({"attention_factor": 0.7})), &yarn_of(4.0, 64, 0.7));
        let both = config(json!({"mscale": 0.5, "mscale_all_dim": 2.0}));
        check(both, &yarn_of(4.0, 64, (0.05 * log + 1.0) / (0.2 * log + 1.0)));
        check(config(json!({"mscale": 0.5, "mscale_all_dim": 0})), &yarn_of(4.0, 64, 0.1 * log + 1.0));
    }

    #[test]
    fn longrope_goes_by_all_its_names_and_takes_the_outer_original_context() {
        for name in ["longrope", "su", "yarn"] {
            let config = json!({"max_position_embeddings": 128, "original_max_position_embeddings": 32, "rope_scaling": {
                "type": name, "short_factor": [1, 1.5], "long_factor": [2.0, 3.0], "original_max_position_embeddings": 7}});
            let expected = RopeScaling::LongRope {
                short_factors: vec![1.0, 1.5],
                long_factors: vec![2.0, 3.0],
                original_max_position: 32,
                attention_factor: (1.0 + 4.0_f32.ln() / 32.0_f32.ln()).sqrt(),
            };
            check(config, &expected);
        }
    }

    #[test]
    fn refuses_what_it_cannot_compute_and_names_the_rest() {
        let error = |rope: Value| parse(&json!({"rope_scaling": rope})).unwrap_err();
        assert!(error(json!({"type": "dynamic", "factor": 2.0})).contains("dynamic"));
        assert!(error(json!({"rope_type": "proportional"})).contains("proportional; supported are default, linear, llama3"));
        assert!(error(json!({"type": "linear"})).contains("linear lacks factor"));
        assert!(error(json!({"type": "yarn", "factor": 4.0})).contains("max_position_embeddings is missing"));
        assert!(error(json!({"type": "su", "original_max_position_embeddings": 4, "factor": 2})).contains("short_factor"));
        assert!(error(json!({"partial_rotary_factor": 1.5})).contains("partial_rotary_factor is 1.5"));
        let differ = json!({"full_attention": {"rope_theta": 1.0}, "sliding_attention": {"rope_theta": 2.0}});
        assert!(error(differ).contains("differ"));
    }
}
