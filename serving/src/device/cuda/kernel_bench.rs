//! Every kernel but attention alone, with inputs of its own, for `examples/cuda_bench.rs`; attention has [`bench`](super::bench).

use std::sync::Arc;

use super::driver::{Arg, Buffer, Gpu, Kernel, Size};
use super::forward::{EMBED_THREADS, FP8_THREADS, NORM_THREADS, ROPE_THREADS, SWIGLU_ROW_THREADS, SWIGLU_THREADS};
use super::gemm::{Gemm, Product, RowScales, padded};
use super::head::{PAIR_WARPS, ROW_THREADS, draw_words};
use super::kernels::{Kernels, Precision};
use super::weights::{Slice, draw};
use crate::error::Result;
use crate::model::{ModelConfig, Normal};
use crate::request::Sampling;
use crate::step::{Allowed, PAGE_TOKENS, RowSlot, SampleRow};

/// Launches between two events.
const LAUNCHES: usize = 10;
/// Pairs of events, the fastest of which counts.
const ROUNDS: usize = 5;

/// Rows of logits that are looked at together.
const LOGIT_ROWS: usize = 256;
/// Tokens that each of them chooses among, where there is a list.
const CANDIDATES: usize = 16;
/// Weights that take turns in products, so that none is found in the GPU's cache.
const WEIGHTS: usize = 4;

/// What one launch took and did.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelFigure {
    /// The kernel, or the product.
    pub name: String,
    /// Rows that it worked on.
    pub rows: usize,
    /// Seconds.
    pub seconds: f64,
    /// Operations that the result needs; 0 where memory is the bound.
    pub flops: f64,
    /// Bytes that are read and written at least.
    pub bytes: f64,
}

/// A GPU with its kernels loaded, and the sizes of a model.
#[derive(Debug)]
pub struct KernelBench {
    gpu: Arc<Gpu>,
    kernels: Kernels,
    gemm: Gemm,
    precision: Precision,
    config: ModelConfig,
    fill_normal: Kernel,
}

impl KernelBench {
    /// Opens a GPU and compiles its kernels. Fails with a sentence if there is none.
    pub fn open(ordinal: u32, precision: Precision, config: &ModelConfig) -> Result<Self> {
        let gpu = Gpu::open(ordinal)?;
        let kernels = Kernels::load(&gpu, precision, None)?;
        let gemm = Gemm::new(&gpu, &kernels, precision, None, 0)?;
        let fill_normal = kernels.get("random", "fill_normal", 0)?;
        Ok(KernelBench { gpu, kernels, gemm, precision, config: config.clone(), fill_normal })
    }

    /// Times the kernels of a pass of `n` tokens, each alone. Fails if there is too little memory.
    pub fn elementwise(&self, n: usize) -> Result<Vec<KernelFigure>> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, vocab_size, .. } = self.config;
        let act = self.precision.bytes();
        let (x, y) = (self.normal(n * hidden)?, self.normal(n * hidden)?);
        let (gate_up, out) = (self.normal(n * 2 * inner)?, self.normal(n * inner)?);
        let (weight, eps) = (self.gpu.upload(&vec![1.0f32; hidden])?, self.config.rms_norm_eps);
        let table = self.normal(vocab_size * hidden)?;
        let tokens: Vec<i32> = (0..n).map(|t| (t * 7919 % vocab_size) as i32).collect();
        let tokens = self.gpu.upload(&tokens)?;
        let embed: [Arg; 6] = [(&tokens).into(), 0u64.into(), (&table).into(), (&x).into(), n.into(), hidden.into()];
        let norm: [Arg; 6] = [(&x).into(), 0u64.into(), (&weight).into(), (&y).into(), hidden.into(), eps.into()];
        let swiglu: [Arg; 4] = [(&gate_up).into(), (&out).into(), (n * inner).into(), inner.into()];
        let blocks = Size::of((n * inner).div_ceil(8 * SWIGLU_THREADS as usize).min(1 << 16), SWIGLU_THREADS);
        let mut figures = vec![
            self.figure(["embed", "embed"], n, Size::of(n, EMBED_THREADS), &embed, 2 * n * hidden * act)?,
            self.figure(["norm", "rms_norm"], n, Size::of(n, NORM_THREADS), &norm, 2 * n * hidden * act)?,
            self.figure(["swiglu", "swiglu"], n, blocks, &swiglu, 3 * n * inner * act)?,
            self.rope(n)?,
            self.pages(n.div_ceil(PAGE_TOKENS))?,
        ];
        if self.precision == Precision::Fp8 {
            let (rounded, scales) = (self.gpu.allocate::<u8>(n * inner)?, self.gpu.allocate::<f32>(n)?);
            let norm: [Arg; 6] =
                [(&x).into(), (&weight).into(), (&rounded).into(), (&scales).into(), hidden.into(), eps.into()];
            let swiglu: [Arg; 4] = [(&gate_up).into(), (&rounded).into(), (&scales).into(), inner.into()];
            let rows: [Arg; 4] = [(&x).into(), (&rounded).into(), (&scales).into(), hidden.into()];
            let [norm_size, swiglu_size, size] =
                [NORM_THREADS, SWIGLU_ROW_THREADS, FP8_THREADS].map(|threads| Size::of(n, threads));
            figures.extend([
                self.figure(["norm", "rms_norm_e4m3"], n, norm_size, &norm, n * hidden * (act + 1))?,
                self.figure(["swiglu", "swiglu_e4m3"], n, swiglu_size, &swiglu, n * inner * (2 * act + 1))?,
                self.figure(["fp8", "quantise_rows"], n, size, &rows, n * hidden * (act + 1))?,
            ]);
        }
        Ok(figures)
    }

    /// Times the kernels that look at rows of logits, or at candidates' alone.
    pub fn head(&self) -> Result<Vec<KernelFigure>> {
        let ModelConfig { hidden_size: hidden, vocab_size: vocabulary, .. } = self.config;
        let normal = Normal { seed: 3, std: 2.0 };
        let row: Vec<f32> = (0..vocabulary as u64).map(|token| normal.value(token)).collect();
        let logits = self.gpu.upload(&row.repeat(LOGIT_ROWS))?;
        let (slots, chosen) = (self.gpu.allocate::<i32>(LOGIT_ROWS)?, self.gpu.allocate::<i32>(LOGIT_ROWS)?);
        let places: Vec<[i32; 4]> = (0..LOGIT_ROWS as i32).map(|row| [row, row, -1, row]).collect();
        let draws: Vec<i32> = places.iter().flat_map(|&place| draw_words(&drawn(place[0] as u32), place)).collect();
        let (places, draws) = (self.gpu.upload(&places)?, self.gpu.upload(&draws)?);
        let args = |list: Arg| -> [Arg; 7] {
            [(&logits).into(), vocabulary.into(), list, 0u64.into(), vocabulary.into(), (&slots).into(), (&chosen).into()]
        };
        let (head, states) = (self.normal(vocabulary * hidden)?, self.normal(LOGIT_ROWS * hidden)?);
        let count = LOGIT_ROWS * CANDIDATES;
        let pairs: Vec<[i32; 2]> = (0..count).map(|i| [(i / CANDIDATES) as i32, (i * 7919 % vocabulary) as i32]).collect();
        let (pairs, of_pairs) = (self.gpu.upload(&pairs)?, self.gpu.allocate::<f32>(count)?);
        let candidates: [Arg; 6] =
            [(&states).into(), (&head).into(), (&pairs).into(), (&of_pairs).into(), count.into(), hidden.into()];
        let (rows, bytes) = (Size::of(LOGIT_ROWS, ROW_THREADS), 4 * vocabulary * LOGIT_ROWS);
        let of_candidates = Size::of(count.div_ceil(PAIR_WARPS), 32 * PAIR_WARPS as u32);
        let of_pair = (count + LOGIT_ROWS) * hidden * self.precision.bytes();
        Ok(vec![
            self.figure(["sample", "argmax_rows"], LOGIT_ROWS, rows, &args((&places).into()), bytes)?,
            self.figure(["sample", "sample_rows"], LOGIT_ROWS, rows, &args((&draws).into()), bytes)?,
            self.figure(["head", "candidate_logits"], count, of_candidates, &candidates, of_pair)?,
        ])
    }

    /// Times the four products of a layer with `m` rows, by the fastest algorithm that the library has.
    pub fn products(&mut self, m: usize) -> Result<Vec<KernelFigure>> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, heads, kv_heads, head_dim, .. } = self.config;
        let queries = heads * head_dim;
        [
            ("qkv", queries + 2 * kv_heads * head_dim, hidden),
            ("output", hidden, queries),
            ("gate_up", 2 * inner, hidden),
            ("down", hidden, inner),
        ]
        .into_iter()
        .map(|(name, n, k)| self.product(name, [m, n, k]))
        .collect()
    }

    fn product(&mut self, name: &str, [m, n, k]: [usize; 3]) -> Result<KernelFigure> {
        let rows = padded(m);
        let (mut x, y) = (self.normal(rows * k)?, self.normal(rows * n)?);
        let mut weights = (0..WEIGHTS).map(|_| self.normal(n * k)).collect::<Result<Vec<_>>>()?;
        let mut scales = None;
        let mut bytes = self.precision.bytes();
        if self.precision == Precision::Fp8 {
            let (of_x, of_w) = (self.gpu.allocate::<f32>(rows)?, self.gpu.allocate::<f32>(n)?);
            x = self.quantised(&x, &of_x, rows, k)?;
            weights = weights.iter().map(|w| self.quantised(w, &of_w, n, k)).collect::<Result<_>>()?;
            scales = Some((of_x, of_w));
            bytes = 1;
        }
        let product = Product {
            m,
            n,
            k,
            x: x.at(0),
            w: 0,
            y: y.at(0),
            bias: 0,
            accumulate: false,
            wide: false,
            scales: scales.as_ref().map(|(x, w)| RowScales { x: x.at(0), w: w.at(0) }),
        };
        let weights: Vec<u64> = weights.iter().map(|w| w.at(0)).collect();
        // SAFETY: the buffers have the product's sizes, and live until the timing has waited for the last of them.
        let milliseconds = unsafe { self.gemm.tune(product, &weights) }?;
        Ok(KernelFigure {
            name: format!("{name} {n} x {k}"),
            rows: m,
            seconds: f64::from(milliseconds) / 1e3,
            flops: 2.0 * (m * n * k) as f64,
            bytes: ((n + m) * k * bytes + m * n * self.precision.bytes()) as f64,
        })
    }

    fn rope(&self, n: usize) -> Result<KernelFigure> {
        let ModelConfig { heads, kv_heads, head_dim, rotary_dim, rms_norm_eps, .. } = self.config;
        let qkv = self.normal(n * (heads + 2 * kv_heads) * head_dim)?;
        let pages = n.div_ceil(PAGE_TOKENS);
        let pool = self.normal(pages * 2 * kv_heads * PAGE_TOKENS * head_dim)?;
        let context = 4096.min(n);
        let angles = self.gpu.upload(&vec![[0.6f32, 0.8]; context * rotary_dim / 2])?;
        let positions: Vec<i32> = (0..n).map(|t| (t % context) as i32).collect();
        let writes: Vec<[i32; 2]> = (0..n as i32).map(|t| [t, t]).collect();
        let (positions, writes) = (self.gpu.upload(&positions)?, self.gpu.upload(&writes)?);
        let (layers, layer) = (1usize, 0usize);
        let args: [Arg; 17] = [
            (&qkv).into(),
            (&positions).into(),
            (&writes).into(),
            (&angles).into(),
            0u64.into(),
            0u64.into(),
            (&pool).into(),
            n.into(),
            n.into(),
            heads.into(),
            kv_heads.into(),
            head_dim.into(),
            rotary_dim.into(),
            layers.into(),
            layer.into(),
            rms_norm_eps.into(),
            1i32.into(),
        ];
        let bytes = 2 * n * (heads + 2 * kv_heads) * head_dim * self.precision.bytes();
        self.figure(["rope", "rope_and_store"], n, Size::of(2 * n, ROPE_THREADS), &args, bytes)
    }

    /// Copies of half of `pages` full pages to the other half.
    fn pages(&self, pages: usize) -> Result<KernelFigure> {
        let ModelConfig { layers, kv_heads, head_dim, .. } = self.config;
        let count = (pages / 2).clamp(1, 256);
        let pool = self.normal(2 * count * layers * 2 * kv_heads * PAGE_TOKENS * head_dim)?;
        let copies: Vec<[i32; 4]> = (0..count as i32).map(|i| [i, i + count as i32, PAGE_TOKENS as i32, 0]).collect();
        let copies = self.gpu.upload(&copies)?;
        let args: [Arg; 5] = [(&copies).into(), (&pool).into(), layers.into(), kv_heads.into(), head_dim.into()];
        let bytes = 2 * count * layers * 2 * kv_heads * PAGE_TOKENS * head_dim * self.precision.bytes();
        let size = Size::of(count * layers * 2 * kv_heads, 128);
        self.figure(["pages", "copy_pages"], count, size, &args, bytes)
    }

    /// Times a kernel that moves so many bytes.
    fn figure(&self, [file, name]: [&str; 2], rows: usize, size: Size, args: &[Arg], bytes: usize) -> Result<KernelFigure> {
        let kernel = self.kernels.get(file, name, 0)?;
        let (start, end) = (self.gpu.timed_event()?, self.gpu.timed_event()?);
        let mut milliseconds = f32::INFINITY;
        for _ in 0..=ROUNDS {
            self.gpu.record(&start)?;
            for _ in 0..LAUNCHES {
                // SAFETY: callers pass what the kernel takes, in order, and buffers of the sizes that they name.
                unsafe { self.gpu.launch(kernel, size, args) }?;
            }
            self.gpu.record(&end)?;
            end.wait()?;
            milliseconds = milliseconds.min(start.milliseconds_to(&end)?);
        }
        let seconds = f64::from(milliseconds) / 1e3 / LAUNCHES as f64;
        Ok(KernelFigure { name: name.to_owned(), rows, seconds, flops: 0.0, bytes: bytes as f64 })
    }

    /// Activations that are no zeros.
    fn normal(&self, len: usize) -> Result<Buffer<u8>> {
        let buffer = self.gpu.allocate::<u8>(len * self.precision.bytes())?;
        let normal = Normal { seed: 7, std: 1.0 };
        // SAFETY: the buffer has that many values.
        unsafe { draw(&self.gpu, self.fill_normal, buffer.at(0), normal, &Slice::whole(1, len)) }?;
        Ok(buffer)
    }

    fn quantised(&self, x: &Buffer<u8>, scales: &Buffer<f32>, rows: usize, width: usize) -> Result<Buffer<u8>> {
        let rounded = self.gpu.allocate::<u8>(rows * width)?;
        let args: [Arg; 4] = [x.into(), (&rounded).into(), scales.into(), width.into()];
        let kernel = self.kernels.get("fp8", "quantise_rows", 0)?;
        // SAFETY: all three buffers have so many rows.
        unsafe { self.gpu.launch(kernel, Size::of(rows, FP8_THREADS), &args) }?;
        Ok(rounded)
    }
}

/// A draw from all of the vocabulary.
fn drawn(row: u32) -> SampleRow {
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed: u64::from(row) };
    SampleRow { token: row, slot: RowSlot(row), allowed: Allowed::All, sampling, draw: 0, top_logits: 0, logprobs: None }
}
