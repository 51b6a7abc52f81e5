//! What each change must lead to, by brute force: every subscription of the place is evaluated from its JSON filters and its
//! CEL source on decoded documents.
//!
//! Invariants:
//! - It shares no code with the crate `predicate`: no parsing, no comparison, no mapping. Too simple to be wrong.
//! - One answer differs from the node's on purpose: an int against a double beyond 2^53 in CEL, which the interpreter compares
//!   as doubles. Generators avoid it.
//!
//! What is left open elsewhere is settled here like this:
//! - A subscription is to one document if one of its *filters* is `_id ==` (`syntrix`: `id ==` too). After a delete without any
//!   image it matches for certain only if that filter is all it has; else whether it matched isn't known.
//! - An update whose look-up found nothing leaves nothing that could match: with a before-image that matched it is a `leave`,
//!   without one it is nothing, and the delete that the look-up met follows.
//! - `before` is null where the before-image belongs to another tenant or collection: tenants are walls.
//! - A change whose stored id names another tenant than one of its images is dropped.

mod cel;
mod change;
mod compare;
mod filter;
#[cfg(test)]
mod tests;
mod view;

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use bson::Bson;
use cel_interpreter::{Context, Env};
use wire::{Certainty, EventId, Operation, SubscriptionKey, Transition};

use change::Place;
pub use change::{ChangeKind, DeletedMark, Namespace, Numbering, OracleChange, Preset};
use view::View;
pub(crate) use view::short_hash;
pub use view::stored_id;

use self::{cel::Expression, filter::Filter};

#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    #[error("filters can't be read: {what}; allowed is a list of {{\"field\", \"op\", \"value\"}}; got {text}")]
    Filter { what: String, text: String },
    #[error("expression can't be compiled: {what}; got {source_text}")]
    Cel { what: String, source_text: String },
    #[error("change event can't be read: {what}; got {event}")]
    Event { what: String, event: String },
    #[error("cluster time ran backwards, from {from} to {to}")]
    TimeRanBackwards { from: u64, to: u64 },
}

/// A subscription, as a Gateway states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OracleSubscription {
    pub gateway: String,
    pub key: SubscriptionKey,
    pub collection: String,
    /// JSON list; empty text means none.
    pub filters: String,
    /// CEL; empty text means none.
    pub expr: String,
    /// Whether updates that make a document stop matching are told as `leave`.
    pub transitions: bool,
}

/// A delivery that must happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub gateway: String,
    pub key: SubscriptionKey,
    pub id: EventId,
    pub transition: Transition,
    pub certainty: Certainty,
}

struct Subscription {
    gateway: String,
    key: SubscriptionKey,
    filters: Vec<Filter>,
    expression: Option<Expression>,
    transitions: bool,
}

/// All subscriptions, by tenant and collection.
pub struct Oracle {
    preset: Preset,
    env: Arc<Env>,
    tenants: BTreeMap<String, BTreeMap<String, Vec<Subscription>>>,
    /// The collection of every subscription, by Gateway and key.
    homes: HashMap<(String, SubscriptionKey), String>,
}

impl fmt::Debug for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oracle").field("preset", &self.preset).field("subscriptions", &self.homes.len()).finish()
    }
}

impl Oracle {
    pub fn new(preset: Preset) -> Self {
        Self { preset, env: Arc::new(Env::stdlib()), tenants: BTreeMap::new(), homes: HashMap::new() }
    }

    /// Puts a subscription in the place of what its Gateway had under its key.
    pub fn subscribe(&mut self, subscription: OracleSubscription) -> Result<(), OracleError> {
        let OracleSubscription { gateway, key, collection, filters, expr, transitions } = subscription;
        let filters = filter::parse(&filters, self.preset)?;
        let expression = Expression::parse(&expr)?;
        self.unsubscribe(&gateway, &key);
        self.homes.insert((gateway.clone(), key.clone()), collection.clone());
        let place = self.tenants.entry(key.tenant.clone()).or_default().entry(collection).or_default();
        place.push(Subscription { gateway, key, filters, expression, transitions });
        Ok(())
    }

    /// Whether there was such a subscription.
    pub fn unsubscribe(&mut self, gateway: &str, key: &SubscriptionKey) -> bool {
        let Some(collection) = self.homes.remove(&(gateway.to_owned(), key.clone())) else { return false };
        if let Some(place) = self.tenants.get_mut(&key.tenant).and_then(|places| places.get_mut(&collection)) {
            place.retain(|subscription| subscription.gateway != gateway || subscription.key != *key);
        }
        true
    }

    pub fn len(&self) -> usize {
        self.homes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.homes.is_empty()
    }

    /// Every delivery that the change must lead to.
    pub fn expect(&self, change: &OracleChange) -> Vec<Expected> {
        let image = |document: &Option<bson::Document>| {
            let document = document.as_ref()?;
            Some(Image {
                place: view::place_of(document, &change.namespace, self.preset),
                view: View::of(document, self.preset),
            })
        };
        let (before, after) = (image(&change.before), image(&change.after));
        if self.preset == Preset::Syntrix && contradicts(change, [&before, &after]) {
            return Vec::new();
        }
        let operation = change.operation(self.preset);
        if before.is_none() && after.is_none() {
            return if change.kind == ChangeKind::Delete { self.expect_bare_delete(change) } else { Vec::new() };
        }
        let mut places: Vec<&Place> =
            [&before, &after].into_iter().flatten().filter_map(|i| i.place.as_ref()).collect();
        places.dedup();
        let mut all = Vec::new();
        for place in places {
            let scene = Scene::new(self, place, operation, before.as_ref(), after.as_ref());
            for subscription in self.subscriptions(place) {
                if let Some(transition) = scene.transition(subscription) {
                    all.push(subscription.expected(change.id, transition, Certainty::Matched));
                }
            }
        }
        all
    }

    fn subscriptions(&self, place: &Place) -> &[Subscription] {
        self.tenants.get(&place.tenant).and_then(|places| places.get(&place.collection)).map_or(&[], Vec::as_slice)
    }

    /// A delete of which nothing but the stored id and the namespace is known.
    fn expect_bare_delete(&self, change: &OracleChange) -> Vec<Expected> {
        let (tenant, known) = match self.preset {
            Preset::Plain => (change.namespace.database.as_str(), Some(&change.namespace.collection)),
            Preset::Syntrix => match view::tenant_of_stored_id(&change.stored_id) {
                Some(tenant) => (tenant, None),
                None => return Vec::new(),
            },
        };
        let mut all = Vec::new();
        for (collection, subscriptions) in self.tenants.get(tenant).into_iter().flatten() {
            if known.is_some_and(|known| known != collection) {
                continue;
            }
            for subscription in subscriptions {
                let certainty = self.certainty_of_bare_delete(subscription, collection, known.is_some(), change);
                all.extend(certainty.map(|c| subscription.expected(change.id, Transition::Leave, c)));
            }
        }
        all
    }

    fn certainty_of_bare_delete(
        &self,
        subscription: &Subscription,
        collection: &str,
        collection_is_known: bool,
        change: &OracleChange,
    ) -> Option<Certainty> {
        let conditions = subscription.filters.len() + usize::from(subscription.expression.is_some());
        let ids: Vec<&Bson> = subscription.filters.iter().filter_map(|f| f.document_id(self.preset)).collect();
        let is_stored_id = |id: &&Bson| match self.preset {
            Preset::Plain => compare::equal(id, &change.stored_id),
            Preset::Syntrix => id.as_str().is_some_and(|id| {
                change.stored_id.as_str() == Some(&stored_id(&subscription.key.tenant, collection, id))
            }),
        };
        if !ids.iter().all(is_stored_id) {
            return None;
        }
        let decided = if conditions == 0 { collection_is_known } else { ids.len() == conditions };
        Some(if decided { Certainty::Matched } else { Certainty::Unknown })
    }
}

impl Subscription {
    fn expected(&self, id: EventId, transition: Transition, certainty: Certainty) -> Expected {
        Expected { gateway: self.gateway.clone(), key: self.key.clone(), id, transition, certainty }
    }

    fn reads_change(&self) -> bool {
        self.expression.as_ref().is_some_and(|expression| expression.reads_change)
    }
}

/// A document as it was before or after the change.
struct Image {
    /// `None` where the document doesn't say.
    place: Option<Place>,
    view: View,
}

/// Whether the stored id names another tenant than one of the images.
fn contradicts(change: &OracleChange, images: [&Option<Image>; 2]) -> bool {
    let Some(named) = view::tenant_of_stored_id(&change.stored_id) else { return false };
    images.into_iter().flatten().filter_map(|image| image.place.as_ref()).any(|place| place.tenant != named)
}

/// A change as seen from one place: images that belong elsewhere are not there.
struct Scene<'a> {
    operation: Operation,
    /// Whether the source gave an image of the document before the change, of this place or another.
    has_before: bool,
    before: Option<Sight<'a>>,
    after: Option<Sight<'a>>,
}

/// One image, with what expressions may name beside it, made when the first one asks.
struct Sight<'a> {
    oracle: &'a Oracle,
    place: &'a Place,
    operation: Operation,
    view: &'a View,
    before: Option<&'a View>,
    context: OnceCell<Context<'static, 'static>>,
}

impl<'a> Scene<'a> {
    fn new(
        oracle: &'a Oracle,
        place: &'a Place,
        operation: Operation,
        before: Option<&'a Image>,
        after: Option<&'a Image>,
    ) -> Self {
        let here = |image: Option<&'a Image>| image.filter(|i| i.place.as_ref() == Some(place)).map(|i| &i.view);
        let sight =
            |view: &'a View| Sight { oracle, place, operation, view, before: here(before), context: OnceCell::new() };
        Self { operation, has_before: before.is_some(), before: here(before).map(sight), after: here(after).map(sight) }
    }

    fn transition(&self, subscription: &Subscription) -> Option<Transition> {
        let matches = |sight: &Option<Sight<'_>>| sight.as_ref().is_some_and(|sight| sight.matches(subscription));
        if subscription.reads_change() {
            return match self.operation {
                Operation::Insert => matches(&self.after).then_some(Transition::Enter),
                Operation::Update => matches(&self.after).then_some(Transition::Update),
                Operation::Delete => matches(self.last_known()).then_some(Transition::Leave),
            };
        }
        match self.operation {
            // A before-image here is that of the soft-deleted document, which was not there to subscribers.
            Operation::Insert => matches(&self.after).then_some(Transition::Enter),
            Operation::Update if !self.has_before => matches(&self.after).then_some(Transition::Update),
            Operation::Update => match (matches(&self.before), matches(&self.after)) {
                (false, true) => Some(Transition::Enter),
                (true, true) => Some(Transition::Update),
                (true, false) => subscription.transitions.then_some(Transition::Leave),
                (false, false) => None,
            },
            Operation::Delete => matches(self.last_known()).then_some(Transition::Leave),
        }
    }

    /// What a deleted document was: its before-image, or what a soft delete left of it.
    fn last_known(&self) -> &Option<Sight<'a>> {
        if self.has_before { &self.before } else { &self.after }
    }
}

impl Sight<'_> {
    fn matches(&self, subscription: &Subscription) -> bool {
        subscription.filters.iter().all(|filter| filter.holds(self.view))
            && subscription.expression.as_ref().is_none_or(|expression| expression.holds(self.context()))
    }

    fn context(&self) -> &Context<'static, 'static> {
        self.context.get_or_init(|| {
            let variables = cel::Variables {
                document: &self.view.fields,
                before: self.before.map(|view| &view.fields),
                id: self.view.id.as_ref(),
                tenant: &self.place.tenant,
                collection: &self.place.collection,
                change_type: match self.operation {
                    Operation::Insert => "insert",
                    Operation::Update => "update",
                    Operation::Delete => "delete",
                },
            };
            cel::context(&self.oracle.env, &variables)
        })
    }
}
