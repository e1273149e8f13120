//! How models of this machine come to a device: one engine for each device, started with the first model that runs on it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use refrain_serving::device::cpu::CpuDevice;
use refrain_serving::device::cuda::{CudaDevice, CudaOptions, GpuFacts};
use refrain_serving::device::{Device, DeviceChoice, FoundDevice};
use refrain_serving::load::LoadedModel;
use refrain_serving::local::{EngineConfig, EngineResources, LocalBackend, LocalConfig, LocalEngine, Replicas};
use refrain_serving::scheduler::SchedulerConfig;
use refrain_serving::{Backend, Error, Result, Tokenizer};

use crate::loading::{CountedWeights, LoadProgress};

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
    /// Bytes of the KV pages: on the CPU of all models together, on a GPU of each. If not set, a GPU's model takes what is free
    /// when it is loaded.
    pub kv_cache_bytes: Option<usize>,
    /// Tokens in one step; the scheduler's choice if not set.
    pub step_tokens: Option<u32>,
}

/// One device, and how a model runs there.
#[derive(Debug)]
struct Place {
    /// The number of the GPU; the CPU if `None`.
    gpu: Option<u32>,
    scheduler: SchedulerConfig,
    /// What is to be said of the device.
    remark: Option<String>,
}

/// Engines by number of the GPU, or none for the CPU, and how each runs.
type Running = BTreeMap<Option<u32>, (EngineConfig, Arc<LocalEngine>)>;

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

    /// Loads a model onto the device that the options name, and hands it to the engine of that device.
    ///
    /// With `auto`, a GPU that turns out to be unusable is given up for the CPU, and the description of the model says so.
    pub(crate) fn start(
        &self,
        model: &LoadedModel,
        max_context: Option<usize>,
        options: DeviceOptions,
        progress: &LoadProgress,
    ) -> Result<Arc<dyn Backend>> {
        let found = FoundDevice::find(options.device, options.threads)?;
        match self.start_on(&found, model, max_context, options, progress) {
            Err(Error::Device(reason)) if options.device == DeviceChoice::Auto && matches!(found, FoundDevice::Cuda(_)) => {
                let cpu = FoundDevice::cpu(options.threads, Some(format!("{found} failed: {reason}")));
                self.start_on(&cpu, model, max_context, options, progress)
            }
            started => started,
        }
    }

    fn start_on(
        &self,
        found: &FoundDevice,
        model: &LoadedModel,
        max_context: Option<usize>,
        options: DeviceOptions,
        progress: &LoadProgress,
    ) -> Result<Arc<dyn Backend>> {
        let max_context = max_context.unwrap_or(model.config.max_context);
        match found {
            FoundDevice::Cpu { no_gpu, threads: _ } => {
                let place = Place { gpu: None, scheduler: SchedulerConfig::new(max_context), remark: no_gpu.clone() };
                Ok(Arc::new(self.start_at(place, model, options, progress)?))
            }
            FoundDevice::Cuda(gpus) => {
                let scheduler = SchedulerConfig::on_gpu(max_context, model.config.parameters());
                let start = |gpu: &GpuFacts| {
                    self.start_at(Place { gpu: Some(gpu.ordinal), scheduler, remark: None }, model, options, progress)
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
        let Place { gpu: ordinal, mut scheduler, remark } = place;
        // A GPU's models bring memory of their own, which nothing but their weights limits.
        let kv_bytes = match ordinal {
            Some(_) => usize::MAX,
            None => options.kv_cache_bytes.unwrap_or(CPU_KV_BYTES),
        };
        scheduler.step_tokens = options.step_tokens.unwrap_or(scheduler.step_tokens);
        let local = LocalConfig { scheduler, device_remark: remark, ..LocalConfig::new(scheduler.max_context, digest) };
        let engine = self.get(ordinal, EngineConfig { threads: options.threads, ..EngineConfig::new(kv_bytes) })?;
        let open = |resources: &EngineResources| -> Result<Box<dyn Device>> {
            let weights = CountedWeights { weights: weights.as_ref(), progress };
            let Some(ordinal) = ordinal else {
                return Ok(Box::new(CpuDevice::shared(
                    config,
                    &weights,
                    Arc::clone(&resources.threads),
                    resources.kv_bytes,
                )?));
            };
            let (kv_bytes, kernel_cache) = (options.kv_cache_bytes, self.kernel_cache.clone());
            let options = CudaOptions { ordinal, kv_bytes, kernel_cache, ..CudaOptions::new(scheduler.step_tokens) };
            Ok(Box::new(CudaDevice::new(config, &weights, &options)?))
        };
        match engine.add_model(open, Arc::clone(tokenizer) as Arc<dyn Tokenizer>, local) {
            Ok(backend) => Ok(backend),
            Err(error) => {
                if matches!(error, Error::Device(_)) {
                    self.forget(ordinal);
                }
                Err(error)
            }
        }
    }

    /// Returns the engine of a device that runs in this way. One that runs otherwise is left to the models that it has.
    fn get(&self, ordinal: Option<u32>, config: EngineConfig) -> Result<Arc<LocalEngine>> {
        let mut running = self.lock();
        match running.get(&ordinal) {
            Some((found, engine)) if *found == config => Ok(Arc::clone(engine)),
            _ => {
                let engine = Arc::new(LocalEngine::start(config)?);
                running.insert(ordinal, (config, Arc::clone(&engine)));
                Ok(engine)
            }
        }
    }

    /// Leaves an engine that takes no more models, so that the next load starts another.
    fn forget(&self, ordinal: Option<u32>) {
        self.lock().remove(&ordinal);
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
