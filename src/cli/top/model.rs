//! What `ostler top` shows. Pure: answers of the API and keys in, lines out.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use crate::cli::bars::{bar, unknown};
use crate::cli::gpu;
use crate::cli::status::Status;
use crate::cli::table::{NONE, age, one_line, or_none, table};
use crate::cli::terminal::Terminal;
use crate::types::{Figures, Node, NodeId, NodeState, Session, SessionState, Timestamp};

/// Samples of a node that are kept: ten minutes of one every 2 s.
const SAMPLES: usize = 300;
/// Cells of a sparkline. Each is the average of ten samples, 20 s.
const CELLS: usize = 30;
/// Conditions, nodes and sessions that the overview names at most.
const MAX_HANDS: usize = 12;

/// What the API answered at one time.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) status: Status,
    pub(super) nodes: Vec<Node>,
    pub(super) sessions: Vec<Session>,
    pub(super) at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum View {
    #[default]
    Overview,
    Nodes,
    Sessions,
    Gpus,
}

/// The order of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Order {
    #[default]
    Name,
    /// The fullest first, by allocated cores.
    Cores,
    /// The fullest first, by allocated memory.
    Memory,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Quit,
    Draw,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    frame: Option<Frame>,
    /// Used cores as a part of those that the node offers, the newest last; `None`: not known then.
    samples: BTreeMap<NodeId, VecDeque<Option<f64>>>,
    view: View,
    order: Order,
    /// Why the last look had no answer.
    lost: Option<String>,
}

impl View {
    pub(super) const fn of_key(key: u8) -> Option<Self> {
        match key {
            b'1' => Some(Self::Overview),
            b'2' => Some(Self::Nodes),
            b'3' => Some(Self::Sessions),
            b'4' => Some(Self::Gpus),
            _ => None,
        }
    }
}

impl Model {
    pub(super) fn new(view: View) -> Self {
        Self { view, ..Self::default() }
    }

    /// Takes in an answer. Nodes that it does not have are forgotten.
    pub(super) fn take(&mut self, frame: Frame) {
        self.samples.retain(|id, _| frame.nodes.iter().any(|node| node.id == *id));
        for node in &frame.nodes {
            let samples = self.samples.entry(node.id).or_default();
            samples.push_back(used(node));
            if samples.len() > SAMPLES {
                samples.pop_front();
            }
        }
        (self.frame, self.lost) = (Some(frame), None);
    }

    /// The node did not answer: the last frame stays.
    pub(super) fn lose(&mut self, why: String) {
        self.lost = Some(why);
    }

    pub(super) fn key(&mut self, key: u8) -> Turn {
        match key {
            b'q' => return Turn::Quit,
            b's' => {
                self.order = match self.order {
                    Order::Name => Order::Cores,
                    Order::Cores => Order::Memory,
                    Order::Memory => Order::Name,
                };
            }
            key => self.view = View::of_key(key).unwrap_or(self.view),
        }
        Turn::Draw
    }

    /// The whole screen, no line wider than the terminal.
    pub(super) fn lines(&self, terminal: &Terminal, now: Timestamp) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(why) = &self.lost {
            let shown = match &self.frame {
                Some(frame) => format!("shown as of {} ago; ", age(frame.at, now)),
                None => String::new(),
            };
            lines.push(terminal.red(&format!("no answer: {shown}{}", one_line(why))));
        }
        let Some(frame) = &self.frame else {
            lines.push("asking the node…".to_owned());
            return lines;
        };
        lines.push(head(frame, terminal));
        lines.push(String::new());
        let mut nodes: Vec<&Node> = frame.nodes.iter().collect();
        nodes.sort_by(|a, b| self.rank(a).total_cmp(&self.rank(b)).then_with(|| a.name.cmp(&b.name)));
        lines.extend(match self.view {
            View::Overview => overview(frame, terminal, now),
            View::Nodes => nodes.iter().flat_map(|node| self.node(node, terminal)).collect(),
            View::Sessions => sessions(&frame.sessions, now),
            View::Gpus => gpus(&nodes, now),
        });
        lines.push(String::new());
        lines.push(format!("1 overview  2 nodes  3 sessions  4 GPUs  s order ({})  q quit", self.order));
        lines.iter().map(|line| cut(line, terminal.width)).collect()
    }

    /// Nodes come in this order, the least first.
    fn rank(&self, node: &Node) -> f64 {
        let resources = &node.resources;
        match self.order {
            Order::Name => 0.0,
            Order::Cores => -part(resources.cores.allocated.milli(), resources.cores.effective.milli()),
            Order::Memory => -part(resources.memory_bytes.allocated.get(), resources.memory_bytes.effective.get()),
        }
    }

    fn node(&self, node: &Node, terminal: &Terminal) -> Vec<String> {
        let resources = &node.resources;
        let leader = if node.is_leader { " (leader)" } else { "" };
        let state =
            if node.state == NodeState::Alive { node.state.to_string() } else { terminal.red(node.state.as_str()) };
        let history = self.samples.get(&node.id).map(|samples| spark(samples, terminal.unicode)).unwrap_or_default();
        vec![
            format!("{}{leader}  {state}, {} sessions", terminal.bold(node.name.as_str()), node.sessions),
            format!("  cores   {}", share(&resources.cores, |cores| cores.milli() as f64, terminal)),
            format!("  memory  {}", share(&resources.memory_bytes, |bytes| bytes.get() as f64, terminal)),
            format!("  10 min  {history}"),
        ]
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Cores => "cores",
            Self::Memory => "memory",
        })
    }
}

fn head(frame: &Frame, terminal: &Terminal) -> String {
    let cluster = &frame.status.cluster;
    let leader =
        cluster.leader.as_ref().map_or_else(|| terminal.red("no leader"), |leader| format!("leader {}", leader.name));
    let alive = frame.nodes.iter().filter(|node| node.state == NodeState::Alive).count();
    let (name, on) = (terminal.bold(cluster.name.as_str()), &frame.status.node.name);
    format!("ostler  {name}  on {on}  {leader}, term {}  {alive} of {} nodes alive", cluster.term, frame.nodes.len())
}

fn overview(frame: &Frame, terminal: &Terminal, now: Timestamp) -> Vec<String> {
    let mut hands = hands(frame, terminal, now);
    let more = hands.len().saturating_sub(MAX_HANDS);
    hands.truncate(MAX_HANDS);
    let mut lines = vec![terminal.bold(&format!("Needs a hand: {}", hands.len() + more))];
    lines.extend(hands.into_iter().map(|hand| format!("  {hand}")));
    if more > 0 {
        lines.push(format!("  and {more} more"));
    }
    lines.extend([String::new(), terminal.bold("Room")]);
    let sum = |of: fn(&Node) -> (f64, f64)| {
        frame
            .nodes
            .iter()
            .filter(|node| node.state == NodeState::Alive)
            .map(of)
            .fold((0.0, 0.0), |(part, whole), (more, of)| (part + more, whole + of))
    };
    let cores = sum(|node| {
        let cores = &node.resources.cores;
        (cores.allocated.milli() as f64 / 1000.0, cores.effective.milli() as f64 / 1000.0)
    });
    let memory = sum(|node| {
        let memory = &node.resources.memory_bytes;
        (memory.allocated.get() as f64 / GIB, memory.effective.get() as f64 / GIB)
    });
    let slots = sum(|node| (f64::from(node.resources.gpus.allocated), f64::from(node.resources.gpus.effective)));
    let row = |name, (part, whole): (f64, f64), unit| {
        format!("  {name:<8}{}  {part:.1} of {whole:.1} {unit} allocated", bar(part, whole, terminal))
    };
    lines.extend([row("cores", cores, "cores"), row("memory", memory, "GiB"), row("GPUs", slots, "slots")]);
    let running = frame.sessions.iter().filter(|session| session.state == SessionState::Running).count();
    lines.push(format!("  sessions  {running} of {} running", frame.sessions.len()));
    lines
}

const GIB: f64 = (1_u64 << 30) as f64;

/// What an operator should look at: nodes away, conditions, failed sessions.
fn hands(frame: &Frame, terminal: &Terminal, now: Timestamp) -> Vec<String> {
    let away = frame.nodes.iter().filter(|node| !matches!(node.state, NodeState::Alive));
    let away = away.map(|node| {
        terminal.red(&format!("{} is {}, last seen {} ago", node.name, node.state, age(node.last_seen, now)))
    });
    let conditions = frame.nodes.iter().flat_map(|node| {
        node.conditions.iter().map(move |condition| {
            let since = age(condition.since, now);
            format!("{} {} ({since}): {}", node.name, condition.kind, one_line(&condition.message))
        })
    });
    let failed = frame.sessions.iter().filter(|session| session.state == SessionState::Failed);
    let failed = failed.map(|session| {
        let why = session.message.as_deref().map_or_else(|| or_none(session.end_reason), one_line);
        format!("session {} of {} on {} failed: {why}", session.id, session.user, session.node)
    });
    away.chain(conditions).chain(failed).collect()
}

fn sessions(sessions: &[Session], now: Timestamp) -> Vec<String> {
    let rows: Vec<Vec<String>> = sessions
        .iter()
        .filter(|session| session.state != SessionState::Running)
        .map(|session| {
            let why = session.message.as_deref().map_or_else(|| or_none(session.end_reason), one_line);
            let (state, since) = (session.state.to_string(), age(session.created_at, now));
            let names = [session.user.to_string(), session.workspace.to_string(), session.node.to_string()];
            [session.id.to_string()].into_iter().chain(names).chain([state, since, why]).collect()
        })
        .collect();
    if rows.is_empty() {
        return vec!["Every session is running.".to_owned()];
    }
    lines_of(&table(&["SESSION", "USER", "WORKSPACE", "NODE", "STATE", "AGE", "WHY"], rows))
}

fn gpus(nodes: &[&Node], now: Timestamp) -> Vec<String> {
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .flat_map(|node| node.gpus.iter().map(move |device| (node, device)))
        .map(|(node, device)| {
            vec![
                node.name.to_string(),
                device.index.to_string(),
                one_line(&device.model),
                gpu::state(device, now),
                device.utilization_percent.map_or_else(|| NONE.to_owned(), |percent| format!("{percent:.0}%")),
                gpu::memory(device),
                gpu::temperature(device),
                gpu::power(device),
                format!("{} of {}", device.slots_used, device.slots),
            ]
        })
        .collect();
    if rows.is_empty() {
        return vec!["No node has a GPU.".to_owned()];
    }
    let header = ["NODE", "INDEX", "MODEL", "STATE", "USE", "MEMORY", "TEMPERATURE", "POWER", "SLOTS"];
    lines_of(&table(&header, rows))
}

fn lines_of(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// The bar of what is allocated, and what is used.
fn share<T: Copy + Default + PartialEq + fmt::Display>(
    figures: &Figures<T>,
    number: impl Fn(T) -> f64,
    terminal: &Terminal,
) -> String {
    let Some(offered) = figures.offered() else { return format!("{}  not known", unknown(terminal)) };
    let drawn = bar(number(figures.allocated), number(offered), terminal);
    format!("{drawn}  {} of {offered} allocated, {} used", figures.allocated, or_none(figures.utilized))
}

fn used(node: &Node) -> Option<f64> {
    let cores = &node.resources.cores;
    let used = cores.utilized.filter(|_| node.state == NodeState::Alive)?;
    Some(part(used.milli(), cores.effective.milli()))
}

fn part(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The last ten minutes, the newest on the right. What is not known is `·`, or a blank in ASCII.
fn spark(samples: &VecDeque<Option<f64>>, unicode: bool) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const ASCII: [char; 8] = ['.', ':', '-', '=', '+', '*', '%', '#'];
    let each = SAMPLES / CELLS;
    let newest: Vec<Option<f64>> = samples.iter().rev().copied().collect();
    let mut cells: Vec<char> = newest
        .chunks(each)
        .map(|chunk| {
            let known: Vec<f64> = chunk.iter().flatten().copied().collect();
            if known.is_empty() {
                return if unicode { '·' } else { ' ' };
            }
            let average = known.iter().sum::<f64>() / known.len() as f64;
            let step = (1..8).take_while(|step| average * 8.0 >= f64::from(*step)).count();
            if unicode { BLOCKS[step] } else { ASCII[step] }
        })
        .collect();
    cells.reverse();
    cells.into_iter().collect()
}

/// The first `width` characters. Colours take no room, and end with the line.
fn cut(line: &str, width: usize) -> String {
    let (mut kept, mut shown, mut is_code, mut is_coloured) = (String::new(), 0, false, false);
    for c in line.chars() {
        if c == '\x1b' {
            (is_code, is_coloured) = (true, true);
        } else if !is_code {
            if shown == width {
                break;
            }
            shown += 1;
        }
        kept.push(c);
        is_code &= c != 'm';
    }
    if is_coloured {
        kept.push_str("\x1b[0m");
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{node, session};
    use crate::types::{Condition, ConditionKind, Cores};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_780_000_000_000 + seconds * 1000)
    }

    fn frame() -> Frame {
        let status = r#"{"node":{"id":"k3f7q2m5x6a4b7c2","name":"host-a","version":"0.1.0","state":"alive",
            "runtime":{"kind":"docker","version":"28.1","available":true,"message":null}},
            "cluster":{"name":"lab","mode":"available","nodes":1,"leader":null,"term":4}}"#;
        let (status, nodes, sessions) = (serde_json::from_str(status).unwrap(), vec![node::example()], Vec::new());
        Frame { status, nodes, sessions, at: at(0) }
    }

    fn text(model: &Model) -> String {
        model.lines(&Terminal { width: 200, ..Terminal::PLAIN }, at(30)).join("\n")
    }

    #[test]
    fn the_overview_names_what_needs_a_hand() {
        let mut model = Model::default();
        let mut frame = frame();
        let condition = Condition { kind: ConditionKind::LowDisk, message: "1 GiB is free".to_owned(), since: at(-60) };
        frame.nodes[0].conditions = vec![condition];
        frame.nodes[0].state = NodeState::Unknown;
        let mut failed = session::example();
        (failed.state, failed.message) = (SessionState::Failed, Some("no image".to_owned()));
        frame.sessions = vec![failed];
        model.take(frame);
        let shown = text(&model);
        for part in
            ["no leader, term 4", "0 of 1 nodes alive", "Needs a hand: 3", "host-a is unknown", "low_disk (1m30s)"]
        {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(shown.contains("failed: no image"), "{shown}");
    }

    #[test]
    fn keys_choose_the_view_and_the_order() {
        let mut model = Model::default();
        model.take(frame());
        assert_eq!((model.key(b'3'), model.key(b'q')), (Turn::Draw, Turn::Quit));
        assert!(text(&model).contains("Every session is running."));
        model.key(b'4');
        model.key(b's');
        assert!(text(&model).contains("order (cores)"), "{}", text(&model));
        model.key(b'2');
        model.key(b'x');
        assert!(text(&model).contains("10 min"), "{}", text(&model));
    }

    #[test]
    fn the_last_frame_stays_with_its_age() {
        let mut model = Model::default();
        model.lose("no socket".to_owned());
        assert!(text(&model).contains("no answer: no socket"));
        model.take(frame());
        model.lose("no socket".to_owned());
        let shown = text(&model);
        assert!(shown.contains("no answer: shown as of 30s ago; no socket") && shown.contains("lab"), "{shown}");
        model.take(frame());
        assert!(!text(&model).contains("no answer"));
    }

    #[test]
    fn nodes_are_ordered_by_what_is_allocated() {
        let mut model = Model::new(View::Nodes);
        let mut frame = frame();
        let mut full = node::example();
        (full.id, full.name) = (NodeId::from_bytes([9; 10]), "host-z".parse().unwrap());
        full.resources.cores.allocated = full.resources.cores.effective.saturating_add(Cores::whole(1));
        frame.nodes.push(full);
        model.take(frame);
        assert!(text(&model).find("host-z") > text(&model).find("host-a"));
        model.key(b's');
        let shown = text(&model);
        let body = shown.split_once("\n\n").unwrap().1;
        assert!(body.find("host-z") < body.find("host-a"), "{shown}");
    }

    #[test]
    fn a_sparkline_has_gaps_and_ten_minutes() {
        let mut samples: VecDeque<Option<f64>> = std::iter::repeat_n(Some(0.0), 10).collect();
        samples.extend(std::iter::repeat_n(None, 10));
        samples.extend(std::iter::repeat_n(Some(1.0), 10));
        assert_eq!(spark(&samples, true), "▁·█");
        assert_eq!(spark(&samples, false), ". #");
        let mut model = Model::default();
        (0..400).for_each(|_| model.take(frame()));
        let kept = model.samples.values().next().unwrap();
        assert_eq!((kept.len(), spark(kept, true).chars().count()), (SAMPLES, CELLS));
    }

    #[test]
    fn colours_take_no_room() {
        assert_eq!(cut("abcdef", 3), "abc");
        assert_eq!(cut("\x1b[31mabcdef\x1b[0m", 3), "\x1b[31mabc\x1b[0m");
        assert_eq!(cut("äöü", 2), "äö");
    }
}
