//! Expressions and documents made to break a parser, an interpreter or a stack. Every one is answered, on the ordinary stack of a
//! test's thread; what it may cost is asserted in tokens and cost units.

use bson::{Bson, Document, doc};

use super::*;
use crate::cel::limits::{DEPTH_MAX, TOKENS_MAX};
use crate::cel::scan::scan;

/// Sizes at, around and far above the bounds.
const SIZES: [usize; 9] = [1, 2, 15, 33, 49, 129, 1_001, 2_047, 8_000];

fn generated() -> Vec<String> {
    let mut found = Vec::new();
    let around =
        |open: &str, inner: &str, close: &str, n: usize| format!("{}{inner}{}", open.repeat(n), close.repeat(n));
    for n in SIZES {
        // Nesting, closed and not.
        for (open, inner, close) in [
            ("(", "true", ")"),
            ("[", "", "]"),
            ("{'a':", "1", "}"),
            ("size(", "doc.s", ")"),
            ("!(", "doc.b", ")"),
            ("doc.l[", "0", "]"),
            ("true || (", "doc.b", ")"),
            ("-(", "1", ")"),
            ("bool(", "true", ")"),
            ("(true ? ", "true", " : false)"),
        ] {
            found.push(around(open, inner, close, n));
            found.push(format!("{} == 1", around(open, inner, close, n)));
            found.push(open.repeat(n));
            found.push(close.repeat(n));
        }
        // Chains.
        for (first, link) in [
            ("1", " + 1"),
            ("1", " - -1"),
            ("1", " * 2"),
            ("doc", ".a"),
            ("doc", "['a']"),
            ("doc.l", "[0]"),
            ("doc.s", ".size()"),
            ("true", " && doc.b"),
            ("true", " || doc.none"),
            ("true", " && false || true"),
            ("1", " < 2"),
            ("1", " == 1"),
            ("1", " in [1]"),
            ("doc.b", " ? true : doc.b"),
            ("true", " ? true ? true : false : true"),
            ("'a'", " + 'a'"),
            ("[1]", " + doc.l"),
            ("doc.l", ".map(x, x)"),
            ("doc.l", ".filter(x, true)"),
        ] {
            found.push(format!("{first}{}", link.repeat(n)));
            found.push(format!("({first}{}) == 1", link.repeat(n)));
            found.push(format!("{first}{link}").repeat(n));
        }
        // Prefixes, literals, separators.
        for unit in [
            "!",
            "-",
            "!-",
            "-!",
            ".",
            ",",
            "?",
            ":",
            "\"",
            "'",
            "'''",
            "\\",
            "/",
            "//\n",
            "\u{0}",
            "é",
            "\u{1F600}",
            "`",
        ] {
            found.push(unit.repeat(n));
            found.push(format!("{}true", unit.repeat(n)));
            found.push(format!("true{}", unit.repeat(n)));
        }
        found.push(format!("[{}] == []", vec!["1"; n].join(",")));
        found.push(format!("doc.a in [{}]", vec!["'x'"; n].join(",")));
        found.push(format!("{{{}}} == {{}}", (0..n).map(|i| format!("{i}:1")).collect::<Vec<_>>().join(",")));
        found.push(format!("doc.a == '{}'", "x".repeat(n)));
        found.push(format!("doc.a == {}", "9".repeat(n)));
        found.push(format!("doc.a == 0.{}", "9".repeat(n)));
        found.push(format!("doc.a == 0x{}", "f".repeat(n)));
        found.push(format!("doc.a == 1e{}", "9".repeat(n)));
        found.push(format!("{} == 1", "x".repeat(n)));
        found.push(format!("size({})", vec!["doc"; n].join(",")));
        // Loops within loops, by body and by range.
        let mut body = "true".to_owned();
        let mut range = "doc.l".to_owned();
        for level in 0..n.min(60) {
            body = format!("doc.l.all(x{level}, {body})");
            range = format!("{range}.map(x, doc.l)");
        }
        found.push(body);
        found.push(format!("{range} == []"));
        // Regular expressions.
        for pattern in [
            around("(", "a", ")*", n),
            around("(a|", "a", ")+", n),
            "a?".repeat(n) + &"a".repeat(n),
            format!("a{{{n}}}{{{n}}}"),
            format!("(\\\\w{{{n}}})*"),
            format!("[{}]", "a-z".repeat(n)),
            format!("(?i){}", "x*".repeat(n)),
        ] {
            found.push(format!("doc.s.matches('{pattern}')"));
        }
    }
    found
}

const LISTED: &[&str] = &[
    "",
    " ",
    "\t\r\n",
    "//",
    "// only a comment",
    "true //",
    "true // \u{0}",
    "()",
    "[]",
    "{}",
    "1 + ()",
    "/",
    ".",
    "..",
    "@foo",
    "@weigh(doc)",
    "@result",
    "__proto__",
    "x(1,)",
    "!-\u{1}",
    "doc.",
    ".doc",
    ".doc.b",
    "doc..a",
    "doc.1",
    "doc.a.",
    "doc[",
    "doc[]",
    "doc[0",
    "doc['",
    "doc[null]",
    "doc[[]]",
    "doc.?a",
    "doc[?'a']",
    "[?doc.a]",
    "{?'a': doc.a}",
    "doc.`a`",
    "has()",
    "has(1)",
    "has(doc)",
    "has(doc.a, doc.b)",
    "has(doc['a'])",
    "has(has(doc.a))",
    "doc.l.all()",
    "doc.l.all(x)",
    "doc.l.all(1, true)",
    "doc.l.all(x.y, true)",
    "doc.l.all(x, y, z)",
    "doc.l.all(x, x.all(x, x))",
    "all(doc.l, x, true)",
    "doc.l.map(x, x, x, x)",
    "doc.l.exists_one(x, x) ? true : false",
    "doc.all(k, doc.all(j, doc.all(i, true)))",
    "0x",
    "0xg",
    "1e",
    "1.e5",
    "1..2",
    "1u2",
    "0u",
    "-0u",
    "9223372036854775807 == doc.a",
    "9223372036854775808 == doc.a",
    "-9223372036854775808 == doc.a",
    "-9223372036854775809 == doc.a",
    "18446744073709551615u == doc.a",
    "18446744073709551616u == doc.a",
    "9223372036854775807 + 1 == 0",
    "-9223372036854775808 - 1 == 0",
    "-9223372036854775808 / -1 == 0",
    "-9223372036854775808 % -1 == 0",
    "-(-9223372036854775808) == 0",
    "9223372036854775807 * 9223372036854775807 == 0",
    "0u - 1u == 0u",
    "1 / 0 == 0",
    "1 % 0 == 0",
    "1u / 0u == 0u",
    "1.0 / 0.0 == 0.0",
    "int(1e300) == 0",
    "int('9999999999999999999') == 0",
    "int(double('nan')) == 0",
    "uint(-1) == 0u",
    "uint(-1.0) == 0u",
    "uint(1e300) == 0u",
    "double('1e999999') > 0.0",
    "double('') == 0.0",
    "bool('maybe')",
    "string(b'\\xff') == ''",
    "bytes('é') == b'\\xc3\\xa9'",
    "timestamp('') == timestamp('')",
    "timestamp('0000-00-00T00:00:00Z') == doc.t",
    "timestamp('99999-01-01T00:00:00Z') == doc.t",
    "timestamp('2024-02-30T00:00:00Z') == doc.t",
    "timestamp(9223372036854775807) == doc.t",
    "timestamp(-9223372036854775808) == doc.t",
    "doc.t + duration('999999999999h') > doc.t",
    "doc.t - duration('-999999999999h') > doc.t",
    "duration('9223372036854775807s') == duration('1s')",
    "duration('1e400h') == duration('1s')",
    "duration('--1s') == duration('1s')",
    "duration('') == duration('1s')",
    "duration('é') == duration('1s')",
    "doc.t.getHours('Mars/Base') == 0",
    "doc.t.getHours('+99:99') == 0",
    "doc.t.getHours('é:é') == 0",
    "doc.t.getHours('+') == 0",
    "doc.t.getFullYear('\\u0000') == 0",
    "'\\'",
    "'\\x'",
    "'\\xg0'",
    "'\\u12'",
    "'\\ud800' == ''",
    "'\\U00110000' == ''",
    "'\\Uffffffff' == ''",
    "'\\400' == ''",
    "'\\08' == ''",
    "b'\\u0041' == b''",
    "b'\\xff' == doc.bin",
    "b'é' == doc.bin",
    "r'\\' == doc.s",
    "r'\\'' == doc.s",
    "rb'x' == b''",
    "'''' == ''",
    "\"\"\"\" == \"\"",
    "'''a''b''' == doc.s",
    "'''\n''' == doc.s",
    "'\n' == doc.s",
    "'a' 'b'",
    "'a'.'b'",
    "1.size()",
    "'a'[0] == 'a'",
    "[1][0][0] == 1",
    "[1][-1] == 1",
    "[1][1.5] == 1",
    "[1][18446744073709551615u] == 1",
    "{'a': 1, 'a': 2} == {}",
    "{1: 1, 1u: 2} == {}",
    "{null: 1} == {}",
    "{1.5: 1} == {}",
    "{[1]: 1} == {}",
    "{'a' 1}",
    "{'a': }",
    "{: 1}",
    "[1,,2]",
    "[,]",
    "[1,] == [1]",
    "Msg{}",
    "Msg{a: 1}.a == 1",
    "google.protobuf.Timestamp{seconds: 1} == doc.t",
    "type(type(doc)) == type(1)",
    "type == type",
    "int == 1",
    "int(int) == 1",
    "dyn(doc) == doc",
    "dyn(1) == 1",
    "doc.s.matches('')",
    "doc.s.matches('(')",
    "doc.s.matches('[')",
    "doc.s.matches('a**')",
    "doc.s.matches('\\\\p{Nope}')",
    "doc.s.matches('(?P<a>x)(?P<a>y)')",
    "doc.s.matches('(?=x)')",
    "doc.s.matches('\\\\1')",
    "doc.s.matches('a{4294967296}')",
    "doc.s.matches('a{999999999}')",
    "doc.s.matches('((a{100}){100}){100}')",
    "doc.s.matches('(?:(?:(?:x{99}){99}){99}){99}')",
    "doc.s.matches('\\\\pL{1000}')",
    "doc.s.matches(doc.s)",
    "doc.s.matches(doc.s + doc.s)",
    "doc.s.matches(doc.none)",
    "doc.s.matches(1)",
    "matches(doc.s)",
    "matches(doc.s, 'a', 'b')",
    "doc.s.matches()",
    "doc.s.size(1)",
    "size()",
    "size(1, 2)",
    "doc()",
    "doc.a()",
    "true()",
    "true.a",
    "null.a == 1",
    "true = true",
    "true & true",
    "true | true",
    "true === true",
    "true !== true",
    "true <> false",
    "true and false",
    "not true",
    "if true",
    "x := 1",
    "doc; doc",
    "doc # x",
    "$doc",
    "doc\\a",
    "in",
    "in in in",
    "1 in",
    "as == 1",
    "import == 1",
    "while(true)",
    "true ? : false",
    "? :",
    "true ? true",
    "true : false",
    "\u{feff}true",
    "tr\u{0}ue",
    "true\u{2028}",
    "\u{202e}true",
    "ｔｒｕｅ",
    "doc.é == 1",
    "doc.l.map(x, doc.l.map(y, doc.l)) == []",
    "doc.l.all(x, doc.l.all(y, doc.l == doc.l))",
    "doc.l.filter(x, doc.l.exists(y, x in doc.l)) != []",
    "doc.l.exists(x, doc.l.exists(y, false))",
    "doc.l + doc.l + doc.l + doc.l + doc.l + doc.l == doc.l",
    "doc.l.map(x, doc.s + doc.s + doc.s).exists(y, y == '')",
    "doc.l.map(x, doc).exists(y, y == doc)",
    "doc.l.all(x, doc.s.matches(doc.s))",
    "doc.l.all(x, doc.s.contains(doc.s))",
    "doc.deep == doc.deep",
    "doc.l in doc.l",
    "doc in [doc, doc, doc]",
];

fn documents() -> Vec<RawDocumentBuf> {
    let mut deep = Bson::Int32(1);
    for _ in 0..180 {
        deep = Bson::Document(doc! { "a": deep });
    }
    let long: Vec<Bson> = (0..20_000).map(Bson::Int32).collect();
    let time = bson::DateTime::from_millis(1_700_000_000_000);
    [
        doc! {},
        doc! { "a": 1, "b": true, "s": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "l": [1, 2, 3], "t": time, "bin": "x" },
        doc! { "a": { "a": [[[]]] }, "b": 1, "s": 1, "l": { "a": 1 }, "t": f64::NAN },
        doc! { "b": true, "s": "(a+)+$".repeat(50_000), "l": long.clone(), "t": time },
        doc! { "b": false, "s": "é".repeat(1_000), "l": vec![Bson::Array(long[..2_000].to_vec()); 10], "deep": deep },
    ]
    .iter()
    .map(|document: &Document| raw(document))
    .collect()
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
    let generated = generated();
    let documents = documents();
    let total = generated.len() + LISTED.len();
    assert!(total >= 383, "{total}");
    let mut outcomes = [0; 3];
    let mut at_the_bound = 0;
    for expr in generated.iter().map(String::as_str).chain(LISTED.iter().copied()) {
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
