//! Frames on a stream, and messages in frames. Without IO: bytes in, messages out.
//!
//! A frame is `length` (u32, little-endian: the bytes that follow it), `type` (one byte), `body`. A message is any number of
//! frames of the type [`MORE`] and one frame of the message's own type; its body is theirs, joined. `docs/protocol.md` has
//! every byte.
//!
//! Invariants of [`Decoder`]:
//! - What it holds never exceeds what it was fed, and of one message never more than `max_body_bytes` and a frame's header.
//! - No length that it reads makes it allocate: it makes room for a few times of what is there, however much is to come.
//! - A body is copied once. Nothing that was pushed is held on to once more is asked for, so no message keeps a packet alive.
//! - After an error nothing more is decoded. The stream has no place to go on from.

use std::{borrow::Cow, marker::PhantomData};

use bincode::{
    Encode,
    enc::{EncoderImpl, write::Writer},
    error::EncodeError,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    Ack, Delivery, ErrorCode, Reply, Request,
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

/// Room for so many times of what has come is made for a body that comes in pieces: packets of a frame are many, and each time that room is
/// made all that came before is copied.
const GROWTH: usize = 4;

/// Type of a frame whose body goes on in the next frame.
pub const MORE: u8 = 0x00;

const LENGTH_BYTES: usize = 4;

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
        Delivery::Events(events) if events.is_empty() => {}
        Delivery::Events(events) => {
            let start = open_frame(buffer);
            buffer.extend_from_slice(events.body());
            close_frame(buffer, start, delivery::EVENTS, MAX_FRAME_BODY_BYTES);
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
    /// What came last, as far as it was not looked at.
    piece: Bytes,
    /// Of the frame that is being read, `header_bytes` of which have come.
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    /// What has come of the message's body: of its frames of type [`MORE`], and from `frame_start` on of the present frame.
    body: Vec<u8>,
    frame_start: usize,
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
            piece: Bytes::new(),
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            body: Vec::new(),
            frame_start: 0,
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
        self.push(Bytes::copy_from_slice(bytes));
    }

    /// Appends bytes of the stream, without a copy where what was pushed before has been decoded as far as it goes.
    pub fn push(&mut self, bytes: Bytes) {
        if self.failed.is_some() {
            return;
        }
        self.piece = match self.piece.is_empty() {
            true => bytes,
            false => [&self.piece[..], &bytes].concat().into(),
        };
    }

    /// The next whole message. `None`: more bytes are needed. The first error is given again at every later call.
    #[expect(clippy::should_implement_trait, reason = "an iterator's `None` is its end; this one goes on when fed")]
    pub fn next(&mut self) -> Result<Option<M>, WireError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.decode_next().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.piece = Bytes::new();
            self.body = Vec::new();
        })
    }

    /// Whether no part of a message is waiting for its rest. A stream that ends elsewhere was cut.
    pub fn is_between_messages(&self) -> bool {
        self.piece.is_empty() && self.header_bytes == 0 && !self.continued
    }

    fn decode_next(&mut self) -> Result<Option<M>, WireError> {
        loop {
            let Some((kind, body_bytes)) = self.header()? else {
                self.piece = Bytes::new();
                return Ok(None);
            };
            let known = M::name(kind);
            if known.is_none() && kind != MORE && !M::FROM_SERVER {
                return Err(WireError::UnknownType { kind });
            }
            let missing = body_bytes - (self.body.len() - self.frame_start);
            let is_here = missing <= self.piece.len();
            let Some(name) = known.filter(|_| is_here && self.body.is_empty()) else {
                let next = missing.min(self.piece.len());
                if self.body.capacity() - self.body.len() < next {
                    self.body.reserve_exact(missing.min(GROWTH * (self.body.len() + next)));
                }
                self.body.extend_from_slice(&self.piece[..next]);
                self.piece.advance(next);
                if !is_here {
                    self.piece = Bytes::new();
                    return Ok(None);
                }
                self.header_bytes = 0;
                if kind == MORE {
                    self.continued = true;
                    self.frame_start = self.body.len();
                    continue;
                }
                let body = self.end_message();
                match known {
                    Some(name) => return decode_body(name, kind, body.into()).map(Some),
                    None => continue,
                }
            };
            self.header_bytes = 0;
            self.end_message();
            let message = decode_body(name, kind, Cow::Borrowed(&self.piece[..missing]))?;
            self.piece.advance(missing);
            return Ok(Some(message));
        }
    }

    /// Type and bytes of the body of the frame that is being read, once they have come and are allowed.
    fn header(&mut self) -> Result<Option<(u8, usize)>, WireError> {
        let next = self.piece.len().min(HEADER_BYTES - self.header_bytes);
        self.header[self.header_bytes..][..next].copy_from_slice(&self.piece[..next]);
        self.piece.advance(next);
        self.header_bytes += next;
        // The length alone is enough to refuse what is too long.
        if self.header_bytes < LENGTH_BYTES {
            return Ok(None);
        }
        let [a, b, c, d, kind] = self.header;
        let Some(body_bytes) = (u32::from_le_bytes([a, b, c, d]) as usize).checked_sub(1) else {
            return Err(WireError::Malformed { message: "frame", reason: "length 0 has no room for a type".into() });
        };
        if body_bytes > MAX_FRAME_BODY_BYTES {
            return Err(WireError::FrameTooLarge { len: body_bytes, max: MAX_FRAME_BODY_BYTES });
        }
        if self.frame_start + body_bytes > self.max_body_bytes {
            return Err(WireError::FrameTooLarge { len: self.frame_start + body_bytes, max: self.max_body_bytes });
        }
        Ok((self.header_bytes == HEADER_BYTES).then_some((kind, body_bytes)))
    }

    /// The body of the message that ends here. No room for it is kept.
    fn end_message(&mut self) -> Vec<u8> {
        self.frame_start = 0;
        self.continued = false;
        std::mem::take(&mut self.body)
    }
}

fn decode_body<M: Message>(name: &'static str, kind: u8, body: Cow<'_, [u8]>) -> Result<M, WireError> {
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
