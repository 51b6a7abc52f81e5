//! Configuration: a TOML file and the environment, read into a raw tree, validated into [`Config`].
//!
//! Invariants:
//! - A [`Config`] is valid: who holds one checks nothing again. Only what depends on the machine (cores, ports, files) is left to
//!   those who use it, and to `streamer check`.
//! - One pass finds every problem; each names where it was written, the key, the value and what is allowed.
//! - `default.toml` is the documentation of every key; a test holds it against the built-in defaults and the known keys.

mod checkpoint;
mod history_lost;
mod raw;
mod read;
mod units;
mod validate;

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

pub use raw::{ENVIRONMENT_PREFIX, Origin};
pub use read::Given;
pub use units::{parse_duration, parse_size, show_duration, show_size};
pub use validate::{parse_token_hash, valid_gateway_name, valid_tenant_name};

use crate::{affinity::Cores, checkpoint::MongoPlace, ingest::source::mongodb::MongoOptions};
use predicate::Mapping;

/// The commented default file, as `streamer config default` prints it.
pub const DEFAULT_FILE: &str = include_str!("default.toml");

/// Names the configuration file where the command line doesn't.
pub const FILE_VARIABLE: &str = "STREAMER_CONFIG";

#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from, if any.
    pub file: Option<PathBuf>,
    pub node: Node,
    pub log: Log,
    pub affinity: Affinity,
    pub http: Http,
    pub quic: Quic,
    pub tls: Tls,
    /// Who may connect. Empty: open, and then every address listened on is loopback.
    pub gateways: Vec<Gateway>,
    pub admin: Admin,
    pub mapping: Mapping,
    pub deletes: Deletes,
    /// At least one; names and the hashes of names are unique.
    pub backends: Vec<Backend>,
    pub checkpoint: Checkpoint,
    pub ingest: Ingest,
    pub catch_up: CatchUp,
    pub limits: Limits,
    pub telemetry: Telemetry,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub data_dir: PathBuf,
    pub runtime: Runtime,
    /// Over how long Gateways are asked to leave a node that stops.
    pub shutdown_spread: Duration,
    /// How long stopping may then take to flush what is on its way.
    pub shutdown_flush: Duration,
}

/// Executor of the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Glommio where io_uring and locked memory are to be had, else tokio.
    Auto,
    Glommio,
    Tokio,
}

impl From<Runtime> for shards::driver::RuntimeChoice {
    fn from(runtime: Runtime) -> Self {
        match runtime {
            Runtime::Auto => Self::Auto,
            Runtime::Glommio => Self::Glommio,
            Runtime::Tokio => Self::Tokio,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Log {
    /// A level, or directives such as `info,shards=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// What was asked for; [`crate::affinity::place`] holds it against the machine.
#[derive(Clone, Debug)]
pub struct Affinity {
    pub ingest: Given<Cores>,
    pub control: Given<Cores>,
    pub shards: Given<Cores>,
}

#[derive(Clone, Debug)]
pub struct Http {
    pub listen: Given<SocketAddr>,
    /// Bytes of the largest request body.
    pub max_body: u64,
}

#[derive(Clone, Debug)]
pub struct Quic {
    /// Address of shard 0; shard `i` listens on the port `i` above. Port 0: each takes a free one.
    pub listen: Given<SocketAddr>,
    /// What Gateways are told to connect to, where it isn't the address listened on.
    pub advertise: Option<Advertise>,
    pub idle_timeout: Duration,
    pub send_window: u64,
    /// Connections of one shard that may be in their handshake or before their hello.
    pub max_incoming: u64,
    /// Connections of one shard with a session.
    pub max_sessions: u64,
    /// Segmentation offload.
    pub gso: Gso,
    /// A Gateway that hasn't acknowledged receipt for this long is taken for gone.
    pub received_deadline: Duration,
    /// Between heartbeats on an idle delivery stream.
    pub heartbeat: Duration,
}

/// Whether the kernel or the card cuts what is sent into packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// Where it was tried at the start and worked.
    Auto,
    On,
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertise {
    pub host: String,
    /// That of shard 0. `None`: the port listened on.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// PEM files. `None`: the node makes its own certificate and keeps it in the data folder.
    pub files: Option<TlsFiles>,
}

#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub certificate: Given<PathBuf>,
    pub key: Given<PathBuf>,
}

/// A SHA-256, of a token here.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Clone, Debug)]
pub struct Gateway {
    pub name: String,
    pub token_sha256: TokenHash,
    pub tenants: Tenants,
}

/// The tenants that somebody may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenants {
    All,
    Only(Arc<[String]>),
}

impl Tenants {
    pub fn allow(&self, tenant: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|name| name == tenant),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Admin {
    pub token_sha256: Option<TokenHash>,
}

/// What is sent for a hard delete of which too little is known to say whom it concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletes {
    /// The delete, with certainty `unknown`.
    Unknown,
    /// Nothing.
    Known,
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub name: String,
    pub kind: BackendKind,
}

#[derive(Clone, Debug)]
pub enum BackendKind {
    /// Its options hold credentials; what is shown of them is redacted.
    Mongodb(MongoOptions),
    Embedded(Embedded),
}

#[derive(Clone, Debug)]
pub struct Embedded {
    pub directory: PathBuf,
    /// What is over one of these goes from the change log, oldest first. Current documents stay.
    pub retain_bytes: u64,
    pub retain_events: u64,
    pub retain_for: Option<Duration>,
    /// Whether a write is answered only once it is on the disk.
    pub sync: bool,
}

impl Embedded {
    /// The defaults, in this folder.
    pub fn in_directory(directory: PathBuf) -> Self {
        Self { directory, retain_bytes: 1 << 30, retain_events: 10_000_000, retain_for: None, sync: true }
    }
}

#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub place: CheckpointPlace,
    /// Written after this long, or after this many events, whichever is first.
    pub every: Duration,
    pub events: u64,
    pub on_history_lost: HistoryLost,
    pub oversize: Oversize,
    pub on_missing: Missing,
}

/// Where the checkpoint is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointPlace {
    /// In the data folder.
    File,
    /// Its connection string holds credentials; what is shown of it is redacted.
    Mongodb(MongoPlace),
}

/// What to do when the source no longer has what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryLost {
    /// Stay alive but not ready, and say how to go on.
    Fail,
    /// Go on from now, and tell it to everyone.
    FromNow,
    /// Go on from this cluster time, and tell it to everyone.
    FromTimestamp { time: u64 },
}

/// What to do with an event that is too large to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oversize {
    /// Stay alive but not ready, and say how to go on.
    Fail,
    /// Go on behind it, and tell it to everyone whom it may concern.
    Skip,
}

/// What to do when there is no checkpoint to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Stay alive but not ready, and say how to go on.
    Fail,
    /// Go on from now, and tell it to everyone concerned.
    FromNow,
}

#[derive(Clone, Debug)]
pub struct Ingest {
    /// Entries of the ring to each shard.
    pub ring: usize,
    /// How long a start waits for the Gateways that the checkpoint names.
    pub registration_grace: Duration,
    /// A source that tells nothing for this long, though it should, is an alarm. Zero: never.
    pub stalled_after: Duration,
    /// How long reading pauses at most for Gateways that go on taking things, before their subscriptions have to catch up. Zero: never.
    pub pause_max: Duration,
}

/// Reading history again for subscriptions that lack a part of it.
#[derive(Clone, Debug)]
pub struct CatchUp {
    /// The distance to the live stream halves within this time, or the subscriptions that are read for have to resync.
    pub halve_within: Duration,
}

#[derive(Clone, Debug)]
pub struct Limits {
    pub subscriptions_per_gateway: u64,
    pub subscriptions_per_tenant: u64,
    pub subscriptions_per_node: u64,
    pub ttl_default: Duration,
    pub ttl_min: Duration,
    pub ttl_max: Duration,
    /// Subscriptions in one request over QUIC.
    pub subscribe_items: usize,
    /// Bytes of one shard's delivery log.
    pub log_bytes: u64,
    pub log_events: u64,
    /// Gateways that are expected, for what they may make the node hold.
    pub gateways: u64,
    /// Bytes that the node may come to hold by its bounds. `None`: what the machine or the container has.
    pub memory: Option<u64>,
    /// What one Gateway may lag behind on a shard before its subscriptions have to catch up.
    pub outbox_bytes: u64,
    /// The same in changes.
    pub outbox_events: u64,
    /// The share of the changes that reach a shard which may be of what nobody watches any more, 0 to 1.
    pub filter_false_positive_max: f64,
}

/// Traces of sampled changes.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Base URL of an OTLP collector over HTTP. Empty: none are made.
    pub otlp_endpoint: String,
}

/// Something wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub origin: Origin,
    /// `section.key`; empty for the file as a whole.
    pub key: String,
    pub value: Option<String>,
    /// What is wrong and what is allowed, as the rest of a sentence that starts with the value.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}", self.key)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
            write!(f, " ")?;
        }
        f.write_str(&self.message)
    }
}

/// Everything wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads the file given (or named by `STREAMER_CONFIG`, or none) and the process's environment.
    pub fn load(file: Option<PathBuf>) -> Result<Self, Problems> {
        let file = file
            .or_else(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from))
            .filter(|name| !name.as_os_str().is_empty());
        let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let mut problems = Vec::new();
        let mut readable = Vec::new();
        for (name, value) in variables {
            match value.into_string() {
                Ok(value) => readable.push((name, value)),
                Err(_) if name.starts_with(ENVIRONMENT_PREFIX) => problems.push(Problem {
                    origin: Origin::Environment { variable: name.as_str().into() },
                    key: String::new(),
                    value: None,
                    message: "is not UTF-8".into(),
                }),
                Err(_) => {}
            }
        }
        let text = match &file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path).map_err(|error| {
                Problems(vec![Problem {
                    origin: Origin::File { path: Arc::new(path.clone()), line: 0 },
                    key: String::new(),
                    value: None,
                    message: format!(
                        "can't be read: {error}; allowed: a readable TOML file, see `streamer config default`"
                    ),
                }])
            })?,
        };
        match Self::from_parts(file, &text, readable) {
            Ok(config) if problems.is_empty() => Ok(config),
            Ok(_) => Err(Problems(problems)),
            Err(Problems(more)) => {
                problems.extend(more);
                Err(Problems(problems))
            }
        }
    }

    /// The same from a file's text and a list of environment variables.
    pub fn from_parts(
        file: Option<PathBuf>,
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        let name = Arc::new(file.clone().unwrap_or_else(|| PathBuf::from("configuration")));
        let mut table = raw::parse_file(&name, text).map_err(|problem| Problems(vec![*problem]))?;
        let mut problems = Vec::new();
        raw::overlay_environment(&mut table, variables, &mut problems);
        let config = validate::validate(file, table, &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
    }

    /// Whether anyone who reaches the node may use it: no Gateways are configured.
    pub fn is_open(&self) -> bool {
        self.gateways.is_empty()
    }

    /// The host part of what Gateways are told to connect to, and shard 0's port where it is set.
    pub fn advertised_host(&self) -> String {
        match &self.quic.advertise {
            Some(advertise) => advertise.host.clone(),
            None => self.quic.listen.value.ip().to_string(),
        }
    }

    /// `host:port` that Gateways are told for a shard that listens on `port`.
    pub fn advertised_address(&self, shard: u16, port: u16) -> String {
        let port = match &self.quic.advertise {
            Some(Advertise { port: Some(base), .. }) => base.saturating_add(shard),
            _ => port,
        };
        let host = self.advertised_host();
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl Default for Config {
    /// The built-in defaults: no file, no environment.
    fn default() -> Self {
        validate::validate(None, raw::Table::new(), &mut Vec::new())
    }
}

#[cfg(test)]
mod tests;
