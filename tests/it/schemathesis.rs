//! The API against its own description: schemathesis sends what `/openapi.json` allows and what it does not.

use std::process::Command;

use serde_json::json;

use crate::support::agent::Agent;
use crate::support::skip;

/// Requests of each kind for each operation. `OSTLER_SCHEMATHESIS_EXAMPLES` sets another number.
const EXAMPLES: &str = "8";
/// A fixed seed, so that a failure is reproducible.
const SEED: &str = "20260101";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance,negative_data_rejection,unsupported_method,ignored_auth";

#[test]
fn the_api_matches_its_description() {
    if Command::new("schemathesis").arg("--version").output().is_err() {
        return skip("the_api_matches_its_description", "schemathesis");
    }
    let agent = Agent::start("dev = { physical_cores = 64, physical_memory = '64GiB', physical_gpus = 2 }");
    agent.workspace("shell", "exec sleep 600", &json!({}));
    let session = agent.running("shell", "alice");
    let id = session["id"].as_str().unwrap();
    let examples = std::env::var("OSTLER_SCHEMATHESIS_EXAMPLES").unwrap_or_else(|_| EXAMPLES.to_owned());
    let config = agent.directory().join("schemathesis.toml");
    std::fs::write(&config, configuration(id)).unwrap();
    let output = Command::new("schemathesis")
        .args([
            "--config-file",
            config.to_str().unwrap(),
            "run",
            &format!("http://{}/openapi.json", agent.tcp_address()),
        ])
        .args(["--header", &format!("Authorization: Bearer {}", agent.token("admin"))])
        .args(["--checks", CHECKS, "--max-examples", &examples, "--seed", SEED])
        // One worker: threads that parse Python source at the same time fail by chance in Python 3.11, Debian 12's
        // (github.com/python/cpython/issues/106905).
        .args(["--request-timeout", "20", "--workers", "1", "--phases", "examples,coverage,fuzzing", "--no-color"])
        // How fast it draws requests depends on the load of this machine, and says nothing of the API.
        .args(["--suppress-health-check", "too_slow"])
        .current_dir(agent.directory())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    if !output.status.success() {
        // The report comes last: the log of a thousand requests would push it out of what a CI service shows.
        println!("the agent's log:\n{}", agent.log());
        drop(agent);
        panic!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    }
    agent.get("/readyz").expect(200);
}

/// Names of existing objects, so that not every request ends with 404. Requests that remove use made-up names, so that
/// these objects stay.
fn configuration(session: &str) -> String {
    // 503 is not a server error here: there may be no room, or an earlier request may have drained the node.
    let mut text = "[checks]\nnot_a_server_error = { expected-statuses = ['2xx', '4xx', '503'] }\n".to_owned();
    // Followed logs and waits take as long as the request asks for.
    text += "[parameters]\n'path.node' = 'self'\n'query.timeout' = '10ms'\n'query.follow' = false\n";
    for path in ["", "/explain", "/secret", "/logs"] {
        text += &format!(
            "[[operations]]\ninclude-name = 'GET /v1/sessions/{{id}}{path}'\nparameters = {{ id = '{session}' }}\n"
        );
    }
    for command in ["stop", "start", "pause", "resume", "keepalive", "extend"] {
        text += &format!(
            "[[operations]]\ninclude-name = 'POST /v1/sessions/{{id}}/{command}'\nparameters = {{ id = '{session}' }}\n"
        );
    }
    for operation in ["GET /v1/gpus/{uuid}", "POST /v1/gpus/{uuid}/cordon", "DELETE /v1/gpus/{uuid}/cordon"] {
        text += &format!("[[operations]]\ninclude-name = '{operation}'\nparameters = {{ uuid = 'GPU-dev-0000' }}\n");
    }
    for method in ["GET", "PUT"] {
        text += &format!(
            "[[operations]]\ninclude-name = '{method} /v1/workspaces/{{name}}'\nparameters = {{ name = 'shell' }}\n"
        );
    }
    text
}
