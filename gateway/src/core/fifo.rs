//! The one queue towards the application, and what it means for an item to be done.
//!
//! Invariants:
//! - Entries leave at the front only, and only when done. So an entry takes effect once all before it are done.
//! - Entries before `handed` have been given to the application or needed no giving; those from there on wait, and `waiting` of them hold an
//!   event.
//! - A token is the entry's number since the beginning; `base` is the number of the front entry.

use std::collections::{BTreeMap, VecDeque};

use wire::{Position, Positions};

use super::{SessionId, event::AppEvent, session::Floor, subscriptions::SubscriptionRef};

/// Names an item given to the application until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u64);

/// What being done brings about, besides the session's ack.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The subscription is done up to here.
    Advance(Position),
    /// The subscription begins anew at these positions. Heartbeats up to this version are no longer about it.
    Replace(Box<Floor>),
    /// What a heartbeat said, for all subscriptions of its session that were bound before.
    Floor(Box<Floor>),
    /// Heartbeats after this one are not about the subscription.
    CatchingUp,
    /// Those after this version are again.
    CaughtUp {
        floor_version: u64,
    },
    /// The subscription has ended.
    End,
}

impl Effect {
    pub(super) fn replace(positions: Positions, floor_version: u64) -> Self {
        Self::Replace(Box::new(Floor { positions, version: floor_version }))
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    /// `None` once it was given out, and for marks, which only have an effect.
    pub(super) event: Option<AppEvent>,
    pub(super) subscription: Option<SubscriptionRef>,
    pub(super) session: SessionId,
    /// The session's `done` once this entry is; 0 leaves it as it is.
    pub(super) seq: u64,
    pub(super) bytes: usize,
    pub(super) effect: Effect,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Handed,
    Done,
}

/// What is to become of an item that is next for the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Wanted,
    /// It is done unseen.
    Unwanted,
    /// It can't be told yet. Nothing behind it is given out before it is.
    HeldBack,
}

#[derive(Debug, Default)]
pub(super) struct Fifo {
    entries: VecDeque<Entry>,
    base: u64,
    handed: usize,
    waiting: usize,
    /// The session of the entry that was pushed last.
    last: Option<SessionId>,
    /// The number of the last entry of each other session, be it that this has left.
    last_of: BTreeMap<SessionId, u64>,
}

impl Entry {
    /// An entry that the application doesn't see.
    pub(super) fn mark(session: SessionId, seq: u64, effect: Effect) -> Self {
        Self { event: None, subscription: None, session, seq, bytes: 0, effect, state: State::Done }
    }
}

impl Fifo {
    #[inline]
    pub(super) fn push(&mut self, entry: Entry) {
        // Marks without an effect of their own pile up on idle applications and busy duplicates: one of a session is enough, where nothing
        // of that session stands behind it. What stands there of others is none of its business: whatever it speaks of was bound in its
        // session, which is an entry before it, and so are the items that came of it in sessions before.
        if entry.is_plain_mark()
            && let Some(last) = self.last_number(entry.session).and_then(|number| number.checked_sub(self.base))
            && let Some(last) = self.entries.get_mut(last as usize).filter(|last| last.is_plain_mark())
        {
            last.seq = last.seq.max(entry.seq);
            if let Effect::Floor(_) = entry.effect {
                last.effect = entry.effect;
            }
            return;
        }
        debug_assert!(entry.event.is_some() || entry.state == State::Done, "what nobody sees can't wait");
        if self.last != Some(entry.session)
            && let Some(before) = self.last.replace(entry.session)
        {
            self.last_of.insert(before, self.next_number() - 1);
        }
        self.waiting += usize::from(entry.event.is_some());
        self.entries.push_back(entry);
    }

    /// The number of the entry that is pushed next.
    pub(super) fn next_number(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    fn last_number(&self, session: SessionId) -> Option<u64> {
        match self.last == Some(session) {
            true => self.next_number().checked_sub(1),
            false => self.last_of.get(&session).copied(),
        }
    }

    /// Nothing more comes of this session.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.last_of.remove(&session);
        self.last = self.last.filter(|last| *last != session);
    }

    /// Gives the last entry its session's count.
    pub(super) fn set_last_seq(&mut self, seq: u64) {
        if let Some(last) = self.entries.back_mut() {
            last.seq = seq;
        }
    }

    /// The entry of this number.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Entry> {
        self.entries.get_mut(number.checked_sub(self.base)? as usize)
    }

    /// The next item that waits for the application.
    pub(super) fn hand(
        &mut self,
        mut fate: impl FnMut(SubscriptionRef) -> Fate,
    ) -> Option<(Token, Option<SubscriptionRef>, AppEvent)> {
        while let Some(entry) = self.entries.get_mut(self.handed) {
            match entry.subscription.map_or(Fate::Wanted, &mut fate) {
                Fate::Wanted => {}
                Fate::Unwanted => self.waiting -= usize::from(entry.event.take().is_some()),
                Fate::HeldBack if entry.event.is_some() => return None,
                Fate::HeldBack => {}
            }
            let token = Token(self.base + self.handed as u64);
            self.handed += 1;
            match entry.event.take() {
                Some(event) => {
                    self.waiting -= 1;
                    entry.state = if event.is_notice() { State::Done } else { State::Handed };
                    return Some((token, entry.subscription, event));
                }
                None => entry.state = State::Done,
            }
        }
        None
    }

    /// Takes note that the application is done with an item. A token that is not out changes nothing.
    pub(super) fn done(&mut self, token: Token) {
        let Some(place) = token.0.checked_sub(self.base).and_then(|place| usize::try_from(place).ok()) else { return };
        if place < self.handed {
            self.entries[place].state = State::Done;
        }
    }

    /// The same of all items up to this one that are out.
    pub(super) fn done_up_to(&mut self, token: Token) {
        let Some(place) = token.0.checked_sub(self.base).and_then(|place| usize::try_from(place).ok()) else { return };
        let out = self.handed.min(place.saturating_add(1));
        self.entries.range_mut(..out).for_each(|entry| entry.state = State::Done);
    }

    /// Whether [`Fifo::pop_done`] would give the front entry for being done.
    pub(super) fn is_front_done(&self) -> bool {
        self.entries.front().is_some_and(|front| front.state == State::Done)
    }

    /// The front entry, if it is done or nobody has to see it. To be called until it gives `None`.
    pub(super) fn pop_done(&mut self, mut wanted: impl FnMut(SubscriptionRef) -> bool) -> Option<Entry> {
        let front = self.entries.front()?;
        let unwanted = front.state == State::Waiting && !front.subscription.is_none_or(&mut wanted);
        if front.state != State::Done && !unwanted {
            return None;
        }
        self.base += 1;
        self.handed = self.handed.saturating_sub(1);
        let front = self.entries.pop_front();
        self.waiting -= usize::from(front.as_ref().is_some_and(|front| front.event.is_some()));
        front
    }

    /// Whether the next item that waits for the application is held back.
    pub(super) fn is_held_back(&self, fate: impl FnOnce(SubscriptionRef) -> Fate) -> bool {
        let next = self.entries.get(self.handed).filter(|entry| entry.event.is_some());
        next.and_then(|entry| entry.subscription).map(fate) == Some(Fate::HeldBack)
    }

    /// Items that wait for the application or for its being done.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is left to give out.
    pub(super) fn is_drained(&self) -> bool {
        self.waiting == 0
    }
}

impl Entry {
    fn is_plain_mark(&self) -> bool {
        self.event.is_none()
            && self.subscription.is_none()
            && self.state == State::Done
            && self.bytes == 0
            && matches!(self.effect, Effect::None | Effect::Floor(_))
    }
}
