//! The place results are written to: standard output or a file.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

use crate::cli::error::{Failure, Outcome};

/// Where data goes.
pub(crate) struct Sink {
    writer: Box<dyn Write + Send>,
    is_terminal: bool,
}

impl Sink {
    /// Standard output.
    pub(crate) fn stdout() -> Self {
        Self { writer: Box::new(BufWriter::new(io::stdout())), is_terminal: io::stdout().is_terminal() }
    }

    /// A new file; one of this name is overwritten.
    pub(crate) fn file(path: &Path) -> Outcome<Self> {
        let file = File::create(path).map_err(|error| Failure::file("write", path, error))?;
        Ok(Self { writer: Box::new(BufWriter::new(file)), is_terminal: false })
    }

    /// Where to write.
    pub(crate) fn out(&mut self) -> &mut dyn Write {
        &mut self.writer
    }

    /// Columns of the terminal written to, if it is one.
    pub(crate) fn width(&self) -> Option<u16> {
        self.is_terminal.then(|| comfy_table::Table::new().width()).flatten()
    }

    /// Hands everything written so far on.
    pub(crate) fn flush(&mut self) -> Outcome<()> {
        Ok(self.writer.flush()?)
    }
}
