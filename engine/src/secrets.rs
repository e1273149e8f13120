//! Secrets of a session: keys of external models, by name. Nothing shows their values.
//!
//! A secret lives in memory, or, if it is `PERSISTENT`, in `secrets.json` of the folder that the program has named: a file of
//! mode 0600 that is read anew each time and replaced as a whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use datafusion::common::{Result, exec_datafusion_err, plan_datafusion_err, plan_err};
use refrain_serving::remote::Secret;
use refrain_udf::options::suggest;
use serde_json::{Value, json};

use crate::statement::{Existing, SecretFields};

/// The version of the file's format.
const FILE_VERSION: u64 = 1;

/// The longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Types of secrets: how the key is sent.
const TYPES: &[&str] = &["openai"];

/// Fields of a secret.
const FIELDS: &[&str] = &["type", "api_key"];

/// The secrets of a session.
#[derive(Debug, Default)]
pub struct SecretStore {
    memory: Mutex<BTreeMap<String, StoredSecret>>,
    /// Where persistent secrets lie; `None` if the program has named no folder.
    folder: Option<PathBuf>,
}

/// A secret as `SHOW SECRETS` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecretInfo {
    /// The name used in SQL.
    pub name: String,
    /// How its key is sent, such as `openai`.
    pub kind: String,
    /// Whether it outlives the session.
    pub persistent: bool,
}

#[derive(Clone, Debug)]
struct StoredSecret {
    kind: String,
    key: Secret,
}

impl SecretStore {
    /// Makes a store whose persistent secrets lie in `folder`, which is made when it is needed. Reads nothing yet.
    pub fn new(folder: Option<PathBuf>) -> Self {
        SecretStore { memory: Mutex::default(), folder }
    }

    /// Keeps a secret. One name is one secret, in memory or in the file.
    ///
    /// Fails if the fields do not make a secret, if the name is taken and is to be refused, or if the file cannot be written.
    pub fn create(&self, name: &str, fields: &SecretFields, persistent: bool, existing: Existing) -> Result<()> {
        let secret = StoredSecret::from_fields(name, fields)?;
        let mut memory = self.lock();
        let mut file = self.read_file()?;
        let is_taken = memory.contains_key(name) || file.contains_key(name);
        match existing {
            Existing::Refuse if is_taken => {
                return plan_err!("secret {name:?} exists already; use CREATE OR REPLACE SECRET or another name");
            }
            Existing::Keep if is_taken => return Ok(()),
            _ => {}
        }
        let was_persistent = file.remove(name).is_some();
        if persistent {
            file.insert(name.to_owned(), secret);
            self.write_file(&file)?;
            memory.remove(name);
            return Ok(());
        }
        if was_persistent {
            self.write_file(&file)?;
        }
        memory.insert(name.to_owned(), secret);
        Ok(())
    }

    /// Removes a secret, or only one that is persistent. Returns whether it was there.
    pub fn remove(&self, name: &str, only_persistent: bool) -> Result<bool> {
        let mut memory = self.lock();
        let in_memory = !only_persistent && memory.remove(name).is_some();
        let mut file = self.read_file()?;
        let in_file = file.remove(name).is_some();
        if in_file {
            self.write_file(&file)?;
        }
        Ok(in_memory || in_file)
    }

    /// Returns the key of a secret. Fails if there is none of this name.
    pub fn key(&self, name: &str) -> Result<Secret> {
        let memory = self.lock();
        if let Some(secret) = memory.get(name) {
            return Ok(secret.key.clone());
        }
        let file = self.read_file()?;
        match file.get(name) {
            Some(secret) => Ok(secret.key.clone()),
            None => {
                let names: Vec<&str> = memory.keys().chain(file.keys()).map(String::as_str).collect();
                let known =
                    if names.is_empty() { "there is none".to_owned() } else { format!("known: {}", names.join(", ")) };
                plan_err!(
                    "secret {name:?} is unknown ({known}); make it with CREATE SECRET {name} (TYPE openai, API_KEY '…')"
                )
            }
        }
    }

    /// Lists the secrets by name.
    pub fn list(&self) -> Result<Vec<SecretInfo>> {
        let info = |(name, secret): (&String, &StoredSecret), persistent| SecretInfo {
            name: name.clone(),
            kind: secret.kind.clone(),
            persistent,
        };
        let mut secrets: Vec<SecretInfo> = self.lock().iter().map(|entry| info(entry, false)).collect();
        secrets.extend(self.read_file()?.iter().map(|entry| info(entry, true)));
        secrets.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(secrets)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, StoredSecret>> {
        self.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn file(&self) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join("secrets.json"))
    }

    fn read_file(&self) -> Result<BTreeMap<String, StoredSecret>> {
        let Some(path) = self.file() else { return Ok(BTreeMap::new()) };
        let text = match read_private(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(exec_datafusion_err!("cannot read the secrets in {}: {error}", path.display())),
        };
        parse_file(&text).ok_or_else(|| {
            exec_datafusion_err!(
                "cannot read the secrets in {}: it is damaged or of a newer version; move it away and create them anew",
                path.display()
            )
        })
    }

    fn write_file(&self, secrets: &BTreeMap<String, StoredSecret>) -> Result<()> {
        let (Some(folder), Some(path)) = (&self.folder, self.file()) else {
            return plan_err!(
                "this session keeps no persistent secrets, as its program named no folder; leave out PERSISTENT"
            );
        };
        let entries: Vec<Value> = secrets
            .iter()
            .map(|(name, secret)| json!({"name": name, "type": secret.kind, "api_key": secret.key.expose()}))
            .collect();
        let text = json!({"version": FILE_VERSION, "secrets": entries}).to_string();
        write_private(folder, &path, &text)
            .map_err(|error| exec_datafusion_err!("cannot write the secrets to {}: {error}", path.display()))
    }
}

impl StoredSecret {
    fn from_fields(name: &str, fields: &SecretFields) -> Result<Self> {
        let (mut kind, mut key) = (None, None);
        for (field, value) in &fields.0 {
            let place = match field.as_str() {
                "type" => &mut kind,
                "api_key" => &mut key,
                other => {
                    return plan_err!("secret {name:?} has no field {other}{}", suggest(other, FIELDS.iter().copied()));
                }
            };
            if place.replace(value.clone()).is_some() {
                return plan_err!("secret {name:?}: field {field} is given twice");
            }
        }
        let missing = |field: &str| plan_datafusion_err!("secret {name:?} needs {field}: (TYPE openai, API_KEY '…')");
        let kind = kind.ok_or_else(|| missing("TYPE"))?.to_lowercase();
        if !TYPES.contains(&kind.as_str()) {
            return plan_err!("secret {name:?}: this TYPE is not known; known: {}", TYPES.join(", "));
        }
        let key = key.filter(|key| !key.is_empty()).ok_or_else(|| missing("API_KEY"))?;
        if !key.chars().all(|c| c.is_ascii_graphic()) {
            return plan_err!("secret {name:?}: the API_KEY must be visible ASCII characters without blanks or line ends");
        }
        Ok(StoredSecret { kind, key: Secret::new(key) })
    }
}

/// Reads the text of the file; `None` if it is not what this version writes.
fn parse_file(text: &str) -> Option<BTreeMap<String, StoredSecret>> {
    let json: Value = serde_json::from_str(text).ok()?;
    if json["version"].as_u64()? != FILE_VERSION {
        return None;
    }
    let mut secrets = BTreeMap::new();
    for entry in json["secrets"].as_array()? {
        let field = |name: &str| entry[name].as_str().map(str::to_owned);
        let secret = StoredSecret { kind: field("type")?, key: Secret::new(field("api_key")?) };
        secrets.insert(field("name")?, secret);
    }
    Some(secrets)
}

/// Reads a file that nobody else may read.
fn read_private(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0 {
        return Err(io::Error::other(format!("others may read it; run chmod 600 {}, and renew its keys", path.display())));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("it is too large to be a file of secrets"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Replaces a file by one that nobody else may read; whoever reads at the same time sees the old one or the new one.
fn write_private(folder: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)?;
    let written = path.with_extension(format!("{}.new", std::process::id()));
    match fs::remove_file(&written) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&written)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&written, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(key: &str) -> SecretFields {
        SecretFields(vec![("type".into(), "openai".into()), ("api_key".into(), key.into())])
    }

    fn names(store: &SecretStore) -> Vec<(String, bool)> {
        store.list().unwrap().into_iter().map(|secret| (secret.name, secret.persistent)).collect()
    }

    #[test]
    fn one_name_is_one_secret() {
        let store = SecretStore::default();
        store.create("k", &fields("sk-1"), false, Existing::Refuse).unwrap();
        let error = store.create("k", &fields("sk-2"), false, Existing::Refuse).unwrap_err().to_string();
        assert!(error.contains("exists already") && !error.contains("sk-"), "{error}");
        store.create("k", &fields("sk-2"), false, Existing::Keep).unwrap();
        assert_eq!(store.key("k").unwrap().expose(), "sk-1");
        store.create("k", &fields("sk-2"), false, Existing::Replace).unwrap();
        assert_eq!(store.key("k").unwrap().expose(), "sk-2");
        assert!(!format!("{store:?}").contains("sk-2"));
        assert!(!store.remove("k", true).unwrap());
        assert!(store.remove("k", false).unwrap() && !store.remove("k", false).unwrap());
        assert!(store.key("k").unwrap_err().to_string().contains("make it with CREATE SECRET k"));
    }

    #[test]
    fn persistent_secrets_outlive_the_session() {
        let folder = tempfile::tempdir().unwrap();
        let open = || SecretStore::new(Some(folder.path().join("a/b")));
        open().create("k", &fields("sk-1"), true, Existing::Refuse).unwrap();
        assert_eq!(open().key("k").unwrap().expose(), "sk-1");
        assert_eq!(names(&open()), [("k".to_owned(), true)]);
        assert!(open().remove("k", true).unwrap() && names(&open()).is_empty());
        open().create("k", &fields("sk-1"), true, Existing::Refuse).unwrap();
        let store = open();
        store.create("k", &fields("sk-2"), false, Existing::Replace).unwrap();
        assert_eq!(names(&store), [("k".to_owned(), false)]);
        assert!(names(&open()).is_empty());
        let none = SecretStore::default().create("k", &fields("sk-1"), true, Existing::Refuse);
        assert!(none.unwrap_err().to_string().contains("leave out PERSISTENT"));
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_private_and_its_damage_is_told() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let store = SecretStore::new(Some(folder.path().to_owned()));
        store.create("k", &fields("sk-1"), true, Existing::Refuse).unwrap();
        let path = folder.path().join("secrets.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(store.key("k").unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{\"version\": 9, \"secrets\": [\"sk-1\"]}").unwrap();
        let error = store.key("k").unwrap_err().to_string();
        assert!(error.contains("damaged or of a newer version") && !error.contains("sk-1"), "{error}");
    }

    #[test]
    fn fields_are_checked() {
        let check = |fields: &[(&str, &str)], expected: &str| {
            let fields = fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let error = StoredSecret::from_fields("k", &SecretFields(fields)).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("sk-"), "{error}");
        };
        check(&[("type", "openai")], "needs API_KEY");
        check(&[("api_key", "sk-1")], "needs TYPE");
        check(&[("type", "sk-1"), ("api_key", "sk-1")], "this TYPE is not known; known: openai");
        check(&[("typ", "openai")], "has no field typ; did you mean type?");
        check(&[("type", "openai"), ("api_key", "sk-1"), ("api_key", "sk-2")], "given twice");
        check(&[("type", "openai"), ("api_key", "sk-1\nX: y")], "visible ASCII");
    }
}
