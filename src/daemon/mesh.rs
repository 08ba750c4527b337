//! This node's place in the mesh.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::{Base, VERSION};
use crate::cluster::{Host, Leader, Peers, Rpc};
use crate::gossip::Directory;
use crate::identity::{Credentials, Token};
use crate::net::{self, Hello, Net};
use crate::wire;

/// Binds the endpoint, where there is a token. Until [`answer`], peers wait.
pub(super) async fn join(
    base: &Base,
    token: Option<Token>,
    directory: watch::Receiver<Arc<Directory>>,
) -> Result<Option<Net>> {
    let Some(token) = token else { return Ok(None) };
    let config = &base.config;
    let (cluster, node) = (config.cluster.name.clone(), base.me);
    let credentials = spawn_blocking(move || Credentials::new(&token, &cluster, &node, wire::PROTOCOL)).await??;
    // The sender goes: until the token is rotated, the credentials stay as they are.
    let (_, credentials) = watch::channel(Arc::new(credentials));
    let hello = Hello {
        cluster: config.cluster.name.clone(),
        node,
        name: config.node.name.clone(),
        incarnation: base.incarnation,
        version: VERSION.to_owned(),
        mode: config.cluster.mode,
    };
    let reset_key =
        net::reset_key(&config.data_dir.join("reset-key")).context("the mesh's reset key cannot be kept")?;
    Ok(Some(Net::bind(config.cluster.listen, hello, &reset_key, credentials, base.clock.clone(), directory)?))
}

/// Answers the calls of peers from now on. It comes before gossip: a node that hears of this one may call it at once.
pub(super) fn answer(net: &Net, host: &Host, leader: &Leader) {
    net.serve(Arc::new(Rpc::new(host.clone(), leader.clone(), Peers(Some(net.clone())))));
}
