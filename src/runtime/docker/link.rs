//! The link to the engine: whether it answers, and its stream of events.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval_at};

use super::Config;
use super::container::{LABEL_CLUSTER, LABEL_NODE, LABEL_SESSION};
use super::engine::{Connection, Engine, Failure};
use crate::runtime::{Event, Health};
use crate::types::SessionId;

/// The pause before the next attempt to connect: doubled from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// How often the engine is pinged: an engine that hangs keeps its event stream open and sends nothing.
const PING: Duration = Duration::from_secs(30);
/// How often everything is listed: the engine can drop events without saying so.
const RELIST: Duration = Duration::from_secs(60);
/// The events that change a container. Health checks and `exec` are left out: they come every second.
const ACTIONS: [&str; 8] = ["die", "start", "oom", "pause", "unpause", "destroy", "stop", "kill"];

/// Keeps the link for as long as `events` has a receiver.
pub(super) async fn run(engine: &Engine, config: &Config, health: &watch::Sender<Health>, events: mpsc::Sender<Event>) {
    let mut retry = RETRY_FIRST;
    loop {
        let lost = match engine.connect().await {
            Ok(connection) => {
                retry = RETRY_FIRST;
                publish(health, Health::Up(connection.info.clone()));
                match listen(engine, config, &connection, &events).await {
                    Ended::NobodyListens => return,
                    Ended::Lost(failure) => failure,
                }
            }
            Err(failure) => failure,
        };
        engine.disconnect();
        publish(health, Health::Down { message: lost.to_string() });
        tokio::select! {
            () = tokio::time::sleep(retry) => {}
            () = events.closed() => return,
        }
        retry = (retry * 2).min(RETRY_LAST);
    }
}

/// Why [`listen`] ended.
enum Ended {
    NobodyListens,
    Lost(Failure),
}

/// Passes on the engine's events until it stops answering.
async fn listen(engine: &Engine, config: &Config, connection: &Connection, events: &mpsc::Sender<Event>) -> Ended {
    let mut told = std::pin::pin!(connection.docker.events(Some(options(config, connection))));
    let mut ping = every(PING);
    let mut relist = every(RELIST);
    // A receiver that falls behind gets `Relist` once it has room again. Waiting for it here would make
    // the engine drop events, and hide that the engine hangs.
    let mut missed = true;
    loop {
        tokio::select! {
            event = told.next() => match event {
                Some(Ok(event)) => {
                    if let Some(session) = session_of(config, &event) {
                        missed |= events.try_send(Event::Changed(session)).is_err();
                    }
                }
                Some(Err(error)) => return Ended::Lost(engine.failure(&error)),
                None => return Ended::Lost(Failure::Lost("the engine closed the stream of events".to_owned())),
            },
            permit = events.reserve(), if missed => match permit {
                Ok(permit) => {
                    permit.send(Event::Relist);
                    missed = false;
                }
                Err(_) => return Ended::NobodyListens,
            },
            _ = relist.tick() => missed = true,
            () = async { tokio::select! { _ = ping.tick() => {}, () = engine.suspect.notified() => {} } } => {
                if let Err(failure) = engine.ping(&connection.docker).await {
                    return Ended::Lost(failure);
                }
            }
            () = events.closed() => return Ended::NobodyListens,
        }
    }
}

/// A timer whose first tick is one period away.
fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = interval_at(tokio::time::Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Asks for our containers' events since the connection was made, so that none is lost between the
/// first list and the first event.
fn options(config: &Config, connection: &Connection) -> bollard::query_parameters::EventsOptions {
    let cluster = format!("{LABEL_CLUSTER}={}", config.cluster);
    let filters = HashMap::from([("type", vec!["container"]), ("label", vec![&cluster]), ("event", ACTIONS.to_vec())]);
    let options = EventsOptionsBuilder::default().filters(&filters);
    match connection.engine_time {
        Some(time) => options.since(&(time.millis() / 1000).to_string()).build(),
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
        match &now {
            Health::Up(info) => tracing::info!(version = info.version, "the container engine answers"),
            Health::Down { message } => tracing::warn!("the container engine does not answer: {message}"),
            Health::Unknown => {}
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
