//! A separate engine for a test to stop, kill and freeze, in namespaces that end with it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::support::agent::until;
use crate::support::docker::Lab;

const TOOLS: [&str; 5] = ["dockerd", "setpriv", "unshare", "nsenter", "ip"];
/// Keeps the namespaces, and reaps orphaned processes in them.
const KEEPER: &str = "ip link set lo up && echo ready && while :; do sleep 1 & wait; done";

/// Mounts in the root $1 what an engine needs, and the directory $2 at its own path.
const ROOT: &str = "mount --bind $1 $1 && mount -t proc proc $1/proc && mount --rbind /sys $1/sys && \
                    mount --rbind /dev $1/dev && mount -t tmpfs tmpfs $1/run && mkdir -p $1$2 && mount --rbind $2 $1$2";

/// A Docker engine with nothing on it but the lab's image.
pub(super) struct OwnEngine {
    directory: TempDir,
    /// Ends every process of the namespaces when it ends.
    keeper: Child,
    init: u32,
    /// Enters the namespaces, and waits there for the engine.
    entrance: Option<Child>,
    /// The root of its files; `None`: the host's.
    root: Option<PathBuf>,
    registry: Option<Child>,
    /// Where it stores everything; `None`: in its own directory.
    data: Option<PathBuf>,
}

impl OwnEngine {
    /// `None`, after printing SKIPPED, if no second engine can run here.
    pub(super) fn start(test: &str, lab: &Lab) -> Option<Self> {
        Self::start_with(test, lab, "{}", None)
    }

    /// The same, which stores everything in this directory.
    pub(super) fn start_on(test: &str, lab: &Lab, data: &Path) -> Option<Self> {
        Self::begin(test, lab, "{}", None, Some(data))
    }

    /// The same, with these settings as its `daemon.json`, and of another release of Debian, whose files are in `root`.
    pub(super) fn start_with(test: &str, lab: &Lab, settings: &str, root: Option<&Path>) -> Option<Self> {
        Self::begin(test, lab, settings, root, None)
    }

    fn begin(test: &str, lab: &Lab, settings: &str, root: Option<&Path>, data: Option<&Path>) -> Option<Self> {
        let found = |tool: &&str| -> bool {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&paths).any(|path| path.join(tool).exists())
        };
        if !geteuid().is_root() || !TOOLS.iter().all(found) {
            crate::support::skip(test, "docker-engine");
            return None;
        }
        // Everything ends with the test, even if the test is killed.
        let mut keeper = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", KEEPER])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(keeper.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        if ready.trim() != "ready" {
            keeper.wait().unwrap();
            crate::support::skip(test, "docker-engine");
            return None;
        }
        let init = only_child(keeper.id());
        let (root, data) = (root.map(Path::to_owned), data.map(Path::to_owned));
        let directory = tempfile::tempdir().unwrap();
        let mut engine = Self { directory, keeper, init, entrance: None, root, data, registry: None };
        engine.mount_root();
        engine.configure(settings);
        engine.up();
        let saved = format!("docker save {} | docker -H {} load", lab.image, engine.host());
        assert!(Command::new("sh").args(["-c", &saved]).stdout(Stdio::null()).status().unwrap().success());
        Some(engine)
    }

    /// Its `daemon.json` from the next start on. Without a storage driver it is `vfs`, which works on every file system.
    pub(super) fn configure(&self, settings: &str) {
        let mut settings: serde_json::Value = serde_json::from_str(settings).unwrap();
        settings.as_object_mut().unwrap().entry("storage-driver").or_insert("vfs".into());
        fs::write(self.path("daemon.json"), settings.to_string()).unwrap();
    }

    /// A registry that this engine reaches, with its address. It ends with the engine.
    pub(super) fn registry(&mut self) -> String {
        let (store, file, address) = (self.path("registry"), self.path("registry.yml"), "127.0.0.1:5000");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{address}'}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\n",
            store.display()
        );
        fs::write(&file, config).unwrap();
        let mut command = self.enter();
        command.args(["docker-registry".as_ref(), "serve".as_ref(), file.as_os_str()]);
        self.registry = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let reachable =
            || self.enter().args(["bash", "-c", ": </dev/tcp/127.0.0.1/5000"]).stderr(Stdio::null()).status();
        until("a registry that listens", || reachable().unwrap().success());
        address.to_owned()
    }

    /// The engine's address, as for `docker_host`.
    pub(super) fn host(&self) -> String {
        format!("unix://{}", self.path("d.sock").display())
    }

    /// The output of a `docker` command on this engine.
    pub(super) fn docker(&self, arguments: &[&str]) -> String {
        let output = Command::new("docker").arg("-H").arg(self.host()).args(arguments).output().unwrap();
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes images to an archive in the engine's directory.
    pub(super) fn save(&self, images: &[&str]) -> PathBuf {
        let archive = self.path("images.tar");
        self.docker(&[&["save", "--output", &archive.display().to_string()], images].concat());
        archive
    }

    pub(super) fn load(&self, archive: &Path) {
        self.docker(&["load", "--input", &archive.display().to_string()]);
    }

    /// Mounts in the engine's root what it needs of the host. It is gone with the namespaces.
    fn mount_root(&self) {
        let Some(root) = &self.root else { return };
        let temporary = std::env::temp_dir();
        let mounted = self.enter().args(["sh", "-c", ROOT, "sh"]).args([root, &temporary]).status().unwrap();
        assert!(mounted.success(), "cannot mount the files of the engine's root");
    }

    /// A command in the engine's namespaces.
    pub(super) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--net", "--mount", "--pid", "--"]);
        command
    }

    /// Starts the engine and waits until it answers.
    pub(super) fn up(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let _ = fs::remove_file(self.path("pid"));
        let mut command = self.enter();
        if let Some(root) = &self.root {
            command.arg("chroot").arg(root);
        }
        let entrance = command
            .args(["dockerd", "--host", &self.host()])
            .args(["--config-file".as_ref(), self.path("daemon.json").as_os_str()])
            .args(["--data-root".as_ref(), self.data.clone().unwrap_or_else(|| self.path("data")).as_os_str()])
            .args(["--exec-root".as_ref(), self.path("exec").as_os_str()])
            .args(["--pidfile".as_ref(), self.path("pid").as_os_str()])
            .stderr(log)
            .spawn()
            .unwrap();
        self.entrance = Some(entrance);
        until("an engine that answers", || {
            if let Some(status) = self.entrance.as_mut().unwrap().try_wait().unwrap() {
                let log = fs::read_to_string(self.path("log")).unwrap();
                panic!("the engine ended with {status}: {log}");
            }
            let asked = Command::new("docker").arg("-H").arg(self.host()).arg("version").output().unwrap();
            asked.status.success()
        });
    }

    /// Sends a signal to the engine only.
    pub(super) fn signal(&self, signal: Signal) {
        let entrance = self.entrance.as_ref().expect("it runs").id();
        kill_process(pid(self.process()), signal).unwrap();
        if signal == Signal::CONT {
            // `nsenter` stops with the engine that it waits for, but does not continue with it.
            kill_process(pid(entrance), signal).unwrap();
        }
    }

    /// The engine's process.
    pub(super) fn process(&self) -> u32 {
        only_child(self.entrance.as_ref().expect("it runs").id())
    }

    /// Ends the engine with this signal. On SIGTERM it stops its containers first.
    pub(super) fn down(&mut self, signal: Signal) {
        self.signal(signal);
        self.entrance.take().unwrap().wait().unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if let Some(mut entrance) = self.entrance.take() {
            if let Some(engine) = children(entrance.id()).first() {
                let _ = kill_process(pid(*engine), Signal::CONT);
                // On SIGTERM the engine stops its containers and removes its mounts.
                let _ = kill_process(pid(*engine), Signal::TERM);
            }
            let _ = kill_process(pid(entrance.id()), Signal::CONT);
            let _ = entrance.wait();
        }
        let _ = kill_process(pid(self.init), Signal::KILL);
        let _ = self.keeper.wait();
        self.registry.take().map(|mut registry| registry.wait());
    }
}

fn pid(raw: u32) -> Pid {
    Pid::from_raw(i32::try_from(raw).unwrap()).unwrap()
}

fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(Path::new(&path)).unwrap_or_default();
    text.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

fn only_child(parent: u32) -> u32 {
    let mut found = Vec::new();
    until("a child", || {
        found = children(parent);
        !found.is_empty()
    });
    found[0]
}

/// A cgroup below the root with a limit of memory. Dropping it removes it: its processes must have ended before.
pub(super) struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None`, after printing SKIPPED, if this process may make no cgroup with such a limit.
    pub(super) fn make(test: &str, bytes: u64) -> Option<Self> {
        let name = format!("ostler-test-{}", std::process::id());
        // Version 1, then 2.
        for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let group = Self(Path::new(root).join(&name));
            if Path::new(root).join("cgroup.procs").exists() && fs::create_dir(&group.0).is_ok() {
                let limit = group.0.join(limit);
                if limit.exists() && fs::write(limit, bytes.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        crate::support::skip(test, "memory-cgroup");
        None
    }

    /// Moves a process into it.
    pub(super) fn take(&self, process: u32) {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
