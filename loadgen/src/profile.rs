//! What kind of load: a TOML file, one of those in `profiles/` by its name or one of the user's.

use std::{fs, path::Path};

use serde::Deserialize;

/// Profiles that the program brings along, by name.
const BUILT_IN: [(&str, &str); 9] = [
    ("chat", include_str!("../profiles/chat.toml")),
    ("orders", include_str!("../profiles/orders.toml")),
    ("iot", include_str!("../profiles/iot.toml")),
    ("hot-tenant", include_str!("../profiles/hot-tenant.toml")),
    ("misses", include_str!("../profiles/misses.toml")),
    ("cel", include_str!("../profiles/cel.toml")),
    ("presence", include_str!("../profiles/presence.toml")),
    ("reconnect-storm", include_str!("../profiles/reconnect-storm.toml")),
    ("slow-gateway", include_str!("../profiles/slow-gateway.toml")),
];

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What it stands for, in a line.
    pub description: String,
    pub tenants: u32,
    /// Collections with subscriptions, dealt out among the tenants.
    pub collections: u32,
    /// Subscriptions that an event matches in the mean: how many values `key` has follows from it.
    pub matches: f64,
    /// Exponent of the Zipf distribution by which events draw their key. 0: all alike.
    #[serde(default)]
    pub skew: f64,
    /// Share of the events that go to the first tenant's collections. Absent: as many as to any other.
    #[serde(default)]
    pub hot_share: Option<f64>,
    /// Share of the events that go to collections that nobody watches.
    #[serde(default)]
    pub miss_share: f64,
    /// Bytes of a document, at least.
    pub document_bytes: usize,
    /// Every so often all Gateways leave at once without a word, and come back for what they lack.
    #[serde(default)]
    pub reconnect_every_ms: Option<u64>,
    /// Every so often the first Gateway takes nothing for `stall_ms`.
    #[serde(default)]
    pub stall_every_ms: Option<u64>,
    #[serde(default)]
    pub stall_ms: Option<u64>,
    pub subscriptions: Vec<Shape>,
}

/// Subscriptions of one kind.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    pub what: Kind,
    /// Its weight among the profile's shapes.
    pub share: f64,
}

/// What a subscription asks for. An event has a text `key`, an integer `size` from 0 to 999, a text `kind` (one of eight), a number
/// `n` and a filling `text`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `key == k`
    Key,
    /// `key == k` and `size >= s`
    KeyAndSize,
    /// `key in [k, …]` of five
    Keys,
    /// The CEL expression `doc.key == k && doc.size >= s`
    Expression,
    /// `size >= s && size < s + 10`
    Size,
    /// The whole collection.
    Everything,
}

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("there is no profile {name:?}; allowed: a file, or {}", names().join(", "))]
    Unknown { name: String },
    #[error("profile {name:?} can't be read: {error}")]
    Unreadable { name: String, error: std::io::Error },
    #[error("profile {name:?} is not well: {error}")]
    Malformed { name: String, error: toml::de::Error },
    #[error("profile {name:?} has {key} = {value}; allowed: {allowed}")]
    OutOfRange { name: String, key: &'static str, value: String, allowed: &'static str },
}

/// Names of the built-in profiles.
pub fn names() -> Vec<&'static str> {
    BUILT_IN.iter().map(|(name, _)| *name).collect()
}

impl Profile {
    /// The built-in profile of this name, or the one in this file.
    ///
    /// # Errors
    /// Which key is wrong, and what is allowed.
    pub fn load(name: &str) -> Result<Self, ProfileError> {
        let named = || name.to_owned();
        let text = match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((_, text)) => (*text).to_owned(),
            None if Path::new(name).exists() => {
                fs::read_to_string(name).map_err(|error| ProfileError::Unreadable { name: named(), error })?
            }
            None => return Err(ProfileError::Unknown { name: named() }),
        };
        let profile: Self = toml::from_str(&text).map_err(|error| ProfileError::Malformed { name: named(), error })?;
        profile.check(name)?;
        Ok(profile)
    }

    fn check(&self, name: &str) -> Result<(), ProfileError> {
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        let wrong =
            |key, value: String, allowed| Err(ProfileError::OutOfRange { name: name.to_owned(), key, value, allowed });
        let Self { tenants, collections, matches, skew, hot_share, miss_share, document_bytes, subscriptions, .. } =
            self;
        let times = [
            ("reconnect_every_ms", self.reconnect_every_ms),
            ("stall_every_ms", self.stall_every_ms),
            ("stall_ms", self.stall_ms),
        ];
        if let Some((key, value)) =
            times.into_iter().find(|(_, ms)| ms.is_some_and(|ms| !(10..=3_600_000).contains(&ms)))
        {
            return wrong(key, value.unwrap_or_default().to_string(), "from 10 to 3,600,000");
        }
        if self.stall_every_ms.is_some() != self.stall_ms.is_some() {
            return wrong("stall_ms", format!("{:?}", self.stall_ms), "together with stall_every_ms, or neither");
        }
        if self.reconnect_every_ms.is_some() && self.stall_ms.is_some() {
            return wrong("reconnect_every_ms", format!("{:?}", self.reconnect_every_ms), "without stall_ms");
        }
        if *tenants == 0 || tenants > collections {
            return wrong("tenants", tenants.to_string(), "from 1 to the number of collections");
        }
        if !(*matches > 0.0 && *matches <= 10_000.0) {
            return wrong("matches", matches.to_string(), "above 0, at most 10,000");
        }
        if !(0.0..=3.0).contains(skew) {
            return wrong("skew", skew.to_string(), "from 0 to 3");
        }
        if let Some(share) = hot_share.filter(|share| !is_share(*share)) {
            return wrong("hot_share", share.to_string(), "from 0 to 1");
        }
        if !is_share(*miss_share) {
            return wrong("miss_share", miss_share.to_string(), "from 0 to 1");
        }
        if *document_bytes > 1 << 20 {
            return wrong("document_bytes", document_bytes.to_string(), "at most 1,048,576");
        }
        if !subscriptions.iter().any(|shape| shape.share > 0.0) || subscriptions.iter().any(|shape| shape.share < 0.0) {
            return wrong(
                "subscriptions",
                subscriptions.len().to_string(),
                "shapes, none of a negative share, one above 0",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_profile_is_well() {
        for name in names() {
            let profile = Profile::load(name).unwrap();
            assert!(!profile.description.is_empty(), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = Profile::load("chatt").unwrap_err().to_string();
        assert!(error.contains("\"chatt\"") && error.contains("chat, orders"), "{error}");
        let good = BUILT_IN[0].1;
        for (from, to, words) in [
            ("tenants = ", "tenants = 0 #", "has tenants = 0; allowed: from 1"),
            ("matches = ", "matches = -1.0 #", "has matches = -1; allowed: above 0"),
            ("description = ", "colour = ", "unknown field `colour`"),
            ("tenants = ", "stall_ms = 5\ntenants = ", "has stall_ms = 5; allowed: from 10"),
            ("tenants = ", "stall_ms = 50\ntenants = ", "together with stall_every_ms"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("p.toml");
            fs::write(&file, good.replacen(from, to, 1)).unwrap();
            let error = Profile::load(file.to_str().unwrap()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
