//! Asks an address whether a node of this cluster is there, and leaves nothing behind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use quinn::VarInt;
use tokio::time::timeout;

use super::Cause;
use super::endpoint::client_config;
use super::path::Prober;
use super::pool::HANDSHAKE;
use crate::identity::Credentials;
use crate::types::Timestamp;

/// The code that closes a connection that was made to see that it can be.
pub(super) const PROBED: VarInt = VarInt::from_u32(6);
/// How long the close message may take to be sent.
const FAREWELL: Duration = Duration::from_millis(200);

/// Why a handshake did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreached {
    pub cause: Cause,
    /// The key id that the other side's certificate names, which nobody has checked; `None`: there was no certificate.
    pub key_id: Option<String>,
}

/// Shakes hands with whoever is at an address, from a port of its own, and hangs up without a hello: the other side learns
/// of no node. Returns how long the handshake took. It proves that both sides have the same token, and takes
/// [`HANDSHAKE`] at most.
///
/// # Errors
/// There is no answer, or the other side has another token, or a clock is wrong; `now` is what the clock shows.
pub async fn probe(address: SocketAddr, credentials: &Credentials, now: Timestamp) -> Result<Duration, Unreached> {
    let (credentials, noted) = credentials.noting();
    dial(address, &credentials, now).await.map_err(|cause| Unreached { cause, key_id: noted.key_id() })
}

async fn dial(address: SocketAddr, credentials: &Credentials, now: Timestamp) -> Result<Duration, Cause> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let endpoint = quinn::Endpoint::client(SocketAddr::new(any, 0)).map_err(|_| Cause::NoAddress)?;
    let config = client_config(credentials)?;
    let mut prober = Prober::new(any, address);
    let began = Instant::now();
    let dial = async { Ok(endpoint.connect_with(config, address, Credentials::SERVER_NAME)?.await?) };
    let dialled = tokio::select! {
        dialled = timeout(HANDSHAKE, dial) => dialled,
        never = prober.run() => match never {},
    };
    let connection: quinn::Connection = match dialled {
        Ok(dialled) => dialled.map_err(|cause: Cause| cause.explained(now))?,
        Err(_) if prober.is_narrow() => return Err(Cause::NarrowPath(address)),
        Err(_) => return Err(Cause::NoHello),
    };
    let took = began.elapsed();
    connection.close(PROBED, b"probed");
    let _ = timeout(FAREWELL, endpoint.wait_idle()).await;
    Ok(took)
}
