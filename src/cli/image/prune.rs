//! `ostler image prune`: removes images of nodes that nothing needs.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, stream};

use super::nodes::Nodes;
use crate::cli::arguments::one_of;
use crate::cli::client::{Call, Client};
use crate::cli::failure::Failure;
use crate::cli::output::Body;
use crate::cli::progress::Progress;
use crate::cli::route::Route;
use crate::cli::table::{NONE, one_line, table};
use crate::cli::{Context, Failures};
use crate::types::{Bytes, KeptBecause, Prune, PruneReason, PruneReport, PruneRequest};

/// As long as a node may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Nodes that are asked at the same time.
const AT_ONCE: usize = 16;
/// Images of one reason that are named; of more, only the number and the sum are.
const MAX_NAMED: usize = 5;

/// Remove images of nodes that ostler pulled and that nothing needs.
///
/// Without --mode each node's setting `prune` counts: `normal` removes images without a name, `aggressive` also those
/// that no workspace names. An image of another program, of a container, of a session or of a workspace stays.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler image prune --dry-run
  ostler image prune host-a --mode aggressive
  ostler image prune --all")]
pub(in crate::cli) struct PruneArgs {
    #[command(flatten)]
    nodes: Nodes,
    /// Only show what would be removed, and what is kept and why.
    #[arg(long)]
    dry_run: bool,
    /// Prune in this mode once [default: the node's setting].
    #[arg(long, value_parser = one_of::<Prune>([Prune::Normal, Prune::Aggressive].map(Prune::as_str)))]
    mode: Option<Prune>,
}

pub(super) async fn run(args: &PruneArgs, context: &Context) -> Result<(), Failure> {
    let request = PruneRequest { mode: args.mode };
    request.validate()?;
    let client = context.client()?;
    let nodes = args.nodes.resolve(&client).await?;
    let progress = Progress::start(if args.dry_run { "looking at the images" } else { "removing images" });
    let prunes = nodes.iter().map(async |node| (node, prune(node, &request, args.dry_run, &client).await));
    let mut ended = stream::iter(prunes).buffer_unordered(AT_ONCE);
    let (mut failures, mut is_first) = (Failures::default(), true);
    while let Some((node, pruned)) = ended.next().await {
        progress.aside(|| match pruned {
            Ok(body) => {
                let gap = if std::mem::take(&mut is_first) { "" } else { "\n" };
                context.out.answer(&body, |report| format!("{gap}{}", describe(report)))
            }
            Err(failure) => {
                failures.add(node, &failure);
                Ok(())
            }
        })?;
    }
    drop(progress);
    failures.into_result()
}

async fn prune(node: &str, request: &PruneRequest, dry_run: bool, client: &Client) -> Result<Body, Failure> {
    let mut route = Route::new(&["nodes", node, "images", "prune"]);
    if dry_run {
        route = route.with("dry_run", true);
    }
    Ok(client.send(Call::post(route).json(request)?.waiting(PATIENCE)).await?.body)
}

/// What goes, how much and why; then what stays, by reason; then what else there is to know.
fn describe(report: &PruneReport) -> String {
    let mut parts = Vec::new();
    if !report.removed.is_empty() {
        let rows = report.removed.iter().map(|image| {
            vec![name(&image.names, &image.id), image.bytes.to_string(), removed_because(image.reason).to_owned()]
        });
        let header = if report.dry_run { "WOULD REMOVE" } else { "REMOVED" };
        parts.push(table(&[header, "SIZE", "WHY"], rows));
    }
    if !report.skipped.is_empty() {
        let rows = report
            .skipped
            .iter()
            .map(|image| vec![name(&image.names, &image.id), image.bytes.to_string(), one_line(&image.reason)]);
        parts.push(table(&["NOT REMOVED", "SIZE", "WHY"], rows));
    }
    if !report.kept.is_empty() {
        parts.push(table(&["KEPT", "IMAGES", "SIZE", "NAMES"], kept(report)));
    }
    parts.push(summary(report));
    parts.extend(report.notes.iter().map(|note| format!("note: {}", one_line(note))));
    parts.join("\n\n")
}

/// A row for each reason.
fn kept(report: &PruneReport) -> impl Iterator<Item = Vec<String>> {
    let mut groups: BTreeMap<KeptBecause, (Bytes, Vec<String>)> = BTreeMap::new();
    for image in &report.kept {
        let (bytes, names) = groups.entry(image.reason).or_default();
        *bytes = bytes.saturating_add(image.bytes);
        names.push(name(&image.names, &image.id));
    }
    groups.into_iter().map(|(reason, (bytes, names))| {
        let count = names.len();
        let mut shown = names.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
        if let Some(more) = count.checked_sub(MAX_NAMED).filter(|more| *more > 0) {
            shown = format!("{shown} and {more} more");
        }
        vec![kept_because(reason).to_owned(), count.to_string(), bytes.to_string(), shown]
    })
}

fn summary(report: &PruneReport) -> String {
    let PruneReport { node, mode, removed, up_to_bytes, reclaimed_bytes, .. } = report;
    let images = match removed.len() {
        0 => "nothing".to_owned(),
        1 => "1 image".to_owned(),
        count => format!("{count} images"),
    };
    let does = if report.dry_run { "would remove" } else { "removed" };
    let freed = match reclaimed_bytes {
        _ if removed.is_empty() => String::new(),
        _ if report.dry_run => format!(" and free up to {up_to_bytes}"),
        Some(bytes) => format!(" and freed about {bytes}"),
        None => format!(" and freed up to {up_to_bytes}"),
    };
    format!("{node}: a prune in mode {mode} {does} {images}{freed}")
}

/// Its first name and how many more it has, or the beginning of its id.
fn name(names: &[String], id: &str) -> String {
    /// As docker shows ids.
    const SHORT: usize = 12;
    match names {
        [] => {
            let id = id.rsplit(':').next().filter(|id| !id.is_empty()).unwrap_or(NONE);
            one_line(id.get(..SHORT).unwrap_or(id))
        }
        [one] => one_line(one),
        [first, more @ ..] => format!("{} (+{})", one_line(first), more.len()),
    }
}

const fn removed_because(reason: PruneReason) -> &'static str {
    match reason {
        PruneReason::Dangling => "it has no name",
        PruneReason::Unnamed => "no workspace names it",
        PruneReason::Pressure => "no workspace names it, and the disk is too full",
    }
}

const fn kept_because(reason: KeptBecause) -> &'static str {
    match reason {
        KeptBecause::Foreign => "not ostler's",
        KeptBecause::Pinned => "pinned",
        KeptBecause::Container => "a container uses it",
        KeptBecause::Session => "a session needs it",
        KeptBecause::Pulling => "being pulled",
        KeptBecause::Young => "used lately (images.min_age)",
        KeptBecause::Workspace => "a workspace names it",
        KeptBecause::Named => "it has a name",
        KeptBecause::Off => "prune is off",
        KeptBecause::CatalogueEmpty => "the catalogue is empty",
        KeptBecause::CatalogueUnknown => "the catalogue may be out of date",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{KeptImage, PrunedImage, SkippedImage};

    fn kept(id: &str, names: &[&str], reason: KeptBecause) -> KeptImage {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        KeptImage { id: id.to_owned(), names, bytes: Bytes::mib(100), reason }
    }

    fn report() -> PruneReport {
        let gone = |id: &str, names: &[&str], mib, reason| PrunedImage {
            id: id.to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            bytes: Bytes::mib(mib),
            reason,
        };
        PruneReport {
            node: "a".parse().unwrap(),
            mode: Prune::Aggressive,
            dry_run: true,
            removed: vec![
                gone("sha256:0123456789abcdef", &[], 700, PruneReason::Dangling),
                gone("sha256:1", &["x:1", "x:2"], 300, PruneReason::Unnamed),
            ],
            kept: vec![
                kept("sha256:2", &["w:1"], KeptBecause::Workspace),
                kept("sha256:3", &["y:1"], KeptBecause::Foreign),
                kept("sha256:4", &["z:1"], KeptBecause::Foreign),
            ],
            skipped: Vec::new(),
            reclaimed_bytes: None,
            up_to_bytes: Bytes::mib(1000),
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_dry_run_shows_what_goes_and_what_stays_by_reason() {
        let expected = "\
WOULD REMOVE   SIZE      WHY
0123456789ab   700 MiB   it has no name
x:1 (+1)       300 MiB   no workspace names it

KEPT                   IMAGES   SIZE      NAMES
not ostler's           2        200 MiB   y:1, z:1
a workspace names it   1        100 MiB   w:1

a: a prune in mode aggressive would remove 2 images and free up to 1000 MiB";
        assert_eq!(describe(&report()), expected);
    }

    #[test]
    fn a_prune_tells_what_it_could_not_remove_and_what_it_freed() {
        let skipped = SkippedImage {
            id: "sha256:5".to_owned(),
            names: vec!["c:1".to_owned()],
            bytes: Bytes::mib(5),
            reason: "it has\na child".to_owned(),
        };
        let mut report = PruneReport { dry_run: false, skipped: vec![skipped], kept: Vec::new(), ..report() };
        report.removed.truncate(1);
        report.reclaimed_bytes = Some(Bytes::mib(690));
        report.notes = vec!["the catalogue has no workspaces".to_owned()];
        let expected = "\
REMOVED        SIZE      WHY
0123456789ab   700 MiB   it has no name

NOT REMOVED   SIZE    WHY
c:1           5 MiB   it has a child

a: a prune in mode aggressive removed 1 image and freed about 690 MiB

note: the catalogue has no workspaces";
        assert_eq!(describe(&report), expected);
    }

    #[test]
    fn a_prune_that_removes_nothing_says_so() {
        let none = PruneReport { removed: Vec::new(), ..report() };
        assert_eq!(summary(&none), "a: a prune in mode aggressive would remove nothing");
        let none = PruneReport { dry_run: false, reclaimed_bytes: Some(Bytes::ZERO), ..none };
        assert_eq!(summary(&none), "a: a prune in mode aggressive removed nothing");
    }

    #[test]
    fn a_long_list_is_counted() {
        let many = (0..7).map(|i| kept(&i.to_string(), &[&format!("n{i}:1")], KeptBecause::Named)).collect();
        let report = PruneReport { removed: Vec::new(), kept: many, ..report() };
        assert!(describe(&report).contains("n0:1, n1:1, n2:1, n3:1, n4:1 and 2 more"), "{}", describe(&report));
    }
}
