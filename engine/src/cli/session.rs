//! One session of the engine with the user's choices of output.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;

use super::args::Args;
use super::error::{Failure, Outcome, complain};
use super::history;
use super::interrupt::Interrupts;
use super::kept::Kept;
use super::output::{self, Format, Layout, Sink};
use super::pager::Pager;
use super::place::{Account, Place};
#[cfg(feature = "flight")]
use super::remote::ServerArgs;
use crate::{Error, ModelSource, Refrain};

/// Rows of a table shown at a prompt unless the user asks for another number.
const ROWS_SHOWN: usize = 100;

/// How results and notices are shown.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Format of results.
    pub(crate) format: Format,
    /// Whether tables are shown one value a line.
    pub(crate) expanded: bool,
    /// Whether every statement's time is told.
    pub(crate) timing: bool,
    /// Rows of a table to show at most.
    pub(crate) max_rows: Option<usize>,
    /// Text for NULL, if the user chose one.
    pub(crate) null: Option<String>,
    /// Whether a person waits at a prompt.
    pub(crate) interactive: bool,
    /// Whether notices are left out.
    pub(crate) quiet: bool,
    /// Whether a lost row is an error.
    pub(crate) strict_rows: bool,
}

impl View {
    /// The format that `\mode` and `\x` together ask for.
    pub(crate) fn effective_format(&self) -> Format {
        if self.expanded && self.format == Format::Table { Format::Expanded } else { self.format }
    }
}

/// What is remembered of the last query.
pub(crate) struct LastQuery {
    /// Its text.
    pub(crate) sql: String,
    /// What it has come to.
    pub(crate) account: Account,
}

/// A session of the engine, and where and how its results are shown.
pub(crate) struct Session {
    /// The engine of this process.
    pub(crate) db: Refrain,
    /// Where statements run: there, unless the user has connected to a server.
    pub(crate) place: Arc<dyn Place>,
    /// Ctrl-C.
    pub(crate) interrupts: Interrupts,
    /// Where data goes.
    pub(crate) sink: Sink,
    /// How it is shown.
    pub(crate) view: View,
    /// Options for servers.
    #[cfg(feature = "flight")]
    pub(crate) server: ServerArgs,
    /// The last query, if one was run.
    pub(crate) last: Option<LastQuery>,
    /// The rows of the last result, where a person may want them again.
    pub(crate) kept: Option<Kept>,
    /// Where the next result goes instead.
    pub(crate) once: Option<Once>,
    /// What shows results that are higher than the terminal.
    pub(crate) pager: Pager,
    /// Whether the user is asked before what is dear.
    pub(crate) asks: bool,
    /// Whether statements that change something are refused.
    pub(crate) is_readonly: bool,
    /// What the user has written in an editor, until the history has it.
    pub(crate) edited: Option<String>,
}

/// Where one result goes.
pub(crate) struct Once {
    /// The place.
    pub(crate) sink: Sink,
    /// How it is written there, if not as usual.
    pub(crate) format: Option<Format>,
}

impl Session {
    /// Opens the session that the command line asks for.
    pub(crate) async fn open(args: &Args, interactive: bool, interrupts: Interrupts) -> Outcome<Self> {
        let db = builder(args)?.build().await?;
        let sink = args.output.as_deref().map_or_else(|| Ok(Sink::stdout()), Sink::file)?;
        let view = View {
            format: args.format,
            expanded: false,
            timing: interactive,
            max_rows: interactive.then_some(ROWS_SHOWN),
            null: None,
            interactive,
            quiet: args.quiet,
            strict_rows: args.strict_rows,
        };
        let mut session = Self::over(db, interrupts, sink, view);
        session.asks = interactive && !args.yes;
        #[cfg(feature = "flight")]
        session.server.clone_from(&args.server);
        Ok(session)
    }

    /// A session whose statements run in this process.
    pub(crate) fn over(db: Refrain, interrupts: Interrupts, sink: Sink, view: View) -> Self {
        Self {
            place: Arc::new(db.clone()),
            db,
            interrupts,
            sink,
            view,
            #[cfg(feature = "flight")]
            server: ServerArgs::default(),
            last: None,
            kept: None,
            once: None,
            pager: Pager::usual(),
            asks: false,
            is_readonly: false,
            edited: None,
        }
    }

    /// Runs statements on a server from now on, or again in this process.
    #[cfg(feature = "flight")]
    pub(crate) async fn connect_to(&mut self, address: Option<&str>) -> Outcome<()> {
        let place: Arc<dyn Place> = match address {
            Some(address) => Arc::new(self.interrupts.race(self.server.open_other(address)).await??),
            None => Arc::new(self.db.clone()),
        };
        self.move_to(place).await;
        if self.view.interactive {
            self.notice(&self.place.about().await?);
        }
        Ok(())
    }

    /// As above, in a program without a client for servers.
    #[cfg(not(feature = "flight"))]
    pub(crate) async fn connect_to(&mut self, address: Option<&str>) -> Outcome<()> {
        match address {
            Some(_) => Err(super::error::Failure::usage("this program was built without the feature flight")),
            None => Ok(()),
        }
    }

    /// Runs statements in another place from now on.
    #[cfg(feature = "flight")]
    pub(crate) async fn move_to(&mut self, place: Arc<dyn Place>) {
        self.place.leave().await;
        (self.place, self.last, self.kept) = (place, None, None);
    }

    /// How a result is laid out now.
    pub(crate) fn layout(&self) -> Layout {
        Layout { null: self.view.null.clone(), max_rows: self.view.max_rows, width: self.sink.width() }
    }

    /// Writes a listing in the current format, whole.
    pub(crate) fn show(&mut self, batch: &RecordBatch) -> Outcome<()> {
        self.show_all(batch.schema(), std::slice::from_ref(batch))
    }

    /// Writes rows in the current format, all of them.
    pub(crate) fn show_all(&mut self, schema: SchemaRef, batches: &[RecordBatch]) -> Outcome<()> {
        let usual = self.redirect();
        let outcome = self.write_all(schema, batches);
        self.restore(usual);
        outcome
    }

    fn write_all(&mut self, schema: SchemaRef, batches: &[RecordBatch]) -> Outcome<()> {
        self.sink.claim(self.view.effective_format())?;
        let layout = Layout { max_rows: None, ..self.layout() };
        let mut writer = output::writer(self.view.effective_format(), schema, layout);
        let mut page = self.page();
        let out: &mut dyn Write = match &mut page {
            Some(page) => page,
            None => self.sink.out(),
        };
        for batch in batches {
            writer.batch(out, batch)?;
        }
        writer.finish(out)?;
        match page {
            Some(page) => self.deliver(&page),
            None => self.sink.flush(),
        }
    }

    /// Writes text that the user asked for, ending its last line.
    pub(crate) fn print(&mut self, text: &str) -> Outcome<()> {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        let usual = self.redirect();
        let outcome = self.sink.claim(Format::Table).and_then(|()| self.deliver(format!("{text}{end}").as_bytes()));
        self.restore(usual);
        outcome
    }

    /// Sends what is written from here on where `\once` said, if it said so. Returns what [`restore`](Self::restore) needs.
    pub(crate) fn redirect(&mut self) -> Option<(Sink, View)> {
        let once = self.once.take()?;
        let mut view = View { max_rows: None, ..self.view.clone() };
        if let Some(format) = once.format {
            (view.format, view.expanded) = (format, false);
        }
        Some((std::mem::replace(&mut self.sink, once.sink), std::mem::replace(&mut self.view, view)))
    }

    /// Ends a redirection.
    pub(crate) fn restore(&mut self, usual: Option<(Sink, View)>) {
        if let Some((sink, view)) = usual {
            (self.sink, self.view) = (sink, view);
        }
    }

    /// An empty page for the pager, where the next result may need one.
    pub(crate) fn page(&self) -> Option<Vec<u8>> {
        let is_read = self.pager.is_on && self.view.interactive && self.view.effective_format().is_for_reading();
        (is_read && self.sink.height().is_some()).then(Vec::new)
    }

    /// Writes a text, through the pager where it is higher than the terminal.
    pub(crate) fn deliver(&mut self, text: &[u8]) -> Outcome<()> {
        let lines = text.iter().filter(|byte| **byte == b'\n').count();
        let is_high = self.sink.height().is_some_and(|height| lines >= usize::from(height));
        if is_high && self.pager.is_on && self.view.interactive {
            self.sink.flush()?;
            let shown = tokio::task::block_in_place(|| self.pager.show(text));
            // Ctrl-C in the pager was meant for the pager.
            self.interrupts.reset();
            if shown.map_err(|error| Failure::io("cannot run the pager", error))? {
                return Ok(());
            }
            self.pager.is_on = false;
            self.notice(&format!("no pager {}; \\pager names one", self.pager.command));
        }
        self.sink.out().write_all(text)?;
        self.sink.flush()
    }

    /// Tells something on standard error, unless notices are off.
    pub(crate) fn notice(&self, text: &str) {
        if !self.view.quiet {
            complain(text);
        }
    }
}

/// Translates the model options of the command line.
fn builder(args: &Args) -> Outcome<crate::Builder> {
    let mut builder = Refrain::builder();
    if let Some(folder) = history::secrets_folder() {
        builder = builder.secrets_folder(folder);
    }
    if let Some(folder) = history::kernel_cache() {
        builder = builder.kernel_cache(folder);
    }
    if let Some(device) = args.device {
        builder = builder.setting("device", device.to_string());
    }
    if let Some(threads) = args.threads {
        builder = builder.setting("threads", threads.to_string());
    }
    if let Some(model) = &args.model {
        let name = match model_name(model) {
            Some(name) => {
                builder = builder.model(name.clone(), ModelSource::parse(model).map_err(Error::from)?);
                name
            }
            None => model.clone(),
        };
        builder = builder.setting("model", name);
    }
    Ok(builder)
}

/// Tells a model to be made from the name of one: a path exists, or has a separator or the ending of a weight file; a random model
/// says so. Returns the name that the model gets in SQL.
pub(crate) fn model_name(model: &str) -> Option<String> {
    if let Some(shape) = model.strip_prefix("random:") {
        return Some(shape.to_owned());
    }
    let path = Path::new(model);
    let is_file = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if !(is_file || path.exists() || path.components().count() > 1) {
        return None;
    }
    let name = if is_file { path.file_stem() } else { path.file_name() };
    Some(name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_names() {
        assert_eq!(model_name("no_such_model"), None);
        assert_eq!(model_name("models/qwen3-8b").as_deref(), Some("qwen3-8b"));
        assert_eq!(model_name("tiny.Q4.gguf").as_deref(), Some("tiny.Q4"));
        assert_eq!(model_name("random:llama3-8b").as_deref(), Some("llama3-8b"));
    }
}
