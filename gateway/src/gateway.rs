//! A connected Gateway: what the application holds.

use std::{
    ops::Deref,
    sync::{Arc, Weak},
};

use wire::{Positions, SubscribeItem, SubscriptionKey};

use crate::{
    Error, GatewayBuilder, SavedPositions, Subscription,
    core::{AppEvent, Input, Status, TerminalError, Token},
    net::Shared,
};

/// The receiving end. One consumer calls [`Gateway::next`] or [`Gateway::next_many`]; all else is done through [`GatewayHandle`], to which this
/// dereferences and of which there may be many.
///
/// Dropping it ends the connections at once; [`Gateway::close`] lets the last acks arrive.
pub struct Gateway {
    handle: GatewayHandle,
    manual_ack: bool,
    /// Given out last and not yet done, where asking for the next one says so.
    last: Option<Token>,
}

/// Subscribes, unsubscribes, and tells how things are, from anywhere.
#[derive(Clone)]
pub struct GatewayHandle {
    shared: Arc<Shared>,
    saved: Arc<SavedPositions>,
}

/// One item, and what to call when done with it.
#[derive(Debug)]
pub struct Event {
    pub what: AppEvent,
    token: Token,
    done: Done,
}

/// An item may outlive its Gateway; then nobody is left to tell.
struct Done(Weak<Shared>);

impl std::fmt::Debug for Done {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Done")
    }
}

impl Event {
    /// The application is done with this item: what it made of it is where it should be. Needed with acks by
    /// hand, in any order; elsewhere it only says so earlier. An item takes effect (on positions, and on what the node may forget) once all before it are done.
    pub fn ack(self) {
        if let Some(shared) = self.done.0.upgrade() {
            shared.input(Input::Done(self.token));
        }
    }

    /// Names the item for [`GatewayHandle::done`].
    pub fn token(&self) -> Token {
        self.token
    }
}

impl Gateway {
    pub fn builder() -> GatewayBuilder {
        GatewayBuilder::default()
    }

    pub(crate) fn new(shared: Arc<Shared>, saved: SavedPositions, manual_ack: bool) -> Self {
        Self { handle: GatewayHandle { shared, saved: Arc::new(saved) }, manual_ack, last: None }
    }

    pub fn handle(&self) -> GatewayHandle {
        self.handle.clone()
    }

    /// The next item. Unless acks are by hand, asking for it says that all that were given before are done.
    ///
    /// `None` when nothing will come any more: after [`Gateway::close`], or when the Gateway can't go on, and then
    /// [`GatewayHandle::error`] says why. May be dropped and called again at any time, nothing is lost by it.
    pub async fn next(&mut self) -> Option<Event> {
        let mut next = None;
        self.take(1, |event| next = Some(event)).await;
        next
    }

    /// Appends the next items to `events`: those that are there, at most `limit`, or else the first that comes. Gives their number, and 0 only where
    /// [`Gateway::next`] would give `None`. An application that takes many a second spends less on each this way.
    ///
    /// Unless acks are by hand, asking for more says that all that were given before are done. May be dropped and called again at any time, nothing
    /// is lost by it.
    ///
    /// # Panics
    /// If `limit` is 0.
    pub async fn next_many(&mut self, events: &mut Vec<Event>, limit: usize) -> usize {
        assert!(limit > 0, "with a limit of 0 nothing would ever come");
        let before = events.len();
        self.take(limit, |event| events.push(event)).await;
        events.len() - before
    }

    /// Waits until there is something, or nothing ever again, and gives what there is to `put`.
    async fn take(&mut self, limit: usize, mut put: impl FnMut(Event)) {
        let shared = &self.handle.shared;
        let mut done = self.last.take();
        loop {
            let mut last = None;
            let is_over = shared.with(|core| {
                if let Some(done) = done.take() {
                    core.done_up_to(done);
                }
                for _ in 0..limit {
                    let Some((token, what)) = core.next_event() else { break };
                    last = Some(token);
                    put(Event { what, token, done: Done(Arc::downgrade(shared)) });
                }
                last.is_none() && core.is_over()
            });
            if last.is_some() {
                self.last = last.filter(|_| !self.manual_ack);
                return;
            }
            if is_over {
                return;
            }
            shared.available.notified().await;
        }
    }

    /// Ends all connections, once what was acked has arrived at the shards. An item that was given out last and not acked
    /// counts as not done: it comes again to whoever goes on from the positions.
    pub async fn close(self) {
        self.handle.shared.input(Input::Close);
        self.handle.shared.wait_closed().await;
    }

    pub(crate) async fn first_contact(&self) -> Result<(), TerminalError> {
        let shared = &self.handle.shared;
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that what changes after it is not missed.
            changed.as_mut().enable();
            let (welcomed, terminal) = shared.with(|core| (core.was_welcomed(), core.terminal().cloned()));
            match terminal {
                Some(error) => return Err(error),
                None if welcomed => return Ok(()),
                None => changed.await,
            }
        }
    }
}

impl Deref for Gateway {
    type Target = GatewayHandle;

    fn deref(&self) -> &GatewayHandle {
        &self.handle
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.handle.shared.input(Input::Close);
    }
}

impl GatewayHandle {
    /// Subscribes, and gives what names the subscription. Answers come as items: `Live`, or `Rejected`. The same id with the
    /// same content changes nothing; with other content it takes the older one's place.
    pub fn subscribe(&self, subscription: Subscription) -> Result<SubscriptionKey, Error> {
        let item = apply_saved(&self.saved, subscription.into_item()?);
        let key = item.key.clone();
        let now = self.shared.now();
        self.shared.with(|core| match (core.terminal(), core.is_ended()) {
            (Some(error), _) => Err(Error::from(error.clone())),
            (None, true) => Err(Error::Closed),
            (None, false) => {
                core.handle(Input::Subscribe(item), now);
                Ok(key)
            }
        })
    }

    /// Nothing of it is given out from here on. Also for subscriptions that were registered over HTTP.
    pub fn unsubscribe(&self, key: &SubscriptionKey) {
        self.shared.input(Input::Unsubscribe(key.clone()));
    }

    /// The application is done with this item. See [`Event::ack`].
    pub fn done(&self, token: Token) {
        self.shared.input(Input::Done(token));
    }

    /// Up to where the application is done with each subscription, to be kept and given to the next process.
    pub fn positions(&self) -> SavedPositions {
        self.shared.with(|core| core.all_positions().map(|(key, positions)| (key.clone(), positions)).collect())
    }

    /// The same for one subscription.
    pub fn positions_of(&self, key: &SubscriptionKey) -> Option<Positions> {
        self.shared.with(|core| core.positions(key))
    }

    /// Whether the subscription is registered, and every matching change on its way here.
    pub fn is_live(&self, key: &SubscriptionKey) -> bool {
        self.shared.with(|core| core.is_live(key))
    }

    pub fn status(&self) -> Status {
        self.shared.with(|core| core.status())
    }

    /// Why this Gateway can't go on, if it can't.
    pub fn error(&self) -> Option<TerminalError> {
        self.shared.with(|core| core.terminal().cloned())
    }
}

/// Where the application doesn't say where to begin, what an earlier process kept does.
pub(crate) fn apply_saved(saved: &SavedPositions, mut item: SubscribeItem) -> SubscribeItem {
    if item.positions.is_empty()
        && let Some(positions) = saved.get(&item.key)
    {
        item.positions = positions.clone();
    }
    item
}
