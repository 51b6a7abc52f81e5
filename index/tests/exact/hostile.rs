//! Documents and subscriptions that are made to be slow, or large: none breaks exactness.

use std::sync::Arc;

use bson::raw::cstr;
use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, doc};
use index::{Event, Image, Index, Main, Match, Rules, Verdict};
use predicate::{ChangeType, Mapping, Source, stored_string_id};
use wire::PlaceHash;

struct Harness {
    index: Index,
    next: u32,
}

impl Harness {
    fn new() -> Self {
        Self { index: Index::new(Arc::new(Mapping::Plain), 3), next: 0 }
    }

    /// Gives the slots.
    fn subscribe(&mut self, times: u32, filters: &str, expr: &str) -> Vec<u32> {
        let predicate = Arc::new(predicate::compile_on_big_stack(Source { filters, expr }, &Mapping::Plain).unwrap());
        (0..times)
            .map(|_| {
                self.index.insert(self.next, "t", "c", &predicate);
                self.next += 1;
                self.next - 1
            })
            .collect()
    }

    fn slots(&mut self, document: &RawDocument) -> Vec<u32> {
        self.matches(document, u64::MAX, false).iter().map(|found| found.slot).collect()
    }

    fn matches(&mut self, document: &RawDocument, event_units_max: u64, can_verify: bool) -> Vec<Match> {
        let key = stored_string_id("1");
        let image = Image { place: PlaceHash::of("t", "c"), tenant: b"t", collection: b"c", document };
        let event = Event {
            change_type: ChangeType::Insert,
            key: &key,
            before: None,
            after: Some(image),
            looks_before: false,
            looks_after: true,
            main: Main::After,
        };
        let can_verify = |_| can_verify;
        let rules = Rules { evaluation_units_max: u64::MAX, event_units_max, can_verify: &can_verify };
        let mut found = Vec::new();
        self.index.matches(&[event], &rules, &mut |_, matches, _| found.extend_from_slice(matches));
        found
    }
}

#[test]
fn one_value_by_the_hundred_thousand() {
    let mut harness = Harness::new();
    let all = harness.subscribe(100_000, r#"[{"field":"a","op":"==","value":1}]"#, "");
    let document = RawDocumentBuf::try_from(&doc! { "a": 1 }).unwrap();
    assert_eq!(harness.slots(&document), all);
    // From the middle, so that what is moved is moved often.
    for slot in &all[20_000..90_000] {
        harness.index.remove(*slot);
    }
    let left: Vec<u32> = all[..20_000].iter().chain(&all[90_000..]).copied().collect();
    assert_eq!(harness.slots(&document), left);
    harness.index.check_invariants();
}

#[test]
fn one_range_by_the_thousand() {
    let mut harness = Harness::new();
    let all = harness.subscribe(3_000, r#"[{"field":"a","op":">","value":1},{"field":"a","op":"<","value":5}]"#, "");
    assert_eq!(harness.slots(&RawDocumentBuf::try_from(&doc! { "a": 3 }).unwrap()), all);
    assert_eq!(harness.slots(&RawDocumentBuf::try_from(&doc! { "a": 5 }).unwrap()), [0_u32; 0]);
    for slot in &all {
        harness.index.remove(*slot);
    }
    harness.index.check_empty();
}

/// More fields with ranges than a partition names itself, and more ranges of each than stand in it; coming, and going again.
#[test]
fn many_ranges_of_many_fields() {
    let mut harness = Harness::new();
    let mut ranges = Vec::new();
    for number in 0..80_u32 {
        for field in 0..20 {
            let (lower, upper) = (number * 7 % 80, number * 7 % 80 + field % 5 + 1);
            let filters = format!(
                r#"[{{"field":"f{field}","op":">=","value":{lower}}},{{"field":"f{field}","op":"<","value":{upper}}}]"#
            );
            let slots = harness.subscribe(1, &filters, "");
            ranges.push((slots[0], field, lower, upper));
        }
    }
    let mut document = RawDocumentBuf::new();
    for field in 0..20 {
        document.append(<&bson::raw::CStr>::try_from(format!("f{field}").as_str()).unwrap(), field * 4);
    }
    let expected = |ranges: &[(u32, u32, u32, u32)]| {
        let holds = |(_, field, lower, upper): &&(u32, u32, u32, u32)| (*lower..*upper).contains(&(field * 4));
        let mut slots: Vec<u32> = ranges.iter().filter(holds).map(|range| range.0).collect();
        slots.sort_unstable();
        slots
    };
    assert!(expected(&ranges).len() > 20);
    assert_eq!(harness.slots(&document), expected(&ranges));
    for round in 0.. {
        let Some(at) = ranges.len().checked_sub(1) else { break };
        harness.index.remove(ranges.swap_remove(round * 31 % (at + 1)).0);
        if round % 97 == 0 || ranges.len() < 30 {
            assert_eq!(harness.slots(&document), expected(&ranges));
            harness.index.check_invariants();
        }
    }
    harness.index.check_empty();
}

/// What is known of a partition's keys is made anew when many of them have gone: none that is there may be lost by it.
#[test]
fn keys_that_come_and_go() {
    const KEPT: usize = 60;
    let mut harness = Harness::new();
    let mut slots = Vec::new();
    for number in 0..600_usize {
        let (field, value) = (["a", "b", "c"][number % 3], number);
        slots.extend(harness.subscribe(1, &format!(r#"[{{"field":"{field}","op":"==","value":{value}}}]"#), ""));
        if let Some(gone) = number.checked_sub(KEPT) {
            harness.index.remove(slots[gone]);
        }
        for looked_at in [number, number.saturating_sub(7), number.saturating_sub(KEPT - 1)] {
            let mut document = RawDocumentBuf::new();
            document.append([cstr!("a"), cstr!("b"), cstr!("c")][looked_at % 3], looked_at as i64);
            assert_eq!(harness.slots(&document), [slots[looked_at]]);
        }
    }
}

/// The ranges of a field that its partition has no room for stay together, also when there is room again.
#[test]
fn ranges_of_a_field_that_came_too_late() {
    let mut harness = Harness::new();
    let range = |field: u32| {
        format!(r#"[{{"field":"f{field}","op":">=","value":0}},{{"field":"f{field}","op":"<","value":10}}]"#)
    };
    let slots: Vec<u32> = (0..20).flat_map(|field| harness.subscribe(1, &range(field), "")).collect();
    let last = RawDocumentBuf::try_from(&doc! { "f19": 5 }).unwrap();
    assert_eq!(harness.slots(&last), [slots[19]]);
    (0..10).for_each(|field| harness.index.remove(slots[field]));
    let later = harness.subscribe(1, &range(19), "");
    assert_eq!(harness.slots(&last), [slots[19], later[0]]);
    harness.index.remove(slots[19]);
    assert_eq!(harness.slots(&last), later);
    slots[10..19].iter().chain(&later).for_each(|slot| harness.index.remove(*slot));
    harness.index.check_empty();
}

#[test]
fn ten_thousand_fields_and_paths() {
    let mut harness = Harness::new();
    let mut document = RawDocumentBuf::new();
    let mut expected = Vec::new();
    for field in 0..10_000 {
        let name = format!("field {field}");
        document.append(<&bson::raw::CStr>::try_from(name.as_str()).unwrap(), field % 100);
        let filter = format!(r#"[{{"field":"{name}","op":"==","value":{}}}]"#, field % 50);
        let slot = harness.subscribe(1, &filter, "");
        if field % 100 < 50 {
            expected.extend(slot);
        }
    }
    assert_eq!(harness.slots(&document), expected);
}

/// Where the last document had one name, the next has another that differs in one byte, is shorter by one or longer by one.
#[test]
fn names_that_are_nearly_the_same() {
    const NAME: &str = "abcdefghijklmnopqrstuvwxyz";
    let document = |name: &str| {
        let mut document = RawDocumentBuf::new();
        document.append(<&bson::raw::CStr>::try_from(name).unwrap(), 1);
        document.append(cstr!("last"), "so that no name is near the end of the document");
        document
    };
    for length in 1..NAME.len() {
        let name = &NAME[..length];
        let mut harness = Harness::new();
        let slots = harness.subscribe(1, &format!(r#"[{{"field":"{name}","op":"==","value":1}}]"#), "");
        let mut others = vec![NAME[..length - 1].to_owned(), NAME[..length + 1].to_owned()];
        others.extend((0..length).map(|at| format!("{}-{}", &name[..at], &name[at + 1..])));
        for other in others {
            assert_eq!(harness.slots(&document(name)), slots, "{name}");
            assert_eq!(harness.slots(&document(&other)), [0_u32; 0], "{other} is not {name}");
        }
    }
}

/// Bytes that are well-formed one way where a name is taken for its beginning, and another way where it isn't.
#[test]
fn a_name_that_goes_on_into_its_value() {
    let mut harness = Harness::new();
    let slots = harness.subscribe(1, r#"[{"field":"abc","op":"==","value":256}]"#, "");
    assert_eq!(harness.slots(&RawDocumentBuf::try_from(&doc! { "abc": 256, "x": "long enough" }).unwrap()), slots);
    // From the NUL on, the value's first bytes are 256, and its last one is the type of a null.
    let document = RawDocumentBuf::try_from(&doc! { "abcd": 0x0A00_0001, "x": bson::Bson::Null }).unwrap();
    assert_eq!(harness.slots(&document), [0_u32; 0]);
}

#[test]
fn a_thousand_levels() {
    let mut inner = RawDocumentBuf::new();
    inner.append(cstr!("a"), 1);
    for _ in 0..1_000 {
        let mut outer = RawDocumentBuf::new();
        outer.append(cstr!("a"), inner);
        inner = outer;
    }
    inner.append(cstr!("z"), 7);
    let mut harness = Harness::new();
    let path = ["a"; predicate::PATH_DEPTH_MAX].join(".");
    harness.subscribe(1, &format!(r#"[{{"field":"{path}","op":"==","value":1}}]"#), "");
    let last = harness.subscribe(1, r#"[{"field":"z","op":"==","value":7}]"#, "");
    assert_eq!(harness.slots(&inner), last);
}

/// As large as MongoDB lets a document be.
#[test]
fn sixteen_megabytes() {
    let mut array = RawArrayBuf::new();
    for number in 0..600_000 {
        array.push(number);
    }
    let mut document = RawDocumentBuf::new();
    document.append(cstr!("numbers"), array);
    document.append(cstr!("text"), "x".repeat(8 << 20).as_str());
    let mut harness = Harness::new();
    let mut expected = Vec::new();
    expected.extend(harness.subscribe(1, r#"[{"field":"numbers","op":"contains","value":599999}]"#, ""));
    harness.subscribe(1, r#"[{"field":"numbers","op":"contains","value":600000}]"#, "");
    expected.extend(harness.subscribe(1, r#"[{"field":"text","op":"starts-with","value":"xxx"}]"#, ""));
    expected.extend(harness.subscribe(1, "", "doc.numbers.exists(number, number == 5)"));
    harness.subscribe(1, "", "doc.text == 'x'");
    assert!(document.as_bytes().len() > 14 << 20);
    assert_eq!(harness.slots(&document), expected);
}

/// A change has one budget for all that is evaluated for it. What is left when it is spent goes out unverified to those who can verify,
/// and is evaluated to its end for others.
#[test]
fn one_budget_for_all_evaluations_of_a_change() {
    let mut harness = Harness::new();
    let holds = harness.subscribe(40, "", "doc.numbers.exists(number, number + 0 == 299)");
    let fails = harness.subscribe(40, "", "doc.numbers.exists(number, number + 0 == 300)");
    let cheap = harness.subscribe(1, r#"[{"field":"cheap","op":"==","value":1}]"#, "");
    let mut array = RawArrayBuf::new();
    (0..300).for_each(|number| array.push(number));
    let mut document = RawDocumentBuf::new();
    document.append(cstr!("numbers"), array);
    document.append(cstr!("cheap"), 1);
    let exact: Vec<u32> = holds.iter().chain(&cheap).copied().collect();
    let told = harness.matches(&document, 50_000, false);
    assert_eq!(told.iter().map(|found| found.slot).collect::<Vec<_>>(), exact, "the truth, however long it takes");
    assert!(told.iter().all(|found| found.after == Verdict::Holds));

    let told = harness.matches(&document, 50_000, true);
    let sure: Vec<u32> = told.iter().filter(|found| found.after == Verdict::Holds).map(|found| found.slot).collect();
    let unsure = told.iter().filter(|found| found.after == Verdict::MayHold).count();
    assert!(sure.iter().all(|slot| exact.contains(slot)) && sure.contains(&cheap[0]));
    assert!(exact.iter().all(|slot| told.iter().any(|found| found.slot == *slot)), "none that holds is left out");
    assert!(unsure > 0 && sure.len() > 1, "{unsure} unsure, {} sure", sure.len());
    assert!(fails.iter().any(|slot| told.iter().all(|found| found.slot != *slot)) || unsure >= fails.len());
}
