//! Attention of a pass: which kernels run, and on what.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::attention::{FEW_ROWS, Merge, Shape, Work, WorkItem, invariant_work, work};
use super::driver::{Arg, Buffer, Gpu, Kernel, Size};
use super::kernels::{Kernels, Precision};
use super::metadata::Metadata;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::step::StepPlan;

/// The largest head of `attention_simple`.
const HEAD_DIM_MAX: usize = 256;

/// Warps of a block of `attention_simple` and `merge_partials`, each for one head.
pub(super) const WARPS: usize = 4;
/// Threads of a block of each kernel.
const THREADS: u32 = 32 * WARPS as u32;

/// Heads that the tensor cores' kernels are made for.
const TENSOR_HEAD_DIMS: [usize; 3] = [64, 96, 128];

/// Bytes of partial results. Where a pass would need more, it does with fewer.
const PARTIAL_BYTES: usize = 64 << 20;

/// The kernels of attention for one model.
#[derive(Debug)]
pub(super) struct Attention {
    kernels: Way,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
    /// Whether results do not depend on what else is in a pass.
    invariant: bool,
}

#[derive(Debug)]
enum Way {
    /// A warp for each token and head: any head, in both precisions.
    Simple(Kernel),
    /// Work items on tensor cores.
    Tensor(Tensor),
}

#[derive(Debug)]
struct Tensor {
    tile: Kernel,
    few: Kernel,
    merge: Kernel,
    /// [partials, heads, head_dim].
    partial_values: Buffer<f32>,
    /// [partials, heads].
    partial_sums: Buffer<f32>,
    /// The windows that layers have.
    windows: Vec<Option<NonZeroUsize>>,
}

/// What attention has to know of a pass, as places of its metadata.
#[derive(Debug)]
pub(super) struct AttentionPlaces {
    /// Tokens of the pass.
    n: usize,
    positions: usize,
    block_tables: usize,
    kernels: PlacesOf,
}

#[derive(Debug)]
enum PlacesOf {
    /// `int4[rows]` of first token, number of tokens, position of the first, first entry of `block_tables`; and `int[n]`, the row
    /// of each token.
    Simple { rows: usize, row_of_token: usize },
    /// The work for each window.
    Tensor(Vec<WorkPlaces>),
}

#[derive(Debug)]
struct WorkPlaces {
    work: Work,
    tiles: usize,
    few: usize,
    merges: usize,
    slots: usize,
}

impl Attention {
    /// Takes the kernels for a model, and memory. Fails if its heads are too large.
    pub(super) fn new(gpu: &Arc<Gpu>, kernels: &Kernels, precision: Precision, config: &ModelConfig) -> Result<Self> {
        let ModelConfig { heads, kv_heads, head_dim, layers, .. } = *config;
        if head_dim > HEAD_DIM_MAX {
            return Err(Error::Invalid(format!("a GPU runs heads of at most {HEAD_DIM_MAX} elements, not {head_dim}")));
        }
        let fits = TENSOR_HEAD_DIMS.contains(&head_dim) && heads / kv_heads <= FEW_ROWS as usize;
        let kernels = if precision.of_activations() == Precision::Bf16 && fits {
            Way::Tensor(Tensor::new(gpu, kernels, config)?)
        } else {
            Way::Simple(kernels.get("attention_simple", "attention_simple", 0)?)
        };
        Ok(Attention { kernels, heads, kv_heads, head_dim, layers, invariant: false })
    }

    /// From now on, the bits of a token's result do not depend on what else is in a pass, nor on how its row was cut. Slower where
    /// contexts are long.
    pub(super) fn invariant(self) -> Self {
        Attention { invariant: true, ..self }
    }

    /// Adds to `metadata` what the kernels read of a checked plan, whose positions are there at place `positions`.
    pub(super) fn describe(&self, plan: &StepPlan, positions: usize, metadata: &mut Metadata) -> AttentionPlaces {
        let block_tables = metadata.extend(plan.block_tables.iter().map(|page| page.0 as i32));
        let kernels = match &self.kernels {
            Way::Simple(_) => {
                let rows = plan.rows.iter().flat_map(|row| {
                    let position = plan.positions.get(row.tokens.start as usize).copied().unwrap_or(0);
                    [row.tokens.start as i32, row.tokens.len() as i32, position as i32, row.pages.start as i32]
                });
                let row_of_token = (0..).zip(&plan.rows).flat_map(|(row, span)| std::iter::repeat_n(row, span.tokens.len()));
                PlacesOf::Simple { rows: metadata.extend(rows), row_of_token: metadata.extend(row_of_token) }
            }
            Way::Tensor(tensor) => {
                let shape = Shape {
                    group: (self.heads / self.kv_heads) as u32,
                    kv_bytes: 2 * self.kv_heads * self.head_dim * Precision::Bf16.bytes(),
                };
                let partials_max = tensor.partial_sums.len() / self.heads;
                let of_window = |&window: &_| {
                    let work = match self.invariant {
                        true => invariant_work(plan, shape.group, window),
                        false => work(plan, shape, window, partials_max),
                    };
                    WorkPlaces::new(work, metadata)
                };
                PlacesOf::Tensor(tensor.windows.iter().map(of_window).collect())
            }
        };
        AttentionPlaces { n: plan.tokens.len(), positions, block_tables, kernels }
    }

    /// Launches the attention of a layer.
    ///
    /// # Safety
    ///
    /// `places` must be those of a checked pass, whose `metadata` is on the GPU, and `qkv`, `pool` and `out` be the addresses of
    /// its activations and pages.
    pub(super) unsafe fn launch(
        &self,
        gpu: &Gpu,
        places: &AttentionPlaces,
        metadata: &Metadata,
        layer: usize,
        window: Option<NonZeroUsize>,
        [qkv, pool, out]: [u64; 3],
    ) -> Result<()> {
        let Attention { heads, kv_heads, head_dim, layers, .. } = *self;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let window_or_0 = window.map_or(0, NonZeroUsize::get);
        match (&self.kernels, &places.kernels) {
            (Way::Simple(simple), PlacesOf::Simple { rows, row_of_token }) => {
                let args: [Arg; 14] = [
                    qkv.into(),
                    pool.into(),
                    metadata.at(*rows).into(),
                    metadata.at(*row_of_token).into(),
                    metadata.at(places.positions).into(),
                    metadata.at(places.block_tables).into(),
                    out.into(),
                    heads.into(),
                    kv_heads.into(),
                    head_dim.into(),
                    layers.into(),
                    layer.into(),
                    scale.into(),
                    window_or_0.into(),
                ];
                let grid = (places.n as u32, heads.div_ceil(WARPS) as u32);
                // SAFETY: the kernel's parameters in its order; memory is the caller's promise.
                unsafe { gpu.launch(*simple, Size { grid, block: THREADS, shared: 0 }, &args) }
            }
            (Way::Tensor(tensor), PlacesOf::Tensor(works)) => {
                let index = tensor.windows.iter().position(|&of| of == window).expect("the layers' windows were listed");
                let WorkPlaces { work, tiles, few, merges, slots } = &works[index];
                let attend = |kernel: Kernel, items: &[WorkItem], place: usize, shared: u32| {
                    let args: [Arg; 13] = [
                        metadata.at(place).into(),
                        qkv.into(),
                        pool.into(),
                        metadata.at(places.block_tables).into(),
                        out.into(),
                        (&tensor.partial_values).into(),
                        (&tensor.partial_sums).into(),
                        heads.into(),
                        kv_heads.into(),
                        layers.into(),
                        layer.into(),
                        scale.into(),
                        window_or_0.into(),
                    ];
                    let size = Size { grid: ((items.len() * kv_heads) as u32, 1), block: THREADS, shared };
                    // SAFETY: the kernel's parameters in its order; items are of the checked plan, and their partial results
                    // lie within the buffers; other memory is the caller's promise.
                    unsafe { gpu.launch(kernel, size, &args) }
                };
                attend(tensor.tile, &work.tiles, *tiles, tile_bytes(head_dim))?;
                attend(tensor.few, &work.few, *few, few_bytes(head_dim))?;
                let args: [Arg; 7] = [
                    metadata.at(*merges).into(),
                    metadata.at(*slots).into(),
                    (&tensor.partial_values).into(),
                    (&tensor.partial_sums).into(),
                    out.into(),
                    work.merges.len().into(),
                    heads.into(),
                ];
                // SAFETY: as above.
                unsafe { gpu.launch(tensor.merge, Size::of((work.merges.len() * heads).div_ceil(WARPS), THREADS), &args) }
            }
            _ => unreachable!("places are made by the same kernels"),
        }
    }
}

impl Tensor {
    fn new(gpu: &Arc<Gpu>, kernels: &Kernels, config: &ModelConfig) -> Result<Self> {
        let ModelConfig { heads, head_dim, layers, .. } = *config;
        let kernel = |name: &str, shared| kernels.get("attention", &format!("{name}_{head_dim}"), shared);
        let mut windows: Vec<_> = (0..layers).map(|layer| config.attention_of(layer).window).collect();
        windows.sort_unstable();
        windows.dedup();
        let partials = PARTIAL_BYTES / (heads * head_dim * size_of::<f32>());
        Ok(Tensor {
            tile: kernel("attend_tile", tile_bytes(head_dim))?,
            few: kernel("attend_few", few_bytes(head_dim))?,
            merge: kernel("merge_partials", 0)?,
            partial_values: gpu.allocate(partials * heads * head_dim)?,
            partial_sums: gpu.allocate(partials * heads)?,
            windows,
        })
    }
}

/// Shared memory of a block of `attend_tile`: the queries, and two stages of keys and values.
fn tile_bytes(head_dim: usize) -> u32 {
    768 * head_dim as u32
}

/// Shared memory of a block of `attend_few`: two stages of a page's keys and values for each warp.
fn few_bytes(head_dim: usize) -> u32 {
    512 * head_dim as u32
}

impl WorkPlaces {
    fn new(work: Work, metadata: &mut Metadata) -> Self {
        WorkPlaces {
            tiles: metadata.extend(work.tiles.iter().flat_map(WorkItem::words)),
            few: metadata.extend(work.few.iter().flat_map(WorkItem::words)),
            merges: metadata.extend(work.merges.iter().flat_map(Merge::words)),
            slots: metadata.extend(work.slots.iter().map(|&slot| slot as i32)),
            work,
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::bench::plan_of;
    use super::super::metadata::Uploader;
    use super::*;
    use crate::device::cpu::reference::{Random, tiny_config};
    use crate::step::PAGE_TOKENS;

    const LAYERS: usize = 2;
    const LAYER: usize = 1;

    struct Case {
        config: ModelConfig,
        plan: StepPlan,
        qkv: Vec<bf16>,
        pool: Vec<bf16>,
    }

    impl Case {
        /// Random queries and pages. What no token sees is not a number.
        fn new(config: ModelConfig, plan: StepPlan, random: &mut Random) -> Self {
            let ModelConfig { heads, kv_heads, head_dim, .. } = config;
            let pages = plan.block_tables.iter().map(|page| page.0 as usize + 1).max().unwrap();
            let qkv = random.floats(plan.positions.len() * (heads + 2 * kv_heads) * head_dim);
            let row_size = head_dim * PAGE_TOKENS;
            let mut pool = vec![bf16::NAN; pages * LAYERS * 2 * kv_heads * row_size];
            for row in &plan.rows {
                let end = plan.positions[row.tokens.end as usize - 1] as usize + 1;
                let table = &plan.block_tables[row.pages.start as usize..row.pages.end as usize];
                for (at, page) in table.iter().enumerate() {
                    let held = (end - at * PAGE_TOKENS).min(PAGE_TOKENS) * head_dim;
                    for part in pool
                        .chunks_exact_mut(row_size)
                        .skip(page.0 as usize * LAYERS * 2 * kv_heads)
                        .take(LAYERS * 2 * kv_heads)
                    {
                        let values = random.floats(held);
                        part.iter_mut()
                            .zip(values)
                            .filter(|(x, _)| x.is_nan())
                            .for_each(|(x, value)| *x = bf16::from_f32(value));
                    }
                }
            }
            // Scores far enough apart that the softmax has something to decide.
            Case { config, plan, qkv: qkv.into_iter().map(|x| bf16::from_f32(4.0 * x)).collect(), pool }
        }

        fn expected(&self) -> Vec<f64> {
            let ModelConfig { heads, kv_heads, head_dim: dim, .. } = self.config;
            let window = self.config.attention_of(LAYER).window;
            let mut out = Vec::new();
            for row in &self.plan.rows {
                for token in row.tokens.start as usize..row.tokens.end as usize {
                    let position = self.plan.positions[token] as usize;
                    let from = window.map_or(0, |window| (position + 1).saturating_sub(window.get()));
                    for head in 0..heads {
                        let query = &self.qkv[token * (heads + 2 * kv_heads) * dim + head * dim..][..dim];
                        let at = |key: usize, kind: usize| {
                            let page = self.plan.block_tables[row.pages.start as usize + key / PAGE_TOKENS].0 as usize;
                            let row = ((page * LAYERS + LAYER) * 2 + kind) * kv_heads + head / (heads / kv_heads);
                            &self.pool[(row * PAGE_TOKENS + key % PAGE_TOKENS) * dim..][..dim]
                        };
                        let score = |key: usize| {
                            let products = query.iter().zip(at(key, 0)).map(|(q, k)| q.to_f64() * k.to_f64());
                            products.sum::<f64>() / (dim as f64).sqrt()
                        };
                        let scores: Vec<f64> = (from..=position).map(score).collect();
                        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                        let total: f64 = weights.iter().sum();
                        let mut values = vec![0.0; dim];
                        for (key, weight) in (from..).zip(&weights) {
                            let of_key = at(key, 1);
                            values.iter_mut().zip(of_key).for_each(|(sum, value)| *sum += weight / total * value.to_f64());
                        }
                        out.extend(values);
                    }
                }
            }
            out
        }

        fn run(&self, gpu: &Arc<Gpu>, kernels: &Kernels, uploader: &mut Uploader) -> Vec<bf16> {
            let attention = Attention::new(gpu, kernels, Precision::Bf16, &self.config).unwrap();
            let mut metadata = Metadata::default();
            let positions = metadata.extend(self.plan.positions.iter().map(|&position| position as i32));
            let places = attention.describe(&self.plan, positions, &mut metadata);
            uploader.upload(&mut metadata).unwrap();
            let (qkv, pool) = (gpu.upload(&self.qkv).unwrap(), gpu.upload(&self.pool).unwrap());
            let mut out = vec![bf16::NAN; self.plan.positions.len() * self.config.heads * self.config.head_dim];
            let buffer = gpu.upload(&out).unwrap();
            let window = self.config.attention_of(LAYER).window;
            let addresses = [qkv.at(0), pool.at(0), buffer.at(0)];
            // SAFETY: the plan is made as `check_plan` wants it, and the buffers have its sizes.
            unsafe { attention.launch(gpu, &places, &metadata, LAYER, window, addresses) }.unwrap();
            buffer.read(0, &mut out).unwrap();
            out
        }
    }

    fn config(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> ModelConfig {
        let attention = crate::model::LayerAttention { window: window.and_then(NonZeroUsize::new), rotary: true };
        let layer_attention = vec![attention; LAYERS];
        ModelConfig { heads, kv_heads, head_dim, layers: LAYERS, layer_attention, ..tiny_config() }
    }

    /// Relative to the length of all results, and rounding of weights and results to bfloat16 makes some 0.003 of it.
    const TOLERANCE: f64 = 1e-2;

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn matches_double_precision_over_odd_plans() {
        let gpu = match Gpu::open(0) {
            Ok(gpu) => gpu,
            Err(reason) => return eprintln!("skipped: {reason}"),
        };
        let kernels = Kernels::load(&gpu, Precision::Bf16, None).unwrap();
        let mut uploader = Uploader::new(&gpu, 1, 1 << 16).unwrap();
        let mut random = Random::new(11);
        let decode: Vec<_> = (0..70).map(|i| (1030 + 7 * i % 50, 1 + i % 2)).collect();
        let plans = [
            plan_of(&[(0, 1)], 0),
            plan_of(&[(0, 67), (5, 1), (0, 16), (340, 60), (15, 1), (16, 3)], 0),
            plan_of(&[(1500, 1), (1500, 33), (777, 1), (2047, 2), (0, 130)], 0),
            plan_of(&decode, 64),
            plan_of(&[(400, 1), (400, 40), (400, 1), (16, 5)], 25),
        ];
        for (heads, kv_heads) in [(2, 2), (6, 2), (8, 2), (7, 1), (16, 1)] {
            for (head_dim, window) in
                [(64, None), (96, None), (128, None), (64, Some(1)), (96, Some(33)), (128, Some(500)), (80, None)]
            {
                for plan in &plans {
                    let case = Case::new(config(heads, kv_heads, head_dim, window), plan.clone(), &mut random);
                    let (out, expected) = (case.run(&gpu, &kernels, &mut uploader), case.expected());
                    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
                    let difference = length(&mut out.iter().zip(&expected).map(|(out, expected)| out.to_f64() - expected));
                    let error = difference / length(&mut expected.iter().copied());
                    // Not a number fails as well.
                    assert!(error < TOLERANCE, "{error} with {heads}/{kv_heads} heads of {head_dim}, window {window:?}");
                }
            }
        }
    }
}
