//! What the node's process needs to run at all: kernel, io_uring, locked memory, files, and what a container takes away.

use shards::driver::RuntimeChoice;

use super::{Finding, Host, Process, Severity, Wanted};

/// Connections of HTTP, files of the embedded store and its segments, sockets of shards, pipes of executors.
const OPEN_FILES: u64 = 4_096;

pub(super) fn examine(wanted: &Wanted, process: &Process, host: &Host) -> Vec<Finding> {
    vec![
        kernel(host),
        io_uring(wanted, process),
        locked_memory(wanted, process),
        open_files(process),
        container(host),
        cpu_quota(host),
    ]
}

fn kernel(host: &Host) -> Finding {
    const CONDITION: &str = "kernel";
    const NEEDED: &str = "Linux 5.8 or later";
    let Some(release) = host.read("/proc/sys/kernel/osrelease") else {
        return Finding::unknown(CONDITION, NEEDED, "/proc tells no release");
    };
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let finding = Finding::good(CONDITION, NEEDED, release);
    if version >= (5, 8) {
        return finding;
    }
    finding.with(Severity::Warning, "update it: until then shards run on tokio, which is slower")
}

fn io_uring(wanted: &Wanted, process: &Process) -> Finding {
    const CONDITION: &str = "io_uring";
    let needed = "allowed to this process";
    match &process.preflight.io_uring {
        Ok(()) => Finding::good(CONDITION, needed, "allowed"),
        Err(_) if wanted.runtime == RuntimeChoice::Tokio => {
            Finding::good(CONDITION, "nothing: node.runtime is \"tokio\"", "barred")
        }
        Err(why) => Finding::good(CONDITION, needed, why.missing.clone()).with(severity(wanted), why.remedy.clone()),
    }
}

/// Without what glommio needs a node that insists on it doesn't start, any other runs on tokio.
fn severity(wanted: &Wanted) -> Severity {
    if wanted.runtime == RuntimeChoice::Glommio { Severity::Error } else { Severity::Warning }
}

fn locked_memory(wanted: &Wanted, process: &Process) -> Finding {
    const CONDITION: &str = "locked memory";
    let preflight = &process.preflight;
    let (needed, found) = (preflight.memlock_needed_bytes, preflight.memlock_bytes);
    let executors = preflight.executors;
    let shown = if found == u64::MAX { "unlimited".to_owned() } else { format!("{} KiB", found / 1024) };
    let finding = Finding::good(
        CONDITION,
        format!("{} KiB for {executors} shard{}", needed / 1024, if executors == 1 { "" } else { "s" }),
        shown,
    );
    if found >= needed || wanted.runtime == RuntimeChoice::Tokio {
        return finding;
    }
    let kib = needed.div_ceil(1024);
    finding.with(severity(wanted), format!("`ulimit -l {kib}`, or LimitMEMLOCK={kib}K in the systemd unit"))
}

fn open_files(process: &Process) -> Finding {
    let finding = Finding::good("open files", format!("{OPEN_FILES}"), process.open_files.to_string());
    if process.open_files >= OPEN_FILES {
        return finding;
    }
    finding
        .with(Severity::Warning, format!("`ulimit -n {OPEN_FILES}`, or LimitNOFILE={OPEN_FILES} in the systemd unit"))
}

fn container(host: &Host) -> Finding {
    const CONDITION: &str = "container";
    const NEEDED: &str = "none, or one with io_uring and cores of its own";
    let inside = ["/.dockerenv", "/run/.containerenv"].into_iter().find(|path| host.has(path));
    let Some(mark) = inside else { return Finding::good(CONDITION, NEEDED, "none") };
    Finding::good(CONDITION, NEEDED, format!("one ({mark} is there)")).with(
        Severity::Note,
        "give it cores of its own (docker `--cpuset-cpus`), the host's network (`--network host`), memory to lock \
         (`--ulimit memlock=-1`), and a seccomp profile that allows io_uring",
    )
}

fn cpu_quota(host: &Host) -> Finding {
    const CONDITION: &str = "CPU quota";
    const NEEDED: &str = "none: a thread that is stopped for the rest of a period stalls its shard";
    let own = host
        .read("/proc/self/cgroup")
        .and_then(|text| Some(text.lines().find_map(|l| l.strip_prefix("0::"))?.to_owned()));
    let folder = own.filter(|own| own != "/").unwrap_or_default();
    let version_2 = || {
        let text =
            host.read(&format!("/sys/fs/cgroup{folder}/cpu.max")).or_else(|| host.read("/sys/fs/cgroup/cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        (quota != "max").then(|| format!("{quota} of every {period} µs"))
    };
    let version_1 = || {
        let quota = host.read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")?;
        (!quota.starts_with('-')).then(|| format!("{quota} µs a period"))
    };
    match version_2().or_else(version_1) {
        None => Finding::good(CONDITION, NEEDED, "none"),
        Some(quota) => Finding::good(CONDITION, NEEDED, quota).with(
            Severity::Warning,
            "give it cores instead (AllowedCPUs= in systemd, `--cpuset-cpus` in docker, static CPU manager in Kubernetes)",
        ),
    }
}
