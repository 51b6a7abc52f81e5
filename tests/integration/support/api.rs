//! The HTTP side of a node, as a client uses it.

use std::fmt::Write as _;

use reqwest::Method;
use serde_json::{Value, json};
use streamer::control::metric_of;

use super::within;

/// The HTTP side of a node.
#[derive(Clone)]
pub(crate) struct Api {
    url: String,
    token: Option<String>,
    client: reqwest::Client,
}

/// Status and body; `null` for an empty body, a string for one that isn't JSON.
pub(crate) type Answer = (u16, Value);

impl Api {
    /// Without a token.
    pub(crate) fn new(url: String) -> Self {
        Self { url, token: None, client: reqwest::Client::new() }
    }

    pub(crate) fn with_token(mut self, token: Option<&str>) -> Self {
        self.token = token.map(str::to_owned);
        self
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.try_call(method, path, body).await.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    /// An error where the connection ended before the answer was here.
    pub(crate) async fn try_call(
        &self,
        method: &str,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> Result<Answer, reqwest::Error> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, format!("{}{path}", self.url)).body(body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = within(path, request.send()).await?;
        let status = response.status().as_u16();
        let text = within(path, response.text()).await?;
        let value = match text.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        Ok((status, value))
    }

    /// Whether it answers this path with 200; not where nobody is there to answer.
    pub(crate) async fn is_well(&self, path: &str) -> bool {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await;
        answer.is_ok_and(|answer| answer.status().as_u16() == 200)
    }

    pub(crate) async fn topology(&self) -> Value {
        let (status, topology) = self.call("GET", "/v1/topology", "").await;
        assert_eq!(status, 200, "{topology}");
        topology
    }

    pub(crate) async fn fingerprint(&self) -> String {
        self.topology().await["fingerprint"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn health(&self) -> Value {
        self.call("GET", "/health", "").await.1
    }

    /// A metric's value: of one set of labels, if `name` has them, else summed over all.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.call("GET", "/metrics", "").await;
        assert_eq!(status, 200, "{text}");
        metric_of(text.as_str().expect("metrics are text"), name).unwrap_or_else(|| panic!("there is no metric {name}"))
    }

    /// Stores a document; the offset of its change.
    pub(crate) async fn put(&self, tenant: &str, collection: &str, id: &str, data: Value) -> u64 {
        let (status, answer) = self.call("PUT", &document_path(tenant, collection, id), data.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer["offset"].as_u64().unwrap_or_else(|| panic!("{answer}"))
    }

    /// Writes many documents at once, each as (tenant, collection, id, data).
    pub(crate) async fn put_all(&self, documents: impl IntoIterator<Item = (&str, &str, String, Value)>) {
        let mut lines = String::new();
        for (tenant, collection, id, data) in documents {
            let line = json!({"op": "put", "tenant": tenant, "collection": collection, "id": id, "data": data});
            writeln!(lines, "{line}").unwrap();
        }
        let (status, answer) = self.call("POST", "/v1/documents", lines).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["unchanged"], 0, "{answer}");
    }
}

pub(crate) fn document_path(tenant: &str, collection: &str, id: &str) -> String {
    format!("/v1/documents/{}/{}/{}", escaped(tenant), escaped(collection), escaped(id))
}

/// One segment of a path, percent-encoded.
fn escaped(segment: &str) -> String {
    segment.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(char::from(byte)),
            other => write!(text, "%{other:02X}").unwrap(),
        }
        text
    })
}
