//! Every key, and whether a change of it takes effect without a restart of the agent. Pure.

use super::Config;
use crate::types::Refreshed;

/// One key of the configuration file.
struct Key {
    name: &'static str,
    /// Its value, to be compared.
    value: fn(&Config) -> String,
    /// Takes the value over from the file that was read again. `None`: only a restart does.
    take: Option<fn(&mut Config, &Config)>,
}

/// A line a key: its effect (`refresh`, or `restart`), its name, and its place in [`Config`].
macro_rules! keys {
    ($($effect:ident $name:literal => $($field:ident).+;)*) => {
        [$(Key {
            name: $name,
            value: |config| format!("{:?}", config.$($field).+),
            take: keys!(@take $effect $($field).+),
        },)*]
    };
    (@take refresh $($field:ident).+) => {
        Some(|into: &mut Config, read: &Config| into.$($field).+.clone_from(&read.$($field).+))
    };
    (@take restart $($field:ident).+) => {
        None
    };
}

/// In the order of the shipped file.
const KEYS: &[Key] = &keys! {
    restart "node.name" => node.name;
    restart "node.data_dir" => data_dir;
    restart "cluster.name" => cluster.name;
    restart "cluster.token_file" => cluster.token_file;
    restart "cluster.listen" => cluster.listen;
    refresh "cluster.advertise" => cluster.advertise;
    refresh "cluster.seeds" => cluster.seeds;
    restart "cluster.mode" => cluster.mode;
    restart "cluster.expected_nodes" => cluster.mode;
    refresh "placement.strategy" => placement.strategy;
    refresh "placement.on_unknown" => placement.on_unknown;
    restart "http.listen" => http.listen;
    restart "http.status_listen" => http.status_listen;
    restart "http.socket" => http.socket;
    refresh "http.tls_cert" => http.tls;
    refresh "http.tls_key" => http.tls;
    refresh "http.allowed_hosts" => http.allowed_hosts;
    refresh "settings.enabled" => node.declared.enabled;
    refresh "settings.prune" => node.declared.prune;
    refresh "settings.cores_override" => node.declared.cores_override;
    refresh "settings.memory_override" => node.declared.memory_override_bytes;
    refresh "settings.gpus_override" => node.declared.gpus_override;
    refresh "settings.gpu_sharing" => node.declared.gpu_sharing;
    refresh "settings.labels" => node.declared.labels;
    restart "runtime.kind" => runtime.kind;
    restart "runtime.docker_host" => runtime.docker_host;
    restart "runtime.cpu_mode" => runtime.cpu_mode;
    restart "runtime.cap_allow" => runtime.cap_allow;
    refresh "runtime.networks" => sessions.networks;
    restart "runtime.port_range" => sessions.port_range;
    restart "runtime.publish_address" => runtime.publish_address;
    restart "runtime.network_subnet" => runtime.network_subnet;
    restart "runtime.idle_ignore" => runtime.idle_ignore;
    restart "runtime.endpoint_host" => sessions.endpoint_host;
    restart "runtime.process_user" => runtime.process_user;
    refresh "images.max_pulls" => images.max_pulls;
    refresh "images.registry_credentials" => images.registry_credentials;
    refresh "images.from_peers" => images.from_peers;
    refresh "images.peer_bandwidth" => images.peer_bandwidth;
    refresh "images.min_age" => images.min_age;
    refresh "images.prune_interval" => images.prune_interval;
    refresh "images.high_watermark" => images.watermarks.high;
    refresh "images.low_watermark" => images.watermarks.low;
    restart "images.path" => runtime.images_path;
    refresh "events.hook" => events.hook;
    refresh "events.hook_kinds" => events.hook_kinds;
    restart "gpu.class" => gpu.class;
    restart "gpu.nvml_library" => gpu.nvml_library;
    refresh "gpu.max_temperature_celsius" => gpu.max_temperature_celsius;
    restart "gpu.hand_over" => runtime.hand_over;
    refresh "limits.max_sessions_per_user" => sessions.max_sessions_per_user;
    refresh "limits.max_sessions_per_node" => sessions.max_sessions_per_node;
    refresh "limits.keep_ended" => sessions.keep_ended;
    refresh "limits.stopped_retention" => sessions.stopped_retention;
    refresh "limits.min_free_disk" => sessions.min_free_disk;
    refresh "gpu.max_foreign_memory" => sessions.max_foreign_gpu_memory;
    refresh "log.level" => log.level;
    restart "log.format" => log.format;
    restart "dev.physical_cores" => dev.physical_cores;
    restart "dev.physical_memory" => dev.physical_memory;
    restart "dev.physical_gpus" => dev.physical_gpus;
};

/// The keys of the files of TLS.
pub const TLS: [&str; 2] = ["http.tls_cert", "http.tls_key"];

impl Config {
    /// Takes over what a file that was read again changes, as far as that takes effect without a restart. `contents`
    /// are the keys of files whose content has changed; of those, only files of TLS take effect.
    pub fn refresh(&mut self, read: &Self, contents: &[&str]) -> Refreshed {
        let mut refreshed = Refreshed::default();
        // A listener either speaks TLS or it does not.
        let switches_tls = self.http.tls.is_some() != read.http.tls.is_some();
        let before = self.clone();
        for key in KEYS {
            let is_tls = TLS.contains(&key.name);
            let is_changed = (key.value)(&before) != (key.value)(read) || contents.contains(&key.name);
            let name = key.name.to_owned();
            match key.take.filter(|_| !(is_tls && switches_tls)) {
                _ if !is_changed => refreshed.unchanged.push(name),
                Some(take) => {
                    take(self, read);
                    refreshed.applied.push(name);
                }
                None => refreshed.needs_restart.push(name),
            }
        }
        self.node.file.clone_from(&read.node.file);
        refreshed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::config::Environment;

    const SHIPPED: &str = include_str!("../../config/ostler.toml");

    fn read(text: &str) -> Config {
        let environment = Environment { host_name: "desk-1".to_owned(), docker_host: None, log_level: None };
        Config::parse(text, Some(Path::new("/etc/ostler/ostler.toml")), true, &environment).unwrap()
    }

    fn names(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn every_key_is_in_the_table_once() {
        let known: BTreeSet<String> = crate::config::known_keys().into_iter().collect();
        let table: BTreeSet<String> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        assert_eq!(table, known);
        assert_eq!(table.len(), KEYS.len());
    }

    #[test]
    fn the_shipped_file_lists_the_keys_that_are_refreshed() {
        let named: BTreeSet<&str> = SHIPPED
            .lines()
            .skip_while(|line| !line.contains("take effect with"))
            .skip(1)
            .take_while(|line| line.starts_with("#   "))
            .flat_map(|line| line.trim_start_matches('#').split([' ', ',']))
            .filter(|word| !word.is_empty())
            .collect();
        let refreshed = KEYS.iter().filter(|key| key.take.is_some()).map(|key| key.name);
        assert_eq!(named, refreshed.collect());
    }

    #[test]
    fn what_changed_is_applied_or_needs_a_restart() {
        let mut config = read("limits.keep_ended = \"1h\"\nhttp.listen = \"127.0.0.1:1\"");
        let changed = read("limits.keep_ended = \"2h\"\nhttp.listen = \"127.0.0.1:2\"\nsettings.enabled = false");
        let refreshed = config.refresh(&changed, &[]);
        assert_eq!(refreshed.applied, names(&["settings.enabled", "limits.keep_ended"]));
        assert_eq!(refreshed.needs_restart, names(&["http.listen"]));
        assert_eq!(refreshed.unchanged.len(), KEYS.len() - 3);
        assert_eq!(config.sessions.keep_ended, changed.sessions.keep_ended);
        assert_eq!(config.http.listen.port(), 1, "what needs a restart stays");
        let again = config.refresh(&changed, &[]);
        assert_eq!((again.applied.len(), again.needs_restart), (0, names(&["http.listen"])));
    }

    #[test]
    fn other_files_of_tls_are_applied_and_tls_itself_needs_a_restart() {
        let of = |name: &str| read(&format!("http.tls_cert = \"/{name}.crt\"\nhttp.tls_key = \"/{name}.key\""));
        let mut config = of("a");
        assert_eq!(config.refresh(&of("b"), &[]).applied, names(&TLS));
        assert_eq!(config.http.tls, of("b").http.tls);
        assert_eq!(config.refresh(&of("b"), &["http.tls_cert"]).applied, names(&TLS[..1]), "new content");
        let refreshed = config.refresh(&read(""), &[]);
        assert_eq!((refreshed.applied.len(), refreshed.needs_restart), (0, names(&TLS)));
        assert_eq!(config.http.tls, of("b").http.tls);
    }

    #[test]
    fn another_token_in_the_file_needs_a_restart() {
        let mut config = read("");
        let refreshed = config.refresh(&read(""), &["cluster.token_file"]);
        assert_eq!((refreshed.applied.len(), refreshed.needs_restart), (0, names(&["cluster.token_file"])));
    }
}
