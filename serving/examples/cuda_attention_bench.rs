//! Speed of attention on a GPU, one layer, for the heads of an 8B and a 1B model, beside the rate of the reads and products it needs.
//!
//! `cargo run --release -p refrain-serving --example cuda_attention_bench`
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::error::Error;

use refrain_serving::device::cuda::bench::{AttentionBench, HeadShape};
use refrain_serving::device::cuda::find;

fn main() -> Result<(), Box<dyn Error>> {
    println!("# {}", find(0)?);
    let mut bench = AttentionBench::open(0)?;
    let cases: [(&str, (u32, u32), usize, u32); 9] = [
        ("prefill 16 x 400", (0, 400), 16, 0),
        ("60 new on 340, 64 rows", (340, 60), 64, 0),
        ("20 new on 380, 128 rows", (380, 20), 128, 0),
        ("decode 256 at 420", (419, 1), 256, 0),
        ("decode 8 at 4096", (4095, 1), 8, 0),
        ("decode 64 at 600, 512 shared", (599, 1), 64, 32),
        ("decode 256 at 420, 336 shared", (419, 1), 256, 21),
        ("decode 256 at 1100, 1024 shared", (1099, 1), 256, 64),
        ("decode 16 at 4160, 4096 shared", (4159, 1), 16, 256),
    ];
    println!("| shape | rows | µs | TFLOP/s | GB/s |\n|---|---|---|---|---|");
    for (shape, head_dim) in [("8B", 128), ("1B", 64)] {
        let heads = HeadShape { heads: 32, kv_heads: 8, head_dim };
        for (name, row, count, shared_pages) in cases {
            let measured = bench.measure(heads, &vec![row; count], shared_pages)?;
            let (micros, tera, giga) =
                (measured.seconds * 1e6, measured.flops / measured.seconds / 1e12, measured.bytes / measured.seconds / 1e9);
            println!("| {shape} | {name} | {micros:.1} | {tera:.0} | {giga:.0} |");
        }
    }
    Ok(())
}
