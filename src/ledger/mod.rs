//! The host's own decision on what fits.
//!
//! Pure integer arithmetic over what has been admitted. The owner of sessions
//! holds the only [`Ledger`] that decides; figures elsewhere are hints.
//! It is rebuilt from the journal at start, so it is not stored.

pub mod gpus;
mod ports;

use std::collections::{BTreeMap, HashMap};

use crate::types::{Bytes, Dimension, GpuSharing, GpuState, Name, NodeReason, Reason, Resources, SessionId, User};

pub use ports::{PortRange, Ports};

/// What the host has and offers at the moment of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Capacity<'a> {
    pub physical: Resources,
    /// Of GPUs, every slot, as if all devices took sessions.
    pub effective: Resources,
    /// The devices known since this boot, in the order of their UUIDs.
    pub gpus: &'a [gpus::Offered],
    pub gpu_sharing: GpuSharing,
    /// Why no device takes sessions now, for people; `None`: each device's state says.
    pub gpus_withheld: Option<&'a str>,
}

/// What a session asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub user: &'a User,
    pub resources: Resources,
    /// Memory that it declares of each GPU.
    pub gpu_memory: Option<Bytes>,
    pub gpu_class: &'a str,
    /// The GPUs that it had before: only these will do.
    pub same_gpus: Option<&'a [String]>,
}

/// What one session holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    pub user: User,
    pub resources: Resources,
    /// Distinct devices, as many as `resources.gpus`.
    pub gpus: Vec<String>,
    /// What it declares of the memory of each.
    pub gpu_memory: Bytes,
}

/// Why a session does not fit, with the figures that were compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub reason: Reason,
    pub dimension: Dimension,
    pub requested: f64,
    /// `None`: not known.
    pub available: Option<f64>,
    pub physical: Option<f64>,
    /// What the figures do not say, for people.
    pub message: Option<String>,
}

impl Refusal {
    /// The refusal as this node's reason.
    pub fn on(self, node: Name) -> NodeReason {
        NodeReason {
            node,
            reason: self.reason,
            dimension: Some(self.dimension),
            requested: Some(self.requested),
            available: self.available,
            physical: self.physical,
            message: self.message,
        }
    }
}

/// Everything that admitted sessions hold.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    reservations: HashMap<SessionId, Reservation>,
    allocated: Resources,
    gpus: gpus::Holders,
    /// GPUs of sessions that have ended, which are not known to be free of their processes.
    leaving: BTreeMap<SessionId, Reservation>,
    users: HashMap<User, u32>,
}

/// The two rules of admission, for each dimension: a session never gets more than the host has, and
/// all admitted sessions together never exceed what the host offers. An override therefore
/// oversubscribes a host, never a single session.
///
/// Returns the first dimension that is short. Does not check GPU sharing.
pub fn fits(
    request: Resources,
    allocated: Resources,
    physical: Resources,
    effective: Resources,
) -> Result<(), Refusal> {
    let refusal = |reason, dimension| {
        let available = if reason == Reason::ExceedsPhysical { physical } else { effective.saturating_sub(allocated) };
        let is_known = physical.known(dimension);
        Refusal {
            reason,
            dimension,
            requested: request.figure(dimension).unwrap_or_default(),
            available: available.figure(dimension).filter(|_| is_known),
            physical: physical.figure(dimension).filter(|_| is_known),
            message: None,
        }
    };
    lacks(request, allocated, physical, effective).map_or(Ok(()), |(reason, dimension)| Err(refusal(reason, dimension)))
}

/// Like [`fits`] without the figures, for callers that check many hosts: the reason, and the dimension that is short.
pub fn lacks(
    request: Resources,
    allocated: Resources,
    physical: Resources,
    effective: Resources,
) -> Option<(Reason, Dimension)> {
    if let Some(dimension) = request.exceeds(&physical) {
        // It may fit once the figure is known.
        let reason = if physical.known(dimension) { Reason::ExceedsPhysical } else { Reason::PhysicalUnknown };
        return Some((reason, dimension));
    }
    short(request, allocated, effective).map(|dimension| (Reason::NoCapacity, dimension))
}

/// The first dimension in which the sum would exceed what the host offers. A dimension that the session
/// asks nothing of never rejects it, however overcommitted that dimension is.
fn short(request: Resources, allocated: Resources, effective: Resources) -> Option<Dimension> {
    let sum = allocated.saturating_add(request);
    let asked = Resources {
        cores: if request.cores.is_zero() { request.cores } else { sum.cores },
        memory: if request.memory.is_zero() { request.memory } else { sum.memory },
        gpus: if request.gpus == 0 { 0 } else { sum.gpus },
    };
    asked.exceeds(&effective)
}

impl Ledger {
    /// Reserves what the session asks for and returns its GPUs, or says what is short and changes nothing.
    ///
    /// A session that already holds a reservation keeps it and gets the same answer. One that is [leaving](Self::restore_leaving)
    /// its GPUs may have them again.
    pub fn admit(
        &mut self,
        session: &SessionId,
        request: Request<'_>,
        capacity: &Capacity<'_>,
    ) -> Result<Vec<String>, Refusal> {
        if let Some(held) = self.reservations.get(session) {
            return Ok(held.gpus.clone());
        }
        let leaving = self.free_gpus(session);
        match self.choose(request, capacity) {
            Ok(gpus) => {
                let gpu_memory = request.gpu_memory.unwrap_or_default();
                let (user, resources) = (request.user.clone(), request.resources);
                self.restore(*session, Reservation { user, resources, gpus: gpus.clone(), gpu_memory });
                Ok(gpus)
            }
            Err(refusal) => {
                if let Some(leaving) = leaving {
                    self.restore_leaving(*session, leaving);
                }
                Err(refusal)
            }
        }
    }

    fn choose(&self, request: Request<'_>, capacity: &Capacity<'_>) -> Result<Vec<String>, Refusal> {
        let Request { user, resources, gpu_memory: memory, gpu_class: class, same_gpus: same } = request;
        let effective = Resources { gpus: self.offered_gpus(capacity), ..capacity.effective };
        let wish = gpus::Wish { count: resources.gpus, memory, class, same };
        let sums = fits(resources, self.allocated, capacity.physical, effective);
        let gpus = gpus::choose(&self.gpus.candidates(capacity.gpus), user, wish, capacity.gpu_sharing);
        // What can never be is said before what is only not possible now.
        let refusals = [sums.err(), gpus.as_ref().err().cloned()];
        let refusals = || refusals.iter().flatten();
        match refusals().find(|refusal| refusal.reason.is_for_good()).or_else(|| refusals().next()) {
            Some(refusal) => Err(Refusal { message: why_no_gpu(refusal, capacity), ..refusal.clone() }),
            None => Ok(gpus.unwrap_or_default().into_iter().map(str::to_owned).collect()),
        }
    }

    /// The GPU slots that the host [offers](gpus::offered).
    pub fn offered_gpus(&self, capacity: &Capacity<'_>) -> u32 {
        let usable = |state: GpuState| state.is_usable() && capacity.gpus_withheld.is_none();
        gpus::offered(
            capacity.gpus.iter().map(|device| (usable(device.state), device.slots, self.gpus.slots_used(&device.uuid))),
        )
    }

    /// Enters a reservation that was admitted before, whatever the host offers now.
    pub fn restore(&mut self, session: SessionId, reservation: Reservation) {
        self.release(&session);
        self.hold(&reservation);
        *self.users.entry(reservation.user.clone()).or_default() += 1;
        self.reservations.insert(session, reservation);
    }

    /// Enters GPUs that a session which has ended may still be on: they stay its own until [`Self::free_gpus`].
    pub fn restore_leaving(&mut self, session: SessionId, mut leaving: Reservation) {
        self.free_gpus(&session);
        leaving.resources =
            Resources { gpus: u32::try_from(leaving.gpus.len()).unwrap_or(u32::MAX), ..Resources::ZERO };
        if !leaving.gpus.is_empty() {
            self.hold(&leaving);
            self.leaving.insert(session, leaving);
        }
    }

    /// Releases the GPUs that the session is leaving, and returns them; `None` if there are none.
    pub fn free_gpus(&mut self, session: &SessionId) -> Option<Reservation> {
        let leaving = self.leaving.remove(session)?;
        self.let_go(&leaving);
        Some(leaving)
    }

    /// Releases what the session holds and returns it; `None` if it holds nothing.
    pub fn release(&mut self, session: &SessionId) -> Option<Reservation> {
        let reservation = self.reservations.remove(session)?;
        self.let_go(&reservation);
        if let Some(count) = self.users.get_mut(&reservation.user) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&reservation.user);
            }
        }
        Some(reservation)
    }

    fn hold(&mut self, reservation: &Reservation) {
        self.allocated = self.allocated.saturating_add(reservation.resources);
        self.gpus.take(&reservation.user, &reservation.gpus, reservation.gpu_memory);
    }

    fn let_go(&mut self, reservation: &Reservation) {
        self.allocated = self.allocated.saturating_sub(reservation.resources);
        self.gpus.give_back(&reservation.user, &reservation.gpus, reservation.gpu_memory);
    }

    /// What sessions reserve together, with the GPUs that ended ones are leaving.
    pub const fn allocated(&self) -> Resources {
        self.allocated
    }

    /// How many sessions hold a reservation.
    pub fn len(&self) -> usize {
        self.reservations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.reservations.is_empty()
    }

    /// How many sessions of this user hold a reservation.
    pub fn sessions_of(&self, user: &User) -> u32 {
        self.users.get(user).copied().unwrap_or(0)
    }

    /// What sessions hold of this GPU.
    pub fn gpu_held(&self, uuid: &str) -> gpus::Held {
        self.gpus.held(uuid)
    }

    /// The sessions that have ended and may still be on their GPUs.
    pub fn leaving(&self) -> impl Iterator<Item = &SessionId> {
        self.leaving.keys()
    }
}

/// What the figures of a refusal for GPUs do not say.
fn why_no_gpu(refusal: &Refusal, capacity: &Capacity<'_>) -> Option<String> {
    let is_for_now = refusal.reason == Reason::NoCapacity && refusal.dimension == Dimension::Gpus;
    let why = || {
        let states = || gpus::why_not(capacity.gpus.iter().map(|device| &device.state));
        capacity.gpus_withheld.map(str::to_owned).or_else(states)
    };
    is_for_now.then(why).flatten()
}

#[cfg(test)]
mod tests;
