//! What tests ask of a Gateway by the item.

use streamer_gateway::{AppEvent, Change, Gateway, SubscriptionKey};

use super::{until, within};

pub(crate) fn key(tenant: &str, id: &str) -> SubscriptionKey {
    SubscriptionKey { tenant: tenant.into(), id: id.into() }
}

/// Waits until this many subscriptions are live, without taking what is delivered.
pub(crate) async fn wait_live(gateway: &Gateway, count: usize) {
    let what = format!("{count} subscriptions are live");
    until(&what, async || {
        assert_eq!(gateway.error(), None, "the Gateway has ended");
        (gateway.status().live == count).then_some(())
    })
    .await;
}

/// The next change. News of subscriptions that are live again are passed over; anything else is a failure.
pub(crate) async fn next_change(gateway: &mut Gateway, what: &str) -> Change {
    loop {
        match next_event(gateway, what).await {
            AppEvent::Change(change) => return change,
            AppEvent::Live { .. } | AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => {}
            other => panic!("{what}: {other:?} came instead"),
        }
    }
}

/// The next item of any kind.
pub(crate) async fn next_event(gateway: &mut Gateway, what: &str) -> AppEvent {
    match within(what, gateway.next()).await {
        Some(event) => event.what,
        None => panic!("{what}: the Gateway has ended: {:?}", gateway.error()),
    }
}

/// The number that a test has put into a document's field `n`.
pub(crate) fn number(change: &Change) -> i64 {
    let document = change.flat().unwrap_or_else(|| panic!("{change:?} shows no document"));
    match document.get("n") {
        Some(bson::Bson::Int32(n)) => i64::from(*n),
        Some(bson::Bson::Int64(n)) => *n,
        other => panic!("n is {other:?}"),
    }
}
