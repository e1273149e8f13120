//! Weights packed once for the matrix product.
//!
//! An [n, k] matrix lies in panels `[n / panel][k][panel]`: a panel is two vectors wide, its columns are rows of the matrix, and
//! the last one is padded with zeros. Values keep 16 or 8 bits where the file has no more, since a pass with few tokens takes as
//! long as reading the weights; the product widens them to f32 piece by piece, in a buffer that stays in the first-level cache.
//!
//! | stored as | in memory, for each value | as f32 |
//! |---|---|---|
//! | F32 | 4 bytes | itself |
//! | F16, BF16 | 2 bytes | itself |
//! | Q8_0 | a signed byte, and an f16 scale for 32 of them | byte times scale, which is exact |
//! | other blocks | 2 bytes, as F16 | rounded to 11 bits, far below what the blocks had rounded away |

use std::ops::Range;

use half::f16;
use pulp::{Arch, Simd, WithSimd};

use super::aligned::AlignedVec;
use super::weights::decode;
use crate::model::DType;

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

/// Values in panels, 16-bit floats as their bits.
#[derive(Debug)]
enum Cells {
    F32(AlignedVec<f32>),
    F16(AlignedVec<u16>),
    BF16(AlignedVec<u16>),
    /// Scales lie in panels `[n / panel][k / BLOCK][panel]`.
    Q8 {
        codes: AlignedVec<i8>,
        scales: AlignedVec<u16>,
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
        let len = n.next_multiple_of(panel) * k;
        let cells = match encoding {
            Encoding::F32 => Cells::F32(AlignedVec::zeroed(len)),
            Encoding::F16 => Cells::F16(AlignedVec::zeroed(len)),
            Encoding::BF16 => Cells::BF16(AlignedVec::zeroed(len)),
            Encoding::Q8 => {
                debug_assert!(k.is_multiple_of(BLOCK));
                Cells::Q8 { codes: AlignedVec::zeroed(len), scales: AlignedVec::zeroed(len / BLOCK) }
            }
        };
        PackedMatrix { n, k, panel, cells }
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
                column.set(cells, k, bytes.as_chunks().0.iter().map(|&bits| u16::from_le_bytes(bits)));
            }
            (Cells::Q8 { codes, scales }, DType::Q8_0) => {
                let blocks = bytes.as_chunks::<{ BLOCK + 2 }>().0.iter();
                column.set(scales, k / BLOCK, blocks.clone().map(|block| u16::from_le_bytes([block[0], block[1]])));
                column.set(codes, k, blocks.flat_map(|block| block[2..].iter().map(|&code| code as i8)));
            }
            (cells, dtype) => {
                let mut values = vec![0.0; k];
                decode(dtype, bytes, &mut values);
                column.set_values(cells, &values);
            }
        }
    }

    /// Reads row `row` as f32.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let (column, k) = (Column { row, panel: self.panel }, self.k);
        match &self.cells {
            Cells::F32(cells) => out.iter_mut().zip(column.of(cells, k)).for_each(|(out, &value)| *out = value),
            Cells::F16(cells) => out.iter_mut().zip(column.of(cells, k)).for_each(|(out, &bits)| *out = from_f16(bits)),
            Cells::BF16(cells) => out.iter_mut().zip(column.of(cells, k)).for_each(|(out, &bits)| *out = from_bf16(bits)),
            Cells::Q8 { codes, scales } => {
                let mut codes = column.of(codes, k);
                for (out, &scale) in out.chunks_mut(BLOCK).zip(column.of(scales, k / BLOCK)) {
                    let scale = from_f16(scale);
                    out.iter_mut().zip(codes.by_ref()).for_each(|(out, &code)| *out = from_code(code) * scale);
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
        let mut gathered = PackedMatrix::zeros(arch, encoding, rows.len(), k);
        for (to, from) in rows.enumerate() {
            let (to, from) = (Column { row: to, panel }, Column { row: from, panel });
            match (&mut gathered.cells, &self.cells) {
                (Cells::F32(target), Cells::F32(source)) => to.set(target, k, from.of(source, k).copied()),
                (Cells::F16(target), Cells::F16(source)) | (Cells::BF16(target), Cells::BF16(source)) => {
                    to.set(target, k, from.of(source, k).copied());
                }
                (Cells::Q8 { codes, scales }, Cells::Q8 { codes: source, scales: source_scales }) => {
                    to.set(codes, k, from.of(source, k).copied());
                    to.set(scales, k / BLOCK, from.of(source_scales, k / BLOCK).copied());
                }
                _ => unreachable!("both matrices have the same encoding"),
            }
        }
        gathered
    }

    /// Writes `steps` of P panels from `panel` on as f32 into rows of `out`, `[steps][P][panel]`. `steps` begins with a block.
    ///
    /// Plain loops: inlined into a dispatched function, they become vector code.
    #[inline(always)]
    pub(super) fn widen<S: Simd, const P: usize>(&self, panel: usize, steps: Range<usize>, out: &mut [f32]) {
        let lanes = PANEL_VECTORS * S::F32_LANES;
        for p in 0..P {
            let cells = ((panel + p) * self.k + steps.start) * lanes..((panel + p) * self.k + steps.end) * lanes;
            match &self.cells {
                Cells::F32(values) => widen_panel::<S, _, P>(&values[cells], p, out, itself),
                Cells::F16(bits) => widen_panel::<S, _, P>(&bits[cells], p, out, from_f16),
                Cells::BF16(bits) => widen_panel::<S, _, P>(&bits[cells], p, out, from_bf16),
                Cells::Q8 { codes, scales } => {
                    let scales = &scales[cells.start / BLOCK..cells.end / BLOCK];
                    widen_blocks::<S, P>(&codes[cells], scales, p, out);
                }
            }
        }
    }

    /// Returns `steps` of a panel, where they lie as f32.
    #[inline(always)]
    pub(super) fn as_floats(&self, panel: usize, steps: Range<usize>) -> Option<&[f32]> {
        let Cells::F32(values) = &self.cells else { return None };
        Some(&values[(panel * self.k + steps.start) * self.panel..(panel * self.k + steps.end) * self.panel])
    }
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
        let first = self.row / self.panel * len * self.panel + self.row % self.panel;
        cells[first..].iter().step_by(self.panel).take(len)
    }

    fn set<T>(self, cells: &mut [T], len: usize, values: impl Iterator<Item = T>) {
        let first = self.row / self.panel * len * self.panel + self.row % self.panel;
        for (cell, value) in cells[first..].iter_mut().step_by(self.panel).take(len).zip(values) {
            *cell = value;
        }
    }

    /// Stores floats; never asked of bytes, which are made from blocks only.
    fn set_values(self, cells: &mut Cells, values: &[f32]) {
        match cells {
            Cells::F32(cells) => self.set(cells, values.len(), values.iter().copied()),
            Cells::F16(cells) => self.set(cells, values.len(), values.iter().map(|&value| f16::from_f32(value).to_bits())),
            Cells::BF16(_) | Cells::Q8 { .. } => unreachable!("`Encoding::of` keeps these for rows of their own type"),
        }
    }
}

#[inline(always)]
fn itself(value: f32) -> f32 {
    value
}

/// Widens the bits of a finite half: exponent and fraction are put in place, then the exponent's bias is corrected by a product,
/// which is exact for subnormal numbers too.
#[inline(always)]
fn from_f16(bits: u16) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + 112) << 23);
    f32::from_bits((i32::from(bits as i16) << 13) as u32 & 0x8fff_e000) * BIAS
}

#[inline(always)]
fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[inline(always)]
fn from_code(code: i8) -> f32 {
    f32::from(code)
}

#[inline(always)]
fn widen_panel<S: Simd, T: Copy, const P: usize>(cells: &[T], p: usize, out: &mut [f32], value: impl Fn(T) -> f32) {
    let lanes = PANEL_VECTORS * S::F32_LANES;
    for (out, cells) in out.chunks_exact_mut(P * lanes).zip(cells.chunks_exact(lanes)) {
        for (out, &cell) in out[p * lanes..][..lanes].iter_mut().zip(cells) {
            *out = value(cell);
        }
    }
}

#[inline(always)]
fn widen_blocks<S: Simd, const P: usize>(codes: &[i8], scales: &[u16], p: usize, out: &mut [f32]) {
    let lanes = PANEL_VECTORS * S::F32_LANES;
    let blocks = codes.chunks_exact(BLOCK * lanes).zip(scales.chunks_exact(lanes));
    for (out, (codes, bits)) in out.chunks_exact_mut(BLOCK * P * lanes).zip(blocks) {
        let mut scales = [0.0; PANEL_MAX];
        for (scale, &bits) in scales.iter_mut().zip(bits) {
            *scale = from_f16(bits);
        }
        for (out, codes) in out.chunks_exact_mut(P * lanes).zip(codes.chunks_exact(lanes)) {
            for ((out, &code), scale) in out[p * lanes..][..lanes].iter_mut().zip(codes).zip(&scales[..lanes]) {
                *out = from_code(code) * scale;
            }
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
