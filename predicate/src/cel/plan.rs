//! What an index can know of an expression: what a document must have for a part of it to be true, and which parts look at one path
//! only.
//!
//! Invariant: what is offered for a node is met by every document that the node is true (or, under a `!`, false) for, as the native
//! form evaluates it. CEL sees ObjectIds as texts and decimals as doubles, so an equality may ask for one of two types, and a number that
//! decimals are rounded to is asked for by its place in the order.

use smallvec::smallvec;

use super::native::{CompareOp, Has, Image, Node, Operand, TestKind, TextOp};
use super::value::{Literal, MILLIS_MAX, MILLIS_MIN, hex_digits, is_hex_id};
use crate::path::Path;
use crate::plan::{AnchorTest, Offer, Order, Range, Ranges, date_key, double_key, leading_bytes};
use crate::value::Value;

/// Integers of this magnitude and below are the same as doubles and as decimals: further up, decimals with a fraction are rounded to
/// whole numbers.
const EXACT_INT_MAX: u64 = (1 << 52) - 1;

/// What a document must have for the node to be `answer`. None where nothing is known.
pub(super) fn offer(node: &Node, answer: bool) -> Option<Offer> {
    match node {
        Node::Const(constant) if *constant == answer => None,
        Node::Const(_) => Some(Offer::never()),
        // A false operand of `&&` decides, a true one of `||`, whatever the others are.
        Node::And(nodes) | Node::Or(nodes) => {
            let offers = nodes.iter().map(|node| offer(node, answer));
            if matches!(node, Node::And(_)) == answer { Offer::all(offers) } else { Offer::any(offers) }
        }
        Node::Not(node) => offer(node, !answer),
        Node::If(_) | Node::Interpreted(_) => None,
        Node::Test(test) => of_test(&test.kind, answer),
    }
}

fn of_test(kind: &TestKind, answer: bool) -> Option<Offer> {
    match (kind, answer) {
        (TestKind::Bool(operand), answer) => equals(looked_up(operand)?, &Literal::Bool(answer)),
        (TestKind::Against { op, operand, literal }, answer) => {
            let place = looked_up(operand)?;
            match if answer { *op } else { op.negated() } {
                CompareOp::Ne => None,
                CompareOp::Eq => equals(place, literal),
                op => ordered(place, op, literal),
            }
        }
        (TestKind::InList { item, list }, true) => {
            let place = looked_up(item)?;
            Offer::any(list.iter().map(|literal| equals(place, literal)))
        }
        (TestKind::InField { item: Operand::Literal(item), container: Operand::Field(Image::Doc, path) }, true) => {
            has_element(path, item)
        }
        (
            TestKind::Text { op: TextOp::StartsWith, target, argument: Operand::Literal(Literal::Text(prefix)) },
            true,
        ) => starts_with(looked_up(target)?, prefix),
        _ => None,
    }
}

/// Where an operand stands in the document.
#[derive(Clone, Copy)]
struct Place<'n> {
    path: &'n Path,
    /// It is null where nothing stands there, rather than an error.
    or_null: bool,
}

impl Place<'_> {
    /// An ObjectId there is a text to CEL.
    fn may_be_object_id(self) -> bool {
        !self.path.is_computed_id()
    }
}

fn looked_up(operand: &Operand) -> Option<Place<'_>> {
    match operand {
        Operand::Field(Image::Doc, path) => Some(Place { path, or_null: false }),
        Operand::Id(path) => Some(Place { path, or_null: true }),
        _ => None,
    }
}

fn equals(place: Place<'_>, literal: &Literal) -> Option<Offer> {
    if place.or_null && matches!(literal, Literal::Null) {
        return None;
    }
    match equal_values(literal, place.may_be_object_id())? {
        Equals::Values(values) => {
            Offer::any(values.into_iter().map(|value| Some(Offer::exactly(place.path, AnchorTest::Equal(value)))))
        }
        Equals::Key(key) => {
            let range = Range { order: Order::Number, lower: Some(key), upper: Some(key) };
            Some(Offer::ranges(place.path, smallvec![range]))
        }
    }
}

/// `literal in path`: an element of an array, or a name in a document.
fn has_element(path: &Path, literal: &Literal) -> Option<Offer> {
    let Equals::Values(values) = equal_values(literal, true)? else { return None };
    let key = match literal {
        Literal::Text(name) => Some(AnchorTest::Key(name.clone())),
        _ => None,
    };
    let tests = values.into_iter().map(AnchorTest::Element).chain(key);
    Offer::any(tests.map(|test| Some(Offer::exactly(path, test))))
}

/// What of BSON equals a literal.
enum Equals {
    /// Exactly what equals one of these, under the rules of filters.
    Values(Vec<Value>),
    /// Some of the numbers with this [`crate::order_key`], and nothing else.
    Key(u64),
}

fn equal_values(literal: &Literal, may_be_object_id: bool) -> Option<Equals> {
    use bson::RawBsonRef as Raw;
    let one = |raw: Raw<'_>| Value::of(raw).map(|value| Equals::Values(vec![value]));
    let whole = |value: i64| match value.unsigned_abs() {
        0..=EXACT_INT_MAX => one(Raw::Int64(value)),
        _ => double_key(value as f64).map(Equals::Key),
    };
    match literal {
        Literal::Null => one(Raw::Null),
        Literal::Bool(value) => one(Raw::Boolean(*value)),
        Literal::Int(value) => whole(*value),
        Literal::UInt(value) => match i64::try_from(*value) {
            Ok(value) => whole(value),
            Err(_) => double_key(*value as f64).map(Equals::Key),
        },
        Literal::Double(value) if value.is_nan() => Some(Equals::Values(Vec::new())),
        Literal::Double(value) if value.fract() == 0.0 && value.abs() <= EXACT_INT_MAX as f64 => whole(*value as i64),
        Literal::Double(value) => double_key(*value).map(Equals::Key),
        Literal::Text(text) => {
            let mut values = vec![Value::of(Raw::String(text))?];
            if may_be_object_id && is_hex_id(text) {
                values.push(Value::of(Raw::ObjectId(bson::oid::ObjectId::parse_str(text).ok()?))?);
            }
            Some(Equals::Values(values))
        }
        // Of any subtype, which CEL does not see.
        Literal::Bytes(_) => None,
        Literal::Time(seconds, nanos) => match millis_of(*seconds, *nanos) {
            (millis, true) => one(Raw::DateTime(bson::DateTime::from_millis(millis))),
            // No date stands between two milliseconds.
            (_, false) => Some(Equals::Values(Vec::new())),
        },
    }
}

/// The last millisecond that is not after the time, and whether it is the time.
fn millis_of(seconds: i64, nanos: u32) -> (i64, bool) {
    // From the year 1 to 9999, so far from the ends of the type.
    (seconds.saturating_mul(1000).saturating_add(i64::from(nanos / 1_000_000)), nanos % 1_000_000 == 0)
}

/// `<` and its kin.
fn ordered(place: Place<'_>, op: CompareOp, literal: &Literal) -> Option<Offer> {
    let above = matches!(op, CompareOp::Gt | CompareOp::Ge);
    let beyond = |order, key| Range { order, lower: above.then_some(key), upper: (!above).then_some(key) };
    let number = |value: f64| match double_key(value) {
        Some(key) => smallvec![beyond(Order::Number, key)],
        None => Ranges::new(),
    };
    let ranges: Ranges = match literal {
        // It has no order: always an error.
        Literal::Null => Ranges::new(),
        Literal::Bool(value) => smallvec![beyond(Order::Bool, (*value).into())],
        Literal::Int(value) => number(*value as f64),
        Literal::UInt(value) => number(*value as f64),
        Literal::Double(value) => number(*value),
        // Ordered by bytes alone, where filters order by length first.
        Literal::Bytes(_) => return None,
        Literal::Text(text) => {
            let mut ranges: Ranges = smallvec![beyond(Order::String, leading_bytes(text.as_bytes()))];
            if place.may_be_object_id() && some_id_is_beyond(text, above) {
                ranges.push(beyond(Order::ObjectId, id_key(text)));
            }
            ranges
        }
        Literal::Time(seconds, nanos) => {
            let key = date_key(millis_of(*seconds, *nanos).0);
            // Dates further out are none to CEL.
            let (first, last) = (date_key(MILLIS_MIN - 1), date_key(MILLIS_MAX + 1));
            let (lower, upper) = if above { (key, last) } else { (first, key) };
            smallvec![Range { order: Order::Date, lower: Some(lower), upper: Some(upper) }]
        }
    };
    Some(Offer::ranges(place.path, ranges))
}

/// Whether an ObjectId's digits may be above (else below) a text.
fn some_id_is_beyond(text: &str, above: bool) -> bool {
    let [lowest, highest] = [[0; 12], [0xff; 12]].map(hex_digits);
    if above { text.as_bytes() <= highest.as_slice() } else { text.as_bytes() >= lowest.as_slice() }
}

/// A key that separates ObjectIds by their digits: those with a greater [`crate::order_key`] have digits above the text, those with a lesser
/// one below it.
fn id_key(text: &str) -> u64 {
    const DIGITS: u32 = 16;
    let mut key = 0;
    for place in 0..DIGITS {
        let left = 4 * (DIGITS - place);
        // All digits that follow, as high or as low as can be.
        let (lowest, highest) = (0, u64::MAX >> (64 - left));
        let byte = text.as_bytes().get(place as usize).copied().unwrap_or(0);
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            // Below all digits, above all of them, or between 9 and a.
            ..b'0' => return key | lowest,
            b'g'.. => return key | highest,
            _ => return key | (9 << (left - 4)) | (highest >> 4),
        };
        key |= u64::from(digit) << (left - 4);
    }
    key
}

fn starts_with(place: Place<'_>, prefix: &str) -> Option<Offer> {
    if prefix.is_empty() {
        return None;
    }
    let text = Offer::exactly(place.path, AnchorTest::Prefix(prefix.into()));
    let digits = prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !(place.may_be_object_id() && digits && prefix.len() <= 24) {
        return Some(text);
    }
    let lowest = id_key(prefix);
    // What follows the prefix, of the digits that are in a key.
    let open = 64_usize.saturating_sub(4 * prefix.len());
    let highest = lowest | if open == 0 { 0 } else { u64::MAX >> (64 - open) };
    // The keys at both ends are of such ids too, where the prefix has no more digits than a key; that is for an evaluation to say.
    let range = Range { order: Order::ObjectId, lower: Some(lowest), upper: Some(highest) };
    Offer::any([Some(text), Some(Offer::ranges(place.path, smallvec![range]))])
}

/// The one path that all of the node looks at. None where it looks at several, at the change, or may have to be interpreted.
pub(super) fn path_of(node: &Node) -> Option<&Path> {
    let mut path = None;
    (looks_at(node, &mut path)).then_some(path).flatten()
}

/// Whether all of the node looks at the path, which is set by the first that it finds.
fn looks_at<'n>(node: &'n Node, path: &mut Option<&'n Path>) -> bool {
    match node {
        Node::Const(_) => true,
        Node::And(nodes) | Node::Or(nodes) => nodes.iter().all(|node| looks_at(node, path)),
        Node::Not(node) => looks_at(node, path),
        Node::If(nodes) => nodes.iter().all(|node| looks_at(node, path)),
        Node::Interpreted(_) => false,
        Node::Test(test) if test.fallback.is_some() => false,
        Node::Test(test) => match &test.kind {
            TestKind::Bool(operand) | TestKind::Against { operand, .. } | TestKind::InList { item: operand, .. } => {
                is_at(operand, path)
            }
            TestKind::Compare { left, right, .. } => is_at(left, path) && is_at(right, path),
            TestKind::InField { item, container } => is_at(item, path) && is_at(container, path),
            TestKind::Text { target, argument, .. } => is_at(target, path) && is_at(argument, path),
            TestKind::Matches(matches) => is_at(&matches.target, path),
            TestKind::Has(has) => {
                let Has { image, parent, whole, .. } = has.as_ref();
                *image == Image::Doc && is_same(parent.as_ref().unwrap_or(whole), path)
            }
        },
    }
}

fn is_at<'n>(operand: &'n Operand, path: &mut Option<&'n Path>) -> bool {
    match operand {
        Operand::Literal(_) => true,
        Operand::Field(Image::Doc, at) | Operand::Id(at) => is_same(at, path),
        Operand::Size(of) => is_at(of, path),
        _ => false,
    }
}

fn is_same<'n>(at: &'n Path, path: &mut Option<&'n Path>) -> bool {
    *path.get_or_insert(at) == at
}
