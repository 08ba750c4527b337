//! Events: as a list, or as a stream while they happen.

mod stream;

pub(super) use stream::MAX_STREAMS;

use std::collections::BTreeSet;

use axum::Json as Answer;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::accept::preference;
use super::error::Refusal;
use super::extract::Query;
use super::listed::{EventKinds, NodeNames};
use super::page::Limit;
use super::{App, Shared};
use crate::types::{ErrorBody, EventFilter, EventList, EventPlace, Name, QueryTime, Severity, Timestamp};

/// Characters of a text to look for at most.
const MAX_TEXT: usize = 256;
/// The answer depends on this header of the request.
const VARY: (header::HeaderName, HeaderValue) = (header::VARY, HeaderValue::from_static("accept"));

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Only events that are not older: RFC 3339, or how long ago, as `-6h`. A stream begins with them.
    since: Option<QueryTime>,
    /// Only events that are not newer.
    until: Option<QueryTime>,
    /// Only events of these kinds, separated by commas.
    kind: Option<EventKinds>,
    /// Only events of at least this severity.
    severity: Option<Severity>,
    /// Only events of the logs of these nodes, separated by commas: names, ids, unique prefixes of ids, or `self`.
    node: Option<NodeNames>,
    /// Only events about this: a name, an id, or the beginning of an id.
    target: Option<SearchText>,
    /// Only what this one did: the name or id of a token, a user or a node; or `token`, `socket`, `node` or `system`.
    who: Option<SearchText>,
    /// Only events whose message has this text, in upper or lower case.
    q: Option<SearchText>,
    /// The start of the page: the `next_cursor` of the previous page. A stream does not take it.
    after: Option<EventCursor>,
    /// The maximum number of events in the page.
    #[serde(default)]
    limit: Limit,
}

impl EventsQuery {
    fn filter(&self, now: Timestamp) -> EventFilter {
        let text = |text: &Option<SearchText>| text.as_ref().map(|SearchText(text)| text.clone());
        EventFilter {
            since: self.since.map(|since| since.at(now)),
            until: self.until.map(|until| until.at(now)),
            kinds: self.kind.iter().flat_map(|EventKinds(kinds)| kinds).copied().collect::<BTreeSet<_>>(),
            severity: self.severity,
            target: text(&self.target),
            who: text(&self.who),
            text: text(&self.q),
        }
    }

    fn nodes(&self) -> &[Name] {
        self.node.as_ref().map_or(&[], |NodeNames(nodes)| nodes)
    }
}

/// A text to look for.
#[derive(Debug, Clone)]
pub(super) struct SearchText(String);

impl<'de> Deserialize<'de> for SearchText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if (1..=MAX_TEXT).contains(&text.chars().count()) {
            return Ok(Self(text));
        }
        Err(serde::de::Error::custom(format!("expected 1 to {MAX_TEXT} characters")))
    }
}

impl PartialSchema for SearchText {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(MAX_TEXT)).into()
    }
}
impl ToSchema for SearchText {}

/// The end of a page of events: the time of its last event in milliseconds, and its id.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventCursor(EventPlace);

impl EventCursor {
    fn text(place: EventPlace) -> String {
        format!("{}.{}", place.time.millis(), place.id)
    }
}

impl<'de> Deserialize<'de> for EventCursor {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let place = text.split_once('.').and_then(|(millis, id)| {
            let time = Timestamp::from_millis(millis.parse().ok()?);
            Some(EventPlace { time, id: id.parse().ok()? })
        });
        let wrong = || serde::de::Error::custom("not a cursor; expected the next_cursor of the previous page");
        place.map(Self).ok_or_else(wrong)
    }
}

impl PartialSchema for EventCursor {
    fn schema() -> RefOr<Schema> {
        let pattern = "^[1-9][0-9]{0,14}\\.[a-z2-7]{16}-[1-9][0-9]{0,17}$";
        ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).into()
    }
}
impl ToSchema for EventCursor {}

/// Lists events, the newest first. With `Accept: text/event-stream` it sends them as they happen instead.
///
/// Each node has its own log of 30 days or 64 MiB. The events of several nodes are merged by their time, which is as
/// exact as the nodes' clocks. A stream of one node (`node=host-a`) is exact: `Last-Event-ID` resumes it without a loss.
/// A stream of all nodes that is resumed repeats the last two minutes, whose events have the same ids again. A node that
/// does not answer is named by an event `gap`; what it has to tell comes later, marked `late`.
#[utoipa::path(get, path = "/v1/events", tag = "events", operation_id = "list_events", params(EventsQuery), responses(
    (status = 200, description = "the events; as a stream, each is the `data` of a server-sent event",
        content((EventList = "application/json"), (String = "text/event-stream"))),
    (status = 404, description = "`not_found`: no such node", body = ErrorBody),
    (status = 409, description = "`conflict`: more than one node id has this prefix", body = ErrorBody),
    (status = 503, description = "`node_unreachable`: the node does not answer, or this one has too many streams", body = ErrorBody),
))]
pub(super) async fn list(
    State(app): Shared,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    if preference(&headers, "text/event-stream", "") > preference(&headers, "application/json", "") {
        return stream::stream(&app, &query, &headers).await;
    }
    let filter = query.filter(app.api.clock.now().wall);
    let before = query.after.map(|EventCursor(place)| place);
    let (items, more, gaps) = app.api.cluster.events(query.nodes(), filter, before, query.limit.get()).await?;
    let next_cursor = items.last().filter(|_| more).map(|last| EventCursor::text(last.place()));
    Ok(([VARY], Answer(EventList { items, next_cursor, gaps })).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EventKind, sample};

    #[test]
    fn a_cursor_is_read_back_as_the_place_that_it_was_made_of() {
        let place = sample::event(EventKind::NodeLost, 1_769_860_800_123).place();
        let EventCursor(read) = serde_json::from_value(EventCursor::text(place).into()).unwrap();
        assert_eq!(read, place);
        for wrong in ["", "1", "1.", "1.x-1", "00ff", "x.aaaaaaaaaaaaaaaa-1"] {
            assert!(serde_json::from_value::<EventCursor>(wrong.into()).is_err(), "{wrong}");
        }
    }
}
