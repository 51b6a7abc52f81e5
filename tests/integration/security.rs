//! Who may do what: tokens, tenants, other Gateways' subscriptions, the administrator.

use serde_json::{Value, json};
use streamer::control::hash_token;
use streamer_gateway::{AppEvent, Error, Gateway, Subscription, TerminalError};
use wire::{ErrorCode, Reply};

use crate::{
    raw::{Client, hello},
    support::{
        Runtime,
        api::document_path,
        block_on,
        gateway::{key, next_change, next_event, wait_live},
        on_both_runtimes,
        setup::{Running, Setup},
    },
};

/// `edge` may name the tenant `acme`, `wide` all of them.
fn closed(runtime: Runtime, admin: bool) -> Setup {
    let hash = |token: &str| format!("{:?}", hash_token(token));
    let mut sections = format!(
        r#"
        [[gateways]]
        name = "edge"
        token_sha256 = "{}"
        tenants = ["acme"]
        [[gateways]]
        name = "wide"
        token_sha256 = "{}"
        tenants = ["*"]
        "#,
        hash(EDGE),
        hash(WIDE)
    );
    if admin {
        sections += &format!("[admin]\ntoken_sha256 = \"{}\"\n", hash(ADMIN));
    }
    Setup::new(runtime).with(&sections)
}

const EDGE: &str = "the token of edge";
const WIDE: &str = "the token of wide";
const ADMIN: &str = "the token of the administrator";

on_both_runtimes!(tokens_over_quic, tenants_over_quic);

async fn tokens_over_quic(runtime: Runtime) {
    let setup = closed(runtime, true);
    let node = Running::start(&setup).await;
    for (gateway, token, code) in [
        ("edge", "", ErrorCode::Unauthorized),
        ("edge", "wrong", ErrorCode::Unauthorized),
        ("edge", "the token of edge ", ErrorCode::Unauthorized),
        ("nobody", "", ErrorCode::Unauthorized),
        ("nobody", "wrong", ErrorCode::Unauthorized),
        ("edge", ADMIN, ErrorCode::Unauthorized),
        // Good tokens of somebody else.
        ("edge", WIDE, ErrorCode::Forbidden),
        ("nobody", EDGE, ErrorCode::Forbidden),
    ] {
        let mut client = Client::connect(&setup).await;
        client.send(&hello(gateway, token)).await;
        let reply = client.reply().await;
        match reply {
            Some(Reply::Refused { code: refused, message }) => {
                assert_eq!(refused, code, "{gateway:?} with {token:?}: {message}");
                let tells = [EDGE, WIDE, ADMIN].iter().any(|secret| message.contains(secret));
                assert!(!tells, "{message:?} tells a token");
            }
            // The connection may be seen closed before the refusal has been read.
            None => {}
            other => panic!("{gateway:?} with {token:?}: {other:?}"),
        }
        assert_eq!(client.closed_with("a bad token").await, code, "{gateway:?} with {token:?}");

        // The SDK gives up at once instead of trying again.
        let connected = setup.gateway(gateway, &node.fingerprint()).token(token).connect().await;
        match (connected.err(), code) {
            (Some(Error::Terminal(TerminalError::Unauthorized { .. })), ErrorCode::Unauthorized)
            | (Some(Error::Terminal(TerminalError::Forbidden { .. })), ErrorCode::Forbidden) => {}
            (other, _) => panic!("{gateway:?} with {token:?}: {other:?}"),
        }
    }
    // Nobody was harmed by any of it.
    let mut edge = connect(&setup, &node, "edge", EDGE).await;
    edge.subscribe(Subscription::new("acme", "rooms").id("s")).unwrap();
    wait_live(&edge, 1).await;
    setup.api().with_token(Some(ADMIN)).put("acme", "rooms", "1", json!({"n": 1})).await;
    assert_eq!(next_change(&mut edge, "a change for the good token").await.collection(), "rooms");
    edge.close().await;
    node.stop().await;
}

async fn connect(setup: &Setup, node: &Running, gateway: &str, token: &str) -> Gateway {
    setup.gateway(gateway, &node.fingerprint()).token(token).connect().await.unwrap()
}

async fn tenants_over_quic(runtime: Runtime) {
    let setup = closed(runtime, true);
    let node = Running::start(&setup).await;
    let mut edge = connect(&setup, &node, "edge", EDGE).await;
    for tenant in ["globex", "Acme", "acme ", "*"] {
        edge.subscribe(Subscription::new(tenant, "rooms").id("s")).unwrap();
        match next_event(&mut edge, "an answer").await {
            AppEvent::Rejected { subscription, code, message } => {
                assert_eq!((&*subscription, code), (&key(tenant, "s"), ErrorCode::Forbidden), "{message}");
                assert!(message.contains(tenant), "{message:?} names no tenant");
            }
            other => panic!("tenant {tenant:?}: {other:?}"),
        }
    }
    // The session has gone on, and its own tenant is served.
    edge.subscribe(Subscription::new("acme", "rooms").id("s")).unwrap();
    let mut wide = connect(&setup, &node, "wide", WIDE).await;
    wide.subscribe(Subscription::new("globex", "rooms").id("s")).unwrap();
    wait_live(&edge, 1).await;
    wait_live(&wide, 1).await;
    let api = setup.api().with_token(Some(ADMIN));
    api.put("globex", "rooms", "1", json!({"n": 1})).await;
    api.put("acme", "rooms", "1", json!({"n": 2})).await;
    assert_eq!(next_change(&mut edge, "the change in acme").await.tenant(), "acme");
    assert_eq!(next_change(&mut wide, "the change in globex").await.tenant(), "globex");
    assert_eq!(edge.status().counters.reconnects, 0);
    edge.close().await;
    wide.close().await;
    node.stop().await;
}

/// What each of the callers is answered: nobody, a stranger, `edge`, `wide`, the administrator.
struct Call {
    method: &'static str,
    path: String,
    body: Value,
    answers: [(u16, &'static str); 5],
}

fn call(method: &'static str, path: impl Into<String>, body: Value, answers: [(u16, &'static str); 5]) -> Call {
    Call { method, path: path.into(), body, answers }
}

const NONE: &str = "";
const UNAUTHORIZED: (u16, &str) = (401, "UNAUTHORIZED");
const FORBIDDEN: (u16, &str) = (403, "FORBIDDEN");

fn register(more: Value) -> Value {
    let mut body = json!({"subscriptionId": "s", "tenant": "acme", "collection": "rooms"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn callers_over_http() {
    block_on(async {
        let setup = closed(Runtime::Tokio, true);
        let node = Running::start(&setup).await;
        let registry = "/internal/v1/subscriptions";
        let document = document_path("acme", "rooms", "1");
        let nobody = [UNAUTHORIZED, UNAUTHORIZED];
        let all = |[edge, wide, admin]: [(u16, &'static str); 3]| [nobody[0], nobody[1], edge, wide, admin];
        let admin_only = all([FORBIDDEN, FORBIDDEN, (200, NONE)]);
        for Call { method, path, body, answers } in [
            call("PUT", document.clone(), json!({"n": 1}), admin_only),
            call("GET", document.clone(), Value::Null, admin_only),
            call("POST", "/v1/documents", Value::Null, admin_only),
            call("GET", "/v1/topology", Value::Null, admin_only),
            call("GET", "/metrics", Value::Null, admin_only),
            // The administrator is no Gateway.
            call("POST", registry, register(json!({})), all([(201, NONE), (201, NONE), UNAUTHORIZED])),
            call(
                "POST",
                registry,
                register(json!({"tenant": "globex", "subscriptionId": "g"})),
                all([FORBIDDEN, (201, NONE), UNAUTHORIZED]),
            ),
            // In another's name.
            call(
                "POST",
                registry,
                register(json!({"gatewayId": "wide", "subscriptionId": "w"})),
                all([FORBIDDEN, (201, NONE), UNAUTHORIZED]),
            ),
            call(
                "PUT",
                format!("{registry}/w/heartbeat?tenant=acme&gatewayId=wide"),
                Value::Null,
                all([FORBIDDEN, (200, NONE), UNAUTHORIZED]),
            ),
            call(
                "PUT",
                format!("{registry}/w/heartbeat?tenant=acme"),
                Value::Null,
                all([(404, "SUBSCRIPTION_NOT_FOUND"), (200, NONE), UNAUTHORIZED]),
            ),
            call(
                "PUT",
                format!("{registry}/g/heartbeat?tenant=globex"),
                Value::Null,
                all([FORBIDDEN, (200, NONE), UNAUTHORIZED]),
            ),
            // Idempotent, and without effect on what is another's: `wide` still finds its own afterwards.
            call(
                "DELETE",
                format!("{registry}/w?tenant=acme&gatewayId=wide"),
                Value::Null,
                [nobody[0], nobody[1], FORBIDDEN, (204, NONE), UNAUTHORIZED],
            ),
            call(
                "DELETE",
                "/internal/v1/gateways/wide/subscriptions",
                Value::Null,
                all([FORBIDDEN, (200, NONE), (200, NONE)]),
            ),
            call("DELETE", document, Value::Null, admin_only),
        ] {
            let callers = [None, Some("stranger"), Some(EDGE), Some(WIDE), Some(ADMIN)];
            for (token, (status, code)) in callers.into_iter().zip(answers) {
                let text = if body.is_null() { String::new() } else { body.to_string() };
                let answer = setup.api().with_token(token).call(method, &path, text).await;
                assert_eq!(answer.0, status, "{method} {path} with {token:?}: {answer:?}");
                if !code.is_empty() {
                    assert_eq!(answer.1["code"], code, "{method} {path} with {token:?}: {answer:?}");
                    assert!(answer.1["message"].as_str().is_some_and(|text| !text.is_empty()), "{answer:?}");
                }
            }
        }
        // Health is for everybody, and says nothing of the above.
        assert_eq!(setup.api().call("GET", "/health/live", "").await.0, 200);
        assert_eq!(setup.api().call("GET", "/health", "").await.0, 200);
        let topology = setup.api().with_token(Some(ADMIN)).topology().await;
        assert_eq!(topology["subscriptions"]["by_gateway"], json!({"edge": 1}), "{topology}");
        node.stop().await;
    });
}

#[test]
fn without_an_admin_token_nobody_is_the_administrator() {
    block_on(async {
        let setup = closed(Runtime::Tokio, false);
        let node = Running::start(&setup).await;
        for token in [None, Some(EDGE), Some(WIDE), Some("")] {
            for path in ["/v1/topology", "/metrics", "/v1/documents/acme/rooms/1"] {
                let (status, answer) = setup.api().with_token(token).call("GET", path, "").await;
                assert!(status == 401 || status == 403, "{path} with {token:?}: {status} {answer}");
            }
        }
        node.stop().await;
    });
}

#[test]
fn an_odd_authorization_is_unauthorized() {
    block_on(async {
        let setup = closed(Runtime::Tokio, true);
        let node = Running::start(&setup).await;
        for header in ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", EDGE, "Bearer a b c", "Bearer \u{e9}"] {
            let request = reqwest::Client::new()
                .post(format!("{}/internal/v1/subscriptions", setup.url()))
                .header("authorization", reqwest::header::HeaderValue::from_bytes(header.as_bytes()).unwrap())
                .body("{}");
            let response = request.send().await.unwrap();
            assert_eq!(response.status().as_u16(), 401, "{header:?}");
            let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            assert_eq!(body["code"], "UNAUTHORIZED", "{header:?}: {body}");
        }
        node.stop().await;
    });
}

#[test]
fn another_certificate_than_the_pinned_one_is_not_talked_to() {
    block_on(async {
        let setup = Setup::new(Runtime::Tokio);
        let node = Running::start(&setup).await;
        let connected = setup.gateway("edge", &"ab".repeat(32)).token("a secret").connect().await;
        assert!(matches!(connected.err(), Some(Error::Terminal(_))));
        node.stop().await;
    });
}
