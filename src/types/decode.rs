//! From JSON to the types of requests, with errors in the words of the API.
//!
//! serde describes what it expects in words of Rust: `u32`, `struct Port`. The types' own JSON Schemas say the same in
//! words of the API, with bounds. So of an error of serde only its kind and its place are used.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Number, Value};
use serde_path_to_error::Segment;
use utoipa::ToSchema;

use super::Invalid;

/// Characters of a wrong value or of the name of a field that an error shows at most.
const MAX_SHOWN: usize = 60;
/// Steps through references and alternatives of a schema. No type of a request is nested as deep.
const MAX_DEPTH: usize = 16;
/// 2^53. Above it an f64 does not represent every integer, so the caller's number is ambiguous.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Decodes a value strictly.
///
/// # Errors
/// Names the field, the value and what is expected.
pub fn decode<T: DeserializeOwned + ToSchema>(json: Value) -> Result<T, Invalid> {
    let json = whole(json);
    if let Some(path) = misplaced_list(&json) {
        return Err(Translator::of::<T>(&json).wrong_value(&path));
    }
    serde_path_to_error::deserialize(&json).map_err(|error| {
        let path: Vec<Segment> = error.path().iter().cloned().collect();
        let message = error.inner().to_string();
        let translator = || Translator::of::<T>(&json);
        match Kind::of(&message) {
            Kind::WrongValue => translator().wrong_value(&path),
            Kind::Missing(field) => translator().missing(path, field),
            Kind::Unknown => translator().unknown(path),
            Kind::OfOurs => Invalid::new(place(&path), message),
        }
    })
}

/// The place of a list where no type of a request has one: instead of the whole, or in another list. serde would read
/// it as the fields of an object in order, which no caller should rely on.
fn misplaced_list(json: &Value) -> Option<Vec<Segment>> {
    if json.is_array() {
        return Some(Vec::new());
    }
    json.as_object().into_iter().flatten().find_map(|(key, field)| {
        let index = field.as_array()?.iter().position(Value::is_array)?;
        Some(vec![Segment::Map { key: key.clone() }, Segment::Seq { index }])
    })
}

/// Converts whole numbers to integers: in JSON 60.0 and 60 are the same number, but serde rejects 60.0 as an integer.
fn whole(json: Value) -> Value {
    match json {
        Value::Number(number) => Value::Number(integer(&number).map_or(number, Number::from)),
        Value::Array(items) => Value::Array(items.into_iter().map(whole).collect()),
        Value::Object(fields) => Value::Object(fields.into_iter().map(|(name, value)| (name, whole(value))).collect()),
        other => other,
    }
}

fn integer(number: &Number) -> Option<i64> {
    let float = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT)?;
    format!("{float:.0}").parse().ok()
}

/// The kind of an error, by the message that serde gives each kind.
#[derive(Debug, PartialEq, Eq)]
enum Kind<'m> {
    WrongValue,
    Missing(&'m str),
    Unknown,
    /// A type of ours says in its own words why it refuses the value.
    OfOurs,
}

impl<'m> Kind<'m> {
    fn of(message: &'m str) -> Self {
        let wrong = ["invalid type: ", "invalid value: ", "invalid length ", "unknown variant `"];
        if wrong.iter().any(|beginning| message.starts_with(beginning)) {
            Self::WrongValue
        } else if let Some(field) = message.strip_prefix("missing field `") {
            Self::Missing(field.trim_end_matches('`'))
        } else if message.starts_with("unknown field `") {
            Self::Unknown
        } else {
            Self::OfOurs
        }
    }
}

/// What of a value is wrong, by the JSON Schema of the type that it should have.
struct Translator<'j> {
    json: &'j Value,
    root: Value,
    /// The schemas that others refer to.
    named: BTreeMap<String, Value>,
}

impl<'j> Translator<'j> {
    fn of<T: ToSchema>(json: &'j Value) -> Self {
        let encode = |schema| serde_json::to_value(schema).unwrap_or_default();
        let mut named = Vec::new();
        T::schemas(&mut named);
        let named = named.into_iter().map(|(name, schema)| (name, encode(schema))).collect();
        Self { json, root: encode(T::schema()), named }
    }

    /// A value of another type, out of range, or not one of a few words.
    fn wrong_value(&self, path: &[Segment]) -> Invalid {
        let value = path.iter().try_fold(self.json, |value, segment| inner(value, segment)).unwrap_or(self.json);
        let subject = if path.is_empty() { "the body is " } else { "" };
        Invalid::new(place(path), format!("{subject}{}; expected {}", shown(value), self.expected(path)))
    }

    fn missing(&self, mut path: Vec<Segment>, field: &str) -> Invalid {
        path.push(Segment::Map { key: field.to_owned() });
        Invalid::new(place(&path), format!("missing; expected {}", self.expected(&path)))
    }

    /// A field that the object's type does not have. The path is that of the field.
    fn unknown(&self, path: Vec<Segment>) -> Invalid {
        let object = path.split_last().map_or(&path[..], |(_, object)| object);
        let fields: Vec<&str> = self.at(object).map(|schema| self.fields(schema)).unwrap_or_default();
        Invalid::new(place(&path), format!("unknown field; expected one of {}", fields.join(", ")))
    }

    fn expected(&self, path: &[Segment]) -> String {
        self.at(path).map_or_else(|| "another value".to_owned(), |schema| self.describe(schema, MAX_DEPTH))
    }

    fn at(&self, path: &[Segment]) -> Option<&Value> {
        path.iter().try_fold(&self.root, |schema, segment| {
            self.plain(schema, MAX_DEPTH).into_iter().find_map(|schema| match segment {
                Segment::Seq { .. } => schema.get("items"),
                Segment::Map { key } => {
                    let field = schema.get("properties").and_then(|fields| fields.get(key));
                    field.or_else(|| schema.get("additionalProperties"))
                }
                Segment::Enum { .. } | Segment::Unknown => None,
            })
        })
    }

    /// The names of an object's fields, sorted.
    fn fields<'s>(&'s self, schema: &'s Value) -> Vec<&'s str> {
        let plain = self.plain(schema, MAX_DEPTH).into_iter();
        let fields = plain.filter_map(|schema| schema.get("properties")?.as_object());
        fields.flat_map(|fields| fields.keys().map(String::as_str)).collect()
    }

    /// The alternatives of a schema, without references and without `null`, which stands for a field that is left out.
    fn plain<'s>(&'s self, schema: &'s Value, depth: usize) -> Vec<&'s Value> {
        let Some(depth) = depth.checked_sub(1) else { return Vec::new() };
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let name = reference.rsplit('/').next().unwrap_or_default();
            return self.named.get(name).map(|named| self.plain(named, depth)).unwrap_or_default();
        }
        match ["oneOf", "anyOf", "allOf"].iter().find_map(|of| schema.get(of)?.as_array()) {
            Some(several) => several.iter().flat_map(|one| self.plain(one, depth)).collect(),
            None if schema.get("type").is_some_and(|kind| kind == "null") => Vec::new(),
            None => vec![schema],
        }
    }

    fn describe(&self, schema: &Value, depth: usize) -> String {
        let Some(depth) = depth.checked_sub(1) else { return "a value".to_owned() };
        let several: Vec<String> =
            self.plain(schema, depth).into_iter().map(|schema| self.describe_one(schema, depth)).collect();
        several.join(", or ")
    }

    /// The words for each type. This is the one table of them.
    fn describe_one(&self, schema: &Value, depth: usize) -> String {
        if let Some(words) = schema.get("enum").and_then(Value::as_array) {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            return format!("one of {}", words.join(", "));
        }
        let each = |key: &str| schema.get(key).map(|inner| self.describe(inner, depth)).unwrap_or_default();
        match kind(schema) {
            "integer" => format!("a whole number{}{}", range(schema), example(schema)),
            "number" => format!("a number{}{}", range(schema), example(schema)),
            "boolean" => "true or false".to_owned(),
            "string" => format!("a string{}", example(schema)),
            "array" => format!("a list, each item {}", each("items")),
            "object" => match self.fields(schema) {
                fields if fields.is_empty() => format!("an object, each value {}", each("additionalProperties")),
                fields => format!("an object {{{}}}", fields.join(", ")),
            },
            _ => "a value".to_owned(),
        }
    }
}

/// The type of a schema; of a type and `null`, the type.
fn kind(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        Some(kind) => kind.as_str(),
        None => None,
    }
    .unwrap_or_default()
}

/// The bounds of a number. One above what an f64 represents is as good as none.
fn range(schema: &Value) -> String {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64).filter(|bound| bound.abs() <= EXACT);
    match (bound("minimum"), bound("maximum")) {
        (Some(least), Some(most)) => format!(" from {least} to {most}"),
        (Some(least), None) => format!(" of at least {least}"),
        (None, Some(most)) => format!(" of at most {most}"),
        (None, None) => String::new(),
    }
}

fn example(schema: &Value) -> String {
    let first = schema.get("examples").and_then(|examples| examples.get(0));
    first.or_else(|| schema.get("example")).map(|example| format!(", as {example}")).unwrap_or_default()
}

fn inner<'j>(value: &'j Value, segment: &Segment) -> Option<&'j Value> {
    match segment {
        Segment::Seq { index } => value.get(index),
        Segment::Map { key } => value.get(key),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// A path as callers write it: `ports[0].container_port`.
fn place(path: &[Segment]) -> String {
    let mut place = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => place.push_str(&format!("[{index}]")),
            Segment::Map { key } => {
                place.push_str(if place.is_empty() { "" } else { "." });
                place.extend(key.chars().take(MAX_SHOWN));
            }
            // The variant of a word, or a key that is no text: the path to it is enough.
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    place
}

/// A value as an error shows it: lists and objects by their type alone.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().count() > MAX_SHOWN => {
            let beginning: String = text.chars().take(MAX_SHOWN).collect();
            format!("{}…", Value::String(beginning))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::types::{ExtendRequest, SessionRequest, SettingsPatch, Workspace};

    fn refused<T: DeserializeOwned + ToSchema + std::fmt::Debug>(json: Value) -> String {
        decode::<T>(json).unwrap_err().to_string()
    }

    fn workspace(change: &Value) -> String {
        let mut json = json!({"name": "a", "image": "b", "cores": 1, "memory_bytes": "1GiB"});
        json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        refused::<Workspace>(json)
    }

    #[test]
    fn errors_say_what_is_expected_in_words_of_the_api() {
        let port = "an object {container_port, protocol}";
        for (change, told) in [
            (json!({"ports": [80]}), format!("ports[0]: 80; expected {port}")),
            (json!({"ports": [[80, "tcp"]]}), format!("ports[0]: a list; expected {port}")),
            (json!({"ports": {}}), format!("ports: an object; expected a list, each item {port}")),
            (
                json!({"ports": [{"container_port": "80"}]}),
                "ports[0].container_port: \"80\"; expected a whole number from 1 to 65535, as 8080".to_owned(),
            ),
            (
                json!({"ports": [{"container_port": 70_000}]}),
                "ports[0].container_port: 70000; expected a whole number from 1 to 65535, as 8080".to_owned(),
            ),
            (
                json!({"ports": [{}]}),
                "ports[0].container_port: missing; expected a whole number from 1 to 65535, as 8080".to_owned(),
            ),
            (
                json!({"ports": [{"container_port": 80, "host_port": 1}]}),
                "ports[0].host_port: unknown field; expected one of container_port, protocol".to_owned(),
            ),
            (
                json!({"ports": [{"container_port": 80, "protocol": "sctp"}]}),
                "ports[0].protocol: \"sctp\"; expected one of tcp, udp".to_owned(),
            ),
            (json!({"pull": 1}), "pull: 1; expected one of missing, daily, always".to_owned()),
            (json!({"gpus": null}), "gpus: null; expected a whole number from 0 to 1024".to_owned()),
            (json!({"gpus": -1}), "gpus: -1; expected a whole number from 0 to 1024".to_owned()),
            (json!({"prepull": "yes"}), "prepull: \"yes\"; expected true or false".to_owned()),
            (json!({"env": {"A": 1}}), "env.A: 1; expected a string".to_owned()),
            (json!({"env": ["A=1"]}), "env: a list; expected an object, each value a string".to_owned()),
            (json!({"image": []}), "image: a list; expected a string".to_owned()),
            (json!({"name": 7}), "name: 7; expected a string, as \"ubuntu-desktop\"".to_owned()),
            (json!({"cores": "two"}), "cores: \"two\"; expected a number from 0.01 to 1000000".to_owned()),
            (
                json!({"memory_bytes": true}),
                "memory_bytes: true; expected a whole number of at least 6291456, or a string, as \"4GiB\"".to_owned(),
            ),
        ] {
            assert_eq!(workspace(&change), told);
        }
        assert_eq!(
            refused::<ExtendRequest>(json!({})),
            "ttl_seconds: missing; expected a whole number from 1 to 3153600000"
        );
        assert_eq!(refused::<ExtendRequest>(json!(null)), "the body is null; expected an object {ttl_seconds}");
        assert_eq!(refused::<ExtendRequest>(json!([1])), "the body is a list; expected an object {ttl_seconds}");
        assert_eq!(refused::<SettingsPatch>(json!({"enabled": 1})), "enabled: 1; expected true or false");
    }

    #[test]
    fn a_long_value_is_cut() {
        let told = refused::<SessionRequest>(json!({"workspace": "a", "user": "b", "gpus": "9".repeat(1000)}));
        assert_eq!(told, format!("gpus: \"{}\"…; expected a whole number from 0 to 1024", "9".repeat(MAX_SHOWN)));
    }

    #[test]
    fn a_whole_number_in_any_notation_is_an_integer() {
        let seconds = |json: Value| decode::<ExtendRequest>(json!({"ttl_seconds": json})).map(|r| r.ttl_seconds).ok();
        assert_eq!((seconds(json!(60.0)), seconds(json!(6e1)), seconds(json!(60))), (Some(60), Some(60), Some(60)));
        assert_eq!((seconds(json!(60.5)), seconds(json!(-1.0)), seconds(json!(1e300))), (None, None, None));
    }
}
