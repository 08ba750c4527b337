//! The images of the catalogue that this host has: their sessions start sooner here than on a host that must pull.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Checked, Here, Snapshot};
use crate::catalogue;
use crate::types::{ImageReference, Workspace};

/// Images that a host publishes at most.
const MAX_IMAGES: usize = 1000;

/// Keeps `publish` true. Ends when the last reader is dropped, or with the owner of the images.
pub fn spawn(
    images: watch::Receiver<Arc<Snapshot>>,
    catalogue: watch::Receiver<Arc<catalogue::Snapshot>>,
    publish: watch::Sender<Arc<Here>>,
) -> JoinHandle<()> {
    tokio::spawn(run(images, catalogue, publish))
}

async fn run(
    mut images: watch::Receiver<Arc<Snapshot>>,
    mut catalogue: watch::Receiver<Arc<catalogue::Snapshot>>,
    publish: watch::Sender<Arc<Here>>,
) {
    loop {
        let found = here(&images.borrow_and_update(), &catalogue.borrow_and_update());
        publish.send_if_modified(|known| {
            let news = **known != found;
            if news {
                *known = Arc::new(found);
            }
            news
        });
        tokio::select! {
            Ok(()) = images.changed() => {}
            Ok(()) = catalogue.changed() => {}
            () = publish.closed() => return,
            else => return,
        }
    }
}

fn here(images: &Snapshot, catalogue: &catalogue::Snapshot) -> Here {
    let named = named(catalogue.workspaces.values().map(|workspace| &**workspace));
    let is_here = |text: String| checked(images, &text).map(|checked| (text, checked));
    named.into_iter().take(MAX_IMAGES).filter_map(is_here).collect()
}

/// The images that the workspaces need. Of a pinned one its tag as well, so that people see whether the tag has moved.
pub(super) fn named<'a>(workspaces: impl Iterator<Item = &'a Workspace>) -> BTreeSet<String> {
    let both = |workspace: &Workspace| [workspace.image_reference(), workspace.image.clone()];
    workspaces.flat_map(both).flatten().collect()
}

/// What its registry last said of an image that is here. `None`: it is not here.
fn checked(images: &Snapshot, text: &str) -> Option<Option<Checked>> {
    let image = ImageReference::parse(text).ok()?;
    let listed = images.meant(&image).filter(|listed| !images.removing.contains(&listed.id))?;
    let fetched = images.fetched(&listed.id, &image);
    Some(fetched.map(|fetched| Checked { digest: fetched.digest.clone(), at: fetched.at.wall }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::ownership::Origin;
    use crate::images::{Records, fake};
    use crate::runtime::images::{ImageDetails, ImageStoreInfo, ListedImage};
    use crate::types::{BootInstant, Bytes, Cores, Moment, Timestamp};

    #[test]
    fn of_a_pinned_workspace_the_digest_and_the_tag_are_told() {
        let mut workspace = Workspace::new("w".parse().unwrap(), Cores::whole(1), Bytes::gib(1));
        assert_eq!(named([&workspace].into_iter()), BTreeSet::new());
        workspace.image = Some("x:1".to_owned());
        assert_eq!(named([&workspace].into_iter()), ["x:1".to_owned()].into());
        let digest = format!("sha256:{}", "0".repeat(64));
        workspace.image_digest = Some(digest.clone());
        assert_eq!(named([&workspace].into_iter()), ["x:1".to_owned(), format!("x@{digest}")].into());
    }

    #[test]
    fn only_an_image_that_a_pull_brought_has_an_answer_of_a_registry() {
        let at = Moment { wall: Timestamp::from_millis(5), boot: BootInstant::from_millis(1), boot_id: 1 };
        let listed = |id: &str, name: &str| ListedImage {
            id: id.to_owned(),
            names: vec![name.to_owned()],
            digests: vec![format!("{}@sha256:ab", name.split(':').next().unwrap())],
            ..ListedImage::default()
        };
        let mut records = Records::default();
        let pulled = ImageReference::parse("pulled:1").unwrap();
        records.begin(&pulled, &fake::place(), &[]);
        let details = ImageDetails { id: "one".to_owned(), ..ImageDetails::default() };
        records.pulled(&pulled, &details, Some("sha256:ab".to_owned()), Origin::Registry, at);
        let snapshot = Snapshot {
            store: Some(ImageStoreInfo { store: fake::place(), path: None }),
            images: Some([listed("one", "pulled:1"), listed("two", "built:1")].into()),
            records: Arc::new(records),
            ..Snapshot::default()
        };
        let expected = Checked { digest: Some("sha256:ab".to_owned()), at: at.wall };
        assert_eq!(checked(&snapshot, "pulled:1"), Some(Some(expected)));
        assert_eq!(checked(&snapshot, "built:1"), Some(None));
        assert_eq!(checked(&snapshot, "absent:1"), None);
        let removing = Snapshot { removing: ["one".to_owned()].into(), ..snapshot };
        assert_eq!(checked(&removing, "pulled:1"), None);
    }
}
