//! What the application gets to see.

use std::sync::Arc;

use bson::{Bson, Document, RawBson, RawDocument};
use predicate::Mapping;
use wire::{
    Certainty, CloseReason, ErrorCode, EventEntry, EventId, Events, GapReason, Operation, Position, Positions,
    ResyncReason, SubscriptionKey, Transition,
};

/// One item towards the application, in the order of the stream it came from.
#[derive(Clone, Debug)]
pub enum AppEvent {
    Change(Change),
    /// Changes of this subscription may be missing or meaningless from here on.
    Gap {
        subscription: Arc<SubscriptionKey>,
        reason: GapReason,
        position: Position,
    },
    /// The subscription's continuity is broken. Read its state anew; changes after `live_from` follow.
    Resync {
        subscription: Arc<SubscriptionKey>,
        reason: ResyncReason,
        live_from: Positions,
    },
    /// The subscription has ended and is gone from this Gateway.
    Closed {
        subscription: Arc<SubscriptionKey>,
        reason: CloseReason,
    },
    /// The subscription is live: every matching change after `live_from` is delivered. Told again after every reconnect.
    /// `leaves`: whether before-images are there, so that documents that stop matching are always told as `leave`.
    Live {
        subscription: Arc<SubscriptionKey>,
        live_from: Positions,
        leaves: bool,
    },
    /// The subscription is behind, and what it lacks is read from the source's history: its changes come in their order, and are older
    /// than those of other subscriptions, until it has caught up. Nothing is missing.
    CatchingUp {
        subscription: Arc<SubscriptionKey>,
    },
    /// The subscription has had all that it lacked, and changes come as they happen. An [`AppEvent::Resync`] ends its being behind, too.
    CaughtUp {
        subscription: Arc<SubscriptionKey>,
    },
    /// The node would not register the subscription; it is gone from this Gateway.
    Rejected {
        subscription: Arc<SubscriptionKey>,
        code: ErrorCode,
        message: String,
    },
}

impl AppEvent {
    pub fn subscription(&self) -> &SubscriptionKey {
        match self {
            Self::Change(change) => change.subscription(),
            Self::Gap { subscription, .. }
            | Self::Resync { subscription, .. }
            | Self::Closed { subscription, .. }
            | Self::Live { subscription, .. }
            | Self::CatchingUp { subscription }
            | Self::CaughtUp { subscription }
            | Self::Rejected { subscription, .. } => subscription,
        }
    }

    /// Notices change nothing that has to be kept, so they need no confirmation.
    pub fn is_notice(&self) -> bool {
        matches!(self, Self::Live { .. } | Self::CatchingUp { .. } | Self::CaughtUp { .. } | Self::Rejected { .. })
    }
}

/// A change of a document that a subscription asked for. Cheap to clone: it shares what came in one message with it, which is at most a hundred
/// changes. To keep it for long, take [`Change::detached`].
#[derive(Clone, Debug)]
pub struct Change {
    pub(super) subscription: Arc<SubscriptionKey>,
    pub(super) message: Arc<Message>,
    /// Its place in the message.
    pub(super) entry: u32,
    pub(super) transition: Transition,
    pub(super) certainty: Certainty,
}

/// What changes that came together share.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) partition: u16,
    pub(super) mapping: Arc<Mapping>,
    pub(super) events: Events,
}

impl Change {
    pub fn subscription(&self) -> &SubscriptionKey {
        &self.subscription
    }

    fn place(&self) -> usize {
        self.entry as usize
    }

    /// The same, which shares nothing with others and so keeps nothing of theirs in memory.
    pub fn detached(&self) -> Self {
        let events = [EventEntry::from(self.message.events.get(self.place()))].into_iter().collect();
        let Message { partition, ref mapping, .. } = *self.message;
        let message = Arc::new(Message { partition, mapping: Arc::clone(mapping), events });
        Self { subscription: Arc::clone(&self.subscription), message, entry: 0, ..*self }
    }

    /// The same change has the same id however often, and through whichever node or shard, it is read.
    pub fn id(&self) -> EventId {
        self.message.events.id(self.place())
    }

    pub fn operation(&self) -> Operation {
        self.message.events.operation(self.place())
    }

    pub fn transition(&self) -> Transition {
        self.transition
    }

    pub fn certainty(&self) -> Certainty {
        self.certainty
    }

    pub fn tenant(&self) -> &str {
        self.message.events.tenant(self.place())
    }

    pub fn collection(&self) -> &str {
        self.message.events.collection(self.place())
    }

    /// The document's id as it came: one byte of BSON type, then the BSON value.
    pub fn document_id_bytes(&self) -> &[u8] {
        self.message.events.document_id(self.place())
    }

    /// The document's id in its own type. `None` where it is not known.
    pub fn document_id(&self) -> Option<Bson> {
        let value = predicate::raw_of_stored_id(self.document_id_bytes())?;
        Bson::try_from(RawBson::from(value)).ok()
    }

    /// The document's id as text: a string as it is, an ObjectId as hex, all else as extended JSON.
    pub fn document_id_text(&self) -> Option<String> {
        Some(match self.document_id()? {
            Bson::String(text) => text,
            Bson::ObjectId(id) => id.to_hex(),
            other => other.into_relaxed_extjson().to_string(),
        })
    }

    /// The image that matched, as it is stored: after the change for `enter` and `update`, before it for `leave`. `None`
    /// where no image is known.
    pub fn document(&self) -> Option<&RawDocument> {
        let document = self.message.events.document(self.place());
        if document.is_empty() {
            return None;
        }
        RawDocument::from_bytes(document).ok()
    }

    /// What filters and expressions see of [`Change::document`]: the user's fields, and the system's beside them.
    pub fn flat(&self) -> Option<Document> {
        Some(self.mapping().flat_view(self.document()?))
    }

    /// How documents of this node are laid out.
    pub fn mapping(&self) -> &Mapping {
        &self.message.mapping
    }

    /// Number of this change in the session it came in.
    pub fn seq(&self) -> u64 {
        self.message.events.seq(self.place())
    }

    /// The shard it came from.
    pub fn partition(&self) -> u16 {
        self.message.partition
    }

    /// The source's time of the change. For MongoDB: seconds in the high 32 bits, increment in the low 32 bits.
    pub fn cluster_time(&self) -> u64 {
        self.id().time
    }
}
