//! Requests of Gateways: examined in their order, so that the control side can be asked early, and acted upon and answered in their
//! order, each once all before it are. Both go on in slices.

use wire::{
    CloseReason, ErrorCode, MAX_UNANSWERED_REQUESTS, PlaceHash, Positions, Registration, Reply, Request, SubscribeItem,
    SubscribeResult, SubscriptionKey,
};

use super::work::{EXAMINE_UNITS, ITEM_UNITS, LIFE_UNITS, Units};
use super::{Asking, Shard};
use crate::config::{BATCH_MAX, CLOSED_WAITING_MAX, ID_BYTES_MAX, ITEMS_ASKED_MAX, NAME_BYTES_MAX};
use crate::session::{ItemState, Presented, Waiting, Walk};
use crate::subscription::{GatewayId, SubId};
use crate::{Admission, ConnectionId, Output, Refusal, Ticket};

/// Whether a request can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoesOn,
    /// For the control side, for the session to read, or for the next request.
    Waits,
}

impl Shard {
    pub(super) fn on_request(&mut self, connection: ConnectionId, request: Request, out: &mut Vec<Output>) {
        let Some(gateway) = self.session_of(connection) else {
            self.stats.strays += 1;
            return;
        };
        self.stats.requests += 1;
        let waiting = match request {
            Request::Hello(_) => {
                self.stats.protocol_violations += 1;
                self.refuse(gateway, ErrorCode::ProtocolViolation, "a hello after the first message".into(), out);
                return;
            }
            Request::Subscribe { request, items } => {
                Waiting::Subscribe { request, items, states: Vec::new(), results: Vec::new() }
            }
            Request::Unsubscribe { request, mut keys } => {
                keys.reverse();
                Waiting::Unsubscribe { request, keys }
            }
            Request::SyncDone { request } => Waiting::SyncDone { request, begun: false },
            Request::Ping { nonce } => Waiting::Ping { nonce },
        };
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        session.requests.push_back(waiting);
        if session.requests.len() > MAX_UNANSWERED_REQUESTS {
            self.stats.requests_too_many += 1;
            let message = format!("more than {MAX_UNANSWERED_REQUESTS} requests wait for their answer");
            self.refuse(gateway, ErrorCode::TooManyRequests, message, out);
            return;
        }
        self.answer_on_credit(gateway, out);
    }

    pub(super) fn answer_on_credit(&mut self, gateway: GatewayId, out: &mut Vec<Output>) {
        let mut credit = self.credit;
        self.answer(gateway, &mut credit, out);
        self.credit = credit;
    }

    /// Examines and answers requests as long as nothing has to be waited for. What there are no units for goes on in its turn.
    pub(super) fn answer(&mut self, gateway: GatewayId, units: &mut Units, out: &mut Vec<Output>) {
        loop {
            let Some(known) = self.gateways.get(gateway) else { return };
            let Some(session) = &known.session else { return };
            if session.requests.is_empty() {
                return;
            }
            if units.are_spent() {
                self.give_turn(gateway);
                return;
            }
            let next = if session.examined < session.requests.len() {
                self.examine_on(gateway, units, out);
                Next::GoesOn
            } else if known.removing {
                Next::Waits
            } else if session.batch.walk != Walk::NotYet {
                self.bind_on(gateway, units, out);
                Next::GoesOn
            } else if session.closed_waiting >= CLOSED_WAITING_MAX {
                // It subscribes and ends, and doesn't read of it. The next tick looks again.
                Next::Waits
            } else {
                self.act_on(gateway, units, out)
            };
            if next == Next::Waits {
                return;
            }
        }
    }

    /// Examines some of the first request that hasn't been, and asks the control side about what it must be asked about.
    fn examine_on(&mut self, gateway: GatewayId, units: &mut Units, out: &mut Vec<Output>) {
        let room = units.room_for(EXAMINE_UNITS).min(ITEMS_ASKED_MAX);
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        let at = session.examined;
        let Some(Waiting::Subscribe { items, states, .. }) = session.requests.get_mut(at) else {
            units.take(1);
            session.examined += 1;
            return;
        };
        let (items, mut states) = (std::mem::take(items), std::mem::take(states));
        let first = states.len();
        for item in items.iter().skip(first).take(room) {
            units.take(EXAMINE_UNITS);
            let state = self.examine(gateway, item, items.len());
            states.push(state);
        }
        let asked: Vec<u32> = (first..states.len())
            .filter(|at| matches!(states[*at], ItemState::Asked))
            .map(|at| u32::try_from(at).expect("a request of four billion items is longer than any frame"))
            .collect();
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        session.examined += usize::from(states.len() == items.len());
        if let Some(Waiting::Subscribe { items: its_items, states: its_states, .. }) = session.requests.get_mut(at) {
            (*its_items, *its_states) = (items, states);
        }
        self.ask(gateway, at, asked, out);
    }

    /// What of an item is known without asking anybody.
    fn examine(&mut self, gateway: GatewayId, item: &SubscribeItem, items: usize) -> ItemState {
        let max = self.config.subscribe_items_max;
        let checked = if items > max {
            Err(format!("{items} items in one request where {max} are allowed"))
        } else {
            self.validate(item)
        };
        if let Err(message) = checked {
            self.stats.subscriptions_rejected += 1;
            let code = ErrorCode::InvalidRequest;
            return ItemState::Answered(SubscribeResult::Rejected { code, message });
        }
        let owner = self.config.slots.owner(PlaceHash::of(&item.key.tenant, &item.collection));
        if owner != self.config.partition {
            self.stats.subscriptions_not_owned += 1;
            let address = self.config.shards.iter().find(|shard| shard.partition == owner).cloned();
            return ItemState::Answered(match address {
                Some(owner) => SubscribeResult::NotOwner { owner },
                None => SubscribeResult::Rejected {
                    code: ErrorCode::Internal,
                    message: format!("shard {owner} owns the collection, and its address is not known"),
                },
            });
        }
        match self.same(gateway, item) {
            Some(_) => ItemState::Renewal,
            None => ItemState::Asked,
        }
    }

    fn validate(&self, item: &SubscribeItem) -> Result<(), String> {
        let SubscribeItem { key: SubscriptionKey { tenant, id }, collection, ttl_s, .. } = item;
        let id_is_fine = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
        if id.is_empty() || id.len() > ID_BYTES_MAX || !id.bytes().all(id_is_fine) {
            return Err(format!("subscription id {id:?}: 1 to {ID_BYTES_MAX} of [a-zA-Z0-9_-] are allowed"));
        }
        if tenant.is_empty() || tenant.len() > NAME_BYTES_MAX || tenant.contains('\0') {
            return Err(format!("tenant {tenant:?}: 1 to {NAME_BYTES_MAX} bytes without NUL are allowed"));
        }
        let path_is_fine = !collection.contains('\0') && collection.split('/').all(|segment| !segment.is_empty());
        if collection.len() > NAME_BYTES_MAX || !path_is_fine {
            return Err(format!(
                "collection {collection:?}: a path of segments with / between them, none of them empty, without NUL, of at \
                 most {NAME_BYTES_MAX} bytes is allowed"
            ));
        }
        let (min, max) = (self.config.ttl_min_s, self.config.ttl_max_s);
        if *ttl_s != 0 && !(min..=max).contains(ttl_s) {
            return Err(format!("ttl of {ttl_s} s: {min} to {max} s are allowed, or 0 for the default"));
        }
        Ok(())
    }

    /// The subscription that this item renews.
    fn same(&self, gateway: GatewayId, item: &SubscribeItem) -> Option<SubId> {
        let id = self.subs.find(gateway, &item.key)?;
        let content = self.subs.content_of(item);
        self.subs.rest(id).filter(|rest| rest.is_of(&content)).map(|_| id)
    }

    /// Asks the control side about these items of the request at this place.
    fn ask(&mut self, gateway: GatewayId, at: usize, asked: Vec<u32>, out: &mut Vec<Output>) {
        if asked.is_empty() {
            return;
        }
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        let Some(session) = &known.session else { return };
        let Some(Waiting::Subscribe { items, .. }) = session.requests.get(at) else { return };
        let items: Vec<SubscribeItem> = asked.iter().map(|at| items[*at as usize].clone()).collect();
        let keys: Vec<(u32, SubscriptionKey)> =
            asked.into_iter().zip(items.iter().map(|item| item.key.clone())).collect();
        for (_, key) in &keys {
            *known.asking.entry(key.clone()).or_default() += 1;
        }
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let request = session.answered + at as u64;
        self.tickets.insert(ticket, Asking { gateway, connection: session.connection, request, keys });
        out.push(Output::Admit { ticket, gateway: known.name.to_string(), items });
    }

    pub(super) fn on_admitted(
        &mut self,
        ticket: Ticket,
        results: Vec<Result<Admission, Refusal>>,
        out: &mut Vec<Output>,
    ) {
        let Some(Asking { gateway, connection, request, keys }) = self.tickets.remove(&ticket) else {
            self.stats.strays += 1;
            return;
        };
        debug_assert_eq!(results.len(), keys.len(), "an answer for each item asked about");
        let answers = keys.into_iter().zip(results.into_iter().map(ItemState::of_answer));
        let session = self.gateways.session_mut(gateway).filter(|session| session.connection == connection);
        let Some(session) = session else {
            // The session that asked has ended: nobody waits for this, and what was counted in must be counted out.
            for ((_, key), state) in answers {
                self.asked_in_vain(gateway, &key, &state, out);
            }
            self.gateways.forget_if_idle(gateway);
            return;
        };
        let at = request.checked_sub(session.answered).and_then(|at| usize::try_from(at).ok());
        let Some(Waiting::Subscribe { states, .. }) = at.and_then(|at| session.requests.get_mut(at)) else {
            debug_assert!(false, "{ticket:?} is for no request");
            return;
        };
        for ((at, _), answer) in answers {
            if let Some(state) = states.get_mut(at as usize).filter(|state| matches!(state, ItemState::Asked)) {
                *state = answer;
            }
        }
        self.answer_on_credit(gateway, out);
    }

    /// Acts on the first request as far as there are units, and answers it if that is all.
    fn act_on(&mut self, gateway: GatewayId, units: &mut Units, out: &mut Vec<Output>) -> Next {
        let Some(session) = self.gateways.session_mut(gateway) else { return Next::Waits };
        let connection = session.connection;
        let reply = match session.requests.front_mut() {
            None => return Next::Waits,
            Some(Waiting::Subscribe { items, states, results, .. }) => {
                if results.len() < items.len() {
                    let (items, states, results) =
                        (std::mem::take(items), std::mem::take(states), std::mem::take(results));
                    return self.subscribe_on(gateway, Subscribing { items, states, results }, units, out);
                }
                if !session.batch.presented.is_empty() {
                    self.start_batch(gateway, units);
                    return Next::GoesOn;
                }
                let Some(Waiting::Subscribe { request, results, .. }) = session.pop_request() else {
                    return Next::Waits;
                };
                Reply::Subscribed { request, results }
            }
            Some(Waiting::Unsubscribe { keys, request }) => {
                let request = if !keys.is_empty() {
                    let left = keys.len().saturating_sub(units.room_for(LIFE_UNITS));
                    let keys: Vec<_> = keys.drain(left..).rev().collect();
                    units.take(LIFE_UNITS * keys.len() as u32);
                    let ids = keys.iter().filter_map(|key| self.subs.find(gateway, key)).collect();
                    let (request, more) = (*request, left > 0);
                    self.end(ids, CloseReason::Unsubscribed, out);
                    if more {
                        return Next::GoesOn;
                    }
                    request
                } else {
                    *request
                };
                if let Some(session) = self.gateways.session_mut(gateway) {
                    session.pop_request();
                }
                Reply::Unsubscribed { request }
            }
            Some(Waiting::SyncDone { request, begun }) => {
                let (request, begun) = (*request, std::mem::replace(begun, true));
                if !self.sync_on(gateway, begun, units) {
                    return Next::GoesOn;
                }
                if let Some(session) = self.gateways.session_mut(gateway) {
                    session.pop_request();
                }
                Reply::Synced { request }
            }
            Some(Waiting::Ping { nonce }) => {
                let nonce = *nonce;
                units.take(1);
                session.pop_request();
                Reply::Pong { nonce }
            }
        };
        out.push(Output::Reply { connection, reply });
        Next::GoesOn
    }

    /// Acts on the items of the first request, which is given back.
    fn subscribe_on(
        &mut self,
        gateway: GatewayId,
        mut subscribing: Subscribing,
        units: &mut Units,
        out: &mut Vec<Output>,
    ) -> Next {
        let mut next = Next::GoesOn;
        let mut ask = Vec::new();
        while next == Next::GoesOn && !units.are_spent() {
            let Subscribing { items, states, results } = &mut subscribing;
            let at = results.len();
            let (Some(item), Some(state)) = (items.get_mut(at), states.get_mut(at)) else { break };
            let Some(session) = self.gateways.session(gateway) else { break };
            if session.closed_waiting >= CLOSED_WAITING_MAX {
                next = Next::Waits;
                break;
            }
            if session.batch.presented.len() >= BATCH_MAX {
                self.start_batch(gateway, units);
                break;
            }
            units.take(ITEM_UNITS);
            let result = match std::mem::replace(state, ItemState::Done) {
                ItemState::Answered(result) => result,
                ItemState::Refused(Refusal { code, message }) => {
                    self.stats.subscriptions_rejected += 1;
                    self.asked(gateway, &item.key, out);
                    SubscribeResult::Rejected { code, message }
                }
                ItemState::Renewal => match self.same(gateway, item) {
                    Some(id) => self.renewed(gateway, id, item, out),
                    None => {
                        // It was one when the request came, and is none any more because of what came before it.
                        *state = ItemState::Renewal;
                        ask = self.lost_renewals(gateway, &mut subscribing);
                        next = Next::Waits;
                        break;
                    }
                },
                ItemState::Admitted(admission) => {
                    let key = item.key.clone();
                    let result = match self.same(gateway, item) {
                        Some(id) => self.renewed(gateway, id, item, out),
                        None => {
                            units.take(LIFE_UNITS);
                            self.created(gateway, item, admission, out)
                        }
                    };
                    self.asked(gateway, &key, out);
                    result
                }
                ItemState::Asked => {
                    *state = ItemState::Asked;
                    next = Next::Waits;
                    break;
                }
                ItemState::Done => {
                    debug_assert!(false, "an item is acted upon twice");
                    SubscribeResult::Rejected { code: ErrorCode::Internal, message: "acted upon twice".into() }
                }
            };
            subscribing.results.push(result);
        }
        if let Some(session) = self.gateways.session_mut(gateway)
            && let Some(Waiting::Subscribe { items, states, results, .. }) = session.requests.front_mut()
        {
            (*items, *states, *results) = (subscribing.items, subscribing.states, subscribing.results);
        }
        self.ask(gateway, 0, ask, out);
        next
    }

    /// From the first item on that has not been acted upon, some that were renewals and are none any more. They are asked about.
    fn lost_renewals(&self, gateway: GatewayId, subscribing: &mut Subscribing) -> Vec<u32> {
        let Subscribing { items, states, results } = subscribing;
        let mut lost = Vec::new();
        for (at, (item, state)) in
            items.iter().zip(states.iter_mut()).enumerate().skip(results.len()).take(ITEMS_ASKED_MAX)
        {
            if matches!(state, ItemState::Renewal) && self.same(gateway, item).is_none() {
                *state = ItemState::Asked;
                lost.push(at as u32);
            }
        }
        lost
    }

    fn renewed(
        &mut self,
        gateway: GatewayId,
        id: SubId,
        item: &mut SubscribeItem,
        out: &mut Vec<Output>,
    ) -> SubscribeResult {
        let expires_in_s = self.ttl_s(item);
        let positions = self.presented(item);
        self.stats.subscriptions_renewed += 1;
        if let Some(presented) = self.renew(gateway, id, expires_in_s, positions, out)
            && let Some(session) = self.gateways.session_mut(gateway)
        {
            session.batch.add(presented);
        }
        SubscribeResult::Accepted { registration: Registration::Renewed, expires_in_s }
    }

    fn created(
        &mut self,
        gateway: GatewayId,
        item: &mut SubscribeItem,
        admission: Admission,
        out: &mut Vec<Output>,
    ) -> SubscribeResult {
        let expires_in_s = self.ttl_s(item);
        let content = self.subs.content_of(item);
        let positions = self.presented(item);
        let key = SubscriptionKey { tenant: item.key.tenant.clone(), id: std::mem::take(&mut item.key.id) };
        let item = SubscribeItem {
            key,
            collection: std::mem::take(&mut item.collection),
            filters: String::new(),
            expr: String::new(),
            positions,
            group: None,
            ..*item
        };
        let old = self.subs.find(gateway, &item.key);
        let generation = old.map_or(1, |old| self.subs.generation_of(old).wrapping_add(1));
        // What the old one wants stays in the filter until the new one is in: if that wants the same, it need not wait.
        let held = old.and_then(|id| self.subs.rest(id)).map(|old| old.filter_key());
        held.into_iter().for_each(|key| _ = self.filter.add(key));
        match old {
            Some(old) => {
                self.stats.subscriptions_replaced += 1;
                self.end(vec![old], CloseReason::Replaced, out);
            }
            None => self.stats.subscriptions_created += 1,
        }
        self.create(gateway, item, content, admission, generation, true, out);
        held.into_iter().for_each(|key| self.filter.remove(key));
        let registration = if old.is_some() { Registration::Replaced } else { Registration::Created };
        SubscribeResult::Accepted { registration, expires_in_s }
    }

    /// The positions that are presented for an item, of the sources that there are.
    fn presented(&self, item: &mut SubscribeItem) -> Positions {
        let mut positions = std::mem::take(&mut item.positions);
        let configured = |backend| self.config.backends.iter().any(|known| known.id == backend);
        if !positions.iter().all(|position| configured(position.backend)) {
            positions = positions.iter().filter(|position| configured(position.backend)).copied().collect();
        }
        positions
    }

    /// An answer of the control side has been acted upon.
    fn asked(&mut self, gateway: GatewayId, key: &SubscriptionKey, out: &mut Vec<Output>) {
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        match known.asking.get_mut(key) {
            Some(times) if *times > 1 => *times -= 1,
            _ => {
                known.asking.remove(key);
                if known.unreleased.remove(key) && self.subs.find(gateway, key).is_none() {
                    self.release(gateway, vec![key.clone()], out);
                }
            }
        }
    }

    /// The same where nobody waits for it any more.
    pub(super) fn asked_in_vain(
        &mut self,
        gateway: GatewayId,
        key: &SubscriptionKey,
        state: &ItemState,
        out: &mut Vec<Output>,
    ) {
        let admitted = match state {
            ItemState::Admitted(_) => true,
            ItemState::Refused(_) => false,
            ItemState::Answered(_) | ItemState::Renewal | ItemState::Asked | ItemState::Done => return,
        };
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        if admitted && self.subs.find(gateway, key).is_none() {
            known.unreleased.insert(key.clone());
        }
        self.asked(gateway, key, out);
    }

    /// Binds what the session has not presented. True once that is all.
    fn sync_on(&mut self, gateway: GatewayId, begun: bool, units: &mut Units) -> bool {
        let Some(known) = self.gateways.get_mut(gateway) else { return true };
        let Some(session) = &mut known.session else { return true };
        if !begun {
            session.synced = true;
            known.members.start_walk();
        }
        while !units.are_spent() && session.batch.presented.len() < BATCH_MAX {
            let Some(id) = self.subs.walk(&mut known.members) else {
                if session.batch.presented.is_empty() {
                    self.sync.synced(&known.name, self.filter.version());
                    return true;
                }
                break;
            };
            units.take(1);
            if self.subs.get(id).is_some_and(|sub| sub.is_live() && !session.has_bound(sub)) {
                session.batch.add(Presented { sub: id, positions: Positions::default() });
            }
        }
        if !units.are_spent() && !session.batch.presented.is_empty() {
            self.start_batch(gateway, units);
        }
        false
    }
}

/// A `Subscribe` that is being acted upon.
struct Subscribing {
    items: Vec<SubscribeItem>,
    states: Vec<ItemState>,
    results: Vec<SubscribeResult>,
}
