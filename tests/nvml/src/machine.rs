//! A machine with GPUs, as text: the tests write it, and the library reads it at each call.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::str::FromStr;

/// The library's codes, as far as tests need them.
pub(crate) mod code {
    pub(crate) const NOT_SUPPORTED: u32 = 3;
    pub(crate) const NO_PERMISSION: u32 = 4;
    pub(crate) const NOT_FOUND: u32 = 6;
    pub(crate) const DRIVER_NOT_LOADED: u32 = 9;
    pub(crate) const GPU_IS_LOST: u32 = 15;
    pub(crate) const UNKNOWN: u32 = 999;
}

/// A call that never returns hangs so long, in milliseconds.
pub(crate) const FOREVER: u64 = u64::MAX;

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Machine {
    /// The version of the kernel module. A library of another version does not initialize.
    pub(crate) driver: String,
    pub(crate) cuda: u32,
    /// In the order of their indices.
    pub(crate) gpus: Vec<Gpu>,
    /// What each of these calls returns, whatever it is asked.
    pub(crate) codes: BTreeMap<String, u32>,
    /// How long each of these calls takes, in milliseconds.
    pub(crate) hangs: BTreeMap<String, u64>,
    /// The call that ends the process with SIGSEGV.
    pub(crate) crash: String,
}

/// A GPU, or an instance of one.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Gpu {
    pub(crate) uuid: String,
    pub(crate) name: String,
    /// As NVML writes it.
    pub(crate) bus_id: String,
    pub(crate) minor: u32,
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) used: u64,
    pub(crate) load: u32,
    pub(crate) temperature: u32,
    pub(crate) slowdown: u32,
    pub(crate) milliwatts: u32,
    pub(crate) limit: u32,
    pub(crate) throttling: u64,
    pub(crate) ecc: u32,
    pub(crate) corrected: u64,
    pub(crate) uncorrected: u64,
    pub(crate) retirement: u32,
    /// What each of these calls returns for this device. `*` stands for every call, `field 230` for that field.
    pub(crate) codes: BTreeMap<String, u32>,
    /// The field values that it supports.
    pub(crate) fields: BTreeMap<String, u64>,
    pub(crate) processes: Vec<Process>,
    /// Every fault so far. A child is told of those that come while it listens.
    pub(crate) xids: Vec<u64>,
    /// In MIG mode, the instances by their index; a hole has no UUID.
    pub(crate) mig: Option<Vec<Gpu>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) list: List,
    pub(crate) pid: u32,
    /// `None`: not available.
    pub(crate) memory: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    Compute,
    Graphics,
    Mps,
}

impl Gpu {
    /// A device that works, and differs from those with other numbers.
    pub(crate) fn numbered(number: u32) -> Self {
        let gib = 1 << 30;
        Self {
            uuid: format!("GPU-00000000-0000-0000-0000-{number:012}"),
            name: "NVIDIA Fixture 80GB".to_owned(),
            bus_id: format!("00000000:{:02X}:00.0", 0x1a + number),
            minor: number,
            total: 80 * gib,
            free: 70 * gib,
            used: 9 * gib,
            load: 37,
            temperature: 50,
            slowdown: 90,
            milliwatts: 210_500,
            limit: 700_000,
            throttling: 1,
            ecc: 1,
            fields: [82, 142, 143, 144, 145, 230].map(|id| (id.to_string(), 0)).into(),
            ..Self::default()
        }
    }

    /// From now on, the call returns this code for this device.
    pub(crate) fn returns(&mut self, call: &str, code: u32) {
        self.codes.insert(call.to_owned(), code);
    }

    /// An instance of this device.
    pub(crate) fn instance(&self, number: u32) -> Self {
        let gib = 1 << 30;
        Self {
            uuid: format!("MIG-{}-{number}", &self.uuid[4..]),
            name: format!("{} MIG 1g.10gb", self.name),
            total: 10 * gib,
            free: 9 * gib,
            used: gib,
            ..Self::default()
        }
    }
}

/// The figures of a device, by the names that the text has for them.
fn figures(gpu: &mut Gpu) -> [(&'static str, &mut dyn Figure); 17] {
    [
        ("uuid", &mut gpu.uuid),
        ("name", &mut gpu.name),
        ("bus_id", &mut gpu.bus_id),
        ("minor", &mut gpu.minor),
        ("total", &mut gpu.total),
        ("free", &mut gpu.free),
        ("used", &mut gpu.used),
        ("load", &mut gpu.load),
        ("temperature", &mut gpu.temperature),
        ("slowdown", &mut gpu.slowdown),
        ("milliwatts", &mut gpu.milliwatts),
        ("limit", &mut gpu.limit),
        ("throttling", &mut gpu.throttling),
        ("ecc", &mut gpu.ecc),
        ("corrected", &mut gpu.corrected),
        ("uncorrected", &mut gpu.uncorrected),
        ("retirement", &mut gpu.retirement),
    ]
}

trait Figure {
    fn text(&self) -> String;
    fn read(&mut self, text: &str);
}

impl<T: ToString + FromStr<Err: std::fmt::Debug>> Figure for T {
    fn text(&self) -> String {
        self.to_string()
    }

    fn read(&mut self, text: &str) {
        *self = text.parse().unwrap();
    }
}

impl Machine {
    /// From now on, the call returns this code, whatever it is asked.
    pub(crate) fn returns(&mut self, call: &str, code: u32) {
        self.codes.insert(call.to_owned(), code);
    }

    /// From now on, the call takes so long.
    pub(crate) fn takes(&mut self, call: &str, milliseconds: u64) {
        self.hangs.insert(call.to_owned(), milliseconds);
    }

    /// A line for each value: `KIND KEY=VALUE`. A line `gpu` or `instance` begins a device.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("driver ={}\ncuda ={}\ncrash ={}\n", self.driver, self.cuda, self.crash);
        map(&mut text, "code", &self.codes);
        map(&mut text, "hang", &self.hangs);
        for gpu in &self.gpus {
            device(&mut text, "gpu", gpu);
            for instance in gpu.mig.iter().flatten() {
                device(&mut text, "instance", instance);
            }
        }
        text
    }

    /// # Panics
    /// The text is not of [`Self::to_text`].
    pub(crate) fn from_text(text: &str) -> Self {
        let mut machine = Self::default();
        let mut is_instance = false;
        for line in text.lines() {
            let (kind, rest) = line.split_once(' ').unwrap();
            let (key, value) = rest.split_once('=').unwrap();
            match kind {
                "driver" => machine.driver = value.to_owned(),
                "cuda" => machine.cuda = value.parse().unwrap(),
                "crash" => machine.crash = value.to_owned(),
                "code" => {
                    machine.codes.insert(key.to_owned(), value.parse().unwrap());
                }
                "hang" => {
                    machine.hangs.insert(key.to_owned(), value.parse().unwrap());
                }
                "gpu" => machine.gpus.push(Gpu::default()),
                "instance" => machine.gpus.last_mut().unwrap().mig.as_mut().unwrap().push(Gpu::default()),
                kind => {
                    let gpu = machine.gpus.last_mut().unwrap();
                    let instance = gpu.mig.as_mut().and_then(|instances| instances.last_mut());
                    match instance.filter(|_| is_instance) {
                        Some(instance) => value_of_device(instance, kind, key, value),
                        None => value_of_device(machine.gpus.last_mut().unwrap(), kind, key, value),
                    }
                }
            }
            is_instance = kind == "instance" || is_instance && kind != "gpu";
        }
        machine
    }
}

fn map(text: &mut String, kind: &str, map: &BTreeMap<String, impl ToString>) {
    for (key, value) in map {
        writeln!(text, "{kind} {key}={}", value.to_string()).unwrap();
    }
}

fn device(text: &mut String, kind: &str, gpu: &Gpu) {
    writeln!(text, "{kind} =").unwrap();
    for (name, figure) in figures(&mut gpu.clone()) {
        writeln!(text, "figure {name}={}", figure.text()).unwrap();
    }
    map(text, "device-code", &gpu.codes);
    map(text, "field", &gpu.fields);
    for process in &gpu.processes {
        let memory = process.memory.map_or("-".to_owned(), |memory| memory.to_string());
        writeln!(text, "process {:?}={} {memory}", process.list, process.pid).unwrap();
    }
    for xid in &gpu.xids {
        writeln!(text, "xid ={xid}").unwrap();
    }
    if gpu.mig.is_some() {
        writeln!(text, "mig =").unwrap();
    }
}

fn value_of_device(gpu: &mut Gpu, kind: &str, key: &str, value: &str) {
    match kind {
        "figure" => figures(gpu).into_iter().find(|(name, _)| *name == key).unwrap().1.read(value),
        "device-code" => {
            gpu.codes.insert(key.to_owned(), value.parse().unwrap());
        }
        "field" => {
            gpu.fields.insert(key.to_owned(), value.parse().unwrap());
        }
        "process" => gpu.processes.push(process(key, value)),
        "xid" => gpu.xids.push(value.parse().unwrap()),
        "mig" => gpu.mig = Some(Vec::new()),
        kind => panic!("{kind}"),
    }
}

fn process(list: &str, value: &str) -> Process {
    let list = match list {
        "Compute" => List::Compute,
        "Graphics" => List::Graphics,
        "Mps" => List::Mps,
        list => panic!("{list}"),
    };
    let (pid, memory) = value.split_once(' ').unwrap();
    Process { list, pid: pid.parse().unwrap(), memory: memory.parse().ok() }
}
