//! Several values of a query in one parameter, separated by commas.

use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::types::{EventKind, Name};

/// Values of one parameter at most: more than there are kinds of anything.
const MAX_VALUES: usize = 64;

/// Kinds of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EventKinds(pub(super) Vec<EventKind>);

/// Names of nodes, ids, unique prefixes of ids, or `self`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeNames(pub(super) Vec<Name>);

impl<'de> Deserialize<'de> for EventKinds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        listed(from).map(Self)
    }
}

impl<'de> Deserialize<'de> for NodeNames {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        listed(from).map(Self)
    }
}

fn listed<'de, T: FromStr<Err = String>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let text = String::deserialize(from)?;
    if text.split(',').count() > MAX_VALUES {
        return Err(serde::de::Error::custom(format!("more than {MAX_VALUES} values")));
    }
    text.split(',').map(str::parse).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

fn list_of(one: &str) -> RefOr<Schema> {
    let pattern = format!("^{one}(,{one}){{0,{}}}$", MAX_VALUES - 1);
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).into()
}

impl PartialSchema for EventKinds {
    fn schema() -> RefOr<Schema> {
        let words: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
        list_of(&format!("({})", words.join("|")))
    }
}

impl PartialSchema for NodeNames {
    fn schema() -> RefOr<Schema> {
        list_of("[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
    }
}

impl ToSchema for EventKinds {}
impl ToSchema for NodeNames {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_separated_by_commas_and_each_must_be_valid() {
        let read = |text: &str| serde_json::from_value::<EventKinds>(text.into()).map(|kinds| kinds.0);
        assert_eq!(read("node_lost,refused").unwrap(), [EventKind::NodeLost, EventKind::Refused]);
        for wrong in ["", ",", "node_lost,", "node_lost, refused", "nodes_lost", &["refused"; 65].join(",")] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
