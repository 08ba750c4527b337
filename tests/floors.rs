//! Checks the floors of ARCHITECTURE.md: parts import downward only, cores import only cores and nouns, and each
//! outside system has one adapter.
//!
//! rustc cannot enforce floors inside one crate, so this parses the sources and checks every path: `use`
//! declarations, paths in code and in macros, through `crate`, `self` and `super`. A name that a file re-exports
//! counts as an import of the file that it comes from. Test code is not checked.

#![allow(clippy::unwrap_used)] // a test that cannot read the sources has failed

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// The parts, floor by floor. A part may import from lower floors only, so no two parts can form a cycle.
const FLOORS: &[&[&str]] = &[
    &["types"],
    &["clock", "identity", "logging", "metrics", "retry", "socket", "store"],
    &["events"],
    &["election", "gpu"],
    &["runtime"],
    &["capacity", "gossip"],
    &["catalogue", "ledger", "node"],
    &["sessions"],
    &["images"],
    &["observe", "placement"],
    &["history"],
    &["rollout", "wire"],
    &["net"],
    &["doctor"],
    &["cluster"],
    &["http"],
    &["config"],
    &["daemon"],
    &["cli"],
    &["lib", "main"],
];

/// The cores: pure logic. A core imports only cores and the nouns in a part's `mod.rs`.
const CORES: &[&str] = &[
    "types",
    "ledger",
    "capacity/effective",
    "capacity/room",
    "catalogue/merge",
    "doctor/judge",
    "election/state",
    "events/happening",
    "events/line",
    "events/merge",
    "events/rate",
    "events/tally",
    "gpu/answer",
    "gpu/changes",
    "gpu/children",
    "gpu/device",
    "gpu/health",
    "gpu/known",
    "gpu/listed",
    "gpu/state",
    "gossip/forgotten",
    "gossip/keys",
    "gossip/view",
    "history/columns",
    "history/range",
    "history/ring",
    "history/sampling",
    "images/inventory",
    "images/credentials/choose",
    "images/bandwidth",
    "images/offers",
    "images/ownership",
    "images/policy",
    "images/pressure",
    "images/pulls",
    "images/shortage",
    "node/settings",
    "observe/view",
    "placement/book",
    "placement/filter",
    "placement/flights",
    "placement/index",
    "placement/limits",
    "placement/offer",
    "placement/plan",
    "placement/score",
    "placement/state",
    "rollout/daily",
    "rollout/turns",
    "runtime/container",
    "runtime/docker/gpus/cdi",
    "runtime/docker/gpus/toolkit",
    "runtime/docker/gpus/fields",
    "runtime/docker/gpus/verify",
    "runtime/fault",
    "runtime/gpus",
    "runtime/images",
    "sessions/decide",
    "sessions/feed",
    "sessions/lifecycle",
    "sessions/measure",
    "sessions/meter",
    "sessions/record",
    "sessions/runner",
    "sessions/state",
    "sessions/told",
    "wire",
];

/// Paths that a core must not use: it gets `now`, randomness and input as arguments.
const IMPURE: &[&str] =
    &["tokio", "std::fs", "std::net", "std::process", "std::env", "Instant::now", "SystemTime", "SystemRandom"];

/// Libraries, and the only files that may use each.
const ADAPTERS: &[(&str, &[&str])] = &[
    ("bollard", &["runtime/docker"]),
    ("netlink_packet_core", &["runtime/connections"]),
    ("netlink_packet_netfilter", &["runtime/connections"]),
    ("nvml_wrapper", &["gpu/probe/nvml"]),
    ("axum", &["http"]),
    ("utoipa_axum", &["http"]),
    ("prometheus_client", &["metrics"]),
    ("redb", &["store"]),
    ("quinn", &["net"]),
    ("quinn_proto", &["net"]),
    ("rcgen", &["identity"]),
    ("argon2", &["identity"]),
    ("webpki", &["identity"]),
    ("chitchat", &["gossip", "net/gossip"]),
    ("postcard", &["wire/codec"]),
    ("zstd", &["net/gossip"]),
    ("sysinfo", &["capacity/probe", "metrics/process"]),
    ("toml", &["config", "cli/workspace", "cli/login", "runtime/docker/gpus/toolkit"]),
    ("toml_edit", &["config"]),
    ("clap", &["cli"]),
    ("comfy_table", &["cli"]),
    ("indicatif", &["cli"]),
    // chitchat's transport speaks it, too.
    ("anyhow", &["daemon", "main", "cli", "net/gossip"]),
];

/// What the command line may import, since it is a client of the API. The subcommands of `CLI_LOCAL`, which are not
/// clients, may import more.
const CLI_MAY: &[&str] = &["cli", "types", "clock"];
const CLI_LOCAL: &[&str] = &["cli/agent", "cli/demo", "cli/config", "cli/token", "cli/init", "cli/join", "cli/doctor"];

/// The limit of re-exports through which a name is followed.
const MAX_REEXPORTS: usize = 5;

/// One file of `src/`.
struct Source {
    /// The path under `src/`, without `.rs` and `/mod`.
    name: String,
    /// Every path in it outside of test code. A path that begins with `crate`, `self` or `super` is absolute, such as
    /// `crate::a::b::C`.
    paths: BTreeSet<String>,
    /// The names that its `use` declarations import, and their paths.
    uses: BTreeMap<String, String>,
}

impl Source {
    fn part(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

/// Collects the paths of one file.
struct Paths {
    /// The current module, from the crate's root.
    module: Vec<String>,
    found: BTreeSet<String>,
    uses: BTreeMap<String, String>,
}

impl Paths {
    fn note(&mut self, words: &[String]) {
        let path = self.absolute(words);
        self.found.insert(path);
    }

    fn note_use(&mut self, name: &str, words: &[String]) {
        let path = self.absolute(words);
        self.found.insert(path.clone());
        self.uses.insert(name.to_owned(), path);
    }

    /// The path from the crate's root. A path that begins with any other name stays as it is.
    fn absolute(&self, words: &[String]) -> String {
        let (mut module, mut rest) = (self.module.clone(), words);
        match words.first().map(String::as_str) {
            Some("crate") => (module, rest) = (Vec::new(), &words[1..]),
            Some("self" | "super") => {
                while let Some(word) = rest.first().filter(|word| ["self", "super"].contains(&word.as_str())) {
                    if word == "super" {
                        module.pop();
                    }
                    rest = &rest[1..];
                }
            }
            _ => return words.join("::"),
        }
        let absolute = ["crate".to_owned()].into_iter().chain(module).chain(rest.iter().cloned());
        absolute.collect::<Vec<_>>().join("::")
    }

    fn note_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |word: &syn::Ident| [before, &[word.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.note_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.note_use(before.last().map_or("self", |word| word), before);
            }
            syn::UseTree::Name(name) => self.note_use(&name.ident.to_string(), &with(&name.ident)),
            syn::UseTree::Rename(rename) => self.note_use(&rename.rename.to_string(), &with(&rename.ident)),
            syn::UseTree::Glob(_) => self.note(before),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_tree(before, tree)),
        }
    }

    /// Collects paths in a macro's arguments. They are not parsed, so a path is words joined by `::`.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let mut words: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(word) => {
                    if colons != 2 {
                        self.note_words(&mut words);
                    }
                    words.push(word.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                other => {
                    self.note_words(&mut words);
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.note_tokens(group.stream());
                    }
                }
            }
        }
        self.note_words(&mut words);
    }

    fn note_words(&mut self, words: &mut Vec<String>) {
        if words.len() > 1 {
            self.note(words);
        }
        words.clear();
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let words: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note(&words);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, makro: &'ast syn::Macro) {
        self.note_tokens(makro.tokens.clone());
        visit::visit_macro(self, makro);
    }

    // `pub(in super::super)` is a visibility, not an import.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
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
    let mut files = Vec::new();
    collect(&root, &mut files);
    let source = |file: PathBuf| {
        let name = file.strip_prefix(&root).unwrap().with_extension("").to_string_lossy().replace("/mod", "");
        let module = name.split('/').filter(|word| *word != "lib" && *word != "main").map(str::to_owned).collect();
        let mut paths = Paths { module, found: BTreeSet::new(), uses: BTreeMap::new() };
        paths.visit_file(&syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap());
        Source { name, paths: paths.found, uses: paths.uses }
    };
    let is_test = |s: &Source| {
        ["tests", "testing", "fake", "sample", "fixture"]
            .iter()
            .any(|t| s.name.ends_with(&format!("/{t}")) || s.name.contains(&format!("/{t}/")))
    };
    files.into_iter().map(source).filter(|s| !is_test(s)).collect()
}

fn is_under(name: &str, prefix: &str) -> bool {
    name == prefix || name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

fn is_one_of(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| is_under(name, prefix))
}

/// The sources by name, to find the file of a path.
struct House(BTreeMap<String, Source>);

impl House {
    fn read() -> Self {
        Self(sources().into_iter().map(|source| (source.name.clone(), source)).collect())
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.0.values()
    }

    fn cores(&self) -> impl Iterator<Item = &Source> {
        self.sources().filter(|source| is_one_of(&source.name, CORES))
    }

    /// The files that a file imports from, without itself.
    fn imports<'a>(&'a self, source: &Source) -> BTreeSet<&'a str> {
        let found = source.paths.iter().filter_map(|path| self.file_of(source, path, MAX_REEXPORTS));
        found.filter(|name| *name != source.name).collect()
    }

    /// The file of a path in this file. `None`: the path is outside of the crate, or in this file.
    fn file_of(&self, source: &Source, path: &str, steps: usize) -> Option<&str> {
        let words: Vec<&str> = path.split("::").collect();
        let Some(words) = words.strip_prefix(&["crate"]) else {
            // The name was imported, or is a module below this one.
            if let Some(used) = source.uses.get(words[0]).filter(|used| *used != path && steps > 0) {
                let whole = [&[used.as_str()], &words[1..]].concat().join("::");
                return self.file_of(source, &whole, steps - 1);
            }
            let below = [&[source.name.as_str()], &words[..]].concat();
            return self.longest(&below).filter(|(name, _)| *name != source.name).map(|(name, _)| name);
        };
        let (name, rest) = self.longest(words)?;
        let file = &self.0[name];
        match rest.first().and_then(|word| file.uses.get(*word)) {
            Some(used) if file.name != source.name && steps > 0 => {
                let whole = [&[used.as_str()], &rest[1..]].concat().join("::");
                self.file_of(file, &whole, steps - 1).or(Some(name))
            }
            _ => Some(name),
        }
    }

    /// The file whose module is the longest prefix of the words, and the remaining words.
    fn longest<'w>(&self, words: &'w [&'w str]) -> Option<(&str, &'w [&'w str])> {
        (1..=words.len()).rev().find_map(|end| {
            let (name, _) = self.0.get_key_value(&words[..end].join("/"))?;
            Some((name.as_str(), &words[end..]))
        })
    }
}

fn floor(part: &str) -> Option<usize> {
    FLOORS.iter().position(|parts| parts.contains(&part))
}

fn part_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

#[test]
fn every_part_has_a_floor() {
    let without: BTreeSet<String> =
        sources().iter().map(|s| s.part().to_owned()).filter(|part| floor(part).is_none()).collect();
    assert!(without.is_empty(), "give these a floor in FLOORS and ARCHITECTURE.md: {without:?}");
}

#[test]
fn every_name_in_the_lists_is_a_file_or_directory() {
    let sources = sources();
    let adapters = ADAPTERS.iter().flat_map(|(_, places)| *places);
    for name in FLOORS.iter().copied().flatten().chain(CORES).chain(CLI_LOCAL).chain(adapters) {
        assert!(sources.iter().any(|source| is_under(&source.name, name)), "there is no src/{name}");
    }
}

#[test]
fn imports_go_downward() {
    let house = House::read();
    let mut upward: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for source in house.sources() {
        for import in house.imports(source).into_iter().filter(|import| part_of(import) != source.part()) {
            // `lib.rs`, the list of the parts, has no floor.
            if import != "lib" && floor(part_of(import)) >= floor(source.part()) {
                upward.entry(&source.name).or_default().push(import);
            }
        }
    }
    assert!(upward.is_empty(), "files import from their own floor or a higher one: {upward:#?}");
}

#[test]
fn the_architecture_page_lists_every_part_and_floor() {
    let picture = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    for (floor, parts) in FLOORS.iter().enumerate() {
        let parts: Vec<&&str> = parts.iter().filter(|part| !["lib", "main"].contains(*part)).collect();
        if parts.is_empty() {
            continue;
        }
        let row = parts.iter().map(|part| format!("`{part}`")).collect::<Vec<_>>().join(", ");
        assert!(picture.contains(&format!("| {floor} | {row} |")), "ARCHITECTURE.md has no row `| {floor} | {row} |`");
    }
    for part in FLOORS.iter().copied().flatten() {
        let is_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(format!("{part}.rs")).exists();
        let shown = if is_file { format!("\n  {part}.rs ") } else { format!("\n  {part}/ ") };
        assert!(picture.contains(&shown), "ARCHITECTURE.md's tree lacks {}", shown.trim());
    }
}

#[test]
fn cores_import_cores_and_nouns() {
    let house = House::read();
    let mut wrong: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for source in house.cores() {
        // An import without a slash is a `mod.rs`, which holds the nouns of its part.
        let acts = |import: &&str| !is_one_of(import, CORES) && import.contains('/');
        let acting: Vec<&str> = house.imports(source).into_iter().filter(acts).collect();
        if !acting.is_empty() {
            wrong.insert(&source.name, acting);
        }
    }
    assert!(wrong.is_empty(), "cores import files that are neither cores nor nouns: {wrong:#?}");
}

#[test]
fn cores_use_nothing_impure() {
    for source in sources().iter().filter(|s| is_one_of(&s.name, CORES)) {
        for (impure, path) in IMPURE.iter().flat_map(|impure| source.paths.iter().map(move |path| (impure, path))) {
            let touches = path == impure
                || path.starts_with(&format!("{impure}::"))
                || path.ends_with(&format!("::{impure}"))
                || path.contains(&format!("::{impure}::"));
            assert!(!touches, "{} is a core and uses {path}", source.name);
        }
    }
}

#[test]
fn each_outside_system_has_one_adapter() {
    for source in sources() {
        for (library, allowed) in ADAPTERS {
            let uses = source.paths.iter().any(|path| path.split("::").next() == Some(library));
            assert!(!uses || is_one_of(&source.name, allowed), "{} uses {library}; only {allowed:?} may", source.name);
        }
    }
}

#[test]
fn parts_get_their_configuration_as_an_argument() {
    let house = House::read();
    for source in house.sources() {
        let may = is_one_of(&source.name, &["config", "daemon"]) || is_one_of(&source.name, CLI_LOCAL);
        let reads = house.imports(source).iter().any(|import| is_under(import, "config"));
        assert!(may || !reads, "{} imports config; pass it its own Config", source.name);
    }
}

#[test]
fn the_command_line_is_a_client_of_the_api() {
    let house = House::read();
    let clients = house.sources().filter(|s| s.part() == "cli" && !is_one_of(&s.name, CLI_LOCAL));
    for source in clients {
        for import in house.imports(source) {
            // `cli/mod.rs` lists all subcommands, the local ones too.
            let subcommand = source.name == "cli" && is_one_of(import, CLI_LOCAL);
            assert!(subcommand || is_one_of(import, CLI_MAY), "{} imports {import}", source.name);
        }
    }
}

#[test]
fn no_file_has_a_meaningless_name() {
    for source in sources() {
        for word in ["util", "utils", "common", "manager", "helpers", "misc"] {
            assert!(!source.name.split('/').any(|part| part == word), "src/{} has a meaningless name", source.name);
        }
    }
}
