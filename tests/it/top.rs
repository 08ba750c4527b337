//! `ostler top` on a terminal of its own.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::agent::{Agent, until};

/// `ostler top` under `script`, which gives it a terminal.
struct Top {
    child: Child,
    shown: Arc<Mutex<String>>,
}

impl Top {
    /// `None`, after printing SKIPPED, on a machine without `script`.
    fn start(test: &str, agent: &Agent) -> Option<Self> {
        let top =
            format!("echo pid=$$; exec {} top --socket {}", env!("CARGO_BIN_EXE_ostler"), agent.socket().display());
        let child = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", &top, "/dev/null"])
            .env("TERM", "xterm")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            crate::support::skip(test, "script");
            return None;
        };
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut stdout, into) = (child.stdout.take().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut piece) {
                into.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..n]));
            }
        });
        Some(Self { child, shown })
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    fn shows(&self, text: &str) {
        until(text, || self.shown().contains(text));
    }

    fn press(&mut self, key: &str) {
        self.child.stdin.as_mut().unwrap().write_all(key.as_bytes()).unwrap();
    }

    /// The exit status, and the output that must restore the terminal.
    fn end(mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        until("the terminal is restored", || self.shown().contains("\x1b[?25h\x1b[?1049l"));
        status
    }
}

#[test]
fn top_shows_the_cluster_and_restores_the_terminal() {
    let name = "top_shows_the_cluster_and_restores_the_terminal";
    let mut agent = Agent::start("");
    let Some(mut top) = Top::start(name, &agent) else { return };
    top.shows("Needs a hand");
    top.press("2");
    top.shows("10 min");
    top.press("3");
    top.shows("Every session is running.");
    agent.kill9();
    top.shows("no answer: shown as of");
    agent.up();
    top.press("q");
    assert_eq!(top.end().code(), Some(0));

    // Ctrl-C, as the terminal sends it.
    let mut top = Top::start(name, &agent).unwrap();
    top.shows("Needs a hand");
    top.press("\x03");
    assert_eq!(top.end().code(), Some(130));

    let top = Top::start(name, &agent).unwrap();
    top.shows("Needs a hand");
    let shown = top.shown();
    let pid = shown.split_once("pid=").unwrap().1.split_whitespace().next().unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(top.end().code(), Some(0));
}

#[test]
fn top_without_a_terminal_prints_one_frame_only() {
    let agent = Agent::start("");
    assert!(agent.cli(&["top"]).failed(2).contains("ostler top --once"));
    let frame = agent.cli(&["top", "--once"]).ok();
    assert!(frame.contains("Needs a hand") && !frame.contains('\x1b'), "{frame}");
    assert!(agent.cli(&["top", "--once", "--view", "2"]).ok().contains("10 min"));
    let tcp = format!("http://{}", agent.tcp_address());
    let token = agent.token("read");
    let over_tcp =
        agent.cli_with(&["top", "--once", "--node", &tcp], &[("OSTLER_API_TOKEN", &token), ("OSTLER_SOCKET", "")], "");
    assert!(over_tcp.ok().contains("Room"));
}
