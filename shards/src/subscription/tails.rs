//! Up to where the log holds nothing of a subscription any more.

use wire::{Position, Positions};

use super::record::{TAKEN, Tail};
use super::{CHUNK, SubId, Subscriptions, chunk_of, place_of};

impl Subscriptions {
    /// An event for it has left the log, at a position of this history, see [`Subscriptions::history_of`].
    #[inline]
    pub(crate) fn advance_tail_in(&mut self, history: u32, id: SubId, position: &Position) {
        if let Some(chunk) = self.chunks.get_mut(chunk_of(id.slot))
            && chunk.places.get(place_of(id.slot)).is_some_and(|place| place.stamp == id.stamp && place.has(TAKEN))
            && let Some(tail) = chunk.tails.get_mut(place_of(id.slot))
            && tail.history == history
        {
            if (tail.time, tail.k) < position.order() {
                *tail = Tail { time: position.time, k: position.k, history };
            }
        } else {
            self.advance_tail(id, position);
        }
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
