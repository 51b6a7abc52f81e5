//! The test's own change stream: the same events that the node reads, numbered and read for the oracle.

use bson::Document;
use futures::StreamExt;
use mongodb::options::{FullDocumentBeforeChangeType, FullDocumentType};
use wire::{BackendId, Lineage};
use workload::{Numbering, OracleChange, Preset};

use super::{super::support::within, layout::Layout};

pub(super) struct Observer {
    events: flume::Receiver<Document>,
    numbering: Option<Numbering>,
    preset: Preset,
}

impl Observer {
    /// Whatever is written after this returns is seen.
    pub(super) async fn start(client: &mongodb::Client, layout: &Layout) -> Self {
        let (database, pipeline) = layout.watched();
        let watch = match database {
            Some(database) => database.watch(),
            None => client.watch(),
        };
        let stream = watch
            .pipeline(pipeline)
            .full_document(FullDocumentType::UpdateLookup)
            .full_document_before_change(FullDocumentBeforeChangeType::WhenAvailable)
            .await;
        let mut stream = stream.expect("the server opens a change stream").with_type::<Document>();
        let (sender, events) = flume::unbounded();
        tokio::spawn(async move {
            while let Some(Ok(event)) = stream.next().await {
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        Self { events, numbering: None, preset: layout.profile.preset }
    }

    /// Under which names the node knows what is read. To be told before the first change is asked for.
    pub(super) fn number_as(&mut self, backend: BackendId, lineage: Lineage) {
        self.numbering = Some(Numbering::new(backend, lineage));
    }

    /// The next change of a document. Events of other kinds are counted and passed over.
    pub(super) async fn next(&mut self) -> OracleChange {
        loop {
            let event = within("an event of the test's own change stream", self.events.recv_async()).await;
            let event = event.expect("the test's own change stream goes on");
            let numbering = self.numbering.as_mut().expect("told before");
            let id = numbering.next_event(&event).expect("cluster time goes forward");
            let change = OracleChange::from_change_event(&event, self.preset, id).expect("it is a change event");
            if let Some(change) = change {
                return change;
            }
        }
    }
}
