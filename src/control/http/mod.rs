//! The HTTP API: registry, health, metrics, topology and the documents of the embedded store.
//!
//! Invariants:
//! - Every answer that isn't a success is `{"code": …, "message": …}`, those of unknown paths and methods included.
//! - Who calls is known from the bearer token before anything of the body is looked at.
//! - In open mode only what was sent on this machine is answered: nothing that a web page of elsewhere made a browser send.
//! - At most [`REQUESTS_MAX`] requests are worked on at once, and [`BODIES_MAX`] of those that carry documents.

mod documents;
mod health;
mod live;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Request, State,
        rejection::{BytesRejection, PathRejection, QueryRejection},
    },
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, HOST, ORIGIN},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use serde::Serialize;
use shards::Refusal;
use tokio::sync::Semaphore;
use wire::ErrorCode;

use super::{
    admission::SharedLimits,
    credentials::{Credentials, Denied},
    names_loopback,
    registry::Registry,
    state::{NodeState, Topology},
};
use crate::ingest::source::embedded::EmbeddedStore;

/// Requests in work at once. Those above wait for their turn.
const REQUESTS_MAX: usize = 1_024;
/// Requests in work at once that carry documents, which may be large.
const BODIES_MAX: usize = 8;
/// How long a request to a shard may take.
const SHARD_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest body of a registration.
const REGISTRATION_BYTES_MAX: usize = 4 << 20;

/// What handlers share.
#[derive(Debug)]
pub(in crate::control) struct App {
    pub registry: Registry,
    pub credentials: Credentials,
    pub state: Arc<NodeState>,
    pub topology: Topology,
    /// The embedded stores, by the names of their backends.
    pub stores: Vec<(String, Arc<EmbeddedStore>)>,
    pub limits: SharedLimits,
    /// Bytes of the largest body with documents.
    pub body_bytes_max: usize,
    bodies: Semaphore,
    requests: Semaphore,
    /// Who looks at [`live`].
    watchers: Arc<Semaphore>,
}

impl App {
    pub(in crate::control) fn new(
        registry: Registry,
        credentials: Credentials,
        state: Arc<NodeState>,
        topology: Topology,
        stores: Vec<(String, Arc<EmbeddedStore>)>,
        limits: SharedLimits,
        config: &crate::config::Config,
    ) -> Self {
        Self {
            registry,
            credentials,
            state,
            topology,
            stores,
            limits,
            body_bytes_max: usize::try_from(config.http.max_body).unwrap_or(usize::MAX),
            bodies: Semaphore::new(BODIES_MAX),
            requests: Semaphore::new(REQUESTS_MAX),
            watchers: Arc::new(Semaphore::new(live::WATCHERS_MAX)),
        }
    }
}

type Shared = State<Arc<App>>;

pub(in crate::control) fn router(app: Arc<App>) -> Router {
    let documents = Router::new()
        .route("/v1/documents", post(documents::bulk))
        .route(
            "/v1/documents/{tenant}/{collection}/{id}",
            put(documents::put).delete(documents::delete).get(documents::get),
        )
        .layer(DefaultBodyLimit::max(app.body_bytes_max))
        // Inside the check, so that a stranger's body is never waited for.
        .layer(middleware::from_fn_with_state(app.clone(), one_of_few_bodies))
        .layer(middleware::from_fn_with_state(app.clone(), admin_only));
    let admin = Router::new()
        .route("/metrics", get(health::metrics))
        .route("/metrics/tenants", get(health::metrics_by_name))
        .route("/v1/topology", get(health::topology))
        .layer(middleware::from_fn_with_state(app.clone(), admin_only));
    let open = Router::new()
        .route("/internal/v1/subscriptions", post(subscriptions::register))
        .route("/internal/v1/subscriptions/{id}/heartbeat", put(subscriptions::heartbeat))
        .route("/internal/v1/subscriptions/{id}", delete(subscriptions::remove))
        .route("/internal/v1/gateways/{id}/subscriptions", delete(subscriptions::remove_all))
        .layer(DefaultBodyLimit::max(REGISTRATION_BYTES_MAX))
        .layer(middleware::from_fn_with_state(app.clone(), token_of_somebody));
    let health = Router::new()
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::health))
        .route("/", get(live::page));
    // It lasts as long as somebody looks, so it must not take a place among those in work.
    let live =
        Router::new().route("/v1/live", get(live::live)).layer(middleware::from_fn_with_state(app.clone(), admin_only));
    // Health is outside of the bound: it has to answer when everything else waits.
    documents
        .merge(admin)
        .merge(open)
        .layer(middleware::from_fn_with_state(app.clone(), one_of_many))
        .merge(health)
        .merge(live)
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(app.clone(), not_from_elsewhere))
        .with_state(app)
}

async fn not_found(request: Request) -> ApiError {
    let message = format!("there is no {}", request.uri().path());
    ApiError { status: StatusCode::NOT_FOUND, code: "NOT_FOUND", message }
}

async fn method_not_allowed(request: Request) -> ApiError {
    let message = format!("{} can't be used on {}", request.method(), request.uri().path());
    ApiError { status: StatusCode::METHOD_NOT_ALLOWED, code: "METHOD_NOT_ALLOWED", message }
}

/// Without tokens, who may ask is decided by who can reach loopback. A browser can, on behalf of any page: it then names the page in
/// `Origin`, or in `Host` where the page's name was made to mean this machine.
async fn not_from_elsewhere(State(app): Shared, request: Request, next: Next) -> Result<Response, ApiError> {
    if app.credentials.is_open() {
        let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
        let origin = text(ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, host)| host));
        if let Some(elsewhere) = [origin, text(HOST)].into_iter().flatten().find(|host| !names_loopback(host)) {
            let message =
                format!("{elsewhere:?} is not this machine; allowed while no [[gateways]] are configured: localhost");
            return Err(ApiError::of(ErrorCode::Forbidden, message));
        }
    }
    Ok(next.run(request).await)
}

async fn one_of_many(State(app): Shared, request: Request, next: Next) -> Response {
    // The semaphore is never closed.
    let _place = app.requests.acquire().await;
    next.run(request).await
}

async fn one_of_few_bodies(State(app): Shared, request: Request, next: Next) -> Response {
    let _place = app.bodies.acquire().await;
    next.run(request).await
}

async fn admin_only(State(app): Shared, request: Request, next: Next) -> Result<Response, ApiError> {
    app.credentials.admin(bearer(request.headers())?)?;
    Ok(next.run(request).await)
}

/// Turns away whoever shows no good token, before the body is read. Which Gateway it is, handlers ask again.
async fn token_of_somebody(State(app): Shared, request: Request, next: Next) -> Result<Response, ApiError> {
    let token = bearer(request.headers())?;
    if !app.credentials.is_open() && app.credentials.admin(token).is_err() {
        app.credentials.gateway(token, None)?;
    }
    Ok(next.run(request).await)
}

/// The token of `Authorization: Bearer …`.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    token.map(Some).ok_or_else(|| {
        ApiError::unauthorized("the Authorization header is not understood; allowed: Authorization: Bearer TOKEN")
    })
}

/// Anything but success.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    fn invalid(message: impl Into<String>) -> Self {
        Self::of(ErrorCode::InvalidRequest, message)
    }

    fn unauthorized(message: impl Into<String>) -> Self {
        Self::of(ErrorCode::Unauthorized, message)
    }

    /// The status and the name of a code of the protocol.
    fn of(code: ErrorCode, message: impl Into<String>) -> Self {
        let (status, code) = match code {
            ErrorCode::InvalidRequest => (StatusCode::BAD_REQUEST, "INVALID_REQUEST"),
            ErrorCode::InvalidFilter => (StatusCode::BAD_REQUEST, "INVALID_FILTER"),
            ErrorCode::CelCompilationFailed => (StatusCode::BAD_REQUEST, "CEL_COMPILATION_FAILED"),
            ErrorCode::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            ErrorCode::Forbidden => (StatusCode::FORBIDDEN, "FORBIDDEN"),
            ErrorCode::SubscriptionExists => (StatusCode::CONFLICT, "SUBSCRIPTION_EXISTS"),
            ErrorCode::SubscriptionNotFound => (StatusCode::NOT_FOUND, "SUBSCRIPTION_NOT_FOUND"),
            ErrorCode::SubscriptionExpired => (StatusCode::GONE, "SUBSCRIPTION_EXPIRED"),
            ErrorCode::GatewayQuotaExceeded => (StatusCode::TOO_MANY_REQUESTS, "GATEWAY_QUOTA_EXCEEDED"),
            ErrorCode::TenantQuotaExceeded => (StatusCode::TOO_MANY_REQUESTS, "TENANT_QUOTA_EXCEEDED"),
            ErrorCode::GlobalQuotaExceeded => (StatusCode::TOO_MANY_REQUESTS, "GLOBAL_QUOTA_EXCEEDED"),
            ErrorCode::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS"),
            ErrorCode::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "SHUTTING_DOWN"),
            ErrorCode::Superseded => (StatusCode::CONFLICT, "SUPERSEDED"),
            ErrorCode::ProtocolViolation => (StatusCode::BAD_REQUEST, "PROTOCOL_VIOLATION"),
            ErrorCode::UnsupportedVersion => (StatusCode::BAD_REQUEST, "UNSUPPORTED_VERSION"),
            ErrorCode::ReceivedDeadline => (StatusCode::REQUEST_TIMEOUT, "RECEIVED_DEADLINE"),
            ErrorCode::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"),
        };
        Self { status, code, message: message.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            code: &'static str,
            message: String,
        }
        (self.status, Json(Body { code: self.code, message: self.message })).into_response()
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::of(refusal.code, refusal.message)
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unauthorized(message) => Self::unauthorized(message),
            Denied::Forbidden(message) => Self::of(ErrorCode::Forbidden, message),
            Denied::Invalid(message) => Self::invalid(message),
        }
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid(format!("the path can't be read: {}", rejection.body_text()))
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(format!("the query can't be read: {}", rejection.body_text()))
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        let status = rejection.status();
        let message = match status {
            StatusCode::PAYLOAD_TOO_LARGE => "the body is larger than this node takes; see [http] max_body".to_owned(),
            _ => format!("the body can't be read: {}", rejection.body_text()),
        };
        Self { status, code: "INVALID_REQUEST", message }
    }
}

/// A JSON body; an empty one stands for `{}`.
fn parse_body<'b, T: serde::Deserialize<'b>>(body: &'b Bytes) -> Result<T, ApiError> {
    let text: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(text).map_err(|error| ApiError::invalid(format!("the body can't be read: {error}")))
}

/// The same within the time that a shard may take.
async fn in_time<T>(work: impl Future<Output = Result<T, Refusal>>) -> Result<T, ApiError> {
    match tokio::time::timeout(SHARD_TIMEOUT, work).await {
        Ok(result) => result.map_err(ApiError::from),
        Err(_) => Err(ApiError {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "TIMEOUT",
            message: format!(
                "the shard did not answer within {} seconds; what was asked for may still happen",
                SHARD_TIMEOUT.as_secs()
            ),
        }),
    }
}
