//! `RUN --mount=`: the list of options, read in two steps. [`fields`] splits the text and needs no
//! variables, so that `from=` can be linked early; [`Mount::new`] expands the values and checks them
//! against the mount's type.

use std::sync::Arc;

use crate::diag::{Diagnostic, Source, Span, nearest};
use crate::dockerfile::{Flag, Word};

use super::op::Sharing;

/// One `key=value` or `key` of a mount.
pub(super) struct Field {
    /// Lower-cased.
    pub key: String,
    pub key_span: Span,
    pub value: Option<Word>,
    pub span: Span,
}

/// Splits at commas. A field in double quotes may hold commas, `""` in it stands for a quote.
pub(super) fn fields(flag: &Flag, source: &Arc<Source>) -> Result<Vec<Field>, Diagnostic> {
    let word = &flag.value;
    let raw = word.raw.as_str();
    let fault =
        |message: &str, start: usize, end: usize| Diagnostic::error(message).at(source, word.span_of(start, end), "");
    let mut fields = Vec::new();
    let mut start = 0;
    loop {
        let rest = &raw[start..];
        let (inside, end) = if rest.starts_with('"') {
            let Some(close) = closing_quote(rest) else {
                return Err(fault("the quote of this mount option is not closed", start, raw.len()));
            };
            (unquoted(word, start + 1, &rest[1..close]), start + close + 1)
        } else {
            let option = &rest[..rest.find(',').unwrap_or(rest.len())];
            if let Some(quote) = option.find('"') {
                let hint = format!("write `\"{}\"`", option.replace('"', ""));
                let (start, end) = (start + quote, start + quote + 1);
                return Err(fault("a quote must enclose the whole mount option", start, end).hint(hint));
            }
            (word.part(start, start + option.len()), start + option.len())
        };
        let key_length = inside.raw.find('=').unwrap_or(inside.raw.len());
        fields.push(Field {
            key: inside.raw[..key_length].to_ascii_lowercase(),
            key_span: inside.span_of(0, key_length),
            value: (key_length < inside.raw.len()).then(|| inside.part(key_length + 1, inside.raw.len())),
            span: word.span_of(start, end),
        });
        match raw[end..].chars().next() {
            None => return Ok(fields),
            Some(',') => start = end + 1,
            Some(other) => {
                let after = end + other.len_utf8();
                return Err(fault("a comma must follow the closing quote of a mount option", end, after));
            }
        }
    }
}

/// Where the quote that opens `text` is closed.
fn closing_quote(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'"', Some(b'"')) => at += 2,
            (b'"', _) => return Some(at),
            _ => at += 1,
        }
    }
    None
}

/// The word within quotes, `text` at `start` of `word`, with `""` made one quote.
fn unquoted(word: &Word, start: usize, text: &str) -> Word {
    let mut joined = word.part(start, start + text.len());
    joined.raw.clear();
    joined.runs.clear();
    let mut at = start;
    for (index, piece) in text.split("\"\"").enumerate() {
        if index > 0 {
            // The second of the two quotes is the one that stays.
            joined.runs.push((joined.raw.len() as u32, word.span_of(at - 1, at - 1).start));
            joined.raw.push('"');
        }
        let offset = joined.raw.len() as u32;
        joined.runs.extend(word.part(at, at + piece.len()).runs.iter().map(|(raw, place)| (raw + offset, *place)));
        joined.raw.push_str(piece);
        at += piece.len() + 2;
    }
    joined
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

const TYPES: [(&str, Type); 5] = [
    ("bind", Type::Bind),
    ("cache", Type::Cache),
    ("tmpfs", Type::Tmpfs),
    ("secret", Type::Secret),
    ("ssh", Type::Ssh),
];

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "required",
    "size",
    "id",
    "sharing",
    "mode",
    "uid",
    "gid",
    "env",
];

/// The options of a mount, expanded; which of them apply to its type has been checked.
#[derive(Debug)]
pub(super) struct Mount {
    pub kind: Type,
    pub from: Option<String>,
    pub source: Option<String>,
    pub target: Option<String>,
    pub id: Option<String>,
    pub env: Option<String>,
    pub is_readonly: Option<bool>,
    pub is_required: bool,
    pub size_bytes: Option<u64>,
    pub sharing: Sharing,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

impl Mount {
    /// `expand` reports its own faults and then gives `None`; so does this function, after reporting to
    /// `faults` everything else that is wrong with the mount.
    pub fn new(
        fields: &[Field],
        source: &Arc<Source>,
        faults: &mut Vec<Diagnostic>,
        mut expand: impl FnMut(&Word, &mut Vec<Diagnostic>) -> Option<String>,
    ) -> Option<Self> {
        let before = faults.len();
        let mut mount = Self {
            kind: Type::Bind,
            from: None,
            source: None,
            target: None,
            id: None,
            env: None,
            is_readonly: None,
            is_required: false,
            size_bytes: None,
            sharing: Sharing::Shared,
            mode: None,
            uid: None,
            gid: None,
        };
        for field in fields {
            let value = match &field.value {
                Some(word) => match expand(word, faults) {
                    Some(value) => Some(value),
                    None => continue,
                },
                None => None,
            };
            if let Err(fault) = mount.set(field, value, source) {
                faults.push(fault);
            }
        }
        // The type may stand last, so what applies to it is known only now.
        for field in fields {
            if let Err(message) = mount.check(&field.key) {
                faults.push(Diagnostic::error(message).at(source, field.key_span, ""));
            }
        }
        (faults.len() == before).then_some(mount)
    }

    fn set(&mut self, field: &Field, value: Option<String>, source: &Arc<Source>) -> Result<(), Diagnostic> {
        let key = field.key.as_str();
        let at = field.value.as_ref().map_or(field.span, |value| value.span);
        let wrong = |message: String| Diagnostic::error(message).at(source, at, "");
        let suggest = |fault: Diagnostic, near: Option<&str>| match near {
            Some(near) => fault.hint(format!("did you mean `{near}`?")),
            None => fault,
        };
        if key.is_empty() && field.value.is_none() {
            return Err(Diagnostic::error("a mount option is empty").at(source, field.span, "expected `name=value`"));
        }
        if !KEYS.contains(&key) {
            let fault =
                Diagnostic::error(format!("unknown mount option `{}`", field.key)).at(source, field.key_span, "");
            return Err(suggest(fault, nearest(key, KEYS)));
        }
        let Some(value) = value else {
            match key {
                "readonly" | "ro" => self.is_readonly = Some(true),
                "readwrite" | "rw" => self.is_readonly = Some(false),
                "required" => self.is_required = true,
                _ => return Err(wrong(format!("mount option `{key}` needs a value, as in `{key}=…`"))),
            }
            return Ok(());
        };
        let boolean = || boolean(&value).ok_or_else(|| wrong(format!("`{value}` is neither `true` nor `false`")));
        let number = |radix: u32, what: &str| {
            let is_number = value.chars().all(|digit| digit.is_digit(radix));
            u32::from_str_radix(&value, radix)
                .ok()
                .filter(|_| is_number)
                .ok_or_else(|| wrong(format!("`{value}` is no {what}")))
        };
        match key {
            "type" => {
                let lower = value.to_ascii_lowercase();
                self.kind = TYPES.iter().find(|(name, _)| *name == lower).map(|(_, kind)| *kind).ok_or_else(|| {
                    suggest(
                        wrong(format!("unknown mount type `{value}`")),
                        nearest(&value, TYPES.map(|(name, _)| name)),
                    )
                })?;
            }
            "from" => self.from = Some(value).filter(|from| !from.is_empty()),
            "source" | "src" => self.source = Some(value),
            "target" | "dst" | "destination" => self.target = Some(value),
            "readonly" | "ro" => self.is_readonly = Some(boolean()?),
            "readwrite" | "rw" => self.is_readonly = Some(!boolean()?),
            "required" => self.is_required = boolean()?,
            "size" => {
                self.size_bytes =
                    Some(bytes(&value).ok_or_else(|| wrong(format!("`{value}` is no size such as `64m`")))?)
            }
            "id" => self.id = Some(value).filter(|id| !id.is_empty()),
            "env" => self.env = Some(value),
            "sharing" => {
                self.sharing = match value.to_ascii_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => {
                        let near = nearest(&value, ["shared", "private", "locked"]);
                        return Err(suggest(
                            wrong(format!("unknown sharing `{value}`: it is shared, private or locked")),
                            near,
                        ));
                    }
                }
            }
            "mode" => {
                let mode = number(8, "octal mode")?;
                if mode > 0o7777 {
                    return Err(wrong(format!("mode `{value}` is above 7777")));
                }
                self.mode = Some(mode);
            }
            "uid" => self.uid = Some(number(10, "user id")?),
            _ => self.gid = Some(number(10, "group id")?),
        }
        Ok(())
    }

    /// Whether the option applies to the mount's type.
    fn check(&self, key: &str) -> Result<(), String> {
        use Type::{Bind, Cache, Secret, Ssh, Tmpfs};
        let name = TYPES.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(name, _)| name);
        let applies = match key {
            "mode" | "uid" | "gid" => !matches!(self.kind, Bind | Tmpfs),
            "sharing" => self.kind == Cache,
            "size" => self.kind == Tmpfs,
            "env" => self.kind == Secret,
            "required" => matches!(self.kind, Secret | Ssh),
            "from" => !matches!(self.kind, Secret | Ssh),
            "source" | "src" => self.kind != Ssh,
            _ => true,
        };
        if !applies {
            return Err(format!("mount option `{key}` does not apply to type {name}"));
        }
        if self.kind == Secret && matches!(key, "source" | "src") && self.id.is_some() {
            return Err(format!("`{key}` is another word for `id`: give one of them"));
        }
        Ok(())
    }
}

/// The words that stand for true and false in flags and mount options.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `64m`, `1.5GiB`, `100`: a size in bytes, units being powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let unit = unit.strip_suffix('b').unwrap_or(unit);
    let unit = unit.strip_suffix('i').unwrap_or(unit);
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)?;
    if number.starts_with('.') || number.ends_with('.') {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    Some((number * 1024_f64.powi(i32::try_from(power).ok()?)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(text: &str) -> (Flag, Arc<Source>) {
        let value = Word { raw: text.into(), span: Span::new(0, text.len()), runs: Vec::new() };
        (Flag { span: value.span, value }, Source::new("Dockerfile", text))
    }

    fn parse(text: &str) -> Result<Mount, Vec<String>> {
        let (flag, source) = flag(text);
        let said = |fault: &Diagnostic| {
            let mut said = fault.message.clone();
            for label in &fault.labels {
                said += &format!(" @{}", &text[label.span.range()]);
            }
            fault.hints.iter().for_each(|hint| said += &format!(" ({hint})"));
            said
        };
        let fields = fields(&flag, &source).map_err(|fault| vec![said(&fault)])?;
        let mut faults = Vec::new();
        Mount::new(&fields, &source, &mut faults, |word, _| Some(word.raw.clone()))
            .ok_or_else(|| faults.iter().map(said).collect())
    }

    #[test]
    fn splits_quoted_fields() {
        let mount = parse("type=cache,\"target=/a,b\",\"id=say \"\"x\"\"\"").expect("a mount");
        assert_eq!(mount.target.as_deref(), Some("/a,b"));
        assert_eq!(mount.id.as_deref(), Some("say \"x\""));
    }

    #[test]
    fn the_type_may_stand_last() {
        let mount = parse("target=/t,size=1.5m,TYPE=Tmpfs").expect("a mount");
        assert_eq!((mount.kind, mount.size_bytes), (Type::Tmpfs, Some(1_572_864)));
    }

    #[test]
    fn reads_flags_without_values() {
        let mount = parse("type=secret,id=x,required").expect("a mount");
        assert!(mount.is_required);
        assert_eq!(parse("target=/x,rw").expect("a mount").is_readonly, Some(false));
        assert_eq!(parse("target=/x,rw=false").expect("a mount").is_readonly, Some(true));
    }

    #[test]
    fn points_at_the_fault() {
        for (text, faults) in [
            ("sorce=a,target=/x", &["unknown mount option `sorce` @sorce (did you mean `source`?)"][..]),
            ("type=cahce,target=/x", &["unknown mount type `cahce` @cahce (did you mean `cache`?)"]),
            ("target=/x,size=1m", &["mount option `size` does not apply to type bind @size"]),
            (
                "target=/x,mode=0700,uid=1",
                &[
                    "mount option `mode` does not apply to type bind @mode",
                    "mount option `uid` does not apply to type bind @uid",
                ],
            ),
            (
                "type=cache,target=/x,sharing=lockd",
                &["unknown sharing `lockd`: it is shared, private or locked @lockd (did you mean `locked`?)"],
            ),
            ("type=cache,target=/x,mode=9", &["`9` is no octal mode @9"]),
            ("type=cache,target=/x,mode=17777", &["mode `17777` is above 7777 @17777"]),
            ("type=cache,target=/x,uid=-1", &["`-1` is no user id @-1"]),
            ("type=tmpfs,target=/x,size=big", &["`big` is no size such as `64m` @big"]),
            ("target", &["mount option `target` needs a value, as in `target=…` @target"]),
            ("target=/x,ro=maybe", &["`maybe` is neither `true` nor `false` @maybe"]),
            ("type=secret,id=a,source=b", &["`source` is another word for `id`: give one of them @source"]),
            ("type=secret,id=a,from=b", &["mount option `from` does not apply to type secret @from"]),
            ("type=secret,id=a,sharing=locked", &["mount option `sharing` does not apply to type secret @sharing"]),
            ("type=ssh,source=x", &["mount option `source` does not apply to type ssh @source"]),
            ("target=/x,required", &["mount option `required` does not apply to type bind @required"]),
            ("target=/x,env=A", &["mount option `env` does not apply to type bind @env"]),
            ("\"target=/x", &["the quote of this mount option is not closed @\"target=/x"]),
            ("\"target=/x\"y", &["a comma must follow the closing quote of a mount option @y"]),
            ("target=\"/x\"", &["a quote must enclose the whole mount option @\" (write `\"target=/x\"`)"]),
            ("target=/x,", &["a mount option is empty @"]),
        ] {
            let expected: Vec<_> = faults.iter().map(|fault| (*fault).to_owned()).collect();
            assert_eq!(parse(text).map(|mount| mount.kind), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_part_of_a_joined_word_knows_its_place() {
        // `ab` at 0 of the source, `cd` at 10, `ef` at 20.
        let word = Word { raw: "abcdef".into(), span: Span::new(0, 22), runs: vec![(0, 0), (2, 10), (4, 20)] };
        let part = word.part(3, 5);
        assert_eq!((part.raw.as_str(), part.runs.as_slice()), ("de", &[(0, 11), (1, 20)][..]));
        assert_eq!(part.span_of(1, 2), Span::new(20, 21));
    }

    #[test]
    fn a_doubled_quote_does_not_shift_what_follows() {
        let text = "\"id=\"\"\u{e9}\"\"${X^}\"";
        let (flag, source) = flag(text);
        let fields = fields(&flag, &source).expect("fields");
        let value = fields[0].value.as_ref().expect("a value");
        assert_eq!(value.raw, "\"\u{e9}\"${X^}");
        let at = value.raw.find('^').expect("a fault");
        assert_eq!(&text[value.span_of(at, at + 1).range()], "^");
    }
}
