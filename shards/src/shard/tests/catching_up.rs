//! What the log can't give is read again from the source's history.

use super::*;
use crate::*;
use wire::*;

fn presented(id: &str, a: &str, time: u64) -> SubscribeItem {
    SubscribeItem { positions: positions(time), ..item(id, a) }
}

/// A subscription `s` that is behind from `from` to where the source is, bound and told so, and the source has had nine changes.
fn behind(from: u64) -> (World, ConnectionId) {
    let mut world = World::new();
    for _ in 0..9 {
        world.insert("d", "x");
    }
    let connection = world.hello("g");
    world.subscribe(connection, vec![presented("s", "", from)]);
    world.sync_done(connection);
    world.seen();
    world.pump(connection).is(&["bound s from 9", "s catching up"]);
    (world, connection)
}

#[test]
fn a_position_from_before_the_subscription_is_read_from() {
    let (mut world, connection) = behind(6);
    // Live changes are not told meanwhile, nor do heartbeats speak for it: they come, but it is told by `catching up` what they are.
    world.insert("d", "x");
    world.pump(connection).is(&[]);
    assert_eq!((world.wanted(), world.serving()), (Some(6), 0));
    world.begin(BACKEND, 6);
    assert_eq!((world.wanted(), world.serving()), (None, 1));
    assert!(world.bring(BACKEND));
    world.insert("d", "x");
    world.pump(connection).is(&["s enter 7"]);
    world.merge(BACKEND);
    assert_eq!(world.serving(), 0);
    world.insert("d", "x");
    world.pump(connection).is(&["s enter 8", "s enter 9", "s enter 10", "s enter 11", "s caught up", "s enter 12"]);
    world.done(connection);
    assert_eq!(world.settled(), Some(12));
}

#[test]
fn what_a_pass_brings_holds_nothing_back() {
    let (mut world, connection) = behind(3);
    world.catch_all_up();
    assert_eq!(world.settled(), Some(9));
    world.pump(connection);
    assert_eq!((world.settled(), world.shard.stats().log_unsettled), (Some(9), 0));
}

#[test]
fn a_pass_tells_each_what_it_lacks_and_others_nothing() {
    let mut world = World::new();
    let other = world.watching("h", &["live"]);
    for _ in 0..6 {
        world.insert("d", "x");
    }
    world.pump(other);
    let connection = world.hello("g");
    world.subscribe(
        connection,
        vec![presented("a", "x", 2), presented("b", "", 4), presented("c", "y", 1), item("d", "")],
    );
    world.sync_done(connection);
    world.seen();
    world.pump(connection);
    world.insert("d", "y");
    world.pump(other).is(&["live enter 7"]);
    world.pump(connection).is(&["d enter 7"]);
    assert_eq!(world.wanted(), Some(1));
    world.catch_all_up();
    let seen = world.pump(connection);
    let of = |id: &str| Seen(seen.0.iter().filter(|line| line.starts_with(id)).cloned().collect());
    of("a ").is(&["a enter 3", "a enter 4", "a enter 5", "a enter 6", "a caught up"]);
    of("b ").is(&["b enter 5", "b enter 6", "b enter 7", "b caught up"]);
    of("c ").is(&["c enter 7", "c caught up"]);
    of("d ").is(&[]);
    world.pump(other).is(&[]);
}

#[test]
fn who_comes_while_a_pass_is_further_on_waits_for_the_next() {
    let (mut world, connection) = behind(2);
    world.begin(BACKEND, 2);
    (0..3).for_each(|_| _ = world.bring(BACKEND));
    // The pass is at 5.
    world.subscribe(connection, vec![presented("late", "", 4), presented("early", "", 5)]);
    world.seen();
    assert_eq!((world.wanted(), world.serving()), (Some(4), 2));
    world.pump(connection);
    world.merge(BACKEND);
    let seen = world.pump(connection);
    let of = |seen: &Seen, id: &str| seen.0.iter().filter(|line| line.starts_with(id)).count();
    assert_eq!((of(&seen, "late"), of(&seen, "early"), of(&seen, "s ")), (0, 5, 5));
    world.catch_all_up();
    let seen = world.pump(connection);
    assert_eq!((of(&seen, "late"), of(&seen, "early"), of(&seen, "s ")), (6, 0, 0));
}

#[test]
fn who_stands_before_the_place_that_a_pass_begins_at_waits_for_the_next() {
    let (mut world, connection) = behind(2);
    world.begin(BACKEND, 3);
    assert_eq!((world.wanted(), world.serving()), (Some(2), 0));
    world.merge(BACKEND);
    world.insert("d", "x");
    world.pump(connection).is(&[]);
    world.catch_all_up();
    assert_eq!(world.pump(connection).0.len(), 9);
}

#[test]
fn an_interrupted_pass_leaves_everybody_where_they_are() {
    let (mut world, connection) = behind(2);
    world.subscribe(connection, vec![presented("rare", "y", 3)]);
    world.seen();
    world.pump(connection);
    world.begin(BACKEND, 2);
    (0..3).for_each(|_| _ = world.bring(BACKEND));
    world.fail(BACKEND, CatchUpFailure::Interrupted);
    world.pump(connection).is(&["s enter 3", "s enter 4", "s enter 5"]);
    // The one that nothing was brought for has come as far as the pass.
    assert_eq!((world.wanted(), world.serving()), (Some(5), 0));
    world.insert("d", "x");
    world.pump(connection).is(&[]);
    world.catch_all_up();
    let seen = world.pump(connection);
    assert_eq!(seen.0[..5], ["s enter 6", "s enter 7", "s enter 8", "s enter 9", "s enter 10"]);
    assert_eq!(seen.0.len(), 7);
    assert_eq!(world.shard.stats().resyncs.total(), 0);
}

#[test]
fn what_can_not_be_had_is_a_resync() {
    let lost = CatchUpFailure::HistoryLost { upto: position(5) };
    for (failure, name) in [(lost, "HistoryLost"), (CatchUpFailure::TooSlow, "TooSlow")] {
        let (mut world, connection) = behind(2);
        world.subscribe(connection, vec![presented("earlier", "", 1)]);
        world.seen();
        world.pump(connection);
        world.begin(BACKEND, 2);
        world.bring(BACKEND);
        world.fail(BACKEND, failure);
        world.insert("d", "x");
        // What it was brought before is skipped, if it hasn't been sent. The pass didn't serve the other one.
        world.pump(connection).is(&[&format!("s resync {name} from 9"), "s enter 10"]);
        assert_eq!((world.wanted(), world.shard.stats().subscriptions_behind), (Some(1), 1));
    }
}

/// History begins in the middle of what a pass was for: whoever stands behind that place loses nothing by it.
#[test]
fn only_those_whose_history_is_lost_have_to_resync() {
    let (mut world, connection) = behind(2);
    world.subscribe(connection, vec![presented("later", "x", 6)]);
    world.seen();
    world.pump(connection);
    world.begin(BACKEND, 2);
    world.fail(BACKEND, CatchUpFailure::HistoryLost { upto: position(5) });
    world.pump(connection).is(&["s resync HistoryLost from 9"]);
    assert_eq!((world.wanted(), world.shard.stats().subscriptions_behind), (Some(6), 1));
    world.catch_all_up();
    world.pump(connection).is(&["later enter 7", "later enter 8", "later enter 9", "later caught up"]);
}

#[test]
fn the_end_of_a_pass_is_exact_however_late_it_is_looked_at() {
    let (mut world, connection) = behind(6);
    world.works = false;
    world.begin(BACKEND, 6);
    world.merge(BACKEND);
    world.insert("d", "x");
    world.pump(connection).is(&["s enter 7", "s enter 8", "s enter 9", "s caught up", "s enter 10"]);
    // Another pass finds nobody to serve.
    world.begin(BACKEND, 0);
    world.merge(BACKEND);
    world.pump(connection).is(&[]);
}

#[test]
fn a_hundred_thousand_meet_the_live_stream_at_one_item() {
    let mut world = World::new();
    world.checks = false;
    world.insert("d", "x");
    let connection = world.hello("g");
    for request in 0..10 {
        let items = (0..10_000).map(|n| presented(&format!("s{request}-{n}"), if n == 7 { "x" } else { "y" }, 0));
        world.subscribe(connection, items.collect());
    }
    world.sync_done(connection);
    world.seen();
    world.fill_bytes = 1 << 24;
    world.pump(connection);
    assert_eq!(world.shard.stats().subscriptions_behind, 100_000);
    world.works = false;
    world.begin(BACKEND, 0);
    assert_eq!(world.serving(), 100_000);
    world.merge(BACKEND);
    assert_eq!(world.shard.stats().subscriptions_behind, 100_000, "it is no work to meet it");
    world.insert("d", "x");
    assert_eq!(world.pump(connection).0.len(), 30, "ten that the pass brought, that have met it, and that are live");
    let mut slices = 0;
    while world.shard.stats().subscriptions_behind > 0 {
        let before = world.shard.stats().subscriptions_behind;
        world.work();
        assert!(before - world.shard.stats().subscriptions_behind < 1_000, "too much in one slice");
        slices += 1;
    }
    assert!(slices > 100);
    assert_eq!(world.pump(connection).0.len(), 100_000 - 10);
    world.shard.check_invariants();
}

#[test]
fn who_takes_too_little_falls_out_of_a_pass_and_nobody_else_does() {
    let mut world = World::with(|config| config.outbox_events_max = 4);
    for _ in 0..20 {
        world.insert("d", "x");
    }
    let connections = ["slow", "fast"].map(|gateway| {
        let connection = world.hello(gateway);
        world.subscribe(connection, vec![presented("s", "", 0)]);
        world.sync_done(connection);
        connection
    });
    world.seen();
    connections.iter().for_each(|connection| _ = world.pump(*connection));
    let [slow, fast] = connections;
    world.begin(BACKEND, 0);
    let mut seen = Vec::new();
    while world.bring(BACKEND) {
        seen.extend(world.pump(fast).0);
        world.done(fast);
    }
    world.merge(BACKEND);
    seen.extend(world.pump(fast).0);
    assert_eq!((seen.len(), world.shard.stats().catch_ups.fallen_out), (21, 1));
    assert_eq!(world.wanted(), None, "nobody reads for one that takes nothing");
    world.pump(slow).is(&["s enter 1", "s enter 2", "s enter 3", "s enter 4", "s enter 5"]);
    assert_eq!(world.wanted(), None, "sent isn't done");
    world.ack(slow, 5, 2);
    assert_eq!(world.wanted(), None, "more than half of what it may hold");
    world.ack(slow, 5, 3);
    assert_eq!(world.wanted(), Some(5));
    assert_eq!(world.catch_up_with(slow).last().map(String::as_str), Some("s caught up"));
}

#[test]
fn a_full_outbox_is_not_filled_further_by_the_end_of_a_pass() {
    let mut world = World::with(|config| config.outbox_events_max = 2);
    let connection = world.watching("g", &["s"]);
    (0..5).for_each(|_| world.insert("d", "x"));
    // Three fill it, from the fourth on it is behind; a pass that is there by chance comes to its end.
    world.begin(BACKEND, 3);
    world.merge(BACKEND);
    world.insert("d", "x");
    world.begin(BACKEND, 5);
    world.merge(BACKEND);
    world.pump(connection).is(&["s enter 1", "s enter 2", "s enter 3", "s catching up"]);
    assert_eq!(world.wanted(), None);
    world.done(connection);
    assert_eq!(world.wanted(), Some(3));
    assert_eq!(world.catch_up_with(connection), ["s enter 4", "s enter 5", "s enter 6", "s caught up"]);
}

#[test]
fn what_waits_of_a_pass_and_leaves_the_log_is_read_again() {
    let mut world = World::with(|config| config.log_events_max = 8);
    for _ in 0..5 {
        world.insert("d", "x");
    }
    let connection = world.hello("g");
    world.subscribe(connection, vec![presented("s", "", 0)]);
    world.sync_done(connection);
    world.seen();
    world.pump(connection);
    world.begin(BACKEND, 0);
    world.merge(BACKEND);
    let other = world.watching("other", &["o"]);
    for _ in 0..4 {
        world.insert("d", "x");
        world.pump(other);
        world.done(other);
    }
    // `s` had met the live stream, in a queue that nobody took from.
    let seen = world.pump(connection);
    assert_eq!(seen.0.last().map(String::as_str), Some("s catching up"), "{seen:?}");
    assert!(!seen.0.iter().any(|line| line.contains("enter")), "nothing behind the hole is sent: {seen:?}");
    assert_eq!(world.wanted(), Some(0));
    let expected: Vec<String> = (1..=9).map(|time| format!("s enter {time}")).chain(["s caught up".into()]).collect();
    assert_eq!(world.catch_up_with(connection), expected);
}

#[test]
fn a_session_that_ends_in_between_goes_on_where_its_application_is() {
    for presents in [Some(4), None] {
        let (mut world, old) = behind(2);
        world.begin(BACKEND, 2);
        (0..4).for_each(|_| _ = world.bring(BACKEND));
        world.pump(old).is(&["s enter 3", "s enter 4", "s enter 5", "s enter 6"]);
        world.ack(old, 4, 1);
        world.disconnect(old);
        assert_eq!((world.wanted(), world.serving()), (None, 0));
        world.insert("d", "x");
        world.merge(BACKEND);
        world.insert("d", "x");
        let new = world.hello("g");
        match presents {
            Some(time) => world.subscribe(new, vec![presented("s", "", time)]),
            None => world.sync_done(new),
        }
        world.pump(new).is(&["bound s from 9", "s catching up"]);
        // Without a word from it: what was acked as done.
        let from = presents.unwrap_or(3);
        assert_eq!(world.wanted(), Some(from));
        world.catch_all_up();
        assert_eq!(world.pump(new).0[0], format!("s enter {}", from + 1));
    }
}

#[test]
fn what_was_sent_and_not_done_is_not_lost_with_the_session_once_it_has_met_the_live_stream() {
    // What of the four that a pass brought is done before the session ends, and where it goes on.
    for (done, from) in [(2, Some(7)), (4, None)] {
        let (mut world, old) = behind(5);
        world.begin(BACKEND, 5);
        world.bring(BACKEND);
        world.bring(BACKEND);
        world.pump(old).is(&["s enter 6", "s enter 7"]);
        world.ack(old, 2, 2);
        world.merge(BACKEND);
        world.insert("d", "x");
        world.pump(old).is(&["s enter 8", "s enter 9", "s caught up", "s enter 10"]);
        world.ack(old, 5, done);
        world.disconnect(old);
        let new = world.hello("g");
        world.sync_done(new);
        assert_eq!(world.wanted(), from);
        match from {
            Some(_) => {
                world.pump(new).is(&["bound s from 9", "s catching up"]);
                world.catch_all_up();
                world.pump(new).is(&["s enter 8", "s enter 9", "s enter 10", "s caught up"]);
            }
            None => world.pump(new).is(&["bound s from 9", "s enter 10"]),
        }
        world.done(new);
        assert_eq!(world.settled(), Some(10));
    }
}

#[test]
fn after_catching_up_positions_are_replayed_from_the_log_or_read_from() {
    let (mut world, old) = behind(5);
    world.catch_all_up();
    world.insert("d", "x");
    world.pump(old);
    world.done(old);
    let new = world.hello("g");
    world.subscribe(new, vec![presented("s", "", 9)]);
    world.pump(new).is(&["bound s from 9", "s enter 10"]);
    let newer = world.hello("g");
    world.subscribe(newer, vec![presented("s", "", 8)]);
    world.pump(newer).is(&["bound s from 9", "s catching up"]);
}

#[test]
fn one_that_ends_while_it_is_behind_leaves_nothing() {
    for end in ["unsubscribed", "replaced", "expired"] {
        let (mut world, connection) = behind(2);
        world.begin(BACKEND, 2);
        world.bring(BACKEND);
        match end {
            "unsubscribed" => world.unsubscribe(connection, "s"),
            "replaced" => world.subscribe(connection, vec![item("s", "x")]),
            _ => {
                world.disconnect(connection);
                world.pass(400_000);
            }
        }
        world.seen();
        let stats = world.shard.stats();
        assert_eq!((stats.subscriptions_behind, world.serving(), world.wanted()), (0, 0, None), "{end}");
        world.merge(BACKEND);
        if end == "replaced" {
            world.insert("d", "x");
            let seen = world.pump(connection);
            assert_eq!(seen.0.last().map(String::as_str), Some("s enter 10"));
            assert_eq!(seen.0.iter().filter(|line| line.contains("enter")).count(), 1);
        }
    }
}

#[test]
fn a_gap_of_the_history_has_its_place() {
    let mut world = World::new();
    world.insert("d", "x");
    world.gap(Scope::Everything);
    world.insert("d", "x");
    let connection = world.hello("g");
    world.subscribe(connection, vec![presented("s", "", 0), item("t", "")]);
    world.sync_done(connection);
    world.seen();
    world.pump(connection);
    // While it is behind, a gap of the live stream is not told to it; it comes again.
    world.gap(Scope::Everything);
    world.pump(connection).is(&["t gap 4"]);
    world.catch_all_up();
    world.pump(connection).is(&["s enter 1", "s gap 2", "s enter 3", "s gap 4", "s caught up"]);
}

#[test]
fn each_backend_is_caught_up_by_itself() {
    let mut world = World::with(|config| config.backends.push(BackendConfig { id: OTHER, before_images: false }));
    world.insert("d", "x");
    world.change_of(OTHER, Operation::Insert, "d", None, Some("x"));
    let connection = world.hello("g");
    let both = [position(0), Position { backend: OTHER, ..position(0) }].into_iter().collect();
    world.subscribe(connection, vec![SubscribeItem { positions: both, ..item("s", "") }, presented("one", "", 0)]);
    world.sync_done(connection);
    world.seen();
    world.pump(connection);
    world.change_of(OTHER, Operation::Insert, "d", None, Some("x"));
    world.pump(connection).is(&["one enter other 2"]);
    world.begin(BACKEND, 0);
    world.merge(BACKEND);
    world.pump(connection).is(&["s enter 1", "one enter 1", "one caught up"]);
    world.begin(OTHER, 0);
    world.merge(OTHER);
    world.pump(connection).is(&["s enter other 1", "s enter other 2", "s caught up"]);
}

#[test]
fn a_missing_before_image_in_the_history_is_a_resync() {
    let mut world = World::with(|config| config.backends[0].before_images = true);
    world.insert("d", "x");
    world.update("d", None, "y");
    let connection = world.hello("g");
    world.subscribe(connection, vec![presented("s", "", 0), item("t", "")]);
    world.sync_done(connection);
    world.seen();
    world.pump(connection);
    world.catch_all_up();
    world.insert("d", "x");
    world.pump(connection).is(&["s resync PreimageMissing from 2", "s enter 3", "t enter 3"]);
}

#[test]
fn another_lineage_ends_what_waits_for_the_old_one() {
    let (mut world, connection) = behind(2);
    let anew = Position { lineage: Lineage(2), ..position(1) };
    world.input(Input::Ingest(FromIngest::Progress(anew)));
    world.tick(100);
    let seen = world.pump(connection);
    assert_eq!(seen.0[0], "s resync LineageChanged from 1");
    assert_eq!(world.shard.catch_up_wanted().lowest, Positions::default());
}

#[test]
fn a_gateway_that_is_away_for_ten_times_the_log_costs_no_more() {
    let mut world = World::with(|config| config.log_events_max = 8);
    let old = world.watching("g", &["s"]);
    world.insert("d", "x");
    world.disconnect(old);
    for _ in 0..80 {
        world.insert("d", "x");
    }
    let stats = world.shard.stats();
    assert_eq!((world.settled(), stats.log_unsettled, stats.log_events), (Some(81), 0, 7));
    let new = world.hello("g");
    world.sync_done(new);
    world.pump(new).is(&["bound s from 0", "s catching up"]);
    assert_eq!(world.wanted(), Some(0));
}

#[test]
fn heartbeats_that_would_not_hold_are_not_sent() {
    let mut world = World::with(|config| config.log_events_max = 4);
    let connection = world.watching("g", &["s"]);
    world.insert("d", "x");
    world.tick(1_000);
    // The heartbeat says that all up to 1 was sent, and that is about to leave the log.
    for _ in 0..6 {
        world.insert("d", "x");
    }
    world.pump(connection).is(&["s catching up"]);
}

#[test]
fn repeated_things_of_a_pass_and_of_no_pass_are_dropped() {
    let (mut world, connection) = behind(2);
    world.begin(BACKEND, 2);
    world.bring(BACKEND);
    world.bring(BACKEND);
    let of_pass = |pass, time: u64, world: &World| {
        let change = world.history.iter().find_map(|item| match item {
            FromIngest::Change(change) if change.position.time == time => Some(change.clone()),
            _ => None,
        });
        CatchUp::Change { pass, change: change.expect("it has happened") }
    };
    let repeated = of_pass(1, 3, &world);
    world.catch_up(repeated);
    let stray = of_pass(9, 8, &world);
    world.catch_up(stray);
    world.pump(connection).is(&["s enter 3", "s enter 4"]);
    assert_eq!(world.shard.stats().catch_ups.events_dropped, 2);
    assert_eq!(world.shard.stats().events_repeated, 0);
}

#[test]
fn over_http_registered_ones_catch_up_too() {
    let mut world = World::new();
    for _ in 0..3 {
        world.insert("d", "x");
    }
    world.register("g", presented("s", "", 1));
    world.seen();
    assert_eq!(world.wanted(), None, "its Gateway isn't there");
    let connection = world.hello("g");
    world.sync_done(connection);
    world.pump(connection).is(&["bound s from 3", "s catching up"]);
    world.catch_all_up();
    world.pump(connection).is(&["s enter 2", "s enter 3", "s caught up"]);
}

#[test]
fn the_end_of_a_pass_is_not_taken_for_that_of_another() {
    let (mut world, connection) = behind(2);
    world.subscribe(connection, vec![presented("o", "", 5)]);
    world.seen();
    world.pump(connection);
    // The first one begins behind where `s` stands, and what its end means to `o` is not looked at before the second comes to there.
    world.works = false;
    world.begin(BACKEND, 4);
    world.merge(BACKEND);
    world.begin(BACKEND, 2);
    world.merge(BACKEND);
    world.insert("d", "x");
    let seen = world.pump(connection);
    let of = |id: &str| Seen(seen.0.iter().filter(|line| line.starts_with(id)).cloned().collect());
    of("s ").is(&[
        "s enter 3",
        "s enter 4",
        "s enter 5",
        "s enter 6",
        "s enter 7",
        "s enter 8",
        "s enter 9",
        "s caught up",
        "s enter 10",
    ]);
    of("o ").is(&["o enter 6", "o enter 7", "o enter 8", "o enter 9", "o caught up", "o enter 10"]);
}

#[test]
fn nobody_meets_the_live_stream_while_the_outbox_is_full() {
    let mut world = World::with(|config| config.outbox_events_max = 2);
    let connection = world.hello("g");
    world.subscribe(connection, vec![item("s", "x"), item("o", "y")]);
    world.sync_done(connection);
    world.seen();
    world.pump(connection);
    (0..4).for_each(|_| world.insert("d", "x"));
    world.pump(connection).is(&["s enter 1", "s enter 2", "s enter 3", "s catching up"]);
    world.done(connection);
    world.begin(BACKEND, 3);
    world.bring(BACKEND);
    // Another one fills the outbox while the pass serves `s`, which it brings nothing more.
    (0..3).for_each(|_| world.insert("d", "y"));
    world.merge(BACKEND);
    world.pump(connection).is(&["s enter 4", "o enter 5", "o enter 6", "o catching up"]);
    assert_eq!(world.wanted(), None);
    world.done(connection);
    assert_eq!(world.wanted(), Some(6));
    let mut seen = world.catch_up_with(connection);
    seen.sort_unstable();
    assert_eq!(seen, ["o caught up", "o enter 7", "s caught up"]);
}
