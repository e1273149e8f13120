//! A model's tensors in the GPU's memory.
//!
//! Of a model that is split over GPUs, each holds the share of matrices that its heads and columns need.
//!
//! Projections that read the same input lie together as one matrix: query, key and value; gate and up. Norms and biases of norms
//! stay in single precision, since their kernels compute in it. Tensors are read from their files straight into pinned memory where
//! they lie there as they are wanted, else converted, on all cores, a piece at a time, while the piece before is copied. Projections
//! in FP8 are rounded on the GPU, from bfloat16.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::driver::{Arg, Buffer, Event, Gpu, Kernel, Pinned, Size};
use super::forward::FP8_THREADS;
use super::kernels::{Kernels, Precision};
use super::share::Share;
use crate::error::{Error, Result};
use crate::model::{DType, HostTensor, ModelConfig, Normal, StoredTensor, TensorSource, dequantize};

/// Bytes that are converted and copied at a time.
const PIECE_BYTES: usize = 64 << 20;

/// All weights of a decoder. Matrices are [outputs, inputs].
#[derive(Debug)]
pub(super) struct Weights {
    /// [vocabulary, hidden].
    pub(super) embedding: Arc<Buffer<u8>>,
    /// The decoder layers, first to last.
    pub(super) layers: Vec<LayerWeights>,
    /// `[hidden]`.
    pub(super) final_norm: Buffer<f32>,
    /// [vocabulary, hidden]; the embedding itself, where the two are one.
    pub(super) head: Arc<Buffer<u8>>,
    /// Bytes of all of them.
    pub(super) bytes: usize,
}

/// A projection.
#[derive(Debug)]
pub(super) struct Matrix {
    /// [outputs, inputs], as activations or in e4m3.
    pub(super) values: Buffer<u8>,
    /// `[outputs]`: what the values of each row are multiplied by, where they are in e4m3.
    pub(super) scales: Option<Buffer<f32>>,
}

/// Weights of one decoder layer.
#[derive(Debug)]
pub(super) struct LayerWeights {
    /// `[hidden]`.
    pub(super) attention_norm: Buffer<f32>,
    /// [(heads + 2 * kv_heads) * head_dim, hidden].
    pub(super) qkv: Matrix,
    /// [(heads + 2 * kv_heads) * head_dim], as activations, where the model has it.
    pub(super) qkv_bias: Option<Buffer<u8>>,
    /// `[head_dim]` each, where the model normalises heads.
    pub(super) qk_norm: Option<(Buffer<f32>, Buffer<f32>)>,
    /// [hidden, heads * head_dim].
    pub(super) output: Matrix,
    /// `[hidden]`, where the model has it.
    pub(super) output_bias: Option<Buffer<f32>>,
    /// `[hidden]`.
    pub(super) mlp_norm: Buffer<f32>,
    /// [2 * intermediate, hidden], the gate first.
    pub(super) gate_up: Matrix,
    /// [2 * intermediate], as activations, where the model has it.
    pub(super) gate_up_bias: Option<Buffer<u8>>,
    /// [hidden, intermediate].
    pub(super) down: Matrix,
    /// `[hidden]`, where the model has it.
    pub(super) down_bias: Option<Buffer<f32>>,
}

/// How a matrix is divided among GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Each GPU has it whole.
    Not,
    /// By outputs.
    Rows,
    /// By inputs.
    Columns,
}

/// A part of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Columns of the whole matrix.
    width: usize,
}

impl Slice {
    /// All of a matrix.
    pub(super) fn whole(rows: usize, width: usize) -> Self {
        Slice { rows: 0..rows, columns: 0..width, width }
    }

    /// The part of a matrix that belongs to a share.
    fn of(rows: usize, width: usize, cut: Cut, share: Share) -> Self {
        let whole = Slice::whole(rows, width);
        match cut {
            Cut::Not => whole,
            Cut::Rows => Slice { rows: share.part(rows), ..whole },
            Cut::Columns => Slice { columns: share.part(width), ..whole },
        }
    }

    fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }
}

/// Where the values of a matrix are.
enum Values<'a> {
    /// In a file, as the GPU wants them.
    Stored(StoredTensor<'a>),
    /// In memory, as a file has them.
    Read(HostTensor),
}

/// Copies tensors to the GPU.
struct Loader<'a> {
    gpu: &'a Arc<Gpu>,
    source: &'a dyn TensorSource,
    precision: Precision,
    share: Share,
    fill_normal: Kernel,
    quantise_rows: Kernel,
    /// Two pieces of pinned memory that take turns, and when each may be written again.
    pieces: [(Pinned<u8>, Event); 2],
    turn: usize,
    bytes: usize,
}

impl Weights {
    /// Reads a share of all tensors of `config`, which describes the whole model. Fails if one is missing or damaged, or if the GPU has too little memory.
    pub(super) fn load(
        gpu: &Arc<Gpu>,
        kernels: &Kernels,
        precision: Precision,
        config: &ModelConfig,
        source: &dyn TensorSource,
        share: Share,
    ) -> Result<Self> {
        let piece = || Ok((gpu.pinned(PIECE_BYTES)?, gpu.event()?));
        let fill_normal = kernels.get("random", "fill_normal", 0)?;
        let quantise_rows = kernels.get("fp8", "quantise_rows", 0)?;
        let pieces = [piece()?, piece()?];
        let mut loader = Loader { gpu, source, precision, share, fill_normal, quantise_rows, pieces, turn: 0, bytes: 0 };
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let embedding =
            Arc::new(loader.matrix(&[("model.embed_tokens.weight".to_string(), vocabulary)], hidden, Cut::Not)?);
        let head = if config.tie_word_embeddings {
            Arc::clone(&embedding)
        } else {
            Arc::new(loader.matrix(&[("lm_head.weight".to_string(), vocabulary)], hidden, Cut::Not)?)
        };
        let layers = (0..config.layers).map(|layer| loader.layer(config, layer)).collect::<Result<_>>()?;
        let final_norm = loader.vector("model.norm.weight", hidden)?;
        gpu.synchronize()?;
        Ok(Weights { embedding, layers, final_norm, head, bytes: loader.bytes })
    }
}

impl Loader<'_> {
    fn layer(&mut self, config: &ModelConfig, layer: usize) -> Result<LayerWeights> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let qkv = [("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)];
        let gate_up = [("mlp.gate_proj", inner), ("mlp.up_proj", inner)];
        let weights = |parts: &[(&str, usize)]| {
            parts.iter().map(|(part, rows)| (name(&format!("{part}.weight")), *rows)).collect::<Vec<_>>()
        };
        let biases = |parts: &[(&str, usize)]| {
            parts.iter().map(|(part, rows)| (name(&format!("{part}.bias")), *rows)).collect::<Vec<_>>()
        };
        Ok(LayerWeights {
            attention_norm: self.vector(&name("input_layernorm.weight"), hidden)?,
            qkv: self.projection(&weights(&qkv), hidden, Cut::Rows)?,
            qkv_bias: config.qkv_bias.then(|| self.row(&biases(&qkv))).transpose()?,
            qk_norm: if config.qk_norm {
                let mut norm = |part: &str| self.vector(&name(part), config.head_dim);
                Some((norm("self_attn.q_norm.weight")?, norm("self_attn.k_norm.weight")?))
            } else {
                None
            },
            output: self.projection(&weights(&[("self_attn.o_proj", hidden)]), queries, Cut::Columns)?,
            output_bias: config.output_bias.then(|| self.vector(&name("self_attn.o_proj.bias"), hidden)).transpose()?,
            mlp_norm: self.vector(&name("post_attention_layernorm.weight"), hidden)?,
            gate_up: self.projection(&weights(&gate_up), hidden, Cut::Rows)?,
            gate_up_bias: config.mlp_bias.then(|| self.row(&biases(&gate_up))).transpose()?,
            down: self.projection(&weights(&[("mlp.down_proj", hidden)]), inner, Cut::Columns)?,
            down_bias: config.mlp_bias.then(|| self.vector(&name("mlp.down_proj.bias"), hidden)).transpose()?,
        })
    }

    /// Reads a vector in single precision.
    fn vector(&mut self, name: &str, len: usize) -> Result<Buffer<f32>> {
        let tensor = read(self.source, name, &[len])?;
        let mut values = vec![0.0; len];
        dequantize(tensor.dtype, &tensor.bytes, &mut values);
        self.bytes += 4 * len;
        self.gpu.upload(&values)
    }

    /// Reads the share of vectors, one value for each row of a matrix, that lie behind each other, as activations are stored.
    fn row(&mut self, parts: &[(String, usize)]) -> Result<Buffer<u8>> {
        let mut bytes = Vec::new();
        for (name, len) in parts {
            let tensor = read(self.source, name, &[*len])?;
            let from = bytes.len();
            let slice = Slice::of(1, *len, Cut::Columns, self.share);
            bytes.resize(from + slice.len() * self.precision.bytes(), 0);
            convert(&tensor, &slice, self.precision, &mut bytes[from..]);
        }
        self.bytes += bytes.len();
        self.gpu.upload(&bytes)
    }

    /// Reads the share of the matrices of a projection, which lie below each other.
    fn projection(&mut self, parts: &[(String, usize)], width: usize, cut: Cut) -> Result<Matrix> {
        let values = self.matrix(parts, width, cut)?;
        if self.precision != Precision::Fp8 {
            return Ok(Matrix { values, scales: None });
        }
        let width = Slice::of(1, width, if cut == Cut::Columns { cut } else { Cut::Not }, self.share).len();
        let rows = values.len() / (width * self.precision.bytes());
        let (rounded, scales) = (self.gpu.allocate::<u8>(rows * width)?, self.gpu.allocate::<f32>(rows)?);
        let args: [Arg; 4] = [(&values).into(), (&rounded).into(), (&scales).into(), width.into()];
        // SAFETY: the kernel's parameters in their order; it reads and writes `rows` rows, which all three buffers have. Freeing the
        // first of them waits for the kernel.
        unsafe { self.gpu.launch(self.quantise_rows, Size::of(rows, FP8_THREADS), &args) }?;
        self.bytes -= values.len() - rounded.len() - 4 * rows;
        Ok(Matrix { values: rounded, scales: Some(scales) })
    }

    /// Reads the share of matrices of equal width that lie below each other.
    fn matrix(&mut self, parts: &[(String, usize)], width: usize, cut: Cut) -> Result<Buffer<u8>> {
        let value_bytes = self.precision.bytes();
        let slices: Vec<Slice> = parts.iter().map(|(_, rows)| Slice::of(*rows, width, cut, self.share)).collect();
        let buffer = self.gpu.allocate::<u8>(slices.iter().map(|slice| slice.len() * value_bytes).sum())?;
        let mut first = 0;
        for ((name, rows), slice) in parts.iter().zip(slices) {
            match self.source.normal(name) {
                // SAFETY: there is room for the slice from `first` on.
                Some(normal) => unsafe { draw(self.gpu, self.fill_normal, buffer.at(first), normal, &slice) }?,
                None => self.slice(name, &[*rows, width], &slice, &buffer, first)?,
            }
            first += slice.len() * value_bytes;
        }
        self.bytes += first;
        Ok(buffer)
    }

    /// Reads a slice of a matrix of `shape` to `first` bytes into `buffer`.
    fn slice(&mut self, name: &str, shape: &[usize; 2], slice: &Slice, buffer: &Buffer<u8>, first: usize) -> Result<()> {
        let row_bytes = slice.columns.len() * self.precision.bytes();
        let precision = self.precision;
        let as_it_is = slice.columns.len() == slice.width;
        let stored = if as_it_is { self.source.stored(name, shape)? } else { None };
        // What is not taken as it is stored is read whole and once.
        let values = match stored.filter(|stored| is_stored_as(stored.dtype, precision)) {
            Some(stored) => Values::Stored(stored),
            None => Values::Read(read(self.source, name, shape)?),
        };
        let at_once = (PIECE_BYTES / row_bytes).max(1);
        for from in slice.rows.clone().step_by(at_once) {
            let piece = Slice { rows: from..(from + at_once).min(slice.rows.end), ..slice.clone() };
            let at = first + (from - slice.rows.start) * row_bytes;
            self.copy(&piece, buffer, at, |out| match &values {
                Values::Read(tensor) => {
                    convert(tensor, &piece, precision, out);
                    Ok(())
                }
                Values::Stored(stored) => stored.file.read_at(stored.offset + (from * row_bytes) as u64, out),
            })?;
        }
        Ok(())
    }

    /// Has the values of a slice written and copies them to `at` bytes into `buffer`, without waiting for the copy.
    fn copy(
        &mut self,
        slice: &Slice,
        buffer: &Buffer<u8>,
        at: usize,
        write: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let bytes = slice.len() * self.precision.bytes();
        if bytes > PIECE_BYTES {
            return Err(Error::Invalid(format!("a row of {} weights is too long for a GPU", slice.width)));
        }
        let (piece, free) = &mut self.pieces[self.turn];
        self.turn = 1 - self.turn;
        free.wait()?;
        write(&mut piece[..bytes])?;
        // SAFETY: the piece is not written before its event has passed.
        unsafe { self.gpu.copy_in(piece, buffer, at, bytes) }?;
        self.gpu.record(free)
    }
}

/// Returns whether matrices of a precision come to the GPU with the bytes that a type is stored in.
fn is_stored_as(dtype: DType, precision: Precision) -> bool {
    matches!((dtype, precision), (DType::BF16, Precision::Bf16 | Precision::Fp8) | (DType::F32, Precision::F32))
}

/// Reads a tensor and checks that it holds what its shape says.
fn read(source: &dyn TensorSource, name: &str, shape: &[usize]) -> Result<HostTensor> {
    let tensor = source.read(name, shape)?;
    let width = *shape.last().expect("tensors have dimensions");
    let expected = tensor.dtype.row_bytes(width).map(|bytes| bytes * shape[..shape.len() - 1].iter().product::<usize>());
    if expected == Some(tensor.bytes.len()) {
        return Ok(tensor);
    }
    let HostTensor { dtype, bytes, .. } = tensor;
    Err(Error::Invalid(format!("tensor {name} of {shape:?} values as {dtype:?} cannot have {} bytes", bytes.len())))
}

/// Draws the values of a slice of a random matrix, as rows that lie below each other at `out`.
///
/// # Safety
///
/// `out` must be the address of room for the slice.
pub(super) unsafe fn draw(gpu: &Gpu, fill_normal: Kernel, out: u64, normal: Normal, slice: &Slice) -> Result<()> {
    let Slice { rows, columns, width } = slice;
    let first = rows.start * width + columns.start;
    let args: [Arg; 7] = [
        out.into(),
        slice.len().into(),
        normal.std.into(),
        normal.seed.into(),
        first.into(),
        columns.len().into(),
        (*width).into(),
    ];
    // SAFETY: the kernel's parameters in their order; it writes so many values, for which there is room.
    unsafe { gpu.launch(fill_normal, Size::of(4096, 256), &args) }
}

/// Converts a slice of a tensor to the precision of activations, on all cores.
fn convert(tensor: &HostTensor, slice: &Slice, precision: Precision, out: &mut [u8]) {
    let Slice { rows, columns, width } = slice;
    let row_bytes = tensor.dtype.row_bytes(*width).expect("the tensor was checked");
    let from = &tensor.bytes[rows.start * row_bytes..rows.end * row_bytes];
    let (value_bytes, to_bytes) = (precision.bytes(), columns.len() * precision.bytes());
    let kept = columns.start * value_bytes..columns.end * value_bytes;
    let pairs = out.par_chunks_mut(to_bytes).zip(from.par_chunks(row_bytes));
    if is_stored_as(tensor.dtype, precision) {
        return pairs.for_each(|(to, from)| to.copy_from_slice(&from[kept.clone()]));
    }
    pairs.for_each_init(
        || vec![0.0f32; *width],
        |values, (to, from)| {
            // Blocks of quantised types may lie across the slice's border.
            dequantize(tensor.dtype, from, values);
            let values = &values[columns.clone()];
            match precision {
                Precision::F32 => {
                    to.chunks_exact_mut(4).zip(values).for_each(|(to, v)| to.copy_from_slice(&v.to_le_bytes()));
                }
                Precision::Bf16 | Precision::Fp8 => to
                    .chunks_exact_mut(2)
                    .zip(values)
                    .for_each(|(to, v)| to.copy_from_slice(&bf16::from_f32(*v).to_le_bytes())),
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_converted_one_by_one() {
        let values: Vec<f32> = (0..12).map(|i| i as f32 * 0.3 - 1.0).collect();
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = HostTensor { shape: vec![3, 4], dtype: DType::F32, bytes };
        let mut out = vec![0; 16];
        convert(&tensor, &Slice { rows: 1..3, ..Slice::whole(3, 4) }, Precision::Bf16, &mut out);
        let read: Vec<f32> = out.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        for (read, value) in read.iter().zip(&values[4..]) {
            assert!((read - value).abs() <= value.abs() / 256.0);
        }
        let mut exact = vec![0; 32];
        convert(&tensor, &Slice::whole(2, 4), Precision::F32, &mut exact);
        assert_eq!(exact, tensor.bytes[..32]);
        let second = Share { rank: 1, of: 2 };
        let mut columns = vec![0; 3 * 2 * 4];
        convert(&tensor, &Slice::of(3, 4, Cut::Columns, second), Precision::F32, &mut columns);
        let expected: Vec<u8> = [2, 3, 6, 7, 10, 11].iter().flat_map(|&at: &usize| values[at].to_le_bytes()).collect();
        assert_eq!(columns, expected);
        let mut narrow = vec![0; 3 * 2 * 2];
        convert(&tensor, &Slice::of(3, 4, Cut::Columns, second), Precision::Bf16, &mut narrow);
        assert_eq!(narrow[..2], bf16::from_f32(values[2]).to_le_bytes());
    }
}
