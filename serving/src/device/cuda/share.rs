//! Which part of a model a GPU holds: all of it, or one of several equal shares.
//!
//! A model is split as in Megatron-LM (Shoeybi et al. 2019): by heads, and by columns of the feed-forward layer. The matrices that
//! make heads and columns are cut by rows, those that read them (the projection after attention and the one down) by columns, and
//! what the latter give is summed over the shares. The embedding and the LM head are held whole by every GPU: the logits of a row
//! would take longer to gather in single precision than its share of the product saves.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// One of `of` equal shares, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) rank: usize,
    pub(super) of: usize,
}

impl Share {
    /// The whole model.
    pub(super) const WHOLE: Share = Share { rank: 0, of: 1 };

    /// Returns the part of `0..len`, which must be a multiple of the number of shares, that belongs to this one.
    pub(super) fn part(self, len: usize) -> Range<usize> {
        let part = len / self.of;
        self.rank * part..(self.rank + 1) * part
    }

    /// Returns the sizes that a GPU with this share computes with. Fails with a sentence if the model has no such shares.
    pub(super) fn config(self, whole: &ModelConfig) -> Result<ModelConfig> {
        let of = self.of;
        let refuse = |what: String| {
            Err(Error::Invalid(format!(
                "a model with {what} cannot be split over {of} GPUs; name one (cuda), or all (cuda:all)"
            )))
        };
        let ModelConfig { heads, kv_heads, intermediate_size: inner, .. } = *whole;
        if kv_heads < of {
            return refuse(format!("{kv_heads} key-value head{}", if kv_heads == 1 { "" } else { "s" }));
        }
        if !kv_heads.is_multiple_of(of) {
            return refuse(format!("{kv_heads} key-value heads"));
        }
        // Kernels read eight values at a time.
        if of > 1 && !inner.is_multiple_of(8 * of) {
            return refuse(format!("a feed-forward size of {inner}"));
        }
        Ok(ModelConfig { heads: heads / of, kv_heads: kv_heads / of, intermediate_size: inner / of, ..whole.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::RandomShape;

    #[test]
    fn shares_are_equal_and_make_the_whole() {
        let whole = RandomShape::Llama3B8.config();
        for of in [1, 2, 4, 8] {
            let shares = (0..of).map(|rank| Share { rank, of });
            let heads: usize = shares.clone().map(|share| share.config(&whole).unwrap().heads).sum();
            assert_eq!(heads, whole.heads);
            let columns: Vec<usize> = shares.flat_map(|share| share.part(whole.intermediate_size)).collect();
            assert_eq!(columns, (0..whole.intermediate_size).collect::<Vec<_>>());
        }
        assert_eq!(Share::WHOLE.config(&whole).unwrap(), whole);
    }

    #[test]
    fn a_model_that_has_no_such_shares_is_refused_with_the_reason() {
        let check = |config: &ModelConfig, of: usize, expected: &str| {
            let error = Share { rank: 0, of }.config(config).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let llama = RandomShape::Llama3B8.config();
        check(&llama, 16, "a model with 8 key-value heads cannot be split over 16 GPUs");
        check(&llama, 3, "8 key-value heads");
        check(&RandomShape::Mini.config(), 4, "2 key-value heads");
        check(&ModelConfig { intermediate_size: 1000, ..llama }, 2, "a feed-forward size of 1000");
    }
}
