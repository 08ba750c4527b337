//! Opens NVML, and says why it could not be opened.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Nvml, cuda_driver_version_major, cuda_driver_version_minor};

use crate::gpu::answer::Closed;
use crate::gpu::device::DriverVersions;
use crate::gpu::probe::host::{Host, is_version};

/// What the loader is asked for unless a file is named.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// Where distributions have libraries. The loader does not tell which file it has opened once that has failed.
const DIRECTORIES: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/lib",
];
/// NVML's code for a driver that is loaded and has no GPU. The wrapper has no name for it.
const GPU_NOT_FOUND: u32 = 28;

pub(super) fn open(library: Option<&Path>, host: &Host) -> Result<&'static Nvml, Closed> {
    let opened = Nvml::builder().lib_path(library.map_or(OsStr::new(LIBRARY), Path::as_os_str)).init();
    opened.map(|nvml| &*Box::leak(Box::new(nvml))).map_err(|e| closed(&e, library, host))
}

pub(super) fn versions(nvml: &Nvml) -> DriverVersions {
    let cuda = |version| format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version));
    DriverVersions {
        driver: nvml.sys_driver_version().unwrap_or_default(),
        cuda: nvml.sys_cuda_driver_version().ok().map(cuda),
        nvml: nvml.sys_nvml_version().ok(),
    }
}

/// What an error of NVML as a whole means.
pub(super) fn closed(error: &NvmlError, library: Option<&Path>, host: &Host) -> Closed {
    let why = error.to_string();
    match error {
        NvmlError::LibRmVersionMismatch => {
            Closed::Mismatch { library: version_of_library(library), module: host.module_version() }
        }
        NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound => Closed::Absent { why },
        NvmlError::UnexpectedVariant(GPU_NOT_FOUND) => Closed::Absent { why: "the driver found no GPU".to_owned() },
        // The loader has only text for what is wrong; a file that is there and cannot be loaded is a fault.
        NvmlError::LibloadingError(_) if why.contains("No such file") => Closed::Absent { why },
        _ => Closed::Failed { why },
    }
}

/// The version in the name of the file behind the link: `libnvidia-ml.so.580.65.06`.
fn version_of_library(library: Option<&Path>) -> Option<String> {
    let candidates: Vec<PathBuf> = match library {
        Some(library) => vec![library.to_owned()],
        None => DIRECTORIES.iter().map(|directory| Path::new(directory).join(LIBRARY)).collect(),
    };
    let file = candidates.iter().find_map(|path| path.canonicalize().ok())?;
    version_of_name(file.file_name()?.to_str()?)
}

fn version_of_name(name: &str) -> Option<String> {
    let (_, version) = name.split_once(".so.")?;
    is_version(version).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_library_is_in_the_name_of_its_file() {
        assert_eq!(version_of_name("libnvidia-ml.so.580.65.06").as_deref(), Some("580.65.06"));
        for name in ["libnvidia-ml.so.1", "libnvidia-ml.so", "libnvidia-ml.so.", "580.65.06", "x.so.580..06"] {
            assert_eq!(version_of_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_driver_that_is_not_there_is_told_from_one_that_is_broken() {
        let closed =
            |error| closed(&error, Some(Path::new("/nowhere/libnvidia-ml.so.1")), &Host::new(Path::new("/nowhere")));
        for error in [NvmlError::DriverNotLoaded, NvmlError::LibraryNotFound, NvmlError::UnexpectedVariant(28)] {
            assert!(matches!(closed(error), Closed::Absent { .. }));
        }
        for error in [NvmlError::Unknown, NvmlError::NoPermission, NvmlError::UnexpectedVariant(27), NvmlError::GpuLost]
        {
            assert!(matches!(closed(error), Closed::Failed { .. }));
        }
        assert_eq!(closed(NvmlError::LibRmVersionMismatch), Closed::Mismatch { library: None, module: None });
    }
}
