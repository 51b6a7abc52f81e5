//! What of the configuration may change while the node runs.
//!
//! Invariants:
//! - All or nothing: everything that can fail is done before anything is changed.
//! - Each key of the configuration is in [`KEYS`], which says whether it reloads; a test holds that against `default.toml`.
//! - Whatever has changed and doesn't reload is named.

use crate::{
    config::{Config, Gateway, Tenants},
    tls::{self, Certificate, CertificateError},
};

/// A key, whether it reloads, and its value in a form that can be compared.
type Key = (&'static str, bool, fn(&Config) -> String);

/// The value of a field, as it is written for debugging.
macro_rules! key {
    ($name:literal, $reloads:literal, $($field:ident).+) => {
        ($name, $reloads, |config| format!("{:?}", config.$($field).+))
    };
}

/// Every key. Those of `[mapping]`, `[[backends]]` and `[checkpoint]` are compared together.
const KEYS: &[Key] = &[
    key!("node.data_dir", false, node.data_dir),
    key!("node.runtime", false, node.runtime),
    key!("node.shutdown_spread", true, node.shutdown_spread),
    key!("node.shutdown_flush", true, node.shutdown_flush),
    key!("log.level", true, log.level),
    key!("log.format", false, log.format),
    key!("affinity.ingest", false, affinity.ingest.value),
    key!("affinity.control", false, affinity.control.value),
    key!("affinity.shards", false, affinity.shards.value),
    key!("http.listen", false, http.listen.value),
    key!("http.max_body", false, http.max_body),
    key!("quic.listen", false, quic.listen.value),
    key!("quic.advertise", false, quic.advertise),
    key!("quic.idle_timeout", false, quic.idle_timeout),
    key!("quic.send_window", false, quic.send_window),
    key!("quic.max_incoming", false, quic.max_incoming),
    key!("quic.max_sessions", false, quic.max_sessions),
    key!("quic.gso", false, quic.gso),
    key!("quic.received_deadline", false, quic.received_deadline),
    key!("quic.heartbeat", false, quic.heartbeat),
    ("tls.certificate", true, |config| {
        format!("{:?}", config.tls.files.as_ref().map(|files| &files.certificate.value))
    }),
    ("tls.key", true, |config| format!("{:?}", config.tls.files.as_ref().map(|files| &files.key.value))),
    key!("gateways", true, gateways),
    key!("admin.token_sha256", true, admin.token_sha256),
    ("mapping", false, |config| format!("{:?} {:?}", config.mapping, config.deletes)),
    key!("backends", false, backends),
    key!("checkpoint", false, checkpoint),
    key!("ingest.ring", false, ingest.ring),
    key!("ingest.registration_grace", false, ingest.registration_grace),
    key!("ingest.stalled_after", false, ingest.stalled_after),
    key!("ingest.pause_max", false, ingest.pause_max),
    key!("catch_up.halve_within", false, catch_up.halve_within),
    key!("telemetry.otlp_endpoint", false, telemetry.otlp_endpoint),
    key!("limits.subscriptions_per_gateway", true, limits.subscriptions_per_gateway),
    key!("limits.subscriptions_per_tenant", true, limits.subscriptions_per_tenant),
    key!("limits.subscriptions_per_node", true, limits.subscriptions_per_node),
    key!("limits.ttl_default", true, limits.ttl_default),
    key!("limits.ttl_min", true, limits.ttl_min),
    key!("limits.ttl_max", true, limits.ttl_max),
    key!("limits.subscribe_items", true, limits.subscribe_items),
    key!("limits.outbox_bytes", true, limits.outbox_bytes),
    key!("limits.outbox_events", true, limits.outbox_events),
    key!("limits.log_bytes", false, limits.log_bytes),
    key!("limits.log_events", false, limits.log_events),
    key!("limits.gateways", false, limits.gateways),
    key!("limits.memory", false, limits.memory),
    key!("limits.filter_false_positive_max", false, limits.filter_false_positive_max),
];

/// Why a configuration was not taken while the node runs. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("changed, and only read at the start: {}. Put it back, or restart the node", .0.join(", "))]
    NeedsRestart(Vec<&'static str>),
    #[error(
        "gateways: {0:?} may name fewer tenants than before, and its subscriptions to the others would go on. Restart the node, or take \
         its token away"
    )]
    Narrowed(String),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("{0}")]
    Memory(String),
    #[error("log.level: {0}")]
    LogLevel(String),
}

/// The keys that reload.
pub fn reloading() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(|(_, reloads, _)| *reloads).map(|(key, ..)| *key)
}

/// What a new configuration comes to.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The keys that have changed.
    pub(crate) changed: Vec<&'static str>,
    pub(crate) certificate: Certificate,
    /// Gateways whose token isn't good any more.
    pub(crate) revoked: Vec<String>,
}

/// Holds the new configuration against the one in use. Changes nothing.
pub(crate) fn plan(old: &Config, new: &Config) -> Result<Plan, ReloadError> {
    let differs = |(_, _, value): &&Key| value(old) != value(new);
    let (changed, fixed): (Vec<&Key>, Vec<&Key>) = KEYS.iter().filter(differs).partition(|(_, reloads, _)| *reloads);
    if !fixed.is_empty() {
        return Err(ReloadError::NeedsRestart(fixed.iter().map(|(key, ..)| *key).collect()));
    }
    let now = |name: &str| new.gateways.iter().find(|gateway| gateway.name == name);
    let is_narrowed =
        |gateway: &&Gateway| now(&gateway.name).is_some_and(|now| !covers(&now.tenants, &gateway.tenants));
    if let Some(narrowed) = old.gateways.iter().find(is_narrowed) {
        return Err(ReloadError::Narrowed(narrowed.name.clone()));
    }
    let is_revoked = |gateway: &&Gateway| now(&gateway.name).is_none_or(|now| now.token_sha256 != gateway.token_sha256);
    let revoked = old.gateways.iter().filter(is_revoked).map(|gateway| gateway.name.clone()).collect();
    // The files may be others under the same names.
    let certificate = tls::load_or_make(new)?;
    Ok(Plan { changed: changed.iter().map(|(key, ..)| *key).collect(), certificate, revoked })
}

/// Whether whoever may name `all` may name each of `some`.
fn covers(all: &Tenants, some: &Tenants) -> bool {
    match some {
        Tenants::All => matches!(all, Tenants::All),
        Tenants::Only(names) => names.iter().all(|tenant| all.allow(tenant)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::DEFAULT_FILE;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn config(folder: &std::path::Path, text: &str) -> Config {
        let text = format!("[node]\ndata_dir = {folder:?}\n{text}");
        Config::from_parts(None, &text, []).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn each_key_of_the_default_file_is_known_here_and_no_other() {
        let table: toml::Table = DEFAULT_FILE.parse().unwrap();
        let mut keys: BTreeSet<String> = ["gateways", "backends"].map(String::from).into();
        for (section, values) in &table {
            match section.as_str() {
                "mapping" | "checkpoint" => _ = keys.insert(section.clone()),
                _ => keys.extend(values.as_table().unwrap().keys().map(|key| format!("{section}.{key}"))),
            }
        }
        let known: BTreeSet<String> = KEYS.iter().map(|(key, ..)| (*key).to_owned()).collect();
        assert_eq!(known, keys);
        assert_eq!(known.len(), KEYS.len(), "a key is there twice");
    }

    /// A key whose value were read from another field would be neither applied nor refused.
    #[test]
    fn a_change_of_a_key_is_a_change_of_that_key_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let old = config(folder.path(), "");
        for (text, keys) in [
            ("[limits]\nsubscriptions_per_gateway = 7", &["limits.subscriptions_per_gateway"][..]),
            ("[limits]\nsubscriptions_per_tenant = 7", &["limits.subscriptions_per_tenant"]),
            ("[limits]\nsubscriptions_per_node = 7", &["limits.subscriptions_per_node"]),
            ("[limits]\nttl_default = \"7m\"", &["limits.ttl_default"]),
            ("[limits]\nttl_min = \"2m\"", &["limits.ttl_min"]),
            ("[limits]\nttl_max = \"2h\"", &["limits.ttl_max"]),
            ("[limits]\nsubscribe_items = 7", &["limits.subscribe_items"]),
            ("[limits]\noutbox_bytes = \"65MiB\"", &["limits.outbox_bytes"]),
            ("[log]\nlevel = \"debug\"", &["log.level"]),
            (&format!("[admin]\ntoken_sha256 = \"{TOKEN}\""), &["admin.token_sha256"]),
            ("", &[]),
        ] {
            assert_eq!(plan(&old, &config(folder.path(), text)).unwrap().changed, keys, "{text}");
        }
        for (text, keys) in [
            ("[limits]\nlog_bytes = \"300MiB\"\nttl_max = \"2h\"", "limits.log_bytes"),
            ("[ingest]\nring = 512\n[http]\nlisten = \"127.0.0.1:9\"", "http.listen, ingest.ring"),
            ("[mapping]\ndeletes = \"known\"", "mapping"),
            ("[checkpoint]\nevery = \"9s\"", "checkpoint"),
            ("[[backends]]\nname = \"b\"\nkind = \"embedded\"", "backends"),
            ("[quic]\nheartbeat = \"2s\"", "quic.heartbeat"),
        ] {
            let error = plan(&old, &config(folder.path(), text)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("changed, and only read at the start: {keys}. ")), "{text}: {error}");
        }
    }

    #[test]
    fn whose_token_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let gateway = |name: &str, token: &str, tenants: &str| {
            format!("[[gateways]]\nname = {name:?}\ntoken_sha256 = {token:?}\ntenants = {tenants}\n")
        };
        let (a, b) = (TOKEN.to_owned(), TOKEN.replace('0', "f"));
        let old = format!("{}{}", gateway("a", &a, "[\"x\"]"), gateway("b", &b, "[\"*\"]"));
        let plan = |text: &str| plan(&config(folder.path(), &old), &config(folder.path(), text));
        assert!(plan(&old).unwrap().revoked.is_empty());
        let wider = format!("{}{}", gateway("a", &a, "[\"y\", \"x\"]"), gateway("b", &b, "[\"*\"]"));
        let wider = plan(&wider).unwrap();
        assert_eq!((wider.changed, wider.revoked), (vec!["gateways"], vec![]));
        assert_eq!(plan(&gateway("b", &b, "[\"*\"]")).unwrap().revoked, ["a"]);
        assert_eq!(plan(&gateway("b", &a, "[\"*\"]")).unwrap().revoked, ["a", "b"]);
        assert_eq!(plan("").unwrap().revoked, ["a", "b"]);
        for text in [gateway("b", &b, "[\"x\"]"), gateway("a", &a, "[\"y\"]")] {
            assert!(matches!(plan(&text), Err(ReloadError::Narrowed(_))), "{text}");
        }
    }
}
