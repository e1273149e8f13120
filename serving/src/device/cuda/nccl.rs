//! Sums over GPUs that share a model, by NCCL.
//!
//! The library is looked up by the name of its package for running programs, `libnccl.so.2`, when a model is first split. Only the
//! functions that are called are bound here: cudarc's binding looks for the name of the package for developers alone.
//!
//! One thread drives each GPU. A GPU that fails would leave the others in a sum for ever, so whoever notices [gives
//! up](Group::give_up) for all: the communicators are aborted, and what waits ends.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use libloading::Library;

use super::driver::{Gpu, GpuFacts, find_all};
use super::kernels::Precision;
use crate::error::{Error, Result};
use crate::lock::lock;

/// Names and places of the library.
const LIBRARIES: [&str; 4] =
    ["libnccl.so.2", "libnccl.so", "/usr/lib/x86_64-linux-gnu/libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2"];

/// `ncclFloat32` and `ncclBfloat16` of `ncclDataType_t`, and `ncclSum` of `ncclRedOp_t`.
const FLOAT32: c_int = 7;
const BFLOAT16: c_int = 9;
const SUM: c_int = 0;

/// `ncclComm_t`.
type Communicator = *mut c_void;

/// The functions that are called; each returns a `ncclResult_t`, 0 if it worked.
#[derive(Debug)]
struct Nccl {
    init_all: unsafe extern "C" fn(*mut Communicator, c_int, *const c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Communicator, *mut c_void) -> c_int,
    destroy: unsafe extern "C" fn(Communicator) -> c_int,
    abort: unsafe extern "C" fn(Communicator) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Nccl {
    /// Loads the library, which is never closed: threads of its own run in it.
    fn load() -> Result<Self> {
        // SAFETY: NCCL's initialisers have no preconditions.
        let library = LIBRARIES.iter().find_map(|name| unsafe { Library::new(Path::new(name)) }.ok());
        let missing = "CUDA's library libnccl.so.2 is not there, which a model that is split over GPUs needs: install NCCL, or put \
                       its folder on LD_LIBRARY_PATH";
        let library: &'static Library = Box::leak(Box::new(library.ok_or_else(|| Error::Device(missing.to_owned()))?));
        let lacks = |name: &str| Error::Device(format!("CUDA's library libnccl has no {name}: it is too old"));
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of the function in nccl.h, the same since NCCL 2.4.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| lacks($name))?
            };
        }
        Ok(Nccl {
            init_all: function!("ncclCommInitAll"),
            all_reduce: function!("ncclAllReduce"),
            destroy: function!("ncclCommDestroy"),
            abort: function!("ncclCommAbort"),
            error_string: function!("ncclGetErrorString"),
        })
    }

    /// Turns a result into an error that says what failed.
    fn check(&self, what: &str, result: c_int) -> Result<()> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: any number may be asked for, and the text is the library's own for as long as it is loaded.
        let said = unsafe { CStr::from_ptr((self.error_string)(result)) }.to_string_lossy();
        Err(Error::Device(format!("{what}: {said} (NCCL result {result}; NCCL_DEBUG=INFO says more)")))
    }
}

/// Looks for all GPUs of the machine, to split models over. Fails with a sentence if there is none, if one of them cannot be used,
/// or if there are several and NCCL is not there.
pub fn find_split() -> Result<Vec<GpuFacts>> {
    let gpus = find_all()?;
    if gpus.len() > 1 {
        Nccl::load()?;
    }
    Ok(gpus)
}

/// GPUs that share a model.
pub(super) struct Group {
    nccl: Nccl,
    gpus: Vec<Arc<Gpu>>,
    /// By rank; none once the group is lost.
    communicators: Vec<Mutex<Option<Owned>>>,
    /// Why the group was given up.
    cause: Mutex<Option<Error>>,
}

/// A communicator that belongs to its group.
struct Owned(Communicator);

// SAFETY: a communicator may be used by any thread, one at a time, which the group's locks see to.
unsafe impl Send for Owned {}

/// One GPU's place in a group.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    group: Arc<Group>,
    rank: usize,
}

impl Group {
    /// Connects GPUs, one rank each. Fails with a sentence if NCCL is not there or cannot connect them.
    pub(super) fn connect(gpus: Vec<Arc<Gpu>>) -> Result<Arc<Self>> {
        let nccl = Nccl::load()?;
        let ordinals: Vec<c_int> = gpus.iter().map(|gpu| gpu.facts().ordinal as c_int).collect();
        let mut communicators = vec![std::ptr::null_mut(); gpus.len()];
        // SAFETY: both arrays have as many entries as there are GPUs.
        let connected = unsafe { (nccl.init_all)(communicators.as_mut_ptr(), ordinals.len() as c_int, ordinals.as_ptr()) };
        nccl.check("connecting GPUs", connected)?;
        let communicators = communicators.into_iter().map(|communicator| Mutex::new(Some(Owned(communicator)))).collect();
        Ok(Arc::new(Group { nccl, gpus, communicators, cause: Mutex::new(None) }))
    }

    /// Returns the place of each GPU, in their order.
    pub(super) fn peers(self: &Arc<Self>) -> Vec<Peer> {
        (0..self.gpus.len()).map(|rank| Peer { group: Arc::clone(self), rank }).collect()
    }

    /// Ends all sums, those under way with values that mean nothing: a GPU will not do its part. Later ones fail.
    pub(super) fn give_up(&self, cause: &Error) {
        lock(&self.cause).get_or_insert_with(|| cause.clone());
        for communicator in &self.communicators {
            if let Some(Owned(communicator)) = lock(communicator).take() {
                // SAFETY: nobody else has the communicator any more. Nothing is left to do if that fails too.
                let _ = unsafe { (self.nccl.abort)(communicator) };
            }
        }
    }

    /// Returns why the group was given up.
    pub(super) fn cause(&self) -> Option<Error> {
        lock(&self.cause).clone()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let waited = self.gpus.iter().all(|gpu| gpu.bind().and_then(|()| gpu.synchronize()).is_ok());
        for communicator in &mut self.communicators {
            let owned = communicator.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            if let Some(Owned(communicator)) = owned {
                let end = if waited { self.nccl.destroy } else { self.nccl.abort };
                // SAFETY: the communicator is the group's, and nothing uses it.
                let _ = unsafe { end(communicator) };
            }
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("gpus", &self.gpus).finish_non_exhaustive()
    }
}

impl Peer {
    /// Returns whether this GPU is the first of its group.
    pub(super) fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Replaces `count` activations at `x` by their sums over all GPUs of the group, after what was launched before. Every GPU gets
    /// the same bits, and each must be asked for the same sums in the same order.
    ///
    /// # Safety
    ///
    /// `x` must be the address of `count` activations of this GPU, until its stream has passed the sum.
    pub(super) unsafe fn sum(&self, x: u64, count: usize, precision: Precision) -> Result<()> {
        let Group { nccl, gpus, communicators, cause } = self.group.as_ref();
        let kind = match precision {
            Precision::Bf16 | Precision::Fp8 => BFLOAT16,
            Precision::F32 => FLOAT32,
        };
        let communicator = lock(&communicators[self.rank]);
        let Some(Owned(communicator)) = &*communicator else {
            let lost = || Error::Device("the GPUs that share the model have lost each other".to_owned());
            return Err(lock(cause).clone().unwrap_or_else(lost));
        };
        let stream = gpus[self.rank].stream().cast();
        // SAFETY: the communicator is alive while its lock is held; memory is the caller's promise.
        let summed =
            unsafe { (nccl.all_reduce)(x as *const c_void, x as *mut c_void, count, kind, SUM, *communicator, stream) };
        nccl.check("summing over GPUs", summed)
    }
}
