//! The listener of the API and its certificate.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{QUICK, blocking};
use crate::doctor::judge::http::{Certificate, ENDS_SOON, Facts};
use crate::doctor::{Agent, Config};
use crate::identity::unfit;
use crate::types::Timestamp;

pub(super) async fn facts(config: &Config, agent: &Agent, now: Timestamp) -> Facts {
    let file = config.certificate.clone();
    let names = names(config);
    let certificate = match &file {
        None => Certificate::None,
        Some(file) => {
            let path = file.clone();
            let read = blocking(move || read(&path, &names, now)).await;
            read.unwrap_or_else(|| Certificate::Wrong(format!("{} cannot be read in time", file.display())))
        }
    };
    let is_up = agent.told().is_some() && config.http.port() != 0;
    Facts {
        listen: config.http,
        allowed_hosts: config.allowed_hosts.clone(),
        endpoint_host: config.endpoint_host.clone(),
        certificate,
        file: file.map(|file| file.display().to_string()).unwrap_or_default(),
        answers: if is_up { Some(connect(config).await) } else { None },
    }
}

/// The names that clients use: the allowed ones, or else the one that users get.
fn names(config: &Config) -> Vec<String> {
    if config.allowed_hosts.is_empty() { vec![config.endpoint_host.clone()] } else { config.allowed_hosts.clone() }
}

fn read(file: &Path, names: &[String], now: Timestamp) -> Certificate {
    let wrong = |why: &dyn std::fmt::Display| Certificate::Wrong(format!("certificate {}: {why}", file.display()));
    let first = match CertificateDer::from_pem_file(file) {
        Ok(first) => first,
        Err(error) => return wrong(&error),
    };
    let seconds = u64::try_from(now.millis() / 1000).unwrap_or(0);
    match unfit(&first, names, seconds, ENDS_SOON) {
        Err(why) => wrong(&why),
        Ok(found) => {
            let day = |end: u64| Timestamp::from_millis(i64::try_from(end).unwrap_or(i64::MAX / 1000) * 1000).day();
            Certificate::Read { lacks: found.lacks, invalid: found.invalid, ends: found.ends.map(day) }
        }
    }
}

async fn connect(config: &Config) -> Result<(), String> {
    let mut address = config.http;
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
        address.set_ip(loopback.parse().map_err(|_| "no loopback address".to_owned())?);
    }
    match timeout(QUICK, TcpStream::connect(address)).await {
        Ok(connected) => connected.map(drop).map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", QUICK.as_secs())),
    }
}
