//! The grammar of the command line, as typed. What it means is decided in the modules beside.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::deferred::Deferred;
use super::limits::LimitArguments;
use super::values::word;

#[derive(Debug, Parser)]
#[command(
    name = "wythe",
    version,
    about = "Build container images from Dockerfiles, without a daemon",
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Arguments {
    /// Keep everything in this directory [env: WYTHE_ROOT] [default: /var/lib/wythe as root, else $XDG_DATA_HOME/wythe]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image from a Dockerfile
    Build(Deferred<Build>),
    /// Show what the cache holds, why a step would miss, or make room
    #[command(subcommand)]
    Cache(Deferred<Cache>),
    /// Say what this machine allows, and what would improve it
    Doctor {
        /// How it is printed
        #[arg(long, value_name = "FORMAT", value_parser = ["table", "json"])]
        format: Option<String>,
    },
    /// Fetch an image from its registry into the local store
    Pull(Deferred<Pull>),
    /// Send an image of the local store to a registry
    Push(Deferred<Push>),
    /// Take the images of an archive into the local store
    Load {
        /// A tar of `docker save` or an OCI layout [default: standard input]
        #[arg(short, long, value_name = "FILE")]
        input: Option<PathBuf>,
    },
    /// Write an image of the local store to a file that `docker load` and `podman load` read
    Save(Deferred<Save>),
    /// List the images of the local store
    Images(Deferred<Images>),
    /// Give an image another name
    Tag {
        /// A name or the beginning of an image ID
        image: String,
        name: String,
    },
    /// Remove names of images; layers go with `wythe cache prune`
    Rmi {
        /// Names or beginnings of image IDs
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// List the builds that were, newest first; with an image, show how it was made
    History(Deferred<History>),
    /// Print what the steps of a build wrote
    Logs(Deferred<Logs>),
    /// Print an image's config and layers as JSON
    Inspect {
        #[arg(required = true)]
        images: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct History {
    /// A name or the beginning of an image ID
    pub image: Option<String>,
    /// How it is printed
    #[arg(long, value_name = "FORMAT", value_parser = ["table", "json"])]
    pub format: Option<String>,
    /// The same as `--format json`
    #[arg(long)]
    pub json: bool,
    /// At most so many
    #[arg(short, long, value_name = "N")]
    pub number: Option<usize>,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// The beginning of its ID, `^1` for the one before the latest, or the name of its image [default: the latest]
    pub build: Option<String>,
    /// Its number, its stage, or text of its title [default: all]
    pub step: Option<String>,
    /// Begin each line with the seconds since its step began
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only the step that failed
    #[arg(long)]
    pub failed: bool,
}

#[derive(Debug, Subcommand)]
pub enum Cache {
    /// List the steps in the cache
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say for each step of a build whether it would hit, and if not, what changed
    Explain(Deferred<Build>),
    /// Show what takes how much room, and what of it could go
    Du(Deferred<Du>),
    /// Write steps and cache mounts to a file, for another machine
    Export {
        /// [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Only what this holds for, as `wythe cache prune --filter` has it; may be given several times
        #[arg(long = "filter", value_name = "FILTER")]
        filters: Vec<String>,
    },
    /// Take in what `wythe cache export` wrote; what is here already stays as it is
    Import {
        /// The file, plain or compressed [default: standard input]
        #[arg(short, long, value_name = "FILE")]
        input: Option<PathBuf>,
    },
    /// Remove what is not in use, and no image needs
    Prune(Deferred<Prune>),
    /// Bring the store below its cap, as builds do in the background
    Gc {
        /// A size, a share of the filesystem (`20%`), or `none` [env: WYTHE_STORE_CAP]
        #[arg(long, value_name = "CAP")]
        cap: Option<String>,
        /// Standard input is the lock
        #[arg(long, hide = true)]
        has_lock: bool,
    },
}

#[derive(Debug, Args)]
pub struct Du {
    /// Only what this holds for, as `wythe cache prune --filter` has it; may be given several times
    #[arg(long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
    /// List every item
    #[arg(short, long)]
    pub verbose: bool,
    /// How it is printed
    #[arg(long, value_name = "FORMAT", value_parser = ["table", "json"])]
    pub format: Option<String>,
}

#[derive(Debug, Args)]
pub struct Prune {
    /// Everything that no image and no running build uses
    #[arg(short, long)]
    pub all: bool,
    /// Only what was last used longer ago than this (as in 30m, 12h, 7d)
    #[arg(long, value_name = "AGE")]
    pub older_than: Option<String>,
    /// Only what this holds for: until=AGE, id=, type=, description=, inuse, shared, private, mutable, immutable,
    /// with =, != or ~=; may be given several times
    #[arg(long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
    /// What was unused the longest, until the store is no larger than this
    #[arg(long, value_name = "SIZE", visible_aliases = ["keep-storage", "max-size"])]
    pub max_used_space: Option<String>,
    /// What was unused the longest, until so much of the filesystem is free
    #[arg(long, value_name = "SIZE")]
    pub min_free_space: Option<String>,
    /// Leave the store at least this large
    #[arg(long, value_name = "SIZE")]
    pub reserved_space: Option<String>,
    /// Say what would go and why, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// List what goes and why
    #[arg(short, long)]
    pub verbose: bool,
    /// Accepted for scripts made for docker: nothing is asked
    #[arg(short, long, hide = true)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct Transfer {
    /// Speak to this registry without TLS, or with TLS that nobody vouches for; may be given several times
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    pub insecure_registries: Vec<String>,

    /// How progress is shown
    #[arg(long, value_name = "MODE", value_parser = ["auto", "plain", "tty", "quiet", "none", "rawjson"])]
    pub progress: Option<String>,

    /// Print nothing but the result
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Pull {
    #[arg(value_name = "NAME[:TAG]")]
    pub image: String,

    /// The platform [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,

    #[command(flatten)]
    pub transfer: Transfer,
}

#[derive(Debug, Args)]
pub struct Push {
    /// A name in the local store or the beginning of an image ID
    pub image: String,

    /// What it is called in the registry [default: its name]
    #[arg(value_name = "NAME[:TAG]")]
    pub destination: Option<String>,

    #[command(flatten)]
    pub packing: Packing,

    #[command(flatten)]
    pub transfer: Transfer,
}

#[derive(Debug, Args)]
pub struct Save {
    /// Names or beginnings of image IDs
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,

    /// [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub packing: Packing,

    #[command(flatten)]
    pub transfer: Transfer,
}

#[derive(Debug, Args)]
pub struct Packing {
    /// How layers are compressed that were made here: gzip, zstd or uncompressed [default: gzip]
    #[arg(long, alias = "compression-format", value_name = "NAME")]
    pub compression: Option<String>,

    /// How hard: 0 to 9 for gzip, to 22 for zstd
    #[arg(long, value_name = "N")]
    pub compression_level: Option<String>,

    /// Compress layers that came from elsewhere anew, too
    #[arg(long)]
    pub force_compression: bool,
}

#[derive(Debug, Args)]
pub struct Images {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print only image IDs
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Build {
    /// The build context: a directory, a git repository, the URL of a tar or a Dockerfile, or `-` for one on standard input
    #[arg(value_name = "CONTEXT")]
    pub context: String,

    /// The Dockerfile [default: CONTEXT/Dockerfile]: a path (in a context that is no directory, one there), a URL, or `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,

    /// Name of the image in the local store; may be given several times
    #[arg(short, long = "tag", value_name = "NAME[:TAG]")]
    pub tags: Vec<String>,

    /// Where the result goes: type=oci|docker|local|tar,dest=FILE, type=registry, a directory, or `-` for a tar on standard output
    #[arg(short, long = "output", value_name = "DEST")]
    pub outputs: Vec<String>,

    /// The stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,

    /// Set a build argument; without a value it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,

    /// Another context: a directory, a git repository, the URL of a tar, oci-layout://DIR[:TAG], or docker-image://NAME
    #[arg(long = "build-context", value_name = "NAME=PATH")]
    pub build_contexts: Vec<String>,

    /// Set a label of the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,

    /// Build for these platforms, separated by commas
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    pub platform: Vec<String>,

    /// Say what is wrong with the Dockerfile and what could be better, and build nothing
    #[arg(long)]
    pub check: bool,

    /// What to do: build, check, or list its targets or outline; `,format=json` prints JSON
    #[arg(long, value_name = "METHOD[,format=FORMAT]", conflicts_with = "check")]
    pub call: Option<String>,

    /// Run every step, whatever the cache holds
    #[arg(long)]
    pub no_cache: bool,

    /// Run every step of these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub no_cache_filter: Vec<String>,

    /// When a RUN fails, open a shell in its container before it is gone: `shell`, or `shell=COMMAND`
    #[arg(long, value_name = "shell[=COMMAND]")]
    pub on_failure: Option<String>,

    /// Say of each step that runs what changed since it last ran
    #[arg(long)]
    pub explain: bool,

    /// How progress is shown
    #[arg(long, value_name = "MODE", value_parser = ["auto", "plain", "tty", "quiet", "none", "rawjson"])]
    pub progress: Option<String>,

    /// Print nothing but the image ID
    #[arg(short, long)]
    pub quiet: bool,

    /// Write the image ID to this file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,

    /// Write digests and names of the result to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,

    /// Hand a secret to RUN --mount=type=secret: id=ID[,src=FILE|,env=VARIABLE]
    #[arg(long = "secret", value_name = "SPEC")]
    pub secrets: Vec<String>,

    /// Lend an ssh agent, or keys, to RUN --mount=type=ssh and to git: default, ID[=SOCKET|KEY[,KEY]]
    #[arg(long, value_name = "SPEC")]
    pub ssh: Vec<String>,

    /// Network of RUN steps
    #[arg(long, value_name = "MODE", value_parser = ["default", "none", "host"])]
    pub network: Option<String>,

    /// Add a line to /etc/hosts of RUN steps; the address `host-gateway` is this host's
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    pub add_hosts: Vec<String>,

    /// Name server of RUN steps [default: the host's]
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<IpAddr>,

    /// Search domain of RUN steps [default: the host's]; `.` for none
    #[arg(long, value_name = "DOMAIN", value_parser = word)]
    pub dns_search: Vec<String>,

    /// Option of the resolver of RUN steps [default: the host's]
    #[arg(long = "dns-option", visible_alias = "dns-opt", value_name = "OPTION", value_parser = word)]
    pub dns_options: Vec<String>,

    /// Size of /dev/shm in RUN steps
    #[arg(long, value_name = "BYTES")]
    pub shm_size: Option<String>,

    /// Resource limits of RUN steps
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    pub ulimits: Vec<String>,

    #[command(flatten)]
    pub limits: LimitArguments,

    /// Allow what is refused by default: network.host, security.insecure, device[=NAME]
    #[arg(long = "allow", value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub allow: Vec<String>,

    /// Where the devices of this machine are described; may be given several times [default: /etc/cdi, /var/run/cdi]
    #[arg(long = "cdi-spec-dir", value_name = "DIR")]
    pub cdi_spec_dirs: Vec<PathBuf>,

    /// How many steps may run at once [default: the number of processors, at least 4]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<usize>,

    /// Accepted for scripts made for docker: there is one builder
    #[arg(long, hide = true, value_name = "NAME")]
    pub builder: Option<String>,

    /// When to ask registries for images: always, missing (from the local store) or never
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always",
          overrides_with = "pull",
          value_parser = ["always", "missing", "never", "newer", "true", "false"])]
    pub pull: Option<String>,

    /// Push the image to the registries of its names, as `-o type=registry` does
    #[arg(long)]
    pub push: bool,

    /// Speak to this registry without TLS, or with TLS that nobody vouches for; may be given several times
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    pub insecure_registries: Vec<String>,

    /// Also give the image to docker or podman, for its own store
    #[arg(long)]
    pub load: bool,

    // Known to users of docker, not to be had here: refused with a reason.
    #[arg(long, hide = true)]
    pub cache_from: Vec<String>,
    #[arg(long, hide = true)]
    pub cache_to: Vec<String>,
    #[arg(long, hide = true)]
    pub attest: Vec<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sbom: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub provenance: Option<String>,
    #[arg(long, hide = true)]
    pub annotation: Vec<String>,
}
