//! What is owed to Gateways: the delivery log, and the positions up to which nothing in it is owed any more.

mod log;
mod marks;

pub(crate) use log::{Entry, Group, Log, LogLimits, Settle, Target, What};
pub(crate) use marks::Marks;
