//! Several real agents of one cluster on loopback.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::agent::{Agent, unique_name, until};

/// A token for clusters of tests. It follows the rules for tokens.
pub(crate) const TOKEN: &str = "q3ZbJ0rTn8wVx5LkPy2sHd7fGm4cAe9uXo1iKt6vRjM";

/// The addresses of a node's mesh.
pub(crate) struct Mesh {
    pub(crate) listen: String,
    /// The address for the other nodes: what the node advertises.
    pub(crate) reached: String,
    /// The node finds its address by itself; `reached` is its address at the start.
    pub(crate) finds_itself: bool,
}

impl Mesh {
    /// A mesh that listens at the address where it is reached.
    pub(crate) fn at(address: String) -> Self {
        Self { listen: address.clone(), reached: address, finds_itself: false }
    }
}

/// Agents that know each other. Dropping it stops them all and leaves nothing behind.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Agent>,
    pub(crate) name: String,
    meshes: Vec<Mesh>,
    /// Holds the token file.
    directory: TempDir,
}

impl Cluster {
    /// `size` nodes `n0`, `n1`, … that have found each other and follow one leader, with these extra
    /// sections of configuration.
    pub(crate) fn start(size: usize, extra: &str) -> Self {
        let mut cluster = Self::prepare(size, extra);
        cluster.nodes.iter_mut().for_each(Agent::up);
        cluster.settled();
        cluster
    }

    /// The same, not started yet.
    pub(crate) fn prepare(size: usize, extra: &str) -> Self {
        Self::prepare_at((0..size).map(|_| Mesh::at(format!("127.0.0.1:{}", free_port()))).collect(), extra)
    }

    /// One node for each of these meshes, not started yet.
    pub(crate) fn prepare_at(meshes: Vec<Mesh>, extra: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let size = meshes.len();
        let mut cluster = Self { nodes: Vec::new(), name: unique_name(), meshes, directory };
        write_token(&cluster.token_file(), TOKEN);
        cluster.nodes = (0..size).map(|i| Agent::prepare(&cluster.configuration(i, extra))).collect();
        cluster
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    /// The address where the other nodes reach the node's mesh.
    pub(crate) fn mesh(&self, node: usize) -> String {
        self.meshes[node].reached.clone()
    }

    /// The configuration that makes an agent node `i` of this cluster.
    fn configuration(&self, i: usize, extra: &str) -> String {
        let seeds: Vec<String> =
            (0..self.meshes.len()).filter(|j| *j != i).map(|j| format!("'{}'", self.mesh(j))).collect();
        let mut all: toml::Table = toml::from_str(extra).unwrap();
        let own: toml::Table = toml::from_str(&format!(
            "node = {{ name = 'n{i}' }}\n\
             cluster = {{ name = '{}', token_file = '{}', listen = '{}', {}seeds = [{}] }}",
            self.name,
            self.token_file().display(),
            self.meshes[i].listen,
            if self.meshes[i].finds_itself { String::new() } else { format!("advertise = '{}', ", self.mesh(i)) },
            seeds.join(", ")
        ))
        .unwrap();
        for (section, keys) in own {
            let joined = all.entry(section).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
            for (key, value) in keys.as_table().unwrap() {
                joined.entry(key).or_insert(value.clone());
            }
        }
        toml::to_string(&all).unwrap()
    }

    /// Waits until all running nodes follow one running leader, and each sees every running node alive.
    pub(crate) fn settled(&self) {
        let running: Vec<usize> = (0..self.nodes.len()).filter(|i| self.nodes[*i].is_running()).collect();
        let names: BTreeSet<String> = running.iter().map(|i| format!("n{i}")).collect();
        until("one leader and every node alive", || {
            let leaders: BTreeSet<String> = running.iter().map(|i| self.followed_by(*i).unwrap_or_default()).collect();
            let one = leaders.len() == 1 && leaders.is_subset(&names);
            one && running.iter().all(|i| names.is_subset(&self.alive(*i)))
        });
    }

    /// The highest term that this node knows.
    pub(crate) fn term(&self, node: usize) -> u64 {
        self.nodes[node].get("/v1/status").expect(200)["cluster"]["term"].as_u64().unwrap()
    }

    /// The name of the node that this one follows.
    pub(crate) fn followed_by(&self, node: usize) -> Option<String> {
        let status = self.nodes[node].get("/v1/status").expect(200);
        status["cluster"]["leader"]["name"].as_str().map(str::to_owned)
    }

    /// The names of the nodes that this one sees alive.
    pub(crate) fn alive(&self, node: usize) -> BTreeSet<String> {
        let nodes = self.nodes[node].get("/v1/nodes").expect(200);
        let alive = nodes["items"].as_array().unwrap().iter().filter(|node| node["state"] == "alive");
        alive.map(|node| node["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The leader, according to a running node.
    pub(crate) fn leader(&self) -> usize {
        let asked = (0..self.nodes.len()).find(|i| self.nodes[*i].is_running()).unwrap();
        let mut leader = None;
        until("a leader", || {
            leader = self.followed_by(asked).and_then(|name| name.strip_prefix('n')?.parse().ok());
            leader.is_some()
        });
        leader.unwrap()
    }

    /// The running nodes that are not the leader.
    pub(crate) fn followers(&self) -> Vec<usize> {
        let leader = self.leader();
        (0..self.nodes.len()).filter(|i| *i != leader && self.nodes[*i].is_running()).collect()
    }
}

/// Writes a token file with the required mode.
pub(crate) fn write_token(file: &std::path::Path, token: &str) {
    fs::write(file, token).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A free UDP port of loopback.
pub(crate) fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
