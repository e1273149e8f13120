//! Devices run step plans. The CPU is one implementation; a GPU is another and nothing else changes.

mod check;
mod choice;
pub mod cpu;
pub mod cuda;
mod sampler;

pub use choice::{DeviceChoice, FoundDevice};

use std::fmt;
use std::thread;

use self::cuda::PassTimes;
use crate::error::Result;
use crate::request::TokenId;
use crate::step::{PageCopy, StepPlan, StepResult};

/// Runs forward passes of one model over one pool of KV pages. A device that is dropped waits for its passes.
pub trait Device: Send + fmt::Debug {
    /// Returns the size of the KV pool.
    fn pool(&self) -> PoolSpec;

    /// Describes the device in a few words for people, such as `cpu, 2 threads`.
    fn describe(&self) -> String;

    /// Names what the inputs of products are rounded to where that is less than single precision: another device may then give
    /// other answers with the same weights. `None` where it is not.
    fn rounding(&self) -> Option<&'static str> {
        None
    }

    /// Returns the bytes of the matrices and embeddings that it keeps, apart from KV pages and what one pass needs; `None` where
    /// they are not known.
    fn held_bytes(&self) -> Option<u64> {
        None
    }

    /// Returns the bytes of GPUs that were free before the model came and are not now; `None` where it is on no GPU.
    fn gpu_bytes(&self) -> Option<u64> {
        None
    }

    /// Names what the matrices of its layers are kept in, such as `bf16`; `None` where that is not known.
    fn dtype(&self) -> Option<&'static str> {
        None
    }

    /// Returns whether a pass runs while the host goes on: [`launch`](Self::launch) returns without waiting for it, and a second
    /// pass may be launched before the first has ended. Where it does not, a pass has ended when `launch` returns.
    fn overlaps(&self) -> bool {
        false
    }

    /// Starts a pass and returns without waiting for it where the device [overlaps](Self::overlaps).
    ///
    /// `bind` says which tokens are allowed where the plan leaves that [open](StepPlan::is_open). It is called at most once, when
    /// tokens are about to be chosen, so that a device which overlaps the host runs the layers meanwhile.
    ///
    /// Passes run in the order of their launch: one sees all that those before it wrote to pages and slots. Fails if the plan is
    /// malformed, before or after `bind`, or if the device is lost.
    fn launch_open(&mut self, plan: &mut StepPlan, bind: Bind<'_>) -> Result<StepTicket>;

    /// As [`launch_open`](Self::launch_open), of a plan that leaves nothing open.
    fn launch(&mut self, plan: &StepPlan) -> Result<StepTicket> {
        self.launch_open(&mut plan.clone(), &mut |_| ())
    }

    /// Asks for the result of a pass: `true` once `result` has been filled in, `false` while the pass is still running.
    fn poll(&mut self, ticket: StepTicket, result: &mut StepResult) -> Result<bool>;

    /// Waits for the result of a pass and fills `result` in. A device whose host can sleep until then does so; by default the
    /// thread asks again and again, and lets others run in between.
    fn wait(&mut self, ticket: StepTicket, result: &mut StepResult) -> Result<()> {
        while !self.poll(ticket, result)? {
            thread::yield_now();
        }
        Ok(())
    }

    /// From now on measures where the time of passes goes, if the device can, which costs a few microseconds for each kernel.
    fn time_passes(&mut self) {}

    /// Returns where the time of the passes went that have ended since [`time_passes`](Self::time_passes). `None` if it was not
    /// called, or if the device cannot tell.
    fn pass_times(&self) -> Option<PassTimes> {
        None
    }

    /// Copies page contents in launch order, apart from any pass.
    fn copy(&mut self, copies: &[PageCopy]) -> Result<()>;

    /// Returns how many pages share a slab: memory that is taken and given back as one. All of them where the pool's memory is
    /// taken with the device, as by default.
    fn slab_pages(&self) -> u32 {
        self.pool().pages
    }

    /// Takes the memory of a slab: of the pages from `slab * slab_pages` on, up to the next slab or the end of the pool. None of
    /// them may be named before. Fails if the system has not so much memory.
    fn take_slab(&mut self, _slab: u32) -> Result<()> {
        Ok(())
    }

    /// Gives the memory of a slab back. What its pages held is lost. No pass of the device runs.
    fn give_slab(&mut self, _slab: u32) {}
}

/// Replaces [`Allowed::Open`](crate::step::Allowed::Open) in a plan, and changes nothing else but the arenas of candidates and masks.
pub type Bind<'a> = &'a mut dyn FnMut(&mut StepPlan);

/// A pass that was launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepTicket(pub u64);

/// The size of a KV pool, all slabs taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Number of pages.
    pub pages: u32,
    /// Bytes of one page over all layers, keys and values.
    pub page_bytes: usize,
}

/// Runs an encoder, which keeps nothing from one pass to the next.
pub trait EncoderDevice: Send + fmt::Debug {
    /// Describes the device in a few words for people, such as `cpu, 2 threads`.
    fn describe(&self) -> String;

    /// Returns the bytes of the matrices and embeddings that it keeps, apart from what one pass needs; `None` where
    /// they are not known.
    fn held_bytes(&self) -> Option<u64> {
        None
    }

    /// Returns the pooled vector of each text, as the model gives it, not yet of unit length.
    ///
    /// Fails if a text has no tokens, more than the model takes, or one that it does not know; or if the device is lost.
    fn embed(&mut self, texts: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>>;
}
