//! What the benchmarks of devices share: limits of the machine, and plans.
#![allow(dead_code, unreachable_pub, reason = "each benchmark includes this file and uses a part of it")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};
use refrain_serving::Sampling;
use refrain_serving::device::Device;
use refrain_serving::step::{
    Allowed, KvWrite, PAGE_TOKENS, PageId, RowSlot, RowSpan, SampleRow, StepPlan, StepResult, TokenSource,
};

/// How long one line is measured.
const BUDGET: Duration = Duration::from_millis(400);
/// Bytes that each thread reads to measure the memory; far more than the caches hold.
const MEMORY_BYTES: usize = 256 << 20;

/// Returns the time of the fastest of several runs.
pub fn best(mut work: impl FnMut()) -> Duration {
    work();
    let (start, mut best) = (Instant::now(), Duration::MAX);
    while start.elapsed() < BUDGET {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed());
    }
    best
}

/// Returns GB/s of reading memory in order, on all threads of `pool` together.
pub fn memory_rate(pool: &rayon::ThreadPool) -> f64 {
    let buffers: Vec<Vec<u64>> = (0..pool.current_num_threads()).map(|_| vec![1; MEMORY_BYTES / 8]).collect();
    let time = best(|| {
        black_box(pool.broadcast(|thread| buffers[thread.index()].iter().fold(0, |sum: u64, x| sum.wrapping_add(*x))));
    });
    (MEMORY_BYTES * buffers.len()) as f64 / time.as_secs_f64() / 1e9
}

/// Returns GFLOP/s of fused multiply-adds that touch no memory, on all threads of `pool` together.
pub fn peak(pool: &rayon::ThreadPool) -> f64 {
    let steps = 1_000_000;
    let arch = Arch::new();
    let time = best(|| {
        black_box(pool.broadcast(|_| arch.dispatch(Peak(black_box(steps)))));
    });
    let flops = arch.dispatch(Peak(0)).1 * steps * pool.current_num_threads();
    flops as f64 / time.as_secs_f64() / 1e9
}

/// Chains of multiply-adds; gives their sum and the operations in one step.
struct Peak(usize);

impl WithSimd for Peak {
    type Output = (f32, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, usize) {
        let (x, y) = (simd.splat_f32s(0.999), simd.splat_f32s(1e-3));
        let mut sums = [simd.splat_f32s(0.1); 12];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(*sum, x, y);
            }
        }
        (sums.iter().map(|&sum| simd.reduce_sum_f32s(sum)).sum(), 2 * 12 * S::F32_LANES)
    }
}

/// Runs one pass.
pub fn step(device: &mut dyn Device, plan: &StepPlan) {
    let ticket = device.launch(plan).expect("the bench's plans are sound");
    device.wait(ticket, &mut StepResult::default()).expect("the pass was launched");
}

/// Rows that each run `tokens` tokens after `context` tokens, whose KV may be anything, and sample after the last.
pub fn plan(rows: usize, tokens: usize, context: usize, vocabulary: usize) -> StepPlan {
    let mut plan = StepPlan::default();
    let pages = (context + tokens).div_ceil(PAGE_TOKENS);
    for row in 0..rows {
        let (first, table) = (plan.tokens.len() as u32, (row * pages) as u32);
        for position in context..context + tokens {
            let page = PageId(table + (position / PAGE_TOKENS) as u32);
            plan.writes.push(KvWrite { token: plan.tokens.len() as u32, page, offset: (position % PAGE_TOKENS) as u32 });
            plan.tokens.push(TokenSource::Host((position * 31 % vocabulary) as u32));
            plan.positions.push(position as u32);
        }
        let end = plan.tokens.len() as u32;
        plan.rows.push(RowSpan { tokens: first..end, pages: table..table + pages as u32 });
        let (slot, sampling) = (RowSlot(row as u32), Sampling::GREEDY);
        plan.sample.push(SampleRow {
            token: end - 1,
            slot,
            allowed: Allowed::All,
            sampling,
            draw: 0,
            top_logits: 0,
            logprobs: None,
        });
    }
    plan.block_tables = (0..(rows * pages) as u32).map(PageId).collect();
    plan
}
