//! `ostler login` and `logout`: the stored login of this user to a remote cluster.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::connection::{Choice, Connection, Source, Target, Url, parse_token, read_token_input};
use super::failure::Failure;
use super::output::{Output, note};
use super::route::Route;
use super::status::Status;

/// Store a cluster's URL and an API token, for commands on hosts without an agent.
///
/// Reads the token from --token-file, or from standard input, with a prompt on a terminal; no
/// argument takes the token itself. Checks it against the node, and stores it with the CA in
/// $XDG_CONFIG_HOME/ostler/login.toml, which only you can read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler login https://host-a:7481 --ca ca.pem
  ostler login https://host-a:7481 --ca ca.pem --token-file - < token")]
pub(super) struct LoginArgs {
    /// URL of a node of the cluster, for example https://host:7481.
    url: String,
}

/// A cluster that this user has logged in to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    pub(super) url: String,
    pub(super) token: String,
    /// PEM. A copy, so that the original file may be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ca: Option<String>,
}

pub(super) async fn login(args: &LoginArgs, connection: &Connection, out: &Output) -> Result<(), Failure> {
    let url = Url::parse(&args.url)?;
    let ca = connection.ca.clone().map(Source::File).map(|source| source.read_ca()).transpose()?;
    let token = match &connection.token_file {
        Some(file) => Source::File(file.clone()).read_token()?,
        None => ask_token().await?,
    };
    warn_of_clear_text(&url);
    let choice = Choice {
        target: Target::Url(url.clone()),
        token: Some(Source::Text(token.clone())),
        ca: ca.clone().map(Source::Text),
    };
    let status: Status = Client::new(&choice)?.get(Route::new(&["status"])).await?.read()?;
    let path = Login::path()?;
    Login { url: url.to_string(), token, ca }.save(&path)?;
    out.note(format!("Logged in to cluster {} at {url}; stored in {}.", status.cluster.name, path.display()));
    Ok(())
}

pub(super) fn logout(out: &Output) -> Result<(), Failure> {
    let path = Login::path()?;
    match fs::remove_file(&path) {
        Ok(()) => out.note(format!("Removed {}. The token stays valid until it is revoked.", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => out.note("There is no stored login."),
        Err(e) => return Err(Failure::Failed(format!("{} cannot be removed: {e}", path.display()))),
    }
    Ok(())
}

/// Warns before a token is sent in clear text, which any host on the network path can read.
pub(super) fn warn_of_clear_text(url: &Url) {
    if !url.tls && !url.is_loopback() {
        note(format!("warning: {url} is not encrypted, so others on the network can read the token; use https"));
    }
}

impl Login {
    /// The stored login, if there is one.
    pub(super) fn load_if_any() -> Result<Option<Self>, Failure> {
        // Without a home directory there is no login file.
        match Self::path() {
            Ok(path) => Self::load(&path),
            Err(_) => Ok(None),
        }
    }

    fn path() -> Result<PathBuf, Failure> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = set("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
        let config = config.or_else(|| set("HOME").map(|home| home.join(".config")));
        let config = config.ok_or_else(|| Failure::Failed("neither XDG_CONFIG_HOME nor HOME is set".to_owned()))?;
        Ok(config.join("ostler").join("login.toml"))
    }

    fn load(path: &Path) -> Result<Option<Self>, Failure> {
        let wrong = |e: &dyn std::fmt::Display| {
            Failure::Failed(format!(
                "the login {} cannot be read: {e}; to remove it, run: ostler logout",
                path.display()
            ))
        };
        match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map(Some).map_err(|e| wrong(&e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(wrong(&e)),
        }
    }

    /// Creates a new file with mode 0600, writes it, and renames it over the old one.
    fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self).map_err(|e| Failure::Failed(format!("cannot encode the login: {e}")))?;
        let write = || {
            if let Some(folder) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            let new = path.with_extension("toml.new");
            match fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)
        };
        write().map_err(|e| Failure::Failed(format!("the login {} cannot be written: {e}", path.display())))
    }
}

/// Reads the token from standard input: from a terminal one line, with a prompt and without echo.
async fn ask_token() -> Result<String, Failure> {
    let is_terminal = io::stdin().is_terminal();
    let quiet = if is_terminal {
        let _ = write!(io::stderr(), "API token: ");
        QuietTerminal::new()
    } else {
        None
    };
    let read = tokio::task::spawn_blocking(move || {
        let mut input = io::stdin().lock();
        // A terminal's input does not end with the line; its driver bounds the line.
        let mut line = Vec::new();
        if is_terminal { input.read_until(b'\n', &mut line).map(|_| line) } else { read_token_input(input) }
    });
    let content = read.await.map_err(|e| Failure::Failed(e.to_string()))?;
    if quiet.is_some() {
        note("");
    }
    let content = content.map_err(|e| Failure::Failed(format!("the token cannot be read: {e}")))?;
    parse_token("standard input", &content)
}

/// Keeps the terminal's echo off until it is dropped: when the line is read, or on Ctrl-C.
struct QuietTerminal(Termios);

impl QuietTerminal {
    fn new() -> Option<Self> {
        let loud = tcgetattr(io::stdin()).ok()?;
        let mut quiet = loud.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet).ok()?;
        Some(Self(loud))
    }
}

impl Drop for QuietTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_its_user_can_read_a_stored_login() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ostler/login.toml");
        assert!(Login::load(&path).unwrap().is_none());
        let login = Login { url: "https://a:7481".into(), token: "t".into(), ca: Some("-----\nx\n".into()) };
        login.save(&path).unwrap();
        let again = Login { ca: None, ..login };
        again.save(&path).unwrap();
        assert!(Login::load(&path).unwrap().unwrap() == again);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "url = 1").unwrap();
        assert!(Login::load(&path).is_err());
    }
}
