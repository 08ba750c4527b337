//! The figures of a node that its snapshots tell.

use std::sync::Arc;

use crate::election::Leadership;
use crate::gossip::ClusterView;
use crate::images;
use crate::metrics::{Labels, Registry, Source};
use crate::sessions::Snapshot;
use crate::types::{
    Bytes, ConditionKind, Cores, Disk, Gpu, GpuHealth, GpuState, ImageOwner, Inodes, Node, NodeState, SessionState,
    Swap,
};

/// Everything that snapshots tell.
pub(super) struct Figures {
    pub(super) node: Node,
    pub(super) sessions: Arc<Snapshot>,
    pub(super) view: Arc<ClusterView>,
    pub(super) leadership: Arc<Leadership>,
    /// The Unix second in which the certificate of the API ends.
    pub(super) certificate_end: Option<u64>,
    /// `None`: the runtime has no images.
    pub(super) images: Option<Arc<images::Snapshot>>,
}

impl Source for Figures {
    fn register(&self, registry: &mut Registry<'_>) {
        let Self { node, sessions, view, leadership, certificate_end, images } = self;
        let mut exposition = Exposition(registry);
        exposition.info(node);
        exposition.resources(node);
        exposition.disk_and_swap(node);
        exposition.state(node);
        exposition.nodes(node, view);
        exposition.election(node, leadership);
        let end = certificate_end.map(|end| end as f64);
        exposition.0.gauge("certificate_expires_timestamp_seconds", "When http.tls_cert ends", end);
        exposition.sessions(sessions);
        exposition.gpus(&node.gpus);
        images.iter().for_each(|images| exposition.images(images));
    }
}

/// The metrics of one node while they are built.
struct Exposition<'a, 'r>(&'a mut Registry<'r>);

impl Exposition<'_, '_> {
    fn info(&mut self, node: &Node) {
        let build = vec![("version", node.version.clone()), ("runtime", node.runtime.kind.to_string())];
        self.0.gauges("build_info", "Version and runtime of the agent; always 1", [(build, 1.0)]);
        self.0.gauges("node_info", "Id of the node; always 1", [(vec![("id", node.id.to_string())], 1.0)]);
    }

    fn resources(&mut self, node: &Node) {
        let (cores, memory, gpus) = (&node.resources.cores, &node.resources.memory_bytes, &node.resources.gpus);
        self.0.gauge("node_cores_physical", "CPU cores of the host", cores.physical.map(decimal));
        self.0.gauge("node_cores_effective", "CPU cores that the node offers", cores.offered().map(decimal));
        self.0.gauge("node_cores_allocated", "CPU cores that sessions reserve", decimal(cores.allocated));
        let used = cores.utilized.map(decimal);
        self.0.gauge("node_cores_used", "CPU cores in use, by all processes of the host", used);
        self.0.gauge("node_memory_physical_bytes", "Memory of the host", memory.physical.map(number));
        self.0.gauge("node_memory_effective_bytes", "Memory that the node offers", memory.offered().map(number));
        self.0.gauge("node_memory_allocated_bytes", "Memory that sessions reserve", number(memory.allocated));
        let used = memory.utilized.map(number);
        self.0.gauge("node_memory_used_bytes", "Memory in use, by all processes of the host", used);
        self.0.gauge("node_gpus_physical", "GPUs of the host", gpus.physical.map(f64::from));
        self.0.gauge("node_gpu_slots_effective", "GPU slots that the node offers", f64::from(gpus.effective));
        self.0.gauge("node_gpu_slots_allocated", "GPU slots that sessions reserve", f64::from(gpus.allocated));
        let measured = cores.utilized_at.or(memory.utilized_at).map(|at| at.millis() as f64 / 1000.0);
        self.0.gauge("node_measured_timestamp_seconds", "When the use of cores and memory was measured", measured);
    }

    fn disk_and_swap(&mut self, node: &Node) {
        let disk = |figure: fn(&Disk) -> Bytes| node.disk.as_ref().map(|disk| number(figure(disk)));
        self.0.gauge("node_disk_total_bytes", "Size of the file system of the images", disk(|disk| disk.total_bytes));
        self.0.gauge(
            "node_disk_free_bytes",
            "Free space on the file system of the images",
            disk(|disk| disk.free_bytes),
        );
        let inodes = |figure: fn(&Inodes) -> u64| {
            let inodes = node.disk.as_ref().and_then(|disk| disk.inodes.as_ref());
            inodes.map(|inodes| figure(inodes) as f64)
        };
        self.0.gauge("node_disk_inodes", "Inodes of the file system of the images", inodes(|inodes| inodes.total));
        self.0.gauge(
            "node_disk_inodes_free",
            "Free inodes of the file system of the images",
            inodes(|inodes| inodes.free),
        );
        let swap = |figure: fn(&Swap) -> Bytes| node.swap.as_ref().map(|swap| number(figure(swap)));
        self.0.gauge("node_swap_total_bytes", "Size of the swap space", swap(|swap| swap.total_bytes));
        self.0.gauge("node_swap_used_bytes", "Swap in use", swap(|swap| swap.used_bytes));
    }

    fn state(&mut self, node: &Node) {
        self.0.gauge("node_enabled", "1 if the node's setting enabled is true", flag(node.enabled));
        self.0.gauge("node_draining", "1 while the node is draining", flag(node.drain.is_some()));
        self.0.gauge("runtime_up", "1 while the container engine answers", flag(node.runtime.available));
        let conditions = ConditionKind::ALL.iter().map(|kind| {
            let holds = node.conditions.iter().any(|condition| condition.kind == *kind);
            (vec![("condition", kind.to_string())], flag(holds))
        });
        self.0.gauges("node_condition", "1 while the condition holds", conditions);
    }

    /// The nodes as this node sees them. Other nodes may see other states.
    fn nodes(&mut self, node: &Node, view: &ClusterView) {
        let states = || view.members.values().map(|member| member.state).chain([node.state]);
        let counts = NodeState::ALL
            .iter()
            .map(|state| (vec![("state", state.to_string())], count(states().filter(|seen| seen == state))));
        self.0.gauges("nodes", "Nodes by state as this node sees them, including itself", counts);
    }

    fn election(&mut self, node: &Node, leadership: &Leadership) {
        let term = leadership.ballot.as_ref().map(|ballot| ballot.term as f64);
        self.0.gauge("election_term", "The highest term that the node knows", term);
        self.0.gauge("leader_known", "1 while the node knows a leader", flag(leadership.leader.is_some()));
        // What a host says of itself does not tell whether it leads.
        let leads = leadership.leader == Some(node.id);
        self.0.gauge("node_leader", "1 if the node is the leader", flag(leads));
    }

    fn sessions(&mut self, sessions: &Snapshot) {
        let present = || sessions.sessions.iter().filter(|(id, _)| !sessions.gone.contains(*id));
        let counts = SessionState::ALL.iter().map(|state| {
            (vec![("state", state.to_string())], count(present().filter(|(_, session)| session.state == *state)))
        });
        self.0.gauges("sessions", "Sessions that have a container, by state", counts);
        self.0.gauge("sessions_reserved", "Sessions that hold a reservation", count(&sessions.reserved));
        let failures = f64::from(sessions.failing_starts);
        self.0.gauge("start_failures_in_a_row", "Starts of sessions that failed since the last success", failures);
    }

    /// Without figures until the engine has listed its images.
    fn images(&mut self, snapshot: &images::Snapshot) {
        let Some(images) = &snapshot.images else { return };
        let sizes = ImageOwner::ALL.iter().map(|owner| {
            let owned = images.iter().filter(|image| snapshot.is_ours(image) == (*owner == ImageOwner::Ostler));
            let bytes: u64 = owned.map(|image| image.size.get()).sum();
            (vec![("owner", owner.to_string())], bytes as f64)
        });
        let help = "Sizes of the images, by owner; layers that images share count for each of them";
        self.0.gauges("image_bytes", help, sizes);
    }

    fn gpus(&mut self, gpus: &[Gpu]) {
        let info = gpus.iter().map(|gpu| {
            let driver = gpu.details.driver_version.clone().unwrap_or_default();
            ([labels_of(gpu), vec![("model", gpu.model.clone()), ("driver", driver)]].concat(), 1.0)
        });
        self.0.gauges("gpu_info", "Model and driver of the GPU, as far as they are known; always 1", info);
        let states = |gpu: &Gpu| {
            let (labels, now) = (labels_of(gpu), gpu.state);
            GpuState::ALL
                .iter()
                .map(move |state| ([labels.clone(), vec![("state", state.to_string())]].concat(), flag(*state == now)))
        };
        self.0.gauges("gpu_state", "1 for the state of the GPU", gpus.iter().flat_map(states));
        self.each_gpu("gpu_healthy", "1 if the driver reports no fault of the GPU", gpus, healthy);
        self.each_gpu("gpu_slots", "Sessions that may hold the GPU at once", gpus, |gpu| Some(f64::from(gpu.slots)));
        self.each_gpu("gpu_slots_used", "Sessions that hold the GPU", gpus, |gpu| Some(f64::from(gpu.slots_used)));
        self.each_gpu("gpu_cordoned", "1 if the operator wants no new sessions on the GPU", gpus, |gpu| {
            Some(flag(gpu.cordoned))
        });
        self.each_gpu("gpu_memory_total_bytes", "Memory of the GPU", gpus, |gpu| gpu.memory_total_bytes.map(number));
        self.each_gpu("gpu_memory_used_bytes", "Memory of the GPU in use", gpus, |gpu| {
            gpu.memory_used_bytes.map(number)
        });
        self.each_gpu("gpu_foreign_memory_bytes", "Memory of the GPU in use by what is not a session", gpus, |gpu| {
            gpu.memory_foreign_bytes.map(number)
        });
        self.each_gpu("gpu_memory_declared_bytes", "Memory of the GPU that sessions declared", gpus, |gpu| {
            Some(number(gpu.memory_declared_bytes))
        });
        self.each_gpu("gpu_utilization_ratio", "Utilization of the GPU, 0 to 1", gpus, |gpu| {
            gpu.utilization_percent.map(|percent| percent / 100.0)
        });
        self.each_gpu("gpu_temperature_celsius", "Temperature of the GPU", gpus, |gpu| gpu.temperature_celsius);
        self.each_gpu("gpu_power_watts", "Power draw of the GPU", gpus, |gpu| gpu.power_watts);
        self.each_gpu("gpu_throttled", "1 while heat or power slows the GPU down", gpus, |gpu| {
            gpu.throttling.as_ref().map(|reasons| flag(!reasons.is_empty()))
        });
        self.each_gpu("gpu_measured_timestamp_seconds", "When the GPU was measured", gpus, |gpu| {
            gpu.read_at.map(|at| at.millis() as f64 / 1000.0)
        });
    }

    fn each_gpu(&mut self, name: &str, help: &str, gpus: &[Gpu], figure: impl Fn(&Gpu) -> Option<f64>) {
        self.0.gauges(name, help, gpus.iter().filter_map(|gpu| Some((labels_of(gpu), figure(gpu)?))));
    }
}

fn labels_of(gpu: &Gpu) -> Labels {
    vec![("uuid", gpu.uuid.clone()), ("index", gpu.index.to_string())]
}

/// `None` if the driver does not say.
const fn healthy(gpu: &Gpu) -> Option<f64> {
    match gpu.health {
        GpuHealth::Ok => Some(1.0),
        GpuHealth::Failing | GpuHealth::Lost => Some(0.0),
        GpuHealth::Unknown => None,
    }
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

fn decimal(cores: Cores) -> f64 {
    cores.milli() as f64 / 1000.0
}

fn number(bytes: Bytes) -> f64 {
    bytes.get() as f64
}

fn count(items: impl IntoIterator) -> f64 {
    items.into_iter().count() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::metrics::sample::{figures, node};
    use crate::metrics::{Format, Scrape};

    fn encoded(node: &Node) -> String {
        let mut scrape = Scrape::of(node.name.as_str());
        scrape.add(&figures(node.clone()));
        scrape.encode(Format::Prometheus).unwrap()
    }

    #[test]
    fn every_resource_has_its_figures() {
        let text = encoded(&node());
        for line in [
            r#"ostler_node_cores_physical{node="one"} 6.0"#,
            r#"ostler_node_cores_effective{node="one"} 12.0"#,
            r#"ostler_node_cores_allocated{node="one"} 2.5"#,
            r#"ostler_node_info{node="one",id="aabb222222222222"} 1.0"#,
            r#"ostler_node_enabled{node="one"} 1.0"#,
            r#"ostler_node_condition{node="one",condition="low_disk"} 0.0"#,
            r#"ostler_nodes{node="one",state="alive"} 1.0"#,
            r#"ostler_nodes{node="one",state="suspect"} 1.0"#,
            r#"ostler_nodes{node="one",state="left"} 0.0"#,
            r#"ostler_election_term{node="one"} 7.0"#,
            r#"ostler_gpu_info{node="one",uuid="GPU-1",index="0",model="A \"quoted\" model",driver=""} 1.0"#,
            r#"ostler_gpu_utilization_ratio{node="one",uuid="GPU-1",index="0"} 0.125"#,
            r#"ostler_gpu_state{node="one",uuid="GPU-1",index="0",state="foreign"} 1.0"#,
            r#"ostler_gpu_state{node="one",uuid="GPU-1",index="0",state="ok"} 0.0"#,
            r#"ostler_gpu_healthy{node="one",uuid="GPU-1",index="0"} 1.0"#,
            r#"ostler_gpu_throttled{node="one",uuid="GPU-1",index="0"} 0.0"#,
            r#"ostler_image_bytes{node="one",owner="foreign"} 3221225472.0"#,
            r#"ostler_image_bytes{node="one",owner="ostler"} 0.0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn unknown_figures_are_omitted_and_removed_sessions_are_not_counted() {
        let text = encoded(&node());
        assert!(!text.contains("ostler_node_cores_used") && !text.contains("ostler_gpu_power_watts"), "{text}");
        assert!(!text.contains("ostler_gpu_foreign_memory") && !text.contains("ostler_gpu_measured"), "{text}");
        assert!(text.contains(r#"ostler_sessions{node="one",state="running"} 1.0"#));
        assert!(text.contains(r#"ostler_sessions{node="one",state="failed"} 0.0"#));
    }

    #[test]
    fn the_health_and_the_throttling_of_a_silent_gpu_are_omitted() {
        let mut node = node();
        (node.gpus[0].health, node.gpus[0].throttling) = (GpuHealth::Unknown, None);
        let text = encoded(&node);
        assert!(!text.contains("ostler_gpu_healthy") && !text.contains("ostler_gpu_throttled"), "{text}");
        node.gpus[0].health = GpuHealth::Failing;
        node.gpus[0].throttling = Some(vec!["thermal".to_owned()]);
        let text = encoded(&node);
        assert!(text.contains("ostler_gpu_healthy{node=\"one\",uuid=\"GPU-1\",index=\"0\"} 0.0\n"), "{text}");
        assert!(text.contains("ostler_gpu_throttled{node=\"one\",uuid=\"GPU-1\",index=\"0\"} 1.0\n"), "{text}");
    }
}
