//! A session is a container with limits, and its endpoint is reachable.

use serde_json::{Value, json};

use super::{WEB, add, container, id, page, start};
use crate::support::docker::{Lab, docker};

#[test]
fn a_session_has_its_limits_and_answers_on_its_endpoint() {
    let Some(lab) = Lab::open("a_session_has_its_limits_and_answers_on_its_endpoint") else { return };
    let agent = start(&lab);
    let figures = json!({
        "cores": 0.25, "memory_bytes": 64 << 20, "shm_bytes": 8 << 20, "ports": [{"container_port": 8080}],
        "env": {"WHO": "{user}", "PASSWORD": "{secret}"}, "volumes": [{"name": "home-{user}", "path": "/home/me"}],
    });
    add(&agent, &lab, "web", WEB, &figures);
    let session = agent.running("web", "Alice@example.com");
    assert_eq!(page(&session), "hello Alice@example.com\n");

    let seen: Value = serde_json::from_str(&docker(&["inspect", &container(&lab, &id(&session))])).unwrap();
    let (seen, host) = (&seen[0], &seen[0]["HostConfig"]);
    assert_eq!(seen["Id"], session["container_id"]);
    for (field, value) in [
        ("NanoCpus", json!(250_000_000)),
        ("Memory", json!(64 << 20)),
        ("PidsLimit", json!(4096)),
        ("ShmSize", json!(8 << 20)),
        ("CapDrop", json!(["ALL"])),
        ("CapAdd", json!(["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID", "KILL", "NET_BIND_SERVICE"])),
        ("SecurityOpt", json!(["no-new-privileges"])),
        ("LogConfig", json!({"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}})),
        ("RestartPolicy", json!({"Name": "no", "MaximumRetryCount": 0})),
        ("NetworkMode", json!(lab.network())),
        ("Privileged", json!(false)),
        ("Binds", Value::Null),
        ("Init", json!(true)),
    ] {
        assert_eq!(host[field], value, "{field}");
    }
    let labels = json!({
        "ostler.cluster": lab.cluster, "ostler.node": session["node_id"], "ostler.session": session["id"],
        "ostler.workspace": "web", "ostler.user": "Alice@example.com", "ostler.cores_milli": "250",
        "ostler.memory_bytes": (64 << 20).to_string(), "ostler.gpus": "0", "ostler.gpu_uuids": "", "ostler.gpu_memory_bytes": "0",
    });
    assert_eq!(seen["Config"]["Labels"], labels);
    let env = seen["Config"]["Env"].as_array().unwrap();
    assert!(env.contains(&json!("NVIDIA_VISIBLE_DEVICES=void")), "{env:?}");
    assert!(env.contains(&json!(format!("PASSWORD={}", session["secret"].as_str().unwrap()))), "{env:?}");
    assert_eq!(seen["Mounts"][0]["Type"], "volume");

    let icc = r#"{{index .Options "com.docker.network.bridge.enable_icc"}}"#;
    assert_eq!(docker(&["network", "inspect", "--format", icc, &lab.network()]), "false");
}
