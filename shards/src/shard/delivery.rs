//! From what waits for a session to the bytes of its delivery stream.

use bytes::BytesMut;
use wire::{Certainty, Delivery, Handle, MAX_FRAME_BODY_BYTES, Position, Target, begin_events, encode_delivery};

use super::Shard;
use super::behind::Falls;
use crate::config::{EVENTS_PER_FRAME_MAX, HANDLES_PER_FRAME_MAX};
use crate::outbox::{EntryRef, Places, Slice, What};
use crate::session::{InFlight, Item, Sent, Session};
use crate::stats::Cause;
use crate::subscription::{GatewayId, Lost, SubId, Subscriptions, just_before};
use crate::{ConnectionId, Millis};

impl Shard {
    /// Appends delivery frames that wait for this connection to `buf`, up to about `bytes_max`; at least one if any waits, so that
    /// an event larger than that goes alone. Gives the bytes written. 0: nothing waits, and an
    /// [`Output::Ready`](crate::Output::Ready) will tell when something does.
    pub fn fill(&mut self, connection: ConnectionId, now: Millis, bytes_max: usize, buf: &mut BytesMut) -> usize {
        self.set_time(now);
        let Some(gateway) = self.session_of(connection) else { return 0 };
        let start = buf.len();
        let seq_before = self.gateways.session(gateway).map_or(0, |session| {
            // Growing it by and by would copy what is there each time.
            buf.reserve(session.waiting_bytes.min(bytes_max));
            session.last_seq
        });
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
                self.samples.written(gateway, session);
            }
            debug_assert!(written > 0 || session.queue.is_empty(), "something waits and nothing was written");
            if written == 0 {
                session.ready_told = false;
                // What a storm made large is given back.
                session.queue.shrink_to(QUEUE_KEPT);
            }
            if session.full || !session.waits.is_empty() {
                self.has_drained(gateway);
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
                let Some(handle) = session.handle_of(sub) else { return };
                sub.set_resync_queued(false);
                let live_from = self.subs.live_from(id).clone();
                let seq = session.next_seq();
                session.in_flight.push_back(InFlight { seq, bytes: 0, sent: Sent::Resync { sub: id, reason } });
                Delivery::Resync { seq, handle, reason, live_from }
            }
            Some(Item::CatchingUp(id)) => {
                let mut handles: Vec<Handle> =
                    self.subs.get(id).and_then(|sub| session.handle_of(sub)).into_iter().collect();
                while handles.len() < HANDLES_PER_FRAME_MAX
                    && let Some(Item::CatchingUp(id)) = session.queue.front()
                {
                    handles.extend(self.subs.get(*id).and_then(|sub| session.handle_of(sub)));
                    session.queue.pop_front();
                }
                Delivery::CatchingUp { handles }
            }
            Some(Item::CaughtUp { sub, upto }) => {
                let mut handles: Vec<Handle> = Vec::new();
                let mut next = Some((sub, upto));
                while let Some((id, upto)) = next {
                    handles.extend(self.subs.get(id).and_then(|sub| session.handle_of(sub)));
                    // All that passes brought to it has been sent, unless it has been behind once more since.
                    let sent = |lost: &&mut Lost| lost.session == session.base() && lost.before <= upto;
                    for lost in self.subs.lost_mut(id).iter_mut().filter(sent) {
                        lost.seq.get_or_insert(session.last_seq);
                    }
                    next = match session.queue.front() {
                        Some(Item::CaughtUp { sub, upto }) if handles.len() < HANDLES_PER_FRAME_MAX => {
                            Some((*sub, *upto))
                        }
                        _ => None,
                    };
                    next.inspect(|_| _ = session.queue.pop_front());
                }
                Delivery::CaughtUp { handles }
            }
            Some(Item::Live { .. } | Item::Replay { .. }) | None => {
                debug_assert!(false, "a log entry where there is none");
                return;
            }
        };
        if !matches!(&message, Delivery::CatchingUp { handles } | Delivery::CaughtUp { handles } if handles.is_empty())
        {
            encode_delivery(&message, buf);
        }
    }

    /// Writes log entries from the front of the queue: one `Gap`, or one `Events` of as many as fit. False where the first one
    /// doesn't fit and must wait for the next call.
    fn fill_entries(&mut self, gateway: GatewayId, bytes_max: usize, first: bool, buf: &mut BytesMut) -> bool {
        let Self { gateways, log, subs, stats, named, .. } = self;
        let Some(session) = gateways.session_mut(gateway) else { return false };
        let mut missed: Vec<Missed> = Vec::new();
        let mut room = true;
        let mut events = begin_events(buf);
        let mut gap = None;
        while let Some(item) = session.queue.front() {
            let Some(number) = item.number() else { break };
            let Some(entry) = log.get(number) else {
                if let Some(Item::Replay { number, subs: again, position, .. }) = take_entry(session) {
                    // It left the log before it was sent again. Of what was to be sent for the first time, that is known already.
                    let again = again.into_iter().filter(|id| subs.get(*id).is_some());
                    let again = again.filter(|id| !subs.is_skipped(*id, number, &position));
                    missed.extend(again.map(|sub| Missed { sub, position: *position, cause: Cause::LeftLog }));
                }
                if missed.is_empty() {
                    continue;
                }
                break;
            };
            let Some(part) = Part::next(gateway, item, &entry) else {
                take_entry(session);
                continue;
            };
            if let What::Gap(reason) = entry.what {
                if events.entries() == 0 {
                    gap = Some(reason);
                }
                break;
            }
            let body = entry.body(part.group);
            let bytes = body.len() + TARGET_SENT_BYTES_MAX * part.slice.range().len() + EVENT_SENT_BYTES_MAX;
            if events.entries() > 0
                && (events.entries() >= EVENTS_PER_FRAME_MAX || events.body_bytes() + bytes > bytes_max)
            {
                break;
            }
            if events.entries() == 0 && !first && bytes > bytes_max {
                room = false;
                break;
            }
            let sent = part.name(session, item, &entry, subs, named, &mut missed);
            if let Some(seq) = part.leave_queue(session, &entry, number, sent) {
                events.push_encoded(seq, named, body);
                stats.entries_sent += 1;
            }
            if !missed.is_empty() {
                break;
            }
        }
        events.finish();
        if let Some(reason) = gap
            && let Some(item) = session.queue.front()
            && let Some(number) = item.number()
            && let Some(entry) = log.get(number)
            && let Some(part) = Part::next(gateway, item, &entry)
        {
            let sent = part.name(session, item, &entry, subs, named, &mut missed);
            let handles = named.iter().map(|target| target.handle).collect();
            if let Some(seq) = part.leave_queue(session, &entry, number, sent) {
                encode_delivery(&Delivery::Gap { seq, position: entry.position, reason, handles }, buf);
            }
        }
        // Before anything later of theirs is sent: a position after what they miss must not be adopted.
        let mut out = Vec::new();
        for Missed { sub, position, cause } in missed {
            self.fall_behind(sub, just_before(&position), Falls::Back, cause, &mut out);
        }
        debug_assert!(out.is_empty(), "the driver is filling already");
        room
    }
}

/// A subscription that can't be sent a log entry.
struct Missed {
    sub: SubId,
    position: Position,
    cause: Cause,
}

/// Takes the first item off the queue.
fn take_entry(session: &mut Session) -> Option<Item> {
    let item = session.queue.pop_front()?;
    match &item {
        Item::Live { number, bytes, .. } => {
            session.waiting_bytes -= bytes;
            session.waiting_events -= 1;
            session.next_live = number + 1;
        }
        Item::Replay { .. } => session.waiting_replays -= 1,
        _ => {}
    }
    Some(item)
}

/// What of a log entry is sent to a Gateway in one piece: for targets that are shown the same, and not too many of them.
struct Part {
    group: u32,
    slice: Slice,
    /// Where the Gateway's targets end.
    end: u32,
}

impl Part {
    /// The next part of this item. None where there is nothing more.
    fn next(gateway: GatewayId, item: &Item, entry: &EntryRef<'_>) -> Option<Self> {
        let Slice { start, end } = match item {
            Item::Live { start, end, .. } => Slice { start: *start, end: *end },
            Item::Replay { start, .. } => {
                let slice = entry.slice(gateway)?;
                Slice { start: slice.start.max(*start), end: slice.end }
            }
            _ => return None,
        };
        let targets = entry.targets.get(start as usize..end as usize)?;
        let group = targets.first()?.group();
        let len = match entry.groups() {
            0 | 1 => targets.len(),
            _ => targets.partition_point(|target| target.group() == group),
        };
        let len = len.min(TARGETS_PER_EVENT_MAX) as u32;
        Some(Self { group, slice: Slice { start, end: start + len }, end })
    }

    /// Names the targets that are to be sent now. Gives their places.
    fn name(
        &self,
        session: &Session,
        item: &Item,
        entry: &EntryRef<'_>,
        subs: &Subscriptions,
        named: &mut Vec<Target>,
        missed: &mut Vec<Missed>,
    ) -> Places {
        named.clear();
        named.reserve(self.slice.range().len());
        let mut sent = Places::default();
        let (number, marks, again) = match item {
            Item::Live { number, marks, .. } => (*number, *marks, None),
            Item::Replay { number, subs, .. } => (*number, u32::MAX, Some(subs)),
            _ => return sent,
        };
        let handles = session.handles();
        // The targets that are sent are nearly always neighbours.
        let mut run = self.slice.start..self.slice.start;
        for (at, target) in (self.slice.start..).zip(&entry.targets[self.slice.range()]) {
            let Some(sub) = subs.get(target.sub) else { continue };
            let Some(handle) = handles.of(sub) else { continue };
            let is_for_it = sub.mark() <= marks && again.is_none_or(|subs| subs.binary_search(&target.sub).is_ok());
            if !is_for_it || (sub.has_rare() && subs.is_skipped(target.sub, number, &entry.position)) {
                continue;
            }
            let (transition, certainty) = (target.transition(), target.certainty());
            if certainty == Certainty::Unverified && !session.can_verify {
                // It was matched for a session that could verify, and this one can't.
                missed.push(Missed { sub: target.sub, position: entry.position, cause: Cause::Unverifiable });
                continue;
            }
            if run.end != at {
                sent.push(std::mem::replace(&mut run, at..at));
            }
            run.end = at + 1;
            named.push(Target { handle, transition, certainty });
        }
        sent.push(run);
        sent
    }

    /// Takes this part off the front of the queue, and what is sent of it into flight under the `seq` that this gives.
    fn leave_queue(&self, session: &mut Session, entry: &EntryRef<'_>, number: u64, sent: Places) -> Option<u64> {
        let seq = (!sent.is_empty()).then(|| session.next_seq());
        // All bytes of the entry go with its first event: they are given back once that is done.
        let mut bytes = 0;
        if let Some(Item::Live { bytes: waiting, .. }) = session.queue.front_mut()
            && (seq.is_some() || self.slice.end == self.end)
        {
            bytes = std::mem::take(waiting);
            session.waiting_bytes -= bytes;
        }
        if self.slice.end == self.end {
            take_entry(session);
        } else {
            match session.queue.front_mut() {
                Some(Item::Live { start, .. }) => *start = self.slice.end,
                Some(Item::Replay { start, subs, .. }) => {
                    *start = self.slice.end;
                    // Should the entry leave the log before the rest is sent, then only the rest has missed it.
                    let rest = &entry.targets[self.slice.end as usize..self.end as usize];
                    let mut rest: Vec<SubId> =
                        rest.iter().map(|target| target.sub).filter(|sub| subs.binary_search(sub).is_ok()).collect();
                    rest.sort_unstable();
                    *subs = rest.into();
                }
                _ => debug_assert!(false, "a log entry was sent that isn't in front"),
            }
        }
        let seq = seq?;
        session.in_flight_bytes += bytes;
        let sent = match entry.of_pass {
            true => Sent::OfPass { number, targets: sent },
            false => Sent::Entry { number, targets: sent },
        };
        session.in_flight.push_back(InFlight { seq, bytes, sent });
        Some(seq)
    }
}

/// Places of a session's queue that stay, used or not.
const QUEUE_KEPT: usize = 4_096;
/// Targets of one event, or of one gap. More go into several: each is a body of its own, which must fit into a frame with two
/// documents of the source's largest size.
const TARGETS_PER_EVENT_MAX: usize = if cfg!(test) { 1_000 } else { 1 << 20 };
/// A handle, a transition and a certainty.
const TARGET_SENT_BYTES_MAX: usize = 7;
/// Length, `seq` and the number of targets.
const EVENT_SENT_BYTES_MAX: usize = 22;

const _: () = assert!(
    TARGETS_PER_EVENT_MAX * TARGET_SENT_BYTES_MAX + (16 << 20) + (1 << 20) <= MAX_FRAME_BODY_BYTES,
    "an event's document is at most 16 MiB, and its names fit into another one"
);
