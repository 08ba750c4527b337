//! What has changed between two snapshots that an operator should find in the log. Pure.

use super::device::{Device, Presence};
use super::{Driver, Snapshot};

/// One event for the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    Driver(&'a Driver),
    New(&'a Device),
    Lost { device: &'a Device, why: &'a str },
    Back(&'a Device),
    Failing { device: &'a Device, why: &'a str },
    Well(&'a Device),
    Hot(&'a Device),
    Cooled(&'a Device),
}

/// The events, the driver's first. What people ask for is not among them: its owner logs it with their name.
pub fn events<'a>(before: &Snapshot, after: &'a Snapshot) -> Vec<Event<'a>> {
    let driver = (before.driver != after.driver).then_some(Event::Driver(&after.driver));
    let devices = after.devices.iter().flat_map(|device| match before.device(&device.uuid) {
        None => vec![Event::New(device)],
        Some(before) => of_device(before, device),
    });
    driver.into_iter().chain(devices).collect()
}

fn of_device<'a>(before: &Device, device: &'a Device) -> Vec<Event<'a>> {
    let presence = match &device.presence {
        Presence::Lost { why, .. } if before.is_present() => Some(Event::Lost { device, why }),
        Presence::Present if !before.is_present() => Some(Event::Back(device)),
        _ => None,
    };
    let health = match &device.failing {
        Some(why) if before.failing.as_ref() != Some(why) => Some(Event::Failing { device, why }),
        None if before.failing.is_some() => Some(Event::Well(device)),
        _ => None,
    };
    let heat = match (before.hot, device.hot) {
        (false, true) => Some(Event::Hot(device)),
        // Of a lost device nothing is known.
        (true, false) if device.is_present() => Some(Event::Cooled(device)),
        _ => None,
    };
    presence.into_iter().chain(health).chain(heat).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    fn device() -> Device {
        Device::new("a".to_owned(), 0, "H100".to_owned())
    }

    fn snapshot(device: Device) -> Snapshot {
        Snapshot { devices: vec![device], ..Snapshot::default() }
    }

    #[test]
    fn each_change_is_an_event_once() {
        let lost = Presence::Lost { since: Timestamp::from_millis(1), why: "gone".to_owned() };
        let (well, failing) = (device(), Device { failing: Some("XID 79".to_owned()), ..device() });
        let (lost, hot) = (Device { presence: lost, ..device() }, Device { hot: true, ..device() });
        let happened = |before: &Device, after: &Device| {
            let (before, after) = (snapshot(before.clone()), snapshot(after.clone()));
            let names = events(&before, &after).into_iter().map(|event| format!("{event:?}"));
            names.map(|name| name.split([' ', '(']).next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(happened(&well, &lost), ["Lost"]);
        assert_eq!(happened(&lost, &well), ["Back"]);
        assert_eq!(happened(&well, &failing), ["Failing"]);
        assert_eq!(happened(&failing, &well), ["Well"]);
        assert_eq!(happened(&well, &hot), ["Hot"]);
        assert_eq!(happened(&hot, &well), ["Cooled"]);
        assert_eq!(happened(&hot, &lost), ["Lost"]);
        for same in [&well, &lost, &failing, &hot] {
            assert_eq!(happened(same, same), Vec::<String>::new());
        }
        let cordoned = Device { cordoned: true, ..device() };
        assert_eq!(happened(&well, &cordoned), Vec::<String>::new(), "its actor is logged");
    }

    #[test]
    fn a_new_device_and_another_state_of_the_driver_are_events() {
        let driver = Driver::Absent { why: "none".to_owned() };
        let after = Snapshot { driver: driver.clone(), ..snapshot(device()) };
        let expected = [Event::Driver(&driver), Event::New(&after.devices[0])];
        assert_eq!(events(&Snapshot::default(), &after), expected);
        assert_eq!(events(&after, &after), []);
    }
}
