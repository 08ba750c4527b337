//! The only reader of time. All other parts get a [`Moment`] as an argument.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::types::{BootInstant, Moment, Timestamp};

/// Reads the wall clock and the boot clock together.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System {
        boot_id: u64,
    },
    /// The lock is held for a copy or an addition only, and spans no await.
    Manual(Arc<Mutex<Moment>>),
}

impl Clock {
    /// The host's clocks.
    ///
    /// # Errors
    /// The kernel's boot id cannot be read.
    pub fn system() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let boot_id = u64::from_str_radix(&hex, 16)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("`{text}` is not a boot id")))?;
        Ok(Self(Source::System { boot_id }))
    }

    /// A clock that moves only with [`Self::advance`], for tests and simulations.
    pub fn manual(start: Moment) -> Self {
        Self(Source::Manual(Arc::new(Mutex::new(start))))
    }

    pub fn now(&self) -> Moment {
        match &self.0 {
            Source::System { boot_id } => {
                // CLOCK_BOOTTIME counts during suspend, unlike Instant, and never jumps, unlike SystemTime.
                let boot = clock_gettime(ClockId::Boottime);
                let millis = u64::try_from(boot.tv_sec).unwrap_or(0) * 1000
                    + u64::try_from(boot.tv_nsec).unwrap_or(0) / 1_000_000;
                let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                Moment {
                    wall: Timestamp::from_millis(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX)),
                    boot: BootInstant::from_millis(millis),
                    boot_id: *boot_id,
                }
            }
            Source::Manual(moment) => *moment.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Moves a manual clock forward.
    ///
    /// # Panics
    /// On the system's clock.
    pub fn advance(&self, span: Duration) {
        let Source::Manual(moment) = &self.0 else { panic!("only a manual clock can be moved") };
        let mut moment = moment.lock().unwrap_or_else(PoisonError::into_inner);
        *moment = moment.plus(span);
    }
}
