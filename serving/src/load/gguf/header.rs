//! The contents of a GGUF file: its metadata and where its tensors lie.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::load::storage::Storage;
use crate::model::DType;

/// Bytes read at a time while the header is parsed.
const CHUNK: u64 = 1 << 20;
/// The longest text in a header that is kept; longer ones are passed over.
const TEXT_MAX: u64 = 1 << 16;
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

/// A metadata value. Arrays are passed over: nothing that is needed stands in one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Meta {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Skipped,
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
        let mut header = Header { storage: &storage, offset: 0, buffer: Vec::new(), at: 0 };
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

    /// Reads a short F32 tensor.
    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let place = self.place(name)?;
        if place.dtype != DType::F32 {
            return Err(self.storage.error(format!("tensor {name:?} is not F32; {DAMAGED}")));
        }
        let bytes = self.storage.read(place.offset, place.len)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Finds the bytes of a tensor. Fails if the type is not supported or if they are not in the file.
    pub(super) fn place(&self, name: &str) -> Result<Place> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let (dtype, block, block_bytes) = match entry.kind {
            0 => (DType::F32, 1, 4),
            1 => (DType::F16, 1, 2),
            8 => (DType::Q8_0, 32, 34),
            30 => (DType::BF16, 1, 2),
            other => {
                return Err(self.storage.error(format!(
                    "tensor {name:?} has ggml type {other}; supported are F32, F16, BF16 and Q8_0: convert the model with \
                     `llama-quantize` to Q8_0"
                )));
            }
        };
        let row = entry.shape.last().copied().unwrap_or(1);
        let values = entry.shape.iter().try_fold(1_u64, |product, size| product.checked_mul(*size as u64));
        let Some(len) = values.filter(|_| row % block == 0).and_then(|n| (n / block as u64).checked_mul(block_bytes)) else {
            return Err(self
                .storage
                .error(format!("tensor {name:?} has the impossible shape {:?}; {DAMAGED}", entry.shape)));
        };
        let offset = self.data_start.saturating_add(entry.offset);
        if offset.saturating_add(len) > self.storage.len() {
            return Err(self.storage.error(format!("tensor {name:?} lies beyond the end of the file: fetch it again")));
        }
        Ok(Place { dtype, offset, len })
    }

    fn missing(&self, name: &str) -> Error {
        self.storage.error(format!("tensor {name:?} is missing: the file is incomplete or of another architecture"))
    }
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

impl Header<'_> {
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
            0 => Meta::Unsigned(self.array::<1>()?[0].into()),
            1 => Meta::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Meta::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Meta::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Meta::Unsigned(self.u32()?.into()),
            5 => Meta::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Meta::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Meta::Bool(self.array::<1>()?[0] != 0),
            8 => return self.text_value(),
            9 => return self.skip_array(),
            10 => Meta::Unsigned(self.u64()?),
            11 => Meta::Signed(i64::from_le_bytes(self.array()?)),
            12 => Meta::Float(f64::from_le_bytes(self.array()?)),
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

    fn skip_array(&mut self) -> Result<Meta> {
        let kind = self.u32()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..self.count(8)? {
                    let len = self.count(1)?;
                    self.skip(len)?;
                }
                return Ok(Meta::Skipped);
            }
            other => {
                return Err(self.storage.error(format!("a metadata array has elements of type {other}; {DAMAGED}")));
            }
        };
        let count = self.count(size)?;
        self.skip(count * size)?;
        Ok(Meta::Skipped)
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
        let len = self.count(1)?;
        if len > TEXT_MAX {
            return Err(self.storage.error(format!("a name has {len} bytes; {DAMAGED}")));
        }
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
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
