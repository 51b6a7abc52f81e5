//! The web page, and the pictures that it draws: one each second, as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY},
    response::{
        Html, IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, stream};
use tokio::time::{Interval, MissedTickBehavior, interval};
use wire::ErrorCode;

use super::{ApiError, App, Shared};
use crate::control::live::Live;

const EVERY: Duration = Duration::from_secs(1);

/// Who may look at once. Each holds a connection for as long as it looks.
pub(super) const WATCHERS_MAX: usize = 64;

/// It needs nothing from anywhere else, and is not allowed to ask for it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

/// The page itself shows nothing of the node, so it needs no token; what it asks for does.
pub(super) async fn page() -> Response {
    let headers = [(CONTENT_SECURITY_POLICY, POLICY), (CACHE_CONTROL, "no-cache")];
    (headers, Html(include_str!("page.html"))).into_response()
}

/// A [`Live`] each second, the first at once.
pub(super) async fn live(State(app): Shared) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let place = app.watchers.clone().try_acquire_owned().map_err(|_| {
        ApiError::of(ErrorCode::TooManyRequests, format!("{WATCHERS_MAX} look already; allowed: at most so many"))
    })?;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let pictures = stream::unfold((app, ticks, place), |(app, mut ticks, place): (Arc<App>, Interval, _)| async move {
        ticks.tick().await;
        let picture = Live::of(&app.state, &app.topology);
        let event = Event::default().json_data(&picture);
        let event = event.unwrap_or_else(|error| Event::default().comment(error.to_string()));
        Some((Ok(event), (app, ticks, place)))
    });
    Ok(Sse::new(pictures).keep_alive(KeepAlive::default()))
}
