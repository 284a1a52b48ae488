//! The cage of a boot is made, up to but not including its program.
//!
//! Never runs a program. May run twice: whatever an earlier attempt left is killed and removed
//! first, because nobody knows how far it came. Its undo does the same.

use std::sync::Arc;

use perch_runtime::{BootSpec, IdRange, Instance};
use serde_json::Value;

use super::{image, rootfs, volume};
use crate::effects::Fault;
use crate::machine::ahead::Ahead;
use crate::machine::record::Version;
use crate::machine::run::Work;
use crate::machine::{containers, guest, names};

/// User ids of one machine.
pub const IDS_PER_MACHINE: u32 = 65_536;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    let version = work.record.incoming().clone();
    make(work, &version, work.input.boot).await?;
    Ok(Value::Null)
}

pub(super) async fn undo(work: &mut Work) -> Result<(), Fault> {
    work.instance = None;
    work.shared.effects.runtime.clean(&work.dir()).await?;
    Ok(())
}

/// Makes the cage of a version's boot.
pub(super) async fn make(work: &mut Work, version: &Version, number: u64) -> Result<(), Fault> {
    work.ahead = Some(Ahead::begin(&work.shared.effects, &work.record, version.secrets));
    undo(work).await?;
    let images = image::all(work, version).await?;
    let upper = rootfs::path(work, version);
    // Only here does no boot of it run, and none can come in between.
    rootfs::take(work, version).await?;
    work.shared.effects.rootfs.repair(&upper).await?;
    let (containers, shared) = containers::specs(&version.config, &images, &upper);
    let config = &version.config;
    let spec = BootSpec {
        instance: version.instance.clone(),
        boot: number,
        dir: work.dir(),
        lower: images.into_iter().next().map(|image| image.root).unwrap_or_default(),
        upper,
        scratch: !rootfs::is_kept(version),
        ids: IdRange {
            first: work
                .shared
                .config
                .uid_base
                .saturating_add(work.record.slot.saturating_mul(IDS_PER_MACHINE)),
            count: IDS_PER_MACHINE,
        },
        limits: guest::limits(config),
        hostname: names::hostname(&work.record.id, config),
        mounts: Vec::new(),
        containers,
        shared,
        agent: work.shared.config.machine_api.as_ref().map(|api| api.monitors.clone()),
        volumes: volume::of(work, version),
        log: work.shared.config.limits.log,
        stop_signal: config.stop_signal().number(),
        stop_grace_ms: u64::try_from(config.stop_timeout().get().as_millis()).unwrap_or(u64::MAX),
    };
    let began = std::time::Instant::now();
    let instance: Arc<dyn Instance> = Arc::from(work.shared.effects.runtime.create(&spec).await?);
    work.shared.note_step("boot: create", began.elapsed().as_secs_f64() * 1e3);
    work.instance = Some(instance);
    Ok(())
}
