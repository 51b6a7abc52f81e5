//! What runs once per core: the subscription index, the delivery log, sessions with Gateways, and the driver that gives them IO.

mod change;
mod filter;
mod io;

pub use change::{Bare, Change, FromIngest, Gap, Image, Scope};
pub use filter::{FilterKey, FilterSnapshot};
pub use io::*;
