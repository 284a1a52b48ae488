//! One short page for every error code, readable without a network.
//!
//! Never a page for a code that there is not: the list is matched in full.

use perch_types::Code;

const VOLUME_NOT_FOUND: &str = "The app has no volume of this id. A destroyed volume is gone after a day.\n\nDo: `perch volumes list` shows the app's volumes and which machine has each.";
const SNAPSHOT_NOT_FOUND: &str = "The app has no snapshot of this id: snapshots are removed after the days that their volume's `snapshot_retention` says.\n\nDo: `perch volumes snapshots list ID` shows those that are kept.";
const VOLUME_ATTACHED: &str = "A volume belongs to one machine at a time, also while that machine is stopped, so that two never write to one file system.\n\nDo: destroy that machine, or give the new one a volume of its own: `perch volumes create`, or `perch volumes fork ID` for a copy.";
const PORT_TAKEN: &str = "A public port at which the edge does not speak HTTP is one app's alone on a server, and another app has this one.\n\nDo: choose another `port` in fly.toml. A port is free again once its app is deleted, or some minutes after none of its machines names it any more.";
const DEADLINE_EXCEEDED: &str = "Something was waited for and did not happen in time.\n\nFor a deploy: the machine runs, but does not listen where it should, or its checks do not pass. A program must listen on 0.0.0.0 (not 127.0.0.1) and on the port that `internal_port` names.\n\nDo: `perch logs` shows what the program prints, `perch status` why it is not ready.";

/// Returns what a code means and what to do about it.
#[expect(clippy::too_many_lines, reason = "one line or two for every code")]
pub(crate) const fn page(code: Code) -> &'static str {
    match code {
        Code::InvalidRequest => {
            "The request has not the shape that the API expects; the text names the field.\n\nDo: compare with the API's documentation. From `perch` itself this is a fault: CLI and server may be of very different versions, see `perch version`."
        }
        Code::InvalidValue => {
            "A field has a value that is not allowed; the text names the field and what is allowed.\n\nDo: correct the value in fly.toml or on the command line."
        }
        Code::UnsupportedKey => {
            "The configuration has a key that this server cannot honour. It is refused because the app would not be what the file says.\n\nDo: take the key out, or upgrade the server."
        }
        Code::Unauthenticated => {
            "The platform was given no token, or one that it does not know.\n\nDo: `perch auth login URL#fingerprint` with the line that perchd prints at its start. On the server itself, root needs no login."
        }
        Code::Forbidden => {
            "The token is known but does not allow this.\n\nDo: use a token of the right organization, or ask its administrator."
        }
        Code::NotFound => {
            "There is no such thing, or your token may not see it.\n\nDo: look at the spelling; list what there is."
        }
        Code::AppNotFound => {
            "There is no app of this name, or your token may not see it.\n\nDo: `perch apps list` shows yours. The name comes from `--app` or from fly.toml."
        }
        Code::MachineNotFound => {
            "The app has no machine of this id. A destroyed machine is forgotten after a while.\n\nDo: `perch machine list` shows the ids."
        }
        Code::VolumeNotFound => VOLUME_NOT_FOUND,
        Code::SnapshotNotFound => SNAPSHOT_NOT_FOUND,
        Code::VolumeAttached => VOLUME_ATTACHED,
        Code::PortTaken => PORT_TAKEN,
        Code::MethodNotAllowed => {
            "The path exists, but not with this method.\n\nDo: CLI and server may be of very different versions, see `perch version`."
        }
        Code::DeadlineExceeded => DEADLINE_EXCEEDED,
        Code::WrongState => {
            "The machine's state does not allow this: one that is being destroyed cannot start, one that is stopped takes no signal.\n\nDo: `perch machine status ID` shows the state."
        }
        Code::NameTaken => {
            "Names of apps are unique on a platform, and this one is somebody's.\n\nDo: choose another with `--name`. If it is yours, `perch deploy --app NAME` rolls out to it."
        }
        Code::LeaseHeld => {
            "Somebody else is changing this machine and has reserved it for a moment, most likely another deploy.\n\nDo: wait for the other deploy; a lease ends by itself."
        }
        Code::LeaseNotFound => {
            "The machine has no lease: nobody has reserved it, or the reservation has ended by itself.\n\nDo: nothing; a machine without a lease can be changed by anybody who may."
        }
        Code::LeaseLost => {
            "The change came with the nonce of a lease that has ended, so somebody else may have changed the machine meanwhile.\n\nDo: look at the machine, acquire a lease anew, then try again."
        }
        Code::Conflict => {
            "Somebody else changed it between your look and your change, or what was begun with it before has not ended.\n\nDo: run the command again, and once more in a minute."
        }
        Code::PreconditionFailed => {
            "The request said `only if`, and that does not hold: most often another deploy was quicker. A machine that runs is destroyed only with `--force`.\n\nDo: look at `perch status`, then run the command again."
        }
        Code::BodyTooLarge => {
            "The request is larger than the server takes.\n\nDo: for a build, keep large files out with .dockerignore."
        }
        Code::RateLimited => "More requests came than the limit allows.\n\nDo: wait a few seconds.",
        Code::ImageUnknown => {
            "No registry that was asked has this image: the platform's own, then the one that the reference names.\n\nDo: look at the spelling and the tag. `perch images list` shows the platform's images; `perch images bootstrap` makes the base images."
        }
        Code::ImageUnavailable => {
            "The image could not be fetched: its registry does not answer, or wants a login.\n\nDo: try again; push a copy into the platform's registry if it goes on."
        }
        Code::ImageInvalid => {
            "The image breaks a rule: a digest that does not match, a layer that is too large, an entry that leads out of the image.\n\nDo: build and push it again with an up-to-date tool."
        }
        Code::BuildFailed => {
            "A step of the Dockerfile failed; the text has the step, its exit code and its last lines.\n\nDo: mend it and run `perch deploy` again. Steps that succeeded are not run again. Nothing that serves was touched."
        }
        Code::ExitedAtOnce => {
            "The program ended right after its start, so the deploy was stopped and what was there before was put back.\n\nReasons seen often: a missing variable or file, a wrong command, a program that goes to the background instead of staying in the foreground, too little memory.\n\nDo: read its last lines; `perch machine run --app NAME IMAGE sleep inf` gives a machine to look around in with `perch machine exec`."
        }
        Code::AnswersWorse => {
            "The new version was ready, but of the requests that it got clearly more failed (a status of 500 or more, or no answer) than with the version before on the same machine. So the deploy was stopped and what was there before was put back.\n\nThe version before needs to have had 20 requests, and the new one 5 failures; a version that nobody asks is not judged.\n\nDo: read its last lines and `perch logs`, mend it and run `perch deploy` again. If the errors are meant, deploy with `strategy = \"immediate\"` in `[deploy]` of fly.toml."
        }
        Code::InsufficientCapacity => {
            "No server has room for the machine.\n\nDo: ask for less memory in `[[vm]]`, destroy what is not needed, or add a server."
        }
        Code::NoSpace => {
            "The server's disk is full, or what it has left is kept for what volumes may still write. Running machines go on, but what their programs write may fail; a volume that finds no room stops, also for reading, until its machine is started again with room. What was synced to it before stays.\n\nDo: `perch system df` says what takes the disk; destroy apps and images that are not needed, or make it larger. Then restart machines whose volumes stopped."
        }
        Code::Unavailable => {
            "A part of the platform does not answer at the moment. Running apps are not affected.\n\nDo: try again in a few seconds; then look at `systemctl status perchd` on the server."
        }
        Code::Internal => {
            "A fault of the platform, not yours.\n\nDo: the server's log has more under the request's id; please report it with that."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page_that_says_what_to_do() {
        for code in Code::ALL {
            let page = page(*code);
            assert!(page.contains("\n\nDo: "), "{code}");
            assert!(page.len() < 700, "{code}");
        }
    }
}
