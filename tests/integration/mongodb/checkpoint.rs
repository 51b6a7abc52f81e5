//! The checkpoint as a document of the test server: what is written, who may write it, and the commands.

use std::{path::Path, process::Command, time::Duration};

use bson::{Bson, Document, doc};
use mongodb::Collection;
use serde_json::Value;
use streamer::checkpoint::{
    BackendCheckpoint, Checkpoint, CheckpointError, CheckpointStore, FileStore, MongoPlace, MongoStore,
};

use super::super::support::{
    cores,
    database::{TestServer, create},
    node::Settings,
    process::{BINARY, NodeProcess, free_ports},
    until, wait_for,
};

fn at(time: u64) -> Checkpoint {
    let backend = BackendCheckpoint {
        name: "main".into(),
        lineage: u64::MAX,
        source: "somewhere".into(),
        time,
        k: 3,
        token: Some(vec![5, 0, 0, 0, 0]),
    };
    Checkpoint { backends: vec![backend], gateways: vec!["g1".into(), "g2".into()] }
}

fn place(server: &TestServer) -> MongoPlace {
    MongoPlace {
        uri: server.uri.clone(),
        database: server.database("kept").name().to_owned(),
        collection: "checkpoints".into(),
        node: "n1".into(),
    }
}

fn store(place: &MongoPlace, folder: &Path) -> MongoStore {
    MongoStore::new(place.clone(), Duration::from_millis(200), FileStore::open(folder).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_to_claim_it_is_the_one_that_writes() {
    let Some(server) = TestServer::new("mongodb::checkpoint::the_last_to_claim_it_is_the_one_that_writes").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let place = place(&server);
    let documents: Collection<Document> = server.database("kept").collection("checkpoints");

    let mut first = store(&place, folder.path());
    assert_eq!(first.load().unwrap(), None);
    assert_eq!(first.claim().unwrap(), None);
    // As cluster times will be from 2038 on.
    let time = 0xf000_0001_0000_0002;
    first.save(&at(time)).unwrap();
    first.save(&at(time + 1)).unwrap();
    let document = documents.find_one(doc! { "_id": "n1" }).await.unwrap().expect("it is there");
    assert_eq!(document.get_i64("seq").unwrap(), 3);
    let backend = document.get_array("backends").unwrap()[0].as_document().unwrap();
    assert_eq!(backend.get("time"), Some(&Bson::Timestamp(bson::Timestamp { time: 0xf000_0001, increment: 3 })));

    let mut second = store(&place, folder.path());
    assert_eq!(second.load().unwrap(), Some(at(time + 1)));
    assert_eq!(second.owned_elsewhere().unwrap(), None, "the first is silent");
    assert_eq!(second.claim().unwrap(), Some(at(time + 1)));
    let error = first.save(&at(time + 2)).unwrap_err();
    assert!(matches!(error, CheckpointError::TwoOwners { theirs: 2, ours: 1, .. }), "{error}");
    second.save(&at(time + 3)).unwrap();
    second.release().unwrap();
    assert_eq!(store(&place, folder.path()).load().unwrap(), Some(at(time + 3)));

    // What is no checkpoint stays until it is reset.
    documents.update_one(doc! { "_id": "n1" }, doc! { "$set": { "seq": "many" } }).await.unwrap();
    assert!(matches!(store(&place, folder.path()).claim(), Err(CheckpointError::Rotten { .. })));
    let mut last = store(&place, folder.path());
    last.reset().unwrap();
    last.release().unwrap();
    assert_eq!(store(&place, folder.path()).claim().unwrap(), None);
    server.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = MongoPlace {
        uri: "mongodb://user:secret@127.0.0.1:1/?replicaSet=rs0".into(),
        database: "d".into(),
        collection: "c".into(),
        node: "n1".into(),
    };
    let error = store(&nowhere, folder.path()).claim().unwrap_err();
    assert!(!error.is_final(), "{error}");
    let text = error.to_string();
    assert!(text.contains("\"n1\" in d.c at mongodb://***@127.0.0.1:1/") && !text.contains("secret"), "{text}");
}

/// Runs `streamer checkpoint …`. Whether it went well, and what it said.
async fn command(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(BINARY);
    command.arg("checkpoint").args(arguments).arg("-c").arg(folder.join("streamer.toml"));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_share_one_and_the_commands() {
    let Some(server) = TestServer::new("mongodb::checkpoint::nodes_that_share_one_and_the_commands").await else {
        return;
    };
    let watched = server.database("watched");
    let things = create(&watched, "things", false).await;
    let kept = server.database("kept");
    let settings = |folder: &Path| {
        let (http_port, quic_port) = free_ports();
        let (uri, watched, kept) = (&server.uri, watched.name(), kept.name());
        Settings {
            data_dir: folder.join("data"),
            shards: cores(1),
            preset: "plain",
            backends: format!(
                "[[backends]]\nname = \"main\"\nkind = \"mongodb\"\nuri = {uri:?}\nscope = {watched:?}\n\
                 [checkpoint]\nstore = \"mongodb\"\nevery = \"200ms\"\nmongodb = {{ uri = {uri:?}, database = {kept:?}, node = \"n1\" }}\n"
            ),
            http_port,
            quic_port,
        }
    };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one_settings, two_settings) = (settings(one.path()), settings(two.path()));
    let ready =
        async |process: &mut NodeProcess, settings: &Settings| process.answers(&settings.api(), "/health/ready").await;

    // Killed, and started again: it goes on from its place.
    let mut first = one_settings.start_process().await;
    ready(&mut first, &one_settings).await;
    things.insert_one(doc! { "_id": 1 }).await.unwrap();
    first.kill();
    let mut first = one_settings.start_process().await;
    ready(&mut first, &one_settings).await;
    assert_eq!(first.log().matches("no checkpoint: reading starts from now").count(), 1, "{}", first.log());
    let show = async |folder: &Path| {
        let (well, text) = command(folder, &["show", "--json"]).await;
        assert!(well, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    // The change is read, and its place written down.
    let shown = until("a checkpoint after the change", async || {
        let shown = show(one.path()).await;
        (shown["checkpoint"]["backends"][0]["k"] == 1).then_some(shown)
    })
    .await;
    assert_eq!((&shown["store"], &shown["checkpoint"]["backends"][0]["kind"]), (&"mongodb".into(), &"mongodb".into()));
    assert!(shown["owner"].as_str().unwrap().contains("epoch 2"), "{shown}");

    // From another machine, as it were: the data folder is another, and the node is seen by its writing.
    std::fs::write(two.path().join("streamer.toml"), two_settings.to_toml()).unwrap();
    for arguments in [&["set", "--at", "now-1m", "--yes"][..], &["reset", "--yes"]] {
        let (well, text) = command(two.path(), arguments).await;
        assert!(!well && text.contains("is in use by"), "{text}");
    }

    // A second node takes it over, and the first one stops.
    let mut second = two_settings.start_process().await;
    ready(&mut second, &two_settings).await;
    wait_for(|| first.has_ended().then_some(()), || "the end of the node that was taken over from".to_owned()).await;
    let log = first.log();
    assert_eq!(first.end().await.code(), Some(1));
    assert!(log.contains("two owners") && log.contains("epoch 3"), "{log}");
    assert!(second.terminate().await.success());

    // Nobody has it now: it can be moved, within the history only.
    let before = show(two.path()).await;
    assert!(before["owner"].as_str().unwrap().contains("has let go of it"), "{before}");
    let time = before["checkpoint"]["backends"][0]["time"].as_u64().unwrap();
    let back = format!("{}.{}", time >> 32, time as u32);
    let (well, text) = command(two.path(), &["set", "--at", &back]).await;
    assert!(!well && text.contains("--yes"), "nobody said yes: {text}");
    let (well, text) = command(two.path(), &["set", "--at", "2105-01-01T00:00:00Z", "--yes"]).await;
    assert!(!well && text.contains("ahead of the source's history"), "{text}");
    let (well, text) = command(two.path(), &["set", "--at", &back, "--yes"]).await;
    assert!(well && text.contains("Sent again") && !text.contains("NOT CHECKED"), "{text}");
    let after = show(two.path()).await;
    let place = &after["checkpoint"]["backends"][0];
    assert_eq!((place["time"].as_u64(), &place["k"], &place["token"]), (Some(time), &0.into(), &Value::Null));
    let mut second = two_settings.start_process().await;
    ready(&mut second, &two_settings).await;
    assert!(second.terminate().await.success());

    let (well, text) = command(two.path(), &["reset", "--yes"]).await;
    assert!(well && text.contains("reads from now"), "{text}");
    assert_eq!(show(two.path()).await["checkpoint"], Value::Null);
    server.clean_up().await;
}
