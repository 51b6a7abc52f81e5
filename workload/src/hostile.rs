//! Expressions and documents made to break a parser, an interpreter or a stack: what tests hold bounds against, and benches
//! measure the cost of.

use bson::{Bson, Document, doc};

/// Expressions that attack by the same means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    pub name: &'static str,
    pub expressions: Vec<String>,
}

/// Sizes at, around and far above what any parser of expressions should allow.
const SIZES: [usize; 9] = [1, 2, 15, 33, 49, 129, 1_001, 2_047, 8_000];

/// All of them. No two families have the same name.
pub fn families() -> Vec<Family> {
    vec![
        Family::of_every_size("nesting", nesting),
        Family::of_every_size("chains", chains),
        Family::of_every_size("repeated signs", signs),
        Family::of_every_size("long literals", literals),
        Family::of_every_size("loops", loops),
        Family::of_every_size("regular expressions", regexes),
        Family { name: "listed", expressions: LISTED.iter().map(|text| (*text).to_owned()).collect() },
    ]
}

impl Family {
    fn of_every_size(name: &'static str, make: fn(usize) -> Vec<String>) -> Self {
        Self { name, expressions: SIZES.into_iter().flat_map(make).collect() }
    }
}

fn around(open: &str, inner: &str, close: &str, n: usize) -> String {
    format!("{}{inner}{}", open.repeat(n), close.repeat(n))
}

/// Brackets within brackets, closed and not.
fn nesting(n: usize) -> Vec<String> {
    let mut found = Vec::new();
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
    found
}

/// One operator after the other.
fn chains(n: usize) -> Vec<String> {
    let mut found = Vec::new();
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
    found
}

/// Prefixes, quotes and separators, in front, behind and alone.
fn signs(n: usize) -> Vec<String> {
    let mut found = Vec::new();
    for unit in
        ["!", "-", "!-", "-!", ".", ",", "?", ":", "\"", "'", "'''", "\\", "/", "//\n", "\u{0}", "é", "\u{1F600}", "`"]
    {
        found.push(unit.repeat(n));
        found.push(format!("{}true", unit.repeat(n)));
        found.push(format!("true{}", unit.repeat(n)));
    }
    found
}

/// Lists, strings, numbers and names.
fn literals(n: usize) -> Vec<String> {
    let mut found = Vec::new();
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
    found
}

/// Loops within loops, by body and by range.
fn loops(n: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut body = "true".to_owned();
    let mut range = "doc.l".to_owned();
    for level in 0..n.min(60) {
        body = format!("doc.l.all(x{level}, {body})");
        range = format!("{range}.map(x, doc.l)");
    }
    found.push(body);
    found.push(format!("{range} == []"));
    found
}

/// Patterns that are large once compiled, or slow to run.
fn regexes(n: usize) -> Vec<String> {
    let mut found = Vec::new();
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
    found
}

/// Documents to evaluate them on: empty, ordinary, of other types than expected, long, deep.
pub fn documents() -> Vec<Document> {
    let mut deep = Bson::Int32(1);
    for _ in 0..180 {
        deep = Bson::Document(doc! { "a": deep });
    }
    let long: Vec<Bson> = (0..20_000).map(Bson::Int32).collect();
    let time = bson::DateTime::from_millis(1_700_000_000_000);
    vec![
        doc! {},
        doc! { "a": 1, "b": true, "s": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "l": [1, 2, 3], "t": time, "bin": "x" },
        doc! { "a": { "a": [[[]]] }, "b": 1, "s": 1, "l": { "a": 1 }, "t": f64::NAN },
        doc! { "b": true, "s": "(a+)+$".repeat(50_000), "l": long.clone(), "t": time },
        doc! { "b": false, "s": "é".repeat(1_000), "l": vec![Bson::Array(long[..2_000].to_vec()); 10], "deep": deep },
    ]
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn families_are_told_apart_and_say_something() {
        let families = families();
        let names: HashSet<_> = families.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), families.len());
        assert!(families.iter().all(|family| family.expressions.len() > 9));
        assert!(documents().iter().all(|document| document.to_vec().is_ok()));
    }
}
