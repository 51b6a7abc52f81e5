//! Commands from the control thread: registration over HTTP. They are carried out one after the other, and each is answered once it
//! is.

use wire::{CloseReason, Registration, SubscribeItem, SubscriptionKey};

use super::Shard;
use super::work::{ITEM_UNITS, LIFE_UNITS, Removing, Units};
use crate::config::CLOSED_WAITING_MAX;
use crate::subscription::{GatewayId, SubId};
use crate::{Admission, Command, CommandKind, CommandReply, Output};

impl Shard {
    pub(super) fn on_command(&mut self, command: Command, out: &mut Vec<Output>) {
        self.rows.commands.push_back(command);
        let mut credit = self.credit;
        self.run_commands(&mut credit, out);
        self.credit = credit;
    }

    pub(super) fn run_commands(&mut self, units: &mut Units, out: &mut Vec<Output>) {
        while !units.are_spent() {
            if self.rows.removing.is_some() {
                self.go_on_removing(units, out);
                continue;
            }
            let Some(Command { id, gateway: name, what }) = self.rows.commands.pop_front() else { return };
            units.take(ITEM_UNITS);
            let reply = match what {
                CommandKind::Register { item, admission } => {
                    units.take(LIFE_UNITS);
                    let gateway = self.gateways.open(&name);
                    self.register(gateway, item, admission, out)
                }
                CommandKind::Renew { key } => self.renew_over_http(&name, &key),
                CommandKind::Remove { key, reason } => {
                    units.take(LIFE_UNITS);
                    let found: Vec<SubId> = self.find(&name, &key).into_iter().collect();
                    let count = found.len() as u64;
                    self.end(found, reason, out);
                    // What replaces it is on another shard: nothing follows here.
                    let known = self.gateways.find(&name).and_then(|id| self.gateways.get(id));
                    if known.is_none_or(|known| known.members.is_empty()) {
                        self.sync.gone(&name);
                    }
                    CommandReply::Removed { count }
                }
                CommandKind::RemoveAll => match self.gateways.find(&name) {
                    Some(gateway) => {
                        if let Some(known) = self.gateways.get_mut(gateway) {
                            known.removing = true;
                        }
                        self.rows.removing = Some(Removing { command: id, gateway, count: 0 });
                        continue;
                    }
                    None => CommandReply::Removed { count: 0 },
                },
            };
            out.push(Output::Commanded { id, reply });
        }
    }

    /// The Gateway's requests, and all commands behind this one, wait meanwhile. So nothing comes in that would be removed too.
    fn go_on_removing(&mut self, units: &mut Units, out: &mut Vec<Output>) {
        let Some(Removing { command, gateway, count }) = &mut self.rows.removing else { return };
        let (command, gateway) = (*command, *gateway);
        let Some(known) = self.gateways.get(gateway) else {
            debug_assert!(false, "a Gateway is forgotten while its subscriptions are removed");
            self.rows.removing = None;
            return;
        };
        let room = units.room_for(LIFE_UNITS);
        let ids: Vec<SubId> = self.subs.members(&known.members).map(|(id, _)| id).take(room).collect();
        if ids.is_empty() {
            let reply = CommandReply::Removed { count: *count };
            self.rows.removing = None;
            if let Some(known) = self.gateways.get_mut(gateway) {
                known.removing = false;
            }
            self.give_turn(gateway);
            out.push(Output::Commanded { id: command, reply });
            return;
        }
        *count += ids.len() as u64;
        units.take(LIFE_UNITS * ids.len() as u32);
        self.end(ids, CloseReason::Removed, out);
    }

    fn find(&self, gateway: &str, key: &SubscriptionKey) -> Option<SubId> {
        self.subs.find(self.gateways.find(gateway)?, key)
    }

    fn register(
        &mut self,
        gateway: GatewayId,
        item: SubscribeItem,
        admission: Admission,
        out: &mut Vec<Output>,
    ) -> CommandReply {
        let ttl_s = self.ttl_s(&item);
        let expires_in_ms = u64::from(ttl_s) * 1_000;
        let content = self.subs.content_of(&item);
        let time = self.time;
        let (id, registration) = match self.subs.find(gateway, &item.key) {
            Some(id) => {
                let Some(rest) = self.subs.rest_mut(id).filter(|rest| rest.is_of(&content)) else {
                    return CommandReply::Exists;
                };
                rest.set_ttl(ttl_s);
                rest.set_expires_at(time + expires_in_ms);
                self.stats.subscriptions_renewed += 1;
                (id, Registration::Renewed)
            }
            None => {
                let session = self.gateways.session(gateway);
                if session.is_some_and(|session| session.closed_waiting >= CLOSED_WAITING_MAX) {
                    // Each that comes and goes adds to what its Gateway's session has not read yet.
                    self.stats.subscriptions_rejected += 1;
                    self.release(gateway, vec![item.key], out);
                    return CommandReply::Busy;
                }
                let Some(id) = self.create(gateway, item, content, admission, 1, false, out) else {
                    debug_assert!(false, "{gateway:?} was opened for it");
                    return CommandReply::NotFound;
                };
                self.stats.subscriptions_created += 1;
                (id, Registration::Created)
            }
        };
        CommandReply::Registered { registration, filter_version: self.filter_version_of(id), expires_in_ms }
    }

    /// The version of the filter that it waits for. For one that is live, one that the ingest thread routes by.
    fn filter_version_of(&self, id: SubId) -> u64 {
        let waits = self.subs.get(id).is_some_and(|sub| !sub.is_live());
        match self.subs.rest(id).filter(|_| waits) {
            Some(rest) => self.pending.version(rest.pending_number()),
            None => self.filter_seen,
        }
    }

    fn renew_over_http(&mut self, gateway: &str, key: &SubscriptionKey) -> CommandReply {
        let time = self.time;
        match self.find(gateway, key).and_then(|id| self.subs.rest_mut(id)) {
            Some(rest) => {
                let expires_in_ms = rest.ttl_ms();
                rest.set_expires_at(time + expires_in_ms);
                CommandReply::Renewed { expires_in_ms }
            }
            None if self.expired.has(gateway, key) => CommandReply::Expired,
            None => CommandReply::NotFound,
        }
    }
}
