//! The scheduler: which tokens run in the next step.
