//! Sentences a second of an embedding model: `embed_bench FOLDER [THREADS] [STEP_TOKENS]`, over the texts of vectors.json in the
//! folder, each taken 20 times. `scripts/embed_torch_bench.py` does the same with transformers.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use refrain_serving::device::EncoderDevice;
use refrain_serving::device::cpu::CpuEncoder;
use refrain_serving::load::load_encoder;
use serde::Deserialize;

const REPEATS: usize = 20;
const RUNS: usize = 5;

#[derive(Deserialize)]
struct Text {
    ids: Vec<u32>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("name the folder of a model")?);
    let threads = args.next().map(|threads| threads.parse()).transpose()?.unwrap_or(2);
    let step_tokens: usize = args.next().map(|tokens| tokens.parse()).transpose()?.unwrap_or(1024);
    let texts: Vec<Text> = serde_json::from_slice(&std::fs::read(folder.join("vectors.json"))?)?;
    let texts: Vec<Vec<u32>> = (0..REPEATS).flat_map(|_| texts.iter().map(|text| text.ids.clone())).collect();
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let model = load_encoder(&folder)?;
    let mut encoder = CpuEncoder::new(&model.config, model.weights.as_ref(), NonZeroUsize::new(threads))?;
    let mut passes: Vec<Vec<Vec<u32>>> = vec![vec![]];
    let mut filled = 0;
    for text in texts.iter().cloned() {
        if filled + text.len() > step_tokens && filled > 0 {
            passes.push(vec![]);
            filled = 0;
        }
        filled += text.len();
        passes.last_mut().ok_or("there is a pass")?.push(text);
    }
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        for pass in &passes {
            encoder.embed(pass)?;
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let (sentences, tokens) = (texts.len() as f64 / best, tokens as f64 / best);
    println!(
        "{threads} threads, {} texts in {} passes: {sentences:.0} sentences/s, {tokens:.0} tokens/s",
        texts.len(),
        passes.len()
    );
    Ok(())
}
