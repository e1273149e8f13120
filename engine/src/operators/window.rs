//! A window: rows that are looked at together. It holds the batches, in memory or spilled, and the questions of each call.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, SpillFile, TaskContext};
use datafusion::physical_plan::SpillManager;
use datafusion::physical_plan::metrics::SpillMetrics;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};

use crate::operators::call::PhysicalCall;
use crate::operators::distinct::{NO_QUESTION, Questions};
use crate::operators::memo::ANSWER_BYTES;

/// Memory and disk for the rows of one operator.
#[derive(Debug)]
pub(super) struct RowStore {
    reservation: MemoryReservation,
    spill: SpillManager,
}

/// How large a window may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct WindowLimit {
    /// Rows.
    pub rows: usize,
    /// Distinct questions of any one call.
    pub questions: usize,
}

/// Rows that are looked at together.
pub(super) struct Window {
    batches: Vec<Stored>,
    batch_bytes: usize,
    /// The questions of each call.
    pub questions: Vec<Questions>,
    rows: usize,
}

enum Stored {
    Memory(RecordBatch),
    Spilled(Arc<dyn SpillFile>),
}

/// Where filling a window ended.
pub(super) enum Filled {
    /// The input has ended.
    InputEnded,
    /// The window is full; the rest of the last batch belongs to the next one.
    Full(Option<RecordBatch>),
}

impl RowStore {
    /// Registers with the memory pool and the disk manager of the query.
    pub(super) fn new(context: &TaskContext, partition: usize, schema: SchemaRef, metrics: SpillMetrics) -> Self {
        let consumer = MemoryConsumer::new(format!("LlmExec[{partition}]")).with_can_spill(true);
        RowStore {
            reservation: consumer.register(context.memory_pool()),
            spill: SpillManager::new(context.runtime_env(), metrics, schema),
        }
    }

    /// Returns the columns of the rows.
    pub(super) fn schema(&self) -> &SchemaRef {
        self.spill.schema()
    }

    /// Fills a window from `pending` and then `input`, up to its limit and as long as the questions fit into memory. A window that is not
    /// full may be filled further.
    pub(super) async fn fill(
        &self,
        window: &mut Window,
        calls: &[Arc<PhysicalCall>],
        limit: WindowLimit,
        mut pending: Option<RecordBatch>,
        input: &mut SendableRecordBatchStream,
    ) -> Result<Filled> {
        loop {
            let batch = match pending.take() {
                Some(batch) => batch,
                None => match input.next().await {
                    Some(batch) => batch?,
                    None => return Ok(Filled::InputEnded),
                },
            };
            if batch.num_rows() == 0 {
                continue;
            }
            let taken = window.add_questions(calls, &batch, limit)?;
            let has_room = self.keep(window, batch.slice(0, taken))?;
            if taken < batch.num_rows() {
                return Ok(Filled::Full(Some(batch.slice(taken, batch.num_rows() - taken))));
            }
            if !has_room || window.rows >= limit.rows {
                return Ok(Filled::Full(None));
            }
        }
    }

    /// Keeps a batch, spilling all batches when memory is short. Returns `false` if even the questions no longer fit: the window
    /// must be worked off before it grows.
    fn keep(&self, window: &mut Window, batch: RecordBatch) -> Result<bool> {
        window.rows += batch.num_rows();
        let question_bytes = window.question_bytes() + window.answer_bytes();
        let batch_bytes = window.batch_bytes + batch.get_array_memory_size();
        if self.reservation.try_resize(question_bytes + batch_bytes).is_ok() {
            window.batch_bytes = batch_bytes;
            window.batches.push(Stored::Memory(batch));
            return Ok(true);
        }
        let mut file = self.spill.create_in_progress_file("rows that wait for answers")?;
        let mut batches = vec![];
        for stored in std::mem::take(&mut window.batches) {
            match stored {
                Stored::Memory(batch) => {
                    file.append_batch(&batch)?;
                }
                spilled => batches.push(spilled),
            }
        }
        file.append_batch(&batch)?;
        batches.extend(file.finish()?.map(Stored::Spilled));
        window.batches = batches;
        window.batch_bytes = 0;
        Ok(self.reservation.try_resize(question_bytes).is_ok())
    }

    /// Gives back what a window has held for the answers to its questions: the memo of the query takes it as they come.
    pub(super) fn leave_room(&self, window: &Window) {
        self.reservation.resize(self.reservation.size().min(window.question_bytes() + window.batch_bytes));
    }

    /// Streams the rows of a window in the order in which they came.
    pub(super) fn read(&self, batches: StoredBatches) -> SendableRecordBatchStream {
        let schema = Arc::clone(self.spill.schema());
        let spill = self.spill.clone();
        let batches = stream::iter(batches.0).flat_map(move |stored| match stored {
            Stored::Memory(batch) => stream::once(async move { Ok(batch) }).boxed(),
            Stored::Spilled(file) => match spill.read_spill_as_stream(file, None) {
                Ok(batches) => batches.boxed(),
                Err(error) => stream::once(async move { Err(error) }).boxed(),
            },
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, batches))
    }
}

/// The rows of a window, apart from its questions.
pub(super) struct StoredBatches(Vec<Stored>);

impl Window {
    /// Starts an empty window, the `number`-th of its operator.
    pub(super) fn new(calls: &[Arc<PhysicalCall>], number: u32) -> Self {
        let questions = calls.iter().map(|call| Questions::new(call.inputs.len(), call.options.dedups(), number)).collect();
        Window { batches: vec![], batch_bytes: 0, questions, rows: 0 }
    }

    /// Returns the number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Takes the rows out of the window.
    pub(super) fn take_batches(&mut self) -> StoredBatches {
        StoredBatches(std::mem::take(&mut self.batches))
    }

    fn question_bytes(&self) -> usize {
        self.questions.iter().map(Questions::bytes).sum()
    }

    /// Returns about how much memory the answers to its questions will take.
    fn answer_bytes(&self) -> usize {
        self.questions.iter().map(|questions| questions.len() * ANSWER_BYTES).sum()
    }

    /// Finds the questions of a batch; returns how many of its rows the window takes.
    fn add_questions(&mut self, calls: &[Arc<PhysicalCall>], batch: &RecordBatch, limit: WindowLimit) -> Result<usize> {
        let room = limit.rows.saturating_sub(self.rows).max(1);
        let mut end = batch.num_rows().min(room);
        let mut evaluated: Vec<(Vec<ArrayRef>, Option<BooleanArray>)> = Vec::with_capacity(calls.len());
        for call in calls {
            evaluated.push(call.evaluate(batch)?);
        }
        let before: Vec<usize> = self.questions.iter().map(|questions| questions.of_row.len()).collect();
        for ((call, (inputs, guard)), questions) in calls.iter().zip(&evaluated).zip(&mut self.questions) {
            let nulls = call.call.null_policy(call.options.null_input);
            end = end.min(questions.push(inputs, guard.as_ref(), nulls, 0, end, limit.questions)?);
        }
        // A later call may have stopped earlier: rows beyond the common end belong to the next window.
        for (questions, before) in self.questions.iter_mut().zip(before) {
            questions.truncate(before + end);
        }
        Ok(end)
    }
}

/// Returns how many rows have a question.
pub(super) fn rows_with_question(questions: &Questions) -> u64 {
    questions.of_row.iter().filter(|question| **question != NO_QUESTION).count() as u64
}
