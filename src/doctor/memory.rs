//! What takes memory away from a node, or makes it wait for it.

use super::{Finding, Host, Setting, Severity, Wanted};

pub(super) fn examine(wanted: &Wanted, host: &Host) -> Vec<Finding> {
    vec![huge_pages(host), swap(host), numa_balancing(wanted, host)]
}

fn huge_pages(host: &Host) -> Finding {
    const CONDITION: &str = "transparent huge pages";
    const NEEDED: &str = "madvise: with never, matching waits for memory; with always, the kernel moves it at will";
    const PATH: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let Some(chosen) = host.chosen(PATH) else {
        return Finding::good(CONDITION, NEEDED, "the kernel has none");
    };
    let finding = Finding::good(CONDITION, NEEDED, chosen.clone());
    // What asks for large pages is the allocator.
    if chosen == "madvise" {
        return finding;
    }
    finding.with_settings(Severity::Warning, vec![Setting { path: PATH.into(), value: "madvise".into() }])
}

fn swap(host: &Host) -> Finding {
    const CONDITION: &str = "swap";
    const NEEDED: &str = "none, or vm.swappiness of at most 1";
    const PATH: &str = "/proc/sys/vm/swappiness";
    let Some(swaps) = host.read("/proc/swaps") else {
        return Finding::unknown(CONDITION, NEEDED, "/proc/swaps can't be read");
    };
    let devices: Vec<&str> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if devices.is_empty() {
        return Finding::good(CONDITION, NEEDED, "none");
    }
    let swappiness = host.number(PATH);
    let shown = swappiness.map_or("unknown".to_owned(), |value| value.to_string());
    let finding = Finding::good(CONDITION, NEEDED, format!("{}; vm.swappiness {shown}", devices.join(", ")));
    if swappiness.is_some_and(|value| value <= 1) {
        return finding;
    }
    finding.with_settings(Severity::Warning, vec![Setting { path: PATH.into(), value: "1".into() }])
}

fn numa_balancing(wanted: &Wanted, host: &Host) -> Finding {
    const CONDITION: &str = "NUMA balancing";
    const NEEDED: &str = "off: pinned threads have their memory beside them already";
    const PATH: &str = "/proc/sys/kernel/numa_balancing";
    let nodes = wanted.topology.nodes();
    if nodes.len() < 2 {
        return Finding::good(CONDITION, "nothing: there is one NUMA node", "one node");
    }
    match host.number(PATH) {
        None => Finding::good(CONDITION, NEEDED, "the kernel has none"),
        Some(0) => Finding::good(CONDITION, NEEDED, "off"),
        Some(_) => Finding::good(CONDITION, NEEDED, "on")
            .with_settings(Severity::Warning, vec![Setting { path: PATH.into(), value: "0".into() }]),
    }
}
