//! The time that a run would take if nothing but its arithmetic and the keys and values it reads took any: a device at its peak, all
//! the time.
//!
//! `T = [computed · (layers + attention · context) + sampled · head + decoded · layers] / FLOP/s + bytes of KV read / byte/s`
//!
//! Prompt tokens that were found in the cache are not computed. What several rows have in common is read once, the rest by each
//! token that is decoded. Weights are not counted: steps of hundreds of tokens hide them.

use refrain_serving::model::TokenCost;

use crate::QueryUsage;

/// Large matrix products in bf16, and copies, as measured: name of the GPU, FLOP/s, bytes/s.
const KNOWN: &[(&str, f64, f64)] = &[("H100", 790e12, 3.0e12), ("H200", 790e12, 4.3e12)];

/// What a device can do in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Peaks {
    /// Floating-point operations.
    pub(super) flops: f64,
    /// Bytes read from its memory.
    pub(super) bytes: f64,
}

impl Peaks {
    /// Returns what is said of the device, and what its name tells of the rest; `None` while one of the two is unknown.
    pub(super) fn of(device: &str, flops: Option<f64>, bytes: Option<f64>) -> Option<Self> {
        let known = KNOWN.iter().find(|(name, ..)| device.contains(name));
        let flops = flops.or(known.map(|(_, flops, _)| *flops))?;
        let bytes = bytes.or(known.map(|(.., bytes)| *bytes))?;
        Some(Peaks { flops, bytes })
    }
}

/// Returns the least seconds of a run. `is_free` says whether answers were free text: else few rows of the LM head were multiplied,
/// which is nothing.
pub(super) fn ideal_s(cost: &TokenCost, peaks: Peaks, usage: &QueryUsage, is_free: bool) -> f64 {
    let TokenCost { layer_flops, attention_flops, head_flops, kv_bytes } = *cost;
    let [calls, prompt, cached, sampled] =
        [usage.calls.max(1), usage.prompt_tokens, usage.cached_tokens, usage.output_tokens].map(|count| count as f64);
    let computed = prompt - cached;
    // The first token of an answer comes from the prompt's last.
    let decoded = (sampled - calls).max(0.0);
    // A row's computed tokens lie between its cached ones and its end.
    let context = (cached + prompt) / 2.0 / calls;
    let own_context = (computed + sampled / 2.0) / calls;
    let head = if is_free { sampled * head_flops } else { 0.0 };
    let flops = computed * (layer_flops + attention_flops * context) + head + decoded * layer_flops;
    flops / peaks.flops + decoded * own_context * kv_bytes / peaks.bytes
}

#[cfg(test)]
mod tests {
    use refrain_serving::load::RandomShape;

    use super::*;

    const H200: Peaks = Peaks { flops: 790e12, bytes: 4.3e12 };

    /// 10,000 rows of 400 tokens.
    fn check(shape: RandomShape, hit: f64, output: u64, expected: f64) {
        let (calls, prompt_tokens) = (10_000, 4_000_000);
        let cached_tokens = (hit * prompt_tokens as f64) as u64;
        let output_tokens = output * calls;
        let usage = QueryUsage { calls, prompt_tokens, cached_tokens, output_tokens, ..QueryUsage::default() };
        let found = ideal_s(&shape.config().token_cost(), H200, &usage, true);
        assert!((found / expected - 1.0).abs() < 0.005, "{found} is not {expected}");
    }

    #[test]
    fn known_runs() {
        check(RandomShape::Llama3B8, 0.0, 5, 72.4);
        check(RandomShape::Llama3B8, 0.75, 5, 18.8);
        check(RandomShape::Llama3B8, 0.75, 20, 22.2);
        check(RandomShape::Llama3B8, 0.85, 1, 10.76);
        check(RandomShape::Llama32B1, 0.75, 20, 3.28);
    }

    #[test]
    fn peaks_are_told_or_known() {
        assert_eq!(Peaks::of("cuda:0, NVIDIA H200, 139 GiB", None, None), Some(H200));
        assert_eq!(Peaks::of("cuda:0, NVIDIA H200, 139 GiB", Some(7e14), None), Some(Peaks { flops: 7e14, ..H200 }));
        assert_eq!(Peaks::of("cpu, 2 threads", Some(1e11), None), None);
        assert_eq!(Peaks::of("cpu, 2 threads", Some(1e11), Some(1e10)), Some(Peaks { flops: 1e11, bytes: 1e10 }));
    }
}
