//! Where in a source's history something stands.
//!
//! Invariants:
//! - Positions compare only within one backend and one lineage, by `(time, k)`. Across them there is no order.
//! - A position without its token *is* the event id: the same event has the same id however often it is read.

use std::{cmp::Ordering, fmt, str::FromStr};

use bincode::{Decode, Encode, enc::Encoder, error::EncodeError};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

/// A configured backend, by a hash of its name, so that it means the same on every node and after every restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct BackendId(pub u32);

impl BackendId {
    /// The low 32 bits of XXH3-64 over the backend's configured name.
    pub fn of_name(name: &str) -> Self {
        Self(xxh3_64(name.as_bytes()) as u32)
    }
}

/// Identity of one history: which replica set, read through which pipeline and options. Positions of different lineages
/// can't be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Lineage(pub u64);

/// A place in the history of one backend, and the id of the event that stands there.
///
/// `time` is the source's cluster time as one number (for MongoDB: seconds in the high 32 bits, increment in the low 32
/// bits; for the embedded source: the log offset). `k` counts the events of that cluster time in this stream from 1, before
/// any filter; `k` = 0 is the place before the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Position {
    pub backend: BackendId,
    pub lineage: Lineage,
    pub time: u64,
    pub k: u32,
}

/// The id of an event is its position.
pub type EventId = Position;

impl Position {
    /// `None` when the two belong to different histories.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        (self.backend == other.backend && self.lineage == other.lineage).then(|| self.order().cmp(&other.order()))
    }

    /// What positions of one history are ordered by.
    pub fn order(&self) -> (u64, u32) {
        (self.time, self.k)
    }

    /// Whether `self` is in the history of `other`, and at or before it.
    pub fn is_covered_by(&self, other: &Self) -> bool {
        self.compare(other).is_some_and(Ordering::is_le)
    }
}

/// `backend-lineage-time-k`, each in hexadecimal.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:016x}-{:016x}-{:x}", self.backend.0, self.lineage.0, self.time, self.k)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("position {0:?} is not of the form backend-lineage-time-k in hexadecimal")]
pub struct BadPosition(pub String);

impl FromStr for Position {
    type Err = BadPosition;

    fn from_str(text: &str) -> Result<Self, BadPosition> {
        let parse = || {
            let mut parts = text.split('-');
            let position = Self {
                backend: BackendId(u32::from_str_radix(parts.next()?, 16).ok()?),
                lineage: Lineage(u64::from_str_radix(parts.next()?, 16).ok()?),
                time: u64::from_str_radix(parts.next()?, 16).ok()?,
                k: u32::from_str_radix(parts.next()?, 16).ok()?,
            };
            parts.next().is_none().then_some(position)
        };
        parse().ok_or_else(|| BadPosition(text.to_owned()))
    }
}

/// Positions of several backends: at most one for each. A subscription's place is such a list, since its collection may be
/// fed by more than one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Position>", into = "Vec<Position>")]
pub struct Positions(SmallVec<[Position; BACKENDS_AT_HAND]>);

/// Most subscriptions are fed by one backend.
const BACKENDS_AT_HAND: usize = 1;

impl Positions {
    pub fn get(&self, backend: BackendId) -> Option<&Position> {
        self.0.iter().find(|p| p.backend == backend)
    }

    /// Puts `position` in the place of what was known of its backend, whatever that was.
    pub fn set(&mut self, position: Position) {
        match self.0.iter_mut().find(|p| p.backend == position.backend) {
            Some(place) => *place = position,
            None => self.0.push(position),
        }
    }

    /// Moves forward to `position`. An earlier one in the same history changes nothing; another lineage replaces what was
    /// there, since the old history is over.
    pub fn advance(&mut self, position: Position) {
        match self.0.iter_mut().find(|have| have.backend == position.backend) {
            Some(have) if position.is_covered_by(have) => {}
            Some(have) => *have = position,
            None => self.0.push(position),
        }
    }

    /// Whether an event at `position` is at or before what is recorded here for its backend and lineage.
    pub fn covers(&self, position: &Position) -> bool {
        self.get(position.backend).is_some_and(|have| position.is_covered_by(have))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Position> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl From<Vec<Position>> for Positions {
    fn from(positions: Vec<Position>) -> Self {
        Self(positions.into())
    }
}

impl From<Positions> for Vec<Position> {
    fn from(positions: Positions) -> Self {
        positions.0.into_vec()
    }
}

impl Encode for Positions {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.as_slice().encode(encoder)
    }
}

impl FromIterator<Position> for Positions {
    /// The last position of a backend wins.
    fn from_iter<I: IntoIterator<Item = Position>>(positions: I) -> Self {
        let mut all = Self::default();
        positions.into_iter().for_each(|p| all.set(p));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(backend: u32, lineage: u64, time: u64, k: u32) -> Position {
        Position { backend: BackendId(backend), lineage: Lineage(lineage), time, k }
    }

    #[test]
    fn order_exists_within_one_history_only() {
        assert_eq!(at(1, 1, 5, 2).compare(&at(1, 1, 5, 3)), Some(Ordering::Less));
        assert_eq!(at(1, 1, 6, 0).compare(&at(1, 1, 5, 3)), Some(Ordering::Greater));
        assert_eq!(at(1, 1, 5, 2).compare(&at(1, 1, 5, 2)), Some(Ordering::Equal));
        assert_eq!(at(1, 1, 5, 2).compare(&at(2, 1, 5, 3)), None);
        assert_eq!(at(1, 1, 5, 2).compare(&at(1, 2, 5, 3)), None);
        assert!(!at(1, 1, 5, 2).is_covered_by(&at(1, 2, 9, 9)));
    }

    #[test]
    fn an_advance_goes_forward_or_to_another_history() {
        let mut positions = Positions::default();
        positions.advance(at(1, 1, 5, 2));
        positions.advance(at(1, 1, 4, 9));
        assert_eq!(positions.get(BackendId(1)), Some(&at(1, 1, 5, 2)));
        assert!(positions.covers(&at(1, 1, 5, 2)));
        assert!(!positions.covers(&at(1, 1, 5, 3)));
        positions.advance(at(1, 2, 1, 1));
        assert!(!positions.covers(&at(1, 1, 4, 9)), "the old history is over");
        positions.advance(at(2, 1, 1, 1));
        assert_eq!(positions.len(), 2);
    }

    #[test]
    fn text_comes_back() {
        for position in [at(0, 0, 0, 0), at(u32::MAX, u64::MAX, u64::MAX, u32::MAX), at(7, 8, 9, 10)] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for bad in ["", "1-2-3", "1-2-3-4-5", "x-2-3-4", "100000000-2-3-4"] {
            assert_eq!(bad.parse::<Position>(), Err(BadPosition(bad.into())));
        }
    }
}
