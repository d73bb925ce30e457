//! `wythe history` and `wythe logs`: builds that were.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use super::args::{History, Logs};
use super::cache::{age, one_line};
use super::{Failure, images, print};
use crate::diag::{self, Diagnostic, Result};
use crate::journal::{Builds, Ending, Found, Lines, Step};
use crate::progress::{Outcome, defuse, units};
use crate::store::Store;

/// Builds, or with an image how that was made.
pub fn history(store: &Store, arguments: &History) -> std::result::Result<ExitCode, Failure> {
    let as_json = arguments.json || arguments.format.as_deref() == Some("json");
    let count = arguments.number.unwrap_or(usize::MAX);
    if let Some(image) = &arguments.image {
        return images::history(store, image, as_json, count);
    }
    let builds = Builds::of(store).newest(count)?;
    if as_json {
        let list: Vec<_> = builds.iter().map(json).collect();
        print(&format!("{}\n", serde_json::Value::from(list)));
        return Ok(ExitCode::SUCCESS);
    }
    let now = super::cache::now();
    let mut text =
        format!("{:<12}  {:>9}  {:<11}  {:>8}  {:>7}  NAME\n", "BUILD", "STARTED", "OUTCOME", "TIME", "CACHED");
    for found in &builds {
        let (steps, cached) = found.build.counts();
        let time = match &found.build.end {
            Some(end) => units::duration(Duration::from_millis(end.elapsed_ms)),
            None => "-".into(),
        };
        text.push_str(&format!(
            "{:<12}  {:>9}  {:<11}  {time:>8}  {:>7}  {}\n",
            found.id,
            age(now - found.build.head.started_ms / 1000),
            word(found.ending()),
            format!("{cached}/{steps}"),
            one_line(&found.build.name(), 80),
        ));
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}

fn word(ending: Ending) -> &'static str {
    match ending {
        Ending::Done => "done",
        Ending::Failed => "failed",
        Ending::Stopped => "stopped",
        Ending::Interrupted => "interrupted",
        Ending::Running => "running",
    }
}

fn json(found: &Found) -> serde_json::Value {
    let build = &found.build;
    let (total, cached) = build.counts();
    let end = build.end.as_ref();
    let steps: Vec<_> = build
        .steps
        .iter()
        .map(|(number, step)| {
            serde_json::json!({
                "number": number,
                "title": step.title,
                "outcome": step.outcome,
                "startedMs": step.started_ms,
                "elapsedMs": step.elapsed_ms,
                "addedBytes": step.added_bytes,
                "exitCode": step.exit.and_then(|exit| exit.code),
                "signal": step.exit.and_then(|exit| exit.signal),
                "cpuMs": step.exit.map(|exit| exit.usage.cpu_us / 1000),
                "memoryBytes": step.exit.map(|exit| exit.usage.memory_bytes),
                "readBytes": step.exit.map(|exit| exit.usage.read_bytes),
                "writtenBytes": step.exit.map(|exit| exit.usage.written_bytes),
                "reasons": step.reasons,
                "fault": step.fault,
            })
        })
        .collect();
    serde_json::json!({
        "id": found.id,
        "started": crate::host::rfc3339(build.head.started_ms / 1000),
        "outcome": word(found.ending()),
        "elapsedMs": end.map(|end| end.elapsed_ms),
        "steps": steps,
        "cachedSteps": cached,
        "totalSteps": total,
        "names": build.head.names,
        "target": build.head.target,
        "dockerfile": build.head.dockerfile,
        "context": build.head.context,
        "platforms": build.head.platforms,
        "images": end.map(|end| end.images.as_slice()).unwrap_or_default(),
        "errors": end.map(|end| end.errors.as_slice()).unwrap_or_default(),
    })
}

pub fn logs(store: &Store, arguments: &Logs) -> std::result::Result<ExitCode, Failure> {
    let builds = Builds::of(store);
    let (build, step) = match (arguments.build.as_deref(), arguments.step.as_deref()) {
        // One short number is a step: IDs are given with more digits.
        (Some(number), None) if is_number_of_step(number) => (None, Some(number)),
        given => given,
    };
    let found = builds.find(build.unwrap_or("^"))?;
    let mut steps: Vec<_> = found.build.steps.iter().collect();
    if let Some(wanted) = step {
        steps = choose(&found, wanted)?;
    }
    if arguments.failed {
        steps.retain(|(_, step)| step.outcome == Some(Outcome::Failed));
        if steps.is_empty() {
            return Err(Diagnostic::error(format!("no step of build `{}` failed", found.id))
                .hint(format!("`wythe logs {}` prints the output of all", found.id))
                .into());
        }
    }
    let style = Style {
        has_heads: steps.len() != 1 || (step.is_none() && !arguments.failed),
        has_times: arguments.timestamps,
        is_terminal: std::io::stdout().is_terminal(),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (place, (number, step)) in steps.iter().enumerate() {
        if place > 0 && style.has_heads {
            let _ = out.write_all(b"\n");
        }
        show(&found, **number, step, &style, &mut out)?;
    }
    // What went wrong before there was a step, or after the last.
    if style.has_heads
        && let Some(end) = &found.build.end
    {
        for error in &end.errors {
            let _ = writeln!(out, "\n{error}");
        }
    }
    let _ = out.flush();
    Ok(ExitCode::SUCCESS)
}

struct Style {
    /// Titles and ends are shown as well; without them the bytes are exactly what was written.
    has_heads: bool,
    has_times: bool,
    is_terminal: bool,
}

/// `3`, `#3`.
fn is_number_of_step(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or(text);
    (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// The steps that a user means: by number, by stage, by text of the title.
fn choose<'a>(found: &'a Found, wanted: &str) -> Result<Vec<(&'a usize, &'a Step)>> {
    let steps = &found.build.steps;
    if let Ok(number) = wanted.strip_prefix('#').unwrap_or(wanted).parse::<usize>()
        && let Some(step) = steps.get_key_value(&number)
    {
        return Ok(vec![step]);
    }
    let lower = wanted.to_ascii_lowercase();
    let of_stage: Vec<_> = steps.iter().filter(|(_, step)| place_of(&step.title).contains(&lower.as_str())).collect();
    if !of_stage.is_empty() {
        return Ok(of_stage);
    }
    let titled: Vec<_> = steps.iter().filter(|(_, step)| step.title.to_ascii_lowercase().contains(&lower)).collect();
    if !titled.is_empty() {
        return Ok(titled);
    }
    let known: Vec<&str> = steps.values().flat_map(|step| place_of(&step.title)).collect();
    let error = Diagnostic::error(format!("build `{}` has no step `{wanted}`", found.id));
    Err(match diag::nearest(wanted, known.iter().copied()) {
        Some(nearest) => error.hint(format!("did you mean `{nearest}`?")),
        None => error.hint(format!("`wythe logs {}` shows all its steps", found.id)),
    })
}

/// Of `[build 2/5] RUN make` the words `build` and `2/5`, and both together.
fn place_of(title: &str) -> Vec<&str> {
    let Some((place, _)) = title.strip_prefix('[').and_then(|rest| rest.split_once(']')) else { return Vec::new() };
    let mut words: Vec<_> = place.split_whitespace().collect();
    words.push(place);
    words
}

fn show(found: &Found, number: usize, step: &Step, style: &Style, out: &mut impl std::io::Write) -> Result<()> {
    // A reader that went away (`| head`) is no error.
    if style.has_heads {
        let _ = writeln!(out, "#{number} {}", defuse(step.title.as_bytes()));
        for reason in &step.reasons {
            let _ = writeln!(out, "#{number} ran: {}", defuse(reason.as_bytes()));
        }
    }
    let cannot_read = |error| Diagnostic::error(format!("cannot read the output of step {number}")).caused_by(error);
    if let Some(mut lines) = Lines::open(&found.dir, number)? {
        let mut line = Vec::new();
        while let Some(at_ms) = lines.next(&mut line).map_err(cannot_read)? {
            let is_whole = line.ends_with(b"\n");
            if style.has_times {
                let _ = write!(out, "{}.{:03} ", at_ms / 1000, at_ms % 1000);
            }
            let written = if style.is_terminal {
                let text = line.strip_suffix(b"\n").unwrap_or(&line);
                writeln!(out, "{}", defuse(text))
            } else {
                out.write_all(&line)
            };
            if written.is_err() {
                return Ok(());
            }
            if !is_whole && style.has_heads && !style.is_terminal {
                let _ = out.write_all(b"\n");
            }
            line.clear();
        }
    }
    if style.has_heads {
        let _ = writeln!(out, "#{number} {}", end(step));
    }
    Ok(())
}

fn end(step: &Step) -> String {
    let time = units::seconds(Duration::from_millis(step.elapsed_ms.unwrap_or(0)));
    match step.outcome {
        Some(Outcome::Cached) => "CACHED".into(),
        Some(Outcome::Done) => format!("DONE {time}"),
        Some(Outcome::Canceled) => "CANCELED".into(),
        Some(Outcome::Failed) => match &step.fault {
            Some(fault) => format!("ERROR: {}", defuse(fault.as_bytes())),
            None => "ERROR".into(),
        },
        None => "unfinished".into(),
    }
}
