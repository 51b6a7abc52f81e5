//! The ends after which nothing is tried again.

use wire::ErrorCode;

/// Why a Gateway can't go on. Trying again would end the same way, or would end another Gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TerminalError {
    /// Another process with the same Gateway id has connected. Two can't share an id: each would end the other for ever.
    #[error("another session of Gateway {gateway:?} has taken over: {message}. Only one process may use a Gateway id")]
    Superseded { gateway: String, message: String },
    #[error("the node refused the token of Gateway {gateway:?}: {message}")]
    Unauthorized { gateway: String, message: String },
    #[error("the node forbids Gateway {gateway:?} to connect: {message}")]
    Forbidden { gateway: String, message: String },
    #[error("{address} is not trusted: {message}")]
    Untrusted { address: String, message: String },
    #[error("the node refused Gateway {gateway:?} ({code:?}): {message}")]
    Refused { gateway: String, code: ErrorCode, message: String },
}
