//! The shape of a BERT-family encoder, and how it makes one vector of a text.

/// Sizes and constants of a BERT-family encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the residual stream, and of the vector.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub heads: usize,
    /// Rows of the position embedding.
    pub positions: usize,
    /// The row of the position embedding that the first token takes: 0, or what RoBERTa leaves for padding.
    pub first_position: usize,
    /// Rows of the token type embedding, of which the first is used.
    pub token_types: usize,
    /// Added under the root in LayerNorm.
    pub layer_norm_eps: f32,
    /// Between the two matrices of the feed-forward layer.
    pub activation: Activation,
    /// How the states of all tokens become one vector.
    pub pooling: Pooling,
    /// The longest input, in tokens, those included that the tokenizer adds.
    pub max_tokens: usize,
    /// What the names of all tensors begin with, such as `bert.`; mostly nothing.
    pub tensor_prefix: String,
}

/// The function between the two matrices of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU by the error function.
    Gelu,
    /// GELU by the hyperbolic tangent.
    GeluTanh,
    /// The positive part.
    Relu,
}

/// How the states of all tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The state of the first token, `[CLS]` in BERT.
    First,
    /// The state of the last token.
    Last,
}

impl EncoderConfig {
    /// Returns the names and shapes of all tensors of the model. Projections are `[outputs, inputs]`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let mut tensors = Vec::new();
        let mut add =
            |name: String, shape: &[usize]| tensors.push((format!("{}{name}", self.tensor_prefix), shape.to_vec()));
        add("embeddings.word_embeddings.weight".to_owned(), &[self.vocab_size, hidden]);
        add("embeddings.position_embeddings.weight".to_owned(), &[self.positions, hidden]);
        add("embeddings.token_type_embeddings.weight".to_owned(), &[self.token_types, hidden]);
        let layer_norms = ["attention.output.LayerNorm", "output.LayerNorm"];
        let projections = [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ];
        for part in ["weight", "bias"] {
            add(format!("embeddings.LayerNorm.{part}"), &[hidden]);
        }
        for layer in 0..self.layers {
            for name in layer_norms {
                add(format!("encoder.layer.{layer}.{name}.weight"), &[hidden]);
                add(format!("encoder.layer.{layer}.{name}.bias"), &[hidden]);
            }
            for (name, outputs, inputs) in projections {
                add(format!("encoder.layer.{layer}.{name}.weight"), &[outputs, inputs]);
                add(format!("encoder.layer.{layer}.{name}.bias"), &[outputs]);
            }
        }
        tensors
    }

    /// Says what is impossible about the sizes and constants. A configuration comes from a file and may hold anything.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocabulary size", self.vocab_size, 1 << 24),
            ("hidden size", self.hidden_size, 1 << 16),
            ("feed-forward size", self.intermediate_size, 1 << 20),
            ("number of layers", self.layers, 1 << 12),
            ("number of heads", self.heads, 1 << 12),
            ("number of positions", self.positions, 1 << 24),
            ("number of token types", self.token_types, 1 << 16),
            ("longest input", self.max_tokens, 1 << 24),
        ];
        for (name, size, limit) in sizes {
            if size == 0 || size > limit {
                return Err(format!("the {name} is {size}; it must lie between 1 and {limit}"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.heads) {
            return Err(format!("a hidden size of {} cannot be split among {} heads", self.hidden_size, self.heads));
        }
        let positions = self.positions.saturating_sub(self.first_position);
        if self.max_tokens > positions {
            return Err(format!("the longest input is {} tokens, and there are {positions} positions", self.max_tokens));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0) {
            return Err(format!("layer_norm_eps is {}", self.layer_norm_eps));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> EncoderConfig {
        EncoderConfig {
            vocab_size: 100,
            hidden_size: 8,
            intermediate_size: 16,
            layers: 2,
            heads: 2,
            positions: 34,
            first_position: 2,
            token_types: 1,
            layer_norm_eps: 1e-12,
            activation: Activation::Gelu,
            pooling: Pooling::Mean,
            max_tokens: 32,
            tensor_prefix: "roberta.".to_owned(),
        }
    }

    #[test]
    fn lists_every_tensor_with_its_shape() {
        let tensors = config().tensors();
        assert_eq!(tensors.len(), 5 + 2 * 16);
        let shape = |name: &str| tensors.iter().find(|(found, _)| found == name).map(|(_, shape)| shape.clone());
        assert_eq!(shape("roberta.embeddings.position_embeddings.weight"), Some(vec![34, 8]));
        assert_eq!(shape("roberta.encoder.layer.1.intermediate.dense.weight"), Some(vec![16, 8]));
        assert_eq!(shape("roberta.encoder.layer.1.output.dense.bias"), Some(vec![8]));
    }

    #[test]
    fn says_what_is_impossible() {
        assert_eq!(config().check(), Ok(()));
        let wrong: [fn(&mut EncoderConfig); 5] = [
            |c| c.layers = usize::MAX,
            |c| c.heads = 3,
            |c| c.max_tokens = 33,
            |c| c.first_position = usize::MAX,
            |c| c.layer_norm_eps = f32::NAN,
        ];
        for change in wrong {
            let mut config = config();
            change(&mut config);
            assert!(config.check().is_err(), "{config:?}");
        }
    }
}
