//! How documents are laid out: where the tenant, the collection and the user's fields are, and the flat view of them that
//! filters, CEL and subscribers speak about. Presets `syntrix` and `plain` are values of one type; every field name can be set.
//!
//! Invariant: what a [`Path`] finds in an image is what the flat view of that image has under the same name.

use std::fmt;
use std::str::FromStr;

use bson::{Bson, Document, RawBsonRef, RawDocument};
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::lookup::each_field;
use crate::path::{PATH_BYTES_MAX, PATH_DEPTH_MAX, Path, field, nested_id};
use crate::value::{stored_id, stored_string_id};

/// How deep the decoded view of a document goes. MongoDB refuses documents deeper than 100; what lies deeper is left out.
pub const VIEW_DEPTH_MAX: usize = 128;
const TENANT_NAMES_MAX: usize = 16;
const FIELD_NAME_BYTES_MAX: usize = 128;

/// Names of the fields that carry what the node needs to know of a document.
///
/// As text and in configuration it is `syntrix`, `plain`, or `{"nested": {…}}` with the fields of [`Nested`] that differ from
/// `syntrix`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "there is one mapping in a node")]
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

/// Names of the flat view of a nested layout, beside those of the user's fields, over which they win.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Id,
    Collection,
    Version,
    CreatedAt,
    UpdatedAt,
    Deleted,
}

impl System {
    fn of(name: &str) -> Option<System> {
        Some(match name {
            "id" => System::Id,
            "collection" => System::Collection,
            "version" => System::Version,
            "createdAt" => System::CreatedAt,
            "updatedAt" => System::UpdatedAt,
            "deleted" => System::Deleted,
            _ => return None,
        })
    }
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

/// Why a text is no mapping.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    #[error("`{0}` is no mapping: expected `syntrix`, `plain` or {{\"nested\": {{…}}}}")]
    Unknown(String),
    #[error("mapping: {0}")]
    Json(String),
    #[error("mapping: `{key}` is {value:?}: {expected}")]
    Name { key: &'static str, value: String, expected: &'static str },
}

impl Mapping {
    pub fn syntrix() -> Self {
        Self::Nested(Nested::default())
    }

    /// The tenant that the document names. None under `plain`, whose documents do not name it, and where it is no string.
    pub fn tenant<'a>(&self, image: &'a RawDocument) -> Option<&'a str> {
        let Self::Nested(nested) = self else { return None };
        let mut best: Option<(usize, RawBsonRef<'a>)> = None;
        for element in image.iter_elements() {
            let Ok(element) = element else { break };
            let rank = nested.tenant.iter().position(|name| name == element.key().as_str());
            if let Some(rank) = rank
                && best.is_none_or(|(found, _)| rank < found)
                && let Ok(value) = element.value()
            {
                best = Some((rank, value));
                if rank == 0 {
                    break;
                }
            }
        }
        best?.1.as_str()
    }

    /// The collection that the document names. None under `plain`, and where it is no string.
    pub fn collection<'a>(&self, image: &'a RawDocument) -> Option<&'a str> {
        let Self::Nested(nested) = self else { return None };
        field(image, &nested.collection)?.as_str()
    }

    /// The soft-delete mark. None under `plain`, and where it is missing or no bool.
    pub fn deleted(&self, image: &RawDocument) -> Option<bool> {
        let Self::Nested(nested) = self else { return None };
        field(image, &nested.deleted)?.as_bool()
    }

    /// The document id as [`stored_id`] encodes it. Nested: `data.id` when it is a string, else the last segment of the full
    /// path. Plain: `_id` in its own type.
    pub fn document_id(&self, image: &RawDocument) -> Option<Vec<u8>> {
        match self {
            Self::Plain => field(image, "_id").map(stored_id),
            Self::Nested(nested) => nested.id_of(image).map(stored_string_id),
        }
    }

    /// What filters, CEL and subscribers see of an image. Of two fields with one name the first counts.
    pub fn flat_view(&self, image: &RawDocument) -> Document {
        let mut view = Document::new();
        self.each_view_field(image, |name, value| {
            if !view.contains_key(name)
                && let Some(value) = decode(value, VIEW_DEPTH_MAX)
            {
                view.insert(name, value);
            }
        });
        view
    }

    /// Calls `visit` for each field of the flat view. Of several calls with one name the first counts.
    pub(crate) fn each_view_field<'a>(&self, image: &'a RawDocument, mut visit: impl FnMut(&'a str, RawBsonRef<'a>)) {
        let nested = match self {
            Self::Plain => return each_field(image).for_each(|(name, value)| visit(name, value)),
            Self::Nested(nested) => nested,
        };
        if let Some(RawBsonRef::Document(user)) = field(image, &nested.data) {
            for (name, value) in each_field(user) {
                if System::of(name).is_none() {
                    visit(name, value);
                }
            }
        }
        if let Some(id) = nested.id_of(image) {
            visit("id", RawBsonRef::String(id));
        }
        for (name, value) in each_field(image) {
            // Several names of the view may, by configuration, stand for one field of the image.
            for (field, system) in [
                (&nested.collection, "collection"),
                (&nested.version, "version"),
                (&nested.created_at, "createdAt"),
                (&nested.updated_at, "updatedAt"),
                (&nested.deleted, "deleted"),
            ] {
                if field == name {
                    visit(system, value);
                }
            }
        }
    }

    /// Resolves the dotted path of a filter: under a nested layout a leading `data.` is dropped once, and `_id` is the document
    /// id; under `plain` it is the root's `_id` by itself.
    pub fn filter_path(&self, dotted: &str) -> Result<Path, String> {
        if dotted.len() > PATH_BYTES_MAX {
            return Err(format!("the path has {} bytes; at most {PATH_BYTES_MAX} are allowed", dotted.len()));
        }
        if dotted.contains('\0') {
            return Err("the path contains a NUL byte".into());
        }
        let logical = match self {
            Self::Plain => dotted,
            Self::Nested(_) => dotted.strip_prefix("data.").unwrap_or(dotted),
        };
        let names: Vec<&str> = logical.split('.').collect();
        if names.iter().any(|name| name.is_empty()) {
            return Err("expected names joined by single dots, such as `status` or `address.city`".into());
        }
        if names.len() > PATH_DEPTH_MAX {
            return Err(format!("the path has {} names; at most {PATH_DEPTH_MAX} are allowed", names.len()));
        }
        Ok(match (self, names.as_slice()) {
            (Self::Nested(nested), ["_id"]) => Path::of_nested_id(nested),
            (Self::Nested(_), ["_id", ..]) => Path::nowhere(),
            (_, names) => self.view_path(names),
        })
    }

    /// Where the flat view's field of that name stands, and what is below it.
    pub(crate) fn view_path<N: AsRef<str>>(&self, names: &[N]) -> Path {
        let all = || names.iter().map(AsRef::as_ref);
        let nested = match self {
            Self::Plain => return Path::of_fields(all()),
            Self::Nested(nested) => nested,
        };
        let below = || all().skip(1);
        let rooted = |root: &str| Path::of_fields(std::iter::once(root).chain(below()));
        match names.first().and_then(|name| System::of(name.as_ref())) {
            None => Path::of_fields(std::iter::once(nested.data.as_str()).chain(all())),
            Some(System::Id) if names.len() == 1 => Path::of_nested_id(nested),
            Some(System::Id) => Path::nowhere(),
            Some(System::Collection) => rooted(&nested.collection),
            Some(System::Version) => rooted(&nested.version),
            Some(System::CreatedAt) => rooted(&nested.created_at),
            Some(System::UpdatedAt) => rooted(&nested.updated_at),
            Some(System::Deleted) => rooted(&nested.deleted),
        }
    }

    /// The document id, as CEL's `id`.
    pub(crate) fn id_path(&self) -> Path {
        match self {
            Self::Plain => Path::of_fields(["_id"]),
            Self::Nested(nested) => Path::of_nested_id(nested),
        }
    }

    fn checked(self) -> Result<Self, MappingError> {
        if let Self::Nested(nested) = &self {
            nested.check()?;
        }
        Ok(self)
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

    fn id_of<'a>(&self, image: &'a RawDocument) -> Option<&'a str> {
        nested_id(image, &self.data, &self.id, &self.full_path)
    }

    fn check(&self) -> Result<(), MappingError> {
        if self.tenant.is_empty() || self.tenant.len() > TENANT_NAMES_MAX {
            let value = format!("{} names", self.tenant.len());
            return Err(MappingError::Name { key: "tenant", value, expected: "expected 1 to 16 names" });
        }
        let names = [
            ("collection", &self.collection),
            ("full_path", &self.full_path),
            ("data", &self.data),
            ("id", &self.id),
            ("version", &self.version),
            ("created_at", &self.created_at),
            ("updated_at", &self.updated_at),
            ("deleted", &self.deleted),
        ];
        for (key, name) in names.into_iter().chain(self.tenant.iter().map(|name| ("tenant", name))) {
            let expected = "expected a field name of 1 to 128 bytes, without a dot, NUL byte or leading `$`";
            if name.is_empty()
                || name.len() > FIELD_NAME_BYTES_MAX
                || name.contains(['.', '\0'])
                || name.starts_with('$')
            {
                return Err(MappingError::Name { key, value: name.clone(), expected });
            }
            if name == &self.data && key != "data" && key != "id" {
                let expected = "this field already holds the user's fields (`data`)";
                return Err(MappingError::Name { key, value: name.clone(), expected });
            }
        }
        Ok(())
    }
}

/// Decodes a value whose own documents and lists go at most `depth` deep. None for what is malformed or deeper.
pub(crate) fn decode(value: RawBsonRef<'_>, depth: usize) -> Option<Bson> {
    Some(match value {
        RawBsonRef::Document(document) => {
            let depth = depth.checked_sub(1)?;
            let mut decoded = Document::new();
            for (name, value) in each_field(document) {
                if !decoded.contains_key(name)
                    && let Some(value) = decode(value, depth)
                {
                    decoded.insert(name, value);
                }
            }
            Bson::Document(decoded)
        }
        RawBsonRef::Array(items) => {
            let depth = depth.checked_sub(1)?;
            let items = items.into_iter().map_while(Result::ok);
            // A list keeps its positions: what cannot be decoded is null there.
            Bson::Array(items.map(|item| decode(item, depth).unwrap_or(Bson::Null)).collect())
        }
        RawBsonRef::JavaScriptCodeWithScope(_) => return None,
        scalar => Bson::try_from(scalar).ok()?,
    })
}

impl FromStr for Mapping {
    type Err = MappingError;

    fn from_str(text: &str) -> Result<Self, MappingError> {
        match text.trim() {
            "syntrix" => Ok(Self::syntrix()),
            "plain" => Ok(Self::Plain),
            json if json.starts_with('{') => {
                serde_json::from_str(json).map_err(|error| MappingError::Json(error.to_string()))
            }
            other => Err(MappingError::Unknown(other.to_owned())),
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => formatter.write_str("plain"),
            Self::Nested(nested) if *nested == Nested::default() => formatter.write_str("syntrix"),
            other => formatter.write_str(&serde_json::to_string(other).map_err(|_| fmt::Error)?),
        }
    }
}

impl Serialize for Mapping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nested(nested) if *nested != Nested::default() => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("nested", nested)?;
                map.end()
            }
            named => serializer.collect_str(named),
        }
    }
}

impl<'de> Deserialize<'de> for Mapping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MappingVisitor)
    }
}

/// By hand, so that an unknown or mistyped field is named: an untagged enum would only say that nothing fits.
struct MappingVisitor;

impl<'de> Visitor<'de> for MappingVisitor {
    type Value = Mapping;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("`syntrix`, `plain` or a table `nested` of field names")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Mapping, E> {
        match name {
            "syntrix" => Ok(Mapping::syntrix()),
            "plain" => Ok(Mapping::Plain),
            // An environment variable can only carry text.
            other => other.parse().map_err(E::custom),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Mapping, A::Error> {
        let mut nested = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "nested" || nested.is_some() {
                return Err(de::Error::custom(format_args!("unexpected field `{key}`: expected `nested`, once")));
            }
            nested = Some(map.next_value::<Nested>()?);
        }
        let nested = nested.ok_or_else(|| de::Error::missing_field("nested"))?;
        Mapping::Nested(nested).checked().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
