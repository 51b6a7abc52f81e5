//! Documents that are written again before anybody has looked them up: the node may then deliver images that are newer than their
//! events, but what it delivers last of a document is what the database holds.

use std::collections::BTreeMap;

use bson::{Bson, Document, doc};
use futures::TryStreamExt;
use streamer_gateway::{AppEvent, Transition};
use workload::{Preset, Profile};

use super::{
    super::support::{
        listener::Acks,
        node::{place_of, stop},
    },
    world::{Subscriber, World},
};

const ROUNDS: usize = 10;
const WRITES: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn syntrix() {
    the_last_state_is_the_databases("mongodb::races::syntrix", Profile::test(21)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain() {
    the_last_state_is_the_databases("mongodb::races::plain", Profile::test(22).with_preset(Preset::Plain)).await;
}

async fn the_last_state_is_the_databases(test: &str, profile: Profile) {
    // What reads the change itself says nothing of the state.
    let profile = Profile { reads_change: false, documents: 4, ..profile };
    let Some(mut world) = World::new(test, profile).await else { return };
    world.client.race();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let node = world.settings(folder.path(), 4).start_here().await;
    world.connect(&place_of(&node), [Acks::Automatic; 3]).await;
    let mut events = 0;
    for _ in 0..ROUNDS {
        events += world.client.write(&world.layout, WRITES).await;
        events += world.client.update_many(&world.layout, 8).await;
    }
    world.pass_over(events).await;
    world.wait_settled().await;

    let mut seen = states(&mut world);
    let mut compared = 0;
    for home in world.layout.homes() {
        let stored = home.find(doc! {}).await.expect("the server finds documents");
        let stored: Vec<Document> = stored.try_collect().await.expect("all of them");
        // A soft-deleted document is not there for subscribers.
        for document in stored.iter().filter(|document| !is_marked(document)) {
            let id = document.get("_id").expect("stored documents have an id").to_string();
            for subscriber in world.matching(&home, document) {
                let last = seen.get_mut(&subscriber).and_then(|state| state.remove(&id));
                assert_eq!(last.as_ref(), Some(document), "the last that {subscriber:?} was told of {id}");
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "{compared} documents of subscriptions are too few to tell anything");
    // With images of what was before, whatever no longer matches was told to have left.
    for subscription in &world.subscriptions {
        let mut left = seen.remove(&(subscription.gateway_name(), subscription.key.clone())).unwrap_or_default();
        // An update of a document that is deleted softly is an update to subscribers, of a document that bears the mark.
        left.retain(|_, document| !is_marked(document));
        let told = subscription.transitions && world.layout.keeps_images(subscription);
        assert!(!told || left.is_empty(), "{subscription:?} still has what does not match: {left:#?}");
    }
    stop(node).await;
    world.end().await;
}

/// Whether it is deleted softly.
fn is_marked(document: &Document) -> bool {
    document.get_bool("deleted").unwrap_or(false)
}

/// What each subscription makes of what it was told: its documents, by id.
fn states(world: &mut World) -> BTreeMap<Subscriber, BTreeMap<String, Document>> {
    let mut states: BTreeMap<Subscriber, BTreeMap<String, Document>> = BTreeMap::new();
    for listener in &mut world.listeners {
        let name = listener.name.clone();
        for event in listener.told() {
            let change = match event {
                AppEvent::Change(change) => change,
                AppEvent::Live { .. } | AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => continue,
                other => panic!("{name} was told {other:?}"),
            };
            let document = change.document().map(|raw| Document::try_from(raw).expect("it is BSON"));
            let id = document.as_ref().and_then(|document| document.get("_id")).map(Bson::to_string);
            let state = states.entry((name.clone(), change.subscription().clone())).or_default();
            match (change.transition(), id, document) {
                (Transition::Leave, Some(id), _) => drop(state.remove(&id)),
                // Deleted from a collection without images: not even its id is known here.
                (Transition::Leave, None, _) => {}
                (_, Some(id), Some(document)) => drop(state.insert(id, document)),
                (transition, ..) => panic!("{transition:?} without a document: {change:?}"),
            }
        }
    }
    states
}
