//! `ostler login` and `logout`: a remote cluster, remembered for this user.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::connection::{Choice, Connection, Source, Target, Url};
use super::failure::Failure;
use super::output::{Output, note};
use super::route::Route;
use super::status::Status;

/// Tokens are shorter than a hundred bytes: more is a mistake.
const MAX_TOKEN: u64 = 4096;

/// Remember a cluster and an API token, for commands run where no agent is.
///
/// The token is read from --token-file, else from standard input, else asked for; it is never an
/// argument. It is checked against the node and then stored, with the CA, in
/// $XDG_CONFIG_HOME/ostler/login.toml, which only you can read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler login https://host-a:7481 --ca ca.pem
  ostler login https://host-a:7481 --ca ca.pem --token-file - < token")]
pub(super) struct LoginArgs {
    /// A node of the cluster, as https://host:7481.
    url: String,
}

/// A cluster that this user has logged in to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    pub(super) url: String,
    pub(super) token: String,
    /// PEM; a copy, so that the file it came from may go.
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
        Ok(()) => out.note(format!("Removed {}. The token itself lives until it is revoked.", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => out.note("There was no login."),
        Err(e) => return Err(Failure::Failed(format!("{} cannot be removed: {e}", path.display()))),
    }
    Ok(())
}

/// A token in clear text is anybody's on the way.
pub(super) fn warn_of_clear_text(url: &Url) {
    if !url.tls && !url.is_loopback() {
        note(format!("caution: {url} is not encrypted: whoever is on the way can read the token; use https"));
    }
}

impl Login {
    /// The login, where there is one.
    pub(super) fn load_if_any() -> Result<Option<Self>, Failure> {
        // Without a home there is nowhere to look.
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
            Failure::Failed(format!("the login {} cannot be read: {e}; `ostler logout` removes it", path.display()))
        };
        match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map(Some).map_err(|e| wrong(&e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(wrong(&e)),
        }
    }

    /// Writes a new file, mode 0600 from its first byte, and puts it in the old one's place.
    fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self).map_err(|e| Failure::Failed(format!("the login has no TOML: {e}")))?;
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
        write().map_err(|e| Failure::Failed(format!("the login {} cannot be stored: {e}", path.display())))
    }
}

/// Reads the token from standard input; a person is asked, and does not see it typed.
async fn ask_token() -> Result<String, Failure> {
    let quiet = if io::stdin().is_terminal() {
        let _ = write!(io::stderr(), "API token: ");
        QuietTerminal::new()
    } else {
        None
    };
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().take(MAX_TOKEN).read_line(&mut line).map(|_| line)
    });
    let line = read.await.map_err(|e| Failure::Failed(e.to_string()))?;
    if quiet.is_some() {
        note("");
    }
    let line = line.map_err(|e| Failure::Failed(format!("no token could be read: {e}")))?;
    Source::Text(line).read_token()
}

/// The terminal without its echo, until it is dropped: when the line is read, or by Ctrl-C.
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
    fn a_login_is_stored_for_its_user_alone() {
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
