//! Which language a text is written in that is not TOML.

use std::fmt;

/// A language for structured data that is often taken for TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherLanguage {
    Json,
    Yaml,
}

impl OtherLanguage {
    /// How the names of its files end.
    pub const fn ending(self) -> &'static str {
        match self {
            Self::Json => ".json",
            Self::Yaml => ".yaml",
        }
    }
}

impl fmt::Display for OtherLanguage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "JSON",
            Self::Yaml => "YAML",
        })
    }
}

/// The language of a text that is not TOML: JSON or YAML if it is an object or a list there, `None` if it is neither. A
/// plain text does not count, since nearly every line is one in YAML.
pub fn other_language(text: &str) -> Option<OtherLanguage> {
    let is_structured = |value: &serde_json::Value| value.is_object() || value.is_array();
    if serde_json::from_str(text).as_ref().is_ok_and(is_structured) {
        return Some(OtherLanguage::Json);
    }
    let yaml: Option<serde_json::Value> = serde_yaml_ng::from_str(text).ok();
    yaml.as_ref().is_some_and(is_structured).then_some(OtherLanguage::Yaml)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_json_are_told_from_toml_with_an_error() {
        for yaml in ["name: desktop\ncores: 2\n", "---\nhttp:\n  listen: 127.0.0.1:7481\n", "- name: a\n- name: b\n"] {
            assert_eq!(other_language(yaml), Some(OtherLanguage::Yaml), "{yaml}");
        }
        for json in [r#"{"name": "desktop", "cores": 2}"#, "[{}]"] {
            assert_eq!(other_language(json), Some(OtherLanguage::Json), "{json}");
        }
        for toml in
            ["name = ", "[http\nlisten = 1", "[http]\nlisten = 127.0.0.1:7481", "name = \"a\ncores = 1", "x", ""]
        {
            assert_eq!(other_language(toml), None, "{toml}");
        }
    }
}
