//! The function between the two matrices of a feed-forward layer, with the bias of the first: `x[c] = f(x[c])`.
//!
//! `gelu(x) = x * Φ(x)` with Φ the normal distribution (Hendrycks and Gimpel 2016), by the error function or by a hyperbolic
//! tangent that is near it. The error function is Abramowitz and Stegun's formula 7.1.26, whose error is below 1.5e-7.

use pulp::{Arch, Simd, WithSimd};

use super::super::exp::exp;
use super::super::rows::for_row_blocks;
use crate::model::Activation;

/// Applies the function to every value of `x`, whose rows have `channels` values.
pub(super) fn activate(arch: Arch, activation: Activation, channels: usize, x: &mut [f32]) {
    for_row_blocks(x, channels, |_, block| arch.dispatch(Apply { activation, x: block }));
}

/// Some rows, on one thread.
struct Apply<'a> {
    activation: Activation,
    x: &'a mut [f32],
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        match self.activation {
            Activation::Gelu => self.x.iter_mut().for_each(|x| *x = gelu(*x)),
            Activation::GeluTanh => self.x.iter_mut().for_each(|x| *x = gelu_tanh(*x)),
            Activation::Relu => self.x.iter_mut().for_each(|x| *x = x.max(0.0)),
        }
    }
}

/// The coefficients of formula 7.1.26.
const P: f32 = 0.327_591_1;
const A: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_7, -1.453_152, 1.061_405_4];

#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / z.mul_add(P, 1.0);
    let p = t.mul_add(A[4], A[3]);
    let p = p.mul_add(t, A[2]);
    let p = p.mul_add(t, A[1]);
    let p = p.mul_add(t, A[0]);
    // Half the area under the tail beyond |x|: for negative x it is Φ(x), else it is what Φ(x) lacks to 1.
    let tail = 0.5 * p * t * exp(-z * z);
    if x < 0.0 { x * tail } else { x - x * tail }
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    // (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y)).
    let y = SQRT_2_OVER_PI * x * (0.044_715 * x).mul_add(x, 1.0);
    x / (1.0 + exp(-2.0 * y))
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;

    #[test]
    fn stays_close_to_double_precision() {
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let mut x: Vec<f32> = (-12_000..12_000).map(|i| i as f32 * 1e-3).collect();
            let expected: Vec<f64> = x.iter().map(|&x| reference::activate(activation, f64::from(x))).collect();
            activate(Arch::new(), activation, 100, &mut x);
            for (x, expected) in x.iter().zip(expected) {
                let error = (f64::from(*x) - expected).abs();
                assert!(error < 4e-7 * expected.abs().max(1.0), "{activation:?}: {x} instead of {expected}");
            }
        }
    }

    #[test]
    fn extremes_are_defined() {
        for activation in [Activation::Gelu, Activation::GeluTanh] {
            let mut x = [-1e4, 0.0, 1e4, f32::NAN];
            activate(Arch::new(), activation, 4, &mut x);
            assert!(x[0].abs() < 1e-30 && x[1] == 0.0 && x[2] == 1e4 && x[3].is_nan(), "{activation:?}: {x:?}");
        }
    }
}
