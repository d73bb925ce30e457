//! Which controllers are to be had in which hierarchy.

use super::Version;
use super::hierarchy::{Hierarchies, Hierarchy};
use super::limits::{Controller, Limits};
use crate::diag::{Diagnostic, Result};

/// A group to be made, in one hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub struct Assignment<'a> {
    pub version: Version,
    pub hierarchy: &'a Hierarchy,
    /// That set limits.
    pub needed: Vec<Controller>,
    /// That count, or are there for the sake of `--cgroup-parent`.
    pub wished: Vec<Controller>,
}

/// Spreads the controllers that `limits` take over the hierarchies. `of_v2` is what version 2 says
/// it has.
pub fn assign<'a>(hierarchies: &'a Hierarchies, of_v2: &[String], limits: &Limits) -> Result<Vec<Assignment<'a>>> {
    let mut assignments: Vec<Assignment<'_>> = Vec::new();
    let needed = limits.needed();
    // A group to be below has limits of its own, of any kind.
    let wished: &[Controller] = if limits.parent.is_some() { &Controller::ALL } else { &Controller::COUNTING };
    for controller in needed.iter().chain(wished).copied() {
        let is_needed = needed.contains(&controller);
        let Some((version, hierarchy)) = place(hierarchies, of_v2, controller) else {
            if is_needed {
                let name = controller.name_in_v2().unwrap_or(controller.name_in_v1());
                return Err(Diagnostic::error(format!("cannot limit {} of a step", controller.subject()))
                    .caused_by(format!("this host has no cgroup controller `{name}`")));
            }
            continue;
        };
        let known = assignments.iter().position(|known| known.hierarchy == hierarchy);
        let known = known.unwrap_or_else(|| {
            assignments.push(Assignment { version, hierarchy, needed: Vec::new(), wished: Vec::new() });
            assignments.len() - 1
        });
        let Assignment { needed, wished, .. } = &mut assignments[known];
        let list = if is_needed { needed } else { wished };
        if !list.contains(&controller) {
            list.push(controller);
        }
    }
    if assignments.is_empty() {
        return Err(Diagnostic::error("cannot make a cgroup for a step").caused_by("this host has none mounted"));
    }
    Ok(assignments)
}

/// Version 2 where it has the controller, or where there is nothing else to have it.
fn place<'a>(
    hierarchies: &'a Hierarchies,
    of_v2: &[String],
    controller: Controller,
) -> Option<(Version, &'a Hierarchy)> {
    let in_v1 = hierarchies.v1_of(controller).map(|v1| (Version::One, v1));
    let in_v2 = hierarchies.v2.as_ref().map(|v2| (Version::Two, v2));
    match controller.name_in_v2() {
        Some(name) if of_v2.iter().any(|known| known == name) => in_v2,
        _ if hierarchies.v1.is_empty() => in_v2,
        _ => in_v1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(mount: &str, controllers: &[&str]) -> Hierarchy {
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        Hierarchy { mount: mount.into(), own: "".into(), controllers }
    }

    /// What is assigned where, as in `/memory needs [Memory] wishes []`.
    fn assigned(v1: &[Hierarchy], v2: Option<&str>, of_v2: &[&str], limits: &Limits) -> Result<Vec<String>, String> {
        let hierarchies = Hierarchies { v1: v1.to_vec(), v2: v2.map(|mount| hierarchy(mount, &[])) };
        let of_v2: Vec<String> = of_v2.iter().map(|name| (*name).to_owned()).collect();
        let shown =
            |a: &Assignment<'_>| format!("{} needs {:?} wishes {:?}", a.hierarchy.mount.display(), a.needed, a.wished);
        let assigned = assign(&hierarchies, &of_v2, limits);
        assigned.map(|list| list.iter().map(shown).collect()).map_err(|error| error.cause.unwrap_or(error.message))
    }

    #[test]
    fn controllers_go_where_they_are() {
        let v1 = [hierarchy("/cpu", &["cpu", "cpuacct"]), hierarchy("/memory", &["memory"])];
        let limits = Limits { memory_bytes: Some(1), cpu_shares: Some(2), ..Limits::default() };
        assert_eq!(
            assigned(&v1, Some("/unified"), &["io"], &limits).unwrap(),
            [
                "/memory needs [Memory] wishes []",
                "/cpu needs [Cpu] wishes [CpuAccounting]",
                "/unified needs [] wishes [Io]"
            ]
        );
        assert_eq!(
            assigned(&[], Some("/cgroup"), &["memory", "cpu"], &limits).unwrap(),
            ["/cgroup needs [Memory, Cpu] wishes [CpuAccounting, Io]"]
        );
        let pids = Limits { pids: Some(1), ..Limits::default() };
        assert_eq!(assigned(&v1, None, &[], &pids).unwrap_err(), "this host has no cgroup controller `pids`");
        let counted = Limits { is_counted: true, ..Limits::default() };
        assert_eq!(assigned(&[], None, &[], &counted).unwrap_err(), "this host has none mounted");
        let below = Limits { parent: Some("x".into()), ..Limits::default() };
        assert_eq!(
            assigned(&v1, None, &[], &below).unwrap(),
            ["/memory needs [] wishes [Memory]", "/cpu needs [] wishes [Cpu, CpuAccounting]"]
        );
    }
}
