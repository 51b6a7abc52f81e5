use std::collections::{BTreeMap, BTreeSet};

use bson::Document;
use wire::{BackendId, Lineage, Operation};

use super::*;
use crate::{
    events::{EventFactory, EventOptions},
    oracle::{Numbering, Oracle, OracleChange},
};

const SEED: u64 = 20_240_117;

#[test]
fn one_seed_is_one_world() {
    for preset in [Preset::Syntrix, Preset::Plain] {
        let make = |seed| Generator::new(Profile::test(seed).with_preset(preset));
        let writes = |generator: &Generator| {
            let mut writer = generator.writer();
            (0..500).map(|_| writer.next()).collect::<Vec<_>>()
        };
        let (a, b, other) = (make(SEED), make(SEED), make(SEED + 1));
        assert_eq!(a.subscriptions(200), b.subscriptions(200));
        assert_ne!(a.subscriptions(200), other.subscriptions(200));
        assert_eq!(a.subscriptions(200)[..50], a.subscriptions(50)[..]);
        assert_eq!(writes(&a), writes(&b));
        assert_ne!(writes(&a), writes(&other));
        let transactions = |generator: &Generator| {
            let mut schedule = generator.schedule();
            (0..100).map(|_| schedule.transaction()).collect::<Vec<_>>()
        };
        assert_eq!(transactions(&a), transactions(&b));
        assert!(transactions(&a).iter().any(|n| *n > 1));
    }
}

#[test]
fn the_generated_text_does_not_change_by_accident() {
    let first = &Generator::new(Profile::test(1)).subscriptions(3)[2];
    let again = &Generator::new(Profile { gateways: 3, ..Profile::test(1) }).subscriptions(17)[2];
    assert_eq!(first, again);
    assert_eq!(first.op, "gt");
    assert!(first.filters.contains(r#""op":"gt""#) || first.filters.contains(r#""op":">""#), "{}", first.filters);
}

#[test]
fn names_repeat_in_other_tenants_and_gateways_but_never_within() {
    let subscriptions = Generator::new(Profile::test(SEED)).subscriptions(2_000);
    let keys: BTreeSet<_> = subscriptions.iter().map(|s| (s.gateway, s.key.clone())).collect();
    assert_eq!(keys.len(), subscriptions.len());
    let ids: BTreeSet<_> = subscriptions.iter().map(|s| &s.key.id).collect();
    assert!(ids.len() < subscriptions.len() / 5);
    let mut oracle = Oracle::new(Preset::Syntrix);
    for subscription in &subscriptions {
        oracle.subscribe(subscription.to_oracle()).unwrap();
    }
    assert_eq!(oracle.len(), subscriptions.len());
}

#[test]
fn a_skewed_choice_prefers_the_first() {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut counts = [[0_u32; 10]; 2];
    for (skewed, counts) in [false, true].into_iter().zip(&mut counts) {
        let choice = Choice::new(10, skewed);
        (0..10_000).for_each(|_| counts[choice.draw(&mut random)] += 1);
    }
    let [even, skewed] = counts;
    assert!(even.iter().all(|count| (800..1200).contains(count)), "{even:?}");
    assert!(skewed[0] > 3 * skewed[9] && skewed[9] > 100, "{skewed:?}");
}

#[derive(Debug, Default)]
struct Tally {
    matched: u64,
    candidates: u64,
    enter: u64,
    leave: u64,
}

/// 10,000 writes seen through the oracle; what each op came to.
fn tally(profile: Profile, before_images: bool) -> (BTreeMap<&'static str, Tally>, BTreeMap<String, u64>) {
    let generator = Generator::new(profile.clone());
    let subscriptions = generator.subscriptions(510);
    let mut oracle = Oracle::new(profile.preset);
    let mut ops = BTreeMap::new();
    let mut at_place: BTreeMap<(String, String), BTreeMap<&str, u64>> = BTreeMap::new();
    for subscription in &subscriptions {
        oracle.subscribe(subscription.to_oracle()).unwrap();
        ops.insert((subscription.gateway_name(), subscription.key.clone()), subscription.op);
        let place = (subscription.key.tenant.clone(), subscription.collection.clone());
        *at_place.entry(place).or_default().entry(subscription.op).or_default() += 1;
    }
    let options = EventOptions { before_images, ..EventOptions::new(profile.preset) };
    let mut factory = EventFactory::new(options);
    let mut numbering = Numbering::new(BackendId(1), Lineage(1));
    let mut writer = generator.writer();
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    let mut operations: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..10_000 {
        let write = writer.next();
        let event = Document::from_reader(&factory.apply(&write)[..]).unwrap();
        let id = numbering.next_event(&event).unwrap();
        let change = OracleChange::from_change_event(&event, profile.preset, id).unwrap().unwrap();
        let operation = change.operation(profile.preset);
        let expect = match write.kind {
            WriteKind::Insert | WriteKind::Recreate => Operation::Insert,
            WriteKind::Replace | WriteKind::Update { .. } => Operation::Update,
            WriteKind::SoftDelete | WriteKind::HardDelete => Operation::Delete,
        };
        assert_eq!(operation, expect, "{write:?} became {event}");
        let kind = format!("{:?}", write.kind);
        *operations.entry(kind.split_whitespace().next().unwrap().to_owned()).or_default() += 1;
        for (op, count) in at_place.get(&(write.tenant.clone(), write.collection.clone())).into_iter().flatten() {
            tallies.entry(op).or_default().candidates += count;
        }
        for expected in oracle.expect(&change) {
            assert_eq!(expected.key.tenant, write.tenant);
            let tally = tallies.entry(ops[&(expected.gateway, expected.key)]).or_default();
            tally.matched += u64::from(expected.certainty == wire::Certainty::Matched);
            tally.enter += u64::from(expected.transition == wire::Transition::Enter);
            tally.leave += u64::from(expected.transition == wire::Transition::Leave);
        }
    }
    (tallies, operations)
}

#[test]
fn every_op_matches_sometimes_and_not_always() {
    for (preset, before_images) in [(Preset::Syntrix, true), (Preset::Syntrix, false), (Preset::Plain, true)] {
        let (tallies, operations) = tally(Profile::test(SEED).with_preset(preset), before_images);
        for op in OPS {
            let Tally { matched, candidates, enter, leave } = tallies[op];
            let what = format!("{op} under {preset:?}, before-images {before_images}: {:?}", tallies[op]);
            assert!(matched * 200 > candidates, "hardly ever: {what}");
            assert!(enter > 0 && leave > 0, "nothing enters or leaves: {what}");
            // A whole collection is told of every change to it, but for deletes of unknown place.
            let always = op == "collection" && (preset == Preset::Plain || before_images);
            assert_eq!(matched == candidates, always, "{what}");
        }
        let kinds = if preset == Preset::Syntrix { 6 } else { 4 };
        assert_eq!(operations.len(), kinds, "{operations:?}");
        assert!(operations.values().all(|count| *count > 100), "{operations:?}");
    }
}

#[test]
fn without_cel_about_the_change_there_is_none() {
    let profile = Profile { reads_change: false, ..Profile::test(SEED) };
    let subscriptions = Generator::new(profile).subscriptions(100);
    assert!(subscriptions.iter().all(|s| s.op != "cel-change" && !s.expr.contains("before")));
}
