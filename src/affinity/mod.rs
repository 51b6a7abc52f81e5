//! Which thread runs on which core: what was asked for, held against what the process is allowed.

mod cores;
mod topology;

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

pub(crate) use self::topology::numbers;
pub use self::{
    cores::{Cores, show},
    topology::{Core, Topology},
};

/// Shards that a node may have; slots and ports are dealt out among them.
pub const MAX_SHARDS: usize = 256;

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

/// Lets the calling thread run on these cores only. Threads that it starts inherit it.
pub fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cores.iter().filter(|core| **core < CpuSet::MAX_CPU).for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).map_err(Into::into)
}

/// Deals the allowed cores out to the threads. What isn't named gets physical cores, one thread of each.
pub fn place(ingest: &Cores, control: &Cores, shards: &Cores, on: &Topology) -> Result<Placement, Vec<Misplaced>> {
    let allowed = on.numbers();
    if allowed.is_empty() {
        return Err(vec![Misplaced { key: "shards", message: "no core is allowed to this process".into() }]);
    }
    let problems: Vec<Misplaced> = [("ingest", ingest), ("control", control), ("shards", shards)]
        .into_iter()
        .filter_map(|(key, cores)| Some(Misplaced { key, message: objection(key, cores, on)? }))
        .collect();
    if !problems.is_empty() {
        return Err(problems);
    }

    // What "auto" chooses from. Shards on a node have the other threads beside them, since each event crosses over.
    let node = if let Cores::Numa(node) = shards { Some(*node) } else { None };
    let free = match on.one_a_physical(node) {
        // Threads of the only physical core are better than none.
        one if one.len() == 1 => on.cores().iter().filter(|core| node.is_none_or(|node| core.node == node)).collect(),
        one => one.iter().filter_map(|number| on.get(*number)).collect::<Vec<_>>(),
    };
    let free: Vec<usize> = free.into_iter().map(|core| core.number).collect();
    let named = |cores: &Cores| match cores {
        Cores::List(cores) => cores.clone(),
        Cores::Numa(node) => on.one_a_physical(Some(*node)),
        Cores::All => allowed.clone(),
        Cores::Auto => Vec::new(),
    };
    let shards_named = if let Cores::List(cores) = shards { cores.clone() } else { Vec::new() };
    // The first that is neither taken by name nor a thread of the same physical core as one that is.
    let first_off = |taken: &[usize]| {
        let is_off = |core: &usize| !taken.iter().any(|taken| taken == core || on.share_a_physical(*taken, *core));
        let is_other = |core: &usize| !taken.contains(core);
        free.iter().copied().find(is_off).or_else(|| free.iter().copied().find(is_other))
    };
    let beside = |taken: &[usize]| {
        let first = || first_off(&shards_named).unwrap_or(free[0]);
        if free.len() <= 2 { first() } else { first_off(&[&shards_named, taken].concat()).unwrap_or_else(first) }
    };
    let ingest_named = if matches!(ingest, Cores::List(_)) { named(ingest) } else { Vec::new() };
    let control_cores = match control {
        Cores::Auto => vec![beside(&ingest_named)],
        cores => named(cores),
    };
    let ingest_cores = match ingest {
        Cores::Auto => vec![beside(&control_cores)],
        cores => named(cores),
    };
    let mut shard_cores = match shards {
        Cores::Auto | Cores::Numa(_) => {
            let is_off = |core: &&usize| !ingest_cores.contains(core) && !control_cores.contains(core);
            let off: Vec<usize> = free.iter().filter(is_off).copied().collect();
            if off.is_empty() { vec![free[free.len() - 1]] } else { off }
        }
        cores => named(cores),
    };
    shard_cores.truncate(MAX_SHARDS);
    let warnings = warnings(&ingest_cores, &shard_cores, on);
    Ok(Placement { ingest: ingest_cores, control: control_cores, shards: shard_cores, warnings })
}

/// Why these cores can't be had, if they can't.
fn objection(key: &str, cores: &Cores, on: &Topology) -> Option<String> {
    let allowed = on.numbers();
    match cores {
        Cores::List(cores) => {
            let mut barred: Vec<_> = cores.iter().copied().filter(|core| !allowed.contains(core)).collect();
            barred.dedup();
            if !barred.is_empty() {
                let (noun, verb) = if barred.len() == 1 { ("core", "is") } else { ("cores", "are") };
                return Some(format!(
                    "names {noun} {}, which {verb} not allowed to this process; allowed: {}",
                    show(&barred),
                    show(&allowed)
                ));
            }
            (key == "shards" && cores.len() > MAX_SHARDS).then(|| {
                format!("names {} cores, which would be as many shards; allowed: at most {MAX_SHARDS}", cores.len())
            })
        }
        Cores::Numa(node) if !on.nodes().contains(node) => Some(format!(
            "names NUMA node {node}, of which this process is allowed no core; allowed: {}",
            on.nodes().iter().map(|node| format!("\"numa:{node}\"")).collect::<Vec<_>>().join(", ")
        )),
        _ => None,
    }
}

/// What works, but costs.
fn warnings(ingest: &[usize], shards: &[usize], on: &Topology) -> Vec<String> {
    let mut warnings = Vec::new();
    let before = |index: usize| &shards[..index];
    let mut repeated: Vec<usize> = Vec::new();
    let mut threads: Vec<usize> = Vec::new();
    for (index, core) in shards.iter().enumerate() {
        if before(index).contains(core) {
            repeated.push(*core);
        } else if before(index).iter().any(|other| on.share_a_physical(*other, *core)) {
            threads.push(*core);
        }
    }
    repeated.sort_unstable();
    repeated.dedup();
    if !repeated.is_empty() {
        let several = if repeated.len() == 1 { "core" } else { "cores" };
        warnings.push(format!(
            "several shards share {several} {}: fine for tests, slower than one shard a core",
            show(&repeated)
        ));
    }
    if !threads.is_empty() {
        warnings.push(format!(
            "the shards on {} share a physical core with another shard: a second thread adds less than a core does, and each \
             of the two is slower",
            show(&threads)
        ));
    }
    if ingest.len() == on.cores().len() {
        return warnings;
    }
    let shared: Vec<_> = ingest.iter().copied().filter(|core| shards.contains(core)).collect();
    if !shared.is_empty() {
        warnings
            .push(format!("the ingest thread shares core {} with a shard: latency suffers under load", show(&shared)));
    } else if ingest.iter().any(|core| shards.iter().any(|shard| on.share_a_physical(*core, *shard))) {
        warnings.push("the ingest thread shares a physical core with a shard: it is slower under load".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn cores(text: &str) -> Cores {
        text.parse().unwrap()
    }

    /// Plain cores of these numbers.
    fn plain(allowed: &[usize]) -> Topology {
        Topology::of_test(1, 16, 1).only(allowed)
    }

    fn auto(on: &Topology) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
        let placed = place(&Cores::Auto, &Cores::Auto, &Cores::Auto, on).unwrap();
        (placed.control, placed.ingest, placed.shards)
    }

    #[test]
    fn auto_by_number_of_cores() {
        for (allowed, control, ingest, shards) in [
            (vec![0], 0, 0, vec![0]),
            (vec![7], 7, 7, vec![7]),
            (vec![0, 1], 0, 0, vec![1]),
            (vec![0, 1, 2], 0, 1, vec![2]),
            (vec![2, 3, 6, 7], 2, 3, vec![6, 7]),
        ] {
            assert_eq!(auto(&plain(&allowed)), (vec![control], vec![ingest], shards), "{allowed:?}");
            let placed = place(&Cores::Auto, &Cores::Auto, &Cores::Auto, &plain(&allowed)).unwrap();
            assert!(placed.warnings.is_empty(), "{allowed:?}");
        }
    }

    #[test]
    fn auto_takes_one_thread_of_each_physical_core() {
        assert_eq!(auto(&Topology::of_test(1, 8, 2)), (vec![0], vec![1], (2..8).collect()));
        assert_eq!(auto(&Topology::of_test(2, 32, 2)), (vec![0], vec![1], (2..64).collect()));
        assert_eq!(auto(&Topology::of_test(1, 2, 2)), (vec![0], vec![0], vec![1]));
        // The two threads of the only core.
        assert_eq!(auto(&Topology::of_test(1, 1, 2)), (vec![0], vec![0], vec![1]));
        // The first threads of some are barred.
        assert_eq!(auto(&Topology::of_test(1, 4, 2).only(&[1, 4, 5, 6, 7])), (vec![1], vec![4], vec![6, 7]));
    }

    #[test]
    fn a_node_has_the_shards_and_what_feeds_them() {
        let on = Topology::of_test(2, 4, 2);
        let placed = place(&Cores::Auto, &Cores::Auto, &cores("numa:1"), &on).unwrap();
        assert_eq!((placed.control, placed.ingest, placed.shards), (vec![4], vec![5], vec![6, 7]));
        assert!(placed.warnings.is_empty(), "{:?}", placed.warnings);
        let placed = place(&cores("0"), &cores("1"), &cores("numa:1"), &on).unwrap();
        assert_eq!((placed.ingest, placed.control, placed.shards), (vec![0], vec![1], vec![4, 5, 6, 7]));
        let placed = place(&cores("numa:0"), &Cores::Auto, &cores("numa:1"), &on).unwrap();
        assert_eq!((placed.ingest, placed.shards), (vec![0, 1, 2, 3], vec![5, 6, 7]));
        let problems = place(&Cores::Auto, &Cores::Auto, &cores("numa:2"), &on).unwrap_err();
        assert_eq!(
            problems[0].message,
            "names NUMA node 2, of which this process is allowed no core; allowed: \"numa:0\", \"numa:1\""
        );
    }

    #[test]
    fn auto_keeps_off_what_is_named() {
        let four = plain(&[0, 1, 2, 3]);
        let placed = place(&Cores::Auto, &Cores::Auto, &cores("0-1"), &four).unwrap();
        assert_eq!((placed.control, placed.ingest, placed.shards), (vec![2], vec![3], vec![0, 1]));
        let placed = place(&cores("3"), &Cores::Auto, &Cores::Auto, &four).unwrap();
        assert_eq!((placed.control, placed.ingest, placed.shards), (vec![0], vec![3], vec![1, 2]));
        let placed = place(&Cores::All, &Cores::All, &Cores::All, &plain(&[0, 1])).unwrap();
        assert_eq!((placed.control, placed.ingest, placed.shards), (vec![0, 1], vec![0, 1], vec![0, 1]));
        // Nor on the other thread of what is named.
        let placed = place(&Cores::Auto, &Cores::Auto, &cores("4-5"), &Topology::of_test(1, 4, 2)).unwrap();
        assert_eq!((placed.control, placed.ingest), (vec![2], vec![3]));
    }

    #[test]
    fn what_costs_is_warned_of() {
        let placed = place(&Cores::Auto, &Cores::Auto, &cores("1,1,1,1"), &plain(&[0, 1])).unwrap();
        assert_eq!(placed.shards, [1, 1, 1, 1]);
        assert_eq!(placed.ingest, [0]);
        assert!(placed.warnings[0].contains("several shards share core 1"), "{:?}", placed.warnings);
        let threads = Topology::of_test(1, 4, 2);
        let placed = place(&cores("0"), &Cores::Auto, &cores("1-2,5-6"), &threads).unwrap();
        assert!(placed.warnings[0].starts_with("the shards on 5,6 share a physical core"), "{:?}", placed.warnings);
        let placed = place(&cores("5"), &Cores::Auto, &cores("1-2"), &threads).unwrap();
        assert!(placed.warnings[0].contains("ingest thread shares a physical core"), "{:?}", placed.warnings);
        let placed = place(&cores("2"), &Cores::Auto, &cores("1-2"), &threads).unwrap();
        assert!(placed.warnings[0].contains("ingest thread shares core 2"), "{:?}", placed.warnings);
    }

    #[test]
    fn the_profiles_suit_the_machines_that_they_are_for() {
        for (name, machine, shards) in [
            ("2-cores", Topology::of_test(1, 2, 1), 1),
            ("8-cores", Topology::of_test(1, 8, 1), 6),
            ("32-cores", Topology::of_test(1, 32, 2), 27),
            ("64-cores", Topology::of_test(1, 64, 2), 55),
            ("2x32-cores", Topology::of_test(2, 32, 2), 27),
        ] {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tuning/profiles/{name}.toml"));
            let config = Config::from_parts(Some(file.clone()), &std::fs::read_to_string(&file).unwrap(), []).unwrap();
            let cores = config.affinity;
            let placed = place(&cores.ingest.value, &cores.control.value, &cores.shards.value, &machine).unwrap();
            assert_eq!((placed.shards.len(), placed.warnings), (shards, vec![]), "{name}");
            let node = |core: &usize| machine.get(*core).unwrap().node;
            assert!(placed.shards.iter().chain(&placed.ingest).all(|core| node(core) == 0), "{name}");
        }
    }

    #[test]
    fn cores_that_are_not_allowed_are_named() {
        let problems = place(&cores("9"), &Cores::Auto, &cores("1-4"), &plain(&[0, 1, 2])).unwrap_err();
        assert_eq!(problems[0].key, "ingest");
        assert_eq!(problems[0].message, "names core 9, which is not allowed to this process; allowed: 0-2");
        assert_eq!(problems[1].message, "names cores 3,4, which are not allowed to this process; allowed: 0-2");
        let problems = place(&Cores::Auto, &Cores::Auto, &Cores::List(vec![0; 300]), &plain(&[0])).unwrap_err();
        assert!(problems[0].message.contains("at most 256"));
    }

    #[test]
    fn a_thread_is_pinned_and_says_so() {
        std::thread::spawn(|| {
            let last = *Topology::read().unwrap().numbers().last().unwrap();
            pin(&[last]).unwrap();
            assert_eq!(Topology::read().unwrap().numbers(), [last]);
        })
        .join()
        .unwrap();
    }
}
