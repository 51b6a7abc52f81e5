//! Gateways that keep to the protocol, and such as don't.

use quinn::ConnectionError;
use wire::{
    Decoder, Delivery, ErrorCode, MAX_UNANSWERED_REQUESTS, Registration, Reply, Request, RequestId, SubscribeResult,
    Transition,
};

use super::{
    client::{Client, Incoming, ack, block_on, client_config, dial, hello, subscribe},
    node::{Node, Options, RUNTIMES, TOKEN, at, before, insert, start, start_core},
    tiny::{FLOOD, TOO_MANY_REPLIES, Tiny},
};
use crate::{
    FromIngest,
    driver::{Latencies, now_nanos},
};

#[test]
fn a_change_reaches_the_gateway_and_its_ack_the_ingest_thread() {
    for runtime in RUNTIMES {
        let mut node = start(runtime);
        block_on(async {
            let mut client = Client::connect(&node).await;
            client.send(&hello("gateway-1", TOKEN)).await;
            let Reply::Welcome(welcome) = client.reply().await else { panic!("no welcome") };
            assert_eq!((welcome.epoch.0, welcome.partition), (42, 0));
            node.ring.push(FromIngest::FilterSeen { version: 0, positions: before(1) }).await.unwrap();

            client.send(&subscribe(1, "s")).await;
            assert_eq!(node.admit().await, 1);
            let Reply::Subscribed { request, results } = client.reply().await else { panic!("not subscribed") };
            assert_eq!(request, RequestId(1));
            let SubscribeResult::Accepted { registration, .. } = &results[0] else { panic!("{:?}", results[0]) };
            assert_eq!(*registration, Registration::Created);
            client.send(&Request::SyncDone { request: RequestId(2) }).await;
            assert_eq!(client.reply().await, Reply::Synced { request: RequestId(2) });
            while node.handle.cells().sync().synced.is_empty() {
                node.signal.changed().await;
            }
            assert_eq!(&*node.handle.cells().sync().synced[0], "gateway-1");

            node.see_filter(before(5)).await;
            let mut deliveries = client.deliveries().await;
            let handle = loop {
                match deliveries.next().await.unwrap() {
                    Delivery::Bound(bound) => break bound.handle,
                    Delivery::Heartbeat { .. } => {}
                    other => panic!("{other:?}"),
                }
            };
            let read_at = now_nanos();
            node.ring.mark(read_at, now_nanos());
            node.ring.push(FromIngest::Change(insert(at(5), 17))).await.unwrap();
            node.ring.push(FromIngest::Progress(at(6))).await.unwrap();
            let event = loop {
                match deliveries.next().await.unwrap() {
                    Delivery::Events(events) => break wire::EventEntry::from(events.get(0)),
                    Delivery::Heartbeat { .. } => {}
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!((event.seq, event.id), (1, at(5)));
            assert_eq!((event.targets[0].handle, event.targets[0].transition), (handle, Transition::Enter));
            assert!(!node.handle.cells().settled().covers(&at(5)), "nobody has acked it");

            let mut acks = client.open_acks().await;
            ack(&mut acks, 1).await;
            node.settled_at(&at(6)).await;
            let latencies = loop {
                let latencies = node.handle.cells().stats().latencies;
                if latencies.end_to_end.count() > 0 {
                    break latencies;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            };
            let Latencies { queue, matching, send, ack, end_to_end } = latencies;
            let stages = [queue, matching, send, ack];
            assert!(stages.iter().chain([&end_to_end]).all(|stage| stage.count() == 1), "{latencies:?}");
            let sum: u64 = stages.iter().map(|stage| stage.sum_ns).sum();
            assert!(sum > 0 && sum <= end_to_end.sum_ns, "{latencies:?}");
            assert!(end_to_end.sum_ns <= now_nanos().since(read_at), "{latencies:?}");
            client.leave().await;
            node.until_no_sessions().await;
        });
        node.stop();
    }
}

/// Sends something to a shard on both runtimes, and shows that another Gateway is still served.
fn node_survives(break_it: impl AsyncFn(&Node)) {
    for runtime in RUNTIMES {
        let node = start_core(Options::new(runtime), Tiny::default);
        block_on(async {
            let mut bystander = Client::welcomed(&node, "bystander").await;
            break_it(&node).await;
            bystander.send(&Request::Ping { nonce: 5 }).await;
            assert_eq!(bystander.reply().await, Reply::Pong { nonce: 5 });
            Client::welcomed(&node, "newcomer").await;
        });
        node.stop();
    }
}

#[test]
fn a_hello_without_a_good_token_is_told_so_and_closed() {
    node_survives(async |node| {
        for token in ["", "open barley"] {
            let mut client = Client::connect(node).await;
            client.send(&hello("g", token)).await;
            let Reply::Refused { code, message } = client.reply().await else { panic!("not refused") };
            assert_eq!(code, ErrorCode::Unauthorized);
            assert!(message.contains("token"), "{message}");
            assert_eq!(client.closed_with().await, ErrorCode::Unauthorized);
        }
    });
}

#[test]
fn garbage_is_a_protocol_violation() {
    node_survives(async |node| {
        for garbage in [&[0xff; 64][..], b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &[0; 5], &[1, 0, 0, 0, 0x7e]] {
            // In the place of the hello, and after it.
            let mut client = Client::connect(node).await;
            client.send_bytes(garbage).await;
            assert_eq!(client.closed_with().await, ErrorCode::ProtocolViolation, "{garbage:?}");
            let mut client = Client::welcomed(node, "g").await;
            client.send_bytes(garbage).await;
            assert!(matches!(client.reply().await, Reply::Refused { code: ErrorCode::ProtocolViolation, .. }));
            assert_eq!(client.closed_with().await, ErrorCode::ProtocolViolation, "{garbage:?}");
        }
    });
}

#[test]
fn garbage_on_the_ack_stream_is_a_protocol_violation() {
    node_survives(async |node| {
        let mut client = Client::welcomed(node, "g").await;
        let mut acks = client.open_acks().await;
        acks.write_all(&[0xee; 32]).await.unwrap();
        assert_eq!(client.closed_with().await, ErrorCode::ProtocolViolation);
    });
}

#[test]
fn a_frame_above_the_maximum_is_refused_by_its_header() {
    node_survives(async |node| {
        // A hello of a megabyte, and then a request of more than a session may send.
        let mut client = Client::connect(node).await;
        client.send_bytes(&header(1 << 20, 0x01)).await;
        assert_eq!(client.closed_with().await, ErrorCode::ProtocolViolation);
        let mut client = Client::welcomed(node, "g").await;
        client.send_bytes(&header((16 << 20) + 1, 0x02)).await;
        let Reply::Refused { code, message } = client.reply().await else { panic!("not refused") };
        assert_eq!(code, ErrorCode::ProtocolViolation);
        assert!(message.contains("16777217"), "{message}");
        assert_eq!(client.closed_with().await, ErrorCode::ProtocolViolation);
    });
}

fn header(body: u32, kind: u8) -> Vec<u8> {
    let mut bytes = (body + 1).to_le_bytes().to_vec();
    bytes.push(kind);
    bytes
}

#[test]
fn a_message_out_of_turn_is_a_protocol_violation() {
    node_survives(async |node| {
        let mut client = Client::connect(node).await;
        client.send(&Request::Ping { nonce: 1 }).await;
        assert_eq!(client.closed_with().await, ErrorCode::ProtocolViolation);
        let mut client = Client::welcomed(node, "g").await;
        client.send(&hello("g", TOKEN)).await;
        assert_eq!(client.closed_with().await, ErrorCode::ProtocolViolation);
    });
}

#[test]
fn a_control_stream_that_ends_within_a_message_is_a_protocol_violation() {
    node_survives(async |node| {
        let mut client = Client::welcomed(node, "g").await;
        client.send_bytes(&header(100, 0x05)).await;
        client.control.finish().unwrap();
        assert_eq!(client.closed_with().await, ErrorCode::ProtocolViolation);
    });
}

#[test]
fn a_gateway_that_finishes_its_control_stream_has_left() {
    node_survives(async |node| {
        let mut client = Client::welcomed(node, "g").await;
        client.control.finish().unwrap();
        let ConnectionError::ApplicationClosed(close) = client.connection.closed().await else { panic!("not closed") };
        assert_eq!(close.error_code.into_inner(), 0);
    });
}

#[test]
fn another_alpn_or_none_is_no_connection() {
    node_survives(async |node| {
        for alpn in [Some(&b"h3"[..]), Some(b"streamer/2"), None] {
            let (_endpoint, connection) = dial(node.handle.local_addr(), &node.certificate, alpn).await;
            // TLS alert 120, no_application_protocol, as a QUIC transport error.
            match connection {
                Err(ConnectionError::ConnectionClosed(close)) => {
                    assert_eq!(u64::from(close.error_code), 0x100 + 120, "{alpn:?}");
                }
                other => panic!("{alpn:?}: {other:?}"),
            }
        }
    });
}

#[test]
fn a_second_stream_of_a_kind_is_not_to_be_had() {
    node_survives(async |node| {
        let client = Client::welcomed(node, "g").await;
        let _acks = client.open_acks().await;
        tokio::select! {
            biased;
            _ = client.connection.open_bi() => panic!("a second control stream"),
            _ = client.connection.open_uni() => panic!("a second ack stream"),
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
        }
    });
}

#[test]
fn a_gateway_that_stops_its_delivery_stream_has_no_session() {
    node_survives(async |node| {
        let mut client = Client::welcomed(node, "g").await;
        client.send(&Request::Ping { nonce: FLOOD }).await;
        assert_eq!(client.reply().await, Reply::Pong { nonce: FLOOD });
        let mut deliveries = client.connection.accept_uni().await.unwrap();
        deliveries.stop(1u32.into()).unwrap();
        assert!(matches!(client.reply().await, Reply::Refused { code: ErrorCode::ProtocolViolation, .. }));
        assert_eq!(client.closed_with().await, ErrorCode::ProtocolViolation);
    });
}

#[test]
fn a_gateway_that_doesnt_read_holds_up_nobody() {
    node_survives(async |node| {
        let mut slow = Client::welcomed(node, "slow").await;
        slow.send(&Request::Ping { nonce: FLOOD }).await;
        assert_eq!(slow.reply().await, Reply::Pong { nonce: FLOOD });
        // Its delivery stream is full from here on, its control stream isn't.
        for nonce in 0..100 {
            slow.send(&Request::Ping { nonce }).await;
            assert_eq!(slow.reply().await, Reply::Pong { nonce });
        }
        // And then it reads after all: what it gets is in order and complete.
        let mut deliveries = slow.deliveries().await;
        for expected in 1..=200_000 {
            let Some(Delivery::Heartbeat { last_seq, .. }) = deliveries.next().await else { panic!("ended") };
            assert_eq!(last_seq, expected);
        }
    });
}

#[test]
fn more_unanswered_requests_than_allowed_end_the_session() {
    // A shard that answers no subscription: nobody admits.
    let node = start(super::node::RUNTIMES[1]);
    block_on(async {
        let mut client = Client::welcomed(&node, "g").await;
        let mut buffer = bytes::BytesMut::new();
        for request in 0..=MAX_UNANSWERED_REQUESTS as u64 {
            wire::encode_request(&subscribe(request, "s"), &mut buffer);
        }
        client.send_bytes(&buffer).await;
        assert_eq!(client.closed_with().await, ErrorCode::TooManyRequests);
    });
    node.stop();
}

#[test]
fn more_replies_than_requests_end_the_session_and_not_the_memory() {
    node_survives(async |node| {
        let mut client = Client::welcomed(node, "g").await;
        client.send(&Request::Ping { nonce: TOO_MANY_REPLIES }).await;
        assert_eq!(client.closed_with().await, ErrorCode::Internal);
    });
}

#[test]
fn newcomers_beyond_the_first_have_their_address_proven_and_too_many_are_refused() {
    for runtime in RUNTIMES {
        let mut options = Options::new(runtime);
        options.quic.newcomers_before_retry = 1;
        options.quic.newcomers_max = 3;
        let node = start_core(options, Tiny::default);
        block_on(async {
            // Three that say no hello.
            let mut silent = Vec::new();
            for _ in 0..3 {
                silent.push(Client::connect(&node).await);
            }
            let (_endpoint, fourth) = dial(node.handle.local_addr(), &node.certificate, Some(wire::ALPN)).await;
            assert!(matches!(fourth, Err(ConnectionError::ConnectionClosed(_))), "{fourth:?}");
            let driver = loop {
                let driver = node.handle.cells().stats().driver;
                if driver.connections_refused > 0 {
                    break driver;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            };
            assert!(driver.connections_retried >= 2, "{driver:?}");
            assert_eq!(driver.newcomers, 3, "{driver:?}");
            // One of them says hello after all, which makes room.
            silent[0].send(&hello("g", TOKEN)).await;
            assert!(matches!(silent[0].reply().await, Reply::Welcome(_)));
            Client::welcomed(&node, "late").await;
        });
        node.stop();
    }
}

#[test]
fn who_says_no_hello_in_time_is_closed() {
    for runtime in RUNTIMES {
        let mut options = Options::new(runtime);
        options.quic.handshake_timeout_ms = 300;
        let node = start_core(options, Tiny::default);
        block_on(async {
            let mut client = Client::connect(&node).await;
            // Half a frame.
            client.send_bytes(&[9, 0]).await;
            assert_eq!(client.closed_with().await, ErrorCode::ProtocolViolation);
        });
        node.stop();
    }
}

#[test]
fn stopping_tells_every_session_and_flushes_what_was_answered() {
    for runtime in RUNTIMES {
        let node = start_core(Options::new(runtime), Tiny::default);
        block_on(async {
            let mut clients = Vec::new();
            for gateway in ["a", "b", "c"] {
                clients.push(Client::welcomed(&node, gateway).await);
            }
            // One that gets more than it reads.
            clients[2].send(&Request::Ping { nonce: FLOOD }).await;
            for client in &mut clients[..2] {
                client.send(&Request::Ping { nonce: 1 }).await;
                assert_eq!(client.reply().await, Reply::Pong { nonce: 1 });
            }
            assert_eq!(clients[2].reply().await, Reply::Pong { nonce: FLOOD });
            node.handle.stop();
            for client in &mut clients {
                assert!(matches!(client.reply().await, Reply::Refused { code: ErrorCode::ShuttingDown, .. }));
                assert_eq!(client.closed_with().await, ErrorCode::ShuttingDown);
            }
            node.handle.ended().await;
        });
        node.handle.join().unwrap();
    }
}

#[test]
fn a_shard_that_drains_serves_who_is_there_and_lets_nobody_in() {
    for runtime in RUNTIMES {
        let mut node = start(runtime);
        block_on(async {
            node.ring.push(FromIngest::FilterSeen { version: 0, positions: before(1) }).await.unwrap();
            let mut there = Client::welcomed(&node, "there").await;
            there.send(&subscribe(1, "before")).await;
            assert_eq!(node.admit().await, 1);
            let Reply::Subscribed { results, .. } = there.reply().await else { panic!("not subscribed") };
            assert!(matches!(results[0], SubscribeResult::Accepted { .. }), "{results:?}");
            // Is there, and has not said hello.
            let mut silent = Client::connect(&node).await;

            node.handle.drain(std::time::Duration::from_millis(12_345));
            let mut deliveries = there.deliveries().await;
            loop {
                match deliveries.next().await.unwrap() {
                    Delivery::GoAway { within_ms, reason } => {
                        assert_eq!((within_ms, reason), (12_345, ErrorCode::ShuttingDown));
                        break;
                    }
                    Delivery::Heartbeat { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            silent.send(&hello("silent", TOKEN)).await;
            let mut late = Client::connect(&node).await;
            late.send(&hello("late", TOKEN)).await;
            for client in [&mut silent, &mut late] {
                let refused = client.reply().await;
                assert!(matches!(refused, Reply::Refused { code: ErrorCode::ShuttingDown, .. }), "{refused:?}");
                assert_eq!(client.closed_with().await, ErrorCode::ShuttingDown);
            }
            // What is new is refused without asking anybody, what is not is renewed.
            there.send(&subscribe(2, "after")).await;
            let Reply::Subscribed { results, .. } = there.reply().await else { panic!("not answered") };
            let [SubscribeResult::Rejected { code: ErrorCode::ShuttingDown, .. }] = &results[..] else {
                panic!("{results:?}")
            };
            there.send(&subscribe(3, "before")).await;
            let Reply::Subscribed { results, .. } = there.reply().await else { panic!("not answered") };
            let [SubscribeResult::Accepted { registration: Registration::Renewed, .. }] = &results[..] else {
                panic!("{results:?}")
            };
            node.handle.stop();
            assert!(matches!(there.reply().await, Reply::Refused { code: ErrorCode::ShuttingDown, .. }));
            node.handle.ended().await;
        });
        node.handle.join().unwrap();
    }
}

#[test]
fn a_shard_whose_handle_is_gone_ends() {
    for runtime in RUNTIMES {
        let node = start_core(Options::new(runtime), Tiny::default);
        let address = node.handle.local_addr();
        drop(node.handle);
        while std::net::UdpSocket::bind(address).is_err() {
            std::thread::yield_now();
        }
    }
}

#[test]
fn one_byte_and_empty_datagrams_are_no_harm() {
    node_survives(async |node| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for length in [0, 1, 2, 20, 1_500] {
            socket.send_to(&vec![0; length], node.handle.local_addr()).unwrap();
        }
        // What was sent is decoded by nobody; that the decoder is asked at all would show here.
        let mut decoder = Decoder::<Request>::new(1_000);
        assert_eq!(decoder.next(), Ok(None));
    });
}

#[test]
fn early_data_is_not_to_be_had() {
    for runtime in RUNTIMES {
        let node = start_core(Options::new(runtime), Tiny::default);
        block_on(async {
            let config = client_config(&node.certificate, Some(wire::ALPN));
            let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            let connect = || endpoint.connect_with(config.clone(), node.handle.local_addr(), "localhost").unwrap();
            let first = connect().await.unwrap();
            // The ticket for the next session comes with or before the first answer.
            let (mut control, replies) = first.open_bi().await.unwrap();
            let mut buffer = bytes::BytesMut::new();
            wire::encode_request(&hello("g", TOKEN), &mut buffer);
            control.write_all(&buffer).await.unwrap();
            assert!(matches!(Incoming::<Reply>::new(replies).next().await, Some(Reply::Welcome(_))));
            first.close(0u32.into(), b"");
            assert!(connect().into_0rtt().is_err(), "a second session may begin with early data");
        });
        node.stop();
    }
}

#[test]
fn a_connection_on_which_nothing_happens_outlives_its_idle_time() {
    for runtime in RUNTIMES {
        let mut options = Options::new(runtime);
        options.quic.idle_timeout_ms = 2_000;
        let node = start_core(options, Tiny::default);
        block_on(async {
            // This side sends no keep-alives of its own, and allows ten times as long: what is negotiated is the node's idle time.
            let client = Client::welcomed(&node, "g").await;
            let ended = tokio::time::timeout(std::time::Duration::from_secs(5), client.connection.closed()).await;
            assert!(ended.is_err(), "{ended:?}");
        });
        node.stop();
    }
}
