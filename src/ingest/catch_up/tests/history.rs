//! What a source has, and how a cursor is opened in it.

use bytes::Bytes;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Insert,
    Drop,
    /// Too large to be read.
    Large,
    /// Of an operation that concerns nobody.
    Other,
}

pub(super) struct Event {
    pub(super) collection: u64,
    pub(super) kind: Kind,
    pub(super) position: (u64, u32),
    pub(super) bytes: Bytes,
}

/// What a source has, in its order.
#[derive(Default)]
pub(super) struct History {
    pub(super) events: Vec<Event>,
    /// The source's clock: nothing happens before it any more.
    pub(super) clock: u64,
}

impl History {
    pub(super) fn push(&mut self, time: u64, collection: u64, kind: Kind) {
        let last = self.events.last().map(|event| event.position);
        let k = last.filter(|(last, _)| *last == time).map_or(1, |(_, k)| k + 1);
        let mut event = doc! {
            "_id": { "_data": self.events.len().to_string() },
            "clusterTime": Bson::Timestamp(Timestamp { time: (time >> 32) as u32, increment: time as u32 }),
            "operationType": match kind { Kind::Insert | Kind::Large => "insert", Kind::Drop => "drop", Kind::Other => "create" },
            "ns": { "db": "t", "coll": name(collection) },
        };
        if matches!(kind, Kind::Insert | Kind::Large) {
            event.insert("documentKey", doc! { "_id": 1 });
        }
        if kind == Kind::Insert {
            event.insert("fullDocument", doc! { "_id": 1 });
        }
        self.events.push(Event { collection, kind, position: (time, k), bytes: event.to_vec().unwrap().into() });
    }

    pub(super) fn grow(&mut self, random: &mut StdRng) {
        let last = self.events.last().map_or(10 << 32, |event| event.position.0).max(self.clock);
        let time = match random.random_range(0..3) {
            0 => last,
            1 => last + 1,
            _ => last + (1 << 32),
        };
        let kind = match random.random_range(0..20) {
            0 => Kind::Drop,
            1 => Kind::Large,
            2 => Kind::Other,
            _ => Kind::Insert,
        };
        self.push(time, random.random_range(0..COLLECTIONS), kind);
    }

    /// Where a cursor stands that is opened so, and the place that it tells.
    pub(super) fn open(&self, start: &Start) -> (usize, (u64, u32)) {
        match start {
            Start::At { time } => (self.events.partition_point(|event| event.position.0 < *time), (*time, 0)),
            Start::After { position, token } => {
                let token = bson::RawDocument::from_bytes(&token.0).unwrap().get_str("_data").unwrap();
                (token.parse::<usize>().unwrap() + 1, position.order())
            }
            Start::Now => unreachable!("nothing is opened so here"),
        }
    }

    pub(super) fn token_before(&self, cursor: usize) -> Option<ResumeToken> {
        let token = doc! { "_data": cursor.checked_sub(1)?.to_string() };
        Some(ResumeToken(token.to_vec().unwrap().into()))
    }

    pub(super) fn is_large(&self, cursor: usize) -> bool {
        self.events.get(cursor).is_some_and(|event| event.kind == Kind::Large)
    }

    /// The positions that a subscription gets which has `after`: of its collection, and what is told to all of it.
    pub(super) fn wanted(&self, collection: u64, after: (u64, u32)) -> Vec<(u64, u32)> {
        let wanted =
            |event: &&Event| event.collection == collection && event.kind != Kind::Other && event.position > after;
        self.events.iter().filter(wanted).map(|event| event.position).collect()
    }
}
