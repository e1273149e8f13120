//! The pass: layers in order, over buffers that are taken once.

use std::path::Path;
use std::sync::Arc;

use super::attend::{Attention, AttentionPlaces};
use super::driver::{Arg, Buffer, Gpu, Kernel, Size};
use super::gemm::{Gemm, Product, RowScales, padded, padded_sizes};
use super::kernels::{Kernels, Precision};
use super::metadata::Metadata;
use super::nccl::Peer;
use super::timing::{Part, Timing};
use super::weights::{LayerWeights, Matrix, Slice, Weights, draw};
use crate::device::cpu::rope::Rope;
use crate::error::Result;
use crate::model::{ModelConfig, Normal};

/// Threads of the blocks of each kernel, as its file says.
pub(super) const EMBED_THREADS: u32 = 128;
pub(super) const NORM_THREADS: u32 = 256;
pub(super) const ROPE_THREADS: u32 = 128;
pub(super) const SWIGLU_THREADS: u32 = 256;
pub(super) const SWIGLU_ROW_THREADS: u32 = 512;
pub(super) const BIAS_THREADS: u32 = 256;
pub(super) const FP8_THREADS: u32 = 256;

/// A decoder on the GPU, and what its passes work on.
#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) config: ModelConfig,
    pub(super) weights: Weights,
    pub(super) gemm: Gemm,
    pub(super) attention: Attention,
    gpu: Arc<Gpu>,
    precision: Precision,
    functions: Functions,
    /// [max_context, rotary_dim / 2], cosine and sine.
    angles: Buffer<[f32; 2]>,
    buffers: Buffers,
    /// Where products are in FP8.
    fp8: Option<Fp8>,
    /// The most tokens of a pass.
    capacity: usize,
    /// Where the model is split over GPUs: this one's place among them.
    peer: Option<Peer>,
}

/// Kernels of the pass.
#[derive(Debug)]
struct Functions {
    embed: Kernel,
    rms_norm: Kernel,
    rope_and_store: Kernel,
    swiglu: Kernel,
    add_bias: Kernel,
}

/// Activations, [capacity, ...] each.
#[derive(Debug)]
struct Buffers {
    /// The residual stream, `hidden` wide.
    x: Buffer<u8>,
    /// The part of the residual stream that is sampled from, once the last layer has attended.
    live_x: Buffer<u8>,
    /// `hidden` wide, after a norm.
    normed: Buffer<u8>,
    /// Queries, keys and values.
    qkv: Buffer<u8>,
    /// What the heads read, `heads * head_dim` wide.
    attended: Buffer<u8>,
    /// The part of it that is sampled from.
    live_attended: Buffer<u8>,
    /// `2 * intermediate` wide.
    gate_up: Buffer<u8>,
    /// `intermediate` wide.
    activated: Buffer<u8>,
}

/// What makes the inputs of products in FP8, in place of `normed` and `activated`.
#[derive(Debug)]
struct Fp8 {
    rms_norm: Kernel,
    swiglu: Kernel,
    quantise_rows: Kernel,
    /// The input of the next product in e4m3, [capacity, ...].
    input: Buffer<u8>,
    /// `[capacity]`.
    scales: Buffer<f32>,
}

/// The input of a product: where its rows lie, and their scales where they are in FP8.
#[derive(Clone, Copy, Debug)]
struct Input {
    rows: u64,
    scales: Option<u64>,
}

/// Addresses of what describes a pass, on the GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct PassInputs {
    pub(super) n: usize,
    pub(super) writes: usize,
    /// Rows of the pass that are sampled from.
    pub(super) live: usize,
    /// `int[n]`, and the slots that negative ones stand for.
    pub(super) token_ids: u64,
    pub(super) slots: u64,
    pub(super) positions: u64,
    pub(super) write_list: u64,
    /// `int[live]`, ascending.
    pub(super) live_tokens: u64,
}

impl Decoder {
    /// Takes the memory for passes of up to `capacity` tokens. `cache` is where timings of products are remembered. Of a model that
    /// is split, `config` and `weights` are the share of this GPU, and `peer` is its place.
    #[expect(clippy::too_many_arguments, reason = "each is one part of a decoder")]
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        kernels: &Kernels,
        precision: Precision,
        config: &ModelConfig,
        weights: Weights,
        capacity: usize,
        cache: Option<&Path>,
        peer: Option<Peer>,
    ) -> Result<Self> {
        let capacity = padded(capacity);
        let rows = |width: usize| gpu.allocate::<u8>(capacity * width * precision.bytes());
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let fp8 = (precision == Precision::Fp8).then(|| Fp8::new(gpu, kernels, config, capacity)).transpose()?;
        let unless_fp8 = |width: usize| rows(if fp8.is_some() { 0 } else { width });
        let buffers = Buffers {
            x: rows(config.hidden_size)?,
            live_x: rows(config.hidden_size)?,
            normed: unless_fp8(config.hidden_size)?,
            qkv: rows(queries + 2 * keys)?,
            attended: rows(queries)?,
            live_attended: rows(queries)?,
            gate_up: rows(2 * config.intermediate_size)?,
            activated: unless_fp8(config.intermediate_size)?,
        };
        // Rows that no token has are multiplied too, and must hold numbers.
        let Buffers { x, live_x, normed, qkv, attended, live_attended, gate_up, activated } = &buffers;
        for buffer in [x, live_x, normed, qkv, attended, live_attended, gate_up, activated] {
            buffer.fill(0)?;
        }
        let functions = Functions {
            embed: kernels.get("embed", "embed", 0)?,
            rms_norm: kernels.get("norm", "rms_norm", 0)?,
            rope_and_store: kernels.get("rope", "rope_and_store", 0)?,
            swiglu: kernels.get("swiglu", "swiglu", 0)?,
            add_bias: kernels.get("bias", "add_bias", 0)?,
        };
        Ok(Decoder {
            config: config.clone(),
            weights,
            gemm: Gemm::new(gpu, kernels, precision, cache, capacity * config.hidden_size)?,
            attention: Attention::new(gpu, kernels, precision, config)?,
            gpu: Arc::clone(gpu),
            precision,
            functions,
            angles: angles(gpu, config)?,
            buffers,
            fp8,
            capacity,
            peer,
        })
    }

    /// From now on, the bits of a row do not depend on what else is in a pass; see [`Gemm::invariant`] for `rows`.
    pub(super) fn invariant(self, rows: usize) -> Self {
        Decoder { gemm: self.gemm.invariant(rows), attention: self.attention.invariant(), ..self }
    }

    /// Runs all layers and leaves the residual stream of the sampled tokens for [`normalise_live`](Self::normalise_live).
    ///
    /// # Safety
    ///
    /// `inputs` and `attention` must describe a checked plan, whose `metadata` is on the GPU, and `pool` must be the address of its
    /// pages.
    pub(super) unsafe fn run(
        &mut self,
        inputs: PassInputs,
        attention: &AttentionPlaces,
        metadata: &Metadata,
        pool: u64,
        timing: &mut Timing,
    ) -> Result<()> {
        let hidden = self.config.hidden_size;
        assert!(inputs.n <= self.capacity && inputs.live <= inputs.n, "the pass was checked");
        // SAFETY: the tables are of this model, tokens were checked, and buffers have room for `capacity` rows. So it is with
        // all kernels below: each works on `n` rows of buffers that have `capacity`.
        unsafe {
            self.embed(
                inputs.token_ids,
                inputs.slots,
                self.weights.embedding.at(0),
                self.buffers.x.at(0),
                inputs.n,
                hidden,
            )?;
            timing.mark(&self.gpu, Part::Other)?;
            for layer in 0..self.config.layers {
                let last = layer + 1 == self.config.layers;
                self.attend(layer, inputs, attention, metadata, pool, timing)?;
                if last {
                    let (queries, live) = (self.config.heads * self.config.head_dim, inputs.live);
                    let Buffers { x, live_x, attended, live_attended, .. } = &self.buffers;
                    self.embed(inputs.live_tokens, 0, x.at(0), live_x.at(0), live, hidden)?;
                    self.embed(inputs.live_tokens, 0, attended.at(0), live_attended.at(0), live, queries)?;
                    timing.mark(&self.gpu, Part::Other)?;
                }
                self.feed_forward(layer, if last { inputs.live } else { inputs.n }, last, timing)?;
            }
        }
        Ok(())
    }

    /// Normalises rows of the sampled residual stream: row `i` of `out` is that of `index[i]`, an address of `int[count]`.
    ///
    /// # Safety
    ///
    /// `out` must be the address of `count` rows, and `index` name rows that the pass has sampled.
    pub(super) unsafe fn normalise_live(&self, index: u64, count: usize, out: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.rms_norm(self.buffers.live_x.at(0), index, &self.weights.final_norm, out, count) }
    }

    /// Queries, keys and values of a layer, its pages, and what its heads read.
    unsafe fn attend(
        &mut self,
        layer: usize,
        inputs: PassInputs,
        places: &AttentionPlaces,
        metadata: &Metadata,
        pool: u64,
        timing: &mut Timing,
    ) -> Result<()> {
        let ModelConfig { hidden_size: hidden, heads, kv_heads, head_dim, rotary_dim, layers, rms_norm_eps, .. } =
            self.config;
        let n = inputs.n;
        // SAFETY: see `run`.
        unsafe {
            let weights = &self.weights.layers[layer];
            let Buffers { x, qkv, attended, .. } = &self.buffers;
            let input = self.normed(x.at(0), &weights.attention_norm, n)?;
            timing.mark(&self.gpu, Part::Other)?;
            let bias = address(weights.qkv_bias.as_ref());
            let shape = [n, (heads + 2 * kv_heads) * head_dim, hidden];
            self.gemm.run(Product { bias, ..product(shape, input, &weights.qkv, qkv) })?;
            timing.mark(&self.gpu, Part::Gemm)?;
            let attention = self.config.attention_of(layer);
            let (q_norm, k_norm) = weights.qk_norm.as_ref().map(|(q, k)| (q, k)).unzip();
            let args: [Arg; 17] = [
                qkv.into(),
                inputs.positions.into(),
                inputs.write_list.into(),
                (&self.angles).into(),
                q_norm.into(),
                k_norm.into(),
                pool.into(),
                n.into(),
                inputs.writes.into(),
                heads.into(),
                kv_heads.into(),
                head_dim.into(),
                rotary_dim.into(),
                layers.into(),
                layer.into(),
                rms_norm_eps.into(),
                i32::from(attention.rotary).into(),
            ];
            let blocks = Size::of(n + inputs.writes, ROPE_THREADS);
            self.gpu.launch(self.functions.rope_and_store, blocks, &args)?;
            timing.mark(&self.gpu, Part::Other)?;
            let addresses = [qkv.at(0), pool, attended.at(0)];
            self.attention.launch(&self.gpu, places, metadata, layer, attention.window, addresses)?;
            timing.mark(&self.gpu, Part::Attention)
        }
    }

    /// The projection after attention and the feed-forward layer, for `m` rows.
    unsafe fn feed_forward(&mut self, layer: usize, m: usize, live: bool, timing: &mut Timing) -> Result<()> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, heads, head_dim, .. } = self.config;
        let Buffers { x, live_x, attended, live_attended, gate_up, .. } = &self.buffers;
        let (x, attended) = if live { (live_x, live_attended) } else { (x, attended) };
        let LayerWeights { output, output_bias, mlp_norm, gate_up: up, gate_up_bias, down, down_bias, .. } =
            &self.weights.layers[layer];
        let accumulate = self.adds_residual();
        let onto_residual =
            |input: Input, weights: &Matrix, k: usize| Product { accumulate, ..product([m, hidden, k], input, weights, x) };
        // SAFETY: see `run`.
        unsafe {
            let input = self.attended(attended, m)?;
            timing.mark(&self.gpu, Part::Other)?;
            self.gemm.run(onto_residual(input, output, heads * head_dim))?;
            timing.mark(&self.gpu, Part::Gemm)?;
            self.sum(x, m, timing)?;
            self.add_bias(x, output_bias.as_ref(), m)?;
            let input = self.normed(x.at(0), mlp_norm, m)?;
            timing.mark(&self.gpu, Part::Other)?;
            let bias = address(gate_up_bias.as_ref());
            self.gemm.run(Product { bias, ..product([m, 2 * inner, hidden], input, up, gate_up) })?;
            timing.mark(&self.gpu, Part::Gemm)?;
            let input = self.activated(m)?;
            timing.mark(&self.gpu, Part::Other)?;
            self.gemm.run(onto_residual(input, down, inner))?;
            timing.mark(&self.gpu, Part::Gemm)?;
            self.sum(x, m, timing)?;
            self.add_bias(x, down_bias.as_ref(), m)?;
            timing.mark(&self.gpu, Part::Other)
        }
    }

    /// Whether this GPU's part of a sum holds the residual stream: of one GPU alone, or the sum would have it several times.
    fn adds_residual(&self) -> bool {
        self.peer.as_ref().is_none_or(Peer::is_first)
    }

    /// Sums `m` rows of the residual stream over the GPUs that share the model, if there are several.
    unsafe fn sum(&self, x: &Buffer<u8>, m: usize, timing: &mut Timing) -> Result<()> {
        let Some(peer) = &self.peer else { return Ok(()) };
        // SAFETY: see `run`.
        unsafe { peer.sum(x.at(0), m * self.config.hidden_size, self.precision) }?;
        timing.mark(&self.gpu, Part::Exchange)
    }

    /// Sums over all GPUs that share the model once for each size of message that passes have, so that NCCL has made its
    /// connections and loaded its kernels before a pass needs them.
    pub(super) fn connect(&self) -> Result<()> {
        let Some(peer) = &self.peer else { return Ok(()) };
        let mut rows = 1;
        while rows <= self.capacity {
            // SAFETY: the buffer has `capacity` rows, and nothing is in it yet that would be missed.
            unsafe { peer.sum(self.buffers.x.at(0), rows * self.config.hidden_size, self.precision) }?;
            rows *= 4;
        }
        self.gpu.synchronize()
    }

    /// Normalises rows for a product.
    unsafe fn normed(&self, x: u64, weight: &Buffer<f32>, rows: usize) -> Result<Input> {
        let ModelConfig { hidden_size, rms_norm_eps, .. } = self.config;
        let Some(fp8) = &self.fp8 else {
            let normed = self.buffers.normed.at(0);
            // SAFETY: the caller's promise.
            unsafe { self.rms_norm(x, 0, weight, normed, rows) }?;
            return Ok(Input { rows: normed, scales: None });
        };
        let args: [Arg; 6] =
            [x.into(), weight.into(), (&fp8.input).into(), (&fp8.scales).into(), hidden_size.into(), rms_norm_eps.into()];
        // SAFETY: the caller's promise.
        unsafe { self.gpu.launch(fp8.rms_norm, Size::of(rows, NORM_THREADS), &args) }?;
        Ok(fp8.as_input())
    }

    /// Makes what the heads have read the input of a product.
    unsafe fn attended(&self, attended: &Buffer<u8>, rows: usize) -> Result<Input> {
        let Some(fp8) = &self.fp8 else { return Ok(Input { rows: attended.at(0), scales: None }) };
        // SAFETY: the caller's promise.
        unsafe { fp8.quantise(&self.gpu, attended, rows, self.config.heads * self.config.head_dim) }
    }

    /// Combines gate and up, and makes that the input of a product.
    unsafe fn activated(&self, rows: usize) -> Result<Input> {
        let inner = self.config.intermediate_size;
        let Buffers { gate_up, activated, .. } = &self.buffers;
        let Some(fp8) = &self.fp8 else {
            let args: [Arg; 4] = [gate_up.into(), activated.into(), (rows * inner).into(), inner.into()];
            let blocks = (rows * inner).div_ceil(8 * SWIGLU_THREADS as usize).min(1 << 16);
            // SAFETY: the caller's promise.
            unsafe { self.gpu.launch(self.functions.swiglu, Size::of(blocks, SWIGLU_THREADS), &args) }?;
            return Ok(Input { rows: activated.at(0), scales: None });
        };
        let args: [Arg; 4] = [gate_up.into(), (&fp8.input).into(), (&fp8.scales).into(), inner.into()];
        // SAFETY: the caller's promise.
        unsafe { self.gpu.launch(fp8.swiglu, Size::of(rows, SWIGLU_ROW_THREADS), &args) }?;
        Ok(fp8.as_input())
    }

    /// Copies row `ids[i]` of a table to row `i` of `out`; negative ids stand for what lies in a slot.
    unsafe fn embed(&self, ids: u64, slots: u64, table: u64, out: u64, count: usize, width: usize) -> Result<()> {
        let args: [Arg; 6] = [ids.into(), slots.into(), table.into(), out.into(), count.into(), width.into()];
        // SAFETY: the caller's promise.
        unsafe { self.gpu.launch(self.functions.embed, Size::of(count, EMBED_THREADS), &args) }
    }

    unsafe fn rms_norm(&self, x: u64, index: u64, weight: &Buffer<f32>, out: u64, rows: usize) -> Result<()> {
        let ModelConfig { hidden_size, rms_norm_eps, .. } = self.config;
        let args: [Arg; 6] = [x.into(), index.into(), weight.into(), out.into(), hidden_size.into(), rms_norm_eps.into()];
        // SAFETY: the caller's promise.
        unsafe { self.gpu.launch(self.functions.rms_norm, Size::of(rows, NORM_THREADS), &args) }
    }

    unsafe fn add_bias(&self, x: &Buffer<u8>, bias: Option<&Buffer<f32>>, rows: usize) -> Result<()> {
        let Some(bias) = bias else { return Ok(()) };
        let width = self.config.hidden_size;
        let args: [Arg; 4] = [x.into(), bias.into(), (rows * width).into(), width.into()];
        let blocks = (rows * width).div_ceil(8 * BIAS_THREADS as usize).min(1 << 16);
        // SAFETY: the caller's promise.
        unsafe { self.gpu.launch(self.functions.add_bias, Size::of(blocks, BIAS_THREADS), &args) }
    }

    /// Times algorithms for the products of a pass of `m` tokens, over the weights of all layers. Returns the milliseconds of one
    /// layer.
    pub(super) fn tune(&mut self, m: usize) -> Result<f32> {
        let m = m.min(self.capacity);
        let few = self.weights.layers.len().min(8);
        let mut total = 0.0;
        for (product, matrix) in self.products(m) {
            let weights: Vec<u64> = self.weights.layers[..few].iter().map(|layer| matrix(layer).values.at(0)).collect();
            // SAFETY: weights and buffers have the sizes that the products name.
            total += unsafe { self.gemm.tune(product, &weights) }?;
        }
        self.gemm.save_timings();
        Ok(total)
    }

    /// Runs each product of a layer once for every number of rows that a pass may have. The library loads a kernel when it is first
    /// launched, which waits for all that the GPU has been given: between the passes of a query that would cost one of them.
    pub(super) fn run_every_size(&mut self) -> Result<()> {
        for m in padded_sizes(self.capacity) {
            for (product, _) in self.products(m) {
                // SAFETY: weights and buffers have the sizes that the products name.
                unsafe { self.gemm.run(product) }?;
            }
        }
        self.gpu.synchronize()
    }

    /// Returns the products of the first layer for `m` tokens, and which matrix each is with.
    fn products(&self, m: usize) -> [(Product, MatrixOf); 4] {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, heads, kv_heads, head_dim, .. } = self.config;
        let queries = heads * head_dim;
        let Buffers { x, normed, qkv, attended, gate_up, activated, .. } = &self.buffers;
        let input = |buffer: &Buffer<u8>| match &self.fp8 {
            Some(fp8) => fp8.as_input(),
            None => Input { rows: buffer.at(0), scales: None },
        };
        let first = &self.weights.layers[0];
        let bias = |bias: &Option<Buffer<u8>>| address(bias.as_ref());
        let queries_and_keys = product([m, queries + 2 * kv_heads * head_dim, hidden], input(normed), &first.qkv, qkv);
        let output = product([m, hidden, queries], input(attended), &first.output, x);
        let gate_and_up = product([m, 2 * inner, hidden], input(normed), &first.gate_up, gate_up);
        let down = product([m, hidden, inner], input(activated), &first.down, x);
        [
            (Product { bias: bias(&first.qkv_bias), ..queries_and_keys }, |layer| &layer.qkv),
            (Product { accumulate: self.adds_residual(), ..output }, |layer| &layer.output),
            (Product { bias: bias(&first.gate_up_bias), ..gate_and_up }, |layer| &layer.gate_up),
            (Product { accumulate: self.adds_residual(), ..down }, |layer| &layer.down),
        ]
    }

    /// Fills the inputs of products with values that are not zero, since zeros are faster than numbers.
    pub(super) fn fill_for_tuning(&self, fill_normal: Kernel) -> Result<()> {
        let Buffers { normed, attended, gate_up, activated, .. } = &self.buffers;
        for buffer in [normed, attended, gate_up, activated] {
            let values = buffer.len() / self.precision.bytes();
            // SAFETY: the buffer has that many values.
            unsafe { draw(&self.gpu, fill_normal, buffer.at(0), Normal { seed: 7, std: 1.0 }, &Slice::whole(1, values)) }?;
        }
        if let Some(fp8) = &self.fp8 {
            // SAFETY: `gate_up` has a row of at least this width for each token, and so has the input.
            unsafe { fp8.quantise(&self.gpu, gate_up, self.capacity, self.config.intermediate_size) }?;
        }
        self.buffers.x.fill(0)
    }
}

impl Fp8 {
    /// Takes the kernels, and memory for inputs of up to `capacity` rows.
    fn new(gpu: &Arc<Gpu>, kernels: &Kernels, config: &ModelConfig, capacity: usize) -> Result<Self> {
        let width = config.hidden_size.max(config.heads * config.head_dim).max(config.intermediate_size);
        let (input, scales) = (gpu.allocate(capacity * width)?, gpu.allocate(capacity)?);
        // Rows that no token has are multiplied too, and must hold numbers.
        input.fill(0)?;
        scales.fill(0)?;
        Ok(Fp8 {
            rms_norm: kernels.get("norm", "rms_norm_e4m3", 0)?,
            swiglu: kernels.get("swiglu", "swiglu_e4m3", 0)?,
            quantise_rows: kernels.get("fp8", "quantise_rows", 0)?,
            input,
            scales,
        })
    }

    fn as_input(&self) -> Input {
        Input { rows: self.input.at(0), scales: Some(self.scales.at(0)) }
    }

    /// Rounds rows for a product.
    ///
    /// # Safety
    ///
    /// `x` must have so many rows of `width`, which no input exceeds.
    unsafe fn quantise(&self, gpu: &Gpu, x: &Buffer<u8>, rows: usize, width: usize) -> Result<Input> {
        let args: [Arg; 4] = [x.into(), (&self.input).into(), (&self.scales).into(), width.into()];
        // SAFETY: the kernel's parameters in their order; memory is the caller's promise.
        unsafe { gpu.launch(self.quantise_rows, Size::of(rows, FP8_THREADS), &args) }?;
        Ok(self.as_input())
    }
}

/// Which matrix of a layer.
type MatrixOf = fn(&LayerWeights) -> &Matrix;

/// The product `y[m, n] = x[m, k] * weights[n, k]^T`.
fn product([m, n, k]: [usize; 3], x: Input, weights: &Matrix, y: &Buffer<u8>) -> Product {
    let scales = x.scales.zip(weights.scales.as_ref()).map(|(x, w)| RowScales { x, w: w.at(0) });
    let (x, w, y) = (x.rows, weights.values.at(0), y.at(0));
    Product { m, n, k, x, w, y, bias: 0, accumulate: false, wide: false, scales }
}

fn address(buffer: Option<&Buffer<u8>>) -> u64 {
    buffer.map_or(0, |buffer| buffer.at(0))
}

/// Computes cosines and sines of all positions.
fn angles(gpu: &Arc<Gpu>, config: &ModelConfig) -> Result<Buffer<[f32; 2]>> {
    let rope = Rope::new(config);
    let half = rope.width() / 2;
    let positions: Vec<u32> = (0..config.max_context as u32).collect();
    let mut values = vec![0.0; positions.len() * rope.width()];
    rope.angles(&positions, &mut values);
    let pair = |row: &[f32], i: usize| [row[i], row[half + i]];
    let pairs: Vec<[f32; 2]> =
        values.chunks_exact(rope.width()).flat_map(|row| (0..half).map(move |i| pair(row, i))).collect();
    gpu.upload(&pairs)
}
