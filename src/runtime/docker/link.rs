//! The link to the engine: whether it answers, and its stream of events.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::EventMessage;
use bollard::query_parameters::{EventsOptions, EventsOptionsBuilder};
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::Config;
use super::container::{LABEL_CLUSTER, LABEL_NODE, LABEL_SESSION};
use super::engine::{Engine, Failure};
use crate::runtime::{Event, Health};
use crate::types::SessionId;

/// The pause before the next attempt to connect: doubled from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// How often the engine is asked what it reports about itself: an engine that hangs keeps its event stream open and
/// sends nothing, and the host's resources can change.
const PING: Duration = Duration::from_secs(30);
/// How often everything is listed: the engine can drop events without saying so.
const RELIST: Duration = Duration::from_secs(60);
/// The events that change a container. `exec` is left out: it comes with every health check. The engine takes each for
/// the beginning of an event's name where `health_status` is among them, since a status follows it.
const ACTIONS: [&str; 10] =
    ["die", "start", "oom", "pause", "unpause", "destroy", "stop", "kill", "rename", "health_status"];
/// The least time between two subscriptions to the events, so that a proxy that ends each at once costs little.
const RESUBSCRIBE: Duration = Duration::from_secs(1);

/// Keeps the link for as long as `events` has a receiver.
pub(super) async fn run(
    engine: &Engine,
    config: &Config,
    health: &watch::Sender<Health>,
    image_changes: &watch::Sender<u64>,
    events: mpsc::Sender<Event>,
) {
    let mut link = Link { engine, config, health, image_changes, events, since: None, missed: true };
    let mut retry = RETRY_FIRST;
    loop {
        let begun = Instant::now();
        let pause = match link.hold().await {
            Ended::NobodyListens => return,
            // An idle stream is ended by a proxy, or by the engine, which says nothing of the engine itself.
            Ended::Stream => {
                retry = RETRY_FIRST;
                RESUBSCRIBE.saturating_sub(begun.elapsed())
            }
            Ended::Lost(failure) => {
                engine.disconnect();
                let unsupported = matches!(failure, Failure::Unsupported(_));
                publish(health, Health::Down { message: failure.to_string(), unsupported });
                let pause = retry;
                retry = (retry * 2).min(RETRY_LAST);
                pause
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = link.events.closed() => return,
        }
    }
}

/// Why [`Link::hold`] ended.
enum Ended {
    NobodyListens,
    /// The stream of events ended. The engine may answer all the same.
    Stream,
    /// The engine does not answer.
    Lost(Failure),
}

struct Link<'a> {
    engine: &'a Engine,
    config: &'a Config,
    health: &'a watch::Sender<Health>,
    image_changes: &'a watch::Sender<u64>,
    events: mpsc::Sender<Event>,
    /// The engine's time of the last event, in whole seconds: a new stream begins there.
    since: Option<i64>,
    /// The receiver is to list everything: events may be lost. It is told once it has room. Waiting for it would make
    /// the engine drop events, and hide that the engine hangs.
    missed: bool,
}

impl Link<'_> {
    /// Connects, and passes on the engine's events until their stream ends or the engine stops answering.
    async fn hold(&mut self) -> Ended {
        let connection = match self.engine.connect().await {
            Ok(connection) => connection,
            Err(failure) => return Ended::Lost(failure),
        };
        publish(self.health, Health::Up(connection.info.clone()));
        self.since = self.since.or(connection.engine_time.map(|time| time.millis() / 1000));
        self.missed = true;
        let mut told = std::pin::pin!(connection.docker.events(Some(options(self.config, self.since))));
        let now = connection.engine_time.map(|time| time.millis() / 1000);
        let mut of_images = std::pin::pin!(connection.docker.events(Some(image_options(now))));
        // Changes before this stream are unheard.
        self.image_changes.send_modify(|changes| *changes += 1);
        let mut ping = every(PING);
        let mut relist = every(RELIST);
        let events = self.events.clone();
        loop {
            tokio::select! {
                event = told.next() => match event {
                    Some(Ok(event)) => self.pass_on(&event),
                    Some(Err(error)) => {
                        tracing::debug!("the stream of the engine's events ended: {}", self.engine.failure(&error));
                        return Ended::Stream;
                    }
                    None => return Ended::Stream,
                },
                event = of_images.next() => match event {
                    Some(Ok(_)) => self.image_changes.send_modify(|changes| *changes += 1),
                    Some(Err(_)) | None => return Ended::Stream,
                },
                permit = events.reserve(), if self.missed => match permit {
                    Ok(permit) => {
                        permit.send(Event::Relist);
                        self.missed = false;
                    }
                    Err(_) => return Ended::NobodyListens,
                },
                _ = relist.tick() => self.missed = true,
                () = async { tokio::select! { _ = ping.tick() => {}, () = self.engine.suspect.notified() => {} } } => {
                    match self.engine.renew(&connection.docker).await {
                        Ok(info) => publish(self.health, Health::Up(info)),
                        Err(failure) => return Ended::Lost(failure),
                    }
                }
                () = events.closed() => return Ended::NobodyListens,
            }
        }
    }

    fn pass_on(&mut self, event: &EventMessage) {
        self.since = event.time.or(self.since);
        let Some(session) = session_of(self.config, event) else { return };
        // A new name changes no state: only a list shows it.
        self.missed |= event.action.as_deref() == Some("rename");
        self.missed |= self.events.try_send(Event::Changed(session)).is_err();
    }
}

/// A timer whose first tick is one period away.
fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Asks for our containers' events from `since` on.
fn options(config: &Config, since: Option<i64>) -> EventsOptions {
    let cluster = format!("{LABEL_CLUSTER}={}", config.cluster);
    let filters = HashMap::from([("type", vec!["container"]), ("label", vec![&cluster]), ("event", ACTIONS.to_vec())]);
    from(since, &filters)
}

/// Asks for the events of all images from `since` on. Some of them change no image, but those are few.
fn image_options(since: Option<i64>) -> EventsOptions {
    from(since, &HashMap::from([("type", vec!["image"])]))
}

/// From the second `since` on, which is included, so that none is lost between two streams, or between the first list and
/// the first event. An event that comes twice does no harm.
fn from(since: Option<i64>, filters: &HashMap<&str, Vec<&str>>) -> EventsOptions {
    let options = EventsOptionsBuilder::default().filters(filters);
    match since {
        Some(seconds) => options.since(&seconds.to_string()).build(),
        None => options.build(),
    }
}

/// The session that an event is about, if it is this node's.
fn session_of(config: &Config, event: &EventMessage) -> Option<SessionId> {
    let labels = event.actor.as_ref()?.attributes.as_ref()?;
    let is = |key: &str, value: &str| labels.get(key).is_some_and(|label| label == value);
    if !is(LABEL_CLUSTER, config.cluster.as_str()) || !is(LABEL_NODE, config.node.as_str()) {
        return None;
    }
    labels.get(LABEL_SESSION)?.parse().ok()
}

fn publish(health: &watch::Sender<Health>, now: Health) {
    health.send_if_modified(|before| {
        if *before == now {
            return false;
        }
        match (&*before, &now) {
            (Health::Up(before), Health::Up(info)) if before.epoch != info.epoch => {
                tracing::warn!(version = info.version, "the container engine restarted");
            }
            (Health::Up(_), Health::Up(_)) => tracing::info!("the container engine reports other resources"),
            (_, Health::Up(info)) => tracing::info!(version = info.version, "the container engine answers"),
            (_, Health::Down { message, unsupported: true }) => {
                tracing::warn!("the container engine is not supported: {message}");
            }
            (_, Health::Down { message, .. }) => tracing::warn!("the container engine does not answer: {message}"),
            (_, Health::Unknown) => {}
        }
        *before = now;
        true
    });
}

#[cfg(test)]
mod tests {
    use bollard::models::EventActor;

    use super::*;
    use crate::runtime::docker::CpuMode;

    #[test]
    fn only_events_of_this_nodes_sessions_count() {
        let config = Config {
            cluster: "lab".parse().unwrap(),
            node: "k3f7q2m5x6a4b7c2".parse().unwrap(),
            host: "unix:///s".to_owned(),
            cpu_mode: CpuMode::Quota,
            cap_allow: Vec::new(),
            publish_address: "127.0.0.1".parse().unwrap(),
            network_subnet: None,
            idle_ignore: Vec::new(),
            hand_over: crate::runtime::HandOver::Auto,
            gpu_class: crate::types::NVIDIA_CLASS.to_owned(),
            images_path: None,
        };
        let session = SessionId::of_key(&config.cluster, "k");
        let about = |cluster: &str, node: &str, session: &str| {
            let labels = [(LABEL_CLUSTER, cluster), (LABEL_NODE, node), (LABEL_SESSION, session)];
            let event = EventMessage {
                actor: Some(EventActor {
                    id: None,
                    attributes: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                }),
                ..EventMessage::default()
            };
            session_of(&config, &event)
        };
        assert_eq!(about("lab", config.node.as_str(), session.as_str()), Some(session));
        assert_eq!(about("other", config.node.as_str(), session.as_str()), None);
        assert_eq!(about("lab", "aaaaaaaaaaaaaaaa", session.as_str()), None);
        assert_eq!(about("lab", config.node.as_str(), "not-an-id"), None);
        assert_eq!(session_of(&config, &EventMessage::default()), None);
    }
}
