//! Full attention of an encoder: each token attends to all tokens of its text.
//!
//! `out[q] = Σ_k softmax_k(query[q] · key[k] / sqrt(head_dim)) * value[k]` for each head.
//!
//! A task is a block of queries of one text. For each head it lays out keys as `[head_dim][keys]` and values as
//! `[keys][head_dim]`, padded to whole vectors, and takes a tile of queries at a time through the micro-kernel of `gemm`: scores,
//! softmax over the row, weighted values. Sums run over channels and over keys in ascending order, each query by itself, so
//! neither the tile nor the block changes a bit.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::super::exp::exp;
use super::super::gemm::multiply_add;

/// Queries of a tile.
const TILE: usize = 4;
/// Vectors of a column group.
const GROUP: usize = 2;
/// Queries of a task. Laying out keys and values is then a small part of its work.
const TASK_QUERIES: usize = 64;
/// Sums and maxima are kept in this many lanes on every machine, so that their bits are the same everywhere.
const LANES: usize = 16;

/// Attends on the rayon pool of the calling thread.
///
/// `texts` are the token ranges of the texts, which cover all tokens in order. Shapes: `qkv` `[tokens, 3 * heads * head_dim]`,
/// queries, keys and values side by side; `out` `[tokens, heads * head_dim]`.
pub(super) fn attention(arch: Arch, texts: &[Range<usize>], heads: usize, head_dim: usize, qkv: &[f32], out: &mut [f32]) {
    let hidden = heads * head_dim;
    let mut tasks = Vec::new();
    let mut rest = out;
    for text in texts {
        for first in text.clone().step_by(TASK_QUERIES) {
            let queries = first..text.end.min(first + TASK_QUERIES);
            let (mine, others) = rest.split_at_mut(queries.len() * hidden);
            rest = others;
            tasks.push(Task { heads, head_dim, text: text.clone(), queries, qkv, out: mine });
        }
    }
    tasks.into_par_iter().for_each(|task| arch.dispatch(task));
}

/// Some queries of one text.
struct Task<'a> {
    heads: usize,
    head_dim: usize,
    text: Range<usize>,
    queries: Range<usize>,
    qkv: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Task { heads, head_dim, text, queries, qkv, out } = self;
        let hidden = heads * head_dim;
        let part =
            |token: usize, part: usize, head: usize| &qkv[(3 * token + part) * hidden + head * head_dim..][..head_dim];
        let group = GROUP * S::F32_LANES;
        let (keys_width, values_width) = (text.len().next_multiple_of(group), head_dim.next_multiple_of(group));
        let scale = (head_dim as f32).sqrt().recip();
        let mut keys = vec![0.0; head_dim * keys_width];
        let mut values = vec![0.0; text.len() * values_width];
        let mut tile = vec![[0.0; TILE]; head_dim];
        let mut scores = vec![0.0; TILE * keys_width];
        let mut weights = vec![[0.0; TILE]; text.len()];
        let mut sums = vec![0.0; TILE * values_width];
        for head in 0..heads {
            for (row, token) in text.clone().enumerate() {
                for (channel, key) in part(token, 1, head).iter().enumerate() {
                    keys[channel * keys_width + row] = *key;
                }
                values[row * values_width..][..head_dim].copy_from_slice(part(token, 2, head));
            }
            for first in queries.clone().step_by(TILE) {
                let count = TILE.min(queries.end - first);
                for lane in 0..count {
                    for (tile, query) in tile.iter_mut().zip(part(first + lane, 0, head)) {
                        tile[lane] = query * scale;
                    }
                }
                product(simd, &tile, &keys, keys_width, &mut scores);
                for (lane, scores) in scores.chunks_exact_mut(keys_width).take(count).enumerate() {
                    softmax(&mut scores[..text.len()]);
                    for (weights, weight) in weights.iter_mut().zip(scores) {
                        weights[lane] = *weight;
                    }
                }
                product(simd, &weights, &values, values_width, &mut sums);
                for (lane, sums) in sums.chunks_exact(values_width).take(count).enumerate() {
                    let row = first + lane - queries.start;
                    out[row * hidden + head * head_dim..][..head_dim].copy_from_slice(&sums[..head_dim]);
                }
            }
        }
    }
}

/// Multiplies a tile `a` `[steps][TILE]` with `b` `[steps][width]` into `out` `[TILE][width]`.
#[inline(always)]
fn product<S: Simd>(simd: S, a: &[[f32; TILE]], b: &[f32], width: usize, out: &mut [f32]) {
    let vectors = width / S::F32_LANES;
    let b = S::as_simd_f32s(b).0;
    for first in (0..vectors).step_by(GROUP) {
        let zero = [[simd.splat_f32s(0.0); GROUP]; TILE];
        let sums = multiply_add(simd, a, &b[first..], vectors, zero);
        for (out, sums) in out.chunks_exact_mut(width).zip(sums) {
            let out = S::as_mut_simd_f32s(out).0;
            for (out, sum) in out[first..].iter_mut().zip(sums) {
                *out = sum;
            }
        }
    }
}

/// Replaces scores by their softmax.
#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for chunk in scores.chunks(LANES) {
        for (max, &score) in maxima.iter_mut().zip(chunk) {
            *max = max.max(score);
        }
    }
    let max = maxima.iter().fold(f32::NEG_INFINITY, |max, &lane| max.max(lane));
    let mut sums = [0.0; LANES];
    for chunk in scores.chunks_mut(LANES) {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp(*score - max);
            *sum += *score;
        }
    }
    let scale = sums.iter().sum::<f32>().recip();
    scores.iter_mut().for_each(|score| *score *= scale);
}

#[cfg(test)]
mod tests {
    use super::super::super::reference::{Random, close, on_threads};
    use super::super::reference;
    use super::*;

    fn run(threads: usize, lengths: &[usize], heads: usize, head_dim: usize, qkv: &[f32]) -> Vec<f32> {
        let mut end = 0;
        let texts: Vec<_> = lengths
            .iter()
            .map(|len| {
                end += len;
                end - len..end
            })
            .collect();
        let mut out = vec![f32::NAN; end * heads * head_dim];
        on_threads(threads, || attention(Arch::new(), &texts, heads, head_dim, qkv, &mut out));
        out
    }

    #[test]
    fn matches_double_precision_over_odd_sizes() {
        for (lengths, heads, head_dim) in
            [(vec![1], 1, 1), (vec![3, 1, 5], 2, 3), (vec![17, 40], 3, 32), (vec![130, 2, 64, 65], 2, 20)]
        {
            let hidden = heads * head_dim;
            let qkv = Random::new(hidden as u64).floats(lengths.iter().sum::<usize>() * 3 * hidden);
            let out = run(2, &lengths, heads, head_dim, &qkv);
            let mut first = 0;
            for len in lengths {
                let wide: Vec<f64> = qkv[first * 3 * hidden..][..len * 3 * hidden].iter().copied().map(f64::from).collect();
                let expected = reference::attend(&wide, len, heads, head_dim);
                out[first * hidden..].iter().zip(expected).for_each(|(&x, expected)| close(x, expected, 1e-5));
                first += len;
            }
        }
    }

    #[test]
    fn a_text_does_not_depend_on_the_others_or_on_threads() {
        let (heads, head_dim) = (2, 12);
        let width = 3 * heads * head_dim;
        let lengths = [70, 9, 130];
        let qkv = Random::new(3).floats(209 * width);
        let together = run(3, &lengths, heads, head_dim, &qkv);
        let mut first = 0;
        for len in lengths {
            let alone = run(1, &[len], heads, head_dim, &qkv[first * width..][..len * width]);
            assert_eq!(together[first * heads * head_dim..][..alone.len()], alone);
            first += len;
        }
    }
}
