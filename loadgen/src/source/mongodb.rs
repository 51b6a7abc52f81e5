//! Writes to a real server with the official driver. Latency counts from when the write was acknowledged: what comes before is the
//! database's own.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bson::{Document, doc};
use futures::future::try_join_all;
use mongodb::{Client, options::ClientOptions};

use crate::{plan::Plan, schedule::Schedule};

/// Documents written at once.
const WRITES_MAX: u64 = 1_000;

/// How long a server may take to be found.
const FOUND_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum DatabaseFailed {
    #[error("the database at --uri: {0}")]
    Refused(#[from] mongodb::error::Error),
    #[error(transparent)]
    Timer(#[from] std::io::Error),
}

pub struct Database {
    client: Client,
}

impl Database {
    /// # Errors
    /// When nobody answers there.
    pub async fn connect(uri: &str) -> Result<Self, DatabaseFailed> {
        let mut options = ClientOptions::parse(uri).await?;
        options.server_selection_timeout.get_or_insert(FOUND_WITHIN);
        let client = Client::with_options(options)?;
        client.database("admin").run_command(doc! { "ping": 1 }).await?;
        Ok(Self { client })
    }

    /// Writes events 1, 2, 3 … of a plan until the schedule ends: those of one collection in their order, those of several at once.
    ///
    /// # Errors
    /// When a write isn't acknowledged.
    pub async fn write(
        &self,
        plan: &Plan,
        schedule: &Arc<Schedule>,
        document_bytes: usize,
    ) -> Result<(), DatabaseFailed> {
        let filling = "x".repeat(document_bytes.saturating_sub(EMPTY_BYTES));
        schedule
            .drive(WRITES_MAX, async |numbers| {
                let (first, count) = (numbers.start, numbers.end - numbers.start);
                let mut by_place: BTreeMap<u32, Vec<Document>> = BTreeMap::new();
                for n in numbers {
                    let event = plan.event(n);
                    let document = doc! {
                        "n": n as i64, "key": &event.key, "size": event.size, "kind": event.kind, "text": &filling,
                    };
                    by_place.entry(event.place).or_default().push(document);
                }
                let writes = by_place.into_iter().map(|(place, documents)| async move {
                    let place = &plan.places[place as usize];
                    let collection = self.client.database(&place.tenant).collection(&place.collection);
                    collection.insert_many(documents).await
                });
                try_join_all(writes).await?;
                schedule.acknowledged(first, count, Instant::now());
                Ok(())
            })
            .await
    }

    /// Drops what a run has written.
    ///
    /// # Errors
    /// When a database can't be dropped.
    pub async fn clean(&self, plan: &Plan) -> Result<(), DatabaseFailed> {
        for tenant in plan.tenants() {
            self.client.database(tenant).drop().await?;
        }
        Ok(())
    }
}

/// What a document has beside the filling.
const EMPTY_BYTES: usize = 100;
