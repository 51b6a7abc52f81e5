//! Logical fields, resolved through the mapping to where they stand in an image.

use std::cell::RefCell;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bson::{RawBsonRef, RawDocument};

pub(crate) use crate::lookup::field;
use crate::mapping::Nested;

/// Segments of a dotted path.
pub const PATH_DEPTH_MAX: usize = 32;
/// Bytes of a dotted path.
pub const PATH_BYTES_MAX: usize = 1024;

/// A logical field, resolved through the mapping to where it stands in the image. A path walks documents only: it neither looks
/// into arrays nor takes a number for the position in one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Path(Arc<Place>);

#[derive(Debug, PartialEq, Eq, Hash)]
enum Place {
    /// From the root of the image, one name a level.
    Fields(Box<[Box<str>]>),
    /// The document id of a nested layout, which is computed.
    NestedId(NestedId),
    /// A field within the computed document id, which is a string and has none.
    Nowhere,
}

/// Places that a thread has made last, in slots by their hash: millions of predicates look at few fields, and share them.
const SHARED_PLACES: usize = 256;

thread_local! {
    static SHARED: RefCell<Vec<Option<Arc<Place>>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct NestedId {
    data: Box<str>,
    id: Box<str>,
    full_path: Box<str>,
}

impl Path {
    /// The value at this path in an image, or None when missing.
    pub fn get<'a>(&self, image: &'a RawDocument) -> Option<RawBsonRef<'a>> {
        match &*self.0 {
            Place::Fields(names) => walk(image, names),
            Place::NestedId(id) => nested_id(image, &id.data, &id.id, &id.full_path).map(RawBsonRef::String),
            Place::Nowhere => None,
        }
    }

    /// The names from the root of the image down to the value. None for the document id of a nested layout, which is computed, and for
    /// what is below it, where nothing is (no anchor has such a path).
    pub fn fields(&self) -> Option<&[Box<str>]> {
        match &*self.0 {
            Place::Fields(names) => Some(names),
            Place::NestedId(_) | Place::Nowhere => None,
        }
    }

    /// Whether it is the document id of a nested layout, which is computed: always a string, or missing.
    pub fn is_computed_id(&self) -> bool {
        matches!(*self.0, Place::NestedId(_))
    }

    pub(crate) fn of_fields<'a>(names: impl IntoIterator<Item = &'a str>) -> Path {
        Path::shared(Place::Fields(names.into_iter().map(Box::from).collect()))
    }

    pub(crate) fn of_nested_id(nested: &Nested) -> Path {
        Path::shared(Place::NestedId(NestedId {
            data: nested.data.as_str().into(),
            id: nested.id.as_str().into(),
            full_path: nested.full_path.as_str().into(),
        }))
    }

    pub(crate) fn nowhere() -> Path {
        Path::shared(Place::Nowhere)
    }

    fn shared(place: Place) -> Path {
        let mut hasher = DefaultHasher::new();
        place.hash(&mut hasher);
        SHARED.with_borrow_mut(|known| {
            known.resize_with(SHARED_PLACES, || None);
            // The remainder is below the number of slots.
            let slot = &mut known[(hasher.finish() % SHARED_PLACES as u64) as usize];
            match slot {
                Some(known) if **known == place => Path(Arc::clone(known)),
                _ => Path(Arc::clone(slot.insert(Arc::new(place)))),
            }
        })
    }

    /// Whether nothing is ever there.
    pub(crate) fn is_nowhere(&self) -> bool {
        matches!(*self.0, Place::Nowhere)
    }

    /// Cost units of one look-up.
    pub(crate) fn cost(&self) -> u64 {
        match &*self.0 {
            Place::Fields(names) => names.len() as u64,
            Place::NestedId(_) => 3,
            Place::Nowhere => 1,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Place::Fields(names) => formatter.write_str(&names.join(".")),
            Place::NestedId(_) => formatter.write_str("<document id>"),
            Place::Nowhere => formatter.write_str("<nowhere>"),
        }
    }
}

pub(crate) fn walk<'a, N: AsRef<str>>(document: &'a RawDocument, names: &[N]) -> Option<RawBsonRef<'a>> {
    let (last, parents) = names.split_last()?;
    let mut document = document;
    for name in parents {
        document = field(document, name.as_ref())?.as_document()?;
    }
    field(document, last.as_ref())
}

/// `data.id` when it is a string, else the last segment of the full path.
pub(crate) fn nested_id<'a>(image: &'a RawDocument, data: &str, id: &str, full_path: &str) -> Option<&'a str> {
    let user = field(image, data).and_then(|value| value.as_document());
    if let Some(RawBsonRef::String(found)) = user.and_then(|user| field(user, id)) {
        return Some(found);
    }
    let path = field(image, full_path)?.as_str()?;
    Some(path.rsplit('/').next().unwrap_or(path))
}
