//! The contents of a GGUF file: its metadata and where its tensors lie.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::load::storage::Storage;
use crate::model::DType;

/// Bytes read at a time while the header is parsed.
const CHUNK: u64 = 1 << 20;
/// The longest text in a header that is kept; longer ones are passed over. Chat templates have some 10 KiB.
const TEXT_MAX: u64 = 1 << 20;
/// The most metadata pairs; files have some fifty.
const PAIRS_MAX: u64 = 1 << 16;
/// The most tensors; the largest models have some ten thousand.
const TENSORS_MAX: u64 = 1 << 18;
/// The most dimensions of a tensor.
const DIMENSIONS_MAX: u32 = 4;
/// Where tensor data is aligned unless the file says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// An open file whose header has been read. Names are those in the file.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) storage: Storage,
    metadata: HashMap<String, Meta>,
    tensors: HashMap<String, Entry>,
    /// Where tensor data begins.
    pub(super) data_start: u64,
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Meta {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
    /// A text too long to be kept.
    Skipped,
}

/// Where an array lies. It is read when it is asked for: a vocabulary is long, and often tokenizer.json stands for it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    kind: u32,
    count: u64,
    /// Bytes from the start of the file.
    offset: u64,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Entry {
    /// Outermost dimension first.
    shape: Vec<usize>,
    kind: u32,
    /// Bytes from the start of the tensor data.
    offset: u64,
}

/// A tensor's bytes in the file.
pub(super) struct Place {
    pub(super) dtype: DType,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Contents {
    /// Reads the header of a file.
    pub(super) fn parse(storage: Storage) -> Result<Self> {
        let mut header = Header::at(&storage, 0);
        let (metadata, tensors) = header.parse()?;
        let end = header.position();
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Meta::Unsigned(alignment)) if alignment.is_power_of_two() && *alignment <= 1 << 20 => *alignment,
            Some(other) => {
                return Err(storage.error(format!("the alignment is {other:?}; {DAMAGED}")));
            }
        };
        Ok(Contents { storage, metadata, tensors, data_start: end.next_multiple_of(alignment) })
    }

    /// Returns a metadata value.
    pub(super) fn meta(&self, key: &str) -> Option<&Meta> {
        self.metadata.get(key)
    }

    /// Returns the shape of a tensor, outermost dimension first.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Reads a short F32 tensor. The error is a reason, without the file's name.
    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>, String> {
        let reason = |error: Error| match error {
            Error::Weights { reason, .. } => reason,
            other => other.to_string(),
        };
        let place = self.place(name).map_err(reason)?;
        if place.dtype != DType::F32 {
            return Err(format!("tensor {name:?} is not F32; {DAMAGED}"));
        }
        let bytes = self.storage.read(place.offset, place.len).map_err(reason)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Finds the bytes of a tensor. Fails if the type is not supported or if they are not in the file.
    pub(super) fn place(&self, name: &str) -> Result<Place> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let Some(dtype) = dtype(entry.kind) else {
            return Err(self.storage.error(format!(
                "tensor {name:?} is of type {}; supported are {SUPPORTED}: fetch the model's Q4_K_M or Q8_0 file, or convert \
                 it with `llama-quantize`",
                type_name(entry.kind)
            )));
        };
        let (width, outer) = entry.shape.split_last().map_or((1, &[][..]), |(width, outer)| (*width, outer));
        let rows = outer.iter().try_fold(1_usize, |rows, size| rows.checked_mul(*size));
        let len = rows.zip(dtype.row_bytes(width)).and_then(|(rows, bytes)| rows.checked_mul(bytes));
        let Some(len) = len.and_then(|len| u64::try_from(len).ok()) else {
            let shape = &entry.shape;
            return Err(self.storage.error(format!("tensor {name:?} has the impossible shape {shape:?}; {DAMAGED}")));
        };
        let offset = self.data_start.saturating_add(entry.offset);
        if offset.saturating_add(len) > self.storage.len() {
            return Err(self.storage.error(format!("tensor {name:?} lies beyond the end of the file: fetch it again")));
        }
        Ok(Place { dtype, offset, len })
    }

    /// Reads an array of texts, or none if there is none. Fails if it is of more than `limit`, or not of texts.
    pub(super) fn texts(&self, key: &str, limit: u64) -> Result<Option<Vec<String>>> {
        let Some(array) = self.array(key, limit)? else {
            return Ok(None);
        };
        if array.kind != TEXT {
            return Err(self.storage.error(format!("{key} is no array of texts; {DAMAGED}")));
        }
        let mut header = Header::at(&self.storage, array.offset);
        (0..array.count)
            .map(|index| {
                let len = header.text_len()?;
                let text = std::str::from_utf8(header.take(len)?).map(str::to_owned);
                text.map_err(|_| self.storage.error(format!("{key}[{index}] is not UTF-8; {DAMAGED}")))
            })
            .collect::<Result<_>>()
            .map(Some)
    }

    /// Reads an array of numbers, or none if there is none. Fails if it is of more than `limit`, or not of numbers.
    pub(super) fn numbers(&self, key: &str, limit: u64) -> Result<Option<Vec<f64>>> {
        let Some(array) = self.array(key, limit)? else {
            return Ok(None);
        };
        let mut header = Header::at(&self.storage, array.offset);
        let number = |value: Meta| match value {
            Meta::Unsigned(value) => Ok(value as f64),
            Meta::Signed(value) => Ok(value as f64),
            Meta::Float(value) => Ok(value),
            _ => Err(self.storage.error(format!("{key} is no array of numbers; {DAMAGED}"))),
        };
        (0..array.count).map(|_| header.value(array.kind).and_then(number)).collect::<Result<_>>().map(Some)
    }

    fn array(&self, key: &str, limit: u64) -> Result<Option<&Array>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Meta::Array(array)) if array.count <= limit => Ok(Some(array)),
            Some(Meta::Array(array)) => {
                Err(self.storage.error(format!("{key} has {} entries, more than {limit}; {DAMAGED}", array.count)))
            }
            Some(other) => Err(self.storage.error(format!("{key} is {other:?} instead of an array; {DAMAGED}"))),
        }
    }

    fn missing(&self, name: &str) -> Error {
        self.storage.error(format!("tensor {name:?} is missing: the file is incomplete or of another architecture"))
    }
}

/// The types whose values are read.
const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K and Q6_K";

/// Returns what a ggml type number stands for, if its values are read.
fn dtype(kind: u32) -> Option<DType> {
    Some(match kind {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        10 => DType::Q2K,
        11 => DType::Q3K,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        30 => DType::BF16,
        _ => return None,
    })
}

/// Returns the name of a ggml type whose values are not read.
fn type_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return format!("number {other}"),
    };
    name.to_owned()
}

/// What to do about a damaged file.
const DAMAGED: &str = "the file is damaged, fetch it again";

/// Reads a header in chunks. Every length in it is checked against what is left of the file.
struct Header<'a> {
    storage: &'a Storage,
    /// Where the buffer begins in the file.
    offset: u64,
    buffer: Vec<u8>,
    /// The next byte of the buffer.
    at: usize,
}

/// The number of the type of texts.
const TEXT: u32 = 8;

impl<'a> Header<'a> {
    fn at(storage: &'a Storage, offset: u64) -> Self {
        Header { storage, offset, buffer: Vec::new(), at: 0 }
    }

    fn parse(&mut self) -> Result<(HashMap<String, Meta>, HashMap<String, Entry>)> {
        if self.take(4)? != b"GGUF" {
            return Err(self.storage.error("the file does not begin with GGUF: it is no GGUF file"));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(self.storage.error(format!("GGUF version {version} is not supported, versions 2 and 3 are")));
        }
        // A tensor takes at least 32 bytes of the header and a pair 13: larger counts cannot be true.
        let tensor_count = self.count(32)?;
        let pair_count = self.count(13)?;
        if tensor_count > TENSORS_MAX || pair_count > PAIRS_MAX {
            let counts = format!("{tensor_count} tensors and {pair_count} metadata pairs");
            return Err(self.storage.error(format!("the header claims {counts}; {DAMAGED}")));
        }
        let mut metadata = HashMap::new();
        for _ in 0..pair_count {
            let key = self.text()?;
            let kind = self.u32()?;
            metadata.insert(key, self.value(kind)?);
        }
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            let name = self.text()?;
            let entry = self.entry()?;
            tensors.insert(name, entry);
        }
        Ok((metadata, tensors))
    }

    fn entry(&mut self) -> Result<Entry> {
        let dimensions = self.u32()?;
        if dimensions > DIMENSIONS_MAX {
            return Err(self.storage.error(format!("a tensor has {dimensions} dimensions; {DAMAGED}")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            shape.push(
                usize::try_from(size).map_err(|_| self.storage.error(format!("a tensor has size {size}; {DAMAGED}")))?,
            );
        }
        shape.reverse();
        Ok(Entry { shape, kind: self.u32()?, offset: self.u64()? })
    }

    fn value(&mut self, kind: u32) -> Result<Meta> {
        Ok(match kind {
            0 => Meta::Unsigned(self.fixed::<1>()?[0].into()),
            1 => Meta::Signed(i8::from_le_bytes(self.fixed()?).into()),
            2 => Meta::Unsigned(u16::from_le_bytes(self.fixed()?).into()),
            3 => Meta::Signed(i16::from_le_bytes(self.fixed()?).into()),
            4 => Meta::Unsigned(self.u32()?.into()),
            5 => Meta::Signed(i32::from_le_bytes(self.fixed()?).into()),
            6 => Meta::Float(f32::from_le_bytes(self.fixed()?).into()),
            7 => Meta::Bool(self.fixed::<1>()?[0] != 0),
            TEXT => return self.text_value(),
            9 => return self.array_value(),
            10 => Meta::Unsigned(self.u64()?),
            11 => Meta::Signed(i64::from_le_bytes(self.fixed()?)),
            12 => Meta::Float(f64::from_le_bytes(self.fixed()?)),
            other => {
                return Err(self.storage.error(format!("a metadata value has type {other}; {DAMAGED}")));
            }
        })
    }

    fn text_value(&mut self) -> Result<Meta> {
        let len = self.count(1)?;
        if len > TEXT_MAX {
            self.skip(len)?;
            return Ok(Meta::Skipped);
        }
        Ok(Meta::Text(String::from_utf8_lossy(self.take(len)?).into_owned()))
    }

    /// Passes over an array.
    fn array_value(&mut self) -> Result<Meta> {
        let kind = self.u32()?;
        let smallest = if kind == TEXT { 8 } else { 1 };
        let count = self.count(smallest)?;
        let array = Meta::Array(Array { kind, count, offset: self.position() });
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            TEXT => {
                for _ in 0..count {
                    let len = self.count(1)?;
                    self.skip(len)?;
                }
                return Ok(array);
            }
            other => {
                return Err(self.storage.error(format!("a metadata array has elements of type {other}; {DAMAGED}")));
            }
        };
        self.skip(count.saturating_mul(size))?;
        Ok(array)
    }

    /// Reads a count of things that take at least `size` bytes each.
    fn count(&mut self, size: u64) -> Result<u64> {
        let count = self.u64()?;
        let left = self.storage.len() - self.position();
        match count.checked_mul(size) {
            Some(bytes) if bytes <= left => Ok(count),
            _ => Err(self
                .storage
                .error(format!("the header claims {count} entries in {left} bytes: it is damaged or truncated"))),
        }
    }

    fn text(&mut self) -> Result<String> {
        let len = self.text_len()?;
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    fn text_len(&mut self) -> Result<u64> {
        let len = self.count(1)?;
        if len > TEXT_MAX {
            return Err(self.storage.error(format!("a name has {len} bytes; {DAMAGED}")));
        }
        Ok(len)
    }

    fn u32(&mut self) -> Result<u32> {
        self.fixed().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.fixed().map(u64::from_le_bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    /// Returns the next bytes; `len` is at most [`TEXT_MAX`].
    fn take(&mut self, len: u64) -> Result<&[u8]> {
        let len = len as usize;
        if self.buffer.len() - self.at < len {
            self.offset = self.position();
            let left = self.storage.len() - self.offset;
            self.buffer = self.storage.read(self.offset, left.min(CHUNK).max(len as u64))?;
            self.at = 0;
        }
        self.at += len;
        Ok(&self.buffer[self.at - len..self.at])
    }

    /// Passes over bytes; the caller has checked that they are in the file.
    fn skip(&mut self, len: u64) -> Result<()> {
        let target = self.position().checked_add(len).filter(|target| *target <= self.storage.len());
        let target = target.ok_or_else(|| self.storage.error(format!("the header ends early; {DAMAGED}")))?;
        match usize::try_from(target - self.offset) {
            Ok(at) if at <= self.buffer.len() => self.at = at,
            _ => (self.offset, self.buffer, self.at) = (target, Vec::new(), 0),
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.offset + self.at as u64
    }
}
