//! Much at once: it is worked off in slices, and changes are delivered in between.

use super::*;
use crate::*;
use wire::*;

const GATEWAYS: usize = 10;
const REQUESTS: usize = 10;
const ITEMS: usize = 1_000;
const ALL: u64 = (GATEWAYS * REQUESTS * ITEMS) as u64;
/// What a call may do of anything, whatever waits. A slice has 2,048 units, and the cheapest thing here costs four of them.
const AT_ONCE_MAX: u64 = 600;

/// A world whose work is done when it is told to, and whose invariants are too many to be checked all the time.
fn patient() -> World {
    let mut world = World::new();
    world.checks = false;
    world
}

fn of(gateway: usize, request: usize) -> Vec<SubscribeItem> {
    let id = |n: usize| format!("s{request}-{n}");
    (0..ITEMS).map(|n| SubscribeItem { collection: format!("c{gateway}"), ..item(&id(n), "x") }).collect()
}

/// How much of everything has been done so far.
fn done(world: &World) -> [u64; 4] {
    let stats = world.shard.stats();
    let live = stats.subscriptions - stats.subscriptions_pending;
    let ended = stats.subscriptions_removed + stats.subscriptions_expired;
    [stats.subscriptions_created, stats.subscriptions_renewed, live + ended, ended]
}

/// Does something, and sees that it was not much.
#[track_caller]
fn bounded<R>(world: &mut World, act: impl FnOnce(&mut World) -> R) -> R {
    let before = done(world);
    let result = act(world);
    for (after, before) in done(world).into_iter().zip(before) {
        assert!(after.abs_diff(before) <= AT_ONCE_MAX, "{} in one call", after.abs_diff(before));
    }
    result
}

/// A round as the driver makes one: a change, answers of the control side, a slice of work. The change is delivered before anything else
/// is done.
#[track_caller]
fn round(world: &mut World, watcher: ConnectionId) -> bool {
    bounded(world, |world| world.insert("d", "x"));
    let time = world.time;
    assert_eq!(world.pump(watcher).0.last(), Some(&format!("w enter {time}")));
    world.done(watcher);
    for _ in 0..4 {
        if !world.asked.is_empty() {
            bounded(world, World::admit_one);
        }
    }
    bounded(world, World::work) || !world.asked.is_empty()
}

fn rounds(world: &mut World, watcher: ConnectionId) -> usize {
    let mut rounds = 0;
    while round(world, watcher) {
        rounds += 1;
        assert!(rounds < 100_000, "it never ends");
    }
    rounds
}

#[test]
fn a_reconnect_storm_does_not_stop_deliveries() {
    let mut world = patient();
    let watcher = world.watching("w", &["w"]);
    (world.works, world.admits) = (false, false);
    let connections: Vec<ConnectionId> = (0..GATEWAYS).map(|gateway| world.hello(&format!("g{gateway}"))).collect();
    world.replies.clear();
    let storm = |world: &mut World, connections: &[ConnectionId]| {
        for request in 0..REQUESTS {
            for (gateway, connection) in connections.iter().enumerate() {
                bounded(world, |world| world.subscribe(*connection, of(gateway, request)));
            }
        }
        connections.iter().for_each(|connection| world.sync_done(*connection));
    };

    storm(&mut world, &connections);
    assert!(rounds(&mut world, watcher) > 100);
    let answers =
        |world: &World| world.replies.iter().filter(|(_, reply)| matches!(reply, Reply::Subscribed { .. })).count();
    assert_eq!(answers(&world), GATEWAYS * REQUESTS);
    assert_eq!(world.shard.stats().subscriptions_pending, ALL);

    // All of them go live at one item of the ring.
    bounded(&mut world, World::seen);
    rounds(&mut world, watcher);
    assert_eq!(world.shard.stats().subscriptions_pending, 0);
    world.shard.check_invariants();
    for connection in &connections {
        assert_eq!(world.pump(*connection).0.len(), REQUESTS * ITEMS, "each is bound");
    }

    // They all go and come again.
    connections.iter().for_each(|connection| bounded(&mut world, |world| world.disconnect(*connection)));
    let connections: Vec<ConnectionId> = (0..GATEWAYS).map(|gateway| world.hello(&format!("g{gateway}"))).collect();
    world.replies.clear();
    storm(&mut world, &connections);
    rounds(&mut world, watcher);
    assert_eq!(answers(&world), GATEWAYS * REQUESTS);
    assert_eq!(world.shard.stats().subscriptions_renewed, ALL);
    for connection in &connections {
        assert_eq!(world.pump(*connection).0.len(), REQUESTS * ITEMS, "each is bound again");
    }

    // Half of them are removed by a command, the others run out of time.
    for gateway in 0..GATEWAYS / 2 {
        let command =
            Command { id: CommandId(gateway as u64), gateway: format!("g{gateway}"), what: CommandKind::RemoveAll };
        bounded(&mut world, |world| world.input(Input::Command(command)));
    }
    rounds(&mut world, watcher);
    assert_eq!(world.commanded.len(), GATEWAYS / 2);
    assert!(world.commanded.iter().all(|reply| *reply == CommandReply::Removed { count: (REQUESTS * ITEMS) as u64 }));
    connections.iter().for_each(|connection| world.disconnect(*connection));
    for _ in 0..320 {
        bounded(&mut world, |world| world.tick(1_000));
        rounds(&mut world, watcher);
        world.pump(watcher);
    }
    assert_eq!(world.shard.stats().subscriptions, 1);
    assert_eq!(world.released.len() as u64, ALL);
    world.shard.check_invariants();
}

#[test]
fn who_is_live_is_hit_before_its_turn_comes_to_take_note_of_it() {
    let mut world = World::new();
    let connection = world.hello("g");
    world.works = false;
    world.subscribe(connection, vec![item("a", "x"), item("b", "y"), item("c", "z")]);
    world.insert("d", "x");
    world.seen();
    assert_eq!(world.shard.stats().subscriptions_pending, 3);
    world.insert("d", "x");
    world.seen();
    world.insert("d", "y");
    assert_eq!(world.shard.stats().subscriptions_pending, 1);
    // Each since the first time that the ingest thread said so.
    world.pump(connection).is(&["bound a from 1", "a enter 2", "bound b from 1", "b enter 3"]);
    world.finish();
    world.pump(connection).is(&["bound c from 1"]);
}

#[test]
fn a_gap_is_told_to_who_is_live_and_has_not_taken_note_of_it() {
    let mut world = World::new();
    let connection = world.hello("g");
    world.works = false;
    world.subscribe(connection, vec![item("a", "x")]);
    world.seen();
    world.subscribe(connection, vec![SubscribeItem { collection: "elsewhere".into(), ..item("b", "x") }]);
    world.gap(Scope::Everything);
    world.pump(connection).is(&["bound a from 0", "a gap 1"]);
    world.seen();
    world.finish();
    world.pump(connection).is(&["bound b from 1"]);
}

#[test]
fn commands_wait_for_those_before_them_and_requests_for_the_end_of_a_removal() {
    let mut world = World::new();
    let connection = world.hello("g");
    world.subscribe(connection, of(0, 0));
    world.seen();
    world.pump(connection);
    (world.works, world.admits) = (false, false);
    let command = |world: &mut World, what| {
        world.input(Input::Command(Command { id: CommandId(1), gateway: "g".into(), what }));
    };
    world.input(Input::Tick);
    world.work();
    command(&mut world, CommandKind::RemoveAll);
    let again = of(0, 0).remove(999);
    command(&mut world, CommandKind::Renew { key: again.key.clone() });
    world.replies.clear();
    world.subscribe(connection, vec![again]);
    assert!(world.commanded.is_empty() && world.replies.is_empty());
    while world.shard.stats().subscriptions > 0 {
        world.work();
    }
    world.finish();
    assert_eq!(world.commanded, [CommandReply::Removed { count: 1_000 }, CommandReply::NotFound]);
    assert_eq!(world.asked.len(), 1, "it was a renewal when it came");
    world.admit_one();
    world.finish();
    assert_eq!(world.shard.stats().subscriptions, 1);
    assert!(matches!(
        &world.replies[..],
        [(_, Reply::Subscribed { results, .. })]
            if matches!(results[..], [SubscribeResult::Accepted { registration: Registration::Created, .. }])
    ));
}

#[test]
fn replays_stand_before_what_comes_while_they_are_looked_for() {
    let mut world = World::with(|config| config.slice_units = 40);
    let connection = world.hello("g");
    let ids: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    world.subscribe(connection, ids.iter().map(|id| item(id, "")).collect());
    world.sync_done(connection);
    world.seen();
    for _ in 0..100 {
        world.insert("d", "x");
    }
    world.pump(connection);
    world.disconnect(connection);
    world.works = false;
    let connection = world.hello("g");
    world.finish();
    world.subscribe(
        connection,
        ids.iter().map(|id| SubscribeItem { positions: positions(50), ..item(id, "") }).collect(),
    );
    let mut slices = 0;
    while world.shard.has_work() {
        world.insert("d", "x");
        world.work();
        slices += 1;
    }
    assert!(slices > 5);
    let seen = world.pump(connection);
    for id in &ids {
        let mine: Vec<&String> = seen.0.iter().filter(|line| line.split(' ').any(|word| word == id)).collect();
        let expected: Vec<String> = (51..=world.time).map(|time| format!("{id} enter {time}")).collect();
        assert_eq!(*mine[0], format!("bound {id} from 0"));
        assert!(mine[1..].iter().copied().eq(&expected), "{mine:?}");
    }
}

#[test]
fn what_is_registered_over_http_and_never_read_of_is_bounded() {
    let mut world = World::new();
    let connection = world.watching("g", &["kept"]);
    world.checks = false;
    let mut busy = 0;
    for _ in 0..crate::config::CLOSED_WAITING_MAX + 3 {
        match world.register("g", item("s", "x")) {
            CommandReply::Busy => busy += 1,
            _ => {
                let (key, reason) = (item("s", "").key, CloseReason::Removed);
                world.command("g", CommandKind::Remove { key, reason });
            }
        }
    }
    assert_eq!(busy, 3);
    assert_eq!(world.released.len(), crate::config::CLOSED_WAITING_MAX + 3, "what is refused doesn't count either");
    world.pump(connection);
    assert!(matches!(world.register("g", item("s", "x")), CommandReply::Registered { .. }));
}
