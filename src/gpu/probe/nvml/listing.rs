//! The processes on the devices.

use std::collections::BTreeMap;

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;

use crate::gpu::answer::Listed;
use crate::gpu::device::{Process, Processes};
use crate::gpu::probe::host::Host;
use crate::types::Bytes;

/// The processes of all devices at most: far more than GPUs run, and few enough for a line of a few MiB. The list of a
/// device that would exceed it is left out, for a list that is cut proves nothing.
const MAX_PROCESSES: usize = 4096;
/// How often a list is asked for that has grown between the questions for its size and for its content.
const ATTEMPTS: usize = 3;

/// The lists as they are made.
pub(super) struct Listing<'a> {
    host: &'a Host,
    listed: Listed,
    count: usize,
}

/// The memory of each process, by pid.
type Users = BTreeMap<u32, Option<Bytes>>;

impl<'a> Listing<'a> {
    pub(super) fn new(host: &'a Host) -> Self {
        Self { host, listed: Listed::new(), count: 0 }
    }

    pub(super) fn end(self) -> Listed {
        self.listed
    }

    /// Devices without processes.
    pub(super) fn add_idle<'u>(&mut self, uuids: impl Iterator<Item = &'u String>) {
        self.listed.extend(uuids.map(|uuid| (uuid.clone(), Some(Processes::default()))));
    }

    /// Lists the processes of a device; with `foreign` ids, they are of no use. A device whose list cannot be read now,
    /// but could be later, is left out.
    pub(super) fn add(&mut self, uuid: String, device: &Device, foreign: bool) {
        let users = if foreign { Ok(None) } else { users(device) };
        let processes = match users {
            Err(_) => return,
            Ok(None) => None,
            Ok(Some(users)) if self.count + users.len() > MAX_PROCESSES => return,
            Ok(Some(users)) => {
                self.count += users.len();
                let memory_used = device.memory_info().ok().map(|memory| Bytes::new(memory.used));
                Some(Processes { list: self.described(users), memory_used })
            }
        };
        self.listed.insert(uuid, processes);
    }

    fn described(&self, users: Users) -> Vec<Process> {
        let process =
            |(pid, memory)| Process { pid, command: self.host.command(pid), memory, marks: self.host.marks(pid) };
        users.into_iter().map(process).collect()
    }
}

/// Everything that uses the device; `Ok(None)`: the driver does not say. Of the kinds of use, only computing must be
/// listed: not every device can do graphics or share contexts (MPS).
fn users(device: &Device) -> Result<Option<Users>, NvmlError> {
    let Some(computing) = attempt(|| device.running_compute_processes())? else { return Ok(None) };
    let mut users = Users::new();
    merge(&mut users, computing);
    merge(&mut users, attempt(|| device.running_graphics_processes())?.unwrap_or_default());
    merge(&mut users, attempt(|| device.mps_running_compute_processes())?.unwrap_or_default());
    Ok(Some(users))
}

/// A list; `Ok(None)`: the device or the library has none, or this user may not see it.
fn attempt(list: impl Fn() -> Result<Vec<ProcessInfo>, NvmlError>) -> Result<Option<Vec<ProcessInfo>>, NvmlError> {
    let grown = |result: &Result<_, NvmlError>| matches!(result, Err(NvmlError::InsufficientSize(_)));
    let mut result = list();
    for _ in 1..ATTEMPTS {
        if grown(&result) {
            result = list();
        }
    }
    match result {
        Ok(list) => Ok(Some(list)),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_) | NvmlError::NoPermission) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A process that computes and draws is in both lists, with the memory of both.
fn merge(users: &mut Users, list: Vec<ProcessInfo>) {
    for process in list {
        let memory = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(Bytes::new(bytes)),
            UsedGpuMemory::Unavailable => None,
        };
        let known = users.entry(process.pid).or_default();
        *known = memory.max(*known);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn info(pid: u32, used_gpu_memory: UsedGpuMemory) -> ProcessInfo {
        ProcessInfo { pid, used_gpu_memory, gpu_instance_id: None, compute_instance_id: None }
    }

    #[test]
    fn a_process_in_two_lists_is_one_and_memory_that_is_not_known_is_none() {
        let mut users = Users::new();
        merge(&mut users, vec![info(2, UsedGpuMemory::Used(10)), info(1, UsedGpuMemory::Unavailable)]);
        merge(&mut users, vec![info(2, UsedGpuMemory::Used(7)), info(3, UsedGpuMemory::Unavailable)]);
        merge(&mut users, vec![info(2, UsedGpuMemory::Unavailable), info(3, UsedGpuMemory::Used(5))]);
        let expected = [(1, None), (2, Some(Bytes::new(10))), (3, Some(Bytes::new(5)))];
        assert_eq!(users.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_list_that_grows_is_asked_for_again_and_other_errors_are_told_from_missing_lists() {
        let calls = Cell::new(0);
        let growing = |until| {
            calls.set(0);
            attempt(|| {
                calls.set(calls.get() + 1);
                if calls.get() < until { Err(NvmlError::InsufficientSize(None)) } else { Ok(Vec::new()) }
            })
        };
        assert!(matches!(growing(ATTEMPTS), Ok(Some(_))));
        assert!(growing(ATTEMPTS + 1).is_err() && calls.get() == ATTEMPTS);
        assert!(matches!(attempt(|| Err(NvmlError::NotSupported)), Ok(None)));
        assert!(attempt(|| Err(NvmlError::GpuLost)).is_err());
    }
}
