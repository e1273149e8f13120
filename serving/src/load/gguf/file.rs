//! A GGUF file as the weights of a model.

use std::path::Path;

use super::config::{architecture, interleaved, model_config};
use super::header::{Contents, Place};
use super::vocabulary::{Vocabulary, tokenizer_config};
use crate::error::{Error, Result};
use crate::load::storage::Storage;
use crate::load::weights::{WeightFiles, check_shape, missing};
use crate::model::{HostTensor, ModelConfig, StoredTensor, TensorSource};

/// A GGUF file of a decoder. Tensors are read when they are asked for, under their Hugging Face names.
#[derive(Debug)]
pub struct GgufFile {
    contents: Contents,
    config: ModelConfig,
    /// Whether rows of query and key heads are interleaved rotary pairs.
    interleaved: bool,
}

impl GgufFile {
    /// Opens a file and reads its header. Fails if it is damaged or of an architecture that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        GgufFile::parse(Storage::open(path)?)
    }

    /// Reads a file that is in memory; `name` stands for it in messages.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        GgufFile::parse(Storage::from_static(name, bytes))
    }

    /// Returns the configuration in the file's metadata.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Reads the tokenizer in the file, or none if it is not inside.
    pub(crate) fn vocabulary(&self) -> Result<Option<Vocabulary>> {
        Vocabulary::read(&self.contents)
    }

    /// Returns what tokenizer_config.json would hold: special tokens and chat template. Empty if the vocabulary is unreadable.
    pub(crate) fn tokenizer_config(&self) -> serde_json::Value {
        tokenizer_config(&self.contents).unwrap_or_default()
    }

    fn parse(storage: Storage) -> Result<Self> {
        let contents = Contents::parse(storage)?;
        let config = model_config(&contents).map_err(|reason| contents.storage.error(reason))?;
        let interleaved = architecture(&contents).is_ok_and(interleaved);
        Ok(GgufFile { contents, config, interleaved })
    }

    /// Returns the heads whose rows the file keeps as rotary pairs, if the tensor has such rows.
    fn interleaved_heads(&self, name: &str) -> Option<usize> {
        match name {
            _ if !self.interleaved => None,
            _ if name.contains(".q_proj.") => Some(self.config.heads),
            _ if name.contains(".k_proj.") => Some(self.config.kv_heads),
            _ => None,
        }
    }

    /// Finds a tensor: its own, or its rows in one that the file joins with others.
    fn place(&self, name: &str, shape: &[usize]) -> Result<Place> {
        let gguf_name = gguf_name(name).ok_or_else(|| missing(self, name))?;
        let Some(joined) = self.joined(&gguf_name) else {
            let found = self.contents.shape(&gguf_name).ok_or_else(|| missing(self, &gguf_name))?;
            check_shape(self, &gguf_name, found, shape)?;
            return self.contents.place(&gguf_name);
        };
        let (rows, width) = shape.split_first().ok_or_else(|| missing(self, name))?;
        let found = self.contents.shape(&joined.name).ok_or_else(|| missing(self, &gguf_name))?;
        check_shape(self, &joined.name, found, &[&[joined.rows], width].concat())?;
        let whole = self.contents.place(&joined.name)?;
        if !whole.len.is_multiple_of(joined.rows as u64) {
            return Err(self.error(format!("tensor {:?} is stored in blocks that span rows; convert it again", joined.name)));
        }
        let row_bytes = whole.len / joined.rows as u64;
        let offset = whole.offset + joined.first as u64 * row_bytes;
        Ok(Place { dtype: whole.dtype, offset, len: *rows as u64 * row_bytes })
    }

    /// Returns where the rows of a tensor are if the file joins it with others, as Phi-3's do with query, key and value, and
    /// with gate and up.
    fn joined(&self, gguf_name: &str) -> Option<Joined> {
        let (layer, part) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
        let (part, suffix) = part.split_once('.')?;
        let ModelConfig { heads, kv_heads, head_dim, intermediate_size, .. } = self.config;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let (joined, parts, first, rows) = match part {
            "attn_q" => ("attn_qkv", "attn_q", 0, queries + 2 * keys),
            "attn_k" => ("attn_qkv", "attn_q", queries, queries + 2 * keys),
            "attn_v" => ("attn_qkv", "attn_q", queries + keys, queries + 2 * keys),
            "ffn_gate" => ("ffn_up", "ffn_gate", 0, 2 * intermediate_size),
            "ffn_up" => ("ffn_up", "ffn_gate", intermediate_size, 2 * intermediate_size),
            _ => return None,
        };
        let has = |part: &str| self.contents.shape(&format!("blk.{layer}.{part}.{suffix}")).is_some();
        (has(joined) && !has(parts)).then(|| Joined { name: format!("blk.{layer}.{joined}.{suffix}"), first, rows })
    }
}

/// Rows of a tensor that lies in a larger one.
struct Joined {
    /// The larger tensor.
    name: String,
    /// The first of the rows.
    first: usize,
    /// All rows of the larger tensor.
    rows: usize,
}

impl TensorSource for GgufFile {
    fn contains(&self, name: &str) -> bool {
        gguf_name(name).is_some_and(|name| self.contents.shape(&name).is_some() || self.joined(&name).is_some())
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let place = self.place(name, shape)?;
        let bytes = self.contents.storage.read(place.offset, place.len)?;
        let Some(heads) = self.interleaved_heads(name) else {
            return Ok(HostTensor { shape: shape.to_vec(), dtype: place.dtype, bytes });
        };
        let rows = shape.first().copied().unwrap_or(0);
        let bytes = separate_halves(&bytes, rows, heads).ok_or_else(|| {
            self.contents.storage.error(format!("tensor {name:?} has {rows} rows, which {heads} heads cannot share"))
        })?;
        Ok(HostTensor { shape: shape.to_vec(), dtype: place.dtype, bytes })
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<Option<StoredTensor<'_>>> {
        let Place { dtype, offset, .. } = self.place(name, shape)?;
        let as_it_is = self.interleaved_heads(name).is_none();
        Ok(as_it_is.then_some(StoredTensor { dtype, file: &self.contents.storage, offset }))
    }
}

impl WeightFiles for GgufFile {
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.place(name, shape).map(|_| ())
    }

    fn digest(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        self.contents.storage.digest(hasher, self.contents.data_start)
    }

    fn error(&self, reason: String) -> Error {
        self.contents.storage.error(reason)
    }
}

/// Puts row `2 i + j` of a head to `j * (rows of a head / 2) + i`: from rotary pairs to rotary halves. Rows are whole blocks in
/// every type, so they are moved as bytes.
fn separate_halves(bytes: &[u8], rows: usize, heads: usize) -> Option<Vec<u8>> {
    let row_bytes = bytes.len().checked_div(rows)?;
    let head_rows = rows.checked_div(heads).filter(|head_rows| head_rows * heads == rows && head_rows % 2 == 0)?;
    let mut separated = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for half in 0..2 {
            for pair in 0..head_rows / 2 {
                let row = head * head_rows + 2 * pair + half;
                separated.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    Some(separated)
}

/// Returns the name in a GGUF file of a tensor of Hugging Face.
fn gguf_name(name: &str) -> Option<String> {
    let outer = match name {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        _ => {
            let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
            let (part, suffix) = part.rsplit_once('.')?;
            let part = match part {
                "input_layernorm" => "attn_norm",
                "post_attention_layernorm" => "ffn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                _ => return None,
            };
            return Some(format!("blk.{layer}.{part}.{suffix}"));
        }
    };
    Some(outer.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::model::DType;

    /// Writes a little-endian string.
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    struct Builder {
        pairs: Vec<(String, Vec<u8>)>,
        tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    }

    impl Builder {
        /// The metadata of a model with one layer, 2 query heads, 1 key head, head size 4, hidden size 8.
        fn tiny() -> Self {
            let mut builder = Builder { pairs: vec![], tensors: vec![] };
            let mut name = 8_u32.to_le_bytes().to_vec();
            text(&mut name, "llama");
            builder.pairs.push(("general.architecture".into(), name));
            for (key, value) in [
                ("context_length", 16_u32),
                ("embedding_length", 8),
                ("block_count", 1),
                ("feed_forward_length", 32),
                ("attention.head_count", 2),
                ("attention.head_count_kv", 1),
            ] {
                builder.pairs.push((format!("llama.{key}"), [4_u32.to_le_bytes(), value.to_le_bytes()].concat()));
            }
            builder.floats("token_embd.weight", &[8, 3], &[0.0; 24]);
            builder
        }

        /// Adds a tensor; dimensions are innermost first, as in the file.
        fn floats(&mut self, name: &str, dimensions: &[u64], values: &[f32]) {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.tensors.push((name.into(), dimensions.to_vec(), 0, bytes));
        }

        /// Adds a text to the metadata.
        fn text(&mut self, key: &str, value: &str) {
            let mut pair = 8_u32.to_le_bytes().to_vec();
            text(&mut pair, value);
            self.pairs.push((key.into(), pair));
        }

        /// Adds an array of texts to the metadata.
        fn texts(&mut self, key: &str, values: &[&str]) {
            let mut pair = [9_u32, 8].map(u32::to_le_bytes).concat();
            pair.extend((values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| text(&mut pair, value));
            self.pairs.push((key.into(), pair));
        }

        /// Adds an array of words of a type to the metadata.
        fn words(&mut self, key: &str, kind: u32, values: &[[u8; 4]]) {
            let mut pair = [9_u32, kind].map(u32::to_le_bytes).concat();
            pair.extend((values.len() as u64).to_le_bytes());
            pair.extend(values.concat());
            self.pairs.push((key.into(), pair));
        }

        fn bytes(&self) -> Vec<u8> {
            let mut out = b"GGUF\x03\0\0\0".to_vec();
            out.extend((self.tensors.len() as u64).to_le_bytes());
            out.extend((self.pairs.len() as u64).to_le_bytes());
            for (key, value) in &self.pairs {
                text(&mut out, key);
                out.extend(value);
            }
            let mut data = Vec::new();
            for (name, dimensions, kind, bytes) in &self.tensors {
                text(&mut out, name);
                out.extend((dimensions.len() as u32).to_le_bytes());
                out.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
                out.extend(kind.to_le_bytes());
                out.extend((data.len() as u64).to_le_bytes());
                data.extend(bytes);
                data.resize(data.len().next_multiple_of(32), 0);
            }
            out.resize(out.len().next_multiple_of(32), 0);
            [out, data].concat()
        }

        fn open(&self) -> Result<GgufFile> {
            open(self.bytes())
        }
    }

    fn open(bytes: Vec<u8>) -> Result<GgufFile> {
        GgufFile::from_static("test.gguf", Vec::leak(bytes))
    }

    #[track_caller]
    fn check_refused(builder: &Builder, words: &str) {
        let error = builder.open().unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("test.gguf"), "{error}");
    }

    #[test]
    fn reads_configuration_and_tensors() {
        let mut builder = Builder::tiny();
        builder.floats("output_norm.weight", &[8], &[1.5; 8]);
        let file = builder.open().unwrap();
        assert_eq!((file.config().vocab_size, file.config().head_dim, file.config().tie_word_embeddings), (3, 4, true));
        let norm = file.read("model.norm.weight", &[8]).unwrap();
        assert_eq!(norm, HostTensor { shape: vec![8], dtype: DType::F32, bytes: [1.5_f32.to_le_bytes(); 8].concat() });
        assert!(!file.contains("lm_head.weight"));
        assert!(file.read("model.norm.weight", &[7]).is_err());
        assert!(file.read("nonsense", &[7]).is_err());
    }

    #[test]
    fn rotary_pairs_become_halves() {
        let mut builder = Builder::tiny();
        // Each row holds its own number; a head has four rows.
        let rows: Vec<f32> = (0..8).flat_map(|row| [row as f32; 8]).collect();
        builder.floats("blk.0.attn_q.weight", &[8, 8], &rows);
        let tensor = builder.open().unwrap().read("model.layers.0.self_attn.q_proj.weight", &[8, 8]).unwrap();
        let first_of_row: Vec<f32> =
            tensor.bytes.chunks(32).map(|row| f32::from_le_bytes(row[..4].try_into().unwrap())).collect();
        assert_eq!(first_of_row, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }

    #[test]
    fn a_file_on_disk_reads_like_one_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("model.gguf");
        std::fs::write(&path, Builder::tiny().bytes()).unwrap();
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.config(), Builder::tiny().open().unwrap().config());
        assert!(file.read("model.embed_tokens.weight", &[3, 8]).is_ok());
    }

    #[test]
    fn rows_of_joined_tensors() {
        let mut builder = Builder::tiny();
        let rows = |count: usize| (0..count).flat_map(|row| [row as f32; 8]).collect::<Vec<_>>();
        builder.pairs[0].1.clear();
        builder.pairs[0].1.extend(8_u32.to_le_bytes());
        text(&mut builder.pairs[0].1, "phi3");
        builder.pairs.iter_mut().for_each(|(key, _)| *key = key.replace("llama.", "phi3."));
        builder.floats("blk.0.attn_qkv.weight", &[8, 16], &rows(16));
        builder.floats("blk.0.ffn_up.weight", &[8, 64], &rows(64));
        let file = builder.open().unwrap();
        let first = |name: &str, rows: usize| {
            let tensor = file.read(&format!("model.layers.0.{name}.weight"), &[rows, 8]).unwrap();
            assert_eq!(tensor.bytes.len(), rows * 32);
            f32::from_le_bytes(tensor.bytes[..4].try_into().unwrap())
        };
        assert_eq!(
            (first("self_attn.q_proj", 8), first("self_attn.k_proj", 4), first("self_attn.v_proj", 4)),
            (0.0, 8.0, 12.0)
        );
        assert_eq!((first("mlp.gate_proj", 32), first("mlp.up_proj", 32)), (0.0, 32.0));
        assert!(file.contains("model.layers.0.self_attn.v_proj.weight"));
        assert!(!file.contains("model.layers.1.self_attn.v_proj.weight"));
    }

    /// A vocabulary of byte-level BPE; `change` may spoil it.
    fn vocabulary(change: impl Fn(&mut Builder)) -> Result<Option<Vocabulary>> {
        let mut builder = Builder::tiny();
        builder.text("tokenizer.ggml.model", "gpt2");
        builder.text("tokenizer.ggml.pre", "gpt-2");
        builder.texts("tokenizer.ggml.tokens", &["a", "b", "ab", "<|end|>", ""]);
        builder.words("tokenizer.ggml.token_type", 5, &[1_i32, 1, 1, 3, 1].map(i32::to_le_bytes));
        builder.texts("tokenizer.ggml.merges", &["a b"]);
        change(&mut builder);
        builder.open().unwrap().vocabulary()
    }

    #[test]
    fn reads_the_vocabulary() {
        let found = vocabulary(|_| {}).unwrap().unwrap();
        assert_eq!(found.end_tokens, [3]);
        let json: serde_json::Value = serde_json::from_str(&found.tokenizer_json).unwrap();
        assert_eq!(json["model"]["vocab"], serde_json::json!({"a": 0, "b": 1, "ab": 2, "<|end|>": 3}));
        assert_eq!(json["added_tokens"][0]["content"], "<|end|>");
        assert!(vocabulary(|builder| builder.text("tokenizer.ggml.model", "no_vocab")).unwrap().is_none());
    }

    #[test]
    fn texts_begin_with_their_token_where_the_file_says_so() {
        let config = |builder: &Builder| builder.open().unwrap().tokenizer_config();
        let mut builder = Builder::tiny();
        builder.text("tokenizer.ggml.model", "llama");
        builder.texts("tokenizer.ggml.tokens", &["<unk>", "<s>"]);
        builder.pairs.push(("tokenizer.ggml.bos_token_id".into(), [4_u32, 1].map(u32::to_le_bytes).concat()));
        let template = crate::load::ChatTemplate::new(&config(&builder), None).unwrap();
        assert_eq!(template.render("S", "U").unwrap(), "<s>S\n\nU\n");
        assert_eq!(template.render("", "U").unwrap(), "<s>U\n");
        builder.pairs.push(("tokenizer.ggml.add_bos_token".into(), [&7_u32.to_le_bytes()[..], &[0]].concat()));
        assert!(config(&builder)["chat_template"].is_null());
    }

    #[test]
    fn refuses_impossible_vocabularies() {
        let check = |change: &dyn Fn(&mut Builder), words: &str| {
            let error = vocabulary(change).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("test.gguf"), "{error}");
        };
        check(&|b| b.text("tokenizer.ggml.model", "bert"), "of kind bert");
        check(&|b| b.text("tokenizer.ggml.pre", "odd"), "the pre-tokenizer is odd; supported are default");
        check(&|b| b.texts("tokenizer.ggml.tokens", &["a", "b", "a", "ab", "c"]), "tokens 0 and 2 are both \"a\"");
        check(&|b| b.words("tokenizer.ggml.tokens", 5, &[[0; 4]]), "no array of texts");
        check(&|b| b.text("tokenizer.ggml.tokens", "a"), "instead of an array");
        check(&|b| b.texts("tokenizer.ggml.merges", &["a c"]), "names the token \"c\"");
        check(&|b| b.texts("tokenizer.ggml.merges", &["ab"]), "instead of two tokens");
        check(&|b| b.words("tokenizer.ggml.token_type", 5, &[[1, 0, 0, 0]]), "1 token types for 5 tokens");
        let scored = |scores: &[f32]| {
            let scores: Vec<[u8; 4]> = scores.iter().map(|score| score.to_le_bytes()).collect();
            move |builder: &mut Builder| {
                builder.text("tokenizer.ggml.model", "llama");
                builder.words("tokenizer.ggml.scores", 6, &scores);
            }
        };
        check(&scored(&[0.0; 4]), "does not hold a score for each token");
        check(&scored(&[0.0, 1.0, f32::NAN, 0.0, 0.0]), "the score of token 2 is not a number");
        assert!(vocabulary(scored(&[0.0, -1.0, f32::NEG_INFINITY, 0.0, 0.0])).is_ok());
    }

    #[test]
    fn refuses_other_architectures_types_and_shapes() {
        let mut builder = Builder::tiny();
        builder.pairs[0].1[12..].copy_from_slice(b"bloom");
        check_refused(&builder, "bloom");

        let mut builder = Builder::tiny();
        builder.pairs.pop();
        builder.pairs.retain(|(key, _)| !key.contains("block_count"));
        check_refused(&builder, "llama.block_count is missing");

        let mut builder = Builder::tiny();
        builder.tensors.push(("output_norm.weight".into(), vec![256], 23, vec![0; 136]));
        let error = builder.open().unwrap().read("model.norm.weight", &[256]).unwrap_err().to_string();
        assert!(error.contains("IQ4_XS") && error.contains("llama-quantize"), "{error}");

        let mut builder = Builder::tiny();
        builder.tensors.push(("output_norm.weight".into(), vec![u64::MAX, 8], 0, vec![]));
        assert!(builder.open().unwrap().read("model.norm.weight", &[8, usize::MAX]).is_err());
    }

    #[test]
    fn refuses_absurd_counts() {
        for (place, value) in [(8, u64::MAX), (16, u64::MAX), (8, 1 << 40), (16, 1 << 40), (24, u64::MAX)] {
            let mut bytes = Builder::tiny().bytes();
            bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
            assert!(matches!(open(bytes), Err(Error::Weights { .. })), "{place}");
        }
    }

    #[test]
    fn refuses_what_is_no_gguf() {
        for bytes in [&b""[..], b"GG", b"GGUF", b"GGML\x03\0\0\0", b"GGUF\x01\0\0\0", b"GGUF\0\0\0\x03"] {
            assert!(matches!(open(bytes.to_vec()), Err(Error::Weights { .. })), "{bytes:?}");
        }
    }

    proptest! {
        /// Whatever happens to a header, opening ends in a file or in an error, and so does reading.
        #[test]
        fn damage_never_panics(changes in prop::collection::vec((0_usize..600, any::<u8>()), 1..4), cut in 0_usize..2000) {
            let mut bytes = Builder::tiny().bytes();
            for (place, value) in changes {
                let place = place % bytes.len();
                bytes[place] = value;
            }
            bytes.truncate(cut.max(1));
            if let Ok(file) = open(bytes) {
                let _ = file.read("model.embed_tokens.weight", &[3, 8]);
            }
        }
    }
}
