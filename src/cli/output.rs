//! What a command prints: tables for people, the API's own body for programs.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Write};

use bytes::Bytes as Chunk;
use clap::ValueEnum;
use serde::Serialize;
use serde::de::DeserializeOwned;
// This type keeps the order of keys, for JSON too.
use serde_yaml_ng::Value;

use crate::clock::Clock;
use crate::types::Timestamp;

use super::failure::Failure;
use super::terminal::Terminal;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Format {
    /// Tables and text for people.
    #[default]
    Table,
    /// The API's answer with every field, as JSON.
    Json,
    /// The API's answer with every field, as YAML.
    Yaml,
}

/// The body of an answer, unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Body(Chunk);

/// Standard output and standard error, with the output format and what the terminal can show.
pub(super) struct Output {
    pub(super) format: Format,
    pub(super) terminal: Terminal,
    pub(super) now: Timestamp,
    /// Whether something was printed before: YAML needs a separator between two documents.
    printed: Cell<bool>,
}

impl Output {
    pub(super) fn here(format: Format) -> Result<Self, Failure> {
        let clock = Clock::system().map_err(|e| Failure::Failed(format!("the clock cannot be read: {e}")))?;
        Ok(Self { format, terminal: Terminal::of_stdout(), now: clock.now().wall, printed: Cell::new(false) })
    }

    /// Prints the answer: as the table that `people` makes, or unchanged.
    pub(super) fn answer<T: DeserializeOwned>(
        &self,
        body: &Body,
        people: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.text(people(&body.read()?)),
            Format::Json | Format::Yaml => self.document(body),
        }
    }

    /// Prints a value that is not an answer of the API: as the text that `people` makes, or as JSON or YAML.
    pub(super) fn value(&self, value: &impl Serialize, people: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.text(people()),
            Format::Json | Format::Yaml => self.document(&Body::of(value)?),
        }
    }

    /// Prints the name of the changed object, in table format only: in JSON and YAML the API's empty answer is printed.
    pub(super) fn done(&self, name: &str) -> Result<(), Failure> {
        if self.format == Format::Table { self.text(name) } else { Ok(()) }
    }

    /// Prints one or more lines.
    pub(super) fn text(&self, text: impl fmt::Display) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        Ok(stdout.flush()?)
    }

    fn document(&self, body: &Body) -> Result<(), Failure> {
        let separate = self.printed.replace(true) && self.format == Format::Yaml;
        let rendered = body.render(self.format)?;
        self.text(if separate { format!("---\n{rendered}") } else { rendered })
    }

    /// Writes the bytes unchanged, and flushes them.
    pub(super) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }

    /// Prints a message on standard error, beside the result.
    pub(super) fn note(&self, text: impl fmt::Display) {
        note(text);
    }
}

/// Prints a message on standard error. A closed standard error does not fail the command.
pub(super) fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

impl Body {
    pub(super) fn new(bytes: Chunk) -> Self {
        Self(bytes)
    }

    /// The JSON of a value.
    pub(super) fn of(value: &impl Serialize) -> Result<Self, Failure> {
        let json = serde_json::to_vec(value).map_err(|e| Failure::Failed(format!("cannot encode JSON: {e}")))?;
        Ok(Self(json.into()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&self.0)).map_err(|e| {
            Failure::Failed(format!("the answer cannot be parsed ({e}); is the node newer than this ostler?"))
        })
    }

    /// The cursor of the list's next page, if there is one.
    pub(super) fn next_cursor(&self) -> Result<Option<String>, Failure> {
        Ok(self.value()?.get("next_cursor").and_then(Value::as_str).map(str::to_owned))
    }

    /// Joins two pages of a list into one.
    pub(super) fn followed_by(&self, next: &Self) -> Result<Self, Failure> {
        let (mut whole, next) = (self.value()?, next.value()?);
        let more = next.get("items").and_then(Value::as_sequence).cloned().unwrap_or_default();
        if let Some(items) = whole.get_mut("items").and_then(Value::as_sequence_mut) {
            items.extend(more);
        }
        if let Some(cursor) = whole.get_mut("next_cursor") {
            *cursor = next.get("next_cursor").cloned().unwrap_or_default();
        }
        Self::of(&whole)
    }

    fn value(&self) -> Result<Value, Failure> {
        self.read()
    }

    /// An empty body is rendered as an empty text.
    fn render(&self, format: Format) -> Result<String, Failure> {
        if self.0.is_empty() {
            return Ok(String::new());
        }
        let value = self.value()?;
        let wrong = |e: &dyn fmt::Display| Failure::Failed(format!("the answer cannot be printed: {e}"));
        match format {
            Format::Yaml => {
                serde_yaml_ng::to_string(&value).map(|yaml| yaml.trim_end().to_owned()).map_err(|e| wrong(&e))
            }
            Format::Json | Format::Table => serde_json::to_string_pretty(&value).map_err(|e| wrong(&e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(json: &'static str) -> Body {
        Body::new(Chunk::from_static(json.as_bytes()))
    }

    #[test]
    fn a_body_keeps_its_fields_their_order_and_their_figures() {
        let body = body(r#"{"z":1.5,"a":[null,18446744073709551615,"yes"],"m":-3}"#);
        let json = body.render(Format::Json).unwrap();
        assert_eq!(
            json.split_whitespace().collect::<String>(),
            r#"{"z":1.5,"a":[null,18446744073709551615,"yes"],"m":-3}"#
        );
        assert_eq!(body.render(Format::Yaml).unwrap(), "z: 1.5\na:\n- null\n- 18446744073709551615\n- yes\nm: -3");
        assert_eq!(Body::default().render(Format::Json).unwrap(), "");
    }

    #[test]
    fn the_error_of_an_answer_that_cannot_be_parsed_names_the_field() {
        let failure = body(r#"{"items":[1,"x"],"next_cursor":null}"#).read::<crate::types::List<u8>>().unwrap_err();
        assert!(failure.to_string().contains("items[1]"), "{failure}");
    }
}
