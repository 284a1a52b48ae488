//! Endpoints and the signatures of their handlers become operations.
//!
//! Never lets one go without words, an answer, or a declared parameter.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use serde_json::{Map, Value, json};
use syn::{FnArg, Item, ItemFn, ReturnType, Type};

use super::schema::{Schemas, described};
use super::source::{API, Source, TYPES};
use super::tables::{Codes, Declared, EndpointLine, Endpoints, Kind};

/// Names of `http::StatusCode` that handlers answer with.
const STATUSES: [(&str, u16); 6] = [
    ("OK", 200),
    ("CREATED", 201),
    ("ACCEPTED", 202),
    ("NO_CONTENT", 204),
    ("PARTIAL_CONTENT", 206),
    ("SWITCHING_PROTOCOLS", 101),
];
/// Methods of the query's reader.
const READERS: [&str; 5] = ["get", "all", "flag", "parsed", "prefixed"];
/// What parameters of a path are.
const PATH_TYPES: [(&str, &str); 5] = [
    ("app", "AppName"),
    ("machine", "MachineId"),
    ("volume", "VolumeId"),
    ("org", "OrgSlug"),
    ("host", "HostId"),
];
const JSON: &str = "application/json";
/// What handlers take a body of JSON with (`api::body`).
const BODIES: [&str; 2] = ["Json", "SecretJson"];
/// The header with a lease's nonce (`types::endpoint`).
const LEASE_HEADER: &str = "fly-machine-lease-nonce";
const SCHEMA_ERROR: &str = "#/components/schemas/ApiError";

/// A handler: the module that has it and its function.
type Handler<'a> = (&'a str, &'a ItemFn);

/// Returns the paths of the document.
pub(super) fn paths(source: &Source, schemas: &mut Schemas<'_>) -> Result<Value> {
    let endpoints = endpoints(source)?;
    let handlers = handlers(source)?;
    undeclared_parameters(source, &endpoints, &handlers)?;
    let known: BTreeSet<&str> = endpoints.iter().map(|it| it.name.as_str()).collect();
    if let Some(name) = handlers.keys().find(|name| !known.contains(name.as_str())) {
        bail!("`{name}` is served and is not in `types::endpoint`");
    }
    let mut paths = Map::new();
    for endpoint in &endpoints {
        let handler = handlers.get(&endpoint.name);
        let handler = handler.with_context(|| format!("find who serves `{}`", endpoint.name))?;
        let operation = operation(schemas, endpoint, *handler)
            .with_context(|| format!("describe `{}` of types::endpoint", endpoint.name))?;
        let at = paths.entry(endpoint.path.clone()).or_insert_with(|| json!({}));
        at[endpoint.method.to_lowercase()] = operation;
    }
    Ok(Value::Object(paths))
}

/// Returns the answers that all operations share: errors, by their status.
pub(super) fn errors(source: &Source, schemas: &mut Schemas<'_>) -> Result<Value> {
    let error = syn::parse_str::<Type>("ApiError")?;
    schemas.of("types::error", &error)?;
    let mut by_status: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for code in codes(source)?.0 {
        let line = format!("- `{}`: {}", code.text, code.doc);
        by_status.entry(code.status).or_default().push(line);
    }
    let mut errors = Map::new();
    for (status, lines) in by_status {
        let mut answer = json!({
            "description": lines.join("\n"),
            "content": {JSON: {"schema": {"$ref": SCHEMA_ERROR}}}
        });
        if status == 429 {
            answer["headers"] = json!({"Retry-After": {
                "description": "Seconds after which the same request may be tried again.",
                "schema": {"type": "integer", "minimum": 0}
            }});
        }
        errors.insert(format!("Error{status}"), answer);
    }
    Ok(Value::Object(errors))
}

fn codes(source: &Source) -> Result<Codes> {
    let module = source.modules.get("types::error").context("find `types::error`")?;
    let codes = module.items.iter().find_map(|item| match item {
        Item::Macro(item) if item.mac.path.is_ident("codes") => Some(&item.mac),
        _ => None,
    });
    Ok(codes.context("find `codes!`")?.parse_body()?)
}

fn endpoints(source: &Source) -> Result<Vec<EndpointLine>> {
    let module = source.modules.get("types::endpoint").context("find `types::endpoint`")?;
    let mut lines = Vec::new();
    for item in &module.items {
        if let Item::Macro(item) = item
            && item.mac.path.is_ident("endpoints")
        {
            lines.extend(item.mac.parse_body::<Endpoints>()?.0);
        }
    }
    Ok(lines)
}

/// Finds each `.serve(endpoint::NAME, path::to::handler)`.
fn handlers(source: &Source) -> Result<BTreeMap<String, Handler<'_>>> {
    let mut handlers = BTreeMap::new();
    let of_api = source.modules.iter().filter(|(key, _)| key.starts_with(API));
    for (key, module) in of_api {
        for item in &module.items {
            let mut served = Vec::new();
            find_served(item.to_token_stream(), &mut served);
            for (name, path) in served {
                let found = source.resolve(key, &path);
                let Some(Item::Fn(function)) = found.map(|found| found.item) else {
                    bail!("`{}`, which serves `{name}`, is no function", path.join("::"));
                };
                let module = found.map(|found| found.module).unwrap_or_default();
                handlers.insert(name, (module, function));
            }
        }
    }
    Ok(handlers)
}

fn find_served(tokens: TokenStream, found: &mut Vec<(String, Vec<String>)>) {
    let mut after_serve = false;
    for token in tokens {
        if let TokenTree::Group(group) = &token {
            if after_serve {
                let text = group.stream().to_string().replace(' ', "");
                let (endpoint, handler) = text.split_once(',').unwrap_or_default();
                if let Some(name) = endpoint.strip_prefix("endpoint::") {
                    let handler = handler.trim_end_matches(',').split("::").map(str::to_owned);
                    found.push((name.to_owned(), handler.collect()));
                }
            }
            find_served(group.stream(), found);
        }
        after_serve = matches!(&token, TokenTree::Ident(ident) if ident == "serve");
    }
}

fn operation(
    schemas: &mut Schemas<'_>,
    endpoint: &EndpointLine,
    (module, function): Handler<'_>,
) -> Result<Value> {
    if endpoint.notes.words.is_empty() {
        bail!("it has no description: write a comment above it");
    }
    let declared = &endpoint.notes.declared;
    let mut operation = json!({
        "operationId": endpoint.name.to_lowercase(),
        "summary": endpoint.notes.words.split("\n").next().unwrap_or_default(),
        "description": endpoint.notes.words,
        "tags": [tag(&endpoint.path)],
        "x-perch-action": endpoint.action.to_lowercase(),
    });
    if endpoint.action == "Public" {
        operation["security"] = json!([]);
    }
    let parameters = parameters(schemas, endpoint)?;
    let has_parameters = !parameters.is_empty();
    if has_parameters {
        operation["parameters"] = Value::Array(parameters);
    }
    let body = body(schemas, module, function, declared)?;
    let has_body = body.is_some();
    if let Some(body) = body {
        operation["requestBody"] = body;
    }
    let mut answers = answers(schemas, module, function, declared)?;
    for status in error_statuses(endpoint, has_parameters, has_body) {
        let error = json!({"$ref": format!("#/components/responses/Error{status}")});
        answers.insert(status.to_string(), error);
    }
    operation["responses"] = Value::Object(answers);
    Ok(operation)
}

/// Returns the statuses of errors that an endpoint can answer with.
fn error_statuses(endpoint: &EndpointLine, parameters: bool, body: bool) -> Vec<u16> {
    if endpoint.action == "Public" {
        return vec![500];
    }
    let mut statuses = vec![401, 403, 429, 500, 503];
    if parameters || body {
        statuses.push(400);
    }
    if endpoint.path.contains('{') {
        statuses.push(404);
    }
    if endpoint.path.ends_with("/wait") {
        statuses.push(408);
    }
    let changes = endpoint.method != "GET";
    if changes || endpoint.path.contains("{machine}") {
        statuses.push(409);
    }
    if changes || !endpoint.notes.declared.is_empty() {
        statuses.extend([412, 422]);
    }
    if changes {
        statuses.extend([404, 507]);
    }
    if body {
        statuses.push(413);
    }
    statuses
}

fn parameters(schemas: &mut Schemas<'_>, endpoint: &EndpointLine) -> Result<Vec<Value>> {
    let mut parameters = Vec::new();
    for part in endpoint.path.split('{').skip(1).filter_map(|part| part.split('}').next()) {
        let ty = PATH_TYPES.iter().find(|(name, _)| *name == part).map_or("String", |(_, ty)| ty);
        let schema = schemas.of("types", &syn::parse_str(ty)?)?;
        parameters.push(json!({"name": part, "in": "path", "required": true, "schema": schema}));
    }
    // What changes a machine needs its lease while somebody holds that (`Endpoint::needs_lease`).
    if endpoint.action == "Write" && endpoint.path.contains("{machine}") && !endpoint.unleased {
        parameters.push(json!({
            "name": LEASE_HEADER,
            "in": "header",
            "required": false,
            "description": "The nonce of the machine's lease, while there is one.",
            "schema": {"type": "string"},
        }));
    }
    for declared in &endpoint.notes.declared {
        let place = match declared.kind {
            Kind::Query => "query",
            Kind::Header => "header",
            Kind::Body | Kind::Answer => continue,
        };
        let schema = shape(schemas, &declared.shape)
            .with_context(|| format!("parameter `{}`", declared.name))?;
        parameters.push(json!({
            "name": declared.name,
            "in": place,
            "required": false,
            "description": declared.words,
            "schema": schema,
        }));
    }
    Ok(parameters)
}

/// Returns the schema of a declared shape: a range of integers, or a type of `types`.
fn shape(schemas: &mut Schemas<'_>, text: &str) -> Result<Value> {
    if let Some((least, most)) = text.split_once("..=") {
        let (least, most): (i64, i64) = (least.trim().parse()?, most.trim().parse()?);
        return Ok(json!({"type": "integer", "minimum": least, "maximum": most}));
    }
    let ty: Type = syn::parse_str(text)?;
    schemas.of_words(&ty)
}

fn body(
    schemas: &mut Schemas<'_>,
    module: &str,
    function: &ItemFn,
    declared: &[Declared],
) -> Result<Option<Value>> {
    if let Some(said) = declared.iter().find(|it| it.kind == Kind::Body) {
        return Ok(Some(json!({
            "required": true,
            "description": said.words,
            "content": {(said.name.as_str()): {"schema": media_schema(schemas, said)?}},
        })));
    }
    for input in &function.sig.inputs {
        let FnArg::Typed(input) = input else { continue };
        let Some((name, inner)) = generic(&input.ty) else { continue };
        if BODIES.contains(&name.as_str()) {
            let schema = schemas.of(module, &inner)?;
            let content = json!({JSON: {"schema": schema}});
            return Ok(Some(json!({"required": true, "content": content})));
        }
    }
    Ok(None)
}

fn media_schema(schemas: &mut Schemas<'_>, said: &Declared) -> Result<Value> {
    match said.shape.as_str() {
        "bytes" => Ok(json!({"type": "string", "format": "binary"})),
        "object" => Ok(json!({"type": "object"})),
        other => shape(schemas, other),
    }
}

fn answers(
    schemas: &mut Schemas<'_>,
    module: &str,
    function: &ItemFn,
    declared: &[Declared],
) -> Result<Map<String, Value>> {
    let mut content = None;
    let mut words = "It was done.".to_owned();
    let mut said_200 = true;
    if let Some(said) = declared.iter().find(|it| it.kind == Kind::Answer) {
        words.clone_from(&said.words);
        content = Some(json!({(said.name.as_str()): {"schema": media_schema(schemas, said)?}}));
    } else {
        let ReturnType::Type(_, ty) = &function.sig.output else {
            bail!("its handler answers nothing");
        };
        let answer = answer_type(schemas, module, ty)?;
        said_200 = !answer.has_status;
        if let Some(schema) = answer.schema {
            content = Some(json!({JSON: {"schema": schema}}));
        }
    }
    let mut statuses = statuses_in(function.block.to_token_stream());
    if statuses.is_empty() || said_200 && !statuses.iter().any(|it| *it == 101) {
        statuses.insert(200);
    }
    let mut answers = Map::new();
    for status in statuses {
        let mut answer = json!({"description": words});
        if let Some(content) = content.as_ref().filter(|_| status != 204 && status != 101) {
            answer["content"] = content.clone();
        }
        answers.insert(status.to_string(), answer);
    }
    Ok(answers)
}

#[derive(Debug, Default)]
struct Answer {
    schema: Option<Value>,
    has_status: bool,
}

/// Reads `Result<(StatusCode, Json<T>), Failure>` and what is less.
fn answer_type(schemas: &mut Schemas<'_>, module: &str, ty: &Type) -> Result<Answer> {
    if let Type::Tuple(tuple) = ty {
        let mut whole = Answer::default();
        for part in &tuple.elems {
            let part = answer_type(schemas, module, part)?;
            whole.has_status |= part.has_status;
            whole.schema = whole.schema.or(part.schema);
        }
        return Ok(whole);
    }
    let Some((name, inner)) = generic(ty) else {
        let text = ty.to_token_stream().to_string();
        return match text.rsplit(' ').next() {
            Some("StatusCode") => Ok(Answer { schema: None, has_status: true }),
            _ => bail!(
                "its answer is a `{text}`: declare it with a line ``- `answer media/type: Type` words``"
            ),
        };
    };
    match name.as_str() {
        "Result" => answer_type(schemas, module, &inner),
        "JsonReply" | "Json" => {
            let schema = schemas.of(module, &inner)?;
            Ok(Answer { schema: Some(schema), has_status: false })
        }
        // An alias of the module for `Result<JsonReply<T>, Failure>`.
        "Answer" => {
            let schema = schemas.of(module, &inner)?;
            Ok(Answer { schema: Some(schema), has_status: false })
        }
        other => bail!("its answer is a `{other}`, which is not known"),
    }
}

/// Returns the name and the first argument of a generic type.
fn generic(ty: &Type) -> Option<(String, Type)> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last()?;
    let syn::PathArguments::AngleBracketed(list) = &last.arguments else { return None };
    let first = list.args.iter().find_map(|argument| match argument {
        syn::GenericArgument::Type(ty) => Some(ty.clone()),
        _ => None,
    });
    Some((last.ident.to_string(), first?))
}

fn statuses_in(tokens: TokenStream) -> BTreeSet<u16> {
    let mut statuses = BTreeSet::new();
    let mut words: Vec<String> = Vec::new();
    flat(tokens, &mut words);
    for window in words.windows(4) {
        if let [first, one, two, name] = window
            && first == "StatusCode"
            && one == ":"
            && two == ":"
        {
            statuses.extend(STATUSES.iter().filter(|(known, _)| known == name).map(|(_, it)| *it));
        }
    }
    statuses
}

/// Fails when a handler's file reads a parameter that no endpoint of that file declares.
fn undeclared_parameters(
    source: &Source,
    endpoints: &[EndpointLine],
    handlers: &BTreeMap<String, Handler<'_>>,
) -> Result<()> {
    for (key, module) in source.modules.iter().filter(|(key, _)| key.starts_with(API)) {
        let here = |it: &&EndpointLine| handlers.get(&it.name).is_some_and(|(at, _)| at == key);
        let mut of_file: Vec<&EndpointLine> = endpoints.iter().filter(here).collect();
        if of_file.is_empty() {
            of_file = endpoints.iter().collect();
        }
        let queries = of_file.iter().flat_map(|it| &it.notes.declared);
        let names: BTreeSet<&str> =
            queries.filter(|it| it.kind == Kind::Query).map(|it| it.name.as_str()).collect();
        for item in &module.items {
            let mut words = Vec::new();
            flat(item.to_token_stream(), &mut words);
            for name in read_names(&words) {
                if !names.iter().any(|known| known.trim_end_matches("{key}") == name) {
                    bail!(
                        "`{key}` reads the parameter `{name}`, which no endpoint declares: add a \
                         line ``- `{name}: Type` words`` to its comment in types::endpoint"
                    );
                }
            }
        }
    }
    debug_assert!(source.modules.contains_key(TYPES));
    Ok(())
}

fn read_names(words: &[String]) -> Vec<String> {
    let mut names = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let is_reader = words.get(index + 1).is_some_and(|it| it == ".")
            && words.get(index + 2).is_some_and(|it| READERS.contains(&it.as_str()));
        if word != "parameters" || !is_reader {
            continue;
        }
        // Behind the method there may be a turbofish.
        let rest = words.iter().skip(index + 3).take_while(|it| !matches!(it.as_str(), ";" | "."));
        names.extend(
            rest.filter_map(|it| it.strip_prefix('"')?.strip_suffix('"'))
                .take(1)
                .map(str::to_owned),
        );
    }
    names
}

/// Writes tokens as words, groups opened.
fn flat(tokens: TokenStream, words: &mut Vec<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => flat(group.stream(), words),
            other => words.push(other.to_string()),
        }
    }
}

/// Returns the group under which an endpoint is shown.
fn tag(path: &str) -> &str {
    let mut parts = path.split('/').filter(|it| !matches!(*it, "" | "v1" | "api"));
    let first = parts.next().unwrap_or_default();
    parts
        .find(|part| !part.starts_with('{'))
        .filter(|_| first == "apps" || first == "orgs")
        .unwrap_or(first)
}

/// Returns a description for the whole, or the schema as it is.
pub(super) fn info() -> Value {
    described(
        json!({"title": "Perch", "version": "1", "license": {"name": "Apache-2.0"}}),
        "Apps and machines on one's own metal. Bodies follow the public wire format of Fly.io's \
         Machines API; a key that is accepted does what it says, and keys that nobody knows are kept \
         and given back. Every request needs a token: `Authorization: Bearer <token>`; \
         several, with commas between them, reach what any of them reaches.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINTS: &str = r#"endpoints! {
        /// Things of an app.
        ///
        /// - `limit: 1..=50` how many
        THINGS = "GET" "/v1/apps/{app}/things" Read;
        /// A new thing.
        MAKE = "POST" "/v1/apps/{app}/things" Write;
    }"#;
    const HANDLERS: &str = "
        use perch_types::a::Thing;
        fn router() { r.serve(endpoint::THINGS, list).serve(endpoint::MAKE, crate::x::make); }
        async fn list(parameters: Parameters) -> Result<JsonReply<Vec<Thing>>, Failure> {
            parameters.parsed::<u32>(\"limit\")
        }
        async fn make(Json(it): Json<Thing>) -> Result<(StatusCode, JsonReply<Thing>), Failure> {
            Ok((StatusCode::CREATED, it))
        }";

    fn document(endpoints: &str, handlers: &str) -> Result<Value> {
        let ids = "text_id!(AppName, \"a\", \"b\", |_| true);";
        let source = Source::of_texts(&[
            ("types", "pub use id::AppName;"),
            ("types::id", ids),
            ("types::endpoint", endpoints),
            ("types::a", "pub struct Thing { name: String }"),
            ("api::x", handlers),
        ]);
        let mut schemas = Schemas::new(&source);
        paths(&source, &mut schemas)
    }

    #[test]
    fn an_operation_says_what_its_handler_does() {
        let paths = document(ENDPOINTS, HANDLERS).unwrap();
        let at = &paths["/v1/apps/{app}/things"];
        let thing = json!({"$ref": "#/components/schemas/Thing"});
        assert_eq!(at["get"]["responses"]["200"]["content"][JSON]["schema"]["items"], thing);
        assert_eq!(at["get"]["parameters"][1]["schema"]["maximum"], 50);
        assert_eq!(at["get"]["tags"], json!(["things"]));
        assert_eq!(at["post"]["requestBody"]["content"][JSON]["schema"], thing);
        assert_eq!(at["post"]["responses"]["201"]["content"][JSON]["schema"], thing);
        assert!(at["post"]["responses"].get("200").is_none());
        assert!(at["post"]["responses"].get("413").is_some());
        // A body with secrets in it is one too.
        let secret = HANDLERS.replace("Json(it): Json<Thing>", "SecretJson(it): SecretJson<Thing>");
        assert_eq!(document(ENDPOINTS, &secret).unwrap(), paths);
    }

    #[test]
    fn what_is_not_described_is_a_fault() {
        let fault = |endpoints: &str, handlers: &str| {
            format!("{:#}", document(endpoints, handlers).unwrap_err())
        };
        let bare = ENDPOINTS.replace("/// A new thing.", "");
        assert!(fault(&bare, HANDLERS).contains("no description"));
        let more = HANDLERS.replace("\"limit\"", "\"state\"");
        assert!(fault(ENDPOINTS, &more).contains("reads the parameter `state`"));
        let unserved = HANDLERS.replace("endpoint::MAKE", "endpoint::OTHER");
        assert!(fault(ENDPOINTS, &unserved).contains("`OTHER` is served"));
        let raw = HANDLERS.replace("Result<JsonReply<Vec<Thing>>, Failure>", "Response");
        assert!(fault(ENDPOINTS, &raw).contains("declare it"));
    }
}
