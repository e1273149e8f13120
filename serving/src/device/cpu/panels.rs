//! Weights packed once for the matrix product.
//!
//! An [n, k] matrix lies in panels `[n / panel][k][panel]`: a panel is two vectors wide, its columns are rows of the matrix, and
//! the last one is padded with zeros. Values keep 16 or 8 bits where the file has no more, since a pass with few tokens takes as
//! long as reading the weights; the product widens them to f32 piece by piece, in a buffer that stays in the first-level cache,
//! or in registers.
//!
//! | stored as | in memory, for each value | as f32 |
//! |---|---|---|
//! | F32 | 4 bytes | itself |
//! | F16, BF16 | 2 bytes | itself |
//! | Q8_0, and Q4_0 and Q5_0 as such | a byte, and a scale for 32 of them | byte times scale, which is exact |
//! | other blocks | 2 bytes, as F16 | rounded to 11 bits, far below what the blocks had rounded away |
//!
//! Values of fewer than 32 bits are fields of words: a word holds two or four consecutive values of one column, the first in its
//! lowest bits. So a vector of words widens to as many vectors by shifts and masks, which every instruction set has. Four bytes of
//! a column in a word are also what instructions for products of bytes take (`gemm_int8`).

use std::marker::PhantomData;
use std::ops::Range;

use archmage::{SimdToken, X64V3Token, X64V4xToken};
use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

use super::aligned::AlignedVec;
use crate::model::{DType, dequantize};

/// Vectors in the width of a panel.
pub(super) const PANEL_VECTORS: usize = 2;
/// The widest panel of any instruction set.
pub(super) const PANEL_MAX: usize = 32;
/// Values of a column that share a scale.
pub(super) const BLOCK: usize = 32;

/// Weights in panels, ready for `gemm`.
#[derive(Debug)]
pub(super) struct PackedMatrix {
    n: usize,
    k: usize,
    panel: usize,
    cells: Cells,
    /// What multiplies bytes here, if products are to do so.
    bytes: Option<ByteProducts>,
}

/// Instructions for products of bytes, shown to be there by a token. Each set takes panels of two of its vectors.
#[derive(Clone, Copy, Debug)]
pub(super) enum ByteProducts {
    /// AVX-512 VNNI: panels of 32 columns.
    Avx512(X64V4xToken),
    /// AVX2: panels of 16 columns.
    Avx2(X64V3Token),
}

/// A matrix of bytes, ready for products of bytes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a> {
    pub(super) products: ByteProducts,
    /// 128 more than each value: `[n / panel][k / 4][panel]` words of four steps each.
    pub(super) codes: &'a [u32],
    /// `[n / panel][k / BLOCK][panel]`.
    pub(super) scales: &'a [f32],
}

/// Some panels of values of 16 bits, from one on.
pub(super) struct Panels16<'a, F> {
    /// `[panels][k / 2][panel]`, `k` rounded up.
    words: &'a [u32],
    k: usize,
    format: PhantomData<F>,
}

/// How the values of a matrix are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Signed bytes with a scale for each block of 32.
    Q8,
}

/// Values in panels.
#[derive(Debug)]
pub(super) enum Cells {
    F32(AlignedVec<f32>),
    F16(AlignedVec<u32>),
    BF16(AlignedVec<u32>),
    /// Codes are 128 more than the signed bytes. Scales are `[n / panel][k / BLOCK][panel]`.
    Q8 {
        codes: AlignedVec<u32>,
        scales: AlignedVec<f32>,
    },
}

impl Encoding {
    /// Returns the smallest encoding that keeps the values of tensors of these types: exactly, save for block types without an
    /// encoding of their own, which become F16.
    pub(super) fn of(types: impl Iterator<Item = DType> + Clone) -> Self {
        let all = |dtype: DType| types.clone().all(|other| other == dtype);
        let any = |dtype: DType| types.clone().any(|other| other == dtype);
        if all(DType::Q8_0) {
            Encoding::Q8
        } else if all(DType::BF16) {
            Encoding::BF16
        } else if any(DType::F32) || any(DType::BF16) {
            Encoding::F32
        } else {
            Encoding::F16
        }
    }
}

impl PackedMatrix {
    /// Returns an [n, k] matrix of zeros. `Encoding::Q8` needs whole blocks in `k`.
    pub(super) fn zeros(arch: Arch, encoding: Encoding, n: usize, k: usize) -> Self {
        let panel = arch.dispatch(PanelWidth);
        let columns = n.next_multiple_of(panel);
        let cells = match encoding {
            Encoding::F32 => Cells::F32(AlignedVec::zeroed(columns * k)),
            Encoding::F16 => Cells::F16(AlignedVec::zeroed(columns * words::<16>(k))),
            Encoding::BF16 => Cells::BF16(AlignedVec::zeroed(columns * words::<16>(k))),
            Encoding::Q8 => {
                debug_assert!(k.is_multiple_of(BLOCK));
                Cells::Q8 {
                    codes: AlignedVec::zeroed(columns * words::<8>(k)),
                    scales: AlignedVec::zeroed(columns * (k / BLOCK)),
                }
            }
        };
        PackedMatrix { n, k, panel, cells, bytes: None }
    }

    /// Lets products take the bytes as they are, and round activations to bytes, where the processor can multiply them and the
    /// matrix is of bytes.
    pub(super) fn multiply_bytes(mut self) -> Self {
        self.bytes = match (&self.cells, self.panel) {
            (Cells::Q8 { .. }, 32) => X64V4xToken::summon().map(ByteProducts::Avx512),
            (Cells::Q8 { .. }, 16) => X64V3Token::summon().map(ByteProducts::Avx2),
            _ => None,
        };
        self
    }

    /// Names what the values are kept in.
    pub(super) fn dtype(&self) -> &'static str {
        match &self.cells {
            Cells::F32(_) => "f32",
            Cells::F16(_) => "f16",
            Cells::BF16(_) => "bf16",
            Cells::Q8 { .. } => "q8_0",
        }
    }

    /// Returns whether products round activations to bytes.
    pub(super) fn multiplies_bytes(&self) -> bool {
        self.bytes.is_some()
    }

    /// Returns the bytes, if products are to take them as they are.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn as_bytes(&self) -> Option<Bytes<'_>> {
        let Cells::Q8 { codes, scales } = &self.cells else { return None };
        self.bytes.map(|products| Bytes { products, codes, scales })
    }

    /// Returns the bytes of main memory that the values take.
    pub(super) fn size_bytes(&self) -> usize {
        match &self.cells {
            Cells::F32(cells) => size_of_val(&cells[..]),
            Cells::F16(cells) | Cells::BF16(cells) => size_of_val(&cells[..]),
            Cells::Q8 { codes, scales } => size_of_val(&codes[..]) + size_of_val(&scales[..]),
        }
    }

    /// Returns the number of output columns.
    pub(super) fn n(&self) -> usize {
        self.n
    }

    /// Returns the length of the sums.
    pub(super) fn k(&self) -> usize {
        self.k
    }

    /// Returns the width of a panel.
    pub(super) fn panel(&self) -> usize {
        self.panel
    }

    /// Returns the number of panels.
    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(self.panel)
    }

    /// Sets row `row` of the matrix to `k` values as a tensor of type `dtype` stores them.
    pub(super) fn set_row(&mut self, row: usize, dtype: DType, bytes: &[u8]) {
        let (column, k) = (Column { row, panel: self.panel }, self.k);
        match (&mut self.cells, dtype) {
            (Cells::F16(cells), DType::F16) | (Cells::BF16(cells), DType::BF16) => {
                column.set_fields::<16>(cells, k, bytes.as_chunks().0.iter().map(|&bits| u16::from_le_bytes(bits).into()));
            }
            (Cells::Q8 { codes, scales }, DType::Q8_0) => {
                let blocks = bytes.as_chunks::<{ BLOCK + 2 }>().0.iter();
                let factors = blocks.clone().map(|block| f16::from_le_bytes([block[0], block[1]]).to_f32());
                column.of_mut(scales, k / BLOCK).zip(factors).for_each(|(scale, factor)| *scale = factor);
                column.set_fields::<8>(
                    codes,
                    k,
                    blocks.flat_map(|block| block[2..].iter().map(|&code| (code ^ 128).into())),
                );
            }
            (cells, dtype) => {
                let mut values = vec![0.0; k];
                dequantize(dtype, bytes, &mut values);
                column.set_values(cells, &values);
            }
        }
    }

    /// Reads row `row` as f32.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let (column, k) = (Column { row, panel: self.panel }, self.k);
        let halves = |cells| column.fields::<16>(cells, k).map(|bits| bits as u16);
        match &self.cells {
            Cells::F32(cells) => out.iter_mut().zip(column.of(cells, k)).for_each(|(out, &value)| *out = value),
            Cells::F16(cells) => {
                out.iter_mut().zip(halves(cells)).for_each(|(out, bits)| *out = f16::from_bits(bits).to_f32());
            }
            Cells::BF16(cells) => {
                out.iter_mut().zip(halves(cells)).for_each(|(out, bits)| *out = bf16::from_bits(bits).to_f32());
            }
            Cells::Q8 { codes, scales } => {
                let mut codes = column.fields::<8>(codes, k);
                for (out, &scale) in out.chunks_mut(BLOCK).zip(column.of(scales, k / BLOCK)) {
                    out.iter_mut().zip(codes.by_ref()).for_each(|(out, code)| *out = (code as f32 - 128.0) * scale);
                }
            }
        }
    }

    /// Returns a matrix of the rows named, in their order, repetitions included.
    pub(super) fn gather(&self, arch: Arch, rows: impl ExactSizeIterator<Item = usize>) -> PackedMatrix {
        let encoding = match self.cells {
            Cells::F32(_) => Encoding::F32,
            Cells::F16(_) => Encoding::F16,
            Cells::BF16(_) => Encoding::BF16,
            Cells::Q8 { .. } => Encoding::Q8,
        };
        let (k, panel) = (self.k, self.panel);
        let mut gathered = PackedMatrix { bytes: self.bytes, ..PackedMatrix::zeros(arch, encoding, rows.len(), k) };
        for (to, from) in rows.enumerate() {
            let (to, from) = (Column { row: to, panel }, Column { row: from, panel });
            match (&mut gathered.cells, &self.cells) {
                (Cells::F32(target), Cells::F32(source)) => to.copy(target, from, source, k),
                (Cells::F16(target), Cells::F16(source)) | (Cells::BF16(target), Cells::BF16(source)) => {
                    to.copy(target, from, source, words::<16>(k));
                }
                (Cells::Q8 { codes, scales }, Cells::Q8 { codes: source, scales: source_scales }) => {
                    to.copy(codes, from, source, words::<8>(k));
                    to.copy(scales, from, source_scales, k / BLOCK);
                }
                _ => unreachable!("both matrices have the same encoding"),
            }
        }
        gathered
    }

    /// Writes `steps` of P panels from `panel` on as f32 into rows of `out`, `[steps][P][panel]`. `steps` begins at a multiple of
    /// a block.
    #[inline(always)]
    pub(super) fn widen<S: Simd, const P: usize>(&self, simd: S, panel: usize, steps: Range<usize>, out: &mut [S::f32s]) {
        let widener = Widener { simd, k: self.k, steps };
        for p in 0..P {
            let (panel, vectors) = (panel + p, p * PANEL_VECTORS..(p + 1) * PANEL_VECTORS);
            let stride = P * PANEL_VECTORS;
            match &self.cells {
                Cells::F32(values) => widener.floats(values, panel, out, stride, vectors),
                Cells::F16(words) => widener.halves::<Half>(words, panel, out, stride, vectors),
                Cells::BF16(words) => widener.halves::<Brain>(words, panel, out, stride, vectors),
                Cells::Q8 { codes, scales } => widener.blocks(codes, scales, panel, out, stride, vectors),
            }
        }
    }

    /// Returns the panels from `panel` on, if their values are of this format.
    #[inline(always)]
    pub(super) fn panels16<F: Format16>(&self, panel: usize) -> Option<Panels16<'_, F>> {
        let words = &F::of(&self.cells)?[panel * words::<16>(self.k) * self.panel..];
        Some(Panels16 { words, k: self.k, format: PhantomData })
    }

    /// Returns `steps` of a panel, where they lie as f32.
    #[inline(always)]
    pub(super) fn as_floats(&self, panel: usize, steps: Range<usize>) -> Option<&[f32]> {
        let Cells::F32(values) = &self.cells else { return None };
        Some(&values[(panel * self.k + steps.start) * self.panel..(panel * self.k + steps.end) * self.panel])
    }
}

impl<F> Clone for Panels16<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Panels16<'_, F> {}

impl<'a, F: Format16> Panels16<'a, F> {
    /// Returns a panel's words, two steps each.
    #[inline(always)]
    pub(super) fn words<S: Simd>(self, _: S, panel: usize) -> &'a [[S::u32s; PANEL_VECTORS]] {
        let len = words::<16>(self.k);
        let panels = S::as_simd_u32s(self.words).0.as_chunks().0;
        &panels[panel * len..(panel + 1) * len]
    }
}

/// Words of `len` fields.
const fn words<const BITS: usize>(len: usize) -> usize {
    len.div_ceil(32 / BITS)
}

/// Where the values of a row of the matrix lie.
#[derive(Clone, Copy)]
struct Column {
    row: usize,
    panel: usize,
}

impl Column {
    /// The cells of the row, which has `len` of them.
    fn of<T>(self, cells: &[T], len: usize) -> impl Iterator<Item = &T> {
        cells[self.first(len)..].iter().step_by(self.panel).take(len)
    }

    fn of_mut<T>(self, cells: &mut [T], len: usize) -> impl Iterator<Item = &mut T> {
        cells[self.first(len)..].iter_mut().step_by(self.panel).take(len)
    }

    fn first(self, len: usize) -> usize {
        self.row / self.panel * len * self.panel + self.row % self.panel
    }

    fn copy<T: Copy>(self, cells: &mut [T], from: Column, source: &[T], len: usize) {
        self.of_mut(cells, len).zip(from.of(source, len)).for_each(|(cell, &value)| *cell = value);
    }

    /// The `len` fields of the row.
    fn fields<const BITS: usize>(self, cells: &[u32], len: usize) -> impl Iterator<Item = u32> {
        let of_word = |&word: &u32| (0..32 / BITS).map(move |i| word >> (i * BITS) & ((1 << BITS) - 1));
        self.of(cells, words::<BITS>(len)).flat_map(of_word).take(len)
    }

    fn set_fields<const BITS: usize>(self, cells: &mut [u32], len: usize, mut fields: impl Iterator<Item = u32>) {
        for word in self.of_mut(cells, words::<BITS>(len)) {
            *word = fields.by_ref().take(32 / BITS).zip(0..).fold(0, |word, (field, i)| word | field << (i * BITS));
        }
    }

    /// Stores floats; never asked of bytes, which are made from blocks only.
    fn set_values(self, cells: &mut Cells, values: &[f32]) {
        let len = values.len();
        match cells {
            Cells::F32(cells) => self.of_mut(cells, len).zip(values).for_each(|(cell, &value)| *cell = value),
            Cells::F16(cells) => {
                self.set_fields::<16>(cells, len, values.iter().map(|&value| f16::from_f32(value).to_bits().into()));
            }
            Cells::BF16(_) | Cells::Q8 { .. } => unreachable!("`Encoding::of` keeps these for rows of their own type"),
        }
    }
}

/// Widens some steps of panels of a matrix with `k` steps, each into certain `vectors` of rows of `out`, which are `stride` vectors
/// apart.
struct Widener<S> {
    simd: S,
    k: usize,
    steps: Range<usize>,
}

impl<S: Simd> Widener<S> {
    /// Where the words of one panel lie that hold the steps.
    #[inline(always)]
    fn words<T>(&self, cells: &[T], panel: usize, steps_per_word: usize) -> Range<usize> {
        let lanes = PANEL_VECTORS * S::F32_LANES;
        let first = panel * self.k.div_ceil(steps_per_word);
        let range = self.steps.start / steps_per_word..self.steps.end.div_ceil(steps_per_word);
        debug_assert!((first + range.end) * lanes <= cells.len());
        (first + range.start) * lanes..(first + range.end) * lanes
    }

    #[inline(always)]
    fn floats(&self, values: &[f32], panel: usize, out: &mut [S::f32s], stride: usize, vectors: Range<usize>) {
        let lanes = PANEL_VECTORS * S::F32_LANES;
        let cells = (panel * self.k + self.steps.start) * lanes..(panel * self.k + self.steps.end) * lanes;
        let cells = S::as_simd_f32s(&values[cells]).0;
        for (out, cells) in out.chunks_exact_mut(stride).zip(cells.chunks_exact(PANEL_VECTORS)) {
            out[vectors.clone()].copy_from_slice(cells);
        }
    }

    /// Values of 16 bits, two steps in a word.
    #[inline(always)]
    fn halves<F: Format16>(&self, cells: &[u32], panel: usize, out: &mut [S::f32s], stride: usize, vectors: Range<usize>) {
        let words = S::as_simd_u32s(&cells[self.words(cells, panel, 2)]).0;
        for (out, words) in out.chunks_mut(2 * stride).zip(words.chunks_exact(PANEL_VECTORS)) {
            for (v, &word) in vectors.clone().zip(words) {
                out[v] = F::even(self.simd, word);
                if let Some(out) = out.get_mut(stride + v) {
                    *out = F::odd(self.simd, word);
                }
            }
        }
    }

    /// Codes, four steps in a word, with scales for blocks.
    #[inline(always)]
    fn blocks(
        &self,
        codes: &[u32],
        scales: &[f32],
        panel: usize,
        out: &mut [S::f32s],
        stride: usize,
        vectors: Range<usize>,
    ) {
        let simd = self.simd;
        let scales = S::as_simd_f32s(&scales[self.words(scales, panel, BLOCK)]).0;
        let codes = S::as_simd_u32s(&codes[self.words(codes, panel, 4)]).0;
        let blocks = codes.chunks_exact(BLOCK / 4 * PANEL_VECTORS).zip(scales.chunks_exact(PANEL_VECTORS));
        for (out, (codes, factors)) in out.chunks_exact_mut(BLOCK * stride).zip(blocks) {
            let mut offsets = [simd.splat_f32s(0.0); PANEL_VECTORS];
            for v in 0..PANEL_VECTORS {
                offsets[v] = simd.mul_f32s(factors[v], simd.splat_f32s(-CODE_OFFSET));
            }
            for (out, words) in out.chunks_exact_mut(4 * stride).zip(codes.chunks_exact(PANEL_VECTORS)) {
                for v in 0..PANEL_VECTORS {
                    let fields = spread_codes(simd, words[v]);
                    for (j, &field) in fields.iter().enumerate() {
                        out[j * stride + vectors.start + v] = simd.mul_add_f32s(field, factors[v], offsets[v]);
                    }
                }
            }
        }
    }
}

/// What `spread_codes` gives for code 128, which stands for zero.
const CODE_OFFSET: f32 = 32768.0 + 128.0;

/// The four codes of each word, each as 32768 plus the code: a code is put into the fraction of that power of two. A multiply-add
/// with scale and offset then gives code times scale exactly, since all three have few bits.
#[inline(always)]
fn spread_codes<S: Simd>(simd: S, words: S::u32s) -> [S::f32s; 4] {
    let (byte, short) = (simd.splat_u32s(8), simd.splat_u32s(16));
    let (mask, power) = (simd.splat_u32s(0xff00), simd.splat_u32s(32768.0_f32.to_bits()));
    let place = |words| simd.transmute_f32s_u32s(simd.or_u32s(simd.and_u32s(words, mask), power));
    [
        place(simd.wrapping_dyn_shl_u32s(words, byte)),
        place(words),
        place(simd.wrapping_dyn_shr_u32s(words, byte)),
        place(simd.wrapping_dyn_shr_u32s(words, short)),
    ]
}

/// How two values lie in a word. A trait and not a function that is passed on: calls through one are compiled without the
/// processor's vector instructions, and took forty times as long.
pub(super) trait Format16 {
    /// Returns the words of cells of this format.
    fn of(cells: &Cells) -> Option<&[u32]>;

    /// Widens the low value of each word.
    fn even<S: Simd>(simd: S, words: S::u32s) -> S::f32s;

    /// Widens the high value of each word.
    fn odd<S: Simd>(simd: S, words: S::u32s) -> S::f32s;
}

/// IEEE half precision.
pub(super) struct Half;

/// bfloat16.
pub(super) struct Brain;

impl Format16 for Half {
    fn of(cells: &Cells) -> Option<&[u32]> {
        if let Cells::F16(words) = cells { Some(words) } else { None }
    }

    #[inline(always)]
    fn even<S: Simd>(simd: S, words: S::u32s) -> S::f32s {
        Half::odd(simd, simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16)))
    }

    /// Finite values: exponent and fraction are put in place, then the exponent's bias is corrected by a product, which is exact
    /// for subnormal numbers too.
    #[inline(always)]
    fn odd<S: Simd>(simd: S, words: S::u32s) -> S::f32s {
        let sign = simd.and_u32s(words, simd.splat_u32s(0x8000_0000));
        let rest = simd.and_u32s(simd.wrapping_dyn_shr_u32s(words, simd.splat_u32s(3)), simd.splat_u32s(0x0fff_e000));
        let bias = simd.splat_f32s(f32::from_bits((127 + 112) << 23));
        simd.mul_f32s(simd.transmute_f32s_u32s(simd.or_u32s(sign, rest)), bias)
    }
}

impl Format16 for Brain {
    fn of(cells: &Cells) -> Option<&[u32]> {
        if let Cells::BF16(words) = cells { Some(words) } else { None }
    }

    #[inline(always)]
    fn even<S: Simd>(simd: S, words: S::u32s) -> S::f32s {
        simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16)))
    }

    #[inline(always)]
    fn odd<S: Simd>(simd: S, words: S::u32s) -> S::f32s {
        simd.transmute_f32s_u32s(simd.and_u32s(words, simd.splat_u32s(0xffff_0000)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_16_bits_widens_exactly() {
        let simd = pulp::Scalar;
        for bits in 0..=u16::MAX {
            let words = u32::from(bits) << 16 | u32::from(!bits);
            for (bits, f16s, bf16s) in [
                (bits, Half::odd(simd, words), Brain::odd(simd, words)),
                (!bits, Half::even(simd, words), Brain::even(simd, words)),
            ] {
                if f16::from_bits(bits).is_finite() {
                    assert_eq!(f16s.to_bits(), f16::from_bits(bits).to_f32().to_bits());
                }
                if !bf16::from_bits(bits).is_nan() {
                    assert_eq!(bf16s.to_bits(), bf16::from_bits(bits).to_f32().to_bits());
                }
            }
        }
    }

    #[test]
    fn a_matrix_of_several_types_keeps_what_all_of_them_have() {
        let check = |types: &[DType], expected| assert_eq!(Encoding::of(types.iter().copied()), expected);
        check(&[DType::Q8_0, DType::Q8_0], Encoding::Q8);
        check(&[DType::BF16], Encoding::BF16);
        check(&[DType::F16, DType::F16], Encoding::F16);
        check(&[DType::F16, DType::Q8_0], Encoding::F16);
        check(&[DType::F16, DType::BF16], Encoding::F32);
        check(&[DType::Q8_0, DType::F32], Encoding::F32);
        check(&[DType::Q4K, DType::Q6K], Encoding::F16);
    }

    #[test]
    fn rows_of_other_types_are_converted() {
        let mut block = f16::from_f32(0.5).to_le_bytes().to_vec();
        block.extend((0..32).map(|i| (i - 16) as u8));
        let values: Vec<f32> = (0..32).map(|i| 0.5 * (i as f32 - 16.0)).collect();
        for encoding in [Encoding::F32, Encoding::F16, Encoding::Q8] {
            let mut matrix = PackedMatrix::zeros(Arch::new(), encoding, 40, 32);
            matrix.set_row(35, DType::Q8_0, &block);
            let mut row = vec![1.0; 32];
            matrix.row(35, &mut row);
            assert_eq!(row, values, "{encoding:?}");
            matrix.row(34, &mut row);
            assert!(row.iter().all(|&value| value == 0.0));
        }
    }
}
