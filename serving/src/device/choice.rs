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
    /// The first GPU, or all of them for a model that does not fit one, or the CPU if there is none that can be used.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(u32),
    /// All GPUs of the machine, each with the whole model: they share the rows.
    AllCuda,
    /// All GPUs of the machine, over which each model is split: tensor parallel.
    SplitCuda,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceChoice::AllCuda => f.write_str("cuda:all"),
            DeviceChoice::SplitCuda => f.write_str("cuda:tp"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    /// Reads `auto`, `cpu`, `cuda`, `cuda:N`, `cuda:all` or `cuda:tp`, in any case.
    fn from_str(text: &str) -> Result<Self> {
        let word = text.trim().to_lowercase();
        let ordinal = |number: &str| number.parse().ok().map(DeviceChoice::Cuda);
        let choice = match word.as_str() {
            "auto" => Some(DeviceChoice::Auto),
            "cpu" => Some(DeviceChoice::Cpu),
            "cuda" => Some(DeviceChoice::Cuda(0)),
            "cuda:all" => Some(DeviceChoice::AllCuda),
            "cuda:tp" => Some(DeviceChoice::SplitCuda),
            other => other.strip_prefix("cuda:").and_then(ordinal),
        };
        let devices = "auto, cpu, cuda, cuda:1, cuda:all or cuda:tp";
        choice.ok_or_else(|| Error::Invalid(format!("a device is {devices}, not {text:?}")))
    }
}

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundDevice {
    /// One GPU or several that share the rows; at least one.
    Cuda(Vec<GpuFacts>),
    /// Several GPUs over which a model is split; at least two.
    SplitCuda(Vec<GpuFacts>),
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
            DeviceChoice::Cuda(_) | DeviceChoice::AllCuda | DeviceChoice::SplitCuda => {
                let found = match choice {
                    DeviceChoice::Cuda(ordinal) => cuda::find(ordinal).map(|gpu| FoundDevice::Cuda(vec![gpu])),
                    DeviceChoice::AllCuda => cuda::find_all().map(FoundDevice::Cuda),
                    _ => cuda::find_split().map(FoundDevice::split),
                };
                let unusable = |error| Error::Invalid(format!("device {choice} cannot be used: {}", reason(error)));
                return found.map_err(unusable);
            }
        };
        Ok(FoundDevice::cpu(threads, no_gpu))
    }

    /// As [`find`](Self::find), for a model whose weights take so many bytes on GPUs. With `auto`, one that does not fit the first
    /// GPU is split over all of them, if that helps.
    pub fn find_for(choice: DeviceChoice, threads: Option<NonZeroUsize>, weight_bytes: u64) -> Result<Self> {
        let found = FoundDevice::find(choice, threads)?;
        match &found {
            FoundDevice::Cuda(gpus) if choice == DeviceChoice::Auto && !fits(weight_bytes, gpus) => {
                let all = cuda::find_split().ok().filter(|all| fits(weight_bytes, all));
                Ok(all.map_or(found, FoundDevice::split))
            }
            _ => Ok(found),
        }
    }

    /// All of several GPUs for each model, or the one that there is.
    fn split(gpus: Vec<GpuFacts>) -> Self {
        if gpus.len() > 1 { FoundDevice::SplitCuda(gpus) } else { FoundDevice::Cuda(gpus) }
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
            FoundDevice::SplitCuda(gpus) => {
                write!(f, "split over {} GPUs", gpus.len())?;
                gpus.iter().try_for_each(|gpu| write!(f, "; {gpu}"))
            }
            FoundDevice::Cpu { threads, no_gpu } => {
                write!(f, "cpu, {threads} thread{}", if *threads == 1 { "" } else { "s" })?;
                no_gpu.iter().try_for_each(|reason| write!(f, " ({reason})"))
            }
        }
    }
}

/// Returns whether weights leave room for keys, values and activations on GPUs that share them.
fn fits(weight_bytes: u64, gpus: &[GpuFacts]) -> bool {
    let memory: u64 = gpus.iter().map(|gpu| gpu.memory as u64).sum();
    weight_bytes <= memory / 100 * 85
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
    use crate::load::RandomShape;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7", "cuda:all", "cuda:tp"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("CUDA".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for wrong in ["tpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda 0"] {
            let error = wrong.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains("auto, cpu, cuda, cuda:1, cuda:all or cuda:tp"), "{error}");
        }
    }

    #[test]
    fn a_model_is_split_where_one_gpu_is_too_small_and_several_are_not() {
        let gpu = |ordinal| GpuFacts {
            ordinal,
            name: "chip".to_owned(),
            memory: 80 << 30,
            capability: (9, 0),
            multiprocessors: 132,
        };
        let gpus = |count: u32| (0..count).map(gpu).collect::<Vec<_>>();
        let bytes = |shape: RandomShape| 2 * shape.config().parameters();
        assert!(fits(bytes(RandomShape::Llama3B8), &gpus(1)) && fits(bytes(RandomShape::Qwen3B32), &gpus(1)));
        let large = bytes(RandomShape::Llama3B70);
        assert!(!fits(large, &gpus(1)) && fits(large, &gpus(2)));
        assert_eq!(FoundDevice::split(gpus(1)), FoundDevice::Cuda(vec![gpu(0)]));
        let split = FoundDevice::split(gpus(2)).to_string();
        assert_eq!(split, "split over 2 GPUs; cuda:0, chip, 80 GiB; cuda:1, chip, 80 GiB");
    }

    #[test]
    fn a_gpu_that_is_named_must_be_there_and_auto_says_why_there_is_none() {
        let error = FoundDevice::find(DeviceChoice::Cuda(4096), None).unwrap_err().to_string();
        assert!(error.starts_with("device cuda:4096 cannot be used: ") && error.contains("no GPU"), "{error}");
        match FoundDevice::find(DeviceChoice::Auto, None).unwrap() {
            FoundDevice::Cuda(gpus) | FoundDevice::SplitCuda(gpus) => assert_eq!(gpus[0].ordinal, 0),
            FoundDevice::Cpu { no_gpu, .. } => assert!(no_gpu.unwrap().contains("no GPU")),
        }
        let cpu = FoundDevice::find(DeviceChoice::Cpu, NonZeroUsize::new(2)).unwrap();
        assert_eq!(cpu.to_string(), "cpu, 2 threads");
        let cpu = FoundDevice::cpu(NonZeroUsize::new(1), Some("no GPU can be used: none is there".to_owned()));
        assert_eq!(cpu.to_string(), "cpu, 1 thread (no GPU can be used: none is there)");
    }
}
