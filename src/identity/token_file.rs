//! The file that holds the cluster token: the rules for its permissions and its content.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::OFlags;

use super::strength::{self, MAX_LEN, TooWeak};

/// Random bytes of a generated token: 256 bits.
const TOKEN_BYTES: usize = 32;
/// The mode of a new token file: only its owner reads and writes it.
const MODE: u32 = 0o600;
/// The permissions of group and others, none of which a token file may have.
const OTHERS: u32 = 0o077;

/// Why there is no token. Each message says how to mend it; none contains the file's content.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("token file {} not found; {}", .0.display(), make_one(.0))]
    Missing(PathBuf),
    #[error("cannot read token file {}: {source}", file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("token file {} is not a regular file; {}", .0.display(), make_one(.0))]
    NotAFile(PathBuf),
    #[error(
        "token file {0} belongs to user {owner}; expected root or this process's user; run: chown root {0}",
        file.display()
    )]
    Owner { file: PathBuf, owner: u32 },
    #[error("token file {0} is accessible by others (mode {mode:04o}); run: chmod 600 {0}", file.display())]
    Exposed { file: PathBuf, mode: u32 },
    #[error("token file {}: {source}; {}", file.display(), make_one(file))]
    Weak { file: PathBuf, source: TooWeak },
    #[error("token file {} already exists and was not changed", .0.display())]
    Exists(PathBuf),
    #[error("cannot write token file {}: {source}", file.display())]
    Unwritable { file: PathBuf, source: io::Error },
    #[error("the system has no random numbers")]
    NoRandomness,
}

/// The cluster's secret. Only [`Token::secret`] returns it; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The secret itself.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl FromStr for Token {
    type Err = TooWeak;

    /// Parses a token; line ends after it are not part of it.
    fn from_str(text: &str) -> Result<Self, TooWeak> {
        let text = text.trim_end_matches(['\n', '\r']);
        strength::check(text)?;
        Ok(Self(text.to_owned()))
    }
}

/// A new token: 256 random bits as base64url.
///
/// # Errors
/// The system has no random numbers.
pub fn generate() -> Result<Token, Error> {
    let mut random = [0; TOKEN_BYTES];
    SystemRandom::new().fill(&mut random).map_err(|_| Error::NoRandomness)?;
    Ok(Token(data_encoding::BASE64URL_NOPAD.encode(&random)))
}

/// Reads the token from a file that belongs to root or this process's user, and that nobody else can access.
///
/// # Errors
/// The file is missing, has another owner, is accessible by others, or holds a token that can be guessed.
pub fn read(path: &Path) -> Result<Token, Error> {
    let unreadable = |source| Error::Unreadable { file: path.to_owned(), source };
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Missing(path.to_owned())),
        Err(error) => return Err(unreadable(error)),
    };
    // Checks the open file and not the path: the path may name another file by now.
    check_access(path, &file.metadata().map_err(unreadable)?)?;
    let mut content = Vec::new();
    // Two bytes more than a token and its line end, so that a content that is too long is recognised.
    let bound = u64::try_from(MAX_LEN + 3).unwrap_or(u64::MAX);
    file.take(bound).read_to_end(&mut content).map_err(unreadable)?;
    let weak = |source| Error::Weak { file: path.to_owned(), source };
    str::from_utf8(&content).map_err(|_| weak(TooWeak::NotPlain))?.parse().map_err(weak)
}

/// Writes a token to a new file that only its owner can access, and creates its directory if it is missing. The
/// token is on disk when this returns.
///
/// # Errors
/// The file exists, and is not changed; or it cannot be written, and does not exist afterwards.
pub fn write_new(path: &Path, token: &Token) -> Result<(), Error> {
    if let Some(directory) = path.parent() {
        let unwritable = |source| Error::Unwritable { file: path.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(unwritable)?;
    }
    let file = match OpenOptions::new().write(true).create_new(true).mode(MODE).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists(path.to_owned())),
        Err(error) => return Err(Error::Unwritable { file: path.to_owned(), source: error }),
    };
    persist(file, path, token).map_err(|error| {
        // A file with half a token would stop the next attempt. If it cannot be removed, that attempt reports it.
        let _ = std::fs::remove_file(path);
        Error::Unwritable { file: path.to_owned(), source: error }
    })
}

fn open(path: &Path) -> io::Result<File> {
    // Without the flag, opening a pipe that has no writer would block for ever.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    OpenOptions::new().read(true).custom_flags(nonblocking).open(path)
}

fn check_access(file: &Path, metadata: &Metadata) -> Result<(), Error> {
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if !metadata.is_file() {
        return Err(Error::NotAFile(file.to_owned()));
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(Error::Owner { file: file.to_owned(), owner });
    }
    if mode & OTHERS != 0 {
        return Err(Error::Exposed { file: file.to_owned(), mode });
    }
    Ok(())
}

fn persist(mut file: File, path: &Path, token: &Token) -> io::Result<()> {
    writeln!(file, "{}", token.secret())?;
    file.sync_all()?;
    // The file's name is in the directory: without this sync it may not survive a power cut.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

fn make_one(file: &Path) -> String {
    format!(
        "create one with `(umask 077; ostler token generate > {})` and copy it to every node of the cluster",
        file.display()
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory with one file `token` of this content and mode.
    fn holding(content: impl AsRef<[u8]>, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_written_token_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/token");
        let token = generate().unwrap();
        write_new(&path, &token).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(read(&path).unwrap(), token);
        assert!(matches!(write_new(&path, &generate().unwrap()), Err(Error::Exists(_))));
        assert_eq!(read(&path).unwrap(), token);
    }

    #[test]
    fn tokens_are_256_random_bits() {
        let tokens: std::collections::HashSet<String> =
            (0..100).map(|_| generate().unwrap().secret().to_owned()).collect();
        assert_eq!(tokens.len(), 100);
        for token in tokens {
            assert_eq!(data_encoding::BASE64URL_NOPAD.decode(token.as_bytes()).unwrap().len(), 32);
            assert_eq!(token.parse::<Token>().unwrap().secret(), token);
        }
    }

    #[test]
    fn debug_does_not_show_a_token() {
        let token = generate().unwrap();
        assert_eq!(format!("{token:?}"), "Token(…)");
        assert!(!format!("{:?}", Some([&token])).contains(token.secret()));
    }

    #[test]
    fn a_file_that_others_can_access_is_refused_with_the_command_to_mend_it() {
        let token = generate().unwrap();
        for mode in [0o644, 0o640, 0o620, 0o601, 0o610, 0o660, 0o777] {
            let (_dir, path) = holding(token.secret(), mode);
            let said = read(&path).unwrap_err().to_string();
            assert!(said.contains(&format!("(mode {mode:04o});")), "{said}");
            assert!(said.contains(&format!("run: chmod 600 {}", path.display())), "{said}");
        }
        for mode in [0o600, 0o400] {
            let (_dir, path) = holding(token.secret(), mode);
            assert_eq!(read(&path).unwrap(), token);
        }
    }

    #[test]
    fn line_ends_after_a_token_are_not_part_of_it() {
        let token = generate().unwrap();
        for end in ["", "\n", "\r\n", "\n\n"] {
            let (_dir, path) = holding(format!("{}{end}", token.secret()), 0o600);
            assert_eq!(read(&path).unwrap(), token, "{end:?}");
        }
    }

    #[test]
    fn text_that_is_not_a_token_is_refused_and_not_shown() {
        let too_long = "k3f7q2m5x6a4b7c2".repeat(1000);
        for content in ["", "\n", "hunter2\n", "a b", "two\nlines", &too_long, &"secret".repeat(10)] {
            let (_dir, path) = holding(content, 0o600);
            let said = read(&path).unwrap_err().to_string();
            assert!(said.contains("ostler token generate > "), "{said}");
            let piece: String = content.trim().chars().take(12).collect();
            assert!(piece.is_empty() || !said.contains(&piece), "{said}");
        }
        let (_dir, path) = holding([0xff; 64], 0o600);
        assert!(matches!(read(&path), Err(Error::Weak { source: TooWeak::NotPlain, .. })));
        let (_dir, path) = holding(&too_long, 0o600);
        assert!(matches!(read(&path), Err(Error::Weak { source: TooWeak::Long, .. })));
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Err(Error::NotAFile(_))));
        assert!(matches!(read(&dir.path().join("none")), Err(Error::Missing(_))));
        // Reading a pipe without a writer must not block.
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(matches!(read(&pipe), Err(Error::NotAFile(_))));
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let (_dir, path) = holding(generate().unwrap().secret(), 0o600);
        // Only root can change a file's owner.
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: a_file_of_another_user_is_refused: needs root");
            return;
        }
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains("belongs to user 65534") && said.contains("run: chown root "), "{said}");
    }

    #[test]
    fn a_path_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let path = dir.path().join("file").join("token");
        assert!(matches!(write_new(&path, &generate().unwrap()), Err(Error::Unwritable { .. })));
    }
}
