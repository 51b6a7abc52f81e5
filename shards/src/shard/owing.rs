//! What is owed to Gateways: it comes into the log and their queues, is settled, and has to go where there is too much of it.

use super::Shard;
use super::behind::Falls;
use super::ingest::Told;
use super::work::Units;
use crate::Output;
use crate::outbox::{NewEntry, Settle};
use crate::session::{Item, LOW_SHARE, Sent};
use crate::stats::Cause;
use crate::subscription::{GatewayId, Lost, SubId, just_before, later};
use wire::Position;

impl Shard {
    /// Puts an entry into the log, and into the queues of the Gateways that are there. `told` are in the order that the log keeps.
    pub(super) fn append(&mut self, entry: &NewEntry<'_>, told: &mut Vec<Told>, out: &mut Vec<Output>) {
        if self.make_room(entry.bytes_max(told.len()), out) {
            // Some of these may be behind since: what was before this is gone, so this can't be next.
            told.retain(|told| match entry.of_pass {
                true => self.is_served_above(told.sub, &entry.position),
                false => self.subs.behind(told.sub, entry.position.backend).is_none(),
            });
            if told.is_empty() {
                return;
            }
        }
        let number = self.log.append(entry, told.iter().map(Told::target));
        if entry.of_pass {
            self.stats.catch_ups.deliveries += told.len() as u64;
            let pass = self.passes.running(entry.position.backend).map_or(0, |pass| pass.number);
            for told in &*told {
                if let Some(behind) = self.subs.rare_mut(told.sub).behind_mut(entry.position.backend) {
                    // An earlier pass that began behind where it stood has not served it, and must not seem to have now.
                    (behind.at, behind.pass) = (entry.position, pass);
                }
            }
        } else {
            self.stats.deliveries += told.len() as u64;
            for told in &*told {
                if let Some(sub) = self.subs.get_mut(told.sub) {
                    sub.told(number);
                }
            }
        }
        let limits = self.config.outbox();
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
            if !entry.of_pass {
                self.samples.queued(&entry.position, number, id, session);
            }
            if session.holds_more_than(limits, LOW_SHARE) {
                self.has_swollen(id);
            }
        }
    }

    /// Settles what a session is done with.
    pub(super) fn settle_done(&mut self, gateway: GatewayId) {
        let Self { gateways, log, subs, stats, .. } = self;
        let Some(session) = gateways.session_mut(gateway) else { return };
        while let Some(done) = session.pop_done() {
            let (number, targets) = match done.sent {
                Sent::Entry { number, targets } => (number, targets),
                Sent::OfPass { number, targets } => {
                    stats.acked += targets.ranges().map(|range| u64::from(range.end - range.start)).sum::<u64>();
                    let Some(entry) = log.get(number) else { continue };
                    let backend = entry.position.backend;
                    for target in
                        targets.ranges().flat_map(|range| &entry.targets[range.start as usize..range.end as usize])
                    {
                        let rare = subs.rare_if_any(target.sub);
                        if let Some(behind) = rare.and_then(|rare| rare.behind_mut(backend)) {
                            behind.done = later(behind.done, entry.position);
                        }
                    }
                    continue;
                }
                Sent::Resync { .. } => continue,
            };
            for range in targets.ranges() {
                stats.acked += u64::from(range.end - range.start);
                log.settle_all(number, range);
            }
        }
    }

    pub(super) fn settle(&mut self, settle: Settle) {
        let Settle { number, target } = settle;
        self.log.settle_all(number, target..target + 1);
    }

    /// Whether something in the log may be owed to this one of the Gateway's, or may have been.
    pub(super) fn may_be_owed(&mut self, gateway: GatewayId, id: SubId) -> bool {
        let is_told_from = |shard: &Self| {
            let cleared = shard.gateways.get(gateway).map_or(0, |known| known.cleared).max(shard.log.first());
            shard.subs.get(id).is_some_and(|sub| sub.may_be_told_from(cleared))
        };
        // The mark may not have been moved for long. An entry is passed by it once, whoever asks.
        is_told_from(self) && {
            self.clear(gateway, &mut Units::new(CLEARED_AT_ONCE));
            is_told_from(self)
        }
    }

    /// Lets the oldest entries go until one of so many bytes fits. Whether that has left anybody behind.
    fn make_room(&mut self, bytes: usize, out: &mut Vec<Output>) -> bool {
        if self.log.has_room(bytes) {
            return false;
        }
        // With the place before the first entry that each lacks.
        let mut fallen: Vec<(SubId, Position)> = Vec::new();
        let Self { log, subs, gateways, stats, .. } = self;
        let (mut touched, next) = (log.first(), log.next());
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
            let before = just_before(&entry.position);
            for run in entry.targets.chunk_by(|a, b| a.gateway == b.gateway) {
                let gateway = gateways.get_mut(run[0].gateway);
                let mut session = None;
                if let Some(gateway) = gateway {
                    let listed = gateway.log.pop_front();
                    debug_assert_eq!(listed, Some(number), "the log and a Gateway's list of it disagree");
                    session = gateway.session.as_ref();
                }
                let waits = session.is_some_and(|session| session.may_wait(number));
                for target in run {
                    // Nearly all have been done with, and have nothing else to be asked.
                    let is_plain = target.settled() && !entry.of_pass;
                    if is_plain && subs.advance_plain_tail(history, target.sub, &entry.position) {
                        continue;
                    }
                    let Some(sub) = subs.get(target.sub) else { continue };
                    let session = session.filter(|session| session.has_bound(sub));
                    if sub.has_rare() && subs.is_skipped(target.sub, number, &entry.position) {
                        continue;
                    }
                    if entry.of_pass {
                        // It has been sent, or its session has ended, or it is lost.
                        if session.is_some() && waits {
                            fallen.push((target.sub, before));
                        }
                        continue;
                    }
                    subs.advance_tail(target.sub, &entry.position);
                    match session {
                        _ if target.settled() => {}
                        // It has been sent, and the Gateway may be done with it yet; or it waits to be sent once more, and is missed
                        // when it has its turn.
                        Some(session) if !waits => {
                            let (session, seq) = (session.base(), session.replayed_upto());
                            subs.rare_mut(target.sub).lose(Lost { from: before, session, seq, before: next });
                        }
                        _ => fallen.push((target.sub, before)),
                    }
                }
            }
            log.evict();
        }
        let any = !fallen.is_empty();
        for (id, before) in fallen {
            self.fall_behind(id, before, Falls::Back, Cause::LeftLog, out);
        }
        any
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

/// Entries that a Gateway's mark is moved over for one question.
const CLEARED_AT_ONCE: u32 = 64;
/// Entries whose subscriptions are fetched together when they leave the log, and how many of these at most.
const TOUCHED_AHEAD: usize = 32;
const TARGETS_AHEAD: usize = 512;
/// What an event takes on the wire beside its body and its targets.
const SENT_BYTES: usize = 16;
const TARGET_SENT_BYTES: usize = 7;
