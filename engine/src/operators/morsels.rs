//! How much is asked at a time where only so many rows are wanted.
//!
//! With N the calls that a row at a time would make for k rows, all morsels together make at most max(2k, 2N): the first holds 2k
//! questions, and a further one at most as many as were asked before, of which none was one too many.

/// Returns how many questions the next morsel may hold, after `asked` questions have given `found` of the `wanted` rows.
pub(super) fn next_morsel(wanted: usize, found: usize, asked: usize) -> usize {
    if asked == 0 {
        return wanted.saturating_mul(2).max(1);
    }
    let missing = wanted.saturating_sub(found).max(1);
    match found {
        0 => asked,
        // As many as are missing, if the share that passes stays what it was.
        _ => (missing as u128 * asked as u128).div_ceil(found as u128).min(asked as u128) as usize,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the calls for `wanted` rows out of a table, and those that a row at a time would make.
    fn calls(wanted: usize, passes: &[bool]) -> (usize, usize) {
        let (mut asked, mut found) = (0, 0);
        while found < wanted && asked < passes.len() {
            let morsel = next_morsel(wanted, found, asked).min(passes.len() - asked);
            found += passes[asked..asked + morsel].iter().filter(|passes| **passes).count();
            asked += morsel;
        }
        let last_needed = passes.iter().enumerate().filter(|(_, passes)| **passes).nth(wanted - 1);
        (asked, last_needed.map_or(passes.len(), |(row, _)| row + 1))
    }

    proptest! {
        #[test]
        fn calls_stay_within_their_bound(wanted in 1_usize..60, share in 0.0_f64..1.0, seed in any::<u64>(), rows in 0_usize..4000) {
            let hash = ahash::RandomState::with_seeds(seed, 1, 2, 3);
            let passes: Vec<bool> = (0..rows).map(|row| (hash.hash_one(row) as f64 / u64::MAX as f64) < share).collect();
            let (asked, needed) = calls(wanted, &passes);
            prop_assert!(asked <= (2 * wanted).max(2 * needed), "{asked} calls, {needed} needed");
        }
    }

    #[test]
    fn a_morsel_asks_for_what_is_missing() {
        assert_eq!(next_morsel(5, 0, 0), 10);
        assert_eq!(next_morsel(5, 4, 10), 3, "one is missing, at four in ten");
        assert_eq!(next_morsel(5, 0, 10), 10);
        assert_eq!(next_morsel(5, 1, 10), 10, "forty would be needed");
        assert_eq!(next_morsel(usize::MAX, 1, usize::MAX), usize::MAX);
    }
}
