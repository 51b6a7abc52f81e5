//! From what waits for a session to the bytes of its delivery stream.

use bytes::BytesMut;
use smallvec::SmallVec;
use wire::{Certainty, Delivery, EventEntryRef, ResyncReason, Target, begin_events, encode_delivery};

use super::Shard;
use crate::config::EVENTS_PER_FRAME_MAX;
use crate::outbox::{Entry, Log, What};
use crate::session::{InFlight, Item, Sent, Session};
use crate::subscription::{GatewayId, SubId, Subscriptions};
use crate::{ConnectionId, Millis};

impl Shard {
    /// Appends delivery frames that wait for this connection to `buf`, up to about `bytes_max`; at least one if any waits, so that
    /// an event larger than that goes alone. Gives the bytes written. 0: nothing waits, and an
    /// [`Output::Ready`](crate::Output::Ready) will tell when something does.
    pub fn fill(&mut self, connection: ConnectionId, now: Millis, bytes_max: usize, buf: &mut BytesMut) -> usize {
        self.set_time(now);
        let Some(gateway) = self.session_of(connection) else { return 0 };
        let start = buf.len();
        let seq_before = self.gateways.session(gateway).map_or(0, |session| session.last_seq);
        loop {
            let written = buf.len() - start;
            if written > 0 && written >= bytes_max {
                break;
            }
            let Some(session) = self.gateways.session_mut(gateway) else { break };
            match session.queue.front() {
                None => break,
                Some(Item::Live { .. } | Item::Replay { .. }) => {
                    if !self.fill_entries(gateway, bytes_max - written.min(bytes_max), written == 0, buf) {
                        break;
                    }
                }
                Some(_) => self.fill_other(gateway, buf),
            }
        }
        let written = buf.len() - start;
        self.stats.bytes_sent += written as u64;
        if let Some(session) = self.gateways.session_mut(gateway) {
            if session.last_seq > seq_before {
                session.unreceived.push_back((session.last_seq, self.time));
            }
            debug_assert!(written > 0 || session.queue.is_empty(), "something waits and nothing was written");
            if written == 0 {
                session.ready_told = false;
            }
        }
        written
    }

    /// Writes the first item, which is no log entry.
    fn fill_other(&mut self, gateway: GatewayId, buf: &mut BytesMut) {
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        let message = match session.queue.pop_front() {
            Some(Item::Bound(bound)) => Delivery::Bound(bound),
            Some(Item::Closed { handle, reason }) => {
                session.closed_waiting -= 1;
                Delivery::Closed { handle, reason }
            }
            Some(Item::GoAway { within_ms, reason }) => Delivery::GoAway { within_ms, reason },
            Some(Item::Heartbeat(positions)) => {
                session.heartbeat_queued = false;
                Delivery::Heartbeat { last_seq: session.last_seq, positions }
            }
            Some(Item::Resync { sub: id, reason }) => {
                let Some(sub) = self.subs.get_mut(id) else { return };
                let connection = session.connection;
                let Some(binding) = sub.binding.as_mut().filter(|binding| binding.session == connection) else {
                    return;
                };
                binding.resync_queued = false;
                let (handle, live_from) = (binding.handle, sub.live_from.clone());
                let seq = session.next_seq();
                session.in_flight.push_back(InFlight { seq, bytes: 0, sent: Sent::Resync { sub: id, reason } });
                Delivery::Resync { seq, handle, reason, live_from }
            }
            Some(Item::Live { .. } | Item::Replay { .. }) | None => {
                debug_assert!(false, "a log entry where there is none");
                return;
            }
        };
        encode_delivery(&message, buf);
    }

    /// Writes log entries from the front of the queue: one `Gap`, or one `Events` of as many as fit. False where the first one
    /// doesn't fit and must wait for the next call.
    fn fill_entries(&mut self, gateway: GatewayId, bytes_max: usize, first: bool, buf: &mut BytesMut) -> bool {
        let Some(session) = self.gateways.session_mut(gateway) else { return false };
        let mut missed: Vec<SubId> = Vec::new();
        let mut room = true;
        let mut events = begin_events(buf);
        let mut gap = None;
        while let Some(item) = session.queue.front() {
            let (Item::Live { number, .. } | Item::Replay { number, .. }) = item else { break };
            let Some(entry) = self.log.get(*number) else {
                if let Some(Item::Replay { number, subs }) = take_entry(session) {
                    // It left the log before it was sent again. Who was owed it has been told already.
                    missed.extend(
                        subs.into_iter().filter(|id| self.subs.get(*id).is_some_and(|sub| sub.skip_before <= number)),
                    );
                }
                if missed.is_empty() {
                    continue;
                }
                break;
            };
            let bytes = entry.slice(gateway).map_or(0, |slice| slice.bytes as usize);
            let full = events.entries() >= EVENTS_PER_FRAME_MAX
                || (events.entries() > 0 && events.body_bytes() + bytes > bytes_max);
            if full {
                break;
            }
            if events.entries() == 0 && !first && bytes > bytes_max {
                room = false;
                break;
            }
            if let What::Gap(_) = entry.what {
                if events.entries() == 0 {
                    gap = take_entry(session);
                }
                break;
            }
            let Some(item) = take_entry(session) else { break };
            let sending = Sending { gateway, item: &item, entry };
            sending.events(session, &self.subs, &mut missed, |event| {
                self.stats.entries_sent += 1;
                events.push(event);
            });
            if !missed.is_empty() {
                break;
            }
        }
        events.finish();
        if let Some(item) = gap {
            send_gap(gateway, &item, session, &self.log, &self.subs, buf);
        }
        if !missed.is_empty() {
            // Before anything later of theirs is sent: a position after what they miss must not be adopted.
            let mut out = Vec::new();
            self.resync(missed, ResyncReason::OutboxOverrun, &mut out);
            debug_assert!(out.is_empty(), "the driver is filling already");
        }
        room
    }
}

/// Takes the first item off the queue.
fn take_entry(session: &mut Session) -> Option<Item> {
    let item = session.queue.pop_front()?;
    if let Item::Live { bytes, .. } = &item {
        session.waiting_bytes -= bytes;
    }
    Some(item)
}

/// One log entry on its way to one Gateway.
struct Sending<'a> {
    gateway: GatewayId,
    item: &'a Item,
    entry: &'a Entry,
}

impl Sending<'_> {
    fn number(&self) -> u64 {
        match self.item {
            Item::Live { number, .. } | Item::Replay { number, .. } => *number,
            _ => 0,
        }
    }

    /// The targets that are to be sent now, with their places in the entry.
    fn targets<'a>(
        &'a self,
        connection: ConnectionId,
        subs: &'a Subscriptions,
    ) -> impl Iterator<Item = (u32, &'a crate::outbox::Target, wire::Handle)> {
        let number = self.number();
        let range = self.entry.slice(self.gateway).map_or(0..0, |slice| slice.range());
        range.filter_map(move |at| {
            let target = &self.entry.targets[at];
            let sub = subs.get(target.sub)?;
            let binding = sub.bound_in(connection)?;
            let is_for_it = match self.item {
                Item::Replay { subs, .. } => subs.binary_search(&target.sub).is_ok(),
                _ => binding.from <= number,
            };
            (is_for_it && sub.skip_before <= number).then_some((at as u32, target, binding.handle))
        })
    }

    /// One event for each image that is shown.
    fn events(
        &self,
        session: &mut Session,
        subs: &Subscriptions,
        missed: &mut Vec<SubId>,
        mut push: impl FnMut(&EventEntryRef<'_>),
    ) {
        let What::Event { operation, groups } = &self.entry.what else { return };
        let mut bytes = if let Item::Live { bytes, .. } = self.item { *bytes } else { 0 };
        let mut targets = self.targets(session.connection, subs).peekable();
        while let Some((_, target, _)) = targets.peek() {
            let at = target.group;
            let mut sent: Vec<u32> = Vec::new();
            let mut named: SmallVec<[Target; 8]> = SmallVec::new();
            while let Some((place, target, handle)) = targets.next_if(|(_, target, _)| target.group == at) {
                if target.certainty == Certainty::Unverified && !session.can_verify {
                    // It was matched for a session that could verify, and this one can't.
                    missed.push(target.sub);
                    continue;
                }
                sent.push(place);
                named.push(Target { handle, transition: target.transition, certainty: target.certainty });
            }
            let Some(group) = groups.get(at as usize).filter(|_| !sent.is_empty()) else { continue };
            let seq = session.next_seq();
            push(&EventEntryRef {
                seq,
                id: self.entry.position,
                operation: *operation,
                tenant: &group.tenant,
                collection: &group.collection,
                document_id: &group.document_id,
                targets: &named,
                document: &group.document,
            });
            // All bytes of the entry go with its first event: they are given back once that is done.
            let bytes = std::mem::take(&mut bytes);
            session.in_flight_bytes += bytes;
            session.in_flight.push_back(InFlight {
                seq,
                bytes,
                sent: Sent::Entry { number: self.number(), targets: sent.into() },
            });
        }
    }
}

fn send_gap(
    gateway: GatewayId,
    item: &Item,
    session: &mut Session,
    log: &Log,
    subs: &Subscriptions,
    buf: &mut BytesMut,
) {
    let (Item::Live { number, .. } | Item::Replay { number, .. }) = item else { return };
    let Some(entry) = log.get(*number) else { return };
    let What::Gap(reason) = entry.what else { return };
    let sending = Sending { gateway, item, entry };
    let (sent, handles): (Vec<u32>, Vec<wire::Handle>) =
        sending.targets(session.connection, subs).map(|(at, _, handle)| (at, handle)).unzip();
    if handles.is_empty() {
        return;
    }
    let seq = session.next_seq();
    encode_delivery(&Delivery::Gap { seq, position: entry.position, reason, handles }, buf);
    let bytes = if let Item::Live { bytes, .. } = item { *bytes } else { 0 };
    session.in_flight_bytes += bytes;
    session.in_flight.push_back(InFlight { seq, bytes, sent: Sent::Entry { number: *number, targets: sent.into() } });
}
