//! A container engine. It keeps running when the agent is killed, and completes what was requested before that.

use std::collections::BTreeMap;
use std::sync::Arc;

use ostler::runtime::{Container, Error, Exit, Found, Launch, Provided, Run};
use ostler::sessions::runner::{Done, Op};
use ostler::types::{NodeId, SessionId, Timestamp};

/// A request of a runner to the engine.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    EnsureImage,
    Op(Op, Arc<Launch>),
    /// Fails without any change.
    Fail(Error),
}

/// The containers of one host.
#[derive(Debug, Default)]
pub(crate) struct Engine {
    containers: BTreeMap<SessionId, (Arc<Launch>, Container)>,
    runs: u64,
}

impl Engine {
    /// Executes a step.
    pub(crate) fn take(&mut self, session: &SessionId, step: &Step) -> Result<Done, Error> {
        let (op, launch) = match step {
            Step::EnsureImage => return Ok(Done::ImageIsHere(Provided::default())),
            Step::Fail(error) => return Err(error.clone()),
            Step::Op(op, launch) => (*op, launch),
        };
        match op {
            Op::Observe => {
                let seen = self.containers.get(session).map_or(Container::Absent, |(_, container)| container.clone());
                return Ok(Done::Saw(seen.into()));
            }
            Op::Create => {
                // Creating is idempotent: an existing container of the session is the answer.
                let created = || (Arc::clone(launch), Container::Created);
                self.containers.entry(*session).or_insert_with(created);
                return Ok(Done::Created { container_id: container_id(session) });
            }
            Op::Remove => {
                self.containers.remove(session);
                return Ok(Done::Removed);
            }
            Op::Verify => return Ok(Done::Verified { remark: None }),
            Op::Start | Op::Pause | Op::Resume | Op::Stop => {}
        }
        let Some((_, container)) = self.containers.get_mut(session) else {
            return Err(Error::NotFound(session.to_string()));
        };
        *container = match (op, container.clone()) {
            (Op::Start, Container::Created | Container::Exited(_)) => {
                self.runs += 1;
                Container::Running(Run(self.runs.to_string()))
            }
            (Op::Pause, Container::Running(run)) => Container::Paused(run),
            (Op::Resume, Container::Paused(run)) => Container::Running(run),
            (Op::Stop, Container::Running(run) | Container::Paused(run)) => Container::Exited(exit(run, 143)),
            (_, as_it_is) => as_it_is,
        };
        Ok(Done::Stepped)
    }

    /// The main process of a container ends by itself.
    pub(crate) fn end(&mut self, session: &SessionId, code: i64) {
        if let Some((_, container)) = self.containers.get_mut(session)
            && let Container::Running(run) = container
        {
            *container = Container::Exited(exit(run.clone(), code));
        }
    }

    /// The host restarts, which ends every container.
    pub(crate) fn reboot(&mut self) {
        for (_, container) in self.containers.values_mut() {
            if let Container::Running(run) | Container::Paused(run) = container {
                *container = Container::Exited(exit(run.clone(), 255));
            }
        }
    }

    /// Every container, with its labels.
    pub(crate) fn list(&self, node: &NodeId) -> Vec<Found> {
        let found = |(id, (launch, container)): (&SessionId, &(Arc<Launch>, Container))| Found {
            container_id: container_id(id),
            renamed: None,
            node: *node,
            session: *id,
            user: launch.user.clone(),
            workspace: launch.workspace.clone(),
            resources: launch.resources,
            gpu_uuids: launch.gpu_uuids.clone(),
            gpu_memory: launch.gpu_memory,
            image: launch.image.clone(),
            ports: launch.ports.clone(),
            created_at: Timestamp::default(),
            container: Some(container.clone()),
        };
        self.containers.iter().map(found).collect()
    }

    /// The sessions whose processes run, paused or not.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &SessionId> {
        let alive = |container: &Container| matches!(container, Container::Running(_) | Container::Paused(_));
        self.containers.iter().filter(move |(_, (_, container))| alive(container)).map(|(id, _)| id)
    }
}

pub(crate) fn container_id(session: &SessionId) -> String {
    format!("container-{session}")
}

const fn exit(run: Run, code: i64) -> Exit {
    Exit::new(run, code)
}
