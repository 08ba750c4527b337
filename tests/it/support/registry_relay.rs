//! A relay in front of a registry, which makes the registry misbehave for chosen requests.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::engine_relay::read_head;

/// How often a request that hangs checks whether it still should.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The first byte of a client that tries TLS.
const TLS: u8 = 0x16;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The answer is this status, with this body.
    Answer(u16, &'static str),
    /// After so many bytes of the answer nothing comes until the fault is gone. Then the connection ends.
    Stall(usize),
    /// The connection ends after so many bytes of the answer, once.
    CutOnce(usize),
}

#[derive(Default)]
struct State {
    /// Requests whose path contains this text have this fault.
    faults: Vec<(String, Fault)>,
    /// The method and path of each request.
    requests: Vec<String>,
}

/// Passes requests on to a registry, one a connection. It ends with the test's process.
pub(crate) struct RegistryRelay {
    state: Arc<Mutex<State>>,
    port: u16,
}

impl RegistryRelay {
    /// A relay to the registry at this port of loopback.
    pub(crate) fn to(registry: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self { state: Arc::default(), port: listener.local_addr().unwrap().port() };
        let state = Arc::clone(&relay.state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&state);
                // A connection that breaks is the engine's to notice.
                std::thread::spawn(move || drop(serve(client, registry, &state)));
            }
        });
        relay
    }

    /// The reference of an image, as it is behind the relay.
    pub(crate) fn reference(&self, image: &str) -> String {
        let (_, path) = image.split_once('/').unwrap();
        format!("127.0.0.1:{}/{path}", self.port)
    }

    /// From now on, requests whose path contains `path` have this fault.
    pub(crate) fn on(&self, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push((path.to_owned(), fault));
    }

    /// From now on the registry works.
    pub(crate) fn mend(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// How many requests so far had a path that contains `path`.
    pub(crate) fn requests(&self, path: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|request| request.contains(path)).count()
    }
}

fn serve(mut client: TcpStream, registry: u16, state: &Mutex<State>) -> io::Result<()> {
    let mut first = [0];
    if client.peek(&mut first)? == 0 || first[0] == TLS {
        return client.shutdown(Shutdown::Both);
    }
    let (head, rest) = read_head(&mut client)?;
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    state.lock().unwrap().requests.push(head.lines().next().unwrap_or_default().to_owned());
    let fault = take_fault(state, &path);
    if let Some(Fault::Answer(status, body)) = fault {
        let head = format!("HTTP/1.1 {status} Fault\r\nContent-Type: application/json\r\nConnection: close\r\n");
        return write!(client, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", registry))?;
    // One request a connection, so that every head is seen.
    upstream.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
    upstream.write_all(&rest)?;
    match fault {
        Some(Fault::Stall(bytes)) => {
            copy(&mut upstream, &mut client, bytes)?;
            while take_fault(state, &path).is_some() {
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Some(Fault::CutOnce(bytes)) => copy(&mut upstream, &mut client, bytes)?,
        Some(Fault::Answer(..)) | None => drop(io::copy(&mut upstream, &mut client)?),
    }
    client.shutdown(Shutdown::Both)
}

fn copy(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) -> io::Result<()> {
    io::copy(&mut from.take(u64::try_from(bytes).unwrap()), to).map(drop)
}

/// The fault of this path. One that happens once is gone then.
fn take_fault(state: &Mutex<State>, path: &str) -> Option<Fault> {
    let mut state = state.lock().unwrap();
    let at = state.faults.iter().position(|(part, _)| path.contains(part.as_str()))?;
    let (_, fault) = state.faults[at];
    if matches!(fault, Fault::CutOnce(_)) {
        state.faults.remove(at);
    }
    Some(fault)
}
