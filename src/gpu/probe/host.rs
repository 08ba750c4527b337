//! What the kernel says of GPUs and of the processes on them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The bytes of a small file of `/proc` or `/sys` that are read: the largest here, `/proc/<pid>/cgroup`, has a line
/// for each of at most about 15 hierarchies.
const SMALL_FILE: u64 = 64 << 10;
/// The bytes of a process' environment that are read: the kernel's limit for arguments and environment together, with
/// the usual limit of 8 MiB for the stack.
const ENVIRONMENT: u64 = 2 << 20;
/// The marks of one process at most. In cgroup v1 a container's process has mostly one path in every hierarchy.
const MAX_MARKS: usize = 8;
/// The bytes of a mark, of its end, for a container's id stands there: the longest cgroups, of Kubernetes with systemd,
/// have about 250.
const MARK_BYTES: usize = 256;
/// The kernel's limit for the name of a process is 15 bytes; of a kernel thread it is 63.
const COMMAND_BYTES: usize = 64;
/// The inode of the namespace of process ids that the kernel starts with (`PROC_PID_INIT_INO`).
const INITIAL_NAMESPACE: &str = "pid:[4026531836]";
/// The variable that the process runtime gives the processes of a session.
const SESSION: &[u8] = b"OSTLER_SESSION=";

/// `/proc` and `/sys`.
#[derive(Debug)]
pub(super) struct Host {
    root: PathBuf,
}

impl Host {
    /// `root` holds `proc` and `sys`.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Whether the kernel has suspended the PCI device, written as in sysfs. Whatever reads it wakes it.
    pub(super) fn is_asleep(&self, address: &str) -> bool {
        let status = self.read(&format!("sys/bus/pci/devices/{address}/power/runtime_status"));
        status.is_some_and(|status| status.trim() == "suspended")
    }

    /// The version of the loaded kernel module.
    pub(super) fn module_version(&self) -> Option<String> {
        version_of_module(&self.read("proc/driver/nvidia/version")?)
    }

    /// Whether this process has a namespace of process ids of its own, in which the driver's ids mean nothing.
    pub(super) fn has_own_process_ids(&self) -> bool {
        let namespace = std::fs::read_link(self.root.join("proc/self/ns/pid"));
        let status = self.read("proc/self/status").unwrap_or_default();
        // The status has an id of each namespace below that of `/proc`; with a `/proc` of its own only the inode tells.
        namespace.is_ok_and(|namespace| namespace != Path::new(INITIAL_NAMESPACE)) || ids_of(&status) > 1
    }

    /// The name of the process' program; empty if the process is gone.
    pub(super) fn command(&self, pid: u32) -> String {
        let command = self.read(&format!("proc/{pid}/comm")).unwrap_or_default();
        end_of(command.trim_end_matches('\n'), COMMAND_BYTES)
    }

    /// What tells whose the process is: its cgroups, and the session that the process runtime started it for.
    pub(super) fn marks(&self, pid: u32) -> Vec<String> {
        let mut marks = Vec::new();
        // The kernel locks the memory of a process while it reads its environment. A process in uninterruptible sleep
        // may hold that lock.
        let stat = self.read(&format!("proc/{pid}/stat")).unwrap_or_default();
        if !stat.is_empty() && !is_uninterruptible(&stat) {
            marks.extend(session_of(&self.bytes(&format!("proc/{pid}/environ"), ENVIRONMENT).unwrap_or_default()));
        }
        for cgroup in cgroups_of(&self.read(&format!("proc/{pid}/cgroup")).unwrap_or_default()) {
            if marks.len() < MAX_MARKS && !marks.contains(&cgroup) {
                marks.push(cgroup);
            }
        }
        marks
    }

    fn read(&self, path: &str) -> Option<String> {
        Some(String::from_utf8_lossy(&self.bytes(path, SMALL_FILE)?).into_owned())
    }

    fn bytes(&self, path: &str, limit: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.root.join(path)).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// The version in `/proc/driver/nvidia/version`:
/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:10:00 UTC 2025`.
fn version_of_module(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("NVRM version:"))?;
    line.split_ascii_whitespace().find(|word| is_version(word)).map(str::to_owned)
}

/// Whether this is a version of the driver, such as `580.65.06`.
pub(super) fn is_version(word: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    word.contains('.') && word.split('.').all(is_number)
}

/// How many ids the process of this `/proc/<pid>/status` has: one in each namespace.
fn ids_of(status: &str) -> usize {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.map_or(0, |ids| ids.split_ascii_whitespace().count())
}

/// The cgroups in `/proc/<pid>/cgroup`, where a line is `hierarchy:controllers:path`, without the roots.
fn cgroups_of(text: &str) -> impl Iterator<Item = String> {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.filter(|path| !path.is_empty() && *path != "/").map(|path| end_of(path, MARK_BYTES))
}

/// The session that the environment names.
fn session_of(environment: &[u8]) -> Option<String> {
    let value = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(SESSION))?;
    Some(end_of(&String::from_utf8_lossy(value), MARK_BYTES)).filter(|session| !session.is_empty())
}

/// Whether `/proc/<pid>/stat` is of a process in uninterruptible sleep.
fn is_uninterruptible(stat: &str) -> bool {
    // The second field is the program's name in parentheses, and may hold any character.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('D'))
}

/// The last `limit` bytes of a text, without control characters.
fn end_of(text: &str, limit: usize) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let start = (plain.len().saturating_sub(limit)..plain.len()).find(|at| plain.is_char_boundary(*at));
    plain[start.unwrap_or(plain.len())..].to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    fn host() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        (root, host)
    }

    fn write(root: &tempfile::TempDir, path: &str, content: impl AsRef<[u8]>) {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn the_version_of_the_module_is_read_of_both_kinds_of_module() {
        for (text, version) in [
            ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:10:00 UTC 2025\n", "580.65.06"),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  610.43  Release Build\nGCC version: 12.2.0\n",
                "610.43",
            ),
        ] {
            assert_eq!(version_of_module(text).as_deref(), Some(version));
        }
        for text in ["", "GCC version: 12.2.0\n", "NVRM version: \n", "NVRM version: 580\n", "NVRM version: .\n"] {
            assert_eq!(version_of_module(text), None, "{text}");
        }
    }

    #[test]
    fn a_device_is_asleep_only_if_the_kernel_says_suspended() {
        let (root, host) = host();
        let status = "sys/bus/pci/devices/0000:1a:00.0/power/runtime_status";
        assert!(!host.is_asleep("0000:1a:00.0"));
        for (text, asleep) in [("active\n", false), ("suspended\n", true), ("suspending\n", false)] {
            write(&root, status, text);
            assert_eq!(host.is_asleep("0000:1a:00.0"), asleep, "{text}");
        }
    }

    #[test]
    fn a_namespace_of_process_ids_is_told_by_its_inode_or_by_the_ids() {
        for (inode, ids, own) in [
            (INITIAL_NAMESPACE, "NSpid:\t17\n", false),
            (INITIAL_NAMESPACE, "NSpid:\t4017\t17\n", true),
            ("pid:[4026532001]", "NSpid:\t17\n", true),
        ] {
            let (root, host) = host();
            write(&root, "proc/self/status", format!("Name:\tostler\n{ids}"));
            fs::create_dir(root.path().join("proc/self/ns")).unwrap();
            symlink(inode, root.path().join("proc/self/ns/pid")).unwrap();
            assert_eq!(host.has_own_process_ids(), own, "{inode} {ids}");
        }
    }

    #[test]
    fn the_marks_of_a_process_are_its_session_and_each_of_its_cgroups_once() {
        let (root, host) = host();
        write(&root, "proc/7/stat", "7 (a) D) S 1 7 7 0");
        write(&root, "proc/7/environ", "A=1\0OSTLER_SESSION=abc\0MY_OSTLER_SESSION=x\0");
        write(&root, "proc/7/cgroup", "12:pids:/docker/f00\n11:memory:/docker/f00\n1:name=systemd:/a:b\n0::/\n");
        assert_eq!(host.marks(7), ["abc", "/docker/f00", "/a:b"]);
        write(&root, "proc/7/cgroup", "0::/system.slice/docker-f00.scope\n");
        assert_eq!(host.marks(7), ["abc", "/system.slice/docker-f00.scope"]);
        assert_eq!(host.marks(8), Vec::<String>::new(), "it is gone");
    }

    #[test]
    fn the_environment_of_a_process_in_uninterruptible_sleep_is_not_read() {
        let (root, host) = host();
        write(&root, "proc/7/stat", "7 (x) S) D 1 7 7 0");
        write(&root, "proc/7/environ", "OSTLER_SESSION=abc\0");
        write(&root, "proc/7/cgroup", "0::/docker/f00\n");
        assert_eq!(host.marks(7), ["/docker/f00"]);
    }

    #[test]
    fn the_marks_of_a_process_are_few() {
        let (root, host) = host();
        let lines: String = (0..2 * MAX_MARKS).map(|n| format!("{n}:c{n}:/group/{n}\n")).collect();
        write(&root, "proc/7/cgroup", lines);
        assert_eq!(host.marks(7).len(), MAX_MARKS);
    }

    #[test]
    fn the_command_is_the_name_of_the_program() {
        let (root, host) = host();
        write(&root, "proc/7/comm", "py\tthon\n");
        assert_eq!((host.command(7), host.command(8)), ("py?thon".to_owned(), String::new()));
    }

    proptest! {
        #[test]
        fn an_end_is_short_and_plain_and_the_end(text in any::<String>(), limit in 0_usize..40) {
            let end = end_of(&text, limit);
            prop_assert!(end.len() <= limit && !end.contains(char::is_control));
            let plain: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
            prop_assert!(plain.ends_with(&end));
            prop_assert!(plain.len() > limit || end == plain);
        }

        #[test]
        fn no_text_of_the_kernel_is_too_strange(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            let _ = (version_of_module(&text), ids_of(&text), is_uninterruptible(&text), session_of(&bytes));
            for cgroup in cgroups_of(&text) {
                prop_assert!(cgroup.len() <= MARK_BYTES);
            }
        }
    }
}
