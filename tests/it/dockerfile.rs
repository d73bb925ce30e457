//! What the parser makes of files: the tree, the errors as shown, and nothing that panics.

mod compare;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value;
use wythe::diag::{Diagnostic, Source, Span};
use wythe::dockerfile::expand::{
    ExpandError, NoVariables, Variables, expand, expand_heredoc, expand_raw, expand_words,
};
use wythe::dockerfile::{CopySource, Dockerfile, Heredoc, Instruction, Kind, Word, parse, parse_trigger};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// The rows of what BuildKit made of some hundred files: `text`, then `error` or the tree.
fn corpus() -> Vec<Value> {
    let rows = fs::read_to_string(testdata("dockerfile/buildkit.jsonl")).unwrap();
    rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect()
}

/// Compares with a golden file, or rewrites it when BLESS is set.
#[allow(clippy::disallowed_methods)]
fn check_golden(path: &Path, actual: &str) -> Result<(), String> {
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, actual).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    Err(format!("{} differs:\n--- expected\n{expected}\n--- actual\n{actual}", path.display()))
}

fn rendered(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(|diagnostic| diagnostic.render(false)).collect::<Vec<_>>().join("\n")
}

/// Each folder has a Dockerfile and, in `expected.txt`, all that is said about it: by the parser
/// and, if it is content, by the expansion of every word with nothing set.
#[test]
fn errors_as_shown() {
    let mut wrong = Vec::new();
    let mut folders: Vec<_> = fs::read_dir(testdata("error")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() > 40);
    for folder in folders {
        let text = fs::read_to_string(folder.join("Dockerfile")).unwrap();
        let said = match parse(Source::new("Dockerfile", text)) {
            Ok(file) => rendered(&[file.warnings.clone(), expansion_errors(&file)].concat()),
            Err(errors) => rendered(&errors),
        };
        assert!(!said.is_empty(), "nothing is said about {}", folder.display());
        assert!(!said.contains('\x1b'), "an escape sequence of the file reaches the terminal");
        wrong.extend(check_golden(&folder.join("expected.txt"), &said).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn expansion_errors(file: &Dockerfile) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    for instruction in instructions(file) {
        for word in words(instruction) {
            errors.extend(expand(&word.raw, file.escape, &NoVariables).err().map(|error| error.at(&file.source, word)));
        }
        for heredoc in heredocs(instruction).into_iter().filter(|heredoc| heredoc.expands) {
            let body = heredoc.word();
            errors.extend(expand_heredoc(&body.raw, &NoVariables).err().map(|error| error.at(&file.source, &body)));
        }
    }
    errors
}

fn instructions(file: &Dockerfile) -> impl Iterator<Item = &Instruction> {
    file.global_args.iter().chain(file.stages.iter().flat_map(|stage| &stage.instructions))
}

/// Every word of an instruction that is expanded at planning.
fn words(instruction: &Instruction) -> Vec<&Word> {
    match &instruction.kind {
        Kind::Arg(list) => list.iter().filter_map(|declaration| declaration.value.as_ref()).collect(),
        Kind::Env(pairs) | Kind::Label(pairs) => pairs.iter().flat_map(|(key, value)| [key, value]).collect(),
        Kind::Run(run) => {
            let flags = run.mounts.iter().chain(&run.devices).chain(&run.network).chain(&run.security);
            flags.map(|flag| &flag.value).collect()
        }
        Kind::Copy(copy) => {
            let flags = copy.exclude.iter().chain(&copy.from).chain(&copy.chown).chain(&copy.chmod);
            let paths = copy.sources.iter().filter_map(path).chain([&copy.destination]);
            flags.map(|flag| &flag.value).chain(paths).collect()
        }
        Kind::Add(add) => {
            let flags = add.exclude.iter().chain(&add.checksum).chain(&add.chown).chain(&add.chmod);
            let paths = add.sources.iter().filter_map(path).chain([&add.destination]);
            flags.map(|flag| &flag.value).chain(paths).collect()
        }
        Kind::Workdir(word) | Kind::User(word) | Kind::StopSignal(word) => vec![word],
        Kind::Expose(words) | Kind::Volume(words) => words.iter().collect(),
        Kind::Onbuild(onbuild) => words(&onbuild.trigger),
        Kind::Cmd(_) | Kind::Entrypoint(_) | Kind::Shell(_) | Kind::Healthcheck(_) | Kind::Maintainer(_) => Vec::new(),
    }
}

fn path(source: &CopySource) -> Option<&Word> {
    match source {
        CopySource::Path(word) => Some(word),
        CopySource::Heredoc(..) => None,
    }
}

/// The heredocs that are files.
fn heredocs(instruction: &Instruction) -> Vec<&Heredoc> {
    let sources = match &instruction.kind {
        Kind::Copy(copy) => &copy.sources,
        Kind::Add(add) => &add.sources,
        _ => return Vec::new(),
    };
    sources
        .iter()
        .filter_map(|source| match source {
            CopySource::Heredoc(heredoc, _) => Some(heredoc),
            CopySource::Path(_) => None,
        })
        .collect()
}

/// Every character of every word stands in the source where the word says.
fn assert_places(file: &Dockerfile) {
    let text = &file.source.text;
    let from_words = file.stages.iter().flat_map(|stage| stage.from.platform.iter().chain([&stage.from.image]));
    for word in from_words.chain(instructions(file).flat_map(words)) {
        for (at, c) in word.raw.char_indices() {
            let place = word.span_of(at, at + c.len_utf8()).range();
            let written = &text[place.start..];
            // In JSON a character may be written as an escape sequence.
            assert!(written.starts_with(c) || written.starts_with('\\'), "{word:?} at {at}: {c:?} in {text:?}");
        }
        assert!(word.span.range().end <= text.len() && word.span.start <= word.span.end, "{word:?}");
    }
    for instruction in instructions(file) {
        let Span { start, end } = instruction.span;
        assert!(start <= instruction.keyword.start && instruction.keyword.end <= end && end as usize <= text.len());
        for heredoc in heredocs(instruction) {
            assert_eq!(heredoc.body, text[heredoc.body_span.range()]);
            let word = heredoc.word();
            for (at, c) in word.raw.char_indices() {
                assert!(text[word.span_of(at, at + c.len_utf8()).range()].starts_with(c), "{word:?} at {at}");
            }
        }
    }
}

#[test]
fn words_know_their_place_on_continued_lines() {
    let text = "FROM scratch\nENV A=one\\\n  # why\n  B=$two \\\n\n  C=\"th\\\nree $x\"\nCOPY --chown='1:'\\\n2 a b\n";
    let file = parse(Source::new("Dockerfile", text)).unwrap();
    assert_places(&file);
    let Kind::Env(pairs) = &file.stages[0].instructions[0].kind else { panic!() };
    let raws: Vec<_> = pairs.iter().map(|(key, value)| (&*key.raw, &*value.raw)).collect();
    assert_eq!(raws, [("A", "one"), ("B", "$two"), ("C", "\"three $x\"")]);
    let value = &pairs[2].1;
    let at = value.raw.find("$x").unwrap();
    assert_eq!(file.source.position(value.span_of(at, at + 2).start as usize), (7, 5));
    assert_eq!(&text[value.span_of(0, 4).range()], "\"th\\\nr");
    let Kind::Copy(copy) = &file.stages[0].instructions[1].kind else { panic!() };
    let chown = copy.chown.as_ref().unwrap();
    assert_eq!(chown.value.raw, "1:2");
    assert_eq!(&text[chown.value.span.range()], "1:'\\\n2");
    assert_eq!(&text[chown.span.range()], "--chown='1:'\\\n2");
}

#[test]
fn words_know_their_place_in_the_corpus() {
    for row in corpus() {
        if let Ok(file) = parse(Source::new("Dockerfile", row["text"].as_str().unwrap())) {
            assert_places(&file);
        }
    }
}

#[test]
fn a_line_may_be_long() {
    let text = format!("FROM scratch\nENV A={}\n", "x".repeat(70_000));
    let file = parse(Source::new("Dockerfile", text)).unwrap();
    let Kind::Env(pairs) = &file.stages[0].instructions[0].kind else { panic!() };
    assert_eq!(pairs[0].1.raw.len(), 70_000);
}

/// A trigger is stored with its heredocs and read again from that text.
#[test]
fn a_trigger_survives_being_stored() {
    for written in
        ["RUN <<A cat; <<-B cat\none\nA\n\ttwo\nB", "COPY --chown=1:1 <<X /y\n$a\nX", "ENV a=b c='d e'", "RUN a \\\n b"]
    {
        let text = format!("FROM scratch\nONBUILD  {written}\nUSER x\n");
        let file = parse(Source::new("Dockerfile", text)).unwrap();
        let Kind::Onbuild(onbuild) = &file.stages[0].instructions[0].kind else { panic!() };
        let again = parse_trigger(Source::new("trigger", onbuild.text.clone()), '\\').unwrap();
        assert_eq!(again.text, onbuild.trigger.text);
        let bodies = |instruction: &Instruction| match &instruction.kind {
            Kind::Run(run) => run.heredocs.iter().map(|heredoc| heredoc.body.clone()).collect::<Vec<_>>(),
            _ => heredocs(instruction).iter().map(|heredoc| heredoc.body.clone()).collect(),
        };
        assert_eq!(bodies(&again), bodies(&onbuild.trigger));
        assert_eq!(file.stages[0].instructions.len(), 2);
    }
    for refused in ["", "FROM x", "MAINTAINER x", "ONBUILD RUN x", "CPOY a b", "USER a\nUSER b", "RUN <<EOF\nx"] {
        assert!(parse_trigger(Source::new("trigger", refused), '\\').is_err(), "{refused}");
    }
}

/// Heredocs as the planner asks about them.
#[test]
fn a_lone_heredoc_is_the_script() {
    let cases = [
        ("RUN <<EOF\necho\nEOF\n", true),
        ("RUN --network=none 3<<-'E O'\necho\n\tE O\n", true),
        ("RUN <<EOF bash\necho\nEOF\n", false),
        ("RUN cat <<EOF\necho\nEOF\n", false),
        ("RUN echo\n", false),
    ];
    for (text, expected) in cases {
        let file = parse(Source::new("Dockerfile", format!("FROM scratch\n{text}"))).unwrap();
        let Kind::Run(run) = &file.stages[0].instructions[0].kind else { panic!() };
        assert_eq!(run.script().is_some(), expected, "{text}");
    }
}

/// The shell's way to make a gigabyte of thirty lines.
#[test]
fn values_do_not_grow_without_bound() {
    struct One(String);
    impl Variables for One {
        fn get(&self, _: &str) -> Option<&str> {
            Some(&self.0)
        }
    }
    let mut value = One("x".repeat(1000));
    let refused = (0..30).find_map(|_| match expand("$A$A", '\\', &value) {
        Ok(expanded) => {
            value = One(expanded.text);
            None
        }
        Err(error) => Some(error),
    });
    assert_eq!(refused.map(|error| error.message), Some("the value becomes larger than 64 MiB".to_owned()));
    assert!(expand("${A//?/$A}", '\\', &One("x".repeat(100_000))).is_err());
}

#[test]
fn nesting_is_bounded() {
    let deep = |levels: usize| format!("{}x{}", "${a:-".repeat(levels), "}".repeat(levels));
    assert_eq!(expand(&deep(100), '\\', &NoVariables).map(|expanded| expanded.text), Ok("x".to_owned()));
    let error: ExpandError = expand(&deep(100_000), '\\', &NoVariables).unwrap_err();
    assert_eq!(error.message, "`${` is nested more than 100 deep");
    assert!(expand_words(&"\"${a:-".repeat(100_000), '\\', &NoVariables).is_err());
    // A line that asks for it is an ordinary one to the heredoc scanner.
    let text = format!("FROM scratch\nRUN echo << {}\n", deep(100_000));
    assert!(parse(Source::new("Dockerfile", text)).is_ok());
}

/// Pieces that Dockerfiles are made of, to be put together at random.
fn scraps() -> impl Strategy<Value = String> {
    const SCRAPS: [&str; 62] = [
        "FROM ",
        "RUN ",
        "COPY ",
        "ADD ",
        "ENV ",
        "ARG ",
        "LABEL ",
        "ONBUILD ",
        "HEALTHCHECK ",
        "SHELL ",
        "VOLUME ",
        "CMD ",
        "EXPOSE ",
        "USER ",
        "MAINTAINER ",
        "scratch",
        " AS ",
        "a",
        "b=",
        "=",
        "\"",
        "'",
        "\\",
        "`",
        "$",
        "${",
        "}",
        ":-",
        ":?",
        "#",
        "%",
        "/",
        "*",
        "[",
        "]",
        "{",
        ",",
        "\n",
        "\r\n",
        "\n\n",
        "\t",
        " ",
        "  ",
        "--",
        "--from=",
        "--link",
        "--mount=type=cache",
        "--interval=1s",
        "<<EOF",
        "<<-E",
        "<<",
        "EOF\n",
        "E\n",
        "# escape=`\n",
        "# syntax=x\n",
        "#!",
        "é",
        "\u{feff}",
        "\0",
        "\u{a0}",
        "\\u00e9",
        "\u{85}",
    ];
    prop::collection::vec(prop::sample::select(&SCRAPS[..]), 0..60).prop_map(|scraps| scraps.concat())
}

/// A file of the corpus with a few pieces cut out, doubled or put elsewhere.
fn mutated() -> impl Strategy<Value = String> {
    let texts: Vec<String> = corpus().iter().map(|row| row["text"].as_str().unwrap().to_owned()).collect();
    let edit = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), scraps(), 0..4);
    (prop::sample::select(texts), prop::collection::vec(edit, 1..6)).prop_map(|(mut text, edits)| {
        for (from, to, scrap, kind) in edits {
            let boundaries: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).collect();
            let (a, b) = (*from.get(&boundaries), *to.get(&boundaries));
            let (start, end) = (a.min(b), a.max(b).min(a.min(b) + 40));
            let end = *boundaries.iter().rev().find(|at| **at <= end).unwrap();
            match kind {
                0 => drop(text.drain(start..end)),
                1 => text.insert_str(start, &scrap),
                2 => text = [&text[..end], &text[start..]].concat(),
                _ => text.truncate(end),
            }
        }
        text
    })
}

/// Parses, shows what is wrong, expands; checks what must hold of any text.
fn exercise(text: &str) {
    match parse(Source::new("Dockerfile", text)) {
        Ok(file) => {
            assert!(!file.stages.is_empty());
            assert_places(&file);
            rendered(&file.warnings);
            rendered(&expansion_errors(&file));
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            let shown = rendered(&errors);
            let is_plain = |c: char| c == '\n' || !c.is_control();
            assert!(shown.chars().all(is_plain), "{shown:?}");
        }
    }
    let _ = parse_trigger(Source::new("trigger", text), '`');
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_parsed_or_refused(text in any::<String>()) {
        exercise(&text);
        exercise(&format!("FROM a\nRUN {text}\nENV a={text}"));
    }

    #[test]
    fn any_scraps_are_parsed_or_refused(text in scraps()) {
        exercise(&text);
        exercise(&format!("FROM scratch\n{text}"));
    }

    #[test]
    fn any_mutation_is_parsed_or_refused(text in mutated()) {
        exercise(&text);
    }

    #[test]
    fn any_word_is_expanded_or_refused(word in prop_oneof![any::<String>(), scraps()], is_backtick: bool) {
        let escape = if is_backtick { '`' } else { '\\' };
        for result in [
            expand(&word, escape, &NoVariables),
            expand_raw(&word, escape, &NoVariables),
            expand_heredoc(&word, &NoVariables),
        ] {
            if let Err(error) = result {
                prop_assert!(error.start <= error.end && word.get(error.start..error.end).is_some(), "{error:?}");
            }
        }
        // White space apart, words are the pieces of the text.
        if let (Ok(text), Ok(words)) = (expand(&word, escape, &NoVariables), expand_words(&word, escape, &NoVariables)) {
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            prop_assert_eq!(squeeze(&text.text), squeeze(&words.concat()));
        }
    }

    /// Text without special characters stands for itself, and quoting protects all that is special.
    #[test]
    fn quoting_protects(text in "[a-zA-Z0-9 $\"'\\\\{}:-]*") {
        let single = format!("'{}'", text.replace('\'', "'\\''"));
        prop_assert_eq!(expand(&single, '\\', &NoVariables).unwrap().text, text.clone());
        let double = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$"));
        prop_assert_eq!(expand(&double, '\\', &NoVariables).unwrap().text, text.clone());
    }
}
