//! Formats numbers and times.

use std::time::{SystemTime, UNIX_EPOCH};

/// Text for a missing number.
pub(super) const DASH: &str = "–";

/// A number from 0 to 1 with four decimals; a dash for NaN and for -1, the result of an evaluation without objects.
pub(super) fn fraction(value: f64) -> String {
    if value >= 0.0 { format!("{value:.4}") } else { DASH.to_owned() }
}

/// A fraction in percent. A non-breaking space precedes the percent sign.
pub(super) fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.0}\u{202F}%", 100.0 * fraction) } else { DASH.to_owned() }
}

/// A number with four significant digits.
pub(super) fn exact(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => DASH.to_owned(),
        0.0 => "0".to_owned(),
        0.001..1000.0 => {
            let decimals = (3 - value.abs().log10().floor() as i32).max(0) as usize;
            format!("{value:.decimals$}")
        }
        1000.0..1e6 => format!("{value:.0}"),
        _ => format!("{value:.3e}"),
    }
}

/// A count with narrow spaces as thousands separators.
pub(super) fn count(value: usize) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202F}');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: "1 image", "2 images".
pub(super) fn counted(value: usize, one: &str, many: &str) -> String {
    format!("{} {}", count(value), if value == 1 { one } else { many })
}

/// Date and time in UTC, to the second.
pub(super) fn moment(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    let [year, month, day] = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Year, month and day of a number of days after 1970-01-01. <https://howardhinnant.github.io/date_algorithms.html>,
/// `civil_from_days`: years begin in March, so that the leap day is the last.
fn date(days: u64) -> [u64; 3] {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    [year + era * 400 + u64::from(month <= 2), month, day]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_equal_those_of_the_date_command() {
        // date --utc --date=@SECONDS +'%F %T UTC'
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn numbers_are_short_and_missing_ones_are_a_dash() {
        assert_eq!([fraction(-1.0), fraction(f64::NAN), percent(f64::NAN), exact(f64::INFINITY)], [DASH; 4]);
        assert_eq!([fraction(0.0), fraction(1.0), fraction(0.123_45)], ["0.0000", "1.0000", "0.1235"]);
        let cases =
            [(0.0, "0"), (0.012_345, "0.01235"), (12.3456, "12.35"), (-123_456.0, "-123456"), (2.5e-7, "2.500e-7")];
        for (value, expected) in cases {
            assert_eq!(exact(value), expected);
        }
        let counts = [(0, "0"), (999, "999"), (1000, "1\u{202F}000"), (1_234_567, "1\u{202F}234\u{202F}567")];
        for (value, expected) in counts {
            assert_eq!(count(value), expected);
        }
        assert_eq!([counted(1, "box", "boxes"), counted(2, "box", "boxes")], ["1 box", "2 boxes"]);
    }
}
