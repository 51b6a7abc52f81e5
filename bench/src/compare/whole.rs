//! What a node keeps of a subscription to one value: its place in the index, its record in the shard with id, time to live and
//! generation, its handle, and its entry in the control side's ledger.

use std::{sync::Arc, time::Duration};

use predicate::Mapping;
use streamer::{
    config::Tenants,
    control::admission::{Limits, Moved, Quotas, Registrar, RegistrarConfig},
};
use workload::matching::{MatchSource, Shape, Test, Workload, World};

use super::{
    Row,
    measure::Options,
    ours::{ITEMS, OursIndex, compiled, item, places},
};
use crate::{
    heap::growth_of,
    measure::work_time,
    served::{Served, config},
};

const SUBSCRIPTIONS: usize = 1_000_000;
/// As many as a Gateway may have by default, with a million of them.
const GATEWAYS: usize = 10;

pub(super) fn measure(options: &Options) -> Vec<Row> {
    let Some(subscriptions) = options.sizes.iter().copied().filter(|size| *size <= SUBSCRIPTIONS).max() else {
        return Vec::new();
    };
    let world = World::new(Workload::Mixed, subscriptions, options.seed);
    let row = |engine, (build, bytes): (Duration, usize)| {
        let mut row = Row::new("equality", engine, subscriptions, options.seed);
        row.build_ms = Some(build.as_secs_f64() * 1e3);
        row.bytes_per_subscription = (bytes > 0).then(|| bytes as f64 / subscriptions as f64);
        row
    };
    vec![row("ours-index", index(&world)), row("ours-ledger", ledger(&world)), row("ours-whole", whole(&world))]
}

/// Those of the mix that are one equality, a hundred to a collection.
fn equalities(world: &World) -> impl Iterator<Item = (usize, MatchSource)> {
    let shapes = (0..).map(|number| world.shape(number));
    let one = |shape: &Shape| matches!(&shape.0[..], [only] if matches!(only.test, Test::Equal(_)));
    shapes.filter(one).take(world.subscriptions).enumerate().map(|(subscription, shape)| {
        let collection = world.collection_of(subscription);
        (subscription, MatchSource { collection, filters: shape.to_filters(), expr: String::new() })
    })
}

fn index(world: &World) -> (Duration, usize) {
    let places = places(world);
    let pool = world.events(0);
    let mut ours = OursIndex::new(&places, &pool);
    growth_of(|| {
        let mut took = Duration::ZERO;
        for (subscription, source) in equalities(world) {
            let predicate = Arc::new(compiled(&source));
            let place = &places[source.collection];
            let began = work_time();
            ours.index.insert(subscription as u32, &place.tenant, &place.collection, &predicate);
            took += work_time().saturating_sub(began);
        }
        took
    })
}

fn registrar(mapping: Arc<Mapping>) -> Registrar {
    let quota = u64::MAX;
    let quotas = Quotas { per_gateway: quota, per_tenant: quota, per_node: quota };
    Registrar::new(RegistrarConfig::new(mapping, 1, Limits { quotas, ttl_min_s: 60, ttl_max_s: 3_600 }))
}

/// The control side's part alone.
fn ledger(world: &World) -> (Duration, usize) {
    let mut registrar = registrar(Arc::new(Mapping::Plain));
    growth_of(|| {
        let mut took = Duration::ZERO;
        for (subscription, source) in equalities(world) {
            let item = item(world, subscription, source);
            let gateway = format!("gateway-{}", subscription / ITEMS % GATEWAYS);
            let began = work_time();
            let admitted = registrar.admit(0, &gateway, &Tenants::All, &item, Moved::Replace);
            took += work_time().saturating_sub(began);
            assert!(admitted.is_ok(), "no quota is met");
        }
        took
    })
}

fn whole(world: &World) -> (Duration, usize) {
    let mut config = config(false);
    config.mapping = Arc::new(Mapping::Plain);
    let mut registrar = registrar(config.mapping.clone());
    let mut served = Served::new(config, GATEWAYS);
    let (took, bytes) = growth_of(|| {
        let mut took = Duration::ZERO;
        let mut equalities = equalities(world);
        let mut requests = 0;
        loop {
            let some = equalities.by_ref().take(ITEMS);
            let items: Vec<_> = some.map(|(subscription, source)| item(world, subscription, source)).collect();
            if items.is_empty() {
                break;
            }
            let began = work_time();
            served.subscribe(requests % GATEWAYS, items, |gateway, item| {
                registrar.admit(0, gateway, &Tenants::All, item, Moved::Replace).map(|admitted| admitted.admission)
            });
            took += work_time().saturating_sub(began);
            requests += 1;
        }
        served.go_live();
        served.come_to_rest();
        took
    });
    assert_eq!(served.stats().subscriptions, world.subscriptions as u64, "all of them were taken");
    assert_eq!(registrar.counts().total, world.subscriptions as u64, "and counted");
    (took, bytes)
}
