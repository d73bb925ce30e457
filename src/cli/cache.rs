//! `wythe cache ls`.

use std::process::ExitCode;

use super::{Failure, print};
use crate::cache::Records;
use crate::progress::{self, units};
use crate::store::Store;

/// Newest hit first.
pub fn ls(store: &Store, as_json: bool) -> Result<ExitCode, Failure> {
    let mut records = Records::of(store).all()?;
    records.sort_by(|(a_key, _, a), (b_key, _, b)| b.cmp(a).then(a_key.cmp(b_key)));
    if as_json {
        let list: Vec<_> = records
            .iter()
            .map(|(key, record, hit)| {
                serde_json::json!({
                    "key": key.to_string(),
                    "step": record.title,
                    "diffId": record.layer.map(|layer| layer.diff_id.to_string()),
                    "sizeBytes": record.layer.map_or(0, |layer| layer.size_bytes),
                    "created": record.created,
                    "elapsedMs": record.elapsed_ms,
                    "cpuMs": record.usage.map(|usage| usage.cpu_us / 1000),
                    "memoryBytes": record.usage.map(|usage| usage.memory_bytes),
                    "readBytes": record.usage.map(|usage| usage.read_bytes),
                    "writtenBytes": record.usage.map(|usage| usage.written_bytes),
                    "lastHit": crate::host::rfc3339(*hit),
                })
            })
            .collect();
        print(&format!("{}\n", serde_json::Value::from(list)));
        return Ok(ExitCode::SUCCESS);
    }
    let now = now();
    let mut text = format!("{:<12}  {:>8}  {:>9}  {:>9}  STEP\n", "KEY", "SIZE", "CREATED", "LAST HIT");
    for (key, record, hit) in &records {
        let made = crate::host::seconds(&record.created).unwrap_or(*hit);
        text.push_str(&format!(
            "{:<12}  {:>8}  {:>9}  {:>9}  {}\n",
            &key.hex()[..12],
            units::size(record.layer.map_or(0, |layer| layer.size_bytes)),
            age(now - made),
            age(now - hit),
            one_line(&record.title, 80),
        ));
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}

/// How long ago, in the largest unit that fits.
pub fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3_600 => format!("{}m ago", seconds / 60),
        3_600..172_800 => format!("{}h ago", seconds / 3_600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// Text of a Dockerfile or an image on one line of a terminal, at most `columns` wide.
pub fn one_line(text: &str, columns: usize) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    progress::fit(&progress::defuse(words.join(" ").as_bytes()), columns)
}

/// For ages that are shown and thresholds that are typed; nothing of it reaches an image.
pub fn now() -> i64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0))
}
