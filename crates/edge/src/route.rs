//! From a request's host name to an app.
//!
//! Never guesses: one valid host name, or no route. Pure.

use std::net::Ipv6Addr;

use http::header::HOST;
use http::request::Parts;
use perch_types::AppName;
use perch_types::view::View;

use crate::cause::Cause;
use crate::live::AppKey;

/// The longest host name (RFC 1035, section 2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// Returns the one host name of a request, in lower case and without its port.
///
/// A request with no Host, with several, with one that is no host name, or with one that differs
/// from its absolute target is refused (RFC 9112, section 3.2). Its framing was judged before.
pub(crate) fn host_of(request: &Parts) -> Result<String, Cause> {
    let mut values = request.headers.get_all(HOST).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Cause::BadRequest);
    };
    let authority = value.to_str().map_err(|_| Cause::BadRequest)?;
    let host = host_in(authority).ok_or(Cause::BadRequest)?;
    if let Some(target) = request.uri.authority()
        && !target.as_str().eq_ignore_ascii_case(authority)
    {
        return Err(Cause::BadRequest);
    }
    Ok(host)
}

/// Returns the host name of an authority, in lower case and without its port, if it is one.
pub(crate) fn host_in(authority: &str) -> Option<String> {
    without_port(authority).map(str::to_ascii_lowercase)
}

fn without_port(authority: &str) -> Option<&str> {
    if authority.starts_with('[') {
        return address_without_port(authority);
    }
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        Some(_) => return None,
        None => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let fine = (1..=HOST_BYTES_MAX).contains(&host.len())
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    fine.then_some(host)
}

/// Takes the port off an address of IPv6: a host like any other, though no app has it.
fn address_without_port(authority: &str) -> Option<&str> {
    let (address, port) = authority.strip_prefix('[')?.split_once(']')?;
    let is_port = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    let is_address = is_port && address.parse::<Ipv6Addr>().is_ok();
    authority.get(..address.len() + 2).filter(|_| is_address)
}

/// Returns the app that a host name leads to: `<app>.<domain>`, or a name that was claimed.
pub(crate) fn app_of(host: &str, domain: &str, view: &View) -> Option<AppKey> {
    let of_domain = host
        .strip_suffix(domain)
        .and_then(|rest| rest.strip_suffix('.'))
        .and_then(|label| label.parse::<AppName>().ok())
        .and_then(|name| view.app(&name))
        .map(|app| AppKey { org: app.org.clone(), name: app.name.clone() });
    of_domain.or_else(|| {
        let claim = view.hostname(host)?;
        Some(AppKey { org: claim.org.clone(), name: claim.app.clone() })
    })
}

#[cfg(test)]
mod tests {
    use perch_types::directory::{AppDoc, Document as _, HostnameClaim};
    use perch_types::{OrgSlug, Timestamp};

    use super::*;

    fn parts(headers: &[(&'static str, &'static str)], target: &'static str) -> Parts {
        let mut request = http::Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn one_valid_host_is_taken_and_anything_else_refused() {
        let ok = |value| Ok::<String, Cause>(String::from(value));
        for (headers, target, want) in [
            (&[("host", "Web.Example:8080")][..], "/", ok("web.example")),
            (&[("host", "web.example.")], "/", ok("web.example")),
            (&[("host", "web.example")], "http://web.example/a", ok("web.example")),
            (&[], "/", Err(Cause::BadRequest)),
            (&[("host", "a"), ("host", "a")], "/", Err(Cause::BadRequest)),
            (&[("host", "")], "/", Err(Cause::BadRequest)),
            (&[("host", "a b")], "/", Err(Cause::BadRequest)),
            (&[("host", "a:b")], "/", Err(Cause::BadRequest)),
            (&[("host", "a..b")], "/", Err(Cause::BadRequest)),
            (&[("host", "user@a")], "/", Err(Cause::BadRequest)),
            (&[("host", "a")], "http://b/", Err(Cause::BadRequest)),
            (&[("host", "[::1]")], "/", ok("[::1]")),
            (&[("host", "[2001:DB8::1]:80")], "/", ok("[2001:db8::1]")),
            (&[("host", "[::1")], "/", Err(Cause::BadRequest)),
            (&[("host", "[::1]a")], "/", Err(Cause::BadRequest)),
            (&[("host", "[a]")], "/", Err(Cause::BadRequest)),
            (&[("host", "[]")], "/", Err(Cause::BadRequest)),
            (&[("host", "::1")], "/", Err(Cause::BadRequest)),
        ] {
            assert_eq!(host_of(&parts(headers, target)), want, "{headers:?} {target}");
        }
    }

    #[test]
    fn a_name_leads_to_its_app_and_to_no_other() {
        let org = OrgSlug::personal();
        let app: AppName = "web".parse().unwrap();
        let doc = AppDoc {
            id: "a1".to_owned(),
            number: 1,
            name: app.clone(),
            org: org.clone(),
            network: "default".to_owned(),
            network_id: 1,
            role: None,
            created_at: Timestamp::UNIX_EPOCH,
        };
        let claim = HostnameClaim { org: org.clone(), app: app.clone() };
        let key = AppKey { org: org.clone(), name: app.clone() };
        // Its app is gone, and the name is another organization's now.
        let stale = HostnameClaim { org: "gone".parse().unwrap(), app: app.clone() };
        let gone = AppKey { org: stale.org.clone(), name: app.clone() };
        let mut view = View::default();
        view.apply(&AppDoc::key(&(org, app)), Some(&serde_json::to_vec(&doc).unwrap())).unwrap();
        view.apply(
            &HostnameClaim::key(&("shop.example".to_owned(),)),
            Some(&serde_json::to_vec(&claim).unwrap()),
        )
        .unwrap();
        view.apply(
            &HostnameClaim::key(&("old.example".to_owned(),)),
            Some(&serde_json::to_vec(&stale).unwrap()),
        )
        .unwrap();
        for (host, want) in [
            ("web.perch.localhost", Some(&key)),
            ("shop.example", Some(&key)),
            ("old.example", Some(&gone)),
            ("other.perch.localhost", None),
            ("perch.localhost", None),
            ("a.web.perch.localhost", None),
            ("webperch.localhost", None),
            ("web.perch.localhost.evil", None),
        ] {
            assert_eq!(app_of(host, "perch.localhost", &view).as_ref(), want, "{host}");
        }
    }
}
