//! The thread `streamer-registrar`: the one owner of the [`Registrar`], asked by the shards (QUIC) and by HTTP alike.
//!
//! Invariants:
//! - Whatever comes in is worked on in the order it comes, one at a time; so two who ask for the last free place can't both get it.
//! - The thread never waits for a shard: what it sends goes into channels without a bound of their own. They hold at most one answer
//!   for each admission that a shard waits for, one command for each HTTP request in flight ([`super::http`] bounds these), and
//!   one removal for each subscription that moved.
//! - Everybody who asked is answered, or finds the other end of the answer gone when a shard has ended.

use std::{collections::HashMap, io, thread};

use predicate::COMPILE_STACK_BYTES;
use shards::{
    Command, CommandId, CommandKind, CommandReply, Refusal,
    driver::{AdmissionAnswer, FromShard},
};
use tokio::sync::oneshot;
use tracing::{debug, warn};
use wire::{CloseReason, ErrorCode, SubscribeItem, SubscriptionKey};

use super::{
    admission::{Counts, Moved, Registrar, RegistrarConfig},
    credentials::{Credentials, Identity},
};

/// Stack beyond what compiling needs.
const STACK_MARGIN_BYTES: usize = 1 << 20;
/// Messages of shards and of HTTP that may wait for the registrar. Beyond it shards keep them, and requests wait.
const BACKLOG_MAX: usize = 4_096;
/// Questions in flight beyond which those are dropped whose asker has gone.
const PENDING_BEFORE_CLEANING: usize = 4_096;
/// Tenants in which one id is looked for.
const FOUND_MAX: usize = 64;

/// The registrar's ends of the channels to one shard.
#[derive(Clone, Debug)]
pub struct ShardSenders {
    pub commands: flume::Sender<Command>,
    pub admissions: flume::Sender<AdmissionAnswer>,
}

/// One shard's ends of the same channels.
#[derive(Debug)]
pub struct ShardReceivers {
    pub commands: flume::Receiver<Command>,
    pub admissions: flume::Receiver<AdmissionAnswer>,
    pub to_control: flume::Sender<FromShard>,
}

/// What [`super::start`] is given of the channels.
#[derive(Debug)]
pub struct ShardChannels {
    pub senders: Vec<ShardSenders>,
    pub from_shards: flume::Receiver<FromShard>,
}

/// Makes the channels between the control side and this many shards.
pub fn channels(shards: usize) -> (ShardChannels, Vec<ShardReceivers>) {
    let (to_control, from_shards) = flume::bounded(BACKLOG_MAX);
    let pairs = (0..shards).map(|_| {
        let (commands, commands_in) = flume::unbounded();
        let (admissions, admissions_in) = flume::unbounded();
        let receivers =
            ShardReceivers { commands: commands_in, admissions: admissions_in, to_control: to_control.clone() };
        (ShardSenders { commands, admissions }, receivers)
    });
    let (senders, receivers) = pairs.unzip();
    (ShardChannels { senders, from_shards }, receivers)
}

/// The registrar as HTTP handlers see it.
#[derive(Clone, Debug)]
pub struct Registry {
    asks: flume::Sender<Ask>,
    shards: u16,
}

/// Where a subscription may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    pub key: SubscriptionKey,
    /// `None`: the ledger doesn't know it; it may have expired on any shard.
    pub shard: Option<u16>,
}

#[derive(Debug)]
enum Ask {
    Register { identity: Identity, item: Box<SubscribeItem>, reply: Asker },
    Command { shard: u16, gateway: String, what: CommandKind, reply: Asker },
    Locate { identity: Identity, id: String, reply: oneshot::Sender<Vec<Located>> },
    Holder { gateway: String, key: SubscriptionKey, reply: oneshot::Sender<Option<u16>> },
    Counts { reply: oneshot::Sender<Counts> },
}

impl Registry {
    /// Counts in, compiles and registers. The shard's answer, or why not.
    pub async fn register(&self, identity: &Identity, item: SubscribeItem) -> Result<CommandReply, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Register { identity: identity.clone(), item: Box::new(item), reply }, answer).await?
    }

    pub async fn command(&self, shard: u16, gateway: &str, what: CommandKind) -> Result<CommandReply, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Command { shard, gateway: gateway.to_owned(), what, reply }, answer).await?
    }

    /// The shard that holds this subscription.
    pub async fn holder(&self, gateway: &str, key: &SubscriptionKey) -> Result<Option<u16>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Holder { gateway: gateway.to_owned(), key: key.clone(), reply }, answer).await
    }

    /// Where the Gateway has subscriptions of this id, over all tenants.
    pub async fn locate(&self, identity: &Identity, id: &str) -> Result<Vec<Located>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Locate { identity: identity.clone(), id: id.to_owned(), reply }, answer).await
    }

    pub async fn counts(&self) -> Result<Counts, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Counts { reply }, answer).await
    }

    pub fn shards(&self) -> u16 {
        self.shards
    }

    async fn ask<T>(&self, ask: Ask, answer: oneshot::Receiver<T>) -> Result<T, Refusal> {
        self.asks.send_async(ask).await.map_err(|_| unavailable("the registrar has ended"))?;
        answer.await.map_err(|_| unavailable("the shard has ended"))
    }
}

/// Starts the registrar's thread. It ends once all shards and every [`Registry`] are gone.
pub fn start(
    config: RegistrarConfig,
    credentials: Credentials,
    channels: ShardChannels,
    pin: impl FnOnce() + Send + 'static,
) -> io::Result<(Registry, thread::JoinHandle<()>)> {
    let (asks, asked) = flume::bounded(BACKLOG_MAX);
    let registry = Registry { asks, shards: config.shards };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let thread = thread::Builder::new()
        .name("streamer-registrar".into())
        .stack_size(COMPILE_STACK_BYTES + STACK_MARGIN_BYTES)
        .spawn(move || {
            pin();
            let mut desk = Desk {
                registrar: Registrar::new(config),
                credentials,
                senders: channels.senders,
                pending: HashMap::new(),
                next_command: 1,
            };
            runtime.block_on(desk.run(channels.from_shards, asked));
        })?;
    Ok((registry, thread))
}

type Asker = oneshot::Sender<Result<CommandReply, Refusal>>;

struct Pending {
    asker: Asker,
    /// What the command registers, and for whom.
    registers: Option<(String, SubscriptionKey)>,
}

/// The state of the registrar's thread.
struct Desk {
    registrar: Registrar,
    credentials: Credentials,
    senders: Vec<ShardSenders>,
    /// Who waits for which command.
    pending: HashMap<CommandId, Pending>,
    next_command: u64,
}

impl Desk {
    async fn run(&mut self, from_shards: flume::Receiver<FromShard>, asked: flume::Receiver<Ask>) {
        let (mut shards_open, mut asks_open) = (true, true);
        while shards_open || asks_open {
            tokio::select! {
                message = from_shards.recv_async(), if shards_open => match message {
                    Ok(message) => self.on_shard(message),
                    Err(flume::RecvError::Disconnected) => {
                        shards_open = false;
                        // Nobody will answer these any more.
                        self.pending.clear();
                    }
                },
                ask = asked.recv_async(), if asks_open => match ask {
                    Ok(ask) => self.on_ask(ask),
                    Err(flume::RecvError::Disconnected) => asks_open = false,
                },
            }
        }
    }

    fn on_shard(&mut self, message: FromShard) {
        match message {
            FromShard::Admit { shard, ticket, gateway, items } => {
                let tenants = self.credentials.tenants_of(&gateway);
                let mut results = Vec::with_capacity(items.len());
                for item in &items {
                    match self.registrar.admit(shard, &gateway, &tenants, item, Moved::Replace) {
                        Ok(admitted) => {
                            if let Some(old) = admitted.moved_from {
                                self.remove_moved(old, &gateway, &item.key);
                            }
                            results.push(Ok(admitted.admission));
                        }
                        Err(refusal) => results.push(Err(refusal)),
                    }
                }
                // A shard that has ended waits for nothing.
                let _ = self.senders[usize::from(shard)].admissions.send((ticket, results));
            }
            FromShard::Released { shard, gateway, keys } => self.registrar.released(shard, &gateway, &keys),
            FromShard::Commanded { shard, id, reply } => match self.pending.remove(&id) {
                Some(Pending { asker, registers }) => {
                    if let (Some((gateway, key)), CommandReply::Registered { .. }) = (registers, &reply) {
                        self.registrar.confirmed(shard, &gateway, &key);
                    }
                    // Whoever asked may have gone.
                    drop(asker.send(Ok(reply)));
                }
                None => debug!(shard, command = id.0, ?reply, "nobody waits for this reply"),
            },
        }
    }

    fn on_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Register { identity, item, reply } => {
                let Identity { gateway, tenants } = identity;
                let shard = self.registrar.owner(&item);
                match self.registrar.admit(shard, &gateway, &tenants, &item, Moved::Refuse) {
                    Ok(admitted) => {
                        let key = item.key.clone();
                        let what = CommandKind::Register { item: *item, admission: admitted.admission };
                        let registers = Some((gateway.clone(), key.clone()));
                        if !self.command(shard, gateway.clone(), what, Some(Pending { asker: reply, registers })) {
                            self.registrar.released(shard, &gateway, &[key]);
                        }
                    }
                    Err(refusal) => drop(reply.send(Err(refusal))),
                }
            }
            Ask::Command { shard, gateway, what, reply } => {
                self.command(shard, gateway, what, Some(Pending { asker: reply, registers: None }));
            }
            Ask::Holder { gateway, key, reply } => drop(reply.send(self.registrar.holder(&gateway, &key))),
            Ask::Locate { identity, id, reply } => {
                let found = self.registrar.find(&identity.gateway, &identity.tenants, &id, FOUND_MAX);
                let found = found.into_iter().map(|(key, shard)| Located { key, shard: Some(shard) }).collect();
                let _ = reply.send(found);
            }
            Ask::Counts { reply } => drop(reply.send(self.registrar.counts())),
        }
    }

    /// Sends a command on its way. `false` when the shard has ended; whoever asked finds its answer gone then.
    fn command(&mut self, shard: u16, gateway: String, what: CommandKind, pending: Option<Pending>) -> bool {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        let sent = match self.senders.get(usize::from(shard)) {
            Some(senders) => senders.commands.send(Command { id, gateway, what }).is_ok(),
            None => false,
        };
        if !sent {
            warn!(shard, "a command found its shard ended");
            return false;
        }
        if let Some(pending) = pending {
            // Those that gave up, because their shard has ended or stands still.
            if self.pending.len() >= PENDING_BEFORE_CLEANING {
                self.pending.retain(|_, pending| !pending.asker.is_closed());
            }
            self.pending.insert(id, pending);
        }
        true
    }

    /// An id that another shard holds now is over in the old one. What HTTP may just be registering there comes before the removal, and
    /// is not to be counted when it is confirmed: by then the id may have ended where it is now.
    fn remove_moved(&mut self, shard: u16, gateway: &str, key: &SubscriptionKey) {
        for pending in self.pending.values_mut() {
            pending.registers.take_if(|(of, registered)| of == gateway && registered == key);
        }
        let what = CommandKind::Remove { key: key.clone(), reason: CloseReason::Replaced };
        self.command(shard, gateway.to_owned(), what, None);
    }
}

fn unavailable(message: &str) -> Refusal {
    Refusal { code: ErrorCode::ShuttingDown, message: message.into() }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use predicate::Mapping;
    use shards::Ticket;
    use wire::{PlaceHash, SlotTable};

    use super::*;
    use crate::{
        config::{Config, Tenants},
        control::admission::{Limits, Quotas},
    };

    pub(crate) fn item(tenant: &str, id: &str, collection: &str) -> SubscribeItem {
        SubscribeItem::new(SubscriptionKey { tenant: tenant.into(), id: id.into() }, collection)
    }

    fn config(shards: u16, per_gateway: u64) -> RegistrarConfig {
        let quotas = Quotas { per_gateway, per_tenant: 1_000, per_node: 1_000 };
        let limits = Limits { quotas, ttl_min_s: 60, ttl_max_s: 3600 };
        RegistrarConfig::new(Arc::new(Mapping::syntrix()), shards, limits)
    }

    fn identity() -> Identity {
        Identity { gateway: "g".into(), tenants: Tenants::All }
    }

    #[tokio::test]
    async fn quic_and_http_share_one_quota_over_all_shards() {
        let (channels, shards) = channels(4);
        let credentials = Credentials::of(&Config::default());
        let (registry, thread) = start(config(4, 20), credentials, channels, || {}).unwrap();
        // Each shard says yes to every command.
        let answering: Vec<_> = shards
            .iter()
            .enumerate()
            .map(|(index, shard)| {
                let (commands, to_control) = (shard.commands.clone(), shard.to_control.clone());
                tokio::spawn(async move {
                    while let Ok(command) = commands.recv_async().await {
                        let reply = CommandReply::Registered {
                            registration: wire::Registration::Created,
                            filter_version: 1,
                            expires_in_ms: 300_000,
                        };
                        let shard = index as u16;
                        to_control.send_async(FromShard::Commanded { shard, id: command.id, reply }).await.unwrap();
                    }
                })
            })
            .collect();
        let mut accepted = 0;
        for round in 0..10 {
            for (index, shard) in shards.iter().enumerate() {
                let items = vec![item("t", &format!("q{index}-{round}"), "c")];
                let ask = FromShard::Admit { shard: index as u16, ticket: Ticket(round), gateway: "g".into(), items };
                shard.to_control.send_async(ask).await.unwrap();
                let (ticket, results) = shard.admissions.recv_async().await.unwrap();
                assert_eq!((ticket, results.len()), (Ticket(round), 1));
                accepted += results.iter().filter(|result| result.is_ok()).count();
            }
            for index in 0..2 {
                let item = item("t", &format!("h{index}-{round}"), &format!("c{index}"));
                match registry.register(&identity(), item).await {
                    Ok(_) => accepted += 1,
                    Err(refusal) => assert_eq!(refusal.code, ErrorCode::GatewayQuotaExceeded),
                }
            }
        }
        assert_eq!(accepted, 20);
        let counts = registry.counts().await.unwrap();
        assert_eq!((counts.total, counts.by_gateway), (20, vec![("g".to_owned(), 20)]));
        drop((registry, shards));
        for task in answering {
            task.abort();
            let _ = task.await;
        }
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn an_id_that_moves_is_removed_from_its_old_shard() {
        let (channels, shards) = channels(2);
        let credentials = Credentials::of(&Config::default());
        let (registry, _thread) = start(config(2, 20), credentials, channels, || {}).unwrap();
        for shard in [0, 1] {
            let ask =
                FromShard::Admit { shard, ticket: Ticket(1), gateway: "g".into(), items: vec![item("t", "s", "c")] };
            shards[0].to_control.send(ask).unwrap();
            shards[usize::from(shard)].admissions.recv_async().await.unwrap();
        }
        let command = shards[0].commands.recv_async().await.unwrap();
        assert!(matches!(command.what, CommandKind::Remove { reason: CloseReason::Replaced, .. }), "{command:?}");
        let key = item("t", "s", "c").key;
        assert_eq!(registry.holder("g", &key).await.unwrap(), Some(1));
        shards[0].to_control.send(FromShard::Released { shard: 0, gateway: "g".into(), keys: vec![key] }).unwrap();
        assert_eq!(registry.counts().await.unwrap().total, 1);
    }

    #[tokio::test]
    async fn what_http_registers_where_an_id_was_until_it_moved_is_not_counted_there() {
        let (channels, shards) = channels(2);
        let credentials = Credentials::of(&Config::default());
        let (registry, _thread) = start(config(2, 20), credentials, channels, || {}).unwrap();
        let old = item("t", "s", "c");
        let at = SlotTable { shards: 2 }.owner(PlaceHash::of("t", "c"));
        let other = 1 - at;
        let asked = registry.clone();
        let registering = tokio::spawn(async move { asked.register(&identity(), old).await });
        let command = shards[usize::from(at)].commands.recv_async().await.unwrap();
        // Before the shard answers, the id moves over QUIC, and ends there.
        let items = vec![item("t", "s", "elsewhere")];
        let ask = FromShard::Admit { shard: other, ticket: Ticket(1), gateway: "g".into(), items };
        shards[0].to_control.send(ask).unwrap();
        shards[usize::from(other)].admissions.recv_async().await.unwrap();
        let keys = vec![item("t", "s", "c").key];
        shards[0].to_control.send(FromShard::Released { shard: other, gateway: "g".into(), keys }).unwrap();
        let removal = shards[usize::from(at)].commands.recv_async().await.unwrap();
        assert!(matches!(removal.what, CommandKind::Remove { reason: CloseReason::Replaced, .. }), "{removal:?}");
        let reply = CommandReply::Registered {
            registration: wire::Registration::Created,
            filter_version: 1,
            expires_in_ms: 300_000,
        };
        shards[0].to_control.send(FromShard::Commanded { shard: at, id: command.id, reply }).unwrap();
        registering.await.unwrap().unwrap();
        assert_eq!(registry.counts().await.unwrap().total, 0, "it is removed there by the next command");
    }

    #[tokio::test]
    async fn a_shard_that_has_ended_is_an_answer() {
        let (channels, shards) = channels(1);
        let credentials = Credentials::of(&Config::default());
        let (registry, thread) = start(config(1, 20), credentials, channels, || {}).unwrap();
        drop(shards);
        let refusal = registry.register(&identity(), item("t", "s", "c")).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::ShuttingDown);
        assert_eq!(registry.counts().await.unwrap().total, 0);
        drop(registry);
        thread.join().unwrap();
    }
}
