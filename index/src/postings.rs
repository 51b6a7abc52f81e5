//! Who hangs on a key: records, one a key, and the lists of those that more than one hangs on.
//!
//! Invariants:
//! - A record has at least one item, and stands in the table under the tag of its key.
//! - What leaves a list is replaced by its last item, so that leaving costs the same however long the list is; whoever was moved is
//!   told to the caller, who sets its place right.

use crate::arena::Arena;
use crate::key::{At, Payload, Seeds};
use crate::machine::prefetch;
use crate::table::Table;

/// No item.
const NONE: u32 = u32::MAX;
/// Set where the rest is the number of a list; else it is the only item.
const LIST: u32 = 1 << 31;

/// What hangs on one key: half a cache line.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) partition: u32,
    pub(crate) node_class: u32,
    /// Subscriptions that match because the key is there: their slots.
    pub(crate) sure: Items,
    /// Predicates that may hold: their numbers. For a key of ranges, the number of the set.
    pub(crate) rest: Items,
    payload: Payload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Items(u32);

impl Items {
    pub(crate) const NONE: Items = Items(NONE);

    pub(crate) fn is_none(self) -> bool {
        self.0 == NONE
    }

    /// The number itself, where it is that of a set.
    pub(crate) fn set(self) -> u32 {
        self.0
    }

    pub(crate) fn of_set(set: u32) -> Items {
        Items(set)
    }
}

impl Default for Record {
    fn default() -> Self {
        Self { partition: 0, node_class: 0, sure: Items::NONE, rest: Items::NONE, payload: Payload::of_word(0) }
    }
}

impl Record {
    pub(crate) fn at(&self) -> At {
        At { partition: self.partition, node_class: self.node_class }
    }
}

#[derive(Debug)]
pub(crate) struct Postings {
    seeds: Seeds,
    table: Table,
    records: Arena<Record>,
    lists: Arena<Vec<u32>>,
    /// Payloads that are not short.
    longs: Arena<Box<[u8]>>,
}

/// Which of a record's two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Sure,
    Rest,
}

impl Record {
    fn lane(&mut self, lane: Lane) -> &mut Items {
        match lane {
            Lane::Sure => &mut self.sure,
            Lane::Rest => &mut self.rest,
        }
    }
}

impl Postings {
    pub(crate) fn new(seeds: Seeds) -> Self {
        Self {
            seeds,
            table: Table::default(),
            records: Arena::default(),
            lists: Arena::default(),
            longs: Arena::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.len() == 0 && self.lists.len() == 0 && self.longs.len() == 0 && self.table.len() == 0
    }

    #[inline]
    pub(crate) fn prefetch(&self, tag: u32) {
        self.table.prefetch(tag);
    }

    /// Announces that a record will come or go.
    #[inline]
    pub(crate) fn prefetch_change(&self, tag: u32) {
        self.table.prefetch_change(tag);
    }

    /// False only where no key of this tag is there.
    #[inline]
    pub(crate) fn may_have(&self, tag: u32) -> bool {
        self.table.may_have(tag)
    }

    #[inline]
    pub(crate) fn prefetch_record(&self, record: u32) {
        prefetch(self.records.get(record));
    }

    #[inline]
    pub(crate) fn prefetch_items(&self, items: Items) {
        if items.0 & LIST != 0 && !items.is_none() {
            prefetch(self.lists.get(items.0 & !LIST));
        }
    }

    /// Announces a look at a list itself.
    #[inline]
    pub(crate) fn prefetch_list(&self, items: Items) {
        if items.0 & LIST != 0
            && !items.is_none()
            && let Some(first) = self.lists.get(items.0 & !LIST).first()
        {
            prefetch(first);
        }
    }

    /// Numbers of records that may be meant; [`Postings::is`] tells of each whether it is.
    #[inline]
    pub(crate) fn candidates(&self, tag: u32, mut each: impl FnMut(u32)) {
        self.table.candidates(tag, &mut each);
    }

    /// Whether the record is of this key. `long` are the bytes of a payload that is not short.
    #[inline]
    pub(crate) fn is<'b>(&self, record: u32, at: At, payload: Payload, long: impl FnOnce() -> &'b [u8]) -> bool {
        let record = self.records.get(record);
        if record.at() != at {
            return false;
        }
        let kept = record.payload;
        if !payload.is_long() {
            return kept == payload;
        }
        kept.is_long() && kept.low() == payload.low() && **self.longs.get(kept.number()) == *long()
    }

    #[inline]
    pub(crate) fn find(&self, at: At, payload: Payload, long: &[u8]) -> Option<u32> {
        self.table.find(at.tag(payload, &self.seeds), |record| self.is(record, at, payload, || long))
    }

    /// The record of a key, given by the bytes of its payload, and its tag if it is new: then it has no items yet, and must get one.
    pub(crate) fn open(&mut self, at: At, bytes: &[u8]) -> (u32, Option<u32>) {
        let payload = Payload::of(bytes, &self.seeds);
        let tag = at.tag(payload, &self.seeds);
        // What a new one changes is read while the old ones are looked through.
        self.table.prefetch_change(tag);
        if let Some(record) = self.table.find(tag, |record| self.is(record, at, payload, || bytes)) {
            return (record, None);
        }
        let kept = if payload.is_long() { payload.numbered(self.longs.insert(bytes.into())) } else { payload };
        let record = self.records.insert(Record {
            partition: at.partition,
            node_class: at.node_class,
            payload: kept,
            ..Record::default()
        });
        self.table.insert(tag, record);
        (record, Some(tag))
    }

    #[inline]
    pub(crate) fn record(&self, record: u32) -> &Record {
        self.records.get(record)
    }

    pub(crate) fn record_mut(&mut self, record: u32) -> &mut Record {
        self.records.get_mut(record)
    }

    pub(crate) fn payload_length(&self, record: u32) -> usize {
        let payload = self.records.get(record).payload;
        match payload.is_long() {
            true => self.longs.get(payload.number()).len(),
            false => payload.length(),
        }
    }

    /// The tag of a record's key.
    pub(crate) fn tag(&self, record: u32) -> u32 {
        let known = self.records.get(record);
        let payload = if known.payload.is_long() { known.payload.numbered(0) } else { known.payload };
        known.at().tag(payload, &self.seeds)
    }

    /// Takes a record away that nothing hangs on any more. Whether it was so.
    pub(crate) fn close_if_empty(&mut self, record: u32) -> bool {
        let known = self.records.get(record);
        if !known.sure.is_none() || !known.rest.is_none() {
            return false;
        }
        self.table.remove(self.tag(record), record);
        let payload = self.records.remove(record).payload;
        if payload.is_long() {
            self.longs.remove(payload.number());
        }
        true
    }

    #[inline]
    pub(crate) fn items(&self, items: &Items) -> ItemList<'_> {
        match items.0 {
            NONE => ItemList::One(None),
            list if list & LIST != 0 => ItemList::Many(self.lists.get(list & !LIST)),
            one => ItemList::One(Some(one)),
        }
    }

    /// The only item.
    #[inline]
    pub(crate) fn only(&self, items: Items) -> Option<u32> {
        (items.0 & LIST == 0).then_some(items.0)
    }

    pub(crate) fn count(&self, items: &Items) -> usize {
        match self.items(items) {
            ItemList::One(one) => usize::from(one.is_some()),
            ItemList::Many(many) => many.len(),
        }
    }

    /// Gives the place of the new item.
    pub(crate) fn add(&mut self, record: u32, lane: Lane, item: u32) -> u32 {
        debug_assert!(item < LIST, "items and lists share 32 bits");
        let items = self.records.get_mut(record).lane(lane);
        match items.0 {
            NONE => {
                items.0 = item;
                0
            }
            list if list & LIST != 0 => {
                let list = self.lists.get_mut(list & !LIST);
                list.push(item);
                list.len() as u32 - 1
            }
            one => {
                let mut list = Vec::with_capacity(2);
                list.extend([one, item]);
                items.0 = self.lists.insert(list) | LIST;
                1
            }
        }
    }

    /// Takes the item at a place away. Gives the item that stands there now, and the place where it stood before.
    pub(crate) fn remove(&mut self, record: u32, lane: Lane, at: u32) -> Option<(u32, u32)> {
        let items = self.records.get_mut(record).lane(lane);
        if items.0 & LIST == 0 || items.is_none() {
            *items = Items::NONE;
            return None;
        }
        let number = items.0 & !LIST;
        let list = self.lists.get_mut(number);
        list.swap_remove(at as usize);
        let moved = list.get(at as usize).map(|item| (*item, list.len() as u32));
        if list.is_empty() {
            *items = Items::NONE;
            self.lists.remove(number);
        } else if list.capacity() > 64 && list.len() < list.capacity() / 4 {
            list.shrink_to(list.len() * 2);
        }
        moved
    }
}

/// The items of a list.
pub(crate) enum ItemList<'a> {
    One(Option<u32>),
    Many(&'a [u32]),
}

impl ItemList<'_> {
    pub(crate) fn at(&self, at: u32) -> Option<u32> {
        match self {
            ItemList::One(one) => *one,
            ItemList::Many(many) => many.get(at as usize).copied(),
        }
    }

    #[inline]
    pub(crate) fn each(&self, each: impl FnMut(u32)) {
        match self {
            ItemList::One(one) => one.iter().copied().for_each(each),
            ItemList::Many(many) => many.iter().copied().for_each(each),
        }
    }
}
