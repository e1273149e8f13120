//! SwiGLU's elementwise part: `out[c] = silu(gate[c]) * up[c]`, `silu(x) = x / (1 + exp(-x))` (Shazeer 2020).

use pulp::{Arch, Simd, WithSimd};

use super::exp::exp;
use super::rows::for_row_blocks;

/// Combines gate and up projections. Shapes: `gate_up` [tokens, 2 * channels], the gate first; `out` [tokens, channels].
pub(super) fn swiglu(arch: Arch, gate_up: &[f32], channels: usize, out: &mut [f32]) {
    for_row_blocks(out, channels, |first, block| {
        let gate_up = &gate_up[2 * first * channels..][..2 * block.len()];
        arch.dispatch(Combine { gate_up, channels, out: block });
    });
}

/// Some rows, on one thread.
struct Combine<'a> {
    gate_up: &'a [f32],
    channels: usize,
    out: &'a mut [f32],
}

impl WithSimd for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Combine { gate_up, channels, out } = self;
        for (gate_up, out) in gate_up.chunks_exact(2 * channels).zip(out.chunks_exact_mut(channels)) {
            let (gate, up) = gate_up.split_at(channels);
            for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + exp(-gate)) * up;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Random, close};
    use super::*;

    #[test]
    fn matches_double_precision_over_odd_sizes() {
        let mut random = Random::new(2);
        for (tokens, channels) in [(1, 1), (5, 7), (2, 16), (200, 129)] {
            let gate_up: Vec<f32> = random.floats(tokens * channels * 2).iter().map(|x| x * 10.0).collect();
            let mut out = vec![0.0; tokens * channels];
            swiglu(Arch::new(), &gate_up, channels, &mut out);
            for (i, &out) in out.iter().enumerate() {
                let (token, c) = (i / channels, i % channels);
                let gate = f64::from(gate_up[token * 2 * channels + c]);
                let up = f64::from(gate_up[token * 2 * channels + channels + c]);
                close(out, gate / (1.0 + (-gate).exp()) * up, 1e-6);
            }
        }
    }
}
