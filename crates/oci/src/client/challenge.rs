//! `WWW-Authenticate` of a registry (RFC 9110, Docker's token authentication).
//!
//! Never acts on it.

/// The longest header that is looked at.
const HEADER_BYTES_MAX: usize = 8192;

/// What the registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password with each request.
    Basic,
    /// A token from the server at `realm`.
    Bearer { realm: String, service: Option<String> },
}

/// Parses one challenge; other schemes give nothing.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let header = header.trim();
    if header.len() > HEADER_BYTES_MAX {
        return None;
    }
    let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    let mut rest = rest;
    while let Some((key, value, after)) = parameter(rest) {
        match key.to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            _ => {}
        }
        rest = after;
    }
    realm.map(|realm| Challenge::Bearer { realm, service })
}

/// Splits off `key="value"` or `key=value`.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let text = text.trim_start_matches([' ', ',', '\t']);
    let (key, rest) = text.split_once('=')?;
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, after) = rest.split_once(',').unwrap_or((rest, ""));
        return Some((key.trim(), value.trim().to_owned(), after));
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return Some((key.trim(), value, characters.as_str())),
            '\\' => value.push(characters.next()?),
            other => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io""#;
        let bearer = |realm: &str, service: Option<&str>| {
            let service = service.map(str::to_owned);
            Some(Challenge::Bearer { realm: realm.to_owned(), service })
        };
        let token = "https://auth.docker.io/token";
        assert_eq!(parse(hub), bearer(token, Some("registry.docker.io")));
        assert_eq!(parse(r#"bearer scope="a,b=c", realm="r\"x""#), bearer("r\"x", None));
        assert_eq!(parse("Bearer realm=r,service=s"), bearer("r", Some("s")));
        assert_eq!(parse(r#"Basic realm="x""#), Some(Challenge::Basic));
        for text in ["", "Digest a=b", "Bearer", r#"Bearer realm="unfinished"#] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_fall_over(text in ".{0,200}") {
            let _either = parse(&format!("Bearer {text}"));
        }
    }
}
