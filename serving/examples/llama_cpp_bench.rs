//! Our half of the comparison with llama.cpp: `scripts/llama_cpp_bench.py` runs it and says how. Prints JSON.
//!
//! - `llama_cpp_bench roof`: what the machine can do.
//! - `llama_cpp_bench time MODEL.gguf`: milliseconds of passes.
//! - `llama_cpp_bench greedy MODEL.gguf TOKENS PROMPTS.json`: greedy tokens and the largest logits after each prompt.
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use refrain_serving::TokenId;
use refrain_serving::device::Device;
use refrain_serving::device::cpu::{Activations, CpuDevice, CpuOptions};
use refrain_serving::load::GgufFile;
use refrain_serving::step::{StepPlan, StepResult, TokenSource};
use serde_json::json;

use self::measure::{memory_rate, peak, plan, step};

mod measure;

/// Tokens that lie before those that are decoded.
const CONTEXT: usize = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["roof"] => roof(),
        ["time", model] => time(Path::new(model)),
        ["greedy", model, tokens, prompts] => greedy(Path::new(model), tokens.parse()?, Path::new(prompts)),
        _ => Err("usage: llama_cpp_bench roof | time MODEL.gguf | greedy MODEL.gguf TOKENS PROMPTS.json".into()),
    }
}

fn roof() -> Result<(), Box<dyn Error>> {
    let pool = rayon::ThreadPoolBuilder::new().build()?;
    println!("{}", json!({"gflops": peak(&pool), "gbytes": memory_rate(&pool)}));
    Ok(())
}

fn open(model: &Path) -> Result<(CpuDevice, usize), Box<dyn Error>> {
    let file = GgufFile::open(model)?;
    let options = CpuOptions { threads: None, kv_bytes: 1 << 30, activations: Activations::default() };
    Ok((CpuDevice::new(file.config(), &file, options)?, file.config().vocab_size))
}

fn time(model: &Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let (mut device, vocabulary) = open(model)?;
    let load = start.elapsed().as_secs_f64() * 1e3;
    let prefill = median(&mut device, &plan(1, 512, 0, vocabulary), 3);
    step(&mut device, &plan(32, CONTEXT, 0, vocabulary));
    let decode = median(&mut device, &plan(1, 1, CONTEXT, vocabulary), 30);
    let batch = median(&mut device, &plan(32, 1, CONTEXT, vocabulary), 8);
    let peak_mb = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:").map(str::to_owned))?;
        line.trim().trim_end_matches(" kB").parse::<f64>().ok().map(|kb| kb / 1024.0)
    });
    println!("{}", json!({"prefill": prefill, "decode": decode, "batch": batch, "load": load, "peak_mb": peak_mb}));
    Ok(())
}

/// Milliseconds of the middle one of several passes, after one that is not counted.
fn median(device: &mut CpuDevice, plan: &StepPlan, passes: usize) -> f64 {
    step(device, plan);
    let mut times: Vec<f64> = (0..passes)
        .map(|_| {
            let start = Instant::now();
            step(device, plan);
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[passes / 2]
}

fn greedy(model: &Path, tokens: usize, prompts: &Path) -> Result<(), Box<dyn Error>> {
    let prompts: Vec<Vec<TokenId>> = serde_json::from_slice(&std::fs::read(prompts)?)?;
    let (mut device, vocabulary) = open(model)?;
    for prompt in prompts {
        let (mut answer, mut top) = (Vec::new(), Vec::new());
        let mut next = plan(1, prompt.len(), 0, vocabulary);
        next.tokens = prompt.iter().map(|&token| TokenSource::Host(token)).collect();
        next.sample[0].top_logits = 5;
        for position in prompt.len()..prompt.len() + tokens {
            let ticket = device.launch(&next)?;
            let mut result = StepResult::default();
            device.poll(ticket, &mut result)?;
            answer.push(result.sampled[0]);
            if top.is_empty() {
                top = result.top_logits.remove(0);
            }
            next = plan(1, 1, position, vocabulary);
            next.tokens[0] = TokenSource::Host(result.sampled[0]);
        }
        println!("{}", json!({"tokens": answer, "top": top}));
    }
    Ok(())
}
