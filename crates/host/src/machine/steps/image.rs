//! The image is on the host and its tree is mounted.
//!
//! Never undone: the tree may be another machine's too, and is unmounted when nobody uses it. May
//! run twice because a mounted tree is found and used again.

use perch_types::image::ImageRef;
use serde_json::Value;

use crate::effects::{Fault, MountedImage};
use crate::machine::record::Version;
use crate::machine::run::Work;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    let image = work.record.incoming().image.clone();
    work.image = Some(work.shared.effects.images.mount(&image).await?);
    work.others = mount_others(work, &work.record.incoming().others.clone()).await?;
    Ok(Value::Null)
}

async fn mount_others(work: &Work, others: &[ImageRef]) -> Result<Vec<MountedImage>, Fault> {
    let mut mounted = Vec::with_capacity(others.len());
    for image in others {
        mounted.push(work.shared.effects.images.mount(image).await?);
    }
    Ok(mounted)
}

/// Returns all images of a version, mounted: the ones at hand if they are its.
pub(super) async fn all(work: &Work, version: &Version) -> Result<Vec<MountedImage>, Fault> {
    let incoming = work.record.incoming();
    if let Some(image) = &work.image
        && version.image == incoming.image
        && version.others == incoming.others
        && work.others.len() == version.others.len()
    {
        return Ok(std::iter::once(image).chain(&work.others).cloned().collect());
    }
    let mut all = vec![work.shared.effects.images.mount(&version.image).await?];
    all.extend(mount_others(work, &version.others).await?);
    Ok(all)
}
