//! A store of checkpoints that fails, waits and is taken over as a test says.

use super::*;

#[derive(Default)]
pub(super) struct Saves {
    pub(super) kept: Mutex<Option<Checkpoint>>,
    pub(super) attempts: AtomicU64,
    pub(super) fail: AtomicBool,
    pub(super) panic: AtomicBool,
    /// Another node has claimed it.
    pub(super) taken: AtomicBool,
    /// What other processes can do.
    pub(super) is_shared: AtomicBool,
    pub(super) released: AtomicBool,
    /// Whether saves are kept from ending.
    pub(super) held: Mutex<bool>,
    pub(super) let_go: Condvar,
}

impl Saves {
    pub(super) fn attempts(&self) -> u64 {
        self.attempts.load(SeqCst)
    }

    /// No save ends while this lives.
    pub(super) fn hold(self: &Arc<Self>) -> Held {
        *self.held.lock().unwrap() = true;
        Held(self.clone())
    }

    /// Waits for the first save after so many.
    pub(super) async fn under_way(&self, before: u64) {
        until(|| self.attempts() > before).await;
    }

    pub(super) fn names(&self, gateway: &str) -> bool {
        self.kept.lock().unwrap().as_ref().is_some_and(|kept| kept.gateways.iter().any(|name| name == gateway))
    }
}

pub(super) struct Held(Arc<Saves>);

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.held.lock().unwrap() = false;
        self.0.let_go.notify_all();
    }
}

pub(super) struct Store(pub(super) Arc<Saves>);

impl CheckpointStore for Store {
    fn load(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        Ok(self.0.kept.lock().unwrap().clone())
    }

    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.0.attempts.fetch_add(1, SeqCst);
        drop(self.0.let_go.wait_while(self.0.held.lock().unwrap(), |held| *held).unwrap());
        assert!(!self.0.panic.load(SeqCst), "as the test asked for");
        if self.0.taken.load(SeqCst) {
            let (place, owner) = ("here".into(), "another".into());
            return Err(CheckpointError::TwoOwners { place, owner, theirs: 2, ours: 1 });
        }
        if self.0.fail.load(SeqCst) {
            return Err(CheckpointError::Io { path: "here".into(), error: std::io::Error::other("disk full") });
        }
        *self.0.kept.lock().unwrap() = Some(checkpoint.clone());
        Ok(())
    }

    fn reset(&mut self) -> Result<(), CheckpointError> {
        unreachable!("the loop never resets")
    }

    fn release(&mut self) -> Result<(), CheckpointError> {
        self.0.released.store(true, SeqCst);
        Ok(())
    }

    fn is_shared(&self) -> bool {
        self.0.is_shared.load(SeqCst)
    }

    fn bad_slots(&self) -> u64 {
        0
    }

    fn about(&self) -> About {
        About { store: "test", place: "here".into(), written_at: None, owner: None }
    }
}
