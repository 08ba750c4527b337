//! What `ostler doctor` needs of the configuration.

use super::Config;
use crate::doctor;
use crate::types::Bytes;

impl Config {
    /// The part that the checks of `ostler doctor` read.
    pub fn doctor(&self) -> doctor::Config {
        let Self { node, cluster, http, runtime, sessions, gpu, .. } = self;
        doctor::Config {
            name: node.name.clone(),
            data_dir: self.data_dir.clone(),
            cluster: cluster.name.clone(),
            token_file: cluster.token_file.clone(),
            listen: cluster.listen,
            advertise: cluster.advertise,
            seeds: cluster.seeds.clone(),
            runtime: runtime.kind,
            docker_host: runtime.docker_host.clone(),
            cpu_mode: runtime.cpu_mode,
            hand_over: runtime.hand_over,
            images_path: runtime.images_path.clone(),
            gpu_class: gpu.class.clone(),
            nvml_library: gpu.nvml_library.clone(),
            publish_address: runtime.publish_address,
            port_range: sessions.port_range,
            endpoint_host: sessions.endpoint_host.clone(),
            min_free_disk: sessions.min_free_disk,
            memory_override: node.declared.memory_override_bytes.unwrap_or(Bytes::ZERO),
            http: http.listen,
            allowed_hosts: http.allowed_hosts.clone(),
            certificate: http.tls.as_ref().map(|tls| tls.cert.clone()),
            socket: http.socket.clone(),
            dev: self.dev,
        }
    }
}
