//! Gateways that a shard knows: those that have a session, a subscription, or something in the log.
//!
//! Invariants:
//! - `log` of a Gateway names exactly the entries of the delivery log that have a target of it, in their order.
//! - A Gateway is forgotten only when nothing names its place any more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use wire::SubscriptionKey;

use crate::session::Session;
use crate::subscription::{GatewayId, Lost, Members};

#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) name: Arc<str>,
    pub(crate) members: Members,
    /// The filter's version when its first subscription came. The ingest thread sees it once the Gateway's name would survive a
    /// crash of the node; none of its subscriptions is live before.
    pub(crate) named_at: u64,
    pub(crate) log: VecDeque<u64>,
    /// Its targets in entries before this number are settled.
    pub(crate) cleared: u64,
    pub(crate) session: Option<Session>,
    /// When its last session ended, in the shard's own time.
    pub(crate) session_ended_at: u64,
    /// The [`Session::base`] of its last session that has ended, and what was done of it.
    pub(crate) ended: (u32, u64),
    /// How often the control side is being asked about a subscription, or has answered and the answer waits for its turn.
    pub(crate) asking: BTreeMap<SubscriptionKey, u32>,
    /// Subscriptions that have ended, but count for the control side because it is being asked about them again.
    pub(crate) unreleased: BTreeSet<SubscriptionKey>,
    /// The last of the numbers that its sessions have given out, see [`Session`].
    pub(crate) last_mark: u32,
    /// Where the walk that settles what nobody waits for any more goes on, while there is one.
    pub(crate) forgiving: Option<u64>,
    /// That walk is to be made once more: something may have been given up behind it.
    pub(crate) forgive_again: bool,
    /// It stands among those whose requests can go on.
    pub(crate) has_turn: bool,
    /// All its subscriptions are being removed: requests wait.
    pub(crate) removing: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Gateways {
    all: Vec<Option<Gateway>>,
    names: HashMap<Arc<str>, GatewayId>,
    free: Vec<GatewayId>,
}

impl Gateway {
    /// Whether what could have been lost has been done with since.
    pub(crate) fn is_done(&self, lost: &Lost) -> bool {
        let Some(seq) = lost.seq else { return false };
        let of_session = self.session.as_ref().map(|session| (session.base(), session.done()));
        of_session.into_iter().chain([self.ended]).any(|(base, done)| base == lost.session && done >= seq)
    }
}

impl Gateways {
    /// The Gateway of this name; a new one if there is none.
    pub(crate) fn open(&mut self, name: &str) -> GatewayId {
        if let Some(id) = self.names.get(name) {
            return *id;
        }
        let name: Arc<str> = name.into();
        let new = Gateway {
            name: name.clone(),
            members: Members::default(),
            named_at: 0,
            log: VecDeque::new(),
            cleared: 0,
            session: None,
            session_ended_at: 0,
            ended: (0, 0),
            asking: BTreeMap::new(),
            unreleased: BTreeSet::new(),
            last_mark: 0,
            forgiving: None,
            forgive_again: false,
            has_turn: false,
            removing: false,
        };
        let id = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            GatewayId(self.all.len() as u32 - 1)
        });
        self.all[id.0 as usize] = Some(new);
        self.names.insert(name, id);
        id
    }

    pub(crate) fn find(&self, name: &str) -> Option<GatewayId> {
        self.names.get(name).copied()
    }

    pub(crate) fn get(&self, id: GatewayId) -> Option<&Gateway> {
        self.all.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: GatewayId) -> Option<&mut Gateway> {
        self.all.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn session(&self, id: GatewayId) -> Option<&Session> {
        self.get(id)?.session.as_ref()
    }

    pub(crate) fn session_mut(&mut self, id: GatewayId) -> Option<&mut Session> {
        self.get_mut(id)?.session.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (GatewayId, &Gateway)> {
        (0..).map(GatewayId).zip(&self.all).filter_map(|(id, gateway)| Some((id, gateway.as_ref()?)))
    }

    pub(crate) fn ids(&self) -> Vec<GatewayId> {
        self.iter().map(|(id, _)| id).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Forgets a Gateway that has nothing here any more.
    pub(crate) fn forget_if_idle(&mut self, id: GatewayId) {
        let idle = self.get(id).is_some_and(|gateway| {
            gateway.session.is_none()
                && gateway.members.is_empty()
                && !gateway.removing
                && gateway.log.is_empty()
                && gateway.asking.is_empty()
        });
        if idle && let Some(gateway) = self.all[id.0 as usize].take() {
            debug_assert!(gateway.unreleased.is_empty(), "{} has ended what still counts", gateway.name);
            self.names.remove(&gateway.name);
            self.free.push(id);
        }
    }
}
