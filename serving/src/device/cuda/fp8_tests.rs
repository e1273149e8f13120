//! FP8 against plain Rust in double precision: the kernels that round rows, products with a scale for each row, and a whole pass.
//!
//! Without a GPU that multiplies FP8 a test says so and passes.

use std::sync::Arc;

use super::driver::{Arg, Buffer, Gpu, Size};
use super::forward::{FP8_THREADS, NORM_THREADS, SWIGLU_ROW_THREADS};
use super::gemm::{Gemm, Product, RowScales, padded};
use super::kernel_tests::{Lab, double, normalised, on_gpu, relative_error};
use super::kernels::{Kernels, Precision};
use crate::device::cpu::reference::{E4M3_MAX, Random, e4m3, quantised};

/// Opens a GPU that multiplies FP8, or says why there is none.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn open() -> Option<Arc<Gpu>> {
    match super::find(0) {
        Ok(facts) if facts.capability >= (8, 9) => Some(Gpu::open(facts.ordinal).unwrap()),
        Ok(facts) => {
            eprintln!("skipped: {facts} does not multiply FP8");
            None
        }
        Err(reason) => {
            eprintln!("skipped: {reason}");
            None
        }
    }
}

/// Runs a test of a file of kernels, as [`on_gpu`] does.
fn on_fp8_gpu(file: &str, test: impl Fn(&mut Lab)) {
    if open().is_some() {
        on_gpu(file, test);
    }
}

/// Decodes FP8.
fn value(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f64::from(byte & 7));
    let magnitude = match (exponent, mantissa) {
        (0, _) => mantissa * 2f64.powi(-9),
        (15, 7.0) => f64::NAN,
        _ => (8.0 + mantissa) * 2f64.powi(exponent - 10),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Decodes rows of FP8 with their scales.
fn values(bytes: &[u8], scales: &[f32]) -> Vec<f64> {
    let width = bytes.len() / scales.len();
    bytes
        .chunks(width)
        .zip(scales)
        .flat_map(|(row, &scale)| row.iter().map(move |&byte| value(byte) * f64::from(scale)))
        .collect()
}

/// Asserts that the rows of FP8 that a kernel wrote are those nearest to `expected`, but for the rounding of single precision.
#[track_caller]
fn check(lab: &Lab, out: &Buffer<u8>, scales: &Buffer<f32>, expected: &[f64], what: &str) {
    let (bytes, scales) = (lab.read(out), lab.read(scales));
    let width = bytes.len() / scales.len();
    for ((row, &scale), expected) in bytes.chunks(width).zip(&scales).zip(expected.chunks(width)) {
        let largest = expected.iter().fold(1e-30, |largest: f64, x| largest.max(x.abs()));
        let scale = f64::from(scale);
        assert!((scale * E4M3_MAX / largest - 1.0).abs() < 1e-5, "{what}: scale {scale} for {largest}");
        for (&byte, &expected) in row.iter().zip(expected) {
            let (got, exact) = (value(byte), expected / scale);
            let half_step = (got.abs().max(2f64.powi(-6)).log2().floor() - 4.0).exp2();
            assert!((got - exact).abs() <= half_step + exact.abs() * 1e-5, "{what}: {got} is not nearest to {exact}");
        }
    }
}

#[test]
fn the_twin_rounds_to_what_a_byte_can_hold() {
    let mut all: Vec<f64> = (0..=0x7e).map(value).collect();
    all.sort_by(f64::total_cmp);
    assert_eq!((all[1], all[126]), (2f64.powi(-9), E4M3_MAX));
    for pair in all.windows(2) {
        let (low, high) = (pair[0], pair[1]);
        for share in [0.0, 0.25, 0.49] {
            assert_eq!(e4m3(low + share * (high - low)), low);
            assert_eq!(e4m3(-(high - share * (high - low))), -high);
        }
    }
    assert_eq!([17.0, 19.0, 27.0 / 1024.0, 1e9, -449.0].map(e4m3), [16.0, 20.0, 28.0 / 1024.0, 448.0, -448.0]);
    assert_eq!(quantised(&[1.0, -2.0, 0.0]), [1.0, -2.0, 0.0]);
    assert_eq!(quantised(&[0.0; 2]), [0.0; 2]);
}

#[test]
fn quantise_rows_rounds_to_the_nearest() {
    on_fp8_gpu("fp8", |lab| {
        for (rows, width) in [(1, 16), (3, 48), (70, 1040), (5, 4096), (2, 14_336)] {
            let (x, x_on_gpu) = lab.acts(rows * width);
            run_quantise(lab, &x_on_gpu, &double(&x), rows, width);
        }
        // With a scale of 1: ties, numbers below the normal ones, and signs; and a row of zeros.
        let mut x = vec![0.0f32; 64];
        let few =
            [448.0, -448.0, 17.0, 19.0, -17.0, 1.0625, 1.1875, 0.0009765625, 0.0029296875, 0.001953125, -0.25, 432.0, 240.0];
        x[..few.len()].copy_from_slice(&few);
        let on_gpu = lab.put(&x);
        let (out, scales) = run_quantise(lab, &on_gpu, &double(&x), 2, 32);
        assert_eq!(scales[0], 1.0);
        let expected: Vec<f64> = double(&x[..32]).into_iter().map(e4m3).collect();
        assert_eq!(values(&out[..32], &scales[..1]), expected);
        assert!(out[32..].iter().all(|&byte| byte == 0));
    });
}

fn run_quantise(lab: &Lab, x: &Buffer<u8>, expected: &[f64], rows: usize, width: usize) -> (Vec<u8>, Vec<f32>) {
    let (out, scales) = (lab.filled::<u8>(rows * width), lab.filled::<f32>(rows));
    let args = [x.into(), (&out).into(), (&scales).into(), width.into()];
    lab.run("quantise_rows", Size::of(rows, FP8_THREADS), &args);
    check(lab, &out, &scales, expected, &format!("{rows} rows of {width}"));
    (lab.read(&out), lab.read(&scales))
}

#[test]
fn rms_norm_e4m3_normalises_and_rounds() {
    on_fp8_gpu("norm", |lab| {
        for (rows, hidden) in [(1, 16), (3, 48), (70, 1040), (5, 4096), (2, 16_384)] {
            let (x, x_on_gpu) = lab.acts(rows * hidden);
            let (weight, weight_on_gpu) = lab.floats(hidden);
            let eps = 1e-5f32;
            let (out, scales) = (lab.filled::<u8>(rows * hidden), lab.filled::<f32>(rows));
            let args: [Arg; 6] =
                [(&x_on_gpu).into(), (&weight_on_gpu).into(), (&out).into(), (&scales).into(), hidden.into(), eps.into()];
            lab.run("rms_norm_e4m3", Size::of(rows, NORM_THREADS), &args);
            let expected: Vec<f64> =
                x.chunks(hidden).flat_map(|row| normalised(&double(row), &weight, f64::from(eps))).collect();
            check(lab, &out, &scales, &expected, &format!("{rows} rows of {hidden}"));
        }
    });
}

#[test]
fn swiglu_e4m3_combines_and_rounds() {
    on_fp8_gpu("swiglu", |lab| {
        for (n, inner) in [(1, 16), (3, 48), (70, 1040), (5, 8192), (2, 28_672)] {
            let gate_up: Vec<f32> = lab.random.floats(n * 2 * inner).iter().map(|x| lab.round(x * 10.0)).collect();
            let (on_gpu, out, scales) = (lab.put(&gate_up), lab.filled::<u8>(n * inner), lab.filled::<f32>(n));
            let args = [(&on_gpu).into(), (&out).into(), (&scales).into(), inner.into()];
            lab.run("swiglu_e4m3", Size::of(n, SWIGLU_ROW_THREADS), &args);
            let activated = |row: &[f32]| -> Vec<f64> {
                let pair = |c: usize| (f64::from(row[c]), f64::from(row[c + inner]));
                (0..inner).map(pair).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
            };
            let expected: Vec<f64> = gate_up.chunks(2 * inner).flat_map(activated).collect();
            check(lab, &out, &scales, &expected, &format!("{n} rows of {inner}"));
        }
    });
}

#[test]
fn scale_product_scales_rows_and_columns() {
    on_fp8_gpu("fp8", |lab| {
        for (rows, width) in [(1, 16), (3, 48), (70, 1040), (2, 4096)] {
            for accumulate in [false, true] {
                let (sums, sums_on_gpu) = lab.acts(rows * width);
                let (y, y_on_gpu) = lab.acts(rows * width);
                let (of_rows, rows_on_gpu) = lab.floats(rows);
                let (of_columns, columns_on_gpu) = lab.floats(width);
                let (bias, bias_on_gpu) = lab.acts(width);
                // In place, where nothing is added to what is there.
                let target = if accumulate { &y_on_gpu } else { &sums_on_gpu };
                let args: [Arg; 7] = [
                    (&sums_on_gpu).into(),
                    target.into(),
                    (&rows_on_gpu).into(),
                    (&columns_on_gpu).into(),
                    (!accumulate).then_some(&bias_on_gpu).into(),
                    width.into(),
                    i32::from(accumulate).into(),
                ];
                lab.run("scale_product", Size::of(rows, FP8_THREADS), &args);
                let expected: Vec<f64> = (0..rows * width)
                    .map(|i| {
                        let added = if accumulate { y[i] } else { bias[i % width] };
                        let factors = [sums[i], of_rows[i / width], of_columns[i % width]].map(f64::from);
                        factors.iter().product::<f64>() + f64::from(added)
                    })
                    .collect();
                lab.check(&lab.get(target), &expected);
            }
        }
    });
}

/// With the scales of rows applied by the library, where it can, and by a kernel.
#[test]
#[expect(clippy::print_stderr, reason = "says which way the library goes")]
fn products_multiply_rows_with_scales() {
    let Some(gpu) = open() else { return };
    let kernels = Kernels::load(&gpu, Precision::Fp8, None).unwrap();
    let mut random = Random::new(3);
    for apart in [false, true] {
        let mut gemm = Gemm::new(&gpu, &kernels, Precision::Fp8, None, 64 * 2048).unwrap();
        eprintln!("{} scales rows by itself: {}", gpu.facts(), gemm.scales_rows().unwrap());
        if apart {
            gemm.scale_apart(&kernels, 64 * 2048).unwrap();
        }
        for (m, n, k) in [(1, 16, 16), (3, 48, 80), (33, 2048, 1024), (64, 1040, 4096)] {
            for way in [Way::Plain, Way::Bias, Way::Accumulate] {
                let error = product_error(&gpu, &mut gemm, [m, n, k], way, &mut random);
                // The matrix units keep some 14 bits of a sum; sums are rounded to bfloat16, apart twice.
                assert!(error <= 1e-2, "relative error {error:e} of {m} x {n} x {k}, {way:?}, apart: {apart}");
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Plain,
    Bias,
    Accumulate,
}

fn product_error(gpu: &Arc<Gpu>, gemm: &mut Gemm, [m, n, k]: [usize; 3], way: Way, random: &mut Random) -> f64 {
    let rows = padded(m);
    // No NaN: the lower seven bits are below 0x7f.
    let mut bytes =
        |len: usize| -> Vec<u8> { (0..len).map(|_| random.below(0x60) as u8 | (random.below(2) as u8) << 7).collect() };
    let (x, w) = (bytes(rows * k), bytes(n * k));
    let mut scales = |len: usize| -> Vec<f32> { random.floats(len).iter().map(|scale| 0.01 * (1.5 + scale)).collect() };
    let (of_x, of_w) = (scales(rows), scales(n));
    let acts: Vec<half::bf16> = random.floats(rows * n).into_iter().map(half::bf16::from_f32).collect();
    let bias = &acts[..n];
    let (x_on_gpu, w_on_gpu) = (gpu.upload(&x).unwrap(), gpu.upload(&w).unwrap());
    let (of_x_on_gpu, of_w_on_gpu) = (gpu.upload(&of_x).unwrap(), gpu.upload(&of_w).unwrap());
    let (y, bias_on_gpu) = (gpu.upload(&acts).unwrap(), gpu.upload(bias).unwrap());
    let product = Product {
        m,
        n,
        k,
        x: x_on_gpu.at(0),
        w: w_on_gpu.at(0),
        y: y.at(0),
        bias: if way == Way::Bias { bias_on_gpu.at(0) } else { 0 },
        accumulate: way == Way::Accumulate,
        wide: false,
        scales: Some(RowScales { x: of_x_on_gpu.at(0), w: of_w_on_gpu.at(0) }),
    };
    // SAFETY: all buffers have the sizes that the product names, and are read below before they are freed.
    unsafe { gemm.run(product) }.unwrap();
    let mut out = vec![half::bf16::NAN; m * n];
    y.read(0, &mut out).unwrap();
    let (x, w) = (values(&x, &of_x), values(&w, &of_w));
    let expected: Vec<f64> = (0..m * n)
        .map(|i| {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            let added = match way {
                Way::Plain => 0.0,
                Way::Bias => bias[i % n].to_f64(),
                Way::Accumulate => acts[i].to_f64(),
            };
            x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + added
        })
        .collect();
    relative_error(&out.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), &expected)
}
