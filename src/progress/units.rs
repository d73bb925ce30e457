//! Sizes and durations as people read them. Decimal units (1 kB is 1000 bytes), as registries and
//! disks count.

use std::time::Duration;

/// `0 B`, `999 B`, `1.2 kB`, `4.1 MB`.
pub fn size(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut unit = 1000_u128;
    for name in ["kB", "MB", "GB", "TB", "PB"] {
        let tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
        if tenths < 10_000 {
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
        unit *= 1000;
    }
    format!("{} EB", u128::from(bytes) / unit)
}

/// `512 B`, `32 MiB`, `1.5 GiB`: for what is given in powers of two, as limits of memory are.
pub fn binary_size(bytes: u64) -> String {
    let mut unit = 1_u128;
    let mut name = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if u128::from(bytes) < unit * 1024 {
            break;
        }
        unit *= 1024;
        name = larger;
    }
    let tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
    if tenths.is_multiple_of(10) {
        format!("{} {name}", tenths / 10)
    } else {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    }
}

/// `0.3s`, `72.0s`: what logs are searched for, so never another unit.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}

/// `1.5s`, `90s`, `1h`, as it may be typed: nothing is rounded away.
pub fn exactly(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 1.. if duration.subsec_nanos() == 0 && seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        seconds @ 1.. if duration.subsec_nanos() == 0 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        _ => format!("{}s", duration.as_secs_f64()),
    }
}

/// `0.3s`, `59.9s`, `1m 12s`, `2h 05m`.
pub fn duration(duration: Duration) -> String {
    // 59.96 s would be shown as 60.0s.
    if duration < Duration::from_millis(59_950) {
        return seconds(duration);
    }
    let total = duration.as_secs() + u64::from(duration.subsec_millis() >= 500);
    if total < 3600 {
        return format!("{}m {:02}s", total / 60, total % 60);
    }
    let minutes = (total + 30) / 60;
    format!("{}h {:02}m", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_carry_into_the_next_unit() {
        let shown = [0, 999, 1000, 1249, 1250, 999_949, 999_950, 4_100_000, 5_000_000_000, u64::MAX].map(size);
        let expected =
            ["0 B", "999 B", "1.0 kB", "1.2 kB", "1.3 kB", "999.9 kB", "1.0 MB", "4.1 MB", "5.0 GB", "18 EB"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn powers_of_two_are_shown_whole() {
        let shown = [0, 1023, 1024, 32 << 20, (32 << 20) + 1, 3 << 29, u64::MAX].map(binary_size);
        assert_eq!(shown, ["0 B", "1023 B", "1 KiB", "32 MiB", "32 MiB", "1.5 GiB", "16384 PiB"]);
    }

    #[test]
    fn durations_never_show_sixty() {
        let shown = [0, 49, 50, 59_949, 59_950, 72_000, 3_599_499, 3_599_500, 7_500_000].map(|ms| {
            let shown = duration(Duration::from_millis(ms));
            assert!(!shown.contains("60"), "{shown}");
            shown
        });
        assert_eq!(shown, ["0.0s", "0.0s", "0.1s", "59.9s", "1m 00s", "1m 12s", "59m 59s", "1h 00m", "2h 05m"]);
    }
}
