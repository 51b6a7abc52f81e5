//! Regular expressions with bounds.

use regex::{Regex, RegexBuilder};

use super::limits::{REGEX_BYTES_MAX, REGEX_COMPILED_BYTES_MAX, REGEX_NESTING_MAX};

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    #[error("a regular expression of {0} bytes; at most {REGEX_BYTES_MAX} are allowed")]
    Long(usize),
    #[error("a regular expression that compiles to more than {0} bytes")]
    Large(usize),
    #[error("bad regular expression: {0}")]
    Syntax(String),
}

pub(super) fn compile_regex(pattern: &str) -> Result<Regex, PatternError> {
    if pattern.len() > REGEX_BYTES_MAX {
        return Err(PatternError::Long(pattern.len()));
    }
    RegexBuilder::new(pattern)
        .size_limit(REGEX_COMPILED_BYTES_MAX)
        .dfa_size_limit(REGEX_COMPILED_BYTES_MAX)
        .nest_limit(REGEX_NESTING_MAX)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(limit) => PatternError::Large(limit),
            // The lines before the last one draw the pattern.
            other => PatternError::Syntax(other.to_string().lines().last().unwrap_or_default().to_owned()),
        })
}
