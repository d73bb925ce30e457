//! Walks the plan: for each step whose inputs are known, key → look up → run or copy → commit.
//! Stages that do not need each other run in parallel.
//!
//! ```text
//! first pass    every step in order, as far as the cache knows: no thread, no mount, no process
//! second pass   what is left, on as many threads as there are stages to run
//! ```

mod ahead;
mod commit;
mod copy;
mod devices;
mod download;
mod execute;
mod explain;
mod facts;
mod footing;
mod held;
mod input;
mod layers;
mod network;
mod outline;
mod pending;
mod prefetch;
mod relief;
mod schedule;
mod stack;
mod wreck;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use self::input::Keeps;
use self::pending::{Executed, Pending};
use crate::cache::{Facts, Record, Records};
use crate::container::{Dns, HostAddress, Limits, Rung};
use crate::diag::Result;
use crate::host::{self, Host};
use crate::plan::{BaseKey, Op, Plan, Root, StepId};
use crate::progress::{Event, Number, Outcome};
use crate::store::ImageRecord;

pub use explain::{Explained, explain};
pub use layers::Layers;
pub use stack::{Stack, StackLayer, Standing};

/// What the command line says about solving.
#[derive(Clone, Debug)]
pub struct Settings {
    pub no_cache: NoCache,
    /// Names the Dockerfile: the first part of every slot.
    pub slot: String,
    /// How many steps may run at once.
    pub jobs: usize,
    /// How many threads may read files for one copy.
    pub hash_threads: usize,
    pub hostname: String,
    /// `--add-host`.
    pub extra_hosts: Vec<(String, HostAddress)>,
    /// No fact of any key: how names are found decides no more than what answers.
    pub dns: Dns,
    pub shm_size_bytes: u64,
    /// `(name, soft, hard)`.
    pub ulimits: Vec<(String, u64, u64)>,
    /// Of all processes of a RUN together. They decide whether it ends well, not what it makes: no part of
    /// a key.
    pub limits: Limits,
    /// How long a RUN may take.
    pub timeout: Option<Duration>,
    /// `BUILDKIT_CACHE_MOUNT_NS`.
    pub cache_mount_namespace: String,
    /// Where specifications of devices are, what is found later wins.
    pub device_directories: Vec<PathBuf>,
    /// The devices or kinds that `--allow device=` names; an empty name is all.
    pub allowed_devices: Vec<String>,
    /// What steps are to stand on, where the best there is will not do: for tests.
    pub footing: Option<Rung>,
    /// Whether an output takes the files of the image, and not its layers.
    pub exports_files: bool,
    /// `--explain`: whether to say of each step that runs what changed.
    pub explains: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    #[default]
    Never,
    All,
    /// Lower-cased stage names.
    Stages(BTreeSet<String>),
}

/// A step that is done.
#[derive(Clone, Debug)]
pub struct Solved {
    /// The rootfs after the step.
    pub stack: Stack,
    pub outcome: Outcome,
    /// `created` of its history entry; `None` for a step that only sets metadata.
    pub created: Option<String>,
    pub made_layer: bool,
    /// Bytes of files it added; `None` where it made no layer.
    pub added_bytes: Option<u64>,
    /// The op of a step that changed nothing.
    idle_op: Option<String>,
}

/// How long what was found of a step that misses is taken as it is.
const FRESH: Duration = Duration::from_secs(1);

/// Everything the steps of one build share.
pub struct Solver<'a> {
    plan: &'a Plan,
    host: &'a Host<'a>,
    settings: &'a Settings,
    bases: &'a BTreeMap<BaseKey, ImageRecord>,
    records: Records<'a>,
    solved: Vec<OnceLock<Arc<Solved>>>,
    layers: &'a Layers<'a>,
    inputs: input::Inputs,
    /// Set once the user was told what is wrong with the network of steps.
    is_network_told: AtomicBool,
    wreck: Mutex<Option<wreck::Wreck>>,
    footing: Mutex<footing::Found>,
    /// Not so while looking: what must be fetched is fetched by the threads that run steps.
    may_fetch: AtomicBool,
    /// Whether files of a copy may be left for later where they are not needed to look for a record.
    leaves_unread: bool,
    /// Steps that the first pass has found to miss, and when.
    missed: Mutex<BTreeMap<StepId, (Instant, Keyed)>>,
    /// Steps that are being hashed while others run over them.
    pending: Mutex<BTreeMap<StepId, Arc<Pending>>>,
    /// Held by who mounts layers, lest they are moved meanwhile.
    moving: RwLock<()>,
    begun: Instant,
}

/// Results by step, for all steps of the plan.
pub struct Solution(Vec<Arc<Solved>>);

impl Solution {
    pub fn of(&self, id: StepId) -> &Solved {
        &self.0[id.0]
    }
}

/// Solves every step of `plan`. On the first failure the others are stopped and its diagnostic is
/// returned; what was committed by then stays in the cache.
pub fn solve(
    plan: &Plan,
    host: &Host<'_>,
    settings: &Settings,
    bases: &BTreeMap<BaseKey, ImageRecord>,
    layers: &Layers<'_>,
) -> Result<Solution> {
    // What is not read cannot be compared.
    let leaves_unread = !settings.explains;
    let solver = Solver { leaves_unread, ..Solver::new(plan, host, settings, bases, layers) };
    let done = solver.first_pass().and_then(|()| {
        if solver.solved.iter().any(|step| step.get().is_none()) {
            // What was hashed is not to be hashed again by a process that enters.
            solver.inputs.save();
            host.store.enter()?;
            solver.expect_networks((0..plan.steps.len()).map(StepId));
            solver.pack_ahead((0..plan.steps.len()).map(StepId));
        }
        solver.may_fetch.store(true, Ordering::Relaxed);
        schedule::run(&solver)
    });
    if let Err(failure) = done {
        solver.show_wreck(&failure);
        return Err(failure);
    }
    solver.inputs.save();
    let solved = solver.solved.into_iter().map(OnceLock::into_inner);
    // The schedule ends without an error only when every step is solved.
    #[allow(clippy::expect_used)]
    Ok(Solution(solved.map(|step| step.expect("every step is solved")).collect()))
}

/// What the cache says of a step.
enum Lookup {
    Hit(Solved),
    Miss(Keyed),
}

/// How far a step was brought.
enum Brought {
    Solved(Solved),
    Executed(Executed),
}

/// The facts of a step and what was read to find them.
struct Keyed {
    facts: Facts,
    /// What a COPY, ADD or bind mount will read.
    reads: input::Reads,
}

impl Keyed {
    /// Whether to look again could not tell more than that the step has to be brought to its end.
    fn is_known(&self) -> bool {
        let is_surveyed = matches!(self.reads.sources.as_slice(), [input::Read::Surveyed { .. }]);
        is_surveyed || self.facts.iter().all(|(_, value)| !value.contains(facts::UNKNOWN))
    }
}

impl<'a> Solver<'a> {
    fn new(
        plan: &'a Plan,
        host: &'a Host<'a>,
        settings: &'a Settings,
        bases: &'a BTreeMap<BaseKey, ImageRecord>,
        layers: &'a Layers<'a>,
    ) -> Self {
        Self {
            plan,
            host,
            settings,
            bases,
            records: Records::of(host.store),
            solved: plan.steps.iter().map(|_| OnceLock::new()).collect(),
            layers,
            inputs: input::Inputs::default(),
            is_network_told: AtomicBool::new(false),
            wreck: Mutex::default(),
            footing: footing::Found::new(settings.footing),
            may_fetch: AtomicBool::new(false),
            leaves_unread: false,
            missed: Mutex::default(),
            pending: Mutex::default(),
            moving: RwLock::default(),
            begun: Instant::now(),
        }
    }

    fn get(&self, id: StepId) -> Option<&Arc<Solved>> {
        self.solved[id.0].get()
    }

    fn set(&self, id: StepId, solved: Solved) {
        // Each step is solved once: by the first pass, or by the one thread it was scheduled to.
        let _ = self.solved[id.0].set(Arc::new(solved));
    }

    /// The steps that must be solved before `id`.
    fn needs(&self, id: StepId) -> Vec<StepId> {
        let step = self.plan.step(id);
        let mut needs: Vec<_> = step.parent.into_iter().collect();
        needs.extend(input::inputs(&step.op).into_iter().filter_map(|input| match input {
            crate::plan::Input::Step(id) => Some(*id),
            _ => None,
        }));
        needs
    }

    /// Solves, in order, every step the cache knows and every step that costs nothing.
    fn first_pass(&self) -> Result<()> {
        let mut is_expecting = false;
        for index in 0..self.plan.steps.len() {
            let id = StepId(index);
            if self.host.is_canceled() {
                return Err(canceled());
            }
            let is_ready = self.needs(id).iter().all(|need| self.get(*need).is_some());
            let found = if is_ready { Some(self.look_up(id)?) } else { None };
            let Some(Lookup::Hit(solved)) = found else {
                if let Some(Lookup::Miss(key)) = found
                    && key.is_known()
                {
                    self.missed.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (Instant::now(), key));
                }
                // What stands on a miss misses too, nearly always.
                if !is_expecting && self.wants_network(id) {
                    is_expecting = true;
                    self.expect_networks(std::iter::once(id));
                }
                continue;
            };
            let step = self.plan.step(id);
            if is_shown(&step.op) {
                let number = self.number();
                self.host.reporter.report(Event::Started { number, title: &step.title });
                self.finished(number, &solved, Duration::ZERO);
            }
            self.set(id, solved);
        }
        Ok(())
    }

    /// Brings one step to its end, on whatever thread: looks it up once more (its inputs may have
    /// just been solved), and executes it if need be. Where its layer takes long to hash, that is left to another
    /// thread, and the next step is named that is to run meanwhile; `claim` says whether it may.
    fn bring(&self, id: StepId, claim: &dyn Fn(StepId) -> bool) -> Result<Option<(Executed, StepId)>> {
        let step = self.plan.step(id);
        let number = self.number();
        if is_shown(&step.op) {
            self.host.reporter.report(Event::Started { number, title: &step.title });
        }
        let started = Instant::now();
        let brought = self.bring_quietly(id, number, started).and_then(|brought| match brought {
            Brought::Executed(mut executed) => match self.follower(&executed)?.filter(|follower| claim(*follower)) {
                Some(follower) => {
                    self.let_stand(&mut executed)?;
                    Ok((Brought::Executed(executed), Some(follower)))
                }
                None => Ok((Brought::Executed(executed), None)),
            },
            solved => Ok((solved, None)),
        });
        match brought {
            Ok((Brought::Executed(executed), Some(follower))) => Ok(Some((executed, follower))),
            Ok((Brought::Executed(executed), None)) => self.finish(executed).map(|()| None),
            Ok((Brought::Solved(solved), _)) => self.end(id, number, started, Ok(solved)).map(|()| None),
            Err(fault) => self.end(id, number, started, Err(fault)).map(|()| None),
        }
    }

    fn bring_quietly(&self, id: StepId, number: Number, started: Instant) -> Result<Brought> {
        let parent = self.pending_below(id);
        let mut key = match &parent {
            Some(_) => self.facts(id, Some(&self.below(id)), Keeps::Listings)?,
            None => match self.missed(id).map_or_else(|| self.look_up(id), |key| Ok(Lookup::Miss(key)))? {
                Lookup::Hit(solved) => return Ok(Brought::Solved(solved)),
                Lookup::Miss(key) => key,
            },
        };
        // Before a new record becomes the one to compare with.
        let reasons = if self.settings.explains { self.why(id, &key)? } else { Vec::new() };
        self.host.reporter.report(Event::Missed { number, reasons: &reasons });
        let mut begun = Instant::now();
        let made = self.made_unread(id, &mut key)?;
        let mut lock = None;
        match &parent {
            Some(parent) => parent.expect(&key.facts),
            None => {
                // Another builder may be at the same step: wait for it, then take its result.
                lock = Some(self.host.store.lock_key(&key.facts.key(), || {})?);
                if self.asks_cache(id)
                    && let Some(solved) = self.recorded(id, &key.facts)?
                {
                    return Ok(Brought::Solved(solved));
                }
            }
        }
        let (made, usage) = match made {
            Some(made) => {
                self.remember_listing(&key)?;
                (made, None)
            }
            None => {
                begun = Instant::now();
                self.execute(id, number, &mut key)?
            }
        };
        let facts = key.facts;
        Ok(Brought::Executed(Executed { id, number, started, begun, made, usage, facts, lock, parent, pending: None }))
    }

    /// What was found of a step that misses, if that is not long ago: who changes a context while a step waits for its
    /// turn has done nothing wrong.
    fn missed(&self, id: StepId) -> Option<Keyed> {
        let missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        missed.filter(|(found, _)| found.elapsed() < FRESH).map(|(_, key)| key)
    }

    /// Tells how a step ended, and keeps its result for those that stand on it.
    fn end(&self, id: StepId, number: Number, started: Instant, result: Result<Solved>) -> Result<()> {
        match &result {
            Ok(solved) if is_shown(&self.plan.step(id).op) => self.finished(number, solved, started.elapsed()),
            Ok(_) => {}
            Err(fault) => {
                let outcome = if self.host.is_canceled() { Outcome::Canceled } else { Outcome::Failed };
                if outcome == Outcome::Failed {
                    self.host.reporter.report(Event::Fault { number, message: &fault.message });
                }
                let elapsed = started.elapsed();
                self.host.reporter.report(Event::Finished { number, outcome, elapsed, added_bytes: None });
            }
        }
        self.set(id, result?);
        self.pack_ahead(std::iter::once(id));
        Ok(())
    }

    fn finished(&self, number: Number, solved: &Solved, elapsed: Duration) {
        let (outcome, added_bytes) = (solved.outcome, solved.added_bytes);
        self.host.reporter.report(Event::Finished { number, outcome, elapsed, added_bytes });
    }

    fn number(&self) -> Number {
        self.host.numbers.next()
    }

    /// Finds what a step whose inputs are solved gives, without executing anything.
    fn look_up(&self, id: StepId) -> Result<Lookup> {
        match &self.plan.step(id).op {
            Op::From(root) => match root {
                Root::Scratch => Ok(Lookup::Hit(self.root(Stack::default()))),
                Root::Image(key) => Ok(Lookup::Hit(self.root(self.base_stack(key)))),
                Root::Directory(_) => self.look_up_record(id, &Stack::default()),
            },
            Op::Configure => Ok(Lookup::Hit(Solved {
                stack: self.below(id),
                outcome: Outcome::Cached,
                created: None,
                made_layer: false,
                added_bytes: None,
                idle_op: None,
            })),
            Op::Run(_) | Op::Copy(_) | Op::Workdir(_) => self.look_up_record(id, &self.below(id)),
        }
    }

    fn look_up_record(&self, id: StepId, parent: &Stack) -> Result<Lookup> {
        if self.asks_cache(id) {
            let key = self.facts(id, Some(parent), Keeps::Digests)?;
            if let Some(solved) = self.recorded(id, &key.facts)? {
                return Ok(Lookup::Hit(solved));
            }
            if !key.reads.are_digested() {
                return Ok(Lookup::Miss(key));
            }
        }
        self.facts(id, Some(parent), Keeps::Listings).map(Lookup::Miss)
    }

    /// The result that the record of `facts` names, if record and layer are there and whole.
    fn recorded(&self, id: StepId, facts: &Facts) -> Result<Option<Solved>> {
        match self.records.hit(&facts.key())? {
            Some(record) => self.adopt(id, &record, Outcome::Cached),
            None => Ok(None),
        }
    }

    /// The state after a step whose result is `record`; `None` when its layer is gone.
    fn adopt(&self, id: StepId, record: &Record, outcome: Outcome) -> Result<Option<Solved>> {
        let step = self.plan.step(id);
        let below = self.below(id);
        let solved = match &record.layer {
            None => Solved {
                stack: below,
                outcome,
                created: Some(record.created.clone()),
                made_layer: false,
                added_bytes: None,
                idle_op: record.facts.get("op").map(str::to_owned),
            },
            Some(result) => {
                let standing = standing(&step.op);
                if !self.layers.can_be_had(&below.id_above(&result.diff_id, standing), &result.diff_id)? {
                    return Ok(None);
                }
                Solved {
                    stack: below.with(result.diff_id, standing),
                    outcome,
                    created: Some(record.created.clone()),
                    made_layer: true,
                    added_bytes: Some(result.size_bytes),
                    idle_op: None,
                }
            }
        };
        Ok(Some(solved))
    }

    fn root(&self, stack: Stack) -> Solved {
        Solved { stack, outcome: Outcome::Cached, created: None, made_layer: false, added_bytes: None, idle_op: None }
    }

    fn base_stack(&self, key: &BaseKey) -> Stack {
        // The planner asked for every base before it used one.
        let diff_ids: Vec<_> = self.bases[key].layers.iter().map(|layer| layer.diff_id).collect();
        Stack::of_image(&diff_ids)
    }

    fn asks_cache(&self, id: StepId) -> bool {
        match &self.settings.no_cache {
            NoCache::Never => true,
            NoCache::All => false,
            NoCache::Stages(stages) => !stages.contains(&self.plan.step(id).stage),
        }
    }

    /// Whether there could be a record of a step of which not all is known yet.
    fn may_hit(&self, id: StepId) -> Result<bool> {
        let Some(op) = facts::op_fact(&self.plan.step(id).op) else { return Ok(true) };
        Ok(self.asks_cache(id) && self.records.has_any_like(&op, &self.slot(id))?)
    }

    /// Where this step stands, for finding what was there before.
    fn slot(&self, id: StepId) -> String {
        let step = self.plan.step(id);
        let place = (0..id.0).filter(|earlier| self.plan.steps[*earlier].stage == step.stage).count();
        format!("{}\n{}\n{place}", self.settings.slot, step.stage)
    }

    fn created(&self) -> String {
        host::rfc3339(self.host.now())
    }
}

/// Metadata steps and empty roots are not told of: they cost nothing and there are many.
fn is_shown(op: &Op) -> bool {
    !matches!(op, Op::Configure | Op::From(Root::Scratch))
}

fn standing(op: &Op) -> Standing {
    match op {
        Op::Copy(copy) if copy.is_link => Standing::Alone,
        _ => Standing::OnStack,
    }
}

fn canceled() -> crate::diag::Diagnostic {
    crate::diag::Diagnostic::error("the build was canceled")
}
