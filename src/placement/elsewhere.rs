//! Sessions that their hosts could not start are placed on others, while this node leads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::{Fleet, Placer};
use crate::election::Leadership;
use crate::types::SessionId;

/// Sessions that are placed elsewhere at once: an image that is nowhere fails many together.
const MAX_MOVES: usize = 32;
/// How often it is looked whether one still waits, where no host tells anything new.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Starts it. It ends with the owner of placements.
pub fn spawn(
    placer: Placer,
    fleet: watch::Receiver<Arc<Fleet>>,
    leadership: watch::Receiver<Arc<Leadership>>,
) -> JoinHandle<()> {
    tokio::spawn(run(placer, fleet, leadership))
}

async fn run(placer: Placer, mut fleet: watch::Receiver<Arc<Fleet>>, leadership: watch::Receiver<Arc<Leadership>>) {
    let mut moving: BTreeSet<SessionId> = BTreeSet::new();
    let mut moves: JoinSet<SessionId> = JoinSet::new();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = fleet.changed() => if changed.is_err() { return },
            Some(moved) = moves.join_next() => {
                // One that panicked is not tried again under this leader: its host gives it up in time.
                if let Ok(session) = moved {
                    moving.remove(&session);
                }
                continue;
            }
            _ = tick.tick() => {}
        }
        let waiting = Arc::clone(&fleet.borrow_and_update());
        let Some(reign) = leadership.borrow().reign.clone() else { continue };
        for (session, host) in &waiting.unplaced {
            if moves.len() >= MAX_MOVES {
                break;
            }
            if moving.insert(*session) {
                let (placer, session, host, ballot) = (placer.clone(), *session, *host, reign.ballot);
                moves.spawn(async move {
                    placer.place_elsewhere(&session, &host, ballot).await;
                    session
                });
            }
        }
    }
}
