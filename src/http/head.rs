//! The wait for the head of a request.
//!
//! hyper has one limit for this wait, and it runs while a kept connection is idle as well. Proxies keep idle
//! connections for a minute, but a head that has begun should arrive within seconds. So hyper gets the limit of an idle
//! connection, and a timer that shortens the wait once bytes arrive.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::io::AsyncRead;
use tokio::time::Instant;
use tokio_util::io::InspectReader;

/// hyper's timer of one connection. hyper uses it only for the wait for a head: it starts a sleep when it begins to
/// wait, polls it whenever it has read everything that has arrived, and drops it when the head is complete.
pub(super) struct HeadTimer {
    /// How long a head may take from its first byte.
    limit: Duration,
    /// Whether the connection has not waited for a head yet.
    is_new: AtomicBool,
    /// Whether the peer has sent bytes in the present wait.
    has_begun: Arc<AtomicBool>,
}

impl HeadTimer {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, is_new: AtomicBool::new(true), has_begun: Arc::default() }
    }

    /// The stream that hyper must read from, so that this timer knows when bytes arrive.
    pub(super) fn watch<I: AsyncRead>(&self, stream: I) -> InspectReader<I, impl FnMut(&[u8]) + use<I>> {
        let has_begun = Arc::clone(&self.has_begun);
        InspectReader::new(stream, move |bytes| {
            if !bytes.is_empty() {
                has_begun.store(true, Ordering::Relaxed);
            }
        })
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, idle_until: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        // A new connection is not kept for later: its first head counts as begun.
        self.has_begun.store(self.is_new.swap(false, Ordering::Relaxed), Ordering::Relaxed);
        let sleep = Box::pin(tokio::time::sleep_until(idle_until.into()));
        Box::pin(Wait { sleep, limit: Some(self.limit), has_begun: Arc::clone(&self.has_begun) })
    }
}

/// One wait for a head.
struct Wait {
    sleep: Pin<Box<tokio::time::Sleep>>,
    /// `None` once it applies.
    limit: Option<Duration>,
    has_begun: Arc<AtomicBool>,
}

impl Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.has_begun.load(Ordering::Relaxed)
            && let Some(limit) = self.limit.take()
        {
            self.sleep.as_mut().reset(Instant::now() + limit);
        }
        self.sleep.as_mut().poll(context)
    }
}
