//! Speed of the CPU device with random weights of the default model's sizes, printed as a table.
//!
//! `cargo run --release -p refrain-serving --example cpu_bench [threads]`
//!
//! "floor" is arithmetic alone: multiply-adds of all projections outside the embedding, twice, at the measured peak of fused
//! multiply-adds on the same number of threads. The best of several runs is shown, since other processes only slow one down.
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::error::Error;
use std::fmt::Display;
use std::num::NonZeroUsize;

use pulp::Arch;
use refrain_serving::Result;
use refrain_serving::device::cpu::{Activations, CpuDevice, CpuOptions, bench};
use refrain_serving::model::{DType, HostTensor, ModelConfig, TensorSource};

use self::measure::{best, memory_rate, peak, plan, step};

mod measure;

fn main() -> Result<(), Box<dyn Error>> {
    let available = std::thread::available_parallelism()?;
    let threads = std::env::args().nth(1).map_or(Ok(available), |text| text.parse::<NonZeroUsize>())?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build()?;
    let roof = peak(&pool);
    println!(
        "{threads} threads; fused multiply-adds in registers: {roof:.0} GFLOP/s; memory: {:.1} GB/s\n",
        memory_rate(&pool)
    );

    for (name, arch) in instruction_sets() {
        println!("{name:14}         n x k |     m = 1 |     m = 8 |    m = 32 |   m = 512   GFLOP/s (of the peak)");
        for (name, n, k) in [("qkv", 768, 512), ("gate_up", 2048, 512), ("down", 512, 1024), ("head", 16384, 512)] {
            let of_floats = [DType::F32, DType::F16, DType::BF16, DType::Q8_0].map(|dtype| (dtype, Activations::F32));
            for (dtype, activations) in of_floats.into_iter().chain([(DType::Q8_0, Activations::Int8)]) {
                let cells = [1, 8, 32, 512].map(|m| {
                    let mut product = bench::Product::new(arch, activations, [m, n, k], dtype);
                    let rate = 2.0 * (m * n * k) as f64 / pool.install(|| best(|| product.run())).as_secs_f64() / 1e9;
                    format!("{rate:4.0} {:3.0} %", 100.0 * rate / roof)
                });
                let dtype = if activations == Activations::Int8 { "bytes".to_owned() } else { format!("{dtype:?}") };
                println!("{name:8} {dtype:5} {n:6} x {k:4} | {}", cells.join(" | "));
            }
        }
    }

    let config = default_model();
    let mut device = CpuDevice::new(
        &config,
        &RandomTensors,
        CpuOptions { threads: Some(threads), kv_bytes: 512 << 20, activations: Activations::default() },
    )?;
    let floor = |tokens: usize| tokens as f64 * 2.0 * projections(&config) / (roof * 1e9);
    println!("\npass                                        |       ms | tokens/s | of the floor");
    for (rows, tokens, context) in [
        (1, 512, 0),
        (4, 512, 0),
        (16, 128, 0),
        (1, 2048, 0),
        (1, 512, 1536),
        (1, 1, 512),
        (8, 1, 512),
        (64, 1, 512),
        (256, 1, 128),
    ] {
        let plan = plan(rows, tokens, context, config.vocab_size);
        let time = best(|| step(&mut device, &plan)).as_secs_f64();
        let name = format!("{rows} rows x {tokens} tokens after {context}");
        line(&name, time, rows * tokens, floor(rows * tokens));
    }
    Ok(())
}

/// The best instructions here, and AVX2 beside them. "Bytes" rounds activations where the instructions multiply bytes.
fn instruction_sets() -> Vec<(&'static str, Arch)> {
    let mut sets = vec![("best", Arch::new())];
    #[cfg(target_arch = "x86_64")]
    sets.extend(pulp::x86::V3::try_new().map(|v3| ("AVX2", Arch::V3(v3))));
    sets
}

fn line(name: &dyn Display, time: f64, tokens: usize, floor: f64) {
    println!("{name:43} | {:8.2} | {:8.0} | {:3.0} %", time * 1e3, tokens as f64 / time, 100.0 * floor / time);
}

fn default_model() -> ModelConfig {
    ModelConfig {
        vocab_size: 16_384,
        hidden_size: 512,
        intermediate_size: 1024,
        layers: 10,
        heads: 8,
        kv_heads: 2,
        head_dim: 64,
        rotary_dim: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        layer_attention: vec![],
        qk_norm: false,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        tie_word_embeddings: true,
        max_context: 2048,
        end_tokens: vec![2],
    }
}

/// Weights of all projections in the layers.
fn projections(config: &ModelConfig) -> f64 {
    let attention = config.hidden_size * config.head_dim * 2 * (config.heads + config.kv_heads);
    (config.layers * (attention + 3 * config.hidden_size * config.intermediate_size)) as f64
}

/// Any tensor, filled with small numbers.
#[derive(Debug)]
struct RandomTensors;

impl TensorSource for RandomTensors {
    fn contains(&self, _: &str) -> bool {
        true
    }

    fn read(&self, _: &str, shape: &[usize]) -> Result<HostTensor> {
        let mut state = shape.len() as u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f64::from(state >> 8) / f64::from(1 << 24) - 0.5) as f32 * 0.1
        };
        let bytes = (0..shape.iter().product()).flat_map(|_: usize| next().to_le_bytes()).collect();
        Ok(HostTensor { shape: shape.to_vec(), dtype: DType::F32, bytes })
    }
}
