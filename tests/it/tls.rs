//! Off loopback the API speaks TLS only.

use crate::support::agent::Agent;

/// A self-signed certificate of `localhost` for tests, and its key.
const CERT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/sample/cert.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/sample/key.pem");

#[test]
fn a_remote_client_needs_the_right_ca_and_a_token() {
    let http = format!("[http]\nlisten = \"0.0.0.0:0\"\ntls_cert = \"{CERT}\"\ntls_key = \"{KEY}\"\n");
    let agent = Agent::start(&http);
    let token = agent.token("read");
    let port = agent.tcp_address().rsplit(':').next().unwrap().to_owned();
    let url = |scheme: &str| format!("{scheme}://localhost:{port}");
    let ask = |scheme: &str, ca: &[&str], token: &str| {
        let url = url(scheme);
        let arguments = [&["status", "--node", &url], ca].concat();
        agent.cli_with(&arguments, &[("OSTLER_API_TOKEN", token)], "")
    };
    assert!(ask("https", &["--ca", CERT], &token).ok().contains("one"));
    ask("https", &["--ca", CERT], "ost_aaaaaaaa_wrong").failed(1);
    ask("https", &[], &token).failed(2);
    ask("http", &[], &token).failed(4);
}
