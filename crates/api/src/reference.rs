//! The OpenAPI document, and a page made of it for people.
//!
//! Never runs a script in a browser, and never shows anything but the document.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::response::{IntoResponse as _, Response};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use serde_json::{Map, Value};

/// The document as `cargo xtask openapi --write` made it of the code.
const DOCUMENT: &str = include_str!("../../../docs/openapi.json");
/// What a browser may do with the page: show it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
/// How long a browser may keep either; they change with the server.
const CACHE: &str = "public, max-age=300";
/// The order in which methods of a path are shown.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

static PAGE: LazyLock<String> = LazyLock::new(|| page_of(DOCUMENT));

pub(crate) async fn document() -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, CACHE)];
    (headers, DOCUMENT).into_response()
}

pub(crate) async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, CACHE),
    ];
    (headers, PAGE.as_str()).into_response()
}

fn page_of(document: &str) -> String {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let mut page = String::from(HEAD);
    let about = text(&document["info"]["description"]);
    write!(page, "<header><h1>Perch API</h1><p>{}</p>", escape(about)).ok();
    page.push_str("<p><a href=\"openapi.json\">openapi.json</a></p></header>");
    let groups = groups(&document);
    page.push_str("<nav>");
    for (group, operations) in &groups {
        write!(page, "<b>{}</b><ul>", escape(group)).ok();
        for operation in operations {
            let (id, name) = (text(&operation.value["operationId"]), operation.name());
            write!(page, "<li><a href=\"#{id}\">{name}</a></li>").ok();
        }
        page.push_str("</ul>");
    }
    page.push_str("<b>shapes</b><ul>");
    let schemas = fields(&document["components"]["schemas"]);
    for (name, _) in &schemas {
        write!(page, "<li><a href=\"#shape-{0}\">{0}</a></li>", escape(name)).ok();
    }
    page.push_str("</ul></nav><main>");
    for (_, operations) in &groups {
        for operation in operations {
            write_operation(&mut page, operation);
        }
    }
    for (name, schema) in &schemas {
        write_shape(&mut page, name, schema);
    }
    page.push_str("</main></body></html>\n");
    page
}

struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    value: &'a Value,
}

impl Operation<'_> {
    fn name(&self) -> String {
        format!("<code>{} {}</code>", self.method.to_uppercase(), escape(self.path))
    }
}

/// Returns the operations by their tags.
fn groups(document: &Value) -> Vec<(String, Vec<Operation<'_>>)> {
    let mut groups: Vec<(String, Vec<Operation<'_>>)> = Vec::new();
    for (path, methods) in fields(&document["paths"]) {
        for method in METHODS {
            let Some(value) = methods.get(method) else { continue };
            let operation = Operation { method, path, value };
            let tag = text(&value["tags"][0]);
            match groups.iter_mut().find(|(known, _)| known == tag) {
                Some((_, operations)) => operations.push(operation),
                None => groups.push((tag.to_owned(), vec![operation])),
            }
        }
    }
    groups
}

fn write_operation(page: &mut String, operation: &Operation<'_>) {
    let value = operation.value;
    let id = text(&value["operationId"]);
    write!(page, "<section id=\"{id}\"><h2>{}</h2>", operation.name()).ok();
    page.push_str(&paragraphs(text(&value["description"])));
    let action = text(&value["x-perch-action"]);
    if action == "public" {
        page.push_str("<p class=\"note\">Needs no token.</p>");
    } else {
        write!(page, "<p class=\"note\">Needs a token that allows <i>{}</i>.</p>", escape(action))
            .ok();
    }
    let parameters = value["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !parameters.is_empty() {
        page.push_str("<h3>Parameters</h3><table>");
        for parameter in parameters {
            write!(
                page,
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(text(&parameter["name"])),
                escape(text(&parameter["in"])),
                shape(&parameter["schema"]),
                escape(text(&parameter["description"])),
            )
            .ok();
        }
        page.push_str("</table>");
    }
    for (media, content) in fields(&value["requestBody"]["content"]) {
        let shown = shape(&content["schema"]);
        write!(page, "<h3>Body</h3><p>{shown} <span class=\"note\">{}</span></p>", escape(media))
            .ok();
    }
    page.push_str("<h3>Answers</h3><table>");
    for (status, answer) in fields(&value["responses"]) {
        if let Some(error) = reference(answer) {
            // Errors are all of one shape; their codes are with the shape.
            debug_assert!(error.starts_with("Error"), "{error}");
            continue;
        }
        let content = fields(&answer["content"]);
        let shown = content.iter().map(|(_, content)| shape(&content["schema"]));
        let shown = shown.collect::<Vec<_>>().join(" ");
        let words = escape(text(&answer["description"]));
        write!(page, "<tr><td>{status}</td><td>{shown}</td><td>{words}</td></tr>").ok();
    }
    let responses = fields(&value["responses"]);
    let errors = responses.iter().filter(|(_, answer)| reference(answer).is_some());
    let errors: Vec<&str> = errors.map(|(status, _)| status.as_str()).collect();
    write!(
        page,
        "<tr><td>{}</td><td><a href=\"#shape-ApiError\">ApiError</a></td><td></td></tr>",
        errors.join(" ")
    )
    .ok();
    page.push_str("</table></section>");
}

fn write_shape(page: &mut String, name: &str, schema: &Value) {
    let name = escape(name);
    write!(page, "<section id=\"shape-{name}\"><h2>{name}</h2>").ok();
    page.push_str(&paragraphs(text(&schema["description"])));
    let properties = fields(&schema["properties"]);
    if properties.is_empty() {
        write!(page, "<p>{}</p>", shape(schema)).ok();
    } else {
        let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
        page.push_str("<table>");
        for (field, schema) in properties {
            let must = if required.iter().any(|it| it == field) { "required" } else { "" };
            write!(
                page,
                "<tr><td><code>{}</code></td><td>{}</td><td>{must}</td><td>{}</td></tr>",
                escape(field),
                shape(schema),
                escape(text(&schema["description"])),
            )
            .ok();
        }
        page.push_str("</table>");
    }
    page.push_str("</section>");
}

/// Returns a schema in few words.
fn shape(schema: &Value) -> String {
    if let Some(name) = reference(schema) {
        return format!("<a href=\"#shape-{0}\">{0}</a>", escape(name));
    }
    if let Some(inner) = schema["allOf"].as_array().and_then(|all| all.first()) {
        return shape(inner);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        return choices.iter().map(shape).collect::<Vec<_>>().join(" or ");
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().map(|word| format!("<code>{}</code>", escape(text(word))));
        return words.collect::<Vec<_>>().join(" ");
    }
    match text(&schema["type"]) {
        "array" => format!("list of {}", shape(&schema["items"])),
        "object" => match schema.get("additionalProperties") {
            Some(values) => format!("map to {}", shape(values)),
            None => "object".to_owned(),
        },
        "" => "anything".to_owned(),
        "integer" => match (&schema["minimum"], &schema["maximum"]) {
            (Value::Null, _) => "integer".to_owned(),
            (least, Value::Null) => format!("integer from {least}"),
            (least, most) => format!("integer {least} to {most}"),
        },
        other => escape(other),
    }
}

fn reference(value: &Value) -> Option<&str> {
    value.get("$ref")?.as_str()?.rsplit('/').next()
}

fn fields(value: &Value) -> Vec<(&String, &Value)> {
    value.as_object().map(Map::iter).map(Iterator::collect).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Writes words, and lists whose lines begin with `- `.
fn paragraphs(words: &str) -> String {
    let mut html = String::new();
    for line in words.lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix("- ") {
            Some(item) => write!(html, "<p class=\"item\">{}</p>", escape(item)).ok(),
            None => write!(html, "<p>{}</p>", escape(line)).ok(),
        };
    }
    html
}

/// Makes text of HTML harmless; words between backquotes become code.
fn escape(words: &str) -> String {
    let mut html = String::with_capacity(words.len());
    let mut is_code = false;
    for letter in words.chars() {
        match letter {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            '`' => {
                html.push_str(if is_code { "</code>" } else { "<code>" });
                is_code = !is_code;
            }
            other => html.push(other),
        }
    }
    if is_code {
        html.push_str("</code>");
    }
    html
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>Perch API</title>\
<style>\
:root{color-scheme:light dark;--line:#8884;--soft:#8882}\
body{font:16px/1.5 system-ui,sans-serif;margin:0;display:grid;\
grid-template-columns:minmax(0,30rem) minmax(0,56rem)}\
header{grid-column:1/-1;padding:1rem 2rem;border-bottom:1px solid var(--line)}\
header p{max-width:50rem}h1{margin:0}\
nav{padding:1rem 2rem;font-size:.8rem;border-right:1px solid var(--line);\
position:sticky;top:0;height:100vh;overflow:auto;box-sizing:border-box}\
nav ul{list-style:none;margin:.2rem 0 1rem;padding:0}nav a{text-decoration:none}\
nav code{background:none;padding:0;white-space:nowrap;overflow-wrap:normal}\
main{padding:0 2rem 4rem}section{padding:1.2rem 0;border-bottom:1px solid var(--line)}\
h2{font-size:1.1rem;margin:0}h3{font-size:.9rem;margin:1rem 0 .3rem}\
p{margin:.4rem 0}p.item{margin:.2rem 0 .2rem 1rem}.note{opacity:.7;font-size:.85rem}\
code{background:var(--soft);padding:.1em .3em;border-radius:3px;font-size:.9em;\
overflow-wrap:anywhere}\
table{border-collapse:collapse;width:100%;font-size:.9rem}\
td{border-top:1px solid var(--line);padding:.3rem .6rem .3rem 0;vertical-align:top;width:1%}\
td:first-child{min-width:9rem}td:last-child{width:auto}td:first-child code{white-space:nowrap}\
@media(max-width:50rem){body{display:block}nav{position:static;height:auto;border:0}}\
</style></head><body>";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_every_operation_and_shape_and_no_script() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        for (_, methods) in fields(&document["paths"]) {
            for (_, operation) in fields(methods) {
                let anchor = format!("<section id=\"{}\">", text(&operation["operationId"]));
                assert!(PAGE.contains(&anchor), "{anchor}");
            }
        }
        for (name, _) in fields(&document["components"]["schemas"]) {
            assert!(PAGE.contains(&format!("<section id=\"shape-{name}\">")), "{name}");
        }
        assert!(!PAGE.contains("<script"));
        let links = PAGE.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
        for link in links {
            let anchor = link.strip_prefix('#').map(|id| format!("id=\"{id}\""));
            assert!(anchor.is_none_or(|anchor| PAGE.contains(&anchor)), "{link} leads nowhere");
        }
    }

    #[test]
    fn words_of_the_document_are_no_html() {
        assert_eq!(escape("a<b>&\"`x`"), "a&lt;b&gt;&amp;&quot;<code>x</code>");
        let page = page_of(r#"{"info":{"description":"<script>"},"components":{"schemas":{}}}"#);
        assert!(!page.contains("<script>"));
    }
}
