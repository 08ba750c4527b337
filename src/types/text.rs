//! The environment variables that callers supply for a container.

use std::collections::BTreeMap;

use super::Invalid;
use super::template::longest;

/// Implements `Display`, `FromStr` and the list `ALL` for an enum whose variants are single words.
macro_rules! words {
    ($name:ident { $($variant:ident => $word:literal),+ $(,)? }) => {
        // Some enumerations are private to a module.
        #[allow(unreachable_pub, dead_code)]
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
pub(crate) use words;

/// Environment variables of one workspace or request at most.
const MAX_ENV: usize = 128;
const MAX_ENV_NAME: usize = 128;
/// Bytes of a value as it is written, before it is filled in: a quarter of what the kernel accepts is enough for every
/// image.
const MAX_ENV_VALUE: usize = 32 * 1024;
/// Bytes of `NAME=value` with the NUL at its end, filled in. Linux starts no program with a longer variable
/// (`MAX_ARG_STRLEN`).
const MAX_VARIABLE: usize = 128 * 1024;
/// Bytes of all variables, filled in. Linux starts no program whose arguments and environment exceed a quarter of the
/// stack's limit, mostly 2 MiB. Half of that leaves room for the command, for the image's variables, and for what a
/// program of the session adds when it starts another one.
const MAX_ENVIRONMENT: usize = 1024 * 1024;
/// What the kernel stores of a variable beside its name and value: `=`, the NUL and a pointer.
const VARIABLE_OVERHEAD: usize = 2 + size_of::<u64>();

/// Variables of the loader and the GPU driver change which code runs and which devices it sees. The operator and the
/// GPU code decide that, not a caller.
const RESERVED_PREFIXES: [&str; 3] = ["LD_", "NVIDIA_", "OSTLER_"];

/// Checks the environment of a workspace or a request. What passes can be started in every session, whatever stands
/// for the placeholders in it.
pub fn check_env(env: &BTreeMap<String, String>) -> Result<(), Invalid> {
    if env.len() > MAX_ENV {
        return Err(Invalid::new("env", format!("{} variables; at most {MAX_ENV}", env.len())));
    }
    let mut total = 0;
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
            let expected = format!("{} bytes; expected at most {MAX_ENV_VALUE} bytes without NUL", value.len());
            return Err(Invalid::new(field(), expected));
        }
        let filled = name.len() + longest(value);
        if filled + 2 > MAX_VARIABLE {
            let told = format!("up to {filled} bytes with its name once its placeholders are filled in");
            let most = MAX_VARIABLE - 2;
            return Err(Invalid::new(field(), format!("{told}; the kernel accepts at most {most}")));
        }
        total += filled + VARIABLE_OVERHEAD;
    }
    if total > MAX_ENVIRONMENT {
        let told = format!("its variables have up to {total} bytes once their placeholders are filled in");
        return Err(Invalid::new("env", format!("{told}; expected at most {MAX_ENVIRONMENT}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::User;

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

    #[test]
    fn a_variable_that_passes_fits_the_kernel_once_it_is_filled_in() {
        let env = |value: &str| check_env(&BTreeMap::from([("AB".to_owned(), value.to_owned())]));
        assert_eq!(env(&"x".repeat(MAX_ENV_VALUE)), Ok(()));
        // The kernel counts `AB=`, the longest users, and the NUL.
        let users = (MAX_VARIABLE - 4) / User::MAX_BYTES;
        let rest = MAX_VARIABLE - 4 - users * User::MAX_BYTES;
        let value = |rest: usize| format!("{}{}", "{user}".repeat(users), "x".repeat(rest));
        assert_eq!(env(&value(rest)), Ok(()));
        let refused = env(&value(rest + 1)).unwrap_err();
        assert_eq!(refused.field, "env.AB");
        let told = "up to 131071 bytes with its name once its placeholders are filled in; the kernel accepts at most";
        assert!(refused.message.contains(told), "{refused}");
    }

    #[test]
    fn all_variables_together_fit_the_kernel() {
        let env = |count: usize| {
            let variable = |i| (format!("V{i:03}"), "x".repeat(MAX_ENV_VALUE));
            check_env(&(0..count).map(variable).collect())
        };
        assert_eq!(env(31), Ok(()));
        let refused = env(32).unwrap_err();
        assert_eq!(refused.field, "env");
        assert!(refused.message.contains("expected at most 1048576"), "{refused}");
    }
}
