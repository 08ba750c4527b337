//! Metrics for Prometheus. Each scrape builds them from the current snapshots, so that no counter needs upkeep.

use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Shared;
use super::error::Refusal;
use super::extract::{NoParameters, Query};
use crate::gossip::ClusterView;
use crate::sessions::Snapshot;
use crate::types::{Bytes, ConditionKind, Cores, ErrorCode, Figures, Gpu, Node, NodeState, SessionState};

const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Shows metrics in the text format of Prometheus and OpenMetrics.
#[utoipa::path(get, path = "/metrics", tag = "status", responses(
    (status = 200, description = "the metrics", content_type = "application/openmetrics-text", body = String),
))]
pub(super) async fn metrics(State(app): Shared, _: Query<NoParameters>) -> Result<impl IntoResponse + use<>, Refusal> {
    let cluster = &app.api.cluster;
    let text = render(&cluster.host().node(), &cluster.host().sessions.snapshot(), &cluster.view())
        .map_err(|_| Refusal::new(ErrorCode::Internal, "cannot encode the metrics as text"))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

fn render(node: &Node, sessions: &Snapshot, view: &ClusterView) -> Result<String, std::fmt::Error> {
    let mut exposition = Exposition { registry: Registry::with_prefix("ostler"), node: node.name.to_string() };
    exposition.build(node);
    exposition.resources(node);
    exposition.state(node);
    exposition.nodes(node, view);
    exposition.sessions(sessions);
    exposition.gpus(&node.gpus);
    let mut text = String::new();
    encode(&mut text, &exposition.registry)?;
    Ok(text)
}

type Labels = Vec<(&'static str, String)>;
type Values = Family<Labels, Gauge<f64, AtomicU64>>;

/// The metrics of one node while they are built.
struct Exposition {
    registry: Registry,
    node: String,
}

impl Exposition {
    fn family(&mut self, name: &str, help: &str) -> Values {
        let family = Values::default();
        self.registry.register(name, help, family.clone());
        family
    }

    /// A metric of the node as a whole.
    fn single(&mut self, name: &str, help: &str, value: f64) {
        let labels = vec![("node", self.node.clone())];
        self.family(name, help).get_or_create(&labels).set(value);
    }

    fn build(&mut self, node: &Node) {
        let labels = vec![
            ("node", self.node.clone()),
            ("node_id", node.id.to_string()),
            ("version", node.version.clone()),
            ("runtime", node.runtime.kind.to_string()),
        ];
        self.family("build_info", "Version and runtime of the node; always 1").get_or_create(&labels).set(1.0);
    }

    fn resources(&mut self, node: &Node) {
        let cores = self.family("node_cores", "CPU cores: physical, effective, allocated, available, utilized");
        self.figures(&cores, &node.resources.cores, |cores: Cores| cores.milli() as f64 / 1000.0);
        let memory = self.family("node_memory_bytes", "Memory: physical, effective, allocated, available, utilized");
        self.figures(&memory, &node.resources.memory_bytes, |memory: Bytes| memory.get() as f64);
        let gpus = self.family("node_gpus", "GPUs: physical, effective, allocated, available, utilized");
        self.figures(&gpus, &node.resources.gpus, f64::from);
        if let Some(disk) = &node.disk {
            self.single(
                "node_disk_total_bytes",
                "Size of the file system of the images",
                disk.total_bytes.get() as f64,
            );
            self.single(
                "node_disk_free_bytes",
                "Free space on the file system of the images",
                disk.free_bytes.get() as f64,
            );
        }
        if let Some(swap) = &node.swap {
            self.single("node_swap_total_bytes", "Size of the swap space", swap.total_bytes.get() as f64);
            self.single("node_swap_used_bytes", "Swap in use", swap.used_bytes.get() as f64);
        }
    }

    /// Omits unknown figures, which must not appear as 0.
    fn figures<T: Copy>(&self, family: &Values, figures: &Figures<T>, number: impl Fn(T) -> f64) {
        let known = [
            ("physical", Some(figures.physical)),
            ("effective", Some(figures.effective)),
            ("allocated", Some(figures.allocated)),
            ("available", Some(figures.available)),
            ("utilized", figures.utilized),
        ];
        for (figure, value) in known.into_iter().filter_map(|(figure, value)| Some((figure, value?))) {
            let labels = vec![("node", self.node.clone()), ("figure", figure.to_owned())];
            family.get_or_create(&labels).set(number(value));
        }
    }

    fn state(&mut self, node: &Node) {
        let flag = |set: bool| if set { 1.0 } else { 0.0 };
        self.single("node_enabled", "1 if the node's setting enabled is true", flag(node.enabled));
        self.single("node_draining", "1 while the node is draining", flag(node.drain.is_some()));
        self.single("node_leader", "1 if the node is the leader", flag(node.is_leader));
        self.single("runtime_available", "1 while the container engine answers", flag(node.runtime.available));
        let family = self.family("node_condition", "1 while the condition holds");
        for kind in ConditionKind::ALL {
            let holds = node.conditions.iter().any(|condition| condition.kind == *kind);
            let labels = vec![("node", self.node.clone()), ("condition", kind.to_string())];
            family.get_or_create(&labels).set(flag(holds));
        }
    }

    /// The nodes as this node sees them. Other nodes may see other states.
    fn nodes(&mut self, node: &Node, view: &ClusterView) {
        let family = self.family("nodes", "Nodes by state as this node sees them, including itself");
        let states = || view.members.values().map(|member| member.state).chain([node.state]);
        for state in NodeState::ALL {
            let labels = vec![("node", self.node.clone()), ("state", state.to_string())];
            let count = u32::try_from(states().filter(|seen| seen == state).count());
            family.get_or_create(&labels).set(f64::from(count.unwrap_or(u32::MAX)));
        }
    }

    fn sessions(&mut self, sessions: &Snapshot) {
        let family = self.family("sessions", "Sessions that have a container, by state");
        let present = || sessions.sessions.iter().filter(|(id, _)| !sessions.gone.contains(*id));
        for state in SessionState::ALL {
            let labels = vec![("node", self.node.clone()), ("state", state.to_string())];
            let count = u32::try_from(present().filter(|(_, session)| session.state == *state).count());
            family.get_or_create(&labels).set(f64::from(count.unwrap_or(u32::MAX)));
        }
        let reserved = u32::try_from(sessions.reserved.len()).unwrap_or(u32::MAX);
        self.single("sessions_reserved", "Sessions that hold a reservation", f64::from(reserved));
        self.single("failing_starts", "Starts in a row that failed", f64::from(sessions.failing_starts));
    }

    fn gpus(&mut self, gpus: &[Gpu]) {
        let bytes = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.get() as f64);
        self.each_gpu("gpu_slots", "Sessions that may hold the GPU at once", gpus, |gpu| Some(f64::from(gpu.slots)));
        self.each_gpu("gpu_slots_used", "Sessions that hold the GPU", gpus, |gpu| Some(f64::from(gpu.slots_used)));
        self.each_gpu("gpu_memory_total_bytes", "Memory of the GPU", gpus, |gpu| bytes(gpu.memory_total_bytes));
        self.each_gpu("gpu_memory_used_bytes", "Memory of the GPU in use", gpus, |gpu| bytes(gpu.memory_used_bytes));
        self.each_gpu("gpu_utilization_percent", "Utilization of the GPU in percent", gpus, |gpu| {
            gpu.utilization_percent
        });
        self.each_gpu("gpu_temperature_celsius", "Temperature of the GPU", gpus, |gpu| gpu.temperature_celsius);
        self.each_gpu("gpu_power_watts", "Power draw of the GPU", gpus, |gpu| gpu.power_watts);
    }

    fn each_gpu(&mut self, name: &str, help: &str, gpus: &[Gpu], figure: impl Fn(&Gpu) -> Option<f64>) {
        let family = self.family(name, help);
        for (gpu, value) in gpus.iter().filter_map(|gpu| Some((gpu, figure(gpu)?))) {
            let labels =
                vec![("node", self.node.clone()), ("uuid", gpu.uuid.clone()), ("index", gpu.index.to_string())];
            family.get_or_create(&labels).set(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::Member;
    use crate::types::{ClusterMode, NodeUsage, Timestamp, sample};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn rendered() -> String {
        let mut node = sample::node("one", "aabb222222222222");
        node.resources.cores.physical = Cores::whole(6);
        node.resources.cores.effective = Cores::whole(12);
        node.resources.cores.allocated = Cores::from_milli(2500);
        node.resources.cores.utilized = None;
        let mut sessions = Snapshot::default();
        for key in ["a", "b"] {
            let session = sample::session_profile(key, "desktop", "alice", SessionState::Running);
            sessions.sessions.insert(session.id, Arc::new(session));
        }
        sessions.gone.insert(sample::session_id("b"));
        render(&node, &sessions, &view()).unwrap()
    }

    /// Another node, that was heard and is silent now.
    fn view() -> ClusterView {
        let member = Member {
            address: "192.0.2.7:7480".parse().unwrap(),
            incarnation: 1,
            state: NodeState::Suspect,
            mode: ClusterMode::default(),
            last_seen: Timestamp::default(),
            profile: None,
            usage: NodeUsage::default(),
            sessions: BTreeMap::new(),
            catalogue: None,
        };
        let members = BTreeMap::from([("aacc222222222222".parse().unwrap(), Arc::new(member))]);
        ClusterView { members, ..ClusterView::default() }
    }

    #[test]
    fn every_resource_has_its_figures() {
        let text = rendered();
        for line in [
            r#"ostler_node_cores{node="one",figure="physical"} 6.0"#,
            r#"ostler_node_cores{node="one",figure="effective"} 12.0"#,
            r#"ostler_node_cores{node="one",figure="allocated"} 2.5"#,
            r#"ostler_node_enabled{node="one"} 1.0"#,
            r#"ostler_node_condition{node="one",condition="low_disk"} 0.0"#,
            r#"ostler_nodes{node="one",state="alive"} 1.0"#,
            r#"ostler_nodes{node="one",state="suspect"} 1.0"#,
            r#"ostler_nodes{node="one",state="left"} 0.0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn unknown_figures_are_omitted_and_removed_sessions_are_not_counted() {
        let text = rendered();
        assert!(!text.contains(r#"ostler_node_cores{node="one",figure="utilized"}"#));
        assert!(text.contains(r#"ostler_sessions{node="one",state="running"} 1.0"#));
        assert!(text.contains(r#"ostler_sessions{node="one",state="failed"} 0.0"#));
    }
}
