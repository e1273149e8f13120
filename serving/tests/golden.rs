//! Devices against golden answers: `golden.json` beside a model holds prompts, 24 greedy tokens after each, and the five
//! largest logits after the prompt, computed by another implementation in single precision.
//!
//! The bundled 8-bit models are always tested. The bf16 folders `mini` and `mini-draft` are tested where the variable
//! `REFRAIN_MODELS`, or `../shared/models` beside the workspace, leads to them.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::{Path, PathBuf};

use refrain_serving::device::Device;
use refrain_serving::device::cpu::{Activations, CpuDevice, CpuOptions};
use refrain_serving::device::cuda::{CudaDevice, CudaOptions, Precision, TensorParallel, find, find_split};
use refrain_serving::load::load_folder;
use refrain_serving::step::{
    Allowed, KvWrite, PAGE_TOKENS, PageId, RowSlot, RowSpan, SampleRow, StepPlan, StepResult, TokenSource,
};
use refrain_serving::{Sampling, TokenId};
use serde::Deserialize;

/// How far answers may be from the golden ones.
#[derive(Clone, Copy)]
struct Tolerance {
    /// Logits may differ by this much.
    logits: f32,
    /// So many answers may differ in some of their 24 tokens, most of which come after the end.
    answers: usize,
}

const EXACT: Tolerance = Tolerance { logits: 1e-2, answers: 0 };
/// Measured: 0.14, 3 answers of `mini` and 7 of `mini-draft`. Where the processor does not multiply bytes, there is no difference.
const ROUNDED: Tolerance = Tolerance { logits: 0.25, answers: 8 };

/// bfloat16 on a GPU.
const BFLOAT: Tolerance = Tolerance { logits: 0.25, answers: 12 };

/// Products of 8 bits on a GPU. Measured: 0.78, 13 answers of `mini`.
const FP8: Tolerance = Tolerance { logits: 1.0, answers: 20 };

#[derive(Deserialize)]
struct Golden {
    ids: Vec<TokenId>,
    greedy: Vec<TokenId>,
    top5: Vec<(TokenId, f32)>,
}

/// Appends a row of tokens at consecutive positions from `position`, and a greedy sample after the last of them.
fn add_row(plan: &mut StepPlan, tokens: &[TokenSource], position: usize, pages: &[PageId], top_logits: u32) {
    let first = plan.tokens.len();
    plan.tokens.extend(tokens);
    for (token, position) in (first..plan.tokens.len()).zip(position..) {
        let (page, offset) = (pages[position / PAGE_TOKENS], (position % PAGE_TOKENS) as u32);
        plan.positions.push(position as u32);
        plan.writes.push(KvWrite { token: token as u32, page, offset });
    }
    let (end, table) = (plan.tokens.len() as u32, plan.block_tables.len() as u32);
    plan.block_tables.extend(pages);
    plan.sample.push(SampleRow {
        token: end - 1,
        slot: RowSlot(plan.rows.len() as u32),
        allowed: Allowed::All,
        sampling: Sampling::GREEDY,
        draw: 0,
        top_logits,
        logprobs: None,
    });
    plan.rows.push(RowSpan { tokens: first as u32..end, pages: table..plan.block_tables.len() as u32 });
}

fn run(device: &mut dyn Device, plan: &StepPlan) -> StepResult {
    let ticket = device.launch(plan).unwrap();
    let mut result = StepResult::default();
    device.wait(ticket, &mut result).unwrap();
    result
}

/// Checks the CPU device with inputs of products rounded so.
fn check_cpu(folder: &Path, activations: Activations) {
    let model = load_folder(folder).unwrap();
    let options = CpuOptions { threads: None, kv_bytes: 128 << 20, activations };
    let mut device = CpuDevice::new(&model.config, model.weights.as_ref(), options).unwrap();
    check(folder, &mut device, if activations == Activations::F32 { EXACT } else { ROUNDED });
}

/// Runs all prompts, then decodes all rows together from their slots. Returns the largest difference of a logit, and how many
/// answers differ.
fn check(folder: &Path, device: &mut dyn Device, tolerance: Tolerance) -> (f32, usize) {
    let mut largest = 0f32;
    let golden: Vec<Golden> = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    assert_eq!(golden.len(), 40);
    let mut pages = (0..device.pool().pages).map(PageId);
    let tables: Vec<Vec<PageId>> = golden
        .iter()
        .map(|row| pages.by_ref().take((row.ids.len() + row.greedy.len()).div_ceil(PAGE_TOKENS)).collect())
        .collect();

    let mut plan = StepPlan::default();
    for (row, pages) in golden.iter().zip(&tables) {
        let prompt: Vec<_> = row.ids.iter().map(|&token| TokenSource::Host(token)).collect();
        add_row(&mut plan, &prompt, 0, pages, 5);
    }
    let result = run(device, &plan);
    for (i, (row, top)) in golden.iter().zip(&result.top_logits).enumerate() {
        for (&(token, logit), &(expected, expected_logit)) in top.iter().zip(&row.top5) {
            let near = |logit: f32| (logit - expected_logit).abs() < tolerance.logits;
            assert!(near(logit), "prompt {i}: {top:?} instead of {:?}", row.top5);
            // Tokens may change places only where their logits hardly differ; one that is not listed came after the last.
            let listed = row.top5.iter().find(|(other, _)| *other == token);
            largest = listed.map_or(largest, |&(_, expected)| largest.max((logit - expected).abs()));
            let last = row.top5.last().unwrap().1;
            let tied = listed.map_or(logit - last < tolerance.logits, |&(_, logit)| near(logit));
            assert!(token == expected || tied, "prompt {i}: {top:?} instead of {:?}", row.top5);
        }
    }
    let mut answers: Vec<Vec<TokenId>> = result.sampled.iter().map(|&token| vec![token]).collect();
    for step in 1..golden[0].greedy.len() {
        let mut plan = StepPlan::default();
        for (slot, (row, pages)) in golden.iter().zip(&tables).enumerate() {
            add_row(&mut plan, &[TokenSource::Device(RowSlot(slot as u32))], row.ids.len() + step - 1, pages, 0);
        }
        let sampled = run(device, &plan).sampled;
        answers.iter_mut().zip(sampled).for_each(|(answer, token)| answer.push(token));
    }
    let differ = |i: &usize| answers[*i] != golden[*i].greedy;
    let differing: Vec<usize> = (0..golden.len()).filter(differ).collect();
    assert!(differing.len() <= tolerance.answers, "prompts {differing:?} of {}", folder.display());
    (largest, differing.len())
}

#[test]
fn bundled_mini() {
    for activations in [Activations::F32, Activations::Int8] {
        check_cpu(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini"), activations);
    }
}

#[test]
fn bundled_mini_draft() {
    for activations in [Activations::F32, Activations::Int8] {
        check_cpu(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini-draft"), activations);
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "says that part of the test was left out")]
fn bf16_folders() {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/models");
    let models = std::env::var_os("REFRAIN_MODELS").map_or_else(beside, PathBuf::from);
    for name in ["mini", "mini-draft"] {
        let folder = models.join(name);
        if folder.join("model.safetensors").is_file() {
            check_cpu(&folder, Activations::F32);
        } else {
            eprintln!("skipped: no model in {}", folder.display());
        }
    }
}

/// Single precision gives every golden token; bfloat16 rounds, and a few answers take another turn; FP8 more.
#[test]
#[allow(clippy::print_stderr, reason = "says what was measured, or that the test was left out")]
fn bundled_models_on_a_gpu() {
    let gpu = match find(0) {
        Ok(gpu) => gpu,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    for name in ["mini", "mini-draft"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
        let model = load_folder(&folder).unwrap();
        // The draft is so small that 8 bits move its logits, of up to 27, by more than 1.5.
        let fp8 = (gpu.capability >= (8, 9) && name == "mini").then_some((Precision::Fp8, FP8));
        for (precision, tolerance) in [(Precision::F32, EXACT), (Precision::Bf16, BFLOAT)].into_iter().chain(fp8) {
            let options = CudaOptions { kv_bytes: Some(256 << 20), precision, tune: false, ..CudaOptions::new(16384) };
            let mut device = CudaDevice::new(&model.config, model.weights.as_ref(), &options).unwrap();
            let (logits, answers) = check(&folder, &mut device, tolerance);
            eprintln!("{name} in {precision}: logits differ by {logits:.3} at most, and {answers} answers of 40");
        }
    }
}

/// A model that is split over two GPUs gives the tokens that it gives on one.
#[test]
#[allow(clippy::print_stderr, reason = "says that the test was left out")]
fn bundled_model_split_over_two_gpus() {
    if let Err(reason) = find(1).and_then(|_| find_split()) {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini");
    let model = load_folder(&folder).unwrap();
    for (precision, tolerance) in [(Precision::F32, EXACT), (Precision::Bf16, BFLOAT)] {
        let options = CudaOptions { kv_bytes: Some(256 << 20), precision, tune: false, ..CudaOptions::new(16384) };
        let mut device = TensorParallel::new(&model.config, model.weights.as_ref(), &[0, 1], &options).unwrap();
        check(&folder, &mut device, tolerance);
    }
}
