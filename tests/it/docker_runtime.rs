//! The Docker runtime on a real engine. Each test has its own cluster and removes what it created.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use ostler::runtime::docker::{Config, DockerRuntime};
use ostler::runtime::{
    Connected, Container, Error, Event, Health, Launch, LogsRequest, Mount, Oom, PortBinding, Runtime,
};
use ostler::types::{Bytes, Cores, Init, Protocol};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::docker::{self, Freezer, Lab, PATIENCE, config, docker, free_port, no_gpus, quietly};

const ALL_LOGS: LogsRequest = LogsRequest { follow: false, tail: None };

fn exited(container: &Container) -> bool {
    matches!(container, Container::Exited(_))
}

fn running(container: &Container) -> bool {
    matches!(container, Container::Running(_))
}

#[tokio::test]
async fn a_session_goes_through_its_states_within_its_limits() {
    let Some(lab) = Lab::open("a_session_goes_through_its_states_within_its_limits") else { return };
    let launch = lab.launch("life", "trap 'exit 7' TERM; while true; do sleep 0.1; done");
    let (session, runtime) = (&launch.session, &lab.runtime);
    assert_eq!(runtime.observe(&session.into()).await.map(|seen| seen.container), Ok(Container::Absent));

    let id = runtime.create(&launch).await.unwrap();
    assert_eq!(runtime.create(&launch).await, Ok(id), "creating is idempotent");
    assert_eq!(runtime.observe(&session.into()).await.map(|seen| seen.container), Ok(Container::Created));
    let limits = "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.ShmSize}} \
                  {{.HostConfig.LogConfig.Type}} {{index .Config.Labels \"ostler.cores_milli\"}}";
    assert_eq!(lab.inspect(session, limits), "500000000 33554432 4096 16777216 json-file 500");

    runtime.start(&session.into()).await.unwrap();
    runtime.start(&session.into()).await.unwrap();
    let Container::Running(first) = lab.until(session, running).await else { unreachable!() };
    runtime.pause(&session.into()).await.unwrap();
    runtime.pause(&session.into()).await.unwrap();
    assert_eq!(runtime.observe(&session.into()).await.map(|seen| seen.container), Ok(Container::Paused(first.clone())));
    runtime.resume(&session.into()).await.unwrap();
    runtime.resume(&session.into()).await.unwrap();
    assert_eq!(
        runtime.observe(&session.into()).await.map(|seen| seen.container),
        Ok(Container::Running(first.clone()))
    );

    runtime.stop(&session.into(), Duration::from_secs(10)).await.unwrap();
    runtime.stop(&session.into(), Duration::from_secs(10)).await.unwrap();
    let Container::Exited(exit) = runtime.observe(&session.into()).await.map(|seen| seen.container).unwrap() else {
        panic!("it still runs")
    };
    assert_eq!((exit.code, exit.oom, &exit.run), (7, Oom::Nothing, &first));
    assert!(exit.finished_at.is_some());

    runtime.start(&session.into()).await.unwrap();
    let Container::Running(second) = lab.until(session, running).await else { unreachable!() };
    assert_ne!(first, second, "the two runs have different ids");
    runtime.remove(&session.into()).await.unwrap();
    runtime.remove(&session.into()).await.unwrap();
    assert_eq!(runtime.observe(&session.into()).await.map(|seen| seen.container), Ok(Container::Absent));
    assert!(matches!(runtime.start(&session.into()).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_paused_session_can_be_stopped_and_removed() {
    let Some(lab) = Lab::open("a_paused_session_can_be_stopped_and_removed") else { return };
    let launch = lab.launch("frozen", "trap 'exit 7' TERM; while true; do sleep 0.1; done");
    let (session, runtime) = (&launch.session, &lab.runtime);
    lab.run(&launch).await.unwrap();
    runtime.pause(&session.into()).await.unwrap();
    runtime.stop(&session.into(), Duration::from_secs(10)).await.unwrap();
    let stopped = runtime.observe(&session.into()).await.map(|seen| seen.container).unwrap();
    assert!(matches!(&stopped, Container::Exited(exit) if exit.code == 7), "{stopped:?}");
    runtime.start(&session.into()).await.unwrap();
    runtime.pause(&session.into()).await.unwrap();
    runtime.remove(&session.into()).await.unwrap();
    assert_eq!(runtime.observe(&session.into()).await.map(|seen| seen.container), Ok(Container::Absent));
}

/// Runs the session to its end and returns its output.
async fn output(lab: &Lab, launch: &Launch) -> String {
    lab.run(launch).await.unwrap();
    lab.until(&launch.session, exited).await;
    logged(lab, launch, ALL_LOGS).await
}

async fn logged(lab: &Lab, launch: &Launch, request: LogsRequest) -> String {
    let stream = lab.runtime.logs(&(&launch.session).into(), request).await.unwrap();
    let pieces: Vec<_> = stream.map(Result::unwrap).collect().await;
    String::from_utf8(pieces.concat()).unwrap()
}

#[tokio::test]
async fn a_root_entry_point_can_drop_to_a_user_and_gains_nothing() {
    let Some(lab) = Lab::open("a_root_entry_point_can_drop_to_a_user_and_gains_nothing") else { return };
    let script = "touch /home/x && chown nobody /home/x && su nobody -c 'id -u; stat -c %U /home/x' 2>&1; \
                  grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; echo gpus=$NVIDIA_VISIBLE_DEVICES";
    let text = output(&lab, &lab.launch("root", script)).await;
    let words: Vec<&str> = text.split_whitespace().collect();
    let expected = ["65534", "nobody", "CapEff:", "00000000000004eb", "NoNewPrivs:", "1", "Seccomp:", "2", "gpus=void"];
    assert_eq!(words, expected);
}

#[tokio::test]
async fn too_much_memory_ends_as_oom_killed() {
    let Some(lab) = Lab::open("too_much_memory_ends_as_oom_killed") else { return };
    // `tail` keeps the last line in memory, and that line never ends.
    let launch = lab.launch("oom", "exec tail /dev/zero");
    lab.run(&launch).await.unwrap();
    let ended = lab.until(&launch.session, exited).await;
    assert!(matches!(&ended, Container::Exited(exit) if exit.oom == Oom::Main && exit.code == 137), "{ended:?}");
}

/// The answer of a web server on this port of the host.
fn page(port: u16) -> std::io::Result<String> {
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    server.set_read_timeout(Some(PATIENCE))?;
    server.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    server.read_to_string(&mut text)?;
    Ok(text)
}

async fn until_page(port: u16) -> String {
    let wait = async {
        loop {
            match page(port) {
                Ok(text) if !text.is_empty() => return text,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("the session serves its page")
}

fn address(lab: &Lab, launch: &Launch) -> String {
    lab.inspect(&launch.session, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
}

/// A script that prints the last line of another session's page, or `no way`.
fn fetch(address: &str) -> String {
    format!(
        "(printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 8080 || echo no way) 2>/dev/null | tail -n 1"
    )
}

fn web_server(lab: &Lab, key: &str) -> (Launch, u16) {
    let script = "mkdir -p /tmp/w; echo hello > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w";
    let mut launch = lab.launch(key, script);
    let host_port = free_port();
    launch.ports = vec![PortBinding { container_port: 8080, protocol: Protocol::Tcp, host_port }];
    (launch, host_port)
}

#[tokio::test]
async fn the_host_reaches_a_session_and_other_sessions_do_not() {
    let Some(lab) = Lab::open("the_host_reaches_a_session_and_other_sessions_do_not") else { return };
    let (server, port) = web_server(&lab, "server");
    lab.run(&server).await.unwrap();
    assert!(until_page(port).await.contains("hello"));
    let address = address(&lab, &server);
    assert_eq!(output(&lab, &lab.launch("neighbour", &fetch(&address))).await, "no way\n");
    let unpublished = lab.runtime.connected(&(&server.session).into(), &[]).await.unwrap();
    assert!(matches!(unpublished, Connected::Unknown { bytes: Some(100..) }), "{unpublished:?}");

    lab.runtime.stop(&(&server.session).into(), Duration::ZERO).await.unwrap();
    assert!(page(port).is_err());
    lab.runtime.start(&(&server.session).into()).await.unwrap();
    assert!(until_page(port).await.contains("hello"), "the port is kept over stop and start");
}

#[tokio::test]
async fn sessions_meet_on_a_network_of_the_operators() {
    let Some(lab) = Lab::open("sessions_meet_on_a_network_of_the_operators") else { return };
    let network = format!("{}-shared", lab.cluster);
    docker(&["network", "create", "--label", &format!("ostler.cluster={}", lab.cluster), &network]);
    let (mut server, port) = web_server(&lab, "server");
    server.network = Some(network.parse().unwrap());
    lab.run(&server).await.unwrap();
    until_page(port).await;
    let mut neighbour = lab.launch("neighbour", &fetch(&address(&lab, &server)));
    neighbour.network = server.network.clone();
    assert_eq!(output(&lab, &neighbour).await, "hello\n");
}

#[tokio::test]
async fn a_start_that_fails_says_why() {
    let Some(lab) = Lab::open("a_start_that_fails_says_why") else { return };
    let (first, port) = web_server(&lab, "first");
    lab.run(&first).await.unwrap();
    let mut second = lab.launch("second", "true");
    second.ports = first.ports.clone();
    let taken = lab.run(&second).await.unwrap_err();
    assert!(
        matches!(&taken, Error::Start { message: text, .. } if text.contains("port") && text.contains(&port.to_string())),
        "{taken}"
    );

    let mut missing = lab.launch("missing", "");
    missing.command = vec!["/no/such/program".to_owned()];
    // The engine starts its init process, and the init does not find the program.
    lab.run(&missing).await.unwrap();
    let ended = lab.until(&missing.session, exited).await;
    assert!(matches!(&ended, Container::Exited(exit) if exit.code == 127), "{ended:?}");
    assert!(logged(&lab, &missing, ALL_LOGS).await.contains("/no/such/program"));

    let mut imageless = lab.launch("imageless", "true");
    imageless.image = Some(format!("ostler-{}-nowhere:1", lab.cluster));
    assert!(matches!(lab.runtime.create(&imageless).await, Err(Error::Start { .. })));

    let mut elsewhere = lab.launch("elsewhere", "true");
    elsewhere.network = Some(format!("{}-none", lab.cluster).parse().unwrap());
    assert!(matches!(lab.runtime.create(&elsewhere).await, Err(Error::Start { .. })));
}

#[tokio::test]
async fn a_network_removed_with_docker_is_created_again() {
    let Some(lab) = Lab::open("a_network_removed_with_docker_is_created_again") else { return };
    let launch = lab.launch("again", "sleep 100");
    lab.runtime.create(&launch).await.unwrap();
    docker(&["network", "rm", &lab.network()]);
    lab.runtime.start(&(&launch.session).into()).await.unwrap();
    lab.until(&launch.session, running).await;
    let icc = r#"{{index .Options "com.docker.network.bridge.enable_icc"}}"#;
    assert_eq!(docker(&["network", "inspect", "--format", icc, &lab.network()]), "false");

    lab.runtime.stop(&(&launch.session).into(), Duration::ZERO).await.unwrap();
    docker(&["network", "rm", &lab.network()]);
    lab.runtime.start(&(&launch.session).into()).await.unwrap();
    lab.until(&launch.session, running).await;
}

#[tokio::test]
async fn two_agents_that_make_the_network_at_once_make_one() {
    let Some(lab) = Lab::open("two_agents_that_make_the_network_at_once_make_one") else { return };
    let other = DockerRuntime::new(config(&lab.cluster), no_gpus()).unwrap();
    let (a, b) = (lab.launch("a", "true"), lab.launch("b", "true"));
    let (made, also_made) = tokio::join!(lab.runtime.create(&a), other.create(&b));
    assert!(made.is_ok() && also_made.is_ok(), "{made:?} {also_made:?}");
    lab.runtime.start(&(&a.session).into()).await.unwrap();
    other.start(&(&b.session).into()).await.unwrap();
    let filter = format!("name=^{}$", lab.network());
    assert_eq!(docker(&["network", "ls", "--quiet", "--filter", &filter]).lines().count(), 1);
}

/// An agent that is killed during a step leaves its request in the engine, and the next agent begins the same step.
#[tokio::test]
async fn concurrent_identical_steps_are_retried_and_never_rejected() {
    let Some(lab) = Lab::open("concurrent_identical_steps_are_retried_and_never_rejected") else { return };
    let launches: Vec<Launch> = (0..12).map(|n| lab.launch(&(n / 2).to_string(), "true")).collect();
    let until_made = async |launch: &Launch| loop {
        let runtime = DockerRuntime::new(config(&lab.cluster), no_gpus()).unwrap();
        match runtime.create(launch).await {
            Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            made => return made,
        }
    };
    let made = timeout(PATIENCE, futures_util::future::join_all(launches.iter().map(until_made))).await.unwrap();
    for pair in made.chunks(2) {
        assert!(pair[0].is_ok() && pair[0] == pair[1], "{pair:?}");
    }
}

#[tokio::test]
async fn a_foreign_network_with_our_name_is_rejected() {
    let Some(lab) = Lab::open("a_foreign_network_with_our_name_is_rejected") else { return };
    docker(&["network", "create", &lab.network()]);
    let refused = lab.runtime.create(&lab.launch("k", "true")).await;
    assert!(
        matches!(&refused, Err(Error::Start { message: text, .. }) if text.contains("not ostler's")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn logs_follow_to_the_end_and_tail() {
    let Some(lab) = Lab::open("logs_follow_to_the_end_and_tail") else { return };
    let launch = lab.launch("talk", "echo one; echo two >&2; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo three");
    lab.run(&launch).await.unwrap();
    let mut stream =
        lab.runtime.logs(&(&launch.session).into(), LogsRequest { follow: true, tail: None }).await.unwrap();
    let mut text = Vec::new();
    // The two streams are two pipes, so either line may come first.
    while text.len() < "one\ntwo\n".len() {
        text.extend(timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap());
    }
    // A pause in the output does not end the stream.
    assert!(timeout(Duration::from_secs(1), stream.next()).await.is_err());
    docker(&["exec", &lab.container(&launch.session), "touch", "/tmp/go"]);
    while let Some(piece) = timeout(PATIENCE, stream.next()).await.unwrap() {
        text.extend(piece.unwrap());
    }
    let text = String::from_utf8(text).unwrap();
    assert!(["one\ntwo\nthree\n", "two\none\nthree\n"].contains(&text.as_str()), "{text}");
    let tail = LogsRequest { follow: false, tail: Some(1) };
    assert_eq!(logged(&lab, &launch, tail).await, "three\n");
    let nobody = lab.launch("nobody", "");
    assert!(matches!(lab.runtime.logs(&(&nobody.session).into(), ALL_LOGS).await.err(), Some(Error::NotFound(_))));
}

#[tokio::test]
async fn a_talkative_session_does_not_fill_the_disk() {
    const WRITTEN: usize = 36_000_000;
    let Some(lab) = Lab::open("a_talkative_session_does_not_fill_the_disk") else { return };
    let script = format!("yes $(printf '%08000d' 0) | head -c {WRITTEN}; echo; echo the end");
    let text = output(&lab, &lab.launch("talkative", &script)).await;
    assert!(text.ends_with("the end\n"));
    assert!(text.len() < 21_000_000, "{} bytes were kept", text.len());
}

#[tokio::test]
async fn a_foreign_container_is_left_alone() {
    let Some(lab) = Lab::open("a_foreign_container_is_left_alone") else { return };
    let launch = lab.launch("foreign", "true");
    let session = &launch.session;
    let name = lab.container(session);
    let id = docker(&["create", "--name", &name, &lab.image, "sleep", "100"]);
    docker(&["start", &name]);
    let grace = Duration::from_secs(1);
    let runtime = &lab.runtime;
    let refused = runtime.create(&launch).await;
    assert!(matches!(&refused, Err(Error::Start { message, .. }) if message.contains("left alone")), "{refused:?}");
    // Its name does not make it the session's.
    let steps = [
        runtime.start(&session.into()).await,
        runtime.stop(&session.into(), grace).await,
        runtime.pause(&session.into()).await,
        runtime.resume(&session.into()).await,
    ];
    for step in steps {
        assert!(matches!(step, Err(Error::NotFound(_))), "{step:?}");
    }
    assert_eq!(runtime.remove(&session.into()).await, Ok(()));
    assert_eq!(lab.inspect(session, "{{.Id}} {{.State.Status}}"), format!("{id} running"));
    assert_eq!(runtime.list().await, Ok(Vec::new()));
    assert_eq!(
        runtime.observe(&session.into()).await.map(|seen| seen.container),
        Ok(Container::Absent),
        "the session has no container"
    );
    quietly(&["rm", "--force", &name]);
}

#[tokio::test]
async fn another_nodes_container_is_seen_and_not_touched() {
    let Some(lab) = Lab::open("another_nodes_container_is_seen_and_not_touched") else { return };
    let launch = lab.launch("theirs", "true");
    lab.runtime.create(&launch).await.unwrap();
    let other = Config { node: "aaaaaaaaaaaaaaaa".parse().unwrap(), ..config(&lab.cluster) };
    let other = DockerRuntime::new(other, no_gpus()).unwrap();
    assert_eq!(other.observe(&(&launch.session).into()).await.map(|seen| seen.container), Ok(Container::Absent));
    assert_eq!(other.remove(&(&launch.session).into()).await, Ok(()));
    let found = other.list().await.unwrap();
    assert_eq!(found.iter().map(|found| found.node.as_str()).collect::<Vec<_>>(), [docker::NODE]);
    assert_eq!(lab.runtime.observe(&(&launch.session).into()).await.map(|seen| seen.container), Ok(Container::Created));
}

#[tokio::test]
async fn sessions_are_found_again_by_their_labels() {
    let Some(lab) = Lab::open("sessions_are_found_again_by_their_labels") else { return };
    let (mut running, port) = web_server(&lab, "running");
    running.gpu_uuids = vec!["GPU-dev-0001".to_owned()];
    let (created, ended) = (lab.launch("created", "true"), lab.launch("ended", "exit 3"));
    lab.run(&running).await.unwrap();
    lab.runtime.create(&created).await.unwrap();
    lab.run(&ended).await.unwrap();
    lab.until(&ended.session, exited).await;

    let restarted = DockerRuntime::new(config(&lab.cluster), no_gpus()).unwrap();
    let found = restarted.list().await.unwrap();
    assert_eq!(found.len(), 3);
    let of = |launch: &Launch| found.iter().find(|found| found.session == launch.session).unwrap();
    let adopted = of(&running);
    assert_eq!(
        (&adopted.user, &adopted.workspace, &adopted.image),
        (&running.user, &running.workspace, &running.image)
    );
    assert_eq!((adopted.resources, &adopted.gpu_uuids), (running.resources, &running.gpu_uuids));
    assert_eq!(adopted.ports, running.ports);
    assert_eq!(adopted.ports[0].host_port, port);
    assert_eq!(
        adopted.container,
        Some(lab.runtime.observe(&(&running.session).into()).await.map(|seen| seen.container).unwrap())
    );
    assert!(adopted.created_at.millis() > 0);
    assert_eq!(of(&created).container, Some(Container::Created));
    assert!(matches!(&of(&ended).container, Some(Container::Exited(exit)) if exit.code == 3));
}

#[tokio::test]
async fn a_volume_outlives_its_session() {
    let Some(lab) = Lab::open("a_volume_outlives_its_session") else { return };
    let volume = "home-Alice@example.com";
    let mount = Mount { name: volume.to_owned(), path: "/home/alice".to_owned(), read_only: false, user: None };
    let mut write = lab.launch("write", "echo mine > /home/alice/file");
    write.volumes = vec![mount.clone()];
    output(&lab, &write).await;
    assert_eq!(lab.runtime.volumes().await, Ok(vec![volume.to_owned()]));
    assert!(matches!(lab.runtime.remove_volume(volume).await, Err(Error::Refused(_))));
    lab.runtime.remove(&(&write.session).into()).await.unwrap();

    let mut read = lab.launch("read", "cat /home/alice/file; touch /home/alice/x 2>/dev/null || echo read only");
    read.volumes = vec![Mount { read_only: true, ..mount }];
    assert_eq!(output(&lab, &read).await, "mine\nread only\n");
    lab.runtime.remove(&(&read.session).into()).await.unwrap();
    assert_eq!(lab.runtime.volumes().await, Ok(vec![volume.to_owned()]));
    lab.runtime.remove_volume(volume).await.unwrap();
    assert_eq!(lab.runtime.volumes().await, Ok(Vec::new()));
    assert!(matches!(lab.runtime.remove_volume(volume).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_foreign_volume_is_neither_used_nor_removed() {
    let Some(lab) = Lab::open("a_foreign_volume_is_neither_used_nor_removed") else { return };
    let name = format!("ostler-{}.home", lab.cluster);
    docker(&["volume", "create", &name]);
    let mut launch = lab.launch("k", "true");
    launch.volumes = vec![Mount { name: "home".to_owned(), path: "/home/x".to_owned(), read_only: false, user: None }];
    assert!(matches!(lab.runtime.create(&launch).await, Err(Error::Refused(_))));
    assert!(matches!(lab.runtime.remove_volume("home").await, Err(Error::Refused(_))));
    assert_eq!(lab.runtime.volumes().await, Ok(Vec::new()));
    docker(&["volume", "rm", &name]);
}

/// Waits for the next event of this session, and skips those of others.
async fn changed(events: &mut mpsc::Receiver<Event>, launch: &Launch) {
    let mine = Event::Changed(launch.session);
    let wait = async { while events.recv().await.expect("the link is up") != mine {} };
    timeout(PATIENCE, wait).await.expect("an event of the change");
}

fn keep_link(runtime: &Arc<DockerRuntime>) -> (mpsc::Receiver<Event>, tokio::task::JoinHandle<()>) {
    let (events, told) = mpsc::channel(64);
    let runtime = runtime.clone();
    (told, tokio::spawn(async move { runtime.run(events).await }))
}

#[tokio::test]
async fn an_exit_is_reported() {
    let Some(lab) = Lab::open("an_exit_is_reported") else { return };
    let (mut events, link) = keep_link(&lab.runtime);
    assert_eq!(timeout(PATIENCE, events.recv()).await.unwrap(), Some(Event::Relist));
    let Health::Up(info) = lab.runtime.health().borrow().clone() else { panic!("the engine answers") };
    assert!(info.cores >= Cores::whole(1) && info.memory > Bytes::mib(64) && !info.version.is_empty());

    let launch = lab.launch("short", "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 5");
    lab.run(&launch).await.unwrap();
    changed(&mut events, &launch).await;
    docker(&["exec", &lab.container(&launch.session), "touch", "/tmp/go"]);
    changed(&mut events, &launch).await;
    let ended = lab.until(&launch.session, exited).await;
    assert!(matches!(ended, Container::Exited(exit) if exit.code == 5));
    drop(events);
    timeout(PATIENCE, link).await.expect("it ends once the receiver is dropped").unwrap();
}

#[tokio::test]
async fn a_slow_listener_gets_a_relist() {
    let Some(lab) = Lab::open("a_slow_listener_gets_a_relist") else { return };
    let (events, mut told) = mpsc::channel(1);
    let runtime = lab.runtime.clone();
    let link = tokio::spawn(async move { runtime.run(events).await });
    lab.runtime.health().wait_for(Health::is_up).await.unwrap();
    let launch = lab.launch("many", "true");
    lab.run(&launch).await.unwrap();
    lab.until(&launch.session, exited).await;
    // The channel has one place, which the first Relist took: the session's events had no room.
    assert_eq!(told.recv().await, Some(Event::Relist));
    assert_eq!(timeout(PATIENCE, told.recv()).await.unwrap(), Some(Event::Relist));
    drop(told);
    link.await.unwrap();
}

/// A runtime whose engine is at `socket`.
fn at(socket: &std::path::Path) -> Arc<DockerRuntime> {
    let host = format!("unix://{}", socket.display());
    DockerRuntime::new(Config { host, ..config(&"absent".parse().unwrap()) }, no_gpus()).unwrap()
}

async fn why_down(runtime: &Arc<DockerRuntime>) -> String {
    let (events, link) = keep_link(runtime);
    let mut health = runtime.health();
    let down = timeout(PATIENCE, health.wait_for(|health| matches!(health, Health::Down { .. }))).await;
    let Health::Down { message, .. } = down.unwrap().unwrap().clone() else { unreachable!() };
    drop(events);
    link.await.unwrap();
    message
}

#[tokio::test]
async fn an_absent_engine_is_a_state_and_not_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let runtime = at(&socket);
    assert!(matches!(runtime.list().await, Err(Error::Unavailable(_))));
    assert!(why_down(&runtime).await.contains("does not exist"));

    // A socket whose engine has ended.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let message = why_down(&at(&socket)).await;
    assert!(message.contains("is Docker running?"), "{message}");
}

#[tokio::test]
async fn an_engine_that_hangs_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    // The socket accepts connections, as the kernel does for a stopped process, and never answers.
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let runtime = at(&socket);
    let (asked, message) = tokio::join!(runtime.list(), why_down(&runtime));
    assert!(matches!(asked, Err(Error::Unavailable(_))), "{asked:?}");
    assert!(message.contains("no answer"), "{message}");
}

#[tokio::test]
async fn an_engine_that_stops_answering_is_down_and_comes_back() {
    let Some(lab) = Lab::open("an_engine_that_stops_answering_is_down_and_comes_back") else { return };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let engine = Freezer::between(&socket);
    let host = format!("unix://{}", socket.display());
    let runtime = DockerRuntime::new(Config { host, ..config(&lab.cluster) }, no_gpus()).unwrap();
    let (mut events, link) = keep_link(&runtime);
    let mut health = runtime.health();
    timeout(PATIENCE, health.wait_for(Health::is_up)).await.unwrap().unwrap();
    assert_eq!(events.recv().await, Some(Event::Relist));

    // Connections stay open without answers. The first call without an answer makes the link check the engine.
    engine.freeze();
    assert!(matches!(runtime.list().await, Err(Error::Unavailable(text)) if text.contains("no answer")));
    timeout(PATIENCE, health.wait_for(|health| !health.is_up())).await.unwrap().unwrap();
    engine.thaw();
    timeout(PATIENCE, health.wait_for(Health::is_up)).await.unwrap().unwrap();
    assert_eq!(timeout(PATIENCE, events.recv()).await.unwrap(), Some(Event::Relist));
    assert_eq!(runtime.list().await, Ok(Vec::new()));
    drop(events);
    link.await.unwrap();
}

#[tokio::test]
async fn a_launch_says_who_runs_what_and_where_it_may_write() {
    let Some(lab) = Lab::open("a_launch_says_who_runs_what_and_where_it_may_write") else { return };
    let script = "id -u; touch /x 2>/dev/null || echo read only; touch /scratch/y && echo written; echo $$";
    let mut launch = lab.launch("program", "");
    launch.entrypoint = ["sh", "-c"].map(str::to_owned).to_vec();
    launch.command = vec![script.to_owned()];
    launch.run_as = Some("nobody:65534".to_owned());
    (launch.read_only, launch.tmpfs, launch.init) = (true, vec!["/scratch".to_owned()], Init::Off);
    assert_eq!(output(&lab, &launch).await, "65534\nread only\nwritten\n1\n");
}

#[tokio::test]
async fn an_image_that_brings_an_init_and_a_volume_runs_unchanged_and_leaves_nothing() {
    const TEST: &str = "an_image_that_brings_an_init_and_a_volume_runs_unchanged_and_leaves_nothing";
    let Some(lab) = Lab::open(TEST) else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "#!/bin/sh\n[ $$ = 1 ] || exit 100\nexec \"$@\"\n").unwrap();
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (made, image) = (format!("ostler-{}-made", lab.cluster), format!("ostler-{}:init", lab.cluster));
    docker(&["create", "--name", &made, &lab.image]);
    docker(&["cp", file.path().to_str().unwrap(), &format!("{made}:/init")]);
    docker(&["commit", "--change", r#"ENTRYPOINT ["/init"]"#, "--change", "VOLUME /data", &made, &image]);
    docker(&["rm", &made]);
    let mut launch = lab.launch("init", "echo fine");
    launch.image = Some(image);
    assert_eq!(output(&lab, &launch).await, "fine\n");
    let volume = lab.inspect(&launch.session, "{{range .Mounts}}{{.Name}}{{end}}");
    lab.runtime.remove(&(&launch.session).into()).await.unwrap();
    assert!(!docker(&["volume", "ls", "--quiet"]).contains(&volume), "volume {volume} is left");
}
