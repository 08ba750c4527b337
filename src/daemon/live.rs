//! The part of the configuration that may change while the agent runs: a watch for each part that follows it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::Config;
use crate::http::{self, Certificate};
use crate::types::OnUnknown;
use crate::{doctor, events, gossip, gpu, images, node, placement, sessions};

/// The ends that are written. Their owner is that of the configuration.
pub(super) struct Live {
    places: watch::Sender<gossip::Places>,
    node: watch::Sender<node::Config>,
    gpu: watch::Sender<gpu::Config>,
    events: watch::Sender<events::Config>,
    doctor: watch::Sender<doctor::Config>,
    images: watch::Sender<images::Config>,
    sessions: watch::Sender<sessions::Config>,
    placement: watch::Sender<placement::Config>,
    allowed_hosts: watch::Sender<Arc<[String]>>,
    /// `None` if `http.listen` does not speak TLS.
    certificate: Option<watch::Sender<Certificate>>,
}

/// The ends that are read.
pub(super) struct Followed {
    pub places: watch::Receiver<gossip::Places>,
    pub node: watch::Receiver<node::Config>,
    pub gpu: watch::Receiver<gpu::Config>,
    pub events: watch::Receiver<events::Config>,
    pub doctor: watch::Receiver<doctor::Config>,
    pub images: watch::Receiver<images::Config>,
    pub sessions: watch::Receiver<sessions::Config>,
    pub placement: watch::Receiver<placement::Config>,
    pub http: http::Followed,
}

pub(super) fn tie(config: &Config, certificate: Option<Certificate>) -> (Live, Followed) {
    let (places, places_read) = watch::channel(places_of(config));
    let (node, node_read) = watch::channel(config.node.clone());
    let (gpu, gpu_read) = watch::channel(config.gpu.clone());
    let (events, events_read) = watch::channel(config.events.clone());
    let (doctor, doctor_read) = watch::channel(config.doctor());
    let (images, images_read) = watch::channel(config.images.clone());
    let (sessions, sessions_read) = watch::channel(config.sessions.clone());
    let (placement, placement_read) = watch::channel(placement_of(config));
    let (allowed_hosts, allowed_hosts_read) = watch::channel(config.http.allowed_hosts.clone().into());
    let (certificate, certificate_read) = certificate.map(watch::channel).unzip();
    let followed = Followed {
        places: places_read,
        node: node_read,
        gpu: gpu_read,
        events: events_read,
        doctor: doctor_read,
        images: images_read,
        sessions: sessions_read,
        placement: placement_read,
        http: http::Followed { allowed_hosts: allowed_hosts_read, certificate: certificate_read },
    };
    (Live { places, node, gpu, events, doctor, images, sessions, placement, allowed_hosts, certificate }, followed)
}

impl Live {
    /// Publishes what is in force now. A part hears of it only if its own share has changed.
    pub(super) fn publish(&self, config: &Config, certificate: Option<Certificate>) {
        replace(&self.places, places_of(config));
        replace(&self.node, config.node.clone());
        replace(&self.gpu, config.gpu.clone());
        replace(&self.events, config.events.clone());
        replace(&self.doctor, config.doctor());
        replace(&self.images, config.images.clone());
        replace(&self.sessions, config.sessions.clone());
        replace(&self.placement, placement_of(config));
        replace(&self.allowed_hosts, config.http.allowed_hosts.clone().into());
        if let (Some(published), Some(certificate)) = (&self.certificate, certificate) {
            replace(published, certificate);
        }
    }
}

fn replace<T: PartialEq>(published: &watch::Sender<T>, value: T) {
    published.send_if_modified(|published| {
        let differs = *published != value;
        if differs {
            *published = value;
        }
        differs
    });
}

fn places_of(config: &Config) -> gossip::Places {
    gossip::Places { advertise: config.cluster.advertise, seeds: config.cluster.seeds.clone() }
}

fn placement_of(config: &Config) -> placement::Config {
    placement::Config {
        strategy: config.placement.strategy,
        on_unknown: config.placement.on_unknown.unwrap_or(OnUnknown::of(config.cluster.mode)),
        max_sessions_per_user: config.sessions.max_sessions_per_user,
    }
}
