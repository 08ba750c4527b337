//! Which GPUs a session gets: distinct devices that take sessions, the least shared first, shared between users only
//! if allowed, with as much memory as the session declares.

use std::collections::{BTreeMap, HashMap};

use super::Refusal;
use crate::gpu::device::{Device, Presence};
use crate::types::{Bytes, Dimension, GpuSharing, GpuState, Reason, User};

/// What a session wants of its GPUs.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    pub count: u32,
    /// Memory that it declares of each; `None`: nothing, and it may take all.
    pub memory: Option<Bytes>,
    /// The class of the devices.
    pub class: &'a str,
    /// Only these devices will do.
    pub same: Option<&'a [String]>,
}

/// A device at the moment of a decision, without what sessions hold of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    pub uuid: String,
    pub class: String,
    pub state: GpuState,
    /// How many sessions may hold it at once under the override.
    pub slots: u32,
    /// `None`: not known, as of devices that share the memory of the host.
    pub memory: Option<Memory>,
}

/// The memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total: Bytes,
    pub free: Bytes,
    /// In use by processes that are not of sessions.
    pub foreign: Bytes,
}

/// What sessions hold of a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    pub slots: u32,
    /// The user of all these sessions; `None` where there is none, or where several users share it.
    pub holder: Option<User>,
    /// The sum of what they declare of its memory.
    pub declared: Bytes,
}

/// A device that a session may get, as the host or its leader sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub uuid: &'a str,
    pub class: &'a str,
    pub state: GpuState,
    pub slots: u32,
    pub used: u32,
    /// As [`Held::holder`].
    pub holder: Option<&'a User>,
    pub declared: Bytes,
    pub memory: Option<Memory>,
}

impl Candidate<'_> {
    const fn has_room(&self) -> bool {
        self.state.is_usable() && self.used < self.slots
    }

    fn may_be_shared(&self, user: &User, sharing: GpuSharing) -> bool {
        self.used == 0
            || match sharing {
                GpuSharing::None => false,
                GpuSharing::SameUser => self.holder == Some(user),
                GpuSharing::Any => true,
            }
    }

    /// Whether this much is neither declared nor used by processes of others, and free now.
    fn has_memory(&self, wanted: Option<Bytes>) -> bool {
        let Some(wanted) = wanted else { return true };
        self.memory.is_some_and(|memory| wanted <= self.undeclared(memory) && wanted <= memory.free)
    }

    const fn undeclared(&self, memory: Memory) -> Bytes {
        memory.total.saturating_sub(memory.foreign).saturating_sub(self.declared)
    }
}

/// Chooses devices for a session. Devices that are equally shared are taken in the order in which they come.
///
/// # Errors
/// The first rule that leaves too few devices, with the figures that were compared.
pub fn choose<'a>(
    devices: &[Candidate<'a>],
    user: &User,
    wish: Wish<'_>,
    sharing: GpuSharing,
) -> Result<Vec<&'a str>, Refusal> {
    let wanted = usize::try_from(wish.count).unwrap_or(usize::MAX);
    if wanted == 0 {
        return Ok(Vec::new());
    }
    let mut left = large_enough(devices, wish)?;
    let physical = left.len();
    let same = |uuid: &str| wish.same.is_none_or(|same| same.iter().any(|one| one == uuid));
    left.retain(|device| device.has_room() && same(device.uuid));
    if left.len() < wanted {
        return Err(too_few(Reason::NoCapacity, wish.count, left.len(), physical));
    }
    left.retain(|device| device.may_be_shared(user, sharing));
    if left.len() < wanted {
        return Err(too_few(Reason::GpuSharing, wish.count, left.len(), physical));
    }
    let with_room = left.clone();
    left.retain(|device| device.has_memory(wish.memory));
    if left.len() < wanted {
        return Err(no_memory(&with_room, wish));
    }
    // The sort is stable.
    left.sort_by_key(|device| device.used);
    Ok(left.into_iter().take(wanted).map(|device| device.uuid).collect())
}

/// The devices of the wished class, if there are enough of them that are large enough, free or not.
///
/// # Errors
/// The host never has such devices.
pub fn large_enough<'a, 'd>(devices: &'d [Candidate<'a>], wish: Wish<'_>) -> Result<Vec<&'d Candidate<'a>>, Refusal> {
    let wanted = usize::try_from(wish.count).unwrap_or(usize::MAX);
    let of_class: Vec<&Candidate<'a>> = devices.iter().filter(|device| device.class == wish.class).collect();
    if of_class.len() < wanted {
        let reason = if of_class.is_empty() { Reason::GpuClass } else { Reason::ExceedsPhysical };
        return Err(too_few(reason, wish.count, of_class.len(), of_class.len()));
    }
    check_total_memory(&of_class, wish)?;
    Ok(of_class)
}

/// Checks that so many devices are large enough: a device never gets larger.
fn check_total_memory(devices: &[&Candidate<'_>], wish: Wish<'_>) -> Result<(), Refusal> {
    let Some(wanted) = wish.memory else { return Ok(()) };
    let count = usize::try_from(wish.count).unwrap_or(usize::MAX);
    let known = || devices.iter().filter_map(|device| device.memory);
    if known().filter(|memory| memory.total >= wanted).count() >= count {
        return Ok(());
    }
    let largest = known().map(|memory| memory.total).max().map(figure);
    let all_known = known().count() == devices.len();
    let reason = if all_known { Reason::ExceedsPhysical } else { Reason::GpuMemoryUnknown };
    let dimension = Dimension::GpuMemoryBytes;
    Err(Refusal { reason, dimension, requested: figure(wanted), available: largest, physical: largest, message: None })
}

fn no_memory(devices: &[&Candidate<'_>], wish: Wish<'_>) -> Refusal {
    let available = |device: &&Candidate<'_>| Some(device.undeclared(device.memory?).min(device.memory?.free));
    Refusal {
        reason: Reason::NoCapacity,
        dimension: Dimension::GpuMemoryBytes,
        requested: figure(wish.memory.unwrap_or_default()),
        available: devices.iter().filter_map(available).max().map(figure),
        physical: devices.iter().filter_map(|device| Some(device.memory?.total)).max().map(figure),
        message: None,
    }
}

fn too_few(reason: Reason, wanted: u32, available: usize, physical: usize) -> Refusal {
    Refusal {
        reason,
        dimension: Dimension::Gpus,
        requested: f64::from(wanted),
        available: Some(available as f64),
        physical: Some(physical as f64),
        message: None,
    }
}

const fn figure(bytes: Bytes) -> f64 {
    bytes.get() as f64
}

/// Why devices take no sessions, for people: `1 of 2 GPUs is lost`. `None`: all take sessions.
pub fn why_not<'a>(states: impl IntoIterator<Item = &'a GpuState>) -> Option<String> {
    let mut counts: BTreeMap<GpuState, u32> = BTreeMap::new();
    let mut all = 0_u32;
    for state in states {
        all += 1;
        if !state.is_usable() {
            *counts.entry(*state).or_default() += 1;
        }
    }
    let of = if all == 1 { "GPU" } else { "GPUs" };
    let told = |(state, count): (&GpuState, &u32)| {
        format!("{count} of {all} {of} {} {state}", if *count == 1 { "is" } else { "are" })
    };
    (!counts.is_empty()).then(|| counts.iter().map(told).collect::<Vec<_>>().join(", "))
}

/// What a host offers in GPUs: the slots of the devices that take sessions, and those that sessions hold of the others.
/// So what is offered and not allocated is what can be had.
pub fn offered(devices: impl IntoIterator<Item = (bool, u32, u32)>) -> u32 {
    let slots = |(usable, slots, used): (bool, u32, u32)| if usable { slots } else { slots.min(used) };
    devices.into_iter().map(slots).fold(0, u32::saturating_add)
}

/// Whether a device takes sessions, and why not. `quarantined` and `foreign`: what the owner of sessions found.
pub fn judge(device: &Device, quarantined: Option<&str>, foreign: Option<&str>) -> (GpuState, Option<String>) {
    if let Presence::Lost { why, .. } = &device.presence {
        (GpuState::Lost, Some(why.clone()))
    } else if let Some(why) = &device.failing {
        (GpuState::Failing, Some(why.clone()))
    } else if let Some(why) = &device.unlisted {
        (GpuState::Unlisted, Some(why.clone()))
    } else if let Some(why) = quarantined {
        (GpuState::Quarantined, Some(why.to_owned()))
    } else if device.cordoned {
        (GpuState::Cordoned, Some(format!("to end it run: ostler gpu uncordon {}", device.uuid)))
    } else if device.hot {
        // The temperature is a reading: here it would change what the node is each time it is read.
        (GpuState::Hot, Some("hotter than gpu.max_temperature_celsius, or not yet 5 °C below".to_owned()))
    } else if let Some(why) = foreign {
        (GpuState::Foreign, Some(why.to_owned()))
    } else if device.reading.asleep {
        (GpuState::Asleep, None)
    } else {
        (GpuState::Ok, None)
    }
}

/// The sessions on each device, counted per user. A device without sessions has no entry.
#[derive(Debug, Clone, Default)]
pub(super) struct Holders(HashMap<String, Shares>);

/// The sessions on one device.
#[derive(Debug, Clone, Default)]
struct Shares {
    /// The number of sessions: the sum of `users`.
    slots: u32,
    users: BTreeMap<User, u32>,
    declared: Bytes,
}

impl Shares {
    /// The user of all sessions.
    fn holder(&self) -> Option<&User> {
        self.users.keys().next().filter(|_| self.users.len() == 1)
    }
}

impl Holders {
    /// The devices with what sessions hold of them.
    pub(super) fn candidates<'a>(&'a self, devices: &'a [Offered]) -> Vec<Candidate<'a>> {
        let candidate = |device: &'a Offered| {
            let shares = self.0.get(&device.uuid);
            Candidate {
                uuid: &device.uuid,
                class: &device.class,
                state: device.state,
                slots: device.slots,
                used: shares.map_or(0, |shares| shares.slots),
                holder: shares.and_then(Shares::holder),
                declared: shares.map_or(Bytes::ZERO, |shares| shares.declared),
                memory: device.memory,
            }
        };
        devices.iter().map(candidate).collect()
    }

    pub(super) fn take(&mut self, user: &User, gpus: &[String], declared: Bytes) {
        for gpu in gpus {
            let shares = self.0.entry(gpu.clone()).or_default();
            shares.slots += 1;
            shares.declared = shares.declared.saturating_add(declared);
            *shares.users.entry(user.clone()).or_default() += 1;
        }
    }

    pub(super) fn give_back(&mut self, user: &User, gpus: &[String], declared: Bytes) {
        for gpu in gpus {
            let Some(shares) = self.0.get_mut(gpu) else { continue };
            let Some(count) = shares.users.get_mut(user) else { continue };
            *count -= 1;
            shares.slots -= 1;
            shares.declared = shares.declared.saturating_sub(declared);
            if *count == 0 {
                shares.users.remove(user);
            }
            if shares.slots == 0 {
                self.0.remove(gpu);
            }
        }
    }

    pub(super) fn held(&self, gpu: &str) -> Held {
        let held =
            |shares: &Shares| Held { slots: shares.slots, holder: shares.holder().cloned(), declared: shares.declared };
        self.0.get(gpu).map(held).unwrap_or_default()
    }

    pub(super) fn slots_used(&self, gpu: &str) -> u32 {
        self.0.get(gpu).map_or(0, |shares| shares.slots)
    }
}
