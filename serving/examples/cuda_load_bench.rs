//! How fast weights come from a file to a GPU, for a real shape.
//!
//! `cargo run --release -p refrain-serving --example cuda_load_bench -- 8b|1b [DIR] [--dtype fp8]`
//!
//! Writes a safetensors file in bfloat16 to DIR (`/dev/shm`, which is memory), opens a device on it three times, and removes it. The
//! first time, which compiles kernels, does not count; timing products is left out.
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use refrain_serving::device::cuda::{CudaDevice, CudaOptions, Precision, find};
use refrain_serving::load::{RandomShape, SafetensorsFiles};
use refrain_serving::model::ModelConfig;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: cuda_load_bench 8b|1b [DIR] [--dtype bf16|fp8|f32]";
    let precision = match args.iter().position(|arg| arg == "--dtype") {
        Some(at) if at + 1 < args.len() => args.drain(at..at + 2).next_back().unwrap_or_default().parse()?,
        _ => Precision::Bf16,
    };
    let shape = match args.first().map(String::as_str) {
        Some("8b") => RandomShape::Llama3B8,
        Some("1b") => RandomShape::Llama32B1,
        _ => return Err(usage.into()),
    };
    println!("# {}, {precision}", find(0)?);
    let config = shape.config();
    let parent = args.get(1).map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let folder = parent.join(format!("refrain-load-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let measured = measure(&config, &folder, precision);
    std::fs::remove_dir_all(&folder)?;
    measured
}

fn measure(config: &ModelConfig, folder: &Path, precision: Precision) -> Outcome<()> {
    let bytes = write(config, &folder.join("model.safetensors"))? as f64;
    let cache = Some(std::env::temp_dir().join("refrain-kernels"));
    let options =
        CudaOptions { kernel_cache: cache, precision, tune: false, kv_bytes: Some(64 << 20), ..CudaOptions::new(64) };
    // Compiles the kernels.
    drop(CudaDevice::new(config, &SafetensorsFiles::open(folder)?, &options)?);
    println!("| file | seconds | GB/s |\n|---|---:|---:|");
    for _ in 0..2 {
        let started = Instant::now();
        let device = CudaDevice::new(config, &SafetensorsFiles::open(folder)?, &options)?;
        let seconds = started.elapsed().as_secs_f64();
        println!("| {:.1} GB | {seconds:.2} | {:.2} |", bytes / 1e9, bytes / seconds / 1e9);
        drop(device);
    }
    Ok(())
}

/// Writes all tensors of a model, small numbers of one pattern, and returns the bytes of the file.
fn write(config: &ModelConfig, path: &Path) -> Outcome<u64> {
    let tensors = config.tensors();
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}));
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    // 2^-7 to 2^-6, with both signs.
    let pattern: Vec<u8> = (0..1u32 << 19).flat_map(|i| [(i * 37) as u8 & 0x7f, 0x3c | (i as u8 & 1) << 7]).collect();
    let mut left = end;
    while left > 0 {
        let piece = left.min(pattern.len());
        file.write_all(&pattern[..piece])?;
        left -= piece;
    }
    file.flush()?;
    Ok((8 + header.len() + end) as u64)
}
