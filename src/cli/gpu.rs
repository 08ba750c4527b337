//! `ostler gpu`: the cluster's GPUs.

use clap::Subcommand;

use crate::types::{Gpu, List};

use super::Context;
use super::failure::Failure;
use super::route::Route;
use super::table::{NONE, one_line, or_none, table};

/// Commands about GPUs.
#[derive(Debug, Subcommand)]
pub(super) enum GpuCommand {
    /// List the GPUs of every node, with measurements and the number of sessions that hold each.
    Ls,
}

pub(super) async fn run(command: &GpuCommand, context: &Context) -> Result<(), Failure> {
    match command {
        GpuCommand::Ls => {
            let body = context.client()?.list(Route::new(&["gpus"])).await?;
            context.out.answer(&body, |list: &List<Gpu>| describe(&list.items))
        }
    }
}

fn describe(gpus: &[Gpu]) -> String {
    let rows = gpus.iter().map(|gpu| {
        vec![
            gpu.node.to_string(),
            gpu.index.to_string(),
            one_line(&gpu.model),
            one_line(&gpu.uuid),
            memory(gpu),
            or_none(gpu.utilization_percent.map(|percent| format!("{percent:.0}%"))),
            or_none(gpu.temperature_celsius.map(|celsius| format!("{celsius:.0} °C"))),
            or_none(gpu.power_watts.map(|watts| format!("{watts:.0} W"))),
            format!("{} of {}", gpu.slots_used, gpu.slots),
            health(gpu),
        ]
    });
    let header = ["NODE", "GPU", "MODEL", "UUID", "MEMORY", "BUSY", "TEMP", "POWER", "SLOTS", "HEALTH"];
    table(&header, rows)
}

/// Memory used, of the total.
pub(super) fn memory(gpu: &Gpu) -> String {
    match (gpu.memory_used_bytes, gpu.memory_total_bytes) {
        (Some(used), Some(total)) => format!("{used} of {total}"),
        (None, Some(total)) => total.to_string(),
        _ => NONE.to_owned(),
    }
}

/// The device's health, and whether it is cordoned.
pub(super) fn health(gpu: &Gpu) -> String {
    let cordoned = if gpu.cordoned { ", cordoned" } else { "" };
    format!("{}{cordoned}", gpu.health)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, GpuProfile, GpuUsage, sample};

    #[test]
    fn an_unknown_measurement_is_shown_as_a_dash() {
        let profile = GpuProfile {
            model: "L4".to_owned(),
            memory_total_bytes: Some(Bytes::gib(24)),
            slots: 10,
            slots_used: 3,
            cordoned: true,
            ..sample::gpu("GPU-1", 0)
        };
        let usage = GpuUsage { temperature_celsius: Some(41.6), ..GpuUsage::default() };
        let gpu = Gpu::of(&profile, &"a".parse().unwrap(), Some(&usage));
        let expected = "\
NODE   GPU   MODEL   UUID    MEMORY   BUSY   TEMP    POWER   SLOTS     HEALTH
a      0     L4      GPU-1   24 GiB   -      42 °C   -       3 of 10   ok, cordoned";
        assert_eq!(describe(&[gpu]), expected);
    }
}
