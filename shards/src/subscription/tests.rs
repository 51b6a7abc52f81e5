use std::collections::BTreeMap;

use proptest::prelude::*;
use wire::BackendId;

use super::*;

fn item(id: u32) -> SubscribeItem {
    SubscribeItem::new(SubscriptionKey { tenant: format!("t{}", id % 3), id: format!("s{id}") }, "c")
}

fn insert(all: &mut Subscriptions, members: &mut Members, id: u32) -> SubId {
    let item = item(id);
    let new = New {
        gateway: GatewayId(7),
        key: &item.key,
        content: all.content_of(&item),
        transitions: true,
        generation: 1 + id % 2,
        filter_key: FilterKey(3),
        by_session: id.is_multiple_of(2),
        ttl_s: 300,
        expires_at: 300_000,
    };
    all.insert(members, new)
}

fn at(backend: u32, time: u64) -> Position {
    Position { backend: BackendId(backend), lineage: wire::Lineage(1), time, k: 1 }
}

#[test]
fn an_old_name_never_finds_the_next_one() {
    let mut all = Subscriptions::new(1);
    let mut members = Members::default();
    let first = insert(&mut all, &mut members, 1);
    assert!(all.remove(&mut members, first).is_some());
    let second = insert(&mut all, &mut members, 2);
    assert_eq!(first.slot, second.slot);
    assert!(all.get(first).is_none());
    assert!(all.remove(&mut members, first).is_none());
    assert!(all.get(second).is_some());
    assert_eq!((all.len(), members.count), (1, 1));
}

#[test]
fn contents_differ_in_any_part() {
    let all = Subscriptions::new(1);
    let with = |change: fn(&mut SubscribeItem)| {
        let mut item = item(1);
        change(&mut item);
        item
    };
    let contents = [
        with(|_| {}),
        with(|item| item.collection = "d".into()),
        with(|item| item.filters = "c".into()),
        with(|item| item.expr = "c".into()),
        with(|item| item.transitions = false),
        with(|item| item.group = Some(String::new())),
        with(|item| item.group = Some("c".into())),
        with(|item| item.lossy = true),
    ];
    for (a, one) in contents.iter().enumerate() {
        for (b, other) in contents.iter().enumerate() {
            assert_eq!(all.content_of(one) == all.content_of(other), a == b, "{one:?} {other:?}");
        }
    }
    let key = with(|item| item.ttl_s = 60);
    assert_eq!(all.content_of(&key), all.content_of(&contents[0]), "how long it lives is no part of it");
}

#[test]
fn tails_are_kept_by_backend() {
    let mut all = Subscriptions::new(1);
    let mut members = Members::default();
    let id = insert(&mut all, &mut members, 1);
    assert!(all.tail_of(id).is_empty());
    for position in [at(1, 5), at(2, 3), at(1, 4), at(2, 7), at(1, 6)] {
        all.advance_tail(id, &position);
    }
    assert_eq!(all.tail_of(id), [at(2, 7), at(1, 6)].into_iter().collect());
    let anew = Position { lineage: wire::Lineage(2), ..at(1, 1) };
    all.advance_tail(id, &anew);
    assert_eq!(all.tail_of(id).get(BackendId(1)), Some(&anew));
    all.clear_tail(id);
    assert!(all.tail_of(id).is_empty());
    all.check_invariants();
}

#[test]
fn memory_comes_and_goes_by_the_chunk() {
    let mut all = Subscriptions::new(1);
    let mut members = Members::default();
    let many = 5 * CHUNK as u32;
    let ids: Vec<SubId> = (0..many).map(|id| insert(&mut all, &mut members, id)).collect();
    for id in &ids[10..] {
        all.remove(&mut members, *id);
    }
    all.check_invariants();
    let held = all.chunks.iter().filter(|chunk| chunk.places.capacity() > 0).count();
    assert_eq!(held, 2, "the one in use, and one to spare");
    let again: Vec<SubId> = (many..2 * many).map(|id| insert(&mut all, &mut members, id)).collect();
    assert!(ids[10..].iter().all(|id| all.get(*id).is_none()), "their stamps are remembered");
    assert!(again.iter().all(|id| all.get(*id).is_some()));
    all.check_invariants();
}

#[test]
fn a_walk_meets_whoever_comes_in_behind_it() {
    let mut all = Subscriptions::new(1);
    let mut members = Members::default();
    let ids: Vec<SubId> = (0..4).map(|id| insert(&mut all, &mut members, id)).collect();
    members.start_walk();
    assert_eq!(all.walk(&mut members), Some(ids[0]));
    all.remove(&mut members, ids[1]);
    all.remove(&mut members, ids[0]);
    assert_eq!(all.walk(&mut members), Some(ids[2]));
    let late = insert(&mut all, &mut members, 9);
    assert_eq!(all.walk(&mut members), Some(ids[3]));
    assert_eq!(all.walk(&mut members), Some(late));
    assert_eq!(all.walk(&mut members), None);
    let left: Vec<SubId> = all.members(&members).map(|(id, _)| id).collect();
    assert_eq!(left, [ids[2], ids[3], late]);
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u32),
    Remove(u32),
    Rare(u32),
    Live(u32),
    Tidy,
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 0..3_000_u32;
    prop_oneof![
        6 => id().prop_map(Step::Insert),
        4 => id().prop_map(Step::Remove),
        1 => id().prop_map(Step::Rare),
        1 => id().prop_map(Step::Live),
        1 => Just(Step::Tidy),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn holds_what_is_there(steps in prop::collection::vec(step(), 1..4_000)) {
        let mut all = Subscriptions::new(9);
        let mut members = Members::default();
        let mut model: BTreeMap<u32, SubId> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Insert(id) => {
                    model.entry(id).or_insert_with(|| insert(&mut all, &mut members, id));
                }
                Step::Remove(id) => {
                    if let Some(sub) = model.remove(&id) {
                        let ended = all.remove(&mut members, sub).expect("it is there");
                        prop_assert_eq!(ended.key, item(id).key);
                    }
                }
                Step::Rare(id) => {
                    if let Some(sub) = model.get(&id) {
                        all.rare_mut(*sub).skip_before = u64::from(id);
                    }
                }
                Step::Live(id) => {
                    if let Some(sub) = model.get(&id).filter(|sub| !all.get(**sub).unwrap().is_live()) {
                        all.go_live(*sub, &[at(1, u64::from(id % 5))].into_iter().collect());
                    }
                }
                Step::Tidy => {
                    for chunk in 0..all.chunks() {
                        all.tidy_chunk(chunk, &Positions::default(), 1_000, |_, _| false);
                    }
                }
            }
        }
        all.check_invariants();
        prop_assert_eq!(all.len(), model.len());
        for id in 0..3_000 {
            prop_assert_eq!(all.find(GatewayId(7), &item(id).key), model.get(&id).copied());
            prop_assert_eq!(all.find(GatewayId(8), &item(id).key), None);
        }
        for (id, sub) in &model {
            prop_assert_eq!(all.generation_of(*sub), 1 + id % 2);
        }
    }
}

#[test]
fn whoever_was_told_of_an_entry_is_known_to_have_been_from_any_entry_before_it() {
    let mut sub = Subscription { stamp: 0, owner: 0, mark: 0, bits: TAKEN | RARE };
    assert!(!sub.may_be_told_from(0), "nothing was for it");
    // Around the ends of a block, and of all that a record can tell apart.
    let wraps = 1_u64 << 32;
    for told in [0, 1, 255, 256, 1_000, wraps - 1, wraps, wraps + 300, 5 * wraps - 256] {
        sub.told(told);
        for log in [0, 1, 255, 256, 1_024, 1 << 20, 1 << 28] {
            assert!(sub.may_be_told_from(told.saturating_sub(log)), "{told} with {log} before it");
        }
        for left in [256, 512, 1_024, 1 << 20, 1 << 30] {
            assert!(!sub.may_be_told_from(told + left), "{told} that left the log {left} entries ago");
        }
        assert!(sub.has(TAKEN) && sub.has(RARE) && !sub.has(LIVE), "flags stay");
    }
}
