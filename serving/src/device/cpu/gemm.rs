//! Matrix products with weights that were packed once: `out = a * w^T`, or `out += a * w^T`.
//!
//! Shapes: `a` [m, k] activations, `w` [n, k] weights as Hugging Face stores them, `out` [m, n].
//!
//! **Order of summation.** `out[i][j]` is one chain of fused multiply-adds over `k` in ascending order, begun at zero or at the
//! old `out[i][j]`. It depends on neither `m`, nor the tile that a row falls into, nor the number of threads.
//!
//! **How.** Weights lie in panels `[n / NR][k][NR]`, NR two vectors wide, padded with zeros. A micro-kernel keeps up to 12 rows by
//! NR columns of `out` in registers and walks `KC` steps of `k`, so that the piece of the panel stays in the first-level cache
//! for all rows of the task; sums are put down and taken up again between pieces, which does not change their bits.
//! With many rows each task takes a block of rows, with few rows a group of panels.
//!
//! **Why not the `gemm` crate.** Its 0.19 release is not invariant: of m = 1 to 39 and some up to 599, m = 1 gave other bits
//! than the same row within m = 600, in each of five shapes, as it takes another kernel there; how it blocks `k` is its own
//! affair. Its entry point is `unsafe`, which this crate denies, and it packs the weights at every call, which costs most where
//! m is small: at m = 8 it reached 14 to 40 GFLOP/s on four shapes of the default model, this kernel 82 to 199. At m = 512 the
//! two were not told apart: both reached 260 to 300 in some shape, on two Sapphire Rapids cores shared with other work.
//!
//! **Speed.** On one such core (roof 216 GFLOP/s) the product reaches 69 to 77 % of the roof for the default model's layers at
//! m = 64 and 512 (examples/cpu_bench.rs), its inner loop alone 82 to 84 % at m = 96. Tiles of 8x48 and 6x64 were no better than
//! 12x32, and KC = 256 was best of 128, 256, 512 and all of k.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::aligned::AlignedVec;

/// Steps of `k` that are walked before the next tile of rows.
const KC: usize = 256;
/// Vectors in the width of a panel.
const PANEL_VECTORS: usize = 2;
/// The widest panel of any instruction set.
const PANEL_MAX: usize = 32;
/// The tallest tile; machines with 16 vector registers use half of it.
const TILE_ROWS_MAX: usize = 12;
/// With fewer rows than this for each thread, threads take columns instead.
const ROWS_PER_THREAD_MIN: usize = 24;
/// The most rows of one task, so that packed rows stay in the second-level cache.
const ROWS_PER_TASK_MAX: usize = 96;
/// Multiply-adds that are worth a task of their own.
const TASK_WORK_MIN: usize = 64 * 1024;

/// Weights in panels, ready for `gemm`.
#[derive(Debug)]
pub(super) struct PackedMatrix {
    n: usize,
    k: usize,
    panel: usize,
    data: AlignedVec,
}

/// What `gemm` adds the product to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing: `out` is overwritten.
    Zero,
    /// What `out` holds.
    Out,
}

/// Buffers of `gemm`, reused between calls.
#[derive(Debug, Default)]
pub(super) struct GemmScratch {
    packed: AlignedVec,
    columns: AlignedVec,
}

impl PackedMatrix {
    /// Returns an [n, k] matrix of zeros.
    pub(super) fn zeros(arch: Arch, n: usize, k: usize) -> Self {
        let panel = arch.dispatch(PanelWidth);
        PackedMatrix { n, k, panel, data: AlignedVec::zeroed(n.next_multiple_of(panel) * k) }
    }

    /// Returns the number of output columns.
    pub(super) fn n(&self) -> usize {
        self.n
    }

    /// Returns the length of the sums.
    pub(super) fn k(&self) -> usize {
        self.k
    }

    /// Sets row `row` of the matrix.
    pub(super) fn set_row(&mut self, row: usize, values: &[f32]) {
        let at = self.element(row);
        for (cell, &value) in self.data[at..].iter_mut().step_by(self.panel).zip(&values[..self.k]) {
            *cell = value;
        }
    }

    /// Returns a matrix of the rows named, in their order, repetitions included.
    pub(super) fn gather(&self, arch: Arch, rows: impl ExactSizeIterator<Item = usize>) -> PackedMatrix {
        let mut gathered = PackedMatrix::zeros(arch, rows.len(), self.k);
        for (to, from) in rows.enumerate() {
            let (to, from) = (gathered.element(to), self.element(from));
            let source = self.data[from..].iter().step_by(self.panel);
            for (cell, &value) in gathered.data[to..].iter_mut().step_by(self.panel).zip(source).take(self.k) {
                *cell = value;
            }
        }
        gathered
    }

    fn panels(&self) -> usize {
        self.n.div_ceil(self.panel)
    }

    /// Where row `row` begins; its next value lies `panel` further.
    fn element(&self, row: usize) -> usize {
        row / self.panel * self.k * self.panel + row % self.panel
    }
}

/// Multiplies on the rayon pool of the calling thread. Shapes: `a` [m, k], `out` [m, n], `m` given by `out`.
pub(super) fn gemm(arch: Arch, scratch: &mut GemmScratch, a: &[f32], w: &PackedMatrix, out: &mut [f32], start: Start) {
    let m = out.len() / w.n.max(1);
    debug_assert!(a.len() == m * w.k && out.len() == m * w.n);
    if m == 0 {
        return;
    }
    scratch.packed.resize(m * w.k);
    if m >= ROWS_PER_THREAD_MIN * rayon::current_num_threads() {
        by_rows(arch, &mut scratch.packed, a, w, out, start);
    } else {
        by_columns(arch, scratch, a, w, out, start);
    }
}

fn by_rows(arch: Arch, packed: &mut [f32], a: &[f32], w: &PackedMatrix, out: &mut [f32], start: Start) {
    let m = out.len() / w.n;
    let threads = rayon::current_num_threads();
    let tasks = threads * m.div_ceil(threads * ROWS_PER_TASK_MAX);
    let rows = m.div_ceil(tasks);
    let blocks = packed.par_chunks_mut(rows * w.k).zip(a.par_chunks(rows * w.k)).zip(out.par_chunks_mut(rows * w.n));
    blocks.for_each(|((packed, a), out)| {
        arch.dispatch(Pack { a, k: w.k, packed });
        arch.dispatch(Multiply { packed, w, panels: 0..w.panels(), out, stride: w.n, columns: w.n, start });
    });
}

/// Each task writes a group of panels into a buffer of its own, whose pieces then go to the rows of `out`.
fn by_columns(arch: Arch, scratch: &mut GemmScratch, a: &[f32], w: &PackedMatrix, out: &mut [f32], start: Start) {
    let m = out.len() / w.n;
    let packed: &mut [f32] = &mut scratch.packed;
    arch.dispatch(Pack { a, k: w.k, packed });
    let tasks = (m * w.n * w.k).div_ceil(TASK_WORK_MIN).min(2 * rayon::current_num_threads());
    let panels = w.panels().div_ceil(tasks);
    let width = panels * w.panel;
    scratch.columns.resize(w.panels().div_ceil(panels) * width * m);
    if start == Start::Out {
        for_pieces(m, w.n, width, |at, piece| scratch.columns[piece].copy_from_slice(&out[at]));
    }
    let packed: &[f32] = packed;
    scratch.columns.par_chunks_mut(width * m).enumerate().for_each(|(group, out)| {
        let panels = group * panels..((group + 1) * panels).min(w.panels());
        arch.dispatch(Multiply { packed, w, panels, out, stride: width, columns: width, start });
    });
    for_pieces(m, w.n, width, |at, piece| out[at].copy_from_slice(&scratch.columns[piece]));
}

/// Calls `copy(range of out, range of the column buffer)` for every row of every group.
fn for_pieces(m: usize, n: usize, width: usize, mut copy: impl FnMut(Range<usize>, Range<usize>)) {
    for row in 0..m {
        for (group, column) in (0..n).step_by(width).enumerate() {
            let len = width.min(n - column);
            let piece = (group * m + row) * width;
            copy(row * n + column..row * n + column + len, piece..piece + len);
        }
    }
}

/// Width of a panel on this machine.
struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        PANEL_VECTORS * S::F32_LANES
    }
}

/// Cuts `rows` rows into tiles as equal as possible and returns (first row, height) of each.
#[inline(always)]
fn tiles<S: Simd>(rows: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    let height = if S::REGISTER_COUNT >= 32 { TILE_ROWS_MAX } else { TILE_ROWS_MAX / 2 };
    let count = rows.div_ceil(height);
    (0..count).map(move |i| (i * rows / count, (i + 1) * rows / count - i * rows / count))
}

/// Calls a function that is generic over the height of a tile.
macro_rules! with_height {
    ($height:expr, $function:ident $(for $simd:ty)?, $arguments:tt) => {
        match $height {
            1 => $function::<$($simd,)? 1> $arguments,
            2 => $function::<$($simd,)? 2> $arguments,
            3 => $function::<$($simd,)? 3> $arguments,
            4 => $function::<$($simd,)? 4> $arguments,
            5 => $function::<$($simd,)? 5> $arguments,
            6 => $function::<$($simd,)? 6> $arguments,
            7 => $function::<$($simd,)? 7> $arguments,
            8 => $function::<$($simd,)? 8> $arguments,
            9 => $function::<$($simd,)? 9> $arguments,
            10 => $function::<$($simd,)? 10> $arguments,
            11 => $function::<$($simd,)? 11> $arguments,
            _ => $function::<$($simd,)? TILE_ROWS_MAX> $arguments,
        }
    };
}

/// Rearranges rows of `a` into tiles `[k][height]`, so that the micro-kernel reads them in order.
struct Pack<'a> {
    a: &'a [f32],
    k: usize,
    packed: &'a mut [f32],
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (first, height) in tiles::<S>(self.a.len() / self.k) {
            let range = first * self.k..(first + height) * self.k;
            with_height!(height, pack_tile, (&self.a[range.clone()], self.k, &mut self.packed[range]));
        }
    }
}

#[inline(always)]
fn pack_tile<const M: usize>(a: &[f32], k: usize, packed: &mut [f32]) {
    let rows: [&[f32]; M] = std::array::from_fn(|i| &a[i * k..(i + 1) * k]);
    for (step, column) in packed.as_chunks_mut::<M>().0.iter_mut().enumerate().take(k) {
        for (value, row) in column.iter_mut().zip(rows) {
            *value = row[step];
        }
    }
}

/// Multiplies packed rows with some panels. `out` begins at the first column of the first panel; its rows are `stride` apart
/// and end after `columns`.
struct Multiply<'a> {
    packed: &'a [f32],
    w: &'a PackedMatrix,
    panels: Range<usize>,
    out: &'a mut [f32],
    stride: usize,
    columns: usize,
    start: Start,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Multiply { packed, w, panels, out, stride, columns, start } = self;
        let k = w.k;
        let tiles = tiles::<S>(packed.len() / k);
        for (i, panel) in panels.enumerate() {
            let column = i * w.panel;
            let width = w.panel.min(columns - column);
            for from in (0..k).step_by(KC) {
                let to = (from + KC).min(k);
                let b = &w.data[(panel * k + from) * w.panel..(panel * k + to) * w.panel];
                let resume = from > 0 || start == Start::Out;
                for (first, height) in tiles.clone() {
                    let a = &packed[first * k + from * height..first * k + to * height];
                    let out = &mut out[first * stride + column..];
                    with_height!(height, tile for S, (simd, a, b, out, stride, width, resume));
                }
            }
        }
    }
}

/// Adds `a` `[steps][M]` times `b` `[steps][panel]` to M rows of `out`, or overwrites them unless `resume`.
#[inline(always)]
fn tile<S: Simd, const M: usize>(simd: S, a: &[f32], b: &[f32], out: &mut [f32], stride: usize, width: usize, resume: bool) {
    let panel = PANEL_VECTORS * S::F32_LANES;
    if width < panel {
        let mut edge = [0.0; TILE_ROWS_MAX * PANEL_MAX];
        for i in 0..M {
            edge[i * panel..][..width].copy_from_slice(&out[i * stride..][..width]);
        }
        full_tile::<S, M>(simd, a, b, &mut edge, panel, resume);
        for i in 0..M {
            out[i * stride..][..width].copy_from_slice(&edge[i * panel..][..width]);
        }
    } else {
        full_tile::<S, M>(simd, a, b, out, stride, resume);
    }
}

#[inline(always)]
#[allow(clippy::manual_memcpy, reason = "a slice of the sums would make them live in memory instead of registers")]
fn full_tile<S: Simd, const M: usize>(simd: S, a: &[f32], b: &[f32], out: &mut [f32], stride: usize, resume: bool) {
    let mut sums = [[simd.splat_f32s(0.0); PANEL_VECTORS]; M];
    if resume {
        for i in 0..M {
            let row = S::as_simd_f32s(&out[i * stride..][..PANEL_VECTORS * S::F32_LANES]).0;
            for v in 0..PANEL_VECTORS {
                sums[i][v] = row[v];
            }
        }
    }
    let sums = multiply_add(simd, a.as_chunks().0, S::as_simd_f32s(b).0, PANEL_VECTORS, sums);
    for i in 0..M {
        let row = S::as_mut_simd_f32s(&mut out[i * stride..][..PANEL_VECTORS * S::F32_LANES]).0;
        for v in 0..PANEL_VECTORS {
            row[v] = sums[i][v];
        }
    }
}

/// The micro-kernel: for each step in order, `sums[i][v] += a[step][i] * b[step][v]`, fused. Rows of `b` are `stride` vectors
/// apart.
///
/// Sums are passed by value, and nothing in the loop can panic: otherwise the compiler stores all of them at every step.
#[inline(always)]
pub(super) fn multiply_add<S: Simd, const M: usize, const V: usize>(
    simd: S,
    a: &[[f32; M]],
    b: &[S::f32s],
    stride: usize,
    mut sums: [[S::f32s; V]; M],
) -> [[S::f32s; V]; M] {
    for (a, b) in a.iter().zip(b.chunks(stride)) {
        let Some(b) = b.first_chunk::<V>() else { break };
        for i in 0..M {
            let a = simd.splat_f32s(a[i]);
            for v in 0..V {
                sums[i][v] = simd.mul_add_f32s(a, b[v], sums[i][v]);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::reference::{Random, close, on_threads};
    use super::*;

    fn packed(arch: Arch, w: &[f32], n: usize, k: usize) -> PackedMatrix {
        let mut matrix = PackedMatrix::zeros(arch, n, k);
        for row in 0..n {
            matrix.set_row(row, &w[row * k..(row + 1) * k]);
        }
        matrix
    }

    /// The definition: one chain of fused multiply-adds over `k`.
    fn chain(a: &[f32], w: &[f32], start: f32) -> f32 {
        a.iter().zip(w).fold(start, |sum, (a, w)| a.mul_add(*w, sum))
    }

    #[track_caller]
    fn check(arch: Arch, threads: usize, m: usize, n: usize, k: usize, start: Start) {
        let mut random = Random::new((m * n * k) as u64);
        let (a, w, old) = (random.floats(m * k), random.floats(n * k), random.floats(m * n));
        let mut out = old.clone();
        let matrix = packed(arch, &w, n, k);
        on_threads(threads, || gemm(arch, &mut GemmScratch::default(), &a, &matrix, &mut out, start));
        for (i, &out) in out.iter().enumerate() {
            let (a, w) = (&a[i / n * k..][..k], &w[i % n * k..][..k]);
            let start = if start == Start::Out { old[i] } else { 0.0 };
            let exact = a.iter().zip(w).map(|(&a, &w)| f64::from(a) * f64::from(w)).sum::<f64>() + f64::from(start);
            close(out, exact, 1e-7 * k.max(10) as f64);
            assert_eq!(out.to_bits(), chain(a, w, start).to_bits(), "m {m} n {n} k {k} element {i}");
        }
    }

    #[test]
    fn every_output_is_one_chain_of_fused_multiply_adds() {
        for arch in [Arch::new(), Arch::Scalar] {
            for (m, n, k) in [(1, 1, 1), (1, 33, 7), (5, 64, 300), (13, 40, 257), (24, 7, 64), (61, 95, 31), (200, 70, 600)]
            {
                check(arch, 2, m, n, k, Start::Zero);
                check(arch, 3, m, n, k, Start::Out);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_shape_on_any_number_of_threads(m in 1usize..130, n in 1usize..140, k in 1usize..530, threads in 1usize..4) {
            check(Arch::new(), threads, m, n, k, Start::Zero);
        }
    }

    #[test]
    fn gathered_rows_give_the_bits_of_the_whole() {
        let (arch, mut random) = (Arch::new(), Random::new(9));
        let (m, n, k) = (5, 100, 129);
        let (a, w) = (random.floats(m * k), random.floats(n * k));
        let matrix = packed(arch, &w, n, k);
        let rows = [99, 0, 31, 32, 31];
        let (mut whole, mut part) = (vec![0.0; m * n], vec![0.0; m * rows.len()]);
        let mut scratch = GemmScratch::default();
        gemm(arch, &mut scratch, &a, &matrix, &mut whole, Start::Zero);
        gemm(arch, &mut scratch, &a, &matrix.gather(arch, rows.into_iter()), &mut part, Start::Zero);
        for (i, part) in part.iter().enumerate() {
            assert_eq!(part.to_bits(), whole[i / rows.len() * n + rows[i % rows.len()]].to_bits());
        }
    }
}
