//! A relay between an agent and the container engine, which makes the engine misbehave for chosen calls.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::docker::SOCKET;

/// How often a call that hangs checks whether it still should.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The longest head of a request.
const MAX_HEAD: usize = 64 * 1024;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It has no answer until the fault is gone. Then its connection ends.
    Hang,
    /// The engine's answer is this status and message, and nothing is done.
    Answer(u16, &'static str),
    /// In the engine's answer, the first text becomes the second, which must be as long.
    Rewrite(&'static str, &'static str),
}

#[derive(Default)]
struct State {
    /// Calls of this method whose path contains this text have this fault.
    faults: Vec<(&'static str, String, Fault)>,
    /// The connections of the calls in progress, with their paths.
    open: Vec<(String, UnixStream)>,
    /// The method and path of each call.
    calls: Vec<String>,
}

/// Passes calls on to the engine, one a connection. It ends with the test's process.
pub(crate) struct EngineRelay {
    state: Arc<Mutex<State>>,
    directory: tempfile::TempDir,
}

impl EngineRelay {
    pub(crate) fn start() -> Self {
        Self::to(Path::new(SOCKET.trim_start_matches("unix://")))
    }

    /// A relay to the engine at this socket.
    pub(crate) fn to(engine: &Path) -> Self {
        let relay = Self { state: Arc::default(), directory: tempfile::tempdir().unwrap() };
        let listener = UnixListener::bind(relay.socket()).unwrap();
        let (state, engine) = (Arc::clone(&relay.state), engine.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (state, engine) = (Arc::clone(&state), engine.clone());
                // A connection that breaks is the agent's to notice.
                std::thread::spawn(move || drop(serve(client, &engine, &state)));
            }
        });
        relay
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// The engine's address for `runtime.docker_host`.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// From now on, calls of this method whose path contains `path` have this fault.
    pub(crate) fn on(&self, method: &'static str, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push((method, path.to_owned(), fault));
    }

    /// From now on the engine works.
    pub(crate) fn mend(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// Ends the connections of all calls in progress whose path contains `path`; returns how many there were.
    pub(crate) fn cut(&self, path: &str) -> usize {
        let mut state = self.state.lock().unwrap();
        let (cut, kept) = std::mem::take(&mut state.open).into_iter().partition(|(open, _)| open.contains(path));
        state.open = kept;
        let cut: Vec<(String, UnixStream)> = cut;
        cut.iter().filter(|(_, connection)| connection.shutdown(Shutdown::Both).is_ok()).count()
    }

    /// How many calls so far had this method and a path that contains `path`.
    pub(crate) fn calls(&self, method: &str, path: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.calls.iter().filter(|call| call.starts_with(method) && call.contains(path)).count()
    }
}

fn serve(mut client: UnixStream, engine: &Path, state: &Mutex<State>) -> io::Result<()> {
    let (head, rest) = read_head(&mut client)?;
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    state.lock().unwrap().calls.push(format!("{method} {path}"));
    let fault = fault_of(state, &method, &path);
    match fault {
        Some(Fault::Answer(status, message)) => {
            let body = serde_json::json!({ "message": message }).to_string();
            let head = format!("HTTP/1.1 {status} Fault\r\nContent-Type: application/json\r\nConnection: close\r\n");
            return write!(client, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
        }
        Some(Fault::Hang) => {
            while fault_of(state, &method, &path) == Some(Fault::Hang) {
                std::thread::sleep(LOOK_EVERY);
            }
            return Ok(());
        }
        Some(Fault::Rewrite(..)) | None => {}
    }
    let mut upstream = UnixStream::connect(engine)?;
    // One call a connection, so that every head is seen.
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    upstream.write_all(head.as_bytes())?;
    upstream.write_all(&rest)?;
    state.lock().unwrap().open.push((path, client.try_clone()?));
    let (mut from_client, mut to_engine) = (client.try_clone()?, upstream.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_engine);
        to_engine.shutdown(Shutdown::Both)
    });
    if let Some(Fault::Rewrite(from, to)) = fault {
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        let answer = String::from_utf8(answer).map_err(io::Error::other)?.replace(from, to);
        client.write_all(answer.as_bytes())?;
    } else {
        io::copy(&mut upstream, &mut client)?;
    }
    client.shutdown(Shutdown::Both)
}

fn fault_of(state: &Mutex<State>, method: &str, path: &str) -> Option<Fault> {
    let state = state.lock().unwrap();
    state.faults.iter().find(|(of, part, _)| *of == method && path.contains(part)).map(|(.., fault)| *fault)
}

/// The head of a request, with its empty line, and what came after it.
pub(super) fn read_head(client: &mut impl Read) -> io::Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return String::from_utf8(read).map(|head| (head, rest)).map_err(io::Error::other);
        }
        match client.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if read.len() > MAX_HEAD => return Err(io::ErrorKind::InvalidData.into()),
            n => read.extend_from_slice(&buffer[..n]),
        }
    }
}
