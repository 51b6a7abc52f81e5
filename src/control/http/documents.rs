//! Documents of an embedded store: read, put, delete, and many at once as JSON lines.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, PathRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bson::{Bson, Document};
use predicate::extjson;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use wire::ErrorCode;

use super::{ApiError, App, Shared};
use crate::ingest::source::embedded::{
    CALL_WRITES_MAX, DocumentWrite, EmbeddedStore, StoreError, WriteError, WriteReceipt,
};

/// Writes of a bulk request that go to the store as one.
const WRITES_PER_CALL: usize = 1_000;
const _: () = assert!(WRITES_PER_CALL <= CALL_WRITES_MAX, "the store would refuse every full call");
/// Bytes of lines that go to the store as one, unless a single line is longer.
const BYTES_PER_CALL: usize = 8 << 20;
/// Errors that a bulk request names one by one.
const ERRORS_NAMED_MAX: usize = 1_000;

type Place = Result<Path<(String, String, String)>, PathRejection>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Options {
    /// The backend whose store is meant, where there are several.
    backend: Option<String>,
    #[serde(default)]
    soft: bool,
}

#[derive(Debug, Serialize)]
struct Written {
    /// The offset of the change; null where nothing changed.
    offset: Option<u64>,
}

pub(super) async fn put(
    State(app): Shared,
    place: Place,
    options: Result<Query<Options>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let Path((tenant, collection, id)) = place?;
    let store = store(&app, &options?.0)?;
    let data = parse_document(std::str::from_utf8(&body?).map_err(|_| ApiError::invalid("the body is not UTF-8"))?)?;
    write(store, DocumentWrite::Put { tenant, collection, id, data }).await
}

pub(super) async fn delete(
    State(app): Shared,
    place: Place,
    options: Result<Query<Options>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Path((tenant, collection, id)) = place?;
    let Query(options) = options?;
    let store = store(&app, &options)?;
    let write_of = match options.soft {
        true => DocumentWrite::SoftDelete { tenant, collection, id },
        false => DocumentWrite::Delete { tenant, collection, id },
    };
    write(store, write_of).await
}

/// The stored document in extended JSON, soft-deleted ones included.
pub(super) async fn get(
    State(app): Shared,
    place: Place,
    options: Result<Query<Options>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Path((tenant, collection, id)) = place?;
    let store = store(&app, &options?.0)?.clone();
    // It may have to come from the disk.
    let read = tokio::task::spawn_blocking(move || {
        let found = store.get(&tenant, &collection, &id)?;
        Ok::<_, StoreError>((found, format!("{tenant}/{collection}/{id}")))
    });
    let internal = |message: String| ApiError::of(ErrorCode::Internal, message);
    let (found, name) =
        read.await.map_err(|error| internal(error.to_string()))?.map_err(|error| internal(error.to_string()))?;
    let Some(raw) = found else {
        return Err(ApiError {
            status: StatusCode::NOT_FOUND,
            code: "DOCUMENT_NOT_FOUND",
            message: format!("there is no document {name:?}"),
        });
    };
    let document = Document::try_from(raw).map_err(|error| internal(error.to_string()))?;
    Ok(Json(Bson::Document(document).into_relaxed_extjson()).into_response())
}

#[derive(Debug, Serialize)]
struct BulkDone {
    /// Writes that changed something.
    written: u64,
    /// Writes that found nothing to change, such as the delete of a document that wasn't there.
    unchanged: u64,
}

#[derive(Debug, Serialize)]
struct BulkFailed {
    code: &'static str,
    message: String,
    written: u64,
    unchanged: u64,
    failed: u64,
    /// The first of them.
    errors: Vec<LineError>,
}

#[derive(Debug, Serialize)]
struct LineError {
    /// From 1.
    line: usize,
    message: String,
}

/// Good lines are written in their order, also where others are wrong; wrong ones are named. Answered once all is durable.
pub(super) async fn bulk(
    State(app): Shared,
    options: Result<Query<Options>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let store = store(&app, &options?.0)?;
    let body = body?;
    let mut outcome = Outcome::default();
    let mut call = Vec::new();
    let mut call_bytes = 0;
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        match parse_line(line) {
            Ok(write) => {
                if call.len() >= WRITES_PER_CALL || (call_bytes + line.len() > BYTES_PER_CALL && !call.is_empty()) {
                    outcome.carry_out(store, std::mem::take(&mut call)).await?;
                    call_bytes = 0;
                }
                call_bytes += line.len();
                call.push((index + 1, write));
            }
            Err(message) => outcome.fail(index + 1, message),
        }
    }
    outcome.carry_out(store, call).await?;
    Ok(outcome.into_response())
}

#[derive(Debug, Default)]
struct Outcome {
    written: u64,
    unchanged: u64,
    failed: u64,
    errors: Vec<LineError>,
}

impl Outcome {
    fn fail(&mut self, line: usize, message: String) {
        self.failed += 1;
        if self.errors.len() < ERRORS_NAMED_MAX {
            self.errors.push(LineError { line, message });
        }
    }

    /// Writes them all but those that the store refuses. An error is one of the storage itself.
    async fn carry_out(&mut self, store: &EmbeddedStore, call: Vec<(usize, DocumentWrite)>) -> Result<(), ApiError> {
        // The store takes a call as a whole or not at all, and names the first write that is wrong.
        let mut parts = vec![call];
        while let Some(mut part) = parts.pop() {
            let writes: Vec<_> = part.iter().map(|(_, write)| write.clone()).collect();
            match store.write(writes).await {
                Ok(WriteReceipt { offsets, .. }) => {
                    let changed = offsets.iter().filter(|offset| offset.is_some()).count() as u64;
                    self.written += changed;
                    self.unchanged += offsets.len() as u64 - changed;
                }
                Err(WriteError::Invalid { index, what }) => {
                    let (line, _) = part.remove(index);
                    self.fail(line, what);
                    parts.push(part);
                }
                Err(error @ WriteError::DocumentTooLarge { index, .. }) => {
                    let (line, _) = part.remove(index);
                    self.fail(line, without_index(&error));
                    parts.push(part);
                }
                Err(error @ WriteError::CallTooLarge { .. }) => match part.len() {
                    0 | 1 => part.into_iter().for_each(|(line, _)| self.fail(line, error.to_string())),
                    count => {
                        let later = part.split_off(count / 2);
                        // The earlier half is worked on first.
                        parts.push(later);
                        parts.push(part);
                    }
                },
                Err(error @ WriteError::Storage { .. }) => {
                    let message = format!("{error}; {} writes before were done", self.written + self.unchanged);
                    return Err(ApiError::of(ErrorCode::Internal, message));
                }
            }
        }
        Ok(())
    }
}

impl IntoResponse for Outcome {
    fn into_response(mut self) -> Response {
        let Self { written, unchanged, failed, .. } = self;
        if failed == 0 {
            return Json(BulkDone { written, unchanged }).into_response();
        }
        self.errors.sort_by_key(|error| error.line);
        let message = match self.errors.first() {
            Some(first) => format!("{failed} lines were not written; line {}: {}", first.line, first.message),
            None => format!("{failed} lines were not written"),
        };
        let body = BulkFailed { code: "INVALID_REQUEST", message, written, unchanged, failed, errors: self.errors };
        (StatusCode::BAD_REQUEST, Json(body)).into_response()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'l> {
    op: String,
    tenant: String,
    collection: String,
    id: String,
    #[serde(borrow)]
    data: Option<&'l RawValue>,
}

fn parse_line(line: &[u8]) -> Result<DocumentWrite, String> {
    let Line { op, tenant, collection, id, data } = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    match (op.as_str(), data) {
        ("put", Some(data)) => {
            let data = parse_document(data.get()).map_err(|error| error.message)?;
            Ok(DocumentWrite::Put { tenant, collection, id, data })
        }
        ("put", None) => Err("op \"put\" needs data".into()),
        ("delete" | "soft-delete", Some(_)) => Err(format!("op {op:?} takes no data")),
        ("delete", None) => Ok(DocumentWrite::Delete { tenant, collection, id }),
        ("soft-delete", None) => Ok(DocumentWrite::SoftDelete { tenant, collection, id }),
        _ => Err(format!("op {op:?} is not known; allowed: \"put\", \"delete\", \"soft-delete\"")),
    }
}

fn parse_document(text: &str) -> Result<Document, ApiError> {
    match extjson::parse(text) {
        Ok(Bson::Document(document)) => Ok(document),
        Ok(_) => Err(ApiError::invalid("the document is not a JSON object")),
        Err(error) => Err(ApiError::invalid(format!("the document is not JSON: {error}"))),
    }
}

fn store<'a>(app: &'a Arc<App>, options: &Options) -> Result<&'a Arc<EmbeddedStore>, ApiError> {
    let not_found = |message: String| ApiError { status: StatusCode::NOT_FOUND, code: "NOT_FOUND", message };
    let names = || app.stores.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    match (&options.backend, app.stores.as_slice()) {
        (_, []) => {
            Err(not_found("no backend of kind \"embedded\" is configured, so there are no documents here".into()))
        }
        (None, [(_, store)]) => Ok(store),
        (None, _) => Err(ApiError::invalid(format!(
            "there are several embedded backends; say which with ?backend=, of {:?}",
            names()
        ))),
        (Some(name), stores) => match stores.iter().find(|(known, _)| known == name) {
            Some((_, store)) => Ok(store),
            None => Err(not_found(format!("there is no embedded backend {name:?}; allowed: {:?}", names()))),
        },
    }
}

async fn write(store: &EmbeddedStore, write: DocumentWrite) -> Result<Response, ApiError> {
    match store.write(vec![write]).await {
        Ok(receipt) => Ok(Json(Written { offset: receipt.offsets.first().copied().flatten() }).into_response()),
        Err(error @ WriteError::Storage { .. }) => Err(ApiError::of(ErrorCode::Internal, error.to_string())),
        Err(error @ (WriteError::DocumentTooLarge { .. } | WriteError::CallTooLarge { .. })) => Err(ApiError {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code: "INVALID_REQUEST",
            message: without_index(&error),
        }),
        Err(WriteError::Invalid { what, .. }) => Err(ApiError::invalid(what)),
    }
}

/// The error without `write N:`, which counts within a call that the caller doesn't know of.
fn without_index(error: &WriteError) -> String {
    let text = error.to_string();
    match text.split_once(": ") {
        Some((first, rest)) if first.starts_with("write ") => rest.to_owned(),
        _ => text,
    }
}
