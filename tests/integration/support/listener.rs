//! A Gateway as its application sees it: it subscribes, and writes down what it is told, in order.
//!
//! Invariant: what was not acked when the application is restarted has not been kept by it, so it is forgotten here too.

use serde_json::Value;
use streamer_gateway::{AppEvent, Event, Gateway, GatewayHandle, SavedPositions, Subscription};
use tokio::{sync::watch, task::JoinHandle};
use wire::{Position, SubscribeItem, SubscriptionKey};
use workload::GeneratedSubscription;

use super::{node::Place, within};

/// What the application does with what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acks {
    /// The SDK acks when the next item is asked for.
    Automatic,
    ByHand,
}

pub(crate) struct Listener {
    pub(crate) name: String,
    acks: Acks,
    subscriptions: Vec<Subscription>,
    handle: GatewayHandle,
    items: flume::Receiver<AppEvent>,
    holding: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    /// Everything so far, of all processes that this Gateway has been.
    told: Vec<AppEvent>,
    /// Changes that earlier processes were told and did not keep.
    pub(crate) forgotten: usize,
}

impl Listener {
    pub(crate) async fn connect(place: &Place, name: &str, acks: Acks, subscriptions: Vec<Subscription>) -> Self {
        Self::start(place, name, acks, subscriptions, SavedPositions::default(), Vec::new()).await
    }

    async fn start(
        place: &Place,
        name: &str,
        acks: Acks,
        subscriptions: Vec<Subscription>,
        saved: SavedPositions,
        told: Vec<AppEvent>,
    ) -> Self {
        let mut builder = Gateway::builder().gateway(name).fingerprint(&place.fingerprint).resume_from(saved);
        for address in &place.addresses {
            builder = builder.address(address);
        }
        if acks == Acks::ByHand {
            builder = builder.manual_ack();
        }
        for subscription in &subscriptions {
            builder = builder.subscription(subscription.clone());
        }
        let gateway = builder.connect().await.unwrap_or_else(|error| panic!("{name} can't connect: {error}"));
        let handle = gateway.handle();
        let (to_test, items) = flume::unbounded();
        let (holding, held) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(listen(gateway, acks, to_test, held, stopped));
        let name = name.to_owned();
        Self { name, acks, subscriptions, handle, items, holding, stop, task, told, forgotten: 0 }
    }

    pub(crate) fn handle(&self) -> &GatewayHandle {
        &self.handle
    }

    /// Everything that the application was told so far.
    pub(crate) fn told(&mut self) -> &[AppEvent] {
        self.told.extend(self.items.try_iter());
        &self.told
    }

    /// Acks by hand are held back, or given for all that was held.
    pub(crate) fn hold(&self, hold: bool) {
        assert_eq!(self.acks, Acks::ByHand, "{} acks by itself", self.name);
        self.holding.send_replace(hold);
    }

    /// Whether every subscription is live.
    pub(crate) fn is_live(&self) -> bool {
        self.subscriptions.iter().all(|subscription| self.handle.is_live(&subscription.key()))
    }

    /// Subscriptions whose position does not yet cover `position`.
    pub(crate) fn behind(&self, position: &Position) -> Vec<SubscriptionKey> {
        let saved = self.handle.positions();
        let keys = self.subscriptions.iter().map(Subscription::key);
        keys.filter(|key| !saved.get(key).is_some_and(|positions| positions.covers(position))).collect()
    }

    /// Ends the application and starts it again from the positions that it kept, which go through JSON on the way.
    pub(crate) async fn restart(mut self, place: &Place) -> Self {
        let saved = self.end().await;
        let text = serde_json::to_string(&saved).expect("positions become JSON");
        let saved: SavedPositions = serde_json::from_str(&text).expect("and come back");
        let Self { name, acks, subscriptions, mut told, forgotten, .. } = self;
        let before = told.len();
        told.retain(|event| match event {
            AppEvent::Change(change) => saved.get(change.subscription()).is_some_and(|p| p.covers(&change.id())),
            _ => true,
        });
        let forgotten = forgotten + before - told.len();
        Self { forgotten, ..Self::start(place, &name, acks, subscriptions, saved, told).await }
    }

    /// Ends the application. Its last positions.
    pub(crate) async fn end(&mut self) -> SavedPositions {
        let saved = self.handle.positions();
        self.stop.send_replace(true);
        within("the end of a Gateway", &mut self.task).await.expect("its task does not panic");
        self.told();
        saved
    }
}

async fn listen(
    mut gateway: Gateway,
    acks: Acks,
    to_test: flume::Sender<AppEvent>,
    mut held: watch::Receiver<bool>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut kept: Vec<Event> = Vec::new();
    loop {
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => break,
            changed = held.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            event = gateway.next() => {
                let Some(event) = event else { break };
                if to_test.send(event.what.clone()).is_err() {
                    break;
                }
                if acks == Acks::ByHand {
                    kept.push(event);
                }
            }
        }
        if !*held.borrow() {
            kept.drain(..).for_each(Event::ack);
        }
    }
    gateway.close().await;
}

/// A generated subscription through the SDK's own interface.
pub(crate) fn to_sdk(generated: &GeneratedSubscription) -> Subscription {
    from_item(&generated.to_item())
}

/// What the protocol carries, through the SDK's own interface.
pub(crate) fn from_item(item: &SubscribeItem) -> Subscription {
    let SubscribeItem { key, collection, filters, expr, transitions, .. } = item;
    let mut subscription = Subscription::new(&key.tenant, collection).id(&key.id).transitions(*transitions);
    let filters: Vec<Value> =
        if filters.is_empty() { Vec::new() } else { serde_json::from_str(filters).expect("filters are JSON") };
    for filter in filters {
        let text = |name: &str| filter[name].as_str().expect("field and op are strings");
        subscription = subscription.filter(text("field"), text("op"), filter["value"].clone());
    }
    if expr.is_empty() { subscription } else { subscription.expr(expr) }
}
