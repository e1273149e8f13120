//! LayerNorm: `x[c] = (x[c] - mean) / sqrt(variance + eps) * weight[c] + bias[c]` for each token (Ba, Kiros and Hinton 2016).

use pulp::{Arch, Simd, WithSimd};

use super::super::rows::{fold, for_row_blocks};

/// The two vectors of a LayerNorm, and what is added under its root.
#[derive(Debug)]
pub(super) struct LayerNorm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) eps: f32,
}

impl LayerNorm {
    /// Normalises each row of `x` in place. Shape of `x`: `[tokens, channels]`.
    pub(super) fn apply(&self, arch: Arch, x: &mut [f32]) {
        for_row_blocks(x, self.weight.len(), |_, block| arch.dispatch(Normalise { norm: self, x: block }));
    }
}

/// Some rows, on one thread.
struct Normalise<'a> {
    norm: &'a LayerNorm,
    x: &'a mut [f32],
}

impl WithSimd for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let LayerNorm { weight, bias, eps } = self.norm;
        for x in self.x.chunks_exact_mut(weight.len()) {
            let count = x.len() as f32;
            let mean = fold(x, |sum, x| sum + x) / count;
            // In two passes: the difference of two large sums would lose what matters.
            let variance = fold(x, |sum, x| sum + (x - mean) * (x - mean)) / count;
            let scale = (variance + eps).sqrt().recip();
            for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
                *x = ((*x - mean) * scale).mul_add(*weight, *bias);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::reference::{Random, close};
    use super::super::reference;
    use super::*;

    #[test]
    fn matches_double_precision_over_odd_sizes() {
        let mut random = Random::new(1);
        for (tokens, channels) in [(1, 1), (3, 5), (2, 16), (7, 33), (300, 384)] {
            let mut x: Vec<f32> = random.floats(tokens * channels).iter().map(|x| x + 3.0).collect();
            let norm = LayerNorm { weight: random.floats(channels), bias: random.floats(channels), eps: 1e-5 };
            let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
            let expected: Vec<f64> = x
                .chunks(channels)
                .flat_map(|row| reference::layer_norm(&wide(row), &wide(&norm.weight), &wide(&norm.bias), 1e-5))
                .collect();
            norm.apply(Arch::new(), &mut x);
            x.iter().zip(expected).for_each(|(&x, expected)| close(x, expected, 1e-4));
        }
    }
}
