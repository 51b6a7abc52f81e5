//! The scenes, in the order in which they are played: simple ones first.

use futures::{FutureExt, future::LocalBoxFuture};
use serde_json::json;
use streamer_gateway::{Error, TerminalError};
use tokio::time::Duration;
use wire::{
    Operation::{Insert, Update},
    Transition::{Enter, Leave, Update as Updated},
};

use super::{
    judge::Judge,
    lines::{Command, Subscription},
    node::{GATEWAY, RETAINED, TENANT, TOKEN},
    stage::{Played, SHARDS, Stage, Stopped, filtered, whole},
};

/// One scene.
pub struct Scene {
    pub name: &'static str,
    /// What the Gateway has to do in it.
    pub about: &'static str,
    pub(super) play: for<'a> fn(&'a mut Stage) -> LocalBoxFuture<'a, Played>,
}

impl std::fmt::Debug for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scene").field("name", &self.name).finish()
    }
}

macro_rules! scenes {
    ($($name:literal $play:ident $about:literal),+ $(,)?) => {
        /// All scenes.
        pub const SCENES: &[Scene] =
            &[$(Scene { name: $name, about: $about, play: |stage| $play(stage).boxed_local() }),+];
    };
}

scenes! {
    "live" live "subscribe, by filters and an expression, and deliver enter, update and leave",
    "burst" burst "deliver thousands of changes at once, in order",
    "many" many "deliver one change to thousands of subscriptions",
    "big" big "deliver documents of megabytes",
    "rejected" rejected "tell what the node refuses, and go on with the rest",
    "unsubscribe" unsubscribe "unsubscribe, and deliver nothing of it any more",
    "acks" acks "ack as received what came, and as done only what the application is done with",
    "killed" killed "go on after the node was killed, without a loss, and without a repetition of what was delivered",
    "moved" moved "go on after the node has stopped and was started with another number of shards",
    "resumed" resumed "go on in a new process from the positions that were saved",
    "catch-up" catch_up "catch up with what the node reads again from the source's history, and go on with what is live",
    "superseded" superseded "end when another Gateway of the same id takes over",
    "gap" gap "tell a gap, and go on",
    "too-old" too_old "tell a resync where the source no longer has what was missed, and go on",
    "resync" resync "tell a resync where the source has begun another history, and go on",
}

const ORDERS: &str = "orders";
/// Nobody subscribes to it.
const OTHERS: &str = "others";

/// So many changes in scenes that need a few of them.
const SOME: i64 = 60;

async fn live(stage: &mut Stage) -> Played {
    let adults = filtered("adults", ORDERS, json!({"field": "n", "op": ">=", "value": 10}));
    let one = filtered("one", ORDERS, json!({"field": "_id", "op": "==", "value": "d1"}));
    let small = Subscription { expr: "doc.n < 10", ..whole("small", ORDERS) };
    stage.subscribe(vec![whole("all", ORDERS), adults, one, small]).await?;
    let (d1, d2) = ((ORDERS, "d1"), (ORDERS, "d2"));
    stage.put(d1, 5, Insert, &[("all", Enter), ("one", Enter), ("small", Enter)]).await?;
    let grown = [("all", Updated), ("one", Updated), ("small", Leave), ("adults", Enter)];
    // What leaves shows the document as it matched.
    stage.put_leaving(d1, (5, 15), &grown).await?;
    stage.put(d2, 20, Insert, &[("all", Enter), ("adults", Enter)]).await?;
    stage.put(d2, 21, Update, &[("all", Updated), ("adults", Updated)]).await?;
    stage.put((OTHERS, "d1"), 30, Insert, &[]).await?;
    let shrunk = [("all", Updated), ("one", Updated), ("adults", Leave), ("small", Enter)];
    stage.put_leaving(d1, (15, 3), &shrunk).await?;
    stage.delete(d2, 21, &[("all", Leave), ("adults", Leave)]).await?;
    stage.delete(d1, 3, &[("all", Leave), ("one", Leave), ("small", Leave)]).await?;
    stage.put(d1, 7, Insert, &[("all", Enter), ("one", Enter), ("small", Enter)]).await?;
    stage.wait_all().await
}

async fn burst(stage: &mut Stage) -> Played {
    stage.subscribe(vec![whole("all", ORDERS), whole("again", ORDERS)]).await?;
    for first in (0..4_000).step_by(1_000) {
        stage.put_many(ORDERS, first..first + 1_000, &[("all", Enter), ("again", Enter)]).await?;
    }
    stage.wait_all().await
}

async fn many(stage: &mut Stage) -> Played {
    const MANY: usize = 3_000;
    let ids: Vec<String> = (0..MANY).map(|number| format!("s{number}")).collect();
    stage.subscribe(ids.iter().map(|id| whole(id, ORDERS)).collect()).await?;
    let concerned: Vec<_> = ids.iter().map(|id| (id.as_str(), Enter)).collect();
    stage.put((ORDERS, "d1"), 1, Insert, &concerned).await?;
    let concerned: Vec<_> = ids.iter().map(|id| (id.as_str(), Updated)).collect();
    stage.put((ORDERS, "d1"), 2, Update, &concerned).await?;
    stage.wait_all().await
}

async fn big(stage: &mut Stage) -> Played {
    stage.subscribe(vec![whole("all", ORDERS)]).await?;
    for (n, megabytes) in [1, 10, 3, 14].into_iter().enumerate() {
        let place = (ORDERS, format!("d{n}"));
        let place = (place.0, place.1.as_str());
        stage.put_large(place, n as i64, megabytes << 20, Insert, &[("all", Enter)]).await?;
    }
    stage.put((ORDERS, "small"), 4, Insert, &[("all", Enter)]).await?;
    stage.wait_all().await
}

async fn rejected(stage: &mut Stage) -> Played {
    let wrong = filtered("wrong", ORDERS, json!({"field": "n", "op": "resembles", "value": 10}));
    let theirs = Subscription { tenant: "globex", ..whole("theirs", ORDERS) };
    for (subscription, code) in [(wrong, "INVALID_FILTER"), (theirs, "FORBIDDEN")] {
        let id = subscription.id.clone();
        stage.judge.subscribed(&id);
        stage.judge.allow_rejection(&id);
        stage.tell(Command::Subscribe { subscriptions: vec![subscription] }).await?;
        let found = |judge: &Judge| match judge.rejection(&id) {
            Some(told) if told == code => Ok(()),
            Some(told) => Err(format!("subscription {id} was rejected with {told} instead of {code}")),
            None => Err(format!("subscription {id} was not rejected")),
        };
        stage.wait("a rejection", found).await?;
    }
    stage.subscribe(vec![whole("all", ORDERS)]).await?;
    stage.put((ORDERS, "d1"), 1, Insert, &[("all", Enter)]).await?;
    stage.wait_all().await
}

async fn unsubscribe(stage: &mut Stage) -> Played {
    stage.subscribe(vec![whole("stays", ORDERS), whole("goes", ORDERS)]).await?;
    stage.put((ORDERS, "d1"), 1, Insert, &[("stays", Enter), ("goes", Enter)]).await?;
    stage.wait_all().await?;
    stage.tell(Command::Unsubscribe { tenant: TENANT, id: "goes".into() }).await?;
    stage.wait_node("the node has one subscription", async |node| Ok(node.subscriptions().await? == 1)).await?;
    stage.put((ORDERS, "d1"), 2, Update, &[("stays", Updated)]).await?;
    stage.wait_all().await
}

async fn acks(stage: &mut Stage) -> Played {
    stage.subscribe(vec![whole("all", ORDERS)]).await?;
    stage.put((ORDERS, "first"), 0, Insert, &[("all", Enter)]).await?;
    stage.wait_all().await?;
    stage.wait_done().await?;
    const OPENED: &str = "streamer_shard_sessions_opened_total";
    // The node shows its counters a moment later than they are.
    let all = SHARDS as u64;
    stage.wait_node("there is a session for each shard", async |node| Ok(node.counter(OPENED).await? >= all)).await?;
    let sessions = stage.node.counter(OPENED).await?;
    stage.tell(Command::Hold).await?;
    let released = stage.last;
    stage.put_many(ORDERS, 1..SOME, &[("all", Enter)]).await?;
    stage.wait_all().await?;
    // Longer than the node waits for `received`.
    for _ in 0..15 {
        stage.listen(Duration::from_millis(200)).await;
        let acked = stage.node.settled().await?.saturating_sub(released);
        if acked > 0 {
            return Err(Stopped::Fault(format!("{acked} changes were acked as done that the application still holds")));
        }
    }
    let more = stage.node.counter(OPENED).await? - sessions;
    if more > 0 {
        let late = stage.node.counter("streamer_shard_sessions_past_deadline_total").await?;
        return Err(Stopped::Fault(format!(
            "{more} sessions were lost while changes were held, {late} of them because the receipt of changes was not acked in time"
        )));
    }
    stage.tell(Command::Release).await?;
    stage.wait_done().await
}

async fn killed(stage: &mut Stage) -> Played {
    stage.subscribe(vec![whole("all", ORDERS), whole("idle", OTHERS)]).await?;
    stage.tell(Command::Hold).await?;
    for round in 0..3 {
        let first = round * 2 * SOME;
        // Delivered and not done when the node ends, so they come again in the next session.
        stage.put_many(ORDERS, first..first + SOME, &[("all", Enter)]).await?;
        stage.wait_all().await?;
        stage.node.kill().await?;
        stage.node.start(SHARDS).await?;
        stage.put_many(ORDERS, first + SOME..first + 2 * SOME, &[("all", Enter)]).await?;
        stage.wait_all().await?;
    }
    stage.tell(Command::Release).await?;
    stage.put((OTHERS, "d1"), 1, Insert, &[("idle", Enter)]).await?;
    stage.wait_all().await?;
    stage.wait_done().await
}

async fn moved(stage: &mut Stage) -> Played {
    const COLLECTIONS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    stage.subscribe(COLLECTIONS.map(|name| whole(name, name)).into()).await?;
    for (round, shards) in [4, 1, SHARDS].into_iter().enumerate() {
        for collection in COLLECTIONS {
            let first = round as i64 * 2 * SOME;
            stage.put_many(collection, first..first + SOME, &[(collection, Enter)]).await?;
        }
        stage.node.stop().await?;
        stage.node.start(shards).await?;
        for collection in COLLECTIONS {
            let first = round as i64 * 2 * SOME + SOME;
            stage.put_many(collection, first..first + SOME, &[(collection, Enter)]).await?;
        }
        stage.wait_all().await?;
    }
    Ok(())
}

async fn resumed(stage: &mut Stage) -> Played {
    stage.subscribe(vec![whole("all", ORDERS), whole("idle", OTHERS)]).await?;
    for round in 0..3 {
        let first = round * 3 * SOME;
        stage.put_many(ORDERS, first..first + SOME, &[("all", Enter)]).await?;
        stage.wait_all().await?;
        save(stage).await?;
        let upto = stage.last;
        // The application is done with these in every other round, so that the node takes them for settled; they aren't saved in any.
        let is_done = round % 2 == 0;
        if !is_done {
            stage.tell(Command::Hold).await?;
        }
        stage.put_many(ORDERS, first + SOME..first + 2 * SOME, &[("all", Enter)]).await?;
        stage.wait_all().await?;
        if is_done {
            stage.wait_done().await?;
        }
        stage.kill_program(upto).await;
        stage.put_many(ORDERS, first + 2 * SOME..first + 3 * SOME, &[("all", Enter)]).await?;
        stage.start_program()?;
        stage.subscribe_again().await?;
        stage.wait_all().await?;
    }
    stage.put((OTHERS, "d1"), 1, Insert, &[("idle", Enter)]).await?;
    stage.wait_all().await
}

async fn save(stage: &mut Stage) -> Played {
    let saves = stage.judge.saved;
    stage.tell(Command::Save).await?;
    let saved = |judge: &Judge| if judge.saved > saves { Ok(()) } else { Err("nothing was saved".into()) };
    stage.wait("saved positions", saved).await
}

async fn catch_up(stage: &mut Stage) -> Played {
    const MISSED: i64 = 5 * SOME;
    stage.subscribe(vec![whole("all", ORDERS), whole("idle", OTHERS)]).await?;
    for round in 0..3 {
        let mut n = round * (2 * SOME + MISSED);
        stage.put_many(ORDERS, n..n + SOME, &[("all", Enter)]).await?;
        stage.wait_all().await?;
        save(stage).await?;
        let upto = stage.last;
        n += SOME;
        // To the node, the next subscription of this name is a new one: of what happened before it, only the source knows.
        stage.tell(Command::Unsubscribe { tenant: TENANT, id: "all".into() }).await?;
        stage.wait_node("the node has one subscription", async |node| Ok(node.subscriptions().await? == 1)).await?;
        stage.kill_program(upto).await;
        stage.put_many(ORDERS, n..n + MISSED, &[("all", Enter)]).await?;
        let missed = stage.last;
        n += MISSED;
        stage.start_program()?;
        stage.subscribe_again().await?;
        // These come while it catches up, or right after.
        stage.put_many(ORDERS, n..n + SOME, &[("all", Enter)]).await?;
        stage.wait_all().await?;
        stage.wait("the end of a catch-up", |judge| judge.caught_up("all", missed)).await?;
    }
    stage.put((OTHERS, "d1"), 1, Insert, &[("idle", Enter)]).await?;
    stage.wait_all().await?;
    stage.wait_done().await
}

async fn superseded(stage: &mut Stage) -> Played {
    stage.subscribe(vec![whole("all", ORDERS)]).await?;
    stage.put((ORDERS, "d1"), 1, Insert, &[("all", Enter)]).await?;
    stage.wait_all().await?;
    stage.judge.allow_end();
    let other = streamer_gateway::Gateway::builder()
        .address(stage.node.address())
        .fingerprint(stage.node.fingerprint().await?)
        .gateway(GATEWAY)
        .token(TOKEN)
        .agent("streamer-conformance")
        .connect()
        .await;
    let came_back =
        |error: TerminalError| Stopped::Fault(format!("the Gateway came back after it was superseded: {error}"));
    let other = match other {
        Ok(other) => other,
        // So soon that the other one was not wholly there.
        Err(Error::Terminal(error @ TerminalError::Superseded { .. })) => return Err(came_back(error)),
        Err(error) => return Err(Stopped::Fault(format!("the other Gateway could not connect: {error}"))),
    };
    let ended = |judge: &Judge| match judge.ended.as_deref() {
        Some("SUPERSEDED") => Ok(()),
        Some(reason) => Err(format!("the Gateway has ended because of {reason} instead of SUPERSEDED")),
        None => Err("the Gateway has not told that it has ended".into()),
    };
    let told = stage.wait("the Gateway's end", ended).await;
    // One that comes back would end this one in its turn.
    stage.listen(Duration::from_secs(3)).await;
    let error = other.error();
    other.close().await;
    told?;
    error.map_or(Ok(()), |error| Err(came_back(error)))
}

async fn gap(stage: &mut Stage) -> Played {
    stage.subscribe(vec![whole("all", ORDERS)]).await?;
    stage.put_many(ORDERS, 0..SOME, &[("all", Enter)]).await?;
    stage.wait_all().await?;
    stage.judge.allow_breaks("all");
    // A source that keeps so little that what is written at once is gone before it is read.
    stage.node.stop().await?;
    stage.node.retain_little();
    stage.node.start(SHARDS).await?;
    stage.put_many(ORDERS, SOME..2 * SOME, &[("all", Enter)]).await?;
    stage.wait_all().await?;
    let mut n = 0;
    while stage.node.counter("streamer_ingest_gaps_total").await? == 0 {
        stage.put_many_large(OTHERS, n..n + 300, 20_000).await?;
        n += 300;
        stage.listen(Duration::from_millis(500)).await;
        if n > 60_000 {
            return Err(stage.node.broken("its source keeps what it should not".into()).into());
        }
    }
    let told = |judge: &Judge| match judge.gaps("all") {
        [] => Err("no gap was told of subscription all".into()),
        gaps if gaps.iter().all(|reason| reason == "history_lost") => Ok(()),
        other => Err(format!("{other:?} were told of subscription all instead of history_lost")),
    };
    stage.wait("a gap", told).await?;
    if let [reason, ..] = stage.judge.resyncs("all") {
        return Err(Stopped::Fault(format!("a resync ({reason}) was told of subscription all, which had a gap only")));
    }
    stage.put_many(ORDERS, 2 * SOME..3 * SOME, &[("all", Enter)]).await?;
    stage.wait_all().await?;
    stage.wait_done().await
}

async fn too_old(stage: &mut Stage) -> Played {
    stage.subscribe(vec![whole("all", ORDERS)]).await?;
    stage.tell(Command::Hold).await?;
    stage.put_many(ORDERS, 0..SOME, &[("all", Enter)]).await?;
    stage.wait_all().await?;
    // What is held keeps the node's checkpoint where it is, until the source no longer has what follows it.
    for first in (0..3 * RETAINED as i64).step_by(1_000) {
        stage.put_many(OTHERS, first..first + 1_000, &[]).await?;
    }
    stage.judge.allow_breaks("all");
    stage.node.kill().await?;
    stage.node.start(SHARDS).await?;
    stage.wait("a resync", |judge| resynced(judge, "all", "history_lost")).await?;
    stage.tell(Command::Release).await?;
    stage.put_many(ORDERS, SOME..2 * SOME, &[("all", Enter)]).await?;
    stage.wait_all().await?;
    stage.wait_done().await
}

fn resynced(judge: &Judge, id: &str, expected: &str) -> Result<(), String> {
    match judge.resyncs(id) {
        [] => Err(format!("no resync was told of subscription {id}")),
        [reason] if reason == expected => Ok(()),
        other => Err(format!("of subscription {id} there were told {other:?} instead of one resync, {expected}")),
    }
}

async fn resync(stage: &mut Stage) -> Played {
    stage.subscribe(vec![whole("all", ORDERS), whole("idle", OTHERS)]).await?;
    stage.put_many(ORDERS, 0..SOME, &[("all", Enter)]).await?;
    stage.wait_all().await?;
    stage.judge.allow_breaks("all");
    stage.judge.allow_breaks("idle");
    // Its positions are of a history that is over.
    stage.node.stop().await?;
    stage.node.forget()?;
    stage.node.start(SHARDS).await?;
    for id in ["all", "idle"] {
        stage.wait("a resync", |judge| resynced(judge, id, "lineage_changed")).await?;
    }
    stage.begin_again();
    stage.put_many(ORDERS, 0..SOME, &[("all", Enter)]).await?;
    stage.put((OTHERS, "d1"), 1, Insert, &[("idle", Enter)]).await?;
    stage.wait_all().await
}
