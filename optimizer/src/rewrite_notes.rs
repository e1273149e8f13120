//! What rules did to a call and what they would not do, for EXPLAIN. No rule reads it.

/// The notes of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RewriteNotes {
    /// The names of the rewrites that put the call where it is.
    pub applied: Vec<&'static str>,
    /// The rewrites that were not possible, each with its reason: `stop_llm_filter_at_limit (the sort above it needs every row)`.
    pub refused: Vec<String>,
}

impl RewriteNotes {
    /// Notes a rewrite. Returns whether that is news.
    pub fn apply(&mut self, name: &'static str) -> bool {
        let is_new = !self.applied.contains(&name);
        self.applied.extend(is_new.then_some(name));
        is_new
    }

    /// Notes a rewrite that was not possible, and why. Returns whether that is news.
    pub fn refuse(&mut self, name: &str, reason: &str) -> bool {
        let refused = format!("{name} ({reason})");
        let is_new = !self.refused.contains(&refused);
        self.refused.extend(is_new.then_some(refused));
        is_new
    }
}
