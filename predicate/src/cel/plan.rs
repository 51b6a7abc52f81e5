//! What an index can know of an expression: what a document must have for a part of it to be true, and which parts look at one path
//! only.
//!
//! Invariant: what is offered for a node is met by every document that the node is true (or, under a `!`, false) for, as the native
//! form evaluates it. CEL sees ObjectIds as texts and decimals as doubles, so an equality may ask for one of two types, and a number that
//! decimals are rounded to is asked for by its place in the order.

use smallvec::smallvec;

use super::loops::{Loop, LoopKind};
use super::native::{CompareOp, Has, Image, Node, Operand, TestKind, TextOp};
use super::value::{Literal, MILLIS_MAX, MILLIS_MIN, hex_digits, is_hex_id};
use crate::path::Path;
use crate::plan::{AnchorTest, Bound, Offer, Order, Range, Ranges, date_key, double_key, leading_bytes};
use crate::value::Value;

/// Integers of this magnitude and below are the same as doubles and as decimals: further up, decimals with a fraction are rounded to
/// whole numbers.
const EXACT_INT_MAX: u64 = (1 << 52) - 1;

/// What a document must have for the node to be `answer`. None where nothing is known.
pub(super) fn offer(node: &Node, answer: bool) -> Option<Offer> {
    within(node, answer, None)
}

/// The outermost loop around a node, whose items are elements, or names, at a path.
#[derive(Clone, Copy)]
struct Around<'n> {
    path: &'n Path,
    /// Loops within it, up to the node.
    inner: u8,
}

fn within(node: &Node, answer: bool, around: Option<Around<'_>>) -> Option<Offer> {
    match node {
        Node::Const(constant) if *constant == answer => None,
        Node::Const(_) => Some(Offer::never()),
        // A false operand of `&&` decides, a true one of `||`, whatever the others are.
        Node::And(nodes) | Node::Or(nodes) => {
            let offers = nodes.iter().map(|node| within(node, answer, around));
            if matches!(node, Node::And(_)) == answer { Offer::all(offers) } else { Offer::any(offers) }
        }
        Node::Not(node) => within(node, !answer, around),
        Node::If(_) | Node::Interpreted(_) => None,
        Node::Loop(found) => of_loop(found, answer, around),
        Node::Test(test) => of_test(&test.kind, answer, around),
    }
}

/// Where the answer takes an item that decides, or any item at all.
fn of_loop(found: &Loop, answer: bool, around: Option<Around<'_>>) -> Option<Offer> {
    let of_item = match (found.kind, answer) {
        (LoopKind::Exists, true) | (LoopKind::ExistsOne, true) => true,
        (LoopKind::All, false) => false,
        // Also true, or false, of no items, or of all of them.
        _ => return None,
    };
    let inside = match (around, &found.range) {
        (None, Operand::Field(Image::Doc, path)) => Around { path, inner: 0 },
        (None, _) => return None,
        (Some(around), _) => Around { inner: around.inner + 1, ..around },
    };
    let mut offer = within(&found.body, of_item, Some(inside))?;
    offer.exact &= found.kind != LoopKind::ExistsOne;
    Some(offer)
}

fn of_test(kind: &TestKind, answer: bool, around: Option<Around<'_>>) -> Option<Offer> {
    let at = |operand| looked_up(operand, around);
    match (kind, answer) {
        (TestKind::Bool(operand), answer) => at(operand)?.equals(&Literal::Bool(answer)),
        (TestKind::Against { op, operand, literal }, answer) => match if answer { *op } else { op.negated() } {
            CompareOp::Ne => None,
            CompareOp::Eq => at(operand)?.equals(literal),
            op => at(operand)?.ordered(op, literal),
        },
        (TestKind::InList { item, list }, true) => {
            let place = at(item)?;
            Offer::any(list.iter().map(|literal| place.equals(literal)))
        }
        (TestKind::InField { item: Operand::Literal(item), container: Operand::Field(Image::Doc, path) }, true) => {
            Place { path, what: What::Items, exact: around.is_none() }.equals(item)
        }
        (
            TestKind::Text { op: TextOp::StartsWith, target, argument: Operand::Literal(Literal::Text(prefix)) },
            true,
        ) => at(target)?.starts_with(prefix),
        (TestKind::Has(has), true) => match has.as_ref() {
            Has::In(Operand::Field(Image::Doc, path), name) => {
                let place = Place { path, what: What::Value, exact: around.is_none() };
                Some(place.exactly(AnchorTest::Key(name.clone())))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Where an operand stands in the document.
#[derive(Clone, Copy)]
struct Place<'n> {
    path: &'n Path,
    what: What,
    /// What is true of it there decides. Not so within a loop, of which there may be no item, unless it is of its items.
    exact: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Value,
    /// The same, but null where nothing stands there, rather than an error.
    ValueOrNull,
    /// An element of an array, or a name in a document.
    Items,
}

fn looked_up<'n>(operand: &'n Operand, around: Option<Around<'n>>) -> Option<Place<'n>> {
    let exact = around.is_none();
    match (operand, around) {
        (Operand::Field(Image::Doc, path), _) => Some(Place { path, what: What::Value, exact }),
        (Operand::Id(path), _) => Some(Place { path, what: What::ValueOrNull, exact }),
        (Operand::Item(0), Some(Around { path, inner })) => Some(Place { path, what: What::Items, exact: inner == 0 }),
        _ => None,
    }
}

impl Place<'_> {
    /// An ObjectId there is a text to CEL.
    fn may_be_object_id(self) -> bool {
        !self.path.is_computed_id()
    }

    fn exactly(self, test: AnchorTest) -> Offer {
        let offer = Offer::exactly(self.path, test);
        Offer { exact: self.exact, ..offer }
    }

    fn ranges(self, ranges: Ranges) -> Offer {
        let offer = Offer::ranges(self.path, ranges);
        Offer { exact: self.exact, ..offer }
    }

    fn equals(self, literal: &Literal) -> Option<Offer> {
        match (self.what, equal_values(literal, self.may_be_object_id())?) {
            (What::ValueOrNull, _) if matches!(literal, Literal::Null) => None,
            (What::Value | What::ValueOrNull, Equals::Values(values)) => {
                Offer::any(values.into_iter().map(|value| Some(self.exactly(AnchorTest::Equal(value)))))
            }
            (What::Value | What::ValueOrNull, Equals::Key(key)) => {
                let bound = Bound::unsure(key);
                Some(self.ranges(smallvec![Range { order: Order::Number, lower: Some(bound), upper: Some(bound) }]))
            }
            (What::Items, Equals::Values(values)) => {
                let name = match literal {
                    Literal::Text(name) => Some(AnchorTest::Key(name.clone())),
                    _ => None,
                };
                let tests = values.into_iter().map(AnchorTest::Element).chain(name);
                Offer::any(tests.map(|test| Some(self.exactly(test))))
            }
            (What::Items, Equals::Key(_)) => None,
        }
    }
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
    (seconds.saturating_mul(1000).saturating_add(i64::from(nanos / 1_000_000)), nanos.is_multiple_of(1_000_000))
}

impl Place<'_> {
    /// `<` and its kin.
    fn ordered(self, op: CompareOp, literal: &Literal) -> Option<Offer> {
        if self.what == What::Items {
            return None;
        }
        let above = matches!(op, CompareOp::Gt | CompareOp::Ge);
        let ranged = |order, bound| Range { order, lower: above.then_some(bound), upper: (!above).then_some(bound) };
        let beyond = |order, key| ranged(order, Bound::unsure(key));
        let is_inclusive = matches!(op, CompareOp::Ge | CompareOp::Le);
        let number = |value: f64| match double_key(value) {
            Some(key) => {
                let is_exact = value.abs() <= EXACT_INT_MAX as f64;
                smallvec![ranged(Order::Number, Bound::of(key, is_inclusive, is_exact))]
            }
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
                if self.may_be_object_id() && some_id_is_beyond(text, above) {
                    ranges.push(beyond(Order::ObjectId, id_key(text)));
                }
                ranges
            }
            Literal::Time(seconds, nanos) => {
                let key = date_key(millis_of(*seconds, *nanos).0);
                // Dates further out are none to CEL.
                let (first, last) = (date_key(MILLIS_MIN - 1), date_key(MILLIS_MAX + 1));
                let (lower, upper) = if above { (key, last) } else { (first, key) };
                let (lower, upper) = (Bound::unsure(lower), Bound::unsure(upper));
                smallvec![Range { order: Order::Date, lower: Some(lower), upper: Some(upper) }]
            }
        };
        Some(self.ranges(ranges))
    }

    fn starts_with(self, prefix: &str) -> Option<Offer> {
        if prefix.is_empty() || self.what == What::Items {
            return None;
        }
        let text = self.exactly(AnchorTest::Prefix(prefix.into()));
        let digits = prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !(self.may_be_object_id() && digits && prefix.len() <= 24) {
            return Some(text);
        }
        let lowest = id_key(prefix);
        // What follows the prefix, of the digits that are in a key.
        let open = 64_usize.saturating_sub(4 * prefix.len());
        let highest = lowest | if open == 0 { 0 } else { u64::MAX >> (64 - open) };
        // The keys at both ends are of such ids too, where the prefix has no more digits than a key; that is for an evaluation to say.
        let (lower, upper) = (Bound::unsure(lowest), Bound::unsure(highest));
        let range = Range { order: Order::ObjectId, lower: Some(lower), upper: Some(upper) };
        Offer::any([Some(text), Some(self.ranges(smallvec![range]))])
    }
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
        Node::Loop(found) => found.fallback.is_none() && is_at(&found.range, path) && looks_at(&found.body, path),
        Node::Test(test) if test.fallback.is_some() => false,
        Node::Test(test) => match &test.kind {
            TestKind::Bool(operand) | TestKind::Against { operand, .. } | TestKind::InList { item: operand, .. } => {
                is_at(operand, path)
            }
            TestKind::Compare { left, right, .. } => is_at(left, path) && is_at(right, path),
            TestKind::InField { item, container } => is_at(item, path) && is_at(container, path),
            TestKind::Text { target, argument, .. } => is_at(target, path) && is_at(argument, path),
            TestKind::Matches(matches) => is_at(&matches.target, path),
            TestKind::Has(has) => match has.as_ref() {
                Has::Field(image, at) => *image == Image::Doc && is_same(at, path),
                Has::In(parent, _) => is_at(parent, path),
            },
        },
    }
}

fn is_at<'n>(operand: &'n Operand, path: &mut Option<&'n Path>) -> bool {
    match operand {
        Operand::Literal(_) | Operand::Item(_) | Operand::ItemField(..) => true,
        Operand::Field(Image::Doc, at) | Operand::Id(at) => is_same(at, path),
        Operand::Size(of) => is_at(of, path),
        _ => false,
    }
}

fn is_same<'n>(at: &'n Path, path: &mut Option<&'n Path>) -> bool {
    *path.get_or_insert(at) == at
}
