//! Takes keys out of the raw tree, one type at a time. Each problem is noted and a default stands in, so that one pass finds
//! all of them; what nobody took is an unknown key.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use super::{
    Problem,
    raw::{Node, Origin, Table, Value, parse_structure},
    units::{parse_duration, parse_size, show_duration, show_size},
};

/// A section while it is read. Call [`Section::finish`] last: it tells the unknown keys.
pub(super) struct Section<'p> {
    path: String,
    origin: Origin,
    table: Table,
    known: BTreeSet<&'static str>,
    given: BTreeSet<&'static str>,
    problems: &'p mut Vec<Problem>,
}

/// A value and where it came from, for checks that come later.
#[derive(Clone, Debug)]
pub struct Given<T> {
    pub value: T,
    pub origin: Origin,
}

impl<'p> Section<'p> {
    pub(super) fn root(table: Table, problems: &'p mut Vec<Problem>) -> Self {
        Self {
            path: String::new(),
            origin: Origin::Absent,
            table,
            known: BTreeSet::new(),
            given: BTreeSet::new(),
            problems,
        }
    }

    /// The table under this key; an empty one if it was left out.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'_> {
        let taken = self.take(key);
        let path = self.key_path(key);
        let (origin, table) = match taken {
            None => (Origin::Absent, Table::new()),
            Some(node) => match self.structure(&path, node) {
                Some(Node { origin, value: Value::Table(table) }) => (origin, table),
                Some(node) => {
                    self.refuse_node(&path, &node, "is not a table".into());
                    (Origin::Absent, Table::new())
                }
                None => (Origin::Absent, Table::new()),
            },
        };
        Section { path, origin, table, known: BTreeSet::new(), given: BTreeSet::new(), problems: &mut *self.problems }
    }

    /// The tables under this key, each read by `read`. `None` for those that it refuses.
    pub(super) fn list<T>(&mut self, key: &'static str, mut read: impl FnMut(&mut Section<'_>) -> Option<T>) -> Vec<T> {
        let Some(node) = self.take(key) else { return Vec::new() };
        let path = self.key_path(key);
        let Some(node) = self.structure(&path, node) else { return Vec::new() };
        let Value::List(items) = node.value else {
            self.refuse_node(&path, &node, "is not a list of tables".into());
            return Vec::new();
        };
        let mut all = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            match item.value {
                Value::Table(table) => {
                    let mut section = Section {
                        path,
                        origin: item.origin,
                        table,
                        known: BTreeSet::new(),
                        given: BTreeSet::new(),
                        problems: &mut *self.problems,
                    };
                    let read = read(&mut section);
                    section.finish();
                    all.extend(read);
                }
                _ => self.refuse_node(&path, &item, "is not a table".into()),
            }
        }
        all
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<Given<String>> {
        let node = self.take(key)?;
        match node.value {
            Value::Text(value) => Some(Given { value, origin: node.origin }),
            _ => {
                let path = self.key_path(key);
                self.refuse_node(&path, &node, "is not a text; allowed: a text in quotes".into());
                None
            }
        }
    }

    /// A text that `parse` turns into a value; its error says what is wrong and what is allowed.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        self.parsed_given(key, parse).map_or(default, |given| given.value)
    }

    pub(super) fn parsed_given<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Given<T>> {
        let given = self.text(key)?;
        match parse(&given.value) {
            Ok(value) => Some(Given { value, origin: given.origin }),
            Err(message) => {
                self.refuse(key, given.origin, Some(format!("{:?}", given.value)), message);
                None
            }
        }
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        self.parsed(key, default, |text| {
            choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
                let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
                let near = nearest(text, choices.iter().map(|(name, _)| *name));
                let hint = near.map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default();
                format!("is not a choice{hint}; allowed: {}", names.join(", "))
            })
        })
    }

    pub(super) fn address(&mut self, key: &'static str, default: SocketAddr) -> Given<SocketAddr> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| "is not an address and port; allowed: such as \"127.0.0.1:8083\" or \"[::]:8083\"".into())
        };
        self.parsed_given(key, parse).unwrap_or(Given { value: default, origin: Origin::Absent })
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        least: Duration,
        most: Duration,
    ) -> Duration {
        self.parsed(key, default, |text| {
            let value = parse_duration(text)?;
            let fits = (least..=most).contains(&value);
            fits.then_some(value)
                .ok_or_else(|| format!("is out of range; allowed: {} to {}", show_duration(least), show_duration(most)))
        })
    }

    /// Bytes, as a text with a unit or as a plain number.
    pub(super) fn size(&mut self, key: &'static str, default: u64, least: u64, most: u64) -> u64 {
        if let Some(Node { value: Value::Integer(number), .. }) = self.table.get(key) {
            let text = number.to_string();
            if let Some(node) = self.table.get_mut(key) {
                node.value = Value::Text(text);
            }
        }
        self.parsed(key, default, |text| {
            let value = parse_size(text)?;
            let fits = (least..=most).contains(&value);
            fits.then_some(value)
                .ok_or_else(|| format!("is out of range; allowed: {} to {}", show_size(least), show_size(most)))
        })
    }

    pub(super) fn number(&mut self, key: &'static str, default: u64, least: u64, most: u64) -> u64 {
        let Some(node) = self.take(key) else { return default };
        let number = match &node.value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::Text(text) if matches!(node.origin, Origin::Environment { .. }) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if (least..=most).contains(&number) => number,
            _ => {
                let path = self.key_path(key);
                self.refuse_node(
                    &path,
                    &node,
                    format!("is not allowed; allowed: a whole number from {least} to {most}"),
                );
                default
            }
        }
    }

    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let Some(node) = self.take(key) else { return default };
        match &node.value {
            Value::Boolean(flag) => *flag,
            Value::Text(text) if text == "true" && matches!(node.origin, Origin::Environment { .. }) => true,
            Value::Text(text) if text == "false" && matches!(node.origin, Origin::Environment { .. }) => false,
            _ => {
                let path = self.key_path(key);
                self.refuse_node(&path, &node, "is not a truth value; allowed: true, false".into());
                default
            }
        }
    }

    /// A list of texts; a single text counts as a list of one.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Given<Vec<String>>> {
        let node = self.take(key)?;
        let path = self.key_path(key);
        let node = match (&node.value, &node.origin) {
            (Value::Text(text), Origin::Environment { .. }) if text.trim_start().starts_with('[') => {
                self.structure(&path, node)?
            }
            _ => node,
        };
        let items = match node.value {
            Value::Text(text) => return Some(Given { value: vec![text], origin: node.origin }),
            Value::List(items) => items,
            _ => {
                self.refuse_node(&path, &node, "is not a list of texts; allowed: such as [\"a\", \"b\"]".into());
                return None;
            }
        };
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match &item.value {
                Value::Text(text) => texts.push(text.clone()),
                _ => self.refuse_node(&format!("{path}[{index}]"), item, "is not a text".into()),
            }
        }
        Some(Given { value: texts, origin: node.origin })
    }

    /// A text, a whole number, or a list of whole numbers, as one text with commas.
    pub(super) fn numbers_text(&mut self, key: &'static str) -> Option<Given<String>> {
        let node = self.take(key)?;
        let path = self.key_path(key);
        let node = match (&node.value, &node.origin) {
            (Value::Text(text), Origin::Environment { .. }) if text.trim_start().starts_with('[') => {
                self.structure(&path, node)?
            }
            _ => node,
        };
        let one = |value: &Value| match value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            _ => None,
        };
        let text = match &node.value {
            Value::List(items) => {
                items.iter().map(|item| one(&item.value)).collect::<Option<Vec<_>>>().map(|items| items.join(","))
            }
            value => one(value),
        };
        if text.is_none() {
            self.refuse_node(&path, &node, "is not a list of cores; allowed: such as \"2-5,7\" or [2, 3]".into());
        }
        Some(Given { value: text?, origin: node.origin })
    }

    /// Whether the key was written, taken already or not.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.table.contains_key(key) || self.given.contains(key)
    }

    pub(super) fn problem_count(&self) -> usize {
        self.problems.len()
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Notes a problem with a key of this section.
    pub(super) fn refuse(&mut self, key: &str, origin: Origin, value: Option<String>, message: String) {
        let key = if key.is_empty() { self.path.clone() } else { self.key_path(key) };
        self.problems.push(Problem { origin, key, value, message });
    }

    /// Every key left is one that nobody knows.
    pub(super) fn finish(self) {
        for (key, node) in &self.table {
            let near = nearest(key, self.known.iter().copied());
            let hint = near.map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default();
            let known: Vec<_> = self.known.iter().copied().collect();
            self.problems.push(Problem {
                origin: node.origin.clone(),
                key: join(&self.path, key),
                value: None,
                message: format!("is not a key{hint}; allowed: {}", known.join(", ")),
            });
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.insert(key);
        let node = self.table.remove(key)?;
        self.given.insert(key);
        Some(node)
    }

    fn key_path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Text from the environment as the structure that it spells; anything else as it is.
    fn structure(&mut self, path: &str, node: Node) -> Option<Node> {
        let (Value::Text(text), Origin::Environment { .. }) = (&node.value, &node.origin) else { return Some(node) };
        match parse_structure(&node.origin, text) {
            Ok(value) => Some(Node { value, origin: node.origin }),
            Err(message) => {
                self.refuse_node(path, &node, message);
                None
            }
        }
    }

    fn refuse_node(&mut self, path: &str, node: &Node, message: String) {
        self.problems.push(Problem {
            origin: node.origin.clone(),
            key: path.to_owned(),
            value: Some(node.value.shown()),
            message,
        });
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The candidate that differs by at most a third of its letters.
fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}
