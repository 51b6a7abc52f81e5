//! Hard deletes of which no image is known. Whom they concern is certain for subscriptions to nothing but that document, and for
//! whole collections; all others of the tenant may or may not have matched the document.

use bson::RawDocumentBuf;
use bson::raw::{CStr, cstr};
use predicate::{Budget, ChangeType, Context, Mapping, Outcome, Predicate, raw_of_stored_id};
use wire::{Certainty, PlaceHash, Transition};

use super::{Hit, Index, MatchCounts, Rules, Shown};
use crate::Change;
use crate::config::BareDeletes;

impl Index {
    pub(super) fn match_bare(&self, change: &Change, rules: &Rules<'_>, hits: &mut Vec<Hit>, counts: &mut MatchCounts) {
        let bare = change.bare();
        let Some(tenant) = bare.and_then(|bare| bare.tenant) else {
            counts.bare_without_tenant += 1;
            return;
        };
        let collection = bare.and_then(|bare| bare.collection);
        let known = collection.and_then(|name| self.inner.partition(PlaceHash::of(tenant, name), tenant, name));
        let partitions: &[u32] = match collection {
            Some(_) => known.as_slice(),
            None => self.inner.partitions_of(tenant),
        };
        counts.is_watched = !partitions.is_empty();
        self.inner.by_document(change.key(), |slot| {
            let Some(partition) = self.inner.partition_of(slot).filter(|at| partitions.contains(at)) else { return };
            counts.candidates += 1;
            let certainty = match self.is_decided_by_id(slot, partition, change) {
                true => Certainty::Matched,
                false if rules.bare_deletes == BareDeletes::Unknown => Certainty::Unknown,
                false => return,
            };
            hits.push(leave(slot, Shown::NothingAt(partition), certainty));
        });
        if collection.is_none() && rules.bare_deletes == BareDeletes::Known {
            return;
        }
        for &at in partitions {
            for &slot in self.inner.members(at) {
                let Some(certainty) = self.concern(slot, collection.is_some(), rules.bare_deletes) else { continue };
                counts.candidates += 1;
                let shown = if collection.is_some() { Shown::NothingAt(at) } else { Shown::Nothing };
                hits.push(leave(slot, shown, certainty));
            }
        }
    }

    /// Whether the document id is all that the predicate asks for. Filters don't hold for fields that are missing, so those that
    /// hold for a document of nothing but its id ask for nothing else.
    fn is_decided_by_id(&self, slot: u32, partition: u32, change: &Change) -> bool {
        let Some(predicate) = self.inner.predicate(slot).filter(|predicate| !predicate.has_expression()) else {
            return false;
        };
        let Some(document) = self.document_of_id(predicate, change) else { return false };
        let (tenant, collection) = self.inner.place_names(partition);
        let context =
            Context { tenant: &tenant, collection: &collection, change_type: ChangeType::Delete, before: None };
        predicate.evaluate(&document, &context, &mut Budget { units: u64::MAX }) == Outcome::True
    }

    /// A document that has its id and nothing else.
    fn document_of_id(&self, predicate: &Predicate, change: &Change) -> Option<RawDocumentBuf> {
        let mut document = RawDocumentBuf::new();
        match &*self.mapping {
            Mapping::Plain => document.append(cstr!("_id"), raw_of_stored_id(change.key())?),
            Mapping::Nested(nested) => {
                let id = predicate.document_id()?.as_text()?;
                let mut user = RawDocumentBuf::new();
                user.append(<&CStr>::try_from(&*nested.id).ok()?, id);
                document.append(<&CStr>::try_from(&*nested.data).ok()?, user);
            }
        }
        Some(document)
    }

    /// How sure it is that a document of this subscription's tenant, and of its collection if that is known, was the subscription's.
    fn concern(&self, slot: u32, collection_known: bool, bare_deletes: BareDeletes) -> Option<Certainty> {
        if self.inner.is_by_document(slot) {
            // Those that it concerns have been found by the document's id.
            return None;
        }
        if collection_known && self.inner.is_to_everything(slot) {
            return Some(Certainty::Matched);
        }
        (bare_deletes == BareDeletes::Unknown).then_some(Certainty::Unknown)
    }
}

fn leave(slot: u32, shown: Shown, certainty: Certainty) -> Hit {
    Hit { slot, shown, transition: Transition::Leave, certainty }
}
