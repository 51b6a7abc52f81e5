//! What happened last in a run, in lines for people.

use std::{cell::RefCell, collections::VecDeque, fmt, rc::Rc};

/// The last lines of a run. Clones share them, so that they outlive the run that panics.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    lines: Rc<RefCell<VecDeque<String>>>,
    lines_max: usize,
}

impl Trace {
    /// Keeps so many lines; none costs nothing.
    pub(crate) fn new(lines_max: usize) -> Self {
        Self { lines: Rc::default(), lines_max }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.lines_max > 0
    }

    pub(crate) fn push(&self, now: u64, what: fmt::Arguments<'_>) {
        let mut lines = self.lines.borrow_mut();
        if lines.len() == self.lines_max {
            lines.pop_front();
        }
        lines.push_back(format!("{now:>7} ms  {what}"));
    }

    pub(crate) fn take(&self) -> Vec<String> {
        self.lines.borrow_mut().drain(..).collect()
    }
}

/// Adds a line to a world's trace; what it says is put together only where there is one.
macro_rules! note {
    ($world:expr, $($what:tt)*) => {
        if $world.trace.is_on() {
            $world.trace.push($world.now, format_args!($($what)*));
        }
    };
}
pub(crate) use note;
