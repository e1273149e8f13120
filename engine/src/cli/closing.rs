//! The line that closes a query: rows, time, and what the model calls came to.

use super::numbers::{counted, grouped, percent, seconds};
use crate::QueryUsage;

/// `1 204 rows (7 failed) in 94.1 s; 3 911 calls, 12 289 saved by dedup, 74 % prefix hits`, as far as it applies.
///
/// `rows` is the size of the result, or `None` of a statement without one; `elapsed_s` is left out where nobody asked.
pub(crate) fn closing_line(rows: Option<u64>, elapsed_s: Option<f64>, usage: &QueryUsage) -> String {
    let mut line = rows.map_or_else(|| "done".to_owned(), |rows| counted(rows, "row"));
    if usage.failed_rows > 0 {
        line += &format!(" ({} failed)", grouped(usage.failed_rows));
    }
    if let Some(elapsed) = elapsed_s {
        line += &format!(" in {}", seconds(elapsed));
    }
    match spent(usage) {
        Some(spent) => format!("{line}; {spent}"),
        None => line,
    }
}

/// What the model calls came to: `3 911 calls, 12 289 saved by dedup, 74 % prefix hits`; `None` without any.
pub(crate) fn spent(usage: &QueryUsage) -> Option<String> {
    if usage.rows == 0 && usage.calls == 0 {
        return None;
    }
    let mut parts = vec![counted(usage.calls, "call")];
    if usage.dedup_saved > 0 {
        parts.push(format!("{} saved by dedup", grouped(usage.dedup_saved)));
    }
    if let Some(share) = percent(usage.cached_tokens, usage.prompt_tokens) {
        parts.push(format!("{share} % prefix hits"));
    }
    Some(parts.join(", "))
}

/// `37 rows failed (0.4 %): 30 overflow, 7 schema`; `None` where none did.
pub(crate) fn failures(usage: &QueryUsage) -> Option<String> {
    if usage.failed_rows == 0 {
        return None;
    }
    let mut line = format!("{} failed", counted(usage.failed_rows, "row"));
    if usage.rows > 0 {
        line += &format!(" ({:.1} %)", usage.failed_rows as f64 * 100.0 / usage.rows as f64);
    }
    let reasons: Vec<String> = usage.errors.iter().map(|(reason, count)| format!("{} {reason}", grouped(*count))).collect();
    Some(if reasons.is_empty() { line } else { format!("{line}: {}", reasons.join(", ")) })
}

/// The usage of a query as a list, for `\usage`.
pub(crate) fn usage_report(query_id: u64, usage: &QueryUsage) -> String {
    let hits = percent(usage.cached_tokens, usage.prompt_tokens).unwrap_or(0);
    let lines = [
        ("query", query_id.to_string()),
        ("rows", grouped(usage.rows)),
        ("distinct", grouped(usage.distinct)),
        ("calls", grouped(usage.calls)),
        ("saved by dedup", grouped(usage.dedup_saved)),
        ("prompt tokens", format!("{} ({} cached, {hits} %)", grouped(usage.prompt_tokens), grouped(usage.cached_tokens))),
        ("output tokens", grouped(usage.output_tokens)),
        ("failed rows", grouped(usage.failed_rows)),
    ];
    lines.map(|(name, value)| format!("{name:15} {value}\n")).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage() -> QueryUsage {
        QueryUsage {
            rows: 16_200,
            distinct: 3_911,
            calls: 3_911,
            dedup_saved: 12_289,
            prompt_tokens: 1_000,
            cached_tokens: 742,
            failed_rows: 7,
            errors: [("overflow".to_owned(), 5), ("schema".to_owned(), 2)].into(),
            ..QueryUsage::default()
        }
    }

    #[test]
    fn the_line_tells_only_what_applies() {
        let whole = "1 204 rows (7 failed) in 94.1 s; 3 911 calls, 12 289 saved by dedup, 74 % prefix hits";
        assert_eq!(closing_line(Some(1_204), Some(94.1), &usage()), whole);
        let plain = QueryUsage::default();
        assert_eq!(closing_line(Some(1), Some(0.5), &plain), "1 row in 0.50 s");
        assert_eq!(closing_line(Some(2), None, &plain), "2 rows");
        assert_eq!(closing_line(None, Some(0.002), &plain), "done in 0.002 s");
    }

    #[test]
    fn failures_are_counted_by_reason() {
        assert_eq!(failures(&usage()).unwrap(), "7 rows failed (0.0 %): 5 overflow, 2 schema");
        assert_eq!(failures(&QueryUsage::default()), None);
    }

    #[test]
    fn the_report_names_every_number() {
        assert!(usage_report(7, &usage()).contains("prompt tokens   1 000 (742 cached, 74 %)\n"));
    }
}
