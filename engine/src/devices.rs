//! How models of this machine come to a device: one engine for each device, started with the first model that runs on it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use refrain_serving::device::cpu::CpuDevice;
use refrain_serving::device::cuda::{
    CudaDevice, CudaOptions, GpuFacts, GpuMemory, INVARIANT_ROWS, Precision, TensorParallel,
};
use refrain_serving::device::{Device, DeviceChoice, FoundDevice};
use refrain_serving::load::LoadedModel;
use refrain_serving::local::{EngineConfig, EngineResources, LocalBackend, LocalConfig, LocalEngine, Replicas};
use refrain_serving::scheduler::SchedulerConfig;
use refrain_serving::{Backend, Error, Result, Tokenizer};

use crate::loading::{CountedWeights, LoadProgress};
use crate::model_options::LocalOptions;

/// Bytes of the KV pages of all models on the CPU unless a setting says otherwise: 25,000 tokens of the bundled model. Memory is
/// taken as pages are used.
pub(crate) const CPU_KV_BYTES: usize = 256 << 20;

/// How models run that are loaded from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// The device of models that complete text. Those that make vectors run on the CPU.
    pub device: DeviceChoice,
    /// Threads of the CPU device; one for each core if not set.
    pub threads: Option<NonZeroUsize>,
    /// Bytes of the KV pages: on the CPU of all models together, on a GPU of each, and of each on all GPUs that it is split over. If
    /// not set, a GPU's model takes what is free when it is loaded.
    pub kv_cache_bytes: Option<usize>,
    /// Tokens in one step; the scheduler's choice if not set.
    pub step_tokens: Option<u32>,
    /// Whether a GPU gives an answer the same bits whatever else runs, as the CPU always does.
    pub batch_invariant: bool,
}

/// What an engine runs on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hardware {
    Cpu,
    /// The GPU of this number.
    Gpu(u32),
    /// GPUs over which models are split.
    SplitGpus(Vec<u32>),
}

/// One device, and how a model runs there.
#[derive(Debug)]
struct Place {
    hardware: Hardware,
    scheduler: SchedulerConfig,
    /// What a GPU keeps and multiplies the model in.
    precision: Precision,
    /// The most that the model may take of a GPU.
    memory: Option<GpuMemory>,
    /// What is to be said of the device.
    remark: Option<String>,
}

/// Engines by what they run on, and how each runs.
type Running = BTreeMap<Hardware, (EngineConfig, Arc<LocalEngine>)>;

/// The engines of this process.
#[derive(Debug, Default)]
pub(crate) struct Engines {
    running: Mutex<Running>,
    /// Where compiled kernels of GPUs are kept.
    kernel_cache: Option<PathBuf>,
}

impl Engines {
    /// Starts none. Kernels that are compiled for a GPU are kept in `kernel_cache`, if there is one.
    pub(crate) fn new(kernel_cache: Option<PathBuf>) -> Self {
        Engines { running: Mutex::default(), kernel_cache }
    }

    /// Loads a model onto the device that the options name, and hands it to the engine of that device. Fails if the model is to be
    /// kept as that device does not keep models.
    ///
    /// With `auto`, a GPU that turns out to be unusable is given up for the CPU, and the description of the model says so.
    pub(crate) fn start(
        &self,
        model: &LoadedModel,
        local: &LocalOptions,
        options: DeviceOptions,
        progress: &LoadProgress,
    ) -> Result<Arc<dyn Backend>> {
        let weight_bytes = local.dtype.unwrap_or_default().weight_bytes() * model.config.parameters();
        let found = FoundDevice::find_for(options.device, options.threads, weight_bytes)?;
        match self.start_on(&found, model, local, options, progress) {
            Err(Error::Device(reason))
                if options.device == DeviceChoice::Auto && !matches!(found, FoundDevice::Cpu { .. }) =>
            {
                let cpu = FoundDevice::cpu(options.threads, Some(format!("{found} failed: {reason}")));
                self.start_on(&cpu, model, local, options, progress)
            }
            started => started,
        }
    }

    fn start_on(
        &self,
        found: &FoundDevice,
        model: &LoadedModel,
        local: &LocalOptions,
        options: DeviceOptions,
        progress: &LoadProgress,
    ) -> Result<Arc<dyn Backend>> {
        let max_context = local.max_context.unwrap_or(model.config.max_context);
        let (precision, memory) = (local.dtype.unwrap_or_default(), local.gpu_memory);
        let on_gpu = SchedulerConfig::on_gpu(max_context, model.config.parameters());
        match found {
            FoundDevice::Cpu { no_gpu, threads: _ } => {
                if let Some(dtype) = local.dtype {
                    return Err(Error::Invalid(format!(
                        "the model's option dtype = '{dtype}' is for GPUs, and it would run on {found}: leave the option out, or \
                         choose a GPU with refrain.device"
                    )));
                }
                let scheduler = SchedulerConfig::new(max_context);
                let place = Place { hardware: Hardware::Cpu, scheduler, precision, memory, remark: no_gpu.clone() };
                Ok(Arc::new(self.start_at(place, model, options, progress)?))
            }
            FoundDevice::SplitCuda(gpus) => {
                let hardware = Hardware::SplitGpus(gpus.iter().map(|gpu| gpu.ordinal).collect());
                let place = Place { hardware, scheduler: on_gpu, precision, memory, remark: None };
                Ok(Arc::new(self.start_at(place, model, options, progress)?))
            }
            FoundDevice::Cuda(gpus) => {
                let start = |gpu: &GpuFacts| {
                    let hardware = Hardware::Gpu(gpu.ordinal);
                    let place = Place { hardware, scheduler: on_gpu, precision, memory, remark: None };
                    self.start_at(place, model, options, progress)
                };
                // All at once: each reads all weights, and mostly waits for them.
                let mut started: Vec<Arc<dyn Backend>> = thread::scope(|scope| {
                    let threads: Vec<_> = gpus.iter().map(|gpu| scope.spawn(move || start(gpu))).collect();
                    let join = |thread: thread::ScopedJoinHandle<'_, Result<LocalBackend>>| {
                        let started =
                            thread.join().unwrap_or_else(|_| Err(Error::Device("loading a model failed".to_string())));
                        Ok(Arc::new(started?) as Arc<dyn Backend>)
                    };
                    threads.into_iter().map(join).collect::<Result<_>>()
                })?;
                if started.len() == 1 {
                    return Ok(started.remove(0));
                }
                Ok(Arc::new(Replicas::new(started, found.to_string())?))
            }
        }
    }

    /// Loads a model onto one device.
    fn start_at(
        &self,
        place: Place,
        model: &LoadedModel,
        options: DeviceOptions,
        progress: &LoadProgress,
    ) -> Result<LocalBackend> {
        let LoadedModel { config, weights, tokenizer, digest } = model;
        let Place { hardware, mut scheduler, precision, memory, remark } = place;
        // A GPU's models bring memory of their own, which nothing but their weights limits.
        let kv_bytes = match hardware {
            Hardware::Cpu => options.kv_cache_bytes.unwrap_or(CPU_KV_BYTES),
            Hardware::Gpu(_) | Hardware::SplitGpus(_) => usize::MAX,
        };
        scheduler.step_tokens = options.step_tokens.unwrap_or(scheduler.step_tokens);
        let local = LocalConfig { scheduler, device_remark: remark, ..LocalConfig::new(scheduler.max_context, digest) };
        let engine = self.get(&hardware, EngineConfig { threads: options.threads, ..EngineConfig::new(kv_bytes) })?;
        let open = |resources: &EngineResources| -> Result<Box<dyn Device>> {
            let weights = CountedWeights { weights: weights.as_ref(), progress };
            let (kv_bytes, kernel_cache) = (options.kv_cache_bytes, self.kernel_cache.clone());
            let invariant_rows = options.batch_invariant.then_some(INVARIANT_ROWS);
            let device = CudaOptions::new(scheduler.step_tokens);
            let options = CudaOptions { kv_bytes, memory, kernel_cache, precision, invariant_rows, ..device };
            match &hardware {
                Hardware::Cpu => {
                    let threads = Arc::clone(&resources.threads);
                    Ok(Box::new(CpuDevice::shared(config, &weights, threads, resources.kv_bytes)?))
                }
                Hardware::Gpu(ordinal) => {
                    let options = CudaOptions { ordinal: *ordinal, ..options };
                    Ok(Box::new(CudaDevice::new(config, &weights, &options)?))
                }
                Hardware::SplitGpus(ordinals) => Ok(Box::new(TensorParallel::new(config, &weights, ordinals, &options)?)),
            }
        };
        match engine.add_model(open, Arc::clone(tokenizer) as Arc<dyn Tokenizer>, local) {
            Ok(backend) => Ok(backend),
            Err(error) => {
                if matches!(error, Error::Device(_)) {
                    self.forget(&hardware);
                }
                Err(error)
            }
        }
    }

    /// Returns the engine of a device that runs in this way. One that runs otherwise is left to the models that it has.
    fn get(&self, hardware: &Hardware, config: EngineConfig) -> Result<Arc<LocalEngine>> {
        let mut running = self.lock();
        match running.get(hardware) {
            Some((found, engine)) if *found == config => Ok(Arc::clone(engine)),
            _ => {
                let engine = Arc::new(LocalEngine::start(config)?);
                running.insert(hardware.clone(), (config, Arc::clone(&engine)));
                Ok(engine)
            }
        }
    }

    /// Leaves an engine that takes no more models, so that the next load starts another.
    fn forget(&self, hardware: &Hardware) {
        self.lock().remove(hardware);
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
