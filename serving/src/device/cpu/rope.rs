//! Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face: element `i` of a head turns with
//! element `i + head_dim / 2` by the angle `position * frequency[i]`.

use std::f64::consts::PI;

use pulp::{Arch, Simd, WithSimd};

use super::rows::for_row_blocks;
use crate::model::{ModelConfig, RopeScaling};

/// The rotary frequencies of a model.
#[derive(Debug)]
pub(super) struct Rope {
    frequencies: Vec<f32>,
}

impl Rope {
    /// Computes the `head_dim / 2` frequencies of `config`, rescaled as it demands.
    pub(super) fn new(config: &ModelConfig) -> Self {
        let frequency = |i: usize| f64::from(config.rope_theta).powf(-2.0 * i as f64 / config.head_dim as f64);
        let scaled = |f: f64| config.rope_scaling.as_ref().map_or(f, |scaling| rescale(f, scaling));
        Rope { frequencies: (0..config.head_dim / 2).map(|i| scaled(frequency(i)) as f32).collect() }
    }

    /// Width of a row of `angles`: cosines, then sines.
    pub(super) fn width(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Computes cosines and sines for each position. Shape of `out`: [positions, width].
    pub(super) fn angles(&self, positions: &[u32], out: &mut [f32]) {
        let half = self.frequencies.len();
        for_row_blocks(out, self.width(), |first, block| {
            for (row, &position) in block.chunks_exact_mut(2 * half).zip(&positions[first..]) {
                let (cos, sin) = row.split_at_mut(half);
                for ((cos, sin), &frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
                    // The product is rounded to single precision, as the frameworks that trained the model do.
                    let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                    (*cos, *sin) = (c as f32, s as f32);
                }
            }
        });
    }

    /// Turns the first `heads` heads of each token in place. Shapes: `x` [tokens, stride], `angles` [tokens, width].
    pub(super) fn apply(&self, arch: Arch, angles: &[f32], heads: usize, stride: usize, x: &mut [f32]) {
        let half = self.frequencies.len();
        for_row_blocks(x, stride, |first, block| {
            let angles = &angles[first * 2 * half..];
            arch.dispatch(Turn { angles, head_dim: 2 * half, heads, stride, x: block });
        });
    }
}

/// Some rows, on one thread.
struct Turn<'a> {
    angles: &'a [f32],
    head_dim: usize,
    heads: usize,
    stride: usize,
    x: &'a mut [f32],
}

impl WithSimd for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Turn { angles, head_dim, heads, stride, x } = self;
        for (row, angles) in x.chunks_exact_mut(stride).zip(angles.chunks_exact(head_dim)) {
            for head in row[..heads * head_dim].chunks_exact_mut(head_dim) {
                turn(head, angles);
            }
        }
    }
}

#[inline(always)]
fn turn(head: &mut [f32], angles: &[f32]) {
    let half = head.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let (left, right) = head.split_at_mut(half);
    for (((left, right), &cos), &sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
        let (l, r) = (*left, *right);
        *left = l * cos - r * sin;
        *right = r * cos + l * sin;
    }
}

fn rescale(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::Linear { factor } => frequency / f64::from(factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            // How often the original context turns this pair round.
            let turns = original_max_position as f64 * frequency / (2.0 * PI);
            let kept = if high > low { ((turns - low) / (high - low)).clamp(0.0, 1.0) } else { f64::from(turns >= low) };
            frequency * (kept + (1.0 - kept) / f64::from(factor))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Random, close, tiny_config};
    use super::*;

    #[test]
    fn turns_pairs_by_their_angle_and_leaves_the_rest() {
        let config = tiny_config();
        let rope = Rope::new(&config);
        let (heads, dim, stride) = (3, config.head_dim, 4 * config.head_dim + 1);
        let positions = [0, 1, 77, 2047];
        let before = Random::new(3).floats(positions.len() * stride);
        let (mut x, mut angles) = (before.clone(), vec![0.0; positions.len() * rope.width()]);
        rope.angles(&positions, &mut angles);
        rope.apply(Arch::new(), &angles, heads, stride, &mut x);
        for (token, &position) in positions.iter().enumerate() {
            for i in 0..stride {
                let at = |i: usize| f64::from(before[token * stride + i]);
                let (head, d) = (i / dim, i % dim);
                let pair = d % (dim / 2);
                let angle = f64::from(position) * f64::from(config.rope_theta).powf(-2.0 * pair as f64 / dim as f64);
                let (left, right) = (at(i - d + pair.min(d)), at((head * dim + pair + dim / 2).min(stride - 1)));
                let expected = match (head < heads, d < dim / 2) {
                    (false, _) => at(i),
                    (true, true) => left * angle.cos() - right * angle.sin(),
                    (true, false) => right * angle.cos() + at(head * dim + pair) * angle.sin(),
                };
                close(x[token * stride + i], expected, 3e-4);
            }
        }
    }

    #[test]
    fn linear_scaling_divides_all_frequencies() {
        let mut config = tiny_config();
        let plain = Rope::new(&config).frequencies;
        config.rope_scaling = Some(RopeScaling::Linear { factor: 4.0 });
        let scaled = Rope::new(&config).frequencies;
        assert!(plain.iter().zip(&scaled).all(|(p, s)| (p / 4.0 - s).abs() < 1e-7));
    }

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position: 8192 };
        let of_wavelength = |wavelength: f64| rescale(2.0 * PI / wavelength, &scaling) * wavelength / (2.0 * PI);
        assert!((of_wavelength(100.0) - 1.0).abs() < 1e-12);
        assert!((of_wavelength(10_000.0) - 0.125).abs() < 1e-12);
        // Half way up the ramp: 2.5 turns in the original context.
        assert!((of_wavelength(8192.0 / 2.5) - 0.5625).abs() < 1e-12);
    }
}
