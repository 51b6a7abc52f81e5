use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const SEED: u64 = 11;

/// One that asks for a base soon and has room for little.
fn small() -> FilterConfig {
    FilterConfig { delta_min: 4, delta_max: 16, exact_max: 2, copied_max: 256, ..FilterConfig::default() }
}

/// Captures to the end and builds.
fn build(filter: &mut Filter) {
    loop {
        match filter.step(0) {
            FilterStep::Nothing => return,
            FilterStep::More => {}
            FilterStep::Build(build) => filter.built(build.run(), 0),
        }
    }
}

#[test]
fn first_take_says_no_to_everything() {
    let mut filter = Filter::new(FilterConfig::default(), SEED);
    let first = filter.take().expect("the first one");
    assert!(first.version >= 1);
    assert!(!first.may_want(FilterKey(7)));
    assert!(filter.take().is_none());
}

#[test]
fn keys_are_counted() {
    let mut filter = Filter::new(FilterConfig::default(), SEED);
    let since = filter.add(FilterKey(8));
    assert_eq!(filter.add(FilterKey(8)), since);
    filter.remove(FilterKey(8));
    assert!(filter.take().unwrap().may_want(FilterKey(8)));
    filter.remove(FilterKey(8));
    assert_eq!(filter.len(), 0);
    // It lingers: whoever wants it again need not wait, until it is gone from what is published.
    assert_eq!(filter.add(FilterKey(8)), since);
    filter.remove(FilterKey(8));
    filter.rebuild_wanted = true;
    build(&mut filter);
    assert!(!filter.take().unwrap().may_want(FilterKey(8)));
    assert!(filter.add(FilterKey(8)) > since);
}

#[test]
fn a_snapshot_holds_every_key_of_its_version_through_rebuilds() {
    let mut filter = Filter::new(FilterConfig::default(), SEED);
    let mut held: HashMap<u64, u64> = HashMap::new();
    for key in 0..20_000_u64 {
        held.insert(key, filter.add(FilterKey(key)));
        if key % 3 == 0 && key > 100 && held.remove(&(key - 99)).is_some() {
            filter.remove(FilterKey(key - 99));
        }
        if key % 500 == 0 {
            let snapshot = filter.take().unwrap();
            for (key, since) in &held {
                assert!(*since > snapshot.version || snapshot.may_want(FilterKey(*key)), "{key}");
            }
            build(&mut filter);
        }
    }
    assert!(filter.counts.builds > 5);
    assert!(filter.take().unwrap().base_bytes() > 10_000);
}

#[test]
fn documents_are_asked_for_while_there_are_any() {
    let mut filter = Filter::new(FilterConfig::default(), SEED);
    filter.add(FilterKey(2));
    assert!(!filter.take().unwrap().documents);
    let since = filter.add(FilterKey(3));
    let snapshot = filter.take().unwrap();
    assert!(snapshot.documents && snapshot.version >= since);
    filter.remove(FilterKey(3));
    filter.rebuild_wanted = true;
    build(&mut filter);
    let snapshot = filter.take().unwrap();
    assert!(!snapshot.documents);
    let since = filter.add(FilterKey(3));
    assert!(since > snapshot.version);
    assert!(filter.take().unwrap().documents);
}

#[test]
fn a_full_delta_is_maybe_to_everything_until_a_base_holds_it_all() {
    let mut filter = Filter::new(small(), SEED);
    for key in 5..22 {
        filter.add(FilterKey(key * 2));
    }
    let full = filter.take().unwrap();
    assert!(full.everything && full.may_want(FilterKey(1_000)));
    // This one finds no room while the next base is being captured without it.
    assert!(matches!(filter.step(0), FilterStep::More));
    let since = filter.add(FilterKey(100));
    assert!(since <= full.version, "everything is told already");
    let FilterStep::Build(first) =
        std::iter::repeat_with(|| filter.step(0)).find(|s| !matches!(s, FilterStep::More)).unwrap()
    else {
        panic!("all is copied")
    };
    filter.built(first.run(), 0);
    assert!(filter.take().unwrap().everything, "the new base may not hold what came meanwhile");
    build(&mut filter);
    let snapshot = filter.take().unwrap();
    assert!(!snapshot.everything);
    assert!((5..22).all(|key| snapshot.may_want(FilterKey(key * 2))) && snapshot.may_want(FilterKey(100)));
    assert_eq!(filter.delta.len(), 0);
}

#[test]
fn a_build_that_fails_is_tried_again_later_and_drops_nothing() {
    let mut filter = Filter::new(small(), SEED);
    (0..10).for_each(|key| _ = filter.add(FilterKey(key)));
    let build = loop {
        match filter.step(0) {
            FilterStep::Build(build) => break build,
            FilterStep::More => {}
            FilterStep::Nothing => panic!("it wants a base"),
        }
    };
    filter.built(build.fail(), 0);
    assert_eq!(filter.counts.builds_failed, 1);
    assert!(matches!(filter.step(999), FilterStep::Nothing));
    assert!((0..10).all(|key| filter.take().is_none_or(|snapshot| snapshot.may_want(FilterKey(key)))));
    assert!(matches!(filter.step(1_000), FilterStep::More));
}

#[test]
fn the_result_of_another_capture_is_not_taken() {
    let mut filter = Filter::new(small(), SEED);
    let other = FilterBuilt { number: 9, base: Ok(Base::Empty) };
    filter.add(FilterKey(4));
    filter.built(other, 0);
    assert!(filter.take().unwrap().may_want(FilterKey(4)));
    assert_eq!(filter.counts.builds, 0);
}

fn change(tenant: &str, collection: &str) -> Change {
    change_of(tenant, collection, "document")
}

fn change_of(tenant: &str, collection: &str, document: &str) -> Change {
    let position = wire::Position { backend: wire::BackendId(1), lineage: wire::Lineage(1), time: 1, k: 1 };
    let key = predicate::stored_id(bson::RawBsonRef::String(document));
    Change::copied(crate::NewChange {
        position,
        operation: wire::Operation::Insert,
        key: key.into(),
        document_id: None,
        before: None,
        after: Some(crate::Image::new(tenant, collection, &[])),
        bare: None,
    })
}

#[test]
fn keys_that_are_gone_and_let_too_much_through_are_built_away() {
    let config = FilterConfig { measured_over: 100, ..FilterConfig::default() };
    let mut filter = Filter::new(config, SEED);
    let [held, gone, never] = ["held", "gone", "never"].map(|name| change("t", name));
    let place = |change: &Change| FilterKey::place(change.after().unwrap().place);
    filter.add(place(&held));
    filter.add(place(&gone));
    filter.remove(place(&gone));
    let pass = |filter: &mut Filter, change: &Change, claimed, times| {
        (0..times).for_each(|_| filter.passed(change, claimed));
    };
    pass(&mut filter, &gone, false, 2);
    // Somebody watches the place, though not this change of it.
    pass(&mut filter, &held, false, 48);
    pass(&mut filter, &held, true, 50);
    assert!(matches!(filter.step(0), FilterStep::Nothing), "2 in 100 are allowed");
    pass(&mut filter, &gone, false, 3);
    pass(&mut filter, &held, true, 97);
    assert_eq!((filter.counts.false_positives, filter.counts.stale), (5, 5));
    build(&mut filter);
    assert_eq!(filter.counts.builds, 1);
    assert!(!filter.take().unwrap().may_want(place(&gone)));
    // What no key of ours ever was, a new base would let through as well.
    pass(&mut filter, &never, false, 200);
    assert_eq!((filter.counts.false_positives, filter.counts.stale), (205, 5));
    assert!(matches!(filter.step(0), FilterStep::Nothing));
}

#[test]
fn who_watches_a_document_watches_its_changes() {
    let mut filter = Filter::new(FilterConfig::default(), SEED);
    let watched = change("t", "c");
    filter.passed(&watched, false);
    assert_eq!(filter.counts.false_positives, 1);
    filter.add(FilterKey::of_stored_id(watched.key()).unwrap());
    filter.passed(&watched, true);
    assert_eq!(filter.counts.false_positives, 1);
    let other = change_of("t", "c", "other");
    filter.passed(&other, true);
    assert_eq!(filter.counts.false_positives, 2);
}

#[test]
fn no_step_of_a_capture_copies_more_than_its_bound() {
    let config = FilterConfig { copied_max: 8_192, ..FilterConfig::default() };
    let mut filter = Filter::new(config, SEED);
    (10..200_010).for_each(|key| _ = filter.add(FilterKey(key)));
    let mut steps = 0;
    let build = loop {
        match filter.step(0) {
            FilterStep::More => {
                steps += 1;
                if let State::Capturing { keys, .. } = &filter.state {
                    assert!(keys.iter().all(|chunk| chunk.len() <= 8_192 + 1_024));
                }
            }
            FilterStep::Build(build) => break build,
            FilterStep::Nothing => panic!("it wants a base"),
        }
    };
    assert!(steps > 20, "{steps}");
    assert_eq!(build.keys(), 200_000);
}

proptest! {
    /// Whatever comes and goes between whatever steps: each snapshot is asked about all keys at its version.
    #[test]
    fn snapshots_never_deny_what_is_held(
        steps in prop::collection::vec((0_u8..12, 10_u64..50), 1..400),
        delta_max in 2_usize..40,
        exact_max in 0_usize..8,
    ) {
        let config = FilterConfig { delta_max, exact_max, copied_max: 200, delta_min: 3, ..FilterConfig::default() };
        let mut filter = Filter::new(config, SEED);
        let mut held: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut waiting = None;
        let mut published = Vec::new();
        for (what, key) in steps {
            match what {
                0..=3 => held.entry(key).or_default().push(filter.add(FilterKey(key))),
                4..=6 => {
                    if held.get_mut(&key).and_then(Vec::pop).is_some() {
                        filter.remove(FilterKey(key));
                    }
                    held.retain(|_, sinces| !sinces.is_empty());
                }
                7 | 8 => if let FilterStep::Build(build) = filter.step(0) {
                    waiting = Some(build);
                },
                9 => if let Some(build) = waiting.take() {
                    filter.built(if key == 10 { build.fail() } else { build.run() }, 0);
                    filter.retry_at = 0;
                },
                _ => published.extend(filter.take()),
            }
            prop_assert!(filter.delta.len() <= delta_max);
            prop_assert_eq!(filter.len(), held.len());
            for (key, sinces) in &held {
                for since in sinces {
                    for snapshot in published.iter().filter(|snapshot| snapshot.version >= *since) {
                        prop_assert!(snapshot.may_want(FilterKey(*key)), "{} since {} at {}", key, since, snapshot.version);
                        prop_assert!(snapshot.everything || snapshot.documents || key % 2 == 0);
                    }
                }
            }
        }
    }
}
