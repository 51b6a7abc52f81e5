//! Expressions and documents made to break a parser, an interpreter or a stack. Every one is answered, on the ordinary stack of a
//! test's thread; what it may cost is asserted in tokens and cost units.

use workload::hostile;

use super::*;
use crate::cel::limits::{DEPTH_MAX, TOKENS_MAX};
use crate::cel::scan::scan;

fn documents() -> Vec<RawDocumentBuf> {
    hostile::documents().iter().map(raw).collect()
}

/// Compiles and, where that goes well, evaluates. The highest cost of an evaluation.
fn survive(expr: &str, documents: &[RawDocumentBuf], outcomes: &mut [usize; 3]) -> u64 {
    if let Ok(found) = scan(expr) {
        assert!(found.tokens <= TOKENS_MAX && found.depth <= DEPTH_MAX, "{found:?} {expr}");
    }
    let mut highest = 0;
    for compiled in [compile(expr), compile_interpreted(expr)] {
        let predicate = match compiled {
            Ok(predicate) => predicate,
            Err(error) => {
                let message = error.to_string();
                assert!(message.len() < 1_000 && !message.is_empty(), "{expr}: {message}");
                continue;
            }
        };
        for image in documents {
            let mut budget = Budget { units: EVALUATION_UNITS_MAX };
            let outcome = predicate.evaluate(image, &context(Some(image)), &mut budget);
            outcomes[match outcome {
                Outcome::True => 0,
                Outcome::False => 1,
                Outcome::Error => 2,
                Outcome::OverBudget => panic!("a whole budget is always enough: {expr}"),
            }] += 1;
            highest = highest.max(EVALUATION_UNITS_MAX - budget.units);
        }
    }
    highest
}

#[test]
fn hostile_expressions_are_answered() {
    let documents = documents();
    let expressions: Vec<String> = hostile::families().into_iter().flat_map(|family| family.expressions).collect();
    assert!(expressions.len() >= 383, "{}", expressions.len());
    let mut outcomes = [0; 3];
    let mut at_the_bound = 0;
    for expr in &expressions {
        at_the_bound += usize::from(survive(expr, &documents, &mut outcomes) == EVALUATION_UNITS_MAX);
    }
    assert!(outcomes.iter().all(|count| *count > 100), "{outcomes:?}");
    assert!(at_the_bound >= 3, "some of them must want more than they may have: {at_the_bound}");
    assert_eq!(crate::interpreter_panics(), 0);
}

/// Bytes that are no UTF-8 never come here as such: what a lossy reading makes of them does.
#[test]
fn broken_utf8_is_answered() {
    let documents = documents();
    let mut outcomes = [0; 3];
    for broken in [
        &b"doc.s == '\xff\xfe'"[..],
        b"\xc3",
        b"doc.\xe2\x82 == 1",
        b"'\xf0\x9f\x98'",
        b"doc.s == \"\xed\xa0\x80\"",
        b"\xff\xff\xff\xfftrue",
        b"b'\x80' == doc.bin",
    ] {
        survive(&String::from_utf8_lossy(broken), &documents, &mut outcomes);
    }
}

/// Any change of a few characters to good expressions.
#[test]
fn mutations_are_answered() {
    use rand::{Rng, SeedableRng};
    const MUTATIONS: usize = 4_000;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let documents: Vec<_> = documents().into_iter().take(3).collect();
    let good = [
        "doc.a == 1 && (doc.s.startsWith('x') || !has(doc.m.b)) && doc.l.exists(x, x > 2.5)",
        "type(doc.a) == int ? doc.s.matches('^a+$') : size(doc.l) in [1, 2u, -3]",
        r#"doc.t > timestamp("2024-01-01T00:00:00Z") && {"a": [1, 2]}["a"][0] == 0x1f && '''x''' == r'\x'"#,
    ];
    let alphabet: Vec<char> = "abx.01()[]{}'\"\\,?:!&|=<>+-*/% \n\u{0}é_ru".chars().collect();
    let mut outcomes = [0; 3];
    for _ in 0..MUTATIONS {
        let mut expr: Vec<char> = good[random.random_range(0..good.len())].chars().collect();
        for _ in 0..random.random_range(1..5) {
            let at = random.random_range(0..expr.len());
            let replacement = alphabet[random.random_range(0..alphabet.len())];
            match random.random_range(0..3) {
                0 => expr[at] = replacement,
                1 => expr.insert(at, replacement),
                _ => drop(expr.remove(at)),
            }
        }
        survive(&expr.into_iter().collect::<String>(), &documents, &mut outcomes);
    }
    assert_eq!(crate::interpreter_panics(), 0);
}

#[test]
fn a_small_budget_is_told_from_an_expression_that_costs_too_much() {
    let documents = documents();
    let image = &documents[3];
    let spend = |expr: &str, units: u64| {
        let mut budget = Budget { units };
        let outcome = compile(expr).unwrap().evaluate(image, &context(None), &mut budget);
        (outcome, units - budget.units)
    };
    let (outcome, cost) = spend("doc.l.exists(x, x == 19999)", EVALUATION_UNITS_MAX);
    assert_eq!(outcome, Outcome::True);
    assert!((20_000..1_000_000).contains(&cost), "{cost}");
    assert_eq!(spend("doc.l.exists(x, x == 19999)", 1_000), (Outcome::OverBudget, 1_000));
    assert_eq!(spend("19999 in doc.l", 1_000), (Outcome::OverBudget, 1_000));
    let endless = "doc.l.all(x, doc.l.all(y, y >= 0))";
    assert_eq!(spend(endless, 10 * EVALUATION_UNITS_MAX), (Outcome::Error, EVALUATION_UNITS_MAX));
    assert_eq!(spend(endless, 1_000), (Outcome::OverBudget, 1_000));
    // An error that `||` could absorb is still told.
    assert_eq!(spend(&format!("{endless} || true"), 1_000).0, Outcome::OverBudget);
}

#[test]
fn a_thread_of_its_own_compiles_the_same() {
    let source = Source { filters: "", expr: "doc.a == 1" };
    let predicate = crate::compile_on_big_stack(source, &Mapping::Plain).unwrap();
    assert_eq!(predicate.equalities().len(), 1);
    assert!(crate::compile_on_big_stack(Source { filters: "", expr: "doc" }, &Mapping::Plain).is_err());
}
