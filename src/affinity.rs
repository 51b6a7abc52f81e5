//! Which thread runs on which core: what was asked for, held against what the process is allowed.

use std::{fmt, io, str::FromStr};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Shards that a node may have; slots and ports are dealt out among them.
pub const MAX_SHARDS: usize = 256;

/// Cores as the configuration names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    Auto,
    /// Every core that the process is allowed.
    All,
    /// By number, in the order given; a number may come more than once.
    List(Vec<usize>),
}

impl FromStr for Cores {
    type Err = String;

    /// `auto`, `all`, or numbers and ranges with commas. The error says what is allowed.
    fn from_str(text: &str) -> Result<Self, String> {
        const ALLOWED: &str = "allowed: \"auto\", \"all\", or core numbers and ranges such as \"2-5,7\"";
        match text.trim() {
            "auto" => return Ok(Self::Auto),
            "all" => return Ok(Self::All),
            "" => return Err(format!("names no core; {ALLOWED}")),
            _ => {}
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
            Self::List(cores) => f.write_str(&show(cores)),
        }
    }
}

/// Where each thread goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Cores that the ingest thread may run on; at least one.
    pub ingest: Vec<usize>,
    pub control: Vec<usize>,
    /// The core of each shard.
    pub shards: Vec<usize>,
    /// What works, but is not how a node is meant to run.
    pub warnings: Vec<String>,
}

/// A wish that can't be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// `ingest`, `control` or `shards`.
    pub key: &'static str,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// The cores that the calling thread is allowed, in ascending order. Call it before anything is pinned.
pub fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// Lets the calling thread run on these cores only. Threads that it starts inherit it.
pub fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cores.iter().filter(|core| **core < CpuSet::MAX_CPU).for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).map_err(Into::into)
}

/// Deals the allowed cores out to the threads.
pub fn place(ingest: &Cores, control: &Cores, shards: &Cores, allowed: &[usize]) -> Result<Placement, Vec<Misplaced>> {
    let mut problems = Vec::new();
    if allowed.is_empty() {
        return Err(vec![Misplaced { key: "shards", message: "no core is allowed to this process".into() }]);
    }
    for (key, cores) in [("ingest", ingest), ("control", control), ("shards", shards)] {
        let Cores::List(cores) = cores else { continue };
        let mut barred: Vec<_> = cores.iter().copied().filter(|core| !allowed.contains(core)).collect();
        barred.dedup();
        if !barred.is_empty() {
            let (noun, verb) = if barred.len() == 1 { ("core", "is") } else { ("cores", "are") };
            let message = format!(
                "names {noun} {}, which {verb} not allowed to this process; allowed: {}",
                show(&barred),
                show(allowed)
            );
            problems.push(Misplaced { key, message });
        }
    }
    if let Cores::List(cores) = shards
        && cores.len() > MAX_SHARDS
    {
        let message =
            format!("names {} cores, which would be as many shards; allowed: at most {MAX_SHARDS}", cores.len());
        problems.push(Misplaced { key: "shards", message });
    }
    if !problems.is_empty() {
        return Err(problems);
    }

    let list = |cores: &Cores| match cores {
        Cores::List(cores) => cores.clone(),
        Cores::All => allowed.to_vec(),
        Cores::Auto => Vec::new(),
    };
    // What is taken by name: "auto" keeps off these where it can.
    let named = match shards {
        Cores::List(cores) => cores.clone(),
        _ => Vec::new(),
    };
    let first_free = |taken: &[usize]| allowed.iter().copied().find(|core| !taken.contains(core));
    let few = allowed.len() <= 2;
    let ingest_named = if let Cores::List(cores) = ingest { cores.clone() } else { Vec::new() };
    let control_cores = match control {
        Cores::Auto if few => vec![first_free(&named).unwrap_or(allowed[0])],
        Cores::Auto => {
            vec![first_free(&[&named[..], &ingest_named].concat()).or_else(|| first_free(&named)).unwrap_or(allowed[0])]
        }
        cores => list(cores),
    };
    let ingest_cores = match ingest {
        Cores::Auto if few => vec![first_free(&named).unwrap_or(allowed[0])],
        Cores::Auto => {
            vec![
                first_free(&[&named[..], &control_cores].concat()).or_else(|| first_free(&named)).unwrap_or(allowed[0]),
            ]
        }
        cores => list(cores),
    };
    let mut shard_cores = match shards {
        Cores::Auto => {
            let free: Vec<_> = allowed
                .iter()
                .copied()
                .filter(|core| !ingest_cores.contains(core) && !control_cores.contains(core))
                .collect();
            if free.is_empty() { vec![allowed[allowed.len() - 1]] } else { free }
        }
        cores => list(cores),
    };
    shard_cores.truncate(MAX_SHARDS);

    let mut warnings = Vec::new();
    let mut repeated: Vec<_> = shard_cores
        .iter()
        .enumerate()
        .filter(|(index, core)| shard_cores[..*index].contains(core))
        .map(|(_, core)| *core)
        .collect();
    repeated.sort_unstable();
    repeated.dedup();
    if !repeated.is_empty() {
        let several = if repeated.len() == 1 { "core" } else { "cores" };
        warnings.push(format!(
            "several shards share {several} {}: fine for tests, slower than one shard a core",
            show(&repeated)
        ));
    }
    let shared: Vec<_> = ingest_cores.iter().copied().filter(|core| shard_cores.contains(core)).collect();
    if !shared.is_empty() && ingest_cores.len() < allowed.len() {
        warnings
            .push(format!("the ingest thread shares core {} with a shard: latency suffers under load", show(&shared)));
    }
    Ok(Placement { ingest: ingest_cores, control: control_cores, shards: shard_cores, warnings })
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

    fn cores(text: &str) -> Cores {
        text.parse().unwrap()
    }

    #[test]
    fn reads_lists_and_ranges() {
        for (text, expect) in [
            ("auto", Cores::Auto),
            (" all ", Cores::All),
            ("3", Cores::List(vec![3])),
            ("2-5,7", Cores::List(vec![2, 3, 4, 5, 7])),
            ("1, 1,1", Cores::List(vec![1, 1, 1])),
        ] {
            assert_eq!(cores(text), expect, "{text}");
        }
        for (text, word) in [
            ("", "names no core"),
            ("2-", "\"2-\""),
            ("5-2", "runs backwards"),
            ("one", "\"one\""),
            ("1,,2", "\"\""),
            ("0-99999", "\"0-99999\""),
            ("-1", "\"-1\""),
        ] {
            let error = text.parse::<Cores>().unwrap_err();
            assert!(error.contains(word) && error.contains("allowed"), "{text}: {error}");
        }
    }

    #[test]
    fn auto_by_number_of_cores() {
        let auto = Cores::Auto;
        for (allowed, control, ingest, shards) in [
            (vec![0], 0, 0, vec![0]),
            (vec![7], 7, 7, vec![7]),
            (vec![0, 1], 0, 0, vec![1]),
            (vec![0, 1, 2], 0, 1, vec![2]),
            (vec![2, 3, 6, 7], 2, 3, vec![6, 7]),
        ] {
            let placed = place(&auto, &auto, &auto, &allowed).unwrap();
            assert_eq!(
                (placed.control, placed.ingest, placed.shards),
                (vec![control], vec![ingest], shards),
                "{allowed:?}"
            );
            assert!(placed.warnings.is_empty(), "{allowed:?}");
        }
    }

    #[test]
    fn auto_keeps_off_what_is_named() {
        let placed = place(&Cores::Auto, &Cores::Auto, &cores("0-1"), &[0, 1, 2, 3]).unwrap();
        assert_eq!((placed.control, placed.ingest, placed.shards), (vec![2], vec![3], vec![0, 1]));
        let placed = place(&cores("3"), &Cores::Auto, &Cores::Auto, &[0, 1, 2, 3]).unwrap();
        assert_eq!((placed.control, placed.ingest, placed.shards), (vec![0], vec![3], vec![1, 2]));
        let placed = place(&Cores::All, &Cores::All, &Cores::All, &[0, 1]).unwrap();
        assert_eq!((placed.control, placed.ingest, placed.shards), (vec![0, 1], vec![0, 1], vec![0, 1]));
    }

    #[test]
    fn repeated_cores_are_warned_of() {
        let placed = place(&Cores::Auto, &Cores::Auto, &cores("1,1,1,1"), &[0, 1]).unwrap();
        assert_eq!(placed.shards, [1, 1, 1, 1]);
        assert_eq!(placed.ingest, [0]);
        assert!(placed.warnings[0].contains("several shards share core 1"), "{:?}", placed.warnings);
    }

    #[test]
    fn cores_that_are_not_allowed_are_named() {
        let problems = place(&cores("9"), &Cores::Auto, &cores("1-4"), &[0, 1, 2]).unwrap_err();
        assert_eq!(problems[0].key, "ingest");
        assert_eq!(problems[0].message, "names core 9, which is not allowed to this process; allowed: 0-2");
        assert_eq!(problems[1].message, "names cores 3,4, which are not allowed to this process; allowed: 0-2");
        let problems = place(&Cores::Auto, &Cores::Auto, &Cores::List(vec![0; 300]), &[0]).unwrap_err();
        assert!(problems[0].message.contains("at most 256"));
    }

    #[test]
    fn a_thread_is_pinned_and_says_so() {
        std::thread::spawn(|| {
            let all = allowed().unwrap();
            let last = *all.last().unwrap();
            pin(&[last]).unwrap();
            assert_eq!(allowed().unwrap(), [last]);
        })
        .join()
        .unwrap();
    }
}
