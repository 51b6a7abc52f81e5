//! What is sent, when, in what pieces, and what settles it.

use super::*;
use crate::*;
use wire::*;

#[test]
fn a_match_is_delivered_and_settled_when_done() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    assert_eq!(world.settled(), Some(0));
    world.insert("d", "x");
    assert_eq!(world.settled(), Some(0));
    world.pump(connection).is(&["s enter 1"]);
    world.ack(connection, 1, 0);
    assert_eq!(world.settled(), Some(0));
    world.ack(connection, 1, 1);
    assert_eq!(world.settled(), Some(1));
}

#[test]
fn what_nobody_wants_settles_at_once() {
    let mut world = World::new();
    let connection = world.hello("g");
    world.subscribe(connection, vec![item("s", "x")]);
    world.seen();
    world.insert("d", "y");
    assert_eq!(world.settled(), Some(1));
    world.progress();
    assert_eq!(world.settled(), Some(2));
}

#[test]
fn settled_stays_before_the_lowest_that_is_owed() {
    let mut world = World::new();
    let g = world.watching("g", &["s"]);
    let h = world.watching("h", &["s"]);
    for _ in 0..3 {
        world.insert("d", "x");
    }
    world.pump(g);
    world.pump(h);
    world.ack(g, 3, 3);
    assert_eq!(world.settled(), Some(0));
    world.ack(h, 3, 1);
    assert_eq!(world.settled(), Some(1));
    world.ack(h, 3, 3);
    assert_eq!(world.settled(), Some(3));
}

#[test]
fn images_give_transitions() {
    let mut world = World::new();
    let connection = world.hello("g");
    let quiet = SubscribeItem { transitions: false, ..item("quiet", "x") };
    world.subscribe(connection, vec![item("s", "x"), quiet]);
    world.seen();
    world.pump(connection);
    world.update("d", Some("y"), "x");
    world.update("d", Some("x"), "x");
    world.update("d", Some("x"), "y");
    world.update("d", None, "x");
    world.update("d", Some("y"), "z");
    world.delete("d", Some("x"));
    world.delete("d", Some("y"));
    let mut seen = world.pump(connection);
    seen.0.sort();
    seen.is(&[
        "quiet enter 1",
        "quiet leave 6",
        "quiet update 2",
        "quiet update 4",
        "s enter 1",
        "s leave 3",
        "s leave 6",
        "s update 2",
        "s update 4",
    ]);
}

#[test]
fn a_bare_delete_says_what_is_not_known() {
    for (bare_deletes, expected) in [
        (BareDeletes::Unknown, &["all leave 1", "one leave 1", "some leave? 1"][..]),
        (BareDeletes::Known, &["all leave 1", "one leave 1"][..]),
    ] {
        let mut world = World::with(|config| config.bare_deletes = bare_deletes);
        let connection = world.hello("g");
        let by_id = |id: &str, document: &str| SubscribeItem {
            filters: format!(r#"[{{"field":"_id","op":"==","value":"{document}"}}]"#),
            ..item(id, "")
        };
        world.subscribe(connection, vec![item("all", ""), item("some", "x"), by_id("one", "d"), by_id("no", "e")]);
        world.seen();
        world.pump(connection);
        world.delete("d", None);
        let mut seen = world.pump(connection);
        seen.0.sort();
        seen.is(expected);
    }
}

#[test]
fn a_repeated_change_is_dropped() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.insert("d", "x");
    world.time = 0;
    world.insert("d", "x");
    world.pump(connection).is(&["s enter 1"]);
    assert_eq!(world.shard.stats().events_repeated, 1);
}

#[test]
fn events_are_coalesced_up_to_the_bytes_asked_for() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    for _ in 0..250 {
        world.insert("d", "x");
    }
    world.fill_bytes = 1_000;
    let (written, seen) = world.fill(connection);
    assert!(written <= 1_200 && seen.0.len() > 3, "{written} bytes, {} events", seen.0.len());
    world.fill_bytes = 1;
    let (written, seen) = world.fill(connection);
    assert!(written > 1);
    assert_eq!(seen.0.len(), 1, "one that doesn't fit goes alone");
    world.fill_bytes = 1 << 20;
    world.pump(connection);
    assert_eq!(world.last_seq(connection), 250);
}

#[test]
fn one_event_entry_names_all_its_handles() {
    let mut world = World::new();
    let connection = world.watching("g", &["a", "b"]);
    world.insert("d", "x");
    world.pump(connection).is(&["a enter 1", "b enter 1"]);
    assert_eq!(world.last_seq(connection), 1);
}

#[test]
fn ready_is_told_once_until_fill_found_nothing() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    assert!(world.ready.is_empty());
    world.insert("d", "x");
    world.insert("d", "x");
    assert_eq!(world.ready, [connection]);
    world.pump(connection);
    world.insert("d", "x");
    assert_eq!(world.ready, [connection]);
}

#[test]
fn a_gap_has_its_place_in_the_order_and_is_acked() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.insert("d", "x");
    world.gap(Scope::Tenant("other".into()));
    world.gap(Scope::Collection { tenant: "t".into(), collection: "c".into() });
    world.insert("d", "x");
    world.gap(Scope::Tenant("t".into()));
    world.gap(Scope::Everything);
    world.pump(connection).is(&["s enter 1", "s gap 3", "s enter 4", "s gap 5", "s gap 6"]);
    world.ack(connection, 5, 1);
    assert_eq!(world.settled(), Some(2));
    world.ack(connection, 5, 5);
    assert_eq!(world.settled(), Some(6));
}

#[test]
fn a_gap_of_two_collections_is_settled_once_both_are_done_with_it() {
    let collection = |name: &str| Scope::Collection { tenant: "t".into(), collection: name.to_owned().into() };
    for (first, second) in [("c", "d"), ("d", "c"), ("other", "d"), ("d", "other")] {
        let mut world = World::new();
        let old = world.watching("old", &["s"]);
        let new = world.hello("new");
        world.subscribe(new, vec![SubscribeItem { collection: "d".into(), ..item("n", "") }]);
        world.sync_done(new);
        world.seen();
        world.pump(new);
        world.gap_of([collection(first), collection(second)]);
        world.pump(old);
        world.done(old);
        assert_eq!(world.settled(), Some(0), "{first} and {second}: one is owed it");
        world.pump(new).is(&["n gap 1"]);
        world.done(new);
        assert_eq!(world.settled(), Some(1));
    }
}

#[test]
fn acks_that_cannot_be_end_the_session() {
    for acks in [&[(2, 0)][..], &[(0, 1)], &[(1, 1), (1, 0)], &[(1, 0), (0, 0)]] {
        let mut world = World::new();
        let connection = world.watching("g", &["s"]);
        world.insert("d", "x");
        world.pump(connection);
        for (received, done) in acks {
            world.ack(connection, *received, *done);
        }
        assert_eq!(world.closed, [(connection, ErrorCode::ProtocolViolation)], "{acks:?}");
        assert_eq!(world.shard.stats().sessions, 0);
    }
}

#[test]
fn an_old_sessions_acks_settle_nothing() {
    let mut world = World::new();
    let old = world.watching("g", &["s"]);
    world.insert("d", "x");
    world.pump(old);
    let new = world.hello("g");
    assert_eq!(world.closed, [(old, ErrorCode::Superseded)]);
    world.done(old);
    world.unsubscribe(old, "s");
    world.disconnect(old);
    assert_eq!(world.settled(), Some(0));
    assert_eq!(world.shard.stats().acks_stale, 1);
    assert_eq!(world.shard.stats().subscriptions, 1);
    world.sync_done(new);
    world.pump(new).is(&["bound s from 0", "s enter 1"]);
}

#[test]
fn what_is_not_received_in_time_ends_the_session() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.insert("d", "x");
    world.pump(connection);
    world.insert("d", "x");
    world.pass(29_000);
    assert!(world.closed.is_empty());
    world.ack(connection, 1, 0);
    world.pass(2_000);
    assert!(world.closed.is_empty(), "a slow `done` meets no deadline");
    world.pump(connection);
    world.pass(30_000);
    assert_eq!(world.closed, [(connection, ErrorCode::ReceivedDeadline)]);
    assert_eq!(world.settled(), Some(0), "it is still owed");
}

#[test]
fn heartbeats_tell_positions_soon_after_quiet_and_ever_so_often() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.progress();
    world.tick(100);
    world.pump(connection).is(&[]);
    world.tick(100);
    world.pump(connection).is(&["heartbeat 1"]);
    world.tick(300);
    world.pump(connection).is(&[]);
    world.tick(700);
    world.pump(connection).is(&["heartbeat 1"]);
    // Between events too, for subscriptions that have none of them; in their place in the order.
    world.insert("d", "x");
    world.tick(1_000);
    world.insert("d", "x");
    world.pump(connection).is(&["s enter 2", "heartbeat 2", "s enter 3"]);
}

#[test]
fn a_missing_before_image_that_was_promised_breaks_continuity() {
    let mut world =
        World::with(|config| config.backends = vec![BackendConfig { id: world::BACKEND, before_images: true }]);
    let connection = world.hello("g");
    let quiet = SubscribeItem { transitions: false, ..item("quiet", "x") };
    world.subscribe(connection, vec![item("s", "x"), quiet]);
    world.seen();
    world.pump(connection);
    world.insert("d", "x");
    world.update("d", Some("x"), "x");
    world.update("d", None, "x");
    world.insert("e", "x");
    let mut seen = world.pump(connection);
    seen.0.sort();
    // What was still waiting for the one is covered by its resync.
    seen.is(&[
        "quiet enter 1",
        "quiet enter 4",
        "quiet update 2",
        "quiet update 3",
        "s enter 4",
        "s resync PreimageMissing from 3",
    ]);
    assert_eq!(world.shard.stats().resyncs.preimage_missing, 1);
    world.done(connection);
    assert_eq!(world.settled(), Some(4));
}

#[test]
fn a_promised_leave_of_a_document_whose_collection_is_not_known_breaks_all_that_it_may_concern() {
    let by_id = |id: &str| SubscribeItem {
        filters: format!(r#"[{{"field":"_id","op":"==","value":"{id}"}}]"#),
        ..item(id, "")
    };
    for (bare_deletes, told) in [
        (BareDeletes::Known, ["d leave 1", "s resync PreimageMissing from 1"]),
        (BareDeletes::Unknown, ["d leave 1", "s leave? 1"]),
    ] {
        let mut world = World::with(|config| {
            config.backends = vec![BackendConfig { id: world::BACKEND, before_images: true }];
            config.bare_deletes = bare_deletes;
        });
        let connection = world.hello("g");
        let elsewhere = SubscribeItem { key: SubscriptionKey { tenant: "u".into(), id: "u".into() }, ..item("u", "") };
        world.subscribe(connection, vec![item("s", "x"), by_id("d"), by_id("e"), elsewhere]);
        world.seen();
        world.pump(connection);
        world.delete_bare("d");
        let mut seen = world.pump(connection);
        seen.0.sort();
        seen.is(&told);
    }
}

#[test]
fn going_away_is_told() {
    let mut world = World::new();
    let connection = world.watching("g", &["s"]);
    world.input(Input::GoAway { within_ms: 500 });
    world.pump(connection).is(&["go away 500"]);
}
