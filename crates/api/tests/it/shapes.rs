//! Reads the OpenAPI document for tests: its operations, samples of its schemas, and every field
//! of every body with values that are not its own.
//!
//! Never knows an endpoint: what a helper adds to the document is tested with it.

use serde_json::{Map, Value, json};

use crate::document::document;

/// How deep a body may be: all of it is looked into, and a type that holds itself is none that
/// can be.
const DEPTH_MAX: usize = 12;

/// Why a value is wrong that is none of the words that may stand there.
const NO_WORD: &str = "not a word of it";

/// One operation of the document.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) id: String,
    pub(crate) method: String,
    pub(crate) path: String,
    /// The body's schema, where it is JSON.
    pub(crate) body: Option<Value>,
    /// Parameters of the query: name and schema.
    pub(crate) query: Vec<(String, Value)>,
    /// Statuses that it may answer with.
    pub(crate) statuses: Vec<u16>,
}

impl Operation {
    /// Returns the names of the path's parameters.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').filter_map(parameter)
    }

    /// Returns the path with values for its parameters; what is not named keeps one that is
    /// nothing's.
    pub(crate) fn path_with(&self, values: &[(&str, &str)]) -> String {
        let parts = self.path.split('/').map(|part| {
            parameter(part).map_or(part, |name| {
                values.iter().find(|(known, _)| *known == name).map_or("nothing", |(_, it)| it)
            })
        });
        parts.collect::<Vec<_>>().join("/")
    }
}

/// What the document says.
#[derive(Debug)]
pub(crate) struct Shapes {
    document: Value,
    pub(crate) operations: Vec<Operation>,
}

/// A body with one field that is not as it should be.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// The field's path as errors write it.
    pub(crate) path: String,
    pub(crate) why: &'static str,
    /// What may stand there and has to be told, where that is a list of words.
    pub(crate) allowed: Vec<String>,
    pub(crate) body: Value,
}

impl Shapes {
    pub(crate) fn read() -> Self {
        let document = document();
        let mut operations = Vec::new();
        for (path, methods) in fields(&document["paths"]) {
            for (method, operation) in fields(methods) {
                operations.push(operation_of(path, method, operation));
            }
        }
        Self { document, operations }
    }

    /// Follows references.
    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        if let Some(path) = schema.get("$ref").and_then(Value::as_str) {
            return self.resolved(self.document.pointer(path.trim_start_matches('#')).unwrap());
        }
        match schema.get("allOf") {
            Some(Value::Array(parts)) => self.resolved(&parts[0]),
            _ => schema,
        }
    }

    /// Returns the smallest value of a schema: what is required and nothing else.
    pub(crate) fn sample(&self, schema: &Value) -> Value {
        let schema = self.resolved(schema);
        if let Some(example) = schema.get("example") {
            return example.clone();
        }
        if let Some(Value::Array(words)) = schema.get("enum") {
            return words[0].clone();
        }
        if let Some(Value::Array(choices)) = schema.get("oneOf") {
            return self.sample(&choices[0]);
        }
        match schema["type"].as_str() {
            Some("string") => match schema["format"].as_str() {
                Some("date-time") => json!("2026-01-01T00:00:00Z"),
                Some("ipv4") => json!("10.0.0.1"),
                Some("ipv6") => json!("fdaa::1"),
                _ => json!("web"),
            },
            Some("integer") => schema
                .get("minimum")
                .map_or_else(|| json!(1), |it| json!(it.as_i64().unwrap_or(0).max(1))),
            Some("number") => json!(1.5),
            Some("boolean") => json!(false),
            Some("array") => json!([]),
            Some("object") => {
                let mut object = Map::new();
                for name in required(schema) {
                    object.insert(name.to_owned(), self.sample(&schema["properties"][name]));
                }
                Value::Object(object)
            }
            _ => json!("web"),
        }
    }

    /// Returns the words of which a value has to be one; none where it may be another.
    pub(crate) fn words(&self, schema: &Value) -> Vec<String> {
        let words = self.resolved(schema)["enum"].as_array().map(Vec::as_slice);
        let words = words.unwrap_or_default().iter().filter_map(Value::as_str);
        words.map(str::to_owned).collect()
    }

    /// Returns bodies of a schema that each have one field of a wrong type, out of its range, or
    /// missing.
    pub(crate) fn wrong_bodies(&self, schema: &Value) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        let base = self.sample(schema);
        self.walk(schema, "", &mut |path, pointer, field| {
            for (why, value) in self.wrong_values(field) {
                let body = self.with(schema, &base, pointer, Some(value));
                let allowed = match why {
                    NO_WORD => self.words(field),
                    _ => Vec::new(),
                };
                wrong.push(Wrong { path: path.to_owned(), why, allowed, body });
            }
            let field = self.resolved(field);
            for name in required(field) {
                let mut pointer = pointer.to_vec();
                pointer.push(name.to_owned());
                let body = self.with(schema, &base, &pointer, None);
                let (path, allowed) = (format!("`{name}`"), Vec::new());
                wrong.push(Wrong { path, why: "missing", allowed, body });
            }
        });
        wrong
    }

    fn walk(&self, schema: &Value, path: &str, visit: &mut dyn FnMut(&str, &[String], &Value)) {
        self.walk_at(schema, path, &mut Vec::new(), visit);
    }

    fn walk_at(
        &self,
        schema: &Value,
        path: &str,
        pointer: &mut Vec<String>,
        visit: &mut dyn FnMut(&str, &[String], &Value),
    ) {
        assert!(pointer.len() <= DEPTH_MAX, "{path} is deeper than {DEPTH_MAX}");
        visit(path, pointer, schema);
        let schema = self.resolved(schema);
        let dot = if path.is_empty() { "" } else { "." };
        for (name, field) in fields(&schema["properties"]) {
            pointer.push(name.clone());
            self.walk_at(field, &format!("{path}{dot}{name}"), pointer, visit);
            pointer.pop();
        }
        if let Some(items) = schema.get("items") {
            pointer.push("0".to_owned());
            self.walk_at(items, &format!("{path}[0]"), pointer, visit);
            pointer.pop();
        }
        if let Some(values) = schema.get("additionalProperties").filter(|it| !fields(it).is_empty())
        {
            pointer.push("key".to_owned());
            self.walk_at(values, &format!("{path}{dot}key"), pointer, visit);
            pointer.pop();
        }
    }

    fn wrong_values(&self, schema: &Value) -> Vec<(&'static str, Value)> {
        let resolved = self.resolved(schema);
        if resolved.get("enum").is_some() {
            return vec![(NO_WORD, json!("no-such-word")), ("wrong type", json!(7))];
        }
        if resolved.get("oneOf").is_some() {
            return vec![("wrong type", json!([[]]))];
        }
        let mut values = match resolved["type"].as_str() {
            Some("string") => vec![("wrong type", json!(7)), ("wrong type", json!(["a"]))],
            Some("integer") => vec![("wrong type", json!("x")), ("wrong type", json!(1.5))],
            Some("number" | "boolean") => vec![("wrong type", json!("x"))],
            Some("array") => vec![("wrong type", json!(7)), ("wrong type", json!({"a": 1}))],
            Some("object") => vec![("wrong type", json!("x"))],
            _ => Vec::new(),
        };
        if let Some(least) = resolved["minimum"].as_i64() {
            values.push(("below its range", json!(least - 1)));
        }
        if let Some(most) = resolved["maximum"].as_i64() {
            values.push(("above its range", json!(most + 1)));
        }
        values
    }

    /// Returns `base` with a field at `pointer` set or removed; what stands between is made of
    /// samples.
    fn with(
        &self,
        schema: &Value,
        base: &Value,
        pointer: &[String],
        value: Option<Value>,
    ) -> Value {
        let Some((first, rest)) = pointer.split_first() else {
            return value.unwrap_or_default();
        };
        let schema = self.resolved(schema);
        if let Some(items) = schema.get("items") {
            let inner = self.sample(items);
            return json!([self.with(items, &inner, rest, value)]);
        }
        let mut object = base.as_object().cloned().unwrap_or_default();
        let field = schema["properties"].get(first).or_else(|| schema.get("additionalProperties"));
        let field = field.unwrap_or(&Value::Null);
        if rest.is_empty() && value.is_none() {
            object.remove(first);
        } else {
            let inner = object.get(first).cloned().unwrap_or_else(|| self.sample(field));
            object.insert(first.clone(), self.with(field, &inner, rest, value));
        }
        Value::Object(object)
    }
}

/// Returns the name of the parameter that a part of a path is.
fn parameter(part: &str) -> Option<&str> {
    part.strip_prefix('{')?.strip_suffix('}')
}

fn operation_of(path: &str, method: &str, operation: &Value) -> Operation {
    let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let query = parameters.iter().filter(|it| it["in"] == "query");
    let query = query.map(|it| (it["name"].as_str().unwrap().to_owned(), it["schema"].clone()));
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    let statuses = fields(&operation["responses"]);
    Operation {
        id: operation["operationId"].as_str().unwrap().to_owned(),
        method: method.to_uppercase(),
        path: path.to_owned(),
        body: (!body.is_null()).then(|| body.clone()),
        query: query.collect(),
        statuses: statuses.iter().map(|(status, _)| status.parse().unwrap()).collect(),
    }
}

fn required(schema: &Value) -> Vec<&str> {
    let names = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    names.iter().filter_map(Value::as_str).collect()
}

fn fields(value: &Value) -> Vec<(&String, &Value)> {
    value.as_object().map(Map::iter).map(Iterator::collect).unwrap_or_default()
}
