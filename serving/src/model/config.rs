//! The shape of a Llama-family decoder.

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
    /// Width of one head; even.
    pub head_dim: usize,
    /// Added under the root in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Rescaling of rotary frequencies, where the model has one.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// The longest prompt and answer together, in tokens.
    pub max_context: usize,
    /// Tokens that end an answer.
    pub end_tokens: Vec<TokenId>,
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
}

impl ModelConfig {
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
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("the head size {} is odd", self.head_dim));
        }
        if !(self.rms_norm_eps.is_finite()
            && self.rms_norm_eps >= 0.0
            && self.rope_theta.is_finite()
            && self.rope_theta > 0.0)
        {
            return Err(format!("rms_norm_eps is {} and rope_theta {}", self.rms_norm_eps, self.rope_theta));
        }
        let factors = match &self.rope_scaling {
            None => vec![],
            Some(RopeScaling::Linear { factor }) => vec![*factor],
            Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position }) => {
                vec![*factor, *low_freq_factor, high_freq_factor - low_freq_factor, *original_max_position as f32]
            }
        };
        match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
            Some(_) => Err(format!("the rotary scaling {:?} is impossible", self.rope_scaling)),
            None => Ok(()),
        }
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
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: None,
            qkv_bias: true,
            tie_word_embeddings: false,
            max_context: 64,
            end_tokens: vec![2],
        }
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
    }

    #[test]
    fn says_what_is_impossible() {
        assert_eq!(config().check(), Ok(()));
        let wrong: [fn(&mut ModelConfig); 6] = [
            |c| c.layers = usize::MAX,
            |c| c.hidden_size = 0,
            |c| c.kv_heads = 3,
            |c| c.head_dim = 5,
            |c| c.rope_theta = f32::NAN,
            |c| c.rope_scaling = Some(RopeScaling::Linear { factor: 0.0 }),
        ];
        for change in wrong {
            let mut config = config();
            change(&mut config);
            assert!(config.check().is_err(), "{config:?}");
        }
    }
}
