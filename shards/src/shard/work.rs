//! What is worked off in slices, so that changes are delivered in between, whatever else is asked of the shard at once.
//!
//! Work is counted in units of roughly 100 ns. An input is acted upon at once as far as the credit of this slice goes, and the rest
//! waits in one of the rows below, which [`Shard::work`] goes on with.
//!
//! Invariants:
//! - Whoever stands in a row can go on when its turn comes: what has to be waited for stands in none.
//! - Requests of one session, and commands, are acted upon in their order.
//! - In each slice every row has its share, so that none starves another.

use std::collections::{BTreeSet, VecDeque};

use super::Shard;
use super::behind::PassEnded;
use crate::session::{InFlight, Item, ItemState};
use crate::subscription::{CHUNK, GatewayId, Lost, PassKey, SubId};
use crate::{Command, CommandId, Millis, Output};
use wire::{CloseReason, SubscribeItem};

const ROWS: u32 = 7;

pub(super) const EXAMINE_UNITS: u32 = 4;
/// An item that is acted upon.
pub(super) const ITEM_UNITS: u32 = 4;
/// A subscription that comes in, or ends.
pub(super) const LIFE_UNITS: u32 = 12;
/// A subscription that goes live or is bound.
pub(super) const BIND_UNITS: u32 = 6;
/// A log entry that is looked at.
pub(super) const ENTRY_UNITS: u32 = 1;
/// Places, or pieces of memory, for one unit.
const PLACES_A_UNIT: usize = 8;

/// What is left of a slice, or of a row's share of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Units(u32);

impl Units {
    pub(super) fn new(units: u32) -> Self {
        Self(units)
    }

    pub(super) fn take(&mut self, units: u32) {
        self.0 = self.0.saturating_sub(units);
    }

    pub(super) fn are_spent(&self) -> bool {
        self.0 == 0
    }

    /// How many things of this cost there is room for, at least one.
    pub(super) fn room_for(&self, cost: u32) -> usize {
        (self.0 / cost).max(1) as usize
    }
}

#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Gateways whose requests can go on.
    pub(super) turns: VecDeque<GatewayId>,
    pub(super) commands: VecDeque<Command>,
    /// The first command, once it is being worked on: all subscriptions of a Gateway are removed.
    pub(super) removing: Option<Removing>,
    /// Gateways in whose log entries something isn't waited for any more.
    pub(super) forgiving: VecDeque<GatewayId>,
    pub(super) check: Option<Check>,
    /// Those whom passes served that have ended.
    pub(super) passes_ended: VecDeque<PassEnded>,
    /// What sessions have left behind.
    pub(super) left_behind: VecDeque<LeftBehind>,
}

#[derive(Debug)]
pub(super) struct Removing {
    pub(super) command: CommandId,
    pub(super) gateway: GatewayId,
    pub(super) count: u64,
}

/// The look at everybody that is made every so often.
#[derive(Debug)]
pub(super) struct Check {
    chunk: usize,
    place: usize,
    /// Whoever's time ran out by then has ended. Renewals that came before then have been taken in.
    time: u64,
    /// Whether there is anybody whom no session keeps.
    expires: bool,
}

#[derive(Debug)]
pub(super) enum LeftBehind {
    /// What the control side was asked about, and answered.
    Items {
        gateway: GatewayId,
        items: std::vec::IntoIter<SubscribeItem>,
        states: std::vec::IntoIter<ItemState>,
    },
    Queue(VecDeque<Item>),
    InFlight(VecDeque<InFlight>),
    Waiting(BTreeSet<(PassKey, SubId)>),
}

impl Shard {
    /// Whether [`Shard::work`] has something to do.
    pub fn has_work(&self) -> bool {
        let Rows { turns, commands, removing, forgiving, check, passes_ended, left_behind } = &self.rows;
        !turns.is_empty()
            || !commands.is_empty()
            || removing.is_some()
            || !forgiving.is_empty()
            || check.is_some()
            || !passes_ended.is_empty()
            || !left_behind.is_empty()
            || self.pending.has_confirmed()
    }

    /// Does a slice of the work that waits. To be called once in each round of inputs, and again as long as it says true, other
    /// inputs in between. It also gives inputs new credit. An [`Input::Tick`](crate::Input::Tick) does a slice, too.
    pub fn work(&mut self, now: Millis, out: &mut Vec<Output>) -> bool {
        self.set_time(now);
        self.give_credit();
        self.slice(out);
        self.has_work()
    }

    pub(super) fn give_credit(&mut self) {
        self.credit = Units::new(self.config.slice_units);
    }

    pub(super) fn slice(&mut self, out: &mut Vec<Output>) {
        if !self.has_work() {
            return;
        }
        let rows: [fn(&mut Self, &mut Units, &mut Vec<Output>); ROWS as usize] = [
            Self::go_live_in_turn,
            Self::run_commands,
            Self::take_turns,
            Self::forgive_in_turn,
            Self::check_in_turn,
            Self::end_passes_in_turn,
            Self::clear_up,
        ];
        let mut left = self.config.slice_units;
        for share in [(left / ROWS / 2).max(1), left] {
            for row in rows {
                let share = share.min(left);
                let mut units = Units::new(share);
                if share > 0 {
                    row(self, &mut units, out);
                }
                left -= share - units.0;
            }
        }
    }

    fn go_live_in_turn(&mut self, units: &mut Units, out: &mut Vec<Output>) {
        while !units.are_spent()
            && let Some(id) = self.pending.next_confirmed()
        {
            units.take(BIND_UNITS);
            if !self.wake(id, out) {
                debug_assert!(false, "{id:?} is confirmed and doesn't go live");
                return;
            }
        }
    }

    /// Its requests can go on.
    pub(super) fn give_turn(&mut self, gateway: GatewayId) {
        if let Some(known) = self.gateways.get_mut(gateway)
            && !std::mem::replace(&mut known.has_turn, true)
        {
            self.rows.turns.push_back(gateway);
        }
    }

    /// One Gateway after the other, each for a part of the share, so that a large one doesn't keep a small one waiting.
    fn take_turns(&mut self, units: &mut Units, out: &mut Vec<Output>) {
        let turn = (self.config.slice_units / TURNS).max(1);
        while !units.are_spent()
            && let Some(gateway) = self.rows.turns.pop_front()
        {
            if let Some(known) = self.gateways.get_mut(gateway) {
                known.has_turn = false;
            }
            let mut turn = Units::new(units.0.min(turn));
            let before = turn.0;
            self.answer(gateway, &mut turn, out);
            // A turn that found nothing costs something too.
            units.take((before - turn.0).max(1));
        }
    }

    /// Something that this Gateway was owed has been given up: the log is to be told in time.
    pub(super) fn forgive_later(&mut self, gateway: GatewayId) {
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        match known.forgiving {
            Some(_) => known.forgive_again = true,
            None => {
                known.forgiving = Some(known.cleared);
                self.rows.forgiving.push_back(gateway);
            }
        }
    }

    fn forgive_in_turn(&mut self, units: &mut Units, out: &mut Vec<Output>) {
        let _ = out;
        while !units.are_spent()
            && let Some(gateway) = self.rows.forgiving.pop_front()
        {
            if self.forgive(gateway, units) {
                self.rows.forgiving.push_back(gateway);
            }
        }
    }

    pub(super) fn start_check(&mut self) {
        if self.rows.check.is_none() {
            let expires = |members: &crate::subscription::Members, here: bool| {
                members.by_http > 0 || !(here || members.is_empty())
            };
            let expires = self.gateways.iter().any(|(_, gateway)| expires(&gateway.members, gateway.session.is_some()));
            self.rows.check = Some(Check { chunk: 0, place: 0, time: self.time, expires });
        }
    }

    /// Ends what has run out of time, and forgets what says nothing any more.
    fn check_in_turn(&mut self, units: &mut Units, out: &mut Vec<Output>) {
        while !units.are_spent()
            && let Some(check) = &mut self.rows.check
        {
            let Check { chunk, place, time, expires } = *check;
            if chunk >= self.subs.chunks() {
                self.rows.check = None;
                for gateway in self.gateways.ids() {
                    self.gateways.forget_if_idle(gateway);
                }
                return;
            }
            let mut gone: Vec<SubId> = Vec::new();
            let mut next = CHUNK;
            if expires {
                let room = units.room_for(LIFE_UNITS);
                for (id, _) in self.subs.iter_chunk(chunk, place) {
                    if gone.len() >= room {
                        next = id.slot as usize % CHUNK;
                        break;
                    }
                    if self.expires_at(id).is_some_and(|at| at <= time) {
                        gone.push(id);
                    }
                }
                units.take(((next - place) / PLACES_A_UNIT) as u32 + LIFE_UNITS * gone.len() as u32);
            }
            units.take(1);
            if let Some(check) = &mut self.rows.check {
                (check.chunk, check.place) = if next < CHUNK { (chunk, next) } else { (chunk + 1, 0) };
            }
            if !gone.is_empty() {
                self.end(gone, CloseReason::Expired, out);
            }
            if next == CHUNK {
                let gateways = &self.gateways;
                let is_done =
                    |id: GatewayId, lost: &Lost| gateways.get(id).is_some_and(|gateway| gateway.is_done(lost));
                let tidied = self.subs.tidy_chunk(chunk, self.marks.received(), self.log.first(), is_done);
                units.take((tidied / PLACES_A_UNIT) as u32);
            }
        }
    }

    fn clear_up(&mut self, units: &mut Units, out: &mut Vec<Output>) {
        while !units.are_spent()
            && let Some(left) = self.rows.left_behind.front_mut()
        {
            units.take(ITEM_UNITS);
            match left {
                LeftBehind::Queue(items) if !items.is_empty() => {
                    items.truncate(items.len().saturating_sub(ITEM_UNITS as usize * PLACES_A_UNIT));
                }
                LeftBehind::InFlight(sent) if !sent.is_empty() => {
                    sent.truncate(sent.len().saturating_sub(ITEM_UNITS as usize * PLACES_A_UNIT));
                }
                LeftBehind::Items { gateway, items, states } => {
                    let gateway = *gateway;
                    if let Some((item, state)) = items.next().zip(states.next()) {
                        self.asked_in_vain(gateway, &item.key, &state, out);
                        continue;
                    }
                    self.rows.left_behind.pop_front();
                    self.gateways.forget_if_idle(gateway);
                }
                LeftBehind::Waiting(subs) if !subs.is_empty() => {
                    (0..ITEM_UNITS as usize * PLACES_A_UNIT).for_each(|_| _ = subs.pop_first());
                }
                LeftBehind::Queue(_) | LeftBehind::InFlight(_) | LeftBehind::Waiting(_) => {
                    drop(self.rows.left_behind.pop_front());
                }
            }
        }
    }
}

/// Turns that there are at least in one slice, if so many Gateways wait.
const TURNS: u32 = 8;
