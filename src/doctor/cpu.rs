//! The cores that threads are pinned to: their speed, their clock, and who else is at work on them.

use super::{Finding, Host, Setting, Severity, Wanted};
use crate::affinity::show;

pub(super) fn examine(wanted: &Wanted, host: &Host) -> Vec<Finding> {
    vec![cores(wanted), governor(wanted, host), clock(host)]
}

fn cores(wanted: &Wanted) -> Finding {
    const CONDITION: &str = "cores";
    const NEEDED: &str = "one physical core a shard, others for ingest and control";
    let placement = &wanted.placement;
    let found = format!(
        "shards {}, ingest {}, control {}",
        show(&placement.shards),
        show(&placement.ingest),
        show(&placement.control)
    );
    let mut costs = placement.warnings.clone();
    let node = |core: &usize| wanted.topology.get(*core).map(|core| core.node);
    let apart: Vec<usize> = match placement.ingest.as_slice() {
        [ingest] => placement.shards.iter().copied().filter(|shard| node(shard) != node(ingest)).collect(),
        _ => Vec::new(),
    };
    if !apart.is_empty() {
        costs.push(format!(
            "the shards on {} are on another NUMA node than the ingest thread, so each of their events crosses between the nodes",
            show(&apart)
        ));
    }
    let finding = Finding::good(CONDITION, NEEDED, found);
    match (costs.is_empty(), wanted.topology.cores().len()) {
        (true, 1) => finding.with(Severity::Warning, "everything shares the one core: give the node at least two"),
        (true, _) => finding,
        (false, _) => finding.with(Severity::Warning, format!("{}; see [affinity]", costs.join("; "))),
    }
}

fn governor(wanted: &Wanted, host: &Host) -> Finding {
    const CONDITION: &str = "frequency governor";
    const NEEDED: &str = "performance";
    let mut slow: Vec<(usize, String)> = Vec::new();
    let mut told = false;
    let placement = &wanted.placement;
    let mut used: Vec<usize> = placement.shards.iter().chain(&placement.ingest).copied().collect();
    used.sort_unstable();
    used.dedup();
    for core in used {
        let Some(governor) = host.read(&path_of_governor(core)) else { continue };
        told = true;
        if governor != NEEDED {
            slow.push((core, governor));
        }
    }
    if !told {
        return Finding::good(CONDITION, NEEDED, "none: the hypervisor or the firmware decides");
    }
    let Some((_, first)) = slow.first() else { return Finding::good(CONDITION, NEEDED, NEEDED) };
    let cores: Vec<usize> = slow.iter().map(|(core, _)| *core).collect();
    let settings =
        cores.iter().map(|core| Setting { path: path_of_governor(*core), value: NEEDED.to_owned() }).collect();
    Finding::good(CONDITION, NEEDED, format!("{first} on {}", show(&cores))).with_settings(Severity::Warning, settings)
}

fn path_of_governor(core: usize) -> String {
    format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor")
}

/// Every tick and every latency is taken by the clock, so it must not be a system call, nor a device.
fn clock(host: &Host) -> Finding {
    const CONDITION: &str = "clock source";
    const FAST: [&str; 4] = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"];
    const FOLDER: &str = "/sys/devices/system/clocksource/clocksource0";
    let needed = "one that is read without a system call: tsc, kvm-clock or arch_sys_counter";
    let Some(current) = host.read(&format!("{FOLDER}/current_clocksource")) else {
        return Finding::unknown(CONDITION, needed, "sysfs tells none");
    };
    let finding = Finding::good(CONDITION, needed, current.clone());
    if FAST.contains(&current.as_str()) {
        return finding;
    }
    let available = host.read(&format!("{FOLDER}/available_clocksource")).unwrap_or_default();
    match FAST.iter().find(|fast| available.split_whitespace().any(|name| name == **fast)) {
        Some(fast) => finding.with_settings(
            Severity::Warning,
            vec![Setting { path: format!("{FOLDER}/current_clocksource"), value: (*fast).to_owned() }],
        ),
        None => finding
            .with(Severity::Warning, format!("the kernel offers none that is fast ({available}): see its log for why")),
    }
}
