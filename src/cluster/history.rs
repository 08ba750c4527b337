//! History: each node has its own, and the cluster's as it saw it.

use async_trait::async_trait;

use super::rpc::Serves;
use super::{Cluster, Error, Host, Routed, SLOW};
use crate::history;
use crate::types::{Actor, History, HistoryQuery, Name};
use crate::wire::message;

impl Cluster {
    /// The history of a node and its GPUs, from that node.
    ///
    /// # Errors
    /// The query is not valid, or the node cannot be reached: its history is on it.
    pub async fn history(&self, wanted: &Name, query: HistoryQuery) -> Result<Routed<History>, Error> {
        let id = self.resolve(wanted).await?;
        let Routed { answer, by } = self.on(&id, message::History(query), SLOW).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// The history of the cluster, as this node saw it.
    ///
    /// # Errors
    /// The query is not valid.
    pub async fn own_history(&self, query: HistoryQuery) -> Result<History, Error> {
        Ok(self.host().read_history(query, true).await?)
    }
}

impl Host {
    async fn read_history(&self, query: HistoryQuery, is_cluster: bool) -> Result<History, history::Error> {
        self.history.query(query, is_cluster, self.settings.state().name.clone(), self.observer.now()).await
    }
}

#[async_trait]
impl Serves<message::History> for Host {
    async fn serve(&self, message::History(query): message::History, _: &Actor) -> Result<History, history::Error> {
        self.read_history(query, false).await
    }
}
