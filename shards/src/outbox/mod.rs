//! What is owed to Gateways: the delivery log, and the positions up to which nothing in it is owed any more.

mod arena;
mod log;
mod marks;
mod places;

pub(crate) use log::{EntryRef, GROUPS_MAX, Log, LogLimits, NewEntry, Settle, Slice, Target, What};
pub(crate) use marks::Marks;
pub(crate) use places::Places;
