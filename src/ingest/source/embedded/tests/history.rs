//! When a history ends and another begins, and how far back a place in it lies.

use wire::Lineage;

use super::*;

/// Opens a store that doesn't sync on a machine that was started under this name.
fn open_at_boot(folder: &Path, boot_id: &str) -> Arc<EmbeddedStore> {
    let options = StoreOptions { sync: false, boot_id: boot_id.into(), ..StoreOptions::default() };
    EmbeddedStore::open(folder, options).expect("it opens")
}

/// A copy of an open store's folder is what a machine that ends leaves behind.
fn pulled_plug(folder: &Path) -> tempfile::TempDir {
    let left = tempfile::tempdir().expect("a folder");
    copy(folder, left.path());
    left
}

#[tokio::test]
async fn an_unsynced_store_of_a_machine_that_ended_begins_a_new_history() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open_at_boot(folder.path(), "first");
    store.write(vec![put("m1", doc! { "n": 1 }), put("m2", doc! { "n": 2 })]).await.expect("written");
    let lineage = store.lineage();
    let left = pulled_plug(folder.path());
    drop(store);

    // Closed before the machine ended, and killed while it ran on: nothing was lost.
    let closed = open_at_boot(folder.path(), "second");
    assert_eq!((closed.lineage(), closed.durable_upto()), (lineage, 2));
    let left_of_process = pulled_plug(left.path());
    let killed = open_at_boot(left_of_process.path(), "first");
    assert_eq!((killed.lineage(), killed.durable_upto()), (lineage, 2));

    let ended = open_at_boot(left.path(), "second");
    assert_ne!(ended.lineage(), lineage);
    assert_eq!((ended.first_kept(), ended.durable_upto()), (3, 2), "the log of the old history is gone");
    assert!(ended.get("acme", "rooms/r1/messages", "m2").expect("readable").is_some(), "documents stay");
    ended.write(vec![put("m3", doc! {})]).await.expect("written");
    assert_eq!(offsets(&ended, Start::At { time: 3 }).await, [3]);
    let now = ended.lineage();
    drop(ended);
    assert_eq!(open_at_boot(left.path(), "third").lineage(), now, "it was closed");
}

#[tokio::test]
async fn a_store_that_ends_before_what_was_read_begins_a_new_history() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.write(vec![put("m1", doc! {}), put("m2", doc! {})]).await.expect("written");
    let source = EmbeddedSource::new("test", store.clone());
    let lineage = store.lineage();
    let at = |time, k| Position { backend: source.backend(), lineage, time, k };
    // All of it was read; the place before the next event; another history's.
    let other = Position { lineage: Lineage(lineage.0 ^ 1), ..at(9, 1) };
    for reached in [at(2, 1), at(3, 0), other] {
        source.has_reached(reached).await.expect("nothing to do");
        assert_eq!(source.identity().await.expect("told").lineage, lineage, "{reached}");
    }
    source.has_reached(at(3, 1)).await.expect("a new history is begun");
    assert_ne!(source.identity().await.expect("told").lineage, lineage);
    assert_eq!(offsets(&store, Start::Now).await, [0_u64; 0]);
    store.write(vec![put("m3", doc! {})]).await.expect("written");
    assert_eq!(offsets(&store, Start::At { time: 3 }).await, [3]);
}

#[tokio::test]
async fn the_time_between_two_places_is_that_between_their_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let now = Arc::new(AtomicI64::new(1_000));
    let clock = Clock::new({
        let now = now.clone();
        move || now.load(Ordering::Relaxed)
    });
    let retention = Retention { events: 3, ..Retention::default() };
    let store = open_with(folder.path(), retention, clock);
    for id in ["m1", "m2", "m3", "m4"] {
        store.write(vec![put(id, doc! {})]).await.expect("written");
        now.fetch_add(60_000, Ordering::Relaxed);
    }
    // What is too old goes after a write was answered; the next answer comes after that.
    store.write(vec![delete("none")]).await.expect("nothing to do");
    let source = EmbeddedSource::new("test", store);
    assert_eq!(source.between(2, 4), Duration::from_secs(120));
    assert_eq!(source.between(4, 4), Duration::ZERO);
    assert_eq!(source.between(3, 5), Duration::ZERO, "nothing was written after it");
    assert_eq!(source.between(1, 4), Duration::MAX, "it was trimmed");
    assert_eq!(source.between(0, 4), Duration::MAX);
}
