//! `ostler top`: the cluster, live on a terminal.

mod model;
mod screen;

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Context;
use super::client::Client;
use super::failure::Failure;
use super::route::Route;
use super::terminal::Terminal;
use crate::clock::Clock;
use crate::types::{List, Node, Session};
use model::{Frame, Model, Turn, View};
use screen::Screen;

/// Between two looks at the cluster.
const EVERY: Duration = Duration::from_secs(2);
/// How long one look may take. A node that takes longer is shown as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Keys and frames that wait to be drawn at most.
const QUEUE: usize = 16;

/// Watch the cluster: what needs a hand, nodes, sessions that do not run, GPUs.
///
/// Draws again every 2 s. Keys: 1 overview, 2 nodes, 3 sessions that do not run, 4 GPUs, s the next order, q quit. While
/// the node does not answer, the last frame stays, with its age.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler top
  ostler top --node https://host-b:7481
  ostler top --once --view 2")]
pub(super) struct TopArgs {
    /// Print one frame as plain text and exit.
    #[arg(long)]
    once: bool,
    /// The view to begin with, from 1 to 4.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    view: u8,
}

pub(super) async fn run(args: &TopArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let clock = Clock::system().map_err(|e| Failure::Failed(format!("the clock cannot be read: {e}")))?;
    let mut model = Model::new(View::of_key(b'0' + args.view).unwrap_or_default());
    if args.once {
        model.take(look(&client, &clock).await?);
        let lines = model.lines(&context.out.terminal, clock.now().wall);
        return context.out.text(lines.join("\n"));
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::Usage("top needs a terminal; for one frame as text run: ostler top --once".to_owned()));
    }
    let (send, frames) = mpsc::channel(QUEUE);
    let polled = async {
        loop {
            let found = match timeout(PATIENCE, look(&client, &clock)).await {
                Ok(found) => found.map_err(|failure| failure.to_string()),
                Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            if send.send(found).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let screen = Screen::enter()?;
    tokio::select! {
        never = polled => never,
        ended = draw(&screen, model, frames, &clock) => ended,
    }
}

/// Draws each frame and each answer to a key, until `q` or SIGTERM.
async fn draw(
    screen: &Screen,
    mut model: Model,
    mut frames: mpsc::Receiver<Result<Frame, String>>,
    clock: &Clock,
) -> Result<(), Failure> {
    let mut keys = keys();
    let mut terminated = signal(SignalKind::terminate())?;
    loop {
        screen.show(&model.lines(&Terminal::of_stdout(), clock.now().wall))?;
        tokio::select! {
            Some(found) = frames.recv() => match found {
                Ok(frame) => model.take(frame),
                Err(why) => model.lose(why),
            },
            key = keys.recv() => match key.map(|key| model.key(key)) {
                Some(Turn::Quit) | None => return Ok(()),
                Some(Turn::Draw) => {}
            },
            _ = terminated.recv() => return Ok(()),
        }
    }
}

/// The keys, one byte each. A read of a terminal cannot be cancelled, so a thread of its own makes it.
fn keys() -> mpsc::Receiver<u8> {
    let (send, keys) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        for key in io::stdin().lock().bytes().map_while(Result::ok) {
            if send.blocking_send(key).is_err() {
                return;
            }
        }
    });
    keys
}

async fn look(client: &Client, clock: &Clock) -> Result<Frame, Failure> {
    let (status, nodes, sessions) = tokio::try_join!(
        client.get(Route::new(&["status"])),
        client.list(Route::new(&["nodes"])),
        client.list(Route::new(&["sessions"])),
    )?;
    let (nodes, sessions): (List<Node>, List<Session>) = (nodes.read()?, sessions.read()?);
    Ok(Frame { status: status.read()?, nodes: nodes.items, sessions: sessions.items, at: clock.now().wall })
}
