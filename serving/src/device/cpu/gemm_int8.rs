//! Matrix products of bytes: activations are rounded to bytes too, and their products are added up as integers. Shapes as in
//! `gemm`, and the same panels of weights.
//!
//! **Rounding.** The activations of a row are cut into the blocks of the weights, 32 along `k`. A block's scale is its largest
//! magnitude divided by 127, its codes are the values divided by the scale, rounded to the nearest integer. A row is rounded by
//! itself, so its codes do not depend on the batch.
//!
//! **Order of summation.** Products of a block are added as integers, which is exact in any order. `out[i][j]` is one chain of
//! fused multiply-adds of these sums, as f32, with the product of both scales, over blocks in ascending order. So a result has
//! the same bits in any batch, on any number of threads, and with any of the instructions.
//!
//! **Signs.** Weights are stored as 128 more than their value, and the sum of a block begins at -128 times the sum of the
//! activations' codes. Sums stay below 2^24, where each integer is an f32.
//!
//! | file | instructions |
//! |---|---|
//! | `int8_avx512` | AVX-512 VNNI: one adds up four products of bytes |
//! | `int8_avx2` | AVX2: one adds up two products of 16 bits |

use std::ops::Range;

use rayon::prelude::*;

use super::aligned::AlignedVec;
use super::gemm::{Edge, Start, for_panel_groups, many_rows, rows_per_task};
use super::panels::{BLOCK, ByteProducts, Bytes, PackedMatrix};

/// Steps of four in a block.
pub(super) const BLOCK_STEPS: usize = BLOCK / 4;
/// Values that are worth a task of rounding.
const TASK_VALUES_MIN: usize = 16 * 1024;
/// Blocks whose largest value is smaller than this are zero: their scale would have no inverse.
const MAGNITUDE_MIN: f32 = 1e-35;

/// Instructions that multiply bytes. A value shows that the processor has them.
pub(super) trait Instructions: Copy + Send + Sync {
    /// Columns of a panel.
    const PANEL: usize;
    /// The tallest tile.
    const TILE_ROWS_MAX: usize;
    /// Words that hold the codes of four steps of a row.
    const WORDS: usize;

    /// Rounds the rows `[height, k]` of one tile.
    fn round(self, a: &[f32], k: usize, tile: TileMut<'_>);

    /// Multiplies a tile with some panels, and adds to its rows from `column` on, or overwrites them. Of two panels the tile has
    /// at most three rows, of four one.
    fn multiply(self, tile: Tiles<'_>, panels: Panels<'_>, rows: &mut [&mut [f32]], column: usize, start: Start);
}

/// Activations as bytes, in tiles of equal height, save for the last.
#[derive(Debug, Default)]
pub(super) struct Rounded {
    /// For each tile `[k / 4][WORDS][height]`.
    codes: AlignedVec<u32>,
    /// -128 times the sum of the codes of a block: for each tile `[k / BLOCK][height]`.
    offsets: AlignedVec<i32>,
    /// As `offsets`.
    scales: AlignedVec<f32>,
}

/// Some tiles of `Rounded`.
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a> {
    /// The height of each but the last.
    height: usize,
    /// Words of codes in a row.
    words: usize,
    /// Blocks in a row.
    pub(super) blocks: usize,
    pub(super) codes: &'a [u32],
    pub(super) offsets: &'a [i32],
    pub(super) scales: &'a [f32],
}

/// A tile that is made.
pub(super) struct TileMut<'a> {
    codes: &'a mut [u32],
    offsets: &'a mut [i32],
    scales: &'a mut [f32],
}

/// Some panels of weights. Shapes: `codes` `[count][k / 4][PANEL]`, `scales` `[count][k / BLOCK][PANEL]`.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) count: usize,
    pub(super) codes: &'a [u32],
    pub(super) scales: &'a [f32],
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
    match bytes.products {
        ByteProducts::Avx512(token) => multiply_matrix(token, rounded, a, w, bytes, out, start),
        ByteProducts::Avx2(token) => multiply_matrix(token, rounded, a, w, bytes, out, start),
    }
}

fn multiply_matrix<T: Instructions>(
    token: T,
    rounded: &mut Rounded,
    a: &[f32],
    w: &PackedMatrix,
    bytes: Bytes<'_>,
    out: &mut [f32],
    start: Start,
) {
    let (n, k, m) = (w.n(), w.k(), out.len() / w.n());
    let height = m.div_ceil(m.div_ceil(T::TILE_ROWS_MAX));
    let all = rounded.round(token, a, k, height);
    if many_rows(m) {
        let rows = rows_per_task(m).next_multiple_of(height);
        out.par_chunks_mut(rows * n).enumerate().for_each(|(i, out)| {
            let pieces = &mut out.chunks_exact_mut(n).collect::<Vec<_>>();
            multiply_panels(token, bytes, all.of_rows(i * rows..i * rows + pieces.len()), 0..w.panels(), pieces, start);
        });
    } else {
        for_panel_groups(w, out, |panels, rows| multiply_panels(token, bytes, all, panels, rows, start));
    }
}

impl Rounded {
    fn round<T: Instructions>(&mut self, token: T, a: &[f32], k: usize, height: usize) -> Tiles<'_> {
        let (words, blocks) = (k / 4 * T::WORDS, k / BLOCK);
        let m = a.len() / k;
        self.codes.resize(m * words);
        self.offsets.resize(m * blocks);
        self.scales.resize(m * blocks);
        let codes = self.codes.par_chunks_mut(height * words);
        let offsets = self.offsets.par_chunks_mut(height * blocks);
        let scales = self.scales.par_chunks_mut(height * blocks);
        let tiles = a.par_chunks(height * k).zip(codes).zip(offsets.zip(scales));
        tiles.with_min_len(TASK_VALUES_MIN.div_ceil(height * k)).for_each(|((a, codes), (offsets, scales))| {
            token.round(a, k, TileMut { codes, offsets, scales });
        });
        Tiles { height, words, blocks, codes: &self.codes, offsets: &self.offsets, scales: &self.scales }
    }
}

impl<'a> Tiles<'a> {
    /// The tiles of some rows, which begin with a tile.
    fn of_rows(self, rows: Range<usize>) -> Tiles<'a> {
        let of_blocks = rows.start * self.blocks..rows.end * self.blocks;
        Tiles {
            codes: &self.codes[rows.start * self.words..rows.end * self.words],
            offsets: &self.offsets[of_blocks.clone()],
            scales: &self.scales[of_blocks],
            ..self
        }
    }
}

impl TileMut<'_> {
    /// Rounds the rows of the tile to codes of which four lie in WORDS words: four bytes in one word, or 16 bits each, the first
    /// and the third in the first word, the others in the second.
    #[inline(always)]
    pub(super) fn round<const WORDS: usize>(self, a: &[f32], k: usize) {
        let height = a.len() / k;
        for (i, row) in a.chunks_exact(k).enumerate() {
            for (block, values) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
                let (codes, sum, scale) = round_block(values);
                for (step, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                    for (j, word) in words::<WORDS>(*codes).into_iter().enumerate() {
                        self.codes[((block * BLOCK_STEPS + step) * WORDS + j) * height + i] = word;
                    }
                }
                self.offsets[block * height + i] = -128 * sum;
                self.scales[block * height + i] = scale;
            }
        }
    }
}

/// Four codes in one word, or in two.
#[inline(always)]
fn words<const WORDS: usize>(codes: [i8; 4]) -> [u32; WORDS] {
    let short = |code: i8| u32::from(i16::from(code).cast_unsigned());
    std::array::from_fn(|j| match WORDS {
        1 => u32::from_le_bytes(codes.map(i8::cast_unsigned)),
        _ => short(codes[j]) | short(codes[j + 2]) << 16,
    })
}

/// Returns the codes of a block, their sum, and their scale, which is no number or infinite where a value is.
#[inline(always)]
fn round_block(values: &[f32; BLOCK]) -> ([i8; BLOCK], i32, f32) {
    // As integers, so that what is not a number counts as the largest.
    let magnitude = f32::from_bits(values.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff)));
    let inverse = if magnitude >= MAGNITUDE_MIN { 127.0 / magnitude } else { 0.0 };
    // Adding this leaves the nearest integer in the low bits of the fraction.
    const SHIFT: f32 = (3 << 22) as f32;
    let codes = values.map(|value| (value * inverse + SHIFT).to_bits() as i8);
    let sum = codes.iter().map(|&code| i32::from(code)).sum();
    (codes, sum, magnitude / 127.0)
}

/// Multiplies tiles with some panels. `rows` are rows of `out` from the first column of the first panel on; they end with the last
/// panel, or within it.
fn multiply_panels<T: Instructions>(
    token: T,
    bytes: Bytes<'_>,
    all: Tiles<'_>,
    panels: Range<usize>,
    rows: &mut [&mut [f32]],
    start: Start,
) {
    let height = all.height;
    let mut panel = panels.start;
    while panel < panels.end {
        let column = (panel - panels.start) * T::PANEL;
        // A chain waits for its own sums: few rows need several panels to keep the processor busy.
        let count = match (rows.len(), panels.end - panel) {
            (1, 4..) => 4,
            (1..=3, 2..) => 2,
            _ => 1,
        };
        let (words, scales) = (all.blocks * BLOCK_STEPS * T::PANEL, all.blocks * T::PANEL);
        let together = Panels {
            count,
            codes: &bytes.codes[panel * words..(panel + count) * words],
            scales: &bytes.scales[panel * scales..(panel + count) * scales],
        };
        for (i, rows) in rows.chunks_mut(height).enumerate() {
            let tile = all.of_rows(i * height..i * height + rows.len());
            if rows.iter().any(|row| row.len() - column < count * T::PANEL) {
                let mut edge = Edge::of(rows, column);
                token.multiply(tile, together, &mut edge.rows()[..rows.len()], 0, start);
                edge.put(rows, column);
            } else {
                token.multiply(tile, together, rows, column, start);
            }
        }
        panel += count;
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;
    use pulp::Arch;
    use pulp::x86::{V3, V4};

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

    fn weights(arch: Arch, random: &mut Random, n: usize, k: usize) -> Weights {
        let mut packed = PackedMatrix::zeros(arch, Encoding::Q8, n, k).multiply_bytes();
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
    fn check(arch: Arch, threads: usize, [m, n, k]: [usize; 3], start: Start) {
        let mut random = Random::new((m * n * k) as u64);
        let weights = weights(arch, &mut random, n, k);
        let (mut a, old) = (random.floats(m * k), random.floats(m * n));
        a.iter_mut().step_by(5).for_each(|a| *a *= 1e-4);
        a[..BLOCK].fill(0.0);
        let mut out = old.clone();
        on_threads(threads, || {
            gemm(arch, &mut GemmScratch::default(), &a, &weights.packed, &mut out, start);
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

    /// The instruction sets that multiply bytes here. Says which are left out.
    #[allow(clippy::print_stderr, reason = "says that a part of the test was left out")]
    fn arches() -> Vec<Arch> {
        let all = [("AVX-512", V4::try_new().map(Arch::V4)), ("AVX2", V3::try_new().map(Arch::V3))];
        let multiplies =
            |arch: &Arch| PackedMatrix::zeros(*arch, Encoding::Q8, 1, BLOCK).multiply_bytes().multiplies_bytes();
        all.into_iter()
            .filter_map(|(name, arch)| {
                let arch = arch.filter(multiplies);
                if arch.is_none() {
                    eprintln!("skipped: this processor does not multiply bytes with {name}");
                }
                arch
            })
            .collect()
    }

    #[test]
    fn every_output_is_one_chain_over_blocks() {
        for arch in arches() {
            for (m, n, k) in
                [(1, 1, 32), (1, 330, 64), (2, 64, 96), (3, 100, 288), (13, 40, 256), (24, 7, 64), (200, 70, 608)]
            {
                check(arch, 2, [m, n, k], Start::Zero);
                check(arch, 3, [m, n, k], Start::Out);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_shape_on_any_number_of_threads(m in 1usize..130, n in 1usize..300, blocks in 1usize..13, threads in 1usize..4) {
            for arch in arches() {
                check(arch, threads, [m, n, blocks * BLOCK], Start::Out);
            }
        }
    }

    #[test]
    fn gathered_rows_give_the_bits_of_the_whole() {
        for arch in arches() {
            let mut random = Random::new(9);
            let (m, n, k) = (5, 100, 160);
            let a = random.floats(m * k);
            let whole = weights(arch, &mut random, n, k).packed;
            let rows = [99, 0, 31, 32, 31];
            let part = whole.gather(arch, rows.into_iter());
            assert!(part.multiplies_bytes());
            let (mut all, mut some) = (vec![0.0; m * n], vec![0.0; m * rows.len()]);
            let mut scratch = GemmScratch::default();
            gemm(arch, &mut scratch, &a, &whole, &mut all, Start::Zero);
            gemm(arch, &mut scratch, &a, &part, &mut some, Start::Zero);
            for (i, part) in some.iter().enumerate() {
                assert_eq!(part.to_bits(), all[i / rows.len() * n + rows[i % rows.len()]].to_bits());
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; BLOCK];
            values[7] = odd;
            assert!(!round_block(&values).2.is_finite());
        }
        assert_eq!(round_block(&[f32::MIN_POSITIVE / 8.0; BLOCK]).0, [0; BLOCK]);
    }
}
