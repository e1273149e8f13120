//! The kernels: their sources, compiled for the GPU at hand by NVRTC, and kept on disk by content.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use cudarc::nvrtc::{result as nvrtc, sys};

use super::driver::{Gpu, Kernel, Module};
use crate::error::{Error, Result};

/// What stands before every source: the type of activations, conversions, reductions.
const COMMON: &str = include_str!("kernels/common.cuh");

/// A file of kernels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) name: &'static str,
    text: &'static str,
}

macro_rules! sources {
    ($($name:literal),* $(,)?) => { &[$(Source { name: $name, text: include_str!(concat!("kernels/", $name, ".cu")) }),*] };
}

/// All files of kernels.
pub(super) const SOURCES: &[Source] = sources![
    "attention",
    "attention_simple",
    "bias",
    "embed",
    "fp8",
    "head",
    "norm",
    "pages",
    "random",
    "rope",
    "sample",
    "swiglu"
];

/// What activations, weights and pages are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// bfloat16, with sums in single precision: what the GPU's matrix units are made for.
    #[default]
    Bf16,
    /// IEEE single precision, also in products: to compare with, at a tenth of the speed.
    F32,
    /// bfloat16, but for the products of layers: their weights, and their inputs while they are multiplied, are of 8 bits (e4m3)
    /// with a scale for each row. Needs compute capability 8.9.
    Fp8,
}

impl Precision {
    /// Returns the bytes of an activation.
    pub(super) fn bytes(self) -> usize {
        match self {
            Precision::Bf16 | Precision::Fp8 => 2,
            Precision::F32 => 4,
        }
    }

    /// Returns the bytes of most weights.
    pub fn weight_bytes(self) -> u64 {
        match self {
            Precision::Bf16 => 2,
            Precision::F32 => 4,
            Precision::Fp8 => 1,
        }
    }

    /// Returns what activations are stored as: all that most kernels ask.
    pub(super) fn of_activations(self) -> Self {
        if self == Precision::Fp8 { Precision::Bf16 } else { self }
    }

    /// Returns its name: what `CREATE MODEL … WITH (dtype = …)` takes, and what the digests of models end in.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
            Precision::Fp8 => "fp8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = Error;

    /// Reads a name. Fails with a sentence that names all of them.
    fn from_str(text: &str) -> Result<Self> {
        let all = [Precision::Bf16, Precision::Fp8, Precision::F32];
        let found = all.into_iter().find(|precision| text.eq_ignore_ascii_case(precision.name()));
        found.ok_or_else(|| Error::Invalid(format!("expected bf16, fp8 or f32, not {text:?}")))
    }
}

/// All kernels of a precision, loaded.
#[derive(Debug)]
pub(super) struct Kernels {
    modules: Vec<(&'static str, Module)>,
}

impl Kernels {
    /// Loads all kernels, from `cache` where they were compiled before. Kernels are compiled side by side.
    pub(super) fn load(gpu: &Arc<Gpu>, precision: Precision, cache: Option<&Path>) -> Result<Self> {
        let architecture = architecture(gpu.facts().capability);
        let precision = precision.of_activations();
        let images: Vec<Result<Vec<u8>>> = std::thread::scope(|scope| {
            let compile = |source: &'static Source| {
                let architecture = architecture.as_str();
                scope.spawn(move || image(source, architecture, precision, cache))
            };
            let threads: Vec<_> = SOURCES.iter().map(compile).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<u8>>>| {
                thread.join().unwrap_or_else(|_| Err(Error::Device("compiling a kernel failed".to_string())))
            };
            threads.into_iter().map(join).collect()
        });
        let load = |(source, image): (&Source, Result<Vec<u8>>)| Ok((source.name, gpu.load(&image?)?));
        Ok(Kernels { modules: SOURCES.iter().zip(images).map(load).collect::<Result<_>>()? })
    }

    /// Returns a kernel of a file, which may use up to `shared` bytes of dynamic shared memory.
    pub(super) fn get(&self, file: &str, kernel: &str, shared: u32) -> Result<Kernel> {
        let module = self.modules.iter().find(|(name, _)| *name == file);
        let (_, module) = module.ok_or_else(|| Error::Device(format!("there is no file of kernels named {file}")))?;
        module.kernel(kernel, shared)
    }
}

/// Returns the name that NVRTC has for a compute capability. `a` adds what that one chip alone can do.
pub(super) fn architecture((major, minor): (u32, u32)) -> String {
    if (major, minor) == (9, 0) { "sm_90a".to_string() } else { format!("sm_{major}{minor}") }
}

/// Returns a compiled file: from `cache`, or else from the compiler, and then the cache has it.
fn image(source: &Source, architecture: &str, precision: Precision, cache: Option<&Path>) -> Result<Vec<u8>> {
    let Some(folder) = cache else { return compile(source, architecture, precision) };
    let mut content = blake3::Hasher::new();
    for part in [COMMON, source.text, architecture, &format!("{precision:?} {:?}", compiler_version())] {
        content.update(part.as_bytes()).update(&[0]);
    }
    let file = folder.join(format!("{}-{}.cubin", source.name, content.finalize().to_hex()));
    if let Ok(image) = fs::read(&file) {
        return Ok(image);
    }
    let image = compile(source, architecture, precision)?;
    // A cache that cannot be written is only slower. The file appears whole or not at all.
    let part = part_of(&file);
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&part, &image)).and_then(|()| fs::rename(&part, &file));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    Ok(image)
}

/// Names a file that is written before it takes the place of another: no other thread or process writes it.
pub(super) fn part_of(file: &Path) -> PathBuf {
    file.with_extension(format!("{}-{:?}.part", std::process::id(), std::thread::current().id()))
}

fn compiler_version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    (major, minor)
}

/// Compiles a file to machine code. Fails with the compiler's own words.
pub(super) fn compile(source: &Source, architecture: &str, precision: Precision) -> Result<Vec<u8>> {
    let failed = |what: &str| Error::Device(format!("compiling kernels {} for {architecture}: {what}", source.name));
    let text = CString::new(format!("{COMMON}\n#line 1 \"{}.cu\"\n{}", source.name, source.text));
    let text = text.map_err(|_| failed("the source has a zero byte"))?;
    let name = CString::new(source.name).expect("names have no zero byte");
    let program = nvrtc::create_program(&text, Some(&name)).map_err(|e| failed(&e.to_string()))?;
    let mut options = vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_string(),
        "-default-device".to_string(),
        "-DNDEBUG".to_string(),
    ];
    if precision == Precision::F32 {
        options.push("-DACT_F32=1".to_string());
    }
    // SAFETY: the program is alive, and destroyed once, after its last use.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options);
        let image = match compiled {
            Ok(()) => machine_code(program).map_err(|e| failed(&e.to_string())),
            Err(_) => {
                let log = nvrtc::get_program_log(program).unwrap_or_default();
                let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
                Err(failed(&String::from_utf8_lossy(&log)))
            }
        };
        let _ = nvrtc::destroy_program(program);
        image
    }
}

/// Returns the machine code of a compiled program.
///
/// # Safety
///
/// The program must be alive.
unsafe fn machine_code(program: sys::nvrtcProgram) -> Result<Vec<u8>, nvrtc::NvrtcError> {
    let mut size = 0;
    // SAFETY: the program is alive, and `image` has the size that it asks for.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &mut size).result()?;
        let mut image = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result()?;
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precisions_are_read_as_they_are_written() {
        for precision in [Precision::Bf16, Precision::F32, Precision::Fp8] {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        assert_eq!("FP8".parse::<Precision>().unwrap(), Precision::Fp8);
        let error = "int4".parse::<Precision>().unwrap_err().to_string();
        assert!(error.contains("bf16, fp8 or f32"), "{error}");
    }

    /// Needs the compiler's library alone, no GPU.
    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn all_kernels_compile_for_every_supported_chip() {
        if !super::super::driver::has_compiler() {
            eprintln!("skipped: CUDA's library libnvrtc is not there");
            return;
        }
        for source in SOURCES {
            for architecture in ["sm_80", "sm_90a"] {
                for precision in [Precision::Bf16, Precision::F32] {
                    let image = compile(source, architecture, precision).unwrap_or_else(|error| panic!("{error}"));
                    assert!(image.starts_with(b"\x7fELF"), "{} for {architecture}", source.name);
                }
            }
        }
    }
}
