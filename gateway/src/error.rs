//! What can go wrong at the API.

use crate::core::TerminalError;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Something that the application said is not allowed. The text names what, and what is.
    #[error("{0}")]
    Invalid(String),
    /// No shard could be reached in the time allowed.
    #[error("no shard welcomed this Gateway within {timeout_ms} ms; last: {last}")]
    Unreachable { timeout_ms: u64, last: String },
    /// The node does not want this Gateway, or the Gateway does not trust the node.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// The Gateway was closed.
    #[error("this Gateway is closed")]
    Closed,
    /// The operating system gave no socket.
    #[error("no UDP socket: {0}")]
    Socket(String),
}
