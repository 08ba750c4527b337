//! What a host offers: its physical figures with the operator's overrides applied.

use crate::types::{Resources, Settings};

/// The override if it is not 0, else physical. A host without GPUs offers none, whatever the override is.
pub fn effective(physical: Resources, settings: &Settings) -> Resources {
    let gpus = if physical.gpus == 0 { 0 } else { overridden(settings.gpus_override, physical.gpus) };
    Resources::new(
        overridden(settings.cores_override, physical.cores),
        overridden(settings.memory_override_bytes, physical.memory),
        gpus,
    )
}

/// How many sessions each device may hold at once, in the order of the devices. The slots are spread evenly and the
/// first devices get the remainder: the sum is `effective`, and no device has more than `ceil(effective / physical)`.
pub fn slots_per_device(physical: u32, effective: u32) -> Vec<u32> {
    let Some(each) = effective.checked_div(physical) else { return Vec::new() };
    let with_one_more = effective % physical;
    (0..physical).map(|device| each + u32::from(device < with_one_more)).collect()
}

fn overridden<T: Default + PartialEq>(override_: T, physical: T) -> T {
    if override_ == T::default() { physical } else { override_ }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, Cores};
    use proptest::prelude::*;

    fn host() -> Resources {
        Resources::new(Cores::whole(6), Bytes::gib(6), 1)
    }

    #[test]
    fn an_override_of_zero_is_none() {
        assert_eq!(effective(host(), &Settings::default()), host());
    }

    #[test]
    fn an_override_replaces_one_figure_up_or_down() {
        let settings =
            Settings { cores_override: Cores::whole(12), memory_override_bytes: Bytes::gib(4), ..Settings::default() };
        assert_eq!(effective(host(), &settings), Resources::new(Cores::whole(12), Bytes::gib(4), 1));
    }

    #[test]
    fn a_gpu_override_needs_a_gpu() {
        let settings = Settings { gpus_override: 10, ..Settings::default() };
        assert_eq!(effective(host(), &settings).gpus, 10);
        assert_eq!(effective(Resources { gpus: 0, ..host() }, &settings).gpus, 0);
    }

    #[test]
    fn slots_of_known_cases() {
        assert_eq!(slots_per_device(1, 10), [10]);
        assert_eq!(slots_per_device(2, 5), [3, 2]);
        assert_eq!(slots_per_device(4, 2), [1, 1, 0, 0]);
        assert_eq!(slots_per_device(0, 0), [0; 0]);
    }

    proptest! {
        #[test]
        fn slots_add_up_and_are_even(physical in 1..64u32, effective in 0..1024u32) {
            let slots = slots_per_device(physical, effective);
            prop_assert_eq!(slots.len(), physical as usize);
            prop_assert_eq!(slots.iter().sum::<u32>(), effective);
            let most = effective.div_ceil(physical);
            prop_assert!(slots.iter().all(|&n| n <= most && n + 1 >= most));
        }

        #[test]
        fn effective_is_physical_or_the_override(
            cores in 0..100u32, over in 0..100u32, gpus in 0..8u32, gpus_over in 0..32u32
        ) {
            let physical = Resources::new(Cores::whole(cores), Bytes::gib(1), gpus);
            let settings =
                Settings { cores_override: Cores::whole(over), gpus_override: gpus_over, ..Settings::default() };
            let offered = effective(physical, &settings);
            prop_assert_eq!(offered.cores, Cores::whole(if over == 0 { cores } else { over }));
            prop_assert_eq!(offered.gpus, if gpus == 0 || gpus_over == 0 { gpus } else { gpus_over });
            prop_assert_eq!(offered.memory, physical.memory);
        }
    }
}
