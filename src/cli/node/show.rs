//! The text of `ostler node show`. Pure.

use std::fmt;

use crate::cli::bars::{bar, unknown};
use crate::cli::gpu;
use crate::cli::status::describe_runtime;
use crate::cli::table::{NONE, age, fields, joined, one_line, or_none, short_ids, until, yes_no};
use crate::cli::terminal::Terminal;
use crate::types::{Bytes, ConditionKind, Cores, Drain, Figures, Gpu, Node, Pressure, Timestamp};

/// The whole node: its facts, bars, GPUs, drain, settings and conditions.
pub(super) fn describe(node: &Node, terminal: &Terminal, now: Timestamp) -> String {
    let leader = if node.is_leader { " (leader)" } else { "" };
    let title = format!("{}{leader}", terminal.bold(node.name.as_str()));
    let mut parts = vec![title, facts(node, terminal, now), String::new(), resources(node, terminal)];
    for section in
        [gpus(node, terminal, now), drain(node, terminal, now), Some(settings(node)), conditions(node, terminal, now)]
    {
        parts.extend(section.into_iter().flat_map(|section| [String::new(), section]));
    }
    parts.join("\n")
}

fn facts(node: &Node, terminal: &Terminal, now: Timestamp) -> String {
    let load = node.load.map(|[one, five, fifteen]| format!("{one:.2} {five:.2} {fifteen:.2}"));
    let disk = node.disk.as_ref().map(|disk| {
        let inodes = disk.inodes.map(|inodes| format!(", {} of {} inodes free", inodes.free, inodes.total));
        let inodes = inodes.unwrap_or_default();
        format!("{} free of {} at {}{inodes}", disk.free_bytes, disk.total_bytes, one_line(&disk.path))
    });
    let swap = node.swap.as_ref().map(|swap| format!("{} of {} used", swap.used_bytes, swap.total_bytes));
    fields(&[
        ("id", node.id.to_string()),
        ("address", node.address.clone()),
        ("version", node.version.clone()),
        ("state", format!("{}, seen {} ago", node.state, age(node.last_seen, now))),
        ("runtime", describe_runtime(&node.runtime, terminal)),
        ("sessions", node.sessions.to_string()),
        ("load", or_none(load)),
        ("pressure", or_none(node.pressure.as_ref().map(pressure))),
        ("disk", or_none(disk)),
        ("swap", or_none(swap)),
    ])
}

/// The time in which processes waited, such as `cpu 1.2 %, memory 0.0 %, io 0.3 %`.
fn pressure(pressure: &Pressure) -> String {
    let parts = [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)];
    let known = parts.into_iter().filter_map(|(name, share)| Some(format!("{name} {:.1} %", share? * 100.0)));
    known.collect::<Vec<_>>().join(", ")
}

/// The bars of what the node offers, under a heading.
pub(in crate::cli) fn resources(node: &Node, terminal: &Terminal) -> String {
    let made_up = node.conditions.iter().any(|condition| condition.kind == ConditionKind::DevFigures);
    let resources = &node.resources;
    let cores = |cores: &Cores| cores.milli() as f64 / 1000.0;
    let mut lines = vec![terminal.bold("Resources")];
    lines.extend(bars("cores", "cores", &resources.cores, cores, terminal));
    lines.extend(bars("memory", "memory", &resources.memory_bytes, |memory: &Bytes| memory.get() as f64, terminal));
    if resources.gpus.effective > 0 || resources.gpus.physical.is_some_and(|gpus| gpus > 0) {
        lines.extend(bars("gpus", "GPUs", &resources.gpus, |gpus: &u32| f64::from(*gpus), terminal));
    }
    if made_up {
        lines.push(format!(
            "  {}",
            terminal.red("These figures come from the [dev] section of the configuration; they are not measured.")
        ));
    }
    lines.join("\n")
}

/// Utilized and allocated, as shares of effective. If an override sets effective, physical too.
fn bars<T: Copy + Default + PartialEq + fmt::Display>(
    name: &str,
    unit: &str,
    figures: &Figures<T>,
    number: impl Fn(&T) -> f64,
    terminal: &Terminal,
) -> Vec<String> {
    let Some(offered) = figures.offered() else {
        let allocated = format!("{} {unit} allocated; {unit} of the host: unknown", figures.allocated);
        return vec![format!("  {name:<8}{}  {allocated}", unknown(terminal))];
    };
    let effective = number(&offered);
    let (used, used_text) = match &figures.utilized {
        Some(utilized) => {
            (bar(number(utilized), effective, terminal), format!("{utilized} of {offered} {unit} utilized"))
        }
        None => (unknown(terminal), format!("{unit} utilized: unknown")),
    };
    let allocated = bar(number(&figures.allocated), effective, terminal);
    let overridden = number(&figures.override_) > 0.0;
    let physical = figures.physical.map_or_else(|| "unknown".to_owned(), |physical| physical.to_string());
    let physical = if overridden { format!(" (physical {physical})") } else { String::new() };
    let share = format!("{} of {offered} {unit} allocated{physical}", figures.allocated);
    let over = number(&figures.allocated) > effective;
    let share = if over { terminal.red(&share) } else { share };
    vec![format!("  {name:<8}{used}  {used_text}"), format!("  {:<8}{allocated}  {share}", "")]
}

fn gpus(node: &Node, terminal: &Terminal, now: Timestamp) -> Option<String> {
    if node.gpus.is_empty() {
        return None;
    }
    let mut lines = vec![terminal.bold("GPUs")];
    lines.extend(node.gpus.iter().flat_map(|device| gpu_lines(device, terminal, now)));
    Some(lines.join("\n"))
}

/// What the device is and its state, why it takes no sessions, its measurements, and its bars.
fn gpu_lines(device: &Gpu, terminal: &Terminal, now: Timestamp) -> Vec<String> {
    let (model, uuid, state) = (one_line(&device.model), one_line(&device.uuid), gpu::state(device, now));
    let state = if device.state.is_usable() { state } else { terminal.red(&state) };
    let mut lines = vec![format!("  {:<8}{model}, {uuid}, {state}", device.index)];
    let mut below = |text: String| lines.push(format!("  {:<8}{text}", ""));
    if let Some(why) = gpu::why(device) {
        below(terminal.red(&why));
    }
    below(measured(device));
    below(match device.utilization_percent {
        Some(percent) => format!("{}  {percent:.0} % utilized", bar(percent, 100.0, terminal)),
        None => format!("{}  utilized: unknown", unknown(terminal)),
    });
    let slots = bar(f64::from(device.slots_used), f64::from(device.slots), terminal);
    below(format!("{slots}  {} of {} slots allocated", device.slots_used, device.slots));
    lines
}

fn measured(device: &Gpu) -> String {
    let foreign = device.memory_foreign_bytes.filter(|foreign| !foreign.is_zero());
    let foreign = foreign.map(|foreign| format!(" ({foreign} not by sessions)")).unwrap_or_default();
    let throttling = device.throttling.as_ref().filter(|reasons| !reasons.is_empty());
    let throttling =
        throttling.map(|reasons| format!(", throttled: {}", one_line(&reasons.join(" ")))).unwrap_or_default();
    let (memory, temperature, power) = (gpu::memory(device), gpu::temperature(device), gpu::power(device));
    format!("memory {memory}{foreign}, temperature {temperature}, power {power}{throttling}")
}

/// The node's drain, with the sessions that it waits for; `None` if the node is not draining.
pub(in crate::cli) fn drain(node: &Node, terminal: &Terminal, now: Timestamp) -> Option<String> {
    let Drain { since, deadline, stop_sessions, message, blockers } = node.drain.as_ref()?;
    let deadline = deadline.map(|at| if at > now { format!("in {}", until(at, now)) } else { "passed".to_owned() });
    let blockers = if blockers.is_empty() { "nothing: it is drained".to_owned() } else { joined(short_ids(blockers)) };
    let rows = fields(&[
        ("since", format!("{} ago", age(*since, now))),
        ("deadline", or_none(deadline)),
        ("stops", if *stop_sessions { "sessions left at the deadline".to_owned() } else { "nothing".to_owned() }),
        ("message", message.as_deref().map_or_else(|| NONE.to_owned(), one_line)),
        ("waits for", blockers),
    ]);
    Some(format!("{}\n{rows}", terminal.yellow("Draining")))
}

fn settings(node: &Node) -> String {
    let settings = &node.settings;
    let or_no = |given: bool, text: String| if given { text } else { "none".to_owned() };
    let labels = settings.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let rows = [
        ("enabled", yes_no(settings.enabled).to_owned()),
        ("prune", settings.prune.to_string()),
        ("cores_override", or_no(!settings.cores_override.is_zero(), settings.cores_override.to_string())),
        (
            "memory_override_bytes",
            or_no(!settings.memory_override_bytes.is_zero(), settings.memory_override_bytes.to_string()),
        ),
        ("gpus_override", or_no(settings.gpus_override > 0, settings.gpus_override.to_string())),
        ("gpu_sharing", settings.gpu_sharing.to_string()),
        ("labels", joined(labels)),
    ];
    let declared = |name: &str| node.declared_settings.iter().any(|declared| declared == name);
    let rows = rows.map(|(name, value)| {
        (name, if declared(name) { format!("{value}  (declared in the node's configuration file)") } else { value })
    });
    format!("Settings\n{}", fields(&rows))
}

fn conditions(node: &Node, terminal: &Terminal, now: Timestamp) -> Option<String> {
    if node.conditions.is_empty() {
        return None;
    }
    let lines = node.conditions.iter().map(|condition| {
        let kind = terminal.red(condition.kind.as_str());
        format!("\n  {kind}: {} (for {})", one_line(&condition.message), age(condition.since, now))
    });
    Some(format!("{}{}", terminal.red("Conditions"), lines.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::node::example;
    use crate::types::GpuState;

    fn now() -> Timestamp {
        "2026-01-31T12:00:10Z".parse().unwrap()
    }

    #[test]
    fn a_node_shows_its_bars_settings_and_conditions() {
        let expected = "\
host-a (leader)
  id        k3f7q2m5x6a4b7c2
  address   10.0.0.1:7480
  version   0.1.0
  state     alive, seen 10s ago
  runtime   docker 28.1
  sessions  2
  load      0.50 0.25 0.10
  pressure  -
  disk      50 GiB free of 100 GiB at /var/lib/docker
  swap      0 B of 0 B used

Resources
  cores   [#######-------------]  35%  4.2 of 12 cores utilized
          [########------------]  42%  5 of 12 cores allocated (physical 6)
  memory  [                    ]    ?  memory utilized: unknown
          [#################---]  83%  5 GiB of 6 GiB memory allocated
  gpus    [                    ]    ?  GPUs utilized: unknown
          [######--------------]  30%  3 of 10 GPUs allocated (physical 1)
  These figures come from the [dev] section of the configuration; they are not measured.

GPUs
  0       L4, GPU-1, ok
          memory 1 GiB of 24 GiB, temperature 41 °C, power 30 W
          [#######-------------]  37%  37 % utilized
          [######--------------]  30%  3 of 10 slots allocated

Settings
  enabled                yes
  prune                  normal
  cores_override         12  (declared in the node's configuration file)
  memory_override_bytes  none
  gpus_override          10
  gpu_sharing            same_user
  labels                 rack=3

Conditions
  dev_figures: cores are not measured (for 1h)";
        assert_eq!(describe(&example(), &Terminal::PLAIN, now()), expected);
    }

    #[test]
    fn a_drain_names_what_it_waits_for() {
        let mut node = example();
        node.drain = Some(Drain {
            since: "2026-01-31T11:59:40Z".parse().unwrap(),
            deadline: Some("2026-01-31T13:00:10Z".parse().unwrap()),
            stop_sessions: false,
            message: Some("new disk".to_owned()),
            blockers: vec!["mfrggzdfmztwq2lknnwg23tpob".parse().unwrap()],
        });
        let expected = "\
Draining
  since      30s ago
  deadline   in 1h
  stops      nothing
  message    new disk
  waits for  mfrggzdf";
        assert!(describe(&node, &Terminal::PLAIN, now()).contains(expected));
    }

    #[test]
    fn a_gpu_says_why_it_takes_no_sessions_and_what_is_not_known_of_it() {
        let mut node = example();
        let gpu = &mut node.gpus[0];
        (gpu.state, gpu.message) = (GpuState::Foreign, Some("Xorg (pid 7) uses 2 GiB".to_owned()));
        (gpu.memory_foreign_bytes, gpu.temperature_celsius, gpu.utilization_percent) =
            (Some(Bytes::gib(2)), None, None);
        gpu.throttling = Some(vec!["thermal".to_owned()]);
        gpu.read_at = Some("2026-01-31T11:59:30Z".parse().unwrap());
        let expected = "
GPUs
  0       L4, GPU-1, foreign, measured 40s ago
          Xorg (pid 7) uses 2 GiB
          memory 1 GiB of 24 GiB (2 GiB not by sessions), temperature -, power 30 W, throttled: thermal
          [                    ]    ?  utilized: unknown
          [######--------------]  30%  3 of 10 slots allocated
";
        let shown = describe(&node, &Terminal::PLAIN, now());
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn more_allocated_than_offered_is_red() {
        let mut node = example();
        node.resources.cores.effective = Cores::whole(3);
        let colour = Terminal { colour: true, ..Terminal::PLAIN };
        assert!(describe(&node, &colour, now()).contains("\x1b[31m5 of 3 cores allocated (physical 6)\x1b[0m"));
        assert!(describe(&node, &colour, now()).contains("\x1b[31mdev_figures\x1b[0m"));
    }
}
