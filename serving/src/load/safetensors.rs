//! Weights in safetensors files, one or many.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::storage::{Storage, read_text, weights_error};
use super::weights::{WeightFiles, check_shape, missing};
use crate::error::{Error, Result};
use crate::model::{DType, HostTensor, ModelConfig, StoredTensor, TensorSource};

/// The longest header that is read; those of models with a hundred thousand tensors have 12 MiB.
const HEADER_MAX: u64 = 32 << 20;
/// The longest index that is read.
const INDEX_MAX: u64 = 32 << 20;
/// The index of a model in several files.
const INDEX: &str = "model.safetensors.index.json";

/// The safetensors files of one model. Tensors are read from disk when they are asked for.
#[derive(Debug)]
pub struct SafetensorsFiles {
    folder: PathBuf,
    files: Vec<Storage>,
    /// Where the data of each file begins.
    data_starts: Vec<u64>,
    tensors: HashMap<String, Entry>,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes from the start of the file.
    offset: u64,
    len: u64,
}

impl SafetensorsFiles {
    /// Opens the files of a folder: those of `model.safetensors.index.json` if it is there, else `model.safetensors`, else
    /// every `*.safetensors`. Fails if one is missing or damaged, or if a tensor stands in two of them.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut files =
            SafetensorsFiles { folder: folder.to_owned(), files: vec![], data_starts: vec![], tensors: HashMap::new() };
        for path in file_paths(folder)? {
            files.add(&path)?;
        }
        Ok(files)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let storage = Storage::open(path)?;
        let header_len = storage.read(0, 8)?.try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
        if header_len > HEADER_MAX || header_len > storage.len() - 8 {
            return Err(storage.error(format!(
                "the header claims {header_len} bytes of {}: this is no safetensors file, or it is truncated; fetch it again",
                storage.len(),
            )));
        }
        let metadata: Metadata = serde_json::from_slice(&storage.read(8, header_len)?)
            .map_err(|error| storage.error(format!("the header is damaged: {error}; fetch the file again")))?;
        let data_start = 8 + header_len;
        for (name, info) in metadata.tensors() {
            let entry = Entry {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: data_start.saturating_add(info.data_offsets.0 as u64),
                len: (info.data_offsets.1 as u64).saturating_sub(info.data_offsets.0 as u64),
            };
            if entry.offset.saturating_add(entry.len) > storage.len() {
                return Err(storage.error(format!("tensor {name:?} lies beyond the end of the file: fetch it again")));
            }
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(storage.error(format!("tensor {name:?} also stands in another file of the folder; remove one")));
            }
        }
        self.data_starts.push(data_start);
        self.files.push(storage);
        Ok(())
    }

    /// Presents fused projections, as Phi-3 has them, under the names of their parts, which lie in them one below the other.
    ///
    /// Fails if a fused tensor has not the shape that `config` asks for.
    pub fn with_split_projections(mut self, config: &ModelConfig) -> Result<Self> {
        let (query, key) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let attention = [("self_attn.q_proj", query), ("self_attn.k_proj", key), ("self_attn.v_proj", key)];
        let mlp = [("mlp.gate_proj", config.intermediate_size), ("mlp.up_proj", config.intermediate_size)];
        for layer in 0..config.layers {
            for (fused, parts) in [("self_attn.qkv_proj", &attention[..]), ("mlp.gate_up_proj", &mlp[..])] {
                let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
                self.split(&name(fused), parts.iter().map(|(part, rows)| (name(part), *rows)), config.hidden_size)?;
            }
        }
        Ok(self)
    }

    fn split(&mut self, fused: &str, parts: impl Iterator<Item = (String, usize)> + Clone, width: usize) -> Result<()> {
        if !self.contains(fused) {
            return Ok(());
        }
        let rows = parts.clone().map(|(_, rows)| rows).sum();
        let entry = self.entry(fused, &[rows, width])?.0.clone();
        self.tensors.remove(fused);
        let mut offset = entry.offset;
        for (name, part_rows) in parts {
            let len = entry.len / rows as u64 * part_rows as u64;
            let part = Entry { shape: vec![part_rows, width], offset, len, ..entry };
            if self.tensors.insert(name.clone(), part).is_some() {
                return Err(self.error(format!("tensor {name:?} also stands in {fused:?}; remove one")));
            }
            offset += len;
        }
        Ok(())
    }

    /// Fails if a layer of `config` has a tensor here that the decoder does not use: then the model computes something else.
    pub(super) fn check_nothing_unused(&self, config: &ModelConfig) -> Result<()> {
        let used: HashSet<_> = config.tensors().into_iter().map(|(name, _)| name).collect();
        let of_layer = |name: &str| {
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            layer.is_some_and(|layer| layer < config.layers)
        };
        // Old files store the rotary frequencies, which follow from the configuration.
        let unused = self.tensors.keys().filter(|name| of_layer(name) && !name.ends_with("rotary_emb.inv_freq"));
        match unused.filter(|name| !used.contains(*name)).min() {
            None => Ok(()),
            Some(name) => Err(self.error(format!(
                "tensor {name:?} is none that the configuration speaks of: the model is a variant that is not supported"
            ))),
        }
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<(&Entry, DType)> {
        let entry = self.tensors.get(name).ok_or_else(|| missing(self, name))?;
        check_shape(self, name, &entry.shape, shape)?;
        let (dtype, size) = match entry.dtype {
            Dtype::F32 => (DType::F32, 4),
            Dtype::F16 => (DType::F16, 2),
            Dtype::BF16 => (DType::BF16, 2),
            other => {
                return Err(self.error(format!("tensor {name:?} is {other:?}; supported are F32, F16 and BF16")));
            }
        };
        let values = shape.iter().try_fold(size, |bytes: u64, size| bytes.checked_mul(*size as u64));
        if values != Some(entry.len) {
            return Err(self.error(format!("tensor {name:?} has {} bytes, which do not fit its shape {shape:?}", entry.len)));
        }
        Ok((entry, dtype))
    }
}

impl TensorSource for SafetensorsFiles {
    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let (entry, dtype) = self.entry(name, shape)?;
        let bytes = self.files[entry.file].read(entry.offset, entry.len)?;
        Ok(HostTensor { shape: shape.to_vec(), dtype, bytes })
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<Option<StoredTensor<'_>>> {
        let (entry, dtype) = self.entry(name, shape)?;
        Ok(Some(StoredTensor { dtype, file: &self.files[entry.file], offset: entry.offset }))
    }
}

impl WeightFiles for SafetensorsFiles {
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.entry(name, shape).map(|_| ())
    }

    fn digest(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        self.files.iter().zip(&self.data_starts).try_for_each(|(file, start)| file.digest(hasher, *start))
    }

    fn error(&self, reason: String) -> Error {
        weights_error(self.files.first().filter(|_| self.files.len() == 1).map_or(&self.folder, |file| file.path()), reason)
    }
}

/// Returns the paths of a model's files in a fixed order.
fn file_paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let (index, single) = (folder.join(INDEX), folder.join("model.safetensors"));
    if index.exists() {
        return Ok(files_of_index(&index)?.iter().map(|name| folder.join(name)).collect());
    }
    if single.exists() {
        return Ok(vec![single]);
    }
    let entries = std::fs::read_dir(folder).map_err(|error| weights_error(folder, format!("cannot be listed: {error}")))?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut found: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "safetensors")).collect();
    found.sort();
    Ok(found)
}

/// What is read of model.safetensors.index.json.
#[derive(Deserialize)]
struct Index {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

fn files_of_index(path: &Path) -> Result<BTreeSet<String>> {
    let text = read_text(path, INDEX_MAX)?;
    let damaged = |what: &str| weights_error(path, format!("the index {what}; fetch it again"));
    let Index { weight_map } = serde_json::from_str(&text)
        .map_err(|error| damaged(&format!("is no JSON with a weight_map of names to files ({error})")))?;
    // A name that leads out of the folder has no business in an index.
    if let Some(name) = weight_map.values().find(|name| name.contains(['/', '\\']) || name.starts_with("..")) {
        return Err(damaged(&format!("names {name:?}, which is not a file of this folder")));
    }
    Ok(weight_map.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose header is `header`, followed by `data` bytes.
    fn write(folder: &Path, name: &str, header: &str, data: usize) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..data).map(|i| i as u8));
        std::fs::write(folder.join(name), bytes).unwrap();
    }

    fn tensor(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
        format!(r#"{{"{name}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
    }

    #[track_caller]
    fn check_refused(header: &str, data: usize, words: &str) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "model.safetensors", header, data);
        let opened = SafetensorsFiles::open(folder.path());
        let error = opened.and_then(|files| files.read("a", &[2])).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("model.safetensors"), "{error}");
    }

    #[test]
    fn reads_a_tensor_from_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let header = r#"{"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "a": {"dtype": "BF16", "shape": [2], "data_offsets": [4, 8]}}"#;
        write(folder.path(), "model.safetensors", header, 8);
        let files = SafetensorsFiles::open(folder.path()).unwrap();
        assert!(files.contains("a") && !files.contains("c"));
        let read = files.read("a", &[2]).unwrap();
        assert_eq!(read, HostTensor { shape: vec![2], dtype: DType::BF16, bytes: vec![4, 5, 6, 7] });
    }

    #[test]
    fn reads_shards_with_and_without_an_index() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "x-1.safetensors", &tensor("a", "F16", "[2]", "[0, 4]"), 4);
        write(folder.path(), "x-2.safetensors", &tensor("b", "F16", "[1]", "[0, 2]"), 2);
        assert!(SafetensorsFiles::open(folder.path()).unwrap().contains("b"));
        std::fs::write(folder.path().join(INDEX), r#"{"weight_map": {"a": "x-1.safetensors"}}"#).unwrap();
        let files = SafetensorsFiles::open(folder.path()).unwrap();
        assert!(files.contains("a") && !files.contains("b"));
    }

    fn phi3_config() -> ModelConfig {
        let json = r#"{"architectures": ["Phi3ForCausalLM"], "vocab_size": 4, "hidden_size": 2, "intermediate_size": 1,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2,
            "max_position_embeddings": 8}"#;
        super::super::hf_config::parse(json).unwrap()
    }

    #[test]
    fn parts_of_fused_projections_are_read_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let header = r#"{"model.layers.0.mlp.gate_up_proj.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
            "model.layers.0.self_attn.qkv_proj.weight": {"dtype": "BF16", "shape": [8, 2], "data_offsets": [8, 40]}}"#;
        write(folder.path(), "model.safetensors", header, 40);
        let open = || SafetensorsFiles::open(folder.path()).unwrap();
        let files = open().with_split_projections(&phi3_config()).unwrap();
        let bytes =
            |part: &str, rows: usize| files.read(&format!("model.layers.0.{part}.weight"), &[rows, 2]).unwrap().bytes;
        assert_eq!(bytes("mlp.gate_proj", 1), [0, 1, 2, 3]);
        assert_eq!(bytes("mlp.up_proj", 1), [4, 5, 6, 7]);
        assert_eq!(bytes("self_attn.q_proj", 4), (8..24).collect::<Vec<u8>>());
        assert_eq!(bytes("self_attn.k_proj", 2), (24..32).collect::<Vec<u8>>());
        assert_eq!(bytes("self_attn.v_proj", 2), (32..40).collect::<Vec<u8>>());
        let wrong = ModelConfig { kv_heads: 2, ..phi3_config() };
        let error = open().with_split_projections(&wrong).unwrap_err().to_string();
        assert!(error.contains("qkv_proj") && error.contains("has shape [8, 2]"), "{error}");
    }

    #[test]
    fn a_tensor_that_would_not_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str| {
            write(folder.path(), "model.safetensors", &tensor(name, "F32", "[1]", "[0, 4]"), 4);
            SafetensorsFiles::open(folder.path()).unwrap().check_nothing_unused(&phi3_config())
        };
        let error = check("model.layers.0.self_attn.q_proj.bias").unwrap_err().to_string();
        assert!(error.contains("q_proj.bias") && error.contains("not supported"), "{error}");
        for fine in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.x", "lm_head.weight", "model.layers.0x"]
        {
            check(fine).unwrap();
        }
    }

    #[test]
    fn refuses_damaged_files_and_names_them() {
        check_refused(&tensor("a", "F32", "[2]", "[0, 8]"), 7, "beyond the end");
        check_refused(&tensor("a", "F32", "[2]", "[0, 99999999999999]"), 8, "header is damaged");
        check_refused(&tensor("a", "F32", "[18446744073709551615, 8]", "[0, 8]"), 8, "header is damaged");
        check_refused(&tensor("a", "I64", "[2]", "[0, 16]"), 16, "supported are");
        check_refused(&tensor("a", "F32", "[3]", "[0, 12]"), 12, "shape");
        check_refused(&tensor("z", "F32", "[2]", "[0, 8]"), 8, "missing");
        check_refused("{", 0, "header is damaged");
        check_refused("[1]", 0, "header is damaged");
    }

    #[test]
    fn refuses_absurd_header_lengths() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [&b"abc"[..], &u64::MAX.to_le_bytes(), &99_u64.to_le_bytes()] {
            std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
            assert!(matches!(SafetensorsFiles::open(folder.path()), Err(Error::Weights { .. })), "{bytes:?}");
        }
    }

    #[test]
    fn refuses_bad_indices() {
        let folder = tempfile::tempdir().unwrap();
        for index in
            ["", "{}", r#"{"weight_map": 1}"#, r#"{"weight_map": {"a": "../x"}}"#, r#"{"weight_map": {"a": "gone"}}"#]
        {
            std::fs::write(folder.path().join(INDEX), index).unwrap();
            assert!(matches!(SafetensorsFiles::open(folder.path()), Err(Error::Weights { .. })), "{index}");
        }
    }

    #[test]
    fn refuses_a_tensor_in_two_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x.safetensors", "y.safetensors"] {
            write(folder.path(), name, &tensor("a", "F16", "[1]", "[0, 2]"), 2);
        }
        let error = SafetensorsFiles::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("another file"), "{error}");
    }
}
