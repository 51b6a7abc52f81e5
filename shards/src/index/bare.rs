//! Hard deletes of which no image is known. Whom they concern is certain for subscriptions to nothing but that document, and for
//! whole collections; all others of the tenant may or may not have matched the document.

use bson::RawDocumentBuf;
use bson::raw::{CStr, cstr};
use predicate::{Budget, ChangeType, Context, Mapping, Outcome, raw_of_stored_id};
use wire::{Certainty, PlaceHash, Transition};

use super::{Anchor, Entry, Hit, Index, MatchCounts, Rules, Shown, text_of};
use crate::Change;
use crate::config::BareDeletes;

impl Index {
    pub(super) fn match_bare(&self, change: &Change, rules: &Rules<'_>, hits: &mut Vec<Hit>, counts: &mut MatchCounts) {
        let bare = change.bare.as_ref();
        let Some(tenant) = bare.and_then(|bare| bare.tenant.as_ref()) else {
            counts.bare_without_tenant += 1;
            return;
        };
        let collection = bare.and_then(|bare| bare.collection.as_ref());
        let known = collection.and_then(|name| self.partition_of(PlaceHash::of(tenant, name), tenant, name));
        let partitions: &[u32] = match collection {
            Some(_) => known.as_slice(),
            None => self.tenants.get(tenant).map_or(&[], |partitions| partitions.as_slice()),
        };
        let key = self.key_of(change);
        if !key.is_empty() {
            for &slot in self.documents.get(self.seed, &key) {
                let Some(Some(entry)) = self.entries.get(slot as usize) else { continue };
                if !entry.live || !partitions.contains(&entry.partition) {
                    continue;
                }
                counts.candidates += 1;
                let certainty = match self.is_decided_by_id(entry, change) {
                    true => Certainty::Matched,
                    false if rules.bare_deletes == BareDeletes::Unknown => Certainty::Unknown,
                    false => continue,
                };
                hits.push(leave(slot, Shown::NothingAt(entry.partition), certainty));
            }
        }
        if collection.is_none() && rules.bare_deletes == BareDeletes::Known {
            return;
        }
        for &at in partitions {
            for &slot in self.partitions[at as usize].members.slots() {
                let Some(Some(entry)) = self.entries.get(slot as usize) else { continue };
                let Some(certainty) = concern(entry, collection.is_some(), rules.bare_deletes) else { continue };
                counts.candidates += 1;
                let shown = if collection.is_some() { Shown::NothingAt(at) } else { Shown::Nothing };
                hits.push(leave(slot, shown, certainty));
            }
        }
    }
}

impl Index {
    /// Whether the document id is all that the predicate asks for. Filters don't hold for fields that are missing, so those that
    /// hold for a document of nothing but its id ask for nothing else.
    fn is_decided_by_id(&self, entry: &Entry, change: &Change) -> bool {
        if entry.has_expression {
            return false;
        }
        let mut document = RawDocumentBuf::new();
        match &*self.mapping {
            Mapping::Plain => {
                let Some(id) = raw_of_stored_id(&change.key) else { return false };
                document.append(cstr!("_id"), id);
            }
            Mapping::Nested(nested) => {
                let Some(id) = entry.predicate.document_id().and_then(text_of) else { return false };
                let (Ok(data), Ok(field)) = (<&CStr>::try_from(&*nested.data), <&CStr>::try_from(&*nested.id)) else {
                    return false;
                };
                let mut user = RawDocumentBuf::new();
                user.append(field, id);
                document.append(data, user);
            }
        }
        let partition = &self.partitions[entry.partition as usize];
        let context = Context {
            tenant: &partition.tenant,
            collection: &partition.collection,
            change_type: ChangeType::Delete,
            before: None,
        };
        entry.predicate.evaluate(&document, &context, &mut Budget { units: u64::MAX }) == Outcome::True
    }
}

/// How sure it is that a document of this subscription's tenant, and of its collection if that is known, was the subscription's.
fn concern(entry: &Entry, collection_known: bool, bare_deletes: BareDeletes) -> Option<Certainty> {
    if !entry.live {
        return None;
    }
    match entry.anchor {
        // Those that it concerns have been found by the document's id.
        Anchor::Document(_) | Anchor::Never => None,
        _ if collection_known && entry.predicate.is_always_true() => Some(Certainty::Matched),
        _ => (bare_deletes == BareDeletes::Unknown).then_some(Certainty::Unknown),
    }
}

fn leave(slot: u32, shown: Shown, certainty: Certainty) -> Hit {
    Hit { slot, shown, transition: Transition::Leave, certainty }
}
