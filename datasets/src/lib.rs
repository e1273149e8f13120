//! Tables to try Refrain with: one that is generated, and those that lie on this machine.
//!
//! | part | what it is |
//! |---|---|
//! | [`demo`] | reviews of products, generated from a seed; no file and no network needed |
//! | [`local`] | benchmark tables by name, in folders that the caller names |

pub mod demo;
pub mod local;

mod products;
mod random;
