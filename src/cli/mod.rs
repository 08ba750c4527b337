//! The command line: a client of the HTTP API of an agent, on this host or another.
//!
//! Each noun has a file: first its arguments, then its requests to the API, and last the pure
//! functions that turn the API's types into text.

mod agent;
mod arguments;
mod bars;
mod chart;
mod client;
mod completions;
mod config;
mod connection;
pub mod demo;
mod doctor;
mod events;
mod failure;
mod gpu;
mod history;
mod image;
mod init;
mod join;
mod login;
mod node;
mod output;
mod progress;
mod route;
mod service;
mod session;
mod status;
mod table;
mod terminal;
mod token;
mod top;
mod transport;
mod version;
mod volume;
mod workspace;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use client::Client;
use connection::{Connection, Target};
use failure::{Exit, Failure};
use node::SELF;
use output::{Format, Output, note};

/// Containerised workspaces on a fleet of hosts, with no manager, no database and no broker.
///
/// Every host runs the same agent, and any agent answers for the whole cluster. Commands contact the
/// agent of this host, unless --socket, --node or a login names another one.
#[derive(Debug, Parser)]
#[command(name = "ostler", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  rejected: no room, a conflict, or an invalid value
  4  unreachable
  130  interrupted

Examples:
  ostler status
  ostler workspace add desktop --image kasmweb/desktop:1.16.0 --cores 2 --memory 2GiB --port 6901
  ostler session create desktop
  ostler node show host-a")]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    /// Output format of results.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "a process parses one")]
enum Command {
    Agent(agent::AgentArgs),
    Init(init::InitArgs),
    Join(join::JoinArgs),
    Demo(demo::DemoArgs),
    Login(login::LoginArgs),
    /// Remove the stored login.
    Logout,
    Status(status::StatusArgs),
    Doctor(doctor::DoctorArgs),
    Top(top::TopArgs),
    /// Show the version of this program.
    Version,
    History(history::HistoryArgs),
    /// List nodes, and set what they offer.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Manage the catalogue of workspaces that sessions are created from.
    #[command(subcommand, visible_alias = "ws")]
    Workspace(workspace::WorkspaceCommand),
    /// List and remove named volumes.
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Create and manage sessions.
    #[command(subcommand)]
    Session(session::SessionCommand),
    /// List the GPUs of the cluster, and keep sessions off them.
    #[command(subcommand)]
    Gpu(gpu::GpuCommand),
    /// List the images of nodes, pull them, say which ostler may remove, and remove those that nothing needs.
    #[command(subcommand)]
    Image(image::ImageCommand),
    Events(events::EventsArgs),
    /// Create and revoke tokens.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Check the configuration file.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// What every command that uses the API needs.
struct Context {
    connection: Connection,
    out: Output,
}

impl Context {
    /// A client of the node that flags, environment and login choose.
    fn client(&self) -> Result<Client, Failure> {
        let choice = self.connection.choose_here()?;
        if let (Target::Url(url), Some(_)) = (&choice.target, &choice.token) {
            login::warn_of_clear_text(url);
        }
        Client::new(&choice)
    }
}

/// Failures of a command that acts on several objects. It prints each as it happens; the first decides the exit code.
#[derive(Debug, Default)]
struct Failures(Option<Exit>);

impl Failures {
    fn add(&mut self, what: &str, failure: &Failure) {
        match failure.report() {
            Some(report) if what == SELF => note(report),
            Some(report) => note(format!("{what}: {report}")),
            None => {}
        }
        self.0.get_or_insert(failure.exit());
    }

    fn into_result(self) -> Result<(), Failure> {
        self.0.map_or(Ok(()), |exit| Err(Failure::Reported(exit)))
    }
}

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            note(format!("error: the async runtime cannot be started: {e}"));
            return Exit::Failed.into();
        }
    };
    let ended = runtime.block_on(run_until_interrupted(cli));
    // A read of standard input cannot be cancelled: the program exits without waiting for it.
    runtime.shutdown_background();
    match ended {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            if let Some(report) = failure.report() {
                note(report);
            }
            failure.exit().into()
        }
    }
}

/// Threads. A command mostly waits for answers.
const WORKERS: usize = 2;

/// Ctrl-C drops the running command, which removes its spinner and restores the terminal's settings.
async fn run_until_interrupted(cli: Cli) -> Result<(), Failure> {
    // The agent and the demo handle signals themselves, to stop in order.
    let stops_itself = matches!(cli.command, Command::Agent(_) | Command::Demo(_));
    tokio::select! {
        ended = run(cli) => ended,
        _ = tokio::signal::ctrl_c(), if !stops_itself => Err(Failure::Interrupted),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let mut context = Context { connection: cli.connection, out: Output::here(cli.output)? };
    match &cli.command {
        Command::Agent(args) => agent::run(args).await,
        Command::Init(args) => init::run(args, &context.out).await,
        Command::Join(args) => join::run(args, &context.connection, &context.out).await,
        Command::Demo(args) => demo::run(args, &context.out).await,
        Command::Config(command) => config::run(command, &context.out),
        Command::Login(args) => login::login(args, &context.connection, &context.out).await,
        Command::Logout => login::logout(&context.out),
        Command::Status(_) => status::run(&context).await,
        Command::Top(args) => top::run(args, &context).await,
        Command::Doctor(args) => doctor::run(args, &mut context).await,
        Command::History(args) => history::run(args, &context).await,
        Command::Version => version::run(&context.out),
        Command::Node(command) => node::run(command, &context).await,
        Command::Events(args) => events::run(args, &context).await,
        Command::Workspace(command) => workspace::run(command, &context).await,
        Command::Volume(command) => volume::run(command, &context).await,
        Command::Session(command) => {
            // `session ls --node NAME` shares its flag with the connection.
            context.connection.node = context.connection.node.filter(|node| !command.filters_by(node));
            session::run(command, &context).await
        }
        Command::Gpu(command) => gpu::run(command, &context).await,
        Command::Image(command) => image::run(command, &context).await,
        Command::Token(command) => token::run(command, &context).await,
        Command::Completions(args) => completions::completions(args, definition(), &context.out),
        Command::Man(args) => completions::man(args, definition(), &context.out),
    }
}

/// The definition of the command line. Help, completions and manual pages are made from it.
fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn connection_flags_go_anywhere() {
        for line in
            ["ostler --node http://localhost:1 -o json node ls", "ostler node ls --node http://localhost:1 -o json"]
        {
            let cli = parse(line).unwrap();
            assert_eq!(cli.connection.node.as_deref(), Some("http://localhost:1"), "{line}");
            assert_eq!(cli.output, Format::Json);
        }
    }

    #[test]
    fn session_ls_filters_by_a_nodes_name_and_contacts_a_url() {
        let filters = |line: &str| {
            let Cli { connection, command: Command::Session(command), .. } = parse(line).unwrap() else {
                panic!("not a session command");
            };
            command.filters_by(&connection.node.unwrap())
        };
        assert!(filters("ostler session ls --node host-a"));
        assert!(!filters("ostler session ls --node https://host-a:7481"));
        assert!(!filters("ostler session show x --node host-a"));
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        for line in ["ostler nonsense", "ostler node set", "ostler session create", "ostler node drain"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert_eq!(parse("ostler --help").unwrap_err().exit_code(), 0);
    }

    #[test]
    fn the_nodes_of_an_image_command_are_named_or_all() {
        for line in [
            "ostler image ls",
            "ostler image ls host-a --owner foreign",
            "ostler image ls --all",
            "ostler image pull x:1",
            "ostler image pull x:1 host-a host-b",
            "ostler image pull x:1 -l rack=3",
            "ostler image pull x:1 --all",
            "ostler image adopt x:1 host-a",
            "ostler image pin x:1",
            "ostler workspace pull desktop",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        for line in [
            "ostler image ls host-a --all",
            "ostler image ls --owner nobody",
            "ostler image pull",
            "ostler image pull x:1 host-a --all",
            "ostler image pull x:1 host-a -l rack=3",
            "ostler image pull x:1 -l rack=3 --all",
            "ostler image adopt",
            "ostler image pin x:1 host-a host-b",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn every_command_and_every_argument_says_what_it_is_for() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
                let sentence = about.starts_with(|c: char| c.is_uppercase()) && about.contains(' ');
                assert!(sentence, "{}: `{about}`", sub.get_name());
                for argument in sub.get_arguments() {
                    assert!(argument.get_help().is_some(), "{} {}", sub.get_name(), argument.get_id());
                }
                check(sub);
            }
        }
        check(&definition());
    }

    #[test]
    fn the_first_failure_decides_the_exit_code() {
        let mut failures = Failures::default();
        assert!(Failures::default().into_result().is_ok());
        failures.add("a", &Failure::Refused("x".to_owned()));
        failures.add("b", &Failure::Failed("y".to_owned()));
        assert_eq!(failures.into_result().unwrap_err().exit(), Exit::Refused);
    }
}
