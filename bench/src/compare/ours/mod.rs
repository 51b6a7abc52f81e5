//! What is ours: the index alone, the index in its shard, and the ingest thread before both.

mod index;
mod ingest;
mod shard;

pub(super) use self::{
    index::{BATCH, OursIndex, Place, compiled, places},
    ingest::{Ingest, Reader},
    shard::{ITEMS, OursShard, item},
};
