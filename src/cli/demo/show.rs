//! The steps of the demo: each is a command as a user would type it, run in the same way.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::keeper::Order;
use super::narrator::Narrator;
use super::page;
use super::plan::{Agent, Engine};
use super::prompt::Prompt;
use super::sizes::Sizes;
use super::stage::Stage;
use crate::cli::failure::Failure;
use crate::cli::workspace::export;
use crate::types::{Cores, ErrorCode, Name, Port, Protocol, PullPolicy, Session, SessionState, Workspace};

/// The first users, one for each session that fits.
const FIRST: [&str; 6] = ["alice", "bob", "carol", "dave", "erin", "frank"];
/// The user of the session that is requested when the cluster is full.
const LATE: &str = "grace";
/// The user of the session that is too large for every node.
const GREEDY: &str = "heidi";
/// The user of the session that is created while a node is drained.
const MEANWHILE: &str = "ivan";
/// The user of the session that is created after the leader is killed.
const UNLED: &str = "judy";

pub(super) struct Show<'a> {
    prompt: Prompt<'a>,
    stage: &'a Stage,
    narrator: &'a Narrator<'a>,
    /// The node that the demo changes and drains: neither the first leader nor the node that it contacts.
    other: Name,
    sizes: Sizes,
    /// The command words of a session that serves a page.
    page_command: Vec<String>,
}

impl<'a> Show<'a> {
    /// The first step, until the cluster answers.
    pub(super) async fn open(stage: &'a Stage, narrator: &'a Narrator<'a>) -> Result<Self, Failure> {
        narrator.step("Three nodes, one token")?;
        let plan = &stage.plan;
        let mut prompt = Prompt::at(plan.agent(0), stage, narrator)?;
        narrator.command(&format!("(umask 077; ostler token generate > {})", plan.token().display()))?;
        plan.agents().try_for_each(|agent| prompt.start(agent))?;
        let page_command = stage.open().await?;
        let (leader, _) = prompt.leader().await?;
        let mut followers = plan.agents().filter(|agent| agent.index != leader.index);
        let (Some(asked), Some(other)) = (followers.next(), followers.next()) else {
            return Err(Failure::Failed("the demo has too few nodes".to_owned()));
        };
        narrator.say(&format!(
            "The nodes have found each other and elected {}. Any node takes any request: the demo uses {}, a follower.",
            leader.name(),
            asked.name()
        ))?;
        prompt.turn_to(asked)?;
        let other = other.name().parse().map_err(Failure::Failed)?;
        Ok(Self { prompt, stage, narrator, other, sizes: plan.sizes, page_command })
    }

    pub(super) async fn play(mut self) -> Result<(), Failure> {
        self.three_nodes().await?;
        self.a_catalogue().await?;
        self.sessions().await?;
        self.no_room().await?;
        self.more_than_there_is().await?;
        self.never().await?;
        self.room_again().await?;
        self.a_drain().await?;
        let (killed, lost) = self.a_leader_killed().await?;
        self.nothing_lost(killed, &lost).await?;
        self.where_to_look().await
    }

    async fn three_nodes(&self) -> Result<(), Failure> {
        self.prompt.ostler("status").await?;
        self.prompt.ostler("node ls").await?;
        self.narrator.say(&format!(
            "\nThree agents share this machine, so their figures are not measured: each is configured to have {} cores and {} \
             of memory.",
            self.sizes.node_cores, self.sizes.node_memory
        ))
    }

    async fn a_catalogue(&self) -> Result<(), Failure> {
        self.narrator.step("A catalogue of workspaces: sessions are created from them")?;
        let catalogue = export(&self.workspaces()?)?;
        let file = self.stage.plan.catalogue();
        std::fs::write(&file, catalogue)
            .map_err(|e| Failure::Failed(format!("{} cannot be written: {e}", file.display())))?;
        self.prompt.ostler(&format!("workspace apply -f {}", file.display())).await?;
        self.prompt.ostler("workspace ls").await
    }

    async fn sessions(&self) -> Result<(), Failure> {
        self.narrator.step("A session for each of six users")?;
        for user in FIRST {
            self.prompt.ostler(&format!("session create page --user {user}")).await?;
        }
        self.narrator.say("\nThey are spread over the nodes. Each serves a page. All answer; click one:")?;
        self.prompt.pages(self.prompt.sessions().await?.iter()).await?;
        self.narrator.say(&format!(
            "\nAny node answers: {} passes the request on to the leader, and the answer's headers show it:",
            self.prompt.asked()
        ))?;
        self.prompt.headers().await
    }

    async fn no_room(&self) -> Result<(), Failure> {
        self.narrator.step("The cluster is full")?;
        self.prompt.refused(&format!("session create page --user {LATE}"), ErrorCode::NoCapacity).await?;
        self.narrator.say(
            "\nThe request is rejected, not queued, with the figures of every node. It may fit later, so the API \
            answers 503 with Retry-After.",
        )
    }

    async fn more_than_there_is(&self) -> Result<(), Failure> {
        self.narrator.step("Let one node offer more cores than it has")?;
        let offer = format!("node set {} --cores-override {}", self.other, self.sizes.offered_cores);
        self.prompt.ostler(&offer).await?;
        self.prompt.ostler(&format!("session create page --user {LATE}")).await?;
        self.prompt.bars(&self.other).await?;
        self.narrator.say(
            "\nUsers rarely all work at the same time. The change took effect at once and survives a restart. Memory \
            is not overridden, unless you set --memory-override too.",
        )
    }

    async fn never(&self) -> Result<(), Failure> {
        self.narrator.step("An override oversubscribes a host, never one session")?;
        self.prompt.refused(&format!("session create giant --user {GREEDY}"), ErrorCode::ExceedsPhysical).await?;
        self.narrator.say("\nNo host of the cluster is large enough: the API answers 422, and a retry cannot help.")
    }

    async fn room_again(&self) -> Result<(), Failure> {
        self.narrator.step("Stopped sessions release their reservations")?;
        let sessions = self.prompt.sessions().await?;
        let here = of(&sessions, &self.other).next().ok_or_else(gone)?;
        self.prompt.ostler(&format!("session stop {}", short(here))).await?;
        self.narrator.say("It keeps its container and its port. Two others are removed, one on each other node:")?;
        // One session of each other node.
        let elsewhere = sessions.iter().filter(|session| session.node != self.other);
        let leave: BTreeMap<&Name, &Session> = elsewhere.map(|session| (&session.node, session)).collect();
        let ids: Vec<String> = leave.into_values().map(short).collect();
        self.prompt.ostler(&format!("session rm {}", ids.join(" "))).await?;
        self.prompt.ostler("session ls").await
    }

    async fn a_drain(&self) -> Result<(), Failure> {
        self.narrator.step("A node is drained for maintenance")?;
        let other = &self.other;
        self.prompt.ostler(&format!("node drain {other} --message maintenance")).await?;
        self.prompt.drain(other).await?;
        self.narrator.say(
            "\nNothing is moved or stopped: the drain waits for these. New ones go elsewhere, though it has room:",
        )?;
        self.prompt.ostler(&format!("session create page --user {MEANWHILE}")).await?;
        let created = self.session_of(MEANWHILE).await?;
        self.prompt.ostler(&format!("session explain {}", short(&created))).await?;
        self.prompt.ostler(&format!("node undrain {other}")).await?;
        self.narrator.say("The session that was stopped there starts again on the same node:")?;
        let sessions = self.prompt.sessions().await?;
        let stopped = sessions.iter().find(|session| session.state == SessionState::Stopped).ok_or_else(gone)?;
        self.prompt.ostler(&format!("session start {}", short(stopped))).await
    }

    /// Returns the killed agent, and the sessions on its node.
    async fn a_leader_killed(&mut self) -> Result<(Agent<'a>, Vec<Session>), Failure> {
        self.narrator.step("The leader is killed")?;
        let plan = &self.stage.plan;
        let (leader, term) = self.prompt.leader().await?;
        if leader.name() == self.prompt.asked() {
            self.narrator.say(&format!("{} is the leader by now; the demo contacts another node.", leader.name()))?;
            let follower = plan.agents().find(|agent| agent.index != leader.index);
            self.prompt.turn_to(follower.ok_or_else(gone)?)?;
        }
        let name: Name = leader.name().parse().map_err(Failure::Failed)?;
        let sessions: Vec<Session> = of(&self.prompt.sessions().await?, &name).cloned().collect();

        self.narrator.command(&format!("pkill -KILL -f {}", leader.configuration().display()))?;
        self.stage.order(Order::Kill(leader.index)).await?;
        let killed = Instant::now();
        self.prompt.persist(&format!("session create page --user {UNLED} --no-wait --key {UNLED}-1")).await?;
        let after = killed.elapsed();
        let created = self.session_of(UNLED).await?;
        let (next, next_term) = self.prompt.leader().await?;
        self.narrator.say(&format!(
            "{} accepted it {:.1} s after {} was killed. {} leads now, in term {next_term} after term {term}.",
            created.node,
            after.as_secs_f64(),
            leader.name(),
            next.name()
        ))?;
        self.prompt.leads().await?;

        self.narrator.say(&format!("\nThe state of the sessions on {name} cannot be known now, so it is unknown:"))?;
        let all_unknown = async || {
            let listed = self.prompt.sessions().await?;
            let unknown = of(&listed, &name).all(|session| session.state == SessionState::Unknown);
            Ok(unknown.then_some(()))
        };
        self.prompt.until("the sessions of the killed agent are not shown as unknown", all_unknown).await?;
        self.prompt.ostler(&format!("session ls --node {name}")).await?;
        self.narrator.say("\nThey keep running without their agent; their pages answer:")?;
        self.prompt.pages(sessions.iter()).await?;
        Ok((leader, sessions))
    }

    async fn nothing_lost(&self, killed: Agent<'a>, lost: &[Session]) -> Result<(), Failure> {
        self.narrator.step("Its agent is started again")?;
        self.prompt.start(killed)?;
        self.stage.order(Order::Start(killed.index)).await?;
        let started = Instant::now();
        // The same container at the same endpoints, not a new one.
        let same = |one: &Session, other: &Session| {
            let same = one.id == other.id && one.container_id == other.container_id;
            same && one.endpoints == other.endpoints && other.state == SessionState::Running
        };
        let adopted = async || {
            let listed = self.prompt.sessions().await?;
            let back = |session: &Session| listed.iter().any(|now| same(session, now));
            let all_run = listed.iter().all(|session| session.state == SessionState::Running);
            Ok((all_run && lost.iter().all(back)).then_some(()))
        };
        self.prompt.until("the restarted agent has not taken over its sessions", adopted).await?;
        self.narrator.say(&format!(
            "After {:.1} s it has taken over its sessions: same containers, same ports. Nothing is lost.",
            started.elapsed().as_secs_f64()
        ))?;
        self.prompt.ostler("session ls").await?;
        self.prompt.ostler("node ls").await
    }

    async fn where_to_look(&self) -> Result<(), Failure> {
        self.narrator.step("Look around")?;
        let sessions = self.prompt.sessions().await?;
        self.prompt.pages(sessions.iter()).await?;
        self.narrator.say("\nIn another terminal:")?;
        self.prompt.export()?;
        if !self.is_on_path() {
            self.narrator.command(&format!("alias ostler={}", self.stage.plan.program.display()))?;
        }
        let id = sessions.first().map(short).unwrap_or_default();
        for line in [
            "status".to_owned(),
            format!("node show {}", self.other),
            "session ls".to_owned(),
            format!("session explain {id}"),
            format!("session logs {id}"),
            "session create page --user you".to_owned(),
        ] {
            self.narrator.command(&format!("ostler {line}"))?;
        }
        self.narrator.say("")
    }

    async fn session_of(&self, user: &str) -> Result<Session, Failure> {
        self.prompt.sessions().await?.into_iter().find(|session| session.user.as_str() == user).ok_or_else(gone)
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
            command: self.page_command.clone(),
            ports: vec![Port { container_port: page::PORT, protocol: Protocol::Tcp }],
            env: BTreeMap::from_iter(variables.into_iter().zip(values)),
            pull: PullPolicy::Missing,
            ..Workspace::new(named, cores, memory)
        })
    }

    /// Whether the command `ostler` runs this program.
    fn is_on_path(&self) -> bool {
        let program = std::fs::canonicalize(&self.stage.plan.program).ok();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = std::env::split_paths(&path).map(|directory| directory.join("ostler")).find(|file| file.exists());
        program.is_some() && first.and_then(|file| std::fs::canonicalize(file).ok()) == program
    }
}

/// The sessions of a node.
fn of<'s>(sessions: &'s [Session], node: &Name) -> impl Iterator<Item = &'s Session> {
    sessions.iter().filter(move |session| session.node == *node)
}

fn gone() -> Failure {
    Failure::Failed("the sessions of the demo are gone".to_owned())
}

/// A prefix of a session's id, long enough to be unique in a demo.
fn short(session: &Session) -> String {
    session.id.as_str().chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::plan::NODES;
    use crate::cli::demo::sizes::FULL;

    #[test]
    fn the_first_users_fill_the_nodes() {
        assert_eq!(u64::try_from(FIRST.len()).unwrap(), NODES * FULL);
    }
}
