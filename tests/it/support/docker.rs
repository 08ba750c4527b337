//! A part of the real engine for one test: its own cluster, its own image, and nothing left behind.
//!
//! Tests check the results with the `docker` command, which shares no code with the runtime.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler::gpu;
use ostler::runtime::docker::{Config, CpuMode, DEFAULT_CAPABILITIES, DockerRuntime};
use ostler::runtime::{Container, Error, HandOver, Launch, Runtime};
use ostler::types::{Bytes, Cores, Init, NVIDIA_CLASS, Name, NodeId, PullPolicy, Resources, SessionId};
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::http::{Address, Client, Request};

/// How long a test waits for a condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const SOCKET: &str = "unix:///var/run/docker.sock";
pub(crate) const NODE: &str = "k3f7q2m5x6a4b7c2";
/// A static busybox, to make images without a registry.
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 25] = [
    "sh", "cat", "chown", "cut", "echo", "grep", "httpd", "id", "kill", "ls", "mkdir", "nc", "printf", "rm", "seq",
    "sleep", "stat", "su", "tail", "test", "touch", "true", "whoami", "head", "yes",
];

/// The engine, and a cluster on it for one test. Dropping it removes everything that the cluster created.
pub(crate) struct Lab {
    pub(crate) cluster: Name,
    pub(crate) image: String,
    pub(crate) runtime: Arc<DockerRuntime>,
}

impl Lab {
    /// `None`, after printing SKIPPED, if there is no engine, or no busybox to make an image of.
    pub(crate) fn open(test: &str) -> Option<Self> {
        if !available() {
            crate::support::skip(test, "docker");
            return None;
        }
        let cluster: Name = super::agent::unique_name().parse().unwrap();
        let image = format!("ostler-{cluster}:1");
        let runtime = DockerRuntime::new(config(&cluster), no_gpus()).unwrap();
        let lab = Self { cluster, image, runtime };
        import_busybox(&lab.image);
        Some(lab)
    }

    /// A session that runs `script` in a shell, with small resources.
    pub(crate) fn launch(&self, key: &str, script: &str) -> Launch {
        Launch {
            session: SessionId::of_key(&self.cluster, key),
            user: "alice".parse().unwrap(),
            workspace: "desktop".parse().unwrap(),
            image: Some(self.image.clone()),
            pull: PullPolicy::Missing,
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            resources: Resources::new(Cores::from_milli(500), Bytes::mib(32), 0),
            gpu_uuids: Vec::new(),
            gpu_capabilities: Vec::new(),
            gpu_memory: None,
            ports: Vec::new(),
            volumes: Vec::new(),
            shm: Bytes::mib(16),
            stop_grace: Duration::from_secs(10),
            entrypoint: Vec::new(),
            run_as: None,
            init: Init::Auto,
            tmpfs: Vec::new(),
            read_only: false,
            network: None,
        }
    }

    pub(crate) async fn run(&self, launch: &Launch) -> Result<(), Error> {
        self.runtime.create(launch).await?;
        self.runtime.start(&(&launch.session).into()).await
    }

    /// Waits until `wanted` accepts the session's container, and returns its state.
    pub(crate) async fn until(&self, session: &SessionId, wanted: impl Fn(&Container) -> bool) -> Container {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let container = self.runtime.observe(&session.into()).await.map(|seen| seen.container).unwrap();
            if wanted(&container) {
                return container;
            }
            assert!(Instant::now() < deadline, "the container stayed {container:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn container(&self, session: &SessionId) -> String {
        format!("ostler-{}-{session}", self.cluster)
    }

    pub(crate) fn network(&self) -> String {
        format!("ostler-{}", self.cluster)
    }

    /// One field of the session's container, by a template of `docker inspect`.
    pub(crate) fn inspect(&self, session: &SessionId, template: &str) -> String {
        docker(&["inspect", "--format", template, &self.container(session)])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let of_cluster = format!("label=ostler.cluster={}", self.cluster);
        for id in lines(&["ps", "--all", "--quiet", "--filter", &of_cluster]) {
            quietly(&["rm", "--force", "--volumes", &id]);
        }
        for name in lines(&["volume", "ls", "--quiet", "--filter", &of_cluster]) {
            quietly(&["volume", "rm", &name]);
        }
        for id in lines(&["network", "ls", "--quiet", "--filter", &of_cluster]) {
            quietly(&["network", "rm", &id]);
        }
        quietly(&["network", "rm", &self.network()]);
        for reference in [format!("ostler-{}", self.cluster), format!("*/{}", self.cluster)] {
            for id in lines(&["images", "--quiet", "--no-trunc", "--filter", &format!("reference={reference}")]) {
                quietly(&["rmi", "--force", &id]);
            }
        }
    }
}

pub(crate) fn config(cluster: &Name) -> Config {
    Config {
        cluster: cluster.clone(),
        node: NODE.parse::<NodeId>().unwrap(),
        host: SOCKET.to_owned(),
        cpu_mode: CpuMode::Quota,
        cap_allow: DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
        publish_address: "127.0.0.1".parse().unwrap(),
        network_subnet: None,
        idle_ignore: Vec::new(),
        hand_over: HandOver::Auto,
        gpu_class: NVIDIA_CLASS.to_owned(),
        images_path: None,
    }
}

/// The devices of a host without GPUs.
pub(crate) fn no_gpus() -> watch::Receiver<Arc<gpu::Snapshot>> {
    watch::channel(Arc::default()).1
}

/// The output of a `docker` command, which must succeed.
pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// For cleanup: ignores errors, since an object may be gone already.
pub(crate) fn quietly(arguments: &[&str]) {
    let _ = Command::new("docker").args(arguments).output();
}

/// A free TCP port of loopback.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn available() -> bool {
    let engine = Command::new("docker").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    engine.is_ok_and(|status| status.success()) && Path::new(BUSYBOX).exists()
}

pub(crate) fn lines(arguments: &[&str]) -> Vec<String> {
    let output = Command::new("docker").args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn import_busybox(image: &str) {
    import(busybox_root().path(), image);
}

/// A directory with the files that a shell needs.
fn busybox_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for directory in ["bin", "etc", "tmp", "home"] {
        std::fs::create_dir(root.path().join(directory)).unwrap();
    }
    std::fs::copy(BUSYBOX, root.path().join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    let users = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
    std::fs::write(root.path().join("etc/passwd"), users).unwrap();
    root
}

/// Makes an image of a directory.
pub(crate) fn import(root: &Path, image: &str) {
    let folder = root.to_str().unwrap();
    let tar = ["--owner=0", "--group=0", "-C", folder, "-c", "."];
    let mut tar = Command::new("tar").args(tar).stdout(Stdio::piped()).spawn().unwrap();
    let archive = tar.stdout.take().unwrap();
    let import = ["import", "--change", r#"CMD ["/bin/sh"]"#, "-", image];
    let output = Command::new("docker").args(import).stdin(archive).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(tar.wait().unwrap().success());
}

/// A proxy between a runtime and the engine that can make the engine seem to hang.
pub(crate) struct Freezer {
    frozen: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Freezer {
    /// Forwards all connections at `socket` to the engine.
    pub(crate) fn between(socket: &Path) -> Self {
        let (frozen, is_frozen) = watch::channel(false);
        let listener = UnixListener::bind(socket).unwrap();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, is_frozen.clone()));
            }
        });
        Self { frozen, accepting }
    }

    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    pub(crate) fn thaw(&self) {
        self.frozen.send_replace(false);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass_on(mut client: UnixStream, mut frozen: watch::Receiver<bool>) {
    let mut engine = UnixStream::connect(SOCKET.trim_start_matches("unix://")).await.unwrap();
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut engine) => {}
        _ = frozen.wait_for(|frozen| *frozen) => {}
    }
    // A frozen connection stays open, and nothing passes.
    let _ = frozen.wait_for(|frozen| !*frozen).await;
}

/// A registry on loopback. Dropping it ends it.
pub(crate) struct Registry {
    process: std::process::Child,
    port: u16,
    /// Several registries may have the same images.
    store: Arc<tempfile::TempDir>,
}

impl Registry {
    /// `None`, after printing SKIPPED, if the program `docker-registry` is missing.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let started = Self::serve(Arc::new(tempfile::tempdir().unwrap()), "");
        if started.is_none() {
            crate::support::skip(test, "docker-registry");
        }
        started
    }

    /// A registry of the same images that gives them to this user only. `hash`: the password, as htpasswd writes it.
    pub(crate) fn guarded(&self, user: &str, hash: &str) -> Self {
        let users = self.store.path().join("users");
        std::fs::write(&users, format!("{user}:{hash}\n")).unwrap();
        let access = format!("auth: {{htpasswd: {{realm: lab, path: '{}'}}}}\n", users.display());
        Self::serve(Arc::clone(&self.store), &access).unwrap()
    }

    /// `None`: the program is missing.
    fn serve(store: Arc<tempfile::TempDir>, access: &str) -> Option<Self> {
        let port = free_port();
        let folder = store.path().display();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n\
             storage: {{filesystem: {{rootdirectory: '{folder}'}}}}\n{access}"
        );
        let file = store.path().join(format!("config-{port}.yml"));
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("docker-registry");
        let spawned = command.arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let registry = Self { process: spawned.ok()?, port, store };
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    /// The port of loopback that it listens on.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// A process that serves the same from where `command` enters. Dropping it ends it.
    pub(crate) fn serve_also(&self, mut command: Command) -> Ends {
        let file = self.store.path().join(format!("config-{}.yml", self.port));
        command.args(["docker-registry", "serve"]).arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        Ends(command.spawn().unwrap())
    }

    /// The reference of the cluster's image in this registry, published or not.
    pub(crate) fn reference(&self, cluster: &Name) -> String {
        format!("127.0.0.1:{}/{cluster}:1", self.port)
    }

    /// Publishes an image with a shell and `bytes` of random data, and removes it from the engine.
    pub(crate) fn publish(&self, cluster: &Name, bytes: u64) -> String {
        self.push(self.reference(cluster), bytes)
    }

    /// Publishes another image under the cluster's name. The engine keeps the image that it has under that name.
    pub(crate) fn publish_newer(&self, cluster: &Name, bytes: u64) {
        self.push(self.reference(cluster).replace(":1", ":next"), bytes);
        const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
        let client = Client { address: Address::Tcp(format!("127.0.0.1:{}", self.port)), token: None };
        let manifest = |tag: &str| format!("/v2/{cluster}/manifests/{tag}");
        let next = client.send(&Request::new("GET", &manifest("next")).header("Accept", MANIFEST));
        assert_eq!(next.status, 200, "{}", next.text());
        let put = client.send(&Request::new("PUT", &manifest("1")).bytes(MANIFEST, &next.body));
        assert_eq!(put.status, 201, "{}", put.text());
    }

    /// The same under another tag.
    pub(crate) fn publish_as(&self, cluster: &Name, tag: &str, bytes: u64) -> String {
        self.push(self.reference(cluster).replace(":1", &format!(":{tag}")), bytes)
    }

    fn push(&self, image: String, bytes: u64) -> String {
        let root = busybox_root();
        let noise = std::io::Read::take(std::fs::File::open("/dev/urandom").unwrap(), bytes);
        std::io::copy(&mut { noise }, &mut std::fs::File::create(root.path().join("noise")).unwrap()).unwrap();
        import(root.path(), &image);
        docker(&["push", "--quiet", &image]);
        docker(&["rmi", &image]);
        image
    }
}

/// A process that ends with this.
pub(crate) struct Ends(std::process::Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
