//! When a child that asks NVML is started, what it is asked, and when it is abandoned. Pure.
//!
//! A call of NVML can hang in the kernel, and a process that hangs there cannot be ended. So a child that does not
//! answer is killed and abandoned, and no other is started while it lives: at most one process hangs. Every child ends
//! so, also one that has ended by itself: it is then gone at the first look.

use std::time::Duration;

use super::answer::Ask;
use crate::types::BootInstant;

/// What is done next for the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Start one, and report whether it runs.
    Start,
    /// Ask it, and report the answer or its silence.
    Ask(Ask),
    /// Kill it, and do not wait for its end.
    Abandon,
    /// See whether the abandoned one has ended, and report it.
    Check,
    /// Nothing before then. `None`: an answer, or its deadline, is awaited.
    Wait(Option<BootInstant>),
}

/// Measurements are for people and for the limit of temperature: both are slow.
const READINGS: Duration = Duration::from_secs(5);
/// The processes tell who uses memory, and when a session has left its devices.
const PROCESSES: Duration = Duration::from_secs(10);
/// Devices come and go seldom, and most faults ask for an inventory at once.
const INVENTORY: Duration = Duration::from_secs(30);
/// The least time between two inventories that faults ask for: a device can report faults without end.
const INVENTORY_PAUSE: Duration = Duration::from_secs(5);
/// The driver has its word on recovery a moment after a fault.
const AFTER_FAULT: Duration = Duration::from_secs(1);

/// How long a host without a driver, or with a broken one, is left alone: a driver is found within a minute.
const CLOSED_PAUSE: Duration = Duration::from_secs(60);
/// NVML finds a device that comes back only when it is opened anew.
const RENEWAL: Duration = Duration::from_secs(60);
/// The pause after a child that died, such as by a fault of the library; doubled for each in a row.
const DEATH_PAUSE: Duration = Duration::from_secs(1);
const MAX_DEATH_PAUSE: Duration = Duration::from_secs(60);
/// The pause after a child that hung; doubled for each in a row. Each may leave a process behind for a while.
const HANG_PAUSE: Duration = Duration::from_secs(60);
const MAX_HANG_PAUSE: Duration = Duration::from_secs(600);
/// Children in a row that died or hung before the driver is said to be at fault.
pub const IN_A_ROW: u32 = 3;
/// How often it is seen whether the abandoned child has ended. The look costs one system call.
const CHECK: Duration = Duration::from_secs(1);

/// The child, the abandoned one, and the questions.
#[derive(Debug, Clone, PartialEq)]
pub struct Children {
    child: Child,
    abandoned: Option<Abandoned>,
    deaths: u32,
    hangs: u32,
    questions: [Question; 3],
}

#[derive(Debug, Clone, PartialEq)]
enum Child {
    /// The next is started then.
    None {
        next: BootInstant,
    },
    /// It is being started.
    Starting,
    Running {
        since: BootInstant,
        asked: Option<Asked>,
    },
    /// It is to be abandoned, and the next is started then.
    Ending {
        next: BootInstant,
    },
    /// The devices are made up, and nobody is asked.
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Asked {
    ask: Ask,
    at: BootInstant,
}

/// A child that was killed.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Abandoned {
    at: BootInstant,
    /// When to look next whether it is gone.
    check: BootInstant,
    /// It did not end when it was killed.
    is_stuck: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Question {
    ask: Ask,
    due: BootInstant,
    period: Duration,
    /// The child that runs has answered it.
    is_answered: bool,
    /// When it was last asked, of any child.
    last: Option<BootInstant>,
}

impl Children {
    /// No child runs, and one is started at once.
    pub fn new(now: BootInstant) -> Self {
        let question = |ask, period| Question { ask, due: now, period, is_answered: false, last: None };
        // The inventory first: the other answers are about its devices.
        let questions = [
            question(Ask::Inventory, INVENTORY),
            question(Ask::Readings, READINGS),
            question(Ask::Processes, PROCESSES),
        ];
        Self { child: Child::None { next: now }, abandoned: None, deaths: 0, hangs: 0, questions }
    }

    /// No child is ever started.
    pub fn never() -> Self {
        Self { child: Child::Never, ..Self::new(BootInstant::default()) }
    }

    /// What is to be done now. Each step but `Wait` is given once. With `renew`, a child that runs for a while is
    /// replaced by another.
    pub fn next(&mut self, renew: bool, now: BootInstant) -> Step {
        if let Some(abandoned) = &mut self.abandoned
            && abandoned.check <= now
        {
            abandoned.check = now.plus(CHECK);
            return Step::Check;
        }
        match &mut self.child {
            Child::Never | Child::Starting | Child::Running { asked: Some(_), .. } => self.wait(None),
            Child::None { .. } if self.abandoned.is_some() => self.wait(None),
            Child::None { next } if *next <= now => self.start(now),
            Child::None { next } => {
                let next = *next;
                self.wait(Some(next))
            }
            Child::Ending { next } => {
                self.child = Child::None { next: *next };
                // It is given a moment to end.
                self.abandoned = Some(Abandoned { at: now, check: now.plus(CHECK), is_stuck: false });
                Step::Abandon
            }
            Child::Running { since, asked: None } if renew && since.plus(RENEWAL) <= now => {
                self.child = Child::Ending { next: now };
                self.next(renew, now)
            }
            Child::Running { .. } => self.ask(now),
        }
    }

    /// The child that was to be started runs.
    pub fn started(&mut self, now: BootInstant) {
        if self.child == Child::Starting {
            self.child = Child::Running { since: now, asked: None };
        }
    }

    /// The child that was to be started could not be.
    pub fn not_started(&mut self, now: BootInstant) {
        if self.child == Child::Starting {
            self.child = Child::None { next: now.plus(self.after_death()) };
        }
    }

    /// The child has answered; when it was asked. `None`: it was not asked this.
    pub fn answered(&mut self, ask: Ask) -> Option<BootInstant> {
        let Child::Running { asked, .. } = &mut self.child else { return None };
        let Asked { at, .. } = asked.take_if(|asked| asked.ask == ask)?;
        self.question(ask).is_answered = true;
        if self.questions.iter().all(|question| question.is_answered) {
            (self.deaths, self.hangs) = (0, 0);
        }
        Some(at)
    }

    /// The child could not open NVML, and ends: the next one tries after a while.
    pub fn closed(&mut self, now: BootInstant) {
        if self.is_running() {
            // It answered: NVML neither hangs nor kills it.
            (self.deaths, self.hangs) = (0, 0);
            self.child = Child::Ending { next: now.plus(CLOSED_PAUSE) };
        }
    }

    /// The child has died, or answered nonsense.
    pub fn died(&mut self, now: BootInstant) {
        if self.is_running() {
            self.child = Child::Ending { next: now.plus(self.after_death()) };
        }
    }

    /// The child did not answer in time. Returns when it was asked.
    pub fn hung(&mut self, now: BootInstant) -> BootInstant {
        let Child::Running { asked, .. } = &self.child else { return now };
        let at = asked.map_or(now, |asked| asked.at);
        self.hangs = self.hangs.saturating_add(1);
        let next = now.plus(doubled(HANG_PAUSE, self.hangs, MAX_HANG_PAUSE));
        self.child = Child::Ending { next };
        at
    }

    /// What a look at the abandoned child has seen. A child that is gone makes room for the next.
    pub fn checked(&mut self, is_gone: bool) {
        if is_gone {
            self.abandoned = None;
        } else if let Some(abandoned) = &mut self.abandoned {
            abandoned.is_stuck = true;
        }
    }

    /// Asks this as soon as possible, also if it is being asked now.
    pub fn hurry(&mut self, ask: Ask, now: BootInstant) {
        let question = self.question(ask);
        question.due = question.due.min(now);
    }

    /// Follows a fault: the devices may have changed, and the driver has a word on recovery soon.
    pub fn follow_fault(&mut self, now: BootInstant) {
        let inventory = self.question(Ask::Inventory);
        let paused = inventory.last.map_or(now, |last| last.plus(INVENTORY_PAUSE)).max(now);
        inventory.due = inventory.due.min(paused);
        let readings = self.question(Ask::Readings);
        readings.due = readings.due.min(now.plus(AFTER_FAULT));
    }

    /// Since when an abandoned child does not end.
    pub fn stuck_since(&self) -> Option<BootInstant> {
        self.abandoned.filter(|abandoned| abandoned.is_stuck).map(|abandoned| abandoned.at)
    }

    /// Children in a row that did not answer in time.
    pub const fn hangs(&self) -> u32 {
        self.hangs
    }

    /// Children in a row that died or could not be started.
    pub const fn deaths(&self) -> u32 {
        self.deaths
    }

    pub const fn is_running(&self) -> bool {
        matches!(self.child, Child::Running { .. })
    }

    pub const fn has_abandoned(&self) -> bool {
        self.abandoned.is_some()
    }

    fn start(&mut self, now: BootInstant) -> Step {
        self.child = Child::Starting;
        for question in &mut self.questions {
            (question.due, question.is_answered) = (now, false);
        }
        Step::Start
    }

    /// The question that is due for longest, if one is.
    fn ask(&mut self, now: BootInstant) -> Step {
        // The first of those that are due equally long.
        let Some(question) = self.questions.iter_mut().min_by_key(|question| question.due) else {
            return Step::Wait(None);
        };
        if question.due > now {
            let due = question.due;
            return self.wait(Some(due));
        }
        (question.due, question.last) = (now.plus(question.period), Some(now));
        let asked = Asked { ask: question.ask, at: now };
        if let Child::Running { asked: slot, .. } = &mut self.child {
            *slot = Some(asked);
        }
        Step::Ask(asked.ask)
    }

    fn wait(&self, until: Option<BootInstant>) -> Step {
        let check = self.abandoned.map(|abandoned| abandoned.check);
        Step::Wait(until.into_iter().chain(check).min())
    }

    fn question(&mut self, ask: Ask) -> &mut Question {
        let [inventory, readings, processes] = &mut self.questions;
        match ask {
            Ask::Inventory => inventory,
            Ask::Readings => readings,
            Ask::Processes => processes,
        }
    }

    fn after_death(&mut self) -> Duration {
        self.deaths = self.deaths.saturating_add(1);
        doubled(DEATH_PAUSE, self.deaths, MAX_DEATH_PAUSE)
    }
}

/// The pause after the nth failure in a row.
fn doubled(first: Duration, nth: u32, longest: Duration) -> Duration {
    let factor = 1_u32.checked_shl(nth.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_millis(millis)
    }

    /// A child that was started at 0 and has answered every question.
    fn sound() -> Children {
        let mut children = Children::new(at(0));
        assert_eq!(children.next(false, at(0)), Step::Start);
        children.started(at(0));
        for ask in [Ask::Inventory, Ask::Readings, Ask::Processes] {
            assert_eq!(children.next(false, at(0)), Step::Ask(ask));
            assert_eq!(children.next(false, at(0)), Step::Wait(None), "one question at a time");
            assert_eq!(children.answered(ask), Some(at(0)));
        }
        children
    }

    /// Lets time pass to each wait, answers at once, and returns what was asked when.
    fn asked_until(children: &mut Children, end: u64) -> Vec<(u64, Ask)> {
        let (mut now, mut asked) = (at(0), Vec::new());
        while now < at(end) {
            match children.next(false, now) {
                Step::Ask(ask) => {
                    asked.push((now.since(at(0)).as_secs(), ask));
                    children.answered(ask);
                }
                Step::Wait(Some(until)) => now = until,
                step => panic!("{step:?}"),
            }
        }
        asked
    }

    #[test]
    fn each_question_has_its_rhythm() {
        use Ask::{Inventory, Processes, Readings};
        let asked = asked_until(&mut sound(), 31_000);
        let times = |of| asked.iter().filter(|(_, ask)| *ask == of).map(|(at, _)| *at).collect::<Vec<_>>();
        assert_eq!(times(Readings), [5, 10, 15, 20, 25, 30]);
        assert_eq!(times(Processes), [10, 20, 30]);
        assert_eq!(times(Inventory), [30]);
    }

    #[test]
    fn a_look_that_is_wanted_while_one_is_in_progress_follows_it() {
        let mut children = sound();
        children.hurry(Ask::Processes, at(10));
        assert_eq!(children.next(false, at(10)), Step::Ask(Ask::Processes));
        children.hurry(Ask::Processes, at(20));
        children.answered(Ask::Processes);
        assert_eq!(children.next(false, at(30)), Step::Ask(Ask::Processes));
        children.answered(Ask::Processes);
        assert_eq!(children.next(false, at(40)), Step::Wait(Some(at(5_000))));
    }

    #[test]
    fn a_fault_asks_for_an_inventory_at_once_and_faults_without_end_do_not_ask_without_end() {
        let mut children = sound();
        children.follow_fault(at(5_500));
        assert_eq!(children.next(false, at(5_500)), Step::Ask(Ask::Readings), "due since 5 s");
        children.answered(Ask::Readings);
        assert_eq!(children.next(false, at(5_500)), Step::Ask(Ask::Inventory));
        children.answered(Ask::Inventory);
        children.follow_fault(at(5_600));
        assert_eq!(children.next(false, at(5_600)), Step::Wait(Some(at(6_600))));
        assert_eq!(children.next(false, at(6_600)), Step::Ask(Ask::Readings), "the word on recovery");
        children.answered(Ask::Readings);
        children.follow_fault(at(6_700));
        assert_eq!(children.next(false, at(9_999)), Step::Ask(Ask::Readings));
        children.answered(Ask::Readings);
        assert_eq!(children.next(false, at(9_999)), Step::Wait(Some(at(10_000))));
    }

    #[test]
    fn a_child_that_hangs_is_abandoned_and_no_other_is_started_while_it_lives() {
        let mut children = sound();
        assert_eq!(children.next(false, at(5_000)), Step::Ask(Ask::Readings));
        assert_eq!(children.hung(at(10_000)), at(5_000));
        assert_eq!(children.next(false, at(10_000)), Step::Abandon);
        assert_eq!(children.next(false, at(10_000)), Step::Wait(Some(at(11_000))));
        for second in 11..200 {
            assert_eq!(children.next(false, at(second * 1000)), Step::Check);
            children.checked(false);
            assert_eq!(children.stuck_since(), Some(at(10_000)));
            assert_eq!(children.next(false, at(second * 1000)), Step::Wait(Some(at(second * 1000 + 1000))));
        }
        assert_eq!(children.next(false, at(200_000)), Step::Check);
        children.checked(true);
        assert_eq!(children.stuck_since(), None);
        assert_eq!(children.next(false, at(200_000)), Step::Start);
    }

    #[test]
    fn the_pause_after_a_hang_grows_to_ten_minutes_and_a_sound_child_ends_it() {
        let mut children = Children::new(at(0));
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            assert_eq!(children.next(false, now), Step::Start);
            children.started(now);
            assert_eq!(children.next(false, now), Step::Ask(Ask::Inventory));
            children.hung(now);
            assert_eq!(children.next(false, now), Step::Abandon);
            children.checked(true);
            let Step::Wait(Some(next)) = children.next(false, now) else { panic!("it waits") };
            pauses.push(next.since(now).as_secs());
            now = next;
        }
        assert_eq!((pauses, children.hangs()), (vec![60, 120, 240, 480, 600, 600], 6));
        assert_eq!(children.next(false, now), Step::Start);
        children.started(now);
        for ask in [Ask::Inventory, Ask::Readings, Ask::Processes] {
            assert_eq!((children.next(false, now), children.hangs()), (Step::Ask(ask), 6));
            children.answered(ask);
        }
        assert_eq!(children.hangs(), 0);
    }

    #[test]
    fn a_death_or_a_failed_start_costs_a_short_pause_that_grows() {
        let mut children = sound();
        children.died(at(1_000));
        assert_eq!(children.next(false, at(1_000)), Step::Abandon);
        children.checked(true);
        assert_eq!(children.next(false, at(1_000)), Step::Wait(Some(at(2_000))));
        assert_eq!(children.next(false, at(2_000)), Step::Start);
        children.not_started(at(2_000));
        assert_eq!(children.next(false, at(2_000)), Step::Wait(Some(at(4_000))));
        assert_eq!((children.deaths(), doubled(DEATH_PAUSE, 40, MAX_DEATH_PAUSE)), (2, MAX_DEATH_PAUSE));
    }

    #[test]
    fn a_child_without_a_driver_is_followed_by_another_after_a_minute() {
        let mut children = Children::new(at(0));
        children.next(false, at(0));
        children.started(at(0));
        children.next(false, at(0));
        children.closed(at(100));
        assert_eq!(children.next(false, at(100)), Step::Abandon);
        children.checked(true);
        assert_eq!(children.next(false, at(100)), Step::Wait(Some(at(60_100))));
    }

    #[test]
    fn while_a_device_is_lost_the_child_is_replaced_each_minute() {
        let mut children = sound();
        assert!(matches!(children.next(true, at(4_000)), Step::Wait(Some(_))));
        assert_eq!(children.next(true, at(60_000)), Step::Abandon);
        assert_eq!(children.next(true, at(60_000)), Step::Wait(Some(at(61_000))));
        assert_eq!(children.next(true, at(61_000)), Step::Check);
        children.checked(true);
        assert_eq!(children.next(true, at(61_000)), Step::Start);
        assert_eq!((children.deaths(), children.hangs()), (0, 0));
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let mut children = sound();
        assert_eq!(children.next(false, at(5_000)), Step::Ask(Ask::Readings));
        assert_eq!(children.answered(Ask::Inventory), None);
    }
}
