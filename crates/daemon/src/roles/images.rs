//! Who may read and write which repository of the platform's registry, and what lies in it.
//!
//! Never the registry itself: it asks here with a name and a scope.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use perch_api::{Identity, ImageCatalog, PushScope, PushTokens};
use perch_client::BoxError;
use perch_registry::{Access, Authorize, Basic, Decision, Registry};
use perch_store::ViewHandle;
use perch_types::api::ImageInfo;
use perch_types::image::{Digest, Reference};
use perch_types::view::View;
use perch_types::{AppName, Secret};
use subtle::ConstantTimeEq as _;

/// The first part of base images' repositories: everybody known may read them.
const BASE: &str = "base";

/// Decides who may do what to a repository.
///
/// A host reads everything; a build writes its app's repository; a token reads and writes the
/// repositories of its organization's apps; base images are the operator's to write.
pub(crate) struct Gatekeeper {
    host_token: Secret,
    view: ViewHandle,
    known: Arc<OnceLock<(Identity, PushTokens)>>,
}

impl fmt::Debug for Gatekeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gatekeeper")
    }
}

impl Gatekeeper {
    /// Makes a gatekeeper that refuses everybody but the host until the returned function is
    /// called: registry and API are made of each other's parts.
    pub(crate) fn new(
        host_token: &Secret,
        view: ViewHandle,
    ) -> (Self, impl FnOnce(Identity, PushTokens)) {
        let known = Arc::new(OnceLock::new());
        let fill = Arc::clone(&known);
        let gatekeeper = Self { host_token: host_token.clone(), view, known };
        (gatekeeper, move |identity, push_tokens| {
            fill.set((identity, push_tokens)).ok();
        })
    }
}

#[async_trait]
impl Authorize for Gatekeeper {
    async fn authorize(
        &self,
        credentials: Option<&Basic>,
        repository: &str,
        access: Access,
    ) -> Decision {
        let Some(credentials) = credentials else {
            return Decision::Unauthenticated;
        };
        let password = credentials.password.expose();
        if bool::from(password.as_bytes().ct_eq(self.host_token.expose().as_bytes())) {
            return decide(access == Access::Pull);
        }
        let Some((identity, push_tokens)) = self.known.get() else {
            return Decision::Unauthenticated;
        };
        let owner = repository.split('/').next().unwrap_or_default();
        if let Some(scope) = push_tokens.check(password) {
            let allowed = build_may(&scope, &self.view.load(), owner, access);
            return decide(repository.is_empty() || allowed);
        }
        match identity.authenticate(password).await {
            Ok(Some(_)) if repository.is_empty() => Decision::Allow,
            Ok(Some(principal)) if owner == BASE => {
                decide(access == Access::Pull || principal.operator)
            }
            Ok(Some(principal)) => {
                let app = owner.parse::<AppName>().ok();
                let view = self.view.load();
                let own = app
                    .and_then(|app| view.app(&app).map(|app| principal.reaches(&app.org, &app.id)))
                    .unwrap_or(false);
                decide(own)
            }
            Ok(None) => Decision::Unauthenticated,
            Err(error) => {
                tracing::warn!(%error, "registry credentials not checked");
                Decision::Unauthenticated
            }
        }
    }
}

/// Says whether a build with this scope may do that to the repositories of an owner.
fn build_may(scope: &PushScope, view: &View, owner: &str, access: Access) -> bool {
    let own = match scope {
        // The name alone would let a build outlive its app into the one that got the name next.
        PushScope::App { name, id } => {
            name.as_str() == owner && view.app(name).is_some_and(|app| app.id == *id)
        }
        PushScope::Base => owner == BASE,
    };
    let reads_base = owner == BASE && access == Access::Pull;
    reads_base || (own && access != Access::Delete)
}

const fn decide(allowed: bool) -> Decision {
    if allowed { Decision::Allow } else { Decision::Forbidden }
}

/// How long after its start, and after each end, the registry is looked through for garbage.
const COLLECT_EVERY: Duration = Duration::from_hours(1);

/// Removes from time to time what nothing in the registry refers to. Manifests that a machine runs
/// by digest stay, tag or no tag.
pub(crate) async fn collect(registry: Registry, view: ViewHandle) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(COLLECT_EVERY).await;
        // Without a live view nobody knows what machines run.
        if !view.is_live() {
            continue;
        }
        let used: BTreeSet<Digest> = view
            .load()
            .machines()
            .filter_map(|machine| machine.image.parse::<Reference>().ok()?.digest().cloned())
            .collect();
        match registry.gc(&used).await {
            Ok(report) => tracing::info!(
                blobs = report.blobs,
                manifests = report.manifests,
                uploads = report.uploads,
                bytes = report.bytes,
                "registry collected"
            ),
            Err(error) => tracing::warn!(%error, "registry not collected"),
        }
    }
}

/// What lies in the registry, for the API.
#[derive(Debug)]
pub(crate) struct Catalog(Registry);

impl Catalog {
    pub(crate) const fn new(registry: Registry) -> Self {
        Self(registry)
    }
}

#[async_trait]
impl ImageCatalog for Catalog {
    async fn images(&self) -> Result<Vec<ImageInfo>, BoxError> {
        Ok(self.0.images().await?)
    }

    async fn forget(&self, app: &AppName) -> Result<(), BoxError> {
        Ok(self.0.delete_repository(app.as_str()).await?)
    }
}

#[cfg(test)]
mod tests {
    use perch_types::Timestamp;
    use perch_types::directory::{AppDoc, Document as _};

    use super::*;

    fn view_with(name: &str, id: &str) -> View {
        let app = AppDoc {
            id: id.to_owned(),
            number: 1,
            name: name.parse().unwrap(),
            org: "one".parse().unwrap(),
            network: "default".to_owned(),
            network_id: 1,
            role: None,
            created_at: Timestamp::UNIX_EPOCH,
        };
        let mut view = View::default();
        let key = AppDoc::key(&(app.org.clone(), app.name.clone()));
        view.apply(&key, Some(&serde_json::to_vec(&app).unwrap())).unwrap();
        view
    }

    #[test]
    fn a_build_reaches_its_own_app_and_none_that_has_its_name_later() {
        let scope = PushScope::App { name: "web".parse().unwrap(), id: "app_first".to_owned() };
        let own = view_with("web", "app_first");
        let table = [
            (&own, "web", Access::Push, true),
            (&own, "web", Access::Pull, true),
            (&own, "web", Access::Delete, false),
            (&own, "api", Access::Pull, false),
            (&own, BASE, Access::Pull, true),
            (&own, BASE, Access::Push, false),
            (&view_with("web", "app_second"), "web", Access::Push, false),
            (&view_with("web", "app_second"), "web", Access::Pull, false),
            (&View::default(), "web", Access::Push, false),
        ];
        for (view, owner, access, allowed) in table {
            assert_eq!(build_may(&scope, view, owner, access), allowed, "{owner} {access:?}");
        }
        let view = View::default();
        assert!(build_may(&PushScope::Base, &view, BASE, Access::Push));
        assert!(!build_may(&PushScope::Base, &own, "web", Access::Pull));
    }
}
