//! The flat view of a stored document: what filters, CEL and subscribers see of it.

use bson::{Bson, Document};

use super::change::{Namespace, Place, Preset};

/// Fields of the view that come from the document's root, and what they are called there.
const SYSTEM_FIELDS: [(&str, &str); 5] = [
    ("collection", "collection"),
    ("version", "version"),
    ("createdAt", "created_at"),
    ("updatedAt", "updated_at"),
    ("deleted", "deleted"),
];

/// Names under which the tenant may stand; the first one present counts.
const TENANT_FIELDS: [&str; 3] = ["tenant_id", "database_id", "database"];

#[derive(Debug)]
pub(super) struct View {
    pub(super) fields: Document,
    /// The document's id.
    pub(super) id: Option<Bson>,
    /// The field that `_id` stands for in a filter.
    id_field: &'static str,
}

impl View {
    pub(super) fn of(document: &Document, preset: Preset) -> Self {
        match preset {
            Preset::Plain => Self { fields: document.clone(), id: document.get("_id").cloned(), id_field: "_id" },
            Preset::Syntrix => {
                let mut fields = document.get_document("data").cloned().unwrap_or_default();
                let id = document_id(document, &fields).map(Bson::String);
                // A system field that the document lacks is missing, whatever the user's field of that name holds.
                fields.remove("id");
                if let Some(id) = &id {
                    fields.insert("id", id.clone());
                }
                for (name, stored) in SYSTEM_FIELDS {
                    fields.remove(name);
                    if let Some(value) = document.get(stored) {
                        fields.insert(name, value.clone());
                    }
                }
                Self { fields, id, id_field: "id" }
            }
        }
    }

    /// The value at a dotted path. Paths lead through documents only, never into arrays.
    pub(super) fn at(&self, path: &str) -> Option<&Bson> {
        let mut names = path.split('.');
        let first = names.next()?;
        let first = if first == "_id" { self.id_field } else { first };
        let mut value = self.fields.get(first)?;
        for name in names {
            value = value.as_document()?.get(name)?;
        }
        Some(value)
    }
}

/// `data.id` if it is a string, else the last segment of `fullpath`.
fn document_id(document: &Document, data: &Document) -> Option<String> {
    if let Ok(id) = data.get_str("id") {
        return Some(id.to_owned());
    }
    let path = document.get_str("fullpath").ok()?;
    path.rsplit('/').next().map(str::to_owned)
}

/// Where a document belongs, by its own fields or its namespace. `None` when it doesn't say.
pub(super) fn place_of(document: &Document, namespace: &Namespace, preset: Preset) -> Option<Place> {
    match preset {
        Preset::Plain => Some(Place { tenant: namespace.database.clone(), collection: namespace.collection.clone() }),
        Preset::Syntrix => {
            let tenant = TENANT_FIELDS.iter().find_map(|name| document.get_str(name).ok())?.to_owned();
            let collection = document.get_str("collection").ok()?.to_owned();
            Some(Place { tenant, collection })
        }
    }
}

/// The tenant that a stored id of the `syntrix` layout names: what stands before the last colon.
pub(super) fn tenant_of_stored_id(stored_id: &Bson) -> Option<&str> {
    stored_id.as_str()?.rsplit_once(':').map(|(tenant, _)| tenant)
}

/// The `_id` under which `syntrix` stores a document: the tenant, a colon, and the hex of the first 16 bytes of BLAKE3 over
/// `<collection>/<document id>`.
pub fn stored_id(tenant: &str, collection: &str, document_id: &str) -> String {
    format!("{tenant}:{}", short_hash(&format!("{collection}/{document_id}")))
}

/// Hex of the first 16 bytes of BLAKE3.
pub(crate) fn short_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}
