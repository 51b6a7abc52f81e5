use wire::{BackendId, Certainty, Lineage};

use super::*;

fn at(time: u64, k: u32) -> EventId {
    Position { backend: BackendId(1), lineage: Lineage(1), time, k }
}

fn key(id: &str) -> SubscriptionKey {
    SubscriptionKey { tenant: "acme".into(), id: id.into() }
}

fn expected(id: &str, event: EventId) -> Expected {
    let (transition, certainty) = (Transition::Enter, Certainty::Matched);
    Expected { gateway: "g".into(), key: key(id), id: event, transition, certainty }
}

fn delivered(id: &str, event: EventId) -> Delivered {
    Delivered { gateway: "g".into(), key: key(id), id: event, transition: Transition::Enter, shard: 0 }
}

/// lost, duplicates, misdelivered, out_of_order
type Faulty = (u64, u64, u64, u64);

/// Ten clean events for two subscriptions, then what the case does with an eleventh.
fn check(name: &str, expect: Faulty, act: impl Fn(&mut Ledger)) {
    for expected_first in [true, false] {
        let mut ledger = Ledger::new();
        ledger.register("g", &key("a"), "eq");
        ledger.register("g", &key("b"), "in");
        for time in 1..=10 {
            for id in ["a", "b"] {
                if expected_first {
                    ledger.expect(&expected(id, at(time, 1)));
                    ledger.deliver(&delivered(id, at(time, 1)));
                } else {
                    ledger.deliver(&delivered(id, at(time, 1)));
                    ledger.expect(&expected(id, at(time, 1)));
                }
            }
        }
        assert!(ledger.report().is_clean(), "{name}");
        act(&mut ledger);
        let report = ledger.report();
        let faults = (report.lost, report.duplicates, report.misdelivered, report.out_of_order);
        assert_eq!(faults, expect, "{name}: {report:?}");
        let count = expect.0 + expect.1 + expect.2 + expect.3;
        assert_eq!(report.examples.len() as u64, count.min(5), "{name}: {report:?}");
    }
}

#[test]
fn each_fault_makes_exactly_its_field_non_zero() {
    check("none", (0, 0, 0, 0), |ledger| {
        ledger.expect(&expected("a", at(11, 1)));
        ledger.deliver(&delivered("a", at(11, 1)));
    });
    check("dropped", (1, 0, 0, 0), |ledger| ledger.expect(&expected("a", at(11, 1))));
    check("repeated at once", (0, 1, 0, 0), |ledger| ledger.deliver(&delivered("a", at(10, 1))));
    check("repeated late", (0, 1, 0, 0), |ledger| ledger.deliver(&delivered("a", at(1, 1))));
    check("repeated before it is expected", (0, 1, 0, 0), |ledger| {
        ledger.deliver(&delivered("a", at(11, 1)));
        ledger.deliver(&delivered("a", at(11, 1)));
        ledger.expect(&expected("a", at(11, 1)));
    });
    check("not expected", (0, 0, 1, 0), |ledger| ledger.deliver(&delivered("a", at(11, 1))));
    check("to a Gateway without such a subscription", (0, 0, 1, 0), |ledger| {
        ledger.deliver(&Delivered { gateway: "other".into(), ..delivered("a", at(10, 1)) });
    });
    check("to another tenant's subscription of that id", (0, 0, 1, 0), |ledger| {
        let key = SubscriptionKey { tenant: "globex".into(), id: "a".into() };
        ledger.deliver(&Delivered { key, ..delivered("a", at(10, 1)) });
    });
    check("another transition", (0, 0, 1, 0), |ledger| {
        ledger.expect(&expected("a", at(11, 1)));
        ledger.deliver(&Delivered { transition: Transition::Leave, ..delivered("a", at(11, 1)) });
    });
    check("out of order", (0, 0, 0, 1), |ledger| {
        ledger.expect(&expected("a", at(11, 1)));
        ledger.expect(&expected("a", at(11, 2)));
        ledger.deliver(&delivered("a", at(11, 2)));
        ledger.deliver(&delivered("a", at(11, 1)));
    });
    check("many lost", (9, 0, 0, 0), |ledger| (11..20).for_each(|time| ledger.expect(&expected("a", at(time, 1)))));
}

#[test]
fn another_lineage_is_another_history() {
    check("the same time and k in another lineage", (0, 0, 0, 0), |ledger| {
        let event = Position { lineage: Lineage(2), ..at(1, 1) };
        ledger.expect(&expected("a", event));
        ledger.deliver(&delivered("a", event));
    });
}

#[test]
fn counts_are_kept_by_op_gateway_tenant_and_shard() {
    let mut ledger = Ledger::new();
    ledger.register("g", &key("a"), "eq");
    ledger.register("g", &key("b"), "in");
    for time in 1..=3 {
        ledger.expect(&expected("a", at(time, 1)));
        ledger.deliver(&Delivered { shard: (time % 2) as u16, ..delivered("a", at(time, 1)) });
    }
    ledger.expect(&expected("b", at(4, 1)));
    let report = ledger.report();
    assert_eq!(report.by_op["eq"], Counts { expected: 3, delivered: 3 });
    assert_eq!(report.by_op["in"], Counts { expected: 1, delivered: 0 });
    assert_eq!(report.by_gateway["g"], Counts { expected: 4, delivered: 3 });
    assert_eq!(report.by_tenant["acme"], Counts { expected: 4, delivered: 3 });
    assert_eq!(report.by_shard, BTreeMap::from([(0, 1), (1, 2)]));
    assert_eq!((report.expected, report.delivered, report.lost), (4, 3, 1));
    assert_eq!((ledger.owed(), ledger.early()), (1, 0));
}

#[test]
fn expecting_twice_is_expecting_once() {
    check("while owed, and after", (0, 0, 0, 0), |ledger| {
        ledger.expect(&expected("a", at(11, 1)));
        ledger.expect(&expected("a", at(11, 1)));
        ledger.deliver(&delivered("a", at(11, 1)));
        ledger.expect(&expected("a", at(11, 1)));
        assert_eq!(ledger.expected(), 21);
    });
}

#[test]
fn a_resync_excuses_what_is_owed_up_to_it() {
    let mut ledger = Ledger::new();
    for id in ["a", "b"] {
        (1..=5).for_each(|time| ledger.expect(&expected(id, at(time, 1))));
    }
    let live_from: Positions = [at(3, 1)].into_iter().collect();
    assert_eq!(ledger.excuse("g", &key("a"), &live_from), 3);
    let report = ledger.report();
    assert_eq!((report.expected, report.lost, report.excused), (7, 7, 3));
}

#[test]
fn late_expectations_in_any_order_settle() {
    let mut ledger = Ledger::new();
    for time in 1..=50 {
        ledger.deliver(&delivered("a", at(time, 1)));
    }
    assert_eq!(ledger.report().misdelivered, 50);
    for time in (1..=50).rev() {
        ledger.expect(&expected("a", at(time, 1)));
    }
    assert!(ledger.report().is_clean());
    (1..=50).for_each(|time| ledger.deliver(&delivered("a", at(time, 1))));
    assert_eq!(ledger.report().duplicates, 50);
}
