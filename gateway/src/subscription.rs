//! What an application asks for.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wire::{Positions, SubscribeItem, SubscriptionKey};

use crate::Error;

/// A subscription in the making: to a collection of a tenant, narrowed by filters and an expression that all must hold.
///
/// ```
/// use streamer_gateway::Subscription;
///
/// let adults = Subscription::new("acme", "users").id("adults").filter("age", ">=", 18).expr("doc.country in ['NL', 'BE']");
/// ```
#[derive(Clone, Debug)]
pub struct Subscription {
    tenant: String,
    collection: String,
    id: Option<String>,
    filters: Vec<Value>,
    expr: String,
    ttl_s: u32,
    transitions: bool,
    positions: Positions,
    group: Option<String>,
    lossy: bool,
}

impl Subscription {
    /// To the whole collection, a `/`-separated path.
    pub fn new(tenant: impl Into<String>, collection: impl Into<String>) -> Self {
        Self {
            tenant: tenant.into(),
            collection: collection.into(),
            id: None,
            filters: Vec::new(),
            expr: String::new(),
            ttl_s: 0,
            transitions: true,
            positions: Positions::default(),
            group: None,
            lossy: false,
        }
    }

    /// Its name, unique within this Gateway and tenant, of `[a-zA-Z0-9_-]`. Without one it gets a name made of what it asks
    /// for, which is the same in every process, so that it goes on where it was.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// `field` is a dotted path; `op` one of `==` `!=` `>` `>=` `<` `<=` `in` `not-in` `contains` `contains-any`
    /// `starts-with`, or the word forms `eq ne gt gte lt lte`. Dates, ids and decimals are written as MongoDB's extended
    /// JSON. The field `_id` with `==` subscribes to one document.
    pub fn filter(mut self, field: &str, op: &str, value: impl Into<Value>) -> Self {
        self.filters.push(json!({"field": field, "op": op, "value": value.into()}));
        self
    }

    /// A CEL expression that yields a bool. It sees `doc`, `before`, `tenant`, `collection`, `id` and `type`.
    pub fn expr(mut self, expr: impl Into<String>) -> Self {
        self.expr = expr.into();
        self
    }

    /// Seconds, 60 to 3,600, that the node keeps the subscription while this Gateway is not connected. Without it: the
    /// node's default, 300 unless configured otherwise.
    pub fn ttl(mut self, seconds: u32) -> Self {
        self.ttl_s = seconds;
        self
    }

    /// Whether documents that stop matching are told as `leave`. They are, unless this says `false`.
    pub fn transitions(mut self, transitions: bool) -> Self {
        self.transitions = transitions;
        self
    }

    /// Up to where the application has everything. Without it, changes from now on.
    pub fn from(mut self, positions: Positions) -> Self {
        self.positions = positions;
        self
    }

    /// Carried to the node, which does not act on it yet.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Carried to the node, which does not act on it yet.
    pub fn lossy(mut self, lossy: bool) -> Self {
        self.lossy = lossy;
        self
    }

    /// What names it.
    pub fn key(&self) -> SubscriptionKey {
        let id = self.id.clone().unwrap_or_else(|| self.made_id());
        SubscriptionKey { tenant: self.tenant.clone(), id }
    }

    fn filters_text(&self) -> String {
        if self.filters.is_empty() { String::new() } else { Value::from(self.filters.clone()).to_string() }
    }

    fn made_id(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.collection, &self.filters_text(), &self.expr, &self.transitions.to_string()] {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        hash.finalize()[..12].iter().fold(String::from("auto-"), |text, byte| text + &format!("{byte:02x}"))
    }

    /// What the node can't but refuse is refused here. The rest (paths, filters, the expression) is the node's to judge.
    pub(crate) fn into_item(self) -> Result<SubscribeItem, Error> {
        let key = self.key();
        let id_is_good = !key.id.is_empty() && key.id.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        if !id_is_good {
            return Err(Error::Invalid(format!(
                "subscription id {:?}: one or more of [a-zA-Z0-9_-] are allowed",
                key.id
            )));
        }
        if self.tenant.is_empty() || self.collection.is_empty() {
            return Err(Error::Invalid(format!("subscription {:?}: tenant and collection must not be empty", key.id)));
        }
        if self.ttl_s != 0 && !(60..=3_600).contains(&self.ttl_s) {
            let what = format!("subscription {:?}: a ttl of {} s, where 60 to 3600 are allowed", key.id, self.ttl_s);
            return Err(Error::Invalid(what));
        }
        Ok(SubscribeItem {
            filters: self.filters_text(),
            key,
            collection: self.collection,
            expr: self.expr,
            ttl_s: self.ttl_s,
            transitions: self.transitions,
            positions: self.positions,
            group: self.group,
            lossy: self.lossy,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn becomes_what_the_protocol_carries() {
        let item = Subscription::new("t", "rooms/1/messages")
            .id("s-1")
            .filter("age", ">=", 18)
            .filter("_id", "==", "x")
            .expr("doc.a == 1")
            .ttl(60)
            .transitions(false)
            .into_item()
            .unwrap();
        assert_eq!(item.key, SubscriptionKey { tenant: "t".into(), id: "s-1".into() });
        let filters: Value = serde_json::from_str(&item.filters).unwrap();
        assert_eq!(
            filters,
            json!([{"field": "age", "op": ">=", "value": 18}, {"field": "_id", "op": "==", "value": "x"}])
        );
        assert_eq!((item.ttl_s, item.transitions, item.expr.as_str()), (60, false, "doc.a == 1"));
        assert_eq!(Subscription::new("t", "c").into_item().unwrap().filters, "");
    }

    #[test]
    fn a_made_id_depends_on_what_is_asked_for_alone() {
        let id = |subscription: Subscription| subscription.key().id;
        let base = || Subscription::new("t", "c").filter("a", "==", 1);
        assert_eq!(id(base()), id(base().ttl(100)));
        for other in
            [Subscription::new("t", "d").filter("a", "==", 1), base().filter("b", "==", 1), base().expr("true")]
        {
            assert_ne!(id(base()), id(other.clone()), "{other:?}");
        }
        assert!(base().into_item().is_ok());
    }

    #[test]
    fn what_the_node_would_refuse_is_refused() {
        for (subscription, names) in [
            (Subscription::new("t", "c").id("a b"), "a b"),
            (Subscription::new("t", "c").id(""), "[a-zA-Z0-9_-]"),
            (Subscription::new("", "c"), "tenant"),
            (Subscription::new("t", ""), "collection"),
            (Subscription::new("t", "c").ttl(59), "60 to 3600"),
            (Subscription::new("t", "c").ttl(3_601), "3601"),
        ] {
            let error = subscription.into_item().unwrap_err().to_string();
            assert!(error.contains(names), "{error}");
        }
    }
}
