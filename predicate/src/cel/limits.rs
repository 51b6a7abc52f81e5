//! Bounds on expressions. Each one is met before the parser runs, but for those on regular expressions.

/// Bytes of an expression.
pub const EXPR_BYTES_MAX: usize = 8 << 10;
/// Names, literals, operators and brackets of an expression.
pub const TOKENS_MAX: usize = 2_500;
/// Brackets within each other.
pub const NESTING_MAX: usize = 32;
/// Levels of the syntax tree, counted generously.
pub const DEPTH_MAX: usize = 128;
/// Arithmetic and comparison operators between two logical operators.
pub const OPERATORS_MAX: usize = 48;
/// Selections, calls and indexes on one value.
pub const POSTFIX_MAX: usize = 32;
/// `!` or `-` in a row.
pub const UNARY_MAX: usize = 16;
/// `? :` in a row.
pub const TERNARIES_MAX: usize = 16;
/// Items of a list, entries of a map or arguments of a call.
pub const LIST_ITEMS_MAX: usize = 1_000;
/// `all`, `exists`, `exists_one`, `map` and `filter` in one expression.
pub const MACROS_MAX: usize = 16;
/// The same, within each other.
pub const MACRO_DEPTH_MAX: usize = 2;
/// Bytes between the quotes of a string.
pub const STRING_BYTES_MAX: usize = 4 << 10;
/// Characters of a number.
pub const NUMBER_BYTES_MAX: usize = 64;
/// Bytes of a regular expression.
pub const REGEX_BYTES_MAX: usize = 1 << 10;
/// Groups and repetitions of a regular expression within each other.
pub const REGEX_NESTING_MAX: u32 = 50;
/// Bytes that a compiled regular expression may take.
pub const REGEX_COMPILED_BYTES_MAX: usize = 256 << 10;

// A tree of this depth must be walked, interpreted and dropped on an ordinary thread's stack of 2 MiB: 8 KiB a level is more than
// any of them takes, also in builds that are not optimised.
const _: () = assert!(DEPTH_MAX * (8 << 10) <= 1 << 20);
// The depth bound would be reached by brackets alone otherwise.
const _: () = assert!(NESTING_MAX * 3 < DEPTH_MAX);
