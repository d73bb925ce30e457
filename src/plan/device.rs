//! `RUN --device=vendor/class=name,required`.

use std::sync::Arc;

use super::op::RunDevice;
use crate::diag::{Diagnostic, Source, nearest};
use crate::dockerfile::Flag;

/// Reads the value of a flag, which has no variables.
pub(super) fn device(flag: &Flag, source: &Arc<Source>) -> Result<RunDevice, Diagnostic> {
    let fault = |message: String| Diagnostic::error(message).at(source, flag.value.span, "");
    let (mut name, mut is_required) = (None, false);
    for field in flag.value.raw.split(',') {
        match field.split_once('=') {
            None if field == "required" => is_required = true,
            Some(("required", value)) => {
                is_required = match value.to_ascii_lowercase().as_str() {
                    "true" | "1" | "t" => true,
                    "false" | "0" | "f" => false,
                    _ => return Err(fault(format!("`{value}` is neither `true` nor `false`"))),
                }
            }
            Some(("name", value)) if name.is_none() => name = Some(value),
            _ if name.is_none() && !field.is_empty() => name = Some(field),
            _ => {
                let key = field.split('=').next().unwrap_or_default();
                let fault = fault(format!("unknown option `{key}` of `--device`"));
                return Err(match nearest(key, ["required", "name"]) {
                    Some(near) => fault.hint(format!("did you mean `{near}`?")),
                    None => fault,
                });
            }
        }
    }
    let name = name.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| fault("a device needs a name, as in `--device=vendor.example/class=name`".into()))?;
    Ok(RunDevice { name: name.to_owned(), is_required, source: Arc::clone(source), span: flag.value.span })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Span;
    use crate::dockerfile::Word;

    fn read(text: &str) -> Result<(String, bool), String> {
        let value = Word { raw: text.into(), span: Span::new(0, text.len()), runs: Vec::new() };
        let flag = Flag { span: value.span, value };
        device(&flag, &Source::new("Dockerfile", text))
            .map(|found| (found.name, found.is_required))
            .map_err(|fault| fault.message)
    }

    #[test]
    fn every_form() {
        for (text, name, is_required) in [
            ("a.b/c=d", "a.b/c=d", false),
            ("a.b/c", "a.b/c", false),
            ("a.b/c=*,required", "a.b/c=*", true),
            ("required,a.b/c", "a.b/c", true),
            ("name=a.b/c=d,required=true", "a.b/c=d", true),
            ("class,required=false", "class", false),
        ] {
            assert_eq!(read(text), Ok((name.to_owned(), is_required)), "{text}");
        }
        for text in ["", "required", "a.b/c=d,requird", "a.b/c=d,required=maybe", "name=,required", "a/b=c,name=d"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
