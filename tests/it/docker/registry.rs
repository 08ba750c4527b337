//! Registries that want credentials.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{FOREVER, add, configuration, id};
use crate::support::agent::Agent;
use crate::support::docker::{Lab, Registry, SOCKET, quietly};

/// In standard base64 it has characters that the URL-safe alphabet does not have.
const PASSWORD: &str = "?>~";
/// `PASSWORD`, as htpasswd writes it.
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuqXkUefawJL7CWNUQlhoRZEVJCvq8mLa";

/// Writes a file that only its owner can read.
fn write(file: &Path, text: &str, mode: u32) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

/// An agent whose file of credentials and helpers are in this directory.
struct Private {
    agent: Agent,
    file: PathBuf,
    image: String,
    users: u32,
}

impl Private {
    fn start(lab: &Lab, directory: &Path, image: String) -> Self {
        let file = directory.join("credentials.json");
        write(&file, "{}", 0o600);
        let images = format!("images = {{ registry_credentials = '{}' }}\n", file.display());
        let mut agent = Agent::prepare(&format!("{images}{}", configuration(lab, SOCKET)));
        agent.find_programs_in(directory);
        agent.up();
        add(&agent, lab, "private", FOREVER, &json!({"image": image}));
        Self { agent, file, image, users: 0 }
    }

    fn create(&mut self, credentials: &Value, mode: u32) -> String {
        write(&self.file, &credentials.to_string(), mode);
        self.users += 1;
        id(&self.agent.create("private", &format!("user{}", self.users)).expect(202))
    }

    /// A session runs with these credentials. The image is gone afterwards.
    fn runs_with(&mut self, credentials: &Value) {
        let session = self.create(credentials, 0o600);
        self.agent.until_state(&session, "running");
        self.agent.delete(&format!("/v1/sessions/{session}?wait=true&timeout=30s")).expect(200);
        quietly(&["rmi", "--force", &self.image]);
    }

    /// Why a session does not start with these credentials.
    fn fails_with(&mut self, credentials: &Value, mode: u32) -> String {
        let session = self.create(credentials, mode);
        let failed = self.agent.until_state(&session, "failed");
        assert_eq!(failed["end_reason"], "image_failed", "{failed}");
        failed["message"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_private_image_is_pulled_with_the_credentials_of_the_file_or_of_a_helper() {
    const TEST: &str = "a_private_image_is_pulled_with_the_credentials_of_the_file_or_of_a_helper";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(open) = Registry::start(TEST) else { return };
    let published = open.publish(&lab.cluster, 1 << 20);
    let guarded = open.guarded("alice", HASH);
    let image = guarded.reference(&lab.cluster);
    assert_ne!(image, published);
    let server = image.split('/').next().unwrap().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let helper = directory.path().join("docker-credential-lab");
    let answer = json!({"ServerURL": server, "Username": "alice", "Secret": PASSWORD});
    write(&helper, &format!("#!/bin/sh\nread -r server\n[ \"$server\" = {server} ] && echo '{answer}'\n"), 0o755);
    let mut private = Private::start(&lab, directory.path(), image.clone());

    let message = private.fails_with(&json!({}), 0o600);
    assert!(message.contains("no basic auth credentials"), "{message}");
    let of = |password: &str| json!({"auths": {server.clone(): {"username": "alice", "password": password}}});
    let message = private.fails_with(&of("hush-hush"), 0o600);
    assert!(message.contains("unauthorized") && !message.contains("hush-hush"), "{message}");
    let message = private.fails_with(&of(PASSWORD), 0o644);
    assert!(message.ends_with(&format!("(mode 0644); run: chmod 600 {}", private.file.display())), "{message}");
    private.runs_with(&of(PASSWORD));
    private.runs_with(&json!({"auths": {server.clone(): {"auth": "YWxpY2U6Pz5+"}}}));
    private.runs_with(&json!({"credHelpers": {server.clone(): "lab"}}));
    let path = format!("{server}/{}", lab.cluster);
    private.runs_with(&json!({"auths": {path: {"auth": "YWxpY2U6Pz5+"}, server: {"auth": "YWxpY2U6d3Jvbmc="}}}));
    let log = private.agent.log();
    assert!(!log.contains(PASSWORD) && !log.contains("hush-hush") && !log.contains("YWxpY2U6"), "{log}");
}

#[test]
fn the_check_of_a_configuration_looks_at_the_credentials() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("credentials.json");
    let agent = Agent::prepare(&format!("images = {{ registry_credentials = '{}' }}\n", file.display()));
    let config = agent.config_file();
    let check = || agent.cli(&["config", "check", "--dev", "--config", config.to_str().unwrap()]);
    let told = check().failed(1);
    assert!(told.contains("images.registry_credentials: cannot read"), "{told}");
    write(&file, r#"{"auths": {"r": {"auth": "hush"}}}"#, 0o600);
    let told = check().failed(1);
    assert!(told.contains("auths of `r`") && !told.contains("hush"), "{told}");
    write(&file, r#"{"auths": {"r": {"username": "u", "password": "p"}}}"#, 0o640);
    check().ok();
    write(&file, "{}", 0o644);
    let told = check().failed(1);
    assert!(told.contains("run: chmod 600"), "{told}");
}
