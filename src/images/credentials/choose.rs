//! Which credentials of Docker's configuration file are for an image. Pure.
//!
//! No error tells a part of the file's text: it may be a secret.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde::Deserialize;

use crate::runtime::images::{Identity, Login, Secret};
use crate::types::ImageReference;

/// Docker Hub, as the file and helpers name it.
pub const HUB: &str = "https://index.docker.io/v1/";
/// Docker Hub, as references to images name it, and the folder of its repositories without a user.
const HUB_HOST: &str = "docker.io";
const HUB_LIBRARY: &str = "library";
/// Other names of Docker Hub.
const HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// The user that stands for a login by token.
const TOKEN_USER: &str = "<token>";
/// Characters of the longest name of a helper. It becomes a part of a file's name.
const MAX_HELPER: usize = 128;

/// Docker's configuration file, as far as it tells credentials.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    /// `user:password` in base64.
    auth: String,
    username: String,
    password: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Where the credentials for an image are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The registry is not told who pulls.
    Nobody,
    Login(Login),
    /// The helper of this name is asked about this server.
    Ask {
        helper: String,
        server: String,
    },
}

/// What is wrong with the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Odd {
    #[error("line {line}, column {column}: not JSON in the form of Docker's config.json")]
    NotJson { line: usize, column: usize },
    #[error("auths of `{0}`: `auth` is not user:password in base64")]
    Auth(String),
    #[error("`{0}` is not the name of a helper; expected letters, digits, `-`, `_` and `.`")]
    Helper(String),
}

impl Credentials {
    /// Reads the file's text, and checks every entry.
    ///
    /// # Errors
    /// See [`Odd`].
    pub fn parse(text: &[u8]) -> Result<Self, Odd> {
        let read: Self = serde_json::from_slice(text)
            .map_err(|error| Odd::NotJson { line: error.line(), column: error.column() })?;
        for (server, entry) in &read.auths {
            entry.identity().ok_or_else(|| Odd::Auth(server.clone()))?;
        }
        let store = Some(&read.creds_store).filter(|store| !store.is_empty());
        match read.cred_helpers.values().chain(store).find(|name| !is_helper(name)) {
            Some(odd) => Err(Odd::Helper(odd.escape_debug().to_string())),
            None => Ok(read),
        }
    }

    /// The names of the helpers, without those that are named twice.
    pub fn helpers(&self) -> std::collections::BTreeSet<&str> {
        let store = Some(self.creds_store.as_str()).filter(|store| !store.is_empty());
        self.cred_helpers.values().map(String::as_str).chain(store).collect()
    }

    /// The entry whose name is the longest beginning of the image's repository. A helper comes before an entry of the
    /// same name, and the common store last.
    pub fn choose(&self, image: &ImageReference) -> Choice {
        let repository = full_name(image);
        let helper = longest(&self.cred_helpers, &repository, |_| true);
        let entry = longest(&self.auths, &repository, |entry: &Entry| !matches!(entry.identity(), None | Some(None)));
        match (helper, entry) {
            (Some((length, server, helper)), entry) if entry.is_none_or(|(other, ..)| other <= length) => {
                Choice::Ask { helper: helper.clone(), server: server.to_owned() }
            }
            (_, Some((_, server, entry))) => match entry.identity() {
                Some(Some(identity)) => Choice::Login(Login { server: server.to_owned(), identity }),
                Some(None) | None => Choice::Nobody,
            },
            _ if self.creds_store.is_empty() => Choice::Nobody,
            _ => Choice::Ask { helper: self.creds_store.clone(), server: self.server_of(image, &repository) },
        }
    }

    /// The name under which a common store may have the image's registry. With such a store, the file has an empty entry
    /// for each login.
    fn server_of(&self, image: &ImageReference, repository: &str) -> String {
        match longest(&self.auths, repository, |_| true) {
            Some((_, server, _)) => server.to_owned(),
            None if image.registry() == HUB_HOST => HUB.to_owned(),
            None => image.registry().to_owned(),
        }
    }
}

impl Entry {
    /// `None`: it cannot be read; `Some(None)`: it is empty.
    fn identity(&self) -> Option<Option<Identity>> {
        if !self.identity_token.is_empty() {
            return Some(Some(Identity::Token(Secret::new(self.identity_token.clone()))));
        }
        let (user, password) = if self.auth.is_empty() {
            (self.username.clone(), self.password.clone())
        } else {
            let bytes = BASE64.decode(self.auth.as_bytes()).ok()?;
            let text = String::from_utf8(bytes).ok()?;
            let (user, password) = text.split_once(':')?;
            // Old clients padded it.
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        Some((!user.is_empty()).then(|| Identity::of(user, password)))
    }
}

impl Identity {
    /// What a helper or a file has as user and password.
    pub(super) fn of(user: String, password: String) -> Self {
        let password = Secret::new(password);
        if user == TOKEN_USER { Self::Token(password) } else { Self::Password { user, password } }
    }
}

/// The host and path of an image's repository.
fn full_name(image: &ImageReference) -> String {
    let (registry, repository) = (image.registry(), image.repository());
    match repository.strip_prefix(registry).and_then(|path| path.strip_prefix('/')) {
        Some(_) => repository.to_owned(),
        None if repository.contains('/') => format!("{registry}/{repository}"),
        None => format!("{registry}/{HUB_LIBRARY}/{repository}"),
    }
}

/// The entry whose name is the longest beginning of the repository, among those that are of use, and the length of its
/// name.
fn longest<'a, T>(
    entries: &'a BTreeMap<String, T>,
    repository: &str,
    is_useful: impl Fn(&T) -> bool,
) -> Option<(usize, &'a str, &'a T)> {
    let fitting = entries.iter().filter(|(_, entry)| is_useful(entry)).filter_map(|(server, entry)| {
        let name = plain(server);
        let rest = repository.strip_prefix(&name)?;
        (rest.is_empty() || rest.starts_with('/')).then_some((name.len(), server.as_str(), entry))
    });
    fitting.max_by_key(|(length, ..)| *length)
}

/// The name of an entry as a host and a path: without a scheme, and without the version of the API.
fn plain(server: &str) -> String {
    let name = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let name = name.trim_end_matches('/');
    let name = ["/v1", "/v2"].iter().find_map(|version| name.strip_suffix(version)).unwrap_or(name);
    let (host, path) = name.split_once('/').map_or((name, None), |(host, path)| (host, Some(path)));
    let host = if HUB_ALIASES.contains(&host) { HUB_HOST } else { host };
    path.map_or_else(|| host.to_owned(), |path| format!("{host}/{path}"))
}

/// Whether a helper may have this name: it can name no file of another directory.
fn is_helper(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= MAX_HELPER && name.chars().all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Credentials {
        Credentials::parse(text.as_bytes()).unwrap()
    }

    fn choose(file: &Credentials, image: &str) -> Choice {
        file.choose(&ImageReference::parse(image).unwrap())
    }

    fn password(server: &str, user: &str, password: &str) -> Choice {
        let identity = Identity::Password { user: user.to_owned(), password: Secret::new(password.to_owned()) };
        Choice::Login(Login { server: server.to_owned(), identity })
    }

    fn token(server: &str, token: &str) -> Choice {
        let identity = Identity::Token(Secret::new(token.to_owned()));
        Choice::Login(Login { server: server.to_owned(), identity })
    }

    fn ask(helper: &str, server: &str) -> Choice {
        Choice::Ask { helper: helper.to_owned(), server: server.to_owned() }
    }

    #[test]
    fn an_entry_has_a_password_or_a_token() {
        let file = read(
            r#"{"auths": {
                "a": {}, "a.example": {"auth": "YWxpY2U6Pz5+"}, "b.example": {"username": "bob", "password": "p:w"},
                "c.example": {"auth": "Y2Fyb2w6cHcAAA==", "identitytoken": "t"}, "d.example": {"auth": "PHRva2VuPjp0"},
                "e.example": {"auth": "ZXZlOnB3AAA="}, "f.example": {}
            }, "psFormat": "x"}"#,
        );
        assert_eq!(choose(&file, "a.example/x"), password("a.example", "alice", "?>~"));
        assert_eq!(choose(&file, "b.example/x"), password("b.example", "bob", "p:w"));
        assert_eq!(choose(&file, "c.example/x"), token("c.example", "t"));
        assert_eq!(choose(&file, "d.example/x"), token("d.example", "t"));
        assert_eq!(choose(&file, "e.example/x"), password("e.example", "eve", "pw"));
        assert_eq!(choose(&file, "f.example/x"), Choice::Nobody);
        assert_eq!(choose(&file, "g.example/x"), Choice::Nobody);
        assert_eq!(choose(&Credentials::default(), "x"), Choice::Nobody);
    }

    #[test]
    fn the_longest_name_wins() {
        let file = read(
            r#"{"auths": {
                "r.example": {"username": "all", "password": "1"},
                "r.example/team": {"username": "team", "password": "2"},
                "https://r.example/team/x/": {"username": "x", "password": "3"}
            }}"#,
        );
        for (image, server, user, secret) in [
            ("r.example/other/y", "r.example", "all", "1"),
            ("r.example/teams/y", "r.example", "all", "1"),
            ("r.example/team/y", "r.example/team", "team", "2"),
            ("r.example/team/x:7", "https://r.example/team/x/", "x", "3"),
            ("r.example/team/x/z@sha256:ab", "https://r.example/team/x/", "x", "3"),
        ] {
            assert_eq!(choose(&file, image), password(server, user, secret), "{image}");
        }
        assert_eq!(choose(&file, "r.example:5000/team/x"), Choice::Nobody, "another port is another registry");
        assert_eq!(choose(&file, "team/x"), Choice::Nobody);
    }

    #[test]
    fn docker_hub_has_several_names() {
        for server in [HUB, "index.docker.io", "docker.io", "https://registry-1.docker.io/v2/"] {
            let file = read(&format!(r#"{{"auths": {{"{server}": {{"username": "u", "password": "p"}}}}}}"#));
            for image in ["busybox", "team/x:1", "docker.io/library/busybox"] {
                assert_eq!(choose(&file, image), password(server, "u", "p"), "{server} {image}");
            }
            assert_eq!(choose(&file, "localhost/x"), Choice::Nobody);
        }
        let file = read(r#"{"auths": {"docker.io/team": {"username": "u", "password": "p"}}}"#);
        assert_eq!(choose(&file, "busybox"), Choice::Nobody);
        assert_eq!(choose(&file, "team/x"), password("docker.io/team", "u", "p"));
    }

    #[test]
    fn a_helper_comes_before_an_entry_of_its_name_and_the_common_store_last() {
        let file = read(
            r#"{"credHelpers": {"r.example": "ecr-login", "docker.io": "hub"}, "credsStore": "pass", "auths": {
                "r.example": {"username": "u", "password": "p"}, "r.example/team": {"username": "team", "password": "p"},
                "s.example": {"username": "s", "password": "p"}, "https://t.example/v1/": {}
            }}"#,
        );
        assert_eq!(choose(&file, "r.example/x"), ask("ecr-login", "r.example"));
        assert_eq!(choose(&file, "r.example/team/x"), password("r.example/team", "team", "p"));
        assert_eq!(choose(&file, "s.example/x"), password("s.example", "s", "p"));
        assert_eq!(choose(&file, "t.example/x"), ask("pass", "https://t.example/v1/"));
        assert_eq!(choose(&file, "u.example:5000/x"), ask("pass", "u.example:5000"));
        assert_eq!(choose(&file, "busybox"), ask("hub", "docker.io"));
        assert_eq!(choose(&read(r#"{"credsStore": "pass"}"#), "busybox"), ask("pass", HUB));
        assert_eq!(file.helpers(), ["ecr-login", "hub", "pass"].into());
    }

    #[test]
    fn an_odd_file_is_named_without_its_secrets() {
        let odd = |text: &str| Credentials::parse(text.as_bytes()).unwrap_err();
        for text in [
            "{\"auths\": {\"r\": {\"auth\": [\"hush\"]}}}",
            "{\"auths\": {\"r\": \"hush\"}}",
            "{\"auths\": {\"r\": {\"password\": \"hush\"",
            "hush",
            "",
        ] {
            let error = odd(text);
            assert!(matches!(error, Odd::NotJson { .. }) && !error.to_string().contains("hush"), "{error}");
        }
        for auth in ["hush!", "aHVzaA==", "/w=="] {
            let error = odd(&format!(r#"{{"auths": {{"r": {{"auth": "{auth}"}}}}}}"#));
            assert_eq!(error, Odd::Auth("r".to_owned()));
        }
        for helper in ["", "../x", "a b", "x;y", "$(x)", "a/b", &"x".repeat(MAX_HELPER + 1)] {
            let error = odd(&format!(r#"{{"credHelpers": {{"r": "{helper}"}}}}"#));
            assert!(matches!(error, Odd::Helper(_)), "{helper}");
        }
        let file = read(r#"{"auths": {"r": {"username": "u", "password": "hush", "identitytoken": "hush"}}}"#);
        let shown = format!("{file:?} {:?}", choose(&file, "r/x"));
        assert!(!shown.contains("hush"), "{shown}");
    }
}
