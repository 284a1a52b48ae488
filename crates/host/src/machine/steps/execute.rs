//! The program of a boot is executed.
//!
//! Never journals the environment or a secret: both go to init through a socket. Comes once for a
//! cage; after a crash the cage is made anew, so it may run twice.

use perch_types::Code;
use serde_json::Value;

use super::image;
use crate::effects::Fault;
use crate::machine::files::{self, Given};
use crate::machine::plan::Intent;
use crate::machine::record::Version;
use crate::machine::run::{ExecuteOutput, Executed, Work};
use crate::machine::{ahead, containers, guest};

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    let version = work.record.incoming().clone();
    let executed = execute(work, &version).await?;
    // An update goes back to what ran before rather than leave a machine without a program.
    if executed == Executed::NotExecutable && matches!(work.input.intent, Intent::Update { .. }) {
        let text = work.fault.take().map_or_else(String::new, |fault| fault.error);
        return Err(Fault::permanent(Code::ExitedAtOnce, text));
    }
    let left = ExecuteOutput { executed, secrets_version: work.secrets_version };
    serde_json::to_value(left).map_err(|error| Fault::permanent(Code::Internal, error.to_string()))
}

/// Executes a version's program in the cage at hand.
pub(super) async fn execute(work: &mut Work, version: &Version) -> Result<Executed, Fault> {
    let Some(instance) = work.instance.clone() else {
        return Err(Fault::permanent(Code::Internal, "the cage ended before its program began"));
    };
    let images = image::all(work, version).await?;
    let around = work.shared.surroundings(&work.record)?;
    let secrets = ahead::secrets(work, version.secrets).await?;
    work.secrets_version = secrets.as_ref().map(|secrets| secrets.version);
    let given = Given {
        secrets: secrets.unwrap_or_default().values,
        image_configs: files::image_configs(work, version).await?,
    };
    let refused = |error| Fault { error, transient: false };
    let record = &work.record;
    let started = if version.config.containers.is_empty() {
        let image = images.into_iter().next().map(|image| image.config).unwrap_or_default();
        let start =
            guest::guest_start(record, version, &image, &around, &given).map_err(refused)?;
        instance.start(start).await
    } else {
        let starts = containers::starts(record, version, &images, (&around, &given));
        instance.start_containers(starts.map_err(refused)?).await
    };
    match started {
        Ok(()) => Ok(Executed::Started),
        Err(error @ perch_runtime::Error::NotExecutable { .. }) => {
            work.fault = Some(Fault::from(error).error);
            Ok(Executed::NotExecutable)
        }
        Err(error) => Err(error.into()),
    }
}
