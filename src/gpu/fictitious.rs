//! The owner of the fictitious devices of `[dev]`. It reads nothing, and a cordon ends with the agent.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::{Command, Device, Error, Handle, QUEUE, Request, Snapshot};

/// Devices at most; no host has more.
const MAX_DEVICES: u32 = 1024;

/// Starts the owner of so many devices, at most [`MAX_DEVICES`]. It ends when the last handle is gone.
pub fn spawn(count: u32) -> (Handle, JoinHandle<()>) {
    let (requests, queue) = mpsc::channel(QUEUE);
    let (publish, snapshot) = watch::channel(Arc::new(Snapshot::fictitious(count.min(MAX_DEVICES))));
    let handle = Handle { requests, snapshot, look: Arc::new(Notify::new()) };
    (handle, tokio::spawn(run(queue, publish)))
}

async fn run(mut queue: mpsc::Receiver<Request>, publish: watch::Sender<Arc<Snapshot>>) {
    while let Some(Request { uuid, command, by, reply }) = queue.recv().await {
        let mut snapshot = Snapshot::clone(&publish.borrow());
        let changed = change(&mut snapshot.devices, &uuid, command);
        if changed.is_ok() {
            tracing::info!(gpu = %uuid, ?command, %by, "GPU changed");
            publish.send_replace(Arc::new(snapshot));
        }
        // The caller may have gone.
        let _ = reply.send(changed);
    }
}

fn change(devices: &mut [Device], uuid: &str, command: Command) -> Result<(), Error> {
    let device = devices.iter_mut().find(|device| device.uuid == uuid);
    let device = device.ok_or_else(|| Error::NotFound(uuid.to_owned()))?;
    match command {
        Command::Cordon => device.cordoned = true,
        Command::Uncordon => device.cordoned = false,
        Command::Forget => return Err(Error::Present(uuid.to_owned())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Actor;

    #[tokio::test]
    async fn a_device_that_nobody_has_can_be_cordoned() {
        let (gpus, owner) = spawn(2);
        let by = || Actor::Socket { uid: 0 };
        let second = "GPU-dev-0001";
        let cordoned = || gpus.snapshot().devices.iter().map(|device| device.cordoned).collect::<Vec<_>>();
        gpus.command(second, Command::Cordon, by()).await.unwrap();
        assert_eq!(cordoned(), [false, true]);
        gpus.command(second, Command::Uncordon, by()).await.unwrap();
        assert_eq!(cordoned(), [false, false]);
        assert_eq!(gpus.command(second, Command::Forget, by()).await, Err(Error::Present(second.to_owned())));
        assert_eq!(gpus.command("GPU-dev", Command::Cordon, by()).await, Err(Error::NotFound("GPU-dev".to_owned())));
        drop(gpus);
        owner.await.unwrap();
    }

    #[tokio::test]
    async fn there_are_never_more_devices_than_a_host_can_have() {
        assert_eq!(spawn(u32::MAX).0.snapshot().devices.len(), 1024);
    }
}
