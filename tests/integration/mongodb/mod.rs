//! The node against a real MongoDB-protocol server, on which a client that knows nothing of it writes.
//!
//! What each Gateway must get follows from a change stream of the test's own, with the node's options and scope, and the
//! oracle. An update's document is looked up when the event is read, by the node and by the test at different times; where exactness
//! is asserted, a document whose update has not been delivered everywhere is therefore not written again. What happens
//! otherwise is the business of `races`.

mod checkpoint;
mod exact;
mod layout;
mod namespaces;
mod observer;
mod one_stream;
mod races;
mod restart;
mod world;
mod writes;
