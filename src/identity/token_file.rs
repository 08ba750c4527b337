//! The file that holds the cluster token: the rules for its permissions and its content.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::access::{self, Permissions, Reader, Stranger, parse_acl};
use super::accounts::Accounts;
use super::strength::{self, TooWeak};
use crate::types::{MAX_TOKEN_INPUT, NotPlain, token_text};

/// Random bytes of a generated token: 256 bits.
const TOKEN_BYTES: usize = 32;
/// The mode of a new token file: only its owner reads and writes it.
const MODE: u32 = 0o600;
/// The attribute that holds a file's ACL.
const ACL_ATTRIBUTE: &str = "system.posix_acl_access";
/// Bytes of an ACL that are read: 511 entries. A token file that more users may read is refused.
const MAX_ACL: usize = 4096;

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
    #[error("token file {0} is {to} (mode {mode:04o}); run: chmod 600 {0}", file.display())]
    Exposed { file: PathBuf, mode: u32, to: Stranger },
    #[error("token file {}: {source}{}", file.display(), mend(file, source))]
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

impl Token {
    /// The token that a file or an input holds; a byte order mark and blanks around it are not part of it.
    ///
    /// # Errors
    /// There is no token, a byte that no token has, or a token that can be guessed.
    pub fn parse(content: &[u8]) -> Result<Self, TooWeak> {
        let text = token_text(content)?;
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

/// Reads the token from a file that belongs to root or this process's user, and that nobody else can read.
///
/// # Errors
/// The file is missing, has another owner, is readable by others, or holds no token or one that can be guessed.
pub fn read(path: &Path) -> Result<Token, Error> {
    let unreadable = |source| Error::Unreadable { file: path.to_owned(), source };
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Missing(path.to_owned())),
        Err(error) => return Err(unreadable(error)),
    };
    // Checks the open file and not the path: the path may name another file by now.
    let metadata = file.metadata().map_err(unreadable)?;
    let permissions = permissions(&file, &metadata).map_err(unreadable)?;
    check_access(path, &metadata, &permissions)?;
    let mut content = Vec::new();
    // One byte more, so that a content that is too long is recognised.
    let bound = u64::try_from(MAX_TOKEN_INPUT + 1).unwrap_or(u64::MAX);
    file.take(bound).read_to_end(&mut content).map_err(unreadable)?;
    Token::parse(&content).map_err(|source| Error::Weak { file: path.to_owned(), source })
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

fn check_access(file: &Path, metadata: &Metadata, permissions: &Permissions) -> Result<(), Error> {
    if !metadata.is_file() {
        return Err(Error::NotAFile(file.to_owned()));
    }
    let reader = Reader {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        accounts: Accounts::of_host(),
    };
    let (owner, mode) = (permissions.owner, permissions.mode);
    if !reader.is_trusted(owner) {
        return Err(Error::Owner { file: file.to_owned(), owner });
    }
    access::check(permissions, &reader).map_err(|to| Error::Exposed { file: file.to_owned(), mode, to })
}

fn permissions(file: &File, metadata: &Metadata) -> io::Result<Permissions> {
    Ok(Permissions {
        owner: metadata.uid(),
        group: metadata.gid(),
        mode: metadata.mode() & 0o7777,
        acl: acl(file)?,
        is_credential: is_credential(file),
    })
}

/// The file's ACL, if it has one.
fn acl(file: &File) -> io::Result<Option<Vec<access::Grant>>> {
    let mut attribute = Vec::with_capacity(MAX_ACL);
    match rustix::fs::fgetxattr(file, ACL_ATTRIBUTE, rustix::buffer::spare_capacity(&mut attribute)) {
        Ok(_) => {}
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    parse_acl(&attribute).map(Some).ok_or_else(|| io::Error::other("its ACL has an unknown form"))
}

/// Whether the file is below the directory of systemd's credentials, and only root and this service can enter it.
fn is_credential(file: &File) -> bool {
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return false };
    let Ok(directory) = std::fs::canonicalize(directory) else { return false };
    // The path of the open file: a link may lead to it.
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let is_closed = std::fs::metadata(&directory).is_ok_and(|found| found.mode() & 0o027 == 0);
    is_closed && path.is_ok_and(|path| path.starts_with(&directory))
}

fn persist(mut file: File, path: &Path, token: &Token) -> io::Result<()> {
    writeln!(file, "{}", token.secret())?;
    file.sync_all()?;
    // The file's name is in the directory: without this sync it may not survive a power cut.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// How to mend a token. A byte that is wrong needs no other token.
fn mend(file: &Path, wrong: &TooWeak) -> String {
    match wrong {
        TooWeak::NotPlain(NotPlain::OddByte { .. } | NotPlain::Utf16(_)) => String::new(),
        _ => format!("; {}", make_one(file)),
    }
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
            assert_eq!(Token::parse(token.as_bytes()).unwrap().secret(), token);
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
        for mode in [0o644, 0o620, 0o601, 0o610, 0o660, 0o777] {
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
    fn a_group_that_others_may_be_in_is_refused() {
        // A group that is neither root's nor this process's own: only root can give a file to it.
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: a_group_that_others_may_be_in_is_refused: needs root");
            return;
        }
        let (_dir, path) = holding(generate().unwrap().secret(), 0o440);
        std::os::unix::fs::chown(&path, None, Some(65_533)).unwrap();
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains("readable by group 65533 (mode 0440); run: chmod 600"), "{said}");
    }

    #[test]
    fn an_acl_that_admits_another_user_is_refused() {
        let (_dir, path) = holding(generate().unwrap().secret(), 0o600);
        // user::rw-, user:65533:r--, group::---, mask::r--, other::---
        let entries: [(u16, u16, u32); 5] =
            [(1, 6, u32::MAX), (2, 4, 65_533), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
        let mut attribute = vec![2, 0, 0, 0];
        for (tag, bits, id) in entries {
            attribute.extend([&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        if rustix::fs::setxattr(&path, ACL_ATTRIBUTE, &attribute, rustix::fs::XattrFlags::empty()).is_err() {
            println!("SKIPPED: an_acl_that_admits_another_user_is_refused: needs a file system with ACLs");
            return;
        }
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains("readable by user 65533, through its ACL (mode 0640); run: chmod 600"), "{said}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read(&path).is_ok(), "the command mends it");
    }

    #[test]
    fn a_byte_order_mark_and_blanks_around_a_token_are_not_part_of_it() {
        let token = generate().unwrap();
        for around in ["T", "T\n", "T\r\n", "T\n\n", "\u{feff}T\r\n", "  T \t\n"] {
            let (_dir, path) = holding(around.replace('T', token.secret()), 0o600);
            assert_eq!(read(&path).unwrap(), token, "{around:?}");
        }
    }

    #[test]
    fn a_byte_that_no_token_has_is_named_and_needs_no_new_token() {
        let token = generate().unwrap();
        let (half, rest) = token.secret().split_at(20);
        let (_dir, path) = holding(format!("{half}\n{rest}\n"), 0o600);
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains("byte 0x0a (line feed) at offset 20"), "{said}");
        assert!(!said.contains("generate") && !said.contains(half) && !said.contains(rest), "{said}");
    }

    #[test]
    fn text_that_is_not_a_token_is_refused_and_not_shown() {
        let too_long = "k3f7q2m5x6a4b7c2".repeat(1000);
        for content in ["", "\n", "hunter2\n", &too_long, &"secret".repeat(10)] {
            let (_dir, path) = holding(content, 0o600);
            let said = read(&path).unwrap_err().to_string();
            assert!(said.contains("ostler token generate > "), "{said}");
            let piece: String = content.trim().chars().take(12).collect();
            assert!(piece.is_empty() || !said.contains(&piece), "{said}");
        }
        let (_dir, path) = holding([0xff; 64], 0o600);
        let odd = NotPlain::Utf16(0xff);
        assert!(matches!(read(&path), Err(Error::Weak { source: TooWeak::NotPlain(wrong), .. }) if wrong == odd));
        let (_dir, path) = holding(&too_long, 0o600);
        assert!(matches!(read(&path), Err(Error::Weak { source: TooWeak::NotPlain(NotPlain::Long), .. })));
        let (_dir, path) = holding(&too_long[..5000], 0o600);
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
