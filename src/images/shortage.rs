//! A file system of images that a prune cannot free enough, and what else is on it, for people. Pure.

use std::cmp::Reverse;

use super::pressure;
use crate::runtime::images::DiskUsage;
use crate::types::{Bytes, Disk};

/// A file system of images that is above the high watermark though a prune has done what it may, or would have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    pub disk: Disk,
    /// The mark, in percent.
    pub high: u32,
    /// The prune was a dry run.
    pub dry_run: bool,
    /// How many images of other programs are on it, and what they take.
    pub foreign: (usize, Bytes),
}

impl Shortage {
    /// What is known to take space comes with the command that frees it, largest first. Of the rest the text says that
    /// it may take some.
    pub fn text(&self, usage: &DiskUsage) -> String {
        let Self { disk, high, dry_run, .. } = self;
        let outlook = if *dry_run { "this prune would not free enough" } else { "a prune cannot free more" };
        let mut text = format!(
            "{used} % of the file system of the images, {path}, is used, which is above images.high_watermark \
             ({high} %), and {outlook}",
            used = pressure::used_percent(disk),
            path = disk.path,
        );
        let takes = self.takes(usage);
        if !takes.is_empty() {
            text.push_str("; what else takes space, about, and how to free it: ");
            text.push_str(&takes.join(", "));
        }
        text.push_str(&match unknown(usage).as_slice() {
            [] => "; for more run: docker system df --verbose".to_owned(),
            [one] => format!("; {one} may take more: run: docker system df"),
            [others @ .., last] => format!("; {} and {last} may take more: run: docker system df", others.join(", ")),
        });
        text
    }

    /// Largest first, without what takes nothing.
    fn takes(&self, usage: &DiskUsage) -> Vec<String> {
        let (count, foreign) = self.foreign;
        let images = if count == 1 { "1 image" } else { &format!("{count} images") };
        let images = format!("{images} of other programs");
        let foreign = (images.as_str(), Some(foreign), "docker image rm");
        let mut takes: Vec<(&str, Bytes, &str)> = [foreign]
            .into_iter()
            .chain(kinds(usage))
            .filter_map(|(what, bytes, command)| Some((what, bytes.filter(|bytes| !bytes.is_zero())?, command)))
            .collect();
        takes.sort_by_key(|(_, bytes, _)| Reverse(*bytes));
        takes.into_iter().map(|(what, bytes, command)| format!("{what} {bytes} ({command})")).collect()
    }
}

/// What is not known, or not told by the engine.
fn unknown(usage: &DiskUsage) -> Vec<&'static str> {
    kinds(usage).into_iter().filter(|(_, bytes, _)| bytes.is_none()).map(|(what, ..)| what).collect()
}

/// What there is beside images, what it takes, and how to free it. Without the filter, `docker volume prune` and
/// `docker container prune` would also remove volumes of ostler's users and stopped sessions.
fn kinds(usage: &DiskUsage) -> [(&'static str, Option<Bytes>, &'static str); 4] {
    let DiskUsage { volumes, build_cache, containers, logs } = *usage;
    [
        ("volumes", volumes, "ostler volume rm, or docker volume prune --filter label!=ostler.cluster"),
        ("the build cache", build_cache, "docker builder prune"),
        (
            "files of containers",
            containers,
            "ostler session rm, or docker container prune --filter label!=ostler.cluster",
        ),
        ("logs of containers", logs, "log-opts max-size in the engine's daemon.json"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortage(foreign: (usize, Bytes)) -> Shortage {
        let disk =
            Disk { path: "/d".to_owned(), total_bytes: Bytes::new(1000), free_bytes: Bytes::new(90), inodes: None };
        Shortage { disk, high: 85, dry_run: false, foreign }
    }

    const FOREIGN: (usize, Bytes) = (2, Bytes::mib(5));

    #[test]
    fn what_takes_space_is_told_largest_first_with_how_to_free_it() {
        let usage = DiskUsage {
            volumes: Some(Bytes::mib(4)),
            build_cache: Some(Bytes::gib(2)),
            containers: Some(Bytes::ZERO),
            logs: Some(Bytes::mib(1)),
        };
        assert_eq!(
            shortage(FOREIGN).text(&usage),
            "91 % of the file system of the images, /d, is used, which is above images.high_watermark (85 %), and a \
             prune cannot free more; what else takes space, about, and how to free it: the build cache 2 GiB (docker \
             builder prune), 2 images of other programs 5 MiB (docker image rm), volumes 4 MiB (ostler volume rm, or \
             docker volume prune --filter label!=ostler.cluster), logs of containers 1 MiB (log-opts max-size in the \
             engine's daemon.json); for more run: docker system df --verbose"
        );
    }

    #[test]
    fn what_is_not_known_may_take_more() {
        let text = shortage(FOREIGN).text(&DiskUsage::default());
        let end = "how to free it: 2 images of other programs 5 MiB (docker image rm); volumes, the build cache, files \
                   of containers and logs of containers may take more: run: docker system df";
        assert!(text.ends_with(end), "{text}");
        let none = Some(Bytes::ZERO);
        let usage = DiskUsage { volumes: none, build_cache: none, containers: none, logs: None };
        let text = shortage((0, Bytes::ZERO)).text(&usage);
        assert!(text.ends_with("cannot free more; logs of containers may take more: run: docker system df"), "{text}");
    }

    #[test]
    fn a_dry_run_says_what_it_would_not_do() {
        let dry = Shortage { dry_run: true, ..shortage((1, Bytes::mib(5))) };
        let text = dry.text(&DiskUsage::default());
        assert!(
            text.contains("and this prune would not free enough; ") && text.contains(" 1 image of other"),
            "{text}"
        );
    }
}
