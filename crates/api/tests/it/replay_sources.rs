//! From where requests may be sent on to an organization's apps: said, told, taken back.

use perch_types::OrgSlug;
use perch_types::replays::{ReplaySources, SOURCES_MAX};
use serde_json::json;

use crate::cloud::{ADMIN, Cloud};

const PATH: &str = "/v1/orgs/personal/replay_sources";

#[tokio::test]
async fn an_organization_says_from_where_requests_come_and_takes_it_back() {
    let cloud = Cloud::start().await;
    let (api, org) = (&cloud.admin, OrgSlug::personal());
    assert_eq!(api.replay_sources(&org).await.unwrap(), none());
    let friends: OrgSlug = "friends".parse().unwrap();
    let wanted = ReplaySources {
        allow_all_cross_network_replays: true,
        // Its own name says nothing, and one is said once.
        allowed_replay_source_org_slugs: vec![friends.clone(), org.clone(), friends.clone()],
    };
    let kept = ReplaySources { allowed_replay_source_org_slugs: vec![friends], ..wanted.clone() };
    assert_eq!(api.set_replay_sources(&org, &wanted).await.unwrap(), kept);
    assert_eq!(api.replay_sources(&org).await.unwrap(), kept);
    assert_eq!(cloud.keys("replay_sources/").await, ["replay_sources/personal"]);
    // What is not said any more is not allowed, and what says nothing is not kept.
    let (status, _, body) = cloud.raw(("PUT", PATH), Some(ADMIN), "{}").await;
    assert_eq!((status, serde_json::from_slice::<ReplaySources>(&body).unwrap()), (200, none()));
    assert!(cloud.keys("replay_sources/").await.is_empty());
    assert_eq!(api.set_replay_sources(&org, &none()).await.unwrap(), none());
}

fn none() -> ReplaySources {
    ReplaySources::default()
}

#[tokio::test]
async fn what_names_no_organization_or_too_many_is_refused_by_its_path() {
    let cloud = Cloud::start().await;
    let slugs = |count: usize| -> Vec<String> { (0..count).map(|it| format!("o{it}")).collect() };
    for (slugs, want) in [
        (json!(["UP"]), (400, "allowed_replay_source_org_slugs[0]: ")),
        (json!(slugs(SOURCES_MAX + 1)), (422, "allowed_replay_source_org_slugs: 65 are more")),
    ] {
        let body = json!({"allowed_replay_source_org_slugs": slugs}).to_string();
        let (status, error) = cloud.error(("PUT", PATH), Some(ADMIN), body).await;
        assert_eq!(status, want.0, "{error}");
        assert!(error.error.starts_with(want.1), "{error}");
    }
    let all = json!({"allowed_replay_source_org_slugs": slugs(SOURCES_MAX)}).to_string();
    assert_eq!(cloud.raw(("PUT", PATH), Some(ADMIN), all).await.0, 200);
}
