use bson::{Document, RawDocumentBuf, doc};

use super::*;
use crate::{ChangeType, Context, Outcome, Predicate, Source};

const CONTEXT: Context<'static> =
    Context { tenant: "t", collection: "c", change_type: ChangeType::Update, before: None };

pub(crate) fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
}

fn plain(filters: &str) -> Predicate {
    Predicate::compile(Source { filters, expr: "" }, &Mapping::Plain).unwrap()
}

fn check(document: &Document, filter: &str, expect: bool) {
    let predicate = plain(&format!("[{filter}]"));
    let outcome = predicate.evaluate(&raw(document), &CONTEXT, &mut Budget { units: 1_000_000 });
    assert_eq!(outcome, if expect { Outcome::True } else { Outcome::False }, "{document} {filter}");
}

#[test]
fn smoke() {
    let document = doc! { "a": 5, "s": "hello", "tags": ["x", "y"], "n": { "m": 1.5 }, "z": null };
    check(&document, r#"{"field":"a","op":"==","value":5.0}"#, true);
    check(&document, r#"{"field":"a","op":"==","value":{"$numberDecimal":"5.00"}}"#, true);
    check(&document, r#"{"field":"a","op":"ne","value":"5"}"#, true);
    check(&document, r#"{"field":"b","op":"!=","value":1}"#, false);
    check(&document, r#"{"field":"b","op":"not-in","value":[1]}"#, false);
    check(&document, r#"{"field":"n.m","op":">","value":1}"#, true);
    check(&document, r#"{"field":"tags","op":"array-contains","value":"y"}"#, true);
    check(&document, r#"{"field":"tags","op":"contains-any","value":["q","y"]}"#, true);
    check(&document, r#"{"field":"s","op":"starts-with","value":"he"}"#, true);
    check(&document, r#"{"field":"z","op":"==","value":null}"#, true);
    check(&document, r#"{"field":"zz","op":"==","value":null}"#, false);
}
