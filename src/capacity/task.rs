//! The owner of the [`Report`]: reads the host every few seconds and takes over what the engine reports about itself.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use super::probe::{cgroup, disk, host};
use super::{Config, EngineFigures, Handle, Report, Utilized};
use crate::clock::Clock;
use crate::gpu;
use crate::runtime::{EngineInfo, Health};
use crate::types::{Bytes, Cores, Disk, Resources, RuntimeKind, Timestamp};

/// Starts the owner. The first report exists when this returns. The owner ends when its last reader is dropped.
pub fn spawn(
    config: Config,
    mut health: watch::Receiver<Health>,
    mut gpus: watch::Receiver<Arc<gpu::Snapshot>>,
    clock: Clock,
) -> (Handle, JoinHandle<()>) {
    let engine = told(&health.borrow_and_update());
    let devices = gpus.borrow_and_update().clone();
    let mut sampler = host::Sampler::new();
    let (disks, bounds) = around_engine(&config, engine.as_ref());
    let now = clock.now().wall;
    let reading = Reading { disks, engine: bounds, ..Reading::take(&mut sampler, config.runtime, now) };
    let (publish, report) = watch::channel(Arc::new(compose(&config, engine.as_ref(), &devices, &reading)));
    let owner = Owner { config, engine, devices, reading, clock, publish };
    (Handle::new(report), tokio::spawn(owner.run(sampler, health, gpus)))
}

struct Owner {
    config: Config,
    /// What the engine last reported about itself: the figures stay valid while it does not answer.
    engine: Option<EngineInfo>,
    devices: Arc<gpu::Snapshot>,
    reading: Reading,
    clock: Clock,
    publish: watch::Sender<Arc<Report>>,
}

impl Owner {
    async fn run(
        mut self,
        sampler: host::Sampler,
        health: watch::Receiver<Health>,
        gpus: watch::Receiver<Arc<gpu::Snapshot>>,
    ) {
        if let Err(e) = self.follow(sampler, health, gpus).await {
            tracing::error!(error = %e, "reading the host failed");
        }
    }

    async fn follow(
        &mut self,
        mut sampler: host::Sampler,
        mut health: watch::Receiver<Health>,
        mut gpus: watch::Receiver<Arc<gpu::Snapshot>>,
    ) -> Result<(), JoinError> {
        let mut ticks = interval(self.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await; // the first tick is immediate, and `spawn` has already taken the first reading
        loop {
            tokio::select! {
                () = self.publish.closed() => return Ok(()),
                Ok(()) = gpus.changed() => {
                    self.devices = gpus.borrow_and_update().clone();
                    self.publish();
                    continue;
                }
                _ = ticks.tick() => sampler = self.read_host(sampler).await?,
                Ok(()) = health.changed() => self.engine = told(&health.borrow_and_update()).or(self.engine.take()),
            }
            self.read_around_engine().await?;
            self.publish();
        }
    }

    fn publish(&self) {
        let report = compose(&self.config, self.engine.as_ref(), &self.devices, &self.reading);
        self.publish.send_replace(Arc::new(report));
    }

    async fn read_host(&mut self, mut sampler: host::Sampler) -> Result<host::Sampler, JoinError> {
        let (runtime, now) = (self.config.runtime, self.clock.now().wall);
        let (sampler, reading) = spawn_blocking(move || {
            let reading = Reading::take(&mut sampler, runtime, now);
            (sampler, reading)
        })
        .await?;
        self.reading = reading;
        Ok(sampler)
    }

    async fn read_around_engine(&mut self) -> Result<(), JoinError> {
        let (config, engine) = (self.config.clone(), self.engine.clone());
        let reading = spawn_blocking(move || around_engine(&config, engine.as_ref())).await?;
        (self.reading.disks, self.reading.engine) = reading;
        Ok(())
    }
}

/// One reading of the host.
#[derive(Debug, Clone, PartialEq)]
struct Reading {
    host: host::Sample,
    bounds: cgroup::Bounds,
    /// Nothing is known of the cgroups of an engine that is not a process of this host.
    engine: cgroup::EngineBounds,
    disks: Vec<Disk>,
    at: Timestamp,
}

impl Reading {
    /// A reading of everything that is not at the engine.
    fn take(sampler: &mut host::Sampler, runtime: RuntimeKind, now: Timestamp) -> Self {
        let bounds = match runtime {
            RuntimeKind::Docker => cgroup::Bounds::default(),
            RuntimeKind::Process => cgroup::own(),
        };
        Self { host: sampler.sample(), bounds, engine: cgroup::EngineBounds::default(), disks: Vec::new(), at: now }
    }
}

/// What the engine reports about itself, if it answers.
fn told(health: &Health) -> Option<EngineInfo> {
    match health {
        Health::Up(info) => Some(info.clone()),
        Health::Unknown | Health::Down { .. } => None,
    }
}

/// The disks, and the bounds of the engine.
fn around_engine(config: &Config, engine: Option<&EngineInfo>) -> (Vec<Disk>, cgroup::EngineBounds) {
    let pid = engine.and_then(|engine| engine.pid);
    (disk::all(&paths(config, engine)), pid.map(cgroup::of_engine).unwrap_or_default())
}

/// The paths to measure disks at: the engine's images, what else it stores, such as logs and volumes, and the data
/// directory.
fn paths(config: &Config, engine: Option<&EngineInfo>) -> Vec<PathBuf> {
    let images = engine.and_then(|engine| engine.images.as_ref()?.path.clone());
    let root = engine.and_then(|engine| engine.data_root.clone());
    images.into_iter().chain(root).chain([config.data_dir.clone()]).collect()
}

/// Combines a reading and the engine's figures into a report.
fn compose(config: &Config, engine: Option<&EngineInfo>, devices: &Arc<gpu::Snapshot>, reading: &Reading) -> Report {
    let host = &reading.host;
    let (cores, memory) = match (config.runtime, engine) {
        (RuntimeKind::Docker, Some(engine)) => {
            let bounds = reading.engine.containers;
            (bounds.limit_cores(engine.cores), bounds.limit_memory(engine.memory))
        }
        // What containers may use is known only from the engine, which may be in a smaller machine or cgroup.
        (RuntimeKind::Docker, None) => (Cores::ZERO, Bytes::ZERO),
        (RuntimeKind::Process, _) => (reading.bounds.limit_cores(host.cores), reading.bounds.limit_memory(host.memory)),
    };
    let figures =
        |engine: &EngineInfo| EngineFigures { cores: engine.cores, memory: engine.memory, bounds: reading.engine };
    let dev = &config.dev;
    let gpu_count = u32::try_from(devices.devices.len()).unwrap_or(u32::MAX);
    let known = host.cores_used.is_some() || host.memory_used.is_some();
    Report {
        physical: Resources::new(dev.physical_cores.unwrap_or(cores), dev.physical_memory.unwrap_or(memory), gpu_count),
        engine: engine.filter(|_| config.runtime == RuntimeKind::Docker).map(figures),
        gpus: handed_over(devices, engine),
        gpus_withheld: withheld(config, devices, engine),
        utilized: known.then_some(Utilized { cores: host.cores_used, memory: host.memory_used, at: reading.at }),
        disks: reading.disks.clone(),
        swap: host.swap.clone(),
        load: host.load,
        pressure: host.pressure,
        dev: dev.physical_cores.is_some() || dev.physical_memory.is_some() || dev.physical_gpus.is_some(),
    }
}

/// The devices, with those marked that the engine cannot give to containers.
fn handed_over(devices: &Arc<gpu::Snapshot>, engine: Option<&EngineInfo>) -> Arc<gpu::Snapshot> {
    let lack = |device: &gpu::Device| Some(engine?.gpus.lack(device, &devices.driver)?.to_string());
    if devices.devices.iter().all(|device| lack(device).is_none()) {
        return Arc::clone(devices);
    }
    let mut marked = gpu::Snapshot::clone(devices);
    marked.devices.iter_mut().for_each(|device| device.unlisted = lack(device));
    Arc::new(marked)
}

/// Why no GPU can be given to sessions now.
fn withheld(config: &Config, devices: &gpu::Snapshot, engine: Option<&EngineInfo>) -> Option<String> {
    if config.dev.physical_gpus.is_some() {
        return None;
    }
    devices.withheld.clone().or_else(|| engine?.gpus.withheld(devices))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::capacity::DevFigures;
    use crate::runtime::GpuSupport;
    use crate::runtime::gpus::{CdiDevice, EngineGpus};
    use crate::types::{BootInstant, Moment};

    fn config(runtime: RuntimeKind) -> Config {
        Config { runtime, dev: DevFigures::default(), data_dir: "/".into(), interval: Duration::from_secs(3600) }
    }

    fn engine() -> EngineInfo {
        EngineInfo {
            version: "29".to_owned(),
            cores: Cores::whole(3),
            memory: Bytes::gib(3),
            data_root: None,
            unenforced: Vec::new(),
            epoch: None,
            platform: None,
            images: None,
            pid: None,
            gpus: GpuSupport::default(),
        }
    }

    fn reading() -> Reading {
        let host = host::Sample { cores: Cores::whole(8), memory: Bytes::gib(8), ..host::Sample::default() };
        let bounds = cgroup::Bounds { cores: Some(Cores::whole(2)), memory: Some(Bytes::gib(16)) };
        Reading {
            host,
            bounds,
            engine: cgroup::EngineBounds::default(),
            disks: Vec::new(),
            at: Timestamp::from_millis(5),
        }
    }

    fn no_gpus() -> watch::Receiver<Arc<gpu::Snapshot>> {
        watch::channel(Arc::default()).1
    }

    fn physical(config: &Config, engine: Option<&EngineInfo>) -> Resources {
        compose(config, engine, &Arc::default(), &reading()).physical
    }

    #[test]
    fn with_docker_the_engines_figures_count() {
        let config = config(RuntimeKind::Docker);
        assert_eq!(physical(&config, Some(&engine())), Resources::new(Cores::whole(3), Bytes::gib(3), 0));
        assert_eq!(physical(&config, None), Resources::ZERO, "not known");
    }

    #[test]
    fn with_docker_the_bounds_on_containers_count_and_those_on_the_engine_do_not() {
        let bounds = |cores| cgroup::Bounds { cores: Some(Cores::whole(cores)), memory: None };
        let engine_bounds = cgroup::EngineBounds { process: bounds(1), containers: bounds(2) };
        let reading = Reading { engine: engine_bounds, ..reading() };
        let report = compose(&config(RuntimeKind::Docker), Some(&engine()), &Arc::default(), &reading);
        assert_eq!(report.physical, Resources::new(Cores::whole(2), Bytes::gib(3), 0));
        assert_eq!(report.engine.unwrap().cores, Cores::whole(3), "what it reports");
    }

    #[test]
    fn with_processes_the_smaller_of_host_and_cgroup_counts() {
        let config = config(RuntimeKind::Process);
        assert_eq!(physical(&config, Some(&engine())), Resources::new(Cores::whole(2), Bytes::gib(8), 0));
    }

    #[test]
    fn dev_figures_replace_the_probed_ones() {
        let dev = DevFigures { physical_cores: Some(Cores::whole(6)), physical_gpus: Some(2), ..DevFigures::default() };
        let config = Config { dev, ..config(RuntimeKind::Docker) };
        let report = compose(&config, Some(&engine()), &Arc::new(gpu::Snapshot::fictitious(2)), &reading());
        assert_eq!(report.physical, Resources::new(Cores::whole(6), Bytes::gib(3), 2));
        let second = &report.gpus.devices[1];
        assert_eq!((second.uuid.as_str(), second.index, second.model.as_str()), ("GPU-dev-0001", 1, "dev"));
        assert!(report.dev);
    }

    #[test]
    fn a_gpu_that_the_engine_cannot_hand_over_is_marked_and_says_why() {
        let list = |libraries: &str| CdiDevice { libraries: Some(libraries.to_owned()), ..CdiDevice::default() };
        let cdi =
            [("nvidia.com/gpu=GPU-0".to_owned(), list("580.1")), ("nvidia.com/gpu=GPU-1".to_owned(), list("550.54"))];
        let gpus = EngineGpus { cdi: Some(cdi.into()), ..EngineGpus::default() }.into();
        let engine = EngineInfo { gpus, ..engine() };
        let device = |n: u32| gpu::Device::new(format!("GPU-{n}"), n, "L4".to_owned());
        let driver = gpu::Driver::Up(gpu::DriverVersions { driver: "580.1".to_owned(), ..Default::default() });
        let found = gpu::Snapshot { driver, devices: vec![device(0), device(1)], ..gpu::Snapshot::default() };
        let report = compose(&config(RuntimeKind::Docker), Some(&engine), &Arc::new(found), &reading());
        let [first, second] = &report.gpus.devices[..] else { panic!("{:?}", report.gpus) };
        assert_eq!((&first.unlisted, &report.gpus_withheld), (&None, &None));
        assert!(second.unlisted.as_ref().unwrap().contains("out of date for GPU-1"), "{second:?}");
    }

    #[test]
    fn a_figure_that_was_not_measured_is_none() {
        assert_eq!(compose(&config(RuntimeKind::Docker), None, &Arc::default(), &reading()).utilized, None);
    }

    #[tokio::test]
    async fn the_report_follows_the_engine_and_keeps_its_last_figures() {
        let start = Moment { wall: Timestamp::from_millis(1), boot: BootInstant::from_millis(1), boot_id: 1 };
        let (say, health) = watch::channel(Health::Unknown);
        let (handle, owner) = spawn(config(RuntimeKind::Docker), health, no_gpus(), Clock::manual(start));
        assert_eq!(handle.report().physical, Resources::ZERO, "the engine has not answered");
        assert_eq!(handle.report().disks[0].path, "/");

        let mut reports = handle.watch();
        let images = std::path::Path::new("/proc");
        say.send_replace(Health::Up(EngineInfo { data_root: Some(images.to_owned()), ..engine() }));
        let report = reports.wait_for(|r| r.physical.cores == Cores::whole(3)).await.unwrap().clone();
        assert_eq!(report.disks.iter().map(|disk| disk.path.as_str()).collect::<Vec<_>>(), ["/proc", "/"]);

        reports.mark_unchanged();
        say.send_replace(Health::Down { message: "gone".to_owned(), unsupported: false });
        reports.changed().await.unwrap();
        assert_eq!(handle.report().physical.cores, Cores::whole(3));

        drop((handle, reports));
        owner.await.unwrap();
    }

    #[tokio::test]
    async fn the_owner_reads_the_host_repeatedly() {
        let start = Moment { wall: Timestamp::from_millis(1), boot: BootInstant::from_millis(1), boot_id: 1 };
        let (_say, health) = watch::channel(Health::Unknown);
        let clock = Clock::manual(start);
        let config = Config { interval: Duration::from_millis(1), ..config(RuntimeKind::Process) };
        let (handle, _owner) = spawn(config, health, no_gpus(), clock.clone());
        clock.advance(Duration::from_millis(50));
        let later = Timestamp::from_millis(51);
        let sampled = |r: &Arc<Report>| r.utilized.is_some_and(|u| u.at == later && u.cores.is_some());
        handle.watch().wait_for(sampled).await.unwrap();
    }
}
