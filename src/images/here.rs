//! The images of the catalogue that this host has: their sessions start sooner here than on a host that must pull.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Snapshot;
use crate::catalogue;
use crate::types::ImageReference;

/// Images that a host publishes at most.
const MAX_IMAGES: usize = 1000;

/// The images, as workspaces name them.
pub type Here = Arc<BTreeSet<String>>;

/// Keeps `publish` true. Ends when the last reader is dropped, or with the owner of the images.
pub fn spawn(
    images: watch::Receiver<Arc<Snapshot>>,
    catalogue: watch::Receiver<Arc<catalogue::Snapshot>>,
    publish: watch::Sender<Here>,
) -> JoinHandle<()> {
    tokio::spawn(run(images, catalogue, publish))
}

async fn run(
    mut images: watch::Receiver<Arc<Snapshot>>,
    mut catalogue: watch::Receiver<Arc<catalogue::Snapshot>>,
    publish: watch::Sender<Here>,
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

fn here(images: &Snapshot, catalogue: &catalogue::Snapshot) -> BTreeSet<String> {
    let named = catalogue.workspaces.values().filter_map(|workspace| workspace.image.as_ref());
    let named: BTreeSet<&String> = named.collect();
    let is_here = |text: &&&String| {
        ImageReference::parse(text)
            .is_ok_and(|image| images.meant(&image).is_some_and(|listed| !images.removing.contains(&listed.id)))
    };
    named.iter().take(MAX_IMAGES).filter(is_here).map(|text| (*text).clone()).collect()
}
