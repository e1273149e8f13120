//! The interactive loop: read, run, tell, until the user leaves.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Behavior, CompletionType, Config, Editor, config};

use super::complete::Vocabulary;
use super::dispatch::Flow;
use super::editor::{self, SqlHelper};
use super::error::{Failure, Outcome, complain};
use super::history;
use super::script;
use super::session::Session;
use crate::redact;

/// Statements remembered.
const HISTORY_SIZE: usize = 10_000;

/// A line editor, and the file of its history if there can be one.
struct LineEditor {
    editor: Editor<SqlHelper, FileHistory>,
    history: Option<PathBuf>,
}

/// Runs the shell until the user leaves.
pub(crate) async fn run(session: &mut Session) -> Outcome<()> {
    session.notice(&format!("{}\n\\? for help, \\q to leave", session.place.about().await?));
    let mut lines = LineEditor::open()?;
    loop {
        let (prompt, vocabulary) = (session.place.prompt(), session.place.vocabulary().await);
        let Some(input) = tokio::task::block_in_place(|| lines.read(&prompt, vocabulary))? else { return Ok(()) };
        session.interrupts.reset();
        let input = editor::is_bare_word(&input).map_or(input, str::to_owned);
        let outcome = session.run_items(script::items(&input), true).await;
        if let Some(text) = session.edited.take() {
            lines.remember(&text);
        }
        match outcome {
            Ok(Flow::Continue) => {}
            Ok(Flow::Quit) => return Ok(()),
            Err(Failure::OutputClosed) => return Err(Failure::OutputClosed),
            Err(Failure::Interrupted) => complain("interrupted"),
            Err(error) => error.tell(),
        }
    }
}

impl LineEditor {
    fn open() -> Outcome<Self> {
        let config = terminal()
            .completion_type(CompletionType::List)
            .history_ignore_space(true)
            .max_history_size(HISTORY_SIZE)
            .map_err(unusable)?;
        let mut editor = Editor::with_config(config.build()).map_err(unusable)?;
        editor.set_helper(Some(SqlHelper::default()));
        // A home that cannot be written to costs the history, not the shell.
        let history = history::history_file().filter(|path| history::create_private(path).is_ok());
        let history = history.filter(|path| editor.load_history(path).is_ok());
        Ok(Self { editor, history })
    }

    /// Reads the next input, `None` once the user leaves. Ctrl-C clears what was typed.
    fn read(&mut self, prompt: &str, vocabulary: Vocabulary) -> Outcome<Option<String>> {
        if let Some(helper) = self.editor.helper_mut() {
            helper.vocabulary = vocabulary;
        }
        loop {
            match self.editor.readline(prompt) {
                Ok(input) if input.trim().is_empty() => {}
                Ok(input) => {
                    self.remember(&input);
                    return Ok(Some(input));
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(unusable(error)),
            }
        }
    }

    fn remember(&mut self, input: &str) {
        if redact::holds_secret(input) {
            return;
        }
        // A history that cannot be written must not keep a statement from running.
        let _ = self.editor.add_history_entry(input.trim_end());
        if let Some(path) = &self.history {
            let _ = self.editor.append_history(path);
        }
    }
}

/// How lines are read from the terminal.
pub(crate) fn terminal() -> config::Builder {
    // With standard output redirected the prompt must not end up among the data.
    let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
    Config::builder().behavior(behavior)
}

/// A terminal that cannot be read.
pub(crate) fn unusable(error: ReadlineError) -> Failure {
    match error {
        ReadlineError::Io(source) => Failure::io("cannot read the terminal", source),
        error => Failure::io("cannot read the terminal", io::Error::other(error)),
    }
}
