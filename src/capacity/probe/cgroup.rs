//! The limits of cgroups: CPU quota, CPUs and memory limit, in version 1, 2 or both at once.
//!
//! Those of the agent's own cgroup bound the sessions of the process runtime, which are children of the agent.
//! Containers are not in the agent's cgroup, and not in that of their engine's process: the engine makes their cgroups at
//! the top of the tree that it sees. On a host of its own that is the root, which has no limits. An engine in a
//! container sees only the part below its container's cgroup, whose limits bound all of its containers.

use std::path::{Path, PathBuf};

use rustix::process::Pid;
use rustix::thread::sched_getaffinity;

use crate::types::{Bytes, Cores};

/// Upper bounds; `None`: no bound is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    pub cores: Option<Cores>,
    pub memory: Option<Bytes>,
}

impl Bounds {
    pub fn limit_cores(&self, host: Cores) -> Cores {
        self.cores.map_or(host, |bound| bound.min(host))
    }

    pub fn limit_memory(&self, host: Bytes) -> Bytes {
        self.memory.map_or(host, |bound| bound.min(host))
    }
}

/// The bounds on a container engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineBounds {
    /// On its own process.
    pub process: Bounds,
    /// On all of its containers together.
    pub containers: Bounds,
}

/// The bounds on this process, including the number of CPUs that it may run on.
pub fn own() -> Bounds {
    of_process("self", &read_file).and_cpus(None)
}

/// The bounds on the engine with this process.
pub fn of_engine(pid: u32) -> EngineBounds {
    let process = of_process(&pid.to_string(), &read_file);
    let affinity = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = if affinity.is_some() { process.and_cpus(affinity) } else { process };
    EngineBounds { process, containers: of_containers(pid, &read_file) }
}

type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

fn read_file(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

impl Bounds {
    /// With the number of CPUs that a process may run on; `None`: this process.
    fn and_cpus(self, process: Option<Pid>) -> Self {
        let cpus = sched_getaffinity(process).ok().map(|cpus| Cores::whole(cpus.count()));
        Self { cores: self.cores.into_iter().chain(cpus).min(), ..self }
    }
}

/// The bounds on a process, by its directory in `/proc`.
fn of_process(process: &str, read: Read<'_>) -> Bounds {
    of_groups(&read(&Path::new("/proc").join(process).join("cgroup")).unwrap_or_default(), read)
}

/// The bounds on the containers of the engine with this process: those of the top of the cgroups that it sees.
fn of_containers(engine: u32, read: Read<'_>) -> Bounds {
    let mounts = read(&Path::new("/proc").join(engine.to_string()).join("mountinfo")).unwrap_or_default();
    let top = |mount: Mount<'_>| match mount.version {
        Version::One => format!("0:{}:{}\n", mount.options, mount.root),
        Version::Two => format!("0::{}\n", mount.root),
    };
    of_groups(&mounts.lines().filter_map(Mount::parse).map(top).collect::<String>(), read)
}

/// The bounds of cgroups, in the form of `/proc/self/cgroup`. The limits of a cgroup and of all its ancestors apply, so
/// the smallest one counts.
fn of_groups(groups: &str, read: Read<'_>) -> Bounds {
    let mounts = read(Path::new("/proc/self/mountinfo")).unwrap_or_default();
    let directories = |controller: &'static str| {
        mounts.lines().filter_map(Mount::parse).flat_map(|mount| mount.directories(controller, groups)).collect()
    };
    let cpu: Vec<(Version, PathBuf)> = directories("cpu");
    let cpuset: Vec<(Version, PathBuf)> = directories("cpuset");
    let memory: Vec<(Version, PathBuf)> = directories("memory");
    let quotas = cpu.iter().filter_map(|(version, directory)| quota(*version, directory, read));
    let cpus = cpuset.iter().filter_map(|(version, directory)| cpus(*version, directory, read));
    Bounds {
        cores: quotas.chain(cpus).min(),
        memory: memory.iter().filter_map(|(version, directory)| memory_limit(*version, directory, read)).min(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// One line of `/proc/self/mountinfo` that mounts cgroups.
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    version: Version,
    /// The cgroup that is visible at the mount point.
    root: &'a str,
    point: &'a str,
    /// In version 1, the controllers are among these.
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let version = match file_system.next()? {
            "cgroup" => Version::One,
            "cgroup2" => Version::Two,
            _ => return None,
        };
        Some(Self { version, root, point, options: file_system.nth(1)? })
    }

    /// The directories, from the process's own cgroup up to the mount point, that may bound a controller.
    fn directories(&self, controller: &str, groups: &str) -> Vec<(Version, PathBuf)> {
        let Some(group) = self.group(controller, groups) else { return Vec::new() };
        // If the mount shows a part of the tree without the process's cgroup, only the top of that part is readable.
        let below = Path::new(group).strip_prefix(self.root).unwrap_or(Path::new(""));
        let directory = Path::new(self.point).join(below);
        let up = directory.ancestors().take_while(|ancestor| ancestor.starts_with(self.point));
        up.map(|ancestor| (self.version, ancestor.to_owned())).collect()
    }

    /// The process's cgroup in this mount's hierarchy, from `/proc/self/cgroup`.
    fn group<'g>(&self, controller: &str, groups: &'g str) -> Option<&'g str> {
        if self.version == Version::One && !self.options.split(',').any(|option| option == controller) {
            return None;
        }
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, group) = (fields.next()?, fields.next()?);
            let ours = match self.version {
                Version::One => controllers.split(',').any(|c| c == controller),
                Version::Two => controllers.is_empty(),
            };
            ours.then_some(group)
        })
    }
}

fn quota(version: Version, directory: &Path, read: Read<'_>) -> Option<Cores> {
    let (quota, period) = match version {
        Version::One => (read(&directory.join("cpu.cfs_quota_us"))?, read(&directory.join("cpu.cfs_period_us"))?),
        Version::Two => {
            let both = read(&directory.join("cpu.max"))?;
            let (quota, period) = both.split_once(' ')?;
            (quota.to_owned(), period.to_owned())
        }
    };
    // No quota is `-1` in version 1 and `max` in version 2: neither is a number of microseconds.
    let (quota, period) = (number(&quota)?, number(&period)?);
    quota.saturating_mul(1000).checked_div(period).map(Cores::from_milli)
}

/// The number of CPUs that the cgroup may run on.
fn cpus(version: Version, directory: &Path, read: Read<'_>) -> Option<Cores> {
    let file = match version {
        Version::One => "cpuset.effective_cpus",
        Version::Two => "cpuset.cpus.effective",
    };
    let list = read(&directory.join(file))?;
    let ranges = list.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    });
    // A list that is empty or malformed bounds nothing.
    let count = ranges.sum::<Option<u32>>()?;
    Some(Cores::whole(count))
}

fn memory_limit(version: Version, directory: &Path, read: Read<'_>) -> Option<Bytes> {
    // No limit is a number larger than any memory in version 1, and `max` in version 2.
    let file = match version {
        Version::One => "memory.limit_in_bytes",
        Version::Two => "memory.max",
    };
    number(&read(&directory.join(file))?).map(Bytes::new)
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The bounds under a file system of these files.
    fn bounds(files: &[(&str, &str)]) -> Bounds {
        let files: BTreeMap<&Path, &str> = files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        of_process("self", &|path| files.get(path).map(|text| (*text).to_owned()))
    }

    fn expect(cores_milli: u64, memory: Bytes) -> Bounds {
        Bounds { cores: Some(Cores::from_milli(cores_milli)), memory: Some(memory) }
    }

    const V2: &str = "25 30 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";

    #[test]
    fn version_2_takes_the_smallest_limit_of_all_ancestors() {
        let found = bounds(&[
            ("/proc/self/cgroup", "0::/system.slice/ostler.service\n"),
            ("/proc/self/mountinfo", V2),
            ("/sys/fs/cgroup/system.slice/ostler.service/cpu.max", "400000 100000\n"),
            ("/sys/fs/cgroup/system.slice/ostler.service/memory.max", "1073741824\n"),
            ("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "max\n"),
        ]);
        assert_eq!(found, expect(1500, Bytes::gib(1)));
    }

    #[test]
    fn version_2_without_limits_bounds_nothing() {
        let found = bounds(&[
            ("/proc/self/cgroup", "0::/init.scope\n"),
            ("/proc/self/mountinfo", V2),
            ("/sys/fs/cgroup/init.scope/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/init.scope/memory.max", "max\n"),
        ]);
        assert_eq!(found, Bounds::default());
        assert_eq!(found.limit_memory(Bytes::gib(4)), Bytes::gib(4));
    }

    #[test]
    fn version_1_has_a_tree_for_each_controller() {
        let found = bounds(&[
            ("/proc/self/cgroup", "4:memory:/agent\n3:cpuset:/other\n2:cpu,cpuacct:/slice/agent\n"),
            ("/proc/self/mountinfo", V1),
            ("/sys/fs/cgroup/cpu,cpuacct/slice/agent/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/slice/agent/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/slice/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/slice/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/memory/agent/memory.limit_in_bytes", "536870912\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(found, expect(500, Bytes::mib(512)));
    }

    #[test]
    fn the_number_for_no_limit_in_version_1_bounds_nothing() {
        let found = bounds(&[
            ("/proc/self/cgroup", "4:memory:/\n"),
            ("/proc/self/mountinfo", V1),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(found.limit_memory(Bytes::gib(4)), Bytes::gib(4));
    }

    #[test]
    fn a_hybrid_host_reads_both_versions() {
        let mounts = format!("{V1}41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n");
        let found = bounds(&[
            ("/proc/self/cgroup", "4:memory:/a\n2:cpu,cpuacct:/\n0::/b\n"),
            ("/proc/self/mountinfo", &mounts),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824\n"),
            ("/sys/fs/cgroup/unified/b/cpu.max", "200000 100000\n"),
        ]);
        assert_eq!(found, expect(2000, Bytes::gib(1)));
    }

    #[test]
    fn a_container_sees_its_cgroup_at_the_mount_point() {
        // Without a cgroup namespace the paths are the host's and the mount shows a part of the tree.
        let mount = "25 30 0:23 /docker/4f /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";
        let files = [("/sys/fs/cgroup/cpu.max", "250000 100000\n"), ("/sys/fs/cgroup/memory.max", "1073741824\n")];
        for group in ["0::/docker/4f\n", "0::/\n", "0::/../other\n"] {
            let found = bounds(&[files[0], files[1], ("/proc/self/cgroup", group), ("/proc/self/mountinfo", mount)]);
            assert_eq!(found, expect(2500, Bytes::gib(1)), "{group}");
        }
    }

    #[test]
    fn an_engine_and_its_containers_have_bounds_of_their_own() {
        let of = |mounts: &str, group: &str, files: &[(&str, &str)]| {
            let proc = [("/proc/self/mountinfo", V2), ("/proc/7/mountinfo", mounts), ("/proc/7/cgroup", group)];
            let files: BTreeMap<&Path, &str> =
                proc.iter().chain(files).map(|(path, text)| (Path::new(*path), *text)).collect();
            let read = |path: &Path| files.get(path).map(|text| (*text).to_owned());
            EngineBounds { process: of_process("7", &read), containers: of_containers(7, &read) }
        };
        let limited =
            |directory: &str, memory: &'static str| (format!("/sys/fs/cgroup/{directory}/memory.max"), memory);
        // A service with a limit: its containers are beside it.
        let (path, memory) = limited("system.slice/docker.service", "1073741824\n");
        let service = of(V2, "0::/system.slice/docker.service\n", &[(&path, memory)]);
        assert_eq!(service.process, Bounds { cores: None, memory: Some(Bytes::gib(1)) });
        assert_eq!(service.containers, Bounds::default());
        // An engine in a container with a limit.
        let nested = "99 90 0:23 /docker/4f /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n";
        let (path, memory) = limited("docker/4f", "1073741824\n");
        let cpus = ("/sys/fs/cgroup/docker/cpuset.cpus.effective", "0-1,3\n");
        let inside = of(nested, "0::/docker/4f/init\n", &[(&path, memory), cpus]);
        assert_eq!(inside.process, expect(3000, Bytes::gib(1)));
        assert_eq!(inside.containers, expect(3000, Bytes::gib(1)));
    }

    #[test]
    fn a_list_of_cpus_is_counted() {
        let count = |list: &'static str| cpus(Version::One, Path::new("/"), &|_| Some(list.to_owned()));
        assert_eq!(count("0-3,7\n"), Some(Cores::whole(5)));
        assert_eq!(count("2\n"), Some(Cores::whole(1)));
        for malformed in ["\n", "3-1\n", "all\n", "0-4294967295\n"] {
            assert_eq!(count(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn malformed_files_bound_nothing() {
        assert_eq!(bounds(&[]), Bounds::default());
        let found = bounds(&[
            ("/proc/self/cgroup", "0::/\ngarbage\n"),
            ("/proc/self/mountinfo", &format!("garbage - cgroup2\n{V2}")),
            ("/sys/fs/cgroup/cpu.max", "100000 0\n"),
            ("/sys/fs/cgroup/memory.max", "much\n"),
        ]);
        assert_eq!(found, Bounds::default());
    }

    #[test]
    fn this_process_may_run_on_a_cpu() {
        assert!(own().cores.is_some_and(|cores| cores > Cores::ZERO));
    }
}
