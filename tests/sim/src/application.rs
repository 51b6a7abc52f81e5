//! What is behind a Gateway: takes items, persists positions, and holds each item against what it must be given next.

use std::collections::{BTreeMap, VecDeque};

use streamer_gateway::core::{AppEvent, CoreConfig, GatewayCore, Input, Millis, Token};
use wire::{CloseReason, GapReason, Position, Positions, ResyncReason, SubscribeItem, SubscriptionKey};

use crate::{
    expected::{Expected, Number, Order, What},
    history::BACKEND,
};

pub(crate) struct Subscription {
    number: Number,
    item: SubscribeItem,
    /// Where its last item stands, or where it began: after the first `Live`, or the last `Resync`.
    pub(crate) last: Option<Order>,
    /// The same as of the last item up to which everything is done, with the positions that go with it.
    pub(crate) persisted: Option<Order>,
    positions: Positions,
    /// When the process that is there asks for it. `None`: it has.
    pub(crate) asks_at: Option<u64>,
    /// Whether any process has.
    ever_asked: bool,
    /// What came up to here came under its name before the process had asked for it, and was nobody's.
    pub(crate) nobodys_upto: Order,
}

impl Subscription {
    /// Where the next thing stands that it must be given after what stands at `last`.
    pub(crate) fn next_due(&self, expected: &Expected, last: Order) -> Option<Order> {
        expected.next_due(self.number, last)
    }

    /// Whether a process asks for it with something of its own, or for the first time.
    fn may_be_late(&self) -> bool {
        !self.positions.is_empty() || !self.ever_asked
    }
}

#[derive(Clone, Copy)]
enum Effect {
    None,
    Begin(Order),
    At(Order),
    StartOver(Order),
}

/// An item that the application was given and that isn't persisted yet.
struct Held {
    token: Token,
    key: SubscriptionKey,
    number: Option<Number>,
    effect: Effect,
    done: bool,
}

/// What the application was given, as far as others judge it or count it.
pub(crate) enum Taken {
    Nothing,
    Notice,
    Change(SubscriptionKey, Position),
    Gap(SubscriptionKey, Position),
    /// The source no longer had what came after `last`.
    Lost {
        key: SubscriptionKey,
        next_due: Option<Order>,
        upto: Order,
    },
    Resync(SubscriptionKey, ResyncReason),
    Closed(SubscriptionKey, CloseReason),
}

pub(crate) struct Application {
    pub(crate) name: String,
    pub(crate) core: GatewayCore,
    subscriptions: BTreeMap<SubscriptionKey, Subscription>,
    /// In the order in which they were given.
    held: VecDeque<Held>,
    waiting: usize,
    restarts: u64,
    seed: u64,
    address: String,
    /// Persists what it was given before it is done with it.
    early: bool,
    pub(crate) slow_until: u64,
    pub(crate) paused_until: u64,
    /// The process is gone, until then.
    pub(crate) dead_until: Option<u64>,
}

impl Application {
    pub(crate) fn new(name: String, seed: u64, address: String, early: bool, now: Millis) -> Self {
        Self {
            core: core(&name, seed, &address, now),
            name,
            subscriptions: BTreeMap::new(),
            held: VecDeque::new(),
            waiting: 0,
            restarts: 0,
            seed,
            address,
            early,
            slow_until: 0,
            paused_until: 0,
            dead_until: None,
        }
    }

    /// Whether its process is there and runs.
    pub(crate) fn runs(&self, now: u64) -> bool {
        self.dead_until.is_none() && self.paused_until <= now
    }

    pub(crate) fn subscribe(&mut self, number: Number, item: SubscribeItem, now: Millis) {
        let runs = self.dead_until.is_none();
        let subscription = Subscription {
            number,
            item: item.clone(),
            last: None,
            persisted: None,
            positions: Positions::default(),
            asks_at: None,
            ever_asked: runs,
            nobodys_upto: (0, 0),
        };
        self.subscriptions.insert(item.key.clone(), subscription);
        if runs {
            self.core.handle(Input::Subscribe(item), now);
        }
    }

    pub(crate) fn unsubscribe(&mut self, key: &SubscriptionKey, now: Millis) {
        self.subscriptions.remove(key);
        if self.dead_until.is_none() {
            self.core.handle(Input::Unsubscribe(key.clone()), now);
        }
    }

    pub(crate) fn get(&self, key: &SubscriptionKey) -> Option<&Subscription> {
        self.subscriptions.get(key)
    }

    /// Takes the next item, if there is one. Panics when it breaks a promise.
    pub(crate) fn take(&mut self, expected: &Expected) -> Taken {
        let Some((token, event)) = self.core.next_event() else { return Taken::Nothing };
        let key = event.subscription().clone();
        let is_notice = event.is_notice();
        let mut effect = Effect::None;
        let mut taken = Taken::Notice;
        let mut number = None;
        // Before it has asked, what comes under the name is none of its business.
        if let Some(subscription) = self.subscriptions.get_mut(&key).filter(|one| one.asks_at.is_none()) {
            number = Some(subscription.number);
            (effect, taken) = judge(&self.name, subscription, expected, event);
            subscription.last = after(subscription.last, effect);
            if let (true, Effect::At(_), Taken::Change(_, id)) = (self.early, effect, &taken) {
                subscription.positions.advance(*id);
            }
        }
        self.held.push_back(Held { token, key, number, effect, done: is_notice });
        if is_notice {
            // Nobody waits for its being done.
            self.persist(expected);
        } else {
            self.waiting += 1;
        }
        taken
    }

    /// Whatever the SDK has dropped as known goes to the application all the same.
    pub(crate) fn take_again(&self, key: &SubscriptionKey, id: Position) {
        if let Some(last) = self.subscriptions.get(key).and_then(|subscription| subscription.last) {
            assert!(last < id.order(), "{} {key:?}: {id} comes again", self.name);
        }
    }

    /// Items that it holds without being done with them.
    pub(crate) fn holds(&self) -> usize {
        self.waiting
    }

    /// Is done with the `index`-th of the items that it holds, and persists what that completes.
    pub(crate) fn finish(&mut self, index: usize, expected: &Expected, now: Millis) -> Vec<SubscriptionKey> {
        let Some(held) = self.held.iter_mut().filter(|held| !held.done).nth(index) else { return Vec::new() };
        held.done = true;
        self.waiting -= 1;
        self.core.handle(Input::Done(held.token), now);
        self.persist(expected)
    }

    /// Persists up to where it is done with everything. Gives the subscriptions that have started over.
    fn persist(&mut self, expected: &Expected) -> Vec<SubscriptionKey> {
        let (mut over, mut completed) = (Vec::new(), Vec::new());
        while self.held.front().is_some_and(|held| held.done)
            && let Some(held) = self.held.pop_front()
        {
            let Some(subscription) = self.subscriptions.get_mut(&held.key) else { continue };
            if held.number != Some(subscription.number) {
                continue;
            }
            subscription.persisted = after(subscription.persisted, held.effect);
            if matches!(held.effect, Effect::StartOver(_)) {
                over.push(held.key.clone());
            }
            completed.push(held.key);
        }
        for key in completed {
            let Some(subscription) = self.subscriptions.get_mut(&key) else { continue };
            if let Some(positions) = self.core.positions(&key).filter(|positions| !positions.is_empty()) {
                subscription.positions = positions;
            }
            if let (Some(persisted), Some(position)) = (subscription.persisted, subscription.positions.get(*BACKEND))
                && let Some(due) = subscription.next_due(expected, persisted)
            {
                let name = &self.name;
                assert!(due > position.order(), "{name} {key:?}: {position} is adopted before {due:?} is done");
            }
        }
        over
    }

    /// The process dies. What it had persisted stays.
    pub(crate) fn die(&mut self, until: u64) {
        self.held.clear();
        self.waiting = 0;
        self.dead_until = Some(until);
    }

    /// A new process takes the place of the one that died. `late` draws when it asks for a subscription, where that isn't at once.
    pub(crate) fn come_back(&mut self, now: Millis, mut late: impl FnMut() -> Option<u64>) {
        self.dead_until = None;
        self.restarts += 1;
        self.core = core(&self.name, self.seed + self.restarts, &self.address, now);
        for subscription in self.subscriptions.values_mut() {
            subscription.last = subscription.persisted;
            subscription.asks_at = late().filter(|_| subscription.may_be_late());
            if subscription.asks_at.is_none() {
                ask(&mut self.core, subscription, now);
            }
        }
    }

    /// Asks for what it was late to ask for, once the time has come. `read`: up to where anything has been read. Gives how many.
    pub(crate) fn ask_late(&mut self, read: Order, now: Millis) -> u64 {
        let mut count = 0;
        for subscription in self.subscriptions.values_mut() {
            if subscription.asks_at.take_if(|at| *at <= now.0).is_some() {
                subscription.nobodys_upto = read;
                ask(&mut self.core, subscription, now);
                count += 1;
            }
        }
        count
    }

    /// Whether the process has asked for all that it has.
    pub(crate) fn has_asked(&self) -> bool {
        self.subscriptions.values().all(|subscription| subscription.asks_at.is_none())
    }

    /// Whether a process has asked for this.
    pub(crate) fn has_ever_asked(&self, key: &SubscriptionKey) -> bool {
        self.subscriptions.get(key).is_some_and(|subscription| subscription.ever_asked)
    }

    /// Its subscriptions, by their names.
    pub(crate) fn subscriptions(&self) -> impl Iterator<Item = (&SubscriptionKey, &Subscription)> {
        self.subscriptions.iter()
    }

    /// Names of subscriptions that the SDK doesn't call live.
    pub(crate) fn not_live(&self) -> Vec<&SubscriptionKey> {
        self.subscriptions.keys().filter(|key| !self.core.is_live(key)).collect()
    }

    pub(crate) fn is_all_live(&self) -> bool {
        self.subscriptions.keys().all(|key| self.core.is_live(key))
    }
}

fn ask(core: &mut GatewayCore, subscription: &mut Subscription, now: Millis) {
    subscription.ever_asked = true;
    let item = SubscribeItem { positions: subscription.positions.clone(), ..subscription.item.clone() };
    core.handle(Input::Subscribe(item), now);
}

fn after(before: Option<Order>, effect: Effect) -> Option<Order> {
    match effect {
        Effect::None => before,
        Effect::Begin(at) => before.or(Some(at)),
        Effect::At(at) | Effect::StartOver(at) => Some(at),
    }
}

/// What the item does to the subscription, and how it is told. Panics when it isn't what had to come.
fn judge(name: &str, subscription: &Subscription, expected: &Expected, event: AppEvent) -> (Effect, Taken) {
    let key = &subscription.item.key;
    let number = subscription.number;
    let order = |live_from: &Positions| live_from.get(*BACKEND).map_or((0, 0), Position::order);
    let in_turn = |id: Order, what: &What| {
        let last = subscription.last.unwrap_or_else(|| panic!("{name} {key:?}: {what:?} of {id:?} before Live"));
        assert!(last < id, "{name} {key:?}: {id:?} after {last:?}");
        assert!(expected.allows(number, id, what), "{name} {key:?}: {what:?} of {id:?} is not expected");
        let due = subscription.next_due(expected, last);
        assert!(due.is_none_or(|due| due >= id), "{name} {key:?}: {due:?} is missing before {id:?}");
    };
    match event {
        AppEvent::Live { live_from, .. } => (Effect::Begin(order(&live_from)), Taken::Notice),
        AppEvent::Change(change) => {
            let id = change.id();
            in_turn(id.order(), &What::Change(change.transition(), change.certainty()));
            (Effect::At(id.order()), Taken::Change(key.clone(), id))
        }
        AppEvent::Gap { reason: GapReason::HistoryLost, position, .. } => {
            let last = subscription.last.unwrap_or_else(|| panic!("{name} {key:?}: a gap before Live"));
            let next_due = subscription.next_due(expected, last);
            let upto = position.order();
            (Effect::At(upto), Taken::Lost { key: key.clone(), next_due, upto })
        }
        AppEvent::Gap { reason, position, .. } => {
            in_turn(position.order(), &What::Gap(reason));
            (Effect::At(position.order()), Taken::Gap(key.clone(), position))
        }
        AppEvent::Resync { reason, live_from, .. } => {
            (Effect::StartOver(order(&live_from)), Taken::Resync(key.clone(), reason))
        }
        AppEvent::CatchingUp { .. } | AppEvent::CaughtUp { .. } => (Effect::None, Taken::Notice),
        AppEvent::Closed { reason, .. } => (Effect::None, Taken::Closed(key.clone(), reason)),
        AppEvent::Rejected { code, message, .. } => panic!("{name} {key:?}: rejected ({code:?}): {message}"),
    }
}

fn core(name: &str, seed: u64, address: &str, now: Millis) -> GatewayCore {
    let config = CoreConfig {
        gateway: name.to_owned(),
        token: String::new(),
        agent: "sim".into(),
        addresses: vec![address.to_owned()],
        can_verify: true,
        queue_bytes_max: 64 * 1024,
        jitter_seed: seed,
    };
    GatewayCore::new(config, now)
}
