//! One statement from text to rows: planned, run, written, accounted for, and interruptible at each step.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::record_batch::RecordBatch;

use super::closing;
use super::error::{Failure, Outcome, complain};
use super::interrupt::Interrupts;
use super::kept::Kept;
use super::numbers::{bytes, counted, seconds};
use super::output;
use super::place::Statement;
use super::progress::{INTERVAL, PATIENCE, ProgressLines};
use super::session::{LastQuery, Session};
use crate::QueryUsage;

/// What a query gave and what it came to.
pub(crate) struct Collected {
    /// Its rows.
    pub(crate) rows: RecordBatch,
    /// What its model calls came to.
    pub(crate) usage: QueryUsage,
    /// From the text of the statement to its last row.
    pub(crate) elapsed_s: f64,
}

impl Session {
    /// Runs one statement, writes its rows, and tells what it came to.
    pub(crate) async fn execute(&mut self, sql: &str) -> Outcome<()> {
        let usual = self.redirect();
        let outcome = self.execute_there(sql).await;
        self.restore(usual);
        outcome
    }

    /// As [`execute`](Self::execute), with its rows going where they go now.
    async fn execute_there(&mut self, sql: &str) -> Outcome<()> {
        let (started, started_at) = (Instant::now(), SystemTime::now());
        let mut lines = self.progress_lines();
        let mut run = self.start(sql, &mut lines).await?;
        let schema = run.schema();
        let has_columns = !schema.fields().is_empty();
        if has_columns {
            self.sink.claim(self.view.effective_format())?;
        }
        let mut kept = (has_columns && self.view.interactive).then(|| Kept::new(Arc::clone(&schema)));
        let mut writer = output::writer(self.view.effective_format(), schema, self.layout());
        let mut page = self.page();
        let mut rows = 0;
        let sink = &mut self.sink;
        let write = |batch: RecordBatch| {
            rows += batch.num_rows() as u64;
            if let Some(kept) = &mut kept {
                kept.keep(&batch);
            }
            match &mut page {
                Some(page) => writer.batch(page, &batch),
                None => writer.batch(sink.out(), &batch).and_then(|()| sink.flush()),
            }
        };
        let delivered = drain(run.as_mut(), &mut self.interrupts, lines, write).await;
        let delivered = delivered.and_then(|()| {
            let out: &mut dyn Write = match &mut page {
                Some(page) => page,
                None => self.sink.out(),
            };
            let hidden = writer.finish(out)?;
            self.kept = kept.or(self.kept.take());
            Ok(Delivered { rows: has_columns.then_some(rows), hidden: hidden as u64 })
        });

        // The time that a person takes to read it is not the statement's.
        let elapsed_s = started.elapsed().as_secs_f64();
        let delivered = delivered.and_then(|delivered| {
            match page {
                Some(page) => self.deliver(&page)?,
                None => self.sink.flush()?,
            }
            Ok(delivered)
        });
        self.tell_loads(started_at);
        let account = match run.account().await {
            Ok(account) => account,
            Err(error) => return delivered.and(Err(error)),
        };
        let outcome = self.account(delivered, &account.usage, elapsed_s);
        self.last = Some(LastQuery { sql: sql.to_owned(), account });
        outcome
    }

    /// Runs one statement and keeps its rows.
    pub(crate) async fn collect(&mut self, sql: &str) -> Outcome<Collected> {
        let started = Instant::now();
        let mut lines = self.progress_lines();
        let mut run = self.start(sql, &mut lines).await?;
        let mut batches = Vec::new();
        let keep = |batch| {
            batches.push(batch);
            Ok(())
        };
        drain(run.as_mut(), &mut self.interrupts, lines, keep).await?;
        let rows = concat_batches(&run.schema(), &batches)?;
        let elapsed_s = started.elapsed().as_secs_f64();
        Ok(Collected { rows, usage: run.account().await?.usage, elapsed_s })
    }

    /// Plans and starts a statement; what loads a model or makes a table runs here, so loads are shown.
    async fn start(&mut self, sql: &str, lines: &mut Option<ProgressLines>) -> Outcome<Box<dyn Statement>> {
        self.allow(sql).await?;
        let planned = async {
            let mut planned = self.place.start(sql);
            let mut tick = tokio::time::interval(INTERVAL);
            loop {
                tokio::select! {
                    biased;
                    planned = &mut planned => break planned,
                    _ = tick.tick() => lines.iter_mut().for_each(ProgressLines::draw_loads),
                }
            }
        };
        self.interrupts.race(planned).await?
    }

    /// Fails if statements that change something are refused, and this is one.
    pub(crate) async fn allow(&self, sql: &str) -> Outcome<()> {
        match self.is_readonly && self.place.changes_something(sql).await? {
            true => Err(Failure::ReadOnly),
            false => Ok(()),
        }
    }

    /// Tells which models were loaded since a statement began: to a person any, else those that took a while.
    fn tell_loads(&self, since: SystemTime) {
        for model in self.db.models() {
            if let Some(facts) = model.loaded.filter(|facts| facts.at >= since)
                && (self.view.interactive || facts.took >= PATIENCE)
            {
                let device = model.device.unwrap_or_default();
                let weights = if facts.weight_bytes > 0 {
                    format!("{} of weights, ", bytes(facts.weight_bytes))
                } else {
                    String::new()
                };
                self.notice(&format!("loaded {} in {} ({weights}{device})", model.name, seconds(facts.took.as_secs_f64())));
            }
        }
    }

    /// Lines for progress, where somebody can see them.
    fn progress_lines(&self) -> Option<ProgressLines> {
        let is_seen = !self.view.quiet && io::stderr().is_terminal();
        is_seen.then(|| ProgressLines::new(Arc::clone(self.db.model_catalog())))
    }

    /// Tells on standard error what a finished or stopped query came to.
    fn account(&self, delivered: Outcome<Delivered>, usage: &QueryUsage, elapsed_s: f64) -> Outcome<()> {
        let spent = closing::spent(usage);
        let Delivered { rows, hidden } = delivered.inspect_err(|error| {
            // The terminal has shown ^C; what follows deserves a line of its own.
            if self.view.interactive && matches!(error, Failure::Interrupted) {
                complain("");
            }
            if let Some(spent) = &spent {
                self.notice(&format!("stopped after {}; {spent}", seconds(elapsed_s)));
            }
        })?;
        if hidden > 0 {
            let shown_by =
                if self.view.interactive { "\\last shows them, and \\maxrows all" } else { "\\maxrows all shows" };
            self.notice(&format!("{} more not shown; {shown_by} every row", counted(hidden, "row")));
        }
        let is_timed = self.view.timing || spent.is_some();
        if is_timed || self.view.interactive {
            self.notice(&closing::closing_line(rows, is_timed.then_some(elapsed_s), usage));
        }
        // Lost rows are told even to those who want quiet: the result is not what the query asked for.
        if let Some(failures) = closing::failures(usage) {
            complain(&failures);
            if self.view.strict_rows {
                return Err(Failure::RowsFailed(usage.failed_rows));
            }
        }
        Ok(())
    }
}

/// Rows that a query gave, if it is one that gives rows, and how many of them were not shown.
struct Delivered {
    rows: Option<u64>,
    hidden: u64,
}

/// Hands each batch on as it comes, drawing progress between them, until the end, an error or an interrupt. A run that did not
/// reach its end is cancelled.
async fn drain(
    run: &mut dyn Statement,
    interrupts: &mut Interrupts,
    mut lines: Option<ProgressLines>,
    mut hand_on: impl FnMut(RecordBatch) -> Outcome<()>,
) -> Outcome<()> {
    let progress = lines.is_some().then(|| run.progress());
    let mut tick = tokio::time::interval(INTERVAL);
    let outcome = loop {
        let batch = tokio::select! {
            biased;
            () = interrupts.next() => break Err(Failure::Interrupted),
            _ = tick.tick() => {
                if let (Some(lines), Some(progress)) = (&mut lines, &progress) {
                    lines.draw(&progress.borrow());
                }
                continue;
            }
            batch = run.next() => batch,
        };
        let handed_on = match batch {
            Ok(None) => break Ok(()),
            Ok(Some(batch)) => match &lines {
                Some(lines) => lines.suspend(|| hand_on(batch)),
                None => hand_on(batch),
            },
            Err(error) => Err(error),
        };
        if handed_on.is_err() {
            break handed_on;
        }
    };
    if outcome.is_err() {
        run.cancel();
    }
    outcome
}
