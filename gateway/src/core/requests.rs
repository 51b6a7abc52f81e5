//! The control stream: what is asked of shards, and what they answer.
//!
//! Invariants:
//! - At most [`MAX_UNANSWERED_REQUESTS`] of a session wait for their answer, of at most [`ITEMS_MAX`] items each.
//! - `SyncDone` goes out once a session, after everything that it has to present.
//! - A removal is asked for only where the subscription is bound, so that a handle which is bound later is never its own.

use std::sync::Arc;

use wire::{
    ErrorCode, MAX_UNANSWERED_REQUESTS, Registration, Reply, Request, RequestId, ShardAddress, SubscribeItem,
    SubscribeResult, SubscriptionKey,
};

use super::{
    AppEvent, GatewayCore, Output, SessionId,
    fifo::{Effect, Entry, State},
    session::{Session, Stage, Unanswered},
    subscriptions::{Phase, SubscriptionRef},
};

impl GatewayCore {
    pub(super) fn replied(&mut self, id: SessionId, reply: Reply) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.heard_at = self.now;
        match (session.stage, reply) {
            (_, Reply::Refused { code, message }) => self.refused(id, code, message),
            (Stage::Greeted, Reply::Welcome(welcome)) => self.welcomed(id, *welcome),
            (Stage::Ready, Reply::Subscribed { request, results }) => self.subscribed(id, request, results),
            (Stage::Ready, Reply::Unsubscribed { request }) => self.unsubscribed(id, request),
            (Stage::Ready, Reply::Synced { request }) => match session.unanswered.remove(&request) {
                Some(Unanswered::SyncDone) => {
                    session.synced = true;
                    self.pump(id);
                }
                _ => self.violated(id, format!("it answers sync {request:?}, which was not asked")),
            },
            (Stage::Ready, Reply::Pong { .. }) => {}
            (stage, reply) => self.violated(id, format!("reply out of turn, while {stage:?}: {}", name(&reply))),
        }
    }

    /// Presents to a shard all that it owns, as far as its key is free, and then says so.
    pub(super) fn present_all(&mut self, id: SessionId, partition: u16) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let mut held = Vec::new();
        for (reference, subscription) in self.subscriptions.iter() {
            if subscription.owner != partition || subscription.ended || subscription.phase != Phase::Idle {
                continue;
            }
            if subscription.item.is_none() {
                if subscription.condemned {
                    session.to_unsubscribe.push_back(reference);
                }
                continue;
            }
            if !subscription.condemned && self.subscriptions.condemned(&subscription.key).is_some() {
                held.push(reference);
                continue;
            }
            session.to_present.push_back(reference);
        }
        for reference in session.to_present.iter().chain(&session.to_unsubscribe) {
            if let Some(subscription) = self.subscriptions.get_mut(*reference) {
                subscription.phase = Phase::Queued;
            }
        }
        tracing::debug!(partition, presented = session.to_present.len(), held = held.len(), "shard connected");
        self.pump(id);
    }

    /// Presents one subscription, if its shard is there and its key is free. Otherwise that follows when they are.
    pub(super) fn present(&mut self, reference: SubscriptionRef) {
        let Some(subscription) = self.subscriptions.get(reference) else { return };
        if subscription.item.is_none() || subscription.ended || subscription.phase != Phase::Idle {
            return;
        }
        let held_by = self.subscriptions.condemned(&subscription.key);
        if held_by.is_some_and(|condemned| condemned != reference) {
            return;
        }
        let Some(id) = self.ready_session(subscription.owner) else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.to_present.push_back(reference);
        if let Some(subscription) = self.subscriptions.get_mut(reference) {
            subscription.phase = Phase::Queued;
        }
        self.pump(id);
    }

    /// Asks the shard to forget a condemned subscription, if that can be done now.
    pub(super) fn ask_for_removal(&mut self, reference: SubscriptionRef) {
        let Some(subscription) = self.subscriptions.get(reference) else { return };
        let settled = match subscription.item {
            Some(_) => subscription.phase == Phase::Accepted && subscription.bound,
            None => subscription.phase != Phase::Queued,
        };
        if !subscription.condemned || !settled {
            return;
        }
        let Some(id) = self.ready_session(subscription.owner) else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.to_unsubscribe.push_back(reference);
        if let Some(subscription) = self.subscriptions.get_mut(reference) {
            subscription.phase = Phase::Queued;
        }
        self.pump(id);
    }

    /// Presents one again that was ended, if what was asked about it is answered. To a shard that has it after all, that says nothing new.
    pub(super) fn ask_again(&mut self, reference: SubscriptionRef) {
        let Some(subscription) = self.subscriptions.get_mut(reference) else { return };
        if subscription.asks_again && subscription.phase == Phase::Accepted && !subscription.condemned {
            subscription.asks_again = false;
            subscription.phase = Phase::Idle;
            self.present(reference);
        }
    }

    fn ready_session(&self, partition: u16) -> Option<SessionId> {
        let id = self.links.get(usize::from(partition))?.session?;
        self.sessions.get(&id).filter(|session| session.is_ready()).map(|session| session.id)
    }

    /// Sends what waits, as far as unanswered requests allow.
    pub(super) fn pump(&mut self, id: SessionId) {
        // Taken out, so that subscriptions can be changed beside it; nothing in here ends a session.
        let Some(mut session) = self.sessions.remove(&id) else { return };
        let mut too_large = Vec::new();
        while session.is_ready() && session.unanswered.len() < MAX_UNANSWERED_REQUESTS {
            let request = RequestId(self.next_request);
            let (message, unanswered) = if !session.to_unsubscribe.is_empty() || !session.strays.is_empty() {
                let Some((references, keys)) = self.take_removals(&mut session) else { continue };
                (Request::Unsubscribe { request, keys }, Unanswered::Unsubscribe(references))
            } else if !session.to_present.is_empty() {
                let Some((references, items)) = self.take_items(&mut session, &mut too_large) else { continue };
                (Request::Subscribe { request, items }, Unanswered::Subscribe(references))
            } else if self.sync_open && !session.sync_sent {
                session.sync_sent = true;
                (Request::SyncDone { request }, Unanswered::SyncDone)
            } else {
                break;
            };
            self.next_request += 1;
            session.unanswered.insert(request, unanswered);
            self.outputs.push_back(Output::Request { session: id, request: message });
        }
        self.sessions.insert(id, session);
        for (reference, message) in too_large {
            self.reject(id, reference, ErrorCode::InvalidRequest, message);
        }
    }

    fn take_removals(&mut self, session: &mut Session) -> Option<(Vec<SubscriptionRef>, Vec<SubscriptionKey>)> {
        let mut taken = (Vec::new(), Vec::new());
        let mut bytes = LIST_BYTES;
        while taken.1.len() < ITEMS_MAX
            && let Some(key) = session.strays.front()
        {
            bytes += key.tenant.len() + key.id.len() + 10;
            if bytes > session.max_body_bytes && !taken.1.is_empty() {
                return Some(taken);
            }
            taken.1.extend(session.strays.pop_front());
        }
        while taken.1.len() < ITEMS_MAX
            && let Some(reference) = session.to_unsubscribe.front().copied()
        {
            if let Some(subscription) = self.subscriptions.get_mut(reference) {
                bytes += subscription.key.tenant.len() + subscription.key.id.len() + 10;
                if bytes > session.max_body_bytes && !taken.1.is_empty() {
                    break;
                }
                subscription.phase = Phase::Sent;
                subscription.session = Some(session.id);
                taken.0.push(reference);
                taken.1.push(subscription.key.as_ref().clone());
            }
            session.to_unsubscribe.pop_front();
        }
        (!taken.1.is_empty()).then_some(taken)
    }

    fn take_items(
        &mut self,
        session: &mut Session,
        too_large: &mut Vec<(SubscriptionRef, String)>,
    ) -> Option<(Vec<SubscriptionRef>, Vec<SubscribeItem>)> {
        let mut taken = (Vec::new(), Vec::new());
        let mut bytes = LIST_BYTES;
        while taken.0.len() < ITEMS_MAX
            && let Some(reference) = session.to_present.front().copied()
        {
            let subscription = self.subscriptions.get_mut(reference).filter(|s| s.phase == Phase::Queued);
            let item = subscription.as_ref().and_then(|subscription| subscription.item.clone());
            if let (Some(subscription), Some(item)) = (subscription, item) {
                let positions = subscription.adopted.clone();
                let item = SubscribeItem { positions, ..item.as_ref().clone() };
                let item_bytes = bytes_at_most(&item);
                if LIST_BYTES + item_bytes > session.max_body_bytes {
                    session.to_present.pop_front();
                    let message = format!(
                        "the subscription takes {item_bytes} bytes, where the shard accepts {}",
                        session.max_body_bytes
                    );
                    too_large.push((reference, message));
                    continue;
                }
                bytes += item_bytes;
                if bytes > session.max_body_bytes {
                    break;
                }
                subscription.phase = Phase::Sent;
                subscription.ever_sent = true;
                subscription.late = session.sync_sent;
                subscription.session = Some(session.id);
                taken.0.push(reference);
                taken.1.push(item);
            }
            session.to_present.pop_front();
        }
        (!taken.0.is_empty()).then_some(taken)
    }

    fn subscribed(&mut self, id: SessionId, request: RequestId, results: Vec<SubscribeResult>) {
        let asked = self.sessions.get_mut(&id).and_then(|session| session.unanswered.remove(&request));
        let Some(Unanswered::Subscribe(references)) = asked else {
            return self.violated(id, format!("it answers subscribe {request:?}, which was not asked"));
        };
        if references.len() != results.len() {
            let (asked, got) = (references.len(), results.len());
            return self.violated(id, format!("{got} results for {asked} subscriptions"));
        }
        let mut begin_anew = Vec::new();
        for (reference, result) in references.into_iter().zip(results) {
            let Some(subscription) = self.subscriptions.get_mut(reference) else { continue };
            if subscription.session != Some(id) || subscription.ended {
                continue;
            }
            match result {
                SubscribeResult::Accepted { registration, .. } => {
                    subscription.phase = Phase::Accepted;
                    subscription.redirects = 0;
                    let presented = subscription.item.as_ref().is_some_and(|item| !item.positions.is_empty());
                    let was_there = match registration {
                        Registration::Created => false,
                        // It was bound before its positions came.
                        Registration::Renewed => subscription.late && presented,
                        // What was bound before was something else.
                        Registration::Replaced => subscription.late || subscription.unclear,
                    };
                    if was_there && !subscription.ever_accepted && !subscription.condemned {
                        begin_anew.push(reference);
                        continue;
                    }
                    subscription.ever_accepted = true;
                    subscription.unclear = false;
                    self.ask_for_removal(reference);
                    self.ask_again(reference);
                }
                SubscribeResult::NotOwner { owner } => {
                    let reference = self.end_older_self(id, reference);
                    if let Err(what) = self.send_on(reference, &owner) {
                        return self.violated(id, what);
                    }
                }
                // The node is about to end; the next one will be asked again.
                SubscribeResult::Rejected { code: ErrorCode::ShuttingDown, .. } => {}
                SubscribeResult::Rejected { code, message } => {
                    let reference = self.end_older_self(id, reference);
                    self.reject(id, reference, code, message);
                }
            }
        }
        if begin_anew.is_empty() {
            return self.pump(id);
        }
        for reference in begin_anew {
            self.make_anew(reference);
        }
        // Their handles, which may still be on their way, are not theirs. In the next session their positions come in time.
        self.move_on(id);
    }

    /// The shard doesn't have the subscription. If it has bound something under its key, that is an older self, which ends there. Gives what
    /// goes on in its place.
    fn end_older_self(&mut self, id: SessionId, reference: SubscriptionRef) -> SubscriptionRef {
        let Some(subscription) = self.subscriptions.get(reference).filter(|s| s.bound && s.session == Some(id)) else {
            return reference;
        };
        let (key, condemned) = (subscription.key.as_ref().clone(), subscription.condemned);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.strays.push_back(key);
        }
        self.counters.strays_ended += 1;
        if condemned { reference } else { self.make_anew(reference).unwrap_or(reference) }
    }

    /// Presents a subscription to the shard that owns it, as another one says.
    fn send_on(&mut self, reference: SubscriptionRef, owner: &ShardAddress) -> Result<(), String> {
        let Some(subscription) = self.subscriptions.get_mut(reference) else { return Ok(()) };
        subscription.redirects += 1;
        if owner.partition == subscription.owner || subscription.redirects > REDIRECTS_MAX {
            return Err(format!("shards {} and {} send a subscription round", subscription.owner, owner.partition));
        }
        let Some(link) = self.links.get_mut(usize::from(owner.partition)) else {
            return Err(format!("shard {} owns a collection where only {} exist", owner.partition, self.links.len()));
        };
        link.address.clone_from(&owner.address);
        subscription.owner = owner.partition;
        subscription.phase = Phase::Idle;
        subscription.session = None;
        self.present(reference);
        Ok(())
    }

    fn unsubscribed(&mut self, id: SessionId, request: RequestId) {
        let asked = self.sessions.get_mut(&id).and_then(|session| session.unanswered.remove(&request));
        let Some(Unanswered::Unsubscribe(references)) = asked else {
            return self.violated(id, format!("it answers unsubscribe {request:?}, which was not asked"));
        };
        for reference in references {
            self.forget(reference);
        }
        self.pump(id);
    }

    /// The subscription can't be registered: the application is told, after what is queued of it.
    fn reject(&mut self, id: SessionId, reference: SubscriptionRef, code: ErrorCode, message: String) {
        let Some(subscription) = self.subscriptions.get_mut(reference) else { return };
        if subscription.condemned {
            return self.forget(reference);
        }
        subscription.ended = true;
        subscription.bound = false;
        let event = AppEvent::Rejected { subscription: Arc::clone(&subscription.key), code, message };
        self.enqueue(Entry {
            event: Some(event),
            subscription: Some(reference),
            session: id,
            seq: 0,
            bytes: 0,
            effect: Effect::End,
            state: State::Waiting,
        });
    }

    pub(super) fn enqueue(&mut self, entry: Entry) {
        let visible = entry.event.is_some();
        let was_drained = visible && self.fifo.is_drained();
        self.fifo.push(entry);
        if was_drained {
            self.outputs.push_back(Output::Available);
        }
    }
}

/// More than the item takes in the protocol's encoding, and not much more.
fn bytes_at_most(item: &SubscribeItem) -> usize {
    let texts = [&item.key.tenant, &item.key.id, &item.collection, &item.filters, &item.expr];
    let group = item.group.as_ref().map_or(0, String::len);
    // Nine bytes for a length at most, and four integers of at most nine bytes for a position.
    texts.into_iter().map(|text| text.len() + 9).sum::<usize>() + group + 36 * item.positions.len() + 64
}

fn name(reply: &Reply) -> &'static str {
    match reply {
        Reply::Welcome(_) => "Welcome",
        Reply::Subscribed { .. } => "Subscribed",
        Reply::Unsubscribed { .. } => "Unsubscribed",
        Reply::Synced { .. } => "Synced",
        Reply::Pong { .. } => "Pong",
        Reply::Refused { .. } => "Refused",
    }
}

/// Items of one request.
pub(super) const ITEMS_MAX: usize = 1_000;

/// What a list of items needs beside them.
const LIST_BYTES: usize = 32;

/// Times a subscription may be sent on before the shards are taken to disagree.
const REDIRECTS_MAX: u8 = 4;
