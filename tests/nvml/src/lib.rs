//! An NVML library for tests. Its machine is the file `machine` beside it, which it reads at each call, so a test
//! changes devices while a program uses them. Layouts, codes and signatures are those of `nvml.h`.

#![allow(non_snake_case, clippy::missing_safety_doc)]

#[allow(dead_code)] // the tests write what the library reads
mod machine;

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use machine::code::{GPU_IS_LOST, NOT_FOUND, NOT_SUPPORTED};
use machine::{FOREVER, Gpu, List, Machine};

/// What a call returns.
type Code = c_uint;
type Handle = *mut c_void;

const SUCCESS: Code = 0;
const INVALID_ARGUMENT: Code = 2;
const INSUFFICIENT_SIZE: Code = 7;
const TIMEOUT: Code = 10;
const LIB_RM_VERSION_MISMATCH: Code = 18;
const ARGUMENT_VERSION_MISMATCH: Code = 25;
const XID_CRITICAL_ERROR: u64 = 8;
/// No instance, in the lists of processes.
const NONE: c_uint = c_uint::MAX;

#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[repr(C)]
pub struct Pci {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    device_id: c_uint,
    subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

#[repr(C)]
pub struct ProcessInfo {
    pid: c_uint,
    memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[repr(C)]
pub struct FieldValue {
    field: c_uint,
    scope: c_uint,
    timestamp: i64,
    latency: i64,
    kind: c_uint,
    code: Code,
    value: c_ulonglong,
}

#[repr(C)]
pub struct EventData {
    device: Handle,
    kind: c_ulonglong,
    data: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[repr(C)]
pub struct Attributes {
    counts: [c_uint; 8],
    memory_mib: c_ulonglong,
}

/// The devices that were asked for, by UUID. A handle is a position here, counted from one, so it stays with its device
/// when that changes its index.
static HANDLES: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The sets of events: of each device, by UUID, how many faults were told. A handle is a position, counted from one.
static SETS: Mutex<Vec<BTreeMap<String, usize>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file of this library, links followed: the one that has this function.
fn library() -> PathBuf {
    let here = library as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let holds = |line: &&str| {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| usize::from_str_radix(address, 16).unwrap());
        (from..to).contains(&here)
    };
    let line = maps.lines().find(holds).unwrap();
    Path::new(&line[line.find('/').unwrap()..]).to_owned()
}

/// The machine, after what the call does in every case.
fn enter(call: &str) -> Result<Machine, Code> {
    let machine = Machine::from_text(&std::fs::read_to_string(library().with_file_name("machine")).unwrap());
    if machine.crash == call {
        crash();
    }
    match machine.hangs.get(call) {
        Some(&FOREVER) => loop {
            thread::park();
        },
        Some(&milliseconds) => thread::sleep(Duration::from_millis(milliseconds)),
        None => {}
    }
    match machine.codes.get(call) {
        Some(&code) if code != SUCCESS => Err(code),
        _ => Ok(machine),
    }
}

/// Ends the process with SIGSEGV. The first one can end in a handler that looks for a full stack.
fn crash() -> ! {
    unsafe extern "C" {
        fn raise(signal: c_int) -> c_int;
    }
    loop {
        unsafe { raise(11) };
    }
}

/// A call on one device.
fn on(call: &str, handle: Handle, act: impl FnOnce(&Gpu) -> Result<(), Code>) -> Code {
    let result = enter(call).and_then(|machine| {
        let uuid = lock(&HANDLES).get((handle as usize).wrapping_sub(1)).cloned().ok_or(INVALID_ARGUMENT)?;
        let gpu = find(&machine, &uuid).ok_or(GPU_IS_LOST)?;
        check(gpu, call)?;
        act(gpu)
    });
    result.err().unwrap_or(SUCCESS)
}

fn find<'m>(machine: &'m Machine, uuid: &str) -> Option<&'m Gpu> {
    let all = machine.gpus.iter().flat_map(|gpu| [gpu].into_iter().chain(gpu.mig.iter().flatten()));
    all.filter(|gpu| !gpu.uuid.is_empty()).find(|gpu| gpu.uuid == uuid)
}

fn check(gpu: &Gpu, call: &str) -> Result<(), Code> {
    match gpu.codes.get(call).or(gpu.codes.get("*")) {
        Some(&code) if code != SUCCESS => Err(code),
        _ => Ok(()),
    }
}

/// What instances do not have.
fn whole(gpu: &Gpu) -> Result<(), Code> {
    if gpu.bus_id.is_empty() { Err(NOT_SUPPORTED) } else { Ok(()) }
}

fn handle_of(uuid: &str) -> Handle {
    let mut handles = lock(&HANDLES);
    let known = handles.iter().position(|known| known == uuid);
    let position = known.unwrap_or_else(|| {
        handles.push(uuid.to_owned());
        handles.len() - 1
    });
    (position + 1) as Handle
}

unsafe fn text(text: &str, into: *mut c_char, length: c_uint) -> Result<(), Code> {
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), into, text.len());
        into.add(text.len()).write(0);
    }
    Ok(())
}

fn code(result: Result<(), Code>) -> Code {
    result.err().unwrap_or(SUCCESS)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Code {
    code(enter("nvmlInit_v2").and_then(|machine| match version() {
        Some(version) if version != machine.driver => Err(LIB_RM_VERSION_MISMATCH),
        _ => Ok(()),
    }))
}

/// The version of this library, from its name.
fn version() -> Option<String> {
    Some(library().file_name()?.to_str()?.split_once(".so.")?.1.to_owned())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Code {
    code(enter("nvmlShutdown").map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(into: *mut c_char, length: c_uint) -> Code {
    code(enter("nvmlSystemGetDriverVersion").and_then(|machine| unsafe { text(&machine.driver, into, length) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(into: *mut c_char, length: c_uint) -> Code {
    let version = format!("13.{}", version().unwrap_or_default());
    code(enter("nvmlSystemGetNVMLVersion").and_then(|_| unsafe { text(&version, into, length) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(into: *mut c_int) -> Code {
    code(enter("nvmlSystemGetCudaDriverVersion_v2").map(|machine| unsafe { into.write(machine.cuda as c_int) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(into: *mut c_uint) -> Code {
    code(enter("nvmlDeviceGetCount_v2").map(|machine| unsafe { into.write(machine.gpus.len() as c_uint) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, into: *mut Handle) -> Code {
    const CALL: &str = "nvmlDeviceGetHandleByIndex_v2";
    code(enter(CALL).and_then(|machine| {
        let gpu = machine.gpus.get(index as usize).ok_or(INVALID_ARGUMENT)?;
        check(gpu, CALL)?;
        unsafe { into.write(handle_of(&gpu.uuid)) };
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, into: *mut Handle) -> Code {
    const CALL: &str = "nvmlDeviceGetHandleByUUID";
    code(enter(CALL).and_then(|machine| {
        let uuid = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
        check(find(&machine, &uuid).ok_or(NOT_FOUND)?, CALL)?;
        unsafe { into.write(handle_of(&uuid)) };
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: Handle, into: *mut c_char, length: c_uint) -> Code {
    on("nvmlDeviceGetUUID", device, |gpu| unsafe { text(&gpu.uuid, into, length) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(device: Handle, into: *mut c_char, length: c_uint) -> Code {
    on("nvmlDeviceGetName", device, |gpu| unsafe { text(&gpu.name, into, length) })
}

/// Exports a call that gives one figure of a whole GPU.
macro_rules! figure {
    ($call:ident, $kind:ty, $gpu:ident => $value:expr) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $call(device: Handle, into: *mut $kind) -> Code {
            on(stringify!($call), device, |$gpu| {
                whole($gpu)?;
                unsafe { into.write($value) };
                Ok(())
            })
        }
    };
}

figure!(nvmlDeviceGetMinorNumber, c_uint, gpu => gpu.minor);
figure!(nvmlDeviceGetPowerUsage, c_uint, gpu => gpu.milliwatts);
figure!(nvmlDeviceGetEnforcedPowerLimit, c_uint, gpu => gpu.limit);
figure!(nvmlDeviceGetCurrentClocksThrottleReasons, c_ulonglong, gpu => gpu.throttling);
figure!(nvmlDeviceGetPersistenceMode, c_uint, _gpu => 1);
figure!(nvmlDeviceGetRetiredPagesPendingStatus, c_uint, gpu => gpu.retirement);
figure!(nvmlDeviceGetMaxMigDeviceCount, c_uint, gpu => gpu.mig.as_ref().map_or(0, Vec::len) as c_uint);
figure!(nvmlDeviceGetSupportedEventTypes, c_ulonglong, _gpu => XID_CRITICAL_ERROR | 1 | 2 | 4);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device: Handle, into: *mut c_uint) -> Code {
    const CALL: &str = "nvmlDeviceGetIndex";
    let Ok(machine) = enter(CALL) else { return NOT_SUPPORTED };
    on(CALL, device, |gpu| {
        let index = machine.gpus.iter().position(|other| other.uuid == gpu.uuid).ok_or(NOT_SUPPORTED)?;
        unsafe { into.write(index as c_uint) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device: Handle, into: *mut Pci) -> Code {
    on("nvmlDeviceGetPciInfo_v3", device, |gpu| {
        whole(gpu)?;
        unsafe {
            into.write_bytes(0, 1);
            text(&gpu.bus_id, (&raw mut (*into).bus_id).cast(), 32)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Handle, into: *mut Memory) -> Code {
    on("nvmlDeviceGetMemoryInfo_v2", device, |gpu| {
        let version = unsafe { (*into).version };
        if version != size_of::<Memory>() as c_uint | 2 << 24 {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        let reserved = gpu.total.saturating_sub(gpu.free + gpu.used);
        unsafe { into.write(Memory { version, total: gpu.total, reserved, free: gpu.free, used: gpu.used }) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(device: Handle, into: *mut Utilization) -> Code {
    on("nvmlDeviceGetUtilizationRates", device, |gpu| {
        whole(gpu)?;
        // The driver has no load of a device that is divided.
        if gpu.mig.is_some() {
            return Err(NOT_SUPPORTED);
        }
        unsafe { into.write(Utilization { gpu: gpu.load, memory: 0 }) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(device: Handle, sensor: c_uint, into: *mut c_uint) -> Code {
    on("nvmlDeviceGetTemperature", device, |gpu| {
        whole(gpu)?;
        if sensor != 0 {
            return Err(INVALID_ARGUMENT);
        }
        unsafe { into.write(gpu.temperature) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperatureThreshold(device: Handle, kind: c_uint, into: *mut c_uint) -> Code {
    on("nvmlDeviceGetTemperatureThreshold", device, |gpu| {
        whole(gpu)?;
        // The other thresholds: the device turns itself off a little above.
        unsafe { into.write(if kind == 1 { gpu.slowdown } else { gpu.slowdown + 5 }) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEccMode(device: Handle, now: *mut c_uint, next: *mut c_uint) -> Code {
    on("nvmlDeviceGetEccMode", device, |gpu| {
        whole(gpu)?;
        unsafe {
            now.write(gpu.ecc);
            next.write(gpu.ecc);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: Handle,
    kind: c_uint,
    _counter: c_uint,
    into: *mut c_ulonglong,
) -> Code {
    on("nvmlDeviceGetTotalEccErrors", device, |gpu| {
        whole(gpu)?;
        unsafe { into.write(if kind == 0 { gpu.corrected } else { gpu.uncorrected }) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(device: Handle, count: c_int, values: *mut FieldValue) -> Code {
    on("nvmlDeviceGetFieldValues", device, |gpu| {
        whole(gpu)?;
        for at in 0..count as usize {
            let value = unsafe { &mut *values.add(at) };
            value.code = code(check(gpu, &format!("field {}", value.field)));
            match gpu.fields.get(&value.field.to_string()) {
                _ if value.code != SUCCESS => {}
                // An unsigned integer, and an unsigned integer of 64 bits.
                Some(&number) => (value.kind, value.value) = (if number > NONE.into() { 3 } else { 1 }, number),
                None => value.code = NOT_SUPPORTED,
            }
        }
        Ok(())
    })
}

/// Gives the number of processes where there is no room for them.
unsafe fn processes(call: &str, device: Handle, list: List, count: *mut c_uint, into: *mut ProcessInfo) -> Code {
    on(call, device, |gpu| {
        let listed: Vec<_> = gpu.processes.iter().filter(|process| process.list == list).collect();
        let room = unsafe { count.read() } as usize;
        unsafe { count.write(listed.len() as c_uint) };
        if room < listed.len() || into.is_null() && !listed.is_empty() {
            return Err(INSUFFICIENT_SIZE);
        }
        for (at, process) in listed.into_iter().enumerate() {
            let memory = process.memory.unwrap_or(u64::MAX);
            let info = ProcessInfo { pid: process.pid, memory, gpu_instance: NONE, compute_instance: NONE };
            unsafe { into.add(at).write(info) };
        }
        Ok(())
    })
}

macro_rules! processes {
    ($call:ident, $list:ident) => {
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $call(device: Handle, count: *mut c_uint, into: *mut ProcessInfo) -> Code {
            unsafe { processes(stringify!($call), device, List::$list, count, into) }
        }
    };
}

processes!(nvmlDeviceGetComputeRunningProcesses_v3, Compute);
processes!(nvmlDeviceGetGraphicsRunningProcesses_v3, Graphics);
processes!(nvmlDeviceGetMPSComputeRunningProcesses_v3, Mps);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(device: Handle, now: *mut c_uint, next: *mut c_uint) -> Code {
    on("nvmlDeviceGetMigMode", device, |gpu| {
        whole(gpu)?;
        let mode = gpu.mig.is_some().into();
        unsafe {
            now.write(mode);
            next.write(mode);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(device: Handle, index: c_uint, into: *mut Handle) -> Code {
    on("nvmlDeviceGetMigDeviceHandleByIndex", device, |gpu| {
        let instances = gpu.mig.as_ref().ok_or(NOT_SUPPORTED)?;
        let instance = instances.get(index as usize).ok_or(INVALID_ARGUMENT)?;
        if instance.uuid.is_empty() {
            return Err(NOT_FOUND);
        }
        unsafe { into.write(handle_of(&instance.uuid)) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetAttributes_v2(device: Handle, into: *mut Attributes) -> Code {
    on("nvmlDeviceGetAttributes_v2", device, |gpu| {
        // Only instances have them.
        if whole(gpu).is_ok() {
            return Err(NOT_SUPPORTED);
        }
        unsafe { into.write(Attributes { counts: [1; 8], memory_mib: gpu.total >> 20 }) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(into: *mut Handle) -> Code {
    code(enter("nvmlEventSetCreate").map(|_| {
        let mut sets = lock(&SETS);
        sets.push(BTreeMap::new());
        unsafe { into.write(sets.len() as Handle) };
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(device: Handle, kinds: c_ulonglong, set: Handle) -> Code {
    on("nvmlDeviceRegisterEvents", device, |gpu| {
        let mut sets = lock(&SETS);
        let set = sets.get_mut((set as usize).wrapping_sub(1)).ok_or(INVALID_ARGUMENT)?;
        if kinds & XID_CRITICAL_ERROR != 0 {
            set.insert(gpu.uuid.clone(), gpu.xids.len());
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(set: Handle, into: *mut EventData, milliseconds: c_uint) -> Code {
    const CALL: &str = "nvmlEventSetWait_v2";
    code(enter(CALL).and_then(|machine| {
        let mut sets = lock(&SETS);
        let set = sets.get_mut((set as usize).wrapping_sub(1)).ok_or(INVALID_ARGUMENT)?;
        for (uuid, told) in set.iter_mut() {
            let gpu = find(&machine, uuid).ok_or(GPU_IS_LOST)?;
            check(gpu, CALL)?;
            if let Some(&data) = gpu.xids.get(*told) {
                *told += 1;
                let (device, kind) = (handle_of(uuid), XID_CRITICAL_ERROR);
                unsafe { into.write(EventData { device, kind, data, gpu_instance: NONE, compute_instance: NONE }) };
                return Ok(());
            }
        }
        thread::sleep(Duration::from_millis(milliseconds.into()));
        Err(TIMEOUT)
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: Handle) -> Code {
    code(enter("nvmlEventSetFree").and_then(|_| {
        // The others keep their places.
        lock(&SETS).get_mut((set as usize).wrapping_sub(1)).ok_or(INVALID_ARGUMENT).map(BTreeMap::clear)
    }))
}
