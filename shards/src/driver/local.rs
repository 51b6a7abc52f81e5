//! A wake-up between two tasks of one thread.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Poll, Waker},
};

/// An event that stays set until the one task that waits for it has seen it. For a single waiter: a second one would take
/// the first one's place.
#[derive(Debug, Default)]
pub(super) struct LocalEvent {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl LocalEvent {
    pub(super) fn set(&self) {
        if !self.set.replace(true) {
            // Taken out before it is called: a waker may run code that comes back here.
            let waker = self.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Forgets what was set, for a waiter that is about to look anyway.
    pub(super) fn clear(&self) {
        self.set.set(false);
    }

    pub(super) async fn wait(&self) {
        poll_fn(|cx| {
            if self.set.replace(false) {
                return Poll::Ready(());
            }
            let mut waker = self.waker.borrow_mut();
            match &*waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
        .await;
    }
}

/// Lets every other task of the thread that is ready have its turn.
pub(super) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn an_event_is_seen_once_whether_set_before_or_during_the_wait() {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let event = Rc::new(LocalEvent::default());
            event.set();
            event.set();
            event.wait().await;
            let setter = async {
                yield_now().await;
                event.set();
            };
            futures::join!(event.wait(), setter);
            tokio::select! {
                biased;
                () = event.wait() => panic!("it was set once more than it was"),
                () = yield_now() => {}
            }
        });
    }
}
