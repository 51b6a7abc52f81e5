//! The fields of a raw change event, found without making anything of what nobody asked for.
//!
//! Invariant: [`RawEvent::parse`] answers as reading the event with the `bson` crate's iterator does ([`RawEvent::carefully`]), for
//! whatever bytes. The quick way takes events of the form that sources write; what it isn't sure of is read again carefully.

use bson::{RawBsonRef, RawDocument};
use predicate::{field, stored_string_head, value_of};
use shards::StoredId;

use super::elements::{Element, Elements, Unsure, is_text, kind, text};

/// The event is not of the form that the source's protocol promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("change event is not valid BSON: {0}")]
    Bson(String),
    #[error("change event lacks `{0}`")]
    Lacks(&'static str),
    #[error("change event is a piece of one that is too large for a document")]
    Piece,
}

/// `operationType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verb {
    #[default]
    Missing,
    Insert,
    Update,
    Replace,
    Delete,
    Drop,
    Rename,
    DropDatabase,
    Invalidate,
    /// One that changes no document, or that this version doesn't know.
    Other,
}

impl Verb {
    #[inline(always)]
    fn of(name: &[u8]) -> Self {
        match name {
            b"insert" => Self::Insert,
            b"update" => Self::Update,
            b"replace" => Self::Replace,
            b"delete" => Self::Delete,
            b"drop" => Self::Drop,
            b"rename" => Self::Rename,
            b"dropDatabase" => Self::DropDatabase,
            b"invalidate" => Self::Invalidate,
            b"" => Self::Missing,
            _ => Self::Other,
        }
    }

    /// From the value of a string.
    #[inline(always)]
    fn of_value(value: &[u8]) -> Result<Self, Unsure> {
        let name = value.get(4..value.len() - 1).ok_or(Unsure)?;
        match Self::of(name) {
            Self::Other if !is_text(name) => Err(Unsure),
            verb => Ok(verb),
        }
    }
}

/// `_id` of a document, as stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Key<'a> {
    /// UTF-8.
    Text(&'a [u8]),
    /// An object id or an integer: the byte of its type, and its value.
    Simple(u8, &'a [u8]),
    Other(RawBsonRef<'a>),
}

impl<'a> Key<'a> {
    pub fn value(self) -> RawBsonRef<'a> {
        match self {
            Self::Text(text) => {
                RawBsonRef::String(std::str::from_utf8(text).expect("a key is found to be UTF-8 when it is read"))
            }
            Self::Simple(kind, value) => value_of(kind, value).expect("any bytes are a value of these types"),
            Self::Other(value) => value,
        }
    }

    /// As [`predicate::stored_id`] has it.
    pub(super) fn stored(self) -> StoredId {
        match self {
            Self::Text(text) => stored_text(text),
            Self::Simple(kind, value) => [kind].iter().chain(value).copied().collect(),
            Self::Other(value) => predicate::stored_id(value).into(),
        }
    }

    /// The text, or nothing.
    #[inline(always)]
    pub(super) fn text(&self) -> &'a [u8] {
        if let Self::Text(text) = self { text } else { &[] }
    }
}

/// A change event's fields, borrowed from its bytes. What is a document in the event is the bytes of one here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawEvent<'a> {
    pub token: Option<&'a [u8]>,
    pub verb: Verb,
    /// `(seconds << 32) | increment`.
    pub cluster_time: Option<u64>,
    namespace: Option<&'a [u8]>,
    renamed_to: Option<&'a [u8]>,
    key: Option<&'a [u8]>,
    pub(super) after: Option<&'a [u8]>,
    pub(super) before: Option<&'a [u8]>,
    pub(super) update: Option<&'a [u8]>,
}

impl<'a> RawEvent<'a> {
    /// Reads the fields of `event`.
    ///
    /// # Errors
    /// When it isn't BSON. Fields that are missing are found out by whoever needs them.
    #[inline(always)]
    pub fn parse(event: &'a [u8]) -> Result<Self, Malformed> {
        Self::quickly(event).or_else(|Unsure| Self::carefully(event))
    }

    #[inline(always)]
    fn quickly(event: &'a [u8]) -> Result<Self, Unsure> {
        // Types and names are told by what they begin with. A name that was expected has a known length, so that the value
        // behind it is found without a look for its end.
        const OPERATION: u64 = first_word(b"\x02operationType\0");
        const CLUSTER_TIME: u64 = first_word(b"\x11clusterTime\0");
        const WALL_TIME: u64 = first_word(b"\x09wallTime\0");
        const KEY: u64 = first_word(b"\x03documentKey\0");
        const FULL_DOCUMENT: u64 = first_word(b"\x03fullDocument\0");
        const UPDATE: u64 = first_word(b"\x03updateDescription\0");
        const ID: u64 = first_word(b"\x03_id\0");
        const ID_BYTES: u64 = (1 << (5 * 8)) - 1;
        const NAMESPACE: u64 = first_word(b"\x03ns\0");
        const NAMESPACE_BYTES: u64 = (1 << (4 * 8)) - 1;

        let mut fields = Self::default();
        let mut elements = Elements::of(event)?;
        loop {
            let taken = match elements.head() {
                Some(OPERATION) => match elements.take(b"\x02operationType\0")? {
                    Some(value) => {
                        fields.verb = Verb::of_value(value)?;
                        Some(())
                    }
                    None => None,
                },
                Some(CLUSTER_TIME) => elements.take(b"\x11clusterTime\0")?.map(|value| {
                    // The increment stands before the seconds, and both in little-endian order.
                    fields.cluster_time = value.first_chunk().map(|time| u64::from_le_bytes(*time));
                }),
                Some(WALL_TIME) => elements.take(b"\x09wallTime\0")?.map(|_| ()),
                Some(KEY) => elements.take(b"\x03documentKey\0")?.map(|value| fields.key = Some(value)),
                Some(FULL_DOCUMENT) => match elements.take(b"\x03fullDocument\0")? {
                    Some(value) => {
                        fields.after = Some(value);
                        Some(())
                    }
                    None => elements.take(b"\x03fullDocumentBeforeChange\0")?.map(|value| fields.before = Some(value)),
                },
                Some(UPDATE) => elements.take(b"\x03updateDescription\0")?.map(|value| fields.update = Some(value)),
                Some(head) if head & ID_BYTES == ID => {
                    elements.take(b"\x03_id\0")?.map(|value| fields.token = Some(value))
                }
                Some(head) if head & NAMESPACE_BYTES == NAMESPACE => {
                    elements.take(b"\x03ns\0")?.map(|value| fields.namespace = Some(value))
                }
                _ => None,
            };
            if taken.is_none() {
                match elements.next()? {
                    Some(element) => fields.unexpected(element)?,
                    None => return Ok(fields),
                }
            }
        }
    }

    /// Takes an element that isn't one of those that every event has, in their types.
    fn unexpected(&mut self, Element { kind, name, .. }: Element<'_>) -> Result<(), Unsure> {
        let null = kind == kind::NULL;
        match name {
            b"fullDocument" if null => self.after = None,
            b"fullDocumentBeforeChange" if null => self.before = None,
            b"updateDescription" if null => self.update = None,
            b"_id"
            | b"operationType"
            | b"clusterTime"
            | b"ns"
            | b"to"
            | b"documentKey"
            | b"fullDocument"
            | b"fullDocumentBeforeChange"
            | b"updateDescription"
            | b"splitEvent" => return Err(Unsure),
            _ => {}
        }
        Ok(())
    }

    #[cold]
    fn carefully(event: &'a [u8]) -> Result<Self, Malformed> {
        let bad = |error: bson::error::Error| Malformed::Bson(error.to_string());
        let bytes = |value: RawBsonRef<'a>| value.as_document().map(RawDocument::as_bytes);
        let mut fields = Self::default();
        for element in RawDocument::from_bytes(event).map_err(bad)?.iter_elements() {
            let element = element.map_err(bad)?;
            // A value is read, and its text checked, only where it is wanted.
            let value = || element.value().map_err(bad);
            match element.key().as_str() {
                "_id" => fields.token = bytes(value()?),
                "operationType" => fields.verb = Verb::of(value()?.as_str().unwrap_or_default().as_bytes()),
                "clusterTime" => {
                    fields.cluster_time =
                        value()?.as_timestamp().map(|t| (u64::from(t.time) << 32) | u64::from(t.increment));
                }
                "ns" => fields.namespace = bytes(value()?),
                "to" => {
                    let to = bytes(value()?);
                    if matches!(to.map(namespace), Some((Some(_), Some(_)))) {
                        fields.renamed_to = to;
                    }
                }
                "documentKey" => fields.key = bytes(value()?),
                "fullDocument" => fields.after = bytes(value()?),
                "fullDocumentBeforeChange" => fields.before = bytes(value()?),
                "updateDescription" => fields.update = bytes(value()?),
                // Whoever took a piece for an event would lose the rest. Some servers write into a whole event that it is the only one.
                "splitEvent" => {
                    let split = value()?.as_document();
                    let number = |name| split.and_then(|split| split.get_i32(name).ok());
                    if (number("fragment"), number("of")) != (Some(1), Some(1)) {
                        return Err(Malformed::Piece);
                    }
                }
                _ => {}
            }
        }
        Ok(fields)
    }

    /// `_id` of the document.
    #[inline(always)]
    pub(super) fn key(&self) -> Option<Key<'a>> {
        let key = self.key?;
        // Nothing but `_id`, unless the collection is sharded.
        if let Ok(mut elements) = Elements::of(key) {
            if let Ok(Some(value)) = elements.take(b"\x02_id\0") {
                return text(value).map(Key::Text);
            }
            if let Ok(Some((Element { kind, name: b"_id" }, value))) = elements.next_with_value()
                && matches!(kind, kind::OBJECT_ID | kind::INT32 | kind::INT64)
            {
                return Some(Key::Simple(kind, value));
            }
        }
        any_key(key)
    }

    /// Database and collection that it is about.
    pub(super) fn namespace(&self) -> Namespace<'a> {
        self.namespace.map(namespace).unwrap_or_default()
    }

    /// Database and collection of a rename.
    pub(super) fn renamed_to(&self) -> Option<(&'a [u8], &'a [u8])> {
        let (database, collection) = namespace(self.renamed_to?);
        database.zip(collection)
    }
}

#[inline(never)]
fn any_key(key: &[u8]) -> Option<Key<'_>> {
    Some(match field(document(key)?, "_id")? {
        RawBsonRef::String(text) => Key::Text(text.as_bytes()),
        value => Key::Other(value),
    })
}

/// [`predicate::stored_id`] of a string.
#[inline]
pub(super) fn stored_text(text: &[u8]) -> StoredId {
    let head = stored_string_head(text.len());
    let mut stored = StoredId::with_capacity(head.len() + text.len() + 1);
    stored.extend_from_slice(&head);
    stored.extend_from_slice(text);
    stored.push(0);
    stored
}

/// The first eight bytes as [`Elements::head`] has them; zeros after the end.
const fn first_word(start: &[u8]) -> u64 {
    let mut word = 0;
    let mut at = 0;
    while at < 8 && at < start.len() {
        word |= (start[at] as u64) << (8 * at);
        at += 1;
    }
    word
}

/// The document with these bytes, if they are one.
pub(super) fn document(bytes: &[u8]) -> Option<&RawDocument> {
    RawDocument::from_bytes(bytes).ok()
}

/// The texts of a database's and a collection's name, as far as they are there.
type Namespace<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// The texts `db` and `coll` of a namespace.
#[inline(always)]
fn namespace(ns: &[u8]) -> Namespace<'_> {
    quick_namespace(ns).unwrap_or_else(|Unsure| any_namespace(ns))
}

#[inline(never)]
fn any_namespace(ns: &[u8]) -> Namespace<'_> {
    let text = |name| field(document(ns)?, name)?.as_str().map(str::as_bytes);
    (text("db"), text("coll"))
}

/// Of a namespace with nothing else in it.
#[inline(always)]
fn quick_namespace(ns: &[u8]) -> Result<Namespace<'_>, Unsure> {
    let mut elements = Elements::of(ns)?;
    let database = elements.take(b"\x02db\0")?.and_then(text);
    let collection = elements.take(b"\x02coll\0")?.and_then(text);
    let is_all = database.is_some() && elements.left() == 0;
    if is_all { Ok((database, collection)) } else { Err(Unsure) }
}

#[cfg(test)]
mod tests {
    use bson::{Bson, Document, Timestamp, doc};
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

    use super::*;
    use crate::ingest::elements::tests::broken;

    fn whole() -> Document {
        doc! {
            "_id": { "_data": "8265" }, "operationType": "update", "clusterTime": Timestamp { time: 7, increment: 3 },
            "wallTime": bson::DateTime::from_millis(7), "fullDocument": { "_id": 1 }, "ns": { "db": "app", "coll": "things" },
            "documentKey": { "_id": "acme:00" }, "updateDescription": { "updatedFields": { "n": 1 } },
            "fullDocumentBeforeChange": { "_id": 1, "n": 0 }, "txnNumber": 5_i64, "lsid": { "id": 1 },
        }
    }

    #[test]
    fn only_a_piece_that_is_the_only_one_is_an_event() {
        let with = |split: Bson| {
            let mut event = whole();
            event.insert("splitEvent", split);
            event.to_vec().unwrap()
        };
        let event = with(doc! { "fragment": 1, "of": 1 }.into());
        assert_eq!(RawEvent::parse(&event), RawEvent::parse(&whole().to_vec().unwrap()));
        for piece in
            [doc! { "fragment": 1, "of": 2 }.into(), doc! { "fragment": 2, "of": 2 }.into(), doc! {}.into(), Bson::Null]
        {
            assert_eq!(RawEvent::parse(&with(piece)), Err(Malformed::Piece));
        }
    }

    /// Events in the forms that sources write, and in some that they don't.
    fn events() -> Vec<Vec<u8>> {
        let mut random = StdRng::seed_from_u64(3);
        let mut events = vec![whole(), doc! {}, doc! { "operationType": "insert" }];
        let odd = [Bson::Null, Bson::Int32(1), Bson::String("text".into()), Bson::Array(vec![]), doc! {}.into()];
        for name in whole().keys() {
            for value in &odd {
                let mut event = whole();
                event.insert(name, value.clone());
                events.push(event);
            }
            let mut event = whole();
            event.remove(name);
            events.push(event);
            let mut fields: Vec<_> = whole().into_iter().collect();
            fields.shuffle(&mut random);
            events.push(fields.into_iter().collect());
        }
        for verb in
            ["insert", "replace", "delete", "drop", "rename", "dropDatabase", "invalidate", "create", "", "größer"]
        {
            let mut event = whole();
            event.insert("operationType", verb);
            event.insert("to", doc! { "db": "app", "coll": "others" });
            events.push(event);
        }
        for namespace in [doc! {}, doc! { "db": "a" }, doc! { "coll": "c", "db": "a" }, doc! { "db": 1, "coll": "c" }] {
            let mut event = whole();
            event.insert("to", namespace.clone());
            event.insert("ns", namespace);
            events.push(event);
        }
        for key in [doc! { "shard": 1, "_id": 5 }, doc! { "_id": bson::oid::ObjectId::from_bytes([7; 12]) }] {
            let mut event = whole();
            event.insert("documentKey", key);
            events.push(event);
        }
        let mut events: Vec<Vec<u8>> = events.iter().map(|event| event.to_vec().unwrap()).collect();
        // Every field twice.
        let (first, second) = (events[0].clone(), events[12].clone());
        let mut twice = first[..first.len() - 1].to_vec();
        twice.extend_from_slice(&second[4..]);
        let length = twice.len() as i32;
        twice[..4].copy_from_slice(&length.to_le_bytes());
        events.push(twice);
        events
    }

    /// Whether the quick way was sure.
    fn check(event: &[u8]) -> bool {
        let careful = RawEvent::carefully(event);
        assert_eq!(RawEvent::parse(event), careful, "{event:?}");
        let quick = RawEvent::quickly(event);
        if let Ok(quick) = &quick {
            assert_eq!(Ok(quick), careful.as_ref(), "{event:?}");
        }
        for fields in quick.iter().chain(&careful) {
            let slowly = |ns: &[u8], name| field(document(ns)?, name)?.as_str().map(|text| text.as_bytes().to_vec());
            for ns in fields.namespace.iter().chain(&fields.renamed_to).chain(&fields.key) {
                let (database, collection) = namespace(ns);
                assert_eq!(database.map(<[u8]>::to_vec), slowly(ns, "db"), "{ns:?}");
                assert_eq!(collection.map(<[u8]>::to_vec), slowly(ns, "coll"), "{ns:?}");
            }
            let key = fields.key.and_then(document).and_then(|key| field(key, "_id"));
            // As text, in which a NaN is a NaN.
            assert_eq!(format!("{:?}", fields.key().map(Key::value)), format!("{key:?}"), "{event:?}");
        }
        quick.is_ok()
    }

    #[test]
    fn the_quick_way_reads_what_the_careful_one_does() {
        let events = events();
        let sure = events.iter().filter(|event| check(event)).count();
        assert!(sure > events.len() / 3, "{sure} of {}", events.len());
        let fields = RawEvent::quickly(&events[0]).expect("an event as servers write it");
        assert_eq!((fields.verb, fields.cluster_time), (Verb::Update, Some((7 << 32) | 3)));
        assert_eq!(fields.namespace(), (Some(&b"app"[..]), Some(&b"things"[..])));
        assert_eq!(fields.key(), Some(Key::Text(b"acme:00")));
        assert!(fields.token.is_some() && fields.after.is_some() && fields.before.is_some() && fields.update.is_some());
    }

    #[test]
    fn whatever_the_bytes() {
        let mut random = StdRng::seed_from_u64(8);
        let events = events();
        let mut sure = 0;
        for _ in 0..60_000 {
            sure += u32::from(check(&broken(&events[random.random_range(0..events.len())], &mut random)));
        }
        assert!(sure > 5_000, "{sure}");
        for length in 0..64 {
            let noise: Vec<u8> = (0..length).map(|_| random.random()).collect();
            check(&noise);
        }
    }
}
