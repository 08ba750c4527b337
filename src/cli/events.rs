//! `ostler events`: what happened in the cluster, and who did it.

mod frames;

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use http_body_util::BodyExt;

use self::frames::{Frame, Frames};
use super::Context;
use super::arguments::{count, one_of, time};
use super::client::Client;
use super::failure::Failure;
use super::output::{Body, Format, Output};
use super::route::Route;
use super::table::table;
use super::terminal::Terminal;
use crate::types::{Event, EventGap, EventId, EventKind, EventList, QueryTime, Severity, WhoKind};

/// Events that are shown at first.
const DEFAULT_LIMIT: u32 = 100;
/// Events that `-f` begins with.
const DEFAULT_TAIL: u32 = 10;
/// Events of one page of the API at most.
const MAX_PAGE: u32 = 1000;
/// The pause before a stream that ended is opened again.
const AGAIN: Duration = Duration::from_secs(2);
/// Events that are remembered, so that none is shown twice: more than a resumed stream repeats.
const REMEMBERED: usize = 4000;

/// Show what happened in the cluster, and who did it.
///
/// Every node keeps a log of 30 days or 64 MiB. The events of all nodes are shown in the order of their times, which is
/// as exact as the nodes' clocks; those of one node are in their exact order.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler events
  ostler events -f
  ostler events --since 12h --severity warning
  ostler events --kind session_ended,refused --search desktop
  ostler events host-a --who root -o json | jq .message")]
pub(super) struct EventsArgs {
    /// Only events of these nodes [default: every node].
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// Show new events as they happen, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// Only events since this time: RFC 3339, or how long ago, as 10m or 12h.
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    since: Option<QueryTime>,
    /// Only events until this time.
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true, conflicts_with = "follow")]
    until: Option<QueryTime>,
    /// Only events of these kinds, separated by commas. `ostler events --kinds` lists them.
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = one_of::<EventKind>(EventKind::ALL.iter().map(|kind| kind.as_str())), hide_possible_values = true)]
    kind: Vec<EventKind>,
    /// Only events of at least this severity.
    #[arg(long, value_parser = one_of::<Severity>(Severity::ALL.iter().map(|severity| severity.as_str())))]
    severity: Option<Severity>,
    /// Only events about this: a name, an id, or the beginning of an id.
    #[arg(long)]
    target: Option<String>,
    /// Only what this user, token or node did. `system`: what nodes did by themselves.
    #[arg(long)]
    who: Option<String>,
    /// Only events whose message has this text.
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Show this many events, the newest [default: 100; with --follow 10; with --since all].
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<u32>,
    /// List the kinds of events and what they mean.
    #[arg(long, exclusive = true)]
    kinds: bool,
}

pub(super) async fn run(args: &EventsArgs, context: &Context) -> Result<(), Failure> {
    if args.kinds {
        return context.out.text(kinds());
    }
    let client = context.client()?;
    let mut reader = Reader { out: &context.out, seen: BTreeSet::new() };
    let begun = args.begin(&client).await?;
    for gap in begun.gaps {
        reader.gap(&gap);
    }
    for event in begun.items.iter().rev() {
        reader.show(event)?;
    }
    if args.follow { args.follow(&client, &mut reader, begun.items.first()).await } else { Ok(()) }
}

impl EventsArgs {
    fn route(&self) -> Route {
        let listed = |values: Vec<String>| Some(values.join(",")).filter(|text| !text.is_empty());
        Route::new(&["events"])
            .with_any("node", listed(self.nodes.clone()))
            .with_any("kind", listed(self.kind.iter().map(ToString::to_string).collect()))
            .with_any("severity", self.severity)
            .with_any("target", self.target.as_ref())
            .with_any("who", self.who.as_ref())
            .with_any("q", self.search.as_ref())
    }

    /// The events to begin with, the newest first.
    async fn begin(&self, client: &Client) -> Result<EventList, Failure> {
        let all = if self.since.is_some() { u32::MAX } else { DEFAULT_LIMIT };
        let mut left = self.limit.unwrap_or(if self.follow && self.since.is_none() { DEFAULT_TAIL } else { all });
        let route = self.route().with_any("since", self.since).with_any("until", self.until);
        let mut whole = EventList { items: Vec::new(), next_cursor: None, gaps: Vec::new() };
        while left > 0 {
            let limit = left.min(MAX_PAGE);
            let page = route.clone().with("limit", limit).with_any("after", whole.next_cursor.take());
            let EventList { items, next_cursor, gaps } = client.get(page).await?.read()?;
            left -= limit.min(u32::try_from(items.len()).unwrap_or(limit)).max(1);
            if whole.items.is_empty() {
                whole.gaps = gaps;
            }
            whole.items.extend(items);
            whole.next_cursor = next_cursor;
            if whole.next_cursor.is_none() {
                break;
            }
        }
        Ok(whole)
    }

    /// Shows events as they happen. A stream that ends is opened again where it was.
    async fn follow(&self, client: &Client, reader: &mut Reader<'_>, last: Option<&Event>) -> Result<(), Failure> {
        // A stream of one node is resumed by an event, one of several nodes by a time.
        let id = |event: &Event| if self.nodes.len() == 1 { event.id.to_string() } else { event.time.to_string() };
        let (mut seen, mut opened) = (last.map(id), false);
        loop {
            match client.events(self.route(), seen.clone()).await {
                Ok(mut body) => {
                    opened = true;
                    let mut frames = Frames::default();
                    while let Some(Ok(part)) = body.frame().await {
                        for frame in part.data_ref().map(|bytes| frames.take(bytes)).unwrap_or_default() {
                            seen = frame.id.clone().or(seen);
                            reader.take(&frame)?;
                        }
                    }
                    reader.out.note("the stream ended; opening it again");
                }
                Err(failure) if !opened => return Err(failure),
                Err(failure) => {
                    if let Some(report) = failure.report() {
                        reader.out.note(format!("{report}; trying again"));
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Shows each event once.
struct Reader<'o> {
    out: &'o Output,
    seen: BTreeSet<EventId>,
}

impl Reader<'_> {
    fn take(&mut self, frame: &Frame) -> Result<(), Failure> {
        let body = Body::new(frame.data.clone().into());
        match frame.name.as_deref() {
            None => self.show(&body.read()?),
            Some("gap") => {
                self.gap(&body.read()?);
                Ok(())
            }
            // The node stops: the stream ends.
            Some(_) => Ok(()),
        }
    }

    fn show(&mut self, event: &Event) -> Result<(), Failure> {
        if !self.seen.insert(event.id) {
            return Ok(());
        }
        if self.seen.len() > REMEMBERED {
            self.seen.pop_first();
        }
        match self.out.format {
            Format::Table => self.out.text(line(event, &self.out.terminal)),
            Format::Json => self.out.text(serde_json::to_string(event).unwrap_or_default()),
            Format::Yaml => self.out.value(event, String::new),
        }
    }

    fn gap(&self, gap: &EventGap) {
        self.out.note(format!("events of {} are missing: {}", gap.node, gap.message));
    }
}

/// One line: when, where, what, and who did it.
fn line(event: &Event, terminal: &Terminal) -> String {
    let time = event.time.to_string().replace('T', " ");
    let time = time.split_once('.').map_or(time.as_str(), |(seconds, _)| seconds);
    let mut said = event.message.clone();
    if event.who.kind != WhoKind::System {
        said += &format!(" (by {}", event.who);
        if let Some(via) = &event.via {
            said += &format!(" through {via}");
        }
        said.push(')');
    }
    if event.late {
        said += " (told late)";
    }
    let said = super::table::one_line(&said);
    let said = if event.severity == Severity::Warning { terminal.yellow(&said) } else { said };
    format!("{time}Z  {:<10}  {:<18}  {said}", event.node, event.kind)
}

fn kinds() -> String {
    let rows = EventKind::ALL.iter().map(|kind| {
        vec![kind.to_string(), kind.severity().to_string(), kind.meaning().to_owned(), kind.fields().join(" ")]
    });
    table(&["KIND", "SEVERITY", "MEANING", "DATA"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::sample;

    #[test]
    fn a_line_says_when_where_what_and_who_did_it() {
        let mut event = sample::event(EventKind::SessionEnded, 1_769_860_800_123);
        assert_eq!(
            line(&event, &Terminal::PLAIN),
            "2026-01-31 12:00:00Z  host-a      session_ended       session session has ended (by root through host-a)"
        );
        event.who = crate::types::Who::SYSTEM;
        event.late = true;
        event.message = "two\nlines".to_owned();
        assert!(
            line(&event, &Terminal::PLAIN).ends_with("  two lines (told late)"),
            "{}",
            line(&event, &Terminal::PLAIN)
        );
    }

    #[test]
    fn the_kinds_are_listed_with_what_they_mean() {
        let listed = kinds();
        assert!(listed.contains("node_lost") && listed.contains("A node does not answer any more."), "{listed}");
    }
}
