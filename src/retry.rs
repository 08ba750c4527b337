//! The pauses of a caller that tries something again until it succeeds or the time is up.
//!
//! A request to another node, or to an engine, can fail for a moment: the connection is not there yet, or was lost. A
//! caller that has time left must not take such an error for the answer. It tries again after each pause.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The first pause: short for a person, and long enough not to load a node that starts.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause. Each pause is twice as long as the one before.
const LONGEST: Duration = Duration::from_secs(1);

/// The pauses between the attempts until a deadline.
#[derive(Debug)]
pub struct Pauses {
    deadline: Instant,
    next: Duration,
}

impl Pauses {
    pub const fn until(deadline: Instant) -> Self {
        Self { deadline, next: FIRST }
    }

    /// The time until the deadline; zero after it.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Waits until the next attempt is due, at the deadline at the latest. False, at once: the deadline has passed. So
    /// the last attempt begins at the deadline.
    pub async fn pass(&mut self) -> bool {
        let Some(due) = self.due(Instant::now()) else { return false };
        sleep_until(due).await;
        true
    }

    /// When the next attempt is due, if one ended at `now`.
    fn due(&mut self, now: Instant) -> Option<Instant> {
        let due = (now < self.deadline).then(|| (now + self.next).min(self.deadline));
        self.next = (self.next * 2).min(LONGEST);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_the_last_attempt_is_at_the_deadline() {
        let begun = Instant::now();
        let mut pauses = Pauses::until(begun + Duration::from_millis(3_000));
        let mut now = begun;
        let mut attempts = Vec::new();
        while let Some(due) = pauses.due(now) {
            now = due;
            attempts.push((now - begun).as_millis());
        }
        assert_eq!(attempts, [50, 150, 350, 750, 1550, 2550, 3000]);
    }

    #[tokio::test]
    async fn after_the_deadline_there_is_no_attempt() {
        let mut pauses = Pauses::until(Instant::now());
        assert_eq!((pauses.pass().await, pauses.left()), (false, Duration::ZERO));
    }
}
