//! The image is on the host and its tree is mounted.
//!
//! Never undone: the tree may be another machine's too, and is unmounted when nobody uses it. May
//! run twice because a mounted tree is found and used again.

use serde_json::Value;

use crate::effects::Fault;
use crate::machine::run::Work;

pub(super) async fn run(work: &mut Work) -> Result<Value, Fault> {
    let image = work.record.incoming().image.clone();
    work.image = Some(work.shared.effects.images.mount(&image).await?);
    Ok(Value::Null)
}
