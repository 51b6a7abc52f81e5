//! Which cores a process may use, and which of them are threads of one physical core or lie on one NUMA node.

use std::{fs, io, path::Path};

use rustix::thread::{CpuSet, sched_getaffinity};

/// A core as the kernel numbers them: a hardware thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Core {
    pub number: usize,
    /// The lowest number among the threads of its physical core, itself included.
    pub physical: usize,
    pub node: usize,
}

/// The cores that this process is allowed, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    cores: Vec<Core>,
}

impl Topology {
    /// Of this machine, for the calling thread. To be asked before anything is pinned.
    ///
    /// # Errors
    /// When the kernel doesn't tell which cores are allowed.
    pub fn read() -> io::Result<Self> {
        let set = sched_getaffinity(None)?;
        let allowed = (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core));
        Ok(Self::read_from(Path::new("/sys/devices/system"), allowed))
    }

    /// What this folder of sysfs tells about these cores. Where it tells nothing, each is a physical core by itself, on node 0.
    pub(crate) fn read_from(folder: &Path, allowed: impl IntoIterator<Item = usize>) -> Self {
        let list = |path: &str| fs::read_to_string(folder.join(path)).ok().and_then(|text| numbers(&text));
        let nodes: Vec<(usize, Vec<usize>)> = list("node/online")
            .unwrap_or_default()
            .into_iter()
            .filter_map(|node| Some((node, list(&format!("node/node{node}/cpulist"))?)))
            .collect();
        let core = |number| {
            let threads = list(&format!("cpu/cpu{number}/topology/thread_siblings_list"));
            let physical = threads.and_then(|threads| threads.into_iter().min()).unwrap_or(number);
            let node = nodes.iter().find(|(_, cores)| cores.contains(&number)).map_or(0, |(node, _)| *node);
            Core { number, physical, node }
        };
        Self { cores: allowed.into_iter().map(core).collect() }
    }

    /// One of `threads` threads a physical core, numbered as Linux does on common servers: the first threads of all cores, node by
    /// node, then the second ones.
    #[cfg(test)]
    pub(crate) fn of_test(nodes: usize, cores_a_node: usize, threads: usize) -> Self {
        let physical = nodes * cores_a_node;
        let core = |number: usize| {
            let physical = number % physical;
            Core { number, physical, node: physical / cores_a_node }
        };
        Self { cores: (0..physical * threads).map(core).collect() }
    }

    /// Only these of them.
    #[cfg(test)]
    pub(crate) fn only(mut self, allowed: &[usize]) -> Self {
        self.cores.retain(|core| allowed.contains(&core.number));
        self
    }

    pub fn cores(&self) -> &[Core] {
        &self.cores
    }

    pub fn numbers(&self) -> Vec<usize> {
        self.cores.iter().map(|core| core.number).collect()
    }

    pub fn get(&self, number: usize) -> Option<&Core> {
        self.cores.iter().find(|core| core.number == number)
    }

    pub fn nodes(&self) -> Vec<usize> {
        let mut nodes: Vec<usize> = self.cores.iter().map(|core| core.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// The first allowed thread of each physical core of this node, or of all nodes.
    pub fn one_a_physical(&self, node: Option<usize>) -> Vec<usize> {
        let mut taken = Vec::new();
        let mut found = Vec::new();
        for core in self.cores.iter().filter(|core| node.is_none_or(|node| core.node == node)) {
            if !taken.contains(&core.physical) {
                taken.push(core.physical);
                found.push(core.number);
            }
        }
        found
    }

    /// Whether two core numbers are threads of one physical core.
    pub fn share_a_physical(&self, one: usize, other: usize) -> bool {
        let physical = |number| self.get(number).map(|core| core.physical);
        physical(one).is_some_and(|one| physical(other) == Some(one))
    }
}

/// Numbers and ranges with commas, as the kernel writes them.
pub(crate) fn numbers(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        match part.split_once('-') {
            None => all.push(part.parse().ok()?),
            Some((first, last)) => {
                let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
                all.extend((last < CpuSet::MAX_CPU).then_some(first..=last)?);
            }
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_nodes_are_read_from_sysfs() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("node/online", "0-1\n");
        write("node/node0/cpulist", "0-1,4-5\n");
        write("node/node1/cpulist", "2-3,6-7\n");
        for core in 0..8 {
            let first = core % 4;
            write(&format!("cpu/cpu{core}/topology/thread_siblings_list"), &format!("{first},{}\n", first + 4));
        }
        let topology = Topology::read_from(folder.path(), 0..8);
        assert_eq!(topology, Topology::of_test(2, 2, 2));
        assert_eq!(topology.one_a_physical(None), [0, 1, 2, 3]);
        assert_eq!(topology.one_a_physical(Some(1)), [2, 3]);
        assert_eq!(topology.nodes(), [0, 1]);
        assert!(topology.share_a_physical(1, 5) && !topology.share_a_physical(1, 4));
        // The first thread of a core may be barred.
        let topology = Topology::read_from(folder.path(), [1, 4, 5]);
        assert_eq!(topology.one_a_physical(None), [1, 4]);
    }

    #[test]
    fn a_kernel_that_tells_nothing_has_plain_cores() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Topology::read_from(folder.path(), 0..3), Topology::of_test(1, 3, 1));
    }

    #[test]
    fn this_machine_has_cores() {
        let topology = Topology::read().unwrap();
        assert!(!topology.cores().is_empty());
        assert!(!topology.one_a_physical(None).is_empty());
    }
}
