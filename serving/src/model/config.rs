//! The shape of a Llama-family decoder.

use std::num::NonZeroUsize;

use crate::request::TokenId;

/// Sizes and constants of a Llama-family decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Leading elements of a head that the rotary embedding turns; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Added under the root in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Rescaling of rotary frequencies, where the model has one.
    pub rope_scaling: Option<RopeScaling>,
    /// How each layer attends; empty where all layers see the whole context and turn queries and keys.
    pub layer_attention: Vec<LayerAttention>,
    /// Whether each head of queries and keys is normalised before it is turned.
    pub qk_norm: bool,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the projection after attention has a bias.
    pub output_bias: bool,
    /// Whether the gate, up and down projections have a bias.
    pub mlp_bias: bool,
    /// Whether the LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// The longest prompt and answer together, in tokens. Models with [`RopeScaling::LongRope`] choose their factors by it.
    pub max_context: usize,
    /// Tokens that end an answer.
    pub end_tokens: Vec<TokenId>,
}

/// How one layer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerAttention {
    /// Positions that a token sees, its own included; `None` sees all that came before.
    pub window: Option<NonZeroUsize>,
    /// Whether the rotary embedding is applied.
    pub rotary: bool,
}

impl LayerAttention {
    /// Sees the whole context, with rotary embedding.
    pub const FULL: LayerAttention = LayerAttention { window: None, rotary: true };
}

/// Rescaling of rotary frequencies for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f32,
        /// Wavelengths above `original_max_position / low_freq_factor` are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths below `original_max_position / high_freq_factor` are high frequencies.
        high_freq_factor: f32,
        /// The context length before rescaling.
        original_max_position: usize,
    },
    /// YaRN (Peng et al. 2023): as Llama 3.1, with a ramp over the index of the frequency, and attention sharpened.
    Yarn {
        /// The divisor of low frequencies.
        factor: f32,
        /// The context length before rescaling.
        original_max_position: usize,
        /// Pairs that turn at least so often within the original context keep their frequency.
        beta_fast: f32,
        /// Pairs that turn at most so often have their frequency divided.
        beta_slow: f32,
        /// Whether the ramp begins and ends at whole indices.
        truncate: bool,
        /// Multiplies cosines and sines; see [`RopeScaling::yarn_attention`].
        attention_factor: f32,
    },
    /// LongRoPE (Ding et al. 2024), also called "su": a divisor for each frequency.
    ///
    /// The long factors are used for every prompt if `max_context` is beyond the original context, and the short ones if not:
    /// a choice for each prompt would make keys of equal prefixes differ.
    LongRope {
        /// Divisors within the original context; `rotary_dim / 2` of them.
        short_factors: Vec<f32>,
        /// Divisors beyond it; `rotary_dim / 2` of them.
        long_factors: Vec<f32>,
        /// The context length before rescaling.
        original_max_position: usize,
        /// Multiplies cosines and sines; see [`RopeScaling::longrope_attention`].
        attention_factor: f32,
    },
}

impl RopeScaling {
    /// Returns the attention factor that YaRN recommends: `0.1 * mscale * ln(factor) + 1`.
    pub fn yarn_attention(factor: f32, mscale: f32) -> f32 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    /// Returns the attention factor that LongRoPE recommends for a context that grows by `factor`.
    pub fn longrope_attention(factor: f32, original_max_position: usize) -> f32 {
        if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_max_position as f32).ln()).sqrt() }
    }

    /// Says what is impossible about the constants.
    fn check(&self, rotary_dim: usize) -> Result<(), String> {
        let positive = match self {
            RopeScaling::Linear { factor } => vec![*factor],
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                vec![*factor, *low_freq_factor, high_freq_factor - low_freq_factor, *original_max_position as f32]
            }
            RopeScaling::Yarn { factor, original_max_position, beta_fast, beta_slow, truncate: _, attention_factor } => {
                vec![*factor, *original_max_position as f32, *beta_slow, *beta_fast, *attention_factor]
            }
            RopeScaling::LongRope { short_factors, long_factors, original_max_position, attention_factor } => {
                for factors in [short_factors, long_factors] {
                    if factors.len() != rotary_dim / 2 {
                        let (found, expected) = (factors.len(), rotary_dim / 2);
                        return Err(format!("the rotary scaling has {found} factors for {expected} frequencies"));
                    }
                }
                let constants = [*original_max_position as f32, *attention_factor];
                short_factors.iter().chain(long_factors).copied().chain(constants).collect()
            }
        };
        match positive.iter().find(|constant| !(constant.is_finite() && **constant > 0.0)) {
            Some(constant) => {
                Err(format!("the rotary scaling {self:?} is impossible: {constant} must be a positive number"))
            }
            None => Ok(()),
        }
    }
}

impl ModelConfig {
    /// Returns how `layer` attends.
    pub fn attention_of(&self, layer: usize) -> LayerAttention {
        self.layer_attention.get(layer).copied().unwrap_or(LayerAttention::FULL)
    }

    /// Returns the names and shapes of all tensors of the model. Projections are `[outputs, inputs]`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, hidden]));
        }
        for layer in 0..self.layers {
            let mut add =
                |part: &str, shape: &[usize]| tensors.push((format!("model.layers.{layer}.{part}"), shape.to_vec()));
            add("input_layernorm.weight", &[hidden]);
            add("post_attention_layernorm.weight", &[hidden]);
            add("self_attn.q_proj.weight", &[query, hidden]);
            add("self_attn.k_proj.weight", &[key, hidden]);
            add("self_attn.v_proj.weight", &[key, hidden]);
            add("self_attn.o_proj.weight", &[hidden, query]);
            add("mlp.gate_proj.weight", &[inner, hidden]);
            add("mlp.up_proj.weight", &[inner, hidden]);
            add("mlp.down_proj.weight", &[hidden, inner]);
            if self.qkv_bias {
                add("self_attn.q_proj.bias", &[query]);
                add("self_attn.k_proj.bias", &[key]);
                add("self_attn.v_proj.bias", &[key]);
            }
            if self.output_bias {
                add("self_attn.o_proj.bias", &[hidden]);
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
            }
            if self.mlp_bias {
                add("mlp.gate_proj.bias", &[inner]);
                add("mlp.up_proj.bias", &[inner]);
                add("mlp.down_proj.bias", &[hidden]);
            }
        }
        tensors
    }

    /// Says what is impossible about the sizes and constants. A configuration comes from a file and may hold anything.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocabulary size", self.vocab_size, 1 << 24),
            ("hidden size", self.hidden_size, 1 << 20),
            ("feed-forward size", self.intermediate_size, 1 << 22),
            ("number of layers", self.layers, 1 << 12),
            ("number of heads", self.heads, 1 << 12),
            ("number of key-value heads", self.kv_heads, 1 << 12),
            ("head size", self.head_dim, 1 << 12),
            ("context length", self.max_context, 1 << 28),
        ];
        for (name, size, limit) in sizes {
            if size == 0 || size > limit {
                return Err(format!("the {name} is {size}; it must lie between 1 and {limit}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} heads cannot share {} key-value heads evenly", self.heads, self.kv_heads));
        }
        if self.rotary_dim == 0 || !self.rotary_dim.is_multiple_of(2) || self.rotary_dim > self.head_dim {
            let (rotary, head) = (self.rotary_dim, self.head_dim);
            return Err(format!("{rotary} of {head} elements of a head are rotated; it must be an even number of them"));
        }
        if !self.layer_attention.is_empty() && self.layer_attention.len() != self.layers {
            let (described, layers) = (self.layer_attention.len(), self.layers);
            return Err(format!("the attention of {described} layers is described, the model has {layers}"));
        }
        if !(self.rms_norm_eps.is_finite()
            && self.rms_norm_eps >= 0.0
            && self.rope_theta.is_finite()
            && self.rope_theta > 0.0)
        {
            return Err(format!("rms_norm_eps is {} and rope_theta {}", self.rms_norm_eps, self.rope_theta));
        }
        self.rope_scaling.as_ref().map_or(Ok(()), |scaling| scaling.check(self.rotary_dim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        ModelConfig {
            vocab_size: 100,
            hidden_size: 8,
            intermediate_size: 16,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            rotary_dim: 6,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: None,
            layer_attention: vec![],
            qk_norm: false,
            qkv_bias: true,
            output_bias: false,
            mlp_bias: false,
            tie_word_embeddings: false,
            max_context: 64,
            end_tokens: vec![2],
        }
    }

    fn longrope(factors: usize) -> RopeScaling {
        let (short_factors, long_factors) = (vec![1.0; factors], vec![2.0; factors]);
        RopeScaling::LongRope { short_factors, long_factors, original_max_position: 32, attention_factor: 1.1 }
    }

    #[test]
    fn lists_every_tensor_with_its_shape() {
        let tensors = config().tensors();
        assert_eq!(tensors.len(), 3 + 2 * 12);
        let shape = |name: &str| tensors.iter().find(|(found, _)| found == name).map(|(_, shape)| shape.clone());
        assert_eq!(shape("lm_head.weight"), Some(vec![100, 8]));
        assert_eq!(shape("model.layers.1.self_attn.k_proj.weight"), Some(vec![12, 8]));
        assert_eq!(shape("model.layers.0.self_attn.q_proj.bias"), Some(vec![24]));
        assert_eq!(shape("model.layers.2.input_layernorm.weight"), None);

        let mut more = config();
        (more.qk_norm, more.output_bias, more.mlp_bias) = (true, true, true);
        let tensors = more.tensors();
        assert_eq!(tensors.len(), 3 + 2 * 18);
        assert!(tensors.contains(&("model.layers.1.self_attn.q_norm.weight".to_owned(), vec![6])));
        assert!(tensors.contains(&("model.layers.1.mlp.up_proj.bias".to_owned(), vec![16])));
    }

    #[test]
    fn says_what_is_impossible() {
        assert_eq!(config().check(), Ok(()));
        assert_eq!(ModelConfig { rope_scaling: Some(longrope(3)), ..config() }.check(), Ok(()));
        let wrong: [fn(&mut ModelConfig); 9] = [
            |c| c.layers = usize::MAX,
            |c| c.hidden_size = 0,
            |c| c.kv_heads = 3,
            |c| c.rotary_dim = 5,
            |c| c.rotary_dim = 8,
            |c| c.layer_attention = vec![LayerAttention::FULL],
            |c| c.rope_theta = f32::NAN,
            |c| c.rope_scaling = Some(RopeScaling::Linear { factor: 0.0 }),
            |c| c.rope_scaling = Some(longrope(2)),
        ];
        for change in wrong {
            let mut config = config();
            change(&mut config);
            assert!(config.check().is_err(), "{config:?}");
        }
    }
}
