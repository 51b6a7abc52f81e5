//! Requests of Gateways, each answered in its turn.

use wire::{
    CloseReason, ErrorCode, MAX_UNANSWERED_REQUESTS, PlaceHash, Positions, Registration, Reply, Request, SubscribeItem,
    SubscribeResult, SubscriptionKey,
};

use super::life::Presented;
use super::{Asking, Shard};
use crate::config::{CLOSED_WAITING_MAX, ID_BYTES_MAX, NAME_BYTES_MAX};
use crate::session::{ItemState, Waiting};
use crate::subscription::{GatewayId, SubId};
use crate::{Admission, ConnectionId, Output, Refusal, Ticket};

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
                let states = self.examine(gateway, &items);
                Waiting::Subscribe { request, items, states, asking: None }
            }
            Request::Unsubscribe { request, keys } => Waiting::Unsubscribe { request, keys },
            Request::SyncDone { request } => Waiting::SyncDone { request },
            Request::Ping { nonce } => Waiting::Ping { nonce },
        };
        let Some(session) = self.gateways.session_mut(gateway) else { return };
        session.requests.push_back(waiting);
        let at = session.requests.len() - 1;
        if session.requests.len() > MAX_UNANSWERED_REQUESTS {
            self.stats.requests_too_many += 1;
            let message = format!("more than {MAX_UNANSWERED_REQUESTS} requests wait for their answer");
            self.refuse(gateway, ErrorCode::TooManyRequests, message, out);
            return;
        }
        self.ask(gateway, at, out);
        self.answer(gateway, out);
    }

    /// What of each item is known without asking anybody.
    fn examine(&mut self, gateway: GatewayId, items: &[SubscribeItem]) -> Vec<ItemState> {
        let max = self.config.subscribe_items_max;
        items
            .iter()
            .map(|item| {
                let checked = if items.len() > max {
                    Err(format!("{} items in one request where {max} are allowed", items.len()))
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
            })
            .collect()
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
        let id = *self.gateways.get(gateway)?.subscriptions.get(&item.key)?;
        self.subs.get(id).filter(|sub| sub.content.is_of(item)).map(|_| id)
    }

    /// Asks the control side about all items of the request at this place that it must be asked about.
    fn ask(&mut self, gateway: GatewayId, at: usize, out: &mut Vec<Output>) {
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        let Some(session) = &mut known.session else { return };
        let connection = session.connection;
        let Some(Waiting::Subscribe { items, states, asking, .. }) = session.requests.get_mut(at) else { return };
        let asked: Vec<SubscribeItem> = items
            .iter()
            .zip(states.iter())
            .filter(|(_, state)| matches!(state, ItemState::Asked))
            .map(|(item, _)| item.clone())
            .collect();
        if asked.is_empty() {
            return;
        }
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        *asking = Some(ticket);
        let keys: Vec<SubscriptionKey> = asked.iter().map(|item| item.key.clone()).collect();
        for key in &keys {
            *known.asking.entry(key.clone()).or_default() += 1;
        }
        self.tickets.insert(ticket, Asking { gateway, connection, keys });
        out.push(Output::Admit { ticket, gateway: known.name.to_string(), items: asked });
    }

    pub(super) fn on_admitted(
        &mut self,
        ticket: Ticket,
        results: Vec<Result<Admission, Refusal>>,
        out: &mut Vec<Output>,
    ) {
        let Some(Asking { gateway, connection, keys }) = self.tickets.remove(&ticket) else {
            self.stats.strays += 1;
            return;
        };
        debug_assert_eq!(results.len(), keys.len(), "an answer for each item asked about");
        let answers: Vec<ItemState> = results.into_iter().map(ItemState::of_answer).collect();
        let session = self.gateways.session_mut(gateway).filter(|session| session.connection == connection);
        let Some(session) = session else {
            // The session that asked has ended: nobody waits for this, and what was counted in must be counted out.
            for (key, state) in keys.iter().zip(&answers) {
                self.asked_in_vain(gateway, key, state, out);
            }
            self.gateways.forget_if_idle(gateway);
            return;
        };
        let waiting = session.requests.iter_mut().find_map(|waiting| match waiting {
            Waiting::Subscribe { states, asking, .. } if *asking == Some(ticket) => Some((states, asking)),
            _ => None,
        });
        let Some((states, asking)) = waiting else {
            debug_assert!(false, "{ticket:?} is for no request");
            return;
        };
        *asking = None;
        let asked = states.iter_mut().filter(|state| matches!(state, ItemState::Asked));
        asked.zip(answers).for_each(|(state, answer)| *state = answer);
        self.answer(gateway, out);
    }

    /// Answers requests as long as nothing has to be waited for.
    pub(super) fn answer(&mut self, gateway: GatewayId, out: &mut Vec<Output>) {
        loop {
            if self.must_wait(gateway, out) {
                return;
            }
            let Some(session) = self.gateways.session_mut(gateway) else { return };
            let connection = session.connection;
            let Some(waiting) = session.requests.pop_front() else { return };
            let reply = match waiting {
                Waiting::Subscribe { request, items, states, .. } => {
                    let results = self.subscribe(gateway, connection, items, states, out);
                    Reply::Subscribed { request, results }
                }
                Waiting::Unsubscribe { request, keys } => {
                    let known = self.gateways.get(gateway);
                    let ids = keys.iter().filter_map(|key| known?.subscriptions.get(key).copied()).collect();
                    self.end(ids, CloseReason::Unsubscribed, out);
                    Reply::Unsubscribed { request }
                }
                Waiting::SyncDone { request } => {
                    self.sync_done(gateway, out);
                    Reply::Synced { request }
                }
                Waiting::Ping { nonce } => Reply::Pong { nonce },
            };
            out.push(Output::Reply { connection, reply });
        }
    }

    /// Whether the first request waits for the control side. What was a renewal when it came, and is none any more because of
    /// a request before it, is asked about now.
    fn must_wait(&mut self, gateway: GatewayId, out: &mut Vec<Output>) -> bool {
        let Some(known) = self.gateways.get_mut(gateway) else { return true };
        let Some(session) = &mut known.session else { return true };
        if session.closed_waiting >= CLOSED_WAITING_MAX {
            // It subscribes and ends, and doesn't read of it. The next tick looks again.
            return true;
        }
        let Some(Waiting::Subscribe { items, states, asking, .. }) = session.requests.front_mut() else { return false };
        if asking.is_some() {
            return true;
        }
        let mut again = false;
        for (item, state) in items.iter().zip(states.iter_mut()) {
            let here = known.subscriptions.get(&item.key).and_then(|id| self.subs.get(*id));
            if matches!(state, ItemState::Renewal) && here.is_none_or(|sub| !sub.content.is_of(item)) {
                *state = ItemState::Asked;
                again = true;
            }
        }
        if again {
            self.ask(gateway, 0, out);
        }
        again
    }

    fn subscribe(
        &mut self,
        gateway: GatewayId,
        session: ConnectionId,
        items: Vec<SubscribeItem>,
        states: Vec<ItemState>,
        out: &mut Vec<Output>,
    ) -> Vec<SubscribeResult> {
        let mut results = Vec::with_capacity(items.len());
        let mut bind: Vec<Presented> = Vec::new();
        for (item, state) in items.into_iter().zip(states) {
            let key = item.key.clone();
            let was_asked = matches!(state, ItemState::Admitted(_) | ItemState::Refused(_) | ItemState::Asked);
            let result = match state {
                ItemState::Answered(result) => result,
                ItemState::Refused(Refusal { code, message }) => {
                    self.stats.subscriptions_rejected += 1;
                    SubscribeResult::Rejected { code, message }
                }
                ItemState::Asked => SubscribeResult::Rejected {
                    code: ErrorCode::Internal,
                    message: "the control side gave no answer for this item".into(),
                },
                ItemState::Renewal => self.accept(gateway, session, item, None, &mut bind, out),
                ItemState::Admitted(admission) => self.accept(gateway, session, item, Some(admission), &mut bind, out),
            };
            if was_asked {
                self.asked(gateway, &key, out);
            }
            results.push(result);
        }
        self.bind_all(gateway, bind, out);
        results
    }

    fn accept(
        &mut self,
        gateway: GatewayId,
        session: ConnectionId,
        item: SubscribeItem,
        admission: Option<Admission>,
        bind: &mut Vec<Presented>,
        out: &mut Vec<Output>,
    ) -> SubscribeResult {
        self.want(&item.positions);
        let expires_in_s = u32::try_from(self.ttl_ms(&item) / 1_000).unwrap_or(u32::MAX);
        let registration = match (self.same(gateway, &item), admission) {
            (Some(id), _) => {
                self.stats.subscriptions_renewed += 1;
                // The same subscription twice in one request is bound once, from what was presented last.
                bind.retain(|presented| presented.sub != id);
                bind.extend(self.renew(id, item, session));
                Registration::Renewed
            }
            (None, Some(admission)) => {
                let old = self.gateways.get(gateway).and_then(|known| known.subscriptions.get(&item.key).copied());
                let generation = old.and_then(|id| self.subs.get(id)).map_or(1, |old| old.generation.wrapping_add(1));
                // What the old one wants stays in the filter until the new one is in: if that wants the same, it need not wait.
                let held = old.and_then(|id| self.subs.get(id)).map(|old| old.filter_key);
                held.into_iter().for_each(|key| _ = self.filter.add(key));
                if let Some(old) = old {
                    bind.retain(|presented| presented.sub != old);
                    self.stats.subscriptions_replaced += 1;
                    self.end(vec![old], CloseReason::Replaced, out);
                } else {
                    self.stats.subscriptions_created += 1;
                }
                self.create(gateway, item, admission, generation, Some(session), out);
                held.into_iter().for_each(|key| self.filter.remove(key));
                if old.is_some() { Registration::Replaced } else { Registration::Created }
            }
            (None, None) => {
                // An item before it in the same request took its name with other content.
                self.stats.subscriptions_rejected += 1;
                return SubscribeResult::Rejected {
                    code: ErrorCode::InvalidRequest,
                    message: format!("subscription {:?} stands twice in one request with two contents", item.key.id),
                };
            }
        };
        SubscribeResult::Accepted { registration, expires_in_s }
    }

    fn want(&mut self, positions: &Positions) {
        if self.filter_seen == 0 {
            self.sync.want(positions);
        }
    }

    /// An answer of the control side has been acted upon.
    fn asked(&mut self, gateway: GatewayId, key: &SubscriptionKey, out: &mut Vec<Output>) {
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        match known.asking.get_mut(key) {
            Some(times) if *times > 1 => *times -= 1,
            _ => {
                known.asking.remove(key);
                if known.unreleased.remove(key) && !known.subscriptions.contains_key(key) {
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
            ItemState::Answered(_) | ItemState::Renewal | ItemState::Asked => return,
        };
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        if admitted && !known.subscriptions.contains_key(key) {
            known.unreleased.insert(key.clone());
        }
        self.asked(gateway, key, out);
    }

    fn sync_done(&mut self, gateway: GatewayId, out: &mut Vec<Output>) {
        let Some(known) = self.gateways.get_mut(gateway) else { return };
        let name = known.name.clone();
        let Some(session) = &mut known.session else { return };
        session.synced = true;
        let connection = session.connection;
        let unbound: Vec<Presented> = known
            .subscriptions
            .values()
            .filter(|id| {
                let sub = self.subs.get(**id);
                sub.is_some_and(|sub| sub.is_live() && sub.bound_in(connection).is_none())
            })
            .map(|id| Presented { sub: *id, positions: Positions::default() })
            .collect();
        self.bind_all(gateway, unbound, out);
        self.sync.synced(&name, self.filter.version());
    }
}
