//! Whether the container engine answers, and is one that ostler works with.

use std::time::Duration;

use super::fault;
use crate::runtime::EngineInfo;
use crate::types::{Check, Topic, Verdict};

/// The oldest Docker that ostler is tested with.
const OLDEST: (u32, u32) = (20, 10);
/// An engine that answers later than this makes every step of a session slow: an idle one answers in milliseconds.
const SLOW: Duration = Duration::from_secs(2);

/// `answer`: what the engine tells of itself, or why it does not.
pub fn judge(host: &str, answer: Result<&EngineInfo, &str>, took: Duration) -> Vec<Check> {
    let info = match answer {
        Ok(info) => info,
        Err(why) => {
            let mend = "systemctl start docker";
            return vec![fault(Topic::Engine, Verdict::Fail, why, mend)];
        }
    };
    let version = &info.version;
    if parsed(version).is_some_and(|found| found < OLDEST) {
        let (major, minor) = OLDEST;
        let message =
            format!("Docker {version} at {host} is older than {major}.{minor}, the oldest that ostler supports");
        return vec![Check::fail(Topic::Engine, message, format!("upgrade Docker to {major}.{minor} or later"))];
    }
    if took > SLOW {
        let message = format!("Docker {version} at {host} took {} ms to answer", took.as_millis());
        return vec![Check::warn(Topic::Engine, message, "look for load and errors: journalctl -u docker")];
    }
    let root = info.data_root.as_ref().map(|root| format!(", data root {}", root.display())).unwrap_or_default();
    vec![Check::ok(Topic::Engine, format!("Docker {version} answers at {host} in {} ms{root}", took.as_millis()))]
}

/// Major and minor version. `None`: the version of an engine that is not numbered so.
fn parsed(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::judge::testing::engine;

    #[test]
    fn an_old_a_slow_and_an_absent_engine_are_faults() {
        let of = |version: &str, took| judge("unix:///s", Ok(&engine(version)), Duration::from_millis(took)).remove(0);
        assert_eq!(of("28.1.0", 12).verdict, Verdict::Ok);
        assert_eq!(of("20.10.24+dfsg1", 12).message, "Docker 20.10.24+dfsg1 answers at unix:///s in 12 ms");
        assert_eq!(of("dev", 12).verdict, Verdict::Ok);
        let old = of("19.03.15", 12);
        assert_eq!((old.verdict, old.mend.as_deref()), (Verdict::Fail, Some("upgrade Docker to 20.10 or later")));
        assert_eq!(of("28.1.0", 2001).verdict, Verdict::Warn);
        let absent = judge("unix:///s", Err("no socket /s"), Duration::ZERO).remove(0);
        assert_eq!((absent.verdict, absent.mend.as_deref()), (Verdict::Fail, Some("systemctl start docker")));
    }
}
