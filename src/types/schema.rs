//! JSON Schemas of the fields whose checks no derive can express.
//!
//! Each schema states the check that its comment names. A request that follows the schemas is rejected only for
//! conflicts between fields, such as more shared memory than memory.

use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};

use super::id::UNPRINTABLE;
use super::{Bytes, User};

/// `User::from_str`
pub(super) fn user() -> Schema {
    let plain = printable(" ");
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("The user of a session, as an identity provider names it. Normalised to NFC."))
        .pattern(Some(format!("^{plain}({any}{{0,254}}{plain})?$", any = printable(""))))
        .max_length(Some(User::MAX_LEN))
        .examples(["alice@example.com"])
        .into()
}

/// `VolumeName`: a template with users in it, so of the same characters.
pub fn volume_name(max: usize) -> Schema {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!("^{}{{1,{max}}}$", printable(""))))
        .max_length(Some(max))
        .examples(["home-alice@example.com"])
        .into()
}

/// The class of the characters that `is_printable` accepts, but these.
fn printable(but: &str) -> String {
    let escape = |c: char| if c.is_ascii() { format!("\\x{:02x}", u32::from(c)) } else { c.to_string() };
    let ranges = UNPRINTABLE.iter().map(|(first, last)| format!("{}-{}", escape(*first), escape(*last)));
    format!("[^{but}{}]", ranges.collect::<String>())
}

/// `check_env`
pub(super) fn env() -> Schema {
    let reserved = "(?![Ll][Dd]_|[Nn][Vv][Ii][Dd][Ii][Aa]_|[Oo][Ss][Tt][Ll][Ee][Rr]_)";
    let name = format!("^{reserved}[A-Za-z_][A-Za-z0-9_]{{0,127}}$");
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Environment variables. Values may contain `{user}`, `{session}` and `{secret}`."))
        .property_names(Some(text(&name)))
        .additional_properties(Some(text(r"^[^\x00]{0,32768}$")))
        .max_properties(Some(128))
        .into()
}

/// `check_labels`
pub(super) fn labels() -> Schema {
    label_map(text(LABEL).into(), "Labels. As constraints: the labels that a node must have.")
}

/// `check_labels`, with `null` for a label to remove.
pub(super) fn labels_patch() -> Schema {
    let value = nullable(text(LABEL).into());
    nullable(label_map(value, "Labels to set on the node; `null` removes a label."))
}

const LABEL: &str = "^[ -~]{0,63}$";

fn label_map(value: Schema, description: &str) -> Schema {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some(description))
        .property_names(Some(text("^[A-Za-z0-9._/-]{1,63}$")))
        .additional_properties(Some(value))
        .max_properties(Some(64))
        .into()
}

pub(super) fn command() -> Schema {
    words("Replaces the command of the image; its entry point stays.")
}

pub(super) fn entrypoint() -> Schema {
    words("Replaces the entry point of the image, and its command as well.")
}

/// `check_mount_path`
pub(super) fn tmpfs() -> Schema {
    let path = r"^/(?!(proc|sys|dev)(/|$))(?!\.{1,2}(/|$))[^/:,\x00]+(/(?!\.{1,2}(/|$))[^/:,\x00]+)*$";
    let told =
        "Paths of the container that are kept in memory, empty at each start. They count as the session's memory.";
    ArrayBuilder::new().description(Some(told)).items(text(path)).max_items(Some(16)).unique_items(true).into()
}

/// `check_words`
fn words(description: &str) -> Schema {
    ArrayBuilder::new()
        .description(Some(description))
        .prefix_items([text(r"^[^\x00]+$")])
        .items(text(r"^[^\x00]*$"))
        .max_items(Some(256))
        .into()
}

/// `check_cores`
pub(super) fn session_cores() -> Schema {
    cores("CPU cores, in steps of 0.001", 0.01, 1_000_000.0)
}

pub(super) fn session_cores_or_null() -> Schema {
    nullable(session_cores())
}

/// The bounds of `SettingsPatch::validate`.
pub(super) fn cores_override() -> Schema {
    nullable(cores("CPU cores, in steps of 0.001; 0: no override", 0.0, 65_536.0))
}

fn cores(description: &str, least: f64, most: f64) -> Schema {
    ObjectBuilder::new()
        .schema_type(Type::Number)
        .description(Some(description))
        .minimum(Some(least))
        .maximum(Some(most))
        .multiple_of(Some(0.001))
        .into()
}

/// `check_memory`
pub(super) fn session_memory() -> Schema {
    let size = text("^([1-9][0-9]{1,5}[Mm]|[1-9][0-9]{0,5}[Gg])([Ii]?[Bb])?$");
    OneOfBuilder::new().item(bytes(Bytes::mib(6), Bytes::MAX)).item(size.examples(["4GiB"])).into()
}

pub(super) fn session_memory_or_null() -> Schema {
    nullable(session_memory())
}

/// The bounds of `SettingsPatch::validate`.
pub(super) fn memory_override() -> Schema {
    let size = text("^(0|[1-9][0-9]{0,5}[KMGkmg]([Ii]?[Bb])?)$");
    OneOfBuilder::new().item(bytes(Bytes::ZERO, Bytes::gib(1 << 20))).item(size.examples(["4GiB"])).item(null()).into()
}

fn bytes(least: Bytes, most: Bytes) -> Schema {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(least.get() as f64))
        .maximum(Some(most.get() as f64))
        .into()
}

fn text(pattern: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern))
}

fn nullable(schema: Schema) -> Schema {
    OneOfBuilder::new().item(schema).item(null()).into()
}

fn null() -> Schema {
    ObjectBuilder::new().schema_type(Type::Null).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::string::string_regex;
    use utoipa::openapi::schema::Object;

    use super::*;

    fn pattern(schema: Schema) -> String {
        let Schema::Object(Object { pattern: Some(pattern), .. }) = schema else { panic!("a pattern is expected") };
        // The library that generates texts knows no anchors.
        pattern.trim_start_matches('^').trim_end_matches('$').to_owned()
    }

    #[test]
    fn a_text_of_the_pattern_of_users_is_a_user() {
        let texts = string_regex(&pattern(user())).unwrap();
        proptest!(|(text in texts)| {
            // Few characters become several ones when they are normalised.
            let is_user = text.parse::<User>();
            prop_assert!(is_user.is_ok() || text.chars().count() > 80, "{:?}: {:?}", text, is_user);
        });
    }
}
