//! The section `checkpoint`: when and where the place to go on from is kept.

use std::time::Duration;

use super::{
    Checkpoint, CheckpointPlace, Given, Missing, Oversize,
    history_lost::history_lost,
    read::Section,
    show_duration,
    validate::{HOUR, MILLISECOND, SECOND, valid_database, valid_gateway_name},
};
use crate::{checkpoint::MongoPlace, ingest::source::mongodb::redact_uri};

pub(super) fn checkpoint(mut section: Section<'_>) -> Checkpoint {
    let policy = [("fail", Missing::Fail), ("from_now", Missing::FromNow)];
    let is_mongodb = section.choice("store", false, &[("file", false), ("mongodb", true)]);
    let every = section.duration("every", 5 * SECOND, 10 * MILLISECOND, HOUR);
    if is_mongodb && every > CHECKPOINT_BEAT_MAX {
        let value = Some(format!("{:?}", show_duration(every)));
        let message = format!(
            "is too long for store = \"mongodb\", where the owner shows by it that it lives; allowed: up to {}",
            show_duration(CHECKPOINT_BEAT_MAX)
        );
        let origin = section.origin().clone();
        section.refuse("every", origin, value, message);
    }
    let place = mongo_place(section.section("mongodb"), is_mongodb);
    let checkpoint = Checkpoint {
        place: place.map_or(CheckpointPlace::File, CheckpointPlace::Mongodb),
        every,
        events: section.number("events", 1_000, 1, 1_000_000_000),
        on_history_lost: history_lost(&mut section),
        oversize: section.choice("oversize", Oversize::Fail, &[("fail", Oversize::Fail), ("skip", Oversize::Skip)]),
        on_missing: section.choice("on_missing", Missing::FromNow, &policy),
    };
    section.finish();
    checkpoint
}

/// Where the store is shared, its owner writes at least this often.
const CHECKPOINT_BEAT_MAX: Duration = Duration::from_secs(30);

/// `None` where it isn't `wanted`, or not whole. Empty text stands for "none", so that the default file can show the keys.
fn mongo_place(mut section: Section<'_>, wanted: bool) -> Option<MongoPlace> {
    let before = section.problem_count();
    let uri = section.text("uri").filter(|uri| !uri.value.is_empty());
    let name = |text: &str, fine: bool, what: &str| {
        fine.then(|| text.to_owned())
            .ok_or_else(|| format!("is not the name of a {what}; allowed: such as \"streamer\""))
    };
    let database =
        section.parsed("database", "streamer".to_owned(), |text| name(text, valid_database(text), "database"));
    let collection = section.parsed("collection", "checkpoints".to_owned(), |text| {
        name(text, !text.is_empty() && text.len() < 200 && !text.contains(['\0', '$']), "collection")
    });
    let node = section.parsed("node", String::new(), |text| {
        let fine = text.is_empty() || valid_gateway_name(text);
        fine.then(|| text.to_owned())
            .ok_or_else(|| "is not a node's name; allowed: 1 to 128 of a-z, A-Z, 0-9, _ and -".into())
    });
    if let Some(Given { value, origin }) = &uri
        && !value.starts_with("mongodb://")
        && !value.starts_with("mongodb+srv://")
    {
        let shown = Some(format!("{:?}", redact_uri(value)));
        let message = "is not a MongoDB connection string; allowed: mongodb://… or mongodb+srv://…";
        section.refuse("uri", origin.clone(), shown, message.into());
    }
    if wanted && section.problem_count() == before {
        let missing = [
            ("uri", uri.is_none(), "a connection string such as \"mongodb://127.0.0.1:27017/?replicaSet=rs0\""),
            ("node", node.is_empty(), "a name that no other node has, and that stays the same"),
        ];
        for (key, _, allowed) in missing.into_iter().filter(|(_, is_missing, _)| *is_missing) {
            let message = format!("is missing, and [checkpoint] store = \"mongodb\" needs it; allowed: {allowed}");
            let origin = section.origin().clone();
            section.refuse(key, origin, None, message);
        }
    }
    section.finish();
    Some(MongoPlace { uri: uri.filter(|_| wanted)?.value, database, collection, node })
}
