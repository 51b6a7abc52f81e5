//! When a checkpoint is written, and of what.

use std::time::Duration;

use tokio::time::Instant;

use super::Pump;
use crate::{
    checkpoint::{BackendCheckpoint, Checkpoint, CheckpointError, CheckpointStore},
    ingest::route::ShardIndex,
};

/// After a checkpoint that could not be written.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Pump {
    pub(super) fn start_checkpoint(&mut self) {
        let now = Instant::now();
        // One at a time; the next look at the cells asks again.
        self.checkpoint_at = now + self.config.checkpoint_every;
        if self.save.is_some() {
            return;
        }
        self.events_at_checkpoint = self.core.counters().events;
        // Before the Gateways are listed: those whose subscriptions these hold are then among them.
        let filters = self.links.iter().map(|link| link.cells.filter()).collect();
        let Some(checkpoint) = self.checkpoint() else { return };
        let is_shared = self.store.as_ref().is_some_and(|store| store.is_shared());
        if self.written.as_ref() == Some(&checkpoint) && !is_shared {
            self.status.checkpointed(self.started.elapsed().as_millis() as u64);
            self.begun = false;
            return;
        }
        let Some(mut store) = self.store.take() else { return };
        self.saving = filters;
        // Once it is written, those that it doesn't name are named no more; whether it will be, is not known.
        self.named.retain(|name| checkpoint.gateways.contains(name));
        self.save = Some(tokio::task::spawn_blocking(move || {
            let result = store.save(&checkpoint);
            (store, checkpoint, result)
        }));
    }

    /// What is settled now; `None` before anything has been read, so that what an earlier process wrote is not lost.
    fn checkpoint(&mut self) -> Option<Checkpoint> {
        let points = self.core.checkpoint();
        let mut backends = Vec::with_capacity(self.backends.len());
        for backend in &self.backends {
            let id = backend.source.backend();
            match points.iter().find(|point| point.position.backend == id) {
                Some(point) => {
                    let source = backend.identity.as_ref().map(|identity| identity.description.as_str());
                    backends.push(BackendCheckpoint::new(backend.source.name(), source.unwrap_or_default(), point));
                }
                None => backends.extend(backend.saved.clone()),
            }
        }
        (!points.is_empty()).then(|| Checkpoint { backends, gateways: self.gateways() })
    }

    pub(super) fn saved(&mut self, saved: (Box<dyn CheckpointStore>, Checkpoint, Result<(), CheckpointError>)) {
        let (store, checkpoint, result) = saved;
        self.store = Some(store);
        match result {
            Ok(()) => {
                self.picture.checkpoints_written += 1;
                self.picture.checkpoint_error = None;
                self.status.checkpointed(self.started.elapsed().as_millis() as u64);
                self.named = checkpoint.gateways.iter().cloned().collect();
                self.written = Some(checkpoint);
                // However many Gateways have come since: those that came before are named now.
                for (shard, filter) in ShardIndex::all(self.links.len() as u16).zip(std::mem::take(&mut self.saving)) {
                    self.core.filter(shard, filter, &mut self.out);
                }
                self.look_at_cells();
                self.begun = false;
            }
            Err(error) => {
                self.picture.checkpoints_failed += 1;
                tracing::error!("checkpoint not written, tried again in a moment: {error}");
                self.picture.checkpoint_error = Some(error.to_string());
                // It may have been written all the same.
                self.written = None;
                if error.is_final() {
                    self.ended = Some(error);
                    return;
                }
                self.hastened_from = Instant::now() + RETRY_AFTER;
                self.checkpoint_at = self.hastened_from;
            }
        }
    }

    pub(super) async fn shut_down(&mut self) -> Result<(), CheckpointError> {
        self.stop_reading();
        if let Some(save) = self.save.take()
            && let Ok(saved) = save.await
        {
            self.saved(saved);
        }
        if self.ended.is_none() {
            self.look_at_cells();
            if let Some(mut store) = self.store.take() {
                self.write_last(&mut *store);
            }
        }
        self.publish();
        self.ended.take().map_or(Ok(()), Err)
    }

    fn write_last(&mut self, store: &mut dyn CheckpointStore) {
        if let Some(checkpoint) = self.checkpoint() {
            match store.save(&checkpoint) {
                Ok(()) => tracing::info!("last checkpoint written"),
                Err(error) => {
                    tracing::error!("last checkpoint not written: {error}; the one before stays good");
                    self.ended = error.is_final().then_some(error);
                    return;
                }
            }
        }
        if let Err(error) = store.release() {
            tracing::warn!("the checkpoint is not marked as left: {error}");
        }
    }
}
