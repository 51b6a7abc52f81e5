//! What is not the protocol, and what is but must be refused: each a typed error, and the node unharmed.

use std::net::UdpSocket;

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use streamer_gateway::{AppEvent, CloseReason, Gateway, Subscription};
use wire::{
    Ack, ErrorCode, MAX_HELLO_BODY_BYTES, Reply, Request, RequestId, SubscribeItem, SubscribeResult, encode_ack,
};

use crate::{
    raw::{Client, code_of, collection_of_shard, dial, encoded, hello, item},
    support::{
        Runtime, SHARDS,
        api::Api,
        block_on,
        gateway::{key, next_change, next_event, number, wait_live},
        on_both_runtimes,
        setup::{Running, Setup},
        until, within,
    },
};

on_both_runtimes!(bytes_that_are_not_the_protocol, packets_that_are_not_quic, too_many_requests_at_once);

/// A Gateway that minds its own business while others misbehave.
struct Healthy {
    gateway: Gateway,
    api: Api,
    n: i64,
}

impl Healthy {
    /// Subscribed on every shard.
    async fn start(setup: &Setup, node: &Running) -> Self {
        let gateway = setup.gateway("healthy", &node.fingerprint()).connect().await.unwrap();
        for shard in 0..SHARDS as u16 {
            let collection = collection_of_shard("calm", shard, SHARDS as u16);
            gateway.subscribe(Subscription::new("calm", collection).id(format!("s-{shard}"))).unwrap();
        }
        wait_live(&gateway, SHARDS).await;
        Self { gateway, api: setup.api(), n: 0 }
    }

    /// Still served by every shard, in the sessions that it had.
    async fn still_receives(&mut self, after: &str) {
        self.n += 1;
        for shard in 0..SHARDS as u16 {
            let collection = collection_of_shard("calm", shard, SHARDS as u16);
            self.api.put("calm", &collection, "d", json!({"n": self.n})).await;
            let change = next_change(&mut self.gateway, after).await;
            assert_eq!((change.collection(), number(&change)), (collection.as_str(), self.n), "after {after}");
        }
        let status = self.gateway.status();
        assert_eq!(status.counters.reconnects, 0, "after {after}");
        assert!(self.api.is_well("/health/ready").await, "after {after}");
    }
}

/// One frame: length, type, body.
fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32 + 1).to_le_bytes().to_vec();
    frame.push(kind);
    frame.extend(body);
    frame
}

/// The hello that another version of the protocol would begin with.
fn hello_of_version(version: u8) -> Vec<u8> {
    let mut bytes = encoded(&hello("odd", ""));
    // Behind the length and the type.
    bytes[5] = version;
    bytes
}

async fn bytes_that_are_not_the_protocol(runtime: Runtime) {
    let setup = Setup::new(runtime);
    let node = Running::start(&setup).await;
    let mut healthy = Healthy::start(&setup, &node).await;
    let mut random = StdRng::seed_from_u64(7);
    let mut noise = |bytes: usize| (0..bytes).map(|_| random.random::<u8>()).collect::<Vec<_>>();
    let violation = ErrorCode::ProtocolViolation;
    let subscribe = Request::Subscribe { request: RequestId(1), items: vec![item("t", "s", "c")] };

    for (what, bytes, code) in [
        ("version 0", hello_of_version(0), ErrorCode::UnsupportedVersion),
        ("version 2", hello_of_version(2), ErrorCode::UnsupportedVersion),
        ("a request before the hello", encoded(&subscribe), violation),
        ("a ping before the hello", encoded(&Request::Ping { nonce: 1 }), violation),
        ("a frame without a type", vec![0, 0, 0, 0], violation),
        ("a frame of 4 GiB", vec![0xff, 0xff, 0xff, 0xff, 0x01], violation),
        ("a hello above the maximum", frame(0x01, &vec![0; MAX_HELLO_BODY_BYTES + 1]), violation),
        ("a frame of an unknown type", frame(0x7f, b"x"), violation),
        ("a reply instead of a request", frame(0x11, &[0; 64]), violation),
        ("a delivery instead of a request", frame(0x31, &[0; 64]), violation),
        ("a body that is cut", frame(0x01, &[1, 4, b'o']), violation),
        ("text that is not UTF-8", frame(0x01, &[1, 2, 0xc3, 0x28, 0, 0, 0]), violation),
        ("a length beyond the body", frame(0x01, &[1, 253, 255, 255, 255, 255, 255, 255, 255, 255, 0]), violation),
        ("noise", noise(4_096), violation),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), violation),
    ] {
        let mut client = Client::connect(&setup).await;
        client.send_bytes(&bytes).await;
        match client.reply().await {
            None => {}
            Some(Reply::Refused { code: refused, message }) => {
                assert_eq!(refused, code, "{what}: {message}");
                assert!(!message.is_empty(), "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(client.closed_with(what).await, code, "{what}");
    }
    healthy.still_receives("strangers").await;

    // The same from Gateways that were let in.
    let deep = "(".repeat(60_000);
    for (what, bytes, code) in [
        ("a second hello", encoded(&hello("inside", "")), violation),
        ("noise", noise(4_096), violation),
        ("a frame of 4 GiB", vec![0xff, 0xff, 0xff, 0xff, 0x02], violation),
        ("a frame of an unknown type", frame(0x7f, b"x"), violation),
        ("an ack on the control stream", frame(0x21, &[0, 0]), violation),
        ("a list longer than its bytes", frame(0x02, &[1, 253, 255, 255, 255, 255, 255, 255, 255, 15]), violation),
        ("a subscription that is cut", frame(0x02, &[1, 1, 1, b't']), violation),
    ] {
        let mut client = Client::welcomed(&setup, "inside").await;
        client.send_bytes(&bytes).await;
        assert_eq!(client.closed_with(what).await, code, "{what}");
    }
    for (what, bytes) in [
        ("an ack of what was never sent", ack(5, 5)),
        ("done before received", ack(0, 1)),
        ("noise", vec![9; 300]),
        ("a request on the stream of acks", encoded(&Request::Ping { nonce: 1 })),
    ] {
        let client = Client::welcomed(&setup, "inside").await;
        let mut acks = client.connection.open_uni().await.unwrap();
        let _ = acks.write_all(&bytes).await;
        assert_eq!(client.closed_with(what).await, violation, "on the stream of acks: {what}");
    }
    // Nothing wrong with the frame, only with what it asks for: the session goes on.
    let mut client = Client::welcomed(&setup, "inside").await;
    let own = collection_of_shard("t", 0, SHARDS as u16);
    let result = client.subscribe(SubscribeItem { expr: deep, ..item("t", "deep", &own) }).await;
    assert!(matches!(&result, SubscribeResult::Rejected { code: ErrorCode::CelCompilationFailed, .. }), "{result:?}");
    let other = collection_of_shard("t", 1, SHARDS as u16);
    let result = client.subscribe(item("t", "elsewhere", &other)).await;
    assert!(matches!(&result, SubscribeResult::NotOwner { owner } if owner.partition == 1), "{result:?}");
    let items = (0..10_001).map(|n| item("t", &format!("s{n}"), &own)).collect();
    client.send(&Request::Subscribe { request: RequestId(2), items }).await;
    match client.reply().await {
        Some(Reply::Subscribed { results, .. }) => {
            assert_eq!(results.len(), 10_001);
            results.iter().for_each(|result| check_rejected(result, ErrorCode::InvalidRequest, "too many items"));
        }
        other => panic!("too many items: {other:?}"),
    }
    let result = client.subscribe(item("t", "fine", &own)).await;
    assert!(matches!(&result, SubscribeResult::Accepted { .. }), "{result:?}");
    healthy.still_receives("Gateways that misbehave").await;
    drop(client);
    healthy.gateway.close().await;
    node.stop().await;
}

fn ack(received: u64, done: u64) -> Vec<u8> {
    let mut buffer = bytes::BytesMut::new();
    encode_ack(&Ack { received, done }, &mut buffer);
    buffer.to_vec()
}

async fn packets_that_are_not_quic(runtime: Runtime) {
    let setup = Setup::new(runtime);
    let node = Running::start(&setup).await;
    let mut healthy = Healthy::start(&setup, &node).await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = StdRng::seed_from_u64(8);
    for shard in &node.node().topology().shards {
        for _ in 0..500 {
            let mut packet: Vec<u8> = (0..random.random_range(0..1_400)).map(|_| random.random()).collect();
            // Half of them with a long header of version 1, so that they get past the first look.
            if packet.len() > 5 && random.random() {
                packet[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
            }
            socket.send_to(&packet, &shard.address).unwrap();
        }
    }
    // Connections that speak another protocol, or none.
    for alpn in [None, Some(&b"h3"[..]), Some(&b"streamer/2"[..])] {
        let (_endpoint, connection) = dial(&setup, alpn).await;
        assert!(connection.is_err(), "{alpn:?} was welcome");
    }
    // One that opens what it may not, and one that goes away in the middle.
    let client = Client::welcomed(&setup, "greedy").await;
    client.connection.close(quinn::VarInt::from_u32(77), b"never mind");
    let mut client = Client::connect(&setup).await;
    client.send_bytes(&encoded(&hello("cut", ""))[..7]).await;
    drop(client);
    healthy.still_receives("packets of nobody").await;
    healthy.gateway.close().await;
    node.stop().await;
}

async fn too_many_requests_at_once(runtime: Runtime) {
    let setup = Setup::new(runtime);
    let node = Running::start(&setup).await;
    let mut healthy = Healthy::start(&setup, &node).await;
    let own = collection_of_shard("t", 0, SHARDS as u16);
    let mut client = Client::welcomed(&setup, "flood").await;
    // All in one write, so that the shard has them before anybody could have answered.
    let flood: Vec<u8> = (0..5_000_u64)
        .flat_map(|n| {
            let items = vec![item("t", &format!("s-{n}"), &own)];
            encoded(&Request::Subscribe { request: RequestId(n), items })
        })
        .collect();
    client.send_bytes(&flood).await;
    let mut answered = 0;
    loop {
        match client.reply().await {
            Some(Reply::Subscribed { .. }) => answered += 1,
            Some(Reply::Refused { code, .. }) => assert_eq!(code, ErrorCode::TooManyRequests),
            Some(other) => panic!("{other:?}"),
            None => {
                assert_eq!(client.closed_with("a flood").await, ErrorCode::TooManyRequests);
                break;
            }
        }
        if answered == 5_000 {
            // It was answered faster than it could be flooded.
            break;
        }
    }
    healthy.still_receives("a flood").await;
    healthy.gateway.close().await;
    node.stop().await;
}

/// A subscription that must be refused: what is wrong with it, for both ways to ask.
struct Wrong {
    what: &'static str,
    tenant: String,
    id: String,
    collection: String,
    filters: String,
    expr: String,
    code: ErrorCode,
}

fn wrong(what: &'static str, code: ErrorCode) -> Wrong {
    let (tenant, id, collection) = ("t".into(), "s".into(), "c".into());
    Wrong { what, tenant, id, collection, filters: "[]".into(), expr: String::new(), code }
}

fn wrong_subscriptions() -> Vec<Wrong> {
    let (invalid, filter, cel) = (ErrorCode::InvalidRequest, ErrorCode::InvalidFilter, ErrorCode::CelCompilationFailed);
    let mut all = Vec::new();
    for collection in ["", "/", "a/", "/a", "a//b", "a\0b", "a\nb", &"x".repeat(1_025)] {
        all.push(Wrong { collection: collection.into(), ..wrong("collection", invalid) });
    }
    for id in ["", "a b", "a/b", "ä", "a\0", &"x".repeat(129)] {
        all.push(Wrong { id: id.into(), ..wrong("id", invalid) });
    }
    for tenant in ["", "a\0b", &"x".repeat(1_025)] {
        all.push(Wrong { tenant: tenant.into(), ..wrong("tenant", invalid) });
    }
    for filters in [
        "{}",
        "[1]",
        r#"[{"field": "a"}]"#,
        r#"[{"field": "a", "op": "~", "value": 1}]"#,
        r#"[{"field": "", "op": "==", "value": 1}]"#,
        r#"[{"field": "a..b", "op": "==", "value": 1}]"#,
        r#"[{"field": "a", "op": "in", "value": 1}]"#,
        r#"[{"field": "a", "op": "starts-with", "value": 1}]"#,
        r#"[{"field": "a", "op": "==", "value": {"$date": "yesterday"}}]"#,
        r#"[{"field": "a", "op": "==", "value": 1, "extra": 2}]"#,
    ] {
        all.push(Wrong { filters: filters.into(), ..wrong("filters", filter) });
    }
    let field = format!(r#"[{{"field": "{}", "op": "==", "value": 1}}]"#, ["a"; 500].join("."));
    all.push(Wrong { filters: field, ..wrong("a path of 500 names", filter) });
    let nested = format!(r#"[{{"field": "a", "op": "==", "value": {}{}}}]"#, "[".repeat(5_000), "]".repeat(5_000));
    all.push(Wrong { filters: nested, ..wrong("a value of 5,000 levels", filter) });
    for expr in [
        "doc.",
        "1 + 1",
        "'text'",
        "doc.a == ",
        "nothing.at.all == 1",
        "doc.a.unknown_function()",
        "doc.a =~ 'x'",
        "doc.a == 1; true",
        "doc.a.matches('(')",
        &"!".repeat(5_000),
        &format!("{}1{} == 1", "(".repeat(5_000), ")".repeat(5_000)),
        &format!("doc.a == [{}]", "1,".repeat(20_000)),
        &vec!["doc.a == 1"; 10_000].join(" || "),
        &format!("doc{} == 1", ".a".repeat(10_000)),
        &"x".repeat(1 << 20),
    ] {
        all.push(Wrong { expr: expr.into(), ..wrong("expr", cel) });
    }
    all
}

#[test]
fn wrong_subscriptions_over_http_and_quic() {
    block_on(async {
        let setup = Setup::new(Runtime::Tokio);
        let node = Running::start(&setup).await;
        let mut healthy = Healthy::start(&setup, &node).await;
        let api = setup.api();
        // Errors that the SDK would find itself are for the node to find.
        let mut client = Client::welcomed(&setup, "wrong").await;
        for Wrong { what, tenant, id, collection, filters, expr, code } in wrong_subscriptions() {
            let shown = format!("{what}: {:.80}", format!("{tenant:?} {id:?} {collection:?} {filters} {expr}"));
            let body = format!(
                r#"{{"gatewayId":"wrong","tenant":{},"subscriptionId":{},"collection":{},"filters":{filters},"expr":{}}}"#,
                json!(tenant),
                json!(id),
                json!(collection),
                json!(expr)
            );
            let (status, answer) = api.call("POST", "/internal/v1/subscriptions", body).await;
            assert_eq!((status, &answer["code"]), (400, &json!(code)), "{shown}: {answer}");
            assert!(
                answer["message"].as_str().is_some_and(|text| (1..2_000).contains(&text.len())),
                "{shown}: {answer}"
            );
            // To the shard that owns it; where that is another one, the answer says so instead.
            let place = wire::PlaceHash::of(&tenant, &collection);
            if (wire::SlotTable { shards: SHARDS as u16 }).owner(place) != 0 && what != "id" {
                let own = collection_of_shard("t", 0, SHARDS as u16);
                if matches!(what, "collection" | "tenant") {
                    continue;
                }
                let wrong = SubscribeItem { filters, expr, ..item("t", &id, &own) };
                check_rejected(&client.subscribe(wrong).await, code, &shown);
                continue;
            }
            let wrong = SubscribeItem { filters, expr, ..item(&tenant, &id, &collection) };
            check_rejected(&client.subscribe(wrong).await, code, &shown);
        }
        let own = collection_of_shard("t", 0, SHARDS as u16);
        for ttl_s in [1, 59, 3_601, u32::MAX] {
            let result = client.subscribe(SubscribeItem { ttl_s, ..item("t", "s", &own) }).await;
            check_rejected(&result, ErrorCode::InvalidRequest, &format!("ttl {ttl_s}"));
        }
        for ttl in [json!(0), json!(1), json!(59), json!(3_601), json!(u64::MAX), json!(-1), json!("60"), json!(60.5)] {
            let body =
                json!({"gatewayId": "wrong", "tenant": "t", "subscriptionId": "s", "collection": "c", "ttl": ttl});
            let (status, answer) = api.call("POST", "/internal/v1/subscriptions", body.to_string()).await;
            assert_eq!((status, &answer["code"]), (400, &json!("INVALID_REQUEST")), "ttl {ttl}: {answer}");
        }
        let topology = api.topology().await;
        assert_eq!(topology["subscriptions"]["total"], SHARDS, "something was accepted: {topology}");
        healthy.still_receives("wrong subscriptions").await;
        healthy.gateway.close().await;
        node.stop().await;
    });
}

fn check_rejected(result: &SubscribeResult, expected: ErrorCode, what: &str) {
    match result {
        SubscribeResult::Rejected { code, message } => {
            assert_eq!(*code, expected, "{what}: {message}");
            assert!((1..2_000).contains(&message.len()), "{what}: {message}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn requests_that_http_refuses() {
    block_on(async {
        let setup = Setup::new(Runtime::Tokio).with("[limits]\nsubscriptions_per_gateway = 1\n");
        let node = Running::start(&setup).await;
        let api = setup.api();
        let registry = "/internal/v1/subscriptions";
        let register = |id: &str, collection: &str| {
            json!({"gatewayId": "g", "tenant": "t", "subscriptionId": id, "collection": collection}).to_string()
        };
        for (method, path, body, status, code) in [
            ("POST", registry.to_owned(), String::new(), 400, "INVALID_REQUEST"),
            ("POST", registry.to_owned(), "not JSON".into(), 400, "INVALID_REQUEST"),
            ("POST", registry.to_owned(), "[]".into(), 400, "INVALID_REQUEST"),
            ("POST", registry.to_owned(), r#"{"tenant": "t", "collection": "c"}"#.into(), 400, "INVALID_REQUEST"),
            (
                "POST",
                registry.to_owned(),
                r#"{"gatewayId": "g", "tenant": "t", "collection": "c", "filter": []}"#.into(),
                400,
                "INVALID_REQUEST",
            ),
            ("POST", registry.to_owned(), "[".repeat(100_000), 400, "INVALID_REQUEST"),
            ("POST", registry.to_owned(), register("s", "c"), 201, ""),
            ("POST", registry.to_owned(), register("s", "c"), 200, ""),
            ("POST", registry.to_owned(), register("s", "d"), 409, "SUBSCRIPTION_EXISTS"),
            ("POST", registry.to_owned(), register("s2", "c"), 429, "GATEWAY_QUOTA_EXCEEDED"),
            (
                "PUT",
                format!("{registry}/s2/heartbeat?gatewayId=g&tenant=t"),
                String::new(),
                404,
                "SUBSCRIPTION_NOT_FOUND",
            ),
            ("PUT", format!("{registry}/s/heartbeat?gatewayId=other"), String::new(), 404, "SUBSCRIPTION_NOT_FOUND"),
            ("PUT", format!("{registry}/s/heartbeat"), String::new(), 400, "INVALID_REQUEST"),
            ("PUT", format!("{registry}/a%20b/heartbeat?gatewayId=g"), String::new(), 400, "INVALID_REQUEST"),
            ("PUT", format!("{registry}/%FF/heartbeat?gatewayId=g"), String::new(), 400, "INVALID_REQUEST"),
            ("GET", registry.to_owned(), String::new(), 405, "METHOD_NOT_ALLOWED"),
            ("GET", "/nothing".into(), String::new(), 404, "NOT_FOUND"),
            ("DELETE", format!("{registry}/s2?gatewayId=g"), String::new(), 204, ""),
            ("DELETE", format!("{registry}/s?gatewayId=g&tenant=t"), String::new(), 204, ""),
            ("DELETE", format!("{registry}/s?gatewayId=g&tenant=t"), String::new(), 204, ""),
            ("POST", registry.to_owned(), register("s2", "c"), 201, ""),
        ] {
            let (answered, answer) = api.call(method, &path, body).await;
            assert_eq!(answered, status, "{method} {path}: {answer}");
            if !code.is_empty() {
                assert_eq!(answer["code"], code, "{method} {path}: {answer}");
                assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
            }
        }
        // The connection is closed on a body that is too large, so that its sender may see that before the answer.
        let other = setup.api();
        if let Ok((status, answer)) = other.try_call("POST", registry, "x".repeat(5 << 20)).await {
            assert_eq!((status, &answer["code"]), (413, &json!("INVALID_REQUEST")), "{answer}");
        }
        assert!(api.is_well("/health/ready").await);
        node.stop().await;
    });
}

#[test]
fn an_expired_subscription_says_that_it_has_expired() {
    block_on(async {
        let setup = Setup::new(Runtime::Tokio).with("[limits]\nttl_min = \"1s\"\n");
        let node = Running::start(&setup).await;
        let mut healthy = Healthy::start(&setup, &node).await;
        let api = setup.api();
        let mut gateway = setup.gateway("brief", &node.fingerprint()).connect().await.unwrap();
        let body = json!({"gatewayId": "brief", "tenant": "t", "subscriptionId": "s", "collection": "c", "ttl": 1});
        let register = async || api.call("POST", "/internal/v1/subscriptions", body.to_string()).await;
        let (status, answer) = register().await;
        assert_eq!(status, 201, "{answer}");
        // It has its own heartbeat: the session of its Gateway doesn't keep it. Its end is told.
        match next_event(&mut gateway, "it is live").await {
            AppEvent::Live { subscription, .. } => assert_eq!(*subscription, key("t", "s")),
            other => panic!("{other:?}"),
        }
        match next_event(&mut gateway, "its end").await {
            AppEvent::Closed { subscription, reason } => {
                assert_eq!((&*subscription, reason), (&key("t", "s"), CloseReason::Expired));
            }
            other => panic!("{other:?}"),
        }
        until("the subscription is gone", async || {
            (api.topology().await["subscriptions"]["total"] == SHARDS).then_some(())
        })
        .await;
        let heartbeat = "/internal/v1/subscriptions/s/heartbeat?gatewayId=brief&tenant=t";
        let (status, answer) = api.call("PUT", heartbeat, "").await;
        assert_eq!((status, &answer["code"]), (410, &json!("SUBSCRIPTION_EXPIRED")), "{answer}");
        let (status, answer) = register().await;
        assert_eq!(status, 201, "{answer}");
        assert_eq!(api.call("PUT", heartbeat, "").await.0, 200);
        healthy.still_receives("an expiry").await;
        gateway.close().await;
        healthy.gateway.close().await;
        node.stop().await;
    });
}

#[test]
fn a_newer_session_of_the_same_gateway_ends_the_older_one() {
    block_on(async {
        let setup = Setup::new(Runtime::Tokio);
        let node = Running::start(&setup).await;
        let first = Client::welcomed(&setup, "twin").await;
        let mut second = Client::welcomed(&setup, "twin").await;
        let end = within("the older session ends", first.connection.closed()).await;
        assert_eq!(code_of(end), ErrorCode::Superseded);
        second.send(&Request::Ping { nonce: 7 }).await;
        assert_eq!(second.reply().await, Some(Reply::Pong { nonce: 7 }));
        node.stop().await;
    });
}
