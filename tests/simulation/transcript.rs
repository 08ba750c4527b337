//! A transcript of two elections: any change of the protocol shows here.

use ostler::types::ClusterMode;

use crate::network::Network;
use crate::world::World;

/// The first election of three nodes, then the election after their leader dies.
fn transcript() -> String {
    let mut world = World::new(3, ClusterMode::Available, Network::good(), 7);
    world.log = Some(Vec::new());
    while world.settled().is_none() {
        world.step(10_000);
    }
    let leader = world.settled().unwrap();
    let killed = world.hosts.iter().position(|host| host.id == leader).unwrap();
    let dies = world.now + 300;
    while world.step(dies) {}
    world.crash(killed);
    world.log.as_mut().unwrap().push(format!("{:>6} ms  n{killed} dies", world.now));
    while world.settled().is_none() {
        world.step(world.now + 10_000);
    }
    world.log.unwrap().join("\n") + "\n"
}

#[test]
fn the_transcript_of_two_elections_is_pinned() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/election-v1.txt");
    let now = transcript();
    if std::env::var_os("OSTLER_REWRITE").is_some() {
        std::fs::write(golden, &now).unwrap();
    }
    assert_eq!(now, std::fs::read_to_string(golden).unwrap(), "OSTLER_REWRITE=1 rewrites the golden file");
}
