//! Blocks of quantised values: their geometry, and their way back to f32.
//!
//! The types are those of GGUF files. A block holds values that follow each other along the innermost dimension. A block of 32
//! has one scale; a block of 256, the K types, has a scale of scales and small integers for each 16 or 32 values. All
//! arithmetic is in f32, each value as one product, or one product and one sum, so that any device can repeat it bit by bit.

use half::{bf16, f16};

use super::DType;

/// Values in a block of a K type.
const SUPER_BLOCK: usize = 256;

impl DType {
    /// Returns the number of values in a block; 1 where values stand alone.
    pub const fn block_values(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => 32,
            DType::Q2K | DType::Q3K | DType::Q4K | DType::Q5K | DType::Q6K => SUPER_BLOCK,
        }
    }

    /// Returns the bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Q8_0 => 34,
            DType::Q4_0 => 18,
            DType::Q4_1 => 20,
            DType::Q5_0 => 22,
            DType::Q5_1 => 24,
            DType::Q2K => 84,
            DType::Q3K => 110,
            DType::Q4K => 144,
            DType::Q5K => 176,
            DType::Q6K => 210,
        }
    }

    /// Returns the bytes of a row of `width` values, or none if such a row is not of whole blocks.
    pub const fn row_bytes(self, width: usize) -> Option<usize> {
        if width.is_multiple_of(self.block_values()) {
            (width / self.block_values()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }
}

/// Decodes stored values into `out`; both are whole blocks of the same number.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(dtype.row_bytes(out.len()), Some(bytes.len()));
    match dtype {
        DType::F32 => each(bytes, out, |bytes: &[u8; 4], [out]: &mut [f32; 1]| *out = f32::from_le_bytes(*bytes)),
        DType::F16 => each(bytes, out, |bytes: &[u8; 2], [out]: &mut [f32; 1]| *out = half(bytes)),
        DType::BF16 => {
            each(bytes, out, |bytes: &[u8; 2], [out]: &mut [f32; 1]| *out = bf16::from_le_bytes(*bytes).to_f32());
        }
        DType::Q8_0 => each(bytes, out, q8_0),
        DType::Q4_0 => each(bytes, out, q4_0),
        DType::Q4_1 => each(bytes, out, q4_1),
        DType::Q5_0 => each(bytes, out, q5_0),
        DType::Q5_1 => each(bytes, out, q5_1),
        DType::Q2K => each(bytes, out, q2_k),
        DType::Q3K => each(bytes, out, q3_k),
        DType::Q4K => each(bytes, out, q4_k),
        DType::Q5K => each(bytes, out, q5_k),
        DType::Q6K => each(bytes, out, q6_k),
    }
}

/// Rewrites blocks of a scale and 4 or 5 bits as those of `DType::Q8_0`, which hold the same values. `None` for other types.
pub fn as_q8_0(dtype: DType, bytes: &[u8]) -> Option<Vec<u8>> {
    let code: fn(&[u8], usize) -> i8 = match dtype {
        DType::Q4_0 => q4_0_code,
        DType::Q5_0 => q5_0_code,
        _ => return None,
    };
    let block = |block: &[u8]| {
        let mut wide = [0; DType::Q8_0.block_bytes()];
        wide[..2].copy_from_slice(&block[..2]);
        wide[2..].iter_mut().enumerate().for_each(|(i, byte)| *byte = code(block, i) as u8);
        wide
    };
    Some(bytes.chunks_exact(dtype.block_bytes()).flat_map(block).collect())
}

/// Runs `decode` over blocks of `BYTES` bytes and `VALUES` values.
fn each<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0).for_each(|(block, out)| decode(block, out));
}

/// Reads the f16 at the start of `bytes`.
fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// An f16 scale and 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half(block);
    block[2..].iter().zip(out).for_each(|(&quant, out)| *out = scale * f32::from(quant as i8));
}

/// An f16 scale and 32 nibbles, of which 8 stands for zero; the low nibbles come first.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half(block);
    out.iter_mut().enumerate().for_each(|(i, out)| *out = scale * f32::from(q4_0_code(block, i)));
}

fn q4_0_code(block: &[u8], i: usize) -> i8 {
    nibble(&block[2..], i) as i8 - 8
}

/// An f16 scale, an f16 minimum and 32 nibbles.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half(block), half(&block[2..]));
    for (i, out) in out.iter_mut().enumerate() {
        *out = scale * f32::from(nibble(&block[4..], i)) + minimum;
    }
}

/// An f16 scale, 32 fifth bits, and 32 nibbles; 16 stands for zero.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half(block);
    out.iter_mut().enumerate().for_each(|(i, out)| *out = scale * f32::from(q5_0_code(block, i)));
}

fn q5_0_code(block: &[u8], i: usize) -> i8 {
    (nibble(&block[6..], i) | bit(&block[2..6], i) << 4) as i8 - 16
}

/// An f16 scale, an f16 minimum, 32 fifth bits, and 32 nibbles.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (half(block), half(&block[2..]));
    for (i, out) in out.iter_mut().enumerate() {
        let quant = nibble(&block[8..], i) | bit(&block[4..8], i) << 4;
        *out = scale * f32::from(quant) + minimum;
    }
}

/// Nibble `i` of 32 in 16 bytes: 0 to 15 are the low ones.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (4 * (i / 16)) & 0xf
}

/// Bit `i` of a little-endian word.
fn bit(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 8] >> (i % 8) & 1
}

/// 16 bytes with a scale and a minimum of 4 bits each, 256 values of 2 bits, and f16 scales of both.
fn q2_k(block: &[u8; 84], out: &mut [f32; SUPER_BLOCK]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (scale, minimum) = (half(&block[80..]), half(&block[82..]));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, minimum) = (scale * f32::from(scales[group] & 0xf), minimum * f32::from(scales[group] >> 4));
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(crumb(quants, 16 * group + i)) - minimum;
        }
    }
}

/// 256 third bits, 256 values of 2 bits, 16 scales of 6 bits, and an f16 scale of them. A third bit of 0 takes off 4.
fn q3_k(block: &[u8; 110], out: &mut [f32; SUPER_BLOCK]) {
    let (high, quants, scales, scale) = (&block[..32], &block[32..96], &block[96..108], half(&block[108..]));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low_bits = scales[group % 8] >> (4 * (group / 8)) & 0xf;
        let high_bits = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let scale = scale * f32::from((low_bits | high_bits << 4) as i8 - 32);
        for (i, out) in out.iter_mut().enumerate() {
            let value = 16 * group + i;
            let third = high[value % 32] >> (value / 32) & 1;
            *out = scale * f32::from(crumb(quants, value) as i8 - 4 * (1 - third) as i8);
        }
    }
}

/// Two bits of value `i`: each 32 bytes hold 128 values, the lowest bits of all bytes first.
fn crumb(bytes: &[u8], i: usize) -> u8 {
    bytes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3
}

/// f16 scales of scales and of minima, 8 of each in 6 bits, and 256 nibbles.
fn q4_k(block: &[u8; 144], out: &mut [f32; SUPER_BLOCK]) {
    let (scale, minimum, scales, quants) = (half(block), half(&block[2..]), &block[4..16], &block[16..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (group_scale, group_minimum) = scale_and_minimum(scales, group);
        let (scale, minimum) = (scale * f32::from(group_scale), minimum * f32::from(group_minimum));
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(half_row_nibble(quants, group, i)) - minimum;
        }
    }
}

/// As [`q4_k`], with 256 fifth bits before the nibbles.
fn q5_k(block: &[u8; 176], out: &mut [f32; SUPER_BLOCK]) {
    let (scale, minimum) = (half(block), half(&block[2..]));
    let (scales, high, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (group_scale, group_minimum) = scale_and_minimum(scales, group);
        let (scale, minimum) = (scale * f32::from(group_scale), minimum * f32::from(group_minimum));
        for (i, out) in out.iter_mut().enumerate() {
            let quant = half_row_nibble(quants, group, i) | (high[i] >> group & 1) << 4;
            *out = scale * f32::from(quant) - minimum;
        }
    }
}

/// Value `i` of group `group`: each 32 bytes hold two groups, the low nibbles first.
fn half_row_nibble(bytes: &[u8], group: usize, i: usize) -> u8 {
    bytes[32 * (group / 2) + i] >> (4 * (group % 2)) & 0xf
}

/// Unpacks the scale and the minimum of a group. In 12 bytes: 6 bits of four scales, 6 bits of four minima, and nibbles of the
/// other four of each, whose upper bits are those left over before.
fn scale_and_minimum(packed: &[u8], group: usize) -> (u8, u8) {
    let i = group % 4;
    if group < 4 {
        (packed[i] & 0x3f, packed[4 + i] & 0x3f)
    } else {
        (packed[8 + i] & 0xf | packed[i] >> 2 & 0x30, packed[8 + i] >> 4 | packed[4 + i] >> 2 & 0x30)
    }
}

/// 256 nibbles, 256 values of 2 bits above them, 16 signed scales, and an f16 scale of them; 32 stands for zero.
fn q6_k(block: &[u8; 210], out: &mut [f32; SUPER_BLOCK]) {
    let (low, high, scales, scale) = (&block[..128], &block[128..192], &block[192..208], half(&block[208..]));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = scale * f32::from(scales[group] as i8);
        for (i, out) in out.iter_mut().enumerate() {
            let value = 16 * group + i;
            let nibble = low[64 * (value / 128) + value % 64] >> (4 * (value / 64 % 2)) & 0xf;
            *out = scale * f32::from((nibble | crumb(high, value) << 4) as i8 - 32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(DType::F16.row_bytes(3), Some(6));
        assert_eq!(DType::Q4_0.row_bytes(64), Some(36));
        assert_eq!(DType::Q4_0.row_bytes(48), None);
        assert_eq!(DType::Q6K.row_bytes(512), Some(420));
        assert_eq!(DType::Q6K.row_bytes(32), None);
        assert_eq!(DType::F32.row_bytes(usize::MAX), None);
    }

    #[test]
    fn values_that_stand_alone() {
        let mut out = [0.0; 2];
        dequantize(DType::F32, &[0, 0, 192, 63, 0, 0, 0, 192], &mut out);
        assert_eq!(out, [1.5, -2.0]);
        dequantize(DType::F16, &[0, 62, 0, 192], &mut out);
        assert_eq!(out, [1.5, -2.0]);
        dequantize(DType::BF16, &[192, 63, 0, 192], &mut out);
        assert_eq!(out, [1.5, -2.0]);
    }

    #[test]
    fn eight_bits() {
        let mut block = vec![0, 56];
        block.extend((0..32).map(|i| (i as i8 - 16) as u8));
        let mut out = [0.0; 32];
        dequantize(DType::Q8_0, &block, &mut out);
        assert!(out.iter().enumerate().all(|(i, &x)| x == 0.5 * (i as f32 - 16.0)));
    }

    #[test]
    fn four_and_five_bits_as_eight() {
        for dtype in [DType::Q4_0, DType::Q5_0] {
            let bytes: Vec<u8> = (0..2 * dtype.block_bytes())
                .map(|i| if i % dtype.block_bytes() == 1 { 56 } else { (i * 37) as u8 })
                .collect();
            let (mut values, mut widened) = ([0.0; 64], [0.0; 64]);
            dequantize(dtype, &bytes, &mut values);
            dequantize(DType::Q8_0, &as_q8_0(dtype, &bytes).unwrap(), &mut widened);
            assert_eq!(values, widened);
        }
        assert_eq!(as_q8_0(DType::Q4_1, &[0; 20]), None);
    }
}
