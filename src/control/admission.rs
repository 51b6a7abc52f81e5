//! Who may subscribe to what, and how many are let in: the one ledger over all shards and over QUIC and HTTP.
//!
//! [`Registrar`] has no IO and no clock. [`Registrar::admit`] counts a subscription in before its shard indexes it;
//! [`Registrar::released`] counts it out once its shard says that it is gone.
//!
//! Invariants:
//! - A (Gateway, tenant, id) counts once, whatever its content and wherever it moves, and belongs to one shard: the last that it
//!   was admitted for. What another shard releases changes nothing.
//! - The count of a Gateway, of a tenant and of the node never exceeds its quota, but for [`Registrar::confirmed`]; an id that is
//!   counted already is never refused for a quota.
//! - An entry is a 64-bit keyed hash and a shard's index: two ids that collide would count as one, which at 10 million
//!   subscriptions has a chance of about 3 in a million. See [`super::ledger`].

use std::{collections::hash_map::RandomState, hash::BuildHasher, sync::Arc};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use predicate::{CompileError, Mapping, Predicate, Source};
use shards::{Admission, Refusal};
use wire::{ErrorCode, PlaceHash, SlotTable, SubscribeItem, SubscriptionKey};

use super::ledger::Ledger;
use crate::config::{Config, Tenants, valid_gateway_name};

/// Longest tenant and collection, in bytes; what a shard accepts.
const NAME_BYTES_MAX: usize = 1_024;
/// Longest subscription id and Gateway id, in bytes.
const ID_BYTES_MAX: usize = 128;

/// How many subscriptions are let in.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    pub per_gateway: u64,
    pub per_tenant: u64,
    pub per_node: u64,
}

/// What the registrar is told once.
#[derive(Clone, Debug)]
pub struct RegistrarConfig {
    pub mapping: Arc<Mapping>,
    pub shards: u16,
    pub limits: SharedLimits,
}

/// What may change while the registrar runs.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub quotas: Quotas,
    /// Seconds that `ttl_s` may be, apart from 0 for the default.
    pub ttl_min_s: u32,
    pub ttl_max_s: u32,
}

impl Limits {
    pub fn of(config: &Config) -> Self {
        let limits = &config.limits;
        Self {
            quotas: Quotas {
                per_gateway: limits.subscriptions_per_gateway,
                per_tenant: limits.subscriptions_per_tenant,
                per_node: limits.subscriptions_per_node,
            },
            ttl_min_s: u32::try_from(limits.ttl_min.as_secs()).unwrap_or(u32::MAX),
            ttl_max_s: u32::try_from(limits.ttl_max.as_secs()).unwrap_or(u32::MAX),
        }
    }
}

/// Read anew for each subscription that is asked for.
pub type SharedLimits = Arc<ArcSwap<Limits>>;

impl RegistrarConfig {
    pub fn new(mapping: Arc<Mapping>, shards: u16, limits: Limits) -> Self {
        Self { mapping, shards, limits: Arc::new(ArcSwap::from_pointee(limits)) }
    }

    pub fn of(config: &Config, shards: u16) -> Self {
        Self::new(Arc::new(config.mapping.clone()), shards, Limits::of(config))
    }
}

/// What happens to an id that another shard holds, because its collection was another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It moves: over QUIC registering is an upsert.
    Replace,
    /// It is refused as existing: over HTTP other content is a conflict.
    Refuse,
}

/// A subscription that was counted in.
#[derive(Clone, Debug)]
pub struct Admitted {
    pub admission: Admission,
    /// The shard that held the id until now and must be told to remove it, with the reason `Replaced`.
    pub moved_from: Option<u16>,
}

/// How many subscriptions there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub total: u64,
    /// Sorted by name.
    pub by_gateway: Vec<(String, u64)>,
    pub by_tenant: Vec<(String, u64)>,
    /// By the shard's index.
    pub by_shard: Vec<u64>,
}

/// The ledger. Compiles predicates: call it on a thread with `predicate::COMPILE_STACK_BYTES` of stack.
#[derive(Debug)]
pub struct Registrar {
    config: RegistrarConfig,
    slots: SlotTable,
    hasher: RandomState,
    /// Fingerprint of (Gateway, tenant, id) → shard.
    entries: Ledger,
    by_gateway: HashMap<String, u64>,
    by_tenant: HashMap<String, u64>,
    by_shard: Vec<u64>,
}

impl Registrar {
    pub fn new(config: RegistrarConfig) -> Self {
        Self {
            slots: SlotTable { shards: config.shards },
            by_shard: vec![0; usize::from(config.shards)],
            config,
            hasher: RandomState::new(),
            entries: Ledger::default(),
            by_gateway: HashMap::new(),
            by_tenant: HashMap::new(),
        }
    }

    /// The shard that owns a subscription by its place.
    pub fn owner(&self, item: &SubscribeItem) -> u16 {
        self.slots.owner(PlaceHash::of(&item.key.tenant, &item.collection))
    }

    /// Checks, compiles and counts in a subscription that `shard` is about to take. `tenants` are those that the Gateway's
    /// credentials cover.
    pub fn admit(
        &mut self,
        shard: u16,
        gateway: &str,
        tenants: &Tenants,
        item: &SubscribeItem,
        moved: Moved,
    ) -> Result<Admitted, Refusal> {
        self.check(gateway, tenants, item)?;
        let fingerprint = self.fingerprint(gateway, &item.key);
        let holder = self.entries.get(fingerprint);
        match holder {
            Some(other) if other != shard && moved == Moved::Refuse => {
                return Err(refusal(
                    ErrorCode::SubscriptionExists,
                    format!(
                        "subscription {:?} of tenant {:?} exists with another collection",
                        item.key.id, item.key.tenant
                    ),
                ));
            }
            Some(_) => {}
            None => self.check_quotas(gateway, &item.key.tenant)?,
        }
        let source = Source { filters: &item.filters, expr: &item.expr };
        let predicate = Predicate::compile(source, &self.config.mapping).map_err(compile_refusal)?;
        let moved_from = holder.filter(|other| *other != shard);
        match holder {
            None => self.count_in(shard, gateway, &item.key.tenant),
            Some(other) if other != shard => {
                self.count_shard(other, false);
                self.count_shard(shard, true);
            }
            Some(_) => {}
        }
        self.entries.set(fingerprint, shard);
        Ok(Admitted { admission: Admission { predicate: Arc::new(predicate) }, moved_from })
    }

    /// These no longer count: the shard has removed them, or never took them.
    pub fn released(&mut self, shard: u16, gateway: &str, keys: &[SubscriptionKey]) {
        for key in keys {
            let fingerprint = self.fingerprint(gateway, key);
            if self.entries.get(fingerprint) != Some(shard) {
                continue;
            }
            self.entries.remove(fingerprint);
            count_out(&mut self.by_gateway, gateway);
            count_out(&mut self.by_tenant, &key.tenant);
            self.count_shard(shard, false);
        }
    }

    /// The shard has registered over HTTP what it was told to. That is counted already, unless the subscription's predecessor ran out
    /// while the command was on its way and took the count with it; then it is counted in again, quota or not, since it is there.
    pub fn confirmed(&mut self, shard: u16, gateway: &str, key: &SubscriptionKey) {
        let fingerprint = self.fingerprint(gateway, key);
        if self.entries.get(fingerprint).is_none() {
            self.count_in(shard, gateway, &key.tenant);
            self.entries.set(fingerprint, shard);
        }
    }

    /// The shard that holds a subscription.
    pub fn holder(&self, gateway: &str, key: &SubscriptionKey) -> Option<u16> {
        self.entries.get(self.fingerprint(gateway, key))
    }

    /// Every place where a Gateway has a subscription of this id, at most `most`. Tries each tenant that it may name and that has
    /// subscriptions.
    pub fn find(&self, gateway: &str, tenants: &Tenants, id: &str, most: usize) -> Vec<(SubscriptionKey, u16)> {
        let held = |tenant: &String| {
            let key = SubscriptionKey { tenant: tenant.clone(), id: id.to_owned() };
            self.holder(gateway, &key).map(|shard| (key, shard))
        };
        match tenants {
            Tenants::All => self.by_tenant.keys().filter_map(held).take(most).collect(),
            Tenants::Only(names) => names.iter().filter_map(held).take(most).collect(),
        }
    }

    pub fn counts(&self) -> Counts {
        let sorted = |counts: &HashMap<String, u64>| {
            let mut all: Vec<_> = counts.iter().map(|(name, count)| (name.clone(), *count)).collect();
            all.sort_unstable();
            all
        };
        Counts {
            total: self.entries.len() as u64,
            by_gateway: sorted(&self.by_gateway),
            by_tenant: sorted(&self.by_tenant),
            by_shard: self.by_shard.clone(),
        }
    }

    fn check(&self, gateway: &str, tenants: &Tenants, item: &SubscribeItem) -> Result<(), Refusal> {
        let invalid = |message: String| Err(refusal(ErrorCode::InvalidRequest, message));
        let SubscriptionKey { tenant, id } = &item.key;
        if !valid_gateway_name(gateway) {
            return invalid(format!(
                "gatewayId {gateway:?} is not allowed; allowed: 1 to {ID_BYTES_MAX} of a-z, A-Z, 0-9, _ and -"
            ));
        }
        if !valid_gateway_name(id) {
            return invalid(format!(
                "subscriptionId {id:?} is not allowed; allowed: 1 to {ID_BYTES_MAX} of a-z, A-Z, 0-9, _ and -"
            ));
        }
        if tenant.is_empty() || tenant.len() > NAME_BYTES_MAX || tenant.chars().any(char::is_control) {
            return invalid(format!(
                "tenant {tenant:?} is not allowed; allowed: 1 to {NAME_BYTES_MAX} bytes without control characters"
            ));
        }
        if !tenants.allow(tenant) {
            return Err(refusal(ErrorCode::Forbidden, format!("Gateway {gateway:?} may not name tenant {tenant:?}")));
        }
        let collection = &item.collection;
        let fits = (1..=NAME_BYTES_MAX).contains(&collection.len()) && !collection.chars().any(char::is_control);
        if !fits || collection.split('/').any(str::is_empty) {
            return invalid(format!(
                "collection {collection:?} is not allowed; allowed: a path of non-empty segments with / between them, at most \
                 {NAME_BYTES_MAX} bytes, without control characters"
            ));
        }
        let Limits { ttl_min_s, ttl_max_s, .. } = **self.config.limits.load();
        if item.ttl_s != 0 && !(ttl_min_s..=ttl_max_s).contains(&item.ttl_s) {
            return invalid(format!("ttl {} is not allowed; allowed: {ttl_min_s} to {ttl_max_s} seconds", item.ttl_s));
        }
        Ok(())
    }

    fn check_quotas(&self, gateway: &str, tenant: &str) -> Result<(), Refusal> {
        let Quotas { per_gateway, per_tenant, per_node } = self.config.limits.load().quotas;
        let count = |counts: &HashMap<String, u64>, name: &str| counts.get(name).copied().unwrap_or(0);
        let full =
            |code, whose: String, quota| Err(refusal(code, format!("{whose} has its {quota} subscriptions already")));
        if count(&self.by_gateway, gateway) >= per_gateway {
            return full(ErrorCode::GatewayQuotaExceeded, format!("Gateway {gateway:?}"), per_gateway);
        }
        if count(&self.by_tenant, tenant) >= per_tenant {
            return full(ErrorCode::TenantQuotaExceeded, format!("tenant {tenant:?}"), per_tenant);
        }
        if self.entries.len() as u64 >= per_node {
            return full(ErrorCode::GlobalQuotaExceeded, "the node".into(), per_node);
        }
        Ok(())
    }

    fn fingerprint(&self, gateway: &str, key: &SubscriptionKey) -> u64 {
        self.hasher.hash_one((gateway, key.tenant.as_str(), key.id.as_str()))
    }

    fn count_in(&mut self, shard: u16, gateway: &str, tenant: &str) {
        *self.by_gateway.entry_ref(gateway).or_insert(0) += 1;
        *self.by_tenant.entry_ref(tenant).or_insert(0) += 1;
        self.count_shard(shard, true);
    }

    fn count_shard(&mut self, shard: u16, more: bool) {
        if let Some(count) = self.by_shard.get_mut(usize::from(shard)) {
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
        }
    }
}

/// Names with nothing left go, so that the tables don't grow with names that come and go.
fn count_out(counts: &mut HashMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(count) if *count > 1 => *count -= 1,
        _ => drop(counts.remove(name)),
    }
}

fn refusal(code: ErrorCode, message: String) -> Refusal {
    Refusal { code, message }
}

fn compile_refusal(error: CompileError) -> Refusal {
    let code = match &error {
        CompileError::InvalidFilter { .. } => ErrorCode::InvalidFilter,
        CompileError::Cel { .. } => ErrorCode::CelCompilationFailed,
    };
    refusal(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::registry::tests::item;

    const QUOTAS: Quotas = Quotas { per_gateway: 7, per_tenant: 5, per_node: 9 };

    fn registrar(quotas: Quotas) -> Registrar {
        let mapping = Arc::new(Mapping::syntrix());
        Registrar::new(RegistrarConfig::new(mapping, 4, Limits { quotas, ttl_min_s: 60, ttl_max_s: 3600 }))
    }

    fn admit(
        registrar: &mut Registrar,
        gateway: &str,
        item: &SubscribeItem,
        moved: Moved,
    ) -> Result<Option<u16>, ErrorCode> {
        let shard = registrar.owner(item);
        let admitted = registrar.admit(shard, gateway, &Tenants::All, item, moved);
        admitted.map(|admitted| admitted.moved_from).map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_quota_of_n_accepts_exactly_n_over_all_shards_and_both_ways_in() {
        let mut registrar = registrar(Quotas { per_gateway: 10, per_tenant: 100, per_node: 100 });
        let mut accepted = 0;
        for index in 0..40 {
            let item = item("t", &format!("s{index}"), &format!("c{index}"));
            let way = if index % 2 == 0 { Moved::Replace } else { Moved::Refuse };
            match admit(&mut registrar, "g", &item, way) {
                Ok(_) => accepted += 1,
                Err(code) => assert_eq!(code, ErrorCode::GatewayQuotaExceeded),
            }
        }
        assert_eq!(accepted, 10);
        assert!(registrar.counts().by_shard.iter().filter(|count| **count > 0).count() > 1, "{:?}", registrar.counts());
        // What is there already may come again, as a renewal or as other content.
        assert_eq!(admit(&mut registrar, "g", &item("t", "s0", "c0"), Moved::Replace), Ok(None));
        // One out, one in.
        let out = item("t", "s3", "c3");
        let shard = registrar.owner(&out);
        registrar.released(shard, "g", std::slice::from_ref(&out.key));
        registrar.released(shard, "g", &[out.key]);
        assert_eq!(admit(&mut registrar, "g", &item("t", "new", "c"), Moved::Refuse), Ok(None));
        assert_eq!(
            admit(&mut registrar, "g", &item("t", "more", "c"), Moved::Refuse),
            Err(ErrorCode::GatewayQuotaExceeded)
        );
        assert_eq!(registrar.counts().total, 10);
    }

    #[test]
    fn each_quota_has_its_code() {
        let mut registrar = registrar(QUOTAS);
        let mut codes = Vec::new();
        for (gateway, tenant, count) in [("a", "t1", 6), ("a", "t2", 3), ("b", "t3", 3)] {
            for index in 0..count {
                codes.extend(
                    admit(&mut registrar, gateway, &item(tenant, &format!("s{index}"), "c"), Moved::Replace).err(),
                );
            }
        }
        use ErrorCode::*;
        assert_eq!(codes, [TenantQuotaExceeded, GatewayQuotaExceeded, GlobalQuotaExceeded]);
        let counts = registrar.counts();
        assert_eq!(counts.total, 9);
        assert_eq!(counts.by_gateway, [("a".into(), 7), ("b".into(), 2)]);
        assert_eq!(counts.by_tenant, [("t1".into(), 5), ("t2".into(), 2), ("t3".into(), 2)]);
        assert_eq!(counts.by_shard.iter().sum::<u64>(), 9);
    }

    #[test]
    fn an_id_moves_between_shards_and_counts_once() {
        let mut registrar = registrar(QUOTAS);
        let first = item("t", "s", "c0");
        let from = registrar.owner(&first);
        let second =
            (1..).map(|n| item("t", "s", &format!("c{n}"))).find(|item| registrar.owner(item) != from).unwrap();
        let to = registrar.owner(&second);
        assert_eq!(admit(&mut registrar, "g", &first, Moved::Replace), Ok(None));
        assert_eq!(admit(&mut registrar, "g", &second, Moved::Refuse), Err(ErrorCode::SubscriptionExists));
        assert_eq!(admit(&mut registrar, "g", &second, Moved::Replace), Ok(Some(from)));
        assert_eq!(registrar.counts().total, 1);
        // The old shard's release comes late, and is not the new shard's.
        registrar.released(from, "g", std::slice::from_ref(&first.key));
        assert_eq!(registrar.holder("g", &second.key), Some(to));
        registrar.released(to, "g", std::slice::from_ref(&second.key));
        assert_eq!(registrar.counts().total, 0);
        // Its command was on the way when the predecessor ran out.
        registrar.confirmed(to, "g", &second.key);
        registrar.confirmed(to, "g", &second.key);
        assert_eq!(registrar.counts().total, 1);
        registrar.released(to, "g", &[second.key]);
        assert_eq!(registrar.counts(), Counts { by_shard: vec![0; 4], ..Counts::default() });
    }

    #[test]
    fn ids_are_unique_within_gateway_and_tenant() {
        let mut registrar = registrar(QUOTAS);
        for (gateway, tenant) in [("g1", "t1"), ("g1", "t2"), ("g2", "t1")] {
            assert_eq!(admit(&mut registrar, gateway, &item(tenant, "s", "c"), Moved::Refuse), Ok(None));
        }
        assert_eq!(registrar.counts().total, 3);
        assert_eq!(registrar.find("g1", &Tenants::All, "s", 10).len(), 2);
        let only = Tenants::Only(["t2".to_owned(), "t9".to_owned()].into());
        let found = registrar.find("g1", &only, "s", 10);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0.tenant, "t2");
        assert!(registrar.find("g3", &Tenants::All, "s", 10).is_empty());
    }

    #[test]
    fn what_is_refused() {
        let good = item("t", "s", "rooms/room-1/messages");
        let with = |change: fn(&mut SubscribeItem)| {
            let mut item = good.clone();
            change(&mut item);
            item
        };
        let only = Tenants::Only(["t".to_owned()].into());
        use ErrorCode::*;
        for (gateway, item, expect) in [
            ("g", good.clone(), None),
            ("g g", good.clone(), Some(InvalidRequest)),
            ("g", with(|item| item.key.id = String::new()), Some(InvalidRequest)),
            ("g", with(|item| item.key.id = "a/b".into()), Some(InvalidRequest)),
            ("g", with(|item| item.key.id = "x".repeat(129)), Some(InvalidRequest)),
            ("g", with(|item| item.key.tenant = "t2".into()), Some(Forbidden)),
            ("g", with(|item| item.key.tenant = String::new()), Some(InvalidRequest)),
            ("g", with(|item| item.collection = String::new()), Some(InvalidRequest)),
            ("g", with(|item| item.collection = "a//b".into()), Some(InvalidRequest)),
            ("g", with(|item| item.collection = "/a".into()), Some(InvalidRequest)),
            ("g", with(|item| item.collection = "a\0".into()), Some(InvalidRequest)),
            ("g", with(|item| item.ttl_s = 59), Some(InvalidRequest)),
            ("g", with(|item| item.ttl_s = 3601), Some(InvalidRequest)),
            ("g", with(|item| item.ttl_s = 3600), None),
            ("g", with(|item| item.filters = "{".into()), Some(InvalidFilter)),
            ("g", with(|item| item.expr = "(((".into()), Some(CelCompilationFailed)),
        ] {
            let mut registrar = registrar(QUOTAS);
            let shard = registrar.owner(&item);
            let refused = registrar.admit(shard, gateway, &only, &item, Moved::Replace).err();
            assert_eq!(refused.as_ref().map(|refusal| refusal.code), expect, "{item:?}: {refused:?}");
            assert_eq!(registrar.counts().total, u64::from(expect.is_none()), "what is refused doesn't count");
        }
    }
}
