//! Certificates by name, whose connection it is, and what TLS is spoken.

use perch_types::OrgSlug;
use rustls::CipherSuite;

use super::*;

fn app(name: &str) -> AppKey {
    AppKey { org: OrgSlug::personal(), name: name.parse().unwrap() }
}

#[test]
fn e1_a_host_is_asked_for_only_over_a_connection_to_its_tenant() {
    let web = Secure { name: "web.d".to_owned(), tenant: Some(app("web")) };
    let nobody = Secure { name: "free.d".to_owned(), tenant: None };
    for (secure, host, asked, want) in [
        (&web, "web.d", Some(app("web")), true),
        // Another name of the same app.
        (&web, "shop.example", Some(app("web")), true),
        (&web, "other.d", Some(app("other")), false),
        // The name has changed hands since the handshake.
        (&web, "web.d", Some(app("other")), false),
        // The app has been destroyed since.
        (&web, "web.d", None, true),
        (&web, "free.d", None, false),
        (&nobody, "free.d", None, true),
        (&nobody, "free.d", Some(app("web")), true),
        (&nobody, "web.d", Some(app("web")), false),
        (&nobody, "other.d", None, false),
    ] {
        assert_eq!(secure.admits(host, asked.as_ref()), want, "{secure:?} {host} {asked:?}");
    }
}

#[test]
fn e9_no_two_tenants_share_a_scope_of_sessions() {
    let scope = |tenant, name: &str| Secure { name: name.to_owned(), tenant }.session_scope();
    let mut all = [
        scope(Some(app("web")), "web.d"),
        scope(Some(app("personal")), "web.d"),
        scope(None, "web.d"),
        scope(None, "personal.d"),
    ];
    all.sort_unstable();
    assert!(all.windows(2).all(|two| two[0] != two[1]), "{all:?}");
    assert_eq!(scope(Some(app("web")), "web.d"), scope(Some(app("web")), "shop.example"));
}

/// Contract 4.1.
#[test]
fn e9_the_suites_are_the_contracts_and_nothing_else() {
    use CipherSuite as S;
    let mut have: Vec<CipherSuite> =
        provider().cipher_suites.iter().map(rustls::SupportedCipherSuite::suite).collect();
    let mut want = vec![
        S::TLS13_AES_128_GCM_SHA256,
        S::TLS13_AES_256_GCM_SHA384,
        S::TLS13_CHACHA20_POLY1305_SHA256,
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    have.sort_by_key(|suite| format!("{suite:?}"));
    want.sort_by_key(|suite| format!("{suite:?}"));
    assert_eq!(have, want);
}

#[derive(Debug)]
struct Named(&'static str, Arc<CertifiedKey>);

impl Certificates for Named {
    fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        (name == self.0).then(|| Arc::clone(&self.1))
    }

    fn challenge(&self, _: &str) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn http_challenge(&self, host: &str, token: &str) -> Option<String> {
        (host == self.0).then(|| format!("{token}.{host}"))
    }
}

#[test]
fn a_names_own_certificate_comes_before_the_wildcard_and_the_first_holder_before_others() {
    let key = || Arc::new(self_signed(&aws_lc_rs::default_provider()).unwrap());
    let (own, wild, later) = (key(), key(), key());
    let all: Vec<Arc<dyn Certificates>> = vec![
        Arc::new(Named("web.d", Arc::clone(&own))),
        Arc::new(Named("*.d", Arc::clone(&wild))),
        Arc::new(Named("*.d", later)),
    ];
    let first = FirstOf(all);
    assert_eq!(first.http_challenge("web.d", "t").as_deref(), Some("t.web.d"));
    let tls = Tls::new(Arc::new(first)).unwrap();
    let is = |name: &str, want: Option<&Arc<CertifiedKey>>| {
        let found = tls.certificate(name);
        assert!(found.as_ref().map(Arc::as_ptr) == want.map(Arc::as_ptr), "{name}");
    };
    is("web.d", Some(&own));
    is("other.d", Some(&wild));
    // A wildcard is for one label.
    is("a.other.d", None);
    is("d", None);
}
