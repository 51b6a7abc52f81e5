//! Writes to a node's embedded store over HTTP, many in one request, as an application would: each answer comes once the disk has them.

use std::{fmt::Write, sync::Arc};

use crate::{plan::Plan, schedule::Schedule};

/// Writes of one request at most.
const WRITES_MAX: u64 = 2_000;

#[derive(Debug, thiserror::Error)]
pub enum WriteFailed {
    #[error("the node refused writes: {0}")]
    Refused(String),
    #[error(transparent)]
    Timer(#[from] std::io::Error),
}

/// Writes events 1, 2, 3 … of a plan until the schedule ends. Requests follow one another, so that events get the offsets of their
/// numbers; what becomes due meanwhile goes into the next.
///
/// # Errors
/// When a request fails or is answered with an error.
pub async fn write(
    plan: &Plan,
    schedule: &Arc<Schedule>,
    base: &str,
    document_bytes: usize,
) -> Result<(), WriteFailed> {
    let client = reqwest::Client::new();
    let url = format!("{base}/v1/documents");
    let filling = "x".repeat(document_bytes.saturating_sub(EMPTY_BYTES));
    schedule.drive(WRITES_MAX, async |numbers| send(&client, &url, body(plan, numbers, &filling)).await).await
}

/// What a stored document has beside the filling.
const EMPTY_BYTES: usize = 130;

fn body(plan: &Plan, numbers: std::ops::Range<u64>, filling: &str) -> String {
    let mut body = String::new();
    for n in numbers {
        let event = plan.event(n);
        let place = &plan.places[event.place as usize];
        let line = serde_json::json!({
            "op": "put",
            "tenant": place.tenant,
            "collection": place.collection,
            "id": format!("d{n}"),
            "data": { "n": n, "key": event.key, "size": event.size, "kind": event.kind, "text": filling },
        });
        let _ = writeln!(body, "{line}");
    }
    body
}

async fn send(client: &reqwest::Client, url: &str, body: String) -> Result<(), WriteFailed> {
    let failed = |error: reqwest::Error| WriteFailed::Refused(error.to_string());
    let answer = client.post(url).body(body).send().await.map_err(failed)?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let text = answer.text().await.map_err(failed)?;
    Err(WriteFailed::Refused(format!("{status}: {text}")))
}
