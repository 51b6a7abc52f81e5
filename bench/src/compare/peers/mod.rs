//! What a user would take instead: a loop over the collection's subscriptions, or an index from crates.io.

mod a_tree;
mod cel;
mod fields;
mod native;

pub(super) use self::{a_tree::Trees, cel::Cel, native::Native};
