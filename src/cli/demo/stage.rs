//! The demo's side of its [keeper](super::keeper): has the stage set, waits until the agent answers,
//! has it all struck.

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{sleep, timeout};

use super::image;
use super::keeper::{SUBCOMMAND, Word};
use super::plan::{Engine, Plan, REPOSITORY};
use crate::cli::client::Client;
use crate::cli::connection::Connection;
use crate::cli::failure::Failure;
use crate::cli::route::Route;
use crate::sessions::runtime::docker::Visit;
use crate::types::{List, Node};

/// How long an agent may take to answer, and its node to say what it has. It takes a second.
const OPENING: Duration = Duration::from_secs(30);
/// How often it is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long clearing away may take. The keeper goes on by itself if the demo does not wait.
const STRIKING: Duration = Duration::from_secs(120);
/// How much of the agent's log is shown when something failed.
const LOG_LINES: usize = 20;
const LOG_BYTES: u64 = 16 << 10;

/// A temporary place with an agent in it.
pub(super) struct Stage {
    pub(super) plan: Plan,
    /// The command words of a session that serves a page.
    pub(super) page_command: Vec<String>,
    keeper: Child,
    /// As long as it is open the keeper keeps the place; the kernel closes it for whoever is killed.
    hold: ChildStdin,
    words: Lines<tokio::io::BufReader<ChildStdout>>,
}

impl Stage {
    /// Starts the keeper, which makes the place and starts the agent.
    pub(super) async fn set(plan: Plan) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| Failure::Failed(format!("the demo's keeper cannot be started: {e}"));
        let mut keeper = Command::new(&plan.program)
            .arg(SUBCOMMAND)
            // For people who look at processes.
            .arg(&plan.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let (Some(hold), Some(words)) = (keeper.stdin.take(), keeper.stdout.take()) else {
            return Err(Failure::Failed("the demo's keeper has no pipes".to_owned()));
        };
        let words = tokio::io::BufReader::new(words).lines();
        let mut stage = Self { plan, page_command: Vec::new(), keeper, hold, words };
        let mut plan = serde_json::to_vec(&stage.plan).map_err(|e| Failure::Failed(e.to_string()))?;
        plan.push(b'\n');
        stage.hold.write_all(&plan).await.map_err(failed)?;
        match stage.word().await {
            Some(Word::Ready) => Ok(stage),
            Some(Word::Trouble(trouble)) => Err(Failure::Failed(trouble)),
            None => Err(Failure::Failed("the demo's keeper ended before it began".to_owned())),
        }
    }

    /// Makes what sessions are made of, and returns once the agent answers.
    pub(super) async fn open(&mut self) -> Result<(), Failure> {
        self.page_command = match &self.plan.engine {
            Engine::Docker { host } => self.bring_image(host).await?,
            Engine::Process if self.plan.sessions_are_others() => {
                image::page_command(&self.plan.program_for_others().display().to_string())
            }
            Engine::Process => image::page_command(&self.plan.program.display().to_string()),
        };
        let client = self.client()?;
        tokio::select! {
            ready = timeout(OPENING, node(&client)) => {
                ready.map_err(|_| Failure::Failed("the agent does not come up".to_owned()))
            }
            trouble = self.trouble() => Err(trouble),
        }
    }

    async fn bring_image(&self, host: &str) -> Result<Vec<String>, Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure::Failed(format!("the image cannot be made: {e}"));
        let visit = Visit::new(host).map_err(|e| failed(&e))?;
        let made = tokio::task::spawn_blocking(image::of_this_program).await.map_err(|e| failed(&e))?;
        let made = made.map_err(|e| failed(&e))?;
        let mark = self.plan.importing();
        std::fs::write(&mark, "").map_err(|e| failed(&e))?;
        visit.import_image(REPOSITORY, self.plan.tag(), made.archive.into()).await.map_err(|e| failed(&e))?;
        std::fs::remove_file(&mark).map_err(|e| failed(&e))?;
        Ok(made.command)
    }

    /// How commands reach the agent, whatever the environment says of others.
    pub(super) fn connection(&self) -> Connection {
        Connection { socket: Some(self.plan.socket()), isolated: true, ..Connection::default() }
    }

    pub(super) fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.connection().choose_here()?)
    }

    /// Returns when the agent has ended, which it should not have.
    pub(super) async fn trouble(&mut self) -> Failure {
        Failure::Failed(match self.word().await {
            Some(Word::Trouble(trouble)) => trouble,
            Some(Word::Ready) | None => "the demo's keeper is gone".to_owned(),
        })
    }

    /// The last lines that the agent printed.
    pub(super) fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut log = std::fs::File::open(self.plan.log())?;
            let start = log.metadata()?.len().saturating_sub(LOG_BYTES);
            log.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            BufReader::new(log).take(LOG_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Has everything cleared away, and returns once it is.
    ///
    /// # Errors
    /// Something could not be, and what to do about it.
    pub(super) async fn strike(self) -> Result<(), Failure> {
        let Self { mut keeper, hold, mut words, .. } = self;
        drop(hold);
        let mut troubles = Vec::new();
        let struck = timeout(STRIKING, async {
            while let Ok(Some(line)) = words.next_line().await {
                if let Ok(Word::Trouble(trouble)) = serde_json::from_str(&line) {
                    troubles.push(trouble);
                }
            }
            keeper.wait().await
        });
        match struck.await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) if troubles.is_empty() => Err(Failure::Failed(format!("the demo's keeper: {status}"))),
            Ok(Ok(_)) => Err(Failure::Failed(troubles.join("\n"))),
            Ok(Err(e)) => Err(Failure::Failed(format!("the demo's keeper cannot be waited for: {e}"))),
            Err(_) => Err(Failure::Failed("clearing away takes long; it goes on by itself".to_owned())),
        }
    }

    async fn word(&mut self) -> Option<Word> {
        let line = self.words.next_line().await.ok()??;
        serde_json::from_str(&line).ok()
    }
}

/// Returns once the agent's node can be seen and knows what it has.
async fn node(client: &Client) {
    loop {
        if let Ok(body) = client.get(Route::new(&["nodes"])).await
            && let Ok(list) = body.read::<List<Node>>()
            && list.items.iter().any(|node| node.runtime.available && !node.resources.cores.physical.is_zero())
        {
            return;
        }
        sleep(ASK_EVERY).await;
    }
}
