//! The pass of a BERT-family encoder over the tokens of some texts (Devlin et al. 2018): normalised after each residual sum.

use std::num::NonZeroUsize;
use std::ops::Range;

use pulp::Arch;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::super::aligned::AlignedVec;
use super::super::gemm::{GemmScratch, Start, gemm};
use super::super::rows::for_row_blocks;
use super::activation::activate;
use super::attention::attention;
use super::weights::{LayerWeights, Projection, Weights};
use crate::device::EncoderDevice;
use crate::error::{Error, Result};
use crate::model::{EncoderConfig, Pooling, TensorSource};
use crate::request::TokenId;

/// An encoder in main memory.
#[derive(Debug)]
pub struct CpuEncoder {
    config: EncoderConfig,
    weights: Weights,
    arch: Arch,
    pool: ThreadPool,
    buffers: Buffers,
}

/// Buffers of a pass, kept from pass to pass.
#[derive(Debug, Default)]
struct Buffers {
    /// The token ranges of the texts.
    texts: Vec<Range<usize>>,
    /// The residual stream, [tokens, hidden].
    x: AlignedVec,
    /// [tokens, 3 * hidden].
    qkv: AlignedVec,
    /// What attention gives, [tokens, hidden].
    attended: AlignedVec,
    /// [tokens, intermediate].
    inner: AlignedVec,
    gemm: GemmScratch,
}

impl CpuEncoder {
    /// Reads the weights. `threads` compute; `None` takes as many as the process may run at once.
    ///
    /// Fails if a tensor is missing or damaged, or if `config` contradicts itself.
    pub fn new(config: &EncoderConfig, weights: &dyn TensorSource, threads: Option<NonZeroUsize>) -> Result<Self> {
        config.check().map_err(Error::Invalid)?;
        let threads = threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("refrain-encoder-{i}")).build();
        let arch = Arch::new();
        Ok(CpuEncoder {
            config: config.clone(),
            weights: Weights::load(arch, config, weights)?,
            arch,
            pool: pool.map_err(|error| Error::Device(format!("cannot start {threads} threads: {error}")))?,
            buffers: Buffers::default(),
        })
    }

    fn check(&self, text: &[TokenId]) -> Result<()> {
        let (limit, vocab_size) = (self.config.max_tokens, self.config.vocab_size);
        if text.is_empty() || text.len() > limit {
            return Err(Error::Invalid(format!(
                "a text of {} tokens cannot be embedded: 1 to {limit} are allowed",
                text.len()
            )));
        }
        match text.iter().find(|token| **token as usize >= vocab_size) {
            Some(token) => Err(Error::Invalid(format!("there is no token {token}, the vocabulary has {vocab_size}"))),
            None => Ok(()),
        }
    }
}

impl EncoderDevice for CpuEncoder {
    fn describe(&self) -> String {
        let threads = self.pool.current_num_threads();
        format!("cpu, {threads} thread{}", if threads == 1 { "" } else { "s" })
    }

    fn held_bytes(&self) -> Option<u64> {
        Some(self.weights.size_bytes() as u64)
    }

    fn embed(&mut self, texts: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>> {
        texts.iter().try_for_each(|text| self.check(text))?;
        let CpuEncoder { config, weights, arch, pool, buffers } = self;
        Ok(pool.install(|| Pass { config, weights, arch: *arch, buffers }.run(texts)))
    }
}

/// One pass, on the rayon pool of the calling thread.
struct Pass<'a> {
    config: &'a EncoderConfig,
    weights: &'a Weights,
    arch: Arch,
    buffers: &'a mut Buffers,
}

impl Pass<'_> {
    fn run(mut self, texts: &[Vec<TokenId>]) -> Vec<Vec<f32>> {
        self.embed_words(texts);
        for layer in &self.weights.layers {
            self.attend(layer);
            self.feed_forward(layer);
        }
        let hidden = self.config.hidden_size;
        let states = |text: &Range<usize>| &self.buffers.x[text.start * hidden..text.end * hidden];
        self.buffers.texts.iter().map(|text| pool(self.config.pooling, states(text), hidden)).collect()
    }

    /// The sum of each token's word, position and type.
    fn embed_words(&mut self, texts: &[Vec<TokenId>]) {
        let Buffers { texts: ranges, x, .. } = &mut *self.buffers;
        ranges.clear();
        let mut tokens = Vec::new();
        for text in texts {
            ranges.push(tokens.len()..tokens.len() + text.len());
            tokens.extend(text.iter().copied().zip(self.config.first_position as TokenId..));
        }
        let hidden = self.config.hidden_size;
        x.resize(tokens.len() * hidden);
        let Weights { words, positions, token_type, .. } = self.weights;
        for_row_blocks(x, hidden, |first, block| {
            let mut position_row = vec![0.0; hidden];
            for (row, (token, position)) in block.chunks_exact_mut(hidden).zip(&tokens[first..]) {
                words.decode(*token, row);
                positions.decode(*position, &mut position_row);
                for ((x, position), token_type) in row.iter_mut().zip(&position_row).zip(token_type) {
                    *x = *x + token_type + position;
                }
            }
        });
        self.weights.embedding_norm.apply(self.arch, x);
    }

    fn attend(&mut self, layer: &LayerWeights) {
        let (heads, hidden) = (self.config.heads, self.config.hidden_size);
        let Buffers { texts, x, qkv, attended, gemm: scratch, .. } = &mut *self.buffers;
        qkv.resize(3 * x.len());
        project(self.arch, scratch, x, &layer.qkv, qkv);
        attended.resize(x.len());
        attention(self.arch, texts, heads, hidden / heads, qkv, attended);
        add_projected(self.arch, scratch, attended, &layer.output, x);
        layer.attention_norm.apply(self.arch, x);
    }

    fn feed_forward(&mut self, layer: &LayerWeights) {
        let Buffers { x, inner, gemm: scratch, .. } = &mut *self.buffers;
        let channels = self.config.intermediate_size;
        inner.resize(x.len() / self.config.hidden_size * channels);
        project(self.arch, scratch, x, &layer.up, inner);
        activate(self.arch, self.config.activation, channels, inner);
        add_projected(self.arch, scratch, inner, &layer.down, x);
        layer.mlp_norm.apply(self.arch, x);
    }
}

/// `out = a * w^T + bias`.
fn project(arch: Arch, scratch: &mut GemmScratch, a: &[f32], projection: &Projection, out: &mut [f32]) {
    let Projection { matrix, bias } = projection;
    for_row_blocks(out, bias.len(), |_, block| block.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias)));
    gemm(arch, scratch, a, matrix, out, Start::Out);
}

/// `out += a * w^T + bias`.
fn add_projected(arch: Arch, scratch: &mut GemmScratch, a: &[f32], projection: &Projection, out: &mut [f32]) {
    let Projection { matrix, bias } = projection;
    for_row_blocks(out, bias.len(), |_, block| {
        for row in block.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
    });
    gemm(arch, scratch, a, matrix, out, Start::Out);
}

/// Makes one vector of the states `[tokens, hidden]` of a text.
fn pool(pooling: Pooling, states: &[f32], hidden: usize) -> Vec<f32> {
    match pooling {
        Pooling::First => states[..hidden].to_vec(),
        Pooling::Last => states[states.len() - hidden..].to_vec(),
        Pooling::Mean => {
            let mut sums = vec![0.0; hidden];
            for state in states.chunks_exact(hidden) {
                sums.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
            }
            let scale = ((states.len() / hidden) as f32).recip();
            sums.iter_mut().for_each(|sum| *sum *= scale);
            sums
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::reference::close;
    use super::super::reference::{naive_vector, random_tensors, tiny_encoder, tokens};
    use super::*;
    use crate::model::Activation;

    fn encoder(config: &EncoderConfig, threads: usize) -> CpuEncoder {
        CpuEncoder::new(config, &random_tensors(config, 7), NonZeroUsize::new(threads)).unwrap()
    }

    #[test]
    fn matches_a_naive_pass() {
        let plain = tiny_encoder();
        let mut other = tiny_encoder();
        (other.pooling, other.activation, other.first_position) = (Pooling::First, Activation::GeluTanh, 2);
        (other.max_tokens, other.tensor_prefix) = (other.positions - 2, "roberta.".to_owned());
        let mut last = tiny_encoder();
        (last.pooling, last.activation) = (Pooling::Last, Activation::Relu);
        for config in [plain, other, last] {
            let texts: Vec<_> = [1, 19, 40].into_iter().zip(1..).map(|(len, seed)| tokens(&config, len, seed)).collect();
            let vectors = encoder(&config, 2).embed(&texts).unwrap();
            for (text, vector) in texts.iter().zip(vectors) {
                let expected = naive_vector(&config, &random_tensors(&config, 7), text);
                vector.iter().zip(expected).for_each(|(&x, expected)| close(x, expected, 2e-5));
            }
        }
    }

    #[test]
    fn a_vector_does_not_depend_on_the_batch_or_on_threads() {
        let config = tiny_encoder();
        let texts: Vec<_> = (1..40).map(|len| tokens(&config, len, len as u64)).collect();
        let together = encoder(&config, 3).embed(&texts).unwrap();
        let mut alone = encoder(&config, 1);
        for (text, vector) in texts.into_iter().zip(together) {
            assert_eq!(alone.embed(&[text]).unwrap(), [vector]);
        }
    }

    #[test]
    fn impossible_texts_and_damaged_models_are_errors() {
        let config = tiny_encoder();
        let mut encoder = encoder(&config, 1);
        for text in [vec![], vec![0; config.max_tokens + 1], vec![config.vocab_size as TokenId]] {
            assert!(matches!(encoder.embed(&[text]), Err(Error::Invalid(_))));
        }
        assert!(encoder.embed(&[]).unwrap().is_empty());
        let mut tensors = random_tensors(&config, 7);
        tensors.tensors.remove("encoder.layer.1.output.dense.bias");
        let error = CpuEncoder::new(&config, &tensors, None).unwrap_err();
        assert!(error.to_string().contains("output.dense.bias"), "{error}");
    }
}
