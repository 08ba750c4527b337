use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::runtime::images::{Identity, Secret};

/// A file of credentials with this text and mode.
fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials.json");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    (folder, file)
}

/// A helper that runs this script.
fn helper(script: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("docker-credential-x");
    // Written by another process: a program that is open for writing, also in a child of another test, cannot be run.
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2"; chmod 755 "$2""#;
    let written = std::process::Command::new("sh").args(["-c", write, "sh", script]).arg(&file).status();
    assert!(written.unwrap().success());
    (folder, file)
}

const ALICE: &str = r#"{"auths": {"r.example": {"username": "alice", "password": "hush"}}}"#;

#[tokio::test]
async fn a_change_of_the_file_counts_at_the_next_pull() {
    let (_folder, file) = file(ALICE, 0o600);
    let image = ImageReference::parse("r.example/x").unwrap();
    let user = async || match login(&file, &image).await.unwrap()?.identity {
        Identity::Password { user, .. } => Some(user),
        Identity::Token(_) => None,
    };
    assert_eq!(user().await.as_deref(), Some("alice"));
    fs::write(&file, ALICE.replace("alice", "bob")).unwrap();
    assert_eq!(user().await.as_deref(), Some("bob"));
    fs::write(&file, "{}").unwrap();
    assert_eq!(user().await, None);
}

#[test]
fn a_file_that_others_can_use_is_refused_and_the_mend_is_named() {
    for mode in [0o604, 0o602, 0o620, 0o666, 0o641] {
        let (_folder, file) = file(ALICE, mode);
        let error = check(&file).unwrap_err().to_string();
        let mend = format!("(mode {mode:04o}); run: chmod 600 {}", file.display());
        assert!(error.ends_with(&mend) && !error.contains("hush"), "{error}");
    }
    for mode in [0o400, 0o600, 0o640] {
        let (_folder, file) = file(ALICE, mode);
        check(&file).unwrap();
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let (folder, file) = file("{", 0o600);
    let error = check(&file).unwrap_err().to_string();
    assert!(error.contains(&format!("{}: line 1", file.display())), "{error}");
    assert!(matches!(check(folder.path()), Err(Error::NotAFile(_))), "a directory");
    assert!(matches!(check(&folder.path().join("none")), Err(Error::Unreadable { .. })));
    fs::write(&file, r#"{"credsStore": "no-such-helper"}"#).unwrap();
    let error = check(&file).unwrap_err().to_string();
    assert!(error.starts_with("no helper docker-credential-no-such-helper in PATH"), "{error}");
    assert!(check_access(&file, 4_000_000_000, 0o600).is_err(), "of another user");
}

#[tokio::test]
async fn a_helper_gets_the_registry_and_gives_credentials() {
    let (_folder, file) = helper(r#"read -r server; echo "{\"Username\": \"$1\", \"Secret\": \"$server\"}""#);
    let login = helper::ask(&file, "r.example:5000".to_owned()).await.unwrap().unwrap();
    let identity = Identity::Password { user: "get".to_owned(), password: Secret::new("r.example:5000".to_owned()) };
    assert_eq!(login, Login { server: "r.example:5000".to_owned(), identity });
    let (_folder, file) = helper("echo '{\"Username\": \"<token>\", \"Secret\": \"t\"}'");
    let login = helper::ask(&file, "r".to_owned()).await.unwrap().unwrap();
    assert_eq!(login.identity, Identity::Token(Secret::new("t".to_owned())));
    let (_folder, file) = helper("echo 'credentials not found in native keychain'; exit 1");
    assert_eq!(helper::ask(&file, "r".to_owned()).await.unwrap(), None);
}

#[tokio::test]
async fn what_a_failing_helper_says_is_not_told() {
    for (script, why) in [
        ("echo hush; echo hush >&2; exit 3", "it ended with exit code 3"),
        ("echo hush", "its answer is not JSON with Username and Secret"),
        ("kill -9 $$", "it was killed"),
        ("exec yes hush", "its answer has more than 64 KiB"),
    ] {
        let (_folder, file) = helper(script);
        let error = helper::ask(&file, "r".to_owned()).await.unwrap_err().to_string();
        assert!(error.ends_with(&format!("gave no credentials for r: {why}")), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
}
