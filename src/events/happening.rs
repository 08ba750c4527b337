//! The sentences and facts of events: one function for each kind.

mod catalogue;
mod cluster;
mod host;
mod node;
mod session;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::types::{EventKind, EventTarget, Severity, TargetKind};

/// Something that happened, before it has a number and a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Happening {
    pub kind: EventKind,
    pub severity: Severity,
    pub target: Option<EventTarget>,
    pub message: String,
    pub data: Map<String, Value>,
}

impl Happening {
    pub(super) fn of(kind: EventKind, message: impl Into<String>) -> Self {
        Self { kind, severity: kind.severity(), target: None, message: message.into(), data: Map::new() }
    }

    fn about(mut self, kind: TargetKind, id: impl ToString, name: Option<String>) -> Self {
        self.target = Some(EventTarget { kind, id: id.to_string(), name });
        self
    }

    /// Adds a fact, which [`EventKind::fields`] lists. One that is null is left out.
    pub(super) fn with(mut self, field: &str, fact: impl Serialize) -> Self {
        debug_assert!(self.kind.fields().contains(&field), "{} has no field {field}", self.kind);
        match serde_json::to_value(fact) {
            Ok(Value::Null) | Err(_) => {}
            Ok(fact) => drop(self.data.insert(field.to_owned(), fact)),
        }
        self
    }

    const fn severe(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}

#[cfg(test)]
mod tests;
