//! Types of Rust as serde writes them become schemas of OpenAPI 3.0.
//!
//! Never guesses: a type whose shape serde does not derive has to be in [`by_hand`].

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use quote::ToTokens as _;
use serde_json::{Map, Value, json};
use syn::{Fields, GenericArgument, Item, PathArguments, Type};

use super::serde_words::{FieldWords, TypeWords};
use super::source::{Found, Source, TYPES};
use super::tables::{Codes, TextId, doc};

/// The module that is looked at first for the types that comments name.
const BODIES: &str = "types::api";

/// The schemas that are named, by their names.
pub(super) struct Schemas<'a> {
    source: &'a Source,
    pub(super) named: BTreeMap<String, Value>,
    from: BTreeMap<String, String>,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self { source, named: BTreeMap::new(), from: BTreeMap::new() }
    }

    /// Returns the schema of a type as written in a module.
    pub(super) fn of(&mut self, module: &str, ty: &Type) -> Result<Value> {
        match ty {
            Type::Reference(reference) => self.of(module, &reference.elem),
            Type::Paren(inner) => self.of(module, &inner.elem),
            Type::Slice(slice) => self.list(module, &slice.elem),
            Type::Array(array) => self.list(module, &array.elem),
            Type::Path(path) => self.of_path(module, &path.path),
            _ => bail!("a type in `{module}` has no schema: name one of serde's"),
        }
    }

    /// Returns the schema of a type that a comment names, from whichever module of `types` has it.
    pub(super) fn of_words(&mut self, ty: &Type) -> Result<Value> {
        let modules: Vec<&str> = self.source.modules.keys().map(String::as_str).collect();
        let of_types = modules.into_iter().filter(|module| module.starts_with(TYPES));
        let found = [BODIES].into_iter().chain(of_types).find_map(|it| self.of(it, ty).ok());
        found.with_context(|| format!("find `{}`", ty.to_token_stream()))
    }

    fn list(&mut self, module: &str, item: &Type) -> Result<Value> {
        Ok(json!({"type": "array", "items": self.of(module, item)?}))
    }

    fn of_path(&mut self, module: &str, path: &syn::Path) -> Result<Value> {
        let words: Vec<String> = path.segments.iter().map(|it| it.ident.to_string()).collect();
        let last = words.last().map(String::as_str).unwrap_or_default();
        let arguments = arguments(path);
        match (last, arguments.as_slice()) {
            ("Option", [inner]) => Ok(nullable(self.of(module, inner)?)),
            ("Box" | "Arc" | "Cow", [inner]) => self.of(module, inner),
            ("Vec" | "BTreeSet" | "HashSet", [inner]) => self.list(module, inner),
            ("BTreeMap" | "HashMap" | "Map", [_, value]) => {
                let values = self.of(module, value)?;
                Ok(json!({"type": "object", "additionalProperties": values}))
            }
            (name, []) => match plain(name) {
                Some(schema) => Ok(schema),
                None => self.of_name(module, &words),
            },
            _ => bail!("`{}` in `{module}` has no schema", words.join("::")),
        }
    }

    fn of_name(&mut self, module: &str, words: &[String]) -> Result<Value> {
        let found = self.source.resolve(module, words);
        let found = found.with_context(|| format!("find `{}` of `{module}`", words.join("::")))?;
        if let Item::Type(alias) = found.item {
            return self.of(found.module, &alias.ty);
        }
        let name = words.last().cloned().unwrap_or_default();
        if !found.module.starts_with(TYPES) {
            // What only one handler reads needs no name.
            return self.of_item(found).with_context(|| format!("describe `{name}`"));
        }
        match self.from.get(&name) {
            Some(from) if from != found.module => {
                bail!("`{name}` is in `{from}` and in `{}`: rename one", found.module)
            }
            Some(_) => {}
            None => {
                self.from.insert(name.clone(), found.module.to_owned());
                let schema = self.of_item(found).with_context(|| format!("describe `{name}`"))?;
                self.named.insert(name.clone(), schema);
            }
        }
        Ok(json!({"$ref": format!("#/components/schemas/{name}")}))
    }

    fn of_item(&mut self, found: Found<'a>) -> Result<Value> {
        match found.item {
            Item::Struct(item) => match by_hand(&item.ident.to_string()) {
                Some(schema) => Ok(described(schema, &doc(&item.attrs))),
                None => {
                    let words = TypeWords::of(&item.attrs)?;
                    let schema = self.of_struct(found.module, &words, &item.fields)?;
                    Ok(described(schema, &doc(&item.attrs)))
                }
            },
            Item::Enum(item) => match by_hand(&item.ident.to_string()) {
                Some(schema) => Ok(described(schema, &doc(&item.attrs))),
                None => self.of_enum(found.module, item),
            },
            Item::Macro(item) if item.mac.path.is_ident("text_id") => {
                let id: TextId = item.mac.parse_body()?;
                let schema = by_hand(&id.ident.to_string());
                let schema = schema.unwrap_or_else(|| json!({"type": "string"}));
                Ok(described(schema, &format!("{} {}.", id.doc, capital(&id.rule))))
            }
            Item::Macro(item) => {
                let codes: Codes = item.mac.parse_body()?;
                let lines = codes.0.iter().map(|it| format!("- `{}`: {}", it.text, it.doc));
                let text = format!("What went wrong.\n\n{}", lines.collect::<Vec<_>>().join("\n"));
                let words: Vec<_> = codes.0.iter().map(|code| code.text.as_str()).collect();
                Ok(json!({"type": "string", "enum": words, "description": text}))
            }
            _ => bail!("it is no type"),
        }
    }

    fn of_struct(&mut self, module: &str, words: &TypeWords, fields: &Fields) -> Result<Value> {
        if words.as_text {
            return Ok(json!({"type": "string"}));
        }
        match fields {
            Fields::Named(named) => {
                if words.transparent
                    && let Some(field) = named.named.first()
                {
                    return self.of(module, &field.ty);
                }
                self.of_fields(module, words, named)
            }
            Fields::Unnamed(unnamed) => match unnamed.unnamed.first() {
                Some(field) if unnamed.unnamed.len() == 1 => self.of(module, &field.ty),
                _ => bail!("a tuple has no schema"),
            },
            Fields::Unit => bail!("a struct without fields has no schema"),
        }
    }

    fn of_fields(
        &mut self,
        module: &str,
        words: &TypeWords,
        fields: &syn::FieldsNamed,
    ) -> Result<Value> {
        let mut object = Object::default();
        for field in &fields.named {
            let said = FieldWords::of(&field.attrs)?;
            if said.skip {
                continue;
            }
            let ident = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
            let ident = ident.trim_start_matches("r#");
            let name = said.rename.clone().unwrap_or_else(|| words.field_name(ident));
            let schema = self.of(module, &field.ty).with_context(|| format!("field `{name}`"))?;
            if said.flatten {
                let whole = self.resolved(&schema).clone();
                object.take_in(&whole);
                continue;
            }
            let schema = if said.null_is_default { nullable(schema) } else { schema };
            let is_option = schema.get("nullable").is_some();
            object.properties.insert(name.clone(), described(schema, &doc(&field.attrs)));
            if !is_option && !said.default && !words.default {
                object.required.push(name);
            }
        }
        Ok(object.into_schema())
    }

    /// Returns what a reference means.
    fn resolved<'s>(&'s self, schema: &'s Value) -> &'s Value {
        let name = schema.get("$ref").and_then(Value::as_str).and_then(|it| it.rsplit('/').next());
        name.and_then(|name| self.named.get(name)).unwrap_or(schema)
    }

    fn of_enum(&mut self, module: &str, item: &syn::ItemEnum) -> Result<Value> {
        let words = TypeWords::of(&item.attrs)?;
        let mut text = doc(&item.attrs);
        if item.variants.iter().all(|variant| matches!(variant.fields, Fields::Unit)) {
            let mut names = Vec::new();
            let mut lines = Vec::new();
            for variant in &item.variants {
                let said = FieldWords::of(&variant.attrs)?;
                let name = said.rename.unwrap_or_else(|| words.variant_name(&variant.ident));
                let about = doc(&variant.attrs);
                if !about.is_empty() {
                    lines.push(format!("- `{name}`: {about}"));
                }
                names.push(name);
            }
            if !lines.is_empty() {
                text = format!("{text}\n\n{}", lines.join("\n"));
            }
            return Ok(described(json!({"type": "string", "enum": names}), &text));
        }
        let mut choices = Vec::new();
        for variant in &item.variants {
            let said = FieldWords::of(&variant.attrs)?;
            let name = said.rename.unwrap_or_else(|| words.variant_name(&variant.ident));
            let content = match &variant.fields {
                Fields::Unit => None,
                fields => Some(self.of_struct(module, &TypeWords::default(), fields)?),
            };
            choices.push(described(choice(&words, &name, content), &doc(&variant.attrs)));
        }
        Ok(described(json!({"oneOf": choices}), &text))
    }
}

fn choice(words: &TypeWords, name: &str, content: Option<Value>) -> Value {
    let word = json!({"type": "string", "enum": [name]});
    match (&words.tag, content) {
        (_, Some(content)) if words.untagged => content,
        (_, None) if words.untagged => json!({"nullable": true}),
        (Some(tag), content) => {
            let mut object = Object::default();
            if let Some(content) = &content {
                object.take_in(content);
            }
            object.properties.insert(tag.clone(), word);
            object.required.push(tag.clone());
            object.into_schema()
        }
        (None, None) => word,
        (None, Some(content)) => {
            let mut object = Object::default();
            object.properties.insert(name.to_owned(), content);
            object.required.push(name.to_owned());
            object.into_schema()
        }
    }
}

#[derive(Debug, Default)]
struct Object {
    properties: Map<String, Value>,
    required: Vec<String>,
    others: Option<Value>,
}

impl Object {
    /// Takes in the fields of an object that is flattened into this one.
    fn take_in(&mut self, schema: &Value) {
        if let Some(Value::Object(properties)) = schema.get("properties") {
            self.properties.extend(properties.clone());
        }
        if let Some(Value::Array(required)) = schema.get("required") {
            self.required.extend(required.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        if let Some(others) = schema.get("additionalProperties") {
            self.others = Some(others.clone());
        }
    }

    fn into_schema(mut self) -> Value {
        self.required.sort();
        let mut schema = json!({"type": "object", "properties": self.properties});
        if !self.required.is_empty() {
            schema["required"] = json!(self.required);
        }
        if let Some(others) = self.others {
            schema["additionalProperties"] = others;
        }
        schema
    }
}

fn arguments(path: &syn::Path) -> Vec<Type> {
    let Some(PathArguments::AngleBracketed(list)) = path.segments.last().map(|it| &it.arguments)
    else {
        return Vec::new();
    };
    let types = list.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty.clone()),
        _ => None,
    });
    types.collect()
}

/// Returns the schema of a type of the standard library or of JSON itself.
fn plain(name: &str) -> Option<Value> {
    let integer = |format: &str, min: i64, max: Option<i64>| {
        let mut schema = json!({"type": "integer", "format": format, "minimum": min});
        if let Some(max) = max {
            schema["maximum"] = json!(max);
        }
        schema
    };
    Some(match name {
        "String" | "str" | "PathBuf" => json!({"type": "string"}),
        "bool" => json!({"type": "boolean"}),
        "u8" => integer("int32", 0, Some(i64::from(u8::MAX))),
        "u16" => integer("int32", 0, Some(i64::from(u16::MAX))),
        "u32" => integer("int64", 0, Some(i64::from(u32::MAX))),
        "u64" | "usize" => integer("int64", 0, None),
        "i32" => integer("int32", i64::from(i32::MIN), Some(i64::from(i32::MAX))),
        "i64" => json!({"type": "integer", "format": "int64"}),
        "f64" => json!({"type": "number", "format": "double"}),
        "Value" => json!({}),
        "Ipv4Addr" => json!({"type": "string", "format": "ipv4"}),
        "Ipv6Addr" => json!({"type": "string", "format": "ipv6"}),
        "IpAddr" => json!({"type": "string"}),
        _ => return None,
    })
}

/// Returns the shape of a type that writes and reads itself.
fn by_hand(name: &str) -> Option<Value> {
    let text = |pattern: &str| json!({"type": "string", "pattern": pattern});
    Some(match name {
        "Timestamp" => json!({"type": "string", "format": "date-time"}),
        "GoDuration" => json!({
            "oneOf": [
                {"type": "string", "pattern": r"^(0|(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+)$"},
                {"type": "integer", "format": "int64", "minimum": 0}
            ],
            "example": "15s"
        }),
        "Autostop" => json!({
            "oneOf": [
                {"type": "string", "enum": ["off", "stop", "suspend"]},
                {"type": "boolean"}
            ]
        }),
        "Octets" => json!({
            "oneOf": [
                {"type": "string", "format": "byte"},
                {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}
            ],
            "example": "aGVsbG8="
        }),
        "Secret" => json!({"type": "string", "format": "password"}),
        "Digest" => text("^sha256:[0-9a-f]{64}$"),
        "MachineId" => text("^[0-9a-f]{14}$"),
        "HostId" => text("^[0-9a-f]{12}$"),
        "VolumeId" => text("^vol_[0-9a-z]{16}$"),
        "SnapshotId" => text("^vs_[0-9a-z]{16}$"),
        "InstanceId" => text("^[0-7][0-9A-HJKMNP-TV-Z]{25}$"),
        "AppName" | "OrgSlug" => text("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
        "Region" => text("^[a-z0-9]{2,8}$"),
        _ => return None,
    })
}

/// Adds a description; beside a reference 3.0 allows none, so that is wrapped.
pub(super) fn described(mut schema: Value, text: &str) -> Value {
    if text.is_empty() {
        return schema;
    }
    if schema.get("$ref").is_some() {
        schema = json!({"allOf": [schema]});
    }
    schema["description"] = json!(text);
    schema
}

fn nullable(mut schema: Value) -> Value {
    if schema.get("$ref").is_some() {
        schema = json!({"allOf": [schema]});
    }
    schema["nullable"] = json!(true);
    schema
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema_of(text: &str) -> (Value, BTreeMap<String, Value>) {
        let source = Source::of_texts(&[("types::a", text)]);
        let mut schemas = Schemas::new(&source);
        let schema = schemas.of("types::a", &syn::parse_str("Root").unwrap()).unwrap();
        (schema, schemas.named)
    }

    #[test]
    fn a_struct_becomes_an_object_as_serde_writes_it() {
        let (schema, named) = schema_of(
            r#"/// A root.
            #[derive(Serialize)] struct Root {
                /// Which.
                #[serde(rename = "type")] kind: Kind,
                #[serde(default)] count: u16,
                name: Option<String>,
                #[serde(deserialize_with = "null_is_default", default)] list: Vec<Kind>,
                #[serde(skip)] secret: u8,
                #[serde(flatten)] other: Other,
            }
            #[serde(rename_all = "kebab-case")] enum Kind { /// One.
                OnFailure, No }
            type Other = Map<String, Value>;"#,
        );
        assert_eq!(schema, json!({"$ref": "#/components/schemas/Root"}));
        let kind = json!({"$ref": "#/components/schemas/Kind"});
        assert_eq!(
            named["Root"],
            json!({
                "type": "object", "description": "A root.", "additionalProperties": {},
                "required": ["type"],
                "properties": {
                    "type": {"allOf": [kind], "description": "Which."},
                    "count": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 65535},
                    "name": {"type": "string", "nullable": true},
                    "list": {"type": "array", "items": kind, "nullable": true},
                }
            })
        );
        assert_eq!(named["Kind"]["enum"], json!(["on-failure", "no"]));
    }

    #[test]
    fn an_enum_with_contents_becomes_choices() {
        let (_, named) = schema_of(
            r#"#[serde(tag = "event", rename_all = "snake_case")]
            enum Root { LogLine { line: String }, Done }"#,
        );
        let choices = &named["Root"]["oneOf"];
        assert_eq!(choices[0]["properties"]["event"]["enum"], json!(["log_line"]));
        assert_eq!(choices[0]["required"], json!(["event", "line"]));
        assert_eq!(choices[1]["required"], json!(["event"]));
        let (_, named) = schema_of("enum Root { Many(Vec<u8>), None }");
        assert_eq!(named["Root"]["oneOf"][1]["enum"], json!(["None"]));
        assert_eq!(named["Root"]["oneOf"][0]["required"], json!(["Many"]));
    }
}
