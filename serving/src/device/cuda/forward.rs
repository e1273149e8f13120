//! The pass: layers in order, over buffers that are taken once.

use std::path::Path;
use std::sync::Arc;

use super::attend::{Attention, AttentionPlaces};
use super::driver::{Arg, Buffer, Gpu, Kernel, Size};
use super::gemm::{Gemm, Product, padded};
use super::kernels::{Kernels, Precision};
use super::metadata::Metadata;
use super::nccl::Peer;
use super::timing::{Part, Timing};
use super::weights::{LayerWeights, Slice, Weights, draw};
use crate::device::cpu::rope::Rope;
use crate::error::Result;
use crate::model::{ModelConfig, Normal};

/// Threads of the blocks of each kernel, as its file says.
pub(super) const EMBED_THREADS: u32 = 128;
pub(super) const NORM_THREADS: u32 = 256;
pub(super) const ROPE_THREADS: u32 = 128;
pub(super) const SWIGLU_THREADS: u32 = 256;
pub(super) const BIAS_THREADS: u32 = 256;

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
        let buffers = Buffers {
            x: rows(config.hidden_size)?,
            live_x: rows(config.hidden_size)?,
            normed: rows(config.hidden_size)?,
            qkv: rows(queries + 2 * keys)?,
            attended: rows(queries)?,
            live_attended: rows(queries)?,
            gate_up: rows(2 * config.intermediate_size)?,
            activated: rows(config.intermediate_size)?,
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
            gemm: Gemm::new(gpu, precision, cache)?,
            attention: Attention::new(gpu, kernels, precision, config)?,
            gpu: Arc::clone(gpu),
            precision,
            functions,
            angles: angles(gpu, config)?,
            buffers,
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
            let Buffers { x, normed, qkv, attended, .. } = &self.buffers;
            self.rms_norm(x.at(0), 0, &weights.attention_norm, normed.at(0), n)?;
            timing.mark(&self.gpu, Part::Other)?;
            self.gemm.run(Product {
                m: n,
                n: (heads + 2 * kv_heads) * head_dim,
                k: hidden,
                x: normed.at(0),
                w: weights.qkv.at(0),
                y: qkv.at(0),
                bias: address(weights.qkv_bias.as_ref()),
                accumulate: false,
                wide: false,
            })?;
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
        let Buffers { x, live_x, normed, attended, live_attended, gate_up, activated, .. } = &self.buffers;
        let (x, attended) = if live { (live_x, live_attended) } else { (x, attended) };
        let LayerWeights { output, output_bias, mlp_norm, gate_up: up, gate_up_bias, down, down_bias, .. } =
            &self.weights.layers[layer];
        let accumulate = self.adds_residual();
        let onto_residual = |input: &Buffer<u8>, weights: &Buffer<u8>, k: usize| Product {
            m,
            n: hidden,
            k,
            x: input.at(0),
            w: weights.at(0),
            y: x.at(0),
            bias: 0,
            accumulate,
            wide: false,
        };
        // SAFETY: see `run`.
        unsafe {
            self.gemm.run(onto_residual(attended, output, heads * head_dim))?;
            timing.mark(&self.gpu, Part::Gemm)?;
            self.sum(x, m, timing)?;
            self.add_bias(x, output_bias.as_ref(), m)?;
            self.rms_norm(x.at(0), 0, mlp_norm, normed.at(0), m)?;
            timing.mark(&self.gpu, Part::Other)?;
            self.gemm.run(Product {
                m,
                n: 2 * inner,
                k: hidden,
                x: normed.at(0),
                w: up.at(0),
                y: gate_up.at(0),
                bias: address(gate_up_bias.as_ref()),
                accumulate: false,
                wide: false,
            })?;
            timing.mark(&self.gpu, Part::Gemm)?;
            let args: [Arg; 4] = [gate_up.into(), activated.into(), (m * inner).into(), inner.into()];
            let blocks = (m * inner).div_ceil(8 * SWIGLU_THREADS as usize).min(1 << 16);
            self.gpu.launch(self.functions.swiglu, Size::of(blocks, SWIGLU_THREADS), &args)?;
            timing.mark(&self.gpu, Part::Other)?;
            self.gemm.run(onto_residual(activated, down, inner))?;
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
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, heads, kv_heads, head_dim, .. } = self.config;
        let (queries, m) = (heads * head_dim, m.min(self.capacity));
        let Buffers { x, normed, qkv, attended, gate_up, activated, .. } = &self.buffers;
        let layers = &self.weights.layers;
        let few = layers.len().min(8);
        let product = |n, k, input: &Buffer<u8>, output: &Buffer<u8>, bias: u64, accumulate| Product {
            m,
            n,
            k,
            x: input.at(0),
            w: 0,
            y: output.at(0),
            bias,
            accumulate,
            wide: false,
        };
        let bias = |bias: &Option<Buffer<u8>>| address(bias.as_ref());
        type Matrix = fn(&LayerWeights) -> u64;
        let products: [(Product, Matrix); 4] = [
            (product(queries + 2 * kv_heads * head_dim, hidden, normed, qkv, bias(&layers[0].qkv_bias), false), |l| {
                l.qkv.at(0)
            }),
            (product(hidden, queries, attended, x, 0, self.adds_residual()), |l| l.output.at(0)),
            (product(2 * inner, hidden, normed, gate_up, bias(&layers[0].gate_up_bias), false), |l| l.gate_up.at(0)),
            (product(hidden, inner, activated, x, 0, self.adds_residual()), |l| l.down.at(0)),
        ];
        let mut total = 0.0;
        for (product, matrix) in products {
            let weights: Vec<u64> = layers[..few].iter().map(matrix).collect();
            // SAFETY: weights and buffers have the sizes that the products name.
            total += unsafe { self.gemm.tune(product, &weights) }?;
        }
        self.gemm.save_timings();
        Ok(total)
    }

    /// Fills the inputs of products with values that are not zero, since zeros are faster than numbers.
    pub(super) fn fill_for_tuning(&self, fill_normal: Kernel) -> Result<()> {
        for buffer in [&self.buffers.normed, &self.buffers.attended, &self.buffers.activated] {
            let values = buffer.len() / self.precision.bytes();
            // SAFETY: the buffer has that many values.
            unsafe { draw(&self.gpu, fill_normal, buffer.at(0), Normal { seed: 7, std: 1.0 }, &Slice::whole(1, values)) }?;
        }
        self.buffers.x.fill(0)
    }
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
