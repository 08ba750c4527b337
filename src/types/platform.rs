//! What machine code an image or a host has.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Operating system and processor architecture, as `linux/amd64`, in the names that images use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub struct Platform {
    os: String,
    architecture: String,
}

impl Platform {
    /// Takes the names of an image, of `uname` or of the Rust compiler for the same thing.
    pub fn new(os: &str, architecture: &str) -> Self {
        Self { os: os.to_ascii_lowercase(), architecture: canonical(&architecture.to_ascii_lowercase()).to_owned() }
    }

    /// Whether a host of this platform runs programs of the other: its own, and the 32-bit programs of its family.
    pub fn runs(&self, image: &Self) -> bool {
        let is_32_bit = |of: &str| matches!((self.architecture.as_str(), of), ("amd64", "386") | ("arm64", "arm"));
        self.os == image.os && (self.architecture == image.architecture || is_32_bit(&image.architecture))
    }
}

fn canonical(architecture: &str) -> &str {
    match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" | "arm64/v8" => "arm64",
        "i386" | "i486" | "i586" | "i686" | "x86" => "386",
        "armv6l" | "armv7l" | "armhf" | "armel" => "arm",
        other => other,
    }
}

impl From<String> for Platform {
    fn from(text: String) -> Self {
        let (os, architecture) = text.split_once('/').unwrap_or((&text, ""));
        Self::new(os, architecture)
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(architecture: &str) -> Platform {
        Platform::new("linux", architecture)
    }

    #[test]
    fn one_architecture_has_one_name() {
        for (name, canonical) in [("x86_64", "amd64"), ("aarch64", "arm64"), ("i686", "386"), ("armv7l", "arm")] {
            assert_eq!(linux(name), linux(canonical));
        }
        assert_eq!(linux("riscv64").to_string(), "linux/riscv64");
        assert_eq!(Platform::from("linux/aarch64".to_owned()), linux("arm64"));
    }

    #[test]
    fn a_host_runs_its_own_programs_and_the_32_bit_ones_of_its_family() {
        assert!(linux("amd64").runs(&linux("x86_64")) && linux("amd64").runs(&linux("386")));
        assert!(linux("arm64").runs(&linux("arm")));
        assert!(!linux("arm64").runs(&linux("amd64")) && !linux("amd64").runs(&linux("arm")));
        assert!(!linux("386").runs(&linux("amd64")));
        assert!(!linux("amd64").runs(&Platform::new("windows", "amd64")));
    }
}
