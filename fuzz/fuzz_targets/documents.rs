//! Any bytes as the documents of an update, before a subscription of each kind.
//! `cargo +nightly fuzz run documents`

#![no_main]

#[path = "../../index/tests/exact/model.rs"]
#[allow(dead_code)]
mod model;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use predicate::Mapping;

thread_local! {
    static MODELS: RefCell<[model::Model; 2]> =
        RefCell::new([Mapping::Plain, Mapping::syntrix()].map(model::Model::with_each));
}

fuzz_target!(|bytes: &[u8]| {
    let (before, after) = bytes.split_at(bytes.len() / 2);
    MODELS.with_borrow_mut(|models| {
        models.iter_mut().for_each(|model| model.check_bytes(before, after));
        models.iter_mut().for_each(|model| model.check_bytes(&[], bytes));
    });
});
