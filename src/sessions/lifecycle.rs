//! The next step for one session: a pure function of its wish and of its container.
//!
//! It is called after every step and every change, and each call returns one step. So a crash between two steps
//! loses nothing: the container shows where to continue.

use crate::runtime::container::{Container, Exit, Run};

/// The state that a session should reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    Run,
    Pause,
    /// Stop it and keep its container.
    Stop,
    /// Stop it and remove its container.
    Remove,
}

/// A wish, and what the owner knows of the session's earlier runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub wish: Wish,
    /// The run that had already ended when this start was requested. It does not count as the end of this start.
    pub previous_run: Option<Run>,
    /// The run of this start, once the runner has seen it.
    pub run: Option<Run>,
    /// The owner has recorded the session as paused.
    pub paused: bool,
    /// The owner does not know whether the session still runs: it needs a report even if nothing changed.
    pub unseen: bool,
    /// The session holds a reservation, which its owner frees once the process is gone.
    pub reserved: bool,
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
    /// Report this sight to the owner.
    Tell(Sight),
    /// What the session does cannot be told, for this reason: look again later.
    LookAgain(String),
    /// The wish is reached: wait for a change.
    Wait,
}

/// What a runner saw of a container that changes the session's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    Running(Run),
    Paused,
    /// It ran, and ended by itself.
    Ended(Exit),
    /// It is stopped, as wished. `None`: it never ran.
    Stopped(Option<Exit>),
    /// It has run, and its container is no longer there, nor are the files in it.
    Lost,
    /// Its container is removed, as wished.
    Gone,
}

/// The next step.
pub fn next(order: &Order, container: &Container) -> Step {
    match order.wish {
        Wish::Run => towards_running(order, container),
        Wish::Pause => towards_paused(order, container),
        Wish::Stop => towards_stopped(container),
        Wish::Remove => towards_gone(order, container),
    }
}

fn towards_running(order: &Order, container: &Container) -> Step {
    match container {
        Container::Absent if order.run.is_some() || order.previous_run.is_some() => Step::Tell(Sight::Lost),
        Container::Absent => Step::Prepare,
        Container::Created => Step::Start,
        Container::Running(run) if order.run.as_ref() == Some(run) && !order.paused && !order.unseen => Step::Wait,
        Container::Running(run) => Step::Tell(Sight::Running(run.clone())),
        Container::Paused(_) => Step::Resume,
        Container::Exited(exit) if order.run.is_none() && order.previous_run.as_ref() == Some(&exit.run) => Step::Start,
        Container::Exited(exit) => Step::Tell(Sight::Ended(exit.clone())),
        Container::Removing(why) => Step::LookAgain(why.clone()),
    }
}

fn towards_paused(order: &Order, container: &Container) -> Step {
    match container {
        Container::Running(_) => Step::Pause,
        Container::Paused(_) if order.paused && !order.unseen => Step::Wait,
        Container::Paused(_) => Step::Tell(Sight::Paused),
        _ => towards_running(order, container),
    }
}

fn towards_stopped(container: &Container) -> Step {
    match container {
        Container::Running(_) | Container::Paused(_) => Step::Stop,
        Container::Exited(exit) => Step::Tell(Sight::Stopped(Some(exit.clone()))),
        Container::Created | Container::Absent | Container::Removing(_) => Step::Tell(Sight::Stopped(None)),
    }
}

fn towards_gone(order: &Order, container: &Container) -> Step {
    match container {
        // A removal stops first, so that its processes get the same grace period as in a stop.
        Container::Running(_) | Container::Paused(_) => Step::Stop,
        Container::Absent => Step::Tell(Sight::Gone),
        // The reservation does not wait for the removal, which can take long or fail.
        _ if order.reserved => towards_stopped(container),
        Container::Created | Container::Exited(_) | Container::Removing(_) => Step::Remove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(n: u8) -> Run {
        Run(n.to_string())
    }

    fn order(wish: Wish) -> Order {
        Order { wish, previous_run: None, run: None, paused: false, unseen: false, reserved: true }
    }

    fn exit(n: u8) -> Exit {
        Exit::new(run(n), 0)
    }

    /// The container after a step, on an engine that works.
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
            Step::Tell(_) | Step::LookAgain(_) | Step::Wait => container.clone(),
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
    fn an_exit_of_the_previous_run_is_started_again_and_a_later_exit_is_reported() {
        let order = Order { previous_run: Some(run(1)), ..order(Wish::Run) };
        assert_eq!(next(&order, &Container::Exited(exit(1))), Step::Start);
        assert_eq!(next(&order, &Container::Exited(exit(2))), Step::Tell(Sight::Ended(exit(2))));
    }

    #[test]
    fn a_container_that_vanished_while_it_ran_is_lost_and_not_created_again() {
        let order = Order { run: Some(run(1)), ..order(Wish::Run) };
        assert_eq!(next(&order, &Container::Absent), Step::Tell(Sight::Lost));
        let again = Order { previous_run: Some(run(1)), run: None, ..order };
        assert_eq!(next(&again, &Container::Absent), Step::Tell(Sight::Lost), "nor while it was stopped");
    }

    #[test]
    fn a_paused_container_is_reported_once() {
        let order = |paused| Order { run: Some(run(1)), paused, ..order(Wish::Pause) };
        assert_eq!(next(&order(false), &Container::Paused(run(1))), Step::Tell(Sight::Paused));
        assert_eq!(next(&order(true), &Container::Paused(run(1))), Step::Wait);
    }

    #[test]
    fn a_session_that_is_unseen_is_reported_even_if_nothing_changed() {
        let order = |wish, paused| Order { run: Some(run(1)), paused, unseen: true, ..order(wish) };
        let running = next(&order(Wish::Run, false), &Container::Running(run(1)));
        assert_eq!(running, Step::Tell(Sight::Running(run(1))));
        assert_eq!(next(&order(Wish::Pause, true), &Container::Paused(run(1))), Step::Tell(Sight::Paused));
    }

    #[test]
    fn a_container_that_is_being_removed_is_neither_ended_nor_lost() {
        let removing = Container::Removing("dead".to_owned());
        let order = |wish| Order { run: Some(run(1)), ..order(wish) };
        assert_eq!(next(&order(Wish::Run), &removing), Step::LookAgain("dead".to_owned()));
        assert_eq!(next(&order(Wish::Pause), &removing), Step::LookAgain("dead".to_owned()));
        assert_eq!(next(&order(Wish::Stop), &removing), Step::Tell(Sight::Stopped(None)));
        let unreserved = Order { reserved: false, ..order(Wish::Remove) };
        assert_eq!(next(&unreserved, &removing), Step::Remove);
    }

    #[test]
    fn a_removal_frees_the_reservation_before_it_removes_the_container() {
        let order = |reserved| Order { reserved, ..order(Wish::Remove) };
        let exited = Container::Exited(exit(1));
        assert_eq!(next(&order(true), &exited), Step::Tell(Sight::Stopped(Some(exit(1)))));
        assert_eq!(next(&order(true), &Container::Created), Step::Tell(Sight::Stopped(None)));
        assert_eq!(next(&order(false), &exited), Step::Remove);
    }

    proptest! {
        /// From any container, four steps or fewer lead to a report to the owner, or to waiting.
        #[test]
        fn every_wish_is_reached_within_four_steps(
            wish in prop_oneof![Just(Wish::Run), Just(Wish::Pause), Just(Wish::Stop), Just(Wish::Remove)],
            start in container(), previous in proptest::option::of(1..3u8), current in proptest::option::of(1..3u8), paused: bool,
        ) {
            let order =
                Order { wish, previous_run: previous.map(run), run: current.map(run), paused, unseen: false, reserved: false };
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
