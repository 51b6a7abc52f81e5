//! A first look at an expression, before any parser sees it.
//!
//! The parser, the interpreter and the dropping of a syntax tree all recurse, so what they may recurse on is bounded here, by one
//! pass over the characters that itself never recurses and holds one frame for each open bracket. It reads strings, comments and
//! names exactly as CEL's lexer does; what that lexer would refuse is refused here.

use super::limits::{
    DEPTH_MAX, EXPR_BYTES_MAX, LIST_ITEMS_MAX, MACRO_DEPTH_MAX, MACROS_MAX, NESTING_MAX, NUMBER_BYTES_MAX,
    OPERATORS_MAX, POSTFIX_MAX, STRING_BYTES_MAX, TERNARIES_MAX, TOKENS_MAX, UNARY_MAX,
};
use crate::CompileError;

/// What the pass counted. `depth` bounds the depth of the syntax tree from above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) tokens: usize,
    pub(crate) depth: usize,
    pub(crate) macros: usize,
}

/// Names whose calls the parser replaces by loops.
const LOOPS: [&str; 6] = ["all", "exists", "exists_one", "existsOne", "map", "filter"];

/// What has been seen between one bracket and its end, or in the whole expression.
#[derive(Debug, Default)]
struct Frame {
    /// The closing bracket that ends it; 0 for the whole expression.
    close: u8,
    /// Loops that it stands in the body of.
    loops: usize,
    commas: usize,
    /// Deepest bracket within it.
    inner: usize,
    /// Operators since the last comma or logical operator, and the longest such run.
    operators: usize,
    operators_max: usize,
    /// Selections, calls and indexes since the last operator, and the longest such run.
    postfixes: usize,
    postfixes_max: usize,
    unaries: usize,
    ternaries: usize,
    ternaries_max: usize,
    logical: usize,
}

impl Frame {
    /// A bound on the depth of the tree that this part of the expression becomes.
    fn depth(&self) -> usize {
        // Chains of `&&` and `||` become balanced trees.
        let logical = (usize::BITS - self.logical.leading_zeros()) as usize;
        let unary = 1;
        1 + self.inner + self.operators_max + self.postfixes_max + self.ternaries_max + logical + unary
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Name,
    Number,
    Text,
    Open(u8),
    Close(u8),
    Dot,
    Comma,
    Operator,
    Logical,
    Question,
    Colon,
    Bang,
    Minus,
}

struct Scanner<'a> {
    source: &'a str,
    bytes: &'a [u8],
    at: usize,
    frames: Vec<Frame>,
    scan: Scan,
    previous: Option<Token>,
    /// The name that the last token was.
    name: &'a str,
}

pub(crate) fn scan(source: &str) -> Result<Scan, CompileError> {
    if source.len() > EXPR_BYTES_MAX {
        return Err(error(None, format!("{} bytes; at most {EXPR_BYTES_MAX} are allowed", source.len())));
    }
    let frames = vec![Frame::default()];
    let bytes = source.as_bytes();
    Scanner { source, bytes, at: 0, frames, scan: Scan::default(), previous: None, name: "" }.run()
}

pub(super) fn error(offset: Option<usize>, what: impl Into<String>) -> CompileError {
    CompileError::Cel { offset, what: what.into() }
}

impl Scanner<'_> {
    fn run(mut self) -> Result<Scan, CompileError> {
        while let Some((start, token)) = self.next()? {
            self.scan.tokens += 1;
            if self.scan.tokens > TOKENS_MAX {
                return Err(error(Some(start), format!("more than {TOKENS_MAX} tokens")));
            }
            self.count(start, token)?;
            self.previous = Some(token);
        }
        if self.scan.tokens == 0 {
            return Err(error(None, "the expression is empty; expected one that yields a bool"));
        }
        match self.frames.as_slice() {
            [root] => {
                self.scan.depth = root.depth();
                Ok(self.scan)
            }
            [.., open] => Err(error(Some(self.at), format!("`{}` is missing", open.close as char))),
            [] => Err(error(None, "unbalanced brackets")),
        }
    }

    fn count(&mut self, start: usize, token: Token) -> Result<(), CompileError> {
        let called_name = (self.previous == Some(Token::Name)).then_some(self.name);
        let postfix = matches!(self.previous, Some(Token::Name | Token::Text | Token::Number | Token::Close(_)));
        let Some(frame) = self.frames.last_mut() else { return Err(error(Some(start), "unbalanced brackets")) };
        let limit = |count: usize, max: usize, what: &str| {
            if count > max { Err(error(Some(start), format!("more than {max} {what}"))) } else { Ok(()) }
        };
        if !matches!(token, Token::Bang | Token::Minus) {
            frame.unaries = 0;
        }
        match token {
            Token::Name | Token::Number | Token::Text => {}
            Token::Dot => frame.postfixes += 1,
            Token::Open(close) => {
                if postfix {
                    frame.postfixes += 1;
                }
                let mut loops = frame.loops;
                if close == b')' && called_name.is_some_and(|name| LOOPS.contains(&name)) {
                    loops += 1;
                    self.scan.macros += 1;
                    // The loop that the call becomes is deeper than the call.
                    frame.postfixes += 3;
                }
                frame.postfixes_max = frame.postfixes_max.max(frame.postfixes);
                limit(frame.postfixes, POSTFIX_MAX, "selections, calls and indexes in a row")?;
                limit(
                    loops,
                    MACRO_DEPTH_MAX,
                    "of `all`, `exists`, `exists_one`, `map` and `filter` within each other",
                )?;
                limit(self.scan.macros, MACROS_MAX, "calls of `all`, `exists`, `exists_one`, `map` and `filter`")?;
                limit(self.frames.len(), NESTING_MAX, "brackets within each other")?;
                self.frames.push(Frame { close, loops, ..Frame::default() });
                return Ok(());
            }
            Token::Close(close) => {
                if frame.close != close {
                    return Err(error(Some(start), format!("unexpected `{}`", close as char)));
                }
                let depth = frame.depth();
                self.frames.pop();
                let Some(parent) = self.frames.last_mut() else {
                    return Err(error(Some(start), "unbalanced brackets"));
                };
                parent.inner = parent.inner.max(depth);
                return Ok(());
            }
            Token::Comma => {
                frame.commas += 1;
                frame.operators = 0;
                frame.postfixes = 0;
                frame.ternaries = 0;
                limit(frame.commas, LIST_ITEMS_MAX - 1, "commas in one list, map or call")?;
            }
            Token::Operator => {
                frame.operators += 1;
                frame.postfixes = 0;
            }
            Token::Bang | Token::Minus => {
                // A minus after an operand subtracts; anything else is a sign.
                if token == Token::Minus && postfix {
                    frame.operators += 1;
                } else {
                    frame.unaries += 1;
                    limit(frame.unaries, UNARY_MAX, "`!` or `-` in a row")?;
                }
                frame.postfixes = 0;
            }
            Token::Logical => {
                frame.logical += 1;
                frame.operators = 0;
                frame.postfixes = 0;
            }
            Token::Question => {
                frame.ternaries += 1;
                frame.ternaries_max = frame.ternaries_max.max(frame.ternaries);
                frame.operators = 0;
                frame.postfixes = 0;
                limit(frame.ternaries, TERNARIES_MAX, "`?` in a row")?;
            }
            Token::Colon => {
                frame.operators = 0;
                frame.postfixes = 0;
            }
        }
        frame.operators_max = frame.operators_max.max(frame.operators);
        frame.postfixes_max = frame.postfixes_max.max(frame.postfixes);
        limit(frame.operators, OPERATORS_MAX, "operators in a row")?;
        limit(frame.postfixes, POSTFIX_MAX, "selections, calls and indexes in a row")?;
        limit(frame.depth(), DEPTH_MAX, "levels of the expression's tree")
    }

    /// The next token and where it starts, past white space and comments.
    fn next(&mut self) -> Result<Option<(usize, Token)>, CompileError> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\t' | b'\r' | b'\n' | 0x0c) => self.at += 1,
                Some(b'/') if self.bytes.get(self.at + 1) == Some(&b'/') => {
                    while self.bytes.get(self.at).is_some_and(|byte| *byte != b'\n') {
                        self.at += 1;
                    }
                }
                _ => break,
            }
        }
        let start = self.at;
        let Some(first) = self.bytes.get(start).copied() else { return Ok(None) };
        let second = self.bytes.get(start + 1).copied();
        let (token, length) = match (first, second) {
            (b'A'..=b'Z' | b'a'..=b'z' | b'_', _) => {
                return self.name_or_prefixed_text(start).map(|token| Some((start, token)));
            }
            (b'0'..=b'9', _) | (b'.', Some(b'0'..=b'9')) => {
                return self.number(start).map(|token| Some((start, token)));
            }
            (b'"' | b'\'', _) => return self.text(start, false, false).map(|token| Some((start, token))),
            (b'(', _) => (Token::Open(b')'), 1),
            (b'[', _) => (Token::Open(b']'), 1),
            (b'{', _) => (Token::Open(b'}'), 1),
            (b')' | b']' | b'}', _) => (Token::Close(first), 1),
            (b'.', _) => (Token::Dot, 1),
            (b',', _) => (Token::Comma, 1),
            (b'&', Some(b'&')) | (b'|', Some(b'|')) => (Token::Logical, 2),
            (b'=', Some(b'=')) | (b'!', Some(b'=')) | (b'<', Some(b'=')) | (b'>', Some(b'=')) => (Token::Operator, 2),
            (b'<' | b'>' | b'+' | b'*' | b'/' | b'%', _) => (Token::Operator, 1),
            (b'!', _) => (Token::Bang, 1),
            (b'-', _) => (Token::Minus, 1),
            (b'?', _) => (Token::Question, 1),
            (b':', _) => (Token::Colon, 1),
            _ => {
                let found = self.source.get(start..).and_then(|rest| rest.chars().next()).unwrap_or('\u{fffd}');
                return Err(error(Some(start), format!("unexpected character {found:?}")));
            }
        };
        self.at += length;
        Ok(Some((start, token)))
    }

    fn name_or_prefixed_text(&mut self, start: usize) -> Result<Token, CompileError> {
        let bytes = self.bytes;
        let end = start + run(&bytes[start..], |byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let name = &self.source[start..end];
        let quoted = matches!(bytes.get(end), Some(b'"' | b'\''));
        let (is_bytes, is_raw) = match name {
            "r" | "R" => (false, true),
            "b" | "B" => (true, false),
            "br" | "bR" | "Br" | "BR" => (true, true),
            _ => (false, false),
        };
        if quoted && (is_bytes || is_raw) {
            return self.text(end, is_bytes, is_raw);
        }
        self.at = end;
        self.name = name;
        // The one operator that is a word.
        Ok(if name == "in" { Token::Operator } else { Token::Name })
    }

    fn number(&mut self, start: usize) -> Result<Token, CompileError> {
        let bytes = self.bytes;
        let digits = |from: usize| from + run(bytes.get(from..).unwrap_or(&[]), |byte| byte.is_ascii_digit());
        let mut end;
        if bytes[start..].starts_with(b"0x") && bytes.get(start + 2).is_some_and(u8::is_ascii_hexdigit) {
            end = start + 2;
            end += run(&bytes[end..], |byte| byte.is_ascii_hexdigit());
        } else {
            end = digits(start);
            if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
                end = digits(end + 1);
            }
            if matches!(bytes.get(end), Some(b'e' | b'E')) {
                let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
                let exponent = digits(end + 1 + sign);
                if exponent > end + 1 + sign {
                    end = exponent;
                }
            }
        }
        if matches!(bytes.get(end), Some(b'u' | b'U')) {
            end += 1;
        }
        if end - start > NUMBER_BYTES_MAX {
            return Err(error(Some(start), format!("a number of more than {NUMBER_BYTES_MAX} characters")));
        }
        self.at = end;
        Ok(Token::Number)
    }

    /// A string or bytes literal whose opening quote is at `open`.
    fn text(&mut self, open: usize, is_bytes: bool, is_raw: bool) -> Result<Token, CompileError> {
        let bytes = self.bytes;
        let quote = bytes[open];
        let triple = bytes[open..].starts_with(&[quote; 3]);
        let width = if triple { 3 } else { 1 };
        let mut at = open + width;
        loop {
            match bytes.get(at) {
                None => return Err(error(Some(open), "a string that is not closed")),
                Some(b'\n' | b'\r') if !triple => {
                    return Err(error(
                        Some(open),
                        "a string that is not closed on its line; `\"\"\"` allows line breaks",
                    ));
                }
                Some(0) => return Err(error(Some(at), "a NUL byte in a string; write `\\x00`")),
                Some(b'\\') if !is_raw => at += self.escape(at, is_bytes)?,
                Some(byte) if *byte == quote && (!triple || bytes[at..].starts_with(&[quote; 3])) => break,
                Some(_) => at += 1,
            }
        }
        if at - open - width > STRING_BYTES_MAX {
            return Err(error(Some(open), format!("a string of more than {STRING_BYTES_MAX} bytes")));
        }
        self.at = at + width;
        Ok(Token::Text)
    }

    /// Bytes of the escape sequence at `at`.
    fn escape(&self, at: usize, is_bytes: bool) -> Result<usize, CompileError> {
        let bad = || {
            let allowed = "\\a \\b \\f \\n \\r \\t \\v \\\\ \\? \\\" \\' \\` \\xHH \\uHHHH \\UHHHHHHHH \\OOO (the last but \
                           two not in bytes)";
            error(Some(at), format!("an unknown escape sequence; allowed are {allowed}"))
        };
        let hex = |count: usize| {
            let digits = self.bytes.get(at + 2..at + 2 + count).ok_or_else(bad)?;
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return Err(bad());
            }
            let digits = self.source.get(at + 2..at + 2 + count).ok_or_else(bad)?;
            let code = u32::from_str_radix(digits, 16).map_err(|_| bad())?;
            if char::from_u32(code).is_none() {
                return Err(error(Some(at), "an escape sequence that is no character"));
            }
            Ok(count + 2)
        };
        match self.bytes.get(at + 1) {
            Some(b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'v' | b'"' | b'\'' | b'\\' | b'?' | b'`') => Ok(2),
            Some(b'x' | b'X') => hex(2),
            Some(b'u') if !is_bytes => hex(4),
            Some(b'U') if !is_bytes => hex(8),
            Some(b'0'..=b'3') => match self.bytes.get(at + 2..at + 4) {
                Some([b'0'..=b'7', b'0'..=b'7']) => Ok(4),
                _ => Err(bad()),
            },
            _ => Err(bad()),
        }
    }
}

/// Length of the leading bytes that satisfy `wanted`.
fn run(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| wanted(**byte)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(source: &str) -> usize {
        scan(source).unwrap().depth
    }

    #[test]
    fn strings_hide_what_is_in_them_and_nothing_else() {
        for source in [
            r#"'((((' == "]]""#,
            r"r'\' == 'x'",
            r#""""a"b""((""" == ''"#,
            "'\\'(' == 'a' // ((((\n",
            r#"b"\x00(" == bR'\('"#,
            "doc.a == '\u{1F600}('",
        ] {
            let found = scan(source).unwrap();
            assert!(found.depth < 8, "{source}: {found:?}");
        }
        // Not a prefix: the name `xr`, then a plain string.
        assert!(scan(r#"xr"\q""#).is_err());
        assert!(scan(r#"r"\q""#).is_ok());
    }

    #[test]
    fn depth_follows_chains_and_brackets() {
        assert!(depth("a") < depth("a + a"));
        assert!(depth("a + a") < depth("a + a + a"));
        assert!(depth("a.b") < depth("a.b.c"));
        assert!(depth("(a)") < depth("((a))"));
        assert_eq!(depth("a && b && c && d && e"), depth("a && b || c && d && e && f"));
        assert_eq!(depth("f(a, b)"), depth("f(a, b, c, d)"));
    }

    #[test]
    fn bounds_name_themselves() {
        for (source, what) in [
            (String::new(), "empty"),
            ("// nothing".to_owned(), "empty"),
            ("(".repeat(40), "brackets within each other"),
            (format!("a{}", ".a".repeat(40)), "selections"),
            (format!("1{}", " + 1".repeat(80)), "operators in a row"),
            ("a.all(x, x.all(y, y.all(z, z)))".to_owned(), "within each other"),
            (format!("[{}]", vec!["1"; 1200].join(",")), "commas"),
            ("'a".to_owned(), "not closed"),
            ("a)".to_owned(), "unexpected `)`"),
            ("(a]".to_owned(), "unexpected `]`"),
            ("a # b".to_owned(), "unexpected character '#'"),
            ("é".to_owned(), "unexpected character 'é'"),
            ("\0".to_owned(), "unexpected character '\\0'"),
            ("a = b".to_owned(), "unexpected character '='"),
            (r"'\q'".to_owned(), "escape"),
            (r"'\ud800'".to_owned(), "no character"),
            (format!("{}a", "!".repeat(40)), "in a row"),
            ("9".repeat(100), "a number of more than"),
            (" ".repeat(9000), "bytes; at most"),
        ] {
            let message = scan(&source).unwrap_err().to_string();
            assert!(message.contains(what), "{source}: {message}");
        }
    }
}
