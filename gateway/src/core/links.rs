//! Connections to shards: which there should be, where, and when to try again.
//!
//! Invariants:
//! - At most one session a shard, and at first contact at most one in all: a second hello to a shard would end the first.
//! - Every way for a session to end goes through [`GatewayCore::session_over`] or [`GatewayCore::drop_session`].
//! - While not over, each link has a session (perhaps one that still waits for its time to connect), or first contact has
//!   one and no link has.

use std::sync::Arc;

use predicate::MappingError;
use wire::{ErrorCode, SlotTable, Welcome};

use super::{
    DisconnectReason, GatewayCore, Output, SYNC_HELD_MS, SessionId, TerminalError, Topology,
    jitter::backoff_ms,
    owner_of,
    session::{Place, Session, Stage},
    subscriptions::Phase,
};

/// What is known of one shard.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: String,
    pub(super) session: Option<SessionId>,
    /// Since the last session that held.
    pub(super) failures: u32,
    pub(super) welcomes: u64,
    /// Another session of ours has said hello to this shard, by an address that was not its own.
    superseded_by_us: bool,
    pub(super) error: Option<String>,
}

impl Link {
    pub(super) fn new(address: String) -> Self {
        Self { address, session: None, failures: 0, welcomes: 0, superseded_by_us: false, error: None }
    }
}

impl GatewayCore {
    /// Looks for any shard, at the next of the addresses that are known.
    pub(super) fn make_contact(&mut self, after_ms: u64) {
        let given = self.config.addresses.iter();
        let mut known: Vec<&String> = given.chain(self.links.iter().map(|link| &link.address)).collect();
        // The first of a kind stays: addresses that were given come first.
        let mut seen = std::collections::BTreeSet::new();
        known.retain(|address| seen.insert(*address));
        let address = known[self.contact_next % known.len()].clone();
        self.contact_next = (self.contact_next + 1) % known.len();
        self.contact.address = address;
        self.open(Place::Any, after_ms);
    }

    fn open(&mut self, place: Place, after_ms: u64) {
        if self.over {
            return;
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let (link, partition) = match place {
            Place::Any => (&mut self.contact, None),
            Place::Shard(partition) => (&mut self.links[usize::from(partition)], Some(partition)),
        };
        debug_assert!(link.session.is_none(), "a second hello would end the first");
        link.session = Some(id);
        let address = link.address.clone();
        let ready_by = self.now.after(after_ms + connect_ms(link.failures));
        self.sessions.insert(id, Box::new(Session::new(id, place, ready_by)));
        self.outputs.push_back(Output::Connect { session: id, partition, address, after_ms });
    }

    pub(super) fn disconnected(&mut self, id: SessionId, reason: DisconnectReason) {
        let Some(session) = self.sessions.get(&id) else { return };
        let stage = session.stage;
        if let DisconnectReason::Closed { code: Some(code), message } = &reason {
            let (code, message) = (*code, message.clone());
            return self.refused(id, code, message);
        }
        if let (DisconnectReason::Untrusted(message), false) = (&reason, self.was_welcomed()) {
            // A wrong pin or root is a mistake in somebody's configuration. Later it may be a certificate that is being
            // replaced, so then it is tried again.
            let address = self.address_of(id);
            return self.terminate(TerminalError::Untrusted { address, message: message.clone() });
        }
        debug_assert!(stage != Stage::Ready || self.was_welcomed());
        self.session_over(id, reason, None);
    }

    /// The node has ended the session, or will, for this reason.
    pub(super) fn refused(&mut self, id: SessionId, code: ErrorCode, message: String) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (stage, place) = (session.stage, session.place);
        let gateway = self.config.gateway.clone();
        let error = match code {
            ErrorCode::Superseded => {
                if let Place::Shard(partition) = place
                    && std::mem::take(&mut self.links[usize::from(partition)].superseded_by_us)
                {
                    let reason = DisconnectReason::Closed { code: Some(code), message };
                    return self.session_over(id, reason, Some(None));
                }
                TerminalError::Superseded { gateway, message }
            }
            ErrorCode::Unauthorized => TerminalError::Unauthorized { gateway, message },
            ErrorCode::Forbidden => TerminalError::Forbidden { gateway, message },
            // The hello will be the same the next time.
            ErrorCode::UnsupportedVersion | ErrorCode::InvalidRequest if stage != Stage::Ready => {
                TerminalError::Refused { gateway, code, message }
            }
            _ => {
                let reason = DisconnectReason::Closed { code: Some(code), message };
                return self.session_over(id, reason, Some(None));
            }
        };
        self.terminate(error);
    }

    /// Closes a session whose shard does not keep to the protocol, and tries again later.
    pub(super) fn violated(&mut self, id: SessionId, what: String) {
        self.counters.violations += 1;
        self.session_over(id, DisconnectReason::Violation(what), Some(Some(ErrorCode::ProtocolViolation)));
    }

    /// A session is over, and another is to follow it. `close`: whether to close the connection, and with which code.
    pub(super) fn session_over(&mut self, id: SessionId, reason: DisconnectReason, close: Option<Option<ErrorCode>>) {
        let Some(session) = self.drop_session(id, close.map(|code| (code, reason.to_string()))) else { return };
        let held = session.is_ready() && self.now >= session.ready_since.after(STABLE_MS);
        let link = match session.place {
            Place::Any => &mut self.contact,
            Place::Shard(partition) => &mut self.links[usize::from(partition)],
        };
        link.failures = if held { 1 } else { link.failures.saturating_add(1) };
        link.error = Some(format!("{} {reason}", link.address));
        let failures = link.failures;
        let after_ms = backoff_ms(failures, &mut self.jitter);
        match session.place {
            Place::Any => self.make_contact(after_ms),
            Place::Shard(_)
                if failures >= LOST_AFTER_FAILURES && !self.sessions.values().any(|session| session.is_ready()) =>
            {
                // The node may have come back elsewhere, or with fewer shards.
                let waiting: Vec<SessionId> = self.sessions.keys().copied().collect();
                for waiting in waiting {
                    self.drop_session(waiting, Some((None, "looking for the node anew".into())));
                }
                self.make_contact(after_ms);
            }
            place => self.open(place, after_ms),
        }
    }

    /// The node said that it goes away, and the time to follow has come.
    pub(super) fn move_on(&mut self, id: SessionId) {
        if let Some(session) = self.drop_session(id, Some((None, "following the node's request to go".into()))) {
            self.open(session.place, 0);
        }
    }

    /// Forgets a session, and keeps of it what its subscriptions need.
    fn drop_session(&mut self, id: SessionId, close: Option<(Option<ErrorCode>, String)>) -> Option<Box<Session>> {
        let session = self.sessions.remove(&id)?;
        self.fifo.forget_session(id);
        self.left_bytes += session.queued_bytes;
        if let Some((code, message)) = close {
            self.outputs.push_back(Output::Close { session: id, code, message });
        }
        let link = match session.place {
            Place::Any => &mut self.contact,
            Place::Shard(partition) => &mut self.links[usize::from(partition)],
        };
        debug_assert_eq!(link.session, Some(id), "a link knows its session");
        link.session = None;
        let floor_version = self.floor_version;
        let mut unclear = Vec::new();
        for (reference, subscription) in self.subscriptions.iter_mut().filter(|(_, s)| s.session == Some(id)) {
            subscription.leave_session(&session, floor_version);
            if subscription.unclear && !subscription.condemned {
                unclear.push(reference);
            }
        }
        // What was waiting for its turn has no session yet.
        for reference in session.to_present.iter().chain(&session.to_unsubscribe) {
            if let Some(subscription) = self.subscriptions.get_mut(*reference)
                && subscription.phase == Phase::Queued
            {
                subscription.phase = Phase::Idle;
            }
        }
        // Nobody will say whose the items were that came.
        for reference in unclear {
            self.make_anew(reference);
        }
        Some(session)
    }

    fn address_of(&self, id: SessionId) -> String {
        match self.sessions.get(&id).map(|session| session.place) {
            Some(Place::Shard(partition)) => self.links[usize::from(partition)].address.clone(),
            _ => self.contact.address.clone(),
        }
    }

    pub(super) fn welcomed(&mut self, id: SessionId, welcome: Welcome) {
        if let Err(what) = check(&welcome) {
            return self.violated(id, what);
        }
        let partition = welcome.partition;
        let Some(session) = self.sessions.get(&id) else { return };
        if let Place::Shard(expected) = session.place
            && expected != partition
        {
            if let Some(link) = self.links.get_mut(usize::from(partition)) {
                link.superseded_by_us = link.session.is_some();
            }
            let what = format!("shard {partition} answers where shard {expected} should be");
            return self.violated(id, what);
        }
        if self.mapping_text != welcome.mapping {
            match welcome.mapping.parse() {
                Ok(mapping) => self.mapping = Arc::new(mapping),
                Err(error) => return self.violated(id, MappingError::to_string(&error)),
            }
            self.mapping_text = welcome.mapping.clone();
            self.subscriptions.iter_mut().for_each(|(_, subscription)| subscription.verifier = None);
        }
        self.adopt(id, &welcome);
        self.sync_at.get_or_insert(self.now.after(SYNC_HELD_MS));

        let link = &mut self.links[usize::from(partition)];
        link.session = Some(id);
        link.error = None;
        link.superseded_by_us = false;
        link.welcomes += 1;
        self.counters.reconnects += u64::from(link.welcomes > 1);
        // Every path above has kept the session.
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.place == Place::Any {
            self.contact.session = None;
            self.contact.failures = 0;
            self.contact.error = None;
        }
        session.place = Place::Shard(partition);
        session.stage = Stage::Ready;
        session.epoch = Some(welcome.epoch);
        session.heartbeat_ms = u64::from(welcome.heartbeat_ms);
        session.max_body_bytes = (welcome.max_body_bytes as usize).min(wire::MAX_BODY_BYTES);
        session.ready_since = self.now;
        session.heard_at = self.now;
        for partition in 0..welcome.slots.shards {
            if self.links[usize::from(partition)].session.is_none() {
                self.open(Place::Shard(partition), 0);
            }
        }
        self.present_all(id, partition);
        self.deliver_early(id);
    }

    /// Takes over what the node says of itself. Another epoch or another number of shards ends all other sessions.
    fn adopt(&mut self, id: SessionId, welcome: &Welcome) {
        if self.topology.as_ref().is_some_and(|topology| topology.epoch != welcome.epoch) {
            self.forget_condemned();
        }
        let same = |topology: &Topology| topology.epoch == welcome.epoch && topology.slots == welcome.slots;
        let changed = !self.topology.as_ref().is_some_and(same);
        if changed {
            // An attempt that has not been answered yet may well be one to the new node, if it goes where that is.
            let still_good = |session: &Session| {
                let Place::Shard(partition) = session.place else { return false };
                let address = &self.links[usize::from(partition)].address;
                !session.is_ready() && welcome.shards.get(usize::from(partition)).is_some_and(|s| s.address == *address)
            };
            let others: Vec<SessionId> =
                self.sessions.values().filter(|other| other.id != id && !still_good(other)).map(|s| s.id).collect();
            for other in others {
                self.drop_session(other, Some((None, "the node has started anew".into())));
            }
            self.topology = Some(Topology { epoch: welcome.epoch, slots: welcome.slots });
            self.links.truncate(usize::from(welcome.slots.shards));
        }
        for shard in &welcome.shards {
            match self.links.get_mut(usize::from(shard.partition)) {
                Some(link) => link.address.clone_from(&shard.address),
                // `check` has seen to it that the list is in order and whole.
                None => self.links.push(Link::new(shard.address.clone())),
            }
        }
        if changed {
            for (_, subscription) in self.subscriptions.iter_mut() {
                if let Some(item) = &subscription.item {
                    subscription.owner = owner_of(&welcome.slots, item);
                }
            }
        }
    }

    /// The node has started anew, and knows of no subscription: there is nothing to remove, and no shard to ask for it.
    fn forget_condemned(&mut self) {
        let mut condemned = Vec::new();
        for (reference, subscription) in self.subscriptions.iter_mut() {
            subscription.ever_sent = false;
            // One that has ended is forgotten when its end is done.
            if subscription.condemned && !subscription.ended {
                condemned.push(reference);
            }
        }
        for reference in condemned {
            self.subscriptions.remove(reference);
        }
    }

    /// Nothing will be connected any more.
    fn terminate(&mut self, error: TerminalError) {
        if self.over {
            return;
        }
        self.end();
        self.terminal = Some(error.clone());
        self.outputs.push_back(Output::Terminal(error));
    }

    pub(super) fn end(&mut self) {
        self.over = true;
        let all: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in all {
            self.drop_session(id, Some((None, "the Gateway is closing".into())));
        }
    }
}

/// What a welcome must hold to be of use.
fn check(welcome: &Welcome) -> Result<(), String> {
    let SlotTable { shards } = welcome.slots;
    if shards == 0 || shards > wire::SLOTS {
        return Err(format!("a node of {shards} shards, where 1 to {} are allowed", wire::SLOTS));
    }
    if welcome.partition >= shards {
        return Err(format!("shard {} of {shards}", welcome.partition));
    }
    let in_order = welcome.shards.iter().map(|shard| shard.partition).eq(0..shards);
    if !in_order {
        return Err(format!("addresses of {} shards where {shards} should be listed in order", welcome.shards.len()));
    }
    Ok(())
}

/// How long an attempt may take, for the connection and for the answer to the hello. Little at first: one that began while nothing got
/// through waits twice as long before each time that it tries again, and would be late once everything does. More after each that failed: a
/// node that all Gateways come to at once is slow to answer, and must not be asked ever again for what it is about to do.
fn connect_ms(failures: u32) -> u64 {
    let doubled = CONNECT_MS_FIRST.checked_shl(failures.saturating_sub(1)).unwrap_or(CONNECT_MS_MAX);
    doubled.min(CONNECT_MS_MAX)
}

const CONNECT_MS_FIRST: u64 = 2_000;
const CONNECT_MS_MAX: u64 = 10_000;

/// A session that held this long makes the next backoff begin anew: a Gateway then comes at most once a second to a node that ends it, and
/// soon to one that was killed and started again a few times.
const STABLE_MS: u64 = 1_000;

/// Failures in a row of one shard, with no shard connected, after which the node is looked for by all addresses known.
const LOST_AFTER_FAILURES: u32 = 3;
