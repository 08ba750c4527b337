//! Which settings are in force, and which changes are allowed. Pure.
//!
//! There are three layers, each over the one before: the defaults, the settings chosen over the API, and the settings
//! that the configuration file declares.

use std::path::Path;

use super::{Config, Error};
use crate::types::{Settings, SettingsPatch};

/// The result of a change of settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// The settings chosen over the API, to store.
    pub chosen: Settings,
    /// The settings in force.
    pub in_force: Settings,
}

/// The settings in force. If labels are declared, they are all the labels, and chosen labels do not apply.
pub(super) fn in_force(chosen: &Settings, declared: &SettingsPatch) -> Settings {
    let mut settings = chosen.clone();
    if declared.labels.is_some() {
        settings.labels.clear();
    }
    declared.apply(&settings)
}

/// Applies the patch to the settings, or says why it may not be applied. A value that is in force already is no
/// change, so a caller may send back all settings that it has read.
pub(super) fn change(
    chosen: &Settings,
    config: &Config,
    patch: &SettingsPatch,
    physical_gpus: u32,
) -> Result<Change, Error> {
    patch.validate()?;
    let before = in_force(chosen, &config.declared);
    let wanted = patch.apply(&before);
    check_all_labels(&wanted)?;
    let declared = config.declared.fields();
    if let Some(field) = differing(&before, &wanted).find(|field| declared.contains(field)) {
        return Err(Error::Declared { field: field.to_owned(), file: file_name(config.file.as_deref()) });
    }
    if wanted.gpus_override != before.gpus_override && wanted.gpus_override > 0 && physical_gpus == 0 {
        return Err(Error::NoGpu);
    }
    let chosen = without(patch, &config.declared).apply(chosen);
    let in_force = in_force(&chosen, &config.declared);
    Ok(Change { chosen, in_force })
}

/// Checks the labels of the result: a patch was checked by itself, but adds its labels to others.
fn check_all_labels(settings: &Settings) -> Result<(), Error> {
    let labels = settings.labels.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
    Ok(SettingsPatch { labels: Some(labels), ..SettingsPatch::default() }.validate()?)
}

/// The names of the settings that differ, as [`SettingsPatch::fields`] spells them.
fn differing(a: &Settings, b: &Settings) -> impl Iterator<Item = &'static str> {
    [
        ("enabled", a.enabled != b.enabled),
        ("prune", a.prune != b.prune),
        ("cores_override", a.cores_override != b.cores_override),
        ("memory_override_bytes", a.memory_override_bytes != b.memory_override_bytes),
        ("gpus_override", a.gpus_override != b.gpus_override),
        ("gpu_sharing", a.gpu_sharing != b.gpu_sharing),
        ("labels", a.labels != b.labels),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
}

/// The patch without the declared settings: a declared value never becomes a chosen one.
fn without(patch: &SettingsPatch, declared: &SettingsPatch) -> SettingsPatch {
    SettingsPatch {
        enabled: patch.enabled.filter(|_| declared.enabled.is_none()),
        prune: patch.prune.filter(|_| declared.prune.is_none()),
        cores_override: patch.cores_override.filter(|_| declared.cores_override.is_none()),
        memory_override_bytes: patch.memory_override_bytes.filter(|_| declared.memory_override_bytes.is_none()),
        gpus_override: patch.gpus_override.filter(|_| declared.gpus_override.is_none()),
        gpu_sharing: patch.gpu_sharing.filter(|_| declared.gpu_sharing.is_none()),
        labels: patch.labels.clone().filter(|_| declared.labels.is_none()),
    }
}

/// The key of the configuration file that declares a field of the API. A value in the file carries its unit, so the key
/// does not.
pub(super) fn config_key(field: &str) -> String {
    format!("settings.{}", field.trim_end_matches("_bytes"))
}

/// The file's name in errors; without a file, the declarations come from the environment.
fn file_name(file: Option<&Path>) -> String {
    file.map_or_else(|| "the environment".to_owned(), |file| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Cores, GpuSharing, Labels};
    use proptest::prelude::*;

    fn config(declared: &str) -> Config {
        Config { name: "n1".parse().unwrap(), declared: patch(declared), file: Some("/etc/ostler/ostler.toml".into()) }
    }

    fn patch(json: &str) -> SettingsPatch {
        serde_json::from_str(json).unwrap()
    }

    fn changed(declared: &str, asked: &str) -> Result<Change, Error> {
        change(&Settings::default(), &config(declared), &patch(asked), 0)
    }

    #[test]
    fn the_refusal_of_a_declared_setting_names_the_key_of_the_file() {
        let refused = changed(r#"{"memory_override_bytes":1024}"#, r#"{"memory_override_bytes":2048}"#).unwrap_err();
        let expected = "memory_override_bytes is declared in /etc/ostler/ostler.toml, key settings.memory_override; \
                        change it there";
        assert_eq!(refused.to_string(), expected);
    }

    #[test]
    fn a_chosen_setting_is_kept_and_in_force() {
        let change = changed("{}", r#"{"cores_override":12}"#).unwrap();
        assert_eq!(change.chosen.cores_override, Cores::whole(12));
        assert_eq!(change.in_force, change.chosen);
    }

    #[test]
    fn a_change_of_a_declared_setting_is_rejected_with_its_name_and_file() {
        let refused = changed(r#"{"cores_override":8}"#, r#"{"enabled":false,"cores_override":12}"#).unwrap_err();
        let expected =
            Error::Declared { field: "cores_override".to_owned(), file: "/etc/ostler/ostler.toml".to_owned() };
        assert_eq!(refused, expected);
        assert!(refused.to_string().contains("settings.cores_override"));
    }

    #[test]
    fn the_declared_value_is_not_a_change_and_is_not_chosen() {
        let change = changed(r#"{"cores_override":8}"#, r#"{"enabled":false,"cores_override":8}"#).unwrap();
        assert_eq!(change.in_force.cores_override, Cores::whole(8));
        assert_eq!((change.chosen.cores_override, change.chosen.enabled), (Cores::ZERO, false));
    }

    #[test]
    fn declared_labels_replace_all_labels() {
        let chosen = Settings { labels: Labels::from([("old".to_owned(), "1".to_owned())]), ..Settings::default() };
        let config = config(r#"{"labels":{"rack":"3"}}"#);
        assert_eq!(in_force(&chosen, &config.declared).labels, Labels::from([("rack".to_owned(), "3".to_owned())]));
        assert!(matches!(
            change(&chosen, &config, &patch(r#"{"labels":{"rack":null}}"#), 0),
            Err(Error::Declared { .. })
        ));
        assert!(change(&chosen, &config, &patch(r#"{"labels":{"rack":"3"}}"#), 0).is_ok());
    }

    #[test]
    fn a_new_gpu_override_is_rejected_without_a_gpu() {
        let asked = patch(r#"{"gpus_override":10}"#);
        let none = Settings::default();
        let kept = Settings { gpus_override: 10, ..Settings::default() };
        assert_eq!(change(&none, &config("{}"), &asked, 0), Err(Error::NoGpu));
        assert!(change(&none, &config("{}"), &asked, 1).is_ok());
        assert!(change(&kept, &config("{}"), &asked, 0).is_ok());
        assert!(change(&kept, &config("{}"), &patch(r#"{"gpus_override":0}"#), 0).is_ok());
    }

    #[test]
    fn the_number_of_merged_labels_is_bounded() {
        let many = |prefix: &str| -> Labels { (0..40).map(|i| (format!("{prefix}{i}"), String::new())).collect() };
        let chosen = Settings { labels: many("a"), ..Settings::default() };
        let more = SettingsPatch {
            labels: Some(many("b").into_iter().map(|(key, value)| (key, Some(value))).collect()),
            ..SettingsPatch::default()
        };
        assert!(more.validate().is_ok());
        assert!(matches!(change(&chosen, &config("{}"), &more, 0), Err(Error::Invalid(_))));
    }

    fn any_patch() -> impl Strategy<Value = SettingsPatch> {
        let sharing = prop_oneof![Just(GpuSharing::None), Just(GpuSharing::SameUser), Just(GpuSharing::Any)];
        let labels = proptest::collection::btree_map("[ab]", proptest::option::of("[xy]"), 0..3);
        (
            proptest::option::of(any::<bool>()),
            proptest::option::of((0..3u32).prop_map(Cores::whole)),
            proptest::option::of(sharing),
            proptest::option::of(labels),
        )
            .prop_map(|(enabled, cores_override, gpu_sharing, labels)| SettingsPatch {
                enabled,
                cores_override,
                gpu_sharing,
                labels,
                ..SettingsPatch::default()
            })
    }

    proptest! {
        #[test]
        fn no_patch_changes_a_declared_value(
            declared in any_patch(), asks in proptest::collection::vec(any_patch(), 0..8)
        ) {
            let config = Config { declared, ..config("{}") };
            let start = in_force(&Settings::default(), &config.declared);
            let fields = config.declared.fields();
            let mut chosen = Settings::default();
            for ask in asks {
                let before = in_force(&chosen, &config.declared);
                match change(&chosen, &config, &ask, 0) {
                    Ok(change) => {
                        prop_assert_eq!(&change.in_force, &ask.apply(&before));
                        chosen = change.chosen;
                    }
                    Err(Error::Declared { field, .. }) => prop_assert!(fields.contains(&field.as_str())),
                    Err(e) => prop_assert!(false, "{}", e),
                }
                let now = in_force(&chosen, &config.declared);
                prop_assert!(differing(&start, &now).all(|field| !fields.contains(&field)));
            }
        }
    }
}
