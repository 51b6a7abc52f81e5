//! The vectors in `wire/vectors` and the transcript in `docs/protocol.md`: a Gateway in another language is tested with them.
//!
//! They are compared with what the code says today. `STREAMER_WRITE_VECTORS=1 cargo test -p wire --test vectors` writes them
//! anew; a change in them is a change of the protocol.

mod messages;
mod session;
mod transcript;

use std::{env, fs, path::PathBuf};

use bytes::BytesMut;
use serde_json::{Value, json};
use wire::{
    Ack, BackendId, Decoder, Delivery, ErrorCode, HEADER_BYTES, Lineage, MAX_BODY_BYTES, Message, PlaceHash, Position,
    Reply, Request, SlotTable, WireError,
};

/// A message of any stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Any {
    Request(Request),
    Reply(Reply),
    Ack(Ack),
    Delivery(Delivery),
}

/// What travels where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Requests,
    Replies,
    Acks,
    Deliveries,
}

impl Stream {
    const ALL: [Self; 4] = [Self::Requests, Self::Replies, Self::Acks, Self::Deliveries];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Requests => "control, Gateway to shard",
            Self::Replies => "control, shard to Gateway",
            Self::Acks => "acks",
            Self::Deliveries => "delivery",
        }
    }

    fn of_name(name: &Value) -> Self {
        Self::ALL
            .into_iter()
            .find(|stream| name == stream.name())
            .unwrap_or_else(|| panic!("no stream is called {name}"))
    }

    /// All messages in the bytes of this stream.
    fn decode(self, bytes: &[u8], max_body_bytes: usize) -> Result<Vec<Any>, WireError> {
        fn all<M: Message>(bytes: &[u8], max: usize, wrap: fn(M) -> Any) -> Result<Vec<Any>, WireError> {
            let mut decoder = Decoder::<M>::new(max);
            decoder.feed(bytes);
            let mut messages = Vec::new();
            while let Some(message) = decoder.next()? {
                messages.push(wrap(message));
            }
            Ok(messages)
        }
        match self {
            Self::Requests => all(bytes, max_body_bytes, Any::Request),
            Self::Replies => all(bytes, max_body_bytes, Any::Reply),
            Self::Acks => all(bytes, max_body_bytes, Any::Ack),
            Self::Deliveries => all(bytes, max_body_bytes, Any::Delivery),
        }
    }
}

impl Any {
    pub(crate) fn stream(&self) -> Stream {
        match self {
            Self::Request(_) => Stream::Requests,
            Self::Reply(_) => Stream::Replies,
            Self::Ack(_) => Stream::Acks,
            Self::Delivery(_) => Stream::Deliveries,
        }
    }

    pub(crate) fn json(&self) -> Value {
        match self {
            Self::Request(message) => serde_json::to_value(message),
            Self::Reply(message) => serde_json::to_value(message),
            Self::Ack(message) => serde_json::to_value(message).map(|fields| json!({ "Ack": fields })),
            Self::Delivery(message) => serde_json::to_value(message),
        }
        .expect("messages are plain data")
    }

    fn of_json(stream: Stream, message: &Value) -> Self {
        let message = message.clone();
        match stream {
            Stream::Requests => serde_json::from_value(message).map(Self::Request),
            Stream::Replies => serde_json::from_value(message).map(Self::Reply),
            Stream::Acks => serde_json::from_value(message["Ack"].clone()).map(Self::Ack),
            Stream::Deliveries => serde_json::from_value(message).map(Self::Delivery),
        }
        .expect("the vector's message is one of the stream's")
    }

    /// The name of the message, as in the document.
    pub(crate) fn name(&self) -> String {
        let json = self.json();
        json.as_object().and_then(|fields| fields.keys().next()).expect("messages are tagged with their name").clone()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut buffer = BytesMut::new();
        match self {
            Self::Request(message) => wire::encode_request(message, &mut buffer),
            Self::Reply(message) => wire::encode_reply(message, &mut buffer),
            Self::Ack(message) => wire::encode_ack(message, &mut buffer),
            Self::Delivery(message) => wire::encode_delivery(message, &mut buffer),
        }
        buffer.to_vec()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("bytes are hexadecimal text");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal")).collect()
}

pub(crate) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

pub(crate) fn writes() -> bool {
    env::var_os("STREAMER_WRITE_VECTORS").is_some_and(|value| value == "1")
}

/// The vectors that are stored under `name`, which are `expected`.
fn stored(name: &str, expected: Value) -> Value {
    let path = repository().join("wire/vectors").join(name);
    if writes() {
        let text = serde_json::to_string_pretty(&expected).expect("plain data") + "\n";
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let stored: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(
        stored, expected,
        "wire/vectors/{name} is not what the code says; if the protocol is meant to change, set STREAMER_WRITE_VECTORS=1"
    );
    stored
}

fn rows(vectors: &Value) -> &[Value] {
    vectors.as_array().expect("vectors are a list")
}

#[test]
fn hashes_and_slots() {
    let places = [
        ("acme", "rooms"),
        ("acme", "rooms/room-1/messages"),
        ("acme", "messages"),
        ("globex", "rooms"),
        ("", ""),
        ("a", "bc"),
        ("ab", "c"),
        ("größe", "räume/ü"),
        ("default", "a-name-that-is-longer-than-the-sixteen-bytes-that-the-hash-treats-apart"),
        (
            "tenant",
            "0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/\
             0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/\
             0123456789/0123456789/0123456789/0123456789",
        ),
    ];
    let places: Vec<Value> = places
        .iter()
        .map(|(tenant, collection)| {
            let place = PlaceHash::of(tenant, collection);
            let hashed = [tenant.as_bytes(), &[0], collection.as_bytes()].concat();
            let owners: serde_json::Map<String, Value> = [1, 2, 3, 5, 8, 4096]
                .map(|shards| (shards.to_string(), json!(SlotTable { shards }.owner(place))))
                .into_iter()
                .collect();
            json!({
                "tenant": tenant, "collection": collection, "hashed": hex(&hashed),
                "xxh3_64": format!("{:016x}", place.0), "slot": place.slot(), "owner_by_shards": owners,
            })
        })
        .collect();
    let backends: Vec<Value> = ["main", "embedded", "rs0", ""]
        .iter()
        .map(|name| json!({ "name": name, "hashed": hex(name.as_bytes()), "backend": BackendId::of_name(name).0 }))
        .collect();
    stored("slots.json", json!({ "places": places, "backends": backends }));
}

#[test]
fn integers() {
    let encode = |value: u128, kind: &str| {
        let config = bincode::config::standard();
        match kind {
            "u16" => bincode::encode_to_vec(value as u16, config),
            "u32" => bincode::encode_to_vec(value as u32, config),
            "u64" => bincode::encode_to_vec(value as u64, config),
            _ => bincode::encode_to_vec(value, config),
        }
        .expect("integers can be encoded")
    };
    let borders: [(&str, &[u128]); 4] = [
        ("u16", &[0, 1, 250, 251, 255, 256, u16::MAX as u128]),
        ("u32", &[0, 250, 251, u16::MAX as u128, 1 << 16, u32::MAX as u128]),
        ("u64", &[0, 250, 251, u16::MAX as u128, 1 << 16, u32::MAX as u128, 1 << 32, u64::MAX as u128]),
        ("u128", &[0, 250, 251, 1 << 16, 1 << 32, u64::MAX as u128, 1 << 64, u128::MAX]),
    ];
    let rows: Vec<Value> = borders
        .iter()
        .flat_map(|(kind, values)| values.iter().map(move |value| (*kind, *value)))
        .map(|(kind, value)| json!({ "type": kind, "value": value.to_string(), "bytes": hex(&encode(value, kind)) }))
        .collect();
    stored("integers.json", Value::Array(rows));
}

#[test]
fn positions() {
    let positions = [(0, 0, 0, 0), (1, 2, 3, 4), (0x9fd1_6a5e, 0xfeed_beef_0000_0001, 0x6650_0000_0000_0001, 251)];
    let expected: Vec<Value> = positions
        .into_iter()
        .map(|(backend, lineage, time, k)| {
            let position = Position { backend: BackendId(backend), lineage: Lineage(lineage), time, k };
            let bytes = bincode::encode_to_vec(position, bincode::config::standard()).expect("plain data");
            json!({ "position": position, "text": position.to_string(), "bytes": hex(&bytes) })
        })
        .collect();
    for row in rows(&stored("positions.json", Value::Array(expected))) {
        let position: Position = serde_json::from_value(row["position"].clone()).expect("a position");
        assert_eq!(row["text"].as_str().map(str::parse), Some(Ok(position)));
    }
}

#[test]
fn frames() {
    let expected: Vec<Value> = messages::all()
        .into_iter()
        .map(|(name, message)| {
            json!({
                "name": name, "stream": message.stream().name(), "message": message.json(), "bytes": hex(&message.encode()),
            })
        })
        .collect();
    for row in rows(&stored("frames.json", Value::Array(expected))) {
        let (stream, bytes) = (Stream::of_name(&row["stream"]), unhex(&row["bytes"]));
        let message = Any::of_json(stream, &row["message"]);
        assert_eq!(message.encode(), bytes, "{}", row["name"]);
        assert_eq!(stream.decode(&bytes, MAX_BODY_BYTES), Ok(vec![message]), "{}", row["name"]);
    }
}

/// What no encoder of ours writes and every receiver must understand.
#[test]
fn frames_to_accept() {
    let expected: Vec<Value> = messages::accepted()
        .into_iter()
        .map(|accepted| {
            let messages: Vec<Value> = accepted.messages.iter().map(Any::json).collect();
            json!({
                "name": accepted.name, "stream": accepted.stream.name(), "bytes": hex(&accepted.bytes), "messages": messages,
            })
        })
        .collect();
    for row in rows(&stored("accepted.json", Value::Array(expected))) {
        let stream = Stream::of_name(&row["stream"]);
        let messages = rows(&row["messages"]).iter().map(|message| Any::of_json(stream, message)).collect();
        assert_eq!(stream.decode(&unhex(&row["bytes"]), MAX_BODY_BYTES), Ok(messages), "{}", row["name"]);
    }
}

#[test]
fn frames_to_refuse() {
    let expected: Vec<Value> = messages::refused()
        .into_iter()
        .map(|(name, stream, bytes, max_body_bytes)| {
            let error = stream.decode(&bytes, max_body_bytes).expect_err(name);
            json!({
                "name": name, "stream": stream.name(), "bytes": hex(&bytes), "max_body_bytes": max_body_bytes,
                "code": error.code(), "quic_code": error.code().quic_code(),
            })
        })
        .collect();
    for row in rows(&stored("refused.json", Value::Array(expected))) {
        let max = row["max_body_bytes"].as_u64().expect("a bound") as usize;
        let error = Stream::of_name(&row["stream"]).decode(&unhex(&row["bytes"]), max).expect_err("refused");
        assert_eq!(json!(error.code()), row["code"], "{}", row["name"]);
    }
}

#[test]
fn session() {
    let expected: Vec<Value> = session::steps()
        .into_iter()
        .map(|step| {
            json!({
                "stream": step.message.stream().name(), "why": step.why, "message": step.message.json(),
                "bytes": hex(&step.message.encode()),
            })
        })
        .collect();
    stored("session.json", Value::Array(expected));
    transcript::check();
}

/// Every code has its row, with both of its numbers.
#[test]
fn the_document_lists_every_code() {
    let path = repository().join("docs/protocol.md");
    let document = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for code in ErrorCode::ALL {
        let name = json!(code);
        let name = name.as_str().expect("a code is told by its name");
        let row = format!("| {} | {} | `{name}` |", code as u32, code.quic_code());
        assert!(document.contains(&row), "docs/protocol.md has no row {row}");
    }
}

#[test]
fn a_frames_header_is_what_the_document_says() {
    let bytes = Any::Ack(Ack { received: 2, done: 1 }).encode();
    assert_eq!(bytes, [3, 0, 0, 0, 0x21, 2, 1]);
    assert_eq!(HEADER_BYTES, 5);
}
