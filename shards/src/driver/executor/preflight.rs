//! Whether glommio can run here, found out before it is started: it ends the process on a kernel that lacks an operation it
//! needs, and its own errors don't say what to change.

use std::{
    fmt, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeChoice {
    /// Glommio where it can run, else tokio.
    #[default]
    Auto,
    Glommio,
    Tokio,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("runtime {0:?} is not known; allowed are \"auto\", \"glommio\" and \"tokio\"")]
pub struct UnknownRuntime(String);

impl FromStr for RuntimeChoice {
    type Err = UnknownRuntime;

    fn from_str(text: &str) -> Result<Self, UnknownRuntime> {
        match text {
            "auto" => Ok(Self::Auto),
            "glommio" => Ok(Self::Glommio),
            "tokio" => Ok(Self::Tokio),
            other => Err(UnknownRuntime(other.to_owned())),
        }
    }
}

/// The executor that a shard runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    Glommio,
    Tokio,
}

impl fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Glommio => "glommio",
            Self::Tokio => "tokio",
        })
    }
}

/// What was chosen and why, as one line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeUsed {
    pub kind: RuntimeKind,
    pub reason: String,
}

impl fmt::Display for RuntimeUsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.kind, self.reason)
    }
}

/// The configuration asks for glommio, and it can't be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("runtime = \"glommio\" cannot be had: {missing}. {remedy}. Or set runtime = \"auto\" or \"tokio\"")]
pub struct RuntimeUnavailable {
    pub missing: String,
    pub remedy: String,
}

/// What glommio needs of the host and what is there.
#[derive(Clone, Debug)]
pub struct Preflight {
    /// What keeps io_uring from being used.
    pub io_uring: Result<(), RuntimeUnavailable>,
    /// Bytes this process may lock (`RLIMIT_MEMLOCK`, soft); `u64::MAX` is "unlimited".
    pub memlock_bytes: u64,
    /// Bytes that the executors asked about need it to be.
    pub memlock_needed_bytes: u64,
    pub executors: usize,
}

impl Preflight {
    /// Looks at the host for a process that runs `executors` shards.
    pub fn check(executors: usize) -> Self {
        let executors = executors.max(1);
        Self {
            io_uring: probe_io_uring(),
            memlock_bytes: memlock_limit(),
            memlock_needed_bytes: memlock_needed(executors, may_lock_without_limit()),
            executors,
        }
    }

    /// What runs, given what was asked for.
    pub fn decide(&self, choice: RuntimeChoice) -> Result<RuntimeUsed, RuntimeUnavailable> {
        match (choice, self.obstacle()) {
            (RuntimeChoice::Tokio, _) => {
                Ok(RuntimeUsed { kind: RuntimeKind::Tokio, reason: "as configured".to_owned() })
            }
            (RuntimeChoice::Auto | RuntimeChoice::Glommio, None) => Ok(RuntimeUsed {
                kind: RuntimeKind::Glommio,
                reason: format!(
                    "io_uring works; lockable memory {} of {} needed for {} executor(s)",
                    bytes(self.memlock_bytes),
                    bytes(self.memlock_needed_bytes),
                    self.executors
                ),
            }),
            (RuntimeChoice::Auto, Some(obstacle)) => Ok(RuntimeUsed {
                kind: RuntimeKind::Tokio,
                reason: format!("glommio cannot be had: {}. {}", obstacle.missing, obstacle.remedy),
            }),
            (RuntimeChoice::Glommio, Some(obstacle)) => Err(obstacle),
        }
    }

    fn obstacle(&self) -> Option<RuntimeUnavailable> {
        if let Err(obstacle) = &self.io_uring {
            return Some(obstacle.clone());
        }
        (self.memlock_bytes < self.memlock_needed_bytes).then(|| RuntimeUnavailable {
            missing: format!(
                "{} executor(s) need {} of lockable memory, the limit is {}",
                self.executors,
                bytes(self.memlock_needed_bytes),
                bytes(self.memlock_bytes)
            ),
            remedy: format!(
                "Raise it to at least {} KiB: `ulimit -l {0}`, systemd `LimitMEMLOCK={}`, docker `--ulimit memlock={2}:{2}`",
                self.memlock_needed_bytes.div_ceil(1024),
                self.memlock_needed_bytes,
                self.memlock_needed_bytes
            ),
        })
    }
}

/// Locked memory below which a glommio executor doesn't start.
const MEMLOCK_EXECUTOR_BYTES: u64 = 512 * 1024;

/// What all executors of a process need together, for the limit is the user's and not the thread's. The kernel charges about 205
/// KiB an executor (measured on Linux 6.18 with the settings used here); the rest is room for its other versions. Glommio
/// itself asks for the minimum of one, whatever the process may do.
fn memlock_needed(executors: usize, unlimited: bool) -> u64 {
    if unlimited { MEMLOCK_EXECUTOR_BYTES } else { MEMLOCK_EXECUTOR_BYTES * executors as u64 }
}

/// Whether this process has `CAP_IPC_LOCK`, to which the limit doesn't apply.
fn may_lock_without_limit() -> bool {
    has_ipc_lock(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn has_ipc_lock(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits & (1 << 14) != 0)
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn bytes(count: u64) -> String {
    if count == u64::MAX { "unlimited".to_owned() } else { format!("{} KiB", count / 1024) }
}

#[allow(unsafe_code)]
fn memlock_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `getrlimit` writes one `rlimit` through a pointer to one that lives until it returns.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    match result {
        0 if limit.rlim_cur == libc::RLIM_INFINITY => u64::MAX,
        0 => limit.rlim_cur,
        _ => 0,
    }
}

/// Operations that glommio 0.9 insists on, by their numbers in `linux/io_uring.h`.
const OPERATIONS_NEEDED: &[(usize, &str)] = &[
    (0, "NOP"),
    (1, "READV"),
    (2, "WRITEV"),
    (3, "FSYNC"),
    (4, "READ_FIXED"),
    (5, "WRITE_FIXED"),
    (6, "POLL_ADD"),
    (7, "POLL_REMOVE"),
    (9, "SENDMSG"),
    (10, "RECVMSG"),
    (11, "TIMEOUT"),
    (12, "TIMEOUT_REMOVE"),
    (13, "ACCEPT"),
    (15, "LINK_TIMEOUT"),
    (16, "CONNECT"),
    (17, "FALLOCATE"),
    (18, "OPENAT"),
    (19, "CLOSE"),
    (21, "STATX"),
    (22, "READ"),
    (23, "WRITE"),
    (26, "SEND"),
    (27, "RECV"),
];

/// Operations asked about: more than the highest number above.
const PROBED: usize = 64;
const IORING_REGISTER_PROBE: libc::c_long = 8;
const IO_URING_OP_SUPPORTED: u16 = 1;
/// `sizeof(struct io_uring_params)`.
const PARAMS_BYTES: usize = 120;

/// `struct io_uring_probe_op`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ProbeOperation {
    op: u8,
    _reserved: u8,
    flags: u16,
    _reserved_2: u32,
}

/// `struct io_uring_probe` with room for `PROBED` operations.
#[repr(C)]
struct Probe {
    last_op: u8,
    ops_len: u8,
    _reserved: u16,
    _reserved_2: [u32; 3],
    ops: [ProbeOperation; PROBED],
}

const _: () = assert!(std::mem::size_of::<Probe>() == 16 + 8 * PROBED, "the layout is the kernel's");

/// Makes a ring of four entries, asks what it can do, enters it, and drops it.
#[allow(unsafe_code)]
fn probe_io_uring() -> Result<(), RuntimeUnavailable> {
    let mut params = [0u64; PARAMS_BYTES / 8];
    // SAFETY: the kernel reads and writes `struct io_uring_params`, 120 bytes with an alignment of at most 8, which `params`
    // is; it lives until the call returns. All-zero parameters ask for no feature.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4 as libc::c_long, params.as_mut_ptr()) };
    if ring < 0 {
        return Err(explain("io_uring_setup", &io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just given us this descriptor, a non-negative `int`, and nobody else owns it.
    let ring = unsafe { OwnedFd::from_raw_fd(ring as libc::c_int) };

    let none = ProbeOperation { op: 0, _reserved: 0, flags: 0, _reserved_2: 0 };
    let mut probe = Probe { last_op: 0, ops_len: 0, _reserved: 0, _reserved_2: [0; 3], ops: [none; PROBED] };
    // SAFETY: the kernel writes a `struct io_uring_probe` with at most `PROBED` operations, for which `probe` has the layout
    // and the room (asserted above); it lives until the call returns. It wants it zeroed, which it is.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd() as libc::c_long,
            IORING_REGISTER_PROBE,
            &mut probe as *mut Probe,
            PROBED as libc::c_long,
        )
    };
    if result < 0 {
        return Err(explain("io_uring_register", &io::Error::last_os_error()));
    }
    let missing: Vec<&str> = OPERATIONS_NEEDED
        .iter()
        .filter(|(op, _)| probe.ops[*op].flags & IO_URING_OP_SUPPORTED == 0)
        .map(|(_, name)| *name)
        .collect();
    if !missing.is_empty() {
        return Err(RuntimeUnavailable {
            missing: format!("io_uring of kernel {} lacks {}", kernel_release(), missing.join(", ")),
            remedy: "It needs Linux 5.8 or later".to_owned(),
        });
    }
    // SAFETY: enters the ring with nothing to submit and nothing to wait for; no pointer that the kernel would follow.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd() as libc::c_long,
            0 as libc::c_long,
            0 as libc::c_long,
            0 as libc::c_long,
            std::ptr::null::<libc::c_void>(),
            0 as libc::c_long,
        )
    };
    if result < 0 {
        return Err(explain("io_uring_enter", &io::Error::last_os_error()));
    }
    Ok(())
}

fn explain(call: &str, error: &io::Error) -> RuntimeUnavailable {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    explain_with(call, error, disabled.trim())
}

fn explain_with(call: &str, error: &io::Error, disabled: &str) -> RuntimeUnavailable {
    let (why, remedy) = match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), "1" | "2") => (
            format!("kernel.io_uring_disabled is {disabled}"),
            "Allow it with `sysctl kernel.io_uring_disabled=0`".to_owned(),
        ),
        (Some(libc::EPERM | libc::EACCES), _) => (
            "a seccomp filter bars it, as container runtimes do by default".to_owned(),
            "Allow the io_uring calls in the seccomp profile: docker `--security-opt seccomp=PROFILE.json`, systemd \
             `SystemCallFilter=@system-service io_uring_setup io_uring_enter io_uring_register`"
                .to_owned(),
        ),
        (Some(libc::ENOSYS), _) => (
            "the kernel has none, or a seccomp filter hides it".to_owned(),
            "It needs Linux 5.8 or later with CONFIG_IO_URING, and a seccomp profile that allows it".to_owned(),
        ),
        (Some(libc::ENOMEM), _) => (
            "there is too little lockable memory".to_owned(),
            format!("Raise the limit: `ulimit -l {}` or more, systemd `LimitMEMLOCK=`", MEMLOCK_EXECUTOR_BYTES / 1024),
        ),
        (Some(libc::EMFILE | libc::ENFILE), _) => (
            "there are too many open files".to_owned(),
            "Raise the limit: `ulimit -n`, systemd `LimitNOFILE=`".to_owned(),
        ),
        _ => ("the kernel refuses it".to_owned(), "See the kernel log".to_owned()),
    };
    RuntimeUnavailable { missing: format!("{call} failed with \"{error}\": {why}"), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(memlock_bytes: u64, needed: u64, io_uring: bool) -> Preflight {
        Preflight {
            io_uring: if io_uring {
                Ok(())
            } else {
                Err(explain_with("io_uring_setup", &io::Error::from_raw_os_error(libc::EPERM), "2"))
            },
            memlock_bytes,
            memlock_needed_bytes: needed,
            executors: 4,
        }
    }

    #[test]
    fn auto_takes_glommio_where_it_runs_and_says_why_not_elsewhere() {
        let fine = host(8 << 20, 512 << 10, true).decide(RuntimeChoice::Auto).unwrap();
        assert_eq!(fine.kind, RuntimeKind::Glommio);
        let poor = host(64 << 10, 2 << 20, true).decide(RuntimeChoice::Auto).unwrap();
        assert_eq!(poor.kind, RuntimeKind::Tokio);
        assert!(poor.reason.contains("2048 KiB") && poor.reason.contains("64 KiB"), "{poor}");
        let barred = host(u64::MAX, 512 << 10, false).decide(RuntimeChoice::Auto).unwrap();
        assert_eq!(barred.kind, RuntimeKind::Tokio);
        assert!(barred.reason.contains("io_uring_disabled is 2"), "{barred}");
    }

    #[test]
    fn glommio_by_name_is_an_error_that_says_how_to_fix_it() {
        let error = host(64 << 10, 512 << 10, true).decide(RuntimeChoice::Glommio).unwrap_err();
        assert!(error.to_string().contains("ulimit -l 512"), "{error}");
        let error = host(u64::MAX, 512 << 10, false).decide(RuntimeChoice::Glommio).unwrap_err();
        assert!(error.to_string().contains("sysctl kernel.io_uring_disabled=0"), "{error}");
        assert_eq!(host(0, 1, false).decide(RuntimeChoice::Tokio).unwrap().kind, RuntimeKind::Tokio);
    }

    #[test]
    fn the_need_is_the_sum_of_all_executors_but_for_the_privileged() {
        assert_eq!(memlock_needed(4, false), 2 << 20);
        assert_eq!(memlock_needed(4, true), 512 << 10);
        assert!(has_ipc_lock("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_ipc_lock("Name:\tx\nCapEff:\t00000000a80425fb\n"), "what a container's root has by default");
        assert!(!has_ipc_lock(""));
    }

    #[test]
    fn a_name_that_is_no_runtime_is_refused_with_those_that_are() {
        assert_eq!("glommio".parse(), Ok(RuntimeChoice::Glommio));
        let error = "monoio".parse::<RuntimeChoice>().unwrap_err();
        assert!(error.to_string().contains("\"auto\", \"glommio\" and \"tokio\""), "{error}");
    }

    #[test]
    fn the_probe_answers_without_leaving_a_descriptor_behind() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        // The first one may open what stays open, and other tests run beside this one: only a leak for each would show.
        let before = open();
        for _ in 0..200 {
            let _ = probe_io_uring();
        }
        assert!(open() < before + 150);
    }
}
