//! The tasks of the owners. None ends while the daemon is well.

use futures_util::future::select_all;
use tokio::task::JoinHandle;

/// The owners by name, in the order of their start.
#[derive(Default)]
pub(super) struct Owners(Vec<(&'static str, JoinHandle<()>)>);

impl Owners {
    /// Watches over an owner that was started, and gives its handle back.
    pub(super) fn add<H>(&mut self, name: &'static str, (handle, task): (H, JoinHandle<()>)) -> H {
        self.0.push((name, task));
        handle
    }

    /// The name of the first owner that ends.
    pub(super) async fn first_to_end(&mut self) -> &'static str {
        let (ended, index, _) = select_all(self.0.iter_mut().map(|(_, task)| task)).await;
        let name = self.0[index].0;
        if let Err(error) = ended {
            tracing::error!(part = name, %error, "a part of the daemon has failed");
        }
        name
    }
}
