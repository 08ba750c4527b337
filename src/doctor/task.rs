//! The owner of an agent's checkups: one at a time, however many callers ask.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::types::{Checkup, NoCheckup};

/// The longest that a checkup may take: the engine and then the slowest other topic have 40 s each, and what the agent
/// asks its leader takes a few more.
pub const LIMIT: Duration = Duration::from_secs(90);
/// Callers that wait for one checkup at most. People make them, and each further one costs the memory of an answer.
const MAX_WAITING: usize = 64;
/// Requests that wait for the owner, which takes each at once.
const QUEUE: usize = 16;

type Answer = Result<Checkup, NoCheckup>;
/// Makes a checkup.
pub type Examine = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Checkup> + Send>> + Send + Sync>;

/// Asks the owner. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<oneshot::Sender<Answer>>);

/// The requests, for the owner.
pub struct Requests(mpsc::Receiver<oneshot::Sender<Answer>>);

/// The channel of the requests. It exists before its owner: a checkup asks the cluster, which has the handle.
pub fn channel() -> (Handle, Requests) {
    let (requests, queue) = mpsc::channel(QUEUE);
    (Handle(requests), Requests(queue))
}

impl Handle {
    /// A checkup of this host. A caller that comes while one is made gets the answer of that one.
    ///
    /// # Errors
    /// See [`NoCheckup`].
    pub async fn checkup(&self) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(reply).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => NoCheckup::Busy,
            mpsc::error::TrySendError::Closed(_) => NoCheckup::Stopping,
        })?;
        answer.await.unwrap_or(Err(NoCheckup::Stopping))
    }
}

/// Starts the owner. It ends when the last handle is gone.
pub fn spawn(requests: Requests, examine: Examine) -> JoinHandle<()> {
    spawn_within(LIMIT, requests, examine)
}

fn spawn_within(limit: Duration, Requests(mut queue): Requests, examine: Examine) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(first) = queue.recv().await {
            answer_all(first, &mut queue, make(limit, &examine)).await;
        }
    })
}

/// Makes one checkup, and answers every caller that came before its end.
async fn answer_all(
    first: oneshot::Sender<Answer>,
    queue: &mut mpsc::Receiver<oneshot::Sender<Answer>>,
    made: impl Future<Output = Answer>,
) {
    let mut waiting = vec![first];
    let mut made = std::pin::pin!(made);
    let answer = loop {
        tokio::select! {
            answer = &mut made => break answer,
            Some(next) = queue.recv() => match waiting.len() {
                0..MAX_WAITING => waiting.push(next),
                _ => drop(next.send(Err(NoCheckup::Busy))),
            },
        }
    };
    // A caller may have gone.
    waiting.into_iter().for_each(|caller| drop(caller.send(answer.clone())));
}

/// In a task of its own: a check that panics must not end the agent.
async fn make(limit: Duration, examine: &Examine) -> Answer {
    let mut checkup = tokio::spawn(examine());
    match timeout(limit, &mut checkup).await {
        Ok(Ok(checkup)) => Ok(checkup),
        Ok(Err(error)) => {
            tracing::error!(%error, "a checkup has failed");
            Err(NoCheckup::Failed)
        }
        Err(_) => {
            checkup.abort();
            Err(NoCheckup::Late { seconds: limit.as_secs() })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    fn checkup() -> Checkup {
        Checkup::new("a".parse().unwrap(), Vec::new())
    }

    /// An owner whose checkups wait for the notification, and how many were begun.
    fn held(limit: Duration) -> (Handle, Arc<Notify>, Arc<AtomicUsize>) {
        let (handle, requests) = channel();
        let (go, begun) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let (let_go, count) = (Arc::clone(&go), Arc::clone(&begun));
        let examine: Examine = Box::new(move || {
            let go = Arc::clone(&go);
            count.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                go.notified().await;
                checkup()
            })
        });
        spawn_within(limit, requests, examine);
        (handle, let_go, begun)
    }

    #[tokio::test]
    async fn callers_share_one_checkup_and_a_later_one_gets_another() {
        let (handle, go, begun) = held(LIMIT);
        let callers = join_all((0..3).map(|_| handle.checkup()));
        let (answers, ()) = tokio::join!(callers, async {
            while begun.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            go.notify_one();
        });
        assert_eq!((answers, begun.load(Ordering::SeqCst)), (vec![Ok(checkup()); 3], 1));
        go.notify_one();
        assert_eq!((handle.checkup().await, begun.load(Ordering::SeqCst)), (Ok(checkup()), 2));
    }

    #[tokio::test]
    async fn a_checkup_that_hangs_ends() {
        let (handle, _go, begun) = held(Duration::ZERO);
        assert_eq!(handle.checkup().await, Err(NoCheckup::Late { seconds: 0 }));
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn more_callers_than_the_limit_are_refused() {
        let (handle, go, _begun) = held(LIMIT);
        let mut waiting = Vec::new();
        for _ in 0..MAX_WAITING {
            let caller = handle.clone();
            waiting.push(tokio::spawn(async move { caller.checkup().await }));
            // Until the caller has asked, and the owner has taken the request.
            tokio::task::yield_now().await;
            while handle.0.capacity() < QUEUE {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(handle.checkup().await, Err(NoCheckup::Busy));
        go.notify_one();
        for caller in waiting {
            assert_eq!(caller.await.unwrap(), Ok(checkup()));
        }
    }

    #[tokio::test]
    async fn a_check_that_panics_ends_its_checkup_only() {
        let (handle, requests) = channel();
        let owner = spawn(requests, Box::new(|| Box::pin(async { panic!("in a check") })));
        for _ in 0..2 {
            assert_eq!(handle.checkup().await, Err(NoCheckup::Failed));
        }
        drop(handle);
        owner.await.unwrap();
    }
}
