//! Where the shell keeps its files, and what must not enter its history.

use std::path::{Path, PathBuf};

use super::lex::{self, TokenKind};

/// The file of past statements: `$XDG_STATE_HOME/refrain/history`, by default under `~/.local/state`.
pub(crate) fn history_file() -> Option<PathBuf> {
    user_file("XDG_STATE_HOME", ".local/state", "history")
}

/// The script that every session runs first: `$XDG_CONFIG_HOME/refrain/rc.sql`, by default under `~/.config`.
pub(crate) fn init_file() -> Option<PathBuf> {
    user_file("XDG_CONFIG_HOME", ".config", "rc.sql")
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

/// Whether a statement of this input creates a secret. It is enough that the word follows the verb, so that a statement with a
/// slip in it is kept out as well.
pub(crate) fn holds_secret(input: &str) -> bool {
    let mut creates = false;
    for token in lex::tokens(input) {
        match token.kind {
            TokenKind::Semicolon => creates = false,
            TokenKind::Word if token.text(input).eq_ignore_ascii_case("create") => creates = true,
            TokenKind::Word if creates && token.text(input).eq_ignore_ascii_case("secret") => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_recognised() {
        for secret in
            ["CREATE SECRET k (TYPE openai, API_KEY 'x');", "select 1; create or replace\n persistent secret k (api_key 'x"]
        {
            assert!(holds_secret(secret), "{secret}");
        }
        for plain in ["select 'create secret'", "create table t(a int); drop secret k", "-- create secret"] {
            assert!(!holds_secret(plain), "{plain}");
        }
    }

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
