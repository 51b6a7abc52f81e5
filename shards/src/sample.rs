//! Changes whose way through the node is timed: one of many, so that timing costs the others nothing.
//!
//! The driver names a change with [`Shard::follow`](crate::Shard::follow) before the shard takes it in. The first session that it is
//! told to, and that isn't being timed already, is followed: to the write that sends it, and to the ack that says it is done. So a
//! Gateway that doesn't ack holds up its own sample and no other, and there are at most as many samples as sessions.
//!
//! A shard has no clock. It keeps what it is given, and says when the next time is due: [`Shard::matched_sample`](crate::Shard::matched_sample)
//! after the change was taken in, [`Shard::sent_sample`](crate::Shard::sent_sample) after a fill,
//! [`Shard::done_sample`](crate::Shard::done_sample) after an ack.

use wire::Position;

use crate::Shard;
use crate::session::Session;
use crate::subscription::GatewayId;

/// Nanoseconds of a clock that all threads of the process share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

impl Nanos {
    /// How long ago `earlier` was, in nanoseconds. 0 where it wasn't before this.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// When a change was where. What it hasn't come to yet is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub position: Position,
    /// The ingest thread had its batch in hand.
    pub read_at: Nanos,
    /// It was about to be put into the ring.
    pub pushed_at: Nanos,
    /// The shard took it from the ring.
    pub taken_at: Nanos,
    /// It had been matched, and was in the queues of the Gateways.
    pub matched_at: Nanos,
    /// It was encoded for the delivery stream of the session that is followed.
    pub sent_at: Nanos,
}

/// A sample on its way through a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timed {
    sample: Sample,
    /// Its log entry.
    number: u64,
    /// The last `seq` of the piece that it was sent in.
    seq: Option<u64>,
}

/// What a shard knows of its samples beside those in the sessions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Samples {
    /// Is about to be taken in.
    pub(crate) next: Option<Sample>,
    /// Whose session got it, and whose has sent it: until the driver has asked.
    told: Option<GatewayId>,
    sent: Option<GatewayId>,
    done: Option<Sample>,
}

impl Samples {
    /// A log entry has been put into a session's queue.
    #[inline]
    pub(crate) fn queued(&mut self, position: &Position, number: u64, gateway: GatewayId, session: &mut Session) {
        if self.next.is_some_and(|next| next.position == *position) && session.sample.is_none() {
            session.sample = self.next.take().map(|sample| Timed { sample, number, seq: None });
            self.told = Some(gateway);
        }
    }

    /// Something with a `seq` has been written for a session.
    #[inline]
    pub(crate) fn written(&mut self, gateway: GatewayId, session: &mut Session) {
        let (next_live, last_seq) = (session.next_live, session.last_seq);
        if let Some(timed) = &mut session.sample
            && timed.seq.is_none()
            && next_live > timed.number
        {
            timed.seq = Some(last_seq);
            self.sent = Some(gateway);
        }
    }

    #[inline]
    pub(crate) fn acked(&mut self, session: &mut Session) {
        let done = session.done();
        if session.sample.is_some_and(|timed| timed.seq.is_some_and(|seq| seq <= done)) {
            self.done = session.sample.take().map(|timed| timed.sample);
        }
    }
}

impl Shard {
    /// Has this change followed, which is among those that are taken in next.
    pub fn follow(&mut self, sample: Sample) {
        self.samples.next = Some(sample);
    }

    /// What was to be followed has been taken in. Gives it where it is on its way to a Gateway.
    pub fn matched_sample(&mut self) -> Option<&mut Sample> {
        self.samples.next = None;
        let gateway = self.samples.told.take()?;
        self.sample_of(gateway)
    }

    /// The sample that the last [`Shard::fill`] has sent, if it has sent one.
    pub fn sent_sample(&mut self) -> Option<&mut Sample> {
        let gateway = self.samples.sent.take()?;
        self.sample_of(gateway)
    }

    /// The sample whose Gateway said with the last ack that it is done, if one did. It is followed no longer.
    pub fn done_sample(&mut self) -> Option<Sample> {
        self.samples.done.take()
    }

    fn sample_of(&mut self, gateway: GatewayId) -> Option<&mut Sample> {
        self.gateways.session_mut(gateway)?.sample.as_mut().map(|timed| &mut timed.sample)
    }
}
