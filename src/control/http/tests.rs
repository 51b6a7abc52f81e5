use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use axum::{body::Body, http::Method};
use serde_json::{Value, json};
use shards::{Input, Millis, Output, Shard, ShardConfig, driver::FromShard};
use tower::ServiceExt;
use wire::{Epoch, ShardAddress, SlotTable};

use super::*;
use crate::{
    config::Config,
    control::{
        admission::RegistrarConfig,
        credentials::hash_token,
        registry::{self, channels},
        state::ShardPlace,
    },
    ingest::{
        source::embedded::StoreOptions,
        status::{BackendStatus, IngestPicture, IngestStatus, Phase, ShardLag},
    },
};

/// The API over real shards without their driver, each on a thread that gives it commands and the time.
struct Node {
    router: Router,
    ingest: Arc<IngestStatus>,
    state: Arc<NodeState>,
    clock_ms: Arc<AtomicU64>,
    _folder: tempfile::TempDir,
}

const SHARDS: u16 = 3;

fn node(text: &str) -> Node {
    let config = Config::from_parts(None, text, []).unwrap();
    let (channels, receivers) = channels(usize::from(SHARDS));
    let clock_ms = Arc::new(AtomicU64::new(1));
    let slots = SlotTable { shards: SHARDS };
    let addresses: Vec<_> =
        (0..SHARDS).map(|partition| ShardAddress { partition, address: format!("h:{partition}") }).collect();
    for (index, ends) in receivers.into_iter().enumerate() {
        let shard_config = ShardConfig::new(index as u16, slots, addresses.clone(), Epoch(7));
        let clock = clock_ms.clone();
        thread::spawn(move || {
            let mut shard = Shard::new(shard_config, Millis(0));
            let mut outputs = Vec::new();
            while let Ok(command) = ends.commands.recv() {
                let now = Millis(clock.load(Relaxed));
                shard.handle(Input::Tick, now, &mut outputs);
                shard.handle(Input::Command(command), now, &mut outputs);
                while shard.work(now, &mut outputs) {}
                let shard = index as u16;
                for output in outputs.drain(..) {
                    let message = match output {
                        Output::Commanded { id, reply } => FromShard::Commanded { shard, id, reply },
                        Output::Released { gateway, keys } => FromShard::Released { shard, gateway, keys },
                        _ => continue,
                    };
                    ends.to_control.send(message).unwrap();
                }
            }
        });
    }
    let credentials = Credentials::of(&config);
    let registrar = RegistrarConfig::of(&config, SHARDS);
    let limits = registrar.limits.clone();
    let (registry, _) = registry::start(registrar, credentials.clone(), channels, || {}).unwrap();
    let ingest = Arc::new(IngestStatus::default());
    let state = Arc::new(NodeState::silent(ingest.clone(), usize::from(SHARDS)));
    let place = |address: &ShardAddress| ShardPlace {
        partition: address.partition,
        address: address.address.clone(),
        listen: "127.0.0.1:1".into(),
        core: 0,
        runtime: "tokio".into(),
        runtime_reason: "a test".into(),
    };
    let topology = Topology {
        epoch: Epoch(7),
        slots,
        shards: addresses.iter().map(place).collect(),
        ingest_cores: vec![0],
        control_cores: vec![0],
        fingerprint: "ab".into(),
        mapping: "syntrix".into(),
    };
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path(), StoreOptions { sync: false, ..StoreOptions::default() }).unwrap();
    let stores = vec![("embedded".to_owned(), store)];
    let app = App::new(registry, credentials, state.clone(), topology, stores, limits, &config);
    Node { router: router(Arc::new(app)), ingest, state, clock_ms, _folder: folder }
}

impl Node {
    async fn call_raw(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: impl Into<Body>,
    ) -> (StatusCode, String) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// The status and the body as JSON; null for an empty one.
    async fn call(&self, method: Method, path: &str, token: Option<&str>, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, text) = self.call_raw(method, path, token, body).await;
        (status.as_u16(), if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect(&text) })
    }

    /// Calls and expects this error.
    async fn refused(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Value,
        status: u16,
        code: &str,
    ) -> String {
        let (found, body) = self.call(method.clone(), path, token, body).await;
        assert_eq!((found, body["code"].as_str()), (status, Some(code)), "{method} {path}: {body}");
        assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
        body["message"].as_str().unwrap().to_owned()
    }
}

const SUBSCRIPTIONS: &str = "/internal/v1/subscriptions";

fn subscription(id: &str, tenant: &str, collection: &str) -> Value {
    json!({"gatewayId": "g", "subscriptionId": id, "tenant": tenant, "collection": collection,
           "filters": [{"field": "age", "op": ">=", "value": 18}], "ttl": 60})
}

#[tokio::test]
async fn a_subscription_lives_and_ends() {
    let node = node("");
    let body = subscription("s1", "t", "users");
    let (status, created) = node.call(Method::POST, SUBSCRIPTIONS, None, body.clone()).await;
    assert_eq!(status, 201, "{created}");
    assert_eq!(created["subscriptionId"], "s1");
    let (at, until) = (created["createdAt"].as_u64().unwrap(), created["expiresAt"].as_u64().unwrap());
    assert_eq!(until - at, 60_000);
    assert!(created["filterVersion"].is_u64());

    let (status, renewed) = node.call(Method::POST, SUBSCRIPTIONS, None, body).await;
    assert_eq!((status, &renewed["createdAt"]), (200, &Value::Null));
    let mut other = subscription("s1", "t", "users");
    other["expr"] = "doc.age < 30".into();
    other.as_object_mut().unwrap().remove("expr");
    other["filters"][0]["value"] = 19.into();
    node.refused(Method::POST, SUBSCRIPTIONS, None, other, 409, "SUBSCRIPTION_EXISTS").await;
    // Another collection may be another shard's; it is a conflict all the same.
    for n in 0..8 {
        let other = subscription("s1", "t", &format!("c{n}"));
        node.refused(Method::POST, SUBSCRIPTIONS, None, other, 409, "SUBSCRIPTION_EXISTS").await;
    }

    let heartbeat = "/internal/v1/subscriptions/s1/heartbeat?gatewayId=g";
    let (status, renewed) = node.call(Method::PUT, heartbeat, None, Value::Null).await;
    assert_eq!((status, &renewed["subscriptionId"]), (200, &json!("s1")));
    assert!(renewed["expiresAt"].is_u64());
    let (status, _) = node
        .call(Method::PUT, "/internal/v1/subscriptions/s1/heartbeat", None, json!({"gatewayId": "g", "tenant": "t"}))
        .await;
    assert_eq!(status, 200);
    node.refused(
        Method::PUT,
        "/internal/v1/subscriptions/s9/heartbeat?gatewayId=g",
        None,
        Value::Null,
        404,
        "SUBSCRIPTION_NOT_FOUND",
    )
    .await;
    node.refused(
        Method::PUT,
        "/internal/v1/subscriptions/s1/heartbeat?gatewayId=h",
        None,
        Value::Null,
        404,
        "SUBSCRIPTION_NOT_FOUND",
    )
    .await;

    for _ in 0..2 {
        let (status, body) =
            node.call(Method::DELETE, "/internal/v1/subscriptions/s1?gatewayId=g&tenant=t", None, Value::Null).await;
        assert_eq!((status, body), (204, Value::Null));
    }
    node.refused(Method::PUT, heartbeat, None, Value::Null, 404, "SUBSCRIPTION_NOT_FOUND").await;
}

#[tokio::test]
async fn an_expired_subscription_is_gone_and_may_come_again() {
    let node = node("");
    node.call(Method::POST, SUBSCRIPTIONS, None, subscription("s", "t", "users")).await;
    // Small steps: a clock that jumps moves the deadlines, as after a stall.
    for second in 1..=90 {
        node.clock_ms.store(second * 1_000, Relaxed);
        node.call(Method::PUT, "/internal/v1/subscriptions/other/heartbeat?gatewayId=g&tenant=t", None, Value::Null)
            .await;
    }
    let heartbeat = "/internal/v1/subscriptions/s/heartbeat?gatewayId=g&tenant=t";
    node.refused(Method::PUT, heartbeat, None, Value::Null, 410, "SUBSCRIPTION_EXPIRED").await;
    let (status, _) = node.call(Method::POST, SUBSCRIPTIONS, None, subscription("s", "t", "users")).await;
    assert_eq!(status, 201);
    let (_, topology) = node.call(Method::GET, "/v1/topology", None, Value::Null).await;
    assert_eq!(topology["subscriptions"]["total"], 1);
}

#[tokio::test]
async fn an_id_in_two_tenants_has_to_be_told_apart() {
    let node = node("");
    for tenant in ["t1", "t2"] {
        let (status, _) = node.call(Method::POST, SUBSCRIPTIONS, None, subscription("s", tenant, "users")).await;
        assert_eq!(status, 201);
    }
    let path = "/internal/v1/subscriptions/s?gatewayId=g";
    let message = node.refused(Method::DELETE, path, None, Value::Null, 400, "INVALID_REQUEST").await;
    assert!(message.contains("?tenant="), "{message}");
    let (status, _) = node.call(Method::DELETE, &format!("{path}&tenant=t1"), None, Value::Null).await;
    assert_eq!(status, 204);
    let (status, _) =
        node.call(Method::PUT, "/internal/v1/subscriptions/s/heartbeat?gatewayId=g", None, Value::Null).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn all_of_a_gateway_go_at_once() {
    let node = node("");
    for n in 0..20 {
        let mut body = subscription(&format!("s{n}"), "t", &format!("c{n}"));
        body["gatewayId"] = if n < 15 { "g" } else { "h" }.into();
        assert_eq!(node.call(Method::POST, SUBSCRIPTIONS, None, body).await.0, 201);
    }
    let (_, topology) = node.call(Method::GET, "/v1/topology", None, Value::Null).await;
    assert_eq!(topology["subscriptions"]["by_gateway"], json!({"g": 15, "h": 5}));
    assert_eq!(topology["subscriptions"]["by_tenant"], json!({"t": 20}));
    let shards = topology["shards"].as_array().unwrap();
    assert_eq!(shards.iter().map(|shard| shard["subscriptions"].as_u64().unwrap()).sum::<u64>(), 20);
    assert_eq!((&shards[0]["slots"][0], &shards[2]["slots"][1]), (&json!(0), &json!(4095)));
    assert_eq!(shards[1]["address"], "h:1");
    let path = "/internal/v1/gateways/g/subscriptions";
    assert_eq!(node.call(Method::DELETE, path, None, Value::Null).await, (200, json!({"removed": 15})));
    assert_eq!(node.call(Method::DELETE, path, None, Value::Null).await, (200, json!({"removed": 0})));
}

#[tokio::test]
async fn a_server_made_id_and_what_is_refused() {
    let node =
        node("[limits]\nsubscriptions_per_tenant = 3\nsubscriptions_per_gateway = 4\nsubscriptions_per_node = 5\n");
    let bare = json!({"gatewayId": "g", "tenant": "t", "collection": "c"});
    let (status, created) = node.call(Method::POST, SUBSCRIPTIONS, None, bare.clone()).await;
    assert_eq!((status, created["subscriptionId"].as_str().unwrap().len()), (201, 32));
    assert_eq!(created["expiresAt"].as_u64().unwrap() - created["createdAt"].as_u64().unwrap(), 300_000);
    for (change, code) in [
        (json!({"subscriptionId": "a b"}), "INVALID_REQUEST"),
        (json!({"tenant": ""}), "INVALID_REQUEST"),
        (json!({"tenant": null}), "INVALID_REQUEST"),
        (json!({"collection": "a//b"}), "INVALID_REQUEST"),
        (json!({"ttl": 59}), "INVALID_REQUEST"),
        (json!({"ttl": 0}), "INVALID_REQUEST"),
        (json!({"ttl": 3601}), "INVALID_REQUEST"),
        (json!({"ttl": -1}), "INVALID_REQUEST"),
        (json!({"gatewayId": null}), "INVALID_REQUEST"),
        (json!({"filter": []}), "INVALID_REQUEST"),
        (json!({"filters": [{"field": "a", "op": "~", "value": 1}]}), "INVALID_FILTER"),
        (json!({"filters": {}}), "INVALID_FILTER"),
        (json!({"expr": "((("}), "CEL_COMPILATION_FAILED"),
    ] {
        let mut body = bare.clone();
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        node.refused(Method::POST, SUBSCRIPTIONS, None, body, 400, code).await;
    }
    let (status, text) = node.call_raw(Method::POST, SUBSCRIPTIONS, None, "{\"gatewayId\": \u{1}").await;
    assert!(status == 400 && text.contains("INVALID_REQUEST"), "{text}");
    let mut codes = Vec::new();
    for (gateway, tenant) in [("g", "t"), ("g", "t"), ("g", "t"), ("g", "u"), ("g", "u"), ("h", "u"), ("h", "u")] {
        let body = json!({"gatewayId": gateway, "tenant": tenant, "collection": "c"});
        let (status, body) = node.call(Method::POST, SUBSCRIPTIONS, None, body).await;
        codes.push((status, body["code"].as_str().unwrap_or_default().to_owned()));
    }
    let expect = ["", "", "TENANT_QUOTA_EXCEEDED", "", "GATEWAY_QUOTA_EXCEEDED", "", "GLOBAL_QUOTA_EXCEEDED"];
    let expect = expect.map(|code| (if code.is_empty() { 201 } else { 429 }, code.to_owned()));
    assert_eq!(codes, expect);
}

fn guarded() -> Node {
    let hash = |token: &str| format!("{:?}", hash_token(token));
    node(&format!(
        "[[gateways]]\nname = \"g\"\ntoken_sha256 = \"{}\"\ntenants = [\"t\"]\n[[gateways]]\nname = \"h\"\ntoken_sha256 = \"{}\"\n[admin]\ntoken_sha256 = \"{}\"\n",
        hash("one"),
        hash("two"),
        hash("root")
    ))
}

#[tokio::test]
async fn tokens_say_who_may_do_what() {
    let node = guarded();
    let body = |tenant: &str| json!({"tenant": tenant, "collection": "c", "subscriptionId": "s"});
    for token in [None, Some("wrong"), Some("")] {
        node.refused(Method::POST, SUBSCRIPTIONS, token, body("t"), 401, "UNAUTHORIZED").await;
        node.refused(Method::PUT, "/internal/v1/subscriptions/s/heartbeat", token, Value::Null, 401, "UNAUTHORIZED")
            .await;
        node.refused(Method::DELETE, "/internal/v1/subscriptions/s", token, Value::Null, 401, "UNAUTHORIZED").await;
        node.refused(Method::DELETE, "/internal/v1/gateways/g/subscriptions", token, Value::Null, 401, "UNAUTHORIZED")
            .await;
        for path in ["/metrics", "/v1/topology", "/v1/live", "/v1/documents/t/c/d"] {
            node.refused(Method::GET, path, token, Value::Null, 401, "UNAUTHORIZED").await;
        }
    }
    assert_eq!(node.call(Method::POST, SUBSCRIPTIONS, Some("one"), body("t")).await.0, 201);
    node.refused(Method::POST, SUBSCRIPTIONS, Some("one"), body("u"), 403, "FORBIDDEN").await;
    let mut claimed = body("t");
    claimed["gatewayId"] = "h".into();
    node.refused(Method::POST, SUBSCRIPTIONS, Some("one"), claimed, 403, "FORBIDDEN").await;
    node.refused(Method::DELETE, "/internal/v1/gateways/h/subscriptions", Some("one"), Value::Null, 403, "FORBIDDEN")
        .await;
    node.refused(
        Method::PUT,
        "/internal/v1/subscriptions/s/heartbeat?tenant=u",
        Some("one"),
        Value::Null,
        403,
        "FORBIDDEN",
    )
    .await;
    // Another Gateway's subscription of the same name isn't there.
    node.refused(
        Method::PUT,
        "/internal/v1/subscriptions/s/heartbeat?tenant=t",
        Some("two"),
        Value::Null,
        404,
        "SUBSCRIPTION_NOT_FOUND",
    )
    .await;
    assert_eq!(node.call(Method::PUT, "/internal/v1/subscriptions/s/heartbeat", Some("one"), Value::Null).await.0, 200);

    for path in ["/metrics", "/v1/topology", "/v1/live", "/v1/documents/t/c/d"] {
        node.refused(Method::GET, path, Some("one"), Value::Null, 403, "FORBIDDEN").await;
    }
    assert_eq!(node.call(Method::GET, "/v1/topology", Some("root"), Value::Null).await.0, 200);
    let (status, metrics) = node.call_raw(Method::GET, "/metrics", Some("root"), "").await;
    assert!(status == 200 && metrics.contains("streamer_shard_sessions{shard=\"2\"} 0"));
    let path = "/internal/v1/gateways/g/subscriptions";
    assert_eq!(node.call(Method::DELETE, path, Some("root"), Value::Null).await, (200, json!({"removed": 1})));
    // Health needs no token.
    assert_eq!(node.call(Method::GET, "/health/live", None, Value::Null).await.0, 200);
}

#[tokio::test]
async fn health_says_what_is_missing() {
    let node = node("");
    let (status, health) = node.call(Method::GET, "/health/ready", None, Value::Null).await;
    assert_eq!((status, &health["status"]), (503, &json!("not_ready")));
    let backend = |phase, error: Option<&str>| BackendStatus {
        name: "main".into(),
        phase,
        source: None,
        position: None,
        settled: None,
        error: error.map(Into::into),
        reopenings: 0,
        tokens: 0,
        stalled: None,
        catch_up: Default::default(),
        settled_lag: Vec::new(),
    };
    let publish = |backend| node.ingest.publish(IngestPicture { backends: vec![backend], ..IngestPicture::default() });
    publish(backend(Phase::Halted, Some("history lost")));
    let (status, health) = node.call(Method::GET, "/health", None, Value::Null).await;
    assert_eq!(status, 503);
    assert_eq!(health["reasons"], json!(["backend \"main\" is halted: history lost"]));
    assert_eq!(node.call(Method::GET, "/health/live", None, Value::Null).await.0, 200);

    publish(backend(Phase::Reading, None));
    let (status, health) = node.call(Method::GET, "/health", None, Value::Null).await;
    assert_eq!((status, &health["status"]), (200, &json!("ready")), "{health}");

    // A shard that lags is said to, and no reason to take the node's Gateways away from it.
    let lag = ShardLag { waiting: 7_000, lasts: Duration::from_millis(12_345) };
    let lags = vec![None, Some(lag), None];
    node.ingest.publish(IngestPicture {
        backends: vec![backend(Phase::Reading, None)],
        lags,
        ..IngestPicture::default()
    });
    let (status, health) = node.call(Method::GET, "/health/ready", None, Value::Null).await;
    assert_eq!((status, &health["status"]), (200, &json!("degraded")));
    assert_eq!(health["reasons"], json!(["shard 1 lags: 7000 items wait in its ring, for 12 s"]));
    assert_eq!((&health["shards"][1]["lags_ms"], &health["shards"][0]["lags_ms"]), (&json!(12_345), &Value::Null));
    let (_, metrics) = node.call_raw(Method::GET, "/metrics", None, "").await;
    assert!(metrics.contains("streamer_shard_lagging{shard=\"1\"} 1"), "{metrics}");

    publish(backend(Phase::Reading, None));
    node.state.set_shard_ended(1);
    assert_eq!(node.call(Method::GET, "/health/ready", None, Value::Null).await.0, 503);
    assert_eq!(node.call(Method::GET, "/health/live", None, Value::Null).await.0, 503);
}

#[tokio::test]
async fn documents_are_put_read_and_deleted() {
    let node = node("");
    let path = "/v1/documents/acme/rooms%2F1%2Fmessages/m%201";
    let document = json!({"text": "hi", "at": {"$date": "2024-01-01T00:00:00Z"}, "n": {"$numberLong": "7"}});
    let (status, written) = node.call(Method::PUT, path, None, document.clone()).await;
    assert_eq!((status, written), (200, json!({"offset": 1})));
    let (status, found) = node.call(Method::GET, path, None, Value::Null).await;
    assert_eq!(status, 200, "{found}");
    assert_eq!(
        (&found["collection"], &found["fullpath"]),
        (&json!("rooms/1/messages"), &json!("rooms/1/messages/m 1"))
    );
    assert_eq!(found["data"]["at"], document["at"]);
    assert_eq!(
        node.call(Method::DELETE, &format!("{path}?soft=true"), None, Value::Null).await,
        (200, json!({"offset": 2}))
    );
    assert_eq!(node.call(Method::GET, path, None, Value::Null).await.1["deleted"], json!(true));
    assert_eq!(node.call(Method::DELETE, path, None, Value::Null).await, (200, json!({"offset": 3})));
    assert_eq!(node.call(Method::DELETE, path, None, Value::Null).await, (200, json!({"offset": null})));
    node.refused(Method::GET, path, None, Value::Null, 404, "DOCUMENT_NOT_FOUND").await;

    for (path, body) in [
        (path, json!([1])),
        (path, json!({"id": "another"})),
        ("/v1/documents/a%2Fb/c/d", json!({})),
        ("/v1/documents/a/c%2F%2Fd/e", json!({})),
        ("/v1/documents/a/c/d?sotf=true", json!({})),
        ("/v1/documents/a/c/%FF", json!({})),
    ] {
        node.refused(Method::PUT, path, None, body, 400, "INVALID_REQUEST").await;
    }
    node.refused(Method::PUT, &format!("{path}?backend=other"), None, json!({}), 404, "NOT_FOUND").await;
}

#[tokio::test]
async fn bulk_names_the_lines_that_are_wrong() {
    let node = node("");
    let mut lines: Vec<String> = (0..2_500)
        .map(|n| {
            json!({"op": "put", "tenant": "t", "collection": "c", "id": format!("d{n}"), "data": {"n": n}}).to_string()
        })
        .collect();
    lines.push(String::new());
    lines.push(json!({"op": "soft-delete", "tenant": "t", "collection": "c", "id": "d0"}).to_string());
    lines.push(json!({"op": "delete", "tenant": "t", "collection": "c", "id": "not there"}).to_string());
    let (status, text) = node.call_raw(Method::POST, "/v1/documents", None, lines.join("\n")).await;
    assert_eq!(
        (status.as_u16(), serde_json::from_str::<Value>(&text).unwrap()),
        (200, json!({"written": 2501, "unchanged": 1}))
    );

    lines.truncate(10);
    lines[2] = "{".into();
    lines[4] = json!({"op": "upsert", "tenant": "t", "collection": "c", "id": "d"}).to_string();
    lines[6] = json!({"op": "put", "tenant": "t", "collection": "/c", "id": "d", "data": {}}).to_string();
    lines[7] = json!({"op": "put", "tenant": "t", "collection": "c", "id": "d"}).to_string();
    let (status, text) = node.call_raw(Method::POST, "/v1/documents", None, lines.join("\n")).await;
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status.as_u16(), &body["code"], &body["written"], &body["failed"]),
        (400, &json!("INVALID_REQUEST"), &json!(6), &json!(4))
    );
    let named: Vec<_> =
        body["errors"].as_array().unwrap().iter().map(|error| error["line"].as_u64().unwrap()).collect();
    assert_eq!(named, [3, 5, 7, 8], "{body}");
}

#[tokio::test]
async fn unknown_paths_methods_and_large_bodies_answer_in_the_same_form() {
    let node = node("[http]\nmax_body = \"64KiB\"\n");
    node.refused(Method::GET, "/nothing", None, Value::Null, 404, "NOT_FOUND").await;
    node.refused(Method::GET, "/v1/documents/a/b/c/d", None, Value::Null, 404, "NOT_FOUND").await;
    node.refused(Method::PATCH, SUBSCRIPTIONS, None, Value::Null, 405, "METHOD_NOT_ALLOWED").await;
    node.refused(Method::POST, "/health", None, Value::Null, 405, "METHOD_NOT_ALLOWED").await;
    let large = json!({"text": "x".repeat(70_000)});
    node.refused(Method::PUT, "/v1/documents/t/c/d", None, large, 413, "INVALID_REQUEST").await;
}

#[tokio::test]
async fn a_web_page_of_elsewhere_can_do_nothing_in_open_mode() {
    let (open, guarded) = (node(""), guarded());
    for (header, value, allowed) in [
        ("origin", "https://example.org", false),
        ("origin", "null", false),
        ("host", "rebound.example.org:8083", false),
        ("origin", "http://localhost:3000", true),
        ("host", "127.0.0.1:8083", true),
    ] {
        for (node, allowed) in [(&open, allowed), (&guarded, true)] {
            let request = Request::builder().uri("/health/live").header(header, value).body(Body::empty()).unwrap();
            let status = node.router.clone().oneshot(request).await.unwrap().status();
            assert_eq!(status.as_u16(), if allowed { 200 } else { 403 }, "{header}: {value}");
        }
    }
}

#[tokio::test]
async fn pictures_come_to_whoever_may_look_and_to_so_many() {
    let hash = |token: &str| format!("{:?}", hash_token(token));
    let node = node(&format!(
        "[admin]\ntoken_sha256 = \"{}\"\n[[gateways]]\nname = \"g\"\ntoken_sha256 = \"{}\"\n",
        hash("root"),
        hash("one")
    ));
    let ask = |token: Option<&str>| {
        let mut request = axum::http::Request::get("/v1/live");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        node.router.clone().oneshot(request.body(Body::empty()).unwrap())
    };
    assert_eq!(ask(None).await.unwrap().status(), 401);
    let mut open = Vec::new();
    for _ in 0..live::WATCHERS_MAX {
        let answer = ask(Some("root")).await.unwrap();
        assert_eq!(
            (answer.status(), &answer.headers()["content-type"]),
            (StatusCode::OK, &"text/event-stream".parse().unwrap())
        );
        open.push(answer.into_body().into_data_stream());
    }
    assert_eq!(ask(Some("root")).await.unwrap().status(), 429);
    let first = futures::StreamExt::next(&mut open[0]).await.unwrap().unwrap();
    let text = std::str::from_utf8(&first).unwrap().strip_prefix("data:").unwrap().trim();
    let picture: crate::control::Live = serde_json::from_str(text).unwrap();
    assert_eq!((picture.status.as_str(), picture.shards.len()), ("not_ready", usize::from(SHARDS)));
    // Whoever goes makes room.
    open.pop();
    assert_eq!(ask(Some("root")).await.unwrap().status(), 200);
    // The page shows nothing by itself, so anybody may have it.
    let (status, page) = node.call_raw(Method::GET, "/", None, "").await;
    assert!(status == StatusCode::OK && page.contains("<title>Streamer</title>"));
}
