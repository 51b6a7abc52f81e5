//! Three Gateways get exactly what the oracle says, in order, under both presets.

use workload::{Preset, Profile};

use super::{
    super::support::{
        listener::Acks,
        node::{place_of, stop},
    },
    world::World,
};

const ROUNDS: usize = 14;
const WRITES: usize = 25;
/// Of each collection: few, so that each lives through much.
const DOCUMENTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn syntrix() {
    exactly_what_the_oracle_says("mongodb::exact::syntrix", Profile { documents: DOCUMENTS, ..Profile::test(11) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain() {
    let profile = Profile { documents: DOCUMENTS, ..Profile::test(12) }.with_preset(Preset::Plain);
    exactly_what_the_oracle_says("mongodb::exact::plain", profile).await;
}

async fn exactly_what_the_oracle_says(test: &str, profile: Profile) {
    let preset = profile.preset;
    let Some(mut world) = World::new(test, profile).await else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let node = world.settings(folder.path(), 4).start_here().await;
    world.connect(&place_of(&node), [Acks::Automatic, Acks::ByHand, Acks::Automatic]).await;
    for _ in 0..ROUNDS {
        world.round(WRITES).await;
    }
    world.check().await;
    let kinds = world.kinds();
    let softly: &[&str] = if preset == Preset::Syntrix { &["Update(Set)", "Update(Cleared)"] } else { &[] };
    let wanted = ["Enter", "Leave", "Matched", "Unknown", "Insert", "Replace", "Delete", "in a transaction"];
    for kind in wanted.iter().chain(softly) {
        assert!(kinds.get(*kind).is_some_and(|count| *count > 3), "too few of {kind} to tell anything: {kinds:?}");
    }
    stop(node).await;
    world.end().await;
}
