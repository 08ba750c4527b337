use std::sync::LazyLock;

use super::*;
use crate::capacity::probe::cgroup::EngineBounds;
use crate::gpu::{self, Device};
use crate::ledger::PortRange;
use crate::node::fixture;
use crate::runtime::gpus::EngineGpus;
use crate::runtime::{EngineInfo, GpuSupport};
use crate::sessions::Rebuilt;
use crate::types::{Cores, Disk, GpuSharing, Inodes, Period};

/// The conditions that hold after a change to a host without conditions.
fn found(change: impl FnOnce(&mut Report, &mut State, &mut Snapshot, &mut Health)) -> Vec<(ConditionKind, String)> {
    let (mut report, mut node, mut sessions) = (fixture::report(), fixture::state(), Snapshot::default());
    let mut health = Health::Unknown;
    change(&mut report, &mut node, &mut sessions, &mut health);
    found_of(&report, &node, &sessions, &health, &ClusterSigns::default())
}

fn found_in_cluster(signs: &ClusterSigns) -> Vec<(ConditionKind, String)> {
    found_of(&fixture::report(), &fixture::state(), &Snapshot::default(), &Health::Unknown, signs)
}

fn found_of(
    report: &Report,
    node: &State,
    sessions: &Snapshot,
    health: &Health,
    cluster: &ClusterSigns,
) -> Vec<(ConditionKind, String)> {
    evaluate(Inputs { report, node, sessions, health, cluster, ..at_rest(None) })
}

/// A host without conditions, but for the records of images.
fn at_rest(records_lost: Option<&MovedAside>) -> Inputs<'_> {
    static REST: LazyLock<(Report, State, Snapshot, ClusterSigns, images::Snapshot)> = LazyLock::new(|| {
        (fixture::report(), fixture::state(), Snapshot::default(), ClusterSigns::default(), images::Snapshot::default())
    });
    let (report, node, sessions, cluster, images) = &*REST;
    Inputs {
        report,
        node,
        sessions,
        health: &Health::Unknown,
        cluster,
        is_journal_aside: true,
        records_lost,
        min_free_disk: Bytes::gib(5),
        images,
        event_log: None,
        history: None,
    }
}

fn kinds(found: &[(ConditionKind, String)]) -> Vec<ConditionKind> {
    found.iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn a_registry_that_limits_pulls_is_named_with_the_minute_of_the_next_pull() {
    let until = |text: &str| text.parse::<Timestamp>().unwrap();
    let limited = BTreeMap::from([("docker.io".to_owned(), until("2026-11-27T19:45:00Z"))]);
    let message = registry_limited(&limited).unwrap();
    let expected = "registry docker.io limits pulls (429), and the next pull from it is at about 2026-11-27T19:45Z: ";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(registry_limited(&BTreeMap::new()), None);
}

#[test]
fn a_host_at_rest_has_no_condition() {
    assert_eq!(found(|_, _, _, _| {}), []);
}

#[test]
fn an_override_below_what_is_allocated_is_overcommitted() {
    let found = found(|_, node, sessions, _| {
        node.settings.cores_override = Cores::whole(3);
        node.settings.memory_override_bytes = Bytes::gib(4);
        sessions.allocated = Resources::new(Cores::whole(5), Bytes::gib(6), 0);
    });
    let message = "5 of 3 cores allocated, 6 GiB of 4 GiB of memory allocated".to_owned();
    assert_eq!(found, [(ConditionKind::Overcommitted, message)]);
}

#[test]
fn memory_beyond_ram_and_swap_is_overcommitted() {
    let with = |gib| kinds(&found(|_, node, _, _| node.settings.memory_override_bytes = Bytes::gib(gib)));
    assert_eq!(with(8), [], "6 GiB of RAM and 2 GiB of swap");
    assert_eq!(with(9), [ConditionKind::MemoryOvercommitWithoutSwap]);
    let unknown = found(|report, node, _, _| {
        report.swap = None;
        node.settings.memory_override_bytes = Bytes::gib(7);
    });
    assert_eq!(kinds(&unknown), [ConditionKind::MemoryOvercommitWithoutSwap]);
}

#[test]
fn what_is_not_known_is_not_overcommitted() {
    let found = found(|report, node, sessions, _| {
        report.physical = Resources::ZERO;
        node.settings.memory_override_bytes = Bytes::gib(64);
        sessions.allocated = Resources::new(Cores::whole(5), Bytes::gib(6), 0);
    });
    assert_eq!(found, []);
}

#[test]
fn a_gpu_override_without_effect_is_a_condition() {
    let with = |physical, override_, sharing| {
        kinds(&found(|report, node, _, _| {
            report.physical.gpus = physical;
            node.settings.gpus_override = override_;
            node.settings.gpu_sharing = sharing;
        }))
    };
    assert_eq!(with(0, 2, GpuSharing::Any), [ConditionKind::GpuOverrideInactive]);
    assert_eq!(with(1, 2, GpuSharing::SameUser), [ConditionKind::GpuSharingLimitsOverride]);
    assert_eq!(with(1, 2, GpuSharing::Any), []);
    assert_eq!(with(2, 2, GpuSharing::None), []);
    assert_eq!(with(2, 1, GpuSharing::None), []);
}

#[test]
fn a_runtime_that_is_down_or_enforces_no_limits_is_a_condition() {
    let down =
        |unsupported| found(|_, _, _, health| *health = Health::Down { message: "no answer".to_owned(), unsupported });
    assert_eq!(down(false), [(ConditionKind::RuntimeUnavailable, "no answer".to_owned())]);
    assert_eq!(down(true), [(ConditionKind::EngineUnsupported, "no answer".to_owned())]);
    let up = found(|_, _, _, health| {
        *health = Health::Up(EngineInfo {
            version: "1".to_owned(),
            cores: Cores::whole(6),
            memory: Bytes::gib(6),
            data_root: None,
            unenforced: vec!["cores".to_owned(), "memory".to_owned()],
            epoch: None,
            platform: None,
            images: None,
            pid: None,
            gpus: GpuSupport::default(),
        });
    });
    assert_eq!(kinds(&up), [ConditionKind::LimitsNotEnforced]);
    assert!(up[0].1.ends_with("cores, memory"), "{}", up[0].1);
}

#[test]
fn gpus_that_the_engine_cannot_hand_over_are_a_condition() {
    let with = |uuid: &str, gpus: GpuSupport| {
        kinds(&found(|report, _, _, health| {
            let device = Device::new(uuid.to_owned(), 0, "L4".to_owned());
            report.gpus = Arc::new(gpu::Snapshot { devices: vec![device], ..gpu::Snapshot::default() });
            *health = Health::Up(EngineInfo {
                version: "20.10".to_owned(),
                cores: Cores::whole(6),
                memory: Bytes::gib(6),
                data_root: None,
                unenforced: Vec::new(),
                epoch: None,
                platform: None,
                images: None,
                pid: None,
                gpus,
            });
        }))
    };
    assert_eq!(with("GPU-1", EngineGpus::default().into()), [ConditionKind::GpuRuntimeMissing]);
    assert_eq!(with("GPU-dev-0000", EngineGpus::default().into()), []);
    assert_eq!(with("GPU-1", GpuSupport::Direct), []);
}

#[test]
fn an_engine_in_a_smaller_cgroup_is_a_condition_with_both_figures() {
    let bound = Bounds { cores: Some(Cores::whole(2)), memory: Some(Bytes::gib(64)) };
    let message = |process, containers| {
        let bounds = EngineBounds { process, containers };
        let engine = EngineFigures { cores: Cores::whole(8), memory: Bytes::gib(8), bounds };
        found(|report, _, _, _| report.engine = Some(engine)).pop()
    };
    assert_eq!(message(Bounds::default(), Bounds::default()), None);
    let (kind, text) = message(bound, bound).unwrap();
    assert_eq!(kind, ConditionKind::EngineLimited);
    let both = "the container engine reports 8 cores, and its cgroup allows 2: ";
    assert_eq!(text, format!("{both}the node offers what the cgroup allows"));
    let (_, text) = message(bound, Bounds::default()).unwrap();
    assert!(text.starts_with(both) && text.contains("raise the limits of its service"), "{text}");
}

#[test]
fn signs_of_the_cluster_are_conditions() {
    let signs = ClusterSigns {
        duplicate: Some("192.0.2.1:7482".to_owned()),
        alone: Some("no answer from seed:7482".to_owned()),
        failing: vec!["192.0.2.9:7480: another token".to_owned()],
        mode_mismatch: vec!["a".parse().unwrap(), "b".parse().unwrap()],
        conflicts: vec!["workspace desktop".to_owned()],
    };
    let found = found_in_cluster(&signs);
    let expected = [
        ConditionKind::DuplicateNodeId,
        ConditionKind::AloneWithSeeds,
        ConditionKind::MeshFailing,
        ConditionKind::ModeMismatch,
        ConditionKind::WorkspaceConflict,
    ];
    assert_eq!(kinds(&found), expected);
    let parts = ["192.0.2.1:7482", "seed:7482", "192.0.2.9:7480: another token", " a, b", "workspace desktop"];
    for ((_, message), part) in found.iter().zip(parts) {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn disk_journal_starts_and_dev_figures_are_conditions() {
    let found = found(|report, _, sessions, _| {
        report.disks = vec![disk(Bytes::gib(1), 1000)];
        report.dev = true;
        let message = "moved aside".to_owned();
        sessions.journal_rebuilt = Some(Rebuilt { message, moved_to: "/d".into() });
        sessions.failing_starts = FAILING_STARTS;
        sessions.data_dir_full = Some("/var/lib/ostler".into());
    });
    let expected = [
        ConditionKind::JournalRebuilt,
        ConditionKind::DataDirectoryFull,
        ConditionKind::FailingStarts,
        ConditionKind::LowDisk,
        ConditionKind::DevFigures,
    ];
    assert_eq!(kinds(&found), expected);
}

fn disk(free_bytes: Bytes, free_inodes: u64) -> Disk {
    let inodes = Some(Inodes { total: 1000, free: free_inodes });
    Disk { path: "/d".to_owned(), total_bytes: Bytes::gib(9), free_bytes, inodes }
}

#[test]
fn a_disk_without_inodes_is_named_as_that() {
    let found = found(|report, _, _, _| report.disks = vec![disk(Bytes::gib(9), 3)]);
    assert_eq!(kinds(&found), [ConditionKind::LowDisk]);
    assert!(found[0].1.starts_with("3 of 1000 inodes are free on /d, less than 2 % (20)"), "{}", found[0].1);
}

#[test]
fn a_condition_keeps_its_start_until_it_is_cleared() {
    let at = Timestamp::from_millis;
    let low = |text: &str| vec![(ConditionKind::LowDisk, text.to_owned())];
    let first = carry(&[], low("1"), at(10));
    let second = carry(&first, low("2"), at(20));
    assert_eq!((second[0].since, second[0].message.as_str()), (at(10), "2"));
    let cleared = carry(&second, Vec::new(), at(30));
    assert_eq!(cleared, []);
    assert_eq!(carry(&cleared, low("1"), at(40))[0].since, at(40));
}

fn limits() -> sessions::Config {
    sessions::Config {
        max_sessions_per_user: 0,
        max_sessions_per_node: 0,
        keep_ended: Period::secs(60),
        stopped_retention: Period::secs(60),
        min_free_disk: Bytes::ZERO,
        max_foreign_gpu_memory: Bytes::gib(1),
        port_range: PortRange { first: 20_000, last: 20_009 },
        networks: Vec::new(),
        endpoint_host: "localhost".to_owned(),
    }
}

#[test]
fn records_of_images_that_were_lost_are_named() {
    let lost = MovedAside { reason: "/d/images.redb: no database".to_owned(), to: "/d/aside".into() };
    let found = evaluate(at_rest(Some(&lost)));
    assert_eq!(kinds(&found), [ConditionKind::ImagesRecordLost]);
    let told =
        "the records of pulled images could not be read (/d/images.redb: no database) and were moved to /d/aside:";
    assert!(found[0].1.starts_with(told) && found[0].1.contains("run: ostler image adopt IMAGE"), "{}", found[0].1);
}

#[test]
fn a_history_that_cannot_be_written_says_why() {
    let found = evaluate(Inputs { history: Some("no space left"), ..at_rest(None) });
    assert_eq!(kinds(&found), [ConditionKind::HistoryUnwritable]);
    assert!(found[0].1.contains("(no space left)"), "{}", found[0].1);
}

#[tokio::test]
async fn the_owner_evaluates_again_on_every_watch() {
    let (say_report, report) = watch::channel(Arc::new(fixture::report()));
    let (say_node, node) = watch::channel(Arc::new(fixture::state()));
    let (say_sessions, sessions) = watch::channel(Arc::new(Snapshot::default()));
    let (say_health, health) = watch::channel(Health::Unknown);
    let (publish, mut conditions) = watch::channel(Arc::new(Vec::new()));
    let (say_cluster, cluster) = watch::channel(Arc::new(ClusterSigns::default()));
    let (say_limits, limits) = watch::channel(limits());
    let (say_images, images) = watch::channel(Arc::new(images::Snapshot::default()));
    let aside = tempfile::NamedTempFile::new().unwrap();
    let (say_trouble, event_log) = watch::channel(None);
    let (_say_history, history) = watch::channel(None);
    let (events, mut recorded) = crate::events::recorder::recorder();
    let watches = Watches { report, node, sessions, health, cluster, limits, images, event_log, history };
    let owner = spawn(watches, publish, events, Clock::manual(fixture::moment()));

    say_health.send_replace(Health::Down { message: "no answer".to_owned(), unsupported: false });
    conditions.wait_for(|held| held.len() == 1).await.unwrap();
    say_report.send_modify(|report| Arc::make_mut(report).dev = true);
    conditions.wait_for(|held| held.len() == 2).await.unwrap();
    say_sessions.send_modify(|sessions| Arc::make_mut(sessions).failing_starts = 9);
    conditions.wait_for(|held| held.len() == 3).await.unwrap();
    say_node.send_modify(|node| Arc::make_mut(node).settings.gpus_override = 1);
    conditions.wait_for(|held| held.len() == 4).await.unwrap();
    say_cluster.send_modify(|signs| Arc::make_mut(signs).alone = Some("nobody".to_owned()));
    conditions.wait_for(|held| held.len() == 5).await.unwrap();
    say_limits.send_modify(|limits| limits.min_free_disk = Bytes::gib(99));
    conditions.wait_for(|held| held.len() == 6).await.unwrap();
    let lost = MovedAside { reason: "broken".to_owned(), to: aside.path().to_owned() };
    say_images.send_modify(|images| Arc::make_mut(images).records_lost = Some(lost));
    conditions.wait_for(|held| held.len() == 7).await.unwrap();
    aside.close().unwrap();
    say_images.send_modify(|_| {});
    conditions.wait_for(|held| held.len() == 6).await.unwrap();
    say_trouble.send_replace(Some("no space left".to_owned()));
    conditions.wait_for(|held| held.len() == 7).await.unwrap();
    say_trouble.send_replace(None);
    conditions.wait_for(|held| held.len() == 6).await.unwrap();
    drop((say_report, say_node, say_sessions, say_cluster, say_limits, say_images));
    say_health.send_replace(Health::Unknown);
    conditions.wait_for(|held| held.len() == 5).await.unwrap();

    drop(conditions);
    owner.await.unwrap();
    let told: Vec<String> = recorded.take().into_iter().map(|(happening, _)| happening.message).collect();
    assert!(told.iter().any(|message| message.starts_with("events_unwritable: the event log cannot")), "{told:?}");
    assert!(told.contains(&"events_unwritable does not hold any more".to_owned()), "{told:?}");
}
