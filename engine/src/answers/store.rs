//! Answers in a file (redb), for one process at a time.
//!
//! Four tables: `answers` by key, `order` (keys by the number of their insertion, so that the oldest are evicted first), `groups`
//! (provenance and hits) and `meta` (the version of this layout, counters). The whole file is checked when it is opened, so that a
//! damaged one is an error and never an answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use datafusion::common::{DataFusionError, Result, exec_datafusion_err};
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError, Table,
    TableDefinition, TableHandle, WriteTransaction,
};

use super::cache::{CacheStats, Tier};
use super::kept::{Kept, Key, Provenance};

/// The version of the tables below. A file of another version is refused.
const FORMAT: u64 = 1;

/// Memory for pages of one file.
const PAGE_CACHE_BYTES: usize = 32 << 20;

/// What an entry takes beside its answer: its keys in two tables, and numbers.
const ENTRY_BYTES: u64 = 110;

/// Group, seconds since 1970, number in `order`, answer.
type Row = (u32, u64, u64, &'static [u8]);

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const GROUPS: TableDefinition<u32, (&str, u64)> = TableDefinition::new("groups");
const ANSWERS: TableDefinition<&[u8; 32], Row> = TableDefinition::new("answers");
const ORDER: TableDefinition<u64, &[u8; 32]> = TableDefinition::new("order");

/// Where a store lies and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The file.
    pub path: PathBuf,
    /// What people call it, such as `answer cache`.
    pub what: &'static str,
    /// The setting that names it.
    pub setting: &'static str,
    /// The oldest answers go when all together are larger than this.
    pub bytes_max: u64,
}

/// An open file of answers.
#[derive(Debug)]
pub(super) struct Store {
    place: Place,
    database: Database,
    state: Mutex<State>,
    /// Hits since the last commit, by group.
    hits: Mutex<BTreeMap<u32, u64>>,
}

/// What the tables say, kept at hand for writing.
#[derive(Clone, Debug, Default)]
struct State {
    groups: BTreeMap<Provenance, u32>,
    next_group: u32,
    next_number: u64,
    bytes: u64,
}

/// An answer that is to be written.
#[derive(Clone, Debug)]
pub(super) struct NewAnswer {
    pub key: Key,
    pub group: Arc<Provenance>,
    /// Seconds since 1970.
    pub created_at: u64,
    pub kept: Kept,
}

impl Store {
    /// Opens a file, or makes it with the directories above it. Reads all of it, to know that it is sound.
    pub(super) fn open(place: Place) -> Result<Store> {
        if let Some(folder) = place.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| place.cannot("make the folder of", &e))?;
        }
        let mut builder = Builder::new();
        builder.set_cache_size(PAGE_CACHE_BYTES).set_check_integrity_on_open(true);
        let database = builder.create(&place.path).map_err(|e| place.cannot_open(e))?;
        let state = State::load(&database, &place)?;
        Ok(Store { place, database, state: Mutex::new(state), hits: Mutex::default() })
    }

    /// Returns where the store lies.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Returns the answers to questions, as far as they were made at `oldest` (seconds since 1970) or later.
    pub(super) fn read(&self, keys: &[Key], oldest: u64) -> Result<Vec<Option<Kept>>> {
        self.try_read(keys, oldest).map_err(|e| self.place.cannot("read", &e))
    }

    fn try_read(&self, keys: &[Key], oldest: u64) -> Result<Vec<Option<Kept>>, redb::Error> {
        let answers = self.database.begin_read()?.open_table(ANSWERS)?;
        let mut found = Vec::with_capacity(keys.len());
        let mut hits: BTreeMap<u32, u64> = BTreeMap::new();
        for key in keys {
            let row = answers.get(key)?;
            let kept = row.and_then(|row| {
                let (group, created_at, _, bytes) = row.value();
                let kept = Kept::decode(bytes).filter(|_| created_at >= oldest)?;
                *hits.entry(group).or_default() += 1;
                Some(kept)
            });
            found.push(kept);
        }
        let mut all = lock(&self.hits);
        for (group, count) in hits {
            *all.entry(group).or_default() += count;
        }
        Ok(found)
    }

    /// Writes answers, durably, in one transaction; evicts the oldest if there is too much.
    pub(super) fn write(&self, answers: &[NewAnswer]) -> Result<()> {
        let mut state = lock(&self.state);
        let mut next = state.clone();
        self.try_write(answers, &mut next).map_err(|e| self.place.cannot("write", &e))?;
        *state = next;
        Ok(())
    }

    fn try_write(&self, new: &[NewAnswer], state: &mut State) -> Result<(), redb::Error> {
        let hits = std::mem::take(&mut *lock(&self.hits));
        if new.is_empty() && hits.is_empty() {
            return Ok(());
        }
        let transaction = self.database.begin_write()?;
        {
            let mut groups = transaction.open_table(GROUPS)?;
            for (group, count) in hits {
                let row = groups.get(group)?.map(|row| (row.value().0.to_owned(), row.value().1));
                if let Some((provenance, before)) = row {
                    groups.insert(group, (provenance.as_str(), before + count))?;
                }
            }
            let mut answers = transaction.open_table(ANSWERS)?;
            let mut order = transaction.open_table(ORDER)?;
            for NewAnswer { key, group, created_at, kept } in new {
                let group = state.group(group, &mut groups)?;
                let (number, bytes) = (state.next_number, kept.encode());
                state.next_number += 1;
                state.bytes += ENTRY_BYTES + bytes.len() as u64;
                let replaced = answers.insert(key, (group, *created_at, number, bytes.as_slice()))?;
                if let Some(replaced) = replaced {
                    let (_, _, number, bytes) = replaced.value();
                    order.remove(number)?;
                    state.bytes = state.bytes.saturating_sub(ENTRY_BYTES + bytes.len() as u64);
                }
                order.insert(number, key)?;
            }
            while state.bytes > self.place.bytes_max
                && let Some((_, key)) = order.pop_first()?
            {
                if let Some(row) = answers.remove(key.value())? {
                    state.bytes = state.bytes.saturating_sub(ENTRY_BYTES + row.value().3.len() as u64);
                }
            }
            state.save(&transaction)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Forgets all answers, and returns how many there were. The file keeps its size; the room is used again.
    pub(super) fn clear(&self) -> Result<u64> {
        let mut state = lock(&self.state);
        let next = State { next_group: state.next_group, next_number: state.next_number, ..State::default() };
        let count = self.try_clear(&next).map_err(|e| self.place.cannot("clear", &e))?;
        *state = next;
        lock(&self.hits).clear();
        Ok(count)
    }

    fn try_clear(&self, next: &State) -> Result<u64, redb::Error> {
        let transaction = self.database.begin_write()?;
        let count = transaction.open_table(ANSWERS)?.len()?;
        transaction.delete_table(ANSWERS)?;
        transaction.delete_table(ORDER)?;
        transaction.delete_table(GROUPS)?;
        make_tables(&transaction)?;
        next.save(&transaction)?;
        transaction.commit()?;
        Ok(count)
    }

    /// Returns what is kept, by group. Reads all of it.
    pub(super) fn stats(&self, tier: Tier) -> Result<Vec<CacheStats>> {
        self.try_stats(tier).map_err(|e| self.place.cannot("read", &e))
    }

    fn try_stats(&self, tier: Tier) -> Result<Vec<CacheStats>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let pending = lock(&self.hits).clone();
        let mut stats: BTreeMap<u32, CacheStats> = BTreeMap::new();
        for row in transaction.open_table(GROUPS)?.iter()? {
            let (group, row) = row?;
            let ((provenance, hits), group) = (row.value(), group.value());
            let hits = hits + pending.get(&group).copied().unwrap_or(0);
            stats.insert(group, CacheStats::new(tier, &Provenance::from_json(provenance), hits));
        }
        for row in transaction.open_table(ANSWERS)?.iter()? {
            let (_, row) = row?;
            let (group, created_at, _, bytes) = row.value();
            if let Some(stats) = stats.get_mut(&group) {
                stats.add(bytes.len() as u64, created_at);
            }
        }
        Ok(stats.into_values().filter(|group| group.entries > 0).collect())
    }
}

impl State {
    /// Reads the counters of a file, or sets up an empty one.
    fn load(database: &Database, place: &Place) -> Result<State> {
        let unreadable = |e: redb::Error| place.damaged(&e);
        let transaction = database.begin_write().map_err(|e| unreadable(e.into()))?;
        let names: Vec<String> =
            transaction.list_tables().map_err(|e| unreadable(e.into()))?.map(|table| table.name().to_owned()).collect();
        if names.is_empty() {
            make_tables(&transaction).map_err(|e| unreadable(e.into()))?;
            State::default().save(&transaction).map_err(unreadable)?;
            transaction.commit().map_err(|e| place.cannot("write", &redb::Error::from(e)))?;
            return Ok(State::default());
        }
        if !names.iter().any(|name| name == META.name()) {
            return Err(place.damaged(&"it was made by another program"));
        }
        let state = State::read(&transaction).map_err(unreadable)?;
        transaction.abort().map_err(|e| unreadable(e.into()))?;
        match state {
            Ok(state) => Ok(state),
            Err(format) => Err(exec_datafusion_err!(
                "cannot use the {} {}: it has format {format}, this version of refrain reads format {FORMAT}; \
                 delete it, or SET {} to another place",
                place.what,
                place.path.display(),
                place.setting
            )),
        }
    }

    /// Reads the counters, or the version of a file that has another layout.
    fn read(transaction: &WriteTransaction) -> Result<Result<State, u64>, redb::Error> {
        let meta = transaction.open_table(META)?;
        let number = |name: &str| meta.get(name).map(|value| value.map_or(0, |value| value.value()));
        let format = number("format")?;
        if format != FORMAT {
            return Ok(Err(format));
        }
        let mut groups = BTreeMap::new();
        for row in transaction.open_table(GROUPS)?.iter()? {
            let (group, row) = row?;
            groups.insert(Provenance::from_json(row.value().0), group.value());
        }
        let next_group = groups.values().max().map_or(0, |group| group + 1);
        Ok(Ok(State { groups, next_group, next_number: number("next_number")?, bytes: number("bytes")? }))
    }

    fn save(&self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        let mut meta = transaction.open_table(META)?;
        for (name, value) in [("format", FORMAT), ("next_number", self.next_number), ("bytes", self.bytes)] {
            meta.insert(name, value)?;
        }
        Ok(())
    }

    /// Returns the number of a group, which is written if it is new.
    fn group(&mut self, provenance: &Provenance, groups: &mut Table<u32, (&str, u64)>) -> Result<u32, redb::Error> {
        if let Some(group) = self.groups.get(provenance) {
            return Ok(*group);
        }
        let group = self.next_group;
        self.next_group += 1;
        groups.insert(group, (provenance.to_json().as_str(), 0))?;
        self.groups.insert(provenance.clone(), group);
        Ok(group)
    }
}

fn make_tables(transaction: &WriteTransaction) -> Result<(), redb::TableError> {
    transaction.open_table(GROUPS)?;
    transaction.open_table(ANSWERS)?;
    transaction.open_table(ORDER)?;
    Ok(())
}

impl Place {
    /// The error of a file that is there and cannot be understood.
    pub(super) fn damaged(&self, error: &dyn std::fmt::Display) -> DataFusionError {
        let Place { path, what, setting, .. } = self;
        exec_datafusion_err!(
            "cannot read the {what} {}: it is damaged or no file of answers ({error}); delete it, or SET {setting} to another place",
            path.display()
        )
    }

    /// The error of something that the system or the file did not let us do.
    pub(super) fn cannot(&self, verb: &str, error: &dyn std::fmt::Display) -> DataFusionError {
        let Place { path, what, setting, .. } = self;
        exec_datafusion_err!(
            "cannot {verb} the {what} {}: {error}; mend that, or SET {setting} to another place",
            path.display()
        )
    }

    fn cannot_open(&self, error: DatabaseError) -> DataFusionError {
        match &error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => exec_datafusion_err!(
                "cannot open the {} {}: another process or session has it open; close that one, or SET {} to another place",
                self.what,
                self.path.display(),
                self.setting
            ),
            DatabaseError::Storage(StorageError::Io(io)) if io.kind() != std::io::ErrorKind::InvalidData => {
                self.cannot("open", io)
            }
            _ => self.damaged(&error),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Returns the store's place for a file of a setting.
pub(super) fn place(path: &Path, what: &'static str, setting: &'static str, bytes_max: u64) -> Place {
    Place { path: path.to_path_buf(), what, setting, bytes_max }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &Path, bytes_max: u64) -> Place {
        place(path, "answer cache", "refrain.cache_dir", bytes_max)
    }

    fn answer(n: u8, text: &str) -> NewAnswer {
        NewAnswer { key: [n; 32], group: Arc::default(), created_at: u64::from(n), kept: Kept::Text(text.into()) }
    }

    #[track_caller]
    fn texts(store: &Store, keys: &[u8], oldest: u64) -> Vec<Option<String>> {
        let keys: Vec<Key> = keys.iter().map(|n| [*n; 32]).collect();
        let found = store.read(&keys, oldest).unwrap();
        found.into_iter().map(|kept| kept.map(|kept| kept.to_answer().text)).collect()
    }

    #[test]
    fn answers_outlive_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/answers.redb");
        let store = Store::open(at(&path, u64::MAX)).unwrap();
        store.write(&[answer(1, "a"), answer(2, "b")]).unwrap();
        store.write(&[answer(2, "c")]).unwrap();
        drop(store);
        let store = Store::open(at(&path, u64::MAX)).unwrap();
        assert_eq!(texts(&store, &[1, 2, 3], 0), [Some("a".into()), Some("c".into()), None]);
        assert_eq!(texts(&store, &[1, 2], 2), [None, Some("c".into())], "older than allowed");
        let stats = store.stats(Tier::Persistent).unwrap();
        assert_eq!((stats[0].entries, stats[0].hits, stats[0].oldest, stats[0].newest), (2, 3, 1, 2));
        assert_eq!((store.clear().unwrap(), store.stats(Tier::Persistent).unwrap()), (2, vec![]));
        assert_eq!(texts(&store, &[1], 0), [None]);
    }

    #[test]
    fn the_oldest_answers_are_evicted() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(at(&folder.path().join("a"), 2 * (ENTRY_BYTES + 2))).unwrap();
        store.write(&[answer(1, "a"), answer(2, "b")]).unwrap();
        store.write(&[answer(1, "A"), answer(3, "c")]).unwrap();
        assert_eq!(texts(&store, &[1, 2, 3], 0), [Some("A".into()), None, Some("c".into())]);
        assert_eq!(lock(&store.state).bytes, 2 * (ENTRY_BYTES + 2));
    }

    #[test]
    fn a_file_is_open_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let _first = Store::open(at(&path, 1)).unwrap();
        let error = Store::open(at(&path, 1)).unwrap_err().strip_backtrace();
        assert!(
            error.contains("another process or session has it open; close that one, or SET refrain.cache_dir"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_file_of_answers_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "a,b\n1,2\n".repeat(2000)).unwrap();
        let error = Store::open(at(&path, 1)).unwrap_err().strip_backtrace();
        assert!(error.contains("damaged or no file of answers") && error.contains("delete it"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap().len(), 16_000, "the file was touched");
        let error = Store::open(at(folder.path(), 1)).unwrap_err().strip_backtrace();
        assert!(error.contains("cannot open the answer cache"), "{error}");
    }

    #[test]
    fn another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let store = Store::open(at(&path, 1)).unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
        transaction.commit().unwrap();
        drop(store);
        let error = Store::open(at(&path, 1)).unwrap_err().strip_backtrace();
        assert!(error.contains("it has format 2, this version of refrain reads format 1; delete it"), "{error}");
    }

    /// A byte that is wrong anywhere is an error or harmless, never another answer.
    #[test]
    fn damage_is_an_error_and_never_an_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let store = Store::open(at(&path, u64::MAX)).unwrap();
        store.write(&(0..100).map(|n| answer(n, &"text ".repeat(20))).collect::<Vec<_>>()).unwrap();
        drop(store);
        let sound = std::fs::read(&path).unwrap();
        let (mut refused, mut used) = (0, 0);
        for position in (0..sound.len()).step_by(977) {
            let mut damaged = sound.clone();
            damaged[position] ^= 0x55;
            std::fs::write(&path, &damaged).unwrap();
            let open = std::panic::catch_unwind(|| Store::open(at(&path, u64::MAX)));
            let Ok(Ok(store)) = open else {
                refused += 1;
                continue;
            };
            used += 1;
            let keys: Vec<Key> = (0..100).map(|n| [n; 32]).collect();
            for kept in store.read(&keys, 0).unwrap() {
                assert!(kept.is_none_or(|kept| kept == Kept::Text("text ".repeat(20).into())), "byte {position}");
            }
        }
        assert!(refused > 0 && used > 0, "{refused} refused, {used} used");
    }
}
