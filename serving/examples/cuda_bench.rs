//! Speed of the CUDA device with random weights of a real shape, beside the limit of arithmetic.
//!
//! `cargo run --release -p refrain-serving --example cuda_bench -- 8b passes [--dtype fp8] [--tp 2] [--batch-invariant 512]`
//! `cargo run --release -p refrain-serving --example cuda_bench -- 8b kernels [--dtype fp8]`
//! `cargo run --release -p refrain-serving --example cuda_bench -- 1b replay DIR [--orders original,refrain] [--out 2] [--repeat 3]`
//!
//! `kernels` times every kernel alone, beside what the memory or the matrix units allow. `passes` times single passes. `--tp` splits
//! the model over so many GPUs; the limit stays that of one. `--batch-invariant` makes products with the algorithms that are best for
//! so many rows, whatever their number. `replay` runs the prompts of `DIR/ORDER.tokens` and `.offsets` (little-endian u32 and u64, all
//! prompts end to end) through the whole engine and prints a line of JSON for each run. "limit" is `T_ideal / T`:
//! `T_ideal = [computed tokens * (weights + attention) + samples * LM head] / peak FLOP/s + KV bytes read in decode / peak bytes/s`.
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use futures::executor::block_on;
use refrain_serving::device::Device;
use refrain_serving::device::cuda::bench::{AttentionBench, HeadShape};
use refrain_serving::device::cuda::kernel_bench::{KernelBench, KernelFigure};
use refrain_serving::device::cuda::{CudaDevice, CudaOptions, PassTimes, Precision, TensorParallel, find};
use refrain_serving::load::RandomShape;
use refrain_serving::local::{LocalBackend, LocalConfig};
use refrain_serving::model::{HostTensor, ModelConfig, Normal, TensorSource, TokenCost};
use refrain_serving::scheduler::SchedulerConfig;
use refrain_serving::step::PAGE_TOKENS;
use refrain_serving::{Backend, Batch, OutputShape, Request, RequestId, Sampling, TokenId, Tokenizer};

use self::measure::{best, plan, step};

mod measure;

/// What a Hopper GPU multiplies in a second: in bfloat16 measured on large random matrices, in FP8 twice that, as its units do.
fn peak_flops(precision: Precision) -> f64 {
    if precision == Precision::Fp8 { 1580e12 } else { 790e12 }
}

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).map(String::as_str);
    let usage = "usage: cuda_bench 1b|8b|32b|70b kernels | passes | replay DIR [--orders A,B] [--out N] [--repeat N] [--step-tokens N] [--seqs N]; \
         [--dtype fp8] [--tp GPUS] [--batch-invariant ROWS]";
    let (Some(shape), Some(what)) = (args.first(), args.get(1)) else { return Err(usage.into()) };
    let config = shape_of(shape).ok_or(usage)?;
    let precision: Precision = option("--dtype").unwrap_or("bf16").parse()?;
    println!("# {}, {precision}", find(0)?);
    let way = Way {
        precision,
        gpus: option("--tp").map(str::parse).transpose()?,
        invariant_rows: option("--batch-invariant").map(str::parse).transpose()?,
    };
    match what.as_str() {
        "kernels" => kernels(&config, precision),
        "passes" => passes(&config, way),
        "replay" => {
            let folder = PathBuf::from(args.get(2).ok_or(usage)?);
            let number = |name: &str, default: u32| option(name).map_or(Ok(default), str::parse);
            let run = Replay {
                step_tokens: number("--step-tokens", if shape == "8b" { 4096 } else { 16384 })?,
                rows: number("--seqs", 4096)?,
                output: number("--out", 2)?,
                repeat: number("--repeat", 1)?,
                way,
                timed: args.iter().any(|arg| arg == "--times"),
            };
            let mut orders = option("--orders").unwrap_or("original").split(',');
            orders.try_for_each(|order| run.order(shape, &config, &folder, order))
        }
        _ => Err(usage.into()),
    }
}

/// The shapes of Llama 3 8B and 70B, Llama 3.2 1B and Qwen3 32B, with a vocabulary of 131,072.
fn shape_of(name: &str) -> Option<ModelConfig> {
    let shape = match name {
        "8b" => RandomShape::Llama3B8,
        "1b" => RandomShape::Llama32B1,
        "32b" => RandomShape::Qwen3B32,
        "70b" => RandomShape::Llama3B70,
        _ => return None,
    };
    Some(ModelConfig { vocab_size: 131_072, max_context: 8192, ..shape.config() })
}

/// How a model is run.
#[derive(Clone, Copy)]
struct Way {
    /// GPUs that it is split over.
    gpus: Option<u32>,
    invariant_rows: Option<usize>,
    precision: Precision,
}

/// A model on one GPU or several.
enum Opened {
    Whole(Box<CudaDevice>),
    Split(TensorParallel),
}

impl Opened {
    fn device(&mut self) -> &mut dyn Device {
        match self {
            Opened::Whole(device) => device.as_mut(),
            Opened::Split(device) => device,
        }
    }

    fn into_device(self) -> Box<dyn Device> {
        match self {
            Opened::Whole(device) => device,
            Opened::Split(device) => Box::new(device),
        }
    }

    /// Returns where the time went since the device's `time_passes`, and measures no longer.
    fn take_times(&mut self) -> PassTimes {
        let times = self.device().pass_times();
        match self {
            Opened::Whole(device) => device.stop_timing(),
            Opened::Split(device) => device.stop_timing(),
        }
        times.unwrap_or_default()
    }
}

fn open(config: &ModelConfig, step_tokens: u32, way: Way) -> Outcome<Opened> {
    let started = Instant::now();
    let cache = Some(std::env::temp_dir().join("refrain-kernels"));
    let Way { gpus, invariant_rows, precision } = way;
    let options = CudaOptions { kernel_cache: cache, invariant_rows, precision, ..CudaOptions::new(step_tokens) };
    let (mut opened, weights) = match gpus {
        None => {
            let device = CudaDevice::new(config, &Drawn, &options)?;
            let bytes = vec![device.weight_bytes()];
            (Opened::Whole(Box::new(device)), bytes)
        }
        Some(gpus) => {
            let device = TensorParallel::new(config, &Drawn, &(0..gpus).collect::<Vec<_>>(), &options)?;
            let bytes = device.weight_bytes();
            (Opened::Split(device), bytes)
        }
    };
    println!(
        "# {}: opened in {:.1} s, {:?} GB of weights, {} pages",
        opened.device().describe(),
        started.elapsed().as_secs_f64(),
        weights.iter().map(|bytes| (*bytes as f64 / 1e8).round() / 10.0).collect::<Vec<_>>(),
        opened.device().pool().pages,
    );
    Ok(opened)
}

/// Tokens of a pass whose kernels are timed, and rows of its products: a step of prompts, and steps that write answers.
const KERNEL_TOKENS: usize = 8192;
const PRODUCT_ROWS: [usize; 4] = [KERNEL_TOKENS, 256, 16, 1];

fn kernels(config: &ModelConfig, precision: Precision) -> Outcome<()> {
    let (flops, bytes) = (peak_flops(precision), peak_bytes()?);
    println!("# bounds: {:.0} TFLOP/s, {:.1} TB/s", flops / 1e12, bytes / 1e12);
    println!("| kernel | rows | µs | GB/s | TFLOP/s | of its bound |\n|---|---:|---:|---:|---:|---:|");
    let line = |figure: KernelFigure, flops: f64| {
        let bound = (figure.flops / flops).max(figure.bytes / bytes);
        let tera = if figure.flops > 0.0 { format!("{:.0}", figure.flops / figure.seconds / 1e12) } else { String::new() };
        println!(
            "| {} | {} | {:.1} | {:.0} | {tera} | {:.0} % |",
            figure.name,
            figure.rows,
            figure.seconds * 1e6,
            figure.bytes / figure.seconds / 1e9,
            100.0 * bound / figure.seconds,
        );
    };
    let mut bench = KernelBench::open(0, precision, config)?;
    let mut figures = bench.elementwise(KERNEL_TOKENS)?;
    figures.extend(bench.head()?);
    for rows in PRODUCT_ROWS {
        figures.extend(bench.products(rows)?);
    }
    figures.into_iter().for_each(|figure| line(figure, flops));
    drop(bench);
    let mut attention = AttentionBench::open(0)?;
    let heads = HeadShape { heads: config.heads, kv_heads: config.kv_heads, head_dim: config.head_dim };
    for (name, row, rows) in [
        ("attention, prompts of 400", (0, 400), 16),
        ("attention, 60 after 340", (340, 60), 64),
        ("attention, 1 after 419", (419, 1), 256),
        ("attention, 1 after 4095", (4095, 1), 8),
    ] {
        let measured = attention.measure(heads, &vec![row; rows], 0)?;
        let (seconds, flops, bytes) = (measured.seconds, measured.flops, measured.bytes);
        // Attention is in bfloat16 in any precision.
        line(KernelFigure { name: name.to_owned(), rows, seconds, flops, bytes }, peak_flops(Precision::Bf16));
    }
    Ok(())
}

fn passes(config: &ModelConfig, way: Way) -> Outcome<()> {
    let peak = peak_flops(way.precision);
    // Activations of 16384 tokens would leave no room for pages beside the weights of the largest.
    let step_tokens = if config.layers > 60 { 8192 } else { 16384 };
    let mut device = open(config, step_tokens, way)?;
    println!(
        "pass                                 |       ms | tokens/s | TFLOP/s | of peak | gemm | attention | exchange | head | other (ms)"
    );
    for (rows, tokens, context) in [
        (2, 512, 0),
        (8, 512, 0),
        (16, 256, 0),
        (16, 512, 0),
        (32, 512, 0),
        (11, 379, 0),
        (64, 64, 320),
        (256, 16, 400),
        (1, 4096, 0),
        (1, 1, 420),
        (8, 1, 420),
        (64, 1, 420),
        (256, 1, 420),
        (1024, 1, 420),
        (8, 1, 4096),
    ] {
        let pages = rows * usize::div_ceil(context + tokens, PAGE_TOKENS);
        if rows * tokens > step_tokens as usize || pages > device.device().pool().pages as usize {
            println!("{:36} | there is no room", format!("{rows} rows x {tokens} after {context}"));
            continue;
        }
        let plan = plan(rows, tokens, context, config.vocab_size);
        let seconds = best(|| step(device.device(), &plan)).as_secs_f64();
        device.device().time_passes();
        step(device.device(), &plan);
        step(device.device(), &plan);
        let times = device.take_times();
        let n = (rows * tokens) as f64;
        // The last layer multiplies only what is sampled from, after attention.
        let TokenCost { layer_flops, attention_flops, head_flops, .. } = config.token_cost();
        let flops =
            n * layer_flops + n * attention_flops * (context as f64 + tokens as f64 / 2.0) + rows as f64 * head_flops;
        let rate = flops / seconds / 1e12;
        let part = |milliseconds: f64| milliseconds / times.passes.max(1) as f64;
        println!(
            "{:36} | {:8.2} | {:8.0} | {rate:7.1} | {:4.1} % | {:.2} | {:.2} | {:.2} | {:.2} | {:.2}",
            format!("{rows} rows x {tokens} after {context}"),
            seconds * 1e3,
            n / seconds,
            100.0 * rate * 1e12 / peak,
            part(times.gemm),
            part(times.attention),
            part(times.exchange),
            part(times.head),
            part(times.other),
        );
    }
    Ok(())
}

/// How prompts are run.
struct Replay {
    step_tokens: u32,
    rows: u32,
    output: u32,
    repeat: u32,
    way: Way,
    timed: bool,
}

impl Replay {
    fn order(&self, shape: &str, config: &ModelConfig, folder: &Path, order: &str) -> Outcome<()> {
        let prompts = read_prompts(folder, order)?;
        let local = LocalConfig {
            scheduler: SchedulerConfig {
                step_tokens: self.step_tokens,
                max_rows: self.rows,
                max_context: config.max_context,
            },
            ..LocalConfig::new(config.max_context, "random")
        };
        let mut device = open(config, self.step_tokens, self.way)?;
        if self.timed {
            device.device().time_passes();
        }
        let tokenizer = Arc::new(Words(config.vocab_size));
        let backend = LocalBackend::start(move || Ok(device.into_device()), tokenizer, local)?;
        // Plans of products are made at the first use of each size.
        submit(&backend, &prompts[..prompts.len().min(500)], self.output);
        for _ in 0..self.repeat {
            let before = backend.stats();
            let started = Instant::now();
            let written = submit(&backend, &prompts, self.output);
            let seconds = started.elapsed().as_secs_f64();
            let after = backend.stats();
            let (computed, steps) = (after.computed_tokens - before.computed_tokens, after.steps - before.steps);
            let prompt: usize = prompts.iter().map(|prompt| prompt.len()).sum();
            let mean = prompt as f64 / prompts.len() as f64;
            let TokenCost { layer_flops, attention_flops, head_flops, kv_bytes } = config.token_cost();
            let decoded = (written - prompts.len()) as f64;
            let flops = computed as f64 * (layer_flops + attention_flops * mean / 2.0) + written as f64 * head_flops;
            let ideal = flops / peak_flops(self.way.precision) + decoded * mean * kv_bytes / peak_bytes()?;
            let hit = 1.0 - (computed as f64 - decoded) / prompt as f64;
            println!(
                "{{\"engine\": \"refrain\", \"shape\": \"{shape}\", \"order\": \"{order}\", \"rows\": {}, \"seconds\": {seconds:.3}, \
                 \"prompt_tokens\": {prompt}, \"computed_tokens\": {computed}, \"output_tokens\": {written}, \"hit\": {hit:.4}, \
                 \"rows_per_s\": {:.1}, \"steps\": {steps}, \"tokens_per_step\": {:.0}, \"ideal_s\": {ideal:.3}, \"limit\": {:.3}}}",
                prompts.len(),
                prompts.len() as f64 / seconds,
                computed as f64 / steps as f64,
                ideal / seconds,
            );
        }
        Ok(())
    }
}

/// Bytes that the GPU reads from its memory in a second, measured by copies.
fn peak_bytes() -> Outcome<f64> {
    Ok(if find(0)?.name.contains("H200") { 4.3e12 } else { 3.0e12 })
}

/// Runs prompts as one batch and returns how many tokens were written.
fn submit(backend: &LocalBackend, prompts: &[Arc<[TokenId]>], output: u32) -> usize {
    let shape = Arc::new(OutputShape::Text);
    let request = |(id, prompt): (usize, &Arc<[TokenId]>)| {
        Request::new(RequestId(id as u32), vec![Arc::clone(prompt)], Arc::clone(&shape), Sampling::GREEDY, output)
    };
    let requests = prompts.iter().enumerate().map(request).collect();
    let mut stream = backend.submit(Batch { requests, ..Batch::default() });
    let mut written = 0;
    block_on(async {
        while let Some(completion) = stream.next().await {
            let completion = completion.expect("the engine runs");
            written += completion.usage.output as usize;
        }
    });
    written
}

fn read_prompts(folder: &Path, order: &str) -> Outcome<Vec<Arc<[TokenId]>>> {
    let read = |end: &str| {
        let file = folder.join(format!("{order}.{end}"));
        std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))
    };
    let tokens: Vec<TokenId> = read("tokens")?.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let offsets: Vec<usize> =
        read("offsets")?.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes) as usize).collect();
    Ok(offsets.windows(2).map(|pair| tokens[pair[0]..pair[1]].into()).collect())
}

/// Weights that the GPU draws.
#[derive(Debug)]
struct Drawn;

impl TensorSource for Drawn {
    fn contains(&self, _: &str) -> bool {
        true
    }

    fn read(&self, _: &str, shape: &[usize]) -> refrain_serving::Result<HostTensor> {
        let count: usize = shape.iter().product();
        let bytes = 1.0f32.to_le_bytes().repeat(count);
        Ok(HostTensor { shape: shape.to_vec(), dtype: refrain_serving::model::DType::F32, bytes })
    }

    fn normal(&self, name: &str) -> Option<Normal> {
        let seed = name.bytes().fold(17, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
        (!name.ends_with("norm.weight")).then_some(Normal { seed, std: 0.02 })
    }
}

/// A vocabulary without text.
#[derive(Debug)]
struct Words(usize);

impl Tokenizer for Words {
    fn encode(&self, _: &str) -> Vec<TokenId> {
        Vec::new()
    }

    fn encode_control(&self, _: &str) -> Vec<TokenId> {
        Vec::new()
    }

    fn decode(&self, _: &[TokenId]) -> String {
        String::new()
    }

    fn token_bytes(&self, _: TokenId) -> &[u8] {
        b"w"
    }

    fn vocab_size(&self) -> usize {
        self.0
    }

    fn end_tokens(&self) -> &[TokenId] {
        &[]
    }

    fn render_chat(&self, _: &str, user: &str) -> refrain_serving::Result<String> {
        Ok(user.to_owned())
    }
}
