//! The document on a server: read and written with a majority, one attempt a call.

use std::time::Duration;

use ::mongodb::{
    Client, Collection,
    error::{ErrorKind, WriteFailure},
    options::{
        Acknowledgment, ClientOptions, CollectionOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
    },
};
use bson::{Document, doc};
use tokio::runtime::Runtime;

use super::{Documents, MongoPlace, Trouble, form::Version};
use crate::{checkpoint::CheckpointError, ingest::source::mongodb::redact_uri};

/// How long one call may take, the search for a primary included. What takes longer has an outcome that isn't known.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module's documentation. The driver lives on a runtime of its own, so that the calls can block, whoever makes them.
pub(in crate::checkpoint) struct Server {
    place: MongoPlace,
    /// Taken when this is dropped.
    runtime: Option<Runtime>,
    collection: Option<Collection<Document>>,
}

impl Server {
    pub(super) fn new(place: MongoPlace) -> Result<Self, CheckpointError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("streamer-checkpoint")
            .enable_all()
            .build()
            .map_err(|error| CheckpointError::Unavailable { place: place.to_string(), why: error.to_string() })?;
        Ok(Self { place, runtime: Some(runtime), collection: None })
    }

    /// Runs it to its end, or to the end of the time that there is for it.
    fn wait<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, ::mongodb::error::Error>> + Send + 'static,
    ) -> Result<T, Trouble> {
        let (answer, answered) = flume::bounded(1);
        let runtime = self.runtime.as_ref().expect("it is taken only when this is dropped");
        runtime.spawn(async move {
            let outcome = tokio::time::timeout(CALL_TIMEOUT, call).await;
            // Whoever asked waits for it.
            let _ = answer.send(outcome);
        });
        match answered.recv() {
            Ok(Ok(outcome)) => outcome.map_err(|error| self.trouble(&error)),
            Ok(Err(_)) => Err(Trouble(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
            Err(_) => Err(Trouble("the call was given up: its task has ended".into())),
        }
    }

    fn trouble(&self, error: &::mongodb::error::Error) -> Trouble {
        // The driver quotes the connection string in some of its errors.
        Trouble(error.to_string().replace(&self.place.uri, &redact_uri(&self.place.uri)))
    }

    fn collection(&mut self) -> Result<Collection<Document>, Trouble> {
        if let Some(collection) = &self.collection {
            return Ok(collection.clone());
        }
        let uri = self.place.uri.clone();
        let mut options = self.wait(async move { ClientOptions::parse(uri).await })?;
        options.app_name.get_or_insert_with(|| "streamer-checkpoint".into());
        options.server_selection_timeout = Some(CALL_TIMEOUT);
        // One attempt a call: whether a failed one was applied is found out by reading, not by hoping that the second tells the same.
        (options.retry_writes, options.retry_reads) = (Some(false), Some(false));
        let client = {
            // The driver starts tasks of its own.
            let runtime = self.runtime.as_ref().expect("it is taken only when this is dropped");
            let _here = runtime.enter();
            Client::with_options(options).map_err(|error| self.trouble(&error))?
        };
        let mut concern = WriteConcern::default();
        concern.w = Some(Acknowledgment::Majority);
        concern.journal = Some(true);
        let options = CollectionOptions::builder()
            .read_concern(ReadConcern::majority())
            .write_concern(concern)
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .build();
        let collection = client.database(&self.place.database).collection_with_options(&self.place.collection, options);
        Ok(self.collection.insert(collection).clone())
    }
}

impl Documents for Server {
    fn read(&mut self) -> Result<Option<Document>, Trouble> {
        let (collection, id) = (self.collection()?, self.place.node.clone());
        self.wait(async move { collection.find_one(doc! { "_id": id }).await })
    }

    fn insert(&mut self, document: Document) -> Result<bool, Trouble> {
        let collection = self.collection()?;
        self.wait(async move {
            match collection.insert_one(document).await {
                Ok(_) => Ok(true),
                Err(error) if is_duplicate(&error) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn update(&mut self, expected: &Version, change: Document) -> Result<bool, Trouble> {
        let (collection, id, expected) = (self.collection()?, self.place.node.clone(), expected.clone());
        let Version { epoch, id: owner, seq } = expected;
        let compare = doc! { "_id": id, "seq": seq, "owner.epoch": epoch, "owner.id": owner };
        self.wait(async move { Ok(collection.update_one(compare, change).await?.matched_count == 1) })
    }

    fn overwrite(&mut self, document: Document) -> Result<(), Trouble> {
        let (collection, id) = (self.collection()?, self.place.node.clone());
        self.wait(async move { collection.replace_one(doc! { "_id": id }, document).await.map(drop) })
    }

    #[allow(clippy::disallowed_methods, reason = "only commands wait, and no shard runs in their process")]
    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not waited for: this may be dropped within another runtime, where blocking is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn is_duplicate(error: &::mongodb::error::Error) -> bool {
    const DUPLICATE_KEY: i32 = 11000;
    matches!(&*error.kind, ErrorKind::Write(WriteFailure::WriteError(error)) if error.code == DUPLICATE_KEY)
}
