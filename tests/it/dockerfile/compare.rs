//! Second opinions: what BuildKit and `dockerfile-parser` made of the same files.

use serde_json::{Map, Value, json};
use wythe::diag::{Source, Span};
use wythe::dockerfile::{Command, CopySource, Dockerfile, Flag, Healthcheck, Heredoc, Instruction, Kind, Word, parse};

use super::corpus;

/// A row's tree has, for each instruction, its keyword `v`, first and last line, the flags that
/// take a value, heredocs, and in `f` the fields as BuildKit names them.
#[test]
fn as_buildkit_reads_it() {
    let mut wrong = Vec::new();
    for row in corpus() {
        let name = row["name"].as_str().unwrap();
        let parsed = parse(Source::new("Dockerfile", row["text"].as_str().unwrap()));
        match (&row["error"], parsed) {
            (Value::Null, Ok(file)) => {
                for key in ["instructions", "stages", "escape", "check"] {
                    let ours = &tree(&file)[key];
                    if *ours != row[key] {
                        wrong.push(format!("{name}: {key}\n  ours     {ours}\n  expected {}", row[key]));
                    }
                }
            }
            (Value::Null, Err(errors)) => wrong.push(format!("{name}: {errors:?}")),
            (error, Ok(_)) => wrong.push(format!("{name}: accepted, though {error}")),
            (_, Err(_)) => {}
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

fn tree(file: &Dockerfile) -> Value {
    let line = |offset: u32| file.source.position(offset as usize).0;
    let lines = |span: Span| json!([line(span.start), line(span.end)]);
    let mut instructions: Vec<Value> = file.global_args.iter().map(|arg| node(arg, lines(arg.span))).collect();
    let mut stages = Vec::new();
    for stage in &file.stages {
        let from = &stage.from;
        let platform = from.platform.as_ref().map_or("", |platform| &platform.raw);
        let mut from_node = json!({"v": "FROM", "lines": lines(from.span)});
        if !platform.is_empty() {
            from_node["flags"] = json!([format!("--platform={platform}")]);
        }
        instructions.push(from_node);
        instructions.extend(stage.instructions.iter().map(|instruction| node(instruction, lines(instruction.span))));
        stages.push(json!({
            "base": from.image.raw,
            "name": from.name.clone().unwrap_or_default(),
            "platform": platform,
            "length": stage.instructions.len(),
        }));
    }
    let check = file.check.as_ref().map(|check| &check.raw);
    json!({"instructions": instructions, "stages": stages, "escape": file.escape.to_string(), "check": check})
}

fn node(instruction: &Instruction, lines: Value) -> Value {
    let mut flags = Vec::new();
    let mut heredocs = Vec::new();
    let (keyword, fields) = fields(instruction, &mut flags, &mut heredocs);
    let mut node = json!({"v": keyword, "lines": lines, "f": fields});
    if !flags.is_empty() {
        flags.sort();
        node["flags"] = json!(flags);
    }
    if !heredocs.is_empty() {
        node["heredocs"] = heredocs.into();
    }
    node
}

fn fields(instruction: &Instruction, flags: &mut Vec<String>, heredocs: &mut Vec<Value>) -> (&'static str, Value) {
    let mut flag = |name: &str, flag: &Flag| flags.push(format!("--{name}={}", flag.value.raw));
    let raws = |words: &[Word]| words.iter().map(|word| word.raw.clone()).collect::<Vec<_>>();
    let pairs = |pairs: &[(Word, Word)], is_legacy: bool| {
        let pair = |(key, value): &(Word, Word)| json!({"Key": key.raw, "Value": value.raw, "NoDelim": is_legacy});
        pairs.iter().map(pair).collect::<Vec<_>>()
    };
    let is_legacy = |pairs: &[(Word, Word)]| {
        let text = &instruction.source.text;
        pairs.len() == 1 && !text[pairs[0].0.span.range().end..].starts_with('=')
    };
    let raw = |flag: &Option<Flag>| flag.as_ref().map_or(String::new(), |flag| flag.value.raw.clone());
    match &instruction.kind {
        Kind::Arg(list) => {
            let declaration = |declaration: &wythe::dockerfile::ArgDeclaration| {
                let mut row = json!({"DocComment": "", "Key": declaration.name});
                if let Some(value) = &declaration.value {
                    row["Value"] = json!(value.raw);
                }
                row
            };
            ("ARG", json!({"Args": list.iter().map(declaration).collect::<Vec<_>>()}))
        }
        Kind::Env(list) => ("ENV", json!({"Env": pairs(list, is_legacy(list))})),
        Kind::Label(list) => ("LABEL", json!({"Labels": pairs(list, is_legacy(list))})),
        Kind::Run(run) => {
            run.mounts.iter().for_each(|mount| flag("mount", mount));
            run.devices.iter().for_each(|device| flag("device", device));
            run.network.iter().for_each(|network| flag("network", network));
            run.security.iter().for_each(|security| flag("security", security));
            heredocs.extend(run.heredocs.iter().map(heredoc));
            let mut fields = command(&run.command);
            if !run.heredocs.is_empty() {
                let file = |heredoc: &Heredoc| json!({"Chomp": heredoc.strips_tabs, "Data": heredoc.body, "Name": heredoc.name});
                fields["Files"] = run.heredocs.iter().map(file).collect();
            }
            ("RUN", fields)
        }
        Kind::Copy(copy) => {
            copy.from.iter().for_each(|from| flag("from", from));
            copy.chown.iter().for_each(|chown| flag("chown", chown));
            copy.chmod.iter().for_each(|chmod| flag("chmod", chmod));
            copy.exclude.iter().for_each(|exclude| flag("exclude", exclude));
            let mut fields = sources(&copy.sources, heredocs);
            fields.insert("DestPath".into(), json!(copy.destination.raw));
            fields.insert("From".into(), json!(raw(&copy.from)));
            fields.insert("Chown".into(), json!(raw(&copy.chown)));
            fields.insert("Chmod".into(), json!(raw(&copy.chmod)));
            fields.insert("Link".into(), json!(copy.is_link));
            fields.insert("Parents".into(), json!(copy.has_parents));
            if !copy.exclude.is_empty() {
                let patterns: Vec<_> = copy.exclude.iter().map(|flag| flag.value.raw.clone()).collect();
                fields.insert("ExcludePatterns".into(), json!(patterns));
            }
            ("COPY", Value::Object(fields))
        }
        Kind::Add(add) => {
            add.checksum.iter().for_each(|checksum| flag("checksum", checksum));
            add.chown.iter().for_each(|chown| flag("chown", chown));
            add.chmod.iter().for_each(|chmod| flag("chmod", chmod));
            let mut fields = sources(&add.sources, heredocs);
            fields.insert("DestPath".into(), json!(add.destination.raw));
            fields.insert("Checksum".into(), json!(raw(&add.checksum)));
            fields.insert("Chown".into(), json!(raw(&add.chown)));
            fields.insert("Chmod".into(), json!(raw(&add.chmod)));
            fields.insert("Link".into(), json!(add.is_link));
            if let Some(unpack) = add.unpack {
                fields.insert("Unpack".into(), json!(unpack));
            }
            ("ADD", Value::Object(fields))
        }
        Kind::Workdir(word) => ("WORKDIR", json!({"Path": word.raw})),
        Kind::User(word) => ("USER", json!({"User": word.raw})),
        Kind::Cmd(cmd) => ("CMD", command(cmd)),
        Kind::Entrypoint(entrypoint) => {
            let mut fields = command(entrypoint);
            // BuildKit tells an empty list from none here and nowhere else.
            if fields["CmdLine"] == json!([]) {
                fields.as_object_mut().unwrap().remove("CmdLine");
            }
            ("ENTRYPOINT", fields)
        }
        Kind::Shell(shell) => ("SHELL", json!({"Shell": shell})),
        Kind::Expose(ports) => {
            let mut ports = raws(ports);
            ports.sort();
            ("EXPOSE", json!({"Ports": ports}))
        }
        Kind::Volume(volumes) => ("VOLUME", json!({"Volumes": raws(volumes)})),
        Kind::StopSignal(word) => ("STOPSIGNAL", json!({"Signal": word.raw})),
        Kind::Maintainer(name) => ("MAINTAINER", json!({"Maintainer": name})),
        Kind::Onbuild(onbuild) => ("ONBUILD", json!({"Expression": onbuild.text})),
        Kind::Healthcheck(healthcheck) => ("HEALTHCHECK", json!({"Health": health(healthcheck)})),
    }
}

fn command(command: &Command) -> Value {
    match command {
        Command::Shell(text) => json!({"CmdLine": [text], "PrependShell": true}),
        Command::Exec(words) => json!({"CmdLine": words, "PrependShell": false}),
    }
}

fn heredoc(heredoc: &Heredoc) -> Value {
    json!({
        "name": heredoc.name,
        "content": heredoc.body,
        "chomp": heredoc.strips_tabs,
        "expand": heredoc.expands,
        "fd": heredoc.fd.unwrap_or(0),
    })
}

fn sources(sources: &[CopySource], heredocs: &mut Vec<Value>) -> Map<String, Value> {
    let mut paths = Vec::new();
    let mut contents = Vec::new();
    for source in sources {
        match source {
            CopySource::Path(word) => paths.push(word.raw.clone()),
            CopySource::Heredoc(found, _) => {
                heredocs.push(heredoc(found));
                contents.push(json!({"Data": found.content(), "Path": found.name, "Expand": found.expands}));
            }
        }
    }
    let mut fields = Map::new();
    if !paths.is_empty() {
        fields.insert("SourcePaths".into(), json!(paths));
    }
    if !contents.is_empty() {
        fields.insert("SourceContents".into(), json!(contents));
    }
    fields
}

fn health(healthcheck: &Healthcheck) -> Value {
    let zero =
        json!({"Test": ["NONE"], "Interval": 0, "Timeout": 0, "StartPeriod": 0, "StartInterval": 0, "Retries": 0});
    let Healthcheck::Command { command, interval_ns, timeout_ns, start_period_ns, start_interval_ns, retries } =
        healthcheck
    else {
        return zero;
    };
    let test = match command {
        Command::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
        Command::Exec(words) => [vec!["CMD".to_owned()], words.clone()].concat(),
    };
    json!({
        "Test": test,
        "Interval": interval_ns,
        "Timeout": timeout_ns,
        "StartPeriod": start_period_ns,
        "StartInterval": start_interval_ns,
        "Retries": retries,
    })
}

/// `dockerfile-parser` knows no heredocs, directives, CRLF or byte order marks, and keeps the flags
/// of RUN in its text; of what it accepts, stages, images, names and exec arrays are right.
#[test]
fn as_dockerfile_parser_reads_it() {
    use dockerfile_parser::{Dockerfile as Theirs, Instruction as Their, ShellOrExecExpr};
    let mut compared = 0;
    for row in corpus() {
        let text = row["text"].as_str().unwrap();
        if text.contains("<<") || text.contains("escape=") || text.contains('\r') {
            continue;
        }
        let (Ok(ours), Ok(theirs)) = (parse(Source::new("Dockerfile", text)), Theirs::parse(text)) else { continue };
        compared += 1;
        let stages = |image: &str, name: Option<&str>| (image.to_owned(), name.map(str::to_lowercase));
        let our_stages: Vec<_> = ours.stages.iter().map(|stage| stages(&stage.from.image.raw, stage.name())).collect();
        let froms = theirs.instructions.iter().filter_map(Their::as_from);
        let their_stages: Vec<_> =
            froms.map(|from| stages(&from.image.content, from.alias.as_ref().map(|alias| &*alias.content))).collect();
        assert_eq!(our_stages, their_stages, "{text}");

        let exec = |command: &Command| match command {
            Command::Exec(words) => Some(words.clone()),
            Command::Shell(_) => None,
        };
        let our_arrays = ours.stages.iter().flat_map(|stage| &stage.instructions).filter_map(|instruction| {
            match &instruction.kind {
                Kind::Run(run) if run.mounts.is_empty() => exec(&run.command),
                Kind::Cmd(command) | Kind::Entrypoint(command) => exec(command),
                _ => None,
            }
        });
        let their_arrays = theirs.instructions.iter().filter_map(|instruction| {
            let expr = match instruction {
                Their::Run(run) => &run.expr,
                Their::Cmd(cmd) => &cmd.expr,
                Their::Entrypoint(entrypoint) => &entrypoint.expr,
                _ => return None,
            };
            match expr {
                // Its grammar takes single quotes for JSON, which Docker does not.
                ShellOrExecExpr::Exec(_) if text[expr_span(instruction)].contains('\'') => None,
                ShellOrExecExpr::Exec(array) => {
                    Some(array.as_str_vec().into_iter().map(str::to_owned).collect::<Vec<_>>())
                }
                ShellOrExecExpr::Shell(_) => None,
            }
        });
        let (our_arrays, their_arrays): (Vec<_>, Vec<_>) = (our_arrays.collect(), their_arrays.collect());
        assert_eq!(our_arrays, their_arrays, "{text}");
    }
    assert!(compared > 250, "only {compared} files could be compared");
}

fn expr_span(instruction: &dockerfile_parser::Instruction) -> std::ops::Range<usize> {
    let span = instruction.span();
    span.start..span.end
}
