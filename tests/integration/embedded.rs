//! The embedded source through HTTP, and what comes of it at a Gateway.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use bson::Bson;
use serde_json::{Value, json};
use streamer_gateway::{AppEvent, Change, CloseReason, Gateway, Operation, Subscription, Transition};

use crate::support::{
    Runtime,
    api::{Api, document_path},
    block_on,
    gateway::{key, next_change, next_event, wait_live},
    on_both_runtimes,
    process::BINARY,
    setup::{Running, Setup},
    until,
};

on_both_runtimes!(documents_are_written_over_http, subscriptions_registered_over_http);

/// What a change is in short.
fn short(change: &Change) -> (Operation, Transition, Option<String>) {
    (change.operation(), change.transition(), change.document_id_text())
}

async fn documents_are_written_over_http(runtime: Runtime) {
    // Each needs encoding in a path.
    const TENANT: &str = "acme & söhne";
    const COLLECTION: &str = "rooms/room 1/messages";
    const ID: &str = "50% of m?1#ü+";
    let setup = Setup::new(runtime);
    let node = Running::start(&setup).await;
    let mut gateway = setup.gateway("edge", &node.fingerprint()).connect().await.unwrap();
    gateway.subscribe(Subscription::new(TENANT, COLLECTION).id("whole")).unwrap();
    wait_live(&gateway, 1).await;
    let api = setup.api();
    let path = document_path(TENANT, COLLECTION, ID);
    let id = Some(ID.to_owned());

    let first =
        api.put(TENANT, COLLECTION, ID, json!({"text": "hello", "when": {"$date": "2026-01-02T03:04:05Z"}})).await;
    let change = next_change(&mut gateway, "the insert").await;
    assert_eq!(short(&change), (Operation::Insert, Transition::Enter, id.clone()));
    assert_eq!((change.tenant(), change.collection(), change.cluster_time()), (TENANT, COLLECTION, first));
    let flat = change.flat().unwrap();
    assert_eq!(flat.get("text"), Some(&Bson::from("hello")));
    assert!(matches!(flat.get("when"), Some(Bson::DateTime(_))), "{flat}");
    let (status, stored) = api.call("GET", &path, "").await;
    assert_eq!(
        (status, &stored["data"]["text"], &stored["fullpath"]),
        (200, &json!("hello"), &json!(format!("{COLLECTION}/{ID}")))
    );

    let second = api.put(TENANT, COLLECTION, ID, json!({"text": "again"})).await;
    assert!(second > first);
    let change = next_change(&mut gateway, "the update").await;
    assert_eq!(short(&change), (Operation::Update, Transition::Update, id.clone()));
    assert_eq!(change.flat().unwrap().get("when"), None, "a put replaces");

    for (query, operation, transition) in [
        ("?soft=true", Operation::Delete, Transition::Leave),
        // Recreated.
        ("put", Operation::Insert, Transition::Enter),
        ("", Operation::Delete, Transition::Leave),
    ] {
        if query == "put" {
            api.put(TENANT, COLLECTION, ID, json!({"text": "back"})).await;
        } else {
            let (status, answer) = api.call("DELETE", &format!("{path}{query}"), "").await;
            assert!(status == 200 && answer["offset"].is_u64(), "{status} {answer}");
        }
        let change = next_change(&mut gateway, "what follows").await;
        assert_eq!(short(&change), (operation, transition, id.clone()), "after {query:?}");
        assert!(change.document().is_some(), "{change:?}");
    }
    let (status, answer) = api.call("DELETE", &path, "").await;
    assert_eq!((status, answer), (200, json!({"offset": null})), "nothing to delete");
    let (status, answer) = api.call("GET", &path, "").await;
    assert_eq!((status, &answer["code"]), (404, &json!("DOCUMENT_NOT_FOUND")), "{answer}");

    many_at_once(&api, &mut gateway, TENANT, COLLECTION).await;
    refused_documents(&api).await;
    api.put(TENANT, COLLECTION, "last", json!({})).await;
    let change = next_change(&mut gateway, "the last").await;
    assert_eq!(change.document_id_text().as_deref(), Some("last"), "something refused was written");
    gateway.close().await;
    node.stop().await;
}

async fn many_at_once(api: &Api, gateway: &mut Gateway, tenant: &str, collection: &str) {
    let line = |op: &str, id: &str, data: Value| {
        let mut line = json!({"op": op, "tenant": tenant, "collection": collection, "id": id});
        if !data.is_null() {
            line["data"] = data;
        }
        line.to_string()
    };
    let good = [
        line("put", "a", json!({"n": 1})),
        line("put", "b", json!({"n": 2})),
        String::new(),
        line("soft-delete", "a", Value::Null),
        line("delete", "b", Value::Null),
        line("delete", "never", Value::Null),
    ];
    let (status, answer) = api.call("POST", "/v1/documents", good.join("\n")).await;
    assert_eq!((status, answer), (200, json!({"written": 4, "unchanged": 1})));
    // Good lines count where others are wrong, and the wrong ones are named.
    let mixed = [
        line("put", "c", json!({"n": 3})),
        "{".into(),
        line("upsert", "d", json!({})),
        line("put", "a/b", json!({})),
        line("put", "e", json!({"id": "f"})),
        line("put", "g", json!({"n": 4})),
    ];
    let (status, answer) = api.call("POST", "/v1/documents", mixed.join("\r\n")).await;
    assert_eq!((status, &answer["code"]), (400, &json!("INVALID_REQUEST")), "{answer}");
    assert_eq!((&answer["written"], &answer["failed"]), (&json!(2), &json!(4)), "{answer}");
    let lines: Vec<_> =
        answer["errors"].as_array().unwrap().iter().map(|error| error["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [2, 3, 4, 5], "{answer}");
    for (id, operation) in [
        ("a", Operation::Insert),
        ("b", Operation::Insert),
        ("a", Operation::Delete),
        ("b", Operation::Delete),
        ("c", Operation::Insert),
        ("g", Operation::Insert),
    ] {
        let change = next_change(gateway, "a change of each line").await;
        assert_eq!((change.document_id_text().as_deref(), change.operation()), (Some(id), operation));
    }
}

async fn refused_documents(api: &Api) {
    let place = document_path("acme & söhne", "rooms/room 1/messages", "bad");
    for (method, path, body, status, code) in [
        ("PUT", place.clone(), String::new(), 400, "INVALID_REQUEST"),
        ("PUT", place.clone(), "[1]".into(), 400, "INVALID_REQUEST"),
        ("PUT", place.clone(), r#"{"a": }"#.into(), 400, "INVALID_REQUEST"),
        ("PUT", place.clone(), r#"{"a": {"$date": "soon"}}"#.into(), 400, "INVALID_REQUEST"),
        ("PUT", place.clone(), r#"{"id": "other"}"#.into(), 400, "INVALID_REQUEST"),
        (
            "PUT",
            place.clone(),
            format!(r#"{{"a": {}1{}}}"#, "[".repeat(5_000), "]".repeat(5_000)),
            400,
            "INVALID_REQUEST",
        ),
        ("PUT", place.clone(), format!(r#"{{"a": "{}"}}"#, "x".repeat(17 << 20)), 413, "INVALID_REQUEST"),
        ("PUT", document_path("a:b", "c", "d"), "{}".into(), 400, "INVALID_REQUEST"),
        ("PUT", document_path("a", "c//d", "e"), "{}".into(), 400, "INVALID_REQUEST"),
        ("PUT", document_path("a", "c", "d/e"), "{}".into(), 400, "INVALID_REQUEST"),
        ("PUT", document_path("a", "c", "d\0"), "{}".into(), 400, "INVALID_REQUEST"),
        ("PUT", "/v1/documents/a/c/%FF".into(), "{}".into(), 400, "INVALID_REQUEST"),
        ("PUT", "/v1/documents/a/c/d?hard=true".into(), "{}".into(), 400, "INVALID_REQUEST"),
        ("PUT", "/v1/documents/a/c/d?backend=other".into(), "{}".into(), 404, "NOT_FOUND"),
        ("PUT", "/v1/documents/a/c".into(), "{}".into(), 404, "NOT_FOUND"),
        ("PATCH", place, "{}".into(), 405, "METHOD_NOT_ALLOWED"),
    ] {
        let shown = format!("{method} {path} {body:.40}");
        let (answered, answer) = api.call(method, &path, body).await;
        assert_eq!((answered, &answer["code"]), (status, &json!(code)), "{shown}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()), "{shown}: {answer}");
    }
}

async fn subscriptions_registered_over_http(runtime: Runtime) {
    let setup = Setup::new(runtime);
    let node = Running::start(&setup).await;
    let api = setup.api();
    let register = async |id: &str, collection: &str| {
        let body = json!({
            "gatewayId": "edge", "tenant": "acme", "subscriptionId": id, "collection": collection,
            "filters": [{"field": "n", "op": ">=", "value": 10}], "expr": "doc.kind == 'x'"
        });
        let (status, answer) = api.call("POST", "/internal/v1/subscriptions", body.to_string()).await;
        assert_eq!(status, 201, "{answer}");
        assert_eq!(answer["subscriptionId"], id, "{answer}");
        assert!(answer["expiresAt"].as_u64() > answer["createdAt"].as_u64(), "{answer}");
        assert!(answer["filterVersion"].is_u64(), "{answer}");
    };
    // One before its Gateway is there, one after; which shard it is on is not the Gateway's business.
    register("before", "rooms").await;
    let mut gateway = setup.gateway("edge", &node.fingerprint()).connect().await.unwrap();
    register("after", "users").await;
    let mut live = Vec::new();
    for _ in 0..2 {
        match next_event(&mut gateway, "both subscriptions are live").await {
            AppEvent::Live { subscription, .. } => live.push(subscription.id.clone()),
            other => panic!("{other:?}"),
        }
    }
    live.sort();
    assert_eq!(live, ["after", "before"]);
    for (collection, id) in [("rooms", "before"), ("users", "after")] {
        api.put("acme", collection, "1", json!({"n": 9, "kind": "x"})).await;
        api.put("acme", collection, "2", json!({"n": 10, "kind": "y"})).await;
        api.put("acme", collection, "3", json!({"n": 10, "kind": "x"})).await;
        let change = next_change(&mut gateway, "the one that matches").await;
        assert_eq!((change.subscription(), change.document_id_text().as_deref()), (&key("acme", id), Some("3")));
        api.put("acme", collection, "3", json!({"n": 0, "kind": "x"})).await;
        assert_eq!(next_change(&mut gateway, "it leaves").await.transition(), Transition::Leave);
    }
    // Without an id the server makes one.
    let body = json!({"gatewayId": "edge", "tenant": "acme", "collection": "rooms"});
    let (status, answer) = api.call("POST", "/internal/v1/subscriptions", body.to_string()).await;
    assert_eq!(status, 201, "{answer}");
    let made = answer["subscriptionId"].as_str().unwrap().to_owned();
    match next_event(&mut gateway, "the third is live").await {
        AppEvent::Live { subscription, .. } => assert_eq!(subscription.id, made),
        other => panic!("{other:?}"),
    }
    let path = format!("/internal/v1/subscriptions/{made}?gatewayId=edge&tenant=acme");
    assert_eq!(api.call("DELETE", &path, "").await.0, 204);
    match next_event(&mut gateway, "its end").await {
        AppEvent::Closed { subscription, reason } => {
            assert_eq!((subscription.id.as_str(), reason), (made.as_str(), CloseReason::Removed));
        }
        other => panic!("{other:?}"),
    }
    let topology = api.topology().await;
    assert_eq!(topology["subscriptions"]["by_gateway"], json!({"edge": 2}), "{topology}");
    assert_eq!(topology["subscriptions"]["by_tenant"], json!({"acme": 2}), "{topology}");
    gateway.close().await;
    node.stop().await;
}

/// The README's three terminals.
#[test]
fn run_tap_and_put() {
    block_on(async {
        const COUNT: usize = 3;
        let setup = Setup::new(Runtime::Tokio);
        let process = setup.start_process().await;
        let mut tap = Command::new(BINARY)
            .args(["tap", "--http", setup.url().strip_prefix("http://").unwrap(), "--json"])
            .args(["--tenant", "acme", "--collection", "messages", "--count", &COUNT.to_string()])
            .args(["--filter", "n:>=:10", "--expr", "doc.room == \"lobby\" && size(doc.text) < 100"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let api = setup.api();
        let mut n = 0;
        // It doesn't say when it is live, so there is something to see until it has seen enough.
        let status = until("tap has seen enough", async || {
            n += 1;
            api.put("acme", "messages", "far", json!({"n": 1_000 + n, "room": "kitchen", "text": "no"})).await;
            api.put("acme", "messages", "low", json!({"n": 5, "room": "lobby", "text": "no"})).await;
            api.put("acme", "messages", "m1", json!({"n": 10 + n, "room": "lobby", "text": "hello"})).await;
            tap.try_wait().unwrap()
        })
        .await;
        let lines: Vec<String> = BufReader::new(tap.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
        let notes: Vec<String> = BufReader::new(tap.stderr.take().unwrap()).lines().map(Result::unwrap).collect();
        assert!(status.success(), "{status}: {lines:?} {notes:?}");
        assert_eq!(lines.len(), COUNT, "{lines:?} {notes:?}");
        for line in &lines {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(line.to_string().contains("hello") && !line.to_string().contains("\"no\""), "{line}");
        }
        let status = process.terminate().await;
        assert!(status.success(), "{status}");
    });
}
