//! Matrix products by cuBLASLt, with a cache of its plans.
//!
//! Every product is `y[m, n] = x[m, k] * w[n, k]^T (+ y) (+ bias)`. cuBLASLt thinks in columns, so it is told that `w` is a
//! transposed matrix `a` and `x` a matrix `b`, and gives `y` as its columns.
//!
//! In FP8 `x` and `w` are e4m3, and each of their rows has a scale. cuBLASLt of CUDA 12.9 and later applies them on Hopper; where it
//! does not, it gives the sums alone, and a kernel of our own does the rest.
//!
//! Which algorithm is the fastest depends on the chip and the library, so the ones that matter most are timed when a device is
//! opened, and remembered on disk.
//!
//! An algorithm sums in an order of its own, and which one is chosen depends on the number of rows. Where a row's bits are not to
//! depend on its company, one algorithm does a product for any number of rows, and none that splits sums over blocks.
//!
//! Shapes are rounded: `m` up to one of a few sizes, so that plans are few and no product meets an odd size at which the library
//! falls off a cliff. The rows between are computed from whatever the buffers hold and read by nobody.

use std::ffi::c_void;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ahash::AHashMap;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtEpilogue_t, cublasLtGetVersion, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulAlgoCheck, cublasLtMatmulAlgoGetHeuristic, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as DescAttribute, cublasLtMatmulHeuristicResult_t, cublasLtMatmulMatrixScale_t,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cublasLtMatrixLayout_t, cudaDataType,
};
use serde::{Deserialize, Serialize};

use super::driver::{Arg, Buffer, Gpu, Kernel, Size};
use super::forward::FP8_THREADS;
use super::kernels::{Kernels, Precision};
use crate::error::{Error, Result};

/// Scratch memory that the library may use: what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// `CUBLAS_OP_T` of `cublasOperation_t`.
const TRANSPOSED: i32 = 1;

/// `CUBLASLT_REDUCTION_SCHEME_NONE` and `CUBLASLT_REDUCTION_SCHEME_MASK`: how sums that were split may be put together.
const NO_SPLIT: u32 = 0;
const ANY_SPLIT: u32 = 7;

/// Plans that are timed against each other.
const CANDIDATES: usize = 8;

/// One product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    /// Rows of `x` and `y` that are wanted. All buffers have room for [`padded`]`(m)`.
    pub(super) m: usize,
    /// Rows of `w`.
    pub(super) n: usize,
    /// Width of `x` and `w`.
    pub(super) k: usize,
    /// Address of `x`.
    pub(super) x: u64,
    /// Address of `w`.
    pub(super) w: u64,
    /// Address of `y`.
    pub(super) y: u64,
    /// Address of `n` values that are added to each row of `y`, or 0.
    pub(super) bias: u64,
    /// Whether the product is added to what `y` holds.
    pub(super) accumulate: bool,
    /// Whether `y` is in single precision whatever `x` is.
    pub(super) wide: bool,
    /// The scales of rows, where `x` and `w` are in FP8.
    pub(super) scales: Option<RowScales>,
}

/// Addresses of what the rows of FP8 matrices are multiplied by, in single precision.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowScales {
    /// `[`[`padded`]`(m)]`.
    pub(super) x: u64,
    /// `[n]`.
    pub(super) w: u64,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Key {
    m: usize,
    n: usize,
    k: usize,
    bias: bool,
    accumulate: bool,
    wide: bool,
    fp8: bool,
}

impl Key {
    fn of(product: Product) -> Self {
        let Product { m, n, k, bias, accumulate, wide, scales, x: _, w: _, y: _ } = product;
        Key { m: padded(m), n, k, bias: bias != 0, accumulate, wide, fp8: scales.is_some() }
    }
}

/// Descriptors and algorithm of a product.
struct Plan {
    operation: cublasLtMatmulDesc_t,
    /// Layouts of `a` (the weights), `b` (the inputs) and the output.
    layouts: [cublasLtMatrixLayout_t; 3],
    algorithm: cublasLtMatmulAlgo_t,
}

/// The fastest algorithm for a product, as it is remembered on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Timed {
    key: Key,
    /// The library's own description.
    algorithm: [u64; 8],
    milliseconds: f32,
}

/// Algorithms that were timed on this chip with this version of the library.
#[derive(Debug, Default)]
struct Timings {
    /// Where they are remembered, if anywhere.
    file: Option<PathBuf>,
    known: Vec<Timed>,
}

/// A handle of the library and the plans that were made.
pub(super) struct Gemm {
    gpu: Arc<Gpu>,
    handle: cublasLtHandle_t,
    precision: Precision,
    workspace: Buffer<u8>,
    plans: AHashMap<Key, Plan>,
    timings: Timings,
    /// Where set, the bits of a row do not depend on the others: algorithms are those that the library thinks best for so many
    /// rows, for any number of them.
    invariant_rows: Option<usize>,
    /// Where the library does not apply the scales of rows.
    scaling: Option<Scaling>,
}

/// What applies the scales of rows to sums that the library gives.
#[derive(Debug)]
struct Scaling {
    scale_product: Kernel,
    /// Sums of a product that is added to what its target holds, as activations.
    sums: Buffer<u8>,
}

// SAFETY: the handle and the descriptors are used by whoever owns the value alone.
unsafe impl Send for Gemm {}

/// Returns the number of rows that a product of `m` rows computes.
pub(super) fn padded(m: usize) -> usize {
    match m {
        0..=16 => m.next_multiple_of(8),
        17..=64 => m.next_multiple_of(16),
        65..=256 => m.next_multiple_of(32),
        257..=1024 => m.next_multiple_of(64),
        _ => m.next_multiple_of(128),
    }
}

/// Returns the numbers of rows that products of up to `m` rows compute, in rising order.
pub(super) fn padded_sizes(m: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(padded(1)), |size| Some(padded(size + 1))).take_while(move |size| *size <= padded(m))
}

impl Gemm {
    /// Opens the library. What was timed before is looked up in `cache`. Products in FP8 that are added to what their target holds
    /// have up to `sums` values.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        kernels: &Kernels,
        precision: Precision,
        cache: Option<&Path>,
        sums: usize,
    ) -> Result<Self> {
        gpu.bind()?;
        let handle = result::create_handle().map_err(|e| fault("opening cuBLASLt", e))?;
        let workspace = gpu.allocate(WORKSPACE_BYTES)?;
        // SAFETY: has no preconditions.
        let version = unsafe { cublasLtGetVersion() };
        let timings = Timings::open(cache, &format!("{} cuBLASLt {version} {precision:?}", gpu.facts().name));
        let (gpu, plans) = (Arc::clone(gpu), AHashMap::new());
        let mut gemm = Gemm { gpu, handle, precision, workspace, plans, timings, invariant_rows: None, scaling: None };
        if precision == Precision::Fp8 && !gemm.scales_rows()? {
            gemm.scale_apart(kernels, sums)?;
        }
        Ok(gemm)
    }

    /// Returns whether the library applies the scales of rows on this chip. It says so at a product, and not before.
    pub(super) fn scales_rows(&self) -> Result<bool> {
        const SIDE: usize = 64;
        // Zeros, and none of the products below reads what it writes but to add to it.
        let memory = self.gpu.allocate::<u8>(8 * SIDE * SIDE)?;
        memory.fill(0)?;
        let at = |place: usize| memory.at(place * SIDE * SIDE);
        let product = Product {
            m: SIDE,
            n: SIDE,
            k: SIDE,
            x: at(0),
            w: at(1),
            y: at(2),
            bias: 0,
            accumulate: true,
            wide: false,
            scales: Some(RowScales { x: at(6), w: at(7) }),
        };
        let runs = |product: Product| {
            let Ok(plan) = self.plan(product) else { return false };
            // SAFETY: all places have room for 4 KiB, of which the output takes at most four.
            let ran = unsafe { self.launch(&plan, &plan.algorithm, product) }.is_ok();
            plan.destroy();
            ran
        };
        let all = runs(product) && runs(Product { bias: at(6), accumulate: false, ..product });
        self.gpu.synchronize()?;
        Ok(all)
    }

    /// From now on applies the scales of rows by a kernel.
    pub(super) fn scale_apart(&mut self, kernels: &Kernels, sums: usize) -> Result<()> {
        let scale_product = kernels.get("fp8", "scale_product", 0)?;
        let sums = self.gpu.allocate::<u8>(sums * self.precision.bytes())?;
        self.scaling = Some(Scaling { scale_product, sums });
        Ok(())
    }

    /// From now on, the bits of a row do not depend on the others of its product. Algorithms are the best ones for `rows` rows.
    pub(super) fn invariant(mut self, rows: usize) -> Self {
        self.invariant_rows = Some(rows);
        self
    }

    /// Launches a product.
    ///
    /// # Safety
    ///
    /// The addresses must be of memory of the sizes that [`Product`] names, until the stream has passed it.
    pub(super) unsafe fn run(&mut self, product: Product) -> Result<()> {
        if product.m == 0 {
            return Ok(());
        }
        let whole = product;
        let product = self.of_library(product);
        let key = Key::of(product);
        if !self.plans.contains_key(&key) {
            let plan = self.plan(product)?;
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        self.point(plan, product)?;
        // SAFETY: the plan was made for these sizes; the addresses are the caller's promise.
        unsafe { self.launch(plan, &plan.algorithm, product) }.map_err(|e| fault("a matrix product", e))?;
        let (Some(scaling), Some(scales)) = (&self.scaling, whole.scales) else { return Ok(()) };
        let args: [Arg; 7] = [
            product.y.into(),
            whole.y.into(),
            scales.x.into(),
            scales.w.into(),
            whole.bias.into(),
            whole.n.into(),
            i32::from(whole.accumulate).into(),
        ];
        // SAFETY: the kernel's parameters in their order, for `m` rows of the product's memory.
        unsafe { self.gpu.launch(scaling.scale_product, Size::of(whole.m, FP8_THREADS), &args) }
    }

    /// Returns what the library computes of a product: all of it, or only its sums.
    fn of_library(&self, product: Product) -> Product {
        match &self.scaling {
            Some(scaling) if product.scales.is_some() => {
                let y = if product.accumulate { scaling.sums.at(0) } else { product.y };
                Product { y, bias: 0, accumulate: false, ..product }
            }
            _ => product,
        }
    }

    /// Sets what differs between products of one plan, besides the matrices.
    fn point(&self, plan: &Plan, product: Product) -> Result<()> {
        // SAFETY: the descriptor is the plan's; the attributes are pointers.
        unsafe {
            if product.bias != 0 {
                set(plan.operation, DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product.bias)?;
            }
            if let (Some(scales), None) = (product.scales, &self.scaling) {
                set(plan.operation, DescAttribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &scales.w)?;
                set(plan.operation, DescAttribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &scales.x)?;
            }
        }
        Ok(())
    }

    /// # Safety
    ///
    /// As [`run`](Self::run), and the plan must be for the product.
    unsafe fn launch(&self, plan: &Plan, algorithm: &cublasLtMatmulAlgo_t, product: Product) -> Result<(), CublasError> {
        let (one, beta) = (1.0f32, if product.accumulate { 1.0f32 } else { 0.0 });
        let [a, b, c] = plan.layouts;
        // SAFETY: descriptors are alive, scalars are read before the call returns, and memory is the caller's promise.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&beta).cast(),
                product.w as *const c_void,
                a,
                product.x as *const c_void,
                b,
                product.y as *const c_void,
                c,
                product.y as *mut c_void,
                c,
                algorithm,
                self.workspace.at(0) as *mut c_void,
                WORKSPACE_BYTES,
                self.gpu.stream().cast(),
            )
        }
    }

    /// Describes a product and takes the library's first choice of algorithm.
    fn plan(&self, product: Product) -> Result<Plan> {
        let plan = self.describe(product)?;
        let chosen = match self.invariant_rows {
            None => self.candidates(&plan, Key::of(product)).map(|found| found[0].algo),
            Some(rows) => self.algorithm_for_any_rows(product, rows),
        };
        match chosen {
            Ok(algorithm) => Ok(Plan { algorithm, ..plan }),
            Err(error) => {
                plan.destroy();
                Err(error)
            }
        }
    }

    /// Returns the algorithm for a product whatever its rows: of those that the library thinks best for `rows` of them, the first
    /// that also does a few.
    fn algorithm_for_any_rows(&self, product: Product, rows: usize) -> Result<cublasLtMatmulAlgo_t> {
        let of_rows = |m| Product { m, ..product };
        let (many, few) = (self.describe(of_rows(rows))?, self.describe(of_rows(1))?);
        let found = self.candidates(&many, Key::of(of_rows(rows)))?;
        let [a, b, c] = few.layouts;
        let does_few = |algorithm: &cublasLtMatmulAlgo_t| {
            // SAFETY: all descriptors are alive, and there is room for the result.
            unsafe {
                let mut result = std::mem::zeroed::<cublasLtMatmulHeuristicResult_t>();
                let checked =
                    cublasLtMatmulAlgoCheck(self.handle, few.operation, a, b, c, c, algorithm, &mut result).result();
                checked.is_ok() && result.state.result().is_ok()
            }
        };
        let algorithm = found.iter().map(|found| found.algo).find(does_few);
        many.destroy();
        few.destroy();
        let none = || format!("cuBLASLt has no product of {} x {} for any number of rows", product.n, product.k);
        algorithm.ok_or_else(|| Error::Device(none()))
    }

    /// Times the library's candidates for a product and keeps the fastest, unless that was done before. `weights` are the addresses
    /// of matrices of its shape that take turns, so that none is found in the GPU's cache. Returns the milliseconds of one run.
    ///
    /// # Safety
    ///
    /// As [`run`](Self::run), for each of the weights.
    pub(super) unsafe fn tune(&mut self, product: Product, weights: &[u64]) -> Result<f32> {
        let product = self.of_library(product);
        let key = Key::of(product);
        let mut plan = self.describe(product)?;
        if let Some(Timed { algorithm, milliseconds, .. }) = self.timings.find(key) {
            plan.algorithm = cublasLtMatmulAlgo_t { data: *algorithm };
            let milliseconds = *milliseconds;
            // What the file says may be damaged, and is tried before it is believed.
            // SAFETY: the caller's promise.
            let works = unsafe { self.launch(&plan, &plan.algorithm, Product { w: weights[0], ..product }) }.is_ok();
            if works {
                self.keep(key, plan);
                return Ok(milliseconds);
            }
        }
        let found = self.candidates(&plan, key)?;
        let (start, end) = (self.gpu.timed_event()?, self.gpu.timed_event()?);
        let mut best = (f32::INFINITY, found[0].algo);
        for candidate in &found {
            let mut time = f32::INFINITY;
            for _ in 0..3 {
                self.gpu.record(&start)?;
                let mut failed = false;
                for &w in weights {
                    // SAFETY: the caller's promise.
                    failed |= unsafe { self.launch(&plan, &candidate.algo, Product { w, ..product }) }.is_err();
                }
                self.gpu.record(&end)?;
                end.wait()?;
                if !failed {
                    time = time.min(start.milliseconds_to(&end)? / weights.len() as f32);
                }
            }
            if time < best.0 {
                best = (time, candidate.algo);
            }
        }
        plan.algorithm = best.1;
        self.timings.add(Timed { key, algorithm: best.1.data, milliseconds: best.0 });
        self.keep(key, plan);
        Ok(best.0)
    }

    fn keep(&mut self, key: Key, plan: Plan) {
        if let Some(old) = self.plans.insert(key, plan) {
            old.destroy();
        }
    }

    /// Remembers on disk what was timed. A cache that cannot be written is only slower.
    pub(super) fn save_timings(&self) {
        let _ = self.timings.save();
    }

    fn describe(&self, product: Product) -> Result<Plan> {
        let key = Key::of(product);
        let failed = |e| fault(&format!("planning a product of {} x {} x {}", key.m, key.n, key.k), e);
        let (narrow, wide) = (data_type(self.precision), cudaDataType::CUDA_R_32F);
        let output = if key.wide { wide } else { narrow };
        let input = if key.fp8 { cudaDataType::CUDA_R_8F_E4M3 } else { narrow };
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let operation = result::create_matmul_desc(compute, wide).map_err(failed)?;
        let layout = |kind, rows: usize, columns: usize| {
            result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64).map_err(failed)
        };
        let layouts = [layout(input, key.k, key.n)?, layout(input, key.k, key.m)?, layout(output, key.n, key.m)?];
        let plan = Plan { operation, layouts, algorithm: cublasLtMatmulAlgo_t { data: [0; 8] } };
        // SAFETY: the descriptor is alive and each attribute has the type that the library's manual gives it.
        let described = unsafe { self.describe_operation(operation, key) }.and_then(|()| self.point(&plan, product));
        match described {
            Ok(()) => Ok(plan),
            Err(error) => {
                plan.destroy();
                Err(error)
            }
        }
    }

    /// # Safety
    ///
    /// The operation must be alive.
    unsafe fn describe_operation(&self, operation: cublasLtMatmulDesc_t, key: Key) -> Result<()> {
        // SAFETY: each attribute has the type that the library's manual gives it; the rest is the caller's promise.
        unsafe {
            set(operation, DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
            if key.bias {
                set(operation, DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            }
            if key.fp8 {
                // The matrix units' own sums, as other engines take them: their error is small beside that of e4m3 itself.
                set(operation, DescAttribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &1i8)?;
            }
            if key.fp8 && self.scaling.is_none() {
                let rows = cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
                set(operation, DescAttribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &rows)?;
                set(operation, DescAttribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &rows)?;
            }
        }
        Ok(())
    }

    /// Returns the algorithms that the library thinks best, best first; at least one.
    fn candidates(&self, plan: &Plan, key: Key) -> Result<Vec<cublasLtMatmulHeuristicResult_t>> {
        let failed = |e| fault(&format!("planning a product of {} x {} x {}", key.m, key.n, key.k), e);
        let preference = result::create_matmul_pref().map_err(failed)?;
        let [a, b, c] = plan.layouts;
        // SAFETY: all descriptors are alive, and there is room for as many results as are asked for.
        let found = unsafe {
            // What splits sums over blocks needs scratch memory, or puts them together in the output.
            let bytes = if self.invariant_rows.is_some() { 0 } else { WORKSPACE_BYTES };
            let limit = PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let limited =
                result::set_matmul_pref_attribute(preference, limit, std::ptr::from_ref(&bytes).cast(), size_of::<usize>());
            let schemes = if self.invariant_rows.is_some() { NO_SPLIT } else { ANY_SPLIT };
            let splits = PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
            let limited = limited.and_then(|()| {
                result::set_matmul_pref_attribute(preference, splits, std::ptr::from_ref(&schemes).cast(), size_of::<u32>())
            });
            let mut found = vec![std::mem::zeroed::<cublasLtMatmulHeuristicResult_t>(); CANDIDATES];
            let mut count = 0;
            let asked = limited.and_then(|()| {
                cublasLtMatmulAlgoGetHeuristic(
                    self.handle,
                    plan.operation,
                    a,
                    b,
                    c,
                    c,
                    preference,
                    CANDIDATES as i32,
                    found.as_mut_ptr(),
                    &mut count,
                )
                .result()
            });
            let _ = result::destroy_matmul_pref(preference);
            asked.map_err(failed)?;
            found.truncate(count as usize);
            found
        };
        let usable: Vec<_> = found.into_iter().filter(|found| found.state.result().is_ok()).collect();
        if usable.is_empty() {
            return Err(Error::Device(format!("cuBLASLt has no product of {} x {} x {}", key.m, key.n, key.k)));
        }
        Ok(usable)
    }
}

impl Timings {
    /// Reads what is known of `subject`: a chip, a version of the library and a precision. A file that cannot be read is none.
    fn open(folder: Option<&Path>, subject: &str) -> Self {
        let name = blake3::hash(subject.as_bytes()).to_hex();
        let file = folder.map(|folder| folder.join(format!("products-{}.json", &name[..16])));
        let text = file.as_ref().and_then(|file| fs::read(file).ok());
        let known = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Timings { file, known }
    }

    fn find(&self, key: Key) -> Option<&Timed> {
        self.known.iter().find(|timed| timed.key == key)
    }

    fn add(&mut self, timed: Timed) {
        self.known.retain(|known| known.key != timed.key);
        self.known.push(timed);
    }

    /// Writes the file, which appears whole or not at all.
    fn save(&self) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let part = super::kernels::part_of(file);
        fs::write(&part, serde_json::to_vec(&self.known)?)?;
        fs::rename(&part, file)
    }
}

impl Plan {
    fn destroy(self) {
        // SAFETY: the descriptors are the plan's, which ends here.
        unsafe {
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.operation);
        }
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            let _ = self.gpu.synchronize();
            for (_, plan) in self.plans.drain() {
                plan.destroy();
            }
            // SAFETY: nothing uses the handle any more.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}

impl fmt::Debug for Gemm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gemm").field("precision", &self.precision).field("plans", &self.plans.len()).finish_non_exhaustive()
    }
}

fn data_type(precision: Precision) -> cudaDataType {
    match precision {
        Precision::Bf16 | Precision::Fp8 => cudaDataType::CUDA_R_16BF,
        Precision::F32 => cudaDataType::CUDA_R_32F,
    }
}

/// Sets an attribute of an operation.
///
/// # Safety
///
/// The operation must be alive, and `T` the type of the attribute.
unsafe fn set<T>(operation: cublasLtMatmulDesc_t, attribute: DescAttribute, value: &T) -> Result<()> {
    // SAFETY: the caller's promise; the value is copied.
    unsafe { result::set_matmul_desc_attribute(operation, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
        .map_err(|e| fault("describing a matrix product", e))
}

fn fault(what: &str, error: CublasError) -> Error {
    Error::Device(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_timed_is_found_again_for_the_same_chip_alone() {
        let folder = tempfile::tempdir().unwrap();
        let key = |m| Key { m, n: 64, k: 32, bias: false, accumulate: true, wide: false, fp8: false };
        let timed = |m, milliseconds| Timed { key: key(m), algorithm: [m as u64; 8], milliseconds };
        let mut timings = Timings::open(Some(folder.path()), "one");
        [timed(8, 1.0), timed(16, 2.0), timed(8, 0.5)].into_iter().for_each(|timed| timings.add(timed));
        timings.save().unwrap();
        let again = Timings::open(Some(folder.path()), "one");
        assert_eq!((again.find(key(8)), again.find(key(16))), (Some(&timed(8, 0.5)), Some(&timed(16, 2.0))));
        assert_eq!(again.find(key(24)), None);
        assert_eq!(Timings::open(Some(folder.path()), "other").find(key(8)), None);
        fs::write(again.file.unwrap(), "{").unwrap();
        assert_eq!(Timings::open(Some(folder.path()), "one").find(key(8)), None);
        assert!(Timings::open(None, "one").save().is_ok());
    }

    #[test]
    fn rows_are_rounded_up_by_little() {
        for m in 1..20_000 {
            let rounded = padded(m);
            assert!(rounded >= m && rounded - m < (m / 2).max(16), "{m} to {rounded}");
            assert!(padded(rounded) == rounded);
        }
        let sizes: Vec<_> = padded_sizes(1100).collect();
        assert!(sizes.starts_with(&[8, 16, 32]) && sizes.ends_with(&[1024, 1152]), "{sizes:?}");
        assert!((1..1100).all(|m| sizes.contains(&padded(m))));
    }
}
