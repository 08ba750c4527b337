//! Whether the disks of the data directory and of the images have room.

use super::fault;
use crate::capacity::room::shortage;
use crate::types::{Bytes, Check, Disk, Topic, Verdict};

/// A file system that is fuller than this, in percent, is shown before sessions are refused.
const NEARLY_FULL: u64 = 90;

/// `disks`: each file system once. `min_free`: `limits.min_free_disk`.
pub fn judge(disks: &[Disk], min_free: Bytes) -> Vec<Check> {
    if disks.is_empty() {
        return vec![Check::skipped(Topic::Disk, "no file system of the data directory or the images can be read")];
    }
    let judged = disks.iter().map(|disk| {
        let mend = "see what can go: ostler image prune --dry-run";
        if let Some(short) = shortage(std::slice::from_ref(disk), min_free) {
            return Check {
                mend: Some(mend.to_owned()),
                ..fault(Topic::Disk, Verdict::Fail, &short.to_string(), mend)
            };
        }
        let Disk { path, total_bytes, free_bytes, .. } = disk;
        let used = total_bytes.saturating_sub(*free_bytes).get();
        if used / 100 * 100 > total_bytes.get() / 100 * NEARLY_FULL {
            let message =
                format!("{free_bytes} of {total_bytes} is free on {path}: it is more than {NEARLY_FULL} % full");
            return Check::warn(Topic::Disk, message, mend);
        }
        Check::ok(Topic::Disk, format!("{free_bytes} of {total_bytes} is free on {path}"))
    });
    judged.collect()
}

/// A directory of the agent whose files have a bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub what: &'static str,
    pub path: String,
    pub bytes: Bytes,
    pub most: Bytes,
}

/// Whether the agent's own files are inside their bounds: more is of another program, or a fault of ostler.
pub fn judge_kept(kept: &[Kept]) -> Vec<Check> {
    let over = kept.iter().filter(|kept| kept.bytes > kept.most);
    let mut checks: Vec<Check> = over
        .map(|Kept { what, path, bytes, most }| {
            let message =
                format!("{what} in {path} has {bytes}, and {most} is its bound: files there are not ostler's");
            Check::warn(Topic::Disk, message, format!("look for them: ls -lS {path}"))
        })
        .collect();
    if checks.is_empty() && !kept.is_empty() {
        let sizes = kept.iter().map(|Kept { what, bytes, most, .. }| format!("{what} has {bytes} of at most {most}"));
        checks.push(Check::ok(Topic::Disk, sizes.collect::<Vec<_>>().join(", ")));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Inodes;

    #[test]
    fn files_beyond_their_bound_are_a_warning() {
        let kept = |mib| Kept {
            what: "the event log",
            path: "/d/events".to_owned(),
            bytes: Bytes::mib(mib),
            most: Bytes::mib(64),
        };
        assert_eq!(judge_kept(&[kept(64)])[0].message, "the event log has 64 MiB of at most 64 MiB");
        let over = judge_kept(&[kept(64), kept(65)]);
        assert_eq!(over.len(), 1);
        assert_eq!(
            (over[0].verdict, over[0].mend.as_deref()),
            (Verdict::Warn, Some("look for them: ls -lS /d/events"))
        );
        assert_eq!(judge_kept(&[]), []);
    }

    #[test]
    fn a_disk_without_room_fails_and_a_full_one_warns() {
        let disk = |free, inodes| Disk {
            path: "/d".to_owned(),
            total_bytes: Bytes::gib(100),
            free_bytes: Bytes::gib(free),
            inodes: Some(Inodes { total: 1000, free: inodes }),
        };
        let of = |disk| judge(&[disk], Bytes::gib(2)).remove(0).verdict;
        assert_eq!(of(disk(50, 500)), Verdict::Ok);
        assert_eq!(of(disk(9, 500)), Verdict::Warn);
        assert_eq!(of(disk(1, 500)), Verdict::Fail);
        assert_eq!(of(disk(50, 19)), Verdict::Fail);
        assert_eq!(judge(&[], Bytes::ZERO)[0].verdict, Verdict::Skipped);
    }
}
