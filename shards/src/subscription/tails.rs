//! Up to where the log holds nothing of a subscription any more.

use wire::{Position, Positions};

use super::record::{RARE, TAKEN, Tail};
use super::{CHUNK, SubId, Subscriptions, chunk_of, place_of};

impl Subscriptions {
    /// An event for it has left the log, at a position of this history, see [`Subscriptions::history_of`]. False, and nothing is noted,
    /// where more has to be asked first: there is something rare about it, or it is its first event of that history.
    #[inline]
    pub(crate) fn advance_plain_tail(&mut self, history: u32, id: SubId, position: &Position) -> bool {
        let Some(chunk) = self.chunks.get_mut(chunk_of(id.slot)) else { return true };
        let (at, stamp) = (place_of(id.slot), id.stamp);
        let Some(place) = chunk.places.get(at).filter(|place| place.stamp == stamp && place.has(TAKEN)) else {
            return true;
        };
        let tail = chunk.tails.get_mut(at).filter(|tail| tail.history == history && !place.has(RARE));
        let Some(tail) = tail else { return false };
        if (tail.time, tail.k) < position.order() {
            (tail.time, tail.k) = (position.time, position.k);
        }
        true
    }

    /// The number of the history that a position is of.
    pub(crate) fn history_of(&mut self, position: &Position) -> u32 {
        let history = (position.backend, position.lineage);
        let at = self.histories.iter().position(|known| *known == history).unwrap_or_else(|| {
            self.histories.push(history);
            self.histories.len() - 1
        });
        at as u32 + 1
    }

    /// An event for it has left the log.
    pub(crate) fn advance_tail(&mut self, id: SubId, position: &Position) {
        if self.get(id).is_none() {
            return;
        }
        let history = self.history_of(position);
        let tails = &mut self.chunks[chunk_of(id.slot)].tails;
        if tails.is_empty() {
            tails.resize(CHUNK, Tail::default());
        }
        let tail = &mut tails[place_of(id.slot)];
        let new = Tail { time: position.time, k: position.k, history };
        if tail.history == history {
            if (tail.time, tail.k) < position.order() {
                *tail = new;
            }
        } else if tail.history == 0 || self.histories[tail.history as usize - 1].0 == position.backend {
            *tail = new;
        } else {
            self.rare_mut(id).tails.advance(*position);
        }
    }

    /// The last event for it that has left the log, by backend: from before that, nothing can be replayed.
    pub(crate) fn tail_of(&self, id: SubId) -> Positions {
        let mut tail = self.rare(id).map_or_else(Positions::default, |rare| rare.tails.clone());
        let first = self.get(id).and_then(|_| self.chunks[chunk_of(id.slot)].tails.get(place_of(id.slot)));
        if let Some(first) = first.filter(|first| first.history > 0) {
            let (backend, lineage) = self.histories[first.history as usize - 1];
            tail.set(Position { backend, lineage, time: first.time, k: first.k });
        }
        tail
    }

    pub(crate) fn clear_tail(&mut self, id: SubId) {
        if self.get(id).is_none() {
            return;
        }
        if let Some(tail) = self.chunks[chunk_of(id.slot)].tails.get_mut(place_of(id.slot)) {
            *tail = Tail::default();
        }
        if let Some(rare) = self.rare_if_any(id) {
            rare.tails = Positions::default();
        }
    }
}
