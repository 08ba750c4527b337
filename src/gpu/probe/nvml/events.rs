//! The faults (XIDs) that the driver reports of one device.

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::{Device, EventSet, Nvml};

/// The faults of one device in one answer at most. What is left comes with the next answer.
const MAX_FAULTS: usize = 32;

/// A device has a set of its own: an error of its registration or its waiting concerns no other device.
pub(super) struct Events(EventSet<'static>);

impl Events {
    /// `None`: the device reports no faults, or the library lacks a function for them.
    pub(super) fn of(nvml: &'static Nvml, device: &Device<'static>) -> Option<Self> {
        // The wrapper frees a set when it is dropped, and panics if there is no function for it.
        if nvml.lib().nvmlEventSetFree.is_err() {
            return None;
        }
        // Only faults: changes of clocks and of power would fill the queue.
        let faults = EventTypes::CRITICAL_XID_ERROR;
        if !device.supported_event_types().is_ok_and(|types| types.contains(faults)) {
            return None;
        }
        device.register_events(faults, nvml.create_event_set().ok()?).ok().map(Self)
    }

    /// The faults since the last call. Waits for none.
    pub(super) fn drain(&self) -> Vec<u64> {
        let mut codes = Vec::new();
        for _ in 0..MAX_FAULTS {
            // A timeout, or an error, which a lost device returns at once: the readings tell that it is lost.
            let Ok(event) = self.0.wait(0) else { break };
            if let Some(XidError::Value(code)) = event.event_data {
                codes.push(code);
            }
        }
        codes
    }
}
