//! Every kernel against plain Rust in double precision, over odd sizes, in both precisions.
//!
//! Inputs are random, and outputs are filled with NaN first, so that a value which is not written is found. Errors are measured as
//! `||out - expected|| / ||expected||`. Without a GPU a test says so and passes.

use std::sync::Arc;

use super::attend::WARPS;
use super::driver::{Arg, Buffer, Gpu, Module, Plain, Size};
use super::forward::{BIAS_THREADS, EMBED_THREADS, NORM_THREADS, ROPE_THREADS, SWIGLU_THREADS};
use super::head::{DRAW_WORDS, PAIR_WARPS, ROW_THREADS, draw_words};
use super::kernels::{Precision, SOURCES, architecture, compile};
use crate::device::cpu::reference::Random;
use crate::device::sampler::{Scored, choose, greedy, keep_largest, logprobs};
use crate::request::{Sampling, TokenId};
use crate::step::{Allowed, PAGE_TOKENS, RowSlot, SampleRow};

/// A file of kernels on the first GPU, and what tests do with it.
pub(super) struct Lab {
    pub(super) gpu: Arc<Gpu>,
    module: Module,
    precision: Precision,
    pub(super) random: Random,
}

/// Runs a test of a file of kernels in both precisions, or says why there is no GPU.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(super) fn on_gpu(file: &str, test: impl Fn(&mut Lab)) {
    let gpu = match super::find(0).and_then(|facts| Gpu::open(facts.ordinal)) {
        Ok(gpu) => gpu,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let source = SOURCES.iter().find(|source| source.name == file).unwrap();
    for precision in [Precision::Bf16, Precision::F32] {
        let image = compile(source, &architecture(gpu.facts().capability), precision).unwrap();
        let module = gpu.load(&image).unwrap();
        test(&mut Lab { gpu: Arc::clone(&gpu), module, precision, random: Random::new(1 + precision as u64) });
    }
}

impl Lab {
    /// Random numbers in -1..1 that activations can be, and the same on the GPU.
    pub(super) fn acts(&mut self, len: usize) -> (Vec<f32>, Buffer<u8>) {
        let values = self.random.floats(len).iter().map(|&x| self.round(x)).collect::<Vec<_>>();
        let buffer = self.put(&values);
        (values, buffer)
    }

    pub(super) fn floats(&mut self, len: usize) -> (Vec<f32>, Buffer<f32>) {
        let values = self.random.floats(len);
        let buffer = self.gpu.upload(&values).unwrap();
        (values, buffer)
    }

    pub(super) fn round(&self, x: f32) -> f32 {
        match self.precision {
            Precision::Bf16 | Precision::Fp8 => half::bf16::from_f32(x).to_f32(),
            Precision::F32 => x,
        }
    }

    pub(super) fn put(&self, values: &[f32]) -> Buffer<u8> {
        let bytes: Vec<u8> = match self.precision {
            Precision::Bf16 | Precision::Fp8 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            Precision::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        self.gpu.upload(&bytes).unwrap()
    }

    pub(super) fn get(&self, buffer: &Buffer<u8>) -> Vec<f32> {
        let bytes = self.read(buffer);
        match self.precision {
            Precision::Bf16 | Precision::Fp8 => {
                bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
            }
            Precision::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        }
    }

    /// Activations that are not numbers.
    pub(super) fn unwritten(&self, len: usize) -> Buffer<u8> {
        self.filled(len * self.precision.bytes())
    }

    /// Values whose every bit is set: NaN, or -1.
    pub(super) fn filled<T: Plain>(&self, len: usize) -> Buffer<T> {
        let buffer = self.gpu.allocate(len).unwrap();
        buffer.fill(0xff).unwrap();
        buffer
    }

    pub(super) fn upload<T: Plain>(&self, values: &[T]) -> Buffer<T> {
        self.gpu.upload(values).unwrap()
    }

    pub(super) fn read<T: Plain + Default>(&self, buffer: &Buffer<T>) -> Vec<T> {
        let mut values = vec![T::default(); buffer.len()];
        buffer.read(0, &mut values).unwrap();
        values
    }

    pub(super) fn run(&self, kernel: &str, size: Size, args: &[Arg]) {
        let kernel = self.module.kernel(kernel, 0).unwrap();
        // SAFETY: every test passes what its kernel takes, in order, and buffers as large as its sizes say, which live until the
        // results have been read.
        unsafe { self.gpu.launch(kernel, size, args) }.unwrap();
        self.gpu.synchronize().unwrap();
    }

    /// Asserts that the relative error is what one rounding of each value explains.
    #[track_caller]
    pub(super) fn check(&self, out: &[f32], expected: &[f64]) {
        let bound = if self.precision == Precision::Bf16 { 4e-3 } else { 3e-6 };
        let error = relative_error(out, expected);
        assert!(error <= bound, "relative error {error:e} in {:?}", self.precision);
    }
}

pub(super) fn relative_error(out: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(out.len(), expected.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut out.iter().zip(expected).map(|(&out, expected)| f64::from(out) - expected));
    off / norm(&mut expected.iter().copied()).max(f64::MIN_POSITIVE)
}

pub(super) fn double(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// A permutation of `0..len`.
fn shuffled(random: &mut Random, len: usize) -> Vec<i32> {
    let mut order: Vec<i32> = (0..len as i32).collect();
    for i in (1..len).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    order
}

#[test]
fn embed_looks_up_tokens_and_slots() {
    on_gpu("embed", |lab| {
        for (n, hidden) in [(1, 1), (5, 40), (3, 50), (130, 1024), (2, 2056)] {
            let (vocabulary, slot_count) = (37, 9);
            let (table, on_gpu) = lab.acts(vocabulary * hidden);
            let below = |random: &mut Random, limit: usize| random.below(limit as u64) as i32;
            let slots: Vec<i32> = (0..slot_count).map(|_| below(&mut lab.random, vocabulary)).collect();
            let tokens: Vec<i32> = (0..n)
                .map(|t| if t % 3 == 1 { !below(&mut lab.random, slot_count) } else { below(&mut lab.random, vocabulary) })
                .collect();
            let (ids, slot_ids, x) = (lab.upload(&tokens), lab.upload(&slots), lab.unwritten(n * hidden));
            let args = [(&ids).into(), (&slot_ids).into(), (&on_gpu).into(), (&x).into(), n.into(), hidden.into()];
            lab.run("embed", Size::of(n, EMBED_THREADS), &args);
            let row = |&token: &i32| (if token < 0 { slots[!token as usize] } else { token }) as usize * hidden;
            let expected: Vec<f32> = tokens.iter().flat_map(|token| table[row(token)..][..hidden].to_vec()).collect();
            assert_eq!(lab.get(&x), expected, "{n} tokens of {hidden}");
        }
    });
}

#[test]
fn rms_norm_normalises_rows_by_index() {
    on_gpu("norm", |lab| {
        for (rows, hidden) in [(1, 1), (3, 5), (2, 40), (7, 50), (4, 2048), (300, 4104), (2, 16_392)] {
            let (x, x_on_gpu) = lab.acts(rows * hidden);
            let (weight, weight_on_gpu) = lab.floats(hidden);
            let picked: Vec<i32> = (0..rows + 2).map(|_| lab.random.below(rows as u64) as i32).collect();
            let eps = 1e-5f32;
            let picked_on_gpu = lab.upload(&picked);
            for index in [None, Some(&picked_on_gpu)] {
                let order: Vec<i32> = if index.is_some() { picked.clone() } else { (0..rows as i32).collect() };
                let y = lab.unwritten(order.len() * hidden);
                let args =
                    [(&x_on_gpu).into(), index.into(), (&weight_on_gpu).into(), (&y).into(), hidden.into(), eps.into()];
                lab.run("rms_norm", Size::of(order.len(), NORM_THREADS), &args);
                let expected: Vec<f64> = order
                    .iter()
                    .flat_map(|&row| normalised(&double(&x[row as usize * hidden..][..hidden]), &weight, f64::from(eps)))
                    .collect();
                lab.check(&lab.get(&y), &expected);
            }
        }
    });
}

pub(super) fn normalised(x: &[f64], weight: &[f32], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, &weight)| x / (mean + eps).sqrt() * f64::from(weight)).collect()
}

/// The sizes of heads, and whether they are normalised.
#[derive(Clone, Copy, Debug)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    norm: bool,
}

const HEADS: [(usize, usize, usize, usize, bool); 11] = [
    (4, 2, 16, 16, false),
    (3, 1, 10, 10, false),
    (32, 8, 64, 64, false),
    (9, 3, 64, 64, true),
    (8, 2, 128, 128, true),
    (4, 4, 96, 96, false),
    (6, 2, 128, 96, false),
    (4, 2, 16, 10, true),
    (5, 5, 80, 32, true),
    (3, 1, 256, 256, true),
    (2, 1, 250, 100, true),
];

#[test]
fn rope_and_store_turns_queries_and_fills_pages() {
    on_gpu("rope", |lab| {
        for (i, &(heads, kv_heads, head_dim, rotary_dim, norm)) in HEADS.iter().enumerate() {
            for rotary in [true, false] {
                check_rope(lab, Heads { heads, kv_heads, head_dim, rotary_dim, norm }, [1, 2, 37][i % 3], rotary);
            }
        }
    });
}

fn check_rope(lab: &mut Lab, sizes: Heads, n: usize, rotary: bool) {
    let Heads { heads, kv_heads, head_dim, rotary_dim, norm } = sizes;
    let (layers, layer, context, eps) = (3, 1, 50, 1e-6f32);
    let (width, half) = ((heads + 2 * kv_heads) * head_dim, rotary_dim / 2);
    let (before, qkv) = lab.acts(n * width);
    let positions: Vec<i32> = (0..n).map(|_| lab.random.below(context as u64) as i32).collect();
    let angles: Vec<[f32; 2]> = lab.random.floats(context * rotary_dim).as_chunks().0.to_vec();
    let (q_norm, q_norm_on_gpu) = lab.floats(head_dim);
    let (k_norm, k_norm_on_gpu) = lab.floats(head_dim);
    // Every token is written once, and every third twice.
    let pages = (n + n.div_ceil(3)).div_ceil(PAGE_TOKENS) + 1;
    let mut places = shuffled(&mut lab.random, pages * PAGE_TOKENS).into_iter();
    let writes: Vec<[i32; 2]> = (0..n)
        .flat_map(|token| std::iter::repeat_n(token, if token % 3 == 0 { 2 } else { 1 }))
        .map(|token| [token as i32, places.next().unwrap()])
        .collect();
    let pool = lab.unwritten(pages * layers * 2 * kv_heads * PAGE_TOKENS * head_dim);
    let (positions_on_gpu, writes_on_gpu, angles_on_gpu) =
        (lab.upload(&positions), lab.upload(&writes), lab.upload(&angles));
    let norms = if norm { [Some(&q_norm_on_gpu), Some(&k_norm_on_gpu)] } else { [None, None] };
    let args = [
        (&qkv).into(),
        (&positions_on_gpu).into(),
        (&writes_on_gpu).into(),
        (&angles_on_gpu).into(),
        norms[0].into(),
        norms[1].into(),
        (&pool).into(),
        n.into(),
        writes.len().into(),
        heads.into(),
        kv_heads.into(),
        head_dim.into(),
        rotary_dim.into(),
        layers.into(),
        layer.into(),
        eps.into(),
        i32::from(rotary).into(),
    ];
    lab.run("rope_and_store", Size::of(n + writes.len(), ROPE_THREADS), &args);

    let turned = |token: usize, head: usize, weight: &[f32]| {
        let mut x = double(&before[token * width + head * head_dim..][..head_dim]);
        if norm {
            x = normalised(&x, weight, f64::from(eps));
        }
        for i in 0..if rotary { half } else { 0 } {
            let [cos, sin] = angles[positions[token] as usize * half + i].map(f64::from);
            (x[i], x[i + half]) = (x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin);
        }
        x
    };
    let after = lab.get(&qkv);
    let queries = heads * head_dim;
    let (mut out, mut expected) = (Vec::new(), Vec::new());
    for token in 0..n {
        out.extend_from_slice(&after[token * width..][..queries]);
        expected.extend((0..heads).flat_map(|head| turned(token, head, &q_norm)));
        let rest = token * width + queries..(token + 1) * width;
        assert_eq!(after[rest.clone()], before[rest], "keys and values stay in {sizes:?}");
    }
    lab.check(&out, &expected);

    let stored = lab.get(&pool);
    let (mut keys, mut expected) = (Vec::new(), Vec::new());
    let mut written = 0;
    for &[token, place] in &writes {
        let (page, offset) = (place as usize / PAGE_TOKENS, place as usize % PAGE_TOKENS);
        for head in 0..kv_heads {
            let row = |kind: usize| {
                &stored[(((((page * layers) + layer) * 2 + kind) * kv_heads + head) * PAGE_TOKENS + offset) * head_dim..]
                    [..head_dim]
            };
            keys.extend_from_slice(row(0));
            expected.extend(turned(token as usize, heads + head, &k_norm));
            let value = token as usize * width + (heads + kv_heads + head) * head_dim;
            assert_eq!(row(1), &before[value..][..head_dim], "{sizes:?}");
            written += 2 * head_dim;
        }
    }
    lab.check(&keys, &expected);
    assert_eq!(stored.iter().filter(|x| !x.is_nan()).count(), written, "nothing else is written in {sizes:?}");
}

#[test]
fn swiglu_combines_gate_and_up() {
    on_gpu("swiglu", |lab| {
        for (n, inner, blocks) in [(1, 1, 1), (5, 50, 1), (3, 56, 2), (70, 1032, 3), (9, 1031, 500), (300, 2048, 16)] {
            let gate_up: Vec<f32> = lab.random.floats(n * 2 * inner).iter().map(|x| lab.round(x * 10.0)).collect();
            let (gate_up_on_gpu, out) = (lab.put(&gate_up), lab.unwritten(n * inner));
            let args = [(&gate_up_on_gpu).into(), (&out).into(), (n * inner).into(), inner.into()];
            lab.run("swiglu", Size::of(blocks, SWIGLU_THREADS), &args);
            let expected: Vec<f64> = (0..n * inner)
                .map(|i| {
                    let at = i / inner * 2 * inner + i % inner;
                    let (gate, up) = (f64::from(gate_up[at]), f64::from(gate_up[at + inner]));
                    gate / (1.0 + (-gate).exp()) * up
                })
                .collect();
            lab.check(&lab.get(&out), &expected);
        }
    });
}

#[test]
fn add_bias_adds_to_each_row() {
    on_gpu("bias", |lab| {
        for (n, width, blocks) in [(1, 1, 1), (5, 50, 1), (3, 56, 2), (70, 1032, 3), (9, 1031, 500), (300, 2048, 16)] {
            let (x, x_on_gpu) = lab.acts(n * width);
            let (bias, bias_on_gpu) = lab.floats(width);
            let args = [(&x_on_gpu).into(), (&bias_on_gpu).into(), (n * width).into(), width.into()];
            lab.run("add_bias", Size::of(blocks, BIAS_THREADS), &args);
            let expected: Vec<f64> = (0..n * width).map(|i| f64::from(x[i]) + f64::from(bias[i % width])).collect();
            lab.check(&lab.get(&x_on_gpu), &expected);
        }
    });
}

#[test]
fn copy_pages_copies_the_first_tokens_of_all_layers() {
    on_gpu("pages", |lab| {
        for (layers, kv_heads, head_dim) in [(1, 1, 6), (2, 3, 10), (3, 2, 64), (2, 8, 128)] {
            let (pages, piece) = (9, PAGE_TOKENS * head_dim);
            let page = layers * 2 * kv_heads * piece;
            let (before, pool) = lab.acts(pages * page);
            let order = shuffled(&mut lab.random, pages);
            let copies: Vec<[i32; 4]> =
                [0, 1, 7, 16].iter().enumerate().map(|(i, &tokens)| [order[2 * i], order[2 * i + 1], tokens, 0]).collect();
            let copies_on_gpu = lab.upload(&copies);
            let args = [(&copies_on_gpu).into(), (&pool).into(), layers.into(), kv_heads.into(), head_dim.into()];
            lab.run("copy_pages", Size::of(copies.len() * layers * 2 * kv_heads, 128), &args);
            let mut expected = before;
            for &[from, to, tokens, _] in &copies {
                for start in (0..page).step_by(piece) {
                    let from = from as usize * page + start;
                    expected.copy_within(from..from + tokens as usize * head_dim, to as usize * page + start);
                }
            }
            assert_eq!(lab.get(&pool), expected);
        }
    });
}

#[test]
fn attention_sees_what_each_query_may_see() {
    on_gpu("attention_simple", |lab| {
        for &(heads, kv_heads, head_dim, ..) in &HEADS {
            for window in [None, Some(1), Some(20)] {
                check_attention(lab, [heads, kv_heads, head_dim], window);
            }
        }
    });
}

fn check_attention(lab: &mut Lab, [heads, kv_heads, head_dim]: [usize; 3], window: Option<usize>) {
    let (layers, layer, width) = (2, 1, (heads + 2 * kv_heads) * head_dim);
    // Position of the first token and number of tokens of each row: prefill, decode, and what lies between.
    let spans = [(0, 1), (0, 37), (15, 1), (16, 3), (97, 1), (63, 20)];
    let n: usize = spans.iter().map(|(_, count)| count).sum();
    let scale = 1.0 / (head_dim as f32).sqrt();
    let table_lens = spans.map(|(position, count): (usize, usize)| (position + count).div_ceil(PAGE_TOKENS));
    let pages: usize = table_lens.iter().sum();
    let block_tables = shuffled(&mut lab.random, pages);
    // Queries are enlarged, so that weights differ.
    let qkv: Vec<f32> = lab.random.floats(n * width).iter().map(|x| lab.round(4.0 * x)).collect();
    let mut pool = vec![f32::NAN; pages * layers * 2 * kv_heads * PAGE_TOKENS * head_dim];
    let row_at = |entry: usize, kind: usize, head: usize, position: usize| {
        let page = block_tables[entry + position / PAGE_TOKENS] as usize;
        ((((page * layers + layer) * 2 + kind) * kv_heads + head) * PAGE_TOKENS + position % PAGE_TOKENS) * head_dim
    };
    let (mut rows, mut row_of_token, mut positions, mut entry) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (row, (&(position, count), len)) in spans.iter().zip(table_lens).enumerate() {
        rows.push([positions.len() as i32, count as i32, position as i32, entry as i32]);
        row_of_token.extend(std::iter::repeat_n(row as i32, count));
        positions.extend((position..position + count).map(|position| position as i32));
        for at in 0..position + count {
            for (kind, head) in (0..2).flat_map(|kind| (0..kv_heads).map(move |head| (kind, head))) {
                let values: Vec<f32> = lab.random.floats(head_dim).iter().map(|&x| lab.round(x)).collect();
                pool[row_at(entry, kind, head, at)..][..head_dim].copy_from_slice(&values);
            }
        }
        entry += len;
    }
    let (qkv_on_gpu, pool_on_gpu, out) = (lab.put(&qkv), lab.put(&pool), lab.unwritten(n * heads * head_dim));
    let (rows_on_gpu, row_of_token_on_gpu) = (lab.upload(&rows), lab.upload(&row_of_token));
    let (positions_on_gpu, tables_on_gpu) = (lab.upload(&positions), lab.upload(&block_tables));
    let args = [
        (&qkv_on_gpu).into(),
        (&pool_on_gpu).into(),
        (&rows_on_gpu).into(),
        (&row_of_token_on_gpu).into(),
        (&positions_on_gpu).into(),
        (&tables_on_gpu).into(),
        (&out).into(),
        heads.into(),
        kv_heads.into(),
        head_dim.into(),
        layers.into(),
        layer.into(),
        scale.into(),
        window.unwrap_or(0).into(),
    ];
    let grid = (n as u32, heads.div_ceil(WARPS) as u32);
    lab.run("attention_simple", Size { grid, block: 32 * WARPS as u32, shared: 0 }, &args);

    let mut expected = Vec::with_capacity(n * heads * head_dim);
    for token in 0..n {
        let (entry, end) = (rows[row_of_token[token] as usize][3] as usize, positions[token] as usize + 1);
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let query = &qkv[token * width + head * head_dim..][..head_dim];
            let seen = window.map_or(0, |window| end.saturating_sub(window))..end;
            let vector = |kind: usize, at: usize| &pool[row_at(entry, kind, kv_head, at)..][..head_dim];
            let dot = |key: &[f32]| query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
            let scores: Vec<f64> = seen.clone().map(|at| dot(vector(0, at)) * f64::from(scale)).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            expected.extend((0..head_dim).map(|d| {
                let values = seen.clone().zip(&weights).map(|(at, weight)| weight * f64::from(vector(1, at)[d]));
                values.sum::<f64>() / sum
            }));
        }
    }
    lab.check(&lab.get(&out), &expected);
}

#[test]
fn candidate_logits_multiplies_pairs() {
    on_gpu("head", |lab| {
        for (rows, vocabulary, hidden, count) in
            [(1, 1, 1, 1), (3, 20, 50, 9), (5, 33, 40, 100), (2, 9, 2048, 17), (2, 9, 4104, 8)]
        {
            let (states, states_on_gpu) = lab.acts(rows * hidden);
            let (head, head_on_gpu) = lab.acts(vocabulary * hidden);
            let below = |random: &mut Random, limit: usize| random.below(limit as u64) as i32;
            let pairs: Vec<[i32; 2]> =
                (0..count).map(|_| [below(&mut lab.random, rows), below(&mut lab.random, vocabulary)]).collect();
            let (pairs_on_gpu, logits) = (lab.upload(&pairs), lab.filled::<f32>(count));
            let args = [
                (&states_on_gpu).into(),
                (&head_on_gpu).into(),
                (&pairs_on_gpu).into(),
                (&logits).into(),
                count.into(),
                hidden.into(),
            ];
            lab.run("candidate_logits", Size::of(count.div_ceil(PAIR_WARPS), 32 * PAIR_WARPS as u32), &args);
            let expected: Vec<f64> = pairs
                .iter()
                .map(|&[row, token]| {
                    let (a, b) = (&states[row as usize * hidden..][..hidden], &head[token as usize * hidden..][..hidden]);
                    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
                })
                .collect();
            // Logits are not rounded, in either precision.
            let error = relative_error(&lab.read(&logits), &expected);
            assert!(error <= 3e-6, "relative error {error:e}");
        }
    });
}

/// Rows of logits with ties, both zeros and what is not a number, some places wider than the vocabulary, and a mask for each.
struct Rows {
    vocabulary: usize,
    ld: usize,
    logits: Vec<f32>,
    masks: Vec<u32>,
}

impl Rows {
    fn random(random: &mut Random, count: usize, vocabulary: usize, ld: usize) -> Self {
        let mut logits: Vec<f32> = random.floats(count * ld).iter().map(|x| (x * 300.0).round() / 30.0).collect();
        for _ in 0..count * vocabulary / 40 {
            let special = [f32::NAN, -f32::NAN, 0.0, -0.0, f32::NEG_INFINITY];
            logits[random.below((count * ld) as u64) as usize] = special[random.below(5) as usize];
        }
        if count > 3 {
            logits[ld..][..vocabulary].fill(f32::NAN);
            logits[2 * ld..][..vocabulary].fill(-0.0);
        }
        let words = vocabulary.div_ceil(32);
        let mut masks: Vec<u32> =
            (0..count * words).map(|_| (random.below(1 << 31) & random.below(1 << 31)) as u32).collect();
        for mask in masks.chunks_mut(words) {
            let token = random.below(vocabulary as u64) as usize;
            mask[token / 32] |= 1 << (token % 32);
        }
        Rows { vocabulary, ld, logits, masks }
    }

    /// First word of the mask of a row; every third has none.
    fn mask(&self, row: usize) -> i32 {
        if row.is_multiple_of(3) { -1 } else { (row * self.vocabulary.div_ceil(32)) as i32 }
    }

    fn all(&self, row: usize) -> Vec<Scored> {
        (0..).zip(self.logits[row * self.ld..][..self.vocabulary].iter().copied()).collect()
    }

    fn allowed(&self, row: usize) -> Vec<Scored> {
        let mut allowed = self.all(row);
        if let Ok(first) = usize::try_from(self.mask(row)) {
            allowed.retain(|(token, _)| self.masks[first + *token as usize / 32] >> (token % 32) & 1 == 1);
        }
        allowed
    }
}

/// Rows, the vocabulary and the distance of rows.
const ROWS: [(usize, usize, usize); 7] =
    [(1, 1, 1), (5, 31, 31), (4, 97, 100), (9, 97, 97), (30, 1000, 1000), (6, 5003, 5004), (5, 40_000, 40_001)];

#[test]
fn argmax_rows_takes_the_largest_allowed_logit() {
    on_gpu("sample", |lab| {
        for (count, vocabulary, ld) in ROWS {
            let rows = Rows::random(&mut lab.random, count, vocabulary, ld);
            let (slots, places) = (shuffled(&mut lab.random, count + 3), shuffled(&mut lab.random, count));
            let list: Vec<[i32; 4]> = (0..count).map(|row| [row as i32, slots[row], rows.mask(row), places[row]]).collect();
            let (logits, masks, list) = (lab.upload(&rows.logits), lab.upload(&rows.masks), lab.upload(&list));
            let (of_slots, result) = (lab.filled::<i32>(count + 3), lab.filled::<i32>(count));
            let args = [
                (&logits).into(),
                ld.into(),
                (&list).into(),
                (&masks).into(),
                vocabulary.into(),
                (&of_slots).into(),
                (&result).into(),
            ];
            lab.run("argmax_rows", Size::of(count, ROW_THREADS), &args);
            let (of_slots, result) = (lab.read(&of_slots), lab.read(&result));
            for row in 0..count {
                let expected = greedy(&rows.allowed(row)).unwrap() as i32;
                let got = [result[places[row] as usize], of_slots[slots[row] as usize]];
                assert_eq!(got, [expected; 2], "row {row} of {count}, vocabulary {vocabulary}");
            }
        }
    });
}

#[test]
fn argmax_lists_takes_the_largest_logit_of_each_list() {
    on_gpu("sample", |lab| {
        let lens = [1, 2, 3, 31, 32, 33, 100, 500];
        let (mut lists, mut scored): (Vec<[i32; 4]>, Vec<Scored>) = (Vec::new(), Vec::new());
        for (i, len) in lens.into_iter().enumerate() {
            lists.push([scored.len() as i32, len, i as i32 + 2, (lens.len() - 1 - i) as i32]);
            for _ in 0..len {
                let logit = if lab.random.below(20) == 0 { f32::NAN } else { lab.random.below(9) as f32 - 4.0 };
                scored.push((lab.random.below(1 << 24) as TokenId, logit));
            }
        }
        let tokens = lab.upload(&scored.iter().map(|&(token, _)| token as i32).collect::<Vec<_>>());
        let logits = lab.upload(&scored.iter().map(|&(_, logit)| logit).collect::<Vec<_>>());
        let on_gpu = lab.upload(&lists);
        let (slots, result) = (lab.filled::<i32>(lens.len() + 2), lab.filled::<i32>(lens.len()));
        let args = [(&logits).into(), (&tokens).into(), (&on_gpu).into(), (&slots).into(), (&result).into()];
        lab.run("argmax_lists", Size::of(lens.len(), 32), &args);
        let (slots, result) = (lab.read(&slots), lab.read(&result));
        for [first, len, slot, place] in lists {
            let expected = greedy(&scored[first as usize..][..len as usize]).unwrap() as i32;
            assert_eq!([result[place as usize], slots[slot as usize]], [expected; 2], "a list of {len}");
        }
    });
}

#[test]
fn sample_rows_draws_as_the_cpu_does() {
    on_gpu("sample", |lab| {
        let (mut draws, mut differ) = (0, 0);
        for (count, vocabulary, ld) in ROWS {
            let rows = Rows::random(&mut lab.random, count, vocabulary, ld);
            for (temperature, top_k, top_p) in [
                (0.0, 0, 1.0),
                (1.0, 0, 1.0),
                (0.7, 1, 1.0),
                (3.0, 5, 1.0),
                (1.5, 40, 0.9),
                (2.0, 0, 0.5),
                (5.0, 0, 0.95),
                (0.9, 3, 0.0),
                (1e-3, 100_000, 0.999),
            ] {
                let samples: Vec<SampleRow> = (0..count)
                    .map(|row| SampleRow {
                        token: 0,
                        slot: RowSlot(row as u32),
                        allowed: Allowed::All,
                        sampling: Sampling { temperature, top_p, top_k, seed: lab.random.below(1 << 31) << 32 | row as u64 },
                        draw: lab.random.below(1000) as u32,
                        top_logits: 0,
                        logprobs: None,
                    })
                    .collect();
                let words: Vec<i32> = samples
                    .iter()
                    .enumerate()
                    .flat_map(|(row, sample)| draw_words(sample, [row as i32, row as i32, rows.mask(row), row as i32]))
                    .collect();
                assert_eq!(words.len(), count * DRAW_WORDS);
                let (logits, masks, words) = (lab.upload(&rows.logits), lab.upload(&rows.masks), lab.upload(&words));
                let (slots, result) = (lab.filled::<i32>(count), lab.filled::<i32>(count));
                let args = [
                    (&logits).into(),
                    ld.into(),
                    (&words).into(),
                    (&masks).into(),
                    vocabulary.into(),
                    (&slots).into(),
                    (&result).into(),
                ];
                lab.run("sample_rows", Size::of(count, ROW_THREADS), &args);
                let result = lab.read(&result);
                assert_eq!(lab.read(&slots), result);
                for (row, sample) in samples.iter().enumerate() {
                    let mut allowed = rows.allowed(row);
                    let got = result[row] as TokenId;
                    assert!(
                        allowed.iter().any(|(token, _)| *token == got),
                        "{got} is not allowed in row {row} of {vocabulary}"
                    );
                    draws += 1;
                    differ += usize::from(choose(&mut allowed, &sample.sampling, sample.draw) != Some(got));
                }
            }
        }
        // Probabilities are rounded otherwise, so a draw at the edge between two tokens may fall to the other side.
        assert!(differ * 200 <= draws, "{differ} of {draws} draws differ");
    });
}

#[test]
fn top_rows_lists_the_most_probable() {
    on_gpu("sample", |lab| {
        for (count, vocabulary, ld) in ROWS {
            let rows = Rows::random(&mut lab.random, count, vocabulary, ld);
            let wanted: Vec<usize> =
                (0..count).map(|row| [5, 0, 1, 64, vocabulary.min(1000)][row % 5].min(vocabulary)).collect();
            let firsts: Vec<usize> = (0..count).map(|row| wanted[..row].iter().sum()).collect();
            let total: usize = wanted.iter().sum();
            let list: Vec<[i32; 4]> = (0..count).map(|row| [row, wanted[row], firsts[row], row].map(|x| x as i32)).collect();
            let chosen: Vec<i32> = (0..count).map(|_| lab.random.below(vocabulary as u64) as i32).collect();
            let (logits, list, chosen_on_gpu) = (lab.upload(&rows.logits), lab.upload(&list), lab.upload(&chosen));
            let (ids, values) = (lab.filled::<i32>(total), lab.filled::<f32>(total));
            let (log_sums, of_chosen) = (lab.filled::<f64>(count), lab.filled::<f32>(count));
            let args = [
                (&logits).into(),
                ld.into(),
                (&list).into(),
                vocabulary.into(),
                (&chosen_on_gpu).into(),
                (&ids).into(),
                (&values).into(),
                (&log_sums).into(),
                (&of_chosen).into(),
            ];
            lab.run("top_rows", Size::of(count, ROW_THREADS), &args);
            let (ids, values, log_sums, of_chosen) =
                (lab.read(&ids), lab.read(&values), lab.read(&log_sums), lab.read(&of_chosen));
            for row in 0..count {
                let mut expected = rows.all(row);
                let token = chosen[row] as usize;
                assert_eq!(of_chosen[row].to_bits(), expected[token].1.to_bits());
                let best = greedy(&expected).unwrap();
                let logprob = logprobs(expected.clone(), best, 0).logprob;
                let got = f64::from(expected[best as usize].1) - log_sums[row];
                let close = (got - f64::from(logprob)).abs() <= 1e-5 * f64::from(logprob).abs().max(1.0);
                assert!(close || !(got.is_finite() && logprob.is_finite()), "{got} instead of {logprob} in row {row}");
                keep_largest(&mut expected, wanted[row]);
                let places = firsts[row]..firsts[row] + wanted[row];
                let got: Vec<_> =
                    ids[places.clone()].iter().zip(&values[places]).map(|(id, x)| (*id as TokenId, x.to_bits())).collect();
                let expected: Vec<_> = expected.iter().map(|(token, logit)| (*token, logit.to_bits())).collect();
                assert_eq!(got, expected, "row {row} of {vocabulary}");
            }
        }
    });
}
