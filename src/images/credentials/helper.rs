//! The helpers: programs that keep credentials, `docker-credential-NAME`.
//!
//! A helper gets the name of the registry on its standard input, and answers with JSON. Nothing is passed through a shell.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Error, is_trusted};
use crate::runtime::images::{Identity, Login};

/// What a helper's file is called before its name.
const PREFIX: &str = "docker-credential-";
/// How long a helper may take: some ask a service in a cloud.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of the longest answer. Tokens of clouds have up to 4 KiB.
const MAX_ANSWER: u64 = 64 << 10;
/// What a helper answers, with an exit code other than 0, if it has no credentials for a registry.
const NONE: &str = "credentials not found";
const EXECUTABLE: u32 = 0o111;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Why a helper gave no credentials. What it wrote is not told: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Late,
    Long,
    /// With its exit code, if it was not killed.
    Failed(Option<i32>),
    Odd,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => write!(f, "no answer within {} s", DEADLINE.as_secs()),
            Self::Long => write!(f, "its answer has more than {} KiB", MAX_ANSWER >> 10),
            Self::Failed(Some(code)) => write!(f, "it ended with exit code {code}"),
            Self::Failed(None) => write!(f, "it was killed"),
            Self::Odd => write!(f, "its answer is not JSON with Username and Secret"),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The helper's file: the first of its name in PATH. The name is one that [`Credentials`](super::choose::Credentials)
/// allows.
pub(super) fn find(name: &str) -> Result<PathBuf, Error> {
    find_in(&std::env::var_os("PATH").unwrap_or_default(), name)
}

fn find_in(path: &OsStr, name: &str) -> Result<PathBuf, Error> {
    let program = format!("{PREFIX}{name}");
    // A relative directory would depend on where the agent was started.
    let files = std::env::split_paths(path).filter(|folder| folder.is_absolute()).map(|folder| folder.join(&program));
    for file in files {
        let Ok(found) = std::fs::metadata(&file) else { continue };
        if !found.is_file() || found.mode() & EXECUTABLE == 0 {
            continue;
        }
        if !is_trusted(found.uid()) {
            return Err(Error::HelperOwner { file, owner: found.uid() });
        }
        if found.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(Error::HelperExposed { file, mode: found.mode() & 0o7777 });
        }
        return Ok(file);
    }
    Err(Error::NoHelper(program))
}

/// Asks the helper about a registry; `None`: it has no credentials for it.
pub(super) async fn ask(file: &Path, server: String) -> Result<Option<Login>, Error> {
    let failed = |source| Error::HelperFailed { file: file.to_owned(), source };
    let mut child = Command::new(file)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // It may write secrets there.
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let answered = timeout(DEADLINE, converse(&mut child, &server)).await;
    let answer = answered.unwrap_or(Ok(Err(Why::Late))).map_err(failed)?;
    match answer {
        Ok(Some((user, secret))) => Ok(Some(Login { server, identity: Identity::of(user, secret) })),
        Ok(None) => Ok(None),
        Err(why) => Err(Error::NoAnswer { file: file.to_owned(), server, why }),
    }
}

type Told = Result<Option<(String, String)>, Why>;

async fn converse(child: &mut Child, server: &str) -> std::io::Result<Told> {
    if let Some(mut input) = child.stdin.take() {
        // One that does not read it answers all the same, or fails.
        let _ = input.write_all(format!("{server}\n").as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(MAX_ANSWER + 1).read_to_end(&mut answer).await?;
    }
    if u64::try_from(answer.len()).unwrap_or(u64::MAX) > MAX_ANSWER {
        return Ok(Err(Why::Long));
    }
    let status = child.wait().await?;
    Ok(read(status.success(), status.code(), &answer))
}

fn read(did_well: bool, code: Option<i32>, answer: &[u8]) -> Told {
    if !did_well {
        let has_none = String::from_utf8_lossy(answer).trim_start().starts_with(NONE);
        return if has_none { Ok(None) } else { Err(Why::Failed(code)) };
    }
    let Answer { username, secret } = serde_json::from_slice(answer).map_err(|_| Why::Odd)?;
    Ok(Some((username, secret)).filter(|(user, secret)| !(user.is_empty() && secret.is_empty())))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_program_that_others_cannot_change_is_a_helper() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("docker-credential-x");
        let found = |mode| {
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            find_in(folder.path().as_os_str(), "x")
        };
        assert!(matches!(found(0o644), Err(Error::NoHelper(name)) if name == "docker-credential-x"));
        assert_eq!(found(0o755).unwrap(), file);
        for mode in [0o775, 0o757] {
            let error = found(mode).unwrap_err().to_string();
            assert!(error.ends_with(&format!("(mode {mode:04o}); run: chmod go-w {}", file.display())), "{error}");
        }
        assert!(matches!(find_in(OsStr::new("."), "x"), Err(Error::NoHelper(_))), "a relative directory");
    }

    #[test]
    fn an_answer_has_credentials_or_says_that_there_are_none() {
        let given = br#"{"ServerURL": "r", "Username": "u", "Secret": "s"}"#;
        assert_eq!(read(true, Some(0), given), Ok(Some(("u".to_owned(), "s".to_owned()))));
        assert_eq!(read(false, Some(1), b"credentials not found in native keychain\n"), Ok(None));
        assert_eq!(read(true, Some(0), br#"{"Username": "", "Secret": ""}"#), Ok(None));
        assert_eq!(read(false, Some(1), given), Err(Why::Failed(Some(1))));
        for odd in [&b""[..], b"hush", br#"{"Username": "u"}"#] {
            assert_eq!(read(true, Some(0), odd), Err(Why::Odd));
        }
    }
}
