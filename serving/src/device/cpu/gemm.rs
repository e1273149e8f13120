//! Matrix products with weights that were packed once: `out = a * w^T`, or `out += a * w^T`.
//!
//! Shapes: `a` [m, k] activations, `w` [n, k] weights as Hugging Face stores them, `out` [m, n].
//!
//! **Order of summation.** `out[i][j]` is one chain of fused multiply-adds over `k` in ascending order, begun at zero or at the
//! old `out[i][j]`. It depends on neither `m`, nor the tile that a row falls into, nor the number of threads.
//!
//! **How.** Weights lie in panels two vectors wide (`panels`). A piece of a panel, `KC` steps of `k`, is widened to f32 in a buffer
//! that stays in the first-level cache; then a micro-kernel walks it once for every tile of rows of the task, up to 12 rows by a
//! panel's columns of `out` in registers. Sums are put down and taken up again between pieces, which does not change their bits.
//! One row alone would wait for its own sums, so with up to three rows several panels are walked together; values of 16 bits are
//! then widened in registers on their way to the sums, so that memory is read without a pause. With many rows each task takes a block of rows, with few rows a group of panels and with it a piece of every row of `out`.
//!
//! **Why not the `gemm` crate.** Its 0.19 release is not invariant: of m = 1 to 39 and some up to 599, m = 1 gave other bits
//! than the same row within m = 600, in each of five shapes, as it takes another kernel there; how it blocks `k` is its own
//! affair. Its entry point is `unsafe`, which this crate denies, and it packs the weights at every call, which costs most where
//! m is small: at m = 8 it reached 14 to 40 GFLOP/s on four shapes of the default model, this kernel 82 to 199. At m = 512 the
//! two were not told apart: both reached 260 to 300 in some shape, on two Sapphire Rapids cores shared with other work.
//!
//! **Speed.** On one such core (roof 216 GFLOP/s) the product with f32 weights reaches 69 to 77 % of the roof for the default
//! model's layers at m = 64 and 512 (examples/cpu_bench.rs), its inner loop alone 82 to 84 % at m = 96. Tiles of 8x48 and 6x64
//! were no better than 12x32, and KC = 256 was best of 128, 256, 512 and all of k.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::aligned::AlignedVec;
#[cfg(target_arch = "x86_64")]
use super::gemm_int8::{Rounded, gemm_int8};
use super::panels::{Brain, Format16, Half, PANEL_MAX, PANEL_VECTORS, PackedMatrix, Panels16};

/// Steps of `k` that are walked before the next tile of rows, for one panel at a time; of several panels proportionally fewer.
const KC: usize = 256;
/// The tallest tile; machines with 16 vector registers use half of it.
const TILE_ROWS_MAX: usize = 12;
/// With fewer rows than this for each thread, threads take columns instead.
const ROWS_PER_THREAD_MIN: usize = 24;
/// The most rows of one task, so that packed rows stay in the second-level cache.
const ROWS_PER_TASK_MAX: usize = 128;
/// Multiply-adds that are worth a task of their own.
const TASK_WORK_MIN: usize = 64 * 1024;

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
    #[cfg(target_arch = "x86_64")]
    rounded: Rounded,
}

/// Multiplies on the rayon pool of the calling thread. Shapes: `a` [m, k], `out` [m, n], `m` given by `out`.
pub(super) fn gemm(arch: Arch, scratch: &mut GemmScratch, a: &[f32], w: &PackedMatrix, out: &mut [f32], start: Start) {
    let m = out.len() / w.n().max(1);
    debug_assert!(a.len() == m * w.k() && out.len() == m * w.n());
    if m == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(bytes) = w.as_bytes() {
        return gemm_int8(&mut scratch.rounded, a, w, bytes, out, start);
    }
    scratch.packed.resize(m * w.k());
    if many_rows(m) {
        by_rows(arch, &mut scratch.packed, a, w, out, start);
    } else {
        by_columns(arch, &mut scratch.packed, a, w, out, start);
    }
}

/// Whether tasks take blocks of rows, and not groups of panels.
pub(super) fn many_rows(m: usize) -> bool {
    m >= ROWS_PER_THREAD_MIN * rayon::current_num_threads()
}

fn by_rows(arch: Arch, packed: &mut [f32], a: &[f32], w: &PackedMatrix, out: &mut [f32], start: Start) {
    let (n, k) = (w.n(), w.k());
    let rows = rows_per_task(out.len() / n);
    let blocks = packed.par_chunks_mut(rows * k).zip(a.par_chunks(rows * k)).zip(out.par_chunks_mut(rows * n));
    blocks.for_each(|((packed, a), out)| {
        arch.dispatch(Pack { a, k, packed });
        let rows = &mut out.chunks_exact_mut(n).collect::<Vec<_>>();
        arch.dispatch(Multiply { packed, w, panels: 0..w.panels(), rows, start });
    });
}

/// Returns how many of `m` rows a task takes.
pub(super) fn rows_per_task(m: usize) -> usize {
    let threads = rayon::current_num_threads();
    m.div_ceil(threads * m.div_ceil(threads * ROWS_PER_TASK_MAX))
}

/// Each task takes a group of panels, and with it a piece of every row of `out`.
fn by_columns(arch: Arch, packed: &mut [f32], a: &[f32], w: &PackedMatrix, out: &mut [f32], start: Start) {
    arch.dispatch(Pack { a, k: w.k(), packed });
    let packed: &[f32] = packed;
    for_panel_groups(w, out, |panels, rows| arch.dispatch(Multiply { packed, w, panels, rows, start }));
}

/// Calls `work` with a group of panels and the pieces of all rows of `out` that belong to them, for each group.
pub(super) fn for_panel_groups(w: &PackedMatrix, out: &mut [f32], work: impl Fn(Range<usize>, &mut [&mut [f32]]) + Sync) {
    let (n, m) = (w.n(), out.len() / w.n());
    let tasks = (m * n * w.k()).div_ceil(TASK_WORK_MIN).min(2 * rayon::current_num_threads());
    let panels = w.panels().div_ceil(tasks);
    let mut groups: Vec<Vec<&mut [f32]>> = (0..w.panels().div_ceil(panels)).map(|_| Vec::with_capacity(m)).collect();
    for row in out.chunks_exact_mut(n) {
        let pieces = row.chunks_mut(panels * w.panel());
        groups.iter_mut().zip(pieces).for_each(|(rows, piece)| rows.push(piece));
    }
    groups.par_iter_mut().enumerate().for_each(|(group, rows)| {
        work(group * panels..((group + 1) * panels).min(w.panels()), rows);
    });
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

pub(super) use with_height;

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

/// Multiplies packed rows with some panels. `rows` are rows of `out` from the first column of the first panel on; they end with
/// the last panel, or within it.
struct Multiply<'a, 'out> {
    packed: &'a [f32],
    w: &'a PackedMatrix,
    panels: Range<usize>,
    rows: &'a mut [&'out mut [f32]],
    start: Start,
}

/// A piece of some panels as f32. On the stack, so that the cache keeps it.
#[repr(align(64))]
struct Piece<S: Simd>([S::f32s; KC * PANEL_VECTORS]);

impl WithSimd for Multiply<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut piece = Piece::<S>([simd.splat_f32s(0.0); KC * PANEL_VECTORS]);
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            // A chain waits for its own sums: few rows need several panels to keep the processor busy.
            panel += match (self.rows.len(), self.panels.end - panel) {
                (1, 4..) => self.panels::<S, 4>(simd, panel, &mut piece),
                (1..=3, 2..) => self.panels::<S, 2>(simd, panel, &mut piece),
                _ => self.panels::<S, 1>(simd, panel, &mut piece),
            };
        }
    }
}

impl Multiply<'_, '_> {
    /// Multiplies with P panels, and returns P.
    #[inline(always)]
    fn panels<S: Simd, const P: usize>(&mut self, simd: S, panel: usize, piece: &mut Piece<S>) -> usize {
        let (w, k) = (self.w, self.w.k());
        let column = (panel - self.panels.start) * w.panel();
        if P > 1 {
            if let Some(panels) = w.panels16::<Half>(panel) {
                return self.few_rows::<S, Half, P>(simd, panels, column);
            }
            if let Some(panels) = w.panels16::<Brain>(panel) {
                return self.few_rows::<S, Brain, P>(simd, panels, column);
            }
        }
        for from in (0..k).step_by(KC / P) {
            let to = (from + KC / P).min(k);
            let b = match w.as_floats(panel, from..to) {
                Some(floats) if P == 1 => S::as_simd_f32s(floats).0,
                _ => {
                    let piece = &mut piece.0[..(to - from) * P * PANEL_VECTORS];
                    w.widen::<S, P>(simd, panel, from..to, piece);
                    piece
                }
            };
            let (b, resume) = (Floats(b), from > 0 || self.start == Start::Out);
            for (first, height) in tiles::<S>(self.rows.len()) {
                let a = &self.packed[first * k + from * height..first * k + to * height];
                let rows = &mut self.rows[first..first + height];
                match P {
                    4 => tile::<S, 1, { 4 * PANEL_VECTORS }>(simd, a, b, rows, column, resume),
                    2 => match height {
                        1 => tile::<S, 1, { 2 * PANEL_VECTORS }>(simd, a, b, rows, column, resume),
                        2 => tile::<S, 2, { 2 * PANEL_VECTORS }>(simd, a, b, rows, column, resume),
                        _ => tile::<S, 3, { 2 * PANEL_VECTORS }>(simd, a, b, rows, column, resume),
                    },
                    _ => with_height!(height, one_panel for S, (simd, a, b, rows, column, resume)),
                }
            }
        }
        P
    }

    /// Multiplies up to three rows with P panels of 16-bit values, and returns P.
    #[inline(always)]
    fn few_rows<S: Simd, F: Format16, const P: usize>(&mut self, simd: S, b: Panels16<'_, F>, column: usize) -> usize {
        let (a, rows, resume) = (self.packed, &mut *self.rows, self.start == Start::Out);
        match (P, rows.len()) {
            (4, _) => tile::<S, 1, { 4 * PANEL_VECTORS }>(simd, a, b, rows, column, resume),
            (_, 1) => tile::<S, 1, { 2 * PANEL_VECTORS }>(simd, a, b, rows, column, resume),
            (_, 2) => tile::<S, 2, { 2 * PANEL_VECTORS }>(simd, a, b, rows, column, resume),
            _ => tile::<S, 3, { 2 * PANEL_VECTORS }>(simd, a, b, rows, column, resume),
        }
        P
    }
}

/// What a tile of activations is multiplied with.
trait Factor<S: Simd>: Copy {
    /// For each step in order: `sums[i][v] += a[step][i] * self[step][v]`, fused.
    fn multiply_add<const M: usize, const V: usize>(
        self,
        simd: S,
        a: &[[f32; M]],
        sums: [[S::f32s; V]; M],
    ) -> [[S::f32s; V]; M];
}

/// `[steps][V vectors]`.
#[derive(Clone, Copy)]
struct Floats<'a, S: Simd>(&'a [S::f32s]);

impl<S: Simd> Factor<S> for Floats<'_, S> {
    #[inline(always)]
    fn multiply_add<const M: usize, const V: usize>(
        self,
        simd: S,
        a: &[[f32; M]],
        sums: [[S::f32s; V]; M],
    ) -> [[S::f32s; V]; M] {
        multiply_add(simd, a, self.0, V, sums)
    }
}

impl<S: Simd, F: Format16> Factor<S> for Panels16<'_, F> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "iterating would make the sums live in memory instead of registers")]
    fn multiply_add<const M: usize, const V: usize>(
        self,
        simd: S,
        a: &[[f32; M]],
        mut sums: [[S::f32s; V]; M],
    ) -> [[S::f32s; V]; M] {
        let words: [&[[S::u32s; PANEL_VECTORS]]; V] = std::array::from_fn(|v| self.words(simd, v / PANEL_VECTORS));
        let (pairs, last) = a.as_chunks::<2>();
        for (j, pair) in pairs.iter().enumerate() {
            for v in 0..V {
                let word = words[v][j][v % PANEL_VECTORS];
                let (even, odd) = (F::even(simd, word), F::odd(simd, word));
                for i in 0..M {
                    sums[i][v] = simd.mul_add_f32s(simd.splat_f32s(pair[0][i]), even, sums[i][v]);
                    sums[i][v] = simd.mul_add_f32s(simd.splat_f32s(pair[1][i]), odd, sums[i][v]);
                }
            }
        }
        if let [last] = last {
            for v in 0..V {
                let even = F::even(simd, words[v][pairs.len()][v % PANEL_VECTORS]);
                for i in 0..M {
                    sums[i][v] = simd.mul_add_f32s(simd.splat_f32s(last[i]), even, sums[i][v]);
                }
            }
        }
        sums
    }
}

#[inline(always)]
fn one_panel<S: Simd, const M: usize>(
    simd: S,
    a: &[f32],
    b: Floats<'_, S>,
    rows: &mut [&mut [f32]],
    column: usize,
    resume: bool,
) {
    tile::<S, M, PANEL_VECTORS>(simd, a, b, rows, column, resume);
}

/// The columns of a tile that goes beyond the last column of `out`.
pub(super) struct Edge([[f32; 4 * PANEL_MAX]; TILE_ROWS_MAX]);

impl Edge {
    /// Copies what there is of the rows from `column` on.
    pub(super) fn of(rows: &mut [&mut [f32]], column: usize) -> Self {
        let mut edge = Edge([[0.0; 4 * PANEL_MAX]; TILE_ROWS_MAX]);
        edge.visible(rows, column).for_each(|(edge, row)| edge.copy_from_slice(row));
        edge
    }

    /// Rows as wide as any tile.
    pub(super) fn rows(&mut self) -> [&mut [f32]; TILE_ROWS_MAX] {
        self.0.each_mut().map(|row| &mut row[..])
    }

    /// Copies back to the rows what belongs to them.
    pub(super) fn put(&mut self, rows: &mut [&mut [f32]], column: usize) {
        self.visible(rows, column).for_each(|(edge, row)| row.copy_from_slice(edge));
    }

    /// What there is of each row from `column` on, beside its place here.
    fn visible<'a, 'out>(
        &'a mut self,
        rows: &'a mut [&'out mut [f32]],
        column: usize,
    ) -> impl Iterator<Item = (&'a mut [f32], &'a mut [f32])> + use<'a, 'out> {
        self.0.iter_mut().zip(rows).map(move |(edge, row)| (&mut edge[..row.len() - column], &mut row[column..]))
    }
}

/// Adds `a` `[steps][M]` times V vectors of `b` to M rows from `column` on, or overwrites them unless `resume`.
#[inline(always)]
fn tile<S: Simd, const M: usize, const V: usize>(
    simd: S,
    a: &[f32],
    b: impl Factor<S>,
    rows: &mut [&mut [f32]],
    column: usize,
    resume: bool,
) {
    let width = V * S::F32_LANES;
    let visible = rows.iter().map(|row| row.len() - column).min().unwrap_or(0);
    if visible < width {
        let mut edge = Edge::of(rows, column);
        full_tile::<S, M, V>(simd, a, b, &mut edge.rows()[..M], 0, resume);
        edge.put(rows, column);
    } else {
        full_tile::<S, M, V>(simd, a, b, rows, column, resume);
    }
}

#[inline(always)]
#[allow(clippy::manual_memcpy, reason = "a slice of the sums would make them live in memory instead of registers")]
fn full_tile<S: Simd, const M: usize, const V: usize>(
    simd: S,
    a: &[f32],
    b: impl Factor<S>,
    rows: &mut [&mut [f32]],
    column: usize,
    resume: bool,
) {
    let mut sums = [[simd.splat_f32s(0.0); V]; M];
    if resume {
        for i in 0..M {
            let row = S::as_simd_f32s(&rows[i][column..][..V * S::F32_LANES]).0;
            for v in 0..V {
                sums[i][v] = row[v];
            }
        }
    }
    let sums = b.multiply_add(simd, a.as_chunks().0, sums);
    for i in 0..M {
        let row = S::as_mut_simd_f32s(&mut rows[i][column..][..V * S::F32_LANES]).0;
        for v in 0..V {
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
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::super::panels::{BLOCK, Encoding};
    use super::super::reference::{Random, close, on_threads};
    use super::*;
    use crate::model::{DType, dequantize};

    /// A random matrix in panels, and as the f32 values it stands for.
    fn packed(arch: Arch, random: &mut Random, dtype: DType, n: usize, k: usize) -> (PackedMatrix, Vec<f32>) {
        let mut matrix = PackedMatrix::zeros(arch, Encoding::of([dtype].into_iter()), n, k);
        let mut values = vec![0.0; n * k];
        for (row, values) in values.chunks_exact_mut(k).enumerate() {
            let bytes = stored(random, dtype, k);
            matrix.set_row(row, dtype, &bytes);
            dequantize(dtype, &bytes, values);
        }
        (matrix, values)
    }

    /// Random values between -1 and 1 as a tensor stores them, small and subnormal ones among them.
    fn stored(random: &mut Random, dtype: DType, k: usize) -> Vec<u8> {
        let mut floats = random.floats(k);
        floats.iter_mut().step_by(7).for_each(|value| *value *= 1e-6);
        let bytes: Vec<u8> = match dtype {
            DType::F32 => floats.iter().flat_map(|value| value.to_le_bytes()).collect(),
            DType::F16 => floats.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            DType::BF16 => floats.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            DType::Q8_0 => {
                let block = |values: &[f32]| {
                    let codes = values.iter().map(|value| (value * 127.0) as i8 as u8);
                    f16::from_f32(values[1] / 127.0).to_le_bytes().into_iter().chain(codes).collect::<Vec<_>>()
                };
                floats.chunks_exact(BLOCK).flat_map(block).collect()
            }
            _ => unreachable!("the tests use no other type"),
        };
        assert_eq!(Some(bytes.len()), dtype.row_bytes(k));
        bytes
    }

    /// The definition: one chain of fused multiply-adds over `k`.
    fn chain(a: &[f32], w: &[f32], start: f32) -> f32 {
        a.iter().zip(w).fold(start, |sum, (a, w)| a.mul_add(*w, sum))
    }

    #[track_caller]
    fn check(arch: Arch, threads: usize, dtype: DType, [m, n, k]: [usize; 3], start: Start) {
        let mut random = Random::new((m * n * k) as u64);
        let (a, old) = (random.floats(m * k), random.floats(m * n));
        let (matrix, w) = packed(arch, &mut random, dtype, n, k);
        let mut out = old.clone();
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
            for (m, n, k) in [(1, 1, 1), (1, 330, 7), (5, 64, 300), (13, 40, 257), (24, 7, 64), (61, 95, 31), (200, 70, 600)]
            {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    check(arch, 2, dtype, [m, n, k], Start::Zero);
                    check(arch, 3, dtype, [m, n, k], Start::Out);
                }
                check(arch, 2, DType::Q8_0, [m, n, k.next_multiple_of(BLOCK)], Start::Out);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_shape_on_any_number_of_threads(m in 1usize..130, n in 1usize..140, k in 1usize..530, threads in 1usize..4) {
            check(Arch::new(), threads, DType::F16, [m, n, k], Start::Zero);
        }

        #[test]
        fn few_rows_of_any_shape_in_blocks(m in 1usize..9, n in 1usize..300, blocks in 1usize..13, threads in 1usize..4) {
            check(Arch::new(), threads, DType::Q8_0, [m, n, blocks * BLOCK], Start::Out);
        }
    }

    #[test]
    fn gathered_rows_give_the_bits_of_the_whole() {
        let (arch, mut random) = (Arch::new(), Random::new(9));
        let (m, n, k) = (5, 100, 160);
        let a = random.floats(m * k);
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8_0] {
            let (matrix, values) = packed(arch, &mut random, dtype, n, k);
            let rows = [99, 0, 31, 32, 31];
            let (mut whole, mut part) = (vec![0.0; m * n], vec![0.0; m * rows.len()]);
            let mut scratch = GemmScratch::default();
            gemm(arch, &mut scratch, &a, &matrix, &mut whole, Start::Zero);
            gemm(arch, &mut scratch, &a, &matrix.gather(arch, rows.into_iter()), &mut part, Start::Zero);
            for (i, part) in part.iter().enumerate() {
                assert_eq!(part.to_bits(), whole[i / rows.len() * n + rows[i % rows.len()]].to_bits());
            }
            let mut row = vec![0.0; k];
            matrix.row(99, &mut row);
            assert_eq!(row, values[99 * k..]);
        }
    }
}
