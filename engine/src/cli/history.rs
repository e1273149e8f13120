//! Where the shell keeps its files.

use std::path::{Path, PathBuf};

/// The file of past statements: `$XDG_STATE_HOME/refrain/history`, by default under `~/.local/state`.
pub(crate) fn history_file() -> Option<PathBuf> {
    user_file("XDG_STATE_HOME", ".local/state", "history")
}

/// The script that every session runs first: `$XDG_CONFIG_HOME/refrain/rc.sql`, by default under `~/.config`.
pub(crate) fn init_file() -> Option<PathBuf> {
    user_file("XDG_CONFIG_HOME", ".config", "rc.sql")
}

/// The script of the current folder, which runs only where the user has asked for it.
pub(crate) fn local_init_file() -> PathBuf {
    PathBuf::from(".refrainrc")
}

/// The folder of persistent secrets: `$XDG_DATA_HOME/refrain/secrets`, by default under `~/.local/share`.
pub(crate) fn secrets_folder() -> Option<PathBuf> {
    user_file("XDG_DATA_HOME", ".local/share", "secrets")
}

/// The folder of kernels that were compiled for a GPU: `$XDG_CACHE_HOME/refrain/kernels`, by default under `~/.cache`.
pub(crate) fn kernel_cache() -> Option<PathBuf> {
    user_file("XDG_CACHE_HOME", ".cache", "kernels")
}

fn user_file(variable: &str, default: &str, name: &str) -> Option<PathBuf> {
    let chosen = std::env::var_os(variable).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let folder = chosen.or_else(|| std::env::home_dir().map(|home| home.join(default)))?;
    Some(folder.join("refrain").join(name))
}

/// Creates an empty history that only its owner may read, unless there is one.
pub(crate) fn create_private(path: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    drop(file);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn the_history_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/history");
        create_private(&path).unwrap();
        create_private(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
