//! From the raw tree to a valid [`Config`]: the key names, the defaults and the rules are here, and nowhere else.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use predicate::mapping::{Mapping, Nested};
use wire::BackendId;

use super::{
    Admin, Advertise, Affinity, Backend, BackendKind, CatchUp, Config, Deletes, Embedded, Gateway, Given, Gso,
    HistoryLost, Http, Ingest, Limits, Log, LogFormat, Node, Origin, Problem, Quic, Runtime, Telemetry, Tenants, Tls,
    TlsFiles, TokenHash, raw::Table, read::Section,
};
use crate::{
    affinity::Cores,
    ingest::source::mongodb::{MongoOptions, Namespace, PreImages, Scope, redact_uri},
};

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Reads everything, with defaults in the place of what is missing or wrong. The result counts only without problems.
pub(super) fn validate(file: Option<PathBuf>, table: Table, problems: &mut Vec<Problem>) -> Config {
    let mut root = Section::root(table, problems);
    let node = node(root.section("node"));
    let mut config = Config {
        file,
        log: log(root.section("log")),
        affinity: affinity(root.section("affinity")),
        http: http(root.section("http")),
        quic: quic(root.section("quic")),
        tls: tls(root.section("tls")),
        gateways: root.list("gateways", gateway),
        admin: admin(root.section("admin")),
        mapping: Mapping::syntrix(),
        deletes: Deletes::Unknown,
        backends: Vec::new(),
        checkpoint: super::checkpoint::checkpoint(root.section("checkpoint")),
        ingest: ingest(root.section("ingest")),
        catch_up: catch_up(root.section("catch_up")),
        limits: limits(root.section("limits")),
        telemetry: telemetry(root.section("telemetry")),
        node,
    };
    (config.mapping, config.deletes) = mapping(root.section("mapping"));
    let data_dir = config.node.data_dir.clone();
    let is_syntrix = config.mapping == Mapping::syntrix();
    let before = root.problem_count();
    config.backends = root.list("backends", |section| backend(section, &data_dir, is_syntrix));
    if config.backends.is_empty() && root.problem_count() == before {
        if !is_syntrix {
            root.refuse(
                "backends",
                Origin::Absent,
                None,
                "is empty, and the embedded backend that then stands in needs [mapping] preset = \"syntrix\"; allowed: at \
                 least one of kind \"mongodb\", or that preset"
                    .into(),
            );
        }
        config.backends.push(Backend {
            name: "embedded".into(),
            kind: BackendKind::Embedded(Embedded::in_directory(data_dir.join("embedded"))),
        });
    }
    across(&mut root, &config);
    root.finish();
    config
}

fn node(mut section: Section<'_>) -> Node {
    let node = Node {
        data_dir: path(&mut section, "data_dir").map_or_else(|| "./streamer-data".into(), |given| given.value),
        runtime: section.choice(
            "runtime",
            Runtime::Auto,
            &[("auto", Runtime::Auto), ("glommio", Runtime::Glommio), ("tokio", Runtime::Tokio)],
        ),
        shutdown_spread: section.duration("shutdown_spread", SECOND, Duration::ZERO, HOUR),
        shutdown_flush: section.duration("shutdown_flush", 10 * SECOND, Duration::ZERO, 10 * MINUTE),
    };
    section.finish();
    node
}

fn log(mut section: Section<'_>) -> Log {
    let level = section.parsed("level", "info".into(), |text| match text.parse::<tracing_subscriber::EnvFilter>() {
        Ok(_) if !text.trim().is_empty() => Ok(text.to_owned()),
        _ => Err(
            "is not a log level; allowed: error, warn, info, debug, trace, or directives such as \"info,shards=debug\""
                .into(),
        ),
    });
    let format = section.choice("format", LogFormat::Text, &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    section.finish();
    Log { level, format }
}

fn affinity(mut section: Section<'_>) -> Affinity {
    let mut cores = |key| {
        let Some(given) = section.numbers_text(key) else {
            return Given { value: Cores::Auto, origin: Origin::Absent };
        };
        match given.value.parse() {
            Ok(value) => Given { value, origin: given.origin },
            Err(message) => {
                section.refuse(key, given.origin, Some(format!("{:?}", given.value)), message);
                Given { value: Cores::Auto, origin: Origin::Absent }
            }
        }
    };
    let affinity = Affinity { ingest: cores("ingest"), control: cores("control"), shards: cores("shards") };
    section.finish();
    affinity
}

fn http(mut section: Section<'_>) -> Http {
    let http = Http {
        listen: section.address("listen", ([127, 0, 0, 1], 8083).into()),
        max_body: section.size("max_body", 64 << 20, 64 << 10, 1 << 30),
    };
    section.finish();
    http
}

fn quic(mut section: Section<'_>) -> Quic {
    let quic = Quic {
        listen: section.address("listen", ([127, 0, 0, 1], 7400).into()),
        advertise: section.parsed_given("advertise", advertise).and_then(|given| given.value),
        idle_timeout: section.duration("idle_timeout", 30 * SECOND, SECOND, HOUR),
        send_window: section.size("send_window", 256 << 10, 16 << 10, 64 << 20),
        max_incoming: section.number("max_incoming", 1_024, 1, 65_536),
        max_sessions: section.number("max_sessions", 4_096, 1, 1_000_000),
        gso: section.choice("gso", Gso::Auto, &[("auto", Gso::Auto), ("on", Gso::On), ("off", Gso::Off)]),
        received_deadline: section.duration("received_deadline", 30 * SECOND, SECOND, HOUR),
        heartbeat: section.duration("heartbeat", SECOND, 10 * MILLISECOND, MINUTE),
    };
    section.finish();
    quic
}

/// Empty text stands for "none", so that the default file can show the key.
fn advertise(text: &str) -> Result<Option<Advertise>, String> {
    const ALLOWED: &str = "allowed: a host name or an address, with or without a port, such as \"node-1.internal\", \
                           \"10.0.0.5:7400\" or \"[2001:db8::5]:7400\"";
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return Ok(Some(Advertise { host: address.ip().to_string(), port: Some(address.port()) }));
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return Ok(Some(Advertise { host: bare.into(), port: None }));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().map_err(|_| format!("has a port that is none; {ALLOWED}"))?)),
        None => (text, None),
    };
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    is_name
        .then(|| Some(Advertise { host: host.into(), port }))
        .ok_or_else(|| format!("is neither a host nor host:port; {ALLOWED}"))
}

fn tls(mut section: Section<'_>) -> Tls {
    let certificate = path(&mut section, "certificate");
    let key = path(&mut section, "key");
    let missing = |other: &Given<PathBuf>| {
        (other.origin.clone(), "is missing; allowed: certificate and key together, or neither")
    };
    let files = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
        (None, None) => None,
        (Some(given), None) => {
            let (origin, message) = missing(&given);
            section.refuse("key", origin, None, message.into());
            None
        }
        (None, Some(given)) => {
            let (origin, message) = missing(&given);
            section.refuse("certificate", origin, None, message.into());
            None
        }
    };
    section.finish();
    Tls { files }
}

fn gateway(section: &mut Section<'_>) -> Option<Gateway> {
    let name = section.parsed_given("name", |text| {
        valid_gateway_name(text)
            .then(|| text.to_owned())
            .ok_or_else(|| "is not a Gateway's name; allowed: 1 to 128 of a-z, A-Z, 0-9, _ and -".into())
    });
    let token_sha256 = section.parsed_given("token_sha256", parse_token_hash);
    let tenants = section.texts("tenants");
    required(section, "name", "a name such as \"gateway-1\"");
    required(section, "token_sha256", "what `streamer token new NAME` prints");
    let tenants = match tenants {
        None => Tenants::All,
        Some(Given { value, .. }) if value.iter().any(|tenant| tenant == "*") => Tenants::All,
        Some(Given { value, origin }) => {
            if let Some(bad) = value.iter().find(|tenant| !valid_tenant_name(tenant)) {
                let message =
                    "is not a tenant's name; allowed: 1 to 256 bytes without control characters, or \"*\" for all";
                section.refuse("tenants", origin, Some(format!("{bad:?}")), message.into());
            } else if value.is_empty() {
                section.refuse(
                    "tenants",
                    origin,
                    Some("[]".into()),
                    "is empty; allowed: names of tenants, or \"*\" for all".into(),
                );
            }
            Tenants::Only(value.into())
        }
    };
    Some(Gateway { name: name?.value, token_sha256: token_sha256?.value, tenants })
}

fn admin(mut section: Section<'_>) -> Admin {
    let token_sha256 = section
        .parsed("token_sha256", None, |text| if text.is_empty() { Ok(None) } else { parse_token_hash(text).map(Some) });
    section.finish();
    Admin { token_sha256 }
}

fn mapping(mut section: Section<'_>) -> (Mapping, Deletes) {
    const FIELDS: [&str; 9] =
        ["tenant", "collection", "full_path", "data", "id", "version", "created_at", "updated_at", "deleted"];
    let plain = section.choice("preset", false, &[("syntrix", false), ("plain", true)]);
    let deletes =
        section.choice("deletes", Deletes::Unknown, &[("unknown", Deletes::Unknown), ("known", Deletes::Known)]);
    let given: Vec<_> = FIELDS.into_iter().filter(|field| section.is_given(field)).collect();
    let mut nested = Nested::default();
    if let Some(Given { value, origin }) = section.texts("tenant") {
        if value.is_empty() || value.iter().any(String::is_empty) {
            let shown = format!("{value:?}");
            section.refuse("tenant", origin, Some(shown), "is empty; allowed: at least one field name".into());
        }
        nested.tenant = value;
    }
    let mut field = |key, place: &mut String| {
        let parse = |text: &str| {
            let fine = !text.is_empty() && !text.contains(['.', '\0']) && !text.starts_with('$');
            fine.then(|| text.to_owned())
                .ok_or_else(|| "is not a field name; allowed: one name without dots that doesn't start with $".into())
        };
        *place = section.parsed(key, std::mem::take(place), parse);
    };
    field("collection", &mut nested.collection);
    field("full_path", &mut nested.full_path);
    field("data", &mut nested.data);
    field("id", &mut nested.id);
    field("version", &mut nested.version);
    field("created_at", &mut nested.created_at);
    field("updated_at", &mut nested.updated_at);
    field("deleted", &mut nested.deleted);
    if plain && let Some(first) = given.first() {
        let origin = section.origin().clone();
        section.refuse(
            first,
            origin,
            None,
            "is set, but preset = \"plain\" has no such field; allowed: with \"syntrix\" only".into(),
        );
    }
    section.finish();
    (if plain { Mapping::Plain } else { Mapping::Nested(nested) }, deletes)
}

fn backend(section: &mut Section<'_>, data_dir: &std::path::Path, is_syntrix: bool) -> Option<Backend> {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Mongodb,
        Embedded,
    }
    let name = section.parsed_given("name", |text| {
        valid_gateway_name(text)
            .then(|| text.to_owned())
            .ok_or_else(|| "is not a backend's name; allowed: 1 to 128 of a-z, A-Z, 0-9, _ and -".into())
    });
    let kind = section.parsed_given("kind", |text| match text {
        "mongodb" => Ok(Kind::Mongodb),
        "embedded" => Ok(Kind::Embedded),
        _ => Err("is not a kind of backend; allowed: \"mongodb\", \"embedded\"".into()),
    });
    required(section, "name", "a name that stays the same, since positions are kept under it");
    required(section, "kind", "\"mongodb\", \"embedded\"");
    let kind_origin = kind.as_ref().map(|given| given.origin.clone()).unwrap_or(Origin::Absent);
    // Both kinds' keys are read, so that a key of the other kind is told as that and not as unknown.
    let mongodb = mongodb(
        section,
        name.as_ref().map_or("", |given| &given.value),
        kind.as_ref().is_none_or(|given| given.value == Kind::Embedded),
    );
    let wrong_kind = matches!(&kind, Some(Given { value: Kind::Mongodb, .. }));
    for key in ["directory", "retain_bytes", "retain_events", "retain_for", "sync"] {
        if wrong_kind && section.is_given(key) {
            let origin = section.origin().clone();
            section.refuse(key, origin, None, "is set, but goes with kind = \"embedded\" only".into());
        }
    }
    let directory = path(section, "directory");
    let mut embedded = Embedded::in_directory(directory.map_or_else(PathBuf::new, |given| given.value));
    embedded.retain_bytes = section.size("retain_bytes", embedded.retain_bytes, 1 << 20, 1 << 50);
    embedded.retain_events = section.number("retain_events", embedded.retain_events, 1_000, u64::MAX >> 1);
    embedded.retain_for = section.parsed("retain_for", None, |text| {
        if text.is_empty() { Ok(None) } else { super::parse_duration(text).map(Some) }
    });
    embedded.sync = section.boolean("sync", embedded.sync);
    let (name, kind) = (name?.value, kind?.value);
    let kind = match kind {
        Kind::Mongodb => BackendKind::Mongodb(mongodb?),
        Kind::Embedded => {
            if !is_syntrix {
                let message = "needs the mapping that the embedded store writes; allowed: [mapping] preset = \"syntrix\" without \
                               field names of your own";
                section.refuse("kind", kind_origin, Some("\"embedded\"".into()), message.into());
            }
            if embedded.directory.as_os_str().is_empty() {
                embedded.directory = data_dir.join(&name);
            }
            BackendKind::Embedded(embedded)
        }
    };
    Some(Backend { name, kind })
}

/// `absent`: the backend is of another kind, where these keys must not be set.
fn mongodb(section: &mut Section<'_>, name: &str, absent: bool) -> Option<MongoOptions> {
    if absent {
        for key in ["uri", "scope", "pre_images", "namespaces"] {
            if section.is_given(key) {
                let origin = section.origin().clone();
                section.refuse(key, origin, None, "is set, but goes with kind = \"mongodb\" only".into());
            }
        }
    }
    let uri = section.text("uri");
    let scope = section.parsed("scope", Scope::Deployment, |text| match text {
        "deployment" => Ok(Scope::Deployment),
        name if valid_database(name) => Ok(Scope::Database(name.into())),
        _ => Err("is not a scope; allowed: \"deployment\" or the name of a database".into()),
    });
    let pre_images = section.choice(
        "pre_images",
        PreImages::WhenAvailable,
        &[("when_available", PreImages::WhenAvailable), ("expected", PreImages::Promised)],
    );
    let mut namespaces = Vec::new();
    if let Some(Given { value, origin }) = section.texts("namespaces") {
        for text in value {
            match namespace(&text, &scope) {
                Ok(namespace) => namespaces.push(namespace),
                Err(message) => section.refuse("namespaces", origin.clone(), Some(format!("{text:?}")), message),
            }
        }
    }
    if absent {
        return None;
    }
    required(section, "uri", "a connection string such as \"mongodb://127.0.0.1:27017/?replicaSet=rs0\"");
    let uri = uri?;
    if !uri.value.starts_with("mongodb://") && !uri.value.starts_with("mongodb+srv://") {
        let shown = format!("{:?}", redact_uri(&uri.value));
        let message = "is not a MongoDB connection string; allowed: mongodb://… or mongodb+srv://…";
        section.refuse("uri", uri.origin, Some(shown), message.into());
    }
    Some(MongoOptions { scope, pre_images, namespaces, ..MongoOptions::new(name, uri.value) })
}

fn namespace(text: &str, scope: &Scope) -> Result<Namespace, String> {
    let (database, collection) = match text.split_once('.') {
        Some((database, collection)) => (database, Some(collection)),
        None => (text, None),
    };
    if !valid_database(database) || collection.is_some_and(|name| name.is_empty() || name.contains(['\0', '$'])) {
        return Err("is not a namespace; allowed: \"database\" or \"database.collection\"".into());
    }
    match scope {
        Scope::Database(name) if name != database => {
            Err(format!("is outside the scope {name:?}; allowed: namespaces of that database"))
        }
        _ => Ok(Namespace { database: database.into(), collection: collection.map(Into::into) }),
    }
}

pub(super) fn valid_database(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 64
        && !name.contains(['/', '\\', '.', ' ', '"', '$', '*', '<', '>', ':', '|', '?', '\0'])
}

fn ingest(mut section: Section<'_>) -> Ingest {
    let ingest = Ingest {
        ring: section.number("ring", 8_192, 64, 1 << 24) as usize,
        registration_grace: section.duration("registration_grace", 10 * SECOND, Duration::ZERO, HOUR),
        stalled_after: section.duration("stalled_after", 5 * MINUTE, Duration::ZERO, DAY),
        pause_max: section.duration("pause_max", SECOND, Duration::ZERO, MINUTE),
    };
    section.finish();
    ingest
}

fn catch_up(mut section: Section<'_>) -> CatchUp {
    let catch_up = CatchUp { halve_within: section.duration("halve_within", 5 * MINUTE, SECOND, DAY) };
    section.finish();
    catch_up
}

fn telemetry(mut section: Section<'_>) -> Telemetry {
    let is_there = |text: &str| reqwest::Url::parse(text).is_ok_and(|url| url.scheme() == "http" && url.has_host());
    let otlp_endpoint = section.parsed("otlp_endpoint", String::new(), |text| match text {
        "" => Ok(String::new()),
        text if is_there(text) => Ok(text.to_owned()),
        _ => Err("is not where traces can be sent; allowed: http://HOST:PORT of a collector on this side of any TLS, or \"\"".into()),
    });
    section.finish();
    Telemetry { otlp_endpoint }
}

fn limits(mut section: Section<'_>) -> Limits {
    const MOST: u64 = 1_000_000_000;
    let log_events = section.number("log_events", 262_144, 1_024, 1 << 28);
    let limits = Limits {
        subscriptions_per_gateway: section.number("subscriptions_per_gateway", 100_000, 1, MOST),
        subscriptions_per_tenant: section.number("subscriptions_per_tenant", 50_000, 1, MOST),
        subscriptions_per_node: section.number("subscriptions_per_node", 10_000_000, 1, MOST),
        ttl_default: section.duration("ttl_default", 5 * MINUTE, SECOND, 30 * DAY),
        ttl_min: section.duration("ttl_min", MINUTE, SECOND, 30 * DAY),
        ttl_max: section.duration("ttl_max", HOUR, SECOND, 30 * DAY),
        subscribe_items: section.number("subscribe_items", 10_000, 1, 1_000_000) as usize,
        log_bytes: section.size("log_bytes", 256 << 20, 1 << 20, 1 << 40),
        log_events,
        gateways: section.number("gateways", 64, 1, 1_000_000),
        memory: section.parsed("memory", None, |text| match text {
            "auto" => Ok(None),
            text => super::parse_size(text).map(Some).map_err(|what| format!("{what}, or \"auto\"")),
        }),
        outbox_bytes: section.size("outbox_bytes", 64 << 20, 64 << 10, 1 << 40),
        // Half of the log where nothing is said, so that a smaller log alone is no contradiction.
        outbox_events: section.number("outbox_events", log_events / 2, 64, 1 << 28),
        filter_false_positive_max: section.parsed("filter_false_positive_max", 0.02, |text| {
            let percent = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
            let fits = percent.filter(|percent| (0.01..=100.0).contains(percent));
            fits.map(|percent| percent / 100.0).ok_or_else(|| "is no such share; allowed: 0.01% to 100%".into())
        }),
    };
    if !(limits.ttl_min..=limits.ttl_max).contains(&limits.ttl_default) {
        let origin = section.origin().clone();
        let value = Some(format!("{:?}", super::show_duration(limits.ttl_default)));
        section.refuse("ttl_default", origin, value, "is out of range; allowed: ttl_min to ttl_max".into());
    }
    if limits.outbox_bytes > limits.log_bytes {
        let origin = section.origin().clone();
        let value = Some(format!("{:?}", super::show_size(limits.outbox_bytes)));
        section.refuse("outbox_bytes", origin, value, "is more than the log holds; allowed: at most log_bytes".into());
    }
    if limits.outbox_events > limits.log_events {
        let origin = section.origin().clone();
        let value = Some(limits.outbox_events.to_string());
        section.refuse(
            "outbox_events",
            origin,
            value,
            "is more than the log holds; allowed: at most log_events".into(),
        );
    }
    section.finish();
    limits
}

/// Rules that concern more than one section.
fn across(root: &mut Section<'_>, config: &Config) {
    if config.is_open() {
        for (key, listen) in [("http.listen", &config.http.listen), ("quic.listen", &config.quic.listen)] {
            if !listen.value.ip().is_loopback() {
                let value = Some(format!("\"{}\"", listen.value));
                let message = "would let anyone in, since no Gateways are configured; allowed: a loopback address such as \
                               \"127.0.0.1:8083\", or at least one [[gateways]]";
                root.refuse(key, listen.origin.clone(), value, message.into());
            }
        }
    }
    let quic = &config.quic;
    if quic.listen.value.ip().is_unspecified() && quic.advertise.is_none() {
        let value = Some(format!("\"{}\"", quic.listen.value));
        let message =
            "names no address that a Gateway could connect to; allowed: together with quic.advertise = \"host\"";
        root.refuse("quic.listen", quic.listen.origin.clone(), value, message.into());
    }
    if quic.heartbeat >= quic.received_deadline {
        let value = Some(format!("{:?}", super::show_duration(quic.heartbeat)));
        root.refuse(
            "quic.heartbeat",
            Origin::Absent,
            value,
            "is too long; allowed: less than quic.received_deadline".into(),
        );
    }
    let is_embedded = |backend: &&Backend| matches!(backend.kind, BackendKind::Embedded(_));
    if let (HistoryLost::FromTimestamp { .. }, Some(backend)) =
        (config.checkpoint.on_history_lost, config.backends.iter().find(is_embedded))
    {
        let message = format!(
            "needs a source that finds its place by a time, and the embedded backend {:?} doesn't; allowed with it: \"fail\", \
             \"from_now\"",
            backend.name
        );
        root.refuse("checkpoint.on_history_lost", Origin::Absent, Some("\"from_timestamp\"".into()), message);
    }
    let (mut names, mut tokens) = (HashMap::new(), HashMap::new());
    for (index, gateway) in config.gateways.iter().enumerate() {
        if let Some(other) = names.insert(&gateway.name, index) {
            let key = format!("gateways[{index}].name");
            let message = format!("is taken by gateways[{other}]; allowed: each name once");
            root.refuse(&key, Origin::Absent, Some(format!("{:?}", gateway.name)), message);
        }
        if let Some(other) = tokens.insert(gateway.token_sha256, index) {
            let key = format!("gateways[{index}].token_sha256");
            let message =
                format!("is that of gateways[{other}] too; allowed: a token of its own, since it says who calls");
            root.refuse(&key, Origin::Absent, None, message);
        }
    }
    let mut ids: HashMap<BackendId, usize> = HashMap::new();
    let mut directories = HashMap::new();
    for (index, backend) in config.backends.iter().enumerate() {
        let key = format!("backends[{index}].name");
        if let Some(other) = ids.insert(BackendId::of_name(&backend.name), index) {
            let message = if config.backends[other].name == backend.name {
                format!("is taken by backends[{other}]; allowed: each name once")
            } else {
                format!("has the same 32-bit id as {:?}; allowed: any other name", config.backends[other].name)
            };
            root.refuse(&key, Origin::Absent, Some(format!("{:?}", backend.name)), message);
        }
        if let BackendKind::Embedded(embedded) = &backend.kind
            && let Some(other) = directories.insert(&embedded.directory, index)
        {
            let key = format!("backends[{index}].directory");
            let shown = Some(format!("{:?}", embedded.directory));
            root.refuse(
                &key,
                Origin::Absent,
                shown,
                format!("is that of backends[{other}] too; allowed: one for each"),
            );
        }
    }
}

fn required(section: &mut Section<'_>, key: &'static str, allowed: &str) {
    if !section.is_given(key) {
        let origin = section.origin().clone();
        section.refuse(key, origin, None, format!("is missing; allowed: {allowed}"));
    }
}

fn path(section: &mut Section<'_>, key: &'static str) -> Option<Given<PathBuf>> {
    let given = section.text(key)?;
    // Empty text stands for "none", so that the default file can show the key.
    (!given.value.is_empty()).then(|| Given { value: given.value.into(), origin: given.origin })
}

/// Of Gateways and backends: 1 to 128 of `[a-zA-Z0-9_-]`.
pub fn valid_gateway_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// 1 to 256 bytes without control characters.
pub fn valid_tenant_name(name: &str) -> bool {
    (1..=256).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// 64 hexadecimal digits.
pub fn parse_token_hash(text: &str) -> Result<TokenHash, String> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    match digits {
        Some(digits) if digits.len() == 64 => {
            let mut hash = [0; 32];
            for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
                *byte = pair[0] << 4 | pair[1];
            }
            Ok(TokenHash(hash))
        }
        _ => Err("is not a SHA-256; allowed: 64 hexadecimal digits, as `streamer token new NAME` prints them".into()),
    }
}
