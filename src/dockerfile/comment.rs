//! Comments right above an instruction: they describe it, or say what is not to be checked in it.

use crate::diag::{Source, Span};
use crate::dockerfile::line::trim_line_end;

/// The texts of the comment lines right above `span`, in order, without `#` and the space around. A blank line
/// or an empty comment parts them from what is above it.
pub fn above(source: &Source, span: Span) -> Vec<Span> {
    let text = &source.text;
    let line_start = |end: usize| text[..end].rfind('\n').map_or(0, |newline| newline + 1);
    let mut end = line_start(span.start as usize);
    let mut comments = Vec::new();
    while end > 0 {
        let start = line_start(end - 1);
        let line = trim_line_end(&text[start..end]);
        let line = line.strip_prefix('\u{feff}').filter(|_| start == 0).unwrap_or(line);
        let Some(comment) = line.trim_start().strip_prefix('#') else { break };
        let comment = comment.trim();
        if comment.is_empty() {
            break;
        }
        let at = comment.as_ptr() as usize - text.as_ptr() as usize;
        comments.push(Span::new(at, at + comment.len()));
        end = start;
    }
    comments.reverse();
    comments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_touches_the_instruction() {
        let text = "# far\n\n# near\n  #  nearer \r\nFROM a\n#\n# b\nRUN b";
        let source = Source::new("Dockerfile", text);
        let found = |word: &str| {
            let at = text.find(word).expect("it is there");
            let comments = above(&source, Span::new(at, at + 1)).into_iter();
            comments.map(|span| &text[span.range()]).collect::<Vec<_>>()
        };
        assert_eq!(found("FROM"), ["near", "nearer"]);
        assert_eq!(found("RUN"), ["b"]);
        assert!(found("# far").is_empty());
    }
}
