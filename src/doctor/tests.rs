//! Made-up hosts, held against the checks.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::affinity::{Cores, place};

/// A host of 8 cores with two threads each, on two nodes, with one network card, where all is well.
struct Made {
    folder: TempDir,
    wanted: Wanted,
    process: Process,
}

const CARD: &str = "/sys/class/net/eth0";

impl Made {
    fn new() -> Self {
        let topology = Topology::of_test(2, 4, 2);
        let preflight =
            Preflight { io_uring: Ok(()), memlock_bytes: u64::MAX, memlock_needed_bytes: 4 << 20, executors: 4 };
        let made = Self {
            folder: tempfile::tempdir().unwrap(),
            wanted: Wanted {
                placement: place(&Cores::Auto, &Cores::Auto, &Cores::Numa(0), &topology).unwrap(),
                topology,
                runtime: RuntimeChoice::Auto,
                quic: "0.0.0.0:7400".parse().unwrap(),
                socket_receive_bytes: 4 << 20,
                socket_send_bytes: 4 << 20,
            },
            process: Process { preflight, open_files: 65_536 },
        };
        for (path, text) in [
            ("/proc/sys/kernel/osrelease", "6.8.0-45-generic"),
            ("/proc/sys/net/core/rmem_max", "8388608"),
            ("/proc/sys/net/core/wmem_max", "8388608"),
            ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
            ("/sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet acpi_pm"),
            ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
            ("/proc/swaps", "Filename Type Size Used Priority"),
            ("/proc/sys/vm/swappiness", "60"),
            ("/proc/sys/kernel/numa_balancing", "0"),
            ("/proc/self/cgroup", "0::/system.slice/streamer.service"),
            ("/sys/fs/cgroup/system.slice/streamer.service/cpu.max", "max 100000"),
        ] {
            made.write(path, text);
        }
        for core in 0..8 {
            made.write(&format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"), "performance");
        }
        for queue in 0..4 {
            let irq = 40 + queue;
            made.write(&format!("{CARD}/device/msi_irqs/{irq}"), "msix");
            made.write(&format!("{CARD}/queues/rx-{queue}/rps_cpus"), "00000000");
            made.write(&format!("/proc/irq/{irq}/smp_affinity_list"), "4-7");
            made.write(&format!("/proc/irq/{irq}/effective_affinity_list"), "4");
        }
        made
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(&path[1..]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.folder.path().join(&path[1..])).unwrap().trim().to_owned()
    }

    fn host(&self) -> Host {
        Host::below(self.folder.path())
    }

    fn examine(&self) -> Vec<Finding> {
        examine(&self.wanted, &self.process, &self.host())
    }

    /// What isn't good.
    fn wrong(&self) -> Vec<Finding> {
        self.examine().into_iter().filter(|finding| finding.severity > Severity::Unknown).collect()
    }

    /// The one thing that isn't good.
    fn only(&self) -> Finding {
        let wrong = self.wrong();
        assert_eq!(wrong.len(), 1, "{}", table(&wrong, 200));
        wrong.into_iter().next().unwrap()
    }
}

#[test]
fn a_good_host_is_good() {
    let made = Made::new();
    assert_eq!(made.wrong(), [], "{}", table(&made.wrong(), 200));
    let unknown: Vec<_> = made.examine().into_iter().filter(|finding| finding.severity == Severity::Unknown).collect();
    // Only a card's own rules are in no file.
    let [steering] = &unknown[..] else { panic!("{}", table(&unknown, 200)) };
    assert!(steering.fix.contains("dst-port 7400"), "{steering:?}");
    assert!(tune::plan(&made.examine(), &made.host()).is_empty());
    // Wide enough for no cell to be folded.
    let shown = table(&made.examine(), 1_000);
    for finding in made.examine() {
        assert!(shown.contains(finding.condition), "{} is not in:\n{shown}", finding.condition);
    }
}

#[test]
fn each_condition_is_found_by_itself() {
    let cases: [(&str, &str, &str, Severity); 12] = [
        ("kernel", "/proc/sys/kernel/osrelease", "5.4.0-1", Severity::Warning),
        ("UDP receive buffer", "/proc/sys/net/core/rmem_max", "212992", Severity::Warning),
        ("UDP send buffer", "/proc/sys/net/core/wmem_max", "212992", Severity::Warning),
        ("clock source", "/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet", Severity::Warning),
        (
            "transparent huge pages",
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "[always] madvise never",
            Severity::Warning,
        ),
        (
            "transparent huge pages",
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "always madvise [never]",
            Severity::Warning,
        ),
        ("swap", "/proc/swaps", "Filename Type\n/swap.img file 8388604", Severity::Warning),
        ("NUMA balancing", "/proc/sys/kernel/numa_balancing", "1", Severity::Warning),
        ("frequency governor", "/sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "powersave", Severity::Warning),
        ("CPU quota", "/sys/fs/cgroup/system.slice/streamer.service/cpu.max", "150000 100000", Severity::Warning),
        ("interrupts of network cards", "/proc/irq/41/effective_affinity_list", "3", Severity::Warning),
        ("receive packet steering", "/sys/class/net/eth0/queues/rx-1/rps_cpus", "0000000c", Severity::Warning),
    ];
    for (condition, path, text, severity) in cases {
        let made = Made::new();
        made.write(path, text);
        let found = made.only();
        assert_eq!((found.condition, found.severity), (condition, severity), "{found:?}");
        assert!(!found.fix.is_empty(), "{condition} has no fix");
        // What can be set makes it good, and what undoes it makes it as it was.
        let (host, changes) = (made.host(), tune::plan(&made.examine(), &made.host()));
        assert_eq!(changes.is_empty(), found.settings.is_empty(), "{condition}");
        if changes.is_empty() {
            continue;
        }
        assert!(tune::apply(&changes, &host).iter().all(Result::is_ok));
        if path.starts_with("/proc/irq") {
            // The kernel says where it is in effect; a made-up one doesn't.
            assert_eq!(made.read("/proc/irq/41/smp_affinity_list"), "0,1,4-15");
            continue;
        }
        if condition != "transparent huge pages" {
            assert_eq!(made.wrong(), [], "{condition}");
        }
        let undone: Vec<_> =
            changes.iter().map(|change| tune::Change { setting: change.undo(), before: String::new() }).collect();
        assert!(tune::apply(&undone, &host).iter().all(Result::is_ok));
        assert!(changes.iter().all(|change| made.read(&change.setting.path) == change.before), "{condition}");
    }
}

#[test]
fn what_the_process_lacks_depends_on_the_runtime() {
    let lacking = |runtime| {
        let mut made = Made::new();
        made.wanted.runtime = runtime;
        made.process.preflight.memlock_bytes = 64 << 10;
        made.process.preflight.io_uring = Err(shards::driver::RuntimeUnavailable {
            missing: "kernel.io_uring_disabled is 2".into(),
            remedy: "Allow it with `sysctl kernel.io_uring_disabled=0`".into(),
        });
        made.wrong()
    };
    let severities = |runtime| lacking(runtime).iter().map(|finding| finding.severity).collect::<Vec<_>>();
    assert_eq!(severities(RuntimeChoice::Glommio), [Severity::Error, Severity::Error]);
    assert_eq!(severities(RuntimeChoice::Auto), [Severity::Warning, Severity::Warning]);
    assert_eq!(severities(RuntimeChoice::Tokio), []);
    let memory = lacking(RuntimeChoice::Auto).pop().unwrap();
    assert_eq!(memory.needed, "4096 KiB for 4 shards");
    assert!(memory.fix.contains("LimitMEMLOCK=4096K"), "{memory:?}");
}

#[test]
fn containers_few_files_and_shared_cores_are_told() {
    let mut made = Made::new();
    made.write("/.dockerenv", "");
    assert_eq!((made.only().condition, made.only().severity), ("container", Severity::Note));
    let mut fewer = Made::new();
    fewer.process.open_files = 1_024;
    assert_eq!(fewer.only().condition, "open files");
    // Shards of both nodes, the ingest thread on one.
    made = Made::new();
    let topology = &made.wanted.topology;
    made.wanted.placement = place(&Cores::Auto, &Cores::Auto, &Cores::Auto, topology).unwrap();
    made.wanted.quic = "127.0.0.1:7400".parse().unwrap();
    let found = made.only();
    assert!(found.condition == "cores" && found.fix.contains("shards on 4-7 are on another NUMA node"), "{found:?}");
}

#[test]
fn a_loopback_node_needs_no_card_and_a_small_card_can_not_steer() {
    let mut made = Made::new();
    made.wanted.quic = "127.0.0.1:7400".parse().unwrap();
    made.write("/proc/irq/41/effective_affinity_list", "3");
    assert_eq!(made.wrong(), []);
    let mut made = Made::new();
    made.wanted.placement.shards = (2..8).collect();
    for irq in 40..44 {
        made.write(&format!("/proc/irq/{irq}/effective_affinity_list"), "0");
    }
    let wrong = made.wrong();
    assert!(wrong.iter().any(|finding| finding.found == "eth0 has 4 receive queues for 6 shards"), "{wrong:?}");
}

#[test]
fn what_is_refused_is_named_and_stops_nothing() {
    let made = Made::new();
    made.write("/proc/sys/net/core/rmem_max", "1");
    made.write("/proc/sys/net/core/wmem_max", "1");
    let changes = tune::plan(&made.examine(), &made.host());
    fs::remove_file(made.folder.path().join("proc/sys/net/core/rmem_max")).unwrap();
    let done = tune::apply(&changes, &made.host());
    let refused = done[0].as_ref().unwrap_err().to_string();
    assert!(refused.starts_with("/proc/sys/net/core/rmem_max can't be set to \"4194304\": "), "{refused}");
    assert!(done[1].is_ok());
    assert_eq!(made.read("/proc/sys/net/core/wmem_max"), "4194304");
}

#[test]
fn a_host_that_tells_nothing_is_unknown_not_wrong() {
    let mut made = Made::new();
    made.folder = tempfile::tempdir().unwrap();
    assert_eq!(made.wrong(), []);
    assert!(made.examine().iter().any(|finding| finding.severity == Severity::Unknown));
}
