//! The story: each step is a command as a person would type it, run as it would be.

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

/// Who comes first, one for each session that fits.
const FIRST: [&str; 6] = ["alice", "bob", "carol", "dave", "erin", "frank"];
/// Who comes when it is full.
const LATE: &str = "grace";
/// Who wants too much.
const GREEDY: &str = "heidi";
/// Who comes while a node is drained.
const MEANWHILE: &str = "ivan";
/// Who comes when the leader is gone.
const UNLED: &str = "judy";

pub(super) struct Show<'a> {
    prompt: Prompt<'a>,
    stage: &'a Stage,
    narrator: &'a Narrator<'a>,
    /// The node that is changed and drained: neither the one that is asked nor the one that leads at first.
    other: Name,
    sizes: Sizes,
    /// The command words of a session that serves a page.
    page_command: Vec<String>,
}

impl<'a> Show<'a> {
    /// The first step up to where there is a cluster to ask.
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
            "They have found each other, and elected {}. Any node takes any request: {} is asked, which does not lead.",
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
            "\nThe figures are made up, and marked so: three agents share this machine, and each is told to have {} \
             cores and {} of it.",
            self.sizes.node_cores, self.sizes.node_memory
        ))
    }

    async fn a_catalogue(&self) -> Result<(), Failure> {
        self.narrator.step("A catalogue: what sessions are made from")?;
        let catalogue = export(&self.workspaces()?)?;
        let file = self.stage.plan.catalogue();
        std::fs::write(&file, catalogue)
            .map_err(|e| Failure::Failed(format!("{} cannot be written: {e}", file.display())))?;
        self.prompt.ostler(&format!("workspace apply -f {}", file.display())).await?;
        self.prompt.ostler("workspace ls").await
    }

    async fn sessions(&self) -> Result<(), Failure> {
        self.narrator.step("A session for each of six people")?;
        for user in FIRST {
            self.prompt.ostler(&format!("session create page --user {user}")).await?;
        }
        self.narrator.say("\nThey are spread over the nodes. Each serves a page. They answer; click one:")?;
        self.prompt.pages(self.prompt.sessions().await?.iter()).await?;
        self.narrator.say(&format!(
            "\nIt does not matter who is asked: {} passes it on to the leader, and the answer says so:",
            self.prompt.asked()
        ))?;
        self.prompt.headers().await
    }

    async fn no_room(&self) -> Result<(), Failure> {
        self.narrator.step("The cluster is full")?;
        self.prompt.refused(&format!("session create page --user {LATE}"), ErrorCode::NoCapacity).await?;
        self.narrator.say(
            "\nRefused, not queued, with what was compared on every node: it may fit later, so the API says 503 and \
             Retry-After.",
        )
    }

    async fn more_than_there_is(&self) -> Result<(), Failure> {
        self.narrator.step("Say that one node may offer more cores than it has")?;
        let offer = format!("node set {} --cores-override {}", self.other, self.sizes.offered_cores);
        self.prompt.ostler(&offer).await?;
        self.prompt.ostler(&format!("session create page --user {LATE}")).await?;
        self.prompt.bars(&self.other).await?;
        self.narrator.say(
            "\nPeople seldom all work at the same time. The change is in force already, and outlives a restart. Memory \
             stays what it is, unless you say so too: --memory-override.",
        )
    }

    async fn never(&self) -> Result<(), Failure> {
        self.narrator.step("An override oversubscribes a host, never one session")?;
        self.prompt.refused(&format!("session create giant --user {GREEDY}"), ErrorCode::ExceedsPhysical).await?;
        self.narrator.say("\nNo host of the cluster could ever run it: refused for good, 422, and no use to try again.")
    }

    async fn room_again(&self) -> Result<(), Failure> {
        self.narrator.step("Stopped sessions give their room back")?;
        let sessions = self.prompt.sessions().await?;
        let here = of(&sessions, &self.other).next().ok_or_else(gone)?;
        self.prompt.ostler(&format!("session stop {}", short(here))).await?;
        self.narrator.say("It keeps its container and its port. Two others leave for good, one on each other node:")?;
        // One session of each other node.
        let elsewhere = sessions.iter().filter(|session| session.node != self.other);
        let leave: BTreeMap<&Name, &Session> = elsewhere.map(|session| (&session.node, session)).collect();
        let ids: Vec<String> = leave.into_values().map(short).collect();
        self.prompt.ostler(&format!("session rm {}", ids.join(" "))).await?;
        self.prompt.ostler("session ls").await
    }

    async fn a_drain(&self) -> Result<(), Failure> {
        self.narrator.step("A node is emptied for maintenance")?;
        let other = &self.other;
        self.prompt.ostler(&format!("node drain {other} --message maintenance")).await?;
        self.prompt.drain(other).await?;
        self.narrator.say(
            "\nNothing is moved or stopped: it waits for those. What is new goes elsewhere, though there is room:",
        )?;
        self.prompt.ostler(&format!("session create page --user {MEANWHILE}")).await?;
        let created = self.session_of(MEANWHILE).await?;
        self.prompt.ostler(&format!("session explain {}", short(&created))).await?;
        self.prompt.ostler(&format!("node undrain {other}")).await?;
        self.narrator.say("The session that was stopped there starts again where it was:")?;
        let sessions = self.prompt.sessions().await?;
        let stopped = sessions.iter().find(|session| session.state == SessionState::Stopped).ok_or_else(gone)?;
        self.prompt.ostler(&format!("session start {}", short(stopped))).await
    }

    /// Answers whose agent was killed, and the sessions that are there.
    async fn a_leader_killed(&mut self) -> Result<(Agent<'a>, Vec<Session>), Failure> {
        self.narrator.step("The leader is killed")?;
        let plan = &self.stage.plan;
        let (leader, term) = self.prompt.leader().await?;
        if leader.name() == self.prompt.asked() {
            self.narrator.say(&format!("{} leads by now; another one is asked.", leader.name()))?;
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
            "Accepted by {} {:.1} s after {} was killed. {} leads now: term {next_term}, it was {term}.",
            created.node,
            after.as_secs_f64(),
            leader.name(),
            next.name()
        ))?;
        self.prompt.leads().await?;

        self.narrator.say(&format!("\nWhat becomes of the sessions of {name} nobody can say, so nobody guesses:"))?;
        let all_unknown = async || {
            let listed = self.prompt.sessions().await?;
            let unknown = of(&listed, &name).all(|session| session.state == SessionState::Unknown);
            Ok(unknown.then_some(()))
        };
        self.prompt.until("the sessions of the killed agent are not unknown", all_unknown).await?;
        self.prompt.ostler(&format!("session ls --node {name}")).await?;
        self.narrator.say("\nThey run on without their agent; their pages answer:")?;
        self.prompt.pages(sessions.iter()).await?;
        Ok((leader, sessions))
    }

    async fn nothing_lost(&self, killed: Agent<'a>, lost: &[Session]) -> Result<(), Failure> {
        self.narrator.step("Its agent is started again")?;
        self.prompt.start(killed)?;
        self.stage.order(Order::Start(killed.index)).await?;
        let started = Instant::now();
        // The same container, at the same place: not one like it.
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
        self.prompt.until("the sessions are not adopted", adopted).await?;
        self.narrator.say(&format!(
            "After {:.1} s it has taken its sessions over: the same, at the same ports. Nothing is lost.",
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

    /// Whether typing `ostler` runs this very program.
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

/// As much of a session's id as nobody else's begins with, in a demo.
fn short(session: &Session) -> String {
    session.id.as_str().chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::plan::NODES;
    use crate::cli::demo::sizes::FULL;

    #[test]
    fn as_many_people_come_as_fit() {
        assert_eq!(u64::try_from(FIRST.len()).unwrap(), NODES * FULL);
    }
}
