//! What a compiler doesn't see: files that have grown too long, what was left behind, docs that no longer match the tree.
//!
//! The checks look at a [`Repository`] in memory, so that each can be tested with files of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::Path,
};

/// Lines of a Rust file beyond which it is probably two.
const LINES_MAX: usize = 600;

/// Written in two pieces, or this file would be a finding.
const LEFTOVERS: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("unimplemented", "!(")];

/// The rows that `docs/failures.md` must have.
const FAILURE_ROWS: [(char, u32); 3] = [('S', 15), ('P', 10), ('G', 13)];

/// Says in a row of `docs/failures.md` that no test covers it, and what follows says why.
const NO_TEST: &str = "No test: ";

/// Folders that hold nothing of ours; so do those that cargo has marked as its own.
const NOT_OURS: [&str; 3] = [".git", "target", "node_modules"];

/// The text files of a tree, by their path from its root.
#[derive(Debug, Default)]
pub struct Repository {
    files: BTreeMap<String, String>,
    /// Files and folders, text or not.
    paths: BTreeSet<String>,
}

/// Something to be put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub path: String,
    /// From 1; 0 is the whole file.
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

impl Repository {
    /// Reads the tree at `root`.
    pub fn read(root: &Path) -> Result<Self, String> {
        let mut repository = Self::default();
        repository.walk(root, "").map_err(|error| format!("{}: {error}", root.display()))?;
        Ok(repository)
    }

    /// A tree of these files.
    pub fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut repository = Self::default();
        for (path, content) in files {
            for (end, _) in path.match_indices('/') {
                repository.paths.insert(path[..end].to_owned());
            }
            repository.paths.insert(path.to_owned());
            repository.files.insert(path.to_owned(), content.to_owned());
        }
        repository
    }

    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, content)| (path.as_str(), content.as_str()))
    }

    fn walk(&mut self, folder: &Path, prefix: &str) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            let built = || entry.path().join("CACHEDIR.TAG").exists();
            if kind.is_dir() && !NOT_OURS.contains(&name.as_str()) && !built() {
                self.walk(&entry.path(), &format!("{path}/"))?;
                self.paths.insert(path);
            } else if kind.is_file() {
                if let Ok(content) = String::from_utf8(fs::read(entry.path())?) {
                    self.files.insert(path.clone(), content);
                }
                self.paths.insert(path);
            }
        }
        Ok(())
    }

    fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files().filter(|(path, _)| path.ends_with(".rs"))
    }

    fn docs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files().filter(|(path, _)| path.ends_with(".md"))
    }
}

/// All checks.
pub fn check(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    lengths(repository, &mut findings);
    leftovers(repository, &mut findings);
    links(repository, &mut findings);
    named_paths(repository, &mut findings);
    failures(repository, &mut findings);
    findings
}

fn lengths(repository: &Repository, findings: &mut Vec<Finding>) {
    for (path, content) in repository.rust() {
        let lines = content.lines().count();
        if lines > LINES_MAX {
            findings.push(whole(path, format!("{lines} lines where {LINES_MAX} are allowed")));
        }
    }
}

/// Marks of work that isn't done, tests that never run, and folders that a clone doesn't have.
fn leftovers(repository: &Repository, findings: &mut Vec<Finding>) {
    for (path, content) in repository.files() {
        let rust = path.ends_with(".rs");
        let ours = rust || [".md", ".toml", ".sh", ".yml", ".yaml", ".ci/run"].iter().any(|end| path.ends_with(end));
        if !ours {
            continue;
        }
        for (n, line) in content.lines().enumerate() {
            for left in LEFTOVERS {
                if line.contains(left) {
                    findings.push(at(path, n, format!("{left} is left over")));
                }
            }
            if rust && line.trim_start().starts_with("#[ignore") {
                findings.push(at(path, n, "an ignored test never runs".into()));
            }
            if names_shared(line) {
                findings.push(at(path, n, "a folder outside the repository is named".into()));
            }
        }
    }
}

/// Whether a line speaks of the folder `shared` beside the repository, which a clone doesn't have. `src/shared/` is ours.
fn names_shared(line: &str) -> bool {
    let name = concat!("shar", "ed/");
    line.match_indices(name).any(|(place, _)| {
        let before = &line[..place];
        let inside = before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | '.'));
        before.ends_with("../") || before.ends_with("/work/") || !inside
    })
}

/// Links of every document lead somewhere: to a file, and to a heading if they name one.
fn links(repository: &Repository, findings: &mut Vec<Finding>) {
    for (path, content) in repository.docs() {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (n, line) in prose(content) {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let (file, heading) = target.split_once('#').unwrap_or((target, ""));
                let file = if file.is_empty() { path.to_owned() } else { joined(folder, file) };
                if !repository.paths.contains(&file) {
                    findings.push(at(path, n, format!("the link to {target} leads nowhere: there is no {file}")));
                } else if !heading.is_empty() && !has_heading(repository, &file, heading) {
                    findings.push(at(path, n, format!("the link to {target} leads nowhere: no such heading")));
                }
            }
        }
    }
}

/// Lines outside code blocks, counted from 0.
fn prose(content: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut code = false;
    content.lines().enumerate().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// `path` seen from `folder`, with `.` and `..` resolved.
fn joined(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn has_heading(repository: &Repository, file: &str, heading: &str) -> bool {
    let Some(content) = repository.files.get(file) else { return false };
    prose(content)
        .filter(|(_, line)| line.starts_with('#'))
        .any(|(_, line)| slug(line.trim_start_matches('#')) == heading)
}

/// A heading's anchor, as the usual viewers make it.
fn slug(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

/// The architecture page names files and folders in backticks, from the root. They must be there.
fn named_paths(repository: &Repository, findings: &mut Vec<Finding>) {
    let page = "docs/architecture.md";
    let Some(content) = repository.files.get(page) else {
        findings.push(whole(page, "the page is missing".into()));
        return;
    };
    for (n, line) in prose(content) {
        for named in quoted(line) {
            let Some((top, _)) = named.split_once('/') else { continue };
            if !repository.paths.contains(top) || named.contains(['<', '>', '*', ' ', ':', '"']) {
                continue;
            }
            for path in braces(named) {
                if !repository.paths.contains(path.trim_end_matches('/')) {
                    findings.push(at(page, n, format!("`{path}` is not there")));
                }
            }
        }
    }
}

/// What stands in backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn braces(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((choices, after)) = rest.split_once('}') else { return vec![path.to_owned()] };
    choices.split(',').flat_map(|choice| braces(&format!("{before}{}{after}", choice.trim()))).collect()
}

/// Every row of `docs/failures.md` is there, and the tests that it names exist. A row is a line of a table that begins with its
/// number: `| S1 | …`. A test is named in backticks, with `::`: the last part is the function, the part before it the module, or
/// the file (`tests/restart.rs::name`). A row without a test says so, with [`NO_TEST`] and the reason.
fn failures(repository: &Repository, findings: &mut Vec<Finding>) {
    let page = "docs/failures.md";
    let Some(content) = repository.files.get(page) else {
        findings.push(whole(page, "the page is missing".into()));
        return;
    };
    let mut rows: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for (n, line) in prose(content) {
        let Some(cells) = line.trim_start().strip_prefix('|') else { continue };
        let id = cells.split('|').next().unwrap_or("").trim();
        rows.entry(id).or_insert((n, line));
    }
    for id in FAILURE_ROWS.iter().flat_map(|(letter, last)| (1..=*last).map(move |number| format!("{letter}{number}")))
    {
        let Some((n, line)) = rows.get(id.as_str()) else {
            findings.push(whole(page, format!("row {id} is missing")));
            continue;
        };
        let tests: Vec<&str> = quoted(line).filter(|name| is_test_name(name)).collect();
        if tests.is_empty() && !line.contains(NO_TEST) {
            findings.push(at(page, *n, format!("row {id} names no test and doesn't say \"{NO_TEST}…\"")));
        }
        for test in tests {
            if !test_exists(repository, test) {
                findings.push(at(page, *n, format!("row {id} names `{test}`, which is no test")));
            }
        }
    }
}

fn is_test_name(text: &str) -> bool {
    text.contains("::") && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '/' | '.' | '-'))
}

fn test_exists(repository: &Repository, test: &str) -> bool {
    let Some((path, function)) = test.rsplit_once("::") else { return false };
    let module = path.rsplit("::").next().unwrap_or(path);
    repository.rust().any(|(file, content)| {
        let right_file = if module.ends_with(".rs") {
            file == module || file.ends_with(&format!("/{module}"))
        } else {
            module == "tests" || is_module(file, content, module)
        };
        right_file && has_function(content, function)
    })
}

/// Whether `module` may be this file, a folder or crate that it lies in, or a module written out in it.
fn is_module(file: &str, content: &str, module: &str) -> bool {
    let same = |part: &str| part.replace('-', "_") == module;
    file.trim_end_matches(".rs").split('/').any(same) || content.contains(&format!("mod {module} {{"))
}

fn has_function(content: &str, function: &str) -> bool {
    let wanted = format!("fn {function}");
    content.match_indices(&wanted).any(|(place, _)| {
        let after = &content[place + wanted.len()..];
        after.starts_with(['(', '<'])
    })
}

fn at(path: &str, line_from_0: usize, what: String) -> Finding {
    Finding { path: path.to_owned(), line: line_from_0 + 1, what }
}

fn whole(path: &str, what: String) -> Finding {
    Finding { path: path.to_owned(), line: 0, what }
}

#[cfg(test)]
mod tests;
