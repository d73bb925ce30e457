//! How values are written in history texts. BuildKit prints Go values with `%v`, `%+v` and `%q`; tools and
//! people compare these texts, so ours are the same to the byte.

use std::fmt::Write;

use crate::image::HealthConfig;

/// `[a b c]`: a list as `%v` prints it.
pub(super) fn list<T: AsRef<str>>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" "))
}

/// `["a" "b c"]`: a list as `%q` prints it.
pub(super) fn quoted_list(items: &[String]) -> String {
    list(&items.iter().map(|item| quoted(item)).collect::<Vec<_>>())
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            character if is_printable(character) => out.push(character),
            character => {
                let code = u32::from(character);
                // Writing to a String cannot fail.
                let _ = match code {
                    0..0x80 => write!(out, "\\x{code:02x}"),
                    0x80..0x1_0000 => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push('"');
    out
}

/// Letters, marks, numbers, punctuation, symbols and the ASCII space. A mark is escaped by `escape_debug` only where
/// it begins the text.
fn is_printable(character: char) -> bool {
    !format!("a{character}").escape_debug().to_string().contains("\\u{")
}

/// `{Test:[CMD x] Interval:30s …}`.
pub(super) fn health(health: &HealthConfig) -> String {
    format!(
        "{{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        list(&health.test),
        duration(health.interval),
        duration(health.timeout),
        duration(health.start_period),
        duration(health.start_interval),
        health.retries
    )
}

/// Nanoseconds as `1h2m3.5s`, below a second as `1.5ms`.
fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let fraction = |value: u64, unit: u64| {
        let (whole, rest) = (value / unit, value % unit);
        let width = unit.ilog10() as usize;
        let digits = format!("{rest:0width$}");
        match digits.trim_end_matches('0') {
            _ if rest == 0 => whole.to_string(),
            digits => format!("{whole}.{digits}"),
        }
    };
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(total, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(total, 1_000_000)),
        _ => {
            let (minutes, rest) = (total / 60_000_000_000, total % 60_000_000_000);
            let seconds = fraction(rest, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_go_does() {
        for (text, shown) in [
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("say \"hi\" \\ $X", "\"say \\\"hi\\\" \\\\ $X\""),
            ("a\nb\tc\x01\x7f", "\"a\\nb\\tc\\x01\\x7f\""),
            ("é ファ e\u{301}", "\"é ファ e\u{301}\""),
            ("\u{a0}\u{200b}\u{e0001}", "\"\\u00a0\\u200b\\U000e0001\""),
            ("it's", "\"it's\""),
        ] {
            assert_eq!(quoted(text), shown, "{text:?}");
        }
    }

    #[test]
    fn prints_durations_as_go_does() {
        for (nanoseconds, shown) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (1_000_000, "1ms"),
            (1_050_000, "1.05ms"),
            (30_000_000_000, "30s"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (5_400_000_000_000 + 250_000_000, "1h30m0.25s"),
        ] {
            assert_eq!(duration(nanoseconds), shown, "{nanoseconds}");
        }
    }
}
