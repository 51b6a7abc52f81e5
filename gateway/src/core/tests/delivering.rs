//! What the delivery stream brings, and what of it reaches the application.

use wire::{GapReason, ResyncReason};

use super::*;

fn resync(seq: u64, handle: u32, live_from: u64) -> Delivery {
    let reason = ResyncReason::HistoryLost;
    Delivery::Resync { seq, handle: Handle(handle), reason, live_from: at(live_from) }
}

fn gap(seq: u64, time: u64, handles: &[u32]) -> Delivery {
    let handles = handles.iter().map(|handle| Handle(*handle)).collect();
    Delivery::Gap { seq, position: position(time), reason: GapReason::Dropped, handles }
}

#[test]
fn a_change_carries_what_came() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    let Some((_, AppEvent::Change(change))) = world.next() else { panic!("no change") };
    assert_eq!(change.subscription(), &key("s"));
    assert_eq!((change.id(), change.cluster_time(), change.seq(), change.partition()), (position(11), 11, 1, 0));
    assert_eq!((change.tenant(), change.collection()), (TENANT, "c"));
    assert_eq!((change.operation(), change.transition()), (Operation::Update, Transition::Update));
    assert_eq!(change.certainty(), Certainty::Matched);
    assert_eq!(change.document_id_text().as_deref(), Some("d"));
    assert_eq!(change.document().unwrap().get_i32("a").unwrap(), 1);
    assert_eq!(change.flat().unwrap(), bson::doc! { "_id": "d", "a": 1 });
}

#[test]
fn one_event_goes_to_all_that_it_names() {
    let mut world = World::live();
    world.subscribe("z", "c");
    world.answer();
    world.bind(2, "z", 10);
    world.event(1, 11, &[1, 2]);
    assert_eq!(world.drain(), ["live z", "s@11", "z@11"]);
}

#[test]
fn a_hole_in_seq_ends_the_session() {
    for seq in [0, 1, 3, 9] {
        let mut world = World::live();
        world.event(1, 11, &[1]);
        world.event(seq, 12, &[1]);
        world.expect_violation();
        // What came before it stays.
        assert_eq!(world.drain(), ["s@11"]);
    }
    for delivery in [gap(2, 11, &[1]), resync(2, 1, 11)] {
        let mut world = World::live();
        world.deliver(delivery);
        world.expect_violation();
    }
}

#[test]
fn handles_are_bound_once_and_before_they_are_used() {
    let bad: [Delivery; 7] = [
        Delivery::Events(vec![entry(1, 11, &[9])].into()),
        gap(1, 11, &[9]),
        resync(1, 9, 11),
        closed(9, CloseReason::Expired),
        Delivery::CatchingUp { handles: vec![Handle(9)] },
        Delivery::CaughtUp { handles: vec![Handle(9)] },
        bound(1, "s", 10),
    ];
    for delivery in bad {
        let mut world = World::live();
        world.deliver(delivery);
        world.expect_violation();
    }
    let mut world = World::live();
    world.deliver(closed(1, CloseReason::Expired));
    world.event(1, 11, &[1]);
    world.expect_violation();
}

#[test]
fn a_heartbeat_ahead_of_what_came_ends_the_session() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    world.heartbeat(1, 11);
    assert!(world.closed.is_empty());
    world.heartbeat(2, 12);
    world.expect_violation();
}

#[test]
fn what_a_subscription_has_had_is_dropped_and_counts_as_done() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    world.reconnect();
    world.bind(1, "s", 10);
    world.event(1, 11, &[1]);
    world.event(2, 12, &[1]);
    assert_eq!(world.ack(), Ack { received: 2, done: 0 }, "not before what precedes it");
    assert_eq!(world.drain(), ["s@11", "live s", "s@12"]);
    assert_eq!(world.ack(), Ack { received: 2, done: 2 });
    assert_eq!(world.core.status().counters.duplicates_dropped, 1);
}

#[test]
fn what_one_subscription_has_had_another_may_not_have() {
    let mut world = World::live();
    world.input(Input::Subscribe(item_from("z", "c", 3)));
    world.answer();
    world.event(1, 20, &[1]);
    world.bind(2, "z", 1);
    for (seq, time) in [(2, 3), (3, 4), (4, 20)] {
        world.event(seq, time, &[2]);
    }
    assert_eq!(world.drain(), ["s@20", "live z", "z@4", "z@20"]);
}

#[test]
fn another_lineage_or_backend_is_no_duplicate() {
    let mut world = World::live();
    world.event(1, 50, &[1]);
    for (seq, backend, lineage) in [(2, 1, 2), (3, 2, 1)] {
        let id = Position { backend: BackendId(backend), lineage: Lineage(lineage), ..position(5) };
        world.deliver(Delivery::Events(vec![EventEntry { id, ..entry(seq, 5, &[1]) }].into()));
    }
    assert_eq!(world.drain(), ["s@50", "s@5", "s@5"]);
}

#[test]
fn a_resync_is_handed_on_and_begins_anew() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    world.heartbeat(1, 90);
    world.deliver(resync(2, 1, 40));
    world.event(3, 41, &[1]);
    assert_eq!(world.kept("s"), Some(10));
    assert_eq!(world.drain(), ["s@11", "resync s", "s@41"]);
    assert_eq!(world.kept("s"), Some(41));
    assert_eq!(world.ack(), Ack { received: 3, done: 3 });
    assert_eq!(world.core.status().counters.resyncs, 1);
}

#[test]
fn a_resync_is_adopted_when_it_is_done_also_backwards() {
    let mut world = World::live();
    world.event(1, 30, &[1]);
    world.drain();
    world.deliver(resync(2, 1, 20));
    let (token, _) = world.next().unwrap();
    assert_eq!(world.kept("s"), Some(30));
    world.input(Input::Done(token));
    assert_eq!(world.kept("s"), Some(20));
}

#[test]
fn a_gap_is_told_once_to_each() {
    let mut world = World::live();
    world.subscribe("z", "c");
    world.answer();
    world.bind(2, "z", 10);
    world.deliver(gap(1, 11, &[1, 2]));
    world.reconnect();
    world.bind(1, "s", 10);
    world.deliver(gap(1, 11, &[1]));
    world.event(2, 12, &[1]);
    assert_eq!(world.drain(), ["live z", "gap s@11", "gap z@11", "live s", "s@12"]);
    assert_eq!((world.kept("s"), world.kept("z")), (Some(12), Some(11)));
}

#[test]
fn an_end_is_told_after_what_came_before_it() {
    for reason in [CloseReason::Expired, CloseReason::Removed] {
        let mut world = World::live();
        world.event(1, 11, &[1]);
        world.deliver(closed(1, reason));
        assert!(!world.core.is_live(&key("s")));
        assert_eq!(world.kept("s"), Some(10), "until the application knows of the end");
        assert_eq!(world.drain(), ["s@11".to_string(), format!("closed s {reason:?}")]);
        assert_eq!(world.core.status().subscriptions, 0);
        assert_eq!(world.core.positions(&key("s")), None);
        world.reconnect();
        assert_eq!(world.presented(), []);
    }
}

#[test]
fn a_key_whose_end_is_not_told_yet_can_be_subscribed_again() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    world.deliver(closed(1, CloseReason::Expired));
    world.input(Input::Subscribe(item_from("s", "c", 10)));
    world.answer();
    world.bind(2, "s", 20);
    world.event(2, 21, &[2]);
    assert_eq!(world.drain(), ["s@11", "closed s Expired", "live s", "s@21"]);
    assert_eq!(world.kept("s"), Some(21));
    assert!(world.core.is_live(&key("s")));
}

#[test]
fn unverified_changes_are_verified_here() {
    let filters = r#"[{"field":"a","op":"==","value":1}]"#;
    let mut world = World::connected();
    world.input(Input::Subscribe(SubscribeItem { filters: filters.into(), ..item("s", "c") }));
    world.answer();
    world.bind(1, "s", 10);
    for (seq, document) in [(1, rawdoc! { "a": 1 }), (2, rawdoc! { "a": 2 }), (3, rawdoc! { "a": 1.0 })] {
        let mut entry = EventEntry { document: document.into_bytes(), ..entry(seq, 10 + seq, &[1]) };
        entry.targets[0].certainty = Certainty::Unverified;
        world.deliver(Delivery::Events(vec![entry].into()));
    }
    world.next();
    let mut seen = Vec::new();
    while let Some((token, AppEvent::Change(change))) = world.next() {
        seen.push((change.cluster_time(), change.certainty()));
        world.input(Input::Done(token));
    }
    assert_eq!(seen, [(11, Certainty::Matched), (13, Certainty::Matched)]);
    assert_eq!(world.ack(), Ack { received: 3, done: 3 });
    assert_eq!(world.core.status().counters.unmatched_dropped, 1);
}

#[test]
fn what_can_not_be_verified_is_handed_on_as_it_is() {
    let mut world = World::connected();
    world.bind(1, "h", 10);
    let mut unverified = entry(1, 11, &[1]);
    unverified.targets[0].certainty = Certainty::Unverified;
    world.deliver(Delivery::Events(vec![unverified].into()));
    world.next();
    let Some((_, AppEvent::Change(change))) = world.next() else { panic!("lost") };
    assert_eq!(change.certainty(), Certainty::Unverified);
}

#[test]
fn what_overtakes_the_welcome_waits_for_it() {
    let mut world = World::new(1);
    world.subscribe("s", "c");
    let session = world.greet();
    assert!(!world.core.wants_delivery(session));
    for delivery in [bound(1, "s", 10), Delivery::Events(vec![entry(1, 11, &[1])].into())] {
        world.input(Input::Delivery { session, delivery });
    }
    assert_eq!(world.drain(), [""; 0]);
    let welcome = world.welcome(0);
    world.reply(session, Reply::Welcome(Box::new(welcome)));
    world.sessions.insert(0, session);
    assert_eq!(world.resumed, [session]);
    assert_eq!(world.drain(), ["live s", "s@11"]);
}

/// An application that stands still, and a shard that gives the session up for it, again and again.
#[test]
fn sessions_one_after_the_other_bring_no_more_than_one() {
    let mut world = World::with(1, CoreConfig { queue_bytes_max: 5_000, ..config() });
    world.subscribe("s", "c");
    world.accept_all();
    world.answer();
    world.bind(1, "s", 10);
    let mut time = 10;
    for _ in 0..10 {
        let mut seq = 0;
        while world.core.wants_delivery(world.sessions[&0]) {
            (seq, time) = (seq + 1, time + 1);
            world.event(seq, time, &[1]);
        }
        world.reconnect();
        world.answer();
    }
    assert!(time < 40, "{} items wait", world.core.status().queued_items);
    // Once the application goes on, so does the stream.
    assert!(!world.core.wants_delivery(world.sessions[&0]));
    assert_eq!(world.drain().len() as u64, time - 10 + 1);
    assert_eq!(world.resumed, [world.sessions[&0]]);
    assert!(world.core.wants_delivery(world.sessions[&0]));
    world.bind(1, "s", 10);
    world.event(1, time + 1, &[1]);
    assert_eq!(world.drain(), ["live s".to_string(), format!("s@{}", time + 1)]);
}

#[test]
fn a_full_queue_stops_the_stream_and_an_empty_one_starts_it() {
    let mut world = World::with(2, CoreConfig { queue_bytes_max: 5_000, ..config() });
    world.subscribe("s", &collection_of(0, 2));
    world.accept_all();
    world.answer();
    world.bind(1, "s", 10);
    let (full, idle) = (world.sessions[&0], world.sessions[&1]);
    let mut seq = 0;
    while world.core.wants_delivery(full) {
        seq += 1;
        world.event(seq, 10 + seq, &[1]);
        assert!(seq < 100);
    }
    assert!(seq > 5);
    assert!(world.core.wants_delivery(idle), "one shard's queue is not another's");
    // What was received is told, whatever the application does; requests go on as well.
    assert_eq!(world.ack(), Ack { received: seq, done: 0 });
    world.subscribe("z", &collection_of(0, 2));
    assert_eq!(world.presented().len(), 1);
    world.resumed.clear();
    let mut handed = 0;
    while world.resumed.is_empty() {
        let (token, _) = world.next().unwrap();
        assert!(world.resumed.is_empty() || handed > 0, "what is given out still counts");
        world.input(Input::Done(token));
        handed += 1;
    }
    assert_eq!(world.resumed, [full]);
    assert!(handed > seq / 3 && handed < seq, "about half of {seq}: {handed}");
    assert!(world.core.wants_delivery(full));
}

#[test]
fn what_comes_for_a_session_that_is_over_is_ignored() {
    let mut world = World::live();
    let old = world.sessions[&0];
    world.reconnect();
    world.answer();
    for delivery in [Delivery::Events(vec![entry(5, 11, &[77])].into()), bound(1, "x", 1)] {
        world.input(Input::Delivery { session: old, delivery });
    }
    world.reply(old, Reply::Refused { code: ErrorCode::Superseded, message: String::new() });
    world.input(Input::Disconnected { session: old, reason: DisconnectReason::Lost(String::new()) });
    assert_eq!(world.drain(), [""; 0]);
    assert_eq!((world.terminal, world.closed.len()), (None, 0));
}
