//! `/metrics/tenants`: what has as many values as there are tenants, Gateways or collections. On an endpoint of its own, to be scraped
//! rarely or not at all, and bounded: those with the most are told, and how many are left out.

use std::{fmt, sync::Arc};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

use super::{Labels, NodeState, family, text_of};
use crate::control::{admission::Counts, live::hot_places};

/// Tenants, and Gateways, that are told.
pub(super) const NAMES_MAX: usize = 1_000;

/// The metrics by name, as text.
pub(in crate::control) fn render(state: &Arc<NodeState>, counts: Counts) -> Result<String, fmt::Error> {
    text_of(Names { state: state.clone(), counts })
}

#[derive(Debug)]
struct Names {
    state: Arc<NodeState>,
    counts: Counts,
}

/// Those with the most.
fn most(counts: &[(String, u64)]) -> Vec<&(String, u64)> {
    let mut all: Vec<_> = counts.iter().collect();
    all.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    all.truncate(NAMES_MAX);
    all
}

impl Collector for Names {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self { state, counts } = self;
        let named = |label: &'static str, counts: &[(String, u64)]| {
            let most = most(counts).into_iter();
            most.map(|(name, count)| (vec![(label, name.clone())], *count)).collect::<Vec<(Labels, u64)>>()
        };
        let left_out = |counts: &[(String, u64)]| [(Labels::new(), counts.len().saturating_sub(NAMES_MAX) as u64)];
        let gauge = MetricType::Gauge;
        let help = "Subscriptions of the tenant, of those with the most";
        family(&mut encoder, "tenant_subscriptions", help, gauge, named("tenant", &counts.by_tenant))?;
        let help = "Tenants with fewer, which are not told";
        family(&mut encoder, "tenants_left_out", help, gauge, left_out(&counts.by_tenant))?;
        let help = "Subscriptions of the Gateway, of those with the most";
        family(&mut encoder, "gateway_subscriptions", help, gauge, named("gateway", &counts.by_gateway))?;
        let help = "Gateways with fewer, which are not told";
        family(&mut encoder, "gateways_left_out", help, gauge, left_out(&counts.by_gateway))?;
        let hot = hot_places(state).into_iter().map(|hot| {
            let labels = vec![("tenant", hot.tenant), ("collection", hot.collection)];
            (labels, hot.changes_per_s)
        });
        let help = "Changes a second of the collections that have the most, estimated over some seconds";
        family(&mut encoder, "hot_collection_changes", help, gauge, hot)
    }
}
