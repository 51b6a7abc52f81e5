//! Any bytes as a history of subscriptions that come and go, and of events.
//! `cargo +nightly fuzz run operations`

#![no_main]

#[path = "../../index/tests/exact/model.rs"]
#[allow(dead_code)]
mod model;

use libfuzzer_sys::fuzz_target;
use predicate::Mapping;

fuzz_target!(|bytes: &[u8]| {
    let steps = model::steps_of(bytes);
    for mapping in [Mapping::Plain, Mapping::syntrix()] {
        model::Model::new(mapping).run(&steps);
    }
});
