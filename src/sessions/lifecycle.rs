//! What to do next for one session: a pure function of what is wished and what is seen.
//!
//! It is asked again after every step and every change, so each answer is one step, and a crash
//! between two steps loses nothing: what is seen afterwards says where to go on.

use crate::runtime::container::{Container, Exit, Run};

/// What should become of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    Run,
    Pause,
    /// Not running, its container kept.
    Stop,
    /// Its container destroyed.
    Remove,
}

/// A wish, and what is known of the session's earlier runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub wish: Wish,
    /// The run that had ended before this start was asked for: seeing it is no news.
    pub previous_run: Option<Run>,
    /// The run of this start, once it was seen.
    pub run: Option<Run>,
    /// The owner believes it paused.
    pub paused: bool,
}

/// One step towards the wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Fetch the image and create the container.
    Prepare,
    Start,
    Pause,
    Resume,
    Stop,
    Remove,
    /// Tell the owner what was seen.
    Tell(Sight),
    /// All is as it should be: wait for a change.
    Wait,
}

/// Something seen that moves the session on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    Running(Run),
    Paused,
    /// It ran, and ended.
    Ended(Exit),
    /// It was asked to stop and does not run. `None`: there never was a run.
    Stopped(Option<Exit>),
    /// It ran, and its container vanished.
    Lost,
    /// It was asked to be removed and is.
    Gone,
}

/// The next step.
pub fn next(order: &Order, container: &Container) -> Step {
    match order.wish {
        Wish::Run => towards_running(order, container),
        Wish::Pause => towards_paused(order, container),
        Wish::Stop => towards_stopped(container),
        Wish::Remove => towards_gone(container),
    }
}

fn towards_running(order: &Order, container: &Container) -> Step {
    match container {
        Container::Absent if order.run.is_some() => Step::Tell(Sight::Lost),
        Container::Absent => Step::Prepare,
        Container::Created => Step::Start,
        Container::Running(run) if order.run.as_ref() == Some(run) && !order.paused => Step::Wait,
        Container::Running(run) => Step::Tell(Sight::Running(run.clone())),
        Container::Paused(_) => Step::Resume,
        Container::Exited(exit) if order.run.is_none() && order.previous_run.as_ref() == Some(&exit.run) => Step::Start,
        Container::Exited(exit) => Step::Tell(Sight::Ended(exit.clone())),
    }
}

fn towards_paused(order: &Order, container: &Container) -> Step {
    match container {
        Container::Running(_) => Step::Pause,
        Container::Paused(_) if order.paused => Step::Wait,
        Container::Paused(_) => Step::Tell(Sight::Paused),
        _ => towards_running(order, container),
    }
}

fn towards_stopped(container: &Container) -> Step {
    match container {
        Container::Running(_) | Container::Paused(_) => Step::Stop,
        Container::Exited(exit) => Step::Tell(Sight::Stopped(Some(exit.clone()))),
        Container::Created | Container::Absent => Step::Tell(Sight::Stopped(None)),
    }
}

fn towards_gone(container: &Container) -> Step {
    match container {
        // Its processes get the same chance to end by themselves as in a stop.
        Container::Running(_) | Container::Paused(_) => Step::Stop,
        Container::Created | Container::Exited(_) => Step::Remove,
        Container::Absent => Step::Tell(Sight::Gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(n: u8) -> Run {
        Run(n.to_string())
    }

    fn exit(n: u8) -> Exit {
        Exit { run: run(n), code: 0, oom_killed: false, finished_at: None }
    }

    /// What a well-behaved engine shows after a step.
    fn after(step: &Step, container: &Container, runs: &mut u8) -> Container {
        let current = match container {
            Container::Running(run) | Container::Paused(run) => Some(run.clone()),
            _ => None,
        };
        match step {
            Step::Prepare => Container::Created,
            Step::Start => {
                *runs += 1;
                Container::Running(run(*runs))
            }
            Step::Pause => Container::Paused(current.unwrap()),
            Step::Resume => Container::Running(current.unwrap()),
            Step::Stop => Container::Exited(Exit { run: current.unwrap(), ..exit(0) }),
            Step::Remove => Container::Absent,
            Step::Tell(_) | Step::Wait => container.clone(),
        }
    }

    fn container() -> impl Strategy<Value = Container> {
        (0..5u8, 1..3u8).prop_map(|(kind, n)| match kind {
            0 => Container::Absent,
            1 => Container::Created,
            2 => Container::Running(run(n)),
            3 => Container::Paused(run(n)),
            _ => Container::Exited(exit(n)),
        })
    }

    #[test]
    fn a_restarted_container_is_told_from_one_that_ended_again() {
        let order = Order { wish: Wish::Run, previous_run: Some(run(1)), run: None, paused: false };
        assert_eq!(next(&order, &Container::Exited(exit(1))), Step::Start);
        assert_eq!(next(&order, &Container::Exited(exit(2))), Step::Tell(Sight::Ended(exit(2))));
    }

    #[test]
    fn a_container_that_vanished_while_it_ran_is_lost_and_never_made_again() {
        let order = Order { wish: Wish::Run, previous_run: None, run: Some(run(1)), paused: false };
        assert_eq!(next(&order, &Container::Absent), Step::Tell(Sight::Lost));
    }

    proptest! {
        /// From whatever is seen, a few steps lead to something to tell the owner, or to rest.
        #[test]
        fn every_wish_is_reached_in_a_few_steps(
            wish in prop_oneof![Just(Wish::Run), Just(Wish::Pause), Just(Wish::Stop), Just(Wish::Remove)],
            start in container(), previous in proptest::option::of(1..3u8), current in proptest::option::of(1..3u8), paused: bool,
        ) {
            let order = Order { wish, previous_run: previous.map(run), run: current.map(run), paused };
            let (mut container, mut runs) = (start, 10);
            for _ in 0..4 {
                let step = next(&order, &container);
                match step {
                    Step::Wait => return Ok(()),
                    Step::Tell(sight) => {
                        let fits = match (&sight, wish) {
                            (Sight::Gone, wish) => wish == Wish::Remove && container == Container::Absent,
                            (Sight::Stopped(_), wish) => wish == Wish::Stop,
                            (Sight::Paused, wish) => wish == Wish::Pause,
                            (_, wish) => matches!(wish, Wish::Run | Wish::Pause),
                        };
                        prop_assert!(fits, "{sight:?} under {wish:?}");
                        return Ok(());
                    }
                    step => container = after(&step, &container, &mut runs),
                }
            }
            prop_assert!(false, "no end after four steps");
        }
    }
}
