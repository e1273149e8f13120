//! The tiers of a session put together, and what of them one query uses.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use datafusion::common::{Result, internal_datafusion_err, plan_err};
use refrain_udf::{Cache, Settings};
use tokio::sync::OnceCell;

use super::kept::{Kept, Key, Provenance};
use super::session_tier::SessionTier;
use super::store::{NewAnswer, Place, place};
use super::writer::StoreHandle;

/// The file of the persistent cache within `refrain.cache_dir`.
const CACHE_FILE: &str = "answers.redb";

/// How much each tier keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierBytes {
    /// In memory, for each session.
    pub session: usize,
    /// In the file of the persistent cache. The file itself is larger, by up to a half.
    pub persistent: u64,
}

impl Default for TierBytes {
    fn default() -> Self {
        TierBytes { session: 256 << 20, persistent: 1 << 30 }
    }
}

/// Tells the time, in seconds since 1970.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// Makes a clock of a function.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Clock(Arc::new(now))
    }

    /// Returns the time.
    pub fn now(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Where an answer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Tier {
    /// In memory, as long as the session lives.
    Session,
    /// In the file of `refrain.cache_dir`.
    Persistent,
    /// In the file of `refrain.checkpoint`.
    Checkpoint,
}

impl Tier {
    /// Returns the tier of a name that SQL uses, in lower case.
    pub fn named(name: &str) -> Option<Tier> {
        [Tier::Session, Tier::Persistent, Tier::Checkpoint].into_iter().find(|tier| tier.name() == name)
    }

    /// Returns the name that SQL uses.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Session => "session",
            Tier::Persistent => "persistent",
            Tier::Checkpoint => "checkpoint",
        }
    }
}

/// What a tier keeps for one function, prompt and model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// The tier.
    pub tier: Tier,
    /// The function, such as `ai_filter`.
    pub function: String,
    /// Identity of the model.
    pub model_digest: String,
    /// Digest of instruction, labels and options, in hexadecimal.
    pub prompt_hash: String,
    /// Answers.
    pub entries: u64,
    /// Bytes of their texts and vectors.
    pub bytes: u64,
    /// How often one of them was used: by this session in memory, ever in a file.
    pub hits: u64,
    /// When the oldest was made, in seconds since 1970.
    pub oldest: u64,
    /// When the newest was made.
    pub newest: u64,
}

impl CacheStats {
    pub(super) fn new(tier: Tier, group: &Provenance, hits: u64) -> Self {
        CacheStats {
            tier,
            function: group.function.clone(),
            model_digest: group.model_digest.clone(),
            prompt_hash: group.prompt_hash.clone(),
            entries: 0,
            bytes: 0,
            hits,
            oldest: u64::MAX,
            newest: 0,
        }
    }

    pub(super) fn add(&mut self, bytes: u64, created_at: u64) {
        self.entries += 1;
        self.bytes += bytes;
        self.oldest = self.oldest.min(created_at);
        self.newest = self.newest.max(created_at);
    }
}

/// What the settings say about answers that outlive their query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerSettings {
    in_session: bool,
    persistent: Option<PathBuf>,
    ttl_s: Option<u64>,
    checkpoint: Option<PathBuf>,
}

impl AnswerSettings {
    /// Reads them out of the settings. Fails if they ask for a persistent cache and do not say where.
    pub fn new(settings: &Settings) -> Result<AnswerSettings> {
        let persistent = match (settings.cache, &settings.cache_dir) {
            (Cache::Persistent, None) => {
                return plan_err!("refrain.cache = 'persistent' needs a directory: SET refrain.cache_dir = '…'");
            }
            (Cache::Persistent, Some(_)) => cache_file(settings),
            _ => None,
        };
        Ok(AnswerSettings {
            in_session: settings.cache == Cache::Session,
            persistent,
            ttl_s: settings.cache_ttl,
            checkpoint: settings.checkpoint.as_ref().map(PathBuf::from),
        })
    }
}

fn cache_file(settings: &Settings) -> Option<PathBuf> {
    settings.cache_dir.as_ref().map(|folder| Path::new(folder).join(CACHE_FILE))
}

/// The answers that a session keeps beyond one query, and the files that it has open for them.
#[derive(Debug, Default)]
pub struct AnswerCache {
    session: Mutex<SessionTier>,
    stores: Mutex<Vec<(PathBuf, OpenStore)>>,
    bytes: TierBytes,
    clock: Clock,
}

/// A store that is opened by whoever needs it first.
type OpenStore = Arc<OnceCell<StoreHandle>>;

impl AnswerCache {
    /// Makes an empty cache of a given size. Files are opened when they are needed.
    pub fn new(bytes: TierBytes, clock: Clock) -> Self {
        AnswerCache { bytes, clock, ..AnswerCache::default() }
    }

    /// Opens what a query may use. Files that no setting names any more are closed once no query uses them.
    pub async fn open(self: &Arc<Self>, settings: &AnswerSettings) -> Result<QueryAnswers> {
        let AnswerSettings { in_session, persistent, ttl_s, checkpoint } = settings;
        self.lock_stores().retain(|(path, store)| {
            let is_named = [persistent, checkpoint].into_iter().flatten().any(|named| named == path);
            is_named || Arc::strong_count(store) > 1
        });
        let persistent = match persistent {
            Some(path) => Some(self.store(self.persistent_place(path)).await?),
            None => None,
        };
        let checkpoint = match checkpoint {
            Some(path) => Some(self.store(place(path, "checkpoint", "refrain.checkpoint", u64::MAX)).await?),
            None => None,
        };
        let oldest = ttl_s.map_or(0, |ttl| self.clock.now().saturating_sub(ttl));
        Ok(QueryAnswers { cache: Arc::clone(self), in_session: *in_session, persistent, checkpoint, oldest })
    }

    /// Returns what is kept, by tier, function, prompt and model.
    pub async fn stats(&self, settings: &Settings) -> Result<Vec<CacheStats>> {
        let mut stats = self.lock_session().stats();
        if let Some(path) = cache_file(settings).filter(|path| path.exists()) {
            let store = self.store(self.persistent_place(&path)).await?;
            stats.extend(opened(&store)?.stats(Tier::Persistent).await?);
        }
        if let Some(path) = settings.checkpoint.as_ref().map(PathBuf::from).filter(|path| path.exists()) {
            let store = self.store(place(&path, "checkpoint", "refrain.checkpoint", u64::MAX)).await?;
            stats.extend(opened(&store)?.stats(Tier::Checkpoint).await?);
        }
        Ok(stats)
    }

    /// Forgets the answers of a tier, and returns how many there were. A file keeps its size.
    pub async fn clear(&self, tier: Tier, settings: &Settings) -> Result<u64> {
        let place = match tier {
            Tier::Session => return Ok(self.lock_session().clear()),
            Tier::Persistent => match cache_file(settings) {
                Some(path) => self.persistent_place(&path),
                None => return plan_err!("there is no persistent cache to clear: SET refrain.cache_dir = '…' names it"),
            },
            Tier::Checkpoint => match &settings.checkpoint {
                Some(path) => place(Path::new(path), "checkpoint", "refrain.checkpoint", u64::MAX),
                None => return plan_err!("there is no checkpoint to clear: SET refrain.checkpoint = '…' names it"),
            },
        };
        let store = self.store(place).await?;
        opened(&store)?.clear().await
    }

    fn persistent_place(&self, path: &Path) -> Place {
        place(path, "answer cache", "refrain.cache_dir", self.bytes.persistent)
    }

    async fn store(&self, place: Place) -> Result<OpenStore> {
        let store = {
            let mut stores = self.lock_stores();
            match stores.iter().find(|(path, _)| *path == place.path) {
                Some((_, store)) => Arc::clone(store),
                None => {
                    let store = OpenStore::default();
                    stores.push((place.path.clone(), Arc::clone(&store)));
                    store
                }
            }
        };
        store.get_or_try_init(|| StoreHandle::open(place)).await?;
        Ok(store)
    }

    fn lock_session(&self) -> MutexGuard<'_, SessionTier> {
        self.session.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lock_stores(&self) -> MutexGuard<'_, Vec<(PathBuf, OpenStore)>> {
        self.stores.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn opened(store: &OpenStore) -> Result<&StoreHandle> {
    store.get().ok_or_else(|| internal_datafusion_err!("a store was used before it was opened"))
}

/// The answers that one query may use and adds to.
#[derive(Clone, Debug)]
pub struct QueryAnswers {
    cache: Arc<AnswerCache>,
    in_session: bool,
    persistent: Option<OpenStore>,
    checkpoint: Option<OpenStore>,
    /// Cached answers from before this time are not used.
    oldest: u64,
}

impl QueryAnswers {
    /// Returns the answers that are there. A call whose answers are drawn (`is_drawn`) uses the checkpoint alone: its seeds are
    /// part of its keys, so a rerun draws the same, but other queries must draw for themselves.
    pub async fn read(&self, keys: &[Key], is_drawn: bool) -> Result<Vec<Option<Kept>>> {
        let mut found = vec![None; keys.len()];
        if let Some(store) = &self.checkpoint {
            self.read_store(store, keys, 0, &mut found).await?;
        }
        if is_drawn {
            return Ok(found);
        }
        if let Some(store) = &self.persistent {
            self.read_store(store, keys, self.oldest, &mut found).await?;
        }
        if self.in_session {
            let mut session = self.cache.lock_session();
            for (kept, key) in found.iter_mut().zip(keys) {
                if kept.is_none() {
                    *kept = session.get(key, self.oldest);
                }
            }
        }
        Ok(found)
    }

    async fn read_store(&self, store: &OpenStore, keys: &[Key], oldest: u64, found: &mut [Option<Kept>]) -> Result<()> {
        let missing: Vec<usize> = (0..keys.len()).filter(|idx| found[*idx].is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let keys = missing.iter().map(|idx| keys[*idx]).collect();
        for (idx, kept) in missing.iter().zip(opened(store)?.read(keys, oldest).await?) {
            found[*idx] = kept;
        }
        Ok(())
    }

    /// Keeps an answer. It is on disk a moment later; [`flush`](Self::flush) waits for that.
    pub async fn write(&self, key: Key, group: &Arc<Provenance>, kept: Kept, is_drawn: bool) -> Result<()> {
        let created_at = self.cache.clock.now();
        let persistent = self.persistent.as_ref().filter(|_| !is_drawn);
        for store in self.checkpoint.iter().chain(persistent) {
            let answer = NewAnswer { key, group: Arc::clone(group), created_at, kept: kept.clone() };
            opened(store)?.write(answer).await?;
        }
        if self.in_session && !is_drawn {
            self.cache.lock_session().insert(key, kept, Arc::clone(group), created_at, self.cache.bytes.session);
        }
        Ok(())
    }

    /// Waits until all answers are on disk.
    pub async fn flush(&self) -> Result<()> {
        for store in self.checkpoint.iter().chain(&self.persistent) {
            opened(store)?.flush().await?;
        }
        Ok(())
    }

    /// Returns whether anything outlives the query.
    pub fn keeps_anything(&self, is_drawn: bool) -> bool {
        self.checkpoint.is_some() || (!is_drawn && (self.in_session || self.persistent.is_some()))
    }
}
