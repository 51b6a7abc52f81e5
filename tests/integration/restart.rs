//! Nodes that are stopped, and nodes that are killed: what a Gateway gets over it all is each change once, in order.

use std::collections::BTreeMap;

use serde_json::json;
use streamer_gateway::{AppEvent, Event, Gateway, GatewayBuilder, ResyncReason, SavedPositions, Subscription};

use crate::support::{
    Runtime, block_on,
    gateway::{next_event, number, wait_live},
    on_both_runtimes,
    setup::{Running, Setup},
    until, within,
};

on_both_runtimes!(a_gateway_that_stays, a_gateway_that_keeps_positions, killed_with_unacked_deliveries);

/// On different shards, whatever their number.
const COLLECTIONS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// The changes that each subscription has been given, by the number in the document.
#[derive(Debug, Default)]
struct Given(BTreeMap<String, Vec<i64>>);

impl Given {
    fn add(&mut self, subscription: &str, number: i64) {
        self.0.entry(subscription.to_owned()).or_default().push(number);
    }

    /// The next change, written down.
    async fn take(&mut self, gateway: &mut Gateway) -> Event {
        let what = format!("a change after {}", self.len());
        loop {
            let event = match within(&what, gateway.next()).await {
                Some(event) => event,
                None => panic!("{what}: the Gateway has ended: {:?}", gateway.error()),
            };
            match &event.what {
                AppEvent::Change(change) => {
                    self.add(&change.subscription().id, number(change));
                    return event;
                }
                // Told after any reconnect, the last two where the checkpoint is past a position.
                AppEvent::Live { .. } | AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => {}
                other => panic!("{what}: {other:?} came instead"),
            }
        }
    }

    fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Each subscription has had the numbers 1 to `last`, each once, in order.
    fn check(&self, last: i64) {
        let expected: Vec<i64> = (1..=last).collect();
        assert_eq!(self.0.len(), COLLECTIONS.len());
        for (subscription, numbers) in &self.0 {
            assert_eq!(*numbers, expected, "subscription {subscription}");
        }
    }
}

fn subscriptions() -> impl Iterator<Item = Subscription> {
    COLLECTIONS.iter().map(|collection| Subscription::new("acme", *collection).id(*collection))
}

/// Writes these numbers to each collection.
async fn write(setup: &Setup, numbers: std::ops::RangeInclusive<i64>) {
    let documents =
        numbers.flat_map(|n| COLLECTIONS.map(|collection| ("acme", collection, "d".to_owned(), json!({"n": n}))));
    setup.api().put_all(documents).await;
}

/// Takes changes until it has had `count` in all, and is done with each.
async fn take(gateway: &mut Gateway, given: &mut Given, count: usize) {
    while given.len() < count {
        given.take(gateway).await.ack();
    }
}

/// Shards of each start.
const STARTS: [usize; 3] = [2, 5, 2];

/// Gateways are waited for however slow the machine is.
const SECTIONS: &str = "[ingest]\nregistration_grace = \"60s\"\n";

const CLOSE_CHECKPOINTS: &str = "[checkpoint]\nevery = \"100ms\"\n";

/// Stopped with changes that the application hasn't had yet, and started with another number of shards, while the Gateway stays.
async fn a_gateway_that_stays(runtime: Runtime) {
    const EACH: i64 = 30;
    let mut setup = Setup::new(runtime).with(SECTIONS).on_shards(STARTS[0]);
    let mut node = Running::start(&setup).await;
    let mut gateway = setup.gateway("edge", &node.fingerprint()).manual_ack().connect().await.unwrap();
    subscriptions().for_each(|subscription| drop(gateway.subscribe(subscription).unwrap()));
    wait_live(&gateway, COLLECTIONS.len()).await;
    let mut given = Given::default();
    let mut written = 0;
    for shards in STARTS.into_iter().skip(1) {
        write(&setup, written + 1..=written + EACH).await;
        let a_third = given.len() + COLLECTIONS.len() * EACH as usize / 3;
        take(&mut gateway, &mut given, a_third).await;
        node.stop().await;
        setup = setup.on_shards(shards);
        node = Running::start(&setup).await;
        write(&setup, written + EACH + 1..=written + 2 * EACH).await;
        written += 2 * EACH;
        take(&mut gateway, &mut given, COLLECTIONS.len() * written as usize).await;
    }
    given.check(written);
    assert_eq!(gateway.status().counters.resyncs, 0);
    gateway.close().await;
    node.stop().await;
}

/// The Gateway's process ends as well, in the middle, and its next one goes on from the positions that it kept.
async fn a_gateway_that_keeps_positions(runtime: Runtime) {
    const EACH: i64 = 40;
    let mut setup = Setup::new(runtime).with(SECTIONS);
    let mut given = Given::default();
    let mut kept = "[]".to_owned();
    let connect = async |setup: &Setup, node: &Running, kept: &str| {
        let builder = setup.gateway("edge", &node.fingerprint()).manual_ack();
        let builder = builder.resume_from(serde_json::from_str::<SavedPositions>(kept).unwrap());
        let gateway = subscriptions().fold(builder, GatewayBuilder::subscription).connect().await.unwrap();
        wait_live(&gateway, COLLECTIONS.len()).await;
        node.wait_ready().await;
        gateway
    };
    let mut written = 0;
    for shards in STARTS {
        setup = setup.on_shards(shards);
        let node = Running::launch(&setup).await;
        let mut gateway = connect(&setup, &node, &kept).await;
        write(&setup, written + 1..=written + EACH / 2).await;
        take(&mut gateway, &mut given, COLLECTIONS.len() * written as usize + 50).await;
        kept = serde_json::to_string(&gateway.positions()).unwrap();
        gateway.close().await;
        // It is away while these are written, and when the node stops.
        write(&setup, written + EACH / 2 + 1..=written + EACH).await;
        written += EACH;
        node.stop().await;
    }
    let node = Running::launch(&setup).await;
    let mut gateway = connect(&setup, &node, &kept).await;
    take(&mut gateway, &mut given, COLLECTIONS.len() * written as usize).await;
    given.check(written);
    assert_eq!(gateway.status().counters.resyncs, 0);
    gateway.close().await;
    node.stop().await;
}

async fn killed_with_unacked_deliveries(runtime: Runtime) {
    const EACH: i64 = 30;
    let mut setup = Setup::new(runtime).with(SECTIONS).on_shards(STARTS[0]);
    let mut process = setup.start_process().await;
    let fingerprint = setup.api().fingerprint().await;
    let mut gateway = setup.gateway("edge", &fingerprint).manual_ack().connect().await.unwrap();
    subscriptions().for_each(|subscription| drop(gateway.subscribe(subscription).unwrap()));
    wait_live(&gateway, COLLECTIONS.len()).await;
    let mut given = Given::default();
    let mut unacked = Vec::new();
    let mut written = 0;
    for (shards, checkpoints) in STARTS.into_iter().skip(1).zip([CLOSE_CHECKPOINTS, ""]) {
        write(&setup, written + 1..=written + EACH).await;
        written += EACH;
        // A third is done, a third is with the application, a third is wherever it is.
        let third = COLLECTIONS.len() * EACH as usize / 3;
        let begin = given.len();
        take(&mut gateway, &mut given, begin + third).await;
        while given.len() < begin + 2 * third {
            unacked.push(given.take(&mut gateway).await);
        }
        process.kill();
        // The second time with checkpoints that follow closely, where the first has hardly written one.
        setup = setup.on_shards(shards).with(checkpoints);
        process = setup.start_process().await;
        write(&setup, written + 1..=written + EACH).await;
        written += EACH;
        take(&mut gateway, &mut given, COLLECTIONS.len() * written as usize).await;
        unacked.drain(..).for_each(Event::ack);
    }
    given.check(written);
    // What came twice was dropped by its position, and nothing had to be read anew.
    let counters = gateway.status().counters;
    println!("{counters:?}");
    assert_eq!(counters.resyncs, 0);
    // Everybody is done with everything: the node owes nothing any more.
    until("the node is owed nothing", async || {
        let health = setup.api().health().await;
        let shards = health["shards"].as_array().unwrap().clone();
        shards.iter().all(|shard| shard["unsettled"] == 0).then_some(())
    })
    .await;
    gateway.close().await;
    let status = process.terminate().await;
    assert!(status.success(), "{status}");
}

/// The change log is gone, so the position means nothing any more: that is told, not passed over.
async fn another_history(runtime: Runtime) {
    let setup = Setup::new(runtime).with(SECTIONS);
    let node = Running::start(&setup).await;
    let mut gateway = setup.gateway("edge", &node.fingerprint()).manual_ack().connect().await.unwrap();
    subscriptions().for_each(|subscription| drop(gateway.subscribe(subscription).unwrap()));
    wait_live(&gateway, COLLECTIONS.len()).await;
    write(&setup, 1..=5).await;
    take(&mut gateway, &mut Given::default(), COLLECTIONS.len() * 5).await;
    node.stop().await;
    for folder in ["embedded", "checkpoint"] {
        std::fs::remove_dir_all(setup.data().join(folder)).unwrap();
    }
    let node = Running::start(&setup).await;
    let mut told = std::collections::BTreeSet::new();
    while told.len() < COLLECTIONS.len() {
        match next_event(&mut gateway, "each subscription is told").await {
            AppEvent::Resync { subscription, reason, .. } => {
                assert_eq!(reason, ResyncReason::LineageChanged);
                told.insert(subscription.id.clone());
            }
            AppEvent::Live { .. } | AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    // And it goes on from there.
    write(&setup, 1..=5).await;
    let mut given = Given::default();
    take(&mut gateway, &mut given, COLLECTIONS.len() * 5).await;
    given.check(5);
    gateway.close().await;
    node.stop().await;
}

#[test]
fn another_history_is_told() {
    block_on(another_history(Runtime::Tokio));
}
