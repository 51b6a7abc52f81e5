use super::*;
use crate::{
    checkpoint::{BackendCheckpoint, FileStore},
    ingest::source::{
        Source,
        embedded::{DocumentWrite, EmbeddedSource, EmbeddedStore, StoreOptions},
    },
};

/// A configuration with an embedded store of ten offsets, and a checkpoint of it after offset 5.
struct World {
    folder: tempfile::TempDir,
    config: Config,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("[node]\ndata_dir = {:?}", folder.path().display().to_string());
        let config = Config::from_parts(None, &text, []).unwrap();
        let store = EmbeddedStore::open(folder.path().join("embedded"), StoreOptions::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let identity = runtime.block_on(async {
            let write = |n: i32| DocumentWrite::Put {
                tenant: "t".into(),
                collection: "c".into(),
                id: "d".into(),
                data: bson::doc! { "n": n },
            };
            store.write((0..10).map(write).collect()).await.unwrap();
            EmbeddedSource::new("embedded", store).identity().await.unwrap()
        });
        let world = Self { folder, config };
        let backend = BackendCheckpoint {
            name: "embedded".into(),
            lineage: identity.lineage.0,
            source: identity.description,
            time: 5,
            k: 1,
            token: Some(vec![5, 0, 0, 0, 0]),
        };
        world.store().save(&Checkpoint { backends: vec![backend], gateways: vec!["g1".into()] }).unwrap();
        world
    }

    fn store(&self) -> FileStore {
        let mut store = FileStore::in_data_folder(self.folder.path()).unwrap();
        store.load().unwrap();
        store
    }

    fn kept(&self) -> Option<Checkpoint> {
        self.store().load().unwrap()
    }

    fn set(&self, at: &str) -> Result<ExitCode, Failed> {
        set(&self.config, at.parse().unwrap(), None, || Ok(()))
    }
}

fn no() -> Result<(), Failed> {
    Err(Failed("no".into()))
}

#[test]
fn a_running_node_bars_every_change_and_so_does_a_no() {
    let world = World::new();
    let before = world.kept();
    let running = DataFolder::lock(world.folder.path()).unwrap();
    for outcome in [world.set("3"), reset(&world.config, || Ok(()))] {
        let Failed(barred) = outcome.unwrap_err();
        assert!(barred.contains("in use"), "{barred}");
    }
    drop(running);
    assert!(set(&world.config, At::Offset(3), None, no).is_err());
    assert!(reset(&world.config, no).is_err());
    assert_eq!(world.kept(), before);
    reset(&world.config, || Ok(())).unwrap();
    assert_eq!(world.kept(), None);
}

#[test]
fn a_place_within_the_history_is_set_and_one_outside_is_refused() {
    let world = World::new();
    world.set("3").unwrap();
    let kept = world.kept().unwrap();
    assert_eq!((kept.backends[0].time, kept.backends[0].k, &kept.backends[0].token), (3, 0, &None));
    assert_eq!(kept.gateways, ["g1"], "they are waited for as before");
    // The next one to be written is the last that can be named.
    world.set("11").unwrap();
    let Failed(ahead) = world.set("12").unwrap_err();
    assert!(ahead.contains("offset 12") && ahead.contains("ahead of the source's history"), "{ahead}");
    let Failed(kind) = world.set("now-5m").unwrap_err();
    assert!(kind.contains("backend \"embedded\"") && kind.contains("OFFSET"), "{kind}");
    let Failed(name) = set(&world.config, At::Offset(3), Some("other"), || Ok(())).unwrap_err();
    assert!(name.contains("no backend \"other\"; allowed: \"embedded\""), "{name}");
    assert_eq!(world.kept().unwrap().backends[0].time, 11);
}

#[test]
fn what_is_unreadable_can_be_reset() {
    let world = World::new();
    for slot in ["checkpoint-a", "checkpoint-b"] {
        std::fs::write(world.folder.path().join("checkpoint").join(slot), "rot").unwrap();
    }
    assert!(world.set("3").is_err());
    reset(&world.config, || Ok(())).unwrap();
    assert_eq!(world.kept(), None);
}

/// What is told of a move from `old` to `time`, with a source that answers as asked for.
fn told(config: &Config, old: Option<&BackendCheckpoint>, time: u64) -> Result<String, String> {
    let backend = &config.backends[0];
    let (source, _store) = open_source(backend).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = runtime.block_on(set::ask(&source, time))?;
    set::change(backend, time, old, &asked).map(|change| change.told)
}

#[test]
fn each_move_says_what_is_sent_again_or_skipped() {
    let world = World::new();
    let old = world.kept().unwrap().backends.remove(0);
    let told = |old: Option<&BackendCheckpoint>, time| told(&world.config, old, time).unwrap();
    let back = told(Some(&old), 3);
    assert!(back.contains("goes on at offset 3, before its first event") && back.contains("Sent again"), "{back}");
    assert!(back.contains("to offset 5, after it, which are 2 offsets"), "{back}");
    let forth = told(Some(&old), 9);
    assert!(
        forth.contains("Skipped: what happened after offset 5") && forth.contains("read again by catch-up"),
        "{forth}"
    );
    assert!(told(None, 3).contains("There was no checkpoint"));
    let other = BackendCheckpoint { lineage: 1, source: "a replica set".into(), ..old.clone() };
    let lineage = told(Some(&other), 3);
    assert!(lineage.contains("another source or pipeline (a replica set)") && lineage.contains("Resync"), "{lineage}");
    assert!(!back.contains("NOT CHECKED"), "{back}");
}

#[test]
fn a_source_that_cant_be_asked_is_said_so() {
    let text = "[mapping]\npreset = \"plain\"\n[[backends]]\nname = \"main\"\nkind = \"mongodb\"\n\
                uri = \"mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=1\"\n";
    let config = Config::from_parts(None, text, []).unwrap();
    let old =
        BackendCheckpoint { name: "main".into(), lineage: 1, source: "rs0".into(), time: 60 << 32, k: 1, token: None };
    let told = told(&config, Some(&old), 30 << 32 | 1).unwrap();
    assert!(told.contains("NOT CHECKED") && told.contains("Sent again") && told.contains("which is 30 s"), "{told}");
    let none = super::tests::told(&config, None, 30 << 32 | 1).unwrap_err();
    assert!(none.contains("can't be asked who it is"), "{none}");
}

#[test]
fn it_is_shown_for_people_and_for_programs() {
    let world = World::new();
    let store = world.store();
    let mut kept = world.kept().unwrap();
    let mongo = BackendCheckpoint { name: "gone".into(), time: 60 << 32, k: 1, ..kept.backends[0].clone() };
    kept.backends.push(mongo);
    let about = store.about();
    let now_ms = written_ms(&about).unwrap() + 61_000;
    let text = describe(&world.config, Some(&kept), &about, now_ms);
    for expect in [
        "/checkpoint, written 1 m 1 s ago (2",
        "backend \"embedded\": offset 5, after it; with a resume token\n  of embedded store ",
        "backend \"gone\": time 257698037760 (0x3c00000000), after its event 1 (not in the configuration)",
        "Gateways waited for at the next start (1): g1",
    ] {
        assert!(text.contains(expect), "{expect} is not in:\n{text}");
    }
    assert!(describe(&world.config, None, &about, now_ms).contains("no checkpoint: the next start reads from now"));
    let json = as_json(&world.config, Some(&kept), &about, now_ms).unwrap();
    assert_eq!((&json["store"], &json["age_ms"]), (&json!("file"), &json!(61_000)));
    let backend = &json["checkpoint"]["backends"][0];
    assert_eq!(
        (&backend["kind"], &backend["time"], &backend["token"]),
        (&json!("embedded"), &json!(5), &json!("0500000000"))
    );
    assert_eq!(as_json(&world.config, None, &about, now_ms).unwrap()["checkpoint"], Value::Null);
}
