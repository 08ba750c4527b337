//! Facts for tests.

use crate::runtime::{EngineInfo, GpuSupport};
use crate::types::{Bytes, Cores};

/// An engine without a fault.
pub(crate) fn engine(version: &str) -> EngineInfo {
    EngineInfo {
        version: version.to_owned(),
        cores: Cores::whole(4),
        memory: Bytes::gib(8),
        data_root: None,
        unenforced: Vec::new(),
        epoch: None,
        platform: None,
        images: None,
        pid: None,
        gpus: GpuSupport::default(),
    }
}
