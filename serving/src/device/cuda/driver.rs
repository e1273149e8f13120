//! One GPU: its context, stream, memory, kernels and events.
//!
//! Everything runs on one stream, in the order of the calls. Memory is taken when a device is opened and freed when it is
//! dropped, never in between, so that nothing in a step waits for an allocation.

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUevent_flags, CUfunction, CUfunction_attribute, CUmodule};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};

use crate::error::{Error, Result};

/// Where CUDA's libraries lie when they are not on the loader's path.
const LIBRARY_FOLDERS: [&str; 4] =
    ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib", "/opt/cuda/lib64", "/usr/lib/x86_64-linux-gnu"];

/// A GPU that is in use.
pub(super) struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    facts: GpuFacts,
}

/// What a GPU says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFacts {
    /// Its number on this machine.
    pub ordinal: u32,
    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Bytes of its memory.
    pub memory: usize,
    /// Its compute capability, such as `(9, 0)`.
    pub capability: (u32, u32),
    /// Its multiprocessors.
    pub multiprocessors: u32,
}

impl fmt::Display for GpuFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}, {}, {} GiB", self.ordinal, self.name, self.memory >> 30)
    }
}

/// Looks for a GPU. Fails with a sentence that says what is missing.
pub fn find(ordinal: u32) -> Result<GpuFacts> {
    Ok(open_context(ordinal)?.1)
}

/// Looks for all GPUs of the machine. Fails with a sentence if there is none, or if one of them cannot be used.
pub fn find_all() -> Result<Vec<GpuFacts>> {
    let first = find(0)?;
    let count = CudaContext::device_count().map_err(|e| fault("counting GPUs", e))?;
    std::iter::once(Ok(first)).chain((1..count as u32).map(find)).collect()
}

/// Returns whether the compiler of kernels can be loaded.
#[cfg(test)]
pub(super) fn has_compiler() -> bool {
    // SAFETY: as in `open_context`.
    unsafe { has_library("libnvrtc.so", || cudarc::nvrtc::sys::is_culib_present()) }
}

fn open_context(ordinal: u32) -> Result<(Arc<CudaContext>, GpuFacts)> {
    // SAFETY: opens libraries of CUDA, whose initialisers have no preconditions.
    let (driver, gemm, compiler) = unsafe {
        (
            sys::is_culib_present(),
            has_library("libcublasLt.so", || cudarc::cublaslt::sys::is_culib_present()),
            has_library("libnvrtc.so", || cudarc::nvrtc::sys::is_culib_present()),
        )
    };
    let missing = [
        (driver, "the driver's library libcuda.so is not there: install the NVIDIA driver"),
        (
            gemm,
            "CUDA's library libcublasLt is not there: install the CUDA 12 or 13 runtime, or put its folder on LD_LIBRARY_PATH",
        ),
        (
            compiler,
            "CUDA's library libnvrtc is not there: install the CUDA 12 or 13 runtime, or put its folder on LD_LIBRARY_PATH",
        ),
    ];
    if let Some((_, missing)) = missing.iter().find(|(present, _)| !present) {
        return Err(Error::Device(format!("no GPU can be used: {missing}")));
    }
    let count = result::init().and_then(|()| CudaContext::device_count()).map_err(|e| fault("counting GPUs", e))?;
    if ordinal as i64 >= i64::from(count) {
        return Err(Error::Device(format!("there is no GPU number {ordinal}: the machine shows {count}")));
    }
    let context = CudaContext::new(ordinal as usize).map_err(|e| fault("opening the GPU", e))?;
    let facts = facts(&context, ordinal).map_err(|e| fault("asking the GPU what it is", e))?;
    if facts.capability < (8, 0) {
        let (major, minor) = facts.capability;
        return Err(Error::Device(format!(
            "{} has compute capability {major}.{minor}; 8.0 (Ampere) or later is needed",
            facts.name
        )));
    }
    Ok((context, facts))
}

fn facts(context: &CudaContext, ordinal: u32) -> Result<GpuFacts, DriverError> {
    let (major, minor) = context.compute_capability()?;
    Ok(GpuFacts {
        ordinal,
        name: context.name()?,
        memory: context.total_mem()?,
        capability: (major as u32, minor as u32),
        multiprocessors: context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
    })
}

/// Returns whether a library can be loaded: from the loader's path, or else from where CUDA is usually installed.
fn has_library(name: &str, present: impl Fn() -> bool) -> bool {
    if present() {
        return true;
    }
    // A library that was opened by its full path is found by its name from then on.
    let files =
        LIBRARY_FOLDERS.iter().flat_map(|folder| [".13", ".12"].map(|end| Path::new(folder).join(format!("{name}{end}"))));
    // SAFETY: as in `open_context`. The library is never closed, since what it hands out may live on.
    let opened = files
        .filter(|file| file.exists())
        .any(|file| unsafe { libloading::Library::new(file) }.map(std::mem::forget).is_ok());
    opened && present()
}

impl Gpu {
    /// Opens a GPU. Fails with a sentence that says what is missing.
    pub(super) fn open(ordinal: u32) -> Result<Arc<Self>> {
        let (context, facts) = open_context(ordinal)?;
        // SAFETY: there is one stream, so nothing has to be ordered between streams.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|e| fault("making a stream", e))?;
        Ok(Arc::new(Gpu { context, stream, facts }))
    }

    /// Returns what the GPU says of itself.
    pub(super) fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    /// Makes the GPU current on the calling thread; to be called once by each thread that uses it.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| fault("entering the GPU's context", e))
    }

    /// Returns the bytes of memory that are free.
    pub(super) fn free_memory(&self) -> Result<usize> {
        self.context.mem_get_info().map(|(free, _)| free).map_err(|e| fault("asking for free memory", e))
    }

    /// Waits until everything that was launched has ended.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| fault("waiting for the GPU", e))
    }

    /// Returns the stream, for libraries that launch on it.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    /// Takes device memory for `len` values, whose content is not defined.
    pub(super) fn allocate<T: Plain>(self: &Arc<Self>, len: usize) -> Result<Buffer<T>> {
        self.bind()?;
        let bytes = (len * size_of::<T>()).max(16);
        // SAFETY: the context is current. The memory is freed by the buffer alone.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|_| {
            let free = self.free_memory().unwrap_or(0);
            Error::OutOfMemory(format!(
                "{} MiB are wanted of {}, which has {} MiB left",
                bytes >> 20,
                self.facts,
                free >> 20
            ))
        })?;
        Ok(Buffer { gpu: Arc::clone(self), address, len, values: PhantomData })
    }

    /// Takes device memory that holds `values`.
    pub(super) fn upload<T: Plain>(self: &Arc<Self>, values: &[T]) -> Result<Buffer<T>> {
        let buffer = self.allocate(values.len())?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Takes pinned memory for `len` values, all zero, which the host reads and writes as any other.
    pub(super) fn pinned<T: Plain>(self: &Arc<Self>, len: usize) -> Result<Pinned<T>> {
        self.bind()?;
        let bytes = (len * size_of::<T>()).max(16);
        // SAFETY: the context is current; flags 0 give memory that is cached, which the host may read.
        let address = unsafe { result::malloc_host(bytes, 0) }
            .map_err(|e| Error::OutOfMemory(format!("{} KiB of pinned memory: {e}", bytes >> 10)))?;
        // SAFETY: the memory has `bytes` bytes and nobody else knows of it.
        unsafe { std::ptr::write_bytes(address.cast::<u8>(), 0, bytes) };
        Ok(Pinned { gpu: Arc::clone(self), address: address.cast(), len })
    }

    /// Copies the first `len` values of pinned memory to the device, from `at` on, after what was launched before.
    ///
    /// # Safety
    ///
    /// The host must not write `from` before the copy has ended, which an event tells.
    pub(super) unsafe fn copy_in<T: Plain>(&self, from: &Pinned<T>, to: &Buffer<T>, at: usize, len: usize) -> Result<()> {
        assert!(len <= from.len && at + len <= to.len, "a copy stays within its memory");
        // SAFETY: both sides have `len` values, and the caller keeps `from` as it is.
        unsafe { result::memcpy_htod_async(to.at(at), &from[..len], self.stream()) }
            .map_err(|e| fault("copying to the GPU", e))
    }

    /// Copies the bytes of `len` values from the device to pinned memory, after what was launched before.
    ///
    /// # Safety
    ///
    /// The host must not touch the target before the copy has ended, which an event tells.
    pub(super) unsafe fn copy_out<T: Plain>(
        &self,
        from: &Buffer<T>,
        first: usize,
        to: &mut Pinned<T>,
        at: usize,
        len: usize,
    ) -> Result<()> {
        assert!(first + len <= from.len && at + len <= to.len, "a copy stays within its memory");
        let address = from.at(first);
        // SAFETY: both sides have `len` values, and the caller leaves `to` alone.
        unsafe { result::memcpy_dtoh_async(&mut to[at..at + len], address, self.stream()) }
            .map_err(|e| fault("copying from the GPU", e))
    }

    /// Sets an event after what was launched before.
    pub(super) fn record(&self, event: &Event) -> Result<()> {
        event.0.record(&self.stream).map_err(|e| fault("recording an event", e))
    }

    /// Makes an event that can tell how much time lies between it and another.
    pub(super) fn timed_event(&self) -> Result<Event> {
        self.new_event(CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// Makes an event that a thread sleeps for.
    pub(super) fn event(&self) -> Result<Event> {
        self.new_event(CUevent_flags::CU_EVENT_BLOCKING_SYNC)
    }

    fn new_event(&self, flags: CUevent_flags) -> Result<Event> {
        self.context.new_event(Some(flags)).map(Event).map_err(|e| fault("making an event", e))
    }

    /// Loads a compiled module.
    pub(super) fn load(self: &Arc<Self>, image: &[u8]) -> Result<Module> {
        self.bind()?;
        // SAFETY: a cubin is an ELF file, which carries its own length. `image` outlives the call.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(|e| fault("loading kernels", e))?;
        Ok(Module { gpu: Arc::clone(self), module })
    }

    /// Launches a kernel after what was launched before.
    ///
    /// # Safety
    ///
    /// `args` must be what the kernel takes, in number, order and type, and every address among them must be of memory that the
    /// kernel may use so far as its sizes say, until the stream has passed it.
    pub(super) unsafe fn launch(&self, kernel: Kernel, size: Size, args: &[Arg]) -> Result<()> {
        let Size { grid, block, shared } = size;
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        let mut params = [std::ptr::null_mut::<c_void>(); ARGS_MAX];
        for (param, arg) in params.iter_mut().zip(args) {
            *param = std::ptr::from_ref(&arg.0).cast_mut().cast();
        }
        // SAFETY: the kernel reads `args.len()` parameters, each at most 8 bytes; the rest is the caller's promise.
        unsafe {
            result::launch_kernel(
                kernel.0,
                (grid.0, grid.1, 1),
                (block, 1, 1),
                shared,
                self.stream(),
                &mut params[..args.len().min(ARGS_MAX)],
            )
        }
        .map_err(|e| fault("launching a kernel", e))
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// The most parameters of a kernel.
const ARGS_MAX: usize = 32;

/// How many threads run a kernel, and the dynamic shared memory of a block in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) grid: (u32, u32),
    pub(super) block: u32,
    pub(super) shared: u32,
}

impl Size {
    /// Blocks of `block` threads without dynamic shared memory.
    pub(super) fn of(blocks: usize, block: u32) -> Self {
        Size { grid: (blocks as u32, 1), block, shared: 0 }
    }
}

/// A parameter of a kernel: at most 8 bytes, little-endian, so that a narrower parameter is its beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arg(u64);

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Arg(value)
    }
}

impl From<usize> for Arg {
    /// For `int` and `long long` parameters.
    fn from(value: usize) -> Self {
        Arg(value as u64)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Arg(u64::from(value as u32))
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Arg(u64::from(value.to_bits()))
    }
}

impl<T> From<&Buffer<T>> for Arg {
    fn from(buffer: &Buffer<T>) -> Self {
        Arg(buffer.address)
    }
}

impl<T> From<Option<&Buffer<T>>> for Arg {
    /// No buffer is the null pointer.
    fn from(buffer: Option<&Buffer<T>>) -> Self {
        Arg(buffer.map_or(0, |buffer| buffer.address))
    }
}

/// Types that are plain bytes, the same on the host and the device.
///
/// # Safety
///
/// Every pattern of bits must be a value, and there must be no padding.
pub(super) unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($type:ty),*) => { $(
        // SAFETY: integers, floats and arrays of them.
        unsafe impl Plain for $type {}
    )* };
}
plain!(u8, u16, u32, i32, u64, f32, f64, [i32; 2], [i32; 4], [f32; 2], half::bf16);

/// Memory of the device for `len` values.
pub(super) struct Buffer<T> {
    gpu: Arc<Gpu>,
    address: u64,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// Returns how many values there is room for.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the address of a value.
    pub(super) fn at(&self, index: usize) -> u64 {
        self.address + (index * size_of::<T>()) as u64
    }

    /// Copies `values` to the place from `first` on, and waits until that is done.
    pub(super) fn write(&self, first: usize, values: &[T]) -> Result<()> {
        assert!(first + values.len() <= self.len, "a copy stays within its memory");
        self.gpu.bind()?;
        // Not ordered with the stream otherwise.
        self.gpu.synchronize()?;
        // SAFETY: there is room for the values, nothing that was launched uses it, and the copy has ended when the call returns.
        unsafe { result::memcpy_htod_sync(self.at(first), values) }.map_err(|e| fault("copying to the GPU", e))
    }

    /// Waits for what was launched and copies the values from `first` on.
    #[cfg(test)]
    pub(super) fn read(&self, first: usize, values: &mut [T]) -> Result<()> {
        assert!(first + values.len() <= self.len, "a copy stays within its memory");
        self.gpu.bind()?;
        self.gpu.synchronize()?;
        // SAFETY: as in `write`.
        unsafe { result::memcpy_dtoh_sync(values, self.at(first)) }.map_err(|e| fault("copying from the GPU", e))
    }

    /// Sets every byte, after what was launched before.
    pub(super) fn fill(&self, byte: u8) -> Result<()> {
        // SAFETY: the memory has that many bytes, and any bytes are values.
        unsafe { result::memset_d8_async(self.address, byte, self.len * size_of::<T>(), self.gpu.stream()) }
            .map_err(|e| fault("filling memory", e))
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: the memory is this buffer's, and freeing waits for the kernels that use it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} values)", self.len)
    }
}

/// Host memory that the device copies from and to by itself.
pub(super) struct Pinned<T> {
    gpu: Arc<Gpu>,
    address: *mut T,
    len: usize,
}

// SAFETY: the memory belongs to this value alone, as that of a `Vec` does.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T: Plain> std::ops::Deref for Pinned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values, which were zeroed at first; any bytes are values.
        unsafe { std::slice::from_raw_parts(self.address, self.len) }
    }
}

impl<T: Plain> std::ops::DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // A copy may still be under way.
            let _ = self.gpu.synchronize();
            // SAFETY: the memory is this value's.
            let _ = unsafe { result::free_host(self.address.cast()) };
        }
    }
}

impl<T> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} values)", self.len)
    }
}

/// A point in the stream.
#[derive(Debug)]
pub(super) struct Event(CudaEvent);

impl Event {
    /// Returns whether the stream has passed it. Fails if the device is lost.
    pub(super) fn is_past(&self) -> Result<bool> {
        self.0.try_is_complete().map_err(|e| fault("running a pass", e))
    }

    /// Waits until the stream has passed it.
    pub(super) fn wait(&self) -> Result<()> {
        self.0.synchronize().map_err(|e| fault("running a pass", e))
    }

    /// Returns the milliseconds from this event to a later one; both must be timed.
    pub(super) fn milliseconds_to(&self, later: &Event) -> Result<f32> {
        self.0.elapsed_ms(&later.0).map_err(|e| fault("timing", e))
    }
}

/// Loaded kernels.
pub(super) struct Module {
    gpu: Arc<Gpu>,
    module: CUmodule,
}

// SAFETY: a module is a handle that any thread may use.
unsafe impl Send for Module {}

impl Module {
    /// Returns a kernel, which may use up to `shared` bytes of dynamic shared memory. It lives as long as the module.
    pub(super) fn kernel(&self, name: &str, shared: u32) -> Result<Kernel> {
        self.gpu.bind()?;
        let c_name = std::ffi::CString::new(name).expect("names of kernels have no zero byte");
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.module, c_name) }
            .map_err(|e| Error::Device(format!("kernel {name} is not in its module: {e}")))?;
        // What a kernel has besides counts towards the limit that holds without this.
        if shared > 0 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, shared as i32) }
                .map_err(|e| Error::Device(format!("kernel {name} cannot have {shared} bytes of shared memory: {e}")))?;
        }
        Ok(Kernel(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            let _ = self.gpu.synchronize();
            // SAFETY: nothing runs, and kernels are used by whoever owns the module alone.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Module")
    }
}

/// A kernel of a module that is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel(CUfunction);

// SAFETY: a function is a handle that any thread may use.
unsafe impl Send for Kernel {}

/// Says what failed.
fn fault(what: &str, error: DriverError) -> Error {
    let said = error.error_string().ok().and_then(|text| text.to_str().ok()).unwrap_or("unknown error");
    Error::Device(format!("{what}: {said} ({:?})", error.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn memory_holds_what_was_written_to_it() {
        if let Err(reason) = find(0) {
            eprintln!("skipped: {reason}");
            return;
        }
        let gpu = Gpu::open(0).unwrap();
        let buffer = gpu.upload(&[1i32, 2, 3, 4, 5]).unwrap();
        buffer.write(3, &[40]).unwrap();
        let mut values = [0; 3];
        buffer.read(2, &mut values).unwrap();
        assert_eq!(values, [3, 40, 5]);
        buffer.fill(0xFF).unwrap();
        buffer.read(0, &mut values).unwrap();
        assert_eq!(values, [-1; 3]);
        let error = gpu.allocate::<u8>(1 << 50).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
    }
}
