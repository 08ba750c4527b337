//! The operator's program, which is run for each event: it gets the event as JSON on its standard input.
//!
//! It is run once at a time and for ten seconds at most. Events that come meanwhile wait, up to a bound. The agent
//! neither needs it nor waits for it: what fails is counted and logged.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::{Config, Counts};
use crate::types::Event;

/// Events that wait for the program at most. An event beyond it does not reach the program and is counted.
pub(super) const QUEUE: usize = 256;
/// How long one run may take. Then the program is killed, with what it started.
const PATIENCE: Duration = Duration::from_secs(10);
/// Failures that follow one another and are logged. The others are counted: a broken program must not fill the log.
const LOGGED: u32 = 3;

/// Runs the program for each event that comes. Ends with the owner of the log.
pub(super) async fn run(mut events: mpsc::Receiver<Arc<Event>>, config: watch::Receiver<Config>, counts: Counts) {
    let mut in_a_row = 0;
    while let Some(event) = events.recv().await {
        let Some(program) = wanted(&config.borrow(), &event) else { continue };
        match run_once(&program, &event).await {
            Ok(()) => in_a_row = 0,
            Err(why) => {
                counts.hook_failed();
                in_a_row += 1;
                if in_a_row <= LOGGED {
                    tracing::warn!(hook = %program.display(), event = %event.id, "the event hook failed: {why}");
                }
            }
        }
    }
}

/// The program, if the event is for it.
fn wanted(config: &Config, event: &Event) -> Option<PathBuf> {
    let of_kind = config.hook_kinds.is_empty() || config.hook_kinds.contains(&event.kind);
    config.hook.clone().filter(|_| of_kind)
}

async fn run_once(program: &Path, event: &Event) -> Result<(), String> {
    // A program group of its own: it is killed with what it started.
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let group = child.id();
    let run = async {
        feed(&mut child, event).await?;
        child.wait().await
    };
    match tokio::time::timeout(PATIENCE, run).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(status.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => {
            kill(group);
            Err(format!("it did not end within {} s and was killed", PATIENCE.as_secs()))
        }
    }
}

/// Writes the event and closes the program's input. A program that does not read it is no failure.
async fn feed(child: &mut Child, event: &Event) -> io::Result<()> {
    let Some(mut input) = child.stdin.take() else { return Ok(()) };
    let mut json = serde_json::to_vec(event)?;
    json.push(b'\n');
    match input.write_all(&json).await {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn kill(group: Option<u32>) {
    let group = group.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        // It may have ended just now.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}
