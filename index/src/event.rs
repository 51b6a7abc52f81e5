//! What the index is asked, and what it answers.

use bson::RawDocument;
use predicate::ChangeType;
use wire::PlaceHash;

/// A change of one document.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    pub change_type: ChangeType,
    /// `_id` of the document as stored: one byte of BSON type, then the value.
    pub key: &'a [u8],
    pub before: Option<Image<'a>>,
    pub after: Option<Image<'a>>,
    /// Whether subscriptions are asked if they match the image before. It is what `before` is in an expression all the same.
    pub looks_before: bool,
    pub looks_after: bool,
    /// The image that predicates about the change itself are evaluated on.
    pub main: Main,
}

/// A document, and where it belongs.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    pub place: PlaceHash,
    /// UTF-8, as is the next one. They are made texts of only where an expression is evaluated.
    pub tenant: &'a [u8],
    pub collection: &'a [u8],
    pub document: &'a RawDocument,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Main {
    Before,
    After,
}

/// A subscription that matches at least one of the images that were asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    pub slot: u32,
    pub before: Verdict,
    pub after: Verdict,
    /// Its predicate is about the change itself: the verdict on the main image is all there is.
    pub about_change: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Fails,
    /// Its evaluation costs too much, and its Gateway can do it by itself.
    MayHold,
    Holds,
}

/// What a match depends on beside index and event.
pub struct Rules<'a> {
    /// Cost units of one evaluation.
    pub evaluation_units_max: u64,
    /// Cost units of all evaluations for one event.
    pub event_units_max: u64,
    /// Whether the Gateway of the subscription at this slot can evaluate by itself what costs too much here.
    pub can_verify: &'a dyn Fn(u32) -> bool,
}

/// What it cost, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Subscriptions that had to be evaluated.
    pub candidates: u64,
    pub errors: u64,
    pub over_budget: u64,
    /// Whether anybody watches a collection that the event is of, or its document.
    pub is_watched: bool,
}
