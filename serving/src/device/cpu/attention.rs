//! Paged causal attention: `softmax(q K^T / sqrt(head_dim)) V` over the pages of a query's row.
//!
//! The softmax is online (Milakov and Gimelshein 2018), one page at a time from the first position: running maximum, running
//! sum, running weighted values. For each query head the operations and their order depend on its position alone; several
//! are walked together (heads of a group, neighbouring queries) only so that they share loads and fill the pipeline.
//! Keys after a query's position are never read into its result, so stale page contents cannot reach it. With a sliding window
//! the walk begins at the page of the first key that one of the lanes sees; keys before its own window leave a lane untouched.

use std::num::NonZeroUsize;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::exp::exp;
use super::gemm::multiply_add;
use super::kv::{KvPool, Page, value_width};
use crate::step::{PAGE_TOKENS, PageId, StepPlan};

/// The widest head; buffers on the stack have this size.
pub(super) const HEAD_DIM_MAX: usize = 256;
/// Query heads that are walked together.
const LANES: usize = 8;
/// Queries of one task.
const TASK_QUERIES: usize = 8;
/// Keys seen times width of the queries, for each KV head, below which threads are not worth waking.
const TASK_WORK_MIN: usize = 32 * 1024;

/// One token that attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Query {
    /// Index into the tokens of the pass, where its query vectors lie.
    pub(super) token: u32,
    /// Its row in the pass.
    pub(super) row: u32,
    /// Its position; it sees this and earlier ones.
    pub(super) position: u32,
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    /// The tokens that attend, in the order of the output.
    pub(super) queries: &'a [Query],
    /// Query vectors: row `token` begins with `[heads][head_dim]`.
    pub(super) q: &'a [f32],
    /// Distance of two rows of `q`.
    pub(super) stride: usize,
    /// Rows and page tables.
    pub(super) plan: &'a StepPlan,
    /// Keys and values.
    pub(super) kv: &'a KvPool,
    /// The layer whose pages are read.
    pub(super) layer: usize,
    /// Query heads of each KV head.
    pub(super) group: usize,
    /// Width of a head.
    pub(super) head_dim: usize,
    /// Positions that a query sees, its own included; `None` sees all.
    pub(super) window: Option<NonZeroUsize>,
}

/// Attends on the rayon pool of the calling thread. Shape of `out`: `[kv_heads][queries][group * head_dim]`.
pub(super) fn attention(arch: Arch, inputs: Inputs<'_>, out: &mut [f32]) {
    let width = inputs.group * inputs.head_dim;
    let seen: usize = inputs.queries.iter().map(|query| query.position as usize + 1).sum();
    let heads = if seen * width < TASK_WORK_MIN { out.len() } else { 1 };
    let slabs = out.par_chunks_mut(inputs.queries.len().max(1) * width).enumerate().with_min_len(heads.max(1));
    slabs.for_each(|(kv_head, out)| {
        let tasks = out.par_chunks_mut(TASK_QUERIES * width).zip(inputs.queries.par_chunks(TASK_QUERIES));
        tasks.for_each(|(out, queries)| arch.dispatch(Task { inputs, kv_head, queries, out }));
    });
}

/// A few queries with one KV head.
struct Task<'a> {
    inputs: Inputs<'a>,
    kv_head: usize,
    queries: &'a [Query],
    out: &'a mut [f32],
}

/// One head of one query.
#[derive(Clone, Copy)]
struct Lane<'a> {
    q: &'a [f32],
    /// The first position that it sees.
    first: usize,
    /// One after the last position that it sees.
    end: usize,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Task { inputs, kv_head, queries, mut out } = self;
        let (group, dim) = (inputs.group, inputs.head_dim);
        for queries in queries.chunk_by(|a, b| a.row == b.row) {
            let pages = &inputs.plan.rows[queries[0].row as usize].pages;
            let pages = &inputs.plan.block_tables[pages.start as usize..pages.end as usize];
            let walk = Walk { simd, inputs, kv_head, pages };
            let lane = |i: usize| {
                let (query, head) = (queries[i / group], kv_head * group + i % group);
                let end = query.position as usize + 1;
                Lane {
                    q: &inputs.q[query.token as usize * inputs.stride + head * dim..][..dim],
                    first: inputs.window.map_or(0, |window| end.saturating_sub(window.get())),
                    end,
                }
            };
            let lanes = queries.len() * group;
            let (mine, rest) = out.split_at_mut(lanes * dim);
            let mut first = 0;
            while first < lanes {
                let out = &mut mine[first * dim..];
                first += match lanes - first {
                    LANES.. => walk.attend::<LANES>(std::array::from_fn(|i| lane(first + i)), out),
                    4.. => walk.attend::<4>(std::array::from_fn(|i| lane(first + i)), out),
                    3 => walk.attend::<3>(std::array::from_fn(|i| lane(first + i)), out),
                    2 => walk.attend::<2>(std::array::from_fn(|i| lane(first + i)), out),
                    _ => walk.attend::<1>([lane(first)], out),
                };
            }
            out = rest;
        }
    }
}

/// The pages of a row, to be walked by some lanes.
#[derive(Clone, Copy)]
struct Walk<'a, S> {
    simd: S,
    inputs: Inputs<'a>,
    kv_head: usize,
    pages: &'a [PageId],
}

/// The online softmax of R lanes.
struct Running<const R: usize> {
    max: [f32; R],
    sum: [f32; R],
}

impl<S: Simd> Walk<'_, S> {
    /// Attends with R lanes, writes R heads to `out` and returns R.
    #[inline(always)]
    fn attend<const R: usize>(self, lanes: [Lane<'_>; R], out: &mut [f32]) -> usize {
        let dim = self.inputs.head_dim;
        let scale = (dim as f32).sqrt().recip();
        let mut q = [[0.0; R]; HEAD_DIM_MAX];
        for (d, q) in q.iter_mut().enumerate().take(dim) {
            *q = lanes.map(|lane| lane.q[d] * scale);
        }
        let mut running = Running { max: [f32::NEG_INFINITY; R], sum: [0.0; R] };
        let mut sums = [[0.0; HEAD_DIM_MAX]; R];
        let first_page = lanes.iter().map(|lane| lane.first).min().unwrap_or(0) / PAGE_TOKENS;
        let end = lanes.iter().map(|lane| lane.end).max().unwrap_or(0);
        for (&page, start) in self.pages.iter().zip((0..end).step_by(PAGE_TOKENS)).skip(first_page) {
            let page = self.inputs.kv.page(self.inputs.layer, self.kv_head, page);
            let in_page = |position: usize| position.saturating_sub(start).min(PAGE_TOKENS);
            let seen = lanes.map(|lane| (in_page(lane.first), in_page(lane.end)));
            self.walk_page(&q[..dim], page, seen, &mut running, &mut sums);
        }
        for ((out, sums), sum) in out.chunks_exact_mut(dim).zip(&sums).zip(running.sum) {
            let norm = sum.recip();
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * norm;
            }
        }
        R
    }

    /// Adds one page, of whose keys lane `i` sees those from `seen[i].0` up to `seen[i].1`.
    #[inline(always)]
    fn walk_page<const R: usize>(
        self,
        q: &[[f32; R]],
        page: Page<'_>,
        seen: [(usize, usize); R],
        running: &mut Running<R>,
        sums: &mut [[f32; HEAD_DIM_MAX]; R],
    ) {
        let mut weights = [[0.0; PAGE_TOKENS]; R];
        self.score(q, page.keys, &mut weights);
        for i in 0..R {
            weights[i][..seen[i].0].fill(f32::NEG_INFINITY);
            weights[i][seen[i].1..].fill(f32::NEG_INFINITY);
        }
        let rescale = softmax_page(&mut weights, running);
        let width = value_width(self.inputs.head_dim);
        for i in 0..R {
            // Mostly 1: the maximum settles early. Multiplying by 1 changes no bit.
            if rescale[i] != 1.0 {
                for sum in &mut sums[i][..width] {
                    *sum *= rescale[i];
                }
            }
        }
        if seen == [seen[0]; R] {
            self.add_values(&weights, page.values, seen[0], sums);
            return;
        }
        for i in 0..R {
            self.add_values::<1>(
                std::array::from_ref(&weights[i]),
                page.values,
                seen[i],
                std::array::from_mut(&mut sums[i]),
            );
        }
    }

    /// Scores of R lanes with the keys of a page: one chain of multiply-adds over the head's width for each.
    #[inline(always)]
    fn score<const R: usize>(self, q: &[[f32; R]], keys: &[f32], scores: &mut [[f32; PAGE_TOKENS]; R]) {
        let vectors = PAGE_TOKENS / S::F32_LANES;
        let mut v = 0;
        while v < vectors {
            v += match vectors - v {
                2.. if R <= 4 => self.score_vectors::<R, 2>(q, keys, v, scores),
                _ => self.score_vectors::<R, 1>(q, keys, v, scores),
            };
        }
    }

    #[inline(always)]
    #[allow(
        clippy::manual_memcpy,
        clippy::needless_range_loop,
        reason = "a slice of the sums would make them live in memory instead of registers"
    )]
    fn score_vectors<const R: usize, const V: usize>(
        self,
        q: &[[f32; R]],
        keys: &[f32],
        first: usize,
        scores: &mut [[f32; PAGE_TOKENS]; R],
    ) -> usize {
        let zero = [[self.simd.splat_f32s(0.0); V]; R];
        let sums = multiply_add(self.simd, q, &S::as_simd_f32s(keys).0[first..], PAGE_TOKENS / S::F32_LANES, zero);
        for i in 0..R {
            for v in 0..V {
                S::as_mut_simd_f32s(&mut scores[i]).0[first + v] = sums[i][v];
            }
        }
        V
    }

    /// Adds the weighted rows of `values` from `keys.0` up to `keys.1` to each lane's sums, row after row.
    #[inline(always)]
    fn add_values<const R: usize>(
        self,
        weights: &[[f32; PAGE_TOKENS]; R],
        values: &[f32],
        keys: (usize, usize),
        sums: &mut [[f32; HEAD_DIM_MAX]; R],
    ) {
        if keys.0 >= keys.1 {
            return;
        }
        let width = value_width(self.inputs.head_dim);
        let (vectors, values) = (width / S::F32_LANES, &values[keys.0 * width..keys.1 * width]);
        // V vectors at once need R * V registers for sums and V + 1 beside them; fewer than 8 sums wait for each other.
        let most = if S::REGISTER_COUNT >= 32 { 28 } else { 12 } / R;
        let mut v = 0;
        while v < vectors {
            v += match most.min(vectors - v) {
                4.. if R <= 4 => self.add_vectors::<R, 4>(weights, values, keys.0, vectors, v, sums),
                2.. => self.add_vectors::<R, 2>(weights, values, keys.0, vectors, v, sums),
                _ => self.add_vectors::<R, 1>(weights, values, keys.0, vectors, v, sums),
            };
        }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "iterating would make the vectors live in memory instead of registers")]
    #[allow(clippy::too_many_arguments, reason = "what to add, where from and where to")]
    fn add_vectors<const R: usize, const V: usize>(
        self,
        weights: &[[f32; PAGE_TOKENS]; R],
        values: &[f32],
        key: usize,
        stride: usize,
        first: usize,
        sums: &mut [[f32; HEAD_DIM_MAX]; R],
    ) -> usize {
        let mut vectors = [[self.simd.splat_f32s(0.0); V]; R];
        for i in 0..R {
            for v in 0..V {
                vectors[i][v] = S::as_simd_f32s(&sums[i]).0[first + v];
            }
        }
        for (j, row) in (key..PAGE_TOKENS).zip(S::as_simd_f32s(values).0[first..].chunks(stride)) {
            let Some(row) = row.first_chunk::<V>() else { break };
            for i in 0..R {
                let weight = self.simd.splat_f32s(weights[i][j]);
                for v in 0..V {
                    vectors[i][v] = self.simd.mul_add_f32s(weight, row[v], vectors[i][v]);
                }
            }
        }
        for i in 0..R {
            for v in 0..V {
                S::as_mut_simd_f32s(&mut sums[i]).0[first + v] = vectors[i][v];
            }
        }
        V
    }
}

/// Turns scores into weights, those of minus infinity into zero; returns what earlier sums are to be multiplied with. A lane
/// without keys keeps its state and gets 1, or 0 while its sums are zero.
#[inline(always)]
fn softmax_page<const R: usize>(weights: &mut [[f32; PAGE_TOKENS]; R], running: &mut Running<R>) -> [f32; R] {
    let (mut max, mut base) = (running.max, [0.0; R]);
    for i in 0..R {
        let of_page = halve(weights[i], |a, b| if a > b { a } else { b });
        max[i] = if of_page > max[i] { of_page } else { max[i] };
        // A lane whose window has not begun has no maximum yet, and minus infinity less itself is not a number.
        base[i] = if max[i] == f32::NEG_INFINITY { 0.0 } else { max[i] };
        for weight in &mut weights[i] {
            *weight = exp(*weight - base[i]);
        }
    }
    let mut rescale = [0.0; R];
    for i in 0..R {
        rescale[i] = exp(running.max[i] - base[i]);
        running.sum[i] = running.sum[i].mul_add(rescale[i], halve(weights[i], |a, b| a + b));
    }
    running.max = max;
    rescale
}

/// Combines all values: the first half with the second, again and again. Always in this order, so that sums have the same bits
/// on every machine.
#[inline(always)]
fn halve(mut values: [f32; PAGE_TOKENS], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut len = PAGE_TOKENS / 2;
    while len > 0 {
        for i in 0..len {
            values[i] = combine(values[i], values[i + len]);
        }
        len /= 2;
    }
    values[0]
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Random, close, on_threads, tiny_config};
    use super::*;
    use crate::step::{KvWrite, RowSpan};

    /// A row of `len` tokens, all of which attend, for one KV head with `group` query heads; returns (out, naive).
    fn run(
        arch: Arch,
        len: usize,
        group: usize,
        dim: usize,
        from: usize,
        window: Option<NonZeroUsize>,
    ) -> (Vec<f32>, Vec<f64>) {
        let mut config = tiny_config();
        (config.layers, config.heads, config.kv_heads, config.head_dim) = (1, 2 * group, 2, dim);
        let stride = (2 * group + 4) * dim;
        let x: Vec<f32> = Random::new(len as u64).floats(len * stride).iter().map(|x| 4.0 * x).collect();
        let mut kv = KvPool::new(&config, 4 << 20).unwrap();
        let pages = len.div_ceil(PAGE_TOKENS) as u32;
        // Pages lie in reverse order, and what lies after the row's end is not a number.
        let page = |position: usize| PageId(pages - 1 - (position / PAGE_TOKENS) as u32);
        let write =
            |token: usize, at: usize| KvWrite { token: token as u32, page: page(at), offset: (at % PAGE_TOKENS) as u32 };
        let poison: Vec<_> = (len..len.next_multiple_of(PAGE_TOKENS)).map(|at| write(0, at)).collect();
        kv.write(0, &poison, &vec![f32::NAN; stride], stride, 2 * group * dim);
        kv.write(0, &(0..len).map(|at| write(at, at)).collect::<Vec<_>>(), &x, stride, 2 * group * dim);
        let plan = StepPlan {
            rows: vec![RowSpan { tokens: 0..len as u32, pages: 0..pages }],
            block_tables: (0..pages as usize).map(|p| page(p * PAGE_TOKENS)).collect(),
            ..StepPlan::default()
        };
        let queries: Vec<_> = (from as u32..len as u32).map(|t| Query { token: t, row: 0, position: t }).collect();
        let mut out = vec![0.0; 2 * queries.len() * group * dim];
        let (queries, q, plan, kv) = (&queries[..], &x[..], &plan, &kv);
        let inputs = Inputs { queries, q, stride, plan, kv, layer: 0, group, head_dim: dim, window };
        on_threads(2, || attention(arch, inputs, &mut out));

        let at = |token: usize, head: usize, d: usize| f64::from(x[token * stride + head * dim + d]);
        let mut naive = Vec::new();
        for kv_head in 0..2 {
            for query in from..len {
                for head in kv_head * group..(kv_head + 1) * group {
                    let score = |key: usize| {
                        (0..dim).map(|d| at(query, head, d) * at(key, 2 * group + kv_head, d)).sum::<f64>()
                            / (dim as f64).sqrt()
                    };
                    let first = window.map_or(0, |window| (query + 1).saturating_sub(window.get()));
                    let scores: Vec<f64> = (first..=query).map(score).collect();
                    let max = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let value = |d: usize| {
                        (first..=query).map(|key| weights[key - first] * at(key, 2 * group + 2 + kv_head, d)).sum::<f64>()
                    };
                    naive.extend((0..dim).map(|d| value(d) / total));
                }
            }
        }
        (out, naive)
    }

    #[test]
    fn matches_double_precision_over_odd_sizes() {
        for (len, group, dim) in [(1, 1, 2), (5, 3, 10), (16, 4, 64), (17, 4, 64), (50, 2, 16), (70, 7, 80), (33, 8, 256)] {
            for arch in [Arch::new(), Arch::Scalar] {
                for window in [0, 1, 15, 16, 17, 40].map(NonZeroUsize::new) {
                    let (out, naive) = run(arch, len, group, dim, 0, window);
                    out.iter().zip(&naive).for_each(|(&out, &naive)| close(out, naive, 2e-5));
                }
            }
        }
    }

    #[test]
    fn a_query_alone_gives_the_bits_it_gives_among_others() {
        for (len, group, dim, window) in [(40, 4, 64, 0), (29, 3, 24, 0), (40, 4, 64, 18), (61, 1, 8, 3)] {
            let window = NonZeroUsize::new(window);
            let (all, _) = run(Arch::new(), len, group, dim, 0, window);
            for from in 1..len {
                let (last, _) = run(Arch::new(), len, group, dim, from, window);
                let width = group * dim;
                for kv_head in 0..2 {
                    let of_all = &all[(kv_head * len + from) * width..(kv_head + 1) * len * width];
                    let of_last = &last[kv_head * (len - from) * width..(kv_head + 1) * (len - from) * width];
                    assert!(of_all.iter().zip(of_last).all(|(a, b)| a.to_bits() == b.to_bits()), "from {from}");
                }
            }
        }
    }

    #[test]
    fn pages_before_the_window_are_not_read() {
        // The first 32 tokens are not numbers; a window of 8 leaves them out of what tokens 40 to 49 see.
        let window = NonZeroUsize::new(8);
        let mut config = tiny_config();
        (config.layers, config.heads, config.kv_heads, config.head_dim) = (1, 1, 1, 16);
        let (len, dim, stride) = (50, 16, 48);
        let mut x = Random::new(9).floats(len * stride);
        x[..32 * stride].fill(f32::NAN);
        let mut kv = KvPool::new(&config, 1 << 20).unwrap();
        let page = |at: usize| PageId((at / PAGE_TOKENS) as u32);
        let writes: Vec<_> =
            (0..len).map(|at| KvWrite { token: at as u32, page: page(at), offset: (at % PAGE_TOKENS) as u32 }).collect();
        kv.write(0, &writes, &x, stride, dim);
        let plan = StepPlan {
            rows: vec![RowSpan { tokens: 0..len as u32, pages: 0..4 }],
            block_tables: (0..4).map(PageId).collect(),
            ..StepPlan::default()
        };
        let queries: Vec<_> = (40..50).map(|t| Query { token: t, row: 0, position: t }).collect();
        let mut out = vec![0.0; queries.len() * dim];
        let (queries, q, plan, kv) = (&queries[..], &x[..], &plan, &kv);
        let inputs = Inputs { queries, q, stride, plan, kv, layer: 0, group: 1, head_dim: dim, window };
        attention(Arch::new(), inputs, &mut out);
        assert!(out.iter().all(|x| x.is_finite()));
    }
}
