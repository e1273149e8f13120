//! Thousands of draws: a cascade misses a target no more often than it promises, and saves calls where the proxy is good.

use super::*;

/// A random number between 0 and 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        let mut order: Vec<u32> = vec![0, 1];
        self.0 = self.0.wrapping_add(1);
        shuffle(&mut order, self.0);
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Questions with what the model would answer.
struct Population {
    questions: Vec<Scored>,
    truth: Vec<bool>,
}

impl Population {
    fn new(count: usize, seed: u64, mut draw: impl FnMut(&mut Random) -> (f64, bool, u32)) -> Self {
        let mut random = Random(seed);
        let mut population = Population { questions: vec![], truth: vec![] };
        for _ in 0..count {
            let (score, truth, rows) = draw(&mut random);
            population.questions.push(Scored { score, rows });
            population.truth.push(truth);
        }
        population
    }

    /// Runs a cascade. Returns recall and precision over rows, and the share of questions that the model was asked.
    fn run(&self, targets: Targets, seed: u64) -> (f64, f64, f64) {
        let mut cascade = Cascade::new(&self.questions, targets, seed);
        let mut asked = 0;
        loop {
            let sample = cascade.next_sample();
            if sample.is_empty() {
                break;
            }
            asked += sample.len();
            cascade.learn(sample.into_iter().map(|question| (question, self.truth[question as usize])));
        }
        let (mut yes, mut kept, mut right) = (0.0, 0.0, 0.0);
        for (question, &truth) in (0_u32..).zip(&self.truth) {
            let rows = f64::from(self.questions[question as usize].rows);
            let is_kept = match cascade.verdict(question) {
                Verdict::Ask => {
                    asked += usize::from(cascade.labels[question as usize].is_none());
                    truth
                }
                Verdict::Yes => true,
                Verdict::No => false,
            };
            yes += if truth { rows } else { 0.0 };
            kept += if is_kept { rows } else { 0.0 };
            right += if truth && is_kept { rows } else { 0.0 };
        }
        let share = |part: f64, whole: f64| if whole == 0.0 { 1.0 } else { part / whole };
        (share(right, yes), share(right, kept), asked as f64 / self.truth.len() as f64)
    }
}

const TARGETS: Targets = Targets { recall: 0.9, precision: 0.9, failure_probability: 0.1 };
/// Other targets that must hold as well, of which one is harder and one is easier.
const UNEVEN_TARGETS: Targets = Targets { recall: 0.95, precision: 0.8, failure_probability: 0.05 };
const RUNS: u64 = 300;

/// Runs cascades over each of many populations of one kind, checks that no more of them miss a target than was promised, and
/// returns the share of questions that the model was asked for [`TARGETS`], on average.
#[track_caller]
fn check(count: usize, draw: impl Fn(&mut Random) -> (f64, bool, u32)) -> f64 {
    let populations: Vec<Population> = (0..RUNS).map(|run| Population::new(count, run * 7919, &draw)).collect();
    check_targets(&populations, UNEVEN_TARGETS);
    check_targets(&populations, TARGETS)
}

#[track_caller]
fn check_targets(populations: &[Population], targets: Targets) -> f64 {
    let (mut missed, mut calls) = (0.0, 0.0);
    for (run, population) in (0..RUNS).zip(populations) {
        let (recall, precision, asked) = population.run(targets, run);
        missed += f64::from(u8::from(recall < targets.recall || precision < targets.precision));
        calls += asked / RUNS as f64;
    }
    let promised = targets.failure_probability * RUNS as f64;
    // Three standard deviations of the number of failures.
    let limit = promised + 3.0 * (promised * (1.0 - targets.failure_probability)).sqrt();
    assert!(missed <= limit, "{missed} of {RUNS} runs missed a target of {targets:?}, and at most {limit:.0} may");
    calls
}

/// A score near 1 for yes and near 0 for no.
fn good_score(random: &mut Random, truth: bool) -> f64 {
    let noise = random.next() * random.next() * random.next();
    if truth { 1.0 - noise } else { noise }
}

#[test]
fn a_good_proxy_saves_half_of_the_calls() {
    let calls = check(2000, |random| {
        let truth = random.next() < 0.4;
        (good_score(random, truth), truth, 1)
    });
    assert!(calls < 0.5, "{calls}");
}

#[test]
fn calibrated_scores() {
    check(1500, |random| {
        let score = random.next();
        (score, random.next() < score, 1)
    });
}

#[test]
fn scores_that_say_nothing() {
    check(1000, |random| (random.next(), random.next() < 0.5, 1));
}

#[test]
fn scores_that_mislead() {
    check(1000, |random| {
        let score = random.next();
        (score, random.next() < 1.0 - score, 1)
    });
}

/// As hard as it can be: just too few of the upper rows are right, and just too many of the yes-rows lie below.
#[test]
fn shares_at_the_edge() {
    check(1500, |random| {
        let score = random.next();
        (score, random.next() < if score >= 0.5 { 0.89 } else { 0.11 }, 1)
    });
}

#[test]
fn sure_and_often_wrong() {
    check(1000, |random| {
        let truth = random.next() < 0.5;
        let is_wrong = random.next() < 0.12;
        (if truth == is_wrong { 0.01 } else { 0.99 }, truth, 1)
    });
}

#[test]
fn rare_answers() {
    check(2000, |random| {
        let truth = random.next() < 0.05;
        (good_score(random, truth), truth, 1)
    });
}

#[test]
fn questions_of_many_rows() {
    check(500, |random| {
        let score = random.next();
        (score, random.next() < score * score, 1 + (random.next() * 6.0) as u32)
    });
}

/// What the proxy failed on is asked; nothing is asked twice; equal seeds ask the same.
#[test]
fn samples_are_distinct_and_reproducible() {
    let mut population = Population::new(1500, 3, |random| {
        let truth = random.next() < 0.4;
        (good_score(random, truth), truth, 1 + (random.next() * 3.0) as u32)
    });
    population.questions[7].score = f64::NAN;
    let samples = || {
        let mut cascade = Cascade::new(&population.questions, TARGETS, 5);
        let mut asked: Vec<u32> = vec![];
        loop {
            let sample = cascade.next_sample();
            if sample.is_empty() {
                return (asked, cascade);
            }
            cascade.learn(sample.iter().map(|question| (*question, population.truth[*question as usize])));
            asked.extend(sample);
        }
    };
    let (asked, cascade) = samples();
    assert_eq!(asked, samples().0);
    let distinct: std::collections::HashSet<u32> = asked.iter().copied().collect();
    assert_eq!(distinct.len(), asked.len());
    assert_eq!(cascade.report().sampled, asked.len() as u64);
    assert!(!distinct.contains(&7));
    assert_eq!(cascade.verdict(7), Verdict::Ask);
    assert!(distinct.iter().all(|question| cascade.verdict(*question) == Verdict::Ask));
}

#[test]
fn nothing_and_little() {
    for count in [0, 1, 5] {
        let questions = vec![Scored { score: 0.5, rows: 1 }; count];
        let mut cascade = Cascade::new(&questions, TARGETS, 0);
        loop {
            let sample = cascade.next_sample();
            if sample.is_empty() {
                break;
            }
            cascade.learn(sample.into_iter().map(|question| (question, true)));
        }
        assert_eq!(cascade.report().reject_below, None);
    }
}
