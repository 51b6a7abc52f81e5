//! Databases of a test on the server that `STREAMER_TEST_MONGODB_URI` names.
//!
//! Invariant: names are unique per test and run, so that tests share the server, and whoever else uses it is left alone.

use bson::{Document, doc};
use mongodb::{Client, Collection, Database, options::ChangeStreamPreAndPostImages};

use super::unique;

/// Names the server.
const URI_VARIABLE: &str = "STREAMER_TEST_MONGODB_URI";

/// One test's part of the server.
pub(crate) struct TestServer {
    pub(crate) uri: String,
    pub(crate) client: Client,
    /// Begins the name of everything that the test makes.
    pub(crate) prefix: String,
}

impl TestServer {
    /// `None`, and a line that says so, where no server is named.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        let Some(uri) = std::env::var(URI_VARIABLE).ok().filter(|uri| !uri.is_empty()) else {
            println!("skipped: {test} (no STREAMER_TEST_MONGODB_URI)");
            return None;
        };
        let client = Client::with_uri_str(&uri).await.expect("the server's connection string is read");
        Some(Self { uri, client, prefix: format!("it_{}", unique()) })
    }

    pub(crate) fn database(&self, name: &str) -> Database {
        self.client.database(&format!("{}_{name}", self.prefix))
    }

    /// Drops all databases of this test.
    pub(crate) async fn clean_up(&self) {
        let names = self.client.list_database_names().await.expect("the server lists its databases");
        for name in names.iter().filter(|name| name.starts_with(&self.prefix)) {
            self.client.database(name).drop().await.expect("the test's database is dropped");
        }
    }
}

/// Makes a collection, with the images of its documents before each change kept or not.
pub(crate) async fn create(database: &Database, name: &str, before_images: bool) -> Collection<Document> {
    let create = database.create_collection(name);
    let images = ChangeStreamPreAndPostImages::builder().enabled(true).build();
    let create = if before_images { create.change_stream_pre_and_post_images(images) } else { create };
    create.await.expect("the collection is made");
    database.collection(name)
}

/// Open cursors of change streams on a database, as far as the server tells: idle ones, and those in a running `getMore`.
/// `None` where it doesn't tell.
pub(crate) async fn change_stream_cursors(client: &Client, database: &str) -> Option<usize> {
    let admin = client.database("admin");
    let reply = admin.run_command(doc! { "currentOp": 1, "$all": true }).await.ok()?;
    let running = reply.get_array("inprog").ok()?.iter().filter_map(|one| one.as_document());
    let namespace = format!("{database}.$cmd.aggregate");
    let cursor = |one: &&Document| {
        let is = |field: &str, value: &str| one.get_str(field).is_ok_and(|found| found == value);
        (is("type", "idleCursor") || is("op", "getmore")) && is("ns", &namespace)
    };
    Some(running.filter(cursor).count())
}
