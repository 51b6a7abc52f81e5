//! The root fields that place a document of the nested layout, found in one walk that ends as soon as both are known.
//!
//! Invariant: the answer is that of a look-up for each name ([`Names::one_by_one`]), for whatever bytes. Of two fields with one name the
//! first counts; the tenant stands under the first of its names that holds a text.

use predicate::{field, mapping::Nested};

use super::{
    elements::{Elements, Name, Unsure, kind, text},
    event::document,
};

/// What the document says of its place. Both are UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Root<'a> {
    pub(super) tenant: Option<&'a [u8]>,
    pub(super) collection: Option<&'a [u8]>,
    /// Bytes from the document's start that decide it, whatever follows them; 0 where that isn't known.
    decided_by: usize,
}

impl Root<'_> {
    /// Whether that of `other` is the same, since it begins as `image` does, whose root this is. Most changes leave the fields in
    /// front as they were.
    #[inline(always)]
    pub(super) fn is_that_of(&self, image: &[u8], other: &[u8]) -> bool {
        let decisive = 4..self.decided_by;
        self.decided_by != 0
            && other.len() > self.decided_by
            && Elements::of(other).is_ok()
            && other.get(decisive.clone()) == image.get(decisive)
    }
}

/// The names to look for, made ready to be compared.
#[derive(Debug)]
pub(super) struct Names {
    tenant: Box<[Name]>,
    collection: Name,
    full_path: Name,
    data: Name,
    /// Within `data`.
    id: Name,
}

impl Names {
    pub(super) fn of(nested: &Nested) -> Self {
        Self {
            tenant: nested.tenant.iter().map(|name| Name::new(name)).collect(),
            collection: Name::new(&nested.collection),
            full_path: Name::new(&nested.full_path),
            data: Name::new(&nested.data),
            id: Name::new(&nested.id),
        }
    }

    #[inline(always)]
    pub(super) fn root<'a>(&self, image: &'a [u8]) -> Root<'a> {
        self.in_one_walk(image).unwrap_or_else(|Unsure| self.one_by_one(image))
    }

    #[inline(always)]
    fn in_one_walk<'a>(&self, image: &'a [u8]) -> Result<Root<'a>, Unsure> {
        let mut elements = Elements::of(image)?;
        let mut tenant = None;
        // Names that would win over what was found.
        let mut better = &self.tenant[..];
        let mut collection = None;
        while !better.is_empty() || collection.is_none() {
            let Some(head) = elements.head() else {
                // At the end there is room for short names only. None of ours is expected there.
                match elements.next()? {
                    None => break,
                    Some(element) if self.has(element.name) => return Err(Unsure),
                    Some(_) => continue,
                }
            };
            let mut rank = None;
            for (at, name) in better.iter().enumerate() {
                if elements.is_named(head, name) {
                    rank = Some(at);
                    break;
                }
            }
            let is_collection = collection.is_none() && elements.is_named(head, &self.collection);
            let name = match rank {
                Some(rank) => &better[rank],
                None if is_collection => &self.collection,
                None => {
                    elements.next()?;
                    continue;
                }
            };
            let (kind, value) = elements.take_named(name)?;
            let text = if kind == kind::STRING { text(value) } else { None };
            if let Some(rank) = rank {
                // One that is no text leaves it to the names after it, which may have been passed.
                tenant = Some(text.ok_or(Unsure)?);
                better = &better[..rank];
            }
            if is_collection {
                collection = Some(text);
            }
        }
        let is_decided = better.is_empty() && collection.is_some();
        let decided_by = if is_decided { image.len() - 1 - elements.left() } else { 0 };
        Ok(Root { tenant, collection: collection.flatten(), decided_by })
    }

    /// The text that is the document's id: that of the user's own field if it is one, else the last segment of the full path.
    pub(super) fn id<'a>(&self, image: &'a [u8]) -> Result<Option<&'a [u8]>, Unsure> {
        let Self { full_path, data, .. } = self;
        let mut elements = Elements::of(image)?;
        let (mut path, mut has_passed_data) = (None, false);
        while path.is_none() || !has_passed_data {
            let Some(head) = elements.head() else {
                match elements.next()? {
                    None => break,
                    Some(element) if [full_path, data].iter().any(|name| name.is(element.name)) => return Err(Unsure),
                    Some(_) => continue,
                }
            };
            if path.is_none() && elements.is_named(head, full_path) {
                if elements.is_named(head, data) {
                    // By configuration both are one field.
                    return Err(Unsure);
                }
                path = Some(elements.take_text(full_path)?);
            } else if !has_passed_data && elements.is_named(head, data) {
                let (kind, value) = elements.take_named(data)?;
                if kind == kind::DOCUMENT
                    && let Some(id) = self.id_within(value)?
                {
                    return Ok(Some(id));
                }
                has_passed_data = true;
            } else {
                elements.next()?;
            }
        }
        Ok(path.flatten().map(|path| path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)))
    }

    fn id_within<'a>(&self, user: &'a [u8]) -> Result<Option<&'a [u8]>, Unsure> {
        let mut elements = Elements::of(user)?;
        loop {
            match elements.head() {
                Some(head) if elements.is_named(head, &self.id) => return elements.take_text(&self.id),
                Some(_) => drop(elements.next()?),
                None => match elements.next()? {
                    None => return Ok(None),
                    Some(element) if self.id.is(element.name) => return Err(Unsure),
                    Some(_) => {}
                },
            }
        }
    }

    fn has(&self, name: &[u8]) -> bool {
        self.tenant.iter().chain([&self.collection]).any(|ours| ours.is(name))
    }

    #[cold]
    fn one_by_one<'a>(&self, image: &'a [u8]) -> Root<'a> {
        let Some(document) = document(image) else { return Root::default() };
        let text = |name: &Name| field(document, name.text())?.as_str().map(str::as_bytes);
        Root { tenant: self.tenant.iter().find_map(text), collection: text(&self.collection), decided_by: 0 }
    }
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
        (0..2_000).map(|_| image_of(&fields, random)).collect()
    }

    /// A document of some of these fields.
    fn image_of(fields: &[(&str, Bson)], random: &mut StdRng) -> Vec<u8> {
        let mut chosen = fields.to_vec();
        chosen.shuffle(random);
        chosen.truncate(random.random_range(0..=fields.len()));
        let parts = chosen.iter().map(|(name, value)| doc! { *name: value.clone() }.to_vec().unwrap());
        let inside: Vec<u8> = parts.flat_map(|part| part[4..part.len() - 1].to_vec()).collect();
        let mut bytes = (inside.len() as i32 + 5).to_le_bytes().to_vec();
        bytes.extend(inside);
        bytes.push(0);
        bytes
    }

    #[test]
    fn one_walk_finds_what_a_look_up_for_each_name_does() {
        let mut random = StdRng::seed_from_u64(11);
        let images = images(&mut random);
        for nested in names() {
            let names = Names::of(&nested);
            let mut sure = 0;
            let mut same = 0;
            let of = |root: Root<'_>| (root.tenant.map(<[u8]>::to_vec), root.collection.map(<[u8]>::to_vec));
            let mut check = |image: &[u8], before: &[u8]| {
                let expected = of(names.one_by_one(image));
                let root = names.root(image);
                assert_eq!(of(root), expected, "{image:?}");
                if let Ok(found) = names.in_one_walk(image) {
                    assert_eq!(of(found), expected, "{image:?}");
                    sure += 1;
                }
                if root.is_that_of(image, before) {
                    assert_eq!(of(names.one_by_one(before)), expected, "{image:?} {before:?}");
                    same += 1;
                }
            };
            for image in &images {
                check(image, image);
                for _ in 0..10 {
                    let broken = broken(image, &mut random);
                    check(&broken, image);
                    check(image, &broken);
                }
            }
            assert!(sure > 5_000 && same > 100, "{sure} {same}");
        }
    }

    #[test]
    fn the_id_is_that_of_the_mapping() {
        let mut random = StdRng::seed_from_u64(12);
        let user = |id: Bson| doc! { "n": 1, "id": id, "text": "The quick brown fox" };
        let fields = [
            ("_id", Bson::String("acme:00".into())),
            ("fullpath", Bson::String("rooms/r1/messages/m1".into())),
            ("fullpath", Bson::String("whole".into())),
            ("fullpath", Bson::String("rooms/".into())),
            ("fullpath", Bson::Int32(1)),
            ("data", user(Bson::String("own".into())).into()),
            ("data", user(Bson::Int32(1)).into()),
            ("data", doc! { "id": Bson::Null }.into()),
            ("data", doc! {}.into()),
            ("data", Bson::String("none".into())),
            ("version", Bson::Int64(7)),
            (
                "a",
                Bson::RegularExpression(bson::Regex {
                    pattern: "x".try_into().unwrap(),
                    options: "".try_into().unwrap(),
                }),
            ),
        ];
        let one_field = Nested { full_path: "data".into(), ..Nested::default() };
        for (nested, expected_sure) in [(Nested::default(), 5_000), (one_field, 500)] {
            let names = Names::of(&nested);
            let mapping = Mapping::Nested(nested);
            let mut sure = 0;
            let mut check = |image: &[u8]| {
                let expected = super::document(image).and_then(|image| mapping.document_id(image));
                if let Ok(id) = names.id(image) {
                    assert_eq!(id.map(|id| crate::ingest::event::stored_text(id).to_vec()), expected, "{image:?}");
                    sure += 1;
                }
            };
            for _ in 0..2_000 {
                let image = image_of(&fields, &mut random);
                check(&image);
                (0..5).for_each(|_| check(&broken(&image, &mut random)));
            }
            assert!(sure > expected_sure, "{sure}");
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
                decided_by: names.root(&bytes).decided_by,
            };
            assert_eq!(names.root(&bytes), expected);
        }
    }
}
