//! Machines (contract 1.3 to 1.6).
//!
//! Never decides a transition: hosts do. This side writes down what should exist, then asks.

pub(crate) mod answer;
pub(crate) mod command;
pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod filter;
pub(crate) mod lease;
pub(crate) mod metadata;
pub(crate) mod read;
pub(crate) mod resources;
pub(crate) mod update;
pub(crate) mod wait;

pub(crate) use exec::EXEC_TIMEOUT_MAX_S;

use perch_types::directory::AppDoc;
use perch_types::image::Reference;
use perch_types::machine_config::FileConfig;
use perch_types::{ApiError, Code, MachineConfig, MachineId};
use sha2::{Digest as _, Sha256};

use crate::config::Shared;
use crate::documents;
use crate::reply::Failure;
use crate::routes::Caller;

/// Where the base images are in the platform's registry; everybody may run them.
const BASE_IMAGES: &str = "base";

/// Returns the SHA-256 of a configuration, hexadecimal.
fn config_digest(config: &MachineConfig) -> Result<String, Failure> {
    let json = serde_json::to_vec(config)
        .map_err(|_| Failure::new(Code::InvalidValue, "config: cannot be written as JSON"))?;
    Ok(Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Refuses images of the platform's registry that the caller does not reach: what is run, and
/// whose configurations become files.
async fn own_images(
    shared: &Shared,
    caller: &Caller,
    app: &AppDoc,
    config: &MachineConfig,
) -> Result<(), Failure> {
    for (path, image) in images(config) {
        own_image(shared, caller, app, (&path, image)).await?;
    }
    Ok(())
}

/// Returns every image that a configuration names, with the path to it.
fn images(config: &MachineConfig) -> Vec<(String, &str)> {
    fn of_files<'a>(path: &str, files: &'a [FileConfig]) -> Vec<(String, &'a str)> {
        let named = |(index, file): (usize, &'a FileConfig)| {
            Some((format!("{path}files[{index}].image_config"), file.image_config.as_deref()?))
        };
        files.iter().enumerate().filter_map(named).collect()
    }
    let mut images = vec![("config.image".to_owned(), config.image.as_str())];
    images.extend(of_files("config.", &config.files));
    for (index, container) in config.containers.iter().enumerate() {
        let path = format!("config.containers[{index}].");
        images.push((format!("{path}image"), &container.image));
        images.extend(of_files(&path, &container.files));
    }
    for (index, volume) in config.volumes.iter().enumerate() {
        let image = volume.image.as_deref();
        images.extend(image.map(|image| (format!("config.volumes[{index}].image"), image)));
    }
    images
}

/// Refuses an image of the platform's registry that the caller does not reach: another
/// organization's, and with a token for one app another app's.
async fn own_image(
    shared: &Shared,
    caller: &Caller,
    app: &AppDoc,
    (path, image): (&str, &str),
) -> Result<(), Failure> {
    let Ok(reference) = image.parse::<Reference>() else {
        return Ok(());
    };
    let first = reference.repository().split('/').next().unwrap_or_default();
    if !reference.is_platform() || first == BASE_IMAGES || first == app.name.as_str() {
        return Ok(());
    }
    let owner = match first.parse() {
        Ok(name) => documents::app(shared.store.as_ref(), &app.org, &name).await?,
        Err(_) => None,
    };
    let reaches = |owner: AppDoc| caller.0.iter().any(|it| it.reaches(&owner.org, &owner.id));
    if owner.is_some_and(reaches) {
        return Ok(());
    }
    let text = format!("{path}: `{image}` is unknown to the platform's registry");
    Err(Failure::new(Code::ImageUnknown, text))
}

/// Refuses a standby for a machine that the app does not have.
async fn own_standbys(
    shared: &Shared,
    app: &AppDoc,
    config: &MachineConfig,
) -> Result<(), Failure> {
    for (index, id) in config.standbys.iter().enumerate() {
        let placement = match id.parse::<MachineId>() {
            Ok(id) => documents::placement(shared.store.as_ref(), &app.org, &id).await?,
            Err(_) => None,
        };
        if placement.is_none_or(|placement| placement.document.app != app.name) {
            let path = format!("config.standbys[{index}]");
            return Err(Failure::unknown_reference(&path, ("machine", id), &ids(shared, app)));
        }
    }
    Ok(())
}

/// Returns the ids of an app's machines, for the refusal of one that is none of them. Another
/// organization's of an app that had the name are nothing to tell.
pub(crate) fn ids(shared: &Shared, app: &AppDoc) -> Vec<String> {
    let view = shared.view.load();
    let own = view.machines().filter(|it| it.org == app.org && it.app == app.name);
    own.map(|machine| machine.id.to_string()).collect()
}

/// Turns a host's error into the answer; an unknown machine in the contract's words.
pub(crate) fn of_host(error: perch_client::Error, id: &MachineId) -> Failure {
    if error.is_not_found() {
        return ApiError::machine_not_found(id.as_str()).into();
    }
    error.into()
}
