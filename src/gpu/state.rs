//! Every decision of the owner of the GPUs, on time that is passed in. Sans-io: no clock, no process, no file.
//!
//! [`task`](super::task) does what [`State::next`] says, reports what came of it, writes [`State::records`] to disk, and
//! publishes [`State::snapshot`].

use std::time::Duration;

use super::answer::{Answer, Ask, Closed, Found, Mig};
use super::children::{Children, IN_A_ROW, Step};
use super::device::DriverVersions;
use super::known::{Known, Records};
use super::listed::{self, Listed};
use super::{Command, Driver, Error, Snapshot};
use crate::types::{BootInstant, Moment, NodeId};

/// How long devices take new sessions on their last readings while nothing answers. A child that hung is followed by
/// another within this time.
const TRUSTED: Duration = Duration::from_secs(90);

/// The devices, the driver, and the child that asks it.
#[derive(Debug, Clone)]
pub struct State {
    source: Source,
    known: Known,
    children: Children,
    /// What the driver last said of itself.
    driver: Driver,
    /// When a question about the devices was last answered, since the agent started.
    answered: Option<Moment>,
    processes_at: Option<BootInstant>,
    /// When the first question of those in a row that were not answered was asked.
    hung_since: Option<BootInstant>,
    /// Why the last child died or did not start.
    death: String,
    max_celsius: Option<f64>,
}

/// What tells which devices there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// NVIDIA's driver, through the child.
    Driver,
    /// The container engine's list.
    Engine {
        /// The UUIDs end with it.
        node: NodeId,
    },
    /// Nothing: they are made up.
    Fiction,
}

impl State {
    /// What an agent that starts knows: the devices of this boot, and every cordon.
    pub fn new(stored: Records, max_celsius: Option<f64>, now: Moment) -> Self {
        let known = Known::restore(stored, Some(now.boot_id));
        Self::of(Source::Driver, known, Children::new(now.boot), max_celsius)
    }

    /// The same, for a class of GPUs that the container engine lists. No child is started.
    pub fn of_class(class: &str, stored: Records, node: NodeId, now: Moment) -> Self {
        let known = Known::of_class(class, stored, Some(now.boot_id));
        Self::of(Source::Engine { node }, known, Children::never(), None)
    }

    /// Devices that are made up. They can be cordoned, and nobody is asked about them.
    pub fn fictitious(class: &str, stored: Records, count: u32, now: Moment) -> Self {
        let found = |device: super::Device| Found {
            uuid: Some(device.uuid),
            index: device.index,
            model: device.model,
            mig: Mig::Off,
            ..Found::default()
        };
        let found: Vec<Found> = Snapshot::fictitious(count).devices.into_iter().map(found).collect();
        let mut known = Known::of_class(class, stored, None);
        known.see(&found, now.wall);
        Self::of(Source::Fiction, known, Children::never(), None)
    }

    fn of(source: Source, known: Known, children: Children, max_celsius: Option<f64>) -> Self {
        Self {
            source,
            known,
            children,
            driver: Driver::Unknown,
            answered: None,
            processes_at: None,
            hung_since: None,
            death: String::new(),
            max_celsius,
        }
    }

    /// What is to be done now. Each step but `Wait` is given once, and is followed by a report of what came of it.
    pub fn next(&mut self, now: Moment) -> Step {
        let step = self.children.next(self.known.has_lost(), now.boot);
        match (step, self.distrust_at()) {
            // The snapshot changes then.
            (Step::Wait(until), Some(at)) if at > now.boot => Step::Wait(until.into_iter().chain([at]).min()),
            _ => step,
        }
    }

    /// The child was started, or could not be.
    pub fn started(&mut self, outcome: Result<(), String>, now: Moment) {
        match outcome {
            Ok(()) => self.children.started(now.boot),
            Err(why) => {
                self.death = format!("cannot start the process that asks it: {why}");
                self.children.not_started(now.boot);
            }
        }
    }

    /// The child has answered.
    pub fn answered(&mut self, answer: Answer, now: Moment) {
        match answer {
            Answer::Closed(closed) => self.closed(closed, now),
            Answer::Inventory(inventory) => {
                let Some(_) = self.answer_to(Ask::Inventory, now) else { return };
                self.driver = Driver::Up(inventory.versions);
                self.known.see(&inventory.devices, now.wall);
                if self.known.has_returning() {
                    self.children.hurry(Ask::Readings, now.boot);
                }
            }
            Answer::Readings(readings) => {
                let Some(_) = self.answer_to(Ask::Readings, now) else { return };
                if self.known.read(&readings, self.max_celsius, now.wall) {
                    self.children.follow_fault(now.boot);
                }
            }
            Answer::Processes(listed) => {
                let Some(asked) = self.answer_to(Ask::Processes, now) else { return };
                if self.known.list(listed, asked) {
                    self.processes_at = Some(asked);
                }
            }
        }
    }

    /// The container engine has listed its GPUs, which counts for a class that no driver is asked about.
    pub fn listed(&mut self, list: &[Listed], now: Moment) {
        let Source::Engine { node } = self.source else { return };
        self.known.see_listed(&listed::found(list, &self.known, node), now.wall);
        self.driver = Driver::NotAsked;
    }

    /// The child did not answer in time. The devices stay as they were.
    pub fn hung(&mut self, now: Moment) {
        let asked = self.children.hung(now.boot);
        self.hung_since.get_or_insert(asked);
    }

    /// The child has died, or what it answered cannot be read. The devices stay as they were.
    pub fn died(&mut self, why: String, now: Moment) {
        self.death = why;
        self.children.died(now.boot);
    }

    /// What a look at the abandoned child has seen.
    pub fn checked(&mut self, is_gone: bool) {
        self.children.checked(is_gone);
        self.settle();
    }

    /// Wants the processes seen now.
    pub fn look(&mut self, now: Moment) {
        self.children.hurry(Ask::Processes, now.boot);
    }

    /// Takes over another `gpu.max_temperature_celsius`.
    pub fn limit(&mut self, max_celsius: Option<f64>) {
        self.max_celsius = max_celsius;
        self.known.limit(max_celsius);
    }

    /// Makes a change of one device.
    ///
    /// # Errors
    /// There is no such device, or it cannot be forgotten. Nothing changed.
    pub fn command(&mut self, uuid: &str, command: Command) -> Result<(), Error> {
        self.known.command(uuid, command)
    }

    pub fn records(&self) -> Records {
        self.known.records()
    }

    /// Devices of the last inventory that ostler cannot use: those above the bound, and those without a UUID.
    pub const fn unusable(&self) -> (usize, usize) {
        (self.known.untaken(), self.known.nameless())
    }

    pub fn snapshot(&self, now: Moment) -> Snapshot {
        Snapshot {
            driver: self.driver(),
            devices: self.known.devices().cloned().collect(),
            processes_at: self.processes_at,
            withheld: self.withheld(now),
        }
    }

    fn closed(&mut self, closed: Closed, now: Moment) {
        self.children.closed(now.boot);
        self.settle();
        self.driver = match closed {
            Closed::Absent { why } => {
                self.known.lose_all(&format!("the NVIDIA driver is not loaded: {why}"), now.wall);
                Driver::Absent { why }
            }
            Closed::Mismatch { library, module } => Driver::Mismatch { library, module },
            Closed::Failed { why } => Driver::Failed { why },
        };
    }

    /// Takes an answer down. `None`: it is not to the question that was asked, so the child is not sane.
    fn answer_to(&mut self, ask: Ask, now: Moment) -> Option<BootInstant> {
        let asked = self.children.answered(ask);
        if asked.is_none() {
            self.died(format!("it answered {ask:?}, which was not asked"), now);
            return None;
        }
        self.answered = Some(now);
        self.settle();
        asked
    }

    /// Ends a silence.
    fn settle(&mut self) {
        if self.children.hangs() == 0 && self.children.stuck_since().is_none() {
            self.hung_since = None;
        }
    }

    fn driver(&self) -> Driver {
        let stuck = self.children.stuck_since();
        if stuck.is_some() || self.children.hangs() >= IN_A_ROW {
            return Driver::Hung { since: self.hung_since.or(stuck).unwrap_or_default() };
        }
        if self.children.deaths() >= IN_A_ROW {
            return Driver::Failed { why: self.death.clone() };
        }
        self.driver.clone()
    }

    /// When the devices stop taking sessions if nothing answers until then.
    fn distrust_at(&self) -> Option<BootInstant> {
        self.answered.map(|answered| answered.boot.plus(TRUSTED))
    }

    fn withheld(&self, now: Moment) -> Option<String> {
        let is_listed = self.driver == Driver::NotAsked;
        match self.source {
            _ if self.known.is_empty() => None,
            Source::Driver => self.distrusted(now),
            Source::Engine { .. } => {
                (!is_listed).then(|| "the container engine has not listed its GPUs since the agent started".to_owned())
            }
            Source::Fiction => None,
        }
    }

    /// Why what the driver last said counts no more.
    fn distrusted(&self, now: Moment) -> Option<String> {
        let driver = self.driver();
        let trouble = driver.trouble();
        match (&driver, self.answered) {
            (Driver::Absent { .. }, _) => None, // every device is lost
            (Driver::Mismatch { .. }, _) => trouble,
            (_, Some(answered)) if now.boot < answered.boot.plus(TRUSTED) => None,
            (_, Some(Moment { wall, .. })) => {
                Some(trouble.unwrap_or_else(|| format!("the NVIDIA driver has not answered since {wall}")))
            }
            (_, None) => {
                Some(trouble.unwrap_or_else(|| "the NVIDIA driver has not answered since the agent started".to_owned()))
            }
        }
    }
}

impl Driver {
    /// What is wrong with the driver and what to do, for people. `None`: nothing, or there is none.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Unknown | Self::Absent { .. } | Self::Up(_) | Self::NotAsked => None,
            Self::Mismatch { library, module } => Some(format!(
                "NVIDIA's library has version {} and its kernel module {}: reboot the host, or drain the node and \
                 reload the module",
                library.as_deref().unwrap_or("unknown"),
                module.as_deref().unwrap_or("unknown")
            )),
            Self::Hung { .. } => Some(
                "the NVIDIA driver does not answer: look for its errors in the kernel log (dmesg), and if it does not \
                 recover, drain the node and reboot the host"
                    .to_owned(),
            ),
            Self::Failed { why } => Some(format!("the NVIDIA driver cannot be asked: {why}")),
        }
    }
}

impl DriverVersions {
    /// The first part of the driver's version; `None`: it cannot be read.
    pub fn major(&self) -> Option<u32> {
        self.driver.split('.').next()?.parse().ok()
    }
}

#[cfg(test)]
mod tests;
