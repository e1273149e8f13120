//! An encoder's tensors: projections in panels, embeddings as stored.

use pulp::Arch;

use super::super::device::Activations;
use super::super::panels::PackedMatrix;
use super::super::weights::{Packer, Table, read_vector};
use super::layernorm::LayerNorm;
use crate::error::Result;
use crate::model::{EncoderConfig, TensorSource};

/// All weights of an encoder.
#[derive(Debug)]
pub(super) struct Weights {
    /// [vocabulary, hidden].
    pub(super) words: Table,
    /// [positions, hidden].
    pub(super) positions: Table,
    /// The embedding of the first token type, `[hidden]`.
    pub(super) token_type: Vec<f32>,
    pub(super) embedding_norm: LayerNorm,
    pub(super) layers: Vec<LayerWeights>,
}

/// Weights of one layer.
#[derive(Debug)]
pub(super) struct LayerWeights {
    /// [3 * hidden, hidden]: queries, keys, values.
    pub(super) qkv: Projection,
    /// [hidden, hidden].
    pub(super) output: Projection,
    pub(super) attention_norm: LayerNorm,
    /// [intermediate, hidden].
    pub(super) up: Projection,
    /// [hidden, intermediate].
    pub(super) down: Projection,
    pub(super) mlp_norm: LayerNorm,
}

/// A matrix and what is added to its product.
#[derive(Debug)]
pub(super) struct Projection {
    pub(super) matrix: PackedMatrix,
    pub(super) bias: Vec<f32>,
}

impl Weights {
    /// Returns the bytes of main memory that matrices and embeddings take; vectors are left out.
    pub(super) fn size_bytes(&self) -> usize {
        let of_layer = |layer: &LayerWeights| {
            [&layer.qkv, &layer.output, &layer.up, &layer.down].iter().map(|part| part.matrix.size_bytes()).sum::<usize>()
        };
        self.words.size_bytes() + self.positions.size_bytes() + self.layers.iter().map(of_layer).sum::<usize>()
    }

    /// Reads all tensors of `config`, which must have been checked. Fails if one is missing or damaged.
    pub(super) fn load(arch: Arch, config: &EncoderConfig, source: &dyn TensorSource) -> Result<Self> {
        let reader = Reader { packer: Packer { arch, activations: Activations::F32 }, config, source };
        let hidden = config.hidden_size;
        let types = reader.table("embeddings.token_type_embeddings.weight", config.token_types, hidden)?;
        let mut token_type = vec![0.0; hidden];
        types.decode(0, &mut token_type);
        Ok(Weights {
            words: reader.table("embeddings.word_embeddings.weight", config.vocab_size, hidden)?,
            positions: reader.table("embeddings.position_embeddings.weight", config.positions, hidden)?,
            token_type,
            embedding_norm: reader.layer_norm("embeddings.LayerNorm")?,
            layers: (0..config.layers).map(|layer| reader.layer(layer)).collect::<Result<_>>()?,
        })
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    packer: Packer,
    config: &'a EncoderConfig,
    source: &'a dyn TensorSource,
}

impl Reader<'_> {
    fn layer(self, layer: usize) -> Result<LayerWeights> {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let attention = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(LayerWeights {
            qkv: self.projection(&attention, hidden, hidden)?,
            output: self.projection(&[name("attention.output.dense")], hidden, hidden)?,
            attention_norm: self.layer_norm(&name("attention.output.LayerNorm"))?,
            up: self.projection(&[name("intermediate.dense")], inner, hidden)?,
            down: self.projection(&[name("output.dense")], hidden, inner)?,
            mlp_norm: self.layer_norm(&name("output.LayerNorm"))?,
        })
    }

    /// Reads projections of the same input as one.
    fn projection(self, names: &[String], outputs: usize, inputs: usize) -> Result<Projection> {
        let mut tables = Vec::with_capacity(names.len());
        let mut bias = Vec::with_capacity(names.len() * outputs);
        for name in names {
            tables.push(self.table(&format!("{name}.weight"), outputs, inputs)?);
            bias.extend(self.vector(&format!("{name}.bias"), outputs)?);
        }
        Ok(Projection { matrix: self.packer.pack(&tables), bias })
    }

    fn layer_norm(self, name: &str) -> Result<LayerNorm> {
        let hidden = self.config.hidden_size;
        let (weight, bias) =
            (self.vector(&format!("{name}.weight"), hidden)?, self.vector(&format!("{name}.bias"), hidden)?);
        Ok(LayerNorm { weight, bias, eps: self.config.layer_norm_eps })
    }

    fn table(self, name: &str, rows: usize, width: usize) -> Result<Table> {
        Table::read(self.source, &format!("{}{name}", self.config.tensor_prefix), rows, width)
    }

    fn vector(self, name: &str, len: usize) -> Result<Vec<f32>> {
        read_vector(self.source, &format!("{}{name}", self.config.tensor_prefix), len)
    }
}
