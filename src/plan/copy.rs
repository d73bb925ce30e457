//! COPY and ADD: sources told apart, destination joined, flags expanded and checked.

use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::dockerfile::expand;
use crate::dockerfile::{self, CopySource as Written, Flag, Heredoc, Instruction, Word};
use crate::location::{self, GitLocation, Location};

use super::op::{Copy, CopyKind, CopySource, GitSource, HeredocFile, Input, Located, Op};
use super::stage::Walk;
use super::{path, title};

/// What COPY and ADD have in common.
pub(super) struct Transfer<'a> {
    kind: CopyKind,
    sources: &'a [Written],
    destination: &'a Word,
    from: Option<&'a Flag>,
    chown: Option<&'a Flag>,
    chmod: Option<&'a Flag>,
    checksum: Option<&'a Flag>,
    is_link: bool,
    has_parents: bool,
    exclude: &'a [Flag],
    keeps_git_dir: Option<bool>,
    unpack: Option<bool>,
}

impl<'a> From<&'a dockerfile::Copy> for Transfer<'a> {
    fn from(copy: &'a dockerfile::Copy) -> Self {
        Self {
            kind: CopyKind::Copy,
            sources: &copy.sources,
            destination: &copy.destination,
            from: copy.from.as_ref().filter(|flag| !flag.value.raw.is_empty()),
            chown: copy.chown.as_ref(),
            chmod: copy.chmod.as_ref(),
            checksum: None,
            is_link: copy.is_link,
            has_parents: copy.has_parents,
            exclude: &copy.exclude,
            keeps_git_dir: None,
            unpack: None,
        }
    }
}

impl<'a> From<&'a dockerfile::Add> for Transfer<'a> {
    fn from(add: &'a dockerfile::Add) -> Self {
        Self {
            kind: CopyKind::Add,
            sources: &add.sources,
            destination: &add.destination,
            from: None,
            chown: add.chown.as_ref(),
            chmod: add.chmod.as_ref(),
            checksum: add.checksum.as_ref(),
            is_link: add.is_link,
            has_parents: false,
            exclude: &add.exclude,
            keeps_git_dir: add.keeps_git_dir,
            unpack: add.unpack,
        }
    }
}

impl Walk<'_> {
    pub(super) fn copy(&mut self, instruction: &Instruction, transfer: &Transfer<'_>) -> Option<()> {
        let before = self.draft.faults.len();
        let from = match transfer.from.map(|flag| self.graph.copy_from(flag, &instruction.source)) {
            None => Input::Context,
            Some(Ok(provider)) => self.input(&provider),
            Some(Err(fault)) => {
                self.draft.faults.push(fault);
                Input::Context
            }
        };
        let mut sources = self.sources(instruction, transfer);
        let destination = self.expand(instruction, transfer.destination);
        let mut flag = |flag: Option<&Flag>| {
            let flag = flag?;
            let text = self.expand(instruction, &flag.value)?;
            (!text.is_empty()).then(|| Walk::located(instruction, text, flag.value.span))
        };
        let (chown, chmod, checksum) = (flag(transfer.chown), flag(transfer.chmod), flag(transfer.checksum));
        if let Some(mode) = &chmod
            && !is_mode(&mode.text)
        {
            self.draft.faults.push(
                mode.error(format!(
                    "`{}` is no mode: it is octal up to 7777, or symbolic as in `u=rwX,go=rX`",
                    mode.text
                )),
            );
        }
        if let Some(checksum) = &checksum {
            self.draft.faults.extend(check_checksum(checksum, &sources));
        }
        for source in &mut sources {
            if let CopySource::Git(git) = source
                && let Err(fault) = take_flags(git, transfer.keeps_git_dir, checksum.as_ref())
            {
                self.draft.faults.push(fault);
            }
        }
        if self.draft.faults.len() > before {
            return None;
        }

        let destination = destination?;
        let history = history(transfer, &chown, &chmod, &sources, &destination);
        let shown = title::words(&instruction.text, self.graph.dockerfile.escape, &self.state.scope);
        let op = Op::Copy(Copy {
            kind: transfer.kind,
            sources,
            from,
            destination: path::destination(&self.workdir_path(), &destination),
            // With --chmod BuildKit copies onto the layers below, link or not.
            is_link: transfer.is_link && chmod.is_none(),
            chown,
            chmod,
            has_parents: transfer.has_parents,
            exclude: transfer.exclude.iter().map(|flag| flag.value.raw.clone()).collect(),
            unpack: transfer.unpack,
            checksum,
        });
        self.layer(instruction, op, location::redact(&shown).into_owned(), history);
        Some(())
    }

    /// The sources, heredocs last: they land after all others. Those with faults are left out.
    fn sources(&mut self, instruction: &Instruction, transfer: &Transfer<'_>) -> Vec<CopySource> {
        let (mut paths, mut heredocs) = (Vec::new(), Vec::new());
        for source in transfer.sources {
            match source {
                Written::Path(word) => {
                    let Some(text) = self.expand(instruction, word) else { continue };
                    match source_of(transfer.kind, Walk::located(instruction, text, word.span)) {
                        Ok(source) => paths.push(source),
                        Err(fault) => self.draft.faults.push(fault),
                    }
                }
                Written::Heredoc(heredoc, _) => {
                    let Some(content) = self.heredoc(instruction, heredoc) else { continue };
                    heredocs.push(CopySource::Heredoc(HeredocFile { name: heredoc.name.clone(), content }));
                }
            }
        }
        paths.append(&mut heredocs);
        paths
    }

    fn heredoc(&mut self, instruction: &Instruction, heredoc: &Heredoc) -> Option<String> {
        let content = heredoc.content();
        if !heredoc.expands {
            return Some(content);
        }
        // With `<<-` the tabs are gone, so offsets into the content are none into the file.
        let body = Word { raw: content, span: heredoc.body_span, runs: Vec::new() };
        match expand::expand_heredoc(&body.raw, &self.state.scope) {
            Ok(expanded) => {
                self.warn_of_unset(instruction, &body, &expanded.unset);
                Some(expanded.text)
            }
            Err(error) => {
                let fault = match heredoc.strips_tabs {
                    false => error.at(&instruction.source, &body),
                    true => Diagnostic::error(error.message).at(&instruction.source, heredoc.body_span, ""),
                };
                self.draft.faults.push(fault);
                None
            }
        }
    }
}

/// `COPY --chown=1:2 a b <<EOF /dir/`: the flags that BuildKit lists, whatever others there are.
fn history(
    transfer: &Transfer<'_>,
    chown: &Option<Located>,
    chmod: &Option<Located>,
    sources: &[CopySource],
    destination: &str,
) -> String {
    let mut text = String::from(match transfer.kind {
        CopyKind::Copy => "COPY",
        CopyKind::Add => "ADD",
    });
    if transfer.has_parents {
        text += " --parents";
    }
    for (name, flag) in [("chown", chown), ("chmod", chmod)] {
        if let Some(flag) = flag {
            text += &format!(" --{name}={}", flag.text);
        }
    }
    for source in sources {
        text += &match source {
            CopySource::Path(located) => format!(" {}", located.text),
            CopySource::Url(located) => format!(" {}", location::redact(&located.text)),
            CopySource::Git(git) => format!(" {}", location::redact(&git.at.text)),
            CopySource::Heredoc(heredoc) => format!(" <<{}", heredoc.name),
        };
    }
    text + " " + destination
}

fn source_of(kind: CopyKind, located: Located) -> Result<CopySource, Diagnostic> {
    let (what, source) = match Location::parse(&located.text) {
        None => return Ok(CopySource::Path(located)),
        Some(Err(why)) if kind == CopyKind::Add => {
            return Err(located.error("cannot add from this git repository").caused_by(why));
        }
        Some(Ok(Location::Url(_))) => ("a URL", CopySource::Url(located.clone())),
        Some(Ok(Location::Git(location))) => {
            ("a git repository", CopySource::Git(Box::new(GitSource { at: located.clone(), location: *location })))
        }
        // COPY takes none, whatever is wrong with it.
        Some(Err(_)) => ("a git repository", CopySource::Path(located.clone())),
    };
    match kind {
        CopyKind::Add => Ok(source),
        CopyKind::Copy => Err(located.error(format!("COPY cannot copy from {what}")).hint("use ADD")),
    }
}

/// `--keep-git-dir` and `--checksum` say what the query of the address may say too.
fn take_flags(git: &mut GitSource, keeps_git_dir: Option<bool>, checksum: Option<&Located>) -> Result<(), Diagnostic> {
    let GitLocation { keeps_git_dir: keeps, checksum: expected, .. } = &mut git.location;
    match (*keeps, keeps_git_dir) {
        (Some(a), Some(b)) if a != b => {
            return Err(git.at.error("`keep-git-dir` of the address and `--keep-git-dir` differ"));
        }
        (_, Some(_)) => *keeps = keeps_git_dir,
        _ => {}
    }
    let Some(checksum) = checksum else { return Ok(()) };
    let text = checksum.text.to_ascii_lowercase();
    match expected {
        Some(expected) if *expected != text => Err(checksum.error("`checksum` of the address and `--checksum` differ")),
        _ => {
            *expected = Some(text);
            Ok(())
        }
    }
}

fn check_checksum(checksum: &Located, sources: &[CopySource]) -> Option<Diagnostic> {
    match sources {
        [CopySource::Url(_)] => {
            let fault = checksum.text.parse::<Digest>().err()?;
            Some(checksum.error(format!("`{}` is no checksum", checksum.text)).caused_by(fault))
        }
        [CopySource::Git(_)] => {
            location::check_checksum(&checksum.text.to_ascii_lowercase()).err().map(|why| checksum.error(why))
        }
        [_] => Some(checksum.error("`--checksum` is for a URL or a git repository")),
        _ => Some(checksum.error("`--checksum` is for one source")),
    }
}

/// Octal up to 7777, or symbolic as in chmod(1).
fn is_mode(text: &str) -> bool {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= 0o7777);
    }
    text.split(',').all(|clause| {
        let operations = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        let mut parts = operations.split(['+', '-', '=']);
        // Before the first operator there is nothing left, and there is an operator.
        parts.next() == Some("")
            && !operations.is_empty()
            && parts.all(|part| {
                matches!(part, "u" | "g" | "o") || part.chars().all(|permission| "rwxXst".contains(permission))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_modes() {
        for text in ["0", "644", "0755", "7777", "u=rwX,go=rX", "+x", "a+x,g-r", "g=u", "u+s,+t", "o=", "ug+rw-x"] {
            assert!(is_mode(text), "{text}");
        }
        for text in ["", "8", "17777", "x", "u", "u+q", "rwxr-xr-x", "u=rw;g=r", "a+x,", "-1"] {
            assert!(!is_mode(text), "{text}");
        }
    }

    #[test]
    fn keeps_the_place_of_a_source() {
        let source = crate::diag::Source::new("Dockerfile", "COPY http://h/a /");
        let located = Located { text: "http://h/a".into(), source, span: crate::diag::Span::new(5, 15) };
        let fault = source_of(CopyKind::Copy, located).expect_err("COPY takes no URL");
        assert_eq!(&fault.labels[0].source.text[fault.labels[0].span.range()], "http://h/a");
    }
}
