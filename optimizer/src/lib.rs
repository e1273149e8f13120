//! placeholder

pub mod reorder;
