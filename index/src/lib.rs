//! Which subscriptions a document matches.

mod event;

pub use event::{Counts, Event, Image, Main, Match, Rules, Verdict};
