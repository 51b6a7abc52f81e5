//! The registry: `POST`, heartbeat and `DELETE` of subscriptions.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, PathRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shards::{CommandKind, CommandReply};
use wire::{CloseReason, ErrorCode, Positions, Registration, SubscribeItem, SubscriptionKey};

use super::{ApiError, App, Shared, bearer, in_time, parse_body};
use crate::{
    config::{Tenants, valid_gateway_name},
    control::{credentials::Identity, registry::Located},
};

/// An unknown field is refused: a mistyped `filters` would subscribe to the whole collection.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RegisterBody<'b> {
    gateway_id: Option<String>,
    subscription_id: Option<String>,
    tenant: String,
    collection: String,
    #[serde(borrow)]
    filters: Option<&'b RawValue>,
    expr: Option<String>,
    /// Seconds.
    ttl: Option<u64>,
    transitions: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Naming {
    gateway_id: Option<String>,
    tenant: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Registered {
    subscription_id: String,
    /// Milliseconds since 1970, as in documents. Only for a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<u64>,
    expires_at: u64,
    filter_version: u64,
}

pub(super) async fn register(
    State(app): Shared,
    query: Result<Query<Naming>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body?;
    let body: RegisterBody<'_> = parse_body(&body)?;
    let Query(query) = query?;
    let claimed = body.gateway_id.or(query.gateway_id);
    let identity = app.credentials.gateway(bearer(&headers)?, claimed.as_deref())?;
    if app.state.is_stopping() {
        return Err(ApiError::of(ErrorCode::ShuttingDown, "the node is shutting down; register again once it is back"));
    }
    let ttl_max_s = u64::from(app.limits.load().ttl_max_s);
    let ttl_s = match body.ttl {
        None => 0,
        // 0 stands for the default inside, not here.
        Some(ttl) if ttl == 0 || ttl > ttl_max_s => {
            return Err(ApiError::invalid(format!("ttl {ttl} is not allowed; allowed: at most {ttl_max_s} seconds")));
        }
        Some(ttl) => u32::try_from(ttl).unwrap_or(u32::MAX),
    };
    let id = body.subscription_id.unwrap_or_else(|| format!("{:032x}", rand::rng().random::<u128>()));
    let item = SubscribeItem {
        key: SubscriptionKey { tenant: body.tenant, id: id.clone() },
        collection: body.collection,
        filters: body
            .filters
            .map(|filters| filters.get())
            .filter(|text| *text != "null")
            .unwrap_or_default()
            .to_owned(),
        expr: body.expr.unwrap_or_default(),
        ttl_s,
        transitions: body.transitions.unwrap_or(true),
        positions: Positions::default(),
        group: None,
        lossy: false,
    };
    match in_time(app.registry.register(&identity, item)).await? {
        CommandReply::Registered { registration, filter_version, expires_in_ms } => {
            let now = now_ms();
            let created = registration == Registration::Created;
            let status = if created { StatusCode::CREATED } else { StatusCode::OK };
            let body = Registered {
                subscription_id: id,
                created_at: created.then_some(now),
                expires_at: now.saturating_add(expires_in_ms),
                filter_version,
            };
            Ok((status, Json(body)).into_response())
        }
        CommandReply::Exists => {
            Err(ApiError::of(ErrorCode::SubscriptionExists, format!("subscription {id:?} exists with other content")))
        }
        CommandReply::Busy => Err(ApiError::of(
            ErrorCode::TooManyRequests,
            format!(
                "Gateway {:?} has not read of thousands of subscriptions that ended; try again once its session reads",
                identity.gateway
            ),
        )),
        other => Err(unexpected(&other)),
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Renewed {
    subscription_id: String,
    expires_at: u64,
}

pub(super) async fn heartbeat(
    State(app): Shared,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<Naming>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let (identity, id, candidates) = find(&app, path?.0, query?.0, &headers, &body?).await?;
    let mut expired = false;
    for Located { key, shard } in candidates {
        let shards = match shard {
            Some(shard) => shard..=shard,
            // The ledger doesn't know it. Whoever had it still knows whether it has expired.
            None => 0..=app.registry.shards().saturating_sub(1),
        };
        for shard in shards {
            let renew = CommandKind::Renew { key: key.clone() };
            match in_time(app.registry.command(shard, &identity.gateway, renew)).await? {
                CommandReply::Renewed { expires_in_ms } => {
                    let expires_at = now_ms().saturating_add(expires_in_ms);
                    return Ok(Json(Renewed { subscription_id: id, expires_at }).into_response());
                }
                CommandReply::Expired => expired = true,
                CommandReply::NotFound => {}
                other => return Err(unexpected(&other)),
            }
        }
    }
    Err(if expired {
        ApiError::of(ErrorCode::SubscriptionExpired, format!("subscription {id:?} has expired; register it again"))
    } else {
        ApiError::of(ErrorCode::SubscriptionNotFound, format!("there is no subscription {id:?}"))
    })
}

pub(super) async fn remove(
    State(app): Shared,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<Naming>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, ApiError> {
    let (identity, _, candidates) = find(&app, path?.0, query?.0, &headers, &body?).await?;
    for Located { key, shard } in candidates {
        // What the ledger doesn't know is gone already.
        let Some(shard) = shard else { continue };
        let remove = CommandKind::Remove { key, reason: CloseReason::Removed };
        in_time(app.registry.command(shard, &identity.gateway, remove)).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Serialize)]
pub(super) struct RemovedAll {
    removed: u64,
}

pub(super) async fn remove_all(
    State(app): Shared,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<RemovedAll>, ApiError> {
    let Path(gateway) = path?;
    if !valid_gateway_name(&gateway) {
        let allowed = "allowed: 1 to 128 of a-z, A-Z, 0-9, _ and -";
        return Err(ApiError::invalid(format!("gateway {gateway:?} is not allowed; {allowed}")));
    }
    let token = bearer(&headers)?;
    // The administrator may end any Gateway's, a Gateway its own.
    if app.credentials.admin(token).is_err() {
        app.credentials.gateway(token, Some(&gateway))?;
    }
    let mut removed = 0;
    for shard in 0..app.registry.shards() {
        match in_time(app.registry.command(shard, &gateway, CommandKind::RemoveAll)).await? {
            CommandReply::Removed { count } => removed += count,
            CommandReply::NotFound => {}
            other => return Err(unexpected(&other)),
        }
    }
    Ok(Json(RemovedAll { removed }))
}

/// Who calls, the id that the path names, and where that subscription may be: one place, or several tenants to try where the ledger
/// knows none.
async fn find(
    app: &Arc<App>,
    id: String,
    query: Naming,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<(Identity, String, Vec<Located>), ApiError> {
    let body: Naming = parse_body(body)?;
    let claimed = query.gateway_id.or(body.gateway_id);
    let identity = app.credentials.gateway(bearer(headers)?, claimed.as_deref())?;
    if !valid_gateway_name(&id) {
        let allowed = "allowed: 1 to 128 of a-z, A-Z, 0-9, _ and -";
        return Err(ApiError::invalid(format!("subscription id {id:?} is not allowed; {allowed}")));
    }
    if let Some(tenant) = query.tenant.or(body.tenant) {
        if !identity.tenants.allow(&tenant) {
            let message = format!("Gateway {:?} may not name tenant {tenant:?}", identity.gateway);
            return Err(ApiError::of(ErrorCode::Forbidden, message));
        }
        let key = SubscriptionKey { tenant, id: id.clone() };
        let shard = in_time(app.registry.holder(&identity.gateway, &key)).await?;
        return Ok((identity, id, vec![Located { key, shard }]));
    }
    let found = in_time(app.registry.locate(&identity, &id)).await?;
    if found.len() > 1 {
        let tenants: Vec<_> = found.iter().take(8).map(|located| located.key.tenant.as_str()).collect();
        let message =
            format!("subscription {id:?} exists in several tenants; say which with ?tenant=, such as {tenants:?}");
        return Err(ApiError::invalid(message));
    }
    if !found.is_empty() {
        return Ok((identity, id, found));
    }
    let unknown =
        |tenant: &String| Located { key: SubscriptionKey { tenant: tenant.clone(), id: id.clone() }, shard: None };
    let candidates = match &identity.tenants {
        Tenants::Only(names) => names.iter().take(TENANTS_TRIED_MAX).map(unknown).collect(),
        Tenants::All => Vec::new(),
    };
    Ok((identity, id, candidates))
}

/// Tenants that are tried for an id which the ledger doesn't know.
const TENANTS_TRIED_MAX: usize = 16;

fn unexpected(reply: &CommandReply) -> ApiError {
    ApiError::of(ErrorCode::Internal, format!("the shard gave an answer to something else: {reply:?}"))
}

#[allow(clippy::disallowed_methods, reason = "callers are told wall-clock times; nothing inside goes by them")]
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
