//! Scripts in heredocs, as far as it takes to see whether the failure of a command in one is noticed.

/// Whether `script`, run by `shell`, has several commands and only the last one's status counts: nothing turns
/// `errexit` on. A guess about a language that is not ours, which rather says no.
pub(super) fn ignores_failures(script: &str, shell: &[String]) -> bool {
    let shebang: Vec<String> = match script.strip_prefix("#!") {
        Some(rest) => rest.lines().next().unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        None => Vec::new(),
    };
    let argv = if script.starts_with("#!") { &shebang } else { shell };
    let knows_errexit = match argv.split_first() {
        None => true,
        Some((program, args)) if base_name(program) == "env" => match args.split_first() {
            Some((program, args)) => is_shell(program) && !turns_on(args),
            None => false,
        },
        Some((program, args)) => is_shell(program) && !turns_on(args),
    };
    if !knows_errexit {
        return false;
    }
    let commands = commands(script);
    let sets = |command: &String| {
        let mut words = command.split([' ', '\t', ';', '&', '|']).filter(|word| !word.is_empty());
        words.next() == Some("set") && turns_on(&words.map(str::to_owned).collect::<Vec<_>>())
    };
    commands.len() > 1 && !commands.iter().any(sets)
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_shell(program: &str) -> bool {
    matches!(base_name(program), "sh" | "bash" | "dash" | "ash" | "ksh" | "mksh" | "zsh")
}

/// Whether the options of a shell, or of its `set`, have `-e` or `-o errexit` among them.
fn turns_on(options: &[String]) -> bool {
    let is_letters = |option: &String| option.starts_with('-') && !option.starts_with("--") && option.contains('e');
    options.iter().any(is_letters) || options.iter().any(|option| option == "errexit")
}

/// The commands of a script that stand in no compound command, each with the lines it goes on in.
fn commands(script: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut depth = 0_usize;
    let mut goes_on = false;
    let mut lines = script.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let first = line.split([' ', '\t', ';', '(']).next().unwrap_or_default();
        let opens = matches!(first, "if" | "for" | "while" | "until" | "case" | "{" | "function")
            || line.starts_with('(')
            || line.ends_with('{');
        let last = line.trim_end_matches(';').rsplit([' ', '\t', ';']).next().unwrap_or_default();
        let closes = matches!(first, "fi" | "done" | "esac" | "}" | ")")
            || (opens && matches!(last, "fi" | "done" | "esac" | "}"))
            || (line.starts_with('(') && line.ends_with(')'));
        match commands.last_mut() {
            Some(command) if goes_on || depth > 0 => {
                command.push(' ');
                command.push_str(line);
            }
            _ => commands.push(line.to_owned()),
        }
        depth = (depth + usize::from(opens)).saturating_sub(usize::from(closes));
        goes_on = line.ends_with('\\') || ["&&", "||", "|"].iter().any(|operator| line.ends_with(operator));
        if let Some(end) = terminator(line) {
            // The shell's own heredoc is data.
            lines.by_ref().find(|line| line.trim_start_matches('\t') == end);
        }
    }
    commands
}

/// The word that ends the heredoc a line of a script begins.
fn terminator(line: &str) -> Option<String> {
    let (before, after) = line.split_once("<<")?;
    // `<<<` is a text, and in `$((1<<2))` nothing is read.
    if after.starts_with('<') || before.ends_with(|c: char| c.is_ascii_digit() || c == '(') {
        return None;
    }
    let word = after.trim_start_matches('-').trim_start();
    let word = word.split([' ', '\t', ';', '|', '>', '<', '&', ')']).next()?;
    let word: String = word.chars().filter(|c| !matches!(c, '"' | '\'' | '\\')).collect();
    (!word.is_empty()).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignores(script: &str) -> bool {
        ignores_failures(script, &["/bin/sh".into(), "-c".into()])
    }

    #[test]
    fn several_commands_without_errexit() {
        for script in [
            "a\nb\n",
            "# why\na\n\nb",
            "a && b\nc",
            "cd /x\nmake",
            "set -x\na",
            "set -u\na",
            "if a\nthen b\nfi\nc",
            "cat > f <<E\nx\nE\nb",
            "#!/bin/sh\na\nb",
            "#!/usr/bin/env bash\na\nb",
            "f() {\na\n}\nf",
        ] {
            assert!(ignores(script), "{script}");
        }
    }

    #[test]
    fn one_command_or_errexit() {
        for script in [
            "",
            "a",
            "a \\\n  b",
            "a &&\nb &&\nc",
            "a |\nb",
            "set -e\na\nb",
            "set -eux\na\nb",
            "set -o errexit -o nounset\na\nb",
            "set -ex; a\nb",
            "a\nset -e\nb",
            "for x in a b; do\n  c $x\ndone",
            "for x in a; do b; done",
            "if a; then\nb\nelse\nc\nfi",
            "(\na\nb\n)",
            "cat > f <<'E'\nx\ny\nE",
            "cat > f <<-E\n\tx\n\ty\n\tE",
            "#!/usr/bin/env python3\na\nb",
            "#!/bin/bash -e\na\nb",
            "#!/usr/bin/perl\na\nb",
        ] {
            assert!(!ignores(script), "{script}");
        }
    }

    #[test]
    fn the_shell_may_turn_it_on() {
        let shell = |argv: &[&str]| ignores_failures("a\nb", &argv.iter().map(|arg| (*arg).into()).collect::<Vec<_>>());
        assert!(shell(&["/bin/bash", "-c"]) && shell(&["/bin/bash", "-o", "pipefail", "-c"]));
        assert!(!shell(&["/bin/bash", "-eo", "pipefail", "-c"]) && !shell(&["sh", "-o", "errexit", "-c"]));
        assert!(!shell(&["pwsh", "-Command"]) && !shell(&["/usr/bin/python3", "-c"]));
    }
}
