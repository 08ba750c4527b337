//! The GPUs of this host as its sessions use them: what each device is offered with, and when a session that has ended
//! has left its devices.
//!
//! A container may be gone while one of its processes still hangs in the driver, with memory of a user on the device.
//! So a device is free only once the driver was asked after the end and lists no process of the session. Until then
//! the slot stays taken, and after [`QUARANTINE_AFTER`] the device takes no sessions at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Context, Registry};
use crate::capacity::effective::slots_per_device;
use crate::gpu::device::{Device, Process, Processes};
use crate::ledger::Reservation;
use crate::ledger::gpus::{Held, Memory, Offered, judge};
use crate::sessions::Error;
use crate::sessions::record::Record;
use crate::types::{BootInstant, Bytes, GpuState, Resources, SessionId};

/// How long after its end a session may still be on its devices before they are put in quarantine. The driver frees
/// the memory of a process that was killed within a second or two.
const QUARANTINE_AFTER: Duration = Duration::from_secs(30);
/// How long a session may use more memory than it declared before the node shows it.
const EXCEEDED_AFTER: Duration = Duration::from_secs(30);
/// Processes that a message names at most.
const MAX_NAMED: usize = 3;
/// Memory that messages show is rounded up to this step, 256 MiB: what the node says of itself travels to every other
/// node each time it changes.
const SHOWN_STEP: u64 = 256 << 20;

/// The GPUs that a session which has ended is leaving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    pub gpus: Vec<String>,
    /// When the runtime confirmed the end.
    pub since: BootInstant,
}

/// What sessions do on the GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gpus {
    /// On each that is known, by its UUID.
    pub devices: BTreeMap<String, GpuUse>,
    /// The sessions that use more memory than they declared, for long enough to be told.
    pub exceeded: Vec<Exceeded>,
}

/// What sessions do on one device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuUse {
    pub held: Held,
    /// Memory in use by processes that are not of sessions; `None`: not known.
    pub foreign: Option<Bytes>,
    /// The sessions of the processes on it, by process id.
    pub owners: BTreeMap<u32, SessionId>,
    /// Why the use by others keeps sessions off it.
    pub foreign_use: Option<String>,
    /// Which process of a session that ended is still on it.
    pub quarantined: Option<String>,
}

/// A session that uses more memory of a GPU than it declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    pub session: SessionId,
    pub gpu: String,
    pub declared: Bytes,
    /// Rounded up to 256 MiB.
    pub used: Bytes,
}

/// What the last look at the processes found on the devices.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    devices: BTreeMap<String, SeenOn>,
    /// Sessions that use more than they declared, by session and device, and since when.
    over: BTreeMap<(SessionId, String), (BootInstant, Bytes)>,
    /// The devices that are lost.
    lost: BTreeSet<String>,
}

/// What it found on one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct SeenOn {
    /// Which look this is of.
    at: Option<BootInstant>,
    foreign: Option<Bytes>,
    owners: BTreeMap<u32, SessionId>,
    /// Processes that are not of sessions, for people.
    strangers: Vec<String>,
}

/// Whether a session has left a device.
enum Left<'a> {
    Yes,
    /// The driver was not asked since.
    NotAsked,
    No(&'a Process),
}

impl Registry {
    /// The devices as this host offers them now.
    pub(super) fn offered_gpus(&self, cx: &Context<'_>) -> Vec<Offered> {
        let devices = &cx.report.gpus.devices;
        let physical = u32::try_from(devices.len()).unwrap_or(u32::MAX);
        let slots = slots_per_device(physical, cx.effective().gpus);
        let offered = |(device, slots): (&Device, u32)| {
            let foreign = self.seen.devices.get(&device.uuid).and_then(|seen| seen.foreign);
            Offered {
                uuid: device.uuid.clone(),
                class: device.class.clone(),
                state: self.gpu_state(device, cx),
                slots,
                memory: memory(device, foreign),
            }
        };
        devices.iter().zip(slots).map(offered).collect()
    }

    fn gpu_state(&self, device: &Device, cx: &Context<'_>) -> GpuState {
        judge(device, self.quarantine(device, cx).as_deref(), self.foreign_use(&device.uuid).as_deref()).0
    }

    /// What sessions do on the GPUs, as everybody may see it.
    pub fn gpus(&self, cx: &Context<'_>) -> Gpus {
        let of = |device: &Device| GpuUse {
            held: self.ledger.gpu_held(&device.uuid),
            foreign: self.seen.devices.get(&device.uuid).and_then(|seen| seen.foreign),
            owners: self.seen.devices.get(&device.uuid).map(|seen| seen.owners.clone()).unwrap_or_default(),
            foreign_use: self.foreign_use(&device.uuid),
            quarantined: self.quarantine(device, cx),
        };
        let devices = cx.report.gpus.devices.iter().map(|device| (device.uuid.clone(), of(device))).collect();
        Gpus { devices, exceeded: self.exceeded(cx) }
    }

    fn exceeded(&self, cx: &Context<'_>) -> Vec<Exceeded> {
        let over = self.seen.over.iter().filter(|(_, (since, _))| cx.now.boot.since(*since) >= EXCEEDED_AFTER);
        over.filter_map(|((session, gpu), (_, used))| {
            let declared = self.records.get(session)?.origin().workspace.gpu_memory_bytes?;
            Some(Exceeded { session: *session, gpu: gpu.clone(), declared, used: shown(*used) })
        })
        .collect()
    }

    /// The GPUs of a session that are lost while it holds them.
    pub fn lost_gpus<'a>(&'a self, record: &'a Record) -> impl Iterator<Item = &'a str> {
        let held = record.is_reserved().then_some(&record.status().gpu_uuids).into_iter().flatten();
        held.filter(|uuid| self.seen.lost.contains(*uuid)).map(String::as_str)
    }

    /// Whether the driver is to be asked for the processes now, and not only when it is time: a session has just ended.
    pub fn is_leaving_gpus(&self, cx: &Context<'_>) -> bool {
        self.leaving().any(|(_, leaving)| cx.now.boot.since(leaving.since) < QUARANTINE_AFTER)
    }

    /// A session has ended, as the runtime confirmed: it holds nothing any more, but GPUs of which the driver can tell
    /// whether it has left them.
    pub(super) fn release(&mut self, session: &SessionId, cx: &Context<'_>) -> Result<(), Error> {
        let Some(reservation) = self.ledger.release(session) else { return Ok(()) };
        let can_tell = |uuid: &String| cx.report.gpus.device(uuid).is_some_and(Device::tells_processes);
        let gpus: Vec<String> = reservation.gpus.iter().filter(|uuid| can_tell(uuid)).cloned().collect();
        if !gpus.is_empty() {
            self.ledger.restore_leaving(*session, Reservation { gpus: gpus.clone(), ..reservation });
            self.change(session)?.status.gpus_leaving = Some(Leaving { gpus, since: cx.now.boot });
        }
        Ok(())
    }

    /// Takes what the driver says of the devices now.
    pub fn gpus_seen(&mut self, cx: &Context<'_>) {
        self.note_lost(cx);
        let looked = |device: &Device| {
            let seen = self.seen.devices.get(&device.uuid).map(|seen| seen.at);
            seen != device.processes.as_ref().map(|_| device.processes_at)
        };
        if cx.report.gpus.devices.iter().any(looked) {
            self.look(cx);
        }
        self.free_left(cx);
    }

    fn note_lost(&mut self, cx: &Context<'_>) {
        let lost = cx.report.gpus.devices.iter().filter(|device| !device.is_present());
        let lost: BTreeSet<String> = lost.map(|device| device.uuid.clone()).collect();
        if lost == self.seen.lost {
            return;
        }
        let changed: Vec<&String> = lost.symmetric_difference(&self.seen.lost).collect();
        let concerned = |record: &&Record| record.status().gpu_uuids.iter().any(|uuid| changed.contains(&uuid));
        let sessions: Vec<SessionId> =
            self.records.values().filter(concerned).map(|record| record.origin().id).collect();
        self.unpublished.extend(sessions);
        self.seen.lost = lost;
    }

    /// Sorts the processes on the devices: those of sessions, and those of others.
    fn look(&mut self, cx: &Context<'_>) {
        let on_gpus = |record: &&Record| !record.status().gpu_uuids.is_empty();
        let sessions: Vec<&Record> = self.records.values().filter(on_gpus).collect();
        let mut seen = BTreeMap::new();
        let mut over = BTreeMap::new();
        for device in &cx.report.gpus.devices {
            let Some(processes) = &device.processes else { continue };
            let owner = |process: &Process| sessions.iter().find(|record| is_of(process, record)).copied();
            let used = used_by_sessions(processes, owner);
            for (session, used) in used.iter().filter_map(|(session, used)| Some((*session, (*used)?))) {
                let declared = self.records.get(&session).and_then(|record| record.origin().workspace.gpu_memory_bytes);
                if declared.is_some_and(|declared| used > declared) {
                    let key = (session, device.uuid.clone());
                    let since = self.seen.over.get(&key).map_or(cx.now.boot, |(since, _)| *since);
                    over.insert(key, (since, used));
                }
            }
            let strangers = processes.list.iter().filter(|process| owner(process).is_none());
            let ours = used.values().try_fold(Bytes::ZERO, |sum, used| Some(sum.saturating_add((*used)?)));
            let foreign = processes.memory_used.zip(ours).map(|(used, ours)| used.saturating_sub(ours));
            let strangers = strangers.map(described).collect();
            let owners = processes.list.iter().filter_map(|process| Some((process.pid, owner(process)?.origin().id)));
            let owners = owners.collect();
            seen.insert(device.uuid.clone(), SeenOn { at: device.processes_at, foreign, owners, strangers });
        }
        (self.seen.devices, self.seen.over) = (seen, over);
    }

    /// Frees the devices that sessions which have ended have left.
    fn free_left(&mut self, cx: &Context<'_>) {
        let leaving: Vec<(SessionId, Leaving)> = self.leaving().map(|(id, leaving)| (id, leaving.clone())).collect();
        for (session, mut leaving) in leaving {
            let before = leaving.gpus.len();
            let Some(record) = self.records.get(&session) else { continue };
            let stays = |uuid: &String| !matches!(left(record, uuid, leaving.since, cx), Left::Yes);
            let gpus: Vec<String> = leaving.gpus.iter().filter(|uuid| stays(uuid)).cloned().collect();
            if gpus.len() < before {
                leaving.gpus = gpus;
                self.set_leaving(&session, Some(leaving).filter(|leaving| !leaving.gpus.is_empty()));
            }
        }
    }

    fn set_leaving(&mut self, session: &SessionId, leaving: Option<Leaving>) {
        let Some(record) = self.change_record(session) else { return };
        record.status_mut().gpus_leaving.clone_from(&leaving);
        let reservation = leaving.map(|leaving| record.gpus_only(leaving.gpus));
        match reservation {
            Some(reservation) => self.ledger.restore_leaving(*session, reservation),
            None => drop(self.ledger.free_gpus(session)),
        }
    }

    /// The sessions that have ended and are still on their devices, as far as is known.
    fn leaving(&self) -> impl Iterator<Item = (SessionId, &Leaving)> {
        let record = |id: &SessionId| Some((*id, self.records.get(id)?.status().gpus_leaving.as_ref()?));
        self.ledger.leaving().filter_map(record)
    }

    /// Why a device is in quarantine.
    fn quarantine(&self, device: &Device, cx: &Context<'_>) -> Option<String> {
        let overdue = |leaving: &Leaving| cx.now.boot.since(leaving.since) >= QUARANTINE_AFTER;
        let on_it = self.leaving().filter(|(_, leaving)| leaving.gpus.contains(&device.uuid) && overdue(leaving));
        let mut why = on_it.filter_map(|(session, leaving)| {
            match left(self.records.get(&session)?, &device.uuid, leaving.since, cx) {
                Left::Yes => None,
                Left::NotAsked => Some(format!(
                    "session {session} has ended, and the driver does not say whether its processes have left it"
                )),
                Left::No(process) => {
                    Some(format!("session {session} has ended, and its process {} is still on it", described(process)))
                }
            }
        });
        why.next()
    }

    /// Why the use of a device by processes that are not of sessions keeps sessions off it.
    fn foreign_use(&self, uuid: &str) -> Option<String> {
        let (seen, most) = (self.seen.devices.get(uuid)?, self.config.max_foreign_gpu_memory);
        let foreign = seen.foreign.is_some_and(|foreign| foreign > most);
        let unknown = seen.foreign.is_none() && most.is_zero() && !seen.strangers.is_empty();
        (foreign || unknown).then(|| {
            let amount = seen.foreign.map_or("an unknown amount".to_owned(), |foreign| shown(foreign).to_string());
            let named: Vec<&str> = seen.strangers.iter().take(MAX_NAMED).map(String::as_str).collect();
            let by = if named.is_empty() { "other programs".to_owned() } else { named.join(", ") };
            format!("{amount} of its memory is used by {by}, more than gpu.max_foreign_memory ({most})")
        })
    }
}

impl Record {
    /// A reservation of these GPUs and of nothing else.
    pub(super) fn gpus_only(&self, gpus: Vec<String>) -> Reservation {
        let origin = self.origin();
        Reservation {
            user: origin.user.clone(),
            resources: Resources::ZERO,
            gpus,
            gpu_memory: origin.workspace.gpu_memory_bytes.unwrap_or_default(),
        }
    }
}

/// Whether a session that ended at `since` has left a device.
fn left<'a>(record: &Record, uuid: &str, since: BootInstant, cx: &Context<'a>) -> Left<'a> {
    // A device that is lost, or whose processes nobody lists, is free on the runtime's word.
    let Some(device) = cx.report.gpus.device(uuid).filter(|device| device.tells_processes()) else { return Left::Yes };
    let asked_since = device.processes_at.is_some_and(|at| at > since);
    let Some(processes) = device.processes.as_ref().filter(|_| asked_since) else { return Left::NotAsked };
    processes.list.iter().find(|process| is_of(process, record)).map_or(Left::Yes, Left::No)
}

/// Whether a process belongs to a session.
fn is_of(process: &Process, record: &Record) -> bool {
    let container = record.status().container_id.as_deref().filter(|id| !id.is_empty());
    container.is_some_and(|id| process.is_of(id)) || process.is_of(record.origin().id.as_str())
}

/// The memory that each session uses; `None`: that of one of its processes is not known.
fn used_by_sessions<'a>(
    processes: &Processes,
    owner: impl Fn(&Process) -> Option<&'a Record>,
) -> BTreeMap<SessionId, Option<Bytes>> {
    let mut used: BTreeMap<SessionId, Option<Bytes>> = BTreeMap::new();
    for process in &processes.list {
        let Some(record) = owner(process) else { continue };
        let sum = used.entry(record.origin().id).or_insert(Some(Bytes::ZERO));
        *sum = sum.zip(process.memory).map(|(sum, memory)| sum.saturating_add(memory));
    }
    used
}

fn memory(device: &Device, foreign: Option<Bytes>) -> Option<Memory> {
    let (total, free) = (device.memory_total?, device.reading.memory_free?);
    Some(Memory { total, free, foreign: foreign.unwrap_or_default() })
}

const fn shown(memory: Bytes) -> Bytes {
    Bytes::new(memory.get().next_multiple_of(SHOWN_STEP))
}

/// For example `4242 (python)`.
fn described(process: &Process) -> String {
    format!("{} ({})", process.pid, process.command)
}

#[cfg(test)]
mod tests;
