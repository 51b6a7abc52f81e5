//! Where a stream is opened again.

use super::{settle::ResumePoint, source::Start};

/// Where to go on after `point`.
pub fn start_after(point: &ResumePoint) -> Start {
    match &point.token {
        Some(token) => Start::After { position: point.position, token: token.clone() },
        // A point without a token stands before the first event of its cluster time.
        None => Start::At { time: point.position.time },
    }
}
