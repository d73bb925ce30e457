//! Durations as Go writes them: `1h30m`, `1.5s`, `300ms`.

use crate::dockerfile::statement::brief;

/// Nanoseconds. The error says what is wrong with the text.
pub fn parse_ns(text: &str) -> Result<i64, String> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(format!("`{}` is not a duration", brief(text)));
    }
    let mut total: i64 = 0;
    let too_long = || format!("duration `{}` is too long", brief(text));
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split_digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(format!("`{}` is not a duration", brief(text)));
        }
        let unit_length = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        let scale: i64 = match unit {
            "ns" => 1,
            // Micro is U+00B5 or the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(format!("duration `{}` has no unit", brief(text))),
            _ => return Err(format!("unknown unit `{}` in duration `{}`", brief(unit), brief(text))),
        };
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_long())? };
        // Eighteen digits are more than a nanosecond needs of an hour.
        let fraction = &fraction[..fraction.len().min(18)];
        let part = match fraction.parse::<i128>() {
            Ok(digits) => (digits * i128::from(scale) / 10_i128.pow(fraction.len() as u32)) as i64,
            Err(_) => 0,
        };
        total = whole
            .checked_mul(scale)
            .and_then(|whole| whole.checked_add(part))
            .and_then(|sum| total.checked_add(sum))
            .ok_or_else(too_long)?;
        rest = after;
    }
    Ok(if is_negative { -total } else { total })
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::parse_ns;

    #[test]
    fn durations() {
        let rows = [
            ("0", 0),
            ("+5s", 5_000_000_000),
            ("-5s", -5_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("100us", 100_000),
            ("100\u{b5}s", 100_000),
            ("1ms2ns", 1_000_002),
            ("0.100000000000000000000h", 360_000_000_000),
            ("2540400h10m10.000000001s", 9_145_440_610_000_000_001),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_ns(text), Ok(expected), "{text}");
        }
        for text in ["", "-", "3", ".s", "5parsecs", "1s.", "s", "9999999h", "99999999999999999999s", "1 s", "x"] {
            assert!(parse_ns(text).is_err(), "{text}");
        }
    }
}
