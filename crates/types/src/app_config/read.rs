//! Reads the older and looser spellings of values (contract 2.1 and 2.5).
//!
//! Never guesses: a value that fits no spelling is an error that names what was expected.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{CheckSection, split_words};
use crate::service::{Concurrency, ConcurrencyKind, HttpHeader, Port};
use crate::time::GoDuration;

/// Reads one table or an array of them.
///
/// Reads the tables where they stand and not by way of a generic value, so that a fault in one
/// keeps its place in the file.
pub(super) fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table or an array of tables")
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            Ok(vec![T::deserialize(MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut many = Vec::new();
            while let Some(one) = list.next_element()? {
                many.push(one);
            }
            Ok(many)
        }
    }

    deserializer.deserialize_any(OneOrMany(PhantomData))
}

/// Reads a duration whose bare integers are milliseconds.
pub(super) fn milliseconds<'de, D>(deserializer: D) -> Result<Option<GoDuration>, D::Error>
where
    D: Deserializer<'de>,
{
    duration(deserializer, Duration::from_millis)
}

/// Reads a duration whose bare integers are seconds.
pub(super) fn seconds<'de, D>(deserializer: D) -> Result<Option<GoDuration>, D::Error>
where
    D: Deserializer<'de>,
{
    duration(deserializer, Duration::from_secs)
}

fn duration<'de, D>(
    deserializer: D,
    integer: fn(u64) -> Duration,
) -> Result<Option<GoDuration>, D::Error>
where
    D: Deserializer<'de>,
{
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) => match text.parse::<u64>() {
            Ok(number) => Ok(Some(GoDuration::new(integer(number)))),
            Err(_) => text.parse().map(Some).map_err(D::Error::custom),
        },
        Value::Number(number) => number
            .as_u64()
            .map(|number| Some(GoDuration::new(integer(number))))
            .ok_or_else(|| D::Error::custom("expected a duration such as \"15s\"")),
        _ => Err(D::Error::custom("expected a duration such as \"15s\"")),
    }
}

/// Reads headers: a table of names and values, or an array of tables of that form or the API's, or
/// of lines (contract 2.5).
pub(super) fn headers<'de, D>(deserializer: D) -> Result<Vec<HttpHeader>, D::Error>
where
    D: Deserializer<'de>,
{
    let bad = || D::Error::custom("expected a table such as {X-Forwarded-Proto = \"https\"}");
    let all = match Value::deserialize(deserializer)? {
        Value::Null => Vec::new(),
        Value::Array(all) => all,
        one => vec![one],
    };
    let mut headers = Vec::new();
    for one in all {
        match one {
            Value::String(line) => {
                let (name, value) = line.split_once(':').ok_or_else(bad)?;
                let values = vec![value.trim().to_owned()];
                headers.push(HttpHeader { name: name.trim().to_owned(), values });
            }
            Value::Object(table) if table.contains_key("name") && table.contains_key("values") => {
                headers.push(serde_json::from_value(table.into()).map_err(D::Error::custom)?);
            }
            Value::Object(table) => {
                for (name, value) in table {
                    let values = if let Value::Array(many) = value { many } else { vec![value] };
                    let values: Option<_> = values.iter().map(text_of).collect();
                    headers.push(HttpHeader { name, values: values.ok_or_else(bad)? });
                }
            }
            _ => return Err(bad()),
        }
    }
    Ok(headers)
}

/// Reads a map whose values are text, numbers or booleans, or an array of such maps.
pub(super) fn environment<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    let tables = match Value::deserialize(deserializer)? {
        Value::Null => Vec::new(),
        Value::Array(tables) => tables,
        table => vec![table],
    };
    let mut environment = BTreeMap::new();
    for table in tables {
        let Value::Object(table) = table else {
            return Err(D::Error::custom("expected a table of names and values"));
        };
        for (name, value) in table {
            let value = text_of(&value).ok_or_else(|| {
                D::Error::custom(format!(
                    "the value of `{name}` must be text, a number or a boolean"
                ))
            })?;
            environment.insert(name, value);
        }
    }
    Ok(environment)
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Reads `[processes]`, or the older array of `{name, command}`.
pub(super) fn processes<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    struct Process {
        name: String,
        #[serde(default)]
        command: String,
    }

    match Value::deserialize(deserializer)? {
        Value::Null => Ok(BTreeMap::new()),
        Value::Object(table) => table
            .into_iter()
            .map(|(name, command)| match command {
                Value::String(command) => Ok((name, command)),
                _ => Err(D::Error::custom(format!("the command of `{name}` must be text"))),
            })
            .collect(),
        Value::Array(list) => list
            .into_iter()
            .map(|entry| {
                serde_json::from_value::<Process>(entry)
                    .map(|process| (process.name, process.command))
                    .map_err(D::Error::custom)
            })
            .collect(),
        _ => Err(D::Error::custom("expected a table of process groups and commands")),
    }
}

/// Reads `[checks.NAME]`, or the array form with `name`.
pub(super) fn checks<'de, D>(deserializer: D) -> Result<BTreeMap<String, CheckSection>, D::Error>
where
    D: Deserializer<'de>,
{
    let check = |value| serde_json::from_value(value).map_err(D::Error::custom);
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(BTreeMap::new()),
        Value::Object(table) => {
            table.into_iter().map(|(name, value)| Ok((name, check(value)?))).collect()
        }
        Value::Array(list) => list
            .into_iter()
            .map(|mut value| {
                let name = value.as_object_mut().and_then(|table| table.remove("name"));
                let Some(Value::String(name)) = name else {
                    return Err(D::Error::custom("a check in a list needs a `name`"));
                };
                Ok((name, check(value)?))
            })
            .collect(),
        _ => Err(D::Error::custom("expected a table of checks")),
    }
}

/// Reads limits of load, or the older `"soft,hard"`.
pub(super) fn concurrency<'de, D>(deserializer: D) -> Result<Option<Concurrency>, D::Error>
where
    D: Deserializer<'de>,
{
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(pair) => {
            let limits = pair.split_once(',').and_then(|(soft, hard)| {
                Some((soft.trim().parse().ok()?, hard.trim().parse().ok()?))
            });
            let (soft, hard) =
                limits.ok_or_else(|| D::Error::custom("expected limits such as \"20,25\""))?;
            Ok(Some(Concurrency {
                kind: Some(ConcurrencyKind::Requests),
                soft_limit: Some(soft),
                hard_limit: Some(hard),
                ..Concurrency::default()
            }))
        }
        table => serde_json::from_value(table).map(Some).map_err(D::Error::custom),
    }
}

/// Reads a port, also written as text.
pub(super) fn port<'de, D>(deserializer: D) -> Result<u16, D::Error>
where
    D: Deserializer<'de>,
{
    optional_port(deserializer)?.ok_or_else(|| D::Error::custom(PORT_EXPECTED))
}

/// Reads a port, also written as text, or nothing.
pub(super) fn optional_port<'de, D>(deserializer: D) -> Result<Option<u16>, D::Error>
where
    D: Deserializer<'de>,
{
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        value => port_of(&value).map(Some).ok_or_else(|| D::Error::custom(PORT_EXPECTED)),
    }
}

const PORT_EXPECTED: &str = "expected a port from 1 to 65535";

fn port_of(value: &Value) -> Option<u16> {
    let port = match value {
        Value::Number(number) => u16::try_from(number.as_u64()?).ok()?,
        Value::String(text) => text.parse().ok()?,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    (port != 0).then_some(port)
}

/// Reads public ports, one or many, their numbers also written as text.
pub(super) fn ports<'de, D>(deserializer: D) -> Result<Vec<Port>, D::Error>
where
    D: Deserializer<'de>,
{
    let mut many: Vec<Value> = one_or_many(deserializer)?;
    for table in many.iter_mut().filter_map(Value::as_object_mut) {
        for key in ["port", "start_port", "end_port"] {
            if let Some(value) = table.get_mut(key) {
                let port = port_of(value)
                    .ok_or_else(|| D::Error::custom(format!("`{key}`: {PORT_EXPECTED}")))?;
                *value = Value::from(port);
            }
        }
    }
    many.into_iter().map(|port| serde_json::from_value(port).map_err(D::Error::custom)).collect()
}

/// Reads memory: `"512mb"`, `"1gb"`, `"512"`, or an integer of MiB.
pub(super) fn memory<'de, D>(deserializer: D) -> Result<Option<u32>, D::Error>
where
    D: Deserializer<'de>,
{
    let expected = || D::Error::custom("expected memory such as \"512mb\" or \"1gb\"");
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Number(number) => {
            number.as_u64().and_then(|mb| u32::try_from(mb).ok()).map(Some).ok_or_else(expected)
        }
        Value::String(text) => memory_mb(&text).map(Some).ok_or_else(expected),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(expected()),
    }
}

/// Reads a size: `"10gb"`, `"10"`, or an integer of GiB.
pub(super) fn gigabytes<'de, D>(deserializer: D) -> Result<Option<u32>, D::Error>
where
    D: Deserializer<'de>,
{
    let expected = || D::Error::custom("expected a size such as \"10GB\"");
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Number(number) => {
            number.as_u64().and_then(|gb| u32::try_from(gb).ok()).map(Some).ok_or_else(expected)
        }
        Value::String(text) if text.trim().bytes().all(|byte| byte.is_ascii_digit()) => {
            text.trim().parse().map(Some).map_err(|_| expected())
        }
        Value::String(text) => match memory_mb(&text) {
            Some(mb) if mb.is_multiple_of(1024) => Ok(Some(mb / 1024)),
            Some(_) | None => Err(expected()),
        },
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(expected()),
    }
}

fn memory_mb(text: &str) -> Option<u32> {
    let text = text.trim().to_ascii_lowercase();
    let (digits, scale) = match text.find(|c: char| !c.is_ascii_digit()) {
        None => (text.as_str(), 1),
        Some(end) => {
            let (digits, unit) = text.split_at(end);
            match unit.trim() {
                "mb" | "m" | "mib" => (digits, 1),
                "gb" | "g" | "gib" => (digits, 1024),
                _ => return None,
            }
        }
    };
    digits.parse::<u32>().ok()?.checked_mul(scale)
}

/// Reads a list of words, or one string that is split.
pub(super) fn words<'de, D>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(Vec::new()),
        Value::String(line) => split_words(&line).map_err(D::Error::custom),
        list => serde_json::from_value(list).map_err(D::Error::custom),
    }
}
