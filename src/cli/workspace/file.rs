//! Workspaces in files: TOML, JSON and YAML in, TOML out.

use std::path::Path;

use serde_json::Value;

use crate::cli::failure::Failure;
use crate::types::{Bytes, Workspace, decode, other_language};

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Toml,
    Json,
    Yaml,
}

impl Language {
    /// The format by the extension of the name; `None` for other extensions.
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// Reads the workspaces of a file: one, or a list of them under `workspace`, and checks each.
///
/// A list as the API answers it, under `items`, and a bare list are read too.
///
/// # Errors
/// [`Failure::Failed`] for a text that cannot be parsed, [`Failure::Refused`] for invalid values.
pub(super) fn read(text: &str, language: Language) -> Result<Vec<Workspace>, Failure> {
    let whole = parse(text, language).map_err(Failure::Failed)?;
    let (path, items) = match whole {
        Value::Array(items) => ("", items),
        Value::Object(mut fields) => match ["workspace", "items"].iter().find(|key| fields.contains_key(**key)) {
            Some(key) => {
                check_alone(key, fields.keys())?;
                match fields.remove(*key) {
                    Some(Value::Array(items)) => (*key, items),
                    _ => return Err(Failure::Failed(format!("`{key}` is not a list of workspaces"))),
                }
            }
            None => return Ok(vec![workspace(Value::Object(fields), None)?]),
        },
        _ => return Err(Failure::Failed("expected a workspace or a list of workspaces".to_owned())),
    };
    items.into_iter().enumerate().map(|(i, item)| workspace(item, Some(format!("{path}[{i}]")))).collect()
}

/// The workspaces as TOML. [`read`] returns the same workspaces from it.
pub(in crate::cli) fn export(workspaces: &[Workspace]) -> Result<String, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::Failed(format!("the catalogue cannot be encoded as TOML: {e}"));
    let mut text = String::new();
    for workspace in workspaces {
        let mut table = toml::Table::try_from(workspace).map_err(|e| wrong(&e))?;
        let gpu_memory = workspace.gpu_memory_bytes.map(|bytes| ("gpu_memory_bytes", bytes));
        let sizes = [("memory_bytes", workspace.memory_bytes), ("shm_bytes", workspace.shm_bytes)];
        for (field, bytes) in sizes.into_iter().chain(gpu_memory) {
            table.insert(field.to_owned(), toml::Value::String(exact_size(bytes)));
        }
        let list = toml::Table::from_iter([("workspace".to_owned(), toml::Value::Array(vec![table.into()]))]);
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&toml::to_string_pretty(&list).map_err(|e| wrong(&e))?);
    }
    Ok(text)
}

/// Beside a list of workspaces only the API's own cursor may be present: any other key would be lost.
fn check_alone<'a>(list: &str, mut keys: impl Iterator<Item = &'a String>) -> Result<(), Failure> {
    match keys.find(|key| key.as_str() != list && key.as_str() != "next_cursor") {
        Some(other) => Err(Failure::Failed(format!("unknown key `{other}` beside `{list}`"))),
        None => Ok(()),
    }
}

fn parse(text: &str, language: Language) -> Result<Value, String> {
    match language {
        Language::Toml => toml::from_str(text).map_err(|e| match other_language(text) {
            Some(other) => {
                format!("this is {other}, and is read as TOML; give a file whose name ends in {}", other.ending())
            }
            None => e.to_string(),
        }),
        Language::Json => serde_json::from_str(text).map_err(|e| e.to_string()),
        Language::Yaml => serde_yaml_ng::from_str(text).map_err(|e| e.to_string()),
    }
}

fn workspace(value: Value, place: Option<String>) -> Result<Workspace, Failure> {
    let name = value.get("name").and_then(Value::as_str).map(str::to_owned).or(place);
    let prefix = name.map(|name| format!("{name}: ")).unwrap_or_default();
    let read: Workspace = decode(value).map_err(|invalid| Failure::Failed(format!("{prefix}{invalid}")))?;
    read.validate().map_err(|invalid| Failure::Refused(format!("{prefix}{invalid}")))?;
    Ok(read)
}

/// The size in the largest unit that divides it, so that no digit is lost.
fn exact_size(bytes: Bytes) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let bytes = bytes.get();
    match UNITS.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Cores, GpuCapability, Port, Protocol, PullPolicy, VolumeMount};

    const DESKTOP: &str = r#"
        name = "desktop"
        image = "kasmweb/desktop:1.16.0"
        cores = 2.5
        memory_bytes = "4GiB"
        ports = [{ container_port = 6901 }]
        [env]
        VNC_PW = "{secret}"
    "#;

    fn full() -> Workspace {
        let mut workspace = read(DESKTOP, Language::Toml).unwrap().remove(0);
        workspace.description = "A \"desktop\",\nwith # and '''".to_owned();
        workspace.command = vec!["sh".to_owned(), "-c".to_owned(), "echo \\ $X".to_owned()];
        workspace.gpus = 1;
        workspace.image_digest = Some(format!("sha256:{}", "a".repeat(64)));
        workspace.ports.push(Port { container_port: 53, protocol: Protocol::Udp });
        workspace.volumes =
            vec![VolumeMount { name: "home-{user}".into(), path: "/home/x".into(), read_only: true, roam: false }];
        workspace.constraints.insert("topology/rack".to_owned(), "3".to_owned());
        workspace.network = Some("lan".parse().unwrap());
        workspace.gpu_capabilities = vec![GpuCapability::Compute];
        workspace.gpu_memory_bytes = Some(Bytes::gib(8));
        workspace.gpu_class = Some("amd.com/gpu".to_owned());
        workspace.pull = PullPolicy::Always;
        workspace.idle_timeout_seconds = Some(60);
        workspace
    }

    #[test]
    fn every_language_reads_the_same_workspace() {
        let toml = read(DESKTOP, Language::Toml).unwrap();
        let json = r#"{"name":"desktop","image":"kasmweb/desktop:1.16.0","cores":2.5,"memory_bytes":4294967296,
            "ports":[{"container_port":6901}],"env":{"VNC_PW":"{secret}"}}"#;
        assert_eq!(read(json, Language::Json).unwrap(), toml);
        let yaml = "name: desktop\nimage: kasmweb/desktop:1.16.0\ncores: 2.5\nmemory_bytes: 4GiB\n\
                    ports:\n- container_port: 6901\nenv:\n  VNC_PW: '{secret}'\n";
        assert_eq!(read(yaml, Language::Yaml).unwrap(), toml);
        assert_eq!(read(&format!("[{json}]"), Language::Json).unwrap(), toml);
        assert_eq!(read(&format!(r#"{{"items":[{json}],"next_cursor":null}}"#), Language::Json).unwrap(), toml);
    }

    #[test]
    fn an_export_is_read_back_unchanged() {
        let mut small = full();
        small.name = "small".parse().unwrap();
        small.memory_bytes = Bytes::new(6_291_457);
        let all = vec![full(), small];
        assert_eq!(read(&export(&all).unwrap(), Language::Toml).unwrap(), all);
        let text = export(&all).unwrap();
        assert!(text.contains("\nmemory_bytes = \"4GiB\"") && text.contains("gpu_memory_bytes = \"8GiB\""), "{text}");
        assert_eq!(export(&[]).unwrap(), "");
    }

    #[test]
    fn an_error_names_the_workspace_and_the_key() {
        let failure = |text: &str| read(text, Language::Toml).unwrap_err();
        assert!(matches!(failure("name = \"x\"\ncores = 0\nmemory_bytes = \"1G\"\nimage = \"a\""),
            Failure::Refused(m) if m.starts_with("x: cores: ")));
        let list = "[[workspace]]\nname = \"a b\"\ncores = 1\nmemory_bytes = 1\n";
        assert!(failure(list).to_string().starts_with("a b: name: "), "{}", failure(list));
        assert!(failure("[[workspace]]\ncores = 1").to_string().starts_with("workspace[0]: "));
        assert!(failure(&format!("{DESKTOP}\n[[workspace]]\nname = \"x\"")).to_string().contains("beside `workspace`"));
        assert!(failure("name = ").to_string().contains("line 1"));
        let port = failure("name = \"x\"\nimage = \"a\"\ncores = 1\nmemory_bytes = \"1G\"\nports = [80]").to_string();
        assert_eq!(port, "x: ports[0]: 80; expected an object {container_port, protocol}");
        assert!(failure(&format!("privileged = true\n{DESKTOP}")).to_string().contains("privileged"));
    }

    #[test]
    fn yaml_and_json_in_place_of_toml_are_recognised() {
        for (text, language, ending) in
            [("name: x\ncores: 1\n", "YAML", ".yaml"), ("{\"name\": \"x\"}", "JSON", ".json")]
        {
            let told = read(text, Language::Toml).unwrap_err().to_string();
            let expected = format!("this is {language}, and is read as TOML; give a file whose name ends in {ending}");
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn the_format_follows_from_the_extension() {
        assert_eq!(Language::of(Path::new("a/b.yml")), Some(Language::Yaml));
        assert_eq!(Language::of(Path::new("README.md")), None);
        assert_eq!(Language::of(Path::new("toml")), None);
    }

    proptest! {
        #[test]
        fn sizes_lose_nothing(bytes in 0..=Bytes::MAX.get()) {
            prop_assert_eq!(exact_size(Bytes::new(bytes)).parse(), Ok(Bytes::new(bytes)));
        }

        #[test]
        fn cores_and_texts_survive_the_export(milli in 10..64_000_u64, description in "[^\0]{0,40}") {
            let mut workspace = full();
            workspace.cores = Cores::from_milli(milli);
            workspace.description = description;
            let back = read(&export(std::slice::from_ref(&workspace)).unwrap(), Language::Toml).unwrap();
            prop_assert_eq!(back, vec![workspace]);
        }
    }
}
