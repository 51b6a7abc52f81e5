//! Commands from the control thread: registration over HTTP.

use wire::{CloseReason, Registration, SubscribeItem, SubscriptionKey};

use super::Shard;
use crate::subscription::{GatewayId, SubId};
use crate::{Admission, Command, CommandKind, CommandReply, Output};

impl Shard {
    pub(super) fn on_command(&mut self, command: Command, out: &mut Vec<Output>) {
        let Command { id, gateway: name, what } = command;
        let reply = match what {
            CommandKind::Register { item, admission } => {
                let gateway = self.gateways.open(&name);
                self.register(gateway, item, admission, out)
            }
            CommandKind::Renew { key } => self.renew_over_http(&name, &key),
            CommandKind::Remove { key, reason } => {
                let found = self.find(&name, &key);
                let reply = self.remove(found.into_iter().collect(), reason, out);
                // What replaces it is on another shard: nothing follows here.
                let known = self.gateways.find(&name).and_then(|id| self.gateways.get(id));
                if known.is_none_or(|known| known.subscriptions.is_empty()) {
                    self.sync.gone(&name);
                }
                reply
            }
            CommandKind::RemoveAll => {
                let known = self.gateways.find(&name).and_then(|id| self.gateways.get(id));
                let all = known.map_or_else(Vec::new, |known| known.subscriptions.values().copied().collect());
                self.remove(all, CloseReason::Removed, out)
            }
        };
        out.push(Output::Commanded { id, reply });
    }

    fn find(&self, gateway: &str, key: &SubscriptionKey) -> Option<SubId> {
        self.gateways.get(self.gateways.find(gateway)?)?.subscriptions.get(key).copied()
    }

    fn register(
        &mut self,
        gateway: GatewayId,
        item: SubscribeItem,
        admission: Admission,
        out: &mut Vec<Output>,
    ) -> CommandReply {
        let ttl_ms = self.ttl_ms(&item);
        let known = self.gateways.get(gateway).and_then(|known| known.subscriptions.get(&item.key).copied());
        let time = self.time;
        let (id, registration) = match known {
            Some(id) => {
                let Some(sub) = self.subs.get_mut(id).filter(|sub| sub.content.is_of(&item)) else {
                    return CommandReply::Exists;
                };
                sub.ttl_ms = ttl_ms;
                sub.expires_at = time + ttl_ms;
                self.stats.subscriptions_renewed += 1;
                (id, Registration::Renewed)
            }
            None => {
                self.stats.subscriptions_created += 1;
                (self.create(gateway, item, admission, 1, None, out), Registration::Created)
            }
        };
        let filter_version = self.subs.get(id).map_or(0, |sub| sub.filter_version);
        CommandReply::Registered { registration, filter_version, expires_in_ms: ttl_ms }
    }

    fn renew_over_http(&mut self, gateway: &str, key: &SubscriptionKey) -> CommandReply {
        let time = self.time;
        match self.find(gateway, key).and_then(|id| self.subs.get_mut(id)) {
            Some(sub) => {
                sub.expires_at = time + sub.ttl_ms;
                CommandReply::Renewed { expires_in_ms: sub.ttl_ms }
            }
            None if self.expired.has(gateway, key) => CommandReply::Expired,
            None => CommandReply::NotFound,
        }
    }

    fn remove(&mut self, subs: Vec<SubId>, reason: CloseReason, out: &mut Vec<Output>) -> CommandReply {
        let count = subs.len() as u64;
        self.end(subs, reason, out);
        CommandReply::Removed { count }
    }
}
