//! Matrix products of bytes: activations are rounded to bytes too, and four products are added up by one instruction (AVX-512
//! VNNI). Shapes as in `gemm`, and the same panels of weights.
//!
//! **Rounding.** The activations of a row are cut into the blocks of the weights, 32 along `k`. A block's scale is its largest
//! magnitude divided by 127, its codes are the values divided by the scale, rounded to the nearest integer. A row is rounded by
//! itself, so its codes do not depend on the batch.
//!
//! **Order of summation.** Products of a block are added as integers, which is exact in any order. `out[i][j]` is one chain of
//! fused multiply-adds of these sums, as f32, with the product of both scales, over blocks in ascending order. So a result has
//! the same bits in any batch and on any number of threads.
//!
//! **Signs.** The instruction multiplies unsigned with signed bytes. Weights are stored as 128 more than their value, and the sum
//! of a block begins at -128 times the sum of the activations' codes. Sums stay below 2^24, where each integer is an f32.
//!
//! **Speed.** On a Sapphire Rapids core with a roof of 108 billion f32 multiply-adds a second, products of the shapes of
//! SmolLM2-135M ran at 182 to 255 with 96 rows. Of tiles of 3x64 to 12x32, 8x32 and 6x32 were best.

use std::ops::Range;

use archmage::{X64V4xToken, arcane, rite};
use rayon::prelude::*;

use super::aligned::AlignedVec;
use super::gemm::{Edge, Start, for_panel_groups, many_rows, rows_per_task, with_height};
use super::panels::{BLOCK, Bytes, PANEL_MAX, PANEL_VECTORS, PackedMatrix};

/// The tallest tile.
const TILE_ROWS_MAX: usize = 8;
/// Words of codes in a block.
const BLOCK_WORDS: usize = BLOCK / 4;
/// Values that are worth a task of rounding.
const TASK_VALUES_MIN: usize = 16 * 1024;
/// Blocks whose largest value is smaller than this are zero: their scale would have no inverse.
const MAGNITUDE_MIN: f32 = 1e-35;

/// Activations as bytes, in tiles of equal height, save for the last.
#[derive(Debug, Default)]
pub(super) struct Rounded {
    /// For each tile `[k / 4][height]` words of four steps each.
    codes: AlignedVec<u32>,
    /// -128 times the sum of the codes of a block: for each tile `[k / BLOCK][height]`.
    offsets: AlignedVec<i32>,
    /// As `offsets`.
    scales: AlignedVec<f32>,
}

/// Some tiles of `Rounded`.
#[derive(Clone, Copy)]
struct Tiles<'a> {
    /// The height of each but the last.
    height: usize,
    k: usize,
    codes: &'a [u32],
    offsets: &'a [i32],
    scales: &'a [f32],
}

/// Multiplies with a matrix of bytes on the rayon pool of the calling thread. Shapes: `a` [m, k], `out` [m, n].
pub(super) fn gemm_int8(
    rounded: &mut Rounded,
    a: &[f32],
    w: &PackedMatrix,
    bytes: Bytes<'_>,
    out: &mut [f32],
    start: Start,
) {
    let (n, k, m) = (w.n(), w.k(), out.len() / w.n());
    let height = m.div_ceil(m.div_ceil(TILE_ROWS_MAX));
    rounded.round(bytes.token, a, k, height);
    let all = rounded.tiles(height, k);
    if many_rows(m) {
        let rows = rows_per_task(m).next_multiple_of(height);
        out.par_chunks_mut(rows * n).enumerate().for_each(|(i, out)| {
            let pieces = &mut out.chunks_exact_mut(n).collect::<Vec<_>>();
            multiply(bytes.token, bytes, all.of_rows(i * rows..i * rows + pieces.len()), 0..w.panels(), pieces, start);
        });
    } else {
        for_panel_groups(w, out, |panels, rows| multiply(bytes.token, bytes, all, panels, rows, start));
    }
}

impl Rounded {
    fn round(&mut self, token: X64V4xToken, a: &[f32], k: usize, height: usize) {
        self.codes.resize(a.len() / 4);
        self.offsets.resize(a.len() / BLOCK);
        self.scales.resize(a.len() / BLOCK);
        let tile = height * k;
        let codes = self.codes.par_chunks_mut(tile / 4);
        let offsets = self.offsets.par_chunks_mut(tile / BLOCK);
        let scales = self.scales.par_chunks_mut(tile / BLOCK);
        let tiles = a.par_chunks(tile).zip(codes).zip(offsets.zip(scales));
        tiles.with_min_len(TASK_VALUES_MIN.div_ceil(tile)).for_each(|((a, codes), (offsets, scales))| {
            round_tile(token, a, k, codes, offsets, scales);
        });
    }

    fn tiles(&self, height: usize, k: usize) -> Tiles<'_> {
        Tiles { height, k, codes: &self.codes, offsets: &self.offsets, scales: &self.scales }
    }
}

impl<'a> Tiles<'a> {
    /// The tiles of some rows, which begin with a tile.
    fn of_rows(self, rows: Range<usize>) -> Tiles<'a> {
        let (words, blocks) = (self.k / 4, self.k / BLOCK);
        let of_blocks = rows.start * blocks..rows.end * blocks;
        Tiles {
            codes: &self.codes[rows.start * words..rows.end * words],
            offsets: &self.offsets[of_blocks.clone()],
            scales: &self.scales[of_blocks],
            ..self
        }
    }
}

/// Rounds the rows of one tile.
#[arcane]
fn round_tile(_: X64V4xToken, a: &[f32], k: usize, codes: &mut [u32], offsets: &mut [i32], scales: &mut [f32]) {
    let height = a.len() / k;
    for (i, row) in a.chunks_exact(k).enumerate() {
        for (block, values) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
            let (words, sum, scale) = round_block(values);
            for (step, word) in words.into_iter().enumerate() {
                codes[(block * BLOCK_WORDS + step) * height + i] = word;
            }
            offsets[block * height + i] = -128 * sum;
            scales[block * height + i] = scale;
        }
    }
}

/// Returns the codes of a block, four in a word, their sum, and their scale, which is no number or infinite where a value is.
#[inline(always)]
fn round_block(values: &[f32; BLOCK]) -> ([u32; BLOCK_WORDS], i32, f32) {
    // As integers, so that what is not a number counts as the largest.
    let magnitude = f32::from_bits(values.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff)));
    let inverse = if magnitude >= MAGNITUDE_MIN { 127.0 / magnitude } else { 0.0 };
    // Adding this leaves the nearest integer in the low bits of the fraction.
    const SHIFT: f32 = (3 << 22) as f32;
    let codes = values.map(|value| (value * inverse + SHIFT).to_bits() as i8);
    let sum = codes.iter().map(|&code| i32::from(code)).sum();
    let mut words = [0; BLOCK_WORDS];
    for (word, bytes) in words.iter_mut().zip(codes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(bytes.map(|code| code as u8));
    }
    (words, sum, magnitude / 127.0)
}

/// Multiplies tiles with some panels. `rows` are rows of `out` from the first column of the first panel on; they end with the last
/// panel, or within it.
#[arcane]
fn multiply(_: X64V4xToken, bytes: Bytes<'_>, all: Tiles<'_>, panels: Range<usize>, rows: &mut [&mut [f32]], start: Start) {
    let height = all.height;
    let mut panel = panels.start;
    while panel < panels.end {
        let column = (panel - panels.start) * PANEL_MAX;
        // A chain waits for its own sums: few rows need several panels to keep the processor busy.
        let together = match (rows.len(), panels.end - panel) {
            (1, 4..) => 4,
            (1..=3, 2..) => 2,
            _ => 1,
        };
        for (i, rows) in rows.chunks_mut(height).enumerate() {
            let tile = all.of_rows(i * height..i * height + rows.len());
            match (together, rows.len()) {
                (4, _) => several_panels::<1, { 4 * PANEL_VECTORS }>(bytes, tile, panel, rows, column, start),
                (2, 1) => several_panels::<1, { 2 * PANEL_VECTORS }>(bytes, tile, panel, rows, column, start),
                (2, 2) => several_panels::<2, { 2 * PANEL_VECTORS }>(bytes, tile, panel, rows, column, start),
                (2, _) => several_panels::<3, { 2 * PANEL_VECTORS }>(bytes, tile, panel, rows, column, start),
                (_, height) => with_height!(height, one_panel, (bytes, tile, panel, rows, column, start)),
            }
        }
        panel += together;
    }
}

#[rite(v4x)]
fn one_panel<const M: usize>(
    bytes: Bytes<'_>,
    tile: Tiles<'_>,
    panel: usize,
    rows: &mut [&mut [f32]],
    column: usize,
    start: Start,
) {
    several_panels::<M, PANEL_VECTORS>(bytes, tile, panel, rows, column, start);
}

/// Multiplies a tile of M rows with panels of V vectors in all.
#[rite(v4x)]
fn several_panels<const M: usize, const V: usize>(
    bytes: Bytes<'_>,
    tile: Tiles<'_>,
    panel: usize,
    rows: &mut [&mut [f32]],
    column: usize,
    start: Start,
) {
    let (words, blocks) = (tile.k / 4 * PANEL_MAX, tile.k / BLOCK * PANEL_MAX);
    let panels = V / PANEL_VECTORS;
    let codes = &bytes.codes[panel * words..(panel + panels) * words];
    let scales = &bytes.scales[panel * blocks..(panel + panels) * blocks];
    if rows.iter().any(|row| row.len() - column < V * LANES) {
        let mut edge = Edge::of(rows, column);
        full_tile::<M, V>(tile, codes, scales, &mut edge.rows()[..M], 0, start);
        edge.put(rows, column);
    } else {
        full_tile::<M, V>(tile, codes, scales, rows, column, start);
    }
}

/// Values in a vector.
const LANES: usize = PANEL_MAX / PANEL_VECTORS;

/// The micro-kernel. Shapes: `codes` `[panels][k / 4][32]`, `scales` `[panels][k / BLOCK][32]`.
#[rite(v4x, import_intrinsics)]
#[allow(clippy::needless_range_loop, reason = "iterating would make the sums live in memory instead of registers")]
fn full_tile<const M: usize, const V: usize>(
    tile: Tiles<'_>,
    codes: &[u32],
    scales: &[f32],
    rows: &mut [&mut [f32]],
    column: usize,
    start: Start,
) {
    let (steps, blocks) = (tile.k / 4, tile.k / BLOCK);
    let panels: [usize; V] = std::array::from_fn(|v| v / PANEL_VECTORS);
    // A row of each is one step, or one block, of a panel.
    let codes = codes.as_chunks::<LANES>().0.as_chunks::<PANEL_VECTORS>().0;
    let scales = scales.as_chunks::<LANES>().0.as_chunks::<PANEL_VECTORS>().0;
    let codes: [&[[[[u32; LANES]; PANEL_VECTORS]; BLOCK_WORDS]]; V] =
        panels.map(|panel| codes[panel * steps..(panel + 1) * steps].as_chunks().0);
    let scales: [&[[[f32; LANES]; PANEL_VECTORS]]; V] = panels.map(|panel| &scales[panel * blocks..(panel + 1) * blocks]);

    let mut out = [[_mm512_setzero_ps(); V]; M];
    if start == Start::Out {
        for i in 0..M {
            let row = rows[i][column..].as_chunks::<LANES>().0;
            for v in 0..V {
                out[i][v] = _mm512_loadu_ps(&row[v]);
            }
        }
    }
    let activations = tile.codes.as_chunks::<M>().0.as_chunks::<BLOCK_WORDS>().0;
    let factors = tile.offsets.as_chunks::<M>().0.iter().zip(tile.scales.as_chunks::<M>().0);
    for (block, (activations, (offsets, factors))) in activations.iter().zip(factors).enumerate() {
        let mut sums = [[_mm512_setzero_si512(); V]; M];
        for i in 0..M {
            sums[i] = [_mm512_set1_epi32(offsets[i]); V];
        }
        for step in 0..BLOCK_WORDS {
            let mut weights = [_mm512_setzero_si512(); V];
            for v in 0..V {
                weights[v] = _mm512_loadu_si512(&codes[v][block][step][v % PANEL_VECTORS]);
            }
            for i in 0..M {
                let activation = _mm512_set1_epi32(activations[step][i].cast_signed());
                for v in 0..V {
                    sums[i][v] = _mm512_dpbusd_epi32(sums[i][v], weights[v], activation);
                }
            }
        }
        for v in 0..V {
            let scale = _mm512_loadu_ps(&scales[v][block][v % PANEL_VECTORS]);
            for i in 0..M {
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(factors[i]));
                out[i][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i][v]), scale, out[i][v]);
            }
        }
    }
    for i in 0..M {
        let row = rows[i][column..].as_chunks_mut::<LANES>().0;
        for v in 0..V {
            _mm512_storeu_ps(&mut row[v], out[i][v]);
        }
    }
}

#[cfg(test)]
mod tests {
    use archmage::SimdToken;
    use half::f16;
    use proptest::prelude::*;
    use pulp::Arch;

    use super::super::gemm::{GemmScratch, gemm};
    use super::super::panels::Encoding;
    use super::super::reference::{Random, on_threads};
    use super::*;
    use crate::model::DType;

    /// Bytes and scales of a random matrix, row by row, and the matrix.
    struct Weights {
        codes: Vec<i8>,
        scales: Vec<f32>,
        packed: PackedMatrix,
    }

    fn weights(random: &mut Random, n: usize, k: usize) -> Weights {
        let mut packed = PackedMatrix::zeros(Arch::new(), Encoding::Q8, n, k).multiply_bytes();
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for row in 0..n {
            let mut bytes = Vec::new();
            for _ in 0..k / BLOCK {
                let scale = f16::from_f32(random.floats(1)[0]);
                let block: Vec<i8> = (0..BLOCK).map(|_| random.below(256) as u8 as i8).collect();
                bytes.extend(scale.to_le_bytes());
                bytes.extend(block.iter().map(|&code| code as u8));
                scales.push(scale.to_f32());
                codes.extend(block);
            }
            packed.set_row(row, DType::Q8_0, &bytes);
        }
        Weights { codes, scales, packed }
    }

    /// The definition of a block's sum.
    fn block_sum(a: &[f32; BLOCK], codes: &[i8]) -> (f32, f32) {
        let magnitude = a.iter().fold(0.0_f32, |most, a| most.max(a.abs()));
        let inverse = if magnitude == 0.0 { 0.0 } else { 127.0 / magnitude };
        let products = a.iter().zip(codes).map(|(a, &code)| (a * inverse).round_ties_even() as i32 * i32::from(code));
        (products.sum::<i32>() as f32, magnitude / 127.0)
    }

    #[track_caller]
    fn check(threads: usize, [m, n, k]: [usize; 3], start: Start) {
        let mut random = Random::new((m * n * k) as u64);
        let weights = weights(&mut random, n, k);
        let (mut a, old) = (random.floats(m * k), random.floats(m * n));
        a.iter_mut().step_by(5).for_each(|a| *a *= 1e-4);
        a[..BLOCK].fill(0.0);
        let mut out = old.clone();
        on_threads(threads, || {
            gemm(Arch::new(), &mut GemmScratch::default(), &a, &weights.packed, &mut out, start);
        });
        for (i, &out) in out.iter().enumerate() {
            let (row, column) = (i / n, i % n);
            let (codes, scales) = (&weights.codes[column * k..][..k], &weights.scales[column * (k / BLOCK)..]);
            let begin = if start == Start::Out { old[i] } else { 0.0 };
            let (mut sum, mut exact, mut bound) = (begin, f64::from(begin), 1e-5);
            let a = a[row * k..][..k].as_chunks::<BLOCK>().0;
            for ((a, codes), &scale) in a.iter().zip(codes.chunks(BLOCK)).zip(scales) {
                let (integer, factor) = block_sum(a, codes);
                sum = integer.mul_add(scale * factor, sum);
                for (&a, &code) in a.iter().zip(codes) {
                    let weight = f64::from(scale) * f64::from(code);
                    exact += f64::from(a) * weight;
                    // An activation is off by half a code at most.
                    bound += 0.5001 * f64::from(factor) * weight.abs();
                }
            }
            assert_eq!(out.to_bits(), sum.to_bits(), "m {m} n {n} k {k} element {i}: {out} instead of {sum}");
            assert!((f64::from(out) - exact).abs() <= bound, "{out} instead of {exact}, more than {bound} away");
        }
    }

    /// Says that a test was skipped where the processor cannot multiply bytes.
    #[allow(clippy::print_stderr, reason = "says that the test was left out")]
    fn can_run() -> bool {
        let can = X64V4xToken::summon().is_some();
        if !can {
            eprintln!("skipped: this processor has no AVX-512 VNNI");
        }
        can
    }

    #[test]
    fn every_output_is_one_chain_over_blocks() {
        if !can_run() {
            return;
        }
        for (m, n, k) in [(1, 1, 32), (1, 330, 64), (2, 64, 96), (3, 100, 288), (13, 40, 256), (24, 7, 64), (200, 70, 608)] {
            check(2, [m, n, k], Start::Zero);
            check(3, [m, n, k], Start::Out);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_shape_on_any_number_of_threads(m in 1usize..130, n in 1usize..300, blocks in 1usize..13, threads in 1usize..4) {
            if can_run() {
                check(threads, [m, n, blocks * BLOCK], Start::Out);
            }
        }
    }

    #[test]
    fn gathered_rows_give_the_bits_of_the_whole() {
        let (mut random, arch) = (Random::new(9), Arch::new());
        let (m, n, k) = (5, 100, 160);
        let a = random.floats(m * k);
        let whole = weights(&mut random, n, k).packed;
        let rows = [99, 0, 31, 32, 31];
        let part = whole.gather(arch, rows.into_iter());
        assert_eq!(part.as_bytes().is_some(), whole.as_bytes().is_some());
        let (mut all, mut some) = (vec![0.0; m * n], vec![0.0; m * rows.len()]);
        let mut scratch = GemmScratch::default();
        gemm(arch, &mut scratch, &a, &whole, &mut all, Start::Zero);
        gemm(arch, &mut scratch, &a, &part, &mut some, Start::Zero);
        for (i, part) in some.iter().enumerate() {
            assert_eq!(part.to_bits(), all[i / rows.len() * n + rows[i % rows.len()]].to_bits());
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; BLOCK];
            values[7] = odd;
            assert!(!round_block(&values).2.is_finite());
        }
        assert_eq!(round_block(&[f32::MIN_POSITIVE / 8.0; BLOCK]).0, [0; BLOCK_WORDS]);
    }
}
