//! Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face: element `i` of a head turns with
//! element `i + rotary_dim / 2` by the angle `position * frequency[i]`. Elements from `rotary_dim` on stay as they are.

use std::f64::consts::PI;

use pulp::{Arch, Simd, WithSimd};

use super::rows::for_row_blocks;
use crate::model::{ModelConfig, RopeScaling};

/// The rotary frequencies of a model.
#[derive(Debug)]
pub(in crate::device) struct Rope {
    frequencies: Vec<f32>,
    /// Multiplies cosines and sines, so that scores grow by its square.
    attention_factor: f32,
    head_dim: usize,
}

impl Rope {
    /// Computes the `rotary_dim / 2` frequencies of `config`, rescaled as it demands.
    pub(in crate::device) fn new(config: &ModelConfig) -> Self {
        let frequencies = (0..config.rotary_dim / 2).map(|i| frequency(config, i) as f32).collect();
        let attention_factor = match config.rope_scaling {
            Some(RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. }) => {
                attention_factor
            }
            _ => 1.0,
        };
        Rope { frequencies, attention_factor, head_dim: config.head_dim }
    }

    /// Width of a row of `angles`: cosines, then sines.
    pub(in crate::device) fn width(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Computes cosines and sines for each position. Shape of `out`: [positions, width].
    pub(in crate::device) fn angles(&self, positions: &[u32], out: &mut [f32]) {
        let half = self.frequencies.len();
        for_row_blocks(out, self.width(), |first, block| {
            for (row, &position) in block.chunks_exact_mut(2 * half).zip(&positions[first..]) {
                let (cos, sin) = row.split_at_mut(half);
                for ((cos, sin), &frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
                    // The product is rounded to single precision, as the frameworks that trained the model do.
                    let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                    (*cos, *sin) = (c as f32 * self.attention_factor, s as f32 * self.attention_factor);
                }
            }
        });
    }

    /// Turns the first `heads` heads of each token in place. Shapes: `x` [tokens, stride], `angles` [tokens, width].
    pub(super) fn apply(&self, arch: Arch, angles: &[f32], heads: usize, stride: usize, x: &mut [f32]) {
        let half = self.frequencies.len();
        for_row_blocks(x, stride, |first, block| {
            let angles = &angles[first * 2 * half..];
            arch.dispatch(Turn { angles, rotary_dim: 2 * half, head_dim: self.head_dim, heads, stride, x: block });
        });
    }
}

/// Some rows, on one thread.
struct Turn<'a> {
    angles: &'a [f32],
    rotary_dim: usize,
    head_dim: usize,
    heads: usize,
    stride: usize,
    x: &'a mut [f32],
}

impl WithSimd for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Turn { angles, rotary_dim, head_dim, heads, stride, x } = self;
        for (row, angles) in x.chunks_exact_mut(stride).zip(angles.chunks_exact(rotary_dim)) {
            for head in row[..heads * head_dim].chunks_exact_mut(head_dim) {
                turn(&mut head[..rotary_dim], angles);
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

/// Returns the frequency of pair `i`.
fn frequency(config: &ModelConfig, i: usize) -> f64 {
    let frequency = f64::from(config.rope_theta).powf(-2.0 * i as f64 / config.rotary_dim as f64);
    match &config.rope_scaling {
        None => frequency,
        Some(RopeScaling::Linear { factor }) => frequency / f64::from(*factor),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position }) => {
            let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
            // How often the original context turns this pair round.
            let turns = *original_max_position as f64 * frequency / (2.0 * PI);
            interpolate(frequency, *factor, ramp(turns, low, high))
        }
        Some(RopeScaling::Yarn { factor, original_max_position, beta_fast, beta_slow, truncate, attention_factor: _ }) => {
            // The (fractional) index of the pair that the original context turns so often.
            let index_of = |turns: f32| {
                let wavelength = *original_max_position as f64 / f64::from(turns);
                config.rotary_dim as f64 * (wavelength / (2.0 * PI)).ln() / (2.0 * f64::from(config.rope_theta).ln())
            };
            let (first, last) = (index_of(*beta_fast), index_of(*beta_slow));
            let (first, last) = if *truncate { (first.floor(), last.ceil()) } else { (first, last) };
            let (first, last) = (first.max(0.0), last.min(config.rotary_dim as f64 - 1.0));
            interpolate(frequency, *factor, 1.0 - ramp(i as f64, first, if first == last { last + 1e-3 } else { last }))
        }
        Some(RopeScaling::LongRope { short_factors, long_factors, original_max_position, attention_factor: _ }) => {
            let long = config.max_context > *original_max_position;
            frequency / f64::from(if long { long_factors[i] } else { short_factors[i] })
        }
    }
}

/// Returns 0 up to `low`, 1 from `high` on, and a straight line between.
fn ramp(x: f64, low: f64, high: f64) -> f64 {
    if high > low { ((x - low) / (high - low)).clamp(0.0, 1.0) } else { f64::from(x >= low) }
}

/// Returns a frequency of which a part is kept and the rest divided by `factor`.
fn interpolate(frequency: f64, factor: f32, kept: f64) -> f64 {
    frequency * (kept + (1.0 - kept) / f64::from(factor))
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Random, close, tiny_config};
    use super::*;

    #[test]
    fn turns_pairs_by_their_angle_and_leaves_the_rest() {
        let whole = tiny_config();
        let part = ModelConfig { rotary_dim: 10, ..tiny_config() };
        [whole, part].iter().for_each(check_turns);
    }

    fn check_turns(config: &ModelConfig) {
        let rope = Rope::new(config);
        let (heads, dim, stride, rotary) = (3, config.head_dim, 4 * config.head_dim + 1, config.rotary_dim);
        let positions = [0, 1, 77, 2047];
        let before = Random::new(3).floats(positions.len() * stride);
        let (mut x, mut angles) = (before.clone(), vec![0.0; positions.len() * rope.width()]);
        rope.angles(&positions, &mut angles);
        rope.apply(Arch::new(), &angles, heads, stride, &mut x);
        for (token, &position) in positions.iter().enumerate() {
            for i in 0..stride {
                let at = |i: usize| f64::from(before[token * stride + i]);
                let (head, d) = (i / dim, i % dim);
                let expected = if head < heads && d < rotary {
                    let pair = d % (rotary / 2);
                    let angle = f64::from(position) * f64::from(config.rope_theta).powf(-2.0 * pair as f64 / rotary as f64);
                    let (left, right) = (at(head * dim + pair), at(head * dim + pair + rotary / 2));
                    if d < rotary / 2 {
                        left * angle.cos() - right * angle.sin()
                    } else {
                        right * angle.cos() + left * angle.sin()
                    }
                } else {
                    at(i)
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
        let scaled = |wavelength: f64| {
            let frequency = 2.0 * PI / wavelength;
            interpolate(frequency, 8.0, ramp(8192.0 / wavelength, 1.0, 4.0)) / frequency
        };
        assert!((scaled(100.0) - 1.0).abs() < 1e-12);
        assert!((scaled(10_000.0) - 0.125).abs() < 1e-12);
        // Half way up the ramp: 2.5 turns in the original context.
        assert!((scaled(8192.0 / 2.5) - 0.5625).abs() < 1e-12);
    }

    #[test]
    fn yarn_keeps_fast_pairs_divides_slow_ones_and_sharpens_attention() {
        let mut config = tiny_config();
        (config.head_dim, config.rotary_dim) = (64, 64);
        let plain = Rope::new(&config).frequencies;
        config.rope_scaling = Some(RopeScaling::Yarn {
            factor: 4.0,
            original_max_position: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.5,
        });
        let rope = Rope::new(&config);
        let kept: Vec<_> = rope.frequencies.iter().zip(&plain).map(|(scaled, plain)| scaled / plain).collect();
        // ln(4096 / (32 * 2 pi)) / ln(10000) * 32 = 10.47, and with one turn 22.51.
        assert!(kept[..=10].iter().all(|kept| (kept - 1.0).abs() < 1e-6), "{kept:?}");
        assert!(kept[23..].iter().all(|kept| (kept - 0.25).abs() < 1e-6), "{kept:?}");
        assert!((kept[15] - (0.25 + 0.75 * 8.0 / 13.0)).abs() < 1e-6, "{kept:?}");
        let mut angles = vec![0.0; rope.width()];
        rope.angles(&[0], &mut angles);
        assert_eq!(angles, [[1.5; 32], [0.0; 32]].concat());
    }

    #[test]
    fn longrope_takes_the_long_factors_where_the_context_goes_beyond_the_original() {
        let mut config = tiny_config();
        let plain = Rope::new(&config).frequencies;
        config.rope_scaling = Some(RopeScaling::LongRope {
            short_factors: vec![2.0; 8],
            long_factors: vec![4.0; 8],
            original_max_position: config.max_context,
            attention_factor: 1.0,
        });
        let divisor = |config: &ModelConfig| plain[3] / Rope::new(config).frequencies[3];
        assert_eq!(divisor(&config), 2.0);
        config.max_context += 1;
        assert_eq!(divisor(&config), 4.0);
    }
}
