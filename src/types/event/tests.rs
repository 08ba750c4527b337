use serde_json::json;

use super::*;
use crate::types::sample;

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

#[test]
fn an_id_is_its_node_and_a_number_and_nothing_else_is_one() {
    let id = EventId { node: node(1), seq: 42 };
    assert_eq!(id.to_string().parse::<EventId>().unwrap(), id);
    assert_eq!(serde_json::from_value::<EventId>(json!(id)).unwrap(), id);
    let node = node(1);
    for wrong in ["", "42", &format!("{node}"), &format!("{node}-"), &format!("{node}--1"), &format!("{node}-+1")] {
        assert!(wrong.parse::<EventId>().unwrap_err().contains("expected the node's id"), "{wrong}");
    }
    assert!(format!("{node}-01").parse::<EventId>().is_err());
}

#[test]
fn the_name_of_a_kind_is_its_word_and_each_says_what_it_means() {
    for kind in EventKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), json!(kind.as_str()));
        assert!(kind.meaning().ends_with('.'), "{kind}");
    }
}

#[test]
fn who_did_it_is_a_person_another_node_or_the_node_itself() {
    let me = node(1);
    let who = |actor: &Actor| Who::of(actor, &me);
    let token = who(&sample::token_actor(Role::Operate));
    assert_eq!(json!(token), json!({"kind": "token", "id": "abcdefgh", "name": "ci", "role": "operate"}));
    assert_eq!(json!(who(&sample::root())), json!({"kind": "socket", "id": "0", "name": "root", "role": "admin"}));
    assert_eq!(who(&Actor::Node { id: me }), Who::SYSTEM);
    let other = who(&Actor::Node { id: node(2) });
    assert_eq!((other.kind, other.id.clone()), (WhoKind::Node, Some(node(2).to_string())));
    let nameless = who(&Actor::Socket { uid: 7, name: None, via: "a".parse().unwrap() });
    let shown = [token, who(&sample::root()), Who::SYSTEM, nameless, other].map(|who| who.to_string());
    assert_eq!(shown, ["ci", "root", "system", "uid 7", node(2).as_str()]);
}

#[test]
fn every_condition_of_a_filter_must_hold() {
    let event = sample::event(EventKind::SessionEnded, 1000);
    let all = EventFilter::default();
    let at = |millis| Some(Timestamp::from_millis(millis));
    for (filter, matches) in [
        (all.clone(), true),
        (EventFilter { since: at(1000), until: at(1000), ..all.clone() }, true),
        (EventFilter { since: at(1001), ..all.clone() }, false),
        (EventFilter { until: at(999), ..all.clone() }, false),
        (EventFilter { kinds: [EventKind::SessionEnded].into(), ..all.clone() }, true),
        (EventFilter { kinds: [EventKind::SessionStarted].into(), ..all.clone() }, false),
        (EventFilter { severity: Some(Severity::Info), ..all.clone() }, true),
        (EventFilter { severity: Some(Severity::Warning), ..all.clone() }, false),
        (EventFilter { target: Some("sess".to_owned()), ..all.clone() }, true),
        (EventFilter { target: Some("desktop".to_owned()), ..all.clone() }, true),
        (EventFilter { target: Some("desk".to_owned()), ..all.clone() }, false),
        (EventFilter { who: Some("root".to_owned()), ..all.clone() }, true),
        (EventFilter { who: Some("0".to_owned()), ..all.clone() }, true),
        (EventFilter { who: Some("socket".to_owned()), ..all.clone() }, true),
        (EventFilter { who: Some("system".to_owned()), ..all.clone() }, false),
        (EventFilter { text: Some("HAS ENDED".to_owned()), ..all.clone() }, true),
        (EventFilter { text: Some("began".to_owned()), ..all.clone() }, false),
        (EventFilter { text: Some("has ended".to_owned()), until: at(0), ..all }, false),
    ] {
        assert_eq!(filter.matches(&event), matches, "{filter:?}");
    }
}

#[test]
fn an_event_is_read_back_as_it_was_and_only_a_late_one_says_so() {
    let event = sample::event(EventKind::SessionEnded, 1000);
    let json = serde_json::to_value(&event).unwrap();
    assert!(json.get("late").is_none());
    assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
    let late = Event { late: true, ..event };
    assert_eq!(serde_json::from_value::<Event>(serde_json::to_value(&late).unwrap()).unwrap(), late);
}

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/events.md");
const HEAD: &str = "\
# Events

Each node writes what happens on it to its event log, and the leader what happens in the cluster. `ostler events` shows
the logs of all nodes together, `ostler events -f` follows them, and `events.hook` runs a program for each event. An event
is one line of JSON:

| field | value |
| --- | --- |
| `id` | the id of the node whose log it is, `-` and the number of the event in that log; the numbers have no gap |
| `time` | RFC 3339, UTC |
| `node` | the name of the node whose log it is |
| `kind`, `severity` | as below; a session that failed ends with severity `warning` |
| `target` | what the event is about: `type`, `id` and `name`; `null`: the cluster |
| `who` | who did it: `kind` (`token`, `socket`, `node` or `system`), `id`, `name` and `role` |
| `via` | the node that received the request of a person; `null`: no person made it |
| `message` | one sentence for people |
| `data` | the fields of the kind; a field that is not known or does not apply is left out |

Severities: `info` is what happens every day, `notice` what somebody wants to know later, `warning` what may need a hand.
This table is made from the code.

| kind | severity | meaning | data |
| --- | --- | --- | --- |
";

#[test]
fn the_page_of_events_has_every_kind() {
    let mut page = HEAD.to_owned();
    for kind in EventKind::ALL {
        let fields: Vec<_> = kind.fields().iter().map(|field| format!("`{field}`")).collect();
        page += &format!("| `{kind}` | {} | {} | {} |\n", kind.severity(), kind.meaning(), fields.join(", "));
    }
    if std::env::var_os("OSTLER_REWRITE").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    assert_eq!(page, std::fs::read_to_string(PAGE).unwrap(), "OSTLER_REWRITE=1 rewrites the page");
}
