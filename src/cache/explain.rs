//! Why a step missed: the facts that differ from the nearest earlier record's.

use crate::cache::Facts;

/// One fact that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The fact's name, as in `env PATH` or `files`.
    pub fact: String,
    /// `None`: the fact is new.
    pub before: Option<String>,
    /// `None`: the fact is gone.
    pub after: Option<String>,
}

/// Why a step has to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing like it was ever built here.
    NeverBuilt,
    /// The cache was not asked.
    NoCache,
    /// These facts differ from the nearest earlier record.
    Changed(Vec<Difference>),
    /// All facts are as they were, but the record or its layer is gone or damaged.
    Lost,
}

/// The facts in which `now` differs from `before`; those of `now` first, in order. A fact named in
/// `unknown` is not compared: its value is not known yet.
pub fn differences(before: &Facts, now: &Facts, unknown: &[&str]) -> Vec<Difference> {
    let compared = |name: &str| !unknown.contains(&name);
    let changed = now.iter().filter(|(name, _)| compared(name)).filter_map(|(name, value)| {
        let earlier = before.get(name);
        (earlier != Some(value)).then(|| Difference {
            fact: name.to_owned(),
            before: earlier.map(str::to_owned),
            after: Some(value.to_owned()),
        })
    });
    let gone = before
        .iter()
        .filter(|(name, _)| compared(name) && now.get(name).is_none())
        .map(|(name, value)| Difference { fact: name.to_owned(), before: Some(value.to_owned()), after: None });
    changed.chain(gone).collect()
}

impl Difference {
    /// One line for a person; `files` differences are told in more detail by the caller, who has
    /// the listings.
    pub fn describe(&self) -> String {
        let shown = |value: &str| {
            let value = value.replace('\n', "⏎");
            if value.chars().count() > 60 {
                format!("`{}…`", value.chars().take(59).collect::<String>())
            } else {
                format!("`{value}`")
            }
        };
        let name = match self.fact.split_once(' ') {
            Some(("env", name)) => format!("ENV {name}"),
            Some(("arg", name)) => format!("ARG {name}"),
            Some((kind, name)) => format!("{kind} {name}"),
            None if self.fact == "parent" => return "the layers below changed".into(),
            None if self.fact == "op" => {
                return match (&self.before, &self.after) {
                    (Some(before), Some(after)) => {
                        format!("the instruction changed: was {}, is {}", shown(before), shown(after))
                    }
                    _ => "the instruction changed".into(),
                };
            }
            None => self.fact.clone(),
        };
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => format!("{name} changed: was {}, is {}", shown(before), shown(after)),
            (None, Some(after)) => format!("{name} is new: {}", shown(after)),
            (Some(before), None) => format!("{name} is gone: was {}", shown(before)),
            (None, None) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_changed_new_and_gone() {
        let mut before = Facts::new("p", "RUN x");
        before.add("env A", "1");
        before.add("env B", "1");
        let mut now = Facts::new("q", "RUN x");
        now.add("env A", "2");
        now.add("arg C", "3");
        let told: Vec<_> = differences(&before, &now, &["parent"]).iter().map(Difference::describe).collect();
        assert_eq!(told, ["ENV A changed: was `1`, is `2`", "ARG C is new: `3`", "ENV B is gone: was `1`"]);
    }
}
