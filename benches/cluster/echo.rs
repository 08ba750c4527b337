//! A bare exchange over QUIC, to see what network and encryption cost without ostler.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls::pki_types::PrivatePkcs8KeyDer;
use quinn::rustls::{self, RootCertStore};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};
use tokio::time::Instant;

const NAME: &str = "echo";
/// About as large as the request that the exchange is compared with.
const MESSAGE: [u8; 256] = [7; 256];

/// A connection to a server on another thread, which sends every message back.
pub(crate) struct Echo {
    connection: Connection,
    /// Dropping it closes the connection.
    _endpoint: Endpoint,
}

impl Echo {
    pub(crate) async fn start() -> Result<Self> {
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into();
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)?;
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone())?;
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
        let (told, address) = std::sync::mpsc::channel();
        thread::spawn(move || serve(server, &told));
        let address = address.recv()?;
        let mut endpoint = Endpoint::client(anywhere())?;
        endpoint.set_default_client_config(ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?)));
        let connection = endpoint.connect(address, NAME)?.await?;
        Ok(Self { connection, _endpoint: endpoint })
    }

    /// The time of one message and its answer, on a new stream.
    pub(crate) async fn exchange(&self) -> Result<Duration> {
        let started = Instant::now();
        let (mut send, mut receive) = self.connection.open_bi().await?;
        send.write_all(&MESSAGE).await?;
        send.finish()?;
        let answer = receive.read_to_end(MESSAGE.len()).await?;
        let took = started.elapsed();
        ensure!(answer == MESSAGE, "the answer is not the message");
        Ok(took)
    }
}

/// Answers one connection until it is closed.
fn serve(config: ServerConfig, told: &std::sync::mpsc::Sender<SocketAddr>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoint = Endpoint::server(config, anywhere())?;
        told.send(endpoint.local_addr()?)?;
        let connection = endpoint.accept().await.context("no connection came")?.await?;
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            let message = receive.read_to_end(MESSAGE.len()).await?;
            send.write_all(&message).await?;
            send.finish()?;
        }
        Ok(())
    })
}

fn anywhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}
