//! `ostler gpu`: the cluster's GPUs.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::types::{
    Gpu, GpuDetails, GpuMemoryEnforced, GpuProcess, GpuRemappedRows, GpuState, List, Session, SessionId, Timestamp,
};

use super::arguments::one_of;
use super::client::{Call, Client};
use super::failure::Failure;
use super::route::Route;
use super::table::{NONE, age, fields, joined, one_line, or_none, short_ids, table, yes_no};
use super::{Context, Failures};

/// From this age on, measurements show it. The agent reads a GPU every 5 s: by then it has missed two readings.
const STALE: Duration = Duration::from_secs(15);

/// Commands about GPUs.
#[derive(Debug, Subcommand)]
pub(super) enum GpuCommand {
    /// List GPUs, with measurements, the number of sessions that hold each, and why a GPU takes no sessions.
    #[command(after_help = "Examples:
  ostler gpu ls
  ostler gpu ls host-a
  ostler gpu ls --state lost")]
    Ls(LsArgs),
    /// Show a GPU, and the sessions that hold it.
    Show(ShowArgs),
    /// Let no new session have these GPUs. Sessions that have them go on.
    ///
    /// The cordon stays until `ostler gpu uncordon`, also when the agent or the host restarts.
    #[command(after_help = "Examples:\n  ostler gpu cordon GPU-b5a0a1f6")]
    Cordon(ChangeArgs),
    /// Let new sessions have these GPUs again.
    ///
    /// A GPU that is failing gets another chance.
    Uncordon(ChangeArgs),
    /// Forget lost GPUs that will not return.
    ///
    /// A node keeps the slots of a lost GPU until its host is booted again. A GPU that is found again is back.
    Forget(ChangeArgs),
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Only the GPUs of this node [default: every node].
    #[arg(value_name = "NODE")]
    on: Option<String>,
    /// Only GPUs in this state.
    #[arg(long, value_parser = one_of::<GpuState>(GpuState::ALL.iter().map(|state| state.as_str())))]
    state: Option<GpuState>,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// A GPU's UUID or a unique prefix of it.
    #[arg(value_name = "GPU")]
    gpu: String,
}

#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// UUIDs of GPUs, or unique prefixes of them. `ostler gpu ls` shows them.
    #[arg(value_name = "GPU", required = true)]
    gpus: Vec<String>,
}

pub(super) async fn run(command: &GpuCommand, context: &Context) -> Result<(), Failure> {
    match command {
        GpuCommand::Ls(args) => {
            let route = Route::new(&["gpus"]).with_any("node", args.on.as_ref()).with_any("state", args.state);
            let body = context.client()?.list(route).await?;
            context.out.answer(&body, |list: &List<Gpu>| describe_all(&list.items, context.out.now))
        }
        GpuCommand::Show(args) => show(args, context).await,
        GpuCommand::Cordon(args) => cordon(args, context, |gpu| Call::post(Route::new(&["gpus", gpu, "cordon"]))).await,
        GpuCommand::Uncordon(args) => {
            cordon(args, context, |gpu| Call::delete(Route::new(&["gpus", gpu, "cordon"]))).await
        }
        GpuCommand::Forget(args) => forget(args, context).await,
    }
}

async fn show(args: &ShowArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let body = client.get(Route::new(&["gpus", &args.gpu])).await?;
    let sessions = holders(&client, &body.read()?).await?;
    context.out.answer(&body, |gpu: &Gpu| describe(gpu, &sessions, context.out.now))
}

/// The sessions that hold the GPU, each with its user.
async fn holders(client: &Client, gpu: &Gpu) -> Result<Vec<(SessionId, String)>, Failure> {
    let sessions: List<Session> = client.list(Route::new(&["sessions"]).with("node", &gpu.node)).await?.read()?;
    let holds = |session: &Session| !session.state.has_ended() && session.gpu_uuids.contains(&gpu.uuid);
    let holders = sessions.items.into_iter().filter(holds);
    Ok(holders.map(|session| (session.id, session.user.to_string())).collect())
}

/// Sends one request a GPU, whose answer is the GPU.
async fn cordon(args: &ChangeArgs, context: &Context, call: impl Fn(&str) -> Call) -> Result<(), Failure> {
    let client = context.client()?;
    let mut failures = Failures::default();
    for gpu in &args.gpus {
        match client.send(call(gpu)).await {
            Ok(answer) => context.out.answer(&answer.body, |gpu: &Gpu| one_line(&gpu.uuid))?,
            Err(failure) => failures.add(gpu, &failure),
        }
    }
    failures.into_result()
}

async fn forget(args: &ChangeArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let mut failures = Failures::default();
    for gpu in &args.gpus {
        match client.send(Call::delete(Route::new(&["gpus", gpu]))).await {
            Ok(_) => context.out.done(gpu)?,
            Err(failure) => failures.add(gpu, &failure),
        }
    }
    failures.into_result()
}

fn describe_all(gpus: &[Gpu], now: Timestamp) -> String {
    let rows = gpus.iter().map(|gpu| {
        vec![
            gpu.node.to_string(),
            gpu.index.to_string(),
            one_line(&gpu.model),
            one_line(&gpu.uuid),
            memory(gpu),
            busy(gpu),
            temperature(gpu),
            power(gpu),
            format!("{} of {}", gpu.slots_used, gpu.slots),
            why(gpu).map_or_else(|| state(gpu, now), |why| format!("{}: {why}", state(gpu, now))),
        ]
    });
    let header = ["NODE", "GPU", "MODEL", "UUID", "MEMORY", "BUSY", "TEMP", "POWER", "SLOTS", "STATE"];
    table(&header, rows)
}

fn describe(gpu: &Gpu, sessions: &[(SessionId, String)], now: Timestamp) -> String {
    let or_dash = |text: &Option<String>| text.as_deref().map_or_else(|| NONE.to_owned(), one_line);
    let throttling = gpu.throttling.as_ref().map(|reasons| {
        if reasons.is_empty() { "no".to_owned() } else { joined(reasons.iter().map(|reason| one_line(reason))) }
    });
    let details = &gpu.details;
    let declared = match gpu.memory_enforced {
        GpuMemoryEnforced::No => format!("{}, not enforced", gpu.memory_declared_bytes),
        GpuMemoryEnforced::Driver => format!("{}, enforced by the driver", gpu.memory_declared_bytes),
    };
    let ids = short_ids(sessions.iter().map(|(id, _)| id));
    let sessions = ids.iter().zip(sessions).map(|(id, (_, user))| format!("{id} ({user})"));
    fields(&[
        ("uuid", one_line(&gpu.uuid)),
        ("node", gpu.node.to_string()),
        ("index", gpu.index.to_string()),
        ("model", one_line(&gpu.model)),
        ("class", one_line(&gpu.class)),
        ("pci address", or_dash(&gpu.pci_address)),
        ("mig instance of", or_dash(&gpu.mig_parent)),
        ("state", state(gpu, now)),
        ("message", or_dash(&gpu.message)),
        ("health", gpu.health.to_string()),
        ("cordoned", yes_no(gpu.cordoned).to_owned()),
        ("memory", memory(gpu)),
        ("foreign memory", or_none(gpu.memory_foreign_bytes)),
        ("declared memory", declared),
        ("busy", busy(gpu)),
        ("temperature", temperature(gpu)),
        ("power", power(gpu)),
        ("throttled", or_none(throttling)),
        ("slows down at", or_none(details.slowdown_celsius.map(|celsius| format!("{celsius:.0} °C")))),
        ("power limit", or_none(details.power_limit_watts.map(|watts| format!("{watts:.0} W")))),
        ("driver", or_dash(&details.driver_version)),
        ("ecc", or_none(details.ecc_enabled.map(|enabled| if enabled { "on" } else { "off" }))),
        ("memory errors", memory_errors(details)),
        ("remapped rows", or_none(details.remapped_rows.map(remapped_rows))),
        ("last xid", or_none(details.last_xid.map(|xid| format!("{}, {} ago", xid.code, age(xid.at, now))))),
        ("processes", or_none(details.processes.as_ref().map(|list| joined(list.iter().map(process))))),
        ("measured", gpu.read_at.map_or_else(|| NONE.to_owned(), |at| format!("{} ago", age(at, now)))),
        ("release", gpu.release.to_string()),
        ("slots", format!("{} of {}", gpu.slots_used, gpu.slots)),
        ("sessions", joined(sessions)),
    ])
}

/// Errors of its memory that were corrected, and that were not.
fn memory_errors(details: &GpuDetails) -> String {
    match (details.ecc_corrected_errors, details.ecc_uncorrected_errors) {
        (None, None) => NONE.to_owned(),
        (corrected, uncorrected) => format!("{} corrected, {} not", or_none(corrected), or_none(uncorrected)),
    }
}

fn remapped_rows(rows: GpuRemappedRows) -> String {
    let pending = if rows.pending { ", more at the next reset" } else { "" };
    let failed = if rows.failed { ", no spare rows left" } else { "" };
    format!("{} after corrected errors, {} after others{pending}{failed}", rows.corrected, rows.uncorrected)
}

/// For example `4242 (python, 2 GiB, session aefo64aqqbmnd62xbsjouz7rnc)`.
fn process(process: &GpuProcess) -> String {
    let memory = process.memory_bytes.map(|memory| format!(", {memory}")).unwrap_or_default();
    let session = process.session.map(|session| format!(", session {session}")).unwrap_or_default();
    format!("{} ({}{memory}{session})", process.pid, one_line(&process.command))
}

/// Memory used, of the total.
pub(super) fn memory(gpu: &Gpu) -> String {
    match (gpu.memory_used_bytes, gpu.memory_total_bytes) {
        (Some(used), Some(total)) => format!("{used} of {total}"),
        (Some(used), None) => format!("{used} of {NONE}"),
        (None, Some(total)) => format!("{NONE} of {total}"),
        (None, None) => NONE.to_owned(),
    }
}

pub(super) fn temperature(gpu: &Gpu) -> String {
    or_none(gpu.temperature_celsius.map(|celsius| format!("{celsius:.0} °C")))
}

pub(super) fn power(gpu: &Gpu) -> String {
    or_none(gpu.power_watts.map(|watts| format!("{watts:.0} W")))
}

fn busy(gpu: &Gpu) -> String {
    or_none(gpu.utilization_percent.map(|percent| format!("{percent:.0}%")))
}

/// The state; whether the GPU is cordoned as well; and the age of its measurements if they are [`STALE`].
pub(super) fn state(gpu: &Gpu, now: Timestamp) -> String {
    let cordoned = (gpu.cordoned && gpu.state != GpuState::Cordoned).then(|| "cordoned".to_owned());
    let stale = gpu.read_at.filter(|at| now.since(*at) >= STALE);
    let stale = stale.map(|at| format!("measured {} ago", age(at, now)));
    joined([Some(gpu.state.to_string()), cordoned, stale].into_iter().flatten())
}

/// Why the GPU takes no sessions, if it takes none and that says more than the state.
pub(super) fn why(gpu: &Gpu) -> Option<String> {
    let message = gpu.message.as_deref().map(one_line)?;
    (!message.is_empty() && message != gpu.state.as_str()).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, GpuHealth, GpuProfile, GpuUsage, GpuXid, sample};

    fn gpu(profile: GpuProfile, usage: &GpuUsage) -> Gpu {
        Gpu::of(&profile, &"a".parse().unwrap(), Some(usage))
    }

    fn now() -> Timestamp {
        Timestamp::from_millis(100_000)
    }

    fn l4(uuid: &str, index: u32) -> GpuProfile {
        let memory_total_bytes = Some(Bytes::gib(24));
        GpuProfile { model: "L4".to_owned(), memory_total_bytes, slots: 10, slots_used: 3, ..sample::gpu(uuid, index) }
    }

    #[test]
    fn an_unknown_measurement_is_shown_as_a_dash() {
        let cordoned = GpuProfile { state: GpuState::Cordoned, cordoned: true, ..l4("GPU-1", 0) };
        let usage = GpuUsage { temperature_celsius: Some(41.6), ..GpuUsage::default() };
        let expected = "\
NODE   GPU   MODEL   UUID    MEMORY        BUSY   TEMP    POWER   SLOTS     STATE
a      0     L4      GPU-1   - of 24 GiB   -      42 °C   -       3 of 10   cordoned";
        assert_eq!(describe_all(&[gpu(cordoned, &usage)], now()), expected);
    }

    #[test]
    fn a_gpu_that_takes_no_sessions_says_why_and_old_measurements_show_their_age() {
        let message = Some("not found\nsince 12:00".to_owned());
        let (health, state) = (GpuHealth::Lost, GpuState::Lost);
        let lost = GpuProfile { state, health, message, cordoned: true, ..l4("GPU-1", 0) };
        let at = |millis| GpuUsage { at: Some(Timestamp::from_millis(millis)), ..GpuUsage::default() };
        let shown = describe_all(&[gpu(lost, &at(10_000)), gpu(l4("GPU-2", 1), &at(85_001))], now());
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].ends_with("   lost, cordoned, measured 1m30s ago: not found since 12:00"), "{shown}");
        assert!(lines[2].ends_with("   ok"), "{shown}");
        let stale = describe_all(&[gpu(l4("GPU-2", 1), &at(85_000))], now());
        assert!(stale.ends_with("   ok, measured 15s ago"), "{stale}");
    }

    #[test]
    fn a_gpu_shows_every_field_and_the_sessions_that_hold_it() {
        let session = "mfrggzdfmztwq2lknnwg23tpob".parse().unwrap();
        let process_on = |pid, command: &str, memory_bytes, session| {
            let command = command.to_owned();
            GpuProcess { pid, command, memory_bytes, session }
        };
        let profile = GpuProfile { memory_declared_bytes: Bytes::gib(8), ..l4("GPU-1", 0) };
        let usage = GpuUsage {
            at: Some(now()),
            memory_used_bytes: Some(Bytes::gib(9)),
            memory_foreign_bytes: Some(Bytes::mib(300)),
            utilization_percent: Some(37.4),
            throttling: Some(vec!["thermal".to_owned(), "power".to_owned()]),
            details: GpuDetails {
                driver_version: Some("580.65.06".to_owned()),
                power_limit_watts: Some(350.0),
                ecc_enabled: Some(true),
                ecc_corrected_errors: Some(2),
                remapped_rows: Some(GpuRemappedRows { corrected: 1, uncorrected: 0, pending: true, failed: false }),
                last_xid: Some(GpuXid { code: 31, at: now() }),
                processes: Some(vec![
                    process_on(42, "python", Some(Bytes::gib(1)), Some(session)),
                    process_on(43, "Xorg", None, None),
                ]),
                ..GpuDetails::default()
            },
            ..GpuUsage::default()
        };
        let holder = (session, "alice".to_owned());
        let expected = "  uuid             GPU-1
  node             a
  index            0
  model            L4
  class            nvidia.com/gpu
  pci address      0000:1a:00.0
  mig instance of  -
  state            ok
  message          -
  health           ok
  cordoned         no
  memory           9 GiB of 24 GiB
  foreign memory   300 MiB
  declared memory  8 GiB, not enforced
  busy             37%
  temperature      -
  power            -
  throttled        thermal, power
  slows down at    -
  power limit      350 W
  driver           580.65.06
  ecc              on
  memory errors    2 corrected, - not
  remapped rows    1 after corrected errors, 0 after others, more at the next reset
  last xid         31, 0s ago
  processes        42 (python, 1 GiB, session mfrggzdfmztwq2lknnwg23tpob), 43 (Xorg)
  measured         0s ago
  release          proven
  slots            3 of 10
  sessions         mfrggzdf (alice)";
        assert_eq!(describe(&gpu(profile, &usage), &[holder], now()), expected);
    }
}
