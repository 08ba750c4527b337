//! Admission: whether this host takes a session.

use super::{Context, Registry};
use crate::capacity::room::{Shortage, shortage};
use crate::ledger::{Capacity, Refusal, Request};
use crate::runtime::container::PortBinding;
use crate::sessions::record::{Live, Record};
use crate::sessions::{Admit, Error};
use crate::types::{Dimension, Name, Reason, SessionId, User, Workspace};

impl Registry {
    /// Admits the session, or says why not and changes nothing. Returns true if the key was used for the same request
    /// before, and nothing new was created.
    pub fn admit(&mut self, admit: &Admit, cx: &Context<'_>) -> Result<bool, Error> {
        if admit.cluster != self.cluster || admit.destination != self.node {
            let meant = format!("this offer is for node {} of cluster {}", admit.destination, admit.cluster);
            return Err(Error::Conflict(meant));
        }
        self.fence(&admit.ballot).map_err(Error::Stale)?;
        // A session that this host could not start may be offered to it again, as a later attempt.
        let comes_back = |record: &Record| record.live().is_none() && record.origin().attempt < admit.asked.attempt;
        if self.find(&admit.session, &admit.asked.fingerprint)?.is_some_and(|record| !comes_back(record)) {
            return Ok(true);
        }
        self.check_host(&admit.asked.workspace, cx)?;
        let user = &admit.asked.user;

        let mut live = Live::admitted(admit, cx.now);
        live.ports = self.assign_ports(&admit.session, &admit.asked.workspace, cx)?;
        match self.reserve(&admit.session, user, &admit.asked.workspace, None, cx) {
            Ok(gpus) => live.status.gpu_uuids = gpus,
            Err(refused) => {
                self.ports.release(&admit.session);
                return Err(refused);
            }
        }
        if live.secret.is_none() && live.origin.wants_secret() {
            live.secret = Some((cx.draw_secret)());
        }
        self.insert(Record::Live(Box::new(live)));
        Ok(false)
    }

    /// The session of a key, if the key was used before, for the same request.
    pub fn find(&self, session: &SessionId, fingerprint: &str) -> Result<Option<&Record>, Error> {
        let Some(record) = self.records.get(session) else { return Ok(None) };
        // A session that was adopted from labels has no fingerprint: any request with its key is the same.
        let same = record.origin().fingerprint.as_ref().is_none_or(|known| known == fingerprint);
        if same { Ok(Some(record)) } else { Err(Error::IdempotencyMismatch) }
    }

    /// Checks what every new reservation needs, of a new session or of one that starts again.
    pub(super) fn check_host(&self, workspace: &Workspace, cx: &Context<'_>) -> Result<(), Error> {
        if !cx.node.settings.enabled {
            return Err(self.plain_refusal(cx, Reason::Disabled));
        }
        if cx.node.drain.is_some() {
            return Err(self.plain_refusal(cx, Reason::Draining));
        }
        if cx.duplicated {
            return Err(self.plain_refusal(cx, Reason::DuplicateNodeId));
        }
        // A container that was not listed yet may run, and counts as if it took all.
        if !self.engine_up || !self.is_listed {
            return Err(self.plain_refusal(cx, Reason::RuntimeUnavailable));
        }
        if workspace.network.as_ref().is_some_and(|network| !self.allows_network(network)) {
            return Err(self.plain_refusal(cx, Reason::Network));
        }
        self.check_disk(cx)?;
        self.check_node_limit(cx)
    }

    fn allows_network(&self, network: &Name) -> bool {
        self.config.networks.contains(network)
    }

    fn check_disk(&self, cx: &Context<'_>) -> Result<(), Error> {
        let (dimension, requested, available) = match shortage(&cx.report.disks, self.config.min_free_disk) {
            None => return Ok(()),
            Some(Shortage::Bytes { disk, least }) => (Dimension::DiskBytes, least.get(), disk.free_bytes.get()),
            Some(Shortage::Inodes { inodes, least, .. }) => (Dimension::DiskInodes, least, inodes.free),
        };
        let (requested, available) = (requested as f64, Some(available as f64));
        Err(self.refusal(
            cx,
            Refusal { reason: Reason::LowDisk, dimension, requested, available, physical: None, message: None },
        ))
    }

    fn check_node_limit(&self, cx: &Context<'_>) -> Result<(), Error> {
        let limit = self.config.max_sessions_per_node;
        let full = limit > 0 && self.ledger.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
        if !full {
            return Ok(());
        }
        Err(self.refusal(
            cx,
            Refusal {
                reason: Reason::SessionLimit,
                dimension: Dimension::Sessions,
                requested: 1.0,
                available: Some(0.0),
                physical: Some(f64::from(limit)),
                message: None,
            },
        ))
    }

    pub(super) fn check_quota(&self, user: &User, limit: u32) -> Result<(), Error> {
        if self.ledger.sessions_of(user) < limit {
            return Ok(());
        }
        Err(Error::Quota { user: user.clone(), limit })
    }

    pub(super) fn reserve(
        &mut self,
        session: &SessionId,
        user: &User,
        workspace: &Workspace,
        same_gpus: Option<&[String]>,
        cx: &Context<'_>,
    ) -> Result<Vec<String>, Error> {
        let gpus = if workspace.gpus > 0 { self.offered_gpus(cx) } else { Vec::new() };
        let capacity = Capacity {
            physical: cx.report.physical,
            effective: cx.effective(),
            gpus: &gpus,
            gpu_sharing: cx.node.settings.gpu_sharing,
            gpus_withheld: cx.report.gpus_withheld.as_deref(),
        };
        let request = Request {
            user,
            resources: workspace.resources(),
            gpu_memory: workspace.gpu_memory_bytes,
            gpu_class: workspace.gpu_class(),
            same_gpus,
        };
        let admitted = self.ledger.admit(session, request, &capacity);
        admitted.map_err(|refusal| self.refusal(cx, refusal))
    }

    fn assign_ports(
        &mut self,
        session: &SessionId,
        workspace: &Workspace,
        cx: &Context<'_>,
    ) -> Result<Vec<PortBinding>, Error> {
        let (wanted, range) = (workspace.ports.len(), self.config.port_range);
        let Some(host_ports) = self.ports.assign(session, wanted, range, cx.port_usable) else {
            let refusal = Refusal {
                reason: Reason::NoPorts,
                dimension: Dimension::Ports,
                requested: wanted as f64,
                available: Some(0.0),
                physical: Some(range.len() as f64),
                message: None,
            };
            return Err(self.refusal(cx, refusal));
        };
        let binding = |(port, host_port): (&crate::types::Port, u16)| PortBinding {
            container_port: port.container_port,
            protocol: port.protocol,
            host_port,
        };
        Ok(workspace.ports.iter().zip(host_ports).map(binding).collect())
    }
}
