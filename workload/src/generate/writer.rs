//! A writer that keeps in mind what it has written, so that each write is one that the document's state allows.

use std::collections::HashMap;

use bson::Document;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Choice, Profile, documents};
use crate::oracle::Preset;

/// One write to one document.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub tenant: String,
    pub collection: String,
    pub document_id: String,
    pub kind: WriteKind,
    /// All of the user's fields after the write; before it where the write deletes.
    pub data: Document,
}

#[derive(Clone, Debug, PartialEq)]
pub enum WriteKind {
    /// The document was not there.
    Insert,
    /// All of the user's fields are new.
    Replace,
    /// These of the user's fields are set; none is removed.
    Update { set: Document },
    /// Only under `syntrix`: marked as deleted, and stays in storage.
    SoftDelete,
    /// Only under `syntrix`: no longer marked, with all fields new.
    Recreate,
    /// Gone from storage, marked or not.
    HardDelete,
}

/// Yields writes without end.
#[derive(Clone, Debug)]
pub struct Writer {
    profile: Profile,
    random: ChaCha8Rng,
    tenants: Choice,
    collections: Choice,
    documents: Choice,
    /// Documents in storage, by the indexes of tenant, collection and document.
    stored: HashMap<(usize, usize, usize), Stored>,
}

#[derive(Clone, Debug)]
struct Stored {
    data: Document,
    deleted: bool,
}

impl Writer {
    pub(super) fn new(profile: Profile, random: ChaCha8Rng) -> Self {
        let choice = |n| Choice::new(n, profile.skewed);
        let (tenants, collections, documents) =
            (choice(profile.tenants), choice(profile.collections), choice(profile.documents));
        Self { profile, random, tenants, collections, documents, stored: HashMap::new() }
    }

    /// The next write.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so it yields no Option")]
    pub fn next(&mut self) -> Write {
        let tenant = self.tenants.draw(&mut self.random);
        let collection = self.collections.draw(&mut self.random);
        let document = self.documents.draw(&mut self.random);
        let place = (tenant, collection, document);
        let document_id = self.profile.document_id(document);
        let stored = self.stored.remove(&place);
        let kind = kind_of_next(&mut self.random, self.profile.preset, stored.as_ref());
        let data = match (&kind, stored) {
            (WriteKind::SoftDelete | WriteKind::HardDelete, Some(stored)) => stored.data,
            (WriteKind::Update { set }, Some(mut stored)) => {
                stored.data.extend(set.clone());
                stored.data
            }
            _ => self.new_data(document, &document_id),
        };
        if kind != WriteKind::HardDelete {
            let deleted = kind == WriteKind::SoftDelete;
            self.stored.insert(place, Stored { data: data.clone(), deleted });
        }
        Write {
            tenant: self.profile.tenant(tenant),
            collection: self.profile.collection(collection),
            document_id,
            kind,
            data,
        }
    }

    fn new_data(&mut self, document: usize, document_id: &str) -> Document {
        let mut data = documents::document(&mut self.random);
        // Half of the documents name themselves, the others are named by their full path.
        if self.profile.preset == Preset::Syntrix && document.is_multiple_of(2) {
            data.insert("id", document_id);
        }
        data
    }
}

/// In percent. Documents are mostly updated, and come and go often enough to enter and leave.
fn kind_of_next(random: &mut ChaCha8Rng, preset: Preset, stored: Option<&Stored>) -> WriteKind {
    let percent = random.random_range(0..100);
    match (stored, preset) {
        (None, _) => WriteKind::Insert,
        (Some(Stored { deleted: true, .. }), _) => match percent {
            0..75 => WriteKind::Recreate,
            _ => WriteKind::HardDelete,
        },
        (Some(_), Preset::Syntrix) => match percent {
            0..15 => WriteKind::Replace,
            15..25 => WriteKind::SoftDelete,
            25..30 => WriteKind::HardDelete,
            _ => WriteKind::Update { set: documents::changes(random) },
        },
        (Some(_), Preset::Plain) => match percent {
            0..15 => WriteKind::Replace,
            15..25 => WriteKind::HardDelete,
            _ => WriteKind::Update { set: documents::changes(random) },
        },
    }
}
