//! `ostler workspace add` and `set`: workspaces from flags.

use std::str::FromStr;

use clap::Args;
use hyper::Method;

use crate::cli::Context;
use crate::cli::arguments::{Pair, count, map, one_of};
use crate::cli::client::Call;
use crate::cli::failure::Failure;
use crate::cli::route::Route;
use crate::types::{
    Bytes, Cores, GpuCapability, Init, Name, OnHostRestart, Period, Port, Protocol, PullPolicy, Ready, VolumeMount,
    Workspace,
};

/// Add a workspace to the catalogue.
///
/// The words after `--` are the command that its sessions run, in place of the image's own.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler workspace add desktop --image kasmweb/desktop:1.16.0 --cores 2 --memory 2GiB --port 6901 \\
      --env VNC_PW={secret} --volume home-{user}:/home/kasm-user
  ostler workspace add training --image pytorch/pytorch --cores 8 --memory 32GiB --gpus 1 \\
      --gpu-memory 16GiB -- python train.py")]
pub(in crate::cli) struct AddArgs {
    /// Name of the workspace.
    name: Name,
    /// The cores that each of its sessions reserves.
    #[arg(long)]
    cores: Cores,
    /// The memory that each of its sessions reserves, as 4GiB.
    #[arg(long, value_name = "SIZE")]
    memory: Bytes,
    #[command(flatten)]
    rest: FieldArgs,
}

/// Change a workspace. Values that are not given stay, and existing sessions do not change.
///
/// A given list of ports, volumes, variables or constraints replaces the old one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ostler workspace set desktop --memory 4GiB --image kasmweb/desktop:1.17.0")]
pub(in crate::cli) struct SetArgs {
    /// The workspace's name.
    name: Name,
    /// The cores that each of its sessions reserves.
    #[arg(long)]
    cores: Option<Cores>,
    /// The memory that each of its sessions reserves, as 4GiB.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    #[command(flatten)]
    rest: FieldArgs,
}

#[derive(Debug, Args)]
struct FieldArgs {
    /// Description, shown in the list of workspaces.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Reference of the image, as for `docker pull`. Another image ends the workspace's pin.
    #[arg(long)]
    image: Option<String>,
    /// Number of GPUs of each of its sessions.
    #[arg(long, value_name = "COUNT", value_parser = count)]
    gpus: Option<u32>,
    /// Memory that each of its sessions needs on each of its GPUs, as 8GiB; 0: not declared. A session is not limited to
    /// it.
    #[arg(long, value_name = "SIZE")]
    gpu_memory: Option<Bytes>,
    /// The class of its sessions' GPUs, for example amd.com/gpu. Default: NVIDIA's.
    #[arg(long, value_name = "CLASS")]
    gpu_class: Option<String>,
    /// GPU driver capabilities of its sessions: what the driver is asked to bring into the container. With CDI, the driver
    /// brings all.
    #[arg(long, value_delimiter = ',', value_name = "CAPABILITY",
          value_parser = one_of::<GpuCapability>(GpuCapability::ALL.iter().map(|capability| capability.as_str())))]
    gpu_capability: Vec<GpuCapability>,
    /// A port that its sessions listen on, for example 6901 or 53/udp.
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    port: Vec<PortArg>,
    /// Its sessions can be used once this port accepts connections or, with a path, answers over HTTP. `--port` must have
    /// the port, too.
    #[arg(long, value_name = "PORT[/PATH]")]
    ready: Option<ReadyArg>,
    /// How long its sessions may take until they are ready, for example 2m; then they say why they are not.
    #[arg(long, value_name = "PERIOD", requires = "ready")]
    ready_timeout: Option<Period>,
    /// An environment variable; {user}, {session} and {secret} in its value are replaced.
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<Pair>,
    /// A named volume; {user} and {workspace} in its name are replaced. `ro`: read-only; `roam`: its
    /// sessions may be placed on nodes that do not have the volume.
    #[arg(long, value_name = "NAME:PATH[:ro][:roam]")]
    volume: Vec<VolumeArg>,
    /// A label that a node must have.
    #[arg(long, value_name = "KEY=VALUE")]
    constraint: Vec<Pair>,
    /// A network from the nodes' runtime.networks, in place of ostler's own.
    #[arg(long)]
    network: Option<Name>,
    /// The size of /dev/shm, for example 512MiB.
    #[arg(long, value_name = "SIZE")]
    shm: Option<Bytes>,
    /// When nodes check for a newer image.
    #[arg(long, value_parser = one_of::<PullPolicy>(PullPolicy::ALL.iter().map(|policy| policy.as_str())))]
    pull: Option<PullPolicy>,
    /// Have every node that may run its sessions pull the image before the first session.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    prepull: Option<bool>,
    /// Remove its sessions after this time, for example 8h; 0s: never.
    #[arg(long, value_name = "PERIOD")]
    ttl: Option<Period>,
    /// Stop a session once nobody was connected to its ports or kept it alive for this time, for example 30m; 0s: never.
    #[arg(long, value_name = "PERIOD")]
    idle_timeout: Option<Period>,
    /// How long its sessions have to end by themselves when they are stopped, for example 2m; then they are killed.
    #[arg(long, value_name = "PERIOD")]
    stop_grace: Option<Period>,
    /// What happens to its sessions when their host restarts.
    #[arg(long, value_parser = one_of::<OnHostRestart>(OnHostRestart::ALL.iter().map(|word| word.as_str())))]
    on_host_restart: Option<OnHostRestart>,
    /// Whether a process of the engine's is the init of its sessions; auto: unless the image brings one.
    #[arg(long, value_parser = one_of::<Init>(Init::ALL.iter().map(|word| word.as_str())))]
    init: Option<Init>,
    /// The user in the container, as user or user:group. Default: the image's.
    #[arg(long, value_name = "USER[:GROUP]")]
    run_as: Option<String>,
    /// The program that replaces the image's entry point. Its arguments are the command.
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Only volumes and --tmpfs can be written.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    read_only: Option<bool>,
    /// A path of the container that is kept in memory, empty at each start. May be repeated.
    #[arg(long, value_name = "PATH")]
    tmpfs: Vec<String>,
    /// The command, after `--`.
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct PortArg(Port);

#[derive(Debug, Clone)]
struct ReadyArg(Ready);

#[derive(Debug, Clone)]
struct VolumeArg(VolumeMount);

pub(super) async fn add(args: &AddArgs, context: &Context) -> Result<(), Failure> {
    let mut workspace = Workspace::new(args.name.clone(), args.cores, args.memory);
    args.rest.change(&mut workspace);
    workspace.validate()?;
    let answer = context.client()?.send(Call::post(Route::new(&["workspaces"])).json(&workspace)?).await?;
    context.out.answer(&answer.body, |added: &Workspace| added.name.to_string())
}

pub(super) async fn set(args: &SetArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let route = Route::new(&["workspaces", args.name.as_str()]);
    let mut workspace: Workspace = client.get(route.clone()).await?.read()?;
    workspace.cores = args.cores.unwrap_or(workspace.cores);
    workspace.memory_bytes = args.memory.unwrap_or(workspace.memory_bytes);
    args.rest.change(&mut workspace);
    workspace.validate()?;
    let answer = client.send(Call::new(Method::PUT, route).json(&workspace)?).await?;
    context.out.answer(&answer.body, |changed: &Workspace| changed.name.to_string())
}

impl FieldArgs {
    /// Sets the given values in the workspace.
    fn change(&self, workspace: &mut Workspace) {
        set_if(&mut workspace.description, self.description.clone());
        if let Some(image) = self.image.clone().filter(|image| workspace.image.as_ref() != Some(image)) {
            // The digest was one of the image before.
            (workspace.image, workspace.image_digest) = (Some(image), None);
        }
        set_if(&mut workspace.gpus, self.gpus);
        // 0 removes the declaration.
        let declared = |memory: Bytes| Some(memory).filter(|memory| !memory.is_zero());
        set_if(&mut workspace.gpu_memory_bytes, self.gpu_memory.map(declared));
        workspace.gpu_class = self.gpu_class.clone().or(workspace.gpu_class.take());
        workspace.network = self.network.clone().or(workspace.network.take());
        set_if(&mut workspace.shm_bytes, self.shm);
        set_if(&mut workspace.pull, self.pull);
        set_if(&mut workspace.prepull, self.prepull);
        set_if(&mut workspace.on_host_restart, self.on_host_restart);
        set_if(&mut workspace.init, self.init);
        workspace.run_as = self.run_as.clone().or(workspace.run_as.take());
        set_if(&mut workspace.entrypoint, self.entrypoint.clone().map(|program| vec![program]));
        set_if(&mut workspace.read_only, self.read_only);
        if !self.tmpfs.is_empty() {
            workspace.tmpfs.clone_from(&self.tmpfs);
        }
        set_if(&mut workspace.stop_grace_seconds, self.stop_grace.map(Period::as_secs));
        // 0 removes the limit.
        let span = |period: Period| Some(period.as_secs()).filter(|seconds| *seconds > 0);
        set_if(&mut workspace.ttl_seconds, self.ttl.map(span));
        set_if(&mut workspace.idle_timeout_seconds, self.idle_timeout.map(span));
        if !self.env.is_empty() {
            workspace.env = map(&self.env);
        }
        if !self.constraint.is_empty() {
            workspace.constraints = map(&self.constraint);
        }
        set_if(&mut workspace.command, some_list(&self.command));
        set_if(&mut workspace.gpu_capabilities, some_list(&self.gpu_capability));
        set_if(&mut workspace.ports, some_list(&self.port).map(|ports| ports.iter().map(|port| port.0).collect()));
        if let Some(ReadyArg(ready)) = &self.ready {
            let timeout_seconds = self.ready_timeout.map_or(ready.timeout_seconds, Period::as_secs);
            workspace.ready = Some(Ready { timeout_seconds, ..ready.clone() });
        }
        let volumes = some_list(&self.volume);
        set_if(&mut workspace.volumes, volumes.map(|volumes| volumes.into_iter().map(|volume| volume.0).collect()));
    }
}

fn set_if<T>(field: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *field = given;
    }
}

fn some_list<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list.to_vec()) }
}

impl FromStr for PortArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let container_port = number.parse().ok().filter(|port| *port > 0);
        let container_port = container_port.ok_or_else(|| format!("`{number}` is not a port; expected 1 to 65535"))?;
        Ok(Self(Port { container_port, protocol: protocol.parse::<Protocol>()? }))
    }
}

impl FromStr for ReadyArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (port, path) = text.find('/').map_or((text, None), |at| (&text[..at], Some(text[at..].to_owned())));
        let port = port.parse().ok().filter(|port| *port > 0);
        let port =
            port.ok_or_else(|| format!("`{text}` is not a port or PORT/PATH; expected for example 8080/health"))?;
        Ok(Self(Ready { path, ..Ready::on(port) }))
    }
}

impl FromStr for VolumeArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a volume; expected NAME:PATH[:ro][:roam]");
        let mut parts = text.split(':');
        let (Some(name), Some(path)) = (parts.next(), parts.next()) else { return Err(wrong()) };
        let mut volume = VolumeMount { name: name.to_owned(), path: path.to_owned(), read_only: false, roam: false };
        for option in parts {
            match option {
                "ro" => volume.read_only = true,
                "rw" => volume.read_only = false,
                "roam" => volume.roam = true,
                _ => return Err(wrong()),
            }
        }
        Ok(Self(volume))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::workspace::WorkspaceCommand;
    use crate::cli::{Cli, Command};

    fn fields(line: &str) -> FieldArgs {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Workspace(WorkspaceCommand::Add(args)) => args.rest,
            Command::Workspace(WorkspaceCommand::Set(args)) => args.rest,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_a_workspace() {
        let line = "ostler workspace add w --cores 2 --memory 2GiB --image busybox --port 6901 --port 53/udp \
                    --env A={secret} --volume home-{user}:/home:ro --gpu-capability compute,compat32 --prepull \
                    --gpus 1 --gpu-memory 8GiB --gpu-class amd.com/gpu \
                    --ready 6901/ok/x --ready-timeout 2m --ttl 8h -- sh -c true";
        let mut workspace = Workspace::new("w".parse().unwrap(), Cores::whole(2), Bytes::gib(2));
        fields(&line.split_whitespace().collect::<Vec<_>>().join(" ")).change(&mut workspace);
        assert_eq!(workspace.validate(), Ok(()));
        assert_eq!(workspace.command, ["sh", "-c", "true"]);
        assert_eq!(workspace.ports[1], Port { container_port: 53, protocol: Protocol::Udp });
        assert_eq!(workspace.gpu_capabilities, [GpuCapability::Compute, GpuCapability::Compat32]);
        assert_eq!(workspace.gpu_memory_bytes, Some(Bytes::gib(8)));
        assert_eq!(workspace.gpu_class.as_deref(), Some("amd.com/gpu"));
        assert!(workspace.prepull && workspace.volumes[0].read_only && !workspace.volumes[0].roam);
        assert_eq!(workspace.ttl_seconds, Some(28_800));
        let ready = Ready { port: 6901, path: Some("/ok/x".to_owned()), timeout_seconds: 120 };
        assert_eq!(workspace.ready, Some(ready));
    }

    #[test]
    fn what_is_not_given_stays() {
        let mut workspace = Workspace::new("w".parse().unwrap(), Cores::whole(2), Bytes::gib(2));
        fields("ostler workspace add w --cores 1 --memory 1G --image a --env A=1 --ttl 1h --prepull --gpu-memory 1G")
            .change(&mut workspace);
        let before = workspace.clone();
        fields("ostler workspace set w").change(&mut workspace);
        assert_eq!(workspace, before);
        fields("ostler workspace set w --ttl 0s --env B=2 --prepull false --gpu-memory 0").change(&mut workspace);
        assert_eq!((before.gpu_memory_bytes, workspace.gpu_memory_bytes), (Some(Bytes::gib(1)), None));
        assert_eq!((workspace.ttl_seconds, workspace.prepull, workspace.env.len()), (None, false, 1));
        assert_eq!(workspace.image, before.image);
        workspace.image_digest = Some("sha256:1".to_owned());
        fields("ostler workspace set w --image a").change(&mut workspace);
        assert_eq!(workspace.image_digest.as_deref(), Some("sha256:1"));
        fields("ostler workspace set w --image b").change(&mut workspace);
        assert_eq!((workspace.image.as_deref(), workspace.image_digest), (Some("b"), None), "the pin was one of `a`");
    }

    #[test]
    fn invalid_ports_and_volumes_are_rejected() {
        for wrong in ["0", "65536", "x", "80/sctp", "-1"] {
            assert!(wrong.parse::<PortArg>().is_err(), "{wrong}");
        }
        for wrong in ["", "/health", "0", "x/health"] {
            assert!(wrong.parse::<ReadyArg>().is_err(), "{wrong}");
        }
        for wrong in ["home", "home:/h:rx", ""] {
            assert!(wrong.parse::<VolumeArg>().is_err(), "{wrong}");
        }
    }
}
