//! The start-up probe: can this machine run a node's executors?
//!
//! glommio reports a ring that cannot be made as a panic with a misleading text, after the executor was started.
//! So the node looks first, by the very system call that would fail, and maps each cause to a sentence with its cure.
//! `Machine::look` is all that asks the system; `findings` is a pure judgement of what it saw.
//!
//! # Invariants
//! * Looking changes nothing: the one ring that is made is closed again.
//! * Every finding that is not good names a cure that a person can carry out as it stands.

use rustix::{
    fd::{FromRawFd, OwnedFd},
    process::{Resource, getrlimit},
    thread::sched_getaffinity,
};
use std::{fmt, fs, io, str::FromStr};

/// What glommio demands of RLIMIT_MEMLOCK, of root too, in bytes.
const MEMLOCK_BASE_BYTES: u64 = 512 * 1024;
/// What each executor's rings lock on kernels that count them, in bytes.
const MEMLOCK_BYTES_PER_EXECUTOR: u64 = 48 * 1024;
/// The oldest kernel whose io_uring has what glommio needs.
const OLDEST_KERNEL: Kernel = Kernel { major: 5, minor: 8 };
/// File descriptors without which a node does not get through its start.
const LEAST_OPEN_FILES: u64 = 256;
/// File descriptors for the default of 10,000 connections, and for the node itself.
const ENOUGH_OPEN_FILES: u64 = 10_000 + LEAST_OPEN_FILES;

/// How one thing that a node needs was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// What it means for a node.
    pub verdict: Verdict,
    /// What was seen, in words.
    pub seen: String,
    /// What to do, in words; empty if there is nothing to do.
    pub cure: String,
}

impl Finding {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.verdict == Verdict::Good
    }
}

/// What a finding means for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// A node runs, but not with all of its default limits.
    Poor,
    /// No node runs.
    Bad,
}

/// The machine cannot run a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// Everything that stands in the way.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this machine cannot run a node")?;
        for (i, finding) in self.findings.iter().enumerate() {
            let separator = if i == 0 { ": " } else { "; also: " };
            write!(f, "{separator}{}: {}. {}", finding.name, finding.seen, finding.cure)?;
        }
        Ok(())
    }
}

/// Looks at everything that a node with `cores` executors needs.
#[must_use]
pub fn check(cores: usize) -> Vec<Finding> {
    findings(&Machine::look(), cores)
}

/// Refuses the start of a node that would fail anyway.
///
/// # Errors
/// When a finding is [`Verdict::Bad`]; the error carries all of these.
pub fn require(cores: usize) -> Result<(), Error> {
    let findings: Vec<_> = check(cores).into_iter().filter(|f| f.verdict == Verdict::Bad).collect();
    if findings.is_empty() { Ok(()) } else { Err(Error { findings }) }
}

/// What was seen of the machine.
#[derive(Clone, Debug)]
struct Machine {
    kernel: Option<Kernel>,
    /// Whether a ring could be made; the error number if not.
    ring: Result<(), i32>,
    /// The sysctl `kernel.io_uring_disabled`; kernels before 6.6 have none.
    io_uring_disabled: Option<u32>,
    memlock_bytes: Limit,
    open_files: Limit,
    /// The processors that this process may use; `None` if that cannot be told.
    processors: Option<usize>,
}

/// A resource limit; `None` is "unlimited".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    soft: Option<u64>,
    hard: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kernel {
    major: u32,
    minor: u32,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Kernel {
    type Err = ();

    /// Reads a release such as `6.1.0-18-amd64`.
    fn from_str(release: &str) -> Result<Self, ()> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Kernel { major, minor }),
            _ => Err(()),
        }
    }
}

impl Machine {
    fn look() -> Self {
        let read = |path| fs::read_to_string(path).ok();
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").and_then(|t| t.parse().ok()),
            ring: make_a_ring(),
            io_uring_disabled: read("/proc/sys/kernel/io_uring_disabled").and_then(|t| t.trim().parse().ok()),
            memlock_bytes: Limit::of(Resource::Memlock),
            open_files: Limit::of(Resource::Nofile),
            processors: sched_getaffinity(None).ok().map(|set| set.count() as usize),
        }
    }
}

impl Limit {
    fn of(resource: Resource) -> Self {
        let limit = getrlimit(resource);
        Limit { soft: limit.current, hard: limit.maximum }
    }
}

/// Makes the smallest ring and closes it again; the error number says why there is none.
fn make_a_ring() -> Result<(), i32> {
    // `struct io_uring_params` of the kernel: 120 bytes, all zero for "no wishes".
    let mut params = [0u32; 30];
    let entries: libc::c_uint = 1;
    // SAFETY: the kernel reads and writes 120 bytes at `params`, which live for the whole call.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, params.as_mut_ptr()) };
    if ring < 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    // SAFETY: the call succeeded, so this is a descriptor that nobody else owns.
    drop(unsafe { OwnedFd::from_raw_fd(ring as i32) });
    Ok(())
}

/// Judges what was seen.
fn findings(machine: &Machine, cores: usize) -> Vec<Finding> {
    vec![
        judge_kernel(machine.kernel),
        judge_ring(machine),
        judge_memlock(machine.memlock_bytes, cores),
        judge_processors(machine.processors, cores),
        judge_open_files(machine.open_files),
    ]
}

fn finding(name: &'static str, verdict: Verdict, seen: impl Into<String>, cure: impl Into<String>) -> Finding {
    Finding { name, verdict, seen: seen.into(), cure: cure.into() }
}

fn judge_kernel(kernel: Option<Kernel>) -> Finding {
    const NAME: &str = "kernel";
    match kernel {
        None => finding(NAME, Verdict::Good, "its version cannot be read; the ring decides", ""),
        Some(kernel) if kernel < OLDEST_KERNEL => finding(
            NAME,
            Verdict::Bad,
            format!("Linux {kernel} is older than {OLDEST_KERNEL}, whose io_uring the executors need"),
            format!("Upgrade the kernel to {OLDEST_KERNEL} or newer (Debian 12 has 6.1)"),
        ),
        Some(kernel) => finding(NAME, Verdict::Good, format!("Linux {kernel}"), ""),
    }
}

fn judge_ring(machine: &Machine) -> Finding {
    const NAME: &str = "io_uring";
    const SYSCTL_CURE: &str = "As root on the host: `sysctl -w kernel.io_uring_disabled=0` (and the same line in \
         /etc/sysctl.d/60-io-uring.conf, so that it holds after a restart)";
    const SECCOMP_CURE: &str = "In Docker, whose default profile blocks io_uring since Engine 25: run the container with \
         `--security-opt seccomp=PROFILE.json`, where PROFILE.json is Docker's default profile plus io_uring_setup, \
         io_uring_enter and io_uring_register; under systemd or another sandbox: allow these three system calls";
    let errno = match machine.ring {
        Ok(()) => return finding(NAME, Verdict::Good, "a ring can be made", ""),
        Err(errno) => errno,
    };
    let (seen, cure) = match (errno, machine.io_uring_disabled) {
        (libc::EPERM | libc::EACCES, Some(2)) => {
            ("kernel.io_uring_disabled is 2, which forbids it to everyone".to_owned(), SYSCTL_CURE.to_owned())
        }
        (libc::EPERM | libc::EACCES, Some(1)) => (
            "kernel.io_uring_disabled is 1, which forbids it to this user".to_owned(),
            format!("{SYSCTL_CURE}; or make the user a member of the group that kernel.io_uring_group names"),
        ),
        (libc::EPERM | libc::EACCES, _) => {
            ("the system call is forbidden to this process by a seccomp filter".to_owned(), SECCOMP_CURE.to_owned())
        }
        (libc::ENOSYS, _) if machine.kernel.is_some_and(|k| k >= OLDEST_KERNEL) => (
            "the kernel is new enough, but the system call is hidden by a sandbox or was not built in".to_owned(),
            format!("{SECCOMP_CURE}; on a machine of your own: a kernel with CONFIG_IO_URING=y (gVisor has none)"),
        ),
        (libc::ENOSYS, _) => (
            "the kernel is too old to have it".to_owned(),
            format!("Upgrade the kernel to {OLDEST_KERNEL} or newer (Debian 12 has 6.1)"),
        ),
        (libc::ENOMEM, _) => (
            "the memory that this user may lock is used up".to_owned(),
            "Raise it: `ulimit -l unlimited` in the shell that starts the node, `LimitMEMLOCK=infinity` in a systemd \
             unit, `--ulimit memlock=-1:-1` in Docker; or stop other processes of this user that use io_uring"
                .to_owned(),
        ),
        (libc::EMFILE | libc::ENFILE, _) => (
            "there is no file descriptor left to make a ring with".to_owned(),
            format!("Raise the limit: `ulimit -n {ENOUGH_OPEN_FILES}`"),
        ),
        (errno, _) => (
            format!("a ring cannot be made: {}", io::Error::from_raw_os_error(errno)),
            "See `man 2 io_uring_setup` for this error".to_owned(),
        ),
    };
    finding(NAME, Verdict::Bad, seen, cure)
}

fn judge_memlock(limit: Limit, cores: usize) -> Finding {
    const NAME: &str = "locked memory";
    let needed = MEMLOCK_BASE_BYTES + MEMLOCK_BYTES_PER_EXECUTOR * cores as u64;
    let kib = needed / 1024;
    match limit {
        Limit { soft: None, .. } => finding(NAME, Verdict::Good, "unlimited", ""),
        Limit { soft: Some(soft), .. } if soft >= needed => {
            finding(NAME, Verdict::Good, format!("{} KiB allowed, {kib} KiB needed", soft / 1024), "")
        }
        Limit { soft: Some(soft), hard } => {
            let seen = format!("{} KiB allowed, {kib} KiB needed (also by root)", soft / 1024);
            let cure = if hard.is_none_or(|hard| hard >= needed) {
                format!("In the shell that starts the node: `ulimit -l {kib}`")
            } else {
                format!(
                    "As root: `ulimit -l {kib}` in the shell that starts the node, or for a user the line \
                     `USER - memlock {kib}` in /etc/security/limits.conf and a new login; `LimitMEMLOCK=infinity` in a \
                     systemd unit; `--ulimit memlock=-1:-1` in Docker"
                )
            };
            finding(NAME, Verdict::Bad, seen, cure)
        }
    }
}

fn judge_processors(processors: Option<usize>, cores: usize) -> Finding {
    const NAME: &str = "processors";
    match processors {
        None => finding(NAME, Verdict::Good, "their number cannot be read", ""),
        Some(allowed) if allowed < cores => finding(
            NAME,
            Verdict::Bad,
            format!("{cores} executors asked for, but this process may use {}", processors_text(allowed)),
            format!("Give `--cores {allowed}`, or allow the process more (`taskset -c`, Docker's `--cpuset-cpus`)"),
        ),
        Some(allowed) => {
            let executors = if cores == 1 { "1 executor".to_owned() } else { format!("{cores} executors") };
            finding(NAME, Verdict::Good, format!("{} for {executors}", processors_text(allowed)), "")
        }
    }
}

fn processors_text(n: usize) -> String {
    if n == 1 { "1 processor".to_owned() } else { format!("{n} processors") }
}

/// A node raises its own limit as far as it may, so that the hard one counts.
fn judge_open_files(limit: Limit) -> Finding {
    const NAME: &str = "open files";
    let Some(hard) = limit.hard else { return finding(NAME, Verdict::Good, "unlimited", "") };
    if hard >= ENOUGH_OPEN_FILES {
        return finding(NAME, Verdict::Good, format!("{hard} allowed"), "");
    }
    let (verdict, seen) = if hard < LEAST_OPEN_FILES {
        (Verdict::Bad, format!("{hard} allowed, {LEAST_OPEN_FILES} are the least that a node starts with"))
    } else {
        (Verdict::Poor, format!("{hard} allowed, fewer than the 10,000 connections that a node takes by default"))
    };
    let cure = format!(
        "As root: `ulimit -n {ENOUGH_OPEN_FILES}` in the shell that starts the node; `LimitNOFILE={ENOUGH_OPEN_FILES}` \
         in a systemd unit; `--ulimit nofile={ENOUGH_OPEN_FILES}` in Docker; or fewer --max-connections"
    );
    finding(NAME, verdict, seen, cure)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Option<Kernel> = Some(Kernel { major: 6, minor: 1 });
    const OLD: Option<Kernel> = Some(Kernel { major: 5, minor: 4 });

    fn machine() -> Machine {
        Machine {
            kernel: NEW,
            ring: Ok(()),
            io_uring_disabled: Some(0),
            memlock_bytes: Limit { soft: Some(8 << 20), hard: Some(8 << 20) },
            open_files: Limit { soft: Some(20_000), hard: Some(20_000) },
            processors: Some(4),
        }
    }

    /// The names of what is not good, and the whole text, to look for words in.
    fn troubles(machine: &Machine, cores: usize) -> (Vec<(&'static str, Verdict)>, String) {
        let all = findings(machine, cores);
        for f in &all {
            assert_eq!(f.ok(), f.cure.is_empty(), "a cure exactly where there is trouble: {f:?}");
        }
        let troubles: Vec<_> = all.into_iter().filter(|f| !f.ok()).collect();
        let text = troubles.iter().map(|f| format!("{} {}\n", f.seen, f.cure)).collect();
        (troubles.iter().map(|f| (f.name, f.verdict)).collect(), text)
    }

    #[test]
    fn a_good_machine_has_nothing_to_cure() {
        for cores in [1, 4] {
            assert_eq!(troubles(&machine(), cores), (vec![], String::new()));
        }
        let unlimited = Limit { soft: None, hard: None };
        let unlimited = Machine { memlock_bytes: unlimited, open_files: unlimited, processors: None, ..machine() };
        assert_eq!(troubles(&unlimited, 64), (vec![], String::new()));
    }

    #[test]
    fn every_reason_against_a_ring_has_its_own_cure() {
        let cases = [
            (libc::EPERM, NEW, Some(2), "forbids it to everyone", "sysctl -w kernel.io_uring_disabled=0"),
            (libc::EPERM, NEW, Some(1), "to this user", "kernel.io_uring_group"),
            (libc::EPERM, NEW, Some(0), "seccomp", "--security-opt seccomp="),
            (libc::EPERM, NEW, None, "seccomp", "--security-opt seccomp="),
            (libc::EACCES, NEW, None, "seccomp", "--security-opt seccomp="),
            (libc::ENOSYS, NEW, None, "hidden by a sandbox", "CONFIG_IO_URING"),
            (libc::ENOSYS, None, None, "too old", "Upgrade the kernel"),
            (libc::ENOMEM, NEW, Some(0), "may lock", "ulimit -l unlimited"),
            (libc::EMFILE, NEW, Some(0), "file descriptor", "ulimit -n"),
            (libc::EINVAL, NEW, Some(0), "Invalid argument", "man 2 io_uring_setup"),
        ];
        for (errno, kernel, io_uring_disabled, seen, cure) in cases {
            let machine = Machine { ring: Err(errno), kernel, io_uring_disabled, ..machine() };
            let (names, text) = troubles(&machine, 1);
            assert_eq!(names, [("io_uring", Verdict::Bad)], "errno {errno}");
            assert!(text.contains(seen) && text.contains(cure), "errno {errno}: {text}");
        }
    }

    #[test]
    fn an_old_kernel_is_named_once_as_kernel_and_once_as_missing_call() {
        let (names, text) = troubles(&Machine { ring: Err(libc::ENOSYS), kernel: OLD, ..machine() }, 1);
        assert_eq!(names, [("kernel", Verdict::Bad), ("io_uring", Verdict::Bad)]);
        assert!(text.contains("Linux 5.4 is older than 5.8"), "{text}");
    }

    #[test]
    fn locked_memory_counts_executors_and_knows_who_may_raise_it() {
        let kib = |n: u64| Some(n * 1024);
        let cases = [
            (1, Limit { soft: kib(560), hard: kib(560) }, None),
            (1, Limit { soft: kib(559), hard: kib(559) }, Some("As root: `ulimit -l 560`")),
            (2, Limit { soft: kib(560), hard: kib(8192) }, Some("node: `ulimit -l 608`")),
            (1, Limit { soft: kib(64), hard: None }, Some("node: `ulimit -l 560`")),
        ];
        for (cores, memlock_bytes, cure) in cases {
            let (names, text) = troubles(&Machine { memlock_bytes, ..machine() }, cores);
            assert_eq!(names.len(), usize::from(cure.is_some()), "{memlock_bytes:?}: {text}");
            assert!(text.contains(cure.unwrap_or_default()), "{memlock_bytes:?}: {text}");
        }
    }

    #[test]
    fn processors_and_open_files() {
        let (names, text) = troubles(&machine(), 5);
        assert_eq!(names, [("processors", Verdict::Bad)]);
        assert!(text.contains("--cores 4"), "{text}");
        for (hard, expected) in [(100, Some(Verdict::Bad)), (4096, Some(Verdict::Poor)), (10_256, None)] {
            let open_files = Limit { soft: Some(64), hard: Some(hard) };
            let (names, text) = troubles(&Machine { open_files, ..machine() }, 1);
            assert_eq!(names, expected.map(|verdict| ("open files", verdict)).into_iter().collect::<Vec<_>>());
            assert_eq!(text.contains("LimitNOFILE=10256"), expected.is_some(), "{text}");
        }
    }

    #[test]
    fn kernel_releases() {
        let cases = [("6.18.44-fc", (6, 18)), ("5.4.0-18-generic", (5, 4)), ("6.1\n", (6, 1)), ("10.0", (10, 0))];
        for (release, (major, minor)) in cases {
            assert_eq!(release.parse(), Ok(Kernel { major, minor }), "{release}");
        }
        for nonsense in ["", "6", "linux", "x.y"] {
            assert_eq!(nonsense.parse::<Kernel>(), Err(()), "{nonsense:?}");
        }
    }

    #[test]
    fn the_error_names_every_cause_and_cure() {
        let findings = findings(&Machine { ring: Err(libc::ENOMEM), ..machine() }, 9);
        let error = Error { findings: findings.into_iter().filter(|f| f.verdict == Verdict::Bad).collect() };
        let text = error.to_string();
        assert!(text.starts_with("this machine cannot run a node: io_uring: the memory"), "{text}");
        assert!(text.contains("; also: processors: 9 executors"), "{text}");
    }

    #[test]
    fn looking_at_this_machine_judges_everything_once() {
        let names: Vec<_> = check(1).iter().map(|f| f.name).collect();
        assert_eq!(names, ["kernel", "io_uring", "locked memory", "processors", "open files"]);
    }
}
