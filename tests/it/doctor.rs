//! `ostler doctor` on real faults: each fails, is mended, and passes.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::refresh::pem;
use crate::support::agent::{Agent, Output, until};
use crate::support::cluster::{Cluster, free_port, write_token};
use crate::support::docker::SOCKET;
use crate::support::engine_relay::{EngineRelay, Fault};
use crate::support::fake_engine::FakeEngine;
use crate::support::nvml::{Fixture, VERSION};
use crate::support::small_disk::SmallDisk;

/// Runs doctor with the agent's configuration file.
fn doctor(agent: &Agent) -> Output {
    let config = agent.config_file();
    agent.cli(&["doctor", "--output", "json", "--config", config.to_str().unwrap()])
}

fn checks(agent: &Agent) -> Vec<Value> {
    let output = doctor(agent);
    let checkup: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", output.stdout, output.stderr));
    assert_eq!(output.code, i32::from(checkup["verdict"] == "fail"), "{checkup}");
    let checks = checkup["checks"].as_array().unwrap().clone();
    for check in &checks {
        let is_fault = check["verdict"] == "fail" || check["verdict"] == "warn";
        assert_eq!(check["mend"].is_string(), is_fault, "each fault has one mend: {check}");
    }
    checks
}

/// The worst verdict of a topic, and what its checks say.
fn topic(agent: &Agent, topic: &str) -> (String, String) {
    let found: Vec<Value> = checks(agent).into_iter().filter(|check| check["topic"] == topic).collect();
    let verdict = ["fail", "warn", "ok", "skipped"].into_iter().find(|v| found.iter().any(|c| c["verdict"] == *v));
    let text = |check: &Value| format!("{} => {}", check["message"].as_str().unwrap(), check["mend"]);
    (verdict.unwrap_or("missing").to_owned(), found.iter().map(text).collect::<Vec<_>>().join("\n"))
}

#[track_caller]
fn expect(agent: &Agent, about: &str, verdict: &str, words: &str) {
    let (found, text) = topic(agent, about);
    assert!(found == verdict && text.contains(words), "{about} is {found}, expected {verdict} with `{words}`: {text}");
}

/// The key id of the agent's token.
fn key_id(agent: &Agent) -> String {
    let (_, text) = topic(agent, "token");
    text.split("key id ").nth(1).unwrap_or_else(|| panic!("{text}")).split(')').next().unwrap().to_owned()
}

fn set_mode(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn an_agent_that_does_not_run_is_named_and_everything_else_is_checked() {
    let mut agent = Agent::prepare("");
    expect(&agent, "agent", "fail", "systemctl start ostler");
    let topics: Vec<Value> = checks(&agent).iter().map(|check| check["topic"].clone()).collect();
    for topic in ["engine", "gpus", "memory", "mesh", "clock", "token", "disk", "limits", "http", "endpoints", "agent"]
    {
        assert!(topics.contains(&topic.into()), "{topic}: {topics:?}");
    }
    let before = files(agent.directory());
    checks(&agent);
    assert_eq!(files(agent.directory()), before, "doctor only reads");
    agent.up();
    let (found, text) = topic(&agent, "agent");
    assert_ne!(found, "fail", "{text}");
}

/// Every file below a directory.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    found.sort();
    found
}

#[test]
fn a_token_file_that_others_read_is_a_fault_with_its_command() {
    let agent = Agent::prepare("");
    let file = agent.directory().join("token");
    expect(&agent, "token", "ok", "this node stays alone");
    write_token(&file, "hT2vq0Kx9sLwZc4bNfYp7RmDgUe1JaXo5iVtEk8ySHQ");
    set_mode(&file, 0o644);
    expect(&agent, "token", "fail", &format!("chmod 600 {}", file.display()));
    expect(&agent, "mesh", "skipped", "no cluster token that can be used");
    set_mode(&file, 0o600);
    expect(&agent, "token", "ok", "holds a token");
}

#[test]
fn memory_beyond_ram_and_swap_is_a_fault() {
    let agent = Agent::prepare("dev = { physical_memory = '1GiB' }\nsettings = { memory_override = '900TiB' }");
    expect(&agent, "memory", "fail", "RAM and swap hold");
    expect(&agent, "memory", "fail", "ostler node set self --memory-override");
    agent
        .configure(&agent.configuration("dev = { physical_memory = '1GiB' }\nsettings = { memory_override = '1GiB' }"));
    expect(&agent, "memory", "ok", "1 GiB offered");
}

#[test]
fn a_full_disk_and_one_without_inodes_are_faults() {
    let name = "a_full_disk_and_one_without_inodes_are_faults";
    let Some(disk) = SmallDisk::mount(name, "size=32m,nr_inodes=1000") else { return };
    let agent = Agent::prepare(&format!(
        "node = {{ data_dir = '{}/data' }}\nlimits = {{ min_free_disk = '8MiB' }}",
        disk.path().display()
    ));
    expect(&agent, "disk", "ok", "is free on");
    disk.fill_but(1 << 20);
    expect(&agent, "disk", "fail", "less than limits.min_free_disk");
    disk.free();
    disk.use_up_inodes(10);
    expect(&agent, "disk", "fail", "10 of 1000 inodes are free");
    disk.free();
    expect(&agent, "disk", "ok", "is free on");
}

#[test]
fn a_seed_is_silent_or_has_another_token_or_answers() {
    let mut cluster = Cluster::prepare(1, "");
    let node = &mut cluster.nodes[0];
    node.up();
    let seed = cluster.mesh(0);
    let (right, wrong) =
        (fs::read_to_string(cluster.token_file()).unwrap(), "B6nWz3QmUo1fXsKc8JrLyTd0vGhPe5iAa9VtEk2YxHM");
    let name =
        toml::from_str::<toml::Table>(&fs::read_to_string(cluster.nodes[0].config_file()).unwrap()).unwrap()["cluster"]
            ["name"]
            .as_str()
            .unwrap()
            .to_owned();
    let other = Agent::prepare("");
    let with = |seed: &str| {
        let listen = format!("127.0.0.1:{}", free_port());
        format!("cluster = {{ name = '{name}', seeds = ['{seed}'], listen = '{listen}' }}")
    };
    let token = other.directory().join("token");
    other.configure(&other.configuration(&with(&seed)));
    expect(&other, "token", "fail", "cluster.seeds names other nodes");
    write_token(&token, wrong);
    expect(&other, "mesh", "fail", "has another token");
    expect(&other, "mesh", "fail", &format!("its key id is {}", key_id(&cluster.nodes[0])));
    fs::write(&token, &right).unwrap();
    expect(&other, "mesh", "ok", "answers with this cluster's token");
    let log = cluster.nodes[0].log();
    assert!(!log.contains("a connection was not let in\" ") && cluster.alive(0).len() == 1, "{log}");

    // A port on which nothing answers, as behind a firewall that drops.
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = closed.local_addr().unwrap().to_string();
    other.configure(&other.configuration(&with(&silent)));
    expect(&other, "mesh", "fail", "does not answer on UDP");
    expect(&other, "mesh", "fail", "ufw allow");
    other.configure(&other.configuration(&with("no-such-host.invalid:7480")));
    expect(&other, "mesh", "fail", "cannot be resolved");
    other.configure(&other.configuration(&with(&seed)));
    expect(&other, "mesh", "ok", "answers with this cluster's token");
}

#[test]
fn a_mesh_port_of_another_program_is_a_fault_while_the_agent_is_down() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let agent = Agent::prepare(&format!("cluster = {{ listen = '{listen}' }}"));
    write_token(&agent.directory().join("token"), "hT2vq0Kx9sLwZc4bNfYp7RmDgUe1JaXo5iVtEk8ySHQ");
    expect(&agent, "mesh", "fail", "ss -ulpn");
    drop(taken);
    expect(&agent, "mesh", "ok", "no seeds to check");
}

#[test]
fn an_address_that_this_host_lacks_is_a_fault_of_endpoints() {
    let agent = Agent::prepare("runtime = { publish_address = '192.0.2.77', endpoint_host = '127.0.0.9' }");
    expect(&agent, "endpoints", "fail", "192.0.2.77, which is no address of this host");
    expect(&agent, "endpoints", "fail", "runtime.endpoint_host is 127.0.0.9");
    agent.configure(&agent.configuration("runtime = { publish_address = '127.0.0.1', endpoint_host = '127.0.0.1' }"));
    expect(&agent, "endpoints", "ok", "has an address");
    agent.configure(&agent.configuration("runtime = { endpoint_host = 'no-such-host.invalid' }"));
    expect(&agent, "endpoints", "fail", "cannot be resolved");
}

#[test]
fn a_certificate_has_the_names_of_clients() {
    let agent = Agent::prepare("");
    let (cert, key) = (agent.directory().join("c.pem"), agent.directory().join("k.pem"));
    let with = |host: &str| {
        let files = format!("tls_cert = '{}', tls_key = '{}'", cert.display(), key.display());
        agent.configure(&agent.configuration(&format!("http = {{ {files}, allowed_hosts = ['{host}'] }}")));
    };
    let made = rcgen::generate_simple_self_signed(vec!["desk.example".to_owned()]).unwrap();
    fs::write(&cert, pem("CERTIFICATE", made.cert.der())).unwrap();
    fs::write(&key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
    with("other.example");
    expect(&agent, "http", "warn", "is not for other.example");
    with("desk.example");
    expect(&agent, "http", "ok", "with a valid certificate");
    fs::write(&cert, "nothing").unwrap();
    expect(&agent, "http", "fail", "write it to");
}

#[test]
fn an_engine_that_is_old_or_absent_is_a_fault() {
    let absent = Agent::prepare("runtime = { kind = 'docker', docker_host = 'unix:///no/such/socket' }");
    expect(&absent, "engine", "fail", "/no/such/socket does not exist");
    if !Path::new(SOCKET.trim_start_matches("unix://")).exists() {
        crate::support::skip("an_engine_that_is_old_or_absent_is_a_fault", "docker");
        return;
    }
    let relay = EngineRelay::start();
    let agent = Agent::prepare(&format!("runtime = {{ kind = 'docker', docker_host = '{}' }}", relay.host()));
    expect(&agent, "engine", "ok", "answers at");
    relay.on("GET", "/info", Fault::Rewrite("\"ServerVersion\":\"20", "\"ServerVersion\":\"19"));
    relay.on("GET", "/info", Fault::Rewrite("\"ServerVersion\":\"2", "\"ServerVersion\":\"1"));
    expect(&agent, "engine", "fail", "is older than 20.10");
    relay.mend();
    relay.on("GET", "/info", Fault::Answer(500, "the engine is broken"));
    expect(&agent, "engine", "fail", "the engine is broken");
    relay.mend();
    expect(&agent, "engine", "ok", "answers at");
}

#[test]
fn an_engine_with_an_old_or_a_new_api_is_a_fault() {
    let engine = FakeEngine::start("18.09.1", "1.39");
    let agent = Agent::prepare(&format!("runtime = {{ kind = 'docker', docker_host = '{}' }}", engine.host()));
    expect(&agent, "engine", "fail", "Docker 18.09.1 at");
    expect(&agent, "engine", "fail", "upgrade Docker to 20.10 or later");
    engine.upgrade("31.0.0", "1.200");
    engine.set("version", "MinAPIVersion", json!("1.100"));
    expect(&agent, "engine", "fail", "speaks no version of its API below 1.100");
    expect(&agent, "engine", "fail", "=> \"upgrade ostler\"");
    engine.upgrade("28.1.0", "1.49");
    expect(&agent, "engine", "ok", "Docker 28.1.0 answers at");
}

#[test]
fn a_cdi_list_of_another_driver_or_without_a_gpu_is_a_fault() {
    let (fixture, engine) = (Fixture::new(1), FakeEngine::start("28.1.0", "1.49"));
    let agent = Agent::prepare(&format!(
        "runtime = {{ kind = 'docker', docker_host = '{}' }}\ngpu = {{ nvml_library = '{}' }}",
        engine.host(),
        fixture.library().display()
    ));
    expect(&agent, "gpus", "fail", "nvidia-ctk");
    let directory = tempfile::tempdir().unwrap();
    let uuid = &fixture.gpu(0).uuid;
    let list = |name: &str, version: &str| {
        let mount =
            format!("{{hostPath: /usr/lib/libcuda.so.{version}, containerPath: /usr/lib/libcuda.so.{version}}}");
        let text = format!(
            "cdiVersion: 0.6.0\nkind: nvidia.com/gpu\ncontainerEdits: {{mounts: [{mount}]}}\ndevices:\n- name: {name}\n  \
             containerEdits: {{deviceNodes: [{{path: /dev/nvidia0}}]}}\n"
        );
        fs::write(directory.path().join("nvidia.yaml"), text).unwrap();
    };
    engine.set("info", "CDISpecDirs", json!([directory.path()]));
    list(uuid, "550.54.15");
    expect(&agent, "gpus", "fail", &format!("the libraries of driver 550.54.15, and the host runs driver {VERSION}"));
    expect(&agent, "gpus", "fail", "=> \"nvidia-ctk cdi generate");
    list("GPU-of-another-host", VERSION);
    expect(&agent, "gpus", "fail", uuid);
    list(uuid, VERSION);
    expect(&agent, "gpus", "ok", "the engine can give them to sessions");
}

#[test]
fn an_agent_tells_of_the_gpus_that_it_knows() {
    let mut fixture = Fixture::new(2);
    let agent = Agent::start(&format!("gpu = {{ nvml_library = '{}' }}", fixture.library().display()));
    let told = |words: &str| agent.get("/v1/nodes/self/doctor").expect(200).to_string().contains(words);
    until("the driver was asked", || told(&format!("driver {VERSION} has 2 GPUs")));
    fixture.set(|machine| drop(machine.gpus.pop()));
    until("a GPU is lost", || told(&format!("driver {VERSION} has 1 GPUs")));
}

#[test]
fn an_agent_that_was_killed_is_told_after_its_next_start() {
    let mut agent = Agent::start("");
    let words = "started once in the last 24 h after one that was not stopped";
    let told = |agent: &Agent| topic(agent, "agent").1.contains("after one that was not stopped");
    agent.restart();
    assert!(!told(&agent), "it was stopped");
    agent.kill9();
    agent.up();
    expect(&agent, "agent", "warn", words);
    expect(&agent, "agent", "warn", "journalctl -u ostler");
    let away = agent.get("/v1/nodes/self/doctor").expect(200).to_string();
    assert!(away.contains(words), "{away}");
    agent.restart();
    expect(&agent, "agent", "warn", words);
    agent.sigterm();
    expect(&agent, "agent", "fail", words);
}

#[test]
fn a_token_that_was_replaced_under_the_agent_is_a_fault_until_its_restart() {
    let mut agent = Agent::prepare(&format!("cluster = {{ listen = '127.0.0.1:{}' }}", free_port()));
    let file = agent.directory().join("token");
    agent.up();
    write_token(&file, "hT2vq0Kx9sLwZc4bNfYp7RmDgUe1JaXo5iVtEk8ySHQ");
    expect(&agent, "token", "fail", "it was started without a token");
    agent.restart();
    expect(&agent, "token", "ok", "holds a token (key id ");
    let before = key_id(&agent);
    write_token(&file, "B6nWz3QmUo1fXsKc8JrLyTd0vGhPe5iAa9VtEk2YxHM");
    expect(&agent, "token", "fail", "and the agent was started with another one (key id ");
    expect(&agent, "token", "fail", "systemctl restart ostler");
    expect(&agent, "token", "fail", &format!("started with another one (key id {before})"));
    agent.restart();
    expect(&agent, "token", "ok", "holds a token (key id ");
    let everything = agent.cli(&["doctor"]).stdout;
    assert!(!everything.contains("hT2vq0Kx9s") && !everything.contains("B6nWz3QmUo"), "no token is shown");
}

#[test]
fn files_beyond_the_bounds_of_the_event_log_and_a_low_limit_of_open_files_are_told() {
    let agent = Agent::start("");
    expect(&agent, "disk", "ok", "the event log has ");
    let strange = agent.data_dir().join("events/core");
    fs::File::create(&strange).unwrap().set_len(65 << 20).unwrap();
    expect(&agent, "disk", "warn", "64 MiB is its bound");
    fs::remove_file(&strange).unwrap();
    expect(&agent, "disk", "ok", "of at most 64 MiB");

    let limit = |most| {
        let resource = rustix::process::Resource::Nofile;
        let hard = rustix::process::prlimit(Some(agent.pid()), resource, rustix::process::getrlimit(resource)).unwrap();
        let limit = rustix::process::Rlimit { current: Some(most), ..hard };
        rustix::process::prlimit(Some(agent.pid()), resource, limit).unwrap();
    };
    limit(1024);
    expect(&agent, "agent", "warn", "may open 1024 files");
    limit(4096);
    assert!(!topic(&agent, "agent").1.contains("may open"));
}

#[test]
fn sessions_on_the_name_of_the_api_are_told() {
    let with =
        |host: &str| format!("http = {{ allowed_hosts = ['{host}'] }}\nruntime = {{ endpoint_host = '127.0.0.9' }}");
    let agent = Agent::prepare(&with("127.0.0.9"));
    expect(&agent, "http", "warn", "the ports of sessions and the API are both at 127.0.0.9");
    expect(&agent, "http", "warn", "set runtime.endpoint_host to another name");
    agent.configure(&agent.configuration(&with("ostler.example")));
    expect(&agent, "http", "ok", "the API is at");
}

/// Has another node check itself, by the command line of `agent`.
fn doctor_of(agent: &Agent, node: &str) -> Output {
    agent.cli(&["doctor", "--node", node, "--output", "json"])
}

#[test]
fn the_agent_of_another_node_makes_the_checks_of_its_host() {
    let mut cluster = Cluster::start(3, "");
    let (memory, verdict) = {
        let nodes = &cluster.nodes;
        let memory = |output: &Output| {
            let checkup: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
            assert_eq!((&checkup["node"], output.code), (&json!("n2"), i32::from(checkup["verdict"] == "fail")));
            let checks = checkup["checks"].as_array().unwrap().clone();
            checks.into_iter().find(|check| check["topic"] == "memory").unwrap()
        };
        let set = |bytes: Value| {
            nodes[2].patch("/v1/nodes/self", &json!({ "memory_override_bytes": bytes })).expect(200);
        };
        set(json!("900TiB"));
        let found = memory(&doctor_of(&nodes[0], "n2"));
        set(json!(0));
        (found, memory(&doctor_of(&nodes[0], "n2"))["verdict"].clone())
    };
    assert!(memory["verdict"] == "fail" && memory["message"].as_str().unwrap().contains("900 TiB"), "{memory}");
    assert_ne!(verdict, "fail", "it is mended");

    let nodes = &cluster.nodes;
    let text = nodes[0].cli(&["doctor", "--node", "n2"]).stdout;
    assert!(text.contains("\nn2: ") && text.contains("token "), "{text}");
    let url = format!("http://{}", nodes[1].tcp_address());
    let token = nodes[0].token("admin");
    until("the token is on every node", || nodes[1].tcp(Some(&token)).get("/v1/status").status == 200);
    let contacted = nodes[0].cli_with(&["doctor", "--node", &url], &[("OSTLER_API_TOKEN", &token)], "");
    assert!(contacted.stdout.contains("\nn1: "), "the node at a URL checks itself: {contacted:?}");
    for role in ["read", "operate"] {
        let token = nodes[0].token(role);
        nodes[0].tcp(Some(&token)).get("/v1/nodes/n2/doctor").refused(403, "forbidden");
    }
    let answer = nodes[0].tcp(Some(&token)).get("/v1/nodes/n2/doctor");
    assert_eq!((answer.status, answer.header("x-ostler-served-by")), (200, Some("n2")));
    assert!(doctor_of(&nodes[0], "n9").failed(1).contains("no node n9"));
    assert!(nodes[0].cli(&["doctor", "--node", "n1", "--config", "x"]).failed(2).contains("--config"));

    cluster.nodes[2].kill9();
    let unreachable = doctor_of(&cluster.nodes[0], "n2").failed(4);
    assert!(unreachable.contains("n2"), "{unreachable}");
}
