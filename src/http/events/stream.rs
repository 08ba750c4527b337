//! Events as they happen, as server-sent events.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{App, EventsQuery};
use crate::cluster::{REPLAY, Told};
use crate::events::FollowFrom;
use crate::http::error::Refusal;
use crate::http::metrics::Streaming;
use crate::http::sessions::UNBUFFERED;
use crate::metrics::Raised;
use crate::types::{ErrorCode, Event, EventFilter, EventId, NodeId, Period, QueryTime, Timestamp};

/// Streams of events at once at most, on one node.
pub(in crate::http) const MAX_STREAMS: usize = 64;
/// How often a stream that has nothing to tell says that it is there. Proxies close a connection that is silent for a
/// minute.
const PING: Duration = Duration::from_secs(15);
/// Parts of a stream that wait for a slow reader.
const WAITING: usize = 16;
/// The header by which a client says what it has seen.
const LAST_EVENT_ID: &str = "last-event-id";

/// Where a stream comes from.
enum Source {
    /// The log of one node, whose numbers are the ids of the stream.
    Node(mpsc::Receiver<Told>),
    /// All nodes, whose times are the ids of the stream.
    All(broadcast::Receiver<Told>),
}

/// One reader's stream.
struct Stream {
    source: Source,
    filter: EventFilter,
    /// Whose events are wanted; empty: all nodes'.
    nodes: BTreeSet<NodeId>,
    /// The events that the stream began with, which may come again.
    told: BTreeSet<EventId>,
    tell: mpsc::Sender<Bytes>,
    stopping: watch::Receiver<bool>,
    /// Bounds the streams.
    _permit: OwnedSemaphorePermit,
    /// Counts this stream.
    _open: Raised,
}

pub(super) async fn stream(app: &Arc<App>, query: &EventsQuery, headers: &HeaderMap) -> Result<Response, Refusal> {
    if query.after.is_some() {
        return Err(Refusal::malformed("query: after is for lists; a stream is resumed by the header Last-Event-ID"));
    }
    let too_many =
        |_| Refusal::new(ErrorCode::NodeUnreachable, format!("this node has {MAX_STREAMS} streams of events"));
    let permit = Arc::clone(&app.event_streams).try_acquire_owned().map_err(too_many)?;
    let now = app.api.clock.now().wall;
    let filter = query.filter(now);
    let (tell, body) = mpsc::channel(WAITING);
    let cluster = &app.api.cluster;
    let nodes = cluster.node_ids(query.nodes()).await?;
    let (source, begin) = if let [node] = query.nodes() {
        let seen = last_event_id::<EventId>(headers)?;
        let from = match seen.filter(|id| nodes.contains(&id.node)) {
            Some(id) => FollowFrom::After(id.seq),
            None => FollowFrom::Since(filter.since.unwrap_or(now)),
        };
        (Source::Node(cluster.follow_node(node, from).await?), Vec::new())
    } else {
        // Followed first and listed then: what happens meanwhile is told twice rather than never.
        let source = cluster.follow(&app.api.clock);
        let seen = last_event_id::<Timestamp>(headers)?;
        let since = seen.map(|seen| QueryTime::Ago(Period(REPLAY)).at(seen)).or(filter.since);
        let mut begin = Vec::new();
        if let Some(since) = since {
            let (events, gaps) = cluster.events_since(query.nodes(), since).await?;
            begin.extend(gaps.into_iter().map(Told::Gap));
            begin.extend(events.into_iter().map(|event| Told::Event(Arc::new(event))));
        }
        (Source::All(source), begin)
    };
    let stopping = app.stopping.clone();
    let (told, open) = (BTreeSet::new(), app.requests.open(Streaming::Events));
    tokio::spawn(Stream { source, filter, nodes, told, tell, stopping, _permit: permit, _open: open }.run(begin));
    let head = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::VARY, HeaderValue::from_static("accept")),
        UNBUFFERED,
    ];
    Ok((head, Body::from_stream(ReceiverStream::new(body).map(Ok::<_, std::convert::Infallible>))).into_response())
}

/// What the client has seen, if it says so.
fn last_event_id<T: std::str::FromStr<Err = String>>(headers: &HeaderMap) -> Result<Option<T>, Refusal> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let wrong = |why: &str| Refusal::malformed(format!("header Last-Event-ID: {why}"));
    let text = value.to_str().map_err(|_| wrong("expected the id of an event of this stream"))?;
    text.parse::<T>().map(Some).map_err(|why| wrong(&why))
}

impl Stream {
    /// Ends with the reader, when the daemon stops, or when the reader is too slow.
    async fn run(mut self, begin: Vec<Told>) {
        if self.tell.send(Bytes::from_static(b"retry: 2000\n\n")).await.is_err() {
            return;
        }
        for told in begin {
            if let Told::Event(event) = &told {
                self.told.insert(event.id);
            }
            if !self.pass_on(&told).await {
                return;
            }
        }
        loop {
            let mut stopping = self.stopping.clone();
            let tell = self.tell.clone();
            let goes_on = tokio::select! {
                () = tell.closed() => false,
                () = stopped(&mut stopping) => {
                    let _ = self.tell.send(framed(None, Some("stopping"), &())).await;
                    false
                }
                told = self.source.next() => match told {
                    Some(Told::Event(event)) if self.told.contains(&event.id) => true,
                    Some(told) => self.pass_on(&told).await,
                    None => false,
                },
                () = tokio::time::sleep(PING) => self.tell.send(Bytes::from_static(b": ping\n\n")).await.is_ok(),
            };
            if !goes_on {
                return;
            }
        }
    }

    /// False: the reader has gone.
    async fn pass_on(&self, told: &Told) -> bool {
        let part = match told {
            Told::Gap(gap) => framed(None, Some("gap"), gap),
            Told::Event(event) if self.wants(event) => {
                let id = match &self.source {
                    Source::Node(_) => event.id.to_string(),
                    Source::All(_) => event.time.to_string(),
                };
                framed(Some(&id), None, event.as_ref())
            }
            Told::Event(_) => return true,
        };
        self.tell.send(part).await.is_ok()
    }

    fn wants(&self, event: &Event) -> bool {
        (self.nodes.is_empty() || self.nodes.contains(&event.id.node)) && self.filter.matches(event)
    }
}

impl Source {
    async fn next(&mut self) -> Option<Told> {
        match self {
            Self::Node(told) => told.recv().await,
            // A reader that is too slow is cut off, and resumes where it was.
            Self::All(told) => told.recv().await.ok(),
        }
    }
}

/// Returns once the daemon stops.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the daemon is gone.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// One server-sent event. JSON has no line breaks outside strings, and none in them.
fn framed(id: Option<&str>, name: Option<&str>, data: &impl Serialize) -> Bytes {
    let mut text = String::new();
    if let Some(id) = id {
        text += &format!("id: {id}\n");
    }
    if let Some(name) = name {
        text += &format!("event: {name}\n");
    }
    text += &format!("data: {}\n\n", serde_json::to_string(data).unwrap_or_default());
    text.into()
}
