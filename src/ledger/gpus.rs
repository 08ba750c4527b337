//! Which GPUs a session gets: distinct devices, the least shared first, shared between users only if allowed.

use std::collections::{BTreeMap, HashMap};

use super::{Capacity, Refusal};
use crate::capacity::effective::slots_per_device;
use crate::types::{Dimension, GpuSharing, Reason, User};

/// The sessions on each device, counted per user. A device without sessions has no entry.
#[derive(Debug, Clone, Default)]
pub(super) struct Holders(HashMap<String, Shares>);

/// The sessions on one device.
#[derive(Debug, Clone, Default)]
struct Shares {
    /// The number of sessions: the sum of `users`.
    slots: u32,
    users: BTreeMap<User, u32>,
}

impl Holders {
    /// Chooses devices for a session. The caller has checked sums and physical bounds.
    pub(super) fn choose(
        &self,
        user: &User,
        wanted: u32,
        same: Option<&[String]>,
        capacity: &Capacity<'_>,
    ) -> Result<Vec<String>, Refusal> {
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let slots = slots_per_device(capacity.physical.gpus, capacity.effective.gpus);
        let used = |shares: Option<&Shares>| shares.map_or(0, |shares| shares.slots);
        let mut with_room: Vec<(&String, Option<&Shares>)> = capacity
            .gpus
            .iter()
            .zip(slots)
            .map(|(gpu, slots)| (gpu, self.0.get(gpu), slots))
            .filter(|(_, shares, slots)| used(*shares) < *slots)
            .map(|(gpu, shares, _)| (gpu, shares))
            .collect();
        if let Some(same) = same {
            with_room.retain(|(gpu, _)| same.contains(gpu));
        }
        // The sort is stable: devices that are equally shared stay in the driver's order.
        with_room.sort_by_key(|(_, shares)| used(*shares));
        let may_share = |shares: &Shares| match capacity.gpu_sharing {
            GpuSharing::None => false,
            GpuSharing::SameUser => shares.users.keys().all(|holder| holder == user),
            GpuSharing::Any => true,
        };
        let allowed: Vec<&String> =
            with_room.iter().filter(|(_, shares)| shares.is_none_or(may_share)).map(|(gpu, _)| *gpu).collect();

        let wanted_len = usize::try_from(wanted).unwrap_or(usize::MAX);
        if allowed.len() >= wanted_len {
            return Ok(allowed.into_iter().take(wanted_len).cloned().collect());
        }
        let reason = if with_room.len() >= wanted_len { Reason::GpuSharing } else { Reason::NoCapacity };
        Err(Refusal {
            reason,
            dimension: Dimension::Gpus,
            requested: f64::from(wanted),
            available: Some(allowed.len() as f64),
            physical: Some(f64::from(capacity.physical.gpus)),
        })
    }

    pub(super) fn take(&mut self, user: &User, gpus: &[String]) {
        for gpu in gpus {
            let shares = self.0.entry(gpu.clone()).or_default();
            shares.slots += 1;
            *shares.users.entry(user.clone()).or_default() += 1;
        }
    }

    pub(super) fn give_back(&mut self, user: &User, gpus: &[String]) {
        for gpu in gpus {
            let Some(shares) = self.0.get_mut(gpu) else { continue };
            let Some(count) = shares.users.get_mut(user) else { continue };
            *count -= 1;
            shares.slots -= 1;
            if *count == 0 {
                shares.users.remove(user);
            }
            if shares.slots == 0 {
                self.0.remove(gpu);
            }
        }
    }

    pub(super) fn slots_used(&self, gpu: &str) -> u32 {
        self.0.get(gpu).map_or(0, |shares| shares.slots)
    }
}
