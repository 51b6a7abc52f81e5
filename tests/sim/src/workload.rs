//! What is written, in order, and what must come of it.
//!
//! Making events and asking the oracle takes longer than delivering them, so several seeds in a row share a workload, which each thread keeps:
//! what differs between them is all that the scheduler and the faults draw.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use bson::Document;
use bytes::Bytes;
use wire::{EventId, Transition};
use workload::{
    EventFactory, EventOptions, GeneratedSubscription, Generator, Oracle, OracleChange, OracleSubscription, Preset,
    Profile, Writer, generate::Schedule, oracle::Numbering,
};

use crate::{
    SimConfig,
    expected::{Number, What},
    history::{BACKEND, LINEAGE},
    registrar::Compiled,
};

/// Seeds that share a workload.
pub(crate) const SEEDS: u64 = 8;

/// An event as the source has it, before anything is looked up late.
pub(crate) struct Written {
    pub(crate) id: EventId,
    pub(crate) token: Bytes,
    pub(crate) bytes: Bytes,
    pub(crate) document: Document,
    due: OnceCell<Vec<Due>>,
}

/// What a subscription must be given of an event.
pub(crate) type Due = (Number, What);

impl Written {
    pub(crate) fn new(document: Document, bytes: Vec<u8>, id: EventId) -> Self {
        let token =
            document.get_document("_id").expect("every event has a token").to_vec().expect("a document is BSON");
        Self { id, token: token.into(), bytes: bytes.into(), document, due: OnceCell::new() }
    }
}

pub(crate) struct Workload {
    pub(crate) generator: Generator,
    pub(crate) subscriptions: Vec<GeneratedSubscription>,
    pub(crate) compiled: RefCell<Compiled>,
    oracle: Oracle,
    script: RefCell<Script>,
}

struct Script {
    factory: EventFactory,
    writer: Writer,
    schedule: Schedule,
    numbering: Numbering,
    transactions: Vec<Vec<Rc<Written>>>,
}

/// What tells workloads apart.
type Key = (u64, usize, bool);

impl Workload {
    /// The one of this configuration, made anew where this thread's last one was another.
    pub(crate) fn of(config: &SimConfig) -> Rc<Self> {
        thread_local! {
            static LAST: RefCell<Option<(Key, Rc<Workload>)>> = const { RefCell::new(None) };
        }
        let key = (config.seed / SEEDS, config.subscriptions, config.before_images);
        LAST.with_borrow_mut(|last| match last {
            Some((made, workload)) if *made == key => workload.clone(),
            _ => last.insert((key, Rc::new(Self::new(key)))).1.clone(),
        })
    }

    fn new((seed, count, before_images): Key) -> Self {
        let generator = Generator::new(Profile::test(seed));
        let subscriptions = generator.subscriptions(count + count / 2);
        let mut oracle = Oracle::new(Preset::Syntrix);
        for (number, subscription) in subscriptions.iter().enumerate() {
            let mut key = subscription.key.clone();
            // A name of its own: one may take the place of another under the same key.
            key.id = number.to_string();
            let told = OracleSubscription { key, ..subscription.to_oracle() };
            oracle.subscribe(told).expect("generated subscriptions are good");
        }
        let options = EventOptions::new(Preset::Syntrix);
        let script = Script {
            factory: EventFactory::new(if before_images { options } else { options.without_before_images() }),
            writer: generator.writer(),
            schedule: generator.schedule(),
            numbering: Numbering::new(*BACKEND, LINEAGE),
            transactions: Vec::new(),
        };
        let (compiled, script) = (RefCell::new(HashMap::new()), RefCell::new(script));
        Self { generator, subscriptions, compiled, oracle, script }
    }

    /// The events of the transaction of this number, counted from 0.
    pub(crate) fn transaction(&self, number: usize) -> Vec<Rc<Written>> {
        let mut script = self.script.borrow_mut();
        while script.transactions.len() <= number {
            script.write();
        }
        script.transactions[number].clone()
    }

    /// What must come of an event when it is read as it was written.
    pub(crate) fn due<'a>(&self, written: &'a Written) -> &'a [Due] {
        written.due.get_or_init(|| self.due_of(&written.document, written.id))
    }

    /// What must come of an event that reads like this.
    pub(crate) fn due_of(&self, document: &Document, id: EventId) -> Vec<Due> {
        let change = OracleChange::from_change_event(document, Preset::Syntrix, id).expect("it is a change event");
        let due = change.map(|change| self.oracle.expect(&change)).unwrap_or_default();
        let what = |transition: Transition, certainty| What::Change(transition, certainty);
        due.into_iter()
            .map(|one| {
                let number = one.key.id.parse().expect("the oracle was told numbers");
                (Number(number), what(one.transition, one.certainty))
            })
            .collect()
    }
}

impl Script {
    fn write(&mut self) {
        let writes: Vec<_> = (0..self.schedule.transaction()).map(|_| self.writer.next()).collect();
        let events = self.factory.apply_transaction(&writes).into_iter().map(|bytes| {
            let document = Document::from_reader(&bytes[..]).expect("the factory makes BSON");
            let id = self.numbering.next_event(&document).expect("the factory's time doesn't run backwards");
            Rc::new(Written::new(document, bytes, id))
        });
        let events = events.collect();
        self.transactions.push(events);
    }
}
