use bson::{Bson, Document, Timestamp, doc};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use wire::{BackendId, Lineage};

use super::{
    reference::{Normalized, Read},
    *,
};
use crate::ingest::elements::tests::broken;

const POSITION: Position = Position { backend: BackendId(1), lineage: Lineage(2), time: 3, k: 4 };

fn image(random: &mut StdRng) -> Document {
    let mut fields: Vec<(String, Bson)> = Vec::new();
    let mut maybe = |random: &mut StdRng, chance: u32, name: &str, values: &[Bson]| {
        if random.random_ratio(chance, 10) {
            fields.push((name.into(), values[random.random_range(0..values.len())].clone()));
        }
    };
    let text = |text: &str| Bson::String(text.into());
    let marks = [Bson::Boolean(true), Bson::Boolean(false), Bson::Null];
    maybe(random, 10, "_id", &[text("acme:00"), text("a:b:00"), Bson::Int32(5)]);
    maybe(random, 8, "tenant_id", &[text("acme"), text("acme"), text("a:b"), text("other"), Bson::Null]);
    maybe(random, 3, "database", &[text("acme"), text("old")]);
    maybe(random, 9, "collection", &[text("rooms"), text("rooms/r1/messages"), text("räume"), Bson::Int32(1)]);
    maybe(random, 8, "fullpath", &[text("rooms/m1"), text("m1"), Bson::Null]);
    maybe(random, 5, "deleted", &marks);
    maybe(random, 8, "data", &[doc! { "id": "m2", "n": 1 }.into(), doc! { "id": 1 }.into(), Bson::Null]);
    if random.random_ratio(1, 3) {
        fields.shuffle(random);
    }
    fields.into_iter().collect()
}

fn event(random: &mut StdRng) -> Vec<u8> {
    let verbs =
        ["insert", "update", "update", "replace", "delete", "drop", "rename", "dropDatabase", "invalidate", "", "new"];
    let keys = [
        doc! { "_id": "acme:00" },
        doc! { "_id": "a:b:00" },
        doc! { "_id": "no tenant" },
        doc! { "shard": 1, "_id": "acme:01" },
        doc! { "_id": bson::oid::ObjectId::from_bytes([7; 12]) },
        doc! { "_id": 5_i64 },
        doc! { "_id": { "a": 1 } },
        doc! {},
    ];
    let spaces =
        [doc! { "db": "app", "coll": "things" }, doc! { "db": "app", "coll": "größen" }, doc! { "db": "app" }, doc! {}];
    let updates = [
        doc! { "updatedFields": { "deleted": true } },
        doc! { "updatedFields": { "deleted": false, "n": 1 }, "removedFields": [] },
        doc! { "updatedFields": { "deleted": 1 } },
        doc! { "removedFields": ["n", "deleted"] },
        doc! { "removedFields": "deleted" },
        doc! {},
    ];
    let same = image(random);
    let other = if random.random() { same.clone() } else { image(random) };
    let mut all = doc! {
        "_id": { "_data": "00" }, "operationType": verbs[random.random_range(0..verbs.len())],
        "clusterTime": Timestamp { time: 7, increment: 3 }, "wallTime": bson::DateTime::from_millis(7),
        "fullDocument": same, "ns": spaces[random.random_range(0..spaces.len())].clone(),
        "to": { "db": "app", "coll": "others" }, "documentKey": keys[random.random_range(0..keys.len())].clone(),
        "updateDescription": updates[random.random_range(0..updates.len())].clone(), "fullDocumentBeforeChange": other,
    };
    for name in ["to", "fullDocument", "fullDocumentBeforeChange", "updateDescription", "wallTime"] {
        match random.random_range(0..6) {
            0 => drop(all.remove(name)),
            1 => drop(all.insert(name, Bson::Null)),
            _ => {}
        }
    }
    let mut fields: Vec<_> = all.into_iter().collect();
    if random.random_ratio(1, 10) {
        fields.shuffle(random);
    }
    fields.into_iter().collect::<Document>().to_vec().expect("a document that BSON can hold")
}

fn quickly(mapping: &Arc<Mapping>, event: &Bytes) -> Result<Read, Malformed> {
    let normalizer = Normalizer::new(mapping.clone());
    let fields = RawEvent::parse(event)?;
    let mut found = Found::NOTHING;
    let normalized = normalizer.find(&fields, &mut found).map(|concern| match concern {
        Concern::Document => {
            let change = normalizer.change(event, &fields, &found, POSITION);
            check_places(&found, &change);
            Normalized::Change(change)
        }
        Concern::Gap { scopes, reason } => Normalized::Gap { scopes, reason },
        Concern::Skip(why) => Normalized::Skip(why),
    });
    Ok((fields.token.map(<[u8]>::to_vec), fields.cluster_time, normalized))
}

/// The places that an event is routed by are those of the change that is made of it.
fn check_places(found: &Found<'_>, change: &Change) {
    let mut expected: SmallVec<[PlaceHash; 2]> = SmallVec::new();
    for image in [change.after(), change.before()].into_iter().flatten() {
        assert_eq!(image.place, PlaceHash::of_bytes(image.tenant, image.collection));
        if !expected.contains(&image.place) {
            expected.push(image.place);
        }
    }
    let places = found.places().map(|places| places.into_iter().flatten().collect::<SmallVec<[PlaceHash; 2]>>());
    match change.bare() {
        None => assert_eq!(places, Some(expected)),
        Some(Bare { tenant: Some(tenant), collection: Some(collection) }) => {
            assert_eq!(places, Some(smallvec![PlaceHash::of(tenant, collection)]));
        }
        Some(_) => assert_eq!(places, None),
    }
    assert_eq!(format!("{:?}", predicate::raw_of_stored_id(change.key())), format!("{:?}", Some(found.key.value())));
}

fn check(mappings: &[Arc<Mapping>], event: Vec<u8>) -> [u32; 3] {
    let event = Bytes::from(event);
    let mut seen = [0; 3];
    for mapping in mappings {
        let expected = reference::read(mapping, &event, POSITION);
        let found = quickly(mapping, &event);
        assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{mapping} {:?}", &event[..]);
        match expected {
            Ok((_, _, Ok(Normalized::Change(_)))) => seen[0] += 1,
            Ok((_, _, Ok(_))) => seen[1] += 1,
            _ => seen[2] += 1,
        }
    }
    seen
}

#[test]
fn the_quick_way_does_what_the_readable_one_does() {
    let mappings = [Mapping::syntrix(), Mapping::Plain].map(Arc::new);
    let mut random = StdRng::seed_from_u64(21);
    let mut seen = [0; 3];
    for _ in 0..8_000 {
        let event = event(&mut random);
        let mut count = |event| seen.iter_mut().zip(check(&mappings, event)).for_each(|(sum, more)| *sum += more);
        for _ in 0..3 {
            count(broken(&event, &mut random));
        }
        count(event);
    }
    assert!(seen.iter().all(|count| *count > 4_000), "changes, others, errors: {seen:?}");
}
