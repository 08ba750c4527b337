//! The floors of ARCHITECTURE.md: parts import downward only, cores import nothing that acts, and each outside
//! system has one adapter.
//!
//! rustc cannot keep floors inside one crate, so this parses the sources and looks at every path: `use`
//! declarations, paths in code and in macros, through `crate`, `self` and `super`. A name that a file re-exports
//! counts as an import of the file that it comes from. Test code is not looked at.

#![allow(clippy::unwrap_used)] // a test that cannot read the sources has failed

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// The parts, floor by floor. A part may import from lower floors only, so no two parts can form a cycle.
const FLOORS: &[&[&str]] = &[
    &["types"],
    &["clock", "identity", "logging", "store"],
    &["election", "runtime"],
    &["capacity", "gossip"],
    &["catalogue", "ledger", "node"],
    &["sessions"],
    &["observe", "placement"],
    &["wire"],
    &["net"],
    &["cluster"],
    &["http"],
    &["config"],
    &["daemon"],
    &["cli"],
    &["lib", "main"],
];

/// Pure logic. A core imports cores, and of other parts the nouns that their `mod.rs` holds.
const CORES: &[&str] = &[
    "types",
    "ledger",
    "capacity/effective",
    "catalogue/merge",
    "election/state",
    "gossip/forgotten",
    "gossip/keys",
    "gossip/view",
    "node/settings",
    "observe/view",
    "placement/book",
    "placement/filter",
    "placement/flights",
    "placement/index",
    "placement/offer",
    "placement/plan",
    "placement/score",
    "placement/state",
    "runtime/container",
    "sessions/decide",
    "sessions/feed",
    "sessions/lifecycle",
    "sessions/record",
    "sessions/runner",
    "sessions/state",
    "wire",
];

/// What a core never touches: `now`, randomness and the world are arguments.
const IMPURE: &[&str] =
    &["tokio", "std::fs", "std::net", "std::process", "std::env", "Instant::now", "SystemTime", "SystemRandom"];

/// An outside system, and the only places that may speak to it.
const ADAPTERS: &[(&str, &[&str])] = &[
    ("bollard", &["runtime/docker"]),
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
    ("anyhow", &["daemon", "main", "cli", "net/gossip"]),
];

/// What the command line may import: it speaks to the API. Those subcommands that are not clients may more.
const CLI_MAY: &[&str] = &["cli", "types", "clock"];
const CLI_LOCAL: &[&str] = &["cli/agent", "cli/demo", "cli/config", "cli/token", "cli/init", "cli/join"];

/// Names are followed through so many re-exports.
const MAX_REEXPORTS: usize = 5;

/// One file of `src/`.
struct Source {
    /// Under `src/`, without `.rs` and `/mod`.
    name: String,
    /// Every path in it that is not test code, absolute where it begins with `crate`, `self` or `super`:
    /// `crate::a::b::C`.
    paths: BTreeSet<String>,
    /// The names that its `use` declarations bring in, and their paths.
    uses: BTreeMap<String, String>,
}

impl Source {
    fn part(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

/// Collects the paths of one file.
struct Paths {
    /// The module that is looked at, from the crate's root.
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

    /// A path from the crate's root. One that begins with any other name is left as it is.
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

    /// Paths in a macro's arguments, which are not parsed: words joined by `::`.
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

    // `pub(in super::super)` says who may look, and imports nothing.
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

/// The sources by name, to find what a path leads to.
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

    /// The files that a file imports from, itself not among them.
    fn imports<'a>(&'a self, source: &Source) -> BTreeSet<&'a str> {
        let found = source.paths.iter().filter_map(|path| self.file_of(source, path, MAX_REEXPORTS));
        found.filter(|name| *name != source.name).collect()
    }

    /// The file that a path in this file leads to; `None` where it leads out of the crate or stays in the file.
    fn file_of(&self, source: &Source, path: &str, steps: usize) -> Option<&str> {
        let words: Vec<&str> = path.split("::").collect();
        let Some(words) = words.strip_prefix(&["crate"]) else {
            // A name that was brought in, or a module of this one.
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

    /// The file whose module is the longest beginning of the words, and what is left of them.
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
fn every_name_is_that_of_a_file_or_directory() {
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
            // The library's list of its parts stands on no floor.
            if import != "lib" && floor(part_of(import)) >= floor(source.part()) {
                upward.entry(&source.name).or_default().push(import);
            }
        }
    }
    assert!(upward.is_empty(), "these import from their own floor or a higher one: {upward:#?}");
}

#[test]
fn the_picture_of_the_parts_is_true() {
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
        let tree = [format!("\n  {part}/ "), format!("\n  {part}.rs ")];
        assert!(tree.iter().any(|line| picture.contains(line)), "ARCHITECTURE.md's tree lacks {part}");
    }
}

#[test]
fn cores_import_cores_and_nouns() {
    let house = House::read();
    let mut wrong: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for source in house.cores() {
        // A `mod.rs` holds the nouns of its part.
        let acts = |import: &&str| !is_one_of(import, CORES) && import.contains('/');
        let acting: Vec<&str> = house.imports(source).into_iter().filter(acts).collect();
        if !acting.is_empty() {
            wrong.insert(&source.name, acting);
        }
    }
    assert!(wrong.is_empty(), "these cores import what acts: {wrong:#?}");
}

#[test]
fn cores_touch_nothing_outside() {
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
            assert!(
                !uses || is_one_of(&source.name, allowed),
                "{} speaks to {library}; only {allowed:?} may",
                source.name
            );
        }
    }
}

#[test]
fn parts_are_handed_their_configuration() {
    let house = House::read();
    for source in house.sources() {
        let may = is_one_of(&source.name, &["config", "daemon"]) || is_one_of(&source.name, CLI_LOCAL);
        let reads = house.imports(source).iter().any(|import| is_under(import, "config"));
        assert!(may || !reads, "{} reads the configuration", source.name);
    }
}

#[test]
fn the_command_line_speaks_to_the_api() {
    let house = House::read();
    let clients = house.sources().filter(|s| s.part() == "cli" && !is_one_of(&s.name, CLI_LOCAL));
    for source in clients {
        for import in house.imports(source) {
            // What the file of all subcommands names of the local ones is only their names.
            let subcommand = source.name == "cli" && is_one_of(import, CLI_LOCAL);
            assert!(subcommand || is_one_of(import, CLI_MAY), "{} imports {import}", source.name);
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
