//! The environment variables that callers supply for a container.

use std::collections::BTreeMap;

use super::Invalid;

/// Implements `Display`, `FromStr` and the list `ALL` for an enum whose variants are single words.
macro_rules! words {
    ($name:ident { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("`{text}` is not one of {}", [$($word),+].join(", "))),
                }
            }
        }
    };
}
pub(super) use words;

/// Environment variables of one workspace or request at most.
const MAX_ENV: usize = 128;
const MAX_ENV_NAME: usize = 128;
/// Linux rejects an argument or variable above 128 KiB; a quarter of that is enough for every image.
const MAX_ENV_VALUE: usize = 32 * 1024;

/// Variables of the loader and the GPU driver change which code runs and which devices it sees. The operator and the
/// GPU code decide that, not a caller.
const RESERVED_PREFIXES: [&str; 3] = ["LD_", "NVIDIA_", "OSTLER_"];

/// Checks the environment of a workspace or a request.
pub fn check_env(env: &BTreeMap<String, String>) -> Result<(), Invalid> {
    if env.len() > MAX_ENV {
        return Err(Invalid::new("env", format!("{} variables; at most {MAX_ENV}", env.len())));
    }
    for (name, value) in env {
        let field = || format!("env.{}", name.chars().take(MAX_ENV_NAME).collect::<String>());
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let fine = first && name.len() <= MAX_ENV_NAME && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !fine {
            return Err(Invalid::new(field(), "not a variable name; expected letters, digits and `_`, no digit first"));
        }
        if let Some(prefix) = RESERVED_PREFIXES.iter().find(|p| name.to_ascii_uppercase().starts_with(**p)) {
            return Err(Invalid::new(
                field(),
                format!("variables that begin with {prefix} are reserved; choose another name"),
            ));
        }
        if value.len() > MAX_ENV_VALUE || value.contains('\0') {
            let expected = format!("expected a value of at most {MAX_ENV_VALUE} bytes without NUL");
            return Err(Invalid::new(field(), expected));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_and_driver_variables_are_rejected() {
        let env = |name: &str, value: &str| check_env(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
        assert!(env("VNC_PW", "{secret}").is_ok());
        for name in ["LD_PRELOAD", "ld_preload", "NVIDIA_VISIBLE_DEVICES", "OSTLER_PORT_1", "", "1A", "A=B", "A B", "Ä"]
        {
            assert!(env(name, "x").is_err(), "{name}");
        }
        assert!(env("A", "x\0").is_err());
        assert!(env("A", &"x".repeat(MAX_ENV_VALUE + 1)).is_err());
    }
}
