//! How long to wait before the next attempt: longer each time, unless the service says how long.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

use super::config::RemoteConfig;

/// Returns the wait before retry number `retry`, the first being 0. `key` tells requests apart, so that those that failed
/// together do not come back together.
pub(super) fn backoff(config: &RemoteConfig, key: u64, retry: u32) -> Duration {
    let doubled = config.backoff_base.saturating_mul(1_u32.checked_shl(retry).unwrap_or(u32::MAX));
    let draw = mix(config.backoff_seed ^ mix(key ^ mix(u64::from(retry))));
    let share = (draw >> 11) as f64 / (1_u64 << 53) as f64;
    doubled.min(config.backoff_max).mul_f64(0.5 + 0.5 * share)
}

/// One step of SplitMix64.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns how long the service asks to be left alone: `Retry-After` in seconds or as a date, or `retry-after-ms`.
///
/// A date is compared with the service's own clock if the response shows it, and with `now` otherwise.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let milliseconds = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok());
    if let Some(milliseconds) = milliseconds {
        return Duration::try_from_secs_f64(milliseconds / 1000.0).ok();
    }
    let value = text(RETRY_AFTER.as_str())?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let now =
        text(DATE.as_str()).and_then(http_date).or_else(|| Some(now.duration_since(UNIX_EPOCH).ok()?.as_secs() as i64))?;
    Some(Duration::from_secs(http_date(value)?.saturating_sub(now).max(0) as u64))
}

/// Reads a date such as `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since 1970.
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = parts[..] else {
        return None;
    };
    let clock: Vec<i64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let ([hour, minute, second], month) = (clock[..].try_into().ok()?, MONTHS.iter().position(|name| *name == month)?);
    let (day, year): (i64, i64) = (day.parse().ok()?, year.parse().ok()?);
    let valid = (1..=31).contains(&day)
        && (1970..=9999).contains(&year)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    valid.then(|| days_since_1970(year, month as i64, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Counts days in a calendar whose years begin in March, so that the leap day is the last. `month` 0 is January.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 719_469
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_differ() {
        let mut config = RemoteConfig::new("", "");
        config.backoff_base = Duration::from_millis(100);
        config.backoff_max = Duration::from_millis(1000);
        for (retry, longest) in [(0, 100), (1, 200), (2, 400), (3, 800), (4, 1000), (40, 1000)] {
            let (wait, longest) = (backoff(&config, 7, retry), Duration::from_millis(longest));
            assert!(longest / 2 <= wait && wait <= longest, "retry {retry}: {wait:?}");
            assert_eq!(wait, backoff(&config, 7, retry));
            assert_ne!(wait, backoff(&config, 8, retry));
        }
        let before = backoff(&config, 7, 0);
        config.backoff_seed = 1;
        assert_ne!(before, backoff(&config, 7, 0));
    }

    #[track_caller]
    fn check(headers: &[(&'static str, &str)], expected: Option<Duration>) {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        assert_eq!(retry_after(&headers, now), expected);
    }

    #[test]
    fn reads_what_the_service_asks_for() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        check(&[], None);
        check(&[("retry-after", "20")], seconds(20));
        check(&[("retry-after", "0.5")], Some(Duration::from_millis(500)));
        check(&[("retry-after", "9"), ("retry-after-ms", "250")], Some(Duration::from_millis(250)));
        check(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], seconds(7));
        check(&[("retry-after", "Sun, 06 Nov 1994 08:49:20 GMT")], seconds(0));
        let later = ("date", "Sun, 06 Nov 1994 08:48:37 GMT");
        check(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), later], seconds(60));
        for nonsense in ["-1", "soon", "NaN", "1e300", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49 GMT"] {
            check(&[("retry-after", nonsense)], None);
        }
    }

    #[test]
    fn dates() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Tue, 29 Feb 2000 23:59:59 GMT"), Some(951_868_799));
        assert_eq!(http_date("Wed, 01 Mar 2000 00:00:00 GMT"), Some(951_868_800));
    }
}
