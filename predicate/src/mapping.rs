//! How documents are laid out: where the tenant, the collection and the user's fields are, and the flat view of them that
//! filters, CEL and subscribers speak about. Presets `syntrix` and `plain` are values of one type; every field name can be set.

use serde::{Deserialize, Serialize};

/// Names of the fields that carry what the node needs to know of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Mapping {
    /// Tenant is the database's name, collection is `ns.coll`, the document's root is what filters speak about, the document
    /// id is `_id` in its own type.
    Plain,
    /// The tenant and collection are fields of the document, the user's fields are one level down.
    Nested(Nested),
}

/// Field names of a nested layout. The defaults are the preset `syntrix`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nested {
    /// Names under which the tenant may stand; the first one present wins.
    pub tenant: Vec<String>,
    pub collection: String,
    /// `<collection>/<document id>`.
    pub full_path: String,
    /// The user's fields.
    pub data: String,
    /// The document id within `data`.
    pub id: String,
    pub version: String,
    pub created_at: String,
    pub updated_at: String,
    /// Soft delete.
    pub deleted: String,
}

impl Default for Nested {
    fn default() -> Self {
        Self {
            tenant: ["tenant_id", "database_id", "database"].map(String::from).to_vec(),
            collection: "collection".into(),
            full_path: "fullpath".into(),
            data: "data".into(),
            id: "id".into(),
            version: "version".into(),
            created_at: "created_at".into(),
            updated_at: "updated_at".into(),
            deleted: "deleted".into(),
        }
    }
}

impl Mapping {
    pub fn syntrix() -> Self {
        Self::Nested(Nested::default())
    }
}

impl Nested {
    /// The `_id` under which a document is stored: `<tenant>:` and the hex of the first 16 bytes of BLAKE3 over its full path.
    /// It lets a hard delete, of which only `_id` is known, be matched to the document it was.
    pub fn storage_id(tenant: &str, collection: &str, document_id: &str) -> String {
        let hash = blake3::hash(format!("{collection}/{document_id}").as_bytes());
        let hex: String = hash.as_bytes()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{tenant}:{hex}")
    }
}
