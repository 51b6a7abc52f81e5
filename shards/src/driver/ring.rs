//! The bounded ring that carries items from the ingest thread into one shard, in their order.
//!
//! Invariants:
//! - One producer, one consumer; what was pushed is popped in that order, once.
//! - No lost wake-up. Both sides follow the same protocol: the one that waits registers its waker, raises its flag, passes a
//!   sequentially consistent fence and looks at the queue *again*; the other one changes the queue, passes such a fence and
//!   then looks at the flag. Of two such fences one comes first in the single total order of all of them. If the waiter's
//!   comes first, the other side sees the flag and wakes; if the other side's comes first, the waiter sees the changed queue
//!   and doesn't wait. The flag is raised after the waker is registered, so whoever sees the flag finds the waker.
//! - A side that works costs the other no system call: a waker is only called when its flag was up.
//! - The consumer never waits while the ring holds something, so a producer that waits for room can't be forgotten.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;
use crossbeam::{queue::ArrayQueue, utils::CachePadded};

use crate::Nanos;

/// Makes a ring of `capacity` items (at least 1). `name` is what metrics and logs call it.
pub fn ring<T>(name: impl Into<String>, capacity: usize) -> (RingProducer<T>, RingConsumer<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity.max(1)),
        name: name.into(),
        pushed: CachePadded::new(AtomicU64::new(0)),
        popped: CachePadded::new(AtomicU64::new(0)),
        waits: AtomicU64::new(0),
        mark: CachePadded::new(Mark::default()),
        consumer: CachePadded::new(Waiter::default()),
        producer: CachePadded::new(Waiter::default()),
        producer_gone: AtomicBool::new(false),
        consumer_gone: AtomicBool::new(false),
    });
    (RingProducer { shared: Arc::clone(&shared) }, RingConsumer { shared })
}

/// The ingest thread's end.
#[derive(Debug)]
pub struct RingProducer<T> {
    shared: Arc<Shared<T>>,
}

/// The shard's end.
#[derive(Debug)]
pub struct RingConsumer<T> {
    shared: Arc<Shared<T>>,
}

/// Why an item could not be pushed. It is given back.
#[derive(Debug, PartialEq, Eq)]
pub enum PushError<T> {
    Full(T),
    /// The shard has ended.
    Closed(T),
}

/// An item that is to be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// How many items have been popped after it.
    pub behind: usize,
    /// As given to [`RingProducer::mark`].
    pub read_at: Nanos,
    pub pushed_at: Nanos,
}

/// The same while it is in the ring.
#[derive(Debug, Default)]
struct Mark {
    /// Which item it is, counted from 1. 0: none is in the ring. The producer writes while it is 0, the consumer reads while it isn't.
    number: AtomicU64,
    read_at: AtomicU64,
    pushed_at: AtomicU64,
}

/// The shard at the other end has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard at the other end of the ring has ended")]
pub struct Closed;

/// Counters of a ring, for metrics. The two totals say more than a depth, which aliases between two looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    pub name: String,
    pub capacity: u64,
    pub pushed: u64,
    pub popped: u64,
    /// How often the producer found no room and waited.
    pub waits: u64,
}

impl<T> RingProducer<T> {
    /// Pushes without waiting.
    pub fn try_push(&mut self, item: T) -> Result<(), PushError<T>> {
        let shared = &*self.shared;
        if shared.consumer_gone.load(Ordering::Acquire) {
            return Err(PushError::Closed(item));
        }
        shared.queue.push(item).map_err(PushError::Full)?;
        bump(&shared.pushed, 1);
        shared.consumer.notify();
        Ok(())
    }

    /// Marks the item that is pushed next as one to be timed, unless the last one that was marked is still in the ring.
    pub fn mark(&mut self, read_at: Nanos, pushed_at: Nanos) {
        let Shared { mark, pushed, .. } = &*self.shared;
        if mark.number.load(Ordering::Acquire) == 0 {
            mark.read_at.store(read_at.0, Ordering::Relaxed);
            mark.pushed_at.store(pushed_at.0, Ordering::Relaxed);
            // Before the item itself: whoever pops that sees the mark.
            mark.number.store(pushed.load(Ordering::Relaxed) + 1, Ordering::Release);
        }
    }

    /// Waits until [`Self::try_push`] has room. Only this end takes room away, so it stays until the next push. May be
    /// dropped at any time without loss.
    pub async fn room(&mut self) -> Result<(), Closed> {
        let mut counted = false;
        poll_fn(|cx| {
            let poll = self.poll_room(cx);
            if poll.is_pending() && !counted {
                counted = true;
                bump(&self.shared.waits, 1);
            }
            poll
        })
        .await
    }

    /// Whether at most half of the ring is taken: room enough for what may wait, without taking it from what may not.
    pub fn has_room_to_spare(&self) -> bool {
        self.shared.queue.len() <= self.shared.queue.capacity() / 2
    }

    /// Pushes, waiting for room. The item is lost when the future is dropped before its end; where that can happen, await
    /// [`Self::room`] and push then.
    pub async fn push(&mut self, item: T) -> Result<(), Closed> {
        self.room().await?;
        match self.try_push(item) {
            Ok(()) => Ok(()),
            Err(PushError::Closed(_)) => Err(Closed),
            Err(PushError::Full(_)) => unreachable!("only this end fills the ring, and it had room"),
        }
    }

    pub fn stats(&self) -> RingStats {
        self.shared.stats()
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let shared = &*self.shared;
        let look = || {
            if shared.consumer_gone.load(Ordering::Acquire) {
                Poll::Ready(Err(Closed))
            } else if shared.queue.is_full() {
                Poll::Pending
            } else {
                Poll::Ready(Ok(()))
            }
        };
        shared.producer.poll(cx, look)
    }
}

impl<T> Drop for RingProducer<T> {
    fn drop(&mut self) {
        self.shared.producer_gone.store(true, Ordering::Release);
        self.shared.consumer.notify();
    }
}

impl<T> RingConsumer<T> {
    pub fn pop(&mut self) -> Option<T> {
        let item = self.shared.queue.pop()?;
        bump(&self.shared.popped, 1);
        self.made_room();
        Some(item)
    }

    /// Pops up to `max` items into `take` and returns how many there were. The producer is told of the room once, at the
    /// end.
    pub fn drain(&mut self, max: usize, mut take: impl FnMut(T)) -> usize {
        let mut count = 0;
        while count < max {
            let Some(item) = self.shared.queue.pop() else { break };
            count += 1;
            take(item);
        }
        if count > 0 {
            bump(&self.shared.popped, count as u64);
            self.made_room();
        }
        count
    }

    /// The item that was to be timed, if it has been popped since the last call.
    pub fn marked(&mut self) -> Option<Marked> {
        let Shared { mark, popped, .. } = &*self.shared;
        let number = mark.number.load(Ordering::Acquire);
        if number == 0 {
            return None;
        }
        let behind = popped.load(Ordering::Relaxed).checked_sub(number)?;
        let (read_at, pushed_at) = (mark.read_at.load(Ordering::Relaxed), mark.pushed_at.load(Ordering::Relaxed));
        mark.number.store(0, Ordering::Release);
        let behind = usize::try_from(behind).unwrap_or(usize::MAX);
        Some(Marked { behind, read_at: Nanos(read_at), pushed_at: Nanos(pushed_at) })
    }

    /// Waits until there is something to pop, or until the producer is gone and nothing will come any more.
    pub async fn wait(&mut self) {
        poll_fn(|cx| self.poll_ready(cx)).await;
    }

    /// Whether the producer is gone and everything it pushed has been popped.
    pub fn is_finished(&self) -> bool {
        // The flag first: what was pushed before it was raised is then seen in the queue.
        self.shared.producer_gone.load(Ordering::Acquire) && self.shared.queue.is_empty()
    }

    pub fn stats(&self) -> RingStats {
        self.shared.stats()
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let shared = &*self.shared;
        let look = || {
            let something = !shared.queue.is_empty() || shared.producer_gone.load(Ordering::Acquire);
            if something { Poll::Ready(()) } else { Poll::Pending }
        };
        shared.consumer.poll(cx, look)
    }

    /// Wakes a waiting producer once a quarter of the ring is free, so that it isn't woken for every single slot. A fuller
    /// ring needs no wake-up yet: this end never waits before it has emptied the ring, and so comes by here again.
    fn made_room(&self) {
        let queue = &self.shared.queue;
        if queue.len() <= queue.capacity() - queue.capacity().div_ceil(4) {
            self.shared.producer.notify();
        }
    }
}

impl<T> Drop for RingConsumer<T> {
    fn drop(&mut self) {
        self.shared.consumer_gone.store(true, Ordering::Release);
        // What nobody will read should not live as long as the producer.
        while self.shared.queue.pop().is_some() {}
        // Nor should a waker of this thread's executor be dropped by another thread.
        drop(self.shared.consumer.waker.take());
        self.shared.producer.notify();
    }
}

#[derive(Debug)]
struct Shared<T> {
    queue: ArrayQueue<T>,
    name: String,
    /// Written by the producer only.
    pushed: CachePadded<AtomicU64>,
    /// Written by the consumer only.
    popped: CachePadded<AtomicU64>,
    /// Written by the producer only.
    waits: AtomicU64,
    mark: CachePadded<Mark>,
    consumer: CachePadded<Waiter>,
    producer: CachePadded<Waiter>,
    producer_gone: AtomicBool,
    consumer_gone: AtomicBool,
}

impl<T> Shared<T> {
    fn stats(&self) -> RingStats {
        // `popped` first, so that the difference of the two is never negative.
        let popped = self.popped.load(Ordering::Acquire);
        RingStats {
            name: self.name.clone(),
            capacity: self.queue.capacity() as u64,
            pushed: self.pushed.load(Ordering::Acquire).max(popped),
            popped,
            waits: self.waits.load(Ordering::Relaxed),
        }
    }
}

/// Adds to a counter that has one writer: no locked instruction needed.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Release);
}

/// One side's waker and the flag that says that it waits. The protocol is in the module's head.
#[derive(Debug, Default)]
struct Waiter {
    waits: AtomicBool,
    waker: AtomicWaker,
}

impl Waiter {
    /// To be called by the other side after it has changed what this one looks at.
    fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.waits.load(Ordering::Relaxed) && self.waits.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Waits until `look` is ready.
    fn poll<R>(&self, cx: &mut Context<'_>, look: impl Fn() -> Poll<R>) -> Poll<R> {
        let first = look();
        if first.is_ready() {
            // The flag may be up from an earlier wait that ended for another reason. Left up it would cost a wake-up for
            // nothing; taking it down loses none, since this side is awake and looks again before it waits.
            if self.waits.load(Ordering::Relaxed) {
                self.waits.store(false, Ordering::Relaxed);
            }
            return first;
        }
        self.waker.register(cx.waker());
        self.waits.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        let second = look();
        if second.is_ready() {
            self.waits.store(false, Ordering::Relaxed);
        }
        second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_mark_is_that_of_the_item_pushed_next_and_one_at_a_time() {
        let (mut producer, mut consumer) = ring("test", 8);
        producer.try_push(0).unwrap();
        producer.mark(Nanos(1), Nanos(2));
        producer.try_push(1).unwrap();
        producer.mark(Nanos(7), Nanos(8));
        producer.try_push(2).unwrap();
        assert_eq!(consumer.pop(), Some(0));
        assert_eq!(consumer.marked(), None, "it is still in the ring");
        assert_eq!(consumer.drain(2, |_| ()), 2);
        assert_eq!(consumer.marked(), Some(Marked { behind: 1, read_at: Nanos(1), pushed_at: Nanos(2) }));
        assert_eq!(consumer.marked(), None);
        producer.mark(Nanos(9), Nanos(9));
        assert_eq!(consumer.marked(), None, "it hasn't been pushed");
        producer.try_push(3).unwrap();
        consumer.pop();
        assert_eq!(consumer.marked(), Some(Marked { behind: 0, read_at: Nanos(9), pushed_at: Nanos(9) }));
    }

    #[test]
    fn items_come_out_once_and_in_order_under_contention() {
        // A tiny ring, so that both sides wait all the time.
        for capacity in [1, 2, 3, 64] {
            let items = 60_000u64;
            let (mut producer, mut consumer) = ring("test", capacity);
            let pushing = std::thread::spawn(move || {
                block_on(async {
                    for item in 0..items {
                        if item % 7 == 0 {
                            // The other way to push.
                            producer.room().await.unwrap();
                            producer.try_push(item).unwrap();
                        } else {
                            producer.push(item).await.unwrap();
                        }
                        if item % 1_001 == 0 {
                            std::thread::yield_now();
                        }
                    }
                    producer.stats()
                })
            });
            let popping = std::thread::spawn(move || {
                block_on(async {
                    let mut next = 0;
                    while !consumer.is_finished() {
                        consumer.wait().await;
                        if next % 3 == 0 {
                            if let Some(item) = consumer.pop() {
                                assert_eq!(item, next);
                                next += 1;
                            }
                        } else {
                            consumer.drain(17, |item| {
                                assert_eq!(item, next);
                                next += 1;
                            });
                        }
                    }
                    (next, consumer.stats())
                })
            });
            let pushed = pushing.join().unwrap();
            let (popped, stats) = popping.join().unwrap();
            assert_eq!((pushed.pushed, popped), (items, items));
            assert_eq!((stats.pushed, stats.popped, stats.capacity), (items, items, capacity as u64));
        }
    }

    #[test]
    fn a_full_ring_gives_the_item_back() {
        let (mut producer, mut consumer) = ring("test", 2);
        producer.try_push(1).unwrap();
        producer.try_push(2).unwrap();
        assert_eq!(producer.try_push(3), Err(PushError::Full(3)));
        assert_eq!(consumer.pop(), Some(1));
        producer.try_push(3).unwrap();
        assert_eq!(consumer.pop(), Some(2));
        assert_eq!(consumer.pop(), Some(3));
        assert_eq!(consumer.pop(), None);
    }

    #[test]
    fn a_waiting_producer_hears_of_a_shard_that_ended() {
        let (mut producer, consumer) = ring("test", 1);
        producer.try_push(1).unwrap();
        let waiting = std::thread::spawn(move || block_on(async move { producer.push(2).await }));
        drop(consumer);
        assert_eq!(waiting.join().unwrap(), Err(Closed));
    }

    #[test]
    fn what_the_shard_left_is_dropped_with_its_end() {
        let item = Arc::new(());
        let (mut producer, consumer) = ring("test", 4);
        producer.try_push(Arc::clone(&item)).unwrap();
        drop(consumer);
        assert_eq!(Arc::strong_count(&item), 1);
        assert!(matches!(producer.try_push(item), Err(PushError::Closed(_))));
    }

    #[test]
    fn a_waiting_shard_hears_of_an_ingest_that_ended() {
        let (producer, mut consumer) = ring::<u8>("test", 1);
        let waiting = std::thread::spawn(move || {
            block_on(consumer.wait());
            consumer.is_finished()
        });
        drop(producer);
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn a_push_after_an_abandoned_wait_wakes_the_next_one() {
        block_on(async {
            let (mut producer, mut consumer) = ring("test", 1);
            for item in 0..100 {
                // Waits with nothing there, is dropped; as a `select` does it.
                tokio::select! {
                    biased;
                    () = consumer.wait() => panic!("nothing was pushed"),
                    () = std::future::ready(()) => {}
                }
                producer.try_push(item).unwrap();
                consumer.wait().await;
                assert_eq!(consumer.pop(), Some(item));
            }
        });
    }
}
