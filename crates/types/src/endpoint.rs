//! Every endpoint of the public API: method, path and the action it needs.
//!
//! Never a handler. The api registers these, the client calls these, and a test compares both.
//!
//! The comment of an endpoint is its description in docs/openapi.json. What the signature of its
//! handler does not say is declared there, a line each: ``- `limit: 1..=50` words`` for a
//! parameter of the query (a range, or a type of this crate), ``- `header NAME: Type` words``,
//! ``- `body media/type: Type` words`` and ``- `answer media/type: Type` words``.

/// What a token must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Nothing: it is the same for everybody, and no token is asked for.
    Public,
    /// Look.
    Read,
    /// Change.
    Write,
    /// Run a program inside a machine.
    Exec,
    /// Give out tokens and end them.
    Grant,
    /// Run the platform itself: base images, disk usage.
    Operate,
}

/// The parameter of paths that are about one machine.
const MACHINE_PARAMETER: &str = "{machine}";

/// One endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The HTTP method.
    pub method: &'static str,
    /// The path, with parameters in braces.
    pub path: &'static str,
    /// What it needs.
    pub action: Action,
    /// Whether it is let through to a leased machine without the lease's nonce although it
    /// changes something (contract 1.6).
    unleased: bool,
}

impl Endpoint {
    const fn new(method: &'static str, path: &'static str, action: Action) -> Self {
        Self { method, path, action, unleased: false }
    }

    const fn unleased(self) -> Self {
        Self { unleased: true, ..self }
    }

    /// Returns whether a leased machine needs the lease's nonce for it: whatever changes a
    /// machine does, unless the table says `Unleased`.
    #[must_use]
    pub fn needs_lease(&self) -> bool {
        self.action == Action::Write && self.path.contains(MACHINE_PARAMETER) && !self.unleased
    }

    /// Returns the path with its parameters filled in, in order.
    ///
    /// Values must be plain ids (no `/`, `?`, `#` or `%`), as all ids of this crate are, or
    /// percent-encoded.
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
    (@new $method:literal $path:literal $action:ident) => {
        Endpoint::new($method, $path, Action::$action)
    };
    (@new $method:literal $path:literal $action:ident Unleased) => {
        Endpoint::new($method, $path, Action::$action).unleased()
    };
    ($($(#[$doc:meta])* $name:ident = $method:literal $path:literal $($word:ident)+;)*) => {
        $($(#[$doc])* pub const $name: Endpoint = endpoints!(@new $method $path $($word)+);)*
        /// All endpoints.
        pub const ALL: &[Endpoint] = &[$($name),*];
    };
}

endpoints! {
    /// Apps of an organization (contract 1.2).
    ///
    /// - `org_slug: String` only those of this organization; without it those of all that the token
    ///   reaches
    /// - `app_role: String` only apps that were made with this role
    APPS_LIST = "GET" "/v1/apps" Read;
    /// A new app. Its name is the platform's: nobody else can have it.
    APPS_CREATE = "POST" "/v1/apps" Write;
    /// One app.
    APP_GET = "GET" "/v1/apps/{app}" Read;
    /// Deletes an app and its machines, whether they run or not. The answer waits a while for them
    /// to be gone; then their end is a promise, and the app's name is taken until it is kept.
    ///
    /// - `force: bool` accepted, because clients send it; changes nothing
    APP_DELETE = "DELETE" "/v1/apps/{app}" Write;
    /// A token for a program that deploys an app: it reaches nothing but this app, and ends with it.
    /// Its text is in this answer and nowhere else.
    APP_DEPLOY_TOKEN = "POST" "/v1/apps/{app}/deploy_token" Grant;
    /// The tokens for an app, by their names.
    APP_TOKENS_LIST = "GET" "/v1/apps/{app}/tokens" Grant;
    /// Ends a token for an app.
    APP_TOKEN_REVOKE = "DELETE" "/v1/apps/{app}/tokens/{token}" Grant;
    /// Machines of an app, in the order in which they were made (contract 1.3).
    ///
    /// - `include_deleted: bool` also those that were destroyed
    /// - `region: String` only in these regions, with commas between them
    /// - `state: String` only in these states, with commas between them
    /// - `summary: bool` without config, checks and events
    /// - `metadata.{key}: String` only with this label; may be repeated with other keys
    /// - `answer application/json: Vec<Value>` Each is a `Machine`; a summary has no `config`,
    ///   `checks` and `events`.
    MACHINES_LIST = "GET" "/v1/apps/{app}/machines" Read;
    /// A new machine. Its image is pulled, it is placed on a host, and started unless
    /// `skip_launch`. What its configuration names (secrets, volumes, other machines) has to be
    /// there.
    MACHINES_CREATE = "POST" "/v1/apps/{app}/machines" Write;
    /// One machine.
    MACHINE_GET = "GET" "/v1/apps/{app}/machines/{machine}" Read;
    /// A new version of a machine: the whole configuration, nothing is merged.
    MACHINE_UPDATE = "POST" "/v1/apps/{app}/machines/{machine}" Write;
    /// Destroys a machine. One that runs is refused without force (412).
    ///
    /// - `force: bool` also when it runs
    /// - `kill: bool` the same, under its older name
    MACHINE_DELETE = "DELETE" "/v1/apps/{app}/machines/{machine}" Write;
    /// Starts a machine that is stopped or suspended.
    MACHINE_START = "POST" "/v1/apps/{app}/machines/{machine}/start" Write;
    /// Stops a machine: the signal, then at most the time, then SIGKILL.
    MACHINE_STOP = "POST" "/v1/apps/{app}/machines/{machine}/stop" Write;
    /// Suspends a machine: its processes stand still until a start.
    MACHINE_SUSPEND = "POST" "/v1/apps/{app}/machines/{machine}/suspend" Write;
    /// Stops a machine and starts it again.
    ///
    /// - `timeout: String` how long its program may take to end: seconds, or a duration such as
    ///   `10s`
    /// - `signal: Signal` instead of the configured signal
    /// - `force_stop: bool` kill it at once
    MACHINE_RESTART = "POST" "/v1/apps/{app}/machines/{machine}/restart" Write;
    /// Sends a signal to a machine's program.
    MACHINE_SIGNAL = "POST" "/v1/apps/{app}/machines/{machine}/signal" Write;
    /// Waits until a machine is in one of some states (contract 1.5).
    ///
    /// - `state: String` the states with commas between them, or repeated; `settled` is any that
    ///   lasts, `ready` is started and passing its checks; default `started`
    /// - `timeout: f64` seconds, 1 to 60; default 60
    /// - `instance_id: InstanceId` only this version counts
    /// - `version: InstanceId` the same, under its other name
    /// - `from_event_id: String` only what happened after this event counts
    MACHINE_WAIT = "GET" "/v1/apps/{app}/machines/{machine}/wait" Read;
    /// Runs a program inside a machine and returns its output.
    MACHINE_EXEC = "POST" "/v1/apps/{app}/machines/{machine}/exec" Exec;
    /// Runs a program inside a machine over an upgraded connection. Its frames are described in
    /// `types::exec`.
    ///
    /// - `header upgrade: String` has to be `perch-exec/1`
    /// - `header perch-exec: ExecSpec` what to run, as JSON
    /// - `answer application/octet-stream: bytes` The connection carries frames from here on.
    MACHINE_ATTACH = "GET" "/v1/apps/{app}/machines/{machine}/attach" Exec;
    /// Processes of a machine.
    ///
    /// - `sort_by: String` a field of the answer; default `pid`
    /// - `order: String` `asc` or `desc`
    MACHINE_PS = "GET" "/v1/apps/{app}/machines/{machine}/ps" Read;
    /// A machine's memory.
    MACHINE_MEMORY = "GET" "/v1/apps/{app}/machines/{machine}/memory" Read;
    /// Changes what a running machine may use of it.
    MACHINE_MEMORY_SET = "PUT" "/v1/apps/{app}/machines/{machine}/memory" Write;
    /// Takes back memory that a machine could do without.
    MACHINE_MEMORY_RECLAIM = "POST" "/v1/apps/{app}/machines/{machine}/memory/reclaim" Write;
    /// Events of a machine, newest first.
    ///
    /// - `limit: 1..=50` at most so many; default 20
    MACHINE_EVENTS = "GET" "/v1/apps/{app}/machines/{machine}/events" Read;
    /// Takes a machine out of routing.
    MACHINE_CORDON = "POST" "/v1/apps/{app}/machines/{machine}/cordon" Write;
    /// Puts a machine back into routing.
    MACHINE_UNCORDON = "POST" "/v1/apps/{app}/machines/{machine}/uncordon" Write;
    /// The lease of a machine: who alone may change it for a while (contract 1.6).
    MACHINE_LEASE_GET = "GET" "/v1/apps/{app}/machines/{machine}/lease" Read;
    /// Acquires the lease of a machine, or refreshes it with its nonce, which stays the same.
    ///
    /// - `ttl: 1..=86400` seconds that it lasts, where the body does not say; default 60
    /// - `header fly-machine-lease-nonce: String` the nonce of the lease to refresh
    MACHINE_LEASE_ACQUIRE = "POST" "/v1/apps/{app}/machines/{machine}/lease" Write Unleased;
    /// Releases the lease of a machine.
    ///
    /// - `header fly-machine-lease-nonce: String` its nonce
    MACHINE_LEASE_RELEASE = "DELETE" "/v1/apps/{app}/machines/{machine}/lease" Write Unleased;
    /// Versions of a machine that are kept, newest first: the last twenty.
    MACHINE_VERSIONS = "GET" "/v1/apps/{app}/machines/{machine}/versions" Read;
    /// Labels of a machine; changes make no new version and need no lease.
    MACHINE_METADATA_GET = "GET" "/v1/apps/{app}/machines/{machine}/metadata" Read;
    /// Replaces the labels of a machine.
    MACHINE_METADATA_PUT = "PUT" "/v1/apps/{app}/machines/{machine}/metadata" Write Unleased;
    /// Changes labels of a machine, the others stay.
    MACHINE_METADATA_PATCH = "PATCH" "/v1/apps/{app}/machines/{machine}/metadata" Write Unleased;
    /// One label of a machine.
    MACHINE_METADATA_KEY_GET =
        "GET" "/v1/apps/{app}/machines/{machine}/metadata/{key}" Read;
    /// Sets one label of a machine.
    MACHINE_METADATA_KEY_SET =
        "POST" "/v1/apps/{app}/machines/{machine}/metadata/{key}" Write Unleased;
    /// Takes one label of a machine away.
    MACHINE_METADATA_KEY_DELETE =
        "DELETE" "/v1/apps/{app}/machines/{machine}/metadata/{key}" Write Unleased;
    /// Machines of an organization, page by page, the one that changed longest ago first (contract
    /// 1.7).
    ///
    /// - `include_deleted: bool` also those that were destroyed, as long as they are remembered
    /// - `region: String` only in these regions, with commas between them
    /// - `state: String` only in these states, with commas between them
    /// - `summary: bool` without config
    /// - `metadata.{key}: String` only with this label; may be repeated with other keys
    /// - `updated_after: Timestamp` only those that changed after this
    /// - `cursor: String` where the page before ended; wins over `updated_after`
    /// - `limit: 1..=1000` at most so many; default 1000
    ORG_MACHINES = "GET" "/v1/orgs/{org}/machines" Read;
    /// From where requests may be sent on (`fly-replay`) to an organization's apps, beside their own
    /// network (contract 4.3).
    ORG_REPLAY_SOURCES_GET = "GET" "/v1/orgs/{org}/replay_sources" Read;
    /// Says anew from where requests may be sent on to an organization's apps: the whole of it, and
    /// what is left out is not allowed. Requests follow it within a moment.
    ORG_REPLAY_SOURCES_SET = "PUT" "/v1/orgs/{org}/replay_sources" Write;
    /// Log records of a machine as lines of JSON.
    ///
    /// - `from_seq: u64` from this record on
    /// - `last: u64` only so many of the newest
    /// - `follow: bool` keep the answer open for what is still to come
    /// - `answer application/x-ndjson: LogRecord` One record a line.
    MACHINE_LOGS = "GET" "/v1/apps/{app}/machines/{machine}/logs" Read;
    /// Secrets of an app, by name and digest (contract 1.9).
    ///
    /// - `min_version: u64` refuse when the app has only older ones
    /// - `version: u64` the same, under its other name
    /// - `show_secrets: bool` refused when true: values can be written and not read
    SECRETS_LIST = "GET" "/v1/apps/{app}/secrets" Read;
    /// Sets and takes away secrets, all at once.
    SECRETS_UPDATE = "POST" "/v1/apps/{app}/secrets" Write;
    /// One secret, by name and digest.
    ///
    /// - `min_version: u64` refuse when the app has only older ones
    /// - `version: u64` the same, under its other name
    /// - `show_secrets: bool` refused when true: values can be written and not read
    SECRET_GET = "GET" "/v1/apps/{app}/secrets/{secret_name}" Read;
    /// Sets a secret.
    SECRET_SET = "POST" "/v1/apps/{app}/secrets/{secret_name}" Write;
    /// Takes a secret away.
    SECRET_DELETE = "DELETE" "/v1/apps/{app}/secrets/{secret_name}" Write;
    /// Secret keys of an app, without what is secret of them (contract 1.9).
    ///
    /// - `types: String` only keys of these types, with commas between them
    /// - `min_version: u64` refused unless the app's secrets have this version or a later one
    SECRET_KEYS_LIST = "GET" "/v1/apps/{app}/secretkeys" Read;
    /// One secret key, without what is secret of it.
    ///
    /// - `min_version: u64` refused unless the app's secrets have this version or a later one
    SECRET_KEY_GET = "GET" "/v1/apps/{app}/secretkeys/{secret_name}" Read;
    /// Sets a secret key, also one that is there: what was encrypted with that cannot be decrypted
    /// any more.
    SECRET_KEY_SET = "POST" "/v1/apps/{app}/secretkeys/{secret_name}" Write;
    /// Makes a secret key that nobody ever sees; otherwise as setting one.
    SECRET_KEY_GENERATE = "POST" "/v1/apps/{app}/secretkeys/{secret_name}/generate" Write;
    /// Takes a secret key away.
    SECRET_KEY_DELETE = "DELETE" "/v1/apps/{app}/secretkeys/{secret_name}" Write;
    /// Encrypts with a secret key of type `xaes256gcm`, `nacl_box` or `nacl_secretbox`.
    ///
    /// - `min_version: u64` refused unless the app's secrets have this version or a later one
    SECRET_KEY_ENCRYPT = "POST" "/v1/apps/{app}/secretkeys/{secret_name}/encrypt" Write;
    /// Decrypts what was encrypted with the same key.
    ///
    /// - `min_version: u64` refused unless the app's secrets have this version or a later one
    SECRET_KEY_DECRYPT = "POST" "/v1/apps/{app}/secretkeys/{secret_name}/decrypt" Write;
    /// Signs with a secret key of another type.
    ///
    /// - `min_version: u64` refused unless the app's secrets have this version or a later one
    SECRET_KEY_SIGN = "POST" "/v1/apps/{app}/secretkeys/{secret_name}/sign" Write;
    /// Verifies a signature of the same key.
    ///
    /// - `min_version: u64` refused unless the app's secrets have this version or a later one
    SECRET_KEY_VERIFY = "POST" "/v1/apps/{app}/secretkeys/{secret_name}/verify" Write;
    /// Newest log records of an app in the contract's shape (3.5).
    ///
    /// - `next_token: String` go on where an answer before ended
    /// - `instance: String` only of this machine
    /// - `region: String` only of machines in this region
    APP_LOGS = "GET" "/api/v1/apps/{app}/logs" Read;
    /// Builds an image of a context and pushes it under the app's name.
    ///
    /// - `header perch-build: BuildRequest` what to build, as JSON
    /// - `body application/x-tar: bytes` the context, packed with tar, plain or compressed with
    ///   gzip
    /// - `answer application/x-ndjson: BuildEvent` One event a line; the last one says how it
    ///   ended.
    APP_BUILD = "POST" "/v1/apps/{app}/builds" Write;
    /// Volumes of an app, in the order in which they were made (contract 1.8). Destroyed ones are
    /// there while their data is kept.
    ///
    /// - `summary: bool` without how full they are
    VOLUMES_LIST = "GET" "/v1/apps/{app}/volumes" Read;
    /// A new volume, empty or made of a snapshot or of another volume. It is not encrypted and its
    /// file system is XFS, whatever is asked for; the answer says so.
    VOLUMES_CREATE = "POST" "/v1/apps/{app}/volumes" Write;
    /// One volume.
    VOLUME_GET = "GET" "/v1/apps/{app}/volumes/{volume}" Read;
    /// Changes how a volume's snapshots are kept and made.
    VOLUME_UPDATE = "PUT" "/v1/apps/{app}/volumes/{volume}" Write;
    /// Destroys a volume that no machine has; its data is kept for a day.
    VOLUME_DELETE = "DELETE" "/v1/apps/{app}/volumes/{volume}" Write;
    /// Makes a volume larger.
    VOLUME_EXTEND = "PUT" "/v1/apps/{app}/volumes/{volume}/extend" Write;
    /// Snapshots of a volume, newest first.
    SNAPSHOTS_LIST = "GET" "/v1/apps/{app}/volumes/{volume}/snapshots" Read;
    /// A new snapshot of a volume.
    SNAPSHOTS_CREATE = "POST" "/v1/apps/{app}/volumes/{volume}/snapshots" Write;
    /// Volumes of an organization, page by page (contract 1.7).
    ///
    /// - `include_deleted: bool` also those that are to be destroyed
    /// - `region: String` only in these regions, with commas between them
    /// - `state: String` only in these states, with commas between them
    /// - `summary: bool` without how full they are
    /// - `updated_after: Timestamp` only those that changed after
    /// - `cursor: String` go on where the page with this `next_cursor` ended
    /// - `limit: 1..=1000` how many at most
    ORG_VOLUMES = "GET" "/v1/orgs/{org}/volumes" Read;
    /// Addresses of an app (contract 1.11): those of the server at which it is to be reached.
    IPS_LIST = "GET" "/v1/apps/{app}/ip_assignments" Read;
    /// Assigns one of the server's public addresses to an app. One that it has is answered again.
    IPS_ASSIGN = "POST" "/v1/apps/{app}/ip_assignments" Write;
    /// Releases an address of an app.
    IP_RELEASE = "DELETE" "/v1/apps/{app}/ip_assignments/{ip}" Write;
    /// Network policies of an app (contract 1.11), in the order in which they were made.
    NETWORK_POLICIES_LIST = "GET" "/v1/apps/{app}/network_policies" Read;
    /// The same, as the contract spells it.
    NETWORK_POLICIES_LIST_SLASH = "GET" "/v1/apps/{app}/network_policies/" Read;
    /// Makes a network policy, or changes the one whose id the body has. It holds for a machine from
    /// its next start. A rule closes its direction for everything that no rule allows; what comes
    /// through the edge is not affected.
    NETWORK_POLICY_SET = "POST" "/v1/apps/{app}/network_policies" Write;
    /// Takes a network policy away; machines follow at their next start.
    NETWORK_POLICY_DELETE = "DELETE" "/v1/apps/{app}/network_policies/{policy}" Write;
    /// Certificates of an app's host names (contract 1.10), page by page, by host name.
    ///
    /// - `filter: String` only host names that have this in them
    /// - `cursor: String` go on where the page with this `next_cursor` ended
    /// - `limit: 1..=500` how many at most; default 25
    CERTIFICATES_LIST = "GET" "/v1/apps/{app}/certificates" Read;
    /// Has a certificate ordered for a host name, which leads to the app from then on. One that is
    /// wanted already is answered again. The answer has the records to set; the order goes on by
    /// itself, and says in `validation_errors` what stands in its way.
    CERTIFICATE_ACME = "POST" "/v1/apps/{app}/certificates/acme" Write;
    /// Uploads a certificate and its private key for a host name, which leads to the app from then
    /// on. It is served before one that the platform got, until it ends.
    CERTIFICATE_CUSTOM = "POST" "/v1/apps/{app}/certificates/custom" Write;
    /// One certificate.
    CERTIFICATE_GET = "GET" "/v1/apps/{app}/certificates/{hostname}" Read;
    /// Removes all of a host name: its certificates, its order, and that it leads to the app.
    CERTIFICATE_DELETE = "DELETE" "/v1/apps/{app}/certificates/{hostname}" Write;
    /// Removes what the platform got for a host name, and orders no more.
    CERTIFICATE_ACME_DELETE = "DELETE" "/v1/apps/{app}/certificates/{hostname}/acme" Write;
    /// Removes what was uploaded for a host name.
    CERTIFICATE_CUSTOM_DELETE = "DELETE" "/v1/apps/{app}/certificates/{hostname}/custom" Write;
    /// Looks at a host name's records now, and has an order that waits for them go on.
    CERTIFICATE_CHECK = "POST" "/v1/apps/{app}/certificates/{hostname}/check" Write;
    /// Where machines would be placed now, region by region (contract 1.11). Nothing is reserved.
    PLACEMENTS = "POST" "/v1/platform/placements" Read;
    /// Regions, and which is nearest (contract 1.11).
    REGIONS = "GET" "/v1/platform/regions" Read;
    /// What this platform is: domain, ports, version.
    PLATFORM = "GET" "/v1/platform" Read;
    /// What takes the servers' disks.
    SYSTEM_USAGE = "GET" "/v1/platform/usage" Operate;
    /// Deletes images that no machine names.
    SYSTEM_PRUNE = "POST" "/v1/platform/prune" Operate;
    /// Images in the platform's registry.
    IMAGES_LIST = "GET" "/v1/images" Read;
    /// Makes the base images.
    ///
    /// - `header perch-build-force: String` `1` makes those anew that exist
    /// - `answer application/x-ndjson: BuildEvent` One event a line; the last one says how it
    ///   ended.
    IMAGES_BOOTSTRAP = "POST" "/v1/images/bootstrap" Operate;
    /// What the caller's token is (contract 1.12).
    TOKEN_CURRENT = "GET" "/v1/tokens/current" Read;
    /// A signed token that says which machine asks (contract 1.12), for ten minutes. Only a machine
    /// may ask, from inside: over `/.fly/api`.
    ///
    /// - `answer text/plain: String` The token, a JWT.
    TOKEN_OIDC = "POST" "/v1/tokens/oidc" Read;
    /// What the tokens of a header are, those that are known and hold.
    TOKENS_AUTHENTICATE = "POST" "/v1/tokens/authenticate" Read;
    /// Whether a header's tokens allow something.
    TOKENS_AUTHORIZE = "POST" "/v1/tokens/authorize" Read;
    /// Always refused: this platform has no such service.
    ///
    /// - `answer text/plain: String` Never.
    TOKEN_KMS = "POST" "/v1/tokens/kms" Read;
    /// This document.
    ///
    /// - `answer application/json: object` The document, in the shape of OpenAPI 3.0.
    OPENAPI = "GET" "/v1/openapi.json" Public;
    /// A page to read this document.
    ///
    /// - `answer text/html: String` The page.
    REFERENCE = "GET" "/v1/docs" Public;
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

    /// What changes a machine and needs no nonce is the lease itself and labels, nothing else.
    #[test]
    fn whatever_changes_a_machine_needs_its_lease() {
        let open: Vec<&str> = ALL
            .iter()
            .filter(|it| it.path.contains(MACHINE_PARAMETER) && it.action == Action::Write)
            .filter(|it| !it.needs_lease())
            .map(|it| it.path.rsplit(MACHINE_PARAMETER).next().unwrap())
            .collect();
        assert!(open.contains(&"/lease"));
        assert!(open.iter().all(|it| it.starts_with("/lease") || it.starts_with("/metadata")));
        for guarded in [MACHINE_UPDATE, MACHINE_DELETE, MACHINE_START, MACHINE_CORDON] {
            assert!(guarded.needs_lease(), "{guarded:?}");
        }
        for free in [MACHINE_GET, MACHINES_CREATE, APP_DELETE, MACHINE_EXEC] {
            assert!(!free.needs_lease(), "{free:?}");
        }
    }

    #[test]
    fn no_endpoint_is_listed_twice() {
        let mut seen: Vec<_> = ALL.iter().map(|e| (e.method, e.path)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), ALL.len());
    }
}
