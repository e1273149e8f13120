//! The metrics of `LlmExec`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder};

use crate::operators::call::PhysicalCall;
use crate::operators::scope::{CascadeStats, NodeStats};

/// What EXPLAIN ANALYZE shows, over all calls of the operator.
pub(crate) struct Counters {
    rows: Count,
    distinct: Count,
    calls: Count,
    memo_hits: Count,
    cache_hits: Count,
    prompt_tokens: Count,
    cached_tokens: Count,
    output_tokens: Count,
    errors: Count,
    /// Of cascades, and only where there is one.
    cascades: Option<CascadeCounters>,
}

struct CascadeCounters {
    sampled: Count,
    accepted: Count,
    rejected: Count,
}

impl Counters {
    /// Registers the metrics of one partition.
    pub(crate) fn new(metrics: &ExecutionPlanMetricsSet, partition: usize, calls: &[Arc<PhysicalCall>]) -> Self {
        let counter = |name: &'static str| MetricBuilder::new(metrics).counter(name, partition);
        Counters {
            rows: counter("rows"),
            distinct: counter("distinct"),
            calls: counter("calls"),
            memo_hits: counter("memo_hits"),
            cache_hits: counter("cache_hits"),
            prompt_tokens: counter("prompt_tokens"),
            cached_tokens: counter("cached_tokens"),
            output_tokens: counter("output_tokens"),
            errors: counter("errors"),
            cascades: calls.iter().any(|call| call.cascade.is_some()).then(|| CascadeCounters {
                sampled: counter("cascade_sampled"),
                accepted: counter("cascade_accepted"),
                rejected: counter("cascade_rejected"),
            }),
        }
    }

    /// Brings the metrics to the state of the nodes' counters.
    pub(crate) fn update(&self, nodes: &[Arc<NodeStats>]) {
        let sum = |read: fn(&NodeStats) -> &std::sync::atomic::AtomicU64| -> usize {
            nodes.iter().map(|node| read(node).load(Ordering::Relaxed)).sum::<u64>() as usize
        };
        let set = |metric: &Count, value: usize| metric.add(value.saturating_sub(metric.value()));
        set(&self.rows, sum(|n| &n.rows));
        set(&self.distinct, sum(|n| &n.distinct));
        set(&self.calls, sum(|n| &n.calls));
        set(&self.memo_hits, sum(|n| &n.memo_hits));
        set(&self.cache_hits, sum(|n| &n.cache_hits));
        set(&self.prompt_tokens, sum(|n| &n.prompt_tokens));
        set(&self.cached_tokens, sum(|n| &n.cached_tokens));
        set(&self.output_tokens, sum(|n| &n.output_tokens));
        set(&self.errors, sum(|n| &n.failed_rows));
        if let Some(CascadeCounters { sampled, accepted, rejected }) = &self.cascades {
            let all: Vec<CascadeStats> = nodes.iter().flat_map(|node| node.cascades()).collect();
            set(sampled, all.iter().map(|cascade| cascade.report.sampled as usize).sum());
            set(accepted, all.iter().map(|cascade| cascade.accepted as usize).sum());
            set(rejected, all.iter().map(|cascade| cascade.rejected as usize).sum());
        }
    }
}
