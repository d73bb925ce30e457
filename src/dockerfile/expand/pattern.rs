//! The shell patterns of `${n#p}`, `${n%p}` and `${n/p/r}`: `*`, `?` and escapes, no `[…]`.
//!
//! A pattern is cut at its stars into pieces of fixed length, which is all the backtracking there
//! is: the first piece stands where the match begins, each further one at its first place after the
//! one before, and for a longest match the last one at its last place.
//!
//! ```text
//! a?*b*cd  ─▶  [a?] [b] [cd]
//! ```

/// A piece of a pattern: what each character must be, `None` for any.
type Piece = Vec<Option<char>>;

/// Between two pieces is a star; there is at least one piece, which may be empty.
struct Pattern(Vec<Piece>);

/// Longer patterns are refused: searching takes time in proportion to their length.
const LENGTH_LIMIT: usize = 10_000;

/// `value` without the shortest or longest prefix that matches.
pub fn cut_prefix<'a>(value: &'a str, pattern: &str, is_longest: bool) -> Result<&'a str, String> {
    let pattern = Pattern::parse(pattern)?;
    let chars: Vec<char> = value.chars().collect();
    let length = pattern.match_at_start(&chars, is_longest).unwrap_or(0);
    let bytes: usize = chars[..length].iter().map(|c| c.len_utf8()).sum();
    Ok(&value[bytes..])
}

/// `value` without the shortest or longest suffix that matches.
pub fn cut_suffix<'a>(value: &'a str, pattern: &str, is_longest: bool) -> Result<&'a str, String> {
    let mut pattern = Pattern::parse(pattern)?;
    pattern.0.reverse();
    pattern.0.iter_mut().for_each(|piece| piece.reverse());
    let chars: Vec<char> = value.chars().rev().collect();
    let length = pattern.match_at_start(&chars, is_longest).unwrap_or(0);
    let bytes: usize = chars[..length].iter().map(|c| c.len_utf8()).sum();
    Ok(&value[..value.len() - bytes])
}

/// `value` with the first or every match, each as long as possible, replaced. An empty match counts
/// unless it touches the one before. The result is an error when it is longer than `limit_bytes`.
pub fn replace(
    value: &str,
    pattern: &str,
    replacement: &str,
    is_global: bool,
    limit_bytes: usize,
) -> Result<String, String> {
    let pattern = Pattern::parse(pattern)?;
    let chars: Vec<char> = value.chars().collect();
    let mut out = String::new();
    let (mut copied, mut at, mut last_end) = (0, 0, None);
    while let Some((start, end)) = pattern.find(&chars, at) {
        if start < end || last_end != Some(end) {
            out.extend(&chars[copied..start]);
            out.push_str(replacement);
            (copied, last_end) = (end, Some(end));
            if out.len() > limit_bytes {
                return Err(format!("the value becomes larger than {} MiB", limit_bytes >> 20));
            }
        }
        at = if start < end { end } else { end + 1 };
        if !is_global || at > chars.len() {
            break;
        }
    }
    out.extend(&chars[copied..]);
    Ok(out)
}

impl Pattern {
    fn parse(pattern: &str) -> Result<Self, String> {
        if pattern.len() > LENGTH_LIMIT {
            return Err(format!("the pattern is longer than {LENGTH_LIMIT} bytes"));
        }
        let mut pieces = Vec::new();
        let mut piece = Piece::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            match c {
                '*' => pieces.push(std::mem::take(&mut piece)),
                '?' => piece.push(None),
                '\\' => match chars.next() {
                    Some(c @ ('*' | '?' | '\\' | '/' | '}')) => piece.push(Some(c)),
                    Some(c) => {
                        let known = "only `*`, `?`, `\\`, `/` and `}` can be escaped";
                        return Err(format!("invalid escape `\\{c}` in a pattern: {known}"));
                    }
                    None => return Err("a pattern cannot end in `\\`".to_owned()),
                },
                c => piece.push(Some(c)),
            }
        }
        pieces.push(piece);
        Ok(Self(pieces))
    }

    /// The end of the shortest or longest match that begins at 0.
    fn match_at_start(&self, text: &[char], is_longest: bool) -> Option<usize> {
        let first = &self.0[0];
        stands_at(first, text, 0).then(|| self.end_of_rest(text, first.len(), is_longest))?
    }

    /// The first match that begins at or after `from`, as long as possible.
    fn find(&self, text: &[char], from: usize) -> Option<(usize, usize)> {
        let first = &self.0[0];
        let start = (from..=text.len()).find(|at| stands_at(first, text, *at))?;
        // If the rest has no room after this place, it has none after a later one.
        Some((start, self.end_of_rest(text, start + first.len(), true)?))
    }

    /// Where the match ends when the first piece ends at `at`.
    fn end_of_rest(&self, text: &[char], mut at: usize, is_longest: bool) -> Option<usize> {
        for (index, piece) in self.0.iter().enumerate().skip(1) {
            let mut places = at..=text.len();
            let place = match is_longest && index + 1 == self.0.len() {
                true => places.rev().find(|place| stands_at(piece, text, *place)),
                false => places.find(|place| stands_at(piece, text, *place)),
            };
            at = place? + piece.len();
        }
        Some(at)
    }
}

fn stands_at(piece: &Piece, text: &[char], at: usize) -> bool {
    let Some(part) = text.get(at..at + piece.len()) else { return false };
    piece.iter().zip(part).all(|(expected, c)| expected.is_none_or(|expected| expected == *c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by regular expression: slower, and a second opinion.
    fn regex(pattern: &str, is_longest: bool, is_reversed: bool) -> String {
        let mut parts: Vec<String> = pattern
            .chars()
            .map(|c| match (c, is_longest) {
                ('*', true) => ".*".to_owned(),
                ('*', false) => ".*?".to_owned(),
                ('?', _) => ".".to_owned(),
                (c, _) => regex::escape(&c.to_string()),
            })
            .collect();
        if is_reversed {
            parts.reverse();
        }
        format!("(?s){}", parts.concat())
    }

    fn anchored(text: &str, pattern: &str, is_longest: bool, is_reversed: bool) -> usize {
        let regex = format!("^(?:{})", regex(pattern, is_longest, is_reversed));
        regex::Regex::new(&regex).unwrap().find(text).map_or(0, |found| found.end())
    }

    proptest! {
        #[test]
        fn as_regular_expressions_do(value in "[abé\n]{0,12}", pattern in "[abé*?]{0,6}", is_longest: bool) {
            let prefix = anchored(&value, &pattern, is_longest, false);
            prop_assert_eq!(cut_prefix(&value, &pattern, is_longest).unwrap(), &value[prefix..]);
            let reversed: String = value.chars().rev().collect();
            let suffix = anchored(&reversed, &pattern, is_longest, true);
            prop_assert_eq!(cut_suffix(&value, &pattern, is_longest).unwrap(), &value[..value.len() - suffix]);
            let regex = regex::Regex::new(&regex(&pattern, true, false)).unwrap();
            let all = regex.replace_all(&value, regex::NoExpand("-x-"));
            prop_assert_eq!(replace(&value, &pattern, "-x-", true, 1000).unwrap(), all);
            let once = regex.replace(&value, regex::NoExpand("-x-"));
            prop_assert_eq!(replace(&value, &pattern, "-x-", false, 1000).unwrap(), once);
        }
    }
}
