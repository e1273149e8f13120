//! Products of bytes by AVX2: codes of both sides are widened to 16 bits in registers, and one instruction adds up two products.
//!
//! Products of bytes exist there too, but they add pairs up in 16 bits, which 255 times 127 twice does not fit. Words hold the weights
//! of four steps: a mask leaves those of the first and the third as 16 bits, a shift those of the others. It serves all rows of a
//! tile. Activations are stored as 16 bits, in words of the same pairs.
//!
//! **Speed.** On a Sapphire Rapids core that runs AVX2 alone, products of 2048 x 512 weights ran at 74, 101, 128 and 133 GFLOP/s with 1,
//! 2, 8 and 32 rows, where f32 took 27, 29, 78 and 101. Tiles of 4 rows: 6 need more sums than there are registers.

use archmage::{X64V3Token, arcane, rite};

use super::gemm::Start;
use super::gemm_int8::{BLOCK_STEPS, Instructions, Panels, TileMut, Tiles};
use super::panels::PANEL_VECTORS;

/// Values in a vector.
const LANES: usize = 8;
/// Words that hold the codes of four steps of a row.
const WORDS: usize = 2;

impl Instructions for X64V3Token {
    const PANEL: usize = PANEL_VECTORS * LANES;
    const TILE_ROWS_MAX: usize = 4;
    const WORDS: usize = WORDS;

    fn round(self, a: &[f32], k: usize, tile: TileMut<'_>) {
        round(self, a, k, tile);
    }

    fn multiply(self, tile: Tiles<'_>, panels: Panels<'_>, rows: &mut [&mut [f32]], column: usize, start: Start) {
        multiply(self, tile, panels, rows, column, start);
    }
}

#[arcane]
fn round(_: X64V3Token, a: &[f32], k: usize, tile: TileMut<'_>) {
    tile.round::<WORDS>(a, k);
}

#[arcane]
fn multiply(_: X64V3Token, tile: Tiles<'_>, panels: Panels<'_>, rows: &mut [&mut [f32]], column: usize, start: Start) {
    match (panels.count, rows.len()) {
        (4, _) => full_tile::<1, { 4 * PANEL_VECTORS }>(tile, panels, rows, column, start),
        (2, 1) => full_tile::<1, { 2 * PANEL_VECTORS }>(tile, panels, rows, column, start),
        (2, 2) => full_tile::<2, { 2 * PANEL_VECTORS }>(tile, panels, rows, column, start),
        (2, _) => full_tile::<3, { 2 * PANEL_VECTORS }>(tile, panels, rows, column, start),
        (_, 1) => full_tile::<1, PANEL_VECTORS>(tile, panels, rows, column, start),
        (_, 2) => full_tile::<2, PANEL_VECTORS>(tile, panels, rows, column, start),
        (_, 3) => full_tile::<3, PANEL_VECTORS>(tile, panels, rows, column, start),
        _ => full_tile::<4, PANEL_VECTORS>(tile, panels, rows, column, start),
    }
}

/// The micro-kernel: a tile of M rows, panels of V vectors in all.
#[rite(v3, import_intrinsics)]
#[allow(clippy::needless_range_loop, reason = "iterating would make the sums live in memory instead of registers")]
fn full_tile<const M: usize, const V: usize>(
    tile: Tiles<'_>,
    panels: Panels<'_>,
    rows: &mut [&mut [f32]],
    column: usize,
    start: Start,
) {
    let (blocks, steps) = (tile.blocks, tile.blocks * BLOCK_STEPS);
    // A row of each is one step, or one block, of a panel.
    let codes = panels.codes.as_chunks::<LANES>().0.as_chunks::<PANEL_VECTORS>().0;
    let scales = panels.scales.as_chunks::<LANES>().0.as_chunks::<PANEL_VECTORS>().0;
    let panels: [usize; V] = std::array::from_fn(|v| v / PANEL_VECTORS);
    let codes: [&[[[[u32; LANES]; PANEL_VECTORS]; BLOCK_STEPS]]; V] =
        panels.map(|panel| codes[panel * steps..(panel + 1) * steps].as_chunks().0);
    let scales: [&[[[f32; LANES]; PANEL_VECTORS]]; V] = panels.map(|panel| &scales[panel * blocks..(panel + 1) * blocks]);

    let mut out = [[_mm256_setzero_ps(); V]; M];
    if start == Start::Out {
        for i in 0..M {
            let row = rows[i][column..].as_chunks::<LANES>().0;
            for v in 0..V {
                out[i][v] = _mm256_loadu_ps(&row[v]);
            }
        }
    }
    let low = _mm256_set1_epi16(0xff);
    let activations = tile.codes.as_chunks::<M>().0.as_chunks::<WORDS>().0.as_chunks::<BLOCK_STEPS>().0;
    let factors = tile.offsets.as_chunks::<M>().0.iter().zip(tile.scales.as_chunks::<M>().0);
    for (block, (activations, (offsets, factors))) in activations.iter().zip(factors).enumerate() {
        let mut sums = [[_mm256_setzero_si256(); V]; M];
        for i in 0..M {
            sums[i] = [_mm256_set1_epi32(offsets[i]); V];
        }
        for step in 0..BLOCK_STEPS {
            for j in 0..WORDS {
                let mut weights = [_mm256_setzero_si256(); V];
                for v in 0..V {
                    let words = _mm256_loadu_si256(&codes[v][block][step][v % PANEL_VECTORS]);
                    weights[v] = if j == 0 { _mm256_and_si256(words, low) } else { _mm256_srli_epi16::<8>(words) };
                }
                for i in 0..M {
                    let activation = _mm256_set1_epi32(activations[step][j][i].cast_signed());
                    for v in 0..V {
                        sums[i][v] = _mm256_add_epi32(sums[i][v], _mm256_madd_epi16(weights[v], activation));
                    }
                }
            }
        }
        for v in 0..V {
            let scale = _mm256_loadu_ps(&scales[v][block][v % PANEL_VECTORS]);
            for i in 0..M {
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(factors[i]));
                out[i][v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i][v]), scale, out[i][v]);
            }
        }
    }
    for i in 0..M {
        let row = rows[i][column..].as_chunks_mut::<LANES>().0;
        for v in 0..V {
            _mm256_storeu_ps(&mut row[v], out[i][v]);
        }
    }
}
