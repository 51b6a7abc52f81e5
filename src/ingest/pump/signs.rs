//! Signs of life of a source, and the alarm where they fail to come.
//!
//! Invariants:
//! - Whatever is new is a sign. So is the answer that there is nothing: a source in which nothing happens is no reason for an alarm.
//! - Such an answer is none where the stream itself has stopped, which shows only in this way: the source's own time goes on, its
//!   tokens are known to go on with that, and this one stays where it was. Servers whose tokens stand where the last event stood are
//!   never seen to move one without an event, and so are never taken to have stopped.

use std::time::Duration;

use tokio::time::Instant;

use crate::ingest::source::{Batch, ResumeToken};

#[derive(Debug)]
pub(super) struct Signs {
    heard_at: Instant,
    /// The last token that this stream told, and the source's own time by then.
    token: Option<ResumeToken>,
    time: Option<u64>,
    /// Its tokens have been seen to go on without events.
    tokens_move: bool,
    is_alarm: bool,
}

impl Signs {
    pub(super) fn new(now: Instant) -> Self {
        Self { heard_at: now, token: None, time: None, tokens_move: false, is_alarm: false }
    }

    /// A stream has been opened. Only tokens of one stream show whether they go on.
    pub(super) fn opened(&mut self) {
        (self.token, self.time) = (None, None);
    }

    /// Takes in what the stream has given. Whether that ends an alarm.
    pub(super) fn hear(&mut self, batch: &Batch, now: Instant) -> bool {
        if !batch.answered {
            return false;
        }
        let is_new = !batch.events.is_empty() || batch.resume.is_none() || batch.resume != self.token;
        if is_new {
            self.tokens_move |= batch.events.is_empty() && batch.resume.is_some() && self.token.is_some();
            self.token.clone_from(&batch.resume);
            self.time = batch.time;
        } else if self.tokens_move && self.time.zip(batch.time).is_some_and(|(then, now)| now > then) {
            return false;
        }
        self.heard_at = now;
        std::mem::take(&mut self.is_alarm)
    }

    /// Nothing was to be heard until now.
    pub(super) fn excuse(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// Nothing is to be heard of one that isn't read.
    pub(super) fn is_not_read(&mut self, now: Instant) {
        self.heard_at = now;
        self.is_alarm = false;
    }

    /// For how long it has been silent, where an alarm begins with that. `after` zero: never.
    pub(super) fn look(&mut self, now: Instant, after: Duration) -> Option<Duration> {
        let silent = now.saturating_duration_since(self.heard_at);
        let begins = !self.is_alarm && !after.is_zero() && silent >= after;
        self.is_alarm |= begins;
        begins.then_some(silent)
    }

    /// For how long it has been silent, while that is an alarm.
    pub(super) fn alarm(&self, now: Instant) -> Option<Duration> {
        self.is_alarm.then(|| now.saturating_duration_since(self.heard_at))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const AFTER: Duration = Duration::from_secs(300);

    /// A stream that answers every ten seconds.
    struct Source {
        now: Instant,
        signs: Signs,
    }

    impl Source {
        fn new() -> Self {
            let now = Instant::now();
            Self { now, signs: Signs::new(now) }
        }

        /// So many answers, made by their number. Whether there is an alarm at the end.
        fn answers(&mut self, count: u64, answer: impl Fn(u64) -> Batch) -> bool {
            for number in 0..count {
                self.now += Duration::from_secs(10);
                self.signs.hear(&answer(number), self.now);
                self.signs.look(self.now, AFTER);
            }
            self.signs.alarm(self.now).is_some()
        }
    }

    fn empty(token: u64, time: u64) -> Batch {
        let resume = Some(ResumeToken(Bytes::copy_from_slice(&token.to_le_bytes())));
        Batch { resume, answered: true, time: Some(time), ..Batch::default() }
    }

    #[test]
    fn a_source_that_doesnt_answer_is_an_alarm_until_it_does() {
        let mut source = Source::new();
        assert!(!source.answers(29, |_| Batch::default()));
        assert!(source.answers(1, |_| Batch::default()));
        assert_eq!(source.signs.look(source.now, AFTER), None, "it began before");
        assert_eq!(source.signs.alarm(source.now), Some(AFTER));
        assert!(source.signs.hear(&empty(1, 1), source.now));
        assert_eq!(source.signs.alarm(source.now), None);
    }

    #[test]
    fn an_idle_source_that_answers_is_none() {
        let mut source = Source::new();
        assert!(!source.answers(100, |_| empty(1, 1)), "its time stands still like its token");
        assert!(!source.answers(100, |number| empty(number, number)), "both go on");
        assert!(!source.answers(100, |_| Batch { answered: true, ..Batch::default() }), "it tells neither");
    }

    #[test]
    fn a_token_that_never_moves_without_an_event_says_nothing() {
        let mut source = Source::new();
        assert!(!source.answers(100, |number| empty(1, number)));
        let event = |number| Batch { events: vec![Bytes::new()], ..empty(number, number) };
        assert!(!source.answers(2, event));
        assert!(!source.answers(100, |number| empty(1, 2 + number)), "by an event it does");
        // Another stream begins with another token.
        source.signs.opened();
        assert!(!source.answers(100, |number| empty(7, 200 + number)));
    }

    #[test]
    fn a_token_that_stays_while_time_goes_on_is_one() {
        let mut source = Source::new();
        assert!(!source.answers(10, |number| empty(number, number)));
        assert!(!source.answers(100, |_| empty(9, 9)), "nothing happens at all");
        assert!(source.answers(30, |number| empty(9, 10 + number)));
        assert!(!source.answers(1, |_| empty(10, 50)), "it goes on");
        assert!(source.answers(100, |number| empty(10, 51 + number)));
        source.signs.is_not_read(source.now);
        assert_eq!(source.signs.alarm(source.now), None);
    }

    #[test]
    fn zero_is_never() {
        let mut source = Source::new();
        source.answers(100, |_| Batch::default());
        let mut source = Signs::new(source.now);
        assert_eq!(source.look(Instant::now() + AFTER, Duration::ZERO), None);
    }
}
