//! The command of the demo's sessions: `ostler demo-page`, which serves a web page about its session.

use std::env;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use crate::clock::Clock;

/// The subcommand that runs this program as a page.
pub const SUBCOMMAND: &str = "demo-page";
/// The port that it listens on in a container.
pub(super) const PORT: u16 = 8080;
/// The environment variable with the port under the process runtime, where all sessions share the host's ports.
const PORT_VARIABLE: &str = "OSTLER_PORT_8080";

/// Connections served at the same time. Browsers open some that they never use.
const WORKERS: usize = 4;
/// How long a connection may stay idle before it is closed to make room for the next.
const SILENCE: Duration = Duration::from_secs(2);
/// Most bytes of a request's head. A browser sends one or two kilobytes.
const MAX_HEAD: usize = 16 << 10;

const TEMPLATE: &str = include_str!("page.html");
/// The placeholders of the template, besides host and time, and the environment variables that fill them.
pub(super) const FIELDS: [(&str, &str); 5] = [
    ("{user}", "PAGE_USER"),
    ("{session}", "PAGE_SESSION"),
    ("{workspace}", "PAGE_WORKSPACE"),
    ("{cores}", "PAGE_CORES"),
    ("{memory}", "PAGE_MEMORY"),
];

/// Serves the page until it is killed.
pub fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Standard error is in the session's log.
            let _ = writeln!(io::stderr(), "the page cannot be served: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let (address, port) = match env::var(PORT_VARIABLE) {
        Ok(port) => (IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().map_err(io::Error::other)?),
        Err(_) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT),
    };
    let listener = TcpListener::bind((address, port))?;
    writeln!(io::stdout(), "serving a page at {}", listener.local_addr()?)?;
    let clock = Clock::system()?;
    let started = clock.now().wall;
    let page = || {
        let variable = |name: &str| env::var(name).unwrap_or_default();
        render(variable, &host_name(), clock.now().wall.since(started))
    };
    thread::scope(|scope| {
        for _ in 1..WORKERS {
            thread::Builder::new().spawn_scoped(scope, || accept(&listener, &page))?;
        }
        accept(&listener, &page);
        Ok(())
    })
}

fn accept(listener: &TcpListener, page: &impl Fn() -> String) {
    for stream in listener.incoming().flatten() {
        // The client may close the connection before the answer.
        let _ = answer(stream, page);
    }
}

fn answer(mut stream: TcpStream, page: &impl Fn() -> String) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let head = read_head(&mut stream)?;
    let (status, body) =
        if head.starts_with(b"GET ") { ("200 OK", page()) } else { ("405 Method Not Allowed", String::new()) };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: {length}\r\n\
         cache-control: no-store\r\nconnection: close\r\n\r\n{body}"
    )
}

fn read_head(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while head.len() < MAX_HEAD && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => head.extend_from_slice(&piece[..length]),
        }
    }
    Ok(head)
}

fn render(variable: impl Fn(&str) -> String, host: &str, up: Duration) -> String {
    let mut page = TEMPLATE.replace("{host}", &escaped(host)).replace("{up}", &up.as_secs().to_string());
    for (place, name) in FIELDS {
        page = page.replace(place, &escaped(&variable(name)));
    }
    page
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_its_user_and_fills_every_placeholder() {
        let page = render(|name| format!("<{name}>"), "desk", Duration::from_secs(7));
        for (place, name) in FIELDS {
            assert!(page.contains(&format!("&lt;{name}&gt;")) && !page.contains(place), "{place}");
        }
        assert!(page.contains("desk") && page.contains('7'));
        assert!(!page.contains("{host}") && !page.contains("{up}"));
        for foreign in ["http://", "https://", "//"] {
            assert!(!page.contains(foreign), "the page fetches nothing from elsewhere: {foreign}");
        }
    }

    #[test]
    fn a_request_that_never_ends_is_cut_off() {
        assert!(read_head(&mut io::repeat(b'x')).unwrap().len() <= MAX_HEAD + 1024);
        assert!(read_head(&mut &b"GET / HT"[..]).is_err());
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\n\r\n"[..]).is_ok());
    }
}
