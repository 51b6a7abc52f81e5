//! Frames on a stream, and messages in frames. Without IO: bytes in, messages out.
//!
//! A frame is `length` (u32, little-endian: the bytes that follow it), `type` (one byte), `body`. A message is any number of
//! frames of the type [`MORE`] and one frame of the message's own type; its body is theirs, joined. `docs/protocol.md` has
//! every byte.
//!
//! Invariants of [`Decoder`]:
//! - What it holds never exceeds what it was fed, and of one message never more than `max_body_bytes` and a frame's header.
//! - No length that it reads makes it allocate: it is compared with what is there first.
//! - After an error nothing more is decoded. The stream has no place to go on from.

use std::marker::PhantomData;

use bincode::{
    Encode,
    enc::{EncoderImpl, write::Writer},
    error::EncodeError,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    Ack, Delivery, ErrorCode, Reply, Request,
    batch::{EventEntryRef, begin_events},
    body::{BodyError, CONFIG, Message},
};

/// Bytes before a body: the length and the type.
pub const HEADER_BYTES: usize = LENGTH_BYTES + 1;

/// Largest body of one frame: two documents of the source's largest size, and room for what names them. A longer body goes
/// out in several frames.
pub const MAX_FRAME_BODY_BYTES: usize = 2 * 16 * 1024 * 1024 + 1024 * 1024;

/// Largest body of a message, all its frames together, that a Gateway must accept; also what a shard accepts unless its
/// `Welcome` says less.
pub const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

/// Largest body that a shard takes before it knows who speaks: a hello is small.
pub const MAX_HELLO_BODY_BYTES: usize = 64 * 1024;

/// Type of a frame whose body goes on in the next frame.
pub const MORE: u8 = 0x00;

const LENGTH_BYTES: usize = 4;

/// Room that a decoder keeps while nothing waits in it.
const IDLE_BUFFER_BYTES: usize = 64 * 1024;

// A length must fit its field, and one full frame must fit into a message.
const _: () = assert!(MAX_FRAME_BODY_BYTES < u32::MAX as usize);
const _: () = assert!(MAX_FRAME_BODY_BYTES <= MAX_BODY_BYTES);
const _: () = assert!(MAX_BODY_BYTES <= u32::MAX as usize);

/// Frame types of [`Request`].
pub(crate) mod request {
    pub(crate) const HELLO: u8 = 0x01;
    pub(crate) const SUBSCRIBE: u8 = 0x02;
    pub(crate) const UNSUBSCRIBE: u8 = 0x03;
    pub(crate) const SYNC_DONE: u8 = 0x04;
    pub(crate) const PING: u8 = 0x05;
}

/// Frame types of [`Reply`].
pub(crate) mod reply {
    pub(crate) const WELCOME: u8 = 0x11;
    pub(crate) const SUBSCRIBED: u8 = 0x12;
    pub(crate) const UNSUBSCRIBED: u8 = 0x13;
    pub(crate) const SYNCED: u8 = 0x14;
    pub(crate) const PONG: u8 = 0x15;
    pub(crate) const REFUSED: u8 = 0x1f;
}

/// Frame type of [`Ack`].
pub(crate) mod ack {
    pub(crate) const ACK: u8 = 0x21;
}

/// Frame types of [`Delivery`].
pub(crate) mod delivery {
    pub(crate) const EVENTS: u8 = 0x31;
    pub(crate) const BOUND: u8 = 0x32;
    pub(crate) const HEARTBEAT: u8 = 0x33;
    pub(crate) const GAP: u8 = 0x34;
    pub(crate) const RESYNC: u8 = 0x35;
    pub(crate) const CATCHING_UP: u8 = 0x36;
    pub(crate) const CAUGHT_UP: u8 = 0x37;
    pub(crate) const CLOSED: u8 = 0x38;
    pub(crate) const GO_AWAY: u8 = 0x39;
}

/// Why bytes are not the protocol's. Nothing can be decoded after one of these; the connection is to be closed with
/// [`WireError::code`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a body of {len} bytes where at most {max} are allowed")]
    FrameTooLarge { len: usize, max: usize },
    /// Only of what a Gateway sends: types that a server sends and we don't know are skipped.
    #[error("frame type {kind:#04x} is not one of this stream's")]
    UnknownType { kind: u8 },
    #[error("protocol version {version} where {supported} is spoken")]
    UnsupportedVersion { version: u16, supported: u16 },
    #[error("{message} can't be decoded: {reason}")]
    Malformed { message: &'static str, reason: String },
}

impl WireError {
    /// What the connection is closed with.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnsupportedVersion { .. } => ErrorCode::UnsupportedVersion,
            Self::FrameTooLarge { .. } | Self::UnknownType { .. } | Self::Malformed { .. } => {
                ErrorCode::ProtocolViolation
            }
        }
    }
}

/// Appends the request's frames to `buffer`.
pub fn encode_request(message: &Request, buffer: &mut BytesMut) {
    match message {
        Request::Hello(hello) => frame(
            buffer,
            request::HELLO,
            (crate::PROTOCOL_VERSION, &hello.gateway, &hello.token, &hello.agent, hello.capabilities),
        ),
        Request::Subscribe { request, items } => frame(buffer, request::SUBSCRIBE, (request, items)),
        Request::Unsubscribe { request, keys } => frame(buffer, request::UNSUBSCRIBE, (request, keys)),
        Request::SyncDone { request } => frame(buffer, request::SYNC_DONE, request),
        Request::Ping { nonce } => frame(buffer, request::PING, nonce),
    }
}

/// Appends the reply's frames to `buffer`.
pub fn encode_reply(message: &Reply, buffer: &mut BytesMut) {
    match message {
        Reply::Welcome(welcome) => frame(buffer, reply::WELCOME, welcome.as_ref()),
        Reply::Subscribed { request, results } => frame(buffer, reply::SUBSCRIBED, (request, results)),
        Reply::Unsubscribed { request } => frame(buffer, reply::UNSUBSCRIBED, request),
        Reply::Synced { request } => frame(buffer, reply::SYNCED, request),
        Reply::Pong { nonce } => frame(buffer, reply::PONG, nonce),
        Reply::Refused { code, message } => frame(buffer, reply::REFUSED, (code, message)),
    }
}

/// Appends the ack's frame to `buffer`.
pub fn encode_ack(message: &Ack, buffer: &mut BytesMut) {
    frame(buffer, ack::ACK, message);
}

/// Appends the message's frames to `buffer`. An `Events` without entries leaves nothing.
pub fn encode_delivery(message: &Delivery, buffer: &mut BytesMut) {
    match message {
        Delivery::Events(entries) => {
            let mut events = begin_events(buffer);
            entries.iter().for_each(|entry| events.push(&EventEntryRef::from(entry)));
            events.finish();
        }
        Delivery::Bound(bound) => frame(buffer, delivery::BOUND, bound.as_ref()),
        Delivery::Heartbeat { last_seq, positions } => frame(buffer, delivery::HEARTBEAT, (last_seq, positions)),
        Delivery::Gap { seq, position, reason, handles } => {
            frame(buffer, delivery::GAP, (seq, position, reason, handles));
        }
        Delivery::Resync { seq, handle, reason, live_from } => {
            frame(buffer, delivery::RESYNC, (seq, handle, reason, live_from));
        }
        Delivery::CatchingUp { handles } => frame(buffer, delivery::CATCHING_UP, handles),
        Delivery::CaughtUp { handles } => frame(buffer, delivery::CAUGHT_UP, handles),
        Delivery::Closed { handle, reason } => frame(buffer, delivery::CLOSED, (handle, reason)),
        Delivery::GoAway { within_ms, reason } => frame(buffer, delivery::GO_AWAY, (within_ms, reason)),
    }
}

/// Messages out of the bytes of one stream, however these are cut into pieces.
///
/// Feed it, then call [`Decoder::next`] until that gives `None`, then feed it again: what it holds is bounded by the longest
/// message and the longest piece that it is fed.
#[derive(Debug)]
pub struct Decoder<M> {
    /// Bytes that came and are not decoded, from a frame's first byte on.
    buffer: BytesMut,
    /// Bodies of the frames of type [`MORE`] that came for the message.
    partial: BytesMut,
    /// Whether a frame of type [`MORE`] came that no frame with a message's type has followed yet.
    continued: bool,
    max_body_bytes: usize,
    failed: Option<WireError>,
    messages: PhantomData<fn() -> M>,
}

impl<M: Message> Decoder<M> {
    /// `max_body_bytes` bounds a message's body, all its frames together. More than [`MAX_BODY_BYTES`] is taken for that.
    pub fn new(max_body_bytes: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            partial: BytesMut::new(),
            continued: false,
            max_body_bytes: max_body_bytes.min(MAX_BODY_BYTES),
            failed: None,
            messages: PhantomData,
        }
    }

    /// Another bound from the next frame on: a shard raises it once it knows who speaks.
    pub fn set_max_body_bytes(&mut self, max_body_bytes: usize) {
        self.max_body_bytes = max_body_bytes.min(MAX_BODY_BYTES);
    }

    /// Appends bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Appends bytes of the stream, without a copy where nobody else holds them and nothing waits before them.
    pub fn push(&mut self, bytes: Bytes) {
        if self.failed.is_some() {
            return;
        }
        if self.buffer.is_empty() {
            match bytes.try_into_mut() {
                Ok(owned) => self.buffer = owned,
                Err(shared) => self.buffer.extend_from_slice(&shared),
            }
        } else {
            self.buffer.extend_from_slice(&bytes);
        }
    }

    /// The next whole message. `None`: more bytes are needed. The first error is given again at every later call.
    #[expect(clippy::should_implement_trait, reason = "an iterator's `None` is its end; this one goes on when fed")]
    pub fn next(&mut self) -> Result<Option<M>, WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.decode_next().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.buffer = BytesMut::new();
            self.partial = BytesMut::new();
        })
    }

    /// Whether no part of a message is waiting for its rest. A stream that ends elsewhere was cut.
    pub fn is_between_messages(&self) -> bool {
        self.buffer.is_empty() && !self.continued
    }

    fn decode_next(&mut self) -> Result<Option<M>, WireError> {
        loop {
            let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
            let length = u32::from_le_bytes(*length) as usize;
            let Some(body_bytes) = length.checked_sub(1) else {
                return Err(WireError::Malformed {
                    message: "frame",
                    reason: "length 0 has no room for a type".into(),
                });
            };
            if body_bytes > MAX_FRAME_BODY_BYTES {
                return Err(WireError::FrameTooLarge { len: body_bytes, max: MAX_FRAME_BODY_BYTES });
            }
            if self.partial.len() + body_bytes > self.max_body_bytes {
                return Err(WireError::FrameTooLarge {
                    len: self.partial.len() + body_bytes,
                    max: self.max_body_bytes,
                });
            }
            let Some(&kind) = self.buffer.get(LENGTH_BYTES) else { return Ok(None) };
            let known = M::name(kind);
            if known.is_none() && kind != MORE && !M::FROM_SERVER {
                return Err(WireError::UnknownType { kind });
            }
            let end = LENGTH_BYTES + length;
            if self.buffer.len() < end {
                return Ok(None);
            }
            let body = &self.buffer[HEADER_BYTES..end];
            if kind == MORE {
                self.partial.extend_from_slice(body);
                self.continued = true;
                self.consume(end);
                continue;
            }
            let decoded = match known {
                None => None,
                Some(name) if self.continued => {
                    self.partial.extend_from_slice(body);
                    Some(decode_body(name, kind, &self.partial)?)
                }
                Some(name) => Some(decode_body(name, kind, body)?),
            };
            self.consume(end);
            self.partial = BytesMut::new();
            self.continued = false;
            if decoded.is_some() {
                return Ok(decoded);
            }
        }
    }

    /// Drops a decoded frame. An idle stream keeps no room of the size of the largest message that it carried.
    fn consume(&mut self, bytes: usize) {
        self.buffer.advance(bytes);
        if self.buffer.is_empty() && self.buffer.capacity() > IDLE_BUFFER_BYTES {
            self.buffer = BytesMut::new();
        }
    }
}

fn decode_body<M: Message>(name: &'static str, kind: u8, body: &[u8]) -> Result<M, WireError> {
    M::decode(kind, body).map_err(|error| match error {
        BodyError::Version(version) => WireError::UnsupportedVersion { version, supported: crate::PROTOCOL_VERSION },
        BodyError::Bytes(error) => WireError::Malformed { message: name, reason: error.to_string() },
        BodyError::Rule(reason) => WireError::Malformed { message: name, reason },
    })
}

/// Writes one message whose body is `fields` one after the other.
fn frame(buffer: &mut BytesMut, kind: u8, fields: impl Encode) {
    let start = open_frame(buffer);
    encode_into(buffer, fields);
    close_frame(buffer, start, kind, MAX_FRAME_BODY_BYTES);
}

/// Makes room for a header. The body is what is appended until [`close_frame`] is given the place that this returns.
pub(crate) fn open_frame(buffer: &mut BytesMut) -> usize {
    let start = buffer.len();
    buffer.put_bytes(0, HEADER_BYTES);
    start
}

/// Writes the header of the frame that began at `start`, or cuts its body into several frames.
pub(crate) fn close_frame(buffer: &mut BytesMut, start: usize, kind: u8, max_frame_body: usize) {
    let body_bytes = buffer.len() - start - HEADER_BYTES;
    if body_bytes <= max_frame_body {
        buffer[start..start + HEADER_BYTES].copy_from_slice(&header(kind, body_bytes));
        return;
    }
    let body = buffer.split_off(start + HEADER_BYTES);
    buffer.truncate(start);
    buffer.reserve(body_bytes + HEADER_BYTES * (1 + body_bytes / max_frame_body));
    let mut parts = body.chunks(max_frame_body).peekable();
    while let Some(part) = parts.next() {
        let kind = if parts.peek().is_some() { MORE } else { kind };
        buffer.extend_from_slice(&header(kind, part.len()));
        buffer.extend_from_slice(part);
    }
}

fn header(kind: u8, body_bytes: usize) -> [u8; HEADER_BYTES] {
    // At most MAX_FRAME_BODY_BYTES, which the assertion at the top keeps below `u32::MAX`.
    let [a, b, c, d] = (body_bytes as u32 + 1).to_le_bytes();
    [a, b, c, d, kind]
}

/// Appends `fields` in the protocol's encoding.
pub(crate) fn encode_into(buffer: &mut BytesMut, fields: impl Encode) {
    fields
        .encode(&mut EncoderImpl::new(Appended(buffer), CONFIG))
        .expect("bincode refuses only locks, paths, times and sequences of unknown length, and a message has none");
}

struct Appended<'a>(&'a mut BytesMut);

impl Writer for Appended<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
