//! 200 sessions with random commands from many clients, while the agent is killed repeatedly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ostler::types::Cores;
use serde_json::{Value, json};

use super::{FOREVER, add, configuration, id, sessions_of_containers};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, SOCKET, lines};
use crate::support::http::{Client, Request, Response};

const SESSIONS: usize = 200;
const CLIENTS: u64 = 16;
/// Most sessions that hold a reservation at the same time: the machine is small.
const AT_ONCE: usize = 20;
/// One session in this many is kept to the end.
const KEEP_EVERY: usize = 25;
const KILLS: usize = 6;
/// After this time a client gives up, and the test fails.
const PATIENCE: Duration = Duration::from_secs(240);

/// Reproducible random numbers: the seed is printed, and `OSTLER_SEED` sets it.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn throw() -> Self {
        let given = std::env::var("OSTLER_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed =
            given.unwrap_or_else(|| u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()));
        println!("OSTLER_SEED={seed}");
        Self(seed)
    }

    /// Other numbers, for another thread.
    fn another(&self, n: u64) -> Self {
        Self(self.0 ^ n.wrapping_mul(0xA24B_AED4_963E_E407))
    }

    /// A number from 0 up to `bound`, by splitmix64.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// The answers that the clients got.
#[derive(Default)]
struct Told {
    next: AtomicUsize,
    /// The session of every key.
    acknowledged: Mutex<BTreeMap<usize, String>>,
    kept: Mutex<BTreeSet<String>>,
}

fn creation(key: usize) -> Request {
    let body = json!({"workspace": "w", "user": format!("user{}", key % 7)});
    Request::new("POST", "/v1/sessions").header("idempotency-key", &format!("storm-{key}")).json(&body)
}

/// Repeats the request until the answer is not 503.
fn insist(client: &Client, request: &Request) -> Response {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.try_send(request) {
            Ok(answer) if answer.status != 503 => return answer,
            Ok(answer) => assert!(answer.json()["error"]["retryable"] == true, "{}", answer.text()),
            // The agent is being killed or started.
            Err(_) => {}
        }
        assert!(Instant::now() < deadline, "no answer to {} {}", request.method, request.path);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn be_a_client(client: &Client, dice: &mut Dice, told: &Told) {
    loop {
        let key = told.next.fetch_add(1, Ordering::Relaxed);
        if key >= SESSIONS {
            return;
        }
        let answer = insist(client, &creation(key));
        assert!(answer.status == 202 || answer.status == 200, "{}", answer.text());
        let session = id(&answer.json());
        assert_eq!(told.acknowledged.lock().unwrap().insert(key, session.clone()), None);
        if key.is_multiple_of(KEEP_EVERY) {
            told.kept.lock().unwrap().insert(session);
            continue;
        }
        let path = format!("/v1/sessions/{session}");
        if dice.below(3) > 0 {
            insist(client, &Request::new("GET", &format!("{path}?wait=running&timeout=60s"))).expect(200);
        }
        if dice.below(4) == 0 {
            let stopped = insist(client, &Request::new("POST", &format!("{path}/stop")));
            assert!(stopped.status < 300, "{}", stopped.text());
        }
        let removed = insist(client, &Request::new("DELETE", &path));
        assert!(removed.status < 300, "{}", removed.text());
    }
}

fn ids(sessions: &[Value]) -> BTreeSet<String> {
    sessions.iter().map(id).collect()
}

/// The agent, its journal, its ledger and the engine all know exactly these sessions, and they run.
fn agree(agent: &Agent, lab: &Lab, live: &BTreeSet<String>) {
    until("only the kept sessions are left", || ids(&agent.sessions(false)) == *live);
    for session in live {
        agent.until_state(session, "running");
    }
    assert_eq!(sessions_of_containers(lab), live.iter().cloned().collect::<Vec<_>>());
    let resources = agent.node()["resources"].clone();
    let cores = resources["cores"]["allocated"].to_string().parse::<Cores>().unwrap();
    assert_eq!(cores, Cores::from_milli(50 * u64::try_from(live.len()).unwrap()), "{resources}");
    assert_eq!(resources["memory_bytes"]["allocated"], (16 << 20) * live.len(), "{resources}");
}

#[test]
fn two_hundred_sessions_survive_an_agent_that_is_killed_again_and_again() {
    let Some(lab) = Lab::open("two_hundred_sessions_survive_an_agent_that_is_killed_again_and_again") else { return };
    let limit = format!("limits = {{ max_sessions_per_node = {AT_ONCE}, min_free_disk = 0 }}\n");
    let mut agent = Agent::start(&(configuration(&lab, SOCKET) + &limit));
    add(&agent, &lab, "w", FOREVER, &json!({}));
    let mut dice = Dice::throw();
    let told = Told::default();
    std::thread::scope(|scope| {
        for n in 1..=CLIENTS {
            let (client, mut dice, told) = (agent.client(), dice.another(n), &told);
            scope.spawn(move || be_a_client(&client, &mut dice, told));
        }
        let mut kills = 0;
        while kills < KILLS && told.next.load(Ordering::Relaxed) < SESSIONS {
            std::thread::sleep(Duration::from_millis(u64::try_from(500 + dice.below(6000)).unwrap()));
            agent.kill9();
            agent.up();
            kills += 1;
        }
    });

    let acknowledged = told.acknowledged.into_inner().unwrap();
    let kept = told.kept.into_inner().unwrap();
    assert_eq!(acknowledged.values().collect::<BTreeSet<_>>().len(), SESSIONS, "each key has a session of its own");
    agree(&agent, &lab, &kept);
    assert_eq!(ids(&agent.sessions(true)), acknowledged.values().cloned().collect(), "none was forgotten");
    agent.kill9();
    agent.up();
    agree(&agent, &lab, &kept);
    for (key, session) in &acknowledged {
        assert_eq!(id(&agent.client().send(&creation(*key)).expect(200)), *session, "the same key, the same session");
    }
    for session in &kept {
        super::remove(&agent, session);
    }
    agree(&agent, &lab, &BTreeSet::new());
    let volumes = lines(&["volume", "ls", "--quiet", "--filter", &format!("label=ostler.cluster={}", lab.cluster)]);
    assert!(volumes.is_empty(), "{volumes:?}");
}
