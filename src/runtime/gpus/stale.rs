//! Whether the engine's CDI list is of the driver that runs now. Pure.
//!
//! A list is a file that was made once. After an upgrade of the driver it still names the libraries of the former one,
//! and after the driver was loaded again its device nodes may have numbers that are no longer the driver's: the right
//! GPU, on which programs fail. What is not known does not make a list stale.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{CdiDevice, gpu_minor};

/// The libraries whose file names end with the driver's version.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.", "libcuda.so."];
/// The digits with which the version of every driver since 2008 begins. `libcuda.so.1.1` of Tegra and of WSL is none.
const MAJOR_DIGITS: usize = 3;
/// The names of NVIDIA's driver for GPUs in `/proc/devices`; the first is that of older versions.
const DRIVERS: [&str; 2] = ["nvidia-frontend", "nvidia"];

/// Why a list is not of the driver that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale {
    /// It has the libraries of another version of the driver.
    Libraries { listed: String, driver: String },
    /// It gives a device node a major number that the driver does not have now.
    Node { path: String, listed: u32 },
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Libraries { listed, driver } => {
                write!(f, "it has the libraries of driver {listed}, and the host runs driver {driver}")
            }
            Self::Node { path, listed } => {
                write!(f, "it gives {path} the major number {listed}, which the driver does not have in /proc/devices")
            }
        }
    }
}

impl CdiDevice {
    /// Why its list is not of this driver; `None`: it is, or not enough is known. `driver`: its version.
    pub(super) fn stale(&self, driver: Option<&str>, majors: &Majors) -> Option<Stale> {
        let libraries = self.libraries.clone().zip(driver).filter(|(listed, driver)| listed != driver);
        let libraries = libraries.map(|(listed, driver)| Stale::Libraries { listed, driver: driver.to_owned() });
        let is_old = |(path, major): &(&String, &u32)| {
            let now = majors.of_path(path);
            !now.is_empty() && !now.contains(*major)
        };
        let node = || self.majors.iter().find(is_old);
        libraries.or_else(|| node().map(|(path, listed)| Stale::Node { path: path.clone(), listed: *listed }))
    }
}

/// The major numbers of NVIDIA's drivers, by their names in `/proc/devices`. One that is not loaded is not known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Majors(BTreeMap<String, Vec<u32>>);

impl Majors {
    /// Of the text of `/proc/devices`.
    pub fn of(devices: &str) -> Self {
        let mut majors: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for line in devices.lines().take_while(|line| !line.starts_with("Block")) {
            let Some((number, name)) = line.trim().split_once(' ') else { continue };
            if let (true, Ok(major)) = (name.trim().starts_with("nvidia"), number.parse()) {
                majors.entry(name.trim().to_owned()).or_default().push(major);
            }
        }
        Self(majors)
    }

    /// Those of GPUs; empty: not known.
    pub fn of_gpus(&self) -> Vec<u32> {
        self.named(&DRIVERS)
    }

    /// Those that the device node of this path can have; empty: not known.
    fn of_path(&self, path: &str) -> Vec<u32> {
        let Some(name) = path.strip_prefix("/dev/") else { return Vec::new() };
        match name {
            "nvidiactl" | "nvidia-modeset" => [self.of_gpus(), self.named(&[name])].concat(),
            "nvidia-uvm" | "nvidia-uvm-tools" => self.named(&["nvidia-uvm"]),
            _ if name.starts_with("nvidia-caps/") => self.named(&["nvidia-caps"]),
            _ if gpu_minor(name).is_some() => self.of_gpus(),
            _ => Vec::new(),
        }
    }

    fn named(&self, names: &[&str]) -> Vec<u32> {
        names.iter().filter_map(|name| self.0.get(*name)).flatten().copied().collect()
    }
}

/// The versions of the driver whose libraries a text names, such as `/usr/lib/libcuda.so.580.65.06`.
pub fn drivers_in(text: &str) -> BTreeSet<String> {
    let after = LIBRARIES.iter().flat_map(|library| text.split(library).skip(1));
    after.filter_map(driver_version).collect()
}

/// The version of a driver that a text begins with.
fn driver_version(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let version = text.get(..end)?.trim_end_matches('.');
    let (major, _) = version.split_once('.')?;
    (major.len() == MAJOR_DIGITS).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEVICES: &str = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n195 nvidia-modeset\n\
                           234 nvidia-caps\n511 nvidia-uvm\n\nBlock devices:\n  8 sd\n195 nvidia-caps\n";

    #[test]
    fn the_version_is_the_end_of_the_name_of_a_library() {
        let found = |text| drivers_in(text).into_iter().collect::<Vec<_>>();
        assert_eq!(found("/usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06"), ["580.65.06"]);
        assert_eq!(found("libnvidia-ml.so.550.54::/usr/lib/libnvidia-ml.so.1"), ["550.54"]);
        assert_eq!(found("/a/libcuda.so.550.54.15,/b/libnvidia-ml.so.550.90"), ["550.54.15", "550.90"]);
        for none in ["libcuda.so.1", "libcuda.so.1.1", "libcuda.so.580", "libcuda.so.", "libcudart.so.580.1", ""] {
            assert_eq!(found(none), [""; 0], "{none}");
        }
    }

    #[test]
    fn the_numbers_of_the_driver_are_those_of_its_character_devices() {
        assert_eq!(Majors::of("Character devices:\n195 nvidia-frontend\n235 nvidia-caps\n").of_gpus(), [195]);
        assert_eq!(Majors::of(DEVICES).of_gpus(), [195]);
        assert_eq!(Majors::of("Character devices:\n  1 mem\n\nBlock devices:\n195 nvidia\n").of_gpus(), [0; 0]);
    }

    #[test]
    fn a_list_of_another_version_of_the_driver_is_stale() {
        let listed =
            |version: Option<&str>| CdiDevice { libraries: version.map(str::to_owned), ..CdiDevice::default() };
        let stale = |listed: CdiDevice, driver| listed.stale(driver, &Majors::default());
        let found = stale(listed(Some("550.54")), Some("580.65.06")).unwrap().to_string();
        assert_eq!(found, "it has the libraries of driver 550.54, and the host runs driver 580.65.06");
        assert_eq!(stale(listed(Some("580.65.06")), Some("580.65.06")), None);
        assert_eq!(stale(listed(None), Some("580.65.06")), None, "the list does not say");
        assert_eq!(stale(listed(Some("550.54")), None), None, "the driver does not say");
    }

    #[test]
    fn a_list_with_a_number_that_the_driver_does_not_have_is_stale() {
        let stale = |path: &str, major, devices| {
            let majors = [(path.to_owned(), major)].into();
            CdiDevice { majors, ..CdiDevice::default() }.stale(Some("580.65.06"), &Majors::of(devices))
        };
        for (path, right) in [
            ("/dev/nvidia0", 195),
            ("/dev/nvidiactl", 195),
            ("/dev/nvidia-uvm", 511),
            ("/dev/nvidia-uvm-tools", 511),
            ("/dev/nvidia-caps/nvidia-cap1", 234),
        ] {
            assert_eq!(stale(path, right, DEVICES), None, "{path}");
            let node = Stale::Node { path: path.to_owned(), listed: 300 };
            assert_eq!(stale(path, 300, DEVICES), Some(node), "{path}");
            assert_eq!(stale(path, 300, ""), None, "the driver is not loaded: {path}");
        }
        assert_eq!(stale("/dev/dri/card0", 300, DEVICES), None, "not of this driver");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}", version in "[0-9.é]{0,12}", devices in "[0-9 a-z\n-]{0,80}") {
            let _ = (drivers_in(&text), drivers_in(&format!("libcuda.so.{version}")), Majors::of(&devices));
        }
    }
}
