//! The pager: text that is higher than the terminal, a page at a time.

use std::io::{self, Write};
use std::process::Stdio;

use super::child;

/// The pager of those who name none.
const PAGER: &str = "less";

/// Options of `less` for those who have set none: it ends where all fits on one page, keeps colours, leaves the page on the terminal, and
/// cuts long lines instead of breaking them.
const LESS: &str = "FRXS";

/// Whether there is a pager, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pager {
    /// Whether it is used.
    pub(crate) is_on: bool,
    /// The program, with its arguments.
    pub(crate) command: String,
}

/// What `\pager` changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PagerChange {
    /// On if it was off, and off if it was on.
    Turn,
    /// On or off.
    Switch(bool),
    /// On, by this program.
    To(String),
}

impl PagerChange {
    /// Reads `on`, `off`, or the command of a pager; nothing turns it.
    pub(crate) fn named(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "" => PagerChange::Turn,
            "on" => PagerChange::Switch(true),
            "off" => PagerChange::Switch(false),
            _ => PagerChange::To(text.to_owned()),
        }
    }
}

impl Pager {
    /// The pager that the environment names by `PAGER`; it is off where that is set to nothing.
    pub(crate) fn usual() -> Self {
        let command = std::env::var("PAGER").map_or_else(|_| PAGER.to_owned(), |pager| pager.trim().to_owned());
        Pager { is_on: !command.is_empty(), command: if command.is_empty() { PAGER.to_owned() } else { command } }
    }

    /// Changes it.
    pub(crate) fn change(&mut self, change: PagerChange) {
        match change {
            PagerChange::Turn => self.is_on = !self.is_on,
            PagerChange::Switch(is_on) => self.is_on = is_on,
            PagerChange::To(command) => *self = Pager { is_on: true, command },
        }
    }

    /// Shows a text until the user leaves the pager. Returns whether there is such a program.
    pub(crate) fn show(&self, text: &[u8]) -> io::Result<bool> {
        let mut command = child::command(&self.command);
        if std::env::var_os("LESS").is_none() {
            command.env("LESS", LESS);
        }
        let mut pager = command.stdin(Stdio::piped()).spawn()?;
        // Whoever leaves before the end does not want the rest.
        if let Some(mut input) = pager.stdin.take()
            && let Err(error) = input.write_all(text)
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(error);
        }
        Ok(pager.wait()?.code() != Some(child::NOT_FOUND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_switched_and_named() {
        let mut pager = Pager { is_on: false, command: "less".into() };
        let mut check = |change: &str, is_on, command: &str| {
            pager.change(PagerChange::named(change));
            assert_eq!(pager, Pager { is_on, command: command.into() }, "{change}");
        };
        check("more -d", true, "more -d");
        check("OFF", false, "more -d");
        check("", true, "more -d");
        check("", false, "more -d");
        check("on", true, "more -d");
    }

    #[test]
    fn a_text_is_read_as_far_as_the_pager_wants() {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("seen");
        let pager = |command: String| Pager { is_on: true, command };
        let all = pager(format!("cat > '{}'; :", seen.display()));
        assert!(all.show(b"a\nb\n").unwrap());
        assert_eq!(std::fs::read(&seen).unwrap(), b"a\nb\n");
        assert!(pager("true".into()).show(&b"x".repeat(1 << 20)).unwrap(), "it leaves before the end");
        assert!(!pager("no-such-pager-anywhere 2> /dev/null".into()).show(b"a").unwrap());
    }
}
