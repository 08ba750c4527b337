use super::*;

fn workspace() -> Workspace {
    let mut workspace = Workspace::new("desktop".parse().unwrap(), Cores::whole(2), Bytes::gib(2));
    workspace.image = Some("kasmweb/desktop:1.16.0".to_owned());
    workspace
}

fn digest(digit: char) -> String {
    format!("sha256:{}", String::from(digit).repeat(64))
}

#[test]
fn a_pinned_workspace_means_that_digest_of_its_images_repository() {
    let mut pinned = workspace();
    let reference = |w: &Workspace| w.image_reference();
    assert_eq!(reference(&pinned).as_deref(), Some("kasmweb/desktop:1.16.0"));
    pinned.image_digest = Some(digest('a'));
    for image in ["kasmweb/desktop:1.16.0", "docker.io/kasmweb/desktop", &format!("kasmweb/desktop:1@{}", digest('a'))]
    {
        pinned.image = Some(image.to_owned());
        assert_eq!(pinned.validate(), Ok(()));
        assert_eq!(reference(&pinned), Some(format!("kasmweb/desktop@{}", digest('a'))), "{image}");
    }
    pinned.image = Some("localhost:5000/x:1".to_owned());
    assert_eq!(reference(&pinned), Some(format!("localhost:5000/x@{}", digest('a'))));
    assert_eq!(Workspace { image: None, ..pinned }.image_reference(), None);
}

fn refused(change: impl FnOnce(&mut Workspace)) -> String {
    let mut workspace = workspace();
    change(&mut workspace);
    workspace.validate().unwrap_err().field
}

#[test]
fn every_field_is_checked_and_named() {
    assert_eq!(workspace().validate(), Ok(()));
    let port = Port { container_port: 80, protocol: Protocol::Tcp };
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        path: path.to_owned(),
        read_only: false,
        roam: false,
    };
    assert_eq!(refused(|w| w.image = None), "image");
    assert_eq!(refused(|w| w.image = Some("--privileged".to_owned())), "image");
    for wrong in
        ["", "sha256:", "sha512:00", &digest('G'), &digest('A'), &digest('0')[1..], &format!("{}0", digest('0'))]
    {
        assert_eq!(refused(|w| w.image_digest = Some(wrong.to_owned())), "image_digest", "{wrong}");
    }
    let pinned = |image: Option<&str>| {
        refused(|w| {
            (w.command, w.image_digest) = (vec!["true".to_owned()], Some(digest('a')));
            w.image = image.map(str::to_owned);
        })
    };
    assert_eq!(pinned(None), "image_digest", "a digest without an image");
    assert_eq!(pinned(Some(&format!("x@{}", digest('b')))), "image_digest", "the image has another digest");
    assert_eq!(pinned(Some("a//b")), "image");
    assert_eq!(refused(|w| w.cores = Cores::ZERO), "cores");
    assert_eq!(refused(|w| w.memory_bytes = Bytes::new(1)), "memory_bytes");
    assert_eq!(refused(|w| w.gpus = 100_000), "gpus");
    assert_eq!(refused(|w| w.ports = vec![Port { container_port: 0, ..port }]), "ports[0].container_port");
    assert_eq!(refused(|w| w.ports = vec![port, port]), "ports[1]");
    let ready = |change: fn(&mut Ready)| {
        refused(|w| {
            let mut ready = Ready::on(80);
            change(&mut ready);
            (w.ports, w.ready) = (vec![port], Some(ready));
        })
    };
    assert_eq!(ready(|ready| ready.port = 81), "ready.port");
    assert_eq!(ready(|ready| ready.path = Some("health".to_owned())), "ready.path");
    assert_eq!(ready(|ready| ready.path = Some("/a b".to_owned())), "ready.path");
    assert_eq!(ready(|ready| ready.timeout_seconds = 0), "ready.timeout_seconds");
    assert_eq!(refused(|w| w.ttl_seconds = Some(0)), "ttl_seconds");
    assert_eq!(refused(|w| w.stop_grace_seconds = 3601), "stop_grace_seconds");
    assert_eq!(refused(|w| w.entrypoint = vec![String::new()]), "entrypoint[0]");
    for odd in ["", "a b", "a:", ":a", "a:b:c", "-x", &"a".repeat(33)] {
        assert_eq!(refused(|w| w.run_as = Some(odd.to_owned())), "run_as", "{odd}");
    }
    assert_eq!(refused(|w| w.tmpfs = vec!["run".to_owned()]), "tmpfs[0]");
    assert_eq!(refused(|w| w.tmpfs = vec!["/run".to_owned(), "/run".to_owned()]), "tmpfs[1]");
    assert_eq!(refused(|w| w.idle_timeout_seconds = Some(u64::MAX)), "idle_timeout_seconds");
    assert_eq!(refused(|w| w.command = vec![String::new()]), "command[0]");
    assert_eq!(refused(|w| w.command = vec!["a".into(), "x".repeat(128 << 10)]), "command[1]");
    assert_eq!(refused(|w| w.command = vec!["a".into(), "b\0".into()]), "command[1]");
    assert_eq!(refused(|w| w.command = vec!["x".repeat(1000); 66]), "command");
    assert_eq!(refused(|w| w.env = [("A".into(), "{user}".repeat(5000))].into()), "env.A");
    assert_eq!(refused(|w| w.volumes = vec![mount("/etc", "/host")]), "volumes[0].name");
    assert_eq!(refused(|w| w.volumes = vec![mount("home-{user}", "/a/../b")]), "volumes[0].path");
    assert_eq!(refused(|w| w.volumes = vec![mount("home-{user}", "/proc/x")]), "volumes[0].path");
    assert_eq!(refused(|w| w.shm_bytes = Bytes::gib(4)), "shm_bytes");
}

#[test]
fn a_request_changes_only_what_it_names() {
    let mut workspace = workspace();
    workspace.env.insert("A".to_owned(), "1".to_owned());
    let mut request = SessionRequest::new(workspace.name.clone(), "alice".parse().unwrap());
    assert_eq!(workspace.resolve(&request), workspace);
    request.cores = Some(Cores::whole(1));
    request.env.insert("A".to_owned(), "2".to_owned());
    let resolved = workspace.resolve(&request);
    assert_eq!((resolved.cores, resolved.memory_bytes), (Cores::whole(1), Bytes::gib(2)));
    assert_eq!(resolved.env["A"], "2");
}

#[test]
fn json_fields_have_defaults_and_unknown_fields_are_rejected() {
    let json = r#"{"name":"x","image":"busybox","cores":1,"memory_bytes":"64M"}"#;
    let workspace: Workspace = serde_json::from_str(json).unwrap();
    assert_eq!(workspace.shm_bytes, Bytes::mib(512));
    assert_eq!(serde_json::from_str::<Workspace>(&serde_json::to_string(&workspace).unwrap()).unwrap(), workspace);
    let unknown = r#"{"name":"x","image":"busybox","cores":1,"memory_bytes":1,"privileged":true}"#;
    assert!(serde_json::from_str::<Workspace>(unknown).unwrap_err().to_string().contains("privileged"));
}
