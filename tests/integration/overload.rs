//! More than everybody can take, for a while, and what is left of it once it is over: nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use streamer_gateway::{AppEvent, Gateway, Subscription};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::support::{
    LOOK_EVERY, PATIENCE, Runtime,
    api::Api,
    block_on,
    gateway::{number, wait_live},
    setup::{Running, Setup},
    until, within,
};

const GATEWAYS: usize = 50;
/// They lie on different shards.
const COLLECTIONS: [&str; 4] = ["rooms", "users", "orders", "a/b/c"];
/// Changes that are written at once, to all collections together.
const ROUND: i64 = 500;
/// Of what is written, Gateways can take one part in this many while it is written.
const TIMES_CAPACITY: i64 = 10;

/// Outboxes, logs and rings so small that the burst is many times what they hold. The first line belongs to `[quic]`, where the setup ends.
const SMALL: &str = r#"
    send_window = "64KiB"
    [ingest]
    ring = 256
    [limits]
    log_events = 8192
    outbox_events = 512
    outbox_bytes = "1MiB"
    [checkpoint]
    every = "200ms"
"#;

/// Fifty Gateways that take a tenth of what is written, for so long as it is. Seconds of it are in `OVERLOAD_SECONDS`; without it, ten
/// rounds.
#[test]
fn a_burst_of_ten_times_capacity_drains() {
    let seconds =
        std::env::var("OVERLOAD_SECONDS").ok().map(|text| text.parse().expect("OVERLOAD_SECONDS is a number"));
    let lasts = seconds.map(Duration::from_secs);
    block_on(async {
        let setup = Setup::new(Runtime::Tokio).on_shards(2).with(SMALL);
        let node = Running::start(&setup).await;
        let api = setup.api();
        let crowd = Crowd::gather(&setup, &node.fingerprint()).await;

        let started = Instant::now();
        let mut rounds = 0;
        while lasts.map_or(rounds < 10, |lasts| started.elapsed() < lasts) {
            write(&api, rounds).await;
            rounds += 1;
            crowd.let_take(ROUND / TIMES_CAPACITY);
        }
        let written = started.elapsed();
        // It goes on until it has been too much: reading has paused for as long as it may, and Gateways were made to catch up.
        until("Gateways that catch up", async || {
            crowd.let_take(1);
            (api.metric("streamer_shard_catch_ups_total").await > 0.0).then_some(())
        })
        .await;
        crowd.let_all_through();
        crowd.wait_for(rounds * ROUND).await;
        println!(
            "{rounds} rounds in {written:?}; all drained after {:?}, with {} pauses of {} ms in all, and {} catch-ups",
            started.elapsed(),
            api.metric("streamer_ingest_pauses_total").await,
            api.metric("streamer_ingest_paused_milliseconds_total").await,
            api.metric("streamer_shard_catch_ups_total").await
        );

        for gauge in [
            "streamer_shard_log_unsettled",
            "streamer_shard_subscriptions_behind",
            "streamer_shard_outboxes_full",
            "streamer_shard_outboxes_pressing",
            "streamer_shard_lagging",
        ] {
            until(gauge, async || (api.metric(gauge).await == 0.0).then_some(())).await;
        }
        until("rings are empty", async || {
            let health = api.health().await;
            let shards = health["shards"].as_array()?.clone();
            (health["status"] == "ready" && shards.iter().all(|shard| shard["ring_waiting"] == 0)).then_some(())
        })
        .await;
        // Reading goes on as ever.
        write(&api, rounds).await;
        crowd.wait_for((rounds + 1) * ROUND).await;
        assert_eq!(api.metric("streamer_shard_resyncs_total").await, 0.0);
        crowd.go().await;
        node.stop().await;
    });
}

/// Writes the changes of a round, each a document of its own that tells its number.
async fn write(api: &Api, round: i64) {
    let numbers = round * ROUND + 1..=(round + 1) * ROUND;
    let place = |n: i64| COLLECTIONS[n as usize % COLLECTIONS.len()];
    api.put_all(numbers.map(|n| ("acme", place(n), format!("d{n}"), json!({"n": n, "padding": "x".repeat(100)}))))
        .await;
}

/// The Gateways' applications. Each checks what it is told, and takes a change when it may.
struct Crowd {
    may_take: Vec<Arc<Semaphore>>,
    /// Changes that each has taken.
    taken: Vec<Arc<AtomicU64>>,
    ended: Arc<AtomicUsize>,
    applications: JoinSet<()>,
}

impl Crowd {
    async fn gather(setup: &Setup, fingerprint: &str) -> Self {
        let mut crowd =
            Self { may_take: Vec::new(), taken: Vec::new(), ended: Arc::default(), applications: JoinSet::new() };
        for index in 0..GATEWAYS {
            let builder = setup.gateway(&format!("g{index}"), fingerprint).queue_bytes_max(64 << 10);
            let gateway = builder.connect().await.unwrap();
            for collection in COLLECTIONS {
                gateway.subscribe(Subscription::new("acme", collection).id(collection.replace('/', "-"))).unwrap();
            }
            wait_live(&gateway, COLLECTIONS.len()).await;
            let (may_take, taken) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
            crowd.applications.spawn(take(gateway, may_take.clone(), taken.clone(), crowd.ended.clone()));
            crowd.may_take.push(may_take);
            crowd.taken.push(taken);
        }
        crowd
    }

    fn let_take(&self, changes: i64) {
        self.may_take.iter().for_each(|may_take| may_take.add_permits(changes as usize));
    }

    fn let_all_through(&self) {
        self.may_take.iter().for_each(|may_take| may_take.close());
    }

    /// Waits until each has taken so many, for as long as any of them takes more.
    async fn wait_for(&self, changes: i64) {
        let all = || self.taken.iter().map(|taken| taken.load(SeqCst)).collect::<Vec<_>>();
        let (mut before, mut since) = (all(), Instant::now());
        while before.iter().any(|taken| *taken < changes as u64) {
            assert_eq!(self.ended.load(SeqCst), 0, "a Gateway has ended, see above");
            tokio::time::sleep(LOOK_EVERY).await;
            let now = all();
            if now != before {
                (before, since) = (now, Instant::now());
            }
            assert!(since.elapsed() < PATIENCE, "nobody takes more; of {changes} there are {before:?}");
        }
        assert_eq!(all(), vec![changes as u64; GATEWAYS], "no change comes that wasn't written");
    }

    async fn go(mut self) {
        self.applications.abort_all();
        while within("applications end", self.applications.join_next()).await.is_some() {}
    }
}

/// Takes changes for ever. Of each subscription they come in the order of their numbers, none left out and none twice.
async fn take(mut gateway: Gateway, may_take: Arc<Semaphore>, taken: Arc<AtomicU64>, ended: Arc<AtomicUsize>) {
    /// Counts an application that panics.
    struct Ends(Arc<AtomicUsize>);
    impl Drop for Ends {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.fetch_add(1, SeqCst);
            }
        }
    }
    let _ends = Ends(ended);
    let step = COLLECTIONS.len() as i64;
    let first = |collection: &str| {
        let index = COLLECTIONS.iter().position(|known| *known == collection).expect("one of ours") as i64;
        if index == 0 { step } else { index }
    };
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    while let Some(event) = gateway.next().await {
        match event.what {
            AppEvent::Change(change) => {
                // Closed: as many as there are.
                if let Ok(permit) = may_take.acquire().await {
                    permit.forget();
                }
                let (n, collection) = (number(&change), change.collection().to_owned());
                let due = last.get(&collection).map_or_else(|| first(&collection), |last| last + step);
                assert_eq!(n, due, "in {collection}: {change:?}");
                last.insert(collection, n);
                taken.fetch_add(1, SeqCst);
            }
            AppEvent::Live { .. } | AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("a Gateway has ended: {:?}", gateway.error());
}
