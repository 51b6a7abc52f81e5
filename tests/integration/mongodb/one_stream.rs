//! One change stream a backend, however many Gateways, subscriptions and shards there are.

use bson::doc;
use streamer_gateway::{AppEvent, Subscription};

use super::super::support::{
    LOOK_EVERY, cores,
    database::{TestServer, change_stream_cursors, create},
    listener::{Acks, Listener},
    node::{Settings, place_of, stop},
    wait_for,
};

const GATEWAYS: usize = 3;
const SUBSCRIPTIONS: usize = 20;
/// Looks at the server's cursors.
const LOOKS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_change_stream_a_backend() {
    const NAME: &str = "mongodb::one_stream::one_change_stream_a_backend";
    let Some(server) = TestServer::new(NAME).await else { return };
    let databases = ["one", "two"].map(|name| server.database(name));
    // Whether the server shows cursors at all is seen by one of the test's own.
    let own = server.database("own");
    for database in databases.iter().chain([&own]) {
        create(database, "things", false).await;
    }
    let stream = own.watch().await.expect("the server opens a change stream");
    if change_stream_cursors(&server.client, own.name()).await != Some(1) {
        println!("skipped: {NAME} (the server does not list the cursors of change streams)");
        return server.clean_up().await;
    }
    drop(stream);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let backend = |database: &mongodb::Database| {
        let (name, uri) = (database.name(), &server.uri);
        format!("[[backends]]\nname = {name:?}\nkind = \"mongodb\"\nuri = {uri:?}\nscope = {name:?}\n")
    };
    let settings = Settings {
        data_dir: folder.path().join("data"),
        shards: cores(4),
        preset: "plain",
        backends: databases.iter().map(backend).collect(),
        http_port: 0,
        quic_port: 0,
    };
    let node = settings.start_here().await;
    let mut listeners = Vec::new();
    for gateway in 0..GATEWAYS {
        let subscription = |n: usize| {
            let tenant = databases[n % databases.len()].name();
            Subscription::new(tenant, "things").id(format!("s{n}")).filter("n", ">=", n as u64)
        };
        let subscriptions = (0..SUBSCRIPTIONS).map(subscription).collect();
        let name = format!("gateway-{gateway}");
        listeners.push(Listener::connect(&place_of(&node), &name, Acks::Automatic, subscriptions).await);
    }
    for listener in &listeners {
        wait_for(|| listener.is_live().then_some(()), || format!("{}: live subscriptions", listener.name)).await;
    }
    let mut most = [0; 2];
    for look in 0..LOOKS {
        for (database, most) in databases.iter().zip(&mut most) {
            database.collection("things").insert_one(doc! { "n": look as i64 }).await.expect("it is inserted");
            *most = change_stream_cursors(&server.client, database.name()).await.unwrap_or(0).max(*most);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    assert_eq!(most, [1, 1], "the most change streams on each database at any look");
    // Both streams are being read: what was written has come out of both.
    for listener in &mut listeners {
        let changes = (0..LOOKS).map(|look| SUBSCRIPTIONS.min(look + 1)).sum::<usize>();
        let name = listener.name.clone();
        let count = || listener.told().iter().filter(|event| matches!(event, AppEvent::Change(_))).count();
        wait_for(
            {
                let mut count = count;
                move || (count() >= changes).then_some(())
            },
            || format!("{name}: {changes} changes"),
        )
        .await;
    }
    stop(node).await;
    for listener in &mut listeners {
        listener.end().await;
    }
    server.clean_up().await;
}
