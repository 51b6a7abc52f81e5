//! What the control side of a node does about subscriptions: compiles them, knows which shard holds each, and has a shard end what another one
//! holds now.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use predicate::{Mapping, Predicate, Source};
use shards::{Admission, Command, CommandId, CommandKind, Input, Millis, Ticket};
use wire::{CloseReason, SubscribeItem, SubscriptionKey};

/// Predicates compiled before: the same few come again at every registration.
pub(crate) type Compiled = HashMap<(String, String), Arc<Predicate>>;

/// That of one run of the node.
#[derive(Default)]
pub(crate) struct Registrar {
    asked: VecDeque<(usize, Ticket, String, Vec<SubscribeItem>)>,
    /// The shard that holds a Gateway's subscription, as far as is known.
    holders: HashMap<(String, SubscriptionKey), usize>,
    /// What shards were told, and when it gets there: by another way than answers, and so perhaps after later ones.
    commands: Vec<(u64, usize, Command)>,
}

impl Registrar {
    pub(crate) fn ask(&mut self, shard: usize, ticket: Ticket, gateway: String, items: Vec<SubscribeItem>) {
        self.asked.push_back((shard, ticket, gateway, items));
    }

    /// A shard no longer has these.
    pub(crate) fn released(&mut self, shard: usize, gateway: &str, keys: &[SubscriptionKey]) {
        for key in keys {
            let name = (gateway.to_owned(), key.clone());
            if self.holders.get(&name) == Some(&shard) {
                self.holders.remove(&name);
            }
        }
    }

    /// The answer to the oldest request, and the shard that it was from. What moves away from another shard by it is ended there, which
    /// gets there after `late_ms`.
    pub(crate) fn answer(&mut self, compiled: &mut Compiled, late_ms: u64, now: Millis) -> Option<(usize, Input)> {
        let (shard, ticket, gateway, items) = self.asked.pop_front()?;
        for item in &items {
            let old = self.holders.insert((gateway.clone(), item.key.clone()), shard);
            if let Some(old) = old.filter(|old| *old != shard) {
                let what = CommandKind::Remove { key: item.key.clone(), reason: CloseReason::Replaced };
                self.commands.push((
                    now.0 + late_ms,
                    old,
                    Command { id: CommandId(0), gateway: gateway.clone(), what },
                ));
            }
        }
        let results = items
            .into_iter()
            .map(|item| {
                let predicate = compiled
                    .entry((item.filters.clone(), item.expr.clone()))
                    .or_insert_with(|| {
                        let source = Source { filters: &item.filters, expr: &item.expr };
                        Arc::new(Predicate::compile(source, &Mapping::syntrix()).expect("generated predicates compile"))
                    })
                    .clone();
                Ok(Admission { predicate })
            })
            .collect();
        Some((shard, Input::Admitted { ticket, results }))
    }

    /// The oldest command that has got to its shard.
    pub(crate) fn command(&mut self, now: Millis) -> Option<(usize, Input)> {
        let at = self.commands.iter().position(|(at, ..)| *at <= now.0)?;
        let (_, shard, command) = self.commands.remove(at);
        Some((shard, Input::Command(command)))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.commands.is_empty()
    }
}
