//! The settings that a benchmark compares.

use super::super::error::{Failure, Outcome};
use super::super::session::Session;

/// One combination of settings.
#[derive(Debug)]
pub(super) struct Arm {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) settings: &'static [(&'static str, &'static str)],
}

/// What an arm leaves at its default.
const DEFAULTS: &[(&str, &str)] =
    &[("reorder", "auto"), ("dedup", "auto"), ("prefix_cache", "true"), ("layout", "auto"), ("disabled_rewrites", "none")];

const STORED: (&str, &str) = ("reorder", "none");
const ALL_ROWS: (&str, &str) = ("dedup", "off");
const AS_WRITTEN: (&str, &str) = ("disabled_rewrites", "all");
const NO_CACHE: (&str, &str) = ("prefix_cache", "false");
const INSTRUCTION_FIRST: (&str, &str) = ("layout", "instruction_first");

/// Every arm: from least to most, then all but one.
pub(super) const ARMS: &[Arm] = &[
    Arm {
        name: "naive",
        about: "a call a row, nothing shared",
        settings: &[STORED, ALL_ROWS, AS_WRITTEN, INSTRUCTION_FIRST, NO_CACHE],
    },
    Arm {
        name: "cache",
        about: "a call a row in stored order, with a prefix cache",
        settings: &[STORED, ALL_ROWS, AS_WRITTEN, INSTRUCTION_FIRST],
    },
    Arm { name: "cache+dedup", about: "stored order, each distinct question once", settings: &[STORED] },
    Arm { name: "rows", about: "rows sorted, fields in stored order", settings: &[("reorder", "rows")] },
    Arm { name: "ggr", about: "rows and fields in the order of the paper's GGR", settings: &[("reorder", "ggr")] },
    Arm { name: "search", about: "one searched field order, every row asked", settings: &[("reorder", "search"), ALL_ROWS] },
    Arm { name: "search+dedup", about: "one searched field order", settings: &[("reorder", "search")] },
    Arm { name: "refrain", about: "everything on", settings: &[] },
    Arm { name: "no-order", about: "all but reordering", settings: &[STORED] },
    Arm { name: "no-dedup", about: "all but deduplication", settings: &[ALL_ROWS] },
    Arm { name: "no-cache", about: "all but the prefix cache", settings: &[NO_CACHE] },
    Arm { name: "no-rewrites", about: "all but rewrites of plans", settings: &[AS_WRITTEN] },
    Arm { name: "no-layout", about: "all but the choice of what a prompt begins with", settings: &[INSTRUCTION_FIRST] },
];

/// Arms of another engine over the prompts that `refrain bench export` wrote, which `serving/scripts/vllm_queries.py` adds to results.
pub(super) const PEER_ARMS: [(&str, &str); 2] = [
    ("vllm", "vLLM with a prefix cache, a prompt a row in stored order"),
    ("vllm-ggr", "vLLM with a prefix cache, distinct prompts in the order of GGR"),
];

/// Returns the arms of these names, in the order of [`ARMS`]. Fails if there is no arm of a name.
pub(super) fn named<S: AsRef<str>>(names: &[S]) -> Outcome<Vec<&'static Arm>> {
    if let Some(name) = names.iter().map(AsRef::as_ref).find(|name| ARMS.iter().all(|arm| arm.name != *name)) {
        let known: Vec<&str> = ARMS.iter().map(|arm| arm.name).collect();
        return Err(Failure::usage(format!("there is no arm {name:?}; the arms are {}", known.join(", "))));
    }
    Ok(ARMS.iter().filter(|arm| names.iter().any(|name| name.as_ref() == arm.name)).collect())
}

impl Arm {
    /// Gives the session the settings of the arm, and the defaults of what it leaves alone.
    pub(super) async fn apply(&self, session: &Session) -> Outcome<()> {
        session.set_defaults_and(self.settings).await
    }
}

impl Session {
    /// Gives the settings that arms differ in these values, and the others their defaults.
    pub(super) async fn set_defaults_and(&self, settings: &[(&str, &str)]) -> Outcome<()> {
        for (name, value) in DEFAULTS.iter().chain(settings) {
            self.set(name, value).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_set_only_what_every_arm_resets() {
        let reset: Vec<&str> = DEFAULTS.iter().map(|(name, _)| *name).collect();
        assert!(ARMS.iter().flat_map(|arm| arm.settings).all(|(name, _)| reset.contains(name)));
    }

    #[test]
    fn arms_are_chosen_by_name() {
        let names = |names: &[&str]| named(names).map(|arms| arms.iter().map(|arm| arm.name).collect::<Vec<_>>());
        assert_eq!(names(&["refrain", "cache"]).unwrap(), ["cache", "refrain"]);
        assert!(names(&[]).unwrap().is_empty());
        assert!(names(&["best"]).unwrap_err().to_string().contains("there is no arm \"best\""));
    }
}
