//! The steps of a plan and what each does, with every variable expanded.

use std::sync::Arc;

use crate::diag::{Diagnostic, Source, Span};
use crate::image::Platform;
use crate::location::GitLocation;

/// Index into [`super::Plan::steps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub usize);

/// A value and where it stands, for errors found while executing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    pub text: String,
    pub source: Arc<Source>,
    pub span: Span,
}

impl Located {
    /// An error that points at this value.
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(message).at(&self.source, self.span, "")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub op: Op,
    /// `None` for [`Op::From`] alone.
    pub parent: Option<StepId>,
    /// `[build 2/5] RUN make`: stage name and numbering as BuildKit shows them. Metadata steps are
    /// not numbered and have the plain text.
    pub title: String,
    /// The name of its stage: `AS name`, or `stage-N`.
    pub stage: String,
    /// The text of the history entry (`created_by`), without a ` # buildkit` suffix; none for FROM, unless it is
    /// of a directory.
    pub history: Option<String>,
    /// The instruction, for errors.
    pub source: Arc<Source>,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    From(Root),
    Run(Run),
    Copy(Copy),
    Workdir(Workdir),
    /// Metadata: a history entry and nothing else.
    Configure,
}

/// What a stage begins with, when it is no earlier stage (then its first step's parent is that
/// stage's last step and there is no `From`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    Scratch,
    Image(BaseKey),
    /// A named context that is a directory: its files are the root.
    Directory(String),
}

/// A name to be resolved outside the Dockerfile: an image reference or a named context.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseKey {
    /// As written, variables expanded.
    pub name: String,
    pub platform: Platform,
}

/// Where COPY, ADD and mounts read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The build context.
    Context,
    /// A named context that is a directory.
    Directory(String),
    /// The rootfs after a step.
    Step(StepId),
    Image(BaseKey),
    /// Nothing: an empty root (a cache mount without `from`).
    Scratch,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    #[default]
    Default,
    None,
    Host,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    #[default]
    Sandbox,
    Insecure,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What is executed, the shell included. `argv[0]` is looked up in the image's PATH.
    pub argv: Vec<String>,
    /// The image's ENV at this point, in order.
    pub env: Vec<(String, String)>,
    /// ARGs in scope with a value, in order of declaration. Each has the value in force, be it that of a
    /// later ENV: put over `env`, they give what the process sees. Part of the key, by name.
    pub args: Vec<(String, String)>,
    /// Predefined proxy variables that the Dockerfile did not declare: passed to the process, part
    /// of neither key nor history.
    pub proxies: Vec<(String, String)>,
    /// Absolute and clean.
    pub workdir: String,
    /// USER as written, expanded; empty for root.
    pub user: Option<Located>,
    pub network: Network,
    pub security: Security,
    pub mounts: Vec<RunMount>,
    pub devices: Vec<RunDevice>,
    /// Scripts of `#!` heredocs, mounted read-only as `/dev/pipes/<name>`, mode 0755.
    pub heredocs: Vec<HeredocFile>,
    /// The platform the rootfs is for.
    pub platform: Platform,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeredocFile {
    pub name: String,
    pub content: String,
}

/// A device of the machine, named as the Container Device Interface names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDevice {
    pub name: String,
    /// Without it the step fails.
    pub is_required: bool,
    pub source: Arc<Source>,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunMount {
    pub kind: RunMountKind,
    /// Absolute and clean, inside the container. Empty only for a secret that is an environment
    /// variable alone.
    pub target: String,
    pub source: Arc<Source>,
    pub span: Span,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    #[default]
    Shared,
    Private,
    Locked,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunMountKind {
    Bind {
        from: Input,
        /// Below the root of `from`; `/` for all of it.
        source: String,
        /// Writes are allowed and discarded.
        is_writable: bool,
    },
    Cache {
        id: String,
        sharing: Sharing,
        /// What a new cache starts with.
        from: Input,
        source: String,
        is_readonly: bool,
        /// Those of what it starts with, where nothing is said; else 0755 and root.
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Tmpfs {
        size_bytes: Option<u64>,
    },
    Secret {
        id: String,
        /// Also, or only, this environment variable.
        env: Option<String>,
        is_required: bool,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    /// A socket of the agent. The target of the first one is `SSH_AUTH_SOCK`, unless that is set.
    Ssh {
        id: String,
        is_required: bool,
        mode: u32,
        uid: u32,
        gid: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyKind {
    Copy,
    Add,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub kind: CopyKind,
    /// In the order in which they land: heredocs after all others.
    pub sources: Vec<CopySource>,
    pub from: Input,
    /// Absolute (WORKDIR joined), a trailing slash kept: it says "a directory".
    pub destination: String,
    /// `user[:group]`, names or numbers.
    pub chown: Option<Located>,
    /// Octal or symbolic.
    pub chmod: Option<Located>,
    pub is_link: bool,
    pub has_parents: bool,
    /// `.dockerignore` patterns, relative to each source directory.
    pub exclude: Vec<String>,
    /// ADD: `None` unpacks local archives and leaves downloads alone.
    pub unpack: Option<bool>,
    pub checksum: Option<Located>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// A path or wildcard below the root of `from`.
    Path(Located),
    Heredoc(HeredocFile),
    /// ADD of `http://` or `https://`.
    Url(Located),
    /// ADD of a git repository.
    Git(Box<GitSource>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitSource {
    /// As written, expanded.
    pub at: Located,
    /// With what `--keep-git-dir` and `--checksum` say.
    pub location: GitLocation,
}

/// Creates the directory where it is missing; a layer only then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workdir {
    /// Absolute and clean.
    pub path: String,
    /// New directories belong to this USER.
    pub user: Option<Located>,
}
