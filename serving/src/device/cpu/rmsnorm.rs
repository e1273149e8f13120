//! RMSNorm: `out[c] = x[c] / sqrt(mean(x^2) + eps) * weight[c]` for each token (Zhang and Sennrich 2019).

use pulp::{Arch, Simd, WithSimd};

use super::rows::{fold, for_row_blocks};

/// Normalises each row of `x` into `out`. Shapes: `x` and `out` `[tokens, channels]`, `weight` `[channels]`.
pub(super) fn rmsnorm(arch: Arch, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let channels = weight.len();
    for_row_blocks(out, channels, |first, block| {
        let x = &x[first * channels..][..block.len()];
        arch.dispatch(Normalise { x, weight, eps, out: block });
    });
}

/// Normalises in place the leading heads of each row of `x`, of which `weight` has the weights, one head after the other. Rows
/// are `stride` apart.
pub(super) fn rmsnorm_heads(arch: Arch, x: &mut [f32], stride: usize, weight: &[f32], head_dim: usize, eps: f32) {
    for_row_blocks(x, stride, |_, x| arch.dispatch(NormaliseHeads { x, stride, weight, head_dim, eps }));
}

/// Some rows, on one thread.
///
/// A struct rather than a closure: a closure need not be inlined into the function that has the vector instructions, and its
/// fused multiply-adds would then be library calls.
struct Normalise<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl WithSimd for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Normalise { x, weight, eps, out } = self;
        let channels = weight.len();
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            normalise(x, weight, eps, out);
        }
    }
}

/// Heads of some rows, on one thread.
struct NormaliseHeads<'a> {
    x: &'a mut [f32],
    stride: usize,
    weight: &'a [f32],
    head_dim: usize,
    eps: f32,
}

impl WithSimd for NormaliseHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let NormaliseHeads { x, stride, weight, head_dim, eps } = self;
        for row in x.chunks_exact_mut(stride) {
            for (head, weight) in row.chunks_exact_mut(head_dim).zip(weight.chunks_exact(head_dim)) {
                let scale = (sum_of_squares(head) / head_dim as f32 + eps).sqrt().recip();
                for (x, &weight) in head.iter_mut().zip(weight) {
                    *x = *x * scale * weight;
                }
            }
        }
    }
}

#[inline(always)]
fn normalise(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = (sum_of_squares(x) / x.len() as f32 + eps).sqrt().recip();
    for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    fold(x, |sum, x| x.mul_add(x, sum))
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Random, close};
    use super::*;

    #[test]
    fn heads_are_normalised_one_by_one_and_the_rest_of_the_row_is_left() {
        let mut random = Random::new(2);
        let (head_dim, stride) = (6, 4 * 6 + 1);
        let (before, weight) = (random.floats(3 * stride), random.floats(3 * head_dim));
        let mut after = before.clone();
        rmsnorm_heads(Arch::new(), &mut after, stride, &weight, head_dim, 1e-5);
        for (before, after) in before.chunks(stride).zip(after.chunks(stride)) {
            let mut expected = before.to_vec();
            let heads = before[..3 * head_dim].chunks(head_dim).zip(weight.chunks(head_dim));
            for ((x, weight), out) in heads.zip(expected.chunks_mut(head_dim)) {
                rmsnorm(Arch::new(), x, weight, 1e-5, out);
            }
            assert_eq!(after, expected);
        }
    }

    #[test]
    fn matches_double_precision_over_odd_sizes() {
        let mut random = Random::new(1);
        for (tokens, channels) in [(1, 1), (3, 5), (2, 16), (7, 33), (300, 512)] {
            let (x, weight) = (random.floats(tokens * channels), random.floats(channels));
            let mut out = vec![0.0; x.len()];
            rmsnorm(Arch::new(), &x, &weight, 1e-5, &mut out);
            for (x, out) in x.chunks(channels).zip(out.chunks(channels)) {
                let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / channels as f64;
                for c in 0..channels {
                    let expected = f64::from(x[c]) / (mean + 1e-5).sqrt() * f64::from(weight[c]);
                    close(out[c], expected, 1e-6);
                }
            }
        }
    }
}
