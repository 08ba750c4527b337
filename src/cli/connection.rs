//! The node to contact and the credentials to use: from flags, environment and the stored login.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use hyper::Uri;

use super::failure::Failure;
use super::login::Login;
use crate::types::{MAX_TOKEN_INPUT, token_text};

/// The socket of this host's agent, unless its configuration names another.
const DEFAULT_SOCKET: &str = "/run/ostler/ostler.sock";

/// The flags that choose the node to contact.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct Connection {
    /// Contact the agent at this unix socket [env: OSTLER_SOCKET] [default: /run/ostler/ostler.sock].
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Contact the node at this URL, for example https://host:7481 [env: OSTLER_NODE].
    #[arg(long, global = true, value_name = "URL")]
    pub(super) node: Option<String>,
    /// Trust the certificates in this PEM file, for https [env: OSTLER_CA].
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// Read the API token from this file; `-` is standard input [env: OSTLER_TOKEN_FILE].
    /// OSTLER_API_TOKEN may hold the token itself; no flag takes it.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Use the flags alone: ignore the environment and the login.
    #[arg(skip)]
    pub(super) isolated: bool,
}

/// What the choice depends on besides the flags.
pub(super) struct Surroundings<'a> {
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    pub(super) login: Option<Login>,
    pub(super) local_agent: bool,
}

/// The node to contact and the credentials to use. No file is read and no connection made yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Choice {
    pub(super) target: Target,
    pub(super) token: Option<Source>,
    pub(super) ca: Option<Source>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Target {
    Socket(PathBuf),
    Url(Url),
}

/// A text, or the file that holds it.
#[derive(Clone, PartialEq)]
pub(super) enum Source {
    File(PathBuf),
    Text(String),
}

/// A node's address: scheme, host and port, without path or query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Connection {
    /// In `session ls --node NAME` a name is a filter. A URL is the node to contact, as in every other command.
    pub(super) fn is_url(node: &str) -> bool {
        node.contains("://")
    }

    /// Chooses by the flags; without them by the environment; without that by the login where this host has no agent,
    /// and the local socket otherwise.
    ///
    /// # Errors
    /// [`Failure::Usage`] if they contradict each other or hold an invalid URL.
    pub(super) fn choose(&self, around: &Surroundings<'_>) -> Result<Choice, Failure> {
        let set = |name: &str| (around.env)(name).filter(|value| !value.is_empty());
        let target = match (&self.socket, &self.node) {
            (Some(_), Some(_)) => {
                return usage("--socket and --node each name a node to contact; use only one of them");
            }
            (Some(socket), None) => Target::Socket(socket.clone()),
            (None, Some(url)) => Target::Url(Url::parse(url)?),
            (None, None) => match (set("OSTLER_SOCKET"), set("OSTLER_NODE")) {
                (Some(_), Some(_)) => return usage("OSTLER_SOCKET and OSTLER_NODE are both set; unset one of them"),
                (Some(socket), None) => Target::Socket(socket.into()),
                (None, Some(url)) => Target::Url(Url::parse(&url)?),
                (None, None) => match &around.login {
                    Some(login) if !around.local_agent => Target::Url(Url::parse(&login.url)?),
                    _ => Target::Socket(DEFAULT_SOCKET.into()),
                },
            },
        };
        let login = around.login.as_ref().filter(|login| match (&target, Url::parse(&login.url)) {
            (Target::Url(url), Ok(known)) => *url == known,
            _ => false,
        });
        let file = |flag: &Option<PathBuf>, name: &str| flag.clone().or_else(|| set(name).map(PathBuf::from));
        Ok(Choice {
            token: file(&self.token_file, "OSTLER_TOKEN_FILE")
                .map(Source::File)
                .or_else(|| set("OSTLER_API_TOKEN").map(Source::Text))
                .or_else(|| login.map(|login| Source::Text(login.token.clone()))),
            ca: file(&self.ca, "OSTLER_CA")
                .map(Source::File)
                .or_else(|| login.and_then(|login| login.ca.clone()).map(Source::Text)),
            target,
        })
    }

    /// Chooses by this process's environment, its user's login and the socket of this host.
    pub(super) fn choose_here(&self) -> Result<Choice, Failure> {
        let env = |name: &str| std::env::var(name).ok().filter(|_| !self.isolated);
        let local_agent = Path::new(DEFAULT_SOCKET).exists();
        // With --socket the login is not needed: it is not read, so that a broken login file does no harm.
        let login = if self.socket.is_none() { Login::load_if_any()? } else { None };
        self.choose(&Surroundings { env: &env, login, local_agent })
    }
}

impl Source {
    /// The token, without a byte order mark and the blanks around it.
    pub(super) fn read_token(&self) -> Result<String, Failure> {
        match self {
            Self::Text(text) => parse_token("the API token", text.as_bytes()),
            Self::File(path) => {
                let content = open(path)
                    .and_then(read_token_input)
                    .map_err(|e| Failure::Failed(format!("the token file {} cannot be read: {e}", path.display())))?;
                parse_token(&format!("token file {}", path.display()), &content)
            }
        }
    }

    /// The PEM text.
    pub(super) fn read_ca(&self) -> Result<String, Failure> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|e| Failure::Failed(format!("the CA file {} cannot be read: {e}", path.display()))),
        }
    }
}

/// Hides the token, so that `{:?}` cannot write it to a log.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Text(_) => f.write_str("Text(…)"),
        }
    }
}

fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    if path == Path::new("-") { Ok(Box::new(io::stdin())) } else { Ok(Box::new(std::fs::File::open(path)?)) }
}

/// Reads what holds a token; of a longer input one byte too many, by which its length is recognised.
pub(super) fn read_token_input(from: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    from.take(u64::try_from(MAX_TOKEN_INPUT + 1).unwrap_or(u64::MAX)).read_to_end(&mut content)?;
    Ok(content)
}

/// The API token that an input holds; `what` names the input in errors.
pub(super) fn parse_token(what: &str, content: &[u8]) -> Result<String, Failure> {
    let token = token_text(content).map_err(|wrong| Failure::Failed(format!("{what}: {wrong}")))?;
    Ok(token.to_owned())
}

impl Url {
    /// # Errors
    /// [`Failure::Usage`] with an example of a node's URL.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = || Failure::Usage(format!("`{text}` is not a node's URL; expected for example https://host:7481"));
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let authority = uri.authority().filter(|authority| bare && !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(wrong)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong());
        }
        Ok(Self { tls, host, port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }) })
    }

    /// Host and port, as in a `Host` header.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether requests stay on this host.
    pub(super) fn is_loopback(&self) -> bool {
        let address: Option<std::net::IpAddr> = self.host.parse().ok();
        self.host == "localhost" || address.is_some_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

fn usage<T>(message: &str) -> Result<T, Failure> {
    Err(Failure::Usage(message.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login { url: "https://far:7481".to_owned(), token: "stored".to_owned(), ca: Some("PEM".to_owned()) }
    }

    fn choose(flags: &Connection, env: &[(&str, &str)], login: Option<Login>, local_agent: bool) -> Choice {
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        flags.choose(&Surroundings { env: &env, login, local_agent }).unwrap()
    }

    #[test]
    fn flags_come_before_environment_before_the_local_agent_before_login() {
        let none = Connection::default();
        let local = Target::Socket(DEFAULT_SOCKET.into());
        let far = Target::Url(Url::parse("https://far:7481").unwrap());
        assert_eq!(choose(&none, &[], None, false).target, local);
        assert_eq!(choose(&none, &[], Some(login()), true).target, local);
        assert_eq!(choose(&none, &[], Some(login()), false).target, far);
        let env = [("OSTLER_SOCKET", "/tmp/s")];
        assert_eq!(choose(&none, &env, Some(login()), false).target, Target::Socket("/tmp/s".into()));
        let flags = Connection { node: Some("http://[::1]:7481".to_owned()), ..none };
        assert_eq!(choose(&flags, &env, Some(login()), true).target.to_string(), "http://[::1]:7481");
    }

    #[test]
    fn a_login_is_used_for_its_own_node_only() {
        let flags = |url: &str| Connection { node: Some(url.to_owned()), ..Connection::default() };
        let same = choose(&flags("https://far:7481/"), &[], Some(login()), true);
        assert_eq!((same.token, same.ca), (Some(Source::Text("stored".into())), Some(Source::Text("PEM".into()))));
        let other = choose(&flags("https://other:7481"), &[], Some(login()), true);
        assert_eq!((other.token, other.ca), (None, None));
        let env = [("OSTLER_API_TOKEN", "env"), ("OSTLER_TOKEN_FILE", "")];
        assert_eq!(
            choose(&flags("https://far:7481"), &env, Some(login()), true).token,
            Some(Source::Text("env".into()))
        );
    }

    #[test]
    fn two_nodes_to_contact_are_rejected() {
        let both = Connection {
            socket: Some("/s".into()),
            node: Some("http://localhost".to_owned()),
            ..Connection::default()
        };
        let around = Surroundings { env: &|_| None, login: None, local_agent: false };
        assert!(matches!(both.choose(&around), Err(Failure::Usage(_))));
    }

    #[test]
    fn a_url_has_a_scheme_a_host_and_a_port_only() {
        let url = Url::parse("https://[fd00::1]:7481/").unwrap();
        assert_eq!((url.host.as_str(), url.authority().as_str()), ("fd00::1", "[fd00::1]:7481"));
        assert_eq!(Url::parse("https://host").unwrap().port, 443);
        for wrong in ["host", "host:7481", "ftp://host", "https://host/v1", "https://u:p@host", "http://", "/run/x"] {
            assert!(matches!(Url::parse(wrong), Err(Failure::Usage(_))), "{wrong}");
        }
        assert!(Url::parse("http://127.0.0.1:1").unwrap().is_loopback());
        assert!(!Url::parse("http://10.0.0.1:1").unwrap().is_loopback());
    }

    #[test]
    fn a_token_is_read_without_its_line_break_and_never_shown() {
        let source = Source::Text("secret\n".to_owned());
        assert_eq!(source.read_token().unwrap(), "secret");
        assert_eq!(Source::Text("\u{feff} secret\r\n".to_owned()).read_token().unwrap(), "secret");
        assert_eq!(format!("{source:?}"), "Text(…)");
        assert!(Source::Text(" \n".to_owned()).read_token().is_err());
        assert!(Source::Text("a\nb".to_owned()).read_token().is_err());
    }
}
