//! When the file system of the images is too full, and by how much. Pure.

use super::policy::Pressure;
use crate::types::{Bytes, Disk, Inodes};

/// A high watermark that nothing is above.
const NEVER: u32 = 100;

/// What may be used of the file system of the images, in percent of its bytes and of its inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Above it images are removed. [`NEVER`]: never.
    pub high: u32,
    /// Until no more than this is used.
    pub low: u32,
}

impl Watermarks {
    /// Those that count once a pull has met a full disk. The engine drops what it has of that image, and so the disk may
    /// be below the high mark again; what the pull needs is not known.
    pub const fn met_full_disk(self) -> Self {
        match self.high {
            NEVER => self,
            _ => Self { high: self.low, ..self },
        }
    }
}

/// What must be freed; `None`: no more is used than the high mark allows.
pub fn pressure(disk: &Disk, marks: Watermarks) -> Option<Pressure> {
    if !is_above(disk, marks.high) {
        return None;
    }
    let is_short_of_inodes = inodes_used(disk) > u64::from(marks.high);
    let wanted = disk.total_bytes.get().saturating_sub(disk.free_bytes.get()).saturating_sub(allowed(disk, marks.low));
    Some(Pressure { bytes: (!is_short_of_inodes).then_some(Bytes::new(wanted)) })
}

/// Whether more than these percent are used, of the bytes or of the inodes.
pub fn is_above(disk: &Disk, percent: u32) -> bool {
    let used = disk.total_bytes.saturating_sub(disk.free_bytes);
    used.get() > allowed(disk, percent) || inodes_used(disk) > u64::from(percent)
}

/// How much is used, rounded up to whole percent: of the bytes, or of the inodes if that is more.
pub fn used_percent(disk: &Disk) -> u64 {
    let used = disk.total_bytes.saturating_sub(disk.free_bytes);
    percent_of(used.get(), disk.total_bytes.get()).max(inodes_used(disk))
}

fn allowed(disk: &Disk, percent: u32) -> u64 {
    // Divided first, so that no size overflows; a hundred bytes do not matter.
    disk.total_bytes.get() / 100 * u64::from(percent)
}

fn inodes_used(disk: &Disk) -> u64 {
    disk.inodes.map_or(0, |Inodes { total, free }| percent_of(total.saturating_sub(free), total))
}

/// Rounded up.
fn percent_of(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let percent = (u128::from(part) * 100).div_ceil(u128::from(whole));
    u64::try_from(percent).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Watermarks = Watermarks { high: 85, low: 75 };

    fn disk(used: u64, inodes: Option<(u64, u64)>) -> Disk {
        let inodes = inodes.map(|(total, used)| Inodes { total, free: total - used });
        Disk { path: "/d".to_owned(), total_bytes: Bytes::new(1000), free_bytes: Bytes::new(1000 - used), inodes }
    }

    #[test]
    fn a_pull_that_met_a_full_disk_has_images_removed_down_to_the_low_mark() {
        assert_eq!(MARKS.met_full_disk(), Watermarks { high: 75, low: 75 });
        let never = Watermarks { high: 100, low: 75 };
        assert_eq!(never.met_full_disk(), never);
    }

    #[test]
    fn what_is_above_the_high_mark_is_freed_down_to_the_low_one() {
        assert_eq!(pressure(&disk(850, None), MARKS), None);
        assert_eq!(pressure(&disk(851, None), MARKS), Some(Pressure { bytes: Some(Bytes::new(101)) }));
        assert_eq!(pressure(&disk(1000, None), Watermarks { high: 100, low: 75 }), None);
    }

    #[test]
    fn inodes_count_as_bytes_do_and_say_nothing_of_how_many_bytes_to_free() {
        assert_eq!(pressure(&disk(0, Some((1000, 850))), MARKS), None);
        assert_eq!(pressure(&disk(0, Some((1000, 851))), MARKS), Some(Pressure { bytes: None }));
        assert_eq!(pressure(&disk(900, Some((1000, 851))), MARKS), Some(Pressure { bytes: None }));
        let bytes = Some(Bytes::new(150));
        assert_eq!(pressure(&disk(900, Some((1000, 850))), MARKS), Some(Pressure { bytes }), "of bytes alone");
        assert!(is_above(&disk(0, Some((1000, 760))), 75) && !is_above(&disk(750, Some((1000, 750))), 75));
    }

    #[test]
    fn the_fuller_of_the_two_is_told() {
        assert_eq!(used_percent(&disk(501, Some((1000, 10)))), 51);
        assert_eq!(used_percent(&disk(501, Some((1000, 900)))), 90);
        let none = Disk { total_bytes: Bytes::ZERO, free_bytes: Bytes::ZERO, ..disk(0, Some((0, 0))) };
        assert_eq!((used_percent(&none), pressure(&none, MARKS)), (0, None));
        let huge = Disk { total_bytes: Bytes::new(u64::MAX), free_bytes: Bytes::ZERO, ..disk(0, None) };
        assert_eq!(used_percent(&huge), 100);
    }
}
