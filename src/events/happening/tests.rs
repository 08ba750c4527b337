use std::time::Duration;

use super::*;
use crate::types::{
    Bytes, Condition, ConditionKind, Dimension, ErrorCode, ImageReference, Name, NodeId, Prune, Refreshed, Role,
    SessionState, Settings, Timestamp, sample,
};

fn id() -> NodeId {
    NodeId::from_bytes([1; 10])
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// One happening of every kind, with every fact.
fn each() -> Vec<Happening> {
    let (id, host, image) = (id(), name("host-a"), ImageReference::parse("busybox:1").unwrap());
    let mut session = sample::session_profile("key", "desktop", "alice", SessionState::Stopped);
    session.end_reason = Some(crate::types::EndReason::Exited);
    session.exit_code = Some(0);
    session.expires_at = Some(Timestamp::from_millis(0));
    let condition =
        Condition { kind: ConditionKind::LowDisk, message: "little".to_owned(), since: Timestamp::from_millis(0) };
    let refreshed = Refreshed {
        applied: vec!["log.level".to_owned()],
        needs_restart: vec!["http.listen".to_owned()],
        unchanged: Vec::new(),
    };
    let token = crate::types::ApiToken { expires_at: Some(Timestamp::from_millis(0)), ..sample::api_token(Role::Read) };
    let workspace = sample::workspace("desktop");
    let changed = Settings { enabled: false, ..Settings::default() };
    vec![
        Happening::agent_started("1.0.0", true),
        Happening::agent_stopped("1.0.0"),
        Happening::clock_stepped(-3.0),
        Happening::configuration_changed(&refreshed),
        Happening::events_dropped(3),
        Happening::node_joined(&id, &host, "10.0.0.1"),
        Happening::node_left(&id, &host),
        Happening::node_lost(&id, &host, Duration::from_secs(22)),
        Happening::node_back(&id, &host, "10.0.0.1"),
        Happening::node_forgotten(&id, &host),
        Happening::leader_elected(&id, &host, 7, Some("host-b")),
        Happening::leader_lost(&id, &host, 7),
        Happening::session_created(&session),
        Happening::session_started(&session),
        Happening::session_paused(&session),
        Happening::session_resumed(&session),
        Happening::session_extended(&session),
        Happening::session_ended(&session),
        Happening::session_removed(&session),
        Happening::session_moved(&session, Some(&id)),
        Happening::session_duplicate(&session.id, "host-a", Some("host-b")),
        Happening::session_forgotten(&session.id, "host-c"),
        Happening::refused(&workspace.name, ErrorCode::NoCapacity, Some(Dimension::Cores), "no node has room"),
        Happening::request_refused("POST", "/v1/tokens", ErrorCode::Forbidden, "role admin is needed").with("count", 1),
        Happening::settings_changed(&id, &host, &Settings::default(), &changed).remove(0),
        Happening::drain_started(&id, &host, Some(60), true, Some("new disk")),
        Happening::drain_done(&id, &host),
        Happening::drain_overdue(&id, &host, &[session.id]),
        Happening::drain_ended(&id, &host),
        Happening::condition_raised(&condition),
        Happening::condition_cleared(ConditionKind::LowDisk),
        Happening::workspace_changed(&workspace, &crate::types::Workspace { gpus: 1, ..workspace.clone() }),
        Happening::workspace_conflict(&workspace.name),
        Happening::token_created(&token),
        Happening::token_revoked(&token),
        Happening::volume_removed("home-alice"),
        Happening::image_pulled(&image, Some(Bytes::gib(1)), Duration::from_millis(1234), "registry"),
        Happening::image_failed(&image, "no such image"),
        Happening::image_pruned(2, Some(Bytes::gib(1)), Prune::Normal),
        Happening::prune_refused("another prune runs"),
        Happening::image_changed("sha256:1", Some("busybox:1"), "pinned"),
        Happening::gpu_lost("GPU-1", "H100", "it fell off the bus"),
        Happening::gpu_back("GPU-1", "H100"),
        Happening::gpu_hot("GPU-1", "H100", Some(91.0)),
        Happening::gpu_cordoned("GPU-1"),
        Happening::gpu_uncordoned("GPU-1"),
        Happening::gpu_forgotten("GPU-1"),
    ]
}

#[test]
fn there_is_one_happening_of_every_kind_with_the_facts_of_its_kind() {
    let each = each();
    let kinds: Vec<EventKind> = each.iter().map(|happening| happening.kind).collect();
    assert_eq!(kinds, EventKind::ALL);
    for happening in each {
        let mut listed = happening.kind.fields().to_vec();
        // These are added later.
        listed.retain(|field| !(happening.kind == EventKind::Refused && *field == "count"));
        let facts: Vec<&str> = listed.iter().copied().filter(|field| happening.data.contains_key(*field)).collect();
        assert!(happening.data.len() == facts.len(), "{}: {:?}", happening.kind, happening.data);
        // A change of a workspace names its fields, the addition and the removal have none: each is of one kind.
        assert_eq!(facts, listed, "{}", happening.kind);
        assert!(!happening.message.is_empty());
    }
}

#[test]
fn only_settings_that_differ_are_told_each_with_both_values() {
    let before = Settings::default();
    let after = Settings { enabled: false, gpus_override: 10, ..before.clone() };
    let told = Happening::settings_changed(&id(), &name("host-a"), &before, &after);
    let messages: Vec<&str> = told.iter().map(|happening| happening.message.as_str()).collect();
    assert_eq!(
        messages,
        ["enabled of host-a changed from true to false", "gpus_override of host-a changed from 0 to 10"]
    );
    assert_eq!(Happening::settings_changed(&id(), &name("host-a"), &before, &before), []);
}

#[test]
fn a_session_that_failed_is_a_warning_and_says_why() {
    let mut session = sample::session_profile("key", "desktop", "alice", SessionState::Stopped);
    assert_eq!(Happening::session_ended(&session).severity, Severity::Info);
    session.state = SessionState::Failed;
    session.end_reason = Some(crate::types::EndReason::OomKilled);
    session.message = Some("it used more than 1 GiB".to_owned());
    let ended = Happening::session_ended(&session);
    assert_eq!(ended.severity, Severity::Warning);
    assert!(ended.message.ends_with("(desktop) failed: oom_killed; it used more than 1 GiB"), "{}", ended.message);
}

#[test]
fn a_changed_workspace_names_its_fields_and_no_value() {
    let before = sample::workspace("desktop");
    let mut after = before.clone();
    after.env.insert("PASSWORD".to_owned(), "canary".to_owned());
    after.gpus = 1;
    let changed = Happening::workspace_changed(&before, &after);
    assert_eq!(changed.message, "workspace desktop was changed: env, gpus");
    assert!(!serde_json::to_string(&changed.data).unwrap().contains("canary"));
}
