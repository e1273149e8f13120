//! What a statement is expected to cost in sum, for the question that the shell asks before it runs one.

use serde::{Deserialize, Serialize};

use crate::api::{Estimate, Query};
use crate::error::Result;
use crate::operators::CallEstimate;

/// The cost of a statement in sum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Forecast {
    /// Calls.
    pub(crate) calls: u64,
    /// Tokens of their prompts.
    pub(crate) prompt_tokens: u64,
    /// Seconds of models; `None` where the pace of one is not known yet.
    pub(crate) seconds: Option<f64>,
    /// Whether there are calls whose rows depend on the answers of these, which are not counted.
    pub(crate) has_more: bool,
}

impl Forecast {
    fn of(estimate: &Estimate) -> Self {
        let known = || estimate.calls.iter().filter_map(|(_, call)| call.as_ref());
        Forecast {
            calls: known().map(CallEstimate::calls).sum(),
            prompt_tokens: known().map(|call| call.prompt_tokens).sum(),
            // Calls that nobody makes take no time, however fast the model is.
            seconds: known().filter(|call| call.distinct > 0).map(|call| call.seconds).sum(),
            has_more: estimate.calls.iter().any(|(_, call)| call.is_none()),
        }
    }

    fn exceeds(&self, limit_s: f64) -> bool {
        self.calls > 0 && self.seconds.is_none_or(|seconds| seconds > limit_s)
    }
}

impl Query {
    /// Returns what the statement is expected to cost, if that exceeds `refrain.confirm_above`; also if it is not known whether it
    /// does, since a model has no pace yet. Calls no model.
    pub(crate) async fn forecast(&self) -> Result<Option<Forecast>> {
        let Some(limit_s) = self.db().settings().confirm_above else { return Ok(None) };
        let forecast = Forecast::of(&self.estimate().await?);
        Ok(forecast.exceeds(limit_s).then_some(forecast))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_dear_or_unknown_exceeds_the_limit() {
        let costing = |calls, seconds| Forecast { calls, seconds, ..Forecast::default() };
        assert!(costing(9, Some(10.5)).exceeds(10.0));
        assert!(!costing(9, Some(9.5)).exceeds(10.0));
        assert!(costing(9, None).exceeds(10.0), "the pace is not known");
        assert!(!costing(0, None).exceeds(10.0));
    }
}
