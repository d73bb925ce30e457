//! `--check` and `--call`: what a Dockerfile is, without building it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::args::Build;
use super::{Failure, print, takes_color, usage};
use crate::build::{self, Request};
use crate::diag::{Diagnostic, Severity};
use crate::host::Host;
use crate::plan::{self, Outline};

/// What is asked, and how the answer is to look.
pub struct Call {
    method: Method,
    is_json: bool,
}

enum Method {
    Check,
    Outline,
    Targets,
}

impl Call {
    /// `None` for a build.
    pub fn of(arguments: &Build) -> Result<Option<Self>, Failure> {
        let text = match &arguments.call {
            Some(text) => text.as_str(),
            None if arguments.check => "check",
            None => return Ok(None),
        };
        let mut parts = text.split(',');
        let method = match parts.next().unwrap_or_default() {
            "" | "build" => None,
            "check" | "lint" => Some(Method::Check),
            "outline" => Some(Method::Outline),
            "targets" => Some(Method::Targets),
            other => return Err(usage(format!("`--call {other}`: it is build, check, outline or targets"))),
        };
        let mut is_json = false;
        for part in parts {
            match part.split_once('=') {
                Some(("format", "json")) => is_json = true,
                Some(("format", "text")) => is_json = false,
                _ => return Err(usage(format!("`--call {text}`: known are format=text and format=json"))),
            }
        }
        Ok(method.map(|method| Self { method, is_json }))
    }

    pub fn answer(self, request: &Request, host: &Host<'_>) -> Result<ExitCode, Failure> {
        match self.method {
            Method::Check => Ok(self.check(&build::check(request, host))),
            Method::Outline | Method::Targets => {
                let outline = build::outline(request, host)?;
                print(&match (&self.method, self.is_json) {
                    (Method::Targets, true) => pretty(&targets(&outline)),
                    (_, true) => pretty(&outlined(&outline)),
                    (Method::Targets, false) => targets_text(&outline),
                    (_, false) => outline_text(&outline),
                });
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    /// The exit code is that of a test: 1 where there is something to say.
    fn check(&self, found: &[Diagnostic]) -> ExitCode {
        if self.is_json {
            print(&pretty(&checked(found)));
        } else {
            let color = takes_color(&std::io::stdout());
            let mut text: String = found.iter().map(|diagnostic| diagnostic.render(color) + "\n").collect();
            text += &match summary(found) {
                Some(summary) => format!("check complete, {summary}\n"),
                None => "check complete, no warnings\n".to_owned(),
            };
            print(&text);
        }
        ExitCode::from(u8::from(!found.is_empty()))
    }
}

fn summary(found: &[Diagnostic]) -> Option<String> {
    let count = |severity, one: &str| match found.iter().filter(|diagnostic| diagnostic.severity == severity).count() {
        0 => None,
        1 => Some(format!("1 {one}")),
        several => Some(format!("{several} {one}s")),
    };
    match (count(Severity::Error, "error"), count(Severity::Warning, "warning")) {
        (Some(errors), Some(warnings)) => Some(format!("{errors} and {warnings}")),
        (errors, warnings) => errors.or(warnings),
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// As `docker buildx build --call check,format=json` has it, with columns.
fn checked(found: &[Diagnostic]) -> Value {
    let mut names: Vec<&str> = Vec::new();
    let (mut warnings, mut errors) = (Vec::new(), Vec::new());
    for diagnostic in found {
        let location = diagnostic.labels.first().map(|label| {
            let name = label.source.name.as_str();
            let index = names.iter().position(|known| *known == name).unwrap_or(names.len());
            if index == names.len() {
                names.push(name);
            }
            let position = |offset: u32| {
                let (line, column) = label.source.position(offset as usize);
                json!({ "line": line, "character": column })
            };
            let range = json!({ "start": position(label.span.start), "end": position(label.span.end) });
            json!({ "sourceIndex": index, "ranges": [range] })
        });
        let (message, hints) = (&diagnostic.message, &diagnostic.hints);
        match diagnostic.severity {
            Severity::Warning => warnings
                .push(json!({ "ruleName": diagnostic.rule, "detail": message, "hints": hints, "location": location })),
            Severity::Error => errors.push(json!({ "message": message, "hints": hints, "location": location })),
        }
    }
    let sources: Vec<_> = names.into_iter().map(|name| json!({ "filename": name, "language": "Dockerfile" })).collect();
    let mut answer = json!({ "warnings": warnings, "sources": sources });
    if let Some(first) = errors.first() {
        answer["buildError"] = first.clone();
        answer["buildErrors"] = errors.into();
    }
    answer
}

fn targets(outline: &Outline) -> Value {
    let target = |target: &plan::Target| {
        json!({
            "name": target.name,
            "default": target.is_default,
            "description": target.description,
            "base": target.base,
            "platform": target.platform,
        })
    };
    json!({ "targets": outline.targets.iter().map(target).collect::<Vec<_>>() })
}

fn targets_text(outline: &Outline) -> String {
    let rows = outline.targets.iter().map(|target| {
        let name = target.name.as_deref().unwrap_or("-");
        let mark = if target.is_default { " (default)" } else { "" };
        vec![format!("{name}{mark}"), target.description.clone().unwrap_or_default()]
    });
    table(&["TARGET", "DESCRIPTION"], rows.collect())
}

fn outlined(outline: &Outline) -> Value {
    let arg = |arg: &plan::OutlineArg| json!({ "name": arg.name, "description": arg.description, "value": arg.value });
    let need = |(name, is_required): (&String, &bool)| json!({ "name": name, "required": is_required });
    json!({
        "name": outline.name,
        "description": outline.description,
        "args": outline.args.iter().map(arg).collect::<Vec<_>>(),
        "secrets": outline.secrets.iter().map(need).collect::<Vec<_>>(),
        "ssh": outline.agents.iter().map(need).collect::<Vec<_>>(),
        "cache": outline.caches.iter().map(|id| json!({ "id": id })).collect::<Vec<_>>(),
    })
}

fn outline_text(outline: &Outline) -> String {
    let mut text = String::new();
    if let Some(name) = &outline.name {
        text += &format!("TARGET:      {name}\n");
    }
    if let Some(description) = &outline.description {
        text += &format!("DESCRIPTION: {description}\n");
    }
    let needs = |needs: &BTreeMap<String, bool>| {
        let row = |(name, is_required): (&String, &bool)| {
            vec![name.clone(), if *is_required { "true".into() } else { String::new() }]
        };
        needs.iter().map(row).collect::<Vec<_>>()
    };
    let args = outline.args.iter().map(|arg| {
        vec![arg.name.clone(), arg.value.clone().unwrap_or_default(), arg.description.clone().unwrap_or_default()]
    });
    let tables = [
        (&["BUILD ARG", "VALUE", "DESCRIPTION"][..], args.collect::<Vec<_>>()),
        (&["SECRET", "REQUIRED"], needs(&outline.secrets)),
        (&["SSH", "REQUIRED"], needs(&outline.agents)),
        (&["CACHE MOUNT"], outline.caches.iter().map(|id| vec![id.clone()]).collect()),
    ];
    for (heads, rows) in tables {
        if !rows.is_empty() {
            if !text.is_empty() {
                text.push('\n');
            }
            text += &table(heads, rows);
        }
    }
    text
}

/// Columns under their heads, three spaces apart. What comes from the file has no control characters here.
fn table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(heads)
        .chain(rows)
        .map(|row| row.into_iter().map(|cell| cell.replace(char::is_control, " ")).collect())
        .collect();
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}
