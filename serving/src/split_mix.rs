//! Random bits that depend on a seed and an index alone: two rounds of the finaliser of SplitMix64 (Steele, Lea and Flood 2014).

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Returns the bits of number `index` in the stream of `seed`.
pub(crate) fn bits(seed: u64, index: u64) -> u64 {
    mix(mix(seed.wrapping_add(GOLDEN)) ^ index.wrapping_add(1).wrapping_mul(GOLDEN))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
