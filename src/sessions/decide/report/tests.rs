use super::*;
use crate::sessions::decide::testing::{Host, admit, id, live, running, workspace};

fn tell(host: &mut Host, report: Report) {
    host.decide(|registry, cx| registry.report(&id("k"), report, cx));
}

#[test]
fn a_start_shows_its_progress() {
    let mut host = Host::new();
    admit(&mut host, "k", workspace()).unwrap();
    let shown = |host: &Host| (live(host, "k").status.state, live(host, "k").status.message.clone());
    tell(&mut host, Report::Unreachable("no answer".to_owned()));
    assert_eq!(shown(&host), (SessionState::Pending, Some("no answer".to_owned())));
    tell(&mut host, Report::Pulling("43 %".to_owned()));
    assert_eq!(shown(&host), (SessionState::Pulling, Some("43 %".to_owned())));
    tell(&mut host, Report::Starting { image_digest: Some("sha256:1".to_owned()) });
    assert_eq!(shown(&host), (SessionState::Starting, None));
    tell(&mut host, Report::Created { container_id: "c1".to_owned() });
    let status = &live(&host, "k").status;
    assert_eq!((status.image_digest.as_deref(), status.container_id.as_deref()), (Some("sha256:1"), Some("c1")));
}

#[test]
fn a_running_session_does_not_show_that_the_engine_is_lost() {
    let mut host = running("k", workspace());
    tell(&mut host, Report::Unreachable("no answer".to_owned()));
    assert_eq!(live(&host, "k").status.message, None);
}

#[test]
fn traffic_is_activity() {
    let mut host = running("k", workspace());
    host.now = host.now.plus(std::time::Duration::from_secs(5));
    tell(&mut host, Report::Active);
    assert_eq!(live(&host, "k").status.last_activity_at, host.now.wall);
}
