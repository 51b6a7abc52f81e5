//! Cores as the configuration names them.

use std::{fmt, str::FromStr};

use rustix::thread::CpuSet;

use super::MAX_SHARDS;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    Auto,
    /// Every core that the process is allowed, threads of one physical core among them.
    All,
    /// The allowed cores of one NUMA node, one thread of each.
    Numa(usize),
    /// By number, in the order given; a number may come more than once.
    List(Vec<usize>),
}

const ALLOWED: &str =
    "allowed: \"auto\", \"all\", \"numa:N\" for a NUMA node, or core numbers and ranges such as \"2-5,7\"";

impl FromStr for Cores {
    type Err = String;

    /// `auto`, `all`, `numa:N`, or numbers and ranges with commas. The error says what is allowed.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text {
            "auto" => return Ok(Self::Auto),
            "all" => return Ok(Self::All),
            "" => return Err(format!("names no core; {ALLOWED}")),
            _ => {}
        }
        if let Some(node) = text.strip_prefix("numa:") {
            let node = node.trim().parse().map_err(|_| format!("has {text:?}, which names no NUMA node; {ALLOWED}"))?;
            return Ok(Self::Numa(node));
        }
        let mut cores = Vec::new();
        for part in text.split(',').map(str::trim) {
            let number = |text: &str| {
                let number = text.trim().parse::<usize>().ok().filter(|core| *core < CpuSet::MAX_CPU);
                number.ok_or_else(|| format!("has {part:?}, which is no core number or range; {ALLOWED}"))
            };
            match part.split_once('-') {
                None => cores.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(format!("has the range {part:?}, which runs backwards; {ALLOWED}"));
                    }
                    cores.extend(first..=last);
                }
            }
            if cores.len() > MAX_SHARDS.max(CpuSet::MAX_CPU) {
                return Err(format!("names more than {} cores; {ALLOWED}", CpuSet::MAX_CPU));
            }
        }
        Ok(Self::List(cores))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::All => f.write_str("all"),
            Self::Numa(node) => write!(f, "numa:{node}"),
            Self::List(cores) => f.write_str(&show(cores)),
        }
    }
}

/// Core numbers with runs as ranges, as [`Cores`] reads them.
pub fn show(cores: &[usize]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut rest = cores;
    while let Some(&first) = rest.first() {
        let run = rest.iter().enumerate().take_while(|(index, core)| **core == first + index).count();
        parts.push(if run > 2 { format!("{first}-{}", first + run - 1) } else { first.to_string() });
        rest = &rest[if run > 2 { run } else { 1 }..];
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists_ranges_and_nodes() {
        for (text, expect) in [
            ("auto", Cores::Auto),
            (" all ", Cores::All),
            ("numa:1", Cores::Numa(1)),
            ("3", Cores::List(vec![3])),
            ("2-5,7", Cores::List(vec![2, 3, 4, 5, 7])),
            ("1, 1,1", Cores::List(vec![1, 1, 1])),
        ] {
            let cores: Cores = text.parse().unwrap();
            assert_eq!(cores, expect, "{text}");
            assert_eq!(cores.to_string().parse(), Ok(expect), "{text}");
        }
        for (text, word) in [
            ("", "names no core"),
            ("2-", "\"2-\""),
            ("5-2", "runs backwards"),
            ("one", "\"one\""),
            ("1,,2", "\"\""),
            ("0-99999", "\"0-99999\""),
            ("-1", "\"-1\""),
            ("numa:", "names no NUMA node"),
            ("numa:0,1", "names no NUMA node"),
        ] {
            let error = text.parse::<Cores>().unwrap_err();
            assert!(error.contains(word) && error.contains("allowed"), "{text}: {error}");
        }
    }
}
