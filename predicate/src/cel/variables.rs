//! What the interpreter sees of an image, and what several evaluations on one image share of it.
//!
//! Invariant: an evaluation answers, and costs, the same with a [`Memo`] as without one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use bson::RawDocument;
use cel_interpreter::ExecutionError;
use cel_interpreter::common::traits::Indexer;
use cel_interpreter::common::types::{CelMap, CelMapKey, CelString, MAP_TYPE, Type};
use cel_interpreter::common::value::{CowVal, Val};
use cel_interpreter::context::VariableResolver;
use smallvec::SmallVec;

use super::interpret::{Make, decode};
use super::meter;
use crate::mapping::{Mapping, VIEW_DEPTH_MAX};
use crate::path::Path;

/// Fields that a memo keeps; further ones are decoded anew each time.
const MEMO_FIELDS_MAX: usize = 64;

/// Fields of one image that have been decoded for the interpreter, so that the candidates of a change share them. Making one costs nothing.
///
/// It is for evaluations of predicates of one [`Mapping`] on one image with one [`crate::Context`]: begin a new one for each image.
#[derive(Default)]
pub struct Memo {
    fields: RefCell<Vec<Remembered>>,
}

struct Remembered {
    side: Side,
    /// None: the whole view.
    path: Option<Path>,
    value: Arc<dyn Val>,
    /// What decoding it costs.
    units: u64,
}

/// Which image a field is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Doc,
    Before,
}

impl Memo {
    pub fn new() -> Memo {
        Memo::default()
    }

    /// What is remembered, its cost charged, or else what `decode` makes, which charges by itself.
    fn get(
        &self,
        side: Side,
        path: Option<&Path>,
        decode: impl FnOnce() -> Result<Arc<dyn Val>, ExecutionError>,
    ) -> Result<Arc<dyn Val>, ExecutionError> {
        let known = self.fields.borrow();
        if let Some(known) = known.iter().find(|known| known.side == side && known.path.as_ref() == path) {
            meter::charge(known.units)?;
            return Ok(known.value.clone());
        }
        drop(known);
        let before = meter::left();
        let value = decode()?;
        let units = before.saturating_sub(meter::left());
        let mut known = self.fields.borrow_mut();
        if known.len() < MEMO_FIELDS_MAX {
            known.push(Remembered { side, path: path.cloned(), value: value.clone(), units });
        }
        Ok(value)
    }
}

impl std::fmt::Debug for Memo {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Memo").field("fields", &self.fields.borrow().len()).finish()
    }
}

/// What an expression reads of a view.
#[derive(Debug)]
pub(super) enum Wanted {
    Nothing,
    /// Root fields, by name and by where they stand.
    Fields(Box<[(Box<str>, Path)]>),
    All,
}

impl Wanted {
    pub(super) fn read<'v>(
        &'v self,
        mapping: &Mapping,
        image: &'v RawDocument,
        memo: Option<(&Memo, Side)>,
    ) -> Result<View<'v>, ExecutionError> {
        match (self, memo) {
            (Wanted::Nothing, _) => Ok(View::Whole(Known::Nothing)),
            (Wanted::All, None) => Ok(View::Whole(Known::Own(whole(mapping, image, Make::borrowed())?))),
            (Wanted::All, Some((memo, side))) => {
                let value = memo.get(side, None, || Ok(whole(mapping, image, Make::owned())?.into()))?;
                Ok(View::Whole(Known::Shared(value)))
            }
            (Wanted::Fields(wanted), memo) => {
                let mut fields = SmallVec::new();
                for (name, path) in wanted {
                    let value = match (memo, path.get(image)) {
                        (_, None) => continue,
                        (None, Some(raw)) => Known::Own(decode(raw, VIEW_DEPTH_MAX, Make::borrowed())?),
                        (Some((memo, side)), Some(raw)) => {
                            let decoded = || Ok(decode(raw, VIEW_DEPTH_MAX, Make::owned())?.into());
                            Known::Shared(memo.get(side, Some(path), decoded)?)
                        }
                    };
                    fields.push((&**name, value));
                }
                Ok(View::Fields(Selected { fields }))
            }
        }
    }
}

/// All of the flat view.
fn whole<'a, 'v>(
    mapping: &Mapping,
    image: &'a RawDocument,
    make: Make<'a, 'v>,
) -> Result<Box<dyn Val + 'v>, ExecutionError> {
    let mut entries: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = HashMap::new();
    let mut failed = None;
    mapping.each_view_field(image, |name, value| {
        let key = CelMapKey::String((make.text)(name));
        if failed.is_none() && !entries.contains_key(&key) {
            match decode(value, VIEW_DEPTH_MAX, make) {
                Ok(value) => {
                    entries.insert(key, value);
                }
                Err(error) => failed = Some(error),
            }
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(Box::new(CelMap::from(entries))),
    }
}

/// A value that is here for one evaluation, or shared with others.
#[derive(Debug)]
pub(super) enum Known<'v> {
    /// The expression does not ask for it.
    Nothing,
    Own(Box<dyn Val + 'v>),
    Shared(Arc<dyn Val>),
}

impl<'v> Known<'v> {
    fn get(&self) -> Option<&(dyn Val + 'v)> {
        match self {
            Known::Nothing => None,
            Known::Own(value) => Some(&**value),
            Known::Shared(value) => Some(&**value),
        }
    }
}

/// `doc` or `before`.
pub(super) enum View<'v> {
    Whole(Known<'v>),
    Fields(Selected<'v>),
}

impl<'v> View<'v> {
    fn get(&self) -> Option<&(dyn Val + 'v)> {
        match self {
            View::Whole(value) => value.get(),
            View::Fields(fields) => Some(fields),
        }
    }
}

/// The variables of an expression.
pub(super) struct Variables<'v> {
    pub(super) doc: View<'v>,
    pub(super) before: View<'v>,
    pub(super) id: Known<'v>,
    pub(super) tenant: CelString<'v>,
    pub(super) collection: CelString<'v>,
    pub(super) change_type: CelString<'v>,
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let value: &'b dyn Val = match variable {
            "doc" | "data" => self.doc.get()?,
            "before" => self.before.get()?,
            "id" => self.id.get()?,
            "tenant" => &self.tenant,
            "collection" => &self.collection,
            "type" => &self.change_type,
            _ => return None,
        };
        Some(CowVal::Borrowed(value))
    }
}

/// A map of which only these fields are asked for, each by its name.
#[derive(Debug)]
pub(super) struct Selected<'v> {
    fields: SmallVec<[(&'v str, Known<'v>); 4]>,
}

impl<'v> Val for Selected<'v> {
    fn get_type(&self) -> &Type {
        &MAP
    }

    fn cel_type() -> &'static Type {
        &MAP
    }

    fn as_indexer<'b, 'w>(&'b self) -> Option<&'b (dyn Indexer + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn clone_as_boxed<'w>(&self) -> Box<dyn Val + 'w>
    where
        Self: 'w,
    {
        let fields = self
            .fields
            .iter()
            .filter_map(|(name, value)| Some((CelMapKey::from(*name), value.get()?.clone_as_boxed())));
        Box::new(CelMap::from(fields.collect::<HashMap<CelMapKey<'w>, Box<dyn Val + 'w>>>()))
    }
}

static MAP: Type = MAP_TYPE;

impl Indexer for Selected<'_> {
    fn get<'b, 'w>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'w>, ExecutionError>
    where
        Self: 'w,
    {
        let name = key.downcast_ref::<CelString<'_>>().map_or("", |name| name.inner());
        let found = self.fields.iter().find(|(known, _)| *known == name).and_then(|(_, value)| value.get());
        found.map(CowVal::Borrowed).ok_or_else(|| ExecutionError::NoSuchKey(Arc::new(name.to_owned())))
    }

    fn steal<'w>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'w>, ExecutionError>
    where
        Self: 'w,
    {
        Indexer::get(&*self, key).map(CowVal::into_owned)
    }
}
