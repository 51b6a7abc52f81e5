//! Positions in the form that an application keeps them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wire::{Positions, SubscriptionKey};

/// Up to where the application was done with each subscription, at one moment. To be kept wherever the application keeps
/// what it made of the changes, best in the same transaction, and given to the next process by
/// [`GatewayBuilder::resume_from`](crate::GatewayBuilder::resume_from).
///
/// Serialises as a list of `{"tenant", "id", "positions"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Saved>", into = "Vec<Saved>")]
pub struct SavedPositions(BTreeMap<SubscriptionKey, Positions>);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Saved {
    tenant: String,
    id: String,
    positions: Positions,
}

impl SavedPositions {
    pub fn get(&self, key: &SubscriptionKey) -> Option<&Positions> {
        self.0.get(key)
    }

    pub fn insert(&mut self, key: SubscriptionKey, positions: Positions) {
        self.0.insert(key, positions);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&SubscriptionKey, &Positions)> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(SubscriptionKey, Positions)> for SavedPositions {
    fn from_iter<I: IntoIterator<Item = (SubscriptionKey, Positions)>>(positions: I) -> Self {
        Self(positions.into_iter().collect())
    }
}

impl From<Vec<Saved>> for SavedPositions {
    fn from(saved: Vec<Saved>) -> Self {
        saved.into_iter().map(|s| (SubscriptionKey { tenant: s.tenant, id: s.id }, s.positions)).collect()
    }
}

impl From<SavedPositions> for Vec<Saved> {
    fn from(positions: SavedPositions) -> Self {
        let saved = |(key, positions): (SubscriptionKey, _)| Saved { tenant: key.tenant, id: key.id, positions };
        positions.0.into_iter().map(saved).collect()
    }
}

#[cfg(test)]
mod tests {
    use wire::{BackendId, Lineage, Position};

    use super::*;

    #[test]
    fn comes_back_from_json() {
        let key = |id: &str| SubscriptionKey { tenant: "t".into(), id: id.into() };
        let position = Position { backend: BackendId(1), lineage: Lineage(u64::MAX), time: u64::MAX - 1, k: 3 };
        let saved: SavedPositions =
            [(key("a"), [position].into_iter().collect()), (key("b"), Positions::default())].into_iter().collect();
        let text = serde_json::to_string(&saved).unwrap();
        assert!(text.starts_with(r#"[{"tenant":"t","id":"a","positions":"#), "{text}");
        assert_eq!(serde_json::from_str::<SavedPositions>(&text).unwrap(), saved);
    }
}
