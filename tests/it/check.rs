//! `--check` and `--call`: each folder of `testdata/check` is a context, and `expected.txt` in it what is
//! answered, with the exit codes. Where the context stands is `CONTEXT` there.

use std::fmt::Write as _;

use super::ordinary::Ordinary;
use super::sandbox::{Sandbox, copy};
use super::{cases, check_golden};

const QUESTIONS: [&[&str]; 4] =
    [&["--check"], &["--call", "check,format=json"], &["--call=outline"], &["--call=targets"]];

#[test]
fn questions_are_answered() {
    for folder in cases("check") {
        let sandbox = Sandbox::new();
        copy(&folder, &sandbox.context);
        let mut text = String::new();
        for question in QUESTIONS {
            let args: Vec<String> = question.iter().map(ToString::to_string).collect();
            let ended = sandbox.build("image.tar", &args);
            let said = String::from_utf8_lossy(&ended.stdout) + &*ended.stderr;
            let said = said.replace(&sandbox.path("").display().to_string(), "");
            writeln!(text, "$ {}\n{said}exit {:?}\n", question.join(" "), ended.code.unwrap()).unwrap();
        }
        assert!(!sandbox.path("image.tar").exists(), "a question left an image");
        check_golden(&folder.join("expected.txt"), text.as_bytes());
    }
}

#[test]
fn an_ordinary_user_gets_the_same_answers() {
    for folder in cases("check") {
        let user = Ordinary::new();
        copy(&folder, &user.sandbox.context);
        let mut text = String::new();
        for question in QUESTIONS {
            let ended = user.build(question);
            let said = (String::from_utf8_lossy(&ended.stdout) + &*ended.stderr).replace("/mnt/", "");
            writeln!(text, "$ {}\n{said}exit {:?}\n", question.join(" "), ended.code.unwrap()).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(folder.join("expected.txt")).unwrap(), "{}", folder.display());
        assert_eq!(user.store().join("layers").read_dir().map_or(0, Iterator::count), 0, "a question made layers");
    }
}

#[test]
fn a_question_that_is_none_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM scratch\n");
    for args in [&["--call=lnit"][..], &["--call=check,format=yaml"], &["--check", "--call=outline"]] {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        assert_eq!(sandbox.build("image.tar", &args).code, Some(2), "{args:?}");
    }
    assert_eq!(sandbox.build("image.tar", &["--call=build".into()]).code, Some(0));
}
