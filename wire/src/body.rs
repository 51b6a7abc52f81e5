//! Reading the fields of a body. That of `Events` is read in [`crate::events`].
//!
//! bincode decodes whatever has a fixed size. Texts and lists are read here, because bincode allocates what a length asks for
//! before it looks whether the bytes are there: nothing here allocates more than the body holds.

use std::borrow::Cow;

use bincode::{
    BorrowDecode, Decode,
    config::{Configuration, standard},
    de::{
        BorrowDecoder, DecoderImpl,
        read::{Reader, SliceReader},
    },
    error::DecodeError,
};

use crate::{
    Ack, Bound, Capabilities, CloseReason, Delivery, Epoch, ErrorCode, Events, GapReason, Handle, Hello, Position,
    Positions, Registration, Reply, Request, RequestId, ResyncReason, ShardAddress, SlotTable, SubscribeItem,
    SubscribeResult, SubscriptionKey, Welcome,
    codec::{ack, delivery, reply, request},
};

/// Integers little-endian and of variable length, no bound of its own: [`crate::Decoder`] has one.
pub(crate) const CONFIG: Configuration = standard();

/// Backends that a list of positions may name.
pub const MAX_BACKENDS: usize = 256;

/// What is wrong with a body.
#[derive(Debug)]
pub enum BodyError {
    Bytes(DecodeError),
    Version(u16),
    Rule(String),
}

impl From<DecodeError> for BodyError {
    fn from(error: DecodeError) -> Self {
        Self::Bytes(error)
    }
}

/// A kind of message that a stream carries. Implemented by [`Request`], [`Reply`], [`Ack`] and [`Delivery`] only.
pub trait Message: Sized + sealed::Sealed {
    /// Whether a server sends it. If so, types that this version doesn't know are skipped.
    const FROM_SERVER: bool;

    /// Name of the message that frames of this type carry.
    #[doc(hidden)]
    fn name(kind: u8) -> Option<&'static str>;

    /// `kind` is one that [`Message::name`] knows. Bytes after the last known field are ignored.
    #[doc(hidden)]
    fn decode(kind: u8, body: Cow<'_, [u8]>) -> Result<Self, BodyError>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::Request {}
    impl Sealed for crate::Reply {}
    impl Sealed for crate::Ack {}
    impl Sealed for crate::Delivery {}
}

impl Message for Request {
    const FROM_SERVER: bool = false;

    fn name(kind: u8) -> Option<&'static str> {
        Some(match kind {
            request::HELLO => "Hello",
            request::SUBSCRIBE => "Subscribe",
            request::UNSUBSCRIBE => "Unsubscribe",
            request::SYNC_DONE => "SyncDone",
            request::PING => "Ping",
            _ => return None,
        })
    }

    fn decode(kind: u8, body: Cow<'_, [u8]>) -> Result<Self, BodyError> {
        let body = &mut Body::new(&body);
        Ok(match kind {
            request::HELLO => {
                let version = u16::read(body)?;
                if version != crate::PROTOCOL_VERSION {
                    return Err(BodyError::Version(version));
                }
                Self::Hello(Read::read(body)?)
            }
            request::SUBSCRIBE => Self::Subscribe { request: Read::read(body)?, items: Read::read(body)? },
            request::UNSUBSCRIBE => Self::Unsubscribe { request: Read::read(body)?, keys: Read::read(body)? },
            request::SYNC_DONE => Self::SyncDone { request: Read::read(body)? },
            request::PING => Self::Ping { nonce: Read::read(body)? },
            _ => return Err(unknown(kind)),
        })
    }
}

impl Message for Reply {
    const FROM_SERVER: bool = true;

    fn name(kind: u8) -> Option<&'static str> {
        Some(match kind {
            reply::WELCOME => "Welcome",
            reply::SUBSCRIBED => "Subscribed",
            reply::UNSUBSCRIBED => "Unsubscribed",
            reply::SYNCED => "Synced",
            reply::PONG => "Pong",
            reply::REFUSED => "Refused",
            _ => return None,
        })
    }

    fn decode(kind: u8, body: Cow<'_, [u8]>) -> Result<Self, BodyError> {
        let body = &mut Body::new(&body);
        Ok(match kind {
            reply::WELCOME => Self::Welcome(Box::new(Read::read(body)?)),
            reply::SUBSCRIBED => Self::Subscribed { request: Read::read(body)?, results: Read::read(body)? },
            reply::UNSUBSCRIBED => Self::Unsubscribed { request: Read::read(body)? },
            reply::SYNCED => Self::Synced { request: Read::read(body)? },
            reply::PONG => Self::Pong { nonce: Read::read(body)? },
            reply::REFUSED => Self::Refused { code: Read::read(body)?, message: Read::read(body)? },
            _ => return Err(unknown(kind)),
        })
    }
}

impl Message for Ack {
    const FROM_SERVER: bool = false;

    fn name(kind: u8) -> Option<&'static str> {
        (kind == ack::ACK).then_some("Ack")
    }

    fn decode(_: u8, body: Cow<'_, [u8]>) -> Result<Self, BodyError> {
        Read::read(&mut Body::new(&body))
    }
}

impl Message for Delivery {
    const FROM_SERVER: bool = true;

    fn name(kind: u8) -> Option<&'static str> {
        Some(match kind {
            delivery::EVENTS => "Events",
            delivery::BOUND => "Bound",
            delivery::HEARTBEAT => "Heartbeat",
            delivery::GAP => "Gap",
            delivery::RESYNC => "Resync",
            delivery::CATCHING_UP => "CatchingUp",
            delivery::CAUGHT_UP => "CaughtUp",
            delivery::CLOSED => "Closed",
            delivery::GO_AWAY => "GoAway",
            _ => return None,
        })
    }

    fn decode(kind: u8, body: Cow<'_, [u8]>) -> Result<Self, BodyError> {
        if kind == delivery::EVENTS {
            return Ok(Self::Events(Events::read(body.into())?));
        }
        let body = &mut Body::new(&body);
        Ok(match kind {
            delivery::BOUND => Self::Bound(Box::new(Read::read(body)?)),
            delivery::HEARTBEAT => Self::Heartbeat { last_seq: Read::read(body)?, positions: Read::read(body)? },
            delivery::GAP => Self::Gap {
                seq: Read::read(body)?,
                position: Read::read(body)?,
                reason: Read::read(body)?,
                handles: Read::read(body)?,
            },
            delivery::RESYNC => Self::Resync {
                seq: Read::read(body)?,
                handle: Read::read(body)?,
                reason: Read::read(body)?,
                live_from: Read::read(body)?,
            },
            delivery::CATCHING_UP => Self::CatchingUp { handles: Read::read(body)? },
            delivery::CAUGHT_UP => Self::CaughtUp { handles: Read::read(body)? },
            delivery::CLOSED => Self::Closed { handle: Read::read(body)?, reason: Read::read(body)? },
            delivery::GO_AWAY => Self::GoAway { within_ms: Read::read(body)?, reason: Read::read(body)? },
            _ => return Err(unknown(kind)),
        })
    }
}

fn unknown(kind: u8) -> BodyError {
    BodyError::Rule(format!("type {kind:#04x} has no message"))
}

/// The rest of a body.
pub(crate) struct Body<'a>(DecoderImpl<SliceReader<'a>, Configuration, ()>);

impl<'a> Body<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(DecoderImpl::new(SliceReader::new(bytes), CONFIG, ()))
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        BorrowDecode::borrow_decode(&mut self.0)
    }

    fn tag(&mut self) -> Result<u32, DecodeError> {
        u32::decode(&mut self.0)
    }

    /// The number of a list's elements. Each takes a byte at least, so more than there are bytes left is an error.
    fn count(&mut self) -> Result<usize, BodyError> {
        let count = u64::decode(&mut self.0)?;
        usize::try_from(count)
            .ok()
            .filter(|count| self.0.borrow_reader().peek_read(*count).is_some())
            .ok_or_else(|| BodyError::Rule(format!("a list of {count} elements is longer than the body")))
    }
}

/// A field's decoding. What has neither text nor list is left to bincode.
pub(crate) trait Read: Sized {
    fn read(body: &mut Body<'_>) -> Result<Self, BodyError>;
}

macro_rules! left_to_bincode {
    ($($type:ty),+ $(,)?) => {
        $(impl Read for $type {
            fn read(body: &mut Body<'_>) -> Result<Self, BodyError> {
                Ok(Decode::decode(&mut body.0)?)
            }
        })+
    };
}

left_to_bincode!(
    bool,
    u16,
    u32,
    u64,
    Ack,
    Capabilities,
    CloseReason,
    Epoch,
    ErrorCode,
    GapReason,
    Handle,
    Position,
    Registration,
    RequestId,
    ResyncReason,
    SlotTable,
);

macro_rules! field_by_field {
    ($($type:ty { $($field:ident),+ $(,)? }),+ $(,)?) => {
        $(impl Read for $type {
            fn read(body: &mut Body<'_>) -> Result<Self, BodyError> {
                Ok(Self { $($field: Read::read(body)?),+ })
            }
        })+
    };
}

// The order is the order on the wire; a test compares it with what bincode derives from the types.
field_by_field!(
    SubscriptionKey { tenant, id },
    SubscribeItem { key, collection, filters, expr, ttl_s, transitions, positions, group, lossy },
    Hello { gateway, token, agent, capabilities },
    ShardAddress { partition, address },
    Welcome { epoch, partition, slots, shards, received_deadline_ms, heartbeat_ms, max_body_bytes, mapping },
    Bound { handle, key, generation, live_from, leaves },
);

impl Read for String {
    fn read(body: &mut Body<'_>) -> Result<Self, BodyError> {
        Ok(body.text()?.to_owned())
    }
}

impl<T: Read> Read for Option<T> {
    fn read(body: &mut Body<'_>) -> Result<Self, BodyError> {
        bool::read(body)?.then(|| T::read(body)).transpose()
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(body: &mut Body<'_>) -> Result<Self, BodyError> {
        let count = body.count()?;
        // An element may be larger in memory than on the wire: the list grows with what really comes.
        let mut list = Self::with_capacity(count.min(64));
        for _ in 0..count {
            list.push(T::read(body)?);
        }
        Ok(list)
    }
}

impl Read for Positions {
    fn read(body: &mut Body<'_>) -> Result<Self, BodyError> {
        let count = body.count()?;
        if count > MAX_BACKENDS {
            return Err(BodyError::Rule(format!("positions of {count} backends where {MAX_BACKENDS} are allowed")));
        }
        let mut positions = Self::default();
        for _ in 0..count {
            let position = Position::read(body)?;
            if positions.get(position.backend).is_some() {
                return Err(BodyError::Rule(format!("two positions of backend {:08x}", position.backend.0)));
            }
            positions.set(position);
        }
        Ok(positions)
    }
}

impl Read for SubscribeResult {
    fn read(body: &mut Body<'_>) -> Result<Self, BodyError> {
        Ok(match body.tag()? {
            0 => Self::Accepted { registration: Read::read(body)?, expires_in_s: Read::read(body)? },
            1 => Self::NotOwner { owner: Read::read(body)? },
            2 => Self::Rejected { code: Read::read(body)?, message: Read::read(body)? },
            tag => return Err(BodyError::Rule(format!("{tag} is not a result of a subscription: 0, 1 or 2"))),
        })
    }
}
