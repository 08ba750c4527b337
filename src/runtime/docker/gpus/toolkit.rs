//! What NVIDIA's container toolkit says of itself: the answer to `nvidia-container-runtime --version`, and its
//! configuration, `/etc/nvidia-container-runtime/config.toml`. Pure.

use serde::Deserialize;

use crate::runtime::gpus::Toolkit;

/// What comes before the version in the first line of the answer.
const BEFORE_VERSION: &str = "NVIDIA Container Runtime version ";

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Settings {
    accept_nvidia_visible_devices_envvar_when_unprivileged: Option<bool>,
    nvidia_container_runtime: RuntimeSettings,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RuntimeSettings {
    mode: Option<String>,
}

/// The toolkit of this answer and this configuration. What is missing or cannot be read is not known; without a
/// configuration, its defaults hold.
pub(in crate::runtime::docker) fn toolkit(answer: Option<&str>, settings: Option<&str>) -> Toolkit {
    let settings: Settings = settings.and_then(|text| toml::from_str(text).ok()).unwrap_or_default();
    Toolkit {
        version: answer.and_then(version),
        mode: settings.nvidia_container_runtime.mode.filter(|mode| !mode.is_empty() && mode != "auto"),
        ignores_env: settings.accept_nvidia_visible_devices_envvar_when_unprivileged == Some(false),
    }
}

/// `1.18.0` of `NVIDIA Container Runtime version 1.18.0-rc.2`.
fn version(answer: &str) -> Option<[u32; 3]> {
    let text = answer.lines().find_map(|line| line.trim().strip_prefix(BEFORE_VERSION))?;
    let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    let mut parts = numbers.split('.').map(|part| part.parse::<u32>().ok());
    Some([parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_version_is_in_the_first_line_of_the_toolkits_own() {
        let answer = "NVIDIA Container Runtime version 1.18.1\ncommit: 53b2\nspec: 1.2.1\n\nrunc version 1.1.9\n";
        assert_eq!(version(answer), Some([1, 18, 1]));
        assert_eq!(version("NVIDIA Container Runtime version 1.19.0-rc.2"), Some([1, 19, 0]));
        assert_eq!(version("NVIDIA Container Runtime version 2.0"), Some([2, 0, 0]));
        for unknown in ["", "runc version 1.1.9", "NVIDIA Container Runtime version unknown"] {
            assert_eq!(version(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn the_configuration_says_the_mode_and_whether_the_environment_counts() {
        let of = |text: &str| toolkit(None, Some(text));
        let text = "accept-nvidia-visible-devices-envvar-when-unprivileged = false\n\
                    [nvidia-container-cli]\nload-kmods = true\n[nvidia-container-runtime]\nmode = \"legacy\"\n";
        assert_eq!(of(text), Toolkit { version: None, mode: Some("legacy".to_owned()), ignores_env: true });
        for default in ["", "[nvidia-container-runtime]\nmode = \"auto\"", "not toml at all", "mode = 7"] {
            assert_eq!(of(default), Toolkit::default(), "{default:?}");
        }
        assert_eq!(toolkit(None, None), Toolkit::default());
    }

    proptest! {
        #[test]
        fn no_answer_panics(answer in ".{0,60}", version in "[0-9.]{0,40}[a-z-]{0,3}", settings in ".{0,60}") {
            let _ = toolkit(Some(&answer), Some(&settings));
            let _ = toolkit(Some(&format!("{BEFORE_VERSION}{version}")), None);
        }
    }
}
