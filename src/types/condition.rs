//! What the operator of a node should know.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;
use super::text::words;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConditionKind {
    /// Sessions reserve more than the node offers. The node admits no more of that resource and stops no session.
    Overcommitted,
    /// The node offers more memory than RAM and swap hold: the kernel may kill sessions that use it.
    MemoryOvercommitWithoutSwap,
    /// `gpus_override` is set, but the host has no GPU.
    GpuOverrideInactive,
    /// GPUs that were there since the host booted are not found any more. Sessions on them go on as far as they can.
    GpuLost,
    /// GPUs reported a fault that needs a reset or a repair: they take no new sessions.
    GpuFailing,
    /// Processes of sessions that have ended are still on GPUs: they take no new sessions.
    GpuQuarantined,
    /// GPUs are hotter than `gpu.max_temperature_celsius`: they take no new sessions.
    GpuHot,
    /// Processes that are not of ostler's sessions use much of the memory of GPUs: they take no new sessions.
    GpuForeignUse,
    /// Sessions use more GPU memory than their workspace's `gpu_memory_bytes`.
    GpuMemoryExceeded,
    /// The NVIDIA driver does not answer.
    GpuDriverHung,
    /// NVIDIA's library and kernel module are of different versions.
    GpuDriverMismatch,
    /// The NVIDIA driver is too old to report memory and processes.
    GpuDriverOld,
    /// A GPU is in MIG mode, and its instances cannot be given to sessions.
    MigUnsupported,
    /// The container engine cannot give GPUs to containers: the node offers none.
    GpuRuntimeMissing,
    /// A `systemctl daemon-reload` may cut running sessions off their GPUs.
    GpuReloadHazard,
    /// A GPU override is above the number of GPUs, and `gpu_sharing` keeps sessions from using all of it.
    GpuSharingLimitsOverride,
    RuntimeUnavailable,
    /// The container engine is none that ostler works with: the node admits no session.
    EngineUnsupported,
    /// The container engine is in a cgroup that allows less than it reports.
    EngineLimited,
    /// The runtime cannot enforce all limits on this host.
    LimitsNotEnforced,
    /// The journal of sessions could not be read. The agent moved it aside and rebuilt it from container labels.
    JournalRebuilt,
    /// The records of pulled images could not be read, and the agent moved them aside: it takes the images that were
    /// there for those of other programs.
    ImagesRecordLost,
    /// The data directory is full: the node admits no session and stores no change.
    DataDirectoryFull,
    /// The event log cannot be written: events wait in memory.
    EventsUnwritable,
    /// The history cannot be written: what is measured meanwhile is not kept.
    HistoryUnwritable,
    /// Another program renamed the containers of sessions. They stay the sessions' containers.
    ContainerRenamed,
    /// Containers have the labels of sessions and are not their containers: they may use what the node offers.
    StrayContainers,
    /// The engine could not make or use the network of a session.
    NetworkFailing,
    /// A registry did not give an image.
    RegistryFailing,
    /// A registry limits pulls (429): pulls from it wait.
    RegistryLimited,
    /// The last sessions all failed to start on this node.
    FailingStarts,
    /// The file system of the images is above `images.high_watermark`, and a prune cannot free more of it.
    DiskPressure,
    /// Less disk is free than `limits.min_free_disk`, or few inodes: the node admits no session.
    LowDisk,
    /// Another live node has this node's id, as after a copy of its disk: the node admits no session.
    DuplicateNodeId,
    /// Seeds are configured, and no other node has ever answered.
    AloneWithSeeds,
    /// A node cannot be reached for a cause that does not pass by itself: another token, a clock that was never set, or
    /// a path too narrow for QUIC.
    MeshFailing,
    /// Other nodes have a different `cluster.mode` or `cluster.expected_nodes`: this node does not count their votes.
    ModeMismatch,
    /// Catalogue entries were changed on both sides of a partition: one of the two changes is lost.
    WorkspaceConflict,
    /// Figures come from the `[dev]` section of the configuration; they are not measured.
    DevFigures,
}
words!(ConditionKind {
    Overcommitted => "overcommitted",
    MemoryOvercommitWithoutSwap => "memory_overcommit_without_swap",
    GpuOverrideInactive => "gpu_override_inactive",
    GpuLost => "gpu_lost",
    GpuFailing => "gpu_failing",
    GpuQuarantined => "gpu_quarantined",
    GpuHot => "gpu_hot",
    GpuForeignUse => "gpu_foreign_use",
    GpuMemoryExceeded => "gpu_memory_exceeded",
    GpuDriverHung => "gpu_driver_hung",
    GpuDriverMismatch => "gpu_driver_mismatch",
    GpuDriverOld => "gpu_driver_old",
    MigUnsupported => "mig_unsupported",
    GpuRuntimeMissing => "gpu_runtime_missing",
    GpuReloadHazard => "gpu_reload_hazard",
    GpuSharingLimitsOverride => "gpu_sharing_limits_override",
    RuntimeUnavailable => "runtime_unavailable",
    EngineUnsupported => "engine_unsupported",
    EngineLimited => "engine_limited",
    LimitsNotEnforced => "limits_not_enforced",
    JournalRebuilt => "journal_rebuilt",
    ImagesRecordLost => "images_record_lost",
    DataDirectoryFull => "data_directory_full",
    EventsUnwritable => "events_unwritable",
    HistoryUnwritable => "history_unwritable",
    ContainerRenamed => "container_renamed",
    StrayContainers => "stray_containers",
    NetworkFailing => "network_failing",
    RegistryFailing => "registry_failing",
    RegistryLimited => "registry_limited",
    FailingStarts => "failing_starts",
    DiskPressure => "disk_pressure",
    LowDisk => "low_disk",
    DuplicateNodeId => "duplicate_node_id",
    AloneWithSeeds => "alone_with_seeds",
    MeshFailing => "mesh_failing",
    ModeMismatch => "mode_mismatch",
    WorkspaceConflict => "workspace_conflict",
    DevFigures => "dev_figures",
});

/// A state of a node that its operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    pub kind: ConditionKind,
    pub message: String,
    pub since: Timestamp,
}
