//! Named volumes: a user's files, which outlive the session.

use std::collections::HashMap;

use bollard::models::{Volume, VolumeCreateRequest};
use bollard::query_parameters::{ListVolumesOptionsBuilder, RemoveVolumeOptions};

use super::container::{LABEL_CLUSTER, LABEL_USER};
use super::engine::{CHANGE, Engine, LOOK};
use super::{Error, blame};
use crate::runtime::Mount;
use crate::runtime::volume_name::bounded_name;
use crate::types::Name;

/// The name as the template gave it.
const LABEL_VOLUME: &str = "ostler.volume";
/// Bytes of an escaped name at most. The engine names a directory like the volume, and file systems allow 255
/// bytes, so this leaves room for the cluster's name.
const MAX_ESCAPED: usize = 180;

/// Creates the volume if it is absent, and returns the engine's name for it.
pub(super) async fn ensure(engine: &Engine, cluster: &Name, mount: &Mount) -> Result<String, Error> {
    let request = request(cluster, mount);
    // If the volume exists, the engine returns it as it is.
    let volume = engine.ask("create volume", CHANGE, |docker| async move { docker.create_volume(request).await });
    let volume = volume.await.map_err(blame::of_volume)?;
    check_mountable(cluster, mount, &volume)?;
    Ok(volume.name)
}

fn request(cluster: &Name, mount: &Mount) -> VolumeCreateRequest {
    let mut labels =
        HashMap::from([(LABEL_CLUSTER.to_owned(), cluster.to_string()), (LABEL_VOLUME.to_owned(), mount.name.clone())]);
    labels.extend(mount.user.iter().map(|user| (LABEL_USER.to_owned(), user.to_string())));
    let name = Some(volume_name(cluster, &mount.name));
    VolumeCreateRequest { name, labels: Some(labels), ..VolumeCreateRequest::default() }
}

/// Checks that the volume is ours and was not created for another user.
fn check_mountable(cluster: &Name, mount: &Mount, volume: &Volume) -> Result<(), Error> {
    check_ours(cluster, &mount.name, volume)?;
    mount.check_owner(volume.labels.get(LABEL_USER).map(String::as_str)).map_err(Error::Refused)
}

/// The names of the cluster's volumes, as templates gave them.
pub(super) async fn list(engine: &Engine, cluster: &Name) -> Result<Vec<String>, Error> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL_CLUSTER}={cluster}")])]);
    let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
    let listed = engine
        .ask("list volumes", LOOK, |docker| async move { docker.list_volumes(Some(options)).await })
        .await
        .map_err(super::engine::Failure::or_try_again)?;
    let mut names: Vec<String> =
        listed.volumes.into_iter().flatten().filter_map(|mut volume| volume.labels.remove(LABEL_VOLUME)).collect();
    names.sort();
    Ok(names)
}

/// Destroys a volume of the cluster.
pub(super) async fn remove(engine: &Engine, cluster: &Name, name: &str) -> Result<(), Error> {
    let engine_name = &volume_name(cluster, name);
    let not_found = || Error::NotFound(name.to_owned());
    let seen = engine.ask("inspect volume", LOOK, |docker| async move { docker.inspect_volume(engine_name).await });
    let volume = match seen.await {
        Ok(volume) => volume,
        Err(failure) if failure.is_not_found() => return Err(not_found()),
        Err(failure) => return Err(failure.or_try_again()),
    };
    check_ours(cluster, name, &volume)?;
    let removed = engine.ask("remove volume", CHANGE, |docker| async move {
        docker.remove_volume(engine_name, None::<RemoveVolumeOptions>).await
    });
    match removed.await {
        Ok(()) => Ok(()),
        Err(failure) if failure.is_not_found() => Err(not_found()),
        Err(failure) if failure.is_conflict() => Err(Error::Refused(format!("volume {name} is in use by a container"))),
        Err(failure) => Err(failure.or_try_again()),
    }
}

/// Checks labels and options: a volume that another program created under our name may be a directory of the host.
fn check_ours(cluster: &Name, name: &str, volume: &Volume) -> Result<(), Error> {
    let label = |key| volume.labels.get(key).map(String::as_str);
    let ours = label(LABEL_CLUSTER) == Some(cluster.as_str()) && label(LABEL_VOLUME) == Some(name);
    if ours && volume.driver == "local" && volume.options.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!("volume {} exists and is not ostler's", volume.name)))
}

fn volume_name(cluster: &Name, name: &str) -> String {
    format!("ostler-{cluster}.{}", bounded_name(name, MAX_ESCAPED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_fit_a_directory_and_stay_distinct() {
        let cluster: Name = "c".repeat(Name::MAX_LEN).parse().unwrap();
        let long = volume_name(&cluster, &"@".repeat(256));
        assert!(long.len() <= 255, "{}", long.len());
        assert_ne!(long, volume_name(&cluster, &"@".repeat(255)));
        assert_eq!(volume_name(&"lab".parse().unwrap(), "home-Bob"), "ostler-lab.home-_42ob");
    }

    #[test]
    fn a_volume_is_labelled_with_its_user_and_mounted_for_no_other() {
        let cluster: Name = "lab".parse().unwrap();
        let mount = |user: Option<&str>| {
            let user = user.map(|user| user.parse().unwrap());
            Mount { name: "home-a-b".to_owned(), path: "/home".to_owned(), read_only: false, user }
        };
        let volume = |mount: &Mount| {
            let VolumeCreateRequest { name, labels, .. } = request(&cluster, mount);
            let (name, labels) = (name.unwrap(), labels.unwrap());
            Volume { name, labels, driver: "local".to_owned(), ..Volume::default() }
        };
        let (a, b, shared) = (mount(Some("Jörg")), mount(Some("a")), mount(None));
        let mounted = |mount: &Mount, of: &Mount| check_mountable(&cluster, mount, &volume(of)).is_ok();
        assert!(mounted(&a, &a) && mounted(&a, &shared) && mounted(&shared, &a));
        assert!(!mounted(&a, &b) && !mounted(&b, &a));
    }

    #[test]
    fn a_directory_of_the_host_is_never_ours() {
        let cluster: Name = "lab".parse().unwrap();
        let labels = [(LABEL_CLUSTER, "lab"), (LABEL_VOLUME, "home")];
        let mut volume = Volume {
            driver: "local".to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..Volume::default()
        };
        assert_eq!(check_ours(&cluster, "home", &volume), Ok(()));
        assert!(check_ours(&cluster, "other", &volume).is_err());
        volume.options.insert("device".to_owned(), "/".to_owned());
        assert!(check_ours(&cluster, "home", &volume).is_err());
    }
}
