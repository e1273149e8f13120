//! RMSNorm: `out[c] = x[c] / sqrt(mean(x^2) + eps) * weight[c]` for each token (Zhang and Sennrich 2019).

use pulp::{Arch, Simd, WithSimd};

use super::rows::for_row_blocks;

/// The sum of squares is kept in this many partial sums on every machine, so that its bits are the same everywhere.
const LANES: usize = 16;

/// Normalises each row of `x` into `out`. Shapes: `x` and `out` `[tokens, channels]`, `weight` `[channels]`.
pub(super) fn rmsnorm(arch: Arch, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let channels = weight.len();
    for_row_blocks(out, channels, |first, block| {
        let x = &x[first * channels..][..block.len()];
        arch.dispatch(Normalise { x, weight, eps, out: block });
    });
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

#[inline(always)]
fn normalise(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = (sum_of_squares(x) / x.len() as f32 + eps).sqrt().recip();
    for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum = x.mul_add(x, *sum);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum = x.mul_add(x, *sum);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Random, close};
    use super::*;

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
