//! Docker objects that are not ostler's stay unchanged, whatever their names and labels are.

use serde_json::{Value, json};

use super::storm::Dice;
use super::{FOREVER, add, condition, configuration, container, id, run, sessions_of_containers, start};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, SOCKET, docker, quietly};

const STEPS: usize = 50;

/// Objects of others on the same engine. Dropping it removes them.
struct Strangers {
    containers: Vec<String>,
    networks: Vec<String>,
    volumes: Vec<String>,
    image: String,
}

impl Strangers {
    /// Creates objects that could be mistaken for ostler's, and some that could not.
    fn move_in(lab: &Lab) -> Self {
        let cluster = &lab.cluster;
        let named = |what: &str| format!("stranger-{cluster}-{what}");
        let mut all = Self {
            containers: Vec::new(),
            networks: vec![named("network"), named("labelled-network")],
            volumes: vec![named("volume"), format!("ostler-{cluster}.home")],
            image: format!("stranger-{cluster}:1"),
        };
        docker(&["tag", &lab.image, &all.image]);
        docker(&["network", "create", &all.networks[0]]);
        docker(&["network", "create", "--label", &format!("ostler.cluster={cluster}"), &all.networks[1]]);
        for volume in &all.volumes {
            docker(&["volume", "create", volume]);
        }
        let session = |key: &str| ostler::types::SessionId::of_key(cluster, key).to_string();
        let mut add = |name: &str, state: &str, labels: &[(&str, &str)]| {
            let mut words = vec!["run", "--detach", "--network", &all.networks[0], "--volume"];
            let volume = format!("{}:/data", all.volumes[0]);
            words.extend([volume.as_str(), "--name", name]);
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            labels.iter().for_each(|label| words.extend(["--label", label]));
            words.extend([all.image.as_str(), "sleep", "100000"]);
            docker(&words);
            if state != "running" {
                docker(&[state, name]);
            }
            all.containers.push(name.to_owned());
        };
        add(&named("plain"), "running", &[]);
        add(&named("paused"), "pause", &[]);
        let (first, second) = (session("first"), session("second"));
        let ours = |session, node| {
            let figures = [("ostler.cores_milli", "50"), ("ostler.memory_bytes", "16777216"), ("ostler.gpus", "0")];
            let whose = [("ostler.cluster", cluster.as_str()), ("ostler.node", node), ("ostler.session", session)];
            let what = [("ostler.user", "alice"), ("ostler.workspace", "w"), ("ostler.gpu_uuids", "")];
            [whose, what, figures].concat()
        };
        add(&container(lab, &first), "running", &ours(&first, "aaaaaaaaaaaaaaaa"));
        add(&container(lab, &second), "stop", &ours(&second, "aaaaaaaaaaaaaaaa"));
        all
    }

    /// Everything that the engine reports about them.
    fn look(&self) -> Value {
        let inspected = |what: &[&str], names: &[String]| -> Value {
            let words: Vec<&str> = what.iter().copied().chain(names.iter().map(String::as_str)).collect();
            serde_json::from_str(&docker(&words)).unwrap()
        };
        json!([
            inspected(&["inspect"], &self.containers),
            inspected(&["network", "inspect"], &self.networks),
            inspected(&["volume", "inspect"], &self.volumes),
            docker(&["image", "inspect", "--format", "{{.Id}}", &self.image]),
        ])
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        self.containers.iter().for_each(|name| quietly(&["rm", "--force", "--volumes", name]));
        self.networks.iter().for_each(|name| quietly(&["network", "rm", name]));
        self.volumes.iter().for_each(|name| quietly(&["volume", "rm", name]));
        quietly(&["rmi", &self.image]);
    }
}

#[test]
fn random_commands_touch_no_objects_of_others() {
    let Some(lab) = Lab::open("random_commands_touch_no_objects_of_others") else { return };
    let mut agent = start(&lab);
    let node = agent.node()["id"].as_str().unwrap().to_owned();
    let strangers = Strangers::move_in(&lab);
    let before = strangers.look();
    add(&agent, &lab, "w", FOREVER, &json!({"volumes": [{"name": "own-{user}", "path": "/home/me"}]}));
    add(&agent, &lab, "taken", FOREVER, &json!({"volumes": [{"name": "home", "path": "/home/me"}]}));
    let refused = id(&agent.create("taken", "alice").expect(202));
    let refused = agent.until_state(&refused, "failed");
    assert_eq!(refused["end_reason"], "start_failed");
    assert!(refused["message"].as_str().unwrap().contains("not ostler's"), "{refused}");
    agent.delete("/v1/nodes/self/volumes/home");

    let mut dice = Dice::throw();
    for _ in 0..STEPS {
        let sessions = agent.sessions(false);
        let picked = sessions.get(dice.below(sessions.len().max(1))).map(id);
        match (dice.below(10), picked) {
            (0, _) => {
                agent.kill9();
                agent.up();
            }
            (1, _) => agent.restart(),
            (2..=4, _) | (_, None) => drop(agent.create("w", "alice")),
            // The agent may reject a command that does not suit the session's state.
            (5, Some(id)) => drop(agent.client().command(&format!("/v1/sessions/{id}/stop"))),
            (6, Some(id)) => drop(agent.client().command(&format!("/v1/sessions/{id}/start"))),
            (7, Some(id)) => drop(agent.client().command(&format!("/v1/sessions/{id}/pause"))),
            (_, Some(id)) => drop(agent.delete(&format!("/v1/sessions/{id}"))),
        }
    }
    for session in agent.sessions(false) {
        super::remove(&agent, &id(&session));
    }
    assert_eq!(strangers.look(), before);
    assert!(agent.sessions(true).iter().all(|session| session["node_id"] == node.as_str()));
}

/// Two nodes of one cluster share an engine only by mistake. Neither takes the other's sessions for its own.
#[test]
fn two_agents_on_one_engine_leave_each_other_alone() {
    let Some(lab) = Lab::open("two_agents_on_one_engine_leave_each_other_alone") else { return };
    let extra = configuration(&lab, SOCKET);
    let (mut one, mut two) = (Agent::start(&extra), Agent::start(&(extra + "node = { name = 'two' }\n")));
    for agent in [&one, &two] {
        add(agent, &lab, "w", FOREVER, &json!({}));
    }
    let first = id(&one.running("w", "alice"));
    let second = id(&two.running("w", "bob"));
    let (first_run, second_run) = (run(&lab, &first), run(&lab, &second));
    for agent in [&mut one, &mut two] {
        agent.kill9();
        std::fs::remove_file(agent.data_dir().join("sessions.redb")).unwrap();
        agent.up();
    }
    for (agent, own) in [(&one, &first), (&two, &second)] {
        agent.until_state(own, "running");
        assert_eq!(agent.sessions(true).len(), 1, "only its own is adopted");
        until("a condition names the other's", || condition(agent, "stray_containers").is_some());
    }
    super::remove(&one, &first);
    assert_eq!(sessions_of_containers(&lab), [second.as_str()]);
    assert_eq!(run(&lab, &second), second_run);
    assert_ne!(first_run, second_run);

    // A session of the same key has the same container name as the other node's: it fails, and nothing is taken over.
    let request = crate::support::http::Request::new("POST", "/v1/sessions").header("idempotency-key", "same");
    let request = request.json(&json!({"workspace": "w", "user": "alice"}));
    let of_two = id(&two.client().send(&request).expect(202));
    two.until_state(&of_two, "running");
    let running = run(&lab, &of_two);
    let of_one = id(&one.client().send(&request).expect(202));
    assert_eq!(of_one, of_two);
    let failed = one.until_state(&of_one, "failed");
    assert_eq!(failed["end_reason"], "start_failed");
    assert!(failed["message"].as_str().unwrap().contains("left alone"), "{failed}");
    super::remove(&one, &of_one);
    assert_eq!(run(&lab, &of_two), running);
}
