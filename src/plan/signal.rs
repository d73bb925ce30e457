//! STOPSIGNAL: which names and numbers are signals.

const NAMES: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "RTMAX", "RTMIN", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// Whether `text` is a signal's name (with or without `SIG`, in any case), `RTMIN+n`, `RTMAX-n` or a number
/// other than 0.
pub(super) fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, highest: u32| {
        !rest.starts_with(['0', '+']) && rest.parse::<u32>().is_ok_and(|offset| (1..=highest).contains(&offset))
    };
    NAMES.contains(&name)
        || name.strip_prefix("RTMIN+").is_some_and(|rest| offset(rest, 15))
        || name.strip_prefix("RTMAX-").is_some_and(|rest| offset(rest, 14))
}

/// The names to suggest from.
pub(super) fn names() -> impl Iterator<Item = String> {
    NAMES.iter().map(|name| format!("SIG{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_signals() {
        for text in ["SIGTERM", "term", "9", "SIGRTMIN+3", "RTMAX-14", "sigusr1", "64", "-1"] {
            assert!(is_signal(text), "{text}");
        }
        for text in ["", "0", "SIGNOPE", "SIGRTMIN+16", "RTMAX-0", "SIG", "RTMIN+"] {
            assert!(!is_signal(text), "{text}");
        }
    }
}
