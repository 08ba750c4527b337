//! A container engine that only says what a test wants of its versions and of itself.

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::engine_relay::read_head;

/// What it answers to `/version` and `/info`.
struct Says {
    version: Value,
    info: Value,
}

/// An engine on a socket of its own. It ends with the test's process.
pub(crate) struct FakeEngine {
    says: Arc<Mutex<Says>>,
    directory: tempfile::TempDir,
}

impl FakeEngine {
    /// Docker of this version, whose API goes from 1.24 to `api`.
    pub(crate) fn start(version: &str, api: &str) -> Self {
        let engine = Self { says: Arc::new(Mutex::new(says(version, api))), directory: tempfile::tempdir().unwrap() };
        let listener = UnixListener::bind(engine.socket()).unwrap();
        let says = Arc::clone(&engine.says);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let says = Arc::clone(&says);
                // A connection that breaks is the agent's to notice.
                std::thread::spawn(move || drop(serve(client, &says)));
            }
        });
        engine
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// The engine's address for `runtime.docker_host`.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// From now on it is of this version.
    pub(crate) fn upgrade(&self, version: &str, api: &str) {
        *self.says.lock().unwrap() = says(version, api);
    }

    /// Changes what it says of its API, as `MinAPIVersion`, or of itself, as `CDISpecDirs`.
    pub(crate) fn set(&self, of: &str, key: &str, value: Value) {
        let says = &mut *self.says.lock().unwrap();
        let answer = if of == "version" { &mut says.version } else { &mut says.info };
        answer[key] = value;
    }
}

fn says(version: &str, api: &str) -> Says {
    Says {
        version: json!({ "Version": version, "ApiVersion": api, "MinAPIVersion": "1.24" }),
        info: json!({ "ServerVersion": version, "NCPU": 4, "MemTotal": 8_u64 << 30, "OSType": "linux" }),
    }
}

fn serve(mut client: UnixStream, says: &Mutex<Says>) -> io::Result<()> {
    let (head, _) = read_head(&mut client)?;
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let (status, body) = match says.lock() {
        Ok(says) if path.ends_with("/version") => (200, says.version.to_string()),
        Ok(says) if path.ends_with("/info") => (200, says.info.to_string()),
        _ => (404, json!({ "message": "no such object" }).to_string()),
    };
    let head = format!("HTTP/1.1 {status} Fake\r\nContent-Type: application/json\r\nConnection: close\r\n");
    write!(client, "{head}Content-Length: {}\r\n\r\n{body}", body.len())
}
