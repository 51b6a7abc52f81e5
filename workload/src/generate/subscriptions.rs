//! Subscriptions of every kind, in turn.

use std::collections::HashMap;

use bson::{Bson, Document, doc};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use wire::{Positions, SubscribeItem, SubscriptionKey};

use super::{
    Profile,
    documents::{CITIES, NAMES, PREFIXES, STATUSES, TAGS, big, date, pick, price, quantity, reference},
};
use crate::oracle::{OracleSubscription, Preset};

/// Labels of what subscriptions exercise. `cel` has counterparts in a native form, `cel-interpreted` needs the interpreter,
/// `cel-change` reads `before` or `type`, `mixed` has several filters and an expression.
pub const OPS: [&str; 17] = [
    "eq",
    "ne",
    "gt",
    "gte",
    "lt",
    "lte",
    "in",
    "not-in",
    "contains",
    "contains-any",
    "starts-with",
    "document",
    "collection",
    "cel",
    "cel-interpreted",
    "cel-change",
    "mixed",
];

/// Seconds that generated subscriptions outlive their Gateway's session: the default of the contract.
const TTL_S: u32 = 300;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedSubscription {
    /// Index of the Gateway; see [`gateway_name`].
    pub gateway: usize,
    /// Ids repeat in other tenants and Gateways, where they mean other subscriptions.
    pub key: SubscriptionKey,
    pub collection: String,
    pub filters: String,
    pub expr: String,
    pub transitions: bool,
    /// One of [`OPS`].
    pub op: &'static str,
}

/// The id of the Gateway with this index.
pub fn gateway_name(index: usize) -> String {
    format!("gateway-{index}")
}

impl GeneratedSubscription {
    pub fn gateway_name(&self) -> String {
        gateway_name(self.gateway)
    }

    /// What the oracle is told.
    pub fn to_oracle(&self) -> OracleSubscription {
        OracleSubscription {
            gateway: self.gateway_name(),
            key: self.key.clone(),
            collection: self.collection.clone(),
            filters: self.filters.clone(),
            expr: self.expr.clone(),
            transitions: self.transitions,
        }
    }

    /// What the node is told.
    pub fn to_item(&self) -> SubscribeItem {
        SubscribeItem {
            key: self.key.clone(),
            collection: self.collection.clone(),
            filters: self.filters.clone(),
            expr: self.expr.clone(),
            ttl_s: TTL_S,
            transitions: self.transitions,
            positions: Positions::default(),
            group: None,
            lossy: false,
        }
    }
}

pub(super) fn generate(profile: &Profile, mut random: ChaCha8Rng, n: usize) -> Vec<GeneratedSubscription> {
    let mut numbers: HashMap<(usize, usize), usize> = HashMap::new();
    let ops: Vec<&'static str> = OPS.into_iter().filter(|op| profile.reads_change || *op != "cel-change").collect();
    (0..n)
        .map(|i| {
            let op = ops[i % ops.len()];
            let tenant = random.random_range(0..profile.tenants);
            let collection = random.random_range(0..profile.collections);
            let gateway = random.random_range(0..profile.gateways);
            let number = numbers.entry((gateway, tenant)).or_default();
            let id = format!("s-{number}");
            *number += 1;
            let (filters, expr) = condition(profile, &mut random, op);
            GeneratedSubscription {
                gateway,
                key: SubscriptionKey { tenant: profile.tenant(tenant), id },
                collection: profile.collection(collection),
                filters: json(filters),
                expr,
                transitions: random.random_ratio(3, 4),
                op,
            }
        })
        .collect()
}

/// Canonical extended JSON, so that the types of numbers survive. Empty text for no filters.
fn json(filters: Vec<Document>) -> String {
    if filters.is_empty() {
        return String::new();
    }
    Bson::Array(filters.into_iter().map(Bson::Document).collect()).into_canonical_extjson().to_string()
}

fn filter(field: &str, op: &str, value: impl Into<Bson>) -> Document {
    doc! { "field": field, "op": op, "value": value.into() }
}

/// Filters and expression for one op.
fn condition(profile: &Profile, random: &mut ChaCha8Rng, op: &str) -> (Vec<Document>, String) {
    let none = String::new();
    match op {
        "document" => {
            let id = profile.document_id(random.random_range(0..profile.documents));
            (vec![filter("_id", "==", id)], none)
        }
        "collection" => (Vec::new(), none),
        "cel" => (Vec::new(), native(random)),
        "cel-interpreted" => (Vec::new(), interpreted(random)),
        "cel-change" => (Vec::new(), about_the_change(random)),
        "mixed" => {
            let status = filter("status", "!=", pick(random, &STATUSES));
            let level = filter("owner.level", ">=", random.random_range(0..3_i32));
            let expr = if random.random() { native(random) } else { interpreted(random) };
            (vec![status, level], expr)
        }
        op => {
            let (field, spelled, value) = comparison(random, op);
            // The user's fields may be written with the prefix that they have in storage.
            let prefix = if profile.preset == Preset::Syntrix && random.random_ratio(1, 4) { "data." } else { "" };
            let mut filters = vec![filter(&format!("{prefix}{field}"), spelled, value)];
            if random.random_ratio(1, 4) {
                filters.push(filter("status", "in", statuses(random)));
            }
            (filters, none)
        }
    }
}

/// Three of the five statuses, or two where one comes twice.
fn statuses(random: &mut ChaCha8Rng) -> Vec<&'static str> {
    (0..3).map(|_| pick(random, &STATUSES)).collect()
}

/// Field, op as written, and value of the filter that exercises `op`.
fn comparison(random: &mut ChaCha8Rng, op: &str) -> (&'static str, &'static str, Bson) {
    let spelled = |random: &mut ChaCha8Rng, forms: &[&'static str]| pick(random, forms);
    match op {
        "eq" => {
            let (field, value) = match random.random_range(0..10) {
                0 => ("owner.address.city", pick(random, &CITIES).into()),
                1 => ("qty", quantity(random)),
                2 => ("price", price(random)),
                3 => ("big", big(random)),
                4 => ("ref", reference(random)),
                5 => ("flag", Bson::Boolean(random.random())),
                6 => ("note", Bson::Null),
                7 => ("owner.name", pick(random, &NAMES).into()),
                _ => ("status", pick(random, &STATUSES).into()),
            };
            (field, spelled(random, &["==", "eq"]), value)
        }
        "ne" => {
            let (field, value) = match random.random_range(0..4) {
                0 => ("note", pick(random, &NAMES).into()),
                1 => ("big", big(random)),
                2 => ("flag", Bson::Boolean(random.random())),
                _ => ("status", pick(random, &STATUSES).into()),
            };
            (field, spelled(random, &["!=", "ne"]), value)
        }
        "gt" | "gte" | "lt" | "lte" => {
            let (field, value) = match random.random_range(0..7) {
                0 => ("price", price(random)),
                1 => ("big", big(random)),
                2 => ("due", date(random)),
                3 => ("title", pick(random, &PREFIXES).into()),
                4 => ("note", quantity(random)),
                5 => ("owner.level", Bson::Double(f64::from(random.random_range(1..5_u8)) - 0.5)),
                _ => ("qty", quantity(random)),
            };
            let forms: [&'static str; 2] = match op {
                "gt" => [">", "gt"],
                "gte" => [">=", "gte"],
                "lt" => ["<", "lt"],
                _ => ["<=", "lte"],
            };
            (field, spelled(random, &forms), value)
        }
        "in" => match random.random_range(0..4) {
            0 => ("qty", "in", Bson::Array((0..4).map(|_| quantity(random)).collect())),
            1 => ("big", "in", Bson::Array((0..2).map(|_| big(random)).collect())),
            // Values of several types in one list.
            2 => ("note", "in", Bson::Array(vec![Bson::Null, pick(random, &NAMES).into(), quantity(random)])),
            _ => ("status", "in", statuses(random).into()),
        },
        "not-in" => match random.random_range(0..2) {
            0 => ("note", "not-in", Bson::Array(vec![Bson::Null, pick(random, &NAMES).into()])),
            _ => ("status", "not-in", statuses(random).into()),
        },
        "contains" => {
            let spelled = spelled(random, &["contains", "array-contains"]);
            match random.random_range(0..3) {
                0 => ("scores", spelled, quantity(random)),
                _ => ("tags", spelled, pick(random, &TAGS).into()),
            }
        }
        "contains-any" => match random.random_range(0..3) {
            0 => ("scores", "contains-any", Bson::Array((0..4).map(|_| quantity(random)).collect())),
            _ => ("tags", "contains-any", vec![pick(random, &TAGS), pick(random, &TAGS)].into()),
        },
        "starts-with" => match random.random_range(0..3) {
            0 => ("owner.address.city", "starts-with", pick(random, &["K", "東", "São ", "C"]).into()),
            _ => ("title", "starts-with", pick(random, &PREFIXES).into()),
        },
        _ => unreachable!("OPS names no other op"),
    }
}

fn native(random: &mut ChaCha8Rng) -> String {
    let status = pick(random, &STATUSES);
    let other = pick(random, &STATUSES);
    let n = random.random_range(0..20);
    let level = random.random_range(1..5);
    match random.random_range(0..10) {
        0 => format!("doc.status == '{status}'"),
        1 => format!("doc.status == '{status}' && doc.qty > {n}"),
        2 => format!("doc.owner.level >= {level} || doc.status == '{status}'"),
        3 => format!("!(doc.status == '{status}')"),
        4 => "has(doc.flag) && doc.flag".to_owned(),
        5 => format!("data.owner.address.city == '{}' && doc.qty <= {n}.5", pick(random, &CITIES)),
        6 => format!("doc.status in ['{status}', '{other}']"),
        7 => format!("doc.title.startsWith('{}')", pick(random, &PREFIXES)),
        // The error of a document without a flag is absorbed where the other side decides.
        8 => format!("doc.flag == true || doc.status == '{status}'"),
        _ => format!("'{}' in doc.tags", pick(random, &TAGS)),
    }
}

fn interpreted(random: &mut ChaCha8Rng) -> String {
    let n = random.random_range(2..18);
    match random.random_range(0..7) {
        0 => format!("doc.tags.exists(t, t == '{}')", pick(random, &TAGS)),
        1 => format!("size(doc.tags) > {}", random.random_range(0..3)),
        2 => format!("size(doc.scores) > 0 && doc.scores.all(s, s < {n})"),
        3 => format!("doc.owner.name + '/' + doc.status == '{}/{}'", pick(random, &NAMES), pick(random, &STATUSES)),
        4 => format!("doc.title.matches('^{}[0-9]*{}$')", pick(random, &PREFIXES), random.random_range(0..10)),
        5 => format!("int(doc.qty) % 3 == {}", random.random_range(0..3)),
        _ => format!("doc.due > timestamp('2024-{:02}-01T00:00:00Z')", random.random_range(2..12)),
    }
}

fn about_the_change(random: &mut ChaCha8Rng) -> String {
    let status = pick(random, &STATUSES);
    match random.random_range(0..5) {
        0 => "before != null && before.status != doc.status".to_owned(),
        1 => format!("type == 'delete' && doc.status == '{status}'"),
        2 => format!("type == 'update' && doc.qty > {}", random.random_range(0..18)),
        3 => "type == 'insert'".to_owned(),
        _ => format!("before == null || before.status == '{status}'"),
    }
}
