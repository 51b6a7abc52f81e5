//! What a resume token says of how far the server has looked.
//!
//! Tokens are opaque, and reading goes on from them as they are. Only one thing is read out of them, for one use: the cluster time that
//! one begins with tells a catch-up cursor that finds nothing that it has come past a place at which nothing stands. Whatever looks in any
//! way unlike what servers are known to write says nothing; that costs time, never an event.

use bson::RawDocument;

/// Times that a stream's tokens can be held against.
#[derive(Debug)]
pub(super) struct TokenTimes {
    /// The last time told, at first that of the start: tokens don't go back.
    last: u64,
    /// An event's token has begun with another time than the event's.
    is_unlike: bool,
}

impl TokenTimes {
    /// Of a stream that starts at this cluster time.
    pub(super) fn starting(time: u64) -> Self {
        Self { last: time, is_unlike: false }
    }

    /// An event, whose token and cluster time are to agree.
    pub(super) fn see(&mut self, event: &RawDocument) {
        let time = event.get_timestamp("clusterTime").ok().map(super::number);
        let token = event.get_document("_id").ok().and_then(begins_with);
        self.is_unlike |= time.is_none() || time != token;
    }

    /// The cluster time of a token that stands after a batch: every event of an earlier one has come by then. `now` is the time that the
    /// server told with the batch, behind which it can't have looked.
    pub(super) fn passed(&mut self, token: &RawDocument, now: Option<u64>) -> Option<u64> {
        let time = begins_with(token)?;
        let is_likely = !self.is_unlike && self.last <= time && now.is_some_and(|now| time <= now);
        if !is_likely {
            return None;
        }
        self.last = time;
        Some(time)
    }
}

/// The timestamp that a token's `_data` begins with: a KeyString in hexadecimal, in which type 82 is a timestamp, seconds first.
fn begins_with(token: &RawDocument) -> Option<u64> {
    let data = token.get_str("_data").ok()?;
    let time = data.strip_prefix("82")?.get(..16)?;
    let is_hex = data.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u64::from_str_radix(time, 16).ok())?
}

#[cfg(test)]
mod tests {
    use bson::{Timestamp, rawdoc};

    use super::*;

    /// As a server wrote it for an event of this time: seconds 0x65a1b2c3, increment 7.
    const DATA: &str = "8265A1B2C3000000072B022C0100296E5A1004";
    const TIME: u64 = 0x65a1_b2c3_0000_0007;

    #[test]
    fn a_token_tells_the_time_that_it_begins_with() {
        let token = rawdoc! { "_data": DATA };
        assert_eq!(TokenTimes::starting(5).passed(&token, Some(TIME)), Some(TIME));
        assert_eq!(begins_with(&rawdoc! { "_data": DATA.to_ascii_lowercase() }), Some(TIME));
    }

    #[test]
    fn what_looks_unlike_a_token_says_nothing() {
        for token in [
            rawdoc! {},
            rawdoc! { "_data": 7 },
            rawdoc! { "_data": "82" },
            rawdoc! { "_data": "8165A1B2C300000007" },
            rawdoc! { "_data": "8265A1B2C30000000" },
            rawdoc! { "_data": "8265A1B2C300000007zz" },
            rawdoc! { "_data": "82+5A1B2C300000007" },
        ] {
            assert_eq!(TokenTimes::starting(5).passed(&token, Some(u64::MAX)), None, "{token:?}");
        }
    }

    #[test]
    fn a_time_that_cant_be_is_not_believed() {
        let token = rawdoc! { "_data": DATA };
        assert_eq!(TokenTimes::starting(TIME + 1).passed(&token, Some(u64::MAX)), None, "before the start");
        assert_eq!(TokenTimes::starting(5).passed(&token, Some(TIME - 1)), None, "after the server's own time");
        assert_eq!(TokenTimes::starting(5).passed(&token, None), None);
        let mut times = TokenTimes::starting(5);
        let event =
            |increment| rawdoc! { "_id": { "_data": DATA }, "clusterTime": Timestamp { time: 0x65a1_b2c3, increment } };
        times.see(&event(7));
        assert_eq!(times.passed(&token, Some(TIME)), Some(TIME));
        times.see(&event(8));
        assert_eq!(times.passed(&token, Some(TIME)), None, "an event's token said another time than the event");
    }
}
