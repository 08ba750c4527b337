//! A small HTTP client that shares no code with the program, and can send invalid requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take, including held answers.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where an agent listens.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    Socket(PathBuf),
    /// `127.0.0.1:PORT`
    Tcp(String),
}

/// Sends requests, each on its own connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) address: Address,
    pub(crate) token: Option<String>,
}

/// One request as it is sent. Headers that are not set here are not sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.text("application/json", &body.to_string())
    }

    pub(crate) fn text(self, content_type: &str, body: &str) -> Self {
        self.bytes(content_type, body.as_bytes())
    }

    pub(crate) fn bytes(mut self, content_type: &str, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self.header("content-type", content_type)
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name))
    }
}

impl Client {
    pub(crate) fn get(&self, path: &str) -> Response {
        self.send(&Request::new("GET", path))
    }

    pub(crate) fn delete(&self, path: &str) -> Response {
        self.send(&Request::new("DELETE", path))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.send(&Request::new("POST", path).json(body))
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Response {
        self.send(&Request::new("PUT", path).json(body))
    }

    pub(crate) fn patch(&self, path: &str, body: &Value) -> Response {
        self.send(&Request::new("PATCH", path).json(body))
    }

    /// A `POST` without a body, as commands on sessions are.
    pub(crate) fn command(&self, path: &str) -> Response {
        self.send(&Request::new("POST", path))
    }

    pub(crate) fn send(&self, request: &Request) -> Response {
        self.try_send(request).unwrap_or_else(|e| panic!("{} {}: {e}", request.method, request.path))
    }

    /// The answer, or why there was none: for example, the agent was killed.
    pub(crate) fn try_send(&self, request: &Request) -> std::io::Result<Response> {
        let answer = self.exchange(&self.message(request))?;
        Response::parse(&answer)
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "incomplete answer"))
    }

    /// Sends a request, and gives the lines of its answer as they come, from the status line on.
    pub(crate) fn lines(&self, request: &Request) -> impl Iterator<Item = String> + use<> {
        let mut stream = self.connect().unwrap();
        stream.write_all(&self.message(request)).unwrap();
        BufReader::new(stream).lines().map(Result::unwrap)
    }

    fn message(&self, request: &Request) -> Vec<u8> {
        let mut message = format!("{} {} HTTP/1.1\r\nconnection: close\r\n", request.method, request.path);
        if !request.has("host") {
            let host = match &self.address {
                Address::Tcp(address) => address,
                Address::Socket(_) => "localhost",
            };
            message += &format!("host: {host}\r\n");
        }
        if let Some(token) = self.token.as_ref().filter(|_| !request.has("authorization")) {
            message += &format!("authorization: Bearer {token}\r\n");
        }
        if !request.has("content-length") && (!request.body.is_empty() || request.has("content-type")) {
            message += &format!("content-length: {}\r\n", request.body.len());
        }
        for (name, value) in &request.headers {
            message += &format!("{name}: {value}\r\n");
        }
        message += "\r\n";
        let mut message = message.into_bytes();
        message.extend_from_slice(&request.body);
        message
    }

    /// Sends these bytes on a connection, and reads everything that comes until its end.
    pub(crate) fn exchange(&self, message: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = self.connect()?;
        // A server may answer and hang up before it has read everything: its answer counts.
        let sent = stream.write_all(message);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if answer.is_empty() => return Err(error),
            _ => {}
        }
        if answer.is_empty() {
            sent?;
        }
        Ok(answer)
    }

    fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        match &self.address {
            Address::Socket(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
        }
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Response {
    /// The whole answer, or `None` if it was cut off.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = find(bytes, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Self { status, headers, body: bytes[end + 4..].to_vec() };
        if answer.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            answer.body = unchunk(&answer.body)?;
        } else if let Some(length) = answer.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
            answer.body.get(..length)?;
        }
        Some(answer)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, which must be JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{}: {e} in: {}", self.status, self.text()))
    }

    /// The body of an answer that must have this status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    /// The `error` of an answer that must have this status and code.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) -> Value {
        let error = self.expect(status)["error"].clone();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        error
    }
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = find(bytes, b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).ok()?.trim(), 16).ok()?;
        bytes = &bytes[line + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
