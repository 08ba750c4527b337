//! The story: each step is a command as a person would type it, run as it would be.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::narrator::Narrator;
use super::page;
use super::plan::Engine;
use super::sizes::Sizes;
use super::stage::Stage;
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::node::resources;
use crate::cli::route::Route;
use crate::cli::table::table;
use crate::cli::workspace::export;
use crate::cli::{Cli, run};
use crate::types::{Cores, ErrorCode, List, Name, Node, Port, Protocol, PullPolicy, Session, Workspace};

/// Who comes first, one for each session that fits.
const FIRST: [&str; 4] = ["alice", "bob", "carol", "dave"];
/// Who comes when it is full.
const LATE: &str = "erin";

/// How long a page may take to answer once its session runs. It takes milliseconds.
const ANSWERING: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// A page has two kilobytes.
const MAX_PAGE: u64 = 64 << 10;

pub(super) struct Show<'a> {
    stage: &'a Stage,
    narrator: &'a Narrator<'a>,
    client: Client,
    node: Name,
    sizes: Sizes,
}

impl<'a> Show<'a> {
    pub(super) async fn new(stage: &'a Stage, narrator: &'a Narrator<'a>) -> Result<Self, Failure> {
        let client = stage.client()?;
        let node = only_node(&client).await?;
        let sizes = Sizes::of(node.resources.cores.physical, node.resources.memory_bytes.physical);
        Ok(Self { stage, narrator, client, node: node.name, sizes })
    }

    pub(super) async fn play(&self) -> Result<(), Failure> {
        self.a_node().await?;
        self.a_catalogue().await?;
        self.sessions().await?;
        self.no_room().await?;
        self.more_than_there_is().await?;
        self.never().await?;
        self.room_again().await?;
        self.where_to_look().await
    }

    async fn a_node(&self) -> Result<(), Failure> {
        self.narrator.step("A node, and what it has")?;
        self.narrator.command(&self.export_line())?;
        self.bars().await
    }

    async fn a_catalogue(&self) -> Result<(), Failure> {
        self.narrator.step("A catalogue: what sessions are made from")?;
        let catalogue = export(&self.workspaces()?)?;
        let file = self.stage.plan.catalogue();
        std::fs::write(&file, catalogue)
            .map_err(|e| Failure::Failed(format!("{} cannot be written: {e}", file.display())))?;
        self.ostler(&format!("workspace apply -f {}", file.display())).await?;
        self.ostler("workspace ls").await
    }

    async fn sessions(&self) -> Result<(), Failure> {
        self.narrator.step("A session for each of four people")?;
        for user in FIRST {
            self.ostler(&format!("session create page --user {user}")).await?;
        }
        self.narrator.say("\nEach serves a page. They answer; click one:")?;
        self.pages().await
    }

    async fn no_room(&self) -> Result<(), Failure> {
        self.narrator.step("The node is full")?;
        self.refused(&format!("session create page --user {LATE}"), ErrorCode::NoCapacity).await?;
        self.narrator.say(
            "\nRefused, not queued, with the figures that were compared: it may fit later, so the API says 503 and \
             Retry-After.",
        )
    }

    async fn more_than_there_is(&self) -> Result<(), Failure> {
        self.narrator.step("Say that it may offer more cores than it has")?;
        self.ostler(&format!("node set {} --cores-override {}", self.node, self.sizes.offered_cores)).await?;
        self.ostler(&format!("session create page --user {LATE}")).await?;
        self.bars().await?;
        self.narrator.say(
            "\nPeople seldom all work at the same time. The change is in force already, and outlives a restart. Memory \
             stays what it is, unless you say so too: --memory-override.",
        )
    }

    async fn never(&self) -> Result<(), Failure> {
        self.narrator.step("An override oversubscribes the host, never one session")?;
        self.refused("session create giant --user frank", ErrorCode::ExceedsPhysical).await?;
        self.narrator.say("\nNo host of the cluster could ever run it: refused for good, 422, and no use to try again.")
    }

    async fn room_again(&self) -> Result<(), Failure> {
        self.narrator.step("Stopped sessions give their room back")?;
        let sessions = self.running().await?;
        let [alice, bob, ..] = sessions.as_slice() else {
            return Err(Failure::Failed("the sessions of the demo are gone".to_owned()));
        };
        self.ostler(&format!("session stop {}", short(alice))).await?;
        self.ostler(&format!("session rm {}", short(bob))).await?;
        self.bars().await?;
        self.narrator.say("\nA stopped session keeps its container and its port, and starts where it was:")?;
        self.ostler(&format!("session start {}", short(alice))).await
    }

    async fn where_to_look(&self) -> Result<(), Failure> {
        self.narrator.step("Look around")?;
        self.pages().await?;
        self.narrator.say("\nIn another terminal:")?;
        self.narrator.command(&self.export_line())?;
        if !self.is_on_path() {
            self.narrator.command(&format!("alias ostler={}", self.stage.plan.program.display()))?;
        }
        let sessions = self.running().await?;
        let id = sessions.first().map(short).unwrap_or_default();
        for line in [
            "status".to_owned(),
            format!("node show {}", self.node),
            "session ls".to_owned(),
            format!("session explain {id}"),
            format!("session logs {id}"),
            "session create page --user you".to_owned(),
        ] {
            self.narrator.command(&format!("ostler {line}"))?;
        }
        self.narrator.say("")
    }

    /// Runs a command as its own process would, against the demo's agent.
    async fn ostler(&self, line: &str) -> Result<(), Failure> {
        self.narrator.command(&format!("ostler {line}"))?;
        let mut cli = Cli::try_parse_from(format!("ostler {line}").split(' '))
            .map_err(|e| Failure::Usage(format!("the demo's own command is wrong: {e}")))?;
        cli.connection = self.stage.connection();
        // A demo is a command that runs commands.
        Box::pin(run(cli)).await
    }

    /// Runs a command that must be refused for this reason, and shows the refusal.
    async fn refused(&self, line: &str, code: ErrorCode) -> Result<(), Failure> {
        match self.ostler(line).await {
            Err(Failure::Api(refusal)) if refusal.code == Some(code) => {
                let failure = Failure::Api(refusal);
                self.narrator.out.text(failure.report().unwrap_or_default())
            }
            Err(failure) => Err(failure),
            Ok(()) => Err(Failure::Failed(format!("`ostler {line}` should have been refused, and was not"))),
        }
    }

    /// The part of `node show` that matters here.
    async fn bars(&self) -> Result<(), Failure> {
        let node = only_node(&self.client).await?;
        let resources = resources(&node, &self.narrator.out.terminal);
        let bars: Vec<&str> = resources.lines().filter(|line| line.contains("allocated")).collect();
        self.narrator.command(&format!("ostler node show {} | grep allocated", self.node))?;
        self.narrator.out.text(bars.join("\n"))
    }

    /// The address of each session's page, once it has answered.
    async fn pages(&self) -> Result<(), Failure> {
        let mut rows = Vec::new();
        for session in self.running().await? {
            let Some(endpoint) = session.endpoints.first() else { continue };
            let address = format!("{}:{}", endpoint.host, endpoint.host_port);
            let answered = timeout(ANSWERING, answer(&address, session.id.as_str())).await;
            answered.map_err(|_| Failure::Failed(format!("the page of {} does not answer", session.user)))?;
            rows.push(vec![session.user.to_string(), format!("http://{address}/")]);
        }
        self.narrator.out.text(table(&["USER", "PAGE"], rows))
    }

    /// The sessions that run, the oldest first.
    async fn running(&self) -> Result<Vec<Session>, Failure> {
        let route = Route::new(&["sessions"]).with("state", "running");
        let mut sessions = self.client.list(route).await?.read::<List<Session>>()?.items;
        sessions.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(sessions)
    }

    fn workspaces(&self) -> Result<[Workspace; 2], Failure> {
        Ok([
            self.workspace("page", "a web page", self.sizes.page_cores)?,
            self.workspace("giant", "too much", self.sizes.giant_cores)?,
        ])
    }

    fn workspace(&self, name: &str, description: &str, cores: Cores) -> Result<Workspace, Failure> {
        let memory = self.sizes.page_memory;
        let named: Name = name.parse().map_err(Failure::Failed)?;
        let values = ["{user}", "{session}", name, &cores.to_string(), &memory.to_string()].map(str::to_owned);
        let variables = page::FIELDS.map(|(_, variable)| variable.to_owned());
        Ok(Workspace {
            description: description.to_owned(),
            image: matches!(self.stage.plan.engine, Engine::Docker { .. }).then(|| self.stage.plan.image()),
            command: self.stage.page_command.clone(),
            ports: vec![Port { container_port: page::PORT, protocol: Protocol::Tcp }],
            env: BTreeMap::from_iter(variables.into_iter().zip(values)),
            pull: PullPolicy::Missing,
            ..Workspace::new(named, cores, memory)
        })
    }

    /// Whether typing `ostler` runs this very program.
    fn is_on_path(&self) -> bool {
        let program = std::fs::canonicalize(&self.stage.plan.program).ok();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = std::env::split_paths(&path).map(|directory| directory.join("ostler")).find(|file| file.exists());
        program.is_some() && first.and_then(|file| std::fs::canonicalize(file).ok()) == program
    }

    fn export_line(&self) -> String {
        format!("export OSTLER_SOCKET={}", self.stage.plan.socket().display())
    }
}

async fn only_node(client: &Client) -> Result<Node, Failure> {
    let nodes = client.list(Route::new(&["nodes"])).await?.read::<List<Node>>()?;
    nodes.items.into_iter().next().ok_or_else(|| Failure::Failed("the demo's agent knows no node".to_owned()))
}

/// As much of a session's id as nobody else's begins with, in a demo.
fn short(session: &Session) -> String {
    session.id.as_str().chars().take(8).collect()
}

/// Returns once the page of this session was served there.
async fn answer(address: &str, session: &str) {
    while !is_served(address, session).await.unwrap_or(false) {
        sleep(ASK_EVERY).await;
    }
}

async fn is_served(address: &str, session: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.take(MAX_PAGE).read_to_string(&mut page).await?;
    // Another's page on this port would be answered too.
    Ok(page.starts_with("HTTP/1.1 200 ") && page.contains(session))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::sizes::FULL;

    #[test]
    fn as_many_people_come_as_fit() {
        assert_eq!(u64::try_from(FIRST.len()).unwrap(), FULL);
    }
}
