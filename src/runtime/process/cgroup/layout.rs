//! Which cgroup hierarchies a host mounts, and which group of each this process is in. Parses text only.

use std::path::{Component, Path, PathBuf};

use super::{Controller, Version};

/// A mounted hierarchy, as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub version: Version,
    /// Version 1: the controllers of this hierarchy. Version 2: empty, the directory lists its controllers.
    pub controllers: Vec<String>,
    /// The directory of the group that this process is in.
    pub home: PathBuf,
}

impl Mount {
    pub(super) fn has(&self, controller: Controller) -> bool {
        self.controllers.iter().any(|name| name == controller.name())
    }
}

/// Joins `/proc/self/mountinfo` with `/proc/self/cgroup`. Leaves out hierarchies whose group is outside
/// the mounted part, as in some containers.
pub(super) fn mounts(mountinfo: &str, memberships: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(|line| mount(line, memberships)).collect()
}

fn mount(line: &str, memberships: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, point) = (fields.next()?, unescape(fields.next()?));
    let mut fields = after.split(' ');
    let (kind, options) = (fields.next()?, fields.nth(1)?);
    let (version, controllers) = match kind {
        "cgroup2" => (Version::V2, Vec::new()),
        "cgroup" => (Version::V1, options.split(',').map(str::to_owned).collect::<Vec<_>>()),
        _ => return None,
    };
    let member = memberships.lines().find_map(|line| membership(line, version, &controllers))?;
    let inside = Path::new(member).strip_prefix(unescape(root)).ok()?;
    let plain = inside.components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| Mount {
        version,
        controllers,
        home: if inside.as_os_str().is_empty() { point.into() } else { Path::new(&point).join(inside) },
    })
}

/// The group that a line of `/proc/self/cgroup` names, if the line is about that hierarchy.
fn membership<'a>(line: &'a str, version: Version, controllers: &[String]) -> Option<&'a str> {
    let mut fields = line.splitn(3, ':');
    let (number, names, path) = (fields.next()?, fields.next()?, fields.next()?);
    let matches = match version {
        Version::V2 => number == "0" && names.is_empty(),
        Version::V1 => !names.is_empty() && names.split(',').all(|name| controllers.iter().any(|c| c == name)),
    };
    matches.then_some(path)
}

/// The kernel writes blanks and backslashes of a path as octal escapes.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_alone() {
        let info =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n1 0 8:1 / / rw - ext4 /dev/a rw";
        let found = mounts(info, "0::/system.slice/ostler.service\n");
        let home = PathBuf::from("/sys/fs/cgroup/system.slice/ostler.service");
        assert_eq!(found, [Mount { version: Version::V2, controllers: Vec::new(), home }]);
    }

    #[test]
    fn version_1_with_controllers_mounted_together() {
        let info = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/mem\\040ory rw - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let found = mounts(info, "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/\n");
        let homes: Vec<_> = found.iter().map(|m| m.home.to_str().unwrap()).collect();
        assert_eq!(homes, ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/mem ory/a/b", "/sys/fs/cgroup/unified"]);
        assert!(found[0].has(Controller::Cpu) && !found[0].has(Controller::Memory));
    }

    #[test]
    fn inside_a_container_only_mounted_groups_count() {
        let info = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let found = mounts(info, "4:memory:/docker/abc/sub\n");
        assert_eq!(found[0].home, Path::new("/sys/fs/cgroup/memory/sub"));
        assert!(mounts(info, "4:memory:/docker/abcd\n").is_empty());
        assert!(mounts(info, "4:memory:/docker/abc/../../x\n").is_empty());
    }
}
