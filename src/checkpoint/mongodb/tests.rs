//! The store against a server that does what a test says: answers that are lost, writes that arrive late, primaries that are none.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use bson::doc;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::checkpoint::BackendCheckpoint;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Good,
    /// It is applied, and the answer is lost.
    AnswerLost,
    /// It is not applied, and nobody says so.
    Lost,
    /// It is applied after so many other calls, if it still can be.
    Late(usize),
    /// A read is answered with the state before the last change.
    Stale,
}

/// The document and what is on its way to it.
#[derive(Default)]
struct World {
    document: Option<Document>,
    before: Option<Document>,
    late: Vec<(usize, Version, Document)>,
    fates: VecDeque<Fate>,
    /// Every state that there was, in order.
    history: Vec<Document>,
    /// Bytes of the changes asked for.
    changed_bytes: Vec<usize>,
    pauses: usize,
    /// Called at every pause, for what others do meanwhile.
    meanwhile: Option<Meanwhile>,
}

type Meanwhile = Box<dyn FnMut(&mut World)>;

impl World {
    fn set(&mut self, document: Option<Document>) {
        self.before = std::mem::replace(&mut self.document, document);
        self.history.extend(self.document.clone());
    }

    fn apply(&mut self, expected: &Version, change: &Document) -> bool {
        let fits = |found: &Document| Kept::read(found.clone()).is_ok_and(|found| found.version == *expected);
        let Some(mut document) = self.document.clone().filter(fits) else { return false };
        for (key, value) in change.get_document("$set").unwrap() {
            document.insert(key, value.clone());
        }
        for (key, _) in change.get_document("$unset").into_iter().flatten() {
            document.remove(key);
        }
        self.set(Some(document));
        true
    }

    fn next_fate(&mut self) -> Fate {
        for (left, ..) in &mut self.late {
            *left = left.saturating_sub(1);
        }
        let (due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.late).into_iter().partition(|(left, ..)| *left == 0);
        self.late = waiting;
        for (_, expected, change) in due {
            self.apply(&expected, &change);
        }
        self.fates.pop_front().unwrap_or(Fate::Good)
    }

    fn kept(&self) -> Kept {
        Kept::read(self.document.clone().expect("there is one")).unwrap()
    }
}

#[derive(Clone, Default)]
struct Fake(Rc<RefCell<World>>);

fn lost<T>() -> Result<T, Trouble> {
    Err(Trouble("no answer".into()))
}

impl Documents for Fake {
    fn read(&mut self) -> Result<Option<Document>, Trouble> {
        let mut world = self.0.borrow_mut();
        match world.next_fate() {
            Fate::Good => Ok(world.document.clone()),
            Fate::Stale if world.before.is_some() => Ok(world.before.clone()),
            Fate::Stale => Ok(world.document.clone()),
            Fate::AnswerLost | Fate::Lost | Fate::Late(_) => lost(),
        }
    }

    fn insert(&mut self, document: Document) -> Result<bool, Trouble> {
        let mut world = self.0.borrow_mut();
        let fate = world.next_fate();
        let fits = world.document.is_none();
        match fate {
            Fate::Good | Fate::Stale | Fate::AnswerLost if fits => world.set(Some(document)),
            _ => {}
        }
        if matches!(fate, Fate::Good | Fate::Stale) { Ok(fits) } else { lost() }
    }

    fn update(&mut self, expected: &Version, change: Document) -> Result<bool, Trouble> {
        let mut world = self.0.borrow_mut();
        world.changed_bytes.push(change.to_vec().unwrap().len());
        match world.next_fate() {
            Fate::Good | Fate::Stale => Ok(world.apply(expected, &change)),
            Fate::AnswerLost => {
                world.apply(expected, &change);
                lost()
            }
            Fate::Lost => lost(),
            Fate::Late(calls) => {
                world.late.push((calls, expected.clone(), change));
                lost()
            }
        }
    }

    fn overwrite(&mut self, document: Document) -> Result<(), Trouble> {
        self.0.borrow_mut().set(Some(document));
        Ok(())
    }

    fn pause(&mut self, _: Duration) {
        let mut world = self.0.borrow_mut();
        world.pauses += 1;
        if let Some(mut meanwhile) = world.meanwhile.take() {
            meanwhile(&mut world);
            world.meanwhile = Some(meanwhile);
        }
    }
}

fn place() -> MongoPlace {
    let text = |text: &str| text.to_owned();
    MongoPlace { uri: text("mongodb://u:secret@h/"), database: text("d"), collection: text("c"), node: text("n1") }
}

fn store(server: &Fake) -> Store<Fake> {
    Store::new(server.clone(), place(), Duration::from_secs(5), None)
}

fn at(time: u64) -> Checkpoint {
    let backend = BackendCheckpoint {
        name: "main".into(),
        lineage: 0xfeed_0000_0000_0001,
        source: "replica set rs0".into(),
        // Above what a signed number of 64 bits holds, as cluster times will be.
        time: 0xf000_0000_0000_0000 + time,
        k: 2,
        token: Some(vec![5, 0, 0, 0, 0]),
    };
    Checkpoint { backends: vec![backend], gateways: vec!["g1".into(), "g2".into()] }
}

fn time_of(checkpoint: &Checkpoint) -> u64 {
    checkpoint.backends[0].time - 0xf000_0000_0000_0000
}

#[test]
fn what_was_saved_last_is_what_the_next_owner_goes_on_from() {
    let server = Fake::default();
    let mut first = store(&server);
    assert_eq!(first.claim().unwrap(), None);
    first.write(true, Some(&at(1))).unwrap();
    first.write(true, Some(&at(2))).unwrap();
    first.release().unwrap();
    let mut second = store(&server);
    assert_eq!(second.load().unwrap(), Some(at(2)));
    assert_eq!(second.claim().unwrap(), Some(at(2)));
    let kept = server.0.borrow().kept();
    assert_eq!((kept.version.epoch, kept.alive), (2, true));
    second.reset().unwrap();
    assert_eq!(store(&server).claim().unwrap(), None);
}

#[test]
fn who_was_taken_over_from_can_write_no_more_and_says_who_took_it() {
    let server = Fake::default();
    let (mut old, mut new) = (store(&server), store(&server));
    old.claim().unwrap();
    old.write(true, Some(&at(1))).unwrap();
    assert_eq!(new.claim().unwrap(), Some(at(1)));
    let error = old.write(true, Some(&at(2))).unwrap_err();
    assert!(error.is_final(), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("two owners") && text.contains("epoch 2") && text.contains("checkpoint.mongodb.node"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
    new.write(true, Some(&at(3))).unwrap();
    assert!(old.write(true, Some(&at(4))).unwrap_err().is_final());
    assert!(old.release().unwrap_err().is_final());
    let kept = server.0.borrow().kept();
    assert_eq!((kept.checkpoint, kept.alive), (Some(at(3)), true));
}

#[test]
fn an_owner_that_comes_between_reading_and_writing_wins() {
    let server = Fake::default();
    let (mut old, mut new) = (store(&server), store(&server));
    old.claim().unwrap();
    // The answer is lost; before the old owner looks, another one claims.
    server.0.borrow_mut().fates = [Fate::Lost, Fate::Lost].into();
    let error = old.write(true, Some(&at(1))).unwrap_err();
    assert!(!error.is_final(), "nothing is known: {error}");
    new.claim().unwrap();
    assert!(old.write(true, Some(&at(2))).unwrap_err().is_final());
    assert_eq!(server.0.borrow().kept().checkpoint, None);
}

#[test]
fn a_write_that_was_applied_without_an_answer_is_found_and_not_made_twice() {
    let server = Fake::default();
    let mut one = store(&server);
    one.claim().unwrap();
    server.0.borrow_mut().fates = [Fate::AnswerLost].into();
    let states = server.0.borrow().history.len();
    one.write(true, Some(&at(1))).unwrap();
    assert_eq!(server.0.borrow().history.len(), states + 1);
    // The reads after it fail too: the next call begins with one.
    server.0.borrow_mut().fates = [Fate::AnswerLost, Fate::Lost].into();
    assert!(matches!(one.write(true, Some(&at(2))), Err(CheckpointError::Unavailable { .. })));
    one.write(true, Some(&at(3))).unwrap();
    let seqs: Vec<i64> = server.0.borrow().history.iter().map(|state| state.get_i64("seq").unwrap()).collect();
    assert_eq!(seqs, [1, 2, 3, 4]);
    assert_eq!(server.0.borrow().kept().checkpoint, Some(at(3)));
}

#[test]
fn a_write_that_arrives_late_never_replaces_a_newer_one() {
    let server = Fake::default();
    let mut one = store(&server);
    one.claim().unwrap();
    server.0.borrow_mut().fates = [Fate::Late(4), Fate::Lost].into();
    one.write(true, Some(&at(1))).unwrap_err();
    one.write(true, Some(&at(2))).unwrap();
    one.write(true, Some(&at(3))).unwrap();
    one.load().unwrap();
    assert!(server.0.borrow().late.is_empty(), "it has arrived");
    assert_eq!(server.0.borrow().kept().checkpoint, Some(at(3)));
}

#[test]
fn an_answer_older_than_what_was_confirmed_is_an_error_and_nothing_to_go_on_from() {
    let server = Fake::default();
    let mut one = store(&server);
    one.claim().unwrap();
    one.write(true, Some(&at(1))).unwrap();
    one.write(true, Some(&at(2))).unwrap();
    server.0.borrow_mut().fates = [Fate::Lost, Fate::Stale].into();
    let error = one.write(true, Some(&at(3))).unwrap_err().to_string();
    assert!(error.contains("state 2 of epoch 1") && error.contains("confirmed state 3"), "{error}");
    one.write(true, Some(&at(4))).unwrap();
    // The same where the older state is of the owner before: this process is not told that it has lost what it owns.
    let mut two = store(&server);
    two.claim().unwrap();
    server.0.borrow_mut().fates = [Fate::Lost, Fate::Stale].into();
    let error = two.write(true, Some(&at(5))).unwrap_err();
    assert!(!error.is_final(), "{error}");
}

#[test]
fn a_document_that_is_removed_or_put_back_from_a_backup_stops_its_owner() {
    let server = Fake::default();
    let mut one = store(&server);
    one.claim().unwrap();
    one.write(true, Some(&at(1))).unwrap();
    server.0.borrow_mut().set(None);
    assert!(matches!(one.write(true, Some(&at(2))), Err(CheckpointError::Removed { .. })));
    assert!(server.0.borrow().document.is_none());

    // An older epoch that another process has made into the same number again.
    let mut two = store(&server);
    two.claim().unwrap();
    let mut document = server.0.borrow().document.clone().unwrap();
    document.get_document_mut("owner").unwrap().insert("id", "another");
    server.0.borrow_mut().set(Some(document));
    assert!(two.write(true, Some(&at(2))).unwrap_err().is_final());
}

#[test]
fn what_is_no_checkpoint_is_refused_by_name_and_left_alone_until_it_is_reset() {
    let server = Fake::default();
    let mut one = store(&server);
    one.claim().unwrap();
    one.write(true, Some(&at(1))).unwrap();
    let good = server.0.borrow().document.clone().unwrap();
    let change = |change: &dyn Fn(&mut Document)| {
        let mut document = good.clone();
        change(&mut document);
        document
    };
    let bad: Vec<(Document, &str)> = vec![
        (doc! { "_id": "n1" }, "no field `format`"),
        (change(&|d| _ = d.insert("format", 2_i64)), "format is 2; this program reads format 1"),
        (change(&|d| _ = d.insert("format", "1")), "format is \"1\""),
        (change(&|d| _ = d.remove("seq")), "seq"),
        (change(&|d| _ = d.insert("seq", "42")), "invalid type"),
        (change(&|d| _ = d.insert("seq", 0_i64)), "above zero"),
        (change(&|d| _ = d.remove("gateways")), "only one of"),
        (change(&|d| _ = d.insert("surprise", 1)), "surprise"),
        (change(&|d| _ = d.insert("backends", vec![doc! { "name": "main" }])), "lineage"),
        (change(&|d| _ = d.get_document_mut("owner").unwrap().remove("id")), "id"),
    ];
    for (document, why) in bad {
        server.0.borrow_mut().set(Some(document.clone()));
        for error in [store(&server).load().unwrap_err(), store(&server).claim().unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains(why), "{why} is not in: {text}");
            assert!(text.contains("\"n1\" in d.c at mongodb://***@h/") && text.contains("checkpoint reset"), "{text}");
        }
        assert_eq!(server.0.borrow().document.as_ref(), Some(&document));
        let mut after = store(&server);
        after.reset().unwrap();
        assert_eq!(store(&server).load().unwrap(), None);
        assert!(one.write(true, Some(&at(2))).unwrap_err().is_final());
        one = after;
    }
}

#[test]
fn a_file_counts_until_there_is_a_document_and_not_after_a_reset() {
    let folder = tempfile::tempdir().unwrap();
    let server = Fake::default();
    let file = || FileStore::open(folder.path()).unwrap();
    file().save(&at(7)).unwrap();
    let store = || Store::new(server.clone(), place(), Duration::from_secs(5), Some(file()));
    assert_eq!(store().load().unwrap(), Some(at(7)));
    // The answer to the first write is lost.
    server.0.borrow_mut().fates = [Fate::Good, Fate::Good, Fate::AnswerLost].into();
    let mut one = store();
    assert_eq!(one.claim().unwrap(), Some(at(7)));
    one.write(true, Some(&at(8))).unwrap();
    one.release().unwrap();
    assert_eq!(store().claim().unwrap(), Some(at(8)));
    store().reset().unwrap();
    assert_eq!(store().claim().unwrap(), None);
}

#[test]
fn an_owner_that_lives_is_seen_by_its_writing_and_one_that_doesnt_by_its_silence() {
    let server = Fake::default();
    let mut looker = store(&server);
    assert_eq!(looker.owned_elsewhere().unwrap(), None);
    let mut owner = store(&server);
    owner.claim().unwrap();
    owner.write(true, Some(&at(1))).unwrap();
    // It is silent.
    assert_eq!(looker.owned_elsewhere().unwrap(), None);
    assert_eq!(server.0.borrow().pauses, 20);
    // It writes after a while, the same as before.
    let expected = owner.name.clone();
    let mut pauses = 0;
    server.0.borrow_mut().meanwhile = Some(Box::new(move |world| {
        pauses += 1;
        if pauses == 12 {
            let before = world.kept();
            let mut after = before.clone();
            after.version.seq += 1;
            let change = after.change_from(&before, &after.write("n1").unwrap());
            assert!(world.apply(&before.version, &change));
        }
    }));
    assert_eq!(looker.owned_elsewhere().unwrap(), Some(expected));
    assert_eq!(server.0.borrow().pauses, 32);
    server.0.borrow_mut().meanwhile = None;
    // The number that its document counts has moved without it, which it finds and goes on from.
    owner.release().unwrap();
    assert_eq!(looker.owned_elsewhere().unwrap(), None);
    assert_eq!(server.0.borrow().pauses, 32, "there is nothing to wait for");
}

/// `[a-z0-9]` of the longest name that a Gateway may have.
fn long_names(count: usize, length: usize) -> Vec<String> {
    (0..count).map(|n| format!("{n:0length$}")).collect()
}

#[test]
fn a_hundred_thousand_gateways_fit_and_are_only_written_when_they_change() {
    let server = Fake::default();
    let mut one = store(&server);
    one.claim().unwrap();
    let many = |time| Checkpoint { gateways: long_names(100_000, 128), ..at(time) };
    one.write(true, Some(&many(1))).unwrap();
    one.write(true, Some(&many(2))).unwrap();
    let (first, second) = (server.0.borrow().changed_bytes[0], server.0.borrow().changed_bytes[1]);
    assert!(first > 12_000_000 && second < 1_000, "{first} and {second} bytes");
    assert_eq!(store(&server).load().unwrap(), Some(many(2)));

    let too_many = Checkpoint { gateways: long_names(130_000, 128), ..at(3) };
    let error = one.write(true, Some(&too_many)).unwrap_err();
    assert!(!error.is_final(), "{error}");
    assert!(error.to_string().contains("130000 Gateways"), "{error}");
    one.write(true, Some(&many(4))).unwrap();
    assert_eq!(store(&server).load().unwrap(), Some(many(4)));
}

/// Any number of processes that claim and save over each other, on a server and a network that fail in every way at every call.
#[test]
fn whatever_fails_the_document_never_goes_back_and_nobody_is_told_a_save_that_isnt_there() {
    let mut seen = [0_u32; 4];
    for seed in 0..3_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let server = Fake::default();
        let mut owners: Vec<(Store<Fake>, u64)> = Vec::new();
        for _ in 0..60 {
            let fates = (0..40).map(|_| match random.random_range(0..14) {
                0 => Fate::AnswerLost,
                1 => Fate::Lost,
                2 => Fate::Late(random.random_range(1..12)),
                3 => Fate::Stale,
                _ => Fate::Good,
            });
            server.0.borrow_mut().fates = fates.collect();
            if owners.is_empty() || random.random_range(0..12) == 0 {
                let mut new = store(&server);
                if let Ok(kept) = new.claim() {
                    // It goes on from what it was given, and nothing that was confirmed may be missing from that.
                    let kept = kept.as_ref().map_or(0, time_of);
                    let confirmed = owners.iter().map(|(_, confirmed)| *confirmed).max().unwrap_or(0);
                    assert!(kept >= confirmed, "seed {seed}: {confirmed} was confirmed, and {kept} is gone on from");
                    owners.push((new, kept));
                    seen[0] += 1;
                }
                continue;
            }
            let which = random.random_range(0..owners.len());
            let is_newest = which == owners.len() - 1;
            let (owner, confirmed) = &mut owners[which];
            // Later than all it has had, tried ones included.
            let known = server
                .0
                .borrow()
                .document
                .as_ref()
                .map_or(0, |_| server.0.borrow().kept().checkpoint.as_ref().map_or(0, time_of));
            let next = at((*confirmed).max(known) + 1);
            match owner.write(true, Some(&next)) {
                Ok(()) => {
                    assert!(is_newest, "seed {seed}: an owner of before has written");
                    assert_eq!(server.0.borrow().kept().checkpoint, Some(next.clone()), "seed {seed}");
                    *confirmed = time_of(&next);
                    seen[1] += 1;
                }
                Err(error) if error.is_final() => {
                    assert!(!is_newest || server.0.borrow().kept().version.id != owner.id, "seed {seed}: {error}");
                    seen[2] += 1;
                }
                Err(_) => seen[3] += 1,
            }
        }
        let world = server.0.borrow();
        let mut last = (0, 0, 0);
        for state in &world.history {
            let kept = Kept::read(state.clone()).unwrap();
            let now = (kept.version.epoch, kept.version.seq, kept.checkpoint.as_ref().map_or(0, time_of));
            assert!(now.0 >= last.0 && now.1 == last.1 + 1 && now.2 >= last.2, "seed {seed}: {now:?} after {last:?}");
            last = now;
        }
    }
    println!("claims, saves, final errors, others: {seen:?}");
    assert!(seen.iter().all(|count| *count > 500), "{seen:?}");
}
