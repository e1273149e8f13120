//! What a query is expected to cost.

use std::fmt;

use crate::operators::CallEstimate;

/// What a query is expected to cost.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Estimate {
    /// Each call with its estimate; `None` where the input of a call depends on the answers of another.
    pub calls: Vec<(String, Option<CallEstimate>)>,
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.calls.is_empty() {
            return f.write_str("no model is asked");
        }
        for (idx, (call, estimate)) in self.calls.iter().enumerate() {
            if idx > 0 {
                writeln!(f)?;
            }
            match estimate {
                Some(estimate) => write!(f, "{call}\n  {estimate}")?,
                None => write!(f, "{call}\n  not estimated: its rows depend on the answers below it")?,
            }
        }
        Ok(())
    }
}
