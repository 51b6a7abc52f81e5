//! The catch-up cursor of a run of the node: what `src/ingest/pump/catch_up.rs` does around its state machine, step by step.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use shards::{CatchUp, CatchUpWanted, FromIngest, Millis};
use streamer::ingest::{
    catch_up::CatchUpCore,
    core::{IngestCore, ToShard},
    route::ShardIndex,
    source::{Batch, SourceError},
};

use crate::{
    Broken, SimConfig,
    history::{History, Lost},
};

pub(crate) struct Passes {
    core: CatchUpCore,
    cursor: Option<usize>,
    broken: Option<Broken>,
    /// Of each shard, what is kept back only to break a rule with it.
    held: Vec<Option<FromIngest>>,
}

impl Passes {
    pub(crate) fn new(live: &IngestCore, of: &SimConfig) -> Self {
        let core = CatchUpCore::new(live, Duration::from_millis(of.halve_within_ms));
        let held = (0..live.shards()).map(|_| None).collect();
        Self { core, cursor: None, broken: of.broken, held }
    }

    pub(crate) fn wanted(&mut self, shard: ShardIndex, wanted: Arc<CatchUpWanted>) {
        self.core.wanted(shard, wanted);
    }

    pub(crate) fn live_lost(&mut self, out: &mut Vec<ToShard>) {
        self.core.live_lost(0, out);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.core.pass(0).is_none() && !self.core.is_wanted()
    }

    /// The cursor breaks.
    pub(crate) fn fail(&mut self, live: &IngestCore, now: Millis, out: &mut Vec<ToShard>) {
        if self.cursor.take().is_some() {
            self.core.failed(live, 0, &SourceError::Transient("injected".into()), now, now, out);
        }
    }

    /// Does something of what is due, up to `max` events; with 0, nothing is read. Whether there was anything.
    pub(crate) fn step(
        &mut self,
        live: &IngestCore,
        history: &mut History,
        max: usize,
        now: Millis,
        out: &mut Vec<ToShard>,
    ) -> bool {
        let before = (self.core.pass(0), self.core.counters(0).events, out.len());
        self.core.tick(live, now, |_| true, out);
        if let Some(start) = self.core.open(live, 0, now) {
            match history.open(&start) {
                Ok((cursor, place)) => {
                    self.cursor = Some(cursor);
                    self.core.opened(0, place, now, out);
                }
                Err(Lost) => {
                    self.core.failed(live, 0, &SourceError::HistoryLost("forgotten".into()), now, now, out);
                }
            }
        }
        if !self.core.has_cursor(0) {
            self.cursor = None;
        }
        if let Some(cursor) = self.cursor.filter(|_| max > 0 && self.core.takes_batch(0)) {
            let mut events = Vec::new();
            let resume = history.read(cursor, max, &mut events);
            self.cursor = Some(cursor + events.len());
            let is_all = cursor + events.len() == history.len();
            let passed = is_all.then(|| history.passed());
            self.core.batch(0, Batch { events, resume, passed, ..Batch::default() });
        }
        self.core.work(live, 0, max, out).expect("the simulated source keeps to its protocol");
        before != (self.core.pass(0), self.core.counters(0).events, out.len())
    }

    /// What a pass has put out goes into a ring that has room to spare.
    pub(crate) fn fill(&mut self, shard: usize, ring: &mut VecDeque<FromIngest>, room: usize) {
        while ring.len() < room
            && let Some(item) = self.core.take(ShardIndex(shard as u16))
        {
            let is_change = matches!(item, FromIngest::CatchUp(CatchUp::Change { .. }));
            match self.broken {
                Some(Broken::MergeOneEarly) if is_change => ring.extend(self.held[shard].replace(item)),
                _ => ring.push_back(item),
            }
        }
    }

    /// What goes into a ring in the place of an item of the live stream, or among these.
    pub(crate) fn in_place_of(&mut self, shard: usize, item: FromIngest, ring: &mut VecDeque<FromIngest>) {
        let merges = matches!(item, FromIngest::CatchUp(CatchUp::CaughtUp { .. }));
        let is_change = matches!(item, FromIngest::Change(_));
        match self.broken {
            // What came last of the pass comes after its end.
            Some(Broken::MergeOneEarly) if merges => {
                ring.push_back(item);
                ring.extend(self.held[shard].take());
            }
            // The next of the live stream comes before its end.
            Some(Broken::MergeOneLate) if merges => self.held[shard] = Some(item),
            Some(Broken::MergeOneLate) if is_change => {
                ring.push_back(item);
                ring.extend(self.held[shard].take());
            }
            _ => ring.push_back(item),
        }
    }
}
