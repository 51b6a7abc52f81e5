//! What is owed to Gateways: it comes into the log and their queues, is settled, and has to go where there is too much of it.

use super::Shard;
use super::ingest::Told;
use crate::Output;
use crate::outbox::{NewEntry, Settle, What};
use crate::session::{Item, Sent, Session};
use crate::subscription::{GatewayId, SubId};
use wire::ResyncReason;

impl Shard {
    /// Puts an entry into the log, and into the queues of the Gateways that are there. `told` are in the order that the log keeps.
    pub(super) fn append(&mut self, entry: &NewEntry<'_>, told: &[Told], out: &mut Vec<Output>) {
        self.make_room(entry.bytes_max(told.len()), out);
        self.stats.deliveries += told.len() as u64;
        let number = self.log.append(entry, told.iter().map(Told::target));
        match entry.what {
            What::Event => self.marks.receive_next(entry.position),
            What::Gap(_) => self.marks.receive(entry.position),
        }
        for told in told {
            if let Some(sub) = self.subs.get_mut(told.sub) {
                sub.owed += 1;
            }
        }
        let max = self.config.outbox_bytes_max;
        let mut start = 0;
        for run in told.chunk_by(|a, b| a.gateway == b.gateway) {
            let end = start + run.len() as u32;
            let (from, bytes) = (start, bytes_to_send(entry, run));
            start = end;
            let id = run[0].gateway;
            let Some(gateway) = self.gateways.get_mut(id) else {
                debug_assert!(false, "a target of a Gateway that isn't known");
                continue;
            };
            gateway.log.push_back(number);
            // What isn't bound yet stays owed, and is queued when it is.
            let Some(session) = gateway.session.as_mut().filter(|_| run.iter().any(|told| told.bound)) else {
                continue;
            };
            let marks = session.last_mark();
            if session.enqueue(Item::Live { number, start: from, end, bytes, marks }) {
                out.push(Output::Ready { connection: session.connection });
            }
            if session.outbox_bytes() > max {
                self.bound_outbox(id, out);
            }
        }
    }

    /// Settles what a session is done with.
    pub(super) fn settle_done(&mut self, gateway: GatewayId) {
        let Self { gateways, log, subs, stats, .. } = self;
        let Some(session) = gateways.session_mut(gateway) else { return };
        while let Some(done) = session.pop_done() {
            let Sent::Entry { number, targets } = done.sent else { continue };
            for range in targets.ranges() {
                stats.acked += u64::from(range.end - range.start);
                log.settle_all(number, range, |id| {
                    if let Some(sub) = subs.get_mut(id) {
                        debug_assert!(sub.owed > 0, "{id:?} is owed less than nothing");
                        sub.owed -= 1;
                    }
                });
            }
        }
    }

    pub(super) fn settle(&mut self, settle: Settle) {
        let Settle { number, target } = settle;
        let subs = &mut self.subs;
        self.log.settle_all(number, target..target + 1, |id| {
            if let Some(sub) = subs.get_mut(id) {
                debug_assert!(sub.owed > 0, "{id:?} is owed less than nothing");
                sub.owed -= 1;
            }
        });
    }

    /// Lets the oldest entries go until one of so many bytes fits.
    fn make_room(&mut self, bytes: usize, out: &mut Vec<Output>) {
        if self.log.has_room(bytes) {
            return;
        }
        let mut broken: Vec<SubId> = Vec::new();
        let Self { log, subs, gateways, stats, .. } = self;
        let mut touched = log.first();
        while !log.has_comfortable_room(bytes)
            && let Some((number, entry)) = log.oldest()
        {
            if number >= touched {
                let ahead = log.iter().take(TOUCHED_AHEAD).flat_map(|(_, entry)| entry.targets).take(TARGETS_AHEAD);
                std::hint::black_box(
                    ahead.fold(0, |sum, target| sum ^ subs.touch(target.sub.slot) ^ subs.touch_tail(target.sub.slot)),
                );
                touched = number + TOUCHED_AHEAD as u64;
            }
            stats.evictions += 1;
            stats.evictions_unsettled += u64::from(entry.unsettled > 0);
            let history = subs.history_of(&entry.position);
            for run in entry.targets.chunk_by(|a, b| a.gateway == b.gateway) {
                let gateway = gateways.get_mut(run[0].gateway);
                let mut handles = None;
                if let Some(gateway) = gateway {
                    let listed = gateway.log.pop_front();
                    debug_assert_eq!(listed, Some(number), "the log and a Gateway's list of it disagree");
                    handles = gateway.session.as_ref().map(Session::handles);
                }
                for target in run {
                    let Some(sub) = subs.get_mut(target.sub) else { continue };
                    sub.owed -= u32::from(!target.settled());
                    let bound = handles.is_some_and(|handles| handles.of(sub).is_some());
                    if sub.has_rare() && subs.is_skipped(target.sub, number) {
                        continue;
                    }
                    subs.advance_tail_in(history, target.sub, &entry.position);
                    if target.settled() {
                        continue;
                    }
                    if bound {
                        broken.push(target.sub);
                    } else {
                        subs.rare_mut(target.sub).broken = Some(ResyncReason::OutboxOverrun);
                    }
                }
            }
            log.evict();
        }
        if !broken.is_empty() {
            self.resync(broken, ResyncReason::OutboxOverrun, out);
        }
    }

    /// Holds a Gateway to what may wait for it. What waits is given up first; if what was sent and isn't done is too much by
    /// itself, that too.
    fn bound_outbox(&mut self, gateway: GatewayId, out: &mut Vec<Output>) {
        let max = self.config.outbox_bytes_max;
        let Some(session) = self.gateways.session_mut(gateway).filter(|session| session.outbox_bytes() > max) else {
            return;
        };
        self.stats.outbox_overruns += 1;
        // Entries, and the first of their targets that is given up.
        let mut given_up: Vec<(u64, u32)> = Vec::new();
        session.queue.retain(|item| match item {
            Item::Live { number, start, .. } => {
                given_up.push((*number, *start));
                false
            }
            _ => true,
        });
        session.waiting_bytes = 0;
        if session.in_flight_bytes > max / 2 {
            for sent in &mut session.in_flight {
                if let Sent::Entry { number, .. } = &sent.sent {
                    given_up.push((*number, 0));
                }
                sent.bytes = 0;
            }
            session.in_flight_bytes = 0;
        }
        let mut broken: Vec<SubId> = Vec::new();
        let handles = session.handles();
        for (number, first) in given_up {
            let Some(entry) = self.log.get(number) else { continue };
            let Some(slice) = entry.slice(gateway) else { continue };
            let first = first.max(slice.start) as usize;
            let open = entry.targets[first..slice.end as usize].iter().filter(|target| !target.settled());
            let open = open.filter(|target| {
                let bound = self.subs.get(target.sub).is_some_and(|sub| handles.of(sub).is_some());
                bound && !self.subs.is_skipped(target.sub, number)
            });
            broken.extend(open.map(|target| target.sub));
        }
        self.resync(broken, ResyncReason::OutboxOverrun, out);
    }
}

/// What sending an entry to one Gateway takes.
fn bytes_to_send(entry: &NewEntry<'_>, run: &[Told]) -> usize {
    let groups = run.chunk_by(|a, b| a.group == b.group);
    let bodies = groups.map(|of_group| {
        let body = entry.groups.get(of_group[0].group as usize);
        SENT_BYTES + body.map_or(0, |body| body.encoded_bytes_max())
    });
    TARGET_SENT_BYTES * run.len() + bodies.sum::<usize>()
}

/// Entries whose subscriptions are fetched together when they leave the log, and how many of these at most.
const TOUCHED_AHEAD: usize = 32;
const TARGETS_AHEAD: usize = 512;
/// What an event takes on the wire beside its body and its targets.
const SENT_BYTES: usize = 16;
const TARGET_SENT_BYTES: usize = 7;
