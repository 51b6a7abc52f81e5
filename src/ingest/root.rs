//! The root fields that place a document of the nested layout, found in one walk that ends as soon as both are known.
//!
//! Invariant: the answer is that of a look-up for each name ([`Names::one_by_one`]), for whatever bytes. Of two fields with one name the
//! first counts; the tenant stands under the first of its names that holds a text.

use bson::spec::ElementType;
use predicate::{field, mapping::Nested};

use super::{
    elements::{Element, Elements, Unsure, head_of, text},
    event::document,
};

/// What the document says of its place. Both are UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Root<'a> {
    pub(super) tenant: Option<&'a [u8]>,
    pub(super) collection: Option<&'a [u8]>,
}

/// The names to look for, made ready to be compared.
#[derive(Debug)]
pub(super) struct Names {
    tenant: Box<[Name]>,
    collection: Name,
}

/// A name, and its first and last eight bytes as numbers.
#[derive(Debug)]
struct Name {
    text: Box<str>,
    head: u64,
    tail: u64,
}

impl Name {
    fn new(text: &str) -> Self {
        Self { text: text.into(), head: head_of(text.as_bytes()), tail: tail_of(text.as_bytes()) }
    }

    #[inline(always)]
    fn is(&self, element: &Element<'_>) -> bool {
        let length = self.text.len();
        self.head == element.head
            && element.name.len() == length
            && (length <= 8 || tail_of(element.name) == self.tail)
            && (length <= 16 || element.name == self.text.as_bytes())
    }
}

/// The last eight bytes of a name that has as many.
#[inline(always)]
fn tail_of(name: &[u8]) -> u64 {
    name.last_chunk().map_or(0, |tail| u64::from_le_bytes(*tail))
}

impl Names {
    pub(super) fn of(nested: &Nested) -> Self {
        Self {
            tenant: nested.tenant.iter().map(|name| Name::new(name)).collect(),
            collection: Name::new(&nested.collection),
        }
    }

    #[inline]
    pub(super) fn root<'a>(&self, image: &'a [u8]) -> Root<'a> {
        self.in_one_walk(image).unwrap_or_else(|Unsure| self.one_by_one(image))
    }

    #[inline]
    fn in_one_walk<'a>(&self, image: &'a [u8]) -> Result<Root<'a>, Unsure> {
        let mut elements = Elements::of(image)?;
        let mut tenant = None;
        // Names that would win over what was found.
        let mut better = &self.tenant[..];
        let mut collection = None;
        while let Some(element) = elements.next()? {
            if let Some(rank) = better.iter().position(|name| name.is(&element)) {
                // One that is no text leaves it to the names after it, which may have been passed.
                tenant = Some(text_of(&element).ok_or(Unsure)?);
                better = &better[..rank];
            }
            if collection.is_none() && self.collection.is(&element) {
                collection = Some(text_of(&element));
            }
            if better.is_empty() && collection.is_some() {
                break;
            }
        }
        Ok(Root { tenant, collection: collection.flatten() })
    }

    #[cold]
    fn one_by_one<'a>(&self, image: &'a [u8]) -> Root<'a> {
        let Some(document) = document(image) else { return Root::default() };
        let text = |name: &Name| field(document, &name.text)?.as_str().map(str::as_bytes);
        Root { tenant: self.tenant.iter().find_map(text), collection: text(&self.collection) }
    }
}

#[inline(always)]
fn text_of<'a>(element: &Element<'a>) -> Option<&'a [u8]> {
    if element.kind == ElementType::String as u8 { text(element.value) } else { None }
}

#[cfg(test)]
mod tests {
    use bson::{Bson, Document, doc};
    use predicate::Mapping;
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

    use super::*;
    use crate::ingest::elements::tests::broken;

    fn names() -> [Nested; 3] {
        let long = "a_name_that_is_longer_than_sixteen_bytes";
        let tenant = [long, "名", "t"].map(String::from).to_vec();
        let same = Nested { tenant: vec!["collection".into()], ..Nested::default() };
        [
            Nested::default(),
            Nested { tenant, collection: "a_name_that_is_longer_too".into(), ..Nested::default() },
            same,
        ]
    }

    /// Documents with all of the names, some of them, twice, and as other types.
    fn images(random: &mut StdRng) -> Vec<Vec<u8>> {
        let fields = [
            ("_id", Bson::String("acme:00".into())),
            ("tenant_id", Bson::String("acme".into())),
            ("database", Bson::String("old".into())),
            ("database_id", Bson::String("é".into())),
            ("collection", Bson::String("rooms/r1/messages".into())),
            ("collection_hash", Bson::Int64(7)),
            ("tenant_id", Bson::Int32(1)),
            ("database", Bson::Null),
            ("collection", doc! { "collection": "x" }.into()),
            ("fullpath", Bson::String("rooms/r1/messages/m1".into())),
            ("a_name_that_is_longer_than_sixteen_bytes", Bson::String("long".into())),
            ("a_name_that_is_longer_than_sixteen_letters", Bson::String("wrong".into())),
            ("a_name_that_is_longer_too", Bson::String("c".into())),
            ("名", Bson::String("name".into())),
            ("t", Bson::String("one".into())),
            ("data", doc! { "tenant_id": "inside" }.into()),
        ];
        let image = |_| {
            let mut chosen = fields.to_vec();
            chosen.shuffle(random);
            chosen.truncate(random.random_range(0..=fields.len()));
            let parts = chosen.iter().map(|(name, value)| doc! { *name: value.clone() }.to_vec().unwrap());
            let inside: Vec<u8> = parts.flat_map(|part| part[4..part.len() - 1].to_vec()).collect();
            let mut bytes = (inside.len() as i32 + 5).to_le_bytes().to_vec();
            bytes.extend(inside);
            bytes.push(0);
            bytes
        };
        (0..2_000).map(image).collect()
    }

    #[test]
    fn one_walk_finds_what_a_look_up_for_each_name_does() {
        let mut random = StdRng::seed_from_u64(11);
        let images = images(&mut random);
        for nested in names() {
            let names = Names::of(&nested);
            let mut sure = 0;
            let mut check = |image: &[u8]| {
                let expected = names.one_by_one(image);
                assert_eq!(names.root(image), expected, "{image:?}");
                if let Ok(found) = names.in_one_walk(image) {
                    assert_eq!(found, expected, "{image:?}");
                    sure += 1;
                }
            };
            for image in &images {
                check(image);
                for _ in 0..10 {
                    check(&broken(image, &mut random));
                }
            }
            assert!(sure > 5_000, "{sure}");
        }
    }

    #[test]
    fn the_mapping_agrees_where_every_name_holds_a_text() {
        let mapping = Mapping::syntrix();
        let names = Names::of(&Nested::default());
        let image = |document: Document| document.to_vec().unwrap();
        for document in [
            doc! { "tenant_id": "a", "collection": "c" },
            doc! { "database": "a", "database_id": "b", "collection": "c" },
            doc! { "collection": 5, "database": "a" },
            doc! {},
        ] {
            let bytes = image(document);
            let raw = super::document(&bytes).unwrap();
            let expected = Root {
                tenant: mapping.tenant(raw).map(str::as_bytes),
                collection: mapping.collection(raw).map(str::as_bytes),
            };
            assert_eq!(names.root(&bytes), expected);
        }
    }
}
