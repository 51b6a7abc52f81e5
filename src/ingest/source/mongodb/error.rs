//! What a failure of the driver or the server means for the stream.

use ::mongodb::error::{CommandError, Error, ErrorKind};

use crate::ingest::source::SourceError;

/// What is known of an unlisted failure is only that it came: it is taken to go away, since trying again loses nothing, and giving up
/// would.
pub(super) fn classify(error: &Error) -> SourceError {
    let what = describe(error);
    match &*error.kind {
        ErrorKind::Command(command) => by_code(command, error.contains_label(RESUMABLE), what),
        ErrorKind::Authentication { .. }
        | ErrorKind::InvalidArgument { .. }
        | ErrorKind::InvalidTlsConfig { .. }
        | ErrorKind::IncompatibleServer { .. }
        | ErrorKind::SessionsNotSupported => SourceError::Fatal(what),
        ErrorKind::ServerSelection { message, .. } => by_topology(message),
        _ => SourceError::Transient(what),
    }
}

/// Whether the server didn't get done in the time that it was given.
pub(super) fn is_out_of_time(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::Command(command) if command.code == MAX_TIME_EXPIRED)
}

/// Whether the server may not know the stage that gives out large events in pieces. Servers that speak MongoDB's protocol have codes of
/// their own for that: one that finds the command wrong in any way is asked again without the stage, and shows whether it was that.
pub(super) fn is_without_split(error: &Error) -> bool {
    const WRONG: [i32; 5] = [UNKNOWN_STAGE, BAD_VALUE, FAILED_TO_PARSE, COMMAND_NOT_SUPPORTED, NOT_IMPLEMENTED];
    matches!(&*error.kind, ErrorKind::Command(command)
        if WRONG.contains(&command.code) || command.message.contains("changeStreamSplitLargeEvent"))
}

/// Whether the server refuses this command to this user, or doesn't know it.
pub(super) fn is_not_available(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::Command(command) if matches!(command.code, UNAUTHORIZED | COMMAND_NOT_FOUND | COMMAND_NOT_SUPPORTED | ATLAS))
}

fn describe(error: &Error) -> String {
    match &*error.kind {
        ErrorKind::Command(command) => format!("{} ({}): {}", command.code_name, command.code, command.message),
        kind => kind.to_string(),
    }
}

/// Why no primary was found. The driver tells it only in words: it lists the servers it knows with the last failure of each.
fn by_topology(message: &str) -> SourceError {
    // Once the password was refused, the server counts as unknown, and its refusal stands in the list.
    if message.contains("AuthenticationFailed") || message.contains("SCRAM failure") {
        return SourceError::Fatal(message.to_owned());
    }
    // A server of another set is taken off the list.
    let hint = if message.contains("Servers:") { "" } else { "; if the server is up, check `replicaSet` in the URI" };
    SourceError::Transient(format!("{message}{hint}"))
}

fn by_code(command: &CommandError, resumable: bool, what: String) -> SourceError {
    let message = command.message.to_ascii_lowercase();
    let about_token = ["resume token", "resumetoken", "resume point"].iter().any(|text| message.contains(text));
    match command.code {
        CHANGE_STREAM_HISTORY_LOST | CHANGE_STREAM_FATAL_ERROR | CAPPED_POSITION_LOST => SourceError::HistoryLost(what),
        INVALID_RESUME_TOKEN => SourceError::BadToken(what),
        BSON_OBJECT_TOO_LARGE => SourceError::Oversize(what),
        _ if resumable => SourceError::Transient(what),
        // A token that is not even of the right form is refused like any badly formed command.
        BAD_VALUE | FAILED_TO_PARSE | TYPE_MISMATCH | KEYSTRING_FORMAT if about_token => SourceError::BadToken(what),
        NOT_A_REPLICA_SET => {
            SourceError::Fatal(format!("{what}. Change streams need a replica set: start mongod with --replSet"))
        }
        code if FATAL.contains(&code) => SourceError::Fatal(what),
        _ => SourceError::Transient(what),
    }
}

/// Put by the server on errors after which a change stream can be resumed.
const RESUMABLE: &str = "ResumableChangeStreamError";

const BAD_VALUE: i32 = 2;
const FAILED_TO_PARSE: i32 = 9;
const UNAUTHORIZED: i32 = 13;
const TYPE_MISMATCH: i32 = 14;
const MAX_TIME_EXPIRED: i32 = 50;
const COMMAND_NOT_FOUND: i32 = 59;
const COMMAND_NOT_SUPPORTED: i32 = 115;
const CAPPED_POSITION_LOST: i32 = 136;
const INVALID_RESUME_TOKEN: i32 = 260;
const NOT_IMPLEMENTED: i32 = 238;
const CHANGE_STREAM_FATAL_ERROR: i32 = 280;
const CHANGE_STREAM_HISTORY_LOST: i32 = 286;
const ATLAS: i32 = 8000;
const BSON_OBJECT_TOO_LARGE: i32 = 10334;
const UNKNOWN_STAGE: i32 = 40324;
const NOT_A_REPLICA_SET: i32 = 40573;
const KEYSTRING_FORMAT: i32 = 50811;

/// Codes of what stays wrong until somebody changes the configuration, the user's rights or the server.
const FATAL: [i32; 17] = [
    BAD_VALUE,
    FAILED_TO_PARSE,
    UNAUTHORIZED,
    TYPE_MISMATCH,
    18, // AuthenticationFailed
    20, // IllegalOperation
    47, // NoMatchingDocument: a stored image is required and missing
    COMMAND_NOT_FOUND,
    72, // InvalidOptions
    73, // InvalidNamespace
    COMMAND_NOT_SUPPORTED,
    166, // CommandNotSupportedOnView
    323, // APIStrictError
    UNKNOWN_STAGE,
    40415, // unknown field in a stage, as for an image option that the server is too old for
    ATLAS,
    50840, // view or namespace that can't be watched
];

#[cfg(test)]
mod tests {
    use ::mongodb::bson::doc;

    use super::*;

    fn command(code: i32, message: &str) -> CommandError {
        let raw = doc! { "code": code, "codeName": "Name", "errmsg": message };
        ::mongodb::bson::deserialize_from_document(raw).expect("the driver reads its own form")
    }

    #[track_caller]
    fn check(code: i32, message: &str, resumable: bool, expect: &str) {
        let error = by_code(&command(code, message), resumable, String::new());
        let variant = format!("{error:?}");
        assert_eq!(variant.split('(').next(), Some(expect), "code {code}, message {message:?}, resumable {resumable}");
    }

    #[test]
    fn codes_are_told_apart() {
        for (code, expect) in [
            (286, "HistoryLost"),
            (280, "HistoryLost"),
            (136, "HistoryLost"),
            (260, "BadToken"),
            (10334, "Oversize"),
            (13, "Fatal"),
            (18, "Fatal"),
            (59, "Fatal"),
            (40573, "Fatal"),
            (8000, "Fatal"),
            // CursorNotFound, CursorKilled, Interrupted, InterruptedAtShutdown, NotWritablePrimary, PrimarySteppedDown, MaxTimeMSExpired.
            (43, "Transient"),
            (237, "Transient"),
            (11601, "Transient"),
            (11600, "Transient"),
            (10107, "Transient"),
            (189, "Transient"),
            (50, "Transient"),
            // Unlisted.
            (987_654, "Transient"),
        ] {
            check(code, "something", false, expect);
        }
    }

    #[test]
    fn a_refused_password_is_found_behind_a_failed_selection() {
        let refused = "No available servers. Topology: { Servers: [ { Address: h:1, Error: Kind: SCRAM failure: authentication failed } ] }";
        assert!(matches!(by_topology(refused), SourceError::Fatal(_)));
        let away = "No available servers. Topology: { Servers: [ { Address: h:1, Error: Kind: I/O error: refused } ] }";
        assert!(matches!(by_topology(away), SourceError::Transient(what) if !what.contains("replicaSet")));
        let other_set = "No available servers. Topology: { Type: ReplicaSetNoPrimary, Set Name: other }";
        assert!(matches!(by_topology(other_set), SourceError::Transient(what) if what.contains("replicaSet")));
    }

    #[test]
    fn a_badly_formed_token_is_a_bad_token() {
        check(9, "Bad resume token: _data of missing or of wrong type", false, "BadToken");
        check(9, "unknown field", false, "Fatal");
        check(2, "something resumable", true, "Transient");
    }
}
