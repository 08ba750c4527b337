//! Metrics in the format that the scraper asks for.

use crate::support::agent::{Agent, until};
use crate::support::http::Request;

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[test]
fn metrics_are_in_the_text_format_of_prometheus_unless_the_request_prefers_openmetrics() {
    let agent = Agent::start("http = { status_listen = '127.0.0.1:0' }");
    let token = agent.token("read");
    for client in [agent.client(), agent.tcp(Some(&token)), agent.status_client()] {
        for (accept, content_type) in [
            (None, PROMETHEUS),
            (Some("*/*"), PROMETHEUS),
            (Some("text/plain"), PROMETHEUS),
            (Some("application/json"), PROMETHEUS),
            (Some("application/openmetrics-text;version=1.0.0;q=0.1,text/plain;version=0.0.4;q=0.2"), PROMETHEUS),
            (Some("application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.1"), OPEN_METRICS),
        ] {
            let request = Request::new("GET", "/metrics");
            let answer =
                client.send(&accept.into_iter().fold(request, |request, accept| request.header("accept", accept)));
            assert_eq!(answer.status, 200, "{accept:?}: {}", answer.text());
            assert_eq!(answer.header("content-type"), Some(content_type), "{accept:?}");
            assert_eq!(answer.header("vary"), Some("accept"));
            assert_eq!(answer.text().ends_with("# EOF\n"), content_type == OPEN_METRICS, "{accept:?}");
            assert!(answer.text().contains("\nostler_node_cores_physical{node=\"one\"} "), "{}", answer.text());
        }
    }
}

#[test]
fn the_leader_is_marked() {
    let agent = Agent::start("");
    until("it leads", || agent.get("/metrics").text().contains("\nostler_leader_known{node=\"one\"} 1.0\n"));
    let text = agent.get("/metrics").text();
    assert!(text.contains("\nostler_node_leader{node=\"one\"} 1.0\n"), "{text}");
}
