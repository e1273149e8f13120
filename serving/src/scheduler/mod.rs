//! The scheduler: which tokens run in the next step.

mod admission;
mod config;
mod pool;
mod prefix_tree;
mod row;
mod run;
#[allow(clippy::module_inception, reason = "the file bears the name of its type")]
mod scheduler;
mod step_builder;
mod stop;
mod waiting;

pub use config::SchedulerConfig;
pub use pool::{Fixed, KvPool, Memory, PageState};
pub use row::Ending;
pub use scheduler::{Decision, Finished, Outcome, Scheduler};
pub use stop::StopStrings;
pub use waiting::{Job, OpenConstraint, Rank, Work};

#[cfg(test)]
pub(crate) mod fake_device;
#[cfg(test)]
pub(crate) mod test_constraints;
#[cfg(test)]
mod tests;
