//! Finds out when a session can be used: connects to one of its published ports until that succeeds.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::runner::Probe;
use crate::runtime::Run;

/// The pause between two attempts: a desktop starts within seconds.
const PAUSE: Duration = Duration::from_millis(500);
/// The pause once the session is late. The attempts are connections to its port, so that it counts as used until it is
/// ready.
const LATE_PAUSE: Duration = Duration::from_secs(2);
/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection must stay open. The engine's proxy accepts every connection, and closes it at once if nothing
/// listens in the container.
const SETTLED: Duration = Duration::from_millis(200);

/// Probes one run of a session.
pub(super) struct Prober {
    run: Option<Run>,
    begun: Instant,
    next: Instant,
    late: bool,
}

impl Prober {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { run: None, begun: now, next: now, late: false }
    }

    /// Returns once the session can be used, or, once for each run, why it is not after the probe's time. May be
    /// dropped at any point and called again.
    pub(super) async fn news(&mut self, run: Option<&Run>, probe: &Probe, address: IpAddr) -> Result<(), String> {
        if self.run.as_ref() != run {
            *self = Self { run: run.cloned(), ..Self::new() };
        }
        loop {
            sleep_until(self.next).await;
            self.next = Instant::now() + if self.late { LATE_PAUSE } else { PAUSE };
            let attempt = attempt(probe, SocketAddr::new(address, probe.host_port));
            let outcome = timeout(PATIENCE, attempt).await.unwrap_or_else(|_| Err("no answer".to_owned()));
            match outcome {
                Ok(()) => return Ok(()),
                Err(why) if !self.late && self.begun.elapsed() >= probe.patience => {
                    self.late = true;
                    return Err(format!("port {}: {why}", probe.container_port));
                }
                Err(_) => {}
            }
        }
    }
}

async fn attempt(probe: &Probe, address: SocketAddr) -> Result<(), String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    match &probe.path {
        Some(path) => get(stream, address, path).await,
        None => match timeout(SETTLED, stream.read(&mut [0])).await {
            Ok(Ok(0)) => Err("the connection was closed at once".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(_)) | Err(_) => Ok(()),
        },
    }
}

/// Whether a page is there: 2xx and 3xx as for Kubernetes' probes, and 401, since a desktop that asks for its password
/// can be used.
async fn get(stream: TcpStream, address: SocketAddr, path: &str) -> Result<(), String> {
    let wrong = |error: hyper::Error| format!("GET {path}: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(wrong)?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::USER_AGENT, concat!("ostler/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("GET {path}: {error}"))?;
    // A connection that ends has delivered its answer, or its error, to the request.
    let carried = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    let answer = tokio::select! {
        answer = sender.send_request(request) => answer.map_err(wrong)?,
        never = carried => match never {},
    };
    match answer.status() {
        status if status.is_success() || status.is_redirection() || status == StatusCode::UNAUTHORIZED => Ok(()),
        status => Err(format!("GET {path}: {status}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn probe(port: u16, path: Option<&str>, patience: Duration) -> Probe {
        Probe { container_port: 80, host_port: port, path: path.map(str::to_owned), patience }
    }

    /// Answers each connection with this text; closes it at once if there is none.
    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if !answer.is_empty() {
                    let _ = stream.read(&mut [0; 1024]).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });
        port
    }

    async fn attempted(port: u16, path: Option<&str>) -> Result<(), String> {
        attempt(&probe(port, path, PATIENCE), (LOCAL, port).into()).await
    }

    #[tokio::test]
    async fn a_connection_that_stays_open_is_ready_and_one_that_is_closed_at_once_is_not() {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        assert_eq!(attempted(listener.local_addr().unwrap().port(), None).await, Ok(()));
        assert!(attempted(server("").await, None).await.unwrap_err().contains("closed at once"));
        drop(listener);
    }

    #[tokio::test]
    async fn a_page_is_ready_unless_its_status_says_that_it_is_not() {
        for (answer, ready) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.0 302 Found\r\nlocation: /x\r\n\r\n", true),
            ("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false),
            ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", false),
            ("SSH-2.0-x\r\n", false),
        ] {
            assert_eq!(attempted(server(answer).await, Some("/x")).await.is_ok(), ready, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_session_that_is_late_is_told_once_and_probed_on() {
        let port = server("").await;
        let mut prober = Prober::new();
        let late = probe(port, None, Duration::ZERO);
        let run = Run("1".to_owned());
        let why = prober.news(Some(&run), &late, LOCAL).await.unwrap_err();
        assert_eq!(why, "port 80: the connection was closed at once");
        let again = timeout(LATE_PAUSE * 2, prober.news(Some(&run), &late, LOCAL)).await;
        assert!(again.is_err(), "{again:?}");
        let other = Run("2".to_owned());
        assert!(prober.news(Some(&other), &late, LOCAL).await.is_err(), "the next run is another");
    }
}
