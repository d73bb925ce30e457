//! `wythe cache du`, `prune` and `gc`: what takes room, and making some.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

use super::args::{Du, Prune};
use super::cache::{age, now, one_line};
use super::{Failure, print, usage, values};
use crate::cache::{self, Cap, Filter, Grounds, Inventory, Kind, Limit, Policy, Report};
use crate::progress::units;
use crate::store::{Action, Store};

/// The most digits of an ID that are shown.
const SHORT: usize = 12;

pub fn du(store: &Store, arguments: &Du) -> Result<ExitCode, Failure> {
    let filters = filters(&arguments.filters)?;
    let inventory = Inventory::take(store)?;
    let items: Vec<_> =
        inventory.items.iter().rev().filter(|item| filters.iter().all(|filter| filter.holds(item))).collect();
    if arguments.format.as_deref() == Some("json") {
        let list: Vec<_> = items
            .iter()
            .map(|item| {
                serde_json::json!({
                    "id": item.id,
                    "type": item.kind.name(),
                    "description": item.title,
                    "sizeBytes": item.size_bytes,
                    "reclaimableBytes": inventory.reclaimable_bytes(item),
                    "lastUsed": crate::host::rfc3339(item.last_used),
                    "inUse": item.is_in_use,
                    "shared": item.is_shared,
                })
            })
            .collect();
        let value = serde_json::json!({
            "items": list,
            "imagesBytes": inventory.images_bytes,
            "otherBytes": inventory.other_bytes,
            "totalBytes": inventory.total_bytes(),
        });
        print(&format!("{value}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    if arguments.verbose {
        let now = now();
        text.push_str(&format!("{:<SHORT$}  {:>8}  {:>8}  {:>9}  WHAT\n", "ID", "SIZE", "COULD GO", "LAST USED"));
        for item in &items {
            text.push_str(&format!(
                "{:<SHORT$}  {:>8}  {:>8}  {:>9}  {}\n",
                short(&item.id),
                units::size(item.size_bytes),
                units::size(inventory.reclaimable_bytes(item)),
                age(now - item.last_used),
                one_line(&item.title, 80),
            ));
        }
        text.push('\n');
    }
    text.push_str(&format!("{:<19}  {:>6}  {:>8}  {:>8}\n", "TYPE", "COUNT", "SIZE", "COULD GO"));
    let mut row = |name: &str, count: &str, size: u64, could_go: Option<u64>| {
        let could_go = could_go.map(units::size).unwrap_or_default();
        text.push_str(format!("{name:<19}  {count:>6}  {:>8}  {could_go:>8}", units::size(size)).trim_end());
        text.push('\n');
    };
    let mut sums = (0, 0);
    for kind in Kind::ALL {
        let of_kind: Vec<_> = items.iter().filter(|item| item.kind == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        let size = of_kind.iter().map(|item| item.size_bytes).sum();
        let could_go = of_kind.iter().map(|item| inventory.reclaimable_bytes(item)).sum();
        sums = (sums.0 + size, sums.1 + could_go);
        row(kind.name(), &of_kind.len().to_string(), size, Some(could_go));
    }
    if filters.is_empty() {
        row("images alone", "", inventory.images_bytes, None);
        row("other", "", inventory.other_bytes, None);
        sums.0 = inventory.total_bytes();
    }
    row("total", "", sums.0, Some(sums.1));
    print(&text);
    Ok(ExitCode::SUCCESS)
}

pub fn prune(store: &Store, arguments: &Prune) -> Result<ExitCode, Failure> {
    let size = |option: &str, text: &Option<String>| text.as_deref().map(|text| values::size(option, text)).transpose();
    let max_used_bytes = size("--max-used-space", &arguments.max_used_space)?;
    let min_free_bytes = size("--min-free-space", &arguments.min_free_space)?;
    let reserved_bytes = size("--reserved-space", &arguments.reserved_space)?.unwrap_or(0);
    let has_limit = max_used_bytes.is_some() || min_free_bytes.is_some();
    let age = arguments.older_than.as_deref().map(|text| values::age("--older-than", text)).transpose()?;
    let policy = Policy {
        filters: filters(&arguments.filters)?,
        unused_since: age.map(|age| now() - age),
        limit: (has_limit || reserved_bytes > 0).then_some(Limit {
            // To leave so much is to take the rest.
            max_used_bytes: if has_limit { max_used_bytes } else { Some(0) },
            min_free_bytes,
            reserved_bytes,
        }),
    };
    if !arguments.all && policy.limit.is_none() && policy.unused_since.is_none() && policy.filters.is_empty() {
        return Err(usage(
            "say what to prune: `--older-than AGE`, `--max-used-space SIZE`, `--filter FILTER`, or `--all` for everything not in use",
        ));
    }
    let action = if arguments.dry_run { Action::Tell } else { Action::Remove };
    let report = cache::prune(store, &policy, action)?;
    let mut text = String::new();
    if arguments.dry_run || arguments.verbose {
        text.push_str(&listed(&report, arguments.older_than.as_deref()));
    }
    text.push_str(&summary(&report, arguments.dry_run));
    print(&text);
    if !arguments.dry_run {
        store.empty_trash();
    }
    Ok(ExitCode::SUCCESS)
}

/// What goes, with why, the longest unused first.
fn listed(report: &Report, older_than: Option<&str>) -> String {
    let now = now();
    let mut text = format!("{:<SHORT$}  {:>8}  {:>9}  {:<26}  WHAT\n", "ID", "SIZE", "LAST USED", "WHY");
    for (item, grounds) in &report.items {
        let why = match grounds {
            Grounds::Asked => "not in use".into(),
            Grounds::Unused => format!("unused for {}", older_than.unwrap_or("so long")),
            Grounds::TooLarge { excess_bytes } => format!("store too large by {}", units::size(*excess_bytes)),
        };
        text.push_str(&format!(
            "{:<SHORT$}  {:>8}  {:>9}  {why:<26}  {}\n",
            short(&item.id),
            units::size(item.size_bytes),
            age(now - item.last_used),
            one_line(&item.title, 80),
        ));
    }
    text
}

fn summary(report: &Report, is_dry_run: bool) -> String {
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    for (item, _) in &report.items {
        *counts.entry(item.kind).or_default() += 1;
    }
    let names = |kind, count: usize| {
        let (one, many) = match kind {
            Kind::Regular => ("step or layer", "steps and layers"),
            Kind::CacheMount => ("cache mount", "cache mounts"),
            Kind::Download => ("file", "files"),
            Kind::Repository => ("git repository", "git repositories"),
            Kind::BuildRecord => ("record of a build", "records of builds"),
        };
        format!("{count} {}", if count == 1 { one } else { many })
    };
    let counted: Vec<_> = counts.iter().map(|(kind, count)| names(*kind, *count)).collect();
    let what = if counted.is_empty() { "nothing".into() } else { counted.join(", ") };
    let done = if is_dry_run { "would go" } else { "removed" };
    let mut text =
        format!("{what} {done}: {}, {} left\n", units::size(report.freed_bytes), units::size(report.left_bytes));
    if report.in_use > 0 {
        text.push_str(&format!("{} more are in use\n", report.in_use));
    }
    text
}

pub fn filters(texts: &[String]) -> Result<Vec<Filter>, Failure> {
    let now = now();
    let parse = |text: &String| Filter::parse(text, now, |age| values::age("until", age).ok());
    texts.iter().map(|text| parse(text).map_err(Failure::Usage)).collect()
}

fn short(id: &str) -> &str {
    &id[..id.len().min(SHORT)]
}

/// `--cap`, else the environment's, else the usual.
fn cap(text: Option<&str>) -> Result<Cap, Failure> {
    let (name, text) = match text {
        Some(text) => ("--cap", text.to_owned()),
        None => match std::env::var("WYTHE_STORE_CAP") {
            Ok(text) if !text.is_empty() => ("WYTHE_STORE_CAP", text),
            _ => return Ok(Cap::Usual),
        },
    };
    match text.as_str() {
        "none" => Ok(Cap::None),
        "auto" => Ok(Cap::Usual),
        share if share.ends_with('%') => match share.trim_end_matches('%').parse::<u8>() {
            Ok(percent @ 1..=100) => Ok(Cap::Percent(percent)),
            _ => Err(usage(format!("`{text}` is not a share for `{name}`: use 1% to 100%"))),
        },
        size => Ok(Cap::Bytes(values::size(name, size)?)),
    }
}

pub fn collect(store: &Store, text: Option<&str>, has_lock: bool) -> Result<ExitCode, Failure> {
    let cap = cap(text)?;
    // In the background standard input holds it.
    let _lock = if has_lock { None } else { store.lock_collection(true)? };
    if has_lock {
        let _ = rustix::process::nice(10);
    }
    let report = cache::collect(store, cap, now())?;
    print(&summary(&report, false));
    store.empty_trash();
    Ok(ExitCode::SUCCESS)
}

/// Checks the environment before a build rather than after it.
pub fn check_cap() -> Result<(), Failure> {
    cap(None).map(drop)
}

/// At the end of a build: if the store has become too large, another process makes room, and nobody waits
/// for it.
pub fn collect_in_background(store: &Store) {
    // What fails here is tried again after the next build.
    let _ = (|| -> Result<(), Failure> {
        if !cap(None)?.is_due(store, now())? {
            return Ok(());
        }
        let Some(lock) = store.lock_collection(false)? else { return Ok(()) };
        let mut command = Command::new("/proc/self/exe");
        command.arg0("wythe").arg("--root").arg(store.root()).args(["cache", "gc", "--has-lock"]);
        // Not in the terminal's foreground, whose Ctrl-C is for what the user sees.
        command.stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/").process_group(0);
        let _ = command.spawn();
        Ok(())
    })();
}
