//! GPUs: the leader lists them, and the node that has one changes it.

use super::knowledge::find_node;
use super::{Cluster, Error, Routed, SLOW};
use crate::gpu::Command;
use crate::types::{Actor, Gpu, GpuState, Name, Node, NodeId};
use crate::wire::message::ChangeGpu;

/// Which GPUs a list has. `None`: of any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuFilter {
    /// A node, by its name, its id, a prefix of its id, or `self`.
    pub node: Option<Name>,
    pub state: Option<GpuState>,
}

impl Cluster {
    /// The GPUs of the whole cluster that the filter selects, by node and in the order of their UUIDs.
    pub async fn gpus(&self, filter: &GpuFilter) -> Routed<Vec<Gpu>> {
        self.nodes().await.map(|nodes| select(nodes, self.mesh.me(), filter))
    }

    /// The GPU whose UUID is `wanted` or begins with it.
    pub async fn gpu(&self, wanted: &str) -> Result<Routed<Gpu>, Error> {
        let Routed { answer, by } = self.nodes().await;
        let (_, gpu) = find(&answer, wanted, false)?;
        Ok(Routed { answer: gpu.clone(), by })
    }

    /// Keeps new sessions off a GPU, or lets them use it again. Returns the GPU after the change.
    pub async fn cordon_gpu(&self, wanted: &str, cordon: bool, by: &Actor) -> Result<Routed<Gpu>, Error> {
        let command = if cordon { Command::Cordon } else { Command::Uncordon };
        let Routed { answer, by } = self.change_gpu(wanted, command, by).await?;
        // Its host has forgotten it meanwhile.
        Ok(Routed { answer: answer.ok_or_else(|| Error::NoGpu(wanted.to_owned()))?, by })
    }

    /// Makes its host forget a GPU that is lost.
    ///
    /// # Errors
    /// The GPU is present.
    pub async fn forget_gpu(&self, wanted: &str, by: &Actor) -> Result<Routed<()>, Error> {
        Ok(self.change_gpu(wanted, Command::Forget, by).await?.map(|_| ()))
    }

    async fn change_gpu(&self, wanted: &str, command: Command, by: &Actor) -> Result<Routed<Option<Gpu>>, Error> {
        let nodes = self.nodes().await.answer;
        let (node, gpu) = find(&nodes, wanted, command == Command::Forget)?;
        let change = ChangeGpu { uuid: gpu.uuid.clone(), command };
        let Routed { answer, by } = self.change_on(&node.id, change, by, SLOW).await?;
        Ok(Routed { answer: answer?, by })
    }
}

fn select(nodes: Vec<Node>, this: &NodeId, filter: &GpuFilter) -> Vec<Gpu> {
    // A node that is not known has no GPUs: the list is empty, as that of its sessions is.
    let wanted = filter.node.as_ref().map(|name| find_node(&nodes, this, name.as_str()).ok().map(|i| nodes[i].id));
    let nodes = nodes.into_iter().filter(|node| wanted.is_none_or(|wanted| wanted == Some(node.id)));
    let gpus = nodes.flat_map(|node| node.gpus);
    gpus.filter(|gpu| filter.state.is_none_or(|state| gpu.state == state)).collect()
}

/// The GPU whose UUID is `wanted` or begins with it, and its node.
///
/// A card that was moved to another host is known by both hosts until the first one forgets it or reboots. `lost`: whether
/// the lost one of the two is meant.
fn find<'a>(nodes: &'a [Node], wanted: &str, lost: bool) -> Result<(&'a Node, &'a Gpu), Error> {
    let all = nodes.iter().flat_map(|node| node.gpus.iter().map(move |gpu| (node, gpu)));
    let mut found: Vec<(&Node, &Gpu)> = all.filter(|(_, gpu)| gpu.uuid.starts_with(wanted)).collect();
    // An exact match is meant even if it is also the beginning of another UUID.
    if found.iter().any(|(_, gpu)| gpu.uuid == wanted) {
        found.retain(|(_, gpu)| gpu.uuid == wanted);
    }
    let is_one_card = found.windows(2).all(|pair| pair[0].1.uuid == pair[1].1.uuid);
    let is_meant = |gpu: &Gpu| (gpu.state == GpuState::Lost) == lost;
    if is_one_card && found.iter().any(|(_, gpu)| is_meant(gpu)) {
        found.retain(|(_, gpu)| is_meant(gpu));
    }
    match found.as_slice() {
        [found] => Ok(*found),
        [] => Err(Error::NoGpu(wanted.to_owned())),
        several => {
            let found = several.iter().map(|(node, gpu)| format!("{} on {}", gpu.uuid, node.name)).collect();
            Err(Error::AmbiguousGpu { wanted: wanted.to_owned(), found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{GpuProfile, sample};

    const ONE: &str = "aabb222222222222";
    const TWO: &str = "aacc222222222222";

    fn node(name: &str, id: &str, gpus: &[(&str, GpuState)]) -> Node {
        let mut node = sample::node(name, id);
        let gpu = |(uuid, state): &(&str, GpuState)| {
            Gpu::of(&GpuProfile { state: *state, ..sample::gpu(uuid, 0) }, &name.parse().unwrap(), None)
        };
        node.gpus = gpus.iter().map(gpu).collect();
        node
    }

    /// Where the GPU is found.
    fn found(nodes: &[Node], wanted: &str, lost: bool) -> Result<String, Error> {
        find(nodes, wanted, lost).map(|(node, gpu)| format!("{} on {}", gpu.uuid, node.name))
    }

    #[test]
    fn a_gpu_is_found_on_any_node_by_a_unique_prefix() {
        use GpuState::{Lost, Ok as Fine};
        let nodes = [node("one", ONE, &[("GPU-12", Fine), ("GPU-123", Lost)]), node("two", TWO, &[("GPU-3", Fine)])];
        assert_eq!(found(&nodes, "GPU-3", false), Ok("GPU-3 on two".to_owned()));
        assert_eq!(found(&nodes, "GPU-123", false), Ok("GPU-123 on one".to_owned()));
        assert_eq!(found(&nodes, "GPU-12", true), Ok("GPU-12 on one".to_owned()), "the whole UUID");
        assert_eq!(found(&nodes, "GPU-4", false), Err(Error::NoGpu("GPU-4".to_owned())));
        let told = found(&nodes, "GPU-1", false).unwrap_err().to_string();
        assert_eq!(told, "`GPU-1` is 2 GPUs: GPU-12 on one and GPU-123 on one; name one by its whole UUID");
    }

    #[test]
    fn a_card_that_was_moved_is_changed_where_it_is_and_forgotten_where_it_was() {
        use GpuState::{Hot, Lost, Ok as Fine};
        let nodes = [node("one", ONE, &[("GPU-1", Lost)]), node("two", TWO, &[("GPU-1", Fine)])];
        assert_eq!(found(&nodes, "GPU-1", false), Ok("GPU-1 on two".to_owned()));
        assert_eq!(found(&nodes, "GPU", true), Ok("GPU-1 on one".to_owned()));
        let twins = [node("one", ONE, &[("GPU-1", Hot)]), node("two", TWO, &[("GPU-1", Fine)])];
        for lost in [false, true] {
            assert!(matches!(found(&twins, "GPU-1", lost), Err(Error::AmbiguousGpu { .. })));
        }
        assert_eq!(found(&nodes[..1], "GPU-1", false), Ok("GPU-1 on one".to_owned()), "it is nowhere else");
    }

    #[test]
    fn a_list_has_the_gpus_of_a_node_and_of_a_state() {
        use GpuState::{Lost, Ok as Fine};
        let nodes = [node("one", ONE, &[("GPU-1", Lost), ("GPU-2", Fine)]), node("two", TWO, &[("GPU-3", Fine)])];
        let listed = |name: Option<&str>, state| {
            let filter = GpuFilter { node: name.map(|name| name.parse().unwrap()), state };
            let listed = select(nodes.to_vec(), &ONE.parse().unwrap(), &filter);
            listed.into_iter().map(|gpu| gpu.uuid).collect::<Vec<_>>()
        };
        assert_eq!(listed(None, None), ["GPU-1", "GPU-2", "GPU-3"]);
        assert_eq!(listed(Some("self"), None), ["GPU-1", "GPU-2"]);
        assert_eq!(listed(Some("aac"), None), ["GPU-3"]);
        assert_eq!(listed(None, Some(Lost)), ["GPU-1"]);
        assert_eq!(listed(Some("two"), Some(Lost)), [""; 0]);
        assert_eq!(listed(Some("three"), None), [""; 0]);
    }
}
