//! Health, metrics and topology.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use wire::ErrorCode;

use super::{ApiError, Shared, in_time};
use crate::control::{
    metrics,
    state::{Health, Readiness, ShardPlace},
};

/// Ready, degraded or neither, and why. The same body for `/health` and `/health/ready`.
pub(super) async fn health(State(app): Shared) -> (StatusCode, Json<Health>) {
    let health = app.state.health();
    let status = match health.status {
        // To take a node that lags out of service would leave its Gateways without any.
        Readiness::Ready | Readiness::Degraded => StatusCode::OK,
        Readiness::NotReady => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(health))
}

#[derive(Debug, Serialize)]
pub(super) struct Live {
    status: &'static str,
}

/// Whether a restart would help: it does once a shard has ended, and doesn't while a source is away.
pub(super) async fn live(State(app): Shared) -> (StatusCode, Json<Live>) {
    if app.state.is_alive() {
        (StatusCode::OK, Json(Live { status: "live" }))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Live { status: "a shard has ended" }))
    }
}

pub(super) async fn metrics(State(app): Shared) -> Result<Response, ApiError> {
    let text = metrics::render(&app.state).map_err(|error| ApiError::of(ErrorCode::Internal, error.to_string()))?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

pub(super) async fn metrics_by_name(State(app): Shared) -> Result<Response, ApiError> {
    let counts = in_time(app.registry.counts()).await?;
    let text = metrics::names::render(&app.state, counts);
    let text = text.map_err(|error| ApiError::of(ErrorCode::Internal, error.to_string()))?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// What [`topology`] tells, for whoever reads it.
#[derive(Debug, Serialize)]
pub(super) struct TopologyBody {
    /// 32 hexadecimal digits, new at every start.
    epoch: String,
    fingerprint: String,
    protocol: &'static str,
    slots: u16,
    shards: Vec<ShardBody>,
    cores: Cores,
    mapping: String,
    subscriptions: Subscriptions,
}

#[derive(Debug, Serialize)]
struct ShardBody {
    #[serde(flatten)]
    place: ShardPlace,
    /// First and last slot that it owns.
    slots: (u16, u16),
    alive: bool,
    sessions: u64,
    subscriptions: u64,
}

#[derive(Debug, Serialize)]
struct Cores {
    ingest: Vec<usize>,
    control: Vec<usize>,
}

#[derive(Debug, Serialize)]
struct Subscriptions {
    total: u64,
    by_gateway: serde_json::Map<String, serde_json::Value>,
    by_tenant: serde_json::Map<String, serde_json::Value>,
    by_shard: Vec<u64>,
}

pub(super) async fn topology(State(app): Shared) -> Result<Json<TopologyBody>, ApiError> {
    let counts = in_time(app.registry.counts()).await?;
    let topology = &app.topology;
    let shards = u32::from(topology.slots.shards.max(1));
    let all = u32::from(wire::SLOTS);
    // Shard i of n owns the slots s with s * n / all == i.
    let first = |shard: u32| (shard * all).div_ceil(shards) as u16;
    let bodies = topology.shards.iter().map(|place| {
        let index = u32::from(place.partition);
        let state = app.state.shards.get(usize::from(place.partition));
        let stats = state.map(|state| state.stats());
        ShardBody {
            place: place.clone(),
            slots: (first(index), first(index + 1) - 1),
            alive: state.is_some_and(|state| state.is_alive()),
            sessions: stats.as_ref().map_or(0, |stats| stats.driver.sessions),
            subscriptions: counts.by_shard.get(usize::from(place.partition)).copied().unwrap_or(0),
        }
    });
    let map = |counts: &[(String, u64)]| counts.iter().map(|(name, count)| (name.clone(), (*count).into())).collect();
    Ok(Json(TopologyBody {
        epoch: format!("{:032x}", topology.epoch.0),
        fingerprint: app.state.fingerprint().map_or_else(|| topology.fingerprint.clone(), |now| now.to_string()),
        protocol: "streamer/1",
        slots: wire::SLOTS,
        shards: bodies.collect(),
        cores: Cores { ingest: topology.ingest_cores.clone(), control: topology.control_cores.clone() },
        mapping: topology.mapping.clone(),
        subscriptions: Subscriptions {
            total: counts.total,
            by_gateway: map(&counts.by_gateway),
            by_tenant: map(&counts.by_tenant),
            by_shard: counts.by_shard.clone(),
        },
    }))
}
