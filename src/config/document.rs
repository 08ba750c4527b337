//! A configuration text while it is read. The reader takes every key by its path, with a
//! parser. A wrong value, and a key that the reader did not take, becomes a [`Problem`].

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem};
use crate::types::other_language;

/// Characters of a written value that a message shows at most.
const MAX_SHOWN: usize = 60;
/// The least Jaro-Winkler similarity, from 0 to 1, at which a name is suggested for an unknown one.
const ALIKE: f64 = 0.8;

/// A text while it is read. Keys are paths of two parts: `http.listen`.
pub(super) struct Document<'t> {
    text: &'t str,
    root: DeTable<'t>,
    /// The keys that the reader took, whether the text has them or not: all valid keys.
    known: Vec<&'static str>,
    problems: Problems,
}

impl<'t> Document<'t> {
    /// Reads the text as TOML.
    ///
    /// # Errors
    /// The text is not TOML: its syntax errors.
    pub(super) fn parse(text: &'t str) -> Result<Self, Vec<Problem>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            return Ok(Self { text, root: root.into_inner(), known: Vec::new(), problems: Problems::default() });
        }
        if let Some(other) = other_language(text) {
            let message =
                format!("this is {other}; expected TOML, for example: [http] and below it: socket = \"/run/x.sock\"");
            return Err(vec![Problem { place: Place::Line(1), key: String::new(), message }]);
        }
        let mut problems: Vec<Problem> = errors.iter().map(|error| syntax(text, error)).collect();
        // One mistake can cause several errors on its line; the first of them names the mistake.
        problems.sort_by_key(|problem| problem.place);
        problems.dedup_by_key(|problem| problem.place);
        Err(problems)
    }

    /// The value of a key, if the text has it and it is valid.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        self.known.push(key);
        let value = find(&self.root, key)?;
        self.problems.right(self.text, key, value, parse(value.get_ref()))
    }

    /// The items of a list. An invalid item becomes a problem, and the others are read.
    pub(super) fn take_list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        self.known.push(key);
        let value = find(&self.root, key)?;
        let list = value.get_ref().as_array().ok_or_else(|| "expected a list: [\"…\", \"…\"]".to_owned());
        let items = self.problems.right(self.text, key, value, list)?.iter().enumerate();
        let right = |(index, item): (usize, &Spanned<DeValue<'_>>)| {
            self.problems.right(self.text, &format!("{key}[{index}]"), item, parse(item.get_ref()))
        };
        Some(items.filter_map(right).collect())
    }

    /// The entries of a table with arbitrary keys. An invalid entry becomes a problem, and the others are read.
    pub(super) fn take_table<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str, &DeValue<'_>) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        self.known.push(key);
        let value = find(&self.root, key)?;
        let table = value.get_ref().as_table().ok_or_else(|| "expected a table: { name = \"…\" }".to_owned());
        let entries = self.problems.right(self.text, key, value, table)?.iter();
        let right = |(name, value): (&Key<'_>, &Spanned<DeValue<'_>>)| {
            let key = format!("{key}.{}", shown(self.text, &name.span()));
            self.problems.right(self.text, &key, value, parse(name.get_ref(), value.get_ref()))
        };
        Some(entries.filter_map(right).collect())
    }

    /// Every key that the reader took.
    #[cfg(test)]
    pub(super) fn known(&self) -> &[&'static str] {
        &self.known
    }

    pub(super) fn is_written(&self, key: &str) -> bool {
        find(&self.root, key).is_some()
    }

    /// Adds a problem of a key whose value is valid by itself and contradicts another key.
    pub(super) fn refuse(&mut self, key: &str, message: impl Into<String>) {
        match find(&self.root, key) {
            Some(value) => self.problems.wrong(self.text, key, value, &message.into()),
            None => {
                self.problems.0.push(Problem { place: Place::Missing, key: key.to_owned(), message: message.into() })
            }
        }
    }

    /// Adds a problem of an environment variable.
    pub(super) fn refuse_variable(&mut self, name: &str, value: &str, message: &str) {
        let value: String = value.escape_debug().take(MAX_SHOWN).collect();
        let message = format!("\"{value}\": {message}");
        self.problems.0.push(Problem { place: Place::Environment, key: name.to_owned(), message });
    }

    /// Every problem in the order of the file, unknown keys included.
    pub(super) fn finish(self) -> Vec<Problem> {
        let mut problems = self.untaken();
        problems.extend(self.problems.0);
        problems.sort();
        problems
    }

    fn untaken(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, value) in self.root.iter() {
            match value.get_ref().as_table() {
                Some(table) if self.tables().any(|known| known == name.get_ref()) => {
                    let unknown = table.iter().filter(|(key, _)| !self.knows(name.get_ref(), key.get_ref()));
                    problems.extend(unknown.map(|(key, _)| self.unknown_key(name.get_ref(), key)));
                }
                Some(_) => problems.push(self.unknown_table(name)),
                None => problems.push(self.outside(name)),
            }
        }
        problems
    }

    fn knows(&self, table: &str, key: &str) -> bool {
        self.known.iter().any(|known| split(known) == (table, key))
    }

    fn unknown_key(&self, table: &str, key: &Key<'_>) -> Problem {
        let siblings =
            || self.known.iter().map(|known| split(known)).filter(|(of, _)| *of == table).map(|(_, key)| key);
        let hint = if let Some(meant) = nearest(key.get_ref(), siblings()) {
            format!("did you mean {meant}?")
        } else if let Some(elsewhere) = self.in_any_table(key) {
            format!("did you mean {elsewhere}?")
        } else {
            format!("[{table}] has {}", siblings().collect::<Vec<_>>().join(", "))
        };
        let path = format!("{table}.{}", shown(self.text, &key.span()));
        self.unknown(path, &key.span(), format!("unknown key; {hint}"))
    }

    /// The keys of this name in any table: `http.listen or cluster.listen`.
    fn in_any_table(&self, name: &Key<'_>) -> Option<String> {
        let known: Vec<&str> = self.known.iter().filter(|known| split(known).1 == name.get_ref()).copied().collect();
        (!known.is_empty()).then(|| known.join(" or "))
    }

    fn unknown_table(&self, name: &Key<'_>) -> Problem {
        let hint = match nearest(name.get_ref(), self.tables()) {
            Some(meant) => format!("did you mean [{meant}]?"),
            None => format!("expected one of [{}]", self.tables().collect::<Vec<_>>().join("], [")),
        };
        self.unknown(shown(self.text, &name.span()), &name.span(), format!("unknown table; {hint}"))
    }

    /// The problem of a key above the first table.
    fn outside(&self, name: &Key<'_>) -> Problem {
        let message = if self.tables().any(|table| table == name.get_ref()) {
            format!("expected a table: [{}]", name.get_ref())
        } else if let Some(meant) = self.in_any_table(name) {
            format!("unknown key; did you mean {meant}?")
        } else {
            "unknown key; every key belongs in a table, such as listen in [http]".to_owned()
        };
        self.unknown(shown(self.text, &name.span()), &name.span(), message)
    }

    fn unknown(&self, key: String, span: &Range<usize>, message: String) -> Problem {
        Problem { place: Place::Line(line(self.text, span.start)), key, message }
    }

    fn tables(&self) -> impl Iterator<Item = &'static str> {
        let mut tables: Vec<&str> = self.known.iter().map(|key| split(key).0).collect();
        tables.sort_unstable();
        tables.dedup();
        tables.into_iter()
    }
}

/// The problems of the values that were taken.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    /// The parsed value. An error is kept as a problem.
    fn right<T>(&mut self, text: &str, key: &str, at: &Spanned<DeValue<'_>>, read: Result<T, String>) -> Option<T> {
        read.inspect_err(|message| self.wrong(text, key, at, message)).ok()
    }

    fn wrong(&mut self, text: &str, key: &str, at: &Spanned<DeValue<'_>>, message: &str) {
        let place = Place::Line(line(text, at.span().start));
        self.0.push(Problem { place, key: key.to_owned(), message: format!("{}: {message}", shown(text, &at.span())) });
    }
}

/// The candidate most similar to `name`, if any is similar enough.
pub(super) fn nearest<'c>(name: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let name = name.to_ascii_lowercase();
    candidates
        .map(|candidate| (strsim::jaro_winkler(&name, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

type Key<'t> = Spanned<Cow<'t, str>>;

fn find<'a, 't>(root: &'a DeTable<'t>, key: &str) -> Option<&'a Spanned<DeValue<'t>>> {
    let (table, key) = split(key);
    root.get(table)?.get_ref().as_table()?.get(key)
}

fn split(key: &str) -> (&str, &str) {
    key.split_once('.').unwrap_or((key, ""))
}

fn syntax(text: &str, error: &toml::de::Error) -> Problem {
    let span = error.span().unwrap_or(text.len()..text.len());
    let duplicate = error.message().starts_with("duplicate key");
    let key = if duplicate { shown(text, &span) } else { String::new() };
    Problem { place: Place::Line(line(text, span.start)), key, message: error.message().to_owned() }
}

/// The line of the byte at `offset`, counted from 1.
fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// A piece of the text as written: at most [`MAX_SHOWN`] characters of its first line.
fn shown(text: &str, span: &Range<usize>) -> String {
    let piece = text.get(span.clone()).unwrap_or_default();
    let mut chars = piece.lines().next().unwrap_or_default().chars();
    let mut shown: String = chars.by_ref().take(MAX_SHOWN).collect();
    if chars.next().is_some() || piece.contains('\n') {
        shown.push('…');
    }
    shown
}
