//! Where models run: what is asked for, and what there is.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::thread;

use super::cuda::{self, GpuFacts};
use crate::error::{Error, Result};

/// The device that models are to run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The first GPU, or the CPU if there is none that can be used.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(u32),
    /// All GPUs of the machine, each with the whole model: they share the rows.
    AllCuda,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceChoice::AllCuda => f.write_str("cuda:all"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    /// Reads `auto`, `cpu`, `cuda`, `cuda:N` or `cuda:all`, in any case.
    fn from_str(text: &str) -> Result<Self> {
        let word = text.trim().to_lowercase();
        let ordinal = |number: &str| number.parse().ok().map(DeviceChoice::Cuda);
        let choice = match word.as_str() {
            "auto" => Some(DeviceChoice::Auto),
            "cpu" => Some(DeviceChoice::Cpu),
            "cuda" => Some(DeviceChoice::Cuda(0)),
            "cuda:all" => Some(DeviceChoice::AllCuda),
            other => other.strip_prefix("cuda:").and_then(ordinal),
        };
        choice.ok_or_else(|| Error::Invalid(format!("a device is auto, cpu, cuda, cuda:1 or cuda:all, not {text:?}")))
    }
}

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundDevice {
    /// One GPU or several that share the rows; at least one.
    Cuda(Vec<GpuFacts>),
    /// The CPU.
    Cpu {
        /// Threads that compute.
        threads: usize,
        /// Why it is no GPU, if one would have been taken.
        no_gpu: Option<String>,
    },
}

impl FoundDevice {
    /// Looks for the device that is asked for. `threads` are those of the CPU; one for each core if `None`.
    ///
    /// Fails if a GPU is named and cannot be used; the error says why.
    pub fn find(choice: DeviceChoice, threads: Option<NonZeroUsize>) -> Result<Self> {
        let no_gpu = match choice {
            DeviceChoice::Cpu => None,
            DeviceChoice::Auto => match cuda::find(0) {
                Ok(gpu) => return Ok(FoundDevice::Cuda(vec![gpu])),
                Err(error) => Some(reason(error)),
            },
            DeviceChoice::Cuda(_) | DeviceChoice::AllCuda => {
                let found = match choice {
                    DeviceChoice::Cuda(ordinal) => cuda::find(ordinal).map(|gpu| vec![gpu]),
                    _ => cuda::find_all(),
                };
                let unusable = |error| Error::Invalid(format!("device {choice} cannot be used: {}", reason(error)));
                return found.map(FoundDevice::Cuda).map_err(unusable);
            }
        };
        Ok(FoundDevice::cpu(threads, no_gpu))
    }

    /// The CPU, and why it is no GPU.
    pub fn cpu(threads: Option<NonZeroUsize>, no_gpu: Option<String>) -> Self {
        let threads = threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        FoundDevice::Cpu { threads, no_gpu }
    }
}

impl fmt::Display for FoundDevice {
    /// In one line, such as `cuda:0, NVIDIA H100 80GB HBM3, 79 GiB`, with a number in front where there are several.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FoundDevice::Cuda(gpus) => match gpus.as_slice() {
                [gpu] => gpu.fmt(f),
                several => {
                    write!(f, "{} GPUs", several.len())?;
                    several.iter().try_for_each(|gpu| write!(f, "; {gpu}"))
                }
            },
            FoundDevice::Cpu { threads, no_gpu } => {
                write!(f, "cpu, {threads} thread{}", if *threads == 1 { "" } else { "s" })?;
                no_gpu.iter().try_for_each(|reason| write!(f, " ({reason})"))
            }
        }
    }
}

/// Returns why a device cannot be used, without saying that one failed: nothing was asked of it yet.
fn reason(error: Error) -> String {
    match error {
        Error::Device(reason) => reason,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7", "cuda:all"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("CUDA".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for wrong in ["tpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda 0"] {
            let error = wrong.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains("auto, cpu, cuda, cuda:1 or cuda:all"), "{error}");
        }
    }

    #[test]
    fn a_gpu_that_is_named_must_be_there_and_auto_says_why_there_is_none() {
        let error = FoundDevice::find(DeviceChoice::Cuda(4096), None).unwrap_err().to_string();
        assert!(error.starts_with("device cuda:4096 cannot be used: ") && error.contains("no GPU"), "{error}");
        match FoundDevice::find(DeviceChoice::Auto, None).unwrap() {
            FoundDevice::Cuda(gpus) => assert_eq!(gpus[0].ordinal, 0),
            FoundDevice::Cpu { no_gpu, .. } => assert!(no_gpu.unwrap().contains("no GPU")),
        }
        let cpu = FoundDevice::find(DeviceChoice::Cpu, NonZeroUsize::new(2)).unwrap();
        assert_eq!(cpu.to_string(), "cpu, 2 threads");
        let cpu = FoundDevice::cpu(NonZeroUsize::new(1), Some("no GPU can be used: none is there".to_owned()));
        assert_eq!(cpu.to_string(), "cpu, 1 thread (no GPU can be used: none is there)");
    }
}
