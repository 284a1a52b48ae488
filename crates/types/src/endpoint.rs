//! Every endpoint of the public API: method, path and the action it needs.
//!
//! Never a handler. The api registers these, the client calls these, and a test compares both.

/// What a token must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Look.
    Read,
    /// Change.
    Write,
    /// Run a program inside a machine.
    Exec,
    /// Run the platform itself: base images, disk usage.
    Operate,
}

/// One endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The HTTP method.
    pub method: &'static str,
    /// The path, with parameters in braces.
    pub path: &'static str,
    /// What it needs.
    pub action: Action,
}

impl Endpoint {
    const fn new(method: &'static str, path: &'static str, action: Action) -> Self {
        Self { method, path, action }
    }

    /// Returns the path with its parameters filled in, in order.
    ///
    /// Values must be plain ids (no `/`, `?`, `#` or `%`), as all ids of this crate are.
    #[must_use]
    pub fn path_of(&self, values: &[&str]) -> String {
        let mut values = values.iter();
        let mut path = String::with_capacity(self.path.len() + 32);
        let mut rest = self.path;
        while let Some((before, tail)) = rest.split_once('{') {
            path.push_str(before);
            path.push_str(values.next().copied().unwrap_or_default());
            rest = tail.split_once('}').map_or("", |(_, after)| after);
        }
        path.push_str(rest);
        path
    }
}

macro_rules! endpoints {
    ($($(#[$doc:meta])* $name:ident = $method:literal $path:literal $action:ident;)*) => {
        $($(#[$doc])* pub const $name: Endpoint = Endpoint::new($method, $path, Action::$action);)*
        /// All endpoints.
        pub const ALL: &[Endpoint] = &[$($name),*];
    };
}

endpoints! {
    /// Apps of an organization (contract 1.2).
    APPS_LIST = "GET" "/v1/apps" Read;
    /// A new app.
    APPS_CREATE = "POST" "/v1/apps" Write;
    /// One app.
    APP_GET = "GET" "/v1/apps/{app}" Read;
    /// Deletes an app and its machines.
    APP_DELETE = "DELETE" "/v1/apps/{app}" Write;
    /// Machines of an app (contract 1.3).
    MACHINES_LIST = "GET" "/v1/apps/{app}/machines" Read;
    /// A new machine.
    MACHINES_CREATE = "POST" "/v1/apps/{app}/machines" Write;
    /// One machine.
    MACHINE_GET = "GET" "/v1/apps/{app}/machines/{machine}" Read;
    /// A new version of a machine.
    MACHINE_UPDATE = "POST" "/v1/apps/{app}/machines/{machine}" Write;
    /// Destroys a machine.
    MACHINE_DELETE = "DELETE" "/v1/apps/{app}/machines/{machine}" Write;
    /// Starts a machine.
    MACHINE_START = "POST" "/v1/apps/{app}/machines/{machine}/start" Write;
    /// Stops a machine.
    MACHINE_STOP = "POST" "/v1/apps/{app}/machines/{machine}/stop" Write;
    /// Restarts a machine.
    MACHINE_RESTART = "POST" "/v1/apps/{app}/machines/{machine}/restart" Write;
    /// Sends a signal to a machine's program.
    MACHINE_SIGNAL = "POST" "/v1/apps/{app}/machines/{machine}/signal" Write;
    /// Waits for a state (contract 1.5).
    MACHINE_WAIT = "GET" "/v1/apps/{app}/machines/{machine}/wait" Read;
    /// Runs a program inside a machine and returns its output.
    MACHINE_EXEC = "POST" "/v1/apps/{app}/machines/{machine}/exec" Exec;
    /// Runs a program inside a machine over an upgraded connection (`types::exec`).
    MACHINE_ATTACH = "GET" "/v1/apps/{app}/machines/{machine}/attach" Exec;
    /// Events of a machine, newest first.
    MACHINE_EVENTS = "GET" "/v1/apps/{app}/machines/{machine}/events" Read;
    /// Takes a machine out of routing.
    MACHINE_CORDON = "POST" "/v1/apps/{app}/machines/{machine}/cordon" Write;
    /// Puts a machine back into routing.
    MACHINE_UNCORDON = "POST" "/v1/apps/{app}/machines/{machine}/uncordon" Write;
    /// Log records of a machine as lines of JSON; `follow=true` keeps the answer open.
    MACHINE_LOGS = "GET" "/v1/apps/{app}/machines/{machine}/logs" Read;
    /// Secrets of an app, by name and digest (contract 1.9).
    SECRETS_LIST = "GET" "/v1/apps/{app}/secrets" Read;
    /// Sets and takes away secrets, all at once.
    SECRETS_UPDATE = "POST" "/v1/apps/{app}/secrets" Write;
    /// One secret, by name and digest.
    SECRET_GET = "GET" "/v1/apps/{app}/secrets/{secret_name}" Read;
    /// Sets a secret.
    SECRET_SET = "POST" "/v1/apps/{app}/secrets/{secret_name}" Write;
    /// Takes a secret away.
    SECRET_DELETE = "DELETE" "/v1/apps/{app}/secrets/{secret_name}" Write;
    /// Newest log records of an app in the contract's shape (3.5).
    APP_LOGS = "GET" "/api/v1/apps/{app}/logs" Read;
    /// Builds an image of a context; the answer is lines of JSON (`types::build`).
    APP_BUILD = "POST" "/v1/apps/{app}/builds" Write;
    /// Regions (contract 1.11).
    REGIONS = "GET" "/v1/platform/regions" Read;
    /// What this platform is: domain, ports, version.
    PLATFORM = "GET" "/v1/platform" Read;
    /// What takes the servers' disks.
    SYSTEM_USAGE = "GET" "/v1/platform/usage" Operate;
    /// Deletes images that no machine names.
    SYSTEM_PRUNE = "POST" "/v1/platform/prune" Operate;
    /// Images in the platform's registry.
    IMAGES_LIST = "GET" "/v1/images" Read;
    /// Makes the base images; the answer is lines of JSON (`types::build`).
    IMAGES_BOOTSTRAP = "POST" "/v1/images/bootstrap" Operate;
    /// What the caller's token is (contract 1.12).
    TOKEN_CURRENT = "GET" "/v1/tokens/current" Read;
}

/// The header that names a machine's lease (contract 1.6).
pub const LEASE_HEADER: &str = "fly-machine-lease-nonce";
/// The header with the request's id.
pub const REQUEST_ID_HEADER: &str = "fly-request-id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_take_their_parameters_in_order() {
        assert_eq!(MACHINE_GET.path_of(&["web", "0123"]), "/v1/apps/web/machines/0123");
        assert_eq!(APPS_LIST.path_of(&[]), "/v1/apps");
    }

    #[test]
    fn no_endpoint_is_listed_twice() {
        let mut seen: Vec<_> = ALL.iter().map(|e| (e.method, e.path)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), ALL.len());
    }
}
