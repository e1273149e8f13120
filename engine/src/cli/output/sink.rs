//! The place results are written to: standard output or a file.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

use console::Term;

use super::format::Format;
use crate::cli::error::{Failure, Outcome};

/// Where data goes.
pub(crate) struct Sink {
    writer: Box<dyn Write + Send>,
    is_terminal: bool,
    held: Held,
}

/// What a place holds so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Text,
    Parquet,
}

impl Sink {
    /// Standard output.
    pub(crate) fn stdout() -> Self {
        Self { writer: Box::new(BufWriter::new(io::stdout())), is_terminal: io::stdout().is_terminal(), held: Held::Nothing }
    }

    /// A new file; one of this name is overwritten.
    pub(crate) fn file(path: &Path) -> Outcome<Self> {
        let file = File::create(path).map_err(|error| Failure::file("write", path, error))?;
        Ok(Self { writer: Box::new(BufWriter::new(file)), is_terminal: false, held: Held::Nothing })
    }

    /// Prepares for something of this format. Fails where that would spoil a Parquet file, which is one result, or a terminal.
    pub(crate) fn claim(&mut self, format: Format) -> Outcome<()> {
        let is_parquet = format == Format::Parquet;
        if is_parquet && self.is_terminal {
            return Err(Failure::usage("Parquet is no text for a terminal; \\mode parquet FILE writes a result to a file"));
        }
        self.held = match (self.held, is_parquet) {
            (Held::Nothing, true) => Held::Parquet,
            (Held::Nothing | Held::Text, false) => Held::Text,
            _ => {
                return Err(Failure::usage(
                    "a Parquet file holds one result and nothing else; \\mode parquet FILE names another",
                ));
            }
        };
        Ok(())
    }

    /// Where to write.
    pub(crate) fn out(&mut self) -> &mut dyn Write {
        &mut self.writer
    }

    /// Columns of the terminal written to, if it is one and knows them: some tell 0.
    pub(crate) fn width(&self) -> Option<u16> {
        self.is_terminal.then(|| comfy_table::Table::new().width()).flatten().filter(|width| *width > 0)
    }

    /// Lines of the terminal written to, if it is one and knows them.
    pub(crate) fn height(&self) -> Option<u16> {
        self.is_terminal.then(|| Term::stdout().size_checked().map(|(lines, _)| lines)).flatten()
    }

    /// Hands everything written so far on.
    pub(crate) fn flush(&mut self) -> Outcome<()> {
        Ok(self.writer.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parquet_file_is_one_result() {
        let folder = tempfile::tempdir().unwrap();
        let new = || Sink::file(&folder.path().join("x")).unwrap();
        let mut file = new();
        file.claim(Format::Parquet).unwrap();
        assert_eq!(file.claim(Format::Parquet).unwrap_err().exit_code(), 2);
        assert_eq!(file.claim(Format::Csv).unwrap_err().exit_code(), 2);
        let mut texts = new();
        texts.claim(Format::Csv).unwrap();
        texts.claim(Format::Table).unwrap();
        assert_eq!(texts.claim(Format::Parquet).unwrap_err().exit_code(), 2);
    }
}
