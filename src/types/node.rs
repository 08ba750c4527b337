//! A node as the API shows it, and the settings that its operator may change.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text::words;
use super::{
    Bytes, Condition, Cores, Dimension, Gpu, GpuSharing, Invalid, Name, NodeId, NodeProfile, NodeUsage, Platform,
    SessionId, Timestamp, schema,
};

pub type Labels = BTreeMap<String, String>;
/// Labels to set; `null` removes one (RFC 7396).
pub type LabelsPatch = BTreeMap<String, Option<String>>;

const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 63;
/// Overrides above these are typing errors on any host: 65,536 cores, 1 PiB, 1,024 GPUs.
const MAX_CORES_OVERRIDE: Cores = Cores::whole(65_536);
const MAX_MEMORY_OVERRIDE: Bytes = Bytes::gib(1 << 20);
const MAX_GPUS_OVERRIDE: u32 = super::workspace::MAX_GPUS;

/// Which images a node removes by itself, of those that are ostler's and that nothing uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prune {
    Off,
    /// Those without a name.
    #[default]
    Normal,
    /// Those without a name, and those that no workspace names.
    Aggressive,
}
words!(Prune { Off => "off", Normal => "normal", Aggressive => "aggressive" });

/// The settings of a node. An override of 0 means no override.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Settings {
    /// Whether the node admits new sessions. Sessions that it has go on either way.
    pub enabled: bool,
    pub prune: Prune,
    pub cores_override: Cores,
    pub memory_override_bytes: Bytes,
    pub gpus_override: u32,
    pub gpu_sharing: GpuSharing,
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            prune: Prune::default(),
            cores_override: Cores::ZERO,
            memory_override_bytes: Bytes::ZERO,
            gpus_override: 0,
            gpu_sharing: GpuSharing::default(),
            labels: Labels::new(),
        }
    }
}

/// The settings to change: any subset.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingsPatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<Prune>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::cores_override, required = false)]
    pub cores_override: Option<Cores>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::memory_override, required = false)]
    pub memory_override_bytes: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1024)]
    pub gpus_override: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_sharing: Option<GpuSharing>,
    /// Labels to set on the node; `null` removes a label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::labels_patch, required = false)]
    pub labels: Option<LabelsPatch>,
}

impl SettingsPatch {
    /// Checks the figures and labels against the bounds that hold for any host.
    pub fn validate(&self) -> Result<(), Invalid> {
        if let Some(cores) = self.cores_override
            && cores > MAX_CORES_OVERRIDE
        {
            let bound = format!("{cores} is out of range; expected 0 (no override) to {MAX_CORES_OVERRIDE}");
            return Err(Invalid::new("cores_override", bound));
        }
        if let Some(memory) = self.memory_override_bytes
            && memory > MAX_MEMORY_OVERRIDE
        {
            let bound = format!("{memory} is out of range; expected 0 (no override) to {MAX_MEMORY_OVERRIDE}");
            return Err(Invalid::new("memory_override_bytes", bound));
        }
        if let Some(gpus) = self.gpus_override
            && gpus > MAX_GPUS_OVERRIDE
        {
            let bound = format!("{gpus} is out of range; expected 0 (no override) to {MAX_GPUS_OVERRIDE}");
            return Err(Invalid::new("gpus_override", bound));
        }
        if let Some(labels) = &self.labels {
            let set = labels.iter().map(|(key, value)| (key.clone(), value.clone().unwrap_or_default())).collect();
            check_labels("labels", &set)?;
        }
        Ok(())
    }

    /// The names of the settings that the patch contains.
    pub fn fields(&self) -> Vec<&'static str> {
        [
            ("enabled", self.enabled.is_some()),
            ("prune", self.prune.is_some()),
            ("cores_override", self.cores_override.is_some()),
            ("memory_override_bytes", self.memory_override_bytes.is_some()),
            ("gpus_override", self.gpus_override.is_some()),
            ("gpu_sharing", self.gpu_sharing.is_some()),
            ("labels", self.labels.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect()
    }

    /// The settings with the patch applied.
    pub fn apply(&self, settings: &Settings) -> Settings {
        let mut labels = settings.labels.clone();
        for (key, value) in self.labels.iter().flatten() {
            match value {
                Some(value) => labels.insert(key.clone(), value.clone()),
                None => labels.remove(key),
            };
        }
        Settings {
            enabled: self.enabled.unwrap_or(settings.enabled),
            prune: self.prune.unwrap_or(settings.prune),
            cores_override: self.cores_override.unwrap_or(settings.cores_override),
            memory_override_bytes: self.memory_override_bytes.unwrap_or(settings.memory_override_bytes),
            gpus_override: self.gpus_override.unwrap_or(settings.gpus_override),
            gpu_sharing: self.gpu_sharing.unwrap_or(settings.gpu_sharing),
            labels,
        }
    }
}

/// Checks labels: at most 64; keys of 1 to 63 letters, digits and `. _ - /`; values of at most 63 printable ASCII
/// characters.
pub(super) fn check_labels(field: &str, labels: &Labels) -> Result<(), Invalid> {
    if labels.len() > MAX_LABELS {
        return Err(Invalid::new(field, format!("{} labels; at most {MAX_LABELS}", labels.len())));
    }
    for (key, value) in labels {
        let shown: String = key.chars().take(MAX_LABEL).collect();
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
        if key.is_empty() || key.len() > MAX_LABEL || !key.bytes().all(fine) {
            let expected = format!("expected 1 to {MAX_LABEL} characters of letters, digits and . _ - /");
            return Err(Invalid::new(format!("{field}.{shown}"), expected));
        }
        if value.len() > MAX_LABEL || !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            let expected = format!("expected a value of at most {MAX_LABEL} printable ASCII characters");
            return Err(Invalid::new(format!("{field}.{shown}"), expected));
        }
    }
    Ok(())
}

/// A node's state as the answering node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    Alive,
    Suspect,
    Unknown,
    Left,
}
words!(NodeState { Alive => "alive", Suspect => "suspect", Unknown => "unknown", Left => "left" });

impl<T: Copy + Default + PartialEq> Figures<T> {
    /// What the node offers; `None` if neither an override nor physical says it.
    pub fn offered(&self) -> Option<T> {
        (self.physical.is_some() || self.effective != T::default()).then_some(self.effective)
    }
}

/// The figures of one resource of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Figures<T> {
    /// What the host has; `null` if it is not known, for example before the container engine has reported it.
    pub physical: Option<T>,
    /// What the operator set to be offered instead; 0: no override.
    #[serde(rename = "override")]
    pub override_: T,
    /// What the node offers: the override if it is not 0, else physical, or 0 if that is not known.
    pub effective: T,
    /// The sum of what the admitted sessions reserve.
    pub allocated: T,
    /// `max(0, effective - allocated)`
    pub available: T,
    /// The measured use, processes outside ostler included; `null` if unknown.
    pub utilized: Option<T>,
    pub utilized_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeResources {
    pub cores: Figures<Cores>,
    pub memory_bytes: Figures<Bytes>,
    pub gpus: Figures<u32>,
}

/// A file system that holds the images or the agent's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    pub path: String,
    pub total_bytes: Bytes,
    /// Free for every user, without the blocks that are reserved for root.
    pub free_bytes: Bytes,
    /// `null` if the file system has no fixed number of inodes, as btrfs.
    #[serde(default)]
    pub inodes: Option<Inodes>,
}

/// The inodes of a file system: each file and directory takes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Inodes {
    pub total: u64,
    pub free: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Swap {
    pub total_bytes: Bytes,
    pub used_bytes: Bytes,
}

/// The share of time, 0 to 1, in which at least one process waited for a resource: what overcommitment costs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Pressure {
    pub cpu: Option<f64>,
    pub memory: Option<f64>,
    pub io: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeKind {
    Docker,
    Process,
}
words!(RuntimeKind { Docker => "docker", Process => "process" });

/// The runtime that runs the sessions, and whether it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuntimeStatus {
    pub kind: RuntimeKind,
    pub version: Option<String>,
    pub available: bool,
    /// The platform of the images that it runs, as `linux/amd64`; `null`: not known.
    #[schema(value_type = Option<String>)]
    pub platform: Option<Platform>,
    /// Why the runtime does not answer; or how it hands GPUs to containers, and what it cannot do on this host.
    pub message: Option<String>,
}

/// What reading the configuration again did, key by key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Refreshed {
    /// Keys whose value or file has changed, and is in force now.
    pub applied: Vec<String>,
    /// Keys whose value or file has changed, and takes effect with the next start of the agent.
    pub needs_restart: Vec<String>,
    pub unchanged: Vec<String>,
}

/// A request to drain a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Seconds until the drain should be over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3153600000i64)]
    pub deadline_seconds: Option<u64>,
    /// Stop the sessions that are left at the deadline; without a deadline, at once.
    #[serde(default)]
    pub stop_sessions: bool,
    /// Why the node drains, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1024)]
    pub message: Option<String>,
}

impl DrainRequest {
    const MAX_MESSAGE: usize = 1024;

    pub fn validate(&self) -> Result<(), Invalid> {
        if self.message.as_ref().is_some_and(|m| m.len() > Self::MAX_MESSAGE) {
            return Err(Invalid::new("message", format!("at most {} bytes", Self::MAX_MESSAGE)));
        }
        super::workspace::check_spans(self.deadline_seconds, None)
            .map_err(|e| Invalid::new("deadline_seconds", e.message))
    }
}

/// A drain in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    pub since: Timestamp,
    pub deadline: Option<Timestamp>,
    pub stop_sessions: bool,
    pub message: Option<String>,
    /// The sessions that still hold a reservation on the node.
    pub blockers: Vec<SessionId>,
}

/// A node as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    pub id: NodeId,
    pub name: Name,
    pub address: String,
    pub version: String,
    pub state: NodeState,
    pub enabled: bool,
    pub is_leader: bool,
    pub last_seen: Timestamp,
    pub runtime: RuntimeStatus,
    pub resources: NodeResources,
    pub disk: Option<Disk>,
    pub swap: Option<Swap>,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    /// `null` if the kernel does not tell it.
    #[serde(default)]
    pub pressure: Option<Pressure>,
    pub gpus: Vec<Gpu>,
    /// Sessions that hold a reservation.
    pub sessions: u32,
    pub settings: Settings,
    /// The settings that the node's configuration file declares; the API cannot change them.
    pub declared_settings: Vec<String>,
    pub drain: Option<Drain>,
    pub conditions: Vec<Condition>,
}

/// How this node sees another: the fields of [`Node`] that neither profile nor usage have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    pub state: NodeState,
    pub is_leader: bool,
    pub last_seen: Timestamp,
}

impl Node {
    /// Joins the profile, the usage and the sighting of a node.
    pub fn of(profile: &NodeProfile, usage: &NodeUsage, seen: Sighting) -> Self {
        Self {
            id: profile.id,
            name: profile.name.clone(),
            address: profile.address.clone(),
            version: profile.version.clone(),
            state: seen.state,
            enabled: profile.settings.enabled,
            is_leader: seen.is_leader,
            last_seen: seen.last_seen,
            runtime: profile.runtime.clone(),
            resources: NodeResources::of(profile, usage),
            disk: usage.disk.clone(),
            swap: usage.swap.clone(),
            load: usage.load,
            pressure: usage.pressure,
            gpus: profile.gpus.iter().map(|gpu| Gpu::of(gpu, &profile.name, usage.gpus.get(&gpu.uuid))).collect(),
            sessions: profile.sessions,
            settings: profile.settings.clone(),
            declared_settings: profile.declared_settings.clone(),
            drain: profile.drain.clone(),
            conditions: profile.conditions.clone(),
        }
    }
}

impl NodeResources {
    fn of(profile: &NodeProfile, usage: &NodeUsage) -> Self {
        let NodeProfile { physical, effective, allocated, settings, .. } = profile;
        let available = effective.saturating_sub(*allocated);
        Self {
            cores: Figures {
                physical: physical.known(Dimension::Cores).then_some(physical.cores),
                override_: settings.cores_override,
                effective: effective.cores,
                allocated: allocated.cores,
                available: available.cores,
                utilized: usage.cores,
                utilized_at: usage.cores.map(|_| usage.at),
            },
            memory_bytes: Figures {
                physical: physical.known(Dimension::MemoryBytes).then_some(physical.memory),
                override_: settings.memory_override_bytes,
                effective: effective.memory,
                allocated: allocated.memory,
                available: available.memory,
                utilized: usage.memory_bytes,
                utilized_at: usage.memory_bytes.map(|_| usage.at),
            },
            gpus: Figures {
                physical: Some(physical.gpus),
                override_: settings.gpus_override,
                effective: effective.gpus,
                allocated: allocated.gpus,
                available: available.gpus,
                utilized: None,
                utilized_at: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_changes_what_it_names_and_null_removes_a_label() {
        let patch: SettingsPatch =
            serde_json::from_str(r#"{"cores_override":12,"labels":{"rack":"3","old":null}}"#).unwrap();
        assert_eq!(patch.fields(), ["cores_override", "labels"]);
        let mut settings = Settings::default();
        settings.labels.insert("old".to_owned(), "1".to_owned());
        let changed = patch.apply(&settings);
        assert_eq!(changed.cores_override, Cores::whole(12));
        assert_eq!(changed.labels, Labels::from([("rack".to_owned(), "3".to_owned())]));
        assert_eq!((changed.enabled, changed.gpu_sharing), (settings.enabled, settings.gpu_sharing));
    }

    #[test]
    fn overrides_out_of_range_are_rejected() {
        let refused = |json: &str| serde_json::from_str::<SettingsPatch>(json).unwrap().validate().unwrap_err().field;
        assert_eq!(refused(r#"{"cores_override": 65537}"#), "cores_override");
        assert_eq!(refused(r#"{"memory_override_bytes": 2251799813685248}"#), "memory_override_bytes");
        assert_eq!(refused(r#"{"gpus_override": 2000}"#), "gpus_override");
        assert_eq!(refused(r#"{"labels": {"a b": "1"}}"#), "labels.a b");
        assert!(serde_json::from_str::<SettingsPatch>(r#"{"cores_override": -1}"#).is_err());
        assert!(serde_json::from_str::<SettingsPatch>(r#"{"cores_override": NaN}"#).is_err());
    }
}
