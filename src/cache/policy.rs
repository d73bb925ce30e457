//! What is to go: by age, by kind and text, and by how much room there is.

use regex::Regex;

use super::inventory::{Inventory, Item, Kind, What};
use crate::diag::{Diagnostic, Result, nearest};

/// What a prune takes. With nothing set it takes everything.
#[derive(Debug, Default)]
pub struct Policy {
    /// All of them must hold.
    pub filters: Vec<Filter>,
    /// Only what was last used before this, in seconds since the epoch.
    pub unused_since: Option<i64>,
    /// Only until this is reached, what was unused the longest first.
    pub limit: Option<Limit>,
}

/// How large a store may be. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub max_used_bytes: Option<u64>,
    /// So much of the filesystem is to be free.
    pub min_free_bytes: Option<u64>,
    /// The store may always be as large as this.
    pub reserved_bytes: u64,
}

impl Limit {
    /// BuildKit's: at most 100 GB and no more than 80 % of the filesystem; a fifth of that is to be free;
    /// 10 GB, or a tenth of the filesystem, may always be used.
    pub fn usual(filesystem_bytes: u64) -> Self {
        const GB: u64 = 1_000_000_000;
        Self {
            max_used_bytes: Some((filesystem_bytes / 10 * 8).min(100 * GB)),
            min_free_bytes: Some(filesystem_bytes / 10 * 2),
            reserved_bytes: (filesystem_bytes / 10).min(10 * GB),
        }
    }

    /// How large a store of `used_bytes` may be on a filesystem with `free_bytes` left.
    pub fn allowed_bytes(&self, used_bytes: u64, free_bytes: u64) -> u64 {
        let lacking = self.min_free_bytes.map_or(0, |min| min.saturating_sub(free_bytes));
        let by_free = if lacking > 0 { used_bytes.saturating_sub(lacking) } else { u64::MAX };
        by_free.min(self.max_used_bytes.unwrap_or(u64::MAX)).max(self.reserved_bytes)
    }
}

/// `key=value`, `key!=value`, `key~=value`, as `docker builder prune --filter` has it.
#[derive(Debug)]
pub struct Filter {
    test: Test,
    is_negated: bool,
}

#[derive(Debug)]
enum Test {
    Id(Regex),
    Kind(Regex),
    Title(Regex),
    InUse,
    Shared,
    Mutable,
    /// Last used before this.
    Until(i64),
}

const KEYS: [&str; 9] = ["description", "id", "immutable", "inuse", "mutable", "private", "shared", "type", "until"];

impl Filter {
    /// `now` in seconds since the epoch; `age` reads one as in `24h`.
    pub fn parse(text: &str, now: i64, age: impl Fn(&str) -> Option<i64>) -> Result<Self> {
        let end = text.find(['=', '!', '~']).unwrap_or(text.len());
        let (key, rest) = text.split_at(end);
        let (operator, value) = match rest {
            "" => ("=", "true"),
            rest => {
                match ["!=", "~=", "="].iter().find_map(|operator| Some((*operator, rest.strip_prefix(*operator)?))) {
                    Some(split) => split,
                    None => return Err(wrong(text, "write it as KEY=VALUE, KEY!=VALUE or KEY~=EXPRESSION")),
                }
            }
        };
        let matcher = || {
            let expression = match operator {
                "~=" => value.to_owned(),
                // An ID may be given by its beginning.
                _ if key == "id" => format!("^{}", regex::escape(value)),
                _ => format!("^{}$", regex::escape(value)),
            };
            Regex::new(&expression).map_err(|error| {
                wrong(text, "the expression cannot be read").caused_by(error.to_string().lines().last().unwrap_or(""))
            })
        };
        let (test, is_flag) = match key {
            "id" => (Test::Id(matcher()?), false),
            "type" => {
                if operator != "~=" && !Kind::ALL.iter().any(|kind| kind.name() == value) {
                    let known = Kind::ALL.map(Kind::name).join(", ");
                    return Err(wrong(text, &format!("there is no type `{value}`; known are {known}")));
                }
                (Test::Kind(matcher()?), false)
            }
            "description" => (Test::Title(matcher()?), false),
            "until" => match age(value) {
                Some(age) if operator == "=" => (Test::Until(now - age), false),
                Some(_) => return Err(wrong(text, "`until` takes `=` only")),
                None => {
                    return Err(wrong(text, &format!("`{value}` is not an age: use a number with s, m, h, d or w")));
                }
            },
            "inuse" => (Test::InUse, true),
            "shared" | "private" => (Test::Shared, true),
            "mutable" | "immutable" => (Test::Mutable, true),
            _ => {
                let error = wrong(text, &format!("there is no key `{key}`; known are {}", KEYS.join(", ")));
                return Err(match nearest(key, KEYS.iter().copied()) {
                    Some(nearest) => error.hint(format!("did you mean `{nearest}`?")),
                    None => error,
                });
            }
        };
        let is_wanted = match (is_flag, value) {
            (false, _) | (true, "true" | "1") => true,
            (true, "false" | "0") => false,
            (true, _) => return Err(wrong(text, &format!("`{key}` is true or false"))),
        };
        if is_flag && operator == "~=" {
            return Err(wrong(text, &format!("`{key}` is true or false")));
        }
        let is_opposite = matches!(key, "private" | "immutable");
        Ok(Self { test, is_negated: (operator == "!=") ^ !is_wanted ^ is_opposite })
    }

    pub fn holds(&self, item: &Item) -> bool {
        let holds = match &self.test {
            Test::Id(expression) => expression.is_match(&item.id),
            Test::Kind(expression) => expression.is_match(item.kind.name()),
            Test::Title(expression) => expression.is_match(&item.title),
            Test::InUse => item.is_in_use,
            Test::Shared => item.is_shared,
            Test::Mutable => item.kind == Kind::CacheMount,
            Test::Until(time) => item.last_used < *time,
        };
        holds != self.is_negated
    }
}

fn wrong(text: &str, why: &str) -> Diagnostic {
    Diagnostic::error(format!("`--filter {text}`: {why}"))
}

/// Why something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grounds {
    /// It was asked for.
    Asked,
    /// It was unused for longer than was asked for.
    Unused,
    /// The store is larger than it may be, by so many bytes when this item's turn came.
    TooLarge { excess_bytes: u64 },
}

/// The places of the items that go and why; of those that are in use none. `free_bytes` are left on the
/// filesystem.
pub(super) fn choose(inventory: &Inventory, policy: &Policy, free_bytes: u64) -> Vec<(usize, Grounds)> {
    let mut used_bytes = inventory.total_bytes();
    let allowed_bytes = policy.limit.map(|limit| limit.allowed_bytes(used_bytes, free_bytes));
    let mut users: Vec<usize> = inventory.objects.iter().map(|object| object.users).collect();
    let mut chosen = Vec::new();
    for (place, item) in inventory.items.iter().enumerate() {
        let is_old = policy.unused_since.is_none_or(|since| item.last_used < since);
        if item.is_in_use || !is_old || !policy.filters.iter().all(|filter| filter.holds(item)) {
            continue;
        }
        let own_bytes: u64 = item.objects.iter().map(|object| inventory.objects[*object].size_bytes).sum();
        let mut freed_bytes = if item.objects.is_empty() { item.size_bytes } else { 0 };
        for object in &item.objects {
            if users[*object] == 1 && !inventory.objects[*object].is_pinned {
                freed_bytes += inventory.objects[*object].size_bytes;
            }
        }
        if let Some(allowed_bytes) = allowed_bytes {
            if used_bytes <= allowed_bytes {
                break;
            }
            // One whose files others need too goes with the last of them; one that only an image needs
            // makes no room.
            let is_pinned = item.objects.iter().any(|object| inventory.objects[*object].is_pinned);
            // A directory of links has no size, but keeps what it links to.
            if freed_bytes == 0 && item.what != What::Objects && (own_bytes == 0 || is_pinned) {
                continue;
            }
        }
        for object in &item.objects {
            users[*object] -= 1;
        }
        let reason = match (allowed_bytes, policy.unused_since) {
            (Some(allowed_bytes), _) => Grounds::TooLarge { excess_bytes: used_bytes - allowed_bytes },
            (None, Some(_)) => Grounds::Unused,
            (None, None) => Grounds::Asked,
        };
        used_bytes -= freed_bytes.min(used_bytes);
        chosen.push((place, reason));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    /// `until=2h` and the like at noon of a day, which is second 43 200.
    fn filter(text: &str) -> Result<Filter> {
        Filter::parse(text, 43_200, |age| age.strip_suffix('h')?.parse::<i64>().ok().map(|hours| hours * 3_600))
    }

    #[test]
    fn filters_hold_for_what_they_say() {
        let step = Item::new(Kind::Regular, "abcdef".into(), "RUN make".into(), 36_000);
        let mount = Item::new(Kind::CacheMount, "123456".into(), "cache mount /c".into(), 42_000);
        for (text, holds_for_step, holds_for_mount) in [
            ("type=regular", true, false),
            ("type!=regular", false, true),
            ("type~=^exec", false, true),
            ("id=abc", true, false),
            ("id=bcd", false, false),
            ("id!=abc", false, true),
            ("id~=cd", true, false),
            ("description=RUN make", true, false),
            ("description=RUN", false, false),
            ("description~=make|mount", true, true),
            ("until=1h", true, false),
            ("until=3h", false, false),
            ("mutable", false, true),
            ("mutable=false", true, false),
            ("immutable=true", true, false),
            ("immutable!=true", false, true),
            ("inuse", false, false),
            ("shared=0", true, true),
            ("private", true, true),
        ] {
            let filter = filter(text).unwrap();
            assert_eq!((filter.holds(&step), filter.holds(&mount)), (holds_for_step, holds_for_mount), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_a_filter_is_said() {
        for (text, why) in [
            ("type=regulr", "there is no type `regulr`"),
            ("typ=regular", "there is no key `typ`"),
            ("until=soon", "`soon` is not an age"),
            ("until!=1h", "`until` takes `=` only"),
            ("inuse=maybe", "`inuse` is true or false"),
            ("inuse~=true", "`inuse` is true or false"),
            ("id~=(", "the expression cannot be read"),
            ("id!abc", "write it as"),
        ] {
            let error = filter(text).unwrap_err();
            assert!(error.message.contains(why), "{text}: {}", error.message);
        }
    }

    #[test]
    fn a_limit_heeds_size_free_room_and_what_is_reserved() {
        let limit =
            |max, min_free, reserved_bytes| Limit { max_used_bytes: max, min_free_bytes: min_free, reserved_bytes };
        for (limit, used, free, allowed) in [
            (limit(Some(50), None, 0), 80, 0, 50),
            (limit(None, Some(30), 0), 80, 40, u64::MAX),
            (limit(None, Some(30), 0), 80, 10, 60),
            (limit(None, Some(300), 0), 80, 10, 0),
            (limit(None, Some(300), 20), 80, 10, 20),
            (limit(Some(70), Some(30), 0), 80, 10, 60),
            (limit(Some(50), Some(30), 0), 80, 10, 50),
        ] {
            assert_eq!(limit.allowed_bytes(used, free), allowed, "{limit:?} of {used}, {free} free");
        }
        assert_eq!(Limit::usual(50 * GB), limit(Some(40 * GB), Some(10 * GB), 5 * GB));
        assert_eq!(Limit::usual(1_000 * GB), limit(Some(100 * GB), Some(200 * GB), 10 * GB));
    }
}
