//! What an inspection leaves open about how a run ended: whether its command was ever executed, and whether the kernel
//! or a person killed it. The engine's log and events tell.

use std::collections::HashMap;

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::{StreamExt, TryStreamExt};

use super::DockerRuntime;
use super::engine::{Connection, LOOK};
use crate::runtime::{Exit, LogsRequest, Oom};
use crate::types::Timestamp;

/// Codes of a container whose init could not execute the command: not found, not executable, and any other error of
/// the engine's init (1) and of the OCI runtime (255).
const EXEC_FAILED: [i64; 4] = [127, 126, 1, 255];
/// 128 + SIGKILL: how a process ends that the kernel killed for want of memory.
const KILLED: i64 = 137;
/// The last lines of a log, where an init says why it could not execute the command.
const LINES: u32 = 5;
/// Bytes of a sentence from a log in a message.
const MAX_SENTENCE: usize = 300;

/// What is known from the exit code and from the engine's word that the kernel killed a process of the container.
pub(super) const fn oom(killed: bool, code: i64) -> Oom {
    match (killed, code) {
        (false, _) => Oom::Nothing,
        (true, KILLED) => Oom::Main,
        (true, _) => Oom::Child,
    }
}

impl DockerRuntime {
    /// Completes what an inspection says of an ended run. What cannot be read leaves it as it is.
    pub(super) async fn complete(&self, container: &str, exit: &mut Exit) {
        let Ok(connection) = self.engine.connection().await else { return };
        if EXEC_FAILED.contains(&exit.code) {
            exit.never_ran = exec_failure(&last_lines(&connection, container).await);
        }
        if exit.oom == Oom::Main && was_killed_by_a_request(&events(&connection, container, exit).await) {
            exit.oom = Oom::Child;
        }
    }
}

async fn last_lines(connection: &Connection, container: &str) -> String {
    let request = LogsRequest { follow: false, tail: Some(LINES) };
    let lines = super::logs::stream(connection, container, request).try_collect::<Vec<_>>();
    let lines = tokio::time::timeout(LOOK, lines).await;
    let bytes = lines.ok().and_then(Result::ok).unwrap_or_default().concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Why the init could not execute the command: tini, which the engine runs as init, and runc.
fn exec_failure(log: &str) -> Option<String> {
    let line = log.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let tini = || line.strip_prefix("[FATAL tini (")?.split_once(")] ").map(|(_, sentence)| sentence);
    let sentence = tini().unwrap_or(line);
    let is_failure = sentence.starts_with("exec ") && (tini().is_some() || sentence.ends_with(": exec format error"));
    is_failure.then(|| sentence.chars().take(MAX_SENTENCE).collect())
}

/// The events that ended a run, oldest first.
async fn events(connection: &Connection, container: &str, exit: &Exit) -> Vec<EventMessage> {
    let Some(until) = exit.finished_at else { return Vec::new() };
    let started = exit.run.0.parse().unwrap_or(Timestamp::default());
    let second = |time: Timestamp, more: i64| (time.millis() / 1000 + more).to_string();
    let filters =
        HashMap::from([("type", vec!["container"]), ("container", vec![container]), ("event", vec!["oom", "kill"])]);
    let options = EventsOptionsBuilder::default().filters(&filters);
    let options = options.since(&second(started, 0)).until(&second(until, 1)).build();
    let events = connection.docker.events(Some(options)).filter_map(|event| async { event.ok() }).collect();
    tokio::time::timeout(LOOK, events).await.unwrap_or_default()
}

/// Whether a request killed the container after the kernel's last kill: a kill by the kernel ends the main process at
/// once, so that no request follows it.
fn was_killed_by_a_request(events: &[EventMessage]) -> bool {
    let last = events.iter().max_by_key(|event| event.time_nano);
    last.is_some_and(|event| event.action.as_deref() == Some("kill"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_of_an_init_that_cannot_execute_the_command_is_found() {
        let tini = "[FATAL tini (7)] exec nope failed: No such file or directory\n";
        assert_eq!(exec_failure(tini).as_deref(), Some("exec nope failed: No such file or directory"));
        assert_eq!(exec_failure("exec /a: exec format error\n\n").as_deref(), Some("exec /a: exec format error"));
        for own in ["", "sh: nope: not found\n", "exec nope\n", "[FATAL tini (7)] exec nope failed: x\nmore\n"] {
            assert_eq!(exec_failure(own), None, "{own:?}");
        }
    }

    #[test]
    fn a_kill_by_the_kernel_is_told_from_a_later_one_by_request() {
        let event = |action: &str, at| EventMessage {
            action: Some(action.to_owned()),
            time_nano: Some(at),
            ..EventMessage::default()
        };
        assert!(!was_killed_by_a_request(&[]));
        assert!(!was_killed_by_a_request(&[event("oom", 1)]));
        assert!(!was_killed_by_a_request(&[event("kill", 1), event("oom", 2)]));
        assert!(was_killed_by_a_request(&[event("oom", 1), event("kill", 2)]));
    }

    #[test]
    fn only_a_main_process_that_was_killed_was_killed_for_its_memory() {
        assert_eq!([oom(true, 137), oom(true, 3), oom(true, 0)], [Oom::Main, Oom::Child, Oom::Child]);
        assert_eq!(oom(false, 137), Oom::Nothing);
    }
}
