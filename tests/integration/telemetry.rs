//! Traces of a real node, at a collector that is as small as can be; and what is told by tenant and collection.

use axum::{Router, body::Bytes, routing::post};
use serde_json::{Value, json};
use streamer_gateway::Subscription;

use crate::support::{
    Runtime, block_on,
    gateway::{next_change, wait_live},
    on_both_runtimes,
    setup::{Running, Setup},
    until, within,
};

on_both_runtimes!(a_delivered_change_is_a_trace);

async fn a_delivered_change_is_a_trace(runtime: Runtime) {
    let (got, requests) = flume::unbounded();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let take = move |body: Bytes| {
        let _ = got.send(serde_json::from_slice::<Value>(&body).unwrap());
        async {}
    };
    let router = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });

    let setup = Setup::new(runtime).with(&format!("[telemetry]\notlp_endpoint = \"{url}\"\n"));
    let node = Running::start(&setup).await;
    let mut gateway = setup.gateway("g", &node.fingerprint()).connect().await.unwrap();
    gateway.subscribe(Subscription::new("acme", "rooms").id("s")).unwrap();
    wait_live(&gateway, 1).await;
    setup.api().put("acme", "rooms", "1", json!({"n": 1})).await;
    let change = next_change(&mut gateway, "a change").await;
    // Asking for the next one says that this one is done.
    let asking = tokio::spawn(async move { gateway.next().await });
    let request = within("a trace", requests.recv_async()).await.unwrap();
    let spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["change", "ingest", "queue", "match", "send", "ack"]);
    let position = spans[0]["attributes"][1]["value"]["stringValue"].as_str();
    assert_eq!(position, Some(change.id().to_string().as_str()));
    asking.abort();
    node.stop().await;
}

#[test]
fn names_are_told_on_an_endpoint_of_their_own() {
    block_on(async {
        let setup = Setup::new(Runtime::Tokio);
        let node = Running::start(&setup).await;
        let mut gateway = setup.gateway("g", &node.fingerprint()).connect().await.unwrap();
        for (tenant, id) in [("acme", "a"), ("acme", "b"), ("globex", "c")] {
            gateway.subscribe(Subscription::new(tenant, "rooms").id(id)).unwrap();
        }
        wait_live(&gateway, 3).await;
        let api = setup.api();
        for number in 0..20 {
            api.put("acme", "rooms", &number.to_string(), json!({"n": number})).await;
            next_change(&mut gateway, "a change").await;
        }
        let names = until("the hot collection is told", async || {
            let (status, text) = api.call("GET", "/metrics/tenants", "").await;
            assert_eq!(status, 200);
            let text = text.as_str().unwrap().to_owned();
            text.contains("streamer_hot_collection_changes{tenant=\"acme\",collection=\"rooms\"}").then_some(text)
        })
        .await;
        for line in [
            "streamer_tenant_subscriptions{tenant=\"acme\"} 2",
            "streamer_tenant_subscriptions{tenant=\"globex\"} 1",
            "streamer_gateway_subscriptions{gateway=\"g\"} 3",
            "streamer_tenants_left_out 0",
        ] {
            assert!(names.lines().any(|found| found == line), "{line} is not in\n{names}");
        }
        let (_, others) = api.call("GET", "/metrics", "").await;
        assert!(!others.as_str().unwrap().contains("acme"), "a tenant's name is where there may be too many");
        gateway.close().await;
        node.stop().await;
    });
}
