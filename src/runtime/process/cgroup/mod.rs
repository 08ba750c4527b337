//! Control groups: the limits that the kernel enforces for a whole session, if the
//! agent may create groups. Supports both versions, each controller in the hierarchy that has it.
//!
//! The probe tries once what the host allows, and says in words what it does not.

mod layout;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::processes::Process;
use crate::types::{Bytes, Cores, Resources};
use layout::Mount;

/// Processes and threads of one session at most: enough for a desktop, and a fork bomb ends here.
const MAX_PROCESSES: u32 = 4096;
/// The period of a CPU quota: long enough that short bursts pass, short enough to feel smooth.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// Attempts to remove an empty group that the kernel still reports as busy, and the pause between them.
const REMOVE_TRIES: u32 = 20;
const REMOVE_PAUSE: std::time::Duration = std::time::Duration::from_millis(5);
/// How systemd marks a group that it delegates to us. With `DelegateSubgroup=` it is the parent of the agent's own.
const DELEGATED: [&str; 2] = ["trusted.delegate", "user.delegate"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Controller {
    Cpu,
    Memory,
    Pids,
    Freezer,
}

impl Controller {
    const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Pids, Self::Freezer];

    const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Freezer => "freezer",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Version {
    V1,
    V2,
}

/// Where this host lets the agent create groups, and which controllers are missing, with the reason.
#[derive(Debug, Clone, Default)]
pub(super) struct Cgroups {
    parents: Vec<Place>,
    missing: Vec<(Controller, String)>,
}

/// A directory of the cgroup file system and what it controls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    version: Version,
    controllers: Vec<Controller>,
    directory: PathBuf,
    /// The group of the same hierarchy that the agent is in.
    home: PathBuf,
}

impl Cgroups {
    /// Tries what the host allows: creates groups named `trial` and removes them again.
    pub(super) fn probe(trial: &str) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::among(&layout::mounts(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")), trial)
    }

    fn among(mounts: &[Mount], trial: &str) -> Self {
        let mut found = Self::default();
        for controller in Controller::ALL {
            let tried = match mounts.iter().find(|m| m.version == Version::V1 && m.has(controller)) {
                Some(mount) => try_place(mount, &mount.home, controller, trial),
                None => match mounts.iter().find(|m| m.version == Version::V2) {
                    Some(mount) => try_unified(mount, controller, trial),
                    None => Err("no cgroup file system is mounted".to_owned()),
                },
            };
            match tried {
                Ok(place) => found.add(place),
                Err(why) => found.missing.push((controller, why)),
            }
        }
        found
    }

    fn add(&mut self, place: Place) {
        match self.parents.iter_mut().find(|known| known.directory == place.directory) {
            Some(known) => known.controllers.extend(place.controllers),
            None => self.parents.push(place),
        }
    }

    /// The group for one session; does not create it yet.
    pub(super) fn group(&self, name: &str) -> Group {
        let within = |parent: &Place| Place { directory: parent.directory.join(name), ..parent.clone() };
        Group { places: self.parents.iter().map(within).collect() }
    }

    pub(super) fn limits(&self, controller: Controller) -> bool {
        self.parents.iter().any(|parent| parent.controllers.contains(&controller))
    }

    /// The limits that cannot be enforced, in words.
    pub(super) fn unenforced(&self) -> Vec<String> {
        let limit = |controller| match controller {
            Controller::Cpu => Some("cores"),
            Controller::Memory => Some("memory"),
            Controller::Pids => Some("processes"),
            // It sets no limit, and without it the runtime pauses with signals.
            Controller::Freezer => None,
        };
        let describe = |(controller, why): &(Controller, String)| {
            Some(format!("{}: no writable {} cgroup ({why})", limit(*controller)?, controller.name()))
        };
        self.missing.iter().filter_map(describe).collect()
    }
}

/// In version 2 a group that controls its children's resources must hold no process itself, unless it is
/// the root. So the agent's own group serves only if it is the root; otherwise its parent does, if systemd
/// delegates it to us.
fn try_unified(mount: &Mount, controller: Controller, trial: &str) -> Result<Place, String> {
    try_place(mount, &mount.home, controller, trial).or_else(|why| {
        let above = mount.home.parent().filter(|above| is_delegated(above)).ok_or(why)?;
        try_place(mount, above, controller, trial)
    })
}

fn is_delegated(directory: &Path) -> bool {
    DELEGATED.iter().any(|attribute| {
        let mut value = [0_u8; 1];
        rustix::fs::getxattr(directory, *attribute, &mut value).is_ok() && value == *b"1"
    })
}

fn try_place(mount: &Mount, within: &Path, controller: Controller, trial: &str) -> Result<Place, String> {
    let place = Place {
        version: mount.version,
        controllers: vec![controller],
        directory: within.to_owned(),
        home: mount.home.clone(),
    };
    if mount.version == Version::V2 && controller != Controller::Freezer {
        enable(within, controller).map_err(|e| match e.kind() {
            io::ErrorKind::ResourceBusy => "the agent runs in the group itself, so it can have no children".to_owned(),
            _ => e.to_string(),
        })?;
    }
    let group = Group { places: vec![Place { directory: within.join(trial), ..place.clone() }] };
    let tried = group.create(&Resources::new(Cores::whole(1), Bytes::gib(1), 0)).map_err(|e| e.to_string());
    group.remove();
    tried.map(|()| place)
}

/// Enables a controller for the children of a version 2 group.
fn enable(directory: &Path, controller: Controller) -> io::Result<()> {
    let switch = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&switch)?;
    if enabled.split_ascii_whitespace().any(|name| name == controller.name()) {
        return Ok(());
    }
    set(&switch, &format!("+{}", controller.name()))
}

/// One session's group: a directory in each hierarchy that has one of its controllers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Group {
    places: Vec<Place>,
}

impl Group {
    /// Creates the group with its limits.
    ///
    /// # Errors
    /// The kernel refuses a directory or a value. Directories created before stay until [`Self::remove`].
    pub(super) fn create(&self, limits: &Resources) -> io::Result<()> {
        for place in &self.places {
            match fs::create_dir(&place.directory) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            for controller in &place.controllers {
                for (file, value) in settings(place.version, *controller, limits) {
                    set(&place.directory.join(file), &value)?;
                }
            }
        }
        Ok(())
    }

    /// Moves this process into the group, so that its new children start there.
    pub(super) fn enter(&self) -> io::Result<()> {
        self.places.iter().try_for_each(|place| set(&place.directory.join("cgroup.procs"), "0"))
    }

    /// Moves this process back to the agent's group, so that the group neither pauses nor counts the shim.
    pub(super) fn leave(&self) -> io::Result<()> {
        self.places.iter().try_for_each(|place| set(&place.home.join("cgroup.procs"), "0"))
    }

    /// The live processes in the group.
    pub(super) fn members(&self) -> Vec<Process> {
        let lists =
            self.places.iter().filter_map(|place| fs::read_to_string(place.directory.join("cgroup.procs")).ok());
        lists
            .flat_map(|list| list.lines().filter_map(|pid| Process::of_pid(pid.parse().ok()?)).collect::<Vec<_>>())
            .collect()
    }

    /// Whether the group can pause its processes.
    pub(super) fn can_freeze(&self) -> bool {
        self.freezer().is_some()
    }

    /// Pauses every process in the group, or resumes them. Succeeds if the group is gone: then it holds no process.
    pub(super) fn freeze(&self, frozen: bool) -> io::Result<()> {
        let Some(place) = self.freezer() else { return Ok(()) };
        let (file, value) = match place.version {
            Version::V1 => ("freezer.state", if frozen { "FROZEN" } else { "THAWED" }),
            Version::V2 => ("cgroup.freeze", if frozen { "1" } else { "0" }),
        };
        match set(&place.directory.join(file), value) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    pub(super) fn is_frozen(&self) -> bool {
        let Some(place) = self.freezer() else { return false };
        // FREEZING counts as frozen: the pause was requested, and the kernel has begun it.
        let (file, free) = match place.version {
            Version::V1 => ("freezer.state", "THAWED"),
            Version::V2 => ("cgroup.freeze", "0"),
        };
        fs::read_to_string(place.directory.join(file)).is_ok_and(|state| state.trim() != free)
    }

    /// How many processes of the group the kernel has killed because the group exceeded its memory.
    pub(super) fn oom_kills(&self) -> u64 {
        let Some(place) = self.place_of(Controller::Memory) else { return 0 };
        let file = match place.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        fs::read_to_string(place.directory.join(file)).map_or(0, |text| count(&text, "oom_kill"))
    }

    /// Removes the group. Does nothing if it is gone; a group that still holds a process stays.
    pub(super) fn remove(&self) {
        for place in &self.places {
            for _ in 0..REMOVE_TRIES {
                match fs::remove_dir(&place.directory) {
                    // The kernel counts a process for a short time after it has ended.
                    Err(e) if e.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(REMOVE_PAUSE),
                    _ => break,
                }
            }
        }
    }

    fn freezer(&self) -> Option<&Place> {
        self.place_of(Controller::Freezer)
    }

    fn place_of(&self, controller: Controller) -> Option<&Place> {
        self.places.iter().find(|place| place.controllers.contains(&controller))
    }
}

/// The files of a group and the values to write to them.
fn settings(version: Version, controller: Controller, limits: &Resources) -> Vec<(&'static str, String)> {
    let quota = limits.cores.milli() * CPU_PERIOD_MICROS / 1000;
    let memory = limits.memory.get().to_string();
    match (version, controller) {
        (Version::V1, Controller::Cpu) => {
            vec![("cpu.cfs_period_us", CPU_PERIOD_MICROS.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
        }
        (Version::V2, Controller::Cpu) => vec![("cpu.max", format!("{quota} {CPU_PERIOD_MICROS}"))],
        (Version::V1, Controller::Memory) => vec![("memory.limit_in_bytes", memory)],
        (Version::V2, Controller::Memory) => vec![("memory.max", memory)],
        (_, Controller::Pids) => vec![("pids.max", MAX_PROCESSES.to_string())],
        (_, Controller::Freezer) => vec![],
    }
}

/// The value of a key in a flat keyed file; 0 if it is absent.
fn count(text: &str, word: &str) -> u64 {
    let figure = |line: &str| line.split_once(' ').filter(|(key, _)| *key == word)?.1.trim().parse().ok();
    text.lines().find_map(figure).unwrap_or(0)
}

/// Writes a control file in one write; it must exist.
fn set(file: &Path, value: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(file)?, value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_own_files_for_limits() {
        let limits = Resources::new(Cores::from_milli(1500), Bytes::mib(64), 0);
        let of = |version, controller| settings(version, controller, &limits);
        assert_eq!(of(Version::V2, Controller::Cpu), [("cpu.max", "150000 100000".to_owned())]);
        assert_eq!(of(Version::V1, Controller::Cpu)[1], ("cpu.cfs_quota_us", "150000".to_owned()));
        assert_eq!(of(Version::V2, Controller::Memory), [("memory.max", "67108864".to_owned())]);
        assert_eq!(of(Version::V1, Controller::Memory), [("memory.limit_in_bytes", "67108864".to_owned())]);
        assert_eq!(of(Version::V1, Controller::Pids), of(Version::V2, Controller::Pids));
    }

    #[test]
    fn limits_that_the_host_does_not_allow_are_named() {
        let none = Cgroups::among(&[], "ostler-trial");
        assert!(!none.limits(Controller::Memory));
        let words = none.unenforced();
        assert_eq!(words.len(), 3, "{words:?}");
        assert!(words[0].starts_with("cores: no writable cpu cgroup"), "{words:?}");

        let directory = tempfile::tempdir().unwrap();
        let mount = Mount { version: Version::V2, controllers: Vec::new(), home: directory.path().join("gone") };
        let unwritable = Cgroups::among(&[mount], "ostler-trial");
        assert!(unwritable.parents.is_empty());
        assert!(unwritable.unenforced()[1].contains("No such file"), "{:?}", unwritable.unenforced());
    }

    #[test]
    fn controllers_of_one_directory_share_a_group() {
        let place = |controller| Place {
            version: Version::V2,
            controllers: vec![controller],
            directory: "/x".into(),
            home: "/x".into(),
        };
        let mut cgroups = Cgroups::default();
        cgroups.add(place(Controller::Cpu));
        cgroups.add(place(Controller::Memory));
        let group = cgroups.group("ostler-a-b");
        assert_eq!(group.places.len(), 1);
        assert_eq!(group.places[0].directory, Path::new("/x/ostler-a-b"));
        assert!(cgroups.limits(Controller::Memory) && !cgroups.limits(Controller::Pids));
    }

    #[test]
    fn kills_are_counted_in_both_versions() {
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"), 2);
        assert_eq!(count("low 0\nhigh 0\nmax 9\noom 3\noom_kill 1\n", "oom_kill"), 1);
        assert_eq!(count("", "oom_kill"), 0);
    }
}
