//! A server, a stock client, three Gateways, and what each of these must be told.

use std::collections::{BTreeMap, HashMap};

use bson::Document;
use mongodb::Collection;
use streamer_gateway::{AppEvent, Subscription};
use wire::{BackendId, Certainty, Position, SubscriptionKey, Transition};
use workload::{
    GeneratedSubscription, Generator, Oracle, OracleChange, Profile,
    generate::gateway_name,
    oracle::{ChangeKind, Namespace},
};

use super::{
    super::support::{
        database::TestServer,
        listener::{Acks, Listener, to_sdk},
        node::{Place, Settings},
        wait_for,
    },
    layout::Layout,
    observer::Observer,
    writes::Client,
};

/// The name of the node's backend.
pub(super) const BACKEND: &str = "main";

/// Every op four times.
const GENERATED: usize = 4 * workload::generate::OPS.len();

/// One delivery, as it must be, or as it was.
type Told = (Position, Transition, Certainty);

/// A Gateway's name and the key of one of its subscriptions.
pub(super) type Subscriber = (String, SubscriptionKey);

pub(super) struct World {
    pub(super) server: TestServer,
    pub(super) layout: Layout,
    pub(super) client: Client,
    pub(super) subscriptions: Vec<GeneratedSubscription>,
    pub(super) listeners: Vec<Listener>,
    observer: Observer,
    oracle: Oracle,
    expected: BTreeMap<Subscriber, Vec<Told>>,
    changes: HashMap<Position, OracleChange>,
    last: Option<Position>,
}

impl World {
    /// Everything but the node and the Gateways. `None` where there is no server.
    pub(super) async fn new(test: &str, profile: Profile) -> Option<Self> {
        let server = TestServer::new(test).await?;
        let layout = Layout::create(&server, profile.clone()).await;
        let generator = Generator::new(profile);
        let generated = generator.subscriptions(GENERATED);
        let subscriptions: Vec<_> = generated.into_iter().chain(everything(&layout.profile)).collect();
        let subscriptions: Vec<_> = subscriptions.into_iter().map(|one| layout.place(one)).collect();
        let mut oracle = Oracle::new(layout.profile.preset);
        for subscription in &subscriptions {
            oracle.subscribe(subscription.to_oracle()).expect("the oracle reads generated subscriptions");
        }
        let observer = Observer::start(&server.client, &layout).await;
        let client = Client::new(server.client.clone(), &generator);
        let (listeners, expected, changes) = (Vec::new(), BTreeMap::new(), HashMap::new());
        Some(Self { server, layout, client, subscriptions, listeners, observer, oracle, expected, changes, last: None })
    }

    pub(super) fn settings(&self, folder: &std::path::Path, shards: usize) -> Settings {
        let Self { server, layout, .. } = self;
        Settings {
            data_dir: folder.join("data"),
            shards: super::super::support::cores(shards),
            preset: match layout.profile.preset {
                workload::Preset::Syntrix => "syntrix",
                workload::Preset::Plain => "plain",
            },
            backends: format!(
                "[[backends]]\nname = {BACKEND:?}\nkind = \"mongodb\"\nuri = {:?}\n{}",
                server.uri,
                layout.scope()
            ),
            http_port: 0,
            quic_port: 0,
        }
    }

    /// Connects all Gateways and waits until every subscription is live.
    pub(super) async fn connect(&mut self, place: &Place, acks: [Acks; 3]) {
        for (index, acks) in acks.into_iter().enumerate() {
            let mine = self.subscriptions.iter().filter(|subscription| subscription.gateway == index);
            let mine: Vec<Subscription> = mine.map(to_sdk).collect();
            self.listeners.push(Listener::connect(place, &gateway_name(index), acks, mine).await);
        }
        self.wait_live().await;
        let live_from = self.listeners[0].told().iter().find_map(|event| match event {
            AppEvent::Live { live_from, .. } => live_from.get(BackendId::of_name(BACKEND)).copied(),
            _ => None,
        });
        let position = live_from.expect("a live subscription has a position of the backend");
        self.observer.number_as(position.backend, position.lineage);
    }

    pub(super) async fn wait_live(&mut self) {
        for listener in &self.listeners {
            let missing = || format!("{}: live subscriptions: {:?}", listener.name, listener.handle().status());
            wait_for(|| listener.is_live().then_some(()), missing).await;
        }
    }

    /// Reads that many changes and notes what must follow from each.
    pub(super) async fn observe(&mut self, events: usize) {
        for _ in 0..events {
            let change = self.observer.next().await;
            for expected in self.oracle.expect(&change) {
                let subscriber = (expected.gateway, expected.key);
                self.expected.entry(subscriber).or_default().push((
                    expected.id,
                    expected.transition,
                    expected.certainty,
                ));
            }
            self.last = Some(change.id);
            self.changes.insert(change.id, change);
        }
    }

    /// Reads that many changes only to know the last of them.
    pub(super) async fn pass_over(&mut self, events: usize) {
        for _ in 0..events {
            self.last = Some(self.observer.next().await.id);
        }
    }

    /// Subscriptions that a document matches which is stored like this.
    pub(super) fn matching(&self, home: &Collection<Document>, document: &Document) -> Vec<Subscriber> {
        let namespace = home.namespace();
        let change = OracleChange {
            id: self.last.expect("something was written"),
            kind: ChangeKind::Insert,
            namespace: Namespace { database: namespace.db, collection: namespace.coll },
            stored_id: document.get("_id").cloned().expect("stored documents have an id"),
            before: None,
            after: Some(document.clone()),
        };
        self.oracle.expect(&change).into_iter().map(|expected| (expected.gateway, expected.key)).collect()
    }

    /// Waits until every Gateway has been told at least as much as it must be.
    pub(super) async fn wait_delivered(&mut self) {
        let Self { listeners, expected, .. } = self;
        for listener in listeners {
            let mine = expected.iter().filter(|((gateway, _), _)| *gateway == listener.name);
            let count: usize = mine.map(|(_, told)| told.len()).sum();
            let missing = format!("{}: {count} changes", listener.name);
            let told = |listener: &mut Listener| listener.told().iter().filter(|event| is_change(event)).count();
            let last = std::cell::Cell::new(0);
            let enough = || {
                last.set(told(listener));
                (last.get() >= count).then_some(())
            };
            wait_for(enough, || format!("{missing}, {} have come", last.get())).await;
        }
    }

    /// Waits until every subscription knows that it has everything up to the last change. Documents may then be written again, and
    /// nothing late can come.
    pub(super) async fn wait_settled(&mut self) {
        let Some(last) = self.last else { return };
        for listener in &self.listeners {
            let behind = || listener.behind(&last);
            let missing = || {
                let behind = behind();
                let positions = behind.first().and_then(|key| listener.handle().positions_of(key));
                format!(
                    "{}: positions up to {last:?} of {} subscriptions, such as {:?} at {positions:?}",
                    listener.name,
                    behind.len(),
                    behind.first()
                )
            };
            wait_for(|| behind().is_empty().then_some(()), missing).await;
        }
        self.client.all_were_read();
    }

    /// Writes, and waits until all of it has been delivered.
    pub(super) async fn round(&mut self, writes: usize) {
        let mut events = self.client.write(&self.layout, writes).await;
        events += self.client.update_many(&self.layout, 5).await;
        self.observe(events).await;
        self.wait_delivered().await;
        // Whoever watches everything has now got everything, so the node has looked up whatever it will.
        self.client.all_were_read();
    }

    /// Compares, for every subscription, what it was told with what it must be told: the same changes in the same order,
    /// each once, with the right documents, and nothing else.
    pub(super) async fn check(&mut self) {
        self.wait_delivered().await;
        self.wait_settled().await;
        let mut told: BTreeMap<Subscriber, Vec<Told>> = BTreeMap::new();
        for listener in &mut self.listeners {
            let name = listener.name.clone();
            for event in listener.told() {
                let change = match event {
                    AppEvent::Change(change) => change,
                    AppEvent::Live { .. } | AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => continue,
                    other => panic!("{name} was told {other:?}"),
                };
                let subscriber = (name.clone(), change.subscription().clone());
                let document = change.document().map(|raw| Document::try_from(raw).expect("it is BSON"));
                let source = self.changes.get(&change.id());
                let source = source.unwrap_or_else(|| panic!("{subscriber:?} was told of no change: {change:?}"));
                let image = match change.transition() {
                    Transition::Enter | Transition::Update => &source.after,
                    Transition::Leave if source.before.is_some() => &source.before,
                    Transition::Leave => &source.after,
                };
                assert_eq!(&document, image, "the document in {change:?} to {subscriber:?}, for {source:?}");
                let one = (change.id(), change.transition(), change.certainty());
                told.entry(subscriber).or_default().push(one);
            }
        }
        let subscribers: std::collections::BTreeSet<_> = told.keys().chain(self.expected.keys()).cloned().collect();
        let none = Vec::new();
        for subscriber in subscribers {
            let (told, expected) =
                (told.get(&subscriber).unwrap_or(&none), self.expected.get(&subscriber).unwrap_or(&none));
            if let Some(at) = (0..told.len().max(expected.len())).find(|at| told.get(*at) != expected.get(*at)) {
                let known =
                    self.subscriptions.iter().find(|one| one.gateway_name() == subscriber.0 && one.key == subscriber.1);
                let change = [expected.get(at), told.get(at)].into_iter().flatten().map(|one| self.changes.get(&one.0));
                panic!(
                    "{subscriber:?}: delivery {at} of {} expected, {} told: expected {:?}, told {:?}\nsubscription {known:?}\nof the \
                     changes {:#?}",
                    expected.len(),
                    told.len(),
                    expected.get(at),
                    told.get(at),
                    change.collect::<Vec<_>>()
                );
            }
        }
    }

    /// What was exercised, by how often: a test that exercises little must not pass for a good one.
    pub(super) fn kinds(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for (_, transition, certainty) in self.expected.values().flatten() {
            *kinds.entry(format!("{transition:?}")).or_default() += 1;
            *kinds.entry(format!("{certainty:?}")).or_default() += 1;
        }
        for (id, change) in &self.changes {
            *kinds.entry(format!("{:?}", change.kind)).or_default() += 1;
            *kinds.entry("in a transaction".to_owned()).or_default() += usize::from(id.k > 1);
        }
        kinds
    }

    pub(super) async fn end(mut self) {
        for listener in &mut self.listeners {
            listener.end().await;
        }
        self.server.clean_up().await;
    }
}

pub(super) fn is_change(event: &AppEvent) -> bool {
    matches!(event, AppEvent::Change(_))
}

/// The first Gateway watches every collection as a whole, so that every change is delivered to somebody.
fn everything(profile: &Profile) -> Vec<GeneratedSubscription> {
    let places = (0..profile.tenants).flat_map(|t| (0..profile.collections).map(move |c| (t, c)));
    let watch = |(tenant, collection)| GeneratedSubscription {
        gateway: 0,
        key: SubscriptionKey { tenant: profile.tenant(tenant), id: format!("everything-{collection}") },
        collection: profile.collection(collection),
        filters: String::new(),
        expr: String::new(),
        transitions: true,
        op: "collection",
    };
    places.map(watch).collect()
}
