//! Lines of others in the machine's log.
//!
//! Never two who write the log: while a boot runs its monitor does, and while none runs this task,
//! which begins none meanwhile.

use std::path::Path;

use perch_runtime::log::Writer;

use super::Actor;
use crate::machine::state::State;

impl Actor {
    /// Writes a line into the log; losing one is only that.
    pub(super) async fn note(&self, text: String) {
        let machine = &self.record.id;
        if self.record.boot.is_some() || self.instance.is_some() {
            self.say(vec![text]);
            return;
        }
        if matches!(self.record.state, State::Destroying | State::Destroyed) {
            return;
        }
        let dir = self.shared.machine_dir(machine).log_dir();
        let bytes_max = self.shared.config.limits.log.bytes_max;
        let unix_ms = self.shared.effects.clock.now().unix_ms().unsigned_abs();
        let writing = move || write(&dir, bytes_max, unix_ms, &text);
        match tokio::task::spawn_blocking(writing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%machine, %error, "line for the log is lost"),
            Err(error) => tracing::error!(%machine, %error, "writing into the log broke off"),
        }
    }
}

fn write(dir: &Path, bytes_max: u64, unix_ms: u64, text: &str) -> Result<(), perch_runtime::Error> {
    let mut writer = Writer::open(dir, bytes_max)?;
    writer.system(unix_ms, text)?;
    writer.flush()
}
