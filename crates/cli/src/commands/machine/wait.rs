//! `perch machine wait`.
//!
//! Never asks again and again: the platform holds the question, a minute at a time.

use std::time::{Duration, Instant};

use clap::Args;
use perch_client::{Api, WaitFor};
use perch_types::{AppName, Code, InstanceId, MachineId};

use crate::error::{During as _, Result};
use crate::invocation::Invocation;

/// How long one question is held at most.
const HELD_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Machine's id
    id: MachineId,
    /// State to wait for; several are separated by commas, and `settled` is any that stays
    #[arg(short, long, value_name = "STATE", value_delimiter = ',', default_value = "started")]
    state: Vec<String>,
    /// Version to wait for
    #[arg(long, value_name = "VERSION")]
    instance: Option<InstanceId>,
    /// Seconds to wait at most
    #[arg(short, long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

pub(crate) async fn run(
    invocation: &Invocation,
    api: &Api,
    app: &AppName,
    args: WaitArgs,
) -> Result {
    let what = format!("wait for machine `{}`", args.id);
    let began = Instant::now();
    let limit = Duration::from_secs(args.timeout);
    let _work = invocation.ui.working(&format!("waiting for {}", args.state.join(" or ")));
    loop {
        let left = limit.saturating_sub(began.elapsed());
        let wait = WaitFor {
            states: args.state.clone(),
            instance: args.instance.clone(),
            from_event: None,
            timeout: left.min(HELD_MAX),
        };
        match api.wait(app, &args.id, &wait).await {
            Err(error) if error.code() == Some(Code::DeadlineExceeded) && left > HELD_MAX => {}
            reached => {
                let reached = reached.during(&what)?;
                if invocation.ui.is_json() {
                    invocation.ui.json(&reached);
                } else {
                    invocation.ui.good(format!("machine {} is {}", args.id, reached.state));
                }
                return Ok(());
            }
        }
    }
}
