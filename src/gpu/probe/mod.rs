//! The child process that asks NVML, from the agent's side: starts it, asks it, and lets go of it.
//!
//! A call of NVML can hang in the kernel, and then not even SIGKILL ends the process. So nothing here waits for a child
//! to end: a child that does not answer is killed and abandoned, and the agent can stop while it still hangs.

pub mod child;
mod host;
mod nvml;

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::answer::{Answer, Ask};

/// How long the child may take for an answer. On a host with eight GPUs an answer takes well below a second.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take for its first answer. It initializes every GPU for that: seconds for each GPU of a data centre
/// on which persistence mode is off.
pub const OPENING: Duration = Duration::from_secs(30);
/// The bytes of an answer at most: the 4096 processes that the child lists, with all that it reads of each, and room
/// for the devices.
const ANSWER_BYTES: u64 = 16 << 20;

/// A running child. Dropping it kills the child, and waits for nothing.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Whether it has answered before.
    opened: bool,
    /// An answer is outstanding: what comes next on the pipe answers an earlier question.
    waiting: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Silence {
    /// The child did not answer in time. It may be abandoned now; it answers no more questions.
    Late,
    /// It has ended, or its answer cannot be read: `why` says which, for people.
    Died { why: String },
}

/// A child that was killed. It may live on as long as it hangs in the kernel.
#[derive(Debug)]
pub struct Abandoned(Child);

impl Probe {
    /// Starts the child from this program, the agent's own; `library` is NVML's file, `None` what the loader finds.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(program: &Path, library: Option<&Path>) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg(child::SUBCOMMAND)
            .args(library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The child may outlive the agent, and must not hold the agent's log open.
            .stderr(Stdio::null())
            // Ctrl-C in the agent's terminal is for the agent.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (asks, answers) = child.stdin.take().zip(child.stdout.take()).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, asks, answers: BufReader::new(answers), opened: false, waiting: false })
    }

    /// Asks the child, and waits for at most [`PATIENCE`], and [`OPENING`] for its first answer. After a `Late`, and
    /// after a future that was dropped before its end, every further question is `Late` at once.
    ///
    /// # Errors
    /// See [`Silence`].
    pub async fn ask(&mut self, ask: Ask) -> Result<Answer, Silence> {
        if self.waiting {
            return Err(Silence::Late);
        }
        self.waiting = true;
        let patience = if self.opened { PATIENCE } else { OPENING };
        let answer = timeout(patience, self.exchange(ask)).await.map_err(|_| Silence::Late)??;
        self.waiting = false;
        self.opened = true;
        Ok(answer)
    }

    /// `None` once the child has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills the child, and waits for nothing.
    pub fn abandon(mut self) -> Abandoned {
        // Fails if it has ended.
        let _ = self.child.start_kill();
        Abandoned(self.child)
    }

    async fn exchange(&mut self, ask: Ask) -> Result<Answer, Silence> {
        let mut line = serde_json::to_vec(&ask).map_err(died)?;
        line.push(b'\n');
        // If the write fails, the child has closed its end: reading says how it ended.
        let _ = self.asks.write_all(&line).await;
        let mut answer = Vec::new();
        let limit = ANSWER_BYTES + 1;
        let read = (&mut self.answers).take(limit).read_until(b'\n', &mut answer).await.map_err(died)?;
        match answer.last() {
            Some(b'\n') => serde_json::from_slice(&answer).map_err(|e| died(format!("its answer cannot be read: {e}"))),
            _ if read as u64 == limit => Err(died(format!("its answer is longer than {ANSWER_BYTES} bytes"))),
            _ => Err(died(format!("it ended ({})", self.child.wait().await.map_err(died)?))),
        }
    }
}

fn died(why: impl ToString) -> Silence {
    Silence::Died { why: why.to_string() }
}

impl Abandoned {
    /// Whether it has ended. Never waits.
    pub fn is_gone(&mut self) -> bool {
        // An error means that it is not a child any more, so it was reaped.
        !matches!(self.0.try_wait(), Ok(None))
    }
}
