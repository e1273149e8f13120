//! Token masks under a JSON schema: decisions per second on one thread and on several, and what they take of an extraction by
//! the bundled model, or on a GPU by a random one in the shape of Llama 3.2 1B.
//!
//! ```text
//! cargo run --release -p refrain-serving --example mask_bench [rows] [threads] [cpu|cuda]
//! ```

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::executor::block_on;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use refrain_serving::constraint::{Constraint, ConstraintCompiler, Next};
use refrain_serving::device::Device;
use refrain_serving::device::cpu::{Activations, CpuDevice, CpuOptions};
use refrain_serving::device::cuda::{CudaDevice, CudaOptions};
use refrain_serving::load::{BundledModel, LoadedModel, RandomShape, bundled, random};
use refrain_serving::local::{EngineConfig, EngineResources, LocalConfig, LocalEngine};
use refrain_serving::scheduler::SchedulerConfig;
use refrain_serving::{Backend, Batch, OutputShape, Request, RequestId, Sampling, TokenId, Tokenizer};
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

#[allow(clippy::print_stdout, reason = "a program that reports")]
fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let rows: usize = arguments.next().map_or(Ok(64), |rows| rows.parse())?;
    let threads: usize = arguments.next().map_or(Ok(2), |threads| threads.parse())?;
    let on_gpu = arguments.next().as_deref() == Some("cuda");
    let tokenizer: Arc<dyn Tokenizer> = bundled(BundledModel::Mini)?.tokenizer;
    for threads in [1, threads] {
        let (decisions, seconds, masks) = decide(&tokenizer, rows, threads)?;
        let rate = decisions as f64 / seconds;
        println!(
            "{rows} rows, {threads} threads: {decisions} decisions, {rate:.0} a second, {:.0} % of it masks",
            100.0 * masks
        );
    }
    for shape in [OutputShape::Text, schema()] {
        for threads in [1, threads] {
            let (tokens, steps, seconds) = extract(&shape, rows, threads, on_gpu)?;
            let name = if shape == OutputShape::Text { "text" } else { "JSON" };
            let rate = rows as f64 / seconds;
            println!(
                "{name}, decisions on {threads} threads: {tokens} tokens in {steps} steps, {seconds:.2} s, {rate:.0} rows/s"
            );
        }
    }
    Ok(())
}

/// What `ai_extract` asks for: a struct with a list of structs.
fn schema() -> OutputShape {
    let item = json!({
        "type": "object", "additionalProperties": false, "required": ["part", "good"],
        "properties": {"part": {"type": "string", "maxLength": 20}, "good": {"type": ["boolean", "null"]}},
    });
    OutputShape::Json(json!({
        "type": "object", "additionalProperties": false, "required": ["product", "stars", "topics", "findings"],
        "properties": {
            "product": {"type": ["string", "null"]}, "stars": {"type": "integer", "minimum": 0, "maximum": 100_000},
            "topics": {"type": "array", "items": {"enum": ["price", "quality", "delivery", "service"]}, "maxItems": 3},
            "findings": {"type": "array", "items": item, "maxItems": 3},
        },
    }))
}

/// Writes an answer in each row, drawn evenly from what is allowed, as a step does: every row decides once before the next.
/// Returns decisions, seconds, and the part of the threads' time that masks took, which a step leaves for later.
fn decide(tokenizer: &Arc<dyn Tokenizer>, rows: usize, threads: usize) -> Result<(usize, f64, f64), Failure> {
    let factory = ConstraintCompiler::new(Arc::clone(tokenizer)).with_lanes(threads).compile(&schema())?;
    let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
    let (mut decisions, mut seconds) = (0, 0.0);
    let mut times = [Duration::ZERO; 2];
    for round in 0..4 {
        let mut states: Vec<Box<dyn Constraint>> = (0..rows).map(|_| factory.state()).collect();
        states.sort_by_key(|state| state.lane());
        let start = Instant::now();
        for step in 0..80 {
            decisions += states.len();
            let mut lanes: Vec<_> = states.chunk_by_mut(|a, b| a.lane() == b.lane()).collect();
            let go_on = |(row, state): (usize, &mut Box<dyn Constraint>)| go_on(state.as_mut(), row * 31 + step * 7 + round);
            let open: Vec<Vec<Option<[Duration; 2]>>> =
                pool.install(|| lanes.par_iter_mut().map(|lane| lane.iter_mut().enumerate().map(go_on).collect()).collect());
            let mut open = open.into_iter().flatten();
            states.retain(|_| {
                let Some(of_row) = open.next().flatten() else { return false };
                times.iter_mut().zip(of_row).for_each(|(sum, time)| *sum += time);
                true
            });
        }
        seconds += start.elapsed().as_secs_f64();
    }
    let [early, late] = times.map(|time| time.as_secs_f64());
    Ok((decisions, seconds, late / (early + late)))
}

/// Takes a row to its next choice and makes it. If there was one, returns the time without masks, and that of its masks.
fn go_on(state: &mut dyn Constraint, pick: usize) -> Option<[Duration; 2]> {
    let (mut early, mut late) = (Duration::ZERO, Duration::ZERO);
    loop {
        let start = Instant::now();
        let said = state.next_early().ok()?;
        early += start.elapsed();
        let start = Instant::now();
        let next = said.map_or_else(|| state.next(), Ok);
        late += start.elapsed();
        let token = match next {
            Ok(Next::Forced(tokens)) => {
                if tokens.iter().any(|token| state.accept(*token).is_err()) {
                    return None;
                }
                continue;
            }
            Ok(Next::OneOf(tokens)) => tokens[pick % tokens.len()],
            Ok(Next::Mask(words)) => {
                let allowed: Vec<TokenId> = (0..words.len() as TokenId * 32)
                    .filter(|token| words[*token as usize / 32] >> (token % 32) & 1 == 1)
                    .collect();
                allowed[pick % allowed.len()]
            }
            _ => return None,
        };
        let start = Instant::now();
        state.accept(token).ok()?;
        return Some([early + start.elapsed(), late]);
    }
}

/// Asks a model one question per row. Returns answered tokens, steps and seconds.
fn extract(shape: &OutputShape, rows: usize, threads: usize, on_gpu: bool) -> Result<(u64, u64, f64), Failure> {
    let LoadedModel { config, weights, tokenizer, digest } =
        if on_gpu { random_model()? } else { bundled(BundledModel::Mini)? };
    let kv_bytes = if on_gpu { 16 << 30 } else { 512 << 20 };
    let engine = LocalEngine::start(EngineConfig { threads: NonZeroUsize::new(threads), ..EngineConfig::new(kv_bytes) })?;
    let context = config.max_context.min(4096);
    let scheduler = if on_gpu { SchedulerConfig::on_gpu(context, 1_200_000_000) } else { SchedulerConfig::new(context) };
    let local = LocalConfig { scheduler, ..LocalConfig::new(context, digest) };
    let open = |_: &EngineResources| -> refrain_serving::Result<Box<dyn Device>> {
        if on_gpu {
            let kernel_cache = Some(std::env::temp_dir().join("refrain-kernels"));
            let options = CudaOptions::new(scheduler.step_tokens);
            let options = CudaOptions { kv_bytes: Some(kv_bytes), kernel_cache, ..options };
            return Ok(Box::new(CudaDevice::new(&config, weights.as_ref(), &options)?));
        }
        let options = CpuOptions { threads: None, kv_bytes, activations: Activations::default() };
        Ok(Box::new(CpuDevice::new(&config, weights.as_ref(), options)?))
    };
    let backend = engine.add_model(open, tokenizer, local)?;
    let tokenizer = backend.tokenizer();
    let shape = Arc::new(shape.clone());
    let request = |row: usize| {
        let chat = tokenizer.render_chat("Extract what is said.", &format!("Order {row}: late, but a fine lamp."))?;
        let prompt = vec![tokenizer.encode_control(&chat).into()];
        let sampling = Sampling { temperature: 1.0, seed: row as u64, ..Sampling::GREEDY };
        Ok(Request::new(RequestId(row as u32), prompt, Arc::clone(&shape), sampling, 64))
    };
    let requests = (0..rows).map(request).collect::<Result<_, Failure>>()?;
    let start = Instant::now();
    let completions = block_on(backend.submit(Batch { requests, ..Batch::default() }).collect::<Vec<_>>());
    let seconds = start.elapsed().as_secs_f64();
    completions.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok((backend.stats().output_tokens, backend.stats().steps, seconds))
}

/// A random model with an end token, without which no grammar can be compiled.
fn random_model() -> Result<LoadedModel, Failure> {
    let LoadedModel { config, weights, tokenizer, digest } = random(RandomShape::Llama32B1, 17, None)?;
    let tokenizer = Arc::into_inner(tokenizer).ok_or("the tokenizer is shared")?.with_end_tokens(vec![2])?;
    Ok(LoadedModel { config, weights, tokenizer: Arc::new(tokenizer), digest })
}
