//! The disk that checkpoints are kept on: the real store writes to it, and it may be torn or rot.
#![expect(
    clippy::disallowed_types,
    reason = "a checkpoint store is handed between threads; here nobody ever waits for the lock"
)]

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use streamer::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Disk, SlotStore};

/// Two slots that outlive the node. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Slots>>);

#[derive(Debug, Default)]
struct Slots {
    bytes: [Option<Vec<u8>>; 2],
    written_last: usize,
    /// The next write is cut after this share of its bytes, in 256ths.
    tear: Option<u8>,
}

impl Disk for SimDisk {
    fn read(&self, slot: usize) -> io::Result<Option<Vec<u8>>> {
        Ok(self.slots().bytes[slot].clone())
    }

    fn replace(&mut self, slot: usize, bytes: &[u8]) -> io::Result<()> {
        let mut slots = self.slots();
        let mut after = bytes.to_vec();
        if let Some(share) = slots.tear.take() {
            // What isn't written stays as it was: a file that was not synced may have its new length and its old blocks.
            let kept = bytes.len() * usize::from(share) / 256;
            after.truncate(kept);
            let before = slots.bytes[slot].as_deref().unwrap_or_default();
            after.extend_from_slice(before.get(kept..).unwrap_or_default());
        }
        slots.bytes[slot] = Some(after);
        slots.written_last = slot;
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        *self.slots() = Slots::default();
        Ok(())
    }

    fn written_at(&self, _slot: usize) -> Option<SystemTime> {
        None
    }

    fn name(&self, slot: usize) -> String {
        format!("slot {slot}")
    }

    fn place(&self) -> String {
        "a simulated disk".into()
    }
}

impl SimDisk {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn store(&self) -> SlotStore<Self> {
        SlotStore::on(self.clone())
    }

    /// The next write is cut short.
    pub(crate) fn tear_next(&self, share: u8) {
        self.slots().tear = Some(share);
    }

    /// One bit of the slot that was written last turns over, if the other one can still be read. Whether it did.
    pub(crate) fn rot(&self, at: usize) -> bool {
        let other = {
            let slots = self.slots();
            slots.bytes[1 - slots.written_last].clone()
        };
        let alone = Self::default();
        alone.slots().bytes[0] = other;
        if !matches!(alone.store().load(), Ok(Some(_))) {
            return false;
        }
        let mut slots = self.slots();
        let last = slots.written_last;
        match &mut slots.bytes[last] {
            Some(bytes) if !bytes.is_empty() => {
                let at = at % bytes.len();
                bytes[at] ^= 1;
                true
            }
            _ => false,
        }
    }

    /// What a store that took torn slots for whole would make of `written`, torn over `before`: the place of the one with the token
    /// and the Gateways of the other.
    pub(crate) fn write_mixed(
        &self,
        store: &mut SlotStore<Self>,
        before: &Checkpoint,
        written: &Checkpoint,
    ) -> Result<(), CheckpointError> {
        let mut mixed = Checkpoint { gateways: before.gateways.clone(), ..written.clone() };
        for (mixed, before) in mixed.backends.iter_mut().zip(&before.backends) {
            mixed.token.clone_from(&before.token);
        }
        store.save(&mixed)
    }
}
