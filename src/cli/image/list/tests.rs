use super::*;
use crate::types::{Bytes, ImageStoreKind};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn image(id: &str, names: &[&str]) -> Image {
    Image {
        id: format!("sha256:{id}{}", "0".repeat(60)),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        digests: Vec::new(),
        size_bytes: Bytes::mib(10),
        shared_bytes: None,
        owner: ImageOwner::Foreign,
        origin: None,
        sources: Vec::new(),
        pinned: false,
        removing: false,
        workspaces: Vec::new(),
        sessions: Vec::new(),
        containers: Some(0),
        pulled_at: None,
        last_used_at: None,
    }
}

fn pull(image: &str, state: ImagePullState) -> ImagePull {
    ImagePull {
        node: "a".parse().unwrap(),
        image: image.to_owned(),
        state,
        fetched_bytes: Bytes::mib(35),
        size_bytes: Bytes::mib(120),
        layers_ready: 1,
        layers: 3,
        id: None,
        changed: None,
    }
}

fn node(items: Vec<Image>, pulls: Vec<ImagePull>) -> NodeImages {
    NodeImages {
        node: "a".parse().unwrap(),
        store: Some(ImageStoreKind::GraphDriver),
        path: Some("/var/lib/docker".to_owned()),
        listed_at: Some(at(95)),
        total_bytes: Some(Bytes::mib(25)),
        total_at_most_bytes: Bytes::mib(25),
        images: u64::try_from(items.len()).unwrap(),
        note: None,
        pulls,
        items,
        next_cursor: None,
    }
}

fn names(of: &[&str]) -> Vec<Name> {
    of.iter().map(|name| name.parse().unwrap()).collect()
}

#[test]
fn images_show_whose_they_are_and_what_uses_them() {
    let session = || "mfrggzdfmztwq2lknnwg23tpob".parse().unwrap();
    let used = Image {
        owner: ImageOwner::Ostler,
        pinned: true,
        workspaces: names(&["page", "web"]),
        sessions: vec![session(), session()],
        containers: Some(3),
        last_used_at: Some(at(90)),
        ..image("3f57", &["busybox:1.36"])
    };
    let dangling = Image { digests: vec![format!("busybox@sha256:{}", "ab".repeat(32))], ..image("0a", &[]) };
    let all = [used, image("0b", &[]), dangling, image("aa", &["alpine:mine", "alpine:3"])];
    let pulls = [pull("desktop:1", ImagePullState::Running), pull("alpine:3", ImagePullState::Waiting)];
    let expected = "\
NAME                           ID             SIZE     OWNER     USED BY                                                    LAST USED   NOTE
alpine:mine, alpine:3          aa0000000000   10 MiB   foreign   -                                                          -           waiting for other pulls
busybox:1.36                   3f5700000000   10 MiB   ostler    workspaces page and web, 2 sessions, 1 other container   10s ago     pinned
busybox@sha256:abababababab   0a0000000000   10 MiB   foreign   -                                                          -           dangling
desktop:1                      -              -        -         -                                                          -           pulling 35 MiB of 120 MiB
-                              0b0000000000   10 MiB   foreign   -                                                          -           dangling

4 images, 25 MiB, listed 5s ago (graph driver at /var/lib/docker)";
    let squeeze = |text: &str| {
        let cells =
            |line: &str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("|");
        text.lines().map(cells).collect::<Vec<_>>()
    };
    let shown = describe(&[node(all.to_vec(), pulls.to_vec())], false, at(100));
    assert_eq!(squeeze(&shown), squeeze(expected), "{shown}");
}

#[test]
fn every_node_has_its_rows_and_its_total() {
    let one = node(vec![image("1", &["x:1"])], Vec::new());
    let shared = NodeImages { node: "b".parse().unwrap(), total_bytes: None, ..one.clone() };
    let without = NodeImages {
        node: "c".parse().unwrap(),
        note: Some("this node has no images".to_owned()),
        items: Vec::new(),
        ..one.clone()
    };
    let expected = "\
NODE   NAME   ID             SIZE     OWNER     USED BY   LAST USED   NOTE
a      x:1    100000000000   10 MiB   foreign   -         -           -
b      x:1    100000000000   10 MiB   foreign   -         -           -

a: 1 image, 25 MiB, listed 5s ago (graph driver at /var/lib/docker)
b: 1 image, at most 25 MiB, listed 5s ago (graph driver at /var/lib/docker)
c: this node has no images";
    assert_eq!(describe(&[one.clone(), shared, without], true, at(100)), expected);
    let some = describe(&[NodeImages { images: 4, ..one }], false, at(100));
    assert!(some.contains("\n1 of 4 images, 25 MiB, "), "{some}");
}

#[test]
fn the_users_of_an_image_are_named_or_counted() {
    let used = |workspaces: &[&str], sessions: usize, containers| {
        let sessions = vec!["mfrggzdfmztwq2lknnwg23tpob".parse().unwrap(); sessions];
        used_by(&Image { workspaces: names(workspaces), sessions, containers, ..image("1", &[]) })
    };
    assert_eq!(used(&[], 0, None), "-");
    assert_eq!(used(&["a"], 1, Some(1)), "workspace a, 1 session");
    assert_eq!(used(&["a", "b", "c"], 0, Some(0)), "3 workspaces");
    assert_eq!(used(&[], 2, Some(1)), "2 sessions", "a container is newer than the list");
    assert_eq!(used(&[], 0, Some(2)), "2 other containers");
}

#[test]
fn a_pull_says_what_it_does() {
    let running = |fetched, size, layers_ready| {
        let (fetched_bytes, size_bytes) = (Bytes::mib(fetched), Bytes::mib(size));
        doing(&ImagePull { fetched_bytes, size_bytes, layers_ready, ..pull("x:1", ImagePullState::Running) })
    };
    assert_eq!(running(0, 0, 0), "pulling");
    assert_eq!(running(35, 120, 1), "pulling 35 MiB of 120 MiB");
    assert_eq!(running(120, 120, 1), "unpacking, 1 of 3 layers done");
}
