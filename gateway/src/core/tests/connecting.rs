//! Which sessions there are, and when there are none.

use super::*;

#[test]
fn one_address_leads_to_all_shards_one_session_each() {
    let mut world = World::new(3);
    let first = world.attempt();
    assert_eq!((first.partition, first.address.as_str(), first.after_ms), (None, "shard-0", 0));
    world.accept(&first);
    let others: Vec<_> = world.attempts.iter().map(|a| (a.partition, a.address.clone(), a.after_ms)).collect();
    assert_eq!(others, [(Some(1), "shard-1".into(), 0), (Some(2), "shard-2".into(), 0)]);
    world.accept_all();
    let status = world.core.status();
    assert_eq!(status.shards.iter().filter(|shard| shard.connected).count(), 3);
    assert_eq!(status.epoch, Some(Epoch(1)));
}

#[test]
fn the_hello_says_who_it_is() {
    let mut world = World::new(1);
    let session = world.attempt().session;
    world.input(Input::Connected { session });
    let Some((_, Request::Hello(hello))) = world.requests.pop() else { panic!("no hello") };
    assert_eq!((hello.gateway.as_str(), hello.token.as_str(), hello.capabilities.can_verify), ("g", "secret", true));
}

#[test]
fn addresses_are_tried_in_turn_with_growing_waits() {
    let addresses = vec!["a".into(), "b".into()];
    let mut world = World::with(1, CoreConfig { addresses, ..config() });
    let mut tried = Vec::new();
    for _ in 0..8 {
        let attempt = world.attempt();
        tried.push((attempt.address.clone(), attempt.after_ms));
        let reason = DisconnectReason::Unreachable("no answer".into());
        world.input(Input::Disconnected { session: attempt.session, reason });
    }
    let addresses: Vec<&str> = tried.iter().map(|(address, _)| address.as_str()).collect();
    assert_eq!(addresses, ["a", "b", "a", "b", "a", "b", "a", "b"]);
    for ((_, after_ms), whole) in tried.iter().zip([0, 100, 200, 400, 800, 1_600, 3_200, 5_000]) {
        assert!((whole / 2..=whole).contains(after_ms), "{after_ms} of {whole}");
    }
    assert_eq!(world.core.status().error.as_deref(), Some("b can't be reached: no answer"));
}

#[test]
fn an_attempt_that_isnt_answered_is_given_up_soon_at_first_and_later_after_each_that_failed() {
    let mut world = World::live();
    world.lose(0);
    // From the third on, the node is looked for anew.
    for whole in [2_000, 4_000, 2_000, 2_000, 4_000, 8_000, 10_000, 10_000] {
        let attempt = world.attempt();
        world.pass(attempt.after_ms + whole - 1);
        assert!(world.attempts.is_empty(), "given up before {whole} ms");
        world.pass(1);
        assert_eq!(world.attempts.len(), 1, "not given up after {whole} ms");
    }
}

#[test]
fn a_lost_session_is_followed_by_another_and_counted() {
    let mut world = World::live();
    world.lose(0);
    assert!(!world.core.is_live(&key("s")));
    let attempt = world.attempt();
    assert_eq!(attempt.partition, Some(0));
    assert!((50..=100).contains(&attempt.after_ms), "{}", attempt.after_ms);
    world.accept(&attempt);
    assert_eq!(world.core.status().counters.reconnects, 1);
}

#[test]
fn backoff_begins_anew_after_a_session_that_held() {
    // Sessions that are lost after this time, and whether the wait after the fourth is the first one's again.
    for (held_ms, is_first) in [(999, false), (1_000, true)] {
        let mut world = World::connected();
        let mut waits = Vec::new();
        for _ in 0..4 {
            world.pass(held_ms);
            world.lose(0);
            let attempt = world.attempt();
            waits.push(attempt.after_ms);
            world.accept(&attempt);
        }
        assert_eq!(waits[3] <= 100, is_first, "{waits:?} after sessions of {held_ms} ms");
    }
}

#[test]
fn what_can_never_succeed_is_terminal() {
    let gateway = || "g".to_string();
    let message = || "why".to_string();
    for (code, expect) in [
        (ErrorCode::Superseded, TerminalError::Superseded { gateway: gateway(), message: message() }),
        (ErrorCode::Unauthorized, TerminalError::Unauthorized { gateway: gateway(), message: message() }),
        (ErrorCode::Forbidden, TerminalError::Forbidden { gateway: gateway(), message: message() }),
    ] {
        for as_reply in [true, false] {
            let mut world = World::live();
            let session = world.sessions[&0];
            if as_reply {
                world.reply(session, Reply::Refused { code, message: message() });
            } else {
                let reason = DisconnectReason::Closed { code: Some(code), message: message() };
                world.input(Input::Disconnected { session, reason });
            }
            assert_eq!(world.terminal.as_ref(), Some(&expect));
            assert_eq!(world.core.terminal(), Some(&expect));
            assert!(world.attempts.is_empty(), "{code:?} must not be tried again");
            assert!(world.core.is_over());
            world.pass(100_000);
            assert!(world.attempts.is_empty());
        }
    }
}

#[test]
fn a_hello_that_is_refused_for_what_it_says_is_terminal_but_a_busy_node_is_not() {
    for (code, terminal) in [
        (ErrorCode::UnsupportedVersion, true),
        (ErrorCode::InvalidRequest, true),
        (ErrorCode::Unauthorized, true),
        (ErrorCode::ShuttingDown, false),
        (ErrorCode::TooManyRequests, false),
        (ErrorCode::Internal, false),
        (ErrorCode::ReceivedDeadline, false),
    ] {
        let mut world = World::new(1);
        let session = world.greet();
        world.reply(session, Reply::Refused { code, message: "why".into() });
        assert_eq!(world.terminal.is_some(), terminal, "{code:?}");
        assert_eq!(world.attempts.is_empty(), terminal, "{code:?}");
    }
}

#[test]
fn another_certificate_is_terminal_at_first_contact_only() {
    let untrusted = || DisconnectReason::Untrusted("another fingerprint".into());
    let mut world = World::new(1);
    let session = world.attempt().session;
    world.input(Input::Disconnected { session, reason: untrusted() });
    assert_eq!(world.terminal.unwrap().to_string(), "shard-0 is not trusted: another fingerprint",);

    let mut world = World::connected();
    world.lose(0);
    let session = world.attempt().session;
    world.input(Input::Disconnected { session, reason: untrusted() });
    assert_eq!(world.terminal, None);
    assert_eq!(world.attempts.len(), 1);
}

#[test]
fn what_was_queued_is_still_given_out_after_a_terminal_end() {
    let mut world = World::live();
    world.event(1, 11, &[1]);
    let session = world.sessions[&0];
    world.reply(session, Reply::Refused { code: ErrorCode::Superseded, message: String::new() });
    assert!(!world.core.is_over());
    assert_eq!(world.drain(), ["s@11"]);
    assert!(world.core.is_over());
    assert_eq!(world.kept("s"), Some(11));
}

#[test]
fn silence_ends_a_session() {
    let mut world = World::connected();
    assert_eq!(world.core.next_deadline(), Some(Millis(3 * HEARTBEAT_MS)));
    world.pass(3 * HEARTBEAT_MS - 1);
    assert!(world.closed.is_empty());
    world.pass(1);
    assert_eq!(world.closed, [(world.sessions[&0], None)]);
    assert_eq!(world.attempt().partition, Some(0));
}

#[test]
fn whatever_comes_breaks_the_silence() {
    let breaks: [fn(SessionId) -> Input; 3] = [
        |session| Input::Heard { session },
        |session| Input::Reply { session, reply: Reply::Pong { nonce: 1 } },
        |session| Input::Delivery {
            session,
            delivery: Delivery::Heartbeat { last_seq: 0, positions: Positions::default() },
        },
    ];
    for input in breaks {
        let mut world = World::connected();
        for _ in 0..10 {
            world.pass(2 * HEARTBEAT_MS);
            world.input(input(world.sessions[&0]));
        }
        assert!(world.closed.is_empty());
    }
}

#[test]
fn a_stream_that_is_not_read_is_not_silent() {
    let mut world = World::with(1, CoreConfig { queue_bytes_max: 1, ..config() });
    world.accept_all();
    world.subscribe("s", "c");
    world.answer();
    world.bind(1, "s", 10);
    let session = world.sessions[&0];
    assert!(!world.core.wants_delivery(session));
    world.pass(100 * HEARTBEAT_MS);
    assert!(world.closed.is_empty());
    // Reading again begins a new wait.
    world.drain();
    assert_eq!(world.resumed.last(), Some(&session));
    world.pass(2 * HEARTBEAT_MS);
    assert!(world.closed.is_empty());
    world.pass(HEARTBEAT_MS);
    assert_eq!(world.closed.len(), 1);
}

#[test]
fn a_hello_without_an_answer_is_given_up() {
    let mut world = World::new(1);
    let session = world.greet();
    world.pass(1_999);
    assert!(world.closed.is_empty());
    world.pass(1);
    assert_eq!(world.closed, [(session, None)]);
    assert_eq!(world.attempts.len(), 1);
}

#[test]
fn go_away_moves_the_session_within_the_time_given() {
    let mut world = World::live();
    world.deliver(Delivery::GoAway { within_ms: 500, reason: ErrorCode::ShuttingDown });
    let at = world.core.next_deadline().unwrap();
    assert!(at <= Millis(500), "{at:?}");
    world.event(1, 11, &[1]);
    world.pass(at.0);
    assert_eq!(world.closed, [(world.sessions[&0], None)]);
    let attempt = world.attempt();
    assert_eq!((attempt.partition, attempt.after_ms), (Some(0), 0));
    world.accept(&attempt);
    assert_eq!(world.presented(), [(attempt.session, "s".into(), Some(10))]);
}

#[test]
fn another_epoch_ends_all_other_sessions_and_their_acks() {
    let mut world = World::new(3);
    world.accept_all();
    let before = world.sessions.clone();
    world.lose(0);
    world.epoch = 2;
    let attempt = world.attempt();
    world.accept(&attempt);
    let mut ended: Vec<SessionId> = world.closed.iter().map(|(session, _)| *session).collect();
    ended.sort();
    assert_eq!(ended, [before[&1], before[&2]]);
    assert_eq!(world.attempts.iter().map(|a| a.partition).collect::<Vec<_>>(), [Some(1), Some(2)]);
    world.accept_all();
    assert_eq!(world.core.status().epoch, Some(Epoch(2)));
    // What comes of the old sessions is for nobody.
    world.acks.clear();
    let session = before[&1];
    world.input(Input::Delivery { session, delivery: Delivery::Events(vec![entry(1, 11, &[1])].into()) });
    assert!(world.acks.is_empty());
    assert_eq!(world.closed.len(), 2);
}

#[test]
fn another_number_of_shards_moves_subscriptions_with_their_positions() {
    for (before, after) in [(1, 5), (5, 2), (2, 2)] {
        let mut world = World::new(before);
        for partition in 0..5 {
            world.input(Input::Subscribe(item_from(&format!("s{partition}"), &collection_of(partition, 5), 7)));
        }
        world.accept_all();
        world.drain();
        world.answer();
        (world.shards, world.epoch) = (after, 2);
        world.lose(0);
        world.accept_all();
        let presented = world.presented();
        assert_eq!(presented.len(), 5, "{before} to {after}: {presented:?}");
        for (session, id, positions) in presented {
            let partition: u16 = id[1..].parse().unwrap();
            let place = PlaceHash::of(TENANT, &collection_of(partition, 5));
            assert_eq!(session, world.sessions[&SlotTable { shards: after }.owner(place)], "{id}");
            assert_eq!(positions, Some(7));
        }
        assert_eq!(world.core.status().shards.len(), usize::from(after));
        let synced = world.answer().into_iter().filter(|(_, r)| matches!(r, Request::SyncDone { .. })).count();
        assert_eq!(synced, usize::from(after), "every shard is told, whether it owns something or not");
    }
}

#[test]
fn a_node_that_is_nowhere_it_was_is_looked_for_at_all_addresses() {
    let mut world = World::new(2);
    world.accept_all();
    world.lose(1);
    world.lose(0);
    let mut tried = Vec::new();
    for _ in 0..12 {
        let attempt = world.attempts.remove(0);
        tried.push((attempt.partition, attempt.address));
        let reason = DisconnectReason::Unreachable("no answer".into());
        world.input(Input::Disconnected { session: attempt.session, reason });
        let any = world.attempts.iter().filter(|a| a.partition.is_none()).count();
        assert!(any == 0 || world.attempts.len() == 1, "one attempt at a time: {:?}", world.attempts);
    }
    for address in ["shard-0", "shard-1"] {
        assert!(tried.contains(&(None, address.into())), "{tried:?}");
    }
    // It comes back as a node of one shard.
    (world.shards, world.epoch) = (1, 2);
    world.attempts[0].address = "shard-0".into();
    world.accept_all();
    assert_eq!(world.core.status().shards.len(), 1);
    assert!(world.core.status().shards[0].connected);
}

#[test]
fn a_welcome_that_makes_no_sense_is_a_violation() {
    type Spoil = fn(&mut Welcome);
    let spoils: [(Spoil, &str); 6] = [
        (|w| w.slots.shards = 0, "0 shards"),
        (|w| w.slots.shards = 5_000, "5000 shards"),
        (|w| w.partition = 2, "shard 2 of 2"),
        (|w| w.shards.truncate(1), "addresses of 1 shards"),
        (|w| w.shards.reverse(), "in order"),
        (|w| w.mapping = "what".into(), "what"),
    ];
    for (spoil, says) in spoils {
        let mut world = World::new(2);
        let session = world.greet();
        let mut welcome = world.welcome(0);
        spoil(&mut welcome);
        world.reply(session, Reply::Welcome(Box::new(welcome)));
        assert_eq!(world.closed, [(session, Some(ErrorCode::ProtocolViolation))]);
        let error = world.core.status().error.unwrap();
        assert!(error.contains(says), "{error}");
        assert_eq!(world.attempts.len(), 1);
    }
}

#[test]
fn a_shard_at_another_ones_address_does_not_end_the_gateway() {
    let mut world = World::new(2);
    let first = world.attempt();
    world.accept(&first);
    let second = world.attempt();
    world.input(Input::Connected { session: second.session });
    world.requests.clear();
    // Shard 0 answers where shard 1 should be, and so takes the second hello for one that follows the first.
    let welcome = world.welcome(0);
    world.reply(second.session, Reply::Welcome(Box::new(welcome)));
    assert_eq!(world.closed, [(second.session, Some(ErrorCode::ProtocolViolation))]);
    world.reply(first.session, Reply::Refused { code: ErrorCode::Superseded, message: String::new() });
    assert_eq!(world.terminal, None);
    assert_eq!(world.attempts.len(), 2);
}

#[test]
fn replies_out_of_turn_are_violations() {
    let mut world = World::new(1);
    let session = world.greet();
    world.reply(session, Reply::Pong { nonce: 1 });
    assert_eq!(world.closed, [(session, Some(ErrorCode::ProtocolViolation))]);

    let mut world = World::connected();
    let (session, welcome) = (world.sessions[&0], world.welcome(0));
    world.reply(session, Reply::Welcome(Box::new(welcome)));
    world.expect_violation();
}

#[test]
fn close_ends_everything_and_comes_back_never() {
    let mut world = World::new(2);
    world.accept_all();
    world.input(Input::Close);
    assert_eq!(world.closed.len(), 2);
    assert!(world.core.is_over());
    assert_eq!(world.core.terminal(), None);
    world.pass(100_000);
    assert!(world.attempts.is_empty());
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let run = || {
        let mut world = World::new(3);
        for n in 0..50 {
            world.subscribe(&format!("s{n}"), &format!("c{n}"));
        }
        world.accept_all();
        world.drain();
        world.lose(1);
        let attempt = world.attempt();
        world.accept(&attempt);
        format!("{attempt:?} {:?}", world.requests)
    };
    assert_eq!(run(), run());
}
