//! Cascades with guarantees: a cheap proxy answers where it is sure, the model where it is not, and what is missed stays within
//! targets that the user has set.
//!
//! The proxy gives each distinct question a score, the probability of yes. Rows with a score below one threshold are taken for
//! no, rows from another one on for yes, and the model is asked about the rest. The thresholds are not trusted to the proxy: they
//! are tested on the model's own answers for a random sample. For each of the two,
//!
//! - candidates stand in an order that depends on the scores alone, the safest first: ever more of the lowest rows are rejected,
//!   ever more of the highest accepted;
//! - one after the other is tested by [betting](bets) on rows drawn without replacement, until one is not proved. A wrong one can
//!   only be taken if the first wrong one of the order is proved, and that has half of the failure probability, however many
//!   candidates there are and whenever sampling stops.
//!
//! The test of recall comes first and draws from all rows; that of precision draws, in another order, from those that are not
//! rejected, and credits what the model itself keeps between the thresholds. Answers of the sample are used as answers.
//!
//! Weighting draws by score would not help recall: a stake is bounded by the greatest weight, which the rows have that the proxy is
//! surest to reject, and a gain is proportional to the weight of a yes-row. The problem is that of "Approximate Selection with
//! Guarantees using Proxies" (Kang et al., arXiv 2004.00827), whose bounds hold for large samples; these hold for every size.

mod bets;
#[cfg(test)]
mod simulation;

use self::bets::Bets;

/// What a cascade promises against the answers of the model alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Targets {
    /// The share of the model's yes-rows that are kept, below 1.
    pub recall: f64,
    /// The share of kept rows to which the model says yes, below 1.
    pub precision: f64,
    /// The probability that one of the two is missed.
    pub failure_probability: f64,
}

/// A distinct question, as the proxy sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The probability of yes. What is no number, because the proxy failed, is left to the model.
    pub score: f64,
    /// How many rows ask it.
    pub rows: u32,
}

/// What is to be done about a question that the model has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ask the model.
    Ask,
    /// Take it for yes.
    Yes,
    /// Take it for no.
    No,
}

/// What the sample has shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Questions that the model was asked for the sample.
    pub sampled: u64,
    /// Scores below this are taken for no, if any are.
    pub reject_below: Option<f64>,
    /// Scores from this on are taken for yes, if any are.
    pub accept_from: Option<f64>,
    /// The recall that the sample shows; the target is what is proved.
    pub recall: f64,
    /// The precision of the accepted rows that the sample shows; the target is what is proved.
    pub precision: f64,
}

/// The search for thresholds: [`next_sample`](Self::next_sample) names questions, [`learn`](Self::learn) takes the answers of
/// the model, until there are no more to ask.
#[derive(Debug)]
pub struct Cascade {
    targets: Targets,
    scores: Vec<f64>,
    /// The question of each row that has a score, in the order in which the tests of recall draw them.
    recall_draws: Vec<u32>,
    /// The same for precision: another order, since its tests begin where those of recall have led to.
    precision_draws: Vec<u32>,
    labels: Vec<Option<bool>>,
    sampled: u64,
    reject: Search,
    accept: Search,
}

/// A threshold in the making: its candidates, the safest first.
#[derive(Debug)]
struct Search {
    candidates: Vec<f64>,
    proved: usize,
    is_over: bool,
}

/// What a test has seen of its target.
struct Evidence {
    /// Whether the target is proved.
    is_proved: bool,
    /// Rows that count for the share: the model's yes-rows, or the accepted ones.
    counted: u64,
    /// The share of them that is as it should be.
    share: f64,
    /// Whether the test has drawn as much as it may.
    is_exhausted: bool,
}

/// From one candidate to the next, what is left below or taken above changes by this factor.
const STEP: f64 = 1.05;
/// Questions of one sample.
const BATCH: usize = 128;
/// The share of the rows that one test may draw.
const DRAWS_MAX: f64 = 0.15;
/// A test gives up after so many times the draws that a faultless proxy needs.
const PATIENCE: u64 = 8;

/// Rows for each row that the tests draw if the proxy is faultless, below which a cascade saves nothing.
const ROWS_PER_DRAW: u64 = 8;

impl Cascade {
    /// Returns how many rows there must be for a cascade to pay.
    pub fn rows_min(targets: &Targets) -> u64 {
        ROWS_PER_DRAW * Bets::draws_needed(targets.recall.max(targets.precision), targets.failure_probability / 2.0)
    }

    /// Begins the search over `questions`. Equal seeds draw equal samples.
    pub fn new(questions: &[Scored], targets: Targets, seed: u64) -> Self {
        let scores: Vec<f64> = questions.iter().map(|question| question.score).collect();
        let scored = questions.iter().zip(0_u32..).filter(|(question, _)| !question.score.is_nan());
        let draws: Vec<u32> = scored.flat_map(|(question, at)| std::iter::repeat_n(at, question.rows as usize)).collect();
        let mut sorted: Vec<f64> = draws.iter().map(|&question| scores[question as usize]).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (mut recall_draws, mut precision_draws) = (draws.clone(), draws);
        shuffle(&mut recall_draws, seed);
        shuffle(&mut precision_draws, seed ^ u64::MAX);
        let draws_needed = Bets::draws_needed(targets.precision, targets.failure_probability / 2.0);
        Cascade {
            targets,
            labels: vec![None; scores.len()],
            sampled: 0,
            reject: Search::new(rejecting(&sorted)),
            accept: Search::new(accepting(&sorted, draws_needed as usize)),
            scores,
            recall_draws,
            precision_draws,
        }
    }

    /// Returns distinct questions to ask the model next; none when the thresholds are found.
    pub fn next_sample(&mut self) -> Vec<u32> {
        while let Some((is_reject, candidate)) = self.tested() {
            let evidence = self.evidence(is_reject, candidate);
            let (target, search) = match is_reject {
                true => (self.targets.recall, &mut self.reject),
                false => (self.targets.precision, &mut self.accept),
            };
            let needed = Bets::draws_needed(target, self.targets.failure_probability / 2.0);
            let is_hopeless = evidence.counted > PATIENCE * needed || (evidence.counted > needed && evidence.share < target);
            if evidence.is_proved {
                search.proved += 1;
            } else if is_hopeless || evidence.is_exhausted {
                search.is_over = true;
            } else {
                return self.unknown(is_reject);
            }
        }
        vec![]
    }

    /// Takes the answers of the model to questions of the last sample. A question without an answer counts as no, since its rows
    /// are not kept.
    pub fn learn(&mut self, answers: impl IntoIterator<Item = (u32, bool)>) {
        for (question, answer) in answers {
            self.labels[question as usize] = Some(answer);
            self.sampled += 1;
        }
    }

    /// Returns what is to be done about a question.
    pub fn verdict(&self, question: u32) -> Verdict {
        let score = self.scores[question as usize];
        if self.labels[question as usize].is_some() {
            Verdict::Ask
        } else if self.reject.proved().is_some_and(|threshold| score < threshold) {
            Verdict::No
        } else if self.accept.proved().is_some_and(|threshold| score >= threshold) {
            Verdict::Yes
        } else {
            Verdict::Ask
        }
    }

    /// Returns what the sample has shown.
    pub fn report(&self) -> Report {
        let share = |is_reject, threshold: Option<f64>| match threshold {
            Some(threshold) => self.evidence(is_reject, threshold).share,
            None => 1.0,
        };
        let (reject_below, accept_from) = (self.reject.proved(), self.accept.proved());
        Report {
            sampled: self.sampled,
            reject_below,
            accept_from,
            recall: share(true, reject_below),
            precision: share(false, accept_from),
        }
    }

    /// Returns the candidate that is being tested, and whether it is one for rejecting.
    fn tested(&self) -> Option<(bool, f64)> {
        if let Some(candidate) = self.reject.candidate() {
            return Some((true, candidate));
        }
        // Below, rows are rejected: the test would speak of others than those that are kept.
        let candidate = self.accept.candidate()?;
        self.reject.proved().is_none_or(|rejected| candidate >= rejected).then_some((false, candidate))
    }

    /// Returns the rows that the test of a candidate draws from.
    fn population(&self, is_reject: bool) -> impl Iterator<Item = u32> {
        let kept_from = if is_reject { None } else { self.reject.proved() };
        let draws = if is_reject { &self.recall_draws } else { &self.precision_draws };
        draws.iter().copied().filter(move |question| kept_from.is_none_or(|from| self.scores[*question as usize] >= from))
    }

    /// Draws rows as long as their answers are known.
    fn evidence(&self, is_reject: bool, threshold: f64) -> Evidence {
        let target = if is_reject { self.targets.recall } else { self.targets.precision };
        let population = self.population(is_reject).count();
        let mut bets = Bets::new(population as u64, target);
        let (mut drawn, mut counted, mut right) = (0, 0_u64, 0_u64);
        for question in self.population(is_reject) {
            let Some(label) = self.labels[question as usize] else { break };
            let is_above = self.scores[question as usize] >= threshold;
            // Recall: of the model's yes-rows, those above. Precision: of the rows that are kept, because they lie above or the
            // model has said yes, those to which it says yes.
            let counts = label || (!is_reject && is_above);
            let is_right = label && (!is_reject || is_above);
            bets.draw(f64::from(u8::from(is_right)) - if counts { target } else { 0.0 });
            drawn += 1;
            counted += u64::from(counts);
            right += u64::from(is_right);
        }
        Evidence {
            is_proved: bets.prove(self.targets.failure_probability / 2.0),
            counted,
            share: if counted == 0 { 1.0 } else { right as f64 / counted as f64 },
            is_exhausted: drawn as f64 >= population as f64 * DRAWS_MAX,
        }
    }

    /// Returns the next questions that a test draws and whose answers are not known.
    fn unknown(&self, is_reject: bool) -> Vec<u32> {
        let mut unknown = Vec::with_capacity(BATCH);
        for question in self.population(is_reject) {
            if self.labels[question as usize].is_none() && !unknown.contains(&question) {
                unknown.push(question);
            }
            if unknown.len() == BATCH {
                break;
            }
        }
        unknown
    }
}

impl Search {
    fn new(candidates: Vec<f64>) -> Self {
        Search { candidates, proved: 0, is_over: false }
    }

    /// Returns the candidate to be tested next.
    fn candidate(&self) -> Option<f64> {
        self.candidates.get(self.proved).copied().filter(|_| !self.is_over)
    }

    /// Returns the boldest candidate that is proved.
    fn proved(&self) -> Option<f64> {
        self.proved.checked_sub(1).map(|last| self.candidates[last])
    }
}

/// Thresholds below which ever more of the lowest rows lie.
fn rejecting(sorted: &[f64]) -> Vec<f64> {
    let mut candidates = vec![];
    let mut kept = sorted.len() as f64 / STEP;
    while kept >= 1.0 {
        candidates.push(sorted[sorted.len() - kept as usize]);
        kept /= STEP;
    }
    candidates.dedup();
    // One below which nothing lies rejects nothing.
    candidates.retain(|threshold| sorted.first().is_some_and(|least| threshold > least));
    candidates
}

/// Thresholds from which on ever more of the highest rows lie, at least `rows_min`.
fn accepting(sorted: &[f64], rows_min: usize) -> Vec<f64> {
    let mut candidates = vec![];
    let mut taken = rows_min.max(1) as f64;
    while taken <= sorted.len() as f64 {
        candidates.push(sorted[sorted.len() - taken as usize]);
        taken *= STEP;
    }
    candidates.dedup();
    candidates
}

/// Puts items into a random order that depends on their number and the seed alone (Fisher and Yates, with SplitMix64).
fn shuffle(items: &mut [u32], seed: u64) {
    let mut state = seed;
    for last in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        items.swap(last, ((u128::from(mixed) * (last as u128 + 1)) >> 64) as usize);
    }
}
