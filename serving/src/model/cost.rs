//! What a token costs by arithmetic: the floor under the time of any pass.

use super::config::ModelConfig;

/// Floating-point operations and bytes of one token of a decoder; a multiply-add is two operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenCost {
    /// Operations of all layers' projections.
    pub layer_flops: f64,
    /// Operations of attention in all layers, for each key that the token sees.
    pub attention_flops: f64,
    /// Operations of the LM head, where a token is chosen.
    pub head_flops: f64,
    /// Bytes of its keys and values in all layers, two bytes a number.
    pub kv_bytes: f64,
}

impl ModelConfig {
    /// Returns the number of weights.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// Returns what one token costs.
    pub fn token_cost(&self) -> TokenCost {
        let (hidden, inner) = (self.hidden_size as f64, self.intermediate_size as f64);
        let (queries, keys) = ((self.heads * self.head_dim) as f64, (self.kv_heads * self.head_dim) as f64);
        let layers = self.layers as f64;
        TokenCost {
            layer_flops: 2.0 * layers * hidden * (2.0 * queries + 2.0 * keys + 3.0 * inner),
            attention_flops: 4.0 * layers * queries,
            head_flops: 2.0 * hidden * self.vocab_size as f64,
            kv_bytes: 4.0 * layers * keys,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::load::RandomShape;

    #[test]
    fn costs_of_known_shapes() {
        let cost = RandomShape::Llama3B8.config().token_cost();
        assert_eq!((cost.layer_flops / 1e7).round(), 1396.0);
        assert_eq!((cost.head_flops / 1e7).round(), 105.0);
        assert_eq!((cost.attention_flops, cost.kv_bytes), (524_288.0, 131_072.0));
        let cost = RandomShape::Llama32B1.config().token_cost();
        assert_eq!((cost.layer_flops / 1e6).round(), 1946.0);
        assert_eq!((cost.attention_flops, cost.kv_bytes), (131_072.0, 32_768.0));
        assert_eq!(RandomShape::Llama32B1.config().parameters(), 1_235_814_400);
    }
}
