//! From a text to a [`Dockerfile`]: reads line after line, takes heredoc bodies, sorts instructions
//! into stages, and collects what is wrong.

use std::sync::Arc;

use crate::diag::{Diagnostic, Source, Span};
use crate::dockerfile::directive;
use crate::dockerfile::fault::Faults;
use crate::dockerfile::flag;
use crate::dockerfile::heredoc;
use crate::dockerfile::json::{self, Form};
use crate::dockerfile::line::{Line, Reader, Slice};
use crate::dockerfile::lint;
use crate::dockerfile::statement::{self, Parsed, brief, keyword_of, nearest_keyword};
use crate::dockerfile::{Dockerfile, Instruction, Stage};

/// More warnings are not kept.
const WARNING_LIMIT: usize = 200;

/// Parses a file. On failure every error found is returned, in the order of the text.
pub fn parse(source: Arc<Source>) -> Result<Dockerfile, Vec<Diagnostic>> {
    check_size(&source)?;
    let mut faults = Faults::default();
    let start = if source.text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let directives = directive::read(&source, start, &mut faults);
    let escape = directives.escape;
    let mut file = Dockerfile {
        source: Arc::clone(&source),
        escape,
        syntax: directives.syntax,
        check: directives.check,
        global_args: Vec::new(),
        stages: Vec::new(),
        warnings: Vec::new(),
    };
    let mut reader = Reader::new(&source.text, start);
    let mut state = State::Empty;
    while let Some(line) = reader.next_line(escape) {
        let text = line.slice();
        let keyword = keyword_of(text);
        if let (Some(blank), true) = (line.blank, file.warnings.len() < WARNING_LIMIT) {
            let warning = Diagnostic::warning("NoEmptyContinuation", "empty continuation line");
            file.warnings.push(warning.at(&source, blank, "").at(
                &source,
                text.split_first().0.span(),
                "goes on below it",
            ));
        }
        let parsed = read_statement(&source, escape, &line, &mut reader, &mut faults);
        // A misspelt FROM begins a stage all the same; what follows it is not misplaced.
        let is_from = match keyword {
            Some(keyword) => keyword == "FROM",
            None => nearest_keyword(text.split_first().0.text()) == Some("FROM"),
        };
        if is_from {
            state = State::InStage;
        } else if state != State::InStage && keyword != Some("ARG") {
            if state != State::Misplaced && keyword.is_some() {
                let name = keyword.unwrap_or_default();
                let fault = Diagnostic::error(format!("{name} stands before the first FROM"));
                faults.push(fault.at(&source, text.split_first().0.span(), "only ARG can stand here"));
            }
            state = State::Misplaced;
        } else if state == State::Empty {
            state = State::OnlyArgs;
        }
        match parsed {
            Some(Parsed::From(from)) => file.stages.push(Stage { from, instructions: Vec::new() }),
            Some(Parsed::Instruction(instruction)) => match file.stages.last_mut() {
                Some(stage) => stage.instructions.push(instruction),
                None => file.global_args.push(instruction),
            },
            None => {}
        }
        if faults.is_full() {
            break;
        }
    }
    if faults.count() == 0 && file.stages.is_empty() {
        faults.push(match state {
            State::Empty if source.text[start..].trim().is_empty() => Diagnostic::error("the Dockerfile is empty"),
            State::Empty => Diagnostic::error("the Dockerfile has comments only and no instructions"),
            _ => {
                let end = source.text.trim_end().len();
                let fault = Diagnostic::error("the Dockerfile has no FROM, so there is no stage to build");
                fault.at(&source, Span::new(end, end), "expected FROM")
            }
        });
    }
    if faults.count() > 0 {
        return Err(faults.finish());
    }
    let mut found = lint::lint(&file);
    found.truncate(WARNING_LIMIT);
    file.warnings.append(&mut found);
    file.warnings.sort_by_key(|warning| warning.labels.first().map(|label| label.span.start));
    Ok(file)
}

/// Parses one ONBUILD trigger (the text after ONBUILD, as an image config stores it) as the
/// instruction it stands for. `source` holds exactly that text.
pub fn parse_trigger(source: Arc<Source>, escape: char) -> Result<Instruction, Vec<Diagnostic>> {
    check_size(&source)?;
    let mut faults = Faults::default();
    let mut reader = Reader::new(&source.text, 0);
    let Some(line) = reader.next_line(escape) else {
        return Err(vec![Diagnostic::error("an ONBUILD trigger is empty")]);
    };
    let keyword = line.slice().split_first().0;
    if let Some(name @ ("FROM" | "MAINTAINER" | "ONBUILD")) = keyword_of(line.slice()) {
        let fault = Diagnostic::error(format!("{name} cannot be an ONBUILD trigger"));
        return Err(vec![fault.at(&source, keyword.span(), "")]);
    }
    let parsed = read_statement(&source, escape, &line, &mut reader, &mut faults);
    if let Some(rest) = reader.next_line(escape) {
        let fault = Diagnostic::error("an ONBUILD trigger is a single instruction");
        faults.push(fault.at(&source, rest.slice().split_first().0.span(), "a second one begins here"));
    }
    match parsed {
        Some(Parsed::Instruction(instruction)) if faults.count() == 0 => Ok(instruction),
        _ => Err(faults.finish()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    OnlyArgs,
    /// An instruction that belongs into a stage was reported; the next ones are not.
    Misplaced,
    InStage,
}

/// Spans count bytes in 32 bits.
fn check_size(source: &Source) -> Result<(), Vec<Diagnostic>> {
    match u32::try_from(source.text.len()) {
        Ok(_) => Ok(()),
        Err(_) => Err(vec![Diagnostic::error(format!("`{}` is larger than 4 GiB", source.name))]),
    }
}

/// Reads the instruction of a line, and the heredocs it announces. `None` if a fault was reported.
fn read_statement(
    source: &Arc<Source>,
    escape: char,
    line: &Line,
    reader: &mut Reader<'_>,
    faults: &mut Faults,
) -> Option<Parsed> {
    let text = line.slice();
    let mut heredocs = Vec::new();
    let mut end = text.span().end;
    if line.text.contains("<<") && takes_heredocs(text) {
        for (mark, place) in heredoc::marks(line) {
            let name = mark.name.clone();
            let start = reader.position();
            let Some(heredoc) = heredoc::body(reader, mark) else {
                faults.push(unterminated(source, &name, place, start));
                return None;
            };
            end = heredoc.body_span.end
                + (source.text[heredoc.body_span.range().end..reader.position()].trim_end().len() as u32);
            heredocs.push((heredoc, place));
        }
    }
    let span = Span { start: text.span().start, end };
    statement::parse(source, escape, text, heredocs, span, faults).ok()
}

fn unterminated(source: &Arc<Source>, name: &str, place: Span, start: usize) -> Diagnostic {
    let fault = Diagnostic::error(format!("the heredoc is not closed: there is no line `{}`", brief(name)));
    let fault = fault.at(source, place, "opened here");
    let mut at = start;
    for line in source.text[start..].split_inclusive('\n') {
        let trimmed = line.trim();
        if !name.is_empty() && trimmed == name {
            let indent = line.len() - line.trim_start().len();
            let span = Span::new(at + indent, at + indent + trimmed.len());
            return fault.at(source, span, "white space around it keeps this line from closing it");
        }
        at += line.len();
    }
    fault
}

/// Whether heredocs are looked for: in RUN, COPY and ADD, and ONBUILD of these, in shell form. And
/// in what was probably meant to be one of them, lest the body be taken for instructions.
fn takes_heredocs(text: Slice<'_>) -> bool {
    let (mut keyword, mut args) = meant(text);
    if keyword == Some("ONBUILD") {
        (keyword, args) = meant(args);
    }
    matches!(keyword, Some("RUN" | "COPY" | "ADD")) && !matches!(json::form(args), Form::Json(_))
}

/// The keyword that is written or was probably meant, and what follows it and its flags.
fn meant(text: Slice<'_>) -> (Option<&'static str>, Slice<'_>) {
    let (keyword, args) = text.split_first();
    (keyword_of(text).or_else(|| nearest_keyword(keyword.text())), flag::split(args).1)
}
