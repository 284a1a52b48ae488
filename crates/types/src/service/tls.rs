//! `tls_options` of a public port (contract 4.1).
//!
//! Never keeps a value that means nothing: what is read can be honoured.

use serde_json::Value;

use super::Port;

/// The key beside a port's others.
pub const TLS_OPTIONS: &str = "tls_options";
/// The most protocols that a port can name.
const PROTOCOLS_MAX: usize = 8;
/// The longest name of a protocol (RFC 7301, section 3.1).
const PROTOCOL_BYTES_MAX: usize = 255;

/// Versions of TLS that a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    #[default]
    Both,
    /// 1.2 alone.
    Only12,
    /// 1.3 alone.
    Only13,
}

/// How a port ends TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsOptions {
    /// The protocols that are offered, the most wanted first; empty means the port's usual ones.
    pub alpn: Vec<String>,
    /// Versions.
    pub versions: TlsVersions,
    /// Whether a name without a certificate gets one that nobody vouches for.
    pub default_self_signed: bool,
}

/// A value that cannot be honoured: where it is below `tls_options`, and what it may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {allowed}")]
pub struct BadTlsOptions {
    /// Such as `.alpn[1]`.
    pub path: String,
    /// Such as ``is not `h2` or `http/1.1```.
    pub allowed: &'static str,
}

fn bad(path: impl Into<String>, allowed: &'static str) -> BadTlsOptions {
    BadTlsOptions { path: path.into(), allowed }
}

impl TlsOptions {
    /// Reads the options of a port; a port that says nothing has the usual ones.
    ///
    /// # Errors
    /// When a key or a value is none that the contract has.
    pub fn of(port: &Port) -> Result<Self, BadTlsOptions> {
        let mut options = Self::default();
        let fields = match port.other.get(TLS_OPTIONS) {
            None | Some(Value::Null) => return Ok(options),
            Some(Value::Object(fields)) => fields,
            Some(_) => return Err(bad("", "is not an object")),
        };
        let is_http = !port.is_raw();
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("alpn" | "versions" | "default_self_signed", Value::Null) => {}
                ("alpn", value) => options.alpn = alpn(value, is_http)?,
                ("versions", value) => options.versions = versions(value)?,
                ("default_self_signed", Value::Bool(wanted)) => {
                    options.default_self_signed = *wanted;
                }
                ("default_self_signed", _) => {
                    return Err(bad(format!(".{key}"), "is not a boolean"));
                }
                _ => {
                    let known = "is not `alpn`, `versions` or `default_self_signed`";
                    return Err(bad(format!(".{key}"), known));
                }
            }
        }
        Ok(options)
    }
}

fn list<'a>(
    value: &'a Value,
    path: &'static str,
) -> Result<impl Iterator<Item = (String, Option<&'a str>)>, BadTlsOptions> {
    let items = value.as_array().ok_or_else(|| bad(path, "is not a list"))?;
    if items.len() > PROTOCOLS_MAX {
        return Err(bad(path, "has more than 8 items"));
    }
    let named = items.iter().enumerate();
    Ok(named.map(move |(index, item)| (format!("{path}[{index}]"), item.as_str())))
}

fn alpn(value: &Value, is_http: bool) -> Result<Vec<String>, BadTlsOptions> {
    let mut all = Vec::new();
    for (path, name) in list(value, ".alpn")? {
        let fine = name.filter(|name| match *name {
            "h2" | "http/1.1" => true,
            // A port of another protocol has that one's names.
            other => {
                !is_http
                    && (1..=PROTOCOL_BYTES_MAX).contains(&other.len())
                    && other.bytes().all(|byte| byte.is_ascii_graphic())
                    && other != "acme-tls/1"
            }
        });
        let allowed = if is_http {
            "is not `h2` or `http/1.1`"
        } else {
            "is not the name of a protocol, 1 to 255 characters"
        };
        all.push(fine.ok_or_else(|| bad(path, allowed))?.to_owned());
    }
    Ok(all)
}

fn versions(value: &Value) -> Result<TlsVersions, BadTlsOptions> {
    let (mut has_12, mut has_13) = (false, false);
    for (path, name) in list(value, ".versions")? {
        match name {
            Some("TLSv1.2") => has_12 = true,
            Some("TLSv1.3") => has_13 = true,
            _ => return Err(bad(path, "is not `TLSv1.2` or `TLSv1.3`")),
        }
    }
    Ok(match (has_12, has_13) {
        (true, false) => TlsVersions::Only12,
        (false, true) => TlsVersions::Only13,
        _ => TlsVersions::Both,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Handler;
    use super::*;

    fn port(options: Value, handlers: &[Handler]) -> Port {
        let mut port = Port { handlers: handlers.to_vec(), ..Port::default() };
        port.other.insert(TLS_OPTIONS.to_owned(), options);
        port
    }

    #[test]
    fn what_the_contract_has_is_read() {
        let http = [Handler::Tls, Handler::Http];
        assert_eq!(TlsOptions::of(&Port::default()), Ok(TlsOptions::default()));
        assert_eq!(TlsOptions::of(&port(Value::Null, &http)), Ok(TlsOptions::default()));
        let options = json!({"alpn": ["h2"], "versions": ["TLSv1.3"], "default_self_signed": true});
        let want = TlsOptions {
            alpn: vec!["h2".to_owned()],
            versions: TlsVersions::Only13,
            default_self_signed: true,
        };
        assert_eq!(TlsOptions::of(&port(options, &http)), Ok(want));
        let both = json!({"versions": ["TLSv1.3", "TLSv1.2"], "alpn": null});
        assert_eq!(TlsOptions::of(&port(both, &http)), Ok(TlsOptions::default()));
        let raw = TlsOptions::of(&port(json!({"alpn": ["mqtt"]}), &[Handler::Tls])).unwrap();
        assert_eq!(raw.alpn, ["mqtt"]);
    }

    #[test]
    fn anything_else_is_told_by_its_path_with_what_is_allowed() {
        for (options, want) in [
            (json!([]), ": is not an object"),
            (json!({"alpn": "h2"}), ".alpn: is not a list"),
            (json!({"alpn": ["h2", "h3"]}), ".alpn[1]: is not `h2` or `http/1.1`"),
            (json!({"alpn": vec!["h2"; 9]}), ".alpn: has more than 8 items"),
            (json!({"versions": ["TLSv1.1"]}), ".versions[0]: is not `TLSv1.2` or `TLSv1.3`"),
            (json!({"versions": [1]}), ".versions[0]: is not `TLSv1.2` or `TLSv1.3`"),
            (json!({"default_self_signed": 1}), ".default_self_signed: is not a boolean"),
            (
                json!({"ciphers": []}),
                ".ciphers: is not `alpn`, `versions` or `default_self_signed`",
            ),
        ] {
            let found = TlsOptions::of(&port(options.clone(), &[Handler::Http]));
            assert_eq!(found.unwrap_err().to_string(), want, "{options}");
        }
        TlsOptions::of(&port(json!({"alpn": ["acme-tls/1"]}), &[Handler::Tls])).unwrap_err();
    }
}
