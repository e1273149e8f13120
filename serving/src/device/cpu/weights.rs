//! A model's tensors: projections in panels, the embedding as stored, or in the panels of the head where the two are one.
//!
//! Projections that read the same input are packed as one matrix: query, key and value; gate and up. Tensors are read and packed
//! one matrix after the other, so that loading takes little more memory than the packed weights.

use pulp::Arch;

use super::attention::HEAD_DIM_MAX;
use super::device::Activations;
use super::panels::{Encoding, PackedMatrix};
use crate::error::{Error, Result};
use crate::model::{DType, HostTensor, ModelConfig, TensorSource, as_q8_0, dequantize};
use crate::request::TokenId;

/// All weights of a decoder.
#[derive(Debug)]
pub(super) struct Weights {
    /// [vocabulary, hidden], from which input tokens are looked up; where there is none, in the head.
    embedding: Option<Table>,
    /// The decoder layers, first to last.
    pub(super) layers: Vec<LayerWeights>,
    /// `[hidden]`.
    pub(super) final_norm: Vec<f32>,
    /// [vocabulary, hidden].
    pub(super) head: PackedMatrix,
}

/// Weights of one decoder layer.
#[derive(Debug)]
pub(super) struct LayerWeights {
    /// `[hidden]`.
    pub(super) attention_norm: Vec<f32>,
    /// [(heads + 2 * kv_heads) * head_dim, hidden].
    pub(super) qkv: PackedMatrix,
    /// [(heads + 2 * kv_heads) * head_dim], where the model has it.
    pub(super) qkv_bias: Option<Vec<f32>>,
    /// [(heads + kv_heads) * head_dim], the weights that normalise each head, where the model has them.
    pub(super) qk_norm: Option<Vec<f32>>,
    /// `[hidden]`, where the model has it.
    pub(super) output_bias: Option<Vec<f32>>,
    /// [2 * intermediate], where the model has it.
    pub(super) gate_up_bias: Option<Vec<f32>>,
    /// `[hidden]`, where the model has it.
    pub(super) down_bias: Option<Vec<f32>>,
    /// [hidden, heads * head_dim].
    pub(super) output: PackedMatrix,
    /// `[hidden]`.
    pub(super) mlp_norm: Vec<f32>,
    /// [2 * intermediate, hidden], the gate first.
    pub(super) gate_up: PackedMatrix,
    /// [hidden, intermediate].
    pub(super) down: PackedMatrix,
}

/// A tensor of two dimensions, as stored.
#[derive(Debug)]
pub(super) struct Table {
    tensor: HostTensor,
    width: usize,
}

impl Weights {
    /// Returns whether any product rounds its activations to bytes.
    pub(super) fn multiply_bytes(&self) -> bool {
        self.layers.iter().flat_map(LayerWeights::matrices).chain([&self.head]).any(PackedMatrix::multiplies_bytes)
    }

    /// Returns the bytes of main memory that matrices and the embedding take; vectors are left out.
    pub(super) fn size_bytes(&self) -> usize {
        let of_layers = self.layers.iter().flat_map(LayerWeights::matrices).map(PackedMatrix::size_bytes).sum::<usize>();
        of_layers + self.head.size_bytes() + self.embedding.as_ref().map_or(0, Table::size_bytes)
    }

    /// Reads all tensors of `config`. Fails if one is missing or damaged, or if the sizes of `config` contradict each other.
    pub(super) fn load(packer: Packer, config: &ModelConfig, source: &dyn TensorSource) -> Result<Self> {
        check_config(config)?;
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = Table::read(source, "model.embed_tokens.weight", vocabulary, hidden)?;
        let (embedding, head) = if config.tie_word_embeddings {
            (None, packer.pack(&[embedding]))
        } else {
            (Some(embedding), packer.pack(&[Table::read(source, "lm_head.weight", vocabulary, hidden)?]))
        };
        Ok(Weights {
            embedding,
            layers: (0..config.layers)
                .map(|layer| LayerWeights::load(packer, config, source, layer))
                .collect::<Result<_>>()?,
            final_norm: read_vector(source, "model.norm.weight", hidden)?,
            head,
        })
    }

    /// Looks up the embedding of `token`.
    pub(super) fn embed(&self, token: TokenId, out: &mut [f32]) {
        match &self.embedding {
            Some(table) => table.decode(token, out),
            None => self.head.row(token as usize, out),
        }
    }
}

impl LayerWeights {
    fn matrices(&self) -> [&PackedMatrix; 4] {
        [&self.qkv, &self.output, &self.gate_up, &self.down]
    }

    fn load(packer: Packer, config: &ModelConfig, source: &dyn TensorSource, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let matrix = |part: &str, n: usize, k: usize| Table::read(source, &name(&format!("{part}.weight")), n, k);
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let heads = [("self_attn.q_norm.weight", config.heads), ("self_attn.k_norm.weight", config.kv_heads)];
        let gate_up = ["mlp.gate_proj.bias", "mlp.up_proj.bias"];
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let qkv = [
            matrix("self_attn.q_proj", queries, hidden)?,
            matrix("self_attn.k_proj", keys, hidden)?,
            matrix("self_attn.v_proj", keys, hidden)?,
        ];
        let bias = |part: &str, n: usize| read_vector(source, &name(&format!("self_attn.{part}.bias")), n);
        let qkv_bias = if config.qkv_bias {
            Some([bias("q_proj", queries)?, bias("k_proj", keys)?, bias("v_proj", keys)?].concat())
        } else {
            None
        };
        Ok(LayerWeights {
            qk_norm: read_joined(config.qk_norm, source, &heads.map(|(part, n)| (name(part), config.head_dim, n)))?,
            output_bias: read_joined(config.output_bias, source, &[(name("self_attn.o_proj.bias"), hidden, 1)])?,
            gate_up_bias: read_joined(config.mlp_bias, source, &gate_up.map(|part| (name(part), intermediate, 1)))?,
            down_bias: read_joined(config.mlp_bias, source, &[(name("mlp.down_proj.bias"), hidden, 1)])?,
            attention_norm: read_vector(source, &name("input_layernorm.weight"), hidden)?,
            qkv: packer.pack(&qkv),
            qkv_bias,
            output: packer.pack(&[matrix("self_attn.o_proj", hidden, queries)?]),
            mlp_norm: read_vector(source, &name("post_attention_layernorm.weight"), hidden)?,
            gate_up: packer
                .pack(&[matrix("mlp.gate_proj", intermediate, hidden)?, matrix("mlp.up_proj", intermediate, hidden)?]),
            down: packer.pack(&[matrix("mlp.down_proj", hidden, intermediate)?]),
        })
    }
}

impl Table {
    /// Reads a tensor of shape [rows, width].
    pub(super) fn read(source: &dyn TensorSource, name: &str, rows: usize, width: usize) -> Result<Self> {
        let mut tensor = source.read(name, &[rows, width])?;
        check_bytes(name, &tensor, rows, width)?;
        if let Some(bytes) = as_q8_0(tensor.dtype, &tensor.bytes) {
            (tensor.dtype, tensor.bytes) = (DType::Q8_0, bytes);
        }
        Ok(Table { tensor, width })
    }

    /// Decodes row `row` into `out`, which has the width of the table.
    pub(super) fn decode(&self, row: TokenId, out: &mut [f32]) {
        dequantize(self.tensor.dtype, self.row(row as usize), out);
    }

    /// Returns the bytes of main memory that the values take.
    pub(super) fn size_bytes(&self) -> usize {
        self.tensor.bytes.len()
    }

    fn rows(&self) -> usize {
        self.tensor.shape.first().copied().unwrap_or(0)
    }

    /// The stored values of row `row`.
    fn row(&self, row: usize) -> &[u8] {
        let size = self.tensor.bytes.len() / self.rows();
        &self.tensor.bytes[row * size..][..size]
    }
}

/// How matrices are packed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packer {
    pub(super) arch: Arch,
    pub(super) activations: Activations,
}

impl Packer {
    /// Packs tables of equal width as one matrix, one below the other.
    pub(super) fn pack(self, tables: &[Table]) -> PackedMatrix {
        let width = tables.first().map_or(0, |table| table.width);
        let encoding = Encoding::of(tables.iter().map(|table| table.tensor.dtype));
        let mut matrix = PackedMatrix::zeros(self.arch, encoding, tables.iter().map(Table::rows).sum(), width);
        let rows = tables.iter().flat_map(|table| (0..table.rows()).map(move |row| (table.tensor.dtype, table.row(row))));
        for (to, (dtype, bytes)) in rows.enumerate() {
            matrix.set_row(to, dtype, bytes);
        }
        match self.activations {
            Activations::Int8 => matrix.multiply_bytes(),
            Activations::F32 => matrix,
        }
    }
}

/// Reads a tensor of one dimension.
pub(super) fn read_vector(source: &dyn TensorSource, name: &str, len: usize) -> Result<Vec<f32>> {
    let tensor = source.read(name, &[len])?;
    check_bytes(name, &tensor, 1, len)?;
    let mut values = vec![0.0; len];
    dequantize(tensor.dtype, &tensor.bytes, &mut values);
    Ok(values)
}

/// Reads vectors of which each has a name, a length and a number of repetitions, and joins them; nothing unless `present`.
fn read_joined(present: bool, source: &dyn TensorSource, parts: &[(String, usize, usize)]) -> Result<Option<Vec<f32>>> {
    if !present {
        return Ok(None);
    }
    let mut joined = Vec::new();
    for (name, len, times) in parts {
        joined.extend(read_vector(source, name, *len)?.repeat(*times));
    }
    Ok(Some(joined))
}

fn check_bytes(name: &str, tensor: &HostTensor, rows: usize, width: usize) -> Result<()> {
    let expected = tensor.dtype.row_bytes(width).and_then(|bytes| bytes.checked_mul(rows));
    if expected == Some(tensor.bytes.len()) {
        return Ok(());
    }
    let HostTensor { dtype, bytes, .. } = tensor;
    Err(Error::Invalid(format!("tensor {name} of {rows} x {width} values as {dtype:?} cannot have {} bytes", bytes.len())))
}

fn check_config(config: &ModelConfig) -> Result<()> {
    let ModelConfig { vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, .. } = *config;
    let sizes = [vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim];
    if sizes.contains(&0) || u32::try_from(vocab_size).is_err() {
        return Err(Error::Invalid(format!("a model's sizes must be positive and its vocabulary below 2^32: {config:?}")));
    }
    if heads % kv_heads != 0 {
        return Err(Error::Invalid(format!("{heads} query heads cannot share {kv_heads} KV heads evenly")));
    }
    if head_dim % 2 != 0 || head_dim > HEAD_DIM_MAX {
        return Err(Error::Invalid(format!(
            "the CPU device needs an even head_dim of at most {HEAD_DIM_MAX}, not {head_dim}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::reference::{MemoryTensors, tiny_config};
    use super::*;

    #[test]
    fn damaged_models_are_errors_not_panics() {
        let config = tiny_config();
        let tensors = MemoryTensors::random(&config, 1);
        let packer = Packer { arch: Arch::new(), activations: Activations::Int8 };
        let load = |config: &ModelConfig, tensors: &MemoryTensors| Weights::load(packer, config, tensors);
        load(&config, &tensors).unwrap();

        let mut missing = tensors.clone();
        missing.tensors.remove("model.layers.1.mlp.up_proj.weight");
        assert!(load(&config, &missing).unwrap_err().to_string().contains("up_proj"));

        let mut short = tensors.clone();
        short.tensors.get_mut("model.norm.weight").unwrap().bytes.pop();
        assert!(load(&config, &short).unwrap_err().to_string().contains("model.norm.weight"));

        for change in [
            |c: &mut ModelConfig| c.head_dim = 7,
            |c: &mut ModelConfig| c.kv_heads = 3,
            |c: &mut ModelConfig| c.layers = 0,
            |c: &mut ModelConfig| c.head_dim = HEAD_DIM_MAX + 2,
        ] {
            let mut config = config.clone();
            change(&mut config);
            assert!(matches!(load(&config, &tensors), Err(Error::Invalid(_))));
        }
    }
}
