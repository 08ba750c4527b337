//! What one benchmark needs in the Docker engine: an image and a cluster's name. Nothing is left behind.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use bollard::Docker;
use serde_json::{Value, json};

/// A static program to create an image from, without a registry.
const BUSYBOX: &str = "/bin/busybox";
pub(crate) const WORKSPACE: &str = "bench";

/// An image, and a cluster's name of our own. Dropping it removes everything that was created for the cluster.
pub(crate) struct Lab {
    pub(crate) cluster: String,
    pub(crate) image: String,
}

impl Lab {
    /// `None` if there is no engine or no `/bin/busybox`.
    pub(crate) async fn open() -> Result<Option<Self>> {
        let Ok(docker) = Docker::connect_with_unix_defaults() else { return Ok(None) };
        if docker.ping().await.is_err() || !Path::new(BUSYBOX).exists() {
            return Ok(None);
        }
        let cluster = format!("bench-{}", std::process::id());
        let image = format!("ostler-{cluster}:1");
        import_busybox(&image)?;
        Ok(Some(Self { cluster, image }))
    }

    /// A small session that does nothing, and ends at once on a stop.
    pub(crate) fn workspace(&self) -> Value {
        json!({
            "name": WORKSPACE, "image": self.image, "pull": "missing", "command": ["sleep", "86400"],
            "cores": 0.5, "memory_bytes": "32MiB", "shm_bytes": "16MiB",
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for prefix in ["raw", "ostler"] {
            let of_ours = format!("name={prefix}-{}", self.cluster);
            for id in lines(&["ps", "--all", "--quiet", "--filter", &of_ours]) {
                quietly(&["rm", "--force", "--volumes", &id]);
            }
        }
        quietly(&["network", "rm", &format!("ostler-{}", self.cluster)]);
        quietly(&["rmi", "--force", &self.image]);
    }
}

fn import_busybox(image: &str) -> Result<()> {
    let root = tempfile::tempdir()?;
    std::fs::create_dir(root.path().join("bin"))?;
    std::fs::copy(BUSYBOX, root.path().join("bin/busybox"))?;
    symlink("busybox", root.path().join("bin/sleep"))?;
    let mut tar = Command::new("tar").arg("-C").arg(root.path()).args(["-c", "."]).stdout(Stdio::piped()).spawn()?;
    let archive = tar.stdout.take().context("its output is a pipe")?;
    let imported = Command::new("docker").args(["import", "-", image]).stdin(archive).stdout(Stdio::null()).status()?;
    ensure!(tar.wait()?.success() && imported.success(), "cannot create image {image}");
    Ok(())
}

fn lines(arguments: &[&str]) -> Vec<String> {
    let output = Command::new("docker").args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Runs docker to clean up, and ignores errors: the object may be gone already.
fn quietly(arguments: &[&str]) {
    let _ = Command::new("docker").args(arguments).output();
}
