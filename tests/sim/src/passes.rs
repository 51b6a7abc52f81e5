//! The catch-up cursor of a run of the node: what `src/ingest/pump/catch_up.rs` does around its state machine, step by step.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bson::RawDocument;
use shards::{CatchUp, CatchUpWanted, FromIngest, Millis};
use streamer::ingest::{
    catch_up::{CatchUpCore, Opening, Said},
    core::{IngestCore, ToShard},
    route::ShardIndex,
    source::{Batch, SourceError, Start},
};

use crate::{
    Broken, SimConfig,
    history::{History, Lost},
};

/// Who reads a cursor.
struct Reader {
    number: u64,
    /// The next event that it yields.
    next: usize,
    /// A batch is asked for.
    is_granted: bool,
}

pub(crate) struct Passes {
    core: CatchUpCore,
    reader: Option<Reader>,
    /// What readers have said, with the numbers of their cursors, and wasn't heard yet.
    said: VecDeque<(u64, Said)>,
    /// The cluster time of what was read for a pass that had ended when it was heard, only to break a rule with it.
    unheard: Option<u64>,
    broken: Option<Broken>,
    /// Of each shard, what is kept back only to break a rule with it.
    held: Vec<Option<FromIngest>>,
}

impl Passes {
    pub(crate) fn new(live: &IngestCore, of: &SimConfig) -> Self {
        let core = CatchUpCore::new(live, Duration::from_millis(of.halve_within_ms));
        let held = (0..live.shards()).map(|_| None).collect();
        Self { core, reader: None, said: VecDeque::new(), unheard: None, broken: of.broken, held }
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
    pub(crate) fn fail(&mut self, now: Millis) {
        if let Some(reader) = self.reader.take() {
            let error = SourceError::Transient("injected".into());
            self.said.push_back((reader.number, Said::Failed { error, retry_at: now }));
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
        let heard = max > 0 && !self.said.is_empty();
        if heard {
            self.hear(live, now, out);
        }
        self.core.work(live, 0, max, out).expect("the simulated source keeps to its protocol");
        let said = self.look_after_reader(live, history, max, now);
        heard || said || before != (self.core.pass(0), self.core.counters(0).events, out.len())
    }

    /// Hears all that readers have said since the last step. A tick may have ended the pass that it was for, and begun another.
    fn hear(&mut self, live: &IngestCore, now: Millis, out: &mut Vec<ToShard>) {
        for (number, said) in self.said.drain(..) {
            let first = match &said {
                Said::Batch(batch) if self.broken == Some(Broken::OldCursorHeard) => batch.events.first().cloned(),
                _ => None,
            };
            if !self.core.hear(live, 0, number, said, now, out) {
                self.unheard = first.map(|event| cluster_time(&event));
            }
        }
    }

    /// Opens and closes the cursor as the pass wants, and has it read a batch where one is asked for. Whether anything is said.
    fn look_after_reader(&mut self, live: &IngestCore, history: &mut History, max: usize, now: Millis) -> bool {
        let said = self.said.len();
        self.reader.take_if(|reader| self.core.cursor(0) != Some(reader.number));
        if let Some(Opening { number, start }) = self.core.open(live, 0, now) {
            let start = self.unheard.take().map_or(start, |time| Start::At { time });
            let what = match history.open(&start) {
                Ok((next, start)) => {
                    self.reader = Some(Reader { number, next, is_granted: false });
                    Said::Opened { start }
                }
                Err(Lost) => Said::Failed { error: SourceError::HistoryLost("forgotten".into()), retry_at: now },
            };
            self.said.push_back((number, what));
        }
        if let Some(reader) = &mut self.reader {
            reader.is_granted |= self.core.grant(0);
            if max > 0 && std::mem::take(&mut reader.is_granted) {
                let mut events = Vec::new();
                let resume = history.read(reader.next, max, &mut events);
                reader.next += events.len();
                let passed = (reader.next == history.len()).then(|| history.passed());
                let batch = Batch { events, resume, passed, ..Batch::default() };
                self.said.push_back((reader.number, Said::Batch(batch)));
            }
        }
        self.said.len() > said
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

fn cluster_time(event: &[u8]) -> u64 {
    let event = RawDocument::from_bytes(event).expect("an event is BSON");
    let time = event.get_timestamp("clusterTime").expect("every event has a cluster time");
    u64::from(time.time) << 32 | u64::from(time.increment)
}
