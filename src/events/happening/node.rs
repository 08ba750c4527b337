//! What happens to this node: its agent, clock, configuration, settings, drains and conditions.

use serde_json::Value;

use super::Happening;
use crate::types::{Condition, ConditionKind, EventKind, Name, NodeId, Refreshed, SessionId, Settings, TargetKind};

/// Blockers that an event lists at most.
const MAX_LISTED: usize = 20;

impl Happening {
    /// `unclean`: the agent before was killed, or the host lost its power.
    pub fn agent_started(version: &str, unclean: bool) -> Self {
        let how = if unclean { ", after one that was not stopped cleanly" } else { "" };
        Self::of(EventKind::AgentStarted, format!("the agent {version} started{how}"))
            .with("version", version)
            .with("unclean", unclean)
    }

    pub fn agent_stopped(version: &str) -> Self {
        Self::of(EventKind::AgentStopped, format!("the agent {version} stopped")).with("version", version)
    }

    /// `seconds`: how far the clock was set forward; back, if it is negative.
    pub fn clock_stepped(seconds: f64) -> Self {
        let how = if seconds < 0.0 { "back" } else { "forward" };
        Self::of(EventKind::ClockStepped, format!("the clock was set {how} by {:.1} s", seconds.abs()))
            .with("seconds", seconds)
    }

    pub fn configuration_changed(refreshed: &Refreshed) -> Self {
        let Refreshed { applied, needs_restart, .. } = refreshed;
        let mut said = Vec::new();
        if !applied.is_empty() {
            said.push(format!("in force: {}", applied.join(", ")));
        }
        if !needs_restart.is_empty() {
            said.push(format!("with the next start of the agent: {}", needs_restart.join(", ")));
        }
        Self::of(EventKind::ConfigurationChanged, format!("the configuration changed; {}", said.join("; ")))
            .with("applied", applied)
            .with("needs_restart", needs_restart)
    }

    pub fn events_dropped(count: u64) -> Self {
        let message = format!("{count} events were not written: more came than the log takes");
        Self::of(EventKind::EventsDropped, message).with("count", count)
    }

    /// One for each setting that differs.
    pub fn settings_changed(id: &NodeId, name: &Name, before: &Settings, after: &Settings) -> Vec<Self> {
        let (before, after) = (fields(before), fields(after));
        let changed = after.into_iter().filter_map(|(field, to)| {
            let from = before.get(&field).cloned().unwrap_or_default();
            (from != to).then_some((field, from, to))
        });
        changed
            .map(|(field, from, to)| {
                let message = format!("{field} of {name} changed from {} to {}", plain(&from), plain(&to));
                Self::of(EventKind::SettingsChanged, message)
                    .about(TargetKind::Node, id, Some(name.to_string()))
                    .with("field", field)
                    .with("from", from)
                    .with("to", to)
            })
            .collect()
    }

    /// `deadline`: in words.
    pub fn drain_started(id: &NodeId, name: &Name, deadline: Option<u64>, stops: bool, reason: Option<&str>) -> Self {
        let mut message = format!("{name} drains: it admits no new sessions");
        match (deadline, stops) {
            (Some(seconds), true) => message += &format!("; sessions that are left after {seconds} s are stopped"),
            (Some(seconds), false) => message += &format!("; sessions should have left after {seconds} s"),
            (None, true) => message += "; its sessions are stopped",
            (None, false) => {}
        }
        Self::of(EventKind::DrainStarted, message)
            .about(TargetKind::Node, id, Some(name.to_string()))
            .with("deadline", deadline)
            .with("stop_sessions", stops)
            .with("reason", reason)
    }

    pub fn drain_done(id: &NodeId, name: &Name) -> Self {
        Self::of(EventKind::DrainDone, format!("{name} is drained: no session is left on it")).about(
            TargetKind::Node,
            id,
            Some(name.to_string()),
        )
    }

    pub fn drain_overdue(id: &NodeId, name: &Name, blockers: &[SessionId]) -> Self {
        let message =
            format!("the deadline of the drain of {name} has passed, and {} sessions are left", blockers.len());
        Self::of(EventKind::DrainOverdue, message)
            .about(TargetKind::Node, id, Some(name.to_string()))
            .with("blockers", blockers.iter().take(MAX_LISTED).collect::<Vec<_>>())
    }

    pub fn drain_ended(id: &NodeId, name: &Name) -> Self {
        Self::of(EventKind::DrainEnded, format!("the drain of {name} ended: it admits sessions again")).about(
            TargetKind::Node,
            id,
            Some(name.to_string()),
        )
    }

    pub fn condition_raised(condition: &Condition) -> Self {
        let Condition { kind, message, .. } = condition;
        Self::of(EventKind::ConditionRaised, format!("{kind}: {message}")).with("kind", kind)
    }

    pub fn condition_cleared(kind: ConditionKind) -> Self {
        Self::of(EventKind::ConditionCleared, format!("{kind} does not hold any more")).with("kind", kind)
    }
}

fn fields(settings: &Settings) -> serde_json::Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
