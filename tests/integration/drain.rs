//! A node that is told to stop: whom it refuses, what it waits for, what it leaves, and what a second signal does.

use std::process::Command;

use serde_json::{Value, json};
use streamer_gateway::{AppEvent, Event, Gateway, Subscription};

use crate::support::{
    Runtime,
    api::Api,
    block_on,
    gateway::{next_change, number, wait_live},
    on_both_runtimes,
    process::{BINARY, NodeProcess},
    setup::Setup,
    until, within,
};

on_both_runtimes!(what_was_read_is_flushed_before_it_ends, who_is_asked_to_leave_is_served_until_then, a_second_signal);

const CHANGES: i64 = 12;

/// A node's process whose stopping takes so long.
async fn start(setup: &Setup, spread: &str, flush: &str) -> NodeProcess {
    let times = format!("shutdown_spread = \"{spread}\"\nshutdown_flush = \"{flush}\"");
    let text = setup.config_text().replace("shutdown_flush = \"1s\"", &times);
    let mut process = NodeProcess::spawn(setup.folder(), &text);
    process.answers(&setup.api(), "/health/ready").await;
    process
}

async fn subscribe(setup: &Setup, fingerprint: &str) -> Gateway {
    let gateway = setup.gateway("edge", fingerprint).manual_ack().connect().await.unwrap();
    gateway.subscribe(Subscription::new("acme", "things").id("things")).unwrap();
    wait_live(&gateway, 1).await;
    gateway
}

async fn write(api: &Api, numbers: std::ops::RangeInclusive<i64>) {
    api.put_all(numbers.map(|n| ("acme", "things", "d".to_owned(), json!({"n": n})))).await;
}

async fn is_stopping(api: &Api) {
    until("the node says that it is stopping", async || {
        let (status, body) = api.call("GET", "/health/ready", "").await;
        let reasons = body["reasons"].as_array().cloned().unwrap_or_default();
        (status == 503 && reasons.contains(&json!("the node is stopping"))).then_some(())
    })
    .await;
}

/// What `streamer checkpoint show --json` prints.
fn checkpoint(setup: &Setup) -> Value {
    let file = setup.folder().join("streamer.toml");
    let output = Command::new(BINARY).args(["checkpoint", "show", "--json", "-c"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn what_was_read_is_flushed_before_it_ends(runtime: Runtime) {
    let setup = Setup::new(runtime);
    // Nobody is asked to leave, so that the Gateway is there to be waited for.
    let mut process = start(&setup, "0s", "600s").await;
    let fingerprint = setup.api().fingerprint().await;
    let mut gateway = subscribe(&setup, &fingerprint).await;
    write(&setup.api(), 1..=CHANGES).await;
    let mut events = Vec::new();
    let is_last = |event: &Event| matches!(&event.what, AppEvent::Change(change) if number(change) == CHANGES);
    while !events.last().is_some_and(is_last) {
        events.push(within("a change", gateway.next()).await.expect("it goes on"));
    }
    process.signal("TERM");
    is_stopping(&setup.api()).await;
    assert!(!process.has_ended(), "what was delivered isn't done with");
    events.into_iter().for_each(|event| event.ack());
    let status = process.end().await;
    assert_eq!(status.code(), Some(0), "{status}");
    let kept = checkpoint(&setup);
    let time = kept["checkpoint"]["backends"][0]["time"].as_u64().unwrap();
    assert!(time >= CHANGES as u64, "{kept}");
    assert_eq!(kept["checkpoint"]["gateways"], json!(["edge"]));
    gateway.close().await;
}

async fn who_is_asked_to_leave_is_served_until_then(runtime: Runtime) {
    let setup = Setup::new(runtime).with("[ingest]\nregistration_grace = \"60s\"\n");
    let process = start(&setup, "600s", "600s").await;
    let fingerprint = setup.api().fingerprint().await;
    let mut gateway = subscribe(&setup, &fingerprint).await;
    process.signal("TERM");
    is_stopping(&setup.api()).await;
    // What is new is refused: over HTTP, as a session, and as a subscription of a session that is there.
    let body = json!({"gatewayId": "edge", "tenant": "acme", "collection": "other", "subscriptionId": "x"}).to_string();
    let (status, answer) = setup.api().call("POST", "/internal/v1/subscriptions", body).await;
    assert_eq!((status, &answer["code"]), (503, &json!("SHUTTING_DOWN")), "{answer}");
    let late = setup.gateway("late", &fingerprint).connect_timeout(std::time::Duration::from_secs(1)).connect().await;
    let late = late.err().expect("nobody is let in").to_string();
    assert!(late.contains("shutting down") || late.contains("ShuttingDown"), "{late}");
    gateway.subscribe(Subscription::new("acme", "other").id("other")).unwrap();
    // What was there is served on: its session has a random point within ten minutes to leave at. Where that came at once, as it may,
    // this is delivered after the restart.
    write(&setup.api(), 1..=CHANGES).await;
    process.signal("INT");
    let status = process.end().await;
    assert_eq!(status.code(), Some(130), "{status}");
    // Everything comes, once, and what was refused is live.
    let process = start(&setup, "100ms", "1s").await;
    write(&setup.api(), CHANGES + 1..=2 * CHANGES).await;
    for n in 1..=2 * CHANGES {
        assert_eq!(number(&next_change(&mut gateway, "a change").await), n);
    }
    wait_live(&gateway, 2).await;
    assert_eq!(gateway.status().counters.resyncs, 0);
    // The Gateway leaves by itself within the time given: nothing is waited for beyond that.
    let status = process.terminate().await;
    assert_eq!(status.code(), Some(0), "{status}");
    gateway.close().await;
}

async fn a_second_signal(runtime: Runtime) {
    let setup = Setup::new(runtime).with("[ingest]\nregistration_grace = \"60s\"\n");
    let mut process = start(&setup, "0s", "600s").await;
    let fingerprint = setup.api().fingerprint().await;
    let mut gateway = subscribe(&setup, &fingerprint).await;
    write(&setup.api(), 1..=CHANGES).await;
    // A third is done with, a third is with the application, a third is wherever it is.
    let mut taken = 0;
    let mut unacked = Vec::new();
    while taken < 2 * CHANGES / 3 {
        let event = within("a change", gateway.next()).await.expect("it goes on");
        let AppEvent::Change(change) = &event.what else { continue };
        taken += 1;
        assert_eq!(number(change), taken);
        if taken <= CHANGES / 3 {
            event.ack();
        } else {
            unacked.push(event);
        }
    }
    process.signal("TERM");
    is_stopping(&setup.api()).await;
    assert!(!process.has_ended());
    process.signal("TERM");
    let status = process.end().await;
    assert_eq!(status.code(), Some(143), "{status}");
    let process = start(&setup, "0s", "1s").await;
    write(&setup.api(), CHANGES + 1..=2 * CHANGES).await;
    for n in taken + 1..=2 * CHANGES {
        assert_eq!(number(&next_change(&mut gateway, "a change").await), n);
    }
    assert_eq!(gateway.status().counters.resyncs, 0);
    gateway.close().await;
    drop(process);
}

#[test]
fn nobody_is_waited_for_where_nobody_is() {
    block_on(async {
        let setup = Setup::new(Runtime::Tokio);
        // It would be an hour.
        let process = start(&setup, "30m", "10m").await;
        let status = process.terminate().await;
        assert_eq!(status.code(), Some(0), "{status}");
    });
}
