//! The floors of ARCHITECTURE.md: parts import downward only, and each outside system has one adapter.
//!
//! rustc cannot keep floors inside one crate, so this reads the imports. It looks at code, not at what
//! is written in `#[cfg(test)]` modules that close a file.

#![allow(clippy::unwrap_used)] // a test that cannot read the sources has failed

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The floor of every part: the longest prefix of a file's path under `src/` decides. A file may import
/// from its own part and from lower floors.
const FLOORS: &[(&str, u32)] = &[
    ("types", 0),
    ("clock", 0),
    ("wire", 1),
    ("ledger", 1),
    ("capacity/effective", 1),
    ("placement/filter", 1),
    ("placement/plan", 1),
    ("placement/score", 1),
    ("placement/offer", 1),
    ("placement/index", 1),
    ("placement/book", 1),
    ("election/state", 1),
    ("gossip/forgotten", 1),
    ("gossip/keys", 1),
    ("gossip/view", 1),
    ("catalogue/merge", 1),
    ("sessions/feed", 1),
    ("sessions/lifecycle", 1),
    ("sessions/decide", 1),
    ("sessions/record", 1),
    ("node/settings", 1),
    ("store", 2),
    ("identity", 2),
    ("logging", 2),
    ("capacity/probe", 2),
    ("sessions/runtime", 2),
    ("sessions/journal", 2),
    ("node/store", 2),
    ("catalogue/store", 2),
    ("election/store", 2),
    ("gossip/roster", 2),
    ("net", 2),
    ("capacity", 3),
    ("node", 3),
    ("catalogue", 3),
    ("sessions", 3),
    ("election", 3),
    ("gossip", 3),
    ("placement", 4),
    ("cluster", 4),
    ("http", 5),
    ("config", 6),
    ("daemon", 6),
    ("cli", 6),
    ("lib", 7),
    ("main", 7),
];

/// An outside system, and the only places that may speak to it.
const ADAPTERS: &[(&str, &[&str])] = &[
    ("bollard", &["sessions/runtime/docker"]),
    ("axum", &["http"]),
    ("utoipa_axum", &["http"]),
    ("prometheus_client", &["http/metrics"]),
    ("redb", &["store"]),
    ("quinn", &["net"]),
    ("rcgen", &["identity"]),
    ("argon2", &["identity"]),
    ("webpki", &["identity"]),
    ("chitchat", &["gossip", "net/gossip"]),
    ("postcard", &["wire/codec"]),
    ("zstd", &["net/gossip"]),
    ("sysinfo", &["capacity/probe"]),
    ("toml", &["config", "cli/workspace", "cli/login"]),
    ("toml_edit", &["config"]),
    ("clap", &["cli"]),
    ("comfy_table", &["cli"]),
    ("indicatif", &["cli"]),
    // chitchat's transport speaks it, too.
    ("anyhow", &["daemon", "main", "cli", "gossip", "net/gossip"]),
];

/// What a pure core never touches: `now`, randomness and the world are arguments.
const IMPURE: &[&str] =
    &["tokio", "std::fs", "std::net", "std::process", "std::env", "Instant::now", "SystemTime", "SystemRandom"];
const CORES: &[&str] = &[
    "types",
    "ledger",
    "capacity/effective",
    "placement/filter",
    "placement/plan",
    "placement/score",
    "placement/offer",
    "placement/index",
    "placement/book",
    "wire",
    "election/state",
    "gossip/forgotten",
    "gossip/keys",
    "gossip/view",
    "catalogue/merge",
    "sessions/feed",
    "sessions/lifecycle",
    "sessions/decide",
    "sessions/record",
    "node/settings",
];

/// What the command line may import: it speaks to the API. Those subcommands that are not clients may more.
const CLI_MAY: &[&str] = &["cli", "types", "clock"];
const CLI_LOCAL: &[&str] = &["cli/agent", "cli/demo", "cli/config", "cli/token", "cli/init", "cli/join"];

struct Source {
    /// Under `src/`, without `.rs` and `/mod`.
    name: String,
    /// Without tests at its end.
    code: String,
}

fn sources() -> Vec<Source> {
    fn collect(directory: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, into);
            } else if path.extension().is_some_and(|e| e == "rs") {
                into.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    let source = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().with_extension("").to_string_lossy().replace("/mod", "");
        let text = fs::read_to_string(&path).unwrap();
        // A module of tests closes its file; everything before it is code.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        Source { name, code }
    };
    let is_test = |s: &Source| {
        ["tests", "testing", "fake", "sample", "fixture"]
            .iter()
            .any(|t| s.name.ends_with(&format!("/{t}")) || s.name.contains(&format!("/{t}/")))
    };
    paths.into_iter().map(source).filter(|s| !is_test(s)).collect()
}

fn is_under(name: &str, prefix: &str) -> bool {
    name == prefix || name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

fn floor(name: &str) -> Option<u32> {
    FLOORS
        .iter()
        .filter(|(prefix, _)| is_under(name, prefix))
        .max_by_key(|(prefix, _)| prefix.len())
        .map(|(_, floor)| *floor)
}

/// The crate's own paths that a file imports, as `a/b`: `use crate::a::b` and `crate::a::b` in code.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let inside = group.split('}').next().unwrap_or_default();
            found.extend(inside.split(',').filter_map(|item| path(item.trim())));
        } else {
            found.extend(path(rest));
        }
    }
    found
}

/// The modules at the beginning of a path: lower-case words joined by `::`.
fn path(text: &str) -> Option<String> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let modules: Vec<&str> =
        text[..end].split("::").take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect();
    (!modules.is_empty()).then(|| modules.join("/"))
}

#[test]
fn every_file_has_a_floor() {
    let without: Vec<String> = sources().into_iter().filter(|s| floor(&s.name).is_none()).map(|s| s.name).collect();
    assert!(without.is_empty(), "give these a floor in FLOORS and ARCHITECTURE.md: {without:?}");
}

#[test]
fn imports_go_downward() {
    let mut wrong = BTreeMap::new();
    for source in sources() {
        let Some(own) = floor(&source.name) else { continue };
        let part = source.name.split('/').next().unwrap_or_default();
        let upward: Vec<String> = imports(&source.code)
            .into_iter()
            .filter(|import| !is_under(import, part) && floor(import).is_some_and(|other| other > own))
            .filter(|import| !nouns(import))
            .collect();
        if !upward.is_empty() {
            wrong.insert(source.name, upward);
        }
    }
    assert!(wrong.is_empty(), "these import upward: {wrong:#?}");
}

/// A part's `mod.rs` holds its nouns (`Config`, `Error`, `Handle`, snapshots), which any part may speak of.
fn nouns(import: &str) -> bool {
    !import.contains('/')
}

#[test]
fn each_outside_system_has_one_adapter() {
    for source in sources() {
        for (library, allowed) in ADAPTERS {
            let uses =
                source.code.contains(&format!("use {library}::")) || source.code.contains(&format!(" {library}::"));
            assert!(
                !uses || allowed.iter().any(|prefix| is_under(&source.name, prefix)),
                "{} speaks to {library}; only {allowed:?} may",
                source.name
            );
        }
    }
}

#[test]
fn cores_touch_nothing_outside() {
    for source in sources().iter().filter(|s| CORES.iter().any(|core| is_under(&s.name, core))) {
        for impure in IMPURE {
            assert!(!source.code.contains(impure), "{} is a core and uses {impure}", source.name);
        }
    }
}

#[test]
fn parts_are_handed_their_configuration() {
    for source in sources() {
        let may = ["config", "daemon"].iter().chain(CLI_LOCAL).any(|prefix| is_under(&source.name, prefix));
        assert!(
            may || !imports(&source.code).iter().any(|i| is_under(i, "config")),
            "{} reads the configuration",
            source.name
        );
    }
}

#[test]
fn the_command_line_speaks_to_the_api() {
    for source in sources().iter().filter(|s| is_under(&s.name, "cli")) {
        if CLI_LOCAL.iter().any(|prefix| is_under(&source.name, prefix)) {
            continue;
        }
        for import in imports(&source.code) {
            assert!(CLI_MAY.iter().any(|part| is_under(&import, part)), "{} imports {import}", source.name);
        }
    }
}

#[test]
fn nothing_is_called_by_a_name_that_says_nothing() {
    for source in sources() {
        for word in ["util", "utils", "common", "manager", "helpers", "misc"] {
            assert!(!source.name.split('/').any(|part| part == word), "{}", source.name);
        }
    }
}
