//! The host's own decision on what fits.
//!
//! Pure integer arithmetic over what has been admitted. The owner of sessions
//! holds the only [`Ledger`] that decides; figures elsewhere are hints.
//! It is rebuilt from the journal at start, so it is not stored.

mod gpus;
mod ports;

use std::collections::HashMap;

use crate::types::{Dimension, GpuSharing, Name, NodeReason, Reason, Resources, SessionId, User};

pub use ports::{PortRange, Ports};

/// What the host has and offers at the moment of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Capacity<'a> {
    pub physical: Resources,
    pub effective: Resources,
    /// The devices, by UUID, in the driver's order.
    pub gpus: &'a [String],
    pub gpu_sharing: GpuSharing,
}

/// What one session holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    pub user: User,
    pub resources: Resources,
    /// Distinct devices, as many as `resources.gpus`.
    pub gpus: Vec<String>,
}

/// Why a session does not fit, with the figures that were compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refusal {
    pub reason: Reason,
    pub dimension: Dimension,
    pub requested: f64,
    /// `None`: not known.
    pub available: Option<f64>,
    pub physical: Option<f64>,
}

impl Refusal {
    /// The refusal as this node's reason.
    pub const fn on(self, node: Name) -> NodeReason {
        NodeReason {
            node,
            reason: self.reason,
            dimension: Some(self.dimension),
            requested: Some(self.requested),
            available: self.available,
            physical: self.physical,
            message: None,
        }
    }
}

/// Everything that admitted sessions hold.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    reservations: HashMap<SessionId, Reservation>,
    allocated: Resources,
    gpus: gpus::Holders,
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
    /// With `same_gpus`, only those devices are considered.
    ///
    /// A session that already holds a reservation keeps it and gets the same answer.
    pub fn admit(
        &mut self,
        session: &SessionId,
        user: &User,
        request: Resources,
        same_gpus: Option<&[String]>,
        capacity: &Capacity<'_>,
    ) -> Result<Vec<String>, Refusal> {
        if let Some(held) = self.reservations.get(session) {
            return Ok(held.gpus.clone());
        }
        fits(request, self.allocated, capacity.physical, capacity.effective)?;
        let gpus = self.gpus.choose(user, request.gpus, same_gpus, capacity)?;
        self.restore(*session, Reservation { user: user.clone(), resources: request, gpus: gpus.clone() });
        Ok(gpus)
    }

    /// Enters a reservation that was admitted before, whatever the host offers now.
    pub fn restore(&mut self, session: SessionId, reservation: Reservation) {
        self.release(&session);
        self.allocated = self.allocated.saturating_add(reservation.resources);
        self.gpus.take(&reservation.user, &reservation.gpus);
        *self.users.entry(reservation.user.clone()).or_default() += 1;
        self.reservations.insert(session, reservation);
    }

    /// Releases what the session holds and returns it; `None` if it holds nothing.
    pub fn release(&mut self, session: &SessionId) -> Option<Reservation> {
        let reservation = self.reservations.remove(session)?;
        self.allocated = self.allocated.saturating_sub(reservation.resources);
        self.gpus.give_back(&reservation.user, &reservation.gpus);
        if let Some(count) = self.users.get_mut(&reservation.user) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&reservation.user);
            }
        }
        Some(reservation)
    }

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

    /// How many sessions hold this GPU.
    pub fn gpu_slots_used(&self, uuid: &str) -> u32 {
        self.gpus.slots_used(uuid)
    }
}

#[cfg(test)]
mod tests;
