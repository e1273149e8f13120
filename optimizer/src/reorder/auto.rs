//! The strategies that search: candidates are planned by whole cells, and the best is chosen by what it saves in the end.
//!
//! The stored order is always among the candidates and wins ties, so prompts change only where that saves something, and no
//! plan computes more than [`Strategy::None`](super::Strategy::None) does. A tree gives rows different field orders, which
//! may change answers a little from row to row; [`auto`] takes one only if it saves a hundredth of all tokens more.

use super::dependencies::Dependencies;
use super::objective::saved_tokens;
use super::partition::{Partition, Refiner};
use super::rows::sorted_by;
use super::schedule::{FieldOrder, Options, Schedule, is_permutation, sets_are_together};
use super::search::{scored_order, searched_order};
use super::sets::Arrangement;
use super::table::Table;
use super::tree;
use super::trie::{depth_first, saved_in_trie};

/// One over the share of all tokens that another field order must save more than the one at hand: that of all rows for a tree, that
/// of the rows before for a new one.
const GAIN_MIN: u64 = 100;

/// One field order for all rows, and for each row an order within each set.
pub(super) fn search(table: &Table, options: &Options) -> Schedule {
    Problem::new(table, options).searched().schedule
}

/// A field order for each row, where that saves more than one for all.
pub(super) fn tree(table: &Table, options: &Options) -> Schedule {
    let problem = Problem::new(table, options);
    let searched = problem.searched();
    match problem.tree(&searched) {
        Some(tree) if tree.saved > searched.saved => tree.schedule,
        _ => searched.schedule,
    }
}

/// The planner's choice.
pub(super) fn auto(table: &Table, options: &Options) -> Schedule {
    let problem = Problem::new(table, options);
    let searched = problem.searched();
    let saves_enough = |saved: u64| saved > searched.saved + table.tokens() / GAIN_MIN;
    match problem.tree(&searched) {
        Some(tree) if saves_enough(tree.saved) => tree.schedule,
        _ => searched.schedule,
    }
}

struct Problem<'a> {
    table: &'a Table,
    options: &'a Options,
    dependencies: Dependencies,
}

/// A schedule and what it saves.
struct Candidate {
    schedule: Schedule,
    saved: u64,
    arrangement: Option<Arrangement>,
}

impl<'a> Problem<'a> {
    fn new(table: &'a Table, options: &'a Options) -> Self {
        let dependencies = if options.dependencies { Dependencies::of(table) } else { Dependencies::none(table) };
        Self { table, options, dependencies }
    }

    fn searched(&self) -> Candidate {
        let stored_order = self.table.stored_order();
        let stored = self.candidate(sorted_by(self.table, stored_order.clone()), None);
        let arrangement = self.arrange(&Partition::whole(self.table.rows()));
        let arranged = arrangement.as_ref().map(|arrangement| arrangement.apply(self.table));
        let units = self.dependencies.merge(arranged.as_ref().unwrap_or(self.table), self.table.sets());
        let searched = searched_order(&units, self.table.rows(), &self.dependencies, self.options);
        let scored = self.dependencies.coarser_first(&scored_order(&units));
        let mut best = stored;
        // Without sets, an order that was judged before saves the same again.
        let mut judged = if arrangement.is_none() { vec![stored_order] } else { vec![] };
        for order in [searched, scored] {
            let order = self.dependencies.expand(&order);
            if judged.contains(&order) {
                continue;
            }
            let candidate = self.by_order(&order, arrangement.as_ref());
            if candidate.saved > best.saved {
                best = candidate;
            }
            judged.push(order);
        }
        if let Some(order) = self.order_before() {
            let candidate = self.by_order(order, arrangement.as_ref());
            if candidate.saved + self.table.tokens() / GAIN_MIN >= best.saved {
                best = candidate;
            }
        }
        let used = self.dependencies.used_by(self.table, best.schedule.fields_of(0));
        best.schedule = best.schedule.with_dependencies(used);
        best
    }

    /// Returns the order of rows computed before these, if it is one of these columns.
    fn order_before(&self) -> Option<&[u32]> {
        let order = self.options.after.as_deref()?;
        let fits = is_permutation(order, self.table.columns().len()) && sets_are_together(self.table, order);
        fits.then_some(order)
    }

    /// Sorts rows by one order of columns. Sets are arranged once more for the rows that share what stands before them.
    fn by_order(&self, order: &[u32], arrangement: Option<&Arrangement>) -> Candidate {
        let Some(arrangement) = arrangement else {
            return self.candidate(sorted_by(self.table, order.to_vec()), None);
        };
        let arranged = self.scheduled(order, arrangement.clone());
        let before = order.iter().take_while(|&&column| !self.is_in_set(column));
        let before = before.map(|&column| &self.table.columns()[column as usize]);
        let (_, classes) = Refiner::new(1).refine_by(&Partition::whole(self.table.rows()), before);
        match self.arrange(&classes) {
            Some(again) if again != *arrangement => {
                let again = self.scheduled(order, again);
                if again.saved > arranged.saved { again } else { arranged }
            }
            _ => arranged,
        }
    }

    fn scheduled(&self, order: &[u32], arrangement: Arrangement) -> Candidate {
        let sorted = sorted_by(&arrangement.apply(self.table), order.to_vec());
        self.candidate(arrangement.restore(sorted), Some(arrangement))
    }

    /// Looks for field orders by row around the order of `searched`; `None` if there is nothing to gain.
    fn tree(&self, searched: &Candidate) -> Option<Candidate> {
        let arranged = searched.arrangement.as_ref().map(|arrangement| arrangement.apply(self.table));
        let table = arranged.as_ref().unwrap_or(self.table);
        let units = self.dependencies.merge(table, self.table.sets());
        let first = searched.schedule.rows().first()?;
        let stored = |column: u32| match &searched.arrangement {
            Some(arrangement) => arrangement.arranged(*first, column),
            None => column,
        };
        let order: Vec<u32> = searched.schedule.fields_of(0).iter().map(|&column| stored(column)).collect();
        let order = self.dependencies.groups_in(&order);
        let (rows, orders) = tree::orders(&units, self.table.rows(), &order, self.options)?;
        let orders = orders.iter().map(|order| self.dependencies.expand(order)).collect();
        let mut schedule = Schedule::from_solver(rows, FieldOrder::PerRow(orders));
        if let Some(arrangement) = &searched.arrangement {
            schedule = arrangement.restore(schedule);
        }
        let schedule = schedule.reordered(&depth_first(self.table, &schedule));
        let schedule = schedule.with_dependencies(searched.schedule.dependencies().to_vec());
        Some(self.candidate(schedule, searched.arrangement.clone()))
    }

    fn candidate(&self, schedule: Schedule, arrangement: Option<Arrangement>) -> Candidate {
        let page = self.options.page;
        let saved = match self.table.has_tokens() {
            true => saved_in_trie(self.table, &schedule, page),
            false => saved_tokens(self.table, &schedule, page),
        };
        Candidate { schedule, saved, arrangement }
    }

    fn arrange(&self, classes: &Partition) -> Option<Arrangement> {
        (!self.table.sets().is_empty()).then(|| Arrangement::of(self.table, classes))
    }

    fn is_in_set(&self, column: u32) -> bool {
        self.table.sets().iter().any(|set| set.contains(&(column as usize)))
    }
}
