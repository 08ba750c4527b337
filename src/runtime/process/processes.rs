//! The processes of this host, as `/proc` shows them, and signals to a whole tree of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Rounds in which [`stop_all`] stops new processes. A stopped process starts no new one, so a tree stands
/// still after as many rounds as it is deep. No real tree is this deep; the bound only ensures an end.
const MAX_ROUNDS: u32 = 64;

/// One process. Its start time tells it from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Process {
    pub pid: i32,
    /// In clock ticks since boot.
    pub start: u64,
}

impl Process {
    /// The live process with that pid, if there is one.
    pub(super) fn of_pid(pid: i32) -> Option<Self> {
        Some(Stat::read(pid)?.process)
    }

    /// A child that was not waited for yet, so that the kernel has not reused its pid. If it has
    /// already ended, returns a process that is not alive.
    pub(super) fn of_child(pid: u32) -> Self {
        let pid = i32::try_from(pid).unwrap_or_default();
        Self::of_pid(pid).unwrap_or(Self { pid, start: 0 })
    }

    /// Whether it is alive. A zombie is not.
    pub(super) fn is_alive(&self) -> bool {
        Self::of_pid(self.pid) == Some(*self)
    }

    /// Sends a signal to this process. Does nothing if it is gone.
    pub(super) fn signal(&self, signal: Signal) {
        if let Ok(handle) = self.open() {
            // Fails if the process has ended meanwhile; then it needs no signal.
            let _ = pidfd_send_signal(handle, signal);
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// The kernel gives no handle for a process that still exists.
    pub(super) async fn ended(&self) -> io::Result<()> {
        match self.open() {
            Ok(handle) => readable(handle)?.readable().await.map(drop),
            Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// A handle (pidfd) that always refers to this process.
    fn open(&self) -> Result<OwnedFd, rustix::io::Errno> {
        let pid = Pid::from_raw(self.pid).ok_or(rustix::io::Errno::SRCH)?;
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        // Checked after the handle was opened: if the process is alive now, the handle is not of a later one.
        if self.is_alive() { Ok(handle) } else { Err(rustix::io::Errno::SRCH) }
    }
}

#[expect(
    deprecated,
    reason = "sound for a descriptor that only this code owns; its replacement cannot be called from safe code"
)]
fn readable(handle: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(handle, Interest::READABLE)
}

/// What `/proc/<pid>/stat` says of a live process: itself and its relatives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub process: Process,
    pub parent: i32,
    pub group: i32,
}

impl Stat {
    pub(super) fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads `/proc/<pid>/stat`; `None` for a process that has ended.
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, and may hold any character.
        let (pid, rest) = (stat.split_once(' ')?.0, stat.rsplit_once(')')?.1);
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse().ok());
        // The first thread may end and leave others running: the process is alive as long as they run.
        if matches!(*fields.first()?, "Z" | "X" | "x") && number(17)? <= 1 {
            return None;
        }
        Some(Self {
            process: Process { pid: pid.parse().ok()?, start: fields.get(19)?.parse().ok()? },
            parent: number(1)?,
            group: number(2)?,
        })
    }
}

/// Every live process that this one may see.
pub(super) fn all() -> Vec<Stat> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| Stat::read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// The children of `root`, their children and so on, without `root`.
pub(super) fn descendants(table: &[Stat], root: i32) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<&Stat>> = BTreeMap::new();
    for seen in table {
        children.entry(seen.parent).or_default().push(seen);
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.push(child.process);
            open.push(child.process.pid);
        }
    }
    found
}

/// Whether the process was started with all of these variables, each as `NAME=value`.
pub(super) fn has_environment(process: &Process, variables: &[String]) -> bool {
    let Ok(environment) = std::fs::read(format!("/proc/{}/environ", process.pid)) else { return false };
    variables.iter().all(|wanted| environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()))
}

/// Stops all processes that `members` returns, and repeats until it returns no new one.
///
/// Afterwards the tree stands still: none of its processes can start another before it is continued.
pub(super) fn stop_all(members: impl Fn() -> Vec<Process>) -> BTreeSet<Process> {
    let mut stopped = BTreeSet::new();
    for _ in 0..MAX_ROUNDS {
        let before = stopped.len();
        for process in members() {
            if stopped.insert(process) {
                process.signal(Signal::STOP);
            }
        }
        if stopped.len() == before {
            break;
        }
    }
    stopped
}

/// Kills all processes that `members` returns, even if they start new ones meanwhile.
pub(super) fn kill_all(members: impl Fn() -> Vec<Process>) {
    for process in stop_all(members) {
        process.signal(Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: i32, name: &str, state: &str, parent: i32, threads: u32) -> String {
        let zeros = "0 ".repeat(13);
        format!("{pid} ({name}) {state} {parent} 7 8 {zeros}{threads} 0 4242 0 0")
    }

    #[test]
    fn a_program_cannot_disguise_itself_by_its_name() {
        let seen = Stat::parse(&stat(12, "a) Z 1 (b", "S", 3, 1)).unwrap();
        let process = Process { pid: 12, start: 4242 };
        assert_eq!(seen, Stat { process, parent: 3, group: 7 });
    }

    #[test]
    fn what_has_ended_is_not_alive() {
        assert_eq!(Stat::parse(&stat(12, "a", "Z", 3, 1)), None);
        assert!(Stat::parse(&stat(12, "a", "Z", 3, 2)).is_some(), "its other threads run on");
        assert_eq!(Stat::parse("12 (a) S"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let me = Process::of_pid(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        let another = Process { start: me.start + 1, ..me };
        assert!(!another.is_alive());
        another.signal(Signal::KILL); // would kill this test if it were delivered
    }

    #[test]
    fn descendants_are_the_whole_tree_and_nothing_else() {
        let seen = |pid, parent| Stat { process: Process { pid, start: 1 }, parent, group: 1 };
        let table = [seen(1, 0), seen(5, 1), seen(6, 5), seen(7, 6), seen(8, 1), seen(9, 5)];
        let mut found: Vec<i32> = descendants(&table, 5).iter().map(|p| p.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [6, 7, 9]);
        assert!(descendants(&table, 7).is_empty());
    }
}
