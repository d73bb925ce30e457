//! Any word is expanded or refused, and an error points into the word. The first line is the value
//! of every variable but `u`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wythe::dockerfile::expand::{Variables, expand, expand_heredoc, expand_raw, expand_words};

struct One<'a>(&'a str);

impl Variables for One<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        (name != "u").then_some(self.0)
    }
}

fuzz_target!(|text: &str| {
    let (value, word) = text.split_once('\n').unwrap_or(("", text));
    let variables = One(value);
    for escape in ['\\', '`'] {
        let results = [
            expand(word, escape, &variables).map(|expanded| expanded.text),
            expand_raw(word, escape, &variables).map(|expanded| expanded.text),
            expand_heredoc(word, &variables).map(|expanded| expanded.text),
            expand_words(word, escape, &variables).map(|words| words.concat()),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            assert!(word.get(error.start..error.end).is_some());
        }
    }
});
