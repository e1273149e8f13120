//! What calls would cost, judged from a sample of their input. No model is asked; only the tokenizer is used.
//!
//! The sample is planned as the operator would plan it: its distinct questions, their order, their prompts. What the rest of the
//! rows would add follows from how often things occurred in the sample ([`distinct_in_all`]): the distinct questions, and at
//! each depth of the prompts the distinct prefixes, whose tokens are computed once each.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::{DataFusionError, Result};
use refrain_optimizer::cost::{Interval, distinct_in_all};
use refrain_optimizer::filter_order::{FilterOrder, PredicateCost, UNKNOWN_SELECTIVITY};
use refrain_optimizer::reorder::{Dependency, saved_of_prompts};
use refrain_serving::{Request, Segment, Tokenizer};
use refrain_udf::{Layout, LayoutChoice, OnOverflow, Piece, Prompt, PromptLayout, Reorder, Shape};

use crate::operators::call::PhysicalCall;
use crate::operators::chunk_estimate::Chunked;
use crate::operators::conjunction::Conjunct;
use crate::operators::distinct::Questions;
use crate::operators::layout::{AUTO_GAIN_MIN, LayoutCosts, RowReaders, beyond_common, chosen, common, over_the_same_rows};
use crate::operators::llm_exec::{Shared, Until, statistics_key};
use crate::operators::prefix_tree::PrefixTree;
use crate::operators::prompts::{Planner, strategy};

/// Text behind a value of a template that is worth a warning, in bytes.
const STATIC_TEXT_BYTES: usize = 24;

/// What one call is expected to cost.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CallEstimate {
    /// Rows that need an answer.
    pub rows: u64,
    /// Distinct questions among them.
    pub distinct: u64,
    /// Of the distinct questions, those that are asked about in chunks; `None` where none is, or where the context is not known.
    pub chunked: Option<Chunked>,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Prompt tokens that all requests have in front: system text, instruction, shape.
    pub head_tokens: u64,
    /// Prompt tokens that are not expected to be in the cache.
    pub computed_tokens: u64,
    /// Share of prompt tokens that the cache is expected to hold already, 0 to 1.
    pub prefix_hit: f64,
    /// Tokens of all answers, and how that is known.
    pub output_tokens: u64,
    /// How the length of answers is known.
    pub output_basis: Basis,
    /// The interval of [`output_tokens`](Self::output_tokens), where answers were sampled.
    pub output_interval: Option<Interval>,
    /// The share of rows for which the answer is TRUE, where it is a truth value.
    pub selectivity: Option<Selectivity>,
    /// Seconds, from the pace of the model so far or the rates of its endpoint; `None` before anything was measured.
    pub seconds: Option<f64>,
    /// The interval of [`seconds`](Self::seconds) that follows from that of the answers' lengths.
    pub seconds_interval: Option<Interval>,
    /// The order of fields in most prompts; empty in template mode.
    pub field_order: Vec<String>,
    /// How many orders of fields there are.
    pub n_field_orders: usize,
    /// The functional dependencies that the order makes use of, such as `FD title <-> movie_id`.
    pub dependencies: Vec<String>,
    /// The strategy that ordered them.
    pub strategy: String,
    /// What prompts begin with.
    pub layout: Layout,
    /// Whether the sample was the whole input, and no row of it depends on an answer.
    pub is_exact: bool,
    /// What is not done, and why.
    pub refused: Vec<String>,
    /// What may make the query dearer than need be.
    pub warnings: Vec<String>,
    /// The first prompts, where they were asked for.
    pub prompts: Option<PrefixTree>,
}

/// The share of rows that pass, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Selectivity {
    /// From 0 to 1; with its ends where it was sampled.
    pub share: Interval,
    /// How it is known.
    pub basis: Basis,
}

/// How a number of an estimate is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Basis {
    /// Nothing is known; a guess.
    Assumed,
    /// It follows from the form of the answer.
    Form,
    /// No more than this is allowed.
    AtMost,
    /// Measured by earlier queries of the session.
    EarlierRun,
    /// Measured on questions that were sampled for this EXPLAIN.
    Sample,
}

impl Basis {
    /// Returns the words for it in EXPLAIN.
    pub fn name(self) -> &'static str {
        match self {
            Basis::Assumed => "assumed",
            Basis::Form => "form of the answer",
            Basis::AtMost => "at most",
            Basis::EarlierRun => "from an earlier run",
            Basis::Sample => "sampled",
        }
    }
}

/// What asking some questions of a call has shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sampled {
    /// Tokens of each answer.
    pub output_lens: Vec<f64>,
    /// Rows of the questions asked, and those of them for which the answer was TRUE.
    pub judged: (f64, f64),
}

/// The rows that a call is estimated from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InputRows<'a> {
    /// The sample.
    pub sample: &'a RecordBatch,
    /// Rows of the whole input, before [`share`](Self::share) of them is taken.
    pub rows: f64,
    /// The share of rows that predicates over answers below leave, as far as it is known.
    pub share: f64,
}

/// Estimates the calls of one operator. `tokenizers` holds that of each call's model, `sampled` what was seen of each call; so many
/// `prompts` of each call are kept, if any.
pub(crate) fn estimate_calls(
    calls: &[Arc<PhysicalCall>],
    until: Option<&Until>,
    shared: &Shared,
    tokenizers: &[Arc<dyn Tokenizer>],
    input: InputRows<'_>,
    sampled: &[Option<Sampled>],
    prompts: Option<usize>,
) -> Result<Vec<CallEstimate>> {
    let mut planned: Vec<Planned> = vec![];
    for (call, tokenizer) in calls.iter().zip(tokenizers) {
        planned.push(Planned::new(call, tokenizer.as_ref(), input)?);
    }
    for idx in 1..planned.len() {
        let (before, this) = planned.split_at(idx);
        let same_model = before.iter().filter(|other| other.call.model == this[0].call.model);
        planned[idx].head_known =
            same_model.map(|other| common(other.layout.head(), this[0].layout.head())).max().unwrap_or(0);
    }
    let groups = if until.is_some() { vec![] } else { over_the_same_rows(calls, &[]) };
    if shared.layout == LayoutChoice::DataFirst {
        let alone = |call: &usize| !groups.iter().any(|group| group.own.contains(call));
        for call in (0..calls.len()).filter(alone) {
            planned[call].put_data_first()?;
        }
    }
    for RowReaders { own: group, .. } in groups {
        let (first, members) = (group[0], group.iter().map(|call| Arc::clone(&calls[*call])).collect::<Vec<_>>());
        let shares = vec![1.0; members.len()];
        let costs = LayoutCosts::of(&members, &shares, tokenizers[first].as_ref(), &planned[first].questions)?;
        let needs_instruction_first = shared.models.needs_instruction_first(&calls[first].model)?;
        match chosen(shared.layout, needs_instruction_first, || Ok(costs))? {
            Layout::DataFirst => {
                for call in &group {
                    planned[*call].put_data_first()?;
                }
                let tails: Vec<Segment> = group.iter().map(|call| Segment::clone(planned[*call].layout.tail())).collect();
                for (call, computed) in group.iter().zip(beyond_common(&tails)).skip(1) {
                    planned[*call].computed_tail = Some(computed);
                }
            }
            Layout::InstructionFirst => {
                let because = match shared.layout {
                    LayoutChoice::InstructionFirst => "refrain.layout = 'instruction_first'".to_owned(),
                    _ if needs_instruction_first => "the model was trained with the instruction in front".to_owned(),
                    _ => format!("it takes {AUTO_GAIN_MIN} ×"),
                };
                let gain = costs.gain();
                planned[first]
                    .refused
                    .push(format!("data first for calls over the same rows (computes {gain:.2} × fewer tokens; {because})"));
            }
        }
    }
    let mut estimates = vec![];
    for (idx, plan) in planned.iter().enumerate() {
        let predicate = until.and_then(|until| conjunct_of(until, idx)).map(|conjunct| &conjunct.predicate);
        let key = statistics_key(plan.call, predicate);
        let mut estimate = plan.estimate(shared, &key, sampled.get(idx).and_then(Option::as_ref))?;
        estimate.prompts = prompts.map(|limit| PrefixTree::new(&plan.requests, limit, plan.tokenizer));
        estimates.push(estimate);
    }
    if let Some(conjuncts) = until.and_then(|until| until.conjuncts.as_deref()) {
        in_expected_order(conjuncts, &mut estimates);
    }
    for (estimate, call) in estimates.iter_mut().zip(calls) {
        *estimate =
            std::mem::replace(estimate, CallEstimate::none()).in_model_tokens(shared.models.token_scale(&call.model)?);
        estimate.seconds = seconds(shared, call, estimate, estimate.output_tokens as f64)?;
        if let (Some(output), Some(expected)) = (estimate.output_interval, estimate.seconds) {
            let end = |tokens| Ok::<_, DataFusionError>(seconds(shared, call, estimate, tokens)?.unwrap_or(expected));
            estimate.seconds_interval =
                Some(Interval { estimate: expected, low: end(output.low)?, high: end(output.high)? });
        }
    }
    Ok(estimates)
}

fn conjunct_of(until: &Until, call: usize) -> Option<&Conjunct> {
    until.conjuncts.as_deref()?.iter().find(|conjunct| conjunct.call == call)
}

/// Takes off each call what the predicates before it are expected to drop.
fn in_expected_order(conjuncts: &[Conjunct], estimates: &mut [CallEstimate]) {
    let known = |call: usize| estimates[call].selectivity.filter(|known| known.basis != Basis::Assumed);
    let guesses: Vec<Option<f64>> =
        conjuncts.iter().map(|conjunct| known(conjunct.call).map(|known| known.share.estimate)).collect();
    let costs: Vec<PredicateCost> = conjuncts
        .iter()
        .map(|conjunct| {
            let estimate = &estimates[conjunct.call];
            let (rows, questions) = (estimate.rows as f64, estimate.distinct as f64);
            PredicateCost { rows, questions, per_question: estimate.computed_tokens as f64 / questions.max(1.0) }
        })
        .collect();
    let mut share = 1.0;
    for position in FilterOrder::new(&guesses).order(&costs) {
        let estimate = &mut estimates[conjuncts[position].call];
        estimate.keep(share);
        share *= guesses[position].unwrap_or(UNKNOWN_SELECTIVITY);
    }
}

/// Returns the seconds that a call should take: at the pace of its model so far, and no faster than its endpoint allows.
fn seconds(shared: &Shared, call: &PhysicalCall, estimate: &CallEstimate, output: f64) -> Result<Option<f64>> {
    let computed = estimate.computed_tokens as f64;
    let measured = shared.statistics.timing(&call.model).seconds(computed, output);
    let (requests, tokens) = shared.models.rates(&call.model)?;
    let bound = |count: f64, per_minute: Option<u32>| per_minute.map(|rate| count / f64::from(rate.max(1)) * 60.0);
    let bounds = [bound(estimate.calls() as f64, requests), bound(estimate.prompt_tokens as f64 + output, tokens)];
    Ok(bounds.into_iter().flatten().chain(measured).reduce(f64::max))
}

/// The sample of one call, planned.
struct Planned<'a> {
    call: &'a PhysicalCall,
    tokenizer: &'a dyn Tokenizer,
    questions: Questions,
    requests: Vec<Request>,
    /// The question behind each request.
    order: Vec<u32>,
    layout: PromptLayout,
    field_order: Vec<u32>,
    n_field_orders: usize,
    dependencies: Vec<Dependency>,
    /// Tokens of the head that another call of the operator begins with as well.
    head_known: u64,
    /// Where another call computes the rows: the tokens of its instruction that this one computes for each.
    computed_tail: Option<u64>,
    input: InputRows<'a>,
    refused: Vec<String>,
}

impl<'a> Planned<'a> {
    fn new(call: &'a PhysicalCall, tokenizer: &'a dyn Tokenizer, input: InputRows<'a>) -> Result<Self> {
        let mut questions = Questions::new(call.inputs.len(), call.options.dedups(), 0);
        let (inputs, guard) = call.evaluate(input.sample)?;
        let nulls = call.call.null_policy(call.options.null_input);
        questions.push(&inputs, guard.as_ref(), nulls, 0, input.sample.num_rows(), usize::MAX)?;
        let layout = PromptLayout::new(&call.call, tokenizer)?;
        let mut planned = Planned {
            call,
            tokenizer,
            questions,
            requests: vec![],
            order: vec![],
            layout,
            field_order: vec![],
            n_field_orders: 0,
            dependencies: vec![],
            head_known: 0,
            computed_tail: None,
            input,
            refused: vec![],
        };
        planned.plan()?;
        Ok(planned)
    }

    fn plan(&mut self) -> Result<()> {
        let all: Vec<u32> = (0..self.questions.len() as u32).collect();
        let planned = Planner::new(self.call, &self.layout, self.tokenizer).plan(&self.questions, &all)?;
        (self.requests, self.order) = (planned.requests, planned.questions);
        (self.field_order, self.n_field_orders) = (planned.field_order, planned.n_field_orders);
        self.dependencies = planned.dependencies;
        Ok(())
    }

    fn put_data_first(&mut self) -> Result<()> {
        self.layout = PromptLayout::with(&self.call.call, Layout::DataFirst, self.tokenizer)?;
        self.head_known = 0;
        self.plan()
    }

    fn estimate(&self, shared: &Shared, key: &[u8; 32], sampled: Option<&Sampled>) -> Result<CallEstimate> {
        let rows_of = self.questions.rows();
        let asked: u64 = rows_of.iter().sum();
        let looked_at = self.input.sample.num_rows() as f64;
        let all_rows = if looked_at > 0.0 { asked as f64 * (self.input.rows / looked_at).max(1.0) } else { 0.0 };
        let share = self.input.share;
        let classes = Classes { sampled: asked, all: all_rows.round() as u64, share };
        let distinct = match self.call.options.dedups() {
            true => classes.count(rows_of.len() as u64, rows_of.iter().filter(|rows| **rows == 1).count() as u64),
            false => all_rows * share,
        };
        let prompts: Vec<&[Segment]> = self.requests.iter().map(|request| request.prompt.as_slice()).collect();
        let prompt_tokens: u64 = self.requests.iter().map(|request| request.prompt_len() as u64).sum();
        let in_sample = (rows_of.len() as f64).max(1.0);
        let prompt_all = prompt_tokens as f64 / in_sample * distinct;
        let computed = if !shared.prefix_cache {
            prompt_all
        } else if let Some(tokens) = self.computed_tail {
            tokens as f64 * distinct
        } else {
            let in_sample = (prompt_tokens - saved_of_prompts(&prompts, 1)).saturating_sub(self.head_known);
            in_sample as f64 * classes.growth(&self.requests, &self.order, &rows_of)
        };
        let chunked = self.chunked(shared)?.map(|chunked| chunked.scaled(distinct / in_sample));
        let further = chunked.map_or(0, Chunked::further_calls) as f64;
        // Each chunk is a prompt of its own, whose head the cache holds.
        let prompt_all = prompt_all + further * self.fixed_tokens() as f64;
        let known = shared.statistics.get(key);
        let output = self.output(known.and_then(|known| known.output_len()), sampled);
        Ok(CallEstimate {
            rows: (all_rows * share).round() as u64,
            distinct: distinct.round() as u64,
            chunked,
            prompt_tokens: prompt_all.round() as u64,
            head_tokens: self.layout.head().len() as u64,
            computed_tokens: computed.min(prompt_all).round() as u64,
            prefix_hit: if prompt_all > 0.0 { (1.0 - computed / prompt_all).max(0.0) } else { 0.0 },
            output_tokens: (output.0 * (distinct + further)).round() as u64,
            output_basis: output.1,
            output_interval: output.2.map(|interval| interval.scaled(distinct + further)),
            selectivity: self.selectivity(known.and_then(|known| known.selectivity()), sampled),
            seconds: None,
            seconds_interval: None,
            field_order: field_names(self.call, &self.field_order),
            n_field_orders: self.n_field_orders,
            dependencies: self.dependencies(),
            strategy: strategy(self.call).to_string(),
            layout: self.layout.layout(),
            is_exact: self.input.rows <= looked_at && share == 1.0,
            refused: self.refused(shared),
            warnings: warnings(self.call),
            prompts: None,
        })
    }

    /// Returns which inputs of the sample are too long for one prompt, if such are asked about in chunks and the context is known.
    fn chunked(&self, shared: &Shared) -> Result<Option<Chunked>> {
        if self.call.options.on_overflow != OnOverflow::Chunk {
            return Ok(None);
        }
        let (model, models) = (&self.call.model, &shared.models);
        let Some(max_context) = models.max_context(model)? else { return Ok(None) };
        Ok(Chunked::of(self.call, &self.requests, self.fixed_tokens(), max_context, models.token_scale(model)?))
    }

    /// Returns the tokens that all prompts have.
    fn fixed_tokens(&self) -> usize {
        self.layout.head().len() + self.layout.tail().len()
    }

    /// Returns the mean length of an answer in tokens, how it is known, and its interval.
    fn output(&self, known: Option<f64>, sampled: Option<&Sampled>) -> (f64, Basis, Option<Interval>) {
        if let Some(interval) = sampled.and_then(|sampled| Interval::of_mean(&sampled.output_lens)) {
            return (interval.estimate, Basis::Sample, Some(interval));
        }
        let tokens = |text: &str| self.tokenizer.encode(text).len() as f64;
        match (&self.call.call.task.shape, known) {
            (_, Some(len)) => (len, Basis::EarlierRun, None),
            (Shape::Boolean, None) => (tokens("Yes"), Basis::Form, None),
            (Shape::Choice { labels, multi: false }, None) => {
                let all: f64 = labels.iter().map(|label| tokens(label)).sum();
                (all / labels.len().max(1) as f64, Basis::Form, None)
            }
            (Shape::Number { max, .. }, None) => (tokens(&max.0.to_string()), Basis::Form, None),
            (Shape::Embedding { .. }, None) => (0.0, Basis::Form, None),
            _ => (f64::from(self.call.options.max_tokens), Basis::AtMost, None),
        }
    }

    fn selectivity(&self, known: Option<f64>, sampled: Option<&Sampled>) -> Option<Selectivity> {
        if let Some(Sampled { judged: (rows, passed), output_lens }) = sampled
            && *rows > 0.0
        {
            // Rows of one question have one answer, so it is questions that were drawn.
            let trials = output_lens.len() as f64;
            let share = Interval::of_share(passed / rows * trials, trials)?;
            return Some(Selectivity { share, basis: Basis::Sample });
        }
        let (share, basis) = match known {
            Some(share) => (share, Basis::EarlierRun),
            None if self.call.call.task.shape == Shape::Boolean => (UNKNOWN_SELECTIVITY, Basis::Assumed),
            None => return None,
        };
        Some(Selectivity { share: Interval { estimate: share, low: share, high: share }, basis })
    }

    fn dependencies(&self) -> Vec<String> {
        let Prompt::Fields { labels, .. } = &self.call.call.prompt else { return vec![] };
        self.dependencies.iter().map(|found| found.describe(labels)).collect()
    }

    /// Returns what is not done for the call, with the reason.
    fn refused(&self, shared: &Shared) -> Vec<String> {
        let (call, mut refused) = (self.call, self.refused.clone());
        match (&call.call.prompt, call.options.reorder) {
            (_, Reorder::None | Reorder::Rows) => {
                let asked_for = strategy(call);
                refused.push(format!("reordering of fields (refrain.reorder = '{asked_for}')"));
            }
            (Prompt::Template(template), _) if template.labels.len() > 1 => {
                refused.push("reordering of fields (a template keeps the order of the user)".to_owned());
            }
            _ => {}
        }
        if !call.options.dedups() {
            refused.push(match call.options.sampling.temperature {
                0.0 => "dedup (refrain.dedup = 'off')".to_owned(),
                temperature => format!("dedup (answers are drawn at temperature {temperature})"),
            });
        }
        if !shared.prefix_cache {
            refused.push("sharing of prefixes (refrain.prefix_cache = false)".to_owned());
        }
        refused
    }
}

/// How classes of the sample grow to classes of all rows.
#[derive(Clone, Copy, Debug)]
struct Classes {
    /// Rows of the sample.
    sampled: u64,
    /// Rows of the input.
    all: u64,
    /// The share of them that is asked.
    share: f64,
}

impl Classes {
    /// Returns how many classes the rows that are asked have, if the sample had so many, `once` of them with a single row.
    fn count(&self, classes: u64, once: u64) -> f64 {
        let all = distinct_in_all(self.sampled, classes, once, self.all);
        if self.share >= 1.0 || all <= 0.0 {
            return all;
        }
        // A class is met unless all of its rows are dropped.
        all * (1.0 - (1.0 - self.share).powf(self.all as f64 / all))
    }

    /// Returns how many times as many tokens all rows compute as the sample does: by the distinct prefixes at each depth of the
    /// prompts.
    fn growth(&self, requests: &[Request], order: &[u32], rows_of: &[u64]) -> f64 {
        if self.all <= self.sampled && self.share >= 1.0 {
            return 1.0;
        }
        let mut prefixes: HashMap<(u64, usize), (u64, usize)> = HashMap::new();
        for (request, question) in requests.iter().zip(order) {
            let mut prefix = DefaultHasher::new();
            for (depth, segment) in request.prompt.iter().enumerate() {
                segment.hash(&mut prefix);
                let class = prefixes.entry((prefix.finish(), depth)).or_insert((0, segment.len()));
                class.0 += rows_of[*question as usize];
            }
        }
        let mut by_depth: HashMap<usize, (u64, u64, u64)> = HashMap::new();
        for ((_, depth), (rows, len)) in prefixes {
            let (classes, once, tokens) = by_depth.entry(depth).or_default();
            *classes += 1;
            *once += u64::from(rows == 1);
            *tokens += len as u64;
        }
        let (mut in_sample, mut in_all) = (0.0, 0.0);
        for (classes, once, tokens) in by_depth.into_values() {
            in_sample += tokens as f64;
            in_all += self.count(classes, once) * tokens as f64 / classes as f64;
        }
        if in_sample > 0.0 { in_all / in_sample } else { 1.0 }
    }
}

/// Returns what about the prompt keeps rows from sharing it.
fn warnings(call: &PhysicalCall) -> Vec<String> {
    let Prompt::Template(template) = &call.call.prompt else { return vec![] };
    let Some(first) = template.pieces.iter().position(|piece| matches!(piece, Piece::Input(_))) else { return vec![] };
    let is_long = |piece: &Piece| matches!(piece, Piece::Text(text) if text.len() >= STATIC_TEXT_BYTES);
    match &template.pieces[first] {
        Piece::Input(input) if template.pieces[first..].iter().any(is_long) => {
            vec![format!("{{{}}} varies and stands before static text", template.labels[*input])]
        }
        _ => vec![],
    }
}

impl CallEstimate {
    /// Returns the estimate of a call that asks nothing.
    pub(super) fn none() -> Self {
        CallEstimate {
            rows: 0,
            distinct: 0,
            chunked: None,
            prompt_tokens: 0,
            head_tokens: 0,
            computed_tokens: 0,
            prefix_hit: 0.0,
            output_tokens: 0,
            output_basis: Basis::Assumed,
            output_interval: None,
            selectivity: None,
            seconds: None,
            seconds_interval: None,
            field_order: vec![],
            n_field_orders: 0,
            dependencies: vec![],
            strategy: String::new(),
            layout: Layout::InstructionFirst,
            is_exact: false,
            refused: vec![],
            warnings: vec![],
            prompts: None,
        }
    }

    /// Returns how many calls are expected at most: one for each distinct question, or for each chunk of one.
    pub(crate) fn calls(&self) -> u64 {
        self.distinct + self.chunked.map_or(0, Chunked::further_calls)
    }

    /// Takes a share of the rows only.
    fn keep(&mut self, share: f64) {
        if share >= 1.0 || self.distinct == 0 {
            return;
        }
        let met = 1.0 - (1.0 - share).powf(self.rows as f64 / self.distinct as f64);
        let scaled = |count: u64, by: f64| (count as f64 * by).round() as u64;
        self.rows = scaled(self.rows, share);
        self.distinct = scaled(self.distinct, met);
        self.chunked = self.chunked.map(|chunked| chunked.scaled(met));
        self.prompt_tokens = scaled(self.prompt_tokens, met);
        self.computed_tokens = scaled(self.computed_tokens, met);
        self.output_tokens = scaled(self.output_tokens, met);
        self.output_interval = self.output_interval.map(|interval| interval.scaled(met));
        self.is_exact = false;
    }

    /// Counts in tokens of the model, of which one of its tokenizer here makes `scale`.
    fn in_model_tokens(self, scale: f64) -> CallEstimate {
        let scaled = |tokens: u64| (tokens as f64 * scale).round() as u64;
        CallEstimate {
            prompt_tokens: scaled(self.prompt_tokens),
            head_tokens: scaled(self.head_tokens),
            computed_tokens: scaled(self.computed_tokens),
            // Other lengths of answers are the model's own count already.
            output_tokens: if self.output_basis == Basis::Form { scaled(self.output_tokens) } else { self.output_tokens },
            is_exact: self.is_exact && scale == 1.0,
            ..self
        }
    }
}

fn field_names(call: &PhysicalCall, order: &[u32]) -> Vec<String> {
    let Prompt::Fields { labels, .. } = &call.call.prompt else { return vec![] };
    order.iter().filter_map(|field| labels.get(*field as usize).cloned()).collect()
}
