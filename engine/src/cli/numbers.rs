//! Numbers and durations as people read them.

/// Groups digits by three: `12 289`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Shortens a large number: `1.9 k`, `3.1 M`.
pub(crate) fn short(number: f64) -> String {
    match number {
        n if n >= 1e9 => format!("{:.1} G", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// An amount of memory: `12 B`, `1.2 GB`.
pub(crate) fn bytes(number: u64) -> String {
    if number < 1000 { format!("{number} B") } else { format!("{}B", short(number as f64)) }
}

/// A share in whole percent, or `None` of nothing.
pub(crate) fn percent(part: u64, whole: u64) -> Option<u64> {
    (whole > 0).then(|| (part as f64 * 100.0 / whole as f64).round() as u64)
}

/// Seconds for a closing line: `0.012`, `1.53`, `94.1`.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.1 => format!("{s:.3} s"),
        s if s < 10.0 => format!("{s:.2} s"),
        s => format!("{s:.1} s"),
    }
}

/// A duration that is not known exactly: `40 ms`, `42 s`, `9 min`, `3.5 h`.
pub(crate) fn rough(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A duration as a clock shows it: `01:42`, `1:02:03`.
pub(crate) fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes:02}:{seconds:02}") }
}

/// `1 row`, `1 204 rows`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 12_289, 1_000_000].map(grouped), ["0", "999", "1 000", "12 289", "1 000 000"]);
        assert_eq!([12.0, 1_900.0, 3_100_000.0].map(short), ["12", "1.9 k", "3.1 M"]);
        assert_eq!([12, 1_200_000_000].map(bytes), ["12 B", "1.2 GB"]);
        assert_eq!([0.012, 1.529, 94.12].map(seconds), ["0.012 s", "1.53 s", "94.1 s"]);
        assert_eq!([0.04, 42.4, 545.0, 12_600.0].map(rough), ["40 ms", "42 s", "9 min", "3.5 h"]);
        assert_eq!([102.0, 3723.0].map(clock), ["01:42", "1:02:03"]);
        assert_eq!((percent(74, 100), percent(1, 0)), (Some(74), None));
        assert_eq!((counted(1, "row"), counted(0, "row")), ("1 row".into(), "0 rows".into()));
    }
}
