//! The list of a Gateway's subscriptions: their records name each other.

use super::NOBODY;

/// A Gateway's subscriptions, in the order in which they came. One walk at a time may be under way; it goes on with `walk`.
#[derive(Debug)]
pub(crate) struct Members {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(crate) count: u32,
    /// Those of them that no session keeps.
    pub(crate) by_http: u32,
    pub(super) walk: u32,
}

impl Default for Members {
    fn default() -> Self {
        Self { first: NOBODY, last: NOBODY, count: 0, by_http: 0, walk: NOBODY }
    }
}

impl Members {
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn start_walk(&mut self) {
        self.walk = self.first;
    }
}
