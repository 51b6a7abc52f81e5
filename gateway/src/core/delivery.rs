//! The delivery stream: every message has its place in the order, and goes into the queue (or only past it) at that place.

use std::sync::Arc;

use wire::{
    Bound, Certainty, CloseReason, Delivery, EventEntryRef, Events, GapReason, Handle, Position, Positions,
    ResyncReason,
};

use super::{
    AppEvent, Change, GatewayCore, SessionId,
    event::Message,
    fifo::{Effect, Entry, State},
    session::{Floor, Session},
    subscriptions::{NO_FLOORS, Phase, Subscription, SubscriptionRef},
    verify::{Verdict, Verifier},
};

/// What the shard did that the protocol does not allow.
type Violation = String;

/// What is left to do once the session is back in its place.
enum After {
    Nothing,
    /// The subscription's state has changed so that its removal may now be due.
    MayBeRemoved(SubscriptionRef),
    /// The subscription is gone at the node, as was asked.
    Forget(SubscriptionRef),
    /// The subscription was bound before it was presented.
    StartOver(SubscriptionRef),
    /// The subscription is gone at the node, and is wanted.
    AskAgain(SubscriptionRef),
    /// The shard knows something that is to end there.
    EndStrays,
}

impl GatewayCore {
    pub(super) fn delivered(&mut self, id: SessionId, delivery: Delivery) {
        let now = self.now;
        // Taken out, so that the queue and the subscriptions can be changed beside it; put back before anything looks for it.
        let Some(mut session) = self.sessions.remove(&id) else { return };
        session.heard_at = now;
        let outcome = if session.is_ready() {
            self.take(&mut session, delivery)
        } else if session.early.len() < EARLY_MAX {
            session.early.push_back(delivery);
            Ok(After::Nothing)
        } else {
            Err(format!("more than {EARLY_MAX} deliveries before the welcome"))
        };
        self.sessions.insert(id, session);
        match outcome {
            Ok(After::Nothing) => {}
            Ok(After::MayBeRemoved(reference)) => self.ask_for_removal(reference),
            Ok(After::Forget(reference)) => self.forget(reference),
            Ok(After::StartOver(reference)) => self.start_over(reference),
            Ok(After::AskAgain(reference)) => self.ask_again(reference),
            Ok(After::EndStrays) => self.pump(id),
            Err(what) => self.violated(id, what),
        }
    }

    /// What came before the welcome, now that it is there.
    pub(super) fn deliver_early(&mut self, id: SessionId) {
        while let Some(delivery) = self.sessions.get_mut(&id).and_then(|session| session.early.pop_front()) {
            self.delivered(id, delivery);
        }
    }

    fn take(&mut self, session: &mut Session, delivery: Delivery) -> Result<After, Violation> {
        match delivery {
            Delivery::Events(events) => self.events(session, events)?,
            Delivery::Bound(bound) => return self.bound(session, *bound),
            Delivery::Heartbeat { last_seq, positions } => self.heartbeat(session, last_seq, positions)?,
            Delivery::Gap { seq, position, reason, handles } => self.gap(session, seq, position, reason, &handles)?,
            Delivery::Resync { seq, handle, reason, live_from } => {
                self.resync(session, seq, handle, reason, live_from)?;
            }
            Delivery::CatchingUp { handles } => self.catching_up(session, &handles)?,
            Delivery::CaughtUp { handles } => self.caught_up(session, &handles)?,
            Delivery::Closed { handle, reason } => return self.closed(session, handle, reason),
            Delivery::GoAway { within_ms, reason } => {
                tracing::debug!(within_ms, ?reason, "the node is about to go");
                session.leave_at = Some(self.now.after(self.jitter.up_to(u64::from(within_ms))));
            }
        }
        Ok(After::Nothing)
    }

    fn events(&mut self, session: &mut Session, events: Events) -> Result<(), Violation> {
        let bytes = events.bytes();
        let message = Arc::new(Message { partition: session.partition(), mapping: Arc::clone(&self.mapping), events });
        let mut last_item = None;
        let outcome =
            (0..message.events.len()).try_for_each(|entry| self.event(session, &message, entry, &mut last_item));
        // All of them share the message, so it is there until the last of them is done.
        if let Some(item) = last_item.and_then(|number| self.fifo.get_mut(number)) {
            item.bytes += bytes;
            session.queued_bytes += bytes;
        }
        outcome
    }

    /// `last_item` becomes the number of the last item that comes of the entry, if any does.
    fn event(
        &mut self,
        session: &mut Session,
        message: &Arc<Message>,
        entry: usize,
        last_item: &mut Option<u64>,
    ) -> Result<(), Violation> {
        let events = &message.events;
        let seq = count(session, events.seq(entry))?;
        self.counters.received += 1;
        let position = events.id(entry);
        let mut pushed = false;
        for target in events.targets(entry) {
            let reference = subscription_of(session, target.handle)?;
            let Some(subscription) = self.subscriptions.get_mut(reference).filter(|s| s.is_open()) else {
                self.counters.unwanted_dropped += 1;
                continue;
            };
            if subscription.has_had(session, &position) {
                self.counters.duplicates_dropped += 1;
                continue;
            }
            // It is not covered, so this is to advance.
            subscription.handed.set(position);
            let mut certainty = target.certainty;
            if certainty == Certainty::Unverified {
                match subscription.verdict(&events.get(entry), &self.mapping) {
                    Verdict::Matched => certainty = Certainty::Matched,
                    Verdict::Unknown => {}
                    Verdict::Dropped => {
                        self.counters.unmatched_dropped += 1;
                        continue;
                    }
                }
            }
            let change = Change {
                subscription: Arc::clone(&subscription.key),
                message: Arc::clone(message),
                // A message has fewer entries than bytes.
                entry: entry as u32,
                transition: target.transition,
                certainty,
            };
            pushed = true;
            *last_item = Some(self.fifo.next_number());
            self.put(session, reference, AppEvent::Change(change), Effect::Advance(position));
        }
        self.complete(session, seq, pushed);
        Ok(())
    }

    fn bound(&mut self, session: &mut Session, bound: Bound) -> Result<After, Violation> {
        let Bound { handle, key, live_from, leaves, .. } = bound;
        // One that is being removed comes first: the one that follows it has not been presented yet.
        let holder = self.subscriptions.condemned(&key).or_else(|| self.subscriptions.current(&key));
        let open = holder.filter(|reference| self.subscriptions.get(*reference).is_some_and(|s| !s.ended));
        // A process of this Gateway before asked for another collection under this key, which this shard owns. What the shard still sends of
        // it is nobody's, and moves nobody's position.
        let is_older_self = |s: &Subscription| s.item.is_some() && s.owner != session.partition();
        if open.and_then(|reference| self.subscriptions.get(reference)).is_some_and(is_older_self) {
            session.strays.push_back(key);
            self.counters.strays_ended += 1;
            return match session.handles.insert(handle, SubscriptionRef::NOBODY) {
                Some(_) => Err(format!("handle {} was bound twice", handle.0)),
                None => Ok(After::EndStrays),
            };
        }
        let reference = open.unwrap_or_else(|| {
            // Registered over HTTP for this Gateway.
            let mut subscription = Subscription::new(Arc::new(key), None, Positions::default());
            subscription.owner = session.partition();
            subscription.ever_sent = true;
            self.subscriptions.insert(subscription)
        });
        if session.handles.insert(handle, reference).is_some() {
            return Err(format!("handle {} was bound twice", handle.0));
        }
        let floor_version = self.floor_version;
        let Some(subscription) = self.subscriptions.get_mut(reference) else { return Ok(After::Nothing) };
        match subscription.session.filter(|_| subscription.bound) {
            Some(id) if id == session.id => subscription.keep_floors(session, floor_version),
            Some(id) => {
                if let Some(other) = self.sessions.get(&id) {
                    subscription.keep_floors(other, floor_version);
                }
            }
            None => subscription.keep_floors(session, floor_version),
        }
        subscription.session = Some(session.id);
        subscription.bound = true;
        subscription.catching_up = false;
        let presented = matches!(subscription.phase, Phase::Sent | Phase::Accepted);
        let is_asked_for = subscription.phase == Phase::Sent && !subscription.late;
        subscription.unclear |= subscription.item.is_some() && !subscription.ever_accepted && !is_asked_for;
        if subscription.item.is_some() && !presented && !subscription.condemned && !subscription.handed.is_empty() {
            return Ok(After::StartOver(reference));
        }
        if subscription.item.is_none() {
            subscription.owner = session.partition();
            // Nobody could present its position, so what lies between is nobody's to send.
            if subscription.is_broken_at(&live_from) {
                subscription.handed = live_from.clone();
                let event = AppEvent::Resync {
                    subscription: Arc::clone(&subscription.key),
                    reason: ResyncReason::HistoryLost,
                    live_from: live_from.clone(),
                };
                self.counters.resyncs += 1;
                let effect = Effect::replace(live_from.clone(), floor_version);
                self.put(session, reference, event, effect);
            }
        }
        let Some(subscription) = self.subscriptions.get_mut(reference) else { return Ok(After::Nothing) };
        subscription.begin_at(&live_from);
        let event = AppEvent::Live { subscription: Arc::clone(&subscription.key), live_from, leaves };
        self.put(session, reference, event, Effect::None);
        Ok(After::MayBeRemoved(reference))
    }

    fn heartbeat(&mut self, session: &mut Session, last_seq: u64, positions: Positions) -> Result<(), Violation> {
        if last_seq > session.counted.received {
            let received = session.counted.received;
            return Err(format!("the heartbeat speaks of entry {last_seq}, only {received} have come"));
        }
        self.floor_version += 1;
        session.handed_floor = Floor { positions: positions.clone(), version: self.floor_version };
        let effect = Effect::Floor(Box::new(Floor { positions, version: self.floor_version }));
        self.enqueue(Entry::mark(session.id, 0, effect));
        Ok(())
    }

    fn gap(
        &mut self,
        session: &mut Session,
        seq: u64,
        position: Position,
        reason: GapReason,
        handles: &[Handle],
    ) -> Result<(), Violation> {
        let seq = count(session, seq)?;
        let mut pushed = false;
        for handle in handles {
            let reference = subscription_of(session, *handle)?;
            let Some(subscription) = self.subscriptions.get_mut(reference).filter(|s| s.is_open()) else {
                self.counters.unwanted_dropped += 1;
                continue;
            };
            if subscription.has_had(session, &position) {
                self.counters.duplicates_dropped += 1;
                continue;
            }
            subscription.handed.advance(position);
            let event = AppEvent::Gap { subscription: Arc::clone(&subscription.key), reason, position };
            self.counters.gaps += 1;
            pushed = true;
            self.put(session, reference, event, Effect::Advance(position));
        }
        self.complete(session, seq, pushed);
        Ok(())
    }

    fn resync(
        &mut self,
        session: &mut Session,
        seq: u64,
        handle: Handle,
        reason: ResyncReason,
        live_from: Positions,
    ) -> Result<(), Violation> {
        let seq = count(session, seq)?;
        let reference = subscription_of(session, handle)?;
        let floor_version = self.floor_version;
        let mut pushed = false;
        if let Some(subscription) = self.subscriptions.get_mut(reference).filter(|s| s.is_open()) {
            subscription.handed = live_from.clone();
            subscription.handed_version = floor_version;
            subscription.catching_up = false;
            let event =
                AppEvent::Resync { subscription: Arc::clone(&subscription.key), reason, live_from: live_from.clone() };
            self.counters.resyncs += 1;
            pushed = true;
            let effect = Effect::replace(live_from, floor_version);
            self.put(session, reference, event, effect);
        }
        self.complete(session, seq, pushed);
        Ok(())
    }

    /// Heartbeats say nothing of these any more.
    fn catching_up(&mut self, session: &mut Session, handles: &[Handle]) -> Result<(), Violation> {
        for handle in handles {
            let reference = subscription_of(session, *handle)?;
            let here = |subscription: &&mut Subscription| subscription.session == Some(session.id);
            let Some(subscription) = self.subscriptions.get_mut(reference).filter(here) else { continue };
            if std::mem::replace(&mut subscription.catching_up, true) {
                continue;
            }
            subscription.handed = subscription.handed_with(Some(&session.handed_floor));
            subscription.handed_version = NO_FLOORS;
            self.counters.catch_ups += 1;
            let event = AppEvent::CatchingUp { subscription: Arc::clone(&subscription.key) };
            self.put(session, reference, event, Effect::CatchingUp);
        }
        Ok(())
    }

    /// Those that follow speak of them again.
    fn caught_up(&mut self, session: &mut Session, handles: &[Handle]) -> Result<(), Violation> {
        let floor_version = self.floor_version;
        for handle in handles {
            let reference = subscription_of(session, *handle)?;
            let here = |subscription: &&mut Subscription| subscription.session == Some(session.id);
            let Some(subscription) = self.subscriptions.get_mut(reference).filter(here) else { continue };
            if !std::mem::take(&mut subscription.catching_up) {
                continue;
            }
            subscription.handed_version = floor_version;
            self.counters.caught_up += 1;
            let event = AppEvent::CaughtUp { subscription: Arc::clone(&subscription.key) };
            self.put(session, reference, event, Effect::CaughtUp { floor_version });
        }
        Ok(())
    }

    fn closed(&mut self, session: &mut Session, handle: Handle, reason: CloseReason) -> Result<After, Violation> {
        let reference = subscription_of(session, handle)?;
        session.handles.remove(&handle);
        let floor_version = self.floor_version;
        let here = |subscription: &&mut Subscription| !subscription.ended && subscription.session == Some(session.id);
        let Some(subscription) = self.subscriptions.get_mut(reference).filter(here) else {
            return Ok(After::Nothing);
        };
        subscription.keep_floors(session, floor_version);
        subscription.bound = false;
        if subscription.condemned {
            return Ok(After::Forget(reference));
        }
        if subscription.unclear {
            // It may be the older one's end, or this one's: in another session it is clear.
            subscription.bound = true;
            return Ok(After::StartOver(reference));
        }
        if reason == CloseReason::Replaced && subscription.item.is_some() {
            // By what a process before had asked another shard for, since this one asks for nothing else: the node has acted upon that late.
            subscription.asks_again = true;
            return Ok(After::AskAgain(reference));
        }
        subscription.ended = true;
        let key = Arc::clone(&subscription.key);
        if reason == CloseReason::Unsubscribed {
            let mut entry = Entry::mark(session.id, 0, Effect::End);
            entry.subscription = Some(reference);
            self.enqueue(entry);
        } else {
            let event = AppEvent::Closed { subscription: key, reason };
            self.put(session, reference, event, Effect::End);
        }
        Ok(After::Nothing)
    }

    /// Queues an item of this session. Its `seq` is set by [`GatewayCore::complete`].
    fn put(&mut self, session: &mut Session, subscription: SubscriptionRef, event: AppEvent, effect: Effect) {
        session.queued_bytes += ITEM_BYTES;
        self.enqueue(Entry {
            event: Some(event),
            subscription: Some(subscription),
            session: session.id,
            seq: 0,
            bytes: ITEM_BYTES,
            effect,
            state: State::Waiting,
        });
    }

    /// An entry of the stream counts as done once all items that came of it are, or, where none came, all before it.
    fn complete(&mut self, session: &Session, seq: u64, pushed: bool) {
        if pushed {
            self.fifo.set_last_seq(seq);
        } else {
            self.enqueue(Entry::mark(session.id, seq, Effect::None));
        }
    }
}

impl Subscription {
    /// Whether items of it still go to the application.
    fn is_open(&self) -> bool {
        !self.condemned && !self.ended
    }

    fn has_had(&self, session: &Session, position: &Position) -> bool {
        let floor = &session.handed_floor;
        let by_floor = self.session == Some(session.id) && floor.version > self.handed_version;
        self.handed.covers(position) || by_floor && floor.positions.covers(position)
    }

    fn verdict(&mut self, entry: &EventEntryRef<'_>, mapping: &predicate::Mapping) -> Verdict {
        let Some(item) = &self.item else { return Verdict::Unknown };
        self.verifier.get_or_insert_with(|| Verifier::new(item, mapping)).verdict(entry)
    }
}

/// Counts an entry that carries a `seq`: they come as 1, 2, 3 …
fn count(session: &mut Session, seq: u64) -> Result<u64, Violation> {
    let expected = session.counted.received + 1;
    if seq != expected {
        return Err(format!("entry {seq} came where {expected} should"));
    }
    session.counted.received = seq;
    Ok(seq)
}

/// A handle must have been bound. What it was bound to may be gone.
fn subscription_of(session: &Session, handle: Handle) -> Result<SubscriptionRef, Violation> {
    session.handles.get(&handle).copied().ok_or_else(|| format!("handle {} is not bound", handle.0))
}

/// What an item takes beside the message that it came in, by and large.
const ITEM_BYTES: usize = 256;

/// Deliveries that may overtake the welcome, which travels in another stream.
const EARLY_MAX: usize = 1_024;
